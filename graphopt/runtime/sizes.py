"""Computes symbolic sizes, as exporters write them into shapes."""

import ast
from collections.abc import Callable


def evaluate_size(expression: str, bind: Callable[[str], int]) -> int:
    """Compute a symbolic size such as ``past + seq`` or ``2*s0``; a name that is no expression is bound as it is."""
    try:
        tree = ast.parse(expression, mode="eval").body
        return _value(tree, bind)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return bind(expression)


def _value(node: ast.expr, bind: Callable[[str], int]) -> int:
    """Compute a part of a symbolic size."""
    if isinstance(node, ast.Name):
        return bind(node.id)
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, bind), _value(node.right, bind)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            return left * right
        if isinstance(node.op, ast.FloorDiv):
            return left // right
    raise ValueError(f"not a size: {ast.dump(node)}")

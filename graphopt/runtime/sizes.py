"""Computes symbolic sizes, as exporters write them into shapes."""

import ast
from collections.abc import Callable

_LONGEST = 500
"""Characters; a longer text is not read as an expression, since deep ones are more than the parser takes."""
_NO_EXPRESSION = (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError)


def evaluate_size(expression: str, bind: Callable[[str], int]) -> int:
    """Compute a symbolic size such as ``past + seq`` or ``2*s0``; a name that is no expression is bound as it is."""
    try:
        return _value(_tree(expression), bind)
    except _NO_EXPRESSION:
        return bind(expression)


def is_expression(text: str) -> bool:
    """Whether a size is computed from others, or is a number."""
    try:
        _value(_tree(text), lambda name: 1)
    except _NO_EXPRESSION:
        return False
    return True


def _tree(text: str) -> ast.expr:
    """Parse an expression.

    Raises:
        ValueError: It is too long.
    """
    if len(text) > _LONGEST:
        raise ValueError("too long for an expression")
    return ast.parse(text.strip(), mode="eval").body


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

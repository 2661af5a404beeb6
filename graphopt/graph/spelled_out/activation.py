"""Recognizes GELU, in its exact form and with tanh, and HardSwish by the function in them."""

import math

import onnx_graphsurgeon as gs

from graphopt.graph.spelled_out.pattern import SpelledOut, is_close, is_closed, only_reader, other_operand, scalar
from graphopt.graph.view import GraphView, is_op

Polynomial = tuple[float, ...]

_TANH = math.sqrt(2 / math.pi)
_FORMS: dict[str, tuple[Polynomial, Polynomial, str, int, dict[str, str]]] = {
    "Erf": ((0.0, math.sqrt(0.5)), (0.5, 0.5), "Gelu", 20, {}),
    "Tanh": ((0.0, _TANH, 0.0, _TANH * 0.044715), (0.5, 0.5), "Gelu", 20, {"approximate": "tanh"}),
    "Clip": ((3.0, 1.0), (0.0, 1 / 6), "HardSwish", 14, {}),
}
"""For each function f: p and q where x * (q0 + q1 * f(p0 + p1 x + ...)) is the operator, and its first opset."""

_LONGEST = 6
_HIGHEST = 3


def activation(view: GraphView, function: gs.Node) -> SpelledOut | None:
    """Recognize what an Erf, a Tanh or a Clip from 0 to 6 belongs to.

    Constants may stand in any order: ``0.5 * x * (1 + erf)``, ``x * (0.5 + 0.5 * erf)``, and so on.
    """
    if is_op(function, "Clip") and _bounds(view, function) != (0.0, 6.0):
        return None
    inner, (offset, factor), operator, opset, attributes = _FORMS[function.op]
    shift, slope, behind = 0.0, 1.0, [function]
    tensor, gated = function.outputs[0], None
    for _ in range(_LONGEST):
        node = only_reader(view, tensor)
        beside = other_operand(node, tensor) if node is not None else None
        if node is None or beside is None:
            return None
        number = scalar(view, beside)
        if number is None:
            if gated is not None or not is_op(node, "Mul"):
                return None
            gated = beside
        elif is_op(node, "Add") and gated is None:
            shift += number
        elif is_op(node, "Mul"):
            shift, slope = shift * number, slope * number
        elif is_op(node, "Div") and node.inputs[0] is tensor and number:
            shift, slope = shift / number, slope / number
        else:
            return None
        behind.append(node)
        tensor = node.outputs[0]
        for source, scale, before in _sources(view, gated):
            if not is_close(scale * shift, offset) or not is_close(scale * slope, factor):
                continue
            found = polynomial(view, function.inputs[0], source)
            if found is None or not _is_alike(found[0], inner):
                continue
            nodes = (*found[1], *before, *behind)
            if is_closed(view, nodes):
                return SpelledOut(operator, opset, nodes, source, attributes)
    return None


def _bounds(view: GraphView, clip: gs.Node) -> tuple[float | None, float | None]:
    """Return the two bounds of a Clip where they are constants."""
    given = [scalar(view, bound) if bound.name else None for bound in list(clip.inputs)[1:]]
    values = [*given, None, None] if given else [clip.attrs.get("min"), clip.attrs.get("max")]
    low, high = (value if isinstance(value, float | int) else None for value in values[:2])
    return low, high


def _sources(view: GraphView, gated: gs.Tensor | None) -> list[tuple[gs.Tensor, float, list[gs.Node]]]:
    """Return what the gated tensor may be a multiple of: itself, and what a Mul or Div before it scales."""
    if gated is None:
        return []
    found: list[tuple[gs.Tensor, float, list[gs.Node]]] = [(gated, 1.0, [])]
    node = view.producer(gated, "Mul", "Div")
    for operand in node.inputs if node is not None else ():
        beside = other_operand(node, operand) if node is not None else None
        number = None if beside is None else scalar(view, beside)
        if node is None or not number or (is_op(node, "Div") and operand is not node.inputs[0]):
            continue
        found.append((operand, number if is_op(node, "Mul") else 1 / number, [node]))
    return found


def polynomial(view: GraphView, tensor: gs.Tensor, x: gs.Tensor) -> tuple[Polynomial, list[gs.Node]] | None:
    """Return the coefficients of ``tensor`` as a polynomial in ``x``, lowest first, and the nodes that compute it."""
    nodes: dict[int, gs.Node] = {}

    def value(current: gs.Tensor, depth: int) -> Polynomial | None:
        if current is x:
            return 0.0, 1.0
        number = scalar(view, current)
        if number is not None:
            return (number,)
        node = view.producer(current, "Add", "Sub", "Mul", "Div", "Pow")
        if node is None or depth > _LONGEST or len(node.inputs) != 2:
            return None
        left, right = (value(operand, depth + 1) for operand in node.inputs)
        found = None if left is None or right is None else _combine(str(node.op), left, right)
        if found is not None and id(node) not in nodes:
            nodes[id(node)] = node
        return found

    found = value(tensor, 0)
    return None if found is None else (found, list(nodes.values()))


def _combine(op: str, left: Polynomial, right: Polynomial) -> Polynomial | None:
    """Return the sum, difference, product, quotient or power of two polynomials; None if it is none, or too high."""
    if op in ("Add", "Sub"):
        sign, size = (1.0 if op == "Add" else -1.0), max(len(left), len(right))
        wide = [[*each, *[0.0] * (size - len(each))] for each in (left, right)]
        return tuple(a + sign * b for a, b in zip(*wide, strict=True))
    if op == "Div":
        return tuple(a / right[0] for a in left) if len(right) == 1 and right[0] else None
    if op == "Pow":
        if len(right) != 1 or right[0] not in (1.0, 2.0, 3.0):
            return None
        result: Polynomial | None = left
        for _ in range(int(right[0]) - 1):
            result = None if result is None else _combine("Mul", result, left)
        return result
    product = [0.0] * (len(left) + len(right) - 1)
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            product[i + j] += a * b
    return tuple(product) if len(product) <= _HIGHEST + 1 else None


def _is_alike(found: Polynomial, wanted: Polynomial) -> bool:
    """Whether two polynomials have the same coefficients."""
    size = max(len(found), len(wanted))
    wide = [[*each, *[0.0] * (size - len(each))] for each in (found, wanted)]
    return all(is_close(a, b) for a, b in zip(*wide, strict=True))

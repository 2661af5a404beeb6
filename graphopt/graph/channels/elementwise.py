"""Transfer functions of element-wise operators: unary, broadcast binary, and those with side inputs."""

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.graph.channels.cutting import Cut
from graphopt.graph.channels.evaluate import evaluate
from graphopt.graph.channels.facts import Facts, Vector
from graphopt.graph.channels.labels import Label, Labels, Pick
from graphopt.graph.channels.picking import is_normalized, plan_picks
from graphopt.graph.channels.shape_arithmetic import cast_type
from graphopt.graph.channels.table import Transfer, register


@register(
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Clip", "Cos"),
    *("Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN"),
    *("LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign"),
    *("Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu"),
    *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Mean", "Sum", "PRelu", "Where", "Mod", "CastLike", "BitShift"),
    *("And", "Or", "Xor", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
    *("BitwiseAnd", "BitwiseOr", "BitwiseXor"),
)
class Elementwise(Transfer):
    """An operator that works element by element, its inputs broadcast against each other."""

    def forward(self, node: gs.Node, facts: Facts) -> None:
        """Evaluate the operator itself on the uniform channels; nought times anything is nought."""
        out = node.outputs[0]
        rank = facts.rank(out)
        if not rank:
            return
        for axis in self._candidates(node, facts, rank):
            size = facts.dim(out, axis)
            vectors = [self._vector(node, facts, slot, axis - rank, size or 0) for slot in range(len(node.inputs))]
            if size is None or all(not isinstance(vector, np.ndarray) for vector in vectors):
                continue
            if node.op in ("Cast", "CastLike"):
                facts.learn(out, axis, _cast(vectors[0], node, facts))
                continue
            if node.op == "Identity":
                facts.learn(out, axis, vectors[0] if isinstance(vectors[0], np.ndarray) else None)
                continue
            values = evaluate(node, vectors, facts.view.opset)
            if values is not None and node.op == "Mul":
                values = np.where((np.stack([v for v in vectors if v is not None]) == 0).any(axis=0), 0.0, values)
            facts.learn(out, axis, values)

    def _candidates(self, node: gs.Node, facts: Facts, rank: int) -> list[int]:
        """Return the output axes along which an input is uniform somewhere."""
        axes: set[int] = set()
        for tensor in node.inputs:
            if not tensor.name:
                continue
            offset = rank - (facts.rank(tensor) or 0)
            if not facts.is_constant(tensor):
                axes |= {axis + offset for axis in facts.known_axes(tensor)}
            elif node.op == "Mul":
                for axis in range(facts.rank(tensor) or 0):
                    if (facts.dim(tensor, axis) or 0) > 1:
                        uniform = facts.uniform(tensor, axis)
                        if uniform is not None and (uniform == 0).any():
                            axes.add(axis + offset)
        return sorted(axes)

    def _vector(self, node: gs.Node, facts: Facts, slot: int, axis: int, size: int) -> Vector | float | None:
        """Return an input's uniform values along an axis counted from the end."""
        tensor = node.inputs[slot]
        if not tensor.name:
            return None
        rank = facts.rank(tensor)
        if rank == 0 or (node.op == "Clip" and slot):
            value = facts.scalar(tensor)
            return value if node.op == "Clip" and slot and not np.isnan(value) else np.full(size, value)
        if rank is not None and -axis <= rank and facts.dim(tensor, axis) == size:
            found = facts.uniform(tensor, axis)
            return np.full(size, np.nan) if found is None else found
        return np.full(size, facts.scalar(tensor) if facts.is_constant(tensor) else np.nan)

    def backward(self, node: gs.Node, facts: Facts) -> None:
        """An element is needed where the output's is."""
        if facts.is_needed(node.outputs[0]):
            for tensor in node.inputs[:1] if node.op == "CastLike" else node.inputs:
                facts.need(tensor, facts.broadcast_needs(tensor, node.outputs[0]))

    def couple(self, node: gs.Node, facts: Facts, labels: Labels) -> None:
        """Axes of the same size, counted from the end, are cut together."""
        out = node.outputs[0]
        rank = facts.rank(out)
        if rank is None or any(facts.rank(tensor) is None for tensor in node.inputs if tensor.name):
            super().couple(node, facts, labels)
            return
        axes: list[Label | None] = []
        for axis in range(-rank, 0):
            found: list[Label | None] = []
            for slot, tensor in enumerate(node.inputs):
                ranks = facts.rank(tensor) if tensor.name else None
                if ranks is not None and -axis <= ranks and not (node.op == "CastLike" and slot):
                    if facts.dim(tensor, axis) != 1:
                        found.append(labels.axis(node, slot, axis, _role(node, slot)))
                    elif facts.dim(out, axis) == 1 and not facts.is_constant(tensor):
                        found.append(labels.axis(node, slot, axis))
            scale = _scale_of_normalized(node, axis, facts) if node.op == "Mul" and len(found) == 2 else None
            if scale is not None and (own := found[scale]) is not None:
                labels.block(found[1 - scale], f"{out.name!r} is normalized along axis {axis + rank}")
                labels.picks.append(Pick(node, 1 - scale, axis, own))
                found = [own]
            common = found[0] if found else None
            for other in found[1:]:
                common = labels.unify(common, other, node)
            axes.append(common)
        labels.set(out, axes)

    def cut(self, node: gs.Node, cut: Cut) -> None:
        """Where a normalization that is written out is scaled, pick what is read of it."""
        if node.op == "Mul":
            plan_picks(node, cut)


def _scale_of_normalized(node: gs.Node, axis: int, facts: Facts) -> int | None:
    """Return the slot of the constant that scales, along an axis, what has been normalized along it; None if none."""
    for slot, tensor in enumerate(node.inputs):
        other = node.inputs[1 - slot]
        same = facts.dim(tensor, axis) == facts.dim(other, axis)
        if same and facts.is_constant(tensor) and not facts.is_constant(other) and is_normalized(other, axis, facts):
            return slot
    return None


def _role(node: gs.Node, slot: int) -> str:
    """Return what a constant operand does to the channel."""
    return {"Add": "feeds", "Sub": "feeds", "Sum": "feeds", "Mul": "scales"}.get(str(node.op), "aside")


def _cast(values: Vector | float | None, node: gs.Node, facts: Facts) -> Vector | None:
    """Return values as a cast to floats rounds them; None for a cast to another type or one that is not known."""
    to = cast_type(node, facts)
    if not isinstance(values, np.ndarray) or to not in (1, 10, 11, 16):
        return None
    with np.errstate(over="ignore"):
        return values.astype(onnx.helper.tensor_dtype_to_np_dtype(to)).astype(np.float64)


@register("Dropout")
class Dropout(Elementwise):
    """Dropout in inference: identity of its first input."""

    def forward(self, node: gs.Node, facts: Facts) -> None:
        """Uniform channels stay (training mode scales, and randomly zeroes, so only nought is certain)."""
        for axis, values in facts.known_axes(node.inputs[0]).items():
            facts.learn(
                node.outputs[0], axis, np.where(values == 0, values, np.nan) if _trains(node, facts) else values
            )

    def couple(self, node: gs.Node, facts: Facts, labels: Labels) -> None:
        """Every axis passes, unless the mask is asked for or randomness depends on the shape."""
        if _trains(node, facts) or any(out.name and facts.view.readers(out) for out in node.outputs[1:]):
            Transfer.couple(self, node, facts, labels)
            return
        rank = facts.rank(node.inputs[0]) or 0
        labels.carry(node, {axis: axis for axis in range(rank)})

    def backward(self, node: gs.Node, facts: Facts) -> None:
        """An element is needed where the output's is."""
        if any(facts.is_needed(out) for out in node.outputs[1:]):
            Transfer.backward(self, node, facts)
        elif facts.is_needed(node.outputs[0]):
            facts.need_inputs(node, facts.needed_axes(node.outputs[0]))


def _trains(node: gs.Node, facts: Facts) -> bool:
    """Whether a Dropout may be in training mode."""
    return len(node.inputs) > 2 and bool(node.inputs[2].name) and facts.scalar(node.inputs[2]) != 0

"""Transfer functions of operators that read sizes: computed shapes keep telling the sizes from before the cut."""

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.channels.cutting import Cut
from graphopt.graph.channels.facts import Facts
from graphopt.graph.channels.labels import Labels
from graphopt.graph.channels.table import Transfer, register
from graphopt.graph.edit import Edit


@register("Shape")
class Shape(Transfer):
    """The sizes of a tensor, whatever its values.

    After a cut it goes on to tell the old sizes, so that every computation on them stays as it was; what takes the
    result for a target shape overwrites the sizes that have changed.
    """

    def backward(self, node: gs.Node, facts: Facts) -> None:
        """No value is needed."""

    def couple(self, node: gs.Node, facts: Facts, labels: Labels) -> None:
        """Nothing is fixed."""

    def cut(self, node: gs.Node, cut: Cut) -> None:
        """Write the old sizes down where a reader needs one that changes."""
        facts, out = cut.facts, node.outputs[0]
        values = facts.values(out)
        source = node.inputs[0]
        changes = cut.stored_changes(source) if facts.is_constant(source) else set(cut.changes(source))
        if not changes or not facts.is_needed(out):
            return
        if values is None:
            cut.refuse(node, f"{node.op} {out.name!r} tells sizes that are not known")
        needed = facts.needed(out, 0) if facts.dim(out, 0) == len(values.known) else np.ones(len(values.known), bool)
        first = range(facts.rank(source) or 0)[slice(node.attrs.get("start", 0), node.attrs.get("end"))]
        changed = np.array([axis in changes for axis in first], dtype=bool)
        if not (needed & changed).any():
            return
        old = np.where(values.known, values.array, 0)
        if not (needed & ~values.known).any():
            cut.step(lambda edit: _substitute(node, edit, old))
        elif facts.view.opset < 9:
            cut.refuse(
                node, f"{node.op} {out.name!r} tells a size that changes, and opset {facts.view.opset} has no Where"
            )
        else:
            cut.step(lambda edit: _overwrite(node, edit, changed, old))


def _substitute(node: gs.Node, edit: Edit, values: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]") -> None:
    """Put a constant in the place of a Shape node."""
    out = node.outputs[0]
    edit.replace_uses(out, edit.constant(f"{out.name}_sizes", np.asarray(values, dtype=np.int64)))
    if not edit.is_output(out):
        edit.remove([node])


def _overwrite(
    node: gs.Node,
    edit: Edit,
    mask: "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]",
    values: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]",
) -> None:
    """Overwrite some of the sizes that a Shape node tells."""
    out = node.outputs[0]
    told = edit.variable(f"{out.name}_told", like=out)
    parts = [edit.constant(f"{out.name}_mask", mask), edit.constant(f"{out.name}_sizes", np.asarray(values, np.int64))]
    edit.set_output(node, 0, told)
    edit.add_node(node, "Where", [*parts, told], [out])

"""What the analysis says of every form of ``test_channels_transfer.py``, and what pruning writes, is pinned.

The tests there hold it against brute force; these notice whatever changes, also where a wrong answer costs only reach.
``transfer_pins.txt`` holds a checksum for each form. Whoever means a change writes them anew with TRANSFER_PINS=write
in the environment, and looks at which forms have changed.
"""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from graphopt.graph import GraphView
from graphopt.graph.channels import Channels, channel_groups
from graphopt.graph.channels.cost import Cost
from graphopt.model import from_proto
from graphopt.registry import create
from graphopt.testing import run_alone
from tests.graph.test_channels_transfer import CHANNELS, CONSTANT, FORMS, PLANT, Form, network

FILE = Path(__file__).parent / "transfer_pins.txt"


def opened(proto: onnx.ModelProto, form: Form) -> Iterator[onnx.ModelProto]:
    """Yield the network as it is, with ``x`` of any rank, and with each constant as an input."""
    yield proto
    resized = onnx.ModelProto.FromString(proto.SerializeToString())
    start = next(place for place, node in enumerate(proto.graph.node) if node.output[:1] == ["x"])
    resized.graph.node[start].output[0] = "known"
    resized.graph.node.insert(start + 1, helper.make_node("Reshape", ["known", "sizes"], ["x"]))
    resized.graph.input.append(helper.make_tensor_value_info("sizes", onnx.TensorProto.INT64, ["rank"]))
    yield resized
    for name in dict.fromkeys(CONSTANT.findall(form.text)):
        other = onnx.ModelProto.FromString(proto.SerializeToString())
        tensor = next(tensor for tensor in other.graph.initializer if tensor.name == name)
        other.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
        other.graph.initializer.remove(tensor)
        yield other
    dynamic = onnx.ModelProto.FromString(proto.SerializeToString())
    for axis, dim in enumerate(dynamic.graph.input[0].type.tensor_type.shape.dim):
        if axis != CHANNELS[form.front]:
            dim.dim_param = f"d{axis}"
    yield dynamic


def analysis(proto: onnx.ModelProto) -> Iterator[str]:
    """Yield what is said of each tensor, each slot and each group of a model."""
    view = GraphView(from_proto(onnx.ModelProto.FromString(proto.SerializeToString())))
    channels = Channels.analyze(view)
    facts, labels, root = channels.facts, channels.labels, channels.root
    for node in facts.program:
        for slot, tensor in enumerate([*node.inputs, *node.outputs]):
            if not tensor.name:
                continue
            known = {axis: [*map(str, np.sign(found))] for axis, found in facts.known_axes(tensor).items()}
            needed = {axis: mask.tolist() for axis, mask in facts.needed_axes(tensor).items()}
            axes = [None if label is None else root[label].tolist() for label in labels.variables.get(id(tensor), ())]
            yield f"{tensor.name} {facts.shape(tensor)} {facts.is_constant(tensor)} {facts.is_needed(tensor)}"
            yield f"{sorted(known.items())} {sorted(needed.items())} {axes}"
            if use := labels.uses.get((id(node), slot)):
                kept = [(axis, root[label].tolist(), use.roles[axis]) for axis, label in sorted(use.axes.items())]
                yield f"{node.op} {slot} {kept} {sorted(use.held)}"
    gone = channels.removable()
    cost = Cost.of(channels)
    yield f"{gone.tolist()} {sorted(channels.dear.items())} {sorted(channels.blocked.items())}"
    yield f"{channels.family.tolist()}"
    yield f"{channels.survivors(gone)} {cost.parameters(gone)} {cost.macs(gone)} {cost.unknown}"
    for group in channel_groups(channels):
        parts = [(part.slot, part.axis, part.role, [*map(int, part.indices)]) for part in group.weights]
        held = [(str(part.tensor.name), part.axis, [*map(int, part.indices)]) for part in group.tensors]
        yield f"{group.site} {group.index} {parts} {held} {group.blocked} {group.removable}"


def written(proto: onnx.ModelProto, multiple: int) -> Iterator[str]:
    """Yield what pruning makes of a model: nodes, stored integers and the sizes of what else is stored."""
    pruned, result = run_alone(create("prune-channels", multiple=multiple), proto)
    for node in pruned.graph.node:
        attributes = sorted((each.name, str(helper.get_attribute_value(each))) for each in node.attribute)
        yield f"{node.op_type} {list(node.input)} {list(node.output)} {attributes}"
    for tensor in pruned.graph.initializer:
        values = numpy_helper.to_array(tensor)
        yield f"{tensor.name} {values.dtype} {values.shape} {values.tolist() if values.dtype.kind in 'iu' else ''}"
    yield f"{result.rewritten} {result.skipped}"


def checksum(form: Form) -> str:
    """Return the checksum of all that is said of a form."""
    proto = network(form, PLANT, 0)
    lines = [line for each in opened(proto, form) for line in (*analysis(each), *written(each, 1))]
    lines += written(proto, 4)
    return f"{zlib.crc32(chr(10).join(lines).encode()):08x}"


def pins() -> dict[str, str]:
    """Read the checksum of each form."""
    return {text: mark for mark, _, text in (line.partition(" ") for line in FILE.read_text().splitlines())}


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_nothing_has_changed(form: Form) -> None:
    assert pins()[str(form)] == checksum(form), "if that is meant: TRANSFER_PINS=write"


def test_every_form_is_pinned() -> None:
    if os.environ.get("TRANSFER_PINS") == "write":
        FILE.write_text("".join(f"{checksum(form)} {form}\n" for form in FORMS))
    assert pins().keys() == {str(form) for form in FORMS}

"""Every entry of the transfer table in every form of its attributes, against brute force on ONNX Runtime.

A form stands between a layer that makes eight channels and one that reads what comes out. Some channels are planted:
two of zeros, one of a constant, two that are not read. ``transfer_forms.txt`` holds the forms, and how many of the
eight channels pruning leaves. ``TRANSFER_SEEDS`` in the environment is the number of random plants besides, 0 if unset.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from graphopt.graph import GraphView
from graphopt.graph.channels import TABLE, Channels, channel_groups, zero
from graphopt.model import from_proto, to_proto
from graphopt.registry import create
from graphopt.runtime.session import Session
from graphopt.testing import run_alone

SEEDS = int(os.environ.get("TRANSFER_SEEDS", "0"))
INPUTS = {"conv": (2, 3, 6, 6), "last": (6, 2, 5), "rows": (2, 5)}
CHANNELS = {"conv": 1, "last": 2, "rows": 1}


@dataclass(frozen=True)
class Form:
    """One way in which an operator can stand in a network.

    Attributes:
        kept: How many of the eight channels are left of ``PLANT``.
        partly: Whether ``y`` is the same for all inputs in more places than the analysis knows.
        front: What makes the channels: a convolution, or a product along the last axis of rows or sequences.
        opset: The opset.
        axis: The axis of ``y`` that is read by the layer behind it.
        text: The nodes from ``x`` to ``y``. Constants are named by what they hold, see ``constant``.
    """

    kept: int
    partly: bool
    front: str
    opset: int
    axis: int
    text: str

    def __str__(self) -> str:
        """Return the name of the test."""
        return f"{self.text} (opset {self.opset}, {self.front})"


def forms() -> Iterator[Form]:
    """Read all forms."""
    for line in (Path(__file__).parent / "transfer_forms.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            head, _, text = line.partition(" | ")
            kept, front, opset, axis = head.split()
            place = CHANNELS[front] if axis == "." else int(axis)
            yield Form(int(kept.rstrip("?")), kept.endswith("?"), front, int(opset), place, text.strip())


FORMS = list(forms())


@dataclass(frozen=True)
class Plant:
    """Which channels hold zeros, which a constant each, and which indices of ``y`` are not read."""

    zero: tuple[int, ...]
    constant: tuple[int, ...]
    unread: tuple[int, ...]


PLANT = Plant((2, 3), (5,), (6, 7))
CONSTANT = re.compile(r"\b[BDEFIJKNPQTVZ](?:false|m?[0-9][0-9mpx_]*)(?:_[a-z])?\b")


def constant(name: str, number: int = 0) -> NDArray[Any]:
    """Return the constant that a name says.

    F: normal, P: positive, D and E: with slices of zero along the first or second axis, Z: with zeros (1 and 4 of
    each axis of eight), N: int8, J: indices, each of a shape such as 8x1x1; I and T: int64 and uint8 vectors, V: a
    float vector, K and Q: an integer and a float of rank 0, B: a boolean. In numbers, m is a minus and p a point.
    """
    kind, word = name[0], re.sub(r"_[a-z]$", "", name[1:])
    rng = np.random.default_rng([number, *name.encode()])
    if kind == "B":
        return np.array(False)
    if kind in "DEFJNPZ" or (kind == "T" and "x" in word):
        shape = [int(size) for size in word.split("x")]
        if kind == "J":
            return rng.integers(0, 6, shape)
        if kind in "NT":
            return rng.integers(-90, 90, shape).astype(np.int8) if kind == "N" else np.zeros(shape, np.uint8)
        values = rng.standard_normal(shape) * 0.7
        values = np.abs(values) + 0.5 if kind == "P" else values
        for axis in {"D": (0,), "E": (1,), "Z": [i for i, size in enumerate(shape) if size in (4, 8)]}.get(kind, ()):
            values[(slice(None),) * axis + ([1, 4 % shape[axis]],)] = 0
        return values.astype(np.float32)
    numbers = [float(each.replace("m", "-").replace("p", ".")) for each in word.split("_")]
    array = np.array(numbers, {"I": np.int64, "K": np.int64, "T": np.uint8}.get(kind, np.float32))
    return array[0] if kind in "KQ" or (kind == "T" and len(array) == 1) else array


def head(form: Form, plant: Plant, number: int) -> onnx.ModelProto:
    """Return the network as far as ``y``; ``x`` holds the planted channels."""
    rng = np.random.default_rng(number)
    ins = INPUTS[form.front][CHANNELS[form.front]]
    weight, bias = rng.standard_normal((8, ins)), rng.standard_normal(8) * 0.3
    weight[list(plant.zero + plant.constant)] = 0
    bias[list(plant.zero)] = 0
    bias[list(plant.constant)] = rng.uniform(0.3, 0.9, len(plant.constant))
    if form.front == "conv":
        text = "pre = Conv(image, front, shift)"
        weight = weight.reshape(8, ins, 1, 1)
    else:
        text = "raw = MatMul(image, front) pre = Add(raw, shift)"
        weight = weight.T
    nodes = f"{text} x = Relu(pre) {form.text}"
    shape = ",".join(map(str, INPUTS[form.front]))
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {form.opset}]> g (float[{shape}] image) => (float y) {{ {nodes} }}'
    )
    stored = {name: constant(name, number) for name in dict.fromkeys(CONSTANT.findall(form.text))}
    stored |= {"front": weight.astype(np.float32), "shift": bias.astype(np.float32)}
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in stored.items())
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return proto


def close(after: NDArray[np.float32], before: NDArray[np.float32]) -> None:
    """Assert that two results are the same up to rounding."""
    assert before.shape == after.shape
    finite = np.isfinite(before)
    assert finite.any()
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=2e-6 * np.abs(before[finite]).max() + 1e-7)


def feeds(form: Form, number: int) -> dict[str, NDArray[np.float32]]:
    """Draw what the network is run on."""
    return {"image": np.random.default_rng([number, 7]).standard_normal(INPUTS[form.front]).astype(np.float32)}


def complete(proto: onnx.ModelProto, form: Form, plant: Plant, shape: tuple[int, ...]) -> None:
    """Add the layer that reads ``y``, and give its result out."""
    size, rng = shape[form.axis] if shape else 1, np.random.default_rng([3, *shape])
    weight = rng.standard_normal((size, 3))
    if size > 1:
        weight[[place for place in plant.unread if place < size] or [size - 1]] = 0
    graph = proto.graph
    if not shape:
        graph.node.append(helper.make_node("Identity", ["y"], ["z"]))
    elif form.axis == 1 and len(shape) > 2:
        weight = weight.T.reshape(3, size, *[1] * (len(shape) - 2))
        graph.node.append(helper.make_node("Conv", ["y", "reader"], ["z"]))
    else:
        order = [axis for axis in range(len(shape)) if axis != form.axis] + [form.axis]
        graph.node.append(helper.make_node("Transpose", ["y"], ["turned"], perm=order))
        graph.node.append(helper.make_node("MatMul", ["turned", "reader"], ["z"]))
    graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), "reader"))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [None] * len(shape)))


@cache
def shape_of(form: Form) -> tuple[int, ...]:
    """Return the shape of ``y``."""
    shape: tuple[int, ...] = Session(head(form, PLANT, 0)).run(feeds(form, 0))["y"].shape
    return shape


def network(form: Form, plant: Plant, number: int) -> onnx.ModelProto:
    """Return a whole network."""
    proto = head(form, plant, number)
    complete(proto, form, plant, shape_of(form))
    return proto


def width(proto: onnx.ModelProto) -> int:
    """Return how many channels the front layer has."""
    stored = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    node = next((node for node in proto.graph.node if node.input[:1] == ["image"]), None)
    return 0 if node is None else stored[node.input[1]][0 if node.op_type == "Conv" else -1]


def prune(form: Form, plant: Plant, number: int) -> onnx.ModelProto:
    """Prune a network; assert that nothing changes in what it gives."""
    proto = network(form, plant, number)
    pruned, _ = run_alone(create("prune-channels", multiple=1), proto)
    if (
        "GroupNormalization" not in form.text or form.opset > 18
    ):  # which onnx has deprecated at the opset that defines it
        onnx.checker.check_model(pruned, full_check=True)
    given = feeds(form, number)
    close(Session(pruned).run(given)["z"], Session(proto).run(given)["z"])
    return pruned


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_is_planted_goes(form: Form) -> None:
    assert width(prune(form, PLANT, 0)) == form.kept


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_is_known_is_so(form: Form) -> None:
    """Forward: every channel that is said to hold one value holds it, in every tensor on the way."""
    proto = head(form, PLANT, 0)
    subject = from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    facts = Channels.analyze(GraphView(subject)).facts
    tensors = {str(t.name): t for node in subject.graph.nodes for t in node.outputs if facts.known_axes(t)}
    types = {info.name: info for info in onnx.shape_inference.infer_shapes(proto).graph.value_info}
    proto.graph.output.extend(types[name] for name in tensors if name != "y" and name in types)
    for name, values in Session(proto).run(feeds(form, 0)).items():
        if name in tensors and values.dtype.kind == "f":
            for axis, known in facts.known_axes(tensors[name]).items():
                rows = np.moveaxis(values, axis, 0).reshape(len(known), -1)
                there = ~np.isnan(known)
                close(rows[there], np.repeat(known[there][:, None], rows.shape[1], axis=1).astype(np.float32))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_is_the_same_for_all_inputs_is_known(form: Form) -> None:
    """Forward: every index of ``y`` that holds one value on all inputs is known to, but where the form says otherwise.

    Where it does, something is not known indeed.
    """
    proto = head(form, PLANT, 0)
    facts = Channels.analyze(GraphView(from_proto(onnx.ModelProto.FromString(proto.SerializeToString())))).facts
    out = next(t for node in facts.program for t in node.outputs if t.name == "y")
    session = Session(proto)
    results = [session.run({name: 3 * array for name, array in feeds(form, n).items()})["y"] for n in range(4)]
    missed = 0
    for axis, size in enumerate(shape_of(form)):
        rows = np.moveaxis(np.stack(results), axis + 1, 0).reshape(size, -1).astype(np.float64)
        known = facts.known_axes(out).get(axis, np.full(size, np.nan))
        missed += int((np.isnan(known) & (np.ptp(rows, axis=1) < 1e-6)).sum()) if size > 1 else 0
    assert (missed > 0) == form.partly


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_is_not_needed_has_no_effect(form: Form) -> None:
    """Backward: whatever a channel holds of which nothing is needed, the result stays the same to the bit."""
    proto = network(form, Plant((), (), (1, 6)), 0)
    subject = from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    facts = Channels.analyze(GraphView(subject)).facts
    tensor = next(t for node in subject.graph.nodes for t in node.outputs if t.name == "x")
    unread = {axis: np.flatnonzero(~facts.needed(tensor, axis)) for axis in facts.needed_axes(tensor)}
    start = next(place for place, node in enumerate(proto.graph.node) if node.output[:1] == ["x"])
    del proto.graph.node[: start + 1]
    values = np.random.default_rng(1).uniform(0, 2, facts.shape(tensor)).astype(np.float32)
    del proto.graph.input[:]
    proto.graph.input.append(helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, values.shape))
    session = Session(proto)
    before = session.run({"x": values})["z"]
    for axis, places in unread.items():
        other = np.array(values)
        other[(slice(None),) * axis + (places,)] += 1.5
        np.testing.assert_array_equal(session.run({"x": other})["z"], before)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_groups_go_together(form: Form) -> None:
    """Couple and cut: with zeros in all that makes a group, what pruning leaves gives the same."""
    proto = network(form, Plant((), (), ()), 0)
    subject = from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    view = GraphView(subject)
    channels = Channels.analyze(view)
    chosen = [group for group in channel_groups(channels) if group.blocked is None][1::2]
    zero(channels, chosen, view.edit)
    view.edit.settle()
    zeroed = to_proto(subject)
    pruned, _ = run_alone(create("prune-channels", multiple=1), zeroed)
    given = feeds(form, 0)
    close(Session(pruned).run(given)["z"], Session(zeroed).run(given)["z"])


OPEN = [
    (form, name)
    for form in FORMS
    for name in ("sizes", "sizes before y", *dict.fromkeys(CONSTANT.findall(form.text)))
    if not ("(x, , , c)" in form.text and name[0] == "I")  # ONNX Runtime wants to know how many sizes there are
]


@pytest.mark.parametrize(("form", "name"), OPEN, ids=str)
def test_what_comes_in_from_outside_is_not_known(form: Form, name: str) -> None:
    """Any constant may be an input instead, and the rank of ``x`` open: less goes then, or the same, never more.

    The rank of ``y`` is open too then, or declared.

    What stands beside it, two products with a channel of zeros between them, is pruned all the same.
    """
    proto, given = network(form, PLANT, 0), feeds(form, 0)
    beside = np.ones((INPUTS[form.front][-1], 4), dtype=np.float32)
    beside[:, 1] = 0
    proto.graph.node.extend(
        [helper.make_node("MatMul", ["image", "b1"], ["b2"]), helper.make_node("MatMul", ["b2", "b3"], ["beside"])]
    )
    stored = [("b1", beside), ("b3", np.ones((4, 2), dtype=np.float32))]
    proto.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in stored)
    proto.graph.output.append(helper.make_empty_tensor_value_info("beside"))
    proto.graph.output[1].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    if name.startswith("sizes"):
        start = next(place for place, node in enumerate(proto.graph.node) if node.output[:1] == ["x"])
        proto.graph.node[start].output[0] = "known"
        proto.graph.node.insert(start + 1, helper.make_node("Reshape", ["known", "sizes"], ["x"]))
        proto.graph.input.append(helper.make_tensor_value_info("sizes", onnx.TensorProto.INT64, ["rank"]))
        if name == "sizes before y":
            proto.graph.value_info.append(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape_of(form)))
        axes = enumerate(INPUTS[form.front])
        given["sizes"] = np.array([8 if axis == CHANNELS[form.front] else size for axis, size in axes])
    else:
        tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
        proto.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
        given[name] = numpy_helper.to_array(tensor)
        proto.graph.initializer.remove(tensor)
    pruned, _ = run_alone(create("prune-channels", multiple=1), proto)
    before, after = Session(proto).run(given), Session(pruned).run(given)
    close(after["z"], before["z"])
    close(after["beside"], before["beside"])
    assert width(pruned) >= form.kept
    assert {tuple(tensor.dims) for tensor in pruned.graph.initializer} >= {(INPUTS[form.front][-1], 3), (3, 2)}


def renamed(text: str, place: int) -> str:
    """Return the nodes of a form as one of a chain: from the result of the one before it, with names of its own."""
    parts = re.split(r"(<[^>]*>)", text)
    names = {"x": f"y{place - 1}" if place else "x"}
    for index in range(0, len(parts), 2):
        parts[index] = re.sub(r"\b[a-z]\w*\b", lambda match: names.get(match[0], f"{match[0]}{place}"), parts[index])
    return "".join(parts)


@cache
def links() -> list[Form]:
    """Return the forms that can follow each other."""
    plain = [form for form in FORMS if (form.front, form.opset, form.axis) == ("conv", 17, 1)]
    return [form for form in plain if shape_of(form) == (2, 8, 6, 6)]


@st.composite
def chains(draw: st.DrawFn) -> tuple[Form, Plant]:
    """Draw two to four forms one behind the other, and what is planted."""
    texts = [draw(st.sampled_from(links())).text for _ in range(draw(st.integers(2, 4)))]
    texts = [renamed(text, place) for place, text in enumerate(texts)]
    kinds = np.array(draw(st.lists(st.integers(0, 4), min_size=8, max_size=8)))
    plant = Plant(*(tuple(np.flatnonzero(kinds == kind).tolist()) for kind in range(3)))
    return Form(0, True, "conv", 17, 1, " ".join([*texts, f"y = Identity(y{len(texts) - 1})"])), plant


@seed(20261201)
@settings(max_examples=80 + 500 * SEEDS, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
@given(chains())
def test_chains(drawn: tuple[Form, Plant]) -> None:
    prune(*drawn, 0)


# Attributes without a say in which channels go, of types that the table does not know, or that are another operator's.
OTHER_ATTRIBUTES = {
    "auto_pad": {"LpPool"},
    "round_mode": {"Cast", "CastLike"},
    "mode": {"SpaceToDepth"},
    "precision": {"QuantizeLinear"},
    "output_dtype": {"QuantizeLinear", "DequantizeLinear"},
    "saturate": {"QuantizeLinear"},
    "activation_alpha": {"GRU", "LSTM"},
    "activation_beta": {"GRU", "LSTM"},
    "activations": {"RNN"},
    "layout": {"GRU", "LSTM", "RNN"},
}


def test_every_entry_and_attribute_is_drawn() -> None:
    """The forms cover the table: every operator, and every attribute of it."""
    drawn: dict[str, set[str]] = {}
    for form in FORMS:
        for node in head(form, PLANT, 0).graph.node:
            drawn.setdefault(node.op_type, set()).update(attribute.name for attribute in node.attribute)
    operators = {op for domain, op in TABLE if not domain}
    assert operators <= drawn.keys()
    missing = {
        (op, name)
        for op in operators
        for name in onnx.defs.get_schema(op, 24, "").attributes
        if name not in drawn[op] and op not in OTHER_ATTRIBUTES.get(name, ())
    }
    assert not missing


@pytest.mark.parametrize("form", FORMS if SEEDS else FORMS[:1], ids=str)
def test_random_plants(form: Form) -> None:
    for number in range(1, SEEDS + 1):
        kinds = np.random.default_rng([number, 5]).integers(0, 5, 8)
        plant = Plant(*(tuple(np.flatnonzero(kinds == kind).tolist()) for kind in range(3)))
        prune(form, plant, number)

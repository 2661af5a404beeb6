"""Recurrent layers: units with zeros in single gates, in every operator, direction and form, against ONNX Runtime."""

import itertools

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from graphopt.graph import GraphView
from graphopt.graph.channels import Channels
from graphopt.model import from_proto
from graphopt.registry import create
from graphopt.runtime.session import Session
from graphopt.testing import draw, model, run_alone

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
CANDIDATE = {"LSTM": 3, "GRU": 2, "RNN": 0}  # the last of i, o, f, c; of z, r, h
UNITS = 4


def arrays(op: str, directions: int, gates: tuple[int, ...], units: tuple[int, ...]) -> dict[str, NDArray[np.float32]]:
    """Draw W, R and B with zeros in some gates of some units."""
    count = GATES[op]
    found = {
        "w": draw(directions, count * UNITS, 3),
        "r": draw(directions, count * UNITS, UNITS) * 0.5,
        "b": draw(directions, 2 * count * UNITS) * 0.5,
    }
    for gate, unit in itertools.product(gates, units):
        rows = gate * UNITS + unit
        for name in found:
            found[name][:, [rows, *([count * UNITS + rows] * (name == "b"))]] = 0
    return found


def network(op: str, attributes: str, stored: dict[str, NDArray[np.float32]], inputs: str = "") -> onnx.ModelProto:
    """Return a recurrent layer with a dense layer behind its states."""
    return model(
        f"""g (float[5,2,3] x) => (float[D,N,M] y, float[T,E,O,P] z) {{
        s, h = {op}<hidden_size={UNITS}{attributes}>(x, w, r, b{inputs}) y = MatMul(h, v) z = MatMul(s, v) }}""",
        v=draw(UNITS, 3),
        **stored,
    )


def check(proto: onnx.ModelProto, left: int | None) -> None:
    """Assert that pruning leaves so many units, and the results as they were."""
    pruned, _ = run_alone(create("prune-channels", multiple=1), proto)
    given = {"x": draw(5, 2, 3, seed=4)}
    before, after = Session(proto).run(given), Session(pruned).run(given)
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, rtol=1e-5, atol=1e-6)
    node = next(node for node in pruned.graph.node if node.op_type in GATES)
    units = next(attribute.i for attribute in node.attribute if attribute.name == "hidden_size")
    assert left is None or units == left


ATTRIBUTES = ["", ', direction="reverse"', ', direction="bidirectional"', ", clip=0.4"]


@pytest.mark.parametrize("attributes", ATTRIBUTES)
@pytest.mark.parametrize(
    ("op", "gates"),
    [(op, gates) for op, n in GATES.items() for k in range(n + 1) for gates in itertools.combinations(range(n), k)],
)
def test_zeros_in_gates(op: str, gates: tuple[int, ...], attributes: str) -> None:
    """A unit is zero all along if and only if its candidate gate is."""
    stored = arrays(op, 2 if "bi" in attributes else 1, gates, (1, 2))
    check(network(op, attributes, stored), UNITS - 2 if CANDIDATE[op] in gates else UNITS)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize(
    ("what", "left"),
    [
        ("one direction alone", UNITS),
        ("an input weight", UNITS),
        ("an own recurrent weight", UNITS - 2),
        ("a weight on another zero unit", UNITS - 2),
        ("a weight on a live unit", UNITS - 1),
        ("an input bias", UNITS - 1),
        ("a recurrent bias", UNITS - 1),
        ("a chain of units", UNITS),
    ],
)
def test_what_makes_a_unit_live(op: str, what: str, left: int) -> None:
    """Unit 1 and 2 hold zeros in their candidate gate but for one weight."""
    count, row = GATES[op], CANDIDATE[op] * UNITS
    two = what == "one direction alone"
    stored = arrays(op, 2 if two else 1, tuple(range(count)), (1, 2))
    if two:
        stored = {
            name: np.concatenate([values[:1], np.flip(draw(*values[:1].shape), 1)]) for name, values in stored.items()
        }
    if what == "an input weight":
        stored["w"][0, row + 1, 2] = stored["w"][0, row + 2, 0] = 0.5
    if what == "an own recurrent weight":
        stored["r"][0, row + 1, 1] = 0.5
    if what == "a weight on another zero unit":
        stored["r"][0, row + 1, 2] = 0.5
    if what == "a weight on a live unit":
        stored["r"][0, row + 1, 3] = 0.5
    if what == "an input bias":
        stored["b"][0, row + 1] = 0.5
    if what == "a recurrent bias":
        stored["b"][0, count * UNITS + row + 1] = 0.5
    if what == "a chain of units":
        stored["r"][0, row + 1, 3] = stored["r"][0, row + 2, 1] = 0.5
    check(network(op, ', direction="bidirectional"' if two else "", stored), left)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize(
    ("attributes", "left"),
    [
        (', activations=["Relu"]', UNITS),
        (', activations=["Sigmoid"]', UNITS),
        (', activations=["tanh"]', UNITS - 2),
        (', activations=["Tanh"]', UNITS - 2),
    ],
)
def test_activations(op: str, attributes: str, left: int) -> None:
    """Only the usual activations are known to make zero of zero; ONNX writes them in either case."""
    name = attributes.split('"')[1]
    if (op, name) == ("RNN", "tanh"):
        pytest.skip("ONNX Runtime wants the capital here")
    full = {"RNN": [name], "GRU": ["Sigmoid", name], "LSTM": ["Sigmoid", name, "Tanh"]}[op]
    written = ", ".join(f'"{each}"' for each in full)
    check(network(op, f", activations=[{written}]", arrays(op, 1, (CANDIDATE[op],), (1, 2))), left)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize(("start", "left"), [((0.0, 0.0), UNITS - 2), ((0.0, 0.5), UNITS - 1), ((0.5, 0.5), UNITS)])
@pytest.mark.parametrize("slot", ["state", "cell"])
def test_starting_states(op: str, slot: str, start: tuple[float, float], left: int) -> None:
    """A unit that does not start from zero is not zero."""
    if slot == "cell" and op != "LSTM":
        return
    initial = draw(1, 2, UNITS)
    initial[:, :, [1, 2]] = start
    stored = arrays(op, 1, (CANDIDATE[op],), (1, 2)) | {"i": initial}
    check(network(op, "", stored, ", , i" if slot == "state" else ", , , i"), left)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("seed", range(3))
def test_what_nothing_reads(op: str, seed: int) -> None:
    """Units that neither a layer nor another unit reads go, whatever they hold; so do inputs that they alone read."""
    stored = arrays(op, 1, (), ())
    recurrent = stored["r"].reshape(1, GATES[op], UNITS, UNITS)
    recurrent[:, :, :, 3] = 0  # nothing reads unit 3
    recurrent[:, :, :, 1] = 0
    recurrent[:, 0, 0, 1] = 0.5  # one gate of unit 0 reads unit 1
    if seed == 2:
        recurrent[:, 0, 3, 2] = 0.5  # an unread unit reads a live one
    reader = draw(UNITS, 3)
    reader[[3, 1][: 1 + (seed > 0)]] = 0
    front = draw(3, 6)
    stored["w"] = draw(1, GATES[op] * UNITS, 6)
    stored["w"][:, :, 4] = 0
    stored["w"].reshape(1, GATES[op], UNITS, 6)[:, :, [0, 1, 2], 5] = 0  # which only unit 3 reads
    proto = model(
        f"""g (float[5,2,3] x) => (float[D,N,M] y) {{
        f = MatMul(x, front) t = Tanh(f) s, h = {op}<hidden_size={UNITS}>(t, w, r, b) y = MatMul(h, v) }}""",
        v=reader,
        front=front,
        **stored,
    )
    check(proto, UNITS - 1)
    pruned, _ = run_alone(create("prune-channels", multiple=1), proto)
    shapes = {tensor.name: list(tensor.dims) for tensor in pruned.graph.initializer}
    weights = next(node for node in pruned.graph.node if node.op_type == "MatMul").input[1]
    assert shapes[weights] == [3, 4]


def test_peepholes_keep_a_unit() -> None:
    """A peephole reads the unit's own cell, and goes with it."""
    stored = arrays("LSTM", 1, (CANDIDATE["LSTM"],), (1, 2))
    stored["p"] = draw(1, 3 * UNITS)
    check(network("LSTM", "", stored, ", , , , p"), UNITS - 2)
    channels = Channels.analyze(GraphView(from_proto(network("LSTM", "", stored, ", , , , p"))))
    roles = {
        (use.slot, role)
        for use in channels.labels.uses.values()
        if use.node.op == "LSTM"
        for role in use.roles.values()
    }
    assert {(7, "aside"), (1, "feeds"), (2, "feeds"), (3, "feeds"), (1, "reads"), (2, "reads")} <= roles

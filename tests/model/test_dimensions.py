"""Names of dimensions that are no facts: not for passes, though the file keeps them."""

import onnx
import pytest

from graphopt.graph.symbolic import Facts
from graphopt.model import Model, from_proto, to_proto
from graphopt.model.dimensions import is_placeholder, without_names
from graphopt.testing import model


def named(*shapes: tuple[str, ...]) -> onnx.ModelProto:
    """Return a model with an input of each shape, and outputs of the same."""
    ranks = [",".join(f"d{i}{j}" for j in range(len(shape))) for i, shape in enumerate(shapes)]
    inputs = ", ".join(f"float[{rank}] x{i}" for i, rank in enumerate(ranks))
    outputs = ", ".join(f"float[{rank}] y{i}" for i, rank in enumerate(ranks))
    proto = model(f"g ({inputs}) => ({outputs}) {{ {' '.join(f'y{i} = Relu(x{i})' for i in range(len(shapes)))} }}")
    for infos in (proto.graph.input, proto.graph.output):
        for info, shape in zip(infos, shapes, strict=True):
            for dim, name in zip(info.type.tensor_type.shape.dim, shape, strict=True):
                dim.dim_param = name
    return proto


def known(subject: Model) -> list[object]:
    """Return what is known of each axis of each input in turn."""
    facts = Facts(subject)
    return [entry for tensor in subject.graph.inputs for entry in facts.shape(tensor)]


@pytest.mark.parametrize(
    "name",
    ["?", "??", " ", "*", "-1", "-", "None", "none", "<None>", "unk", "unk__12", "unknown", "dynamic", "Any", "0"],
)
def test_placeholders(name: str) -> None:
    assert is_placeholder(name)
    subject = from_proto(named((name, "C"), (name, "C")))
    one, channels, two, same = known(subject)
    assert one != two
    assert channels == same
    assert to_proto(subject) == named((name, "C"), (name, "C"))


@pytest.mark.parametrize(
    "name", ["N", "batch", "s0", "unk1", "dim_0", "?a", "DynamicDimension.0", "past + 1", "anything", "nones", "d1"]
)
def test_names(name: str) -> None:
    assert not is_placeholder(name)
    one, _, two, _ = known(from_proto(named((name, "C"), (name, "C"))))
    assert one == two


def test_a_name_twice_in_one_input_is_none_there() -> None:
    subject = from_proto(named(("N", "N"), ("N", "C"), ("N", "D")))
    first, second, third, _, fourth, _ = known(subject)
    assert len({first, second, third}) == 3
    assert third == fourth
    assert to_proto(subject) == named(("N", "N"), ("N", "C"), ("N", "D"))


def test_names_that_are_known_to_be_untrue() -> None:
    subject = from_proto(named(("N", "S"), ("N", "S")))
    changed = without_names(subject, {"S"})
    one, first, two, second = known(changed)
    assert one == two
    assert first != second
    assert known(subject)[1] == known(subject)[3]
    assert to_proto(changed) == to_proto(subject)
    assert without_names(subject, {"T"}) is subject

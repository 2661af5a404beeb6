"""Equal fingerprints mean that nothing changed; any change of structure or weights makes them differ."""

from collections.abc import Callable

import numpy as np
import pytest
from onnx import numpy_helper, parser

from graphopt.graph import Edit
from graphopt.model import Model, fingerprint, from_proto
from graphopt.model.fingerprint import is_untouched, outline


def model() -> Model:
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 17]> g (float[1000] x) => (float[1000] y) '
        "{ t = Add(x, w) u = Add(t, s) y = LeakyRelu<alpha = 0.5>(u) }"
    )
    for name, size in (("w", 1000), ("s", 1)):
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(size, np.float32), name))
    return from_proto(proto)


def test_a_copy_is_the_same() -> None:
    subject = model()
    assert fingerprint(subject.copy()) == fingerprint(subject)
    assert hash(fingerprint(subject.copy())) == hash(fingerprint(subject))


def test_reading_weights_or_setting_equal_ones_changes_nothing() -> None:
    subject = model()
    before = fingerprint(subject)
    for constant in subject.constants():
        assert constant.values.any()
    assert fingerprint(subject) == before
    for constant in subject.constants():
        constant.values = constant.values.copy()
    assert fingerprint(subject) == before


def test_a_changed_weight_stays_itself_in_copies() -> None:
    subject = model()
    next(iter(subject.constants())).values = np.zeros(1000, np.float32)
    assert fingerprint(subject.copy()) == fingerprint(subject)


def set_weight(index: int, value: float) -> Callable[[Model], None]:
    def change(subject: Model) -> None:
        constant = list(subject.constants())[index]
        values = np.ones(constant.shape, np.float32)
        values[-1] = value
        constant.values = values

    return change


def set_attribute(subject: Model) -> None:
    subject.graph.nodes[2].attrs["alpha"] = 0.25


def bypass(subject: Model) -> None:
    edit = Edit(subject)
    edit.bypass(subject.graph.nodes[1])
    edit.settle()


def forget_shape(subject: Model) -> None:
    subject.graph.outputs[0].shape = None


def set_metadata(subject: Model) -> None:
    subject.header.metadata_props.add(key="k", value="v")


def rename(subject: Model) -> None:
    subject.graph.nodes[0].outputs[0].name = "other"


def set_type_of_attribute(subject: Model) -> None:
    subject.graph.nodes[2].attrs["alpha"] = 0


def cross_wires(subject: Model) -> None:
    first, second = subject.graph.nodes[:2]
    list.__setitem__(second.inputs, 0, first.inputs[0])


CHANGES = {
    "name": rename,
    "type of an attribute": set_type_of_attribute,
    "wires": cross_wires,
    "big weight": set_weight(0, 2.0),
    "small weight": set_weight(1, 2.0),
    "attribute": set_attribute,
    "node": bypass,
    "shape": forget_shape,
    "metadata": set_metadata,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_shows(name: str) -> None:
    subject = model()
    before = fingerprint(subject)
    changed = subject.copy()
    CHANGES[name](changed)
    assert fingerprint(changed) != before
    assert fingerprint(subject) == before


def test_a_copy_is_untouched_until_something_changes() -> None:
    subject = model()
    copy = subject.copy()
    assert is_untouched(copy, subject)
    assert is_untouched(copy.copy(), copy)
    assert outline(copy) == outline(subject)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_never_taken_for_untouched(name: str) -> None:
    subject = model()
    changed = subject.copy()
    CHANGES[name](changed)
    assert not is_untouched(changed, subject)


def test_outlines_tell_other_operators_and_wires() -> None:
    subject = model()
    changed = subject.copy()
    bypass(changed)
    assert outline(changed) != outline(subject)

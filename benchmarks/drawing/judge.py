"""Judges what passes make of a drawn model: plain sessions of ONNX Runtime, and nothing of graphopt's own proof."""

import itertools
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from drawing.drawer import Array
from drawing.forms import Drawn
from graphopt.contract import BitExact, Contract, FloatExact, Lossy, in_default_session

MAY_LEAVE_NUMBERS = {
    "Div",
    "Sqrt",
    "Log",
    "LogSoftmax",
    "Pow",
    "Reciprocal",
    "Exp",
    "LSTM",
    "GRU",
    "BatchNormalization",
}
"""Operators that make NaN or Inf of some finite numbers, or overflow."""

NOISE = 4
"""How many times as far as its own rounding moves an output a result may be, beside what the contract allows."""

DEFAULT_SESSION = "default session"
"""How problems begin that a session without optimizations does not have."""

Outputs = Mapping[str, Any]


class UnusableError(Exception):
    """The model is none: ONNX Runtime refuses it, or cannot run it."""


class Judge:
    """What a drawn model computes, to hold results against."""

    def __init__(self, drawn: Drawn) -> None:
        """Run the model as it is.

        Raises:
            UnusableError: ONNX Runtime refuses it.
        """
        self.drawn = drawn
        self.calls = [dict(feeds) for feeds in drawn.feeds]
        self.calls += [feeds | other for feeds, other in zip(drawn.feeds, drawn.overrides, strict=True) if other]
        self.overriding = len(self.calls) - len(drawn.feeds)
        try:
            self.plain = _run(drawn.proto, self.calls, False)
        except Exception as error:  # ONNX Runtime's exceptions have no base of their own
            raise UnusableError(str(error)) from error
        self.sessions = {False: self.plain}
        with suppress(Exception):  # some graphs it loads only as they are: then results are judged like that
            self.sessions[True] = _run(drawn.proto, self.calls, True)
        values = [value for outputs in self.plain for value in outputs.values()]
        if any(value.dtype.kind == "f" and np.abs(value[np.isfinite(value)]).max(initial=0) > 1e12 for value in values):
            raise UnusableError("it overflows")
        self.finite = not MAY_LEAVE_NUMBERS & {node.op_type for node in _nodes(drawn.proto)}
        self._noise: list[dict[str, float]] | None = None

    def problem(self, proto: onnx.ModelProto, contract: Contract, freezes: bool) -> str:
        """Return what is wrong with a result, or nothing."""
        onnx.checker.check_model(proto, full_check=True)
        calls = self.calls[: len(self.calls) - self.overriding] if freezes else self.calls
        for fused, before in self.sessions.items():
            where, held = (DEFAULT_SESSION, in_default_session(contract)) if fused else ("plain session", contract)
            try:
                after = _run(proto, calls, fused)
            except Exception as error:  # ONNX Runtime's exceptions have no base of their own
                return f"{where}: {' '.join(str(error).split())[:300]}"
            for number, name in itertools.product(range(len(calls)), self.plain[0]):
                made = after[number].get(name)
                wrong = self._compare(number, name, before[number][name], made, held)
                if wrong and fused and not self._compare(number, name, self.plain[number][name], made, held):
                    wrong = ""  # the result is right: it is the source that ONNX Runtime fuses wrongly
                if wrong:
                    return f"{where}, call {number}, {name!r}: {wrong}"
        return ""

    def _compare(self, number: int, name: str, reference: Array, made: Array | None, contract: Contract) -> str:
        """Return what differs in one output, or nothing."""
        if made is None:
            return "is missing"
        if made.dtype != reference.dtype or made.shape != reference.shape:
            return f"{made.dtype}{made.shape} instead of {reference.dtype}{reference.shape}"
        if isinstance(contract, Lossy):
            lost = self.finite and np.isfinite(reference).all() and not np.isfinite(made).all()
            return "is not finite" if lost else ""
        if isinstance(contract, BitExact) or np.array_equal(reference, made, equal_nan=reference.dtype.kind == "f"):
            same = np.array_equal(reference, made, equal_nan=reference.dtype.kind == "f")
            return "" if same else f"moved by {_distance(reference, made):.3g}, not bit-exact"
        assert isinstance(contract, FloatExact)
        numbers = np.isfinite(reference)
        if (numbers != np.isfinite(made)).any():
            return "has another NaN or Inf"
        r, c = reference[numbers].astype(np.float64), made[numbers].astype(np.float64)
        spread = float(r.std()) if r.size else 0.0
        allowed = contract.rtol * np.maximum(abs(r), spread) + contract.atol * min(1.0, spread or 1.0)
        if reference.dtype.kind != "f":
            allowed = np.zeros_like(r)
        if (abs(r - c) <= allowed).all() or (abs(r - c) <= allowed + NOISE * self._moves(number, name)).all():
            return ""
        noise = self._moves(number, name)
        return f"moved by {abs(r - c).max():.3g} where the spread is {spread:.3g} and the noise {noise:.3g}"

    def _moves(self, number: int, name: str) -> float:
        """Return how far rounding moves an output: inputs and weights are moved by some units in the last place."""
        if self._noise is None:
            self._noise = [{} for _ in self.calls]
            for seed in range(3):
                rng = np.random.default_rng(seed)
                proto = onnx.ModelProto.FromString(self.drawn.proto.SerializeToString())
                for each in proto.graph.initializer:
                    if each.data_type == onnx.TensorProto.FLOAT:
                        each.CopyFrom(numpy_helper.from_array(_moved(numpy_helper.to_array(each), rng), each.name))
                calls = [{key: _moved(value, rng) for key, value in call.items()} for call in self.calls]
                for fused, before in self.sessions.items():
                    for place, (old, new) in enumerate(zip(before, _run(proto, calls, fused), strict=True)):
                        for key, value in old.items():
                            self._noise[place][key] = max(self._noise[place].get(key, 0.0), _distance(value, new[key]))
        return self._noise[number][name]


def _moved(values: Array, rng: np.random.Generator) -> Array:
    if values.dtype != np.float32:
        return values
    return (values * (1 + 1e-6 * rng.uniform(-1, 1, values.shape))).astype(np.float32)


def _distance(left: Array, right: Array) -> float:
    """Return the largest difference of two outputs; infinite where NaN, Inf or shape differ."""
    if left.shape != right.shape:
        return math.inf
    if left.dtype.kind == "f":
        numbers = np.isfinite(left)
        if (numbers != np.isfinite(right)).any():
            return math.inf
        left, right = left[numbers], right[numbers]
    return float(np.abs(left.astype(np.float64) - right.astype(np.float64)).max(initial=0.0))


def run_plain(proto: onnx.ModelProto, calls: list[dict[str, Array]]) -> list[Outputs]:
    """Run a model as it stands."""
    return _run(proto, calls, False)


def _run(proto: onnx.ModelProto, calls: list[dict[str, Array]], fused: bool) -> list[Outputs]:
    """Run a model in a session of its own, without optimizations or with those of default options."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    if not fused:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return [dict(zip(names, session.run(names, call), strict=True)) for call in calls]


def _nodes(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return every node, those of bodies and functions too."""
    found: list[onnx.NodeProto] = []
    graphs = [proto.graph.node, *(each.node for each in proto.functions)]
    while graphs:
        for node in graphs.pop():
            found.append(node)
            graphs += [each.g.node for each in node.attribute if each.HasField("g")]
    return found

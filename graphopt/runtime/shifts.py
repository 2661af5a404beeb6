"""How far quantization moves the mean of each channel, layer after layer, each behind layers that are put right."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from graphopt.model import Model, to_proto
from graphopt.numerics.quantization import Floats
from graphopt.runtime.data import ArrayData, Data, Feeds
from graphopt.runtime.session import Session
from graphopt.runtime.taps import cut

_SAMPLES = 64
_JUDGED = 16
_HELD = 1 << 24
_SHARE = "graphopt/share"
FEWEST = 16
"""With fewer samples, what their means differ by is mostly chance."""

Channels = tuple[int, int]
"""The axis that holds a tensor's channels, and the tensor's rank."""


def mean_shifts(before: Model, after: Model, tensors: Mapping[str, Channels], data: Data) -> dict[str, Floats]:
    """Return for each tensor what to add to its channels so that ``after`` has the means of ``before``.

    Both models run on the first 64 samples. In ``after`` each tensor is put right as it is computed, by the mean over
    the runs so far of what its own mean lacked, so the next one sees inputs that are right in the mean. It is the
    empirical bias correction of Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
    Correction" (arXiv 1906.04721, appendix D), with all layers in each run. Two things that look simpler fail: to put
    each sample right by itself hides the errors of a layer from the next one, and to correct all layers by what they
    lack behind layers that are not corrected yet overshoots, the more the deeper the net is.

    Args:
        before: The model whose means are right.
        after: A form of it that has these tensors too, all of them computed in the main graph.
        tensors: The tensors by name.
        data: What to run on, ``FEWEST`` samples or more.

    Returns:
        A vector for each tensor whose shift is finite; nothing if the model's float outputs, of 16 runs or as many as
        16 MB hold, end up further from the right ones with the shifts than without.
    """
    if not tensors:
        return {}
    names = {name: f"graphopt/{name}" for name in tensors}
    ends = [info.name for info in to_proto(before, weights=False).graph.output]
    reference = Session(_with_means(to_proto(before), tensors, names, ends, put_right=False))
    means, wanted, room = list[Feeds](), list[Feeds](), _HELD
    for feeds in _portions(data):
        found = reference.run(feeds)
        answers = {name: value for name in ends if _is_float(value := found.pop(name))}
        room -= sum(value.nbytes for value in answers.values())
        wanted += [answers] if (room >= 0 and len(wanted) < _JUDGED) or not wanted else []
        means.append(found)
    del reference
    candidate = Session(_with_means(to_proto(after), tensors, names, ends, put_right=True))
    none = {f"{inner}/before": np.zeros_like(means[0][f"{inner}/mean"]) for inner in names.values()}
    shifts = none
    for count, (feeds, right) in enumerate(zip(_portions(data), means, strict=True), 1):
        found = candidate.run(feeds | right | shifts | {_SHARE: np.array(1.0 / count, np.float32)})
        shifts = {f"{inner}/before": found[f"{inner}/shift"] for inner in names.values()}
    answered = list(zip(_portions(data), means, wanted, strict=False))
    if not _distance(candidate, answered, shifts) <= _distance(candidate, answered, none):
        return {}
    flat = {name: shifts[f"{inner}/before"].astype(np.float64).reshape(-1) for name, inner in names.items()}
    return {name: each for name, each in flat.items() if np.isfinite(each).all()}


def _distance(candidate: Session, answered: Sequence[tuple[Feeds, Feeds, Feeds]], shifts: Feeds) -> float:
    """Return how far the outputs are from the right ones under these shifts, which stay as they are."""
    still = shifts | {_SHARE: np.array(0.0, np.float32)}
    total = 0.0
    for feeds, means, answers in answered:
        found = candidate.run(feeds | means | still)
        total += sum(_noise(value, found[name]) for name, value in answers.items())
    return total


def _is_float(value: Any) -> bool:
    """Whether an output is a float tensor."""
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _noise(wanted: Floats, found: Floats) -> float:
    """Return the power of an output's error over the output's own."""
    if wanted.shape != found.shape:
        return 0.0
    error = float(np.square(wanted.astype(np.float64) - found).sum())
    return error / max(float(np.square(wanted.astype(np.float64)).sum()), 1e-300)


def _with_means(
    proto: onnx.ModelProto,
    tensors: Mapping[str, Channels],
    names: Mapping[str, str],
    ends: Sequence[str],
    put_right: bool,
) -> onnx.ModelProto:
    """Return a model that gives out the means of these tensors or, given the right ones, corrects and tells by what."""
    graph = proto.graph
    old_form = next(each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")) < 18
    nodes: list[onnx.NodeProto] = []
    given = [_SHARE] if put_right else []
    for node in graph.node:
        nodes.append(node)
        for slot, name in enumerate(node.output):
            if name not in tensors:
                continue
            inner = names[name]
            source = f"{inner}/raw" if put_right else name
            node.output[slot] = source
            axis, rank = tensors[name]
            others = [other for other in range(rank) if other != axis]
            mean = f"{inner}/own" if put_right else f"{inner}/mean"
            if old_form:
                nodes.append(helper.make_node("ReduceMean", [source], [mean], axes=others, keepdims=1))
            else:
                graph.initializer.append(numpy_helper.from_array(np.array(others, np.int64), f"{inner}/axes"))
                nodes.append(helper.make_node("ReduceMean", [source, f"{inner}/axes"], [mean], keepdims=1))
            if put_right:
                nodes += _running_mean(inner, [source, name])
                given += [f"{inner}/mean", f"{inner}/before"]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.input.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in given)
    return cut(proto, [*(f"{inner}/{'shift' if put_right else 'mean'}" for inner in names.values()), *ends])


def _running_mean(inner: str, ends: list[str]) -> Iterator[onnx.NodeProto]:
    """Yield nodes that move the mean shift towards what this run's mean lacks, and add it to a tensor."""
    yield helper.make_node("Sub", [f"{inner}/mean", f"{inner}/own"], [f"{inner}/lacks"])
    yield helper.make_node("Sub", [f"{inner}/lacks", f"{inner}/before"], [f"{inner}/change"])
    yield helper.make_node("Mul", [f"{inner}/change", _SHARE], [f"{inner}/step"])
    yield helper.make_node("Add", [f"{inner}/before", f"{inner}/step"], [f"{inner}/shift"])
    yield helper.make_node("Add", [ends[0], f"{inner}/shift"], [ends[1]])


def _portions(data: Data) -> Iterator[Feeds]:
    """Yield feeds, of one sample each where their number is free: the means are as good, and need the least memory."""
    if isinstance(data, ArrayData) and data.batch > 1 and not data.fixed:
        data = replace(data, batch=1)
    yield from data.batches(_SAMPLES)

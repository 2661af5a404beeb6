"""Measures the mean shift that quantization causes per channel, layer by layer, behind layers already corrected."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from graphopt.model import Model, to_proto
from graphopt.numerics.quantization import Floats
from graphopt.runtime.data import Feeds
from graphopt.runtime.session import Session, serialized, threads_for_samples
from graphopt.runtime.taps import cut

MOST = 64
"""The means are those of so many samples, the first ones."""
_HELD = 1 << 27
_SHARE = "graphopt/share"
FEWEST = 16
"""With fewer samples, what their means differ by is mostly chance."""

Channels = tuple[int, int]
"""The axis that holds a tensor's channels, and the tensor's rank."""


class Means:
    """The mean of each channel, and the outputs, of a model's first 64 samples; gives what a form of it lacks.

    Attributes:
        names: The tensors of ``form`` to hand to ``add``.
    """

    def __init__(self, model: Model, tensors: Mapping[str, Channels], samples: int) -> None:
        """Look at these tensors, all of them computed in the main graph; there are so many samples, or more."""
        self._tensors, self._threads = tensors, threads_for_samples(model)
        graph = to_proto(model, weights=False).graph
        computed = {name for node in graph.node for name in node.output}
        self._ends = [info.name for info in graph.output if info.name in computed]
        self.names = [*map(_mean, tensors), *self._ends] if tensors else []
        self._means, self._outputs = list[tuple[int, NDArray[np.float32]]](), dict[int, Feeds]()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._samples, self._all, self._room = 0, min(samples, MOST), _HELD

    def form(self, model: Model) -> onnx.ModelProto:
        """Return the model with the means among its tensors."""
        return _telling(to_proto(model), self._tensors)

    def add(self, found: Mapping[str, Any], samples: int) -> None:
        """See the tensors of a run on so many samples."""
        if self._tensors and self._samples < self._all:
            means = {name: found[_mean(name)] for name in self._tensors}
            self._shapes = {name: mean.shape for name, mean in means.items()}
            self._means.append((samples, np.concatenate([mean.reshape(-1) for mean in means.values()])))
            if 2 * (self._samples + samples) > self._all:
                self._keep({name: found[name] for name in self._ends if _is_float(found[name])})
        self._samples += samples

    def _keep(self, outputs: Feeds) -> None:
        """Keep the outputs of the last run for the judgement, if there is room."""
        self._room -= sum(value.nbytes for value in outputs.values())
        if self._room >= 0 or not self._outputs:
            self._outputs[len(self._means) - 1] = outputs

    def covers(self, tensors: Iterable[str]) -> bool:
        """Whether the means of all these tensors were asked for."""
        return set(tensors) <= set(self._tensors)

    def narrowed(self, names: Iterable[str]) -> "Means":
        """Return the means of these tensors alone: those of layers that stay float keep what they have."""
        chosen, fewer = set(names), copy(self)
        fewer._tensors = {name: channels for name, channels in self._tensors.items() if name in chosen}
        runs = [(samples, self._split(flat)) for samples, flat in self._means] if fewer._tensors else []
        fewer._means = [(n, np.concatenate([parts[name].reshape(-1) for name in fewer._tensors])) for n, parts in runs]
        fewer._shapes = {name: shape for name, shape in self._shapes.items() if name in chosen}
        return fewer

    def shifts(self, after: Model, portions: Callable[[], Iterable[Feeds]]) -> dict[str, Floats]:
        """Return for each tensor what to add to its channels so that ``after`` has the same means.

        ``after`` runs on the same samples, and each tensor is put right as it is computed, by the mean over the runs so
        far of what its own mean lacked, so the next one sees inputs that are right in the mean. It is the empirical
        bias correction of Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction"
        (arXiv 1906.04721, appendix D), with all layers in each run. Two things that look simpler fail: to put each
        sample right by itself hides the errors of a layer from the next one, and to correct all layers by what they
        lack behind layers that are not corrected yet overshoots, the more the deeper the net is.

        Args:
            after: A form of the model that has these tensors too.
            portions: The feeds of the runs that ``add`` saw, or more.

        Returns:
            A vector for each tensor whose shift is finite; nothing if the model's float outputs, of the second half of
            the samples or as many as 128 MB hold, are further from the right ones with the shifts than without.
        """
        if not self._means:
            return {}
        content = serialized(_corrected(to_proto(after), self._tensors, self._ends))
        candidate = Session(content, threads=self._threads)
        del content
        none = np.zeros_like(self._means[0][1])
        shifts, seen, corrected, plain = none, 0, 0.0, 0.0
        for index, ((samples, right), feeds) in enumerate(zip(self._means, portions(), strict=False)):
            seen += samples
            share = np.float32(samples / seen)
            found = candidate.run(feeds | self._given((1 - share) * shifts + share * right, share))
            shifts = np.concatenate([found[_shift(name)].reshape(-1) for name in self._tensors])
            if outputs := self._outputs.get(index):
                corrected += _distance(outputs, found)
                plain += _distance(outputs, candidate.run(feeds | self._given(none, np.float32(0))))
        if not corrected <= plain:
            return {}
        return {n: s.reshape(-1) for n, s in self._split(shifts.astype(np.float64)).items() if np.isfinite(s).all()}

    def _given(self, bases: NDArray[np.float32], share: np.float32) -> Feeds:
        """Return what a corrected model takes beside its own inputs."""
        return {_base(name): base for name, base in self._split(bases).items()} | {_SHARE: np.asarray(share)}

    def _split(self, flat: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the parts of a vector that belong to the tensors, shaped as their means."""
        parts, start = dict[str, NDArray[Any]](), 0
        for name, shape in self._shapes.items():
            size = math.prod(shape)
            parts[name] = flat[start : start + size].reshape(shape)
            start += size
        return parts


def _is_float(value: Any) -> bool:
    """Whether an output is a float tensor."""
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _distance(right: Feeds, found: Mapping[str, Any]) -> float:
    """Return the power of each output's error over the output's own, summed up."""
    return sum(_noise(value, found[name]) for name, value in right.items())


def _noise(wanted: Floats, found: Floats) -> float:
    """Return the power of an output's error over the output's own."""
    if wanted.shape != found.shape:
        return 0.0
    error = float(np.square(wanted.astype(np.float64) - found).sum())
    return error / max(float(np.square(wanted.astype(np.float64)).sum()), 1e-300)


def _mean(name: str) -> str:
    """Name a tensor's mean per channel."""
    return f"graphopt/{name}/mean"


def _base(name: str) -> str:
    """Name what a tensor's shift is before this run's own mean is taken off."""
    return f"graphopt/{name}/base"


def _shift(name: str) -> str:
    """Name what is added to a tensor."""
    return f"graphopt/{name}/shift"


def _telling(proto: onnx.ModelProto, tensors: Mapping[str, Channels]) -> onnx.ModelProto:
    """Return a model that computes the means of these tensors too."""
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        nodes.append(node)
        nodes += [_reduction(proto, name, _mean(name), tensors[name]) for name in node.output if name in tensors]
    return _with_nodes(proto, nodes)


def _corrected(proto: onnx.ModelProto, tensors: Mapping[str, Channels], ends: Sequence[str]) -> onnx.ModelProto:
    """Return a model that adds ``shift = base - share * mean`` to these tensors and gives out the shifts too."""
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        nodes.append(node)
        for slot, name in enumerate(node.output):
            if name in tensors:
                raw, part = f"graphopt/{name}/raw", f"graphopt/{name}/part"
                node.output[slot] = raw
                nodes.append(_reduction(proto, raw, _mean(name), tensors[name]))
                nodes.append(helper.make_node("Mul", [_mean(name), _SHARE], [part]))
                nodes.append(helper.make_node("Sub", [_base(name), part], [_shift(name)]))
                nodes.append(helper.make_node("Add", [raw, _shift(name)], [name]))
    given = [_SHARE, *map(_base, tensors)]
    proto.graph.input.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in given)
    return cut(_with_nodes(proto, nodes), [*map(_shift, tensors), *ends])


def _reduction(proto: onnx.ModelProto, source: str, target: str, channels: Channels) -> onnx.NodeProto:
    """Return the node that takes a tensor's mean over all axes but the channels'."""
    axis, rank = channels
    others = [other for other in range(rank) if other != axis]
    if next(each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")) < 18:
        return helper.make_node("ReduceMean", [source], [target], axes=others, keepdims=1)
    axes = numpy_helper.from_array(np.array(others, np.int64), f"{target}/axes")
    proto.graph.initializer.append(axes)
    return helper.make_node("ReduceMean", [source, axes.name], [target], keepdims=1)


def _with_nodes(proto: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
    """Give the main graph these nodes."""
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto

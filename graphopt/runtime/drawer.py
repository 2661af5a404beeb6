"""Draws values for a model's inputs: numbers, masks, indices, pictures, sound and text."""

import dataclasses
import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from graphopt.errors import DataError
from graphopt.model import Model, to_proto
from graphopt.model.inference import with_inferred_shapes
from graphopt.runtime.axes import Axes
from graphopt.runtime.data import Feeds
from graphopt.runtime.plans import Plan, is_image, is_wave, lengths, longest
from graphopt.runtime.roles import Role, Roles
from graphopt.runtime.signature import TensorInfo, element_type, signature, tensor_shape

MOST_BYTES = 1 << 30
"""Inputs that take more than this are not drawn."""


class Drawer:
    """Knows a model's inputs and draws values for them.

    Attributes:
        order: The names of the inputs.
        axes: Their dynamic axes.
        dynamic: Whether there are any, or an input's rank is unknown.
        lengths: Sizes to try for axes that are no batch.
        longest: The largest size to try for them where outputs say nothing; 0 if there are none.
        has_images: Whether an input looks like images of free height and width.
    """

    def __init__(self, model: Model) -> None:
        """Read the model's signature and its graph."""
        proto = with_inferred_shapes(to_proto(model, weights=False))
        sign = signature(proto)
        roles = Roles(proto.graph)
        self._inputs = {name: _with_rank(info, roles) for name, info in sign.inputs.items()}
        self._others = sign.others
        self._roles = {
            name: roles.of(name, None if info.shape is None else len(info.shape)) for name, info in self._inputs.items()
        }
        self._words = _vocabulary(proto.graph)
        self.order = sign.order
        self.axes = Axes(self._inputs, self._roles)
        self.dynamic = any(not isinstance(dim, int) for info in self._inputs.values() for dim in info.shape or [None])
        self.lengths = lengths(self._inputs.values())
        self.longest = longest(self._inputs.values())
        self.has_images = any(map(is_image, self._inputs.values()))

    def draw(self, plan: Plan, rng: np.random.Generator) -> Feeds:
        """Draw one value for each input.

        Raises:
            DataError: They would take more than ``MOST_BYTES``, or an input is of a type that cannot be drawn.
        """
        sizes = {name: self.axes.sizes(info, plan) for name, info in self._inputs.items()}
        total = sum(math.prod(sizes[name]) * info.dtype.itemsize for name, info in self._inputs.items())
        if total > MOST_BYTES:
            name = max(sizes, key=lambda each: math.prod(sizes[each]) * self._inputs[each].dtype.itemsize)
            raise DataError(f"the input {name!r} of shape {sizes[name]} takes too much memory")
        feeds: Feeds = {}
        for name in self.order:
            if name in self._others:
                feeds[name] = self._draw_other(self._others[name], plan, rng)
            else:
                feeds[name] = self._draw(self._inputs[name], self._roles[name], sizes[name], plan, rng)
        return feeds

    def _draw(
        self, info: TensorInfo, role: Role, sizes: list[int], plan: Plan, rng: np.random.Generator
    ) -> NDArray[Any]:
        """Draw one tensor."""
        kind = info.dtype
        if kind.kind == "O":
            return np.asarray(rng.choice(self._words, sizes), dtype=object).reshape(sizes)
        if kind.kind == "b":
            return rng.integers(0, 2, sizes).astype(bool) if plan.style != "open" else np.ones(sizes, bool)
        integral = kind.kind in "iu"
        if role.high is not None:
            return rng.integers(0, 1 if plan.style == "small" else _largest(role.high, kind), sizes).astype(kind)
        if (choices := _fitting(role.choices, kind)) and math.prod(sizes) == 1:
            return rng.choice(choices, sizes).astype(kind)
        if role.is_mask:
            return np.ones(sizes, kind) if plan.style == "open" else _mask(sizes, rng).astype(kind)
        if role.is_length:
            inner = [size for each in self._inputs.values() for size in self.axes.sizes(each, plan)[1:]]
            high = _largest(max(1, min(inner, default=1)) + 1, kind)
            return rng.integers(high - 1 if plan.style == "open" else 1, high, sizes).astype(kind)
        if role.is_shape and integral:
            return rng.integers(1, 3, sizes).astype(kind)
        if integral:
            return _integers(kind, sizes, plan, rng)
        cached = "past" in info.name.lower()
        return _floats(sizes, plan.style, rng, natural=not cached and (len(sizes) >= 4 or is_wave(info))).astype(kind)

    def _draw_other(self, kind: onnx.TypeProto, plan: Plan, rng: np.random.Generator) -> Any:
        """Draw a sequence, an optional or a map."""
        if kind.HasField("tensor_type"):
            info = TensorInfo("", element_type(kind.tensor_type.elem_type), tensor_shape(kind))
            sizes = self.axes.sizes(info, plan)
            if math.prod(sizes) * info.dtype.itemsize > MOST_BYTES:
                raise DataError(f"a tensor of shape {sizes} takes too much memory")
            return self._draw(info, Role(), sizes, plan, rng)
        if kind.HasField("sequence_type"):
            return [self._draw_other(kind.sequence_type.elem_type, plan, rng) for _ in range(2)]
        if kind.HasField("optional_type"):
            return self._draw_other(kind.optional_type.elem_type, plan, rng)
        if kind.HasField("map_type"):
            texts = kind.map_type.key_type == onnx.TensorProto.STRING
            return {key: float(rng.random()) for key in (self._words if texts else range(4))}
        raise DataError(f"inputs of type {kind.WhichOneof('value')} cannot be drawn")


def _floats(sizes: list[int], style: str, rng: np.random.Generator, natural: bool) -> NDArray[Any]:
    """Draw floats: independent ones, or pictures and sound (``natural``)."""
    if style == "small":
        return np.asarray(1.0 + 0.01 * rng.random(sizes))
    if not natural:
        noise = np.asarray(rng.random(sizes) if style == "unit" else rng.standard_normal(sizes))
        return noise * 5 if style == "wide" else noise
    scene = _scene(sizes, rng)
    if style == "unit":
        return np.asarray(1 / (1 + np.exp(-scene)))
    return scene * 5 if style == "wide" else scene


def _scene(sizes: list[int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw pictures or sound that differ in more than noise, which deep networks answer alike.

    Each sample, along the first axis, is a sum of a brightness, patches that are constant over a quarter of each axis,
    and noise, with a contrast of its own.
    """
    rows = sizes[:1] if len(sizes) > 1 else []
    inner = sizes[len(rows) :]
    cells = [min(size, 4) for size in inner]
    patches = rng.standard_normal([*rows, *cells])
    for axis, (size, count) in enumerate(zip(inner, cells, strict=True), len(rows)):
        patches = np.take(patches, np.arange(size) * count // max(size, 1), axis=axis)
    each = [*rows, *[1] * len(inner)]
    noise = rng.standard_normal(sizes)
    contrast, brightness = rng.uniform(0.3, 1.3, each), 0.6 * rng.standard_normal(each)
    return np.asarray(brightness + contrast * (0.7 * patches + 0.6 * noise))


def _integers(kind: "np.dtype[Any]", sizes: list[int], plan: Plan, rng: np.random.Generator) -> NDArray[Any]:
    """Draw integers that no role is known of; 8-bit ones of at least three axes are pictures."""
    bytes_ = kind.name in ("int8", "uint8")
    if bytes_ and len(sizes) >= 3 and plan.style == "plain":
        limits = np.iinfo(kind)
        scaled = (_scene(sizes, rng) / 5 + 0.5) * 256 + limits.min
        return np.clip(scaled, limits.min, limits.max).astype(kind)
    low, high = (int(np.iinfo(kind).min), int(np.iinfo(kind).max) + 1) if bytes_ else (0, 10)
    low, high = {"unit": (0, 2), "small": (1, 2), "wide": (0, 100)}.get(plan.style, (low, high))
    return rng.integers(low, high, sizes).astype(kind)


def _largest(high: int, kind: "np.dtype[Any]") -> int:
    """Return a bound for indices that a type can hold exactly."""
    if kind.kind in "iu":
        return min(high, int(np.iinfo(kind).max))
    return min(
        high, 1 << 8 if kind.itemsize < 2 or kind.kind == "V" else {2: 1 << 11, 4: 1 << 24}.get(kind.itemsize, high)
    )


def _fitting(choices: set[int], kind: "np.dtype[Any]") -> list[int]:
    """Return the choices that an integer type can hold."""
    if kind.kind not in "iu":
        return []
    limits = np.iinfo(kind)
    return [choice for choice in sorted(choices) if limits.min <= choice <= limits.max]


def _with_rank(info: TensorInfo, roles: Roles) -> TensorInfo:
    """Return an input of unknown rank with the rank that the graph demands, if it does."""
    rank = roles.rank(info.name) if info.shape is None else None
    return info if rank is None else dataclasses.replace(info, shape=(None,) * rank)


def _mask(sizes: list[int], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return a padding mask: along the last axis ones, then zeros; the first row is all ones, no row all zeros."""
    if not sizes:
        return np.ones(sizes, dtype=np.int64)
    rows = math.prod(sizes[:-1])
    most = rng.integers(max(1, sizes[-1] // 2), max(1, sizes[-1]) + 1, rows)
    most[:1] = sizes[-1]
    return (np.arange(sizes[-1])[None] < most[:, None]).astype(np.int64).reshape(sizes)


def _vocabulary(graph: onnx.GraphProto) -> list[str]:
    """Return the words that string operators know, and one that they do not."""
    lists = ("keys_strings", "cats_strings", "pool_strings", "string_vocabulary", "classes_strings")
    words = ["word"]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in lists:
                words += [text.decode("utf-8", "replace") for text in attribute.strings]
    return words

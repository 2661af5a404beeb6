"""Draws inputs that a model can run on, from its signature and from what its graph does with them."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from graphopt.errors import DataError, GraphoptError
from graphopt.model import Model, to_proto
from graphopt.model.inference import with_inferred_shapes
from graphopt.numerics.tally import is_float_type, pair_leaves
from graphopt.runtime.data import Data, Feeds, ListData
from graphopt.runtime.roles import Role, Roles
from graphopt.runtime.session import Session
from graphopt.runtime.signature import TensorInfo, element_type, signature, tensor_shape
from graphopt.runtime.sizes import evaluate_size

IMAGE_SIZES = (64, 96, 128, 224, 256, 32, 299, 320, 512, 640, 28, 16)
SEQUENCE_SIZES = (8, 12, 16, 32, 64, 128, 4, 3, 2, 1, 256, 10, 100, 512)
BATCHES = (2, 1, 3, 4, 8)
STYLES = ("plain", "unit", "small")


@dataclass(frozen=True)
class Plan:
    """One way to draw.

    Attributes:
        batch: The size of batch axes.
        length: The size of the other dynamic axes.
        widen: Added to the last axis of images, so that height and width differ.
        style: "plain": normal floats, free integers below 10; "unit": floats from 0 to 1, integers 0 or 1; "small":
            floats close to 1, integers 1.
        no_past: Whether axes named after a past, of decoders with a cache, are empty.
    """

    batch: int
    length: int
    widen: int = 0
    style: str = "plain"
    no_past: bool = False


def generate(model: Model, seed: int = 0) -> Data:
    """Draw feeds for two sizes of the dynamic axes (for two draws where nothing is dynamic).

    Floats are standard normal. Integers that reach Gather, GatherND, OneHot and the like stay below the table's length,
    masks are 0 or 1, lengths between 1 and the sequence's. An axis is as long as the first weight that meets it
    demands; equally named axes are equally long, and names that are sums or products of others are computed. Each draw
    is tried on ONNX Runtime; if it refuses or gives nothing finite, other sizes and values are tried.

    Args:
        model: The model; it is loaded once, optimizations off.
        seed: For the draws.

    Raises:
        GraphoptError: ONNX Runtime cannot load the model.
        DataError: No draw runs.
    """
    drawer = _Drawer(model)
    session = Session(model)
    rng = np.random.default_rng(seed)
    found: list[Feeds] = []
    poor: list[Feeds] = []
    used: set[tuple[int, int]] = set()
    refusal = ""
    for plan in drawer.plans():
        if found and (plan.batch, plan.length) in used:
            continue
        feeds = drawer.draw(plan, rng)
        try:
            outputs = session.run(feeds)
        except GraphoptError as error:
            refusal = refusal or str(error)
            continue
        if not _is_telling(outputs):
            poor.append(feeds)
            continue
        found.append(feeds)
        used.add((plan.batch, plan.length))
        drawer.settle(plan)
        if len(found) == 2 or not drawer.dynamic:
            break
    if not found and not poor:
        raise DataError(f"cannot generate inputs that the model runs on, give it data; {refusal}")
    if not drawer.order:
        return ListData([{}], generated=True)
    if not found:
        return ListData(poor[:2], generated=True)
    if len(found) == 1:
        again = drawer.draw(drawer.settled, rng)
        if _runs(session, again):
            found.append(again)
    return ListData(found, generated=True)


def _runs(session: Session, feeds: Feeds) -> bool:
    """Whether the model runs on these feeds."""
    try:
        session.run(feeds)
    except GraphoptError:
        return False
    return True


def _is_telling(outputs: dict[str, Any]) -> bool:
    """Whether every float output that is not empty has a finite element."""
    for value in outputs.values():
        floats = [array for array, _, _ in pair_leaves(value, value) if isinstance(array, np.ndarray)]
        floats = [array for array in floats if is_float_type(array.dtype) and array.size]
        if floats and not any(np.isfinite(array.astype(np.float64)).any() for array in floats):
            return False
    return True


class _Drawer:
    """Knows a model's inputs and draws values for them."""

    def __init__(self, model: Model) -> None:
        proto = with_inferred_shapes(to_proto(model, weights=False))
        sign = signature(proto)
        roles = Roles(proto.graph)
        self._inputs = {name: _with_rank(info, roles) for name, info in sign.inputs.items()}
        self._others = sign.others
        self.order = sign.order
        self._roles = {
            name: roles.of(name, None if info.shape is None else len(info.shape)) for name, info in self._inputs.items()
        }
        self._words = _vocabulary(proto.graph)
        self._demanded = self._named_demands()
        self.dynamic = any(not isinstance(dim, int) for info in self._inputs.values() for dim in info.shape or [None])
        self.settled = Plan(1, SEQUENCE_SIZES[0])

    def _named_demands(self) -> dict[str, int]:
        """Return the length that weights demand of a named axis, wherever the name stands."""
        demands: dict[str, int] = {}
        for name, info in self._inputs.items():
            for axis, length in self._roles[name].axes.items():
                if info.shape is not None and isinstance(dim := info.shape[axis], str):
                    demands.setdefault(dim, length)
        return demands

    def plans(self) -> Iterator[Plan]:
        """Yield ways to draw, the most natural first."""
        images = any(_is_image(info) for info in self._inputs.values())
        if not self.dynamic:
            for style in STYLES:
                yield Plan(1, 8, style=style)
            return
        lengths = IMAGE_SIZES if images else SEQUENCE_SIZES
        yield Plan(2, lengths[0])
        yield Plan(1, lengths[1], widen=32 if images else 0)
        yield Plan(2, lengths[0], no_past=True)
        yield Plan(1, lengths[1], no_past=True)
        for style in STYLES:
            for batch in (1, 2) if style != "plain" else BATCHES:
                for length in lengths if batch < 3 else lengths[:2]:
                    yield Plan(batch, length, style=style)

    def settle(self, plan: Plan) -> None:
        """Remember a plan that works."""
        self.settled = plan

    def draw(self, plan: Plan, rng: np.random.Generator) -> Feeds:
        """Draw one value for each input."""
        feeds: Feeds = {}
        for name in self.order:
            if name in self._others:
                feeds[name] = self._draw_other(self._others[name], plan, rng)
            else:
                info = self._inputs[name]
                feeds[name] = self._draw(info, self._roles[name], self._sizes(info, plan), plan, rng)
        return feeds

    def _sizes(self, info: TensorInfo, plan: Plan) -> list[int]:
        """Bind the axes of an input."""
        if info.shape is None:
            return [plan.batch, plan.length]
        demands = self._roles[info.name].axes if info.name in self._roles else {}
        sizes = []
        for axis, dim in enumerate(info.shape):
            if isinstance(dim, int):
                sizes.append(dim)
            elif axis in demands:
                sizes.append(demands[axis])
            elif dim is None and axis == 1 and len(info.shape) == 3 and isinstance(info.shape[0], int):
                sizes.append(plan.batch)  # the state of a recurrent layer: directions, batch, hidden
            else:
                last = len(info.shape) >= 4 and axis == len(info.shape) - 1
                sizes.append(self._bind(dim, axis, plan) + (plan.widen if last else 0))
        return sizes

    def _bind(self, dim: str | None, axis: int, plan: Plan) -> int:
        """Return the size of one dynamic axis."""
        if dim is None:
            return plan.batch if axis == 0 else plan.length
        value = evaluate_size(dim, lambda name: self._bind_name(name, axis, plan))
        return max(0, value)

    def _bind_name(self, name: str, axis: int, plan: Plan) -> int:
        """Return the size of a named axis; a name stands for one size wherever it occurs."""
        if name in self._demanded:
            return self._demanded[name]
        if plan.no_past and "past" in name.lower():
            return 0
        leads = any(info.shape and info.shape[0] == name for info in self._inputs.values())
        is_batch = "batch" in name.lower() or (leads and "seq" not in name.lower() and "len" not in name.lower())
        return plan.batch if is_batch else plan.length

    def _draw(
        self, info: TensorInfo, role: Role, sizes: list[int], plan: Plan, rng: np.random.Generator
    ) -> NDArray[Any]:
        """Draw one tensor."""
        kind = info.dtype
        if kind.kind == "O":
            return np.asarray(rng.choice(self._words, sizes), dtype=object).reshape(sizes)
        if kind.kind == "b":
            return rng.integers(0, 2, sizes).astype(bool)
        integral = kind.kind in "iu"
        if role.high is not None:
            return rng.integers(0, 1 if plan.style == "small" else role.high, sizes).astype(kind)
        if role.choices and integral and int(np.prod(sizes)) == 1:
            return rng.choice(sorted(role.choices), sizes).astype(kind)
        if role.is_mask:
            return _mask(sizes, rng).astype(kind)
        if role.is_length:
            inner = [size for each in self._inputs.values() for size in self._sizes(each, plan)[1:]]
            return rng.integers(1, max(1, min(inner, default=1)) + 1, sizes).astype(kind)
        if role.is_shape and integral:
            return rng.integers(1, 3, sizes).astype(kind)
        if integral:
            limits = np.iinfo(kind) if kind.itemsize == 1 and kind.name in ("int8", "uint8") else None
            low, high = (int(limits.min), int(limits.max) + 1) if limits else (0, 10)
            low, high = {"plain": (low, high), "unit": (0, 2), "small": (1, 2)}[plan.style]
            return rng.integers(low, high, sizes).astype(kind)
        if plan.style == "plain":
            return np.asarray(rng.standard_normal(sizes)).astype(kind)
        base, width = (0.0, 1.0) if plan.style == "unit" else (1.0, 0.01)
        return np.asarray(base + width * rng.random(sizes)).astype(kind)

    def _draw_other(self, kind: onnx.TypeProto, plan: Plan, rng: np.random.Generator) -> Any:
        """Draw a sequence, an optional or a map."""
        if kind.HasField("tensor_type"):
            info = TensorInfo("", element_type(kind.tensor_type.elem_type), tensor_shape(kind))
            return self._draw(info, Role(), self._sizes(info, plan), plan, rng)
        if kind.HasField("sequence_type"):
            return [self._draw_other(kind.sequence_type.elem_type, plan, rng) for _ in range(2)]
        if kind.HasField("optional_type"):
            return self._draw_other(kind.optional_type.elem_type, plan, rng)
        if kind.HasField("map_type"):
            texts = kind.map_type.key_type == onnx.TensorProto.STRING
            return {key: float(rng.random()) for key in (self._words if texts else range(4))}
        raise DataError(f"cannot generate inputs of type {kind.WhichOneof('value')}, give the model data")


def _is_image(info: TensorInfo) -> bool:
    """Whether an input looks like images or volumes whose height and width are free."""
    shape = info.shape or ()
    return is_float_type(info.dtype) and len(shape) >= 4 and sum(not isinstance(dim, int) for dim in shape[1:]) >= 2


def _with_rank(info: TensorInfo, roles: Roles) -> TensorInfo:
    """Return an input of unknown rank with the rank that the graph demands, if it does."""
    rank = roles.rank(info.name) if info.shape is None else None
    return info if rank is None else dataclasses.replace(info, shape=(None,) * rank)


def _mask(sizes: list[int], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return a padding mask: along the last axis ones, then zeros; the first row is all ones, no row all zeros."""
    if not sizes:
        return np.ones(sizes, dtype=np.int64)
    rows = int(np.prod(sizes[:-1]))
    lengths = rng.integers(max(1, sizes[-1] // 2), max(1, sizes[-1]) + 1, rows)
    lengths[:1] = sizes[-1]
    return (np.arange(sizes[-1])[None] < lengths[:, None]).astype(np.int64).reshape(sizes)


def _vocabulary(graph: onnx.GraphProto) -> list[str]:
    """Return the words that string operators know, and one that they do not."""
    words = ["word"]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in (
                "keys_strings",
                "cats_strings",
                "pool_strings",
                "string_vocabulary",
                "classes_strings",
            ):
                words += [text.decode("utf-8", "replace") for text in attribute.strings]
    return words

"""Scale and zero point of each quantized tensor, from its range and the steps that its layers have been demoted by."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.view import GraphView
from graphopt.numerics.quantization import Affine

from .calibration import Calibration
from .placement import Placement, parameters
from .reach import end

_ALIKE = 1.5
"""How much coarser a scale may be for the sake of sharing it: a loss of 3.5 dB at most."""


@dataclass(frozen=True)
class Scale:
    """How a group of tensors is quantized: scale and zero point, and the rule if it is another than asked for."""

    scale: NDArray[Any]
    zero: NDArray[Any]
    rule: str = ""

    def __str__(self) -> str:
        return f"{float(self.scale):.3g}" + (f" by {self.rule}" if self.rule else "")


def choose_scales(
    view: GraphView,
    placement: Placement,
    layers: Iterable[gs.Node],
    seen: Calibration,
    affine: Affine,
    rule_of: Callable[[str], tuple[str, float]],
) -> dict[int, Scale]:
    """Return how each tensor is quantized, by its id: by the rule of a layer, or by the best for a demoted one.

    ``rule_of`` gives the rule and the percentile of a site. Tensors with one scale go by the rule of the first layer
    that reads them, or else of the first that gives them out.

    What a Concat reads shares its scale if nothing else reads it, or if its own would not be much finer. A source with
    a small range that layers read too keeps its own: one scale for both would leave it a few levels.
    """
    for concat in placement.concats:
        out = concat.outputs[0]
        whole = _shared([str(out.name)], seen, affine, *rule_of("")).scale
        for source in (tensor for tensor in concat.inputs if not tensor.is_empty()):
            own = _shared([str(source.name)], seen, affine, *rule_of("")).scale
            if whole <= _ALIKE * own or placement.feeds_only(view, source, concat):
                placement.join(source, out)
    careful: set[int] = set()
    rules: dict[int, tuple[str, float]] = {}
    layers = list(layers)
    ends = [(layer.inputs[0], layer) for layer in layers] + [(end(view, layer), layer) for layer in layers]
    for tensor, layer in ends:
        if tensor in placement:
            rules.setdefault(placement.root(tensor), rule_of(view.site(layer)))
            if view.demotions.get(view.site(layer), 0) > 0:
                careful.add(placement.root(tensor))
    scales: dict[int, Scale] = {}
    for group in placement.groups():
        names = [str(tensor.name) for tensor in group]
        rule, percentile = rules.get(placement.root(group[0])) or rule_of("")
        found = _shared(names, seen, affine, rule, percentile)
        if placement.root(group[0]) in careful:
            better = _shared(names, seen, affine, "best", percentile)
            found = found if (better.scale, better.zero) == (found.scale, found.zero) else better
        scales |= {id(tensor): found for tensor in group}
    return scales


def _shared(names: list[str], seen: Calibration, affine: Affine, rule: str, percentile: float) -> Scale:
    """Return scale and zero point for tensors that share them."""
    known = [found for name in names if (found := seen.chosen(name, rule, percentile, affine)) is not None]
    low, high = min((each.low for each in known), default=0.0), max((each.high for each in known), default=0.0)
    rules = " and ".join(dict.fromkeys(each.rule for each in known))
    return Scale(*parameters(affine, low, high), rules if rule == "best" else "")

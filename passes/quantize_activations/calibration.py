"""What calibration has seen of a model's tensors, kept from one replay of the pass to the next."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from graphopt.graph.view import GraphView
from graphopt.numerics.observer import Loud, Observer
from graphopt.numerics.quantization import Affine, Floats
from graphopt.runtime.capture import Runs
from graphopt.runtime.feeds import Data, generate
from graphopt.runtime.shifts import FEWEST, MOST, Channels, Means

_COUNTED = 1 << 16
"""How many values of a tensor the histograms count where no rule was asked for that needs them all."""
_MEMORY = "calibration"


@dataclass(frozen=True)
class Chosen:
    """The range to quantize a tensor with.

    Attributes:
        low: Its lower end.
        high: Its upper end.
        rule: How it was found.
    """

    low: float
    high: float
    rule: str


@dataclass
class Calibration:
    """Ranges of tensors and means of outputs on the data.

    Attributes:
        data: What the model runs on, in portions that fit.
        samples: How many of them at most.
        most: How many values of a tensor's sample are counted, see ``Observer``.
        observers: What was seen, by tensor.
        means: The means of layers' outputs; None if nobody has asked for them.
        louds: The samples that alone set a tensor's range, by tensor.
        ranges: Ranges that were found, by tensor, rule, percentile and form.
        shifts: Bias shifts that were found, by what was quantized and how.
        ratios: SQNR in dB that was measured, likewise.
    """

    data: Data
    samples: int
    most: int
    observers: dict[str, Observer] = field(default_factory=dict)
    means: Means | None = None
    louds: dict[str, Loud | None] = field(default_factory=dict)
    ranges: dict[tuple[str, str, float, Affine], Chosen | None] = field(default_factory=dict)
    shifts: dict[object, Mapping[str, Floats]] = field(default_factory=dict)
    ratios: dict[object, float] = field(default_factory=dict)

    @classmethod
    def of(cls, view: GraphView, samples: int, exact: bool) -> "Calibration":
        """Return what the view remembers, or a new one; ``exact`` counts all values, not some 65,536."""
        if _MEMORY not in view.memory:
            data = view.calibration if view.calibration is not None else generate(view.model)
            most = 0 if exact else max(1, _COUNTED // max(1, min(data.size, samples)))
            view.memory[_MEMORY] = cls(data, samples, most)
        kept: Calibration = view.memory[_MEMORY]
        return kept

    @property
    def count(self) -> int:
        """How many samples are used."""
        return min(self.data.size, self.samples)

    @property
    def corrects(self) -> bool:
        """Whether the data say enough to correct biases."""
        return not self.data.generated and self.count >= FEWEST

    def watch(self, view: GraphView, names: Iterable[str], outputs: Mapping[str, Channels]) -> None:
        """See these tensors, and the means of these outputs; the model runs only if one of them has not been seen."""
        missing = {name: Observer(self.most) for name in names if name not in self.observers}
        knows = not outputs or (self.means is not None and self.means.covers(outputs))
        if not missing and knows:
            return
        means = Means(view.model, {} if knows else outputs, self.count)
        runs = Runs(view.model, [*missing, *means.names], self.data, self.samples, lambda: means.form(view.model))
        for samples, tensors in runs:
            means.add(tensors, samples)
            for name, observer in missing.items():
                if isinstance(tensors[name], np.ndarray):
                    observer.add(tensors[name], samples)
            del tensors  # the next run would come on top of them
        self.observers |= missing
        self.louds |= {name: observer.loud() for name, observer in missing.items()}
        if not knows:
            self.means, self.data = means, runs.data

    def chosen(self, name: str, rule: str, percentile: float, affine: Affine) -> Chosen | None:
        """Return the range of a tensor; None if it had no finite value.

        The rule "best" stands for that of least squared error on the samples that are not ``loud``.
        """
        key = name, rule, percentile, affine
        if key not in self.ranges:
            seen = self.observers[name].any_finite
            find = self._best if rule == "best" else self._by_rule
            self.ranges[key] = find(*key) if seen else None
        return self.ranges[key]

    def _by_rule(self, name: str, rule: str, percentile: float, affine: Affine) -> Chosen:
        """Return the range of a tensor by a rule, on all samples."""
        return Chosen(*self.observers[name].histogram().bounds(rule, percentile, affine), rule)

    def _best(self, name: str, _: str, percentile: float, affine: Affine) -> Chosen:
        """Return the range of least squared error on the samples that are not ``loud``, by the rule that finds it."""
        loud = self.louds[name]
        seen = self.observers[name].histogram(loud.samples if loud else ())
        found = [Chosen(*seen.bounds(rule, percentile, affine), rule) for rule in ("minmax", "mse", "percentile")]
        best = min(found, key=lambda each: seen.loss(each.low, each.high, affine))
        return best if loud is None else Chosen(best.low, best.high, f"{best.rule} without {loud}")

    def loudness(self, name: str) -> str:
        """Name the few samples that alone set a tensor's range; empty if there are none."""
        loud = self.louds[name]
        if loud is None:
            return ""
        verb = "sets" if len(loud.samples) == 1 else "set"
        return f"{loud} alone {verb} the range of {name!r}: {loud.width:.5g} instead of {loud.usual:.3g}"

    def is_skewed(self) -> bool:
        """Whether a loud sample is among those whose means biases would be corrected to."""
        return any(number < MOST for loud in self.louds.values() if loud is not None for number in loud.samples)

"""What the teacher gives out, and which tensors of the two models belong together."""

from collections.abc import Mapping, Sequence

import numpy as np

from graphopt.distill.samples import Samples
from graphopt.errors import ModelError, OptionError
from graphopt.model import Model, to_proto
from graphopt.runtime.signature import class_output, signature
from graphopt.runtime.taps import Taps


class Teacher:
    """Gives the targets for a student's tensors."""

    def __init__(self, teacher: Model, student: Model, pairs: Mapping[str, str], sample: Samples, threads: int) -> None:
        """Pair tensors of the student with the teacher's.

        Raises:
            ModelError: A pair has different shapes.
        """
        self._pairs = pairs
        self._taps = Taps(teacher, pairs.values(), threads, optimize=True)
        theirs = self._taps.run(sample.inputs)
        ours = Taps(student, pairs, threads).run(sample.inputs)
        for name, target in pairs.items():
            if ours[name].shape != theirs[target].shape:
                shapes = f"{list(ours[name].shape)} and {list(theirs[target].shape)}"
                raise ModelError(f"the student's {name!r} and the teacher's {target!r} have different shapes, {shapes}")

    def targets(self, samples: Samples, batch: int) -> dict[str, np.ndarray]:
        """Return the targets by the names of the student's tensors."""
        parts = [self._taps.run(chunk.inputs) for chunk in samples.chunks(batch)]
        return {
            name: np.concatenate([part[target] for part in parts])[: samples.size].astype(np.float32)
            for name, target in self._pairs.items()
        }

    def powers(self, samples: Samples, batch: int, names: Sequence[str]) -> dict[str, float]:
        """Return the mean square of some of the targets on a batch, which makes losses of features comparable."""
        values = self.targets(next(samples.chunks(batch)), batch)
        return {name: float(np.square(values[name].astype(np.float64)).mean()) for name in names}


def class_scores(model: Model) -> str | None:
    """Return the tensor of class scores [N, classes], before a final softmax; None if the model has none."""
    sign = signature(model)
    name = class_output(sign)
    shape = None if name is None else sign.outputs[name].shape
    if name is None or (shape is not None and len(shape) != 2):
        return None
    makers = {output: node for node in to_proto(model, weights=False).graph.node for output in node.output}
    while (node := makers.get(name)) is not None and node.op_type in ("Softmax", "LogSoftmax", "Identity"):
        name = str(node.input[0])
    return name


def feature_pairs(student: Model, teacher: Model, features: Sequence[str], has_scores: bool) -> dict[str, str]:
    """Return the tensors to be matched, the student's with the teacher's; all float outputs if there are no scores.

    Raises:
        OptionError: A model has no such tensor.
        ModelError: There is nothing to match.
    """
    names = [
        {str(tensor.name) for node in model.graph.nodes for tensor in node.outputs if tensor.name}
        for model in (student, teacher)
    ]
    pairs = {}
    for feature in features:
        ours, _, theirs = feature.partition("=")
        theirs = theirs or ours
        for name, known, whose in ((ours, names[0], "student"), (theirs, names[1], "teacher")):
            if name not in known:
                raise OptionError(f"feature {feature!r}: the {whose} has no tensor {name!r}")
        pairs[ours] = theirs
    if not pairs and not has_scores:
        outputs = signature(student).outputs
        wanted = {name for name, info in signature(teacher).outputs.items() if info.dtype.kind == "f"}
        pairs = {name: name for name in outputs if name in wanted}
        if not pairs:
            raise ModelError("teacher and student have no float output of the same name")
    return pairs

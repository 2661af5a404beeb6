"""Take initializers off the list of graph inputs, so that nobody can override them."""

from dataclasses import dataclass

from graphopt import FloatExact, GraphView, Pass, PassResult, Rewritten, Skip, Skipped


@dataclass(frozen=True, kw_only=True)
class FreezeInitializers(Pass):
    """Take initializers off the list of graph inputs, so that nobody can override them.

    From IR version 4 on, an initializer that is listed as a graph input is a default value, which a caller may replace
    at every run. Some exporters list all weights (PyTorch with ``keep_initializers_as_inputs``), though nobody means to
    feed them; no pass may touch these, and runtimes cannot prepare them. This pass says that they are constants. It
    changes the model's signature, so it runs only where it is asked for, before the others:

        graphopt optimize in.onnx out.onnx freeze-initializers fold-batchnorm prune-channels quantize-weights

    Outputs are equal up to rounding: a runtime packs a weight that it meets as a constant, and sums in another order.
    Up to IR version 3 every initializer has to be listed and nobody can feed it: there is nothing to do.
    """

    name = "freeze-initializers"
    contract = FloatExact(rtol=1e-5, atol=1e-6)
    freezes = True

    def run(self, view: GraphView) -> PassResult:
        """Drop the declarations; the initializers themselves stay as they are."""
        rewritten: list[Rewritten] = []
        skipped: list[Skipped] = []
        frozen: set[int] = set()
        for tensor in view.model.overridable():
            name = str(tensor.name)
            try:
                view.require_permitted(name)
            except Skip as reason:
                skipped.append(Skipped(name, str(reason)))
                continue
            frozen.add(id(tensor))
            rewritten.append(Rewritten(name, "a constant from now on"))
        infos = view.model.graph.input_infos
        infos[:] = [(info, tensor) for info, tensor in infos if id(tensor) not in frozen]
        view.edit.settle()
        return PassResult(tuple(rewritten), tuple(skipped))

"""Outputs whose declared rank is not the one that they have: some exporters write it wrong, and runtimes complain."""

import dataclasses
from collections.abc import Mapping

from graphopt.model.model import Model


def with_ranks(model: Model, ranks: Mapping[str, int]) -> Model:
    """Return the model with wrongly declared output ranks put right, and a repair noted for each.

    Args:
        model: The model, which is not changed; it is given back as it is if nothing is wrong.
        ranks: The rank that each output of the main graph was seen to have.
    """
    declared = {str(out.name): out.shape for out in model.graph.outputs if out.shape is not None}
    wrong = [name for name, shape in declared.items() if name in ranks and len(shape) != ranks[name]]
    if not wrong:
        return model
    repaired = model.copy()
    for out in repaired.graph.outputs:
        if out.name in wrong:
            out.shape = [None] * ranks[out.name]
    notes = [f"output {name!r} is declared with rank {len(declared[name])} but has {ranks[name]}" for name in wrong]
    repairs = (*model.repairs, *notes)
    return dataclasses.replace(repaired, path=model.path, stored_bytes=model.stored_bytes, repairs=repairs)

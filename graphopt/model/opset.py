"""Raising a model's opset, so that a pass can use operators of a newer one."""

from graphopt.errors import ModelError
from graphopt.model.model import Model


def raise_opset(model: Model, version: int) -> Model:
    """Return a copy of ``model`` at a newer version of the default operator domain.

    Raises:
        ModelError: The model cannot be raised, with the operator that stands in the way.
    """
    if version <= model.opset:
        return model.copy()
    raise ModelError(f"opset {model.opset} cannot be raised to {version} yet")

"""Where inputs come from: a file of the user's, arrays, or a generator that reads the model's signature."""

from graphopt.runtime.batches import from_batches, only_input
from graphopt.runtime.data import Data, Feeds
from graphopt.runtime.generate import draw_inputs, generate
from graphopt.runtime.load_data import from_arrays, load_data
from graphopt.runtime.overrides import overridden

__all__ = [
    "Data",
    "Feeds",
    "draw_inputs",
    "from_arrays",
    "from_batches",
    "generate",
    "load_data",
    "only_input",
    "overridden",
]

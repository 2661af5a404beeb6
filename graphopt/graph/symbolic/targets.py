"""Says computed shapes in plain numbers, where the operator that reads them can work out the rest itself."""

from collections.abc import Sequence

from graphopt.graph.symbolic.expression import Entry
from graphopt.graph.symbolic.values import SymbolicShape


def reshape_numbers(target: Sequence[Entry | None], data: SymbolicShape) -> list[int] | None:
    """Return a constant target that makes Reshape (allowzero=0) do what ``target`` makes it do, or None.

    A symbolic entry that equals the dimension at its place becomes 0, which copies it. One other entry may become -1 if
    the rest are positive numbers, so that its size follows for every size of the data, zero included.
    """
    numbers: list[int] = []
    for index, entry in enumerate(target):
        if isinstance(entry, int):
            numbers.append(entry)
        elif data is not None and index < len(data) and entry is not None and entry == data[index]:
            numbers.append(0)
        elif -1 in numbers:
            return None
        else:
            numbers.append(-1)
    derived = [index for index, (n, entry) in enumerate(zip(numbers, target, strict=True)) if n == -1 and entry != -1]
    if not derived:
        return numbers
    fixed = all(n > 0 for index, n in enumerate(numbers) if index != derived[0])
    return numbers if numbers.count(-1) == 1 and fixed else None


def expand_numbers(target: Sequence[Entry | None], data: SymbolicShape) -> list[int] | None:
    """Return a constant target that makes Expand do what ``target`` makes it do, or None.

    An entry that equals the dimension it meets becomes 1, which leaves that dimension as it is.
    """
    if data is None:
        return None
    offset = len(target) - len(data)
    numbers: list[int] = []
    for index, entry in enumerate(target):
        if isinstance(entry, int):
            numbers.append(entry)
        elif index >= offset and entry is not None and entry == data[index - offset]:
            numbers.append(1)
        else:
            return None
    return numbers

"""The indices that a Slice takes, for all that follow one (ONNX operator Slice)."""

_TO_THE_END = (2**31 - 1, 2**63 - 1)


def slice_of(size: int, start: int, end: int, step: int = 1) -> slice:
    """Return the Python slice that takes what ONNX's Slice takes of an axis of ``size`` elements.

    They differ where a bound lies outside of the axis and the step is negative. ONNX clamps the start to the first
    element then, where Python takes nothing; and an end before the first element takes that in, where Python counts it
    from the end. The largest integers mean the end of the axis in either direction, as ONNX Runtime has it.

    Args:
        size: How many elements the axis has.
        start: The first index; from the end if it is negative.
        end: The index before which it stops; from the end if it is negative.
        step: The step, not 0.
    """
    if step < 0 and end in _TO_THE_END:
        end = -size - 1
    start, end = (bound + size if bound < 0 else bound for bound in (start, end))
    if step > 0:
        return slice(min(max(start, 0), size), min(max(end, 0), size), step)
    if size == 0:
        return slice(0, 0, step)
    start, end = min(max(start, 0), size - 1), min(max(end, -1), size - 1)
    return slice(start, None if end < 0 else end, step)


def slice_indices(size: int, start: int, end: int, step: int = 1) -> range:
    """Return the indices that ONNX's Slice takes of an axis of ``size`` elements, see ``slice_of``."""
    return range(size)[slice_of(size, start, end, step)]

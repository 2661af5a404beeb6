"""What a pass promises about the numerics of the model that it rewrites."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BitExact:
    """Every output keeps every bit."""

    def __str__(self) -> str:
        return "bit-exact"


@dataclass(frozen=True)
class FloatExact:
    """Outputs differ by float rounding only.

    With s the spread (standard deviation) of an output over the data, an element r may move by
    ``rtol * max(|r|, s) + atol * min(1, s)``.
    """

    rtol: float
    atol: float

    def __str__(self) -> str:
        return f"float-exact(rtol={self.rtol:g}, atol={self.atol:g})"


@dataclass(frozen=True)
class Lossy:
    """Outputs change on purpose; each keeps at least this signal-to-quantization-noise ratio, in dB."""

    min_sqnr_db: float

    def __str__(self) -> str:
        return f"lossy(min_sqnr_db={self.min_sqnr_db:g})"


Contract = BitExact | FloatExact | Lossy

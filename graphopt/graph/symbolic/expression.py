"""Integers that are only known as expressions: polynomials in the names of dimensions, exact and canonical."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

Monomial = tuple[str, ...]

MOST_TERMS, MOST_FACTORS, LONGEST = 64, 16, 160
"""The terms of a polynomial, the names in one of them, and the characters of an operation that is spelled out.

Without bounds they double with each step of a chain: a file of a few kilobytes would take gigabytes.
"""


@dataclass(frozen=True)
class Expression:
    """A polynomial with integer coefficients in named dimensions; never a plain integer (see ``normal``).

    Two expressions are equal only if they are the same polynomial. A name stands for a value that is at least zero,
    unless it starts with ``~``. What a polynomial cannot say (a division with remainder, a maximum, one that is too
    large) becomes a name of its own that spells the operation out, or holds a digest of that where it is long, so that
    equal operations on equal operands are still equal.
    """

    terms: frozenset[tuple[Monomial, int]]

    def __str__(self) -> str:
        parts = ["*".join([*([str(c)] if c != 1 or not m else []), *m]) for m, c in sorted(self.terms)]
        return parts[0] if len(parts) == 1 else f"({'+'.join(parts)})"

    def at_ones(self) -> int | None:
        """Return the value where every dimension is 1; None if an operation is spelled out in a name."""
        if any("[" in atom for monomial, _ in self.terms for atom in monomial):
            return None
        return sum(factor for _, factor in self.terms)


Entry = int | Expression
_Known = TypeVar("_Known", int, Expression, Entry)


def name(text: str) -> Expression:
    """Return the expression that is one named dimension."""
    return Expression(frozenset({((text,), 1)}))


def is_fresh(a: Entry) -> bool:
    """Whether a is said with a dimension that nobody has named: such names begin with a question mark."""
    return isinstance(a, Expression) and any("?" in atom for monomial, _ in a.terms for atom in monomial)


def add(a: Entry, b: Entry) -> Entry:
    """Return a + b."""
    sums = dict(_terms(a))
    for monomial, factor in _terms(b):
        sums[monomial] = sums.get(monomial, 0) + factor
    return _normal(sums) if _is_small(sums) else spelled("add", *sorted((a, b), key=str))


def multiply(a: Entry, b: Entry) -> Entry:
    """Return a * b."""
    products: dict[Monomial, int] = {}
    for left, x in _terms(a):
        for right, y in _terms(b):
            monomial = tuple(sorted(left + right))
            products[monomial] = products.get(monomial, 0) + x * y
    return _normal(products) if _is_small(products) else spelled("mul", *sorted((a, b), key=str))


def subtract(a: Entry, b: Entry) -> Entry:
    """Return a - b."""
    return add(a, multiply(b, -1))


def divide(a: Entry, b: Entry) -> Entry | None:
    """Return a / b rounded towards zero, as ONNX's integer Div does; None for a division by zero."""
    if b == 0:
        return None
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    exact = quotient(a, b)
    return exact if exact is not None else spelled("div", a, b, sign=nonnegative(a) and nonnegative(b))


def quotient(a: Entry, b: Entry) -> Entry | None:
    """Return a / b if b is one term that divides every term of a without remainder, else None.

    A symbolic divisor is taken to be other than zero: the model itself divides by it.
    """
    if isinstance(b, Expression) and len(b.terms) != 1:
        return 1 if a == b else None
    divisor, factor = next(iter(_terms(b)), ((), 0))
    if not factor:
        return None
    result: dict[Monomial, int] = {}
    for monomial, coefficient in _terms(a):
        rest = list(monomial)
        for atom in divisor:
            if atom not in rest:
                return None
            rest.remove(atom)
        if coefficient % factor:
            return None
        result[tuple(rest)] = coefficient // factor
    return _normal(result)


def modulo(a: Entry, b: Entry) -> Entry | None:
    """Return a mod b with the sign of b, as ONNX's integer Mod does; None for a division by zero."""
    if b == 0:
        return None
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    return 0 if quotient(a, b) is not None else spelled("mod", a, b, sign=nonnegative(a) and nonnegative(b))


def maximum(a: Entry, b: Entry) -> Entry:
    """Return the larger of a and b."""
    if nonnegative(subtract(a, b)):
        return a
    if nonnegative(subtract(b, a)):
        return b
    first, second = sorted((a, b), key=str)
    return spelled("max", first, second, sign=nonnegative(a) or nonnegative(b))


def minimum(a: Entry, b: Entry) -> Entry:
    """Return the smaller of a and b."""
    if nonnegative(subtract(a, b)):
        return b
    if nonnegative(subtract(b, a)):
        return a
    first, second = sorted((a, b), key=str)
    return spelled("min", first, second, sign=nonnegative(a) and nonnegative(b))


def nonnegative(a: Entry) -> bool:
    """Whether a is certainly at least zero."""
    if isinstance(a, int):
        return a >= 0
    return all(c >= 0 and not any(atom.startswith("~") for atom in m) for m, c in a.terms)


def positive(a: Entry) -> bool:
    """Whether a is certainly above zero."""
    return nonnegative(subtract(a, 1))


def equal(a: Entry, b: Entry) -> bool | None:
    """Whether a equals b: True or False if that is certain, else None."""
    if a == b:
        return True
    difference = subtract(a, b)
    if isinstance(difference, int) or positive(difference) or positive(multiply(difference, -1)):
        return False
    return None


def product(entries: Iterable[Entry]) -> Entry:
    """Return the product of entries; 1 for none."""
    total: Entry = 1
    for entry in entries:
        total = multiply(total, entry)
    return total


def lift(
    operation: Callable[[_Known, _Known], Entry | bool | None],
) -> Callable[[Entry | None, Entry | None], Entry | bool | None]:
    """Make an operation on two entries give None where one is unknown."""
    return lambda a, b: None if a is None or b is None else operation(a, b)  # type: ignore[arg-type]


def _terms(a: Entry) -> Iterable[tuple[Monomial, int]]:
    if isinstance(a, int):
        return [((), int(a))] if a else []
    return a.terms


def _normal(terms: dict[Monomial, int]) -> Entry:
    """Return a polynomial without zero terms; a plain int where nothing symbolic is left."""
    kept = {monomial: factor for monomial, factor in terms.items() if factor}
    if not kept:
        return 0
    if kept.keys() == {()}:
        return kept[()]
    return Expression(frozenset(kept.items()))


def _is_small(terms: dict[Monomial, int]) -> bool:
    """Whether a polynomial stays one; not if a factor leaves int64, where a runtime's arithmetic wraps around."""
    return len(terms) <= MOST_TERMS and all(
        len(monomial) <= MOST_FACTORS and -(1 << 63) <= factor < 1 << 63 for monomial, factor in terms.items()
    )


def spelled(operation: str, *operands: Entry, sign: bool = False) -> Expression:
    """Return the name that spells an operation out; ``sign`` says that its value is at least zero."""
    text = ",".join(map(str, operands))
    if len(text) > LONGEST:
        digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        text = f"{'?' if any(map(is_fresh, operands)) else ''}#{digest}"
    return name(f"{'' if sign else '~'}{operation}[{text}]")

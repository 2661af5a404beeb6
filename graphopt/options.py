"""Options of passes: dataclass fields with a help text, a type, choices and a range, checked when a pass is created."""

import dataclasses
import functools
import inspect
import types
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from graphopt.errors import OptionError

if TYPE_CHECKING:
    from graphopt.base import Pass

Field = dataclasses.Field[Any]


def option(default: Any, help: str, *, minimum: float | None = None, maximum: float | None = None) -> Any:
    """Declare an option of a pass: a dataclass field with its help text and, for numbers, its inclusive range."""
    return dataclasses.field(default=default, metadata={"help": help, "minimum": minimum, "maximum": maximum})


def common_option(help: str) -> Any:
    """Declare an option that every pass has, and that the engine sees to."""
    return dataclasses.field(default=(), metadata={"help": help, "common": True})


def is_common(field: Field) -> bool:
    """Whether a field is an option that every pass has, and not a third party's of the same name."""
    return bool(field.metadata.get("common"))


@functools.cache  # resolving the types takes longer than most passes take on a small model
def options(kind: "type[Pass]") -> tuple[tuple[Field, Any], ...]:
    """Return the options of a pass class: its dataclass fields with their resolved types, those of all passes last."""
    hints = get_type_hints(kind)
    fields = [field for field in dataclasses.fields(kind) if field.init and not field.metadata.get("hidden")]
    return tuple((field, hints[field.name]) for field in sorted(fields, key=is_common))


def option_values(each: "Pass") -> dict[str, object]:
    """Return a pass's options by name; those that every pass has only where they say something."""
    values: dict[str, object] = {}
    for field, _ in options(type(each)):
        value = getattr(each, field.name)
        if not is_common(field):
            values[field.name] = value
        elif value and field.name == "override":
            values["override"] = [own.as_dict() for own in (value[each.part - 1 :][:1] if each.part else value)]
        elif value:
            values[field.name] = value
    return values


@dataclasses.dataclass(frozen=True)
class Kind:
    """The declared type of an option.

    Attributes:
        base: The type of a value, or of an element.
        choices: The values that it may have; empty if it is free.
        repeated: Whether the option holds a tuple of them.
        optional: Whether it may be None.
    """

    base: type
    choices: tuple[Any, ...] = ()
    repeated: bool = False
    optional: bool = False

    @classmethod
    def of(cls, hint: Any) -> "Kind":
        """Read a type hint: int, float, str, bool, a Literal, a tuple of any number of one of these, or None besides.

        Raises:
            OptionError: It is of another form.
        """
        optional = False
        if get_origin(hint) in (Union, types.UnionType):
            arms = [arm for arm in get_args(hint) if arm is not type(None)]
            if len(arms) == 1:
                hint, optional = arms[0], True
        if get_origin(hint) is tuple and get_args(hint)[1:] == (...,):
            element = cls.of(get_args(hint)[0])
            if not element.repeated and not element.optional:
                return cls(element.base, element.choices, True, optional)
        if get_origin(hint) is Literal:
            choices = tuple(choice for choice in get_args(hint) if choice is not None)
            return cls(type(choices[0]), choices, False, optional or None in get_args(hint))
        if hint in (int, float, str, bool):
            return cls(hint, (), False, optional)
        text = hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)
        raise OptionError(f"is of type {text}; int, float, str, bool, Literal and tuple[..., ...] of them are possible")

    def require(self, value: Any) -> None:
        """Raise OptionError unless a value is of this type."""
        if value is None and self.optional:
            return
        choices = ", ".join(map(str, self.choices))
        if self.repeated:
            if not isinstance(value, tuple) or not all(map(self._takes, value)):
                raise OptionError(f"{value!r} is not a list of {choices or self.base.__name__}")
        elif not self._takes(value):
            raise OptionError(f"{value!r} is not {'one of ' + choices if choices else 'a ' + self.base.__name__}")

    def _takes(self, value: Any) -> bool:
        """Whether a value is one of the choices, or of the type: whole numbers are floats too, True is no number."""
        if self.choices:
            return any(type(value) is type(choice) and value == choice for choice in self.choices)
        accepted = (int, float) if self.base is float else (self.base,)
        return isinstance(value, accepted) and isinstance(value, bool) == (self.base is bool)


def check_option(field: Field, hint: Any, value: Any) -> None:
    """Raise OptionError unless ``value`` is of the type ``hint`` and within the field's range."""
    kind = Kind.of(hint)
    kind.require(value)
    low, high = field.metadata.get("minimum"), field.metadata.get("maximum")
    for number in () if value is None else value if kind.repeated else (value,):
        if (low is not None and not number >= low) or (high is not None and not number <= high):
            bounds = f"from {low} to {high}"
            bounds = f"at least {low}" if high is None else f"at most {high}" if low is None else bounds
            raise OptionError(f"{number!r} is out of range, it must be {bounds}")


def check_patterns(value: Any) -> None:
    """Raise OptionError unless ``value`` holds patterns of sites."""
    if not isinstance(value, tuple):
        raise OptionError(f"{value!r} is not a list of patterns")
    for pattern in value:
        if not isinstance(pattern, str) or pattern in ("", "op:"):
            raise OptionError(f"{pattern!r} is not a pattern of sites")


def check_declaration(kind: "type[Pass]") -> None:
    """Check what a pass author has declared, whatever its options are set to.

    Raises:
        OptionError: The class is no dataclass, lacks what a pass has, or declares an option that cannot be given.
    """
    if inspect.isabstract(kind):
        raise OptionError(f"it does not define {', '.join(sorted(kind.__abstractmethods__))}")
    if missing := next((name for name in ("name", "contract") if not hasattr(kind, name)), None):
        raise OptionError(f"it has no {missing}")
    if any(isinstance(value, dataclasses.Field) for value in vars(kind).values()):
        raise OptionError("it is not decorated with @dataclass(frozen=True, kw_only=True)")
    for field, hint in options(kind):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise OptionError(f"its option {field.name!r} has no default")
        if not is_common(field):
            try:
                Kind.of(hint)
            except OptionError as error:
                raise OptionError(f"its option {field.name!r} {error}") from error

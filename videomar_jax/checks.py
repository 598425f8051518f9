"""The only validators of the package: settings are checked against their annotations.

A settings class is a frozen dataclass whose `__post_init__` calls `check_fields`. The annotation of
a field says what it may hold, so every field is checked for its type, finite floats included:

    steps: Count = 64                              a whole number, at least 1
    temperature: NonNegative = 1.0                 a finite number, at least 0
    head_solver: Literal["euler", "heun"]          one of these
    window: Count | None = None                    a whole number, or None

Whatever the user can mend is a `UserError`; entry points show its text in one line. Every other
exception is our own fault and keeps its traceback.
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import math
import numbers
import textwrap
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union


class UserError(ValueError):
    """A mistake the user can mend: a wrong value, file or combination. The text says how."""


class Interrupted(Exception):
    """The program was asked to stop; the text says what was saved and how to continue."""


# Constraints, to be used in annotations


@dataclasses.dataclass(frozen=True)
class Range:
    """The interval that a number must lie in; `None` leaves an end open.

    low_open, high_open: the end itself is not allowed.
    """

    low: int | float | None = None
    high: int | float | None = None
    low_open: bool = False
    high_open: bool = False

    def holds(self, value: int | float) -> bool:
        """Whether `value` lies in the interval."""
        above = self.low is None or value > self.low or (value == self.low and not self.low_open)
        below = (
            self.high is None or value < self.high or (value == self.high and not self.high_open)
        )
        return above and below

    def __str__(self) -> str:
        if self.high is not None and self.low is not None:
            left = "(" if self.low_open else "["
            right = ")" if self.high_open else "]"
            return f"must lie in {left}{self.low:g}, {self.high:g}{right}"
        if self.low is not None:
            if self.low_open:
                return "must be positive" if self.low == 0 else f"must be above {self.low:g}"
            return "must not be negative" if self.low == 0 else f"must be at least {self.low:g}"
        return f"must be {'below' if self.high_open else 'at most'} {self.high:g}"


Count = Annotated[int, Range(low=1)]
"""A whole number, at least 1."""
Natural = Annotated[int, Range(low=0)]
"""A whole number, at least 0."""
Positive = Annotated[float, Range(low=0, low_open=True)]
"""A finite number above 0."""
NonNegative = Annotated[float, Range(low=0)]
"""A finite number, at least 0."""
Fraction = Annotated[float, Range(low=0, high=1)]
"""A number in [0, 1]."""
BelowOne = Annotated[float, Range(low=0, high=1, high_open=True)]
"""A number in [0, 1)."""


# Checks of single values; `name` is what the user wrote, such as "sampling.steps"


def one_of(name: str, value: Any, choices: Collection) -> None:
    """Raises a UserError unless `value` is one of the choices."""
    # `True == 1` in Python, but a flag is not a number.
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        known = ", ".join(map(repr, choices))
        hint = did_you_mean(value, choices)
        raise UserError(f"{name} is {value!r}; it may be one of {known}.{hint}")


def whole(name: str, value: Any) -> None:
    """Raises a UserError unless `value` is a whole number (a bool is none)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise UserError(f"{name} must be a whole number, not {value!r}.")


def finite(name: str, value: Any) -> None:
    """Raises a UserError unless `value` is a finite number (a bool is none)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UserError(f"{name} must be a number, not {value!r}.")
    if not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, not {value!r}.")


def at_least(name: str, value: Any, least: int) -> None:
    """Raises a UserError unless `value` is a whole number of at least `least`."""
    whole(name, value)
    in_range(name, value, Range(low=least))


def in_range(name: str, value: int | float, allowed: Range) -> None:
    """Raises a UserError unless `value` lies in the range."""
    if not allowed.holds(value):
        raise UserError(f"{name} {allowed}, not {value}.")


def known_keys(
    section: str, values: Iterable[str], known: Collection[str], required: Collection[str] = ()
) -> None:
    """Raises a UserError for a key that is not known ("did you mean"), or one that is missing."""
    values = list(values)
    for key in values:
        if key not in known:
            hint = did_you_mean(key, known) or f" Known: {', '.join(sorted(known))}."
            raise UserError(f"Unknown key {key!r} in {section}.{hint}")
    missing = sorted(set(required) - set(values))
    if missing:
        raise UserError(f"{section} lacks {', '.join(missing)}.")


def did_you_mean(value: Any, choices: Iterable[Any]) -> str:
    """' Did you mean ...?' with the nearest choice, or an empty text."""
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


# Checks of whole dataclasses


def check_fields(section: str, config: Any) -> None:
    """Checks every field of a dataclass against its annotation.

    Args:
        section: stands in front of the field's name in messages, such as "sampling".
        config: an instance of a dataclass.
    Raises:
        UserError: the first field with a value of another type or outside its range, by name.
    """
    for field, annotation in _annotations(type(config)).items():
        check_value(f"{section}.{field}", getattr(config, field), annotation)


def check_value(name: str, value: Any, annotation: Any) -> None:
    """Checks one value against an annotation; kinds that are not listed here pass.

    Understood are int, float, bool, str, Literal, Annotated with a `Range`, sequences and mappings
    of these, and unions with None.
    """
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is Annotated:
        check_value(name, value, arguments[0])
        for constraint in arguments[1:]:
            if isinstance(constraint, Range):
                in_range(name, value, constraint)
    elif origin in (Union, types.UnionType):
        _check_union(name, value, arguments)
    elif origin is Literal:
        one_of(name, value, arguments)
    elif annotation is bool:
        if not isinstance(value, bool):
            raise UserError(f"{name} must be true or false, not {value!r}.")
    elif annotation is int:
        whole(name, value)
    elif annotation is float:
        finite(name, value)
    elif annotation is str:
        if not isinstance(value, str):
            raise UserError(f"{name} must be a text, not {value!r}.")
    elif isinstance(origin, type) and issubclass(origin, Sequence):
        _check_sequence(name, value, arguments)


def _check_union(name: str, value: Any, members: Sequence[Any]) -> None:
    """Passes if one of the members passes; the error is that of the last member but None."""
    if value is None and type(None) in members:
        return
    members = [member for member in members if member is not type(None)]
    for member in members[:-1]:
        try:
            check_value(name, value, member)
        except UserError:
            continue
        return
    check_value(name, value, members[-1])


def _check_sequence(name: str, value: Any, arguments: Sequence[Any]) -> None:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise UserError(f"{name} must be a list, not {value!r}.")
    if not arguments:
        return
    if len(arguments) > 1 and arguments[1] is not Ellipsis:
        if len(value) != len(arguments):
            raise UserError(f"{name} must have {len(arguments)} entries, not {value!r}.")
        kinds = arguments
    else:
        kinds = [arguments[0]] * len(value)
    for number, (entry, kind) in enumerate(zip(value, kinds, strict=True)):
        check_value(f"{name}[{number}]", entry, kind)


@functools.cache
def _annotations(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


# What a setting means, said once: at its field


@functools.cache
def field_docs(kind: type) -> Mapping[str, str]:
    """The text below each field of a dataclass, by field; its one description.

    Flags, configs and docs take their words from here. A text is a string literal that follows the
    field, as Sphinx and editors show it. Fields of base classes are included.
    """
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        body = tree.body[0].body  # type: ignore[attr-defined]
        for field, text in zip(body, body[1:], strict=False):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                docs[field.target.id] = inspect.cleandoc(str(text.value.value)).replace("\n", " ")
    return docs

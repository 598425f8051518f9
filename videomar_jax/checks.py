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
import itertools
import math
import numbers
import textwrap
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union

import numpy as np


class UserError(ValueError):
    """A mistake the user can mend: a wrong value, file or combination. The text says how."""


class Interrupted(Exception):
    """The program was asked to stop; the text says what was saved and how to continue."""


_Record = typing.TypeVar("_Record")


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
        if self.low is not None and self.high is not None:
            return f"must lie in {self.words}"
        if self.low == 0:
            return "must be positive" if self.low_open else "must not be negative"
        return f"must be {self.words}"

    @property
    def words(self) -> str:
        """The interval in words, such as "at least 1" or "[0, 1)"."""
        if self.low is None:
            return f"{'below' if self.high_open else 'at most'} {_number(self.high)}"
        if self.high is None:
            return f"{'above' if self.low_open else 'at least'} {_number(self.low)}"
        left = "(" if self.low_open else "["
        right = ")" if self.high_open else "]"
        return f"{left}{_number(self.low)}, {_number(self.high)}{right}"


def _number(value: int | float | None) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


Count = Annotated[int, Range(low=1)]
"""A whole number, at least 1."""
Size = Annotated[int, Range(low=1, high=2**24)]
"""A whole number, at least 1, that a tensor or a video can have along one axis."""
Natural = Annotated[int, Range(low=0)]
"""A whole number, at least 0."""
Positive = Annotated[float, Range(low=0, low_open=True)]
"""A finite number above 0."""
NonNegative = Annotated[float, Range(low=0)]
"""A finite number, at least 0."""
AtLeastOne = Annotated[float, Range(low=1)]
"""A finite number, at least 1."""
Fraction = Annotated[float, Range(low=0, high=1)]
"""A number in [0, 1]."""
BelowOne = Annotated[float, Range(low=0, high=1, high_open=True)]
"""A number in [0, 1)."""


_AT_ONCE = 2**22
"""Values of an array that are checked at a time, in little memory."""


# Checks of single values; `name` is what the user wrote, such as "sampling.steps"


def one_of(name: str, value: Any, choices: Collection) -> None:
    """Raises a UserError unless `value` is one of the choices."""
    if not any(_same(value, choice) for choice in choices):
        known = ", ".join(map(repr, choices))
        hint = did_you_mean(value, choices)
        raise UserError(f"{name} is {value!r}; it may be one of {known}.{hint}")


def _same(value: Any, choice: Any) -> bool:
    """Equality that tells apart what Python takes for equal: True, 1 and 1.0."""
    if isinstance(choice, bool) or isinstance(value, bool):
        return value is choice
    return isinstance(value, type(choice)) and value == choice


def whole(name: str, value: Any) -> None:
    """Raises a UserError unless `value` is a whole number (a bool is none)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise UserError(f"{name} must be a whole number, not {value!r}.")


def finite(name: str, value: Any) -> None:
    """Raises a UserError unless `value` is a finite number (a bool is none)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UserError(f"{name} must be a number, not {value!r}.")
    try:
        is_finite = math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        is_finite = False
    if not is_finite:
        raise UserError(f"{name} must be a finite number, not {value!r}.")


def at_least(name: str, value: Any, least: int) -> None:
    """Raises a UserError unless `value` is a whole number of at least `least`."""
    whole(name, value)
    in_range(name, value, Range(low=least))


def in_range(name: str, value: int | float, allowed: Range) -> None:
    """Raises a UserError unless `value` lies in the range."""
    if not allowed.holds(value):
        raise UserError(f"{name} {allowed}, not {value}.")


def not_finite(array: np.ndarray) -> str:
    """How many values of an array of floats are NaN or infinite, in words; "" if there are none.

    The types of ml_dtypes count as floats.
    """
    if not (array.dtype.kind in "fc" or array.dtype.name.startswith(("bfloat", "float"))):
        return ""
    values = array.reshape(-1)
    nan = infinite = 0
    for start in range(0, values.size, _AT_ONCE):
        part = values[start : start + _AT_ONCE]
        finite_values = np.isfinite(part)
        if not finite_values.all():
            part_nan = int(np.isnan(part).sum())
            nan += part_nan
            infinite += part.size - int(finite_values.sum()) - part_nan
    counts = [f"{count} {kind}" for count, kind in ((nan, "NaN"), (infinite, "infinite")) if count]
    return f"{' and '.join(counts)} of {values.size} values" if counts else ""


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
    """A sentence that suggests the choice of nearest spelling, or an empty text."""
    if not isinstance(value, str):
        return ""
    by_lower = {choice.lower(): choice for choice in choices if isinstance(choice, str)}
    near = difflib.get_close_matches(value.lower(), by_lower, n=1)
    return f" Did you mean {by_lower[near[0]]!r}?" if near else ""


# Checks of whole dataclasses


def check_fields(section: str, config: Any) -> None:
    """Checks every field of a dataclass against its annotation, in `__post_init__`.

    NumPy scalars are accepted and replaced by Python's numbers, since settings are written as JSON.

    Args:
        section: stands in front of the field's name in messages, such as "sampling"; "" for none.
        config: an instance of a dataclass.
    Raises:
        UserError: the first field with a value of another type or outside its range, by name.
    """
    prefix = f"{section}." if section else ""
    for field, annotation in _annotations(type(config)).items():
        given = getattr(config, field)
        value = _without_numpy(given)
        check_value(prefix + field, value, annotation)
        if value is not given:
            object.__setattr__(config, field, value)


def from_values(
    section: str, kind: type[_Record], values: Any, *, required: Collection[str] | None = None
) -> _Record:
    """A dataclass from what a JSON file holds: lists become tuples, mappings nested dataclasses.

    Args:
        section: what the values are, for messages; "" where the caller names it.
        kind: the dataclass; its annotations are the schema.
        required: fields that must be there; None: those without a default.
    Raises:
        UserError: no mapping, an unknown or missing key, or a value of another type or outside its
            range, by name.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{section or 'it'} must be a mapping, not {shortened(values)}.")
    annotations = _annotations(kind)
    if required is None:
        required = [
            field.name
            for field in dataclasses.fields(typing.cast(Any, kind))
            if field.default is dataclasses.MISSING
        ]
    known_keys(section or "it", map(str, values), annotations, required)
    prefix = f"{section}." if section else ""
    fields = {}
    for name, value in values.items():
        fields[name] = _from_json(prefix + name, value, annotations[name])
        check_value(prefix + name, fields[name], annotations[name])
    return kind(**fields)


def _from_json(name: str, value: Any, annotation: Any) -> Any:
    """The value with tuples and dataclasses where the annotation has them and JSON cannot."""
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _from_json(name, value, arguments[0])
    if origin in (Union, types.UnionType) and value is not None:
        member = next(member for member in arguments if member is not types.NoneType)
        return _from_json(name, value, member)
    if dataclasses.is_dataclass(annotation) and isinstance(value, Mapping):
        return from_values(name, typing.cast(type, annotation), value)
    if origin in (tuple, Sequence) and isinstance(value, list) and arguments:
        is_row = len(arguments) > 1 and arguments[1] is not Ellipsis
        kinds = arguments if is_row else [arguments[0]] * len(value)
        entries = []
        for number, (entry, entry_kind) in enumerate(zip(value, kinds, strict=False)):
            entries.append(_from_json(f"{name}[{number}]", entry, entry_kind))
        return tuple(entries + value[len(entries) :])
    return value


def shortened(value: Any) -> str:
    """The value as Python writes it, cut after 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_value(name: str, value: Any, annotation: Any) -> None:
    """Checks one value against an annotation.

    Understood are int, float, bool, str, None, Literal, Annotated with a `Range`, dataclasses,
    sequences and mappings of these, and unions of all of them, nested as needed. Values of other
    annotations (arrays, callables, protocols) pass.

    Raises:
        UserError: the value does not fit; the text begins with `name`.
    """
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if annotation in _PLAIN:
        _PLAIN[annotation](name, value)
    elif origin is Annotated:
        check_value(name, value, arguments[0])
        for constraint in arguments[1:]:
            if isinstance(constraint, Range):
                in_range(name, value, constraint)
    elif origin in (Union, types.UnionType):
        _check_union(name, value, arguments)
    elif origin is Literal:
        one_of(name, value, arguments)
    elif isinstance(origin, type) and issubclass(origin, Sequence):
        _check_sequence(name, value, arguments)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        _check_mapping(name, value, arguments)
    elif isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        if not isinstance(value, annotation):
            raise UserError(f"{name} must be a {annotation.__name__}, not {value!r}.")


def _check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise UserError(f"{name} must be true or false, not {value!r}.")


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise UserError(f"{name} must be a text, not {value!r}.")


def _check_none(name: str, value: Any) -> None:
    if value is not None:
        raise UserError(f"{name} must be None, not {value!r}.")


_PLAIN = {
    bool: _check_bool,
    int: whole,
    float: finite,
    str: _check_text,
    types.NoneType: _check_none,
}


def _check_union(name: str, value: Any, members: Sequence[Any]) -> None:
    """Passes if one of the members passes."""
    if value is None and types.NoneType in members:
        return
    members = [member for member in members if member is not types.NoneType]
    if len(members) == 1:
        # The error of the one member is clearer than a list of what would be possible.
        check_value(name, value, members[0])
        return
    for member in members:
        try:
            check_value(name, value, member)
        except UserError:
            continue
        return
    expected = " or ".join(map(_describe, members))
    raise UserError(f"{name} must be {expected}, not {value!r}.")


def _describe(annotation: Any) -> str:
    """What an annotation allows, in words, for the message of a union."""
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is Annotated:
        ranges = [entry.words for entry in arguments[1:] if isinstance(entry, Range)]
        described = _describe(arguments[0])
        return f"{described} ({' and '.join(ranges)})" if ranges else described
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return "a list"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping"
    words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}
    return words.get(annotation) or f"a {getattr(annotation, '__name__', annotation)}"


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


def _check_mapping(name: str, value: Any, arguments: Sequence[Any]) -> None:
    if not isinstance(value, Mapping):
        raise UserError(f"{name} must be a mapping, not {value!r}.")
    if not arguments:
        return
    for key, entry in value.items():
        check_value(f"{name}, key {key!r}", key, arguments[0])
        check_value(f"{name}[{key!r}]", entry, arguments[1])


def _without_numpy(value: Any) -> Any:
    """The value itself, or Python's for a NumPy scalar, also inside of lists and tuples."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (list, tuple):
        plain = [_without_numpy(entry) for entry in value]
        if any(new is not old for new, old in zip(plain, value, strict=True)):
            return type(value)(plain)
    return value


@functools.cache
def _annotations(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


# What a setting means, said once: at its field


@functools.cache
def field_docs(kind: type) -> Mapping[str, str]:
    """The one description of each field of a dataclass: the text below it.

    Flags, configs and docs take their words from here. A text is a string literal that follows the
    field, as Sphinx and editors show it. Fields of base classes are included; a field that is
    declared again keeps the text of the base class unless it has its own. The source is read and
    parsed at the first call only. A class without source, as in an interactive session, has no
    texts.
    """
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= _own_field_docs(base)
    return types.MappingProxyType(docs)


def _own_field_docs(kind: type) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError):
        return {}
    docs = {}
    body = tree.body[0].body  # type: ignore[attr-defined]
    for field, text in itertools.pairwise(body):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            docs[field.target.id] = " ".join(str(text.value.value).split())
    return docs

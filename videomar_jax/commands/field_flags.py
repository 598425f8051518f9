"""Flags generated from a dataclass: one for each field, described by the text below the field."""

import dataclasses
import types
import typing
from collections.abc import Collection, Sequence
from typing import Any, Literal

from absl import flags

from videomar_jax.checks import field_docs

flags.disclaim_key_flags()  # the flags belong to the command that asks for them


class FieldFlags:
    """One flag for each field of a dataclass; a flag that is not given leaves the field alone.

    bool, int, float, str and Literal become flags of that type; a Sequence is written A,B, and
    tuple[str, ...] by repeating the flag. Fields of other types get no flag.
    """

    def __init__(
        self,
        kind: type,
        names: Collection[str] | None = None,
        *,
        show_defaults: bool = True,
        zero_is_none: bool = False,
        flag_values: flags.FlagValues = flags.FLAGS,
    ):
        """Defines the flags.

        Args:
            kind: a dataclass with a string literal below each field.
            names: the fields that get a flag; None: all.
            show_defaults: write a field's default into its help.
            zero_is_none: 0 means None where a whole number may be None.
            flag_values: where the flags are defined; that of the process unless in tests.
        """
        docs, hints = field_docs(kind), typing.get_type_hints(kind)
        self._optional: set[str] = set()
        self._holders: dict[str, flags.FlagHolder] = {}
        for field in dataclasses.fields(kind):
            if names is not None and field.name not in names:
                continue
            text = docs.get(field.name, "")
            if show_defaults and field.default not in _SELF_EVIDENT:
                default = field.default
                written = ",".join(map(str, default)) if isinstance(default, tuple) else default
                text = f"{text} (default: {written})"
            kind_of_value = _without_none(hints[field.name])
            if zero_is_none and kind_of_value is int and hints[field.name] is not int:
                self._optional.add(field.name)
                text = f"{text} Here 0 means None."
            holder = _define(field.name, kind_of_value, text, flag_values)
            if holder is not None:
                self._holders[field.name] = holder

    def given(self) -> dict[str, Any]:
        """The values of the flags on the command line, by field."""
        values = {}
        for name, holder in self._holders.items():
            if holder.value is not None:
                values[name] = holder.value
                if name in self._optional and holder.value == 0:
                    values[name] = None
        return values


_SELF_EVIDENT = (dataclasses.MISSING, None, "", False, ())
_DEFINE = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


class _Numbers(flags.ListParser):
    """Numbers of one type with commas between them."""

    def __init__(self, kind: type):
        super().__init__()
        self._kind = kind

    def parse(self, argument: str | list) -> list[int | float]:
        return [self._kind(entry) for entry in super().parse(argument)]


def _define(
    name: str, kind: Any, text: str, flag_values: flags.FlagValues
) -> flags.FlagHolder | None:
    """Defines the flag for a field of this type; None if no flag can hold it."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return flags.DEFINE_enum(name, None, list(arguments), text, flag_values=flag_values)
    if kind in _DEFINE:
        return _DEFINE[kind](name, None, text, flag_values=flag_values)
    if origin is tuple and arguments == (str, ...):
        return flags.DEFINE_multi_string(
            name, None, f"{text} May be repeated.", flag_values=flag_values
        )
    if origin is Sequence or origin is tuple:
        parser = flags.ListParser() if arguments[0] is str else _Numbers(arguments[0])
        serializer = flags.ListSerializer(",")
        return flags.DEFINE(
            parser, name, None, text, serializer=serializer, flag_values=flag_values
        )
    return None


def _without_none(annotation: Any) -> Any:
    """The annotation X of `X | None`, and the first of several."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return annotation
    return next(kind for kind in typing.get_args(annotation) if kind is not type(None))

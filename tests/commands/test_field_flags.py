"""Flags come from the fields of a dataclass: types, texts and what is given."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest
from absl import flags

from videomar_jax.checks import Count, field_docs
from videomar_jax.commands.field_flags import FieldFlags
from videomar_jax.inference.requests import JobOptions, Output, RequestFlags
from videomar_jax.parallel.config import AXES, MeshConfig
from videomar_jax.preparation.options import PrepareOptions
from videomar_jax.pretrained.options import ComponentOptions, ExportOptions, ImportOptions
from videomar_jax.sampling.config import SamplingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    count: Count = 3
    """How many."""
    window: Count | None = None
    """How many are seen."""
    scale: float = 0.5
    """A factor."""
    on: bool = False
    """Whether it is on."""
    kind: Literal["a", "b"] = "a"
    """Which of two."""
    name: str | None = None
    """A name."""
    interval: Sequence[float] = (0.0, 1.0)
    """From, to."""
    words: tuple[str, ...] = ()
    """Some words."""
    sizes: Sequence[str] = ("1x2",)
    """Some sizes."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Has no flag."""


def parse(*arguments, **options):
    """What Example's flags are given by these arguments, and the flags."""
    values = flags.FlagValues()
    group = FieldFlags(Example, flag_values=values, **options)
    values(["program", *arguments])
    return group.given(), values


def test_what_is_not_given_is_left_to_the_dataclass():
    given, values = parse()
    assert given == {}
    assert set(values) >= {field.name for field in dataclasses.fields(Example)} - {"settings"}
    assert "settings" not in values, "a mapping cannot be written as a flag"


def test_every_type_is_read():
    given, _ = parse(
        "--count=7",
        "--scale=2",
        "--on",
        "--kind=b",
        "--name=x,y",
        "--interval=0.25,1",
        "--words=one, two",
        "--words=three",
        "--sizes=3x4,5x6",
    )
    assert given == dict(
        count=7,
        scale=2.0,
        on=True,
        kind="b",
        name="x,y",
        interval=[0.25, 1.0],
        words=["one, two", "three"],
        sizes=["3x4", "5x6"],
    )


def test_a_flag_that_is_turned_off_is_given():
    assert parse("--noon")[0] == {"on": False}


def test_zero_means_none_where_asked_for():
    given, values = parse("--window=0", "--count=0", zero_is_none=True)
    assert given == {"window": None, "count": 0}, "count cannot be None"
    assert "0 means None" in values["window"].help


def test_zero_is_a_number_otherwise():
    assert parse("--window=0")[0] == {"window": 0}


@pytest.mark.parametrize("argument", ["--count=1.5", "--interval=a,b", "--kind=c"])
def test_wrong_values_are_errors_of_the_flag(argument):
    with pytest.raises(flags.IllegalFlagValueError, match=argument[2:].split("=")[0]):
        parse(argument)


def test_help_is_the_text_below_the_field_with_its_default():
    _, values = parse()
    assert values["count"].help == "How many. (default: 3)"
    assert values["on"].help == "Whether it is on."
    assert values["sizes"].help == "Some sizes. (default: 1x2)"


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (SamplingConfig, None),
        (MeshConfig, AXES),
        (JobOptions, None),
        (Output, None),
        (RequestFlags, None),
        (PrepareOptions, None),
        (ComponentOptions, None),
        (ImportOptions, None),
        (ExportOptions, None),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_every_field_that_becomes_a_flag_is_described(kind, names):
    fields = names or [field.name for field in dataclasses.fields(kind)]
    assert [name for name in fields if not field_docs(kind).get(name)] == []

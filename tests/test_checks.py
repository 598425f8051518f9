"""The validators, and all settings classes of the package held to them."""

import ast
import dataclasses
import functools
import importlib
import inspect
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pytest

import videomar_jax
from tests.helpers.tiny_model import annotations_off
from tests.helpers.tiny_run import tiny
from videomar_jax import checks
from videomar_jax.checks import (
    BelowOne,
    Count,
    Fraction,
    Natural,
    NonNegative,
    Positive,
    Range,
    UserError,
    at_least,
    check_fields,
    check_value,
    did_you_mean,
    field_docs,
    finite,
    in_range,
    known_keys,
    one_of,
    whole,
)
from videomar_jax.experiment.config import Experiment

NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def _values_reach_our_checks():
    """The tests' import hook would refuse wrong types before the package's own checks see them."""
    with annotations_off():
        yield


# Single values


def test_a_user_error_is_a_value_error():
    assert issubclass(UserError, ValueError), "callers that catch ValueError must go on working"


@pytest.mark.parametrize("value", [0, -3, np.int64(7), 10**400])
def test_whole_numbers_pass(value):
    whole("x", value)


@pytest.mark.parametrize("value", [True, np.True_, 1.0, np.float32(1), "1", None, NAN, [1]])
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(UserError, match=r"^run\.steps must be a whole number, not "):
        whole("run.steps", value)


@pytest.mark.parametrize("value", [0, -1.5, np.float32(2), np.int8(3), 1e308])
def test_finite_numbers_pass(value):
    finite("x", value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (NAN, "a finite number, not nan"),
        (-INF, "a finite number, not -inf"),
        (np.float32(NAN), "a finite number"),
        (10**400, "a finite number"),
        (True, "a number, not True"),
        ("1", "a number, not '1'"),
        (None, "a number, not None"),
        (1j, "a number, not 1j"),
    ],
)
def test_what_is_no_finite_number_is_refused(value, words):
    with pytest.raises(UserError, match=rf"^loss\.weight must be {words}"):
        finite("loss.weight", value)


def test_at_least():
    at_least("x", 3, 3)
    with pytest.raises(UserError, match=r"x must be at least 3, not 2\."):
        at_least("x", 2, 3)
    with pytest.raises(UserError, match=r"x must be a whole number, not 3\.5"):
        at_least("x", 3.5, 3)


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "words"),
    [
        (Range(low=1), [1, 9], [0, -1], "must be at least 1"),
        (Range(low=0), [0, 0.5], [-1e-9], "must not be negative"),
        (Range(low=0, low_open=True), [1e-9], [0, -1], "must be positive"),
        (Range(low=2, low_open=True), [2.1], [2], "must be above 2"),
        (Range(high=2**32), [-5, 2**32], [2**32 + 1], "must be at most 4294967296"),
        (Range(high=0.5, high_open=True), [0.4], [0.5], "must be below 0.5"),
        (Range(low=0, high=1), [0, 1], [-0.1, 1.1], r"must lie in \[0, 1\]"),
        (Range(low=0, high=1, high_open=True), [0], [1], r"must lie in \[0, 1\)"),
        (Range(low=0, high=1, low_open=True), [1], [0], r"must lie in \(0, 1\]"),
    ],
)
def test_ranges_hold_their_ends_and_say_what_they_allow(allowed, inside, outside, words):
    for value in inside:
        in_range("x", value, allowed)
    for value in outside:
        with pytest.raises(UserError, match=rf"^x {words}, not {re.escape(str(value))}\.$"):
            in_range("x", value, allowed)


@pytest.mark.parametrize(
    ("annotation", "inside", "outside"),
    [
        (Count, [1, 7], [0, -1, 1.0]),
        (Natural, [0, 7], [-1, 0.0]),
        (Positive, [1e-9, 3], [0, -1.0, INF]),
        (NonNegative, [0, 0.5], [-0.1, NAN]),
        (Fraction, [0, 1, 0.5], [-0.1, 1.1]),
        (BelowOne, [0, 0.99], [1, 1.0, -0.1]),
    ],
)
def test_the_named_numbers_are_what_their_names_say(annotation, inside, outside):
    for value in inside:
        check_value("x", value, annotation)
    for value in outside:
        with pytest.raises(UserError, match=r"^x must"):
            check_value("x", value, annotation)


def test_one_of_compares_types_too():
    one_of("x", "heun", ("euler", "heun"))
    one_of("x", 2, (1, 2))
    one_of("x", None, ("a", None))
    for value, choices in [(True, (1, 2)), (1.0, (1, 2)), (1, (True, False)), ([], ("a",))]:
        with pytest.raises(UserError, match=f"x is {re.escape(repr(value))}; it may be one of"):
            one_of("x", value, choices)


def test_a_misspelt_choice_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"'hen'; .* 'euler', 'heun'\. Did you mean 'heun'\?$"):
        one_of("sampling.head_solver", "hen", ("euler", "heun"))
    assert did_you_mean("ADAMW", ["adamw", "muon"]) == " Did you mean 'adamw'?"
    assert did_you_mean("zzz", ["adamw", "muon"]) == ""
    assert did_you_mean(2.5, ["2", 2]) == "", "numbers have no spelling"


def test_unknown_and_missing_keys_are_named():
    known_keys("model", ["width", "depth"], ["depth", "width", "heads"], ["depth"])
    with pytest.raises(UserError, match=r"Unknown key 'widht' in model\. Did you mean 'width'\?"):
        known_keys("model", ["widht"], ["depth", "width"])
    with pytest.raises(UserError, match=r"Unknown key 'zzz' in model\. Known: depth, width\."):
        known_keys("model", ["zzz"], ["width", "depth"])
    with pytest.raises(UserError, match=r"model lacks depth, width\."):
        known_keys("model", iter(["heads"]), ["depth", "width", "heads"], ["width", "depth"])


# Annotations


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int = 1


FITTING = [
    (int, 3),
    (float, 3),
    (float, 0.5),
    (bool, True),
    (str, ""),
    (type(None), None),
    (Literal["a", 2], 2),
    (Count | None, None),
    (Count | None, 1),
    (Count | Literal["all"], "all"),
    (Annotated[Count | None, "a note"], 4),
    (tuple[int, ...], ()),
    (tuple[int, ...], [1, 2]),
    (tuple[int, str], (1, "a")),
    (Sequence[tuple[int, int]] | None, ((1, 2), (3, 4))),
    (Sequence, [object()]),
    (Mapping[str, NonNegative], {"a": 0.5}),
    (Mapping[str, Sequence[Count]] | None, {"a": [1]}),
    (Inner, Inner()),
    (Inner | None, None),
    (Any, object()),
    (Path, object()),  # not a kind that is checked
]


@pytest.mark.parametrize(("annotation", "value"), FITTING)
def test_fitting_values_pass(annotation, value):
    check_value("x", value, annotation)


MISFITS = [
    (int, None, "x must be a whole number, not None."),
    (bool, 1, "x must be true or false, not 1."),
    (bool, "yes", "x must be true or false, not 'yes'."),
    (str, 3, "x must be a text, not 3."),
    (str, None, "x must be a text, not None."),
    (type(None), 0, "x must be None, not 0."),
    (Count | None, 0, "x must be at least 1, not 0."),
    (Count | None, "all", "x must be a whole number, not 'all'."),
    (Count | Literal["all"], 0, "x must be a whole number (at least 1) or 'all', not 0."),
    (
        int | Sequence[int] | Mapping[str, int] | None,
        2.5,
        "x must be a whole number or a list or a mapping, not 2.5.",
    ),
    (Annotated[Count | None, "a note"], True, "x must be a whole number, not True."),
    (tuple[int, ...], 3, "x must be a list, not 3."),
    (tuple[str, ...], "abc", "x must be a list, not 'abc'."),
    (tuple[int, ...], (1, 2.5), "x[1] must be a whole number, not 2.5."),
    (tuple[int, str], (1,), "x must have 2 entries, not (1,)."),
    (Sequence[tuple[Count, Count]], [(1, 2), (3, 0)], "x[1][1] must be at least 1, not 0."),
    (Mapping[str, int], [1], "x must be a mapping, not [1]."),
    (Mapping[str, int], {"a": 0.5}, "x['a'] must be a whole number, not 0.5."),
    (Mapping[str, int], {1: 1}, "x, key 1 must be a text, not 1."),
    (Inner, 3, "x must be a Inner, not 3."),
    (Inner | None, {"width": 1}, "x must be a Inner, not {'width': 1}."),
]


@pytest.mark.parametrize(("annotation", "value", "text"), MISFITS)
def test_misfits_are_refused_by_name_and_place(annotation, value, text):
    with pytest.raises(UserError) as caught:
        check_value("x", value, annotation)
    assert str(caught.value) == text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    name = "not a field"
    kind: ClassVar[str] = "not a setting"
    steps: Count = 4
    """Steps of
    a frame."""
    rate: NonNegative = 0.5
    """The rate."""
    sizes: Sequence[tuple[int, int]] = ()
    flag: bool = False
    "Whether."
    derived: int = dataclasses.field(init=False, default="anything")
    """Not given by the user."""

    def __post_init__(self):
        check_fields("settings", self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class More(Settings):
    rate: Positive = 1.0
    flag: bool = True
    """Another text."""
    extra: "Count | None" = None
    """Extra."""


class Plain:
    hidden: int = 3
    """Of no dataclass."""


@dataclasses.dataclass
class Mixed(Plain):
    shown: int = 3
    """Of a dataclass."""


def test_fields_are_checked_with_those_of_base_classes():
    Settings(steps=3, rate=0)
    with pytest.raises(UserError, match=r"settings\.steps must be at least 1, not 0"):
        More(steps=0)
    with pytest.raises(UserError, match=r"settings\.rate must be positive, not 0"):
        More(rate=0)
    with pytest.raises(UserError, match=r"settings\.extra must be a whole number, not 'x'"):
        More(extra="x")


def test_a_section_without_a_name_leaves_the_field_alone():
    @dataclasses.dataclass
    class Bare:
        fps: Positive

        def __post_init__(self):
            check_fields("", self)

    with pytest.raises(UserError, match=r"^fps must be positive, not 0\.$"):
        Bare(0)


def test_numpy_scalars_become_plain_numbers():
    given = Settings(
        steps=np.int64(3),
        rate=np.float32(0.25),
        sizes=((np.int32(4), 5), [np.int8(6), 7]),
        flag=np.True_,
    )
    assert json.loads(json.dumps(dataclasses.asdict(given)))["sizes"] == [[4, 5], [6, 7]]
    assert given == Settings(steps=3, rate=0.25, sizes=((4, 5), [6, 7]), flag=True)
    assert [type(value) for value in (given.steps, given.rate, given.flag)] == [int, float, bool]
    sizes = ((1, 2),)
    assert Settings(sizes=sizes).sizes is sizes, "plain values stay the very same objects"
    with pytest.raises(UserError, match="steps"):
        Settings(steps=np.float64(3))
    with pytest.raises(UserError, match="steps"):
        Settings(steps=np.True_)
    with pytest.raises(UserError, match="rate"):
        Settings(rate=np.array(0.5))


# The texts of fields


def test_field_docs_are_the_texts_below_the_fields():
    assert field_docs(Settings) == {
        "steps": "Steps of a frame.",
        "rate": "The rate.",
        "flag": "Whether.",
        "derived": "Not given by the user.",
    }


def test_field_docs_are_inherited_and_may_be_written_anew():
    docs = field_docs(More)
    assert docs["steps"] == "Steps of a frame." and docs["rate"] == "The rate."
    assert docs["flag"] == "Another text." and docs["extra"] == "Extra."
    assert field_docs(Settings)["flag"] == "Whether.", "the base class keeps its own"
    assert field_docs(Mixed) == {"shown": "Of a dataclass."}


def test_a_class_without_source_has_no_texts():
    made = dataclasses.make_dataclass("Made", [("steps", int, 3)])
    assert field_docs(made) == {}


def test_sources_are_parsed_once_and_only_when_asked(monkeypatch):
    calls = []
    getsource = inspect.getsource
    monkeypatch.setattr(
        checks.inspect, "getsource", lambda kind: (calls.append(kind), getsource(kind))[1]
    )
    field_docs.cache_clear()
    Settings(steps=3)
    assert calls == [], "making and checking settings must not read any source"
    first = field_docs(More)
    assert calls == [Settings, More] and field_docs(More) is first and len(calls) == 2
    with pytest.raises(TypeError):
        first["steps"] = "changed"


# All settings classes of the package

ROOT = Path(videomar_jax.__file__).parent
ENDINGS = ("Config", "Options", "Settings")


# Classes of such a name that the package makes itself, from settings that were checked before.
INTERNAL = ("CaseSettings", "StaticConfig", "WorkerOptions")


def is_settings(node: ast.ClassDef) -> bool:
    """By its name, or because it checks its fields."""
    if not any("dataclass" in ast.unparse(entry) for entry in node.decorator_list):
        return False
    if "check_fields(" in ast.unparse(node):
        return True
    return node.name.endswith(ENDINGS) and node.name not in INTERNAL


@functools.cache
def settings_classes() -> dict[str, type]:
    """All settings classes of the package, by "module.Class"."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(("videomar_jax", *path.relative_to(ROOT).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and is_settings(node):
                found[f"{module}.{node.name}"] = getattr(importlib.import_module(module), node.name)
    return found


# Values of required fields, for classes that the quick start does not make.
EXAMPLES = {
    "Cutting": dict(fps=12.0, lengths=(9,), sizes=((16, 24),)),
    "ClipShape": dict(num_frames=9, height=16, width=24),
    "ClipSizes": dict(num_frames=9, height=16, width=24, fps=8.0),
    "GenerationRecord": dict(
        prompt="a ball",
        prompt_tokens_cut=0,
        seed=3,
        image="ball.png",
        image_sha256="",
        given_frames=None,
        fit="resize",
        num_frames=9,
        frames=9,
        height=16,
        width=24,
        fps=12.0,
        checkpoint="run",
        step=5,
        weights="ema",
        checkpoint_sha256={},
        sampling={},
        batch_size=2,
        place=1,
        files=("ball.mp4",),
        first_frame_s=None,
        seconds=1.5,
        versions={},
        device="cpu",
    ),
    "HashedTextEncoder": dict(max_tokens=8, width=16),
    "ComparisonOptions": dict(generated="made", reference="true", i3d="i3d.ckpt", lpips="lpips"),
    "Scenes": dict(seed=0, length=4, split="train"),
    "Shapes": dict(seed=0, length=4, split="train", bounce=True),
    "SuiteOptions": dict(suite="vbench_i2v", info="info.json", images="crop"),
}

LATER = {  # classes that do not check or describe their fields yet
    "CosmosConfig",
    "Qwen2Config",
    "Recipe",
    "Settings",
    "SpeedOptions",
}


def marks(name: str) -> list[pytest.MarkDecorator]:
    later = name.rpartition(".")[2] in LATER
    return [pytest.mark.xfail(reason="not converted yet", strict=False)] if later else []


def parts(value: Any) -> list[Any]:
    """A dataclass and all dataclasses inside it."""
    found = [value] if dataclasses.is_dataclass(value) else []
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, list | tuple):
        for entry in value:
            found += parts(entry)
    return found


@functools.cache
def examples() -> dict[type, Any]:
    """A good instance of each settings class that occurs in the quick start."""
    with annotations_off():
        return {type(part): part for part in parts(Experiment.from_config(tiny()))}


def example(kind: type) -> Any:
    if kind in examples():
        return examples()[kind]
    required = EXAMPLES.get(kind.__name__, {})
    try:
        return kind(**required)
    except TypeError as error:
        pytest.fail(f"{kind.__name__} needs an entry in EXAMPLES of tests/test_checks.py: {error}")


def scalar(annotation: Any) -> tuple[Any, bool]:
    """(int, float, bool, str or Literal, whether None is allowed), or (None, ...) for others."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return scalar(arguments[0])
    if origin in (typing.Union, types.UnionType):
        kinds = [scalar(member)[0] for member in arguments if member is not types.NoneType]
        return (kinds[0] if len(kinds) == 1 else None), types.NoneType in arguments
    if origin is Literal:
        return Literal, None in arguments
    return (annotation if annotation in (int, float, bool, str) else None), False


WRONG = {
    int: ["text", True, 2.5, 3.0, NAN, INF, [1]],
    float: ["text", True, NAN, INF, -INF, [1.0]],
    bool: ["text", 1, 0, 1.0],
    str: [3, True, 2.5, [1], b"bytes"],
    Literal: ["nonsense", 2.5, [1], NAN],
}

# Values of another type that a field takes on purpose.
ALSO_TAKEN = {("SamplingConfig", "head_steps"): [3]}

FIELDS = [
    pytest.param(
        kind,
        field,
        marks=marks(name),
        id=f"{name.removeprefix('videomar_jax.')}.{field}",
    )
    for name, kind in settings_classes().items()
    for field in (field.name for field in dataclasses.fields(kind) if field.init)
]


@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_every_setting_refuses_values_of_another_type(kind, field):
    hints = typing.get_type_hints(kind, include_extras=True)
    wanted, optional = scalar(hints[field])
    if wanted is None:
        pytest.skip(f"{hints[field]} is no scalar")
    good = example(kind)
    taken = ALSO_TAKEN.get((kind.__name__, field), [])
    for wrong in WRONG[wanted] + ([] if optional else [None]):
        if wrong in taken:
            continue
        with pytest.raises(UserError) as caught:
            dataclasses.replace(good, **{field: wrong})
            pytest.fail(f"{kind.__name__}({field}={wrong!r}) is accepted")
        assert field in str(caught.value), f"the error of {field}={wrong!r} does not name the field"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=marks(name)) for name in settings_classes()]
)
def test_every_setting_is_described_at_its_field(name):
    kind = settings_classes()[name]
    missing = [
        field.name
        for field in dataclasses.fields(kind)
        if field.init and not field_docs(kind).get(field.name)
    ]
    assert not missing, f"{kind.__name__}: no text below {', '.join(missing)}"


def test_the_scan_finds_what_it_must():
    names = {kind.__name__ for kind in settings_classes().values()}
    assert names >= {
        "ModelConfig",
        "SamplingConfig",
        "LossConfig",
        "OptimizerConfig",
        "RunConfig",
        "MeshConfig",
        "DataConfig",
        "TokenizerConfig",
        "TextConfig",
        "EvaluationConfig",
    }


SEEN_ACCEPTED = [
    ("ModelConfig", dict(rope_base=-1)),
    ("ModelConfig", dict(rope_base=0)),
    ("ModelConfig", dict(width=1536.0)),
    ("SamplingConfig", dict(steps=4.5)),
    ("SamplingConfig", dict(steps=True)),
    ("LossConfig", dict(draws_per_token=2.5)),
    ("OptimizerConfig", dict(weight_decay=NAN, schedule="linear")),
    ("OptimizerConfig", dict(schedule="linear")),
    ("TokenizerConfig", dict(patches="nonsense")),
]


@pytest.mark.parametrize(
    ("name", "changes"), [pytest.param(*case, marks=marks(case[0])) for case in SEEN_ACCEPTED]
)
def test_values_that_earlier_versions_accepted_are_refused(name, changes):
    (kind,) = [kind for kind in settings_classes().values() if kind.__name__ == name]
    with pytest.raises(UserError, match=next(iter(changes))):
        dataclasses.replace(example(kind), **changes)

"""Settings that make no sense are refused by name; presets are changes that every head takes."""

import dataclasses
import json

import pytest

from tests.helpers.tiny_model import annotations_off, tiny_config
from videomar_jax.checks import UserError, field_docs
from videomar_jax.diffusion.plans import plan_steps
from videomar_jax.sampling.config import PRESETS, HeadSteps, SamplingConfig, with_preset
from videomar_jax.sampling.schedules import head_step_names, reveal_plan


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("steps", -3),
        ("steps", 4.5),
        ("steps", True),
        ("steps", "4"),
        ("head_steps", 4.5),
        ("head_steps", True),
        ("head_steps", None),
        ("clip_first", 1),
        ("keep_first", "yes"),
        ("temperature", "1"),
        ("temperature", True),
        ("latent_clip", float("inf")),
        ("guidance", -0.1),
        ("guidance", float("nan")),
        ("guidance", float("inf")),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("latent_clip", -2.0),
        ("guidance_schedule", "cosine"),
        ("temperature_law", "code"),
        ("token_dtype", "float16"),
        ("dtype", "float16"),
        ("head_dtype", "half"),
        ("head_solver", "midpoint"),
        ("first_frame_position", "relative"),
        ("spatial_rope_scaling", "yarn"),
        ("temporal_rope_scaling", "pi"),
        ("window", 0),
        ("window", -1),
        ("window", 1),
        ("window", 4.0),
        ("guidance_interval", (0.5, 0.5)),
        ("guidance_interval", (0.8, 0.2)),
        ("guidance_interval", (-0.1, 1.0)),
        ("guidance_interval", (0.0, 1.1)),
        ("guidance_interval", (0.5,)),
        ("guidance_interval", (0.0, float("nan"))),
        ("guidance_interval", ("0", "1")),
        ("guidance_interval", 0.5),
    ],
)
def test_a_wrong_value_is_refused_by_name(field, value):
    with annotations_off(), pytest.raises(UserError, match=rf"sampling\.{field}\b"):
        SamplingConfig(**{field: value})


@pytest.mark.parametrize(
    "steps",
    ["0", "-5", "many", "10-0", "0-5", "5-", "1.5", "ddim", "ddim0", "5--3", "10-5-2", "3,0"],
)
def test_head_steps_that_are_no_steps(steps):
    with pytest.raises(UserError, match=r"sampling\.head_steps"):
        SamplingConfig(head_steps=steps)


@pytest.mark.parametrize(
    ("text", "parsed", "most"),
    [
        ("100", HeadSteps("100"), 100),
        ("ddim50", HeadSteps("ddim50"), 50),
        ("25,25,50", HeadSteps("25,25,50"), 100),
        ("50-5", HeadSteps("50", 5), 50),
        ("5-9", HeadSteps("5", 9), 9),
        (" 8 ", HeadSteps("8"), 8),
        ("", HeadSteps(""), 1000),
    ],
)
def test_head_steps_in_every_form(text, parsed, most):
    config = SamplingConfig(head_steps=text)
    assert config.head_steps == str(parsed) == text.strip()
    assert config.parsed_head_steps == parsed and parsed.most(1000) == most


def test_head_steps_may_be_a_number():
    with annotations_off():
        assert SamplingConfig(head_steps=25) == SamplingConfig(head_steps="25")


def test_every_setting_is_described_at_its_field():
    """The flags of `sample` take their help from these texts."""
    docs = field_docs(SamplingConfig)
    for field in dataclasses.fields(SamplingConfig):
        assert docs.get(field.name, "").endswith("."), f"no description of {field.name}"


def test_a_window_of_one_frame_is_the_last_one_unless_the_first_is_kept():
    assert SamplingConfig(window=1, keep_first=False).window == 1
    with pytest.raises(UserError, match=r"at least 2 when frame 0 is kept, not 1"):
        SamplingConfig(window=1)


def test_a_config_survives_json():
    config = SamplingConfig(guidance_interval=(0.2, 0.8), window=5)
    assert SamplingConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
    assert hash(SamplingConfig(guidance_interval=[0.2, 0.8])) == hash(
        SamplingConfig(guidance_interval=(0.2, 0.8))
    )


def test_an_interval_between_two_steps_is_refused():
    with pytest.raises(UserError, match="holds none of the 4 reveal steps"):
        reveal_plan(64, SamplingConfig(steps=4, guidance_interval=(0.9, 1.0)))


@pytest.mark.parametrize("head", ["ddpm", "flow"])
@pytest.mark.parametrize("name", ["quality", "balanced", "fast"])
def test_presets_go_with_every_head_and_size(name, head):
    config = with_preset(SamplingConfig(temperature=0.7), name, head)
    assert config.temperature == 0.7, "a preset leaves what it does not name"
    names = head_step_names(config, config.steps)
    plan_steps(tiny_config(head=head).process, names, config.head_solver)
    for tokens in (16, 64, 1440):
        assert reveal_plan(tokens, config).count.sum() == tokens


def test_presets_are_ordered_by_their_work():
    for head in ("ddpm", "flow"):
        work = []
        for name in ("quality", "balanced", "fast"):
            plan = reveal_plan(1440, with_preset(SamplingConfig(), name, head))
            work.append(len(plan.start) + plan.guided.sum())
        assert work[0] > work[1] > work[2], head
    assert set(PRESETS) == {"quality", "balanced", "fast"}


def test_an_unknown_preset_is_answered_with_those_there_are():
    with pytest.raises(
        UserError, match="no sampling preset 'best'; there are quality, balanced, fast"
    ):
        with_preset(SamplingConfig(), "best", "flow")


def test_a_preset_for_speed_never_asks_for_more_than_the_model_does_by_itself():
    own = SamplingConfig(steps=4, head_steps="4", guidance=1.0)
    for name in ("balanced", "fast"):
        for head in ("ddpm", "flow"):
            config = with_preset(own, name, head)
            assert (config.steps, config.head_steps) == (4, "4"), (name, head)
    assert with_preset(own, "quality", "flow").head_steps == "25"
    assert with_preset(SamplingConfig(steps=64, head_steps="5"), "fast", "ddpm").head_steps == "5"
    for few, kept in [
        ("ddim10", "ddim10"),
        ("3-2", "3-2"),
        ("10,10,10", "25-5"),
        ("", "25-5"),
        ("26", "25-5"),
    ]:
        assert (
            with_preset(SamplingConfig(steps=64, head_steps=few), "fast", "ddpm").head_steps == kept
        ), few


def test_a_preset_for_speed_guides_the_only_step():
    config = with_preset(SamplingConfig(steps=1, guidance=3.0), "fast", "flow")
    assert reveal_plan(16, config).guided.tolist() == [True]

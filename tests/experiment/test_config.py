"""The config files agree with the dataclasses they become, and an impossible value is a clear error
before anything runs."""

import ast
import dataclasses

import numpy as np
import pytest

from tests.helpers.tiny_run import CONFIGS, load_config, tiny
from videomar_jax.checks import UserError
from videomar_jax.data.sources import ClipShape
from videomar_jax.experiment.config import Experiment
from videomar_jax.experiment.sections import (
    DataConfig,
    EvaluationConfig,
    TextConfig,
    TokenizerConfig,
)
from videomar_jax.models.config import PRESETS, ModelConfig
from videomar_jax.parallel.config import MeshConfig
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.training.config import LossConfig, OptimizerConfig, RunConfig
from videomar_jax.training.stages import ROW

SECTIONS = {
    "data": DataConfig,
    "tokenizer": TokenizerConfig,
    "text": TextConfig,
    "loss": LossConfig,
    "optimizer": OptimizerConfig,
    "mesh": MeshConfig,
    "run": RunConfig,
    "sampling": SamplingConfig,
    "evaluation": EvaluationConfig,
}


def fields(kind):
    return {field.name for field in dataclasses.fields(kind)}


def row(**changes):
    return (
        dict(name="a", num_frames=3, height=16, width=16, batch_size=2, steps=4, learning_rate=1e-3)
        | changes
    )


def mixed(**changes):
    """A row of images and of videos of two sizes, with changes to the latter."""
    videos = dict(num_frames=3, sizes=((16, 24), (24, 16)), batch_size=2, weight=0.5) | changes
    images = dict(num_frames=1, height=24, width=24, batch_size=4)
    return dict(name="a", mix=(images, videos), steps=4, learning_rate=1e-3)


# The files


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_configs_import_little(file):
    """They are data: base.py takes the defaults from the package, the others change base.py."""
    allowed = {"ml_collections", "videomar_jax.experiment.config_files"}
    if file.stem == "base":
        allowed = {"ml_collections", "videomar_jax.experiment.settings"}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {node.module}
        else:
            continue
        assert names <= allowed, f"{file.name} imports {names - allowed}"


def test_every_field_of_the_model_can_be_set():
    assert set(load_config("base").model.keys()) == fields(ModelConfig) | {"preset"}


@pytest.mark.parametrize("section", SECTIONS)
def test_base_has_every_setting(section):
    assert set(load_config("base")[section].keys()) == fields(SECTIONS[section])


def test_base_has_no_other_sections():
    config = load_config("base").to_dict()
    assert {name for name, value in config.items() if isinstance(value, dict)} == {
        *SECTIONS,
        "model",
    }


@pytest.mark.parametrize("variant", ["", "videos", "scenes", "tiny"])
def test_quickstart_is_accepted(variant):
    config = load_config("quickstart", variant, data=dict(path="clips"))
    made = Experiment.from_config(config)
    assert made.recipe.curriculum.total_steps == sum(
        stage["steps"] for stage in config.to_dict()["curriculum"]
    )
    kinds = {"videos": "videos", "scenes": "scenes"}
    assert made.data.kind == kinds.get(variant, "shapes")
    assert made.final_shape.num_frames == made.recipe.curriculum.stages[-1].num_frames


def test_curriculum_rows_have_the_keys_of_a_stage():
    for stage in load_config("quickstart").to_dict()["curriculum"]:
        assert set(stage) == set(ROW)


@pytest.mark.parametrize("name", ["base", "quickstart"])
def test_an_unknown_variant_is_named(name):
    with pytest.raises(ValueError, match="tinny"):
        load_config(name, "tinny")


def test_base_alone_is_the_papers_model_but_no_run():
    config = load_config("base")
    with pytest.raises(ValueError, match=r"no curriculum.*configs/quickstart\.py"):
        Experiment.from_config(config)
    config.curriculum = (row(steps=200),)
    made = Experiment.from_config(config)
    assert made.recipe.model == PRESETS["videomar_1p4b"] == ModelConfig()
    assert made.recipe.loss == LossConfig() and made.sampling == SamplingConfig()


def test_a_plain_dict_gives_the_same_as_a_config_dict():
    assert Experiment.from_config(tiny().to_dict()) == Experiment.from_config(tiny())


def test_overrides_reach_the_model_and_leave_the_preset():
    made = Experiment.from_config(tiny(model=dict(width=64, num_heads=4))).recipe.model
    assert (made.width, made.num_heads, made.depth) == (64, 4, PRESETS["tiny"].depth)
    assert PRESETS["tiny"].width == 32


# Impossible values


@pytest.mark.parametrize("section", [*SECTIONS, "model"])
def test_an_unknown_key_in_a_section(section):
    values = tiny().to_dict()
    key = sorted(values[section])[-1]
    values[section][key + "x"] = 1
    with pytest.raises(ValueError, match=f"Unknown key '{key}x' in {section}.*mean '{key}'"):
        Experiment.from_config(values)


def test_an_unknown_section():
    values = tiny().to_dict() | {"optimiser": {}}
    with pytest.raises(ValueError, match=r"Unknown key 'optimiser' in config.*mean 'optimizer'"):
        Experiment.from_config(values)


def test_a_key_like_no_other_is_answered_with_all():
    values = tiny().to_dict()
    values["text"]["zzz"] = 1
    with pytest.raises(ValueError, match=r"Unknown key 'zzz' in text\. Known: .*tokens, width"):
        Experiment.from_config(values)


def test_what_is_missing_is_named():
    values = tiny().to_dict()
    del values["model"]["preset"]
    with pytest.raises(ValueError, match="model lacks preset"):
        Experiment.from_config(values)
    values = tiny().to_dict()
    del values["data"]
    with pytest.raises(ValueError, match="config lacks data"):
        Experiment.from_config(values)


def test_a_key_that_is_left_out_has_its_default():
    values = tiny().to_dict()
    del values["data"]["fps"], values["evaluation"]["clips"]
    made = Experiment.from_config(values)
    assert made.data.fps == 12.0 and made.evaluation.clips == 64


def test_a_section_that_is_a_value():
    with pytest.raises(ValueError, match=r"config.loss must be a section with keys, not 3"):
        Experiment.from_config(tiny().to_dict() | {"loss": 3})


@pytest.mark.parametrize(
    ("section", "change", "words"),
    [
        ("seed", -1, "seed.*-1"),
        ("seed", 2**32, "seed.*4294967296"),
        ("model", dict(preset="large"), r"model\.preset is 'large'.*'tiny'"),
        ("model", dict(width=30), r"rope_split.*head width that is a multiple of 8"),
        ("model", dict(depth=0), r"model\.depth must lie in \[1, "),
        ("data", dict(kind="film"), r"data\.kind is 'film'.*'videos'"),
        ("data", dict(kind="videos", path=""), r"folder of clips with --config\.data\.path=DIR"),
        (
            "data",
            dict(kind="shards", path=""),
            r"folder of prepared clips with --config\.data\.path=DIR",
        ),
        ("data", dict(kind="tfds", path=""), r"dataset with --config\.data\.path=NAME"),
        (
            "data",
            dict(kind="tfds", path="x", split="train[:9%]"),
            r"'train\[:9%\]'.*--config\.data\.held_out=SPLIT",
        ),
        ("data", dict(holdout=0.0), r"data\.holdout must lie in \(0, 1\), not 0\.0"),
        ("tokenizer", dict(kind="vae"), r"tokenizer\.kind is 'vae'.*'pca'"),
        ("data", dict(fps=0.0), r"data\.fps must be positive, not 0\.0"),
        ("data", dict(threads=-1), r"data\.threads must not be negative"),
        ("tokenizer", dict(patch=0), r"tokenizer\.patch must be at least 1"),
        ("tokenizer", dict(whitening=2.0), r"tokenizer\.whitening must lie in \[0, 1\]"),
        ("tokenizer", dict(kind="cosmos", path=""), r"--config\.tokenizer\.path=PLACE"),
        ("text", dict(kind="qwen2", path=""), r"--config\.text\.path=PLACE"),
        ("text", dict(kind="clip"), r"text\.kind is 'clip'.*'hashed'"),
        ("text", dict(tokens=0), r"text\.tokens must be at least 1"),
        ("loss", dict(mask_rate_min=1.0), r"loss\.mask_rate_min must lie in \[0, 1\)"),
        ("optimizer", dict(warmup_steps=6), "warmup_steps is 6, .*less than the 6 steps"),
        ("run", dict(checkpoint_every=0), r"run\.checkpoint_every must be at least 1"),
        ("run", dict(sample_every=-1), r"run\.sample_every must not be negative"),
        ("evaluation", dict(clips=0), r"evaluation\.clips must be at least 1"),
        (
            "sampling",
            dict(temperature=-0.5),
            r"sampling\.temperature must not be negative, not -0\.5",
        ),
        (
            "sampling",
            dict(guidance=-1.0),
            r"sampling\.guidance must not be negative, not -1\.0",
        ),
        (
            "sampling",
            dict(latent_clip=-1.0),
            r"sampling\.latent_clip must not be negative, not -1\.0",
        ),
        ("sampling", dict(steps=0), r"sampling\.steps must be at least 1"),
        ("sampling", dict(head_steps="many"), "head.*'many'"),
        ("sampling", dict(head_steps="0"), "at least 1, not '0'"),
    ],
    ids=str,
)
def test_an_impossible_value(section, change, words):
    with pytest.raises(ValueError, match=words):
        Experiment.from_config(tiny(**{section: change}))


@pytest.mark.parametrize(
    ("config", "field", "value", "words"),
    [
        (TokenizerConfig(), "patches", "nonsense", r"tokenizer\.patches is 'nonsense'.*'haar'"),
        (TokenizerConfig(), "channels", 4.5, r"tokenizer\.channels must be a whole number, not 4"),
        (TextConfig(), "padding_side", "up", r"text\.padding_side is 'up'.*'right'"),
        (EvaluationConfig(), "clips", True, r"evaluation\.clips must be a whole number, not True"),
        (DataConfig(), "fps", float("nan"), r"data\.fps must be a finite number"),
        (ModelConfig(), "head", "gan", r"model\.head is 'gan'.*'ddpm', 'flow'"),
        (ModelConfig(), "dtype", "float16", r"model\.dtype is 'float16'.*'bfloat16'"),
        (
            LossConfig(),
            "supervise",
            "two",
            r"loss\.supervise is 'two'.*'one_frame', 'all_frames'",
        ),
        (
            LossConfig(),
            "normaliser",
            "mean",
            r"loss\.normaliser is 'mean'.*'all_masked', 'supervised'",
        ),
        (OptimizerConfig(), "name", "sgd", r"optimizer\.name is 'sgd'.*'adamw', 'muon'"),
        (
            SamplingConfig(),
            "temperature_law",
            "cubic",
            r"sampling\.temperature_law is 'cubic'.*'paper'",
        ),
        (
            SamplingConfig(),
            "guidance_schedule",
            "cubic",
            r"sampling\.guidance_schedule is 'cubic'.*'linear'",
        ),
    ],
    ids=str,
)
def test_values_that_annotations_refuse(config, field, value, words):
    """What a user reads. In tests a check of all annotations would raise first, so the dataclass is
    changed behind its back."""
    object.__setattr__(config, field, value)
    with pytest.raises(ValueError, match=words):
        config.__post_init__()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            dict(num_frames=4),
            r"Stage 'a': 4 frames are not 1 \+ 2 \* k \(temporal stride\); nearest: 3 or 5",
        ),
        (
            dict(height=18),
            "Stage 'a': height 18 is not a multiple of the spatial stride 4; nearest: 16 or 20",
        ),
        (dict(width=2), "Stage 'a': width 2 is not a multiple of the spatial stride 4; nearest: 4"),
        (dict(num_frames=4, height=18, width=17), "4 frames.*height 18.*width 17"),
        (dict(batch_size=0), "Stage 'a': batch_size must be at least 1, not 0"),
        (dict(learning_rate=0.0), "Stage 'a': learning_rate must be positive"),
        (
            dict(stepz=3),
            r"'stepz' in Curriculum row 1 \('a'\)\. Did you mean 'steps'",
        ),
    ],
    ids=str,
)
def test_an_impossible_curriculum_row(change, words):
    with pytest.raises(ValueError, match=words):
        Experiment.from_config(tiny(curriculum=(row(name="fine"), row(**change))))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            dict(sizes=((16, 24), (24, 18))),
            "Stage 'a': width 18 is not a multiple of the spatial stride 4",
        ),
        (dict(num_frames=4), "Stage 'a': 4 frames are not"),
        (dict(weight=0), r"Curriculum row 0 \('a'\), mix\[1\]: weight must be positive"),
        (dict(wieght=1), r"'wieght' in Curriculum row 0 \('a'\), mix\[1\]"),
    ],
    ids=str,
)
def test_an_impossible_mix(change, words):
    assert (
        len(Experiment.from_config(tiny(curriculum=(mixed(),))).recipe.curriculum.stages[0].shapes)
        == 3
    )
    with pytest.raises(ValueError, match=words):
        Experiment.from_config(tiny(curriculum=(mixed(**change),)))


@pytest.mark.parametrize(
    "path", ["nvidia/Cosmos-0.1-Tokenizer-CV8x16x16", "/w/CV8x16x16/encoder.jit", "CV8x16x16@/w"]
)
def test_a_tokenizer_whose_name_gives_its_strides_is_checked_against_the_curriculum(path):
    cosmos = dict(kind="cosmos", path=path)
    made = Experiment.from_config(tiny(tokenizer=cosmos, curriculum=(row(num_frames=9),)))
    assert made.strides() == (8, 16)
    with pytest.raises(ValueError, match=r"Stage 'a': 3 frames are not 1 \+ 8 \* k"):
        Experiment.from_config(tiny(tokenizer=cosmos, curriculum=(row(),)))
    assert Experiment.from_config(tiny(tokenizer=dict(kind="cosmos", path="/w"))).strides() is None


def test_a_row_without_a_key():
    rows = [row(name="fine"), {key: value for key, value in row().items() if key != "height"}]
    with pytest.raises(ValueError, match=r"Curriculum row 1 \('a'\) lacks height"):
        Experiment.from_config(tiny(curriculum=tuple(rows)))


# The parts


def test_splits_are_of_different_clips():
    made = Experiment.from_config(tiny())
    shape = ClipShape(num_frames=3, height=32, width=32)
    rng = np.random.default_rng(0)
    clips = [
        made.source(split).read(0, rng, shape)["video"].tobytes()
        for split in ("train", "test", "unseen")
    ]
    assert len(set(clips)) == 3


FORECAST = dict(linear_prior=True, forecast=())


def test_an_empty_forecast_is_that_of_the_last_stage():
    config = tiny(model=FORECAST)
    last = config.curriculum[-1]
    side = last["height"] // config.tokenizer.patch
    found = Experiment.from_config(config).recipe.model.forecast
    assert found == (1 + (last["num_frames"] - 1) // 2, side, side)
    of_images = dict(config.to_dict())
    of_images["curriculum"] = (dict(last, num_frames=1),)
    assert Experiment.from_config(of_images).recipe.model.forecast is None


def test_a_forecast_needs_strides_that_are_known():
    cosmos = dict(kind="cosmos", path="someone/renamed")
    with pytest.raises(UserError, match=r"model\.forecast=\(\) needs a tokenizer whose strides"):
        Experiment.from_config(tiny(model=FORECAST, tokenizer=cosmos))

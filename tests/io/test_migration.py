"""Names of earlier versions are read as today's."""

import dataclasses

import pytest

from videomar_jax.io.migration import CHANGED, RENAMED, current, current_config, current_flags
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.training.config import LossConfig

KINDS = {"loss": LossConfig, "sampling": SamplingConfig}


def test_every_new_name_is_a_field_and_no_old_one_is():
    for section, names in RENAMED.items():
        fields = {field.name for field in dataclasses.fields(KINDS[section])}
        assert set(names.values()) <= fields, section
        assert not set(names) & fields, section


def test_every_new_value_is_one_that_the_field_takes():
    for section, keys in CHANGED.items():
        for key, values in keys.items():
            for new in values.values():
                KINDS[section](**{key: new})


def test_a_config_of_an_earlier_version():
    old = {
        "seed": 3,
        "loss": {"frames": "one", "layout": "truncated", "normaliser": "loss_mask"},
        "sampling": {"clip": 2.0, "positions": "absolute", "position_scaling": "ntk", "steps": 4},
    }
    new = {
        "seed": 3,
        "loss": {"supervise": "one_frame", "truncate": True, "normaliser": "supervised"},
        "sampling": {
            "latent_clip": 2.0,
            "first_frame_position": "absolute",
            "spatial_rope_scaling": "ntk",
            "steps": 4,
        },
    }
    assert current_config(old) == new
    assert current_config(new) == new


def test_sections_without_old_names_stay_as_they_are():
    assert current("optimizer", {"name": "muon"}) == {"name": "muon"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--clip=2", "--latent_clip=2"),
        ("--positions=shifted", "--first_frame_position=shifted"),
        ("--frame_scaling", "--temporal_rope_scaling"),
        ("--config.loss.frames=all", "--config.loss.supervise=all_frames"),
        ("--config.loss.layout=truncated", "--config.loss.truncate=True"),
        ("--config.sampling.clip=0", "--config.sampling.latent_clip=0"),
    ],
)
def test_an_old_flag_is_accepted_with_a_line_that_names_the_new_one(old, new):
    arguments, notes = current_flags(["sample", old, "--seed=1"])
    assert arguments == ["sample", new, "--seed=1"]
    assert len(notes) == 1 and old in notes[0] and new in notes[0]


@pytest.mark.parametrize(
    "argument", ["--clip_first", "--config=configs/base.py:clip", "clip", "--config.data.path=clip"]
)
def test_other_arguments_stay_as_they_are(argument):
    assert current_flags([argument]) == ([argument], [])

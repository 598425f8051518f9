"""Each setting is described once, at its field; base.py and docs/settings.md follow from there."""

import dataclasses

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.tiny_run import load_config
from videomar_jax.checks import field_docs
from videomar_jax.experiment.config import KEYS, SECTIONS
from videomar_jax.experiment.data_sources import DATA_KINDS
from videomar_jax.experiment.settings import TOP_LEVEL, default_config, settings_page
from videomar_jax.models.config import ModelConfig


def test_the_page_of_all_settings_is_current():
    made = settings_page()
    kept = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert kept == made, "run `python -m videomar_jax.experiment.settings > docs/settings.md`"


@pytest.mark.parametrize(
    "kind",
    [*SECTIONS.values(), ModelConfig],
    ids=lambda kind: kind.__name__,
)
def test_every_setting_is_described_at_its_field(kind):
    described = {name for name, text in field_docs(kind).items() if text}
    assert {field.name for field in dataclasses.fields(kind)} <= described


def test_every_other_key_is_described():
    assert set(TOP_LEVEL) == {*KEYS} - {*SECTIONS, "model"}
    assert all(kind.facts.description for kind in DATA_KINDS.values())


def test_base_differs_from_the_defaults_in_one_value():
    base, defaults = load_config("base"), default_config()
    base.mesh.data, base.run.lookahead = -1, True  # what `load_config` changes for tests
    assert defaults.optimizer.warmup_steps == 0 and base.optimizer.warmup_steps == 100
    defaults.optimizer.warmup_steps = 100
    assert base.to_dict() == defaults.to_dict()


@pytest.mark.parametrize(
    ("section", "key", "kind"),
    [
        ("model", "width", int),
        ("model", "rope_split", tuple),
        ("model", "rope_base", float),
        ("model", "gate_init", float),
        ("model", "text_mask", bool),
        ("model", "dtype", str),
        ("sampling", "window", int),
    ],
)
def test_a_setting_without_a_value_takes_one_of_its_type(section, key, kind):
    """Else flags could not set it, and a lesser type would pass."""
    config = default_config()
    assert config[section][key] is None and config[section].get_type(key) is kind

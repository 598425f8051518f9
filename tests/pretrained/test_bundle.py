"""A trained model as a folder: everything comes back, from the run or from one of its
checkpoints."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from tests.helpers.tiny_model import annotations_off
from tests.helpers.tiny_run import STEPS, saved_parts, tiny
from tests.helpers.wrong_values import LEFT_OUT, accepted
from videomar_jax.checks import UserError
from videomar_jax.experiment.config import Experiment
from videomar_jax.models.params import abstract_model
from videomar_jax.pretrained.bundle import (
    _ALWAYS,
    load_bundle,
    load_config,
    load_params,
    load_pretrained,
    run_folder,
    save_bundle,
)
from videomar_jax.tokenizers.base import fingerprint


def parameters(pretrained):
    return nnx.to_pure_dict(nnx.state(pretrained.model))


def assert_equal_trees(ours, theirs):
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), ours, theirs
    )


def differ(ours, theirs):
    return any(
        jax.tree.leaves(
            jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), ours, theirs)
        )
    )


def test_the_card_says_what_the_config_said(finished):
    wanted, bundle = Experiment.from_config(tiny()), load_bundle(finished)
    assert (bundle.num_frames, bundle.height, bundle.width, bundle.fps) == (5, 24, 24, 12.0)
    assert bundle.config == wanted.recipe.model and bundle.sampling == wanted.sampling
    assert bundle.text_encoder == wanted.text_encoder()


def test_a_card_comes_back(finished, tmp_path):
    bundle = dataclasses.replace(load_bundle(finished), height=32, fps=7.5)
    save_bundle(bundle, tmp_path)
    again = load_bundle(tmp_path)
    assert fingerprint(again.tokenizer) == fingerprint(bundle.tokenizer)
    plain = [field.name for field in dataclasses.fields(bundle) if field.name != "tokenizer"]
    assert [getattr(again, name) for name in plain] == [getattr(bundle, name) for name in plain]
    save_bundle(dataclasses.replace(bundle, width=40), tmp_path)
    assert load_bundle(tmp_path).width == 40
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("weights", ["ema", "params"])
@pytest.mark.parametrize("step", [None, 6, 4])
def test_weights_and_step(finished, weights, step):
    path = finished if step is None else finished / "checkpoints" / str(step)
    loaded = load_pretrained(path, weights=weights)
    _, shapes = abstract_model(loaded.bundle.config)
    wanted = {
        part: saved_parts(finished, step or STEPS, {part: shapes})[part]
        for part in ("ema", "params")
    }
    assert loaded.step == (step or STEPS)
    assert_equal_trees(parameters(loaded), wanted[weights])
    assert differ(wanted["ema"], wanted["params"])


def test_the_steps_differ_and_the_default_is_the_average(finished):
    newest, older = (
        load_pretrained(finished),
        load_pretrained(str(finished / "checkpoints" / "4") + "/"),
    )
    assert differ(parameters(newest), parameters(older))
    assert_equal_trees(
        parameters(newest), parameters(load_pretrained(finished / "checkpoints", weights="ema"))
    )


def test_the_folder_of_a_path(finished):
    assert [run_folder(finished / tail) for tail in ("", "checkpoints", "checkpoints/6")] == [
        finished
    ] * 3


def test_what_is_not_there(finished, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"holds no model.*give the workdir of a training run"
    ):
        load_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 5 .*it holds 4, 6"):
        load_pretrained(finished / "checkpoints" / "5")
    shutil.copytree(finished / "model", tmp_path / "model")
    with pytest.raises(FileNotFoundError, match="holds no complete checkpoint yet"):
        load_pretrained(tmp_path)
    with pytest.raises(ValueError, match="weights is 'best'; it may be one of 'ema', 'params'"):
        load_pretrained(finished, weights="best")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:40], "model.json is broken"),
        (
            lambda text: text.replace('"width": 32', '"wdith": 32', 1),
            "model.json is broken.*wdith.*width",
        ),
        (lambda text: text.replace('"fps"', '"rate"'), "model.json is broken.*fps"),
    ],
    ids=["cut", "field", "missing"],
)
def test_a_broken_card(finished, tmp_path, change, words):
    shutil.copytree(finished / "model", tmp_path / "model")
    file = tmp_path / "model" / "model.json"
    file.write_text(change(file.read_text()))
    with pytest.raises(ValueError, match=words):
        load_bundle(tmp_path)


def test_a_card_that_was_changed_is_read_with_one_warning(finished, tmp_path, caplog):
    shutil.copytree(finished / "model", tmp_path / "model")
    file = tmp_path / "model" / "model.json"
    load_bundle(tmp_path)
    assert not caplog.text
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"fps": 99.0}))
    assert load_bundle(tmp_path).fps == 99
    load_config(tmp_path)
    assert caplog.text.count("model.json is not as it was written") == 1
    del values["sha256"]  # as earlier versions wrote it
    file.write_text(json.dumps(values))
    load_bundle(tmp_path)
    assert caplog.text.count("model.json") == 1


def test_a_flipped_bit_in_the_weights_is_an_error(finished, tmp_path):
    """`sample`, `init_from` and `convert --export` read weights this way."""
    shutil.copytree(finished, tmp_path / "run")
    newest = max((tmp_path / "run" / "checkpoints").iterdir(), key=lambda path: int(path.name))
    file = max((newest / "ema").rglob("*"), key=lambda path: path.stat().st_size)
    broken = bytearray(file.read_bytes())
    broken[len(broken) // 2] ^= 1
    file.write_bytes(broken)
    with pytest.raises(UserError, match=rf"{file.name} is not what was saved") as error:
        load_params(tmp_path / "run")
    assert "is intact" in str(error.value)


def test_the_checkpoint_of_another_model_size(finished, tmp_path):
    """Somebody changed the bundle: the weights are not cut to it."""
    shutil.copytree(finished / "model", tmp_path / "model")
    (tmp_path / "checkpoints").symlink_to(finished / "checkpoints")
    file = tmp_path / "model" / "model.json"
    values = json.loads(file.read_text())
    values["model"]["width"] = 64
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"ema/.* has shape .*another model size"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(latent_channels=4), "takes 4 latent channels, the tokenizer gives 16"),
        (dict(text_tokens=9), "text of 9 tokens x 64 values, the text encoder gives 8 x 64"),
        (dict(text_width=32), "text of 8 tokens x 32 values, the text encoder gives 8 x 64"),
    ],
)
def test_parts_that_do_not_fit_make_no_bundle(finished, change, words):
    bundle = load_bundle(finished)
    with pytest.raises(UserError, match=words):
        dataclasses.replace(bundle, config=dataclasses.replace(bundle.config, **change))


POSSIBLE = {
    "model.rope_base": (2.5, 10**12),
    "model.qk_norm_gain": (2.5, 10**12),
    "model.gate_init": (-1, 2.5, 10**12, None),
    "sampling.guidance": (2.5, 10**12),
    "sampling.temperature": (2.5, 10**12),
    "sampling.latent_clip": (2.5, 10**12),
    "sampling.steps": (10**12,),
    "sampling.head_steps": ("",),
    "sampling.window": (10**12, None),
    "fps": (2.5,),
}
"""Values that a model may have."""


def test_wrong_values_in_model_json_are_refused(finished, tmp_path):
    """Every field with a dozen wrong values; what the first versions lacked may be left out."""
    shutil.copytree(finished / "model", tmp_path / "model")
    file = tmp_path / "model" / "model.json"
    values = json.loads(file.read_text())
    believed = []
    with annotations_off():  # where a number may be whole or not
        taken = accepted(file, lambda: load_bundle(tmp_path))
    for place, value in taken:
        section, _, field = place.rpartition(".")
        if place == "sha256":
            continue  # that of edited settings is reported, and no reason to refuse them
        if value == LEFT_OUT and section in _ALWAYS and field not in _ALWAYS[section]:
            continue
        is_flag = section and isinstance(values[section].get(field), bool)
        if value in POSSIBLE.get(place, ()) or (is_flag and value is True):
            continue
        believed.append((place, value))
    assert not believed


def test_clips_that_the_tokenizer_cannot_make(finished, tmp_path):
    shutil.copytree(finished / "model", tmp_path / "model")
    file = tmp_path / "model" / "model.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"height": values["height"] + 1}))
    with pytest.raises(UserError, match=r"height .* is not a multiple of the spatial stride"):
        load_bundle(tmp_path)


def test_where_parts_are_from_is_kept(finished, tmp_path):
    sources = {"text_encoder": "qwen2:ada/model@" + "a" * 40}
    bundle = load_bundle(finished)
    assert bundle.sources == {}, "a model whose parts were made here is from nowhere"
    save_bundle(dataclasses.replace(bundle, sources=sources), tmp_path)
    assert load_bundle(tmp_path).sources == sources
    card = tmp_path / "model" / "model.json"
    values = json.loads(card.read_text())
    card.write_text(json.dumps(values | {"sources": {"tokenizer": 3}}))
    with pytest.raises(UserError, match="sources"):
        load_bundle(tmp_path)

"""A packed model samples as the run does, and a damaged one is refused."""

import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.helpers.paths import ROOT
from videomar_jax.checks import UserError
from videomar_jax.inference.pipeline import VideoMARPipeline
from videomar_jax.pretrained.bundle import load_bundle, load_params
from videomar_jax.pretrained.convert import pack
from videomar_jax.pretrained.packed import WEIGHTS

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)


@pytest.fixture(scope="module")
def packed(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packs") / "a b.packed"
    pack(finished, folder)
    return folder


def convert(*flags):
    call = [sys.executable, "-m", "videomar_jax.convert", *flags]
    return subprocess.run(call, capture_output=True, text=True, cwd=ROOT, check=False)


def test_parameters_are_those_of_the_run_in_bfloat16(finished, packed):
    _, ours, step = load_params(packed, dtype=None)
    _, theirs, newest = load_params(finished)
    assert step == newest
    ours, theirs = flatten_dict(ours, sep="/"), flatten_dict(theirs, sep="/")
    assert ours.keys() == theirs.keys()
    for name, leaf in theirs.items():
        np.testing.assert_array_equal(ours[name], leaf.astype(ml_dtypes.bfloat16), name)


def test_it_holds_nothing_else(packed):
    assert sorted(path.name for path in packed.iterdir()) == ["model", WEIGHTS]
    assert load_bundle(packed).num_frames == 5


def test_in_float32_it_makes_the_same_video_as_the_run(finished, tmp_path):
    pack(finished, tmp_path / "same", param_dtype="float32")
    run, same = (VideoMARPipeline.from_checkpoint(place) for place in (finished, tmp_path / "same"))
    np.testing.assert_array_equal(
        run(IMAGE, "a red square").frames, same(IMAGE, "a red square").frames
    )
    assert same.checkpoint == tmp_path / "same" and same.step == run.step


def test_the_last_weights_are_others_than_the_average(finished, packed, tmp_path):
    step = load_params(finished)[2]
    pack(finished / "checkpoints" / str(step), tmp_path / "last", weights="params")
    with pytest.raises(UserError, match="holds the parameters 'params', not 'ema'"):
        load_params(tmp_path / "last")
    last = flatten_dict(load_params(tmp_path / "last", "params")[1])
    average = flatten_dict(load_params(packed)[1])
    assert any((last[name] != average[name]).any() for name in average)


@pytest.mark.parametrize("place", [0.5, 0.999])
def test_a_flipped_bit_is_noticed(packed, tmp_path, place):
    copy = shutil.copytree(packed, tmp_path / "copy")
    raw = bytearray((copy / WEIGHTS).read_bytes())
    raw[int(place * len(raw))] ^= 1
    (copy / WEIGHTS).write_bytes(raw)
    with pytest.raises(UserError, match="is damaged: take another copy"):
        load_params(copy)


def test_a_cut_file_and_another_model_are_named(packed, tmp_path):
    copy = shutil.copytree(packed, tmp_path / "copy")
    text = (copy / "model" / "model.json").read_text()
    (copy / "model" / "model.json").write_text(text.replace('"depth": 2', '"depth": 3'))
    with pytest.raises(UserError, match=r"does not hold the model.*such as "):
        load_params(copy)
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:-3])
    with pytest.raises(UserError, match="truncated"):
        load_params(copy)


def test_a_parameter_that_does_not_fit_is_named_and_nothing_is_left(finished, tmp_path):
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        pack(finished, folder)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match="weights is 'best'"):
        pack(finished, tmp_path / "none", weights="best")
    assert not (tmp_path / "none").exists()


def test_the_command_packs_a_run_and_takes_no_other_flags(finished, tmp_path):
    done = convert(f"--checkpoint={finished}", f"--output={tmp_path / 'p'}")
    assert done.returncode == 0, done.stderr
    assert load_params(tmp_path / "p", dtype=None)[1]
    wrong = convert(f"--checkpoint={finished}", f"--output={tmp_path / 'q'}", "--height=64")
    assert wrong.returncode and "packed as it is: leave out --height" in wrong.stderr

"""A workdir belongs to one run; configs of earlier versions are compared under today's names."""

import json
import logging
import os
import shutil
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tests.helpers.tiny_run import start, tiny, tiny_videos, write_clip
from videomar_jax.checks import Interrupted, UserError
from videomar_jax.data import sources
from videomar_jax.data.videos import VideoFolder
from videomar_jax.experiment import run
from videomar_jax.experiment.settings import default_config
from videomar_jax.experiment.workdir import (
    LOCK,
    check_same_clips,
    check_workdir,
    flatten,
    write_clips,
    write_config,
)
from videomar_jax.io.files import read_json
from videomar_jax.io.lock import holding
from videomar_jax.pretrained.bundle import load_params, load_pretrained
from videomar_jax.training import loop


def as_earlier_versions_wrote_it(config):
    """The config in old names and values, without the settings that were added since."""
    values = json.loads(json.dumps(config))
    for key in (
        "images",
        "decode_all",
        "split_cuts",
        "most_failing",
        "zoom",
        "flip",
        "augment_probability",
        "open_captions",
        "unit",
    ):
        del values["data"][key]
    for key in ("linear_prior", "previous_frame", "residual", "forecast", "bilinear_units"):
        del values["model"][key]
    del values["run"]["minutes"], values["run"]["size"]
    del values["sampling"]["history_noise"], values["sampling"]["still_detail"]
    loss, sampling = values["loss"], values["sampling"]
    loss["frames"] = {"one_frame": "one", "all_frames": "all"}[loss.pop("supervise")]
    loss["layout"] = "truncated" if loss.pop("truncate") else "full"
    loss["normaliser"] = {"all_masked": "mask", "supervised": "loss_mask"}[loss["normaliser"]]
    sampling["clip"] = sampling.pop("latent_clip")
    sampling["positions"] = sampling.pop("first_frame_position")
    sampling["position_scaling"] = sampling.pop("spatial_rope_scaling")
    sampling["frame_scaling"] = sampling.pop("temporal_rope_scaling")
    return values


@pytest.mark.parametrize(
    "loss",
    [
        dict(),
        dict(supervise="one_frame", truncate=True, normaliser="supervised"),
        dict(supervise="all_frames"),
    ],
    ids=["quickstart", "truncated", "all_frames"],
)
def test_a_run_of_an_earlier_version_is_continued(tmp_path, loss):
    config = tiny(loss=loss).to_dict()
    write_config(tmp_path, as_earlier_versions_wrote_it(config))
    check_workdir(tmp_path, config)


def test_an_added_setting_with_another_value_than_its_default_is_another_run(tmp_path):
    write_config(tmp_path, as_earlier_versions_wrote_it(tiny().to_dict()))
    config = tiny(data=dict(zoom=1.5)).to_dict()
    with pytest.raises(UserError, match=r"data\.zoom \(1\.0 there, 1\.5 here\)"):
        check_workdir(tmp_path, config)


def test_a_key_that_an_earlier_version_lacked_had_its_default(tmp_path):
    config = tiny().to_dict()
    earlier = json.loads(json.dumps(config))
    del earlier["data"]["most_failing"], earlier["optimizer"]["name"], earlier["evaluation"]
    write_config(tmp_path, earlier)
    check_workdir(tmp_path, tiny(optimizer=dict(name=default_config().optimizer.name)).to_dict())
    with pytest.raises(UserError, match=r"differs in optimizer\.name \('\w+' there, 'muon' here\)"):
        check_workdir(tmp_path, config)


@pytest.mark.parametrize("text", ["", "[]", "3", '{"data": 3}', '"x"'])
def test_a_broken_config_is_named(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is broken"):
        check_workdir(tmp_path, tiny().to_dict())


def test_another_value_is_refused_under_its_name_of_today(tmp_path):
    write_config(tmp_path, as_earlier_versions_wrote_it(tiny().to_dict()))
    other = tiny(loss=dict(supervise="one_frame")).to_dict()
    with pytest.raises(
        UserError, match=r"loss\.supervise \('all_frames' there, 'one_frame' here\)\. Choose"
    ):
        check_workdir(tmp_path, other)


def test_a_config_in_old_names_is_the_same_run(tmp_path):
    """A config file of one's own may still use them."""
    config = tiny().to_dict()
    write_config(tmp_path, config)
    check_workdir(tmp_path, as_earlier_versions_wrote_it(config))


def test_nested_values_are_compared_by_path():
    values = {"a": {"b": 1, "c": [2, {"d": 3}]}, "e": []}
    assert flatten(values) == {"a.b": 1, "a.c.0": 2, "a.c.1.d": 3}


# One process at a time


def test_a_second_run_in_a_workdir_is_refused_before_anything_is_written(tmp_path):
    workdir = tmp_path / "run"
    with holding(workdir / LOCK, "it"):
        with pytest.raises(UserError, match=rf"run is in use by process {os.getpid()} on "):
            start(tiny(), workdir)
        assert [path.name for path in workdir.iterdir()] == [LOCK]
    assert not workdir.exists()


def test_a_run_that_cannot_start_leaves_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        start(tiny(data=dict(kind="videos", path=str(tmp_path / "videos"))), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_unfinished_is_removed(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    for name in (".config.json.0123456789ab.part", "model/.model.json.0123456789ab.part"):
        (workdir / name).write_text("half")
    start(tiny(), workdir)
    assert not list(workdir.glob(".*")) and not list((workdir / "model").glob(".*"))


# Odd names


def test_a_workdir_of_an_odd_name_is_trained_in_and_continued(finished, tmp_path):
    workdir = tmp_path / "-a ü日 'q\" {1} $x#%20:,=;&|()!~."
    for _ in range(2):  # the second start restores the last checkpoint
        start(tiny(), workdir)
        ours, theirs = load_params(workdir), load_params(finished)
        assert ours[2] == theirs[2]
        jax.tree.map(np.testing.assert_array_equal, ours[1], theirs[1])
    assert [path.name for path in tmp_path.iterdir()] == [workdir.name]


@pytest.mark.parametrize("name", ["a[1]", "a*b", "a?", "back\\slash", "\udcff"])
def test_a_workdir_that_would_lose_checkpoints_is_refused_at_the_start(name, tmp_path):
    with pytest.raises(UserError, match="rename the folder, or choose another"):
        start(tiny(), tmp_path / name)
    assert not list(tmp_path.iterdir())


# A workdir that is deleted under its run


def wait_for_checkpoints(folder, names):
    for _ in range(600):
        if folder.is_dir() and {path.name for path in folder.iterdir()} == names:
            return
        time.sleep(0.05)
    pytest.fail(f"{folder} holds {sorted(path.name for path in folder.iterdir())}, not {names}")


@pytest.mark.parametrize("lost", ["", "config.json", "model/tokenizer", "metrics.jsonl"])
def test_what_is_deleted_under_a_run_is_there_after_its_next_checkpoint(
    lost, finished, tmp_path, monkeypatch, caplog
):
    workdir = tmp_path / "run"
    original = loop.curriculum_batches

    def batches(*arguments, **options):
        for number, batch in enumerate(original(*arguments, **options)):
            if number == 5:  # before the last checkpoint
                # Orbax takes the oldest one away at the same time: not what is tested here.
                wait_for_checkpoints(workdir / "checkpoints", {"3", "4"})
                path = workdir / lost
                if path.is_file():
                    path.unlink()
                while path.exists():
                    # An old checkpoint may be going at the same time.
                    shutil.rmtree(path, ignore_errors=True)
            yield batch

    monkeypatch.setattr(loop, "curriculum_batches", batches)
    start(tiny(), workdir)
    assert "was deleted" in caplog.text
    for name in ("config.json", "data.json", "model/model.json", "metrics.jsonl"):
        assert (workdir / name).is_file(), name
    ours, theirs = load_pretrained(workdir), load_pretrained(finished)
    assert ours.step == theirs.step
    check_workdir(workdir, tiny().to_dict())
    start(tiny(), workdir)


def test_a_workdir_deleted_while_a_checkpoint_is_written_can_be_trained_in_again(
    tmp_path, monkeypatch
):
    workdir, save = tmp_path / "run", loop.Checkpoints.save

    def save_and_lose(self, step, *arguments):
        if step < 4:
            return save(self, step, *arguments)
        shutil.rmtree(workdir)
        (workdir / "checkpoints").mkdir(parents=True)
        raise OSError("Checkpoint 4 could not be written; the same command continues the run.")

    with monkeypatch.context() as patch:
        patch.setattr(loop.Checkpoints, "save", save_and_lose)
        with pytest.raises(OSError, match="Checkpoint 4"):
            start(tiny(), workdir)
    start(tiny(), workdir)
    assert load_pretrained(workdir).step == 6


def test_a_run_whose_workdir_another_process_has_taken_stops(tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    original = loop.curriculum_batches

    def batches(*arguments, **options):
        for number, batch in enumerate(original(*arguments, **options)):
            if number == 1:
                values = json.loads((workdir / LOCK).read_text())
                (workdir / LOCK).write_text(json.dumps(values | {"host": "elsewhere"}))
            yield batch

    monkeypatch.setattr(loop, "curriculum_batches", batches)
    with pytest.raises(UserError, match=r"taken over by process .* on elsewhere"):
        start(tiny(), workdir)
    assert not (workdir / "checkpoints").exists()


# The clips


def videos(folder, **changes):
    """The source of a folder of clips."""
    return VideoFolder(folder, **({"fps": 12.0, "split": "train"} | changes))


@pytest.fixture
def trained_on(tmp_path):
    """The clips of a run that has started in tmp_path/run."""
    for number in range(3):
        write_clip(tmp_path / "clips" / f"{number}.mp4", 20, seed=number)
    (tmp_path / "clips" / "captions.csv").write_text("file,caption\n0.mp4,zero\n1.mp4,one\n")
    workdir = tmp_path / "run"
    workdir.mkdir()
    write_clips(workdir, check_same_clips(workdir, videos(tmp_path / "clips")))
    return tmp_path / "clips"


def flip(file, place):
    """Changes one bit, and nothing that the file system shows but the time of change."""
    about = file.stat()
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.mark.parametrize("change", ["a bit", "another clip", "a caption", "a caption less"])
def test_changed_clips_and_captions_are_refused(change, trained_on, tmp_path):
    captions = trained_on / "captions.csv"
    before = videos(trained_on).digest()
    if change == "a bit":
        file = trained_on / "1.mp4"
        flip(file, file.read_bytes().index(b"x264"))
    elif change == "another clip":
        write_clip(trained_on / "1.mp4", 20, seed=99)
    elif change == "a caption":
        captions.write_text(captions.read_text().replace("one", "ONE"))
    else:
        captions.write_text("file,caption\n0.mp4,zero\n")
    assert videos(trained_on).digest() == before, "names and lengths are the same"
    words = "The captions" if "caption" in change else "The contents of the files"
    with pytest.raises(UserError, match=f"{words} to train on are not what they were"):
        check_same_clips(tmp_path / "run", videos(trained_on))
    check_same_clips(tmp_path / "run", videos(trained_on), contents=False)


def test_clips_may_be_moved_and_copied(trained_on, tmp_path):
    moved = trained_on.rename(tmp_path / "elsewhere")
    shutil.copytree(moved, tmp_path / "copied", copy_function=shutil.copyfile)
    table = (moved / "captions.csv").rename(tmp_path / "words.csv")
    for source in (
        videos(tmp_path / "copied"),
        videos(moved, captions=table),
        videos(f"{tmp_path}/copied/"),
    ):
        record = check_same_clips(tmp_path / "run", source)
        write_clips(tmp_path / "run", record)
    (tmp_path / "copied" / "2.mp4").rename(tmp_path / "copied" / "3.mp4")
    with pytest.raises(UserError, match="would come in another order"):
        check_same_clips(tmp_path / "run", videos(tmp_path / "copied"))


def test_untouched_clips_are_read_once(trained_on, tmp_path, monkeypatch):
    def fail(_):
        raise AssertionError("the files are read again")

    monkeypatch.setattr(sources, "sha256", fail)
    record = check_same_clips(tmp_path / "run", videos(trained_on))
    assert record == json.loads((tmp_path / "run" / "data.json").read_text())


def test_a_record_of_an_earlier_version_is_completed(trained_on, tmp_path, caplog):
    file = tmp_path / "run" / "data.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps({name: whole[name] for name in ("clips", "digest")}))
    with caplog.at_level(logging.INFO):
        write_clips(tmp_path / "run", check_same_clips(tmp_path / "run", videos(trained_on)))
    assert "earlier version" in caplog.text and json.loads(file.read_text()) == whole
    file.write_text(json.dumps({"clips": 3, "digest": "another"}))
    with pytest.raises(UserError, match="would come in another order"):
        check_same_clips(tmp_path / "run", videos(trained_on))


def test_the_place_of_the_clips_is_free(tmp_path):
    def config(**places):
        return tiny(data=dict(kind="videos") | places).to_dict()

    write_config(tmp_path, config(path="clips", captions="a.csv", data_dir="x"))
    for path in ("clips/", "./clips", str(tmp_path / "clips"), "~/clips"):
        check_workdir(tmp_path, config(path=path, captions="/b.csv", data_dir="/y"))
    with pytest.raises(UserError, match=r"differs in data\.fps"):
        check_workdir(tmp_path, config(path="clips", fps=6.0))


def test_videos_that_fail_are_counted_over_all_starts(tmp_path, monkeypatch, caplog):
    """Training itself is replaced by reading every clip, and saving, once."""
    clips, workdir = tmp_path / "clips", tmp_path / "run"
    files = [write_clip(clips / f"{number}.mp4", seed=number) for number in range(8)]
    config = tiny_videos(clips)
    shape = sources.ClipShape(num_frames=3, height=20, width=20)  # which nobody has read before

    def train(recipe, inputs, workdir, *, before_save, **options):
        shutil.copy(files[3], tmp_path / "whole.mp4")
        files[3].write_bytes(b"damaged")
        try:
            for index in range(len(inputs.source)):
                inputs.source.read(index, np.random.default_rng(0), shape)
        finally:
            shutil.copy(tmp_path / "whole.mp4", files[3])
        before_save()
        return SimpleNamespace(state=SimpleNamespace(step=0), finished=False, seconds={})

    monkeypatch.setattr(run, "train", train)
    for number in range(2):
        with pytest.raises(Interrupted):
            start(config, workdir)
        assert read_json(workdir / "failing.json") == {"files": ["3.mp4"]}
        said = "skipped as in earlier starts: 1 videos, such as 3.mp4" in caplog.text
        assert said == (number == 1)
    assert caplog.text.count("skipped from now on (1 of 8 videos)") == 1
    (workdir / "failing.json").write_text("{")
    with pytest.raises(Interrupted):
        start(config, workdir)
    assert "failing.json is broken" in caplog.text

"""A workdir belongs to one run; configs of earlier versions are compared under today's names."""

import json
import os
import shutil
import time

import jax
import numpy as np
import pytest

from tests.helpers.tiny_run import start, tiny
from videomar_jax.checks import UserError
from videomar_jax.experiment.settings import default_config
from videomar_jax.experiment.workdir import LOCK, check_workdir, flatten, write_config
from videomar_jax.io.lock import holding
from videomar_jax.pretrained.bundle import load_params, load_pretrained
from videomar_jax.training import loop


def as_earlier_versions_wrote_it(config):
    """The config in old names and values, without the settings that were added since."""
    values = json.loads(json.dumps(config))
    del values["data"]["decode_all"], values["data"]["most_failing"]
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
    config = tiny(data=dict(most_failing=0.5)).to_dict()
    with pytest.raises(UserError, match=r"data\.most_failing \(0\.1 there, 0\.5 here\)"):
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


@pytest.mark.parametrize("lost", ["", "config.json", "model/tokenizer", "metrics.jsonl"])
def test_what_is_deleted_under_a_run_is_there_after_its_next_checkpoint(
    lost, finished, tmp_path, monkeypatch, caplog
):
    workdir = tmp_path / "run"
    original = loop.curriculum_batches

    def batches(*arguments, **options):
        for number, batch in enumerate(original(*arguments, **options)):
            if number == 5:  # before the last checkpoint
                while not (workdir / "checkpoints" / "4").exists():
                    time.sleep(0.05)
                path = workdir / lost
                path.unlink() if path.is_file() else shutil.rmtree(path)
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

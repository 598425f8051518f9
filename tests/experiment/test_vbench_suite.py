"""VBench-I2V with a tiny model on a suite of the same form: names and counts as the evaluator
expects them, the same bytes however often a job is stopped and however it is shared, and what is
refused."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers.generated import SIZE, draw, mp4_frames, pixels
from tests.helpers.paths import ROOT
from tests.helpers.tiny_run import tiny, write_clip
from videomar_jax.checks import Interrupted, UserError
from videomar_jax.data.decode import probe
from videomar_jax.experiment import vbench_suite
from videomar_jax.experiment.suite_options import SuiteOptions
from videomar_jax.experiment.suite_results import compare_results
from videomar_jax.experiment.vbench_suite import generate_suite, run_suite
from videomar_jax.inference.jobs import reproduce
from videomar_jax.inference.metadata import read_record
from videomar_jax.inference.requests import Output
from videomar_jax.inference.stream import FrameStream
from videomar_jax.inference.video import Video

CAPTIONS = ("a red circle moves left.", 'it\'s a blue square; "100%"', "a lake, calm")
SUBJECT = ["i2v_subject", "dynamic_degree", "imaging_quality"]
BACKGROUND = ["i2v_background", "background_consistency", "imaging_quality"]


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """A suite of four prompts: two subjects, a background, and the camera over it."""
    folder = tmp_path_factory.mktemp("the suite's")
    entries = []
    for number, caption in enumerate(CAPTIONS):
        image = f"{caption}.png"
        draw(folder / "crop" / "1-1" / image, seed=number, size=(32, 32))
        dimension = BACKGROUND if caption.startswith("a lake") else SUBJECT
        entries.append((caption, dimension, image))
    entries.append((f"{CAPTIONS[2]}, camera pans left", ["camera_motion"], f"{CAPTIONS[2]}.png"))
    keys = ("prompt_en", "dimension", "image_name")
    written = [dict(zip(keys, one, strict=True), image_type="x") for one in entries]
    (folder / "info.json").write_text(json.dumps(written))
    return folder


PROMPTS = (*CAPTIONS, f"{CAPTIONS[2]}, camera pans left")
NAMES = sorted(f"{prompt}-{sample}.mp4" for prompt in PROMPTS for sample in range(5))


def options(suite, **changes):
    given = dict(
        suite="vbench_i2v",
        info=str(suite / "info.json"),
        images=str(suite / "crop"),
        batch_size=3,  # so that a batch holds videos of two prompts, and the last one is short
    )
    return SuiteOptions(**given | changes)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "videos").iterdir())}


@pytest.fixture(scope="module")
def made(suite, finished, tmp_path_factory):
    """The output of an uninterrupted run; tests only read it."""
    output = tmp_path_factory.mktemp("made") / "out"
    generate_suite(options(suite), finished, output)
    return output


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "copy")


def test_names_counts_and_form_are_what_the_evaluator_expects(suite, made):
    """Looked up as its code does: the ending is that of any entry of the folder, the name is
    `{prompt}-{index}{ending}` for index 0..4."""
    there = os.listdir(made / "videos")
    assert {os.path.splitext(name)[1] for name in there} == {".mp4"}
    for entry in json.loads((suite / "info.json").read_text()):
        for index in range(5):
            assert f"{entry['prompt_en']}-{index}.mp4" in there
    assert sorted(there) == NAMES
    for name in there:
        info = probe(made / "videos" / name)
        assert (len(info.times), info.fps) == (5, 12.0)
        assert info.height == info.width == 11 * SIZE


def test_every_video_has_its_seed_prompt_and_image(suite, made):
    for number, prompt in enumerate(PROMPTS):
        videos = []
        for sample in range(5):
            record = read_record(made / "records" / f"{prompt}-{sample}.json")
            assert (record.seed, record.prompt) == (5 * number + sample, prompt)
            assert (record.frames, record.fps, record.formats) == (5, 12.0, ("mp4",))
            caption = prompt.removesuffix(", camera pans left")
            assert record.image == str(suite / "crop" / "1-1" / f"{caption}.png")
            videos.append(mp4_frames(made / "videos" / f"{prompt}-{sample}.mp4"))
        assert all((videos[0] != video).any() for video in videos[1:]), "samples are alike"
    common = json.loads((made / "suite.json").read_text())
    assert (common["ratio"], common["seed"], common["num_frames"]) == ("1-1", 0, 5)


def test_a_video_is_made_again_from_its_record(made, tmp_path):
    """With the bytes that it had among the others of its batch."""
    name = f"{CAPTIONS[1]}-1"
    reproduce(made / "records" / f"{name}.json", Output(folder=tmp_path))
    assert (tmp_path / f"{name}.mp4").read_bytes() == contents(made)[f"{name}.mp4"]


KILLED = """
import os, sys
from pathlib import Path
replace, left = os.replace, [7]
def replace_or_die(source, target):
    if str(target).endswith(".mp4"):
        left[0] -= 1
        if left[0] == 0:
            data = Path(source).read_bytes()
            Path(source).write_bytes(data[: len(data) // 2])
            os.kill(os.getpid(), 9)
    replace(source, target)
os.replace = replace_or_die
from videomar_jax.commands import app
from videomar_jax import evaluate
app.run(evaluate.main, sys.argv)
"""


def command(suite, finished, output):
    return [
        "--suite=vbench_i2v",
        f"--info={suite / 'info.json'}",
        f"--images={suite}",
        f"--checkpoint={finished}",
        f"--output={output}",
        "--batch_size=3",
    ]


def test_a_killed_job_continues_to_the_same_bytes(suite, finished, made, tmp_path):
    """The process dies while it writes its seventh video: six are there, the half-written one does
    not have its name. The same command makes the rest and leaves no trace of the half."""
    output = tmp_path / "out"
    call = [sys.executable, "-c", KILLED, *command(suite, finished, output)]
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    there = contents(output)
    whole = {name: data for name, data in there.items() if name.endswith(".mp4")}
    assert len(whole) == 6 and len(there) == 7
    assert whole.items() <= contents(made).items()
    times = {name: (output / "videos" / name).stat().st_mtime_ns for name in whole}
    generate_suite(options(suite), finished, output)
    assert contents(output) == contents(made)
    assert (
        times.items()
        <= {name: (output / "videos" / name).stat().st_mtime_ns for name in NAMES}.items()
    ), "finished videos were made again"


def test_ctrl_c_leaves_no_short_video(suite, finished, made, tmp_path, monkeypatch):
    """A signal in the middle of the second batch: nothing of it is written, and the rest follows
    to the same bytes."""
    output, steps = tmp_path / "out", []
    frames = FrameStream.__next__

    def interrupted(stream):
        steps.append(stream)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGINT)
        return frames(stream)

    with monkeypatch.context() as patch:
        patch.setattr(FrameStream, "__next__", interrupted)
        with pytest.raises(Interrupted, match="the same command continues"):
            generate_suite(options(suite), finished, output)
    assert len(contents(output)) == 3 and contents(output).items() <= contents(made).items()
    generate_suite(options(suite), finished, output)
    assert contents(output) == contents(made)


def test_shares_make_the_same_bytes(suite, finished, made, tmp_path, caplog):
    """Three processes, one after the other; the one that finds all videos there checks them."""
    caplog.set_level(logging.INFO, logger="videomar_jax")
    output, counts = tmp_path / "out", []
    for share in ("2/3", "0/3", "1/3"):
        generate_suite(options(suite, share=share), finished, output)
        counts.append(len(contents(output)))
    assert counts == [6, 14, 20], "seven batches, of 3 videos and the last of 2, go round in turn"
    assert contents(output) == contents(made)
    assert "14 of 20 videos are there: the other shares make the rest" in caplog.text
    assert "20 videos of 4 prompts are complete" in caplog.text


def test_chosen_dimensions_are_part_of_the_whole(suite, finished, made, tmp_path):
    """First without the camera, then all: the videos and seeds of the chosen ones stay."""
    output = tmp_path / "out"
    chosen = ["i2v_subject", "i2v_background"]
    generate_suite(options(suite, dimensions=chosen), finished, output)
    first = contents(output)
    assert sorted(first) == [name for name in NAMES if "camera" not in name]
    generate_suite(options(suite), finished, output)
    assert sorted(contents(output)) == NAMES
    assert {name: contents(output)[name] for name in first} == first


def test_the_config_sets_the_form_and_the_sampling(suite, finished, tmp_path):
    """The last stage of a config with 32x32 instead of the model's own 24x24."""
    config = tiny(sampling=dict(temperature=0.0)).to_dict()
    rows = [dict(row, height=32, width=32) for row in config["curriculum"]]
    config["curriculum"] = tuple(rows)
    output = tmp_path / "out"
    generate_suite(options(suite, dimensions=["i2v_background"]), finished, output, config)
    record = read_record(output / "records" / f"{CAPTIONS[2]}-0.json")
    assert (record.height, record.width, record.config().temperature) == (32, 32, 0.0)
    first = mp4_frames(output / "videos" / f"{CAPTIONS[2]}-0.mp4")[0]
    image = pixels(suite / "crop" / "1-1" / f"{CAPTIONS[2]}.png")
    assert np.abs(first[4::8, 4::8].astype(int) - image).mean() < 12, "not the suite's image"
    with pytest.raises(UserError, match="--preset and --config"):
        generate_suite(options(suite, preset="fast"), finished, output, config)


# What is refused, and named


def refused(suite, finished, output, reason, **changes):
    before = contents(output) if (output / "videos").exists() else None
    with pytest.raises((UserError, OSError), match=reason) as caught:
        generate_suite(options(suite, **changes), finished, output)
    after = contents(output) if (output / "videos").exists() else None
    assert after == before, "something was written"
    return str(caught.value)


def test_videos_of_something_else_are_not_mixed(suite, finished, copy, tmp_path):
    refused(suite, finished, copy, "something else: seed differ", seed=7)
    refused(suite, finished, copy, "something else: weights differ", weights="params")
    refused(suite, finished, copy, r"sampling\.\w+", preset="fast")
    refused(suite, finished / "checkpoints" / "4", copy, "checkpoint_sha256.parameters differ")
    other = tmp_path / "other.json"
    other.write_text((suite / "info.json").read_text() + "\n")
    refused(suite, finished, copy, "info_sha256 differ", info=str(other))
    (copy / "suite.json").write_text("{")
    refused(suite, finished, copy, "cannot be read")


def test_another_share_of_another_model_is_refused(suite, finished, tmp_path):
    """Two shares have no video in common; suite.json tells that they do not belong together."""
    output = tmp_path / "out"
    generate_suite(options(suite, share="0/2"), finished, output)
    other = finished / "checkpoints" / "4"
    refused(suite, other, output, r"checkpoint_sha256\.parameters differ", share="1/2")


def test_a_video_without_a_record_is_left_alone(suite, finished, tmp_path):
    output = tmp_path / "out"
    write_clip(output / "videos" / f"{CAPTIONS[0]}-0.mp4")
    text = refused(suite, finished, output, "exists already")
    assert "--overwrite" not in text, "evaluate has no such flag"


def test_damaged_short_and_foreign_files_are_named(suite, finished, made, copy):
    """All faults of the videos at once; without them the same command makes these anew."""
    half, short, slow = (f"{CAPTIONS[1]}-{sample}.mp4" for sample in (0, 2, 4))
    data = (copy / "videos" / half).read_bytes()
    (copy / "videos" / half).write_bytes(data[: len(data) // 2])
    side = 11 * SIZE
    write_clip(copy / "videos" / short, 4, size=(side, side))
    write_clip(copy / "videos" / slow, 5, fps=6, size=(side, side))
    text = refused(suite, finished, copy, "3 videos in .* cannot be used; remove them")
    for name, reason in ((half, ""), (short, "4 frames, not 5"), (slow, "6 frames per second")):
        assert f"{name}: " in text and reason in text
        (copy / "videos" / name).unlink()
    generate_suite(options(suite), finished, copy)
    assert contents(copy) == contents(made)
    (copy / "videos" / "notes.txt").write_text("x")
    refused(suite, finished, copy, r"notes\.txt elsewhere")


def test_a_damaged_image_stops_before_anything_is_made(suite, finished, tmp_path):
    folder = shutil.copytree(suite, tmp_path / "suite")
    (folder / "crop" / "1-1" / f"{CAPTIONS[1]}.png").write_bytes(b"no picture")
    text = refused(folder, finished, tmp_path / "out", "Some requests cannot be met")
    assert text.count("cannot be read as an image") == 1 and "100%" in text
    assert not (tmp_path / "out").exists()


def test_places_that_are_missing(suite, finished, tmp_path):
    output = tmp_path / "out"
    refused(suite, finished, output, "no folder 16-9", ratio="16-9")
    refused(suite, finished, output, "is no folder", images=str(suite / "info.json"))
    refused(suite, tmp_path, output, "holds no model")
    refused(suite, finished, output, "No prompt", dimensions=["motion_smoothness"])
    with pytest.raises(UserError, match="--checkpoint=DIR, --output=DIR"):
        run_suite(options(suite), None, str(output))


def test_a_video_of_nan_is_an_error_in_the_end(suite, finished, tmp_path, monkeypatch):
    """The others are written; the faulty one is not, and is named."""
    save = Video.save

    def broken(video, path, **changes):
        if path.stem == f"{CAPTIONS[0]}-1":
            raise UserError("no video to show")
        return save(video, path, **changes)

    monkeypatch.setattr(Video, "save", broken)
    with pytest.raises(UserError, match="1 videos could not be generated") as caught:
        generate_suite(options(suite), finished, tmp_path / "out")
    assert f"{CAPTIONS[0]}-1: no video to show" in str(caught.value)
    assert sorted(contents(tmp_path / "out")) == [n for n in NAMES if n != f"{CAPTIONS[0]}-1.mp4"]


def test_processes_that_were_started_together_share_by_themselves(suite, monkeypatch):
    monkeypatch.setattr(vbench_suite.jax, "process_count", lambda: 4)
    monkeypatch.setattr(vbench_suite.jax, "process_index", lambda: 2)
    assert vbench_suite._share(options(suite)) == (2, 4)
    with pytest.raises(UserError, match="leave out --share"):
        vbench_suite._share(options(suite, share="1/4"))


# The second step


def write_results(folder, counts):
    """What the evaluator writes, of as many videos as `counts` says."""
    results = {}
    for name, count in counts.items():
        value = 100 * 0.5 if name == "imaging_quality" else 0.5
        results[name] = [0.5, [{"video_path": "v", "video_results": value}] * count]
    folder.mkdir(parents=True)
    file = folder / "results_2026-01-01-10:00:00_eval_results.json"
    file.write_text(json.dumps(results))


COUNTS = {
    "i2v_subject": 10,
    "i2v_background": 5,
    "camera_motion": 5,
    "subject_consistency": 0,
    "background_consistency": 5,
    "motion_smoothness": 0,
    "dynamic_degree": 10,
    "aesthetic_quality": 0,
    "imaging_quality": 15,
}


def test_results_are_counted_against_the_suite(suite, tmp_path):
    write_results(tmp_path / "results", {n: c for n, c in COUNTS.items() if c})
    given = dict(images=None, results=(str(tmp_path / "results"),))
    with pytest.raises(UserError, match="no results of subject_consistency, motion_smoothness"):
        compare_results(options(suite, **given))
    with pytest.raises(UserError, match="measured on 10 videos, and the suite has 1230"):
        compare_results(options(suite, **given, info=None))
    text = compare_results(options(suite, **given, partial=True), tmp_path / "report")
    assert "| Imaging quality " in text and "50.00" in text
    assert (tmp_path / "report" / "report.md").read_text() == text
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["scores"]["Quality"] is None and report["scores"]["I2V"] is not None
    with pytest.raises(UserError, match="already holds a report"):
        compare_results(options(suite, **given, partial=True), tmp_path / "report")


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (["--results=results", "--partial"], 0, "| Imaging quality "),
        (["--results=results"], 2, "Error: The results are not complete"),
        (["--results=results", "--seed=3"], 2, "leave out --seed"),
        (["--seed=3"], 2, "Add --info and --images"),
    ],
    ids=str,
)
def test_the_command_shows_results_from_a_relative_folder(tmp_path, flags, code, text):
    write_results(tmp_path / "results", {n: c for n, c in COUNTS.items() if c})
    call = [sys.executable, "-m", "videomar_jax.evaluate", "--suite=vbench_i2v", *flags]
    done = subprocess.run(
        call,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert text in done.stdout + done.stderr

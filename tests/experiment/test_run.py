"""The whole path on two-row runs of a few steps: everything a run promises to write is there and
says what happened."""

import errno
import json
import math
import os
import re
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from tests.helpers.tiny_run import STEPS, start, tiny, tiny_videos, write_clip
from videomar_jax.checkpoints.manager import Checkpoints
from videomar_jax.data.shapes import HELD_OUT
from videomar_jax.evaluation.baselines import repeat_last
from videomar_jax.evaluation.metrics import METRICS
from videomar_jax.experiment import evaluate as evaluating
from videomar_jax.experiment import run
from videomar_jax.experiment.config import Experiment
from videomar_jax.experiment.evaluate import Evaluation, evaluate, evaluate_checkpoint
from videomar_jax.inference.stream import VideoSampler
from videomar_jax.io.paths import file_name
from videomar_jax.pretrained.bundle import load_pretrained

SHAPE_SCORES = {
    "direction_accuracy",
    "counterfactual_accuracy",
    "psnr",
    "psnr_copy_first",
    "psnr_ceiling",
    "ssim",
    "centroid_error",
    "centroid_error_last",
    "object_present",
    "shuffled_caption_accuracy",
    "unseen_triples_direction_accuracy",
}
ROWS_OF_TOKENS = [
    dict(name="a", num_frames=3, height=24, width=24, batch_size=4, steps=4, learning_rate=1e-3)
]
CASES = ["held_out", "unseen_triples", "counterfactual", "shuffled_captions", "longer", "larger"]


def read_report(workdir):
    return json.loads((workdir / "report.json").read_text())


def linked_pictures(workdir):
    links = re.findall(r"!?\[[^\]]*\]\(([^)]*)\)", (workdir / "report.md").read_text())
    return [workdir / unquote(link) for link in links]


# The quick start's tiny variant


def test_the_report_has_every_score(finished):
    report = read_report(finished)
    assert set(report) >= SHAPE_SCORES | {"seconds", "seconds_total", "cases"}
    assert list(report["cases"]) == CASES
    for name, scores in report["cases"].items():
        assert set(scores) >= {
            "psnr",
            "ssim",
            "direction_accuracy",
            "centroid_error",
            "object_present",
        }, name
        assert all(math.isfinite(value) for value in scores.values()), name


def test_the_scores_on_top_are_those_of_their_cases(finished):
    report = read_report(finished)
    cases = report["cases"]
    assert all(report[key] == value for key, value in cases["held_out"].items())
    for key, case in [
        ("counterfactual_accuracy", "counterfactual"),
        ("shuffled_caption_accuracy", "shuffled_captions"),
        ("unseen_triples_direction_accuracy", "unseen_triples"),
    ]:
        assert report[key] == cases[case]["direction_accuracy"]
    assert (
        cases["held_out"]["clips"] == 4
        and cases["longer"]["clips"] == cases["larger"]["clips"] == 2
    )
    assert cases["shuffled_captions"]["psnr_ceiling"] == cases["held_out"]["psnr_ceiling"], (
        "other clips, not captions"
    )
    assert cases["unseen_triples"]["psnr_ceiling"] != cases["held_out"]["psnr_ceiling"]
    assert cases["held_out"]["psnr_ceiling"] > cases["held_out"]["psnr_copy_first"]


def test_the_time_of_every_phase(finished):
    report = read_report(finished)
    assert list(report["seconds"]) == ["prepare", "16px_3f", "24px_5f", "evaluate"]
    assert all(seconds > 0 for seconds in report["seconds"].values())
    assert report["seconds_total"] == pytest.approx(sum(report["seconds"].values()))


def test_a_stage_with_the_name_of_a_phase_keeps_its_own_time(tmp_path, monkeypatch):
    outcome = SimpleNamespace(
        finished=True, seconds={"prepare": 500.0, "evaluate": 600.0}, state=SimpleNamespace(ema={})
    )
    nothing = Evaluation(report={"cases": {}}, pictures={})
    monkeypatch.setattr(run, "train", lambda *_, **__: outcome)
    monkeypatch.setattr(VideoSampler, "from_bundle", lambda *_, **__: Still.__new__(Still))
    monkeypatch.setattr(run.nnx, "merge", lambda *_: None)
    monkeypatch.setattr(run, "evaluate", lambda *_: nothing)
    seconds = start(tiny(), tmp_path / "run")["seconds"]
    assert list(seconds) == ["prepare", "stage prepare", "stage evaluate", "evaluate"]
    assert (seconds["stage prepare"], seconds["stage evaluate"]) == (500, 600)
    assert seconds["prepare"] < 400 and seconds["evaluate"] < 400


def test_the_report_shows_pictures(finished):
    pictures = linked_pictures(finished)
    # "longer" and "larger" have two clips, which have no median.
    ranked = {f"{case}_ranked" for case in CASES} - {"longer_ranked", "larger_ranked"}
    assert {path.stem for path in pictures} == {*CASES, *ranked, "loss"}
    assert {path.suffix for path in pictures} == {".png", ".gif", ".mp4"}
    for path in pictures:
        if path.suffix == ".mp4":
            assert path.stat().st_size > 0
            continue
        with Image.open(path) as picture:
            assert (
                min(picture.size) > 60 and len(np.unique(np.array(picture.convert("RGB")))) > 10
            ), path


def test_strips_were_written_while_it_trained(finished):
    strips = sorted((finished / "samples").glob("*.png"))
    assert [path.name for path in strips] == ["step_0000003.png", "step_0000006.png"]
    assert all(path.with_suffix(".mp4").stat().st_size > 0 for path in strips), (
        "the clips are shown moving too"
    )
    first, last = (np.array(Image.open(path)) for path in strips)
    assert first.shape == last.shape and (first != last).any()
    truth = slice(
        36, 36 + 72
    )  # the first row under its label: the clips are the same, the model is not
    np.testing.assert_array_equal(first[truth], last[truth])


def test_the_record_of_numbers(finished):
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        assert set(row) >= {
            "loss",
            "gradient_norm",
            "update_norm",
            "parameter_norm",
            "learning_rate",
            "steps_per_second",
            "tokens_per_second",
        }
        assert all(math.isfinite(value) for value in row.values())
    assert rows[0]["learning_rate"] == 0 and rows[0]["update_norm"] == 0, (
        "the warm-up starts at zero"
    )
    assert all(row["update_norm"] > 0 for row in rows[1:])
    assert len(list((finished / "tensorboard").iterdir())) == 1


def test_the_newest_checkpoints_stay(finished):
    with Checkpoints(finished / "checkpoints") as checkpoints:
        assert checkpoints.all_steps() == [4, 6]


def test_nothing_unfinished_is_left(finished):
    assert {path.name for path in finished.iterdir()} == {
        "config.json",
        "data.json",
        "model",
        "checkpoints",
        "metrics.jsonl",
        "tensorboard",
        "samples",
        "report",
        "report.json",
        "report.md",
    }
    assert not [
        path for path in finished.rglob("*") if "partial" in path.name or path.suffix == ".part"
    ]


def test_a_checkpoint_is_scored_like_the_run_that_made_it(finished, tmp_path):
    report = evaluate_checkpoint(Experiment.from_config(tiny()), tmp_path / "scores", finished)
    assert report["cases"] == read_report(finished)["cases"] and report["step"] == STEPS
    assert read_report(tmp_path / "scores")["cases"] == report["cases"]
    assert all(path.exists() for path in linked_pictures(tmp_path / "scores"))


# A folder of clips


LONG = "日" * 72 + ".avi"
"""Too long for a file with what is added to it."""


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    """(workdir, report, log) of a run on two clips and a broken one, one of them with a caption."""
    folder = tmp_path_factory.mktemp("footage")
    write_clip(folder / "clips" / "b (1).mp4", 60, seed=1)
    write_clip(folder / "clips" / "sub" / f"{LONG}.mp4", 60, seed=2)
    (folder / "clips" / "b (1).txt").write_text("a square moves right")
    (folder / "clips" / "broken.mp4").write_bytes(b"nothing" * 50)
    write_clip(folder / "clips" / "short.mp4", 2)
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr(
            "videomar_jax.data.videos.log.warning", lambda text, *args: said.append(text % args)
        )
        report = start(tiny_videos(folder / "clips"), folder / "run")
    return folder / "run", report, said


def test_footage_is_scored_by_clip(footage):
    workdir, report, _ = footage
    assert report == read_report(workdir)
    assert list(report["cases"]) == [
        "held_out",
        "b (1)",
        LONG,
        "held_out_given_3",
        "b (1)_given_3",
        f"{LONG}_given_3",
    ], "clips of 5 frames are not continued from 5"
    cases = list(report["cases"].values())
    for number, scores in enumerate(cases):
        expected = {"clips", "better_than_copy", "better_than_linear", "better_than_copy_linear"}
        for metric in METRICS:
            copy = "copy_first" if number < 3 else "copy_last"
            expected |= {metric, f"{metric}_{copy}", f"{metric}_linear", f"{metric}_ceiling"}
        assert set(scores) == expected, number
    for whole, *parts in (cases[:3], cases[3:]):
        assert whole["clips"] == sum(part["clips"] for part in parts) > 0
        for key in ("psnr", "psnr_linear", "psnr_ceiling", "ssim_ceiling"):
            total = sum(part["clips"] * part[key] for part in parts)
            assert whole["clips"] * whole[key] == pytest.approx(total), key
    assert not set(report) & {"direction_accuracy", "counterfactual_accuracy"}


def test_footage_has_pictures_whatever_its_names(footage):
    workdir, _, _ = footage
    pictures = linked_pictures(workdir)
    names = {path.name.removesuffix(path.suffix) for path in pictures}
    parts = {"b (1)_given_3", file_name(f"{LONG}_given_3")}
    ranked = {"held_out_ranked", "held_out_given_3_ranked"}
    assert names == {"held_out", "held_out_given_3", "loss"} | parts | ranked
    assert len(pictures) == 19 and all(path.exists() for path in pictures), pictures
    with Image.open(workdir / "report" / "held_out.png") as picture:
        assert picture.size[0] > 5 * 128 and picture.size[1] > 4 * 4 * 128, "rows of 128 pixels"


def test_the_report_says_what_was_not_computed_and_links_its_videos(footage):
    workdir, report, _ = footage
    assert [note.split()[0] for note in report["notes"]] == ["FVD", "LPIPS"]
    text = (workdir / "report.md").read_text()
    assert all(note in text for note in report["notes"])
    assert "[The same as a video](report/held_out_ranked.mp4)" in text
    assert "![The loss in training](report/loss.png)" in text
    with Image.open(workdir / "report" / "held_out_ranked.png") as picture:
        assert picture.size[1] > 3 * 2 * 128, "best, median and worst, each below the truth"
    legend = text[text.index("## What the scores mean") :]
    for scores in report["cases"].values():
        for name in scores:
            own = re.sub("_(copy_first|copy_last|linear|ceiling)$", "", name)
            assert f"- {own}: " in legend or f"- {name}: " in legend, name


def test_the_report_of_footage_begins_with_a_verdict(footage):
    workdir, report, _ = footage
    text = (workdir / "report.md").read_text()
    assert text.startswith(f"# Report\n\n**{report['verdict']}**")
    assert re.match(r"From 1 frame: .+\. From 3 frames: .+\.$", report["verdict"])
    assert set(report["verdicts"]) == set(report["cases"])
    for sentence in report["verdicts"].values():
        assert "repeating" in sentence and sentence in text
    assert set(report["linear_predictor"]) == {"held_out", "held_out_given_3"}


def test_clips_that_cannot_be_used_are_listed_and_skipped(footage):
    _, _, said = footage
    assert any("broken.mp4" in line and "cannot be decoded" in line for line in said)
    assert any("short.mp4" in line and "3 asked" in line for line in said)
    assert len(said) == len(set(said)), "the folder is opened for training and for measuring"


def test_pictures_that_cannot_be_written_cost_the_pictures_only(finished, tmp_path, monkeypatch):
    write = evaluating._write_pictures

    def failing(stem, shown, fps):
        if stem.name == "held_out":
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(stem))
        write(stem, shown, fps)

    monkeypatch.setattr(evaluating, "_write_pictures", failing)
    experiment = Experiment.from_config(tiny())
    evaluate_checkpoint(experiment, tmp_path / "scores", finished)
    assert read_report(tmp_path / "scores")["cases"] == read_report(finished)["cases"]
    pictures = linked_pictures(tmp_path / "scores")
    assert pictures and all(path.exists() for path in pictures)
    assert not [path for path in pictures if path.stem == "held_out"]


# What is measured


class Still(VideoSampler):
    """Repeats the last given frame, and records what it was asked for."""

    def __call__(self, given, prompts, num_frames, seeds=None):
        self.asked.append((given, list(prompts), num_frames))
        return repeat_last(given, prompts, num_frames)

    def reconstruct(self, video):
        return video


@pytest.fixture(scope="module")
def asked(finished, tmp_path_factory):
    """What the sampler is asked for in each case: first frames, prompts, number of frames."""
    experiment, loaded = (
        Experiment.from_config(tiny(evaluation=dict(clips=8))),
        load_pretrained(finished),
    )
    still = Still.from_bundle(loaded.model, loaded.bundle)
    Still.asked = []
    folder = tmp_path_factory.mktemp("cases")
    report = evaluate(experiment, still, experiment.source("test"), folder).report
    assert report["direction_accuracy"] == 0 and report["psnr"] == report["psnr_copy_first"]
    return dict(zip(report["cases"], still.asked, strict=True))


def test_the_control_has_the_captions_of_other_clips(asked):
    (given, prompts, _), (same, shuffled, _) = asked["held_out"], asked["shuffled_captions"]
    np.testing.assert_array_equal(given, same)
    assert sorted(shuffled) == sorted(prompts) and shuffled != prompts


def test_counterfactuals_share_their_first_frame_and_differ_in_direction(asked):
    given, prompts, _ = asked["counterfactual"]
    assert len(given) == 8
    for i in range(0, 8, 4):
        assert (given[i : i + 4] == given[i]).all()
        assert {prompt.split()[-1] for prompt in prompts[i : i + 4]} == {
            "left",
            "right",
            "up",
            "down",
        }
        assert len({prompt.rsplit(" ", 1)[0] for prompt in prompts[i : i + 4]}) == 1
    assert (given[0] != given[4]).any()


def test_triples_are_seen_or_unseen_in_training(asked):
    held_out = {triple.caption for triple in HELD_OUT}
    assert set(asked["unseen_triples"][1]) <= held_out and not set(asked["held_out"][1]) & held_out


def test_longer_and_larger_than_trained(asked):
    sizes = {name: (given.shape[1:], frames) for name, (given, _, frames) in asked.items()}
    assert sizes["held_out"] == ((1, 24, 24, 3), 5)
    assert sizes["longer"] == ((1, 24, 24, 3), 7) and sizes["larger"] == ((1, 36, 36, 3), 5)


def test_a_larger_canvas_is_a_whole_number_of_tokens(finished, tmp_path):
    """With patches of two latents 1.5 times the side would be nine latents: known before, not after
    training."""
    experiment = Experiment.from_config(tiny(model=dict(patch_size=2), curriculum=ROWS_OF_TOKENS))
    loaded = load_pretrained(finished)
    still = Still.from_bundle(loaded.model, loaded.bundle)
    Still.asked = []
    evaluate(experiment, still, experiment.source("test"), tmp_path)
    assert still.asked[-1][0].shape[2:] == (32, 32, 3)


def test_a_report_is_written_without_the_training_clips(footage, tmp_path, caplog):
    """They may be gone by the end of a run; the linear predictor is then left out."""
    workdir, report, _ = footage
    experiment = Experiment.from_config(tiny_videos(workdir.parent / "clips"))
    loaded = load_pretrained(workdir)
    still = Still.from_bundle(loaded.model, loaded.bundle)
    Still.asked = []

    class Gone:
        fps = 12.0

        def __len__(self):
            return 2

        def read(self, index, rng, shape):
            raise FileNotFoundError("a.mp4 is gone")

    held_out = experiment.source("test", min_frames=5)
    with caplog.at_level("WARNING"):
        found = evaluate(experiment, still, held_out, tmp_path, Gone()).report
    assert "the report has no linear predictor: a.mp4 is gone" in caplog.text
    assert "psnr_linear" not in found and "linear_predictor" not in found
    assert found["psnr_ceiling"] == 100 and "no better than repeating" in found["verdict"]
    assert found["psnr_copy_first"] == report["psnr_copy_first"]

"""The report says what was measured: scores leave the given frame out, files are complete, links
lead somewhere."""

import dataclasses
import functools
import json
import re
from urllib.parse import unquote

import numpy as np
import pytest

from videomar_jax.data.loader import fixed_clips
from videomar_jax.data.shapes import Shapes
from videomar_jax.data.sources import ClipShape
from videomar_jax.evaluation import metrics, networks, report
from videomar_jax.evaluation.baselines import repeat_last
from videomar_jax.evaluation.motion import direction_of, movement
from videomar_jax.evaluation.report import (
    Case,
    Part,
    Shown,
    quality,
    score,
    sheet_rows,
)
from videomar_jax.evaluation.report_text import write_report


def shapes_case(count=3):
    clips = fixed_clips(
        Shapes(seed=1, length=9, split="test", bounce=False),
        range(count),
        shape=ClipShape(num_frames=9, height=32, width=32),
    )
    directions = [direction_of(caption) for caption in clips["caption"]]
    return Case(
        name="held_out",
        title="T",
        reference=clips["video"],
        prompts=clips["caption"],
        measure=functools.partial(movement, directions=directions),
    )


def echo(case):
    """A perfect model: it answers with the truth, having been given the first frames, the prompts
    and the length."""

    def generate(first, prompts, frames, seeds):
        assert list(seeds) == list(range(len(first)))
        assert frames == case.reference.shape[1] and list(prompts) == list(case.prompts)
        np.testing.assert_array_equal(first, case.reference[:, :1])
        return case.reference

    return generate


def psnr_by_hand(video, truth):
    errors = ((video.astype(float) - truth.astype(float)) ** 2).mean(axis=(2, 3, 4))
    return float(np.mean(10 * np.log10(255**2 / errors)))


def test_a_perfect_model():
    case = shapes_case()
    blurred = (case.reference // 16 * 16).astype(np.uint8)
    found = score(case, echo(case), lambda clips: blurred)
    scores = found.scores["held_out"]
    assert scores["clips"] == 3
    for number, clip in enumerate(found.shown["held_out"]):
        assert clip.caption == case.prompts[number] and set(clip.videos) == {"truth", "generated"}
        np.testing.assert_array_equal(clip.videos["generated"], case.reference[number])
    assert scores["changed_psnr"] == 100 and scores["motion"] == scores["better_than_copy"] == 1
    assert scores["psnr"] == 100 and scores["ssim"] == pytest.approx(1)
    assert scores["direction_accuracy"] == scores["object_present"] == 1
    assert scores["centroid_error"] == scores["centroid_error_last"] == 0
    assert scores["psnr_ceiling"] == pytest.approx(
        psnr_by_hand(blurred[:, 1:], case.reference[:, 1:]), abs=1e-3
    )
    still = np.repeat(case.reference[:, :1], 8, axis=1)
    assert scores["psnr_copy_first"] == pytest.approx(
        psnr_by_hand(still, case.reference[:, 1:]), abs=1e-3
    )


def test_a_model_that_repeats_the_first_frame():
    case = shapes_case()
    still = np.repeat(case.reference[:, :1], 9, axis=1)
    scores = score(case, lambda *_: still, lambda clips: clips).scores["held_out"]
    assert scores["motion"] == scores["better_than_copy"] == 0
    assert (
        scores["psnr"] == scores["psnr_copy_first"] and scores["ssim"] == scores["ssim_copy_first"]
    )
    assert scores["direction_accuracy"] == 0 and scores["object_present"] == 1
    assert scores["centroid_error_last"] == pytest.approx(12, abs=0.5), "eight steps of 1.5 px"
    assert scores["centroid_error"] == pytest.approx(12 * 4.5 / 8, abs=0.5), (
        "the mean leaves the given frame out"
    )


def test_the_given_frame_does_not_count():
    case = shapes_case()
    rng = np.random.default_rng(0)
    noisy = case.reference.copy()
    noisy[:, 0] = rng.integers(0, 255, noisy[:, 0].shape)
    scores = quality(noisy, case.reference, noisy)
    assert scores["psnr"] == scores["psnr_ceiling"] == 100


def test_a_metric_of_the_table_is_in_every_report(monkeypatch):
    """A new metric needs nothing but its row; it is scored for the baselines as well."""
    mean = metrics.Metric(
        lambda video, reference: video.mean(axis=(1, 2, 3, 4)) - reference.mean(axis=(1, 2, 3, 4)),
        "levels",
        "lower",
        "brightness too much",
    )
    monkeypatch.setitem(metrics.METRICS, "brightness", mean)
    reference = np.full((2, 3, 4, 4, 3), 100, np.uint8)
    reference[:, 1:] = 110
    scores = quality(reference + 5, reference, reference - 3)
    assert list(scores)[-3:] == ["brightness", "brightness_copy_first", "brightness_ceiling"]
    assert [scores[name] for name in list(scores)[-3:]] == [5, -10, -3]


def test_the_report_says_what_its_scores_mean(tmp_path):
    write_report(tmp_path, {"cases": {"held_out": {"psnr": 20.5, "centroid_error": 1.0}}}, {})
    text = (tmp_path / "report.md").read_text()
    assert "- psnr: peak signal-to-noise ratio, mean over frames, in dB; higher is better" in text
    assert "- centroid_error: " in text and ", in px; lower is better" in text
    assert "- ssim:" not in text, "a score that no case has"


def suffixed(*candidates):
    names = metrics.METRICS
    return {f"{name}_{other}" if other else name for name in names for other in candidates}


def test_footage_has_no_scores_of_drawn_objects():
    case = shapes_case()
    footage = Case(name="a", title="A", reference=case.reference, prompts=case.prompts)
    scores = score(footage, echo(footage), lambda clips: clips).scores["a"]
    assert set(scores) == suffixed("", "copy_first", "ceiling") | {"clips", "better_than_copy"}


def footage_case(count=7, given=3, **changes):
    """Clips that become brighter, each with a caption of its own but one."""
    video = np.full((count, 6, 8, 8, 3), 100, np.uint8)
    video += (10 * np.arange(6, dtype=np.uint8))[:, None, None, None]
    video += np.arange(count, dtype=np.uint8)[:, None, None, None, None]
    prompts = [f"caption {number}" for number in range(count - 1)] + [""]
    others = ["other"] * (count - 1) + [""]
    parts = (Part(name="some", title="Some", clips=[1, 5]),)
    case = Case(name="whole", title="Whole", reference=video, prompts=prompts, given=given)
    return dataclasses.replace(case, **{"other_prompts": others, "parts": parts} | changes)


class Model:
    """Off by some grey levels that the prompt decides; records how it was called."""

    def __init__(self, case, off):
        self.case, self.off, self.calls = case, off, []

    def __call__(self, given, prompts, frames, seeds):
        self.calls.append((given.shape, list(prompts), list(seeds)))
        made = self.case.reference[list(seeds)].copy()
        np.testing.assert_array_equal(given, made[:, : self.case.given])
        made[:, self.case.given :] += np.array(
            [self.off(prompt) for prompt in prompts], np.uint8
        ).reshape(-1, 1, 1, 1, 1)
        return made


def dB(error):
    return 10 * np.log10(255**2 / error**2)


def test_footage_beside_its_baselines():
    """The model is 4 levels off, with another caption 8, the linear predictor 5."""
    case = footage_case()
    model = Model(case, lambda prompt: 8 if prompt == "other" else 4)
    linear = Model(case, lambda _: 5)
    found = score(case, model, lambda clips: clips, linear=linear, batch_size=2, show=3)
    assert set(found.scores) == {"whole", "some"}
    for name, clips in (("whole", 7), ("some", 2)):
        scores = found.scores[name]
        assert set(scores) == suffixed("", "copy_last", "linear", "ceiling", "other_caption") | {
            "clips",
            "better_than_copy",
            "better_than_copy_linear",
            "better_than_linear",
            "right_caption_better",
        }
        assert scores["clips"] == clips
        assert scores["psnr"] == pytest.approx(dB(4))
        assert scores["psnr_linear"] == pytest.approx(dB(5))
        assert scores["psnr_other_caption"] == pytest.approx(dB(8)), "a clip without one counts"
        assert scores["psnr_copy_last"] == pytest.approx((dB(10) + dB(20) + dB(30)) / 3)
        # Ten levels are no visible change, so the first new frame does not count.
        assert scores["changed_psnr"] == pytest.approx(dB(4))
        pooled = np.sqrt((20**2 + 30**2) / 2)
        assert scores["changed_psnr_copy_last"] == pytest.approx(dB(pooled))
        assert scores["motion"] == pytest.approx(34 / 30)
        assert scores["motion_copy_last"] == 0 and scores["motion_ceiling"] == 1
        assert scores["better_than_copy"] == scores["better_than_linear"] == 1
        assert scores["better_than_copy_linear"] == 1
        assert scores["right_caption_better"] == 1
    for clips in found.shown.values():
        labels = ["truth", "generated", "linear predictor", "repeated frame"]
        assert all(list(clip.videos) == labels for clip in clips)
    assert [clip.caption for clip in found.shown["some"]] == ["caption 1", "caption 5"]
    assert len(found.shown["whole"]) == 3


def test_clips_are_scored_some_at_a_time(monkeypatch):
    """Scores do not depend on how many are in memory; whole batches of the model are asked for."""
    case = footage_case()
    off = {prompt: number % 3 + 1 for number, prompt in enumerate(case.prompts)} | {"other": 6}
    model = Model(case, off.__getitem__)
    at_once = score(case, model, lambda clips: clips, batch_size=2)
    assert [len(seeds) for _, _, seeds in model.calls] == [7, 7]
    monkeypatch.setattr(report, "_AT_A_TIME", 5 * case.reference[0].nbytes)
    model.calls.clear()
    in_parts = score(case, model, lambda clips: clips, batch_size=2)
    assert [seeds for _, _, seeds in model.calls[::2]] == [[0, 1, 2, 3], [4, 5, 6]]
    assert at_once.scores == in_parts.scores
    for name, clips in at_once.shown.items():
        for one, other in zip(clips, in_parts.shown[name], strict=True):
            for label, video in one.videos.items():
                np.testing.assert_array_equal(video, other.videos[label])


def test_large_clips_are_not_all_kept_for_pictures(monkeypatch):
    case = footage_case()
    monkeypatch.setattr(report, "_FOR_PICTURES", 2 * 2 * 4 * case.reference[0].nbytes)
    found = score(case, Model(case, lambda _: 1), lambda clips: clips)
    assert [len(clips) for clips in found.shown.values()] == [2, 2]


def test_clips_in_which_nothing_changes():
    video = np.full((2, 3, 8, 8, 3), 50, np.uint8)
    case = Case(name="a", title="A", reference=video, prompts=["", ""])
    still = score(case, lambda *call: repeat_last(*call), lambda clips: clips).scores["a"]
    assert "changed_psnr" not in still and "motion" not in still
    assert all(np.isfinite(value) for value in still.values())


def test_sheet_rows_pair_truth_and_generated():
    videos = np.arange(4 * 2 * 3 * 3 * 3, dtype=np.uint8).reshape(4, 2, 3, 3, 3)
    shown = [
        Shown("one", {"truth": videos[0], "generated": videos[1]}),
        Shown("", {"truth": videos[2], "generated": videos[3]}),
    ]
    rows = sheet_rows(shown)
    assert [label for label, _ in rows] == [
        "truth: one",
        "generated: one",
        "truth: (no caption)",
        "generated: (no caption)",
    ]
    for (_, video), expected in zip(rows, videos, strict=True):
        np.testing.assert_array_equal(video, expected)


def test_each_baseline_has_its_row_below_the_model(tmp_path):
    scores = {"psnr": 30.0, "psnr_copy_last": 28.0, "psnr_linear": 29.5}
    scores |= {"better_than_copy": 0.75, "better_than_copy_linear": 0.7}
    sentence = "Better than repeating."
    report = {"cases": {"a": scores}, "verdict": "All in all.", "verdicts": {"a": sentence}}
    write_report(tmp_path, report, {})
    text = (tmp_path / "report.md").read_text()
    assert "| case | psnr | better_than_copy |" in text
    assert "| a | 30 | 0.75 |\n| – repeating the last given frame | 28 |  |" in text
    assert "| – the linear predictor | 29.5 | 0.7 |" in text
    assert "**All in all.**" in text and f"- a: {sentence}" in text
    assert "- ..._linear in report.json: the same score of the linear predictor" in text
    assert "- better_than_copy: " in text


def test_files(tmp_path):
    cases = {"held_out": {"psnr": 20.5, "direction_accuracy": 1.0}, "my | clip": {"psnr": 3.25}}
    report = {"psnr": 20.5, "cases": cases, "seconds": {"evaluate": 1.23456}}
    (tmp_path / "report.json").write_text("an older one")
    write_report(tmp_path, report, {"report/my clip (1).png": "A picture"})
    assert json.loads((tmp_path / "report.json").read_text()) == report
    text = (tmp_path / "report.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1, "a case's name breaks the table"
    assert "| held_out | 20.5 | 1 |" in table
    assert "`seconds`: evaluate 1.235" in text
    links = re.findall(r"!\[[^\]]*\]\(([^)\s]*)\)", text)
    assert [unquote(link) for link in links] == ["report/my clip (1).png"], (
        "a file's name breaks the link"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]


def test_the_best_the_median_and_the_worst_clip_are_those():
    """By the gain over repeating, which is the same still for all; clip i is off by `off[i]`."""
    case = footage_case(count=5, parts=(), other_prompts=None)
    off = dict(zip(case.prompts, [6, 2, 9, 4, 8], strict=True))
    found = score(case, Model(case, off.__getitem__), lambda clips: clips)
    numbers = {"best": 1, "median": 0, "worst": 2}
    assert len(found.ranked) == 3
    for shown, (label, number) in zip(found.ranked, numbers.items(), strict=True):
        prompt = case.prompts[number]
        assert shown.caption.startswith(f"{label}, {dB(off[prompt]):.1f} dB, repeating ")
        assert shown.caption.endswith(f": {prompt or '(no caption)'}")
        np.testing.assert_array_equal(shown.videos["truth"], case.reference[number])
        difference = shown.videos["generated"].astype(int) - case.reference[number]
        assert (difference[case.given :] == off[prompt]).all()


def test_two_clips_have_no_median():
    case = footage_case(count=2, parts=())
    assert score(case, Model(case, lambda _: 1), lambda clips: clips).ranked == []


def distances(video, reference):
    """In place of LPIPS: the mean difference."""
    return np.abs(video.astype(float) - reference).mean(axis=(1, 2, 3, 4))


def frame_means(network, clips):
    """In place of I3D: the mean of every frame, so that FVD can be computed by hand."""
    means = clips.astype(np.float32).mean(axis=(2, 3))[..., 0]
    return np.pad(means, [(0, 0), (0, 400 - means.shape[1])])


def test_networks_score_what_they_can(monkeypatch):
    monkeypatch.setattr(networks.I3D, "features", frame_means)
    monkeypatch.setattr(networks.LPIPS, "__call__", lambda self, *pair: distances(*pair))
    monkeypatch.setattr(networks, "check_size", lambda *_: None)
    for name, value in (("LEAST_CLIPS", 4), ("LEAST_FRAMES", 6)):
        monkeypatch.setattr(networks, name, value)
    both = networks.Networks(
        i3d=networks.I3D(params={}), lpips=networks.LPIPS(network="alex", params={})
    )
    case = footage_case(count=4, other_prompts=None)
    case = dataclasses.replace(case, parts=(Part(name="some", title="S", clips=[1, 3]),))
    found = score(case, Model(case, lambda _: 3), lambda clips: clips + 1, networks=both)
    scores = found.scores["whole"]
    # All clips are moved alike, so only the means differ: of 6 frames 3 are off by 3, or all by 1.
    assert scores["fvd"] == pytest.approx(3 * 3**2)
    assert scores["fvd_ceiling"] == pytest.approx(6 * 1**2)
    assert scores["fvd_copy_last"] == pytest.approx(10**2 + 20**2 + 30**2)
    assert "fvd" not in found.scores["some"], "FVD is of the case as a whole"
    assert scores["lpips"] == pytest.approx(3) and scores["lpips_copy_last"] == pytest.approx(20)
    assert found.scores["some"]["lpips"] == pytest.approx(3) and found.notes == []


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((399, 16, 64, 64, 3), [r"FVD was not computed: 399 clips, and it takes 400 or more"]),
        ((400, 8, 64, 64, 3), [r"FVD was not computed: clips of 8 frames, and it takes 9 or"]),
        ((400, 16, 30, 64, 3), [r"LPIPS was not computed: .* at least 31 pixels, not 30x64"]),
        ((9, 16, 30, 64, 3), ["FVD", "LPIPS"]),
        ((400, 9, 31, 31, 3), []),
    ],
)
def test_clips_that_a_network_cannot_take_are_told(shape, says):
    given = networks.Networks(
        i3d=networks.I3D(params={}), lpips=networks.LPIPS(network="alex", params={})
    )
    suited, reasons = given.suited(shape)
    assert len(reasons) == len(says)
    for reason, pattern in zip(reasons, says, strict=True):
        assert re.search(pattern, reason)
    assert (suited.i3d is None) == any("FVD" in reason for reason in reasons)
    assert (suited.lpips is None) == any("LPIPS" in reason for reason in reasons)
    nothing, reasons = networks.Networks().suited(shape)
    assert reasons == [] and nothing.metrics() == {}

"""The report says what was measured: scores leave the given frame out, files are complete, links
lead somewhere."""

import json
import re
from urllib.parse import unquote

import numpy as np
import pytest

from videomar_jax.data.loader import fixed_clips
from videomar_jax.data.shapes import Shapes
from videomar_jax.data.sources import ClipShape
from videomar_jax.evaluation import metrics
from videomar_jax.evaluation.motion import direction_of
from videomar_jax.evaluation.report import Case, quality, score, sheet_rows, write_report


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
        directions=directions,
    )


def echo(case):
    """A perfect model: it answers with the truth, having been given the first frames, the prompts
    and the length."""

    def generate(first, prompts, frames):
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
    scores, generated = score(case, echo(case), lambda clips: blurred)
    assert scores["clips"] == 3 and generated is case.reference
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
    scores, _ = score(case, lambda *_: still, lambda clips: clips)
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


def test_footage_has_no_directions():
    case = shapes_case()
    footage = Case(name="a", title="A", reference=case.reference, prompts=case.prompts)
    assert set(score(footage, echo(footage), lambda clips: clips)[0]) == {
        "clips",
        "psnr",
        "psnr_copy_first",
        "psnr_ceiling",
        "ssim",
        "ssim_copy_first",
        "ssim_ceiling",
    }


def test_sheet_rows_pair_truth_and_generated():
    case = Case(
        name="a", title="A", reference=shapes_case().reference, prompts=["one", "", "three"]
    )
    made = 255 - case.reference
    rows = sheet_rows(case, made, count=2)
    assert [label for label, _ in rows] == [
        "truth: one",
        "generated: one",
        "truth: (no caption)",
        "generated: (no caption)",
    ]
    np.testing.assert_array_equal(rows[2][1], case.reference[1])
    np.testing.assert_array_equal(rows[3][1], made[1])


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

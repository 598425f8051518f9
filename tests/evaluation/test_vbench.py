"""The scores of VBench-I2V: the arithmetic, the evaluator's files, the table."""

import json
import random
from pathlib import Path

import pytest

from videomar_jax.checks import UserError
from videomar_jax.evaluation.vbench import (
    DIMENSIONS,
    PUBLISHED,
    Comparison,
    Result,
    check_results,
    read_results,
    result_files,
    scores,
)

VALUES = {
    "i2v_subject": 0.979,
    "i2v_background": 0.984,
    "camera_motion": 0.25,
    "subject_consistency": 0.95,
    "background_consistency": 0.96,
    "motion_smoothness": 0.99,
    "dynamic_degree": 0.125,
    "aesthetic_quality": 0.558,
    "imaging_quality": 0.623,
}
COUNTS = {name: 8 for name in VALUES}


def entry(name, value, videos=8):
    """What the evaluator writes of one dimension: the mean over some videos, and each of them."""
    if name in ("camera_motion", "dynamic_degree"):
        hits = round(value * videos)
        each = [number < hits for number in range(videos)]
    else:
        spread = [0.002 * (number % 2 - 0.5) for number in range(videos)]
        each = [value + change for change in spread]
    if name == "imaging_quality":
        each = [100 * one for one in each]
    listed = [{"video_path": f"v/{n}.mp4", "video_results": one} for n, one in enumerate(each)]
    if name == "camera_motion":
        return [value, {"pan_left": value, "static": float("nan")}, listed]
    return [value, listed]


def write(file, values=VALUES, **changes):
    file.parent.mkdir(parents=True, exist_ok=True)
    entries = {name: entry(name, value) for name, value in values.items()}
    file.write_text(json.dumps(entries | changes, indent=4))
    return file


def by_hand(v):
    """I2V, Quality and Total, written out."""
    subject = (v["i2v_subject"] - 0.1462) / 0.8538
    background = (v["i2v_background"] - 0.2615) / 0.7385
    i2v = (subject + background + 0.1 * v["camera_motion"]) / 2.1
    quality = (
        (v["subject_consistency"] - 0.1462) / 0.8538
        + (v["background_consistency"] - 0.2615) / 0.7385
        + (v["motion_smoothness"] - 0.706) / 0.2915
        + v["aesthetic_quality"]
        + v["imaging_quality"]
        + 0.5 * v["dynamic_degree"]
    ) / 5.5
    return {"I2V": i2v, "Quality": quality, "Total": (i2v + quality) / 2}


def test_scores_are_those_of_the_formulas():
    rng = random.Random(0)
    for _ in range(20):
        values = {name: rng.random() for name in DIMENSIONS}
        assert scores(values) == pytest.approx(by_hand(values))


def test_the_published_row_of_videomar_agrees_with_itself():
    """I2V from its three dimensions to 0.1, Total as the mean of the two scores."""
    row = PUBLISHED[0].values
    names = ("i2v_subject", "i2v_background", "camera_motion")
    found = scores({name: row[name] / 100 for name in names})
    assert 100 * found["I2V"] == pytest.approx(row["I2V"], abs=0.1)
    assert found["Quality"] is None and found["Total"] is None
    assert (row["I2V"] + row["Quality"]) / 2 == pytest.approx(row["Total"], abs=0.02)


def test_the_published_videos_of_the_suite():
    """1118 prompts: 246 of subjects, 109 of backgrounds, 763 of the camera; five videos each."""
    counts = {name: dimension.videos for name, dimension in DIMENSIONS.items()}
    parts = [counts[name] for name in ("i2v_subject", "i2v_background", "camera_motion")]
    assert sum(parts) == 5590 and counts["aesthetic_quality"] == 5 * 355


def test_results_are_read_from_all_files_of_a_folder(tmp_path):
    i2v = {name: VALUES[name] for name in list(VALUES)[:3]}
    quality = {name: VALUES[name] for name in list(VALUES)[3:]}
    first = write(tmp_path / "a" / "results_2026-01-01-10:00:00_eval_results.json", i2v)
    second = write(
        tmp_path / "it's (b)_eval_results.json", quality, temporal_flickering=[0.9, [{"a": 1}]]
    )
    write(tmp_path / "a" / "results_full_info.json")  # the evaluator's list of videos is none
    assert result_files([tmp_path]) == sorted([first, second])
    assert result_files([first, tmp_path, second]) == [first, second]
    results = read_results(result_files([tmp_path]))
    assert list(results) == list(DIMENSIONS)
    assert {name: result.value for name, result in results.items()} == VALUES
    assert {result.videos for result in results.values()} == {8}
    assert results["camera_motion"].file == first
    assert check_results(results, COUNTS) == []


def test_the_table_shows_every_dimension_beside_what_is_published(tmp_path):
    comparison = Comparison(results=read_results([write(tmp_path / "r_eval_results.json")]))
    lines = comparison.table().splitlines()
    cells = {row[1].strip(" *"): row[2:-1] for row in (line.split("|") for line in lines)}
    cells = {title: [cell.strip() for cell in row] for title, row in cells.items()}
    assert cells["per cent"][:3] == ["this model", "VideoMAR", "Cosmos"]
    assert cells["I2V subject"] == ["97.90", "97.9", *["-"] * 6]
    total = by_hand(VALUES)["Total"]
    assert cells["Total"][:3] == [f"{100 * total:.2f}", "84.82", "84.16"]
    assert cells["Subject consistency"][:2] == ["95.00", "-"]
    assert len({len(line) for line in lines}) == 1, "the columns do not line up"
    report = json.loads(comparison.to_json())
    assert report["scores"]["Total"] == pytest.approx(total)
    assert report["dimensions"]["imaging_quality"]["videos"] == 8
    assert report["published_per_cent"]["Cosmos"] == {"I2V": 92.51, "Total": 84.16}
    assert comparison.table() in comparison.markdown()


def test_missing_dimensions_are_an_error_unless_a_part_is_asked_for(tmp_path):
    some = {name: VALUES[name] for name in VALUES if name != "camera_motion"}
    results = read_results([write(tmp_path / "r_eval_results.json", some)])
    with pytest.raises(UserError, match=r"no results of camera_motion.*--partial"):
        check_results(results, COUNTS)
    faults = check_results(results, COUNTS, partial=True)
    comparison = Comparison(results=results, faults=faults)
    found = comparison.scores
    assert found["I2V"] is None and found["Total"] is None
    assert found["Quality"] == pytest.approx(by_hand(VALUES)["Quality"])
    assert "Not complete" in comparison.markdown() and "camera_motion" in comparison.markdown()
    assert json.loads(comparison.to_json())["incomplete"] == faults


def test_missing_videos_are_an_error():
    results = {name: Result(value=0.5, videos=8, file=Path("r.json")) for name in VALUES}
    with pytest.raises(UserError, match=r"i2v_subject was measured on 8 videos, .* has 10"):
        check_results(results, COUNTS | {"i2v_subject": 10})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(i2v_subject=entry("i2v_subject", 1.5)), "lie in 0..1"),
        (dict(i2v_subject=[float("nan"), []]), "no finite number"),
        (dict(i2v_subject=[0.5, []]), "on no video"),
        (dict(i2v_subject=0.5), "no list"),
        (dict(i2v_subject=[0.5]), "no list"),
        (dict(i2v_subject=[0.5, [{"video_path": "a.mp4"}]]), "without"),
        (dict(i2v_subject=[0.5, [{"video_results": "high"}]]), "no finite number"),
        (dict(i2v_subject=[0.5, entry("i2v_subject", 0.9)[1]]), "mean over its videos 0.9"),
        (dict(imaging_quality=[0.5, entry("i2v_subject", 0.5)[1]]), "mean over its videos"),
        (dict(object_class=[0.5, []]), "Unknown key 'object_class'"),
    ],
    ids=str,
)
def test_damaged_results_are_named(tmp_path, changes, reason):
    file = write(tmp_path / "r_eval_results.json", **changes)
    with pytest.raises(UserError, match=reason) as caught:
        read_results([file])
    assert str(file) in str(caught.value)


def test_what_is_no_result_is_refused(tmp_path):
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match="no object"):
        read_results([tmp_path / "list.json"])
    (tmp_path / "half.json").write_text('{"i2v_subject": [0.5')
    with pytest.raises(UserError, match=r"half\.json.*no JSON"):
        read_results([tmp_path / "half.json"])
    (tmp_path / "none.json").write_text('{"temporal_flickering": [0.5, []]}')
    with pytest.raises(UserError, match="none of the dimensions"):
        read_results([tmp_path / "none.json"])
    with pytest.raises(FileNotFoundError, match="when it ends"):
        result_files([tmp_path])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        result_files([tmp_path / "nowhere"])
    first, second = (write(tmp_path / f"{name}_eval_results.json") for name in "ab")
    with pytest.raises(UserError, match="i2v_subject is measured twice"):
        read_results([first, second])

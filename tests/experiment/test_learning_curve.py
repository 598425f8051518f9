"""Scores over the checkpoints of a run: what is measured, once, and what is drawn of it."""

import json
import re
import shutil
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from tests.helpers.tiny_run import tiny
from videomar_jax.checks import UserError
from videomar_jax.experiment import learning_curve as module
from videomar_jax.experiment.comparison_options import NetworkOptions
from videomar_jax.experiment.learning_curve import (
    best_steps,
    evaluate_all_named,
    score_panels,
)

STEPS = {
    100: {"held_out": {"psnr": 20.0, "psnr_copy_first": 19.0, "motion": 0.5, "given_psnr": 100.0}},
    200: {"held_out": {"psnr": 22.0, "psnr_copy_first": 19.0, "motion": 1.4, "given_psnr": 100.0}},
    300: {"held_out": {"psnr": 21.0, "psnr_copy_first": 19.0, "motion": 0.9, "given_psnr": 100.0}},
}


def measure(run, output, **changes):
    return evaluate_all_named(tiny(**changes).to_dict(), str(run), str(output), NetworkOptions())


@pytest.fixture(scope="module")
def curve(finished, tmp_path_factory):
    """(the run, the folder of its curve) with an odd name."""
    output = tmp_path_factory.mktemp("curves") / "of a run (1)"
    steps = measure(finished, output)
    assert list(steps) == [4, 6]
    return finished, output


def test_the_last_checkpoint_has_the_scores_of_the_run(curve):
    run, output = curve
    steps = json.loads((output / "curve.json").read_text())["steps"]
    assert list(steps) == ["4", "6"]
    report = json.loads((run / "report.json").read_text())
    assert steps["6"]["cases"] == report["cases"]
    assert steps["4"]["cases"]["held_out"]["psnr"] != report["psnr"]


def test_the_curve_has_a_table_pictures_and_links(curve):
    _, output = curve
    text = (output / "curve.md").read_text()
    psnr = json.loads((output / "curve.json").read_text())["steps"]["4"]["cases"]["held_out"]
    assert re.search(rf"^\| 4 \| {psnr['psnr']:.4g} \|", text, re.MULTILINE)
    assert "- psnr: peak signal" in text and "Best: step" in text
    links = [unquote(link) for link in re.findall(r"\]\(([^)]*)\)", text)]
    assert {"curve_held_out.png", "steps/4/report.md", "steps/6/report.md"} <= set(links)
    assert all((output / link).exists() for link in links)
    with Image.open(output / "curve_held_out.png") as picture:
        assert picture.size[0] == 900 and picture.size[1] >= 4 * 240


def test_a_checkpoint_is_measured_once(curve, monkeypatch):
    run, output = curve
    before = (output / "curve.json").read_text()

    def measured(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(module, "evaluate_checkpoint", measured)
    measure(run, output)
    assert (output / "curve.json").read_text() == before


def test_an_interrupted_measurement_is_continued(curve, tmp_path, monkeypatch):
    """One step was counted, the report of the next one was complete: neither is measured."""
    run, output = curve
    copy = tmp_path / "copy"
    shutil.copytree(output, copy)
    values = json.loads((copy / "curve.json").read_text())
    del values["steps"]["6"]
    (copy / "curve.json").write_text(json.dumps(values))
    monkeypatch.setattr(module, "evaluate_checkpoint", None)
    measure(run, copy)
    assert (copy / "curve.json").read_text() == (output / "curve.json").read_text()


def test_a_checkpoint_that_is_new_is_added(curve, tmp_path, monkeypatch):
    run, output = curve
    copy = tmp_path / "copy"
    shutil.copytree(output, copy)
    values = json.loads((copy / "curve.json").read_text())
    del values["steps"]["4"]
    shutil.rmtree(copy / "steps" / "4")
    (copy / "curve.json").write_text(json.dumps(values))
    asked = []

    def measured(experiment, folder, checkpoint, networks):
        asked.append((folder, checkpoint))
        return {"cases": STEPS[100]}

    monkeypatch.setattr(module, "evaluate_checkpoint", measured)
    steps = measure(run, copy)
    assert asked == [(copy / "steps" / "4", run / "checkpoints" / "4")]
    assert steps[4] == STEPS[100] and list(steps) == [4, 6]


def of_other_settings(run, output):
    return lambda: measure(run, output, evaluation=dict(clips=3)), r"other settings \(config\)"


def of_another_training(run, output):
    values = json.loads((output / "curve.json").read_text())
    values["steps"]["4"]["digest"] = "0" * 64
    (output / "curve.json").write_text(json.dumps(values))
    return lambda: measure(run, output), r"another checkpoint of step 4: the run was trained anew"


def of_something_else(run, output):
    (output / "curve.json").unlink()
    return lambda: measure(run, output), r"holds other files: choose another --output"


def of_one_checkpoint(run, output):
    one = run / "checkpoints" / "4"
    return lambda: measure(one, output), r"4 is one checkpoint: name its run, .*finished"


def of_nothing(run, output):
    empty = output.parent / "empty"
    empty.mkdir()
    return lambda: measure(empty, output), r"empty"


@pytest.mark.parametrize(
    "spoil",
    [of_other_settings, of_another_training, of_something_else, of_one_checkpoint, of_nothing],
    ids=lambda function: function.__name__,
)
def test_scores_that_do_not_belong_together_are_not_mixed(spoil, curve, tmp_path):
    run, output = curve
    copy = tmp_path / "copy"
    shutil.copytree(output, copy)
    attempt, says = spoil(run, copy)
    before = sorted(copy.rglob("*"))
    with pytest.raises((UserError, FileNotFoundError), match=says):
        attempt()
    assert sorted(copy.rglob("*")) == before


def test_what_must_be_named():
    with pytest.raises(UserError, match="Name what is scored: --config=CONFIG, --checkpoint=DIR"):
        evaluate_all_named(None, "a", "b", NetworkOptions())


def test_scores_that_never_change_are_not_drawn():
    panels = score_panels(STEPS, "held_out")
    assert [panel.title for panel in panels] == [
        "psnr, dB (higher is better)",
        "motion (1 is best)",
    ]
    psnr = panels[0].curves
    assert list(psnr) == ["model", "repeating the first frame"]
    np.testing.assert_array_equal(psnr["model"].values, [20, 22, 21])


def test_the_best_step_by_each_score():
    """Of motion the best is the nearest to 1."""
    assert best_steps(STEPS, "held_out") == "Best: step 200 by psnr; step 300 by motion."

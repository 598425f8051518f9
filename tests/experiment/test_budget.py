"""A run that is given minutes: sizes and steps follow from the measured speed, once."""

import dataclasses
import json

import numpy as np
import pytest

from tests.helpers.tiny_run import start, tiny, tiny_videos, write_clip
from videomar_jax.checks import UserError
from videomar_jax.experiment import budget, run
from videomar_jax.experiment.budget import Budget, choose_budget, typical_size
from videomar_jax.experiment.config import Experiment
from videomar_jax.training.loop import StepTime, time_steps


class Machine:
    """Pretends a speed: seconds to compile, seconds of a step of each stage of 4 clips at 32x32."""

    def __init__(self, compile_s, *step_s):
        self.compile_s, self.step_s = compile_s, step_s
        self.asked = []

    def __call__(self, experiment, index):
        stage = experiment.recipe.curriculum.stages[index]
        self.asked.append((index, stage.height, stage.width))
        factor = stage.height * stage.width / 32**2 * stage.batch_size / 4
        return StepTime(compile_s=self.compile_s, step_s=self.step_s[index] * factor)


def choose(machine, **settings):
    config = tiny(run=settings)
    return choose_budget(Experiment.from_config(config), config.to_dict(), machine)


def test_all_stages_together_take_the_minutes_in_the_shares_of_the_config():
    """Stages of 3 steps each; a fifth of the time is the report's."""
    found = choose(Machine(5.0, 0.2, 1.0), minutes=10.0, size=(32, 32))
    assert found.steps[0] == found.steps[1]
    assert found.batch_sizes == (2, 2) and found.seconds_per_step == (0.1, 0.5)
    seconds = sum(count * each for count, each in zip(found.steps, (0.1, 0.5), strict=True))
    assert 0.97 * (480 - 10) < seconds <= 480 - 10


def test_a_batch_of_larger_frames_has_fewer_clips():
    """The stages have 16 clips of 16x16 and 12 of 24x24 pixels."""
    config = tiny(run=dict(minutes=60.0, size=(48, 32)))
    rows = [
        dict(row, batch_size=batch) for row, batch in zip(config.curriculum, (16, 12), strict=True)
    ]
    config.curriculum = tuple(rows)
    experiment = Experiment.from_config(config)
    found = choose_budget(experiment, config.to_dict(), Machine(0.0, 0.1, 0.1))
    assert found.batch_sizes == (3, 4), "16 / 6 and 12 / (8 / 3), rounded"
    assert [row["batch_size"] for row in found.apply(config.to_dict())["curriculum"]] == [3, 4]


def test_all_processes_take_the_size_of_the_first(monkeypatch):
    """Else they would cut their batches differently, and train on in silence."""
    asked = []

    def from_first(numbers):
        asked.append(numbers())
        return np.asarray([64, 64] if len(asked) == 1 else [17, 19], np.int32)

    monkeypatch.setattr(budget, "from_first_process", from_first)
    found = choose(Machine(0.0, 0.1, 0.1), minutes=0.5)
    assert asked[0].tolist() == [32, 32], "this process would choose another size"
    assert (found.height, found.width, found.steps) == (64, 64, (17, 19))
    assert found.batch_sizes == (2, 2)


@pytest.mark.parametrize(
    ("size", "shares", "clips"),
    [
        ((32, 32), 1, 12),
        ((16, 16), 1, 12),
        ((64, 64), 1, 3),
        ((64, 64), 2, 4),
        ((512, 512), 1, 2),
        ((512, 512), 4, 4),
        ((48, 48), 12, 12),
    ],
)
def test_a_batch_is_divided_evenly(size, shares, clips):
    row = dict(height=32, width=32, batch_size=12)
    assert budget._batch_size(row, size, shares) == clips


def test_a_batch_of_a_single_clip_stays_one():
    assert budget._batch_size(dict(height=32, width=32, batch_size=1), (64, 64), 1) == 1


def test_frames_are_as_large_as_there_is_time_for():
    machine = Machine(0.0, 0.001, 0.004)  # 4 clips a step: 1000 clips a second at 32x32
    seconds_at_32 = budget.ENOUGH_WINDOWS / 1000
    few, many = (seconds_at_32 * factor / 48 for factor in (1.5, 4.5))
    small, large = choose(machine, minutes=few), choose(machine, minutes=many)
    assert (small.height, small.width) == (32, 32)
    assert (large.height, large.width) == (64, 64)
    assert machine.asked[-2:] == [(0, 64, 64), (1, 64, 64)]


def test_frames_have_the_proportions_of_the_footage(tmp_path):
    for number in range(3):
        write_clip(tmp_path / f"{number}.mp4", seed=number, size=(48, 96))
    config = tiny_videos(tmp_path, run=dict(minutes=60.0))
    experiment = Experiment.from_config(config)
    assert typical_size(experiment.source("train")) == (48, 96)
    found = choose_budget(experiment, config.to_dict(), Machine(0.0, 0.001, 0.001))
    assert (found.height, found.width) == (44, 92), "48x96 has the area of a square of 68"


def test_too_few_minutes_are_refused_with_enough_ones():
    machine = Machine(1.0, 60.0, 120.0)
    with pytest.raises(UserError, match=r"run\.minutes=2 is too short .* about 1\d minutes"):
        choose(machine, minutes=2.0, size=(32, 32))


def test_a_mix_of_sizes_is_refused(tmp_path):
    row = dict(name="m", steps=3, learning_rate=1e-3)
    row["mix"] = (dict(num_frames=3, sizes=((24, 24), (24, 32)), batch_size=4),)
    with pytest.raises(UserError, match=r"stage 'm' mixes sizes"):
        start(tiny(run=dict(minutes=1.0), curriculum=(row,)), tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (dict(size=(32, 32)), "run.size needs run.minutes"),
        (dict(minutes=1.0, size=(32,)), "rows and columns"),
        (dict(minutes=0.0), "run.minutes"),
        (dict(minutes=-1.0), "run.minutes"),
    ],
)
def test_a_wrong_setting_is_named(settings, text):
    with pytest.raises(UserError, match=text):
        Experiment.from_config(tiny(run=settings))


def test_a_run_keeps_what_was_chosen(monkeypatch, tmp_path):
    """It continues with the same steps, whatever the machine does now."""
    workdir = tmp_path / "run"
    monkeypatch.setattr(budget, "LEAST_STEPS", 1)
    machine = Machine(0.0, 9.0, 9.0)
    monkeypatch.setattr(run.OpenedRuns, "time_stage", lambda self, *stage: machine(*stage))
    config = tiny(run=dict(minutes=1.0, size=(16, 16)))
    start(config, workdir)
    chosen = json.loads((workdir / "budget.json").read_text())
    first, second = chosen["steps"]
    assert first == second and 7 <= first <= 10, "48 seconds, a quarter of 9 seconds a step"
    assert (chosen["height"], chosen["width"]) == (16, 16)
    report = json.loads((workdir / "report.json").read_text())
    machine.asked.clear()
    start(config, workdir)
    assert not machine.asked, "the speed was measured again"
    again = json.loads((workdir / "report.json").read_text())
    assert again["psnr"] == report["psnr"]
    with pytest.raises(UserError, match=r"planned for 1 minutes"):
        start(tiny(run=dict(minutes=2.0, size=(16, 16))), workdir)
    (workdir / "budget.json").write_text('{"minutes": 1.0}')
    with pytest.raises(UserError, match=r"budget\.json is broken"):
        start(config, workdir)


def test_the_budget_is_written_again_with_the_run(tmp_path):
    file = tmp_path / "budget.json"
    chosen = Budget(
        minutes=1.0,
        size=None,
        height=8,
        width=8,
        steps=(1, 2),
        seconds_per_step=(0.5, 0.25),
        batch_sizes=(4, 2),
    )
    budget.write_budget(tmp_path, chosen)
    experiment = Experiment.from_config(tiny(run=dict(minutes=1.0)))
    assert budget.read_budget(tmp_path, experiment) == chosen
    assert file.exists()
    budget.write_budget(tmp_path, dataclasses.replace(chosen, steps=(1,)))
    with pytest.raises(UserError, match=r"batches and steps of different stages"):
        budget.read_budget(tmp_path, experiment)
    budget.write_budget(tmp_path, dataclasses.replace(chosen, steps=(1,), batch_sizes=(4,)))
    with pytest.raises(UserError, match=r"is for 1 stages, this config has 2"):
        budget.read_budget(tmp_path, experiment)


def test_a_checkpoint_is_measured_at_the_size_that_its_run_chose(tmp_path):
    config = tiny().to_dict()
    assert budget.at_chosen_size(config, tmp_path) is config, "there is no budget"
    chosen = Budget(
        minutes=1.0, size=None, height=40, width=24, steps=(1, 2), seconds_per_step=(0.5, 0.25)
    )
    budget.write_budget(tmp_path, chosen)
    rows = budget.at_chosen_size(config, tmp_path)["curriculum"]
    assert [(row["height"], row["width"]) for row in rows] == [(40, 24)] * 2
    assert [row["steps"] for row in rows] == [row["steps"] for row in config["curriculum"]]
    asked = tiny(run=dict(minutes=1.0, size=(32, 32))).to_dict()
    assert budget.at_chosen_size(asked, tmp_path) is asked
    (tmp_path / "budget.json").write_text('{"height": 40}')
    with pytest.raises(UserError, match=r"budget\.json is broken"):
        budget.at_chosen_size(config, tmp_path)


def test_a_budget_that_was_changed_is_refused(tmp_path):
    """A flipped bit would otherwise be another number of steps, in silence."""
    file = tmp_path / "budget.json"
    chosen = Budget(
        minutes=1.0, size=None, height=8, width=8, steps=(1, 2), seconds_per_step=(0.5, 0.25)
    )
    budget.write_budget(tmp_path, chosen)
    experiment = Experiment.from_config(tiny(run=dict(minutes=1.0)))
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"steps": [1, 3]}))
    with pytest.raises(UserError, match=r"budget\.json is broken .*not as it was written"):
        budget.read_budget(tmp_path, experiment)
    del values["sha256"], values["batch_sizes"]  # as earlier versions wrote it
    file.write_text(json.dumps(values))
    assert budget.read_budget(tmp_path, experiment) == chosen, "the batches are the config's"


def test_steps_are_timed_and_leave_nothing_behind(tmp_path):
    config = tiny()
    experiment = Experiment.from_config(config)
    inputs = run.prepare(experiment, tmp_path / "none").inputs
    found = time_steps(experiment.recipe, inputs, 0, least=1, seconds=0.0)
    assert found.compile_s > 0 and found.step_s > 0
    assert not (tmp_path / "none").exists()
    assert np.isfinite(found.step_s)

"""Two kills of a real run, and a verdict that sees every kind of difference."""

import json
import random
import shutil

import numpy as np
import pytest

from benchmarks.soak import HEADER, Failed, Kill, Run, _check_kill, differences, plan, saved, soak
from tests.helpers.tiny_run import STEPS
from videomar_jax.checkpoints.manager import Checkpoints


@pytest.mark.slow
def test_killed_twice(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(
        "JAX_NUM_CPU_DEVICES", "8"
    )  # as in the tests' own process: what it compiled is used again
    run = Run(tmp_path / "killed", 2, ["--config.mesh.data=1"])
    kills = [Kill("SIGTERM", "step", 1), Kill("SIGKILL", "save", 4)]
    soak(run, finished, kills, STEPS, random.Random(0))
    first, second = kills
    assert first.code == 75 and first.lost == 0 and first.step >= 1
    assert second.code == -9 and second.step >= 4 and second.checkpoint >= first.checkpoint
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == HEADER and printed[2:] == [first.row(1), second.row(2)]
    assert f"continuing from the checkpoint of step {second.checkpoint}" in run.output()


def test_the_plan_has_all_kinds_of_kills_in_order():
    kills = plan(30, 400, 5, random.Random(1))
    assert [kill.signal for kill in kills].count("SIGTERM") == 15
    assert {kill.aim for kill in kills} == {"step", "save", "start", "report"}
    targets = [kill.target for kill in kills]
    assert (
        targets == sorted(targets) and targets[0] >= 1 and targets[-2] < 390 and targets[-1] == 400
    )
    assert kills == plan(30, 400, 5, random.Random(1)) != plan(30, 400, 5, random.Random(2))


def test_a_run_agrees_with_itself(finished):
    assert differences(finished, finished, STEPS) == []


@pytest.fixture
def other(finished, tmp_path):
    """A copy of the finished run, to be changed."""
    return shutil.copytree(finished, tmp_path / "other")


def change_record(workdir, change):
    file = workdir / "metrics.jsonl"
    rows = change([json.loads(line) for line in file.read_text().splitlines()])
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("part", ["params", "ema", "opt_state"])
def test_one_bit_of_the_state_is_seen(finished, other, part):
    state = saved(other, STEPS)
    shutil.rmtree(other / "checkpoints")
    name = next(
        name
        for name, value in state.items()
        if name[0] == part and value.dtype == np.float32 and value.size
    )
    state[name] = state[name].copy()
    state[name].view(np.int32).reshape(-1)[-1] ^= 1
    tree = {}
    for path, value in state.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    with Checkpoints(other / "checkpoints") as checkpoints:
        checkpoints.save(STEPS, tree, {})
    (found,) = differences(other, finished, STEPS)
    assert found == f"1 of {len(state)} arrays differ: {'/'.join(name)}"


def test_the_state_holds_all_that_a_run_needs(finished):
    assert {name[0] for name in saved(finished, STEPS)} == {"params", "ema", "opt_state"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda rows: rows[:2] + rows[3:],
            "does not hold the steps 1 to 6 once each: [1, 2, 4, 5, 6]",
        ),
        (lambda rows: [*rows[:3], *rows[2:]], "once each: [1, 2, 3, 3, 4, 5, 6]"),
        (
            lambda rows: [row | {"loss": row["loss"] + (row["step"] == 4)} for row in rows],
            "step 4 differ in loss",
        ),
    ],
    ids=["a_step_missing", "a_step_twice", "another_loss"],
)
def test_a_record_that_differs_is_seen(finished, other, change, told):
    change_record(other, change)
    assert any(told in found for found in differences(other, finished, STEPS))


def test_the_clock_makes_no_difference_but_scores_do(finished, other):
    change_record(other, lambda rows: [row | {"steps_per_second": 1e9} for row in rows])
    assert differences(other, finished, STEPS) == []
    report = json.loads((other / "report.json").read_text())
    report["cases"]["held_out"]["psnr"] += 1e-3
    (other / "report.json").write_text(json.dumps(report))
    assert differences(other, finished, STEPS) == ["the scores of report.json differ"]


@pytest.mark.parametrize(
    ("kill", "before", "told"),
    [
        (Kill("SIGTERM", "step", 5, code=2, step=5, checkpoint=5), 0, "exit code 2"),
        (Kill("SIGKILL", "step", 5, code=75, step=5, checkpoint=5), 0, "exit code 75"),
        (
            Kill("SIGTERM", "step", 5, code=75, step=6, checkpoint=5, lost=1),
            0,
            "cost 1 steps, more than 0",
        ),
        (
            Kill("SIGKILL", "step", 15, code=-9, step=15, checkpoint=4, lost=11),
            0,
            "cost 11 steps, more than 10",
        ),
        (
            Kill("SIGKILL", "step", 15, code=-9, step=15, checkpoint=5, lost=10),
            10,
            "was 10, and is 5",
        ),
    ],
)
def test_a_kill_that_ends_otherwise_fails(tmp_path, kill, before, told):
    run = Run(tmp_path / "run", 5, [])
    run.printed = 0
    run.log.write_text("")
    with pytest.raises(Failed, match=told):
        _check_kill(run, kill, before, silent=False)

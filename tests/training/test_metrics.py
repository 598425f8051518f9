"""What a run says of itself: late by a step, means of binned losses, speeds, memory, stopping."""

import json
import os
import signal

import numpy as np
import pytest

from videomar_jax.parallel.config import MeshConfig
from videomar_jax.parallel.mesh import make_mesh
from videomar_jax.training import logging
from videomar_jax.training.logging import Progress, RunLog
from videomar_jax.training.metrics import Meters, StageClock, StepReport
from videomar_jax.training.preemption import any_process_stopped, stop_signals


@pytest.fixture
def meters(tmp_path, monkeypatch):
    monkeypatch.setattr(logging, "SETTLING_UPDATES", 1)
    log = RunLog(tmp_path, tensorboard=False)
    ticks = iter(range(1000))
    progress = Progress(100, every_seconds=1e9, live=False, clock=lambda: float(next(ticks)))
    return Meters(log, progress, every=2, rate=lambda step: 0.5)


def put(meters, step, loss=1.0, stop=False, **binned):
    report = StepReport(
        step=step,
        stage="row",
        tokens=10,
        flops=3.0,
        data_wait=0.0,
        metrics={"loss": np.float32(loss)} | binned,
        stop=stop,
    )
    return meters.put(report)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_step_is_told_when_the_next_one_is_there(meters, tmp_path):
    put(meters, 1), put(meters, 2, loss=2.0)
    assert lines(tmp_path) == []
    put(meters, 3)
    (line,) = lines(tmp_path)
    assert (line["step"], line["loss"], line["learning_rate"]) == (2, 2.0, 0.5)
    assert line["steps_per_second"] == 1.0 and line["tokens_per_second"] == 10.0
    assert line["model_flops_per_second"] == 3.0 and 0 <= line["data_wait"] <= 1


def test_losses_by_frame_are_means_over_what_was_supervised_since_the_last_line(meters, tmp_path):
    put(meters, 1, by_frame={"sum": np.array([0.0, 4.0]), "count": np.array([0, 2])})
    put(meters, 2, by_frame={"sum": np.array([0.0, 2.0, 9.0]), "count": np.array([0, 1, 3])})
    put(meters, 3, by_frame={"sum": np.array([7.0]), "count": np.array([7])})
    meters.flush()
    line = lines(tmp_path)[0]
    told = {key: value for key, value in line.items() if key.startswith("loss_by_frame")}
    assert told == {"loss_by_frame/1": 2.0, "loss_by_frame/2": 3.0}, (
        "frames without loss are left out"
    )
    put(meters, 4)
    meters.flush()
    assert lines(tmp_path)[1]["loss_by_frame/0"] == 1.0, "means begin anew with every line"


def test_a_loss_that_is_not_finite_is_told_with_its_step(meters):
    put(meters, 1, loss=np.nan)
    with pytest.raises(FloatingPointError, match="Step 1: loss = nan"):
        meters.flush()


def test_a_stop_is_told_with_the_step_it_was_voted_at(meters):
    assert not put(meters, 1, stop=True)
    assert put(meters, 2), "the step after sees the vote"
    assert not meters.flush()


def test_stage_seconds_go_on_from_earlier_starts():
    clock = StageClock({"a": 5.0})
    clock.enter("a")
    assert clock.seconds()["a"] >= 5.0
    clock.enter("b")
    clock.enter(None)
    assert set(clock.seconds()) == {"a", "b"}


def test_a_signal_asks_once_and_stops_at_the_second():
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals(at_once=True) as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_process_alone_votes_at_once():
    mesh = make_mesh(MeshConfig(data=8))
    assert any_process_stopped(mesh, True) is True and any_process_stopped(mesh, False) is False

"""The record of a run survives kills and resumes; its speed is that of the steps; a NaN stops it
with advice."""

import json
import logging
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from videomar_jax.training.logging import Progress, RunLog, check_finite


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir):
    """Every TensorBoard event on disk, file by file in the order of writing (length, crc, payload,
    crc)."""
    for path in sorted(
        (workdir / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns
    ):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event()
            event.ParseFromString(data[at + 12 : at + 12 + length])
            yield event
            at += 16 + length


def test_every_kind_of_number_is_written_as_one_json_object_a_line(tmp_path):
    with RunLog(tmp_path / "new" / "run", tensorboard=False) as log:
        log.write(1, {"loss": 0.5, "count": 3})
        log.write(2, {"loss": np.float32(0.25), "lr": jnp.asarray(0.125)})
        assert len(lines(tmp_path / "new" / "run")) == 2, (
            "a line must be on disk before the run ends"
        )
    assert lines(tmp_path / "new" / "run") == [
        {"step": 1, "loss": 0.5, "count": 3.0},
        {"step": 2, "loss": 0.25, "lr": 0.125},
    ]


def test_values_that_json_lacks_become_null(tmp_path):
    with RunLog(tmp_path, tensorboard=False) as log:
        log.write(1, {"a": float("nan"), "b": float("-inf"), "c": 1.0})
    assert lines(tmp_path) == [{"step": 1, "a": None, "b": None, "c": 1.0}]


def test_metrics_that_cannot_be_recorded_are_named(tmp_path):
    with RunLog(tmp_path, tensorboard=False) as log:
        with pytest.raises(ValueError, match="'step'"):
            log.write(1, {"step": 1.0})
        with pytest.raises(ValueError, match=r"'norms' has shape \(2,\)"):
            log.write(1, {"loss": 1.0, "norms": np.zeros(2)})
    assert lines(tmp_path) == []


def test_a_resumed_run_holds_each_step_once(tmp_path):
    with RunLog(tmp_path, tensorboard=False) as log:
        for step in range(1, 8):
            log.write(step, {"loss": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "loss": 0.')  # killed while writing; the number alone would pass
    with RunLog(tmp_path, tensorboard=False, resume_step=4) as log:
        assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
        for step in range(5, 7):
            log.write(step, {"loss": -float(step)})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 4.0),
        (5, -5.0),
        (6, -6.0),
    ]


def test_a_line_that_only_lacks_its_end_is_dropped_too(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2}')
    with RunLog(tmp_path, tensorboard=False, resume_step=9) as log:
        log.write(10, {"loss": 0.0})
    assert [line["step"] for line in lines(tmp_path)] == [1, 10]


def test_a_run_from_the_start_begins_a_new_record(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 1.0}\n{"step": 3, "loss": 1.0}\n')
    with RunLog(tmp_path, tensorboard=False) as log:
        log.write(0, {"loss": 2.0})
    assert lines(tmp_path) == [{"step": 0, "loss": 2.0}]


def test_tensorboard_gets_numbers_images_and_texts_and_a_purge_on_resume(tmp_path):
    with RunLog(tmp_path) as log:
        log.write(5, {"loss": 0.5})
        log.image(5, "sample", np.full((4, 6, 3), 255, np.uint8))
        log.text(5, "prompt", "a red ball")
    with RunLog(tmp_path, resume_step=3) as log:
        log.write(4, {"loss": 0.25})
    found = list(events(tmp_path))
    values = {
        value.tag: (event.step, value)
        for event in found
        for value in event.summary.value
        if event.step == 5
    }
    assert values["loss"][1].simple_value == 0.5
    assert (values["sample"][1].image.height, values["sample"][1].image.width) == (4, 6)
    assert any(b"a red ball" in value.SerializeToString() for _, value in values.values())
    starts = [event.step for event in found if event.session_log.status == SessionLog.START]
    assert starts[-1] == 4, (
        "steps from 4 on are done again, so TensorBoard must forget the old ones"
    )


def test_other_processes_write_nothing(tmp_path):
    with RunLog(tmp_path / "run", is_writer=False) as log:
        log.write(1, {"loss": 1.0})
        log.image(1, "sample", np.zeros((2, 2, 3), np.uint8))
        log.text(1, "prompt", "x")
    assert not (tmp_path / "run").exists()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def drive(progress, clock, seconds, first=1, tokens=1000, row="images"):
    for step, duration in enumerate(seconds, first):
        clock.now += duration
        progress.update(step, 0.5, tokens, row)


def test_the_speed_leaves_out_compilation_and_old_steps():
    clock = Clock()
    progress = Progress(1000, window=10, live=False, clock=clock)
    assert progress.speed() is None
    drive(progress, clock, [60.0, 7.0])
    assert progress.speed() is None, "the first steps compile and must not count"
    drive(progress, clock, [0.5] * 5, first=3)
    assert progress.speed() == pytest.approx((2.0, 2000.0))
    drive(progress, clock, [0.25] * 10, first=8)
    assert progress.speed() == pytest.approx((4.0, 4000.0)), (
        "steps older than the window must not count"
    )
    drive(progress, clock, [0.1, 0.4] * 5, first=18)
    assert progress.speed() == pytest.approx((4.0, 4000.0)), "unequal steps count by their mean"


def test_a_new_row_is_measured_afresh():
    clock = Clock()
    progress = Progress(100, live=False, clock=clock)
    drive(progress, clock, [1.0] * 10)
    drive(progress, clock, [30.0, 4.0], first=11, row="clips")
    assert progress.speed() is None
    drive(progress, clock, [4.0, 4.0], first=13, tokens=8000, row="clips")
    assert progress.speed() == pytest.approx((0.25, 2000.0))


def test_updates_every_few_steps_give_the_same_speed():
    clock = Clock()
    progress = Progress(100, live=False, clock=clock)
    for step in range(10, 60, 10):
        clock.now += 20.0
        progress.update(step, 0.5, 10 * 1000)
    assert progress.speed() == pytest.approx((0.5, 500.0))


def test_the_line_tells_place_row_loss_speed_and_time_left():
    clock = Clock()
    progress = Progress(20_000, live=False, clock=clock)
    drive(progress, clock, [50.0], row="short clips")
    assert progress.describe(1, 1.25) == "step 1/20000 (0.0%) | short clips | loss 1.2500"
    drive(progress, clock, [2.0] * 9, first=2, tokens=31_250, row="short clips")
    assert progress.describe(10, 0.41267) == (
        "step 10/20000 (0.1%) | short clips | loss 0.4127 | 0.50 steps/s | 15.6k tokens/s | "
        "11:06:20 left"
    )


def test_a_time_left_of_days_says_so():
    clock = Clock()
    progress = Progress(30_003, live=False, clock=clock)
    drive(progress, clock, [10.0] * 3)
    assert progress.describe(3, 0.5).endswith("3d 11:20:00 left")


def test_lines_come_every_so_often_and_at_the_end(caplog):
    clock = Clock()
    with (
        caplog.at_level(logging.INFO),
        Progress(10, every_seconds=4.0, live=False, clock=clock) as progress,
    ):
        drive(progress, clock, [1.5] * 10)
    assert [record.getMessage().split()[1] for record in caplog.records] == [
        "3/10",
        "6/10",
        "9/10",
        "10/10",
    ]


def test_the_live_line_shows_the_same_text(capsys):
    clock = Clock()
    with Progress(4, start_step=1, live=True, clock=clock) as progress:
        drive(progress, clock, [1.0] * 3, first=2)
    assert "step 4/4 (100.0%) | images | loss 0.5000 | 1.00 steps/s" in capsys.readouterr().err


def test_other_processes_say_nothing(caplog, capsys):
    clock = Clock()
    with (
        caplog.at_level(logging.INFO),
        Progress(3, is_writer=False, live=True, clock=clock) as progress,
    ):
        drive(progress, clock, [100.0] * 3)
    assert not caplog.records and not capsys.readouterr().err


def test_progress_refuses_impossible_ranges():
    with pytest.raises(ValueError, match="start_step=5"):
        Progress(4, start_step=5)
    with pytest.raises(ValueError, match="window=0"):
        Progress(4, window=0)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), np.float32("-inf"), jnp.asarray(jnp.nan)]
)
def test_a_non_finite_metric_stops_the_run_and_says_what_to_do(value):
    with pytest.raises(
        FloatingPointError, match=r"Step 12: grad_norm = (nan|inf|-inf)\..*checkpoint"
    ) as error:
        check_finite(12, {"loss": 1.0, "grad_norm": value})
    assert "loss =" not in str(error.value)


def test_finite_metrics_pass():
    check_finite(1, {"loss": 0.0, "norm": 1e30, "count": 3})

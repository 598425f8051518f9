"""A run that stops anywhere and starts again ends with bitwise the same state as one that never
stopped.

The uninterrupted run is `finished`; checkpoints are written at every second step and at the row
boundary, step 3.
"""

import json
import os
import signal

import jax
import numpy as np
import pytest

from tests.helpers.tiny_run import STEPS, saved_parts, start, tiny
from videomar_jax.checkpoints.manager import Checkpoints
from videomar_jax.checks import Interrupted
from videomar_jax.experiment.config import Experiment
from videomar_jax.models.params import init_params
from videomar_jax.pretrained.bundle import load_bundle
from videomar_jax.training import batches, loop
from videomar_jax.training.profiling import Profile

_UPDATES: dict = {}


@pytest.fixture(autouse=True)
def one_compilation(monkeypatch):
    """All starts here share one compiled update; `finished` has compiled its own. Tracing takes
    most of a start."""
    make = loop.make_train_step

    def shared(graph, optimizer, *configs, **placement):
        key = (graph, *configs)
        if key not in _UPDATES:
            _UPDATES[key] = make(graph, optimizer, *configs, **placement)
        return _UPDATES[key]

    monkeypatch.setattr(loop, "make_train_step", shared)


class Death(BaseException):
    """The process is gone: nothing of the loop runs any more."""


def die():
    raise Death


def interrupt():
    os.kill(os.getpid(), signal.SIGTERM)


def act_at_batch(monkeypatch, number, act):
    """Calls `act` while the loop draws its `number`-th batch, counted from this start."""
    encode, drawn = batches.encode, []

    def counted(*args):
        drawn.append(1)
        if len(drawn) == number:
            act()
        return encode(*args)

    monkeypatch.setattr(batches, "encode", counted)


def train_in(workdir, finished, monkeypatch, number=None, act=None, **options):
    """One start of the training loop, by default without pictures; `act` is called at its
    `number`-th batch."""
    experiment = Experiment.from_config(tiny())
    bundle = load_bundle(finished)
    parts = batches.TrainingInputs(
        source=experiment.source("train"),
        tokenizer=bundle.tokenizer,
        text_encoder=bundle.text_encoder,
    )
    workdir.mkdir(exist_ok=True)
    with monkeypatch.context() as patch:
        if number:
            act_at_batch(patch, number, act)
        return loop.train(experiment.recipe, parts, workdir, **options)


def saved_steps(workdir):
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.all_steps()


def log_of(workdir):
    """The record without what depends on the clock."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timed = ("_per_second", "data_wait")
    return [{key: value for key, value in row.items() if not key.endswith(timed)} for row in rows]


def assert_same_end(outcome, workdir, finished):
    assert outcome.finished and int(outcome.state.step) == STEPS
    parts = outcome.state.parts()
    wanted = saved_parts(finished, STEPS, parts)
    assert set(wanted) == {"params", "ema", "opt_state"}
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(parts), jax.tree.leaves(wanted), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes(), (
            f"{name} differs from the uninterrupted run"
        )
    assert log_of(workdir) == log_of(finished)


@pytest.mark.parametrize("step", [2, 3, 5], ids=["first_row", "row_boundary", "second_row"])
def test_asked_to_stop(step, finished, tmp_path, monkeypatch):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stopped = train_in(tmp_path, finished, monkeypatch, step, interrupt)
    assert not stopped.finished and int(stopped.state.step) == step
    assert max(saved_steps(tmp_path)) == step, "the step at which it was asked to stop is not saved"
    assert [row["step"] for row in log_of(tmp_path)] == list(range(1, step + 1))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert_same_end(train_in(tmp_path, finished, monkeypatch), tmp_path, finished)


@pytest.mark.parametrize(
    ("batch", "saved"), [(5, 4), (6, 4)], ids=["behind_a_checkpoint", "a_step_later"]
)
def test_killed_between_checkpoints(batch, saved, finished, tmp_path, monkeypatch):
    with pytest.raises(Death):
        train_in(tmp_path, finished, monkeypatch, batch, die)
    assert max(saved_steps(tmp_path)) == saved
    assert_same_end(train_in(tmp_path, finished, monkeypatch), tmp_path, finished)


def test_stopped_and_killed_again_and_again(finished, tmp_path, monkeypatch):
    for number, act in [(1, die), (1, interrupt), (2, die), (1, interrupt)]:
        try:
            assert not train_in(tmp_path, finished, monkeypatch, number, act).finished
        except Death:
            pass
    assert_same_end(train_in(tmp_path, finished, monkeypatch), tmp_path, finished)


def test_a_second_signal_stops_at_once(finished, tmp_path, monkeypatch):
    def twice():
        interrupt()
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        train_in(tmp_path, finished, monkeypatch, 1, twice)
    assert saved_steps(tmp_path) == []


def test_the_whole_command(finished, tmp_path, monkeypatch):
    """Stopped, reported, started again: the same parameters, and the same report but for its
    times."""
    with monkeypatch.context() as patch:
        act_at_batch(patch, 4, interrupt)
        with pytest.raises(Interrupted, match=f"step 4 of {STEPS}.*{tmp_path}.*same command"):
            start(tiny(), tmp_path)
    assert not (tmp_path / "report.json").exists()
    assert (tmp_path / "samples" / "step_0000003.png").exists()
    report = start(tiny(), tmp_path)
    assert report["cases"] == json.loads((finished / "report.json").read_text())["cases"]
    assert log_of(tmp_path) == log_of(finished)


def test_the_checkpoint_of_another_model_is_refused(finished, tmp_path, monkeypatch):
    other = Experiment.from_config(tiny(model=dict(width=48)))
    bundle = load_bundle(finished)
    parts = batches.TrainingInputs(
        source=other.source("train"), tokenizer=bundle.tokenizer, text_encoder=bundle.text_encoder
    )
    before = (finished / "metrics.jsonl").read_bytes()
    with pytest.raises(
        ValueError, match=r"ema/.* has shape .*another model size: use the configuration"
    ):
        loop.train(other.recipe, parts, finished)
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(
    finished, tmp_path, monkeypatch
):
    encode, drawn = batches.encode, []

    def poisoned(*args):
        drawn.append(1)
        return encode(*args) * (np.nan if len(drawn) == 4 else 1.0)

    monkeypatch.setattr(batches, "encode", poisoned)
    with pytest.raises(FloatingPointError, match=r"Step 4: .*loss = nan"):
        train_in(tmp_path, finished, monkeypatch)
    assert max(saved_steps(tmp_path)) == 3, (
        "a checkpoint with parameters that are of no use was kept"
    )


def test_a_preview_that_fails_is_told_and_costs_nothing(finished, tmp_path, monkeypatch, caplog):
    def broken(ema, path):
        raise ValueError("too little memory")

    caplog.set_level("WARNING")
    outcome = train_in(tmp_path, finished, monkeypatch, preview=broken)
    assert_same_end(outcome, tmp_path, finished)
    warnings = [record.message for record in caplog.records if "no preview" in record.message]
    assert warnings == [
        f"step {step}: no preview was made: too little memory" for step in (3, STEPS)
    ]


def test_a_checkpoint_is_there_before_its_preview(finished, tmp_path, monkeypatch):
    def killed(ema, path):
        die()

    with pytest.raises(Death):
        train_in(tmp_path, finished, monkeypatch, preview=killed)
    assert max(saved_steps(tmp_path)) == 3


def test_a_profile_ends_with_its_steps_or_the_run_and_is_not_taken_by_a_later_start(
    finished, tmp_path, monkeypatch
):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda place: calls.append(place))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    place = str(tmp_path / "profile")
    profile = Profile(start=2, steps=2)
    train_in(tmp_path, finished, monkeypatch, 3, interrupt, profile=profile)
    assert calls == [place, "stop"], "stopped within the profile"
    calls.clear()
    train_in(tmp_path, finished, monkeypatch, 2, interrupt, profile=profile)
    assert calls == [], "started again behind its beginning"
    train_in(tmp_path, finished, monkeypatch, profile=Profile(start=5, steps=10))
    assert calls == [place, "stop"], "longer than the run"


def test_parameters_to_begin_with_are_read_by_the_first_start_alone(
    finished, tmp_path, monkeypatch
):
    like = Experiment.from_config(tiny()).recipe.model
    given = jax.device_get(init_params(like, jax.random.key(9)))
    read = []

    def initial():
        read.append(1)
        return given

    first = train_in(tmp_path, finished, monkeypatch, 1, interrupt, initial=initial)
    assert int(first.state.step) == 1 and len(read) == 1
    train_in(tmp_path, finished, monkeypatch, 1, interrupt, initial=initial)
    assert len(read) == 1, "read again where there is a checkpoint"

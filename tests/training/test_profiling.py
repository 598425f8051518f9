"""Which steps are recorded, and what is said where none can be."""

import jax
import jax.numpy as jnp
import pytest

from videomar_jax.training.profiling import Profile, Profiler
from videomar_jax.training.state import TrainState

STATE = TrainState(step=jnp.zeros((), jnp.int32), params={}, ema={}, opt_state=())


@pytest.fixture
def calls(monkeypatch):
    """Every start and stop of a trace."""
    made = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: made.append(folder))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: made.append("stop"))
    return made


def recorded(calls, profile, folder, first=0, last=10):
    """For each step from `first` to `last` - 1 the calls that were made before it."""
    made = {}
    with Profiler(profile, folder, first, 10) as profiler:
        for step in range(first, last):
            calls.clear()
            profiler.before_step(step, STATE)
            if calls:
                made[step] = list(calls)
        calls.clear()
    if calls:
        made["end"] = list(calls)
    return made


def test_the_steps_that_were_asked_for_are_recorded(calls, tmp_path):
    profile = Profile(start=3, steps=2)
    assert recorded(calls, profile, tmp_path) == {3: [str(tmp_path)], 5: ["stop"]}
    assert recorded(calls, profile, tmp_path, last=4) == {3: [str(tmp_path)], "end": ["stop"]}
    assert recorded(calls, None, tmp_path) == {}


@pytest.mark.parametrize("first", [4, 5, 9])
def test_a_start_behind_the_profile_says_that_there_is_none(first, calls, tmp_path, caplog):
    assert recorded(calls, Profile(start=3, steps=2), tmp_path, first=first) == {}
    (record,) = caplog.records
    assert f"no profile is recorded: --profile=3:2 starts before step {first}" in record.message
    assert f"a START of at least {first}" in record.message


def test_a_profile_after_the_last_step_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--profile=10:2 starts after the last step .*, 9"):
        Profiler(Profile(start=10, steps=2), tmp_path, 0, 10)


def test_start_and_steps_are_read():
    assert Profile.parse("20:5") == Profile(start=20, steps=5)
    for text in ("20", "20:", ":5", "20:0", "a:5", "-1:5", "20:5:1"):
        with pytest.raises(ValueError, match=f"--profile={text} must be START:STEPS"):
            Profile.parse(text)

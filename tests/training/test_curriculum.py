"""Every step belongs to one stage, and the learning rate follows its formula."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomar_jax.training.curriculum import Curriculum, learning_rates


def row(name="clips", steps=10, learning_rate=1e-3, **changes):
    plain = {"num_frames": 9, "height": 32, "width": 48, "batch_size": 4}
    return {"name": name, "steps": steps, "learning_rate": learning_rate, **plain, **changes}


STEPS, PEAKS = (30, 1, 50, 19), (4e-4, 7e-5, 2e-4, 1e-4)


@pytest.fixture(scope="module")
def curriculum():
    return Curriculum.from_rows(
        [row(f"stage {i}", s, p) for i, (s, p) in enumerate(zip(STEPS, PEAKS, strict=True))]
    )


def test_each_step_belongs_to_one_stage_in_order(curriculum):
    walked = [(i, k) for i, steps in enumerate(STEPS) for k in range(steps)]
    assert [curriculum.at(step) for step in range(curriculum.total_steps)] == walked
    assert curriculum.boundaries == (30, 31, 81, 100)
    assert [curriculum.start_of(i) for i in range(4)] == [0, 30, 31, 81]


def test_steps_and_stages_outside_are_refused(curriculum):
    for step in (-1, 100):
        with pytest.raises(ValueError, match=rf"Step {step} .*0 to 99"):
            curriculum.at(step)
    for stage in (-1, 4):
        with pytest.raises(ValueError, match=f"no stage {stage}"):
            curriculum.start_of(stage)


def reference_rate(step: int, warmup: int, schedule: str, final: float) -> float:
    """The rate of one step in double precision, walking through the stages."""
    total, stage = sum(STEPS), 0
    while stage + 1 < len(STEPS) and step >= sum(STEPS[: stage + 1]):
        stage += 1
    rate = PEAKS[stage]
    if step < warmup:
        return rate * step / warmup
    if schedule == "cosine":
        angle = math.pi * min(1.0, (step - warmup) / (total - warmup))
        rate *= final + (1 - final) * math.cos(angle / 2) ** 2
    return rate


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize(("warmup", "final"), [(0, 0.0), (7, 0.1), (45, 1.0), (99, 0.0)])
def test_learning_rates_agree_with_a_walk_through_the_stages(curriculum, schedule, warmup, final):
    rate = learning_rates(curriculum, warmup_steps=warmup, schedule=schedule, final_fraction=final)
    steps = jnp.arange(120, dtype=jnp.int32)
    expected = [reference_rate(step, warmup, schedule, final) for step in range(120)]
    np.testing.assert_allclose(jax.jit(jax.vmap(rate))(steps), expected, rtol=1e-5, atol=1e-10)


def test_learning_rates_take_python_and_traced_steps(curriculum):
    rate = learning_rates(curriculum, warmup_steps=5, schedule="cosine", final_fraction=0.1)
    for step in (0, 3, 30, 99):
        value = rate(step)
        assert value.shape == () and value.dtype == jnp.float32
        np.testing.assert_allclose(jax.jit(rate)(jnp.int32(step)), value, rtol=1e-6)


def test_the_cosine_passes_through_its_landmarks(curriculum):
    rate = learning_rates(curriculum, warmup_steps=10, schedule="cosine", final_fraction=0.2)
    assert float(rate(0)) == 0.0
    np.testing.assert_allclose(rate(10), 4e-4, rtol=1e-6)  # the full peak where the warm-up ends
    np.testing.assert_allclose(
        rate(55), 0.6 * 2e-4, rtol=1e-5
    )  # half way from 10 to 100, in the third stage
    np.testing.assert_allclose(rate(100), 0.2 * 1e-4, rtol=1e-5)  # and stays there
    np.testing.assert_allclose(rate(10_000), 0.2 * 1e-4, rtol=1e-5)


def test_long_runs_keep_their_boundaries():
    long = Curriculum.from_rows([row("a", 20_000_001, 1.0), row("b", 20_000_000, 0.5)])
    rate = learning_rates(long, warmup_steps=0, schedule="constant", final_fraction=1.0)
    assert [float(rate(step)) for step in (20_000_000, 20_000_001)] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"schedule": "cosin"},
            "schedule is 'cosin'; it may be one of 'constant', 'cosine'. Did you mean",
        ),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"warmup_steps": 100}, "less than the 100 steps"),
        ({"final_fraction": 1.5}, r"final_fraction must lie in \[0, 1\], not 1\.5"),
    ],
)
def test_wrong_schedules_are_refused(curriculum, arguments, message):
    with pytest.raises(ValueError, match=message):
        learning_rates(
            curriculum,
            **{"warmup_steps": 5, "schedule": "cosine", "final_fraction": 0.0, **arguments},
        )


def test_stages_have_names_of_their_own():
    with pytest.raises(ValueError, match=r"more than once: \['a'\]"):
        Curriculum.from_rows([row("a"), row("b"), row("a")])
    with pytest.raises(ValueError, match="at least one stage"):
        Curriculum.from_rows([])

"""Tables of the head's steps: rows of differing length, Heun's weights, and what no head can do."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tiny_model import tiny_config
from videomar_jax.diffusion.base import make_process
from videomar_jax.diffusion.solver import evaluations, head_plan, with_length
from videomar_jax.sampling.schedules import SamplingConfig

FLOW, DDPM = tiny_config(), tiny_config(head="ddpm")


def plan_of(model, **changes):
    return head_plan(model, dataclasses.replace(SamplingConfig(steps=4), **changes))


def test_one_number_of_steps_is_the_process_plan():
    plan, wanted = plan_of(DDPM, head_steps="25"), make_process(DDPM).plan("25")
    assert plan.count.tolist() == [25] and plan.steps.keys() == wanted.keys()
    for name, table in wanted.items():
        np.testing.assert_array_equal(plan.steps[name], table[None])


def test_rows_of_differing_length_are_padded_with_steps_that_are_not_active():
    plan = plan_of(DDPM, head_steps="10-4")
    assert plan.count.tolist() == [10, 8, 6, 4] and evaluations(plan) == 10
    np.testing.assert_array_equal(plan.steps["active"].sum(axis=1), plan.count)
    for row, count in enumerate([10, 8, 6, 4]):
        wanted = make_process(DDPM).plan(str(count))
        for name, table in wanted.items():
            np.testing.assert_array_equal(plan.steps[name][row, :count], table)


def test_padding_to_a_length_keeps_rows_and_their_marks():
    plan = plan_of(FLOW, head_steps="3-2")
    longer = with_length(plan, 5)
    np.testing.assert_array_equal(longer.steps["active"], jnp.arange(5) < plan.count[:, None])
    np.testing.assert_array_equal(longer.steps["time"][:, :3], plan.steps["time"])
    assert with_length(plan, 3) is plan
    wide = plan._replace(steps=plan.steps | {"embedding": jnp.ones((2, 3, 7))})
    assert with_length(wide, 4).steps["embedding"].shape == (2, 4, 7), "only steps are padded"


@pytest.mark.parametrize("steps", [1, 4])
def test_heun_is_exact_for_a_velocity_that_is_linear_in_time(steps):
    """x' = a + b t from t = 1 to 0 adds a + b/2; Euler is off by b / 2N."""
    a, b = 0.7, -2.0
    for solver, error in (("heun", 0.0), ("euler", b / (2 * steps))):
        steps_of = plan_of(FLOW, head_steps=str(steps), head_solver=solver).steps
        x, velocity = 0.0, 0.0
        for i in range(len(steps_of["time"][0])):
            now = {name: float(table[0, i]) for name, table in steps_of.items()}
            before, velocity = velocity, a + b * now["time"]
            x += now["size"] * velocity + now.get("back", 0.0) * before
        assert x == pytest.approx(a + b / 2 + error, abs=1e-6), solver


def test_heun_visits_the_end_of_every_step():
    plan = plan_of(FLOW, head_steps="2", head_solver="heun")
    np.testing.assert_allclose(plan.steps["time"][0], [1, 0.5, 0.5, 0])
    assert plan.count.tolist() == [4]


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        (FLOW, dict(head_steps="ddim4"), "whole number of steps, at least 1, not 'ddim4'"),
        (FLOW, dict(head_steps="4,4"), "whole number of steps"),
        (DDPM, dict(head_steps="1"), "single step"),
        (DDPM, dict(head_steps="20-1"), "single step"),
        (DDPM, dict(head_steps="2000"), "ask for 2000 of the 1000 steps"),
        (DDPM, dict(head_solver="heun"), "'heun' is for the flow head.*use 'euler'"),
    ],
    ids=str,
)
def test_what_the_head_cannot_do(model, changes, words):
    with pytest.raises(ValueError, match=words):
        plan_of(model, **changes)

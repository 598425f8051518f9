"""Timesteps of several numbers of steps, Heun's weights, and steps that no head can take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomar_jax.checks import UserError
from videomar_jax.diffusion.base import Timesteps
from videomar_jax.diffusion.ddpm import DDPM
from videomar_jax.diffusion.flow import Flow
from videomar_jax.diffusion.plans import evaluations, plan_steps, with_length
from videomar_jax.diffusion.solver import init_state, solver_step

ONE = jnp.float32(1)


def row_of(steps: Timesteps, row: int, count: int | None = None) -> Timesteps:
    """One row of a plan, its first `count` evaluations."""
    return jax.tree.map(lambda table: table[row, :count], steps)


def assert_same(first: Timesteps, second: Timesteps) -> None:
    """Equal in everything but the marks of padding."""
    first, second = first._replace(active=None), second._replace(active=None)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def solve(plan, velocity_of, x, row=0):
    """Follows a velocity(x, t) along one row of a plan."""
    state = init_state(Flow(), x, ONE)
    steps = row_of(plan.steps, row)
    for i in range(len(steps.time)):
        now = jax.tree.map(lambda table, i=i: table[i], steps)
        output = velocity_of(state.x, now.time)
        state = solver_step(Flow(), state, output, now, None, ONE, ONE)
    return state.x


def test_one_number_of_steps_is_the_timesteps_of_the_process():
    plan = plan_steps(DDPM(), ["25", "25"])
    assert plan.count.tolist() == [25] and plan.steps.active is None
    assert_same(row_of(plan.steps, 0), DDPM().timesteps("25"))


def test_rows_of_differing_length_are_padded_with_steps_that_are_not_active():
    plan = plan_steps(DDPM(), ["10", "8", "8", "6", "4"])
    assert plan.count.tolist() == [10, 8, 6, 4] and evaluations(plan) == 10
    np.testing.assert_array_equal(plan.steps.active.sum(axis=1), plan.count)
    for row, count in enumerate([10, 8, 6, 4]):
        assert_same(row_of(plan.steps, row, count), DDPM().timesteps(str(count)))


def test_padding_to_a_length_keeps_rows_and_their_marks():
    plan = plan_steps(Flow(), ["3", "2"])
    longer = with_length(plan, 5)
    np.testing.assert_array_equal(longer.steps.active, jnp.arange(5) < plan.count[:, None])
    np.testing.assert_array_equal(longer.steps.time[:, :3], plan.steps.time)
    assert with_length(plan, 3) is plan
    wide = plan._replace(steps=plan.steps._replace(embedding=jnp.ones((2, 3, 7))))
    assert with_length(wide, 4).steps.embedding.shape == (2, 4, 7), "only steps are padded"


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_padding_changes_nothing(solver):
    plan = plan_steps(Flow(), ["5", "2"], solver)
    alone = plan_steps(Flow(), ["2"], solver)
    x = jnp.linspace(-1, 1, 6).reshape(2, 3)

    def velocity(x, t):
        return jnp.sin(3 * x) + t

    np.testing.assert_array_equal(solve(plan, velocity, x, row=1), solve(alone, velocity, x))


@pytest.mark.parametrize("steps", [1, 4])
def test_heun_is_exact_for_a_velocity_that_is_linear_in_time(steps):
    """x' = a + b t from t = 1 to 0 adds a + b/2; Euler is off by b / 2N."""
    a, b = 0.7, -2.0
    for solver, error in (("heun", 0.0), ("euler", b / (2 * steps))):
        plan = plan_steps(Flow(), [str(steps)], solver)
        x = solve(plan, lambda x, t: jnp.full_like(x, a) + b * t, jnp.zeros((1, 1)))
        assert float(x[0, 0]) == pytest.approx(a + b / 2 + error, abs=1e-6), solver


def test_heun_is_the_mean_of_two_velocities():
    """Against the textbook form, for a velocity that is not linear."""
    x = jnp.linspace(-1, 1, 6).reshape(2, 3)

    def velocity(x, t):
        return jnp.cos(x) * (1 + t)

    expected, h = x, 1 / 3
    for t in (1.0, 2 / 3, 1 / 3):
        first = velocity(expected, t)
        second = velocity(expected + h * first, t - h)
        expected = expected + h / 2 * (first + second)
    found = solve(plan_steps(Flow(), ["3"], "heun"), velocity, x)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_heun_guides_both_velocities():
    """With guidance the output holds the rows with text, then those without."""
    x, g = jnp.linspace(-1, 1, 6).reshape(2, 3), 3.0
    plan = plan_steps(Flow(), ["2"], "heun")

    def cond(x, t):
        return jnp.cos(x) + t

    def null(x, t):
        return 0.5 * x - t

    state = init_state(Flow(), x, ONE)
    steps = row_of(plan.steps, 0)
    for i in range(len(steps.time)):
        now = jax.tree.map(lambda table, i=i: table[i], steps)
        output = jnp.concatenate([cond(state.x, now.time), null(state.x, now.time)])
        state = solver_step(Flow(), state, output, now, None, jnp.float32(g), ONE)
    guided = solve(plan, lambda x, t: null(x, t) + g * (cond(x, t) - null(x, t)), x)
    np.testing.assert_allclose(state.x, guided, atol=1e-6)


def test_heun_visits_the_end_of_every_step():
    plan = plan_steps(Flow(), ["2"], "heun")
    np.testing.assert_allclose(plan.steps.time[0], [1, 0.5, 0.5, 0])
    assert plan.count.tolist() == [4]


@pytest.mark.parametrize(
    ("process", "steps", "solver", "words"),
    [
        (Flow(), "ddim4", "euler", "whole number of steps, at least 1, not 'ddim4'"),
        (Flow(), "4,4", "euler", "whole number of steps"),
        (DDPM(), "1", "euler", "single step"),
        (DDPM(), "2000", "euler", "ask for 2000 of the 1000 steps"),
        (DDPM(), "25", "heun", "'heun' is for the flow head.*use 'euler'"),
    ],
    ids=str,
)
def test_what_the_head_cannot_do(process, steps, solver, words):
    with pytest.raises(UserError, match=words):
        plan_steps(process, ["4", steps], solver)


def test_every_name_is_checked():
    """A falling number of steps, "20-1", is refused for its last entry."""
    with pytest.raises(UserError, match="single step"):
        plan_steps(DDPM(), ["20", "10", "1"])

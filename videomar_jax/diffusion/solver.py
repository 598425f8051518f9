"""Solvers: from noise to a token, one evaluation of the network at a time.

A stochastic process has one way, its ancestral step. One that follows a velocity v has two, from t
to t - h:

    Euler   x' = x + h v(x, t)                                                              (1)
    Heun    x'' = x + (h/2) (v + v'),   v' = v(x', t - h)       (Karras et al. 2022)        (2)

Heun's second evaluation corrects the Euler step that the first one made,

    x'' = x' + (h/2) v' - (h/2) v                                                           (3)

so every evaluation adds `size` times its velocity and `back` times the one before. All solvers
are then the same loop over `solver_step`; only the `Timesteps` differ.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from videomar_jax.checks import UserError
from videomar_jax.diffusion.base import Process, Timesteps, guide
from videomar_jax.types import Array, Float, Int


class SolverState(NamedTuple):
    """Between two evaluations."""

    x: Float[Array, "B *rows P"]
    velocity: Float[Array, "B *rows P"]  # of the evaluation before; only Heun uses it


class SolverPlan(NamedTuple):
    """The timesteps for m different numbers of steps, rows padded to N evaluations."""

    steps: Timesteps  # arrays [m, N]
    count: Int[Array, "m"]  # evaluations of each row that are not padding


def init_state(process: Process, noise: Array, temperature: Array) -> SolverState:
    """The state before the first evaluation, from standard normal noise."""
    return SolverState(process.init_noise(noise, temperature), jnp.zeros_like(noise))


def solver_step(
    process: Process,
    state: SolverState,
    output: Array,
    now: Timesteps,
    noise: Array | None,
    guidance: Array,
    temperature: Array,
) -> SolverState:
    """The state after one evaluation.

    Args:
        output: what the network answered to `state.x` at `now.time`: B rows with text, then
            (with guidance) B rows without.
        noise: standard normal noise like `state.x`; None if the process is not stochastic.
    """
    batch = len(state.x)
    cond = output[:batch]
    null = output[batch:] if len(output) > batch else None
    x = process.step(state.x, cond, null, now, noise, guidance, temperature)
    velocity = state.velocity
    if now.back is not None:  # Heun, equation (3)
        x = x + now.back * velocity
        null = None if null is None else null.astype(x.dtype)
        velocity = guide(cond.astype(x.dtype), null, guidance)
    if now.active is not None:
        x = jnp.where(now.active, x, state.x)
        velocity = jnp.where(now.active, velocity, state.velocity)
    return SolverState(x, velocity)


def plan_steps(process: Process, names: Sequence[str], solver: str = "euler") -> SolverPlan:
    """The timesteps for every different entry of `names`, in the order of first appearance.

    Args:
        names: numbers of steps, in the form that `process.timesteps` takes.
        solver: "euler" (for a stochastic process its ancestral step) or "heun".
    Raises:
        UserError: the process cannot take so many steps, or has no such solver.
    """
    rows = [process.timesteps(name) for name in dict.fromkeys(names)]
    if solver == "heun":
        rows = [_heun(process, row) for row in rows]
    count = np.array([len(row.time) for row in rows], np.int32)
    if len(rows) == 1:
        return SolverPlan(jax.tree.map(lambda x: x[None], rows[0]), jnp.asarray(count))
    return SolverPlan(_stack(rows, int(count.max())), jnp.asarray(count))


def _heun(process: Process, steps: Timesteps) -> Timesteps:
    """Two evaluations for every Euler step: the step itself, and its correction."""
    if process.stochastic:
        raise UserError(
            "head_solver 'heun' is for the flow head, which adds no noise on the way; with a "
            f"{process.kind} head use 'euler'."
        )
    time, size = steps.time, steps.size
    return Timesteps(
        time=jnp.stack([time, time - size], axis=1).ravel(),
        size=jnp.stack([size, size / 2], axis=1).ravel(),
        back=jnp.stack([jnp.zeros_like(size), -size / 2], axis=1).ravel(),
    )


def evaluations(plan: SolverPlan) -> int:
    """N, the length of the rows."""
    return plan.steps.time.shape[1]


def with_length(plan: SolverPlan, length: int) -> SolverPlan:
    """The plan with every row padded to `length` evaluations."""
    if evaluations(plan) == length:
        return plan
    rows = [jax.tree.map(lambda x, i=i: x[i], plan.steps) for i in range(len(plan.count))]
    return plan._replace(steps=_stack(rows, length))


def _stack(rows: Sequence[Timesteps], length: int) -> Timesteps:
    """Rows padded to one length: the last entry repeated, and marked as not active."""
    padded = [_pad(row, length) for row in rows]
    return jax.tree.map(lambda *x: jnp.stack(x), *padded)


def _pad(row: Timesteps, length: int) -> Timesteps:
    count = len(row.time)
    if row.active is None:
        row = row._replace(active=jnp.ones(count, bool))
    places = jnp.arange(length)
    row = jax.tree.map(lambda x: x[jnp.minimum(places, count - 1)], row)
    return row._replace(active=row.active & (places < count))

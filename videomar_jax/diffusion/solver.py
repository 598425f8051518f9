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

from typing import NamedTuple

import jax.numpy as jnp

from videomar_jax.checks import UserError
from videomar_jax.diffusion.base import Process, Timesteps, guide
from videomar_jax.types import Array, Float


class SolverState(NamedTuple):
    """Between two evaluations."""

    x: Float[Array, "B *rows P"]
    velocity: Float[Array, "B *rows P"]  # of the evaluation before; only Heun uses it


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
    # The Euler or ancestral step; for Heun's second evaluation the (h/2) v' of (3).
    x = process.step(state.x, cond, null, now, noise, guidance, temperature)
    velocity = state.velocity
    # None is known when the program is traced: Euler's holds nothing of what follows.
    if now.back is not None:
        x = x + now.back * velocity
        velocity = guide(cond, null, guidance)
    if now.active is not None:
        # Padding is computed like any other step, and its result thrown away.
        x = jnp.where(now.active, x, state.x)
        velocity = jnp.where(now.active, velocity, state.velocity)
    return SolverState(x, velocity)


def solver_timesteps(process: Process, steps: str | int, solver: str = "euler") -> Timesteps:
    """The evaluations of a sampler with so many steps.

    Args:
        steps: in the form that `process.timesteps` takes.
        solver: "euler" (for a stochastic process its ancestral step) or "heun".
    Raises:
        UserError: the process cannot take so many steps, or has no such solver.
    """
    euler = process.timesteps(steps)
    return _heun(process, euler) if solver == "heun" else euler


def _heun(process: Process, steps: Timesteps) -> Timesteps:
    """Two evaluations for every Euler step: the step itself, and its correction."""
    if process.stochastic:
        raise UserError(
            "head_solver 'heun' is for the flow head, which adds no noise on the way; with a "
            f"{process.kind} head use 'euler'."
        )
    time, size = steps.time, steps.size
    # Pairs (the step at t, its correction at t - h), in the order they are made.
    return Timesteps(
        time=jnp.stack([time, time - size], axis=1).ravel(),
        size=jnp.stack([size, size / 2], axis=1).ravel(),
        back=jnp.stack([jnp.zeros_like(size), -size / 2], axis=1).ravel(),
    )

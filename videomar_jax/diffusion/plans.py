"""Timesteps of several numbers of steps in one table, for a video that goes from many to few.

Rows are padded to one length, so that the program of a sampler is compiled once; a step of padding
changes nothing (`solver_step`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from videomar_jax.diffusion.base import Process, Timesteps
from videomar_jax.diffusion.solver import solver_timesteps
from videomar_jax.types import Array, Int


class SolverPlan(NamedTuple):
    """The timesteps for m different numbers of steps, rows padded to N evaluations."""

    steps: Timesteps  # arrays [m, N]
    count: Int[Array, "m"]  # evaluations of each row that are not padding


def plan_steps(process: Process, names: Sequence[str], solver: str = "euler") -> SolverPlan:
    """The timesteps for every different entry of `names`, in the order of first appearance.

    Arguments and errors as in `solver_timesteps`.
    """
    rows = [solver_timesteps(process, name, solver) for name in dict.fromkeys(names)]
    count = np.array([len(row.time) for row in rows], np.int32)
    if len(rows) == 1:
        return SolverPlan(jax.tree.map(lambda x: x[None], rows[0]), jnp.asarray(count))
    return SolverPlan(_stack(rows, int(count.max())), jnp.asarray(count))


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
    active = jnp.ones(count, bool) if row.active is None else row.active
    places = jnp.arange(length)
    repeated = jnp.minimum(places, count - 1)
    row = jax.tree.map(lambda x: x[repeated], row._replace(active=None))
    return row._replace(active=active[repeated] & (places < count))

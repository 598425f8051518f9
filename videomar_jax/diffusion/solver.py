"""The diffusion steps of the head for a whole video: one row of tables for each number of steps
that occurs.

Heun's method for the flow head (Karras et al. 2022) in the form of the Euler step, from time t to t
- h:

    x' = x + h v,    x'' = x' + (h/2) v' - (h/2) v         v = velocity at (x, t),  v' = velocity at
    (x', t - h)

so that every evaluation adds `size` times its velocity and `back` times the one before it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from videomar_jax.diffusion.base import Plan, make_process
from videomar_jax.models.config import ModelConfig
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.schedules import head_step_names
from videomar_jax.types import Array, Int


class HeadPlan(NamedTuple):
    """Tables of m numbers of steps, each padded to N evaluations of the head.

    `steps` holds "time" and whatever the process reads, [m, N]; "back" with Heun; "active" (False
    where padded) where rows differ in length.
    """

    steps: Plan
    count: Int[Array, "m"]  # evaluations that are not padding


def head_plan(
    model: ModelConfig, config: SamplingConfig, names: Sequence[str] | None = None
) -> HeadPlan:
    """The plan for these numbers of steps (`head_step_names` of all reveal steps; None: of the
    config's own).

    Raises:
        ValueError: the process cannot take so many steps, or has no such solver.
    """
    names = head_step_names(config.head_steps, config.steps) if names is None else names
    plans = [_plan(model, config, name) for name in dict.fromkeys(names)]
    count = np.array([len(plan["time"]) for plan in plans], np.int32)
    if len(plans) == 1:
        return HeadPlan({key: value[None] for key, value in plans[0].items()}, jnp.asarray(count))
    return HeadPlan(_stacked(plans, int(count.max())), jnp.asarray(count))


def with_length(plan: HeadPlan, length: int) -> HeadPlan:
    """The plan with every row padded to `length` evaluations."""
    rows = [{key: value[i] for key, value in plan.steps.items()} for i in range(len(plan.count))]
    return (
        plan if rows[0]["time"].shape[0] == length else HeadPlan(_stacked(rows, length), plan.count)
    )


def evaluations(plan: HeadPlan) -> int:
    """N, the length of the rows."""
    return plan.steps["time"].shape[1]


def _stacked(plans: list[Plan], length: int) -> Plan:
    """Rows of one length: the last entry repeated, and marked as not active."""
    padded = []
    for plan in plans:
        count = len(plan["time"])
        row = {"active": jnp.ones(count, bool)} | plan
        row = {key: value[jnp.minimum(jnp.arange(length), count - 1)] for key, value in row.items()}
        padded.append(row | {"active": row["active"] & (jnp.arange(length) < count)})
    return {key: jnp.stack([plan[key] for plan in padded]) for key in padded[0]}


def _plan(model: ModelConfig, config: SamplingConfig, name: str) -> Plan:
    plan = make_process(model).plan(name)
    if config.head_solver == "euler":
        return plan
    if model.head != "flow":
        raise ValueError(
            "sampling.head_solver 'heun' is for the flow head; this model has a ddpm head: use 'euler'."
        )
    time, size = plan["time"], plan["size"]
    return {
        "time": jnp.stack([time, time - size], axis=1).ravel(),
        "size": jnp.stack([size, size / 2], axis=1).ravel(),
        "back": jnp.stack([jnp.zeros_like(size), -size / 2], axis=1).ravel(),
    }

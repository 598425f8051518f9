"""The curriculum: from images to short clips to long and large ones, one row of data for each stage
(`stages`).

The weights depend neither on the number of frames nor on the resolution, so a stage only changes
the data and the learning rate. One run goes through all stages and counts its steps through; stage
i covers

    start_i <= step < start_i + steps_i,     start_0 = 0,   start_{i+1} = start_i + steps_i.

The learning rate of step s, with the peak of the stage that s belongs to, W warm-up steps, N steps
in all and f = final_fraction, is

    lr(s) = peak(s) * min(1, s / W) * decay(s)
    decay(s) = 1                                                               constant
    decay(s) = f + (1 - f) * (1 + cos(pi * max(0, s - W) / (N - W))) / 2       cosine

The run warms up once: at the start of a later stage the optimizer already knows the scale of the
gradients.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp

from videomar_jax.checks import Fraction, UserError, check_value, one_of
from videomar_jax.training.stages import Stage, stage_of_row
from videomar_jax.types import Array, Float, Int

__all__ = ["SCHEDULES", "Curriculum", "LearningRate", "Stage", "learning_rates"]

SCHEDULES = ("constant", "cosine")

LearningRate: TypeAlias = Callable[[int | Int[Array, ""]], Float[Array, ""]]
"""The learning rate as a function of the step."""


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """The stages of a run, in order.

    Raises:
        UserError: there is no stage, or two stages have the same name.
    """

    stages: tuple[Stage, ...]

    def __post_init__(self):
        if not self.stages:
            raise UserError("A curriculum needs at least one stage.")
        names = [stage.name for stage in self.stages]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise UserError(
                f"Each stage of a curriculum needs a name of its own; used more than once: "
                f"{repeated}."
            )

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]]) -> "Curriculum":
        """Builds a curriculum from plain rows, as `stages.stage_of_row` takes them.

        Raises:
            UserError: a row lacks a key, or has an unknown one or a value that is not possible.
        """
        return cls(tuple(stage_of_row(index, row) for index, row in enumerate(rows)))

    @property
    def boundaries(self) -> tuple[int, ...]:
        """For each stage the step at which it is over; the last one is `total_steps`."""
        return tuple(itertools.accumulate(stage.steps for stage in self.stages))

    @property
    def total_steps(self) -> int:
        return self.boundaries[-1]

    def start_of(self, stage_index: int) -> int:
        """The first step of a stage; ValueError if there is no such stage."""
        if not 0 <= stage_index < len(self.stages):
            raise ValueError(
                f"There is no stage {stage_index}: the curriculum has {len(self.stages)}, counted "
                f"from 0."
            )
        return (0, *self.boundaries)[stage_index]

    def at(self, step: int) -> tuple[int, int]:
        """(stage index, step within that stage) of a step; ValueError unless
        0 <= step < total_steps."""
        if not 0 <= step < self.total_steps:
            raise ValueError(
                f"Step {step} lies outside the curriculum, whose steps are 0 to "
                f"{self.total_steps - 1}."
            )
        index = bisect.bisect_right(self.boundaries, step)
        return index, step - self.start_of(index)

    def stage_at(self, step: int) -> Stage | None:
        """The stage that a step belongs to; None for the step after the last one."""
        return None if step == self.total_steps else self.stages[self.at(step)[0]]


def learning_rates(
    curriculum: Curriculum, *, warmup_steps: int, schedule: str, final_fraction: float
) -> LearningRate:
    """The learning rate as a function of the step, under `jit` or not; the module has the formula.

    Args:
        warmup_steps: updates from rate 0 to the full rate, at the start of the run only; 0: none.
        schedule: "constant" or "cosine".
        final_fraction: what remains of a stage's peak after the last step, in [0, 1]; used by
            "cosine" only.

    Returns:
        step -> rate, float32. A step after the last one has the rate of the end.

    Raises:
        UserError: a value that is not possible, or a warm-up longer than the run.
    """
    total = curriculum.total_steps
    one_of("optimizer.schedule", schedule, SCHEDULES)
    check_value("optimizer.final_fraction", final_fraction, Fraction)
    if not 0 <= warmup_steps < total:
        raise UserError(
            f"optimizer.warmup_steps is {warmup_steps}, but must be at least 0 and less than the "
            f"{total} steps of the run."
        )
    peaks = tuple(float(stage.learning_rate) for stage in curriculum.stages)
    last_steps = curriculum.boundaries[:-1]

    def rate(step: int | Int[Array, ""]) -> Float[Array, ""]:
        step = jnp.asarray(step)
        stage = jnp.sum(step >= jnp.asarray(last_steps, step.dtype), dtype=jnp.int32)
        peak = jnp.asarray(peaks, jnp.float32)[stage]
        warm = jnp.minimum(1.0, step / max(warmup_steps, 1)) if warmup_steps else 1.0
        if schedule == "constant":
            return jnp.asarray(peak * warm, jnp.float32)
        done = jnp.clip((step - warmup_steps) / (total - warmup_steps), 0.0, 1.0)
        decay = final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
        return jnp.asarray(peak * warm * decay, jnp.float32)

    return rate

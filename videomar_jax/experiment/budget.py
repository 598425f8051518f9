"""Fits a run into the minutes that it is given (`run.minutes`): frame size and steps.

The config's curriculum says how clips get longer and how the steps are shared among the stages. Its
sizes, batches and steps are chosen here, once, for the machine that the run starts on:

    size    the largest of a few for which the run still sees about ENOUGH_WINDOWS clips, in the
            proportions of the footage; or `run.size`
    batch   as many clips as have the pixels of the config's batch: of larger frames fewer, since
            a small model learns more from many steps than from large ones
    steps   those of the config times one factor, so that everything takes the minutes

from the speed of a few real steps, reading included. WORKDIR/budget.json keeps the choice: a run
that is resumed, on whatever machine, has the same steps.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from videomar_jax.checks import UserError
from videomar_jax.data.sources import ClipSource
from videomar_jax.experiment.config import Experiment
from videomar_jax.experiment.data_sources import DATA_KINDS
from videomar_jax.experiment.workdir import BUDGET
from videomar_jax.io.files import atomic_write, read_json, take_digest, with_digest
from videomar_jax.io.log import log
from videomar_jax.parallel.multihost import from_first_process
from videomar_jax.training.loop import StepTime
from videomar_jax.training.stages import Stage

SIDES = (32, 48, 64, 96, 128)
"""Sides of squares whose area a frame may have, pixels."""
ENOUGH_WINDOWS = 24_000
"""Clips of the last stage that there must be time for before frames are made larger."""
REPORT_SHARES = (0.2, 0.1)
"""Of the first ten minutes and of the others, kept for the fit of the linear prior and for the
report, whose clips do not grow with the time."""
LEAST_STEPS = 10
LEAST_CLIPS = 2
"""Of a batch."""

TimeStage = Callable[[Experiment, int], StepTime]
"""How long the steps of a stage of an experiment take."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What was chosen for a run, as budget.json holds it."""

    minutes: float
    """What was asked for."""
    size: tuple[int, int] | None
    """The size that was asked for; None: it was chosen."""
    height: int
    width: int
    steps: tuple[int, ...]
    """Of each stage."""
    seconds_per_step: tuple[float, ...]
    """Of each stage, as measured."""
    batch_sizes: tuple[int, ...] | None = None
    """Of each stage; None, as earlier versions wrote it: those of the config."""

    def apply(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config with the sizes, batches and steps of this budget."""
        rows = []
        for number, row in enumerate(config["curriculum"]):
            row = dict(row, height=self.height, width=self.width, steps=self.steps[number])
            if self.batch_sizes is not None:
                row["batch_size"] = self.batch_sizes[number]
            rows.append(row)
        return {**config, "curriculum": tuple(rows)}


def read_budget(workdir: Path, experiment: Experiment) -> Budget | None:
    """What was chosen when the run in `workdir` started; None if it is to be chosen now.

    Raises:
        UserError: the run was started with other minutes, or the file is broken.
    """
    run = experiment.recipe.run
    file = workdir / BUDGET
    if run.minutes is None or not file.exists():
        return None
    budget = _read(file)
    stages = len(experiment.recipe.curriculum.stages)
    if len(budget.steps) != stages:
        raise UserError(
            f"{file} is for {len(budget.steps)} stages, this config has {stages}: choose another "
            f"--workdir."
        )
    if (budget.minutes, budget.size) != (run.minutes, run.size):
        raise UserError(
            f"{workdir} holds a run that was planned for {budget.minutes:g} minutes (run.size "
            f"{budget.size}): its steps are fixed. Choose another --workdir, or give the same "
            f"run.minutes and run.size to continue it."
        )
    return budget


def at_chosen_size(config: Mapping[str, Any], workdir: Path) -> Mapping[str, Any]:
    """The config with the frame size that the run in `workdir` chose when it started; as it is, if
    that run chose none or the config asks for one with `run.size`.

    Raises:
        UserError: its budget.json is broken.
    """
    file = workdir / BUDGET
    if not file.exists() or config["run"].get("size") is not None:
        return config
    budget = _read(file)
    rows = []
    for row in config["curriculum"]:
        sized = dict(row, height=budget.height, width=budget.width)
        # A stage that mixes sizes has none to choose.
        rows.append(row if "mix" in row else sized)
    return {**config, "curriculum": tuple(rows)}


def _read(file: Path) -> Budget:
    """The budget in a file.

    Raises:
        UserError: the file is broken.
    """
    try:
        values = read_json(file)
        if not take_digest(values):
            raise UserError("it is not as it was written")
        size = None if values["size"] is None else tuple(values["size"])
        batches = values.get("batch_sizes")
        budget = Budget(
            minutes=float(values["minutes"]),
            size=size,
            height=int(values["height"]),
            width=int(values["width"]),
            steps=tuple(int(steps) for steps in values["steps"]),
            seconds_per_step=tuple(float(each) for each in values["seconds_per_step"]),
            batch_sizes=None if batches is None else tuple(int(batch) for batch in batches),
        )
        if len(budget.batch_sizes or budget.steps) != len(budget.steps):
            raise UserError("it has batches and steps of different stages")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file} is broken ({error!r}); choose another --workdir.") from error
    return budget


def write_budget(workdir: Path, budget: Budget) -> None:
    """Writes WORKDIR/budget.json."""
    values = with_digest(dataclasses.asdict(budget))
    atomic_write(workdir / BUDGET, json.dumps(values, indent=2) + "\n")


def check_budget(config: Mapping[str, Any]) -> None:
    """Raises a UserError if a curriculum cannot be fitted into minutes."""
    mixed = [row["name"] for row in config["curriculum"] if "mix" in row]
    if mixed:
        raise UserError(
            f"run.minutes chooses the size of the frames, but stage '{mixed[0]}' mixes sizes: give "
            f"its stages one size each, or leave run.minutes out."
        )


def choose_budget(
    experiment: Experiment,
    config: Mapping[str, Any],
    time_stage: TimeStage,
) -> Budget:
    """Measures this machine and chooses sizes, batches and steps.

    With several processes all of them call this; they take what process 0 chooses.

    Args:
        config: the config as plain values.
        time_stage: called for each size that is tried.
    Raises:
        UserError: the minutes are not enough for LEAST_STEPS steps of each stage.
    """
    run = experiment.recipe.run
    assert run.minutes is not None
    last, started = len(config["curriculum"]) - 1, time.monotonic()
    shares = _shares_of_a_batch(experiment)

    def at_size(size: tuple[int, int]) -> Experiment:
        rows = []
        for row in config["curriculum"]:
            batch = _batch_size(row, size, shares)
            rows.append(dict(row, height=size[0], width=size[1], batch_size=batch))
        return Experiment.from_config({**config, "curriculum": tuple(rows)})

    def seconds_left() -> float:
        for_report = REPORT_SHARES[0] * min(run.minutes, 10)
        for_report += REPORT_SHARES[1] * max(run.minutes - 10, 0)
        return 60 * (run.minutes - for_report) - (time.monotonic() - started)

    sizes = _sizes(experiment)
    size, measured = sizes[0], {}
    sized = at_size(size)
    measured[last] = time_stage(sized, last)
    window_s = measured[last].step_s / sized.final_stage.batch_size
    # The clocks of two processes never agree: all take what the first one chooses.
    larger = _of_first_process(_largest(sizes, seconds_left() / window_s))
    if larger != size:
        size, measured = larger, {}
        sized = at_size(size)
    for index in {0, last}:
        if index not in measured:
            measured[index] = time_stage(sized, index)
    stages = sized.recipe.curriculum.stages
    times = _step_seconds(stages, measured[0], measured[last])
    # Training compiles each stage again.
    left = seconds_left() - len(stages) * measured[last].compile_s
    planned = sum(stage.steps * each for stage, each in zip(stages, times, strict=True))
    steps = [int(stage.steps * left / planned) for stage in stages]
    steps = _of_first_process(steps)
    if min(steps) < LEAST_STEPS:
        needed = LEAST_STEPS / min(stage.steps for stage in stages) * planned - left
        raise UserError(
            f"run.minutes={run.minutes:g} is too short for this machine, which would need about "
            f"{math.ceil(run.minutes + needed / 60)} minutes to learn anything: give more, or a "
            f"smaller run.size."
        )
    budget = Budget(
        minutes=run.minutes,
        size=None if run.size is None else (run.size[0], run.size[1]),
        height=size[0],
        width=size[1],
        steps=steps,
        seconds_per_step=tuple(round(each, 4) for each in times),
        batch_sizes=tuple(stage.batch_size for stage in stages),
    )
    described = ", ".join(
        f"{count} steps of {stage.batch_size} clips and {each:.2f} s for '{stage.name}'"
        for stage, count, each in zip(stages, budget.steps, budget.seconds_per_step, strict=True)
    )
    log.info("%g minutes on this machine: frames of %dx%d, %s", run.minutes, *size, described)
    return budget


def _shares_of_a_batch(experiment: Experiment) -> int:
    """A batch must be a multiple of this: each device and each process takes as many clips."""
    recipe = experiment.recipe
    data, fsdp, _, _ = recipe.mesh.sizes(jax.device_count())
    return math.lcm(data * fsdp * recipe.run.accumulate, jax.process_count())


def _batch_size(row: Mapping[str, Any], size: tuple[int, int], shares: int) -> int:
    """The clips of a batch of frames of this size, in whole shares."""
    smaller = row["height"] * row["width"] / (size[0] * size[1])
    if smaller >= 1:
        return row["batch_size"]
    least = math.ceil(LEAST_CLIPS / shares) * shares
    return min(max(round(row["batch_size"] * smaller / shares) * shares, least), row["batch_size"])


def _step_seconds(stages: Sequence[Stage], first: StepTime, last: StepTime) -> list[float]:
    """Seconds of a step of each stage, on the line through the first and the last one: a part that
    every step costs, and a part that grows with the pixels."""
    pixels = [stage.batch_size * max(stage.num_frames - 1, 1) for stage in stages]
    if pixels[-1] == pixels[0]:
        return [max(first.step_s, last.step_s)] * len(stages)
    slope = max(last.step_s - first.step_s, 0.0) / (pixels[-1] - pixels[0])
    return [max(first.step_s + slope * (each - pixels[0]), 1e-4) for each in pixels]


def _sizes(experiment: Experiment) -> list[tuple[int, int]]:
    """Sizes to choose from, ascending, in the proportions of the config's own."""
    run, final = experiment.recipe.run, experiment.final_stage
    if run.size is not None:
        return [(run.size[0], run.size[1])]
    if not DATA_KINDS[experiment.data.kind].facts.any_shape:
        return [(final.height, final.width)]
    strides = experiment.strides()
    side = 1 if strides is None else strides[1] * experiment.recipe.model.patch_size
    native = typical_size(experiment.source("train"))
    rows, columns = native or (final.height, final.width)
    sizes = []
    for square in SIDES:
        scale = square / math.sqrt(rows * columns)
        if native is not None and scale > 1 and sizes:
            break  # larger than the footage itself
        size = (_multiple(rows * scale, side), _multiple(columns * scale, side))
        if size not in sizes:
            sizes.append(size)
    return sizes


def typical_size(source: ClipSource) -> tuple[int, int] | None:
    """The median rows and columns of a source's clips, where it knows them."""
    sizes = getattr(source, "sizes", None)
    if sizes is None:
        return None
    rows, columns = np.median(np.asarray(sizes), axis=0)
    return int(rows), int(columns)


def _multiple(length: float, side: int) -> int:
    return max(round(length / side), 1) * side


def _largest(sizes: Sequence[tuple[int, int]], windows: float) -> tuple[int, int]:
    """The largest size of which there is time for enough windows.

    Args:
        windows: those of the first size that there is time for. Their cost grows with the tokens.
    """
    first = sizes[0][0] * sizes[0][1]
    affordable = [size for size in sizes if windows * first / (size[0] * size[1]) >= ENOUGH_WINDOWS]
    return affordable[-1] if affordable else sizes[0]


def _of_first_process(numbers: Sequence[int]) -> tuple[int, ...]:
    """The numbers of process 0: no two machines measure the same."""
    return tuple(from_first_process(lambda: np.asarray(numbers, np.int32)).tolist())

"""The training loop: the only place where data, tokenizer, model, checkpoints and logs meet.

For every step the order is: preview → save → next batch → update → log. A checkpoint of step n therefore holds the
state before batch n was drawn, its position in the data is n itself, and every draw comes from fold_in(key, n): a run
that stops anywhere and starts again ends with bitwise the same parameters. Metrics are read one step late, so the
device never waits for the host.
"""

import dataclasses
import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from videomar_jax.media import write_png
from videomar_jax.models.config import ModelConfig
from videomar_jax.text_encoders import TextEncoder
from videomar_jax.tokenizers import Tokenizer, latent_shape
from videomar_jax.training.checkpoint import Checkpoints
from videomar_jax.training.curriculum import Curriculum, Stage, learning_rates
from videomar_jax.training.logging import Progress, RunLog, check_finite
from videomar_jax.training.loss import Batch, LossConfig
from videomar_jax.training.optimizer import OptimizerConfig, make_optimizer
from videomar_jax.training.state import Params, TrainState, abstract_model, count_params, init_state
from videomar_jax.training.step import make_train_step
from videomar_jax.training.stream import Parts, training_batches
from videomar_jax.types import UInt8

_log = logging.getLogger(__name__)

Preview = Callable[[Params], UInt8[np.ndarray, "rows columns 3"]]
"""Draws a picture of generated clips with the given (averaged) parameters."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How often a run speaks, saves and shows."""

    log_every: int = 10
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    sample_every: int = 0
    progress_seconds: float = 15.0
    tensorboard: bool = True

    def __post_init__(self):
        for field in ("log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, field) < 1:
                raise ValueError(f"run.{field} must be at least 1, not {getattr(self, field)}.")
        if self.sample_every < 0:
            raise ValueError(f"run.sample_every must not be negative, but is {self.sample_every}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a training run computes, given its data and tokenizer."""

    seed: int
    init_from: str = ""  # where the initial parameters came from; "" for random ones
    model: ModelConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    curriculum: Curriculum
    run: RunConfig

    def __post_init__(self):
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"config.seed must lie in 0..2**32 - 1, but is {self.seed}.")
        _learning_rate(self)  # a schedule that does not fit the curriculum is told here


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where a run stands when `train` returns."""

    state: TrainState
    finished: bool  # False when it was asked to stop
    seconds: dict[str, float]  # wall time of each stage, over all starts of the run


def check_fit(model: ModelConfig, tokenizer: Tokenizer, text: TextEncoder) -> None:
    """Raises a ValueError where model, tokenizer and text encoder do not fit together."""
    if model.latent_channels != tokenizer.channels:
        raise ValueError(
            f"The model takes {model.latent_channels} latent channels, the tokenizer gives {tokenizer.channels}: "
            f"set model.latent_channels={tokenizer.channels}."
        )
    if (model.text_tokens, model.text_width) != (text.max_tokens, text.width):
        raise ValueError(
            f"The model takes text of {model.text_tokens} tokens x {model.text_width} values, the text encoder gives "
            f"{text.max_tokens} x {text.width}: set model.text_tokens and model.text_width to that."
        )


def check_parts(recipe: Recipe, parts: Parts) -> None:
    """Raises a ValueError naming what does not fit together, before any work."""
    model, tokenizer = recipe.model, parts.tokenizer
    check_fit(model, tokenizer, parts.text_encoder)
    if recipe.loss.regression_weight and not model.regression:
        raise ValueError("loss.regression_weight needs model.regression=True.")
    for stage in recipe.curriculum.stages:
        try:
            _, rows, columns = latent_shape(tokenizer, stage.num_frames, stage.height, stage.width)
        except ValueError as error:
            raise ValueError(f"Stage '{stage.name}': {error}") from error
        if rows % model.patch_size or columns % model.patch_size:
            raise ValueError(
                f"Stage '{stage.name}': latents of {rows}x{columns} are no multiple of model.patch_size "
                f"{model.patch_size}; change the stage's height and width."
            )


def train(
    recipe: Recipe, parts: Parts, workdir: Path, preview: Preview | None = None, initial: Params | None = None
) -> Outcome:
    """Runs the curriculum from where `workdir` left off to its end, or until SIGINT or SIGTERM.

    Args:
        preview: draws generated clips with the averaged parameters.
        initial: parameters to begin with, where the run has no checkpoint yet.

    Writes checkpoints, metrics.jsonl, tensorboard/ and samples/ under `workdir`. A second signal stops at once.

    Raises:
        ValueError: recipe and parts do not fit together, or the checkpoint is of another model.
        FloatingPointError: the loss is not finite any more.
    """
    check_parts(recipe, parts)
    curriculum, run = recipe.curriculum, recipe.run
    optimizer = make_optimizer(recipe.optimizer, _learning_rate(recipe))
    graph, shapes = abstract_model(recipe.model)
    update = make_train_step(graph, optimizer, recipe.loss, recipe.optimizer)
    root = jax.random.key(recipe.seed)
    key = jax.random.fold_in(root, 1)
    with ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(workdir / "checkpoints", keep_last=run.keep_checkpoints))
        state, seconds = _start(recipe.model, optimizer, jax.random.fold_in(root, 0), checkpoints, initial)
        step = start = shown = int(state.step)
        _log.info("%s parameters, steps %d to %d", f"{count_params(shapes):,}", step, curriculum.total_steps)
        log = stack.enter_context(RunLog(workdir, tensorboard=run.tensorboard, resume_step=start))
        progress = stack.enter_context(
            Progress(curriculum.total_steps, start_step=start, every_seconds=run.progress_seconds)
        )
        stop = stack.enter_context(_signals())
        clock = _StageClock(seconds)
        late = _LateMetrics(log, progress, run.log_every, _learning_rate(recipe))

        def between_steps(state: TrainState, boundary: bool) -> None:
            nonlocal shown
            if step == start:
                return
            due = boundary or (run.sample_every and step % run.sample_every == 0)
            if preview is not None and due and step != shown:
                shown = step
                _show(preview(state.ema), step, log, workdir)
            if boundary or stop.asked or step % run.checkpoint_every == 0:
                late.flush()  # what is saved is finite, and its metrics are written before it can be gone on from
                checkpoints.save(step, state.parts(), {"step": step, "seconds": clock.seconds()})

        for stage, stream in _stages_from(recipe, parts, step):
            last = curriculum.boundaries[curriculum.stages.index(stage)]
            clock.enter(stage.name)
            while step < last:
                between_steps(state, boundary=step in curriculum.boundaries)
                if stop.asked:
                    break
                batch = next(stream)
                state, metrics = update(state, batch, key)
                step += 1
                late.put(step, stage, batch, metrics)
            stream.close()
            if stop.asked:
                break
        late.flush()
        clock.leave()
        between_steps(state, boundary=step in curriculum.boundaries)
        checkpoints.wait()
        return Outcome(state=state, finished=step == curriculum.total_steps, seconds=clock.seconds())


def _learning_rate(recipe: Recipe):
    config = recipe.optimizer
    return learning_rates(
        recipe.curriculum, warmup_steps=config.warmup_steps, schedule=config.schedule,
        final_fraction=config.final_fraction,
    )  # fmt: skip


def _start(model: ModelConfig, optimizer: optax.GradientTransformation, key, checkpoints: Checkpoints, initial):
    """The newest checkpoint's state and seconds, or a fresh state."""
    step = checkpoints.latest_step()
    # Both are placed alike, down to the step, so that fresh and resumed runs are the same compiled program.
    place = jax.local_devices()[0]
    if step is None:
        return jax.device_put(init_state(model, optimizer, key, initial), place), {}
    like = jax.eval_shape(lambda: init_state(model, optimizer, key)).parts()
    parts, progress = checkpoints.restore(step, like)
    _log.info("going on from the checkpoint of step %d", step)
    return jax.device_put(TrainState(jnp.int32(progress["step"]), **parts), place), progress["seconds"]


def _stages_from(recipe: Recipe, parts: Parts, step: int) -> Iterator[tuple[Stage, Iterator[Batch]]]:
    """The stages that are not over at `step`, each with its batches from there on."""
    curriculum = recipe.curriculum
    for index, stage in enumerate(curriculum.stages):
        done = max(step - curriculum.start_of(index), 0)
        if done < stage.steps:
            yield stage, training_batches(recipe.seed, index, stage, parts, done)


def _show(picture: np.ndarray, step: int, log: RunLog, workdir: Path) -> None:
    write_png(workdir / "samples" / f"step_{step:07d}.png", picture, overwrite=True)
    log.image(step, "samples", picture)


class _LateMetrics:
    """Reads the metrics of a step when the next one is already on its way."""

    def __init__(self, log: RunLog, progress: Progress, every: int, learning_rate: Callable):
        self._log, self._progress, self._every, self._rate = log, progress, every, learning_rate
        self._pending: tuple | None = None

    def put(self, step: int, stage: Stage, batch: Batch, metrics: dict) -> None:
        """Takes the metrics of `step`, and tells those of the step before."""
        self.flush()
        self._pending = (step, stage.name, int(np.prod(batch.latents.shape[:4])), metrics)

    def flush(self) -> None:
        """Tells what is still held back."""
        if self._pending is None:
            return
        step, name, tokens, metrics = self._pending
        self._pending = None
        numbers = {key: float(value) for key, value in jax.device_get(metrics).items()}
        check_finite(step, numbers)
        self._progress.update(step, numbers["loss"], tokens, name)
        if step % self._every == 0:
            speed = self._progress.speed() or (0.0, 0.0)
            extra = {"learning_rate": float(self._rate(step - 1)), "steps_per_second": speed[0]}
            self._log.write(step, numbers | extra | {"tokens_per_second": speed[1]})


class _StageClock:
    """Wall time by stage, going on from what earlier starts of the run took."""

    def __init__(self, before: dict[str, float]):
        self._seconds, self._name, self._since = dict(before), None, 0.0

    def enter(self, name: str) -> None:
        self.leave()
        self._name, self._since = name, time.monotonic()

    def leave(self) -> None:
        self._seconds = self.seconds()
        self._name = None

    def seconds(self) -> dict[str, float]:
        if self._name is None:
            return dict(self._seconds)
        spent = self._seconds.get(self._name, 0.0) + time.monotonic() - self._since
        return self._seconds | {self._name: spent}


@dataclasses.dataclass
class _Stop:
    asked: bool = False


@contextmanager
def _signals() -> Iterator[_Stop]:
    """Turns the first SIGINT or SIGTERM into a request that the loop reads between two steps."""
    stop = _Stop()

    def ask(number, frame):
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        _log.warning("%s: saving after this step; once more stops at once", signal.Signals(number).name)

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever runs us handles signals
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

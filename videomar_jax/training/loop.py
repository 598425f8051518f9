"""The training loop: the only place where data, tokenizer, model, checkpoints and logs meet.

For every step the order is: validate → save → preview → next batch → update → log. A checkpoint of
    step n therefore
holds the state before batch n was drawn, its position in the data is n itself, and every draw comes
from fold_in(key, n): a run that stops anywhere and starts again, on the same devices or others,
sees the same data and draws; on the same ones it ends with bitwise the same parameters. Metrics are
read one step late, so the device never waits for the host.

With several processes all of them run this loop in step; process 0 alone writes logs and pictures.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from videomar_jax.checkpoints.manager import Checkpoints
from videomar_jax.data.sources import ClipShape
from videomar_jax.io.media import write_mp4, write_png
from videomar_jax.models.config import ModelConfig
from videomar_jax.models.flops import forward_flops
from videomar_jax.parallel.mesh import make_mesh
from videomar_jax.parallel.multihost import process_share, to_host
from videomar_jax.parallel.sharding import (
    batch_shardings,
    layout_rule,
    place,
    replicated,
    state_shardings,
)
from videomar_jax.training.batches import TrainingInputs, training_batches
from videomar_jax.training.curriculum import Stage
from videomar_jax.training.logging import Progress, RunLog
from videomar_jax.training.loss import Batch, truncated_frames
from videomar_jax.training.metrics import Meters, StageClock
from videomar_jax.training.optimizer import make_optimizer
from videomar_jax.training.preemption import any_process_stopped, stop_signals
from videomar_jax.training.recipe import Recipe, check_mesh, check_parts
from videomar_jax.training.state import Params, TrainState, abstract_model, count_params, init_state
from videomar_jax.training.step import make_train_step, token_shape
from videomar_jax.training.validation import Validation
from videomar_jax.types import Key, UInt8

_log = logging.getLogger(__name__)

Preview = Callable[
    [Params], tuple[UInt8[np.ndarray, "rows columns 3"], UInt8[np.ndarray, "F rows columns 3"]]
]
"""Generates clips with the given (averaged) parameters: a picture of their frames, and the clips
moving."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """Which steps a profile is taken of: `steps` of them, from step `start` on."""

    start: int
    steps: int

    @classmethod
    def parse(cls, text: str) -> "Profile":
        """Reads "START:STEPS"; ValueError for anything else."""
        start, colon, steps = text.partition(":")
        if not (colon and start.isdecimal() and steps.isdecimal() and int(steps)):
            raise ValueError(
                f"--profile={text} must be START:STEPS, such as 20:5 for the steps 20 to 24."
            )
        return cls(start=int(start), steps=int(steps))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where a run stands when `train` returns."""

    state: TrainState
    finished: bool  # False when it was asked to stop
    seconds: dict[str, float]  # wall time of each stage, over all starts of the run


def train(
    recipe: Recipe,
    parts: TrainingInputs,
    workdir: Path,
    preview: Preview | None = None,
    initial: Callable[[], Params] | None = None,
    profile: Profile | None = None,
) -> Outcome:
    """Runs the curriculum from where `workdir` left off to its end, or until SIGINT or SIGTERM.

    Args:
        preview: draws generated clips with the averaged parameters; called on process 0. What it
            raises is told as a warning, and training goes on.
        initial: gives the parameters to begin with; called where the run has no checkpoint yet.

    Writes checkpoints, metrics.jsonl, tensorboard/ and samples/ under `workdir`. A second signal
    stops at once.

    Raises:
        ValueError: recipe, parts and devices do not fit together, or the checkpoint is of another
            model.
        FloatingPointError: the loss is not finite any more.
        OSError: data cannot be read or checkpoints not be written any more; the text names the last
            good checkpoint.
    """
    check_parts(recipe, parts)
    with ExitStack() as stack:
        return _Trainer(recipe, parts, workdir, preview, profile, stack).run(initial)


class _Trainer:
    """The state of one start of a run, between two steps."""

    def __init__(
        self,
        recipe: Recipe,
        parts: TrainingInputs,
        workdir: Path,
        preview,
        profile,
        stack: ExitStack,
    ):
        self.recipe, self.parts, self.workdir, self.preview, self.profile = (
            recipe,
            parts,
            workdir,
            preview,
            profile,
        )
        self.mesh = make_mesh(recipe.mesh)
        check_mesh(recipe, parts.tokenizer.spatial_stride, dict(self.mesh.shape))
        self.share, self.shares = process_share(self.mesh)
        run = recipe.run
        self.checkpoints = stack.enter_context(
            Checkpoints(
                workdir / "checkpoints",
                keep_last=run.keep_checkpoints,
                keep_every=run.keep_every or None,
            )
        )
        self.stack = stack
        self.voted = self.tracing = False
        self.validation: Validation | None = None

    def run(self, initial: Callable[[], Params] | None) -> Outcome:
        """From the newest checkpoint, or the beginning, to the end."""
        recipe, run, stack = self.recipe, self.recipe.run, self.stack
        beginning, self.key = _keys(recipe.seed, self.mesh)
        graph, shapes = abstract_model(_runnable(recipe.model, self.mesh))
        seconds = self._start(beginning, initial)
        self.update = make_train_step(
            graph,
            self.optimizer,
            recipe.loss,
            recipe.optimizer,
            accumulate=run.accumulate,
            shardings=self.shardings,
            rule=layout_rule(self.mesh, recipe.mesh) if self.mesh.size > 1 else None,
        )
        self.start, total = self.step, recipe.curriculum.total_steps
        self.shown = self.measured = self.step
        _log.info(
            "%s parameters, steps %d to %d, %s",
            f"{count_params(shapes):,}",
            self.step,
            total,
            _told(self.mesh),
        )
        first = jax.process_index() == 0
        self.log = stack.enter_context(
            RunLog(
                self.workdir, tensorboard=run.tensorboard, resume_step=self.step, is_writer=first
            )
        )
        progress = stack.enter_context(
            Progress(
                total, start_step=self.step, every_seconds=run.progress_seconds, is_writer=first
            )
        )
        self.stop = stack.enter_context(stop_signals())
        self.clock = StageClock(seconds)
        self.meters = Meters(self.log, progress, run.log_every, recipe.learning_rate())
        if run.validate_every and self.parts.held_out is not None:
            last = recipe.curriculum.stages[-1]
            shape = ClipShape(num_frames=last.num_frames, height=last.height, width=last.width)
            self.validation = Validation(
                graph,
                recipe.loss,
                self.parts,
                self.mesh,
                shape=shape,
                clips=run.validation_clips,
                batch_size=last.batch_size,
            )
        with self._naming_the_last_checkpoint():
            self._stages()
            self.voted |= self.meters.flush()
            self.clock.leave()
            self._between_steps()
            self.checkpoints.wait()
        return Outcome(state=self.state, finished=self.step == total, seconds=self.clock.seconds())

    def _start(self, key, initial: Callable[[], Params] | None) -> dict[str, float]:
        """Sets state and step: the newest checkpoint's, or fresh ones; returns the seconds spent so
        far."""
        recipe = self.recipe
        self.optimizer = make_optimizer(recipe.optimizer, recipe.learning_rate())
        abstract = jax.eval_shape(lambda: init_state(recipe.model, self.optimizer, key))
        self.shardings = state_shardings(abstract, self.mesh, recipe.mesh)
        self.step = self.checkpoints.latest_step() or 0
        if self.checkpoints.latest_step() is None:
            begin = None if initial is None else place(initial(), self.shardings.params)
            self.state = init_state(recipe.model, self.optimizer, key, begin, self.shardings)
            return {}
        like = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract.parts(),
            self.shardings.parts(),
        )
        parts, progress = self.checkpoints.restore(self.step, like)
        _log.info("going on from the checkpoint of step %d", self.step)
        counter = place(np.int32(progress["step"]), self.shardings.step)
        self.state = TrainState(counter, **parts)
        return progress["seconds"]

    def _stages(self) -> None:
        curriculum = self.recipe.curriculum
        for index, stage in enumerate(curriculum.stages):
            done = max(self.step - curriculum.start_of(index), 0)
            if done >= stage.steps:
                continue
            self.clock.enter(stage.name)
            stream = training_batches(
                self.recipe.seed,
                index,
                stage,
                self.parts,
                done,
                process_index=self.share,
                process_count=self.shares,
                lookahead=self.recipe.run.lookahead,
            )
            try:
                while self.step < curriculum.boundaries[index]:
                    self._between_steps()
                    if self.stopping:
                        return
                    self._step(stage, stream)
            finally:
                stream.close()

    def _step(self, stage: Stage, stream: Iterator[Batch]) -> None:
        self._profile()
        before = time.monotonic()
        batch = next(stream)
        waited = time.monotonic() - before
        batch = self._placed(self._cut(batch))
        self.state, metrics = self.update(self.state, batch, self.key)
        self.step += 1
        stop = any_process_stopped(self.mesh, self.stop.asked)
        tokens = math.prod(token_shape(batch, self.recipe.model.patch_size))
        self.voted |= self.meters.put(
            self.step, stage.name, tokens, self._flops(batch), waited, metrics, stop
        )

    def _cut(self, batch: Batch) -> Batch:
        """Without the frames after the current one, where the loss has no use for them."""
        if not self.recipe.loss.truncate:
            return batch
        frames = truncated_frames(self.recipe.seed, self.step, batch.latents.shape[1])
        return dataclasses.replace(batch, latents=batch.latents[:, :frames])

    def _flops(self, batch: Batch) -> float:
        """Of forward and backward pass, without what rematerialisation computes again."""
        clips, frames, tokens = token_shape(batch, self.recipe.model.patch_size)
        loss = self.recipe.loss
        forward = forward_flops(
            self.recipe.model,
            supervise=loss.supervise,
            draws_per_token=loss.draws_per_token,
            batch=clips,
            frames=frames,
            tokens=tokens,
        )
        return 3 * forward.total()

    def _placed(self, batch: Batch) -> Batch:
        """This process's share as its part of the global batch."""
        shardings = batch_shardings(batch, self.mesh)
        clips = len(batch.latents) * self.shares
        if jax.process_count() == 1:
            return jax.device_put(batch, shardings)
        return place(batch, shardings, first_row=self.share * clips // self.shares, rows=clips)

    @property
    def stopping(self) -> bool:
        """Whether this start ends here; the same on every process."""
        return self.voted if jax.process_count() > 1 else self.stop.asked

    def _between_steps(self) -> None:
        if self.step == self.start:
            return
        run = self.recipe.run
        boundary = self.step in self.recipe.curriculum.boundaries
        score = self._validate(boundary)
        if boundary or self.stopping or self.step % run.checkpoint_every == 0 or score is not None:
            # What is saved is finite, and its metrics are written before it can be gone on from.
            self.voted |= self.meters.flush()
            progress = {"step": self.step, "seconds": self.clock.seconds()}
            extra = {} if score is None else {"score": score}
            self.checkpoints.save(self.step, self.state.parts(), progress, **extra)
        if self.preview is not None and (
            boundary or (run.sample_every and self.step % run.sample_every == 0)
        ):
            self._show()

    def _validate(self, boundary: bool) -> float | None:
        """The loss on held-out clips, where it is due."""
        due = self.validation is not None and (
            boundary or self.step % self.recipe.run.validate_every == 0
        )
        if not due or self.measured == self.step:
            return None
        self.measured = self.step
        loss = self.validation(self.state.ema)
        self.log.write(self.step, {"validation_loss": loss})
        _log.info("step %d: validation loss %.4f", self.step, loss)
        return loss

    def _show(self) -> None:
        if self.shown == self.step:
            return
        self.shown = self.step
        ema = to_host(self.state.ema)
        if jax.process_index() == 0:
            try:
                self._draw(ema)
            except (ValueError, OSError, jax.errors.JaxRuntimeError) as error:
                _log.warning("step %d: no preview was drawn: %s", self.step, error)

    def _draw(self, ema: Params) -> None:
        picture, moving = self.preview(ema)
        name = str(self.workdir / "samples" / f"step_{self.step:07d}")
        write_png(f"{name}.png", picture, overwrite=True)
        write_mp4(f"{name}.mp4", moving, self.parts.source.fps, min_side=256, overwrite=True)
        self.log.image(self.step, "samples", picture)

    def _profile(self) -> None:
        """Starts or ends the profile that was asked for."""
        if self.profile is None:
            return
        first = self.profile.start
        if not self.tracing and self.step == first:
            jax.profiler.start_trace(str(self.workdir / "profile"))
            self.tracing = True
            self.stack.callback(self._end_profile)  # where the run ends before
        elif self.step == first + self.profile.steps:
            self._end_profile()

    def _end_profile(self) -> None:
        if self.tracing:
            self.tracing = False
            jax.block_until_ready(self.state)
            jax.profiler.stop_trace()
            _log.info(
                "profile from step %d to %d: %s",
                self.profile.start,
                self.step,
                self.workdir / "profile",
            )

    @contextmanager
    def _naming_the_last_checkpoint(self):
        """Says with an error that ends the run what is left of it."""
        try:
            yield
        except (OSError, FloatingPointError, ValueError) as error:
            saved = self.checkpoints.latest_step()
            left = f"The newest checkpoint is {self.workdir / 'checkpoints' / str(saved)}, of step {saved}."
            if isinstance(error, UnicodeError):
                raise
            raise type(error)(
                f"{error} {left if saved is not None else 'No checkpoint was saved yet.'}"
            ) from error


def _runnable(model: ModelConfig, mesh: Mesh) -> ModelConfig:
    """The model as this mesh can run it: cuDNN's attention takes no frames whose tokens are cut
    over devices."""
    cut = mesh.shape["context"] > 1 and model.attention == "auto"
    return dataclasses.replace(model, attention="xla") if cut else model


def _keys(seed: int, mesh: Mesh) -> tuple[Key, Key]:
    """The keys of the initial parameters and of all steps, on every device."""

    def keys():
        root = jax.random.key(seed)
        return jax.random.fold_in(root, 0), jax.random.fold_in(root, 1)

    return jax.jit(keys, out_shardings=replicated(mesh))()


def _told(mesh: Mesh) -> str:
    """The mesh in words."""
    axes = [f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1]
    return f"{mesh.size} devices ({' x '.join(axes)})" if axes else "1 device"

"""The training loop: the only place where data, tokenizer, model, checkpoints and logs meet.

A checkpoint of step n holds the state after n updates, before batch n is drawn. Its position in the
data is n itself, and every random draw follows from fold_in(key, n), so nothing random is saved. A
run that stops anywhere and is started again, on the same devices or others, sees the same data and
draws; on the same devices it ends with bitwise the same parameters.

With several processes all of them run this loop in step; process 0 alone writes logs and pictures.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from videomar_jax.checkpoints.manager import Checkpoints
from videomar_jax.io.log import log
from videomar_jax.models.flops import forward_flops
from videomar_jax.models.params import Params, abstract_model, count_params
from videomar_jax.parallel.mesh import describe_mesh, make_mesh
from videomar_jax.parallel.multihost import from_first_process, process_share, to_host
from videomar_jax.parallel.sharding import (
    batch_shardings,
    layout_rule,
    place,
    replicated,
    state_shardings,
)
from videomar_jax.training.batches import (
    TrainingInputs,
    clip_shape,
    curriculum_batches,
    training_batches,
)
from videomar_jax.training.draws import Batch
from videomar_jax.training.logging import Progress, RunLog
from videomar_jax.training.metrics import Meters, StageClock, StepReport
from videomar_jax.training.optimizer import make_optimizer
from videomar_jax.training.preemption import any_process_stopped, stop_signals
from videomar_jax.training.prior import fit_on_clips
from videomar_jax.training.profiling import Profile, Profiler
from videomar_jax.training.recipe import Recipe, check_mesh, check_stages
from videomar_jax.training.stages import truncated_frames
from videomar_jax.training.state import TrainState, init_state
from videomar_jax.training.step import TrainStep, make_train_step, token_shape
from videomar_jax.training.validation import Validation
from videomar_jax.types import Key, UInt8

Preview = Callable[[Params, Path], UInt8[np.ndarray, "rows columns 3"]]
"""Generates clips with the given (averaged) parameters and writes them to files whose path, without
a suffix, it is given; returns a picture of them, 0..255, for TensorBoard."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What `train` returns."""

    state: TrainState
    """The state after the last step."""
    finished: bool
    """False if the run was asked to stop before its end."""
    seconds: dict[str, float]
    """Wall time of each stage, over all starts of the run."""


def train(
    recipe: Recipe,
    inputs: TrainingInputs,
    workdir: Path,
    *,
    preview: Preview | None = None,
    initial: Callable[[], Params] | None = None,
    profile: Profile | None = None,
    before_save: Callable[[], None] | None = None,
) -> Outcome:
    """Runs the curriculum from where `workdir` left off to its end, or until SIGINT or SIGTERM.

    Writes checkpoints/, metrics.jsonl, tensorboard/ and samples/ under `workdir`. A second signal
    stops at once, and so does the first before there is anything to save.

    Args:
        preview: called on process 0 at the end of each stage and every `run.sample_every` steps.
            Its exceptions are logged as warnings; training continues.
        initial: returns the initial parameters; called only if the run has no checkpoint yet.
            None: random parameters.
        profile: the steps to record, into WORKDIR/profile.
        before_save: called on process 0 before each checkpoint, for what belongs to a checkpoint
            and must not be missing. Its exceptions end the run.

    Raises:
        UserError: recipe, inputs and devices do not fit together, or the checkpoint is of another
            model.
        FloatingPointError: a metric is not finite.
        OSError: data cannot be read, or checkpoints cannot be written.
        All of these carry a note that names the newest checkpoint.
    """
    curriculum, run = recipe.curriculum, recipe.run
    total = curriculum.total_steps
    check_stages(recipe, inputs.tokenizer)
    mesh = make_mesh(recipe.mesh)
    check_mesh(recipe, inputs.tokenizer.spatial_stride, dict(mesh.shape))
    share, shares = process_share(mesh)
    alone, is_writer = jax.process_count() == 1, jax.process_index() == 0

    with ExitStack() as stack:
        enter = stack.enter_context
        checkpoints = enter(
            Checkpoints(
                workdir / "checkpoints",
                keep_last=run.keep_checkpoints,
                keep_every=run.keep_every or None,
            )
        )
        resumed = _resume_or_start(recipe, mesh, checkpoints, initial, inputs)
        state, start = resumed.state, resumed.step
        update = _make_update(recipe, mesh, resumed.graph, resumed.optimizer, resumed.shardings)
        parameters = f"{count_params(state.params):,}"
        devices = describe_mesh(mesh)
        log.info("%s parameters, steps %d to %d, %s", parameters, start, total, devices)
        record = enter(
            RunLog(workdir, tensorboard=run.tensorboard, resume_step=start, is_writer=is_writer)
        )
        progress = enter(
            Progress(
                total, start_step=start, every_seconds=run.progress_seconds, is_writer=is_writer
            )
        )
        meters = Meters(record, progress, run.log_every, recipe.learning_rate())
        clock = StageClock(resumed.seconds)
        profiler = enter(Profiler(profile, workdir / "profile", start, total))
        # Until this start has done a step, there is nothing new to save. Several processes stop
        # after the same step, so they wait for it.
        stop = enter(stop_signals(at_once=alone))
        validation = _make_validation(recipe, inputs, resumed.graph, mesh)
        enter(_naming_the_last_checkpoint(checkpoints, workdir))
        batches = curriculum_batches(
            recipe.seed,
            curriculum,
            inputs,
            start,
            process_index=share,
            process_count=shares,
            lookahead=run.lookahead,
        )
        stack.callback(batches.close)
        stopping = False

        for step in range(start, total + 1):
            # `state` is that after `step` updates. The order is an invariant, and resuming relies
            # on it: validate → save → preview → next batch → step → log. A checkpoint is written
            # before a preview can fail, and before batch `step` is drawn, so it needs no position
            # in the data; its score is that of exactly these parameters.
            stage = curriculum.stage_at(step)
            clock.enter(stage.name if stage else None)
            if stage is None:
                meters.flush()
            # Several processes must agree where they stop: they read their common answer below.
            stopping = stopping or (alone and stop.asked)
            if step > start:
                boundary = step in curriculum.boundaries
                score = None
                if validation is not None and (boundary or step % run.validate_every == 0):
                    score = validation(state.ema)
                    record.write(step, {"validation_loss": score})
                    log.info("step %d: validation loss %.4f", step, score)
                if boundary or stopping or score is not None or step % run.checkpoint_every == 0:
                    # Flushing first: what is saved is finite, and its metrics are on disk.
                    stopping |= meters.flush()
                    position = {"step": step, "seconds": clock.seconds()}
                    if before_save is not None and is_writer:
                        before_save()
                    record.restore()
                    checkpoints.save(step, state.parts(), position, score)
                preview_due = run.sample_every and step % run.sample_every == 0
                if preview is not None and (boundary or preview_due):
                    _show_preview(preview, state.ema, step, workdir, record)
            if stopping or stage is None:
                break

            profiler.before_step(step, state)
            asked_at = time.monotonic()
            batch = next(batches)
            data_wait = time.monotonic() - asked_at
            batch = _place_batch(_truncate(batch, recipe, step), mesh, share, shares)
            state, metrics = update(state, batch, resumed.step_key)
            stop.at_once = False
            report = StepReport(
                step=step + 1,
                stage=stage.name,
                tokens=math.prod(token_shape(batch, recipe.model.patch_size)),
                flops=_flops(batch, recipe),
                data_wait=data_wait,
                metrics=metrics,
                stop=any_process_stopped(mesh, stop.asked),
            )
            # Reads the metrics of the step before: this one is still being computed.
            stopping |= meters.put(report)

        profiler.stop(step, state)
        checkpoints.wait()
        return Outcome(state=state, finished=step == total, seconds=clock.seconds())


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTime:
    """How long the steps of a stage take on this machine, reading their clips included."""

    compile_s: float
    """Seconds of the first step, which compiles."""
    step_s: float
    """Seconds of every other step, the median of some."""


def time_steps(
    recipe: Recipe, inputs: TrainingInputs, index: int, *, least: int = 4, seconds: float = 4.0
) -> StepTime:
    """Trains a throwaway state for a few steps of stage `index`; writes nothing.

    Args:
        least, seconds: the least number of timed steps, and how long they should take in all.
    """
    mesh = make_mesh(recipe.mesh)
    share, shares = process_share(mesh)
    init_key, step_key = _keys(recipe.seed, mesh)
    graph, _ = abstract_model(recipe.model)
    optimizer = make_optimizer(recipe.optimizer, recipe.learning_rate())
    abstract = jax.eval_shape(lambda: init_state(recipe.model, optimizer, init_key))
    shardings = state_shardings(abstract, mesh, recipe.mesh)
    state = init_state(recipe.model, optimizer, init_key, None, shardings)
    update = _make_update(recipe, mesh, graph, optimizer, shardings)
    batches = training_batches(
        recipe.seed,
        index,
        recipe.curriculum.stages[index],
        inputs,
        0,
        process_index=share,
        process_count=shares,
        lookahead=recipe.run.lookahead,
    )
    times: list[float] = []
    try:
        # The first step compiles, the second one still waits for the readers.
        while len(times) < least + 2 or sum(times[2:]) < seconds:
            started = time.monotonic()
            batch = next(batches, None)
            if batch is None:
                break
            batch = _place_batch(_truncate(batch, recipe, len(times)), mesh, share, shares)
            state, metrics = update(state, batch, step_key)
            jax.block_until_ready(metrics)
            times.append(time.monotonic() - started)
    finally:
        batches.close()
    later = times[2:] or times[-1:]
    return StepTime(compile_s=times[0], step_s=float(np.median(later)))


def abstract_update(
    recipe: Recipe, mesh: Mesh
) -> tuple[TrainStep, TrainState, jax.ShapeDtypeStruct]:
    """The update of a run, the shapes of its state, and that of its key, for a mesh whose devices
    need not be here: what it takes to compile the step."""
    graph, _ = abstract_model(recipe.model)
    optimizer = make_optimizer(recipe.optimizer, recipe.learning_rate())
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda: init_state(recipe.model, optimizer, jax.random.key(0)))
    shardings = state_shardings(state, mesh, recipe.mesh)
    update = _make_update(recipe, mesh, graph, optimizer, shardings)
    return update, _placed(state, shardings), _placed(key, replicated(mesh))


def _placed(shapes: Any, shardings: Any) -> Any:
    """Abstract arrays with where they lie."""

    def placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(placed, shapes, shardings)


# Where a start begins


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Start:
    """Everything that one start of a run begins with."""

    graph: nnx.GraphDef
    optimizer: optax.GradientTransformation
    shardings: TrainState
    state: TrainState
    step: int
    step_key: Key
    """The draws of step n come from fold_in(step_key, n)."""
    seconds: dict[str, float]
    """Wall time by stage of earlier starts."""


def _resume_or_start(
    recipe: Recipe,
    mesh: Mesh,
    checkpoints: Checkpoints,
    initial: Callable[[], Params] | None,
    inputs: TrainingInputs,
) -> _Start:
    """The state of the newest checkpoint, or a fresh one."""
    init_key, step_key = _keys(recipe.seed, mesh)
    graph, _ = abstract_model(recipe.model)
    optimizer = make_optimizer(recipe.optimizer, recipe.learning_rate())
    abstract = jax.eval_shape(lambda: init_state(recipe.model, optimizer, init_key))
    shardings = state_shardings(abstract, mesh, recipe.mesh)
    step = checkpoints.latest_step()
    if step is None:
        params = None if initial is None else place(initial(), shardings.params)
        prior = None
        if recipe.model.linear_prior and initial is None:
            fitted = from_first_process(lambda: fit_on_clips(recipe, inputs))
            prior = place(fitted, shardings.params["linear_prior"])
        state = init_state(recipe.model, optimizer, init_key, params, shardings, prior)
        position = {"step": 0, "seconds": {}}
    else:
        like = _placed(abstract.parts(), shardings.parts())
        parts, position = checkpoints.restore(step, like)
        log.info("continuing from the checkpoint of step %d", step)
        state = TrainState(place(np.int32(position["step"]), shardings.step), **parts)
    return _Start(
        graph=graph,
        optimizer=optimizer,
        shardings=shardings,
        state=state,
        step=step or 0,
        step_key=step_key,
        seconds=position["seconds"],
    )


def _make_update(
    recipe: Recipe,
    mesh: Mesh,
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
) -> TrainStep:
    """The compiled update of a run on its mesh."""
    return make_train_step(
        graph,
        optimizer,
        recipe.loss,
        recipe.optimizer,
        accumulate=recipe.run.accumulate,
        shardings=shardings,
        rule=layout_rule(mesh, recipe.mesh) if mesh.size > 1 else None,
    )


def _keys(seed: int, mesh: Mesh) -> tuple[Key, Key]:
    """The keys of the initial parameters and of all steps, on every device."""

    def keys():
        root = jax.random.key(seed)
        return jax.random.fold_in(root, 0), jax.random.fold_in(root, 1)

    return jax.jit(keys, out_shardings=replicated(mesh))()


def _make_validation(
    recipe: Recipe, inputs: TrainingInputs, graph: nnx.GraphDef, mesh: Mesh
) -> Validation | None:
    """The validation that the recipe asks for, on clips of the last stage."""
    if not recipe.run.validate_every or inputs.held_out is None:
        return None
    last = recipe.curriculum.stages[-1]
    return Validation(
        graph,
        recipe.loss,
        inputs,
        mesh,
        shape=clip_shape(last),
        clips=recipe.run.validation_clips,
        batch_size=last.batch_size,
    )


# Parts of a step


def _truncate(batch: Batch, recipe: Recipe, step: int) -> Batch:
    """With `loss.truncate` without the frames after the supervised one, which the loss ignores."""
    if not recipe.loss.truncate:
        return batch
    frames = truncated_frames(recipe.seed, step, batch.latents.shape[1])
    return dataclasses.replace(batch, latents=batch.latents[:, :frames])


def _place_batch(batch: Batch, mesh: Mesh, share: int, shares: int) -> Batch:
    """This process's share as its part of the global batch."""
    shardings = batch_shardings(batch, mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, shardings)
    clips = len(batch.latents) * shares
    return place(batch, shardings, first_row=share * clips // shares, rows=clips)


def _flops(batch: Batch, recipe: Recipe) -> float:
    """Of forward and backward pass, without what rematerialisation computes again."""
    clips, frames, tokens = token_shape(batch, recipe.model.patch_size)
    forward = forward_flops(
        recipe.model,
        supervise=recipe.loss.supervise,
        draws_per_token=recipe.loss.draws_per_token,
        batch=clips,
        frames=frames,
        tokens=tokens,
    )
    return 3 * forward.total()


def _show_preview(preview: Preview, ema: Params, step: int, workdir: Path, record: RunLog) -> None:
    """Calls the preview on process 0; its failure costs the pictures only."""
    ema = to_host(ema)
    if jax.process_index() != 0:
        return
    try:
        picture = preview(ema, workdir / "samples" / f"step_{step:07d}")
        record.image(step, "samples", picture)
    except (ValueError, OSError, jax.errors.JaxRuntimeError) as error:
        log.warning("step %d: no preview was made: %s", step, error)


@contextmanager
def _naming_the_last_checkpoint(checkpoints: Checkpoints, workdir: Path) -> Iterator[None]:
    """Adds a note to an exception that ends the run: from where it can be continued."""
    try:
        yield
    except (OSError, FloatingPointError, ValueError) as error:
        # A note leaves the exception what it is: its type, its errno, its cause.
        step = checkpoints.latest_step()
        if step is None:
            error.add_note("No checkpoint was saved yet.")
        else:
            folder = workdir / "checkpoints" / str(step)
            error.add_note(f"The newest checkpoint is {folder}, of step {step}.")
        raise

"""What a run would take, told before anything is allocated (--dry_run).

Per device, in bytes (N parameters as they are cut; b clips, n tokens of them that one device
computes at a time):

    state         parameters and average in float32, and the optimizer's moments: 16 N with AdamW
    gradients     4 N, and one layer gathered whole where fsdp cuts it
    activations   what the backward pass keeps of each layer, by remat policy: the float32 stream (4
        D a token), with
                  "dots" also the outputs of matrix products (12 D values), with "none" everything
                  (about 34 D), and one layer at work; the head keeps about 10 values of its width a
                  row and block

State and gradients are exact. Activations are an estimate, within a factor of two of what XLA then
allocates.
"""

import dataclasses
import logging
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from videomar_jax.data.loader import batches
from videomar_jax.data.sources import ClipSource, Subset
from videomar_jax.experiment.config import Experiment
from videomar_jax.models.flops import train_step_flops
from videomar_jax.models.params import count_params
from videomar_jax.parallel.mesh import abstract_mesh
from videomar_jax.parallel.sharding import bytes_per_device, param_shardings, state_shardings
from videomar_jax.training.batches import clip_shape, stage_clips
from videomar_jax.training.optimizer import make_optimizer
from videomar_jax.training.recipe import Recipe, check_mesh
from videomar_jax.training.stages import BatchShape, Stage
from videomar_jax.training.state import init_state
from videomar_jax.types import Int

_log = logging.getLogger(__name__)
_GIB = 2**30
KEPT = {"full": 0, "dots": 12, "none": 34}
"""Values of the model's width that the backward pass keeps of a layer and token beside the stream,
by remat policy."""
AT_WORK = 34
HEAD_KEPT = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One step on batches of one shape."""

    stage: str
    shape: BatchShape
    latents: tuple[int, int, int]  # (T, H, W) in tokens
    tokens: int  # of the batch
    flops: float  # of the step, over all devices
    activations: int  # bytes on one device


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What a run takes of each device."""

    parameters: int
    mesh: dict[str, int]
    state: int
    gradients: int
    steps: tuple[StepPlan, ...]

    def device_bytes(self) -> int:
        """Of the largest step."""
        return self.state + self.gradients + max(step.activations for step in self.steps)

    def __str__(self) -> str:
        axes = " x ".join(f"{axis} {size}" for axis, size in self.mesh.items())
        lines = [
            f"parameters {self.parameters:,}",
            f"mesh {axes}",
            f"per device: state {self.state / _GIB:.2f} GiB, gradients {self.gradients / _GIB:.2f} GiB",
        ]
        for step in self.steps:
            frames, rows, columns = step.latents
            lines.append(
                f"{step.stage}: {step.shape.batch_size} clips of {step.shape.num_frames} x {step.shape.height} x "
                f"{step.shape.width} = {frames} x {rows} x {columns} tokens, {step.tokens:,} in a batch, "
                f"{step.flops / 1e12:.3g} TFLOP a step, activations {step.activations / _GIB:.2f} GiB"
            )
        return "\n".join(
            [*lines, f"predicted peak per device {self.device_bytes() / _GIB:.2f} GiB"]
        )


def plan(experiment: Experiment, devices: int) -> RunPlan:
    """The plan of a run on so many devices; they need not be there.

    Raises:
        ValueError: a batch cannot be spread evenly over the mesh, or the tokenizer is not known
            yet.
    """
    recipe = experiment.recipe
    strides = experiment.strides()
    if strides is None:
        way_out = (
            f"{experiment.data.path} must be a folder of prepared clips that is complete"
            if experiment.data.kind == "shards"
            else "name its release in config.tokenizer.path"
        )
        raise ValueError(f"The tokenizer's strides are not known yet: {way_out}.")
    mesh = abstract_mesh(recipe.mesh, devices)
    sizes = dict(mesh.shape)
    check_mesh(recipe, strides[1], sizes)
    optimizer = make_optimizer(recipe.optimizer, recipe.learning_rate())
    state = jax.eval_shape(lambda: init_state(recipe.model, optimizer, jax.random.key(0)))
    params = param_shardings(state.params, mesh, recipe.mesh)
    layer = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state.params["transformer"]["blocks"]
    )
    whole_layer = (
        sum(leaf.size * 4 for leaf in jax.tree.leaves(layer)) // sizes["tensor"]
        if sizes["fsdp"] > 1
        else 0
    )
    return RunPlan(
        parameters=count_params(state.params),
        mesh=sizes,
        state=bytes_per_device(state, state_shardings(state, mesh, recipe.mesh)),
        gradients=bytes_per_device(state.params, params) + 2 * whole_layer,
        steps=tuple(_steps(recipe, strides, sizes)),
    )


def _steps(recipe: Recipe, strides: tuple[int, int], sizes: dict[str, int]) -> Iterator[StepPlan]:
    model, loss = recipe.model, recipe.loss
    for stage in recipe.curriculum.stages:
        for shape in stage.shapes:
            side = strides[1] * model.patch_size
            grid = (
                1 + (shape.num_frames - 1) // strides[0],
                shape.height // side,
                shape.width // side,
            )
            frames, tokens = grid[0], grid[1] * grid[2]
            flops = train_step_flops(
                model,
                supervise=loss.supervise,
                truncate=loss.truncate,
                draws_per_token=loss.draws_per_token,
                batch=shape.batch_size,
                frames=frames,
                tokens=tokens,
            )
            yield StepPlan(
                stage=stage.name,
                shape=shape,
                latents=grid,
                tokens=shape.batch_size * frames * tokens,
                flops=flops,
                activations=activation_bytes(recipe, shape.batch_size, frames, tokens, sizes),
            )


def activation_bytes(
    recipe: Recipe, batch: int, frames: int, tokens: int, sizes: dict[str, int]
) -> int:
    """What the activations of one step take on one device; see the module."""
    model, loss = recipe.model, recipe.loss
    clips = batch // (sizes["data"] * sizes["fsdp"] * recipe.run.accumulate)
    supervised = 1 if loss.supervise == "one_frame" else max(frames - 1, 1)
    passes = frames if loss.supervise == "one_frame" else frames - 1 + supervised
    own = clips * tokens // sizes["context"]
    width, value = model.width, jnp.dtype(model.dtype).itemsize
    kept = (4 + value * KEPT[model.remat] / sizes["tensor"]) * width * model.depth
    working = value * AT_WORK * width
    head_rows = own * supervised * loss.draws_per_token
    head = head_rows * model.head_width * model.head_depth * HEAD_KEPT * value
    return int(own * passes * (kept + working) + head)


def dry_run(experiment: Experiment, devices: int | None = None) -> RunPlan:
    """Tells the plan for so many devices (None: those here), then reads one device's share of a
    batch of every stage.

    Nothing is trained or written. Errors as `plan`, and those of the data.
    """
    told = plan(experiment, devices or jax.device_count())
    for line in str(told).splitlines():
        _log.info("%s", line)
    source = experiment.source("train")
    _log.info("%d training clips at %g frames a second", len(source), source.fps)
    for stage in experiment.recipe.curriculum.stages:
        shape, own = _read_of(stage, source)
        clips = shape.batch_size // (told.mesh["data"] * told.mesh["fsdp"])
        start = time.monotonic()
        stream = batches(
            Subset(source, own),
            shape=clip_shape(shape),
            batch_size=clips,
            seed=0,
            num_threads=experiment.data.threads,
        )
        try:
            next(stream)
        finally:
            stream.close()
        rate = clips / max(time.monotonic() - start, 1e-9)
        size = f"{shape.num_frames} x {shape.height} x {shape.width}"
        _log.info(
            "%s: a batch of one device (%d clips) read, %s, which %d of the clips are for; %.3g clips a second",
            stage.name,
            clips,
            size,
            len(own),
            rate,
        )
    return told


def _read_of(stage: Stage, source: ClipSource) -> tuple[BatchShape, Int[np.ndarray, "clips"]]:
    """The stage's main shape, or the largest one where no clip is for that; and the indices of the
    clips that are."""
    found = {
        shape: own
        for shape, own in zip(stage.shapes, stage_clips(stage, source), strict=True)
        if len(own)
    }
    shape = max(found, key=lambda shape: shape.num_frames * shape.height * shape.width)
    shape = stage.main if stage.main in found else shape
    return shape, found[shape]

"""What a run needs, worked out before anything is allocated (--dry_run).

Per device, in bytes, for N parameters as they are cut over devices, and for b clips of n tokens
that one device computes at a time:

    state         parameters and average in float32, and the optimizer's moments: 16 N with AdamW
    gradients     4 N, and one layer gathered whole where fsdp cuts it
    activations   what the backward pass keeps of each layer, by remat policy: the float32 stream
                  (4 D a token), with "dots" also the outputs of matrix products (12 D values), with
                  "none" everything (about 34 D), and one layer at work; the head keeps about 10
                  values of its width a row and block

State and gradients are exact. Activations are an estimate, within a factor of two of what XLA then
allocates.
"""

import dataclasses
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from videomar_jax.checks import UserError
from videomar_jax.data.loader import batches
from videomar_jax.data.sources import ClipSource, Subset
from videomar_jax.experiment.build import prepared_with
from videomar_jax.experiment.config import Experiment
from videomar_jax.io.log import log
from videomar_jax.models.flops import train_step_flops
from videomar_jax.models.params import count_params
from videomar_jax.parallel.mesh import abstract_mesh
from videomar_jax.parallel.sharding import bytes_per_device, param_shardings, state_shardings
from videomar_jax.training.batches import clip_shape, stage_clips
from videomar_jax.training.optimizer import make_optimizer
from videomar_jax.training.recipe import Recipe, check_mesh
from videomar_jax.training.stages import BatchShape, Stage
from videomar_jax.training.state import TrainState, init_state
from videomar_jax.types import Int

_GIB = 2**30
VALUES_KEPT = {"full": 0, "dots": 12, "none": 34}
"""Values of the model's width that the backward pass keeps of a layer and token beside the stream,
by remat policy; counted from the layer's code, like the two below."""
VALUES_AT_WORK = 34
"""Values of the model's width for each token of the layer that is being computed."""
HEAD_VALUES_KEPT = 10
"""Values of the head's width that are kept for each row and block of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One training step on batches of one shape.

    latents: (T, H, W) in tokens.
    tokens: of the whole batch.
    flops: of the step, over all devices.
    activations: bytes on one device.
    """

    stage: str
    shape: BatchShape
    latents: tuple[int, int, int]
    tokens: int
    flops: float
    activations: int

    def __str__(self) -> str:
        frames, rows, columns = self.latents
        shape = self.shape
        return (
            f"{self.stage}: {shape.batch_size} clips of {_size(shape)} = {frames} x {rows} x "
            f"{columns} tokens, {self.tokens:,} in a batch, {self.flops / 1e12:.3g} TFLOP a step, "
            f"activations {self.activations / _GIB:.2f} GiB"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What a run needs of each device.

    parameters: of the model, in all.
    mesh: devices along each axis.
    state, gradients: bytes on one device.
    """

    parameters: int
    mesh: dict[str, int]
    state: int
    gradients: int
    steps: tuple[StepPlan, ...]

    def device_bytes(self) -> int:
        """Peak memory of one device, at the largest step."""
        return self.state + self.gradients + max(step.activations for step in self.steps)

    def __str__(self) -> str:
        axes = " x ".join(f"{axis} {size}" for axis, size in self.mesh.items())
        state, gradients = self.state / _GIB, self.gradients / _GIB
        lines = [
            f"parameters {self.parameters:,}",
            f"mesh {axes}",
            f"per device: state {state:.2f} GiB, gradients {gradients:.2f} GiB",
            *map(str, self.steps),
            f"predicted peak per device {self.device_bytes() / _GIB:.2f} GiB",
        ]
        return "\n".join(lines)


def plan(experiment: Experiment, devices: int) -> RunPlan:
    """The plan of a run on this number of devices, which need not be there.

    Raises:
        UserError: a batch cannot be spread evenly over the mesh, or the tokenizer is not known yet.
    """
    recipe = experiment.recipe
    strides = _known_strides(experiment)
    mesh = abstract_mesh(recipe.mesh, devices)
    sizes = dict(mesh.shape)
    check_mesh(recipe, strides[1], sizes)
    optimizer = make_optimizer(recipe.optimizer, recipe.learning_rate())
    state = jax.eval_shape(lambda: init_state(recipe.model, optimizer, jax.random.key(0)))
    gradients = bytes_per_device(state.params, param_shardings(state.params, mesh, recipe.mesh))
    if sizes["fsdp"] > 1:
        gradients += 2 * (_layer_bytes(state) // sizes["tensor"])
    return RunPlan(
        parameters=count_params(state.params),
        mesh=sizes,
        state=bytes_per_device(state, state_shardings(state, mesh, recipe.mesh)),
        gradients=gradients,
        steps=tuple(_steps(recipe, strides, sizes)),
    )


def dry_run(experiment: Experiment, devices: int | None = None) -> RunPlan:
    """Logs the plan, then reads one device's share of a batch of every stage.

    Nothing is trained or written.

    Args:
        devices: how many to plan for; None for those that are here.
    Raises:
        UserError: as `plan`, and what is wrong with the data.
    """
    planned = plan(experiment, devices or jax.device_count())
    for line in str(planned).splitlines():
        log.info("%s", line)
    source = experiment.training_source()
    log.info("%d training clips at %g frames a second", len(source), source.fps)
    for stage in experiment.recipe.curriculum.stages:
        shape, fitting = _shape_to_read(stage, source)
        count = shape.batch_size // (planned.mesh["data"] * planned.mesh["fsdp"])
        start = time.monotonic()
        stream = batches(
            Subset(source, fitting),
            shape=clip_shape(shape),
            batch_size=count,
            seed=0,
            num_threads=experiment.data.threads,
        )
        try:
            next(stream)
        finally:
            stream.close()
        rate = count / max(time.monotonic() - start, 1e-9)
        log.info(
            "%s: a batch of one device (%d clips) read, %s, which %d of the clips are for; %.3g "
            "clips a second",
            stage.name,
            count,
            _size(shape),
            len(fitting),
            rate,
        )
    return planned


def activation_bytes(
    recipe: Recipe, batch: int, frames: int, tokens: int, sizes: dict[str, int]
) -> int:
    """Bytes that the activations of one step take on one device; see the module's docstring.

    Args:
        batch: clips on all devices together.
        frames, tokens: latent frames of a clip, and tokens of a frame.
        sizes: devices along each axis of the mesh.
    """
    model, loss = recipe.model, recipe.loss
    clips = batch // (sizes["data"] * sizes["fsdp"] * recipe.run.accumulate)
    if loss.supervise == "one_frame":
        supervised, passes = 1, frames
    else:
        supervised = max(frames - 1, 1)
        passes = frames - 1 + supervised
    device_tokens = clips * tokens // sizes["context"]
    width, value = model.width, jnp.dtype(model.dtype).itemsize
    values_kept = VALUES_KEPT[model.remat]
    kept = (4 + value * values_kept / sizes["tensor"]) * width * model.depth
    working = value * VALUES_AT_WORK * width
    head_rows = device_tokens * supervised * loss.draws_per_token
    head = head_rows * model.head_width * model.head_depth * HEAD_VALUES_KEPT * value
    return int(device_tokens * passes * (kept + working) + head)


def _known_strides(experiment: Experiment) -> tuple[int, int]:
    strides = experiment.strides()
    if strides is not None:
        return strides
    if prepared_with(experiment.data) is not None:
        way_out = f"{experiment.data.path} must be a folder of prepared clips that is complete"
    else:
        way_out = "name its release in config.tokenizer.path"
    raise UserError(f"The tokenizer's strides are not known yet: {way_out}.")


def _layer_bytes(state: TrainState) -> int:
    """The parameters of one layer, in float32; layers are stacked along the first axis."""
    stacked = jax.tree.leaves(state.params["transformer"]["blocks"])
    return sum(4 * leaf.size // leaf.shape[0] for leaf in stacked)


def _steps(recipe: Recipe, strides: tuple[int, int], sizes: dict[str, int]) -> Iterator[StepPlan]:
    model, loss = recipe.model, recipe.loss
    token_side = strides[1] * model.patch_size
    for stage in recipe.curriculum.stages:
        for shape in stage.shapes:
            frames = 1 + (shape.num_frames - 1) // strides[0]
            rows, columns = shape.height // token_side, shape.width // token_side
            tokens = rows * columns
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
                latents=(frames, rows, columns),
                tokens=shape.batch_size * frames * tokens,
                flops=flops,
                activations=activation_bytes(recipe, shape.batch_size, frames, tokens, sizes),
            )


def _shape_to_read(stage: Stage, source: ClipSource) -> tuple[BatchShape, Int[np.ndarray, "clips"]]:
    """The stage's main shape, or the largest one if no clip is for that; and the indices of the
    clips that are for it."""
    fitting = {}
    for shape, clips in zip(stage.shapes, stage_clips(stage, source), strict=True):
        if len(clips):
            fitting[shape] = clips
    if stage.main in fitting:
        return stage.main, fitting[stage.main]
    largest = max(fitting, key=lambda shape: shape.num_frames * shape.height * shape.width)
    return largest, fitting[largest]


def _size(shape: BatchShape) -> str:
    return f"{shape.num_frames} x {shape.height} x {shape.width}"

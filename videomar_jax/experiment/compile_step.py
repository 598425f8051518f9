"""The training step compiled for a machine that need not be here (--dry_run --compile=TARGET).

What the compiler says is exact: whether the step compiles and fits, where it communicates, whether
the state is updated in place. Times are lower bounds by the makers' figures, not predictions.
"""

import dataclasses
import re
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from videomar_jax.accelerators import hlo
from videomar_jax.accelerators.chips import Chip
from videomar_jax.accelerators.cost import Cost, Temporary, cost_of, largest_temporaries
from videomar_jax.accelerators.targets import Target, chip_of_devices
from videomar_jax.checks import UserError
from videomar_jax.experiment.config import Experiment
from videomar_jax.experiment.dry_run import StepPlan, plan
from videomar_jax.io.log import log
from videomar_jax.models.config import ModelConfig
from videomar_jax.parallel.mesh import make_mesh
from videomar_jax.parallel.sharding import batch_shardings
from videomar_jax.platforms import compile_for
from videomar_jax.training.draws import Batch
from videomar_jax.training.loop import abstract_update

_GIB = 2**30
_PACKAGE = "videomar_jax"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device while the program runs."""

    arguments: int
    outputs: int
    """What is returned beside the arguments that are updated in place."""
    in_place: int
    """Of the arguments, what the outputs take over."""
    temporaries: int
    code: int

    @property
    def peak(self) -> int:
        """All of it: an upper bound of what is in use at one time."""
        return self.arguments + self.outputs + self.temporaries + self.code


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledStep:
    """What the compiler says of one training step.

    refusal: why it does not compile; None: it does, and the rest is known.
    """

    plan: StepPlan
    devices: str
    chip: Chip
    num_devices: int
    seconds: float
    refusal: str | None = None
    memory: Memory | None = None
    cost: Cost = dataclasses.field(default_factory=Cost)
    temporaries: tuple[Temporary, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether it compiles, and each device has the memory."""
        return self.memory is not None and self.memory.peak <= self.chip.memory

    def lines(self) -> Iterator[str]:
        """The report."""
        start = f"compiled for {self.devices} in {self.seconds:.0f} s"
        if self.memory is None:
            yield f"{start}: refused, it does not fit: {self.refusal}"
            return
        memory, cost, chip = self.memory, self.cost, self.chip
        yield (
            f"{start}: arguments {_bytes(memory.arguments)} ({_bytes(memory.in_place)} of them "
            f"updated in place), temporaries {_bytes(memory.temporaries)}, peak "
            f"{_bytes(memory.peak)} of {_bytes(chip.memory)}: "
            f"{'it fits' if self.fits else 'it does not fit'}"
        )
        times = cost.flops / (self.plan.flops / self.num_devices)
        yield (
            f"on each device {cost.flops / 1e12:.3g} TFLOP in products ({times:.2f} x the plan's), "
            f"{_bytes(cost.read_written)} read and written"
        )
        yield (
            f"at least {1e3 * cost.seconds:.3g} ms, of which products "
            f"{1e3 * cost.flops / chip.flops:.3g} ms; without collectives"
        )
        for kind, count in sorted(self.cost.collectives.items()):
            yield f"{kind}: {count} a step, {_bytes(self.cost.moved[kind])}"
        for temporary in self.temporaries:
            times = f" in {temporary.count} places" if temporary.count > 1 else ""
            yield f"{_bytes(temporary.size)} {temporary.shape}{times}: {temporary.source}"
        for kernel, count in sorted(self.cost.not_counted.items()):
            yield f"{kernel}: {count} a step, whose FLOPs are not counted"
        if self.cost.endless:
            yield f"{self.cost.endless} loops of unknown length, counted as one round"


def compile_dry_run(experiment: Experiment, target: Target) -> list[CompiledStep]:
    """Logs the plan of a run on the target, then compiles the step for every shape of batch and
    logs what the compiler says. No clip is read.

    Raises:
        UserError: the compiler is not installed, as `plan`, or some step does not fit.
    """
    devices = target.devices()
    planned = plan(experiment, len(devices))
    for line in str(planned).splitlines():
        log.info("%s", line)
    mesh, chip = make_mesh(experiment.recipe.mesh, devices), chip_of_devices(devices)
    results = []
    for step in _different(planned.steps):
        result = compile_step(experiment, step, mesh, target, chip)
        first, *others = result.lines()
        log.info("%s, %s: %s", step.stage, _size(step), first)
        for line in others:
            log.info("    %s", line)
        results.append(result)
    misfits = [f"{each.plan.stage}, {_size(each.plan)}" for each in results if not each.fits]
    if misfits:
        raise UserError(
            f"The training step does not fit {target.name}: {'; '.join(misfits)}. Raise "
            "run.accumulate or mesh.fsdp, set model.remat=full, or take more devices."
        )
    return results


def compile_step(
    experiment: Experiment, step: StepPlan, mesh: Mesh, target: Target, chip: Chip
) -> CompiledStep:
    """Compiles the training step for batches of one shape.

    Args:
        mesh: over devices of the target.
        chip: what one of them can do.
    """
    recipe = experiment.recipe
    update, state, key = abstract_update(recipe, mesh)
    batch = _abstract_batch(recipe.model, step, mesh)
    devices = list(mesh.devices.flat)
    start = time.monotonic()
    refusal, memory, cost, temporaries = None, None, Cost(), ()
    with compile_for(target.platform):
        lowered = update.trace(state, batch, key).lower(lowering_platforms=(target.compiler,))
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refusal = _first_lines(str(error))
    else:
        program = hlo.parse(compiled.as_text())
        memory = _memory(compiled.memory_analysis())
        cost = cost_of(program, chip)
        temporaries = tuple(largest_temporaries(program, _PACKAGE))
    return CompiledStep(
        plan=step,
        devices=f"{len(devices)} x {devices[0].device_kind}",
        chip=chip,
        num_devices=len(devices),
        seconds=time.monotonic() - start,
        refusal=refusal,
        memory=memory,
        cost=cost,
        temporaries=temporaries,
    )


def _abstract_batch(model: ModelConfig, step: StepPlan, mesh: Mesh) -> Batch:
    """Batches as `training.batches` makes them, as shapes on the mesh."""
    clips = step.shape.batch_size
    frames, rows, columns = step.latents
    patch = model.patch_size
    latents = (clips, frames, rows * patch, columns * patch, model.latent_channels)
    shapes = Batch(
        jax.ShapeDtypeStruct(latents, jnp.float32),
        jax.ShapeDtypeStruct((clips, model.text_tokens, model.text_width), jnp.float32),
        jax.ShapeDtypeStruct((clips, model.text_tokens), jnp.bool_),
    )

    def placed(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(placed, shapes, batch_shardings(shapes, mesh))


def _memory(stats) -> Memory:
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        in_place=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )


def _different(steps: tuple[StepPlan, ...]) -> list[StepPlan]:
    """One step of each shape of batch, the first that has it."""
    first: dict[tuple, StepPlan] = {}
    for step in steps:
        first.setdefault((step.latents, step.shape.batch_size), step)
    return list(first.values())


def _first_lines(text: str) -> str:
    """What the compiler says before it lists every array, in one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"\s+", " ", " ".join(lines[:2]))[:400]


def _size(step: StepPlan) -> str:
    shape = step.shape
    return f"{shape.batch_size} clips of {shape.num_frames} x {shape.height} x {shape.width}"


def _bytes(size: int | float) -> str:
    """A size in the unit that suits it."""
    if size < _GIB:
        return f"{size / 2**20:.1f} MiB"
    return f"{size / _GIB:.2f} GiB"

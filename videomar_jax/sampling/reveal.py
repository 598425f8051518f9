"""One frame, many tokens at a time: the reveal steps and what makes them fast.

    for each reveal step:                               one scan
        z = model.frame(tokens, mask, cache)            with text, and without for guidance
        draw the tokens that this step reveals from the diffusion head given z
        (`sampling.head`)

All shapes are static. A step works on as many tokens as the next of a few sizes allows
(`FrameProgram.sizes`), the surplus is dropped. Which size, how many head steps and whether the
branch without text is run are data, so that other values run the same program. Noise is indexed by
token position, each position being drawn once.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from videomar_jax.diffusion.solver import SolverPlan, evaluations
from videomar_jax.models.attention import KVCache, TextKV
from videomar_jax.models.config import ModelConfig
from videomar_jax.models.masking import ranks
from videomar_jax.models.rope import PositionScale
from videomar_jax.models.transformer import take_rows
from videomar_jax.models.videomar import Context, VideoMAR
from videomar_jax.sampling.draws import FrameDraws
from videomar_jax.sampling.fused_head import FastHead, chunk_size, draw_tokens, draw_tokens_fast
from videomar_jax.sampling.schedules import RevealPlan
from videomar_jax.types import Array, Bool, Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedOptions:
    """What makes generation faster without changing its result (up to rounding); each costs some
    compilation."""

    fast_head: bool = True  # modulations of many head steps in one product
    sizes: int = 3  # sizes that the number of revealed tokens is rounded up to; 1: the largest
    prefixes: int = (
        4  # lengths of the cache that attention is compiled for; 1: its full length with a mask
    )
    last_rows: bool = True  # the last layer leaves out tokens that are not drawn now
    apart: bool = (
        False  # layers cut out of their stack once a frame; for CPU, where each use would copy them
    )

    @classmethod
    def plain(cls) -> "SpeedOptions":
        """All off: the method as it is told."""
        return cls(fast_head=False, sizes=1, prefixes=1, last_rows=False, apart=False)

    @classmethod
    def for_work(cls, model: ModelConfig, tokens: int, steps: int, seen: int) -> "SpeedOptions":
        """What pays for frames of so many tokens and reveal steps that see up to `seen` others:
        little where compiling takes longer than work, and one program for all frames where
        attention to others is the smaller part of it."""
        products = 28 * model.width**2 * tokens
        prefixes = 1 if 4 * model.width * tokens**2 * seen < products / 2 else 4
        if products * model.depth * steps < 5e9:
            return cls(sizes=1, prefixes=1, last_rows=False)
        return cls(prefixes=prefixes, apart=jax.default_backend() == "cpu" and model.depth <= 12)


class FrameSettings(NamedTuple):
    """The values of one generated frame; none of them changes the compiled program."""

    number: Array  # int, the frame's place in the video
    temperature: Array
    bound: Array  # tokens are clipped to [-bound, bound]


class FrameTrace(NamedTuple):
    """What happened at each reveal step, for comparison with recorded runs."""

    z: Float[Array, "I G S D"]  # G = 2B with guidance, B without
    tokens: Float[Array, "I B S P"]
    hidden: Bool[Array, "I B S"]  # before the step


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameProgram:
    """What the compiled program of a frame depends on, beside the shapes of its arguments."""

    grid: tuple[int, int]  # (H, W)
    sizes: tuple[
        int, ...
    ]  # ascending, that the tokens of a reveal step are rounded up to; the last is K
    branches: tuple[bool, ...] = (
        True,
    )  # whether steps are guided; two entries: some are, some are not
    token_dtype: str = "float32"  # drawn tokens are rounded to it
    trace: bool = False  # also return what happened at every reveal step
    levers: SpeedOptions = SpeedOptions()


class Seen(NamedTuple):
    """The finished frames that a frame sees."""

    cache: KVCache
    places: Bool[Array, "L"] | str  # a mask, or "all"


def generate_frame(
    model: VideoMAR,
    head: FastHead,
    context: Context,
    seen: Seen,
    settings: FrameSettings,
    draws: FrameDraws,
    plan: RevealPlan,
    head_plan: SolverPlan,
    program: FrameProgram,
    scale: PositionScale | None = None,
) -> tuple[Float[Array, "B S P"], FrameTrace | None]:
    """Draws all tokens of one frame. `context` and `seen` have 2B rows (text, then null context)
    with guidance.

    Args:
        plan: what each step reveals and how.
        head_plan: the diffusion steps of the head.
    """
    batch, num_tokens, _ = draws.noise.shape
    most = program.sizes[-1]
    place = ranks(draws.order)
    padded = jnp.pad(draws.order, ((0, 0), (0, most)), constant_values=num_tokens)
    row = jnp.arange(batch)[:, None]
    backbones = [
        _backbone(model, context, seen, settings, program, scale, batch, way)
        for way in program.branches
    ]
    heads = [
        _drawing(model, head, head_plan, settings, program, batch, size, way)
        for way in program.branches
        for size in program.sizes
    ]

    def reveal(tokens, step: RevealPlan):
        hidden = place >= step.start
        chosen = jax.lax.dynamic_slice_in_dim(padded, step.start, most, axis=1)
        chosen = jnp.where(
            jnp.arange(most) < step.count, chosen, num_tokens
        )  # surplus: past the end
        way = jnp.where(step.guided == program.branches[0], 0, 1)
        z, z_chosen = _switch(way, len(program.branches), backbones, tokens, hidden, chosen)
        noise = jnp.take_along_axis(draws.noise, chosen[..., None], axis=1, mode="clip")
        injected = jnp.take_along_axis(
            draws.step_noise, chosen[None, ..., None], axis=2, mode="clip"
        )
        size = jnp.sum(step.count > jnp.asarray(program.sizes[:-1], jnp.int32))
        new = _switch(
            way * len(program.sizes) + size, len(heads), heads, z_chosen, noise, injected, step
        )
        new = (
            jnp.clip(new, -settings.bound, settings.bound)
            .astype(program.token_dtype)
            .astype(new.dtype)
        )
        tokens = tokens.at[row, chosen].set(new, mode="drop")
        return tokens, FrameTrace(z, tokens, hidden) if program.trace else None

    return jax.lax.scan(reveal, jnp.zeros_like(draws.noise), plan)


def _switch(index: Array, count: int, branches: list, *operands):
    return branches[0](*operands) if count == 1 else jax.lax.switch(index, branches, *operands)


def _backbone(model, context, seen, settings, program, scale, batch, guided):
    """(tokens, hidden, chosen) → z of all tokens (where traced), z of the chosen ones; rows without
    text in any case if another step has them, then not computed but copied."""
    levers, doubled = program.levers, 2 if guided else 1
    if not guided:
        context, seen = _first_rows(context, batch), seen._replace(cache=_rows(seen.cache, batch))
    layers = model.transformer.apart(context.tokens, seen.cache) if levers.apart else None
    some = levers.last_rows and not program.trace

    def z_of(tokens, hidden, chosen):
        tokens, hidden, chosen = (
            jnp.tile(x, (doubled, *[1] * (x.ndim - 1))) for x in (tokens, hidden, chosen)
        )
        z = model.frame(
            tokens,
            hidden,
            settings.number,
            context,
            seen.cache,
            program.grid,
            scale,
            seen=seen.places,
            rows=chosen if some else None,
            layers=layers,
        )
        z_chosen = z if some else take_rows(z[:, None], chosen)[:, 0]
        if True in program.branches and not guided:
            z, z_chosen = (jnp.tile(x, (2, 1, 1)) for x in (z, z_chosen))
        return z if program.trace else None, z_chosen

    return z_of


def _drawing(model, head, head_plan, settings, program, batch, size, guided):
    """(z, noise, injected noise of K tokens, step) → K new tokens, of which `size` are drawn."""
    process, doubled = model.process, 2 if guided else 1
    varying = len(head_plan.count) > 1
    chunk = chunk_size(evaluations(head_plan), doubled * batch * size, varying)

    def draw(z, noise, injected, step):
        given = (z[: doubled * batch, :size], noise[:, :size], injected[:, :, :size])
        values = (step.guidance, settings.temperature)
        if program.levers.fast_head:
            new = draw_tokens_fast(head, process, *given, head_plan, step.head, *values, chunk)
        else:
            row = jax.tree.map(lambda table: table[step.head], head_plan.steps)
            new = draw_tokens(model, *given, row, *values)
        return jnp.pad(new, ((0, 0), (0, noise.shape[1] - size), (0, 0)))

    return draw


def _rows(stack, batch: int):
    """The first rows of arrays with layers in front."""
    return jax.tree.map(lambda x: x[:, :batch], stack)


def _first_rows(context: Context, batch: int) -> Context:
    """The context of the rows with text."""
    tokens = context.tokens
    tokens = _rows(tokens, batch) if isinstance(tokens, TextKV) else tokens[:batch]
    mask, pooled = (None if x is None else x[:batch] for x in (context.mask, context.pooled))
    return Context(tokens, mask, pooled)

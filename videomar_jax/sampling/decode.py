"""Generation: frame after frame, inside a frame many tokens at a time (paper, section 3.3).

    for each frame t:                                   scan in `generate`, host loop in `generate_frames`
        remember frame t - 1: one pass, its keys and values join the cache
        for each reveal step:                           scan in `generate_frame`
            z = model.frame(tokens, mask, cache)        with text, and without for guidance
            draw the tokens that this step reveals from the diffusion head given z       (scan over head steps)

All shapes are static: a step draws at most K tokens, the surplus is dropped. Schedules are arrays, so another guidance,
temperature or clip value runs the same program. Noise is indexed by token position, each position being drawn once.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from videomar_jax.models.attention import KVCache
from videomar_jax.models.diffusion import Plan, make_process, needs_step_noise
from videomar_jax.models.masking import ranks
from videomar_jax.models.patchify import patchify, unpatchify
from videomar_jax.models.rope import PositionScale
from videomar_jax.models.videomar import Context, VideoMAR
from videomar_jax.sampling.schedules import RevealPlan, SamplingConfig, clip_bounds, reveal_plan, temperatures
from videomar_jax.types import Array, Bool, Float, Int, Latents, TextFeatures, TextMask


class FrameDraws(NamedTuple):
    """Every random choice of one frame, by token position; N head steps (none for the flow head)."""

    order: Int[Array, "B S"]
    noise: Float[Array, "B S P"]
    step_noise: Float[Array, "N B S P"]


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
class Program:
    """What the compiled program depends on, beside the shapes of its arguments."""

    grid: tuple[int, int]  # (H, W)
    max_count: int  # K, the largest number of tokens in a reveal step
    token_dtype: str = "float32"  # drawn tokens are rounded to it
    trace: bool = False  # also return what happened at every reveal step


class DecodeState(NamedTuple):
    """Between two frames: the cache of all frames but the last, and the last one."""

    cache: KVCache
    last: Float[Array, "B S P"]


def draw_frame(keys: Array, number: Array, tokens: int, width: int, head_steps: int) -> FrameDraws:
    """The draws of frame `number`; sample i uses `keys[i]` alone, so its video does not depend on its batch."""

    def one(key):
        order, start, steps = jax.random.split(jax.random.fold_in(key, number), 3)
        step_noise = jax.random.normal(steps, (head_steps, tokens, width))
        return FrameDraws(jax.random.permutation(order, tokens), jax.random.normal(start, (tokens, width)), step_noise)

    draws = jax.vmap(one)(keys)
    return draws._replace(step_noise=jnp.moveaxis(draws.step_noise, 0, 1))


def draw_tokens(model: VideoMAR, z: Float[Array, "G k D"], noise: Float[Array, "B k P"],
                step_noise: Float[Array, "N B k P"], head_plan: Plan, guidance: Array, temperature: Array,
                ) -> Float[Array, "B k P"]:  # fmt: skip
    """Draws tokens given z by running the head's diffusion backwards; with guidance z has 2B rows, text first."""
    process, batch = make_process(model.config), len(noise)
    condition = model.head.condition(z)
    guided = len(z) == 2 * batch

    def head_step(x, step):
        plan, injected = step
        rows = jnp.concatenate([x, x]) if guided else x
        output = model.head.denoise(rows, plan["time"], condition)
        null = output[batch:] if guided else None
        return process.advance(x, output[:batch], null, plan, injected, guidance, temperature), None

    injected = step_noise if needs_step_noise(process) else None
    with jax.named_scope("diffusion_head"):
        return jax.lax.scan(head_step, process.start(noise, temperature), (head_plan, injected))[0]


def generate_frame(
    model: VideoMAR, context: Context, cache: KVCache, settings: FrameSettings, draws: FrameDraws, plan: RevealPlan,
    head_plan: Plan, program: Program, scale: PositionScale | None = None,
) -> tuple[Float[Array, "B S P"], FrameTrace | None]:  # fmt: skip
    """Draws all tokens of one frame. `context` and `cache` have 2B rows (text, then null context) with guidance.

    Args:
        plan: what each step reveals.
        head_plan: the diffusion steps of the head.
    """
    batch, num_tokens, _ = draws.noise.shape
    doubled = cache.keys.shape[1] // batch
    place = ranks(draws.order)
    padded = jnp.pad(draws.order, ((0, 0), (0, program.max_count)), constant_values=num_tokens)
    row = jnp.arange(batch)[:, None]

    def reveal(tokens, step: RevealPlan):
        hidden = place >= step.start
        rows, mask = jnp.tile(tokens, (doubled, 1, 1)), jnp.tile(hidden, (doubled, 1))
        z = model.frame(rows, mask, settings.number, context, cache, program.grid, scale)
        chosen = jax.lax.dynamic_slice_in_dim(padded, step.start, program.max_count, axis=1)
        chosen = jnp.where(jnp.arange(program.max_count) < step.count, chosen, num_tokens)  # surplus: past the end
        z_chosen = jnp.take_along_axis(z, jnp.tile(chosen, (doubled, 1))[..., None], axis=1, mode="clip")
        noise = jnp.take_along_axis(draws.noise, chosen[..., None], axis=1, mode="clip")
        injected = jnp.take_along_axis(draws.step_noise, chosen[None, ..., None], axis=2, mode="clip")
        new = draw_tokens(model, z_chosen, noise, injected, head_plan, step.guidance, settings.temperature)
        new = jnp.clip(new, -settings.bound, settings.bound).astype(program.token_dtype).astype(new.dtype)
        tokens = tokens.at[row, chosen].set(new, mode="drop")
        return tokens, FrameTrace(z, tokens, hidden) if program.trace else None

    return jax.lax.scan(reveal, jnp.zeros_like(draws.noise), plan)


class Decoder(NamedTuple):
    """The arrays that all frames share."""

    context: Context
    keys: Array  # one per sample
    plan: RevealPlan
    head_plan: Plan


@functools.partial(jax.jit, static_argnames=("frames", "guided", "grid"))
def start_decoding(
    model: VideoMAR, given: Float[Array, "B G S P"], text: TextFeatures, text_mask: TextMask,
    scale: PositionScale | None, *, frames: int, guided: bool, grid: tuple[int, int],
) -> tuple[Context, DecodeState]:  # fmt: skip
    """Text keys and values, and a cache that holds all given frames but the last (which the first step remembers)."""
    batch, num_given, tokens, _ = given.shape
    if guided:
        text, text_mask = jnp.tile(text, (2, 1, 1)), jnp.tile(text_mask, (2, 1))
    rows = len(text)
    context = model.with_keys_values(model.context(text, text_mask, jnp.arange(rows) >= batch))
    cache = model.empty_cache(rows, frames, tokens)
    for number in range(num_given - 1):
        seen = jnp.tile(given[:, number], (rows // batch, 1, 1))
        cache = model.remember(seen, jnp.asarray(number), context, cache, grid, scale)
    return context, DecodeState(cache, given[:, -1])


def next_frame(model: VideoMAR, decoder: Decoder, state: DecodeState, settings: FrameSettings,
               draws: FrameDraws | None, scale: PositionScale | None, program: Program):  # fmt: skip
    """Remembers the last frame, then draws the next one."""
    batch, tokens, width = state.last.shape
    last = jnp.tile(state.last, (state.cache.keys.shape[1] // batch, 1, 1))
    cache = model.remember(last, settings.number - 1, decoder.context, state.cache, program.grid, scale)
    if draws is None:
        noisy_steps = len(decoder.head_plan["time"]) if needs_step_noise(make_process(model.config)) else 0
        draws = draw_frame(decoder.keys, settings.number, tokens, width, noisy_steps)
    new, steps = generate_frame(
        model, decoder.context, cache, settings, draws, decoder.plan, decoder.head_plan, program, scale
    )
    return DecodeState(cache, new), steps


@functools.partial(jax.jit, static_argnames="program")
def _scan_frames(model, decoder, state, settings, draws, scale, program):
    def body(state, frame):
        state, steps = next_frame(model, decoder, state, *frame, scale, program)
        return state, (state.last, steps)

    _, (tokens, steps) = jax.lax.scan(body, state, (settings, draws))
    return jnp.moveaxis(tokens, 0, 1), steps


_one_frame = jax.jit(next_frame, static_argnames="program", donate_argnames="state")


def _prepare(model, given, text, text_mask, num_frames, config, keys, scale, trace=False):
    """Checks the request and builds everything that does not change from frame to frame."""
    num_given, size = given.shape[1], model.config.patch_size
    if not 1 <= num_given < num_frames:
        raise ValueError(f"Cannot make {num_frames} latent frames from {num_given} given ones; ask for more.")
    grid = (given.shape[2] // size, given.shape[3] // size)
    head_plan = make_process(model.config).plan(config.head_steps)
    plan = reveal_plan(grid[0] * grid[1], config)
    tokens = patchify(given, size)
    context, state = start_decoding(
        model, tokens, text, text_mask, scale, frames=num_frames - 1, guided=config.guided, grid=grid
    )
    generated = num_frames - num_given
    numbers = np.arange(num_given, num_frames, dtype=np.int32)
    settings = FrameSettings(numbers, temperatures(generated, config), clip_bounds(generated, config))
    program = Program(grid=grid, max_count=int(plan.count.max()), token_dtype=config.token_dtype, trace=trace)
    return Decoder(context, keys, plan, head_plan), state, settings, program


def generate(
    model: VideoMAR, given: Float[Array, "B G h w C"], text: TextFeatures, text_mask: TextMask, *, num_frames: int,
    config: SamplingConfig, keys: Array | None = None, draws: FrameDraws | None = None,
    scale: PositionScale | None = None, trace: bool = False,
) -> Latents | tuple[Latents, FrameTrace]:  # fmt: skip
    """Continues videos: `given` latent frames come back untouched, the rest is drawn. One program for the whole video.

    Args:
        given: [B, G, h, w, C] scaled latents of the conditioning frames; G = 1 is image to video.
        text, text_mask: [B, K, E] and [B, K] from the text encoder.
        num_frames: latent frames in all, more than G.
        keys: one random key for each sample, `jax.random.split(key, B)`; sample i depends on keys[i] only.
        draws: recorded draws instead of keys, each with a leading axis of generated frames.
        scale: how positions beyond the training grid are folded back.
        trace: also return what happened at every reveal step.
    Returns:
        [B, num_frames, h, w, C].
    """
    if (keys is None) == (draws is None):
        raise ValueError("Give either keys or recorded draws.")
    decoder, state, settings, program = _prepare(model, given, text, text_mask, num_frames, config, keys, scale, trace)
    tokens, steps = _scan_frames(model, decoder, state, settings, draws, scale, program)
    video = jnp.concatenate([given, unpatchify(tokens, program.grid, model.config.patch_size)], axis=1)
    return (video, steps) if trace else video


def generate_frames(
    model: VideoMAR, given: Float[Array, "B G h w C"], text: TextFeatures, text_mask: TextMask, *, num_frames: int,
    config: SamplingConfig, keys: Array, scale: PositionScale | None = None,
) -> Iterator[Float[Array, "B h w C"]]:  # fmt: skip
    """Like `generate`, but yields each new latent frame as soon as it is drawn; the frames are the same."""
    decoder, state, settings, program = _prepare(model, given, text, text_mask, num_frames, config, keys, scale)
    for i in range(len(settings.number)):
        state, _ = _one_frame(model, decoder, state, jax.tree.map(lambda x, i=i: x[i], settings), None, scale, program)
        yield unpatchify(state.last[:, None], program.grid, model.config.patch_size)[:, 0]

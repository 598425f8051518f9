"""Generation: frame after frame, inside a frame many tokens at a time (paper, section 3.3).

    for each frame t:                                   host loop; one compiled program a frame
        remember frame t - 1: one pass, its keys and values join the cache
        draw frame t                                    (`sampling.frame`)

`generate_frames` yields each frame as soon as it is begun to be computed; `generate` is all of
them. Schedules are arrays, so another guidance, temperature or clip value runs the same program; so
do another seed, image or prompt, and every frame that sees as much of the cache.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from videomar_jax.diffusion.solver import SolverPlan, evaluations, plan_steps
from videomar_jax.models.attention import KVCache
from videomar_jax.models.patchify import patchify, unpatchify
from videomar_jax.models.rope import PositionScale
from videomar_jax.models.videomar import Context, VideoMAR
from videomar_jax.sampling.draws import FrameDraws, draw_frame
from videomar_jax.sampling.fused_head import FastHead, draw_tokens, fast_head
from videomar_jax.sampling.memory import check_memory, free_bytes
from videomar_jax.sampling.precision import for_sampling
from videomar_jax.sampling.reveal import (
    FrameProgram,
    FrameSettings,
    FrameTrace,
    Seen,
    SpeedOptions,
    generate_frame,
)
from videomar_jax.sampling.rope_scaling import (
    cache_length,
    frames_in_slots,
    position_scale,
    shift_first,
    slot_of,
)
from videomar_jax.sampling.schedules import (
    RevealPlan,
    SamplingConfig,
    clip_bounds,
    count_sizes,
    head_step_names,
    reveal_plan,
    temperatures,
)
from videomar_jax.sampling.sharding import Placement, placed, placement, ways
from videomar_jax.types import Array, Float, Latents, TextFeatures, TextMask

__all__ = [
    "FrameDraws",
    "FrameTrace",
    "SpeedOptions",
    "draw_frame",
    "draw_tokens",
    "generate",
    "generate_frames",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What the compiled program depends on, beside the shapes of its arguments."""

    frame: FrameProgram
    length: int  # places of the cache
    prefix: int  # places of the cache that this frame looks at
    full: bool  # all of these hold a frame, so that none is masked
    keep_first: bool
    shifted: bool
    placement: Placement


class DecodeState(NamedTuple):
    """Between two frames: the cache of all frames but the last, and the last one."""

    cache: KVCache
    last: Float[Array, "B S P"]


class Decoder(NamedTuple):
    """The arrays that all frames share."""

    context: Context
    head: FastHead
    keys: Array | None  # one per sample
    plan: RevealPlan
    head_plan: SolverPlan


@functools.partial(jax.jit, static_argnames=("guided", "program"))
def start_decoding(
    model: VideoMAR,
    given: Float[Array, "B G h w C"],
    text: TextFeatures,
    text_mask: TextMask,
    plan: SolverPlan,
    scale: PositionScale | None,
    *,
    guided: bool,
    program: Program,
) -> tuple[Context, FastHead, SolverPlan, DecodeState]:
    """What is computed once for a video: the text's keys and values, the head's weights and times,
    and a cache that holds all given frames but the last (which the first step remembers)."""
    given = patchify(given, model.config.patch_size)
    batch, num_given, tokens, _ = given.shape
    if guided:
        text, text_mask = jnp.tile(text, (2, 1, 1)), jnp.tile(text_mask, (2, 1))
    rows = len(text)
    context = model.with_keys_values(model.context(text, text_mask, jnp.arange(rows) >= batch))
    cache, last = placed(
        program.placement, model.empty_cache(rows, program.length, tokens), given[:, -1]
    )

    def remember(number, cache):
        frame = jax.lax.dynamic_index_in_dim(given, number, axis=1, keepdims=False)
        return _remember(model, context, cache, frame, number, scale, program)

    cache = jax.lax.fori_loop(0, num_given - 1, remember, cache) if num_given > 1 else cache
    times = model.head.time_embedding(plan.steps.time)
    plan = plan._replace(steps=plan.steps._replace(embedding=times))
    return context, fast_head(model.head), plan, DecodeState(cache, last)


def _view(model, cache, number, scale, program) -> KVCache:
    """What frame `number` looks at of the cache."""
    view = KVCache(*(part[:, :, : program.prefix] for part in cache))
    if not program.shifted:
        return view
    return shift_first(view, jnp.maximum(number - program.length, 0), model.config, scale)


def _remember(model, context, cache, tokens, number, scale, program) -> KVCache:
    """The cache with finished frame `number` in its place."""
    tokens = jnp.tile(tokens, (cache.keys.shape[1] // len(tokens), 1, 1))
    seen = frames_in_slots(number, program.length, program.keep_first)[: program.prefix] >= 0
    view = _view(model, cache, number, scale, program)
    kv = model.finished(tokens, number, context, view, program.frame.grid, scale, seen=seen)
    place = slot_of(number, program.length, program.keep_first)
    put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=place, axis=2)
    return KVCache(*(put(old, new.astype(old.dtype)) for old, new in zip(cache, kv, strict=True)))


def next_frame(
    model: VideoMAR,
    decoder: Decoder,
    state: DecodeState,
    settings: FrameSettings,
    draws: FrameDraws | None,
    scale: PositionScale | None,
    program: Program,
):
    """Remembers the last frame, then draws the next one; returns it as latents too, and the
    trace."""
    _, tokens, width = state.last.shape
    number = settings.number
    cache = _remember(model, decoder.context, state.cache, state.last, number - 1, scale, program)
    if draws is None:
        noisy = evaluations(decoder.head_plan) if model.process.stochastic else 0
        draws = draw_frame(decoder.keys, number, tokens, width, noisy)
    places = (
        "all"
        if program.full
        else frames_in_slots(number, program.length, program.keep_first)[: program.prefix] >= 0
    )
    seen = Seen(_view(model, cache, number, scale, program), places)
    new, steps = generate_frame(
        model,
        decoder.head,
        decoder.context,
        seen,
        settings,
        draws,
        decoder.plan,
        decoder.head_plan,
        program.frame,
        scale,
    )
    state = DecodeState(*placed(program.placement, cache, new))
    return state, unpatchify(new[:, None], program.frame.grid, model.config.patch_size)[:, 0], steps


one_frame = jax.jit(next_frame, static_argnames="program", donate_argnames="state")


class Video(NamedTuple):
    """A request, ready to be drawn frame by frame."""

    model: VideoMAR
    decoder: Decoder
    state: DecodeState
    settings: FrameSettings  # of all generated frames
    scale: PositionScale | None
    program: Program

    def program_of(self, number: int) -> Program:
        """The program of frame `number`, which looks at the filled part of the cache; lengths are
        rounded up so that there are no more of them than the levers say."""
        length, levels = self.program.length, self.program.frame.levers.prefixes
        if levels == 1:
            return self.program
        stored, step = min(number, length), -(-length // levels)
        prefix = min(length, -(-stored // step) * step)
        return dataclasses.replace(self.program, prefix=prefix, full=prefix == stored)


def prepare(
    model: VideoMAR,
    given: Float[Array, "B G h w C"],
    text: TextFeatures,
    text_mask: TextMask,
    *,
    num_frames: int,
    config: SamplingConfig,
    keys: Array | None = None,
    scale: PositionScale | None = None,
    trained: tuple[int, int, int] | None = None,
    levers: SpeedOptions | None = None,
    trace: bool = False,
) -> Video:
    """Checks the request and builds everything that does not change from frame to frame; arguments
    as in `generate`."""
    model = for_sampling(model, config)
    num_given, size = given.shape[1], model.config.patch_size
    if not 1 <= num_given < num_frames:
        raise ValueError(
            f"Cannot make {num_frames} latent frames from {num_given} given ones; ask for more."
        )
    if given.shape[2] % size or given.shape[3] % size:
        raise ValueError(
            f"Latents of {given.shape[2]}x{given.shape[3]} cannot be cut into patches of {size}x{size}."
        )
    grid = (given.shape[2] // size, given.shape[3] // size)
    tokens = grid[0] * grid[1]
    plan = reveal_plan(tokens, config)
    names = head_step_names(config.head_steps, len(plan.count))
    heads = plan_steps(model.process, names, config.head_solver)
    scale = position_scale(config, (num_frames, *grid), trained) if scale is None else scale
    length = cache_length(config, num_frames - 1)
    levers = (
        SpeedOptions.for_work(model.config, tokens, len(plan.count), length)
        if levers is None
        else levers
    )
    place = placement(model, model.config, given, tokens)
    check_memory(
        model.config,
        config,
        batch=len(given),
        frames=num_frames,
        grid=grid,
        free=free_bytes(),
        ways=ways(place),
    )
    frame = FrameProgram(
        grid=grid,
        sizes=count_sizes(plan.count, levers.sizes),
        token_dtype=config.token_dtype,
        trace=trace,
        branches=tuple(sorted({bool(g) for g in plan.guided}, reverse=True)),
        levers=levers,
    )
    keep_first = config.keep_first and config.window is not None
    shifted = (
        config.first_frame_position == "shifted"
        and keep_first
        and model.config.rope_frame_origin == "absolute"
    )
    program = Program(
        frame=frame,
        length=length,
        prefix=length,
        full=False,
        keep_first=keep_first,
        shifted=shifted,
        placement=place,
    )
    context, head, heads, state = start_decoding(
        model, given, text, text_mask, heads, scale, guided=config.guided, program=program
    )
    generated = num_frames - num_given
    numbers = np.arange(num_given, num_frames, dtype=np.int32)
    settings = FrameSettings(
        numbers, temperatures(generated, config), clip_bounds(generated, config)
    )
    return Video(model, Decoder(context, head, keys, plan, heads), state, settings, scale, program)


def _drawn(
    video: Video, draws: FrameDraws | None = None
) -> Iterator[tuple[Array, FrameTrace | None]]:
    """Latents and trace of each new frame."""
    state = video.state
    video = video._replace(state=None)  # donated, and not to be held twice
    for i, number in enumerate(video.settings.number):
        settings, now = jax.tree.map(lambda x, i=i: x[i], (video.settings, draws))
        state, latents, steps = one_frame(
            video.model,
            video.decoder,
            state,
            settings,
            now,
            video.scale,
            video.program_of(int(number)),
        )
        yield latents, steps


def generate(
    model: VideoMAR,
    given: Float[Array, "B G h w C"],
    text: TextFeatures,
    text_mask: TextMask,
    *,
    num_frames: int,
    config: SamplingConfig,
    keys: Array | None = None,
    draws: FrameDraws | None = None,
    scale: PositionScale | None = None,
    trained: tuple[int, int, int] | None = None,
    levers: SpeedOptions | None = None,
    trace: bool = False,
) -> Latents | tuple[Latents, FrameTrace]:
    """Continues videos: `given` latent frames come back untouched, the rest is drawn.

    Where the model's parameters or `given` are spread over a mesh of devices, so is the work.

    Args:
        given: [B, G, h, w, C] scaled latents of the conditioning frames; G = 1 is image to video.
        text, text_mask: [B, K, E] and [B, K] from the text encoder.
        num_frames: latent frames in all, more than G.
        keys: one random key for each sample, `jax.random.split(key, B)`; sample i depends on
            keys[i] only.
        draws: recorded draws instead of keys, each with a leading axis of generated frames.
        scale: how positions beyond the training grid are folded back; None: as the config says,
            given `trained`.
        trained: (frames, rows, columns) in tokens that the model was trained on, for the config's
            scaling.
        levers: what is done for speed; None: what pays. The result is the same up to rounding.
        trace: also return what happened at every reveal step.
    Returns:
        [B, num_frames, h, w, C].
    Raises:
        ValueError: a request that cannot be met, or that memory does not hold; told before anything
            is drawn.
    """
    if (keys is None) == (draws is None):
        raise ValueError("Give either keys or recorded draws.")
    video = prepare(
        model,
        given,
        text,
        text_mask,
        num_frames=num_frames,
        config=config,
        keys=keys,
        scale=scale,
        trained=trained,
        levers=levers,
        trace=trace,
    )
    frames = list(_drawn(video, draws))
    latents = jnp.concatenate([given, jnp.stack([new for new, _ in frames], axis=1)], axis=1)
    return (
        (latents, jax.tree.map(lambda *x: jnp.stack(x), *(steps for _, steps in frames)))
        if trace
        else latents
    )


def generate_frames(
    model: VideoMAR,
    given: Float[Array, "B G h w C"],
    text: TextFeatures,
    text_mask: TextMask,
    *,
    num_frames: int,
    config: SamplingConfig,
    keys: Array,
    scale: PositionScale | None = None,
    trained: tuple[int, int, int] | None = None,
    levers: SpeedOptions | None = None,
) -> Iterator[Float[Array, "B h w C"]]:
    """Like `generate`, but yields each new latent frame as soon as its computation is under way;
    the frames are the same. Arguments and errors as there; errors are told at once, not when the
    first frame is asked for."""
    video = prepare(
        model,
        given,
        text,
        text_mask,
        num_frames=num_frames,
        config=config,
        keys=keys,
        scale=scale,
        trained=trained,
        levers=levers,
    )
    return (latents for latents, _ in _drawn(video))

"""The compiled program of a frame, and the cache of earlier frames it reads.

    for each frame t:                                   host loop; one compiled program a frame
        commit frame t - 1                              one pass; its keys and values join the cache
        reveal frame t                                  `sampling.reveal`

The cache is a ring of L slots. Frame f is written to slot f mod L, or with `keep_first` frame 0 to
slot 0 and the others to 1 + (f - 1) mod (L - 1), over the frame that left the window. A frame then
sees the L frames before it (or frame 0 and the L - 1 before it), as it would in one pass over all
frames with a mask of that shape: what a kept frame has taken over from frames that have left stays
in its keys and values. Memory and time are the same for frame 10 and frame 1000.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from videomar_jax.diffusion.plans import SolverPlan, evaluations
from videomar_jax.models import incremental
from videomar_jax.models.attention import KVCache
from videomar_jax.models.forecast import with_forecast
from videomar_jax.models.history_noise import add_history_noise
from videomar_jax.models.incremental import VisibleCache
from videomar_jax.models.partitioning import sharding_rule
from videomar_jax.models.patchify import patchify, unpatchify
from videomar_jax.models.rope import PositionScale
from videomar_jax.models.videomar import Context, VideoMAR
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.draws import FrameDraws, draw_frame
from videomar_jax.sampling.fused_head import FusedHead, fuse_head
from videomar_jax.sampling.reveal import (
    FrameInputs,
    FrameSettings,
    FrameTrace,
    SharedInputs,
    StaticConfig,
    reveal_frame,
)
from videomar_jax.sampling.rope_scaling import shift_first
from videomar_jax.sampling.sharding import attention_rule, constrain, with_whole_head
from videomar_jax.types import Array, Float, Int, TextFeatures, TextMask


class DecodeState(NamedTuple):
    """What is carried from one frame to the next."""

    cache: KVCache
    """Keys and values of all frames but the last, [layers, rows, L, S, n, d] each."""
    last: Float[Array, "B S P"]
    """The tokens of the last frame, which the next frame's program commits to the cache."""


# The ring of slots


def cache_length(config: SamplingConfig, frames: int) -> int:
    """L, the slots that hold earlier frames when there are up to `frames` of them."""
    return frames if config.window is None else min(config.window, frames)


def slot_of(number: Array, length: int, keep_first: bool) -> Array:
    """The slot that frame `number` is written to."""
    first = int(keep_first)
    slot = first + (number - first) % max(length - first, 1)
    return jnp.where(number == 0, 0, slot) if keep_first else slot


def frames_in_slots(number: Array, length: int, keep_first: bool) -> Int[Array, "L"]:
    """Which frame lies in each slot when frames 0..number-1 are written; -1 where none does."""
    first, last = int(keep_first), number - 1
    slot = jnp.arange(length)
    frame = last - (last - slot) % max(length - first, 1)
    if keep_first:
        frame = jnp.where(slot == 0, jnp.minimum(last, 0), frame)
    return jnp.where(frame >= jnp.minimum(slot, first), frame, -1)


# The compiled programs


@functools.partial(jax.jit, static_argnames="static")
def start_decoding(
    model: VideoMAR,
    given: Float[Array, "B G h w C"],
    text: TextFeatures,
    text_mask: TextMask,
    timesteps: SolverPlan,
    scale: PositionScale | None,
    static: StaticConfig,
) -> tuple[Context, FusedHead, SolverPlan, DecodeState]:
    """What is computed once for a video.

    Returns:
        the text's keys and values, the head's weights rearranged, the timesteps with their
        embeddings, and the state before the first new frame: all given frames but the last are
        in the cache.
    """
    model = with_whole_head(static.placement, model)
    given = patchify(given, model.config.patch_size)
    batch, num_given, tokens, _ = given.shape
    own_text = (text, text_mask)
    # Some step is guided: rows without text stand behind those with it, B each.
    if True in static.branches:
        text, text_mask = jnp.tile(text, (2, 1, 1)), jnp.tile(text_mask, (2, 1))
    rows = len(text)
    without_text = jnp.arange(rows) >= batch
    context = incremental.with_keys_values(model, model.context(text, text_mask, without_text))
    # One forecast a sample, whether a step is guided or not.
    context = with_forecast(model, context, given[:, 0], *own_text, static.grid)
    cache = incremental.empty_cache(model, rows, static.cache_length, tokens)
    cache, last = constrain(static.placement, cache, given[:, -1])

    # The last given frame is left to the first `decode_frame`, as every last frame is.
    def commit(number, cache):
        frame = jax.lax.dynamic_index_in_dim(given, number, axis=1, keepdims=False)
        return _commit_frame(model, context, cache, frame, number, scale, static)

    if num_given > 1:
        cache = jax.lax.fori_loop(0, num_given - 1, commit, cache)
    embedding = model.head.time_embedding(timesteps.steps.time)
    timesteps = timesteps._replace(steps=timesteps.steps._replace(embedding=embedding))
    return context, fuse_head(model.head), timesteps, DecodeState(cache, last)


def decode_frame(
    model: VideoMAR,
    shared: SharedInputs,
    state: DecodeState,
    settings: FrameSettings,
    draws: FrameDraws | None,
    static: StaticConfig,
) -> tuple[DecodeState, Float[Array, "B h w C"], FrameTrace | None]:
    """Commits the last frame to the cache, then draws the next one.

    Args:
        draws: recorded draws of the frame; None: made from `shared.keys`.
    Returns:
        the next state, the new frame's latents, and its trace if `static.trace`.
    """
    model = with_whole_head(static.placement, model)
    _, tokens, width = state.last.shape
    number = settings.number
    scale = shared.scale
    if draws is None:
        assert shared.keys is not None, "give either keys or draws"
        noisy = evaluations(shared.timesteps) if model.process.stochastic else 0
        draws = draw_frame(
            shared.keys, number, tokens, width, noisy, history_noise=static.history_noise
        )
    last, level = state.last, None
    if static.history_noise:
        assert draws.history_noise is not None, "recorded draws without history_noise"
        level = jnp.full(len(last), settings.history_noise)
        last = add_history_noise(model, last[:, None], level, draws.history_noise[:, None])[:, 0]
    cache = _commit_frame(
        model, shared.context, state.cache, last, number - 1, scale, static, level
    )
    slots = None if static.all_visible else _filled(number, static)
    visible = VisibleCache(_view(model, cache, number, scale, static), slots)
    inputs = FrameInputs(model, shared, visible, settings, static, last)
    with sharding_rule(attention_rule(static.placement)):
        new, trace = reveal_frame(inputs, draws)
    state = DecodeState(*constrain(static.placement, cache, new))
    latents = unpatchify(new[:, None], static.grid, model.config.patch_size)[:, 0]
    return state, latents, trace


compiled_frame = jax.jit(decode_frame, static_argnames="static", donate_argnames="state")
"""`decode_frame`, compiled; the state is donated, so that there is one cache at a time."""


def _filled(number: Array, static: StaticConfig) -> Array:
    """Which of the visible slots hold a frame when frames 0..number-1 are written, bool."""
    frames = frames_in_slots(number, static.cache_length, static.keep_first)
    return frames[: static.visible_length] >= 0


def _view(
    model: VideoMAR,
    cache: KVCache,
    number: Array,
    scale: PositionScale | None,
    static: StaticConfig,
) -> KVCache:
    """What frame `number` looks at of the cache."""
    visible = slice(None, static.visible_length)
    view = KVCache(cache.keys[:, :, visible], cache.values[:, :, visible])
    if not static.shift_first:
        return view
    shift = jnp.maximum(number - static.cache_length, 0)
    return shift_first(view, shift, model.config, scale)


def _commit_frame(
    model: VideoMAR,
    context: Context,
    cache: KVCache,
    tokens: Float[Array, "B S P"],
    number: Array,
    scale: PositionScale | None,
    static: StaticConfig,
    noise_level: Float[Array, "B"] | None = None,
) -> KVCache:
    """The cache with finished frame `number` in its slot; `noise_level` is the share of noise in
    its tokens."""
    # With guidance the frame is committed twice, seen with and without text.
    copies = cache.keys.shape[1] // len(tokens)
    tokens = jnp.tile(tokens, (copies, 1, 1))
    if noise_level is not None:
        noise_level = jnp.tile(noise_level, copies)
    past = VisibleCache(_view(model, cache, number, scale, static), _filled(number, static))
    rotary = incremental.frame_rotary(model, number, static.grid, scale)
    with sharding_rule(attention_rule(static.placement)):
        new = incremental.clean_frame_kv(model, tokens, rotary, context, past, noise_level)
    slot = slot_of(number, static.cache_length, static.keep_first)
    return incremental.write_slot(cache, new, slot)

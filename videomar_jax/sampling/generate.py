"""Generation: frame after frame, inside a frame many tokens at a time (paper, section 3.3).

A request is planned once (`plan_generation`), started once (`start`) and then drawn frame by frame:

    plan = plan_generation(model, given, num_frames=…, config=…)        checks; no computation
    shared, state = start(plan, given, text, text_mask, keys)           text, given frames
    for latents, trace in decode_frames(plan, shared, state): …         one program a frame

`generate` and `generate_frames` do this in one call. Schedules are arrays, so another guidance,
temperature or clip value runs the same program; so do another seed, image or prompt, and every
frame that sees as much of the cache.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from videomar_jax.checks import UserError
from videomar_jax.diffusion.plans import SolverPlan, plan_steps
from videomar_jax.io.log import warn_once
from videomar_jax.models.rope import PositionScale
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.platforms import compile_for, device_of, platform_of
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.decoder import (
    DecodeState,
    cache_length,
    compiled_frame,
    start_decoding,
)
from videomar_jax.sampling.draws import FrameDraws
from videomar_jax.sampling.memory import check_memory, free_bytes
from videomar_jax.sampling.precision import for_sampling
from videomar_jax.sampling.reveal import (
    FrameSettings,
    FrameTrace,
    SharedInputs,
    StaticConfig,
)
from videomar_jax.sampling.rope_scaling import position_scale
from videomar_jax.sampling.schedules import (
    RevealPlan,
    clip_bounds,
    head_step_names,
    reveal_plan,
    temperatures,
)
from videomar_jax.sampling.sharding import cache_shards, placement
from videomar_jax.sampling.speed import SpeedOptions, token_buckets, visible_length
from videomar_jax.types import Array, Float, Latents, TextFeatures, TextMask

__all__ = [
    "FrameDraws",
    "FrameTrace",
    "GenerationPlan",
    "SpeedOptions",
    "decode_frames",
    "generate",
    "generate_frames",
    "plan_generation",
    "start",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationPlan:
    """Everything about a request that does not change from frame to frame, made once."""

    model: VideoMAR
    """The model in the number types it samples in."""
    num_given: int
    """G, the latent frames that are continued."""
    num_frames: int
    """T, latent frames in all."""
    reveal: RevealPlan
    """What each reveal step of a frame does."""
    timesteps: SolverPlan
    """The head's diffusion; `reveal.head` names the row of each reveal step."""
    scale: PositionScale | None
    """How positions beyond the training range are folded back."""
    settings: FrameSettings
    """Number, temperature, clip bound and noise of the generated frames, numpy [T - G] each."""
    static: StaticConfig
    """What the compiled program depends on, for a frame that sees a full cache."""
    platform: str
    """Where the model's parameters lie: what the programs are compiled for."""

    def static_config(self, number: int) -> StaticConfig:
        """The program of frame `number`, which looks at the filled part of the cache."""
        static = self.static
        if static.speed.cache_lengths == 1:
            return static
        # A ring that is full stays full: all later frames run the same program.
        stored = min(number, static.cache_length)
        visible = visible_length(stored, static.cache_length, static.speed.cache_lengths)
        return dataclasses.replace(static, visible_length=visible, all_visible=visible == stored)


def plan_generation(
    model: VideoMAR,
    given: Float[Array, "B G h w C"] | jax.ShapeDtypeStruct,
    *,
    num_frames: int,
    config: SamplingConfig,
    scale: PositionScale | None = None,
    trained: tuple[int, int, int] | None = None,
    speed: SpeedOptions | None = None,
    trace: bool = False,
) -> GenerationPlan:
    """Checks a request and fixes everything that does not change from frame to frame.

    Nothing is computed on the device. Arguments as in `generate`; of `given` only the shape and
    the sharding are read.

    Raises:
        UserError: a request that cannot be met, or that memory does not hold.
    """
    if config.history_noise and not model.config.history_levels:
        warn_once("sampling.history_noise: this model was not trained to be told of noise.")
    # Types first: the shapes of the cache and the check of memory follow from them.
    model = for_sampling(model, config)
    batch, num_given = given.shape[:2]
    if not 1 <= num_given < num_frames:
        raise UserError(
            f"Cannot make {num_frames} latent frames from {num_given} given ones; ask for more."
        )
    grid = _token_grid(given.shape, model.config.patch_size)
    tokens = grid[0] * grid[1]
    reveal = reveal_plan(tokens, config)
    names = head_step_names(config, len(reveal.count))
    timesteps = plan_steps(model.process, names, config.head_solver)
    if scale is None:
        scale = position_scale(config, (num_frames, *grid), trained)
    length = cache_length(config, num_frames - 1)
    platform = platform_of((model, given))
    # Many devices share the cache and the work on it, and so the memory.
    place = placement(model, model.config, given, tokens)
    with compile_for(platform):
        if speed is None:
            speed = SpeedOptions.for_request(model.config, tokens, len(reveal.count), length)
        check_memory(
            model.config,
            config,
            batch=batch,
            frames=num_frames,
            grid=grid,
            free=free_bytes(device_of((model, given))),
            shards=cache_shards(place),
        )
    keep_first = config.keep_first and config.window is not None
    # What is static decides which program runs; values that may vary freely are arrays.
    static = StaticConfig(
        grid=grid,
        buckets=token_buckets(reveal.count, speed.token_buckets),
        branches=tuple(sorted({bool(guided) for guided in reveal.guided}, reverse=True)),
        token_dtype=config.token_dtype,
        trace=trace,
        speed=speed,
        cache_length=length,
        visible_length=length,
        keep_first=keep_first,
        # A model that numbers every frame alike has nothing to move.
        shift_first=config.first_frame_position == "shifted"
        and keep_first
        and model.config.rope_frame_origin == "absolute",
        history_noise=config.history_noise > 0,
        placement=place,
    )
    generated = num_frames - num_given
    settings = FrameSettings(
        number=np.arange(num_given, num_frames, dtype=np.int32),
        temperature=temperatures(generated, config),
        bound=clip_bounds(generated, config),
        history_noise=_history_noise(generated, config),
    )
    return GenerationPlan(
        model=model,
        num_given=num_given,
        num_frames=num_frames,
        reveal=reveal,
        timesteps=timesteps,
        scale=scale,
        settings=settings,
        static=static,
        platform=platform,
    )


def _history_noise(generated: int, config: SamplingConfig) -> np.ndarray:
    """The share of noise in the frame before each generated one, float32 [T - G]."""
    noise = np.full(generated, config.history_noise, np.float32)
    # The given frames are exact.
    noise[:1] = 0
    return noise


def _token_grid(shape: tuple[int, ...], patch: int) -> tuple[int, int]:
    """(H, W) of latents [B, G, h, w, C]."""
    height, width = shape[2:4]
    if height % patch or width % patch:
        raise UserError(
            f"Latents of {height}x{width} cannot be cut into patches of {patch}x{patch}."
        )
    return height // patch, width // patch


def start(
    plan: GenerationPlan,
    given: Float[Array, "B G h w C"],
    text: TextFeatures,
    text_mask: TextMask,
    keys: Array | None = None,
) -> tuple[SharedInputs, DecodeState]:
    """Computes what all frames share, and the state before the first new frame.

    Args:
        keys: one random key for each sample; None where `decode_frames` is handed draws.
    Raises:
        UserError: text of another size than the model was built for.
    """
    with compile_for(plan.platform):
        context, head, timesteps, state = start_decoding(
            plan.model, given, text, text_mask, plan.timesteps, plan.scale, plan.static
        )
    return SharedInputs(context, head, timesteps, plan.reveal, plan.scale, keys), state


def decode_frames(
    plan: GenerationPlan,
    shared: SharedInputs,
    state: DecodeState,
    draws: FrameDraws | None = None,
) -> Iterator[tuple[Float[Array, "B h w C"], FrameTrace | None]]:
    """Yields latents and trace of each new frame as soon as its computation has been dispatched.

    Args:
        state: is donated; it cannot be used again.
        draws: recorded draws, each with a leading axis of generated frames.
    """
    for index, number in enumerate(plan.settings.number):
        settings = jax.tree.map(lambda values, i=index: values[i], plan.settings)
        frame_draws = jax.tree.map(lambda values, i=index: values[i], draws)
        static = plan.static_config(int(number))
        # Around the call alone: a generator must not leave a context open while it waits.
        with compile_for(plan.platform):
            state, latents, trace = compiled_frame(
                plan.model, shared, state, settings, frame_draws, static
            )
        yield latents, trace


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
    speed: SpeedOptions | None = None,
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
        scale: how positions beyond the training range are folded back; None: as the config says,
            given `trained`.
        trained: (frames, rows, columns) in tokens that the model was trained on, for the config's
            scaling.
        speed: what is done for speed; None: what pays. The result is the same up to rounding.
        trace: also return what happened at every reveal step.
    Returns:
        [B, num_frames, h, w, C]; with `trace` also the trace, with a leading axis of new frames.
    Raises:
        UserError: a request that cannot be met, or that memory does not hold; raised before
            anything is drawn.
    """
    if (keys is None) == (draws is None):
        raise UserError("Give either keys or recorded draws.")
    if config.history_noise and draws is not None and draws.history_noise is None:
        raise UserError("sampling.history_noise needs draws with history_noise.")
    plan = plan_generation(
        model,
        given,
        num_frames=num_frames,
        config=config,
        scale=scale,
        trained=trained,
        speed=speed,
        trace=trace,
    )
    shared, state = start(plan, given, text, text_mask, keys)
    frames, traces = [], []
    for latents, steps in decode_frames(plan, shared, state, draws):
        frames.append(latents)
        traces.append(steps)
    video = jnp.concatenate([given, jnp.stack(frames, axis=1)], axis=1)
    if not trace:
        return video
    return video, jax.tree.map(lambda *steps: jnp.stack(steps), *traces)


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
    speed: SpeedOptions | None = None,
) -> Iterator[Float[Array, "B h w C"]]:
    """Like `generate`, but yields each new latent frame as soon as it has been dispatched.

    The frames are those of `generate`, arguments and errors as there. Errors are raised by the
    call itself, not when the first frame is asked for.
    """
    plan = plan_generation(
        model,
        given,
        num_frames=num_frames,
        config=config,
        scale=scale,
        trained=trained,
        speed=speed,
    )
    shared, state = start(plan, given, text, text_mask, keys)
    frames = decode_frames(plan, shared, state)
    return (latents for latents, _ in frames)

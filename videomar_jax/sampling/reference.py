"""The paper's sampler, written directly: no cache, no padding, no options for speed.

`sampling.generate` makes the same videos faster, and the tests hold it to this module for every
option. A video grows frame by frame; within a frame tokens are revealed in a random order, many
at a time (paper, section 3.3). With G given frames, for t = G..T-1:

    hide all S tokens of frame t; draw an order of them, and a noise for each                (1)
    for each reveal step s = 0..I-1 of `schedules.reveal_plan`:
        z      = transformer(all frames, hidden tokens masked)[t], with and without text     (2)
        tokens = the head's diffusion run backwards from the noise, given z                  (3)
        reveal order[start_s : start_s + count_s], clipped; all others stay hidden           (4)

In (2) frame t sees all earlier frames and itself, or what `window` leaves of the earlier ones
(`visible_frames`). Step (3) is guided (Ho & Salimans 2022) and scaled by the temperature; one
evaluation of the head after the other, `diffusion.solver.solver_step` says how.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from videomar_jax.diffusion.base import Timesteps
from videomar_jax.diffusion.solver import init_state, plan_steps, solver_step
from videomar_jax.models.attention import join_frames
from videomar_jax.models.kernels import attend
from videomar_jax.models.patchify import patchify, unpatchify
from videomar_jax.models.rope import PositionScale, rotary_embedding, rotate
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.sampling.draws import draw_frame
from videomar_jax.sampling.schedules import (
    SamplingConfig,
    clip_bounds,
    head_step_names,
    reveal_plan,
    temperatures,
)
from videomar_jax.types import Array, Float, Latents, TextFeatures, TextMask, TokenMask, Tokens


def reference(
    model: VideoMAR,
    given: Float[Array, "B G h w C"],
    text: TextFeatures,
    text_mask: TextMask,
    keys: Array,
    *,
    num_frames: int,
    config: SamplingConfig,
    scale: PositionScale | None = None,
) -> Latents:
    """Continues `given` to `num_frames` latent frames; arguments as in `generate`.

    The model is used in the number types it has (see `precision.for_sampling`).
    """
    patch = model.config.patch_size
    grid = (given.shape[2] // patch, given.shape[3] // patch)
    tokens = patchify(given, patch)
    batch, num_given, num_tokens, width = tokens.shape
    generated = num_frames - num_given
    # Frames not drawn yet are there as zeros; no earlier frame sees them.
    tokens = jnp.pad(tokens, ((0, 0), (0, generated), (0, 0), (0, 0)))
    plan = reveal_plan(num_tokens, config)
    names = head_step_names(config, len(plan.count))
    steps = {name: _timesteps(model, name, config.head_solver) for name in names}
    # A draw of noise for each evaluation of the head, where the process adds noise on its way.
    noisy = max(len(each.time) for each in steps.values()) if model.process.stochastic else 0
    predict = functools.partial(_predict, config=config, grid=grid, scale=scale)
    sample = jnp.arange(batch)[:, None]

    for index, number in enumerate(range(num_given, num_frames)):
        draws = draw_frame(keys, jnp.asarray(number), num_tokens, width, noisy)
        temperature = jnp.asarray(temperatures(generated, config)[index])
        bound = clip_bounds(generated, config)[index]
        hidden = jnp.zeros(tokens.shape[:3], bool).at[:, number].set(True)
        for step, name in enumerate(names):
            z = predict(model, tokens, hidden, text, text_mask)[:, number]
            # All tokens of the frame are drawn, and only those whose turn it is are kept.
            new = draw_tokens(
                model,
                z,
                draws.noise,
                draws.step_noise[: len(steps[name].time)],
                steps[name],
                jnp.asarray(plan.guidance[step]),
                temperature,
            )
            new = jnp.clip(new, -bound, bound).astype(config.token_dtype)
            start = plan.start[step]
            revealed = draws.order[:, start : start + plan.count[step]]
            tokens = tokens.at[sample, number, revealed].set(new[sample, revealed])
            hidden = hidden.at[sample, number, revealed].set(False)
    return unpatchify(tokens, grid, patch)


def _timesteps(model: VideoMAR, name: str, solver: str) -> Timesteps:
    plan = plan_steps(model.process, [name], solver)
    return jax.tree.map(lambda table: table[0], plan.steps)


@jax.jit
def draw_tokens(
    model: VideoMAR,
    z: Float[Array, "G k D"],
    noise: Float[Array, "B k P"],
    step_noise: Float[Array, "N B k P"],
    steps: Timesteps,
    guidance: Array,
    temperature: Array,
) -> Float[Array, "B k P"]:
    """Draws tokens given z: the head's diffusion run backwards, N evaluations of the head.

    Args:
        z: B rows with text, and with guidance B rows without behind them.
        noise, step_noise: standard normal; the second only for a process that adds noise.
        steps: one row [N] of a `SolverPlan`.
    """
    process = model.process
    condition = model.head.condition(z)
    guided = len(z) == 2 * len(noise)

    def head_step(state, step):
        now, injected = step
        x = jnp.concatenate([state.x, state.x]) if guided else state.x
        output = model.head.denoise(x, now.time, condition)
        return solver_step(process, state, output, now, injected, guidance, temperature), None

    injected = step_noise if process.stochastic else None
    state = init_state(process, noise, temperature)
    with jax.named_scope("diffusion_head"):
        return jax.lax.scan(head_step, state, (steps, injected))[0].x


@functools.partial(jax.jit, static_argnames=("config", "grid"))
def _predict(
    model: VideoMAR,
    tokens: Tokens,
    hidden: TokenMask,
    text: TextFeatures,
    text_mask: TextMask,
    *,
    config: SamplingConfig,
    grid: tuple[int, int],
    scale: PositionScale | None,
) -> Float[Array, "2*B T S D"]:
    """z of all tokens in one pass: B rows with text, then the same B rows without."""
    batch, frames = tokens.shape[:2]
    dropped = jnp.arange(2 * batch) >= batch
    double = functools.partial(jnp.concatenate, axis=0)
    context = model.context(double([text, text]), double([text_mask, text_mask]), dropped)
    x = model.embed(double([tokens, tokens]), double([hidden, hidden]), context)
    absolute = model.config.rope_frame_origin == "absolute"
    numbers = jnp.arange(frames) if absolute else jnp.zeros(frames, int)
    attention_fn = functools.partial(_attention, model=model, config=config, scale=scale)
    rotary = model.rotary(numbers, grid, scale)
    return model.transformer(x, context, rotary, attention_fn)


def visible_frames(number: int, config: SamplingConfig) -> Sequence[int]:
    """The earlier frames that frame `number` sees: all, or those that the window leaves."""
    window = config.window
    if window is None or number <= window:
        return range(number)
    if config.keep_first:
        return [0, *range(number - window + 1, number)]
    return range(number - window, number)


def _attention(q, k, v, *, model: VideoMAR, config: SamplingConfig, scale: PositionScale | None):
    """Each frame attends to its visible frames and to itself; q, k, v are [B, T, S, n, d]."""
    channels, base = model.config.rope_channels, model.config.rope_base
    attended = []
    for number in range(q.shape[1]):
        frames = jnp.asarray([*visible_frames(number, config), number])
        keys = k[:, frames]
        behind = number - (config.window or number)
        shifted = config.keep_first and config.first_frame_position == "shifted"
        if behind > 0 and shifted and model.config.rope_frame_origin == "absolute":
            # A kept frame 0 is turned forward in time, to stand right behind the window.
            shift = rotary_embedding(jnp.array([[[behind, 0, 0]]]), channels, base, scale)
            keys = keys.at[:, 0].set(rotate(keys[:, :1], shift, channels)[:, 0])
        keys, values = join_frames(keys), join_frames(v[:, frames])
        attended.append(attend(q[:, number], keys, values, kernel="xla"))
    return jnp.stack(attended, axis=1)

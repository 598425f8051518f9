"""The paper's sampler, written directly: no cache, no padding, no options for speed.

`sampling.generate` makes the same videos faster, and the tests hold it to this module for every
option but `history_noise`, which is refused here. A video grows frame by frame; within a frame
tokens are revealed in a random order, many at a time (paper, section 3.3). With G given frames, for
t = G..T-1:

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

import jax
import jax.numpy as jnp

from videomar_jax.checks import UserError
from videomar_jax.diffusion.base import Timesteps
from videomar_jax.diffusion.solver import init_state, solver_step, solver_timesteps
from videomar_jax.models.forecast import with_forecast
from videomar_jax.models.frame_attention import join_frames
from videomar_jax.models.kernels import attend
from videomar_jax.models.linear_prior import Standardised, add_hint, complete, frame_prior
from videomar_jax.models.patchify import patchify, unpatchify
from videomar_jax.models.rope import PositionScale, rotary_embedding, rotate
from videomar_jax.models.videomar import Context, VideoMAR
from videomar_jax.sampling import schedules
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.draws import draw_frame
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
    if config.history_noise:
        raise UserError("The reference has no history_noise; use sampling.generate.")
    patch = model.config.patch_size
    grid = (given.shape[2] // patch, given.shape[3] // patch)
    tokens = patchify(given, patch)
    batch, num_given, num_tokens, width = tokens.shape
    generated = num_frames - num_given
    # Frames that are not drawn yet are there as zeros; no earlier frame sees them.
    tokens = jnp.pad(tokens, ((0, 0), (0, generated), (0, 0), (0, 0)))
    contexts = []
    for drop in (False, True):
        context = model.context(text, text_mask, jnp.full(batch, drop))
        contexts.append(with_forecast(model, context, tokens[:, 0], text, text_mask, grid))
    predict = functools.partial(_predict, model, config=config, grid=grid, scale=scale)

    plan = schedules.reveal_plan(num_tokens, config)
    names = schedules.head_step_names(config, len(plan.count))
    steps = {name: solver_timesteps(model.process, name, config.head_solver) for name in names}
    # Noise for each evaluation of the head, where its process adds noise on the way.
    noisy = max(len(each.time) for each in steps.values()) if model.process.stochastic else 0

    draw = jax.jit(draw_tokens)
    sample = jnp.arange(batch)[:, None]
    for index in range(generated):
        number = num_given + index
        draws = draw_frame(keys, jnp.asarray(number), num_tokens, width, noisy)
        prior = frame_prior(model, tokens[:, number - 1], jnp.asarray(number), grid, contexts[0])
        temperature = jnp.asarray(schedules.temperatures(generated, config)[index])
        bound = schedules.clip_bounds(generated, config)[index]
        hidden = jnp.zeros(tokens.shape[:3], bool).at[:, number].set(True)
        for step, name in enumerate(names):
            # Equation (2), with text and without; both always, guided or not.
            z = [predict(tokens, hidden, number, context) for context in contexts]
            # All tokens of the frame are drawn, but only those whose turn it is are kept.
            new = draw(
                model,
                jnp.concatenate(z),
                draws.noise,
                draws.step_noise[: len(steps[name].time)],
                steps[name],
                jnp.asarray(plan.guidance[step]),
                temperature,
                prior,
            )
            new = jnp.clip(new, -bound, bound).astype(config.token_dtype)
            start = plan.start[step]
            # Advanced indexing pairs each sample with its own tokens.
            revealed = draws.order[:, start : start + plan.count[step]]
            tokens = tokens.at[sample, number, revealed].set(new[sample, revealed])
            hidden = hidden.at[sample, number, revealed].set(False)
    return unpatchify(tokens, grid, patch)


def draw_tokens(
    model: VideoMAR,
    z: Float[Array, "G k D"],
    noise: Float[Array, "B k P"],
    step_noise: Float[Array, "N B k P"],
    steps: Timesteps,
    guidance: Array,
    temperature: Array,
    prior: Standardised | None = None,
) -> Float[Array, "B k P"]:
    """Draws tokens given z by (3), N evaluations of the head.

    Args:
        z: B rows with text, and with guidance B rows without behind them.
        noise, step_noise: standard normal; the second only for a process that adds noise.
        steps: those of the N evaluations (`solver_timesteps`).
        prior: the tokens' linear prior, for a model that has one.
    """
    process = model.process
    # The part of the head that depends on z alone is the same in all evaluations.
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
        drawn = jax.lax.scan(head_step, state, (steps, injected))[0].x
    return complete(model, drawn, z, guidance, prior)


@functools.partial(jax.jit, static_argnames=("config", "grid"))
def _predict(
    model: VideoMAR,
    tokens: Tokens,
    hidden: TokenMask,
    number: Array,
    context: Context,
    *,
    config: SamplingConfig,
    grid: tuple[int, int],
    scale: PositionScale | None,
) -> Float[Array, "B S D"]:
    """z of frame `number`, from one pass over all frames."""
    frames = jnp.arange(tokens.shape[1])
    # Earlier frames are clean: this matters to a model that was trained with noise in them.
    x = model.embed(tokens, hidden, context, earlier=(frames < number)[None])
    x = add_hint(model, x, hidden, tokens[:, :-1], grid, context)
    if model.config.rope_frame_origin != "absolute":
        frames = jnp.zeros_like(frames)
    attention_fn = functools.partial(_attention, model=model, config=config, scale=scale)
    return model.transformer(x, context, model.rotary(frames, grid, scale), attention_fn)[:, number]


def visible_frames(number: int, config: SamplingConfig) -> list[int]:
    """The earlier frames that frame `number` sees: all, or those that the window leaves."""
    frames = list(range(number))
    if config.window is not None:
        frames = frames[-config.window :]
    # The oldest frame of the window makes room for frame 0.
    if config.keep_first and frames:
        frames[0] = 0
    return frames


def _attention(q, k, v, *, model: VideoMAR, config: SamplingConfig, scale: PositionScale | None):
    """Each frame attends to its visible frames and to itself; q, k, v are [B, T, S, n, d]."""
    channels, base = model.config.rope_channels, model.config.rope_base
    absolute = model.config.rope_frame_origin == "absolute"
    shifted = absolute and config.keep_first and config.first_frame_position == "shifted"
    attended = []
    for number in range(q.shape[1]):
        frames = jnp.asarray([*visible_frames(number, config), number])
        keys = k[:, frames]
        behind = number - (config.window or number)
        if shifted and behind > 0:
            # A kept frame 0 is turned forward in time, to stand right behind the window.
            shift = rotary_embedding(jnp.array([[[behind, 0, 0]]]), channels, base, scale)
            keys = keys.at[:, 0].set(rotate(keys[:, :1], shift, channels)[:, 0])
        keys, values = join_frames(keys), join_frames(v[:, frames])
        attended.append(attend(q[:, number], keys, values, kernel="xla"))
    return jnp.stack(attended, axis=1)

"""Generation as it is told, to hold the package against: no cache, no scan, no padding, both
branches always run.

Every reveal step is one pass over all frames (later ones are there, but no earlier frame sees
them); the head draws all tokens of the frame, and the chosen ones are kept.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.helpers.tiny_model import GRID, tiny_text
from videomar_jax.diffusion.base import guide
from videomar_jax.models import attention
from videomar_jax.models.patchify import patchify, unpatchify
from videomar_jax.sampling.draws import draw_frame
from videomar_jax.sampling.schedules import mask_lengths, temperatures


def seen_frames(frames, window=None, keep_first=False):
    """For each frame, those that it sees: all before it and itself, or what the window leaves of
    them."""
    seen = []
    for t in range(frames):
        before = list(range(t))
        if window is not None and t > window:
            before = [0, *before[t - window + 1 :]] if keep_first else before[t - window :]
        seen.append((*before, t))
    return tuple(seen)


def windowed(q, k, v, *, seen, kernel="xla"):
    """Frame t attends to the tokens of the frames `seen[t]`."""
    pick = lambda x, t: attention.flat(x[:, list(seen[t])])  # noqa: E731
    return jnp.stack(
        [
            attention.attend(q[:, t], pick(k, t), pick(v, t), kernel=kernel)
            for t in range(len(seen))
        ],
        1,
    )


@functools.partial(jax.jit, static_argnames=("seen", "scale"))
def z_of(model, tokens, mask, dropped, seen, scale=None):
    text, text_mask = tiny_text(len(tokens))
    context = model.context(text, text_mask, jnp.full(len(tokens), dropped))
    turns = model.rotation(tokens.shape[1], GRID, scale)
    x = model.embed(tokens, mask, context)
    return model.transformer(
        x, context.tokens, context.mask, turns, functools.partial(windowed, seen=seen)
    )[0]


@functools.partial(jax.jit, static_argnames=("steps", "heun"))
def denoised(model, z, null_z, noise, step_noise, guidance, temperature, steps, heun=False):
    """New values for all tokens of a frame, one head step after the other."""
    process = model.process
    plan, x = process.timesteps(steps), process.init_noise(noise, temperature)
    for i in range(len(plan.time)):
        now = jax.tree.map(lambda table, i=i: table[i], plan)
        injected = step_noise[i] if process.stochastic else None
        outputs = [model.head(x, now.time, each) for each in (z, null_z)]
        moved = process.step(x, *outputs, now, injected, guidance, temperature)
        if heun:
            size = now.size
            after = guide(
                *(model.head(moved, now.time - size, each) for each in (z, null_z)), guidance
            )
            moved = x + size / 2 * (guide(*outputs, guidance) + after)
        x = moved
    return x


def plain_loop(model, given, config, num_frames, all_draws, head_steps=None, scale=None):
    """The whole video; `head_steps` names the head's steps at each reveal step, where they
    differ."""
    tokens = np.array(patchify(given, model.config.patch_size))
    num_given, (batch, _, count, width) = given.shape[1], tokens.shape
    generated = num_frames - num_given
    tokens = np.concatenate(
        [tokens, np.zeros((batch, generated, count, width), np.float32)], axis=1
    )
    lengths, rows = mask_lengths(count, config.steps), np.arange(batch)[:, None]
    seen = seen_frames(num_frames, config.window, config.keep_first)
    head_steps = head_steps or [config.head_steps] * len(lengths)
    for index, frame in enumerate(range(num_given, num_frames)):
        draws, hidden = all_draws[index], np.zeros(tokens.shape[:3], bool)
        hidden[:, frame] = True
        for step, length in enumerate(lengths):
            now = (jnp.asarray(tokens), jnp.asarray(hidden))
            z, null_z = (
                z_of(model, *now, dropped, seen, scale)[:, frame] for dropped in (False, True)
            )
            guidance = config.guidance
            if config.guidance_schedule == "linear":
                guidance = 1 + (config.guidance - 1) * (count - length) / count
            first, last = config.guidance_interval
            guidance = guidance if first <= step / len(lengths) < last else 1.0
            temperature = temperatures(generated, config)[index]
            new = denoised(
                model,
                z,
                null_z,
                draws.noise,
                draws.step_noise,
                jnp.float32(guidance),
                jnp.asarray(temperature),
                head_steps[step],
                config.head_solver == "heun",
            )
            left = 0 if step == len(lengths) - 1 else length
            shown = np.array(hidden[:, frame])
            shown[rows, np.asarray(draws.order)[:, count - left :]] = False
            new = (
                np.clip(new, -config.latent_clip, config.latent_clip)
                if config.latent_clip and index
                else np.asarray(new)
            )
            tokens[:, frame][shown] = new[shown]
            hidden[:, frame] &= ~shown
        assert not hidden.any()
    return unpatchify(jnp.asarray(tokens), GRID, model.config.patch_size)


def frame_draws(model, keys, num_given, num_frames, head_steps):
    """The draws of every generated frame; `head_steps` is the largest number of them."""
    noisy = len(model.process.timesteps(head_steps).time) if model.process.stochastic else 0
    count = GRID[0] * GRID[1]
    numbers = range(num_given, num_frames)
    return [draw_frame(keys, jnp.asarray(n), count, model.config.token_dim, noisy) for n in numbers]

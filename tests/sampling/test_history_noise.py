"""`sampling.history_noise`: generated frames as later ones see them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tiny_model import GRID, tiny_model, tiny_text
from tests.helpers.tiny_video import given_latents, sample_keys
from videomar_jax.checks import UserError
from videomar_jax.models.incremental import (
    VisibleCache,
    commit_frame,
    empty_cache,
    frame_rotary,
    predict_frame,
    with_keys_values,
)
from videomar_jax.models.patchify import patchify, unpatchify
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.decoder import compiled_frame
from videomar_jax.sampling.draws import draw_frame
from videomar_jax.sampling.generate import generate
from videomar_jax.sampling.reference import reference

COUNT, BATCH, LEVEL = GRID[0] * GRID[1], 2, 0.4
CONFIG = SamplingConfig(steps=2, head_steps="2", guidance=1.0, latent_clip=0.0)
NOISY = dataclasses.replace(CONFIG, history_noise=LEVEL)


def make(model, given, num_frames=3, config=NOISY, **options):
    return generate(
        model,
        given,
        *tiny_text(),
        num_frames=num_frames,
        config=config,
        keys=sample_keys(),
        **options,
    )


def noise_before_frame_two() -> np.ndarray:
    draws = draw_frame(sample_keys(), jnp.asarray(2), COUNT, 3, 0, history_noise=True)
    return np.asarray(draws.history_noise)


def test_the_other_draws_are_the_same_with_it():
    plain = draw_frame(sample_keys(), jnp.asarray(2), COUNT, 3, 1)
    noisy = draw_frame(sample_keys(), jnp.asarray(2), COUNT, 3, 1, history_noise=True)
    for name in ("order", "noise", "step_noise"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(noisy, name), err_msg=name)
    assert plain.history_noise is None
    others = [plain.noise, plain.step_noise[0], noise_before_frame_two()]
    for a in range(3):
        for b in range(a):
            assert abs(np.corrcoef(np.ravel(others[a]), np.ravel(others[b]))[0, 1]) < 0.5


def test_given_frames_are_seen_as_they_are():
    model = tiny_model()
    np.testing.assert_array_equal(
        make(model, given_latents(), 2), make(model, given_latents(), 2, CONFIG)
    )


def test_the_next_frame_continues_the_noised_one():
    """Noised by hand and given, frame 1 has the same successor."""
    model = tiny_model()
    video = np.asarray(make(model, given_latents()))
    noise = np.asarray(unpatchify(jnp.asarray(noise_before_frame_two())[:, None], GRID))
    seen = video[:, :2].copy()
    seen[:, 1:] = (1 - LEVEL) * video[:, 1:2] + LEVEL * noise
    by_hand = make(model, jnp.asarray(seen), config=CONFIG)
    np.testing.assert_allclose(video[:, 2], by_hand[:, 2], atol=2e-5)
    # What comes out is the frame without the noise.
    np.testing.assert_array_equal(video[:, 1], make(model, given_latents(), config=CONFIG)[:, 1])


def test_the_noise_has_the_size_of_what_a_linear_prior_leaves_over():
    model = tiny_model(linear_prior=True)
    spread = np.asarray(model.linear_prior.spread[...])
    video = np.asarray(make(model, given_latents()))
    noise = np.asarray(unpatchify(jnp.asarray(spread * noise_before_frame_two())[:, None], GRID))
    seen = video[:, :2].copy()
    seen[:, 1:] += LEVEL * noise
    by_hand = make(model, jnp.asarray(seen), config=CONFIG)
    np.testing.assert_allclose(video[:, 2], by_hand[:, 2], atol=2e-5)


def test_the_model_is_told_which_frames_are_noised():
    model = tiny_model(history_levels=True)
    video, trace = make(model, given_latents(), trace=True)
    tokens = patchify(video, 1)
    seen = (1 - LEVEL) * tokens[:, 1] + LEVEL * noise_before_frame_two()
    context = with_keys_values(model, model.context(*tiny_text()))
    cache = empty_cache(model, BATCH, 2, COUNT)
    for number, frame, level in ((0, tokens[:, 0], 0.0), (1, seen, LEVEL)):
        cache = commit_frame(
            model,
            frame,
            jnp.asarray(number),
            context,
            cache,
            GRID,
            noise_level=jnp.full(BATCH, level),
        )
    hidden = jnp.ones((BATCH, COUNT), bool)
    rotary = frame_rotary(model, 2, GRID)
    z = predict_frame(model, tokens[:, 2], hidden, rotary, context, VisibleCache(cache))
    np.testing.assert_allclose(trace.z[1, 0], z, atol=2e-4)


def test_guidance_sees_the_same_noise_in_both_branches():
    """One part in 10^9 above one runs both branches, and is one in float32."""
    model = tiny_model(history_levels=True)
    guided = dataclasses.replace(NOISY, guidance=1 + 1e-9)
    np.testing.assert_allclose(
        make(model, given_latents(), config=guided), make(model, given_latents()), atol=1e-3
    )


def test_what_cannot_be_done_with_it_is_said(caplog):
    draws = jax.tree.map(
        lambda *frames: jnp.stack(frames),
        *[draw_frame(sample_keys(), jnp.asarray(number), COUNT, 3, 0) for number in (1, 2)],
    )
    with pytest.raises(UserError, match="needs draws with history_noise"):
        generate(
            tiny_model(), given_latents(), *tiny_text(), num_frames=3, config=NOISY, draws=draws
        )
    with pytest.raises(UserError, match="reference has no history_noise"):
        reference(
            tiny_model(),
            given_latents(),
            *tiny_text(),
            sample_keys(),
            num_frames=3,
            config=NOISY,
        )
    make(tiny_model(), given_latents(), 2)
    assert "not trained to be told of noise" in caplog.text


@pytest.mark.parametrize("level", [1.0, -0.1, float("nan")])
def test_a_share_beyond_one_is_refused(level):
    with pytest.raises(UserError, match=r"sampling\.history_noise"):
        SamplingConfig(history_noise=level)


def test_another_share_runs_the_same_program():
    model = tiny_model()
    make(model, given_latents())
    before = compiled_frame._cache_size()
    make(model, given_latents(), config=dataclasses.replace(NOISY, history_noise=0.1))
    assert compiled_frame._cache_size() == before

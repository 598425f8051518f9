"""Longer and larger than training: the ring of kept frames against a list, a window against one
pass over all frames with a mask of that shape, positions against the definitions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import plain_loop
from tests.helpers.tiny_model import GRID, tiny_model, tiny_text
from videomar_jax.models.attention import KVCache
from videomar_jax.models.rope import PositionScale, rotate, rotation
from videomar_jax.sampling import decoder
from videomar_jax.sampling.decoder import SpeedOptions, generate
from videomar_jax.sampling.rope_scaling import (
    cache_length,
    frames_in_slots,
    position_scale,
    shift_first,
    slot_of,
)
from videomar_jax.sampling.schedules import SamplingConfig

CONFIG = SamplingConfig(
    steps=2, head_steps="2", guidance=2.0, latent_clip=0.0, first_frame_position="absolute"
)
FRAMES = 7
FAST = SpeedOptions(apart=True)


def given_latents(frames=1):
    return jax.random.normal(jax.random.key(7), (2, frames, *GRID, 3))


def keys():
    return jax.random.split(jax.random.key(8), 2)


def make(frames=FRAMES, given=None, levers=FAST, scale=None, model=None, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    given = given_latents() if given is None else given
    return generate(
        model or tiny_model(),
        given,
        *tiny_text(),
        num_frames=frames,
        config=config,
        keys=keys(),
        levers=levers,
        scale=scale,
    )


# ---- the ring


@pytest.mark.parametrize("keep_first", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_the_ring_keeps_the_last_frames_and_perhaps_the_first(length, keep_first):
    if length < 1 + keep_first:
        pytest.skip("no room for another frame")
    ring = [-1] * length
    for number in range(14):
        np.testing.assert_array_equal(
            frames_in_slots(jnp.asarray(number), length, keep_first),
            ring,
            err_msg=f"frame {number}",
        )
        ring[int(slot_of(jnp.asarray(number), length, keep_first))] = number
        before = list(range(number + 1))
        kept = (
            {0, *before[number + 2 - length :]}
            if keep_first
            else set(before[max(number + 1 - length, 0) :])
        )
        assert {frame for frame in ring if frame >= 0} == (
            kept if number + 1 > length else set(before)
        )


def test_what_is_kept_does_not_grow():
    window = dataclasses.replace(CONFIG, window=4)
    assert [cache_length(CONFIG, n) for n in (1, 6, 100)] == [1, 6, 100]
    assert [cache_length(window, n) for n in (1, 6, 100)] == [1, 4, 4]


# ---- a window


@pytest.mark.parametrize("keep_first", [False, True])
def test_a_window_equals_one_pass_that_sees_no_frame_outside_it(keep_first):
    config = dataclasses.replace(CONFIG, window=3, keep_first=keep_first)
    draws = plain_loop.frame_draws(tiny_model(), keys(), 1, FRAMES, "2")
    wanted = plain_loop.plain_loop(tiny_model(), given_latents(), config, FRAMES, draws)
    made = {
        name: make(window=3, keep_first=keep_first, levers=levers)
        for name, levers in (("fast", SpeedOptions(apart=True)), ("plain", SpeedOptions.plain()))
    }
    for name, video in made.items():
        np.testing.assert_allclose(video, wanted, atol=1e-3, err_msg=name)
    whole = make()
    np.testing.assert_allclose(made["fast"][:, :4], whole[:, :4], atol=1e-4)
    assert np.abs(made["fast"][:, 5:] - whole[:, 5:]).max() > 1e-2, "the window hides nothing"


def test_a_window_as_long_as_the_video_hides_nothing():
    whole = make(frames=5)
    for window in (4, 9):
        np.testing.assert_allclose(make(frames=5, window=window), whole, atol=1e-4)


def test_a_window_shorter_than_the_given_frames():
    given = make(frames=5)
    config = dataclasses.replace(CONFIG, window=2, keep_first=False)
    draws = plain_loop.frame_draws(tiny_model(), keys(), 5, FRAMES, "2")
    wanted = plain_loop.plain_loop(tiny_model(), given, config, FRAMES, draws)
    np.testing.assert_allclose(make(given=given, window=2, keep_first=False), wanted, atol=1e-3)


def test_memory_and_programs_stay_the_same_for_any_length(monkeypatch):
    """Frame 20 is made by the program and from the cache size of frame 4."""
    seen = []
    original = decoder.one_frame

    def spied(model, decoder, state, settings, draws, scale, program):
        seen.append((state.cache.keys.shape, program.prefix, program.full))
        return original(model, decoder, state, settings, draws, scale, program)

    monkeypatch.setattr(decoder, "one_frame", spied)
    video = make(frames=20, window=3)
    assert np.isfinite(video).all() and len(seen) == 19
    assert len({shape for shape, _, _ in seen}) == 1 and seen[0][0][2] == 3
    assert len(set(seen[3:])) == 1


# ---- the place of a kept first frame


def test_a_first_frame_turned_forward_equals_one_rotated_there():
    config, scale = tiny_model().config, PositionScale(interpolate=(2.0, 1.0, 1.0))
    heads = jax.random.normal(
        jax.random.key(0), (2, 3, 6, 2, 16)
    )  # [B, T, S, n, d] before rotation

    def rotated(frames):
        place = jnp.stack(
            jnp.meshgrid(jnp.asarray(frames), jnp.arange(2), jnp.arange(3), indexing="ij"), -1
        )
        turns = rotation(place.reshape(3, 6, 3), config.rope_channels, config.rope_base, scale)
        return rotate(heads, turns, config.rope_channels)

    cache = KVCache(rotated([0, 8, 9])[None], heads[None])
    moved = shift_first(cache, jnp.asarray(5), config, scale)
    np.testing.assert_allclose(moved.keys[0], rotated([5, 8, 9]), atol=1e-5)
    np.testing.assert_array_equal(moved.values, cache.values)


def test_shifting_begins_when_the_first_frame_falls_behind_the_window():
    absolute, shifted = (
        make(window=3, first_frame_position=way) for way in ("absolute", "shifted")
    )
    np.testing.assert_allclose(shifted[:, :4], absolute[:, :4], atol=1e-4)
    assert np.abs(shifted[:, 4:] - absolute[:, 4:]).max() > 1e-3


def test_a_model_without_frame_numbers_has_nothing_to_shift():
    model = tiny_model(rope_frame_origin="restart")
    absolute, shifted = (
        make(window=3, first_frame_position=way, model=model) for way in ("absolute", "shifted")
    )
    np.testing.assert_array_equal(shifted, absolute)


# ---- scaled positions


def test_no_scaling_asks_for_nothing():
    assert position_scale(CONFIG, (9, 9, 9), None) is None
    with pytest.raises(ValueError, match="need the size the model was trained on"):
        position_scale(dataclasses.replace(CONFIG, spatial_rope_scaling="ntk"), (9, 9, 9), None)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        (dict(spatial_rope_scaling="ntk"), PositionScale(ntk=(1.0, 1.5, 2.0))),
        (dict(spatial_rope_scaling="interpolate"), PositionScale(interpolate=(1.0, 1.5, 2.0))),
        (dict(temporal_rope_scaling="ntk"), PositionScale(ntk=(2.0, 1.0, 1.0))),
        (
            dict(temporal_rope_scaling="interpolate", spatial_rope_scaling="ntk"),
            PositionScale(interpolate=(2.0, 1.0, 1.0), ntk=(1.0, 1.5, 2.0)),
        ),
        (
            dict(temporal_rope_scaling="interpolate", window=5),
            PositionScale(interpolate=(1.2, 1.0, 1.0)),
        ),
    ],
    ids=str,
)
def test_factors_are_how_much_longer_and_larger_than_trained(changes, wanted):
    assert position_scale(dataclasses.replace(CONFIG, **changes), (10, 12, 16), (5, 8, 8)) == wanted


def test_smaller_than_trained_is_not_stretched():
    config = dataclasses.replace(
        CONFIG, spatial_rope_scaling="interpolate", temporal_rope_scaling="ntk"
    )
    assert position_scale(config, (3, 4, 8), (5, 8, 8)) == PositionScale()


def test_the_config_reaches_the_model():
    """`trained` with the config is the explicit scale."""
    config = dataclasses.replace(CONFIG, spatial_rope_scaling="interpolate")
    scaled = generate(
        tiny_model(),
        given_latents(),
        *tiny_text(),
        num_frames=3,
        config=config,
        keys=keys(),
        trained=(3, 1, 2),
    )
    explicit = make(frames=3, scale=PositionScale(interpolate=(1.0, 2.0, 1.5)), levers=None)
    np.testing.assert_array_equal(scaled, explicit)
    assert np.abs(scaled - make(frames=3, levers=None)).max() > 1e-3

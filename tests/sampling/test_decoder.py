"""The ring of cache slots against a list, and how much of it each frame's program sees."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tiny_video import generated
from videomar_jax.sampling import generate as generate_module
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.decoder import cache_length, frames_in_slots, slot_of
from videomar_jax.sampling.speed import SpeedOptions

CONFIG = SamplingConfig(
    steps=2, head_steps="2", guidance=2.0, latent_clip=0.0, first_frame_position="absolute"
)
FAST = SpeedOptions(unstack_layers=True)


@pytest.mark.parametrize("keep_first", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_the_ring_keeps_the_last_frames_and_perhaps_the_first(length, keep_first):
    if length < 1 + keep_first:
        pytest.skip("no room for another frame")
    ring = [-1] * length
    for number in range(14):
        slots = frames_in_slots(jnp.asarray(number), length, keep_first)
        np.testing.assert_array_equal(slots, ring, err_msg=f"frame {number}")
        ring[int(slot_of(jnp.asarray(number), length, keep_first))] = number
        stored = {frame for frame in ring if frame >= 0}
        done = list(range(number + 1))
        if len(done) <= length:
            assert stored == set(done), number
        elif keep_first:
            assert stored == {0, *done[number + 2 - length :]}, number
        else:
            assert stored == set(done[number + 1 - length :]), number


def test_what_is_kept_does_not_grow():
    window = dataclasses.replace(CONFIG, window=4)
    assert [cache_length(CONFIG, n) for n in (1, 6, 100)] == [1, 6, 100]
    assert [cache_length(window, n) for n in (1, 6, 100)] == [1, 4, 4]


def test_a_window_hides_what_lies_behind_it_and_nothing_else():
    whole = generated(CONFIG, num_frames=7)
    config = dataclasses.replace(CONFIG, window=3)
    video = generated(config, num_frames=7)
    np.testing.assert_allclose(video[:, :4], whole[:, :4], atol=1e-4)
    assert np.abs(video[:, 5:] - whole[:, 5:]).max() > 1e-2, "the window hides nothing"


def test_a_window_as_long_as_the_video_hides_nothing():
    whole = generated(CONFIG, num_frames=5)
    for window in (4, 9):
        config = dataclasses.replace(CONFIG, window=window)
        video = generated(config, num_frames=5)
        np.testing.assert_allclose(video, whole, atol=1e-4)


def test_memory_and_programs_stay_the_same_for_any_length(monkeypatch):
    """Frame 20 is made by the program and from the cache size of frame 4."""
    seen = []
    original = generate_module.compiled_frame

    def spied(model, shared, state, settings, draws, static):
        seen.append((state.cache.keys.shape, static))
        return original(model, shared, state, settings, draws, static)

    monkeypatch.setattr(generate_module, "compiled_frame", spied)
    config = dataclasses.replace(CONFIG, window=3)
    video = generated(config, num_frames=20, speed=FAST)
    assert np.isfinite(video).all() and len(seen) == 19
    assert len({shape for shape, _ in seen}) == 1 and seen[0][0][2] == 3
    assert len(set(seen[3:])) == 1

"""What stands still keeps the detail that the tokenizer loses."""

import jax.numpy as jnp
import numpy as np
import pytest

from videomar_jax.inference.pipeline import VideoMARPipeline
from videomar_jax.inference.still_detail import still_picture, with_still_detail
from videomar_jax.tokenizers import to_pixels, to_video
from videomar_jax.tokenizers.pca import PCATokenizer

SIDE = 16


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    """Two clips of noise, uint8 [2, 5, 16, 16, 3]: no tokenizer keeps their detail."""
    return np.random.default_rng(0).integers(60, 200, (2, 5, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tokenizer(clip) -> PCATokenizer:
    return PCATokenizer.fit(clip, patch=4, temporal_stride=2, channels=8)


def test_a_still_clip_becomes_the_picture_itself(tokenizer, clip):
    picture = clip[:, :1]
    still = still_picture(tokenizer, picture)
    assert float(jnp.abs(still.lost).max()) > 0.1, "the tokenizer loses nothing here"
    shown = to_video(with_still_detail(still.decoded, still))
    np.testing.assert_array_equal(shown, np.repeat(picture, 2, axis=1))


def test_what_has_changed_is_left_alone(tokenizer, clip):
    still = still_picture(tokenizer, clip[:, :1])
    moved = still.decoded.at[:, :, :8, :, 1].add(60 / 127.5)
    shown = with_still_detail(moved, still)
    np.testing.assert_allclose(shown[:, :, :8], moved[:, :, :8], atol=1e-6)
    np.testing.assert_allclose(
        shown[:, :, 8:], np.repeat(to_pixels(clip[:, :1]), 2, axis=1)[:, :, 8:], atol=1e-6
    )


def test_a_change_that_is_just_visible_gets_a_third_of_it(tokenizer, clip):
    still = still_picture(tokenizer, clip[:, :1])
    moved = still.decoded.at[..., 2].add(10 / 127.5)
    added = with_still_detail(moved, still) - moved
    np.testing.assert_allclose(added, still.lost * np.exp(-1), atol=1e-5)


@pytest.mark.parametrize("given", [1, 3])
def test_videos_show_it(finished, given):
    """The last given frame is the one that may stand still."""
    pipe = VideoMARPipeline.from_checkpoint(finished)
    size = (given, pipe.bundle.height, pipe.bundle.width, 3)
    clip = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8)
    picture = clip[-1]
    plain = pipe(clip, "a red circle moves left")
    shown = pipe(clip, "a red circle moves left", still_detail=True)
    np.testing.assert_array_equal(plain.latents, shown.latents)
    decoded = pipe.bundle.tokenizer.decode(jnp.asarray(plain.latents)[None])
    decoded = np.asarray(decoded)[0, given:]
    twice = np.stack([picture] * (1 + pipe.bundle.tokenizer.temporal_stride))
    still = pipe.bundle.tokenizer.encode(to_pixels(twice[None]))
    still = np.asarray(pipe.bundle.tokenizer.decode(still))[0, 1:]
    for number, frame in enumerate(decoded):
        own = still[number % len(still)]
        error = np.abs(frame - own).max(-1, keepdims=True) * 127.5
        lost = picture / 127.5 - 1 - own
        expected = frame + lost * np.exp(-((error / 10) ** 2))
        grey = np.clip(127.5 * (expected + 1), 0, 255)
        np.testing.assert_allclose(shown.frames[given + number], grey, atol=0.51)
    assert (plain.frames[given:] != shown.frames[given:]).any()

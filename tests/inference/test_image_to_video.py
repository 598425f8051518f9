"""Pixels in, pixels out: given frames come back untouched, and a sample depends on nothing but its
own request."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tiny_model import SIZES, annotations_off, tiny_model
from videomar_jax.checks import UserError
from videomar_jax.inference import stream
from videomar_jax.inference.image_to_video import image_to_video
from videomar_jax.inference.stream import VideoSampler
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.generate import generate
from videomar_jax.text_encoders import HashedTextEncoder
from videomar_jax.tokenizers import PCATokenizer, to_pixels, to_video

CONFIG = SamplingConfig(steps=2, head_steps="2", guidance=2.0, latent_clip=0.0)
TEXT = HashedTextEncoder(SIZES["text_tokens"], SIZES["text_width"])
PROMPTS = ["red moves left", "nothing", "up", "a dog", ""]


@functools.cache
def tokenizer():
    clips = np.random.default_rng(0).integers(0, 256, (4, 5, 8, 12, 3), dtype=np.uint8)
    return PCATokenizer.fit(
        clips, patch=4, temporal_stride=2, channels=SIZES["latent_channels"], whitening=1.0
    )


def clips(count, frames=1, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, frames, 8, 12, 3), dtype=np.uint8)


def make(given, prompts, seeds, num_frames=5):
    return image_to_video(
        tiny_model(),
        tokenizer(),
        TEXT,
        given,
        prompts,
        num_frames=num_frames,
        config=CONFIG,
        seeds=seeds,
    )


def assert_close(ours, theirs):
    """Equal but for a value that falls on the other side of a rounding edge."""
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3, (
        f"differ by up to {difference.max()}"
    )


def test_given_images_come_back_untouched_and_the_rest_is_new():
    given = clips(2)
    video = make(given, PROMPTS[:2], [0, 1])
    assert video.shape == (2, 5, 8, 12, 3) and video.dtype == np.uint8
    np.testing.assert_array_equal(video[:, :1], given)
    shown = np.asarray(to_video(tokenizer().decode(tokenizer().encode(to_pixels(given)))))
    assert (shown != given).any(), "the tokenizer loses nothing here, so the test would not notice"
    assert (video[:, 1:] != given).mean() > 0.5


def test_given_clips_are_continued():
    """1 + 2 k given frames come back, and the new ones depend on all of them."""
    given = clips(2, frames=3)
    video = make(given, PROMPTS[:2], [0, 1])
    assert video.shape[1] == 5
    np.testing.assert_array_equal(video[:, :3], given)
    from_image = make(given[:, :1], PROMPTS[:2], [0, 1])
    assert (video[:, 3:] != from_image[:, 3:]).any(), "the second and third given frame have no say"
    with pytest.raises(ValueError, match="2 frames are not 1 \\+ 2"):
        make(given[:, :2], PROMPTS[:2], [0, 1])


def test_it_is_tokenizer_text_and_generate():
    given, seeds = clips(2), [7, 8]
    latents = tokenizer().encode(to_pixels(given))
    text, mask = TEXT.encode(PROMPTS[:2])
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    drawn = generate(
        tiny_model(),
        latents,
        jnp.asarray(text),
        jnp.asarray(mask),
        num_frames=3,
        config=CONFIG,
        keys=keys,
    )
    wanted = np.asarray(to_video(tokenizer().decode(drawn)))
    assert_close(make(given, PROMPTS[:2], seeds)[:, 1:], wanted[:, 1:])


def sampler(batch_size=2):
    return VideoSampler(
        model=tiny_model(),
        tokenizer=tokenizer(),
        text_encoder=TEXT,
        config=CONFIG,
        batch_size=batch_size,
    )


def test_latents_of_a_sample_alone_and_in_a_batch_agree():
    """To 1e-5, before rounding to grey levels."""
    given = clips(2)
    both = sampler().stream(given, PROMPTS[:2], [5, 6], 5).finish().latents
    alone = sampler().stream(given[1:], PROMPTS[1:2], [6], 5).finish().latents
    np.testing.assert_allclose(both[1:], alone, atol=1e-5)
    assert np.abs(both[0] - both[1]).max() > 0.1


def test_seed_and_prompt_matter():
    given = np.repeat(clips(1), 2, axis=0)
    first, other_seed = make(given, ["left", "left"], [3, 4])
    again, other_prompt = make(given, ["left", "right"], [3, 3])
    assert (first != other_seed).any() and (first != other_prompt).any()
    np.testing.assert_array_equal(first, again)


def test_sampler_makes_any_number_in_batches_of_one_size():
    given, seeds = clips(5), [3, 1, 4, 1, 5]
    batches = []
    stream = VideoSampler.stream

    def counted(self, given, *args):
        batches.append(len(given))
        return stream(self, given, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoSampler, "stream", counted)
        videos = sampler()(given, PROMPTS, 5, seeds)
    assert batches == [2, 2, 2], "the short last batch is to be filled up, not compiled anew"
    assert videos.shape == (5, 5, 8, 12, 3)
    for i in range(5):
        assert_close(videos[i], make(given[i : i + 1], PROMPTS[i : i + 1], seeds[i : i + 1])[0])


def test_sampler_of_larger_batches_than_samples_and_default_seeds():
    given = clips(1)
    assert_close(sampler()(given, PROMPTS[:1], 5), make(given, PROMPTS[:1], [0]))


def test_reconstruct_is_encode_and_decode_of_every_clip():
    video = clips(3, frames=5)
    wanted = np.asarray(to_video(tokenizer().decode(tokenizer().encode(to_pixels(video)))))
    assert_close(sampler().reconstruct(video), wanted)


@pytest.mark.parametrize(
    ("given", "prompts", "seeds", "frames", "words"),
    [
        (clips(2), ["one"], [0, 1], 5, "2 images, 1 prompts and 2 seeds"),
        (clips(1), ["one"], [0, 1], 5, "1 images, 1 prompts and 2 seeds"),
        (clips(1), ["one"], [-1], 5, r"Seeds must lie in 0\.\.2\*\*32 - 1, not -1"),
        (clips(1), ["one"], [2**32], 5, "Seeds must lie"),
        (clips(1), ["one"], [1.5], 5, "seed must be a whole number, not 1.5"),
        (clips(1), ["one"], [0], 4, r"4 frames are not 1 \+ 2 \* k .*nearest: 3 or 5"),
        (clips(1)[:, :, :6], ["one"], [0], 5, "height 6 is not a multiple of the spatial stride 4"),
        (clips(1, frames=5), ["one"], [0], 3, "Cannot make 2 latent frames from 3 given ones"),
    ],
    ids=[
        "prompts",
        "seeds",
        "negative_seed",
        "large_seed",
        "half_seed",
        "frames",
        "size",
        "shorter",
    ],
)
def test_what_cannot_be_made(given, prompts, seeds, frames, words):
    with annotations_off(), pytest.raises(ValueError, match=words):
        make(given, prompts, seeds, num_frames=frames)


def test_a_reconstruction_of_nan_is_an_error_that_names_the_clip(monkeypatch):
    encode = stream._encode

    def spoilt(tokenizer, video):
        latents = encode(tokenizer, video)
        return latents.at[len(latents) - 1, 0, 0, 0, 0].set(jnp.nan)

    monkeypatch.setattr(stream, "_encode", spoilt)
    video = clips(2, 5)
    with pytest.raises(UserError, match="The reconstruction of clip 1 holds NaN or infinity"):
        sampler().reconstruct(video)

import jax
import numpy as np
import pytest

from videomar_jax.data.records import from_record
from videomar_jax.preparation.encoding import LatentEncoder, ShardEncoder
from videomar_jax.preparation.plan import list_videos, make_plan
from videomar_jax.preparation.run import identify
from videomar_jax.tokenizers import CosmosConfig, CosmosTokenizer, to_pixels

SMALL = CosmosConfig(
    temporal_stride=8,
    spatial_stride=16,
    width=32,
    encoder_mults=(1, 1, 1),
    decoder_mults=(1, 1, 1),
    blocks=1,
    z_channels=4,
    latent_channels=4,
    resolution=64,
)


def noise(count, frames=5, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, frames, 16, 24, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("devices", "asked", "size"), [(1, None, 1), (1, 3, 3), (2, 3, 4), (8, None, 8), (8, 9, 16)]
)
def test_any_devices_and_batches_give_the_same_latents(tokenizer, devices, asked, size):
    encoder = LatentEncoder(tokenizer, batch_size=asked, devices=jax.local_devices()[:devices])
    assert encoder.batch_size == size, "a batch is rounded up to whole devices"
    video = noise(16)
    got = np.concatenate(
        [encoder(video[start : start + size]) for start in range(0, 16 - 16 % size, size)]
    )
    wanted = np.asarray(tokenizer.encode(to_pixels(video)))[: len(got)]
    assert got.dtype == np.float32 and len(got) >= 15
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_every_device_takes_its_share(tokenizer):
    encoder = LatentEncoder(tokenizer, batch_size=16)
    latents = encoder._encode(encoder._tokenizer, jax.device_put(noise(16), encoder._split))
    assert {shard.device: len(shard.data) for shard in latents.addressable_shards} == dict.fromkeys(
        jax.local_devices(), 2
    )


def test_cosmos_over_devices():
    tokenizer = CosmosTokenizer.random(SMALL)
    video = np.random.default_rng(1).integers(0, 256, (2, 9, 32, 32, 3), dtype=np.uint8)
    got = LatentEncoder(tokenizer, batch_size=2, devices=jax.local_devices()[:2])(video)
    wanted = jax.jit(lambda t, v: t.encode(to_pixels(v)))(tokenizer, video)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_too_little_memory_names_the_way_out(tokenizer, monkeypatch):
    encoder = LatentEncoder(tokenizer, batch_size=8)

    def failing(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory allocating 1 bytes")

    monkeypatch.setattr(encoder, "_encode", failing)
    with pytest.raises(
        ValueError, match=r"8 clips of 5x16x24 do not fit .* lower --batch_size \(now 8\)"
    ):
        encoder(noise(8))

    def other(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(encoder, "_encode", other)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        encoder(noise(8))


class Counting:
    """A text encoder that pads on the left, marks each caption by its length and counts what it is
    asked."""

    max_tokens, width = 4, 3

    def __init__(self):
        self.asked = []

    def encode(self, captions):
        self.asked.append(list(captions))
        mask = np.array([[False, False, True, True]] * len(captions))
        return np.stack([np.full((4, 3), len(caption), np.float32) for caption in captions]), mask

    def save(self, directory):
        raise AssertionError("nobody asked for it")


def test_captions_are_encoded_once_a_batch_and_kept_without_padding(task, tokenizer):
    this, text = task(), Counting()
    plan = make_plan(
        this.videos, list_videos(this.videos, None), this.settings, identify(tokenizer, None), 2
    )
    encoder = ShardEncoder(this.videos, this.settings, tokenizer, text, batch_size=8, threads=2)
    for shard in plan.shards:
        text.asked.clear()
        made = [(window, from_record(record, "float16")) for window, record in encoder(shard)]
        assert [window for window, _ in made] == list(shard.windows)
        captions = [window.caption for window in shard.windows]
        assert text.asked == [list(dict.fromkeys(captions))]
        for number, (window, clip) in enumerate(made):
            assert clip.caption == window.caption and clip.clip == shard.first_clip + number
            assert clip.text_mask.tolist() == [False, False, True, True]
            np.testing.assert_array_equal(clip.text, np.full((2, 3), len(window.caption)))

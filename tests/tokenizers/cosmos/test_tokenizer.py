"""The Cosmos tokenizer as such: sizes, chunks, streams, memory, files. Small random networks."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tiny_model import annotations_off
from videomar_jax.tokenizers import Tokenizer, fingerprint, latent_shape, load_tokenizer
from videomar_jax.tokenizers.cosmos import layers
from videomar_jax.tokenizers.cosmos.config import CosmosConfig
from videomar_jax.tokenizers.cosmos.tokenizer import CosmosTokenizer, abstract_network

# Attention in the finest level too, so that a cache at twice the latent rate is exercised.
SMALL = CosmosConfig(
    temporal_stride=4,
    spatial_stride=4,
    patch=2,
    width=4,
    encoder_mults=(1, 2),
    decoder_mults=(2, 1),
    blocks=1,
    z_channels=3,
    latent_channels=5,
    resolution=32,
    attention_resolutions=(16,),
    legacy=True,
)
encode, decode = jax.jit(CosmosTokenizer.encode), jax.jit(CosmosTokenizer.decode)


@pytest.fixture(scope="module")
def small():
    """Whole clips at once; every parameter random, so that none can be left out unnoticed."""
    tokenizer = CosmosTokenizer.random(SMALL, chunk=None)
    rng = np.random.default_rng(1)
    jitter = lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape, np.float32)  # noqa: E731
    params = jax.tree.map(jitter, tokenizer.params)
    last = params["decoder"]["conv_out"]["temporal"]
    last.update({name: 0.03 * leaf for name, leaf in last.items()})  # pixels of about unit size
    return dataclasses.replace(tokenizer, params=params)


@pytest.fixture(scope="module")
def clip():
    return np.random.default_rng(2).uniform(-1, 1, (2, 29, 8, 12, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "release, encoder, decoder, total",
    [
        ("CV8x16x16", 45_537_056, 65_361_024, 110_898_624),
        ("nvidia/Cosmos-1.0-Tokenizer-CV8x8x8", 42_914_592, 62_738_560, 105_653_696),
        ("Cosmos-0.1-Tokenizer-CV4x8x8", 30_126_624, 43_064_960, 73_192_128),
        ("Cosmos-Tokenize1-CV4x8x8-360p", 45_343_520, 64_864_752, 110_208_816),
    ],
)
def test_releases_have_the_published_sizes(release, encoder, decoder, total):
    _, params = abstract_network(CosmosConfig.release(release))
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert (count(params["encoder"]), count(params["decoder"]), count(params)) == (
        encoder,
        decoder,
        total,
    )


def test_configurations_that_decode_to_other_sizes_are_refused():
    with pytest.raises(ValueError, match=r"decoder's 2 levels .* make 4 in time, not 8"):
        CosmosConfig(
            temporal_stride=8, spatial_stride=8, encoder_mults=(2, 4), decoder_mults=(2, 4)
        )
    with pytest.raises(ValueError, match=r"spatial_stride = 12 .*power of two"):
        CosmosConfig(temporal_stride=8, spatial_stride=12)
    with pytest.raises(ValueError, match=r"CosmosConfig\.patch must lie in \[1, \d+\], not 0"):
        CosmosConfig(temporal_stride=8, spatial_stride=8, patch=0)
    with pytest.raises(
        ValueError, match="'DV8x16x16' names no continuous Cosmos video tokenizer; known: CV8x16x16"
    ):
        CosmosConfig.release("DV8x16x16")


def test_keeps_the_protocol_and_its_shapes(small, clip):
    assert isinstance(small, Tokenizer)
    latents = encode(small, clip)
    assert (
        latents.shape
        == (2, *latent_shape(small, *clip.shape[1:4]), small.channels)
        == (2, 8, 2, 3, 5)
    )
    assert decode(small, latents).shape == clip.shape


def test_scale_multiplies_latents_and_nothing_else(small, clip, monkeypatch):
    """With a fake network that encodes to one pixel of each block and decodes to its input."""
    last = lambda x: np.arange(0, x.shape[1], small.temporal_stride)  # noqa: E731
    network = SimpleNamespace(
        encode=lambda pixels, past: pixels[:, last(pixels), ::4, ::4],
        decode=lambda latents, past: latents,
    )
    monkeypatch.setattr(CosmosTokenizer, "network", lambda self: network)
    scaled = dataclasses.replace(small, scale=0.7)
    np.testing.assert_allclose(
        scaled.encode(jnp.asarray(clip)), 0.7 * clip[:, ::4, ::4, ::4], rtol=1e-6
    )
    latents = jnp.arange(20.0).reshape(1, 2, 2, 1, 5)
    with annotations_off():  # the network's pixels are latents
        np.testing.assert_allclose(scaled.decode(latents), latents / 0.7, rtol=1e-6)


@pytest.mark.parametrize(
    "chunk", [1, 3]
)  # eight latent frames: 1 and seven times 1, or 2 and twice 3
def test_chunks_equal_the_whole(small, clip, chunk):
    chunked = dataclasses.replace(small, chunk=chunk)
    latents = encode(small, clip)
    np.testing.assert_allclose(encode(chunked, clip), latents, atol=1e-5, rtol=0)
    np.testing.assert_allclose(decode(chunked, latents), decode(small, latents), atol=1e-5, rtol=0)


def test_streams_equal_the_whole_and_come_as_they_are_asked_for(small, clip):
    latents, asked = encode(small, clip), []

    def frames():
        for t in range(latents.shape[1]):
            asked.append(t)
            yield latents[:, t : t + 1]

    pixels = small.decode_stream(frames(), max_frames=9)
    first, second = next(pixels), next(pixels)
    assert asked == [0, 1] and first.shape[1] == 1 and second.shape[1] == small.temporal_stride
    out = np.concatenate([first, second, *pixels], axis=1)
    np.testing.assert_allclose(out, decode(small, latents), atol=1e-5, rtol=0)

    pieces = [clip[:, :5], clip[:, 5:9], clip[:, 9:]]
    got = list(small.encode_stream(pieces, max_frames=8))
    assert [part.shape[1] for part in got] == [2, 1, 5]
    np.testing.assert_allclose(np.concatenate(got, axis=1), latents, atol=1e-5, rtol=0)


def test_streams_refuse_what_does_not_fit(small, clip):
    with pytest.raises(ValueError, match="frames are not 1 \\+ 4 \\* k"):
        next(small.encode_stream([clip[:, :4]], max_frames=3))
    with pytest.raises(ValueError, match="2 latent frames were given, but max_frames is 1"):
        next(small.encode_stream([clip[:, :5]], max_frames=1))
    with pytest.raises(ValueError, match="do not end in 5 channels"):
        small.decode(jnp.zeros((1, 1, 2, 2, 4)))


def test_a_frame_never_depends_on_a_later_one(small, clip):
    """Pixel frames after stride * t do not move latent frame t by a bit, that frame itself does;
    decoding likewise."""
    latents, later, last = encode(small, clip), clip.copy(), clip.copy()
    later[:, 9:] = -clip[:, 9:]
    last[:, 8] = -clip[:, 8]
    np.testing.assert_array_equal(encode(small, later)[:, :3], latents[:, :3])
    assert np.abs(encode(small, last)[:, 2] - latents[:, 2]).max() > 1e-3

    pixels = decode(small, latents)
    np.testing.assert_array_equal(decode(small, latents.at[:, 3:].set(7.0))[:, :9], pixels[:, :9])
    assert np.abs(decode(small, latents.at[:, 2].set(7.0))[:, 5:9] - pixels[:, 5:9]).max() > 1e-3


def test_blocks_of_queries_change_no_number(monkeypatch):
    attention, rng = layers.SpatialAttention(6), np.random.default_rng(3)
    for part in (attention.q, attention.k, attention.v, attention.proj_out):
        part.kernel[...] = jnp.asarray(rng.standard_normal((6, 6), np.float32))
    x = jnp.asarray(rng.standard_normal((2, 3, 4, 6, 6), np.float32))
    whole = jax.jit(lambda x: attention(x))(x)
    assert np.abs(whole - x).max() > 0.1
    monkeypatch.setattr(layers, "QUERY_BLOCK", 7)  # 24 positions: blocks that do not divide them
    np.testing.assert_allclose(jax.jit(lambda x: attention(x))(x), whole, atol=1e-6, rtol=0)


def test_memory_does_not_grow_with_the_clip():
    """Planned by the compiler, nothing is run: what a decode needs besides weights, input and
    output."""
    config = dataclasses.replace(SMALL, attention_resolutions=())
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), abstract_network(config)[1])

    def needed(frames, chunk):
        tokenizer = CosmosTokenizer(params=params, config=config, chunk=chunk)
        latents = jax.ShapeDtypeStruct((1, 1 + (frames - 1) // 4, 16, 16, 5), jnp.float32)
        return decode.lower(tokenizer, latents).compile().memory_analysis().temp_size_in_bytes

    assert needed(121, 2) <= 1.5 * needed(25, 2)
    # The measurement would notice a clip that is kept in memory as a whole.
    assert needed(121, None) > 2.5 * needed(25, None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_tokenizers_come_back(small, clip, tmp_path, dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), small.params)
    tokenizer = dataclasses.replace(small, params=params, dtype=dtype, scale=0.7, chunk=3)
    tokenizer.save(tmp_path)
    back = load_tokenizer(tmp_path)
    assert (back.config, back.scale, back.dtype, back.chunk) == (SMALL, 0.7, dtype, 3)
    assert jax.tree.structure(back) == jax.tree.structure(tokenizer)
    for a, b in zip(jax.tree.leaves(tokenizer), jax.tree.leaves(back), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert (
        fingerprint(back)
        == fingerprint(tokenizer)
        != fingerprint(dataclasses.replace(tokenizer, scale=0.5))
    )


def test_bfloat16_stays_near_float32(small, clip):
    latents = encode(small, clip)
    rough = encode(dataclasses.replace(small, dtype="bfloat16"), clip)
    assert rough.dtype == jnp.float32
    assert np.sqrt(np.mean(np.square(rough - latents))) < 0.05 * np.std(latents)


@pytest.mark.parametrize("settings", [{"dtype": "float16"}, {"scale": 0.0}, {"chunk": 0}])
def test_wrong_settings_are_named(small, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        dataclasses.replace(small, **settings)

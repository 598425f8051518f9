"""The PCA tokenizer against an independent SVD, and as a tokenizer: causal, jittable, saved and
loaded bitwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tiny_model import annotations_off
from videomar_jax.checks import UserError
from videomar_jax.tokenizers import PCATokenizer, Tokenizer, latent_shape, load_tokenizer, to_pixels

# patch, temporal stride, channels, kind of patches; the last two have more channels than frame 0
# has values.
SETTINGS = [
    (4, 2, 16, "plain"),
    (2, 3, 5, "plain"),
    (4, 4, 10, "haar"),
    (2, 2, 20, "plain"),
    (2, 2, 20, "haar"),
]


encode = jax.jit(lambda tokenizer, pixels: tokenizer.encode(pixels))
decode = jax.jit(lambda tokenizer, latents: tokenizer.decode(latents))


def make_clips(count=6, frames=13, size=16, seed=0):
    """Smooth random videos: patches with a steep spectrum, no two eigenvalues alike."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, frames, size, size, 3)) @ np.array(
        [[1, 0.3, 0.2], [0, 1, 0.4], [0, 0, 1]]
    )
    for axis, weight in ((1, 0.8), (2, 0.6), (3, 0.7)):
        noise = noise + weight * np.roll(noise, 1, axis)
    return np.clip(128 + 25 * noise, 0, 255).astype(np.uint8)


def fit(setting, clips=None, **changes):
    names = ("patch", "temporal_stride", "channels", "patches")
    return PCATokenizer.fit(
        make_clips() if clips is None else clips,
        **(dict(zip(names, setting, strict=True)) | changes),
    )


def flat_patches(clips, patch, stride):
    """Rows of (frame 0 patches, later patches) in [-1, 1], cut by loops over the corners."""
    x = clips.astype(np.float64) / 127.5 - 1
    rows, columns = range(0, x.shape[2], patch), range(0, x.shape[3], patch)

    def cut(starts, length):
        blocks = [
            x[:, t : t + length, r : r + patch, c : c + patch]
            for t in starts
            for r in rows
            for c in columns
        ]
        return np.concatenate([block.reshape(len(x), -1) for block in blocks])

    return cut([0], 1), cut(range(1, x.shape[1], stride), stride)


def decode_of_encode(tokenizer, clips):
    return np.asarray(decode(tokenizer, encode(tokenizer, to_pixels(clips))))


@pytest.mark.parametrize("setting", SETTINGS)
def test_shapes_and_protocol(setting):
    patch, stride, channels, _ = setting
    tokenizer = fit(setting)
    assert isinstance(tokenizer, Tokenizer)
    assert (tokenizer.temporal_stride, tokenizer.spatial_stride, tokenizer.channels) == (
        stride,
        patch,
        channels,
    )
    pixels = to_pixels(make_clips(seed=1))
    latents = encode(tokenizer, pixels)
    assert (
        latents.shape == (6, *latent_shape(tokenizer, 13, 16, 16), channels)
        and latents.dtype == jnp.float32
    )
    again = decode(tokenizer, latents)
    assert again.shape == pixels.shape and again.dtype == jnp.float32
    image = pixels[:, :1]
    np.testing.assert_allclose(encode(tokenizer, image), latents[:, :1], atol=1e-6)
    np.testing.assert_allclose(decode(tokenizer, latents[:, :1]), again[:, :1], atol=1e-6)


@pytest.mark.parametrize("setting", SETTINGS)
def test_error_is_that_of_the_best_affine_map_of_rank_c(setting):
    """Independent: singular values of the centred patch matrix, cut by loops, give the least
    possible error."""
    patch, stride, channels, _ = setting
    clips = make_clips()
    error = decode_of_encode(fit(setting), clips) - np.asarray(to_pixels(clips))
    for part, rows in zip(
        (error[:, :1], error[:, 1:]), flat_patches(clips, patch, stride), strict=True
    ):
        left = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)[channels:]
        np.testing.assert_allclose(
            (part.astype(np.float64) ** 2).sum(), (left**2).sum(), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("setting", SETTINGS[:2])
def test_reconstruction_of_other_clips_is_the_projection(setting):
    patch, stride, channels, _ = setting
    fitted, other = make_clips(), make_clips(count=1, seed=7)
    got = flat_patches((decode_of_encode(fit(setting), other) + 1) * 127.5, patch, stride)
    for rows, new, result in zip(
        *(flat_patches(x, patch, stride) for x in (fitted, other)), got, strict=True
    ):
        mean = rows.mean(axis=0)
        basis = np.linalg.svd(rows - mean, full_matrices=False)[2][:channels]
        np.testing.assert_allclose(result, mean + (new - mean) @ basis.T @ basis, atol=2e-6)


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_channel_spread_lies_between_pca_and_whitening(whitening):
    patch, stride, channels = 4, 2, 8
    clips = make_clips()
    tokenizer = fit((patch, stride, channels, "plain"), clips, whitening=whitening)
    latents = np.asarray(encode(tokenizer, to_pixels(clips)))
    for part, rows in zip(
        (latents[:, :1], latents[:, 1:]), flat_patches(clips, patch, stride), strict=True
    ):
        std = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)[:channels] / np.sqrt(
            len(rows)
        )
        expected = (std / np.sqrt((std**2).mean())) ** (1 - whitening)
        np.testing.assert_allclose(part.reshape(-1, channels).std(axis=0), expected, rtol=1e-4)
        np.testing.assert_allclose(part.reshape(-1, channels).mean(axis=0), 0, atol=1e-5)


@pytest.mark.parametrize("setting", SETTINGS)
def test_encode_undoes_decode(setting):
    patch, _, channels, _ = setting
    tokenizer = fit(setting)
    latents = np.random.default_rng(3).normal(size=(2, 4, 3, 5, channels)).astype(np.float32)
    latents[:, 0, ..., 3 * patch**2 :] = 0  # frame 0 has no more values than that
    again = encode(tokenizer, decode(tokenizer, jnp.asarray(latents)))
    np.testing.assert_allclose(again, latents, atol=2e-5)


@pytest.mark.parametrize("patches", ["plain", "haar"])
def test_spare_channels_of_frame_0_are_zero_ignored_and_cost_nothing(patches):
    tokenizer, clips = fit((2, 2, 24, patches)), make_clips(seed=5)
    latents = encode(tokenizer, to_pixels(clips))
    assert not np.any(latents[:, 0, ..., 12:]) and np.all(
        np.std(latents[:, 1:], axis=(0, 1, 2, 3)) > 0
    )
    noisy = latents.at[:, 0, ..., 12:].set(9.0)
    np.testing.assert_array_equal(decode(tokenizer, noisy), decode(tokenizer, latents))
    np.testing.assert_allclose(
        decode(tokenizer, latents), to_pixels(clips), atol=3e-6
    )  # all directions: lossless


def test_haar_and_plain_patches_give_the_same_code_up_to_signs():
    clips, new = make_clips(), to_pixels(make_clips(seed=8))
    plain, haar = (
        np.asarray(encode(fit((2, 2, 6, patches), clips), new)) for patches in ("plain", "haar")
    )
    for frames in (slice(0, 1), slice(1, None)):
        signs = np.sign((plain * haar)[:, frames].sum(axis=(0, 1, 2, 3)))
        np.testing.assert_allclose(plain[:, frames], signs * haar[:, frames], atol=1e-4)


def test_haar_directions_live_in_haar_bands():
    """Grey groups that differ along one band only are coded by a direction that is that band
    only."""
    rng, band = np.random.default_rng(0), 5  # high in time and width, low in height
    signs = np.array([1, -1])
    wave = 20 * signs[:, None, None, None] * signs[None, None, :, None] * np.ones((2, 2, 2, 3))
    groups = 128 + rng.integers(-5, 6, size=(40, 1, 1, 1, 1)) * wave
    clips = np.concatenate([rng.integers(0, 256, (40, 1, 2, 2, 3)), groups], axis=1).astype(
        np.uint8
    )
    direction = np.asarray(fit((2, 2, 1, "haar"), clips).video.directions)[:, 0]
    np.testing.assert_allclose(
        direction.reshape(8, 3), np.eye(8)[band][:, None] * np.ones(3) / np.sqrt(3), atol=1e-6
    )


@pytest.mark.parametrize("setting", [SETTINGS[0], SETTINGS[2]])
def test_a_pixel_frame_changes_its_own_group_only(setting):
    tokenizer, pixels = fit(setting), to_pixels(make_clips(count=1, seed=2))
    known = encode(tokenizer, pixels)
    for frame in range(13):
        moved = np.any(encode(tokenizer, pixels.at[:, frame].add(0.5)) != known, axis=(0, 2, 3, 4))
        group = -(-frame // tokenizer.temporal_stride)
        np.testing.assert_array_equal(
            np.flatnonzero(moved), [group], err_msg=f"pixel frame {frame}"
        )


@pytest.mark.parametrize("setting", [SETTINGS[0], SETTINGS[4]])
def test_jit_takes_the_tokenizer_as_an_argument_without_recompiling(setting):
    traces = []

    @jax.jit
    def round_trip(tokenizer, pixels):
        traces.append(1)
        return tokenizer.decode(tokenizer.encode(pixels))

    clips = make_clips(count=2, frames=5)
    first, second = fit(setting), fit(setting, make_clips(seed=4))
    for tokenizer in (first, second):
        expected = tokenizer.decode(tokenizer.encode(to_pixels(clips)))
        np.testing.assert_allclose(round_trip(tokenizer, to_pixels(clips)), expected, atol=1e-6)
    assert len(traces) == 1
    shapes = jax.tree.map(jnp.shape, first)
    assert shapes.video.scale == (setting[2],) and shapes.patch == setting[0]


def leaves(tokenizer):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tokenizer)]


@pytest.mark.parametrize("setting", [SETTINGS[0], SETTINGS[4]])
def test_fit_does_not_depend_on_order_batching_or_a_generator(setting):
    clips = make_clips()
    expected = leaves(fit(setting, clips))
    for other in ([clips[:1], clips[1:]], list(clips[::-1]), (clip for clip in clips)):
        for a, b in zip(expected, leaves(fit(setting, other)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_signs_follow_the_first_large_entry():
    for part in (tokenizer := fit((4, 2, 16, "plain"))).image, tokenizer.video:
        for column in np.asarray(part.directions).T:
            large = column[np.abs(column) > 0.5 * np.abs(column).max()]
            assert large[0] > 0


def test_clips_of_several_sizes_and_lengths():
    clips = [make_clips(1, 3, 16)[0], make_clips(1, 1, 8)[0], make_clips(2, 9, 24)]
    tokenizer = fit((4, 2, 4, "plain"), clips)
    first_frames = [x.reshape(-1, *x.shape[-4:])[:, :1] for x in clips]
    rows = np.concatenate([flat_patches(np.repeat(x, 3, axis=1), 4, 2)[0] for x in first_frames])
    np.testing.assert_allclose(tokenizer.image.mean, rows.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("setting", SETTINGS)
def test_save_and_load_are_bitwise(setting, tmp_path):
    tokenizer = fit(setting)
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert jax.tree.structure(loaded) == jax.tree.structure(tokenizer)
    for a, b in zip(leaves(tokenizer), leaves(loaded), strict=True):
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 0}, r"channels = 0 is not in 1\.\.96"),
        ({"channels": 97}, r"channels = 97 is not in 1\.\.96"),
        ({"patch": 0}, "patch must be at least 1, not 0"),
        ({"temporal_stride": 0}, "temporal_stride must be at least 1, not 0"),
        ({"whitening": 1.5}, r"whitening must lie in \[0, 1\], not 1\.5"),
        ({"patches": "nonsense"}, "patches is 'nonsense'"),
        ({"patches": "haar"}, "temporal_stride 2 must equal patch 4"),
        ({"patches": "haar", "patch": 3, "temporal_stride": 3}, "power of two, not 3"),
    ],
)
def test_settings_that_contradict_each_other(changes, message):
    with annotations_off(), pytest.raises(UserError, match=message):
        fit((4, 2, 8, "plain"), iter(()), **changes)


def grey_clips(count=40, frames=9, size=32, seed=0):
    """Random grey videos: three equal channels."""
    grey = make_clips(count, frames, size, seed)[..., :1]
    return np.repeat(grey, 3, axis=-1)


def test_grey_clips_leave_spare_channels_zero(caplog):
    """Patches of 8x8x2 pixels vary in 64 (frame 0) and 128 directions, of 96 channels."""
    caplog.set_level("INFO", "videomar_jax")
    setting = (8, 2, 96, "plain")
    clips = grey_clips()
    tokenizer = fit(setting, clips)
    assert "frame 0: the clips vary in 64 directions only; 32 of 96 channels stay zero" in (
        caplog.text
    )
    latents = np.asarray(encode(tokenizer, to_pixels(clips[:8])))
    assert not latents[:, :1, ..., 64:].any()
    spread = latents.reshape(-1, 96).std(axis=0)
    assert np.isfinite(latents).all() and spread.max() < 10 and spread[:64].min() > 1e-3
    # What a sampler may write into spare channels shows nothing.
    disturbed = latents.copy()
    disturbed[:, :1, ..., 64:] = 100
    again = np.asarray(decode(tokenizer, jnp.asarray(disturbed)))
    np.testing.assert_array_equal(again, decode(tokenizer, jnp.asarray(latents)))
    np.testing.assert_allclose(again[:, 0], np.asarray(to_pixels(clips[:8]))[:, 0], atol=1e-4)
    assert np.isfinite(np.asarray(tokenizer.video.scale)).all()


def test_the_patches_that_vary_are_coded_as_without_the_spare_channels():
    clips = grey_clips()
    codes = [
        encode(fit((8, 2, channels, "plain"), clips), to_pixels(clips)) for channels in (64, 96)
    ]
    np.testing.assert_allclose(codes[1][:, :1, ..., :64], codes[0][:, :1], atol=1e-4)


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([], "no clip has frame 0"),
        ([make_clips(1, 1)[0]] * 3, "no clip has groups of 2 frames"),
        ([make_clips(1, 5, 8)[0]], "frame 0: the 4 patches .* in 3 directions, fewer than 8"),
        ([np.full((13, 16, 16, 3), 77, np.uint8)] * 9, "vary in 0 directions"),
        ([make_clips(1)[0], make_clips(1, 4)[0]], "clip 1: 4 frames .* 3 or 5"),
        ([make_clips(1, 5, 18)[0]], "clip 0: height 18"),
        ([make_clips(1)[0].astype(np.float32)], r"clip 0 is float32 \[13, 16, 16, 3\], not uint8"),
        ([make_clips(1)[0, 0]], r"clip 0 is uint8 \[16, 16, 3\]"),
        ([make_clips(1)[..., :1]], "clip 0 is uint8 .* 1\\]"),
    ],
)
def test_clips_that_cannot_be_fitted(clips, message):
    with pytest.raises(ValueError, match=message):
        fit((4, 2, 8, "plain"), clips)


def test_wrong_shapes_at_use():
    tokenizer = fit((4, 2, 8, "plain"))
    with pytest.raises(ValueError, match="4 frames"):
        tokenizer.encode(jnp.zeros((1, 4, 16, 16, 3)))
    with pytest.raises(ValueError, match="width 18"):
        tokenizer.encode(jnp.zeros((1, 5, 16, 18, 3)))
    with pytest.raises(ValueError, match="end in 8 channels"):
        tokenizer.decode(jnp.zeros((1, 2, 4, 4, 9)))


def test_grey_clips_leave_channels_at_zero():
    """Grey patches vary in a third of their values: the other channels are zero and do no harm."""
    grey = np.random.default_rng(0).integers(0, 256, (40, 5, 16, 16, 1), np.uint8)
    clips = [np.repeat(clip, 3, axis=-1) for clip in grey]
    tokenizer = PCATokenizer.fit(
        iter(clips), patch=4, temporal_stride=2, channels=48, patches="plain", whitening=0.5
    )
    video = jnp.asarray(np.stack(clips[:4]))
    latents = np.asarray(tokenizer.encode(to_pixels(video)))
    assert np.isfinite(latents).all()
    assert (latents[:, 0, ..., 16:] == 0).all(), "a grey patch of 4x4 has 16 values"
    assert (latents[:, 1:, ..., 32:] == 0).all(), "two of them have 32"
    decoded = np.asarray(tokenizer.decode(jnp.asarray(latents)))
    np.testing.assert_allclose(decoded, np.asarray(to_pixels(video)), atol=0.01)
    disturbed = latents + np.where(latents == 0, 3.0, 0.0)
    np.testing.assert_allclose(tokenizer.decode(jnp.asarray(disturbed)), decoded, atol=1e-5)

"""The Haar patches against their definition term by term, against matrices, and (where present) a
recorded run."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from videomar_jax.tokenizers.haar import haar_patches, haar_rounds, haar_unpatch, still_channels


def random_video(shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape)


def by_definition(video, rounds):
    """The sum of signed products, one output at a time: no slicing tricks shared with the code
    under test."""
    x = np.concatenate([video[:, :1]] * (2**rounds - 1) + [video], axis=1)
    for _ in range(rounds):
        b, f, h, w, g = x.shape
        y = np.zeros((b, f // 2, h // 2, w // 2, 8 * g))
        for t, r, c in np.ndindex(f // 2, h // 2, w // 2):
            for i, j, k in itertools.product((0, 1), repeat=3):
                band = 4 * i + 2 * j + k
                for da, db, dc in itertools.product((0, 1), repeat=3):
                    sign = (-1) ** (i * da + j * db + k * dc)
                    y[:, t, r, c, band * g : (band + 1) * g] += (
                        sign * x[:, 2 * t + da, 2 * r + db, 2 * c + dc] / 8
                    )
        x = y
    return x


@pytest.mark.parametrize(
    ("patch", "shape"), [(2, (2, 3, 4, 6, 3)), (4, (1, 5, 8, 4, 2)), (4, (1, 1, 4, 4, 3))]
)
def test_forward_is_the_definition(patch, shape):
    video = random_video(shape)
    np.testing.assert_allclose(
        haar_patches(video, patch), by_definition(video, haar_rounds(patch)), atol=1e-14
    )


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_inverse_undoes_forward_and_forward_undoes_inverse(patch):
    video = random_video((2, 1 + 2 * patch, patch, 3 * patch, 3))
    bands = haar_patches(video, patch)
    assert bands.shape == (2, 3, 1, 3, 3 * patch**3)
    np.testing.assert_allclose(haar_unpatch(bands, patch), video, atol=1e-14)
    later = random_video(bands.shape, seed=1)
    later[:, :1] = bands[:, :1]  # a first group that is copies of one frame
    np.testing.assert_allclose(haar_patches(haar_unpatch(later, patch), patch), later, atol=1e-14)


@pytest.mark.parametrize("patch", [2, 4])
def test_energy_shrinks_by_the_patch_volume_and_the_lowest_band_is_the_mean(patch):
    video = random_video((1, 1 + patch, patch, patch, 3))
    group, bands = video[0, 1:], haar_patches(video, patch)[0, 1, 0, 0]
    np.testing.assert_allclose((bands**2).sum(), (group**2).sum() / patch**3, rtol=1e-12)
    np.testing.assert_allclose(bands[:3], group.mean(axis=(0, 1, 2)), atol=1e-15)


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_still_channels_are_exactly_those_a_still_patch_uses(patch):
    bands = haar_patches(random_video((1, 1, patch, patch, 3)), patch)[0, 0, 0, 0]
    np.testing.assert_array_equal(np.flatnonzero(bands), still_channels(patch))
    assert len(still_channels(patch)) == 3 * patch**2


def test_later_frames_leave_earlier_groups_alone():
    video = random_video((1, 9, 4, 4, 3))
    for frame in range(9):
        changed = video.copy()
        changed[:, frame] += 1
        moved = np.any(haar_patches(changed, 4) != haar_patches(video, 4), axis=(0, 2, 3, 4))
        np.testing.assert_array_equal(np.flatnonzero(moved), [(frame + 3) // 4])


def test_jax_in_float64_and_float32_under_jit():
    video = random_video((1, 5, 8, 8, 3))
    expected = haar_patches(video, 4)
    forward, inverse = (
        jax.jit(haar_patches, static_argnums=1),
        jax.jit(haar_unpatch, static_argnums=1),
    )
    low = forward(jnp.asarray(video, jnp.float32), 4)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, expected, atol=5e-7)
    with jax.enable_x64(True):
        high = forward(jnp.asarray(video), 4)
        assert high.dtype == jnp.float64
        np.testing.assert_allclose(high, expected, atol=1e-15)
        np.testing.assert_allclose(inverse(high, 4), video, atol=1e-14)


def test_wrong_sizes_are_refused():
    for patch in (0, 3, 6):
        with pytest.raises(ValueError, match=f"power of two, not {patch}"):
            haar_patches(random_video((1, 1, 12, 12, 3)), patch)
    for shape in ((1, 4, 4, 4, 3), (1, 5, 6, 4, 3), (1, 5, 4, 6, 3), (1, 0, 4, 4, 3)):
        with pytest.raises(ValueError, match="not 1 \\+ 4 \\* k frames of multiples of 4"):
            haar_patches(random_video(shape), 4)
    with pytest.raises(ValueError, match="191 channels"):
        haar_unpatch(random_video((1, 1, 1, 1, 191)), 4)


@pytest.mark.parametrize(("case", "patch"), [("p2", 2), ("p4", 4), ("p4_image", 4), ("p4_c2", 4)])
def test_recorded_run_of_the_original(golden, case, patch):
    arrays = load_file(golden("cosmos/patcher_f64.safetensors"))
    stored = {
        name: np.moveaxis(x, 1, -1) for name, x in arrays.items() if name.startswith(f"{case}.")
    }
    np.testing.assert_allclose(
        haar_patches(stored[f"{case}.x"], patch), stored[f"{case}.patched"], atol=1e-12
    )
    unpatched = haar_unpatch(stored[f"{case}.y_random"], patch)
    np.testing.assert_allclose(unpatched, stored[f"{case}.unpatched_random"], atol=1e-12)

"""Rotary positions: scores see differences only; the remedies for larger grids do what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomar_jax.models.patchify import positions
from videomar_jax.models.rope import PositionScale, rotary_embedding, rotate

CHANNELS = (8, 4, 4)


@pytest.fixture(scope="module")
def heads():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 2, 6, 2, 16))
    return q, k


def rotated(x, places, channels=CHANNELS, **options):
    return rotate(x, rotary_embedding(places, channels, **options), channels)


def by_complex_numbers(x, places, channels, base=10000.0):
    """exp(i m f) times (u_i + i u_{i + c/2}) in double precision."""
    out, start = np.zeros(x.shape), 0
    for axis, width in enumerate(channels):
        half = width // 2
        for i in range(half):
            pair = x[..., start + i] + 1j * x[..., start + half + i]
            turned = pair * np.exp(1j * places[..., axis] * base ** (-2 * i / width))[:, :, None]
            out[..., start + i], out[..., start + half + i] = turned.real, turned.imag
        start += width
    return out


@pytest.mark.parametrize("channels", [(8, 4, 4), (4, 6, 6), (16, 0, 0), (2, 0, 14)])
def test_pairs_turn_by_the_stated_angles(heads, channels):
    places = positions(jnp.array([3, 9]), (2, 3))
    expected = by_complex_numbers(np.float64(heads[0]), np.asarray(places), channels)
    np.testing.assert_allclose(rotated(heads[0], places, channels), expected, atol=1e-5)


def scores(q, k, places):
    return jnp.einsum("btsnd,bTSnd->bntsTS", rotated(q, places), rotated(k, places))


@pytest.mark.parametrize("offset", [(5, 0, 0), (0, 7, 0), (0, 0, 2), (3, 1, 4)])
def test_scores_depend_on_differences_of_positions_only(heads, offset):
    places = positions(2, (2, 3))
    np.testing.assert_allclose(
        scores(*heads, places), scores(*heads, places + jnp.array(offset)), atol=2e-5
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_scores_tell_frames_rows_and_columns_apart(heads, axis):
    places = positions(2, (2, 3))
    stretched = places * jnp.array([3 if i == axis else 1 for i in range(3)])
    assert np.abs(scores(*heads, places) - scores(*heads, stretched)).max() > 0.1


def test_rotation_keeps_lengths_and_leaves_the_origin_alone(heads):
    places = positions(2, (2, 3))
    turned = rotated(heads[0], places)
    np.testing.assert_allclose(
        jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(heads[0], axis=-1), rtol=1e-5
    )
    np.testing.assert_array_equal(turned[:, 0, 0], heads[0][:, 0, 0])


def test_a_scale_of_one_changes_nothing():
    places = positions(2, (2, 3))
    plain, scaled = (
        rotary_embedding(places, CHANNELS),
        rotary_embedding(places, CHANNELS, scale=PositionScale()),
    )
    np.testing.assert_array_equal(jnp.stack(plain), jnp.stack(scaled))


def test_interpolation_puts_the_large_grid_on_the_positions_of_the_small_one():
    small, large = positions(2, (2, 3)), positions(4, (6, 12))
    scale = PositionScale(interpolate=(2.0, 3.0, 4.0))
    inside = np.all(np.asarray(large) % (2, 3, 4) == 0, axis=-1)
    assert inside.sum() == small.shape[0] * small.shape[1]
    for few, many in zip(
        rotary_embedding(small, CHANNELS),
        rotary_embedding(large, CHANNELS, scale=scale),
        strict=True,
    ):
        np.testing.assert_allclose(few.reshape(-1, 8), many[:, :, 0][inside], atol=1e-6)


def test_ntk_keeps_the_fastest_angle_and_stretches_the_slowest_by_the_factor():
    places = positions(
        jnp.array([1]), (1, 1)
    )  # position 1 on the frame axis: the angle is the frequency
    cos, sin = rotary_embedding(places, (8, 4, 4), scale=PositionScale(ntk=(4.0, 1.0, 1.0)))
    angle = np.arctan2(sin, cos)[0, 0, 0]
    np.testing.assert_allclose(angle[[0, 3]], [1.0, 10000.0 ** (-6 / 8) / 4], rtol=1e-5)
    assert 10000.0 ** (-2 / 8) / 4 < angle[1] < 10000.0 ** (-2 / 8)


def test_shrinking_scales_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        PositionScale(interpolate=(1.0, 0.5, 1.0))
    with pytest.raises(ValueError, match="at least 1"):
        PositionScale(ntk=(0.0, 1.0, 1.0))

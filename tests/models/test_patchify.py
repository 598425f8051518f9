"""Token order and the order of values inside a token, against explicit loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from videomar_jax.models.patchify import patchify, positions, unpatchify

SIZES = [(1, (2, 3)), (2, (2, 3)), (3, (1, 2))]


def latents_for(patch, grid, channels=3):
    shape = (2, 3, grid[0] * patch, grid[1] * patch, channels)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("patch", "grid"), SIZES)
def test_every_value_lands_where_the_definition_says(patch, grid):
    latents = latents_for(patch, grid)
    tokens = np.asarray(patchify(jnp.asarray(latents), patch))
    assert tokens.shape == (2, 3, grid[0] * grid[1], 3 * patch**2)
    for b, t, y, x, c, py, px in np.ndindex(2, 3, *grid, 3, patch, patch):
        value = tokens[b, t, y * grid[1] + x, (c * patch + py) * patch + px]
        assert value == latents[b, t, y * patch + py, x * patch + px, c]


@pytest.mark.parametrize(("patch", "grid"), SIZES)
def test_unpatchify_is_the_inverse(patch, grid):
    latents = jnp.asarray(latents_for(patch, grid))
    np.testing.assert_array_equal(unpatchify(patchify(latents, patch), grid, patch), latents)


def test_a_size_that_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match=r"4x6 cannot be cut into patches of 4x4"):
        patchify(jnp.zeros((1, 1, 4, 6, 2)), 4)


def test_positions_count_frame_then_row_then_column():
    expected = [[(f, y, x) for y in range(2) for x in range(3)] for f in range(4)]
    np.testing.assert_array_equal(positions(4, (2, 3)), expected)


def test_positions_keep_the_given_frame_numbers():
    np.testing.assert_array_equal(positions(jnp.array([7, 2]), (1, 2))[..., 0], [[7, 7], [2, 2]])

"""The fast forms of convolution against sums written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomar_jax.tokenizers.cosmos import conv
from videomar_jax.tokenizers.cosmos.conv import spatial_conv, temporal_conv, winograd_conv


def draw(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def plain_conv(x, kernel):
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    shifted = {(i, j): padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)}
    return sum(part @ kernel[i, j].astype(np.float64) for (i, j), part in shifted.items())


@pytest.mark.parametrize("shape", [(2, 6, 4), (1, 2, 10)])
def test_winograd_equals_the_sum(shape):
    x, kernel = draw(*shape, 5), draw(3, 3, 5, 7)
    np.testing.assert_allclose(jax.jit(winograd_conv)(x, kernel), plain_conv(x, kernel), atol=1e-5)


@pytest.mark.parametrize("height, chosen", [(40, True), (41, False), (8, False)])
def test_large_even_images_go_through_winograd_and_all_are_right(height, chosen, monkeypatch):
    called = []
    monkeypatch.setattr(conv, "winograd_conv", lambda x, k: called.append(1) or winograd_conv(x, k))
    x, kernel = draw(1, height, 40, 64), draw(3, 3, 64, 64) / 24
    np.testing.assert_allclose(
        jax.jit(lambda x, k: spatial_conv(x, k))(x, kernel), plain_conv(x, kernel), atol=2e-5
    )
    assert bool(called) == chosen


@pytest.mark.parametrize("stride", [1, 2])
def test_temporal_conv_equals_the_sum(stride):
    x, kernel = draw(2, 7, 3, 2, 4), draw(3, 4, 5)
    windows = np.stack([x[:, t : t + 3] for t in range(0, 5, stride)], axis=1).astype(np.float64)
    want = np.einsum("btkhwi,kio->bthwo", windows, kernel.astype(np.float64))
    np.testing.assert_allclose(
        temporal_conv(jnp.asarray(x), jnp.asarray(kernel), stride=stride), want, atol=1e-5
    )

"""The fused kernel of TPUs, run step by step on a CPU, against plain attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomar_jax.models import splash
from videomar_jax.models.frame_attention import attend_frames
from videomar_jax.models.splash import FrameMask, block_size, splash_attention

CAUSAL = np.tri(3, dtype=bool)
TEACHER = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]], bool)


def heads(frames: int, tokens: int, queries: int | None = None):
    """q, k, v [2, frames, tokens, 2, 64]; as many queries as asked for."""
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, frames, tokens, 2, 64))
    return q[:, :, :queries], k, v


def assert_equal_with_gradients(fused, plain, arrays):
    """The same values, and the same derivatives of a function of them."""

    def both(function):
        def loss(*arrays):
            out = function(*arrays)
            return jnp.sum(jnp.sin(out)), out

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*arrays)

    ((_, own), own_gradients), ((_, expected), gradients) = both(fused), both(plain)
    np.testing.assert_allclose(own, expected, atol=2e-6)
    for name, one, other in zip("qkv", own_gradients, gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-6, err_msg=f"gradient of {name}")
        assert np.abs(other).max() > 1e-2, "no gradient, so equality says nothing"


@pytest.mark.parametrize(
    ("sees", "tokens", "queries"),
    [(CAUSAL, 150, 150), (CAUSAL, 128, 128), (TEACHER, 20, 20), (CAUSAL, 40, 20)],
    ids=["two blocks a frame", "whole blocks", "teacher forcing", "a share of the queries"],
)
def test_frames_see_what_they_should(sees, tokens, queries, monkeypatch):
    monkeypatch.setattr(splash, "LARGEST_BLOCK", 128)
    arrays = heads(len(sees), tokens, queries)
    assert_equal_with_gradients(
        lambda q, k, v: splash_attention(q, k, v, sees=sees, interpret=True),
        lambda q, k, v: attend_frames(q, k, v, sees=sees, kernel="xla"),
        arrays,
    )


@pytest.mark.parametrize("rows", [1, 2], ids=["slots of a cache", "a text for each sample"])
def test_masked_keys_count_for_nothing(rows):
    q, k, v = heads(4, 50)
    q = q[:, :1, :7]
    mask = jax.random.bernoulli(jax.random.key(1), 0.4, (rows, 200)).at[:, 3].set(True)
    assert_equal_with_gradients(
        lambda q, k, v: splash_attention(q, k, v, key_mask=mask, interpret=True),
        lambda q, k, v: attend_frames(q, k, v, key_mask=mask, kernel="xla"),
        (q, k, v),
    )
    hidden = ~jnp.broadcast_to(mask, (2, 200)).reshape(2, 4, 50, 1, 1)
    poisoned = splash_attention(q, k, jnp.where(hidden, 1e6, v), key_mask=mask, interpret=True)
    np.testing.assert_array_equal(
        poisoned, splash_attention(q, k, v, key_mask=mask, interpret=True)
    )


def test_a_mask_of_frames_and_one_of_keys_both_hold():
    q, k, v = heads(3, 20)
    mask = jnp.arange(60)[None] % 20 < 15
    own = splash_attention(q, k, v, sees=CAUSAL, key_mask=mask, interpret=True)
    fewer = attend_frames(q, k[:, :, :15], v[:, :, :15], sees=CAUSAL, kernel="xla")
    np.testing.assert_allclose(own, fewer, atol=2e-6)


def test_the_mask_of_frames_block_by_block():
    mask = FrameMask(sees=tuple(map(tuple, TEACHER.tolist())), queries=256, keys=384)
    whole = np.kron(TEACHER, np.ones((256, 384), bool))
    assert mask.shape == whole.shape
    for row in range(0, mask.shape[0], 128):
        for column in range(0, mask.shape[1], 128):
            block = slice(row, row + 128), slice(column, column + 128)
            np.testing.assert_array_equal(mask[block], whole[block])


@pytest.mark.parametrize("rows", [1, 64, 128, 300, 360, 720, 1024, 1440, 10080])
def test_blocks_are_whole_and_padding_is_little(rows):
    block = block_size(rows)
    padded = rows + -rows % block
    assert block % 128 == 0 and block <= 1024
    assert padded <= max(128, 1.3 * rows)


def test_a_frame_of_the_paper_is_padded_to_two_blocks():
    assert block_size(30 * 48) == 768

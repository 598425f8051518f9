"""Each frame pattern against a dense attention in double precision, under the boolean matrix that
defines the pattern.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tiny_model import annotations_off, tiny_config, tiny_model, tiny_text
from videomar_jax.models import attention
from videomar_jax.models.kernels import attend
from videomar_jax.models.patchify import positions
from videomar_jax.models.rope import rotary_embedding, rotate

FRAMES, COUNT = 3, 4


@pytest.fixture(scope="module")
def heads():
    return tuple(
        2 * jax.random.normal(jax.random.key(0), (3, 2, 5, COUNT, 2, 8))
    )  # five frames; sharp softmax


def reference(q, k, v, allowed):
    """softmax(q.k / sqrt(d)) v for [B, N, n, d]; `allowed` is [B or 1, Q, N]."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("bqnd,bknd->bnqk", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(np.asarray(allowed)[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("bnqk,bknd->bqnd", weights / weights.sum(axis=-1, keepdims=True), v)


def flat(x):
    return np.asarray(x).reshape(x.shape[0], -1, *x.shape[3:])


def check(attention_fn, q, k, v, sees):
    """`sees[i][j]`: frame i of the queries attends to frame j of the keys."""
    allowed = np.kron(np.asarray(sees, bool), np.ones((COUNT, COUNT), bool))[None]
    expected = reference(flat(q), flat(k), flat(v), allowed)
    np.testing.assert_allclose(flat(jax.jit(attention_fn)(q, k, v)), expected, atol=2e-6)


def test_frame_causal_sees_its_own_and_earlier_frames(heads):
    check(attention.frame_causal, *(x[:, :FRAMES] for x in heads), np.tri(FRAMES))


def test_attend_frames_without_a_pattern_sees_everything(heads):
    check(attention.attend_frames, *(x[:, :FRAMES] for x in heads), np.ones((FRAMES, FRAMES)))


TEACHER = {
    0: [[1]],  # an image: one masked frame
    1: [[1, 0], [1, 1]],  # clean 0, masked 1
    2: [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]],  # clean 0 1, masked 1 2
}


@pytest.mark.parametrize("clean", TEACHER)
def test_masked_copies_see_clean_earlier_frames_and_themselves(heads, clean):
    sees = TEACHER[clean]
    attention_fn = functools.partial(attention.teacher_forcing, clean=clean)
    check(attention_fn, *(x[:, : len(sees)] for x in heads), sees)


def test_masked_keys_count_for_nothing(heads):
    q, k, v = (x[:, 0] for x in heads)
    mask = jnp.array([[True, False, True, True], [False, False, True, False]])
    expected = reference(q, k, v, mask[:, None])
    np.testing.assert_allclose(attend(q, k, v, key_mask=mask), expected, atol=2e-6)
    poisoned = jnp.where(mask[..., None, None], v, 1e6)
    np.testing.assert_allclose(attend(q, k, poisoned, key_mask=mask), expected, atol=2e-6)


def test_large_scores_do_not_overflow(heads):
    q, k, v = (x[:, 0] for x in heads)
    out = attend(200 * q, 200 * k, v)
    np.testing.assert_allclose(
        out, reference(200 * q, 200 * k, v, np.ones((1, COUNT, COUNT))), atol=1e-5
    )


def test_attend_gradients_agree_with_differentiating_the_softmax(heads):
    """The maximum is cut out of the gradient by hand; the derivative must not notice."""
    q, k, v = (x[:, 0] for x in heads)

    def plain(q, k, v):
        weights = jax.nn.softmax(jnp.einsum("bqnd,bknd->bnqk", q, k) / np.sqrt(8), axis=-1)
        return jnp.sum(jnp.sin(jnp.einsum("bnqk,bknd->bqnd", weights, v)))

    ours = jax.grad(lambda *x: jnp.sum(jnp.sin(attend(*x))), argnums=(0, 1, 2))(q, k, v)
    for own, expected in zip(ours, jax.grad(plain, argnums=(0, 1, 2))(q, k, v), strict=True):
        np.testing.assert_allclose(own, expected, atol=1e-5)


def test_a_kernel_that_cannot_run_here_fails_loudly(heads):
    if jax.default_backend() == "gpu":
        pytest.skip("cuDNN attention runs on this machine")
    with pytest.raises(Exception, match=r"(?i)cudnn"):
        attend(*(x[:, 0] for x in heads), kernel="cudnn")


def test_the_kernel_of_tpus_fails_loudly_elsewhere(heads):
    with pytest.raises(Exception, match=r"(?i)interpret|tpu"):
        jax.block_until_ready(attention.frame_causal(*heads, kernel="splash"))


def test_an_unknown_kernel_is_refused(heads):
    with annotations_off(), pytest.raises(ValueError, match=r"no attention kernel 'flash'"):
        attend(*(x[:, 0] for x in heads), kernel="flash")


# ---- projections


def rms_normed(x, scale):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * np.asarray(scale, np.float64)


def first_layer(part):
    block = jax.tree.map(lambda p: p[0], tiny_model().transformer.blocks)
    return getattr(block, part)


def test_each_head_owns_a_run_of_rows_query_key_value():
    layer, config = first_layer("self_attention"), tiny_config()
    x = jax.random.normal(jax.random.key(1), (2, 2, 6, config.width))
    rotary = rotary_embedding(positions(2, (2, 3)), config.rope_channels)
    q, k, v = layer.queries_keys_values(x, rotary)
    product, d = (
        np.asarray(x, np.float64) @ np.asarray(layer.qkv.kernel[...], np.float64),
        config.head_dim,
    )
    for head in range(config.num_heads):
        own = product[..., 3 * d * head : 3 * d * (head + 1)]
        np.testing.assert_allclose(v[..., head, :], own[..., 2 * d :], atol=1e-5)
        for turned, raw, norm in (
            (q, own[..., :d], layer.q_norm),
            (k, own[..., d : 2 * d], layer.k_norm),
        ):
            normed = jnp.asarray(rms_normed(raw, norm.scale[...]), jnp.float32)[..., None, :]
            expected = rotate(normed, rotary, config.rope_channels)[..., 0, :]
            np.testing.assert_allclose(turned[..., head, :], expected, atol=1e-5)


def test_cross_attention_is_its_formula():
    layer, (_, mask), config = first_layer("cross_attention"), tiny_text(), tiny_config()
    x = jax.random.normal(jax.random.key(2), (2, 2, 6, config.width))
    context = jax.random.normal(jax.random.key(3), (2, config.text_tokens, config.width))
    d = config.head_dim
    matrices = {
        name: np.asarray(getattr(layer, name).kernel[...], np.float64)
        for name in ("q", "kv", "out")
    }
    q = (np.asarray(x, np.float64) @ matrices["q"]).reshape(2, 12, config.num_heads, d)
    kv = (np.asarray(context, np.float64) @ matrices["kv"]).reshape(2, -1, config.num_heads, 2 * d)
    q, k = rms_normed(q, layer.q_norm.scale[...]), rms_normed(kv[..., :d], layer.k_norm.scale[...])
    expected = reference(q, k, kv[..., d:], mask[:, None]).reshape(2, 2, 6, -1) @ matrices["out"]
    out = jax.jit(lambda layer: layer(x, layer.keys_values(context), mask))(layer)
    np.testing.assert_allclose(out, expected, atol=1e-5)

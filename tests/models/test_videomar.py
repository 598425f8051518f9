"""The whole model: causality by gradient, teacher forcing, and what text does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tiny_model import GRID, tiny_model, tiny_text, tiny_tokens
from videomar_jax.models.videomar import VideoMAR

EXACT = dict(atol=3e-5, rtol=0)
"""Float32 over two layers, for values about 1."""


@functools.partial(jax.jit, static_argnames="causal")
def causal_pass(model, tokens, mask, causal=True):
    return model(tokens, mask, model.context(*tiny_text()), GRID, causal=causal)


# ---- causality


@functools.partial(jax.jit, static_argnames="causal")
def influence(model, tokens, mask, causal):
    """The gradient of a random reading of each frame's z with respect to all tokens.

    [T, B, T, S, P], the frame that is read in front.
    """
    frames = tokens.shape[1]
    reading = jax.random.normal(jax.random.key(9), (*tokens.shape[:3], model.config.width))

    def read(tokens, frame):
        return jnp.sum((causal_pass(model, tokens, mask, causal) * reading)[:, frame])

    return jax.vmap(jax.grad(read), (None, 0))(tokens, jnp.arange(frames))


def test_a_frame_depends_on_itself_and_earlier_frames_only():
    tokens, mask = tiny_tokens()
    gradients, visible = np.asarray(influence(tiny_model(), tokens, mask, True)), ~np.asarray(mask)
    for t in range(3):
        assert (gradients[t][:, t + 1 :] == 0).all(), f"z of frame {t} depends on a later frame"
        seen = gradients[t][:, : t + 1][visible[:, : t + 1]]
        assert (np.abs(seen).max(axis=-1) > 1e-6).all(), (
            f"z of frame {t} misses a visible token of frames 0..{t}"
        )
        assert (gradients[t][np.asarray(mask)] == 0).all(), f"z of frame {t} sees a hidden token"


def test_every_token_of_a_frame_sees_the_others():
    """Inside a frame attention runs both ways: each z of the last frame depends on each of its
    visible tokens."""
    tokens, mask = tiny_tokens(batch=1)
    model, visible = tiny_model(), ~mask[0, -1]
    text, text_mask = tiny_text(1)

    @jax.jit
    def jacobian(model):
        def last(frame):
            z = model(tokens.at[:, -1].set(frame), mask, model.context(text, text_mask), GRID)
            return jnp.sum(z[0, -1] * jax.random.normal(jax.random.key(3), z.shape[2:]), axis=-1)

        return jax.jacobian(last)(tokens[:, -1])[:, 0]  # [S, S, P]

    strength = np.abs(jacobian(model)).max(axis=-1)
    assert (strength[:, visible] > 1e-6).all() and (strength[:, ~visible] == 0).all()


def test_the_ablation_sees_later_frames():
    tokens, mask = tiny_tokens()
    gradients = np.asarray(influence(tiny_model(), tokens, mask, False))
    assert np.abs(gradients[0][:, 2]).max() > 1e-4


def test_later_frames_change_nothing_bitwise():
    tokens, mask = tiny_tokens()
    z = causal_pass(tiny_model(), tokens, mask)
    other = causal_pass(tiny_model(), tokens.at[:, 2].add(3.0), mask.at[:, 2].set(~mask[:, 2]))
    np.testing.assert_array_equal(z[:, :2], other[:, :2])
    assert np.abs(z[:, 2] - other[:, 2]).max() > 0.01


def test_hidden_tokens_are_the_mask_token():
    tokens, mask = tiny_tokens()
    changed = jnp.where(mask[..., None], 100.0, tokens)
    np.testing.assert_array_equal(
        causal_pass(tiny_model(), tokens, mask), causal_pass(tiny_model(), changed, mask)
    )


# ---- teacher-forced


@jax.jit
def frame_by_frame(model: VideoMAR, tokens, mask):
    """z of every frame from a causal pass of its own, in which it alone has hidden tokens."""
    context, frames = model.context(*tiny_text()), jnp.arange(tokens.shape[1])

    def one(t):
        return model(tokens, mask & (frames == t)[None, :, None], context, GRID)[:, t]

    return jnp.moveaxis(jax.vmap(one)(frames), 0, 1)


VARIANTS = [{}, {"pooled_text": True}, {"text_mask": False}]


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_teacher_forced_equals_frame_by_frame(frames):
    model, (tokens, mask) = tiny_model(), tiny_tokens(frames)
    supervised = slice(min(frames - 1, 1), None)
    z = jax.jit(
        lambda m: m.teacher_forced(tokens, mask[:, supervised], m.context(*tiny_text()), GRID)
    )(model)
    np.testing.assert_allclose(z, frame_by_frame(model, tokens, mask)[:, supervised], **EXACT)


def test_bfloat16_is_close_to_float32_and_really_in_use():
    """8 bits of mantissa give about 0.4 % a product; two layers stay within 3 % of the norm."""
    tokens, mask = tiny_tokens()
    z = np.asarray(causal_pass(tiny_model(), tokens, mask))
    half = np.asarray(causal_pass(tiny_model(dtype="bfloat16"), tokens, mask))
    assert half.dtype == np.float32
    assert 1e-4 < np.linalg.norm(z - half) / np.linalg.norm(z) < 0.03


# ---- text


@jax.jit
def z_of_text(model, text):
    tokens, mask = tiny_tokens()
    return model(tokens, mask, model.context(text, tiny_text()[1]), GRID)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_padded_text_is_not_seen_unless_the_mask_is_off(changes):
    model, (text, text_mask) = tiny_model(**changes), tiny_text()
    z = z_of_text(model, text)
    padding = z - z_of_text(model, jnp.where(text_mask[..., None], text, 7.0))
    prompt = z - z_of_text(model, jnp.where(text_mask[..., None], 2 * text, text))
    assert np.abs(prompt).max() > 1e-2
    assert (
        (np.abs(padding).max() > 1e-2) if changes == {"text_mask": False} else (padding == 0).all()
    )


def test_dropped_text_is_the_null_context():
    model, (text, mask) = tiny_model(), tiny_text()
    context = model.context(text, mask, jnp.array([False, True]))
    projected = text[0] @ model.context_embed.kernel[...] + model.context_embed.bias[...]
    np.testing.assert_allclose(context.tokens[0], projected, atol=1e-5)
    np.testing.assert_array_equal(context.tokens[1], model.null_context[...])
    np.testing.assert_array_equal(context.mask, mask)


def test_the_null_context_may_show_all_its_tokens():
    text, mask = tiny_text()
    context = tiny_model(null_text_mask="ones").context(text, mask, jnp.array([True, False]))
    np.testing.assert_array_equal(context.mask, [[True] * 5, mask[1]])


def test_pooled_text_is_the_mean_of_the_tokens_that_are_not_padding():
    model, (text, mask) = tiny_model(pooled_text=True), tiny_text()
    context = model.context(text, mask)
    for b in range(2):
        mean = np.asarray(context.tokens[b, : int(mask[b].sum())]).mean(axis=0)
        np.testing.assert_allclose(
            context.pooled[b], mean @ model.pooled_embed.kernel[...], atol=1e-5
        )


def test_pooled_text_that_is_masked_as_a_whole_is_zero():
    """Its mean would be 0/0, in the value and in the gradient."""
    model, (text, mask) = tiny_model(pooled_text=True), tiny_text()
    mask = mask.at[1].set(False)

    @jax.jit
    def pooled(model):
        return model.context(text, mask).pooled

    np.testing.assert_array_equal(pooled(model)[1], 0)
    gradient = jax.jit(jax.grad(lambda model: jnp.sum(pooled(model))))(model)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_text_of_another_size_is_refused():
    text, mask = tiny_text()
    with pytest.raises(ValueError, match=r"\(5, 7\).*takes \(5, 8\)"):
        tiny_model().context(text[..., :7], mask)
    with pytest.raises(ValueError, match=r"\(4, 8\).*takes \(5, 8\)"):
        tiny_model().context(text[:, :4], mask[:, :4])

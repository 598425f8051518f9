"""One frame at a time against a cache gives the z of one pass over all frames."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tiny_model import GRID, tiny_model, tiny_text, tiny_tokens
from tests.models.test_attention import COUNT, flat, reference
from tests.models.test_videomar import EXACT, VARIANTS, frame_by_frame
from videomar_jax.models import attention
from videomar_jax.models.attention import KVCache
from videomar_jax.models.incremental import (
    VisibleCache,
    cached,
    clean_frame_kv,
    commit_frame,
    empty_cache,
    frame_rotary,
    predict_frame,
    unstacked_layers,
    with_keys_values,
)
from videomar_jax.models.videomar import VideoMAR


@pytest.mark.parametrize(
    "slots", [(False, False), (True, False), (True, True), (False, True), None]
)
def test_cached_sees_visible_slots_and_itself(slots):
    q, k, v = 2 * jax.random.normal(jax.random.key(0), (3, 2, 3, COUNT, 2, 8))
    attention_fn = functools.partial(
        cached,
        cache=KVCache(k[:, :2], v[:, :2]),
        slots=None if slots is None else jnp.array(slots),
    )
    allowed = np.repeat([*(slots or (True, True)), True], COUNT)[None, None].repeat(COUNT, axis=1)
    expected = reference(flat(q[:, 2:3]), flat(k[:, :3]), flat(v[:, :3]), allowed)
    found = jax.jit(attention_fn)(q[:, 2:3], k[:, 2:3], v[:, 2:3])
    np.testing.assert_allclose(flat(found), expected, atol=2e-6)


@jax.jit
def frame_step(model: VideoMAR, tokens, mask, number, context, cache):
    """z of a partly hidden frame, and the cache with the finished frame in it."""
    past = VisibleCache(cache, jnp.arange(cache.keys.shape[2]) < number)
    z = predict_frame(model, tokens, mask, frame_rotary(model, number, GRID), context, past)
    return z, commit_frame(model, tokens, number, context, cache, GRID)


def cached_pass(model: VideoMAR, tokens, mask):
    """Frame after frame over a cache whose unused slots hold rubbish."""
    context = with_keys_values(model, model.context(*tiny_text()))
    batch, frames, count = mask.shape
    cache = jax.tree.map(lambda x: x + 50.0, empty_cache(model, batch, frames, count))
    out = []
    for t in range(frames):
        z, cache = frame_step(model, tokens[:, t], mask[:, t], jnp.asarray(t), context, cache)
        out.append(z)
    return jnp.stack(out, axis=1)


@pytest.mark.parametrize("changes", [*VARIANTS, {"unroll": 2}, {"remat": "full"}], ids=str)
def test_cached_equals_uncached(changes):
    model, (tokens, mask) = tiny_model(**changes), tiny_tokens()
    np.testing.assert_allclose(
        cached_pass(model, tokens, mask), frame_by_frame(model, tokens, mask), **EXACT
    )


def test_frames_that_all_restart_at_zero_look_alike_to_their_successors():
    """With absolute positions the order of the cached frames matters; with every frame at 0 it does
    not."""
    tokens, mask = tiny_tokens()
    swapped, clear = tokens[:, jnp.array([1, 0, 2])], jnp.zeros_like(mask)
    for origin, matters in (("absolute", True), ("restart", False)):
        model = tiny_model(
            depth=1, rope_frame_origin=origin
        )  # one layer: keys of a frame know no earlier frame
        difference = np.abs(cached_pass(model, tokens, clear) - cached_pass(model, swapped, clear))[
            :, 2
        ]
        assert (difference.max() > 1e-3) == matters, origin


def test_a_context_without_keys_and_values_is_refused():
    model, (tokens, mask) = tiny_model(), tiny_tokens(1)
    context, cache = model.context(*tiny_text()), VisibleCache(empty_cache(model, 2, 1, 6))
    with pytest.raises(TypeError, match="with_keys_values"):
        predict_frame(model, tokens[:, 0], mask[:, 0], model.rotary(1, GRID), context, cache)


def test_a_finished_frame_has_keys_and_values_in_every_layer():
    """Those of a loop over the layers, in which frame 0 sees itself alone."""
    model, (tokens, _) = tiny_model(), tiny_tokens(1)
    plain = model.context(*tiny_text())
    context, rotary = with_keys_values(model, plain), frame_rotary(model, 0, GRID)
    past = VisibleCache(empty_cache(model, 2, 1, 6), jnp.array([False]))
    kv = jax.jit(clean_frame_kv)(model, tokens[:, 0], rotary, context, past)
    assert kv.keys.shape == kv.values.shape == (2, 2, 1, 6, 2, 16)
    x = model.embed(tokens, jnp.zeros((2, 1, 6), bool), plain)
    for i in range(model.config.depth):
        block = jax.tree.map(lambda p, i=i: p[i], model.transformer.blocks)
        text = block.cross_attention.keys_values(plain.tokens)
        x, own = block(x, text, plain.mask, rotary, attention.attend_frames)
        np.testing.assert_allclose(kv.keys[i], own.keys, atol=2e-5)
        np.testing.assert_allclose(kv.values[i], own.values, atol=2e-5)


@pytest.mark.parametrize("unstacked", [False, True])
def test_token_indices_leave_out_the_other_tokens_in_the_last_layer(unstacked):
    """The surplus index S, one behind the last token, stands for any token."""
    model, (tokens, mask) = tiny_model(), tiny_tokens(1)
    context = with_keys_values(model, model.context(*tiny_text()))
    cache = jax.tree.map(lambda x: x + 0.5, empty_cache(model, 2, 1, 6))
    indices = jnp.array([[4, 0, 6], [1, 5, 2]])

    @jax.jit
    def both(model):
        rotary = frame_rotary(model, 1, GRID)
        arguments = (model, tokens[:, 0], mask[:, 0], rotary, context, VisibleCache(cache))
        layers = unstacked_layers(model, context.tokens, cache) if unstacked else None
        some = predict_frame(*arguments, token_indices=indices, layers=layers)
        return some, predict_frame(*arguments)

    some, every = both(model)
    assert some.shape == (2, 3, 32)
    for b, r in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2)):
        np.testing.assert_allclose(some[b, r], every[b, int(indices[b, r])], atol=2e-5)


@pytest.mark.parametrize("level", [None, (0.3, 0.7)])
def test_a_finished_frame_carries_its_noise_level_cached_or_not(level):
    """The last frame's z over a cache of noisy frames is that of one pass in which these are the
    earlier frames."""
    model, (tokens, mask) = tiny_model(history_levels=True), tiny_tokens()
    mask = mask & (jnp.arange(3) == 2)[None, :, None]
    level = None if level is None else jnp.array(level)

    @jax.jit
    def both(model):
        plain = model.context(*tiny_text())
        earlier = jnp.arange(3)[None] < 2
        whole = model(tokens, mask, plain, GRID, earlier=earlier, noise_level=level)
        without = model(tokens, mask, plain, GRID)
        context, cache = with_keys_values(model, plain), empty_cache(model, 2, 2, 6)
        for t in range(2):
            number = jnp.asarray(t)
            cache = commit_frame(
                model, tokens[:, t], number, context, cache, GRID, noise_level=level
            )
        past, rotary = VisibleCache(cache), frame_rotary(model, 2, GRID)
        z = predict_frame(model, tokens[:, 2], mask[:, 2], rotary, context, past)
        return z, whole[:, 2], without[:, 2]

    z, whole, without = both(model)
    np.testing.assert_allclose(z, whole, **EXACT)
    assert np.abs(whole - without).max() > 1e-2

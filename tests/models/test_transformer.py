"""The block against its formula in double precision; the scanned stack against a loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers.tiny_model import GRID, tiny_config, tiny_model, tiny_text, tiny_tokens
from videomar_jax.models import attention
from videomar_jax.models.transformer import Transformer, table_init
from videomar_jax.models.videomar import VideoMAR


def stream():
    return jax.random.normal(jax.random.key(5), (2, 3, 6, tiny_config().width))


def layer_normed(x, norm, epsilon):
    centred = x - x.mean(axis=-1, keepdims=True)
    scale, bias = (np.asarray(p[...], np.float64) for p in (norm.scale, norm.bias))
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon) * scale + bias


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_block_is_its_formula():
    model, (text, mask) = tiny_model(), tiny_text()
    block = jax.tree.map(lambda p: p[1], model.transformer.blocks)
    rotary = model.rotary(3, GRID)
    context = jax.jit(lambda m: block.cross_attention.keys_values(m.context(text, mask).tokens))(
        model
    )
    out, _ = jax.jit(lambda b, x: b(x, context, mask, rotary, attention.frame_causal))(
        block, stream()
    )

    # The attentions have tests of their own; here they are called on what the formula puts in.
    shift1, scale1, gate1, shift2, scale2, gate2 = np.asarray(
        block.scale_shift_table[...], np.float64
    )
    x = np.asarray(stream(), np.float64)
    attended, _ = block.self_attention(
        jnp.asarray(layer_normed(x, block.norm1, 1e-5) * (1 + scale1) + shift1, jnp.float32),
        rotary,
        attention.frame_causal,
    )
    x = x + gate1 * np.asarray(attended)
    x = x + np.asarray(block.cross_attention(jnp.asarray(x, jnp.float32), context, mask))
    hidden = layer_normed(x, block.norm2, 1e-5) * (1 + scale2) + shift2
    up, down = (
        np.asarray(layer.kernel[...], np.float64)
        for layer in (block.feed_forward.up, block.feed_forward.down)
    )
    np.testing.assert_allclose(out, x + gate2 * (gelu_tanh(hidden @ up) @ down), atol=3e-5)


def looped(model: VideoMAR, tokens, mask, context):
    """The stack as a plain loop over its layers, and the final norm."""
    x, rotary = model.embed(tokens, mask, context), model.rotary(tokens.shape[1], GRID)
    for i in range(model.config.depth):
        block = jax.tree.map(lambda p, i=i: p[i], model.transformer.blocks)
        x, _ = block(
            x,
            block.cross_attention.keys_values(context.tokens),
            context.mask,
            rotary,
            attention.frame_causal,
        )
    return model.transformer.norm(x)


@functools.partial(jax.jit, static_argnames="run")
def z_and_gradient(model, run=None):
    tokens, mask = tiny_tokens()

    def score(model):
        context = model.context(*tiny_text())
        z = model(tokens, mask, context, GRID) if run is None else run(model, tokens, mask, context)
        return jnp.sum(jnp.sin(z)), z

    (_, z), gradient = jax.value_and_grad(score, has_aux=True)(model)
    return z, jax.tree.leaves(gradient)


@pytest.fixture(scope="module")
def plain():
    return z_and_gradient(tiny_model(depth=2), run=looped)


COMPUTATIONS = [{"unroll": 1}, {"unroll": 2}, {"remat": "full"}, {"remat": "dots"}]


@pytest.mark.parametrize("changes", COMPUTATIONS, ids=str)
def test_how_layers_are_run_changes_neither_values_nor_gradients(plain, changes):
    z, gradient = z_and_gradient(tiny_model(depth=2, **changes))
    np.testing.assert_allclose(z, plain[0], atol=2e-5)
    for own, expected in zip(gradient, plain[1], strict=True):
        np.testing.assert_allclose(own, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))


def test_layers_differ():
    """Layers start from keys of their own, not from one key for all."""
    layers = nnx.state(
        jax.jit(lambda key: Transformer(tiny_config(), rngs=nnx.Rngs(params=key)))(
            jax.random.key(0)
        )
    )
    kernel = layers["blocks"]["self_attention"]["qkv"]["kernel"][...]
    assert np.abs(kernel[0] - kernel[1]).max() > 0.1


def test_gates_start_at_the_configured_value():
    table = table_init(jax.random.key(0), tiny_config(gate_init=0.25))
    plain = table_init(jax.random.key(0), tiny_config())
    assert (np.asarray(table)[[2, 5]] == 0.25).all()
    np.testing.assert_array_equal(np.asarray(table)[[0, 1, 3, 4]], np.asarray(plain)[[0, 1, 3, 4]])
    assert (
        0.7 < np.std(plain) * np.sqrt(32) < 1.3
    )  # 192 normal draws: the deviation is known to 5 %


def test_no_linear_layer_of_a_block_has_a_bias():
    params = nnx.to_pure_dict(nnx.state(tiny_model()))["transformer"]["blocks"]
    names = [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, _ in jax.tree.leaves_with_path(params)
    ]
    assert sorted(name for name in names if name.endswith("bias")) == ["norm1.bias", "norm2.bias"]

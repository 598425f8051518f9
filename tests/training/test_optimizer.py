"""The update rule against a few lines of numpy; what decays and what Muon turns is decided by
name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers.tiny_model import FROM_FRAME_BEFORE, annotations_off, tiny_config
from videomar_jax.models.params import abstract_model
from videomar_jax.training.optimizer import (
    OptimizerConfig,
    clip_by_global_norm,
    decays,
    ema_decay,
    is_matrix,
    make_optimizer,
    names,
)

BLOCK = "transformer.blocks."
ATTENTION = [
    BLOCK + name
    for name in (
        "self_attention.qkv.kernel",
        "self_attention.out.kernel",
        "cross_attention.q.kernel",
        "cross_attention.kv.kernel",
        "cross_attention.out.kernel",
        "feed_forward.up.kernel",
        "feed_forward.down.kernel",
    )
]
OUTSIDE = ["context_embed.kernel", "pooled_embed.kernel"]
HEAD = [
    f"head.{name}.kernel"
    for name in (
        "time1",
        "time2",
        "cond_embed",
        "blocks.linear1",
        "blocks.linear2",
        "blocks.modulation",
        "final_modulation",
    )
]


def parameters(which, **changes) -> set[str]:
    """Names of the tiny model's parameters for which `which(path)` holds."""
    _, shapes = abstract_model(tiny_config(pooled_text=True, **{"regression": True, **changes}))
    paths = [names(path) for path, _ in jax.tree.leaves_with_path(shapes)]
    return {".".join(path) for path in paths if which(path)}


def test_what_decays():
    extra = {
        "mask_token",
        "null_context",
        BLOCK + "scale_shift_table",
        "z_proj.kernel",
        "regression.kernel",
    }
    assert parameters(decays) == {*ATTENTION, *OUTSIDE, *extra}


def test_what_muon_turns():
    assert parameters(is_matrix) == {*ATTENTION, *OUTSIDE, *HEAD}


def test_what_the_frame_before_adds():
    """Maps of tokens are outermost layers; the gate is an inner one."""
    added = {
        which: parameters(which, **FROM_FRAME_BEFORE) - parameters(which)
        for which in (decays, is_matrix)
    }
    readout = "regression.bilinear."
    assert added[is_matrix] == {readout + "gate.kernel"}
    assert added[decays] == {
        readout + "gate.kernel",
        readout + "filters.kernel",
        readout + "mix.kernel",
        "previous_embed.kernel",
    }


def small_params(seed=0):
    shapes = {
        "mask_token": (5,),
        "transformer": {"w": {"kernel": (2, 4, 3)}, "norm": {"scale": (2, 3), "bias": (2, 3)}},
        "head": {"final": {"kernel": (4, 2), "bias": (2,)}},
    }
    leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten([jax.random.normal(k, s) for k, s in zip(keys, leaves, strict=True)])


def named(tree):
    return {
        ".".join(names(path)): np.asarray(leaf, np.float64)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def test_adamw_is_its_formula_with_clipping_and_selective_decay():
    config = OptimizerConfig(clip_norm=1.5, weight_decay=0.1, beta1=0.8, beta2=0.9)
    rates = np.array([0.02, 0.01, 0.03])
    optimizer = make_optimizer(config, lambda step: jnp.asarray(rates, jnp.float32)[step])
    params = small_params()
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    expected, m, v = named(params), {}, {}
    for step, rate in enumerate(rates):
        gradients = jax.tree.map(
            lambda g, step=step: [0.1, 2.0, 5.0][step] * g, small_params(step + 1)
        )
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        plain = named(gradients)
        norm = np.sqrt(sum((g**2).sum() for g in plain.values()))
        for name, g in plain.items():
            g = g * min(1.0, 1.5 / (norm + 1e-6))
            m[name] = 0.8 * m.get(name, 0) + 0.2 * g
            v[name] = 0.9 * v.get(name, 0) + 0.1 * g**2
            move = (
                m[name]
                / (1 - 0.8 ** (step + 1))
                / (np.sqrt(v[name] / (1 - 0.9 ** (step + 1))) + 1e-8)
            )
            decay = 0.1 if name in ("mask_token", "transformer.w.kernel") else 0.0
            expected[name] = expected[name] - rate * (move + decay * expected[name])
    for name, value in named(params).items():
        np.testing.assert_allclose(value, expected[name], atol=2e-6, err_msg=name)


def test_clipping_divides_by_the_norm_plus_one_millionth():
    clip = clip_by_global_norm(2e-6)
    updates, _ = clip.update(
        {"a": jnp.array([3e-6, 0.0]), "b": jnp.array([4e-6])}, optax.EmptyState()
    )
    np.testing.assert_allclose(updates["a"], [3e-6 * 2 / 6, 0], rtol=1e-5)
    small, _ = clip.update({"a": jnp.array([5e-7])}, optax.EmptyState())
    np.testing.assert_array_equal(small["a"], jnp.array([5e-7]))


def muon_update(gradients, *, rate=0.02, **changes):
    config = OptimizerConfig(name="muon", **{"weight_decay": 0.0, "clip_norm": 1e9} | changes)
    optimizer, params = make_optimizer(config, lambda step: rate), small_params()
    return named(
        jax.jit(lambda g: optimizer.update(g, optimizer.init(params), params)[0])(gradients)
    ), named(params)


def test_muon_orthogonalises_each_layers_matrix():
    """Five Newton-Schulz rounds bring all singular values near one common value; those of the
    gradient are apart."""
    gradients = small_params(3)
    kernel = gradients["transformer"]["w"]["kernel"]
    gradients["transformer"]["w"]["kernel"] = kernel.at[1].multiply(100.0)
    update = muon_update(gradients)[0]["transformer.w.kernel"]
    values = np.linalg.svd(update, compute_uv=False)
    assert values.min() > 0.6 * values.max(), "layers share one scale, whatever their gradients'"
    for layer in range(2):
        u, _, vt = np.linalg.svd(
            np.asarray(gradients["transformer"]["w"]["kernel"][layer]), full_matrices=False
        )
        direction = update[layer] / np.linalg.norm(update[layer])
        assert (direction * -(u @ vt) / np.sqrt(3)).sum() > 0.95, (
            "not the orthogonal factor of the gradient"
        )


def test_muon_moves_the_rest_at_the_rate_of_its_own():
    gradients = small_params(3)
    slow, fast = (muon_update(gradients, adam_ratio=ratio)[0] for ratio in (0.1, 0.4))
    for name in slow:
        factor = 1 if name == "transformer.w.kernel" else 4
        np.testing.assert_allclose(fast[name], factor * slow[name], rtol=1e-5, err_msg=name)
        if factor == 4:
            np.testing.assert_array_equal(
                np.sign(slow[name]), -np.sign(named(gradients)[name]), err_msg=name
            )


def test_muon_spares_the_same_parameters_from_decay():
    zeros = jax.tree.map(jnp.zeros_like, small_params())
    update, params = muon_update(zeros, weight_decay=0.1, adam_ratio=0.5)
    np.testing.assert_allclose(
        update["transformer.w.kernel"], -0.02 * 0.1 * params["transformer.w.kernel"], rtol=1e-5
    )
    np.testing.assert_allclose(update["mask_token"], -0.01 * 0.1 * params["mask_token"], rtol=1e-5)
    for name in (
        "transformer.norm.scale",
        "transformer.norm.bias",
        "head.final.kernel",
        "head.final.bias",
    ):
        assert (update[name] == 0).all(), f"{name} decays"


def test_average_decay_and_its_warm_up():
    steps = jnp.array([0, 1, 80, 10**6])
    plain = OptimizerConfig(ema_decay=0.99)
    warm = OptimizerConfig(ema_decay=0.99, ema_warmup=True)
    np.testing.assert_allclose([ema_decay(plain, s) for s in steps], 0.99)
    np.testing.assert_allclose(
        [ema_decay(warm, s) for s in steps], [1 / 20, 2 / 21, 81 / 100, 0.99], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "sgd"),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("ema_decay", 1.0),
        ("epsilon", 0.0),
        ("clip_norm", 0.0),
        ("adam_ratio", -1.0),
        ("weight_decay", -0.1),
        ("warmup_steps", -1),
    ],
)
def test_a_wrong_value_is_refused_by_name(field, value):
    with annotations_off(), pytest.raises(ValueError, match=rf"optimizer\.{field}\b"):
        OptimizerConfig(**{field: value})

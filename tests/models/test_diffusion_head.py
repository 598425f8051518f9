"""The head against its formula in double precision; a fresh head answers zero."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers.tiny_model import tiny_config, tiny_model
from videomar_jax.diffusion.ddpm import DDPM
from videomar_jax.models.diffusion_head import DiffusionHead, time_features


def silu(x):
    return x / (1 + np.exp(-x))


def features(t):
    frequency = [math.exp(-math.log(10000) * i / 128) for i in range(128)]
    return np.concatenate([np.cos(np.outer(t, frequency)), np.sin(np.outer(t, frequency))], axis=-1)


def normed(x):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)


def by_formula(head: DiffusionHead, x, t, z):
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), nnx.to_pure_dict(nnx.state(head)))

    def dense(name, x, of=params):
        return x @ of[name]["kernel"] + of[name]["bias"]

    y = silu(dense("time2", silu(dense("time1", features(t)))) + dense("cond_embed", z))
    u = dense("input_proj", x)
    for i in range(params["blocks"]["linear1"]["kernel"].shape[0]):
        block = jax.tree.map(lambda p, i=i: p[i], params["blocks"])
        shift, scale, gate = np.split(dense("modulation", y, block), 3, axis=-1)
        h = (normed(u) * block["norm"]["scale"] + block["norm"]["bias"]) * (1 + scale) + shift
        u = u + gate * dense("linear2", silu(dense("linear1", h, block)), block)
    shift, scale = np.split(dense("final_modulation", y), 2, axis=-1)
    return dense("final", normed(u) * (1 + scale) + shift)


def inputs(rows=6):
    keys = jax.random.split(jax.random.key(0), 3)
    x, z = jax.random.normal(keys[0], (rows, 3)), jax.random.normal(keys[1], (rows, 32))
    return x, jax.random.randint(keys[2], (rows,), 0, 1000), z


@pytest.mark.parametrize("head", ["ddpm", "flow"])
def test_head_is_its_formula(head):
    x, t, z = inputs()
    time = t if head == "ddpm" else t / 1000
    out = jax.jit(lambda head: head(x, time, z))(tiny_model(head=head).head)
    assert out.shape == (6, 6 if head == "ddpm" else 3)
    expected = by_formula(tiny_model(head=head).head, np.float64(x), np.asarray(t), np.float64(z))
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-3 if head == "flow" else 1e-4)


def test_rows_do_not_see_each_other():
    x, t, z = inputs()
    run = jax.jit(lambda head, x: head(x, t, z))
    out, other = (run(tiny_model().head, x.at[3].add(shift)) for shift in (0.0, 5.0))
    changed = np.any(np.asarray(out) != np.asarray(other), axis=-1)
    assert changed.tolist() == [False, False, False, True, False, False]


def test_time_features_of_whole_steps_are_exact_to_float32():
    t = np.array([0, 1, 500, 999])
    np.testing.assert_allclose(time_features(jnp.asarray(t)), features(t), atol=1e-7)


def test_whole_steps_outside_of_the_process_give_nan_and_not_the_last_step():
    """Out of range, JAX's indexing would clamp: step 1500 of 1000 would pass for step 999."""
    head = tiny_model(head="ddpm").head
    found = np.asarray(head.time_embedding(jnp.array([0, 999, 1000, 1500])))
    assert np.isfinite(found[:2]).all() and np.isnan(found[2:]).all()


def test_the_time_features_reach_as_far_as_the_process():
    t = np.array([0, 999, 1000, 3999])
    np.testing.assert_allclose(time_features(jnp.asarray(t), 4000), features(t), atol=1e-7)
    assert tiny_model(head="ddpm").head.steps == DDPM().steps


def test_flow_time_stands_for_a_thousand_steps():
    t = np.array([0.0, 0.25, 0.999, 1.0])
    np.testing.assert_allclose(
        time_features(jnp.asarray(t, jnp.float32)), features(1000 * t), atol=3e-4
    )


@pytest.mark.parametrize("zero", [True, False])
def test_a_fresh_head_answers_zero_unless_configured_otherwise(zero):
    config = tiny_config(head="ddpm", head_zero_init=zero)
    head = jax.jit(lambda key: DiffusionHead(config, rngs=nnx.Rngs(params=key)))(jax.random.key(0))
    out = np.asarray(head(*inputs()))
    assert (out == 0).all() if zero else (np.abs(out) > 0).all()

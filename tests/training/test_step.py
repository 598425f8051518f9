"""One update: deterministic, in place, with draws of its own at every step; many of them learn."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers.tiny_model import GRID, tiny_config, tiny_model, tiny_text
from videomar_jax.models.params import abstract_model, count_params
from videomar_jax.training.config import LossConfig, OptimizerConfig
from videomar_jax.training.draws import Batch, draw
from videomar_jax.training.loss import next_frame_loss
from videomar_jax.training.optimizer import make_optimizer
from videomar_jax.training.state import init_state
from videomar_jax.training.step import make_train_step

LOSS = LossConfig(supervise="all_frames", draws_per_token=2)
OPTIMIZER = OptimizerConfig(clip_norm=1.0, ema_decay=0.9, weight_decay=0.02, epsilon=1e-3)
"""With a large epsilon the rounding of near-zero gradients decides no update's direction."""
RATE = 3e-3
KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def train_step():
    return make_train_step(abstract_model(tiny_config())[0], rule(), LOSS, OPTIMIZER)


def rule():
    return make_optimizer(OPTIMIZER, lambda step: jnp.float32(RATE))


def state_at(step=0):
    """A state whose gates and head are away from their initial values."""
    params = nnx.to_pure_dict(nnx.state(tiny_model()))
    state = init_state(tiny_config(), rule(), jax.random.key(0), params)
    return dataclasses.replace(state, step=jnp.asarray(step, jnp.int32))


def batch():
    return Batch(jax.random.normal(jax.random.key(2), (4, 2, *GRID, 3)), *tiny_text(4))


def assert_trees(check, first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for (path, own), expected in zip(
        jax.tree.leaves_with_path(first), jax.tree.leaves(second), strict=True
    ):
        check(own, expected, err_msg=jax.tree_util.keystr(path))


def test_the_same_state_batch_and_key_give_the_same_bits(train_step):
    first, second = (train_step(state_at(), batch(), KEY) for _ in range(2))
    assert_trees(np.testing.assert_array_equal, first, second)


def test_the_state_is_given_away(train_step):
    state = state_at()
    train_step(state, batch(), KEY)
    assert all(
        leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.ema, state.opt_state))
    )


def test_each_step_and_each_key_has_draws_of_its_own(train_step):
    losses = [
        float(train_step(state_at(step), batch(), key)[1]["loss"])
        for step, key in ((0, KEY), (1, KEY), (2, KEY), (0, jax.random.key(6)))
    ]
    assert len(set(losses)) == 4


def test_an_update_is_gradient_rule_and_average(train_step):
    """The step put together by hand from its parts, at step 3."""
    state, optimizer = state_at(3), rule()
    graph, _ = abstract_model(tiny_config())

    @jax.jit
    def by_hand(state):
        def loss(params):
            model = nnx.merge(graph, params)
            draws = draw(jax.random.fold_in(KEY, 3), model, (4, 2, 6), LOSS)
            return next_frame_loss(model, batch(), draws, LOSS)[0]

        value, gradients = jax.value_and_grad(loss)(state.params)
        return value, gradients, optimizer.update(gradients, state.opt_state, state.params)[0]

    value, gradients, updates = by_hand(state)
    old = jax.device_get(state.params)
    new, metrics = train_step(state, batch(), KEY)
    assert int(new.step) == 4

    def norm(tree):
        return np.sqrt(
            sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in jax.tree.leaves(tree))
        )

    moved = jax.tree.map(lambda p, u: p + np.asarray(u), old, updates)
    average = jax.tree.map(lambda p, m: 0.9 * p + 0.1 * m, old, moved)
    close = functools.partial(np.testing.assert_allclose, atol=2e-5)
    assert_trees(close, new.params, moved)
    assert_trees(close, new.ema, average)
    found = [metrics[name] for name in ("loss", "gradient_norm", "update_norm", "parameter_norm")]
    np.testing.assert_allclose(
        found, [value, norm(gradients), norm(updates), norm(moved)], rtol=1e-3
    )


def test_repeating_one_batch_learns(train_step):
    """The loss is noisy (fresh draws each step), so means over ten steps are compared."""
    state, losses = state_at(), []
    for _ in range(60):
        state, metrics = train_step(state, batch(), KEY)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10]), losses


def test_a_fresh_state_averages_its_own_parameters():
    state = init_state(tiny_config(), rule(), jax.random.key(0))
    assert_trees(np.testing.assert_array_equal, state.params, state.ema)
    assert int(state.step) == 0 and set(state.parts()) == {"params", "ema", "opt_state"}
    assert count_params(state.params) == count_params(abstract_model(tiny_config())[1])
    own = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((state.params, state.ema))}
    assert len(own) == 2 * len(jax.tree.leaves(state.params)), "donation needs buffers of their own"

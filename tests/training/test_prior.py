"""Fitting the linear prior: the right map, caution with few windows, and constancy in training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers.tiny_model import FROM_FRAME_BEFORE, GRID, tiny_config, tiny_model, tiny_text
from videomar_jax.checks import UserError
from videomar_jax.models.linear_prior import NEIGHBOURS, neighbourhoods
from videomar_jax.models.params import abstract_model
from videomar_jax.models.patchify import patchify
from videomar_jax.training import prior as prior_module
from videomar_jax.training.config import LossConfig, OptimizerConfig
from videomar_jax.training.draws import Batch, draw
from videomar_jax.training.history_noise import with_history_noise
from videomar_jax.training.loss import next_frame_loss
from videomar_jax.training.optimizer import make_optimizer
from videomar_jax.training.prior import Window, fit_prior
from videomar_jax.training.state import init_state
from videomar_jax.training.step import make_train_step

WIDTH = 2
COUNT = GRID[0] * GRID[1]
FEATURES = NEIGHBOURS * WIDTH + 1


def maps(seed=0):
    """One true map for frame 1, another one for later frames; small, so that clips stay finite."""
    return 0.2 * np.random.default_rng(seed).standard_normal((2, FEATURES, WIDTH))


def windows(count, *, frames=4, clips=None, noise=(0.1, 0.4), seed=1):
    """Clips that follow `maps` up to noise of these standard deviations."""
    generator = np.random.default_rng(seed)
    weight = maps()
    for number in range(count):
        tokens = generator.standard_normal((frames, COUNT, WIDTH)).astype(np.float32)
        for frame in range(1, frames):
            before = np.asarray(neighbourhoods(jnp.asarray(tokens[None, frame - 1 : frame]), GRID))
            kind = weight[min(frame - 1, 1)]
            expected = before[0, 0] @ kind[:-1] + kind[-1]
            # Frames do not depend on each other in a chain: that would make them alike.
            tokens[frame] = expected + noise * generator.standard_normal((COUNT, WIDTH))
        yield Window(number if clips is None else number % clips, tokens)


def test_the_maps_and_the_spread_are_found():
    fitted = fit_prior(windows(400), GRID)
    np.testing.assert_allclose(fitted.params["weight"], maps(), atol=0.12)
    first, second = 0.1, 0.4
    overall = np.sqrt((first**2 + second**2) / 2)
    wanted = np.sqrt(np.array([first, second]) * overall)
    np.testing.assert_allclose(fitted.params["spread"], wanted, rtol=0.05)
    assert fitted.windows == fitted.clips == 400
    assert fitted.params["weight"].dtype == fitted.params["spread"].dtype == np.float32


def test_equal_to_ridge_regression_by_least_squares():
    """Against NumPy on rows that carry the penalty."""
    data = list(windows(60))
    fitted = fit_prior(data, GRID)
    rows, targets = [], []
    for window in data:
        tokens = window.tokens
        around = np.asarray(neighbourhoods(jnp.asarray(tokens[None, 0:1]), GRID), np.float64)[0, 0]
        rows.append(np.concatenate([around, np.ones((COUNT, 1))], axis=1))
        targets.append(tokens[1].astype(np.float64))
    rows, targets = np.concatenate(rows), np.concatenate(targets)
    candidates = []
    for ridge in prior_module.RIDGES:
        penalty = np.full(FEATURES, ridge * np.trace(rows.T @ rows) / FEATURES)
        penalty[-1] = 1e-6
        padded = np.concatenate([rows, np.diag(np.sqrt(penalty))])
        zeros = np.zeros((FEATURES, WIDTH))
        candidates.append(np.linalg.lstsq(padded, np.concatenate([targets, zeros]))[0])
    distance = [np.abs(fitted.params["weight"][0] - each).max() for each in candidates]
    assert min(distance) < 1e-5, distance


def test_few_windows_give_a_cautious_map_and_an_honest_spread():
    """With fewer tokens than unknowns a fit without penalty would leave nothing over."""
    fitted = fit_prior(windows(2, noise=(1.0, 1.0)), GRID)
    assert np.isfinite(fitted.params["weight"]).all()
    assert (fitted.params["spread"] > 0.5).all(), "the spread is that of the fitted windows"
    assert np.abs(fitted.params["weight"][0]).max() < 1.0


def test_a_single_clip_of_two_latent_frames_is_enough_to_go_on():
    fitted = fit_prior(windows(3, frames=2, clips=1), GRID)
    np.testing.assert_array_equal(*fitted.params["weight"])
    assert np.isfinite(fitted.params["spread"]).all()


def test_a_still_clip_leaves_the_least_spread():
    frame = np.arange(COUNT * WIDTH, dtype=np.float32).reshape(COUNT, WIDTH)
    still = np.stack([frame] * 4)
    fitted = fit_prior([Window(0, still), Window(1, still)], GRID)
    assert (fitted.params["spread"] >= prior_module.LEAST_SPREAD).all()
    assert np.isfinite(fitted.params["weight"]).all()


def test_what_cannot_be_fitted_is_named():
    with pytest.raises(UserError, match="no clip has two latent frames"):
        fit_prior([], GRID)
    bad = np.full((3, COUNT, WIDTH), np.nan, np.float32)
    with pytest.raises(UserError, match="not finite"):
        fit_prior([Window(0, bad)], GRID)


# In the loss


def recipe_inputs(frames=3, clips=4):
    latents = jax.random.normal(jax.random.key(0), (clips, frames, *GRID, 3))
    return tiny_model(**FROM_FRAME_BEFORE), Batch(latents, *tiny_text(clips))


@pytest.mark.parametrize("supervise", ["one_frame", "all_frames"])
def test_the_head_learns_what_prior_and_mean_leave_over(supervise):
    """The loss of the recipe equals that of a model without it on standardised tokens, minus the
    mean; here without a hint, so that both see the same."""
    changes = FROM_FRAME_BEFORE | dict(previous_frame=False, depth=1)
    model = tiny_model(**changes)
    _, batch = recipe_inputs()
    config = LossConfig(supervise=supervise, draws_per_token=1, regression_weight=0.5)
    draws = draw(jax.random.key(1), model, (4, 3, 6), config)
    metrics = next_frame_loss(model, batch, draws, config)[1]
    tokens = batch.latents.reshape(4, 3, 6, 3)
    previous = jnp.concatenate([tokens[:, :1], tokens[:, :-1]], axis=1)
    scaled = model.linear_prior(previous, np.arange(3), GRID).encode(tokens)
    errors, count = 0.0, 0
    for clip in range(4):
        frames = (1, 2) if supervise == "all_frames" else (int(draws.current[clip]),)
        for frame in frames:
            hidden = draws.orders[clip, frame][6 - int(draws.num_masked[clip, frame]) :]
            mask = jnp.zeros((1, 3, 6), bool).at[0, frame, hidden].set(True)
            text = jax.tree.map(lambda x, i=clip: x[i : i + 1], (batch.text, batch.text_mask))
            context = model.context(*text, draws.drop[clip : clip + 1])
            z = model(tokens[clip : clip + 1], mask, context, GRID)[0, frame]
            before = previous[clip : clip + 1, frame : frame + 1]
            units = model.regression.bilinear.filters(before, np.array([frame]), GRID)[0, 0]
            mean = model.regression(z, units)
            errors += float(jnp.sum(jnp.mean((mean - scaled[clip, frame]) ** 2, -1)[hidden]))
            count += len(hidden)
    np.testing.assert_allclose(metrics["regression_loss"], errors / count, rtol=1e-4)


def test_the_diffusion_loss_does_not_move_the_mean():
    model, batch = recipe_inputs()
    config = LossConfig(supervise="all_frames", draws_per_token=1, regression_weight=0.5)
    draws = draw(jax.random.key(1), model, (4, 3, 6), config)

    def diffusion_loss(model):
        return next_frame_loss(model, batch, draws, config)[1]["diffusion_loss"]

    gradient = jax.grad(diffusion_loss)(model)
    readout = nnx.to_pure_dict(nnx.state(gradient.regression))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(readout))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_training_leaves_the_prior_as_it_was_fitted(name):
    config = tiny_config(**FROM_FRAME_BEFORE)
    loss = LossConfig(supervise="all_frames", draws_per_token=1, regression_weight=1.0)
    rule = OptimizerConfig(name=name, weight_decay=0.5, ema_decay=0.37)
    optimizer = make_optimizer(rule, lambda step: 0.1)
    generator = np.random.default_rng(0)
    shapes = abstract_model(config)[1]["linear_prior"]
    prior = {
        name: np.abs(generator.standard_normal(leaf.shape)).astype(np.float32) + 0.1
        for name, leaf in shapes.items()
    }
    state = init_state(config, optimizer, jax.random.key(0), prior=prior)
    update = make_train_step(abstract_model(config)[0], optimizer, loss, rule)
    _, batch = recipe_inputs()
    before = np.asarray(state.params["z_proj"]["kernel"])
    for _ in range(3):
        state, _ = update(state, batch, jax.random.key(1))
    assert (before != np.asarray(state.params["z_proj"]["kernel"])).any()
    for tree in (state.params, state.ema):
        for key, value in prior.items():
            np.testing.assert_array_equal(tree["linear_prior"][key], value)


def test_a_history_with_noise_is_what_prior_and_hint_see():
    model, batch = recipe_inputs()
    config = LossConfig(
        supervise="all_frames", draws_per_token=1, regression_weight=1.0, history_noise=0.5
    )
    draws = draw(jax.random.key(1), model, (4, 3, 6), config)
    noisy = next_frame_loss(model, batch, draws, config)[0]
    clean = dataclasses.replace(draws, history_level=jnp.zeros(4))
    assert float(noisy) != float(next_frame_loss(model, batch, clean, config)[0])


def test_noise_on_the_history_is_in_units_of_what_the_prior_leaves_over():
    model, batch = recipe_inputs()
    spread = model.linear_prior.spread
    spread[...] = jnp.arange(1.0, 1.0 + spread.shape[0])
    config = LossConfig(supervise="all_frames", draws_per_token=1, history_noise=0.5)
    draws = draw(jax.random.key(1), model, (4, 3, 6), config)
    tokens = patchify(batch.latents, model.config.patch_size)
    seen = with_history_noise(model, tokens, draws)
    np.testing.assert_array_equal(seen[:, -1], tokens[:, -1])
    level = np.asarray(draws.history_level)[:, None, None, None]
    added = level * np.asarray(spread[...]) * np.asarray(draws.history_noise)
    np.testing.assert_allclose(seen[:, :-1] - tokens[:, :-1], added, atol=1e-5)

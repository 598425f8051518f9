"""Both forms of the loss against a computation frame by frame, and what may not influence it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tiny_model import GRID, annotations_off, tiny_model, tiny_text
from videomar_jax.training.config import LossConfig
from videomar_jax.training.draws import Batch, draw, supervised_frames
from videomar_jax.training.loss import next_frame_loss

COUNT, CLIPS = GRID[0] * GRID[1], 2


def make_batch(frames, seed=0):
    latents = jax.random.normal(jax.random.key(seed), (CLIPS, frames, *GRID, 3))
    return Batch(latents, *tiny_text(CLIPS))


def make_draws(model, frames, config, seed=1):
    draws = draw(jax.random.key(seed), model, (CLIPS, frames, COUNT), config)
    return dataclasses.replace(draws, drop=jnp.array([False, True]))


@functools.partial(jax.jit, static_argnames="config")
def loss_of(model, batch, draws, config):
    return next_frame_loss(model, batch, draws, config)


# ---- frame by frame


@jax.jit
def rows_one_by_one(model, batch, hidden, frame, drop, times, noise):
    """Losses [m, B, R, S] and regression errors [B, R, S] of the frames `frame` [B, R].

    Each frame's z comes from a causal pass of its own, in which it alone is partly hidden, as
    `hidden` [B, T, S] says.
    """
    clips, frames = batch.latents.shape[:2]
    tokens = batch.latents.reshape(clips, frames, COUNT, -1)
    context = model.context(batch.text, batch.text_mask, drop)

    def z_of(t):
        return model(tokens, hidden & (jnp.arange(frames) == t)[None, :, None], context, GRID)[:, t]

    z = jnp.moveaxis(jax.vmap(z_of)(jnp.arange(frames)), 0, 1)[jnp.arange(clips)[:, None], frame]
    clean = tokens[jnp.arange(clips)[:, None], frame]
    process, losses = model.process, []
    for t, eps in zip(times, noise, strict=True):
        noisy = process.add_noise(clean, t, eps)
        losses.append(process.loss(model.head(noisy, t, z), clean, noisy, t, eps))
    read = model.regression(z) if model.config.regression else z[..., :3]
    return jnp.stack(losses), jnp.mean((read - clean) ** 2, axis=-1)


def expected_loss(model, batch, draws, config):
    """The sums of the module's text with loops over samples, frames and tokens."""
    frames = batch.latents.shape[1]
    rank, hidden = np.argsort(draws.orders, axis=-1), np.zeros((CLIPS, frames, COUNT), bool)
    for b, t, s in np.ndindex(*hidden.shape):
        hidden[b, t, s] = rank[b, t, s] >= COUNT - draws.num_masked[b, t]
    each = np.broadcast_to(
        np.arange(1, frames) if frames > 1 else np.arange(1), (CLIPS, max(frames - 1, 1))
    )
    frame = each if config.supervise == "all_frames" else np.asarray(draws.current)[:, None]
    losses, errors = rows_one_by_one(
        model, batch, jnp.asarray(hidden), jnp.asarray(frame), draws.drop, draws.times, draws.noise
    )
    total = error = counted = everything = 0.0
    for b in range(CLIPS):
        for row, t in enumerate(frame[b]):
            shown = hidden[b, t]
            total += float(np.asarray(losses, np.float64)[:, b, row][:, shown].sum())
            error += float(np.asarray(errors, np.float64)[b, row][shown].sum())
            counted += int(shown.sum())
            everything += int(shown.sum()) + (
                COUNT * (frames - 1 - t) if config.supervise == "one_frame" else 0
            )
    normaliser = everything if config.normaliser == "all_masked" else counted
    return total / (config.draws_per_token * normaliser), error / counted


FORMS = [
    (3, "flow", LossConfig(supervise="one_frame", draws_per_token=2)),
    (3, "ddpm", LossConfig(supervise="one_frame", normaliser="supervised", draws_per_token=2)),
    (3, "flow", LossConfig(supervise="all_frames", draws_per_token=2, mask_rate_min=0.1)),
    (3, "ddpm", LossConfig(supervise="all_frames", draws_per_token=1)),
    (1, "flow", LossConfig(supervise="one_frame", draws_per_token=2)),
    (1, "flow", LossConfig(supervise="all_frames", draws_per_token=2)),
]


@pytest.mark.parametrize(("frames", "head", "config"), FORMS)
def test_loss_is_its_definition(frames, head, config):
    model, batch = tiny_model(head=head), make_batch(frames)
    draws = make_draws(model, frames, config)
    loss, metrics = loss_of(model, batch, draws, config)
    np.testing.assert_allclose(loss, expected_loss(model, batch, draws, config)[0], rtol=1e-4)
    assert metrics["loss"] == loss == metrics["diffusion_loss"] and loss.dtype == jnp.float32


def test_the_two_normalisers_differ_by_the_later_frames():
    model, batch = tiny_model(), make_batch(3)
    draws = make_draws(model, 3, LossConfig(draws_per_token=2))
    draws = dataclasses.replace(
        draws, current=jnp.array([1, 2]), num_masked=jnp.array([[4, 5, 6], [6, 5, 4]])
    )
    configs = (
        LossConfig(draws_per_token=2, normaliser=name) for name in ("all_masked", "supervised")
    )
    by_mask, by_loss_mask = (loss_of(model, batch, draws, config)[0] for config in configs)
    np.testing.assert_allclose(by_loss_mask / by_mask, (5 + 6 + 4) / (5 + 4), rtol=1e-5)


def test_regression_adds_the_error_of_the_readout():
    model, batch = tiny_model(regression=True), make_batch(3)
    config = LossConfig(supervise="all_frames", draws_per_token=2, regression_weight=0.5)
    draws = make_draws(model, 3, config)
    loss, metrics = loss_of(model, batch, draws, config)
    diffusion, error = expected_loss(model, batch, draws, config)
    np.testing.assert_allclose(metrics["diffusion_loss"], diffusion, rtol=1e-4)
    np.testing.assert_allclose(metrics["regression_loss"], error, rtol=1e-4)
    np.testing.assert_allclose(loss, diffusion + 0.5 * error, rtol=1e-4)


# ---- what may not matter

ONE = LossConfig(supervise="one_frame", draws_per_token=2)


@pytest.mark.parametrize("current", [1, 2])
def test_frames_after_the_current_one_do_not_matter(current):
    model, batch = tiny_model(), make_batch(3)
    draws = dataclasses.replace(make_draws(model, 3, ONE), current=jnp.full(CLIPS, current))
    loss, _ = loss_of(model, batch, draws, ONE)
    for frame in range(3):
        other = dataclasses.replace(batch, latents=batch.latents.at[:, frame].multiply(-1.5))
        changed = loss_of(model, other, draws, ONE)[0] != loss
        assert changed == (frame <= current), (
            f"frame {frame} {'matters' if changed else 'does not matter'}"
        )


def test_each_sample_has_a_current_frame_of_its_own():
    model, batch = tiny_model(), make_batch(3)
    config = dataclasses.replace(ONE, normaliser="supervised")
    draws = dataclasses.replace(make_draws(model, 3, config), current=jnp.array([1, 2]))
    loss, _ = loss_of(model, batch, draws, config)
    for clip, matters in ((0, False), (1, True)):
        other = dataclasses.replace(batch, latents=batch.latents.at[clip, 2].multiply(-1.5))
        assert (loss_of(model, other, draws, config)[0] != loss) == matters


def test_dropped_text_does_not_matter():
    model, batch = tiny_model(), make_batch(3)
    other = dataclasses.replace(batch, text=batch.text + 1.0)
    for drop, matters in ((True, False), (False, True)):
        draws = dataclasses.replace(make_draws(model, 3, ONE), drop=jnp.full(CLIPS, drop))
        assert (
            loss_of(model, batch, draws, ONE)[0] != loss_of(model, other, draws, ONE)[0]
        ) == matters


# ---- what is outside of the loss may not harm it


@functools.partial(jax.jit, static_argnames="config")
def gradient_of(model, batch, draws, config):
    return jax.grad(lambda model: next_frame_loss(model, batch, draws, config)[0])(model)


@pytest.mark.parametrize("truth", [jnp.nan, jnp.inf])
def test_hidden_frames_that_are_not_finite_do_not_reach_the_gradient(truth):
    """Frames after the current one are hidden as a whole and carry no loss."""
    model, batch = tiny_model(), make_batch(3)
    draws = dataclasses.replace(make_draws(model, 3, ONE), current=jnp.full(CLIPS, 1))
    expected = gradient_of(model, batch, draws, ONE)
    broken = dataclasses.replace(batch, latents=batch.latents.at[:, 2].set(truth))
    found = gradient_of(model, broken, draws, ONE)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(found)]
    for path, one, other in zip(
        paths, jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(one, other, err_msg=path)


def test_a_visible_token_whose_loss_overflows_does_not_reach_the_gradient():
    """1e20 is finite, its square is not: where the token carries no loss, that may not matter."""
    config = LossConfig(supervise="all_frames", draws_per_token=2)
    model, batch = tiny_model(head="ddpm"), make_batch(2)
    draws = make_draws(model, 2, config)
    draws = dataclasses.replace(draws, num_masked=jnp.full((CLIPS, 2), COUNT - 1))
    visible = int(draws.orders[0, 1, 0])  # the first of the order is not among the last five
    tokens = batch.latents.reshape(CLIPS, 2, COUNT, 3).at[0, 1, visible].set(1e20)
    huge = dataclasses.replace(batch, latents=tokens.reshape(batch.latents.shape))
    assert np.isfinite(loss_of(model, huge, draws, config)[0])
    for path, leaf in jax.tree.leaves_with_path(gradient_of(model, huge, draws, config)):
        assert np.isfinite(leaf).all(), f"the gradient of {jax.tree_util.keystr(path)}"


# ---- the draws


def test_draws_follow_their_laws():
    """2000 clips: shares are known to 5 standard errors, at most 0.056."""
    config = LossConfig(draws_per_token=1, text_dropout=0.3)
    draws = draw(jax.random.key(0), tiny_model(), (2000, 4, COUNT), config)
    shares = np.bincount(draws.current, minlength=4) / 2000
    assert shares[0] == 0 and np.abs(shares[1:] - 1 / 3).max() < 5 * np.sqrt(2 / 9 / 2000)
    assert abs(draws.drop.mean() - 0.3) < 5 * np.sqrt(0.21 / 2000)
    assert set(np.unique(draws.num_masked).tolist()) == {5, 6}  # ceil(6 r) for r in [0.7, 1)
    assert (
        abs(draws.noise.mean()) < 5 / np.sqrt(draws.noise.size)
        and abs(draws.noise.std() - 1) < 0.02
    )
    assert abs(np.corrcoef(draws.current, draws.drop)[0, 1]) < 5 / np.sqrt(2000)


def test_an_image_is_its_own_current_frame_and_dropout_may_be_off_or_total():
    for rate in (0.0, 1.0):
        draws = draw(jax.random.key(0), tiny_model(), (8, 1, COUNT), LossConfig(text_dropout=rate))
        assert (draws.current == 0).all() and (draws.drop == bool(rate)).all()


@pytest.mark.parametrize(
    ("form", "frames", "rows"),
    [
        ("one_frame", 4, 1),
        ("all_frames", 4, 3),
        ("one_frame", 1, 1),
        ("all_frames", 1, 1),
    ],
)
def test_rows_of_draws(form, frames, rows):
    config = LossConfig(supervise=form, draws_per_token=3)
    assert supervised_frames(frames, config) == rows
    draws = draw(jax.random.key(0), tiny_model(), (5, frames, COUNT), config)
    assert draws.noise.shape == (3, 5, rows, COUNT, 3) and draws.times.shape == (3, 5, rows, COUNT)
    assert draws.orders.shape == (5, frames, COUNT) and draws.num_masked.shape == (5, frames)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("supervise", "some"),
        ("normaliser", "none"),
        ("mask_rate_min", 1.0),
        ("mask_rate_min", -0.1),
        ("text_dropout", 1.1),
        ("draws_per_token", 0),
    ],
)
def test_a_wrong_value_is_refused_by_name(field, value):
    with annotations_off(), pytest.raises(ValueError, match=rf"loss\.{field}\b"):
        LossConfig(**{field: value})

"""What a model takes from the frame before: the linear prior, the hint, the mean of the readout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers.tiny_model import (
    FROM_FRAME_BEFORE,
    GRID,
    tiny_config,
    tiny_model,
    tiny_text,
    tiny_tokens,
)
from videomar_jax.checks import UserError
from videomar_jax.models import linear_prior
from videomar_jax.models.config import PRESETS, ModelConfig
from videomar_jax.models.videomar import VideoMAR

HEIGHT, WIDTH = GRID
COUNT = HEIGHT * WIDTH
EXACT = dict(atol=3e-5, rtol=0)


def recipe():
    return tiny_model(**FROM_FRAME_BEFORE)


def tokens_of(frames=3, batch=2):
    return tiny_tokens(frames, batch)[0]


def test_a_neighbourhood_is_the_3x3_tokens_around_row_by_row():
    found = np.asarray(linear_prior.neighbourhoods(tokens_of(), GRID))
    tokens = np.asarray(tokens_of())
    for place in range(COUNT):
        row, column = divmod(place, WIDTH)
        around = []
        for i in (row - 1, row, row + 1):
            for j in (column - 1, column, column + 1):
                inside = np.clip(i, 0, HEIGHT - 1) * WIDTH + np.clip(j, 0, WIDTH - 1)
                around.append(tokens[:, :, inside])
        np.testing.assert_array_equal(found[:, :, place], np.concatenate(around, axis=-1))


def test_the_prior_is_its_formula_frame_by_frame():
    """One map for frame 1, another one for later frames, nothing for frame 0."""
    tokens, prior = tokens_of(4), recipe().linear_prior
    previous = jnp.concatenate([jnp.full_like(tokens[:, :1], 7.0), tokens[:, :-1]], axis=1)
    found = prior(previous, np.arange(4), GRID)
    features = np.asarray(linear_prior.neighbourhoods(previous, GRID), np.float64)
    weight = np.asarray(prior.weight[...], np.float64)
    for frame, kind in ((1, 0), (2, 1), (3, 1)):
        wanted = features[:, frame] @ weight[kind, :-1] + weight[kind, -1]
        np.testing.assert_allclose(found.mean[:, frame], wanted, atol=1e-5)
        np.testing.assert_array_equal(found.spread[frame, 0], prior.spread[...])
    assert (found.mean[:, 0] == 0).all() and (found.spread[0] == 1).all()
    np.testing.assert_allclose(found.decode(found.encode(tokens)), tokens, atol=1e-5)


@pytest.mark.parametrize("part", ["linear_prior", "previous_embed"])
def test_numbers_of_frames_may_be_known_late_and_differ_from_clip_to_clip(part):
    tokens, module = tokens_of(), getattr(recipe(), part)
    first, numbers = jax.tree.leaves(module(tokens, np.arange(3), GRID))[0], jnp.arange(3)
    late = jax.jit(lambda tokens, numbers: module(tokens, numbers, GRID))
    np.testing.assert_allclose(jax.tree.leaves(late(tokens, numbers))[0], first, atol=1e-6)
    for clip, frame in ((0, 2), (1, 1)):
        mixed = jnp.array([[2], [1]])
        previous = tokens[jnp.arange(2), mixed[:, 0]][:, None]
        found = jax.tree.leaves(late(previous, mixed))[0]
        np.testing.assert_allclose(found[clip, 0], first[clip, frame], atol=1e-6)


# In the model


@functools.partial(jax.jit, static_argnames="frames")
def teacher_forced(model, tokens, mask, frames):
    hidden = mask[:, min(frames - 1, 1) :]
    return model.teacher_forced(tokens, hidden, model.context(*tiny_text()), GRID)


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_teacher_forcing_equals_a_causal_pass_for_each_frame(frames):
    model = recipe()
    tokens, mask = tiny_tokens(frames)
    context = model.context(*tiny_text())
    found = teacher_forced(model, tokens, mask, frames)
    first = min(frames - 1, 1)
    for frame in range(first, frames):
        only = mask & (jnp.arange(frames) == frame)[None, :, None]
        wanted = model(tokens, only, context, GRID)[:, frame]
        np.testing.assert_allclose(found[:, frame - first], wanted, **EXACT)


def test_hidden_places_see_the_frame_before_and_nothing_later():
    model = recipe()
    tokens, _ = tiny_tokens()
    hidden = jnp.zeros(tokens.shape[:3], bool).at[:, 1].set(True)

    @jax.jit
    def influence(tokens):
        def read(tokens):
            z = model(tokens, hidden, model.context(*tiny_text()), GRID)[:, 1]
            return jnp.sum(z * jax.random.normal(jax.random.key(0), z.shape))

        return jax.grad(read)(tokens)

    gradient = np.asarray(influence(tokens))
    assert (np.abs(gradient[:, 0]).max(axis=-1) > 1e-6).all(), "a token of frame 0 is not seen"
    assert (gradient[:, 1:] == 0).all(), "a hidden token, or one of a later frame, is seen"


def test_a_hint_changes_hidden_places_only():
    model, x = recipe(), jnp.zeros((2, 3, COUNT, 32))
    tokens, mask = tiny_tokens()
    context = model.context(*tiny_text())
    added = np.asarray(linear_prior.add_hint(model, x, mask, tokens[:, :-1], GRID, context))
    hidden = np.asarray(mask)
    assert (added[:, 0] == 0).all(), "frame 0 has no frame before it"
    assert (added[~hidden] == 0).all()
    assert (np.abs(added[:, 1:][hidden[:, 1:]]).max(axis=-1) > 0).all()


def test_the_guided_mean_is_that_of_the_readout():
    model = recipe()
    z = jax.random.normal(jax.random.key(0), (4, 5, 32))
    drawn = jax.random.normal(jax.random.key(1), (2, 5, 3))
    units = jax.random.normal(jax.random.key(2), (2, 5, FROM_FRAME_BEFORE["bilinear_units"]))
    prior = linear_prior.Standardised(jnp.ones((2, 5, 3)), jnp.full((1, 3), 2.0), units)
    mean = np.asarray(model.regression(z, jnp.concatenate([units, units])))
    guided = mean[2:] + 3.0 * (mean[:2] - mean[2:])
    found = linear_prior.complete(model, drawn, z, jnp.asarray(3.0), prior)
    np.testing.assert_allclose(found, 1 + 2 * (np.asarray(drawn) + guided), atol=1e-5)
    unguided = linear_prior.complete(model, drawn, z[:2], jnp.asarray(1.0), prior)
    np.testing.assert_allclose(unguided, 1 + 2 * (np.asarray(drawn) + mean[:2]), atol=1e-5)


def test_the_mean_is_its_formula_in_training_and_in_sampling():
    model, tokens = recipe(), tokens_of()
    z = jax.random.normal(jax.random.key(0), (2, 2, COUNT, 32))
    context = model.context(*tiny_text())
    previous, number = linear_prior.previous_frames(tokens[:, :-1], 2)
    found = linear_prior.mean_of_rest(model, z, previous, number, GRID, context)
    around = np.asarray(linear_prior.neighbourhoods(previous, GRID), np.float64)
    readout = model.regression
    bilinear = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), readout.bilinear)
    for frame in (0, 1):
        unit = (
            around[:, frame] @ bilinear.filters.kernel[...][frame]
            + bilinear.filters.bias[...][frame]
        )
        gate = np.asarray(z[:, frame]) @ bilinear.gate.kernel[...] + bilinear.gate.bias[...]
        moved = (gate * unit) @ bilinear.mix.kernel[...]
        linear = np.asarray(z[:, frame]) @ readout.kernel[...] + readout.bias[...]
        wanted = linear + moved
        np.testing.assert_allclose(found[:, frame], wanted, atol=2e-5)
        place = (tokens[:, frame], jnp.asarray(frame + 1), GRID, context)
        prior = linear_prior.frame_prior(model, *place)
        nothing = jnp.zeros((2, COUNT, 3))
        drawn = linear_prior.complete(model, nothing, z[:, frame], jnp.asarray(1.0), prior)
        np.testing.assert_allclose(drawn, prior.decode(found[:, frame]), atol=2e-5)


def test_a_new_model_expects_what_the_prior_says_and_no_more():
    fresh = VideoMAR(tiny_config(**FROM_FRAME_BEFORE), rngs=nnx.Rngs(0))
    z = jax.random.normal(jax.random.key(0), (2, 5, 32))
    units = jnp.ones((2, 5, FROM_FRAME_BEFORE["bilinear_units"]))
    assert (np.asarray(fresh.regression(z, units)) == 0).all()
    changes = FROM_FRAME_BEFORE | dict(residual=False, bilinear_units=0)
    without = VideoMAR(tiny_config(**changes), rngs=nnx.Rngs(0))
    assert (np.asarray(without.regression(z)) != 0).any(), "else old runs would begin elsewhere"


# Settings


def test_old_files_and_digests_do_not_change():
    """Fields that a model does not use are not in its file, nor in what is made from it."""
    old = PRESETS["videomar_1p4b"].to_dict()
    assert not set(old) & set(FROM_FRAME_BEFORE) - {"regression"}
    assert ModelConfig.from_dict(old) == PRESETS["videomar_1p4b"]
    new = tiny_config(**FROM_FRAME_BEFORE)
    assert new.to_dict()["linear_prior"] is True
    assert ModelConfig.from_dict(new.to_dict()) == new


def test_bilinear_units_need_a_residual_and_a_prior():
    for without in ("residual", "linear_prior"):
        with pytest.raises(UserError, match=r"model\.bilinear_units needs model\.residual"):
            tiny_config(**FROM_FRAME_BEFORE | {without: False})


def test_a_residual_needs_a_mean():
    with pytest.raises(UserError, match=r"model\.residual needs model\.regression"):
        tiny_config(residual=True)

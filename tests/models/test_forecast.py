"""The linear forecast from the first frame and the text: its formula, where it holds, and that the
prior and every way through the model take the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tiny_model import (
    FROM_FIRST_FRAME,
    FROM_FRAME_BEFORE,
    GRID,
    tiny_config,
    tiny_model,
    tiny_text,
    tiny_tokens,
)
from videomar_jax.checks import UserError
from videomar_jax.models.config import ModelConfig
from videomar_jax.models.forecast import forecast_features, forecast_sizes, with_forecast

FRAMES, COUNT, WIDTH = 3, 6, 3


def recipe():
    return tiny_model(**FROM_FIRST_FRAME)


def forecast_of(tokens, text, grid=GRID):
    return np.asarray(recipe().linear_prior.forecast(tokens[:, 0], *text, grid))


def test_the_forecast_is_its_formula():
    tokens, text = tiny_tokens()[0], tiny_text()
    module = recipe().linear_prior.forecast
    part = {
        name: np.asarray(getattr(module, name)[...], np.float64)
        for name in (
            "same_place",
            "frame_mean",
            "frame_parts",
            "text_mean",
            "text_parts",
            "inputs",
            "changes",
        )
    }
    crossed = forecast_sizes(module.config).crossed
    found = forecast_of(tokens, text)
    for clip in range(2):
        first = np.asarray(tokens[clip, 0], np.float64)
        a = (first.ravel() - part["frame_mean"]) @ part["frame_parts"]
        features, mask = (np.asarray(x[clip]) for x in text)
        e = (features[mask].mean(axis=0) - part["text_mean"]) @ part["text_parts"]
        phi = np.concatenate([[1.0], a, e, np.outer(e, a[:crossed]).ravel()])
        change = (phi @ part["inputs"] @ part["changes"]).reshape(FRAMES - 1, COUNT, WIDTH)
        still = first @ part["same_place"][:-1] + part["same_place"][-1]
        wanted = np.concatenate([still[None], still + change])
        np.testing.assert_allclose(found[clip], wanted, rtol=2e-4, atol=2e-4)


def test_on_another_grid_nothing_is_expected_to_change():
    tokens = tiny_tokens()[0]
    found = forecast_of(tokens, tiny_text(), (3, 2))
    np.testing.assert_array_equal(found[:, 1], found[:, 0])
    assert (forecast_of(tokens, tiny_text())[:, 1] != found[:, 1]).any()


def test_frames_beyond_the_last_are_expected_to_look_like_it():
    forecast = jnp.asarray(forecast_of(tiny_tokens()[0], tiny_text()))
    found = np.asarray(forecast_features(forecast, np.arange(6)))
    now, change = found[..., :WIDTH], found[..., WIDTH:]
    np.testing.assert_array_equal(now[:, :3], forecast)
    np.testing.assert_array_equal(now[:, 3:], np.repeat(forecast[:, 2:], 3, axis=1))
    np.testing.assert_allclose(change[:, 1:3], np.diff(forecast, axis=1), atol=1e-6)
    assert (change[:, 0] == 0).all() and (change[:, 3:] == 0).all()


def test_numbers_may_differ_from_clip_to_clip():
    forecast = jnp.asarray(forecast_of(tiny_tokens()[0], tiny_text()))
    found = forecast_features(forecast, jnp.array([[2], [1]]))
    every = forecast_features(forecast, np.arange(3))
    np.testing.assert_array_equal(found[0, 0], every[0, 2])
    np.testing.assert_array_equal(found[1, 0], every[1, 1])


def test_the_prior_takes_it_in():
    tokens, model = tiny_tokens()[0], recipe()
    forecast = jnp.asarray(forecast_of(tokens, tiny_text()))
    number = np.array([1, 2])
    found = model.linear_prior(tokens[:, :2], number, GRID, forecast).mean
    other = model.linear_prior(tokens[:, :2], number, GRID, forecast.at[:, 2].add(1.0)).mean
    np.testing.assert_array_equal(found[:, 0], other[:, 0])
    weight = np.asarray(model.linear_prior.weight[...])[1]
    own = weight[9 * WIDTH : 11 * WIDTH].reshape(2, WIDTH, WIDTH).sum(axis=(0, 1))
    np.testing.assert_allclose(
        other[:, 1] - found[:, 1], np.broadcast_to(own, (2, 6, 3)), atol=1e-4
    )


def test_training_sees_what_one_pass_over_all_frames_sees():
    """Teacher forcing against the causal pass, with a forecast of the same clips."""
    model, (tokens, mask), text = recipe(), tiny_tokens(), tiny_text()
    context = with_forecast(model, model.context(*text), tokens[:, 0], *text, GRID)
    forced = model.teacher_forced(tokens, mask[:, 1:], context, GRID)
    for frame in (1, 2):
        hidden = jnp.zeros_like(mask).at[:, frame].set(mask[:, frame])
        once = model(tokens, hidden, context, GRID)[:, frame]
        np.testing.assert_allclose(forced[:, frame - 1], once, atol=3e-5)


def test_the_text_of_a_clip_is_expected_even_where_training_drops_it():
    model, (tokens, _), text = recipe(), tiny_tokens(), tiny_text()
    kept, dropped = (
        with_forecast(model, model.context(*text, drop), tokens[:, 0], *text, GRID)
        for drop in (jnp.zeros(2, bool), jnp.ones(2, bool))
    )
    np.testing.assert_array_equal(kept.forecast, dropped.forecast)
    plain = tiny_model(**FROM_FRAME_BEFORE)
    assert with_forecast(plain, kept, tokens[:, 0], *text, GRID) is kept


def test_settings_that_cannot_be_are_named():
    for wrong in ((3, 2), (1, 2, 3), (3, 0, 3)):
        with pytest.raises(UserError, match=r"model\.forecast must be latent frames"):
            tiny_config(**FROM_FRAME_BEFORE | dict(forecast=wrong))
    with pytest.raises(UserError, match=r"model\.forecast needs model\.linear_prior"):
        tiny_config(forecast=(3, 2, 3))
    config = tiny_config(**FROM_FIRST_FRAME)
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert "forecast" not in dataclasses.replace(config, forecast=None).to_dict()
    assert jax.tree.leaves(recipe().linear_prior.forecast)[0].dtype == jnp.float32

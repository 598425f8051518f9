"""The fit of the linear forecast: it finds a law, is honest about clips left out, and says nothing
where there is nothing to learn from."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tiny_model import FROM_FIRST_FRAME, GRID, tiny_config
from videomar_jax.models.forecast import Forecast
from videomar_jax.training.forecast_fit import fit_forecast

CONFIG = tiny_config(**FROM_FIRST_FRAME)
FRAMES, COUNT, WIDTH, TEXT = 3, 6, 3, 8


def windows(count, noise=0.05, seed=0):
    """Clips whose change is a linear law of frame 0, the text, and their products."""
    rng, law = np.random.default_rng(seed), np.random.default_rng(99)
    first = rng.standard_normal((count, COUNT, WIDTH)).astype(np.float32)
    words = rng.integers(0, 3, count)
    text = law.standard_normal((3, TEXT)).astype(np.float32)[words]
    by_frame = law.standard_normal((COUNT * WIDTH, 2 * COUNT * WIDTH)) / 6
    by_word = law.standard_normal((3, 2 * COUNT * WIDTH))
    crossed = law.standard_normal((3, COUNT * WIDTH, 2 * COUNT * WIDTH)) / 6
    flat = first.reshape(count, -1)
    change = flat @ by_frame + by_word[words] + np.einsum("nf,nfv->nv", flat, crossed[words])
    change += noise * rng.standard_normal(change.shape)
    later = first[:, None] + change.reshape(count, 2, COUNT, WIDTH)
    return np.concatenate([first[:, None], later], axis=1).astype(np.float32), text


def module_of(fitted):
    module = Forecast(CONFIG)
    for name, value in fitted.params.items():
        assert getattr(module, name)[...].shape == value.shape, name
        getattr(module, name)[...] = jnp.asarray(value)
    return module


def test_a_law_of_frame_and_text_is_found():
    tokens, text = windows(1500)
    fitted = fit_forecast(tokens, text, list(range(1500)), CONFIG)
    # The products of the last of its 18 components are not among its inputs.
    assert fitted.left_over < 0.05, fitted.left_over
    unseen, unseen_text = windows(50, seed=1)
    found = module_of(fitted)(
        jnp.asarray(unseen[:, 0]), jnp.asarray(unseen_text)[:, None], jnp.ones((50, 1), bool), GRID
    )
    error = np.mean((np.asarray(found)[:, 1:] - unseen[:, 1:]) ** 2)
    assert error < 0.05 * np.mean((unseen[:, 1:] - unseen[:, :1]) ** 2)


def test_what_it_says_of_a_window_does_not_know_its_clip():
    """Windows of one clip are the same: a fit that has seen them would know them by heart."""
    tokens, text = windows(8, noise=1.0)
    repeated, texts = np.tile(tokens, (10, 1, 1, 1)), np.tile(text, (10, 1))
    fitted = fit_forecast(repeated, texts, [i % 8 for i in range(80)], CONFIG)
    error = np.mean((fitted.expected[:, 1:] - repeated[:, 1:]) ** 2)
    assert error > 0.3 * np.mean((repeated[:, 1:] - repeated[:, :1]) ** 2)


@pytest.mark.parametrize("kind", ["one clip", "still", "no text"])
def test_where_there_is_nothing_to_learn_it_stays_finite(kind):
    tokens, text = windows(12)
    clips = list(range(12))
    if kind == "one clip":
        clips = [3] * 12
    if kind == "still":
        tokens = np.repeat(tokens[:, :1], FRAMES, axis=1)
    if kind == "no text":
        text = np.repeat(text[:1], 12, axis=0)
    fitted = fit_forecast(tokens, text, clips, CONFIG)
    for name, value in fitted.params.items():
        assert np.isfinite(value).all() and value.dtype == np.float32, name
    assert np.isfinite(fitted.expected).all()
    if kind == "one clip":
        # Nothing could be left out, so no change is expected of anything.
        assert not fitted.params["inputs"].any()
    if kind == "still":
        np.testing.assert_allclose(fitted.expected[:, 1:], tokens[:, 1:], atol=0.05)

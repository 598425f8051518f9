"""The mask-rate law, the orders, and which tokens are hidden."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomar_jax.models import masking


def phi(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def cut_normal_cdf(rate: float, minimum: float) -> float:
    """Distribution function of a normal law (mean 1, deviation 1/4) cut to [minimum, 1]."""
    low = phi((minimum - 1) / 0.25)
    return (phi((rate - 1) / 0.25) - low) / (0.5 - low)


@pytest.mark.parametrize("minimum", [0.0, 0.5, 0.7, 0.95])
def test_mask_rate_is_the_inverse_of_the_distribution_function(minimum):
    u = np.linspace(0, 0.999, 101, dtype=np.float32)
    rates = np.asarray(masking.mask_rate(jnp.asarray(u), minimum), np.float64)
    np.testing.assert_allclose([cut_normal_cdf(r, minimum) for r in rates], u, atol=2e-5)
    assert rates.min() >= minimum - 1e-6 and rates.max() <= 1


def test_mask_rates_have_the_published_mean_and_median():
    """2^14 midpoints integrate the quantile function; mean and median are known to four digits."""
    u = (np.arange(2**14) + 0.5) / 2**14
    rates = masking.mask_rate(jnp.asarray(u, jnp.float32))
    np.testing.assert_allclose([jnp.mean(rates), jnp.median(rates)], [0.8670, 0.8743], atol=5e-5)


@pytest.mark.parametrize("tokens", [1, 6, 256])
def test_hidden_tokens_are_the_ceiling_and_never_none(tokens):
    rates = np.array([0.0, 0.01, 0.3, 0.7001, 0.87, 0.999, 1.0], np.float32)
    counts = np.asarray(masking.num_masked(tokens, jnp.asarray(rates)))
    assert counts.tolist() == [max(1, math.ceil(tokens * float(r))) for r in rates]


def test_orders_are_permutations_of_their_own():
    orders = np.asarray(masking.random_orders(jax.random.key(0), (40, 3, 6)))
    assert (np.sort(orders, axis=-1) == np.arange(6)).all()
    assert (
        len({tuple(o) for o in orders.reshape(-1, 6)}) > 90
    )  # 120 draws of 720: about 11 pairs agree


def test_every_token_is_equally_likely_at_every_place():
    """Counts of 6000 draws in 6 cells: mean 1000, standard deviation 29; five of them allowed."""
    orders = np.asarray(masking.random_orders(jax.random.key(1), (2000, 3, 6))).reshape(-1, 6)
    counts = np.stack([np.bincount(orders[:, place], minlength=6) for place in range(6)])
    assert np.abs(counts - 1000).max() < 145


def test_ranks_are_the_places_in_the_order():
    orders = masking.random_orders(jax.random.key(2), (2, 3, 6))
    places = np.asarray(masking.ranks(orders))
    for b, t, place in np.ndindex(2, 3, 6):
        assert places[b, t, orders[b, t, place]] == place


def test_hide_last_hides_the_last_of_the_order():
    orders = masking.random_orders(jax.random.key(3), (2, 4, 6))
    counts = np.array([[0, 1, 4, 6], [6, 3, 2, 0]])
    hidden = np.asarray(masking.hide_last(orders, jnp.asarray(counts)))
    for b, t in np.ndindex(2, 4):
        kept = 6 - counts[b, t]
        assert set(np.flatnonzero(hidden[b, t])) == set(np.asarray(orders[b, t, kept:]).tolist())


def test_frames_before_the_current_one_are_clean_and_later_ones_hidden():
    counts = masking.one_frame_counts(jnp.array([1, 3, 2]), jnp.array([5, 6, 1]), 4, 6)
    np.testing.assert_array_equal(counts, [[0, 5, 6, 6], [0, 0, 0, 6], [0, 0, 1, 6]])

"""Schedules of generation: published numbers, each token revealed once, clear refusals."""

import math

import numpy as np
import pytest

from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.schedules import (
    clip_bounds,
    head_step_names,
    mask_lengths,
    reveal_plan,
    temperatures,
)

PUBLISHED = {
    256: [254, 251, 244, 236, 225, 212, 197, 181, 162, 142, 120, 97, 74, 49, 25, 1],
    1440: [1433, 1412, 1377, 1330, 1269, 1197, 1113, 1018, 913, 800, 678, 551, 418, 280, 141, 1],
}


@pytest.mark.parametrize("tokens", PUBLISHED)
def test_mask_lengths_have_the_published_values(tokens):
    assert mask_lengths(tokens, 16).tolist() == PUBLISHED[tokens]


def test_a_product_that_is_a_whole_number_up_to_rounding_follows_float64():
    """256 cos(pi/3) = 128 is a hair more in double precision and would be a hair less in single."""
    assert mask_lengths(256, 3)[1] == math.floor(256 * math.cos(math.pi / 2 * 2 / 3)) == 128


SIZES = [
    (1, 1),
    (1, 5),
    (2, 1),
    (6, 3),
    (6, 6),
    (6, 10),
    (12, 64),
    (256, 16),
    (256, 64),
    (1440, 64),
    (100, 99),
]


@pytest.mark.parametrize(("tokens", "steps"), SIZES)
def test_each_token_is_revealed_exactly_once(tokens, steps):
    plan = reveal_plan(tokens, SamplingConfig(steps=steps))
    revealed = np.zeros(tokens, int)
    for start, count in zip(plan.start, plan.count, strict=True):
        revealed[start : start + count] += 1
    assert (revealed == 1).all()
    assert (plan.count > 0).all() and len(plan.start) <= min(tokens, steps)
    assert (np.diff(plan.start) > 0).all(), "the order is revealed from its beginning"


def test_linear_guidance_rises_with_the_share_of_revealed_tokens():
    plan = reveal_plan(256, SamplingConfig(steps=16, guidance=3.0))
    expected = [1 + 2 * (256 - length) / 256 for length in PUBLISHED[256]]
    np.testing.assert_allclose(plan.guidance, expected, rtol=1e-6)
    assert plan.guidance[-1] < 3.0


def test_constant_guidance_is_constant():
    assert (
        reveal_plan(12, SamplingConfig(guidance=2.5, guidance_schedule="constant")).guidance == 2.5
    ).all()


def test_only_a_guidance_of_one_goes_without_the_null_branch():
    assert [SamplingConfig(guidance=g).guided for g in (0.0, 1.0, 1.5)] == [True, False, True]


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("paper", [1.0, 0.91, 0.901, 0.9001]),
        ("linear", [0.95, 0.9375, 0.925, 0.9125]),
    ],
)
def test_temperature_laws(law, expected):
    for tau in (1.0, 0.5, 0.0):
        config = SamplingConfig(temperature=tau, temperature_law=law)
        np.testing.assert_allclose(temperatures(4, config), tau * np.array(expected), rtol=1e-6)


def test_the_first_generated_frame_is_clipped_only_on_request():
    np.testing.assert_array_equal(clip_bounds(3, SamplingConfig(latent_clip=2.0)), [np.inf, 2, 2])
    np.testing.assert_array_equal(
        clip_bounds(3, SamplingConfig(latent_clip=1.5, clip_first=True)), [1.5] * 3
    )
    np.testing.assert_array_equal(
        clip_bounds(2, SamplingConfig(latent_clip=0.0, clip_first=True)), [np.inf] * 2
    )


def test_guidance_holds_on_its_share_of_the_steps():
    config = SamplingConfig(
        steps=10, guidance=3.0, guidance_schedule="constant", guidance_interval=(0.25, 0.8)
    )
    plan = reveal_plan(256, config)
    assert np.flatnonzero(plan.guided).tolist() == [3, 4, 5, 6, 7]
    np.testing.assert_array_equal(plan.guidance, np.where(plan.guided, 3, 1))
    assert not reveal_plan(256, SamplingConfig(steps=10, guidance=1.0)).guided.any()


def test_head_steps_fall_from_the_first_to_the_last_reveal_step():
    def names(head_steps, steps):
        return head_step_names(SamplingConfig(head_steps=head_steps), steps)

    assert names("50-5", 10) == "50 45 40 35 30 25 20 15 10 5".split()
    assert names("2-6", 3) == ["2", "4", "6"] and names("9-3", 1) == ["9"]
    assert names("ddim50", 2) == ["ddim50"] * 2
    plan = reveal_plan(256, SamplingConfig(steps=4, head_steps="3-2"))
    assert plan.head.tolist() == [0, 0, 1, 1]

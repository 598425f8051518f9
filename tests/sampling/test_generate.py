"""What `generate` promises: each token drawn once, given frames untouched, clear refusals.

Its videos are compared with the direct implementation in `test_reference`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tiny_model import GRID, tiny_model, tiny_text
from tests.helpers.tiny_video import given_latents, sample_keys
from videomar_jax.checks import UserError
from videomar_jax.models.patchify import unpatchify
from videomar_jax.models.rope import PositionScale
from videomar_jax.sampling import decoder
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.draws import draw_frame
from videomar_jax.sampling.generate import (
    FrameDraws,
    decode_frames,
    generate,
    generate_frames,
    plan_generation,
    start,
)
from videomar_jax.sampling.schedules import mask_lengths
from videomar_jax.sampling.speed import SpeedOptions

COUNT, BATCH, FRAMES = GRID[0] * GRID[1], 2, 3
CONFIG = SamplingConfig(
    steps=3,
    head_steps="3",
    guidance=2.0,
    temperature=0.9,
    temperature_law="linear",
    latent_clip=0.0,
)


def make(model=None, given=None, text=None, num_frames=FRAMES, **changes):
    """A traced video; every call with the same shapes runs the same program."""
    text, mask = tiny_text() if text is None else text
    return generate(
        model or tiny_model(),
        given_latents() if given is None else given,
        text,
        mask,
        num_frames=num_frames,
        config=dataclasses.replace(CONFIG, **changes),
        keys=sample_keys(),
        trace=True,
    )


def frame_draws():
    """The draws of both new frames; the flow head needs no noise on its way."""
    numbers = [jnp.asarray(number) for number in range(1, FRAMES)]
    return [draw_frame(sample_keys(), number, COUNT, 3, 0) for number in numbers]


@pytest.fixture(scope="module")
def made():
    return make()


def test_steps_that_reveal_nothing_are_left_out():
    _, trace = make(steps=10, guidance=1.0)
    assert trace.hidden.shape[:2] == (FRAMES - 1, COUNT)


def test_a_guidance_of_one_equals_the_branch_with_text():
    """One part in 10^9 above one runs both branches, and is one in float32."""
    with_null, trace = make(guidance=1 + 1e-9)
    alone, short = make(guidance=1.0)
    assert trace.z.shape[2] == 2 * BATCH and short.z.shape[2] == BATCH
    np.testing.assert_allclose(with_null, alone, atol=1e-3)


# ---- each token once


def test_given_frames_come_back_bitwise(made):
    np.testing.assert_array_equal(made[0][:, :1], given_latents())
    assert made[0].shape == (BATCH, FRAMES, *GRID, 3) and np.isfinite(made[0]).all()


def test_each_token_is_drawn_exactly_once_and_then_left_alone(made):
    video, trace = made
    # [F, I, B, S] before each step, [F, I, B, S, P] after it.
    hidden, tokens = np.asarray(trace.hidden), np.asarray(trace.tokens)
    after = np.concatenate([hidden[:, 1:], np.zeros_like(hidden[:, :1])], axis=1)
    before = np.concatenate([np.zeros_like(tokens[:, :1]), tokens[:, :-1]], axis=1)
    changed = np.any(tokens != before, axis=-1)
    assert hidden[:, 0].all(), "a frame starts hidden"
    assert not (after & ~hidden).any(), "a token is hidden again"
    np.testing.assert_array_equal(changed, hidden & ~after)
    assert (changed.sum(axis=1) == 1).all()
    np.testing.assert_array_equal(unpatchify(jnp.moveaxis(tokens[:, -1], 0, 1), GRID), video[:, 1:])


def test_hidden_tokens_follow_order_and_schedule(made):
    hidden, lengths = np.asarray(made[1].hidden), [COUNT, *mask_lengths(COUNT, CONFIG.steps)[:-1]]
    for frame, draws in enumerate(frame_draws()):
        for step, length in enumerate(lengths):
            for b in range(BATCH):
                left = np.asarray(draws.order)[b, COUNT - length :]
                assert set(np.flatnonzero(hidden[frame, step, b])) == set(left.tolist())


def test_samples_and_frames_get_orders_and_noise_of_their_own():
    first, second = frame_draws()
    for name in ("order", "noise"):
        a, b = getattr(first, name), getattr(second, name)
        assert not np.array_equal(a[0], a[1]) and not np.array_equal(a, b), name
    assert (np.sort(first.order, axis=-1) == np.arange(COUNT)).all()


# ---- the same video another way


def test_frame_by_frame_gives_the_same_video(made):
    frames = generate_frames(
        tiny_model(),
        given_latents(),
        *tiny_text(),
        num_frames=FRAMES,
        config=CONFIG,
        keys=sample_keys(),
    )
    np.testing.assert_allclose(jnp.stack(list(frames), axis=1), made[0][:, 1:], atol=1e-4)


def test_a_plan_is_made_once_and_serves_many_requests(made):
    """It needs the shape of the given frames only, and holds what differs between programs."""
    shape = jax.ShapeDtypeStruct((BATCH, 1, *GRID, 3), jnp.float32)
    speed = SpeedOptions(unstack_layers=True)
    plan = plan_generation(
        tiny_model(), shape, num_frames=FRAMES, config=CONFIG, speed=speed, trace=True
    )
    assert [plan.static_config(n).visible_length for n in (1, 2)] == [1, 2]
    assert plan.static_config(2) == dataclasses.replace(plan.static, all_visible=True)
    for _ in range(2):
        shared, state = start(plan, given_latents(), *tiny_text(), sample_keys())
        frames = [latents for latents, _ in decode_frames(plan, shared, state)]
        np.testing.assert_allclose(jnp.stack(frames, axis=1), made[0][:, 1:], atol=1e-4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.num_frames = 7


def test_recorded_draws_replace_the_keys(made):
    draws = jax.tree.map(lambda *x: jnp.stack(x), *frame_draws())
    assert isinstance(draws, FrameDraws)
    video = generate(
        tiny_model(), given_latents(), *tiny_text(), num_frames=FRAMES, config=CONFIG, draws=draws
    )
    np.testing.assert_allclose(video, made[0], atol=1e-4)


def test_a_sample_does_not_depend_on_its_batch(made):
    (text, mask), given = tiny_text(), given_latents()
    other, _ = make(given=given.at[1].add(1.0), text=(text.at[1].add(1.0), mask))
    np.testing.assert_array_equal(other[0], made[0][0])
    assert np.abs(other[1, 1:] - made[0][1, 1:]).max() > 1e-2
    alone = generate(
        tiny_model(),
        given[1:],
        text[1:],
        mask[1:],
        num_frames=FRAMES,
        config=CONFIG,
        keys=sample_keys()[1:],
    )
    np.testing.assert_allclose(alone[0], made[0][1], atol=1e-4)


def test_a_scale_of_one_gives_the_same_video(made):
    video = generate(
        tiny_model(),
        given_latents(),
        *tiny_text(),
        num_frames=FRAMES,
        config=CONFIG,
        keys=sample_keys(),
        scale=PositionScale(),
    )
    np.testing.assert_allclose(video, made[0], atol=1e-4)


# ---- values


def test_values_do_not_recompile(made):
    programs = decoder.compiled_frame._cache_size(), decoder.start_decoding._cache_size()
    for change in (
        {"guidance": 5.0},
        {"temperature": 0.5},
        {"latent_clip": 0.3},
        {"guidance_schedule": "constant"},
    ):
        assert np.abs(make(**change)[0] - made[0]).max() > 1e-3, f"{change} has no effect"
    assert (decoder.compiled_frame._cache_size(), decoder.start_decoding._cache_size()) == programs


def test_clipping_starts_with_the_second_generated_frame(made):
    video, _ = make(latent_clip=0.3)
    np.testing.assert_array_equal(video[:, 1], made[0][:, 1])
    assert np.abs(video[:, 1]).max() > 0.3 and np.abs(video[:, 2]).max() == np.float32(0.3)
    assert np.abs(make(latent_clip=0.3, clip_first=True)[0][:, 1:]).max() == np.float32(0.3)


def test_tokens_may_be_rounded_to_bfloat16(made):
    new = make(token_dtype="bfloat16")[0][:, 1:]
    np.testing.assert_array_equal(new, new.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_allclose(new[:, 0], made[0][:, 1], atol=0.1)
    assert (made[0] != made[0].astype(jnp.bfloat16).astype(jnp.float32)).any()


# ---- requests that cannot be met


def ask(given=None, num_frames=FRAMES, text=None, model=None, config=CONFIG, **options):
    text, mask = tiny_text() if text is None else text
    options = {"keys": sample_keys()} | options
    given = given_latents() if given is None else given
    return generate(
        model or tiny_model(), given, text, mask, num_frames=num_frames, config=config, **options
    )


def test_no_frames_to_make():
    for frames in (1, 0):
        with pytest.raises(UserError, match=rf"Cannot make {frames} latent frames from 1 given"):
            ask(num_frames=frames)
    with pytest.raises(UserError, match="from 0 given"):
        ask(given_latents()[:, :0])


def test_keys_or_draws_but_not_both_and_not_neither():
    draws = jax.tree.map(lambda *x: jnp.stack(x), *frame_draws())
    for options in ({"keys": None}, {"draws": draws}):
        with pytest.raises(UserError, match="either keys or recorded draws"):
            ask(**options)


def test_wrong_sizes_and_steps_are_named():
    text, mask = tiny_text()
    with pytest.raises(ValueError, match="Text features"):
        ask(text=(text[:, :4], mask[:, :4]))
    with pytest.raises(UserError, match="whole number of steps"):
        ask(config=dataclasses.replace(CONFIG, head_steps="ddim3"))
    with pytest.raises(UserError, match="cannot be cut into patches"):
        ask(
            given_latents()[:, :, :, :2, :].repeat(2, axis=3)[:, :, :, :3],
            model=tiny_model(patch_size=2),
        )

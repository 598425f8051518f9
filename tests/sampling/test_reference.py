"""`generate` makes the videos of the direct implementation, for every option of either."""

import dataclasses

import numpy as np
import pytest

from tests.helpers.tiny_model import FROM_FIRST_FRAME, FROM_FRAME_BEFORE, tiny_model
from tests.helpers.tiny_video import by_reference, generated, given_latents
from videomar_jax.models.rope import PositionScale
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.reference import visible_frames
from videomar_jax.sampling.speed import SpeedOptions

PLAIN = SpeedOptions.plain()
EVERYTHING = SpeedOptions(unstack_layers=True)
# One program for all frames: quicker to compile, where the length of the cache is not in question.
ONE_LENGTH = dataclasses.replace(EVERYTHING, cache_lengths=1)
SPEEDS = {"plain": PLAIN, "everything": EVERYTHING}
for field in dataclasses.fields(SpeedOptions):
    value = getattr(EVERYTHING, field.name)
    SPEEDS[field.name] = dataclasses.replace(PLAIN, **{field.name: value})

CONFIG = SamplingConfig(steps=3, head_steps="3", temperature=0.9, latent_clip=0.0)
CASES = {
    "flow": (dict(), dict(guidance=2.0)),
    "flow, unguided": (dict(), dict(guidance=1.0)),
    "ddpm": (dict(head="ddpm"), dict(guidance=2.0, head_steps="ddim4")),
    "ddpm, unguided": (dict(head="ddpm"), dict(guidance=1.0, head_steps="ddim4")),
    "from the frame before": (FROM_FRAME_BEFORE, dict(guidance=2.0)),
    "from the frame before, unguided": (FROM_FRAME_BEFORE, dict(guidance=1.0)),
    "from the first frame": (FROM_FIRST_FRAME, dict(guidance=2.0)),
    "from the first frame, in a window": (
        FROM_FIRST_FRAME,
        dict(guidance=1.0, window=1, keep_first=False),
    ),
}


def check(video, wanted, name="", tolerance=1e-4):
    """Relative to the largest value: the random weights let values grow to about a hundred."""
    assert np.isfinite(wanted).all()
    largest = np.abs(wanted).max()
    np.testing.assert_allclose(video, wanted, atol=tolerance * largest, err_msg=name)


@pytest.fixture(scope="module")
def wanted():
    """The reference's video of each case."""
    videos = {}
    for name, (model, changes) in CASES.items():
        config = dataclasses.replace(CONFIG, **changes)
        videos[name] = by_reference(config, num_frames=3, model=tiny_model(**model))
    return videos


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("case", CASES)
def test_every_speed_option_keeps_the_video(wanted, case, speed):
    model, changes = CASES[case]
    config = dataclasses.replace(CONFIG, **changes)
    video = generated(config, num_frames=3, model=tiny_model(**model), speed=SPEEDS[speed])
    check(video, wanted[case])


def test_the_speed_options_that_are_tried_are_all_there_are():
    """A new option is on in `everything`, so that the cases above try it alone too."""
    for field in dataclasses.fields(SpeedOptions):
        assert getattr(PLAIN, field.name) != getattr(EVERYTHING, field.name), field.name


# ---- reveal steps and head


def compare(changes, *, num_frames=3, speeds=(ONE_LENGTH,), model=None, **request):
    """Holds `generate` to the reference with the changed config; returns the reference's video."""
    config = dataclasses.replace(CONFIG, guidance=2.0)
    config = dataclasses.replace(config, **changes)
    expected = by_reference(config, num_frames=num_frames, model=model, **request)
    for speed in speeds:
        video = generated(config, num_frames=num_frames, model=model, speed=speed, **request)
        check(video, expected, str(speed))
    return expected


DDPM = dict(head="ddpm")
SCHEDULES = {
    "constant guidance": ({}, dict(guidance_schedule="constant")),
    "guided at first": ({}, dict(guidance_schedule="constant", guidance_interval=(0.0, 0.5))),
    "guided at last": ({}, dict(guidance_schedule="constant", guidance_interval=(0.3, 1.0))),
    "falling head steps": ({}, dict(head_steps="5-1")),
    "falling head steps, ddpm": (DDPM, dict(head_steps="7-2")),
    "steps by section, ddpm": (DDPM, dict(head_steps="2,3")),
    "heun": ({}, dict(head_solver="heun")),
    "heun, falling head steps": ({}, dict(head_solver="heun", head_steps="3-1")),
    "one reveal step": ({}, dict(steps=1)),
    "more reveal steps than tokens": ({}, dict(steps=10)),
    "linear temperature": ({}, dict(temperature_law="linear")),
    "paper's temperature, ddpm": (DDPM, dict(temperature_law="paper")),
    "clipped": ({}, dict(latent_clip=0.5)),
    "all frames clipped": ({}, dict(latent_clip=0.5, clip_first=True)),
    "tokens in bfloat16": ({}, dict(token_dtype="bfloat16")),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule(name):
    model, changes = SCHEDULES[name]
    # Rounding to bfloat16 turns a difference in the last bit into one of half a percent.
    if changes.get("token_dtype") == "bfloat16":
        config = dataclasses.replace(CONFIG, **changes)
        videos = by_reference(config, num_frames=2), generated(config, num_frames=2)
        check(videos[1], videos[0], tolerance=5e-3)
    else:
        compare(changes, model=tiny_model(**model))


def test_what_changes_the_schedule_changes_the_video():
    """Otherwise the comparisons above would compare the same video again and again."""
    plain = by_reference(dataclasses.replace(CONFIG, guidance=2.0), num_frames=3)
    for name, (model, changes) in SCHEDULES.items():
        if model:
            continue
        config = dataclasses.replace(CONFIG, guidance=2.0)
        other = by_reference(dataclasses.replace(config, **changes), num_frames=3)
        assert np.abs(other - plain).max() > 1e-3, name


def test_patches_and_two_given_frames():
    model, given = tiny_model(head="ddpm", patch_size=2), given_latents(2, 2)
    changes = dict(head_steps="ddim4", latent_clip=1.0, guidance=3.0)
    expected = compare(changes, num_frames=4, model=model, given=given)
    np.testing.assert_array_equal(expected[:, :2], given)


def test_a_model_that_knows_of_noise_in_earlier_frames():
    model = tiny_model(history_levels=True)
    video = compare({}, model=model)
    others = by_reference(dataclasses.replace(CONFIG, guidance=2.0), num_frames=3)
    assert np.abs(video - others).max() > 1e-3


# ---- longer and larger than training


@pytest.mark.parametrize("position", ["absolute", "shifted"])
@pytest.mark.parametrize("keep_first", [False, True])
def test_a_window_equals_one_pass_that_sees_no_frame_outside_it(keep_first, position):
    changes = dict(window=3, keep_first=keep_first, first_frame_position=position)
    changes |= dict(steps=2, head_steps="2")
    compare(changes, num_frames=7, speeds=(PLAIN, EVERYTHING))


def test_a_window_shorter_than_the_given_frames():
    changes = dict(window=2, keep_first=False, steps=2, head_steps="2")
    given = generated(CONFIG, num_frames=5)
    compare(changes, num_frames=7, given=given)


def test_a_model_without_frame_numbers():
    changes = dict(window=2, steps=2, head_steps="2")
    compare(changes, num_frames=5, model=tiny_model(rope_frame_origin="restart"))


def test_scaled_positions_with_a_shifted_first_frame():
    scale = PositionScale(interpolate=(2.0, 1.0, 1.5), ntk=(1.0, 2.0, 1.0))
    changes = dict(window=2, steps=2, head_steps="2")
    scaled = compare(changes, num_frames=5, scale=scale)
    config = dataclasses.replace(CONFIG, guidance=2.0, **changes)
    assert np.abs(scaled - by_reference(config, num_frames=5)).max() > 1e-3


@pytest.mark.parametrize(
    ("window", "keep_first", "seen"),
    [
        (None, True, [0, 1, 2, 3, 4]),
        (9, True, [0, 1, 2, 3, 4]),
        (5, False, [0, 1, 2, 3, 4]),
        (3, True, [0, 3, 4]),
        (3, False, [2, 3, 4]),
        (1, False, [4]),
    ],
)
def test_what_frame_5_sees(window, keep_first, seen):
    config = dataclasses.replace(CONFIG, window=window, keep_first=keep_first)
    assert list(visible_frames(5, config)) == seen

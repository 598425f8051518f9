import inspect

import numpy as np
import pytest

from videomar_jax.evaluation import motion

BACKGROUND = 0.08
COLOURS = {"red": (0.9, 0.2, 0.2), "blue": (0.2, 0.4, 1.0), "grey": (0.6, 0.6, 0.6)}


def _disc(centres, side=32, radius=4.5, colour="red", background=BACKGROUND):
    """A clip [1, F, side, side, 3] of an antialiased disc at the given (y, x) centres."""
    rows, columns = np.mgrid[:side, :side]
    frames = []
    for y, x in centres:
        coverage = np.clip((radius - np.hypot(rows - y, columns - x)) / 1.5 + 0.5, 0, 1)[..., None]
        frames.append((1 - coverage) * background + coverage * np.array(COLOURS[colour]))
    return (np.array(frames)[None] * 255).round().astype(np.uint8)


def _moving(direction, frames=9, speed=1.5, **kwargs):
    dy, dx = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}[direction]
    return _disc(
        [(16 + dy * speed * (f - 4), 15 + dx * speed * (f - 4)) for f in range(frames)], **kwargs
    )


def _noise(level, shape=(1, 9, 32, 32, 3), seed=0):
    return np.clip(
        np.random.default_rng(seed).normal(BACKGROUND, level, shape) * 255, 0, 255
    ).astype(np.uint8)


def _with_noise(video, level=0.05):
    error = np.random.default_rng(1).normal(0, 255 * level, video.shape)
    return np.clip(video + error, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("colour", COLOURS)
def test_centroid_is_the_discs_centre_for_every_colour(colour):
    centres = [(10.0, 20.0), (10.5, 18.25), (25.0, 6.0)]
    found = motion.centroids(_disc(centres, colour=colour), BACKGROUND)
    np.testing.assert_allclose(found[0], centres, atol=0.05)


@pytest.mark.parametrize("direction", motion.DIRECTIONS)
def test_directions_with_and_without_sampling_noise(direction):
    video = _moving(direction)
    assert motion.directions(video) == [direction]
    assert motion.directions(_with_noise(video)) == [direction]
    assert motion.directions(video[:, ::-1]) != [direction]
    np.testing.assert_allclose(
        motion.centroids(_with_noise(video)), motion.centroids(video), atol=0.3
    )


def test_the_shift_must_exceed_its_bound():
    video = _disc([(16, 12), (16, 13), (16, 14.5)])
    assert motion.directions(video) == ["right"]
    assert motion.directions(video, min_shift=3.0) == ["none"]
    assert motion.directions(video[:, :2]) == ["none"]


def test_the_dominant_axis_decides():
    assert motion.directions(_disc([(10, 10), (14, 20)])) == ["right"]
    assert motion.directions(_disc([(20, 10), (10, 14)])) == ["up"]


def test_direction_accuracy_counts_failures_in_the_denominator():
    blank = np.full((1, 9, 32, 32, 3), 20, np.uint8)
    video = np.concatenate([_moving("left"), _moving("up"), blank, _moving("down")])
    assert motion.direction_accuracy(video, ["left", "up", "right", "down"]) == 0.75
    assert motion.direction_accuracy(video, ["right", "down", "left", "up"]) == 0.0


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(np.full((1, 9, 32, 32, 3), 20, np.uint8), id="blank"),
        pytest.param(np.zeros((1, 9, 32, 32, 3), np.uint8), id="black"),
        pytest.param(np.full((1, 9, 32, 32, 3), 255, np.uint8), id="white"),
        pytest.param(_noise(0.3), id="noise"),
        pytest.param(_noise(0.12), id="weak noise"),
        pytest.param(
            np.random.default_rng(3).integers(0, 256, (1, 9, 32, 32, 3), dtype=np.uint8),
            id="uniform noise",
        ),
    ],
)
def test_videos_without_an_object_fail_every_measure(failure):
    truth = _moving("left")
    assert not motion.object_found(failure).any()
    assert motion.directions(failure) == ["none"]
    np.testing.assert_allclose(motion.centroid_error(failure, truth), np.hypot(32, 32))
    assert not motion.object_present(failure, truth).any()
    assert (
        np.isfinite(motion.centroids(failure)).all()
        and np.isfinite(motion.object_mass(failure)).all()
    )


def test_an_object_lost_on_the_way_fails_from_there_on():
    truth = _moving("right")
    video = truth.copy()
    video[:, 6:] = 20
    error = motion.centroid_error(video, truth)[0]
    assert (error[:6] == 0).all() and (error[6:] == np.hypot(32, 32)).all()
    assert motion.directions(video) == ["none"]
    assert not motion.object_present(video, truth)[0]


def test_centroid_error_is_the_distance_in_pixels():
    centres = np.array([(12.0, 12.0), (14.0, 14.0)])
    error = motion.centroid_error(_disc(centres + np.array([3.0, -4.0])), _disc(centres))
    np.testing.assert_allclose(error, [[5.0, 5.0]], atol=0.05)


@pytest.mark.parametrize(
    ("scale", "present"), [(0.4, False), (0.7, True), (1.0, True), (1.35, True), (1.7, False)]
)
def test_object_present_looks_at_the_mass_of_the_last_frame(scale, present):
    truth = _disc([(16, 16)] * 3)
    video = np.concatenate([truth[:, :2], _disc([(16, 16)], radius=4.5 * np.sqrt(scale))], axis=1)
    ratio = motion.object_mass(video)[0, -1] / motion.object_mass(truth)[0, -1]
    np.testing.assert_allclose(ratio, scale, atol=0.06)
    assert motion.object_present(video, truth)[0] == present


def test_mass_of_a_known_frame():
    video = np.zeros((1, 1, 16, 16, 3), np.uint8)
    video[0, 0, 4:7, 5:9, 1] = 255
    np.testing.assert_allclose(motion.object_mass(video, 0.0, threshold=0.25), [[12 * 0.75]])
    np.testing.assert_allclose(motion.centroids(video, 0.0), [[[5.0, 6.5]]])


def test_another_background_can_be_given():
    video = _moving("down", background=0.9)
    assert motion.directions(video, 0.9) == ["down"]
    with pytest.raises(ValueError, match="background"):
        motion.centroid_error(video, video)


def test_direction_of_a_caption():
    for direction in motion.DIRECTIONS:
        assert motion.direction_of(f"A red circle moves {direction.capitalize()}.") == direction
    for caption in (
        "",
        "left is where it goes",
        "a red circle moves",
        "a red circle moves leftwards",
    ):
        with pytest.raises(ValueError, match="does not end with"):
            motion.direction_of(caption)


def test_bad_input_is_refused():
    video = _moving("left")
    with pytest.raises(ValueError, match="each clip"):
        motion.direction_accuracy(video, ["left", "left"])
    with pytest.raises(ValueError, match="none"):
        motion.direction_accuracy(video, ["none"])
    with pytest.raises(ValueError, match="at least 2 frames"):
        motion.directions(video[:, :1])
    with pytest.raises(ValueError, match=r"0\.\.1"):
        motion.object_mass(video, 20.0)
    with pytest.raises(ValueError, match="same shape"):
        inspect.unwrap(motion.centroid_error)(video, video[:, :4])

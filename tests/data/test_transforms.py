import numpy as np
import pytest

from videomar_jax.data.transforms import cover_size, crop_center, crop_random, resize_cover


@pytest.mark.parametrize(
    "size, target, expected",
    [
        ((720, 1280), (32, 32), (32, 57)),
        ((1280, 720), (32, 32), (57, 32)),
        ((100, 100), (32, 64), (64, 64)),
        ((16, 16), (32, 48), (48, 48)),
        ((333, 1000), (333, 999), (333, 1000)),
    ],
)
def test_the_smallest_size_of_the_same_aspect_that_covers(size, target, expected):
    assert cover_size(*size, *target) == expected


def test_reduction_averages_instead_of_dropping_pixels():
    stripes = np.zeros((2, 64, 96, 3), np.uint8)
    stripes[:, :, ::2] = 255
    small = resize_cover(stripes, 16, 16)
    assert small.shape == (2, 16, 24, 3)
    assert np.abs(small[:, :, 2:-2].astype(int) - 127).max() <= 2


def test_scaling_keeps_places_and_order_of_frames():
    video = np.zeros((3, 40, 80, 3), np.uint8)
    for frame in range(3):
        video[frame, :20, 20 * frame : 20 * frame + 20, frame] = 200
    small = resize_cover(video, 20, 20)
    assert small.shape == (3, 20, 40, 3)
    for frame in range(3):
        block = small[frame, 2:8, 10 * frame + 2 : 10 * frame + 8]
        assert (block[..., frame] > 190).all() and float(small[frame].sum()) == pytest.approx(
            200 * 100, rel=0.1
        )


def test_a_crop_is_one_place_for_the_whole_clip():
    rows, columns = np.indices((20, 30)).astype(np.uint8)
    video = np.broadcast_to(np.stack([rows, columns, rows], -1), (4, 20, 30, 3)).copy()
    centre = crop_center(video, 10, 10)
    assert centre.shape == (4, 10, 10, 3) and tuple(centre[0, 0, 0, :2]) == (5, 10)
    corners = set()
    for seed in range(300):
        crop = crop_random(video, 18, 28, np.random.default_rng(seed))
        top, left = (int(value) for value in crop[0, 0, 0, :2])
        np.testing.assert_array_equal(crop, video[:, top : top + 18, left : left + 28])
        corners.add((top, left))
    assert corners == {(top, left) for top in range(3) for left in range(3)}


def test_a_crop_larger_than_the_frame_is_an_error():
    video = np.zeros((1, 8, 8, 3), np.uint8)
    for crop in (
        lambda: crop_center(video, 9, 8),
        lambda: crop_random(video, 8, 9, np.random.default_rng(0)),
    ):
        with pytest.raises(ValueError, match="8 x 8 px"):
            crop()
    with pytest.raises(ValueError, match="cannot scale"):
        cover_size(0, 4, 8, 8)

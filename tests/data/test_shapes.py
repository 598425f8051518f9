from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from videomar_jax.data.shapes import (
    BACKGROUND,
    COLOURS,
    DIRECTIONS,
    HELD_OUT,
    SEEN,
    SHAPES,
    SPEED,
    SPLITS,
    Shapes,
)
from videomar_jax.data.sources import ClipShape

RNG = np.random.default_rng(0)
SHAPE = ClipShape(num_frames=9, height=32, width=32)


def source(split="train", *, seed=0, length=400, bounce=False):
    return Shapes(seed=seed, length=length, split=split, bounce=bounce)


def words(caption):
    _, colour, shape, _, direction = caption.split()
    return colour, shape, direction


def weights(video):
    """How far each pixel is from the background, [F, Hp, Wp]."""
    return np.abs(video.astype(float) - round(255 * BACKGROUND)).sum(-1)


def centroids(video):
    """(x, y) of each frame's object, [F, 2]."""
    mass = weights(video)
    rows, columns = np.indices(mass.shape[1:])
    return (
        np.stack([(mass * columns).sum((1, 2)), (mass * rows).sum((1, 2))], 1)
        / mass.sum((1, 2))[:, None]
    )


def test_a_clip_depends_on_seed_split_index_and_shape_only():
    first, again = (
        source().read(7, np.random.default_rng(1), SHAPE),
        source().read(7, np.random.default_rng(2), SHAPE),
    )
    np.testing.assert_array_equal(first["video"], again["video"])
    longer = source(length=999)
    longer.read(3, RNG, SHAPE)
    np.testing.assert_array_equal(first["video"], longer.read(7, RNG, SHAPE)["video"])
    others = [
        source(seed=1).read(7, RNG, SHAPE),
        source("test").read(7, RNG, SHAPE),
        source().read(8, RNG, SHAPE),
    ]
    assert all(not np.array_equal(first["video"], other["video"]) for other in others)


def test_no_clip_is_in_two_splits_of_one_seed():
    small = ClipShape(num_frames=3, height=16, width=16)
    clips = {
        split: {source(split).read(index, RNG, small)["video"].tobytes() for index in range(400)}
        for split in SPLITS
    }
    for a, b in combinations(clips, 2):
        assert not clips[a] & clips[b], f"{a} and {b} share clips"


def test_held_out_triples_are_spread_and_leave_every_pair_in_training():
    assert (len(HELD_OUT), len(SEEN)) == (12, 60) and not set(HELD_OUT) & set(SEEN)
    counts = [Counter(triple[part] for triple in HELD_OUT) for part in range(3)]
    assert [set(count.values()) for count in counts] == [{2}, {4}, {3}], counts
    for parts, total in [((0, 1), 18), ((0, 2), 24), ((1, 2), 12)]:
        assert len({tuple(triple[part] for part in parts) for triple in SEEN}) == total


def test_splits_show_exactly_their_triples():
    small = ClipShape(num_frames=1, height=16, width=16)
    shown = {
        split: {words(source(split).read(index, RNG, small)["caption"]) for index in range(400)}
        for split in SPLITS
    }
    assert shown["unseen"] == {tuple(t) for t in HELD_OUT}
    for split in ("train", "test"):
        assert not shown[split] & shown["unseen"]
        for part, names in enumerate((COLOURS, SHAPES, DIRECTIONS)):
            assert {triple[part] for triple in shown[split]} == set(names), (
                f"{split} misses one of {list(names)}"
            )


@pytest.mark.parametrize("split", ["test", "unseen"])
@pytest.mark.parametrize(
    "height, width, num_frames", [(32, 32, 9), (16, 16, 3), (24, 40, 5), (64, 48, 17)]
)
def test_without_bounce_the_object_moves_steadily_as_the_caption_says(
    split, height, width, num_frames
):
    shape = ClipShape(num_frames=num_frames, height=height, width=width)
    for index in range(30):
        clip = source(split).read(index, RNG, shape)
        assert (
            clip["video"].shape == (num_frames, height, width, 3)
            and clip["video"].dtype == np.uint8
        )
        steps = np.diff(centroids(clip["video"]), axis=0)
        expected = SPEED * np.array(DIRECTIONS[words(clip["caption"])[2]])
        np.testing.assert_allclose(
            steps, np.broadcast_to(expected, steps.shape), atol=0.3, err_msg=clip["caption"]
        )


def test_the_caption_names_colour_and_shape_of_the_pixels():
    means = {name: np.array(colour) for name, colour in COLOURS.items()}
    areas = {}
    for index in range(80):
        clip = source("test").read(index, RNG, SHAPE)
        colour, name, _ = words(clip["caption"])
        pixels = clip["video"][0].reshape(-1, 3) / 255
        seen = pixels[np.abs(pixels - BACKGROUND).sum(-1).argmax()]
        assert min(means, key=lambda n: np.abs(means[n] - seen).sum()) == colour
        mass = weights(clip["video"][:1])[0]
        rows, columns = np.nonzero(mass > mass.max() / 2)
        fill = (mass > mass.max() / 2).sum() / (np.ptp(rows) + 1) / (np.ptp(columns) + 1)
        areas.setdefault(name, []).append(fill)
    # share of its bounding box that a shape fills: 1, pi / 4, about 1 / 2
    assert min(areas["square"]) > 0.9 > max(areas["circle"]) and min(areas["circle"]) > 0.7 > max(
        areas["triangle"]
    )


@pytest.mark.parametrize("side", [16, 17, 32])
@pytest.mark.parametrize("bounce", [True, False])
def test_objects_turn_back_at_the_border_and_never_leave(side, bounce):
    shape = ClipShape(num_frames=40, height=side, width=side)
    for index in range(20):
        clip = source(bounce=bounce).read(index, RNG, shape)
        mass = weights(clip["video"]).sum((1, 2))
        assert mass.min() > 0.93 * mass.max(), "part of the object left the canvas"
        step = np.abs(np.diff(centroids(clip["video"]), axis=0)).max(1)
        assert step.max() < SPEED + 0.3 and np.median(step) > SPEED - 0.3


def test_where_the_canvas_is_too_small_the_object_turns_back_as_late_as_possible():
    shape = ClipShape(
        num_frames=8, height=16, width=16
    )  # 10.5 px to go, 7 px of room: 5 frames reach the border
    for index in range(30):
        clip = source("test").read(index, RNG, shape)
        along = centroids(clip["video"]) @ np.array(DIRECTIONS[words(clip["caption"])[2]])
        np.testing.assert_allclose(np.diff(along)[:4], SPEED, atol=0.3)
        assert (np.diff(along)[5:] < -1).all()


def test_bouncing_clips_do_bounce_and_both_kinds_fill_the_canvas():
    turned, starts = 0, []
    for index in range(100):
        clip = source(bounce=True).read(index, RNG, SHAPE)
        steps = np.diff(centroids(clip["video"]), axis=0) @ np.array(
            DIRECTIONS[words(clip["caption"])[2]]
        )
        turned += steps.min() < -1
        starts.append(centroids(clip["video"])[0])
    assert 20 < turned < 80
    assert np.min(starts) < 7 and np.max(starts) > 24


def test_a_bigger_canvas_shows_the_same_object():
    small, large = (
        source("test").read(5, RNG, ClipShape(num_frames=3, height=side, width=side))
        for side in (24, 64)
    )
    assert small["caption"] == large["caption"]
    mass = [weights(clip["video"]).sum((1, 2)).mean() for clip in (small, large)]
    assert mass[1] == pytest.approx(mass[0], rel=0.02)


@pytest.mark.parametrize("side, num_frames", [(16, 3), (32, 9)])
def test_counterfactuals_share_the_first_frame_and_differ_in_direction(side, num_frames):
    shape = ClipShape(num_frames=num_frames, height=side, width=side)
    firsts = set()
    for index in range(16):
        clips = source("test").counterfactuals(index, shape)
        assert [words(clip["caption"])[2] for clip in clips] == list(DIRECTIONS)
        assert len({words(clip["caption"])[:2] for clip in clips}) == 1
        assert not {words(clip["caption"]) for clip in clips} & {tuple(t) for t in HELD_OUT}
        assert len({clip["video"][0].tobytes() for clip in clips}) == 1
        assert (
            np.abs(centroids(clips[0]["video"])[0] - (side - 1) / 2).max() < 1.5 + 1.6
        )  # a triangle's is lower
        for clip in clips:
            way = centroids(clip["video"])
            assert (way[-1] - way[0]) @ np.array(DIRECTIONS[words(clip["caption"])[2]]) > 2
        firsts.add(clips[0]["video"][0].tobytes())
    assert len(firsts) == 16


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="seed"):
        source(seed=-1)
    with pytest.raises(ValueError, match="length"):
        source(length=0)
    with pytest.raises(IndexError, match="400 clips"):
        source().read(400, RNG, SHAPE)
    with pytest.raises(ValueError, match="16 x 16"):
        source().read(0, RNG, ClipShape(num_frames=3, height=32, width=15))
    with pytest.raises(ValueError, match='split="test"'):
        source("unseen").counterfactuals(0, SHAPE)

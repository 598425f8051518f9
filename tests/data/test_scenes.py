"""Scenes: the same at every size, true to their captions and to what they say of themselves."""

import dataclasses
import itertools

import numpy as np
import pytest

from videomar_jax.checks import UserError
from videomar_jax.data import scene_objects, scenes
from videomar_jax.data.scene_objects import possible_actions
from videomar_jax.data.scene_pictures import render
from videomar_jax.data.scenes import HELD_OUT, SEEN, Scenes
from videomar_jax.data.sources import ClipShape

SHAPE = ClipShape(num_frames=9, height=48, width=48)


def source(split="test", length=200, seed=3, **changes):
    return Scenes(seed=seed, length=length, split=split, **changes)


def read(found, index, shape=SHAPE):
    return found.read(index, np.random.default_rng(0), shape)


def first_of(verb, split="test", **changes):
    """The first scene in which this happens, and its number."""
    found = source(split, **changes)
    for index in range(len(found)):
        scene = found.scene(index, SHAPE)
        if scene.action.verb == verb:
            return found, index, scene
    raise AssertionError(f"no scene {verb}")


def test_a_clip_is_the_same_each_time_and_in_any_order():
    found = source()
    backwards = [read(found, index)["video"] for index in (5, 3, 0)]
    for video, index in zip(backwards, (5, 3, 0), strict=True):
        np.testing.assert_array_equal(video, read(source(), index)["video"])
        assert video.shape == (9, 48, 48, 3) and video.dtype == np.uint8


def test_splits_and_seeds_are_different_clips():
    videos = [read(source(split), 0)["video"] for split in ("train", "test", "unseen")]
    videos.append(read(source(seed=4), 0)["video"])
    for index, video in enumerate(videos):
        assert not any((video == other).all() for other in videos[index + 1 :])


def test_a_larger_picture_shows_the_same_scene():
    large = dataclasses.replace(SHAPE, height=96, width=96)
    for index in range(12):
        small, big = (read(source(), index, shape)["video"] for shape in (SHAPE, large))
        reduced = big.reshape(9, 48, 2, 48, 2, 3).mean(axis=(2, 4))
        assert np.abs(reduced - small).mean() < 3, read(source(), index)["caption"]


def test_a_larger_room_leaves_objects_their_pixels():
    found, index, _scene = first_of("moves")
    large = dataclasses.replace(SHAPE, height=72, width=72)
    near, far = found.path(index, SHAPE), dataclasses.replace(found, unit=48).path(index, large)
    np.testing.assert_allclose(near.radius, far.radius)


@pytest.mark.parametrize("verb", scene_objects.ACTIONS)
def test_the_object_is_where_the_source_says(verb):
    """The pixels that differ from the scene without it lie around its path."""
    found, index, scene = first_of(verb)
    path = found.path(index, SHAPE)
    alone = dataclasses.replace(scene, others=())
    with_it, without = (render(alone, SHAPE, actor=actor) for actor in (True, False))
    difference = with_it.astype(int) - without
    # The shadow takes from all channels alike; what is left is the object.
    cover = np.abs(difference).max(axis=-1) > 60
    rows, columns = np.mgrid[0:48, 0:48] + 0.5
    for frame in range(9):
        centre = np.array([columns[cover[frame]].mean(), rows[cover[frame]].mean()])
        off = centre - [path.x[frame], path.y[frame]]
        assert np.linalg.norm(off) < 0.6 * path.radius[frame], (verb, frame, off)


def test_sides_and_speeds_are_as_the_caption_says():
    seen = set()
    for index in range(200):
        found, scene = source(), source().scene(index, SHAPE)
        path, action = found.path(index, SHAPE), scene.action
        if action.verb in ("moves", "rolls", "passes behind"):
            step = path.x[1] - path.x[0]
            slow = 48 * scene_objects.VELOCITY
            wanted = (
                slow * scene_objects.SPEEDS[action.speed] * (1 if action.side == "right" else -1)
            )
            at_a_wall = min(path.x[0], 48 - path.x[0]) - path.radius[0] < abs(wanted)
            assert at_a_wall or step == pytest.approx(wanted), scene.caption()
        elif action.verb == "turns":
            assert np.sign(path.angle[1]) == (1 if action.side == "right" else -1)
        seen.add(action.verb)
    assert seen == set(scene_objects.ACTIONS)


def test_walls_floor_and_gravity_hold():
    long = dataclasses.replace(SHAPE, num_frames=65)
    for index in range(60):
        found, scene = source(), source().scene(index, SHAPE)
        path = found.path(index, long)
        if scene.action.verb != "grows":
            assert (path.x >= path.radius - 1e-6).all() and (
                path.x <= 48 - path.radius + 1e-6
            ).all()
        lowest = path.y + path.radius * scene_objects.lowest_point(scene.actor.kind, path.angle)
        assert (lowest <= 48 * scene.actor.floor + 1e-6).all(), scene.caption()
        if scene.action.verb in scene_objects.IN_THE_AIR:
            # In free flight y has the second difference g; where it is not, it was thrown back.
            assert np.median(np.diff(path.y[:6], 2)) == pytest.approx(48 * scene_objects.GRAVITY)
            assert lowest[-1] == pytest.approx(48 * scene.actor.floor, abs=4)


def test_what_is_thrown_back_keeps_its_share_of_the_speed():
    time = np.arange(1000) / 10
    height = scene_objects._fallen(0.4, time, bounces=True)
    speeds = np.diff(height) / 0.1
    landings = np.flatnonzero((speeds[:-1] < 0) & (speeds[1:] > 0))[:3]
    tops = [height[a:b].max() for a, b in itertools.pairwise(landings)]
    kept = scene_objects.RESTITUTION**2
    assert tops == pytest.approx([0.4 * kept, 0.4 * kept**2], rel=0.02)


def test_one_first_picture_for_all_that_could_happen():
    # What is let go has landed by then, so that falling and bouncing differ.
    shape = dataclasses.replace(SHAPE, num_frames=17)
    for index in range(30):
        scene = source().scene(index, shape)
        others = [dataclasses.replace(scene, action=action) for action in possible_actions(scene)]
        captions = [other.caption() for other in others]
        assert len(set(captions)) == len(captions) >= 2
        shown, *videos = (render(other, shape) for other in others)
        for caption, video in zip(captions[1:], videos, strict=True):
            np.testing.assert_array_equal(video[0], shown[0])
            assert (video[-1] != shown[-1]).any(), caption
        np.testing.assert_array_equal(shown, read(source(), index, shape)["video"])


def test_combinations_held_out_are_never_seen():
    assert not set(SEEN) & set(HELD_OUT)
    for split, allowed in (("train", SEEN), ("test", SEEN), ("unseen", HELD_OUT)):
        for index in range(100):
            scene = source(split).scene(index, SHAPE)
            assert (scene.actor.colour, scene.actor.kind, scene.action.verb) in allowed
    for part in range(3):
        # Each pair of colour, kind and action is in the training part.
        pairs = {tuple(np.delete(combination, part)) for combination in scenes.COMBINATIONS}
        assert pairs == {tuple(np.delete(combination, part)) for combination in SEEN}


def test_open_captions_leave_out_what_is_open():
    closed, open_ = source(), source(open_captions=1.0)
    for index in range(40):
        scene = closed.scene(index, SHAPE)
        full, short = read(closed, index)["caption"], read(open_, index)["caption"]
        np.testing.assert_array_equal(read(closed, index)["video"], read(open_, index)["video"])
        assert full == scene.caption()
        assert set(short.split()) <= set(full.split())
        left_open = {scene.action.side, scene.action.speed} - {""} - set(short.split())
        assert (
            bool(left_open)
            or not (scene.action.side or scene.action.speed)
            or (
                # Growing has a speed but no side: leaving out the side says everything.
                not scene.action.side
            )
        )


def test_a_caption_names_the_object_uniquely():
    for index in range(100):
        scene = source().scene(index, SHAPE)
        assert scene.actor.colour not in {thing.colour for thing in scene.others}


def test_what_passes_behind_is_hidden_for_a_while_by_what_stands_before_it():
    _found, _index, scene = first_of("passes behind")
    assert scene.others[-1].floor > scene.actor.floor
    assert scene.others[-1].name.split()[-1] in scene.caption()


def test_digests_tell_sources_apart():
    kinds = [
        source(),
        source("train"),
        source(seed=4),
        source(open_captions=0.5),
        source(unit=48),
    ]
    assert len({found.digest() for found in kinds}) == len(kinds)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: source(seed=-1), "seed"),
        (lambda: source(open_captions=1.5), "open_captions"),
        (lambda: read(source(), 0, ClipShape(num_frames=3, height=16, width=64)), "no room"),
        (
            lambda: read(source(unit=64), 0, ClipShape(num_frames=3, height=64, width=32)),
            "whose unit is 64 px: ask for at least 64 x 39",
        ),
        (
            lambda: read(source(unit=64), 0, ClipShape(num_frames=3, height=56, width=64)),
            "data.unit",
        ),
    ],
)
def test_what_cannot_be_drawn_is_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
    with pytest.raises(IndexError):
        read(source(length=2), 2)

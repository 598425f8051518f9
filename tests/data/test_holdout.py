"""Videos are cut where both parts are long enough for a clip, and else whole in one split, as their
name decides."""

from pathlib import Path

import numpy as np
import pytest

from videomar_jax.data.decode import VideoInfo
from videomar_jax.data.holdout import assign, hash_fraction, split_video

FPS = 10.0
NAMES = [f"clips/{number:03}.mp4" for number in range(200)]


def video(seconds, holdout, name="a.mp4"):
    info = VideoInfo(times=2.0 + np.arange(round(seconds * FPS)) / FPS, fps=FPS, height=8, width=8)
    return split_video(Path(name), info, holdout)


def decided(seconds, names=NAMES, *, holdout=0.2, shortest=(1, 25)):
    """Share by name, for videos that are all of one length, or of a length each."""
    lengths = np.broadcast_to(seconds, len(names)).tolist()
    videos = [video(length, holdout, name) for length, name in zip(lengths, names, strict=True)]
    return dict(
        zip(names, assign(videos, names, holdout=holdout, fps=FPS, shortest=shortest), strict=True)
    )


def test_the_parts_are_the_whole():
    made = video(10, 0.2)
    (train,), (test,), (whole,) = made.train, made.test, made.whole
    assert (train.count(FPS), test.count(FPS), whole.count(FPS)) == (80, 20, 100)
    assert train.last < test.first and whole.split == "" and test.split == "test"
    assert made.shots("test") == (test,) and made.longest("test", FPS) == 20
    assert video(0.3, 0.02).test == () and video(0.3, 0.02).longest("test", FPS) == 0


def test_shots_end_at_cuts_in_both_parts():
    info = VideoInfo(times=2.0 + np.arange(100) / FPS, fps=FPS, height=8, width=8)
    made = split_video(Path("a.mp4"), info, 0.2, cuts=(2.0 + 3.0, 2.0 + 8.0, 2.0 + 9.0))
    assert [shot.frames for shot in made.train] == [30, 50]
    assert [shot.frames for shot in made.test] == [10, 10]
    assert [shot.frames for shot in made.whole] == [30, 50, 10, 10]
    assert made.longest("train", FPS) == 50


@pytest.mark.parametrize(
    ("seconds", "shortest", "cut"),
    [(13, (1, 25), True), (12, (1, 25), False), (20, (150, 25), True), (20, (170, 25), False)],
)
def test_a_video_is_cut_where_both_parts_are_long_enough(seconds, shortest, cut):
    assert ("cut" in decided(seconds, shortest=shortest).values()) == cut


def test_short_videos_are_held_out_in_the_share_asked_for():
    for holdout in (0.05, 0.2, 0.5):
        found = decided(3, holdout=holdout)
        count = list(found.values()).count("test")
        # four standard deviations of a draw of 200
        assert abs(count - 200 * holdout) < 4 * (200 * holdout * (1 - holdout)) ** 0.5
        assert set(found.values()) == {"train", "test"}
    low, high = (decided(3, holdout=holdout) for holdout in (0.1, 0.4))
    assert all(high[name] == "test" for name in NAMES if low[name] == "test"), (
        "a larger share holds out other videos"
    )


def test_other_videos_move_none():
    whole = decided(5)
    for part in (NAMES[::3], NAMES[::-1], [*NAMES[50:90]]):
        found = decided(5, part)
        assert found == {name: whole[name] for name in part}
    mixed = decided([5, 60] * 100)
    assert all(mixed[name] == ("cut" if i % 2 else whole[name]) for i, name in enumerate(NAMES))


def test_what_is_too_short_for_a_test_clip_is_trained_on():
    assert set(decided(2.4).values()) == {"train"}, "24 frames cannot be a clip of 25"
    assert set(decided(0.4, shortest=(5, 25)).values()) == {"cut"}, "of no use for either"


def test_a_small_folder_still_holds_one_video_out():
    assert (
        min(map(hash_fraction, NAMES[:4])) > 1e-6
        and 0 <= min(map(hash_fraction, NAMES))
        and max(map(hash_fraction, NAMES)) < 1
    )
    found = decided(5, NAMES[:4], holdout=1e-6)
    assert [name for name in found if found[name] == "test"] == [min(NAMES[:4], key=hash_fraction)]
    long = decided([5, 5, 5, 2], NAMES[:4], holdout=1e-6)
    assert [name for name in long if long[name] == "test"] == [min(NAMES[:3], key=hash_fraction)], (
        "one that is too short"
    )
    assert decided(5, NAMES[:1], holdout=1e-6) == {NAMES[0]: "train"}, "nothing is left to train on"
    name = next(name for name in NAMES if hash_fraction(name) > 0.05)
    found = decided([5, 60], [name, "film.mp4"], holdout=0.05)
    assert found == {name: "train", "film.mp4": "cut"}, "the end of the film is held out already"


def test_a_small_folder_still_trains_on_one_video():
    found = decided(5, NAMES[:4], holdout=0.999999, shortest=(5, 25))
    assert [name for name in found if found[name] == "train"] == [max(NAMES[:4], key=hash_fraction)]


def test_names_of_any_bytes_can_be_drawn():
    assert hash_fraction("\udcff.mp4") != hash_fraction("\udcfe.mp4")

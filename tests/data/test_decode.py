import struct

import numpy as np
import pytest

from videomar_jax.data.decode import frames_between, nearest, probe, read_video, to_rgb

KINDS = [".mp4", ".mov", ".mkv", ".avi", ".webm", ".gif"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_read_in_order(tmp_path, write_video, numbers, kind):
    path = write_video(tmp_path / f"a{kind}", 25)
    frames, fps = read_video(path)
    assert (
        frames.shape == (25, 32, 48, 3) and frames.dtype == np.uint8 and frames.flags.c_contiguous
    )
    assert fps == pytest.approx(10, rel=0.01) and numbers(frames) == list(range(25))
    info = probe(path)
    assert (info.height, info.width) == (32, 48)
    np.testing.assert_allclose(info.times, np.arange(25) / 10, atol=0.006)


@pytest.mark.parametrize(
    "fps, expected",
    [
        (5.0, list(range(0, 25, 2))),
        (10.0, list(range(25))),
        (2.5, list(range(0, 25, 4))),
        (30.0, [round(k / 3) for k in range(73)]),
        (
            8.0,
            [0, 1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15, 16, 17, 19, 20, 21, 22, 24],
        ),  # 1.25 k, halves round down
    ],
)
def test_resampling_takes_the_nearest_frame(tmp_path, write_video, numbers, fps, expected):
    frames, rate = read_video(write_video(tmp_path / "a.mp4", 25), fps=fps)
    assert rate == fps and numbers(frames) == expected


def test_max_frames_cuts_the_end(tmp_path, write_video, numbers):
    path = write_video(tmp_path / "a.mp4", 25)
    assert numbers(read_video(path, max_frames=4)[0]) == [0, 1, 2, 3]
    assert numbers(read_video(path, fps=5.0, max_frames=3)[0]) == [0, 2, 4]
    assert len(read_video(path, max_frames=99)[0]) == 25


@pytest.mark.parametrize("kind", KINDS)
def test_seeking_finds_the_frames_that_reading_through_finds(tmp_path, write_video, numbers, kind):
    path = write_video(tmp_path / f"a{kind}", 45, gop=7)
    times = probe(path).times
    for first in (0, 4):
        for start in range(first, 45, 3):
            timed = frames_between(
                path, float(times[first]), float(times[-2]), start=float(times[start])
            )
            found = numbers([to_rgb(frame) for _, frame in timed])
            assert found == list(range(found[0], 44)), "frames are missing"
            assert first <= found[0] <= start


def test_nearest_matches_a_search_over_all_and_stops_early():
    rng = np.random.default_rng(0)
    for _ in range(50):
        times = np.sort(rng.uniform(0, 5, 12))
        wanted = np.sort(rng.uniform(times[0], times[-1], 7))
        found = nearest(((float(t), i) for i, t in enumerate(times)), wanted.tolist())
        assert found == [int(np.abs(times - w).argmin()) for w in wanted]
    assert nearest(((float(i), i) for i in range(10**9)), [1.2, 2.0]) == [1, 2]


def test_rotated_phone_videos_are_shown_upright(tmp_path, write_video):
    path = write_video(tmp_path / "a.mp4", 3)
    raw = path.read_bytes()
    plain = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    turned = struct.pack(
        ">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 32 << 16, 0, 1 << 30
    )  # a quarter clockwise
    track = raw.index(b"tkhd")
    at = raw.index(plain, track)
    path.write_bytes(raw[:at] + turned + raw[at + len(plain) :])
    assert read_video(path)[0].shape == (3, 48, 32, 3) and probe(path).height == 48


def test_files_that_cannot_be_read_are_named(tmp_path, write_video):
    with pytest.raises(FileNotFoundError, match=r"none\.mp4"):
        read_video(tmp_path / "none.mp4")
    whole = write_video(tmp_path / "whole.mp4", 30).read_bytes()
    contents = {
        "empty.mp4": b"",
        "text.mp4": b"not a video " * 50,
        "cut.mp4": whole[: len(whole) // 2],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: .*(empty|re-encode)"):
            read_video(tmp_path / name)
    for settings in ({"fps": 0.0}, {"fps": float("nan")}, {"max_frames": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            read_video(tmp_path / "whole.mp4", **settings)

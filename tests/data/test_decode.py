import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from videomar_jax.checks import UserError
from videomar_jax.data.decode import (
    frames_between,
    nearest,
    probe,
    read_last,
    read_video,
    to_rgb,
)

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


def test_frames_that_an_avi_file_drops_count_as_time(tmp_path):
    shown = [*range(12), *range(12, 48, 4)]
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=24)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuvj420p"
        for number in shown:
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 48, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    times = probe(tmp_path / "a.avi").times
    np.testing.assert_allclose(times, np.array(shown) / 24, atol=1e-9)
    timed = frames_between(tmp_path / "a.avi", 0.0, 9.0, start=0.0)
    assert [time for time, _ in timed] == times.tolist()


@pytest.mark.parametrize("across, down", [(-1, 1), (1, -1), (-1, -1), (1, 1)])
@pytest.mark.parametrize("swapped", [False, True])
def test_mirrored_display_matrices(tmp_path, across, down, swapped):
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:16, :24] = 250
    path = _write_still(tmp_path / "a.mp4", picture)
    one = 1 << 16
    if swapped:
        turned = (0, down * one, 0, across * one, 0, 0, 0, 0, 1 << 30)
        expected = picture.transpose(1, 0, 2)
    else:
        turned = (across * one, 0, 0, 0, down * one, 0, 0, 0, 1 << 30)
        expected = picture
    raw = path.read_bytes()
    plain = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    at = raw.index(plain, raw.index(b"tkhd"))
    path.write_bytes(raw[:at] + struct.pack(">9i", *turned) + raw[at + len(plain) :])
    expected = expected[::down, ::across]
    shown = read_video(path)[0][0]
    assert shown.shape == expected.shape
    np.testing.assert_array_equal(shown[::8, ::8] > 125, expected[::8, ::8] > 125)


@pytest.mark.parametrize("aspect, size", [((4, 3), (32, 64)), ((2, 3), (48, 48))])
def test_pixels_become_square(tmp_path, aspect, size):
    path = _write_still(tmp_path / "a.mp4", np.zeros((32, 48, 3), np.uint8), aspect=aspect)
    assert read_video(path)[0].shape[1:3] == size
    info = probe(path)
    assert (info.height, info.width) == size


def test_a_stream_of_one_picture_is_not_the_video(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=25)
        cover.height, cover.width, cover.pix_fmt = 16, 16, "yuvj420p"
        real = container.add_stream("libx264", rate=25)
        real.height, real.width, real.pix_fmt = 32, 48, "yuv420p"
        for stream, count in ((cover, 1), (real, 5)):
            pixels = np.zeros((stream.height, stream.width, 3), np.uint8)
            for _ in range(count):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    assert read_video(path)[0].shape == (5, 32, 48, 3)


def test_a_codec_that_is_unknown_is_named(tmp_path, write_video):
    path = write_video(tmp_path / "a.mp4", 3)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"braw"))
    with pytest.raises(UserError, match=r"a\.mp4: its codec is unknown"):
        probe(path)


@pytest.mark.parametrize("trc, words", [(16, "PQ"), (18, "HLG"), (1, "")])
def test_hdr_and_a_missing_colour_matrix_are_said(tmp_path, trc, words):
    pixels = np.zeros((720, 1280, 3), np.uint8)
    notes = " ".join(probe(_write_still(tmp_path / "a.mp4", pixels, trc=trc)).notes)
    assert "BT.601 is assumed" in notes and words in notes and ("HDR" in notes) == bool(words)


def test_the_last_frames_are_those_of_the_whole_video(tmp_path, write_video):
    path = write_video(tmp_path / "a.mp4", 45, gop=7)
    for fps in (4.0, 10.0):
        whole, _ = read_video(path, fps=fps)
        np.testing.assert_array_equal(read_last(path, 5, fps=fps), whole[-5:])
    with pytest.raises(UserError, match="fewer than the 99"):
        read_last(path, 99, fps=10.0)


def _write_still(path, picture, *, aspect=(1, 1), trc=None):
    """A video of two equal frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(*aspect)
        if trc is not None:
            stream.codec_context.color_trc = trc
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path

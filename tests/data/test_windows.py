"""Windows of videos whose frame numbers can be read back from the brightness (`write_video`)."""

from itertools import pairwise

import numpy as np
import pytest

from videomar_jax.data.windows import Cutting, cut_video, find_videos, parse_cutting, read_window


def cutting(**changes):
    return Cutting(**(dict(fps=10.0, lengths=(9,), sizes=((16, 24),)) | changes))


def frames(folder, name, how, numbers):
    """Frame numbers of every window of a video."""
    return [
        numbers(read_window(folder, window, how.fps)) for window in cut_video(folder, name, "", how)
    ]


def test_windows_lie_end_to_end(tmp_path, write_video, numbers):
    write_video(tmp_path / "a.mp4", 40, fps=10)
    found = frames(tmp_path, "a.mp4", cutting(), numbers)
    assert found == [list(range(start, start + 9)) for start in (0, 9, 18, 27)]


@pytest.mark.parametrize("ending", [".mp4", ".avi", ".webm", ".gif"])
@pytest.mark.parametrize("fps", [3.7, 4.0, 10.0, 24.0])
def test_no_frame_is_in_two_windows(tmp_path, write_video, numbers, ending, fps):
    """At every rate, also where samples fall halfway between two frames; the steps are as even as
    they can be."""
    write_video(tmp_path / f"a{ending}", 40, fps=10)
    found = frames(tmp_path, f"a{ending}", cutting(fps=fps, lengths=(5,)), numbers)
    assert len(found) == int(39 / 10 * fps + 1) // 5
    for window, after in pairwise(found):
        assert max(window) < min(after)
    for window in found:
        assert len(window) == 5 and set(np.diff(window)) <= {int(10 / fps), -int(-10 // fps)}, (
            window
        )


def test_the_longest_length_that_a_video_holds(tmp_path, write_video):
    how = cutting(lengths=(17, 9, 5))
    for count, length, windows in ((40, 17, 2), (17, 17, 1), (16, 9, 1), (8, 5, 1)):
        name = write_video(tmp_path / f"{count}.mp4", count).name
        found = cut_video(tmp_path, name, "words", how)
        assert [window.shape.num_frames for window in found] == [length] * windows
        assert {window.caption for window in found} == {"words"} and {
            window.video for window in found
        } == {name}
    write_video(tmp_path / "short.mp4", 4)
    with pytest.raises(ValueError, match=r"short.mp4: 4 frames at 10 fps, 5 needed"):
        cut_video(tmp_path, "short.mp4", "", how)


ALL = [0, 9, 18, 27]


@pytest.mark.parametrize(
    ("most", "starts"), [(1, [18]), (2, [9, 27]), (3, [0, 18, 27]), (4, ALL), (9, ALL)]
)
def test_fewer_windows_are_evenly_spread(tmp_path, write_video, numbers, most, starts):
    write_video(tmp_path / "a.mp4", 40)
    found = frames(tmp_path, "a.mp4", cutting(windows_per_clip=most), numbers)
    assert [window[0] for window in found] == starts


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((32, 48), (16, 24)),
        ((48, 32), (24, 16)),
        ((48, 48), (16, 16)),
        ((32, 36), (16, 16)),
        ((32, 160), (16, 24)),
    ],
)
def test_each_video_goes_to_the_nearest_aspect_ratio(tmp_path, write_video, size, bucket):
    write_video(tmp_path / "a.mp4", 12, size=size)
    (window,) = cut_video(tmp_path, "a.mp4", "", cutting(sizes=((16, 24), (24, 16), (16, 16))))
    assert (window.shape.height, window.shape.width) == bucket
    assert read_window(tmp_path, window, 10.0).shape == (9, *bucket, 3)


def test_sizes_of_one_aspect_ratio_are_all_made(tmp_path, write_video, numbers):
    write_video(tmp_path / "a.mp4", 20, size=(32, 48))
    how = cutting(sizes=((16, 24), (24, 16), (32, 48), (8, 12)))
    found = cut_video(tmp_path, "a.mp4", "", how)
    assert [(window.shape.height, window.shape.width) for window in found] == [
        size for size in ((16, 24), (32, 48), (8, 12)) for _ in range(2)
    ]
    clips = [read_window(tmp_path, window, 10.0) for window in found]
    assert [clip.shape[1:3] for clip in clips[::2]] == [(16, 24), (32, 48), (8, 12)]
    assert [numbers(clip)[0] for clip in clips] == [0, 9] * 3


def test_frames_are_scaled_to_cover_and_cropped_in_the_middle(tmp_path):
    """A ramp over 64 columns: the middle half is left, each pixel the mean of two."""
    import av

    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 3, (32, 64, 3)).copy()
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 64, "bgr0"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(ramp, format="rgb24")))
        container.mux(stream.encode())
    (window,) = cut_video(tmp_path, "a.mkv", "", cutting(lengths=(3,), sizes=((16, 16),)))
    row = read_window(tmp_path, window, 10.0)[1, 8, :, 0].astype(float)
    np.testing.assert_allclose(row, (np.arange(8, 24) * 2 + 0.5) * 3, atol=1)


def test_damage_is_reported_for_the_window_that_it_is_in(tmp_path, write_video):
    path = write_video(tmp_path / "a.mp4", 40)
    windows = cut_video(tmp_path, "a.mp4", "", cutting())
    raw = bytearray(path.read_bytes())
    start = raw.index(b"mdat") + 4
    size = int.from_bytes(raw[start - 8 : start - 4], "big") - 8
    raw[start + size * 3 // 4 : start + size] = b"\xff" * (size - size * 3 // 4)
    path.write_bytes(raw)
    assert read_window(tmp_path, windows[0], 10.0).shape == (9, 16, 24, 3), (
        "the beginning is undamaged"
    )
    with pytest.raises(ValueError, match=r"a.mp4: "):
        read_window(tmp_path, windows[3], 10.0)


def test_a_video_that_became_shorter_is_named(tmp_path, write_video):
    write_video(tmp_path / "a.mp4", 40)
    last = cut_video(tmp_path, "a.mp4", "", cutting())[3]
    write_video(tmp_path / "a.mp4", 12)
    with pytest.raises(ValueError, match=r"a.mp4: no frame decodes between 2.70 s and 3.60 s"):
        read_window(tmp_path, last, 10.0)
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(FileNotFoundError, match=r"a.mp4 does not exist"):
        read_window(tmp_path, last, 10.0)


def test_videos_are_found_by_relative_name_in_order(tmp_path, write_video):
    for name in ("b.mp4", "sub/a.webm", "a.GIF"):
        write_video(tmp_path / name, 3)
    (tmp_path / "notes.txt").write_text("no video")
    found = find_videos(tmp_path)
    assert list(found) == ["a.GIF", "b.mp4", "sub/a.webm"]
    assert found["b.mp4"] == (tmp_path / "b.mp4").stat().st_size
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        find_videos(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match=r"notes.txt is a file"):
        find_videos(tmp_path / "notes.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no videos under .*empty"):
        find_videos(tmp_path / "empty")


def test_words_become_a_cutting():
    assert parse_cutting(["17", "49"], ["480x768", "768x480"], 12.0, 3) == Cutting(
        fps=12.0, lengths=(49, 17), sizes=((480, 768), (768, 480)), windows_per_clip=3
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(lengths=["many"]), "num_frames 'many' is not understood"),
        (dict(lengths=["0"]), r"lengths\[0\] must be at least 1, not 0"),
        (dict(lengths=[]), "lengths"),
        (dict(sizes=["480"]), "size '480' is not understood: write ROWSxCOLUMNS"),
        (dict(sizes=["480x-3"]), "size '480x-3' is not understood"),
        (dict(sizes=["0x16"]), r"sizes\[0\]\[0\] must be at least 1, not 0"),
        (dict(sizes=["16x16", "24x16", "16x16"]), "sizes name one twice"),
        (dict(fps=0.0), "fps must be positive"),
        (dict(fps=float("nan")), "fps must be a finite number"),
        (dict(windows_per_clip=-1), "windows_per_clip must not be negative"),
    ],
)
def test_settings_that_cannot_be(changes, words):
    with pytest.raises(ValueError, match=words):
        parse_cutting(
            **(dict(lengths=["9"], sizes=["16x16"], fps=12.0, windows_per_clip=0) | changes)
        )

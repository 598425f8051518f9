import io
import logging
import os
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from videomar_jax.checks import UserError
from videomar_jax.data.loader import batches, fixed_clips
from videomar_jax.data.sources import ClipShape, ClipSource
from videomar_jax.data.videos import VideoFolder, video_files

SHAPE = ClipShape(num_frames=5, height=16, width=16)


def rng(seed=0):
    return np.random.default_rng(seed)


def windows(source, numbers, *, draws=1, shape=SHAPE):
    return [
        numbers(source.read(i, rng(100 * i + d), shape)["video"])
        for i in range(len(source))
        for d in range(draws)
    ]


@pytest.fixture
def folder(tmp_path, write_video):
    """A 40-frame, 10 fps clip of each kind; a table of captions."""
    for name in ("b.webm", "a.mp4", "sub/c.GIF", "sub/d.avi"):
        write_video(tmp_path / name)
    (tmp_path / "notes.md").write_text("no video")
    (tmp_path / "captions.csv").write_text(
        "file,caption\na.mp4,a first clip\nsub/d.avi,a last clip\n"
    )
    return tmp_path


def test_clips_come_in_sorted_order_with_their_captions(folder):
    source = VideoFolder(folder, fps=10.0, split="train")
    assert isinstance(source, ClipSource) and source.fps == 10 and source.skipped == []
    clips = [source.read(index, rng(), SHAPE) for index in range(len(source))]
    assert [clip["caption"] for clip in clips] == ["a first clip", "", "", "a last clip"]
    assert all(
        clip["video"].shape == (5, 16, 16, 3) and clip["video"].dtype == np.uint8 for clip in clips
    )


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
@pytest.mark.parametrize("fps", [3.7, 10.0, 30.0])
@pytest.mark.parametrize("holdout", [0.2, 0.5])
def test_no_frame_is_in_both_splits(folder, numbers, cache_bytes, fps, holdout):
    settings = {"fps": fps, "holdout": holdout, "cache_bytes": cache_bytes}
    shape = ClipShape(num_frames=2, height=16, width=16)
    seen = {}
    for split, draws in (("train", 40), ("test", 1)):
        found = windows(
            VideoFolder(folder, split=split, **settings), numbers, draws=draws, shape=shape
        )
        seen[split] = {number for window in found for number in window}
    cut = round(40 * (1 - holdout))
    assert max(seen["train"]) < cut <= min(seen["test"]), "training sees held-out frames"
    if fps >= 10:
        assert (
            min(seen["train"]) == 0 and max(seen["train"]) == cut - 1 and {cut, 39} <= seen["test"]
        )


@pytest.mark.parametrize("cache_bytes", [0, 2**26])
@pytest.mark.parametrize("fps, stride", [(10.0, 1), (5.0, 2), (2.5, 4)])
def test_windows_have_the_frame_rate_asked_for(folder, numbers, fps, stride, cache_bytes):
    source = VideoFolder(folder, fps=fps, split="train", cache_bytes=cache_bytes)
    starts = set()
    for index, window in enumerate(windows(source, numbers, draws=12)):
        assert np.diff(window).tolist() == [stride] * 4, f"clip {index // 12}"
        starts.add(window[0])
    assert len(starts) > 5 and {start % stride for start in starts} == set(range(stride))


def test_train_windows_follow_the_generator_and_nothing_else(folder):
    source, again = (
        VideoFolder(folder, fps=10.0, split="train", cache_bytes=size) for size in (0, 2**26)
    )
    wide = ClipShape(num_frames=3, height=20, width=16)
    for seed in range(5):
        first = source.read(1, rng(seed), wide)["video"]
        for _ in range(2):  # decoded, then kept
            np.testing.assert_array_equal(first, again.read(1, rng(seed), wide)["video"])
        again.read(1, rng(), SHAPE)  # another size in between


def test_test_windows_are_evenly_spread_and_fixed(folder, numbers):
    source = VideoFolder(folder, fps=10.0, split="test", holdout=0.5)
    assert len(source) == 4 * 4
    found = windows(source, numbers)
    assert [window[0] for window in found[:4]] == [20, 25, 30, 35]
    assert (
        found == windows(source, numbers, draws=2)[::2] == windows(source, numbers, draws=2)[1::2]
    )
    assert len(VideoFolder(folder, fps=10.0, split="test", holdout=0.5, min_frames=10)) == 4 * 2
    assert len(VideoFolder(folder, fps=10.0, split="test", holdout=0.5, min_frames=20)) == 4


def test_clips_too_short_to_be_cut_are_whole_in_one_split(tmp_path, write_video, numbers):
    """2 % of 4 seconds is no clip; a longer one among them is cut where it always was."""
    first = write_video(tmp_path / "sub" / "00.mp4", 40)
    for number in range(1, 12):
        (tmp_path / "sub" / f"{number:02}.mp4").write_bytes(first.read_bytes())
    settings = {"fps": 10.0, "holdout": 0.3, "shortest": (1, 13)}
    train, test = (
        VideoFolder(tmp_path, split=split, min_frames=least, **settings)
        for split, least in (("train", 1), ("test", 13))
    )
    names = [{source.name(index) for index in range(len(source))} for source in (train, test)]
    assert names[0] and names[1] and not names[0] & names[1] and len(names[0] | names[1]) == 12
    assert train.skipped == test.skipped == []
    shape = ClipShape(num_frames=13, height=16, width=16)
    assert sorted({window[0] for window in windows(test, numbers, shape=shape)}) == [0, 14, 27], (
        "the whole of a clip"
    )
    starts = {window[0] for window in windows(train, numbers, draws=8, shape=shape)}
    assert min(starts) < 3 and max(starts) > 20, "training sees a part of its clips only"
    cut, always = (
        VideoFolder(tmp_path, split="test", min_frames=12, **settings | {"shortest": shortest})
        for shortest in ((1, 12), None)
    )
    assert windows(cut, numbers) == windows(always, numbers) and len(cut) == 12


def test_a_folder_without_a_test_clip_says_why(tmp_path, write_video):
    write_video(tmp_path / "a.mp4", 40)
    (tmp_path / "b.mp4").write_bytes(b"junk")
    settings = {"fps": 10.0, "holdout": 0.02, "shortest": (1, 13)}
    assert len(VideoFolder(tmp_path, split="train", **settings)) == 1
    with pytest.raises(
        ValueError,
        match=r"2 of 2 videos(.|\n)*a.mp4: \d frames at 10 fps in its test part, 13 asked",
    ):
        VideoFolder(tmp_path, split="test", min_frames=13, **settings)


def test_the_whole_clip_at_random_or_evenly_spread(folder, numbers):
    random = VideoFolder(folder, fps=10.0, split="all")
    assert (
        len(random) == 4 and max(max(window) for window in windows(random, numbers, draws=40)) > 36
    )
    spread = VideoFolder(folder, fps=10.0, split="all", crop="center")
    assert [window[0] for window in windows(spread, numbers)[:4]] == [0, 12, 23, 35]


def test_crops(tmp_path):
    import av

    columns = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (32, 64, 3)).copy()
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 64, "bgr0"
        for _ in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(columns, format="rgb24")))
        container.mux(stream.encode())
    shape = ClipShape(num_frames=2, height=32, width=32)

    def lefts(split, crop):
        source = VideoFolder(tmp_path, fps=10.0, split=split, crop=crop)
        return {
            int(source.read(0, rng(seed), shape)["video"][0, 0, 0, 0]) // 4 for seed in range(60)
        }

    assert lefts("train", "center") == lefts("test", "center") == lefts("test", "random") == {16}
    assert len(lefts("train", "random")) > 15


def test_broken_files_are_skipped_with_a_warning_each(folder, write_video, caplog):
    whole = (folder / "a.mp4").read_bytes()
    (folder / "broken.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    write_video(folder / "short.mp4", 5)
    with caplog.at_level(logging.WARNING):
        source = VideoFolder(folder, fps=10.0, split="train", min_frames=5)
    assert len(source) == 4
    reasons = {path.name: reason for path, reason in source.skipped}
    assert list(reasons) == ["broken.mp4", "empty.mp4", "short.mp4"]
    assert "decoded" in reasons["broken.mp4"] and "empty" in reasons["empty.mp4"]
    assert "4 frames at 10 fps in its train part, 5 asked" in reasons["short.mp4"]
    assert all(any(name in record.getMessage() for record in caplog.records) for name in reasons)
    with pytest.raises(
        ValueError, match=r"3 of 7 videos(.|\n)*broken.mp4(.|\n)*empty.mp4(.|\n)*short.mp4"
    ):
        VideoFolder(folder, fps=10.0, split="train", min_frames=5, skip_broken=False)


def test_folders_without_a_usable_clip_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        VideoFolder(tmp_path / "nowhere", fps=10.0, split="train")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"no videos under .*\.mp4"):
        VideoFolder(tmp_path, fps=10.0, split="train")
    with pytest.raises(NotADirectoryError, match=r"notes.txt is a file"):
        VideoFolder(tmp_path / "notes.txt", fps=10.0, split="train")
    for number in range(12):
        (tmp_path / f"{number:02}.mp4").write_bytes(b"junk" * number)
    with pytest.raises(
        ValueError, match=r"12 of 12(.|\n)*00.mp4: the file is empty(.|\n)*and 2 more"
    ):
        VideoFolder(tmp_path, fps=10.0, split="train")


def test_a_caption_for_a_missing_clip_is_an_error(folder):
    (folder / "captions.csv").write_text("file,caption\nlost.mp4,x\n")
    with pytest.raises(FileNotFoundError, match=r"captions.csv, line 2: 'lost.mp4'"):
        VideoFolder(folder, fps=10.0, split="train")


def test_a_clip_shorter_than_asked_says_so_and_the_way_out(folder):
    source = VideoFolder(folder, fps=10.0, split="test")
    with pytest.raises(
        ValueError, match=r"a.mp4: 8 frames at 10 fps in its test part, 9 asked.*min_frames=9"
    ):
        source.read(0, rng(), ClipShape(num_frames=9, height=16, width=16))
    with pytest.raises(IndexError, match="16 clips"):
        source.read(16, rng(), SHAPE)


def test_damage_met_while_reading_names_the_file(tmp_path, write_video):
    path = write_video(tmp_path / "a.mp4", 40)
    source = VideoFolder(tmp_path, fps=10.0, split="all", crop="center", cache_bytes=0)
    raw = bytearray(path.read_bytes())
    start = raw.index(b"mdat") + 4
    size = int.from_bytes(raw[start - 8 : start - 4], "big") - 8
    raw[start + size // 2 : start + size] = b"\xff" * (size - size // 2)
    path.write_bytes(raw)
    assert source.read(0, rng(), SHAPE)["video"].shape == (5, 16, 16, 3), (
        "the undamaged beginning stays readable"
    )
    with pytest.raises(ValueError, match=r"a.mp4: (damaged|cannot be decoded).*re-encode"):
        for index in range(4):
            source.read(index, rng(), ClipShape(num_frames=20, height=16, width=16))


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"fps": 0.0}, "fps"),
        ({"split": "validation"}, "split|Literal"),
        ({"crop": "left"}, "crop|Literal"),
        ({"holdout": 1.0}, "holdout"),
        ({"holdout": -0.1}, "holdout"),
        ({"holdout": 0.0, "split": "test"}, "holdout"),
        ({"min_frames": 0}, "min_frames"),
        ({"shortest": (1, 0)}, "shortest"),
    ],
)
def test_settings_out_of_range_are_named(tmp_path, settings, name):
    with pytest.raises((ValueError, TypeError), match=name):
        VideoFolder(tmp_path, **({"fps": 10.0, "split": "train"} | settings))


def test_videos_through_the_loader_resume_exactly(folder):
    def take(count, **settings):
        source = VideoFolder(folder, fps=5.0, split="train")
        iterator = batches(source, shape=SHAPE, batch_size=3, seed=1, **settings)
        found = [next(iterator) for _ in range(count)]
        iterator.close()
        return found

    whole = take(6)  # 18 clips: four epochs
    for later, resumed in zip(whole[3:], take(3, start_step=3, num_threads=0), strict=True):
        np.testing.assert_array_equal(later["video"], resumed["video"])
        assert later["caption"] == resumed["caption"]
    source = VideoFolder(folder, fps=5.0, split="train")
    first, again = (fixed_clips(source, [2, 0], shape=SHAPE) for _ in range(2))
    np.testing.assert_array_equal(first["video"], again["video"])


# Which clips a shape is for

SIZES = ((16, 32), (32, 16), (24, 24))


def test_each_clip_lands_in_the_size_nearest_to_its_own(tmp_path, write_video):
    sides = {
        "wide": (36, 64),
        "tall": (64, 36),
        "square": (40, 40),
        "photo": (48, 64),
        "nearly": (44, 40),
    }
    for name, size in sides.items():
        write_video(tmp_path / f"{name}.mp4", 20, size=size)
    source = VideoFolder(tmp_path, fps=10.0, split="train")
    found = {}
    for height, width in SIZES:
        for index in source.fits(ClipShape(num_frames=5, height=height, width=width), SIZES):
            assert found.setdefault(source.name(int(index)), (height, width)) == (height, width), (
                "in two sizes"
            )
    assert found == {
        "wide": (16, 32),
        "tall": (32, 16),
        "square": (24, 24),
        "photo": (24, 24),
        "nearly": (24, 24),
    }
    alone = ClipShape(num_frames=5, height=24, width=24)
    assert len(source.fits(alone, ((24, 24),))) == 5, "a single size is for all"


def test_only_clips_that_are_long_enough_fit(tmp_path, write_video):
    for name, count in (("a", 40), ("b", 10), ("c", 25)):
        write_video(tmp_path / f"{name}.mp4", count)
    source = VideoFolder(tmp_path, fps=10.0, split="train")  # 32, 8 and 20 frames
    for frames, wanted in [
        (1, [0, 1, 2]),
        (8, [0, 1, 2]),
        (9, [0, 2]),
        (20, [0, 2]),
        (21, [0]),
        (33, []),
    ]:
        shape = ClipShape(num_frames=frames, height=16, width=16)
        assert source.fits(shape, ((16, 16),)).tolist() == wanted, f"{frames} frames"
        for index in wanted:
            source.read(index, rng(), shape)
    assert VideoFolder(tmp_path, fps=5.0, split="train").fits(SHAPE, ((16, 16),)).tolist() == [0, 2]


def test_digests_tell_folders_of_other_clips_apart(tmp_path, write_video):
    import shutil

    def digest(folder, split="train", **changes):
        return VideoFolder(folder, **({"fps": 10.0, "split": split} | changes)).digest()

    here = tmp_path / "here"
    write_video(here / "a.mp4", 20)
    write_video(here / "sub" / "b.mp4", 30)
    first = digest(here)
    shutil.copytree(here, tmp_path / "there")
    (tmp_path / "there" / "captions.csv").write_text("file,caption\na.mp4,a caption\n")
    assert digest(tmp_path / "there") == digest(here) == first
    others = [digest(here, "test"), digest(here, fps=5.0), digest(here, holdout=0.4)]
    (here / "sub" / "b.mp4").rename(here / "b.mp4")
    others.append(digest(here))
    write_video(here / "b.mp4", 35)
    others.append(digest(here))
    write_video(here / "c.mp4", 30)
    others.append(digest(here))
    assert len({first, *others}) == 7 and all(len(other) == 16 for other in others)


def test_sizes_in_turn_keep_their_decoded_clips(folder, monkeypatch):
    """A batch of another size must not throw away what the next one needs; only a size that is over
    makes room."""
    from videomar_jax.data import frame_cache, videos

    opened = []
    monkeypatch.setattr(frame_cache, "_STALE", 8)
    decode = videos.frames_between
    monkeypatch.setattr(
        videos, "frames_between", lambda path, *a, **k: opened.append(path) or decode(path, *a, **k)
    )
    small, large = (ClipShape(num_frames=2, height=side, width=side) for side in (16, 32))
    source = VideoFolder(
        folder, fps=10.0, split="train", cache_bytes=32 * 3 * (16 * 24 + 32 * 48) + 1000
    )
    for _ in range(3):
        for shape in (small, large):
            source.read(1, rng(), shape)
    assert len(opened) == 2, "a clip was decoded again when its size came back"
    for _ in range(9):
        source.read(0, rng(), small)  # no room for it, but the large one is soon over
    before = len(opened)
    source.read(0, rng(), small)
    source.read(1, rng(), small)
    assert len(opened) == before, "a size that is not asked for any more keeps its place"


def test_a_video_that_fails_later_is_replaced_by_the_next(folder, numbers, caplog):
    settings = {"fps": 10.0, "split": "train", "cache_bytes": 0}
    whole = VideoFolder(folder, **settings)
    source = VideoFolder(folder, **settings, most_failing=0.5)
    strict = VideoFolder(folder, **settings)
    (folder / "b.webm").write_bytes(b"damaged")
    for _ in range(2):
        clip = source.read(1, rng(), SHAPE)
        np.testing.assert_array_equal(clip["video"].shape, (5, 16, 16, 3))
        other = source.read(2, rng(), SHAPE)
        assert clip["caption"] == other["caption"]
        np.testing.assert_array_equal(
            source.read(0, rng(7), SHAPE)["video"], whole.read(0, rng(7), SHAPE)["video"]
        )
    assert caplog.text.count("skipped from now on (1 of 4 videos)") == 1 and "b.webm" in caplog.text
    with pytest.raises(UserError, match=r"b\.webm"):
        strict.read(1, rng(), SHAPE)
    for name in ("a.mp4", "sub/c.GIF"):
        (folder / name).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"data\.most_failing"):
        for index in range(4):
            source.read(index, rng(), SHAPE)


def test_videos_that_failed_in_an_earlier_start_count_too(folder, numbers):
    settings = {"fps": 10.0, "split": "train", "cache_bytes": 0, "most_failing": 0.25}
    first, second = VideoFolder(folder, **settings), VideoFolder(folder, **settings)
    paths = [first._windows[index].segment.path for index in range(4)]
    paths[1].write_bytes(b"damaged")
    replaced = first.read(1, rng(), SHAPE)
    name = paths[1].relative_to(folder).as_posix()
    assert first.failing() == [name] and second.failing() == []
    second.count_failing([name, "gone.mp4"])
    assert second.failing() == [name]
    np.testing.assert_array_equal(second.read(1, rng(), SHAPE)["video"], replaced["video"])
    paths[2].write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"2 of 4 videos .*than the 1 that data\.most_failing"):
        second.read(2, rng(), SHAPE)


def test_a_frame_size_that_changes_within_a_file_costs_that_file_alone(folder, caplog):
    with av.open(str(folder / "a1.mkv"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuvj420p"
        for number in range(40):
            size = (48, 32) if number < 3 else (64, 48)
            picture = io.BytesIO()
            Image.new("RGB", size).save(picture, "JPEG")
            packet = av.Packet(picture.getvalue())
            packet.stream, packet.pts, packet.dts = stream, number, number
            packet.time_base, packet.is_keyframe = Fraction(1, 10), True
            container.mux(packet)
    settings = {"fps": 10.0, "split": "train", "most_failing": 0.2}
    source = VideoFolder(folder, **settings)
    assert len(source) == 5 and source.name(1) == "a1"
    clips = [source.read(index, rng(), SHAPE)["caption"] for index in range(5)]
    assert clips == ["a first clip", "", "", "", "a last clip"] and source.failing() == ["a1.mkv"]
    assert "a1.mkv: frames change" in caplog.text and "48x32 to 64x48" in caplog.text
    decoded = VideoFolder(folder, **settings, decode_all=True)
    assert [path.name for path, _ in decoded.skipped] == ["a1.mkv"]


def test_mutated_files_cost_no_more_than_themselves(tmp_path, write_video):
    """Bits turned, bytes replaced or lost at 60 places: whatever is wrong with it, a clip comes."""
    whole = write_video(tmp_path / "whole.mp4", 20).read_bytes()
    draw = rng(5)
    for number in range(60):
        raw, at = bytearray(whole), int(draw.integers(len(whole)))
        if number % 3 == 0:
            raw[at] ^= 1 << int(draw.integers(8))
        elif number % 3 == 1:
            raw[at : at + 40] = draw.bytes(40)
        else:
            del raw[at:]
        (tmp_path / f"{number:02d}.mp4").write_bytes(raw)
    source = VideoFolder(tmp_path, fps=10.0, split="train", most_failing=1.0, cache_bytes=0)
    for index in range(len(source)):
        assert source.read(index, rng(index), SHAPE)["video"].shape == (5, 16, 16, 3)
    assert source.skipped and source.failing(), "some fail when inspected, some later"
    assert "whole.mp4" not in source.failing()


@pytest.mark.parametrize("kept", [0, 2**26])
def test_damage_outside_of_a_window_counts_with_and_without_the_cache(tmp_path, write_video, kept):
    """A resumed run keeps other files decoded, and must read the same clips."""
    path = write_video(tmp_path / "a.mp4", gop=4)
    write_video(tmp_path / "b.mp4", 12)
    source = VideoFolder(
        tmp_path, fps=10.0, split="all", crop="center", min_frames=5, cache_bytes=kept
    )
    raw = path.read_bytes()
    at = raw.index(b"mdat") + 4
    end = raw.index(b"moov")
    path.write_bytes(raw[: (at + 2 * end) // 3] + bytes(end - (at + 2 * end) // 3) + raw[end:])
    source._most_failing = 1.0
    whole = [source.read(index, rng(), SHAPE)["video"].mean() for index in range(len(source))]
    assert source.failing() == ["a.mp4"] and whole[0] < 40, "the first window is before the damage"


def test_decoding_all_finds_damage_in_the_middle(folder):
    path = folder / "sub" / "d.avi"
    raw = bytearray(path.read_bytes())
    # Several whole frames: a decoder conceals less.
    first, last = int(0.4 * len(raw)), int(0.5 * len(raw))
    raw[first:last] = bytes(last - first)
    path.write_bytes(raw)
    settings = {"fps": 10.0, "split": "train"}
    assert not VideoFolder(folder, **settings).skipped
    [(found, _)] = VideoFolder(folder, **settings, decode_all=True).skipped
    assert found == path


def test_linked_folders_are_read_once(tmp_path, write_video):
    write_video(tmp_path / "clips" / "a.mp4")
    write_video(tmp_path / "elsewhere" / "b.mp4")
    (tmp_path / "clips" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "clips" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "clips")
    names = [path.name for path in video_files(tmp_path / "clips")]
    assert names == ["a.mp4", "b.mp4"]


def test_a_file_name_that_is_not_utf_8_can_be_reported(tmp_path, write_video):
    path = write_video(tmp_path / "a.mp4")
    path.rename(tmp_path / os.fsdecode(b"gro\xdf.mp4"))
    source = VideoFolder(tmp_path, fps=10.0, split="train")
    assert source.name(0) == "gro\ufffd"
    source.name(0).encode("utf-8")
    assert source.read(0, rng(), SHAPE)["caption"] == "" and source.digest()

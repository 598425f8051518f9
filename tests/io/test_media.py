import inspect
import os
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from videomar_jax.io import media


def _smooth(frames=6, height=32, width=48):
    """A slowly changing colour gradient with thousands of colours."""
    t, y, x = np.ogrid[:frames, :height, :width]
    planes = [
        120 + 100 * np.sin(x / 20 + t / 5),
        120 + 100 * np.cos(y / 17 - t / 6),
        60 + 2 * x + 2 * y + 4 * t,
    ]
    return np.stack(np.broadcast_arrays(*planes), axis=-1).clip(0, 255).astype(np.uint8)


def _flat(frames=5, height=9, width=13):
    """A few pure colours, each frame different: what GIF and PNG keep exactly."""
    video = np.full((frames, height, width, 3), (20, 20, 20), np.uint8)
    for frame in range(frames):
        video[frame, 2:6, frame : frame + 4] = (230, 10 * frame, 10)
    return video


def _read_mp4(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        facts = stream.codec_context.name, stream.pix_fmt, stream.average_rate
        frames, times = zip(
            *[(f.to_ndarray(format="rgb24"), f.time) for f in container.decode(stream)], strict=True
        )
    return np.stack(frames), np.array(times), facts


def _psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


@pytest.mark.parametrize("fps", [8, 24, 29.97, Fraction(24000, 1001)])
def test_mp4_keeps_frames_size_times_and_colours(tmp_path, fps):
    video = _smooth()
    media.write_mp4(tmp_path / "new" / "folder" / "clip.mp4", video, fps)
    read, times, facts = _read_mp4(tmp_path / "new" / "folder" / "clip.mp4")
    assert read.shape == video.shape
    assert facts == ("h264", "yuv420p", Fraction(fps).limit_denominator(100_000))
    np.testing.assert_allclose(times, np.arange(len(video)) / float(fps), atol=1e-3)
    assert _psnr(read, video) > 35
    assert _psnr(read[0], video[0]) > 35
    np.testing.assert_allclose(
        read.mean((0, 1, 2)), video.mean((0, 1, 2)), atol=2, err_msg="the colours are shifted"
    )


def test_mp4_of_the_same_frames_has_the_same_bytes(tmp_path):
    """Whatever the memory held before: the encoder must not use what it has not set."""
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (5, 24, 24, 3)).astype(np.uint8)
    files = []
    for number in range(16):
        rubbish = [np.full(rng.integers(1000, 3_000_000), number, np.uint8) for _ in range(3)]
        del rubbish
        media.write_mp4(tmp_path / f"{number}.mp4", video, 12, min_side=256)
        files.append((tmp_path / f"{number}.mp4").read_bytes())
    assert len(set(files)) == 1, f"{len(set(files))} different files of 16"


def test_webm_is_vp9_with_the_same_frames_times_and_colours(tmp_path):
    video = _smooth(height=33, width=47)
    media.write_webm(tmp_path / "clip.webm", video, 12, min_side=64)
    read, times, facts = _read_mp4(tmp_path / "clip.webm")
    assert facts == ("vp9", "yuv420p", 12) and read.shape == (6, 66, 94, 3)
    np.testing.assert_allclose(times, np.arange(6) / 12, atol=1e-3)
    assert _psnr(read, video.repeat(2, 1).repeat(2, 2)) > 33
    np.testing.assert_allclose(
        read.mean((0, 1, 2)), video.mean((0, 1, 2)), atol=2, err_msg="the colours are shifted"
    )


def test_mp4_pads_odd_sides_by_their_last_row_and_column(tmp_path):
    video = _smooth(height=33, width=47)
    media.write_mp4(tmp_path / "clip.mp4", video, 8)
    read, _, _ = _read_mp4(tmp_path / "clip.mp4")
    assert read.shape == (6, 34, 48, 3)
    assert _psnr(read[:, :33, :47], video) > 35
    assert (
        _psnr(read[:, 33, :47], video[:, 32]) > 30 and _psnr(read[:, :33, 47], video[:, :, 46]) > 30
    )


def test_mp4_min_side_repeats_pixels_by_a_whole_factor(tmp_path):
    video = _flat(height=10, width=14)
    media.write_mp4(tmp_path / "clip.mp4", video, 8, min_side=35)
    read, _, _ = _read_mp4(tmp_path / "clip.mp4")
    assert read.shape == (5, 40, 56, 3)
    assert _psnr(read, video.repeat(4, axis=1).repeat(4, axis=2)) > 30
    media.write_mp4(tmp_path / "large.mp4", _smooth(), 8, min_side=16)
    assert _read_mp4(tmp_path / "large.mp4")[0].shape == (6, 32, 48, 3)


def test_mp4_of_a_single_tiny_frame(tmp_path):
    media.write_mp4(tmp_path / "one.mp4", np.full((1, 1, 1, 3), 200, np.uint8), 1)
    read, _, _ = _read_mp4(tmp_path / "one.mp4")
    assert read.shape == (1, 2, 2, 3) and abs(read.astype(int) - 200).max() < 8


def _read_gif(path):
    with Image.open(path) as opened:
        loop = opened.info.get("loop")
        pages = [
            (np.array(p.convert("RGB")), p.info["duration"]) for p in ImageSequence.Iterator(opened)
        ]
    frames, durations = zip(*pages, strict=True)
    return np.stack(frames), list(durations), loop


def test_gif_keeps_few_colours_exactly_and_loops(tmp_path):
    video = _flat()
    media.write_gif(tmp_path / "folder" / "clip.gif", video, 8, scale=3)
    frames, durations, loop = _read_gif(tmp_path / "folder" / "clip.gif")
    np.testing.assert_array_equal(frames, video.repeat(3, axis=1).repeat(3, axis=2))
    assert loop == 0 and sum(durations) == 620  # 5/8 s = 62.5 hundredths


@pytest.mark.parametrize("colours", [1, 255, 256, 257])
def test_gif_around_the_limit_of_the_palette(tmp_path, colours):
    values = np.arange(2 * 16 * 24) % colours
    video = np.stack([values % 16 * 17, values // 16 * 15, 255 - values % 7], axis=-1).astype(
        np.uint8
    )
    video = video.reshape(2, 16, 24, 3)
    video[1, 0, 0] = video[0, 5, 5]
    media.write_gif(tmp_path / "clip.gif", video, 10)
    frames, durations, _ = _read_gif(tmp_path / "clip.gif") if colours > 1 else (video, [200], 0)
    assert sum(durations) == 200
    if colours <= 256:
        np.testing.assert_array_equal(frames, video)
    else:
        assert _psnr(frames, video) > 25


def test_gif_of_many_colours_is_close(tmp_path):
    video = _smooth()
    media.write_gif(tmp_path / "clip.gif", video, 8)
    frames, _, _ = _read_gif(tmp_path / "clip.gif")
    assert frames.shape == video.shape and _psnr(frames, video) > 28


@pytest.mark.parametrize(
    ("fps", "total"), [(24, 1000), (30, 800), (10, 2400), (60, 480), (7.5, 3200)]
)
def test_gif_durations_add_up(tmp_path, fps, total):
    video = _flat(frames=24, width=40)
    media.write_gif(tmp_path / "clip.gif", video, fps)
    _, durations, _ = _read_gif(tmp_path / "clip.gif")
    assert len(durations) == 24 and sum(durations) == total
    assert max(durations) - min(durations) <= 10 and min(durations) >= 20


def test_gif_of_a_still_clip_lasts_as_long(tmp_path):
    media.write_gif(tmp_path / "clip.gif", np.concatenate([_flat(1)] * 4 + [_flat(2)[1:]] * 2), 10)
    _, durations, _ = _read_gif(tmp_path / "clip.gif")
    assert durations == [400, 200]


def test_png_round_trip(tmp_path):
    media.write_png(tmp_path / "a" / "b.png", _smooth()[0])
    with Image.open(tmp_path / "a" / "b.png") as opened:
        np.testing.assert_array_equal(np.array(opened), _smooth()[0])


WRITERS = {
    "clip.mp4": lambda path, **kw: media.write_mp4(path, _flat(), 8, **kw),
    "clip.gif": lambda path, **kw: media.write_gif(path, _flat(), 8, **kw),
    "image.png": lambda path, **kw: media.write_png(path, _flat()[0], **kw),
}


@pytest.mark.parametrize("name", WRITERS)
def test_existing_files_are_kept_unless_asked_otherwise(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=name):
        WRITERS[name](path)
    assert path.read_bytes() == b"precious"
    WRITERS[name](path, overwrite=True)
    assert path.stat().st_size > 50
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", WRITERS)
def test_an_interrupted_write_leaves_the_folder_as_it_was(tmp_path, name, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    (tmp_path / name).write_bytes(b"the file before")
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        WRITERS[name](tmp_path / name, overwrite=True)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(name, b"the file before")]


@pytest.mark.parametrize("name", WRITERS)
def test_folders_and_bucket_addresses_are_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(FileExistsError):
        WRITERS[name](tmp_path / name, overwrite=True)
    with pytest.raises(ValueError, match="local"):
        WRITERS[name](f"gs://bucket/{name}")


def test_bad_videos_and_rates_are_refused(tmp_path):
    video, path = _flat(), tmp_path / "clip"
    for write in (inspect.unwrap(media.write_mp4), inspect.unwrap(media.write_gif)):
        for bad in (video[None], video[:0], video[..., :1], video / 255.0):
            with pytest.raises(ValueError, match="uint8"):
                write(path, bad, 8)
        for fps in (0, -1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="fps"):
                write(path, video, fps)
    with pytest.raises(ValueError, match="scale"):
        media.write_gif(path, video, 8, scale=0)
    with pytest.raises(ValueError, match="uint8"):
        inspect.unwrap(media.write_png)(path, video)
    assert not list(tmp_path.iterdir())


def _contains(sheet, frame):
    windows = np.lib.stride_tricks.sliding_window_view(sheet, frame.shape)[:, :, 0]
    starts = np.argwhere((windows[:, :, 0, 0] == frame[0, 0]).all(-1))
    return [tuple(at) for at in starts if (windows[tuple(at)] == frame).all()]


def test_contact_sheet_shows_each_frame_enlarged_left_to_right_row_by_row():
    first, second = _flat(frames=3), 255 - _flat(frames=2, height=11)
    sheet = media.contact_sheet([("first", first), ("second", second)])
    scale = 8  # 9 rows, the smallest side, to at least 64
    places = []
    for video in (first, second):
        row = [_contains(sheet, frame.repeat(scale, 0).repeat(scale, 1)) for frame in video]
        assert all(len(found) == 1 for found in row), row
        rows, columns = zip(*[found[0] for found in row], strict=True)
        assert len(set(rows)) == 1 and list(columns) == sorted(columns)
        places.append(rows[0])
    assert places[1] > places[0] + first.shape[1] * scale, "rows must not overlap"


def test_contact_sheet_columns_takes_evenly_spaced_frames():
    video = _flat(frames=9, width=16)
    sheet = media.contact_sheet([("clip", video)], columns=3, scale=1)
    shown = [bool(_contains(sheet, frame)) for frame in video]
    assert shown == [True, False, False, False, True, False, False, False, True]
    assert (
        media.contact_sheet([("clip", video)], columns=20).shape
        == media.contact_sheet([("clip", video)]).shape
    )


def test_contact_sheet_labels_are_drawn_and_long_ones_wrapped():
    video = _flat(frames=1)
    plain, short = media.contact_sheet([("", video)]), media.contact_sheet([("a label", video)])
    long = media.contact_sheet([("a long label " * 20, video)])
    assert (
        plain.shape[0] < short.shape[0] < long.shape[0]
        and plain.shape[1] == short.shape[1] == long.shape[1]
    )
    above = short[16:30]
    assert above.min() < 100, "no ink above the row"
    assert (long[:, -10:] == long[0, 0]).all(), "text runs off the page"


def test_contact_sheet_shrinks_large_frames():
    sheet = media.contact_sheet([("large", np.full((2, 512, 512, 3), (0, 200, 0), np.uint8))])
    assert (sheet == (0, 200, 0)).all(-1).sum() == 2 * 256 * 256


def test_contact_sheet_refuses_bad_input():
    with pytest.raises(ValueError, match="at least one"):
        media.contact_sheet([])
    for kwargs in ({"columns": 0}, {"scale": 1.5}, {"scale": 0}):
        with pytest.raises(ValueError, match=next(iter(kwargs))):
            media.contact_sheet([("clip", _flat())], **kwargs)
    with pytest.raises(ValueError, match="'clip'"):
        inspect.unwrap(media.contact_sheet)([("clip", _flat()[0])])

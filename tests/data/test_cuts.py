"""Cuts are found where they are, and not where footage moves fast, flashes or fades."""

import logging

import av
import numpy as np
import pytest
from PIL import Image

from videomar_jax.data.cuts import cuts_of, find_cuts
from videomar_jax.data.sources import ClipShape
from videomar_jax.data.videos import VideoFolder

FPS = 25
SIDE = 96


def texture(seed, *, patches=6, darkest=40, brightest=200):
    """A picture of soft patches of colour."""
    noise = np.random.default_rng(seed).integers(
        darkest, brightest, (patches, patches, 3), dtype=np.uint8
    )
    picture = Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(picture).astype(np.float32)


def pan(seed, frames, step=2):
    return [np.roll(texture(seed), step * number, axis=1) for number in range(frames)]


def short_shots():
    return [frame for seed in range(6) for frame in pan(seed, 6, 3)]


def ball(ground, place, colour=(255, 255, 0)):
    rows, columns = np.mgrid[:SIDE, :SIDE]
    frame = np.full((SIDE, SIDE, 3), ground, np.float32)
    frame[(rows - place[0]) ** 2 + (columns - place[1]) ** 2 < 200] = colour
    return frame


def found(frames):
    """Numbers of the frames at which shots begin."""
    small = [np.clip(frame, 0, 255).reshape(24, 4, 24, 4, 3).mean(axis=(1, 3)) for frame in frames]
    times = find_cuts((number / FPS, frame) for number, frame in enumerate(small))
    return [round(time * FPS) for time in times]


def lit(frames, first, extra):
    """The frames, brighter by `extra` from frame `first` on."""
    changed = list(frames)
    for number, levels in enumerate(extra, start=first):
        changed[number] = changed[number] + levels
    return changed


RED, BLUE = (180, 40, 40), (40, 40, 180)
WITH_CUTS = {
    "two shots that pan": (pan(1, 30) + pan(2, 30), [30]),
    "and back again": (pan(1, 10) + pan(2, 10) + pan(1, 10), [10, 20]),
    "short shots": (short_shots(), [6, 12, 18, 24, 30]),
    "slides": ([texture(1)] * 20 + [texture(2)] * 20, [20]),
    "dark": (
        [texture(1, darkest=8, brightest=42)] * 9 + [texture(2, darkest=8, brightest=42)] * 9,
        [9],
    ),
    "a ball each": (
        [ball(RED, (48, 10 + 3 * i)) for i in range(20)]
        + [ball(BLUE, (10 + 3 * i, 48)) for i in range(20)],
        [20],
    ),
    "the first frame of the file": (pan(1, 1) + pan(2, 10), [1]),
}


@pytest.mark.parametrize("case", WITH_CUTS)
def test_every_cut_is_found(case):
    frames, expected = WITH_CUTS[case]
    assert found(frames) == expected


def mixed(one, other, frames):
    return [one * (1 - k / frames) + other * (k / frames) for k in range(1, frames)]


WITHOUT = {
    "one frame": pan(1, 1),
    "still": [texture(1)] * 30,
    "noise": [
        texture(1) + np.random.default_rng(i).normal(0, 30, (SIDE, SIDE, 3)) for i in range(30)
    ],
    "fast pan": pan(1, 40, step=14),
    "a pan that starts and stops": [texture(1)] * 10
    + pan(1, 15, step=16)
    + [pan(1, 15, step=16)[-1]] * 10,
    "a fast ball": [ball((20, 20, 20), (48, 23 * i % SIDE)) for i in range(40)],
    "a flash of one frame": lit(pan(1, 30), 10, [150]),
    "a flash that fades": lit(pan(1, 40), 10, [200 * 0.7**k for k in range(12)]),
    "white frames": pan(1, 10) + [np.full((SIDE, SIDE, 3), 255.0)] * 8 + pan(1, 30)[18:],
    "black frames": pan(1, 10) + [np.zeros((SIDE, SIDE, 3))] * 3 + pan(1, 30)[13:],
    "something passes the lens": pan(1, 10)
    + [np.full((SIDE, SIDE, 3), (90, 30, 200.0))] * 2
    + pan(1, 30)[12:],
    "a strobe": lit([texture(1)] * 60, 0, [150 * (i // 3 % 2) for i in range(60)]),
    "a fade from black": [texture(1) * min(k / 12, 1) for k in range(40)],
    "a fast fade to black": [texture(1) * max(1 - k / 4, 0) for k in range(-10, 15)],
    "a dissolve": [texture(1)] * 10 + mixed(texture(1), texture(2), 8) + [texture(2)] * 10,
    "dimmed at once": [texture(1)] * 10 + [texture(1) * 0.6 + 10] * 30,
}


@pytest.mark.parametrize("case", WITHOUT)
def test_no_cut_is_seen_where_there_is_none(case):
    assert found(WITHOUT[case]) == []


def write(path, frames):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for frame in frames:
            pixels = np.clip(frame, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def folder(tmp_path):
    """a: shots of 20, 4 and 56 frames, each of one colour; b: one of 80."""
    shots = [ball(RED, (48, 48), RED)] * 20 + [ball(BLUE, (48, 48), BLUE)] * 4
    write(tmp_path / "a.mp4", shots + [ball((40, 200, 40), (48, 48), (40, 200, 40))] * 56)
    write(tmp_path / "b.mp4", pan(3, 80))
    return tmp_path


SHAPE = ClipShape(num_frames=9, height=16, width=16)


def colours(video):
    return {tuple(np.round(frame.mean(axis=(0, 1)) / 40)) for frame in video.astype(float)}


def test_no_window_runs_across_a_cut(folder, caplog):
    caplog.set_level(logging.INFO, "videomar_jax")
    settings = {"fps": float(FPS), "split": "train", "holdout": 0.2, "min_frames": 9}
    source = VideoFolder(folder, split_cuts=True, **settings)
    assert "cuts: 2, in 1 of 2 videos" in caplog.text
    assert [source.name(index) for index in range(len(source))] == ["a", "a", "b"], (
        "the shot of 4 frames is too short"
    )
    plain = VideoFolder(folder, **settings)
    assert len(plain) == 2 and plain.digest() != source.digest()
    for index in range(2):
        clips = [source.read(index, np.random.default_rng(seed), SHAPE) for seed in range(20)]
        seen = [colours(clip["video"]) for clip in clips]
        assert all(each == seen[0] and len(each) == 1 for each in seen), "a window mixes shots"
    across = [plain.read(0, np.random.default_rng(seed), SHAPE) for seed in range(60)]
    assert max(len(colours(clip["video"])) for clip in across) > 1, "the cut is not a cut"
    test = VideoFolder(folder, split_cuts=True, **(settings | {"split": "test"}))
    assert {test.name(index) for index in range(len(test))} == {"a", "b"}


def test_the_cache_does_not_mix_shots_of_one_file(folder):
    sources = [
        VideoFolder(
            folder, fps=float(FPS), split="train", min_frames=9, split_cuts=True, cache_bytes=size
        )
        for size in (0, 2**26)
    ]
    for index in (0, 1, 2, 1, 0):
        one, other = [source.read(index, np.random.default_rng(index), SHAPE) for source in sources]
        np.testing.assert_array_equal(one["video"], other["video"])


def test_a_video_without_a_long_shot_is_left_out(tmp_path):
    write(tmp_path / "short.mp4", short_shots())
    write(tmp_path / "long.mp4", pan(3, 80))
    source = VideoFolder(tmp_path, fps=float(FPS), split="all", min_frames=9, split_cuts=True)
    assert len(source) == 1
    ((path, reason),) = source.skipped
    assert path.name == "short.mp4"
    assert "6 frames at 25 fps in the longest of 6 shots, 9 asked" in reason


def test_cuts_have_the_times_of_the_file(folder):
    assert cuts_of(folder / "a.mp4") == pytest.approx((20 / FPS, 24 / FPS))

"""Windows of video files: the stretches of a folder's videos that become clips, and their pixels.

A video of n frames at `fps` gets the greatest of `lengths` that is at most n, called L, and n div L
windows of L frames. Window k owns the frames presented in [t_k, t_k+1), where
t_k = first + k L / fps. It starts at the first of them and takes L frames, 1 / fps apart, each the
nearest of its own: no frame is in two windows.

Of `sizes`, those with the aspect ratio nearest to the video's are made, each as a clip of its own:
frames are scaled to cover the size and cropped in the middle.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from videomar_jax.checks import Count, Natural, Positive, UserError, check_fields
from videomar_jax.data.decode import VideoInfo, frames_between, grid, nearest, probe, to_rgb
from videomar_jax.data.sources import ClipShape, nearest_sizes
from videomar_jax.data.transforms import crop_center, resize_cover
from videomar_jax.data.videos import video_files
from videomar_jax.types import UInt8

# Seconds; presentation times that differ by less are equal.
_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """How videos become windows.

    Raises:
        UserError: a value that cannot be, by name.
    """

    fps: Positive
    """Frames per second of the clips."""
    lengths: tuple[Count, ...]
    """Frames that a window may have, greatest first."""
    sizes: tuple[tuple[Count, Count], ...]
    """Pixel (rows, columns) that clips may have."""
    windows_per_clip: Natural = 0
    """Most windows of one video, evenly spread; 0: all that it holds."""

    def __post_init__(self):
        check_fields("", self)
        if not self.lengths or list(self.lengths) != sorted(set(self.lengths), reverse=True):
            raise UserError(
                f"lengths must be different frame counts, greatest first, not {self.lengths}."
            )
        if not self.sizes:
            raise UserError("sizes must name at least one size in pixels.")
        if len(set(self.sizes)) < len(self.sizes):
            raise UserError(f"sizes name one twice: {self.sizes}.")


def parse_cutting(
    lengths: Sequence[str], sizes: Sequence[str], fps: float, windows_per_clip: int
) -> Cutting:
    """A `Cutting` from words: lengths such as "49", sizes such as "480x768" (rows x columns).

    Raises:
        UserError: a word is not understood, or a value cannot be.
    """
    for word in lengths:
        if not re.fullmatch(r"\d+", word.strip()):
            raise UserError(
                f"num_frames {word!r} is not understood: write whole numbers, such as 49 or "
                "49,25,17."
            )
    for word in sizes:
        if not re.fullmatch(r"\d+x\d+", word.strip()):
            raise UserError(
                f"size {word!r} is not understood: write ROWSxCOLUMNS, such as 480x768,768x480."
            )
    counts = {int(word) for word in lengths}
    pairs = []
    for word in sizes:
        rows, columns = word.split("x")
        pairs.append((int(rows), int(columns)))
    return Cutting(
        fps=fps,
        lengths=tuple(sorted(counts, reverse=True)),
        sizes=tuple(pairs),
        windows_per_clip=windows_per_clip,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A stretch of a video that becomes a clip: the frames presented in [start, stop)."""

    video: str
    """The file, relative to the folder."""
    first: float
    """When the video's first frame is presented, in seconds."""
    start: float
    """When the window's first frame is presented, in seconds."""
    stop: float
    """When the next window begins, in seconds."""
    shape: ClipShape
    caption: str


def find_videos(folder: Path) -> dict[str, int]:
    """The bytes of every video file under a folder, by its relative name, in sorted order.

    Raises as `videos.video_files`.
    """
    files = video_files(folder)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def cut_video(folder: Path, video: str, caption: str, cutting: Cutting) -> list[Window]:
    """The windows of one video, by size and in order of time.

    Raises:
        UserError: the video is damaged or too short; the text names it.
    """
    info = probe(folder / video)
    first, last = float(info.times[0]), float(info.times[-1])
    count = len(grid(first, last, cutting.fps))
    length = next((length for length in cutting.lengths if length <= count), None)
    if length is None:
        least = cutting.lengths[-1]
        raise UserError(f"{folder / video}: {count} frames at {cutting.fps:g} fps, {least} needed")
    spans = []
    for number in _evenly_chosen(count // length, cutting.windows_per_clip):
        begin = first + number * length / cutting.fps
        stop = first + (number + 1) * length / cutting.fps
        owned = info.times[(info.times >= begin - _EPSILON) & (info.times <= stop - _EPSILON)]
        # A video of changing frame rate may have a gap as long as a window.
        if len(owned):
            spans.append((float(owned[0]), stop))
    return [
        Window(video=video, first=first, start=start, stop=stop, shape=shape, caption=caption)
        for shape in _shapes(info, length, cutting.sizes)
        for start, stop in spans
    ]


def read_window(folder: Path, window: Window, fps: float) -> UInt8[np.ndarray, "F Hp Wp 3"]:
    """The pixels of a window.

    Raises:
        UserError: its frames do not decode; the text names the file.
    """
    path = folder / window.video
    decoded = frames_between(path, window.first, window.stop - _EPSILON, start=window.start)
    owned = ((time, frame) for time, frame in decoded if time >= window.start - _EPSILON)
    earliest = next(owned, None)
    if earliest is None:
        raise UserError(
            f"{path}: no frame decodes between {window.start:.2f} s and {window.stop:.2f} s"
        )
    times = window.start + np.arange(window.shape.num_frames) / fps
    frames = nearest(chain([earliest], owned), times.tolist())
    # Each frame is cut to size by itself: sources may be much larger than clips.
    return np.concatenate([_cut_to_size(to_rgb(frame), window.shape) for frame in frames])


def _shapes(info: VideoInfo, length: int, sizes: Sequence[tuple[int, int]]) -> list[ClipShape]:
    """The sizes of the aspect ratio that is nearest to the video's."""
    nearest_size = nearest_sizes(np.array([info.height]), np.array([info.width]), sizes)[0]
    rows, columns = sizes[nearest_size]
    same = [(height, width) for height, width in sizes if height * columns == rows * width]
    return [ClipShape(num_frames=length, height=height, width=width) for height, width in same]


def _evenly_chosen(count: int, most: int) -> list[int]:
    """All of the numbers 0 .. count - 1, or `most` that are evenly spread."""
    if not most or count <= most:
        return list(range(count))
    return [int((i + 0.5) * count / most) for i in range(most)]


def _cut_to_size(
    frame: UInt8[np.ndarray, "rows columns 3"], shape: ClipShape
) -> UInt8[np.ndarray, "1 Hp Wp 3"]:
    scaled = resize_cover(frame[None], shape.height, shape.width)
    return crop_center(scaled, shape.height, shape.width)

"""Windows of video files: which stretches of a folder's videos become clips of fixed length and
size, and their pixels.

A video of n frames at `fps` gets the greatest of `lengths` that it holds, L, and n div L windows of
it. Window k owns the frames presented in [t_k, t_k+1), t_k = first + k L / fps; it starts at the
first of them and takes L frames 1 / fps
apart, each the nearest of its own: no frame is in two windows. Of `sizes` those with the aspect
    ratio nearest to the
video's are made, each a clip of its own: frames are scaled to cover the size, and cropped in the
middle.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from videomar_jax.data.decode import VideoInfo, frames_between, grid, nearest, probe, to_rgb
from videomar_jax.data.sources import ClipShape, nearest_sizes
from videomar_jax.data.transforms import crop_center, resize_cover
from videomar_jax.data.videos import EXTENSIONS
from videomar_jax.types import UInt8

_EPSILON = 1e-6
"""Seconds; presentation times that differ by less are one."""


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """How videos become windows.

    lengths: frames of a window, greatest first.   sizes: pixel (rows, columns).
    windows_per_clip: most windows of one video, evenly spread; 0 for all that it holds.
    """

    fps: float
    lengths: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    windows_per_clip: int = 0

    def __post_init__(self):
        if not 0 < self.fps < float("inf"):
            raise ValueError(f"fps must be positive, not {self.fps}")
        if (
            not self.lengths
            or min(self.lengths) < 1
            or list(self.lengths) != sorted(set(self.lengths), reverse=True)
        ):
            raise ValueError(
                f"lengths must be different frame counts of at least 1, greatest first: {self.lengths}"
            )
        if not self.sizes or min(min(size) for size in self.sizes) < 1:
            raise ValueError(
                f"sizes must be pixel rows and columns of at least 1, not {self.sizes}"
            )
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError(f"sizes name one twice: {self.sizes}")
        if self.windows_per_clip < 0:
            raise ValueError(
                f"windows_per_clip must be at least 0 (all), not {self.windows_per_clip}"
            )


def parse_cutting(
    lengths: Sequence[str], sizes: Sequence[str], fps: float, windows_per_clip: int
) -> Cutting:
    """A `Cutting` from words: lengths such as "49", sizes such as "480x768" (rows x columns).
    Raises ValueError."""
    for word in lengths:
        if not re.fullmatch(r"\d+", word.strip()):
            raise ValueError(
                f"num_frames {word!r} is not understood: write whole numbers, such as 49 or 49,25,17"
            )
    for word in sizes:
        if not re.fullmatch(r"\d+x\d+", word.strip()):
            raise ValueError(
                f"size {word!r} is not understood: write ROWSxCOLUMNS, such as 480x768,768x480"
            )
    parsed = [tuple(int(side) for side in word.split("x")) for word in sizes]
    ordered = sorted({int(word) for word in lengths}, reverse=True)
    return Cutting(
        fps=fps, lengths=tuple(ordered), sizes=tuple(parsed), windows_per_clip=windows_per_clip
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """One clip to be: frames of `video` presented in [start, stop), in seconds."""

    video: str
    """The file, relative to the folder."""
    first: float
    """When the video's first frame is presented."""
    start: float
    stop: float
    shape: ClipShape
    caption: str


def find_videos(folder: Path) -> dict[str, int]:
    """Bytes of every video file under a folder by its relative name, in sorted order.

    Raises FileNotFoundError for a missing folder or one without videos, NotADirectoryError for a
    file.
    """
    if not folder.exists():
        raise FileNotFoundError(f"video folder {folder} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: name the folder that holds it")
    files = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file()
    )
    if not files:
        raise FileNotFoundError(f"no videos under {folder}: looked for *{', *'.join(EXTENSIONS)}")
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def cut_video(folder: Path, video: str, caption: str, cutting: Cutting) -> list[Window]:
    """The windows of one video, by size and in order of time. Raises ValueError, naming it, where
    it is damaged or too short."""
    info = probe(folder / video)
    first, last = float(info.times[0]), float(info.times[-1])
    count = len(grid(first, last, cutting.fps))
    length = next((length for length in cutting.lengths if length <= count), None)
    if length is None:
        least = cutting.lengths[-1]
        raise ValueError(f"{folder / video}: {count} frames at {cutting.fps:g} fps, {least} needed")
    spans = []
    for k in _chosen(count // length, cutting.windows_per_clip):
        begin, stop = (first + (k + i) * length / cutting.fps for i in (0, 1))
        own = info.times[(info.times >= begin - _EPSILON) & (info.times <= stop - _EPSILON)]
        spans += [(float(own[0]), stop)] if len(own) else []
    return [
        Window(video=video, first=first, start=start, stop=stop, shape=shape, caption=caption)
        for shape in _shapes(info, length, cutting.sizes)
        for start, stop in spans
    ]


def read_window(folder: Path, window: Window, fps: float) -> UInt8[np.ndarray, "F Hp Wp 3"]:
    """The pixels of a window. Raises ValueError, naming the file, where its frames do not
    decode."""
    path, shape = folder / window.video, window.shape
    decoded = frames_between(path, window.first, window.stop - _EPSILON, start=window.start)
    own = ((time, frame) for time, frame in decoded if time >= window.start - _EPSILON)
    if (earliest := next(own, None)) is None:
        raise ValueError(
            f"{path}: no frame decodes between {window.start:.2f} s and {window.stop:.2f} s"
        )
    times = window.start + np.arange(shape.num_frames) / fps
    frames = nearest(chain([earliest], own), times.tolist())
    return np.concatenate([_fitted(to_rgb(frame), shape) for frame in frames])


def _shapes(info: VideoInfo, length: int, sizes: Sequence[tuple[int, int]]) -> list[ClipShape]:
    """The sizes of the aspect ratio that is nearest to the video's."""
    rows, columns = sizes[nearest_sizes(np.array([info.height]), np.array([info.width]), sizes)[0]]
    same = [(height, width) for height, width in sizes if height * columns == rows * width]
    return [ClipShape(num_frames=length, height=height, width=width) for height, width in same]


def _chosen(count: int, most: int) -> list[int]:
    """Of windows 0 .. count - 1 all, or `most` that are evenly spread."""
    if not most or count <= most:
        return list(range(count))
    return [int((i + 0.5) * count / most) for i in range(most)]


def _fitted(
    frame: UInt8[np.ndarray, "rows columns 3"], shape: ClipShape
) -> UInt8[np.ndarray, "1 Hp Wp 3"]:
    return crop_center(
        resize_cover(frame[None], shape.height, shape.width), shape.height, shape.width
    )

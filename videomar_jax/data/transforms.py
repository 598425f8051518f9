"""Cutting clips to size: scale until the target is covered, then crop.

The aspect ratio is kept and nothing is padded. Nothing is mirrored either, since captions name
directions. Scaling is bicubic, with the support widened by the reduction factor: a reduction
averages over the source pixels and does not alias.
"""

import numpy as np
from PIL import Image

from videomar_jax.checks import UserError
from videomar_jax.types import UInt8


def cover_size(rows: int, columns: int, height: int, width: int) -> tuple[int, int]:
    """The smallest (rows, columns) of the same aspect ratio that holds height x width.

    Both are rounded to whole pixels.

    Raises:
        UserError: a side is below 1.
    """
    if min(rows, columns, height, width) < 1:
        raise UserError(
            f"cannot scale a frame of {rows} x {columns} px to cover {height} x {width} px"
        )
    scale = max(height / rows, width / columns)
    return max(height, round(rows * scale)), max(width, round(columns * scale))


def resize_cover(
    video: UInt8[np.ndarray, "F rows columns 3"], height: int, width: int
) -> UInt8[np.ndarray, "F new_rows new_columns 3"]:
    """Scales every frame to `cover_size`: one side fits exactly, the other is at least as long."""
    rows, columns = cover_size(*video.shape[1:3], height, width)
    if (rows, columns) == video.shape[1:3]:
        return video
    out = np.empty((len(video), rows, columns, 3), np.uint8)
    for frame, target in zip(video, out, strict=True):
        target[:] = Image.fromarray(frame).resize((columns, rows), Image.Resampling.BICUBIC)
    return out


def crop_center(
    video: UInt8[np.ndarray, "F rows columns 3"], height: int, width: int
) -> UInt8[np.ndarray, "F Hp Wp 3"]:
    """The middle height x width of every frame.

    Raises:
        ValueError: the frames are smaller.
    """
    down, right = _slack(video, height, width)
    return _crop(video, down // 2, right // 2, height, width)


def crop_random(
    video: UInt8[np.ndarray, "F rows columns 3"], height: int, width: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "F Hp Wp 3"]:
    """A random height x width of every frame, at the same place in all, each place equally likely.

    Raises:
        ValueError: the frames are smaller.
    """
    down, right = _slack(video, height, width)
    top = int(rng.integers(down + 1))
    left = int(rng.integers(right + 1))
    return _crop(video, top, left, height, width)


def _slack(video: np.ndarray, height: int, width: int) -> tuple[int, int]:
    """(rows, columns) of a frame that a crop leaves out."""
    rows, columns = video.shape[1:3]
    if rows < height or columns < width:
        raise ValueError(
            f"cannot crop {height} x {width} px from frames of {rows} x {columns} px: "
            "resize_cover first"
        )
    return rows - height, columns - width


def _crop(video: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    return np.ascontiguousarray(video[:, top : top + height, left : left + width])

"""Images and clips that a video starts from, out of files, Pillow images and arrays.

Pictures are 8-bit RGB, upright (`io.pictures`). fit="resize" stretches them to the size whatever
the aspect ratio, which is VideoMAR's rule for the conditioning image; fit="crop" keeps the aspect
ratio and cuts off both sides evenly.
"""

import os
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps

from videomar_jax.checks import UserError, at_least, one_of
from videomar_jax.data.decode import read_last
from videomar_jax.io.pictures import converted, errors_named, read_picture
from videomar_jax.types import UInt8

Given: TypeAlias = str | os.PathLike | Image.Image | np.ndarray
"""What a video may start from: an image file, a Pillow image, uint8 [Hp, Wp, 3], or a clip, uint8
[G, Hp, Wp, 3]."""


def load_image(
    path: str | os.PathLike, *, height: int, width: int, fit: str = "resize"
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Reads a picture of a usual raster format, as RGB in 0..255 of the size asked for.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is no image, damaged, of more than 179 million pixels, or holds floats.
    """
    _check_size(height, width, fit)
    picture = read_picture(path)
    return _sized(picture, height, width, fit)


def load_clip(
    path: str | os.PathLike,
    frames: int,
    *,
    fps: float | int,
    height: int | None = None,
    width: int | None = None,
    fit: str = "resize",
) -> UInt8[np.ndarray, "{frames} Hp Wp 3"]:
    """The last `frames` frames of a video file at `fps` frames per second (nearest times).

    Args:
        height, width, fit: the size and how it is reached, as in `load_image`; one frame at a time
            is then held in the size of the file. None: the size of the file.
    Raises:
        FileNotFoundError: there is no such file.
        UserError: it cannot be decoded, or is too short.
    """
    if height is None or width is None:
        return read_last(path, frames, fps=float(fps))
    _check_size(height, width, fit)

    def sized(frame: np.ndarray) -> np.ndarray:
        return _sized(Image.fromarray(frame), height, width, fit)

    return read_last(path, frames, fps=float(fps), change=sized)


def given_frames(
    given: Given, *, height: int, width: int, fit: str = "resize"
) -> UInt8[np.ndarray, "G {height} {width} 3"]:
    """The conditioning frames in anything that `Given` names; G = 1 for an image.

    Raises:
        FileNotFoundError, UserError: as `load_image`; an array of another type or shape.
    """
    _check_size(height, width, fit)
    if isinstance(given, str | os.PathLike):
        return load_image(given, height=height, width=width, fit=fit)[None]
    if isinstance(given, Image.Image):
        with errors_named("the image"):
            picture = converted(given)
        return _sized(picture, height, width, fit)[None]
    array = np.asarray(given)
    shaped = array.ndim in (3, 4) and array.shape[-1] == 3 and array.size > 0
    if array.dtype != np.uint8 or not shaped:
        raise UserError(
            f"An image is uint8 [height, width, 3], a clip uint8 [frames, height, width, 3], both "
            f"RGB in 0..255; got {array.dtype} {array.shape}. PIL.Image.fromarray helps with other "
            f"kinds."
        )
    frames = array if array.ndim == 4 else array[None]
    pictures = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    return np.stack([_sized(picture, height, width, fit) for picture in pictures])


def _check_size(height: int, width: int, fit: str) -> None:
    one_of("fit", fit, ("resize", "crop"))
    at_least("height", height, 1)
    at_least("width", width, 1)


def _sized(picture: Image.Image, height: int, width: int, fit: str) -> np.ndarray:
    """RGB of this size from a picture of mode RGB or L."""
    size = (width, height)
    if picture.size != size and fit == "crop":
        picture = ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
    elif picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return np.array(picture.convert("RGB"))

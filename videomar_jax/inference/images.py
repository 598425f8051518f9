"""Images and clips that a video starts from, out of files, Pillow images and arrays.

upright       as the EXIF tag says
8-bit RGB     transparent parts over white, 16-bit grey scaled to 8 bits, palettes and CMYK
              converted, the first frame of an animation
size          fit="resize" stretches to the size whatever the aspect ratio, which is VideoMAR's rule
              for the conditioning image; fit="crop" keeps the aspect ratio and cuts off both sides
              evenly
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps

from videomar_jax.checks import UserError, at_least, one_of
from videomar_jax.data.decode import read_video
from videomar_jax.types import UInt8

Given: TypeAlias = str | os.PathLike | Image.Image | np.ndarray
"""What a video may start from: an image file, a Pillow image, uint8 [Hp, Wp, 3], or a clip, uint8
[G, Hp, Wp, 3]."""


def load_image(
    path: str | os.PathLike, *, height: int, width: int, fit: str = "resize"
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Reads any picture that Pillow knows, as RGB in 0..255 of the size asked for.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is no image, damaged, or holds floats.
    """
    _check_size(height, width, fit)
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no image file {os.fspath(path)!r}.")
    with _errors_named(os.fspath(path)), Image.open(path) as opened:
        picture = _to_rgb(ImageOps.exif_transpose(opened))
    return _sized(picture, height, width, fit)


def load_clip(
    path: str | os.PathLike, frames: int, *, fps: float | int
) -> UInt8[np.ndarray, "{frames} Hp Wp 3"]:
    """The last `frames` frames of a video file at `fps` frames per second (nearest times).

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it cannot be decoded, or is too short.
    """
    video, _ = read_video(Path(path), fps=float(fps))
    if len(video) < frames:
        raise UserError(
            f"{os.fspath(path)} has {len(video)} frames at {fps:g} fps, fewer than the {frames} "
            f"that are to be given."
        )
    return video[-frames:]


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
        with _errors_named("the image"):
            picture = _to_rgb(ImageOps.exif_transpose(given))
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


@contextmanager
def _errors_named(name: str) -> Iterator[None]:
    """Turns what Pillow raises into a UserError that names the image."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{name!r} cannot be read as an image: {error}") from error


def _sized(picture: Image.Image, height: int, width: int, fit: str) -> np.ndarray:
    if picture.size == (width, height):
        return np.array(picture)
    if fit == "crop":
        return np.array(ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS))
    return np.array(picture.resize((width, height), Image.Resampling.LANCZOS))


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Eight-bit RGB from any Pillow mode, transparent parts over white."""
    if picture.mode == "F":
        raise UserError("its values are floats of unknown range; save it with 8 or 16 bits")
    if picture.mode.startswith("I"):
        grey = np.asarray(picture).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise UserError("its 32-bit values exceed 16 bits; save it with 8 or 16 bits")
        return Image.fromarray((grey / 257).round().astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")

"""Images and clips that a video starts from, out of files, Pillow images and arrays.

upright       as the EXIF tag says
sRGB          converted from the ICC profile that is embedded, if any
8-bit RGB     transparent parts over white, 16-bit grey scaled to 8 bits, palettes and CMYK
              converted, the first frame of an animation
size          fit="resize" stretches to the size whatever the aspect ratio, which is VideoMAR's rule
              for the conditioning image; fit="crop" keeps the aspect ratio and cuts off both sides
              evenly
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageCms, ImageOps

from videomar_jax.checks import UserError, at_least, one_of
from videomar_jax.data.decode import read_last
from videomar_jax.io.files import check_regular
from videomar_jax.io.log import log
from videomar_jax.types import UInt8

Given: TypeAlias = str | os.PathLike | Image.Image | np.ndarray
"""What a video may start from: an image file, a Pillow image, uint8 [Hp, Wp, 3], or a clip, uint8
[G, Hp, Wp, 3]."""

# Raster formats that Pillow reads by itself: others, such as EPS, start programs. Those that are
# told by their first bytes stand first.
_FORMATS = "BMP GIF JPEG MPO PNG PPM AVIF DDS DIB ICO JPEG2000 QOI SGI TIFF WEBP PCX TGA".split()
MOST_PIXELS = 178_956_970
"""Pixels of the largest picture; Pillow itself refuses more, unless a program changed that."""
# Pixels converted at a time, so that a large picture is not held in several modes at once.
_BAND_PIXELS = 2**22
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(
    path: str | os.PathLike, *, height: int, width: int, fit: str = "resize"
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Reads a picture of a usual raster format, as RGB in 0..255 of the size asked for.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is no image, damaged, of more than 179 million pixels, or holds floats.
    """
    _check_size(height, width, fit)
    check_regular(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no image file {os.fspath(path)!r}.")
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    with _errors_named(os.fspath(path)), Image.open(path, formats=formats) as opened:
        picture = _to_rgb(_upright(opened))
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
        with _errors_named("the image"):
            picture = _to_rgb(_upright(given))
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
    # Damaged files fail in many ways, even in a struct or an index.
    except Exception as error:
        raise UserError(f"{name!r} cannot be read as an image: {error}") from error


def _sized(picture: Image.Image, height: int, width: int, fit: str) -> np.ndarray:
    """RGB of this size from a picture of mode RGB or L."""
    size = (width, height)
    if picture.size != size and fit == "crop":
        picture = ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
    elif picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return np.array(picture.convert("RGB"))


def _upright(picture: Image.Image) -> Image.Image:
    """The picture as its EXIF orientation says; the other tags are not looked at.

    Raises:
        UserError: it has too many pixels to be decoded.
    """
    if picture.width * picture.height > MOST_PIXELS:
        raise UserError(f"{picture.width}x{picture.height} pixels are too many; make it smaller")
    picture.load()
    try:
        turn = _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
    except Exception as error:  # Damaged tags fail in many ways, and the pixels are whole.
        log.warning("an image has unreadable EXIF tags (%s): taken as upright", error)
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Eight-bit sRGB or grey (RGB or L) from any Pillow mode, transparent parts over white."""
    if picture.mode == "F":
        raise UserError("its values are floats of unknown range; save it with 8 or 16 bits")
    transform = _srgb_transform(picture)
    rows = max(1, _BAND_PIXELS // picture.width)
    if rows >= picture.height:
        return _band_to_rgb(picture, transform)
    whole = None
    for top in range(0, picture.height, rows):
        box = (0, top, picture.width, min(top + rows, picture.height))
        band = _band_to_rgb(picture.crop(box), transform)
        whole = whole or Image.new(band.mode, picture.size)
        whole.paste(band, box)
    assert whole is not None
    return whole


def _band_to_rgb(picture: Image.Image, transform: ImageCms.ImageCmsTransform | None) -> Image.Image:
    """Some rows of a picture as `_to_rgb` says."""
    if picture.mode.startswith("I"):
        return Image.fromarray(_eight_bits(np.asarray(picture)))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
    if transform is not None:
        picture = ImageCms.applyTransform(picture, transform) or picture
    if picture.mode == "RGBA":
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    # A grey picture becomes RGB when it is small.
    return picture if picture.mode == "L" else picture.convert("RGB")


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    """16-bit grey scaled to 8 bits, some rows at a time."""
    if grey.dtype != np.uint16 and (grey.min() < 0 or grey.max() > 65535):
        raise UserError("its 32-bit values exceed 16 bits; save it with 8 or 16 bits")
    scaled = np.empty(grey.shape, np.uint8)
    for row, target in zip(grey, scaled, strict=True):
        target[:] = (row / 257).round()
    return scaled


def _srgb_transform(picture: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """From the profile of a picture to sRGB; None where nothing has to be converted."""
    profile = picture.info.get("icc_profile")
    mode = "RGBA" if picture.has_transparency_data else picture.mode
    if not profile or mode not in ("L", "RGB", "RGBA", "CMYK"):
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return None
        srgb = ImageCms.createProfile("sRGB")
        converted = "RGBA" if mode == "RGBA" else "RGB"
        return ImageCms.buildTransform(source, srgb, mode, converted)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        log.warning("an image has an unusable colour profile (%s): taken as sRGB", error)
        return None

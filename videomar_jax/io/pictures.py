"""Picture files and Pillow images as 8-bit pictures, whatever they are stored as.

upright       as the EXIF tag says
sRGB          converted from the ICC profile that is embedded, if any
8-bit RGB     transparent parts over white, 16-bit grey scaled to 8 bits, palettes and CMYK
              converted, the first frame of an animation
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from videomar_jax.checks import UserError
from videomar_jax.io.files import check_regular
from videomar_jax.io.log import log

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
# Orientations that swap rows and columns.
_LYING = (5, 6, 7, 8)


def read_picture(path: str | os.PathLike) -> Image.Image:
    """A picture of a usual raster format, of mode RGB, or L if it is grey.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is no image, damaged, of more than 179 million pixels, or holds floats.
    """
    with _opened(path) as opened:
        return converted(opened)


def picture_size(path: str | os.PathLike) -> tuple[int, int]:
    """(rows, columns) of an upright picture, of which only the head is read.

    Raises as `read_picture`, as far as the head tells.
    """
    with _opened(path) as opened:
        _check_pixels(opened)
        columns, rows = opened.size
        return (columns, rows) if _orientation(opened) in _LYING else (rows, columns)


@contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Image.Image]:
    check_regular(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no image file {os.fspath(path)!r}.")
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    with errors_named(os.fspath(path)), Image.open(path, formats=formats) as opened:
        yield opened


def converted(picture: Image.Image) -> Image.Image:
    """Any Pillow image upright, of mode RGB, or L if it is grey.

    Raises:
        UserError: it has too many pixels, or holds floats.
    """
    return _to_rgb(_upright(picture))


@contextmanager
def errors_named(name: str) -> Iterator[None]:
    """Turns what Pillow raises into a UserError that names the image."""
    try:
        yield
    # Damaged files fail in many ways, even in a struct or an index.
    except Exception as error:
        raise UserError(f"{name!r} cannot be read as an image: {error}") from error


def _upright(picture: Image.Image) -> Image.Image:
    """The picture as its EXIF orientation says; the other tags are not looked at.

    Raises:
        UserError: it has too many pixels to be decoded.
    """
    _check_pixels(picture)
    picture.load()
    turn = _TURNS.get(_orientation(picture))
    return picture if turn is None else picture.transpose(turn)


def _check_pixels(picture: Image.Image) -> None:
    if picture.width * picture.height > MOST_PIXELS:
        raise UserError(f"{picture.width}x{picture.height} pixels are too many; make it smaller")


def _orientation(picture: Image.Image) -> int:
    """As in EXIF, 1 to 8; 1 is upright."""
    try:
        return picture.getexif().get(_ORIENTATION, 1)
    except Exception as error:  # Damaged tags fail in many ways, and the pixels are whole.
        log.warning("an image has unreadable EXIF tags (%s): taken as upright", error)
        return 1


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

"""Videos and pictures as files: MP4, WebM, GIF, PNG, contact sheets and raw arrays.

Arrays are uint8 RGB, channels last. Every writer creates the folders above its file and writes the
file in one move (`io.files`), so an interrupted write leaves nothing that looks finished. Common
errors of all writers:

    UserError          an array of another type or shape, a wrong rate or scale, or a path that is
                       a bucket address
    FileExistsError    the file exists, and `overwrite` is False
"""

import contextlib
import itertools
import math
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from videomar_jax.checks import UserError
from videomar_jax.io.files import replacing
from videomar_jax.io.paths import user_path
from videomar_jax.types import UInt8


class _Codec(NamedTuple):
    """How a video is encoded and put into a file."""

    container: str
    codec: str
    codec_options: dict[str, str]
    container_options: dict[str, str]


# Constant rate factors that are close to visually lossless.
_MP4 = _Codec(
    container="mp4",
    codec="libx264",
    # With x264's macroblock tree, files of the same frames differed from call to call (31 of 80 at
    # 264x264, single-threaded too); without it none of 890 did.
    codec_options={"crf": "12", "preset": "medium", "mbtree": "0"},
    # The index stands first, so that a browser can play before all has arrived.
    container_options={"movflags": "+faststart"},
)
_WEBM = _Codec(
    container="webm",
    codec="libvpx-vp9",
    codec_options={"crf": "18", "b:v": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"},
    container_options={},
)
# Written into the stream: without it players guess the colour space by the size of the frames.
_BT709 = 1

# A contact sheet is a light page, since clips are often dark at the border.
_PAGE = (246, 246, 244)
_INK = (40, 40, 44)
_MARGIN = 16
_GAP = 3
_FONT_SIZE = 15
_MIN_SHEET = 320


def write_mp4(
    path: str | os.PathLike,
    video: UInt8[np.ndarray, "F Hp Wp 3"],
    fps: float | int | Fraction,
    *,
    min_side: int = 1,
    overwrite: bool = False,
) -> None:
    """Writes H.264 in yuv420p, which plays everywhere, at high quality.

    Args:
        fps: frames per second.
        min_side: frames with a shorter side below this are enlarged by the smallest whole factor
            that reaches it, by pixel repetition: players blur tiny videos, and 4:2:0 halves their
            colour resolution.
        overwrite: replace a file that exists.

    The format requires even sides: odd ones get one repeated row or column.
    """
    _write_yuv420(path, video, fps, min_side, overwrite, _MP4)


def mp4_size(height: int, width: int, min_side: int = 1) -> tuple[int, int]:
    """Rows and columns of the file that `write_mp4` makes of frames of this size."""
    scale = _whole_scale(height, width, min_side)
    height, width = scale * height, scale * width
    return height + height % 2, width + width % 2


def write_webm(
    path: str | os.PathLike,
    video: UInt8[np.ndarray, "F Hp Wp 3"],
    fps: float | int | Fraction,
    *,
    min_side: int = 1,
    overwrite: bool = False,
) -> None:
    """Writes VP9, which browsers play without a licence.

    Arguments and sizes are those of `write_mp4`. Times are rounded to milliseconds.
    """
    _write_yuv420(path, video, fps, min_side, overwrite, _WEBM)


def _write_yuv420(
    path: str | os.PathLike,
    video: np.ndarray,
    fps: float | int | Fraction,
    min_side: int,
    overwrite: bool,
    form: _Codec,
) -> None:
    _check_video(video)
    rate = _frame_rate(fps)
    video = _enlarge(video, _whole_scale(*video.shape[1:3], min_side))
    height, width = video.shape[1:3]
    video = np.pad(video, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with (
        _new_file(path, overwrite) as part,
        av.open(str(part), "w", format=form.container, options=form.container_options) as container,
    ):
        stream: Any = container.add_stream(form.codec, rate=rate, options=form.codec_options)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        for index, pixels in enumerate(video):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            frame.pts = index
            frame.time_base = 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _whole_scale(height: int, width: int, min_side: int) -> int:
    """The smallest whole factor by which the shorter side reaches `min_side`."""
    return max(1, math.ceil(min_side / min(height, width)))


def write_gif(
    path: str | os.PathLike,
    video: UInt8[np.ndarray, "F Hp Wp 3"],
    fps: float | int | Fraction,
    *,
    scale: int = 1,
    overwrite: bool = False,
) -> None:
    """Writes an endless GIF, enlarged `scale` times by pixel repetition.

    Up to 256 colours in the whole video are kept exactly; more become one palette for all frames,
    with dithering. GIF counts time in hundredths of a second: durations are rounded so that their
    sum stays right (24 fps: 4, 4, 4, 5). Rates over 50 fps play at 50, the fastest that browsers
    honour. Equal frames in a row are stored as one long frame.
    """
    _check_video(video)
    rate = min(_frame_rate(fps), Fraction(50))
    if scale < 1:
        raise UserError(f"scale must be a whole number of at least 1, got {scale}.")
    hundredths = [round(100 * index / rate) for index in range(len(video) + 1)]
    # Pillow takes milliseconds.
    durations = [10 * (end - start) for start, end in itertools.pairwise(hundredths)]
    frames = [_enlarge_picture(frame, scale) for frame in _palette_images(video)]
    with _new_file(path, overwrite) as part:
        frames[0].save(
            part,
            format="GIF",
            save_all=True,
            append_images=frames[1:],
            duration=durations,
            loop=0,
            optimize=False,
        )


def write_png(
    path: str | os.PathLike, image: UInt8[np.ndarray, "Hp Wp 3"], *, overwrite: bool = False
) -> None:
    """Writes one picture without loss."""
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise UserError(f"An image must be uint8 [Hp, Wp, 3], got {image.dtype} {image.shape}.")
    with _new_file(path, overwrite) as part:
        Image.fromarray(image).save(part, format="PNG")


def write_arrays(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], *, overwrite: bool = False
) -> None:
    """Writes named arrays as a compressed NumPy archive (.npz)."""
    # NumPy appends ".npz" to names, but not to open files.
    with _new_file(path, overwrite) as part, open(part, "wb") as file:
        np.savez_compressed(file, **arrays)


def contact_sheet(
    videos: Sequence[tuple[str, UInt8[np.ndarray, "_ _ _ 3"]]],
    *,
    columns: int | None = None,
    scale: float | int | None = None,
) -> UInt8[np.ndarray, "Hs Ws 3"]:
    """One picture of several videos: a labelled row for each, its frames from left to right.

    Args:
        videos: (label, video [F, Hp, Wp, 3]) of each row; rows may differ in length and size.
        columns: show this many evenly spaced frames, the first and the last among them; None: all.
        scale: a whole number, or a number below 1 to shrink. None: the shorter side of the
            smallest frame becomes 64 pixels or a little more, and at most 256.
    """
    if not videos:
        raise UserError("A contact sheet needs at least one (label, video).")
    for label, video in videos:
        _check_video(video, f"the video of row {label!r}")
    if columns is not None and columns < 1:
        raise UserError(f"columns must be at least 1, got {columns}.")
    scale = _default_scale(videos) if scale is None else scale
    if scale <= 0 or (scale > 1 and scale != int(scale)):
        raise UserError(f"scale must be a whole number, or between 0 and 1, got {scale}.")
    strips = [_strip(_spaced(video, columns), scale) for _, video in videos]
    return _compose([label for label, _ in videos], strips)


@contextlib.contextmanager
def _new_file(path: str | os.PathLike, overwrite: bool) -> Iterator[Path]:
    """Creates the folders above `path`, and gives the name under which its content is written."""
    path = user_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, overwrite=overwrite) as part:
        yield part


def _check_video(video: np.ndarray, name: str = "a video") -> None:
    if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != np.uint8 or 0 in video.shape:
        raise UserError(
            f"{name} must be uint8 [F, Hp, Wp, 3] with F at least 1, "
            f"got {video.dtype} {video.shape}."
        )


def _frame_rate(fps: float | int | Fraction) -> Fraction:
    if not math.isfinite(fps) or fps <= 0:
        raise UserError(f"fps must be positive and finite, got {fps}.")
    return Fraction(fps).limit_denominator(100_000)


def _enlarge(video: np.ndarray, factor: int) -> np.ndarray:
    return video.repeat(factor, axis=1).repeat(factor, axis=2)


def _enlarge_picture(picture: Image.Image, factor: int) -> Image.Image:
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.NEAREST)


def _palette_images(video: np.ndarray) -> list[Image.Image]:
    """The frames as images of one shared palette, exact if 256 colours are enough."""
    red, green, blue = np.moveaxis(video.astype(np.uint32), -1, 0)
    packed = red << 16 | green << 8 | blue
    # One entry for each of the 2^24 colours: first whether it occurs, then its palette index.
    table = np.zeros(1 << 24, np.uint8)
    table[packed] = 1
    colours = np.flatnonzero(table)
    if colours.size > 256:
        return _quantized(video)
    table[colours] = np.arange(colours.size)
    channels = [colours >> 16, colours >> 8 & 255, colours & 255]
    palette = np.stack(channels, axis=-1).astype(np.uint8).tobytes()
    frames = [Image.fromarray(frame) for frame in table[packed]]
    for frame in frames:
        frame.putpalette(palette)
    return frames


def _quantized(video: np.ndarray) -> list[Image.Image]:
    """The frames with the 256 colours that a median cut finds in a sample of their pixels."""
    pixels = video.reshape(1, -1, 3)
    # At most about 50 000 pixels, for k-means is slow.
    sample = np.ascontiguousarray(pixels[:, :: 1 + pixels.shape[1] // 50_021])
    palette = Image.fromarray(sample).quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=1)
    dither = Image.Dither.FLOYDSTEINBERG
    return [Image.fromarray(frame).quantize(palette=palette, dither=dither) for frame in video]


def _default_scale(videos: Sequence[tuple[str, np.ndarray]]) -> float | int:
    side = min(min(video.shape[1:3]) for _, video in videos)
    return math.ceil(64 / side) if side < 64 else min(1.0, 256 / side)


def _spaced(video: np.ndarray, columns: int | None) -> np.ndarray:
    if columns is None or columns >= len(video):
        return video
    return video[np.linspace(0, len(video) - 1, columns).round().astype(int)]


def _strip(video: np.ndarray, scale: float | int) -> np.ndarray:
    """The scaled frames beside each other [rows, columns, 3], with gaps in the page's colour."""
    if scale >= 1:
        video = _enlarge(video, int(scale))
    else:
        video = _shrink(video, scale)
    framed = np.full((*video.shape[:2], video.shape[2] + _GAP, 3), _PAGE, np.uint8)
    framed[:, :, :-_GAP] = video
    return np.concatenate(list(framed), axis=1)[:, :-_GAP]


def _shrink(video: np.ndarray, scale: float | int) -> np.ndarray:
    height, width = video.shape[1:3]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pictures = [Image.fromarray(frame) for frame in video]
    return np.stack([np.array(p.resize(size, Image.Resampling.LANCZOS)) for p in pictures])


def _compose(labels: Sequence[str], strips: Sequence[np.ndarray]) -> np.ndarray:
    """The page: each strip below its label, which is wrapped to the width of the page."""
    font = ImageFont.load_default(_FONT_SIZE)
    inner = max(_MIN_SHEET, *(strip.shape[1] for strip in strips))
    letters = int(inner / font.getlength("n"))
    texts = ["\n".join(textwrap.wrap(label, letters)) for label in labels]
    line = _FONT_SIZE + 5
    heights = [line * len(text.splitlines()) for text in texts]
    rows = sum(heights) + sum(strip.shape[0] + _MARGIN for strip in strips) + _MARGIN
    sheet = Image.new("RGB", (inner + 2 * _MARGIN, rows), _PAGE)
    draw = ImageDraw.Draw(sheet)
    y = _MARGIN
    for text, height, strip in zip(texts, heights, strips, strict=True):
        draw.multiline_text((_MARGIN, y), text, fill=_INK, font=font, spacing=line - _FONT_SIZE)
        sheet.paste(Image.fromarray(strip), (_MARGIN, y + height))
        y += height + strip.shape[0] + _MARGIN
    return np.array(sheet)

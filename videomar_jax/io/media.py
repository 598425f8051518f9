"""Videos and pictures as files: MP4, WebM, GIF, PNG, contact sheets and raw arrays.

Arrays are uint8 RGB, channels last. Every writer creates the folders above its file, writes under a
temporary name beside it and renames at the end, so an interrupted write leaves nothing that looks
finished. An existing file is kept (FileExistsError) unless `overwrite=True`. Paths are local: a
bucket address is refused.
"""

import contextlib
import itertools
import math
import os
import textwrap
import uuid
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from videomar_jax.types import UInt8

# H.264: quality near visually lossless; BT.709 colour, written into the stream so that players do
# not guess.
_H264 = {"crf": "12", "preset": "medium"}
_VP9 = {"crf": "18", "b:v": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}
_BT709 = 1
_FASTSTART = {"movflags": "+faststart"}
# The sheet's look: a light page, since the clips are often dark at the border.
_PAGE, _INK, _MARGIN, _GAP, _FONT_SIZE = (246, 246, 244), (40, 40, 44), 16, 3, 15
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

    Frames whose short side is under `min_side` are enlarged by the smallest whole factor that
    reaches it, by pixel
    repetition: players blur tiny videos, and 4:2:0 halves their colour resolution. Odd sides gain
        one repeated row
    or column, since the format wants even ones.
    """
    _write_yuv420(path, video, fps, min_side, overwrite, "mp4", "libx264", _H264, _FASTSTART)


def write_webm(
    path: str | os.PathLike,
    video: UInt8[np.ndarray, "F Hp Wp 3"],
    fps: float | int | Fraction,
    *,
    min_side: int = 1,
    overwrite: bool = False,
) -> None:
    """Writes VP9, which browsers play without a licence; sizes as `write_mp4`. Times are rounded to
    milliseconds."""
    _write_yuv420(path, video, fps, min_side, overwrite, "webm", "libvpx-vp9", _VP9, {})


def _write_yuv420(
    path, video, fps, min_side, overwrite, kind, codec, codec_options, container_options
):
    _check_video(video)
    rate = _frame_rate(fps)
    video = _enlarge(video, max(1, math.ceil(min_side / min(video.shape[1:3]))))
    height, width = video.shape[1:3]
    video = np.pad(video, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with (
        finished_file(path, overwrite) as partial,
        av.open(partial, "w", format=kind, options=container_options) as container,
    ):
        stream = container.add_stream(codec, rate=rate, options=codec_options)
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        for index, pixels in enumerate(video):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


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
    dithered.
    GIF counts time in hundredths of a second: durations are rounded so that the sum stays right (24
        fps: 4, 4, 4, 5).
    Rates over 50 fps play at 50, the fastest that browsers honour. Equal frames in a row are stored
    as one long frame.
    """
    _check_video(video)
    rate = min(_frame_rate(fps), Fraction(50))
    ticks = [round(100 * index / rate) for index in range(len(video) + 1)]
    durations = [10 * (end - start) for start, end in itertools.pairwise(ticks)]
    if scale < 1:
        raise ValueError(f"scale must be a whole number of at least 1, got {scale}.")
    with finished_file(path, overwrite) as partial:
        frames = [_repeat(frame, scale) for frame in _palette_images(video)]
        frames[0].save(
            partial,
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
        raise ValueError(f"An image must be uint8 [Hp, Wp, 3], got {image.dtype} {image.shape}.")
    with finished_file(path, overwrite) as partial:
        Image.fromarray(image).save(partial, format="PNG")


def write_arrays(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], *, overwrite: bool = False
) -> None:
    """Writes named arrays as a NumPy archive (.npz)."""
    with finished_file(path, overwrite) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)


def write_text(path: str | os.PathLike, text: str, *, overwrite: bool = False) -> None:
    """Writes a text in UTF-8."""
    with finished_file(path, overwrite) as partial:
        Path(partial).write_text(text, encoding="utf-8")


def contact_sheet(
    videos: Sequence[tuple[str, UInt8[np.ndarray, "_ _ _ 3"]]],
    *,
    columns: int | None = None,
    scale: float | int | None = None,
) -> UInt8[np.ndarray, "Hs Ws 3"]:
    """One picture of several videos: a labelled row for each, its frames from left to right.

    Each video is [F, Hp, Wp, 3]; rows may differ in length and size. `columns` shows that many
    evenly spaced frames, first and last among them, in place of all. `scale` is a whole number, or
    under 1 to shrink; by default the short side of the smallest frame comes out at 64 pixels or a
    little more, and at no more than 256.
    """
    if not videos:
        raise ValueError("A contact sheet needs at least one (label, video).")
    for label, video in videos:
        _check_video(video, f"the video of row {label!r}")
    if columns is not None and columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}.")
    scale = _default_scale(videos) if scale is None else scale
    if scale <= 0 or (scale > 1 and scale != int(scale)):
        raise ValueError(f"scale must be a whole number, or between 0 and 1, got {scale}.")
    strips = [_strip(_spaced(video, columns), scale) for _, video in videos]
    return _compose([label for label, _ in videos], strips)


@contextlib.contextmanager
def finished_file(path: str | os.PathLike, overwrite: bool) -> Iterator[str]:
    """Gives a temporary name beside `path`; renames it to `path` on success and removes it on
    failure."""
    if "://" in os.fspath(path):
        raise ValueError(
            f"{path} is not a local path: write to a local folder and copy the file from there."
        )
    path = Path(path)
    if path.is_dir() or (path.exists() and not overwrite):
        raise FileExistsError(
            f"{path} exists already: choose another name, or pass overwrite=True for a file."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield str(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _check_video(video: np.ndarray, name: str = "a video") -> None:
    if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != np.uint8 or 0 in video.shape:
        raise ValueError(
            f"{name} must be uint8 [F, Hp, Wp, 3] with F at least 1, got {video.dtype} {video.shape}."
        )


def _frame_rate(fps: float | int | Fraction) -> Fraction:
    if not math.isfinite(fps) or fps <= 0:
        raise ValueError(f"fps must be positive and finite, got {fps}.")
    return Fraction(fps).limit_denominator(100_000)


def _enlarge(video, factor):
    return video.repeat(factor, axis=1).repeat(factor, axis=2)


def _repeat(picture: Image.Image, scale: int) -> Image.Image:
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _palette_images(video) -> list[Image.Image]:
    """The frames as palette images that share one palette: exact if 256 colours are enough, else by
    median cut."""
    red, green, blue = np.moveaxis(video.astype(np.uint32), -1, 0)
    packed = red << 16 | green << 8 | blue
    table = np.zeros(1 << 24, np.uint8)
    table[packed] = 1
    colours = np.flatnonzero(table)
    if colours.size <= 256:
        table[colours] = np.arange(colours.size)
        palette = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=-1).astype(
            np.uint8
        )
        frames = [Image.fromarray(frame) for frame in table[packed]]
        for frame in frames:
            frame.putpalette(palette.tobytes())
        return frames
    pixels = video.reshape(1, -1, 3)
    sample = Image.fromarray(
        np.ascontiguousarray(pixels[:, :: 1 + pixels.shape[1] // 50_021])
    )  # k-means is slow
    palette = sample.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=1)
    return [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
        for frame in video
    ]


def _default_scale(videos):
    side = min(min(video.shape[1:3]) for _, video in videos)
    return math.ceil(64 / side) if side < 64 else min(1.0, 256 / side)


def _spaced(video, columns):
    if columns is None or columns >= len(video):
        return video
    return video[np.linspace(0, len(video) - 1, columns).round().astype(int)]


def _strip(video, scale):
    """The scaled frames beside each other [rows, columns, 3], with gaps in the page's colour."""
    if scale >= 1:
        video = _enlarge(video, int(scale))
    else:
        size = [max(1, round(side * scale)) for side in video.shape[2:0:-1]]
        video = np.stack(
            [np.array(Image.fromarray(f).resize(size, Image.Resampling.LANCZOS)) for f in video]
        )
    framed = np.full((*video.shape[:2], video.shape[2] + _GAP, 3), _PAGE, np.uint8)
    framed[:, :, :-_GAP] = video
    return np.concatenate(list(framed), axis=1)[:, :-_GAP]


def _compose(labels, strips):
    font = ImageFont.load_default(_FONT_SIZE)
    inner = max(_MIN_SHEET, *(strip.shape[1] for strip in strips))
    letters = int(inner / font.getlength("n"))
    texts = ["\n".join(textwrap.wrap(label, letters)) for label in labels]
    line = _FONT_SIZE + 5
    heights = [line * len(text.splitlines()) for text in texts]
    total = _MARGIN + sum(
        h + strip.shape[0] + _MARGIN for h, strip in zip(heights, strips, strict=True)
    )
    sheet = Image.new("RGB", (inner + 2 * _MARGIN, total), _PAGE)
    draw, y = ImageDraw.Draw(sheet), _MARGIN
    for text, height, strip in zip(texts, heights, strips, strict=True):
        draw.multiline_text((_MARGIN, y), text, fill=_INK, font=font, spacing=line - _FONT_SIZE)
        sheet.paste(Image.fromarray(strip), (_MARGIN, y + height))
        y += height + strip.shape[0] + _MARGIN
    return np.array(sheet)

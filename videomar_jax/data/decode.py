"""Frames and their times out of video files, with PyAV.

Every frame has a presentation time in seconds. Resampling takes, for each wanted time, the frame
presented nearest to it (the earlier of two at equal distance), so constant, variable and unknown
frame rates are one case. AVI files carry no presentation times: there, the i-th frame shown is at
the place of the i-th chunk that holds data, so dropped frames (empty chunks) count as time.

Pictures are as a person sees them: rotated and mirrored as the display matrix says, with square
pixels. A cover picture is not taken for the video.

Decoding is strict: damage that the decoder notices is an error that names the file, never a
repeated or grey frame.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import av
import numpy as np
from av.stream import Disposition
from PIL import Image

from videomar_jax.checks import UserError
from videomar_jax.io.files import check_regular
from videomar_jax.io.log import log
from videomar_jax.io.paths import user_path
from videomar_jax.types import Float, UInt8

Item = TypeVar("Item")


class Picture(NamedTuple):
    """A decoded frame that is not converted to RGB yet."""

    frame: av.VideoFrame
    aspect: Fraction
    """Width of a pixel, in its heights."""


TimedFrame = tuple[float, Picture]
"""The presentation time in seconds, and the frame."""

# Seconds into a file from where on seeking is faster than decoding from the start.
_SEEK_AFTER = 1.0
# Seconds by which two equal times may differ after rounding.
_EPSILON = 1e-6
# Pixels wider or higher than this are a wrong header.
_MOST_ASPECT = 4
# Values of H.273: transfer characteristics of HDR, and "unspecified" as a colour matrix.
_HDR = {16: "PQ", 18: "HLG"}
_UNSPECIFIED = 2
_HD_ROWS = 720


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a file holds."""

    times: Float[np.ndarray, "F"]
    """Presentation times in seconds, ascending."""
    fps: float
    """Average frames per second."""
    height: int
    """Rows of a frame as shown, after its rotation."""
    width: int
    """Columns of a frame as shown, after its rotation."""
    notes: tuple[str, ...] = ()
    """What may make the colours look other than meant, for the log."""


def probe(path: Path) -> VideoInfo:
    """The times, rate and size of a file; it reads all packets but decodes the first frame only.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file cannot be used; the text says why.
    """
    with _open(path) as (container, stream):
        stamps: list[int | None] = []
        first = None
        for packet in container.demux(stream):
            if first is None:
                first = next(iter(packet.decode()), None)
            if packet.size and not packet.is_discard:
                stamps.append(_stamp(container, packet))
        if first is None or not stamps:
            raise UserError(f"{path}: holds no frames")
        if None in stamps:
            raise UserError(f"{path}: has frames without presentation times; remux or re-encode it")
        times = np.array([_seconds(container, stream, stamp) for stamp in sorted(stamps)])
        rate = float(stream.average_rate or 0)
        has_gaps = stamps[-1] - stamps[0] != len(stamps) - 1
        if not rate or (_is_avi(container) and has_gaps):
            duration = times[-1] - times[0]
            rate = (len(times) - 1) / duration if duration > 0 else 1.0
        height, width = to_rgb(Picture(first, _aspect(stream))).shape[:2]
        notes = tuple(_notes(first))
    return VideoInfo(times=times, fps=rate, height=height, width=width, notes=notes)


def check_decodes(path: Path) -> None:
    """Decodes a whole file.

    Raises:
        FileNotFoundError, UserError: as `probe`; also any damage that the decoder notices.
    """
    with _open(path) as (container, stream):
        for _ in _frames(path, container, stream):
            pass


def frames_between(path: Path, first: float, last: float, *, start: float) -> Iterator[TimedFrame]:
    """Yields the frames of first <= time <= last in order; some before `start` may be left out.

    The last frame presented at or before `start` is always among them, so the nearest frame to any
    time from `start` on is known. All times are in seconds.

    Raises:
        UserError: a packet is damaged, or no frame is in the interval; the text names the file.
    """
    with _open(path) as (container, stream):
        frames = _frames(path, container, stream)
        if start > first + _SEEK_AFTER and not _is_avi(container):
            container.seek(int(start / stream.time_base), stream=stream, backward=True)
            time, frame = next(frames, (None, None))
            if time is not None and time <= start:
                frames = chain([(time, frame)], frames)
            else:
                # The file's index is wrong: decode from the beginning.
                container.seek(0)
                frames = _frames(path, container, stream)
        yield from _between(path, frames, first, last)


def _between(
    path: Path, frames: Iterable[TimedFrame], first: float, last: float
) -> Iterator[TimedFrame]:
    none_yet = True
    for time, frame in frames:
        if time > last:
            break
        if time >= first:
            none_yet = False
            yield time, frame
    if none_yet:
        raise UserError(
            f"{path}: no frame decodes between {first:.2f} s and {last:.2f} s; "
            "re-encode or remove it"
        )


def nearest(timed: Iterable[tuple[float, Item]], times: Sequence[float]) -> list[Item]:
    """For each of the ascending times the item nearest to it; of two equally near, the earlier.

    Reading stops when all are decided. `timed` must be ascending and hold at least one item.
    """
    return list(each_nearest(timed, times))


def each_nearest(timed: Iterable[tuple[float, Item]], times: Sequence[float]) -> Iterator[Item]:
    """Yields the items of `nearest` as soon as they are decided, holding no others."""
    number = 0
    previous = None
    for time, item in timed:
        if previous is not None:
            middle = (previous[0] + time) / 2
            while number < len(times) and times[number] <= middle:
                yield previous[1]
                number += 1
        if number == len(times):
            return
        previous = time, item
    # What is left is after the middle between the last two items.
    for _ in times[number:]:
        yield previous[1]


def grid(first: float, last: float, fps: float) -> Float[np.ndarray, "F"]:
    """The times first, first + 1/fps, ... up to `last`, in seconds."""
    steps = int((last - first) * fps + _EPSILON)
    return first + np.arange(steps + 1) / fps


def to_rgb(picture: Picture) -> UInt8[np.ndarray, "rows columns 3"]:
    """The picture as it is meant to be shown.

    Phone videos carry their rotation, and a front camera its mirroring, beside the pixels. Where
    pixels are not square, the shorter of their sides is stretched, so nothing is lost.
    """
    frame, aspect = picture
    pixels = frame.to_ndarray(format="rgb24")
    if aspect != 1:
        width = max(frame.width, round(frame.width * aspect))
        height = max(frame.height, round(frame.height / aspect))
        size = (width, height)
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    return np.ascontiguousarray(_oriented(pixels, frame))


def _oriented(pixels: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """The pixels turned and mirrored as the frame's display matrix says."""
    # A pixel in column x and row y is shown in column a x + c y and row b x + d y.
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(np.int64)
    if abs(a) + abs(d) >= abs(b) + abs(c):
        across, down = a, d
    else:
        pixels = pixels.transpose(1, 0, 2)
        across, down = c, b
    if across < 0:
        pixels = pixels[:, ::-1]
    if down < 0:
        pixels = pixels[::-1]
    return pixels


def read_last(
    path: str | Path,
    frames: int,
    *,
    fps: float,
    change: Callable[[np.ndarray], np.ndarray] | None = None,
) -> UInt8[np.ndarray, "{frames} Hp Wp 3"]:
    """The last frames of a video file at `fps` (nearest times).

    Only these are kept in memory, however long the file is.

    Args:
        change: applied to each frame, such as to make it smaller before the next one is decoded.
    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file does not decode or is too short, or fps is not positive.
    """
    path = user_path(path)
    if not fps > 0:
        raise UserError(f"fps must be positive, got {fps}.")
    info = probe(path)
    _report(path, info)
    first, last = float(info.times[0]), float(info.times[-1])
    times = grid(first, last, fps)
    if len(times) < frames:
        raise UserError(
            f"{path} has {len(times)} frames at {fps:g} fps, fewer than the {frames} that are to "
            "be given."
        )
    wanted = times[-frames:].tolist()
    timed = frames_between(path, first, last, start=wanted[0])
    pictures = (to_rgb(picture) for picture in each_nearest(timed, wanted))
    return _stacked(pictures if change is None else map(change, pictures), frames)


def read_video(
    path: str | Path, *, fps: float | None = None, max_frames: int | None = None
) -> tuple[UInt8[np.ndarray, "F Hp Wp 3"], float]:
    """The frames of a video file and their rate.

    Args:
        fps: resample to this rate by nearest presentation time; None keeps the file's own frames
            and returns its average rate.
        max_frames: read no more than this many, from the beginning.
    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file does not decode, or an argument is out of range.
    """
    path = user_path(path)
    if fps is not None and not fps > 0:
        raise UserError(f"fps must be positive, got {fps}.")
    if max_frames is not None and max_frames < 1:
        raise UserError(f"max_frames must be at least 1, got {max_frames}.")
    info = probe(path)
    _report(path, info)
    first, last = float(info.times[0]), float(info.times[-1])
    timed = frames_between(path, first, last, start=first)
    if fps is None:
        pictures = (to_rgb(picture) for _, picture in islice(timed, max_frames))
        return _stacked(pictures, len(info.times[:max_frames])), info.fps
    times = grid(first, last, fps)[:max_frames].tolist()
    pictures = (to_rgb(picture) for picture in each_nearest(timed, times))
    return _stacked(pictures, len(times)), float(fps)


def _stacked(frames: Iterator[np.ndarray], expected: int) -> np.ndarray:
    """Frames in one array that is filled as they come, so they are never held twice."""
    first = next(frames)
    array = np.empty((expected, *first.shape), first.dtype)
    array[0] = first
    count = 1
    for frame in islice(frames, expected - 1):
        array[count] = frame
        count += 1
    more = list(frames)
    return np.concatenate([array, more]) if more else array[:count]


@contextmanager
def _open(path: Path):
    """The container and its video stream, with the decoder's errors as UserErrors."""
    check_regular(path)
    if not path.is_file():
        raise FileNotFoundError(f"video {path} does not exist")
    if not path.stat().st_size:
        raise UserError(f"{path}: the file is empty")
    try:
        number = _stream_number(path)
        with av.open(str(path)) as container:
            stream: Any = container.streams[number]
            # Many files are read side by side already.
            stream.codec_context.thread_count = 1
            yield container, stream
    except UserError:
        raise
    # PyAV fails in ways of its own over odd files.
    except (
        av.FFmpegError,
        OSError,
        AttributeError,
        ArithmeticError,
        LookupError,
        ValueError,
    ) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be decoded ({reason}); re-encode or remove it") from error


def _stream_number(path: Path) -> int:
    """The first video stream of more than one frame, or else the first of all.

    Cover pictures and previews are streams of one frame.
    """
    with av.open(str(path)) as container:
        streams = [stream for stream in container.streams.video if stream.codec_context]
        if not container.streams.video:
            raise UserError(f"{path}: holds no video stream")
        if not streams:
            raise UserError(
                f"{path}: its codec is unknown to FFmpeg; re-encode it with the program that made "
                "it, or remove it"
            )
        moving = [s for s in streams if not s.disposition & Disposition.attached_pic] or streams
        if len(moving) == 1:
            return moving[0].index
        packets = dict.fromkeys((stream.index for stream in moving), 0)
        for packet in container.demux(moving):
            packets[packet.stream_index] += bool(packet.size)
            if packets[moving[0].index] > 1:
                break
    return next((number for number, count in packets.items() if count > 1), moving[0].index)


def _aspect(stream: Any) -> Fraction:
    aspect = stream.sample_aspect_ratio
    plausible = aspect and Fraction(1, _MOST_ASPECT) <= aspect <= _MOST_ASPECT
    return Fraction(aspect) if plausible else Fraction(1)


def _notes(frame: av.VideoFrame) -> Iterator[str]:
    """Yields what may make the colours of a file look other than meant."""
    if frame.color_trc in _HDR:
        yield (
            f"HDR ({_HDR[frame.color_trc]}) is read without tone mapping, so colours look flat; "
            "convert to SDR first, for instance with FFmpeg's zscale and tonemap filters"
        )
    is_yuv = not frame.format.is_rgb and len(frame.format.components) >= 3
    if is_yuv and frame.colorspace == _UNSPECIFIED and min(frame.width, frame.height) >= _HD_ROWS:
        yield (
            "the colour matrix is not tagged, BT.601 is assumed; if it is BT.709, tag it, for "
            "H.264 with ffmpeg -c copy -bsf:v h264_metadata=matrix_coefficients=1"
        )


def _report(path: Path, info: VideoInfo) -> None:
    for note in info.notes:
        log.warning("%s: %s", path, note)


def _is_avi(container) -> bool:
    return container.format.name == "avi"


def _stamp(container, item: Any) -> int | None:
    """The time of a packet or frame in the stream's units."""
    return item.dts if _is_avi(container) or item.pts is None else item.pts


def _seconds(container, stream, stamp: int) -> float:
    if _is_avi(container):
        return stamp / float(1 / stream.time_base)
    return float(stamp * stream.time_base)


def _stamped(container, stream) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yields all frames from the current position on with their times in the stream's units."""
    if not _is_avi(container):
        for frame in container.decode(stream):
            yield _stamp(container, frame), frame
        return
    # Chunks are in the order of decoding: sorted, they are the times of the frames as shown.
    stamps: list[int] = []
    number = 0
    for packet in container.demux(stream):
        if packet.size and not packet.is_discard:
            stamps.append(packet.dts)
        for frame in packet.decode():
            yield stamps[min(number, len(stamps) - 1)], frame
            number += 1


def _frames(path: Path, container, stream) -> Iterator[TimedFrame]:
    """Yields all frames from the current position on.

    Raises:
        UserError: a frame is damaged, of another size than the first, or earlier than the one
            before.
    """
    aspect = _aspect(stream)
    before = -float("inf")
    size = None
    for stamp, frame in _stamped(container, stream):
        time = _seconds(container, stream, stamp)
        size = size or (frame.width, frame.height)
        if frame.is_corrupt:
            raise UserError(f"{path}: damaged at {time:.2f} s; re-encode or remove it")
        if time < before:
            raise UserError(
                f"{path}: presentation times run backwards at {time:.2f} s; remux or re-encode it"
            )
        if size != (frame.width, frame.height):
            raise UserError(
                f"{path}: frames change from {size[0]}x{size[1]} to {frame.width}x{frame.height} "
                f"at {time:.2f} s; re-encode or remove it"
            )
        before = time
        yield time, Picture(frame, aspect)

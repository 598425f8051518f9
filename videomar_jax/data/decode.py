"""Frames and their times out of video files, with PyAV.

Every frame has a presentation time in seconds. Resampling takes, for each wanted time, the frame
presented nearest to it (the earlier of two at equal distance), so constant, variable and unknown
frame rates are one case. AVI files carry no trustworthy presentation times: there, frame i is at
i / rate.

Decoding is strict: damage that the decoder notices is an error that names the file, never a
repeated or grey frame.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import av
import numpy as np

from videomar_jax.checks import UserError
from videomar_jax.io.paths import user_path
from videomar_jax.types import Float, UInt8

Item = TypeVar("Item")
TimedFrame = tuple[float, av.VideoFrame]
"""The presentation time in seconds, and the frame."""

# Seconds into a file from where on seeking is faster than decoding from the start.
_SEEK_AFTER = 1.0
# Seconds by which two equal times may differ after rounding.
_EPSILON = 1e-6


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
                stamps.append(packet.dts if packet.pts is None else packet.pts)
        if first is None or not stamps:
            raise UserError(f"{path}: holds no frames")
        if None in stamps:
            raise UserError(f"{path}: has frames without presentation times; remux or re-encode it")
        rate = float(stream.average_rate or 0)
        if _is_avi(container):
            times = np.arange(len(stamps)) / (rate or 1.0)
        else:
            times = np.array([float(stamp * stream.time_base) for stamp in sorted(stamps)])
        if not rate:
            duration = times[-1] - times[0]
            rate = (len(times) - 1) / duration if duration > 0 else 1.0
        height, width = to_rgb(first).shape[:2]
    return VideoInfo(times=times, fps=rate, height=height, width=width)


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
    picked: list[Item] = []
    previous = None
    for time, item in timed:
        if previous is not None:
            middle = (previous[0] + time) / 2
            while len(picked) < len(times) and times[len(picked)] <= middle:
                picked.append(previous[1])
        if len(picked) == len(times):
            return picked
        previous = time, item
    # What is left is after the middle between the last two items.
    return picked + [previous[1]] * (len(times) - len(picked))


def grid(first: float, last: float, fps: float) -> Float[np.ndarray, "F"]:
    """The times first, first + 1/fps, ... up to `last`, in seconds."""
    steps = int((last - first) * fps + _EPSILON)
    return first + np.arange(steps + 1) / fps


def to_rgb(frame: av.VideoFrame) -> UInt8[np.ndarray, "rows columns 3"]:
    """The picture as it is meant to be shown.

    Phone videos carry their rotation beside the pixels.
    """
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


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
    first, last = float(info.times[0]), float(info.times[-1])
    timed = frames_between(path, first, last, start=first)
    if fps is None:
        pictures = [to_rgb(frame) for _, frame in islice(timed, max_frames)]
        return np.stack(pictures), info.fps
    frames = nearest(timed, grid(first, last, fps)[:max_frames].tolist())
    return np.stack([to_rgb(frame) for frame in frames]), float(fps)


@contextmanager
def _open(path: Path):
    """The container and its video stream, with the decoder's errors as UserErrors."""
    if not path.is_file():
        raise FileNotFoundError(f"video {path} does not exist")
    if not path.stat().st_size:
        raise UserError(f"{path}: the file is empty")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path}: holds no video stream")
            stream = container.streams.video[0]
            # Many files are read side by side already.
            stream.codec_context.thread_count = 1
            yield container, stream
    except (av.FFmpegError, OSError) as error:
        raise UserError(
            f"{path}: cannot be decoded ({error.strerror or error}); re-encode or remove it"
        ) from error


def _is_avi(container) -> bool:
    return container.format.name == "avi"


def _frames(path: Path, container, stream) -> Iterator[TimedFrame]:
    """Yields all frames from the current position on; times must not run backwards."""
    before = -float("inf")
    for number, frame in enumerate(container.decode(stream)):
        if _is_avi(container):
            time = number / float(stream.average_rate or 1)
        else:
            stamp = frame.dts if frame.pts is None else frame.pts
            time = float(stamp * stream.time_base)
        if frame.is_corrupt:
            raise UserError(f"{path}: damaged at {time:.2f} s; re-encode or remove it")
        if time < before:
            raise UserError(
                f"{path}: presentation times run backwards at {time:.2f} s; remux or re-encode it"
            )
        before = time
        yield time, frame

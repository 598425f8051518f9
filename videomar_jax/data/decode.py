"""Frames and their times out of video files, with PyAV.

Every frame has a presentation time in seconds. Resampling takes, for each wanted time, the frame
presented nearest to it (the earlier of two at equal distance), so constant, variable and unknown
frame rates are one case. AVI files carry
no trustworthy presentation times: there frame i is at i / rate.

Decoding is strict: damage that the decoder notices is an error naming the file, never a repeated or
    grey frame.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import av
import numpy as np

from videomar_jax.types import Float, UInt8

Item = TypeVar("Item")
_SEEK_AFTER = 1.0
"""Seconds into a file from where on seeking beats decoding from the start."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a file holds: presentation times (ascending, s), average frames per second, rows and
    columns as shown."""

    times: Float[np.ndarray, "F"]
    fps: float
    height: int
    width: int


def probe(path: Path) -> VideoInfo:
    """Reads all packets but decodes the first frame only. Raises ValueError saying what is wrong
    with the file."""
    with _open(path) as (container, stream):
        stamps, first = [], None
        for packet in container.demux(stream):
            if first is None:
                first = next(iter(packet.decode()), None)
            if packet.size and not packet.is_discard:
                stamps.append(packet.dts if packet.pts is None else packet.pts)
        if first is None or not stamps:
            raise ValueError(f"{path}: holds no frames")
        if None in stamps:
            raise ValueError(
                f"{path}: has frames without presentation times; remux or re-encode it"
            )
        rate = float(stream.average_rate or 0)
        if _is_avi(container):
            times = np.arange(len(stamps)) / (rate or 1.0)
        else:
            times = np.array([float(stamp * stream.time_base) for stamp in sorted(stamps)])
        if not rate:
            rate = (len(times) - 1) / (times[-1] - times[0]) if times[-1] > times[0] else 1.0
        height, width = to_rgb(first).shape[:2]
    return VideoInfo(times=times, fps=rate, height=height, width=width)


def frames_between(
    path: Path, first: float, last: float, *, start: float
) -> Iterator[tuple[float, av.VideoFrame]]:
    """(time, frame) for the frames of first <= time <= last, leaving out some (or none) of those
    before `start`.

    The last frame presented at or before `start` is always there. Raises ValueError, naming the
    file, at a damaged packet.
    """
    with _open(path) as (container, stream):
        frames = _frames(path, container, stream)
        if start > first + _SEEK_AFTER and not _is_avi(container):
            container.seek(int(start / stream.time_base), stream=stream, backward=True)
            time, frame = next(frames, (None, None))
            if time is not None and time <= start:
                frames = chain([(time, frame)], frames)
            else:  # the file's index is wrong
                container.seek(0)
                frames = _frames(path, container, stream)
        yield from _between(path, frames, first, last)


def _between(
    path: Path, frames, first: float, last: float
) -> Iterator[tuple[float, av.VideoFrame]]:
    none_yet = True
    for time, frame in frames:
        if time > last:
            break
        if time >= first:
            none_yet = False
            yield time, frame
    if none_yet:
        raise ValueError(
            f"{path}: no frame decodes between {first:.2f} s and {last:.2f} s; re-encode or remove it"
        )


def nearest(timed: Iterable[tuple[float, Item]], times: Sequence[float]) -> list[Item]:
    """For each of the ascending times the item nearest to it; stops reading when all are decided.

    `timed` must be ascending too and hold at least one item.
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
    return picked + [previous[1]] * (len(times) - len(picked))


def grid(first: float, last: float, fps: float) -> Float[np.ndarray, "F"]:
    """The times first, first + 1/fps, ... up to `last`."""
    return first + np.arange(int((last - first) * fps + 1e-6) + 1) / fps


def to_rgb(frame: av.VideoFrame) -> UInt8[np.ndarray, "rows columns 3"]:
    """The picture as it is meant to be shown: phone videos carry their rotation beside the
    pixels."""
    return np.ascontiguousarray(
        np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    )


def read_video(
    path: str | Path, *, fps: float | None = None, max_frames: int | None = None
) -> tuple[UInt8[np.ndarray, "F Hp Wp 3"], float]:
    """The frames of a video file and their rate, at most `max_frames` from the beginning.

    fps None gives the file's own frames and average rate; a number resamples to it by nearest
    presentation time. Raises FileNotFoundError, and ValueError for a file that does not decode.
    """
    path = Path(path)
    if fps is not None and not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames must be >= 1, got {max_frames}")
    info = probe(path)
    first, last = float(info.times[0]), float(info.times[-1])
    timed = frames_between(path, first, last, start=first)
    if fps is None:
        return np.stack([to_rgb(frame) for _, frame in islice(timed, max_frames)]), info.fps
    frames = nearest(timed, grid(first, last, fps)[:max_frames].tolist())
    return np.stack([to_rgb(frame) for frame in frames]), float(fps)


@contextmanager
def _open(path: Path):
    if not path.is_file():
        raise FileNotFoundError(f"video {path} does not exist")
    if not path.stat().st_size:
        raise ValueError(f"{path}: the file is empty")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path}: holds no video stream")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # readers run side by side already
            yield container, stream
    except (av.FFmpegError, OSError) as error:
        raise ValueError(
            f"{path}: cannot be decoded ({error.strerror or error}); re-encode or remove it"
        ) from error


def _is_avi(container) -> bool:
    return container.format.name == "avi"


def _frames(path: Path, container, stream) -> Iterator[tuple[float, av.VideoFrame]]:
    before = -float("inf")
    for number, frame in enumerate(container.decode(stream)):
        stamp = frame.dts if frame.pts is None else frame.pts
        time = (
            number / float(stream.average_rate or 1)
            if _is_avi(container)
            else float(stamp * stream.time_base)
        )
        if frame.is_corrupt:
            raise ValueError(f"{path}: damaged at {time:.2f} s; re-encode or remove it")
        if time < before:
            raise ValueError(
                f"{path}: presentation times run backwards at {time:.2f} s; remux or re-encode it"
            )
        before = time
        yield time, frame

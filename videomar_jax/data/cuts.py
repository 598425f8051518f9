"""Cuts: where a video changes from one shot to another within a frame.

Frames are looked at small, 24 x 24 pixels of three colours, in one pass; distances are mean
absolute differences in grey levels. With d_i the distance of frame i from the one before, frame i
begins a new shot if

    it differs        d_i >= LEAST, more than noise and compression change
    at once           d_i >= ISOLATED times what is usual near it, the second largest of the four
                      distances before and the four after it, and ISOLATED times the median of the
                      video: fast motion, a pan, a fade or a dissolve changes several frames alike
    for good          no frame of the next three is like one of the four before i: what passes the
                      lens, or a damaged frame, goes away again. A flash, which makes nearly every
                      pixel brighter (or, of a lamp that fails, darker), may take a second
    in what it shows  the brightness alone is not enough: frames whose structure correlates by more
                      than SAME show the same, lit in another way

Dissolves and fades are no cuts, and a shot of one to three frames is none.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from videomar_jax.data.decode import Picture, frames_between
from videomar_jax.types import Float

LEAST = 8.0
"""Grey levels."""
ISOLATED = 3.0
SAME = 0.9
_SIDE = 24
# Frames on either side of one that say what is usual there.
_AROUND = 4
_FLASH_S = 1.0
# Share of the distance across a cut below which two frames are alike.
_ALIKE = 0.5
# Share of the pixels that a flash makes brighter, and the grey levels that count as none.
_FLASHED, _NONE = 0.95, 3.0
# Frames of less contrast than this, in grey levels, have no structure to compare.
_FLAT = 2.0

SmallFrame = Float[np.ndarray, "24 24 3"]


@dataclass(kw_only=True)
class _Candidate:
    """A frame that differs much from the one before."""

    number: int
    time: float
    distance: float
    before: Sequence[SmallFrame]
    first: SmallFrame
    end: int | None = None
    """The first frame that is again as it was before; None: there was none so far."""
    is_flash: bool = field(init=False)

    def __post_init__(self):
        change = self.first - self.before[-1]
        brighter, darker = (change > -_NONE).mean(), (change < _NONE).mean()
        self.is_flash = bool(max(brighter, darker) >= _FLASHED)

    def compare(self, number: int, time: float, frame: SmallFrame) -> None:
        """Looks at a later frame, or at the first."""
        later = number - self.number
        in_flash = self.is_flash and time <= self.time + _FLASH_S
        if self.end is None and (later < _AROUND or in_flash):
            if any(self._alike(frame, other) for other in self.before):
                self.end = number

    def is_decided(self, time: float) -> bool:
        return self.end is not None or time > self.time + _FLASH_S

    def _alike(self, one: SmallFrame, other: SmallFrame) -> bool:
        return _distance(one, other) < _ALIKE * self.distance or _correlation(one, other) > SAME


def find_cuts(frames: Iterable[tuple[float, SmallFrame]]) -> list[float]:
    """The times at which a new shot begins, in seconds, of small frames with their times."""
    distances: list[float] = []
    candidates: list[_Candidate] = []
    open_ones: list[_Candidate] = []
    before: deque[SmallFrame] = deque(maxlen=_AROUND)
    for number, (time, frame) in enumerate(frames):
        distance = _distance(frame, before[-1]) if before else 0.0
        if distance >= max(LEAST, ISOLATED * _usual(distances[-_AROUND:])):
            found = _Candidate(
                number=number, time=time, distance=distance, before=tuple(before), first=frame
            )
            candidates.append(found)
            open_ones.append(found)
        for candidate in open_ones:
            candidate.compare(number, time, frame)
        open_ones = [each for each in open_ones if not each.is_decided(time)]
        distances.append(distance)
        before.append(frame)
    if not candidates:
        return []
    median = float(np.median(distances[1:]))
    cuts = []
    over = -1  # the last frame of what has gone away again
    for candidate in candidates:
        if candidate.number <= over:
            continue
        if candidate.end is not None:
            over = candidate.end
            continue
        start = candidate.number
        after = distances[start + 1 : start + 1 + _AROUND]
        near = distances[max(start - _AROUND, 0) : start] + after
        if candidate.distance >= ISOLATED * max(_usual(near), median):
            cuts.append(candidate.time)
    return cuts


def cuts_of(path: Path) -> tuple[float, ...]:
    """The times, in seconds, at which the shots of a video file begin, but the first.

    The file is decoded whole; what was found is remembered while the process lives.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it does not decode.
    """
    about = path.stat()
    return _cuts_of(path, about.st_size, about.st_mtime_ns)


@cache
def _cuts_of(path: Path, size: int, changed: int) -> tuple[float, ...]:
    timed = frames_between(path, -np.inf, np.inf, start=-np.inf)
    return tuple(find_cuts((time, _small(picture)) for time, picture in timed))


def _small(picture: Picture) -> SmallFrame:
    small = picture.frame.reformat(_SIDE, _SIDE, format="rgb24", interpolation="AREA")
    return small.to_ndarray().astype(np.float32)


def _distance(one: SmallFrame, other: SmallFrame) -> float:
    return float(np.abs(one - other).mean())


def _correlation(one: SmallFrame, other: SmallFrame) -> float:
    """Of two frames without their mean colours; 0 if one of them is flat."""
    one, other = one - one.mean(axis=(0, 1)), other - other.mean(axis=(0, 1))
    spread, others = float(one.std()), float(other.std())
    if min(spread, others) < _FLAT:
        return 0.0
    return float((one * other).mean()) / (spread * others)


def _usual(distances: Sequence[float]) -> float:
    """The second largest: one more cut near by does not count."""
    return sorted(distances)[-2] if len(distances) > 1 else 0.0

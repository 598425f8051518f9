"""A folder of video files as a source of captioned clips.

Each clip's duration is divided at (1 - holdout): frames presented before that belong to "train",
the rest to "test"; clips too short for that may be kept whole, for one of the two (`holdout`). A
split reads its own frames only, so no resampling rounds a held-out frame into training. A window is
`num_frames` times 1/fps apart; each takes the frame nearest to it, is scaled to cover the asked
size and cropped.

    train   one index per clip, a random window                              crop as asked
    test    up to 4 evenly spread windows per clip, one index each           centre crop
    all     the whole duration; as train if crop is random, as test if not   crop as asked
"""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np

from videomar_jax.data.captions import read_captions
from videomar_jax.data.decode import frames_between, nearest, probe, read_video, to_rgb
from videomar_jax.data.holdout import Piece, Share, Video, divide, shares
from videomar_jax.data.sources import (
    Clip,
    ClipShape,
    Sizes,
    check_index,
    nearest_sizes,
    short_digest,
)
from videomar_jax.data.transforms import cover_size, crop_center, crop_random, resize_cover
from videomar_jax.types import Int, UInt8

__all__ = ["EXTENSIONS", "VideoFolder", "read_video"]

EXTENSIONS = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
_WINDOWS = 4
_SMALL = 1000
"""Clips of more frames than this are never kept decoded."""
_STALE = 1000
"""A frame size that so many reads did not ask for is taken to be over."""

_log = logging.getLogger(__name__)
Frames = list[tuple[float, np.ndarray]]


class VideoFolder:
    """Clips of the video files under a folder, in sorted order.

    captions: a .csv or .jsonl table; None looks for one in the folder (see `captions`).
    holdout: the share of each clip's duration kept for "test", in [0, 1).
    shortest: frames, at `fps`, of the shortest training clip and of a test clip: a file that cannot
        be cut into a part for each is not cut, but whole in one of the two splits (see `holdout`).
        None: every file is cut.
    min_frames: leaves out files with fewer frames, at `fps`, in this split; "test" spreads no more
        windows over a clip than it holds stretches of this length.
    skip_broken: False makes an unusable file an error.
    cache_bytes: memory for decoded, scaled frames of short clips; kept in order of arrival until it
        is full.

    All files are looked at here. `skipped` lists those that cannot be used, with the reason. Raises
    FileNotFoundError for a missing or empty folder and ValueError for settings out of range or
    where no file is usable.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        captions: str | Path | None = None,
        fps: float,
        split: Literal["train", "test", "all"],
        holdout: float = 0.2,
        shortest: tuple[int, int] | None = None,
        crop: Literal["random", "center"] = "random",
        min_frames: int = 1,
        skip_broken: bool = True,
        cache_bytes: int = 2**29,
    ):
        _check(fps, split, holdout, crop, min_frames, shortest)
        self.fps = float(fps)
        self.split = split
        self._holdout = 0.0 if split == "all" else holdout
        self._random_crop = crop == "random" and split != "test"
        self._random_window = split == "train" or (split == "all" and crop == "random")
        self._min_frames = min_frames
        self._shortest = shortest
        self._folder = folder = Path(path)
        files = _find(folder)
        self._captions = read_captions(folder, files, None if captions is None else Path(captions))
        pieces, self.skipped = self._usable(folder, files)
        if self.skipped and (not pieces or not skip_broken):
            raise ValueError(_hopeless(folder, self.skipped, len(files)))
        for _, reason in self.skipped:
            _log.warning("skipped %s", reason)
        self._windows = [
            (piece, number, count) for piece in pieces for number, count in self._spread(piece)
        ]
        self._lengths = np.array([piece.count(self.fps) for piece, _, _ in self._windows])
        self._sides = np.array([(piece.rows, piece.columns) for piece, _, _ in self._windows])
        self._cache = _Cache(cache_bytes)

    def __len__(self) -> int:
        """Usable clips where windows are random, else windows."""
        return len(self._windows)

    def name(self, index: int) -> str:
        """The file, without folder and ending, that clip number `index` is cut from."""
        check_index(index, len(self))
        return self._windows[index][0].path.stem

    def digest(self) -> str:
        """Of what is read: the files by their place in the folder, the first and last time that is
        taken of each, its frames and size; and of the windows, which the settings say."""
        clips = [
            (
                piece.path.relative_to(self._folder).as_posix(),
                round(piece.first, 6),
                round(piece.last, 6),
                piece.frames,
                piece.rows,
                piece.columns,
                number,
                count,
            )
            for piece, number, count in self._windows
        ]
        return short_digest(
            "videos", self.split, self.fps, self._random_window, self._random_crop, clips
        )

    def fits(self, shape: ClipShape, sizes: Sizes) -> Int[np.ndarray, "clips"]:
        """The clips that are long enough for `shape` and nearest to it, of `sizes`, in aspect
        ratio."""
        number = [tuple(size) for size in sizes].index((shape.height, shape.width))
        near = nearest_sizes(self._sides[:, 0], self._sides[:, 1], sizes) == number
        return np.flatnonzero(near & (self._lengths >= shape.num_frames))

    def read(self, index: int, rng: np.random.Generator, shape: ClipShape) -> Clip:
        """One window of a clip. Raises ValueError, naming the file, for a clip shorter than asked
        or a damaged one."""
        check_index(index, len(self))
        piece, number, count = self._windows[index]
        steps = self._room(piece, shape.num_frames)
        step = (
            rng.integers(steps + 1)
            if self._random_window
            else round(steps * number / max(count - 1, 1))
        )
        times = piece.first + step / self._step_rate(piece) + np.arange(shape.num_frames) / self.fps
        video = self._frames(piece, times.tolist(), shape.height, shape.width)
        if self._random_crop:
            video = crop_random(video, shape.height, shape.width, rng)
        else:
            video = crop_center(video, shape.height, shape.width)
        return Clip(video=video, caption=self._captions[piece.path])

    def _usable(
        self, folder: Path, files: list[Path]
    ) -> tuple[list[Piece], list[tuple[Path, str]]]:
        """What is read of the files, and those that cannot be used."""
        with ThreadPoolExecutor(max_workers=8) as pool:
            found = dict(zip(files, pool.map(self._inspect, files), strict=True))
        videos = [video for video in found.values() if isinstance(video, Video)]
        pieces, reasons = self._pieces(folder, videos)
        reasons |= {file: reason for file, reason in found.items() if isinstance(reason, str)}
        if not pieces:  # those that are whole in the other split, too
            parts = {
                video.path: self._too_short(video.path, video.part(self.split)) for video in videos
            }
            reasons = parts | reasons
        return pieces, [(file, reasons[file]) for file in files if file in reasons]

    def _inspect(self, path: Path) -> Video | str:
        try:
            return divide(path, probe(path), self._holdout)
        except ValueError as error:
            return str(error)

    def _pieces(self, folder: Path, videos: list[Video]) -> tuple[list[Piece], dict[Path, str]]:
        """The pieces of this split, and what is too short for it."""
        if self.split == "all":
            found: list[Share] = ["all"] * len(videos)
        elif self._shortest is None or not self._holdout:
            found = ["cut"] * len(videos)
        else:
            names = [video.path.relative_to(folder).as_posix() for video in videos]
            found = shares(
                videos, names, holdout=self._holdout, fps=self.fps, shortest=self._shortest
            )
            _tell_whole(folder, found)
        pieces, reasons = [], {}
        for video, share in zip(videos, found, strict=True):
            if share not in ("cut", self.split):
                continue
            piece = video.part(self.split) if share == "cut" else video.whole
            if piece is None or piece.count(self.fps) < self._min_frames:
                reasons[video.path] = self._too_short(video.path, piece)
            else:
                pieces.append(piece)
        return pieces, reasons

    def _spread(self, piece: Piece) -> list[tuple[int, int]]:
        """(number, of how many) for every window of a clip."""
        stretches = piece.count(self.fps) // self._min_frames
        count = 1 if self._random_window else min(_WINDOWS, stretches)
        return [(number, count) for number in range(count)]

    def _room(self, piece: Piece, num_frames: int) -> int:
        """How many steps after the first frame a window of `num_frames` may start."""
        if piece.count(self.fps) < num_frames:
            reason = self._too_short(piece.path, piece, num_frames)
            raise ValueError(f"{reason}, or pass min_frames={num_frames} to skip it")
        slack = piece.last - piece.first - (num_frames - 1) / self.fps
        return max(int(slack * self._step_rate(piece) + 1e-6), 0)

    def _step_rate(self, piece: Piece) -> float:
        """Windows start at source frames (or finer, 1 / fps apart): from halfway between, rounding
        may stutter."""
        return max(piece.rate, self.fps)

    def _too_short(self, path: Path, piece: Piece | None, asked: int | None = None) -> str:
        count, part = (piece.count(self.fps), piece.part) if piece else (0, self.split)
        where = f" in its {part} part" if part else ""
        return (
            f"{path}: {count} frames at {self.fps:g} fps{where}, {asked or self._min_frames} asked; "
            f"ask for shorter clips, a higher fps, another holdout"
        )

    def _frames(
        self, piece: Piece, times: list[float], height: int, width: int
    ) -> UInt8[np.ndarray, "F h w 3"]:
        """The frames nearest to `times`, scaled to cover height x width."""
        key = (piece.path, height, width)
        kept = self._cache.get(key)
        if kept is None:
            rows, columns = cover_size(piece.rows, piece.columns, height, width)
            whole = piece.frames <= _SMALL and self._cache.fits(piece.frames * rows * columns * 3)
            start = piece.first if whole else times[0]
            timed = frames_between(piece.path, piece.first, piece.last, start=start)
            if not whole:
                picked = np.stack([to_rgb(frame) for frame in nearest(timed, times)])
                return resize_cover(picked, height, width)
            kept = [
                (time, resize_cover(to_rgb(frame)[None], height, width)[0]) for time, frame in timed
            ]
            self._cache.put(key, kept)
        return np.stack(nearest(kept, times))


class _Cache:
    """Decoded clips by file and frame size. Clips are read in random order, so the first to arrive
    are as good as any; those of a size that is not asked for any more make room for others."""

    def __init__(self, budget: int):
        self._budget, self._used, self._reads = budget, 0, 0
        self._clips: dict[tuple[Path, int, int], Frames] = {}
        self._asked: dict[tuple[int, int], int] = {}  # the last read that asked for a frame size
        self._lock = threading.Lock()

    def get(self, key: tuple[Path, int, int]) -> Frames | None:
        with self._lock:
            self._reads += 1
            self._asked[key[1:]] = self._reads
            return self._clips.get(key)

    def fits(self, size: int) -> bool:
        """Whether there is room for so many bytes, if need be after dropping what is stale."""
        with self._lock:
            if self._used + size > self._budget:
                self._drop_stale()
            return self._used + size <= self._budget

    def put(self, key: tuple[Path, int, int], frames: Frames) -> None:
        size = _bytes(frames)
        with self._lock:
            if key not in self._clips and self._used + size <= self._budget:
                self._clips[key] = frames
                self._used += size

    def _drop_stale(self) -> None:
        stale = {size for size, read in self._asked.items() if self._reads - read > _STALE}
        for key in [key for key in self._clips if key[1:] in stale]:
            self._used -= _bytes(self._clips.pop(key))


def _bytes(frames: Frames) -> int:
    return sum(frame.nbytes for _, frame in frames)


def _check(
    fps: float,
    split: str,
    holdout: float,
    crop: str,
    min_frames: int,
    shortest: tuple[int, int] | None,
) -> None:
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    if split not in ("train", "test", "all"):
        raise ValueError(f"split must be train, test or all, got {split!r}")
    if crop not in ("random", "center"):
        raise ValueError(f"crop must be random or center, got {crop!r}")
    if not 0 <= holdout < 1 or (split == "test" and holdout == 0):
        raise ValueError(f'holdout must be in [0, 1), and above 0 for split "test", got {holdout}')
    if min_frames < 1:
        raise ValueError(f"min_frames must be >= 1, got {min_frames}")
    if shortest is not None and min(shortest) < 1:
        raise ValueError(f"shortest must be frames >= 1, got {shortest}")


def _find(folder: Path) -> list[Path]:
    if not folder.exists():
        raise FileNotFoundError(f"video folder {folder} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: name the folder that holds it")
    files = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file()
    )
    if not files:
        raise FileNotFoundError(f"no videos under {folder}: looked for *{', *'.join(EXTENSIONS)}")
    return files


def _tell_whole(folder: Path, found: list[Share]) -> None:
    whole = found.count("train") + found.count("test")
    if whole:
        _log.info(
            "%s: %d of %d videos are too short to be cut in two; held out whole: %d",
            folder,
            whole,
            len(found),
            found.count("test"),
        )


def _hopeless(folder: Path, skipped: list[tuple[Path, str]], total: int) -> str:
    reasons = [f"  {reason}" for _, reason in skipped[:10]]
    rest = [f"  and {len(skipped) - 10} more"] if len(skipped) > 10 else []
    way_out = (
        "repair or remove them, or pass skip_broken=True"
        if len(skipped) < total
        else "none is left"
    )
    return "\n".join(
        [
            f"{len(skipped)} of {total} videos under {folder} cannot be used ({way_out}):",
            *reasons,
            *rest,
        ]
    )

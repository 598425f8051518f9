"""A folder of video files as a source of captioned clips.

The duration of each file is divided at (1 - holdout): frames presented before that belong to
"train", the rest to "test". Files too short for that may be kept whole, for one of the two
(`holdout`). A split reads its own frames only, so no resampling rounds a held-out frame into
training.

A window is `num_frames` times 1/fps apart. Each time takes the frame nearest to it, which is scaled
to cover the clip's size and cropped. What an index stands for depends on the split:

    train   one index per file, a random window                              crop as asked
    test    up to 4 evenly spread windows per file, one index each           centre crop
    all     the whole duration; as train if crop is random, as test if not   crop as asked

Pictures are clips of one frame, each in one split as a whole: what an image stage trains on.

With `split_cuts`, each shot counts as a file of its own, so that no window runs across a cut.
"""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from videomar_jax.checks import Fraction, Positive, UserError, at_least, check_value, one_of
from videomar_jax.data.captions import read_captions
from videomar_jax.data.cuts import cuts_of
from videomar_jax.data.decode import (
    Picture,
    VideoInfo,
    check_decodes,
    frames_between,
    nearest,
    probe,
    to_rgb,
)
from videomar_jax.data.frame_cache import FrameCache, FrameKey
from videomar_jax.data.holdout import Assignment, Segment, SplitVideo, assign, split_video
from videomar_jax.data.sources import (
    Clip,
    ClipShape,
    Contents,
    Sizes,
    SourceKind,
    check_index,
    nearest_sizes,
    short_digest,
)
from videomar_jax.data.transforms import cover_size, crop_center, crop_random, resize_cover
from videomar_jax.io.log import log, warn_once
from videomar_jax.io.paths import user_path
from videomar_jax.io.pictures import picture_size, read_picture
from videomar_jax.types import Float, Int, UInt8

EXTENSIONS = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
"""Endings of the files that are taken for videos, in lower case."""
PICTURES = (".jpeg", ".jpg", ".png", ".webp")
"""Endings of the files that are taken for pictures, in lower case."""

# Most windows of a file where they are not random.
_WINDOWS = 4
# Files of more frames than this are never kept decoded.
_MOST_KEPT_FRAMES = 1000
_SHOWN_REASONS = 10


class _Window(NamedTuple):
    """What an index stands for: window `number` of `count` evenly spread ones of a segment."""

    segment: Segment
    number: int
    count: int


class VideoFolder:
    """Clips of the video files under a folder, in sorted order.

    All files are inspected when the source is made: their packets, and the first frame. A file that
    fails later is replaced, wherever it is asked for, by the next one whose clip is long enough and
    can be read. Which one that is depends on the arguments of `read` only, so order and resumed
    numbers stay.

    Args:
        path: the folder.
        captions: a .csv or .jsonl table; None looks for one in the folder (see `captions`).
        fps: frames per second of the clips.
        split: "train", "test" or "all".
        holdout: the share of each file's duration that is kept for "test", in [0, 1).
        shortest: frames, at `fps`, of the shortest training clip and of a test clip: a file that
            cannot be cut into a part for each is not cut but belongs to one of the two splits as a
            whole (see `holdout`). None: every file is cut.
        crop: where a frame is cropped.
        min_frames: leaves out files with fewer frames, at `fps`, in this split; and "test" spreads
            no more windows over a file than it has stretches of this length.
        skip_broken: False makes an unusable file an error.
        decode_all: inspect files by decoding them whole.
        split_cuts: look for cuts (`cuts`), which decodes every file once. Shots that are too short
            are left out; files that do not decode are unusable.
        pictures: take the pictures of the folder instead of its videos.
        most_failing: the share of the files that may fail while clips are read; one file may,
            unless this is 0.
        cache_bytes: memory for the decoded, scaled frames of short files; they are kept in order of
            arrival until it is full.

    Raises:
        FileNotFoundError: the folder is missing or has no videos.
        UserError: a setting is out of range, or no file is usable.
    """

    KIND: ClassVar[SourceKind] = SourceKind(
        name="videos",
        description="a folder of video files",
        place="the folder of clips",
        place_form="DIR",
    )

    skipped: list[tuple[Path, str]]
    """The files that cannot be used, with the reason."""

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
        decode_all: bool = False,
        split_cuts: bool = False,
        pictures: bool = False,
        most_failing: float = 0.0,
        cache_bytes: int = 2**29,
    ):
        check_value("fps", fps, Positive)
        one_of("split", split, ("train", "test", "all"))
        one_of("crop", crop, ("random", "center"))
        _check_holdout(holdout, split)
        at_least("min_frames", min_frames, 1)
        check_value("most_failing", most_failing, Fraction)
        for frames in shortest or ():
            at_least("shortest", frames, 1)
        self.fps = float(fps)
        self.split = split
        self._holdout = 0.0 if split == "all" else holdout
        self._random_crop = crop == "random" and split != "test"
        self._random_window = split == "train" or (split == "all" and crop == "random")
        self._min_frames = min_frames
        self._shortest = shortest
        self._decode_all = decode_all
        self._split_cuts = split_cuts
        self._most_failing = most_failing
        self._failing: set[Path] = set()
        self._failing_lock = threading.Lock()
        self._folder = user_path(path)
        self._pictures = pictures
        files = picture_files(self._folder) if pictures else video_files(self._folder)
        table = None if captions is None else user_path(captions)
        self._captions = read_captions(self._folder, files, table)
        self._notes: list[tuple[str, Path]] = []
        segments, self.skipped = self._usable(files)
        _report_notes(self._notes, len(files))
        if self.skipped and (not segments or not skip_broken):
            raise UserError(_list_of_unusable(self._folder, self.skipped, len(files)))
        for _, reason in self.skipped:
            warn_once("skipped %s", reason)
        self._windows = [window for segment in segments for window in self._spread(segment)]
        owners = [window.segment for window in self._windows]
        self._lengths = np.array([segment.count(self.fps) for segment in owners])
        self._rows = np.array([segment.rows for segment in owners])
        self._columns = np.array([segment.columns for segment in owners])
        self._cache = FrameCache(cache_bytes)

    def __len__(self) -> int:
        """Usable files where windows are random, else windows."""
        return len(self._windows)

    @property
    def captions(self) -> list[str]:
        """The captions of all clips."""
        return [self._captions[window.segment.path] for window in self._windows]

    @property
    def sizes(self) -> Int[np.ndarray, "clips 2"]:
        """Rows and columns of each clip as it lies in its file."""
        return np.stack([self._rows, self._columns], axis=1)

    @property
    def lengths(self) -> Int[np.ndarray, "clips"]:
        """Frames of each clip at `fps`."""
        return self._lengths

    @property
    def rates(self) -> Float[np.ndarray, "clips"]:
        """Frames per second of each clip in its file."""
        return np.array([window.segment.rate for window in self._windows])

    def name(self, index: int) -> str:
        """The file that clip number `index` is cut from, without folder and ending.

        Bytes that are not UTF-8 become the replacement character, so reports can be written.
        """
        check_index(index, len(self))
        stem = self._windows[index].segment.path.stem
        return stem.encode(errors="surrogateescape").decode(errors="replace")

    def digest(self) -> str:
        """Of the frames that are read, and of the windows.

        Counted are the place of each file in the folder, the first and last time that is taken of
        it, its frames and its size.
        """
        clips = []
        for segment, number, count in self._windows:
            name = segment.path.relative_to(self._folder).as_posix()
            times = (round(segment.first, 6), round(segment.last, 6))
            sizes = (segment.frames, segment.rows, segment.columns)
            clips.append((name, *times, *sizes, number, count))
        return short_digest(
            "videos", self.split, self.fps, self._random_window, self._random_crop, clips
        )

    def contents(self) -> Contents:
        """The files that windows are cut from, and their captions."""
        files = list(dict.fromkeys(window.segment.path for window in self._windows))
        return Contents(files=files, captions=[self._captions[file] for file in files])

    def fits(self, shape: ClipShape, sizes: Sizes) -> Int[np.ndarray, "clips"]:
        """The clips that are long enough for `shape` and, of `sizes`, nearest to its size."""
        number = [tuple(size) for size in sizes].index((shape.height, shape.width))
        near = nearest_sizes(self._rows, self._columns, sizes) == number
        return np.flatnonzero(near & (self._lengths >= shape.num_frames))

    def read(self, index: int, rng: np.random.Generator, shape: ClipShape) -> Clip:
        """One window of a file, or of the next one that can be read.

        Raises:
            UserError: the file is shorter than asked, or more files are damaged than may be; the
                text names it.
        """
        check_index(index, len(self))
        # The index itself is tried first, so a shape that it is too short for is reported.
        following = [(index + k) % len(self) for k in range(1, len(self))]
        for number in [index, *following]:
            if number != index and self._lengths[number] < shape.num_frames:
                continue
            self._start_steps(self._windows[number].segment, shape.num_frames)
            try:
                return self._read(self._windows[number], rng, shape)
            except (UserError, FileNotFoundError) as error:
                self._count_failure(self._windows[number].segment.path, error)
        raise UserError(f"no video under {self._folder} can be read any more")

    def failing(self) -> list[str]:
        """The files that have failed while clips were read, by their place in the folder."""
        with self._failing_lock:
            return sorted(path.relative_to(self._folder).as_posix() for path in self._failing)

    def count_failing(self, files: Iterable[str]) -> None:
        """Counts files, as `failing` names them, as failing from the start."""
        with self._failing_lock:
            self._failing |= {self._folder / file for file in files} & self._captions.keys()

    def _count_failure(self, path: Path, error: Exception) -> None:
        """Says once of each file that it is skipped; raises `error` if too many are."""
        with self._failing_lock:
            is_new = path not in self._failing
            self._failing.add(path)
            count = len(self._failing)
        if not self._most_failing:
            raise error
        files = len({window.segment.path for window in self._windows})
        most = max(1, int(self._most_failing * files))
        if count > most:
            raise UserError(
                f"{count} of {files} videos under {self._folder} fail while they are read, more "
                f"than the {most} that data.most_failing allows; the last: {error}"
            ) from error
        if is_new:
            log.warning("skipped from now on (%d of %d videos): %s", count, files, error)

    def _read(self, window: _Window, rng: np.random.Generator, shape: ClipShape) -> Clip:
        segment = window.segment
        steps = self._start_steps(segment, shape.num_frames)
        if self._random_window:
            step = rng.integers(steps + 1)
        else:
            step = round(steps * window.number / max(window.count - 1, 1))
        start = segment.first + step / self._step_rate(segment)
        times = start + np.arange(shape.num_frames) / self.fps
        video = self._frames(segment, times.tolist(), shape.height, shape.width)
        if self._random_crop:
            video = crop_random(video, shape.height, shape.width, rng)
        else:
            video = crop_center(video, shape.height, shape.width)
        return Clip(video=video, caption=self._captions[segment.path])

    def _usable(self, files: list[Path]) -> tuple[list[Segment], list[tuple[Path, str]]]:
        """What is read of the files, and those that cannot be used, with the reason."""
        with ThreadPoolExecutor(max_workers=8) as pool:
            inspected = list(pool.map(self._inspect, files))
        videos = [video for video in inspected if isinstance(video, SplitVideo)]
        if self._split_cuts and not self._pictures:
            _report_cuts(videos)
        segments, reasons = self._segments(videos)
        for file, reason in zip(files, inspected, strict=True):
            if isinstance(reason, str):
                reasons[file] = reason
        if not segments:
            # Then also say what is wrong with files that are whole in the other split.
            for video in videos:
                text = self._too_short(video.path, video.shots(self._stretch("cut")))
                reasons.setdefault(video.path, text)
        return segments, [(file, reasons[file]) for file in files if file in reasons]

    def _inspect(self, path: Path) -> SplitVideo | str:
        """The stretches of a file, or why it cannot be used."""
        try:
            if self._pictures:
                return self._inspect_picture(path)
            info = probe(path)
            if self._decode_all and not self._split_cuts:
                check_decodes(path)
            cuts = cuts_of(path) if self._split_cuts else ()
            # Appending to a list is safe among threads.
            self._notes += [(note, path) for note in info.notes]
            return split_video(path, info, self._holdout, cuts)
        except ValueError as error:  # UserErrors, and those of PyAV
            return str(error)

    def _inspect_picture(self, path: Path) -> SplitVideo:
        if self._decode_all:
            read_picture(path)
        rows, columns = picture_size(path)
        info = VideoInfo(times=np.zeros(1), fps=self.fps, height=rows, width=columns)
        return split_video(path, info, self._holdout)

    def _segments(self, videos: list[SplitVideo]) -> tuple[list[Segment], dict[Path, str]]:
        """The segments of this split, and the files whose segment is too short, with the reason."""
        segments: list[Segment] = []
        reasons: dict[Path, str] = {}
        for video, assigned in zip(videos, self._assign(videos), strict=True):
            if assigned not in ("cut", self.split):
                continue
            shots = video.shots(self._stretch(assigned))
            long = [shot for shot in shots if shot.count(self.fps) >= self._min_frames]
            if not long:
                reasons[video.path] = self._too_short(video.path, shots)
            segments += long
        return segments, reasons

    def _stretch(self, assigned: str) -> str:
        """What is read of a video: its part for this split, or the whole."""
        return self.split if assigned == "cut" and self.split != "all" else "whole"

    def _assign(self, videos: list[SplitVideo]) -> Sequence[Assignment | Literal["all"]]:
        """What each video is for; "all" for the split of that name."""
        if self.split == "all":
            return ["all"] * len(videos)
        if self._shortest is None or not self._holdout:
            return ["cut"] * len(videos)
        names = [video.path.relative_to(self._folder).as_posix() for video in videos]
        assigned = assign(
            videos, names, holdout=self._holdout, fps=self.fps, shortest=self._shortest
        )
        whole = assigned.count("train") + assigned.count("test")
        if whole:
            log.info(
                "%s: %d of %d videos are too short to be cut in two; held out whole: %d",
                self._folder,
                whole,
                len(assigned),
                assigned.count("test"),
            )
        return assigned

    def _spread(self, segment: Segment) -> Iterator[_Window]:
        """Yields the windows of a segment."""
        stretches = segment.count(self.fps) // self._min_frames
        count = 1 if self._random_window else min(_WINDOWS, stretches)
        for number in range(count):
            yield _Window(segment, number, count)

    def _start_steps(self, segment: Segment, num_frames: int) -> int:
        """How many steps after the first frame a window of `num_frames` may start."""
        if segment.count(self.fps) < num_frames:
            reason = self._too_short(segment.path, [segment], num_frames)
            raise UserError(f"{reason}, or pass min_frames={num_frames} to skip it")
        slack = segment.last - segment.first - (num_frames - 1) / self.fps
        return max(int(slack * self._step_rate(segment) + 1e-6), 0)

    def _step_rate(self, segment: Segment) -> float:
        """Starts of windows per second.

        Windows start at frames of the file (or finer, 1 / fps apart): from halfway between two
        frames, rounding could take one twice and leave out the next.
        """
        return max(segment.rate, self.fps)

    def _too_short(self, path: Path, shots: Sequence[Segment], asked: int | None = None) -> str:
        count = max((shot.count(self.fps) for shot in shots), default=0)
        if self._pictures:
            return (
                f"{path}: a picture is one frame, {asked or self._min_frames} asked; only a stage "
                "with num_frames=1 takes pictures"
            )
        split = shots[0].split if shots else self.split
        where = f" in its {split} part" if split else ""
        if len(shots) > 1:
            where = f" in the longest of {len(shots)} shots{where}"
        return (
            f"{path}: {count} frames at {self.fps:g} fps{where}, {asked or self._min_frames} asked;"
            " ask for shorter clips, a higher fps, another holdout"
        )

    def _frames(
        self, segment: Segment, times: list[float], height: int, width: int
    ) -> UInt8[np.ndarray, "F h w 3"]:
        """The frames nearest to `times`, scaled to cover height x width."""
        key = FrameKey(segment.path, segment.first, height, width)
        kept = self._cache.get(key)
        if kept is not None:
            return np.stack(nearest(kept, times))
        if self._pictures:
            picture = _read_scaled(segment, height, width)
            self._cache.put(key, [(segment.first, picture)])
            return picture[None]
        rows, columns = cover_size(segment.rows, segment.columns, height, width)
        size = segment.frames * rows * columns * 3
        if segment.frames <= _MOST_KEPT_FRAMES and self._cache.fits(size):
            try:
                kept = _decode_whole(segment, height, width)
                self._cache.put(key, kept)
                return np.stack(nearest(kept, times))
            except UserError:
                # Whether a window can be read must not depend on what the cache holds, which is
                # something else after a resume: damage outside of the window does not count.
                pass
        timed = frames_between(segment.path, segment.first, segment.last, start=times[0])
        picked = np.stack([_as_inspected(frame, segment) for frame in nearest(timed, times)])
        return resize_cover(picked, height, width)


def video_files(folder: Path) -> list[Path]:
    """The video files under a folder and the folders linked in it, sorted.

    Raises:
        FileNotFoundError: the folder is missing or has no videos.
        NotADirectoryError: it is a file.
    """
    return _media_files(folder, "video", EXTENSIONS)


def picture_files(folder: Path) -> list[Path]:
    """The pictures under a folder, as `video_files`."""
    return _media_files(folder, "picture", PICTURES)


def holds_only_pictures(folder: Path) -> bool:
    """Whether there are pictures under a folder, and no videos."""
    endings = {path.suffix.lower() for path in _walk(folder)} if folder.is_dir() else set()
    return not endings.isdisjoint(PICTURES) and endings.isdisjoint(EXTENSIONS)


def _media_files(folder: Path, kind: str, endings: Sequence[str]) -> list[Path]:
    if not folder.exists():
        raise FileNotFoundError(f"{kind} folder {folder} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: name the folder that holds it")
    files = sorted(
        path for path in _walk(folder) if path.suffix.lower() in endings and path.is_file()
    )
    if not files:
        raise FileNotFoundError(f"no {kind}s under {folder}: looked for *{', *'.join(endings)}")
    return files


def _walk(folder: Path) -> Iterator[Path]:
    """Yields the files under a folder and the folders linked in it; no folder is entered twice."""
    entered: set[str] = set()
    waiting = [folder]
    while waiting:
        # Linked folders come after all real ones, which keep their names if they are met twice.
        start = waiting.pop(0)
        if os.path.realpath(start) in entered:
            warn_once("%s links to a folder that is read already: not entered", start)
            continue
        for name, folders, files in os.walk(start, onerror=_say_unreadable):
            place = Path(name)
            entered.add(os.path.realpath(place))
            yield from (place / file for file in files)
            below = [place / each for each in sorted(folders)]
            waiting += [each for each in below if each.is_symlink()]
            folders[:] = [each.name for each in below if os.path.realpath(each) not in entered]


def _say_unreadable(error: OSError) -> None:
    warn_once("%s cannot be looked into (%s)", error.filename, error.strerror)


def _decode_whole(segment: Segment, height: int, width: int) -> list[tuple[float, np.ndarray]]:
    """All frames of a segment with their times, scaled to cover height x width."""
    frames = []
    for time, frame in frames_between(
        segment.path, segment.first, segment.last, start=segment.first
    ):
        pixels = _as_inspected(frame, segment)
        frames.append((time, resize_cover(pixels[None], height, width)[0]))
    return frames


def _read_scaled(segment: Segment, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """A picture, scaled to cover height x width."""
    pixels = np.array(read_picture(segment.path).convert("RGB"))
    return resize_cover(pixels[None], height, width)[0]


def _as_inspected(picture: Picture, segment: Segment) -> np.ndarray:
    """The frame as RGB; a UserError unless it has the size that the file was inspected with."""
    pixels = to_rgb(picture)
    if pixels.shape[:2] != (segment.rows, segment.columns):
        raise UserError(
            f"{segment.path}: frames change their size from {segment.columns}x{segment.rows} to "
            f"{pixels.shape[1]}x{pixels.shape[0]}; re-encode or remove it"
        )
    return pixels


def _report_cuts(videos: Sequence[SplitVideo]) -> None:
    cuts = sum(len(video.whole) - 1 for video in videos)
    with_cuts = sum(len(video.whole) > 1 for video in videos)
    log.info(
        "cuts: %d, in %d of %d videos; each shot is a clip of its own",
        cuts,
        with_cuts,
        len(videos),
    )


def _report_notes(notes: Sequence[tuple[str, Path]], total: int) -> None:
    """One warning for each kind of note, with the number of files and the first of them."""
    for note in sorted({note for note, _ in notes}):
        paths = sorted(path for other, path in notes if other == note)
        warn_once("%d of %d videos, such as %s: %s", len(paths), total, paths[0], note)


def _check_holdout(holdout: float, split: str) -> None:
    if not 0 <= holdout < 1 or (split == "test" and holdout == 0):
        raise UserError(
            f'holdout must lie in [0, 1), and be above 0 for split "test", got {holdout}.'
        )


def _list_of_unusable(folder: Path, skipped: Iterable[tuple[Path, str]], total: int) -> str:
    reasons = [reason for _, reason in skipped]
    if len(reasons) < total:
        way_out = "repair or remove them, or pass skip_broken=True"
    else:
        way_out = "none is left"
    lines = [f"{len(reasons)} of {total} videos under {folder} cannot be used ({way_out}):"]
    lines += [f"  {reason}" for reason in reasons[:_SHOWN_REASONS]]
    if len(reasons) > _SHOWN_REASONS:
        lines.append(f"  and {len(reasons) - _SHOWN_REASONS} more")
    return "\n".join(lines)

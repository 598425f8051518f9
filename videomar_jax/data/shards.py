"""A folder of prepared clips as a source: latents, and the text features that were made with them.

    DIR/manifest.json                              what is there; written last
    DIR/clips-SPLIT.array_record-00003-of-00012    the clips of one shape (`records`)
    DIR/dataset_info.json, features.json           the same files as a TFDS dataset
    DIR/model/tokenizer, model/text_encoder        what made the latents and the features

A clip is stored at one size and length. It is read at that size, and at its own length or a shorter
one: tokenizers are causal in time, so the latents of its first frames are the first of its latents.

Features of padding are not stored and are read as zeros; whatever honours the mask ignores them.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from array_record.python import array_record_module

from videomar_jax.checks import (
    BelowOne,
    Count,
    Natural,
    Positive,
    Size,
    UserError,
    from_values,
    one_of,
)
from videomar_jax.data.records import PreparedClip, from_record
from videomar_jax.data.sources import (
    Clip,
    ClipShape,
    Sizes,
    SourceKind,
    check_index,
    short_digest,
)
from videomar_jax.io.files import read_json, sha256, take_digest
from videomar_jax.io.paths import user_path
from videomar_jax.types import Int

FORMAT = "videomar_jax prepared clips"
VERSION = 1
MANIFEST = "manifest.json"
SPLITS = ("train", "test", "all")
# Clips are read in random order, one by one: reading ahead within a file would be in vain.
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_BUFFER_BYTES = 2**15
_MOST_OPEN = 64


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of the manifest, with clips of one shape."""

    file: str
    split: Literal["train", "test"]
    num_frames: Size
    height: Size
    width: Size
    clips: Natural
    bytes: Natural
    sha256: str

    def holds(self, shape: ClipShape) -> bool:
        """Whether clips of this shape can be read from the file."""
        same_size = (self.height, self.width) == (shape.height, shape.width)
        return same_size and self.num_frames >= shape.num_frames


@dataclass(frozen=True, kw_only=True)
class TokenizerEntry:
    """What the manifest says of the tokenizer that made the latents."""

    temporal_stride: Size
    kind: str = ""
    spatial_stride: Size | None = None
    channels: Size | None = None
    scale: Positive | Count = 1.0
    fingerprint: str = ""


@dataclass(frozen=True, kw_only=True)
class TextEntry:
    """What the manifest says of the text encoder that made the features."""

    kind: str
    max_tokens: Size
    width: Size
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ClipCounts:
    """The clips of each split."""

    train: Natural
    test: Natural


@dataclass(frozen=True, kw_only=True)
class ShapeEntry:
    """What the manifest says of one shape of clips."""

    num_frames: Size
    height: Size
    width: Size
    latents: tuple[Size, Size, Size, Size]
    clips: ClipCounts


@dataclass(frozen=True, kw_only=True)
class PlanEntry:
    """What the manifest says of how the clips were cut."""

    windows_per_clip: Natural
    holdout: BelowOne | Literal[0]
    clips_per_shard: Count


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """manifest.json. What no reader needs may be missing."""

    format: str
    version: int
    fps: Positive | Count
    dtype: Literal["float16", "bfloat16"]
    shards: tuple[Shard, ...]
    tokenizer: TokenizerEntry
    text_encoder: TextEntry | None = None
    clips: Natural | None = None
    rejected: Natural = 0
    bytes: Natural | None = None
    settings: PlanEntry | None = None
    shapes: tuple[ShapeEntry, ...] | None = None

    def check(self) -> None:
        """Raises a UserError unless its entries agree with each other."""
        files = [shard.file for shard in self.shards]
        for file in files:
            if Path(file).name != file or file in ("", ".", ".."):
                raise UserError(f"it names {file!r}, which is no file beside it")
        if len(set(files)) < len(files):
            raise UserError("it names a file twice")
        for shard in self.shards:
            if not re.fullmatch("[0-9a-f]{64}", shard.sha256):
                raise UserError(f"the sha256 of {shard.file} is none: {shard.sha256!r}")
            if (shard.num_frames - 1) % self.tokenizer.temporal_stride:
                raise UserError(
                    f"clips of {shard.num_frames} frames do not fit the temporal stride "
                    f"{self.tokenizer.temporal_stride}"
                )
        for name in ("clips", "bytes"):
            total = sum(getattr(shard, name) for shard in self.shards)
            if getattr(self, name) not in (None, total):
                raise UserError(f"{name} is {getattr(self, name)}, but its files hold {total}")
        for shape in self.shapes or ():
            self._check_shape(shape)

    def _check_shape(self, shape: ShapeEntry) -> None:
        sizes = (shape.num_frames, shape.height, shape.width)
        for split in ("train", "test"):
            total = 0
            for shard in self.shards:
                if (shard.num_frames, shard.height, shard.width) == sizes and shard.split == split:
                    total += shard.clips
            if getattr(shape.clips, split) != total:
                raise UserError(
                    f"{getattr(shape.clips, split)} clips of {sizes} are for {split}, but its "
                    f"files hold {total}"
                )
        tokenizer = self.tokenizer
        stride = tokenizer.spatial_stride or shape.height // shape.latents[1]
        grid = (
            1 + (shape.num_frames - 1) // tokenizer.temporal_stride,
            shape.height // stride,
            shape.width // stride,
            tokenizer.channels or shape.latents[3],
        )
        if grid != shape.latents:
            raise UserError(f"clips of {sizes} have latents {grid}, not {shape.latents}")


class LatentShards:
    """The clips of a prepared folder, in the order of its manifest.

    Args:
        path: the folder.
        split: "train", "test" (the windows that `prepare` held out), or "all".
        verify: reads every file once and compares its checksum. Existence and size of the files are
            checked in any case.

    Raises:
        FileNotFoundError: the folder does not exist, is not complete, or lacks a file.
        UserError: a file is not as the manifest says, or the split has no clips.
    """

    KIND: ClassVar[SourceKind] = SourceKind(
        name="shards",
        description="a folder of prepared clips",
        place="the folder of prepared clips",
        place_form="DIR",
        prepared=True,
        any_shape=False,
    )

    def __init__(
        self,
        path: str | Path,
        *,
        split: Literal["train", "test", "all"] = "all",
        verify: bool = False,
    ):
        one_of("split", split, SPLITS)
        self.path = user_path(path)
        self.manifest = read_manifest(self.path)
        self.fps = float(self.manifest["fps"])
        self.split = split
        shards = [Shard(**shard) for shard in self.manifest["shards"]]
        for shard in shards:
            _check_file(self.path, shard, verify)
        self._shards = [shard for shard in shards if shard.clips and split in (shard.split, "all")]
        if not self._shards:
            raise UserError(
                f"{self.path} holds no clips of the split {split!r}: prepare it with another "
                "--holdout."
            )
        # Clip number i is in the first shard whose end is above i.
        self._ends = np.cumsum([shard.clips for shard in self._shards])
        self._stride = int(self.manifest["tokenizer"]["temporal_stride"])
        self._readers = _Readers(self.path)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def fits(self, shape: ClipShape, sizes: Sizes = ()) -> Int[np.ndarray, "clips"]:
        """Ascending indices of the clips that are stored at the shape's size and are long enough.

        `sizes` have no effect, since a stored clip has one size only.
        """
        fit = [shard.holds(shape) for shard in self._shards]
        return np.flatnonzero(np.repeat(fit, [shard.clips for shard in self._shards]))

    def read(self, index: int, rng: np.random.Generator | None, shape: ClipShape) -> Clip:
        """The latents [T, h, w, C] (float32) and the caption of a clip; nothing is random.

        Where features were stored, also text [K, E] (float32) and text_mask [K].

        Raises:
            UserError: the clip is stored at another size, is too short, or is damaged.
        """
        shard, clip = self._clip(index)
        stored = (
            f"{self.path}: clip {index} is stored as {shard.num_frames} frames at "
            f"{shard.height}x{shard.width}"
        )
        if not shard.holds(shape):
            raise UserError(
                f"{stored}, but {shape.num_frames} at {shape.height}x{shape.width} are asked for: "
                "choose a size that is there, or prepare the videos again."
            )
        strides, rest = divmod(shape.num_frames - 1, self._stride)
        if rest:
            raise UserError(f"{stored}; {shape.num_frames} frames are not 1 + {self._stride} * k.")
        latents = clip.latents[: 1 + strides].astype(np.float32)
        return Clip(latents=latents, caption=clip.caption, **_text(clip))

    def digest(self) -> str:
        """Of the files of this split: their names, clips and checksums, from the manifest."""
        files = [(shard.file, shard.clips, shard.sha256) for shard in self._shards]
        return short_digest("shards", self.split, self.fps, files)

    def name(self, index: int) -> str:
        """The video that clip number `index` is cut from, without folder and ending.

        Bytes that are not UTF-8 become the replacement character, so reports can be written.
        """
        _, clip = self._clip(index)
        return Path(clip.file).stem.encode(errors="surrogateescape").decode(errors="replace")

    def describe(self, index: int) -> dict[str, Any]:
        """Where a clip comes from.

        Its file, start (s), fps, clip (its number in the plan) and caption, and the split and shard
        (file of records) that it is in.
        """
        shard, clip = self._clip(index)
        return {
            "file": clip.file,
            "start": clip.start,
            "fps": clip.fps,
            "clip": clip.clip,
            "caption": clip.caption,
            "split": shard.split,
            "shard": shard.file,
        }

    def _clip(self, index: int) -> tuple[Shard, PreparedClip]:
        check_index(index, len(self))
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard = self._shards[number]
        position = int(index - self._ends[number] + shard.clips)
        try:
            record = self._readers.read(shard, position)
            return shard, from_record(record, self.manifest["dtype"])
        except ValueError as error:
            raise UserError(
                f"{self.path / shard.file}: clip {position} cannot be read ({error}); remove this "
                "file and the .json beside it and run the same prepare command again."
            ) from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete folder.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is damaged, or of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / "plan.json").exists():
            reason = " yet: run the same prepare command again until it says that all is complete"
        else:
            reason = ": give a folder that `prepare` wrote"
        raise FileNotFoundError(f"{folder} holds no {MANIFEST}{reason}.")
    try:
        manifest = read_json(path)
        if not take_digest(manifest):
            raise ValueError("its SHA-256 differs from what it says")
        kind, version = manifest["format"], manifest["version"]
        if kind == FORMAT and version == VERSION:
            from_values("", Manifest, manifest).check()
            _check_against_plan(folder, manifest)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({error}): run the same prepare command again."
        ) from error
    if kind != FORMAT or type(version) is not int or version != VERSION:
        raise UserError(
            f"{path} is {kind!r}, version {version}; this code reads {FORMAT!r}, version {VERSION}."
        )
    return manifest


def _check_against_plan(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Compares with the plan beside it: a manifest of earlier versions has no digest.

    Raises:
        UserError: the two disagree about the type of the latents or their frames per second.
    """
    plan = folder / "plan.json"
    if not plan.is_file():
        return
    settings = read_json(plan)["settings"]
    for name, planned in (("dtype", settings["dtype"]), ("fps", settings["cutting"]["fps"])):
        if manifest[name] != planned:
            raise UserError(f"{name} is {manifest[name]!r}, but {planned!r} in {plan.name}")


def _check_file(folder: Path, shard: Shard, verify: bool) -> None:
    path = folder / shard.file
    way_out = "copy it again, or remove it and run the same prepare command again."
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, which {MANIFEST} names: {way_out}")
    size = path.stat().st_size
    if size != shard.bytes:
        raise UserError(f"{path} has {size} bytes, {shard.bytes} in {MANIFEST}: {way_out}")
    if verify and sha256(path) != shard.sha256:
        raise UserError(f"{path} has another SHA-256 than {MANIFEST} says: {way_out}")


def _text(clip: PreparedClip) -> Mapping[str, np.ndarray]:
    """Features [K, E], zero where padded, and their mask; empty without stored features."""
    if clip.text is None or clip.text_mask is None:
        return {}
    text = np.zeros((len(clip.text_mask), clip.text.shape[1]), np.float32)
    text[clip.text_mask] = clip.text
    return {"text": text, "text_mask": clip.text_mask}


class _Readers:
    """Open files; the one that was unused for longest is closed first.

    A reader serves any number of threads at a time.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Any] = OrderedDict()

    def read(self, shard: Shard, position: int) -> bytes:
        """One record of a file. Raises a ValueError where it cannot be read."""
        try:
            return self._reader(shard).read([position])[0]
        except (RuntimeError, IndexError) as error:
            raise ValueError(str(error)) from error

    def _reader(self, shard: Shard) -> Any:
        with self._lock:
            if shard.file not in self._open:
                self._open[shard.file] = self._opened(shard)
                if len(self._open) > _MOST_OPEN:
                    # The file is closed when the last thread that reads from it is done.
                    self._open.popitem(last=False)
            self._open.move_to_end(shard.file)
            return self._open[shard.file]

    def _opened(self, shard: Shard) -> Any:
        path = self._folder / shard.file
        reader = array_record_module.ArrayRecordReader(
            str(path), _OPTIONS, file_reader_buffer_size=_BUFFER_BYTES
        )
        # The reader takes a missing file for an empty one.
        if not path.is_file():
            raise ValueError("the file is gone")
        found = reader.num_records()
        if found != shard.clips:
            raise ValueError(f"the file holds {found} clips, {shard.clips} in {MANIFEST}")
        return reader

    def __reduce__(self):
        # Neither locks nor open files can be pickled for another process.
        return _Readers, (self._folder,)

"""A folder of prepared clips as a source: latents, and the text features that were made with them.

    DIR/manifest.json                                   what is there; written last
    DIR/clips-SPLIT.array_record-00003-of-00012         the clips of one shape (`records`)
    DIR/dataset_info.json, features.json                the same files as a TFDS dataset
    DIR/model/tokenizer, model/text_encoder             what made the latents and the features

A clip is stored at one size and length. It is read at that size, at its own length or a shorter
    one: tokenizers are
causal in time, so that the latents of its first frames are the first of its latents.

Features of padding are not stored and read as zeros; nothing that honours the mask can tell.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from array_record.python import array_record_module

from videomar_jax.data.records import DTYPES, PreparedClip, from_record
from videomar_jax.data.sources import Clip, ClipShape, Sizes, check_index, short_digest
from videomar_jax.io.files import sha256
from videomar_jax.types import Int

FORMAT, VERSION = "videomar_jax prepared clips", 1
MANIFEST = "manifest.json"
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_MOST_OPEN = 64


class Shard(NamedTuple):
    """One file of the manifest."""

    file: str
    split: str
    num_frames: int
    height: int
    width: int
    clips: int
    bytes: int
    sha256: str


class LatentShards:
    """The clips of a prepared folder, in the order of its manifest.

    split: "train", "test" (the windows that `prepare` held out), or "all".
    verify: reads every file once and compares its checksum; existence and size are always looked
        at.

    Raises FileNotFoundError for a folder that is none, is not complete or lacks a file; ValueError
    for a file that is not as the manifest says, and for a split without clips.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        split: Literal["train", "test", "all"] = "all",
        verify: bool = False,
    ):
        if split not in ("train", "test", "all"):
            raise ValueError(f"split must be train, test or all, not {split!r}")
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self.fps = float(self.manifest["fps"])
        self.split = split
        shards = [Shard(**shard) for shard in self.manifest["shards"]]
        for shard in shards:
            _check_file(self.path, shard, verify)
        self._shards = [shard for shard in shards if shard.clips and split in (shard.split, "all")]
        if not self._shards:
            raise ValueError(
                f"{self.path} holds no clips of the split {split!r}: prepare it with another --holdout"
            )
        self._ends = np.cumsum([shard.clips for shard in self._shards])
        self._stride = int(self.manifest["tokenizer"]["temporal_stride"])
        self._readers = _Readers(self.path)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def fits(self, shape: ClipShape, sizes: Sizes = ()) -> Int[np.ndarray, "clips"]:
        """Ascending indices of the clips that are stored at the shape's size and at least as long;
        `sizes` change nothing, as a stored clip has one size only."""
        fit = [
            (shard.height, shard.width) == (shape.height, shape.width)
            and shard.num_frames >= shape.num_frames
            for shard in self._shards
        ]
        return np.flatnonzero(np.repeat(fit, [shard.clips for shard in self._shards]))

    def read(self, index: int, rng: np.random.Generator | None, shape: ClipShape) -> Clip:
        """The latents [T, h, w, C] (float32), caption, and where they were made text [K, E] and
        text_mask [K].

        Nothing is random. Raises ValueError for a clip of another size or a shorter one, and for
        damage.
        """
        shard, clip = self._clip(index)
        stored = f"{self.path}: clip {index} is stored as {shard.num_frames} frames at {shard.height}x{shard.width}"
        if (shard.height, shard.width) != (
            shape.height,
            shape.width,
        ) or shard.num_frames < shape.num_frames:
            asked = f"{shape.num_frames} at {shape.height}x{shape.width}"
            raise ValueError(
                f"{stored}, {asked} asked; choose what is there, or prepare the videos again"
            )
        if (shape.num_frames - 1) % self._stride:
            raise ValueError(f"{stored}; {shape.num_frames} frames are not 1 + {self._stride} * k")
        frames = 1 + (shape.num_frames - 1) // self._stride
        return Clip(
            latents=clip.latents[:frames].astype(np.float32), caption=clip.caption, **_text(clip)
        )

    def digest(self) -> str:
        """Of the files of this split: their names, and the checksums that the manifest has of
        them."""
        files = [(shard.file, shard.clips, shard.sha256) for shard in self._shards]
        return short_digest("shards", self.split, self.fps, files)

    def name(self, index: int) -> str:
        """The video, without folder and ending, that clip number `index` is cut from."""
        return Path(self._clip(index)[1].file).stem

    def describe(self, index: int) -> dict[str, Any]:
        """Where a clip comes from: file, start (s), fps, clip (number in the plan), caption, split,
        file of records."""
        shard, clip = self._clip(index)
        names = ("file", "start", "fps", "clip", "caption")
        return {name: getattr(clip, name) for name in names} | {
            "split": shard.split,
            "shard": shard.file,
        }

    def _clip(self, index: int) -> tuple[Shard, PreparedClip]:
        check_index(index, len(self))
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard = self._shards[number]
        position = int(index - self._ends[number] + shard.clips)
        try:
            return shard, from_record(self._readers.read(shard, position), self.manifest["dtype"])
        except ValueError as error:
            raise ValueError(
                f"{self.path / shard.file}: clip {position} cannot be read ({error}); remove this file and the .json "
                f"beside it and run the same prepare command again"
            ) from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete folder.

    Raises FileNotFoundError where there is none, ValueError for one that is damaged or of another
    version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        begun = " yet: run the same prepare command again until it says that all is complete"
        reason = (
            begun if (folder / "plan.json").exists() else ": give a folder that `prepare` wrote"
        )
        raise FileNotFoundError(f"{folder} holds no {MANIFEST}{reason}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        kind, version = manifest["format"], manifest["version"]
        known = kind == FORMAT and manifest["dtype"] in DTYPES and manifest["fps"] > 0
        _ = (
            [Shard(**shard) for shard in manifest["shards"]],
            manifest["tokenizer"]["temporal_stride"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}): run the same prepare command again"
        ) from error
    if not known or version != VERSION:
        raise ValueError(
            f"{path} is {kind!r}, version {version}; this code reads {FORMAT!r}, version {VERSION}"
        )
    return manifest


def _check_file(folder: Path, shard: Shard, verify: bool) -> None:
    path = folder / shard.file
    way_out = "copy it again, or remove it and run the same prepare command again"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, which {MANIFEST} names: {way_out}")
    if (size := path.stat().st_size) != shard.bytes:
        raise ValueError(f"{path} has {size} bytes, {shard.bytes} in {MANIFEST}: {way_out}")
    if verify and sha256(path) != shard.sha256:
        raise ValueError(f"{path} has another SHA-256 than {MANIFEST} says: {way_out}")


def _text(clip: PreparedClip) -> Mapping[str, np.ndarray]:
    """Features [K, E], zero where padded, and their mask; nothing where the record holds captions
    only."""
    if clip.text is None or clip.text_mask is None:
        return {}
    text = np.zeros((len(clip.text_mask), clip.text.shape[1]), np.float32)
    text[clip.text_mask] = clip.text
    return {"text": text, "text_mask": clip.text_mask}


class _Readers:
    """Open files, the longest unused closed first. A reader serves any number of threads at a
    time."""

    def __init__(self, folder: Path):
        self._folder, self._lock = folder, threading.Lock()
        self._open: OrderedDict[str, Any] = OrderedDict()

    def read(self, shard: Shard, position: int) -> bytes:
        try:
            return self._reader(shard).read([position])[0]
        except (RuntimeError, IndexError) as error:
            raise ValueError(str(error)) from error

    def _reader(self, shard: Shard) -> Any:
        with self._lock:
            if shard.file not in self._open:
                path = self._folder / shard.file
                reader = array_record_module.ArrayRecordReader(
                    str(path), _OPTIONS, file_reader_buffer_size=2**15
                )
                if not path.is_file():
                    raise ValueError("the file is gone")
                if (found := reader.num_records()) != shard.clips:
                    raise ValueError(f"the file holds {found} clips, {shard.clips} in {MANIFEST}")
                self._open[shard.file] = reader
                if len(self._open) > _MOST_OPEN:
                    self._open.popitem(
                        last=False
                    )  # closed when the last thread that reads from it is done
            self._open.move_to_end(shard.file)
            return self._open[shard.file]

    def __reduce__(self):
        return _Readers, (self._folder,)

"""One prepared clip as a record, and files of records.

A record is a tf.train.Example (`examples`) with

    latents/value, latents/shape    [T, h, w, C] in the folder's dtype, little endian
    text                            features of the tokens where the mask is True [n, E]
    text_mask                       the mask, K bytes of 0 or 1
    caption, file                   UTF-8; the file is relative to the folder of videos
    start, fps                      seconds into the file of the first frame; frames per second
    num_frames, height, width       of the clip in pixels
    clip                            its number in the plan of the folder

`text` and `text_mask` are missing where only captions were kept.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from array_record.python import array_record_module

from videomar_jax.data.examples import decode, encode
from videomar_jax.data.sources import ClipShape
from videomar_jax.io.files import replacing, sha256
from videomar_jax.types import Bool, Float

DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
# Every record can then be read without decompressing others.
_OPTIONS = "group_size:1,zstd:1"


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedClip:
    """What a record holds. `text` and `text_mask` are both given or both None."""

    latents: Float[np.ndarray, "T h w C"]
    text: Float[np.ndarray, "n E"] | None
    """Features of the tokens where `text_mask` is True."""
    text_mask: Bool[np.ndarray, "K"] | None
    caption: str
    file: str
    """The video, relative to its folder."""
    start: float
    """Seconds into the file of the first frame."""
    fps: float
    """Frames per second of the clip."""
    shape: ClipShape
    """Of the clip in pixels."""
    clip: int
    """Its number in the plan of the folder."""


def to_record(clip: PreparedClip) -> bytes:
    """The record of a clip; arrays keep their dtype."""
    features = {
        "latents/value": clip.latents.tobytes(),
        "latents/shape": clip.latents.shape,
        "clip": clip.clip,
        "caption": clip.caption.encode(errors="replace"),
        "file": clip.file.encode(errors="surrogateescape"),
        "start": float(clip.start),
        "fps": float(clip.fps),
        "num_frames": clip.shape.num_frames,
        "height": clip.shape.height,
        "width": clip.shape.width,
    }
    if clip.text is not None and clip.text_mask is not None:
        features |= {"text": clip.text.tobytes(), "text_mask": clip.text_mask.tobytes()}
    return encode(features)


def from_record(record: bytes, dtype: str) -> PreparedClip:
    """The clip of a record; its arrays are views of the record.

    Args:
        dtype: of the arrays, a key of `DTYPES`.
    Raises:
        ValueError: the bytes are not the record of a clip.
    """
    found = decode(record)
    kind = DTYPES[dtype]
    text = mask = None
    try:
        if "text_mask" in found:
            mask = np.frombuffer(found["text_mask"], bool)
            text = np.frombuffer(found["text"], kind).reshape(mask.sum(), -1)
        shape = {name: int(found[name][0]) for name in ("num_frames", "height", "width")}
        return PreparedClip(
            latents=np.frombuffer(found["latents/value"], kind).reshape(found["latents/shape"]),
            text=text,
            text_mask=mask,
            caption=bytes(found["caption"]).decode(),
            clip=int(found["clip"][0]),
            file=bytes(found["file"]).decode(errors="surrogateescape"),
            start=float(found["start"][0]),
            fps=float(found["fps"][0]),
            shape=ClipShape(**shape),
        )
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"not the record of a clip ({error!r})") from error


def write_records(path: Path, records: Iterable[bytes]) -> dict[str, Any]:
    """Writes an ArrayRecord file in one move and returns its "clips", "bytes" and "sha256".

    Raises:
        OSError: the file cannot be written. Whatever is raised, an older file is left as it was.
    """
    with replacing(path) as part:
        count = 0
        writer = _naming(path, array_record_module.ArrayRecordWriter, str(part), _OPTIONS)
        try:
            for record in records:
                _naming(path, writer.write, record)
                count += 1
        finally:
            _naming(path, writer.close)
        # The writer does not report every failed write itself.
        written = count_records(part)
        if written != count:
            raise OSError(
                f"cannot write {path}: {written} of {count} clips arrived; is the disk full?"
            )
        return {"clips": count, "bytes": part.stat().st_size, "sha256": sha256(part)}


def count_records(path: Path) -> int:
    """How many records a file holds; 0 for one that is cut off.

    Raises:
        OSError: the file cannot be read.
    """
    reader = _naming(path, array_record_module.ArrayRecordReader, str(path))
    try:
        return _naming(path, reader.num_records)
    finally:
        reader.close()


def _naming(path: Path, call: Callable, *args: Any) -> Any:
    """`call(*args)`; errors of the library become an OSError that names the file."""
    try:
        return call(*args)
    except RuntimeError as error:
        raise OSError(f"{path}: {error}") from error

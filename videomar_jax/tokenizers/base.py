"""What a video tokenizer is, and what all of them share: grids, pixel scaling, files.

A tokenizer maps pixels in [-1, 1] to continuous latents of about unit variance and back. It is
causal in time:

    latent frame 0            sees pixel frame 0 alone (so a single image is a one-frame video),
    latent frame t >= 1       sees no pixel frame after t * temporal_stride.

Hence F = 1 + temporal_stride * (T - 1) pixel frames, and (Hp, Wp) = spatial_stride * (h, w).

Implementations are registered pytrees (arrays as leaves, settings static), so they are passed to
`jax.jit` as arguments. One that can be saved also has `kind` and `version` (class attributes),
`state() -> (settings, arrays)` and the class method `from_state(settings, arrays)`; the decorator
`register` makes `load_tokenizer` find it. A saved tokenizer is a directory with `tokenizer.json`
(kind, version, settings, digest) beside `tokenizer.npz` (the arrays).
"""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp
import numpy as np

from videomar_jax.types import Array, Float, Latents, Pixels, UInt8

HEADER_FILE, ARRAYS_FILE = "tokenizer.json", "tokenizer.npz"
TOKENIZERS: dict[str, type] = {}
"""Classes by the `kind` in their header; filled by `register`."""

_Class = TypeVar("_Class", bound=type)


@runtime_checkable
class Tokenizer(Protocol):
    """Video to latents and back; both directions are jittable and causal in time."""

    temporal_stride: int
    spatial_stride: int
    channels: int

    def encode(self, pixels: Pixels) -> Latents: ...

    def decode(self, latents: Latents) -> Pixels: ...

    def decode_stream(self, latents: Iterable[Latents], *, max_frames: int) -> Iterator[Pixels]:
        """Pixels of latents that arrive in pieces of one frame or more; together they make `decode`
        of the whole."""
        ...

    def save(self, directory: str | os.PathLike) -> None: ...


# Grids


def grid_shape(
    num_frames: int, height: int, width: int, *, temporal_stride: int, spatial_stride: int
) -> tuple[int, int, int]:
    """(T, h, w) of a clip. Raises ValueError naming every size that the strides do not divide."""
    faults = []
    if num_frames < 1 or (num_frames - 1) % temporal_stride:
        lower = 1 + max(num_frames - 1, 0) // temporal_stride * temporal_stride
        nearest = "1" if num_frames < 1 else f"{lower} or {lower + temporal_stride}"
        faults.append(
            f"{num_frames} frames are not 1 + {temporal_stride} * k (temporal stride); nearest: {nearest}"
        )
    for name, size in (("height", height), ("width", width)):
        if size < 1 or size % spatial_stride:
            lower = max(size, 0) // spatial_stride * spatial_stride
            nearest = f"{lower} or {lower + spatial_stride}" if lower else f"{spatial_stride}"
            faults.append(
                f"{name} {size} is not a multiple of the spatial stride {spatial_stride}; nearest: {nearest}"
            )
    if faults:
        raise ValueError("; ".join(faults))
    return (
        1 + (num_frames - 1) // temporal_stride,
        height // spatial_stride,
        width // spatial_stride,
    )


def latent_shape(
    tokenizer: Tokenizer, num_frames: int, height: int, width: int
) -> tuple[int, int, int]:
    """(T, h, w) of the latents of a clip of `num_frames` x `height` x `width`.

    Raises ValueError if num_frames is not 1 + temporal_stride * k or the spatial stride does not
    divide the resolution.
    """
    strides = {
        "temporal_stride": tokenizer.temporal_stride,
        "spatial_stride": tokenizer.spatial_stride,
    }
    return grid_shape(num_frames, height, width, **strides)


def pixel_frames(tokenizer: Tokenizer, latent_frames: int) -> int:
    """The number of pixel frames F that `latent_frames` T decode to."""
    if latent_frames < 1:
        raise ValueError(f"{latent_frames} latent frames: a video has at least one")
    return 1 + tokenizer.temporal_stride * (latent_frames - 1)


# Pixels


def to_pixels(
    video: UInt8[Array | np.ndarray, "*frames Hp Wp 3"],
) -> Float[Array, "*frames Hp Wp 3"]:
    """Grey levels 0..255 to float32 in [-1, 1]."""
    return jnp.asarray(video).astype(jnp.float32) / 127.5 - 1.0


def to_video(
    pixels: Float[Array | np.ndarray, "*frames Hp Wp 3"],
) -> UInt8[Array, "*frames Hp Wp 3"]:
    """Pixels in [-1, 1] to the nearest grey level; what lies outside is clipped."""
    levels = (jnp.asarray(pixels).astype(jnp.float32) + 1.0) * 127.5
    return jnp.clip(jnp.round(levels), 0, 255).astype(jnp.uint8)


# Files


def register(cls: _Class) -> _Class:
    """Class decorator: `load_tokenizer` builds saved tokenizers of kind `cls.kind` with this
    class."""
    if TOKENIZERS.setdefault(cls.kind, cls) is not cls:
        raise ValueError(f"tokenizer kind {cls.kind!r} is taken by {TOKENIZERS[cls.kind].__name__}")
    return cls


def fingerprint(tokenizer: Tokenizer) -> str:
    """A hex digest of kind, settings and arrays: equal exactly for tokenizers that compute the same
    latents.

    Cached latents are only worth something with the tokenizer that made them; this is how a cache
    can tell.
    """
    return _digest(_header(tokenizer), tokenizer.state()[1])


def save_tokenizer(tokenizer: Tokenizer, directory: str | os.PathLike) -> None:
    """Write `tokenizer.json` and `tokenizer.npz` into `directory`, which is made if it is
    missing."""
    directory, header, arrays = Path(directory), _header(tokenizer), tokenizer.state()[1]
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ARRAYS_FILE, "wb") as file:
        np.savez(file, **arrays)
    text = json.dumps(header | {"sha256": _digest(header, arrays)}, indent=2)
    (directory / HEADER_FILE).write_text(text + "\n", encoding="utf-8")


def load_tokenizer(directory: str | os.PathLike) -> Tokenizer:
    """The tokenizer saved in `directory`, whatever its kind.

    Raises FileNotFoundError if a file is missing; ValueError if one is damaged, or of an unknown
    kind or version.
    """
    header = _read_header(Path(directory) / HEADER_FILE)
    arrays = _read_arrays(Path(directory) / ARRAYS_FILE)
    digest = header.pop("sha256")
    if digest != _digest(header, arrays):
        raise ValueError(
            f"{HEADER_FILE} and {ARRAYS_FILE} in {directory} do not belong together: save it again"
        )
    return TOKENIZERS[header["kind"]].from_state(header["settings"], arrays)


def _header(tokenizer: Tokenizer) -> dict[str, Any]:
    return {"kind": tokenizer.kind, "version": tokenizer.version, "settings": tokenizer.state()[0]}


def _digest(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _read_header(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path.name} in {path.parent}: expected a directory written by save_tokenizer"
        )
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        version, kind, _, _ = (
            header["version"],
            str(header["kind"]),
            header["settings"],
            header["sha256"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a tokenizer header ({error!r}): save the tokenizer again"
        ) from error
    if kind not in TOKENIZERS:
        raise ValueError(
            f"{path} is of unknown kind {kind!r}; known kinds: {', '.join(sorted(TOKENIZERS))}"
        )
    if version != (known := TOKENIZERS[kind].version):
        raise ValueError(
            f"{path} has format version {version}, this code reads {known} of kind {kind!r}"
        )
    return header


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent} has a {HEADER_FILE} but no {path.name}: copy both or save it again"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}): save the tokenizer again") from error

"""What a video tokenizer is, and what all of them share: grids, pixel scaling, files.

A tokenizer maps pixels in [-1, 1] to continuous latents of about unit variance and back. It is
causal in time:

    latent frame 0            depends on pixel frame 0 alone (a single image is a one-frame video),
    latent frame t >= 1       depends on no pixel frame after t * temporal_stride.

Hence F = 1 + temporal_stride * (T - 1) pixel frames, and (Hp, Wp) = spatial_stride * (h, w).

A new kind is a module with a class and one line in `TOKENIZERS`. The class is a registered pytree
(arrays as leaves, settings static), so that it is passed to `jax.jit` as an argument, and has

    kind, version                        class attributes: its name, and the version of its files
    encode, decode, decode_stream, save  as `Tokenizer` says
    state() -> (settings, arrays)        JSON values, and NumPy arrays by name
    from_state(settings, arrays)         class method: the inverse
    open(place, *, scale, dtype)         class method: from the second half of "kind:place"
    fit(clips, **settings)               class method of a kind that is fitted on a run's clips
    strides_of(place)                    class method of every other kind: (temporal, spatial)
                                         stride if the text of "place" tells them, else None
    latents_key()                        optional, see `same_latents`

A saved tokenizer is a folder with `tokenizer.json` (kind, version, settings, digest) beside
`tokenizer.npz` (the arrays).
"""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from videomar_jax.checks import UserError, not_finite
from videomar_jax.io.files import check_regular
from videomar_jax.io.registry import Registry
from videomar_jax.types import Array, Bool, Float, Latents, Pixels, UInt8

HEADER_FILE = "tokenizer.json"
ARRAYS_FILE = "tokenizer.npz"

TOKENIZERS = Registry(
    "tokenizer",
    {
        "pca": "videomar_jax.tokenizers.pca:PCATokenizer",
        "cosmos": "videomar_jax.tokenizers.cosmos.tokenizer:CosmosTokenizer",
    },
)
"""The kinds of tokenizers. `TOKENIZERS.register` adds a class from outside the package."""


@runtime_checkable
class Tokenizer(Protocol):
    """Video to latents and back; both directions are jittable and causal in time."""

    @property
    def temporal_stride(self) -> int: ...

    @property
    def spatial_stride(self) -> int: ...

    @property
    def channels(self) -> int: ...

    def encode(self, pixels: Pixels) -> Latents: ...

    def decode(self, latents: Latents) -> Pixels: ...

    def decode_stream(self, latents: Iterable[Latents], *, max_frames: int) -> Iterator[Pixels]:
        """Pixels of latents that arrive in pieces of one frame or more, piece by piece; joined
        together they equal `decode` of the whole."""
        ...

    def save(self, directory: str | os.PathLike) -> None: ...


# Grids


def grid_shape(
    num_frames: int, height: int, width: int, *, temporal_stride: int, spatial_stride: int
) -> tuple[int, int, int]:
    """The latent grid (T, h, w) of a clip.

    Raises:
        UserError: names every size that does not fit the strides, and the nearest that do.
    """
    faults = []
    if num_frames < 1 or (num_frames - 1) % temporal_stride:
        lower = 1 + max(num_frames - 1, 0) // temporal_stride * temporal_stride
        nearest = "1" if num_frames < 1 else f"{lower} or {lower + temporal_stride}"
        faults.append(
            f"{num_frames} frames are not 1 + {temporal_stride} * k (temporal stride); "
            f"nearest: {nearest}"
        )
    for name, size in (("height", height), ("width", width)):
        if size < 1 or size % spatial_stride:
            lower = max(size, 0) // spatial_stride * spatial_stride
            nearest = f"{lower} or {lower + spatial_stride}" if lower else f"{spatial_stride}"
            faults.append(
                f"{name} {size} is not a multiple of the spatial stride {spatial_stride}; "
                f"nearest: {nearest}"
            )
    if faults:
        raise UserError("; ".join(faults))
    latent_frames = 1 + (num_frames - 1) // temporal_stride
    return latent_frames, height // spatial_stride, width // spatial_stride


def latent_shape(
    tokenizer: Tokenizer, num_frames: int, height: int, width: int
) -> tuple[int, int, int]:
    """The grid (T, h, w) of the latents of a clip of `num_frames` x `height` x `width` pixels.

    Raises:
        UserError: num_frames is not 1 + temporal_stride * k, or the spatial stride does not divide
            the resolution.
    """
    return grid_shape(
        num_frames,
        height,
        width,
        temporal_stride=tokenizer.temporal_stride,
        spatial_stride=tokenizer.spatial_stride,
    )


def pixel_frames(tokenizer: Tokenizer, latent_frames: int) -> int:
    """The number of pixel frames F that `latent_frames` T decode to."""
    if latent_frames < 1:
        raise UserError(f"{latent_frames} latent frames: a video has at least one")
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
    """Pixels in [-1, 1] to the nearest grey level; values outside are clipped.

    Raises:
        UserError: pixels are NaN or infinite, which would look black. Inside of `jax.jit` nobody
            can raise it: look at `finite_clips` there.
    """
    pixels = jnp.asarray(pixels)
    if not isinstance(pixels, jax.core.Tracer) and not jnp.isfinite(pixels).all():
        raise UserError("Pixels hold NaN or infinity, so there is no video to show.")
    levels = (pixels.astype(jnp.float32) + 1.0) * 127.5
    return jnp.clip(jnp.round(levels), 0, 255).astype(jnp.uint8)


def finite_clips(values: Float[Array, "B *rest"]) -> Bool[Array, "B"]:
    """Which clips of a batch of latents or pixels hold neither NaN nor infinity."""
    return jnp.isfinite(values).all(axis=tuple(range(1, values.ndim)))


# Identity


def fingerprint(tokenizer: Tokenizer) -> str:
    """A hex digest of kind, settings and arrays.

    It is equal exactly for tokenizers that compute the same latents, and tells whether cached
    latents belong to a tokenizer.
    """
    settings, arrays = tokenizer.state()
    return _digest(_header(tokenizer, settings), arrays)


def same_latents(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether a model trained on the latents of one tokenizer can be used with the other.

    A class may define `latents_key()`, a value that is equal for such tokenizers (a published
    network is the same in every compute type); without it the fingerprints must be equal.
    """
    return _latents_key(one) == _latents_key(other)


def _latents_key(tokenizer: Tokenizer) -> tuple[Any, ...]:
    key = tokenizer.latents_key() if hasattr(tokenizer, "latents_key") else fingerprint(tokenizer)
    strides = (tokenizer.temporal_stride, tokenizer.spatial_stride)
    return (tokenizer.kind, *strides, tokenizer.channels, key)


# Files


def save_tokenizer(tokenizer: Tokenizer, directory: str | os.PathLike) -> None:
    """Writes `tokenizer.json` and `tokenizer.npz` into `directory`, which is created if needed."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    settings, arrays = tokenizer.state()
    header = _header(tokenizer, settings)
    with open(directory / ARRAYS_FILE, "wb") as file:
        np.savez(file, **arrays)
    text = json.dumps(header | {"sha256": _digest(header, arrays)}, indent=2)
    (directory / HEADER_FILE).write_text(text + "\n", encoding="utf-8")


def load_tokenizer(directory: str | os.PathLike) -> Tokenizer:
    """The tokenizer saved in `directory`, whatever its kind.

    Raises:
        FileNotFoundError: a file is missing.
        UserError: a file is damaged, or of an unknown kind or version.
    """
    header = TOKENIZERS.read_header(Path(directory) / HEADER_FILE, ("settings", "sha256"))
    arrays = _read_arrays(Path(directory) / ARRAYS_FILE)
    digest = header.pop("sha256")
    if digest != _digest(header, arrays):
        raise UserError(
            f"{HEADER_FILE} and {ARRAYS_FILE} in {directory} do not belong together: save it again"
        )
    tokenizer = TOKENIZERS[header["kind"]].from_state(header["settings"], arrays)
    for path, leaf in jax.tree_util.tree_flatten_with_path(tokenizer)[0]:
        fault = not_finite(np.asarray(leaf))
        if fault:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise UserError(
                f"{Path(directory) / ARRAYS_FILE}: {name} holds {fault}; make the tokenizer anew."
            )
    return tokenizer


def _header(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": tokenizer.kind, "version": tokenizer.version, "settings": settings}


def _digest(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    # Stored in records and caches of earlier versions: the bytes that enter must never change.
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    check_regular(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent} has a {HEADER_FILE} but no {path.name}: copy both or save it again"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}): save the tokenizer again") from error

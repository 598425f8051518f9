"""The Cosmos continuous video tokenizers (CV8x16x16, CV8x8x8, CV4x8x8, CV4x8x8-LowRes) behind the
`Tokenizer` Protocol.

    latents = scale * encoder(pixels)          pixels = decoder(latents / scale)

The scale belongs to the generator (VideoMAR: 1/2); the published network has none. Long clips run
in temporal chunks with the same result (`stream`), large frames with their spatial attention in
blocks of queries. Frames are never cut in space: norms and attention extend over a whole frame, so
tiles would change the result.

`load_cosmos` reads published weights, `CosmosTokenizer.random` draws random ones.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from videomar_jax.checks import Count, Positive, UserError, check_value
from videomar_jax.io.hub import local_folder
from videomar_jax.platforms import compile_for, platform_of
from videomar_jax.tokenizers import base
from videomar_jax.tokenizers.cosmos.config import RELEASES, CosmosConfig
from videomar_jax.tokenizers.cosmos.model import CosmosNetwork, abstract_network
from videomar_jax.tokenizers.cosmos.stream import ChunkState, NetworkStep, run_chunk, run_clip
from videomar_jax.tokenizers.cosmos.weights import load_params
from videomar_jax.types import Array, Latents, Pixels

_FILES = ("*.jit", "*.safetensors")
"""What is downloaded of a published repository."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class CosmosTokenizer:
    """The `Tokenizer` of this module."""

    kind: ClassVar[str] = "cosmos"
    version: ClassVar[int] = 1

    params: Any
    """Nested dict of the network's parameters, in any float type."""
    config: CosmosConfig = dataclasses.field(metadata={"static": True})
    scale: float = dataclasses.field(default=0.5, metadata={"static": True})
    """Latents are the encoder's output times this."""
    dtype: str = dataclasses.field(default="float32", metadata={"static": True})
    """What the network computes in, "float32" or "bfloat16"; statistics are float32 in any case, as
    are pixels and latents."""
    chunk: int | None = dataclasses.field(default=2, metadata={"static": True})
    """Latent frames computed at a time; None for whole clips, which is faster where memory
    allows."""

    def __post_init__(self):
        check_value("dtype", self.dtype, Literal["float32", "bfloat16"])
        check_value("scale", self.scale, Positive)
        check_value("chunk", self.chunk, Count | None)

    @property
    def temporal_stride(self) -> int:
        return self.config.temporal_stride

    @property
    def spatial_stride(self) -> int:
        return self.config.spatial_stride

    @property
    def channels(self) -> int:
        return self.config.latent_channels

    @jax.named_scope("cosmos_encode")
    def encode(self, pixels: Pixels) -> Latents:
        """Pixels [B, F, Hp, Wp, 3] in [-1, 1] to scaled latents [B, T, h, w, C], float32.

        Raises:
            UserError: the strides do not divide the clip.
        """
        frames, _, _ = base.latent_shape(self, *pixels.shape[1:4])
        return run_clip(
            self._encode_step(),
            pixels,
            frames=frames,
            chunk=self.chunk,
            strides=(self.temporal_stride, 1),
        )

    @jax.named_scope("cosmos_decode")
    def decode(self, latents: Latents) -> Pixels:
        """Scaled latents [B, T, h, w, C] to pixels [B, F, Hp, Wp, 3], float32, about in [-1, 1],
        not clipped."""
        self._check_latents(latents)
        return run_clip(
            self._decode_step(),
            latents,
            frames=latents.shape[1],
            chunk=self.chunk,
            strides=(1, self.temporal_stride),
        )

    def encode_stream(
        self, pixels: Iterable[Array | np.ndarray], *, max_frames: int
    ) -> Iterator[Latents]:
        """Latents of a clip that arrives in pieces, piece by piece; joined together they equal
        `encode` of the whole.

        Each new size of a piece compiles once.

        Args:
            pixels: the first piece has 1 + k * temporal_stride frames, every other one
                k * temporal_stride, k at least 1 there.
            max_frames: the largest number of latent frames of the clip.
        Raises:
            UserError: a piece of another size, or more than `max_frames` latent frames.
        """
        state, seen = None, 0
        for piece in pixels:
            frames = piece.shape[1]
            if state is None:
                new, _, _ = base.latent_shape(self, frames, *piece.shape[2:4])
            else:
                new = base.latent_shape(self, frames + 1, *piece.shape[2:4])[0] - 1
            seen = _count(seen, new, max_frames)
            with compile_for(platform_of(self.params)):
                latents, state = _encode_chunk(self, piece, state, max_frames)
            yield latents

    def decode_stream(
        self, latents: Iterable[Array | np.ndarray], *, max_frames: int
    ) -> Iterator[Pixels]:
        """Pixels of latents that arrive in pieces of one frame or more, piece by piece; joined
        together they equal `decode` of the whole.

        The first latent frame of the clip becomes one pixel frame, every other one
        `temporal_stride`. Sizes and errors as for `encode_stream`.
        """
        state, seen = None, 0
        for piece in latents:
            self._check_latents(piece)
            seen = _count(seen, piece.shape[1], max_frames)
            with compile_for(platform_of(self.params)):
                pixels, state = _decode_chunk(self, piece, state, max_frames)
            yield pixels

    @classmethod
    def open(cls, place: str, *, scale: float = 0.5, dtype: str = "float32") -> "CosmosTokenizer":
        """Published weights in a file, a folder, or a Hugging Face repository.

        Args:
            place: "PLACE" or, with a revision of a repository, "OWNER/NAME@REVISION"; in front of
                it "RELEASE@" where the place does not name its release.
            scale, dtype: as the attributes.
        Raises:
            FileNotFoundError: no such place.
            UserError: unknown release, or a file that does not fit.
        """
        release, place = _split_release(place)
        folder = local_folder(place, _FILES)
        # The folder of a download is named by a hash: the release may be in what was asked for.
        named = release or _release_named_in(place)
        return load_cosmos(folder, release=named, scale=scale, dtype=dtype)

    @classmethod
    def strides_of(cls, place: str) -> tuple[int, int] | None:
        """(temporal, spatial) stride of what `open(place)` would give, where the text says its
        release; None otherwise. Nothing is read."""
        release, place = _split_release(place)
        found = re.search(r"CV\d+x\d+x\d+", release or place)
        if found is None:
            return None
        config = CosmosConfig.release(found[0])
        return config.temporal_stride, config.spatial_stride

    @classmethod
    def random(cls, config: CosmosConfig, *, seed: int = 0, **settings: Any) -> "CosmosTokenizer":
        """An untrained tokenizer, to try things out without weights: normal kernels that keep the
        variance, zero biases. `settings` are attributes of the class."""
        rng = np.random.default_rng(seed)
        dtype = settings.get("dtype", "float32")

        def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> Array:
            if path[-1].key != "kernel":
                return jnp.full(leaf.shape, float(path[-1].key == "scale"), dtype)
            fan_in = np.prod(leaf.shape[:-1])
            normal = rng.standard_normal(leaf.shape, np.float32)
            return jnp.asarray(normal / np.float32(fan_in**0.5), dtype)

        params = jax.tree.map_with_path(draw, abstract_network(config)[1])
        return cls(params=params, config=config, **settings)

    def save(self, directory: str | os.PathLike) -> None:
        base.save_tokenizer(self, directory)

    def latents_key(self) -> float:
        """Published networks of the same strides and channels differ only in the scale; the compute
        type does not matter. See `base.same_latents`."""
        return self.scale

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Settings, and arrays by dotted path. NumPy files have no bfloat16: such arrays are stored
        as their bits, uint16."""
        settings = {
            "config": self.config.to_dict(),
            "scale": self.scale,
            "dtype": self.dtype,
            "chunk": self.chunk,
        }
        arrays = {}
        for path, leaf in traverse_util.flatten_dict(self.params).items():
            array = np.asarray(leaf)
            if array.dtype == jnp.bfloat16:
                array = array.view(np.uint16)
            arrays[".".join(map(str, path))] = array
        return settings, arrays

    @classmethod
    def from_state(
        cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> "CosmosTokenizer":
        """The inverse of `state`."""
        leaves = {}
        for name, array in arrays.items():
            if array.dtype == np.uint16:
                array = array.view(jnp.bfloat16)
            path = tuple(int(part) if part.isdecimal() else part for part in name.split("."))
            leaves[path] = jnp.asarray(array)
        settings = dict(settings)
        config = CosmosConfig.from_dict(settings.pop("config"))
        return cls(params=traverse_util.unflatten_dict(leaves), config=config, **settings)

    def network(self) -> CosmosNetwork:
        """The network with its parameters in the compute dtype."""
        graph, _ = abstract_network(self.config)
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, self.dtype), self.params)
        return nnx.merge(graph, params)

    def _encode_step(self) -> NetworkStep:
        network = self.network()
        return lambda pixels, past: network.encode(pixels, past).astype(jnp.float32) * self.scale

    def _decode_step(self) -> NetworkStep:
        network = self.network()
        return lambda latents, past: network.decode(latents / self.scale, past)

    def _check_latents(self, latents: Array | np.ndarray) -> None:
        if latents.shape[-1] != self.channels or latents.shape[1] < 1:
            raise UserError(
                f"latents {latents.shape} do not end in {self.channels} channels, or have no frame"
            )


def load_cosmos(
    path: str | os.PathLike,
    *,
    release: str | None = None,
    config: CosmosConfig | None = None,
    scale: float = 0.5,
    dtype: str = "float32",
    chunk: int | None = 2,
) -> CosmosTokenizer:
    """The tokenizer in a file, or in a folder as published.

    Args:
        path: autoencoder.jit, a .safetensors file with the same keys or diffusers', or the folder
            of either (or of encoder.jit and decoder.jit). If one half (encoder.jit) is given, the
            other is read from beside it.
        release: its name, such as "CV8x16x16"; by default the one in `path`, unless the header of a
            .safetensors file holds the sizes, as JSON under "cosmos_config".
        config: sizes of a network that is not a release.
        scale, dtype, chunk: as the attributes of `CosmosTokenizer`.
    Raises:
        FileNotFoundError: no such file.
        UserError: an unknown release, or both a release and a config.
        WeightFileError: a damaged file, or one of another network; everything that does not fit is
            listed.
    """
    if release is not None and config is not None:
        raise UserError("give a release or a config, not both")
    if release:
        config = CosmosConfig.release(release)
    config, params = load_params(path, config, dtype=dtype)
    return CosmosTokenizer(params=params, config=config, scale=scale, dtype=dtype, chunk=chunk)


def _split_release(spec: str) -> tuple[str, str]:
    """(release, place) of "RELEASE@PLACE"; a place may itself end in "@REVISION"."""
    first, at, rest = spec.partition("@")
    return (first, rest) if at and "/" not in first else ("", spec)


def _release_named_in(place: str) -> str | None:
    """The longest release name that occurs in `place`."""
    named = [release for release in RELEASES if release in place]
    return max(named, key=len, default=None)


@functools.partial(jax.jit, static_argnames="capacity", donate_argnames="state")
def _encode_chunk(
    tokenizer: CosmosTokenizer, pixels: Array, state: ChunkState | None, capacity: int
) -> tuple[Array, ChunkState]:
    frames = -(-pixels.shape[1] // tokenizer.temporal_stride)
    return run_chunk(tokenizer._encode_step(), pixels, state, frames=frames, capacity=capacity)


@functools.partial(jax.jit, static_argnames="capacity", donate_argnames="state")
def _decode_chunk(
    tokenizer: CosmosTokenizer, latents: Array, state: ChunkState | None, capacity: int
) -> tuple[Array, ChunkState]:
    return run_chunk(
        tokenizer._decode_step(), latents, state, frames=latents.shape[1], capacity=capacity
    )


def _count(seen: int, more: int, limit: int) -> int:
    """The latent frames after `more` of them.

    Raises:
        UserError: they exceed the limit.
    """
    if seen + more > limit:
        raise UserError(f"{seen + more} latent frames were given, but max_frames is {limit}")
    return seen + more

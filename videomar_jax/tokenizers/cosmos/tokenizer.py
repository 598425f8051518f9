"""The Cosmos continuous video tokenizers (CV8x16x16, CV8x8x8, CV4x8x8, CV4x8x8-LowRes) behind the
`Tokenizer` Protocol.

    latents = scale * encoder(pixels)          pixels = decoder(latents / scale)

The scale belongs to the generator (VideoMAR: 1/2); the published network has none. Long clips run
in temporal chunks with the same result (`cosmos_stream`), large frames with their spatial attention
in blocks of queries. Frames are never
cut in space: norms and attention see a whole frame, so tiles would give other numbers.

Weights come from `videomar_jax.interop.cosmos`, or random from `CosmosTokenizer.random`.
"""

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from videomar_jax.tokenizers import base
from videomar_jax.tokenizers.cosmos.config import CosmosConfig
from videomar_jax.tokenizers.cosmos.model import CosmosNetwork
from videomar_jax.tokenizers.cosmos.stream import ChunkState, run_chunk, run_clip
from videomar_jax.types import Array, Latents, Pixels

DTYPES = ("float32", "bfloat16")


@base.register
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class CosmosTokenizer:
    """The `Tokenizer` of this module.

    params: nested dict of the network's parameters, in any float dtype.
    dtype: what the network computes in (statistics in float32 regardless); pixels and latents are
        float32 outside.
    chunk: latent frames computed at a time; None for whole clips, faster where memory allows.
    """

    kind: ClassVar[str] = "cosmos"
    version: ClassVar[int] = 1

    params: Any
    config: CosmosConfig = dataclasses.field(metadata={"static": True})
    scale: float = dataclasses.field(default=0.5, metadata={"static": True})
    dtype: str = dataclasses.field(default="float32", metadata={"static": True})
    chunk: int | None = dataclasses.field(default=2, metadata={"static": True})

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f'dtype = {self.dtype!r} is neither "float32" nor "bfloat16"')
        if not self.scale > 0:
            raise ValueError(f"scale = {self.scale} is not positive")
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(
                f"chunk = {self.chunk} latent frames: at least 1, or None for whole clips"
            )

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

        ValueError if the strides do not divide the clip.
        """
        frames, _, _ = base.latent_shape(self, *pixels.shape[1:4])
        strides = (self.temporal_stride, 1)
        return run_clip(
            self._encode_step(), pixels, frames=frames, chunk=self.chunk, strides=strides
        )

    @jax.named_scope("cosmos_decode")
    def decode(self, latents: Latents) -> Pixels:
        """Scaled latents [B, T, h, w, C] to pixels [B, F, Hp, Wp, 3], float32, about in [-1, 1],
        not clipped."""
        self._check_latents(latents)
        strides = (1, self.temporal_stride)
        return run_clip(
            self._decode_step(), latents, frames=latents.shape[1], chunk=self.chunk, strides=strides
        )

    def encode_stream(
        self, pixels: Iterable[Array | np.ndarray], *, max_frames: int
    ) -> Iterator[Latents]:
        """Latents of a clip that arrives in pieces: the first of 1 + k, the others of k *
        temporal_stride frames.

        Yields the latents of each piece as it comes; pieces together make `encode` of the whole.
        Each new size of a piece compiles once. ValueError for other sizes, or for more than
        `max_frames` latent frames.
        """
        state, seen = None, 0
        for piece in pixels:
            first = int(state is None)
            frames, _, _ = base.latent_shape(self, piece.shape[1] + 1 - first, *piece.shape[2:4])
            seen = _count(seen, frames - 1 + first, max_frames)
            latents, state = _encode_chunk(self, piece, state, max_frames)
            yield latents

    def decode_stream(
        self, latents: Iterable[Array | np.ndarray], *, max_frames: int
    ) -> Iterator[Pixels]:
        """Pixels of latents that arrive in pieces of one frame or more: 1 pixel frame for the very
        first latent frame, `temporal_stride` for each other one. Pieces together make `decode` of
        the whole; limits as `encode_stream`.
        """
        state, seen = None, 0
        for piece in latents:
            self._check_latents(piece)
            seen = _count(seen, piece.shape[1], max_frames)
            pixels, state = _decode_chunk(self, piece, state, max_frames)
            yield pixels

    @classmethod
    def random(cls, config: CosmosConfig, *, seed: int = 0, **settings: Any) -> "CosmosTokenizer":
        """An untrained tokenizer, for trials without weights: normal kernels that keep the
        variance, zero biases."""
        rng, dtype = np.random.default_rng(seed), settings.get("dtype", "float32")

        def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> Array:
            if path[-1].key != "kernel":
                return jnp.full(leaf.shape, float(path[-1].key == "scale"), dtype)
            fan_in = np.prod(leaf.shape[:-1])
            return jnp.asarray(
                rng.standard_normal(leaf.shape, np.float32) / np.float32(fan_in**0.5), dtype
            )

        return cls(
            params=jax.tree.map_with_path(draw, abstract_network(config)[1]),
            config=config,
            **settings,
        )

    def save(self, directory: str | os.PathLike) -> None:
        base.save_tokenizer(self, directory)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Settings and arrays by dotted path. NumPy files know no bfloat16: such arrays are stored
        as their bits."""
        settings = {
            "config": self.config.to_dict(),
            "scale": self.scale,
            "dtype": self.dtype,
            "chunk": self.chunk,
        }
        flat = traverse_util.flatten_dict(self.params)
        arrays = {".".join(map(str, path)): np.asarray(leaf) for path, leaf in flat.items()}
        bits = {
            name: a.view(np.uint16) if a.dtype == jnp.bfloat16 else a for name, a in arrays.items()
        }
        return settings, bits

    @classmethod
    def from_state(
        cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> "CosmosTokenizer":
        values = {
            name: a.view(jnp.bfloat16) if a.dtype == np.uint16 else a for name, a in arrays.items()
        }
        flat = {
            tuple(int(p) if p.isdecimal() else p for p in name.split(".")): jnp.asarray(a)
            for name, a in values.items()
        }
        rest = {name: value for name, value in settings.items() if name != "config"}
        return cls(
            params=traverse_util.unflatten_dict(flat),
            config=CosmosConfig.from_dict(settings["config"]),
            **rest,
        )

    def network(self) -> CosmosNetwork:
        """The network with its parameters in the compute dtype."""
        graph, _ = abstract_network(self.config)
        return nnx.merge(
            graph, jax.tree.map(lambda leaf: jnp.asarray(leaf, self.dtype), self.params)
        )

    def _encode_step(self):
        network = self.network()
        return lambda pixels, past: network.encode(pixels, past).astype(jnp.float32) * self.scale

    def _decode_step(self):
        network = self.network()
        return lambda latents, past: network.decode(latents / self.scale, past)

    def _check_latents(self, latents: Array | np.ndarray) -> None:
        if latents.shape[-1] != self.channels or latents.shape[1] < 1:
            raise ValueError(
                f"latents {latents.shape} do not end in {self.channels} channels, or have no frame"
            )


@functools.lru_cache
def abstract_network(config: CosmosConfig) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """(structure, parameters as ShapeDtypeStructs in a nested dict) of a network, without
    allocating it."""
    graph, params = nnx.split(nnx.eval_shape(lambda: CosmosNetwork(config)))
    return graph, nnx.to_pure_dict(params)


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
    if seen + more > limit:
        raise ValueError(f"{seen + more} latent frames were given, but max_frames is {limit}")
    return seen + more

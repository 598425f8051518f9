"""Videos frame by frame: latents as they are drawn, pixels as soon as each latent frame is done.

The tokenizer decodes causally, so the pixels of latent frame t are final once it is there: they
    equal those of decoding
the whole video at its end, and each frame's work is done once (`decode_stream`).
"""

import time
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videomar_jax.models.videomar import VideoMAR
from videomar_jax.parallel.sharding import CLIPS, replicated
from videomar_jax.pretrained.bundle import ModelBundle
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.generate import generate_frames
from videomar_jax.tokenizers import Tokenizer, latent_shape, to_pixels, to_video
from videomar_jax.types import Array, Float, Latents, UInt8


class FrameStream:
    """A batch of videos in the making: an iterator over their new pixel frames, uint8 [B, f, Hp,
    Wp, 3], f of them for each latent frame.

    After each step, and when the iteration was broken off:

        frames           uint8 [B, F, Hp, Wp, 3], the given ones (untouched) and the new ones so far
        latents          float32 [B, T, h, w, C], likewise
        first_frame_s    seconds from the start until the first new pixels, compilation included;
        None before
        seconds          until the last ones
    """

    def __init__(
        self,
        model: VideoMAR,
        bundle: ModelBundle,
        given: UInt8[np.ndarray, "B G Hp Wp 3"],
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        num_frames: int,
        config: SamplingConfig,
    ):
        """Begins: all that is wrong with the request is told here.

        Args:
            model: where its parameters lie on a mesh, the work is spread over it: videos over
                `data` and `fsdp` if their number divides, rows of latents over `context`. Pixels
                are decoded for each video in one place.
            bundle: of the model; its sizes are those it was trained on.
            num_frames: pixel frames in all; config: how they are drawn.
        Raises:
            ValueError: numbers that do not go together, sizes the tokenizer cannot cut, too little
                memory.
        """
        if not len(given) == len(prompts) == len(seeds):
            raise ValueError(
                f"{len(given)} images, {len(prompts)} prompts and {len(seeds)} seeds: give one of each."
            )
        if not all(0 <= seed < 2**32 for seed in seeds):
            raise ValueError(f"Seeds must lie in 0..2**32 - 1, not {list(seeds)}.")
        self._started = time.monotonic()
        self._frames, self.first_frame_s, self.seconds = [given], None, 0.0
        total, _, _ = latent_shape(bundle.tokenizer, num_frames, *given.shape[2:4])
        mesh, tokenizer = _mesh(model), bundle.tokenizer
        if mesh is not None:
            tokenizer = jax.device_put(tokenizer, replicated(mesh))
        first = _spread(_encode(tokenizer, jnp.asarray(given)), mesh, "context")
        self._latents = [np.asarray(first)]
        text, mask = bundle.text_encoder.encode(list(prompts))
        keys = jax.vmap(jax.random.key)(jnp.asarray(np.asarray(seeds, np.uint32)))
        new = generate_frames(
            model,
            first,
            jnp.asarray(text),
            jnp.asarray(mask),
            num_frames=total,
            config=config,
            keys=keys,
            trained=trained_tokens(bundle),
        )
        pieces = (_spread(piece, mesh) for piece in self._kept(first, new))
        self._pixels = map(to_video, tokenizer.decode_stream(pieces, max_frames=total))
        for _ in range(first.shape[1]):  # the given frames come back as they are
            jax.block_until_ready(next(self._pixels))

    def _kept(self, first: Latents, new: Iterable[Float[Array, "B h w C"]]) -> Iterator[Latents]:
        """Latents one frame at a time, the given ones too: a long clip takes no more memory and no
        other program."""
        for t in range(first.shape[1]):
            yield first[:, t : t + 1]
        for frame in new:
            self._latents.append(np.asarray(frame)[:, None])
            yield frame[:, None]

    def __iter__(self) -> "FrameStream":
        return self

    def __next__(self) -> UInt8[np.ndarray, "B f Hp Wp 3"]:
        pixels = np.asarray(next(self._pixels))
        self._frames.append(pixels)
        self.seconds = time.monotonic() - self._started
        self.first_frame_s = self.first_frame_s or self.seconds
        return pixels

    @property
    def new_frames(self) -> int:
        """Pixel frames drawn so far."""
        return sum(piece.shape[1] for piece in self._frames[1:])

    def __len__(self) -> int:
        """Pixel frames there are, the given ones included."""
        return self._frames[0].shape[1] + self.new_frames

    @property
    def frames(self) -> UInt8[np.ndarray, "B F Hp Wp 3"]:
        return np.concatenate(self._frames, axis=1)

    @property
    def latents(self) -> Float[np.ndarray, "B T h w C"]:
        return np.concatenate(self._latents[: len(self._frames)], axis=1)


def trained_tokens(bundle: ModelBundle) -> tuple[int, int, int]:
    """(frames, rows, columns) in tokens that the model was trained on."""
    frames, height, width = latent_shape(
        bundle.tokenizer, bundle.num_frames, bundle.height, bundle.width
    )
    return frames, height // bundle.config.patch_size, width // bundle.config.patch_size


def _mesh(model: VideoMAR) -> Mesh | None:
    """The devices that the model is spread over; None: a single one."""
    shardings = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(model))
    return next(
        (s.mesh for s in shardings if isinstance(s, NamedSharding) and s.mesh.size > 1), None
    )


def _spread(latents: Latents, mesh: Mesh | None, rows: str | None = None) -> Latents:
    """Latents over the mesh: videos and, along the axis `rows`, their rows; what does not divide is
    copied."""
    if mesh is None:
        return latents
    samples = None if len(latents) % (mesh.shape["data"] * mesh.shape["fsdp"]) else CLIPS
    if rows is not None and latents.shape[2] % mesh.shape[rows]:
        rows = None
    return jax.device_put(latents, NamedSharding(mesh, PartitionSpec(samples, None, rows)))


@jax.jit
def _encode(tokenizer: Tokenizer, video: UInt8[Array, "B F Hp Wp 3"]) -> Latents:
    return tokenizer.encode(to_pixels(video))

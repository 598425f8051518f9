"""Pixels in, pixels out: tokenizer, text encoder and `generate` put together."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from videomar_jax.models.rope import PositionScale
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.generate import generate
from videomar_jax.text_encoders import TextEncoder
from videomar_jax.tokenizers import Tokenizer, latent_shape, to_pixels, to_video
from videomar_jax.types import Latents, UInt8


@jax.jit
def _encode(tokenizer: Tokenizer, video: UInt8[jax.Array, "B F Hp Wp 3"]) -> Latents:
    return tokenizer.encode(to_pixels(video))


@jax.jit
def _decode(tokenizer: Tokenizer, latents: Latents) -> UInt8[jax.Array, "B F Hp Wp 3"]:
    return to_video(tokenizer.decode(latents))


def image_to_video(
    model: VideoMAR,
    tokenizer: Tokenizer,
    text_encoder: TextEncoder,
    given: UInt8[np.ndarray, "B G Hp Wp 3"],
    prompts: Sequence[str],
    *,
    num_frames: int,
    config: SamplingConfig,
    seeds: Sequence[int],
    scale: PositionScale | None = None,
    trained: tuple[int, int, int] | None = None,
) -> UInt8[np.ndarray, "B F Hp Wp 3"]:
    """Continues images (G = 1) or clips (G = 1 + stride * k frames) to `num_frames` pixel frames.

    Args:
        given: frames 0..255; they come back as they are.
        prompts, seeds: one for each sample; a sample depends on its own alone, not on its batch.
        scale, trained: as in `generate`.
    Raises:
        ValueError: sizes that the tokenizer cannot cut, or fewer frames asked for than given.
    """
    if not len(given) == len(prompts) == len(seeds):
        raise ValueError(
            f"{len(given)} images, {len(prompts)} prompts and {len(seeds)} seeds: give one of each."
        )
    if not all(0 <= seed < 2**32 for seed in seeds):
        raise ValueError(f"Seeds must lie in 0..2**32 - 1, not {list(seeds)}.")
    frames, _, _ = latent_shape(tokenizer, num_frames, *given.shape[2:4])
    latents = _encode(tokenizer, jnp.asarray(given))
    text, mask = text_encoder.encode(list(prompts))
    keys = jax.vmap(jax.random.key)(jnp.asarray(np.asarray(seeds, np.uint32)))
    video = generate(
        model,
        latents,
        jnp.asarray(text),
        jnp.asarray(mask),
        num_frames=frames,
        config=config,
        keys=keys,
        scale=scale,
        trained=trained,
    )
    return np.concatenate(
        [given, np.asarray(_decode(tokenizer, video))[:, given.shape[1] :]], axis=1
    )


@dataclasses.dataclass
class VideoSampler:
    """`image_to_video` for any number of samples, in batches of one size so that each clip shape
    compiles once."""

    model: VideoMAR
    tokenizer: Tokenizer
    text_encoder: TextEncoder
    config: SamplingConfig
    batch_size: int
    trained: tuple[int, int, int] | None = (
        None  # (frames, rows, columns) in tokens, for the config's scaling
    )

    def __call__(
        self,
        given: UInt8[np.ndarray, "N G Hp Wp 3"],
        prompts: Sequence[str],
        num_frames: int,
        seeds: Sequence[int] | None = None,
    ) -> UInt8[np.ndarray, "N F Hp Wp 3"]:
        """Continues `given` to `num_frames` frames; without seeds, sample i is drawn with seed
        i."""
        seeds = range(len(given)) if seeds is None else seeds
        videos = []
        for start in range(0, len(given), self.batch_size):
            chosen = np.arange(start, start + self.batch_size) % len(
                given
            )  # a short last batch is filled up and cut
            made = image_to_video(
                self.model,
                self.tokenizer,
                self.text_encoder,
                given[chosen],
                [prompts[i] for i in chosen],
                num_frames=num_frames,
                config=self.config,
                seeds=[seeds[i] for i in chosen],
                trained=self.trained,
            )
            videos.append(made[: len(given) - start])
        return np.concatenate(videos)

    def reconstruct(
        self, video: UInt8[np.ndarray, "N F Hp Wp 3"]
    ) -> UInt8[np.ndarray, "N F Hp Wp 3"]:
        """Encode and decode: the best that any model over these latents can do."""
        batches = (
            jnp.asarray(video[i : i + self.batch_size])
            for i in range(0, len(video), self.batch_size)
        )
        return np.concatenate(
            [np.asarray(_decode(self.tokenizer, _encode(self.tokenizer, b))) for b in batches]
        )

"""Images and prompts to videos, for a model of one's own that is not saved as a bundle."""

from collections.abc import Sequence

import numpy as np

from videomar_jax.inference.stream import VideoSampler
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.text_encoders import TextEncoder
from videomar_jax.tokenizers import Tokenizer
from videomar_jax.types import UInt8


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
    trained: tuple[int, int, int] | None = None,
) -> UInt8[np.ndarray, "B F Hp Wp 3"]:
    """Continues images (G = 1) or clips (G = 1 + stride * k frames) to `num_frames` pixel frames.

    Args:
        given: frames in 0..255; they come back as they are.
        prompts, seeds: one for each video; a video depends on its own alone, not on its batch.
        trained: (frames, rows, columns) in tokens that the model was trained on; only RoPE scaling
            (`config.spatial_rope_scaling`, `config.temporal_rope_scaling`) needs it.
    Raises:
        UserError: sizes that the tokenizer cannot cut, or no more frames asked for than given.
    """
    sampler = VideoSampler(
        model=model,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        config=config,
        trained=trained,
    )
    return sampler.stream(given, prompts, seeds, num_frames).finish().frames

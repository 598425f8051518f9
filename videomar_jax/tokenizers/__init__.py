"""Video to continuous latents and back. Importing the package makes every kind known to
`load_tokenizer`."""

from videomar_jax.tokenizers.base import (
    Tokenizer,
    fingerprint,
    latent_shape,
    load_tokenizer,
    pixel_frames,
    save_tokenizer,
    to_pixels,
    to_video,
)
from videomar_jax.tokenizers.cosmos.config import CosmosConfig
from videomar_jax.tokenizers.cosmos.tokenizer import CosmosTokenizer
from videomar_jax.tokenizers.pca import PCATokenizer

__all__ = [
    "CosmosConfig",
    "CosmosTokenizer",
    "PCATokenizer",
    "Tokenizer",
    "fingerprint",
    "latent_shape",
    "load_tokenizer",
    "pixel_frames",
    "save_tokenizer",
    "to_pixels",
    "to_video",
]

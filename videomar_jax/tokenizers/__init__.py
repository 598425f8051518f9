"""Video to continuous latents and back. `base.TOKENIZERS` lists the kinds."""

import importlib
from typing import TYPE_CHECKING, Any

from videomar_jax.tokenizers.base import (
    TOKENIZERS,
    Tokenizer,
    fingerprint,
    finite_clips,
    latent_shape,
    load_tokenizer,
    pixel_frames,
    same_latents,
    save_tokenizer,
    to_pixels,
    to_video,
)

if TYPE_CHECKING:
    from videomar_jax.tokenizers.cosmos.config import CosmosConfig
    from videomar_jax.tokenizers.cosmos.tokenizer import CosmosTokenizer, load_cosmos
    from videomar_jax.tokenizers.pca import PCATokenizer

# Imported when first used: the networks load more than a config or a command needs.
_MODULES = {
    "CosmosConfig": "cosmos.config",
    "CosmosTokenizer": "cosmos.tokenizer",
    "PCATokenizer": "pca",
    "load_cosmos": "cosmos.tokenizer",
}

__all__ = [
    "TOKENIZERS",
    "CosmosConfig",
    "CosmosTokenizer",
    "PCATokenizer",
    "Tokenizer",
    "fingerprint",
    "finite_clips",
    "latent_shape",
    "load_cosmos",
    "load_tokenizer",
    "pixel_frames",
    "same_latents",
    "save_tokenizer",
    "to_pixels",
    "to_video",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)

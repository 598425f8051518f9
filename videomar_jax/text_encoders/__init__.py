"""Captions to text features. Importing the package makes every kind known to
`load_text_encoder`."""

from videomar_jax.text_encoders.base import (
    TextEncoder,
    load_text_encoder,
    save_text_encoder,
    tokens_cut,
)
from videomar_jax.text_encoders.hashed import HashedTextEncoder

__all__ = [
    "HashedTextEncoder",
    "TextEncoder",
    "load_text_encoder",
    "save_text_encoder",
    "tokens_cut",
]

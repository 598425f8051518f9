"""Captions to text features. `base.TEXT_ENCODERS` lists the kinds."""

from videomar_jax.text_encoders.base import (
    TEXT_ENCODERS,
    TextEncoder,
    load_text_encoder,
    save_text_encoder,
    tokens_cut,
)
from videomar_jax.text_encoders.hashed import HashedTextEncoder

__all__ = [
    "TEXT_ENCODERS",
    "HashedTextEncoder",
    "TextEncoder",
    "load_text_encoder",
    "save_text_encoder",
    "tokens_cut",
]

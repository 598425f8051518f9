"""The dimension legend of the package, and the names of the arrays that pass between its parts.

Shapes are written as jaxtyping annotations; the letters mean the same thing everywhere:

    B   samples in a batch                     F       pixel frames, F = 1 + stride * (T - 1)
    T   latent frames                          Hp, Wp  pixel rows and columns
    h   latent rows,  w   latent columns       C       latent channels of the tokenizer
    H   token rows,   W   token columns        p       patch size: h = H * p, w = W * p
    S   tokens of one frame, S = H * W         P       values of one token, P = C * p * p
    D   model width                            K       text tokens
    n   attention heads                        E       text feature width
    d   width of one head, D = n * d           M       frames that carry masked tokens

Annotations cost nothing at run time; the tests check them through jaxtyping's import hook.
"""

from typing import TypeAlias

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

Key: TypeAlias = PRNGKeyArray

Video: TypeAlias = UInt8[Array, "B F Hp Wp 3"]
"""RGB clips, 0..255."""
Pixels: TypeAlias = Float[Array, "B F Hp Wp 3"]
"""RGB clips scaled to [-1, 1]; decoders may overshoot."""
Latents: TypeAlias = Float[Array, "B T h w C"]
"""Scaled tokenizer latents, channels last; about unit variance."""
Tokens: TypeAlias = Float[Array, "B T S P"]
"""Patchified latents: what the model predicts."""
TokenMask: TypeAlias = Bool[Array, "B T S"]
"""True where a token is hidden behind the mask token."""
Orders: TypeAlias = Int[Array, "B T S"]
"""A permutation of 0..S-1 for each frame; its first entry is revealed first."""
Positions: TypeAlias = Int[Array, "T S 3"]
"""Integer (frame, row, column) of every token."""
TextFeatures: TypeAlias = Float[Array, "B K E"]
TextMask: TypeAlias = Bool[Array, "B K"]
"""True where a text token may be attended to."""


__all__ = [
    "Array",
    "Bool",
    "Float",
    "Int",
    "Key",
    "Latents",
    "Orders",
    "Pixels",
    "Positions",
    "TextFeatures",
    "TextMask",
    "TokenMask",
    "Tokens",
    "UInt8",
    "Video",
]

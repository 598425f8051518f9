"""A text encoder that needs no download: every word is a fixed random vector.

A caption is split into lower-case words and punctuation and closed by an end token. Token k with
word x becomes

    feature = g(x) + POSITION_SCALE * g'(k)         g, g': independent standard normal vectors of
    `width` numbers

where g(x) is drawn by a generator seeded with a cryptographic hash of (seed, x), so that it is the
same in every process, on every platform, without a vocabulary. Different words are nearly
orthogonal (their cosine is about 1/sqrt(width)), which is all that a model needs to tell "left"
from "right"; the position term lets it see the order.
What random vectors cannot give is kinship: "cat" is no nearer to "kitten" than to "rain". For that,
    use a language
model.
"""

import dataclasses
import hashlib
import os
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
from absl import logging
from jaxtyping import Float32

from videomar_jax.text_encoders import base
from videomar_jax.types import Bool

POSITION_SCALE = 0.25


@base.register
@dataclasses.dataclass(frozen=True)
class HashedTextEncoder:
    """The `TextEncoder` of this module. `max_tokens` counts the end token; `seed` picks another set
    of vectors."""

    kind: ClassVar[str] = "hashed"
    version: ClassVar[int] = 1

    max_tokens: int
    width: int
    seed: int = 0

    def __post_init__(self):
        if self.max_tokens < 1 or self.width < 1:
            raise ValueError(
                f"max_tokens = {self.max_tokens} and width = {self.width} must be at least 1"
            )

    def encode(
        self, captions: Sequence[str]
    ) -> tuple[Float32[np.ndarray, "B K E"], Bool[np.ndarray, "B K"]]:
        """Features [B, max_tokens, width], zero where padded, and the mask of tokens [B,
        max_tokens].

        Words beyond max_tokens - 1 are cut; one warning a call says how many captions lost words,
        and which ones the first of them lost.
        """
        if isinstance(captions, str):
            raise ValueError(
                f"encode takes a sequence of captions; for one caption give [{captions!r}]"
            )
        room = self.max_tokens - 1
        words = [split_words(caption) for caption in captions]
        _warn_of_cuts(words, room)
        features = np.zeros((len(words), self.max_tokens, self.width), np.float32)
        mask = np.zeros((len(words), self.max_tokens), bool)
        for row, caption in enumerate(words):
            tokens = [f"word {word}" for word in caption[:room]] + ["end"]
            mask[row, : len(tokens)] = True
            for k, token in enumerate(tokens):
                features[row, k] = self._normal(token) + POSITION_SCALE * self._normal(
                    f"position {k}"
                )
        return features, mask

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """The tokens of each caption before it is cut, the end token included."""
        return [len(split_words(caption)) + 1 for caption in captions]

    def save(self, directory: str | os.PathLike) -> None:
        base.save_text_encoder(self, directory)

    def settings(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def write_files(self, directory: str | os.PathLike) -> None:
        """The settings are all there is."""

    @classmethod
    def from_files(
        cls, settings: Mapping[str, Any], directory: str | os.PathLike
    ) -> "HashedTextEncoder":
        return cls(**settings)

    def _normal(self, name: str) -> np.ndarray:
        return _normal_vector(f"{self.seed} {name}", self.width)


def split_words(caption: str) -> list[str]:
    """Lower-case words and single punctuation marks, in order.

    Letters, marks and digits make words in any script; wide characters (Chinese, Japanese, Korean,
    emoji) stand alone, since most of these scripts put no space between words. Spaces and control
    characters only separate.
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", caption).casefold())
    words = []
    for kind, run in groupby(text, key=_character_kind):
        if kind == "word":
            words.append("".join(run))
        elif kind == "single":
            words.extend(run)
    return words


def _character_kind(character: str) -> str:
    category = unicodedata.category(character)[0]
    if category in "ZC":
        return "space"
    wide = unicodedata.east_asian_width(character) in "WF"
    return "word" if category in "LMN" and not wide else "single"


def _warn_of_cuts(words: list[list[str]], room: int) -> None:
    cut = [caption for caption in words if len(caption) > room]
    if cut:
        kept, lost = " ".join(cut[0][:room]), " ".join(cut[0][room:])
        logging.warning(
            "%d of %d captions are longer than max_tokens = %d and were cut; the first keeps %r and loses %r",
            len(cut),
            len(words),
            room + 1,
            kept,
            lost,
        )


@lru_cache(maxsize=1 << 14)
def _normal_vector(name: str, width: int) -> np.ndarray:
    """A read-only vector of `width` standard normal numbers that depends on nothing but the
    arguments."""
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "little")
    # RandomState over a counter-based generator: NumPy promises that its numbers never change
    # between versions.
    vector = (
        np.random.RandomState(np.random.Philox(key=key)).standard_normal(width).astype(np.float32)
    )
    vector.setflags(write=False)
    return vector

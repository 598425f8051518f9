"""A text encoder that needs no download: every word is a fixed random vector.

A caption is split into lower-case words and punctuation, followed by an end token. Token k with
word x becomes

    feature = g(x) + POSITION_SCALE * g'(k)

where g and g' give independent standard normal vectors of `width` numbers. g(x) is drawn by a
generator seeded with a cryptographic hash of (seed, x), so it is the same in every process, on
every platform, without a vocabulary. Different words are nearly orthogonal (their cosine is about
1/sqrt(width)), which is all that a model needs to tell "left" from "right"; the position term tells
it the order.

Random vectors say nothing about meaning: "cat" is no nearer to "kitten" than to "rain". For that,
use a language model.
"""

import dataclasses
import hashlib
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32

from videomar_jax.checks import Count, UserError, check_fields
from videomar_jax.io.log import log
from videomar_jax.io.paths import user_path
from videomar_jax.text_encoders import base
from videomar_jax.types import Bool

POSITION_SCALE = 0.25


@dataclasses.dataclass(frozen=True)
class HashedTextEncoder:
    """The `TextEncoder` of this module."""

    kind: ClassVar[str] = "hashed"
    version: ClassVar[int] = 1

    max_tokens: Count
    """Tokens of a caption, the end token included; more are cut."""
    width: Count
    """Numbers of a feature vector."""
    seed: int = 0
    """Selects another set of vectors."""

    def __post_init__(self):
        check_fields("HashedTextEncoder", self)

    def encode(
        self, captions: Sequence[str]
    ) -> tuple[Float32[np.ndarray, "B K E"], Bool[np.ndarray, "B K"]]:
        """Features [B, max_tokens, width], zero at padding, and the mask of tokens [B, max_tokens].

        Words after the first max_tokens - 1 are cut; one warning says how many captions lose words,
        and which ones the first of them loses.

        Raises:
            UserError: a single text instead of a sequence.
        """
        if isinstance(captions, str):
            raise UserError(
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
                position = self._normal(f"position {k}")
                features[row, k] = self._normal(token) + POSITION_SCALE * position
        return features, mask

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """The tokens of each caption before it is cut, the end token included."""
        return [len(split_words(caption)) + 1 for caption in captions]

    def save(self, directory: str | os.PathLike) -> None:
        base.save_text_encoder(self, directory)

    def settings(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def write_files(self, directory: str | os.PathLike) -> None:
        """Nothing besides the settings."""

    @classmethod
    def from_files(
        cls, settings: Mapping[str, Any], directory: str | os.PathLike
    ) -> "HashedTextEncoder":
        return cls(**settings)

    @classmethod
    def from_sizes(cls, tokens: int, width: int) -> "HashedTextEncoder":
        """An encoder needs nothing but its sizes."""
        return cls(tokens, width)

    @classmethod
    def open(cls, place: str, **_: Any) -> base.TextEncoder:
        """An encoder by its sizes, "64x256" for 64 tokens of 256 numbers, or a saved one by its
        folder. The options of other kinds have no meaning here.

        Raises:
            UserError: neither.
        """
        sizes = re.fullmatch(r"(\d+)x(\d+)", place)
        if sizes:
            return cls(int(sizes[1]), int(sizes[2]))
        folder = user_path(place, "text encoder")
        if folder.is_dir():
            return base.load_text_encoder(folder)
        raise UserError(
            f"'hashed:{place}' is not understood: write hashed:TOKENSxWIDTH, such as hashed:64x256."
        )

    def _normal(self, name: str) -> np.ndarray:
        return _normal_vector(f"{self.seed} {name}", self.width)


def split_words(caption: str) -> list[str]:
    """Lower-case words and single punctuation marks, in order.

    Letters, marks and digits form words in any script. Wide characters (Chinese, Japanese, Korean,
    emoji) are words of their own, since most of these scripts put no space between words. Spaces
    and control characters only separate.
    """
    # Folding the case may leave text that is not normalised.
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
        log.warning(
            "%d of %d captions are longer than max_tokens = %d and were cut; "
            "the first keeps %r and loses %r",
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
    # NumPy promises that the numbers of a RandomState never change between versions; Philox can
    # be seeded with 128 bits.
    generator = np.random.RandomState(np.random.Philox(key=key))
    vector = generator.standard_normal(width).astype(np.float32)
    vector.setflags(write=False)
    return vector

"""Captions to the last hidden state of a Qwen2 language model, the way VideoMAR's published weights
expect them.

For each caption, with K = `max_tokens`:

1. tokens = the caption's, cut to K, padded to K; mask = token differs from the pad token. A caption
    without any token
   keeps its first pad token (its last with padding on the left) as an end-of-text, so that its mask
   has one True.
2. The m tokens of the system text, if there is one, go in front: the model runs over m + K tokens
    under the attention
   mask [ones, mask], position = place in that row.
3. The features are the last hidden state of the last K places, float32. Where the mask is False
    they are what the
   model computes there, not zeros; nothing that honours the mask can tell.

Attention is causal, hence nothing at the system text's places depends on the caption: their keys
and values are computed once and reused. The result is the formula of step 2; only the order of
float32 additions may differ from running the m + K tokens together.

`interop.qwen2.load_qwen2` builds an encoder from a folder. A saved encoder is a reference to that
folder: a copy of several gigabytes in every run would serve nobody. Importing `interop.qwen2` lets
    `load_text_encoder` follow it.
"""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float32, Int32
from tokenizers import Encoding, Tokenizer

from videomar_jax.text_encoders import base
from videomar_jax.text_encoders.qwen2.model import KeysValues, Qwen2
from videomar_jax.types import Bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2Options:
    """How captions are encoded.

    system_text: put in front of every caption and cut off again; None for none. The published model
        was trained with
        one: HART's `llm_system_prompt`, or FAR's copy of it, which has other blanks.
    padding_side: "right" or "left".
    batch_size: captions that run together at most; rounded up to a multiple of the mesh's devices.
    """

    max_tokens: int = 300
    system_text: str | None = None
    padding_side: str = "right"
    dtype: str = "float32"
    batch_size: int = 8

    def __post_init__(self):
        if self.max_tokens < 1 or self.batch_size < 1:
            raise ValueError(
                f"max_tokens = {self.max_tokens}, batch_size = {self.batch_size} must be at least 1"
            )
        if self.padding_side not in ("right", "left"):
            raise ValueError(f"padding_side is {self.padding_side!r}; it may be 'right' or 'left'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where the weights and the tokenizer lie: an absolute path, and a digest that tells whether
    they are the same."""

    folder: str
    fingerprint: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Qwen2TextEncoder:
    """The `TextEncoder` of this module; `interop.qwen2.load_qwen2` builds it from a folder.

    It owns its tokenizer, whose padding and truncation it sets. With `mesh`, whose devices must all
    belong to this process, captions are split over the devices.
    """

    kind: ClassVar[str] = "qwen2"
    version: ClassVar[int] = 1

    model: Qwen2
    tokenizer: Tokenizer
    pad_id: int
    options: Qwen2Options
    source: Source
    mesh: Mesh | None = None

    system_tokens: tuple[int, ...] = dataclasses.field(init=False)

    def __post_init__(self):
        if self.mesh is not None and self.mesh.size > len(self.mesh.local_devices):
            raise ValueError(
                "the mesh of a text encoder must hold devices of this process only: jax.local_devices()"
            )
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        system_text = _valid_unicode(self.options.system_text or "")
        object.__setattr__(
            self,
            "system_tokens",
            tuple(self.tokenizer.encode(system_text).ids if system_text else ()),
        )
        self.tokenizer.enable_truncation(self.max_tokens)
        length, window = len(self.system_tokens) + self.max_tokens, self.model.config.window
        if window is not None and window < length:
            raise ValueError(
                f"{self.source.folder}: layers look back {window} tokens (sliding window), but system text and caption "
                f"take {length}; shorten them (max_tokens = {self.max_tokens})"
            )

    @property
    def max_tokens(self) -> int:
        return self.options.max_tokens

    @property
    def width(self) -> int:
        return self.model.config.width

    def encode(
        self, captions: Sequence[str]
    ) -> tuple[Float32[np.ndarray, "B K E"], Bool[np.ndarray, "B K"]]:
        """Features [B, max_tokens, width] and the mask of the captions' tokens [B, max_tokens].

        One warning a call says how many captions were cut, and what the first of them lost.
        """
        tokens, mask = self.tokenize(captions)
        features = np.empty((*tokens.shape, self.width), np.float32)
        for start in range(0, len(tokens), self._largest_batch):
            rows = slice(start, start + self._largest_batch)
            features[rows] = self._encode_batch(tokens[rows], mask[rows])
        return features, mask

    def tokenize(
        self, captions: Sequence[str]
    ) -> tuple[Int32[np.ndarray, "B K"], Bool[np.ndarray, "B K"]]:
        """Tokens, padded on the chosen side, and the mask: step 1 of the module's text."""
        if isinstance(captions, str):
            raise ValueError(
                f"encode takes a sequence of captions; for one caption give [{captions!r}]"
            )
        encodings = self.tokenizer.encode_batch([_valid_unicode(caption) for caption in captions])
        self._warn_of_cuts(encodings)
        left = self.options.padding_side == "left"
        tokens = np.full((len(encodings), self.max_tokens), self.pad_id, np.int32)
        for row, encoding in zip(tokens, encodings, strict=True):
            count = len(encoding.ids)
            row[len(row) - count if left else 0 :][:count] = encoding.ids
        mask = tokens != self.pad_id
        mask[~mask.any(axis=1), -1 if left else 0] = True
        return tokens, mask

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """The tokens of each caption before it is cut; the system text does not count."""
        encodings = self.tokenizer.encode_batch([_valid_unicode(caption) for caption in captions])
        return [len(one.ids) + sum(len(part.ids) for part in one.overflowing) for one in encodings]

    @functools.cached_property
    def _prefix(self) -> KeysValues | None:
        """Keys and values of the system text for every layer, [depth, 1, m, kv, d]."""
        if not self.system_tokens:
            return None
        tokens = np.asarray([self.system_tokens], np.int32)
        return _keys_values(self.model, tokens, np.ones(tokens.shape, bool))

    @property
    def _largest_batch(self) -> int:
        devices = 1 if self.mesh is None else self.mesh.size
        return -(-self.options.batch_size // devices) * devices

    def _encode_batch(self, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Runs rows filled up to a power of two times the devices, so that few batch sizes are ever
        compiled."""
        count, size = len(tokens), 1 if self.mesh is None else self.mesh.size
        while size < count:
            size *= 2
        filled = [
            np.resize(x, (min(size, self._largest_batch), x.shape[1])) for x in (tokens, mask)
        ]
        if self.mesh is not None:
            filled = jax.device_put(
                filled, NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
            )
        return np.asarray(_last_hidden_state(self.model, *filled, self._prefix))[:count]

    def _warn_of_cuts(self, encodings: list[Encoding]) -> None:
        cut = [encoding for encoding in encodings if encoding.overflowing]
        if cut:
            lost = [token for part in cut[0].overflowing for token in part.ids]
            logging.warning(
                "%d of %d captions are longer than max_tokens = %d and were cut; the first loses %r",
                len(cut),
                len(encodings),
                self.max_tokens,
                self.tokenizer.decode(lost),
            )

    def save(self, directory: str | os.PathLike) -> None:
        """Writes a reference: `Source` and the options. Weights of gigabytes are not copied into
        every run."""
        base.save_text_encoder(self, directory)

    def settings(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.source), **dataclasses.asdict(self.options)}

    def write_files(self, directory: str | os.PathLike) -> None:
        """The settings are all there is."""


@jax.jit
def _last_hidden_state(
    model: Qwen2, tokens: jax.Array, mask: jax.Array, prefix: KeysValues | None
) -> jax.Array:
    return model(tokens, mask, prefix)[0]


@jax.jit
def _keys_values(model: Qwen2, tokens: jax.Array, mask: jax.Array) -> KeysValues:
    return model(tokens, mask)[1]


def _valid_unicode(text: str) -> str:
    """The text with lone surrogates replaced, which no tokenizer takes."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

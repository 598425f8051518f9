"""Captions to the last hidden state of a Qwen2 language model, as VideoMAR's published weights
expect them.

For each caption, with K = `max_tokens`:

1. tokens = the caption's, cut to K, padded to K; mask = token differs from the pad token. A caption
   without any token keeps its first pad token (its last with padding on the left) as an
   end-of-text, so that its mask has one True.
2. The m tokens of the system text, if there is one, are put in front: the model runs over m + K
   tokens under the attention mask [ones, mask], with positions counted from 0.
3. The features are the last hidden state at the last K positions, float32. Where the mask is False
   they are what the model computes there, not zeros; only a model that ignores the mask can tell.

Attention is causal, hence nothing at the system text's positions depends on the caption: their keys
and values are computed once and reused. The result is that of step 2; only the order of float32
additions may differ from running the m + K tokens together.

`load_qwen2` builds an encoder from a Hugging Face folder. A saved encoder is a reference to that
folder, because a copy of several gigabytes in every run would be of no use.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float32, Int32
from tokenizers import Encoding, Tokenizer

from videomar_jax.checks import Count, UserError, check_fields
from videomar_jax.io.files import check_regular
from videomar_jax.io.hub import local_folder
from videomar_jax.io.log import log
from videomar_jax.io.paths import user_path
from videomar_jax.text_encoders import base
from videomar_jax.text_encoders.qwen2.folder import fingerprint, read_config, read_tokenizer
from videomar_jax.text_encoders.qwen2.model import ComputeType, KeysValues, Qwen2
from videomar_jax.text_encoders.qwen2.weights import load_model
from videomar_jax.types import Bool

_FILES = ("*.json", "*.safetensors", "*.txt")
"""What is downloaded of a published repository."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2Options:
    """How captions are encoded."""

    max_tokens: Count = 300
    """Tokens of a caption; more are cut."""
    system_text: str | None = None
    """Put in front of every caption and cut off again; None for none. The published model was
    trained with one: HART's `llm_system_prompt`, or FAR's copy of it, which has other blanks."""
    padding_side: Literal["right", "left"] = "right"
    """Where captions are padded."""
    dtype: ComputeType = "float32"
    """What the model computes in."""
    batch_size: Count = 8
    """The most captions that run together; rounded up to a multiple of the mesh's devices."""

    def __post_init__(self):
        check_fields("Qwen2Options", self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where the weights and the tokenizer are."""

    folder: str
    """An absolute path."""
    fingerprint: str
    """A digest of the folder's files, which tells whether they are still the same."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Qwen2TextEncoder:
    """The `TextEncoder` of this module; `load_qwen2` builds it from a folder.

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
            raise UserError(
                "the mesh of a text encoder must hold devices of this process only: "
                "jax.local_devices()"
            )
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        system_text = _valid_unicode(self.options.system_text or "")
        system_tokens = tuple(self.tokenizer.encode(system_text).ids) if system_text else ()
        object.__setattr__(self, "system_tokens", system_tokens)  # the dataclass is frozen
        self.tokenizer.enable_truncation(self.max_tokens)
        length = len(system_tokens) + self.max_tokens
        positions = self.model.config.positions
        if positions is not None and positions < length:
            raise UserError(
                f"{self.source.folder}: the model was made for {positions} tokens, but system text "
                f"and caption take {length}; shorten them (max_tokens = {self.max_tokens})"
            )
        window = self.model.config.window
        if window is not None and window < length:
            raise UserError(
                f"{self.source.folder}: layers look back {window} tokens (sliding window), but "
                f"system text and caption take {length}; shorten them "
                f"(max_tokens = {self.max_tokens})"
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

        If captions are cut, one warning says how many, and what the first of them loses.
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
            raise UserError(
                f"encode takes a sequence of captions; for one caption give [{captions!r}]"
            )
        encodings = self.tokenizer.encode_batch([_valid_unicode(caption) for caption in captions])
        self._warn_of_cuts(encodings)
        left = self.options.padding_side == "left"
        tokens = np.full((len(encodings), self.max_tokens), self.pad_id, np.int32)
        for row, encoding in zip(tokens, encodings, strict=True):
            count = len(encoding.ids)
            start = self.max_tokens - count if left else 0
            row[start : start + count] = encoding.ids
        mask = tokens != self.pad_id
        mask[~mask.any(axis=1), -1 if left else 0] = True
        return tokens, mask

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """The tokens of each caption before it is cut; the system text does not count."""
        encodings = self.tokenizer.encode_batch([_valid_unicode(caption) for caption in captions])
        return [len(encoding.ids) + len(_overflow(encoding)) for encoding in encodings]

    @functools.cached_property
    def _prefix(self) -> KeysValues | None:
        """Keys and values of the system text for every layer, [depth, 1, m, kv, d]; None if there
        is no system text."""
        if not self.system_tokens:
            return None
        tokens = np.asarray([self.system_tokens], np.int32)
        return _keys_values(self.model, tokens, np.ones(tokens.shape, bool))

    @property
    def _largest_batch(self) -> int:
        devices = 1 if self.mesh is None else self.mesh.size
        return -(-self.options.batch_size // devices) * devices

    def _encode_batch(self, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Features of some rows.

        They are repeated up to a power of two times the devices, so that few batch sizes are ever
        compiled.
        """
        count = len(tokens)
        size = 1 if self.mesh is None else self.mesh.size
        while size < count:
            size *= 2
        rows = min(size, self._largest_batch)
        shape = (rows, self.max_tokens)
        batch = (np.resize(tokens, shape), np.resize(mask, shape))
        if self.mesh is not None:
            over_devices = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
            batch = jax.device_put(batch, over_devices)
        return np.asarray(_last_hidden_state(self.model, *batch, self._prefix))[:count]

    def _warn_of_cuts(self, encodings: list[Encoding]) -> None:
        cut = [encoding for encoding in encodings if encoding.overflowing]
        if cut:
            log.warning(
                "%d of %d captions are longer than max_tokens = %d and were cut; "
                "the first loses %r",
                len(cut),
                len(encodings),
                self.max_tokens,
                self.tokenizer.decode(_overflow(cut[0])),
            )

    def save(self, directory: str | os.PathLike) -> None:
        """Writes a reference (`Source`) and the options, not the weights."""
        base.save_text_encoder(self, directory)

    def settings(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.source), **dataclasses.asdict(self.options)}

    def write_files(self, directory: str | os.PathLike) -> None:
        """Nothing besides the settings."""

    @classmethod
    def from_files(
        cls, settings: Mapping[str, Any], directory: str | os.PathLike
    ) -> "Qwen2TextEncoder":
        """Follows the reference that `save` wrote.

        Raises:
            FileNotFoundError: the folder is gone.
            UserError: it holds another model now.
        """
        options = dict(settings)
        fields = [field.name for field in dataclasses.fields(Source)]
        source = Source(**{name: options.pop(name) for name in fields if name in options})
        header = Path(directory) / base.HEADER_FILE
        folder = Path(source.folder)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{header} refers to the text encoder in {folder}, which is not there: bring it "
                f"back, or write its new place under 'folder' in that file"
            )
        found = fingerprint(folder)
        if found != source.fingerprint:
            raise UserError(
                f"{folder} no longer holds the text encoder that {header} refers to (fingerprint "
                f"{found}, saved {source.fingerprint}): features of another one would not fit"
            )
        return load_qwen2(folder, Qwen2Options(**options))

    @classmethod
    def open(
        cls,
        place: str,
        *,
        tokens: int = 300,
        padding_side: str = "right",
        system_text_file: str | None = None,
        dtype: str = "float32",
    ) -> "Qwen2TextEncoder":
        """The encoder in a local folder or a Hugging Face repository.

        Args:
            tokens, padding_side, dtype: as `Qwen2Options`, where tokens is max_tokens.
            system_text_file: see `load_qwen2`.
        Raises:
            FileNotFoundError, UserError: as `load_qwen2`.
        """
        options = Qwen2Options(max_tokens=tokens, padding_side=padding_side, dtype=dtype)
        return load_qwen2(local_folder(place, _FILES), options, system_text_file=system_text_file)


def load_qwen2(
    folder: str | os.PathLike,
    options: Qwen2Options | None = None,
    *,
    system_text_file: str | os.PathLike | None = None,
    mesh: Mesh | None = None,
) -> Qwen2TextEncoder:
    """The text encoder in a local Hugging Face folder of Qwen2 or Qwen2-VL.

    Args:
        system_text_file: a UTF-8 file from which `options.system_text` is read unchanged: each
            blank and line end counts.
        mesh: split parameters and captions over these devices, all of this process.
    Raises:
        FileNotFoundError: a file is missing.
        UserError: a file is damaged or of another model (WeightFileError for tensors that are
            missing, unknown or of a wrong shape, all named together).
    """
    folder = user_path(folder)
    options = options or Qwen2Options()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder: give the local folder of a Hugging Face Qwen2 model"
        )
    if system_text_file is not None:
        text = _read_text(user_path(system_text_file, "system_text_file"))
        options = dataclasses.replace(options, system_text=text)
    config = read_config(folder, options.dtype)
    tokenizer, pad_id = read_tokenizer(folder, config.vocab_size, options.padding_side)
    return Qwen2TextEncoder(
        model=load_model(folder, config, mesh),
        tokenizer=tokenizer,
        pad_id=pad_id,
        options=options,
        mesh=mesh,
        source=Source(folder=str(folder), fingerprint=fingerprint(folder)),
    )


@jax.jit
def _last_hidden_state(
    model: Qwen2, tokens: jax.Array, mask: jax.Array, prefix: KeysValues | None
) -> jax.Array:
    return model(tokens, mask, prefix)[0]


@jax.jit
def _keys_values(model: Qwen2, tokens: jax.Array, mask: jax.Array) -> KeysValues:
    return model(tokens, mask)[1]


def _valid_unicode(text: str) -> str:
    """The text with lone surrogates replaced, which no tokenizer accepts."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _overflow(encoding: Encoding) -> list[int]:
    """The tokens that were cut."""
    lost = []
    for part in encoding.overflowing:
        lost.extend(part.ids)
    return lost


def _read_text(path: Path) -> str:
    check_regular(path)
    if not path.is_file():
        raise FileNotFoundError(f"the file of the system text, {path}, does not exist")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error

"""What a text encoder is: captions to K feature vectors of width E each, on the host, before
training or sampling.

Features are float32; the mask is True on tokens, on at least one for every caption, the empty one
included (attention over no key at all is undefined). Padding stands on one side of the tokens, the
right one unless the encoder says otherwise. What the features are there is the encoder's affair
(`hashed` leaves zeros, `qwen2` what its network computes at the pad tokens, as the published model
saw them), and only a model that ignores the mask can tell.

`max_tokens` is K: what a caption has beyond it is cut, and the encoder says so. One that also has
`count_tokens(captions) -> list[int]`, the tokens of each before cutting, lets others tell
beforehand (`tokens_cut`).

An encoder that can be saved also has `kind` and `version` (class attributes), `settings() -> dict`,
`write_files(directory)` for what does not fit JSON (weights; may do nothing) and the class method
`from_files(settings, directory)`; the decorator `register` makes `load_text_encoder` find it. A
saved encoder is a directory with `text_encoder.json` (kind, version, settings), next to those
files.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float32

from videomar_jax.types import Bool

HEADER_FILE = "text_encoder.json"
TEXT_ENCODERS: dict[str, type] = {}
"""Classes by the `kind` in their header; filled by `register`."""

_Class = TypeVar("_Class", bound=type)


@runtime_checkable
class TextEncoder(Protocol):
    """Captions to padded features and a mask."""

    max_tokens: int
    width: int

    def encode(
        self, captions: Sequence[str]
    ) -> tuple[Float32[np.ndarray, "B K E"], Bool[np.ndarray, "B K"]]: ...

    def save(self, directory: str | os.PathLike) -> None: ...


def tokens_cut(encoder: TextEncoder, captions: Sequence[str]) -> list[int]:
    """How many tokens each caption loses; zeros if the encoder cannot tell."""
    count = getattr(encoder, "count_tokens", None)
    return (
        [0] * len(captions)
        if count is None
        else [max(0, n - encoder.max_tokens) for n in count(captions)]
    )


def register(cls: _Class) -> _Class:
    """Class decorator: `load_text_encoder` builds saved encoders of kind `cls.kind` with this
    class."""
    if TEXT_ENCODERS.setdefault(cls.kind, cls) is not cls:
        raise ValueError(
            f"text encoder kind {cls.kind!r} is taken by {TEXT_ENCODERS[cls.kind].__name__}"
        )
    return cls


def save_text_encoder(encoder: TextEncoder, directory: str | os.PathLike) -> None:
    """Write `text_encoder.json` and the encoder's own files into `directory`, which is made if it
    is missing."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    encoder.write_files(directory)
    header = {"kind": encoder.kind, "version": encoder.version, "settings": encoder.settings()}
    (directory / HEADER_FILE).write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")


def load_text_encoder(directory: str | os.PathLike) -> TextEncoder:
    """The encoder saved in `directory`, whatever its kind.

    Raises FileNotFoundError if a file is missing; ValueError if one is damaged, or of an unknown
    kind or version.
    """
    path = Path(directory) / HEADER_FILE
    header = _read_header(path)
    try:
        return TEXT_ENCODERS[header["kind"]].from_files(header["settings"], path.parent)
    except TypeError as error:
        raise ValueError(
            f"{path} has settings that {header['kind']!r} does not take: {error}"
        ) from error


def _read_header(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path.name} in {path.parent}: expected a directory written by save_text_encoder"
        )
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        version, kind, _ = header["version"], str(header["kind"]), header["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a text encoder header ({error!r}): save the encoder again"
        ) from error
    if kind not in TEXT_ENCODERS:
        raise ValueError(
            f"{path} is of unknown kind {kind!r}; known kinds: {', '.join(sorted(TEXT_ENCODERS))}"
        )
    if version != (known := TEXT_ENCODERS[kind].version):
        raise ValueError(
            f"{path} has format version {version}, this code reads {known} of kind {kind!r}"
        )
    return header

"""What a text encoder is: captions to K feature vectors of width E each.

It runs on the host's side of the pipeline, before training or sampling. Features are float32. The
mask is True at tokens, at one or more for every caption, also for the empty one (attention over no
key at all is undefined). Padding follows the tokens unless the encoder says otherwise. What the
features hold at padding is up to the encoder (`hashed` leaves zeros; `qwen2` leaves what its
network computes at the pad tokens, as the published model was trained); only a model that ignores
the mask sees the difference.

`max_tokens` is K: a caption's further tokens are cut, with a warning.

A new kind is a module with a class and one line in `TEXT_ENCODERS`. The class has

    kind, version                    class attributes: its name, and the version of its files
    max_tokens, width, encode, save  as `TextEncoder` says
    settings() -> dict               JSON values
    write_files(directory)           writes what does not fit JSON (weights); may do nothing
    from_files(settings, directory)  class method: the inverse of both
    open(place, **options)           class method: from the second half of "kind:place"; the options
                                     are tokens, padding_side, system_text_file and dtype
    count_tokens(captions)           optional: the tokens of each caption before cutting
    from_sizes(tokens, width)        optional class method, for a kind that needs no files

A saved encoder is a folder with `text_encoder.json` (kind, version, settings) beside those files.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from videomar_jax.checks import UserError
from videomar_jax.io.files import atomic_write, take_digest, with_digest
from videomar_jax.io.log import warn_once
from videomar_jax.io.registry import Registry
from videomar_jax.types import Bool

HEADER_FILE = "text_encoder.json"

TEXT_ENCODERS = Registry(
    "text encoder",
    {
        "hashed": "videomar_jax.text_encoders.hashed:HashedTextEncoder",
        "qwen2": "videomar_jax.text_encoders.qwen2.encoder:Qwen2TextEncoder",
    },
)
"""The kinds of text encoders. `TEXT_ENCODERS.register` adds a class from outside the package."""


@runtime_checkable
class TextEncoder(Protocol):
    """Captions to padded features and a mask."""

    @property
    def max_tokens(self) -> int: ...

    @property
    def width(self) -> int: ...

    def encode(
        self, captions: Sequence[str]
    ) -> tuple[Float32[np.ndarray, "B K E"], Bool[np.ndarray, "B K"]]: ...

    def save(self, directory: str | os.PathLike) -> None: ...


def tokens_cut(encoder: TextEncoder, captions: Sequence[str]) -> list[int]:
    """How many tokens each caption loses; zeros if the encoder cannot count them."""
    if not hasattr(encoder, "count_tokens"):
        return [0] * len(captions)
    return [max(0, count - encoder.max_tokens) for count in encoder.count_tokens(captions)]


def save_text_encoder(encoder: TextEncoder, directory: str | os.PathLike) -> None:
    """Writes `text_encoder.json` and the encoder's own files into `directory`, which is created if
    needed."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    encoder.write_files(directory)
    header = {"kind": encoder.kind, "version": encoder.version, "settings": encoder.settings()}
    atomic_write(directory / HEADER_FILE, json.dumps(with_digest(header), indent=2) + "\n")


def load_text_encoder(directory: str | os.PathLike) -> TextEncoder:
    """The encoder saved in `directory`, whatever its kind.

    Raises:
        FileNotFoundError: a file is missing.
        UserError: a file is damaged, or of an unknown kind or version.
    """
    path = Path(directory) / HEADER_FILE
    header = TEXT_ENCODERS.read_header(path, ("settings",))
    if not take_digest(header):
        # Not refused: it may have been edited on purpose.
        warn_once("%s is not as it was written: it was edited by hand, or is damaged", path)
    try:
        return TEXT_ENCODERS[header["kind"]].from_files(header["settings"], path.parent)
    except TypeError as error:
        raise UserError(
            f"{path} has settings that {header['kind']!r} does not take: {error}"
        ) from error

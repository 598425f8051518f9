"""Sections of a config as frozen dataclasses that check themselves: clips, tokenizer, text
encoder."""

import dataclasses
import re
from typing import Any

from videomar_jax.tokenizers.cosmos.config import CosmosConfig


def one_of(name: str, value: Any, choices: tuple) -> None:
    """Raises a ValueError for a value that is none of these."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it may be one of {', '.join(map(repr, choices))}.")


def at_least_one(section: str, config: Any, *fields: str) -> None:
    """Raises a ValueError for the first of these fields that is less."""
    for field in fields:
        if getattr(config, field) < 1:
            raise ValueError(f"{section}.{field} must be at least 1, not {getattr(config, field)}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where clips come from."""

    kind: str
    path: str
    captions: str
    fps: float
    holdout: float
    split: str
    held_out: str
    video_key: str
    caption_key: str
    data_dir: str
    length: int
    threads: int

    def __post_init__(self):
        one_of("data.kind", self.kind, ("shapes", "videos", "shards", "tfds"))
        at_least_one("data", self, "length")
        wanted = {
            "videos": "the folder of clips",
            "shards": "the folder of prepared clips",
            "tfds": "the dataset",
        }
        if self.kind in wanted and not self.path:
            place = "NAME" if self.kind == "tfds" else "DIR"
            raise ValueError(
                f"data.kind is {self.kind!r}: name {wanted[self.kind]} with --config.data.path={place}."
            )
        if not 0 < self.holdout < 1:
            raise ValueError(
                f"data.holdout must lie between 0 and 1, not {self.holdout}: it is what is measured on."
            )
        if self.kind == "tfds" and not self.held_out and "[" in self.split:
            raise ValueError(
                f"data.split {self.split!r} is a part of a split already: name the part to measure on with "
                f"--config.data.held_out=SPLIT."
            )

    def tfds_split(self, split: str) -> str:
        """The TFDS split for "train" or "test": what `held_out` names, or the last `holdout` of
        `split`, of each of its parts where it is a sum."""
        if self.held_out:
            return self.split if split == "train" else self.held_out
        first = min(max(round(100 * (1 - self.holdout)), 1), 99)
        part = f"[:{first}%]" if split == "train" else f"[{first}%:]"
        return "+".join(name.strip() + part for name in self.split.split("+"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Video to latents."""

    kind: str
    path: str
    scale: float
    patch: int
    temporal_stride: int
    channels: int
    patches: str
    whitening: float
    fit_clips: int

    def __post_init__(self):
        one_of("tokenizer.kind", self.kind, ("pca", "cosmos"))
        if not self.scale > 0:
            raise ValueError(f"tokenizer.scale must be positive, not {self.scale}.")
        at_least_one("tokenizer", self, "patch", "temporal_stride", "channels", "fit_clips")

    def strides(self) -> tuple[int, int] | None:
        """(temporal, spatial) stride, where they are known before the tokenizer is opened."""
        if self.kind == "pca":
            return self.temporal_stride, self.patch
        release, _, place = self.path.rpartition("@")
        found = re.search(r"CV\d+x\d+x\d+", release or place)
        config = CosmosConfig.release(found[0]) if found else None
        return (config.temporal_stride, config.spatial_stride) if config else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Captions to features."""

    kind: str
    path: str
    system_text_file: str
    padding_side: str
    tokens: int
    width: int

    def __post_init__(self):
        one_of("text.kind", self.kind, ("hashed", "qwen2"))
        at_least_one("text", self, "tokens", "width")


def check_named(
    data: DataConfig, tokenizer: TokenizerConfig, text: TextConfig, init_from: str
) -> None:
    """Raises a ValueError for a tokenizer or text encoder that neither the config nor another model
    names."""
    if init_from or data.kind == "shards":
        return
    if tokenizer.kind == "cosmos" and not tokenizer.path:
        raise ValueError(
            "tokenizer.kind is 'cosmos': name its weights with --config.tokenizer.path=PLACE."
        )
    if text.kind == "qwen2" and not text.path:
        raise ValueError("text.kind is 'qwen2': name its folder with --config.text.path=PLACE.")

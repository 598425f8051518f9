"""The sections of a config that concern a run's surroundings: tokenizer, text encoder, evaluation.

`DataConfig` stands in `experiment.data_sources`, beside the kinds of data that it is for.
"""

import dataclasses
from typing import Literal

from videomar_jax.checks import (
    Count,
    Fraction,
    Natural,
    Positive,
    UserError,
    check_fields,
    one_of,
)
from videomar_jax.experiment.data_sources import DataConfig
from videomar_jax.text_encoders.base import TEXT_ENCODERS
from videomar_jax.tokenizers.base import TOKENIZERS

__all__ = ["DataConfig", "EvaluationConfig", "TextConfig", "TokenizerConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Video to latents. Prepared clips come with the tokenizer that made them.

    Raises:
        UserError: a value outside its range, by name.
    """

    kind: str = "pca"
    """pca is fitted on the training clips; cosmos is a published network."""
    path: str = ""
    """cosmos: file, folder or Hugging Face repo id, or RELEASE@ followed by one of these."""
    scale: Positive = 0.5
    """cosmos: factor on its latents; the default is VideoMAR's."""
    patch: Count = 4
    """pca: pixels along each side of the square that becomes one latent pixel."""
    temporal_stride: Count = 2
    """pca: pixel frames of a latent frame; the first latent frame holds a single one."""
    channels: Count = 16
    """pca: values of a latent pixel."""
    patches: Literal["plain", "haar"] = "plain"
    """pca: what is fitted, plain pixels or their wavelet coefficients."""
    whitening: Fraction = 0.5
    """pca: 0 keeps the scale of the components, 1 gives every channel unit variance."""
    fit_clips: Count = 400
    """pca: training clips that it is fitted on."""

    def __post_init__(self):
        check_fields("tokenizer", self)
        one_of("tokenizer.kind", self.kind, TOKENIZERS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Captions to features.

    Raises:
        UserError: a value outside its range, by name.
    """

    kind: str = "hashed"
    """hashed gives each word a fixed random vector and needs no files; qwen2 is a language
    model."""
    path: str = ""
    """qwen2: folder or Hugging Face repo id."""
    system_text_file: str = ""
    """qwen2: a file with the text that stands in front of every caption."""
    padding_side: Literal["right", "left"] = "right"
    """qwen2: where captions are padded."""
    tokens: Count = 8
    """Length that captions are padded or cut to; must equal model.text_tokens."""
    width: Count = 64
    """hashed: values of a token; must equal model.text_width."""

    def __post_init__(self):
        check_fields("text", self)
        one_of("text.kind", self.kind, TEXT_ENCODERS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured when training ends.

    Raises:
        UserError: a value outside its range, by name.
    """

    clips: Count = 64
    """Held-out clips that are generated anew and scored."""
    batch_size: Count = 16
    """Clips generated at a time, in previews too."""
    given: tuple[Count, ...] = (1, 3, 5)
    """footage: frames that held-out clips are continued from, each a case of the report. With a
    temporal stride of s they are 1 + s k; others are rounded up, and left out where a clip is not
    longer."""
    linear_windows: Natural = 4000
    """footage: training windows that the linear predictor is fitted on, at most; 0: reports have
    none."""

    def __post_init__(self):
        check_fields("evaluation", self)
        if not self.given:
            raise UserError("evaluation.given must name at least one number of frames, such as 1.")

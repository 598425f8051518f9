"""What may be said about tokenizers, text encoders and published weights. Needs no JAX."""

import dataclasses
from typing import Literal

from videomar_jax.checks import Count, Positive, check_fields, one_of
from videomar_jax.models.config import PRESETS


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComponentOptions:
    """The tokenizer and the text encoder of a model, and how they are read.

    Raises:
        UserError: a field with a value that makes no sense, by name.
    """

    tokenizer: str | None = None
    """cosmos:PLACE (a file, folder or repository id; RELEASE@PLACE) or pca:DIR."""
    text_encoder: str | None = None
    """qwen2:PLACE (a folder or repository id) or hashed:TOKENSxWIDTH."""
    latent_scale: float = 0.5
    """Factor on the latents of Cosmos."""
    text_tokens: Count = 300
    """Tokens that a prompt is padded or cut to (Qwen2)."""
    padding_side: Literal["right", "left"] = "right"
    """Where prompts are padded (Qwen2)."""
    system_text_file: str | None = None
    """File with a text that is put in front of every prompt (Qwen2)."""

    def __post_init__(self):
        check_fields("", self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """How published weights become a model.

    Raises:
        UserError: a field with a value that makes no sense, by name.
    """

    weights: Literal["ema", "model", "params"] = "ema"
    """The averaged weights, or the last ones (model and params mean the same)."""
    num_frames: Count = 49
    """Pixel frames that the model generates by default."""
    height: Count = 480
    """Pixel rows that the model generates by default."""
    width: Count = 768
    """Pixel columns that the model generates by default."""
    fps: Positive = 12.0
    """Frames per second that the model was trained at."""
    preset: str | None = None
    """videomar_1p4b or another named size: a file of other sizes is refused, such as one that lacks
    its last blocks. What no shape tells is then as in the preset, unless the file says it."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """In which the model computes its matrix products."""
    param_dtype: Literal["float32", "bfloat16"] | None = None
    """Of the parameters that are written; by default that of the file, and bfloat16 of a run's."""

    def __post_init__(self):
        check_fields("", self)
        if self.preset is not None:
            one_of("preset", self.preset, tuple(PRESETS))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a trained model becomes a file with the published names.

    Raises:
        UserError: a field with a value that makes no sense, by name.
    """

    container: Literal["bare", "ema"] = "bare"
    """With --export: the weights alone, or as "model_ema", which published code expects."""
    drop_regression: bool = False
    """With --export: leave out the auxiliary readout of training."""
    overwrite: bool = False
    """With --export: replace the file."""

    def __post_init__(self):
        check_fields("", self)

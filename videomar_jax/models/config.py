"""What a VideoMAR is built from: one frozen dataclass that checks itself, and the presets.

The defaults are the paper's 1.4B model. Fields marked "ours" exist because a small model learns
faster with them or because the published code leaves the point open; their defaults are the
published behaviour.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from videomar_jax.diffusion.base import PROCESSES, Process


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and choices of the transformer and its head.

    Raises:
        ValueError: a field has a value that cannot be built; the text names the field and a way
            out.
    """

    # Tokens
    latent_channels: int = 16  # C of the tokenizer
    patch_size: int = 1  # p: latent pixels per token side
    # Transformer
    width: int = 1536
    depth: int = 36
    num_heads: int = 24
    mlp_ratio: int = 4
    rope_split: Sequence[int] | None = (
        None  # channels of a head for (frame, row, column); None: d/2, d/4, d/4
    )
    rope_base: float = 10000.0
    rope_frame_origin: Literal["absolute", "restart"] = (
        "absolute"  # generation: frame t at t, or each pass from 0
    )
    qk_norm_gain: float = 1.0  # ours: initial gain of the query and key norms
    gate_init: float | None = (
        None  # ours: start value of both residual gates; None: normal / sqrt(D) like the table
    )
    # Text
    text_tokens: int = 300  # K, also the length of the learned null context
    text_width: int = 1536  # E of the text encoder
    text_mask: bool = True  # hide padded text tokens
    null_text_mask: Literal["prompt", "ones"] = (
        "prompt"  # mask of the null context: the prompt's, or nothing hidden
    )
    pooled_text: bool = False  # ours: add a projection of the mean text feature to every token
    # Diffusion head
    head: Literal["ddpm", "flow"] = "ddpm"
    head_width: int = 1024
    head_depth: int = 3
    head_zero_init: bool = True  # False, ours: small random modulation and output layers
    flow_time: Literal["uniform", "logit_normal"] = (
        "uniform"  # how the flow head draws training times
    )
    # Auxiliary regression of the clean token from z (ours; its weight is the loss's business)
    regression: bool = False
    # Tell the model how noisy the finished frames are (MAGI 2025); goes with the loss's history
    # noise
    history_levels: bool = False
    # Computation
    dtype: Literal["float32", "bfloat16"] = (
        "float32"  # matmuls; statistics, softmax and diffusion stay float32
    )
    remat: Literal["none", "full", "dots"] = "none"  # what the backward pass computes again
    unroll: int = 1  # layers per turn of the layer loop, and of the head's; more: faster on CPU, compiles slower
    attention: Literal["auto", "xla", "cudnn"] = "auto"

    def __post_init__(self):
        for field in (
            "latent_channels",
            "patch_size",
            "width",
            "depth",
            "num_heads",
            "mlp_ratio",
            "text_tokens",
            "text_width",
            "head_width",
            "head_depth",
            "unroll",
        ):
            if getattr(self, field) < 1:
                raise ValueError(f"model.{field} must be at least 1, not {getattr(self, field)}.")
        for field in dataclasses.fields(self):
            choices = getattr(field.type, "__args__", ())
            if (
                getattr(field.type, "__origin__", None) is Literal
                and getattr(self, field.name) not in choices
            ):
                raise ValueError(
                    f"model.{field.name} is {getattr(self, field.name)!r}; it may be one of {choices}."
                )
        if self.width % self.num_heads:
            raise ValueError(
                f"model.width {self.width} is not a multiple of model.num_heads {self.num_heads}."
            )
        if self.rope_split is not None:
            object.__setattr__(self, "rope_split", tuple(self.rope_split))
        if len(self.rope_channels) != 3 or any(c < 0 or c % 2 for c in self.rope_channels):
            raise ValueError(
                f"model.rope_split must be three even numbers, not {self.rope_channels}"
                + (
                    "; a head width that is a multiple of 8 splits by itself."
                    if self.rope_split is None
                    else "."
                )
            )
        if sum(self.rope_channels) != self.head_dim:
            raise ValueError(
                f"model.rope_split {self.rope_channels} must add up to the head width {self.head_dim}."
            )

    @property
    def head_dim(self) -> int:
        """d, the width of one attention head."""
        return self.width // self.num_heads

    @property
    def token_dim(self) -> int:
        """P, the values of one token."""
        return self.latent_channels * self.patch_size**2

    @property
    def rope_channels(self) -> tuple[int, int, int]:
        """Channels of a head that encode the frame, the row and the column."""
        return self.rope_split or (self.head_dim // 2, self.head_dim // 4, self.head_dim // 4)

    @property
    def process(self) -> Process:
        """The diffusion process of the head."""
        options = {"flow": {"time_distribution": self.flow_time}}
        return PROCESSES[self.head](**options.get(self.head, {}))

    def sizes(self) -> dict[str, Any]:
        """The fields that decide which parameters there are, and of what shape."""
        names = (
            "latent_channels",
            "patch_size",
            "width",
            "depth",
            "num_heads",
            "mlp_ratio",
            "text_tokens",
            "text_width",
            "pooled_text",
            "head",
            "head_width",
            "head_depth",
            "regression",
            "history_levels",
        )
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a JSON file."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """Builds the config from plain values; an unknown key is answered with the nearest known
        one."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                raise ValueError(
                    f"Unknown model field {key!r}."
                    + (f" Did you mean {near[0]!r}?" if near else "")
                )
        return cls(**values)


PRESETS: dict[str, ModelConfig] = {
    "videomar_1p4b": ModelConfig(),
    "quickstart": ModelConfig(
        width=128,
        depth=4,
        num_heads=4,
        text_tokens=8,
        text_width=64,
        head="flow",
        head_width=128,
        flow_time="logit_normal",
        qk_norm_gain=1.7,
        head_zero_init=False,
        pooled_text=True,
        regression=True,
        unroll=4,
        rope_split=(8, 12, 12),
        rope_base=60.0,
    ),
    "tiny": ModelConfig(
        latent_channels=4,
        width=32,
        depth=2,
        num_heads=2,
        text_tokens=6,
        text_width=16,
        head="flow",
        head_width=32,
        head_depth=2,
    ),
}
"""Named sizes: the paper's model, the one the quick start trains, and one for tests."""

"""What a VideoMAR is built from: one frozen dataclass that checks itself, and the presets.

The defaults are the paper's 1.4B model. Fields marked "ours" exist because a small model learns
faster with them, or because the published code leaves the point open; their defaults are the
published behaviour.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from videomar_jax.checks import Natural, Positive, Size, UserError, check_fields, known_keys

if TYPE_CHECKING:
    import videomar_jax.diffusion.base


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and choices of the transformer and its head.

    Raises:
        UserError: a field has a value that cannot be built; the text names the field.
    """

    # Tokens
    latent_channels: Size = 16
    """C, the channels of the tokenizer's latents."""
    patch_size: Size = 1
    """p, the latent rows and columns of a token."""

    # Transformer
    width: Size = 1536
    """D."""
    depth: Size = 36
    """Layers of the transformer."""
    num_heads: Size = 24
    """n, attention heads; they divide the width."""
    mlp_ratio: Size = 4
    """Width of the feed-forward layer as a multiple of D."""
    rope_split: Sequence[Natural] | None = None
    """Channels of a head that encode (frame, row, column); None: d/2, d/4, d/4."""
    rope_base: Positive = 10000.0
    """Base of the rotary frequencies."""
    rope_frame_origin: Literal["absolute", "restart"] = "absolute"
    """In generation frame t stands at position t, or every pass restarts at 0."""
    qk_norm_gain: Positive = 1.0
    """Ours: initial gain of the query and key norms."""
    gate_init: float | None = None
    """Ours: initial value of both residual gates; None: normal / sqrt(D) like their table."""

    # Text
    text_tokens: Size = 300
    """K, also the length of the learned null context."""
    text_width: Size = 1536
    """E, the feature width of the text encoder."""
    text_mask: bool = True
    """Hide padded text tokens."""
    null_text_mask: Literal["prompt", "ones"] = "prompt"
    """The mask of the null context: that of the prompt, or nothing hidden."""
    pooled_text: bool = False
    """Ours: add a projection of the mean text feature to every token."""

    # Diffusion head
    head: Literal["ddpm", "flow"] = "ddpm"
    """The diffusion process of a token."""
    head_width: Size = 1024
    """Width of the head's MLP."""
    head_depth: Size = 3
    """Residual blocks of the head."""
    head_zero_init: bool = True
    """Start the modulation and output layers at zero; False (ours): small random values."""
    flow_time: Literal["uniform", "logit_normal"] = "uniform"
    """How the flow head draws training times."""
    regression: bool = False
    """Ours: a readout of the clean token from z (for `loss.regression_weight`)."""
    history_levels: bool = False
    """Give the model the noise level of earlier frames (MAGI 2025; for `loss.history_noise`)."""
    linear_prior: bool = False
    """Ours: predict what a linear map of the frame before, fitted beforehand, leaves over of a
    token (`models.linear_prior`)."""
    previous_frame: bool = False
    """Ours: add a projection of the frame before, 3x3 tokens, to the mask token."""
    forecast: Sequence[Natural] | None = None
    """Ours: (latent frames, token rows, token columns) of the clips that a linear forecast from
    frame 0 and the text is made of (`models.forecast`), which the linear prior then takes in; None:
    none. In a run's
    config (): those of its last stage."""
    residual: bool = False
    """Ours: the readout predicts the mean of a token, and the head draws the rest; needs
    model.regression and `loss.regression_weight`."""
    bilinear_units: Natural = 0
    """Ours: products of z and of the frame before in that readout (`models.linear_prior`); needs
    model.residual and model.linear_prior."""

    # Computation: changes no parameter
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the matrix products; statistics, softmax and diffusion stay float32."""
    remat: Literal["none", "full", "dots"] = "none"
    """What the backward pass computes again to save memory."""
    unroll: Size = 1
    """Layers per turn of the layer loop: more runs faster on a CPU and compiles slower."""
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    """The attention kernel (`models.kernels`)."""

    def __post_init__(self):
        check_fields("model", self)
        if self.width % self.num_heads:
            raise UserError(
                f"model.width {self.width} is not a multiple of model.num_heads {self.num_heads}."
            )
        if self.rope_split is not None:
            # A tuple, so that the config stays hashable when it comes from a JSON list.
            object.__setattr__(self, "rope_split", tuple(self.rope_split))
        if self.forecast is not None:
            object.__setattr__(self, "forecast", tuple(self.forecast))
            if len(self.forecast) != 3 or min(self.forecast) < 1 or self.forecast[0] < 2:
                raise UserError(
                    f"model.forecast must be latent frames (2 or more), token rows and token "
                    f"columns, not {self.forecast}."
                )
            if not self.linear_prior:
                raise UserError("model.forecast needs model.linear_prior=True.")
        if self.residual and not self.regression:
            raise UserError("model.residual needs model.regression=True.")
        if self.bilinear_units and not (self.residual and self.linear_prior):
            raise UserError("model.bilinear_units needs model.residual and model.linear_prior.")
        self._check_rope_channels()

    def _check_rope_channels(self) -> None:
        channels = self.rope_channels
        if len(channels) != 3 or any(count % 2 for count in channels):
            hint = ""
            if self.rope_split is None:
                hint = " A head width that is a multiple of 8 splits by itself."
            raise UserError(f"model.rope_split must be three even numbers, not {channels}.{hint}")
        if sum(channels) != self.head_dim:
            raise UserError(
                f"model.rope_split {channels} must add up to the head width {self.head_dim}."
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
    def rope_channels(self) -> tuple[int, ...]:
        """Channels of a head that encode the frame, the row and the column."""
        if self.rope_split is not None:
            return tuple(self.rope_split)
        return (self.head_dim // 2, self.head_dim // 4, self.head_dim // 4)

    @property
    def process(self) -> "videomar_jax.diffusion.base.Process":
        """The diffusion process of the head."""
        # Imported late: settings are read, and a wrong one is answered, without loading JAX.
        from videomar_jax.diffusion import PROCESSES

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
            *_ADDED,
        )
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a JSON file.

        A field of `_ADDED` is left out at its default: files and digests of models that were made
        before there was such a field stay as they are.
        """
        values = dataclasses.asdict(self)
        for field in dataclasses.fields(self):
            if field.name in _ADDED and values[field.name] == field.default:
                del values[field.name]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """The config of plain values.

        Raises:
            UserError: an unknown key (the text names the nearest known one), or a wrong value.
        """
        known_keys("model", values, [field.name for field in dataclasses.fields(cls)])
        return cls(**values)


_ADDED = ("linear_prior", "previous_frame", "residual", "forecast", "bilinear_units")
"""Fields that the first models did not have."""

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

"""How a video is drawn: one frozen dataclass that checks itself, and presets as named changes of
it."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

_HEAD_STEPS = re.compile(r"(ddim)?\d+|\d+(,\d+)+|\d+-\d+|")
_CHOICES = {
    "head_solver": ("euler", "heun"),
    "guidance_schedule": ("linear", "constant"),
    "temperature_law": ("constant", "paper", "linear"),
    "token_dtype": ("float32", "bfloat16"),
    "dtype": ("model", "float32", "bfloat16"),
    "head_dtype": ("model", "float32", "bfloat16"),
    "first_frame_position": ("absolute", "shifted"),
    "spatial_rope_scaling": ("none", "interpolate", "ntk"),
    "temporal_rope_scaling": ("none", "interpolate", "ntk"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How a video is drawn. The defaults are the paper's.

    Raises:
        ValueError: a value that makes no sense, by name.
    """

    # Reveal steps and the head's diffusion
    steps: int = 64  # reveal steps of a frame
    head_steps: str = "100"  # of the head: "N", for ddpm also "ddimN" or "N,N,…"; "A-B": from A to B as tokens appear
    head_solver: Literal["euler", "heun"] = (
        "euler"  # of the flow head; heun evaluates it twice a step
    )
    guidance: float = 3.0
    guidance_schedule: Literal["linear", "constant"] = "linear"
    guidance_interval: Sequence[float] = (
        0.0,
        1.0,
    )  # share of the reveal steps, from and to, that are guided
    temperature: float = 1.0
    temperature_law: Literal["constant", "paper", "linear"] = "constant"
    latent_clip: float = (
        2.0  # largest latent value, from the second generated frame on; 0 leaves tokens as drawn
    )
    clip_first: bool = False  # clip the first generated frame as well
    # Precision
    token_dtype: Literal["float32", "bfloat16"] = (
        "float32"  # drawn tokens are rounded to it; published: bfloat16
    )
    dtype: Literal["model", "float32", "bfloat16"] = "model"  # matmuls of the transformer
    head_dtype: Literal["model", "float32", "bfloat16"] = (
        "float32"  # matmuls of the head; diffusion is float32 anyway
    )
    # Longer and larger than training
    window: int | None = None  # finished frames that are kept and seen; None: all
    keep_first: bool = True  # with a window: frame 0 is one of them, for good
    first_frame_position: Literal["absolute", "shifted"] = (
        "shifted"  # of a kept frame 0: as it is, or next to the window
    )
    spatial_rope_scaling: Literal["none", "interpolate", "ntk"] = (
        "none"  # of rows and columns beyond the trained grid
    )
    temporal_rope_scaling: Literal["none", "interpolate", "ntk"] = (
        "none"  # of frames beyond the trained length
    )

    def __post_init__(self):
        object.__setattr__(
            self, "guidance_interval", tuple(float(x) for x in self.guidance_interval)
        )
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"sampling.{field} is {getattr(self, field)!r}; it may be one of {choices}."
                )
        if self.steps < 1:
            raise ValueError(f"sampling.steps must be at least 1, not {self.steps}.")
        self._check_head_steps()
        for field, off in (("guidance", 1), ("temperature", 0), ("latent_clip", 0)):
            value = getattr(self, field)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(
                    f"sampling.{field} must not be negative, but is {value}; {off} turns it off."
                )
        interval = self.guidance_interval
        if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= 1:
            raise ValueError(
                f"sampling.guidance_interval must rise within 0..1, such as (0.1, 0.8), not {interval}."
            )
        if self.window is not None and self.window < 1 + self.keep_first:
            raise ValueError(
                f"sampling.window must be at least {1 + self.keep_first}"
                + (" when frame 0 is kept" if self.keep_first else "")
                + f", not {self.window}; leave it out to keep all frames."
            )

    def _check_head_steps(self):
        """The form only; what a process can do with it, `plan_steps` knows."""
        text = str(self.head_steps).strip()
        object.__setattr__(self, "head_steps", text)
        numbers = [int(number) for number in re.findall(r"\d+", text)]
        if not _HEAD_STEPS.fullmatch(text):
            raise ValueError(
                f"sampling.head_steps is {text!r}; use a number, 'ddimN' or 'N,N,…' (ddpm), or 'A-B' to go from A to B "
                f"steps as tokens appear."
            )
        if 0 in numbers:
            raise ValueError(f"sampling.head_steps must be at least 1, not {text!r}.")

    @property
    def guided(self) -> bool:
        """Whether the branch without text is run at all."""
        return self.guidance != 1


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "quality": {
        "ddpm": dict(steps=64, head_steps="100"),
        "flow": dict(steps=64, head_steps="25"),
    },
    "balanced": {
        "ddpm": dict(steps=32, head_steps="50-10", guidance_interval=(0.25, 1.0)),
        "flow": dict(steps=32, head_steps="10-5", guidance_interval=(0.25, 1.0)),
    },
    "fast": {
        "ddpm": dict(steps=16, head_steps="25-5", guidance_interval=(0.4, 1.0)),
        "flow": dict(steps=16, head_steps="5-2", guidance_interval=(0.4, 1.0)),
    },
}
"""Name → head → what differs from a model's own sampling settings; docs/sampling.md says why."""


def with_preset(config: SamplingConfig, name: str, head: str) -> SamplingConfig:
    """The config with the preset's changes for a head of this kind, "ddpm" or "flow". Where
    "balanced" and "fast" ask for more steps than the model samples with by itself, its own number
    stays.

    Raises:
        ValueError: there is no preset of this name.
    """
    if name not in PRESETS:
        raise ValueError(f"There is no sampling preset {name!r}; there are {', '.join(PRESETS)}.")
    changes = dict(PRESETS[name][head])
    if name != "quality":
        changes["steps"] = min(config.steps, changes["steps"])
        changes["head_steps"] = min(changes["head_steps"], config.head_steps, key=_most_steps)
        if changes["steps"] == 1:  # which is either guided or not
            del changes["guidance_interval"]
    return dataclasses.replace(config, **changes)


def _most_steps(head_steps: str) -> int:
    """Head steps of a token at most."""
    numbers = [int(number) for number in re.findall(r"\d+", head_steps)]
    return (sum(numbers) if "," in head_steps else max(numbers)) if numbers else 1000

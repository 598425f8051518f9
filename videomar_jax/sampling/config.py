"""How a video is drawn: one frozen dataclass that checks itself, and presets as changes of it."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any, Literal

from videomar_jax.checks import (
    BelowOne,
    Count,
    NonNegative,
    UserError,
    check_fields,
    did_you_mean,
)

RopeScaling = Literal["none", "interpolate", "ntk"]


@dataclasses.dataclass(frozen=True)
class HeadSteps:
    """The steps of the diffusion head, read from the text of `SamplingConfig.head_steps`."""

    steps: str
    """What the process takes: "N", and with a ddpm head "ddimN", "N,N,…" or "" (all its steps)."""
    falling_to: int | None = None
    """For "A-B": B, the head steps of the last reveal step; `steps` is those of the first."""

    @classmethod
    def parse(cls, text: str) -> "HeadSteps":
        """Reads "100", "ddim50", "10,10,20", "50-10" or "".

        Raises:
            UserError: a text of another form, or a number of steps that is 0.
        """
        text = text.strip()
        if not re.fullmatch(r"(ddim)?\d+|\d+(,\d+)+|\d+-\d+|", text):
            raise UserError(
                f"sampling.head_steps is {text!r}; use a number, 'ddimN' or 'N,N,…' (ddpm), or "
                "'A-B' to go from A to B steps as tokens appear."
            )
        if 0 in map(int, re.findall(r"\d+", text)):
            raise UserError(f"sampling.head_steps must be at least 1, not {text!r}.")
        first, dash, last = text.partition("-")
        return cls(first, int(last) if dash else None)

    def __str__(self) -> str:
        return self.steps if self.falling_to is None else f"{self.steps}-{self.falling_to}"

    def most(self, all_steps: int = 1000) -> int:
        """Head steps of a token at most; "" are all the steps of the process."""
        numbers = [int(number) for number in re.findall(r"\d+", self.steps)]
        if self.falling_to is not None:
            numbers = [max(*numbers, self.falling_to)]
        return sum(numbers) if numbers else all_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How a video is drawn. The defaults are the paper's.

    Raises:
        UserError: a value of another type or outside its range, by name.
    """

    # Reveal steps, and the diffusion of the head

    steps: Count = 64
    """Reveal steps of a frame, each one pass of the transformer; fewer is faster."""
    head_steps: str = "100"
    """Diffusion steps of a token: "N"; "A-B" goes from A to B as tokens appear; a ddpm head also
    takes "ddimN" and "N,N,…" (steps of each section)."""
    head_solver: Literal["euler", "heun"] = "euler"
    """Solver of a flow head; heun evaluates the head twice a step."""
    guidance: NonNegative = 3.0
    """Strength of classifier-free guidance; 1 turns it off, which halves the work."""
    guidance_schedule: Literal["linear", "constant"] = "linear"
    """Guidance grows from 1 as tokens appear, or is the same in every reveal step."""
    guidance_interval: Sequence[float] = (0.0, 1.0)
    """From,to: share of the reveal steps that is guided, such as 0.25,1; the rest costs half."""
    temperature: NonNegative = 1.0
    """Scale of the noise; below 1 gives calmer, less varied videos, 0 turns it off."""
    temperature_law: Literal["constant", "paper", "linear"] = "constant"
    """Temperature over the frames: the same; 0.9 + 10^-(frame + 1); or falling from 0.95 to 0.9.
    The two last are scaled by temperature."""
    latent_clip: NonNegative = 2.0
    """Largest latent value, from the second generated frame on; 0 turns it off: tokens are left as
    drawn."""
    clip_first: bool = False
    """Clip the first generated frame as well."""

    still_detail: bool = False
    """Where a pixel has not changed since the last given frame, add what the tokenizer loses of
    it: what stands still keeps its detail, whatever the tokenizer."""

    # Precision

    token_dtype: Literal["float32", "bfloat16"] = "float32"
    """Drawn tokens are rounded to it; the published sampler rounds to bfloat16."""
    dtype: Literal["model", "float32", "bfloat16"] = "model"
    """Matrix products of the transformer; model: as it was trained."""
    head_dtype: Literal["model", "float32", "bfloat16"] = "float32"
    """Matrix products of the diffusion head; the diffusion itself is always float32."""

    # Longer and larger than training

    window: Count | None = None
    """Earlier latent frames that are kept and seen; None keeps all of them."""
    keep_first: bool = True
    """With a window: frame 0 is always one of the kept frames."""
    history_noise: BelowOne = 0.0
    """Share of noise in generated frames as later ones see them, told to a model with
    `history_levels`; no more than the `loss.history_noise` that it was trained with."""
    first_frame_position: Literal["absolute", "shifted"] = "shifted"
    """Where a kept frame 0 stands in time: at its own number, or right behind the window."""
    spatial_rope_scaling: RopeScaling = "none"
    """How rows and columns beyond the trained grid are folded back into it."""
    temporal_rope_scaling: RopeScaling = "none"
    """How frame numbers beyond the trained length are folded back into it."""

    def __post_init__(self):
        # What JSON, flags and configs write: a list for a tuple, a number for its text.
        if isinstance(self.guidance_interval, Sequence):
            object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))
        if type(self.head_steps) in (int, str):
            object.__setattr__(self, "head_steps", str(self.head_steps).strip())
        check_fields("sampling", self)
        HeadSteps.parse(self.head_steps)
        interval = self.guidance_interval
        if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= 1:
            raise UserError(
                "sampling.guidance_interval must rise within 0..1, such as (0.1, 0.8), not "
                f"{interval}."
            )
        least = 2 if self.keep_first else 1
        if self.window is not None and self.window < least:
            reason = " when frame 0 is kept" if self.keep_first else ""
            raise UserError(
                f"sampling.window must be at least {least}{reason}, not {self.window}; leave it "
                "out to keep all frames."
            )

    @functools.cached_property
    def parsed_head_steps(self) -> HeadSteps:
        """`head_steps` as a record."""
        return HeadSteps.parse(self.head_steps)

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
    """The config with the changes of a preset.

    Where "balanced" and "fast" ask for more steps than the model samples with by itself, its own
    number stays.

    Args:
        name: one of `PRESETS`.
        head: kind of the diffusion head, "ddpm" or "flow".
    Raises:
        UserError: there is no preset of this name.
    """
    if name not in PRESETS:
        hint = did_you_mean(name, PRESETS)
        raise UserError(
            f"There is no sampling preset {name!r}; there are {', '.join(PRESETS)}.{hint}"
        )
    changes = dict(PRESETS[name][head])
    if name != "quality":
        # A model that samples in few steps gains nothing from more of them.
        changes["steps"] = min(config.steps, changes["steps"])
        preset_steps = HeadSteps.parse(changes["head_steps"])
        if config.parsed_head_steps.most() < preset_steps.most():
            changes["head_steps"] = config.head_steps
        if changes["steps"] == 1:
            # A single reveal step is either guided or not.
            del changes["guidance_interval"]
    return dataclasses.replace(config, **changes)

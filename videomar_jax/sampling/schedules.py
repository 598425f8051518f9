"""The schedules of generation, as arrays: what happens at which reveal step and in which frame.

A frame of S tokens is revealed in I steps along a random order. After step s = 0..I-1 there remain hidden

    len_s = max(1, min(len_{s-1} - 1, floor(S cos(pi/2 (s+1)/I)))),   the last step reveals all that is left   (MAR)

    guidance    linear: 1 + (g - 1)(S - len_s)/S         constant: g
    temperature constant: tau     paper: 0.9 + 10^-(i+1)     linear (the code's): 0.95 - 0.05 i/G
                for the i-th of G generated frames, the two progressive laws scaled by tau
"""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How a video is drawn. The defaults are the paper's.

    Raises:
        ValueError: a value that makes no sense, by name.
    """

    steps: int = 64  # reveal steps of a frame
    head_steps: str = "100"  # diffusion steps of the head: a respacing (ddpm) or a number (flow)
    guidance: float = 3.0
    guidance_schedule: Literal["linear", "constant"] = "linear"
    temperature: float = 1.0
    temperature_law: Literal["constant", "paper", "linear"] = "constant"
    clip: float = 2.0  # largest latent value, from the second generated frame on; 0 leaves tokens as drawn
    clip_first: bool = False  # clip the first generated frame as well
    token_dtype: Literal["float32", "bfloat16"] = "float32"  # drawn tokens are rounded to it; published: bfloat16

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"sampling.steps must be at least 1, not {self.steps}.")
        if self.guidance < 0:
            raise ValueError(f"sampling.guidance must not be negative, but is {self.guidance}; 1 turns it off.")
        if self.temperature < 0:
            raise ValueError(f"sampling.temperature must not be negative, but is {self.temperature}.")
        if self.guidance_schedule not in ("linear", "constant"):
            raise ValueError(f"sampling.guidance_schedule is {self.guidance_schedule!r}; use 'linear' or 'constant'.")
        if self.token_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"sampling.token_dtype is {self.token_dtype!r}; use 'float32' or 'bfloat16'.")
        if self.temperature_law not in ("constant", "paper", "linear"):
            raise ValueError(
                f"sampling.temperature_law is {self.temperature_law!r}; use 'constant', 'paper' or 'linear'."
            )
        if self.clip < 0:
            raise ValueError(f"sampling.clip must not be negative, but is {self.clip}; 0 turns it off.")

    @property
    def guided(self) -> bool:
        """Whether the branch without text is run at all."""
        return self.guidance != 1


class RevealPlan(NamedTuple):
    """One row for each reveal step that reveals something; step s reveals order[start : start + count]."""

    start: np.ndarray  # int32 [I]
    count: np.ndarray  # int32 [I]
    guidance: np.ndarray  # float32 [I]


def mask_lengths(tokens: int, steps: int) -> np.ndarray:
    """Hidden tokens after each step by the cosine schedule, int64 [steps] (computed in float64; the last entry is 1
    although the last step reveals everything, because the linear guidance reads it)."""
    lengths, remaining = [], tokens
    for step in range(steps):
        remaining = max(1, min(remaining - 1, int(np.floor(tokens * np.cos(np.pi / 2 * (step + 1) / steps)))))
        lengths.append(remaining)
    return np.array(lengths)


def reveal_plan(tokens: int, config: SamplingConfig) -> RevealPlan:
    """What each step reveals and its guidance; steps that reveal nothing (more steps than tokens) are left out."""
    lengths = mask_lengths(tokens, config.steps)
    hidden_before = np.append(tokens, lengths[:-1])
    hidden_after = np.append(lengths[:-1], 0)
    guidance = np.full(len(lengths), config.guidance)
    if config.guidance_schedule == "linear":
        guidance = 1 + (config.guidance - 1) * (tokens - lengths) / tokens
    used = hidden_before > hidden_after
    start, count = tokens - hidden_before, hidden_before - hidden_after
    return RevealPlan(start[used].astype(np.int32), count[used].astype(np.int32), guidance[used].astype(np.float32))


def temperatures(generated: int, config: SamplingConfig) -> np.ndarray:
    """The temperature of each generated frame, float32 [G]."""
    index = np.arange(generated)
    law = {
        "constant": np.ones(generated),
        "paper": 0.9 + 10.0 ** -(index + 1),
        "linear": 0.95 - 0.05 * index / max(generated, 1),
    }
    return (config.temperature * law[config.temperature_law]).astype(np.float32)


def clip_bounds(generated: int, config: SamplingConfig) -> np.ndarray:
    """The largest absolute token value of each generated frame, float32 [G]; infinite where nothing is clipped."""
    bounds = np.full(generated, config.clip or np.inf, np.float32)
    if not config.clip_first:
        bounds[:1] = np.inf
    return bounds

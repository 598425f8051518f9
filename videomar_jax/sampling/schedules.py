"""The schedules of generation, as arrays (paper, section 3.3).

A frame of S tokens is revealed in I steps along a random order. After step s = 0..I-1 there remain
hidden

    len_s = max(1, min(len_{s-1} - 1, floor(S cos(pi/2 (s+1)/I))))                           (1)

tokens (MAR, equation for its masking schedule); the last step reveals all that is left. With g the
guidance, tau the temperature and frame i of G generated frames:

    guidance     linear: 1 + (g - 1)(S - len_s)/S       constant: g                          (2)
                 only where a <= s/I < b (guidance_interval; Kynkäänniemi et al. 2024)
    head steps   "A-B": A + (B - A) s/(I - 1), rounded                                       (3)
                 (DiSA 2025: late tokens are nearly decided by their neighbours)
    temperature  constant: tau     paper: tau (0.9 + 10^-(i+1))                              (4)
                 linear (the published code's): tau (0.95 - 0.05 i/G)
"""

from typing import NamedTuple

import numpy as np

from videomar_jax.checks import UserError
from videomar_jax.sampling.config import SamplingConfig


class RevealPlan(NamedTuple):
    """One row for each reveal step; step s reveals order[start : start + count]."""

    start: np.ndarray  # int32 [I]
    count: np.ndarray  # int32 [I], at least 1
    guidance: np.ndarray  # float32 [I]
    guided: np.ndarray  # bool [I]: whether the branch without text is run
    head: np.ndarray  # int32 [I]: which of the different `head_step_names`


def mask_lengths(tokens: int, steps: int) -> np.ndarray:
    """Hidden tokens after each step by equation (1), int64 [steps]."""
    lengths, remaining = [], tokens
    for step in range(steps):
        # In float64, as published: float32 would round some whole numbers down.
        cosine = np.floor(tokens * np.cos(np.pi / 2 * (step + 1) / steps))
        remaining = max(1, min(remaining - 1, int(cosine)))
        lengths.append(remaining)
    # The last entry is 1 although its step reveals everything: linear guidance reads it.
    return np.array(lengths)


def reveal_plan(tokens: int, config: SamplingConfig) -> RevealPlan:
    """What each reveal step of a frame does.

    Raises:
        UserError: no reveal step lies in the guidance interval.
    """
    lengths = mask_lengths(tokens, config.steps)
    before = np.append(tokens, lengths[:-1])
    after = np.append(lengths[:-1], 0)
    # Steps that reveal nothing (more steps than tokens) are left out.
    used = before > after
    steps = int(used.sum())
    guidance = np.full(len(lengths), float(config.guidance))
    if config.guidance_schedule == "linear":
        guidance = 1 + (guidance - 1) * (tokens - lengths) / tokens
    first, last = config.guidance_interval
    # The interval counts reveal steps, not tokens.
    progress = np.arange(steps) / steps
    guided = (first <= progress) & (progress < last) & config.guided
    if config.guided and not guided.any():
        raise UserError(
            f"sampling.guidance_interval {config.guidance_interval} holds none of the {steps} "
            "reveal steps; widen it, or turn guidance off with 1."
        )
    # Each different number of head steps is a row of the solver's tables.
    names = head_step_names(config, steps)
    different = list(dict.fromkeys(names))
    return RevealPlan(
        start=(tokens - before)[used].astype(np.int32),
        count=(before - after)[used].astype(np.int32),
        guidance=np.where(guided, guidance[used], 1).astype(np.float32),
        guided=guided,
        head=np.array([different.index(name) for name in names], np.int32),
    )


def head_step_names(config: SamplingConfig, steps: int) -> list[str]:
    """The head's steps in each of `steps` reveal steps, by equation (3)."""
    head = config.parsed_head_steps
    if head.falling_to is None:
        return [head.steps] * steps
    counts = np.linspace(int(head.steps), head.falling_to, steps)
    return [str(round(count)) for count in counts.tolist()]


def temperatures(generated: int, config: SamplingConfig) -> np.ndarray:
    """The temperature of each generated frame by equation (4), float32 [G]."""
    index = np.arange(generated)
    law = {
        "constant": np.ones(generated),
        "paper": 0.9 + 10.0 ** -(index + 1),
        "linear": 0.95 - 0.05 * index / max(generated, 1),
    }
    return (config.temperature * law[config.temperature_law]).astype(np.float32)


def clip_bounds(generated: int, config: SamplingConfig) -> np.ndarray:
    """The largest absolute token value of each generated frame, float32 [G]."""
    # Infinity: nothing is clipped.
    bounds = np.full(generated, config.latent_clip or np.inf, np.float32)
    if not config.clip_first:
        bounds[:1] = np.inf
    return bounds

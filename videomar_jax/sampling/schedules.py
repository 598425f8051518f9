"""The schedules of generation, as arrays: what happens at which reveal step and in which frame.

A frame of S tokens is revealed in I steps along a random order. After step s = 0..I-1 there remain
hidden

    len_s = max(1, min(len_{s-1} - 1, floor(S cos(pi/2 (s+1)/I)))),   the last step reveals all that
    is left   (MAR)

    guidance    linear: 1 + (g - 1)(S - len_s)/S         constant: g; only where a <= s/I < b
        (guidance_interval)
    head steps  "A-B": A + (B - A) s/(I-1), rounded      (DiSA 2025: late tokens are nearly decided
    by their neighbours)
    temperature constant: tau     paper: 0.9 + 10^-(i+1)     linear (the code's): 0.95 - 0.05 i/G
                for the i-th of G generated frames, the two progressive laws scaled by tau
"""

import itertools
from typing import NamedTuple

import numpy as np

from videomar_jax.sampling.config import SamplingConfig

__all__ = [
    "RevealPlan",
    "SamplingConfig",
    "clip_bounds",
    "count_sizes",
    "head_step_names",
    "mask_lengths",
    "reveal_plan",
    "temperatures",
]


class RevealPlan(NamedTuple):
    """One row for each reveal step that reveals something; step s reveals order[start : start +
    count]."""

    start: np.ndarray  # int32 [I]
    count: np.ndarray  # int32 [I]
    guidance: np.ndarray  # float32 [I]
    guided: np.ndarray  # bool [I], whether the branch without text is run
    head: np.ndarray  # int32 [I], which of `head_step_names`


def mask_lengths(tokens: int, steps: int) -> np.ndarray:
    """Hidden tokens after each step by the cosine schedule, int64 [steps] (computed in float64; the
    last entry is 1 although the last step reveals everything, because the linear guidance reads
    it)."""
    lengths, remaining = [], tokens
    for step in range(steps):
        remaining = max(
            1, min(remaining - 1, int(np.floor(tokens * np.cos(np.pi / 2 * (step + 1) / steps))))
        )
        lengths.append(remaining)
    return np.array(lengths)


def reveal_plan(tokens: int, config: SamplingConfig) -> RevealPlan:
    """What each step reveals and how; steps that reveal nothing (more steps than tokens) are left
    out.

    Raises:
        ValueError: no reveal step lies in the guidance interval.
    """
    lengths = mask_lengths(tokens, config.steps)
    hidden_before = np.append(tokens, lengths[:-1])
    hidden_after = np.append(lengths[:-1], 0)
    guidance = np.full(len(lengths), config.guidance)
    if config.guidance_schedule == "linear":
        guidance = 1 + (config.guidance - 1) * (tokens - lengths) / tokens
    used = hidden_before > hidden_after
    start, count = tokens - hidden_before, hidden_before - hidden_after
    first, last = config.guidance_interval
    progress = np.arange(used.sum()) / used.sum()
    guided = (first <= progress) & (progress < last) & config.guided
    if config.guided and not guided.any():
        raise ValueError(
            f"sampling.guidance_interval {config.guidance_interval} holds none of the {len(progress)} reveal steps; "
            f"widen it, or turn guidance off with 1."
        )
    names = head_step_names(config.head_steps, int(used.sum()))
    head = np.array([list(dict.fromkeys(names)).index(name) for name in names])
    guidance = np.where(guided, guidance[used], 1)
    return RevealPlan(
        start[used].astype(np.int32),
        count[used].astype(np.int32),
        guidance.astype(np.float32),
        guided,
        head.astype(np.int32),
    )


def head_step_names(head_steps: str, steps: int) -> list[str]:
    """The head's steps in each of `steps` reveal steps: the same every time, or falling along
    "A-B"."""
    if "-" not in head_steps:
        return [head_steps] * steps
    first, last = map(int, head_steps.split("-"))
    return [str(round(count)) for count in np.linspace(first, last, steps).tolist()]


def count_sizes(counts: np.ndarray, most: int = 3) -> tuple[int, ...]:
    """At most `most` sizes, ascending, such that rounding every count up to the next size adds
    least in all.

    The head runs on rows of one of these sizes, so that an early step that reveals two tokens does
    not work on as many as the last one reveals.
    """
    values = sorted({int(count) for count in counts})
    choices = itertools.combinations(values[:-1], min(most, len(values)) - 1)
    return min(
        ((*choice, values[-1]) for choice in choices), key=lambda sizes: padded(counts, sizes).sum()
    )


def padded(counts: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """Every count rounded up to the next of the ascending `sizes`."""
    return np.asarray(sizes)[np.searchsorted(sizes, counts)]


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
    """The largest absolute token value of each generated frame, float32 [G]; infinite where nothing
    is clipped."""
    bounds = np.full(generated, config.latent_clip or np.inf, np.float32)
    if not config.clip_first:
        bounds[:1] = np.inf
    return bounds

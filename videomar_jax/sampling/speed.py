"""What makes generation faster without changing its result, and when each of it pays.

All shapes of a compiled program are static, so work that varies is rounded up to one of a few
sizes:

    tokens of a reveal step     the cosine schedule reveals 1 to 36 of 1440 tokens in each of 64
                                steps; rounding up to one of three buckets adds 21 % to the work
                                of the head, and rounding up to the largest alone 60 %
    frames in the cache         frame t sees t earlier ones; attention is compiled for a few
                                lengths and runs on the next one that is long enough
    steps of the head           modulated in chunks (`sampling.fused_head`)

`SpeedOptions.for_request` chooses by the size of the request; `benchmarks/decode.py` measures, and
docs/speed.md shows what it found.
"""

import dataclasses
import itertools

import numpy as np

from videomar_jax.models.config import ModelConfig
from videomar_jax.platforms import platform


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedOptions:
    """What is done for speed. The result is the same up to rounding; each costs compile time."""

    fused_head: bool = True
    """Compute the modulations of many head steps in one product."""
    token_buckets: int = 3
    """Sizes that the number of tokens of a reveal step is rounded up to; 1: the largest only."""
    cache_lengths: int = 4
    """Lengths of the cache that attention is compiled for; 1: the full one, with a mask."""
    skip_unused_tokens: bool = True
    """Let the last layer compute only the tokens that are drawn in this reveal step."""
    unstack_layers: bool = False
    """Cut the layers out of their stack once a frame; on a CPU each use would copy them."""

    @classmethod
    def plain(cls) -> "SpeedOptions":
        """All off: one program, full cache, all tokens."""
        return cls(
            fused_head=False,
            token_buckets=1,
            cache_lengths=1,
            skip_unused_tokens=False,
            unstack_layers=False,
        )

    @classmethod
    def for_request(
        cls, model: ModelConfig, tokens: int, steps: int, visible: int
    ) -> "SpeedOptions":
        """The options that pay for one request.

        Args:
            tokens: tokens of a frame.
            steps: reveal steps of a frame.
            visible: the largest number of earlier frames that a frame sees.
        """
        # FLOPs of one layer on one frame: linear layers, and attention to earlier frames.
        linear = 28 * model.width**2 * tokens
        attention = 4 * model.width * tokens**2 * visible
        # One program for all frames where attention to others is less than a third of the work.
        cache_lengths = 1 if attention < linear / 2 else 4
        # Below about 5 GFLOP a frame, compiling more takes longer than it can save.
        if linear * model.depth * steps < 5e9:
            return cls(token_buckets=1, cache_lengths=1, skip_unused_tokens=False)
        # Cutting apart is compiled once for each layer: too much for deep models.
        unstack = platform() == "cpu" and model.depth <= 12
        return cls(cache_lengths=cache_lengths, unstack_layers=unstack)


def ceil_div(a, b):
    """a / b rounded up, for integers and integer arrays."""
    return -(-a // b)


def token_buckets(counts: np.ndarray, most: int = 3) -> tuple[int, ...]:
    """At most `most` sizes, ascending, such that rounding every count up to the next size adds
    least in all.

    Args:
        counts: tokens that each reveal step reveals.
    """
    values = sorted({int(count) for count in counts})
    smaller = itertools.combinations(values[:-1], min(most, len(values)) - 1)
    candidates = [(*sizes, values[-1]) for sizes in smaller]
    return min(candidates, key=lambda sizes: round_up(counts, sizes).sum())


def round_up(counts: np.ndarray, buckets: tuple[int, ...]) -> np.ndarray:
    """Every count rounded up to the next of the ascending `buckets`."""
    return np.asarray(buckets)[np.searchsorted(buckets, counts)]


def visible_length(stored: int, length: int, lengths: int) -> int:
    """How much of a cache of `length` frames to look at when `stored` of them are filled.

    Rounded up so that there are at most `lengths` different values.
    """
    step = ceil_div(length, lengths)
    return min(length, ceil_div(stored, step) * step)


def chunk_size(evaluations: int, rows: int, varying: bool) -> int:
    """How many head steps to modulate at once.

    Args:
        evaluations: head steps of a token, at most.
        rows: tokens that are drawn at once.
        varying: some reveal steps take fewer head steps, so that whole chunks can be left out.
    """
    # About 512 rows in a product: more does not make the product faster, but needs more memory.
    most = min(evaluations, max(1, 512 // rows))
    if varying:
        most = min(most, max(4, evaluations // 8))
    # The size that pads least, but not less than half of what is possible.
    return min(range(most, most // 2, -1), key=lambda size: -evaluations % size)

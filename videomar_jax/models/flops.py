"""Floating-point operations of the matrix products, 2 m n k each, from sizes alone; nothing is
traced.

Forward, for B clips of S tokens a frame, N computed frames a clip, text of K tokens, width D,
feed-forward ratio r:

    linear layers of a block     2 B N S (6 + 2r) D^2,  and 4 B K D^2 for the text's keys and values
    self attention               4 B D S^2 * (frame, seen frame) pairs
    cross attention              4 B D N S K
    head, for each row           2 (cond_embed once a token; all else once for each of its draws)

A clip of T frames is computed as

    full        N = T, frame t sees t + 1 frames; one frame of each clip passes the head
    truncated   the same, cut after a frame k that is uniform over 1..T-1: the mean over the lengths
    2..T
    all         N = 2(T - 1), clean frames 0..T-2 and masked copies of 1..T-1; every copy passes the
    head

The backward pass costs twice the forward one: a step is 3 times the forward pass, 4 times where
    layers are computed
again (`remat="full"`; "dots" computes only attention again). Norms, softmax, rotations, the
optimizer and whatever else is no matrix product are not counted.
"""

from collections.abc import Callable
from typing import NamedTuple

from videomar_jax.models.config import ModelConfig
from videomar_jax.models.diffusion_head import FEATURES


class Flops(NamedTuple):
    """Of one forward pass, by part."""

    linear: float  # the blocks' linear layers
    attention: float  # products of queries with keys and of weights with values
    head: float  # the diffusion head
    outside: float  # projections of tokens and text before the blocks, readouts behind them

    def total(self) -> float:
        return sum(self)


def forward_flops(
    config: ModelConfig,
    *,
    supervise: str,
    draws_per_token: int,
    batch: int,
    frames: int,
    tokens: int,
) -> Flops:
    """One forward pass of the loss over clips of `frames` latent frames of `tokens` tokens, all of
    them computed.

    Args:
        supervise: "one_frame": one supervised frame a clip, or "all_frames": all of them after the first.
    """
    width, text = config.width, config.text_tokens
    supervised = 1 if supervise == "one_frame" else max(frames - 1, 1)
    computed = frames if supervise == "one_frame" else frames - 1 + supervised
    if supervise == "one_frame" or frames == 1:
        pairs = frames * (frames + 1) // 2
    else:  # clean frame t sees t + 1 frames, and so does the masked copy of frame t
        pairs = frames * (frames - 1) // 2 + sum(t + 1 for t in range(1, frames))
    rows = batch * computed * tokens
    products = rows * (6 + 2 * config.mlp_ratio) * width**2 + batch * text * 2 * width**2
    mixed = 2 * width * (batch * pairs * tokens**2 + rows * text)
    outside = rows * config.token_dim * width + batch * text * config.text_width * width
    outside += (
        config.pooled_text * batch * width**2 + config.history_levels * batch * FEATURES * width
    )
    read = batch * supervised * tokens
    outside += config.regression * read * width * config.token_dim
    head = read * (width * config.head_width + draws_per_token * _head_row(config))
    return Flops(*(2.0 * x for x in (config.depth * products, config.depth * mixed, head, outside)))


def train_step_flops(
    config: ModelConfig,
    *,
    supervise: str,
    truncate: bool,
    draws_per_token: int,
    batch: int,
    frames: int,
    tokens: int,
) -> float:
    """One update on `batch` clips of `frames` latent frames of `tokens` tokens, over all devices.

    With `truncate` the mean over the lengths that a clip is cut to; a clip that is cut
    already is a "full" one of its own length.
    """

    def one(length: int) -> float:
        forward = forward_flops(
            config,
            supervise=supervise,
            draws_per_token=draws_per_token,
            batch=batch,
            frames=length,
            tokens=tokens,
        )
        again = {
            "none": 0.0,
            "dots": forward.attention,
            "full": forward.linear + forward.attention,
        }[config.remat]
        return 3 * forward.total() + again

    return _mean_over_lengths(one, truncate, frames)


def supervised_frame_flops(
    config: ModelConfig,
    *,
    supervise: str,
    truncate: bool,
    draws_per_token: int,
    batch: int,
    frames: int,
    tokens: int,
) -> float:
    """What a training step spends for each frame that carries loss."""
    step = train_step_flops(
        config,
        supervise=supervise,
        truncate=truncate,
        draws_per_token=draws_per_token,
        batch=batch,
        frames=frames,
        tokens=tokens,
    )
    return step / (batch * (1 if supervise == "one_frame" else max(frames - 1, 1)))


def _head_row(config: ModelConfig) -> int:
    """Products of the head for one draw of one token."""
    width = config.head_width
    time = FEATURES * width + width**2
    block = 3 * width**2 + 2 * width**2
    return (
        time
        + config.token_dim * width
        + config.head_depth * block
        + 2 * width**2
        + width * config.process.output_channels(config.token_dim)
    )


def _mean_over_lengths(function: Callable[[int], float], truncate: bool, frames: int) -> float:
    if not truncate or frames == 1:
        return function(frames)
    lengths = range(2, frames + 1)
    return sum(map(function, lengths)) / len(lengths)

"""Floating-point operations of the matrix products, 2 m n k each, from sizes alone.

Forward, for B clips of S tokens a frame, N computed frames a clip, text of K tokens, width D,
feed-forward ratio r:

    linear layers of a block     2 B N S (6 + 2r) D^2,  and 4 B K D^2 for the text's keys and values
    self attention               4 B D S^2 * (number of pairs of a frame and a frame that it sees)
    cross attention              4 B D N S K
    head                         2 (cond_embed once a token, all else once for each of its draws)

A clip of T frames is computed as

    one_frame    N = T, frame t sees t + 1 frames; one frame of each clip passes the head
    truncated    the same, cut after a frame k that is uniform over 1..T-1: the mean over the
                 lengths 2..T
    all_frames   N = 2(T - 1), clean frames 0..T-2 and masked copies of 1..T-1; every copy passes
                 the head

The backward pass costs twice the forward one, so a step is 3 times the forward pass, or 4 times
where layers are computed again (remat="full"; with "dots" only attention is). Norms, softmax,
rotations, the optimizer and whatever else is no matrix product are not counted.
"""

from collections.abc import Callable
from typing import NamedTuple

from videomar_jax.models.config import ModelConfig
from videomar_jax.models.diffusion_head import TIME_FEATURES
from videomar_jax.models.linear_prior import known_values


class Flops(NamedTuple):
    """Of one forward pass, by part."""

    linear: float  # the linear layers of the blocks
    attention: float  # products of queries with keys and of weights with values
    head: float  # the diffusion head
    outside: float  # projections of tokens and text before the blocks, readouts behind them

    def total(self) -> float:
        """All parts together."""
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
    """One forward pass of the loss over clips of `frames` latent frames of `tokens` tokens.

    Args:
        supervise: "one_frame" of each clip, or "all_frames" after the first, as in the loss.
    """
    width, text = config.width, config.text_tokens
    if supervise == "one_frame" or frames == 1:
        supervised, computed = 1, frames
        pairs = frames * (frames + 1) // 2
    else:
        supervised = frames - 1
        computed = 2 * supervised
        # Clean frame t sees t + 1 frames, and so does the masked copy of frame t.
        clean_pairs = frames * (frames - 1) // 2
        pairs = clean_pairs + sum(t + 1 for t in range(1, frames))
    rows = batch * computed * tokens
    text_rows = batch * text
    read = batch * supervised * tokens

    linear = rows * (6 + 2 * config.mlp_ratio) * width**2 + text_rows * 2 * width**2
    attention = 2 * width * (batch * pairs * tokens**2 + rows * text)
    outside = rows * config.token_dim * width + text_rows * config.text_width * width
    if config.pooled_text:
        outside += batch * width**2
    if config.history_levels:
        outside += batch * TIME_FEATURES * width
    if config.previous_frame:
        outside += read * known_values(config) * width
    if config.linear_prior:
        outside += read * known_values(config) * config.token_dim
    if config.regression:
        outside += read * width * config.token_dim
        around = known_values(config) if config.bilinear_units else 0
        outside += read * config.bilinear_units * (around + width + config.token_dim)
    head = read * (width * config.head_width + draws_per_token * _head_products(config))
    return Flops(
        linear=2.0 * config.depth * linear,
        attention=2.0 * config.depth * attention,
        head=2.0 * head,
        outside=2.0 * outside,
    )


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

    Args:
        truncate: the mean over the lengths that a clip may be cut to; False: no clip is cut.
    """

    def step(length: int) -> float:
        forward = forward_flops(
            config,
            supervise=supervise,
            draws_per_token=draws_per_token,
            batch=batch,
            frames=length,
            tokens=tokens,
        )
        again = 0.0
        if config.remat == "dots":
            again = forward.attention
        elif config.remat == "full":
            again = forward.linear + forward.attention
        return 3 * forward.total() + again

    return _mean_over_lengths(step, truncate, frames)


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
    supervised = 1 if supervise == "one_frame" else max(frames - 1, 1)
    return step / (batch * supervised)


def _head_products(config: ModelConfig) -> int:
    """Multiplications of the head for one draw of one token, cond_embed left out."""
    width = config.head_width
    time_mlp = TIME_FEATURES * width + width**2
    inputs = config.token_dim * width
    blocks = config.head_depth * (3 * width**2 + 2 * width**2)
    outputs = 2 * width**2 + width * config.process.output_channels(config.token_dim)
    return time_mlp + inputs + blocks + outputs


def _mean_over_lengths(function: Callable[[int], float], truncate: bool, frames: int) -> float:
    if not truncate or frames == 1:
        return function(frames)
    lengths = range(2, frames + 1)
    return sum(map(function, lengths)) / len(lengths)

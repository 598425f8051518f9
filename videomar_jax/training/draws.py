"""What the loss takes in: its settings, a batch, and every random choice of one step.

All draws of a step are made at once, for the whole batch, from one key. A recorded run can be
replayed by handing the
draws in, and a batch can be worked on in parts: `LossDraws.split` cuts the draws like the clips.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomar_jax.models import masking
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.training.config import LossConfig
from videomar_jax.types import Key


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["latents", "text", "text_mask"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Batch:
    """What one training step sees: arrays, or shapes in an abstract batch."""

    latents: Any  # Latents [B, T, h, w, C]
    text: Any  # TextFeatures [B, K, E]
    text_mask: Any  # TextMask [B, K]


_DRAWS = {  # the axis of the clips in each field
    "current": 0,
    "orders": 0,
    "num_masked": 0,
    "drop": 0,
    "times": 1,
    "noise": 1,
    "history_level": 0,
    "history_noise": 0,
}


@functools.partial(jax.tree_util.register_dataclass, data_fields=[*_DRAWS], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class LossDraws:
    """Every random choice of one loss; R supervised frames (1 for `one`, max(T - 1, 1) for `all`),
    m draws a token."""

    current: Any  # int [B]: the frame k that `one` supervises
    orders: Any  # Orders [B, T, S]
    num_masked: Any  # int [B, T]: hidden tokens a frame has when it is generated
    drop: Any  # bool [B]: text replaced by the null context
    times: Any  # [m, B, R, S]: what the process's `draw_times` gives
    noise: Any  # float [m, B, R, S, P]
    history_level: Any = (
        None  # float [B]: the share of noise in the earlier frames; None: they are clean
    )
    history_noise: Any = None  # float [B, T - 1, S, P]: that noise

    def split(self, parts: int) -> "LossDraws":
        """The draws of `parts` equal parts of the batch, stacked on a new leading axis.

        Part i takes the clips i, i + parts, i + 2 parts, …: a batch whose clips are cut into blocks
        over devices keeps every clip where it is.

        Raises:
            ValueError: the number of clips is not a multiple of `parts`.
        """
        clips = len(self.current)
        if parts < 1 or clips % parts:
            raise ValueError(f"A batch of {clips} clips cannot be split into {parts} equal parts.")

        def cut(x, axis):
            x = x.reshape(*x.shape[:axis], clips // parts, parts, *x.shape[axis + 1 :])
            return jnp.moveaxis(x, axis + 1, 0)

        fields = {name: getattr(self, name) for name in _DRAWS}
        return LossDraws(
            **{name: None if x is None else cut(x, _DRAWS[name]) for name, x in fields.items()}
        )


def supervised_frames(frames: int, config: LossConfig) -> int:
    """R, the frames of a clip of `frames` latent frames that carry loss in one step."""
    return 1 if config.supervise == "one_frame" else max(frames - 1, 1)


def truncated_frames(seed: int, step: int, frames: int) -> int:
    """How many frames of `frames` latent ones the truncated layout keeps at a step: 1 + k, k
    uniform over 1..T-1 and the same for the whole batch; 1 for images. Follows from (seed, step)
    alone, so every process gets the same."""
    if frames < 2:
        return frames
    sequence = np.random.SeedSequence((seed, step), spawn_key=(2,))
    return int(np.random.default_rng(sequence).integers(2, frames + 1))


def draw(key: Key, model: VideoMAR, shape: tuple[int, int, int], config: LossConfig) -> LossDraws:
    """Draws everything for a batch of `shape` (B, T, S); with the truncated layout T counts the
    frames that are left, of which the last is the current one."""
    batch, frames, tokens = shape
    keys = jax.random.split(key, 6)
    rows = (config.draws_per_token, batch, supervised_frames(frames, config), tokens)
    rate = masking.mask_rate(jax.random.uniform(keys[2], (batch, frames)), config.mask_rate_min)
    current = jnp.full(batch, frames - 1, jnp.int32)
    if not config.truncate and frames > 1:
        current = jax.random.randint(keys[0], (batch,), 1, frames)
    level = history = None
    if config.history_noise:
        history_keys = jax.random.split(jax.random.fold_in(key, 6))
        level = jax.random.uniform(history_keys[0], (batch,), maxval=config.history_noise)
        history = jax.random.normal(
            history_keys[1], (batch, frames - 1, tokens, model.config.token_dim)
        )
    return LossDraws(
        current=current,
        orders=masking.random_orders(keys[1], shape),
        num_masked=masking.num_masked(tokens, rate),
        drop=jax.random.bernoulli(keys[3], config.text_dropout, (batch,)),
        times=model.process.draw_times(keys[4], rows),
        noise=jax.random.normal(keys[5], (*rows, model.config.token_dim)),
        history_level=level,
        history_noise=history,
    )

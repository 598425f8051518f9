"""The settings of a training run that concern its computation, in frozen dataclasses."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from videomar_jax.checks import (
    BelowOne,
    Count,
    Fraction,
    Natural,
    NonNegative,
    Positive,
    UserError,
    check_fields,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which frames are supervised, and how (see `training.loss`; paper, section 3.2).

    Raises:
        UserError: a value outside its range, by name.
    """

    supervise: Literal["one_frame", "all_frames"] = "one_frame"
    """One random next frame of each clip, as in the paper, or all next frames at once."""
    truncate: bool = False
    """With one_frame: cut the clips after the supervised frame, the same one for a whole batch."""
    normaliser: Literal["all_masked", "supervised"] = "all_masked"
    """Divide by all masked tokens, as published, or by those of the supervised frames."""
    mask_rate_min: BelowOne = 0.7
    """Lower bound of the masking rate, whose law is a truncated normal around 1."""
    text_dropout: Fraction = 0.1
    """Share of the clips whose caption is replaced by the null context."""
    draws_per_token: Count = 4
    """(time, noise) draws of the diffusion loss for each token and step."""
    history_noise: BelowOne = 0.0
    """Largest share of noise in the earlier frames (MAGI 2025, Lumos-1 2025); for a model with a
    linear prior in units of what that leaves over."""
    regression_weight: NonNegative = 0.0
    """Ours: weight of |readout(z) - x_0|^2; needs model.regression."""

    def __post_init__(self):
        check_fields("loss", self)
        if self.truncate and self.supervise == "all_frames":
            raise UserError(
                "loss.truncate cuts a clip after its one supervised frame: set "
                "loss.supervise='one_frame'."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The update rule; the peak learning rate belongs to each curriculum stage.

    Raises:
        UserError: a value outside its range, by name.
    """

    name: Literal["adamw", "muon"] = "adamw"
    """The optimizer; muon updates the matrices of the layers and leaves the rest to Adam."""
    beta1: BelowOne = 0.9
    """Decay of Adam's first moment."""
    beta2: BelowOne = 0.95
    """Decay of Adam's second moment."""
    epsilon: Positive = 1e-8
    """Added to the root of Adam's second moment."""
    weight_decay: NonNegative = 0.02
    """Decoupled weight decay; biases, norm scales and the diffusion head are left out."""
    clip_norm: Positive = 3.0
    """Largest norm of the gradient of all parameters together."""
    adam_ratio: Positive = 0.2
    """With muon: the learning rate of what Adam updates, as a fraction of the stage's."""
    warmup_steps: Natural = 0
    """Steps over which the learning rate rises linearly from 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The learning rate after the warm-up; cosine runs over all stages."""
    final_fraction: Fraction = 0.0
    """With cosine: the last learning rate as a fraction of the peak."""
    ema_decay: BelowOne = 0.9999
    """Decay of the averaged parameters, which sampling uses."""
    ema_warmup: bool = False
    """Ours: decay min(ema_decay, (1 + n) / (20 + n)) at step n, for short runs."""

    def __post_init__(self):
        check_fields("optimizer", self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How a run works on a batch, and how often it logs, saves, validates and previews.

    Raises:
        UserError: a value outside its range, by name.
    """

    accumulate: Count = 1
    """Parts that a batch is worked on in, one after the other, to need less memory."""
    lookahead: bool = True
    """Read and encode the next batch while the device works."""
    log_every: Count = 10
    """Steps between two lines of metrics."""
    checkpoint_every: Count = 100
    """Steps between two checkpoints; the end of a stage always has one."""
    keep_checkpoints: Count = 2
    """How many of the newest checkpoints are kept."""
    keep_every: Natural = 0
    """Checkpoints of steps divisible by this are kept for good; 0: none."""
    validate_every: Natural = 0
    """Steps between two losses on held-out clips; the best checkpoint is kept too; 0: never."""
    validation_clips: Count = 64
    """Held-out clips of a validation."""
    sample_every: Natural = 0
    """Steps between two previews; 0: never."""
    progress_seconds: NonNegative = 15.0
    """Seconds between two lines of progress."""
    tensorboard: bool = True
    """Write TensorBoard files beside metrics.jsonl."""
    minutes: Positive | None = None
    """How long the run may take on this machine, report included: sizes and steps of the curriculum
    are then chosen to fit, its steps are shares, and a batch keeps its pixels: it has fewer clips
    where frames are larger. None: the curriculum is taken as it is."""
    size: Sequence[Count] | None = None
    """With minutes: rows and columns of the frames; None: chosen, in the clips' proportions."""

    def __post_init__(self):
        check_fields("run", self)
        if self.size is not None:
            if self.minutes is None:
                raise UserError("run.size needs run.minutes; else the curriculum has the sizes.")
            if len(self.size) != 2:
                raise UserError(f"run.size must be rows and columns, not {self.size}.")
            object.__setattr__(self, "size", tuple(self.size))

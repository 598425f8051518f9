"""What `benchmarks.ablation` compares: how each variant is trained and sampled."""

import contextlib
import dataclasses
import json
import math
import time
from typing import Any, NamedTuple, get_type_hints

import jax
import numpy as np
import optax
from flax import nnx

from benchmarks import non_causal
from benchmarks.told_scenes import Told, told_clips
from videomar_jax.checks import Count, Natural, Positive, UserError, check_value
from videomar_jax.data.loader import fixed_clips
from videomar_jax.data.scenes import MIN_SIDE, Scenes
from videomar_jax.data.sources import ClipShape
from videomar_jax.inference.stream import VideoSampler
from videomar_jax.models.config import PRESETS, ModelConfig
from videomar_jax.models.params import Params, abstract_model
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.text_encoders import HashedTextEncoder
from videomar_jax.tokenizers import PCATokenizer
from videomar_jax.training.batches import TrainingInputs, training_batches
from videomar_jax.training.config import LossConfig, OptimizerConfig
from videomar_jax.training.curriculum import Curriculum, learning_rates
from videomar_jax.training.loss import next_frame_loss
from videomar_jax.training.optimizer import make_optimizer
from videomar_jax.training.state import init_state
from videomar_jax.training.step import LossFunction, make_train_step


class Training(NamedTuple):
    """One way to train."""

    loss: LossConfig
    function: LossFunction
    causal: bool


class Variant(NamedTuple):
    """One row of the table."""

    title: str
    training: str
    """A name of `TRAININGS`."""
    temperature_law: str
    paper: float | None
    """Total of VBench-I2V (arXiv 2506.14168, table 4); None: the paper has no such row."""


# "supervised": each loss is a mean over the hidden tokens that carry it. The published normaliser
# counts those of later frames too, but not for the readout, which would then weigh more where one
# frame carries loss than where all do.
_ONE_FRAME = LossConfig(normaliser="supervised", draws_per_token=2, regression_weight=1.0)
_ALL_FRAMES = dataclasses.replace(_ONE_FRAME, supervise="all_frames")
TRAININGS = {
    "none": Training(_ALL_FRAMES, non_causal.every_frame_loss, causal=False),
    "next_frame": Training(_ONE_FRAME, non_causal.next_frame_loss, causal=False),
    "causal": Training(_ONE_FRAME, next_frame_loss, causal=True),
    "all_frames": Training(_ALL_FRAMES, next_frame_loss, causal=True),
}
VARIANTS = {
    "none": Variant("none of them", "none", "constant", 78.81),
    "next_frame": Variant("+ next-frame loss", "next_frame", "constant", 79.76),
    "causal": Variant("+ causal mask", "causal", "constant", 80.72),
    "temperature": Variant("+ progressive temperature", "causal", "paper", 82.56),
    "all_frames": Variant("all next frames at once (ours)", "all_frames", "paper", None),
}

STRIDE, PATCH = 2, 8
"""Pixel frames of a latent frame, and rows and columns of a token."""
MODEL = dataclasses.replace(
    PRESETS["quickstart"], latent_channels=160, head_width=256, text_tokens=16
)
"""The quick start's model for scenes, without what it takes from a finished frame before: without
the next-frame loss there is none."""
OPTIMIZER = OptimizerConfig(
    name="muon",
    schedule="cosine",
    final_fraction=0.03,
    weight_decay=0.01,
    clip_norm=1.0,
    ema_decay=0.99,
    ema_warmup=True,
    warmup_steps=100,
)
"""The quick start's."""
SAMPLING = SamplingConfig(steps=4, head_steps="4", guidance=1.0, latent_clip=0.0)
"""The quick start's, without a window: no clip is longer than those of the training."""
OPEN_CAPTIONS = 0.25
"""Share of the training captions that leave something of the motion unsaid."""
FITTED_CLIPS = 400
"""Clips that the tokenizer is fitted on."""
PROGRESS_SECONDS = 15.0
"""Between two lines of progress."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What all results of a folder have in common; the fields are flags.

    Raises:
        UserError: a value that is not possible, by the name of its flag.
    """

    steps: Count = 1000
    """Updates of each training."""
    batch: Count = 16
    """Clips in a batch."""
    frames: Count = 9
    """Frames of a clip, the given one included."""
    side: Count = 32
    """Rows and columns of a frame."""
    clips: Count = 64
    """Held-out clips that are continued."""
    rate: Positive = 1e-2
    """Peak learning rate."""
    data_seed: Natural = 0
    """Of the scenes, which are the same for all seeds of the training."""

    def __post_init__(self):
        for name, annotation in get_type_hints(type(self), include_extras=True).items():
            check_value(f"--{name}", getattr(self, name), annotation)
        if self.frames <= STRIDE or (self.frames - 1) % STRIDE:
            raise UserError(
                f"--frames must be 1 + {STRIDE} n with n at least 1, such as 9, not {self.frames}."
            )
        if self.side < MIN_SIDE or self.side % PATCH:
            raise UserError(
                f"--side must be a multiple of {PATCH} and at least {MIN_SIDE}, not {self.side}."
            )

    @property
    def shape(self) -> ClipShape:
        return ClipShape(num_frames=self.frames, height=self.side, width=self.side)

    def record(self) -> dict[str, Any]:
        """All that results depend on besides variant and seed, as JSON values."""
        values = {
            **dataclasses.asdict(self),
            "model": MODEL.to_dict(),
            "losses": {name: dataclasses.asdict(way.loss) for name, way in TRAININGS.items()},
            "optimizer": dataclasses.asdict(OPTIMIZER),
            "sampling": dataclasses.asdict(SAMPLING),
            "temperature_laws": {name: row.temperature_law for name, row in VARIANTS.items()},
            "tokenizer": {"patch": PATCH, "temporal_stride": STRIDE, "fitted_clips": FITTED_CLIPS},
            "open_captions": OPEN_CAPTIONS,
        }
        # Through JSON, so that tuples and lists are equal.
        return json.loads(json.dumps(values))


class World(NamedTuple):
    """What all trainings share."""

    model: ModelConfig
    inputs: TrainingInputs
    held_out: Told


def make_world(settings: Settings) -> World:
    """Scenes to train on, a tokenizer fitted on them, and held-out clips."""
    shape = settings.shape
    train = Scenes(
        seed=settings.data_seed, length=100_000, split="train", open_captions=OPEN_CAPTIONS
    )
    test = Scenes(seed=settings.data_seed, length=settings.clips, split="test")
    clips = (fixed_clips(train, [i], shape=shape)["video"] for i in range(FITTED_CLIPS))
    tokenizer = PCATokenizer.fit(
        clips, patch=PATCH, temporal_stride=STRIDE, channels=MODEL.latent_channels
    )
    text = HashedTextEncoder(MODEL.text_tokens, MODEL.text_width)
    inputs = TrainingInputs(source=train, tokenizer=tokenizer, text_encoder=text)
    return World(MODEL, inputs, told_clips(test, shape, settings.clips))


# Training


class Progress:
    """Says now and then how far the trainings are, and how long they will go on."""

    def __init__(self, steps: int):
        """steps: of all trainings together."""
        self.left, self.done, self.seconds = steps, 0, 0.0
        self.shown = -math.inf

    def count(self, name: str, step: int, loss: float, seconds: float) -> None:
        """One more update, which took so many seconds."""
        self.left, self.done, self.seconds = self.left - 1, self.done + 1, self.seconds + seconds
        now = time.monotonic()
        if now - self.shown < PROGRESS_SECONDS:
            return
        self.shown = now
        minutes = self.left * self.seconds / self.done / 60
        print(
            f"{name}: step {step}, loss {loss:.3f}; about {minutes:.0f} min of training left",
            flush=True,
        )


class Trained(NamedTuple):
    """What a training leaves."""

    params: Params
    """The averaged parameters."""
    seconds: float
    """Of its updates and of waiting for their clips; compiling does not count."""


def train(name: str, seed: int, settings: Settings, world: World, progress: Progress) -> Trained:
    """Trains in one way of `TRAININGS`. The initial parameters and the batches follow from the
    seed, and are the same in all ways.

    Raises:
        UserError: the loss is no longer finite.
    """
    curriculum = _curriculum(name, settings)
    optimizer, config = _optimizer(curriculum)
    training = TRAININGS[name]
    graph, _ = abstract_model(world.model)
    root = jax.random.key(seed)
    state = init_state(world.model, optimizer, jax.random.fold_in(root, 0))
    key = jax.random.fold_in(root, 1)
    step_function = make_train_step(
        graph, optimizer, training.loss, config, loss_function=training.function
    )
    stage = curriculum.stages[0]
    stream = training_batches(seed, 0, stage, world.inputs, 0, lookahead=True)
    update, seconds = None, 0.0
    with contextlib.closing(stream) as batches:
        start = time.perf_counter()
        for step, batch in enumerate(batches, start=1):
            if update is None:
                update = step_function.lower(state, batch, key).compile()
                start = time.perf_counter()
            state, metrics = update(state, batch, key)
            loss = float(metrics["loss"])
            if not math.isfinite(loss):
                raise UserError(
                    f"{name}, seed {seed}: the loss of step {step} is {loss}; lower the --rate."
                )
            taken = time.perf_counter() - start
            seconds += taken
            progress.count(f"{name}, seed {seed}", step, loss, taken)
            start = time.perf_counter()
    return Trained(state.ema, seconds)


def _optimizer(curriculum: Curriculum) -> tuple[optax.GradientTransformation, OptimizerConfig]:
    """The optimizer of a training, and its settings."""
    # A training of a few steps is not all warm-up.
    warmup_steps = min(OPTIMIZER.warmup_steps, curriculum.total_steps // 5)
    config = dataclasses.replace(OPTIMIZER, warmup_steps=warmup_steps)
    rate = learning_rates(
        curriculum,
        warmup_steps=config.warmup_steps,
        schedule=config.schedule,
        final_fraction=config.final_fraction,
    )
    return make_optimizer(config, rate), config


def _curriculum(name: str, settings: Settings) -> Curriculum:
    """A single stage."""
    row = dict(
        name=name,
        num_frames=settings.frames,
        height=settings.side,
        width=settings.side,
        batch_size=settings.batch,
        steps=settings.steps,
        learning_rate=settings.rate,
    )
    return Curriculum.from_rows([row])


# Videos


def draw_videos(name: str, params: Params, world: World) -> np.ndarray:
    """The held-out clips as a variant continues their first frames, uint8 [N, F, Hp, Wp, 3]."""
    variant, held = VARIANTS[name], world.held_out
    parts: dict[str, Any] = dict(
        model=nnx.merge(abstract_model(world.model)[0], params),
        tokenizer=world.inputs.tokenizer,
        text_encoder=world.inputs.text_encoder,
        config=dataclasses.replace(SAMPLING, temperature_law=variant.temperature_law),
        batch_size=min(32, len(held.video)),
    )
    is_causal = TRAININGS[variant.training].causal
    sampler = VideoSampler(**parts) if is_causal else non_causal.NonCausalSampler(**parts)
    return sampler(held.video[:, :1], held.captions, held.video.shape[1])

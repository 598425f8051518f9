"""The door between `configs/` and the package: a ConfigDict becomes frozen dataclasses that check themselves.

Nothing further inside reads a ConfigDict. `Experiment.from_config` says what is wrong with a config before anything
is allocated; its `source`, `tokenizer` and `text_encoder` build the parts that the config names.
"""

import dataclasses
import difflib
import logging
from collections.abc import Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from videomar_jax.data.pipeline import fixed_clips
from videomar_jax.data.shapes import Shapes
from videomar_jax.data.sources import ClipShape, ClipSource
from videomar_jax.data.videos import VideoFolder
from videomar_jax.models.config import PRESETS, ModelConfig
from videomar_jax.models.diffusion import make_process
from videomar_jax.parts import open_text_encoder, open_tokenizer
from videomar_jax.sampling.schedules import SamplingConfig
from videomar_jax.text_encoders import HashedTextEncoder, TextEncoder
from videomar_jax.tokenizers import PCATokenizer, Tokenizer
from videomar_jax.tokenizers.base import grid_shape
from videomar_jax.training.curriculum import Curriculum, Stage
from videomar_jax.training.loss import LossConfig
from videomar_jax.training.optimizer import OptimizerConfig
from videomar_jax.training.recipe import Recipe, RunConfig
from videomar_jax.training.sharding import MeshConfig

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def _choice(name: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it may be one of {', '.join(map(repr, choices))}.")


def _at_least_one(section: str, config: Any, *fields: str) -> None:
    for field in fields:
        if getattr(config, field) < 1:
            raise ValueError(f"{section}.{field} must be at least 1, not {getattr(config, field)}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where clips come from."""

    kind: str
    path: str
    captions: str
    fps: float
    holdout: float
    length: int
    threads: int

    def __post_init__(self):
        _choice("data.kind", self.kind, ("shapes", "videos"))
        _at_least_one("data", self, "length")
        if self.kind == "videos" and not self.path:
            raise ValueError("data.kind is 'videos': name the folder of clips with --config.data.path=DIR.")
        if not 0 < self.holdout < 1:
            raise ValueError(f"data.holdout must lie between 0 and 1, not {self.holdout}: it is what is measured on.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Video to latents."""

    kind: str
    path: str
    scale: float
    patch: int
    temporal_stride: int
    channels: int
    patches: str
    whitening: float
    fit_clips: int

    def __post_init__(self):
        _choice("tokenizer.kind", self.kind, ("pca", "cosmos"))
        if self.kind == "cosmos" and not self.path:
            raise ValueError("tokenizer.kind is 'cosmos': name its weights with --config.tokenizer.path=PLACE.")
        if not self.scale > 0:
            raise ValueError(f"tokenizer.scale must be positive, not {self.scale}.")
        _at_least_one("tokenizer", self, "patch", "temporal_stride", "channels", "fit_clips")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Captions to features."""

    kind: str
    path: str
    system_text_file: str
    padding_side: str
    tokens: int
    width: int

    def __post_init__(self):
        _choice("text.kind", self.kind, ("hashed", "qwen2"))
        if self.kind == "qwen2" and not self.path:
            raise ValueError("text.kind is 'qwen2': name its folder with --config.text.path=PLACE.")
        _at_least_one("text", self, "tokens", "width")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured when training ends."""

    clips: int
    batch_size: int

    def __post_init__(self):
        _at_least_one("evaluation", self, "clips", "batch_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run: recipe, data, tokenizer, text, sampling, evaluation."""

    recipe: Recipe
    data: DataConfig
    tokenizer_config: TokenizerConfig
    text: TextConfig
    sampling: SamplingConfig
    evaluation: EvaluationConfig

    @classmethod
    def from_config(cls, config: ConfigDict | Mapping[str, Any]) -> "Experiment":
        """Reads a config of the form of configs/base.py.

        Raises:
            ValueError: an unknown or missing key, or a value that cannot be; the text names it and a way out.
        """
        values = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
        known = {"seed", "init_from", "model", "loss", "optimizer", "curriculum", "mesh", "run", "data", "tokenizer",
                 "text", "sampling", "evaluation"}  # fmt: skip
        _check_keys("config", values, known, known)
        if not values["curriculum"]:
            raise ValueError("The config has no curriculum: name a config with stages, such as configs/quickstart.py.")
        recipe = Recipe(
            seed=values["seed"],
            init_from=values["init_from"],
            model=_model(values["model"]),
            loss=_section(LossConfig, "loss", values),
            optimizer=_section(OptimizerConfig, "optimizer", values),
            curriculum=Curriculum.from_rows(values["curriculum"]),
            mesh=_section(MeshConfig, "mesh", values),
            run=_section(RunConfig, "run", values),
        )
        experiment = cls(
            recipe=recipe,
            data=_section(DataConfig, "data", values),
            tokenizer_config=_section(TokenizerConfig, "tokenizer", values),
            text=_section(TextConfig, "text", values),
            sampling=_section(SamplingConfig, "sampling", values),
            evaluation=_section(EvaluationConfig, "evaluation", values),
        )
        experiment._check_stages()
        make_process(recipe.model).plan(experiment.sampling.head_steps)  # told now, not at the first preview
        return experiment

    def _check_stages(self) -> None:
        """Sizes that the tokenizer cannot take are told before any clip is read."""
        for stage in self.recipe.curriculum.stages:
            self.check_shape(f"Stage '{stage.name}'", stage_shape(stage))

    def check_shape(self, name: str, shape: ClipShape) -> None:
        """Raises a ValueError for clips that the tokenizer cannot cut."""
        config = self.tokenizer_config
        if config.kind != "pca":
            return  # its strides are known when it is open; `training.loop.check_parts` looks at them then
        try:
            grid_shape(shape.num_frames, shape.height, shape.width, temporal_stride=config.temporal_stride,
                       spatial_stride=config.patch)  # fmt: skip
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    @property
    def final_stage(self) -> Stage:
        """The last stage, whose clips are what the model is for."""
        return self.recipe.curriculum.stages[-1]

    def source(self, split: str, *, min_frames: int = 1) -> ClipSource:
        """Clips of a split: "train", "test", and for shapes "unseen"."""
        data, seed = self.data, self.recipe.seed
        if data.kind == "shapes":
            length = data.length if split == "train" else 10 * self.evaluation.clips
            return Shapes(seed=seed, length=length, split=split, bounce=split == "train")
        return VideoFolder(
            data.path, captions=data.captions or None, fps=float(data.fps), split=split, holdout=data.holdout,
            min_frames=min_frames,
        )  # fmt: skip

    def tokenizer(self, source: ClipSource) -> Tokenizer:
        """The tokenizer: opened, or fitted on training clips of the last stage's size."""
        config = self.tokenizer_config
        if config.kind == "cosmos":
            return open_tokenizer(f"cosmos:{config.path}", scale=config.scale, dtype=self.recipe.model.dtype)
        _log.info("fitting the tokenizer on %d clips", config.fit_clips)
        # A folder may hold few clips: read each often enough, at another time and place.
        repeats = -(-config.fit_clips // len(source))
        clips = (
            fixed_clips(source, [index], shape=stage_shape(self.final_stage), seed=self.recipe.seed + repeat)["video"]
            for repeat in range(repeats)
            for index in range(min(len(source), config.fit_clips - repeat * len(source)))
        )
        return PCATokenizer.fit(
            clips, patch=config.patch, temporal_stride=config.temporal_stride, channels=config.channels,
            patches=config.patches, whitening=config.whitening,
        )  # fmt: skip

    def text_encoder(self) -> TextEncoder:
        """The text encoder."""
        text = self.text
        if text.kind == "hashed":
            return HashedTextEncoder(text.tokens, text.width)
        return open_text_encoder(
            f"qwen2:{text.path}", tokens=text.tokens, padding_side=text.padding_side, dtype=self.recipe.model.dtype,
            system_text_file=text.system_text_file or None,
        )  # fmt: skip


def stage_shape(stage: Stage) -> ClipShape:
    """The clips of a stage."""
    return ClipShape(num_frames=stage.num_frames, height=stage.height, width=stage.width)


def _model(values: Mapping[str, Any]) -> ModelConfig:
    """The preset with the fields that are set."""
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    _check_keys("model", values, fields | {"preset"}, {"preset"})
    _choice("model.preset", values["preset"], tuple(PRESETS))
    changes = {name: value for name, value in values.items() if name != "preset" and value is not None}
    return dataclasses.replace(PRESETS[values["preset"]], **changes)


def _section(kind: type[_T], name: str, values: Mapping[str, Any]) -> _T:
    section = values[name]
    if not isinstance(section, Mapping):
        raise ValueError(f"config.{name} must be a section with keys, not {section!r}.")
    fields = dataclasses.fields(kind)
    required = {f.name for f in fields if f.default is dataclasses.MISSING}
    _check_keys(name, section, {f.name for f in fields}, required)
    return kind(**section)


def _check_keys(section: str, values: Mapping[str, Any], known: set[str], required: set[str]) -> None:
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(sorted(known))}."
            raise ValueError(f"Unknown key {key!r} in {section}.{hint}")
    if missing := sorted(required - set(values)):
        raise ValueError(f"{section} lacks {', '.join(missing)}.")

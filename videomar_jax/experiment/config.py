"""The door between `configs/` and the package: a ConfigDict becomes frozen dataclasses that check
themselves.

Nothing further inside reads a ConfigDict. `Experiment.from_config` says what is wrong with a config
before anything is allocated; its `source`, `tokenizer` and `text_encoder` build the parts that the
config names (`materials`).
"""

import dataclasses
import difflib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from videomar_jax.data.shards import MANIFEST, read_manifest
from videomar_jax.data.sources import ClipShape, ClipSource
from videomar_jax.diffusion.solver import plan_steps
from videomar_jax.experiment.build import (
    make_text_encoder,
    make_tokenizer,
    open_held_out,
    open_source,
)
from videomar_jax.experiment.sections import (
    DataConfig,
    TextConfig,
    TokenizerConfig,
    at_least_one,
    check_named,
    one_of,
)
from videomar_jax.io.migration import current_config
from videomar_jax.models.config import PRESETS, ModelConfig
from videomar_jax.parallel.config import MeshConfig
from videomar_jax.sampling.schedules import SamplingConfig, head_step_names
from videomar_jax.text_encoders import TextEncoder
from videomar_jax.tokenizers import Tokenizer
from videomar_jax.tokenizers.base import grid_shape
from videomar_jax.training.batches import clip_shape
from videomar_jax.training.config import LossConfig, OptimizerConfig, RunConfig
from videomar_jax.training.curriculum import Curriculum, Stage
from videomar_jax.training.recipe import Recipe

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured when training ends."""

    clips: int
    batch_size: int

    def __post_init__(self):
        at_least_one("evaluation", self, "clips", "batch_size")


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
            ValueError: an unknown or missing key, or a value that cannot be; the text names it and
                a way out.
        """
        values = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
        values = current_config(values)
        known = {
            "seed",
            "init_from",
            "model",
            "loss",
            "optimizer",
            "curriculum",
            "mesh",
            "run",
            "data",
            "tokenizer",
            "text",
            "sampling",
            "evaluation",
        }
        _check_keys("config", values, known, known)
        if not values["curriculum"]:
            raise ValueError(
                "The config has no curriculum: name a config with stages, such as configs/quickstart.py."
            )
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
        check_named(experiment.data, experiment.tokenizer_config, experiment.text, recipe.init_from)
        experiment._check_stages()
        sampling = experiment.sampling
        # Refuses steps that the head cannot take now, rather than at the first preview.
        names = head_step_names(sampling.head_steps, sampling.steps)
        plan_steps(recipe.model.process, names, sampling.head_solver)
        return experiment

    def _check_stages(self) -> None:
        """Sizes that the tokenizer cannot take are told before any clip is read."""
        for stage in self.recipe.curriculum.stages:
            for shape in stage.shapes:
                self.check_shape(f"Stage '{stage.name}'", clip_shape(shape))

    def check_shape(self, name: str, shape: ClipShape) -> None:
        """Raises a ValueError for clips that the tokenizer cannot cut, where its strides are known
        already."""
        if (strides := self.strides()) is None:
            return  # `training.recipe.check_parts` looks at them when it is open
        try:
            grid_shape(
                shape.num_frames,
                shape.height,
                shape.width,
                temporal_stride=strides[0],
                spatial_stride=strides[1],
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def strides(self) -> tuple[int, int] | None:
        """The tokenizer's (temporal, spatial) stride, where config or prepared clips tell them
        before it opens."""
        if self.data.kind == "shards":
            return self._prepared_strides
        return self.tokenizer_config.strides()

    @functools.cached_property
    def _prepared_strides(self) -> tuple[int, int] | None:
        if not (Path(self.data.path) / MANIFEST).is_file():
            return None  # what is wrong with the folder is told when its clips are opened
        tokenizer = read_manifest(Path(self.data.path))["tokenizer"]
        known = {"temporal_stride", "spatial_stride"} <= set(tokenizer)
        return (
            (int(tokenizer["temporal_stride"]), int(tokenizer["spatial_stride"])) if known else None
        )

    @property
    def final_stage(self) -> Stage:
        """The last stage, whose clips are what the model is for."""
        return self.recipe.curriculum.stages[-1]

    def source(self, split: str, *, min_frames: int | None = None) -> ClipSource:
        """Clips of a split: "train", "test", and for shapes "unseen".

        min_frames: leaves out shorter videos; None for what the shortest clips of the curriculum
            need, or for "test" those of the last stage.
        """
        shape = stage_shape(self.final_stage)
        shortest = min(
            shape.num_frames for stage in self.recipe.curriculum.stages for shape in stage.shapes
        )
        if min_frames is None:
            min_frames = shortest if split == "train" else shape.num_frames
        settings = dict(
            seed=self.recipe.seed,
            min_frames=min_frames,
            shortest=(shortest, shape.num_frames),
            drawn=10 * self.evaluation.clips,
        )
        if split == "test":
            return open_held_out(self.data, shape, **settings)
        return open_source(self.data, split, **settings)

    def tokenizer(self, source: ClipSource) -> Tokenizer:
        """The tokenizer; where it is fitted, on training clips of the last stage's size."""
        recipe = self.recipe
        return make_tokenizer(
            self.tokenizer_config,
            self.data,
            recipe.init_from,
            dtype=recipe.model.dtype,
            source=source,
            shape=stage_shape(self.final_stage),
            seed=recipe.seed,
        )

    def text_encoder(self) -> TextEncoder:
        """The text encoder."""
        recipe = self.recipe
        return make_text_encoder(self.text, self.data, recipe.init_from, dtype=recipe.model.dtype)


def stage_shape(stage: Stage) -> ClipShape:
    """The clips that stand for a stage: its main shape."""
    return clip_shape(stage.main)


def _model(values: Mapping[str, Any]) -> ModelConfig:
    """The preset with the fields that are set."""
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    _check_keys("model", values, fields | {"preset"}, {"preset"})
    one_of("model.preset", values["preset"], tuple(PRESETS))
    changes = {
        name: value for name, value in values.items() if name != "preset" and value is not None
    }
    return dataclasses.replace(PRESETS[values["preset"]], **changes)


def _section(kind: type[_T], name: str, values: Mapping[str, Any]) -> _T:
    section = values[name]
    if not isinstance(section, Mapping):
        raise ValueError(f"config.{name} must be a section with keys, not {section!r}.")
    fields = dataclasses.fields(kind)
    required = {f.name for f in fields if f.default is dataclasses.MISSING}
    _check_keys(name, section, {f.name for f in fields}, required)
    return kind(**section)


def _check_keys(
    section: str, values: Mapping[str, Any], known: set[str], required: set[str]
) -> None:
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(sorted(known))}."
            raise ValueError(f"Unknown key {key!r} in {section}.{hint}")
    if missing := sorted(required - set(values)):
        raise ValueError(f"{section} lacks {', '.join(missing)}.")

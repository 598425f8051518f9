"""The door between configs/ and the package: a ConfigDict becomes an `Experiment`.

An `Experiment` consists of frozen dataclasses that check themselves; nothing further inside reads a
ConfigDict. `Experiment.from_config` reports what is wrong with a config before any clip is read or
memory is allocated.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from videomar_jax.checks import UserError, known_keys, one_of
from videomar_jax.data.augment import AugmentedClips
from videomar_jax.data.sources import ClipShape, ClipSource
from videomar_jax.diffusion.plans import plan_steps
from videomar_jax.experiment.build import (
    check_places,
    clips_to_fit,
    known_strides,
    make_text_encoder,
    make_tokenizer,
    prepared_with,
)
from videomar_jax.experiment.data_sources import DATA_KINDS, DataConfig, SourceRequest
from videomar_jax.experiment.sections import EvaluationConfig, TextConfig, TokenizerConfig
from videomar_jax.io.migration import current_config
from videomar_jax.models.config import PRESETS, ModelConfig
from videomar_jax.parallel.config import MeshConfig
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.schedules import head_step_names
from videomar_jax.text_encoders import TextEncoder
from videomar_jax.tokenizers import Tokenizer
from videomar_jax.tokenizers.base import grid_shape
from videomar_jax.training.batches import clip_shape
from videomar_jax.training.config import LossConfig, OptimizerConfig, RunConfig
from videomar_jax.training.curriculum import Curriculum, Stage
from videomar_jax.training.recipe import Recipe

_Section = TypeVar("_Section")

SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "tokenizer": TokenizerConfig,
    "text": TextConfig,
    "loss": LossConfig,
    "optimizer": OptimizerConfig,
    "mesh": MeshConfig,
    "run": RunConfig,
    "sampling": SamplingConfig,
    "evaluation": EvaluationConfig,
}
"""The sections of a config that are a dataclass each; "model" is a preset with changes."""

KEYS = ("seed", "init_from", "model", "curriculum", *SECTIONS)
"""Everything a config holds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run: what it computes, on which clips, and what is measured.

    recipe: model, loss, optimizer, curriculum, mesh.
    data, tokenizer_config, text: where clips, latents and text features come from.
    sampling: how previews and scored clips are generated, and the model's default afterwards.
    """

    recipe: Recipe
    data: DataConfig
    tokenizer_config: TokenizerConfig
    text: TextConfig
    sampling: SamplingConfig
    evaluation: EvaluationConfig

    @classmethod
    def from_config(cls, config: ConfigDict | Mapping[str, Any]) -> "Experiment":
        """Reads a config of the form of configs/base.py; names of earlier versions are understood.

        Raises:
            UserError: an unknown or missing key, or a value that is not possible; the text names it
                and a way out.
        """
        values = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
        values = current_config(values)
        known_keys("config", values, KEYS, KEYS)
        if not values["curriculum"]:
            raise UserError(
                "The config has no curriculum: name a config with stages, such as "
                "configs/quickstart.py."
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
        check_places(
            experiment.data, experiment.tokenizer_config, experiment.text, recipe.init_from
        )
        experiment._check_stages()
        if _forecasts_last_stage(values["model"]):
            experiment = experiment._with_forecast()
        sampling = experiment.sampling
        # Refuses steps that the head cannot take now, rather than at the first preview.
        names = head_step_names(sampling, sampling.steps)
        plan_steps(recipe.model.process, names, sampling.head_solver)
        return experiment

    def _check_stages(self) -> None:
        """Raises a UserError for sizes that the tokenizer cannot take, where its strides are
        known."""
        strides = self.strides()
        if strides is None:
            return  # `training.recipe.check_stages` looks at them when the tokenizer is open
        for stage in self.recipe.curriculum.stages:
            for shape in stage.shapes:
                try:
                    grid_shape(
                        shape.num_frames,
                        shape.height,
                        shape.width,
                        temporal_stride=strides[0],
                        spatial_stride=strides[1],
                    )
                except ValueError as error:
                    raise UserError(f"Stage '{stage.name}': {error}") from error

    def _with_forecast(self) -> "Experiment":
        """With a forecast of the last stage's clips, where these have a second latent frame."""
        strides, shape, model = self.strides(), self.final_shape, self.recipe.model
        if strides is None:
            raise UserError(
                "model.forecast=() needs a tokenizer whose strides are known before it is "
                "opened: give (latent frames, token rows, token columns)."
            )
        frames, rows, columns = grid_shape(
            shape.num_frames,
            shape.height,
            shape.width,
            temporal_stride=strides[0],
            spatial_stride=strides[1],
        )
        if frames == 1:
            return self
        grid = (frames, rows // model.patch_size, columns // model.patch_size)
        recipe = dataclasses.replace(self.recipe, model=dataclasses.replace(model, forecast=grid))
        return dataclasses.replace(self, recipe=recipe)

    def strides(self) -> tuple[int, int] | None:
        """The tokenizer's (temporal, spatial) stride, if known before the tokenizer is opened."""
        if prepared_with(self.data) is not None:
            return self._prepared_strides
        return known_strides(self.tokenizer_config)

    @functools.cached_property
    def _prepared_strides(self) -> tuple[int, int] | None:
        return DATA_KINDS[self.data.kind].prepared_strides(self.data)

    @property
    def final_stage(self) -> Stage:
        """The last stage, whose clips are what the model is for."""
        return self.recipe.curriculum.stages[-1]

    @property
    def final_shape(self) -> ClipShape:
        """The main clips of the last stage."""
        return clip_shape(self.final_stage)

    def source(self, split: str, *, min_frames: int | None = None) -> ClipSource:
        """Clips of a split: "train", "test", and for shapes "unseen".

        Args:
            min_frames: leaves out shorter videos; None for what the shortest clips of the
                curriculum need, or for "test" those of the last stage.
        """
        final = self.final_shape
        shortest = min(
            shape.num_frames for stage in self.recipe.curriculum.stages for shape in stage.shapes
        )
        if min_frames is None:
            min_frames = shortest if split == "train" else final.num_frames
        request = SourceRequest(
            split=split,
            seed=self.recipe.seed,
            min_frames=min_frames,
            shortest=(shortest, final.num_frames),
            drawn=10 * self.evaluation.clips,
        )
        kind = DATA_KINDS[self.data.kind]
        if split == "test":
            return kind.open_held_out(self.data, request, final)
        return kind.open(self.data, request)

    def training_source(self) -> ClipSource:
        """The clips of "train" as training sees them: changed at random, where the config says."""
        source = self.source("train")
        if self.data.augmentation.changes_nothing:
            return source
        return AugmentedClips(source, self.data.augmentation)

    def tokenizer(self, source: ClipSource) -> Tokenizer:
        """The tokenizer; where it is fitted, on clips of `source` of the last stage's size."""
        recipe, config = self.recipe, self.tokenizer_config
        return make_tokenizer(
            config,
            self.data,
            recipe.init_from,
            dtype=recipe.model.dtype,
            fit_on=lambda: clips_to_fit(source, self.final_shape, config.fit_clips, recipe.seed),
        )

    def text_encoder(self) -> TextEncoder:
        """The text encoder."""
        recipe = self.recipe
        return make_text_encoder(self.text, self.data, recipe.init_from, dtype=recipe.model.dtype)


def _model(values: Mapping[str, Any]) -> ModelConfig:
    """The preset with the fields that are set; None keeps the preset's value."""
    fields = [field.name for field in dataclasses.fields(ModelConfig)]
    known_keys("model", values, [*fields, "preset"], ["preset"])
    one_of("model.preset", values["preset"], PRESETS)
    changes = {
        name: value for name, value in values.items() if name != "preset" and value is not None
    }
    if _forecasts_last_stage(values):
        del changes["forecast"]  # see `Experiment._with_forecast`
    return dataclasses.replace(PRESETS[values["preset"]], **changes)


def _forecasts_last_stage(values: Mapping[str, Any]) -> bool:
    """Whether `model.forecast` is empty: of the clips of the last stage."""
    return values.get("forecast") is not None and not len(values["forecast"])


def _section(kind: type[_Section], name: str, values: Mapping[str, Any]) -> _Section:
    """One section of a config as its dataclass; a key that is left out has its default."""
    section = values[name]
    if not isinstance(section, Mapping):
        raise UserError(f"config.{name} must be a section with keys, not {section!r}.")
    fields = dataclasses.fields(kind)
    required = [field.name for field in fields if field.default is dataclasses.MISSING]
    known_keys(name, section, [field.name for field in fields], required)
    return kind(**section)

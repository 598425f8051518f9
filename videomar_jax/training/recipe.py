"""What a training run computes, in one frozen record, and whether it fits the mesh and the data."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated

from videomar_jax.checks import Range, UserError, check_fields
from videomar_jax.models.config import ModelConfig
from videomar_jax.parallel.config import MeshConfig
from videomar_jax.tokenizers import Tokenizer, latent_shape
from videomar_jax.training.config import LossConfig, OptimizerConfig, RunConfig
from videomar_jax.training.curriculum import Curriculum, LearningRate, learning_rates


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a training run computes, given its data and tokenizer.

    Raises:
        UserError: the seed or the learning rate's schedule is not possible.
    """

    seed: Annotated[int, Range(low=0, high=2**32 - 1)]
    """Every random draw of the run follows from it."""
    init_from: str = ""
    """Where the initial parameters came from; "" for random ones."""
    model: ModelConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    curriculum: Curriculum
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    run: RunConfig

    def __post_init__(self):
        check_fields("config", self)
        self.learning_rate()  # raises for a schedule that does not fit the curriculum

    def learning_rate(self) -> LearningRate:
        """The learning rate as a function of the step."""
        return learning_rates(
            self.curriculum,
            warmup_steps=self.optimizer.warmup_steps,
            schedule=self.optimizer.schedule,
            final_fraction=self.optimizer.final_fraction,
        )


def check_stages(recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Checks that the model and the tokenizer can take the clips of every stage.

    Raises:
        UserError: what does not fit, with the stage's name.
    """
    model = recipe.model
    if recipe.loss.regression_weight and not model.regression:
        raise UserError("loss.regression_weight needs model.regression=True.")
    if model.residual and not recipe.loss.regression_weight:
        raise UserError("model.residual needs a loss.regression_weight above 0, such as 1.")
    for stage in recipe.curriculum.stages:
        for shape in stage.shapes:
            try:
                grid = latent_shape(tokenizer, shape.num_frames, shape.height, shape.width)
            except ValueError as error:
                raise UserError(f"Stage '{stage.name}': {error}") from error
            _, rows, columns = grid
            if rows % model.patch_size or columns % model.patch_size:
                raise UserError(
                    f"Stage '{stage.name}': latents of {rows}x{columns} are not a multiple of "
                    f"model.patch_size {model.patch_size}; change the stage's height and width."
                )


def check_mesh(recipe: Recipe, spatial_stride: int, sizes: Mapping[str, int]) -> None:
    """Checks that every stage's batches can be spread evenly over a mesh.

    Args:
        spatial_stride: the tokenizer's.
        sizes: devices by mesh axis.
    Raises:
        UserError: what does not fit, with the stage's name.
    """
    model, accumulate = recipe.model, recipe.run.accumulate
    if model.num_heads % sizes["tensor"]:
        raise UserError(
            f"model.num_heads {model.num_heads} is not a multiple of mesh.tensor {sizes['tensor']}."
        )
    parts = sizes["data"] * sizes["fsdp"] * accumulate
    for stage in recipe.curriculum.stages:
        for shape in stage.shapes:
            if shape.batch_size % parts:
                raise UserError(
                    f"Stage '{stage.name}': batch_size {shape.batch_size} is not a multiple of "
                    f"mesh.data x mesh.fsdp x run.accumulate = {sizes['data']} x {sizes['fsdp']} x "
                    f"{accumulate} = {parts}: change it or config.mesh."
                )
            rows = shape.height // spatial_stride // model.patch_size
            if rows % sizes["context"]:
                raise UserError(
                    f"Stage '{stage.name}': frames of {rows} token rows cannot be spread over "
                    f"mesh.context {sizes['context']}; it must divide the rows."
                )

"""What a run computes, in frozen dataclasses, and whether its parts fit together."""

import dataclasses

from videomar_jax.models.config import ModelConfig
from videomar_jax.parallel.config import MeshConfig
from videomar_jax.text_encoders import TextEncoder
from videomar_jax.tokenizers import Tokenizer, latent_shape
from videomar_jax.training.batches import TrainingInputs
from videomar_jax.training.config import LossConfig, OptimizerConfig, RunConfig
from videomar_jax.training.curriculum import Curriculum, learning_rates


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a training run computes, given its data and tokenizer."""

    seed: int
    init_from: str = ""  # where the initial parameters came from; "" for random ones
    model: ModelConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    curriculum: Curriculum
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    run: RunConfig

    def __post_init__(self):
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"config.seed must lie in 0..2**32 - 1, but is {self.seed}.")
        self.learning_rate()  # a schedule that does not fit the curriculum is told here

    def learning_rate(self):
        """The learning rate as a function of the step."""
        config = self.optimizer
        return learning_rates(
            self.curriculum,
            warmup_steps=config.warmup_steps,
            schedule=config.schedule,
            final_fraction=config.final_fraction,
        )


def check_fit(model: ModelConfig, tokenizer: Tokenizer, text: TextEncoder) -> None:
    """Raises a ValueError where model, tokenizer and text encoder do not fit together."""
    if model.latent_channels != tokenizer.channels:
        raise ValueError(
            f"The model takes {model.latent_channels} latent channels, the tokenizer gives {tokenizer.channels}: "
            f"set model.latent_channels={tokenizer.channels}."
        )
    if (model.text_tokens, model.text_width) != (text.max_tokens, text.width):
        raise ValueError(
            f"The model takes text of {model.text_tokens} tokens x {model.text_width} values, the text encoder gives "
            f"{text.max_tokens} x {text.width}: set model.text_tokens and model.text_width to that."
        )


def check_parts(recipe: Recipe, parts: TrainingInputs) -> None:
    """Raises a ValueError naming what does not fit together, before any work."""
    model, tokenizer = recipe.model, parts.tokenizer
    check_fit(model, tokenizer, parts.text_encoder)
    if recipe.loss.regression_weight and not model.regression:
        raise ValueError("loss.regression_weight needs model.regression=True.")
    for stage in recipe.curriculum.stages:
        for shape in stage.shapes:
            try:
                _, rows, columns = latent_shape(
                    tokenizer, shape.num_frames, shape.height, shape.width
                )
            except ValueError as error:
                raise ValueError(f"Stage '{stage.name}': {error}") from error
            if rows % model.patch_size or columns % model.patch_size:
                raise ValueError(
                    f"Stage '{stage.name}': latents of {rows}x{columns} are no multiple of model.patch_size "
                    f"{model.patch_size}; change the stage's height and width."
                )


def check_mesh(recipe: Recipe, spatial_stride: int, sizes: dict[str, int]) -> None:
    """Raises a ValueError where a stage's batches cannot be spread evenly over a mesh of these
    sizes.

    spatial_stride: of the tokenizer.
    """
    blocks, parts = sizes["data"] * sizes["fsdp"], recipe.run.accumulate
    if recipe.model.num_heads % sizes["tensor"]:
        raise ValueError(
            f"model.num_heads {recipe.model.num_heads} is no multiple of mesh.tensor {sizes['tensor']}."
        )
    for stage in recipe.curriculum.stages:
        for shape in stage.shapes:
            if shape.batch_size % (blocks * parts):
                raise ValueError(
                    f"Stage '{stage.name}': batch_size {shape.batch_size} is no multiple of mesh.data x mesh.fsdp x "
                    f"run.accumulate = {sizes['data']} x {sizes['fsdp']} x {parts} = {blocks * parts}: "
                    f"change it or config.mesh."
                )
            rows = shape.height // spatial_stride // recipe.model.patch_size
            if rows % sizes["context"]:
                raise ValueError(
                    f"Stage '{stage.name}': frames of {rows} token rows cannot be spread over mesh.context "
                    f"{sizes['context']}; it must divide the rows."
                )

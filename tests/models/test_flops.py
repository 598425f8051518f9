"""Counted FLOPs against the compiler's own count of the compiled loss, and against each other."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from videomar_jax.models.config import PRESETS, ModelConfig
from videomar_jax.models.flops import forward_flops, supervised_frame_flops, train_step_flops
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.training.config import LossConfig
from videomar_jax.training.draws import Batch, draw
from videomar_jax.training.loss import next_frame_loss

WIDE = ModelConfig(
    latent_channels=16,
    width=256,
    depth=2,
    num_heads=4,
    text_tokens=16,
    text_width=128,
    head="ddpm",
    head_width=256,
    head_depth=1,
    unroll=2,
)
CLIPS, GRID = 2, (4, 8)
TOKENS = GRID[0] * GRID[1]


def compiled_flops(config, loss, frames, *, gradient=False):
    """What XLA counts for the loss, or for its gradient.

    It counts every operation, so a few percent more than the products, and the body of a loop only
    once: layers and blocks of the head must be unrolled.
    """

    def run(model, batch):
        draws = draw(jax.random.key(0), model, (CLIPS, frames, TOKENS), loss)
        return next_frame_loss(model, batch, draws, loss)[0]

    model = nnx.eval_shape(lambda: VideoMAR(config, rngs=nnx.Rngs(0)))
    shapes = Batch(
        jax.ShapeDtypeStruct((CLIPS, frames, *GRID, 16), jnp.float32),
        jax.ShapeDtypeStruct((CLIPS, config.text_tokens, config.text_width), jnp.float32),
        jax.ShapeDtypeStruct((CLIPS, config.text_tokens), jnp.bool_),
    )
    function = jax.grad(run) if gradient else run
    return jax.jit(function).lower(model, shapes).compile().cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("supervise", "frames", "draws"),
    [("one_frame", 3, 1), ("all_frames", 3, 2), ("all_frames", 1, 1)],
    ids=["one", "all", "image"],
)
def test_a_forward_pass_costs_what_the_compiler_counts(supervise, frames, draws):
    loss = LossConfig(supervise=supervise, draws_per_token=draws)
    sizes = dict(
        supervise=supervise, draws_per_token=draws, batch=CLIPS, frames=frames, tokens=TOKENS
    )
    counted = forward_flops(WIDE, **sizes).total()
    assert 1.0 < compiled_flops(WIDE, loss, frames) / counted < 1.06


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_training_step_costs_what_the_compiler_counts(remat):
    """Slightly less than three times the forward pass: the first linear layers of tokens, text and
    times need no gradient of their input."""
    config, loss = (
        dataclasses.replace(WIDE, remat=remat),
        LossConfig(supervise="all_frames", draws_per_token=1),
    )
    sizes = dict(
        supervise="all_frames",
        truncate=False,
        draws_per_token=1,
        batch=CLIPS,
        frames=2,
        tokens=TOKENS,
    )
    counted = train_step_flops(config, **sizes)
    assert 0.97 < compiled_flops(config, loss, 2, gradient=True) / counted < 1.06


PAPER = dict(draws_per_token=4, batch=2, frames=7, tokens=1440)


def test_truncated_clips_cost_the_mean_of_their_lengths():
    model = PRESETS["videomar_1p4b"]
    cut = train_step_flops(model, supervise="one_frame", truncate=True, **PAPER)
    lengths = [
        train_step_flops(model, supervise="one_frame", truncate=False, **PAPER | dict(frames=t))
        for t in range(2, 8)
    ]
    assert cut == pytest.approx(sum(lengths) / 6)
    image = [
        train_step_flops(model, supervise="one_frame", truncate=truncate, **PAPER | dict(frames=1))
        for truncate in (False, True)
    ]
    assert image[0] == image[1]


def test_a_supervised_frame_is_cheapest_when_all_are():
    model = PRESETS["videomar_1p4b"]
    costs = {
        (frames, truncate): supervised_frame_flops(
            model, supervise=frames, truncate=truncate, **PAPER
        )
        for frames, truncate in (
            ("one_frame", False),
            ("one_frame", True),
            ("all_frames", False),
        )
    }
    assert (
        costs["all_frames", False]
        < costs["one_frame", True] / 1.8
        < costs["one_frame", False] / 2.5
    )
    step = train_step_flops(model, supervise="all_frames", truncate=False, **PAPER)
    assert step == pytest.approx(costs["all_frames", False] * 2 * 6)


def test_recomputed_layers_cost_one_forward_pass_more_and_dots_less():
    steps = {
        remat: train_step_flops(
            dataclasses.replace(WIDE, remat=remat),
            supervise="one_frame",
            truncate=False,
            draws_per_token=1,
            batch=1,
            frames=3,
            tokens=TOKENS,
        )
        for remat in ("none", "dots", "full")
    }
    forward = forward_flops(
        WIDE, supervise="one_frame", draws_per_token=1, batch=1, frames=3, tokens=TOKENS
    )
    assert steps["none"] == 3 * forward.total()
    assert steps["full"] - steps["none"] == pytest.approx(forward.linear + forward.attention)
    assert steps["dots"] - steps["none"] == pytest.approx(forward.attention)

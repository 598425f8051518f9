"""The fused head is the head of `models.diffusion_head`: the same outputs, the same tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tiny_model import tiny_model
from videomar_jax.diffusion.plans import plan_steps
from videomar_jax.sampling.fused_head import cut_chunks, denoise, draw_tokens_fused, fuse_head
from videomar_jax.sampling.reference import draw_tokens
from videomar_jax.sampling.speed import chunk_size

TOKENS, WIDTH, VALUES = 5, 32, 3


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("head", ["flow", "ddpm"])
@pytest.mark.parametrize("copies", [1, 2], ids=["unguided", "guided"])
def test_both_forms_of_the_network_give_the_same_output(head, copies):
    """With guidance the rows are doubled: the same tokens, another condition."""
    model = tiny_model(head=head)
    x, z = normal(0, TOKENS, VALUES), normal(1, copies * TOKENS, WIDTH)
    fused = fuse_head(model.head)
    for t in model.process.timesteps("3").time:
        wanted = model.head(jnp.tile(x, (copies, 1)), t, z)
        embedding = model.head.time_embedding(t)
        modulation = fused.modulation(jax.nn.silu(embedding + fused.condition(z)))
        output = denoise(fused, x, modulation)
        assert output.shape == wanted.shape == (copies * TOKENS, VALUES * (1 + (head == "ddpm")))
        np.testing.assert_allclose(output, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("head", ["flow", "ddpm"])
@pytest.mark.parametrize("chunk", [1, 3, 4])
@pytest.mark.parametrize("names", [["4"], ["4", "2"]], ids=["alike", "varying"])
def test_tokens_drawn_in_chunks_are_those_drawn_step_by_step(head, chunk, names):
    """Chunks that do not divide the steps are padded; so are rows with fewer steps."""
    model = tiny_model(head=head)
    plan = plan_steps(model.process, names)
    embedding = model.head.time_embedding(plan.steps.time)
    embedded = plan._replace(steps=plan.steps._replace(embedding=embedding))
    z, noise = normal(2, 4, TOKENS, WIDTH), normal(3, 2, TOKENS, VALUES)
    step_noise = normal(4, 4 if head == "ddpm" else 0, 2, TOKENS, VALUES)
    guidance, temperature = jnp.float32(2.0), jnp.float32(0.8)
    for row in range(len(names)):
        steps = jax.tree.map(lambda table, row=row: table[row], plan.steps)
        wanted = draw_tokens(model, z, noise, step_noise, steps, guidance, temperature)
        schedule = cut_chunks(embedded, jnp.asarray(row), chunk)
        drawn = draw_tokens_fused(
            fuse_head(model.head),
            model.process,
            z,
            noise,
            step_noise,
            schedule,
            guidance,
            temperature,
        )
        np.testing.assert_allclose(drawn, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("evaluations", "rows", "varying", "size"),
    [
        (25, 12, False, 25),
        (100, 72, False, 5),
        (100, 26, False, 10),
        (101, 72, False, 6),
        (25, 12, True, 3),
        (4, 5000, False, 1),
    ],
)
def test_chunks_of_head_steps(evaluations, rows, varying, size):
    assert chunk_size(evaluations, rows, varying) == size

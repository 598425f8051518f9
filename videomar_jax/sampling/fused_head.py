"""Drawing tokens: the head's diffusion run backwards, given z.

`draw_tokens` is the method as it is told. `draw_tokens_fast` gives the same numbers in fewer and
larger products. In the head (`models.diffusion_head`) the modulations depend on the time and z
alone, never on the noisy token:

    y_j = SiLU(time_mlp(t_j) + cond_embed(z)),    (shift, scale, gate)_j = linear(y_j)

so they are computed for `chunk` steps at once, outside the sequential loop, with one product for
all layers. What stays inside are two products a layer. Kernels lie transposed, which XLA multiplies
faster when there are few rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from videomar_jax.diffusion.base import Process, Timesteps
from videomar_jax.diffusion.solver import (
    SolverPlan,
    evaluations,
    init_state,
    solver_step,
    with_length,
)
from videomar_jax.models.diffusion_head import DiffusionHead
from videomar_jax.models.layers import Linear
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.types import Array, Float, Int


def draw_tokens(
    model: VideoMAR,
    z: Float[Array, "G k D"],
    noise: Float[Array, "B k P"],
    step_noise: Float[Array, "N B k P"],
    steps: Timesteps,
    guidance: Array,
    temperature: Array,
) -> Float[Array, "B k P"]:
    """Draws tokens given z by running the head's diffusion backwards; with guidance z has 2B rows,
    text first.

    `steps` is one row of a `SolverPlan`, [N] each.
    """
    process, batch = model.process, len(noise)
    condition = model.head.condition(z)
    guided = len(z) == 2 * batch

    def head_step(state, step):
        now, injected = step
        rows = jnp.concatenate([state.x, state.x]) if guided else state.x
        output = model.head.denoise(rows, now.time, condition)
        return solver_step(process, state, output, now, injected, guidance, temperature), None

    injected = step_noise if process.stochastic else None
    start = init_state(process, noise, temperature)
    with jax.named_scope("diffusion_head"):
        return jax.lax.scan(head_step, start, (steps, injected))[0].x


# ---------------------------------------------------------------- the fast way


class Dense(NamedTuple):
    """A linear layer with its kernel transposed."""

    kernel: Float[Array, "out in"]
    bias: Float[Array, "out"]

    def __call__(self, x: Float[Array, "*rows in"]) -> Float[Array, "*rows out"]:
        x = x.astype(self.kernel.dtype)
        flat = x.reshape(-1, x.shape[-1]) if jax.default_backend() == "cpu" else x
        product = jax.lax.dot_general(flat, self.kernel, (((flat.ndim - 1,), (1,)), ((), ())))
        return product.reshape(*x.shape[:-1], -1) + self.bias


class HeadLayer(NamedTuple):
    """One residual block of the head."""

    scale: Float[Array, "W"]
    bias: Float[Array, "W"]
    first: Dense
    second: Dense


class FastHead(NamedTuple):
    """The head's weights as `draw_tokens_fast` wants them."""

    condition: Dense
    modulation: Dense  # of all layers, then of the output
    inputs: Dense
    layers: tuple[HeadLayer, ...]
    output: Dense


def fast_head(head: DiffusionHead) -> FastHead:
    """Prepares the head once for a whole video."""
    layers = [
        jax.tree.map(lambda leaf, i=i: leaf[i], head.blocks)
        for i in range(head.blocks.norm.scale.shape[0])
    ]
    parts = [layer.modulation for layer in layers] + [head.final_modulation]
    dtype = head.input_proj.dtype

    def dense(*linears: Linear) -> Dense:
        kernel = jnp.concatenate([linear.kernel[...].T for linear in linears])
        return Dense(
            kernel.astype(dtype),
            jnp.concatenate([linear.bias[...] for linear in linears]).astype(dtype),
        )

    return FastHead(
        condition=dense(head.cond_embed),
        modulation=dense(*parts),
        inputs=dense(head.input_proj),
        layers=tuple(
            HeadLayer(b.norm.scale[...], b.norm.bias[...], dense(b.linear1), dense(b.linear2))
            for b in layers
        ),
        output=dense(head.final),
    )


def _normalised(u: Float[Array, "R W"]) -> Float[Array, "R W"]:
    """Layer norm without learned scale, in float32."""
    u = u.astype(jnp.float32)
    u = u - jnp.mean(u, axis=-1, keepdims=True)
    return u * jax.lax.rsqrt(jnp.mean(u**2, axis=-1, keepdims=True) + 1e-6)


def denoise(
    head: FastHead, x: Float[Array, "R P"], modulation: Float[Array, "V M"]
) -> Float[Array, "V O"]:
    """The head's output given its modulations; V is R, or 2R for the rows without text behind those
    with it."""
    width = head.condition.bias.shape[0]
    parts = jnp.split(modulation, modulation.shape[-1] // width, axis=-1)
    u = jnp.tile(head.inputs(x), (len(modulation) // len(x), 1))
    for i, layer in enumerate(head.layers):
        shift, scale, gate = parts[3 * i : 3 * i + 3]
        h = layer.first((_normalised(u) * layer.scale + layer.bias) * (1 + scale) + shift)
        u = u + gate * layer.second(jax.nn.silu(h))
    shift, scale = parts[-2:]
    return head.output(_normalised(u) * (1 + scale) + shift)


def draw_tokens_fast(
    head: FastHead,
    process: Process,
    z: Float[Array, "G k D"],
    noise: Float[Array, "B k P"],
    step_noise: Float[Array, "N B k P"],
    plan: SolverPlan,
    which: Int[Array, ""],
    guidance: Array,
    temperature: Array,
    chunk: int,
) -> Float[Array, "B k P"]:
    """`draw_tokens` with row `which` of the plan, whose steps hold the "embedding" of every time as
    well; `chunk` of them are modulated at once, and a chunk that is padding only is left out."""
    rows = noise.reshape(-1, noise.shape[-1])
    condition = head.condition(z.reshape(-1, z.shape[-1]))
    length = -(-evaluations(plan) // chunk) * chunk
    steps = jax.tree.map(
        lambda x: x[which].reshape(-1, chunk, *x.shape[2:]), with_length(plan, length).steps
    )
    injected = None
    if process.stochastic:
        step_noise = jnp.pad(step_noise, ((0, length - len(step_noise)), *[(0, 0)] * 3))
        injected = step_noise.reshape(-1, chunk, *rows.shape)

    def step(state, inputs):
        now, injected, modulation = inputs
        output = denoise(head, state.x, modulation)
        return solver_step(process, state, output, now, injected, guidance, temperature), None

    def advance(state, inputs):
        now, injected = inputs
        modulation = head.modulation(jax.nn.silu(now.embedding[:, None] + condition))
        now = now._replace(embedding=None)
        return jax.lax.scan(step, state, (now, injected, modulation))[0]

    start, chunks = init_state(process, rows, temperature), (steps, injected)
    with jax.named_scope("diffusion_head"):
        if len(plan.count) == 1:
            carry = jax.lax.scan(lambda carry, now: (advance(carry, now), None), start, chunks)[0]
        else:
            body = lambda i, carry: advance(carry, jax.tree.map(lambda x: x[i], chunks))
            carry = jax.lax.fori_loop(0, -(-plan.count[which] // chunk), body, start)
    return carry.x.reshape(noise.shape)


def chunk_size(evaluations: int, rows: int, varying: bool) -> int:
    """How many steps to modulate at once: about 512 rows in a product; fewer where steps may be
    left out."""
    most = min(evaluations, max(1, 512 // rows))
    if varying:
        most = min(most, max(4, evaluations // 8))
    return min(range(most, most // 2, -1), key=lambda size: -evaluations % size)

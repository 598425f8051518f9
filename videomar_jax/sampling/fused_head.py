"""The diffusion head in fewer and larger products: the same numbers as `models.diffusion_head`.

The modulations of the head's layers depend on the time and on z alone, never on the noisy token:

    y_j = SiLU( time_mlp(t_j) + cond_embed(z) ),    (shift, scale, gate)_j = linear(y_j)

so they are computed for a chunk of head steps at once, ahead of the sequential loop over steps,
with one product for all layers. What stays inside the loop are two products a layer. Kernels lie
transposed, which XLA multiplies faster when there are few rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from videomar_jax.diffusion.base import Process, Timesteps
from videomar_jax.diffusion.plans import SolverPlan, evaluations, with_length
from videomar_jax.diffusion.solver import init_state, solver_step
from videomar_jax.models.diffusion_head import DiffusionHead
from videomar_jax.models.layers import Linear
from videomar_jax.platforms import platform
from videomar_jax.sampling.speed import ceil_div
from videomar_jax.types import Array, Float, Int


class Dense(NamedTuple):
    """A linear layer with its kernel transposed."""

    kernel: Float[Array, "out in"]
    bias: Float[Array, "out"]

    def __call__(self, x: Float[Array, "*rows in"]) -> Float[Array, "*rows out"]:
        x = x.astype(self.kernel.dtype)
        # XLA on a CPU has a fast product for matrices, and none for more axes.
        flat = x.reshape(-1, x.shape[-1]) if platform() == "cpu" else x
        product = jax.lax.dot_general(flat, self.kernel, (((flat.ndim - 1,), (1,)), ((), ())))
        return product.reshape(*x.shape[:-1], -1) + self.bias


class HeadLayer(NamedTuple):
    """One residual block of the head."""

    scale: Float[Array, "W"]
    bias: Float[Array, "W"]
    first: Dense
    second: Dense


class FusedHead(NamedTuple):
    """The head's weights as `draw_tokens_fused` takes them."""

    condition: Dense
    modulation: Dense
    """Of all layers (shift, scale, gate each), then of the output (shift, scale)."""
    inputs: Dense
    layers: tuple[HeadLayer, ...]
    output: Dense


def fuse_head(head: DiffusionHead) -> FusedHead:
    """Rearranges the head's weights, once for a whole video."""
    dtype = head.input_proj.dtype

    def dense(*linears: Linear) -> Dense:
        kernel = jnp.concatenate([linear.kernel[...].T for linear in linears])
        bias = jnp.concatenate([linear.bias[...] for linear in linears])
        return Dense(kernel.astype(dtype), bias.astype(dtype))

    depth = head.blocks.linear1.kernel.shape[0]
    blocks = [jax.tree.map(lambda leaf, i=i: leaf[i], head.blocks) for i in range(depth)]
    layers = []
    for block in blocks:
        norm = block.norm
        layers.append(
            HeadLayer(norm.scale[...], norm.bias[...], dense(block.linear1), dense(block.linear2))
        )
    modulations = [block.modulation for block in blocks]
    return FusedHead(
        condition=dense(head.cond_embed),
        modulation=dense(*modulations, head.final_modulation),
        inputs=dense(head.input_proj),
        layers=tuple(layers),
        output=dense(head.final),
    )


def denoise(
    head: FusedHead, x: Float[Array, "R P"], modulation: Float[Array, "V M"]
) -> Float[Array, "V O"]:
    """The head's output for noisy tokens, given their modulations.

    V is R, or 2R with guidance: rows without text behind those with it, for the same tokens.
    """
    width = head.condition.bias.shape[0]
    parts = jnp.split(modulation, modulation.shape[-1] // width, axis=-1)
    u = jnp.tile(head.inputs(x), (len(modulation) // len(x), 1))
    for i, layer in enumerate(head.layers):
        shift, scale, gate = parts[3 * i : 3 * i + 3]
        h = layer.first((_normalised(u) * layer.scale + layer.bias) * (1 + scale) + shift)
        u = u + gate * layer.second(jax.nn.silu(h))
    shift, scale = parts[-2:]
    return head.output(_normalised(u) * (1 + scale) + shift)


def _normalised(u: Float[Array, "R W"]) -> Float[Array, "R W"]:
    """Layer norm without learned scale, in float32."""
    u = u.astype(jnp.float32)
    u = u - jnp.mean(u, axis=-1, keepdims=True)
    return u * jax.lax.rsqrt(jnp.mean(u**2, axis=-1, keepdims=True) + 1e-6)


class HeadSchedule(NamedTuple):
    """The head steps of one reveal step, cut into chunks that are modulated at once."""

    steps: Timesteps
    """Arrays [chunks, chunk], embeddings included."""
    count: Int[Array, ""] | None
    """Head steps that are not padding; None: all reveal steps take as many."""


def cut_chunks(timesteps: SolverPlan, row: Int[Array, ""], chunk: int) -> HeadSchedule:
    """Row `row` of the timesteps, padded to whole chunks (padding is marked as not active)."""
    length = ceil_div(evaluations(timesteps), chunk) * chunk

    def chunked(table: Array) -> Array:
        return table[row].reshape(-1, chunk, *table.shape[2:])

    steps = jax.tree.map(chunked, with_length(timesteps, length).steps)
    count = timesteps.count[row] if len(timesteps.count) > 1 else None
    return HeadSchedule(steps, count)


def draw_tokens_fused(
    head: FusedHead,
    process: Process,
    z: Float[Array, "G k D"],
    noise: Float[Array, "B k P"],
    step_noise: Float[Array, "N B k P"],
    schedule: HeadSchedule,
    guidance: Array,
    temperature: Array,
) -> Float[Array, "B k P"]:
    """`sampling.reference.draw_tokens` with modulations of a chunk of head steps at once."""
    rows = noise.reshape(-1, noise.shape[-1])
    condition = head.condition(z.reshape(-1, z.shape[-1]))
    chunks, chunk = schedule.steps.time.shape
    injected = None
    if process.stochastic:
        padding = chunks * chunk - len(step_noise)
        injected = jnp.pad(step_noise, ((0, padding), (0, 0), (0, 0), (0, 0)))
        injected = injected.reshape(-1, chunk, *rows.shape)

    def head_step(state, step):
        now, injected, modulation = step
        output = denoise(head, state.x, modulation)
        return solver_step(process, state, output, now, injected, guidance, temperature), None

    def run_chunk(state, chunk):
        steps, injected = chunk
        modulation = head.modulation(jax.nn.silu(steps.embedding[:, None] + condition))
        # The embeddings are used up: the inner loop reads what was made of them.
        steps = steps._replace(embedding=None)
        return jax.lax.scan(head_step, state, (steps, injected, modulation))[0]

    all_chunks = (schedule.steps, injected)
    state = init_state(process, rows, temperature)
    with jax.named_scope("diffusion_head"):
        if schedule.count is None:
            state, _ = jax.lax.scan(
                lambda state, chunk: (run_chunk(state, chunk), None), state, all_chunks
            )
        else:
            # Chunks that are padding only are left out.
            used = ceil_div(schedule.count, chunk)

            def body(i, state):
                return run_chunk(state, jax.tree.map(lambda x: x[i], all_chunks))

            state = jax.lax.fori_loop(0, used, body, state)
    return state.x.reshape(noise.shape)

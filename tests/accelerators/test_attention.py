"""Fused attention as the compilers of TPUs and GPUs take it: at the size of the paper's model, on a
mesh, without the machines. What is not installed is skipped.
"""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from videomar_jax.accelerators.targets import Target
from videomar_jax.checks import UserError
from videomar_jax.models import attention
from videomar_jax.models.frame_attention import attend_frames
from videomar_jax.models.partitioning import sharding_rule
from videomar_jax.parallel.config import MeshConfig
from videomar_jax.parallel.mesh import make_mesh
from videomar_jax.parallel.sharding import CLIPS, layout_rule
from videomar_jax.platforms import compile_for

CLIP = (2, 7, 1440, 24, 64)
TEXT = (2, 1, 300, 24, 64)
SCORES = 4 * 2 * 24 * 1440 * 7 * 1440
"""Bytes of the scores between one frame and all frames, in float32."""


def decode(q, k, v):
    """A frame against a cache in which five slots are filled, and itself."""
    slots = jnp.array([1, 1, 1, 1, 1, 0, 1], bool)
    return attend_frames(q[:, :1], k, v, key_mask=jnp.repeat(slots, 1440)[None])


def cross(q, k, v):
    """Frames against a text of 200 tokens."""
    return attend_frames(q, k, v, key_mask=jnp.arange(300)[None] < 200)


PATTERNS = {
    "causal": attention.frame_causal,
    "teacher forcing": functools.partial(attention.teacher_forcing, clean=3),
    "decode": decode,
    "text": cross,
}


def compiled(target: Target, mesh_config: MeshConfig, name: str, *, backward: bool):
    """The pattern for a mesh over the target's devices, with its gradients if asked for."""
    try:
        target.require()
    except UserError as error:
        pytest.skip(str(error))
    mesh = make_mesh(mesh_config, target.devices()[:4])
    rule = layout_rule(mesh, mesh_config)

    def attended(*arrays):
        with sharding_rule(rule), compile_for(target.platform):
            return PATTERNS[name](*arrays)

    def loss(*arrays):
        return jnp.sum(attended(*arrays).astype(jnp.float32) ** 2)

    def abstract(shape, tokens):
        where = NamedSharding(mesh, PartitionSpec(CLIPS, None, tokens, "tensor"))
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=where)

    of_text = name == "text"
    keys = abstract(TEXT if of_text else CLIP, None if of_text else "context")
    function = jax.grad(loss, argnums=(0, 1, 2)) if backward else attended
    traced = jax.jit(function).trace(abstract(CLIP, "context"), keys, keys)
    return traced.lower(lowering_platforms=(target.compiler,)).compile()


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize(
    ("target", "backward"),
    [
        ("tpu:v5p:2x2x1", False),
        ("tpu:v5p:2x2x1", True),
        ("tpu:v5e:2x2", False),
        ("tpu:v6e:2x2", False),
    ],
)
def test_tpus_take_one_kernel_for_all_frames(target, backward, name):
    config = MeshConfig(data=1, tensor=2, context=2)
    program = compiled(Target.parse(target), config, name, backward=backward)
    # Forward; backward for the queries; backward for keys and values.
    assert program.as_text().count('custom_call_target="tpu_custom_call"') == (3 if backward else 1)
    temporary = program.memory_analysis().temp_size_in_bytes
    # Half the heads lie on each device, and half the queries.
    assert temporary < SCORES / 4, "scores are held in the memory of the device"


@pytest.mark.parametrize("name", ["causal", "teacher forcing", "text"])
def test_gpus_take_their_kernel_with_the_tokens_spread(name):
    config = MeshConfig(data=1, fsdp=2, context=2)
    program = compiled(Target.parse("gpu:h100:4"), config, name, backward=True)
    text = program.as_text()
    calls = {"causal": 7, "teacher forcing": 7, "text": 1}[name]
    assert text.count("__cudnn$fmha") >= 2 * calls, "a kernel forward and one backward"
    assert " all-gather" in text or name == "text"

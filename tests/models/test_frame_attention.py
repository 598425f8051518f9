"""Attention over the devices of a mesh: the same values, keys and values gathered once; and which
kernel is chosen where.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.helpers.tiny_model import tiny_model, tiny_text
from videomar_jax.accelerators.chips import Chip
from videomar_jax.accelerators.cost import cost_of
from videomar_jax.accelerators.hlo import parse
from videomar_jax.models import attention
from videomar_jax.models.frame_attention import attend_frames
from videomar_jax.models.kernels import choose_kernel
from videomar_jax.models.partitioning import sharding_rule
from videomar_jax.parallel.config import MeshConfig
from videomar_jax.parallel.mesh import make_mesh
from videomar_jax.parallel.sharding import CLIPS, layout_rule
from videomar_jax.platforms import compile_for

CHIP = Chip("any", flops=1.0, memory=1.0, bandwidth=1.0)
CONFIG = MeshConfig(data=1, fsdp=2, tensor=2, context=2, min_size=0)
PATTERNS = {
    "causal": attention.frame_causal,
    "teacher forcing": functools.partial(attention.teacher_forcing, clean=2),
    "all": attend_frames,
    "masked": functools.partial(attend_frames, key_mask=jnp.arange(24)[None] % 5 > 0),
    "a mask a sample": functools.partial(
        attend_frames, key_mask=jnp.arange(4 * 24).reshape(4, 24) % 7 > 0
    ),
}


def heads(batch=4, num_heads=4):
    return tuple(jax.random.normal(jax.random.key(0), (3, batch, 4, 6, num_heads, 8)))


def collectives(compiled) -> dict[str, int]:
    """How often one device takes part in each kind, loops counted."""
    return dict(cost_of(parse(compiled.as_text()), CHIP).collectives)


def spread(arrays, mesh):
    where = NamedSharding(mesh, PartitionSpec(CLIPS, None, "context", "tensor"))
    return tuple(jax.device_put(x, where) for x in arrays)


def value_and_gradients(pattern, arrays, rule=None):
    def loss(*arrays):
        with sharding_rule(rule):
            out = pattern(*arrays)
        return jnp.sum(jnp.sin(out)), out

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*arrays)


@pytest.mark.parametrize("name", PATTERNS)
def test_eight_devices_attend_like_one(name):
    mesh, pattern = make_mesh(CONFIG), PATTERNS[name]
    expected = value_and_gradients(pattern, heads())
    own = value_and_gradients(pattern, spread(heads(), mesh), layout_rule(mesh, CONFIG))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), own[1], expected[1])
    np.testing.assert_allclose(own[0][1], expected[0][1], atol=1e-6)


@pytest.mark.parametrize("name", PATTERNS)
def test_keys_and_values_are_gathered_once(name):
    mesh = make_mesh(CONFIG)

    def attended(*arrays):
        with sharding_rule(layout_rule(mesh, CONFIG)):
            return PATTERNS[name](*arrays)

    compiled = jax.jit(attended).lower(*spread(heads(), mesh)).compile()
    assert collectives(compiled) == {"all-gather": 2}, "one for the keys, one for the values"


def test_what_the_mesh_does_not_divide_is_not_split():
    mesh = make_mesh(CONFIG)
    q, k, v = heads(batch=3, num_heads=1)
    with sharding_rule(layout_rule(mesh, CONFIG)):
        own = jax.jit(lambda q: attention.frame_causal(q, k, v))(q)
        few = jax.jit(lambda q: attend_frames(q, k, v))(q[:, :1, :3])
    np.testing.assert_allclose(own, attention.frame_causal(q, k, v), atol=1e-6)
    np.testing.assert_allclose(few, attend_frames(q[:, :1, :3], k, v), atol=1e-6)


def test_a_model_gathers_once_a_layer():
    config = MeshConfig(data=1, context=2)
    mesh = make_mesh(config, jax.devices()[:2])
    model = jax.device_put(tiny_model(), NamedSharding(mesh, PartitionSpec()))
    where = NamedSharding(mesh, PartitionSpec(None, None, "context"))
    tokens = jax.device_put(jnp.ones((1, 4, 16, model.config.token_dim)), where)
    text, text_mask = tiny_text(1)

    def z(model, tokens):
        # The form of linear layers for a CPU flattens frames and tokens, which gathers as well.
        with sharding_rule(layout_rule(mesh, config)), compile_for("gpu"):
            mask = jnp.ones(tokens.shape[:-1], bool)[:, 1:]
            context = model.context(text, text_mask)
            return model.teacher_forced(tokens, mask, context, (4, 4))

    compiled = jax.jit(z, out_shardings=where).lower(model, tokens).compile()
    assert collectives(compiled) == {"all-gather": 2 * model.config.depth}


@pytest.mark.parametrize(
    ("platform", "dtype", "queries", "width", "kernel"),
    [
        ("cpu", "bfloat16", 1440, 64, "xla"),
        ("gpu", "bfloat16", 1440, 64, "cudnn"),
        ("gpu", "float32", 1440, 64, "xla"),
        ("tpu", "bfloat16", 1440, 64, "splash"),
        ("tpu", "float32", 256, 128, "splash"),
        ("tpu", "bfloat16", 36, 64, "xla"),
        ("tpu", "bfloat16", 1440, 40, "xla"),
    ],
)
def test_auto_takes_the_fused_kernel_where_it_runs(platform, dtype, queries, width, kernel):
    with compile_for(platform):
        assert choose_kernel("auto", queries, 1440, width, dtype) == kernel
        assert choose_kernel("xla", queries, 1440, width, dtype) == "xla"


def test_two_masks_are_one_too_many():
    q, k, v = heads()
    with pytest.raises(ValueError, match="not both"):
        attend_frames(q, k, v, sees=np.tri(4, dtype=bool), key_mask=jnp.ones((1, 24), bool))

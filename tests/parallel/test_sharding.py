"""The same training on any mesh: numbers, what lies where, and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from videomar_jax.models.config import PRESETS, ModelConfig
from videomar_jax.models.params import abstract_model
from videomar_jax.parallel.config import MeshConfig
from videomar_jax.parallel.mesh import abstract_mesh, make_mesh
from videomar_jax.parallel.multihost import process_share
from videomar_jax.parallel.sharding import (
    batch_shardings,
    bytes_per_device,
    layout_rule,
    param_shardings,
    place,
    spec_for,
    state_shardings,
)
from videomar_jax.training.config import LossConfig, OptimizerConfig
from videomar_jax.training.curriculum import Curriculum
from videomar_jax.training.draws import Batch
from videomar_jax.training.optimizer import make_optimizer
from videomar_jax.training.state import init_state
from videomar_jax.training.step import make_train_step

MODEL = ModelConfig(
    latent_channels=4,
    width=32,
    depth=2,
    num_heads=4,
    text_tokens=4,
    text_width=16,
    head="flow",
    head_width=32,
    head_depth=2,
    head_zero_init=False,
)
STEPS = 5
MESHES = {
    "fsdp": MeshConfig(data=2, fsdp=4, min_size=0),
    "all": MeshConfig(data=1, fsdp=2, tensor=2, context=2, min_size=0),
}


def batch_of(step: int, clips: int = 8) -> Batch:
    draw = np.random.default_rng(step)
    latents = draw.standard_normal((clips, 3, 4, 4, 4)).astype(np.float32)
    text = draw.standard_normal((clips, 4, 16)).astype(np.float32)
    return Batch(latents, text, np.ones((clips, 4), bool))


def optimizer_of(config: OptimizerConfig):
    return make_optimizer(config, lambda step: jnp.float32(1e-3))


def trained(
    mesh_config: MeshConfig,
    *,
    optimizer: str = "adamw",
    supervise: str = "one_frame",
    accumulate: int = 1,
):
    """Losses, parameters with their average, and the state after a few steps on the mesh."""
    config = OptimizerConfig(name=optimizer)
    transform, mesh = optimizer_of(config), make_mesh(mesh_config)
    key = jax.random.key(0)
    start = init_state(MODEL, transform, key)
    shardings = state_shardings(start, mesh, mesh_config)
    state = jax.device_put(start, shardings)
    update = make_train_step(
        abstract_model(MODEL)[0],
        transform,
        LossConfig(supervise=supervise, draws_per_token=2),
        config,
        accumulate=accumulate,
        shardings=shardings,
        rule=layout_rule(mesh, mesh_config),
    )
    losses = []
    for step in range(STEPS):
        batch = batch_of(step)
        state, metrics = update(state, jax.device_put(batch, batch_shardings(batch, mesh)), key)
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get((state.params, state.ema)), state


def assert_alike(one, other):
    """Losses within 1e-5, parameters and averages within 1e-4; and something was learned."""
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), one[1], other[1])
    params, average = one[1]
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), params, average)
    assert max(jax.tree.leaves(moved)) > 1e-3, "nothing was learned, so equality says nothing"


@pytest.fixture(scope="module")
def alone():
    return trained(MeshConfig(data=1))


@pytest.fixture(scope="module")
def on_all_axes():
    return trained(MESHES["all"])


def test_fsdp_tensor_and_context_train_like_one_device(alone, on_all_axes):
    assert_alike(on_all_axes, alone)


def test_accumulation_on_a_mesh_trains_like_one_device_at_once(alone):
    assert_alike(trained(MESHES["fsdp"], accumulate=2), alone)


def test_muon_over_every_frame_trains_alike_on_a_mesh():
    settings = dict(optimizer="muon", supervise="all_frames")
    assert_alike(
        trained(MeshConfig(data=4, context=2), **settings), trained(MeshConfig(data=1), **settings)
    )


def test_a_fresh_state_is_made_where_it_lies_and_equals_that_of_one_device():
    transform, mesh = optimizer_of(OptimizerConfig()), make_mesh(MESHES["all"])
    alone = init_state(MODEL, transform, jax.random.key(3))
    shardings = state_shardings(alone, mesh, MESHES["all"])
    state = init_state(MODEL, transform, jax.random.key(3), shardings=shardings)
    jax.tree.map(
        lambda leaf, wanted: (
            leaf.sharding.is_equivalent_to(wanted, leaf.ndim) or pytest.fail(str(leaf))
        ),
        state,
        shardings,
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        jax.device_get(state),
        jax.device_get(alone),
    )


def test_averages_and_moments_lie_like_their_parameters(on_all_axes):
    state = on_all_axes[2]
    specs = {
        jax.tree_util.keystr(path): leaf.sharding.spec
        for path, leaf in jax.tree_util.tree_flatten_with_path(state.params)[0]
    }
    assert PartitionSpec(None, "fsdp", "tensor") in specs.values()
    found = 0
    for path, leaf in jax.tree_util.tree_flatten_with_path((state.ema, state.opt_state))[0]:
        name = jax.tree_util.keystr(path)
        mine = [spec for own, spec in specs.items() if name.endswith(own)]
        if mine:
            found += 1
            assert leaf.sharding.spec == mine[0], (
                f"{name} lies along {leaf.sharding.spec}, its parameter {mine[0]}"
            )
    assert found == 3 * len(specs), "every parameter has an average and two moments"


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_memory_of_the_state_falls_with_fsdp(parts):
    config = MeshConfig(data=1, fsdp=parts, min_size=0)
    transform = optimizer_of(OptimizerConfig())
    abstract = jax.eval_shape(lambda: init_state(MODEL, transform, jax.random.key(0)))
    mesh = make_mesh(config)
    shardings = state_shardings(abstract, mesh, config)
    state = jax.device_put(init_state(MODEL, transform, jax.random.key(0)), shardings)
    held = [0] * 8
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            held[shard.device.id] += shard.data.nbytes
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert held[0] == bytes_per_device(abstract, shardings)
    assert max(held) < 1.02 * whole / parts, (
        f"{max(held)} bytes of {whole} on one of {parts} devices"
    )


def test_the_large_model_is_cut_evenly_over_256_devices_without_them():
    config = MeshConfig(data=4, fsdp=64)
    shapes = abstract_model(PRESETS["videomar_1p4b"])[1]
    per_device = bytes_per_device(
        shapes, param_shardings(shapes, abstract_mesh(config, 256), config)
    )
    whole = 4 * 1_383_155_232
    assert whole / 64 < per_device < 1.01 * whole / 64 + 4 * 1.6e6, (
        "small vectors are copied, all else is cut"
    )


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        (
            ("transformer", "blocks", "self_attention", "qkv", "kernel"),
            (2, 32, 96),
            (None, "fsdp", "tensor"),
        ),
        (
            ("transformer", "blocks", "feed_forward", "down", "kernel"),
            (2, 128, 32),
            (None, "tensor", "fsdp"),
        ),
        (("transformer", "blocks", "norm1", "scale"), (2, 33), ("fsdp", None)),
        (("mask_token",), (33,), (None,)),
        (("z_proj", "kernel"), (5, 7), (None, None)),
    ],
)
def test_rules(path, shape, expected):
    assert spec_for(path, shape, {"fsdp": 2, "tensor": 2}, 0) == PartitionSpec(*expected)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(data=0), "mesh.data must be at least 1"),
        (dict(data=-1, fsdp=-1), "At most one axis"),
        (dict(min_size=-1), "min_size must not be negative"),
    ],
)
def test_meshes_that_cannot_be(sizes, message):
    with pytest.raises(ValueError, match=message):
        MeshConfig(**sizes)


@pytest.mark.parametrize("sizes", [dict(data=16), dict(fsdp=3), dict(data=3, fsdp=3)])
def test_meshes_that_do_not_fit_the_devices(sizes):
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        make_mesh(MeshConfig(**sizes))


def test_a_process_alone_has_the_whole_batch():
    assert process_share(make_mesh(MESHES["all"])) == (0, 1)


def test_a_block_of_rows_is_placed_as_part_of_the_batch():
    mesh = make_mesh(MeshConfig(data=4, context=2))
    batch = batch_of(0)
    placed = place(batch, batch_shardings(batch, mesh), first_row=0, rows=8)
    np.testing.assert_array_equal(placed.latents, batch.latents)
    assert placed.latents.addressable_shards[0].data.shape == (2, 3, 2, 4, 4)


def test_a_curriculum_must_fit_the_mesh():
    from videomar_jax.training.config import RunConfig
    from videomar_jax.training.recipe import Recipe, check_mesh

    row = dict(
        name="a", num_frames=3, height=16, width=16, batch_size=6, steps=2, learning_rate=1e-3
    )
    recipe = Recipe(
        seed=0,
        model=MODEL,
        loss=LossConfig(),
        optimizer=OptimizerConfig(),
        curriculum=Curriculum.from_rows([row]),
        run=RunConfig(),
    )
    one = dict(data=1, fsdp=1, tensor=1, context=1)
    check_mesh(recipe, 4, one | dict(data=3))
    for change, message in (
        (dict(data=4), "'a'.*batch_size 6 is not a multiple"),
        (dict(tensor=3), "num_heads 4"),
        (dict(context=3), "4 token rows"),
    ):
        with pytest.raises(ValueError, match=message):
            check_mesh(recipe, 4, one | change)

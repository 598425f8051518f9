"""Generation over eight devices, spread as its arguments are; and how often it is compiled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from tests.helpers.tiny_model import annotations_off, tiny_model, tiny_text
from videomar_jax.accelerators.chips import Chip
from videomar_jax.accelerators.cost import cost_of
from videomar_jax.accelerators.hlo import Program, parse
from videomar_jax.parallel.config import MeshConfig
from videomar_jax.parallel.mesh import make_mesh
from videomar_jax.parallel.sharding import param_shardings
from videomar_jax.sampling import decoder
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.generate import SpeedOptions, generate, plan_generation, start
from videomar_jax.sampling.sharding import cache_shards, placement

CONFIG = SamplingConfig(steps=3, head_steps="3", guidance=2.0, latent_clip=0.0)
GRID, FRAMES = (4, 4), 4
MESHES = {
    "data": MeshConfig(data=4),
    "all": MeshConfig(data=1, fsdp=2, tensor=2, context=2, min_size=1),
}


def spread(model, config: MeshConfig):
    """(the model on the mesh, the mesh)"""
    mesh = make_mesh(config, jax.devices()[: 4 if config.data == 4 else 8])
    graph, state = nnx.split(model)
    params = nnx.to_pure_dict(state)
    return nnx.merge(graph, jax.device_put(params, param_shardings(params, mesh, config))), mesh


def given_latents(batch=4):
    return jax.random.normal(jax.random.key(7), (batch, 1, *GRID, 3))


def make(model, given, speed=None, seed=8, config=CONFIG, num_frames=FRAMES):
    keys = jax.random.split(jax.random.key(seed), len(given))
    return generate(
        model,
        given,
        *tiny_text(len(given)),
        num_frames=num_frames,
        config=config,
        keys=keys,
        speed=speed,
    )


@pytest.fixture(scope="module")
def alone():
    return make(tiny_model(), given_latents())


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("speed", [None, SpeedOptions()], ids=["light", "all"])
def test_eight_devices_make_the_video_of_one(alone, name, speed, recwarn):
    if name == "data" and speed is not None:
        pytest.skip("one of the two is enough")
    model, mesh = spread(tiny_model(), MESHES[name])
    where = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "context"))
    given = jax.device_put(given_latents(), where)
    before = decoder.compiled_frame._cache_size()
    video = make(model, given, speed)
    np.testing.assert_allclose(video, alone, atol=1e-5 * np.abs(alone).max())
    lengths = FRAMES - 1 if speed else 1
    assert decoder.compiled_frame._cache_size() - before == lengths, (
        "the second frame's arrays are laid out unlike the first's"
    )
    assert not [w for w in recwarn if "donated" in str(w.message)], (
        "the cache is copied, not donated"
    )


def test_the_cache_lies_as_its_arguments_do():
    model, mesh = spread(tiny_model(), MESHES["all"])
    given = jax.device_put(given_latents(), NamedSharding(mesh, PartitionSpec("fsdp")))
    place = placement(model, model.config, given, tokens=16)
    assert place.cache.spec == PartitionSpec(None, "fsdp", None, "context", "tensor", None)
    assert place.tokens.spec == PartitionSpec("fsdp", "context", None) and cache_shards(place) == 8
    uneven = placement(model, tiny_model(num_heads=1).config, jnp.zeros((1, 1)), tokens=15)
    assert (
        uneven.cache.spec == PartitionSpec(None, None, None, None, None, None)
        and cache_shards(uneven) == 1
    )
    assert (
        placement(tiny_model(), tiny_model().config, given_latents(), 16) is None
        and cache_shards(None) == 1
    )


def frame_program(speed: SpeedOptions, head_steps: str) -> Program:
    """The compiled program of a frame on four devices that share each layer."""
    mesh_config = MeshConfig(data=1, tensor=4, min_size=1)
    mesh = make_mesh(mesh_config, jax.devices()[:4])
    graph, state = nnx.split(tiny_model(num_heads=4))
    params = nnx.to_pure_dict(state)
    model = nnx.merge(graph, jax.device_put(params, param_shardings(params, mesh, mesh_config)))
    given = jax.device_put(given_latents(1), NamedSharding(mesh, PartitionSpec()))
    config = dataclasses.replace(CONFIG, head_steps=head_steps)
    plan = plan_generation(model, given, num_frames=2, config=config, speed=speed)
    shared, state = start(plan, given, *tiny_text(1), jax.random.split(jax.random.key(0), 1))
    settings = jax.tree.map(lambda values: values[0], plan.settings)
    arguments = plan.model, shared, state, settings, None, plan.static_config(1)
    # Lowering describes the arguments in records of their own types.
    with annotations_off():
        compiled = decoder.compiled_frame.lower(*arguments).compile()
    return parse(compiled.as_text())


@pytest.mark.parametrize("speed", [SpeedOptions.plain(), SpeedOptions()], ids=["plain", "fast"])
def test_devices_that_share_layers_do_not_share_the_head(speed):
    """However many steps the head takes, the devices do not wait for each other in between."""
    chip = Chip("any", flops=1.0, memory=1.0, bandwidth=1.0)
    few, many = (cost_of(frame_program(speed, steps), chip) for steps in ("2", "9"))
    assert few.collectives == many.collectives and sum(few.collectives.values()) > 0


def test_two_meshes_are_one_too_many():
    model, _ = spread(tiny_model(), MESHES["all"])
    _, other = spread(tiny_model(), MESHES["data"])
    given = jax.device_put(given_latents(), NamedSharding(other, PartitionSpec("data")))
    with pytest.raises(ValueError, match="different meshes"):
        make(model, given)


# ---- one compilation for each shape


class Compilations:
    """Counts what XLA compiles, or reads from its cache on disk."""

    def __init__(self):
        self.names: list[str] = []
        jax.monitoring.register_event_duration_secs_listener(self._record)

    def _record(self, event: str, _: float, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            self.names.append(event)

    def during(self, function) -> int:
        before = len(self.names)
        jax.block_until_ready(function())
        return len(self.names) - before


def test_another_value_compiles_nothing_and_another_shape_does():
    count = Compilations()
    model, given = tiny_model(), given_latents(2)
    config = dataclasses.replace(CONFIG, head_steps="5-2", guidance_interval=(0.0, 0.6))
    video = make(model, given, config=config)
    values = [
        dict(guidance=7.0),
        dict(temperature=0.3),
        dict(temperature_law="paper"),
        dict(latent_clip=1.0, clip_first=True),
        dict(guidance_schedule="constant"),
        dict(guidance_interval=(0.3, 0.6)),
    ]
    for change in values:
        changed = dataclasses.replace(config, **change)
        assert count.during(lambda c=changed: make(model, given, config=c)) == 0, change
        assert np.abs(make(model, given, config=changed) - video).max() > 1e-4, (
            f"{change} has no effect"
        )
    programs = decoder.compiled_frame._cache_size(), decoder.start_decoding._cache_size()
    make(
        model, given, config=dataclasses.replace(config, head_steps="5-3")
    )  # only the little tables of the steps
    assert (decoder.compiled_frame._cache_size(), decoder.start_decoding._cache_size()) == programs
    brighter, other = given + 1, jax.tree.map(lambda leaf: leaf * 1.01, model)
    assert count.during(lambda: make(model, brighter, seed=9, config=config)) == 0
    assert count.during(lambda: make(other, given, config=config)) == 0
    assert count.during(lambda: make(model, given, config=dataclasses.replace(config, steps=2))) > 0
    assert count.during(lambda: make(model, given[:1], config=config)) > 0


def test_every_frame_runs_the_same_program_where_the_cache_is_masked():
    model, given = tiny_model(), given_latents(1)
    before = decoder.compiled_frame._cache_size()
    make(model, given, num_frames=6)
    assert decoder.compiled_frame._cache_size() - before == 1
    assert jnp.isfinite(make(model, given, num_frames=6)).all()

"""Code with a form of its own for a platform takes the form of the platform it is compiled for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from tests.helpers.tiny_model import GRID, annotations_off, tiny_config, tiny_model, tiny_text
from tests.helpers.tiny_video import generated
from videomar_jax.models import kernels
from videomar_jax.models.layers import linear
from videomar_jax.models.params import abstract_model
from videomar_jax.platforms import compile_for, device_of, platform, platform_of
from videomar_jax.sampling import decoder, generate, memory
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.fused_head import Dense
from videomar_jax.sampling.speed import SpeedOptions
from videomar_jax.tokenizers.cosmos.conv import spatial_conv
from videomar_jax.training import step as training_step
from videomar_jax.training.config import LossConfig, OptimizerConfig
from videomar_jax.training.draws import Batch
from videomar_jax.training.optimizer import make_optimizer
from videomar_jax.training.state import init_state

CONFIG = SamplingConfig(steps=2, head_steps="2", guidance=1.0)


def primitives(function, *args) -> list[tuple[str, int]]:
    """(primitive, rank of an output) of everything that the function computes."""
    found = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            found.extend((equation.primitive.name, each.aval.ndim) for each in equation.outvars)
            for inner in jaxprs_in_params(equation.params):
                walk(inner)

    walk(jax.make_jaxpr(function)(*args).jaxpr)
    return found


def product_ranks(function, *args) -> list[int]:
    return [rank for name, rank in primitives(function, *args) if name == "dot_general"]


# Which platform


def test_the_default_is_that_of_the_default_device():
    assert platform() == jax.default_backend()
    with jax.default_device(jax.devices("cpu")[1]):
        assert platform() == "cpu"
    with jax.default_device("cpu"):
        assert platform() == "cpu"


def test_a_context_ends_also_with_an_error():
    with compile_for("tpu"):
        with pytest.raises(KeyError), compile_for("cuda"):
            assert platform() == "gpu"
            raise KeyError
        with compile_for(None):
            assert platform() == "tpu"
    assert platform() == "cpu"


def test_arrays_and_shardings_say_where_they_lie():
    devices = jax.devices()
    array = jax.device_put(np.ones(2), devices[3])
    assert device_of({"host": np.ones(2), "array": array}) == devices[3]
    mesh = Mesh(np.array(devices[2:6]), ("data",))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    assert device_of([spread]) == devices[2]
    assert device_of(jax.ShapeDtypeStruct((4,), jnp.float32, sharding=spread)) == devices[2]
    assert platform_of(array) == "cpu"


def test_what_says_nothing_lies_where_programs_are_compiled_for():
    nowhere = NamedSharding(AbstractMesh((4,), ("data",)), PartitionSpec())
    for tree in (None, np.ones(2), jax.ShapeDtypeStruct((2,), jnp.float32), nowhere):
        assert device_of(tree) is None
        with compile_for("tpu"):
            assert platform_of(tree) == "tpu"
    with compile_for("tpu"):
        traced = jax.make_jaxpr(lambda x: x * (2 if platform_of(x) == "tpu" else 3))(1.0)
    assert "2.0" in str(traced)


# Two platforms in one process


def test_a_compiled_function_is_traced_once_for_each_platform():
    seen = []

    @jax.jit
    def scaled(x):
        seen.append(platform())
        return x * {"cpu": 1, "tpu": 2, "gpu": 3}[platform()]

    def under(name):
        with compile_for(name):
            return float(scaled(1.0))

    assert [under(name) for name in ("cpu", "tpu", "gpu", "tpu", "cpu")] == [1, 2, 3, 2, 1]
    assert seen == ["cpu", "tpu", "gpu"], "each platform has one trace, and keeps it"


def test_a_context_inside_of_a_compiled_function_reaches_what_it_calls():
    inner = jax.jit(lambda x: x * (2 if platform() == "tpu" else 3))

    @jax.jit
    def outer(x):
        first = inner(x)
        with compile_for("tpu"):
            return first, inner(x), jax.lax.scan(lambda c, _: (inner(c), None), x, length=2)[0]

    assert outer(1.0) == (3, 2, 4)


# Each form


def test_linear_layers_join_rows_on_the_cpu_only():
    layer = linear(8, 4, tiny_config(), nnx.Rngs(0))
    x = jnp.ones((2, 3, 8))
    for name, rank in (("cpu", 2), ("gpu", 3), ("tpu", 3)):
        with compile_for(name):
            assert product_ranks(layer, x) == [rank], name


def test_the_fused_head_joins_rows_on_the_cpu_only():
    layer = Dense(jnp.ones((4, 8)), jnp.zeros(4))
    for name, rank in (("cpu", 2), ("tpu", 3)):
        with compile_for(name):
            assert product_ranks(layer, jnp.ones((2, 3, 8))) == [rank], name


def test_winograd_is_for_the_cpu_only():
    x, kernel = jnp.ones((1, 40, 40, 64)), jnp.ones((3, 3, 64, 64))
    for name, convolves in (("cpu", False), ("gpu", True), ("tpu", True)):
        with compile_for(name):
            names = [each for each, _ in primitives(spatial_conv, x, kernel)]
        assert ("conv_general_dilated" in names) == convolves, name


def test_cudnn_is_for_gpus_and_16_bits_only(monkeypatch):
    asked = []

    def fused(q, k, v, *, mask, implementation):
        asked.append(implementation)
        return q

    monkeypatch.setattr(jax.nn, "dot_product_attention", fused)
    for name in ("cpu", "tpu", "gpu"):
        with compile_for(name):
            for dtype in ("float32", "bfloat16"):
                kernels.attend(*jnp.ones((3, 1, 4, 2, 8), dtype))
    assert asked == ["cudnn"]


def test_layers_are_cut_apart_on_the_cpu_only():
    model = tiny_config(width=512, num_heads=8)
    for name in ("cpu", "gpu"):
        with compile_for(name):
            chosen = SpeedOptions.for_request(model, 1440, 64, 2)
        assert chosen.unstack_layers == (name == "cpu"), name


def test_only_cudnn_spares_the_memory_of_the_scores():
    model = tiny_config(dtype="bfloat16")
    request = dict(batch=1, frames=5, grid=(30, 48))
    free = sum(memory.request_bytes(model, CONFIG, **request, fused=True).values())
    with compile_for("gpu"):
        memory.check_memory(model, CONFIG, **request, free=free)
    with compile_for("tpu"), pytest.raises(ValueError, match="latent frames"):
        memory.check_memory(model, CONFIG, **request, free=free)


# Who says it


def test_a_training_step_takes_the_forms_of_the_devices_of_its_state(monkeypatch):
    optimizer = make_optimizer(OptimizerConfig(), lambda step: jnp.float32(1e-3))
    state = init_state(tiny_config(), optimizer, jax.random.key(0))
    here = jax.tree.map(lambda leaf: leaf.sharding, state)
    batch = Batch(jnp.ones((2, 2, *GRID, 3)), *tiny_text(2))

    def ranks(shardings):
        update = training_step.make_train_step(
            abstract_model(tiny_config())[0],
            optimizer,
            LossConfig(),
            OptimizerConfig(),
            shardings=shardings,
        )
        return product_ranks(update, state, batch, jax.random.key(0))

    with annotations_off():
        on_cpu, undecided = ranks(here), ranks(None)
        with compile_for("tpu"):
            assert ranks(here) == on_cpu, "the state says where it lies, whoever asks"
            on_tpu = ranks(None)
        monkeypatch.setattr(training_step, "platform_of", lambda tree: "tpu")
        assert ranks(here) == on_tpu
    assert undecided == on_cpu != on_tpu


def test_generation_takes_the_forms_of_the_devices_of_its_model(monkeypatch):
    on_cpu = generated(CONFIG, num_frames=3)
    before = decoder.compiled_frame._cache_size()
    np.testing.assert_array_equal(generated(CONFIG, num_frames=3), on_cpu)
    assert decoder.compiled_frame._cache_size() == before
    # The forms of a TPU run on a CPU too: the same video by another program.
    monkeypatch.setattr(generate, "platform_of", lambda tree: "tpu")
    np.testing.assert_allclose(generated(CONFIG, num_frames=3), on_cpu, atol=1e-5)
    assert decoder.compiled_frame._cache_size() > before


def test_a_model_on_another_device_leaves_no_context_open():
    model = jax.device_put(tiny_model(), jax.devices()[5])
    stream = generate.generate_frames(
        model,
        jnp.ones((1, 1, *GRID, 3)),
        *tiny_text(1),
        num_frames=3,
        config=CONFIG,
        keys=jax.random.split(jax.random.key(0), 1),
    )
    next(stream)
    with compile_for("tpu"):
        next(stream)
        assert platform() == "tpu"
    assert platform() == "cpu"

"""A bfloat16 transformer with a float32 head: what is converted, and that both are in use."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers.tiny_model import tiny_model
from tests.helpers.tiny_video import generated
from videomar_jax.models import incremental
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.precision import for_sampling

CONFIG = SamplingConfig(steps=3, head_steps="4", guidance=2.0, latent_clip=0.0)


def types(model) -> dict[str, str]:
    """Path of every parameter → its stored type."""
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model)))
    return {"/".join(str(key.key) for key in path): leaf.dtype.name for path, leaf in leaves}


def video(model=None, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return generated(config, num_frames=3, model=model)


def test_a_model_that_is_as_wanted_comes_back():
    model = tiny_model()
    assert for_sampling(model, CONFIG) is model
    assert (
        for_sampling(model, dataclasses.replace(CONFIG, dtype="float32", head_dtype="model"))
        is model
    )
    half = for_sampling(model, dataclasses.replace(CONFIG, dtype="bfloat16"))
    assert for_sampling(half, dataclasses.replace(CONFIG, dtype="bfloat16")) is half


def test_kernels_of_the_transformer_are_halved_and_nothing_else():
    before = types(tiny_model(pooled_text=True))
    after = types(
        for_sampling(tiny_model(pooled_text=True), dataclasses.replace(CONFIG, dtype="bfloat16"))
    )
    halved = {path for path, dtype in after.items() if dtype == "bfloat16"}
    assert set(before.values()) == {"float32"} and before.keys() == after.keys()
    assert {path.split("/")[-1] for path in halved} == {"kernel", "bias"}
    kernels = {path for path in before if path.endswith("kernel") and not path.startswith("head/")}
    assert {path for path in halved if path.endswith("kernel")} == kernels
    norms = [path for path in halved if "norm" in path]
    assert not norms, f"norms are float32 whatever the type: {norms}"


def test_the_head_computes_in_float32_beside_a_bfloat16_transformer():
    """For the models converted here, and for those trained in bfloat16."""
    mixed = for_sampling(tiny_model(), dataclasses.replace(CONFIG, dtype="bfloat16"))
    trained = for_sampling(tiny_model(dtype="bfloat16"), CONFIG)
    z, x, t = jnp.ones((5, 32)), jnp.ones((5, 3)), jnp.float32(0.5)
    wanted = tiny_model().head(x, t, z)
    for model in (mixed, trained):
        assert (
            model.config.dtype == "bfloat16"
            and model.transformer.blocks.self_attention.qkv.dtype == "bfloat16"
        )
        assert incremental.empty_cache(model, 1, 1, 1).keys.dtype == jnp.bfloat16
        np.testing.assert_array_equal(model.head(x, t, z), wanted)
    alike = for_sampling(
        tiny_model(), dataclasses.replace(CONFIG, dtype="bfloat16", head_dtype="bfloat16")
    )
    assert alike.head(x, t, z).dtype == jnp.bfloat16


def test_converting_ahead_changes_nothing():
    """A model trained in bfloat16 converts its kernels at every use; here it is done once."""
    ahead = for_sampling(tiny_model(), dataclasses.replace(CONFIG, dtype="bfloat16"))
    np.testing.assert_array_equal(video(ahead), video(tiny_model(dtype="bfloat16")))


@pytest.mark.parametrize("head_dtype", ["float32", "bfloat16"])
def test_the_video_is_close_to_that_in_float32(head_dtype):
    exact = video()
    half = video(dtype="bfloat16", head_dtype=head_dtype)
    off = np.abs(half - exact)[:, 1:].mean() / np.abs(exact[:, 1:]).mean()
    assert 1e-4 < off < 0.1, f"off by {off:.2%}"
    assert half.dtype == np.float32

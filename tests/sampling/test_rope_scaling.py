"""Positions longer and larger than training, against their definitions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tiny_model import tiny_model
from tests.helpers.tiny_video import generated
from videomar_jax.checks import UserError
from videomar_jax.models.attention import KVCache
from videomar_jax.models.rope import PositionScale, rotary_embedding, rotate
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.rope_scaling import position_scale, shift_first
from videomar_jax.sampling.speed import SpeedOptions

CONFIG = SamplingConfig(
    steps=2, head_steps="2", guidance=2.0, latent_clip=0.0, first_frame_position="absolute"
)
FRAMES = 7
FAST = SpeedOptions(unstack_layers=True)


def make(frames=FRAMES, speed=FAST, **options):
    """A video; fields of the config go to it, everything else to `generate`."""
    fields = {field.name for field in dataclasses.fields(CONFIG)}
    changes = {name: options.pop(name) for name in fields & set(options)}
    config = dataclasses.replace(CONFIG, **changes)
    return generated(config, num_frames=frames, speed=speed, **options)


# ---- the place of a kept first frame


def test_a_first_frame_turned_forward_equals_one_rotated_there():
    config, scale = tiny_model().config, PositionScale(interpolate=(2.0, 1.0, 1.0))
    heads = jax.random.normal(
        jax.random.key(0), (2, 3, 6, 2, 16)
    )  # [B, T, S, n, d] before rotation

    def rotated(frames):
        place = jnp.stack(
            jnp.meshgrid(jnp.asarray(frames), jnp.arange(2), jnp.arange(3), indexing="ij"), -1
        )
        rotary = rotary_embedding(
            place.reshape(3, 6, 3), config.rope_channels, config.rope_base, scale
        )
        return rotate(heads, rotary, config.rope_channels)

    cache = KVCache(rotated([0, 8, 9])[None], heads[None])
    moved = shift_first(cache, jnp.asarray(5), config, scale)
    np.testing.assert_allclose(moved.keys[0], rotated([5, 8, 9]), atol=1e-5)
    np.testing.assert_array_equal(moved.values, cache.values)


def test_shifting_begins_when_the_first_frame_falls_behind_the_window():
    absolute, shifted = (
        make(window=3, first_frame_position=way) for way in ("absolute", "shifted")
    )
    np.testing.assert_allclose(shifted[:, :4], absolute[:, :4], atol=1e-4)
    assert np.abs(shifted[:, 4:] - absolute[:, 4:]).max() > 1e-3


def test_a_model_without_frame_numbers_has_nothing_to_shift():
    model = tiny_model(rope_frame_origin="restart")
    absolute, shifted = (
        make(window=3, first_frame_position=way, model=model) for way in ("absolute", "shifted")
    )
    np.testing.assert_array_equal(shifted, absolute)


# ---- scaled positions


def test_no_scaling_asks_for_nothing():
    assert position_scale(CONFIG, (9, 9, 9), None) is None
    with pytest.raises(UserError, match="need the size the model was trained on"):
        position_scale(dataclasses.replace(CONFIG, spatial_rope_scaling="ntk"), (9, 9, 9), None)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        (dict(spatial_rope_scaling="ntk"), PositionScale(ntk=(1.0, 1.5, 2.0))),
        (dict(spatial_rope_scaling="interpolate"), PositionScale(interpolate=(1.0, 1.5, 2.0))),
        (dict(temporal_rope_scaling="ntk"), PositionScale(ntk=(2.0, 1.0, 1.0))),
        (
            dict(temporal_rope_scaling="interpolate", spatial_rope_scaling="ntk"),
            PositionScale(interpolate=(2.0, 1.0, 1.0), ntk=(1.0, 1.5, 2.0)),
        ),
        (
            dict(temporal_rope_scaling="interpolate", window=5),
            PositionScale(interpolate=(1.2, 1.0, 1.0)),
        ),
    ],
    ids=str,
)
def test_factors_are_how_much_longer_and_larger_than_trained(changes, wanted):
    assert position_scale(dataclasses.replace(CONFIG, **changes), (10, 12, 16), (5, 8, 8)) == wanted


def test_smaller_than_trained_is_not_stretched():
    config = dataclasses.replace(
        CONFIG, spatial_rope_scaling="interpolate", temporal_rope_scaling="ntk"
    )
    assert position_scale(config, (3, 4, 8), (5, 8, 8)) == PositionScale()


def test_the_config_reaches_the_model():
    """`trained` with the config is the explicit scale."""
    scaled = make(frames=3, speed=None, spatial_rope_scaling="interpolate", trained=(3, 1, 2))
    explicit = make(frames=3, speed=None, scale=PositionScale(interpolate=(1.0, 2.0, 1.5)))
    np.testing.assert_array_equal(scaled, explicit)
    assert np.abs(scaled - make(frames=3, speed=None)).max() > 1e-3

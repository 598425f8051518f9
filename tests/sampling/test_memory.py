"""Predicted against what arrays and compiled programs really take, and the refusal before anything
is begun."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from tests.helpers.tiny_model import GRID, annotations_off, tiny_model, tiny_text
from videomar_jax.models.config import PRESETS
from videomar_jax.sampling import decoder, memory
from videomar_jax.sampling.decoder import generate
from videomar_jax.sampling.memory import cache_bytes, check_memory, free_bytes, request_bytes
from videomar_jax.sampling.schedules import SamplingConfig

CONFIG = SamplingConfig(steps=3, head_steps="4", guidance=2.0)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cache_is_told_to_the_byte(guided, dtype):
    model = tiny_model(dtype=dtype)
    cache = jax.eval_shape(lambda: model.empty_cache(3 * (1 + guided), 5, GRID[0] * GRID[1]))
    real = sum(part.size * part.dtype.itemsize for part in cache)
    assert cache_bytes(model.config, batch=3, frames=5, grid=GRID, guided=guided) == real


def test_the_cache_of_the_large_model_at_full_size():
    """36 layers x 2 rows x 6 frames of 1440 tokens x 1536 values, keys and values, two bytes
    each."""
    config = dataclasses.replace(PRESETS["videomar_1p4b"], dtype="bfloat16")
    assert (
        cache_bytes(config, batch=1, frames=6, grid=(30, 48), guided=True)
        == 36 * 2 * 6 * 1440 * 1536 * 2 * 2
    )


@pytest.mark.parametrize("head", ["ddpm", "flow"])
def test_the_prediction_covers_the_compiled_program(head, monkeypatch):
    """Above what XLA plans for a frame, and not by an order of magnitude, for a model wide enough
    that small change does not count."""
    model = tiny_model(head=head, width=128, num_heads=4, head_width=128, depth=3)
    given = jax.random.normal(jax.random.key(0), (2, 1, 16, 16, 3))
    config = dataclasses.replace(CONFIG, steps=8)
    plans = []

    def measured(*args):
        with annotations_off():  # JAX's own stand-ins for arguments
            plan = original.lower(*args).compile().memory_analysis()
        plans.append(plan.temp_size_in_bytes)
        return original(*args)

    original = decoder.one_frame
    monkeypatch.setattr(decoder, "one_frame", measured)
    generate(
        model,
        given,
        *tiny_text(),
        num_frames=3,
        config=config,
        keys=jax.random.split(jax.random.key(0), 2),
    )
    parts = request_bytes(model.config, config, batch=2, frames=3, grid=(16, 16))
    told = (
        sum(parts.values()) - parts["cache"] - parts["text"] - parts["video"]
    )  # arguments of the program
    assert 0.8 * max(plans) < told < 6 * max(plans), f"{told} told, {max(plans)} planned; {parts}"


def test_what_costs_more_is_told_to_cost_more():
    base = dict(batch=1, frames=7, grid=(30, 48))
    config = PRESETS["videomar_1p4b"]

    def total(sampling=CONFIG, **changes):
        return sum(request_bytes(config, sampling, **base | changes).values())

    assert (
        total(batch=2) > 1.5 * total()
        and total(frames=20) > 1.5 * total()
        and total(grid=(40, 64)) > 1.5 * total()
    )
    assert total(dataclasses.replace(CONFIG, guidance=1.0)) < 0.7 * total()
    window = dataclasses.replace(CONFIG, window=4)
    video = 2 * 4 * 1440 * 16  # only the frames themselves grow
    assert total(window, frames=100) - total(window, frames=50) == 50 * video


def test_too_long_a_video_is_refused_and_told_what_would_fit():
    config = PRESETS["videomar_1p4b"]
    free = 20 * 2**30
    with pytest.raises(
        ValueError, match=r"1 x 500 latent frames of 30x48 tokens need about .* GiB"
    ) as told:
        check_memory(config, CONFIG, batch=1, frames=500, grid=(30, 48), free=free)
    fit = int(str(told.value).split(": ")[1].split(" frames would fit")[0])
    check_memory(config, CONFIG, batch=1, frames=fit, grid=(30, 48), free=free)
    with pytest.raises(ValueError, match=f"{fit} frames would fit"):
        check_memory(config, CONFIG, batch=1, frames=fit + 1, grid=(30, 48), free=free)
    check_memory(
        config, dataclasses.replace(CONFIG, window=4), batch=1, frames=500, grid=(30, 48), free=free
    )
    check_memory(config, CONFIG, batch=1, frames=500, grid=(30, 48), free=None)
    check_memory(config, CONFIG, batch=1, frames=500, grid=(30, 48), free=free, ways=128)
    with pytest.raises(ValueError, match="not even two frames fit"):
        check_memory(config, CONFIG, batch=64, frames=500, grid=(30, 48), free=free)


def test_a_request_is_checked_before_it_is_begun(monkeypatch):
    monkeypatch.setattr(decoder, "free_bytes", lambda: 1000)
    monkeypatch.setattr(decoder, "start_decoding", lambda *_: pytest.fail("begun"))
    with pytest.raises(ValueError, match="not even two frames fit"):
        generate(
            tiny_model(),
            jnp.zeros((1, 1, *GRID, 3)),
            *tiny_text(1),
            num_frames=4,
            config=CONFIG,
            keys=jax.random.split(jax.random.key(0), 1),
        )


def device(platform, stats):
    """A device that tells what it is told to."""
    return mock.Mock(spec=jax.Device, platform=platform, memory_stats=lambda: stats)


def test_free_memory_of_devices():
    assert free_bytes(device("gpu", {"bytes_limit": 100, "bytes_in_use": 30})) == 70
    assert free_bytes(device("tpu", None)) is None
    assert free_bytes(device("cpu", None)) > 2**20


def test_free_memory_of_a_machine_that_does_not_tell(monkeypatch):
    def closed(*_, **__):
        raise OSError

    monkeypatch.setattr("builtins.open", closed)
    monkeypatch.setattr(
        memory.os, "sysconf", lambda name: {"SC_AVPHYS_PAGES": 10, "SC_PAGE_SIZE": 4096}[name]
    )
    assert free_bytes(device("cpu", None)) == 40960
    monkeypatch.setattr(memory.os, "sysconf", closed)
    assert free_bytes(device("cpu", None)) is None

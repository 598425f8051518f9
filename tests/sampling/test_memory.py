"""Predicted memory against what arrays and compiled programs take; the refusal before any work."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from tests.helpers.tiny_model import GRID, annotations_off, tiny_model, tiny_text
from videomar_jax.checks import UserError
from videomar_jax.models import incremental
from videomar_jax.models.config import PRESETS
from videomar_jax.sampling import generate as generate_module
from videomar_jax.sampling import memory
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.generate import generate
from videomar_jax.sampling.memory import (
    cache_bytes,
    check_memory,
    container_bytes,
    free_bytes,
    request_bytes,
)

CONFIG = SamplingConfig(steps=3, head_steps="4", guidance=2.0)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_size_of_the_cache_is_exact(guided, dtype):
    model = tiny_model(dtype=dtype)
    cache = jax.eval_shape(
        lambda: incremental.empty_cache(model, 3 * (1 + guided), 5, GRID[0] * GRID[1])
    )
    real = sum(part.size * part.dtype.itemsize for part in cache)
    assert cache_bytes(model.config, batch=3, frames=5, grid=GRID, guided=guided) == real


def test_the_cache_of_the_large_model_at_full_size():
    """36 layers, 2 rows, 6 frames, 1440 tokens, 1536 values; keys and values; 2 bytes each."""
    config = dataclasses.replace(PRESETS["videomar_1p4b"], dtype="bfloat16")
    size = cache_bytes(config, batch=1, frames=6, grid=(30, 48), guided=True)
    assert size == 36 * 2 * 6 * 1440 * 1536 * 2 * 2


@pytest.mark.parametrize("head", ["ddpm", "flow"])
def test_the_prediction_covers_the_compiled_program(head, monkeypatch):
    """Above what XLA plans for a frame, and not by an order of magnitude, for a wide model."""
    model = tiny_model(head=head, width=128, num_heads=4, head_width=128, depth=3)
    given = jax.random.normal(jax.random.key(0), (2, 1, 16, 16, 3))
    config = dataclasses.replace(CONFIG, steps=8)
    plans = []

    def measured(*args):
        with annotations_off():  # JAX's own stand-ins for arguments
            plan = original.lower(*args).compile().memory_analysis()
        plans.append(plan.temp_size_in_bytes)
        return original(*args)

    original = generate_module.compiled_frame
    monkeypatch.setattr(generate_module, "compiled_frame", measured)
    generate(
        model,
        given,
        *tiny_text(),
        num_frames=3,
        config=config,
        keys=jax.random.split(jax.random.key(0), 2),
    )
    parts = request_bytes(model.config, config, batch=2, frames=3, grid=(16, 16))
    # These are arguments of the program, not taken by it.
    arguments = parts["cache"] + parts["text"] + parts["video"]
    predicted = sum(parts.values()) - arguments
    message = f"{predicted} predicted, {max(plans)} planned by XLA; {parts}"
    assert 0.8 * max(plans) < predicted < 6 * max(plans), message


def test_more_work_is_predicted_to_need_more():
    base = dict(batch=1, frames=7, grid=(30, 48))
    config = PRESETS["videomar_1p4b"]

    def total(sampling=CONFIG, **changes):
        return sum(request_bytes(config, sampling, **base | changes).values())

    for more in (dict(batch=2), dict(frames=20), dict(grid=(40, 64))):
        assert total(**more) > 1.5 * total(), more
    assert total(dataclasses.replace(CONFIG, guidance=1.0)) < 0.7 * total()
    window = dataclasses.replace(CONFIG, window=4)
    # With a window only the frames themselves grow.
    video = 2 * 4 * 1440 * 16
    assert total(window, frames=100) - total(window, frames=50) == 50 * video


def test_too_long_a_video_is_refused_with_the_length_that_would_fit():
    config = PRESETS["videomar_1p4b"]
    free = 20 * 2**30
    with pytest.raises(
        UserError, match=r"1 x 500 latent frames of 30x48 tokens need about .* GiB"
    ) as error:
        check_memory(config, CONFIG, batch=1, frames=500, grid=(30, 48), free=free)
    fit = int(str(error.value).split(": ")[1].split(" frames would fit")[0])
    check_memory(config, CONFIG, batch=1, frames=fit, grid=(30, 48), free=free)
    with pytest.raises(UserError, match=f"{fit} frames would fit"):
        check_memory(config, CONFIG, batch=1, frames=fit + 1, grid=(30, 48), free=free)
    check_memory(
        config, dataclasses.replace(CONFIG, window=4), batch=1, frames=500, grid=(30, 48), free=free
    )
    check_memory(config, CONFIG, batch=1, frames=500, grid=(30, 48), free=None)
    check_memory(config, CONFIG, batch=1, frames=500, grid=(30, 48), free=free, shards=128)
    with pytest.raises(UserError, match="not even two frames fit"):
        check_memory(config, CONFIG, batch=64, frames=500, grid=(30, 48), free=free)


def test_memory_is_checked_before_anything_is_computed(monkeypatch):
    monkeypatch.setattr(generate_module, "free_bytes", lambda device: 1000)
    started = lambda *_: pytest.fail("started")  # noqa: E731
    monkeypatch.setattr(generate_module, "start_decoding", started)
    with pytest.raises(UserError, match="not even two frames fit"):
        generate(
            tiny_model(),
            jnp.zeros((1, 1, *GRID, 3)),
            *tiny_text(1),
            num_frames=4,
            config=CONFIG,
            keys=jax.random.split(jax.random.key(0), 1),
        )


def device(platform, stats):
    """A stand-in for a device with these memory statistics."""
    return mock.Mock(spec=jax.Device, platform=platform, memory_stats=lambda: stats)


def test_free_memory_of_devices():
    assert free_bytes(device("gpu", {"bytes_limit": 100, "bytes_in_use": 30})) == 70
    assert free_bytes(device("tpu", None)) is None
    assert free_bytes(device("cpu", None)) > 2**20


def test_free_memory_of_a_machine_without_proc(monkeypatch):
    def closed(*_, **__):
        raise OSError

    pages = {"SC_AVPHYS_PAGES": 10, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(memory.Path, "read_text", closed)
    monkeypatch.setattr(memory.os, "sysconf", pages.__getitem__)
    assert free_bytes(device("cpu", None)) == 40960
    monkeypatch.setattr(memory.os, "sysconf", closed)
    assert free_bytes(device("cpu", None)) is None


def test_a_container_has_no_more_than_its_limit(monkeypatch):
    monkeypatch.setattr(memory, "container_bytes", lambda: 123)
    assert free_bytes(device("cpu", None)) == 123
    monkeypatch.setattr(memory, "container_bytes", lambda: 2**80)
    assert free_bytes(device("cpu", None)) < 2**80


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


GROUP = "sys/fs/cgroup"
V2 = {
    "proc/self/cgroup": "0::/jobs/mine\n",
    f"{GROUP}/jobs/mine/memory.max": "max\n",
    f"{GROUP}/jobs/mine/memory.current": "5\n",
    f"{GROUP}/jobs/mine/memory.stat": "anon 5\ninactive_file 0\n",
    f"{GROUP}/jobs/memory.max": "1000\n",
    f"{GROUP}/jobs/memory.current": "700\n",
    f"{GROUP}/jobs/memory.stat": "anon 400\ninactive_file 200\n",
}
V1 = {
    "proc/self/cgroup": "3:cpuset:/\n4:cpu,memory:/pod/on/the/machine\n0::/\n",
    f"{GROUP}/memory/memory.limit_in_bytes": "4096\n",
    f"{GROUP}/memory/memory.usage_in_bytes": "3000\n",
    f"{GROUP}/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 1000\n",
}


@pytest.mark.parametrize(
    ("files", "free"),
    [(V2, 500), (V1, 2096), ({"proc/self/cgroup": "0::/\n"}, None), ({}, None)],
    ids=["v2, limit of the parent", "v1 in a container", "no limit", "no groups"],
)
def test_the_limit_of_a_container_is_read_from_its_control_groups(tmp_path, files, free):
    """What was read from files and can be dropped is free."""
    write(tmp_path, files)
    assert container_bytes(tmp_path) == free


def test_a_process_above_its_limit_has_nothing_left(tmp_path):
    write(tmp_path, V2 | {f"{GROUP}/jobs/memory.current": "9000\n"})
    assert container_bytes(tmp_path) == 0

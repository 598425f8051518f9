"""A checkpoint written array by array is a checkpoint like any other, and needs memory for a few
arrays."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomar_jax.checkpoints.manager import Checkpoints
from videomar_jax.checkpoints.streamed import StreamedCheckpoint, stored_types

TYPES = {
    "mask": np.float32,
    "blocks/up/kernel": jnp.bfloat16,
    "blocks/up/bias": np.float16,
    "head/kernel": np.float32,
}


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        path: rng.standard_normal((3, 5), np.float32).astype(dtype) for path, dtype in TYPES.items()
    }


def tree(leaves: dict) -> dict:
    up = {"kernel": leaves["blocks/up/kernel"], "bias": leaves["blocks/up/bias"]}
    return {"mask": leaves["mask"], "blocks": {"up": up}, "head": {"kernel": leaves["head/kernel"]}}


def write(directory, together: int, step: int = 0) -> None:
    checkpoint = StreamedCheckpoint(directory, "ema", step=step, bytes_at_once=together)
    for path, array in arrays().items():
        checkpoint.put(path, array)
    checkpoint.commit({"step": step, "source": "here"})


@pytest.mark.parametrize("together", [1, 10**6], ids=["one by one", "all at once"])
def test_what_was_put_in_comes_back_bit_by_bit(tmp_path, together):
    write(tmp_path / "checkpoints", together, step=7)
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoints"], "pieces are left over"
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.all_steps() == [7]
        state, progress = checkpoints.restore(7, {"ema": tree(arrays(1))})
    assert progress == {"step": 7, "source": "here"}
    for ours, given in zip(
        jax.tree.leaves(state["ema"]), jax.tree.leaves(tree(arrays())), strict=True
    ):
        assert ours.dtype == given.dtype and ours.tobytes() == given.tobytes()


def test_a_run_goes_on_from_it(tmp_path):
    write(tmp_path, 1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"ema": tree(arrays(1))}, {"step": 1})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.all_steps() == [0, 1]
        state, _ = checkpoints.restore(1, {"ema": tree(arrays())})
    np.testing.assert_array_equal(state["ema"]["mask"], arrays(1)["mask"])


def test_types_as_they_are_stored(tmp_path):
    write(tmp_path / "streamed", 1)
    with Checkpoints(tmp_path / "whole") as checkpoints:
        checkpoints.save(0, {"ema": tree(arrays())}, {"step": 0})
    for name in ("streamed", "whole"):
        assert stored_types(tmp_path / name, 0, "ema") == {
            path: np.dtype(dtype) for path, dtype in TYPES.items()
        }
    assert (
        stored_types(tmp_path / "whole", 0, "params")
        == stored_types(tmp_path / "whole", 1, "ema")
        == {}
    )
    (tmp_path / "whole" / "0" / "ema" / "_METADATA").write_text("{")
    assert stored_types(tmp_path / "whole", 0, "ema") == {}


def test_it_needs_memory_for_a_few_arrays_only(tmp_path):
    size, count = 2**20, 16
    tracemalloc.start()
    checkpoint = StreamedCheckpoint(tmp_path, "ema", bytes_at_once=size)
    for number in range(count):
        checkpoint.put(f"layer_{number}", np.full(size // 4, number, np.float32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    checkpoint.commit({"step": 0})
    assert peak < 6 * size, f"{peak / size:.1f} arrays of {count} were in memory at once"

"""What the processes of a run do together; with one process each function costs nothing."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from videomar_jax.checks import UserError
from videomar_jax.parallel.sharding import replicated


def process_share(mesh: Mesh) -> tuple[int, int]:
    """(i, n): this process works on the i-th of n equal blocks of each batch.

    Processes whose devices differ only along `tensor` or `context` work on the same block.

    Raises:
        UserError: the blocks of a process are not contiguous, or processes have different numbers
            of them.
    """
    blocks = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
    own = []
    for number, devices in enumerate(blocks):
        if any(device.process_index == jax.process_index() for device in devices):
            own.append(number)
    count = len(own)
    contiguous = count > 0 and own == list(range(own[0], own[0] + count))
    if not contiguous or len(blocks) % count or own[0] % count:
        raise UserError(
            f"This process's devices belong to the batch blocks {own} of {len(blocks)} on the mesh "
            f"{dict(mesh.shape)}: choose mesh.tensor and mesh.context so that their product "
            f"divides the number of devices of a process, or is a multiple of it."
        )
    return own[0] // count, len(blocks) // count


def to_host(tree: Any) -> Any:
    """The tree as arrays that this process can compute with on its own.

    All processes must call it; with one process the tree is returned unchanged.
    """
    if jax.process_count() == 1:
        return tree

    def whole(leaf: jax.Array) -> np.ndarray:
        copy = jax.jit(lambda x: x, out_shardings=replicated(leaf.sharding.mesh))
        return np.asarray(copy(leaf).addressable_data(0))

    return jax.tree.map(whole, tree)


def from_first_process(make: Callable[[], Any]) -> Any:
    """What process 0 makes, a tree of NumPy arrays, on all of them; all must call it."""
    made = make()
    if jax.process_count() > 1:
        made = multihost_utils.broadcast_one_to_all(made)
    return jax.tree.map(np.asarray, made)


def barrier(name: str) -> None:
    """Barrier across processes: waits until all of them have called it with the same name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)

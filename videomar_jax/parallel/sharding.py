"""Sharding rules: which axis of which array is split along which axis of the mesh (`mesh`).

The model knows nothing of this. XLA partitions its computation from where the arguments lie, so
any mesh gives the same numbers up to the order of sums.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from videomar_jax.models.partitioning import HeadLayout, Rule
from videomar_jax.parallel.config import MeshConfig

CLIPS = ("data", "fsdp")
"""The mesh axes that the clips of a batch are spread over."""
COLUMNS = ("qkv", "q", "kv", "up", "linear1", "modulation")
"""Linear layers whose outputs are split along `tensor`."""
ROWS = ("out", "down", "linear2")
"""Linear layers whose inputs are split along `tensor`."""


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def spec_for(
    path: tuple[str, ...], shape: tuple[int, ...], sizes: Mapping[str, int], min_size: int
) -> PartitionSpec:
    """How a parameter of this name and shape is split.

    `tensor` follows the tables above. `fsdp` takes the longest axis that is left and that it
    divides, the axis of stacked layers last. What no axis divides is copied.

    Args:
        sizes: devices by mesh axis.
        min_size: parameters with fewer values (in one layer) are not split along `fsdp`.
    """
    axes: list[str | None] = [None] * len(shape)
    layer = path[-2] if len(path) > 1 else ""
    if path[-1] == "kernel" and layer in COLUMNS + ROWS:
        split = len(shape) - 1 if layer in COLUMNS else len(shape) - 2
        if shape[split] % sizes["tensor"] == 0 and sizes["tensor"] > 1:
            axes[split] = "tensor"
    stacked = 0 if "blocks" in path else None
    values = math.prod(shape if stacked is None else shape[1:])
    if sizes["fsdp"] > 1 and values >= max(min_size, 1):
        free = [i for i, size in enumerate(shape) if axes[i] is None and size % sizes["fsdp"] == 0]
        if free:
            axes[max(free, key=lambda i: (i != stacked, shape[i]))] = "fsdp"
    return PartitionSpec(*axes)


def param_shardings(shapes: Any, mesh: Mesh | AbstractMesh, config: MeshConfig) -> Any:
    """The sharding of every parameter in a tree of arrays or shapes."""
    sizes = dict(mesh.shape)

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, spec_for(_names(path), leaf.shape, sizes, config.min_size))

    return jax.tree_util.tree_map_with_path(sharding, shapes)


def state_shardings(state: Any, mesh: Mesh | AbstractMesh, config: MeshConfig) -> Any:
    """The sharding of every array of an abstract `TrainState`.

    Averages and moments are split like their parameters: an array of the optimizer belongs to the
    parameter whose name its own name ends with, if it has that parameter's shape.
    """
    own = param_shardings(state.params, mesh, config)
    shapes = {
        _names(path): leaf.shape
        for path, leaf in jax.tree_util.tree_flatten_with_path(state.params)[0]
    }
    by_name = {
        _names(path): sharding for path, sharding in jax.tree_util.tree_flatten_with_path(own)[0]
    }

    def moment(path: tuple, leaf: Any) -> NamedSharding:
        name = _names(path)
        for start in range(len(name)):
            if shapes.get(name[start:]) == leaf.shape:
                return by_name[name[start:]]
        return replicated(mesh)

    moments = jax.tree_util.tree_map_with_path(moment, state.opt_state)
    return type(state)(replicated(mesh), own, own, moments)


def layout_rule(mesh: Mesh, config: MeshConfig) -> Rule:
    """What a model that is traced on this mesh constrains (`models.partitioning`).

    Activations follow the batch; attention is spread over clips, heads and queries. What is split
    along `fsdp` is gathered where it is used: the parameters of a layer inside the loop over
    layers, one layer at a time; the few parameters outside of that loop once ("outside", called by
    the training step).
    """
    sizes = {axis: size if axis != "fsdp" else 1 for axis, size in mesh.shape.items()}
    stream = NamedSharding(mesh, PartitionSpec(CLIPS, None, "context"))

    def gathered_along_fsdp(path: tuple, leaf: Any) -> Any:
        name = tuple(part for part in _names(path) if part != "value")
        if name[:2] == ("transformer", "blocks"):
            return leaf
        spec = spec_for(name, leaf.shape, sizes, config.min_size)
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

    def constrain(name: str, tree: Any) -> Any:
        if name == "stream":
            return jax.lax.with_sharding_constraint(tree, stream)
        return jax.tree_util.tree_map_with_path(gathered_along_fsdp, tree)

    return Rule(constrain=constrain, heads=head_layout(mesh))


def head_layout(mesh: Mesh) -> HeadLayout | None:
    """How attention is spread over the mesh; None on one device."""
    if mesh.size == 1:
        return None
    return HeadLayout(mesh=mesh, samples=CLIPS, tokens=("context",), heads=("tensor",))


def batch_shardings(batch: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Clips over `data` and `fsdp`; the rows of latents [B, T, h, w, C] over `context`."""

    def sharding(leaf: Any) -> NamedSharding:
        rows = (None, "context") if len(leaf.shape) == 5 else ()
        return NamedSharding(mesh, PartitionSpec(CLIPS, *rows))

    return jax.tree.map(sharding, batch)


def place(tree: Any, shardings: Any, *, first_row: int = 0, rows: int | None = None) -> Any:
    """Host arrays as global arrays; a process needs no more than what its devices take.

    Args:
        first_row, rows: the array holds the rows from `first_row` on of a global array with `rows`
            rows; None: it holds all of them.
    """

    def global_array(array: Any, sharding: NamedSharding) -> jax.Array:
        array = np.asarray(array)
        shape = array.shape if rows is None else (rows, *array.shape[1:])

        def part(index: tuple[slice, ...]) -> Any:
            if rows is None:
                return array[index]
            start, stop, _ = index[0].indices(rows)
            return array[(slice(start - first_row, stop - first_row), *index[1:])]

        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(global_array, tree, shardings)


def bytes_per_device(shapes: Any, shardings: Any) -> int:
    """The memory that one device needs for a tree of arrays or shapes."""

    def size(leaf: Any, sharding: NamedSharding) -> int:
        return math.prod(sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize

    return sum(jax.tree.leaves(jax.tree.map(size, shapes, shardings)))


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)

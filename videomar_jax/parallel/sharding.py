"""How a run is spread over devices: one mesh, and rules that say which axis of which array goes
along it.

The mesh has four axes; an axis of size 1 costs nothing:

    data      clips of the batch; parameters are copied
    fsdp      clips of the batch too, and each large parameter (with its average and moments) is cut
    along one axis,
              gathered layer by layer when it is used (Zhao et al. 2023, "PyTorch FSDP")
    tensor    channels of a layer: the products in front of a nonlinearity are cut by column, those
        behind it by row
              (Shoeybi et al. 2019, "Megatron-LM")
    context   tokens of a frame: rows of the latents; keys and values are gathered for attention

The model knows nothing of this. Its computation is partitioned by XLA from where the arguments lie,
so that any mesh gives the same numbers up to the order of sums.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from videomar_jax.models.partitioning import Rule

AXES = ("data", "fsdp", "tensor", "context")
CLIPS = ("data", "fsdp")
"""The mesh axes that clips of a batch are spread over."""
COLUMNS = ("qkv", "q", "kv", "up", "linear1", "modulation")
"""Linear layers whose outputs are cut along `tensor`."""
ROWS = ("out", "down", "linear2")
"""Linear layers whose inputs are cut along `tensor`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis; at most one may be -1, which takes the devices that are left.

    Raises:
        ValueError: a size that cannot be, by name.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    min_size: int = 2**14  # parameters with fewer values (in a layer) are copied to every device

    def __post_init__(self):
        for axis in AXES:
            if getattr(self, axis) < 1 and getattr(self, axis) != -1:
                raise ValueError(
                    f"mesh.{axis} must be at least 1, or -1 for the rest, not {getattr(self, axis)}."
                )
        if sum(getattr(self, axis) == -1 for axis in AXES) > 1:
            raise ValueError("At most one axis of the mesh may be -1.")
        if self.min_size < 0:
            raise ValueError(f"mesh.min_size must not be negative, but is {self.min_size}.")

    def sizes(self, devices: int) -> tuple[int, ...]:
        """Devices along each of `AXES`, at most `devices` in all; ValueError where they do not
        fit."""
        sizes = [getattr(self, axis) for axis in AXES]
        fixed = math.prod(size for size in sizes if size != -1)
        if fixed > devices or (-1 in sizes and devices % fixed):
            wanted = " x ".join(f"{axis} {getattr(self, axis)}" for axis in AXES)
            raise ValueError(f"A mesh of {wanted} does not fit {devices} devices; change the mesh.")
        return tuple(devices // fixed if size == -1 else size for size in sizes)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over the first of these devices; None takes those of all processes, which all must
    be used.

    Raises:
        ValueError: the sizes do not fit, or leave a process without work.
    """
    devices = jax.devices() if devices is None else devices
    sizes = config.sizes(len(devices))
    count = math.prod(sizes)
    if count < len(devices) and jax.process_count() > 1:
        raise ValueError(
            f"The mesh uses {count} of {len(devices)} devices; with several processes it must use all."
        )
    return jax.make_mesh(
        sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:count]
    )


def abstract_mesh(config: MeshConfig, devices: int) -> AbstractMesh:
    """The same for devices that are not there."""
    return AbstractMesh(config.sizes(devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def spec_for(
    path: tuple[str, ...], shape: tuple[int, ...], sizes: Mapping[str, int], min_size: int
) -> PartitionSpec:
    """Where a parameter of this name and shape is cut. `sizes` maps mesh axes to their sizes.

    `tensor` by the tables above; `fsdp` along the longest axis that is left and divides, the axis
    of stacked layers last. What no axis divides stays whole.
    """
    axes: list[str | None] = [None] * len(shape)
    layer = path[-2] if len(path) > 1 else ""
    if path[-1] == "kernel" and layer in COLUMNS + ROWS:
        cut = len(shape) - 1 if layer in COLUMNS else len(shape) - 2
        if shape[cut] % sizes["tensor"] == 0 and sizes["tensor"] > 1:
            axes[cut] = "tensor"
    stacked = 0 if "blocks" in path else None
    values = math.prod(shape if stacked is None else shape[1:])
    if sizes["fsdp"] > 1 and values >= max(min_size, 1):
        free = [i for i, size in enumerate(shape) if axes[i] is None and size % sizes["fsdp"] == 0]
        if free:
            axes[max(free, key=lambda i: (i != stacked, shape[i]))] = "fsdp"
    return PartitionSpec(*axes)


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def param_shardings(shapes: Any, mesh: Mesh | AbstractMesh, config: MeshConfig) -> Any:
    """The sharding of every parameter of a tree of arrays or shapes."""
    sizes = dict(mesh.shape)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh, spec_for(_names(path), leaf.shape, sizes, config.min_size)
        ),
        shapes,
    )


def state_shardings(state: Any, mesh: Mesh | AbstractMesh, config: MeshConfig) -> Any:
    """The sharding of every array of an abstract `TrainState`: averages and moments lie like their
    parameters.

    An array of the optimizer belongs to the parameter whose name its own name ends with, if it has
    its shape.
    """
    own = param_shardings(state.params, mesh, config)
    flat = jax.tree_util.tree_flatten_with_path(own)[0]
    shapes = {
        _names(path): leaf.shape
        for path, leaf in jax.tree_util.tree_flatten_with_path(state.params)[0]
    }
    by_name = {_names(path): sharding for path, sharding in flat}

    def moment(path, leaf):
        name = _names(path)
        for start in range(len(name)):
            if shapes.get(name[start:]) == leaf.shape:
                return by_name[name[start:]]
        return replicated(mesh)

    moments = jax.tree_util.tree_map_with_path(moment, state.opt_state)
    return type(state)(replicated(mesh), own, own, moments)


def layout_rule(mesh: Mesh, config: MeshConfig) -> Rule:
    """What a model traced on this mesh lays out (`models.layout`).

    Activations follow the batch. What is cut along `fsdp` is gathered where it is used: a layer's
        parameters inside the
    loop over layers, one layer at a time; the few parameters outside of it ("outside", called by
    the training step).
    """
    sizes = {axis: size if axis != "fsdp" else 1 for axis, size in mesh.shape.items()}
    stream = NamedSharding(mesh, PartitionSpec(CLIPS, None, "context"))

    def gathered_along_fsdp(path, leaf):
        name = tuple(part for part in _names(path) if part != "value")
        if name[:2] == ("transformer", "blocks"):
            return leaf
        spec = spec_for(name, leaf.shape, sizes, config.min_size)
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

    def rule(name: str, tree: Any) -> Any:
        if name == "stream":
            return jax.lax.with_sharding_constraint(tree, stream)
        return jax.tree_util.tree_map_with_path(gathered_along_fsdp, tree)

    return rule


def batch_shardings(batch: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Clips over `data` and `fsdp`; the rows of latents [B, T, h, w, C] over `context`."""

    def one(leaf):
        rows = (None, "context") if len(leaf.shape) == 5 else ()
        return NamedSharding(mesh, PartitionSpec(CLIPS, *rows))

    return jax.tree.map(one, batch)


def process_share(mesh: Mesh) -> tuple[int, int]:
    """(i, n): this process works on the i-th of n equal blocks of each batch.

    Processes whose devices differ only along `tensor` or `context` work on the same block.

    Raises:
        ValueError: the blocks of a process are not neighbours, or processes have different numbers
            of them.
    """
    rows = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
    mine = [
        i
        for i, row in enumerate(rows)
        if any(device.process_index == jax.process_index() for device in row)
    ]
    count = len(mine)
    if (
        not count
        or mine != list(range(mine[0], mine[0] + count))
        or len(rows) % count
        or mine[0] % count
    ):
        raise ValueError(
            f"This process's devices lie at {mine} of the {len(rows)} batch blocks of the mesh {dict(mesh.shape)}: "
            f"choose mesh.tensor and mesh.context so that their product and the devices of a process divide."
        )
    return mine[0] // count, len(rows) // count


def place(tree: Any, shardings: Any, *, first_row: int = 0, rows: int | None = None) -> Any:
    """Host arrays as global arrays; no process needs more than what its devices take.

    first_row, rows: the array holds the rows from `first_row` on of a global one with `rows` rows;
        None: all of it.
    """

    def one(array: Any, sharding: NamedSharding) -> jax.Array:
        array = np.asarray(array)
        shape = array.shape if rows is None else (rows, *array.shape[1:])

        def part(index: tuple[slice, ...]) -> Any:
            if rows is None:
                return array[index]
            start, stop, _ = index[0].indices(rows)
            return array[(slice(start - first_row, stop - first_row), *index[1:])]

        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(one, tree, shardings)


def bytes_per_device(shapes: Any, shardings: Any) -> int:
    """What one device holds of a tree of arrays or shapes."""
    sizes = jax.tree.map(
        lambda leaf, s: math.prod(s.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize,
        shapes,
        shardings,
    )
    return sum(jax.tree.leaves(sizes))


def to_host(tree: Any) -> Any:
    """The tree as arrays that this process alone can compute with; all processes must call it."""
    if jax.process_count() == 1:
        return tree

    def whole(leaf: jax.Array) -> np.ndarray:
        copy = jax.jit(lambda x: x, out_shardings=replicated(leaf.sharding.mesh))
        return np.asarray(copy(leaf).addressable_data(0))

    return jax.tree.map(whole, tree)


def barrier(what: str) -> None:
    """Returns when all processes of the run have come this far."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)

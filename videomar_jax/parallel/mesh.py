"""The one mesh of a run. It has four axes; an axis of size 1 costs nothing:

data      clips of the batch; parameters are copied
fsdp      clips of the batch too, and each large parameter (with its average and moments) is
          split along one axis and gathered layer by layer where it is used
          (Zhao et al. 2023, "PyTorch FSDP")
tensor    channels of a layer: the products in front of a nonlinearity are split by column,
          those behind it by row (Shoeybi et al. 2019, "Megatron-LM")
context   tokens of a frame, by rows of the latents; keys and values are gathered for attention,
          once a layer (`models.frame_attention`)
"""

import math
from collections.abc import Sequence

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from videomar_jax.checks import UserError
from videomar_jax.parallel.config import AXES, MeshConfig

# XLA chooses the layout of everything that has no explicit sharding.
_AXIS_TYPES = (AxisType.Auto,) * len(AXES)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over the first of `devices`.

    Args:
        devices: None takes those of all processes. With several processes all must be used.

    Raises:
        UserError: the sizes do not fit the devices, or leave a process without work.
    """
    devices = jax.devices() if devices is None else devices
    sizes = config.sizes(len(devices))
    count = math.prod(sizes)
    if count < len(devices) and jax.process_count() > 1:
        raise UserError(
            f"The mesh uses {count} of {len(devices)} devices; with several processes it must use "
            f"all of them."
        )
    return jax.make_mesh(sizes, AXES, axis_types=_AXIS_TYPES, devices=devices[:count])


def abstract_mesh(config: MeshConfig, devices: int) -> AbstractMesh:
    """The mesh over a number of devices that need not exist, for planning."""
    return AbstractMesh(config.sizes(devices), AXES, axis_types=_AXIS_TYPES)


def describe_mesh(mesh: Mesh) -> str:
    """The mesh in words, such as "8 devices (data 4 x tensor 2)"."""
    axes = [f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1]
    return f"{mesh.size} devices ({' x '.join(axes)})" if axes else "1 device"

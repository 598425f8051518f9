"""The mesh of a run as a setting; no JAX is needed to read or check it."""

import dataclasses
import math

from videomar_jax.checks import Natural, UserError, check_fields

AXES = ("data", "fsdp", "tensor", "context")
"""The axes of every mesh, outermost first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis; at most one axis may be -1, which takes the devices that are left.

    Raises:
        UserError: a size that is not possible, by name.
    """

    data: int = -1
    """Devices that the clips of a batch are spread over; each holds all parameters."""
    fsdp: int = 1
    """Devices that the clips of a batch are spread over, and the parameters too."""
    tensor: int = 1
    """Devices that the channels of each layer are spread over."""
    context: int = 1
    """Devices that the token rows of each frame are spread over."""
    min_size: Natural = 2**14
    """Parameters with fewer values (in one layer) are copied to every device."""

    def __post_init__(self):
        check_fields("mesh", self)
        for axis in AXES:
            size = getattr(self, axis)
            if size < 1 and size != -1:
                raise UserError(f"mesh.{axis} must be at least 1, or -1 for the rest, not {size}.")
        if sum(getattr(self, axis) == -1 for axis in AXES) > 1:
            raise UserError("At most one axis of the mesh may be -1.")

    def sizes(self, devices: int) -> tuple[int, ...]:
        """Devices along each of `AXES`, at most `devices` in all.

        Raises:
            UserError: the mesh does not fit this number of devices.
        """
        sizes = [getattr(self, axis) for axis in AXES]
        fixed = math.prod(size for size in sizes if size != -1)
        if fixed > devices or (-1 in sizes and devices % fixed):
            wanted = " x ".join(f"{axis} {getattr(self, axis)}" for axis in AXES)
            raise UserError(f"A mesh of {wanted} does not fit {devices} devices; change the mesh.")
        return tuple(devices // fixed if size == -1 else size for size in sizes)

"""What one chip can do: the figures that plans, rooflines and model FLOPs utilisation are held to.

FLOPs (dense products of 16-bit numbers) and bandwidth are promises of the makers: of TPUs from
Google's pages (docs.cloud.google.com/tpu/docs: v4, v5e, v5p, v6e), of GPUs from NVIDIA's data
sheets (H100, H200 and A100 in their SXM form, A100 with 80 GB, V100 with 32 GB). Memory is what a
program can have: of TPUs what libtpu 0.0.42 names when it refuses a program that is too large (v4:
what Google's page says), of the H100 what XLA is told of a card, of other GPUs the data sheet's.
"""

import dataclasses

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, as JAX counts them."""

    kind: str
    """A part of the name that JAX gives the device."""
    flops: float
    """Of products, in FLOP/s."""
    memory: float
    """Bytes."""
    bandwidth: float
    """Of the memory, in bytes/s."""


CHIPS = (
    Chip("H100", 989e12, 84.978434048e9, 3350e9),
    Chip("H200", 989e12, 141e9, 4800e9),
    Chip("A100", 312e12, 80e9, 2039e9),
    Chip("L4", 121e12, 24e9, 300e9),
    Chip("V100", 125e12, 32e9, 900e9),
    Chip("TPU v4", 275e12, 32.0 * _GIB, 1228e9),
    Chip("TPU v5 lite", 197e12, 15.75 * _GIB, 819e9),
    Chip("TPU v5e", 197e12, 15.75 * _GIB, 819e9),
    Chip("TPU v5p", 459e12, 95.74 * _GIB, 2765e9),
    Chip("TPU v5", 459e12, 95.74 * _GIB, 2765e9),
    Chip("TPU v6", 918e12, 31.25 * _GIB, 1600e9),
)
"""The first whose name occurs in that of a device counts."""


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a device, None for one that is not listed."""
    return next((chip for chip in CHIPS if chip.kind in device_kind), None)

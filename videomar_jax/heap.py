"""The C heap of a process that computes on the CPU.

XLA's CPU backend takes the temporary memory of a computation from the C heap and gives it back at its end. glibc hands
blocks of that size back to the system, and the next step gets them anew, page by page, each fault cleared by the
kernel: a training step of a small model touches a gigabyte, 300 000 pages. Kept memory is touched once.
"""

import ctypes
import importlib.metadata
import importlib.util

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
"""Names of glibc's <malloc.h>."""


def keep_freed_memory() -> bool:
    """Makes this process keep the memory that it frees, for itself, and returns whether it does.

    To be called before JAX makes its threads, that is before the first array or `jax.devices()`. Nothing happens where
    JAX has an accelerator's plugin, or the C library is not glibc. The process never shrinks from then on.
    """
    if _accelerated():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    # One heap for all threads, no block mapped by itself, nothing given back.
    return all([mallopt(_ARENA_MAX, 1), mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1)])


def _accelerated() -> bool:
    return bool(importlib.metadata.entry_points(group="jax_plugins")) or importlib.util.find_spec("libtpu") is not None

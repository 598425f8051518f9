"""Stopping between two steps when a signal asks for it, on all processes after the same step."""

from contextlib import AbstractContextManager

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videomar_jax.io.signals import Stop, postponed
from videomar_jax.types import Array


def stop_signals(*, at_once: bool) -> AbstractContextManager[Stop]:
    """Turns the first SIGINT or SIGTERM into a request that the loop reads between two steps.

    A second signal ends the run at once.

    Args:
        at_once: nothing is to be saved yet; the loop sets this False after its first step.
    """
    return postponed("saving after this step", at_once=at_once)


_any = jax.jit(jnp.any)


def any_process_stopped(mesh: Mesh, asked: bool) -> Array | bool:
    """Whether any process was asked to stop, as a value that is the same on all processes.

    Every process calls this after every step and reads the result one step late, with the metrics
    of the step: nothing waits, and all processes stop after the same step. A single process gets
    its own answer at once.
    """
    if jax.process_count() == 1:
        return asked
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def own_share(index):
        return np.full(1, asked)

    return _any(jax.make_array_from_callback((mesh.size,), sharding, own_share))

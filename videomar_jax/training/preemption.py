"""Stopping between two steps when a signal asks for it, on all processes after the same step."""

import dataclasses
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videomar_jax.io.log import log
from videomar_jax.types import Array


@dataclasses.dataclass
class Stop:
    """Whether this process was asked to stop."""

    asked: bool = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Turns the first SIGINT or SIGTERM into a request that the loop reads between two steps.

    A second signal raises KeyboardInterrupt at once.
    """
    stop = Stop()

    def handle(number, frame):
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        name = signal.Signals(number).name
        log.warning("%s: saving after this step; a second signal stops at once", name)

    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handle)
    except ValueError:
        pass  # not the main thread: the program that runs us handles its signals
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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

"""Stopping between two steps when a signal asks for it, on all processes at the same step."""

import dataclasses
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videomar_jax.types import Array

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Stop:
    """Whether this process was asked to stop."""

    asked: bool = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Turns the first SIGINT or SIGTERM into a request that the loop reads between two steps; a
    second one stops at once."""
    stop = Stop()

    def ask(number, frame):
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        _log.warning(
            "%s: saving after this step; once more stops at once", signal.Signals(number).name
        )

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever runs us handles signals
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_any = jax.jit(jnp.any)


def any_process_stopped(mesh: Mesh, asked: bool) -> Array | bool:
    """Whether any process was asked, as a value that all processes see alike.

    Every process calls it after every step and reads the answer one step late, with the step's
    metrics: nothing waits, and all stop at the same step. A process that is alone gets its own
        answer at once.
    """
    if jax.process_count() == 1:
        return asked
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    mine = jax.make_array_from_callback((mesh.size,), sharding, lambda index: np.full(1, asked))
    return _any(mine)

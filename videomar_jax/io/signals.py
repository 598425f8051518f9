"""Ctrl-C and SIGTERM: noticed at any moment, answered with one line.

Python runs a signal's handler in the main thread between two of its own instructions: not while XLA
compiles, nor while a library is loaded. A command therefore calls `watch` in its first line, which
has a thread wait for signals. The first one ends the process, except in a block under `postponed`,
which it asks to stop; a second one always ends it. That is done by os._exit: an orderly end of
Python while XLA computes waits for it, or crashes.

A program that uses the package as a library keeps its own handlers. There `postponed` works in the
way that Python does, and a second signal raises KeyboardInterrupt.

This module needs the standard library only, so it can be imported before anything else.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from videomar_jax.io.log import log

INTERRUPTED = 75
"""Exit code of a run that was stopped and whose state is saved: start the same command again
(EX_TEMPFAIL)."""
CTRL_C = 130
"""Exit code of anything else that was stopped, as in shells."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds for the last line and for what is cleaned up before the end: a disk may not answer.
_LAST_SECONDS = 1.0


class Ending(NamedTuple):
    """How the process ends at a signal."""

    text: str
    """What follows the name of the signal."""
    code: int


@dataclass
class Stop:
    """Whether a block was asked to stop."""

    promise: str
    """What happens before the end, for the line that answers the signal."""
    at_once: bool
    """Under `watch`: the first signal ends the process, as there is nothing to save yet."""
    asked: bool = False


_endings: list[Callable[[], Ending]] = []
"""The one of `watch`, if this process watches."""
_postponing: list[Stop] = []
_cleaning: list[Callable[[], None]] = []


def watch(ending: Callable[[], Ending]) -> None:
    """Watches for SIGINT and SIGTERM from now on, in the main thread of a command.

    Args:
        ending: called when a signal ends the process.
    """
    if _endings:
        return
    _endings.append(ending)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in _SIGNALS:
        signal.signal(number, _leave_it_to_the_watcher)
    threading.Thread(target=_wait, args=(reader,), name="signals", daemon=True).start()
    # A forked process has the pipe but not the thread: until it forgets, signals wait.
    os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_forget)


@contextlib.contextmanager
def postponed(promise: str, *, at_once: bool = False) -> Iterator[Stop]:
    """Lets the first signal set `asked` of what the block gets; a second one does not wait.

    Args:
        promise: what the block does when it is asked to stop, for the log.
        at_once: under `watch`, the first signal ends the process until the block sets this False.
    """
    stop = Stop(promise, at_once)
    if _endings:
        _postponing.append(stop)
        try:
            yield stop
        finally:
            _postponing.remove(stop)
        return

    def handle(number, frame):
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        log.warning("%s", _answer(number, stop))

    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                before = signal.signal(number, handle)
                stack.callback(signal.signal, number, before or signal.SIG_DFL)
        yield stop


@contextlib.contextmanager
def cleaning_up(callback: Callable[[], None]) -> Iterator[None]:
    """Calls `callback`, which must be quick, if a signal ends the process during the block."""
    _cleaning.append(callback)
    try:
        yield
    finally:
        _cleaning.remove(callback)


def _leave_it_to_the_watcher(number, frame) -> None:
    """The handler: without one, the signal would not reach the pipe."""


def _wait(reader: int) -> None:
    while True:
        for number in os.read(reader, 16):
            if number in _SIGNALS:
                _act(number)


def _act(number: int) -> None:
    stop = _postponing[-1] if _postponing else None
    if stop is not None and not stop.at_once and not stop.asked:
        stop.asked = True
        _say(_answer(number, stop))
        return
    text, code = _endings[0]()
    name = signal.Signals(number).name
    if stop is not None and stop.asked:
        text, code = "ended at once; what was not saved yet is lost.", CTRL_C
    try:
        last = threading.Thread(target=_finish, args=(f"{name}: {text}",), daemon=True)
        last.start()
        last.join(_LAST_SECONDS)
    finally:
        os._exit(code)


def _finish(line: str) -> None:
    _say(line)
    for callback in _cleaning:
        with contextlib.suppress(Exception):
            callback()


def _answer(number: int, stop: Stop) -> str:
    return f"{signal.Signals(number).name}: {stop.promise}; a second signal ends at once"


def _say(line: str) -> None:
    # The logger's locks may be held by a thread that waits.
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


def _block() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _forget() -> None:
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    _endings.clear()
    _postponing.clear()
    _cleaning.clear()
    _unblock()

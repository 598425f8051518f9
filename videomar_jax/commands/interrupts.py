"""How each command ends at Ctrl-C or SIGTERM while it has nothing to save (`io.signals`).

A command watches for signals before it imports anything else:

    from videomar_jax.commands import interrupts

    if __name__ == "__main__":
        interrupts.watch("main")
"""

import os
import sys
from collections.abc import Callable

from videomar_jax.io import signals
from videomar_jax.io.signals import CTRL_C, INTERRUPTED, Ending


def watch(command: str) -> None:
    """Watches for signals in the name of a command's module."""
    signals.watch(_ENDINGS[command])


def _main() -> Ending:
    workdir = os.path.expanduser(_flag("workdir"))
    folder = os.path.join(workdir, "checkpoints")
    if not workdir or not _holds_checkpoint(folder):
        return Ending("stopped before there was anything to save.", CTRL_C)
    text = f"stopped. The same command continues from what is saved in {folder}."
    return Ending(text, INTERRUPTED)


def _sample() -> Ending:
    return Ending("stopped; only finished videos are written.", CTRL_C)


def _prepare() -> Ending:
    return Ending("stopped. The same command continues after the shards that are complete.", CTRL_C)


def _convert() -> Ending:
    return Ending("stopped; the result was not complete and is not there.", CTRL_C)


def _evaluate() -> Ending:
    return Ending("stopped before its work was complete; finished videos stay.", CTRL_C)


_ENDINGS: dict[str, Callable[[], Ending]] = {
    "main": _main,
    "sample": _sample,
    "prepare": _prepare,
    "convert": _convert,
    "evaluate": _evaluate,
}


def _flag(name: str) -> str:
    """A flag's value on the command line, which may not have been parsed yet."""
    value = ""
    for argument, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        flag, equals, rest = argument.lstrip("-").partition("=")
        if argument.startswith("-") and flag == name:
            value = rest if equals else following
    return value


def _holds_checkpoint(folder: str) -> bool:
    try:
        return any(name.isdecimal() for name in os.listdir(folder))
    except OSError:
        return False

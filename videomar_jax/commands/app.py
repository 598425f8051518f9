"""What the entry points share: flags that explain themselves, logging, and errors in one line.

Every expected fault (a wrong flag, file, size or weight) is a ValueError, an OSError or the like
whose text says what to do; it ends the program with that text and code 2. Anything else is our bug
and keeps its traceback, as does everything with `--traceback`.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence

from absl import app, flags

from videomar_jax.checks import Interrupted
from videomar_jax.experiment.config_files import with_config_paths
from videomar_jax.io.log import show_log
from videomar_jax.io.migration import current_flags
from videomar_jax.parallel import launch

INTERRUPTED = 75
"""Exit code of a run that was asked to stop and saved its state: start the same command again
(EX_TEMPFAIL)."""

flags.DEFINE_bool("traceback", False, "Show the Python traceback of every error.")


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs an entry point's `main(argv)`."""
    app.run(lambda argv: _guarded(main, argv), flags_parser=_parse)


def stop_on_sigterm() -> None:
    """From here on SIGTERM ends the program with code `INTERRUPTED`, for commands that lose nothing
    by it; a part that must finish something first, as the training loop must, has a handler of its
    own for that time."""

    def stop(number, frame):
        os.write(
            2, b"SIGTERM: stopped; what was saved stays. The same command goes on from there.\n"
        )
        os._exit(INTERRUPTED)

    signal.signal(signal.SIGTERM, stop)


def _parse(argv: Sequence[str]) -> list[str]:
    argv, notes = current_flags(argv)
    for note in notes:
        print(note, file=sys.stderr)
    try:
        if "config" in flags.FLAGS:
            argv = with_config_paths(argv)
        # ml_collections looks for overrides in sys.argv, whatever is parsed.
        sys.argv[1:] = argv[1:]
        rest = flags.FLAGS(argv)
    except (flags.Error, AttributeError, ValueError, TypeError, LookupError, OSError) as error:
        unknown = isinstance(error, LookupError | AttributeError)
        text = _no_such_key(error, argv) if unknown else _without_traceback(str(error))
        _fail(f"{text}\nSee {argv[0]} --help.", 2)
    if len(rest) > 1:
        _fail(
            f"Unexpected argument {rest[1]!r}: options are written --name=value. See {argv[0]} --help.",
            2,
        )
    return rest


def _no_such_key(error: LookupError | AttributeError, argv: Sequence[str]) -> str:
    """What to say of an override of something the config does not have; ml_collections names the
    key at most."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    key, _, hint = str(error.args[0] if error.args else "").replace("'", "").partition("\n")
    overrides = [flag for flag in argv if flag.startswith("--config.")]
    named = [flag for flag in overrides if key in flag.split("=")[0]] or overrides
    return f"The config has nothing to set by {' or '.join(named)}. {hint}".rstrip()


def _without_traceback(text: str) -> str:
    """First and last line of a text that quotes a traceback, as that of an error inside a config
    file does."""
    lines = [line for line in text.splitlines() if line.strip()]
    return (
        f"{lines[0]} {lines[-1]}" if any(line.startswith("Traceback") for line in lines) else text
    )


def _guarded(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> None:
    show_log()
    try:
        main(argv)
    except Interrupted as stop:
        _fail(str(stop), INTERRUPTED)
    except (ValueError, OSError, FloatingPointError, NotImplementedError) as error:
        if flags.FLAGS.traceback:
            raise
        # Notes say what the exception itself cannot know, such as the newest checkpoint.
        _fail("\n".join([f"Error: {error}", *getattr(error, "__notes__", ())]), 2)


def _fail(text: str, code: int) -> None:
    print(text, file=sys.stderr, flush=True)
    if code == INTERRUPTED:
        sys.exit(code)
    launch.leave(code)

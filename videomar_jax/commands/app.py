"""What all commands share: help, the log, exit codes, and errors in one line.

A mistake that the user can mend ends the program with its text and code 2: a `UserError`, a file
that is missing or in the way, and whatever flags and config files refuse. Every other exception is
our own fault and keeps its traceback, as does everything with `--traceback`.
"""

import inspect
import itertools
import re
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from absl import app, flags

import videomar_jax
from videomar_jax.checks import Interrupted, UserError
from videomar_jax.experiment.config_files import with_config_paths
from videomar_jax.io.log import show_log
from videomar_jax.io.migration import current_flags
from videomar_jax.io.signals import CTRL_C, INTERRUPTED
from videomar_jax.parallel import launch

Main = Callable[[Sequence[str]], None]

_HELP = ("-h", "-help", "--help", "--helpshort")
_FILE_ERRORS = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)

flags.DEFINE_bool("traceback", False, "Show the Python traceback of every error.")


def run(main: Main, argv: list[str] | None = None) -> None:
    """Runs a command's `main(argv)` and exits with its code.

    Args:
        main: the command; its module holds the flags, and its docstring starts the help.
        argv: program name and arguments; None takes those of the process.
    """
    module = sys.modules[main.__module__]
    app.run(
        lambda rest: _guarded(main, rest),
        argv=argv,
        flags_parser=lambda arguments: _parse(arguments, module),
    )


def leave(text: str, code: int) -> NoReturn:
    """Prints `text` on stderr and exits with `code`."""
    print(text, file=sys.stderr, flush=True)
    if code == INTERRUPTED:
        # All processes of a run stop together, so none waits for another in vain.
        sys.exit(code)
    launch.leave(code)


def refuse_others(main: Main, allowed: Collection[str], reason: str) -> None:
    """Refuses flags of a command other than the allowed ones.

    Raises:
        UserError: other flags are on the command line; the text starts with `reason`.
    """
    holders = flags.FLAGS.get_key_flags_for_module(sys.modules[main.__module__])
    others = [f"--{flag.name}" for flag in holders if flag.present and flag.name not in allowed]
    if others:
        raise UserError(f"{reason}: leave out {', '.join(others)}, which would change it.")


def help_text(module: ModuleType) -> str:
    """The help of a command: the docstring of its module and its flags, not those of absl."""
    holders = flags.FLAGS.get_key_flags_for_module(module)
    known = [flag for flag in holders if flag.name != "traceback"]
    lines = [inspect.cleandoc(module.__doc__ or ""), "", "Flags:"]
    for flag in [*known, flags.FLAGS["traceback"]]:
        lines += _flag_lines(flag)
    return "\n".join(lines)


def _flag_lines(flag: flags.Flag) -> list[str]:
    """A flag with its values in a left column and its description beside or below it."""
    kind = flag.flag_type()
    values = {"int": "N", "float": "X", "comma separated list of strings": "A,B"}
    # absl puts the choices in front of the description, and a note on repeating behind it.
    text = re.sub(r";\s+repeat this option.*", "", flag.help)
    if flag.boolean:
        name = f"--[no]{flag.name}"
    elif kind == "string enum":
        choices = "|".join(flag.parser.enum_values)
        text = text.removeprefix(f"<{choices}>: ")
        name = f"--{flag.name}={choices}"
    else:
        name = f"--{flag.name}={values.get(kind, 'TEXT')}"
    if flag.default not in (None, "", False):
        text = f"{text} (default: {flag.default})"
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    column = min(28, width // 3)
    indent = " " * column
    lines = textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)
    label = f"  {name}"
    if lines and len(label) < column:
        return [label.ljust(column) + lines[0].lstrip(), *lines[1:]]
    return [label, *lines]


def _parse(argv: Sequence[str], module: ModuleType) -> list[str]:
    """Parses the flags; help, the version and wrong flags end the program here."""
    if any(argument in _HELP for argument in argv[1:]):
        print(help_text(module))
        sys.exit(0)
    if "--version" in argv[1:]:
        print(videomar_jax.__version__)
        sys.exit(0)
    argv, notes = current_flags(argv)
    for note in notes:
        print(note, file=sys.stderr)
    try:
        if "config" in flags.FLAGS:
            argv = with_config_paths(argv)
        # ml_collections looks for overrides in sys.argv, whatever is parsed.
        sys.argv[1:] = argv[1:]
        rest = flags.FLAGS(argv)
    except Exception as error:
        leave(f"{_refusal(error, argv)}\nSee {argv[0]} --help.", 2)
    if len(rest) > 1:
        leave(
            f"Unexpected argument {rest[1]!r}: flags are written --name=value. "
            f"See {argv[0]} --help.",
            2,
        )
    return rest


def _refusal(error: Exception, argv: Sequence[str]) -> str:
    """The text for what flags refuse, or for the fault of a config file, which runs while they are
    parsed.

    Raises:
        Exception: the error itself, if it is neither, or with --traceback.
    """
    if "--traceback" in argv:
        raise error
    for cause in _causes(error):
        place = _line_of_config(cause)
        if place is not None and not isinstance(cause, UserError | ValueError):
            unknown = isinstance(cause, LookupError | AttributeError)
            text = _first_cause(cause) if unknown else cause
            return f"{place}: {type(cause).__name__}: {text}"
    if isinstance(error, LookupError | AttributeError):
        return _unknown_key(error, argv)
    if isinstance(error, flags.Error | ValueError | TypeError | OSError):
        return _without_traceback(str(error))
    raise error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it was raised over."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _line_of_config(error: BaseException) -> str | None:
    """ "FILE, line N" of the innermost line of a config file that raised an error; None if it was
    raised elsewhere."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    files = set()
    for caller, frame in itertools.pairwise(frames):
        imported = frame.name == "<module>" and caller.filename.startswith("<frozen importlib")
        if imported or frame.name == "get_config":
            files.add(frame.filename)
    lines = [frame for frame in frames if frame.filename in files]
    return f"{lines[-1].filename}, line {lines[-1].lineno}" if lines else None


def _first_cause(error: BaseException) -> object:
    """What a chain of errors, each the text of the next, began with."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    return error.args[0] if error.args else error


def _unknown_key(error: Exception, argv: Sequence[str]) -> str:
    """The text for an override of a key that the config lacks.

    ml_collections names the key at most, and not the flag.
    """
    key, _, hint = str(_first_cause(error)).replace("'", "").partition("\n")
    overrides = [flag for flag in argv if flag.startswith("--config.")]
    if not overrides:
        return f"The config file: {_first_cause(error)}"
    named = [flag for flag in overrides if key in flag.split("=")[0]] or overrides
    return f"The config has nothing to set by {' or '.join(named)}. {hint}".rstrip()


def _without_traceback(text: str) -> str:
    """First and last line of a text that quotes a traceback, as errors in a config file do."""
    lines = [line for line in text.splitlines() if line.strip()]
    quoted = any(line.startswith("Traceback") for line in lines)
    return f"{lines[0]} {lines[-1]}" if quoted else text


def _guarded(main: Main, argv: Sequence[str]) -> None:
    show_log()
    try:
        main(argv)
    except Interrupted as stop:
        leave(str(stop), INTERRUPTED)
    except KeyboardInterrupt:
        leave("Interrupted.", CTRL_C)
    except Exception as error:
        if flags.FLAGS.traceback:
            raise
        if _is_for_the_user(error):
            # Notes hold what the exception itself cannot know, such as the newest checkpoint.
            leave("\n".join([f"Error: {error}", *getattr(error, "__notes__", ())]), 2)
        # One of several processes must not wait for the others at exit, so it leaves at once.
        traceback.print_exc()
        launch.leave(1)


def _is_for_the_user(error: Exception) -> bool:
    """Whether the text of an exception tells the user what to mend."""
    if isinstance(error, (UserError, *_FILE_ERRORS)):
        return True
    # A plain OSError or FloatingPointError counts where we raised it with a text of our own.
    return isinstance(error, OSError | FloatingPointError) and _raised_by_us(error)


def _raised_by_us(error: Exception) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parents[1])

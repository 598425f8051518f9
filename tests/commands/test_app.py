"""What all commands share: help, the version, exit codes, and which errors are the user's."""

import dataclasses
import subprocess
import sys

import pytest

import videomar_jax
from tests.helpers.paths import ROOT
from videomar_jax.__main__ import COMMANDS

FLAGS = {
    "train": "--workdir",
    "sample": "--prompt",
    "prepare": "--videos",
    "convert": "--export",
    "evaluate": "--checkpoint",
}


def python(*arguments):
    call = [sys.executable, *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_the_flags_of_a_command_and_no_others(command):
    """The same by both names of the command, and by all ways to ask; nothing of absl's own."""
    done = python("-m", "videomar_jax", command, "--help")
    assert done.returncode == 0, done.stderr
    assert FLAGS[command] in done.stdout and "no help available" not in done.stdout
    for flag in ("--logtostderr", "--pdb", "--helpxml", "--config_flags"):
        assert flag not in done.stdout, f"{flag} is of no use on this screen"
    assert all(len(line) <= 100 for line in done.stdout.splitlines())
    module = f"videomar_jax.{COMMANDS[command][0]}"
    short = python("-m", module, "-h")
    assert (short.returncode, short.stdout) == (0, done.stdout)


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]], ids=str)
def test_the_help_of_the_package_lists_the_commands(arguments):
    done = python("-m", "videomar_jax", *arguments)
    assert done.returncode == 0, done.stderr
    for command, (_, summary) in COMMANDS.items():
        assert f"  {command}" in done.stdout and summary in done.stdout


@pytest.mark.parametrize("arguments", [["--version"], ["sample", "--version"]], ids=str)
def test_the_version(arguments):
    done = python("-m", "videomar_jax", *arguments)
    assert (done.returncode, done.stdout.strip()) == (0, videomar_jax.__version__)


def test_an_unknown_command_ends_with_the_list():
    done = python("-m", "videomar_jax", "trian")
    assert done.returncode == 2 and "There is no command 'trian'" in done.stderr
    assert "  train" in done.stderr and not done.stdout


def test_a_wrong_flag_names_the_command_as_it_was_called():
    done = python("-m", "videomar_jax", "sample", "--output=x", "--stepz=3")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "stepz" in done.stderr and "See videomar sample --help." in done.stderr


def test_config_overrides_work_through_the_one_command(tmp_path):
    """ml_collections looks for them in sys.argv, which holds the name of the command there."""
    done = python(
        "-m",
        "videomar_jax",
        "train",
        "--config=quickstart:tiny",
        "--config.loss.frames=every",
        f"--workdir={tmp_path / 'run'}",
    )
    assert done.returncode == 2, done.stderr
    assert "--config.loss.frames=every is now written --config.loss.supervise=every" in done.stderr
    assert "loss.supervise is 'every'" in done.stderr and "Traceback" not in done.stderr


PROGRAM = """
import sys
from videomar_jax.checks import Interrupted, UserError
from videomar_jax.commands import app

def main(_):
    STATEMENT

app.run(main)
"""


@dataclasses.dataclass(frozen=True)
class Ending:
    """What a command that raises something ends with."""

    statement: str
    code: int
    text: str
    traceback: bool = False


ENDINGS = [
    Ending("raise UserError('mend it')", 2, "Error: mend it"),
    Ending("open('/gone/file')", 2, "No such file or directory: '/gone/file'"),
    Ending("import os; os.listdir('/etc/passwd')", 2, "Not a directory"),
    Ending(
        "from videomar_jax.training.logging import check_finite; "
        "check_finite(1, {'loss': float('nan')})",
        2,
        "Error: Step 1: loss = nan",
    ),
    Ending("raise Interrupted('saved')", 75, "saved"),
    Ending("raise ValueError('shapes (2,) (3,)')", 1, "ValueError: shapes (2,) (3,)", True),
    Ending("import numpy; numpy.zeros(2) + numpy.zeros(3)", 1, "could not be broadcast", True),
    Ending("raise FloatingPointError('of another library')", 1, "of another library", True),
    Ending("raise OSError('of another library')", 1, "of another library", True),
    Ending("raise NotImplementedError('kernel')", 1, "NotImplementedError: kernel", True),
]


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.statement[:40])
def test_only_what_the_user_can_mend_becomes_one_line(ending):
    """Our own faults keep their traceback: a broadcasting error is nobody's wrong flag."""
    done = python("-c", PROGRAM.replace("STATEMENT", ending.statement))
    assert done.returncode == ending.code, done.stderr
    assert ending.text in done.stderr
    assert ("Traceback" in done.stderr) == ending.traceback
    if not ending.traceback:
        assert len(done.stderr.strip().splitlines()) == 1


def test_traceback_shows_where_a_user_error_comes_from():
    done = python("-c", PROGRAM.replace("STATEMENT", "raise UserError('mend it')"), "--traceback")
    assert done.returncode == 1 and "Traceback" in done.stderr and "mend it" in done.stderr

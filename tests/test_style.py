"""How the code is written: the formatter's layout, the density of lines, the size of the core."""

import functools
import operator
import subprocess
import sys

import pytest

from tests.helpers.paths import CORE, ROOT
from tests.helpers.reading import Reading, argument_counts, read

PACKAGE = ROOT / "videomar_jax"
LARGEST_DENSITY = 9.0  # tokens a code line
LARGEST_CORE = 12_000  # tokens
LEAST_COMMENTS = 0.04  # of the core's lines
LARGEST_LINE = 100  # columns
MOST_ARGUMENTS = 8

PUBLIC_DOORS = {
    "data/videos.py:VideoFolder.__init__",
    "inference/image_to_video.py:image_to_video",
    "inference/pipeline.py:VideoMARPipeline.__call__",
    "inference/pipeline.py:VideoMARPipeline.stream",
    "sampling/generate.py:generate",
    "sampling/generate.py:generate_frames",
}
"""Documented functions that may have more arguments: what users call with keywords."""


def python_files(folder=ROOT):
    """All Python files of the repository; virtual environments and builds are left out."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        folders = path.relative_to(ROOT).parts[:-1]
        if not any(name.startswith(".") or name == "build" for name in folders):
            found.append(path)
    return found


def total(paths) -> Reading:
    return functools.reduce(operator.add, [read(path) for path in paths])


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_finds_nothing(command):
    ran = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--no-cache", "--output-format=concise", "."],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert ran.returncode == 0, f"run `ruff {' '.join(command)}`:\n{ran.stdout}{ran.stderr}"


def test_the_formatter_is_never_switched_off():
    marks = ["fmt: " + word for word in ("skip", "off")]
    found = []
    for path in python_files():
        text = path.read_text(encoding="utf-8")
        if any(mark in text for mark in marks):
            found.append(str(path.relative_to(ROOT)))
    assert not found, f"the formatter is switched off in {found}"


def test_no_line_is_wider_than_the_page():
    wide = []
    for path in python_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if len(line) > LARGEST_LINE:
                wide.append(f"{path.relative_to(ROOT)}:{number}")
    assert not wide, f"wider than {LARGEST_LINE} columns: " + ", ".join(wide)


def test_lines_hold_one_idea():
    whole = total(python_files(PACKAGE))
    density = whole.tokens / whole.code_lines
    assert density <= LARGEST_DENSITY, f"{density:.2f} tokens a code line"


def test_the_core_reads_in_one_sitting():
    core = total(CORE)
    assert core.tokens <= LARGEST_CORE, f"the core has {core.tokens} tokens"


def test_the_core_says_why():
    core = total(CORE)
    share = core.comment_lines / core.lines
    assert share >= LEAST_COMMENTS, f"{share:.1%} of the core's lines are comments"


def test_long_argument_lists_are_public_doors():
    long = []
    for path in python_files(PACKAGE):
        module = path.relative_to(PACKAGE).as_posix()
        for name, count in argument_counts(path).items():
            if count > MOST_ARGUMENTS:
                long.append(f"{module}:{name}")
    unknown = sorted(set(long) - PUBLIC_DOORS)
    assert not unknown, f"more than {MOST_ARGUMENTS} arguments, pass a record instead: {unknown}"
    gone = sorted(PUBLIC_DOORS - set(long))
    assert not gone, f"no longer need a place in PUBLIC_DOORS: {gone}"


def test_the_measurement_itself(tmp_path):
    file = tmp_path / "x.py"
    file.write_text('"""Two\nlines."""\n\n# why\ndef f(self, a, *, b):\n    return a + b  # end\n')
    assert read(file) == Reading(lines=6, code_lines=2, tokens=16, comment_lines=1)
    assert argument_counts(file) == {"f": 3}

"""Signals are answered at once, whatever the main thread does; each test has a process of its own.

As a library the package leaves signals to Python: tests/training/test_metrics.py and
tests/inference/test_jobs.py.
"""

import signal
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

START = """
import hashlib, os, sys, time
from pathlib import Path
from videomar_jax.io import signals
signals.watch(lambda: signals.Ending("stopped", 130))

def blocked():
    # As in a compilation: no instruction of Python runs in the main thread.
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000_000)
"""


def start(code: str, *arguments) -> subprocess.Popen:
    """The process, once it has printed "ready"."""
    process = subprocess.Popen(
        [sys.executable, "-c", START + code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout.readline() == "ready\n", process.communicate()
    return process


def end(process: subprocess.Popen) -> tuple[int, str]:
    """Exit code and messages of a process that must end by itself."""
    try:
        _, messages = process.communicate(timeout=20)
    finally:
        process.kill()
    return process.returncode, messages


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_process_that_runs_no_python(number):
    process = start("blocked()")
    process.send_signal(number)
    assert end(process) == (130, f"{number.name}: stopped\n")


def test_a_lock_is_given_up(tmp_path):
    code = """
from videomar_jax.io.lock import holding
with holding(Path(sys.argv[1]) / ".lock", "it"):
    blocked()
"""
    process = start(code, tmp_path)
    assert (tmp_path / ".lock").exists()
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, "SIGINT: stopped\n")
    assert not list(tmp_path.iterdir())


POSTPONED = """
with signals.postponed("saving", at_once=sys.argv[1] == "at_once") as stop:
    blocked()
"""
PROMISE = "SIGINT: saving; a second signal ends at once\n"


def test_the_first_signal_waits_and_the_second_does_not():
    process = start(POSTPONED, "later")
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == PROMISE
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, "SIGINT: ended at once; what was not saved yet is lost.\n")


def test_nothing_waits_while_there_is_nothing_to_save():
    process = start(POSTPONED, "at_once")
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, "SIGINT: stopped\n")


def test_a_block_that_is_asked_ends_in_order():
    code = """
with signals.postponed("saving") as stop:
    print("ready", flush=True)
    while not stop.asked:
        time.sleep(0.01)
sys.exit(7)
"""
    process = start(code)
    process.send_signal(signal.SIGINT)
    assert end(process) == (7, PROMISE)


def test_a_signal_to_a_forked_process_is_not_the_parents():
    code = """
child = os.fork()
if not child:
    time.sleep(10)
    os._exit(9)
os.kill(child, 15)
_, status = os.waitpid(child, 0)
print("ready", flush=True)
time.sleep(0.2)
sys.exit(os.WTERMSIG(status))
"""
    assert end(start(code)) == (signal.SIGTERM, "")

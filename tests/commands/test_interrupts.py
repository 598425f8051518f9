"""Ctrl-C and SIGTERM end every command with one line, from its first line on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from videomar_jax.__main__ import COMMANDS
from videomar_jax.commands import interrupts
from videomar_jax.io.signals import Ending


def start(*arguments) -> subprocess.Popen:
    """`python -m ...`, once it watches for signals."""
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    # Python itself catches SIGINT only.
    status = Path(f"/proc/{process.pid}/status")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        caught = status.read_text().split("SigCgt:")[1].split()[0]
        if int(caught, 16) >> (signal.SIGTERM - 1) & 1:
            return process
        time.sleep(0.005)
    process.kill()
    raise AssertionError(f"{arguments} does not watch for signals: {process.communicate()}")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("by_module", [True, False], ids=["module", "videomar"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_stopped_before_its_imports(command, by_module, number):
    module, _ = COMMANDS[command]
    process = start(f"videomar_jax.{module}") if by_module else start("videomar_jax", command)
    process.send_signal(number)
    started = time.monotonic()
    out, messages = process.communicate(timeout=20)
    assert time.monotonic() - started < 3
    assert (process.returncode, out) == (130, "")
    assert messages.startswith(f"{number.name}: stopped") and messages.count("\n") == 1, messages


@pytest.mark.parametrize("form", ["--workdir={}", "--workdir {}", "-workdir={}"])
def test_a_run_that_has_saved_ends_with_75(tmp_path, monkeypatch, form):
    monkeypatch.setenv("HOME", str(tmp_path))
    flags = form.format("~/run").split()
    monkeypatch.setattr(sys, "argv", ["main", "--config=quickstart", *flags, "--profile=1:2"])
    nothing = Ending("stopped before there was anything to save.", 130)
    assert interrupts._main() == nothing
    saved = tmp_path / "run" / "checkpoints"
    (saved / "12.orbax-checkpoint-tmp").mkdir(parents=True)
    assert interrupts._main() == nothing, "a checkpoint that is not complete counts for nothing"
    (saved / "10").mkdir()
    text = f"stopped. The same command continues from what is saved in {saved}."
    assert interrupts._main() == Ending(text, 75)

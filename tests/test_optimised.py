"""Parity and exact resumption with XLA's optimisations on, as users run them.

The other tests switch most optimisations off to compile faster (tests/conftest.py); these run a
part of them again in a process of their own.
"""

import os
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

CASES = {
    "parity": (["tests/parity"], "not test_p_sample or p_sample_25"),
    "resume": (["tests/experiment/test_resume.py"], "test_stopped_and_killed_again_and_again"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_with_optimisations(name):
    files, chosen = CASES[name]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "0"
    command = [sys.executable, "-m", "pytest", "-n0", "--durations=0", *files, "-k", chosen]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert ran.returncode == 0, f"{' '.join(command)}\n{ran.stdout}\n{ran.stderr}"

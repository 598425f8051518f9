"""What the benchmarks share: their command lines, the device's best rates, where reports go."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from videomar_jax.checks import UserError


def matmul_peak(dtype: str) -> float:
    """FLOP/s of a large matrix product on one device, the best of several."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    return 2 * size**3 / _best(lambda: jax.block_until_ready(product(matrix)))


def copy_peak() -> float:
    """Bytes/s that a large copy on one device reads and writes, the best of several."""
    block = jnp.zeros(2**26 if jax.default_backend() == "cpu" else 2**30, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return 2 * block.nbytes / _best(lambda: jax.block_until_ready(copy(block)))


def _best(function: Callable[[], Any], repeats: int = 10) -> float:
    """Seconds of the fastest of several calls, after one that is not counted."""
    function()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


_TORCH_PRODUCT = """
import time, torch
a = torch.randn(2048, 2048)
best = float("inf")
for _ in range(10):
    start = time.perf_counter()
    torch.matmul(a, a)
    best = min(best, time.perf_counter() - start)
print(2 * 2048**3 / best)
"""


def torch_peak(python: str | None = None) -> float | None:
    """FLOP/s of PyTorch's product of two 2048 x 2048 matrices on CPU; None if it is not installed.

    Args:
        python: the interpreter that has PyTorch; None: this one.
    """
    command = [python or sys.executable, "-c", _TORCH_PRODUCT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout) if done.returncode == 0 else None


def write_report(report: dict[str, Any], out: str | None, name: str) -> None:
    """Writes a report as JSON to `out`, or below runs/benchmarks.

    Raises:
        FileExistsError: the file exists; a measurement is never overwritten.
    """
    path = Path(out or f"runs/benchmarks/{name}-{datetime.now():%Y%m%d-%H%M%S}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "x", encoding="utf-8") as file:
        json.dump(report, file, indent=2)
    print(path)


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help begins with the text of a benchmark as it stands."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def checkpoint_parser(description: str | None) -> argparse.ArgumentParser:
    """The same for a benchmark of a model, which takes --checkpoint and --out."""
    parser = argument_parser(description)
    parser.add_argument("--checkpoint", required=True, help="a run's folder")
    parser.add_argument("--out", help="a file for the figures, as JSON")
    return parser


def run_command(main: Callable[[], None], *, resumes: bool = False) -> None:
    """Runs a benchmark; what the user can mend, and Ctrl-C, end it with one line.

    Args:
        resumes: the benchmark keeps what it has measured, and is continued by the same command.
    """
    try:
        main()
    except (UserError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        hint = "; the same command continues with what is finished" if resumes else ""
        print(f"\nInterrupted{hint}.", file=sys.stderr)
        raise SystemExit(130) from None

"""Compiled programs are kept on disk, so that a command that ran before begins at once.

JAX does the work (its persistent compilation cache); here is only where: in
JAX_COMPILATION_CACHE_DIR if that is set, else in the user's cache folder, apart for each kind of
CPU, since a program compiled for one may not run on another. JAX_ENABLE_COMPILATION_CACHE=false
turns it off.
"""

import hashlib
import os
import platform
from pathlib import Path

import jax

SECONDS = 0.5
"""Programs that compiled faster than this are not kept."""


def keep_compiled() -> Path | None:
    """Keeps what is compiled from here on; returns the folder, or None where JAX was told
    otherwise."""
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return None
    try:
        folder = _user_cache() / "videomar_jax" / f"compiled-{_machine()}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # not writable, or a user without a home
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS)
    return folder


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _machine() -> str:
    """A few letters that differ where the instructions of the CPU do."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        found = sorted(
            {line for line in lines if line.startswith(("flags", "Features", "model name"))}
        )
    except OSError:
        found = [platform.machine(), platform.processor()]
    return hashlib.sha256("\n".join(found).encode()).hexdigest()[:8]

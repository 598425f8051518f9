"""Keeps compiled programs on disk, so that a command that ran before starts at once.

JAX does the work (its persistent compilation cache); this module only chooses the folder. It is
JAX_COMPILATION_CACHE_DIR if that is set, else one in the user's cache folder for each kind of CPU,
since a program compiled for one may not run on another. JAX_ENABLE_COMPILATION_CACHE=false turns
the cache off.
"""

import hashlib
import os
import platform
from pathlib import Path

import jax

SECONDS = 0.5
"""Programs that compile faster than this are not kept: reading them would take as long."""


_CPU_LINES = ("flags", "Features", "model name")
"""Lines of /proc/cpuinfo that name the instruction sets."""


def keep_compiled() -> Path | None:
    """Keeps what is compiled from here on.

    Returns:
        The folder, or None where JAX's own settings decide.
    """
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
    """A few letters that differ where the instruction sets of CPUs do."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        found = sorted({line for line in lines if line.startswith(_CPU_LINES)})
    except OSError:
        found = [platform.machine(), platform.processor()]
    return hashlib.sha256("\n".join(found).encode()).hexdigest()[:8]

"""Compiled programs are kept where the user's caches are, unless JAX is set otherwise."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax, jax.numpy as jnp
from videomar_jax.commands import compilation_cache
compilation_cache.SECONDS = 0.0
folder = compilation_cache.keep_compiled()
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).block_until_ready()
print(folder, len(list(folder.iterdir())) if folder else None)
"""


def output_of(tmp_path, **environment):
    """What the program prints in a process of its own with a cache folder of its own."""
    inherited = {key: value for key, value in os.environ.items() if "COMPILATION_CACHE" not in key}
    env = (
        inherited
        | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
        | environment
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_programs_are_kept_for_the_next_run(tmp_path):
    folder, count = output_of(tmp_path)
    assert (
        folder.startswith(str(tmp_path / "cache" / "videomar_jax" / "compiled-")) and int(count) > 0
    )
    assert output_of(tmp_path) == [folder, count], "the second run compiles anew"


@pytest.mark.parametrize(
    "environment",
    [{"JAX_COMPILATION_CACHE_DIR": "{}/own"}, {"JAX_ENABLE_COMPILATION_CACHE": "false"}],
)
def test_jax_settings_come_first(tmp_path, environment):
    environment = {key: value.format(tmp_path) for key, value in environment.items()}
    assert (
        output_of(tmp_path, **environment) == ["None", "None"] and not (tmp_path / "cache").exists()
    )


def test_a_cache_folder_that_cannot_be_made_is_done_without(tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert output_of(tmp_path) == ["None", "None"]

"""Eight virtual CPU devices, a compilation cache, shape annotations checked at run time."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # tests compile more than they compute
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "videomar_jax_test_cache")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest
from absl import flags
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
install_import_hook("videomar_jax", "beartype.beartype")


@pytest.fixture(autouse=True, scope="session")
def _parsed_flags():
    """Grain's worker processes refuse to start before absl has parsed its flags."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


@pytest.fixture(autouse=True, scope="module")
def _few_programs():
    """Every compiled program takes memory maps of its process, of which Linux grants 65 530:
    without any left, the next one ends in a segmentation fault. So programs of earlier files are
    let go; the cache on disk brings them back."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 15_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The workdir of a finished run of the quick start's tiny variant; look, do not touch."""
    from tests.helpers.tiny_run import start, tiny  # late: it imports all of the package

    workdir = tmp_path_factory.mktemp("runs") / "finished"
    start(tiny(), workdir)
    return workdir


GOLDEN = Path(__file__).parent / "golden"
FULL_GOLDEN = Path(__file__).parents[2] / "shared" / "golden"


@pytest.fixture(scope="session")
def golden():
    """Finds a recorded file, such as "videomar/loss.safetensors": the full set where it is at hand,
    else our subset."""

    def find(name: str) -> Path:
        for folder in (FULL_GOLDEN, GOLDEN):
            if (folder / name).exists():
                return folder / name
        pytest.skip(f"the recorded file {name} is not part of the subset in tests/golden")

    return find

"""Eight virtual CPU devices, a compilation cache, shape annotations checked at run time."""

import itertools
import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile more than they compute; tests/test_optimised.py runs some of them without this.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
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

GOLDEN = Path(__file__).parent / "golden"
NOT_RECORDED = "no recorded file"
"""What a skip's reason begins with where the recording is not at hand."""


def pytest_configure(config):
    folder = os.environ.get("VIDEOMAR_GOLDEN")
    if folder and not Path(folder).is_dir():
        raise pytest.UsageError(f"VIDEOMAR_GOLDEN names {folder}, which is not a folder.")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    """Ends a test run with how many tests lacked their recorded file, over all workers."""
    yield
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum(NOT_RECORDED in str(report.longrepr) for report in skipped)
    if count:
        terminalreporter.write_line(
            f"{count} recorded cases were skipped: their files are outside the repository. "
            "Set VIDEOMAR_GOLDEN to the folder with the full set of recordings to run them."
        )
    else:
        terminalreporter.write_line("No recorded case was skipped.")


@pytest.fixture(autouse=True, scope="session")
def _parsed_flags():
    """Grain's worker processes refuse to start before absl has parsed its flags."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


@pytest.fixture(autouse=True)
def _warnings_of_each_test(monkeypatch):
    """A warning that is given once is given once in each test."""
    monkeypatch.setattr("videomar_jax.io.log._warned", set())


@pytest.fixture(autouse=True, scope="module")
def _few_programs():
    """Drops the compiled programs of earlier files once they take many memory maps."""
    yield
    _drop_programs(beyond=15_000)


@pytest.fixture(autouse=True)
def _few_programs_in_a_file():
    """The same within a file that compiles many, looked at now and then."""
    yield
    if next(_TESTS) % 10 == 0:
        _drop_programs(beyond=30_000)


_TESTS = itertools.count()


def _drop_programs(*, beyond: int) -> None:
    """Linux grants a process 65 530 maps, and a program that gets none ends in a segmentation
    fault. The cache on disk brings the programs back."""
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > beyond:
        jax.clear_caches()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The workdir of a finished run of the quick start's tiny variant; tests only read it."""
    from tests.helpers.tiny_run import start, tiny  # late: it imports the whole package

    workdir = tmp_path_factory.mktemp("runs") / "finished"
    start(tiny(), workdir)
    return workdir


@pytest.fixture(scope="session")
def golden():
    """Finds a recorded file, such as "videomar/loss.safetensors".

    The full set in the folder VIDEOMAR_GOLDEN comes first, then the subset in tests/golden; a test
    whose file is in neither is skipped.
    """
    full = os.environ.get("VIDEOMAR_GOLDEN")
    folders = [Path(full), GOLDEN] if full else [GOLDEN]

    def find(name: str) -> Path:
        for folder in folders:
            if (folder / name).exists():
                return folder / name
        pytest.skip(f"{NOT_RECORDED} {name} in tests/golden")

    return find

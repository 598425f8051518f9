"""The core against numbers recorded from the reference implementation.

Weights are read by the importer. All recorded cases, float32 and the highest matmul precision, at
the tolerances given beside the recordings. Where VIDEOMAR_PARITY_TABLE names a file, the worst
error of every quantity is written there as a Markdown table.
"""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file

from tests.helpers.parity_table import write_page
from tests.helpers.videomar_recordings import SEEN
from videomar_jax.interop.videomar import read_checkpoint
from videomar_jax.models.videomar import VideoMAR


@pytest.fixture(autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(autouse=True, scope="session")
def parity_table():
    name = os.environ.get("VIDEOMAR_PARITY_TABLE")
    if name and "PYTEST_XDIST_WORKER" in os.environ:
        pytest.exit("VIDEOMAR_PARITY_TABLE is written by one process: add -n0.")
    yield
    if name:
        write_page(Path(name), SEEN)


@pytest.fixture(scope="session")
def model(golden) -> VideoMAR:
    """The recorded model, unrolled by nothing, with float32 parameters on the device."""
    config, params, _ = read_checkpoint(golden("videomar/weights.safetensors"))
    graph = nnx.split(nnx.eval_shape(lambda: VideoMAR(config, rngs=nnx.Rngs(0))))[0]
    return nnx.merge(graph, jax.tree.map(jnp.asarray, params))


@pytest.fixture
def case(golden):
    """Reads a recorded case: its tensors and its settings."""

    def read(name: str) -> tuple[dict[str, np.ndarray], dict]:
        path = golden(f"videomar/{name}.safetensors")
        with safe_open(path, "np") as file:
            settings = json.loads(file.metadata()["meta"])
        return load_file(path), settings

    return read

"""One run on eight devices, then four, then one: the same data and draws, and losses within
1e-4."""

import json

import numpy as np
import pytest

from tests.helpers.tiny_run import tiny
from videomar_jax.experiment.config import Experiment
from videomar_jax.training import batches, loop

MESHES = [dict(data=2, fsdp=2, tensor=1, context=2), dict(data=1, fsdp=4), dict(data=1)]
STEPS = 2  # on each of them


def train(workdir, parts, steps, mesh):
    row = dict(
        name="row", num_frames=3, height=16, width=16, batch_size=8, steps=steps, learning_rate=1e-3
    )
    optimizer = dict(schedule="constant", name="adamw", warmup_steps=0)
    config = tiny(
        mesh=mesh | dict(min_size=0),
        curriculum=(row,),
        optimizer=optimizer,
        run=dict(log_every=1, checkpoint_every=100),
    )
    return loop.train(Experiment.from_config(config).recipe, parts, workdir)


@pytest.fixture(scope="module")
def parts():
    experiment = Experiment.from_config(tiny())
    source = experiment.source("train")
    return batches.TrainingInputs(
        source=source,
        tokenizer=experiment.tokenizer(source),
        text_encoder=experiment.text_encoder(),
    )


def logged(workdir, name):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def test_a_run_moves_from_eight_devices_to_four_to_one(parts, tmp_path):
    for count, mesh in enumerate(MESHES, start=1):
        moved = train(tmp_path / "moved", parts, count * STEPS, mesh)
    still = train(tmp_path / "still", parts, len(MESHES) * STEPS, MESHES[-1])
    one, other = logged(tmp_path / "moved", "loss"), logged(tmp_path / "still", "loss")
    assert list(one) == list(other) == list(range(1, 7)), "each step is logged once"
    np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-4)
    np.testing.assert_allclose(
        moved.state.params["mask_token"], still.state.params["mask_token"], atol=1e-4
    )

"""The loss on held-out clips: what it is the mean of, and that nothing in it is random."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers.tiny_run import tiny
from videomar_jax.data.loader import fixed_clips
from videomar_jax.data.sources import ClipShape
from videomar_jax.experiment.config import Experiment
from videomar_jax.models.params import abstract_model, init_params
from videomar_jax.parallel.config import MeshConfig
from videomar_jax.parallel.mesh import make_mesh
from videomar_jax.training import batches
from videomar_jax.training.batches import TrainingInputs, to_batch
from videomar_jax.training.config import LossConfig
from videomar_jax.training.draws import draw
from videomar_jax.training.loss import next_frame_loss
from videomar_jax.training.validation import Validation

SHAPE = ClipShape(num_frames=3, height=16, width=16)
LOSS = LossConfig(supervise="all_frames", draws_per_token=1)


@pytest.fixture(scope="module")
def parts():
    experiment = Experiment.from_config(tiny())
    source = experiment.source("train")
    return TrainingInputs(
        source=source,
        tokenizer=experiment.tokenizer(source),
        text_encoder=experiment.text_encoder(),
        held_out=experiment.source("test"),
    )


@pytest.fixture(scope="module")
def model():
    return Experiment.from_config(tiny(model=dict(head_zero_init=False))).recipe.model


def validation(model, parts, clips=8):
    return Validation(
        abstract_model(model)[0],
        LOSS,
        parts,
        make_mesh(MeshConfig(data=1)),
        shape=SHAPE,
        clips=clips,
        batch_size=4,
    )


def test_it_is_the_mean_over_the_first_held_out_clips_with_fixed_draws(model, parts):
    graph, params = abstract_model(model)[0], init_params(model, jax.random.key(1))
    measure = validation(model, parts)
    network = nnx.merge(graph, params)
    losses = []
    for number in range(2):
        clips = fixed_clips(parts.held_out, range(4 * number, 4 * number + 4), shape=SHAPE)
        batch = jax.tree.map(jnp.asarray, to_batch(clips, parts))
        draws = draw(jax.random.fold_in(jax.random.key(0), number), network, (4, 2, 16), LOSS)
        losses.append(float(next_frame_loss(network, batch, draws, LOSS)[0]))
    np.testing.assert_allclose(measure(params), np.mean(losses), rtol=1e-5)
    assert measure(params) == measure(params), "the draws are not fixed"
    assert measure(init_params(model, jax.random.key(2))) != measure(params), (
        "the parameters do not matter"
    )


def test_fewer_clips_than_a_batch_make_one_batch(model, parts):
    assert len(validation(model, parts, clips=1)._batches) == 1
    assert len(validation(model, parts, clips=11)._batches) == 2, "rounded down to whole batches"


def test_every_frame_is_judged_where_training_cuts_clips(model, parts):
    params = init_params(model, jax.random.key(1))
    longer, ways = dataclasses.replace(SHAPE, num_frames=7), {}
    for name, changes in {
        "cut": dict(truncate=True),
        "full": dict(normaliser="supervised"),
    }.items():
        config = dataclasses.replace(LOSS, supervise="one_frame", **changes)
        ways[name] = Validation(
            abstract_model(model)[0],
            config,
            parts,
            make_mesh(MeshConfig(data=1)),
            shape=longer,
            clips=4,
            batch_size=4,
        )(params)
    assert ways["cut"] == ways["full"]


def test_large_clips_are_encoded_in_pieces(model, parts, monkeypatch):
    whole = validation(model, parts, clips=4)._batches[0]
    monkeypatch.setattr(
        batches, "ENCODED_AT_ONCE", 2 * SHAPE.num_frames * SHAPE.height * SHAPE.width
    )
    calls, encode = [], batches.encode
    monkeypatch.setattr(
        batches,
        "encode",
        lambda tokenizer, video: calls.append(len(video)) or encode(tokenizer, video),
    )
    pieces = validation(model, parts, clips=4)._batches[0]
    assert calls == [2, 2]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, pieces)

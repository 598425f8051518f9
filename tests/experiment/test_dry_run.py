"""The plan of a run: exact where it says so, an estimate within bounds elsewhere, and nothing
allocated or written."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests.helpers.tiny_run import load_config, tiny, write_clip
from videomar_jax.data.records import PreparedClip, to_record, write_records
from videomar_jax.data.sources import ClipShape
from videomar_jax.experiment.config import Experiment
from videomar_jax.experiment.dry_run import activation_bytes, dry_run, plan
from videomar_jax.models.config import ModelConfig
from videomar_jax.models.params import abstract_model
from videomar_jax.training.config import LossConfig
from videomar_jax.training.draws import Batch
from videomar_jax.training.optimizer import make_optimizer
from videomar_jax.training.state import init_state
from videomar_jax.training.step import make_train_step

POD = dict(data=1, fsdp=64, tensor=2, context=2)


def stage3(**mesh):
    return Experiment.from_config(load_config("stage3", mesh=mesh, data=dict(path="clips")))


def test_the_paper_model_on_256_devices_without_them():
    planned = plan(stage3(**POD), 256)
    assert planned.parameters == 1_383_155_232
    assert planned.mesh == POD
    # parameters, average and two moments in float32, cut 128 times but for small ones
    assert 16 * planned.parameters / 128 < planned.state < 1.1 * 16 * planned.parameters / 128
    (videos,) = [s for s in planned.steps if s.shape.num_frames == 49 and s.shape.width == 768]
    assert videos.latents == (7, 30, 48)
    assert videos.tokens == videos.shape.batch_size * 7 * 30 * 48
    assert "1,383,155,232" in str(planned) and "predicted peak per device" in str(planned)


def test_memory_falls_with_devices():
    small, large = (plan(stage3(data=1, fsdp=-1), devices) for devices in (8, 64))
    assert large.state < small.state / 7
    assert large.device_bytes() < small.device_bytes() / 4


@pytest.mark.parametrize(
    ("mesh", "devices", "message"),
    [
        (dict(data=1, fsdp=256), 256, "batch_size 64 is not a multiple"),
        (dict(data=1, fsdp=2, tensor=5), 10, "num_heads 24 is not a multiple of mesh.tensor 5"),
        (dict(data=1, fsdp=2, context=4), 8, "30 token rows cannot be spread"),
        (dict(data=3, fsdp=-1), 8, "does not fit 8 devices"),
    ],
)
def test_what_does_not_divide_is_reported(mesh, devices, message):
    with pytest.raises(ValueError, match=message):
        plan(stage3(**mesh), devices)


def test_activations_are_estimated_within_a_factor_of_two_of_what_xla_allocates():
    model = ModelConfig(
        latent_channels=4,
        width=128,
        depth=6,
        num_heads=4,
        text_tokens=4,
        text_width=16,
        head="flow",
        head_width=128,
        remat="full",
    )
    recipe = dataclasses.replace(
        Experiment.from_config(tiny()).recipe, model=model, loss=LossConfig(supervise="all_frames")
    )
    optimizer = make_optimizer(recipe.optimizer, lambda step: 1e-3)
    state = jax.eval_shape(lambda: init_state(model, optimizer, jax.random.key(0)))
    arrays = (
        np.zeros((4, 4, 8, 8, 4), np.float32),
        np.zeros((4, 4, 16), np.float32),
        np.ones((4, 4), bool),
    )
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), Batch(*arrays))
    update = make_train_step(abstract_model(model)[0], optimizer, recipe.loss, recipe.optimizer)
    compiled = update.lower(state, batch, jax.eval_shape(lambda: jax.random.key(0))).compile()
    gradients = sum(4 * leaf.size for leaf in jax.tree.leaves(state.params))
    allocated = compiled.memory_analysis().temp_size_in_bytes - gradients
    estimated = activation_bytes(recipe, 4, 4, 64, dict(data=1, fsdp=1, tensor=1, context=1))
    assert 0.5 < estimated / allocated < 2, (
        f"estimated {estimated / 1e6:.1f} MB, allocated {allocated / 1e6:.1f} MB"
    )


def test_a_dry_run_reads_a_batch_and_writes_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    dry_run(Experiment.from_config(tiny()), 1)
    assert "predicted peak per device" in caplog.text and "(4 clips) read" in caplog.text
    assert not list(tmp_path.iterdir())


def test_a_dry_run_reads_the_clips_that_fit(tmp_path, caplog):
    """As training does: of a folder with clips shorter than a stage, or all nearest to one of its
    sizes."""
    caplog.set_level("INFO")
    for name, count in (("a", 40), ("b", 40), ("c", 4), ("d", 4)):
        write_clip(tmp_path / f"{name}.mp4", count, size=(48, 32))
    entry = dict(num_frames=5, sizes=((16, 24), (24, 16)), batch_size=2, weight=1.0)
    rows = (dict(name="wide", mix=(entry,), steps=4, learning_rate=1e-3),)
    dry_run(
        Experiment.from_config(tiny(data=dict(kind="videos", path=str(tmp_path)), curriculum=rows)),
        1,
    )
    assert (
        "wide: a batch of one device (2 clips) read, 5 x 24 x 16, which 2 of the clips are for"
        in caplog.text
    )


def prepared(folder, shapes, spatial_stride=4):
    """Clips as `prepare` writes them, of 1 + 2 k frames each, two of every shape."""
    entries = []
    for number, shape in enumerate(shapes):
        grid = (
            1 + shape.num_frames // 2,
            shape.height // spatial_stride,
            shape.width // spatial_stride,
            16,
        )
        clip = PreparedClip(
            latents=np.zeros(grid, np.float16),
            text=None,
            text_mask=None,
            caption="",
            file="a.mp4",
            start=0.0,
            fps=12.0,
            shape=shape,
            clip=0,
        )
        written = write_records(folder / f"clips-{number}", [to_record(clip)] * 2)
        entries.append({"file": f"clips-{number}", "split": "train", **vars(shape), **written})
    manifest = {
        "format": "videomar_jax prepared clips",
        "version": 1,
        "fps": 12.0,
        "dtype": "float16",
        "shards": entries,
        "tokenizer": {"temporal_stride": 2, "spatial_stride": spatial_stride},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_dry_run_on_prepared_clips_of_several_sizes(tmp_path, caplog):
    caplog.set_level("INFO")
    made = Experiment.from_config(tiny(data=dict(kind="shards", path=str(tmp_path))))
    with pytest.raises(
        ValueError,
        match=f"strides are not known yet: {tmp_path} must be a folder of prepared clips",
    ):
        plan(made, 1)
    prepared(
        tmp_path,
        [
            ClipShape(num_frames=3, height=16, width=16),
            ClipShape(num_frames=5, height=24, width=24),
        ],
    )
    made = Experiment.from_config(tiny(data=dict(kind="shards", path=str(tmp_path))))
    assert made.strides() == (2, 4)
    planned = dry_run(made, 1)
    assert [step.latents for step in planned.steps] == [(2, 4, 4), (3, 6, 6)]
    assert "3 x 16 x 16, which 2" in caplog.text and "5 x 24 x 24, which 2" in caplog.text
    prepared(tmp_path, [ClipShape(num_frames=5, height=24, width=24)], spatial_stride=16)
    with pytest.raises(
        ValueError, match="Stage '24px_5f': height 24 is not a multiple of the spatial stride 16"
    ):
        Experiment.from_config(tiny(data=dict(kind="shards", path=str(tmp_path))))

"""The model that comes with the package is there, small, and good at what it was trained for."""

import numpy as np
import pytest

import videomar_jax
from tests.helpers.paths import ROOT
from videomar_jax.checks import UserError
from videomar_jax.data.scene_objects import possible_actions
from videomar_jax.data.scenes import Scenes
from videomar_jax.data.sources import ClipShape
from videomar_jax.evaluation.acting import acting
from videomar_jax.evaluation.metrics import METRICS
from videomar_jax.experiment.scene_cases import draw_known
from videomar_jax.inference.pipeline import VideoMARPipeline
from videomar_jax.pretrained.packed import WEIGHTS
from videomar_jax.pretrained.shipped import SHIPPED, shipped

MEGABYTES = 10


def changed_psnr(made, truth):
    metric = METRICS["changed_psnr"]
    tally = metric.tally(made, truth, given=1)
    return metric.score(tally.amount.sum() / tally.weight.sum())


@pytest.mark.parametrize("name", SHIPPED)
def test_with_tokenizer_and_text_encoder_it_is_small(name):
    size = sum(file.stat().st_size for file in shipped(name).rglob("*") if file.is_file())
    assert size < MEGABYTES * 1e6, f"{name} takes {size / 1e6:.2f} MB"


def test_a_package_holds_its_files():
    # Globs of setuptools, which `pip install` follows.
    settings = (ROOT / "pyproject.toml").read_text()
    assert '"assets/**/*"' in settings


def test_its_videos_follow_their_captions():
    pipe = VideoMARPipeline.from_pretrained("scenes")
    bundle = pipe.bundle
    shape = ClipShape(num_frames=9, height=bundle.height, width=bundle.width)
    source = Scenes(seed=20, length=8, split="test", unit=64)
    scenes = [source.scene(index, shape) for index in range(len(source))]
    drawn = [draw_known(scene, possible_actions(scene), shape, unit=64) for scene in scenes]
    truth = np.stack([video for video, _ in drawn])
    videos = pipe(
        list(truth[:, 0]),
        [scene.caption() for scene in scenes],
        num_frames=shape.num_frames,
        batch_size=len(scenes),
    )
    made = np.stack([video.frames for video in videos])
    still = np.repeat(truth[:, :1], shape.num_frames, axis=1)
    assert changed_psnr(made, truth) > changed_psnr(still, truth) + 4
    scores = acting(made, truth, [known for _, known in drawn])
    assert scores["object_there"] > 0.9 and scores["place_error"] < 2, scores


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"'forests'.*'scenes'"):
        shipped("forests")
    monkeypatch.setattr(videomar_jax, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(UserError, match=r"model\.json is missing: install"):
        shipped("scenes")
    (tmp_path / "assets" / "scenes" / "model").mkdir(parents=True)
    (tmp_path / "assets" / "scenes" / "model" / "model.json").write_text("{}")
    with pytest.raises(UserError, match=f"{WEIGHTS} is missing"):
        shipped("scenes")

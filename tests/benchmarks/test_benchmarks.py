"""The benchmarks run, count what they say, and overwrite nothing."""

import importlib.util
import json
import math
import types

import numpy as np
import pytest

from tests.helpers.paths import ROOT
from videomar_jax.data.scenes import Scenes
from videomar_jax.data.sources import ClipShape
from videomar_jax.models.config import PRESETS
from videomar_jax.models.flops import train_step_flops
from videomar_jax.parallel.config import MeshConfig
from videomar_jax.training.config import LossConfig

BENCHMARKS = ROOT / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_training_step_is_measured_at_every_length_of_its_clips():
    bench = load("train_step")
    loss = LossConfig(truncate=True, draws_per_token=2)
    case = bench.Case(model="tiny", shape=(3, 2, 3), batch=2, loss=loss, config=PRESETS["tiny"])
    row = bench.measure(case, 2, MeshConfig(data=1))
    assert case.lengths() == [2, 3] and [len(seconds) for seconds in row["steps"]] == [2, 2]
    lengths = [
        train_step_flops(
            PRESETS["tiny"],
            supervise="one_frame",
            truncate=False,
            draws_per_token=2,
            batch=2,
            frames=length,
            tokens=6,
        )
        for length in (2, 3)
    ]
    assert row["flops"] == pytest.approx(sum(lengths) / 2)
    assert math.isclose(row["tokens_per_second"] * row["step_seconds"], 2 * 6 * 2.5)
    assert math.isclose(row["seconds_per_supervised_frame"] * 2, row["step_seconds"])
    assert row["planned_bytes"] > 16 * row["parameters"]
    assert len(bench.describe(row, 1e12)) == len(bench.HEADER)


def test_a_measurement_is_never_overwritten(tmp_path):
    write = load("measuring").write_report
    write({"steps": []}, str(tmp_path / "a" / "x.json"), "any")
    with pytest.raises(FileExistsError):
        write({"steps": [1]}, str(tmp_path / "a" / "x.json"), "any")
    assert json.loads((tmp_path / "a" / "x.json").read_text()) == {"steps": []}


def test_ctrl_c_ends_with_a_line_and_the_usual_status(capsys):
    run_command = load("measuring").run_command

    def interrupted():
        raise KeyboardInterrupt

    for resumes in (False, True):
        with pytest.raises(SystemExit) as ended:
            run_command(interrupted, resumes=resumes)
        assert ended.value.code == 130
        said = capsys.readouterr().err
        assert "Interrupted" in said and ("the same command continues" in said) == resumes


def test_the_input_pipeline_is_measured(monkeypatch):
    bench = load("train_step")
    monkeypatch.setitem(bench.SHAPES, "tiny", ["2x4x4"])
    monkeypatch.setitem(bench.BATCHES, "2x4x4", 2)
    found = bench.input_rate("tiny", 1)
    assert (
        found["clip"] == dict(num_frames=3, height=16, width=16) and found["clips_per_second"] > 0
    )


def test_longer_clips_are_scored_quarter_by_quarter():
    bench = load("longer")
    random = np.random.default_rng(0)
    # A bright bar walks to the right over a still, dim ground.
    truth = np.broadcast_to(random.integers(40, 60, (2, 1, 8, 24, 3)), (2, 21, 8, 24, 3)).copy()
    for frame in range(21):
        truth[:, frame, :, frame : frame + 3] = 200
    held = bench.Held(truth.astype(np.uint8), ["", ""])
    perfect = bench.score(held.video.copy(), held, given=5)
    assert perfect["mean"] == perfect["contrast"] == perfect["motion"] == 1
    assert len(perfect["changed"]) == bench.QUARTERS and min(perfect["changed"]) > 90
    still = held.video.copy()
    still[:, 5:] = still[:, 4:5]
    still = bench.score(still, held, given=5)
    assert still["changed"] == still["repeated"] and still["motion"] == 0
    faded = held.video.copy()
    faded[:, -4:] //= 2
    faded = bench.score(faded, held, given=5)
    assert faded["changed"][:3] == perfect["changed"][:3]
    assert faded["changed"][3] < still["changed"][3] + 10
    assert 0.45 < faded["mean"] < 0.5 and 0.45 < faded["contrast"] < 0.55


def test_open_scenes_are_scored_by_side_and_by_the_best_seed():
    bench = load("open_scenes")
    shape = ClipShape(num_frames=5, height=32, width=32)
    source = Scenes(seed=0, length=400, split="test")
    scenes = bench.open_scenes(source, shape, 3)
    assert all(" left" not in scene.caption + " right" for scene in scenes)
    told = bench.told_clips(source, shape, 4)
    turns = iter(range(1000))

    def both_ways(given, prompts, frames):
        """The sides in turn."""
        return np.stack([scenes[i // 4].ways[next(turns) % 2] for i in range(len(given))])

    def one_way(given, prompts, frames):
        return np.stack([scenes[i // 4].ways[0] for i in range(len(given))])

    def still(given, prompts, frames):
        return np.repeat(given, frames, axis=1)

    perfect = bench.score_told(lambda *_: told.video.copy(), told)
    assert perfect == {"acts": 1, "follows": 1, "there": 1, "changed": 100}
    assert bench.score_told(still, told)["follows"] < 1
    spread, videos = bench.score_open(both_ways, scenes, seeds=4)
    assert spread["sides"] == spread["whole"] == 1 and spread["best"] == 100
    assert spread["over_mean"] > 20 and [len(group) for group in videos] == [4, 4, 4]
    assert bench.score_open(one_way, scenes, seeds=4)[0]["sides"] == 0
    assert bench.score_open(still, scenes, seeds=4)[0]["over_mean"] == 0
    assert bench.fair_entropy(1) == 0 and bench.fair_entropy(2) == 0.5
    assert 0.9 < bench.fair_entropy(8) < 0.91


def test_a_score_that_no_clip_can_have_is_left_out():
    bench = load("told_scenes")
    shape = ClipShape(num_frames=5, height=32, width=32)
    told = bench.told_clips(Scenes(seed=0, length=400, split="test"), shape, 4)
    still = np.repeat(told.video[:, :1], 5, axis=1)
    unknown = [facts._replace(other_actions=(), other_speeds=()) for facts in told.known]
    scores = bench.score_videos(still, told._replace(video=still, known=unknown))
    assert scores.keys() == {"there"}
    assert bench.score_videos(still, told).keys() == {"acts", "follows", "there", "changed"}


def test_longer_and_larger_scenes_are_scored():
    bench = load("larger_scenes")
    bundle = types.SimpleNamespace(
        num_frames=5,
        height=32,
        width=32,
        tokenizer=types.SimpleNamespace(temporal_stride=2, spatial_stride=8),
        config=types.SimpleNamespace(patch_size=1),
    )
    cases = bench.beyond_training(types.SimpleNamespace(bundle=bundle), 3, 0)
    assert [case.reference.shape for case in cases] == [(3, 17, 32, 32, 3), (3, 5, 48, 48, 3)]
    for case in cases:
        perfect = bench.score(case.reference.copy(), case)
        assert perfect["object_there"] == perfect["mean"] == perfect["contrast"] == 1
        assert bench.cells(perfect)[:3] == ["100% (100%)", "0.0 (0.0)", "100%"]
        dark = bench.score(case.reference // 2, case)
        assert dark["object_there"] < 0.5 and 0.45 < dark["mean"] < 0.51
        gone = bench.score(np.zeros_like(case.reference), case)
        assert "-" in bench.cells(gone)[1]

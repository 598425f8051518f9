"""The ablation as a whole: a tiny one runs, is interrupted and resumed, and says what is wrong."""

import dataclasses
import functools
import json
import shutil
import types

import jax
import numpy as np
import pytest

from benchmarks import ablation, ablation_results, ablation_variants
from tests.benchmarks.test_benchmarks import load
from tests.helpers.paths import ROOT
from videomar_jax.checks import UserError
from videomar_jax.evaluation.fvd import Moments
from videomar_jax.models.params import abstract_model, count_params
from videomar_jax.training.loss import next_frame_loss

TINY = dict(
    latent_channels=4,
    width=16,
    depth=1,
    num_heads=2,
    head_width=16,
    head_depth=1,
    rope_split=None,
    unroll=1,
)
STUDY = ROOT / "docs" / "studies" / "ablation.md"
FLAGS = ["--steps=2", "--batch=2", "--clips=2", "--frames=9", "--seeds=1"]


@pytest.fixture(scope="module")
def tiny():
    """The command with a tiny model, which makes the same clips and tokenizer once only."""
    with pytest.MonkeyPatch.context() as patch:
        model = dataclasses.replace(ablation_variants.MODEL, **TINY)
        patch.setattr(ablation_variants, "MODEL", model)
        patch.setattr(ablation_variants, "FITTED_CLIPS", 10)
        patch.setattr(ablation, "make_world", functools.cache(ablation_variants.make_world))
        yield patch


def run(folder, *flags):
    ablation.main([*FLAGS, f"--workdir={folder}", *map(str, flags)])


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """An ablation that was interrupted in its third training, and how often it trained."""
    folder = tmp_path_factory.mktemp("an ablation") / "ünd so"
    trained = []
    train = ablation.train

    def interrupted(name, *rest):
        trained.append(name)
        if trained == ["none", "next_frame", "causal"]:
            raise KeyboardInterrupt
        return train(name, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(folder)
        assert sorted(path.name for path in folder.glob("*-0.json")) == [
            "next_frame-0.json",
            "none-0.json",
        ]
        run(folder, "--out", folder.parent / "report.json")
    return folder, trained


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "copy")
    return tmp_path / "copy"


def refuse(*_):
    raise AssertionError("there is nothing to train")


def test_what_is_finished_is_not_trained_again(finished):
    folder, trained = finished
    assert trained == ["none", "next_frame", "causal", "causal", "all_frames"]
    for name in ablation.VARIANTS:
        videos = np.load(folder / f"{name}-0.npy")
        assert videos.shape == (2, 9, 32, 32, 3) and videos.dtype == np.uint8
        result = read(folder, f"{name}-0")
        assert result["seconds"] > 0 and 0 <= result["scores"]["there"] <= 1
    assert not list(folder.glob(".*")), "neither lock nor leftovers"


def test_the_report_has_the_papers_figures_beside_ours(finished):
    report = json.loads((finished[0].parent / "report.json").read_text())
    assert report["paper"] == {
        "none": 78.81,
        "next_frame": 79.76,
        "causal": 80.72,
        "temperature": 82.56,
        "all_frames": None,
    }
    assert {result["variant"] for result in report["results"]} == set(ablation.VARIANTS)
    assert report["settings"]["steps"] == 2 and report["i3d"] is None
    ceiling, floor = (
        report["baselines"][name] for name in ("tokenizer alone", "first frame repeated")
    )
    assert ceiling["changed"] > floor["changed"] + 1


def test_the_progressive_temperature_is_a_matter_of_sampling(finished):
    """The same model: the first new latent frame has temperature 1 in both, the later ones not."""
    causal, temperature = (
        np.load(finished[0] / f"{name}-0.npy") for name in ("causal", "temperature")
    )
    np.testing.assert_array_equal(causal[:, :3], temperature[:, :3])
    assert (causal[:, 3:] != temperature[:, 3:]).any()
    first, second = (read(finished[0], f"{name}-0") for name in ("causal", "temperature"))
    assert first["seconds"] == second["seconds"]


def test_a_training_that_is_repeated_gives_the_same(finished, copy, monkeypatch, capsys):
    (copy / "next_frame-0.json").unlink()
    trained = []
    train = ablation.train
    monkeypatch.setattr(ablation, "train", lambda *args: trained.append(args[0]) or train(*args))
    run(copy, "--out", copy.parent / "out" / "report.json")
    assert trained == ["next_frame"]
    again, before = (read(folder, "next_frame-0") for folder in (copy, finished[0]))
    assert again["scores"] == before["scores"]
    np.testing.assert_array_equal(
        *(np.load(folder / "next_frame-0.npy") for folder in (copy, finished[0]))
    )
    printed = capsys.readouterr().out
    assert "training 1 of 1: next_frame, seed 0" in printed
    assert "next_frame, seed 0: step 1, loss" in printed and "min of training left" in printed
    assert "| + causal mask | 80.72 | - | " in printed and "No FVD" in printed


class Colours:
    """In place of I3D: the mean colour of each frame."""

    def __init__(self, path):
        self.digest, self.asked = path.name, 0

    def moments(self, clips):
        self.asked += 1
        return Moments.of(clips.mean(axis=(2, 3)).reshape(len(clips), -1))


def test_fvd_is_added_to_what_is_finished(copy, monkeypatch, capsys):
    monkeypatch.setattr(ablation, "train", refuse)
    networks = []

    def network(path):
        networks.append(Colours(path))
        return networks[-1]

    monkeypatch.setattr(ablation, "Network", network)
    for number, asked in ((1, 1 + 5 + 1 + 2), (2, 1 + 2)):
        run(copy, "--i3d=weights", f"--out={copy.parent / f'{number}.json'}")
        assert networks[-1].asked == asked, "distances that are there are not measured again"
    result = read(copy, "causal-0")
    assert result["fvd"] > 0 and result["i3d"] == "weights"
    printed = capsys.readouterr().out
    assert "FVD 5 of 5" in printed and f"| + causal mask | 80.72 | {result['fvd']:.0f} |" in printed
    run(copy, "--i3d=others", f"--out={copy.parent / '3.json'}")
    assert read(copy, "causal-0")["i3d"] == "others"
    run(copy, f"--out={copy.parent / '4.json'}")
    assert "| + causal mask | 80.72 | - |" in capsys.readouterr().out.split("FVD 5 of 5")[-1]


# ---- what is wrong


def test_other_settings_need_another_folder(copy, monkeypatch):
    monkeypatch.setattr(ablation, "make_world", refuse)
    with pytest.raises(UserError, match=r"other settings \(rate, steps\); choose another --work"):
        run(copy, "--steps=3", "--rate=0.02")
    sampling = dataclasses.replace(ablation_variants.SAMPLING, steps=2)
    monkeypatch.setattr(ablation_variants, "SAMPLING", sampling)
    with pytest.raises(UserError, match=r"other settings \(sampling\)"):
        run(copy)
    monkeypatch.setattr(ablation_variants, "OPEN_CAPTIONS", 0.5)
    with pytest.raises(UserError, match=r"other settings \(open_captions, sampling\)"):
        run(copy)


def test_a_folder_with_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "make_world", refuse)
    (tmp_path / "holiday.txt").write_text("sun")
    with pytest.raises(UserError, match="not empty and holds no ablation"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.txt"]


DAMAGE = {
    "cut": lambda text: text[:40],
    "not finite": lambda text: text.replace('"seconds": ', '"seconds": NaN, "x": '),
    "a list": lambda text: "[]",
    "of another variant": lambda text: text.replace('"causal"', '"none"'),
    "a score of NaN": lambda text: text.replace('"there": ', '"there": NaN, "x": '),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_result_is_named_before_the_work(copy, monkeypatch, kind):
    monkeypatch.setattr(ablation, "make_world", refuse)
    file = copy / "causal-0.json"
    before = file.read_text()
    file.write_text(DAMAGE[kind](before))
    assert file.read_text() != before
    with pytest.raises(UserError, match=r"causal-0\.json .*made again"):
        run(copy)


@pytest.mark.parametrize("damage", ["missing", "cut", "of another size"])
def test_damaged_videos_are_named(copy, damage):
    file = copy / "causal-0.npy"
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        np.save(file, np.zeros((2, 9, 16, 16, 3), np.uint8))
    settings = read(copy, "settings")
    results = ablation_results.Results(copy, settings)
    with pytest.raises(UserError, match=r"causal-0\.npy .*remove .*causal-0\.json"):
        results.videos("causal", 0, (2, 9, 32, 32, 3))


BAD = {
    "--steps=0": "--steps must be at least 1, not 0",
    "--batch=-1": "--batch must be at least 1",
    "--clips=0": "--clips must be at least 1",
    "--seeds=0": "--seeds must be at least 1",
    "--rate=0": "--rate must be positive",
    "--rate=nan": "--rate must be a finite number",
    "--frames=8": "--frames must be 1 \\+ 2 n",
    "--frames=1": "--frames must be 1 \\+ 2 n",
    "--side=30": "--side must be a multiple of 8 and at least 32",
    "--side=28": "--side must be a multiple of 8 and at least 32",
    "--data_seed=-1": "--data_seed must not be negative",
    "--workdir=": "--workdir: '' names no file or folder",
    "--out=": "--out: '' names no file or folder",
    "--i3d=": "--i3d: '' names no file or folder",
    "--i3d=missing.pt": "missing.pt",
    "--frames=5 --i3d=missing.pt": "--i3d needs clips of at least 9 frames",
    "--clips=1 --i3d=missing.pt": "--clips .* must be at least 2",
}


@pytest.mark.parametrize("flags", BAD)
def test_a_bad_flag_is_named_before_the_work(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablation, "make_world", refuse)
    with pytest.raises((UserError, OSError), match=BAD[flags]):
        ablation.main(["--workdir=new", *flags.split()])
    assert not list(tmp_path.iterdir())


def test_a_report_is_never_overwritten(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "make_world", refuse)
    report = tmp_path / "report.json"
    report.write_text("mine")
    with pytest.raises(UserError, match=r"--out=.*report\.json exists already"):
        run(tmp_path / "new", f"--out={report}")
    assert report.read_text() == "mine"


def test_a_loss_that_is_not_finite_ends_the_training(tiny, monkeypatch):
    settings = ablation_variants.Settings(steps=2, batch=2, clips=2)
    world = ablation.make_world(settings)

    def broken(*args):
        loss, metrics = next_frame_loss(*args)
        return loss, metrics | {"loss": loss * float("nan")}

    training = ablation_variants.TRAININGS["causal"]._replace(function=broken)
    monkeypatch.setitem(ablation_variants.TRAININGS, "causal", training)
    progress = ablation_variants.Progress(2)
    with pytest.raises(UserError, match="causal, seed 4: the loss of step 1 is nan; lower the"):
        ablation_variants.train("causal", 4, settings, world, progress)


# ---- the table


def test_means_and_spreads_of_the_table():
    result = ablation_results.Result
    results = [
        result(variant="none", seed=0, seconds=10.0, scores={"changed": 20.0}, fvd=100.0),
        result(variant="none", seed=1, seconds=20.0, scores={"changed": 22.0, "acts": 0.5}),
    ]
    lines = list(ablation.table(ablation.rows_of(results), {"floor": {"changed": 11.0}}))
    assert lines[2] == "| none of them | 78.81 | 100 | 21.00 ± 1.41 | - | 50.0% | - | 15 ± 7 |"
    assert lines[3] == "| + next-frame loss | 79.76 | - | - | - | - | - | - |"
    assert lines[-1] == "| floor | - | - | 11.00 | - | - | - | - |"
    assert {line.count("|") for line in lines} == {9}


def test_the_trained_variants_use_the_packages_loss():
    for name in ("causal", "all_frames"):
        assert ablation_variants.TRAININGS[name].function is next_frame_loss
    variants = ablation_variants.VARIANTS
    assert variants["temperature"].training == variants["causal"].training == "causal"


def test_all_trainings_start_alike_and_see_the_same_clips(tiny, monkeypatch):
    """For one seed; another seed has other parameters and other clips."""
    seen = []

    class Recorder:
        """In place of a training step: keeps what it is given, and learns nothing."""

        def lower(self, *_):
            return self

        def compile(self):
            return self

        def __call__(self, state, batch, key):
            parameters = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)])
            seen[-1].append((parameters, np.asarray(batch.latents), jax.random.key_data(key)))
            return state, {"loss": 0.5}

    monkeypatch.setattr(ablation_variants, "make_train_step", lambda *_, **__: Recorder())
    settings = ablation_variants.Settings(steps=2, batch=2, clips=2)
    world = ablation.make_world(settings)
    for name, seed in (("none", 0), ("causal", 0), ("all_frames", 0), ("causal", 1)):
        seen.append([])
        progress = ablation_variants.Progress(2)
        ablation_variants.train(name, seed, settings, world, progress)
    assert [len(steps) for steps in seen] == [2, 2, 2, 2]
    for other in seen[1:3]:
        jax.tree.map(np.testing.assert_array_equal, other, seen[0])
    for own, other in zip(seen[3][0], seen[0][0], strict=True):
        assert (own != other).any()


def test_the_size_of_the_model_is_the_one_in_the_study():
    _, params = abstract_model(load("ablation_variants").MODEL)
    assert f"{count_params(params) / 1e6:.1f} M parameters" in STUDY.read_text()


def test_progress_says_how_long_it_will_take(capsys, monkeypatch):
    now = iter([0.0, 1.0, 20.0])
    clock = types.SimpleNamespace(monotonic=lambda: next(now))
    monkeypatch.setattr(ablation_variants, "time", clock)
    progress = ablation_variants.Progress(200)
    for step in (1, 2, 3):
        progress.count("causal, seed 0", step, 0.5, 60.0)
    assert capsys.readouterr().out.splitlines() == [
        "causal, seed 0: step 1, loss 0.500; about 199 min of training left",
        "causal, seed 0: step 3, loss 0.500; about 197 min of training left",
    ]


def test_it_runs_as_a_module():
    assert load("ablation").HEADER[0] == "variant"

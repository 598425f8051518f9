"""FVD under disturbances, and I3D beside PyTorch: what is measured without the network."""

import json

import numpy as np
import pytest

from benchmarks import fvd_disturbances as bench
from benchmarks import i3d as beside_torch
from tests.golden import record_i3d
from tests.helpers import i3d_files
from videomar_jax.checks import UserError
from videomar_jax.evaluation import i3d_weights
from videomar_jax.evaluation.fvd import Moments
from videomar_jax.io.media import write_mp4

RNG = np.random.default_rng(0)


def clip(frames=8):
    moving = RNG.integers(60, 190, (frames, 16, 20, 3), dtype=np.uint8)
    moving[:, 0, 0, 0] = 10 * np.arange(frames)  # the number of the frame
    return moving


@pytest.mark.parametrize("name", bench.DISTURBANCES)
def test_a_disturbance_grows_with_its_strength_and_is_repeatable(name):
    disturb, strengths = bench.DISTURBANCES[name]
    whole, changes = clip(16), []
    for strength in strengths:
        first, again = (disturb(whole, strength, np.random.default_rng(1)) for _ in range(2))
        assert first.shape == whole.shape and first.dtype == np.uint8
        np.testing.assert_array_equal(first, again)
        changes.append(np.abs(first.astype(int) - whole).mean())
    assert 0 < changes[0] and list(strengths) == sorted(strengths)
    if name in ("blur", "noise"):
        assert changes == sorted(changes)


def test_frames_are_held_and_shuffled_in_groups():
    numbers = lambda video: video[:, 0, 0, 0] // 10  # noqa: E731
    whole = clip(9)
    held = numbers(bench.frozen(whole, 4, RNG))
    np.testing.assert_array_equal(held, [0, 0, 0, 0, 4, 4, 4, 4, 8])
    mixed = numbers(bench.shuffled(whole, 4, RNG))
    assert sorted(mixed[:4]) == [0, 1, 2, 3] and sorted(mixed[4:8]) == [4, 5, 6, 7]
    assert mixed[8] == 8


def test_a_distance_that_does_not_rise_is_an_error():
    bench.check_rising({"blur": [1.0, 2.0, 2.5]})
    with pytest.raises(UserError, match=r"does not rise with blur: 2\.00, then 1\.50"):
        bench.check_rising({"noise": [1, 2], "blur": [2.0, 1.5]})
    with pytest.raises(UserError, match=r"blur: 0\.00, then 0\.00"):
        bench.check_rising({"blur": [0.0, 1.5]})
    with pytest.raises(UserError, match=r"holds 3 clips .* and 4 are asked for"):
        bench.chosen_windows(3, 4)
    assert bench.chosen_windows(10, 4) == [0, 2, 5, 7]


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Runs the benchmark on a few clips with means of pixels as features."""
    for number in range(5):
        video = np.empty((9, 32, 32, 3), np.uint8)
        video[:] = RNG.integers(0, 256, (9, 8, 8, 3)).repeat(4, axis=1).repeat(4, axis=2)
        write_mp4(tmp_path / "clips of mine" / f"{number}.mp4", video, 25)
    (tmp_path / "i3d.ckpt").write_bytes(b"weights")
    counted = []

    def features(self, clips):
        counted.append(len(clips))
        small = clips[:, :8, ::8, ::8, 0].astype(float)
        changes = np.diff(small, axis=1, prepend=small[:, -1:])
        both = np.concatenate([small, changes**2 / 50], axis=1).reshape(len(clips), -1)
        return both[:, np.arange(400) % both.shape[1]]

    monkeypatch.setattr(bench, "load_i3d", lambda path: {})
    monkeypatch.setattr(bench.I3D, "features", features)

    def run(*more):
        place = ["--clips", str(tmp_path / "clips of mine"), "--i3d", str(tmp_path / "i3d.ckpt")]
        cache = ["--cache", str(tmp_path / "kept")]
        bench.main([*place, *cache, "--windows=4", "--frames=9", "--size=32", *more])

    return run, counted, tmp_path


def test_what_was_measured_is_not_measured_again(measured, capsys, monkeypatch):
    run, counted, folder = measured
    monkeypatch.setattr(bench, "check_rising", lambda distances: None)
    run("--out", str(folder / "a.json"))
    table = capsys.readouterr().out
    assert table.count("| shuffled |") == 3 and "too few to compare" in table
    sets = 1 + sum(len(strengths) for _, strengths in bench.DISTURBANCES.values())
    assert sum(counted) == 4 * sets
    run("--out", str(folder / "b.json"))
    assert sum(counted) == 4 * sets, "the second run reads the moments"
    first, second = (json.loads((folder / f"{name}.json").read_text()) for name in "ab")
    assert first == second and min(min(values) for values in first["fvd"].values()) > 0
    with pytest.raises(UserError, match="features of other clips or settings"):
        run("--out", str(folder / "c.json"), "--windows=3")


def test_an_interrupted_measurement_is_continued(measured, monkeypatch):
    run, counted, folder = measured
    monkeypatch.setattr(bench, "check_rising", lambda distances: None)
    features = bench.I3D.features

    def interrupted(self, clips):
        if len(counted) == 3:
            raise KeyboardInterrupt
        return features(self, clips)

    monkeypatch.setattr(bench.I3D, "features", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("--out", str(folder / "a.json"))
    kept = sorted(path.name for path in (folder / "kept").iterdir())
    assert kept == ["blur-0.5.npz", "blur-1.npz", "settings.json", "undisturbed.npz"]
    before = (folder / "kept" / "blur-1.npz").read_bytes()
    monkeypatch.setattr(bench.I3D, "features", features)
    run("--out", str(folder / "a.json"))
    assert len(counted) == 1 + 4 * 3 and (folder / "a.json").is_file()
    assert (folder / "kept" / "blur-1.npz").read_bytes() == before
    # A file of another number of clips, and one that is cut.
    (folder / "kept" / "noise-5.npz").unlink()
    Moments.of(RNG.normal(size=(7, 400))).save(folder / "kept" / "noise-5.npz")
    with pytest.raises(UserError, match=r"noise-5\.npz is of 7 clips, not 4"):
        run("--out", str(folder / "b.json"))
    (folder / "kept" / "noise-5.npz").write_bytes(before[:100])
    with pytest.raises(UserError, match=r"noise-5\.npz does not hold"):
        run("--out", str(folder / "b.json"))


def test_the_state_for_pytorch_is_the_one_that_was_read(tmp_path):
    state = record_i3d.random_state()
    for name in state:
        if name.endswith("bn.weight"):
            state[name] = np.ones_like(state[name])
    path = i3d_files.write(tmp_path / "i3d.pt", state)
    written = beside_torch.torch_state(i3d_weights.load_i3d(path))
    assert set(written) == set(state)
    for name, array in state.items():
        np.testing.assert_array_equal(written[name], array, err_msg=name)


def test_an_interpreter_without_pytorch_is_named(tmp_path):
    with pytest.raises(UserError, match="false did not run PyTorch's network"):
        beside_torch._in_torch("false", tmp_path)

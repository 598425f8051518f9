"""Two folders of videos: what is compared, what is written, and what is refused before the work."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers.lpips_files import write_lpips
from tests.helpers.paths import ROOT
from videomar_jax.checks import UserError
from videomar_jax.data.decode import read_video
from videomar_jax.evaluation import metrics
from videomar_jax.evaluation.fvd import Moments, frechet_distance
from videomar_jax.evaluation.lpips_weights import load_lpips
from videomar_jax.evaluation.metrics import METRICS
from videomar_jax.experiment import compare_folders as module
from videomar_jax.experiment import scoring_networks
from videomar_jax.experiment.compare_folders import compare_folders
from videomar_jax.experiment.comparison_options import ComparisonOptions
from videomar_jax.io.media import write_mp4, write_webm


def write_clips(folder, count, *, seed, frames=9, size=(16, 24)):
    rng = np.random.default_rng(seed)
    for number in range(count):
        clip = np.empty((frames, *size, 3), np.uint8)
        clip[:] = rng.integers(0, 256, (frames, 1, 1, 3))
        write_mp4(folder / f"{number}.mp4", clip, 12)
    return folder


def plain_features(clips):
    """The means of a clip's frames, over and over until there are 400 numbers."""
    means = np.asarray(clips, np.float64).mean(axis=(2, 3)).reshape(len(clips), -1)
    return means[:, np.arange(400) % means.shape[1]]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Features are means of frames; reading the weights of the network is tested elsewhere."""
    monkeypatch.setattr(scoring_networks, "load_i3d", lambda path: {"path": path.read_bytes()})
    monkeypatch.setattr(module.I3D, "features", lambda self, clips: plain_features(clips))


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "i3d.ckpt").write_bytes(b"weights")
    write_clips(tmp_path / "made", 5, seed=0)
    write_clips(tmp_path / "true", 6, seed=1)
    return tmp_path


def options(folder, **changes):
    given = {
        "generated": str(folder / "made"),
        "reference": str(folder / "true"),
        "i3d": str(folder / "i3d.ckpt"),
        "few_clips": True,
    }
    return ComparisonOptions(**(given | changes))


def test_the_distance_of_all_clips_of_both_folders(folders):
    comparison = compare_folders(options(folders), folders / "report")
    result = comparison.fvd
    sides = []
    for name, count in (("made", 5), ("true", 6)):
        clips = [read_video(folders / name / f"{number}.mp4")[0] for number in range(count)]
        sides.append(Moments.of(plain_features(np.stack(clips))))
    assert result.distance == pytest.approx(frechet_distance(*sides), rel=1e-9)
    assert (result.generated, result.reference, result.few) == (5, 6, True)
    report = json.loads((folders / "report" / "report.json").read_text())
    assert report["fvd"] == result.distance and report["true_clips"] == 6
    assert len(report["i3d"]["sha256"]) == 64
    text = (folders / "report" / "report.md").read_text()
    assert f"| {result.distance:.2f} | 5 | 6 | own clips |" in text and "Too few" in text
    assert not comparison.scores and len(comparison.notes) == 1
    assert "5 of 5 generated and 6 true files have a name in common" in text
    with pytest.raises(UserError, match="already holds a report"):
        compare_folders(options(folders), folders / "report")


@pytest.fixture
def paired(tmp_path):
    """Clips in odd places; pair 0 is equal, in pair 1 something happens that is missed."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(["a b", "ünder/c.d"]):
        truth = np.full((4, 32, 48, 3), 90, np.uint8)
        truth[:, 8:24, 8:24] = rng.integers(10, 255, 3)
        truth[1:, :, 30:] = 200
        made = truth.copy()
        if number:
            made[1:] = made[0] - 3
        write_mp4(tmp_path / "true" / f"{name}.mp4", truth, 12)
        write_webm(tmp_path / "made" / f"{name}.webm", made, 12)
    return tmp_path


def test_clips_of_one_name_are_compared_in_pairs(paired):
    weights = write_lpips(paired / "weights")
    chosen = options(paired, i3d=None, few_clips=False, lpips=str(weights))
    comparison = compare_folders(chosen, paired / "report")
    scores = comparison.scores
    values = {"clips", "better_than_copy"}
    for name in (*METRICS, "lpips"):
        values |= {name, f"{name}_copy_first"}
    assert set(scores) == values and scores["clips"] == 2
    clips = {}
    for side, ending in (("true", "mp4"), ("made", "webm")):
        files = [paired / side / f"{name}.{ending}" for name in ("a b", "ünder/c.d")]
        clips[side] = np.stack([read_video(file)[0] for file in files])
    after = clips["made"][:, 1:], clips["true"][:, 1:]
    assert scores["psnr"] == pytest.approx(metrics.psnr(*after).mean())
    assert scores["lpips"] == pytest.approx(load_lpips(weights)(*after).mean(), rel=1e-5)
    assert scores["given_psnr"] == pytest.approx(
        metrics.psnr(clips["made"][:, :1], clips["true"][:, :1]).mean()
    )
    assert scores["better_than_copy"] == 0.5
    assert comparison.notes == [module.NO_FVD]
    report = json.loads((paired / "report" / "report.json").read_text())
    assert report["scores"] == scores and "fvd" not in report and report["notes"]
    assert [len(digest) for digest in report["lpips"]["files"].values()] == [64, 64]
    text = (paired / "report" / "report.md").read_text()
    assert module.NO_FVD in text and "- lpips: LPIPS" in text
    assert f"**{report['verdict']}**" in text and "repeating the last frame" in text


def test_both_are_computed_where_both_can_be(paired):
    for side in ("made", "true"):
        shutil.rmtree(paired / side)
        write_clips(paired / side, 3, seed=len(side) + ord(side[0]))
    (paired / "i3d.ckpt").write_bytes(b"weights")
    comparison = compare_folders(options(paired, given=2))
    assert comparison.fvd.generated == 3 and "psnr_copy_last" in comparison.scores
    assert comparison.notes == [module.NO_LPIPS]
    said = str(comparison)
    assert said.startswith("FVD ") and "psnr " in said and "LPIPS was not computed" in said


def test_nothing_is_left_out_in_silence(paired):
    only_pairs = options(paired, i3d=None, few_clips=False)
    assert len(compare_folders(only_pairs).notes) == 2
    with pytest.raises(UserError, match="has 4 frames, and nothing follows the 4 that were given"):
        compare_folders(dataclasses.replace(only_pairs, given=4))
    with pytest.raises(UserError, match=r"lacks alexnet-owt-7be5be79\.pth and alex\.pth"):
        compare_folders(dataclasses.replace(only_pairs, lpips=str(paired / "made")))
    (paired / "true" / "a b.mp4").rename(paired / "true" / "other.mp4")
    with pytest.raises(UserError, match=r"1 of 2 generated and 2 true .* FVD was not computed"):
        compare_folders(only_pairs)
    with pytest.raises(UserError, match=r"1 of 2 generated .*leave out --lpips"):
        compare_folders(dataclasses.replace(only_pairs, lpips=str(paired)))


def test_a_name_that_stands_for_two_files_pairs_with_none(paired):
    shutil.copy(paired / "true" / "a b.mp4", paired / "true" / "a b.mov")
    with pytest.raises(UserError, match="true holds a name twice"):
        compare_folders(options(paired, i3d=None, few_clips=False))


def shorter(folder):
    shutil.rmtree(folder / "true")
    write_clips(folder / "true", 3, seed=1, frames=10)
    return r"true/0\.mp4 has 10 frames of 16x24 and .*made/0\.mp4 9 frames of 16x24: cut and"


def of_another_size(folder):
    shutil.rmtree(folder / "true")
    write_clips(folder / "true", 3, seed=1, size=(24, 16))
    return r"true/0\.mp4 has 9 frames of 24x16 and"


def too_short(folder):
    write_clips(folder / "made" / "more", 1, seed=3, frames=8)
    return r"more/0\.mp4 has 8 frames, and FVD needs at least 9"


def repeated(folder):
    shutil.copy(folder / "made" / "1.mp4", folder / "made" / "7.mp4")
    return r"made/7\.mp4 is a copy of .*made/1\.mp4: clips are not repeated"


def unreadable(folder):
    (folder / "true" / "2.mp4").write_bytes(b"no video" * 100)
    return r"true/2\.mp4: cannot be decoded"


def empty(folder):
    shutil.rmtree(folder / "made")
    (folder / "made").mkdir()
    return r"no videos under .*made"


def missing(folder):
    shutil.rmtree(folder / "true")
    return r"video folder .*true does not exist"


@pytest.mark.parametrize(
    "spoil",
    [shorter, of_another_size, too_short, repeated, unreadable, empty, missing],
    ids=lambda function: function.__name__,
)
def test_folders_that_cannot_be_compared(spoil, folders, monkeypatch):
    says = spoil(folders)

    def compute(self, clips):
        raise AssertionError("a clip was computed")

    monkeypatch.setattr(module.I3D, "features", compute)
    with pytest.raises((UserError, FileNotFoundError), match=says):
        compare_folders(options(folders))


def test_counts_and_protocols_are_checked_first(folders):
    with pytest.raises(UserError, match="5 generated clips instead of at least 400 and 6 true"):
        compare_folders(options(folders, few_clips=False, i3d="nowhere"))
    with pytest.raises(UserError, match="has 9 frames, and the protocol 'k600' takes 16"):
        compare_folders(options(folders, protocol="k600"))
    with pytest.raises(UserError, match="compared with itself"):
        compare_folders(options(folders, reference=str(folders / "made")))


def evaluate(*arguments):
    call = [sys.executable, "-m", "videomar_jax.evaluate", *arguments]
    return subprocess.run(call, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--generated=a"], "Error: Add --reference: two folders of videos"),
        (["--generated=a", "--reference=b", "--few_clips"], "Error: --few_clips is about FVD"),
        (["--generated=a", "--checkpoint=c"], "leave out --checkpoint"),
        (["--checkpoint=c"], "Name what is scored: --config=CONFIG"),
        (["--generated=a", "--reference=b", "--i3d=c"], "video folder .*a does not exist"),
        (["--protocol=k60"], "protocol"),
    ],
    ids=str,
)
def test_the_command_says_what_is_missing(arguments, says):
    done = evaluate(*arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert re.search(says, done.stderr), done.stderr

"""Two folders of videos: what is compared, what is written, and what is refused before the work."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers.paths import ROOT
from videomar_jax.checks import UserError
from videomar_jax.data.decode import read_video
from videomar_jax.evaluation.fvd import Moments, frechet_distance
from videomar_jax.experiment import compare_folders as module
from videomar_jax.experiment.compare_folders import compare_folders
from videomar_jax.experiment.comparison_options import ComparisonOptions
from videomar_jax.io.media import write_mp4


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
    monkeypatch.setattr(module, "load_i3d", lambda path: {"path": path.read_bytes()})
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
    result = compare_folders(options(folders), folders / "report")
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
    with pytest.raises(UserError, match="already holds a report"):
        compare_folders(options(folders), folders / "report")


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
        (["--generated=a", "--reference=b"], "Error: Add --i3d: FVD takes"),
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

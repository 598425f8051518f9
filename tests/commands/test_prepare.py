"""The command: from a folder of videos to clips, killed on the way, and what it says to wrong
flags."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.helpers.paths import ROOT
from tests.helpers.tiny_run import write_clip
from videomar_jax.data.shards import LatentShards
from videomar_jax.data.sources import ClipShape
from videomar_jax.io.files import sha256
from videomar_jax.tokenizers import PCATokenizer, fingerprint, load_tokenizer

FLAGS = [
    "--text_encoder=hashed:6x4",
    "--num_frames=5",
    "--sizes=16x24,24x16",
    "--clips_per_shard=1",
    "--holdout=0.1",
    "--threads=2",
]


def start(*flags, **environ):
    call = [sys.executable, "-m", "videomar_jax.prepare", *map(str, flags)]
    return subprocess.Popen(
        call,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environ},
    )


def command(*flags):
    process = start(*flags)
    output = process.communicate(timeout=300)[0]
    return process.returncode, output


def files(output):
    return {
        path.relative_to(output).as_posix(): sha256(path)
        for path in output.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with videos and a tokenizer."""
    place = tmp_path_factory.mktemp("command")
    for seed, (name, count) in enumerate({"a.mp4": 45, "sub/b.mp4": 40, "c.mp4": 2}.items()):
        write_clip(place / "videos" / name, count, size=(32, 48), seed=seed)
        (place / "videos" / name).with_suffix(".txt").write_text(f"clip {seed}")
    clips = (
        np.random.default_rng(i).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8) for i in range(20)
    )
    PCATokenizer.fit(clips, patch=8, temporal_stride=2, channels=3).save(place / "tokenizer")
    return place


def flags_of(place, output, *more):
    return [
        f"--videos={place}/videos",
        f"--tokenizer=pca:{place}/tokenizer",
        f"--output={output}",
        *FLAGS,
        *more,
    ]


def test_a_command_that_is_killed_goes_on_and_makes_the_same_bytes(place, tmp_path):
    code, said = command(*flags_of(place, tmp_path / "whole"))
    assert code == 0, said
    assert "17 clips in 17 shards" in said and "1 rejected" in said
    assert "2 frames at 12 fps, 5 needed" in (tmp_path / "whole" / "rejected.jsonl").read_text()
    source = LatentShards(tmp_path / "whole", verify=True)
    assert len(source) == 17 and len(LatentShards(tmp_path / "whole", split="test")) == 2
    clip = source.read(0, None, ClipShape(num_frames=5, height=16, width=24))
    assert (
        clip["latents"].shape == (3, 2, 3, 3)
        and clip["text"].shape == (6, 4)
        and clip["caption"] == "clip 0"
    )
    tokenizer = load_tokenizer(tmp_path / "whole" / "model" / "tokenizer")
    assert fingerprint(tokenizer) == source.manifest["tokenizer"]["fingerprint"]

    process = start(*flags_of(place, tmp_path / "killed"))
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("clips-*.json")) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = list((tmp_path / "killed").glob("clips-*.json"))
    assert done, "it was killed before the first shard stood"
    code, said = command(*flags_of(place, tmp_path / "killed"))
    assert code == 0, said
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_wrong_flag_ends_in_one_line(place, tmp_path):
    code, said = command(*flags_of(place, tmp_path / "out", "--sizes=20x24"))
    words = (
        "5 frames at 20x24: height 20 is not a multiple of the spatial stride 8; nearest: 16 or 24"
    )
    assert code == 2 and words in said and "Traceback" not in said
    assert not list(tmp_path.rglob("*.json"))

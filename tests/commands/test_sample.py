"""The command `sample`: what it writes, what it says, and its exit codes."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np

from tests.helpers.generated import (
    draw,
    first_tile,
    make,
    pixels,
    request,
)
from tests.helpers.paths import ROOT
from videomar_jax.sampling.config import SamplingConfig


def command(*flags):
    call = [sys.executable, "-m", "videomar_jax.sample", *map(str, flags)]
    return subprocess.run(call, capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_command_meets_what_it_can(finished, tmp_path):
    draw(tmp_path / "a.png", 1), draw(tmp_path / "b.png", 2)
    lines = [
        {"image": "a.png", "prompt": "a red circle moves left"},
        {"img": "b.png"},
        {"image": "b.png", "seed": 3},
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = command(
        f"--checkpoint={finished}", f"--requests={tmp_path}/r.jsonl", f"--output={tmp_path}/out"
    )
    assert done.returncode not in (0, 2), done.stderr
    assert "1 of the requests could not be met" in done.stderr
    assert done.stderr.count("r.jsonl, line 2") == 1, "what is wrong is said once"
    assert "Traceback" not in done.stderr
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [
        f"{name}.{ending}" for name in "ab" for ending in ("gif", "json", "mp4", "png")
    ]
    for name in "ab":
        np.testing.assert_array_equal(
            first_tile(tmp_path / "out" / f"{name}.png"), pixels(tmp_path / f"{name}.png")
        )


def test_the_command_makes_a_video_again_in_its_own_formats(finished, tmp_path):
    asked = [request(draw(tmp_path / "i.png"), "v0")]
    make(asked, finished, tmp_path / "out", formats=("latents", "png"))
    record = tmp_path / "out" / "v0.json"
    done = command(f"--from_json={record}", f"--output={tmp_path / 'again'}")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == [
        "v0.json",
        "v0.npz",
        "v0.png",
    ]


def test_ctrl_c_ends_with_130_and_says_what_was_kept(tmp_path):
    code = """
from videomar_jax.checks import Interrupted
from videomar_jax.inference import jobs
from videomar_jax.commands import app
from videomar_jax import sample
def stop(*_):
    raise Interrupted("Interrupted: kept 3 of 9 frames")
jobs.run_jobs = stop
app.run(sample.main)
"""
    call = [sys.executable, "-c", code, "--checkpoint=x", "--image=a.png", f"--output={tmp_path}"]
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr.strip().splitlines()[-1]) == (
        130,
        "Interrupted: kept 3 of 9 frames",
    )


def test_what_would_change_a_video_made_again_is_refused(tmp_path):
    flags = dict(
        given_frames=3,
        seed=1,
        fit="crop",
        weights="params",
        batch_size=1,
        tensor=2,
        steps=3,
        guidance=2,
    )
    done = command(
        "--from_json=v.json",
        *(f"--{name}={value}" for name, value in flags.items()),
        f"--output={tmp_path}",
    )
    names = ", ".join(f"--{name}" for name in flags)
    assert (
        done.returncode == 2
        and f"generates the same video again: leave out {names}, which would change it"
        in done.stderr
    ), done.stderr


def test_given_frames_are_named_in_the_requests(tmp_path):
    done = command(
        "--checkpoint=x", "--requests=r.jsonl", "--given_frames=5", f"--output={tmp_path}"
    )
    assert done.returncode == 2 and "leave --given_frames out" in done.stderr


def test_a_bucket_is_no_folder(tmp_path):
    done = command("--checkpoint=x", "--image=a.png", "--output=gs://bucket/videos")
    assert (
        done.returncode == 2 and "--output: 'gs://bucket/videos' is not a local path" in done.stderr
    )


def test_every_sampling_setting_has_a_flag_and_the_home_folder_is_found(tmp_path):
    code = """
import json
from absl import flags
from videomar_jax.commands import app
from videomar_jax.inference import jobs
from videomar_jax import sample
def show(asked, options, output):
    places = [options.checkpoint, asked[0].image, output.folder]
    names = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(sample)]
    print(json.dumps([names, options.settings, *map(str, places)]))
    return []
jobs.run_jobs = show
app.run(sample.main)
"""
    given = [
        "--window=0",
        "--keep_first=false",
        "--first_frame_position=shifted",
        "--clip=1.5",  # the old name of latent_clip
        "--noclip_first",
        "--head_dtype=model",
        "--token_dtype=bfloat16",
        "--guidance_interval=0.25,1",
        "--steps",
        "7",
    ]
    places = ["--checkpoint=~/run", "--image=~/a.png", "--output=~/out"]
    done = subprocess.run(
        [sys.executable, "-c", code, *places, *given],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "--clip=1.5 is now written --latent_clip=1.5" in done.stderr
    names, settings, *places = json.loads(done.stdout)
    assert {field.name for field in dataclasses.fields(SamplingConfig)} <= set(names)
    assert settings == dict(
        window=None,
        keep_first=False,
        first_frame_position="shifted",
        latent_clip=1.5,
        clip_first=False,
        head_dtype="model",
        token_dtype="bfloat16",
        guidance_interval=[0.25, 1.0],
        steps=7,
    )
    assert places == [str(tmp_path / name) for name in ("run", "a.png", "out")]

"""Bad input is a clear error that names the thing and the way out, before training starts.

Nothing is written either, so the corrected command may use the same workdir. See also
tests/experiment/test_config.py (values), tests/inference (sampling) and
tests/experiment/test_resume.py (checkpoints).
"""

import json
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.tiny_run import start, tiny, tiny_videos, write_clip
from videomar_jax.experiment import run
from videomar_jax.experiment.config import Experiment
from videomar_jax.experiment.evaluate import evaluate_checkpoint
from videomar_jax.experiment.workdir import check_workdir, write_config


@pytest.fixture
def no_training(monkeypatch):
    """Training would be too late for what is tested here."""

    def train(*args, **kwargs):
        raise AssertionError("training was started")

    monkeypatch.setattr(run, "train", train)


def assert_refused(config, tmp_path, words, kind=ValueError):
    with pytest.raises(kind, match=words):
        start(config, tmp_path / "run")
    assert not (tmp_path / "run").exists(), "the workdir is taken by a command that cannot run"


# Clips


def no_folder(folder):
    return "video folder .*clips does not exist"


def empty_folder(folder):
    folder.mkdir()
    (folder / "notes.txt").write_text("no clip")
    return r"no videos under .*clips: looked for .*\*\.mp4"


def file_for_folder(folder):
    write_clip(folder.with_suffix(".mp4")).rename(folder)
    return "clips is a file: name the folder that holds it"


def all_broken(folder):
    for name in ("a", "b"):
        (folder / f"{name}.mp4").parent.mkdir(exist_ok=True)
        (folder / f"{name}.mp4").write_bytes(b"not a video" * 100)
    return (
        r"2 of 2 videos .*clips cannot be used.*\n"
        r".*a\.mp4: cannot be decoded.*\n.*b\.mp4: .*re-encode or remove"
    )


def all_empty(folder):
    folder.mkdir()
    (folder / "a.mp4").touch()
    return r"a\.mp4: the file is empty"


def too_short(folder):
    write_clip(folder / "a.mp4", count=2)
    return r"a\.mp4: \d frames at 12 fps in its train part, 3 asked; ask for shorter clips"


def held_out_part_too_short(folder):
    write_clip(folder / "a.mp4", count=12)
    return r"a\.mp4: \d frames at 12 fps in its test part, 5 asked; .*another holdout"


def caption_of_a_missing_clip(folder):
    write_clip(folder / "a.mp4")
    (folder / "captions.csv").write_text("file,caption\na.mp4,a square\nb.mp4,another\n")
    return (
        r"captions\.csv, line 3: 'b\.mp4' does not exist in .*clips: "
        r"correct the name or remove the row"
    )


def caption_table_without_header(folder):
    write_clip(folder / "a.mp4")
    (folder / "captions.csv").write_text("a.mp4,a square\n")
    return r'captions\.csv, line 1: the header lacks "caption" and "file"'


def broken_caption_line(folder):
    write_clip(folder / "a.mp4")
    (folder / "captions.jsonl").write_text('{"file": "a.mp4", "caption": "x"}\n{"file": \n')
    return r"captions\.jsonl, line 2: not JSON"


FOLDERS = [
    no_folder,
    empty_folder,
    file_for_folder,
    all_broken,
    all_empty,
    too_short,
    held_out_part_too_short,
    caption_of_a_missing_clip,
    caption_table_without_header,
    broken_caption_line,
]


@pytest.mark.parametrize("prepare", FOLDERS, ids=lambda function: function.__name__)
def test_a_folder_that_cannot_be_trained_on(prepare, tmp_path, no_training):
    words = prepare(tmp_path / "clips")
    assert_refused(tiny_videos(tmp_path / "clips"), tmp_path, words, (ValueError, OSError))


def test_a_caption_table_that_is_not_there(tmp_path, no_training):
    write_clip(tmp_path / "clips" / "a.mp4")
    config = tiny_videos(tmp_path / "clips")
    config.data.captions = str(tmp_path / "c.csv")
    assert_refused(config, tmp_path, r"caption table .*c\.csv does not exist", FileNotFoundError)


def test_an_unusable_rate(tmp_path, no_training):
    write_clip(tmp_path / "clips" / "a.mp4")
    config = tiny_videos(tmp_path / "clips")
    config.data.fps = 0.0
    assert_refused(config, tmp_path, r"data\.fps must be positive, not 0\.0")


# Sizes that do not go together


def rows(**changes):
    return dict(curriculum=tuple(dict(row, **changes) for row in tiny().to_dict()["curriculum"]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (rows(num_frames=4), r"Stage '16px_3f': 4 frames are not 1 \+ 2 \* k .*nearest: 3 or 5"),
        (
            rows(height=30),
            "Stage '16px_3f': height 30 is not a multiple of the spatial stride 4; "
            "nearest: 28 or 32",
        ),
        (rows(width=8), "16"),
        (
            dict(model=dict(latent_channels=4)),
            "takes 4 latent channels, .* gives 16: set model.latent_channels=16",
        ),
        (
            dict(model=dict(text_tokens=9)),
            "text of 9 tokens x 64 values, .* gives 8 x 64: set model.text_tokens",
        ),
        (
            dict(model=dict(patch_size=4)),
            "Stage '24px_5f': latents of 6x6 are not a multiple of model.patch_size 4",
        ),
        (dict(loss=dict(regression_weight=1.0)), "regression_weight needs model.regression=True"),
        (dict(tokenizer=dict(channels=100)), r"channels = 100 is not in 1\.\.96"),
        (
            dict(tokenizer=dict(whitening=2.0)),
            r"tokenizer\.whitening must lie in \[0, 1\], not 2\.0",
        ),
    ],
    ids=str,
)
def test_parts_that_do_not_fit(changes, words, tmp_path, no_training):
    assert_refused(tiny(**changes), tmp_path, words)


# The workdir


def test_a_workdir_with_something_else(tmp_path, no_training):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(
        ValueError, match="is not empty and holds no run; choose an empty or new --workdir"
    ):
        start(tiny(), tmp_path)
    with pytest.raises(ValueError, match=r"thesis.txt .*choose an empty or new --workdir"):
        start(tiny(), tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_workdir_of_another_configs_run(finished, no_training):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(
        ValueError,
        match=r"another config; it differs in optimizer\.beta1 \(0\.9 there, 0\.8 here\)",
    ):
        start(tiny(optimizer=dict(beta1=0.8)), finished)
    with pytest.raises(
        ValueError, match=r"curriculum\.1\.steps \(3 there, 4 here\).*Choose another --workdir"
    ):
        start(
            tiny(curriculum=[dict(row, steps=3 + i) for i, row in enumerate(rows()["curriculum"])]),
            finished,
        )
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


def test_what_does_not_touch_the_parameters_may_change(tmp_path):
    write_config(
        tmp_path,
        {
            "data": {"threads": 2, "path": "a", "fps": 12.0},
            "init_from": "there",
            "text": {"path": "x"},
            "run": {"a": 1},
        },
    )
    check_workdir(
        tmp_path,
        {
            "data": {"threads": 8, "path": "b", "fps": 12.0},
            "init_from": "",
            "text": {"path": "y"},
            "run": {},
        },
    )
    with pytest.raises(ValueError, match=r"data\.fps \(12\.0 there, 8\.0 here\)"):
        check_workdir(tmp_path, {"data": {"path": "b", "fps": 8.0}})


def test_other_clips_than_those_of_the_run(tmp_path, no_training):
    clips, run = tmp_path / "clips", tmp_path / "run"

    def assert_begins():
        with pytest.raises(AssertionError, match="training was started"):
            start(tiny_videos(clips), run)

    write_clip(clips / "a.mp4")
    assert_begins()
    assert_begins()
    write_clip(clips / "b.mp4", seed=1)
    with pytest.raises(
        ValueError, match=r"not those that the run in .* started with.* delete .*data\.json"
    ):
        start(tiny_videos(clips), run)
    (run / "data.json").unlink()
    assert_begins()
    (run / "data.json").write_text("{")
    with pytest.raises(ValueError, match=r"data\.json is broken"):
        start(tiny_videos(clips), run)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(mesh=dict(data=8)), "batch_size 4 is not a multiple"),
        (
            dict(model=dict(width=48), init_from="FINISHED"),
            r"a model of another size \(width 32 there, 48 here",
        ),
    ],
    ids=["mesh", "init_from"],
)
def test_a_workdir_is_not_claimed_by_what_cannot_begin(
    tmp_path, finished, no_training, change, words
):
    change = {
        name: str(finished) if value == "FINISHED" else value for name, value in change.items()
    }
    with pytest.raises(ValueError, match=words):
        start(tiny(**change), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists(), "the corrected command would be refused"


def test_many_differences_are_counted(tmp_path):
    write_config(tmp_path, {"loss": {str(i): 0 for i in range(9)}})
    with pytest.raises(ValueError, match=r"loss\.4 \(0 there, 1 here\) and 4 more\. Choose"):
        check_workdir(tmp_path, {"loss": {str(i): 1 for i in range(9)}})


def test_keys_that_only_one_config_has(tmp_path):
    write_config(tmp_path, {"loss": {"old": 1}})
    with pytest.raises(
        ValueError, match=r"loss\.new \(None there, 2 here\), loss\.old \(1 there, None here\)"
    ):
        check_workdir(tmp_path, {"loss": {"new": 2}})


def test_what_may_change_between_two_starts(tmp_path):
    """What does not touch the parameters: how often a run speaks, how it samples and what is
    measured."""
    write_config(tmp_path, tiny().to_dict())
    check_workdir(tmp_path, tiny().to_dict())
    check_workdir(
        tmp_path,
        tiny(run=dict(log_every=7), sampling=dict(steps=9), evaluation=dict(clips=2)).to_dict(),
    )
    with pytest.raises(ValueError, match="seed"):
        check_workdir(tmp_path, tiny(seed=1).to_dict())


def test_a_broken_record_of_the_config(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(ValueError, match=r"config\.json is broken .*choose another --workdir"):
        check_workdir(tmp_path, tiny().to_dict())


def test_the_config_is_kept_beside_the_run(finished):
    assert json.loads((finished / "config.json").read_text()) == json.loads(
        json.dumps(tiny().to_dict())
    )


def test_a_report_is_not_written_over(finished, tmp_path):
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(ValueError, match="already holds a report; choose another --output"):
        evaluate_checkpoint(Experiment.from_config(tiny()), tmp_path, finished)
    assert (tmp_path / "report.json").read_text() == "{}"


# The commands


def main_file():
    return ROOT / "videomar_jax" / "main.py"


def main(*flags):
    call = [sys.executable, "-m", "videomar_jax.main", *map(str, flags)]
    return subprocess.run(call, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--config.optimizer.nmae=adamw"],
            ["--config.optimizer.nmae=adamw", 'Did you mean "name"'],
        ),
        (["--config.curriculum[7].steps=1"], ["nothing to set by --config.curriculum[7].steps=1"]),
        (["--config.curriculum=3"], ["Curriculum row 0 is 3, not a mapping"]),
        (["--config=configs/quickstart.py:tinny"], ["tinny", "'tiny'"]),
        (["extra"], ["extra", "--name=value"]),
        (["--config.curriculum[0].num_frames=4"], ["Stage '16px_3f'", "4 frames", "3 or 5"]),
    ],
    ids=["key", "row", "no row", "variant", "argument", "value"],
)
def test_the_command_says_it_in_a_line(flags, words, tmp_path):
    done = main("--config=configs/quickstart.py:tiny", f"--workdir={tmp_path / 'run'}", *flags)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert all(word in lines[0] for word in words), done.stderr
    assert lines[1:] in ([], [f"See {main_file()} --help."]) and not done.stdout, done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("config.nothing.like_it = 1", ["config.py, line 7: AttributeError", "nothing"]),
        ("config.steps = 1 / 0", ["config.py, line 7: ZeroDivisionError: division by zero"]),
        ("get_config = 1 1", ["config.py, line 7: SyntaxError"]),
        ("change(config, 2)", ["config.py, line 7: TypeError: change() takes 1 positional"]),
        ("open('/no/such/file')", ["config.py, line 7: FileNotFoundError", "/no/such/file"]),
    ],
)
def test_a_fault_of_a_config_file_is_shown_with_its_line(line, words, tmp_path):
    """An override beside it, which is not to blame, is not named."""
    text = """from ml_collections import ConfigDict
def get_config():
    config = ConfigDict({"steps": 1})
    change(config)
    return config
def change(config):
    """
    (tmp_path / "config.py").write_text(text + line + "\n")
    done = main(f"--config={tmp_path / 'config.py'}", "--config.steps=3", "--dry_run")
    assert done.returncode == 2, done.stderr
    first = done.stderr.splitlines()[0]
    assert all(word in first for word in words) and "--config.steps" not in first, done.stderr


def test_the_traceback_of_a_config_file_is_shown_where_it_is_asked_for(tmp_path):
    (tmp_path / "config.py").write_text("def get_config():\n    return {}.nothing\n")
    done = main("--traceback", f"--config={tmp_path / 'config.py'}", "--config.steps=3")
    assert "Traceback" in done.stderr and "line 2, in get_config" in done.stderr


def test_a_config_file_without_get_config_is_named(tmp_path):
    (tmp_path / "config.py").write_text("")
    done = main(f"--config={tmp_path / 'config.py'}", "--dry_run")
    assert done.returncode == 2 and "has no attribute get_config" in done.stderr.replace("'", "")


def test_old_names_of_config_keys_are_accepted_with_a_note(tmp_path):
    done = main(
        "--config=quickstart:tiny",
        "--config.loss.frames=one",
        "--config.sampling.clip=1.5",
        "--dry_run",
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert "--config.loss.frames=one is now written --config.loss.supervise=one_frame" in lines[0]
    assert "--config.sampling.clip=1.5 is now written --config.sampling.latent_clip=1.5" in lines[1]
    assert "predicted peak per device" in done.stderr

"""Clips made from what data sets offer for download, and the scores of balls."""

import csv
import zipfile
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from tests.benchmarks.test_benchmarks import load
from videomar_jax.checks import UserError
from videomar_jax.sampling.config import SamplingConfig

footage = load("footage")


def run(*words):
    footage.main([str(word) for word in words])


def read(path):
    with av.open(str(path)) as video:
        rate = video.streams.video[0].average_rate
        return np.stack([f.to_ndarray(format="rgb24") for f in video.decode(video=0)]), rate


def write_mpg(path, frames):
    """As the corpus has them: MPEG-1 of 360 x 288 pixels, 25 frames a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mpeg") as container:
        stream = container.add_stream("mpeg1video", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.bit_rate = 6_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


# Balls


def test_a_ball_is_where_the_truth_says(tmp_path):
    run("balls", "--output", tmp_path / "balls", "--clips", 2, "--seconds", 2, "--captions")
    assert sorted(path.name for path in (tmp_path / "balls").iterdir()) == [
        "ball0.mp4",
        "ball0.txt",
        "ball1.mp4",
        "truth.npz",
    ]
    frames, rate = read(tmp_path / "balls" / "ball1.mp4")
    assert frames.shape == (24, 64, 64, 3) and rate == 12
    truth = np.load(tmp_path / "balls" / "truth.npz")
    centres, radius = truth["centres_1"], truth["radius_1"]
    assert centres.shape == (24, 2) and (np.abs(np.diff(centres, axis=0)).max(0) > 1).all()
    for frame, centre in zip(frames, centres, strict=True):
        window = footage.BallWindow(frame[None], centre, float(radius))
        there, off = footage.score_ball(frame, window)
        assert there and off < 0.3


def test_what_a_ball_scores():
    ball = footage.ball_clip(0, 9, 32)
    window = footage.BallWindow(ball.frames, ball.centres[-1], ball.radius)
    there, off = footage.score_ball(ball.frames[-1], window)
    assert there and off < 0.3
    shifted = np.roll(ball.frames[-1], 3, axis=1)
    there, off = footage.score_ball(shifted, window)
    assert there and off == pytest.approx(3, abs=0.4)
    ground = np.median(ball.frames[0].reshape(-1, 3), axis=0)
    empty = np.broadcast_to(ground, (32, 32, 3)).astype(np.uint8)
    there, off = footage.score_ball(empty, window)
    assert not there and np.isnan(off)
    faint = (ball.frames[-1] * 0.2 + empty * 0.8).astype(np.uint8)
    assert not footage.score_ball(faint, window)[0], "a halo is no ball"
    assert not footage.score_ball(np.full((32, 32, 3), 220, np.uint8) - shifted, window)[0]


class Model:
    """Knows all clips."""

    def __init__(self, *parts):
        self.clips = np.concatenate([[w.frames for w in part] for part in parts])

    def __call__(self, given, prompts, frames):
        matches = (self.clips[:, None, : given.shape[1]] == given[None]).all((2, 3, 4, 5))
        return self.clips[matches.argmax(axis=0)]


def test_a_perfect_model_of_balls(tmp_path):
    run("balls", "--output", tmp_path / "balls", "--clips", 2, "--seconds", 5)
    arguments = (tmp_path / "balls", 9, (32, 32))
    parts = [
        footage.ball_windows(arguments[0], part, *arguments[1:], count)
        for part, count in ((footage.TRAINED, 6), (footage.HELD_OUT, 3))
    ]
    assert [len(part) for part in parts] == [12, 6]
    rows, made = footage.score_balls(Model(*parts), arguments[0], [1, 3], *arguments[1:])
    assert set(made) == {(part, g) for part in (footage.TRAINED, footage.HELD_OUT) for g in (1, 3)}
    table = {tuple(row[:2] + row[3:4]): row[4:] for row in rows}
    for part in (footage.TRAINED, footage.HELD_OUT):
        there, off, psnr = table[part, 3, "model"]
        assert there == 1 and off < 0.4 and psnr == 100
        assert table[part, 3, "linear"][2] > table[part, 3, "copy"][2] + 2
        assert table[part, 3, "copy"][1] > 4

    def empty(given, prompts, frames):
        return np.zeros((len(given), frames, 32, 32, 3), np.uint8) + given[:, :1, :1, :1]

    rows, _ = footage.score_balls(empty, arguments[0], [1], *arguments[1:])
    assert rows[0][3:6] == ["model", 0, None], "nothing can be off where nothing is"
    with pytest.raises(UserError, match=r"has no truth\.npz"):
        footage.ball_windows(tmp_path, footage.TRAINED, 9, (32, 32), 1)
    with pytest.raises(UserError, match="has 12 frames, 33 are needed"):
        footage.ball_windows(tmp_path / "balls", footage.HELD_OUT, 33, (32, 32), 1)


def test_a_run_is_scored(tmp_path, monkeypatch, capsys):
    run("balls", "--output", tmp_path / "balls", "--clips", 2, "--seconds", 5)
    parts = [
        footage.ball_windows(tmp_path / "balls", part, 9, (32, 32), count)
        for part, count in footage.WINDOWS
    ]
    bundle = SimpleNamespace(sampling=SamplingConfig(), height=32, width=32, num_frames=9)
    loaded = SimpleNamespace(model=None, bundle=bundle, step=7)
    asked = []
    monkeypatch.setattr(footage, "load_pretrained", lambda place: loaded)
    monkeypatch.setattr(
        footage.VideoSampler,
        "from_bundle",
        lambda model, bundle, config, batch_size: asked.append(config) or Model(*parts),
    )
    picture, out = tmp_path / "p.png", tmp_path / "scores.json"
    flags = ["--given", "3", "--temperature", "0", "--picture", picture, "--out", out]
    run("score", "--checkpoint", "run", "--clips", tmp_path / "balls", *flags)
    assert asked[0].temperature == 0
    printed = capsys.readouterr().out
    assert "| training part | 3 | 12 | model | 100% | 0." in printed
    assert '"step": 7' in out.read_text()
    with Image.open(picture) as image:
        assert image.size[1] > 4 * 128


# GRID


ALIGN = "0 23750 sil\n23750 29500 bin\n29500 34000 blue\n34000 35500 at\n35500 74500 sil\n"


def speaking(seed, frames=40):
    """Frames of the corpus's size: noise, and in the middle of the mouth the frame's number."""
    rng = np.random.default_rng(seed)
    made = rng.integers(100, 110, (frames, 288, 360, 3), dtype=np.uint8)
    made[:, 160:256, 122:218] = (5 * np.arange(frames, dtype=np.uint8))[:, None, None, None]
    return made


def captions(folder):
    with open(folder / "captions.csv", newline="") as file:
        return [(row["file"], row["caption"]) for row in csv.DictReader(file)]


def check_words(folder, sentence):
    assert captions(folder) == [
        (f"{sentence}_0_bin.mp4", "bin"),
        (f"{sentence}_1_blue.mp4", "blue"),
    ], "the third word begins too late for a clip of 9 frames"
    for number, (file, _) in enumerate(captions(folder)):
        frames, rate = read(folder / file)
        assert frames.shape == (9, 32, 32, 3) and rate == 25
        first = (24, 30)[number] - 1
        np.testing.assert_allclose(frames.mean((1, 2, 3)), 5 * (first + np.arange(9)), atol=3)


def test_words_of_the_corpus(tmp_path):
    """Videos and .align files as they are downloaded, as an archive and unpacked."""
    write_mpg(tmp_path / "s1" / "bbaf2n.mpg", speaking(0))
    write_mpg(tmp_path / "s1" / "bbaf3s.mpg", speaking(1))
    (tmp_path / "align").mkdir()
    for name in ("bbaf2n", "bbaf3s", "unseen"):
        (tmp_path / "align" / f"{name}.align").write_text(ALIGN)
    flags = ["--align", tmp_path / "align", "--size", 32]
    run("grid", "--source", tmp_path / "s1", *flags, "--output", tmp_path / "a", "--sentences", 1)
    check_words(tmp_path / "a", "bbaf2n")
    with zipfile.ZipFile(tmp_path / "s1.zip", "w") as archive:
        for name in ("bbaf2n", "bbaf3s"):
            archive.write(tmp_path / "s1" / f"{name}.mpg", f"s1/{name}.mpg")
    run("grid", "--source", tmp_path / "s1.zip", *flags, "--output", tmp_path / "b", "--skip", 1)
    check_words(tmp_path / "b", "bbaf3s")


def test_words_of_clips_that_are_cropped_already(tmp_path):
    folder = tmp_path / "grid"
    folder.mkdir()
    footage.write_clip(folder / "bbaf2n.mp4", speaking(0)[:, 160:256, 122:218], 25)
    table = "file,word,first_frame,end_frame\nbbaf2n.mp4,bin,24,30\nbbaf2n.mp4,blue,30,34\n"
    (folder / "words.csv").write_text(table)
    run("grid", "--source", folder, "--size", 32, "--output", tmp_path / "words")
    check_words(tmp_path / "words", "bbaf2n")


def test_what_is_wrong_with_a_corpus_is_named(tmp_path):
    folder = tmp_path / "s1"
    write_mpg(folder / "bbaf2n.mpg", speaking(0, 4)[:, :, :320])
    with pytest.raises(UserError, match=r"has no words\.csv: .*--align"):
        run("grid", "--source", folder, "--output", tmp_path / "out")
    (folder / "other.align").write_text(ALIGN)
    with pytest.raises(UserError, match="none of 1 videos has its words among 1 sentences"):
        run("grid", "--source", folder, "--align", folder, "--output", tmp_path / "out")
    (folder / "bbaf2n.align").write_text("0 sil\n")
    with pytest.raises(UserError, match=r"bbaf2n\.align, line 1: needs two numbers and a word"):
        run("grid", "--source", folder, "--align", folder, "--output", tmp_path / "out")
    (folder / "bbaf2n.align").write_text(ALIGN)
    with pytest.raises(UserError, match="frames of 320x288; the corpus has 360x288"):
        run("grid", "--source", folder, "--align", folder, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists(), "nothing half-finished is left"
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError):
        run("balls", "--output", tmp_path / "out", "--clips", 1, "--seconds", 1)


# Ped2


def test_folders_of_frames_become_clips(tmp_path):
    root = tmp_path / "UCSD_Anomaly_Dataset.v1p2" / "UCSDped2"
    for part, count in (("Train", 2), ("Test", 1)):
        for number in range(1, count + 1):
            clip = root / part / f"{part}{number:03d}"
            clip.mkdir(parents=True)
            for frame in range(1, 6):
                grey = np.full((240, 360), 20 * frame + number, np.uint8)
                Image.fromarray(grey).save(clip / f"{frame:03d}.tif")
    marks = root / "Test" / "Test001_gt"  # what is unusual in a test clip, which is no video
    marks.mkdir()
    (marks / "001.bmp").write_bytes(b"")
    run("ped2", "--source", root.parent, "--output", tmp_path / "ped2")
    names = sorted(p.relative_to(tmp_path / "ped2").as_posix() for p in tmp_path.rglob("*.mp4"))
    assert names == [
        "testing/testing_01.mp4",
        "training/training_01.mp4",
        "training/training_02.mp4",
    ]
    frames, rate = read(tmp_path / "ped2" / "training" / "training_02.mp4")
    assert frames.shape == (5, 240, 360, 3) and rate == 10
    np.testing.assert_allclose(frames.mean((1, 2, 3)), 20 * np.arange(1, 6) + 2, atol=2)
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (tmp_path / "ped2").rglob("*.mp4"):
        path.rename(flat / path.name)
    run("ped2", "--source", flat, "--output", tmp_path / "again")
    assert (tmp_path / "again" / "training" / "training_01.mp4").is_file()
    assert (tmp_path / "again" / "testing" / "testing_01.mp4").is_file()
    with pytest.raises(UserError, match="holds neither Train/Train001"):
        run("ped2", "--source", tmp_path / "again", "--output", tmp_path / "third")

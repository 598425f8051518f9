"""From requests to video files: the first frame of every video is the image it was made from, and
its record makes the same video again."""

import dataclasses
import errno
import json
import math
import os
import random
import shutil
import signal
from pathlib import Path

import av
import jax
import numpy as np
import pytest
from PIL import Image

from tests.helpers.generated import (
    SIZE,
    draw,
    first_tile,
    latents,
    make,
    mp4_frames,
    pixels,
    request,
)
from tests.helpers.tiny_model import annotations_off
from tests.helpers.tiny_run import write_clip
from videomar_jax.checks import Interrupted, UserError
from videomar_jax.inference import jobs, metadata, stream
from videomar_jax.inference.image_to_video import image_to_video
from videomar_jax.inference.metadata import read_record
from videomar_jax.inference.pipeline import VideoMARPipeline
from videomar_jax.inference.requests import JobOptions, Output
from videomar_jax.inference.video import Video
from videomar_jax.parallel.config import MeshConfig
from videomar_jax.pretrained import bundle
from videomar_jax.pretrained.bundle import load_bundle, load_pretrained, save_settings
from videomar_jax.tokenizers import to_pixels

# What is made


def test_files_begin_with_the_image(finished, tmp_path):
    """Three requests in batches of two: each mp4, gif and sheet is of image_to_video's video, first
    frame untouched."""
    images = [draw(tmp_path / f"i{n}.png", seed=n) for n in range(3)]
    asked = [request(image, f"v{n}", seed=20 + n) for n, image in enumerate(images)]
    assert make(asked, finished, tmp_path / "out") == []
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        f"v{n}.{ending}" for n in range(3) for ending in ("gif", "json", "mp4", "png")
    ]
    loaded = load_pretrained(finished)
    bundle = loaded.bundle
    for n, image in enumerate(images):
        given = pixels(image)
        base = tmp_path / "out" / f"v{n}"
        np.testing.assert_array_equal(first_tile(f"{base}.png"), given)
        video = image_to_video(
            loaded.model,
            bundle.tokenizer,
            bundle.text_encoder,
            given[None, None],
            [asked[n].prompt],
            num_frames=5,
            config=bundle.sampling,
            seeds=[20 + n],
        )[0]
        np.testing.assert_array_equal(video[0], given)
        frames = mp4_frames(f"{base}.mp4")
        scale = frames.shape[1] // SIZE
        assert frames.shape == (5, SIZE * scale, SIZE * scale, 3) and min(frames.shape[1:3]) >= 256
        middle = frames[:, scale // 2 :: scale, scale // 2 :: scale]
        assert np.abs(middle.astype(int) - video).mean() < 12, "the mp4 shows another video"
        with Image.open(f"{base}.gif") as gif:
            assert gif.n_frames == 5 and gif.size == (5 * SIZE, 5 * SIZE)
            frame = np.array(gif.convert("RGB"))[::5, ::5]
        assert np.abs(frame.astype(int) - given).mean() < 12, "the gif begins with another picture"


def test_settings_sizes_and_weights_take_effect(finished, tmp_path):
    """Another length, size, checkpoint; the image is scaled to the size that is asked for."""
    image = draw(tmp_path / "i.png", size=(48, 32))
    asked = [request(image)]
    make(
        asked,
        finished / "checkpoints" / "4",
        tmp_path / "out",
        num_frames=7,
        height=32,
        width=32,
    )
    frames = mp4_frames(tmp_path / "out" / "v.mp4")
    assert frames.shape[0] == 7 and frames.shape[1] == frames.shape[2] == 256
    wanted = np.array(Image.open(image).resize((32, 32), Image.Resampling.LANCZOS))
    assert np.abs(frames[0, 4::8, 4::8].astype(int) - wanted).mean() < 12


def test_a_missing_video_is_made_again_in_its_old_batch(finished, tmp_path):
    """The sums of a row depend on the size of its batch and on its place: both stay."""
    images = [draw(tmp_path / f"i{n}.png", seed=n) for n in range(5)]
    asked = [request(image, f"v{n}", seed=n) for n, image in enumerate(images)]
    folder = tmp_path / "out"
    make(asked, finished, folder, formats=("mp4", "latents"), batch_size=3)
    files = {path: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"}
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    gone = [folder / "v1.mp4", folder / "v4.npz"]
    for path in gone:
        path.unlink()
    make(asked, finished, folder, formats=("mp4", "latents"), batch_size=3)
    assert {path: path.read_bytes() for path in files} == files
    again = {path.stem for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert again == {"v1", "v4"}
    records = [read_record(folder / f"{name}.json") for name in ("v1", "v4")]
    assert [(record.batch_size, record.place) for record in records] == [(3, 1), (3, 1)]


def test_temperature_zero_takes_the_chance_out_of_the_noise(finished, tmp_path):
    image = draw(tmp_path / "i.png")
    for name, settings in [
        ("cold", dict(temperature=0.0)),
        ("warm", {}),
    ]:
        make([request(image)], finished, tmp_path / name, settings=settings)
    cold, warm = (pixels(tmp_path / name / "v.png") for name in ("cold", "warm"))
    assert (cold != warm).any(), "the setting has no effect"


def test_a_window_is_the_models_own_unless_it_is_given(finished, tmp_path):
    bundle = load_bundle(finished)
    (tmp_path / "run" / "model").mkdir(parents=True)
    save_settings(
        dataclasses.replace(bundle, sampling=dataclasses.replace(bundle.sampling, window=2)),
        tmp_path / "run",
    )
    for part in ("tokenizer", "text_encoder"):
        (tmp_path / "run" / "model" / part).symlink_to(finished / "model" / part)
    (tmp_path / "run" / "checkpoints").symlink_to(finished / "checkpoints")
    image, kept = draw(tmp_path / "i.png"), {}
    for window in ("own", None, 3):
        folder = tmp_path / f"window{window}"
        make(
            [request(image)],
            tmp_path / "run",
            folder,
            formats=("latents",),
            settings={} if window == "own" else dict(window=window),
        )
        kept[window] = read_record(folder / "v.json").sampling["window"]
    assert kept == {"own": 2, None: None, 3: 3}


def test_tokenizer_and_text_encoder_are_loaded_once(finished, tmp_path, monkeypatch):
    loaded = []
    for name in ("load_tokenizer", "load_text_encoder"):
        load = getattr(bundle, name)
        monkeypatch.setattr(
            bundle, name, lambda place, load=load: loaded.append(place.name) or load(place)
        )
    make([request(draw(tmp_path / "i.png"))], finished, tmp_path / "out", formats=("latents",))
    assert sorted(loaded) == ["text_encoder", "tokenizer"]


def test_an_image_that_is_none_is_named_and_the_others_are_made(finished, tmp_path, caplog):
    good = draw(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("hello")
    asked = [
        request(tmp_path / "text.png", "a"),
        request(good, "b"),
        request(tmp_path / "gone.png", "c"),
    ]
    faults = make(asked, finished, tmp_path / "out")
    assert (
        len(faults) == 2 and "text.png" in faults[0] and "cannot be read as an image" in faults[0]
    )
    assert "no image file" in faults[1] and "gone.png" in faults[1]
    assert set(faults) <= set(caplog.messages), "lost where the user interrupts"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "b.gif",
        "b.json",
        "b.mp4",
        "b.png",
    ]


def test_a_file_that_cannot_be_written_costs_one_video(finished, tmp_path, monkeypatch, caplog):
    image = draw(tmp_path / "i.png")
    save = Video.save

    def failing(video, path, **options):
        if path.name == "b.gif":
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))
        return save(video, path, **options)

    monkeypatch.setattr(Video, "save", failing)
    faults = make([request(image, name) for name in "abc"], finished, tmp_path / "out")
    assert len(faults) == 1 and faults[0].startswith("b: ")
    assert faults[0] in caplog.messages
    written = sorted(path.name for path in (tmp_path / "out").glob("*.gif"))
    assert written == ["a.gif", "c.gif"]


def test_a_full_disk_ends_the_job(finished, tmp_path, monkeypatch):
    def full(video, path, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Video, "save", full)
    with pytest.raises(OSError, match="No space left"):
        make([request(draw(tmp_path / "i.png"))], finished, tmp_path / "out")


def test_names_are_compared_with_what_the_folder_takes_before_the_work(
    finished, tmp_path, monkeypatch
):
    image = draw(tmp_path / "i.png")
    limit = os.pathconf
    monkeypatch.setattr(
        os, "pathconf", lambda *asked: 143 if asked[1] == "PC_NAME_MAX" else limit(*asked)
    )
    asked = [request(image, "x" * 140), request(image, "x" * 138)]
    faults = make(asked, finished, tmp_path / "out")
    assert len(faults) == 1 and "144 bytes" in faults[0] and "at most 143" in faults[0]
    assert (tmp_path / "out" / ("x" * 138 + ".mp4")).exists()


def test_existing_files_are_kept_unless_asked(finished, tmp_path):
    image = draw(tmp_path / "i.png")
    (tmp_path / "out").mkdir()
    kept = tmp_path / "out" / "v.gif"
    kept.write_text("mine")
    with pytest.raises(FileExistsError, match=r"v\.gif exists already; .*--overwrite"):
        make([request(image, "u"), request(image)], finished, tmp_path / "out")
    assert kept.read_text() == "mine" and len(list((tmp_path / "out").iterdir())) == 1
    make([request(image)], finished, tmp_path / "out", overwrite=True)
    assert kept.read_bytes()[:3] == b"GIF"


# Jobs that are continued, and requests that fail


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_job_that_was_killed_is_continued_by_the_same_command(
    finished, tmp_path, monkeypatch, caplog
):
    """It ends between two files of the second video."""
    caplog.set_level("INFO", logger="videomar_jax")
    asked = [request(draw(tmp_path / f"i{n}.png", n), f"v{n}", seed=n) for n in range(3)]
    save, out = Video.save, tmp_path / "out"

    def dying(self, path, **how):
        if path.name == "v1.png":
            raise SystemExit("killed")
        return save(self, path, **how)

    monkeypatch.setattr(Video, "save", dying)
    with pytest.raises(SystemExit):
        make(asked, finished, out, formats=("latents", "png"))
    monkeypatch.setattr(Video, "save", save)
    before = times(out)
    assert sorted(before) == ["v0.json", "v0.npz", "v0.png", "v1.json", "v1.npz"]
    assert make(asked, finished, out, formats=("latents", "png")) == []
    after = times(out)
    untouched = [name for name in sorted(before) if before[name] == after[name]]
    assert len(after) == 9 and untouched == ["v0.json", "v0.npz", "v0.png"]
    assert "1 of 3 videos are finished already and are skipped" in caplog.text
    assert read_record(out / "v1.json").frames == 5
    # All are finished: nothing is touched. With --overwrite all are made anew.
    assert make(asked, finished, out, formats=("latents", "png")) == []
    assert times(out) == after
    make(asked, finished, out, formats=("latents", "png"), overwrite=True)
    assert not set(times(out).items()) & set(after.items())


def other_prompt(tmp_path, asked):
    return [dataclasses.replace(asked, prompt="down")], {}, "prompt differ"


def other_seed(tmp_path, asked):
    return [dataclasses.replace(asked, seed=9)], {}, "seed differ"


def other_pixels(tmp_path, asked):
    draw(tmp_path / "i.png", seed=8)
    return [asked], {}, "image_sha256 differ"


def other_settings(tmp_path, asked):
    return (
        [asked],
        dict(settings=dict(temperature=0.5), num_frames=7),
        "num_frames, sampling differ",
    )


def other_model(tmp_path, asked):
    return [asked], dict(checkpoint="4"), "checkpoint_sha256 differ"


def a_file_of_the_users(tmp_path, asked):
    (tmp_path / "out" / "v.gif").write_text("mine")
    return [asked], dict(formats=("gif", "latents")), r"v\.gif exists already"


def a_record_of_the_users(tmp_path, asked):
    (tmp_path / "out" / "v.json").write_text("{}")
    return [asked], {}, "v.json is no record of a video"


OTHERS = [
    other_prompt,
    other_seed,
    other_pixels,
    other_settings,
    other_model,
    a_file_of_the_users,
    a_record_of_the_users,
]


@pytest.mark.parametrize("change", OTHERS, ids=lambda function: function.__name__)
def test_a_file_of_another_request_is_never_overwritten(finished, tmp_path, change):
    asked = request(draw(tmp_path / "i.png"))
    make([asked], finished, tmp_path / "out", formats=("latents",))
    changed, options, words = change(tmp_path, asked)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    checkpoint = finished / "checkpoints" / options.pop("checkpoint", "6")
    options = dict(formats=("latents",)) | options
    with pytest.raises(FileExistsError, match=f"--overwrite.*{words}|{words}.*--overwrite"):
        make(changed, checkpoint, tmp_path / "out", **options)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_a_record_of_an_earlier_version_is_known_too(finished, tmp_path, caplog):
    """Without the digest, and without a setting that has come since."""
    caplog.set_level("INFO", logger="videomar_jax")
    asked = [request(draw(tmp_path / "i.png"))]
    make(asked, finished, tmp_path / "out", formats=("latents",))
    file = tmp_path / "out" / "v.json"
    values = json.loads(file.read_text())
    assert len(values.pop("request_sha256")) == 64
    del values["sampling"]["temporal_rope_scaling"]
    file.write_text(json.dumps(values))
    make(asked, finished, tmp_path / "out", formats=("latents",))
    assert "1 of 1 videos are finished already" in caplog.text
    # Another format is made beside what is there.
    make(asked, finished, tmp_path / "out", formats=("gif",))
    assert set(read_record(file).files) == {"v.gif", "v.npz"}


def test_an_interrupted_video_is_made_whole(finished, tmp_path):
    asked = [request(draw(tmp_path / "i.png"))]
    make(asked, finished, tmp_path / "out", formats=("latents",))
    file = tmp_path / "out" / "v.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(frames=3)))
    make(asked, finished, tmp_path / "out", formats=("latents",))
    assert read_record(file).frames == 5


def test_a_video_of_nan_is_its_requests_fault_alone(finished, tmp_path, monkeypatch, caplog):
    """The second of a batch, and all of the last batch."""
    drawn = stream.decode_frames

    def spoilt(plan, shared, state):
        for frame, trace in drawn(plan, shared, state):
            noisy = np.asarray(jax.random.key_data(shared.keys))[:, -1] % 2 == 1
            yield jax.numpy.where(noisy[:, None, None, None], np.nan, frame), trace

    monkeypatch.setattr(stream, "decode_frames", spoilt)
    image = draw(tmp_path / "i.png")
    asked = [request(image, f"v{seed}", seed=seed) for seed in (2, 3, 5, 7)]
    faults = make(asked, finished, tmp_path / "out", formats=("latents",))
    assert [fault.split(":")[0] for fault in faults] == ["v3", "v5", "v7"]
    assert all("hold NaN or infinity" in fault and "--temperature" in fault for fault in faults)
    assert set(faults) <= set(caplog.messages)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["v2.json", "v2.npz"]
    with pytest.raises(UserError, match=r"No request can be met: v3: .*NaN"):
        make(asked[1:2], finished, tmp_path / "other", formats=("latents",))
    assert not (tmp_path / "other").exists()


def test_a_video_that_cannot_be_written_is_its_requests_fault_alone(
    finished, tmp_path, monkeypatch
):
    save = Video.save

    def failing(self, path, **how):
        if path.name == "v0.npz":
            raise OSError(errno.ENAMETOOLONG, "File name too long")
        return save(self, path, **how)

    monkeypatch.setattr(Video, "save", failing)
    image = draw(tmp_path / "i.png")
    asked = [request(image, f"v{n}", seed=n) for n in range(2)]
    faults = make(asked, finished, tmp_path / "out", formats=("latents",))
    assert len(faults) == 1 and faults[0].startswith("v0: ") and "too long" in faults[0]
    assert (tmp_path / "out" / "v1.npz").exists()


def test_an_image_of_many_requests_is_read_once(finished, tmp_path, monkeypatch):
    load, reads = jobs._load, []
    monkeypatch.setattr(
        jobs, "_load", lambda one, *rest: reads.append(one.name) or load(one, *rest)
    )
    image = draw(tmp_path / "i.png")
    asked = [request(image, f"v{n}", seed=n) for n in range(2)]
    asked += [request(tmp_path / "gone.png", name) for name in ("x", "y")]
    faults = make(asked, finished, tmp_path / "out", formats=("latents",))
    assert reads == ["v0", "x"] and len(faults) == 2


# Videos that are continued, formats, records


def test_a_video_is_continued_where_it_ends(finished, tmp_path):
    """Its last frames at the model's rate begin the new video; beside it an image of another length
    of history."""
    clip = write_clip(tmp_path / "clip.mp4", count=20, size=(SIZE, SIZE))
    asked = [
        request(clip, "on", given_frames=3),
        request(draw(tmp_path / "i.png"), "v"),
        request(clip, "odd", given_frames=2),
        request(clip, "all", given_frames=5),
    ]
    faults = make(asked, finished, tmp_path / "out", formats=("png", "latents"))
    assert len(faults) == 2 and "2 frames are not 1 + 2" in faults[0], faults
    assert "5 given frames leave nothing of 5 to generate" in faults[1]
    ends = mp4_frames(clip)[-3:]
    np.testing.assert_array_equal(first_tile(tmp_path / "out" / "on.png"), ends[0])
    tokenizer = load_pretrained(finished).bundle.tokenizer
    wanted = np.asarray(tokenizer.encode(to_pixels(ends[None])))[0]
    np.testing.assert_allclose(latents(tmp_path / "out", "on")[:2], wanted, atol=1e-4)
    assert latents(tmp_path / "out", "on").shape == latents(tmp_path / "out").shape == (3, 6, 6, 16)


def test_every_format_at_another_rate(finished, tmp_path):
    options, folder = JobOptions(checkpoint=finished), tmp_path / "out"
    output = Output(folder=folder, formats=("webm", "mp4", "latents"), fps=7.0)
    jobs.run_jobs([request(draw(tmp_path / "i.png"))], options, output)
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".mp4", ".npz", ".webm"]
    for name in ("v.webm", "v.mp4"):
        with av.open(str(folder / name)) as container:
            assert container.streams.video[0].average_rate == 7
    for wrong in (dict(formats=("mp4", "avi")), dict(formats=())):
        with pytest.raises(
            ValueError, match=r"There is no format (avi|at all): choose among mp4, gif"
        ):
            Output(folder=folder, **wrong)
    with pytest.raises(ValueError, match="fps must lie between 0 and 1000, not -1"):
        Output(folder=folder, fps=-1.0)


@pytest.fixture(scope="module")
def made(finished, tmp_path_factory):
    """Three videos in batches of two, the last batch filled up, with settings and a size of their
    own."""
    folder = tmp_path_factory.mktemp("made")
    asked = [request(draw(folder / f"i{n}.png", seed=n), f"v{n}", seed=20 + n) for n in range(3)]
    changes = dict(settings=dict(temperature=0.7, guidance=2.0), num_frames=7, fit="crop")
    make(asked, finished, folder / "out", formats=("latents", "png"), **changes)
    return folder


@pytest.mark.parametrize("name", ["v1", "v2"], ids=["second_of_two", "in_a_filled_batch"])
def test_a_record_makes_the_same_video_again(made, tmp_path, name):
    jobs.reproduce(
        made / "out" / f"{name}.json", Output(folder=tmp_path, formats=("latents", "png"))
    )
    np.testing.assert_array_equal(latents(tmp_path, name), latents(made / "out", name))
    np.testing.assert_array_equal(
        pixels(tmp_path / f"{name}.png"), pixels(made / "out" / f"{name}.png")
    )
    first, second = (
        json.loads((folder / f"{name}.json").read_text()) for folder in (made / "out", tmp_path)
    )
    timed = ("first_frame_s", "seconds")
    assert {k: v for k, v in first.items() if k not in timed} == {
        k: v for k, v in second.items() if k not in timed
    }


def test_what_a_record_says(made, finished):
    record = read_record(made / "out" / "v1.json")
    assert (record.prompt, record.seed, record.num_frames, record.frames) == (
        "a red circle moves left",
        21,
        7,
        7,
    )
    assert (record.sampling["temperature"], record.fit, record.fps, record.place) == (
        0.7,
        "crop",
        12.0,
        1,
    )
    assert Path(record.checkpoint) == finished / "checkpoints" / "6" and record.files == [
        "v1.npz",
        "v1.png",
    ]
    assert set(record.formats) == {"latents", "png"}
    assert record.image == str(made / "i1.png") and 0 < record.first_frame_s <= record.seconds
    assert {"jax", "numpy", "videomar_jax"} <= set(record.versions)


def test_videos_are_spread_over_devices_and_made_again_so(finished, tmp_path, caplog, monkeypatch):
    """A batch of one is filled up to the two devices that share it; the record knows the mesh."""
    asked, mesh = (
        [request(draw(tmp_path / "i.png"), seed=3)],
        MeshConfig(data=2, tensor=2, min_size=1),
    )
    make(asked, finished, tmp_path / "out", formats=("latents",), mesh=mesh)
    record = read_record(tmp_path / "out" / "v.json")
    assert record.batch_size == 2 and record.mesh == dataclasses.asdict(mesh)
    output = Output(folder=tmp_path / "again", formats=("latents",))
    jobs.reproduce(tmp_path / "out" / "v.json", output)
    np.testing.assert_array_equal(latents(tmp_path / "again"), latents(tmp_path / "out"))
    make(asked, finished, tmp_path / "alone", formats=("latents",))
    np.testing.assert_allclose(latents(tmp_path / "alone"), latents(tmp_path / "out"), atol=1e-3)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert jobs._mesh_of(record) is None and "made on 4 devices, here on one" in caplog.text


def changed_image(made, run, file):
    draw(made / "moved.png", seed=5)
    return (
        dict(image=str(made / "moved.png")),
        ValueError,
        "moved.png is not the image that .*v0.json was made from",
    )


def no_image(made, run, file):
    return (
        dict(image=str(made / "gone.png")),
        FileNotFoundError,
        "image of .*v0.json is gone: .*gone.png.*--image",
    )


def other_weights(made, run, file):
    return (
        dict(checkpoint=str(run / "checkpoints" / "4")),
        ValueError,
        ("checkpoints/4 is not the checkpoint that .*v0.json was made from: parameters differ"),
    )


def no_checkpoint(made, run, file):
    return (
        dict(checkpoint=str(run / "checkpoints" / "99")),
        FileNotFoundError,
        "checkpoint of .*gone: .*--checkpoint",
    )


def broken_record(made, run, file):
    file.write_text(file.read_text()[:99])
    return {}, ValueError, "v0.json is no record of a video"


def other_format(made, run, file):
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(format=9)))
    return {}, ValueError, "v0.json is no record of a video: its format is 9, this version reads 1"


REFUSED = [changed_image, no_image, other_weights, no_checkpoint, broken_record, other_format]


@pytest.mark.parametrize("prepare", REFUSED, ids=lambda function: function.__name__)
def test_a_video_that_cannot_be_made_again(made, finished, tmp_path, prepare):
    file = Path(shutil.copy(made / "out" / "v0.json", tmp_path))
    where, kind, words = prepare(made, finished, file)
    with pytest.raises(kind, match=words):
        jobs.reproduce(file, Output(folder=tmp_path / "out"), **where)
    assert not (tmp_path / "out").exists()


WRONG = [None, True, -1, 0, 10**30, 10**400, 1e308, math.nan, math.inf, "", "a\0b", "\ud83d"]
WRONG += ["n" * 5000, [], [1], [[[]]], {}, {"a": {"b": []}}]
MESHES = [{"data": 0}, {"data": 10**9}, {"data": True}, {"x": 1}, {"data": -1, "fsdp": -1}]


def mutated_records(record):
    """Some 300 texts made from a record, each with one fault or with an odd but possible value."""
    for root in (None, [], "x", 3, {}, True):
        yield json.dumps(root)
    yield '{"format": 1, "sampling": ' + "[" * 200_000
    yield json.dumps(record | {"extra": 1})
    generator = random.Random(0)
    for key in record:
        yield json.dumps({name: value for name, value in record.items() if name != key})
        for value in generator.sample(WRONG, 6):
            yield json.dumps(record | {key: value})
    for key in record["sampling"]:
        for value in generator.sample(WRONG, 5):
            yield json.dumps(record | {"sampling": record["sampling"] | {key: value}})
    for mesh in MESHES:
        yield json.dumps(record | {"mesh": mesh})
    for size in (2**31, 40_000, 4):
        yield json.dumps(record | {"height": size, "width": size})
    yield json.dumps(record | {"place": record["batch_size"]})
    yield json.dumps(record | {"frames": record["num_frames"] + 1})
    yield json.dumps(record | {"num_frames": 10**9 + 1, "frames": 10**9 + 1})


def test_hostile_records_are_user_errors(made, finished, tmp_path, monkeypatch):
    """All up to the generation is done; most are refused, and no one with another exception."""
    pipe = VideoMARPipeline.from_checkpoint(finished)
    monkeypatch.setattr(VideoMARPipeline, "from_checkpoint", lambda *args, **kwargs: pipe)
    monkeypatch.setattr(jobs, "model_digests", lambda *_: digests)
    monkeypatch.setattr(jobs, "_generate", lambda job, batch, rows, until: [])
    record = json.loads((made / "out" / "v0.json").read_text())
    digests = record["checkpoint_sha256"]
    file = tmp_path / "v0.json"
    refused = []
    for text in mutated_records(record):
        file.write_text(text)
        try:
            with annotations_off():
                jobs.reproduce(file, Output(folder=tmp_path / "out"))
        except (UserError, FileNotFoundError) as error:
            refused.append(str(error))
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error} for {text[:2000]}")
    assert len(refused) > 200 and max(map(len, refused)) < 6000
    for part in ("nested too deeply", "holds no object", "too many pixels", "lacks prompt"):
        assert any(part in text for text in refused), part


def test_an_interrupted_video_keeps_its_frames(finished, tmp_path, monkeypatch):
    """Two of three new latent frames are drawn when the user stops; the rest of a video is not made
    up."""
    drawn = stream.decode_frames

    def stopping(*args, **kwargs):
        frames = drawn(*args, **kwargs)
        yield next(frames)
        signal.raise_signal(signal.SIGINT)
        yield from frames

    monkeypatch.setattr(stream, "decode_frames", stopping)
    asked = [request(draw(tmp_path / f"i{n}.png", n), f"v{n}", seed=n) for n in range(3)]
    with pytest.raises(
        Interrupted,
        match=r"kept 5 of 7 frames of v0, v1 in .*out; videos that were not started are left out",
    ):
        make(asked, finished, tmp_path / "out", formats=("latents", "mp4"), num_frames=7)
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.mp4")) == ["v0", "v1"]
    assert (
        len(mp4_frames(tmp_path / "out" / "v0.mp4")) == 5
        and len(latents(tmp_path / "out", "v1")) == 3
    )
    monkeypatch.setattr(stream, "decode_frames", drawn)
    jobs.reproduce(
        tmp_path / "out" / "v1.json", Output(folder=tmp_path / "again", formats=("latents",))
    )
    np.testing.assert_array_equal(
        latents(tmp_path / "again", "v1"), latents(tmp_path / "out", "v1")
    )


def test_an_interrupt_waits_until_the_files_of_a_batch_are_written(
    finished, tmp_path, monkeypatch, caplog
):
    write, before = jobs._write, signal.getsignal(signal.SIGINT)

    def interrupted(*args):
        if not (tmp_path / "out").exists():
            signal.raise_signal(signal.SIGINT)
        write(*args)

    monkeypatch.setattr(jobs, "_write", interrupted)
    asked = [request(draw(tmp_path / f"i{n}.png", n), f"v{n}", seed=n) for n in range(3)]
    with pytest.raises(
        Interrupted,
        match=r"kept 5 of 5 frames of v0, v1 in .*out; videos that were not started are left out",
    ):
        make(asked, finished, tmp_path / "out", formats=("latents", "mp4"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"v{n}.{ending}" for n in range(2) for ending in ("json", "mp4", "npz")
    ]
    assert len(mp4_frames(tmp_path / "out" / "v1.mp4")) == 5
    assert signal.getsignal(signal.SIGINT) is before
    assert any("frames so far of this batch are written" in message for message in caplog.messages)


def test_a_prompt_that_is_too_long_is_reported_with_what_is_cut(finished, tmp_path, caplog):
    """The tiny model reads 8 tokens, the end token among them."""
    prompt = "one two three four five six seven eight nine ten"
    make(
        [request(draw(tmp_path / "i.png"), prompt=prompt)],
        finished,
        tmp_path / "out",
        formats=("latents",),
    )
    assert (
        "The prompt of v is 3 tokens longer than the 8 that the model reads: they are cut."
        in caplog.messages
    )
    assert read_record(tmp_path / "out" / "v.json").prompt_tokens_cut == 3


# Refused before weights are read: the folder here has a bundle and no checkpoint


@pytest.fixture
def bundle_only(finished, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(finished / "model")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(settings=dict(temperature=-1.0)), "temperature must not be negative, not -1"),
        (
            dict(settings=dict(guidance=-2.0)),
            "guidance must not be negative, not -2",
        ),
        (dict(settings=dict(steps=0)), "steps must be at least 1, not 0"),
        (dict(settings=dict(head_steps="fast")), "head.*'fast'"),
        (dict(num_frames=4), r"4 frames are not 1 \+ 2 \* k .*nearest: 3 or 5"),
        (dict(num_frames=1), "num_frames must be at least 3, not 1"),
        (
            dict(height=30),
            "height 30 is not a multiple of the spatial stride 4; nearest: 28 or 32",
        ),
        (dict(width=0), "width 0 is not a multiple"),
        (dict(fit="squeeze"), "fit is 'squeeze'; it may be one of 'resize', 'crop'"),
        (dict(settings=dict(temperature=None)), "temperature cannot be None; leave it out"),
        (dict(), "holds no complete checkpoint yet"),
    ],
    ids=[
        "temperature",
        "guidance",
        "steps",
        "head_steps",
        "frames",
        "one_frame",
        "height",
        "width",
        "fit",
        "none",
        "weights",
    ],
)
def test_what_cannot_be_sampled(bundle_only, tmp_path, changes, words):
    image = draw(tmp_path / "i.png")
    with annotations_off(), pytest.raises((ValueError, FileNotFoundError), match=words):
        make([request(image)], bundle_only, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be(bundle_only, tmp_path):
    asked = [request(draw(tmp_path / "i.png"))]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="file is a file: --output names a folder"):
        make(asked, bundle_only, tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "mine"


def test_no_image_at_all_can_be_read(bundle_only, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4")
    with pytest.raises(
        ValueError, match=r"No request can be met: .*clip.mp4.*cannot be read as an image"
    ):
        make([request(clip)], bundle_only, tmp_path / "out")


def test_a_record_without_a_version_is_compared_in_all_else(made):
    """Earlier code wrote "source" when it was not installed."""
    record = read_record(made / "out" / "v1.json")
    unknown = dataclasses.replace(record, versions=record.versions | {"videomar_jax": "source"})
    assert metadata.differences(record) == metadata.differences(unknown) == []
    other = dataclasses.replace(unknown, versions=unknown.versions | {"jax": "0.1"})
    (difference,) = metadata.differences(other)
    assert difference == f"jax 0.1 there, {jax.__version__} here"

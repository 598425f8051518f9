"""Pictures as clips of one frame: alone, and beside videos for the stages of images."""

import logging

import numpy as np
import pytest
from PIL import Image

from tests.helpers.tiny_run import tiny_videos, write_clip
from videomar_jax.checks import UserError
from videomar_jax.data.sources import ClipShape, ClipSource
from videomar_jax.data.videos import VideoFolder, holds_only_pictures
from videomar_jax.experiment.config import Experiment

IMAGE = ClipShape(num_frames=1, height=16, width=24)
CLIP = ClipShape(num_frames=3, height=16, width=24)


def rng(seed=0):
    return np.random.default_rng(seed)


def write_picture(path, colour, size=(36, 24), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


@pytest.fixture
def pictures(tmp_path):
    """One colour each, of every ordinary format, with a caption for one of them."""
    folder = tmp_path / "pictures"
    write_picture(folder / "a.jpg", (250, 0, 0), quality=95)
    write_picture(folder / "b.PNG", (0, 250, 0))
    write_picture(folder / "sub" / "c.webp", (0, 0, 250), lossless=True)
    write_picture(folder / "sub" / "d.jpeg", (250, 250, 0), quality=95)
    (folder / "a.txt").write_text("all red")
    (folder / "notes.md").write_text("no picture")
    return folder


def test_pictures_are_clips_of_one_frame_in_sorted_order(pictures):
    assert holds_only_pictures(pictures)
    source = VideoFolder(pictures, fps=12.0, split="all", pictures=True)
    assert isinstance(source, ClipSource) and len(source) == 4
    clips = [source.read(index, rng(), IMAGE) for index in range(4)]
    assert [clip["caption"] for clip in clips] == ["all red", "", "", ""]
    colours = [clip["video"].mean(axis=(0, 1, 2)) for clip in clips]
    expected = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
    np.testing.assert_allclose(colours, expected, atol=4)
    assert {clip["video"].shape for clip in clips} == {(1, 16, 24, 3)}
    again = [source.read(index, rng(), IMAGE)["video"] for index in range(4)]  # from the cache
    np.testing.assert_array_equal(again, [clip["video"] for clip in clips])
    with pytest.raises(UserError, match=r"a\.jpg: a picture is one frame, 3 asked"):
        source.read(0, rng(), CLIP)


def test_pictures_are_upright(tmp_path):
    """Orientation 6: the first row of what is stored is the right side of what is shown."""
    stored = np.zeros((24, 36, 3), np.uint8)
    stored[:12] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "phone.png", exif=exif)
    source = VideoFolder(tmp_path, fps=12.0, split="all", pictures=True)
    assert source.sizes.tolist() == [[36, 24]]
    shape = ClipShape(num_frames=1, height=36, width=24)
    frame = source.read(0, rng(), shape)["video"][0]
    assert frame[:, 14:].min() > 250 and frame[:, :10].max() < 5


def test_pictures_of_all_sizes_are_cropped_at_random(tmp_path):
    for number, size in enumerate([(24, 16), (90, 40), (16, 64)]):
        write_picture(tmp_path / f"{number}.png", (9, 9, 9), size)
    source = VideoFolder(tmp_path, fps=12.0, split="all", pictures=True)
    sizes = ((16, 24), (32, 8))
    assert source.fits(IMAGE, sizes).tolist() == [0, 1]
    assert source.fits(ClipShape(num_frames=1, height=32, width=8), sizes).tolist() == [2]
    ramp = np.tile(np.arange(90, dtype=np.uint8)[None, :, None], (40, 1, 3))
    Image.fromarray(ramp).save(tmp_path / "1.png")
    square = ClipShape(num_frames=1, height=40, width=40)
    lefts = {int(source.read(1, rng(seed), square)["video"][0, 0, 0, 0]) for seed in range(30)}
    assert len(lefts) > 10


def test_damaged_pictures_are_skipped(pictures, caplog):
    whole = write_picture(pictures / "big.png", (1, 2, 3), (200, 200)).read_bytes()
    noise = Image.fromarray(rng().integers(0, 255, (200, 200, 3), dtype=np.uint8))
    noise.save(pictures / "cut.png")
    (pictures / "cut.png").write_bytes((pictures / "cut.png").read_bytes()[:5000])
    (pictures / "empty.jpg").write_bytes(b"")
    (pictures / "fake.webp").write_bytes(whole[:20])
    source = VideoFolder(pictures, fps=12.0, split="all", pictures=True, most_failing=0.5)
    assert sorted(path.name for path, _ in source.skipped) == ["empty.jpg", "fake.webp"]
    number = [source.name(index) for index in range(len(source))].index("cut")
    clip = source.read(number, rng(), IMAGE)
    assert clip["video"].shape == (1, 16, 24, 3)
    assert "skipped from now on (1 of 6 videos)" in caplog.text and "cut.png" in caplog.text
    strict = VideoFolder(pictures, fps=12.0, split="all", pictures=True, decode_all=True)
    assert "cut.png" in {path.name for path, _ in strict.skipped}


def image_stage(folder, **data):
    config = tiny_videos(folder, data=data) if data else tiny_videos(folder)
    row = dict(config.curriculum[0], num_frames=1, height=16, width=24)
    config.curriculum = (row, dict(config.curriculum[1]))
    return config


def test_image_stages_take_the_pictures_and_the_others_the_videos(pictures, tmp_path):
    for number in range(3):
        write_clip(tmp_path / "clips" / f"{number}.mp4", seed=number)
    config = image_stage(tmp_path / "clips")
    config.data.images = str(pictures)
    experiment = Experiment.from_config(config)
    source, held_out = experiment.source("train"), experiment.source("test")
    assert len(source) == 3 + 4 and all(
        name in "012" for name in map(held_out.name, range(len(held_out)))
    )
    sizes = ((16, 24),)
    assert source.fits(IMAGE, sizes).tolist() == [3, 4, 5, 6]
    assert source.fits(CLIP, sizes).tolist() == [0, 1, 2]
    assert [source.name(index) for index in (2, 3, 6)] == ["2", "a", "d"]
    red = source.read(3, rng(), IMAGE)
    assert red["caption"] == "all red" and red["video"][..., 0].min() > 240
    assert (
        len(source.captions) == len(source.sizes) == len(source.lengths) == len(source.rates) == 7
    )
    assert len(source.contents().files) == 7
    plain = Experiment.from_config(image_stage(tmp_path / "clips")).source("train")
    assert plain.digest() != source.digest() and len(plain.fits(IMAGE, sizes)) == 3
    source.count_failing(["0.mp4", "images:a.jpg", "images:gone.jpg"])
    assert source.failing() == ["0.mp4", "images:a.jpg"]


def test_pictures_without_a_stage_for_them_are_named(pictures, tmp_path, caplog):
    caplog.set_level(logging.WARNING, "videomar_jax")
    write_clip(tmp_path / "clips" / "0.mp4")
    config = tiny_videos(tmp_path / "clips")
    config.data.images = str(pictures)
    Experiment.from_config(config).source("train")
    assert "data.images is not used: no stage of the curriculum has num_frames=1" in caplog.text


def test_a_folder_of_pictures_only_serves_stages_of_images(tmp_path):
    for number in range(40):
        write_picture(tmp_path / "clips" / f"{number:02}.png", (number, 0, 0))
    config = image_stage(tmp_path / "clips")
    config.curriculum = config.curriculum[:1]
    experiment = Experiment.from_config(config)
    train, test = experiment.source("train"), experiment.source("test")
    names = [{source.name(index) for index in range(len(source))} for source in (train, test)]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 40 and len(names[1]) > 1
    with pytest.raises(
        UserError, match=r"a picture is one frame, .* only a stage with num_frames=1"
    ):
        Experiment.from_config(tiny_videos(tmp_path / "clips")).source("train")

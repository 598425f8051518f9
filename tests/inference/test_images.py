"""Images of every kind become what a person expects, and a file that is none is named."""

import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.helpers.paths import ROOT
from tests.helpers.tiny_run import write_clip
from videomar_jax.checks import UserError
from videomar_jax.inference import images
from videomar_jax.io import pictures
from videomar_jax.io.media import write_mp4


def _smooth(frames=6, height=32, width=48):
    """A slowly changing colour gradient with thousands of colours."""
    t, y, x = np.ogrid[:frames, :height, :width]
    planes = [
        120 + 100 * np.sin(x / 20 + t / 5),
        120 + 100 * np.cos(y / 17 - t / 6),
        60 + 2 * x + 2 * y + 4 * t,
    ]
    return np.stack(np.broadcast_arrays(*planes), axis=-1).clip(0, 255).astype(np.uint8)


def _save(path, picture, **kwargs):
    picture.save(path, **kwargs)
    return path


def test_load_image_resize_stretches_and_crop_keeps_the_shape(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, :20, 0], wide[:, 20:40, 1], wide[:, 40:, 2] = 200, 200, 200
    path = _save(tmp_path / "wide.png", Image.fromarray(wide))
    np.testing.assert_array_equal(images.load_image(path, height=20, width=60), wide)
    stretched = images.load_image(path, height=30, width=30)
    assert stretched.shape == (30, 30, 3)
    for third, channel in ((5, 0), (15, 1), (25, 2)):
        assert stretched[:, third].argmax(-1).tolist() == [channel] * 30
    cropped = images.load_image(path, height=20, width=20, fit="crop")
    np.testing.assert_array_equal(cropped, wide[:, 20:40])
    assert (images.load_image(path, height=60, width=40, fit="crop").argmax(-1) == 1).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_load_image_applies_the_exif_rotation(tmp_path, orientation):
    upright = _smooth()[0]
    # How the camera stored it: the inverse of what each orientation tells the viewer to do.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = _save(tmp_path / "photo.png", Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(images.load_image(path, height=32, width=48), upright)


def test_load_image_puts_transparent_parts_on_white(tmp_path):
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[..., 0], pixels[:, 2:4, 3], pixels[:, 4:, 3] = 200, 128, 255
    expected = np.empty((4, 6, 3), np.uint8)
    expected[:, :2], expected[:, 2:4], expected[:, 4:] = 255, (227, 127, 127), (200, 0, 0)
    read = images.load_image(
        _save(tmp_path / "rgba.png", Image.fromarray(pixels)), height=4, width=6
    )
    np.testing.assert_allclose(read, expected, atol=1)
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    read = images.load_image(_save(tmp_path / "p.gif", palette, transparency=0), height=2, width=2)
    np.testing.assert_array_equal(read, [[[255] * 3, [40, 50, 60]], [[40, 50, 60], [255] * 3]])


def test_load_image_scales_16_bits_and_repeats_grey(tmp_path):
    grey = (np.arange(12).reshape(3, 4) * 5957).astype(np.uint16)
    expected = np.repeat((grey / 65535 * 255).round()[..., None], 3, axis=-1)
    for name in ("deep.png", "deep.tiff"):
        path = _save(tmp_path / name, Image.fromarray(grey))
        np.testing.assert_array_equal(images.load_image(path, height=3, width=4), expected)
    path = _save(tmp_path / "grey.png", Image.fromarray(expected[..., 0].astype(np.uint8)))
    np.testing.assert_array_equal(images.load_image(path, height=3, width=4), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr"])
def test_load_image_reads_other_modes_as_rgb(tmp_path, mode):
    path = _save(tmp_path / "image.tiff", Image.new("RGB", (5, 4), "white").convert(mode))
    np.testing.assert_array_equal(
        images.load_image(path, height=4, width=5), np.full((4, 5, 3), 255)
    )


def test_load_image_faults_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        images.load_image(tmp_path / "missing.png", height=4, width=4)
    with pytest.raises(ValueError, match=rf"{tmp_path.name} is a folder"):
        images.load_image(tmp_path, height=4, width=4)
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.jpg").touch()
    for suffix in ("png", "jpg", "gif", "webp"):
        whole = _save(tmp_path / f"whole.{suffix}", Image.fromarray(_smooth(1, 64, 64)[0]))
        (tmp_path / f"half.{suffix}").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    _save(tmp_path / "float.tiff", Image.fromarray(np.ones((4, 4), np.float32)))
    _save(tmp_path / "wide.tiff", Image.fromarray(np.full((4, 4), 70_000, np.int32)))
    for name in (
        "text.png",
        "empty.jpg",
        "half.png",
        "half.jpg",
        "half.gif",
        "half.webp",
        "float.tiff",
        "wide.tiff",
    ):
        with pytest.raises(ValueError, match=name):
            images.load_image(tmp_path / name, height=4, width=4)


def test_load_image_refuses_an_unknown_fit_or_size(tmp_path):
    path = _save(tmp_path / "image.png", Image.new("RGB", (4, 4)))
    with pytest.raises(ValueError, match="'stretch'"):
        images.load_image(path, height=4, width=4, fit="stretch")
    with pytest.raises(ValueError, match="height"):
        images.load_image(path, height=0, width=4)


def test_every_kind_of_image_is_the_same_image(tmp_path):
    """A path, a string, a Pillow image and an array; a clip keeps its frames apart."""
    pixels = _smooth(frames=3)
    path = _save(tmp_path / "image.png", Image.fromarray(pixels[0]))
    for fit in ("resize", "crop"):
        wanted = images.load_image(path, height=16, width=20, fit=fit)[None]
        for given in (
            path,
            str(path),
            Image.open(path),
            Image.fromarray(pixels[0]).convert("RGBA"),
            pixels[0],
        ):
            np.testing.assert_array_equal(
                images.given_frames(given, height=16, width=20, fit=fit), wanted
            )
        clip = images.given_frames(pixels, height=16, width=20, fit=fit)
        np.testing.assert_array_equal(clip[:1], wanted)
        assert clip.shape == (3, 16, 20, 3) and (clip[1] != clip[0]).any()
    assert (images.given_frames(pixels[0], height=32, width=48) == pixels[:1]).all(), (
        "changed without need"
    )


def test_odd_sizes():
    """A tall thin picture is stretched or cut, never refused."""
    tall = np.zeros((101, 7, 3), np.uint8)
    tall[50:] = 255
    read = images.given_frames(tall, height=8, width=8)[0]
    assert (read[:3] < 30).all() and (read[5:] > 225).all()
    assert images.given_frames(tall, height=8, width=8, fit="crop").shape == (1, 8, 8, 3)


@pytest.mark.parametrize(
    "given",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 4, 3), np.uint8),
    ],
    ids=["floats", "grey", "alpha", "no_frames"],
)
def test_arrays_that_are_no_image(given):
    with pytest.raises(ValueError, match=r"An image is uint8 \[height, width, 3\].*got"):
        images.given_frames(given, height=4, width=4)


def test_the_last_frames_of_a_clip_at_the_rate_asked_for(tmp_path):
    """write_clip's square moves one pixel a frame at 12 fps: at 6 fps two, and the last frame is
    the file's last."""
    path = write_clip(tmp_path / "clip.mp4", count=25)
    clip = images.load_clip(path, 3, fps=6)
    assert clip.shape == (3, 32, 40, 3)
    left = [int((frame[12].max(-1) > 75).argmax()) for frame in clip]
    assert left == [20, 22, 24]
    wanted = images.given_frames(clip, height=24, width=20, fit="crop")
    sized = images.load_clip(path, 3, fps=6, height=24, width=20, fit="crop")
    np.testing.assert_array_equal(sized, wanted)
    with pytest.raises(ValueError, match=r"clip\.mp4 has 13 frames at 6 fps, fewer than the 14"):
        images.load_clip(path, 14, fps=6)
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        images.load_clip(tmp_path / "gone.mp4", 3, fps=6)


def test_postscript_is_not_run_whatever_its_name(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n")
    with pytest.raises(UserError, match=r"a\.png.*cannot be read as an image"):
        images.load_image(path, height=8, width=8)


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    _save(tmp_path / "a.png", Image.new("I;16", (64, 64)))
    monkeypatch.setattr(pictures, "MOST_PIXELS", 64 * 64 - 1)
    with pytest.raises(UserError, match="64x64 pixels are too many"):
        images.load_image(tmp_path / "a.png", height=8, width=8)


@pytest.mark.parametrize(
    "profile, expected", [("P3", [217, 42, 0]), ("sRGB", [200, 60, 30]), ("", [200, 60, 30])]
)
def test_a_profile_of_other_colours_is_converted(tmp_path, profile, expected):
    picture = Image.new("RGB", (8, 8), (200, 60, 30))
    content = {
        "P3": _display_p3(),
        "sRGB": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        "": b"no profile",
    }
    picture.save(tmp_path / "a.png", icc_profile=content[profile])
    shown = images.load_image(tmp_path / "a.png", height=8, width=8)[0, 0]
    np.testing.assert_allclose(shown.astype(int), expected, atol=1)


def _display_p3():
    """A small ICC profile: primaries as seen from D50, and sRGB's curve."""

    def fixed(*values):
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    curve = b"para" + bytes(4) + b"\0\3\0\0"
    curve += fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    text = "P3".encode("utf-16-be")
    words = b"mluc" + bytes(4) + struct.pack(">II", 1, 12) + b"enUS"
    words += struct.pack(">II", len(text), 28) + text
    white = (0.9642, 1.0, 0.8249)
    tags = {
        b"desc": words,
        b"cprt": words,
        b"wtpt": b"XYZ " + bytes(4) + fixed(*white),
        b"rXYZ": b"XYZ " + bytes(4) + fixed(0.51512, 0.24120, -0.00105),
        b"gXYZ": b"XYZ " + bytes(4) + fixed(0.29198, 0.69225, 0.04189),
        b"bXYZ": b"XYZ " + bytes(4) + fixed(0.15710, 0.06657, 0.78407),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
    }
    table, data = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content
    head = struct.pack(">I", start + len(data)) + bytes(4) + b"\4\0\0\0mntrRGB XYZ "
    head += bytes(12) + b"acsp" + bytes(28) + fixed(*white)
    return head.ljust(128, b"\0") + table + data


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "YCbCr"]


@pytest.mark.parametrize("mode", MODES)
def test_a_large_picture_is_converted_in_bands_to_the_same_pixels(mode, monkeypatch):
    pixels = _smooth(1, 40, 30)[0]
    if mode.startswith("I"):
        wide = pixels[..., 0].astype(np.uint16 if mode == "I;16" else np.int32) * 257
        picture = Image.fromarray(wide)
    else:
        picture = Image.fromarray(pixels).convert(mode)
    if mode in ("LA", "RGBA"):
        picture.putalpha(Image.fromarray(pixels[..., 1]))
    if mode == "RGB":
        picture.info["icc_profile"] = _display_p3()
    whole = images.given_frames(picture, height=16, width=16)
    monkeypatch.setattr(pictures, "_BAND_PIXELS", 30 * 7)
    np.testing.assert_array_equal(images.given_frames(picture, height=16, width=16), whole)
    if mode in ("L", "I;16"):
        grey = np.repeat(pixels[..., :1] if mode == "I;16" else np.array(picture)[..., None], 3, -1)
        np.testing.assert_array_equal(images.given_frames(grey, height=16, width=16), whole)


_MEASURE = """
import resource, sys
from videomar_jax.inference import images
from videomar_jax.io import pictures
from videomar_jax.io.media import write_mp4
size = dict(height=48, width=64)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
images.load_image(sys.argv[1] + "/small.png", **size)
images.load_clip(sys.argv[1] + "/short.mp4", 3, fps=24, **size)
before = peak()
images.load_clip(sys.argv[1] + "/long.mp4", 3, fps=24, **size)
clip = peak() - before
images.load_image(sys.argv[1] + "/large.png", **size)
print(clip, peak() - before)
"""


def test_memory_is_flat_in_the_length_of_a_clip_and_narrow_for_16_bit_grey(tmp_path):
    """Once 5.2 GB for a minute of 720p, and 27 bytes for each pixel of the picture."""
    rows, columns = 360, 640
    ramp = np.zeros((rows, columns, 3), np.uint8)
    ramp[..., 0] = np.arange(columns) % 256
    for name, count in ("short", 12), ("long", 480):
        write_mp4(tmp_path / f"{name}.mp4", np.broadcast_to(ramp, (count, *ramp.shape)), 24)
    _save(tmp_path / "small.png", Image.new("I;16", (64, 64)))
    _save(tmp_path / "large.png", Image.new("I;16", (6000, 6000)))
    call = [sys.executable, "-c", _MEASURE, str(tmp_path)]
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, check=True)
    clip, picture = map(float, done.stdout.split())
    assert clip < 40, f"{clip:.0f} MiB more for 480 frames of 640x360 than for 12"
    assert picture < 250, f"{picture:.0f} MiB for 36 million pixels"

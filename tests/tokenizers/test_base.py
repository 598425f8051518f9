"""Grids, pixel scaling and files, by a small tokenizer of the test's own and by damaged copies of a
saved one."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from videomar_jax.checks import UserError
from videomar_jax.tokenizers import base
from videomar_jax.tokenizers.base import (
    fingerprint,
    finite_clips,
    latent_shape,
    load_tokenizer,
    pixel_frames,
    save_tokenizer,
    to_pixels,
    to_video,
)


class Gain:
    """The least that can be registered and saved: one array, one setting."""

    kind, version = "test_gain", 3
    temporal_stride, spatial_stride, channels = 8, 16, 3

    def __init__(self, gain, offset):
        self.gain, self.offset = np.asarray(gain, np.float32), offset

    def encode(self, pixels):
        return pixels * self.gain + self.offset

    def decode(self, latents):
        return (latents - self.offset) / self.gain

    def decode_stream(self, latents, *, max_frames):
        return map(self.decode, latents)

    def save(self, directory):
        save_tokenizer(self, directory)

    def state(self):
        return {"offset": self.offset}, {"gain": self.gain}

    @classmethod
    def from_state(cls, settings, arrays):
        return cls(arrays["gain"], **settings)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(base.TOKENIZERS._entries, Gain.kind, Gain)


@pytest.fixture
def saved(tmp_path):
    save_tokenizer(Gain([1, 2, 3], 0.5), tmp_path / "new" / "folder")
    return tmp_path / "new" / "folder"


def test_latent_shape_of_valid_sizes_and_its_inverse():
    tokenizer = Gain([1], 0)
    assert latent_shape(tokenizer, 1, 16, 48) == (1, 1, 3)
    assert latent_shape(tokenizer, 25, 256, 256) == (4, 16, 16)
    for frames in range(1, 9):
        assert latent_shape(tokenizer, pixel_frames(tokenizer, frames), 16, 16)[0] == frames
    with pytest.raises(ValueError, match="0 latent frames"):
        pixel_frames(tokenizer, 0)


@pytest.mark.parametrize(
    ("size", "parts"),
    [
        ((10, 16, 16), ["10 frames", "1 + 8", "9 or 17"]),
        ((8, 16, 16), ["8 frames", "1 or 9"]),
        ((0, 16, 16), ["0 frames", "nearest: 1"]),
        ((9, 40, 16), ["height 40", "stride 16", "32 or 48"]),
        ((9, 16, 7), ["width 7", "nearest: 16"]),
        ((9, 0, 16), ["height 0", "nearest: 16"]),
        ((7, 17, 15), ["7 frames", "height 17", "width 15"]),
    ],
)
def test_invalid_sizes_are_named_with_the_nearest_valid_ones(size, parts):
    with pytest.raises(ValueError) as caught:
        latent_shape(Gain([1], 0), *size)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_pixels_cover_the_range_and_round_trip_exactly():
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 1, 16, 16, 3)
    pixels = to_pixels(levels)
    assert pixels.dtype == jnp.float32
    assert float(pixels[0, 0, 0, 0, 0]) == -1.0 and float(pixels[0, 0, -1, -1, 0]) == 1.0
    np.testing.assert_allclose(
        np.diff(np.asarray(pixels).reshape(256, 3)[:, 0]), 2 / 255, atol=2e-7
    )
    np.testing.assert_array_equal(to_video(pixels), levels)


def test_video_is_rounded_to_the_nearest_level_and_clipped():
    levels = np.array([-40.0, -0.4, 99.4, 99.6, 255.3, 900.0])
    pixels = np.repeat(levels[:, None, None] / 127.5 - 1, 3, axis=2).astype(np.float32)
    np.testing.assert_array_equal(to_video(pixels)[:, 0, 0], [0, 0, 99, 100, 255, 255])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_is_no_black_pixel(value):
    pixels = np.zeros((2, 1, 4, 4, 3), np.float32)
    pixels[1, 0, 2, 2, 1] = value
    with pytest.raises(UserError, match="NaN or infinity"):
        to_video(pixels)
    np.testing.assert_array_equal(finite_clips(jnp.asarray(pixels)), [True, False])


def test_save_and_load_by_kind(saved):
    tokenizer = load_tokenizer(saved)
    assert type(tokenizer) is Gain and tokenizer.offset == 0.5
    np.testing.assert_array_equal(tokenizer.gain, [1, 2, 3])


def test_fingerprint_follows_settings_and_arrays(saved):
    known = fingerprint(load_tokenizer(saved))
    assert known == fingerprint(Gain([1, 2, 3], 0.5))
    others = [
        Gain([1, 2, 3], 0.25),
        Gain([1, 2, np.nextafter(np.float32(3), 4)], 0.5),
        Gain([[1, 2, 3]], 0.5),
    ]
    assert len({known, *map(fingerprint, others)}) == 4


def test_a_kind_is_registered_once():
    with pytest.raises(ValueError, match="'test_gain' is taken by Gain"):
        base.TOKENIZERS.register(type("Other", (), {"kind": "test_gain"}))
    assert base.TOKENIZERS.register(Gain) is Gain


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.npz"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_tokenizer(saved)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("kind", "nothing", "unknown kind 'nothing'.*pca"),
        ("version", 4, "version 4; this code reads 3"),
        ("settings", {"offset": 9}, "do not belong together"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(saved, key, value, message):
    header = json.loads((saved / "tokenizer.json").read_text())
    (saved / "tokenizer.json").write_text(json.dumps(header | {key: value}))
    with pytest.raises(ValueError, match=message):
        load_tokenizer(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"kind": "test_gain"}'])
def test_a_damaged_header_is_refused(saved, text):
    (saved / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer header"):
        load_tokenizer(saved)


def test_damaged_arrays_are_refused(saved):
    whole = (saved / "tokenizer.npz").read_bytes()
    start = whole.index(np.float32([1, 2, 3]).tobytes())
    flipped = whole[:start] + b"\xff" + whole[start + 1 :]
    for data in (b"", b"not a zip", whole[: len(whole) // 2], flipped):
        (saved / "tokenizer.npz").write_bytes(data)
        with pytest.raises(ValueError, match=r"tokenizer\.npz is damaged"):
            load_tokenizer(saved)


def test_arrays_of_another_tokenizer_are_refused(saved, tmp_path):
    save_tokenizer(Gain([1, 2, 4], 0.5), tmp_path / "other")
    (saved / "tokenizer.npz").write_bytes((tmp_path / "other" / "tokenizer.npz").read_bytes())
    with pytest.raises(ValueError, match="do not belong together"):
        load_tokenizer(saved)

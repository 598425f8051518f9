"""Reconstruction of uint8 video of any size, window by window, as the published command line does
it.

Each window of frames is padded to sizes that every release divides (black rows and columns,
repeated edge frames, half before and half after), encoded, decoded and cropped. Windows know
nothing of each other: each starts with an image, so this is not the reconstruction of the whole
    clip, which `CosmosTokenizer` makes in bounded memory. It is here to compare
with figures that were measured in windows.
"""

import jax
import jax.numpy as jnp
import numpy as np

from videomar_jax.tokenizers.base import Tokenizer, to_pixels
from videomar_jax.types import Array, UInt8, Video

_SPACE, _TIME = 16, 8  # for 8x and 4x models alike


def reconstruct_windows(
    tokenizer: Tokenizer, video: UInt8[np.ndarray, "B F Hp Wp 3"], *, window: int = 17
) -> UInt8[np.ndarray, "B F Hp Wp 3"]:
    """The video through the tokenizer, `window` frames at a time (the last window may be
    shorter)."""
    if window < 1:
        raise ValueError(f"window = {window} frames: at least 1")
    parts = [video[:, start : start + window] for start in range(0, video.shape[1], window)]
    return np.concatenate([_window(tokenizer, part) for part in parts], axis=1)


def _window(tokenizer: Tokenizer, video: np.ndarray) -> np.ndarray:
    _, frames, height, width, _ = video.shape
    time, rows, columns = (
        _halves(1 - frames, _TIME),
        _halves(-height, _SPACE),
        _halves(-width, _SPACE),
    )
    black = np.pad(video, ((0, 0), (0, 0), rows, columns, (0, 0)))
    padded = np.pad(black, ((0, 0), time, (0, 0), (0, 0), (0, 0)), mode="edge")
    out = np.asarray(_reconstruct(tokenizer, jnp.asarray(padded)))
    return out[:, time[0] :][:, :frames, rows[0] :, columns[0] :][:, :, :height, :width]


@jax.jit
def _reconstruct(tokenizer: Tokenizer, video: Video) -> UInt8[Array, "B F Hp Wp 3"]:
    # Grey levels are rounded half up, by cutting off after adding a half; `to_video` rounds half to
    # even.
    unit = jnp.clip((tokenizer.decode(tokenizer.encode(to_pixels(video))) + 1) / 2, 0, 1)
    return (unit * 255 + 0.5).astype(jnp.uint8)


def _halves(negative: int, unit: int) -> tuple[int, int]:
    """(before, after) of the padding to the next multiple of `unit`; the smaller half stands
    before."""
    padding = negative % unit
    return padding // 2, padding - padding // 2

"""Reconstruction of uint8 video of any size, window by window, as NVIDIA's command line does it.

Each window of frames is padded to sizes that every release accepts (black rows and columns,
repeated edge frames, half before and half after), encoded, decoded and cropped. Windows are
independent and each starts with an image, so the result is not the reconstruction of the whole
clip, which `CosmosTokenizer` makes in bounded memory. It serves to compare with published figures,
which were measured in windows.
"""

import jax
import jax.numpy as jnp
import numpy as np

from videomar_jax.checks import Count, UserError, check_value
from videomar_jax.tokenizers.base import Tokenizer, finite_clips, to_pixels
from videomar_jax.types import Array, Bool, UInt8, Video

_SPACE = 16
_TIME = 8
"""Padded sizes are multiples of these, for models of smaller strides as well."""


def reconstruct_windows(
    tokenizer: Tokenizer, video: UInt8[np.ndarray, "B F Hp Wp 3"], *, window: int = 17
) -> UInt8[np.ndarray, "B F Hp Wp 3"]:
    """The video through the tokenizer, `window` frames at a time (the last may be shorter).

    Raises:
        UserError: the tokenizer gives NaN or infinity.
    """
    check_value("window", window, Count)
    parts = [video[:, start : start + window] for start in range(0, video.shape[1], window)]
    return np.concatenate([_window(tokenizer, part) for part in parts], axis=1)


def _window(tokenizer: Tokenizer, video: np.ndarray) -> np.ndarray:
    _, frames, height, width, _ = video.shape
    time = _halves(1 - frames, _TIME)
    rows = _halves(-height, _SPACE)
    columns = _halves(-width, _SPACE)
    black = np.pad(video, ((0, 0), (0, 0), rows, columns, (0, 0)))
    padded = np.pad(black, ((0, 0), time, (0, 0), (0, 0), (0, 0)), mode="edge")
    out, finite = map(np.asarray, _reconstruct(tokenizer, jnp.asarray(padded)))
    if not finite.all():
        raise UserError(
            "The reconstruction holds NaN or infinity: the tokenizer's weights are damaged, or its "
            "compute type is too narrow."
        )
    out = out[:, time[0] : time[0] + frames]
    return out[:, :, rows[0] : rows[0] + height, columns[0] : columns[0] + width]


@jax.jit
def _reconstruct(
    tokenizer: Tokenizer, video: Video
) -> tuple[UInt8[Array, "B F Hp Wp 3"], Bool[Array, "B"]]:
    # Rounds halves up, as the published code does; `to_video` rounds them to even.
    pixels = tokenizer.decode(tokenizer.encode(to_pixels(video)))
    unit = jnp.clip((pixels + 1) / 2, 0, 1)
    return (unit * 255 + 0.5).astype(jnp.uint8), finite_clips(pixels)


def _halves(negative: int, unit: int) -> tuple[int, int]:
    """(before, after) of the padding of a size, given as its negative, to a multiple of `unit`; the
    smaller half comes before."""
    padding = negative % unit
    return padding // 2, padding - padding // 2

"""The windows of one shard to records: frames decoded by threads, latents by all local devices,
text by its encoder.

A batch is a fixed stretch of the shard's windows, filled up to `batch_size`; a window that cannot
be decoded leaves its row empty. So what is computed for a clip depends on neither its neighbours
nor on where a run was interrupted.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videomar_jax.data.records import DTYPES, PreparedClip, to_record
from videomar_jax.data.sources import ClipShape
from videomar_jax.data.windows import Window, read_window
from videomar_jax.preparation.plan import Settings, ShardPlan
from videomar_jax.preparation.progress import read_ahead
from videomar_jax.text_encoders import TextEncoder
from videomar_jax.tokenizers import Tokenizer, to_pixels
from videomar_jax.types import Bool, Float, UInt8

Text = tuple[Float[np.ndarray, "n E"], Bool[np.ndarray, "K"]]
"""Features of a caption's tokens, and the mask."""


class LatentEncoder:
    """Clips to latents on all local devices, each taking an equal share of a batch.

    batch_size: clips encoded at a time, rounded up to a multiple of the devices; None for one on
        each.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        batch_size: int | None = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        devices = jax.local_devices() if devices is None else devices
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.batch_size = -(-(batch_size or 1) // len(devices)) * len(devices)
        mesh, every, split = (
            Mesh(np.array(devices), ("clips",)),
            PartitionSpec(),
            PartitionSpec("clips"),
        )
        self._split = NamedSharding(mesh, split)
        self._tokenizer = jax.device_put(tokenizer, NamedSharding(mesh, every))
        self._encode = jax.jit(
            jax.shard_map(
                _encode, mesh=mesh, in_specs=(every, split), out_specs=split, check_vma=False
            )
        )

    def __call__(self, video: UInt8[np.ndarray, "B F Hp Wp 3"]) -> Float[np.ndarray, "B T h w C"]:
        """Latents (float32) of a batch of `batch_size`. Raises ValueError where it does not fit
        into memory."""
        try:
            return np.asarray(self._encode(self._tokenizer, jax.device_put(video, self._split)))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            size = "x".join(map(str, video.shape[1:4]))
            raise ValueError(
                f"{len(video)} clips of {size} do not fit into device memory: lower --batch_size (now "
                f"{self.batch_size}), or prepare fewer frames or smaller sizes"
            ) from error


def _encode(tokenizer: Tokenizer, video: jax.Array) -> jax.Array:
    return tokenizer.encode(to_pixels(video))


class ShardEncoder:
    """Shards of a plan to records. `threads` decode videos, a little ahead of the devices."""

    def __init__(
        self,
        videos: Path,
        settings: Settings,
        tokenizer: Tokenizer,
        text_encoder: TextEncoder | None,
        *,
        batch_size: int | None = None,
        threads: int = 4,
    ):
        if threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        self._videos, self._settings, self._threads = videos, settings, threads
        self._latents = LatentEncoder(tokenizer, batch_size=batch_size)
        self._text_encoder = text_encoder
        self._dtype = DTYPES[settings.dtype]

    @property
    def batch_size(self) -> int:
        """Clips encoded at a time."""
        return self._latents.batch_size

    def __call__(self, shard: ShardPlan) -> Iterator[tuple[Window, bytes | str]]:
        """Every window of the shard, in order, with its record (bytes) or why there is none
        (str)."""
        size = self.batch_size
        decoded = read_ahead(
            self._decode, shard.windows, threads=self._threads, ahead=max(2 * size, self._threads)
        )
        for start in range(0, len(shard.windows), size):
            windows = shard.windows[start : start + size]
            clips = list(islice(decoded, len(windows)))
            latents = self._encode_clips(clips, shard.shape)
            texts = self._encode_captions([window.caption for window in windows])
            for row, (window, clip) in enumerate(zip(windows, clips, strict=True)):
                if isinstance(clip, str):
                    yield window, clip
                else:
                    yield (
                        window,
                        self._record(
                            window, shard.first_clip + start + row, latents[row], texts[row]
                        ),
                    )

    def _decode(self, window: Window) -> np.ndarray | str:
        try:
            return read_window(self._videos, window, self._settings.cutting.fps)
        except (ValueError, OSError) as error:
            return str(error)

    def _encode_clips(self, clips: Sequence[np.ndarray | str], shape: ClipShape) -> np.ndarray:
        batch = np.zeros(
            (self.batch_size, shape.num_frames, shape.height, shape.width, 3), np.uint8
        )
        for row, clip in enumerate(clips):
            if not isinstance(clip, str):
                batch[row] = clip
        return self._latents(batch)

    def _encode_captions(self, captions: Sequence[str]) -> list[Text | None]:
        if self._text_encoder is None:
            return [None] * len(captions)
        different = list(dict.fromkeys(captions))  # windows of one video share theirs
        features, masks = self._text_encoder.encode(different)
        rows = [different.index(caption) for caption in captions]
        return [(features[row][masks[row]], masks[row]) for row in rows]

    def _record(
        self, window: Window, clip: int, latents: np.ndarray, text: Text | None
    ) -> bytes | str:
        """The record, or that some number is too large for the dtype."""
        kept = [self._narrow(array) for array in (latents, *(() if text is None else (text[0],)))]
        if any(array is None for array in kept):
            return (
                f"{self._videos / window.video}: at {window.start:.2f} s latents or text features are not finite in "
                f"{self._settings.dtype}"
                + ("; --dtype=bfloat16 has more range" * (self._settings.dtype == "float16"))
            )
        return to_record(
            PreparedClip(
                latents=kept[0],
                text=kept[1] if text else None,
                text_mask=text[1] if text else None,
                caption=window.caption,
                file=window.video,
                start=window.start,
                fps=self._settings.cutting.fps,
                shape=window.shape,
                clip=clip,
            )
        )

    def _narrow(self, array: np.ndarray) -> np.ndarray | None:
        """The array in the dtype of the folder, or None if it does not stay finite."""
        with np.errstate(over="ignore"):
            narrow = np.ascontiguousarray(array.astype(self._dtype))
        return narrow if np.isfinite(narrow.astype(np.float32)).all() else None


Encode = Callable[[ShardPlan], Iterator[tuple[Window, bytes | str]]]
"""What turns a shard into records: a `ShardEncoder`."""

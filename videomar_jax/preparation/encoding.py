"""The windows of one shard to records: decoded by threads, encoded by all local devices.

A batch is a fixed stretch of the shard's windows, filled up to `batch_size`; a window that cannot
be decoded leaves its row empty. So what is computed for a clip depends neither on its neighbours
nor on where a run was interrupted.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videomar_jax.checks import UserError, at_least
from videomar_jax.data.records import DTYPES, PreparedClip, to_record
from videomar_jax.data.sources import ClipShape
from videomar_jax.data.windows import Window, read_window
from videomar_jax.platforms import compile_for, platform_of
from videomar_jax.preparation.plan import Settings, ShardPlan
from videomar_jax.preparation.progress import read_ahead
from videomar_jax.text_encoders import TextEncoder
from videomar_jax.tokenizers import Tokenizer, to_pixels
from videomar_jax.types import Bool, Float, UInt8


class CaptionFeatures(NamedTuple):
    """A caption as its encoder gives it, without padding.

    features: of the n tokens; mask: True for each of them, of the encoder's full length.
    """

    features: Float[np.ndarray, "n E"]
    mask: Bool[np.ndarray, "K"]


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
        if batch_size is None:
            batch_size = len(devices)
        at_least("batch_size", batch_size, 1)
        clips_per_device = (batch_size + len(devices) - 1) // len(devices)
        self.batch_size = clips_per_device * len(devices)
        mesh = Mesh(np.array(devices), ("clips",))
        copied, split = PartitionSpec(), PartitionSpec("clips")
        self._split = NamedSharding(mesh, split)
        self._tokenizer = jax.device_put(tokenizer, NamedSharding(mesh, copied))
        self._encode = jax.jit(
            jax.shard_map(
                _encode, mesh=mesh, in_specs=(copied, split), out_specs=split, check_vma=False
            )
        )

    def __call__(self, video: UInt8[np.ndarray, "B F Hp Wp 3"]) -> Float[np.ndarray, "B T h w C"]:
        """Latents (float32) of `batch_size` clips.

        Raises:
            UserError: the batch does not fit into memory.
        """
        try:
            placed = jax.device_put(video, self._split)
            with compile_for(platform_of(self._split)):
                return np.asarray(self._encode(self._tokenizer, placed))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            size = "x".join(map(str, video.shape[1:4]))
            raise UserError(
                f"{len(video)} clips of {size} do not fit into device memory: lower --batch_size "
                f"(now {self.batch_size}), or prepare fewer frames or smaller sizes."
            ) from error


def _encode(tokenizer: Tokenizer, video: jax.Array) -> jax.Array:
    return tokenizer.encode(to_pixels(video))


class ShardEncoder:
    """Shards of a plan to records.

    videos: the folder of video files.
    text_encoder: None leaves captions as text.
    batch_size: as in `LatentEncoder`.
    threads: decode videos, a little ahead of the devices.
    """

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
        at_least("threads", threads, 1)
        self._videos = videos
        self._settings = settings
        self._threads = threads
        self._latents = LatentEncoder(tokenizer, batch_size=batch_size)
        self._text_encoder = text_encoder
        self._dtype = DTYPES[settings.dtype]

    @property
    def batch_size(self) -> int:
        """Clips encoded at a time."""
        return self._latents.batch_size

    def __call__(self, shard: ShardPlan) -> Iterator[tuple[Window, bytes | str]]:
        """Every window of the shard, in order, with its record, or a text that says why there is
        none."""
        size = self.batch_size
        decoded = read_ahead(
            self._decode, shard.windows, threads=self._threads, ahead=max(2 * size, self._threads)
        )
        for start in range(0, len(shard.windows), size):
            windows = shard.windows[start : start + size]
            clips = list(islice(decoded, len(windows)))
            latents = self._encode_clips(clips, shard.shape)
            captions = self._encode_captions([window.caption for window in windows])
            for row, (window, clip) in enumerate(zip(windows, clips, strict=True)):
                if isinstance(clip, str):
                    yield window, clip
                    continue
                number = shard.first_clip + start + row
                yield window, self._record(window, number, latents[row], captions[row])

    def _decode(self, window: Window) -> np.ndarray | str:
        try:
            return read_window(self._videos, window, self._settings.cutting.fps)
        except (ValueError, OSError) as error:
            return str(error)

    def _encode_clips(self, clips: Sequence[np.ndarray | str], shape: ClipShape) -> np.ndarray:
        size = (self.batch_size, shape.num_frames, shape.height, shape.width, 3)
        batch = np.zeros(size, np.uint8)
        for row, clip in enumerate(clips):
            if not isinstance(clip, str):
                batch[row] = clip
        return self._latents(batch)

    def _encode_captions(self, captions: Sequence[str]) -> list[CaptionFeatures | None]:
        if self._text_encoder is None:
            return [None] * len(captions)
        different = list(dict.fromkeys(captions))  # windows of one video share their caption
        features, masks = self._text_encoder.encode(different)
        rows = [different.index(caption) for caption in captions]
        return [CaptionFeatures(features[row][masks[row]], masks[row]) for row in rows]

    def _record(
        self, window: Window, number: int, latents: np.ndarray, caption: CaptionFeatures | None
    ) -> bytes | str:
        """The record of clip `number`, or a text if some value is too large for the dtype."""
        narrow_latents = self._narrow(latents)
        narrow_text = None if caption is None else self._narrow(caption.features)
        if narrow_latents is None or (caption is not None and narrow_text is None):
            dtype = self._settings.dtype
            hint = "; --dtype=bfloat16 has more range" if dtype == "float16" else ""
            return (
                f"{self._videos / window.video}: at {window.start:.2f} s latents or text features "
                f"are not finite in {dtype}{hint}"
            )
        clip = PreparedClip(
            latents=narrow_latents,
            text=narrow_text,
            text_mask=None if caption is None else caption.mask,
            caption=window.caption,
            file=window.video,
            start=window.start,
            fps=self._settings.cutting.fps,
            shape=window.shape,
            clip=number,
        )
        return to_record(clip)

    def _narrow(self, array: np.ndarray) -> np.ndarray | None:
        """The array in the dtype of the folder, or None if it does not stay finite."""
        with np.errstate(over="ignore"):
            narrow = np.ascontiguousarray(array.astype(self._dtype))
        return narrow if np.isfinite(narrow.astype(np.float32)).all() else None


Encode = Callable[[ShardPlan], Iterator[tuple[Window, bytes | str]]]
"""What turns a shard into records: a `ShardEncoder`."""

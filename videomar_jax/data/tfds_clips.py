"""Any TFDS dataset of videos as a source of captioned clips, read at random through
`as_data_source`.

A video is a uint8 feature [F, rows, columns, 3 or 1]; a caption a text, a class name, or a sequence
of texts of which
one is drawn. Nothing here needs TensorFlow, though some datasets do: those with
    `tfds.features.Video` or `Image`, which
leave decoding to it. The dataset must be prepared in the array_record format, which has random
access:

    tfds.builder(NAME, file_format="array_record").download_and_prepare()
"""

import functools
import importlib.util
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from videomar_jax.data.sources import Clip, ClipShape, Sizes, check_index, short_digest
from videomar_jax.data.transforms import crop_center, crop_random, resize_cover
from videomar_jax.types import Int, UInt8

_log = logging.getLogger(__name__)
_AT_ONCE = 256
"""Videos whose lengths are read between two looks at the clock."""
_TELL_EVERY = 5.0
"""Seconds between two lines of progress."""


class TFDSClips:
    """Videos of one split of a dataset, one index each.

    name: a dataset, with config and version if need be ("moving_mnist:1.0.0"), or the folder of a
        prepared one.
    split: as TFDS writes it, such as "train" or "train[:95%]".
    video_key, caption_key: the features; "a/b" for nested ones, caption_key "" for none.
    data_dir: where datasets lie, if not where TFDS looks by itself.
    fps: frames per second of the stored videos; they are not resampled.
    random: window and crop are drawn at random; None for splits whose name begins with "train".
        Else the middle.

    Raises ValueError for a dataset, split or feature that is not there, naming those that are;
    FileNotFoundError for a dataset that is not prepared yet.
    """

    def __init__(
        self,
        name: str,
        *,
        split: str = "train",
        video_key: str = "video",
        caption_key: str = "caption",
        data_dir: str | Path | None = None,
        fps: float,
        random: bool | None = None,
    ):
        if not fps > 0:
            raise ValueError(f"fps must be positive, got {fps}")
        self.fps, self.name, self.split = float(fps), name, split
        builder = _builder(name, data_dir)
        self._video, self._caption = video_key, caption_key
        features = _features(builder.info.features)
        _check_video(name, features, video_key)
        self._video_feature = features[video_key]
        self._full_name = builder.info.full_name
        self._told: set[int] = set()
        self._label = _find(name, features, caption_key) if caption_key else None
        self._source = _open(builder, name, split)
        self._random = split.startswith("train") if random is None else random

    def __len__(self) -> int:
        return len(self._source)

    def digest(self) -> str:
        """Of name, configuration and version of the dataset, the split, the features, and how many
        videos there are."""
        return short_digest(
            "tfds", self._full_name, self.split, self._video, self._caption, self.fps, len(self)
        )

    def fits(self, shape: ClipShape, sizes: Sizes = ()) -> Int[np.ndarray, "clips"]:
        """Ascending indices of the videos with frames enough for `shape`; their sizes are not
        looked at.

        The first call reads every video once, where the feature does not say how many frames they
        have. Those left out are counted in a warning.
        """
        fit = self._lengths >= shape.num_frames
        if not fit.all() and shape.num_frames not in self._told:
            self._told.add(shape.num_frames)
            _log.warning(
                "%s, %s: %d of %d videos have fewer than %d frames and are left out where so many are asked",
                self.name,
                self.split,
                np.sum(~fit),
                len(self),
                shape.num_frames,
            )
        return np.flatnonzero(fit)

    @functools.cached_property
    def _lengths(self) -> Int[np.ndarray, "clips"]:
        """Frames of every video."""
        if (frames := self._video_feature.shape[0]) is not None:
            return np.full(len(self), frames)
        import tensorflow_datasets as tfds

        wanted = self._video_feature
        for part in reversed(self._video.split("/")):
            wanted = {part: wanted}
        video = tfds.features.FeaturesDict(wanted)  # nothing else of an example is decoded

        def length(index: int) -> int:
            return len(
                _at(video.deserialize_example_np(self._source.data_source[index]), self._video)
            )

        found: list[int] = []
        said = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            while len(found) < len(self):
                found += pool.map(length, range(len(found), min(len(found) + _AT_ONCE, len(self))))
                if time.monotonic() - said > _TELL_EVERY:
                    said = time.monotonic()
                    _log.info(
                        "%s, %s: lengths of %d of %d videos read",
                        self.name,
                        self.split,
                        len(found),
                        len(self),
                    )
        return np.array(found)

    def read(self, index: int, rng: np.random.Generator, shape: ClipShape) -> Clip:
        """A window of video number `index`. Raises ValueError where it has too few frames."""
        check_index(index, len(self))
        example = self._source[index]
        video = self._frames(index, np.asarray(_at(example, self._video)))
        if (room := len(video) - shape.num_frames) < 0:
            raise ValueError(
                f"{self.name}, {self.split}: video {index} has {len(video)} frames, {shape.num_frames} asked; ask for "
                f"shorter clips"
            )
        start = int(rng.integers(room + 1)) if self._random else room // 2
        video = resize_cover(video[start : start + shape.num_frames], shape.height, shape.width)
        if self._random:
            video = crop_random(video, shape.height, shape.width, rng)
        else:
            video = crop_center(video, shape.height, shape.width)
        return Clip(video=video, caption=self._text(example, rng))

    def _frames(self, index: int, video: np.ndarray) -> UInt8[np.ndarray, "F rows columns 3"]:
        if video.ndim != 4 or video.dtype != np.uint8 or video.shape[-1] not in (1, 3):
            found = f"{self._video!r} of video {index} is {video.dtype} {list(video.shape)}"
            raise ValueError(f"{self.name}: {found}, not uint8 [F, rows, columns, 3]")
        return np.repeat(video, 3, axis=-1) if video.shape[-1] == 1 else video

    def _text(self, example: Mapping[str, Any], rng: np.random.Generator) -> str:
        if self._label is None:
            return ""
        text = _at(example, self._caption)
        if isinstance(text, list | tuple | np.ndarray) and np.ndim(text):
            if not len(text):
                return ""
            text = text[int(rng.integers(len(text))) if self._random else 0]
        if hasattr(self._label, "int2str") and not isinstance(text, str | bytes):
            return self._label.int2str(int(text))
        return text.decode(errors="replace") if isinstance(text, bytes) else str(text)


def _builder(name: str, data_dir: str | Path | None) -> Any:
    import tensorflow_datasets as tfds  # late: it takes a while

    try:
        if (Path(name).expanduser() / "dataset_info.json").is_file():
            return tfds.builder_from_directory(Path(name).expanduser())
        return tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # TFDS has many, of no common kind
        tensorflow = importlib.util.find_spec("tensorflow") is not None
        hint = (
            ""
            if tensorflow
            else "; some of TFDS's own datasets are known only where TensorFlow is installed"
        )
        raise ValueError(
            f"TFDS cannot open {name!r} ({_first_line(error)}): give a dataset's name or the folder of a prepared "
            f"one{hint}"
        ) from error


def _open(builder: Any, name: str, split: str) -> Any:
    """The data source of a split."""
    splits = list(builder.info.splits)
    prepare = f'tfds.builder({name!r}, file_format="array_record").download_and_prepare()'
    try:
        source = builder.as_data_source(split)
    except Exception as error:
        if not splits:
            raise FileNotFoundError(
                f"the TFDS dataset {name!r} is not prepared: run {prepare}"
            ) from error
        raise ValueError(
            f"TFDS cannot read the split {split!r} of {name!r} ({_first_line(error)}); it has {', '.join(splits)}. "
            f"If its files are not array_record, run {prepare}"
        ) from error
    if not len(source):
        raise ValueError(f"the split {split!r} of {name!r} is empty; it has {', '.join(splits)}")
    return source


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def _features(features: Any, prefix: str = "") -> dict[str, Any]:
    """Features by name, nested ones as "a/b"."""
    found = {}
    for key, feature in features.items():
        nested = hasattr(feature, "items")
        found |= _features(feature, f"{prefix}{key}/") if nested else {f"{prefix}{key}": feature}
    return found


def _find(name: str, features: Mapping[str, Any], key: str) -> Any:
    if key not in features:
        known = ", ".join(f"{key} {_told(feature)}" for key, feature in features.items())
        raise ValueError(f"{name} has no feature {key!r}; it has {known}")
    return features[key]


def _check_video(name: str, features: Mapping[str, Any], key: str) -> None:
    feature = _find(name, features, key)
    shape = feature.shape
    if len(shape) != 4 or shape[-1] not in (1, 3, None) or feature.np_dtype != np.uint8:
        raise ValueError(
            f"{key!r} of {name} is {_told(feature)}, not a video: uint8 [F, rows, columns, 3]"
        )


def _told(feature: Any) -> str:
    return (
        f"({np.dtype(feature.np_dtype)} {list(feature.shape)})"
        if isinstance(feature.shape, tuple)
        else ""
    )


def _at(example: Any, key: str) -> Any:
    for part in key.split("/"):
        example = example[part]
    return example

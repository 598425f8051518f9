"""Any TFDS dataset of videos as a source of captioned clips, with random access.

A video is a uint8 feature [F, rows, columns, 3 or 1]; a caption is a text, a class name, or a
sequence of texts of which one is drawn. Nothing here needs TensorFlow, though some datasets do:
those with `tfds.features.Video` or `Image`, which leave decoding to it. The dataset must be
prepared in the array_record format, which has random access:

    tfds.builder(NAME, file_format="array_record").download_and_prepare()
"""

import functools
import importlib.util
import json
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from videomar_jax.checks import Positive, UserError, check_value
from videomar_jax.data.sources import (
    Clip,
    ClipShape,
    Contents,
    Sizes,
    SourceKind,
    check_index,
    short_digest,
)
from videomar_jax.data.transforms import crop_center, crop_random, resize_cover
from videomar_jax.io.files import read_json
from videomar_jax.io.log import log
from videomar_jax.io.paths import is_address, user_path
from videomar_jax.types import Int, UInt8

# How features.json writes the class of a feature, and what the names of TFDS's own look like.
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
_OWN_FEATURE = re.compile(r"tensorflow_datasets\.core\.features\.[a-z_0-9.]+\.\w+")
# Videos whose lengths are read between two looks at the clock.
_CHUNK = 256
# Seconds between two lines of progress.
_REPORT_EVERY = 5.0


class TFDSClips:
    """Videos of one split of a dataset, one index each.

    Args:
        name: a dataset, with config and version if need be ("moving_mnist:1.0.0"), or the folder of
            a prepared one.
        split: as TFDS writes it, such as "train" or "train[:95%]".
        video_key: the feature with the video; "a/b" for a nested one.
        caption_key: the feature with the caption; "" for none.
        data_dir: where datasets lie, if not where TFDS looks by itself.
        fps: frames per second of the stored videos; they are not resampled.
        random: window and crop are drawn at random, otherwise they are in the middle. None: random
            for splits whose name begins with "train".

    Raises:
        UserError: a dataset, split or feature does not exist; the text names those that do.
        FileNotFoundError: the dataset is not prepared yet.
    """

    KIND: ClassVar[SourceKind] = SourceKind(
        name="tfds",
        description="a TFDS dataset by name",
        place="the dataset",
        place_form="NAME",
        any_shape=False,
    )

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
        check_value("fps", fps, Positive)
        self.fps = float(fps)
        self.name = name
        self.split = split
        builder = _builder(name, data_dir)
        self._video_key = video_key
        self._caption_key = caption_key
        features = _features(builder.info.features)
        _check_video(name, features, video_key)
        self._video_feature = features[video_key]
        self._caption_feature = _find(name, features, caption_key) if caption_key else None
        self._full_name = builder.info.full_name
        self._files = _files(builder, split)
        self._source = _open(builder, name, split)
        self._random = split.startswith("train") if random is None else random
        # Clip lengths whose warning was given.
        self._warned: set[int] = set()

    def __len__(self) -> int:
        return len(self._source)

    def digest(self) -> str:
        """Of the dataset (name, configuration, version), the split, the features and the length."""
        features = (self._video_key, self._caption_key)
        return short_digest("tfds", self._full_name, self.split, *features, self.fps, len(self))

    def contents(self) -> Contents:
        """The local files of the split, and those that say what they mean; captions are in them."""
        return Contents(files=self._files)

    def fits(self, shape: ClipShape, sizes: Sizes = ()) -> Int[np.ndarray, "clips"]:
        """Ascending indices of the videos with frames enough for `shape`.

        The size of the frames is not looked at. The first call reads every video once, unless the
        feature says how many frames they have. Those left out are counted in a warning.
        """
        fit = self._lengths >= shape.num_frames
        if not fit.all() and shape.num_frames not in self._warned:
            self._warned.add(shape.num_frames)
            log.warning(
                "%s, %s: %d of %d videos have fewer than %d frames and are left out where so many "
                "are needed",
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
        frames = self._video_feature.shape[0]
        if frames is not None:
            return np.full(len(self), frames)
        found: list[int] = []
        reported = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            while len(found) < len(self):
                chunk = range(len(found), min(len(found) + _CHUNK, len(self)))
                found += pool.map(self._read_length, chunk)
                if time.monotonic() - reported > _REPORT_EVERY:
                    reported = time.monotonic()
                    log.info(
                        "%s, %s: lengths of %d of %d videos read",
                        self.name,
                        self.split,
                        len(found),
                        len(self),
                    )
        return np.array(found)

    def _read_length(self, index: int) -> int:
        """Frames of one video; nothing else of the example is decoded."""
        example = self._video_only.deserialize_example_np(self._source.data_source[index])
        return len(_at(example, self._video_key))

    @functools.cached_property
    def _video_only(self) -> Any:
        """The features of an example but for all that is not the video."""
        import tensorflow_datasets as tfds

        wanted = self._video_feature
        for part in reversed(self._video_key.split("/")):
            wanted = {part: wanted}
        return tfds.features.FeaturesDict(wanted)

    def read(self, index: int, rng: np.random.Generator, shape: ClipShape) -> Clip:
        """A window of video number `index`.

        Raises:
            UserError: the video has too few frames, or is not a uint8 video.
        """
        check_index(index, len(self))
        example = self._source[index]
        video = self._rgb(index, np.asarray(_at(example, self._video_key)))
        room = len(video) - shape.num_frames
        if room < 0:
            raise UserError(
                f"{self.name}, {self.split}: video {index} has {len(video)} frames, "
                f"{shape.num_frames} asked; ask for shorter clips."
            )
        start = int(rng.integers(room + 1)) if self._random else room // 2
        video = resize_cover(video[start : start + shape.num_frames], shape.height, shape.width)
        if self._random:
            video = crop_random(video, shape.height, shape.width, rng)
        else:
            video = crop_center(video, shape.height, shape.width)
        return Clip(video=video, caption=self._caption(example, rng))

    def _rgb(self, index: int, video: np.ndarray) -> UInt8[np.ndarray, "F rows columns 3"]:
        if video.ndim != 4 or video.dtype != np.uint8 or video.shape[-1] not in (1, 3):
            found = f"{self._video_key!r} of video {index} is {video.dtype} {list(video.shape)}"
            raise UserError(f"{self.name}: {found}, not uint8 [F, rows, columns, 3].")
        return np.repeat(video, 3, axis=-1) if video.shape[-1] == 1 else video

    def _caption(self, example: Mapping[str, Any], rng: np.random.Generator) -> str:
        if self._caption_feature is None:
            return ""
        text = _at(example, self._caption_key)
        if isinstance(text, list | tuple | np.ndarray) and np.ndim(text):
            if not len(text):
                return ""
            text = text[int(rng.integers(len(text))) if self._random else 0]
        if isinstance(text, bytes):
            return text.decode(errors="replace")
        if hasattr(self._caption_feature, "int2str") and not isinstance(text, str):
            return self._caption_feature.int2str(int(text))
        return str(text)


def _builder(name: str, data_dir: str | Path | None) -> Any:
    import tensorflow_datasets as tfds  # Late: the import takes seconds.

    folder = None if is_address(name) else user_path(name, "data.path")
    if data_dir and not is_address(data_dir):
        data_dir = user_path(data_dir, "data.data_dir")
    if folder is not None and not (folder / "dataset_info.json").is_file():
        folder = None  # a name
    if folder is not None:
        _check_features_file(folder / "features.json")
    elif not is_address(data_dir or ""):
        # What is prepared already may be read from its files, without TFDS's own definition.
        root = user_path(data_dir or tfds.core.constants.DATA_DIR)
        for path in (root / re.split("[:/]", name)[0]).rglob("features.json"):
            _check_features_file(path)
    try:
        if folder is not None:
            return tfds.builder_from_directory(folder)
        return tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # TFDS has many, of no common kind.
        hint = ""
        if importlib.util.find_spec("tensorflow") is None:
            hint = "; some of TFDS's own datasets are known only where TensorFlow is installed"
        raise UserError(
            f"TFDS cannot open {name!r} ({_first_line(error)}): give the name of a dataset or the "
            f"folder of a prepared one{hint}."
        ) from error


def _check_features_file(path: Path) -> None:
    """Raises a UserError unless a dataset's features are all TFDS's own.

    TFDS imports the module of any class that the file names, which runs its code.
    """
    try:
        features = read_json(path)
        names = set(_class_names(features))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as the features of a dataset: {error}") from error
    for name in sorted(names):
        if not _OWN_FEATURE.fullmatch(name):
            raise UserError(
                f"{path} names the class {name!r}, which is not one of TFDS's own features: to "
                "open it would run that module. Store the dataset with features of TFDS."
            )


def _class_names(features: Any) -> Iterator[Any]:
    """Yields the classes that a features.json names, at any depth."""
    if isinstance(features, dict):
        is_legacy = isinstance(features.get("type"), str)
        for key, value in features.items():
            if isinstance(value, str) and key in _CLASS_KEYS:
                yield value
            elif isinstance(value, str) and key == "content" and is_legacy:
                yield from _class_names(json.loads(value))
            else:
                yield from _class_names(value)
    elif isinstance(features, list):
        for value in features:
            yield from _class_names(value)


def _open(builder: Any, name: str, split: str) -> Any:
    """The data source of a split."""
    known = ", ".join(builder.info.splits)
    prepare = f'tfds.builder({name!r}, file_format="array_record").download_and_prepare()'
    try:
        source = builder.as_data_source(split)
    except Exception as error:
        if not known:
            raise FileNotFoundError(
                f"the TFDS dataset {name!r} is not prepared: run {prepare}"
            ) from error
        raise UserError(
            f"TFDS cannot read the split {split!r} of {name!r} ({_first_line(error)}); it has "
            f"{known}. If its files are not array_record, run {prepare}."
        ) from error
    if not len(source):
        raise UserError(f"The split {split!r} of {name!r} is empty; it has {known}.")
    return source


def _files(builder: Any, split: str) -> list[Path]:
    """The local files that a split is read from; none where TFDS does not say."""
    try:
        instructions = builder.info.splits[split].file_instructions
        folder = Path(str(builder.data_dir))
        names = [str(instruction.filename) for instruction in instructions]
    except Exception as error:  # TFDS has many, of no common kind; an imitation has no files
        log.debug("no files of %s: %r", split, error)
        return []
    files = [folder / name for name in dict.fromkeys(names)]
    files += [folder / "features.json", *sorted(folder.glob("*.labels.txt"))]
    return [file for file in files if file.is_file()]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def _features(features: Any, prefix: str = "") -> dict[str, Any]:
    """Features by name, nested ones as "a/b"."""
    found = {}
    for key, feature in features.items():
        if hasattr(feature, "items"):
            found |= _features(feature, f"{prefix}{key}/")
        else:
            found[f"{prefix}{key}"] = feature
    return found


def _find(name: str, features: Mapping[str, Any], key: str) -> Any:
    if key not in features:
        known = ", ".join(f"{key} {_type_of(feature)}" for key, feature in features.items())
        raise UserError(f"{name} has no feature {key!r}; it has {known}.")
    return features[key]


def _check_video(name: str, features: Mapping[str, Any], key: str) -> None:
    feature = _find(name, features, key)
    shape = feature.shape
    if len(shape) != 4 or shape[-1] not in (1, 3, None) or feature.np_dtype != np.uint8:
        raise UserError(
            f"{key!r} of {name} is {_type_of(feature)}, not a video: uint8 [F, rows, columns, 3]."
        )


def _type_of(feature: Any) -> str:
    if not isinstance(feature.shape, tuple):
        return ""
    return f"({np.dtype(feature.np_dtype)} {list(feature.shape)})"


def _at(example: Any, key: str) -> Any:
    """The value of a feature; "a/b" is the value of b in a."""
    for part in key.split("/"):
        example = example[part]
    return example

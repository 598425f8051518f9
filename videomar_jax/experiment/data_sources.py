"""Where clips come from: the settings `config.data`, and the kinds of data there are.

To add a kind, write a `ClipSource` with its `SourceKind` in videomar_jax/data/, and register a
`DataKind` here, with new settings in `DataConfig` if it needs any. There is no other list of kinds.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import jax
import numpy as np

from videomar_jax.checks import (
    AtLeastOne,
    Count,
    Fraction,
    Natural,
    Positive,
    Range,
    UserError,
    check_fields,
    one_of,
)
from videomar_jax.data.augment import Augmentation, Flip
from videomar_jax.data.scenes import Scenes
from videomar_jax.data.shapes import Shapes
from videomar_jax.data.shards import MANIFEST, LatentShards, read_manifest
from videomar_jax.data.sources import (
    ClipShape,
    ClipSource,
    Decoded,
    SourceKind,
    Subset,
    clips_for,
)
from videomar_jax.data.tfds_clips import TFDSClips
from videomar_jax.data.videos import VideoFolder, holds_only_pictures
from videomar_jax.data.with_pictures import VideosWithPictures
from videomar_jax.evaluation.report import Case
from videomar_jax.experiment.cases import CaseSettings, footage_cases, shape_cases
from videomar_jax.experiment.scene_cases import scene_cases
from videomar_jax.io.log import warn_once
from videomar_jax.io.paths import user_path
from videomar_jax.tokenizers import finite_clips, load_tokenizer, to_video

_Kind = TypeVar("_Kind", bound="DataKind")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceRequest:
    """What a run asks of its clips, besides the settings.

    split: "train" or "test"; of shapes also "unseen".
    seed: of the run.
    min_frames: shorter videos of a folder are left out.
    shortest: frames of the shortest training clip and of a test clip; a folder's video is not cut
        into shorter parts.
    drawn: how many clips of splits other than "train" are drawn on demand.
    """

    split: str
    seed: int
    min_frames: int
    shortest: tuple[int, int]
    drawn: int


class DataKind:
    """What a run does with one kind of data; subclasses override what is special to theirs."""

    facts: SourceKind
    """What is true of all clips of this kind; its name is what `data.kind` calls it."""
    linear_predictor: bool = True
    """Reports compare the model with a linear predictor that is fitted on the training clips."""
    if_none_fit: str = ""
    """What to do if no held-out clip has the shape of the last stage, for a message."""

    def check(self, config: "DataConfig") -> None:
        """Raises a UserError for settings that this kind cannot work with."""
        if self.facts.place and not config.path:
            raise UserError(
                f"data.kind is {config.kind!r}: name {self.facts.place} with "
                f"--config.data.path={self.facts.place_form}."
            )

    def open(self, config: "DataConfig", request: SourceRequest) -> ClipSource:
        """The clips of `request.split`; errors are those of the source."""
        raise NotImplementedError

    def open_held_out(
        self, config: "DataConfig", request: SourceRequest, shape: ClipShape
    ) -> ClipSource:
        """Clips of the split "test", all of which have a `video` of this shape.

        Raises:
            UserError: there are none.
        """
        source = self.open(config, request)
        if self.facts.any_shape:
            return source
        fitting = clips_for(source, shape, ((shape.height, shape.width),))
        if not len(fitting):
            raise UserError(
                f"{config.path} holds no test clips of {shape.num_frames} frames or more at "
                f"{shape.height}x{shape.width}, which the last stage is measured on; "
                f"{self.if_none_fit}, or change the stage."
            )
        return Subset(source, fitting)

    def prepared_with(self, config: "DataConfig") -> Path | None:
        """The folder whose model/tokenizer made the clips, if they are latents."""
        return user_path(config.path, "data.path") if self.facts.prepared else None

    def prepared_strides(self, config: "DataConfig") -> tuple[int, int] | None:
        """(temporal, spatial) stride of the latents, if the clips are latents and say so."""
        return None

    def cases(self, held_out: ClipSource, settings: CaseSettings) -> Sequence[Case]:
        """What is generated and scored at the end of a run; the first case is "held_out"."""
        return footage_cases(held_out, settings)


DATA_KINDS: dict[str, DataKind] = {}
"""The kinds of data by the name in `data.kind`; filled by `register`."""


def register(kind: type[_Kind]) -> type[_Kind]:
    """Class decorator: makes a kind of data known by the name in its facts."""
    DATA_KINDS[kind.facts.name] = kind()
    return kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where clips come from.

    Raises:
        UserError: a value outside its range, or one that this kind of data lacks, by name.
    """

    kind: str = "shapes"
    """The kind of data."""
    path: str = ""
    """videos, shards: the folder; tfds: the dataset's name, or the folder of a prepared one."""
    images: str = ""
    """videos: a folder of pictures (jpg, png, webp) that stages with num_frames=1 train on; empty:
    on single frames of the videos. All of them are for training. A `path` that holds pictures only
    needs no such folder."""
    captions: str = ""
    """videos: a table of captions (.csv or .jsonl); empty: one among the videos, if any."""
    fps: Positive = 12.0
    """videos: frames per second that clips are resampled to; tfds: those that they have."""
    holdout: Annotated[float, Range(low=0, high=1, low_open=True, high_open=True)] = 0.2
    """videos: the last share of each clip, which training never sees, or the share of the clips
    where they are too short to be cut; tfds: the last share of the split."""
    decode_all: bool = False
    """videos: decode every clip whole before the run, so that all damage is known at its start."""
    most_failing: Fraction = 0.1
    """videos: the share of the clips that may turn out damaged during a run; each is replaced by
    the next that can be read. 0: the first ends the run."""
    split_cuts: bool = False
    """videos: look for cuts before the run, which decodes every clip once, and take each shot for
    a clip of its own, so that no window runs across a cut."""
    zoom: AtLeastOne = 1.0
    """Training clips are enlarged by up to this factor at random and cropped; 1: not at all."""
    flip: Flip = "none"
    """Training clips that are mirrored at random: horizontal; all, which adds upside down and, of
    square clips, rows for columns; auto, horizontal where clips are few and no caption names a
    direction or writing."""
    augment_probability: Fraction = 1.0
    """The probability that zoom and flip change a clip at all. Below 1 the clips as they are keep a
    weight of their own: what is held out looks like them."""
    split: str = "train"
    """tfds: the split to train on."""
    held_out: str = ""
    """videos: another folder to measure on, the whole of it; training then takes the whole of
    `path`. tfds: the split to measure on. Empty: the last `holdout` of what there is."""
    video_key: str = "video"
    """tfds: the feature that holds the frames, "a/b" for a nested one."""
    caption_key: str = "caption"
    """tfds: the feature that holds a text or a class; empty for none."""
    data_dir: str = ""
    """tfds: where datasets are stored; empty: where TFDS looks by itself."""
    length: Count = 100_000
    """shapes, scenes: distinct training clips."""
    open_captions: Fraction = 0.0
    """scenes: the share of the training captions that leave open where to, how fast, or both."""
    unit: Natural = 0
    """scenes: pixels of the unit of length, so that objects are as large on every canvas, and a
    wider one shows a wider room. 0: the shorter side of the canvas."""
    threads: Natural = 2
    """Threads that read clips; 0: none beside the one that asks."""

    def __post_init__(self):
        check_fields("data", self)
        one_of("data.kind", self.kind, DATA_KINDS)
        DATA_KINDS[self.kind].check(self)
        if DATA_KINDS[self.kind].facts.prepared and not self.augmentation.changes_nothing:
            raise UserError(
                f"data.kind={self.kind!r} holds latents, which cannot be zoomed or mirrored any "
                "more: set data.zoom=1 and data.flip='none'."
            )

    @property
    def augmentation(self) -> Augmentation:
        """How training clips are changed at random."""
        return Augmentation(zoom=self.zoom, flip=self.flip, probability=self.augment_probability)


# The kinds


@register
class _Shapes(DataKind):
    facts = Shapes.KIND
    linear_predictor = False

    def open(self, config: DataConfig, request: SourceRequest) -> ClipSource:
        is_train = request.split == "train"
        return Shapes(
            seed=request.seed,
            length=config.length if is_train else request.drawn,
            split=request.split,
            bounce=is_train,
        )

    def cases(self, held_out: ClipSource, settings: CaseSettings) -> Sequence[Case]:
        assert isinstance(held_out, Shapes)
        return shape_cases(held_out, settings)


@register
class _Scenes(DataKind):
    facts = Scenes.KIND
    linear_predictor = False

    def open(self, config: DataConfig, request: SourceRequest) -> ClipSource:
        is_train = request.split == "train"
        return Scenes(
            seed=request.seed,
            length=config.length if is_train else request.drawn,
            split=request.split,
            open_captions=config.open_captions if is_train else 0.0,
            unit=config.unit,
        )

    def cases(self, held_out: ClipSource, settings: CaseSettings) -> Sequence[Case]:
        assert isinstance(held_out, Scenes)
        return scene_cases(held_out, settings)


@register
class _Videos(DataKind):
    facts = VideoFolder.KIND

    def open(self, config: DataConfig, request: SourceRequest) -> ClipSource:
        folder = user_path(config.path, "data.path")
        captions = user_path(config.captions, "data.captions") if config.captions else None
        split, crop = request.split, "random"
        if config.held_out:
            split = "all"
            if request.split == "test":
                folder, captions = user_path(config.held_out, "data.held_out"), None
                crop = "center"
        pictures = holds_only_pictures(folder)
        videos = VideoFolder(
            folder,
            captions=captions,
            fps=float(config.fps),
            split=split,
            crop=crop,
            holdout=config.holdout,
            min_frames=request.min_frames,
            shortest=request.shortest,
            decode_all=config.decode_all,
            split_cuts=config.split_cuts,
            pictures=pictures,
            most_failing=config.most_failing,
        )
        if not config.images or request.split == "test":
            return videos
        if request.min_frames > 1:
            warn_once("data.images is not used: no stage of the curriculum has num_frames=1")
            return videos
        images = VideoFolder(
            user_path(config.images, "data.images"),
            fps=float(config.fps),
            split="all",
            decode_all=config.decode_all,
            pictures=True,
            most_failing=config.most_failing,
        )
        return VideosWithPictures(videos, images)


@register
class _Shards(DataKind):
    facts = LatentShards.KIND
    linear_predictor = False  # every training clip would have to be decoded
    if_none_fit = "prepare some"

    def open(self, config: DataConfig, request: SourceRequest) -> ClipSource:
        return LatentShards(user_path(config.path, "data.path"), split=request.split)

    def open_held_out(
        self, config: DataConfig, request: SourceRequest, shape: ClipShape
    ) -> ClipSource:
        clips = super().open_held_out(config, request, shape)
        return Decoded(clips, _decoder(user_path(config.path, "data.path")))

    def prepared_strides(self, config: DataConfig) -> tuple[int, int] | None:
        # What is wrong with an incomplete folder is reported when its clips are opened.
        folder = user_path(config.path, "data.path")
        if not (folder / MANIFEST).is_file():
            return None
        tokenizer = read_manifest(folder)["tokenizer"]
        if not {"temporal_stride", "spatial_stride"} <= set(tokenizer):
            return None
        return int(tokenizer["temporal_stride"]), int(tokenizer["spatial_stride"])


@register
class _TFDS(DataKind):
    facts = TFDSClips.KIND
    if_none_fit = "name another split with --config.data.held_out=SPLIT"

    def check(self, config: DataConfig) -> None:
        super().check(config)
        if not config.held_out and "[" in config.split:
            raise UserError(
                f"data.split {config.split!r} is a part of a split already: name the part to "
                "measure on with --config.data.held_out=SPLIT."
            )

    def open(self, config: DataConfig, request: SourceRequest) -> ClipSource:
        return TFDSClips(
            config.path,
            split=tfds_split(config, request.split),
            video_key=config.video_key,
            caption_key=config.caption_key,
            data_dir=config.data_dir or None,
            fps=float(config.fps),
            random=request.split == "train",
        )


def tfds_split(config: DataConfig, split: str) -> str:
    """The TFDS split for "train" or "test".

    The clips to measure on are those of `held_out`, or else the last `holdout` of `split`: of each
    of its parts, where it is a sum ("train+validation").
    """
    if config.held_out:
        return config.split if split == "train" else config.held_out
    percent = min(max(round(100 * (1 - config.holdout)), 1), 99)
    part = f"[:{percent}%]" if split == "train" else f"[{percent}%:]"
    return "+".join(name.strip() + part for name in config.split.split("+"))


@functools.lru_cache(maxsize=1)
def _decoder(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Latents [T, h, w, C] to uint8 video [F, Hp, Wp, 3], with the tokenizer of prepared clips."""
    tokenizer = load_tokenizer(path / "model" / "tokenizer")

    @jax.jit
    def decode(tokenizer, latents):
        pixels = tokenizer.decode(latents)
        return to_video(pixels), finite_clips(pixels)

    def decoded(latents: np.ndarray) -> np.ndarray:
        video, finite = decode(tokenizer, np.asarray(latents[None], np.float32))
        if not finite.all():
            raise UserError(f"A clip of {path} decodes to NaN or infinity: prepare it again.")
        return np.asarray(video[0])

    return decoded

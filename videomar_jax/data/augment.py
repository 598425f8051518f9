"""Random zoom and flips of training clips: a few clips become many.

Both are drawn from the generator that a clip is read with, so they follow from the run's seed and
the clip's place in the data, and a run that is resumed sees the same ones. Held-out clips are never
changed.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import Literal

import numpy as np

from videomar_jax.checks import AtLeastOne, Fraction, check_fields
from videomar_jax.data.sources import (
    Clip,
    ClipShape,
    ClipSource,
    Contents,
    Sizes,
    clips_for,
    contents_of,
    digest_of,
    name_of,
)
from videomar_jax.data.transforms import crop_random
from videomar_jax.io.log import log
from videomar_jax.types import Int, UInt8

Flip = Literal["none", "auto", "horizontal", "all"]

ZOOM_LEVELS = 5
"""Zooms that are drawn from, 1 and the largest among them: each is a size that decoded frames are
kept in."""
FEW_CLIPS = 200
"""With at least so many clips, "auto" does not flip: there is enough to learn from, and a mirrored
world has mirrored writing and clocks."""
DIRECTIONS = frozenset(
    "left right leftward leftwards rightward rightwards lefthand righthand clockwise "
    "counterclockwise anticlockwise east west eastward westward eastern western port starboard "
    "text word words letter letters writing writes reads sign signs logo number numbers digit "
    "digits caption title clock map".split()
)
"""Words of a caption that a mirrored clip would contradict, or that speak of writing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training clips are changed.

    Raises:
        UserError: a value outside its range, by name.
    """

    zoom: AtLeastOne = 1.0
    """The largest factor that a clip is enlarged by before it is cropped."""
    flip: Flip = "none"
    """What is mirrored, each with probability 1/2: "horizontal"; "all", which adds upside down and,
    of square clips, rows for columns; "auto", horizontal for a few clips whose captions do not
    mind (`may_flip`)."""
    probability: Fraction = 1.0
    """With which a clip is changed at all; else it is read as it is."""

    def __post_init__(self):
        check_fields("data", self)

    @property
    def changes_nothing(self) -> bool:
        return (self.zoom == 1.0 and self.flip == "none") or self.probability == 0.0


def may_flip(captions: Iterable[str]) -> bool:
    """Whether no caption can mind a mirrored clip: none has a word of `DIRECTIONS`, nor letters
    that these English words say nothing about."""
    for caption in captions:
        words = re.findall(r"[a-z]+", caption.lower().replace("-", ""))
        if not caption.isascii() or DIRECTIONS.intersection(words):
            return False
    return True


class AugmentedClips:
    """The clips of a source of pixels, zoomed and flipped anew at every read."""

    def __init__(self, source: ClipSource, augmentation: Augmentation):
        self.fps = source.fps
        self._source = source
        self._zooms = np.linspace(1.0, augmentation.zoom, ZOOM_LEVELS)
        self._flip = _resolved(source, augmentation.flip)
        self._probability = augmentation.probability

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int, rng: np.random.Generator, shape: ClipShape) -> Clip:
        """As the whole source reads it, changed."""
        if self._probability < 1.0 and rng.random() >= self._probability:
            return self._source.read(index, rng, shape)
        zoom = float(rng.choice(self._zooms))
        rows, columns = round(shape.height * zoom), round(shape.width * zoom)
        larger = dataclasses.replace(shape, height=rows, width=columns)
        clip = self._source.read(index, rng, larger)
        video = crop_random(clip["video"], shape.height, shape.width, rng)
        clip["video"] = np.ascontiguousarray(self._flipped(video, rng))
        return clip

    def _flipped(
        self, video: UInt8[np.ndarray, "F Hp Wp 3"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "F Hp Wp 3"]:
        sideways, upside_down, transposed = rng.random(3) < 0.5
        if self._flip == "none":
            return video
        if sideways:
            video = video[:, :, ::-1]
        if self._flip == "all":
            if upside_down:
                video = video[:, ::-1]
            if transposed and video.shape[1] == video.shape[2]:
                video = video.transpose(0, 2, 1, 3)
        return video

    def name(self, index: int) -> str:
        """As the whole source calls it."""
        return name_of(self._source, index)

    def digest(self) -> str:
        """Of the source: how its clips are changed is a setting."""
        return digest_of(self._source)

    def contents(self) -> Contents:
        """Those of the source."""
        return contents_of(self._source)

    @property
    def sizes(self) -> Int[np.ndarray, "clips 2"] | None:
        """Those of the source, where it knows them."""
        return getattr(self._source, "sizes", None)

    def fits(self, shape: ClipShape, sizes: Sizes) -> Int[np.ndarray, "clips"]:
        """The clips that the source cuts to `shape`."""
        return clips_for(self._source, shape, sizes)


def unchanged(source: ClipSource) -> ClipSource:
    """The clips as they are, of a source that may change them."""
    return source._source if isinstance(source, AugmentedClips) else source


def _resolved(source: ClipSource, flip: Flip) -> Flip:
    """What "auto" means for this source; says it in the log."""
    captions = getattr(source, "captions", None)
    if flip in ("horizontal", "all") and captions is not None and not may_flip(captions):
        log.warning(
            "data.flip=%s mirrors clips whose captions may name directions or writing: the model "
            "learns that these words mean nothing",
            flip,
        )
    if flip != "auto":
        return flip
    if captions is None:
        return "none"
    if len(source) >= FEW_CLIPS:
        log.info("data.flip=auto: no clip is mirrored, there are %d of them", len(source))
        return "none"
    if not may_flip(captions):
        log.info("data.flip=auto: no clip is mirrored, because captions name directions or writing")
        return "none"
    log.info("data.flip=auto: clips are mirrored at random, because there are %d only", len(source))
    return "horizontal"

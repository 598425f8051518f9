"""Videos and pictures as one source: stages of images take the pictures, all others the videos."""

from collections.abc import Iterable

import numpy as np

from videomar_jax.data.sources import Clip, ClipShape, Contents, Sizes, check_index, short_digest
from videomar_jax.data.videos import VideoFolder
from videomar_jax.types import Float, Int

_PREFIX = "images:"


class VideosWithPictures:
    """The clips of a folder of videos, followed by those of a folder of pictures.

    Pictures are the clips of shapes of one frame, instead of single frames of the videos.
    """

    def __init__(self, videos: VideoFolder, pictures: VideoFolder):
        self.fps = videos.fps
        self._videos = videos
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._videos) + len(self._pictures)

    def _owner(self, index: int) -> tuple[VideoFolder, int]:
        """The folder that holds clip number `index`, and the clip's number there."""
        check_index(index, len(self))
        if index < len(self._videos):
            return self._videos, index
        return self._pictures, index - len(self._videos)

    def read(self, index: int, rng: np.random.Generator, shape: ClipShape) -> Clip:
        """As the folder that holds the clip reads it."""
        folder, number = self._owner(index)
        return folder.read(number, rng, shape)

    def fits(self, shape: ClipShape, sizes: Sizes) -> Int[np.ndarray, "clips"]:
        """The pictures for single frames, and the videos for more, as their folder says."""
        if shape.num_frames == 1:
            return len(self._videos) + self._pictures.fits(shape, sizes)
        return self._videos.fits(shape, sizes)

    def name(self, index: int) -> str:
        """As its folder calls it."""
        folder, number = self._owner(index)
        return folder.name(number)

    def digest(self) -> str:
        """Of both folders."""
        return short_digest(self._videos.digest(), self._pictures.digest())

    def contents(self) -> Contents:
        """Those of both folders."""
        videos, pictures = self._videos.contents(), self._pictures.contents()
        return Contents(
            files=[*videos.files, *pictures.files],
            captions=[*videos.captions, *pictures.captions],
        )

    def failing(self) -> list[str]:
        """The files of both folders that have failed."""
        pictures = [_PREFIX + name for name in self._pictures.failing()]
        return self._videos.failing() + pictures

    def count_failing(self, files: Iterable[str]) -> None:
        """Counts files, as `failing` names them, as failing from the start."""
        names = list(files)
        self._videos.count_failing(name for name in names if not name.startswith(_PREFIX))
        pictures = [name for name in names if name.startswith(_PREFIX)]
        self._pictures.count_failing(name.removeprefix(_PREFIX) for name in pictures)

    @property
    def captions(self) -> list[str]:
        """The captions of all clips."""
        return self._videos.captions + self._pictures.captions

    @property
    def sizes(self) -> Int[np.ndarray, "clips 2"]:
        """Rows and columns of each clip as it lies in its file."""
        return np.concatenate([self._videos.sizes, self._pictures.sizes])

    @property
    def lengths(self) -> Int[np.ndarray, "clips"]:
        """Frames of each clip at `fps`."""
        return np.concatenate([self._videos.lengths, self._pictures.lengths])

    @property
    def rates(self) -> Float[np.ndarray, "clips"]:
        """Frames per second of each clip in its file."""
        return np.concatenate([self._videos.rates, self._pictures.rates])

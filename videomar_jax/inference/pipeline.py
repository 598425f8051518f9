"""A trained model as one object: images and prompts in, videos out. The first level of use."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from videomar_jax.checks import UserError, at_least, known_keys
from videomar_jax.diffusion.plans import plan_steps
from videomar_jax.inference.images import Given, given_frames
from videomar_jax.inference.requests import SEEDS, check_seed, one_prompt_each
from videomar_jax.inference.stream import FrameStream, VideoSampler
from videomar_jax.inference.video import Video
from videomar_jax.io.pictures import MOST_PIXELS
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.parallel.config import MeshConfig
from videomar_jax.pretrained.bundle import ModelBundle, load_pretrained
from videomar_jax.pretrained.shipped import shipped
from videomar_jax.sampling.config import SamplingConfig, with_preset
from videomar_jax.sampling.schedules import head_step_names, reveal_plan
from videomar_jax.tokenizers import latent_shape
from videomar_jax.types import UInt8


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class VideoMARPipeline:
    """A model with its tokenizer and text encoder, ready to generate videos.

    >>> pipe = VideoMARPipeline.from_checkpoint(workdir)
    >>> video = pipe(image, "a red circle moves left", seed=1, steps=2)
    >>> video
    Video('a red circle moves left', 5 frames of 24x24, 12 fps, seed 1)
    >>> len(video), video.frames.dtype
    (5, dtype('uint8'))
    >>> video.save(folder / "circle.mp4").name
    'circle.mp4'

    The folder is a run's workdir or a converted model; an image is a file, a Pillow image or an
    array. Lists make a batch. Each video is the same as alone with its seed, up to rounding:

    >>> [v.seed for v in pipe([image, image], ["up", "down"], seed=7)]
    [7, 8]

    Frames as they arrive, here of a video that lasts longer than the model was trained for:

    >>> [new.shape for new in pipe.stream(image, "up", num_frames=7)]
    [(2, 24, 24, 3), (2, 24, 24, 3), (2, 24, 24, 3)]

    Pass a clip to continue it:

    >>> longer = pipe(video.frames[:3], video.prompt)
    >>> bool((longer.frames[:3] == video.frames[:3]).all()), longer.given
    (True, 3)
    """

    model: VideoMAR
    bundle: ModelBundle
    """The model's tokenizer, text encoder, sampling settings and sizes."""
    checkpoint: Path
    """The checkpoint's own folder, DIR/checkpoints/STEP, or that of a packed model."""
    step: int
    weights: str
    mesh: MeshConfig | None = None

    @classmethod
    def from_checkpoint(
        cls,
        directory: str | os.PathLike,
        weights: str = "ema",
        *,
        bundle: ModelBundle | None = None,
        mesh: MeshConfig | None = None,
    ) -> "VideoMARPipeline":
        """Reads a trained, converted or packed model; of a run's workdir the newest checkpoint.

        Args:
            directory: a workdir, WORKDIR/checkpoints/STEP, or a converted or packed model.
            weights: "ema", the averaged parameters, or "params", those of the last step.
            bundle: what `load_bundle` returned for this folder, to avoid reading the tokenizer and
                the text encoder again.
            mesh: several devices to work on, such as `MeshConfig(data=4)` of `parallel.config`: the
                videos of a batch are spread over data and fsdp (if their number divides), the
                parameters over fsdp and tensor, and the rows of each frame over context.
        Raises:
            FileNotFoundError, UserError: what is missing or does not fit, and where.
        """
        loaded = load_pretrained(directory, weights=weights, bundle=bundle, mesh=mesh)
        return cls(
            model=loaded.model,
            bundle=loaded.bundle,
            checkpoint=loaded.place,
            step=loaded.step,
            weights=weights,
            mesh=mesh,
        )

    @classmethod
    def from_pretrained(cls, name: str = "scenes") -> "VideoMARPipeline":
        """A model that comes with the package.

        Args:
            name: one of `pretrained.shipped.SHIPPED`.
        Raises:
            UserError: another name, or the installation lacks the model's files.
        """
        return cls.from_checkpoint(shipped(name))

    def __call__(
        self,
        image: Given | Sequence[Given],
        prompt: str | Sequence[str] = "",
        *,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: int = 0,
        fit: str = "resize",
        batch_size: int = 4,
        preset: str | None = None,
        **settings: Any,
    ) -> Video | list[Video]:
        """One video, or a list of videos for a list of images or of prompts.

        Args:
            image: a file, a Pillow image, uint8 [height, width, 3], or a clip to continue, uint8
                [G, height, width, 3] with G = 1 + stride * k. One image serves all prompts.
            prompt: one prompt serves all images.
            num_frames, height, width: of the video in pixels; None as the model was trained.
            seed: 0..2**32 - 1; the n-th video of a list takes seed + n.
            fit: how images get the size: "resize" stretches them, "crop" cuts them to the aspect
                ratio.
            batch_size: videos generated at a time.
            preset: a name in `sampling.config.PRESETS`; `settings` override it.
            settings: fields of `SamplingConfig` that differ from the model's own, such as steps,
                guidance or temperature; window=None keeps all frames.
        Raises:
            FileNotFoundError, UserError: an image, a size or a setting that makes no sense, by
                name.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        images = list(image) if isinstance(image, list | tuple) else [image] * len(prompts)
        several = isinstance(image, list | tuple) or not isinstance(prompt, str)
        prompts = one_prompt_each(prompts, len(images))
        check_seed(seed)
        at_least("batch_size", batch_size, 1)
        spec = VideoSpec.of(
            self.bundle, num_frames, height, width, preset=preset, fit=fit, settings=settings
        )
        given = [spec.fitted(one) for one in images]
        if len({len(one) for one in given}) > 1:
            raise UserError("Images and clips of one call must have the same number of frames.")
        sampler = VideoSampler.from_bundle(self.model, self.bundle, spec.config)
        seeds = [(seed + number) % SEEDS for number in range(len(images))]
        videos: list[Video] = []
        for start in range(0, len(given), batch_size):
            part = slice(start, start + batch_size)
            stream = sampler.stream(
                np.stack(given[part]), prompts[part], seeds[part], spec.num_frames
            )
            videos += stream.finish().videos(self.bundle.fps)
        return videos if several else videos[0]

    def stream(
        self,
        image: Given,
        prompt: str = "",
        *,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: int = 0,
        fit: str = "resize",
        preset: str | None = None,
        **settings: Any,
    ) -> "VideoStream":
        """The video that a call generates, frame by frame as it is generated.

        Returns:
            an iterator over uint8 [f, height, width, 3], the f new frames of each latent frame.
        Raises:
            FileNotFoundError, UserError: as a call, and at once: not at the first frame.
        """
        spec = VideoSpec.of(
            self.bundle, num_frames, height, width, preset=preset, fit=fit, settings=settings
        )
        sampler = VideoSampler.from_bundle(self.model, self.bundle, spec.config)
        given = spec.fitted(image)
        return VideoStream(
            sampler.stream(given[None], [prompt], [seed], spec.num_frames), self.bundle.fps
        )


class VideoStream:
    """One video while it is generated; see `VideoMARPipeline.stream`."""

    def __init__(self, frames: FrameStream, fps: float):
        self.frames = frames
        self.fps = fps

    def __iter__(self) -> "VideoStream":
        return self

    def __next__(self) -> UInt8[np.ndarray, "f Hp Wp 3"]:
        return next(self.frames)[0]

    @property
    def first_frame_s(self) -> float | None:
        """Seconds from the start to the first new frame, compilation included; None before it."""
        return self.frames.first_frame_s

    @property
    def video(self) -> Video:
        """The video so far."""
        return self.frames.videos(self.fps)[0]


# A week at 24 frames per second; far more is a slip, and breaks arithmetic before memory is asked.
_MOST_FRAMES = 2**24
_MOST_STEPS = 2**16


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoSpec:
    """What videos of one call or command have in common, checked against the model."""

    config: SamplingConfig
    num_frames: int
    height: int
    width: int
    fit: str = "resize"

    @classmethod
    def of(
        cls,
        bundle: ModelBundle,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        *,
        preset: str | None = None,
        fit: str = "resize",
        settings: Mapping[str, Any],
    ) -> "VideoSpec":
        """The model's own sizes and sampling settings, where nothing else is asked for.

        Args:
            num_frames, height, width: in pixels; None as the model was trained.
            preset: a name in `sampling.config.PRESETS`; `settings` override it.
            settings: fields of `SamplingConfig`.
        Raises:
            UserError: a setting or a preset that does not exist, or a value that makes no sense.
        """
        config = bundle.sampling
        if preset is not None:
            config = with_preset(config, preset, bundle.config.head)
        names = [field.name for field in dataclasses.fields(SamplingConfig)]
        known_keys("the sampling settings", settings, names)
        for name, value in settings.items():
            if value is None and name != "window":
                raise UserError(
                    f"The setting {name} cannot be None; leave it out to keep the model's own."
                )
        spec = cls(
            config=dataclasses.replace(config, **settings),
            num_frames=bundle.num_frames if num_frames is None else num_frames,
            height=bundle.height if height is None else height,
            width=bundle.width if width is None else width,
            fit=fit,
        )
        spec.check(bundle)
        return spec

    def check(self, bundle: ModelBundle) -> None:
        """Raises a UserError for sizes and steps that the model cannot generate."""
        tokenizer, patch = bundle.tokenizer, bundle.config.patch_size
        if self.height * self.width > MOST_PIXELS:
            raise UserError(
                f"height {self.height} x width {self.width} are too many pixels: at most "
                f"{MOST_PIXELS}."
            )
        if self.num_frames > _MOST_FRAMES:
            raise UserError(f"num_frames {self.num_frames} are too many: at most {_MOST_FRAMES}.")
        head_steps = self.config.parsed_head_steps.most()
        for name, steps in (("steps", self.config.steps), ("head_steps", head_steps)):
            if steps > _MOST_STEPS:
                raise UserError(f"{name} {steps} are too many: at most {_MOST_STEPS}.")
        frames, rows, columns = latent_shape(tokenizer, self.num_frames, self.height, self.width)
        if frames < 2:
            least = 1 + tokenizer.temporal_stride
            raise UserError(f"num_frames must be at least {least}, not {self.num_frames}.")
        if rows % patch or columns % patch:
            side = patch * tokenizer.spatial_stride
            raise UserError(
                f"height {self.height} and width {self.width} must be multiples of {side} for this "
                f"model."
            )
        plan = reveal_plan(rows * columns // patch**2, self.config)
        names = head_step_names(self.config, len(plan.count))
        plan_steps(bundle.config.process, names, self.config.head_solver)

    def fitted(self, image: Given) -> UInt8[np.ndarray, "G Hp Wp 3"]:
        """The conditioning frames in an image or a clip, in the size of the video."""
        return given_frames(image, height=self.height, width=self.width, fit=self.fit)

"""A trained model as one object: images and prompts in, videos out. The first of the three levels
of use."""

import dataclasses
import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from videomar_jax.diffusion.solver import plan_steps
from videomar_jax.inference.images import Given, given_frames
from videomar_jax.inference.requests import paired
from videomar_jax.inference.stream import FrameStream
from videomar_jax.inference.video import Video
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.parallel.config import MeshConfig
from videomar_jax.pretrained.bundle import ModelBundle, load_pretrained, run_folder
from videomar_jax.sampling.config import SamplingConfig, with_preset
from videomar_jax.sampling.precision import for_sampling
from videomar_jax.sampling.schedules import head_step_names, reveal_plan
from videomar_jax.tokenizers import latent_shape
from videomar_jax.types import UInt8


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class VideoMARPipeline:
    """A model with its tokenizer and text encoder, ready to make videos.

    >>> pipe = VideoMARPipeline.from_checkpoint(workdir)                  # a run's workdir, or a
    converted model
    >>> video = pipe(image, "a red circle moves left", seed=1, steps=2)   # a file, a Pillow image
    or an array >>> video
    Video('a red circle moves left', 5 frames of 24x24, 12 fps, seed 1)
    >>> len(video), video.frames.dtype
    (5, dtype('uint8'))
    >>> video.save(folder / "circle.mp4").name
    'circle.mp4'

    Lists make a batch; video i is the same as alone with its seed, up to rounding:

    >>> [v.seed for v in pipe([image, image], ["up", "down"], seed=7)]
    [7, 8]

    Frames as they arrive, of the first video that lasts longer than the model was trained for:

    >>> [new.shape for new in pipe.stream(image, "up", num_frames=7)]
    [(2, 24, 24, 3), (2, 24, 24, 3), (2, 24, 24, 3)]

    A clip goes on where it ends:

    >>> longer = pipe(video.frames[:3], video.prompt)
    >>> bool((longer.frames[:3] == video.frames[:3]).all()), longer.given
    (True, 3)
    """

    model: VideoMAR
    bundle: ModelBundle
    checkpoint: Path  # the checkpoint's own folder, DIR/checkpoints/STEP
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
        """Reads a run's workdir (its newest checkpoint), one of its checkpoints/STEP, or a
        converted model.

        Args:
            weights: "ema", the averaged parameters, or "params", those of the last step.
            bundle: what `load_bundle` gave for this folder, so that tokenizer and text encoder are not
                read again.
            mesh: several devices to work on, such as `MeshConfig(data=4)` of `training.sharding`:
                videos of a batch over data and fsdp (if their number divides), parameters over fsdp
                and tensor, rows over context.
        Raises:
            FileNotFoundError, ValueError: what is missing or does not fit, and where.
        """
        loaded = load_pretrained(directory, weights=weights, bundle=bundle, mesh=mesh)
        checkpoint = (run_folder(directory) / "checkpoints" / str(loaded.step)).absolute()
        return cls(
            model=loaded.model,
            bundle=loaded.bundle,
            checkpoint=checkpoint,
            step=loaded.step,
            weights=weights,
            mesh=mesh,
        )

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
        """One video; for a list of images or of prompts (one of them may be single) a list of
        videos.

        Args:
            image: a file, a Pillow image, uint8 [height, width, 3], or a clip to go on from, uint8
                [G, height, width, 3] with G = 1 + stride * k.
            num_frames, height, width: of the video in pixels; None as the model was trained.
            seed: 0..2**32 - 1; the n-th video of a list takes seed + n.
            fit: how images get the size: "resize" stretches them, "crop" cuts off what is over.
            batch_size: videos made at a time.
            preset: name of a preset in `sampling.config.PRESETS`; `settings` go over it.
            settings: fields of `SamplingConfig` that differ from the model's own: steps, guidance,
                temperature, …; window=None keeps all frames.
        Raises:
            FileNotFoundError, ValueError: an image, a size or a setting that makes no sense, by
                name.
        """
        single = not isinstance(image, list | tuple) and isinstance(prompt, str)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        images = list(image) if isinstance(image, list | tuple) else [image] * len(prompts)
        prompts, seeds = paired(images, prompts), seeds_from(seed, len(images))
        config, size = self._asked(num_frames, height, width, preset, settings)
        given = [given_frames(one, height=size[1], width=size[2], fit=fit) for one in images]
        if len({len(one) for one in given}) > 1:
            raise ValueError(
                "Images and clips of one call must all have the same number of frames."
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
        model, videos = for_sampling(self.model, config), []
        for start in range(0, len(given), batch_size):
            part = slice(start, start + batch_size)
            stream = FrameStream(
                model,
                self.bundle,
                np.stack(given[part]),
                prompts[part],
                seeds[part],
                num_frames=size[0],
                config=config,
            )
            for _ in stream:
                pass
            videos += videos_of(stream, prompts[part], seeds[part], config, self.bundle.fps)
        return videos[0] if single else videos

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
        """The same video as a call makes, but its new frames as they are done: an iterator over
        uint8 [f, height, width, 3], f frames for each latent frame, with `video` (so far) and
        `first_frame_s`.

        Arguments and errors as for a call; errors are told here, not when the first frame is asked
        for.
        """
        config, size = self._asked(num_frames, height, width, preset, settings)
        given = given_frames(image, height=size[1], width=size[2], fit=fit)
        model = for_sampling(self.model, config)
        frames = FrameStream(
            model, self.bundle, given[None], [prompt], [seed], num_frames=size[0], config=config
        )
        return VideoStream(
            frames=frames, prompt=prompt, seed=seed, config=config, fps=self.bundle.fps
        )

    def _asked(
        self, num_frames, height, width, preset, settings
    ) -> tuple[SamplingConfig, tuple[int, int, int]]:
        config = changed_sampling(self.bundle, settings, preset)
        size = asked_size(self.bundle, num_frames, height, width)
        check_request(self.bundle, config, size)
        return config, size


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class VideoStream:
    """One video in the making; see `VideoMARPipeline.stream`."""

    frames: FrameStream
    prompt: str
    seed: int
    config: SamplingConfig
    fps: float

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "f Hp Wp 3"]]:
        return (new[0] for new in self.frames)

    @property
    def first_frame_s(self) -> float | None:
        """Seconds from the start to the first new frame, compilation included; None before."""
        return self.frames.first_frame_s

    @property
    def video(self) -> Video:
        """What there is so far."""
        return videos_of(self.frames, [self.prompt], [self.seed], self.config, self.fps)[0]


def videos_of(
    stream: FrameStream,
    prompts: Sequence[str],
    seeds: Sequence[int],
    config: SamplingConfig,
    fps: float,
) -> list[Video]:
    """The videos of a batch as far as they are done."""
    frames, latents, settings = stream.frames, stream.latents, dataclasses.asdict(config)
    given = len(stream) - stream.new_frames
    return [
        Video(
            frames=frames[i],
            latents=latents[i],
            fps=fps,
            prompt=prompt,
            seed=seed,
            given=given,
            settings=settings,
            first_frame_s=stream.first_frame_s,
        )
        for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
    ]


def seeds_from(seed: int, count: int) -> list[int]:
    """seed, seed + 1, …, from the start again after 2**32 - 1.

    Raises:
        ValueError: `seed` is not in 0..2**32 - 1.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"Seeds must lie in 0..2**32 - 1, not {seed}.")
    return [(seed + i) % 2**32 for i in range(count)]


def changed_sampling(
    bundle: ModelBundle, settings: Mapping[str, Any], preset: str | None = None
) -> SamplingConfig:
    """The model's own sampling settings, changed by a preset and then by `settings`, where a window
    of None means all frames.

    Raises:
        ValueError: a setting that does not exist or makes no sense, a preset that does not exist.
    """
    config = (
        bundle.sampling
        if preset is None
        else with_preset(bundle.sampling, preset, bundle.config.head)
    )
    names = [field.name for field in dataclasses.fields(SamplingConfig)]
    for name in settings:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise ValueError(
                f"There is no setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else ".")
            )
        if settings[name] is None and name != "window":
            raise ValueError(
                f"The setting {name} cannot be None; leave it out to keep the model's own."
            )
    return dataclasses.replace(config, **settings)


def asked_size(
    bundle: ModelBundle, num_frames: int | None, height: int | None, width: int | None
) -> tuple[int, int, int]:
    """(frames, height, width) in pixels; None as the model was trained."""
    return (
        bundle.num_frames if num_frames is None else num_frames,
        bundle.height if height is None else height,
        bundle.width if width is None else width,
    )


def check_request(bundle: ModelBundle, config: SamplingConfig, size: tuple[int, int, int]) -> None:
    """Raises a ValueError for (frames, height, width) and steps that the model cannot make."""
    frames, height, width = latent_shape(bundle.tokenizer, *size)
    if frames < 2:
        raise ValueError(
            f"num_frames must be at least {1 + bundle.tokenizer.temporal_stride}, not {size[0]}."
        )
    patch = bundle.config.patch_size
    if height % patch or width % patch:
        side = patch * bundle.tokenizer.spatial_stride
        raise ValueError(
            f"height {size[1]} and width {size[2]} must be multiples of {side} for this model."
        )
    plan = reveal_plan(height * width // patch**2, config)
    names = head_step_names(config, len(plan.count))
    plan_steps(bundle.config.process, names, config.head_solver)

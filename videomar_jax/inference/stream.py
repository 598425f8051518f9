"""The one way from conditioning frames to pixels; pipeline, jobs, previews and evaluation use it.

    given ─ tokenizer.encode ─► latents ─ generate_frames ─► new latents ─ decode_stream ─► pixels

The tokenizer decodes causally in time, so the pixels of a latent frame are final as soon as that
frame is there. They equal those of decoding the whole video at its end, and no work is done twice.
With `sampling.still_detail`, `inference.still_detail` comes behind the decoder.
"""

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videomar_jax.checks import UserError
from videomar_jax.inference.requests import check_seed
from videomar_jax.inference.still_detail import StillPicture, still_picture, with_still_detail
from videomar_jax.inference.video import Video
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.parallel.sharding import CLIPS, replicated
from videomar_jax.platforms import compile_for, platform_of
from videomar_jax.pretrained.bundle import ModelBundle
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.generate import decode_frames, plan_generation, start
from videomar_jax.sampling.precision import for_sampling
from videomar_jax.text_encoders import TextEncoder
from videomar_jax.tokenizers import Tokenizer, finite_clips, latent_shape, to_pixels, to_video
from videomar_jax.types import Array, Bool, Float, Latents, UInt8


class NotFiniteError(UserError):
    """Latents or pixels with NaN or infinity; the text names the videos and the way out."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class VideoSampler:
    """A model with all that turns conditioning frames and prompts into videos."""

    model: VideoMAR
    """Where its parameters lie on a mesh, the work is spread over that mesh."""
    tokenizer: Tokenizer
    text_encoder: TextEncoder
    config: SamplingConfig
    trained: tuple[int, int, int] | None = None
    """(frames, rows, columns) in tokens that the model was trained on; RoPE scaling needs them."""
    batch_size: int = 4
    """Videos generated at a time by a call."""

    @classmethod
    def from_bundle(
        cls,
        model: VideoMAR,
        bundle: ModelBundle,
        config: SamplingConfig | None = None,
        batch_size: int = 4,
    ) -> "VideoSampler":
        """The sampler of a trained model, by default with the model's own sampling settings."""
        config = bundle.sampling if config is None else config
        frames, rows, columns = latent_shape(
            bundle.tokenizer, bundle.num_frames, bundle.height, bundle.width
        )
        patch = bundle.config.patch_size
        return cls(
            model=for_sampling(model, config),
            tokenizer=bundle.tokenizer,
            text_encoder=bundle.text_encoder,
            config=config,
            trained=(frames, rows // patch, columns // patch),
            batch_size=batch_size,
        )

    def stream(
        self,
        given: UInt8[np.ndarray, "B G Hp Wp 3"],
        prompts: Sequence[str],
        seeds: Sequence[int],
        num_frames: int,
        *,
        skip_faulty: bool = False,
    ) -> "FrameStream":
        """Starts one batch of videos.

        Args:
            given: conditioning frames, G = 1 for images and 1 + stride * k for clips.
            prompts, seeds: one for each video; a video depends on its own alone, not on its batch.
            num_frames: pixel frames in all, the given ones included.
            skip_faulty: videos with NaN or infinity are listed in `FrameStream.faults` and the
                others go on; False: one such video is an error.
        Raises:
            UserError: numbers that do not match, sizes that the tokenizer cannot cut, or too little
                memory; nothing has been computed then.
            NotFiniteError: here and while iterating: latents or pixels with NaN or infinity, with
                `skip_faulty` of all videos.
        """
        return FrameStream(self, given, prompts, seeds, num_frames, skip_faulty)

    def __call__(
        self,
        given: UInt8[np.ndarray, "N G Hp Wp 3"],
        prompts: Sequence[str],
        num_frames: int,
        seeds: Sequence[int] | None = None,
    ) -> UInt8[np.ndarray, "N F Hp Wp 3"]:
        """Continues any number of images or clips, in batches of one size.

        A short last batch is filled up and cut, so that only one program is compiled. Without
        seeds, video i is drawn with seed i.
        """
        seeds = range(len(given)) if seeds is None else seeds
        videos = []
        for row in range(0, len(given), self.batch_size):
            chosen = [(row + i) % len(given) for i in range(self.batch_size)]
            stream = self.stream(
                given[chosen], [prompts[i] for i in chosen], [seeds[i] for i in chosen], num_frames
            )
            videos.append(stream.finish().frames[: len(given) - row])
        return np.concatenate(videos)

    def reconstruct(
        self, video: UInt8[np.ndarray, "N F Hp Wp 3"]
    ) -> UInt8[np.ndarray, "N F Hp Wp 3"]:
        """Encodes and decodes: the best that any model over these latents can do, but for what
        `sampling.still_detail` adds.

        Raises:
            NotFiniteError: the tokenizer gives NaN or infinity.
        """
        videos = []
        for row in range(0, len(video), self.batch_size):
            part = jnp.asarray(video[row : row + self.batch_size])
            with compile_for(platform_of(self.tokenizer)):
                latents = _encode(self.tokenizer, part)
                decoded, finite = _decode(self.tokenizer, latents)
            finite = np.asarray(finite & finite_clips(latents))
            if not finite.all():
                clips = ", ".join(str(row + i) for i in np.flatnonzero(~finite))
                raise NotFiniteError(
                    f"The reconstruction of clip {clips} holds NaN or infinity: the tokenizer's "
                    f"weights are damaged, or its compute type is too narrow; convert it again."
                )
            videos.append(np.asarray(decoded))
        return np.concatenate(videos)


class FrameStream:
    """A batch of videos while it is generated: an iterator over the new pixel frames.

    Each step gives uint8 [B, f, Hp, Wp, 3], the f pixel frames of one latent frame. At any time,
    also after the iteration was interrupted, there are

        frames          uint8 [B, F, Hp, Wp, 3], the given ones (untouched) and the new ones so far
        latents         float32 [B, T, h, w, C], likewise
        faults          row of a video with NaN or infinity → what is wrong, in words
        first_frame_s   seconds from the start to the first new pixels, compilation included
        seconds         seconds from the start to the last new pixels
    """

    def __init__(
        self,
        sampler: VideoSampler,
        given: UInt8[np.ndarray, "B G Hp Wp 3"],
        prompts: Sequence[str],
        seeds: Sequence[int],
        num_frames: int,
        skip_faulty: bool = False,
    ):
        """Arguments and errors as in `VideoSampler.stream`."""
        if not len(given) == len(prompts) == len(seeds):
            raise UserError(
                f"{len(given)} images, {len(prompts)} prompts and {len(seeds)} seeds: "
                f"give one of each."
            )
        for seed in seeds:
            check_seed(seed)
        self.prompts, self.seeds, self.config = list(prompts), list(seeds), sampler.config
        self.first_frame_s: float | None = None
        self.seconds = 0.0
        self.faults: dict[int, str] = {}
        self._skip_faulty = skip_faulty
        self._started = time.monotonic()
        self._frames = [given]
        tokenizer = sampler.tokenizer
        total, _, _ = latent_shape(tokenizer, num_frames, *given.shape[2:4])
        mesh = _mesh(sampler.model)
        if mesh is not None:
            tokenizer = jax.device_put(tokenizer, replicated(mesh))
        with compile_for(platform_of(tokenizer)):
            first = _encode(tokenizer, jnp.asarray(given))
        first = _spread(first, mesh, "context")
        self._latents = [np.asarray(first)]
        self._check_finite(finite_clips(first), "given latents")
        text, mask = sampler.text_encoder.encode(self.prompts)
        keys = jax.vmap(jax.random.key)(jnp.asarray(np.asarray(seeds, np.uint32)))
        plan = plan_generation(
            sampler.model, first, num_frames=total, config=sampler.config, trained=sampler.trained
        )
        shared, state = start(plan, first, jnp.asarray(text), jnp.asarray(mask), keys)
        new = (frame for frame, _ in decode_frames(plan, shared, state))
        pieces = (_spread(piece, mesh) for piece in self._one_by_one(first, new))
        still = None
        if sampler.config.still_detail:
            still = still_picture(tokenizer, jnp.asarray(given[:, -1:]))
        self._pixels = self._shown(tokenizer.decode_stream(pieces, max_frames=total), still)
        # The decoder needs the given latents, but their pixels come back as they were given.
        for _ in range(first.shape[1]):
            jax.block_until_ready(next(self._pixels))

    def _one_by_one(
        self, first: Latents, new: Iterable[Float[Array, "B h w C"]]
    ) -> Iterator[Latents]:
        """All latent frames, one at a time.

        The given ones too: a long clip then takes no more memory, and no program of its own.
        """
        for t in range(first.shape[1]):
            yield first[:, t : t + 1]
        for frame in new:
            self._check_finite(finite_clips(frame), "generated latents")
            self._latents.append(np.asarray(frame)[:, None])
            yield frame[:, None]

    def _shown(
        self, pieces: Iterable[Float[Array, "B f Hp Wp 3"]], still: StillPicture | None
    ) -> Iterator[UInt8[Array, "B f Hp Wp 3"]]:
        for number, pixels in enumerate(pieces):
            # Frame 0 is given, and a single pixel frame.
            if still is not None and number:
                pixels = with_still_detail(pixels, still)
            video, finite = _to_video(pixels)
            self._check_finite(finite, "decoded pixels")
            yield video

    def _check_finite(self, finite: Bool[Array, "B"], kind: str) -> None:
        """Notes the videos with NaN or inf, which would look black.

        Raises:
            NotFiniteError: there is one, or with `skip_faulty` no other is left.
        """
        faulty = np.flatnonzero(~np.asarray(finite))
        for row in faulty.tolist():
            self.faults.setdefault(row, self._fault([row], kind))
        left = len(self.prompts) - len(self.faults)
        if len(faulty) and not (self._skip_faulty and left):
            raise NotFiniteError(self._fault(faulty.tolist(), kind))

    def _fault(self, rows: Sequence[int], kind: str) -> str:
        named = [f"{_brief(self.prompts[row])!r} (seed {self.seeds[row]})" for row in rows]
        return (
            f"The {kind} of {', '.join(named)} hold NaN or infinity, so there is no video to show. "
            f"Lower --temperature and --guidance; if the model's own settings give the same, its "
            f"weights are damaged: take another checkpoint or convert it again."
        )

    def __iter__(self) -> "FrameStream":
        return self

    def __next__(self) -> UInt8[np.ndarray, "B f Hp Wp 3"]:
        pixels = np.asarray(next(self._pixels))
        self._frames.append(pixels)
        self.seconds = time.monotonic() - self._started
        if self.first_frame_s is None:
            self.first_frame_s = self.seconds
        return pixels

    def finish(self) -> "FrameStream":
        """Generates all frames that are left."""
        for _ in self:
            pass
        return self

    @property
    def given_frames(self) -> int:
        """Pixel frames that each video started from."""
        return self._frames[0].shape[1]

    @property
    def new_frames(self) -> int:
        """Pixel frames generated so far."""
        return sum(piece.shape[1] for piece in self._frames[1:])

    @property
    def frames(self) -> UInt8[np.ndarray, "B F Hp Wp 3"]:
        return np.concatenate(self._frames, axis=1)

    @property
    def latents(self) -> Float[np.ndarray, "B T h w C"]:
        # The latents of a frame come before its pixels: an interrupted stream may have one more.
        return np.concatenate(self._latents[: len(self._frames)], axis=1)

    def videos(self, fps: float) -> list[Video]:
        """The videos of the batch, as far as they are generated."""
        frames, latents = self.frames, self.latents
        settings = dataclasses.asdict(self.config)
        return [
            Video(
                frames=frames[i],
                latents=latents[i],
                fps=fps,
                prompt=self.prompts[i],
                seed=self.seeds[i],
                given=self.given_frames,
                settings=settings,
                first_frame_s=self.first_frame_s,
            )
            for i in range(len(frames))
        ]


def _mesh(model: VideoMAR) -> Mesh | None:
    """The devices that the model is spread over; None: a single one."""
    for leaf in jax.tree.leaves(model):
        sharding = getattr(leaf, "sharding", None)
        mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
        if isinstance(mesh, Mesh) and mesh.size > 1:
            return mesh
    return None


def _spread(latents: Latents, mesh: Mesh | None, rows: str | None = None) -> Latents:
    """Latents spread over the mesh: videos, and their rows along the axis `rows`.

    What does not divide evenly is copied to all devices.
    """
    if mesh is None:
        return latents
    videos = None if len(latents) % (mesh.shape["data"] * mesh.shape["fsdp"]) else CLIPS
    if rows is not None and latents.shape[2] % mesh.shape[rows]:
        rows = None
    return jax.device_put(latents, NamedSharding(mesh, PartitionSpec(videos, None, rows)))


@jax.jit
def _encode(tokenizer: Tokenizer, video: UInt8[Array, "B F Hp Wp 3"]) -> Latents:
    return tokenizer.encode(to_pixels(video))


@jax.jit
def _decode(
    tokenizer: Tokenizer, latents: Latents
) -> tuple[UInt8[Array, "B F Hp Wp 3"], Bool[Array, "B"]]:
    return _to_video(tokenizer.decode(latents))


@jax.jit
def _to_video(
    pixels: Float[Array, "B F Hp Wp 3"],
) -> tuple[UInt8[Array, "B F Hp Wp 3"], Bool[Array, "B"]]:
    """Grey levels, and which videos are finite."""
    return to_video(pixels), finite_clips(pixels)


def _brief(text: str) -> str:
    """A text that fits into a message."""
    return text if len(text) <= 80 else f"{text[:77]}..."

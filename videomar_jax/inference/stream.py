"""The one way from conditioning frames to pixels; pipeline, jobs, previews and evaluation use it.

    given ─ tokenizer.encode ─► latents ─ generate_frames ─► new latents ─ decode_stream ─► pixels

The tokenizer decodes causally in time, so the pixels of a latent frame are final as soon as that
frame is there. They equal those of decoding the whole video at its end, and no work is done twice.
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
from videomar_jax.inference.video import Video
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.parallel.sharding import CLIPS, replicated
from videomar_jax.pretrained.bundle import ModelBundle
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.sampling.generate import decode_frames, plan_generation, start
from videomar_jax.sampling.precision import for_sampling
from videomar_jax.text_encoders import TextEncoder
from videomar_jax.tokenizers import Tokenizer, latent_shape, to_pixels, to_video
from videomar_jax.types import Array, Float, Latents, UInt8


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
    ) -> "FrameStream":
        """Starts one batch of videos.

        Args:
            given: conditioning frames, G = 1 for images and 1 + stride * k for clips.
            prompts, seeds: one for each video; a video depends on its own alone, not on its batch.
            num_frames: pixel frames in all, the given ones included.
        Raises:
            UserError: numbers that do not match, sizes that the tokenizer cannot cut, or too little
                memory; nothing has been computed then. Iterating raises it for latents with NaN.
        """
        return FrameStream(self, given, prompts, seeds, num_frames)

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
        """Encodes and decodes: the best that any model over these latents can do."""
        videos = []
        for row in range(0, len(video), self.batch_size):
            latents = _encode(self.tokenizer, jnp.asarray(video[row : row + self.batch_size]))
            videos.append(np.asarray(_decode(self.tokenizer, latents)))
        return np.concatenate(videos)


class FrameStream:
    """A batch of videos while it is generated: an iterator over the new pixel frames.

    Each step gives uint8 [B, f, Hp, Wp, 3], the f pixel frames of one latent frame. At any time,
    also after the iteration was interrupted, there are

        frames          uint8 [B, F, Hp, Wp, 3], the given ones (untouched) and the new ones so far
        latents         float32 [B, T, h, w, C], likewise
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
        self._started = time.monotonic()
        self._frames = [given]
        tokenizer = sampler.tokenizer
        total, _, _ = latent_shape(tokenizer, num_frames, *given.shape[2:4])
        mesh = _mesh(sampler.model)
        if mesh is not None:
            tokenizer = jax.device_put(tokenizer, replicated(mesh))
        first = _spread(_encode(tokenizer, jnp.asarray(given)), mesh, "context")
        self._latents = [np.asarray(first)]
        self._check_finite(self._latents[0], "given")
        text, mask = sampler.text_encoder.encode(self.prompts)
        keys = jax.vmap(jax.random.key)(jnp.asarray(np.asarray(seeds, np.uint32)))
        plan = plan_generation(
            sampler.model, first, num_frames=total, config=sampler.config, trained=sampler.trained
        )
        shared, state = start(plan, first, jnp.asarray(text), jnp.asarray(mask), keys)
        new = (frame for frame, _ in decode_frames(plan, shared, state))
        pieces = (_spread(piece, mesh) for piece in self._one_by_one(first, new))
        self._pixels = map(to_video, tokenizer.decode_stream(pieces, max_frames=total))
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
            latents = np.asarray(frame)[:, None]
            self._check_finite(latents, "generated")
            self._latents.append(latents)
            yield frame[:, None]

    def _check_finite(self, latents: Float[np.ndarray, "B T h w C"], kind: str) -> None:
        """Raises a UserError that names the videos with NaN or inf; they would decode to black."""
        finite = np.isfinite(latents).all(axis=(1, 2, 3, 4))
        if finite.all():
            return
        faulty = [f"{self.prompts[i]!r} (seed {self.seeds[i]})" for i in np.flatnonzero(~finite)]
        raise UserError(
            f"The {kind} latents of {', '.join(faulty)} hold NaN or infinity, so there is no video "
            f"to show. Lower --temperature and --guidance; if the model's own settings give the "
            f"same, its weights are damaged: take another checkpoint or convert it again."
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
def _decode(tokenizer: Tokenizer, latents: Latents) -> UInt8[Array, "B F Hp Wp 3"]:
    return to_video(tokenizer.decode(latents))

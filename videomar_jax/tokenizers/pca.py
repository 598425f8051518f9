"""A causal video tokenizer in closed form: principal components of space-time patches.

Frame 0 is cut into patches of p x p pixels, every following group of s frames into patches of
s x p x p. Each of the two kinds has its own mean mu, orthonormal directions V (the C leading
eigenvectors of the patch covariance, eigenvalues sigma_c^2) and channel scales a:

    z = V^T (x - mu) / a          x = mu + V (a z)          a_c = sigma_c^w * rms(sigma)^(1 - w)

w = 0 keeps the spread of plain PCA, w = 1 whitens fully. The default 1/2 lies between: a generator
then spends most of its effort on the strong channels without ignoring the fine ones. Of all linear
codes with C numbers a patch, this one has the least squared error on the clips it was fitted on.

The fit is one pass of sums. Grey levels u enter as the integers 2u - 255 = 255 x, whose sums of
products are exact in float64: neither the order of the clips nor their batching changes a bit of
the result.

`patches="haar"` takes the components of Haar bands (see `haar`) instead of pixels. They are an
orthogonal change of basis, so codes and reconstructions are the same up to signs; but a direction
then reads as bands in the channel order of the Cosmos tokenizer.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from videomar_jax.checks import Count, Fraction, UserError, check_value
from videomar_jax.io.log import log
from videomar_jax.io.paths import user_path
from videomar_jax.tokenizers import base
from videomar_jax.tokenizers.haar import haar_patches, haar_rounds, haar_unpatch, still_channels
from videomar_jax.types import Array, Float, Latents, Pixels

_LEAST_STD = 1e-3
"""In half grey levels: a direction that varies less than this holds only rounding errors."""

Patches = Literal["plain", "haar"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchBasis:
    """One kind of patch (P values) as C scaled coordinates.

    Columns of zeros in `directions` are unused channels.
    """

    mean: Any  # [P] float32
    directions: Any  # [P, C] float32, orthonormal columns
    scale: Any  # [C] float32, positive

    def encode(self, patches: Float[Array, "*grid P"]) -> Float[Array, "*grid C"]:
        # Full precision: accelerators otherwise round float32 products to about 3 digits.
        product = jnp.matmul(
            patches - self.mean, self.directions, precision=jax.lax.Precision.HIGHEST
        )
        return product / self.scale

    def decode(self, codes: Float[Array, "*grid C"]) -> Float[Array, "*grid P"]:
        return self.mean + jnp.matmul(
            codes * self.scale, self.directions.T, precision=jax.lax.Precision.HIGHEST
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PCATokenizer:
    """The `Tokenizer` of this module; `PCATokenizer.fit` makes one.

    C may exceed the 3 * patch^2 values that a patch of frame 0 has, or the directions in which the
    clips vary (a third of the values, where they are grey): spare channels are always zero and
    ignored by `decode`. The number of channels is chosen for the later frames, which need more.
    """

    kind: ClassVar[str] = "pca"
    version: ClassVar[int] = 1

    image: PatchBasis
    video: PatchBasis
    patch: int = dataclasses.field(metadata={"static": True})
    temporal_stride: int = dataclasses.field(metadata={"static": True})
    patches: Patches = dataclasses.field(default="plain", metadata={"static": True})

    def __post_init__(self):
        _check_settings(self.patch, self.temporal_stride, self.patches)

    @property
    def spatial_stride(self) -> int:
        return self.patch

    @property
    def channels(self) -> int:
        return self.video.scale.shape[-1]

    @jax.named_scope("pca_encode")
    def encode(self, pixels: Pixels) -> Latents:
        """Pixels [B, F, Hp, Wp, 3] in [-1, 1] to latents [B, T, h, w, C].

        Raises:
            UserError: the strides do not divide the clip.
        """
        base.latent_shape(self, *pixels.shape[1:4])
        image, video = _cut(pixels, self.patch, self.temporal_stride, self.patches)
        return jnp.concatenate([self.image.encode(image), self.video.encode(video)], axis=1)

    @jax.named_scope("pca_decode")
    def decode(self, latents: Latents) -> Pixels:
        """Latents [B, T, h, w, C] to pixels [B, F, Hp, Wp, 3], about in [-1, 1], not clipped."""
        if latents.shape[-1] != self.channels or latents.shape[1] < 1:
            raise UserError(
                f"latents {latents.shape} do not end in {self.channels} channels, or have no frame"
            )
        image, video = self.image.decode(latents[:, :1]), self.video.decode(latents[:, 1:])
        return _paste(image, video, self.patch, self.temporal_stride, self.patches)

    def decode_stream(self, latents: Iterable[Latents], *, max_frames: int) -> Iterator[Pixels]:
        """Pixels of latents that arrive in pieces of one frame or more.

        Groups of frames are independent, so the pieces joined together equal `decode` of the whole
        and no state is kept. `max_frames` is not needed here.
        """
        for number, piece in enumerate(latents):
            yield _decode_first(self, piece) if number == 0 else _decode_later(self, piece)

    @classmethod
    def open(cls, place: str, *, scale: float = 0.5, dtype: str = "float32") -> base.Tokenizer:
        """The tokenizer saved in the folder `place`; scale and dtype are those it was saved with,
        whatever is asked for."""
        return base.load_tokenizer(user_path(place, "tokenizer"))

    @classmethod
    def fit(
        cls,
        clips: Iterable[np.ndarray],
        *,
        patch: int,
        temporal_stride: int,
        channels: int,
        patches: Patches = "plain",
        whitening: float = 0.5,
    ) -> "PCATokenizer":
        """Fits a tokenizer; clips are read once, with one in memory at a time.

        Args:
            clips: uint8 [F, Hp, Wp, 3] or batches [B, F, Hp, Wp, 3]; sizes may differ.
            channels: C, the numbers that a patch is reduced to.
            whitening: w of the module's text, in [0, 1].
        Raises:
            UserError: settings contradict each other, the strides do not divide a clip, or the
                clips do not vary, or hold too few patches for `channels` directions.
        """
        values = 3 * temporal_stride * patch**2
        _check_settings(patch, temporal_stride, patches)
        if not 1 <= channels <= values:
            shape = f"{temporal_stride} x {patch} x {patch} x 3"
            raise UserError(
                f"channels = {channels} is not in 1..{values}, the values of a {shape} patch"
            )
        check_value("whitening", whitening, Fraction)
        image = _Moments("frame 0", 3 * patch**2)
        video = _Moments(f"groups of {temporal_stride} frames", values)
        for clip in _single_clips(clips, patch, temporal_stride):
            image_patches, video_patches = _cut(clip, patch, temporal_stride, patches)
            image.add(image_patches.reshape(-1, image_patches.shape[-1]))
            video.add(video_patches.reshape(-1, video_patches.shape[-1]))
        return cls(
            image=image.basis(channels, whitening),
            video=video.basis(channels, whitening),
            patch=patch,
            temporal_stride=temporal_stride,
            patches=patches,
        )

    def save(self, directory: str | os.PathLike) -> None:
        base.save_tokenizer(self, directory)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Settings, and the arrays of both bases, such as "image.mean"."""
        settings = {
            "patch": self.patch,
            "temporal_stride": self.temporal_stride,
            "patches": self.patches,
        }
        arrays = {}
        for name, basis in (("image", self.image), ("video", self.video)):
            for field, array in vars(basis).items():
                arrays[f"{name}.{field}"] = np.asarray(array)
        return settings, arrays

    @classmethod
    def from_state(
        cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> "PCATokenizer":
        """The inverse of `state`."""

        def basis(name: str) -> PatchBasis:
            fields = [field.name for field in dataclasses.fields(PatchBasis)]
            return PatchBasis(**{field: jnp.asarray(arrays[f"{name}.{field}"]) for field in fields})

        return cls(image=basis("image"), video=basis("video"), **settings)


# Patches


def _cut(pixels: Any, patch: int, stride: int, patches: str) -> tuple[Any, Any]:
    """Pixels [B, F, Hp, Wp, 3] to the patches of frame 0, [B, 1, h, w, 3pp], and of the groups,
    [B, T-1, h, w, 3spp]."""
    if patches == "haar":
        bands = haar_patches(pixels, patch)
        return bands[:, :1][..., still_channels(patch)], bands[:, 1:]
    cut = partial(rearrange, pattern="b (t s) (h p) (w q) c -> b t h w (s p q c)", p=patch, q=patch)
    return cut(pixels[:, :1], s=1), cut(pixels[:, 1:], s=stride)


def _paste(image: Array, video: Array, patch: int, stride: int, patches: str) -> Array:
    """The inverse of `_cut`."""
    if patches == "haar":
        blank = jnp.zeros((*image.shape[:-1], video.shape[-1]), image.dtype)
        first = blank.at[..., still_channels(patch)].set(image)
        return haar_unpatch(jnp.concatenate([first, video], axis=1), patch)
    paste = partial(
        rearrange, pattern="b t h w (s p q c) -> b (t s) (h p) (w q) c", p=patch, q=patch
    )
    return jnp.concatenate([paste(image, s=1), paste(video, s=stride)], axis=1)


def _check_settings(patch: int, temporal_stride: int, patches: str) -> None:
    check_value("patch", patch, Count)
    check_value("temporal_stride", temporal_stride, Count)
    check_value("patches", patches, Patches)
    if patches == "haar":
        haar_rounds(patch)  # raises unless it is a power of two
        if temporal_stride != patch:
            raise UserError(
                f'patches = "haar" are cubes: temporal_stride {temporal_stride} must equal '
                f"patch {patch}"
            )


# Fitting, in float64 on the host


def _single_clips(clips: Iterable[np.ndarray], patch: int, stride: int) -> Iterator[np.ndarray]:
    """Checked clips one at a time: [1, F, Hp, Wp, 3] float64 holding 255 x."""
    for index, given in enumerate(clips):
        array = np.asarray(given)
        if array.dtype != np.uint8 or array.ndim not in (4, 5) or array.shape[-1] != 3:
            wanted = "uint8 [F, Hp, Wp, 3] or [B, F, Hp, Wp, 3]"
            raise UserError(f"clip {index} is {array.dtype} {list(array.shape)}, not {wanted}")
        try:
            base.grid_shape(*array.shape[-4:-1], temporal_stride=stride, spatial_stride=patch)
        except UserError as error:
            raise UserError(f"clip {index}: {error}") from error
        for clip in array.reshape(-1, 1, *array.shape[-4:]):
            yield 2.0 * clip.astype(np.float64) - 255.0


class _Moments:
    """Running sums of patches and of their products."""

    def __init__(self, name: str, values: int):
        self.name = name
        self.count = 0
        self.total = np.zeros(values)
        self.products = np.zeros((values, values))

    def add(self, patches: np.ndarray) -> None:
        self.count += len(patches)
        self.total += patches.sum(axis=0)
        self.products += patches.T @ patches

    def basis(self, channels: int, whitening: float) -> PatchBasis:
        """The leading directions, with signs chosen by `_signs`.

        Channels beyond the directions in which patches vary are zero, with a scale of 1.
        """
        if not self.count:
            raise UserError(
                f"no clip has {self.name}: give clips of at least 1 + temporal_stride frames"
            )
        mean = self.total / self.count
        variance, directions = np.linalg.eigh(self.products / self.count - np.outer(mean, mean))
        # eigh sorts upwards; rounding may leave tiny negative eigenvalues.
        variance, directions = np.maximum(variance[::-1], 0.0), directions[:, ::-1]
        rank = int((variance > _LEAST_STD**2).sum())
        wanted = min(channels, len(mean))
        if not rank or (rank < wanted and self.count <= wanted):
            raise UserError(
                f"{self.name}: the {self.count} patches of the clips vary in {rank} directions, "
                f"fewer than {wanted} channels; fit on more, or more varied, clips or ask for "
                f"fewer channels"
            )
        # Grey footage has a third of the directions, drawings even fewer: what is left of the
        # channels says nothing, and stays zero.
        used = min(wanted, rank)
        log.info(
            "PCA of %s: %d channels keep %.2f %% of the variance of %d patches",
            self.name,
            used,
            100 * variance[:used].sum() / variance.sum(),
            self.count,
        )
        if used < wanted:
            log.info(
                "PCA of %s: the clips vary in %d directions only; %d of %d channels stay zero",
                self.name,
                rank,
                channels - used,
                channels,
            )
        std = np.sqrt(variance[:used]) / 255
        scale = std**whitening * np.sqrt((std**2).mean()) ** (1 - whitening)
        directions = directions[:, :used] * _signs(directions[:, :used])
        spare = channels - used
        return PatchBasis(
            mean=jnp.asarray(mean / 255, jnp.float32),
            directions=jnp.asarray(np.pad(directions, ((0, 0), (0, spare))), jnp.float32),
            scale=jnp.asarray(np.pad(scale, (0, spare), constant_values=1.0), jnp.float32),
        )


def _signs(directions: np.ndarray) -> np.ndarray:
    """Signs that make the first large entry of each column positive, where "large" means more than
    half the largest.

    The largest entry itself would not do: antisymmetric directions have two of the same size, and
    rounding would choose between them.
    """
    size = np.abs(directions)
    first = np.argmax(size > 0.5 * size.max(axis=0), axis=0)
    return np.sign(directions[first, np.arange(directions.shape[1])])


_decode_first = jax.jit(PCATokenizer.decode)


@jax.jit
def _decode_later(tokenizer: PCATokenizer, latents: Latents) -> Pixels:
    """Pixels of latents of which none is the first of its video."""
    return tokenizer.decode(jnp.concatenate([latents[:, :1], latents], axis=1))[:, 1:]

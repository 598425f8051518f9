"""Sizes of the Cosmos continuous video tokenizers, by release name, and the sampling steps that
follow from them.

With patch p, temporal stride c_t and spatial stride c_s, the encoder halves space S = log2(c_s / p)
times and time D = log2(c_t / p) times after the Haar patches. Level i of n is followed by a step
unless it is the last. What a step does is fixed by the published weights:

    encoder, after level i < n - 1           space if i < S,     time if i < D
    decoder, after the q-th level it runs    time if 0 < q < D + 1,
    (q < n - 1)                              space if that, or if q < S and S > D
    decoder, legacy                          time if q < D,      space likewise

The decoder's rule does not mirror the encoder's by itself: a configuration is refused unless the
factors of both sides multiply to the strides.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from videomar_jax.checks import Natural, Range, Size, UserError, check_fields, from_values


class Step(NamedTuple):
    """What is halved (encoder) or doubled (decoder) between two levels; with neither, the step is
    the identity."""

    space: bool
    time: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosmosConfig:
    """The sizes of one network."""

    temporal_stride: Size
    """Pixel frames of one latent frame (after the first)."""
    spatial_stride: Size
    """Pixel rows, and columns, of one latent row."""
    patch: Size = 4
    """Edge of the Haar patches, a power of two."""
    width: Size = 128
    """Channels after the first convolution."""
    encoder_mults: tuple[Size, ...] = (2, 4, 4)
    """Channels of each encoder level, as multiples of `width`."""
    decoder_mults: tuple[Size, ...] = (2, 4, 4)
    """The same for the decoder, finest level first."""
    blocks: Annotated[int, Range(low=1, high=1000)] = 2
    """Residual blocks of an encoder level; the decoder has one more."""
    z_channels: Size = 16
    """Channels between the networks and their pointwise output and input layers."""
    latent_channels: Size = 16
    """Channels of the latents."""
    resolution: Size = 1024
    """Nominal size that `attention_resolutions` refers to."""
    attention_resolutions: tuple[Natural, ...] = (32,)
    """Attention is put into the levels whose nominal size, (resolution / patch) >> level, is
    listed; no release has such a level."""
    legacy: bool = False
    """The decoder follows the older rule of the module's text."""

    def __post_init__(self):
        check_fields("CosmosConfig", self)
        faults = self._wrong_sizes() or self._wrong_factors()
        if faults:
            raise UserError("Cosmos configuration: " + "; ".join(faults))

    @classmethod
    def release(cls, name: str) -> "CosmosConfig":
        """The configuration of a release, by its full or short name, such as
        "nvidia/Cosmos-0.1-Tokenizer-CV8x16x16" or "CV4x8x8-LowRes".

        Raises:
            UserError: no release has this name; those that exist are listed.
        """
        found = re.search(r"CV\d.*$", name, re.IGNORECASE)
        short = found[0].lower().rstrip("/") if found else ""
        for release, config in RELEASES.items():
            if release.lower() == short:
                return config
        raise UserError(
            f"{name!r} names no continuous Cosmos video tokenizer; known: {', '.join(RELEASES)}"
        )

    @property
    def halvings(self) -> tuple[int, int]:
        """(S, D): how often the levels halve space and time."""
        space = (self.spatial_stride // self.patch).bit_length() - 1
        time = (self.temporal_stride // self.patch).bit_length() - 1
        return space, time

    @property
    def encoder_steps(self) -> tuple[Step, ...]:
        """The step after each encoder level but the last, in running order."""
        space, time = self.halvings
        return tuple(Step(i < space, i < time) for i in range(len(self.encoder_mults) - 1))

    @property
    def decoder_steps(self) -> tuple[Step, ...]:
        """The step after each decoder level but the last, in running order."""
        space, time = self.halvings
        steps = []
        for q in range(len(self.decoder_mults) - 1):
            doubles_time = q < time if self.legacy else 0 < q < time + 1
            doubles_space = doubles_time or (q < space and space > time)
            steps.append(Step(doubles_space, doubles_time))
        return tuple(steps)

    def attends(self, level: int) -> bool:
        """Whether level `level` (0 is the finest) has attention."""
        return (self.resolution // self.patch) >> level in self.attention_resolutions

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dictionary; its values fit JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CosmosConfig":
        """The inverse of `to_dict`, also after a round trip through JSON, which has lists only.

        Raises:
            UserError: an unknown or missing field, or a value that cannot be.
        """
        return from_values("", cls, values)

    def _wrong_sizes(self) -> list[str]:
        faults = []
        for name in ("encoder_mults", "decoder_mults"):
            if not getattr(self, name):
                faults.append(f"{name} is empty")
        if not _is_power_of_two(self.patch, 1):
            faults.append(f"patch = {self.patch} is not a power of two")
        for name in ("temporal_stride", "spatial_stride"):
            stride = getattr(self, name)
            if not _is_power_of_two(stride, self.patch):
                faults.append(f"{name} = {stride} is not patch = {self.patch} times a power of two")
        return faults

    def _wrong_factors(self) -> list[str]:
        faults = []
        strides = {"space": self.spatial_stride, "time": self.temporal_stride}
        for side, steps in (("encoder", self.encoder_steps), ("decoder", self.decoder_steps)):
            for axis, stride in strides.items():
                factor = self.patch * 2 ** sum(getattr(step, axis) for step in steps)
                if factor != stride:
                    faults.append(
                        f"the {side}'s {len(steps) + 1} levels and patch {self.patch} make "
                        f"{factor} in {axis}, not {stride}"
                    )
        return faults


def _is_power_of_two(value: int, unit: int) -> bool:
    """Whether `value` is `unit` times a power of two."""
    return value % unit == 0 and (value // unit).bit_count() == 1


_LOW_RESOLUTION = CosmosConfig(temporal_stride=4, spatial_stride=8, patch=2)
RELEASES: dict[str, CosmosConfig] = {
    "CV8x16x16": CosmosConfig(temporal_stride=8, spatial_stride=16),
    "CV8x8x8": CosmosConfig(temporal_stride=8, spatial_stride=8),
    "CV8x8x8-720p": CosmosConfig(temporal_stride=8, spatial_stride=8),
    "CV4x8x8": CosmosConfig(
        temporal_stride=4, spatial_stride=8, encoder_mults=(2, 4), decoder_mults=(2, 4)
    ),
    "CV4x8x8-LowRes": _LOW_RESOLUTION,
    "CV4x8x8-360p": _LOW_RESOLUTION,
}
"""By the end of the name under which NVIDIA published the weights. -LowRes and -360p are the same
architecture."""

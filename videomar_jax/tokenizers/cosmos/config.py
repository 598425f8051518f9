"""Sizes of the Cosmos continuous video tokenizers, by release name, and the sampling steps that
follow from them.

With patch p, temporal stride c_t and spatial stride c_s, the encoder halves space S = log2(c_s / p)
times and time D = log2(c_t / p) times after the Haar patches; level i of n is followed by a step
unless it is the last. What a step does is fixed by the published weights:

    encoder, after level i < n - 1             space if i < S,            time if i < D
    decoder, q-th level run (q < n - 1)        time if 0 < q < D + 1      space if that, or if q < S
    and S > D
    decoder, legacy                            time if q < D              space likewise

The decoder's rule does not mirror the encoder's by itself: a configuration is refused unless the
factors of both sides multiply to the strides.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple


class Step(NamedTuple):
    """What is halved (encoder) or doubled (decoder) between two levels; neither: the step is the
    identity."""

    space: bool
    time: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosmosConfig:
    """One network. Level widths are `width` times the mults; `attention_resolutions` put attention
    into the levels whose nominal size, (resolution / patch) >> level, is listed (no release has
    any)."""

    temporal_stride: int
    spatial_stride: int
    patch: int = 4
    width: int = 128
    encoder_mults: tuple[int, ...] = (2, 4, 4)
    decoder_mults: tuple[int, ...] = (2, 4, 4)
    blocks: int = 2  # residual blocks of an encoder level; the decoder has one more
    z_channels: int = 16
    latent_channels: int = 16
    resolution: int = 1024
    attention_resolutions: tuple[int, ...] = (32,)
    legacy: bool = False

    def __post_init__(self):
        positive = ("patch", "width", "blocks", "z_channels", "latent_channels", "resolution")
        faults = [
            f"{name} = {getattr(self, name)} is not positive"
            for name in positive
            if getattr(self, name) < 1
        ]
        faults += [
            f"{name} is empty"
            for name in ("encoder_mults", "decoder_mults")
            if not getattr(self, name)
        ]
        for name in ("temporal_stride", "spatial_stride"):
            if not _is_power_of_two(getattr(self, name), self.patch):
                faults.append(
                    f"{name} = {getattr(self, name)} is not patch = {self.patch} times a power of two"
                )
        if not _is_power_of_two(self.patch, 1):
            faults.append(f"patch = {self.patch} is not a power of two")
        if faults or (faults := self._wrong_factors()):
            raise ValueError("Cosmos configuration: " + "; ".join(faults))

    @classmethod
    def release(cls, name: str) -> "CosmosConfig":
        """The configuration of a release, by its full or short name:
        "nvidia/Cosmos-0.1-Tokenizer-CV8x16x16", "CV4x8x8-LowRes". ValueError for a name that is
        none, listing those that are."""
        found = re.search(r"CV\d.*$", name, re.IGNORECASE)
        known = {short.lower(): config for short, config in RELEASES.items()}
        if not found or found[0].lower().rstrip("/") not in known:
            raise ValueError(
                f"{name!r} names no continuous Cosmos video tokenizer; known: {', '.join(RELEASES)}"
            )
        return known[found[0].lower().rstrip("/")]

    @property
    def halvings(self) -> tuple[int, int]:
        """(S, D): how often the levels halve space and time."""
        return tuple(
            (stride // self.patch).bit_length() - 1
            for stride in (self.spatial_stride, self.temporal_stride)
        )

    @property
    def encoder_steps(self) -> tuple[Step, ...]:
        """The step after each encoder level but the last, in running order."""
        space, time = self.halvings
        return tuple(Step(i < space, i < time) for i in range(len(self.encoder_mults) - 1))

    @property
    def decoder_steps(self) -> tuple[Step, ...]:
        """The step after each decoder level but the last, in running order."""
        space, time = self.halvings
        doubles = [
            q < time if self.legacy else 0 < q < time + 1
            for q in range(len(self.decoder_mults) - 1)
        ]
        return tuple(Step(t or (q < space and space > time), t) for q, t in enumerate(doubles))

    def attends(self, level: int) -> bool:
        """Whether level `level` (0 is the finest) has attention."""
        return (self.resolution // self.patch) >> level in self.attention_resolutions

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CosmosConfig":
        """The inverse of `to_dict`, also after a way through JSON, which has lists only."""
        return cls(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in values.items()
            }
        )

    def _wrong_factors(self) -> list[str]:
        faults = []
        for side, steps in (("encoder", self.encoder_steps), ("decoder", self.decoder_steps)):
            for axis, stride in (("space", self.spatial_stride), ("time", self.temporal_stride)):
                if (
                    factor := self.patch * 2 ** sum(getattr(step, axis) for step in steps)
                ) != stride:
                    levels = len(steps) + 1
                    faults.append(
                        f"the {side}'s {levels} levels and patch {self.patch} make {factor} in {axis}, not {stride}"
                    )
        return faults


def _is_power_of_two(value: int, unit: int) -> bool:
    return unit > 0 and value > 0 and value % unit == 0 and (value // unit).bit_count() == 1


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
"""By the end of the name under which NVIDIA published the weights; -LowRes and -360p are one
architecture."""

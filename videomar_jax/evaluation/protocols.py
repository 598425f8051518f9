"""What clips have to have in common for their FVD to compare: number, length, size and origin.

Needs no JAX.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from videomar_jax.checks import UserError, one_of

FEATURES = 400
"""Numbers that I3D makes of a clip: the logits of Kinetics-400."""
LEAST_CLIPS = FEATURES
"""With fewer clips a side the covariance is singular whatever the clips are."""
LEAST_FRAMES = 9
"""Of shorter clips I3D leaves no frame."""

ProtocolName = Literal["own", "k600", "bair", "bair_debiased", "ucf101", "cdfvd"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """What numbers of one name have in common; None leaves open what the source leaves open."""

    title: str
    """For people."""
    source: str
    """Who reports numbers of this kind and says how they come about."""
    frames: int | None = None
    """Frames of a clip, the given ones among them."""
    size: tuple[int, int] | None = None
    """Rows and columns at which both sides are compared."""
    given: int | None = None
    """Frames that a clip is continued from; 0: none, nothing is given."""
    generated: int | None = None
    """Generated clips."""
    reference: int | None = None
    """True clips."""
    true_clips: str = ""
    """Which clips are the true ones."""

    @property
    def least_reference(self) -> int:
        """True clips below which there is no number, unless asked for."""
        return min(LEAST_CLIPS, self.reference or LEAST_CLIPS)

    @property
    def least_generated(self) -> int:
        """Generated clips below which there is no number, unless asked for."""
        return min(LEAST_CLIPS, self.generated or LEAST_CLIPS)


_MAGVIT = "Yu et al. 2023, MAGVIT, appendix B.3 (arXiv:2212.05199)"

PROTOCOLS: Mapping[ProtocolName, Protocol] = {
    "own": Protocol(
        title="own clips",
        source="numbers compare only with those of the same clips, counts and sizes",
        true_clips="your own",
    ),
    "k600": Protocol(
        title="Kinetics-600, 5 frames continued to 16",
        source=_MAGVIT,
        frames=16,
        size=(64, 64),
        given=5,
        generated=50_000,
        true_clips="of each evaluation video 6: two windows in time, three crops",
    ),
    "bair": Protocol(
        title="BAIR robot pushing, 1 frame continued to 16",
        source=_MAGVIT,
        frames=16,
        size=(64, 64),
        given=1,
        generated=25_600,
        reference=256,
        true_clips="the first 16 frames of each of the 256 evaluation videos; each is continued "
        "100 times",
    ),
    "bair_debiased": Protocol(
        title="BAIR robot pushing, 1 frame continued to 16, debiased",
        source=_MAGVIT,
        frames=16,
        size=(64, 64),
        given=1,
        generated=25_600,
        reference=3_840,
        true_clips="the 15 windows of 16 frames in each of the 256 evaluation videos of 30 frames",
    ),
    "ucf101": Protocol(
        title="UCF-101, 16 frames",
        source=_MAGVIT,
        frames=16,
        size=(128, 128),
        given=0,
        generated=10_000,
        true_clips="random windows and crops of the training videos",
    ),
    "cdfvd": Protocol(
        title="2048 generated clips of 16 frames",
        source="Ge et al. 2024, cd-fvd (arXiv:2404.12391), and StyleGAN-V's fvd2048_16f",
        frames=16,
        generated=2_048,
        true_clips="one window of each true video, all of them or 2048",
    ),
}
"""Protocols by name."""


def check_counts(generated: int, reference: int, *, protocol: str = "own", few: bool) -> bool:
    """Whether there are fewer clips than there should be; call it before the work.

    Raises:
        UserError: there are, and `few` is False; or there are more than the protocol has.
    """
    one_of("protocol", protocol, PROTOCOLS)
    rule = PROTOCOLS[protocol]
    too_few = []
    sides = (
        ("generated", generated, rule.generated, rule.least_generated),
        ("true", reference, rule.reference, rule.least_reference),
    )
    for side, count, exact, least in sides:
        if exact and count > exact:
            raise UserError(
                f"The protocol {protocol!r} has {exact} {side} clips, not {count}: leave some out, "
                f"or take the protocol 'own'."
            )
        if count < (exact or least):
            too_few.append(f"{count} {side} clips instead of {exact or f'at least {least}'}")
    if too_few and not few:
        raise UserError(
            f"FVD with {' and '.join(too_few)} says more about their number than about the clips: "
            f"take more, which are not repeated ones, or ask for the number all the same "
            f"(--few_clips, few=True)."
        )
    return bool(too_few)


def check_clip(shape: tuple[int, ...], name: str, *, protocol: str = "own") -> None:
    """Raises a UserError unless a clip [F, Hp, Wp, 3] is one of the protocol.

    name: what the clip is, such as its file.
    """
    one_of("protocol", protocol, PROTOCOLS)
    rule = PROTOCOLS[protocol]
    frames, height, width = shape[:3]
    if frames < LEAST_FRAMES:
        raise UserError(
            f"{name} has {frames} frames, and FVD needs at least {LEAST_FRAMES}: take longer clips."
        )
    if rule.frames and frames != rule.frames:
        raise UserError(
            f"{name} has {frames} frames, and the protocol {protocol!r} takes {rule.frames}: cut "
            f"the clips, or take the protocol 'own'."
        )
    if rule.size and (height, width) != rule.size:
        raise UserError(
            f"{name} has frames of {height}x{width}, and the protocol {protocol!r} takes "
            f"{rule.size[0]}x{rule.size[1]}: scale the clips, or take the protocol 'own'."
        )

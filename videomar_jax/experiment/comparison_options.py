"""What to say when two folders of videos are compared. Needs no JAX."""

import dataclasses
from typing import Literal

from videomar_jax.checks import Count, UserError, check_fields
from videomar_jax.evaluation.protocols import ProtocolName


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """The weights of networks that scores need.

    Raises:
        UserError: a field has a value that makes no sense.
    """

    i3d: str | None = None
    """Weights of FVD's network; docs/evaluation.md says where they are to be had."""
    lpips: str | None = None
    """Folder with the weights of LPIPS; docs/evaluation.md says where they are to be had."""
    lpips_network: Literal["alex", "vgg"] = "alex"
    """Network of LPIPS."""

    def __post_init__(self):
        check_fields("", self)
        if self.lpips is None and self.lpips_network != "alex":
            raise UserError("--lpips_network is about LPIPS: add --lpips=DIR, or leave it out.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonOptions(NetworkOptions):
    """Two folders, and how they are compared.

    Raises:
        UserError: a folder is not named, or a field has a value that makes no sense.
    """

    generated: str | None = None
    """Folder of generated videos, to be compared with true ones."""
    reference: str | None = None
    """Folder of true videos. Where both folders hold the same names, clips are compared in pairs,
    too."""
    given: Count = 1
    """Frames at the start of each video that were given: pairs are compared after them."""
    protocol: ProtocolName = "own"
    """What the clips have to be like for FVD to compare with published numbers."""
    few_clips: bool = False
    """Compute FVD of fewer clips than there should be, too."""

    def __post_init__(self):
        super().__post_init__()
        named = {"generated": self.generated, "reference": self.reference}
        missing = [f"--{flag}" for flag, value in named.items() if value is None]
        if missing:
            raise UserError(
                f"Add {' and '.join(missing)}: two folders of videos are compared, "
                f"--generated=DIR and --reference=DIR."
            )
        for_fvd = {"protocol": self.protocol != "own", "few_clips": self.few_clips}
        unused = [f"--{flag}" for flag, is_set in for_fvd.items() if is_set]
        if unused and self.i3d is None:
            raise UserError(
                f"{' and '.join(unused)} is about FVD, which takes --i3d=FILE, the weights of its "
                f"network. docs/evaluation.md says where these are to be had; nothing stands in "
                f"for them."
            )

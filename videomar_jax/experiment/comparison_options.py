"""What to say when two folders of videos are compared. Needs no JAX."""

import dataclasses

from videomar_jax.checks import UserError, check_fields
from videomar_jax.evaluation.protocols import ProtocolName


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonOptions:
    """Two folders, and how they are compared.

    Raises:
        UserError: a folder or the network is not named, or a field has a value that makes no sense.
    """

    generated: str | None = None
    """Folder of generated videos, to be compared by FVD."""
    reference: str | None = None
    """Folder of true videos, to be compared by FVD."""
    i3d: str | None = None
    """Weights of FVD's network; docs/evaluation.md says where they are to be had."""
    protocol: ProtocolName = "own"
    """What the clips have to be like for FVD to compare with published numbers."""
    few_clips: bool = False
    """Compute FVD of fewer clips than there should be, too."""

    def __post_init__(self):
        check_fields("", self)
        named = {"generated": self.generated, "reference": self.reference, "i3d": self.i3d}
        missing = [f"--{flag}" for flag, value in named.items() if value is None]
        if missing:
            raise UserError(
                f"Add {' and '.join(missing)}: FVD takes --generated=DIR, --reference=DIR and "
                f"--i3d=FILE, the weights of its network. docs/evaluation.md says where these are "
                f"to be had; nothing stands in for them."
            )

"""What to say when a published suite of prompts is generated or scored. Needs no JAX."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

from videomar_jax.checks import Count, UserError, check_fields, one_of
from videomar_jax.evaluation.vbench import DIMENSIONS
from videomar_jax.inference.requests import check_seed

RATIOS = {"1-1": 1.0, "8-5": 8 / 5, "7-4": 7 / 4, "16-9": 16 / 9}
"""Folder of the suite's images → width by height."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """A suite, and either its prompts and images or the results of its evaluator.

    Raises:
        UserError: something is not named, or a field has a value that makes no sense.
    """

    suite: Literal["vbench_i2v"] | None = None
    """A published suite: generate its videos, or read its evaluator's results."""
    info: str | None = None
    """Of the suite: its prompts, vbench2_i2v_full_info.json."""
    images: str | None = None
    """Of the suite: the folder "crop", with a folder of images for each aspect ratio."""
    ratio: Literal["1-1", "8-5", "7-4", "16-9"] | None = None
    """Of the suite: the images to start from; by default those nearest to the model's frames."""
    dimensions: Sequence[str] = ()
    """Of the suite: generate only what these dimensions are measured on (default: all)."""
    seed: int = 0
    """Of the suite: sample j of the suite's i-th prompt has the seed SEED + 5 i + j, from 0."""
    share: str = "0/1"
    """Of the suite: I/N, this process makes the I-th of N shares, from 0."""
    batch_size: Count = 5
    """Of the suite: videos generated at a time."""
    preset: str | None = None
    """Of the suite: sampling settings by name (quality, balanced, fast)."""
    weights: Literal["ema", "params"] = "ema"
    """Of the suite: the averaged parameters, or those of the last step."""
    results: tuple[str, ...] = ()
    """Of the suite: a file *_eval_results.json of its evaluator, or a folder with such files."""
    partial: bool = False
    """Of the suite: show results that lack dimensions or videos, too."""

    def __post_init__(self):
        check_fields("", self)
        if self.suite is None:
            raise UserError("Add --suite=vbench_i2v: the other flags belong to a suite.")
        for name in self.dimensions:
            one_of("dimensions", name, DIMENSIONS)
        check_seed(self.seed)
        self.numbered_share()
        needed = {"info": self.info, "images": self.images}
        missing = [f"--{flag}" for flag, value in needed.items() if value is None]
        if missing and not self.results:
            raise UserError(
                f"Add {' and '.join(missing)}: videos of {self.suite} take --info=FILE and "
                f"--images=DIR, and --results=DIR reads what its evaluator found. "
                f"docs/evaluation.md says where all of this is to be had."
            )

    def numbered_share(self) -> tuple[int, int]:
        """`share` as (i, n).

        Raises:
            UserError: it is written in another way.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", self.share)
        if found is None or int(found[1]) >= int(found[2]):
            raise UserError(f"--share is I/N with I in 0..N-1, such as 0/8, not {self.share!r}.")
        return int(found[1]), int(found[2])


RESULT_FLAGS = ("suite", "results", "info", "partial", "output")
"""The flags that go with results."""

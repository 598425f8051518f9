"""The scores of a model and its baselines over clips that arrive in batches.

Of every clip only what it adds to each score is kept (`metrics.Tally`), so that any number of clips
can be scored, and any part of them by itself.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from videomar_jax.evaluation.metrics import METRICS, AnyMetric, Clips, Tally
from videomar_jax.types import Bool, Float

MODEL = ""
"""The name of the model among the candidates: its scores have no suffix."""
LINEAR, CEILING, OTHER_CAPTION = "linear", "ceiling", "other_caption"

CANDIDATES = {
    "copy_first": "repeating the first frame",
    "copy_last": "repeating the last given frame",
    LINEAR: "the linear predictor",
    CEILING: "the truth through the tokenizer",
    OTHER_CAPTION: "the model with the caption of another clip",
}
"""What stands beside the model, by the suffix of its scores; not every case has all."""


def copy_name(given: int) -> str:
    """The suffix of repeating the last of so many given frames."""
    return "copy_first" if given == 1 else "copy_last"


class Scorecard:
    """Tallies of every candidate and metric, clip by clip.

    Args:
        more: metrics beside those of `METRICS`, such as one that needs the weights of a network.
    """

    def __init__(self, more: Mapping[str, AnyMetric] | None = None):
        self._metrics = METRICS | dict(more or {})
        self._tallies: dict[tuple[str, str], list[Tally]] = {}

    def add(
        self,
        candidates: Mapping[str, Clips],
        reference: Clips,
        given: int,
        counted: Mapping[str, Bool[np.ndarray, " N"]] | None = None,
    ) -> None:
        """Counts more clips, with the same candidates each time.

        Args:
            candidates: name → clips as long as the reference; "" is the model.
            given: frames that are left out, since they were given.
            counted: name → clips that count; the others are left out of this candidate's scores.
        """
        for name, metric in self._metrics.items():
            for candidate, video in candidates.items():
                tally = metric.tally(video, reference, given)
                if counted and candidate in counted:
                    tally = Tally(*(part * counted[candidate] for part in tally))
                self._tallies.setdefault((name, candidate), []).append(tally)

    def scores(self, clips: Sequence[int] | None = None) -> dict[str, float]:
        """ "METRIC" and "METRIC_CANDIDATE" of all clips, or of those of these numbers.

        A score that these clips cannot have is left out, such as that of changed pixels where none
        changes.
        """
        found = {}
        for name, candidate in self._tallies:
            amount, weight = self._tally(name, candidate, clips)
            if weight.sum() > 0:
                key = f"{name}_{candidate}" if candidate else name
                found[key] = self._metrics[name].score(amount.sum() / weight.sum())
        return found

    def wins(
        self, candidate: str, clips: Sequence[int] | None = None, *, of: str = MODEL
    ) -> float | None:
        """The share of the clips on which `of` has a higher PSNR; None if none counts."""
        ours, _ = self._tally("psnr", of, clips)
        theirs, weight = self._tally("psnr", candidate, clips)
        if not weight.sum():
            return None
        return float(np.mean((ours > theirs)[weight > 0]))

    def values(self, name: str, candidate: str) -> Float[np.ndarray, " N"]:
        """What each clip has of a score that is a mean over clips."""
        return self._tally(name, candidate, None)[0]

    def has(self, candidate: str) -> bool:
        """Whether this candidate was counted."""
        return ("psnr", candidate) in self._tallies

    def _tally(
        self, name: str, candidate: str, clips: Sequence[int] | None
    ) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
        parts = self._tallies[name, candidate]
        amount = np.concatenate([part.amount for part in parts])
        weight = np.concatenate([part.weight for part in parts])
        if clips is None:
            return amount, weight
        return amount[list(clips)], weight[list(clips)]

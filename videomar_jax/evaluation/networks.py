"""The networks that some scores need: I3D of FVD, and that of LPIPS."""

import dataclasses
from collections.abc import Mapping

from videomar_jax.checks import UserError
from videomar_jax.evaluation.fvd import Moments, frechet_distance
from videomar_jax.evaluation.i3d import I3D
from videomar_jax.evaluation.lpips import LPIPS, check_size
from videomar_jax.evaluation.metrics import NETWORK_SCORES, AnyMetric, Clips, Metric
from videomar_jax.evaluation.protocols import LEAST_CLIPS, LEAST_FRAMES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
    """Networks with their weights; scores of those that are None are left out."""

    i3d: I3D | None = None
    lpips: LPIPS | None = None

    def metrics(self) -> dict[str, AnyMetric]:
        """What they add to the table of metrics."""
        if self.lpips is None:
            return {}
        return {"lpips": Metric(self.lpips, *NETWORK_SCORES["lpips"])}

    def suited(self, shape: tuple[int, ...]) -> tuple["Networks", list[str]]:
        """(those that can score clips [N, F, Hp, Wp, 3], why others cannot)."""
        i3d, lpips, reasons = self.i3d, self.lpips, []
        count, frames = shape[:2]
        if i3d is not None and count < LEAST_CLIPS:
            reasons.append(
                f"FVD was not computed: {count} clips, and it takes {LEAST_CLIPS} or more."
            )
            i3d = None
        elif i3d is not None and frames < LEAST_FRAMES:
            reasons.append(
                f"FVD was not computed: clips of {frames} frames, and it takes {LEAST_FRAMES} or "
                f"more."
            )
            i3d = None
        if lpips is not None:
            try:
                check_size(shape[2:4], lpips.network)
            except UserError as error:
                reasons.append(f"LPIPS was not computed: {error}")
                lpips = None
        return Networks(i3d=i3d, lpips=lpips), reasons


class FeatureCard:
    """Means and covariances of the features of every candidate, for clips that arrive in batches.

    Whole clips count, the given frames among them.
    """

    def __init__(self, network: I3D):
        self._network = network
        self._truth = Moments.empty()
        self._candidates: dict[str, Moments] = {}

    def add(self, candidates: Mapping[str, Clips], reference: Clips) -> None:
        """Counts more clips; "" is the model, as in `scorecard`."""
        self._truth = self._truth.joined(Moments.of(self._network.features(reference)))
        for name, video in candidates.items():
            before = self._candidates.get(name, Moments.empty())
            self._candidates[name] = before.joined(Moments.of(self._network.features(video)))

    def scores(self) -> dict[str, float]:
        """ "fvd" and "fvd_CANDIDATE"."""
        found = {}
        for name, moments in self._candidates.items():
            key = f"fvd_{name}" if name else "fvd"
            found[key] = frechet_distance(moments, self._truth)
        return found

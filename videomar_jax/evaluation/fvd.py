"""The Fréchet video distance: how far the features of generated clips are from those of true ones.

Both sets of features (`i3d`, 400 numbers a clip) are taken for normal distributions, and

    FVD = |m_g - m_r|^2 + tr(S_g) + tr(S_r) - 2 tr((S_g S_r)^(1/2))                             (1)

with their means m and covariances S (Unterthiner et al. 2018, arXiv:1812.01717). The last trace is
the sum of the singular values of A'B where S_g = A A' and S_r = B B', which loses less to rounding
than the root of a product that is not symmetric.

Means and covariances are collected in float64 while the features arrive. Sets are joined exactly
(Chan, Golub and LeVeque 1979), with d the difference of the two means and M the sum of the squares
about the mean, a matrix:

    n = n_a + n_b      m = m_a + d n_b / n      M = M_a + M_b + d d' n_a n_b / n                (2)

so processes may each take a part of the clips. Covariances are unbiased, S = M / (n - 1).

The distance depends on the number of clips: with few of them it is too large, and below 400 the
covariance of 400 features is singular. Numbers therefore compare only within one protocol
(`PROTOCOLS`), every result carries the two counts, and clips are never repeated to reach one.
"""

import dataclasses
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from videomar_jax.checks import UserError, not_finite, one_of
from videomar_jax.evaluation.i3d import CLASSES, LEAST_FRAMES
from videomar_jax.io.files import atomic_write, check_regular
from videomar_jax.types import Float

LEAST_CLIPS = CLASSES
"""With fewer clips a side the covariance is singular whatever the clips are."""


# Means and covariances


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moments:
    """The number, mean and spread of feature vectors; D is 400 for I3D."""

    count: int
    """Clips so far."""
    mean: Float[np.ndarray, " D"]
    """Their mean, float64."""
    squares: Float[np.ndarray, "D D"]
    """The sum over clips of the outer products of their deviations from the mean, float64."""

    @classmethod
    def empty(cls, size: int = CLASSES) -> "Moments":
        """Of no clips."""
        return cls(count=0, mean=np.zeros(size), squares=np.zeros((size, size)))

    @classmethod
    def of(cls, features: Float[np.ndarray, "N D"]) -> "Moments":
        """Of a batch of features.

        Raises:
            UserError: they hold NaN or infinity.
        """
        fault = not_finite(features)
        if fault:
            raise UserError(f"The features of {len(features)} clips hold {fault}.")
        if not len(features):
            return cls.empty(features.shape[1])
        values = features.astype(np.float64)
        mean = values.mean(axis=0)
        deviations = values - mean
        return cls(count=len(values), mean=mean, squares=deviations.T @ deviations)

    def joined(self, other: "Moments") -> "Moments":
        """Of the clips of both, equation (2).

        Raises:
            UserError: their features have different sizes.
        """
        if self.mean.shape != other.mean.shape:
            raise UserError(
                f"Features of {self.mean.size} and of {other.mean.size} numbers cannot be joined: "
                f"take them from one network."
            )
        count = self.count + other.count
        if not count:
            return self
        difference = other.mean - self.mean
        weight = self.count * other.count / count
        return Moments(
            count=count,
            mean=self.mean + difference * (other.count / count),
            squares=self.squares + other.squares + weight * np.outer(difference, difference),
        )

    @property
    def covariance(self) -> Float[np.ndarray, "D D"]:
        """The unbiased covariance.

        Raises:
            UserError: of fewer than two clips there is none.
        """
        if self.count < 2:
            raise UserError(f"{self.count} clips have no covariance: take more.")
        return self.squares / (self.count - 1)

    def save(self, path: str | os.PathLike) -> None:
        """Writes an .npz file, which `load_moments` reads."""
        arrays: dict[str, Any] = {
            "count": np.int64(self.count),
            "mean": self.mean,
            "squares": self.squares,
        }

        def write(part: Path) -> None:
            with open(part, "wb") as file:  # NumPy appends ".npz" to names, not to open files
                np.savez(file, **arrays)

        atomic_write(path, write)


def load_moments(path: str | os.PathLike) -> Moments:
    """What `Moments.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is damaged, or something else.
    """
    check_regular(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            count, mean, squares = (file[name] for name in ("count", "mean", "squares"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} does not hold means and covariances of features ({error}): compute them again."
        ) from error
    fits = mean.ndim == 1 and squares.shape == (mean.size, mean.size) and count.shape == ()
    floats = mean.dtype == squares.dtype == np.float64
    if not fits or not floats or not_finite(mean) or not_finite(squares):
        raise UserError(f"{path} holds no plausible mean and covariance: compute them again.")
    return Moments(count=int(count), mean=mean, squares=squares)


def joined(parts: Iterable[Moments]) -> Moments:
    """Of all clips together, such as those of several processes; at least one part."""
    first, *others = parts
    for part in others:
        first = first.joined(part)
    return first


# The distance


def frechet_distance(a: Moments, b: Moments) -> float:
    """Equation (1), at least 0 up to rounding.

    Raises:
        UserError: one has fewer than two clips, or their features have different sizes.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(
            f"Features of {a.mean.size} and of {b.mean.size} numbers cannot be compared: take them "
            f"from one network."
        )
    first, second = a.covariance, b.covariance
    common = np.linalg.svd(_root(first).T @ _root(second), compute_uv=False).sum()
    between = np.sum((a.mean - b.mean) ** 2)
    return float(between + np.trace(first) + np.trace(second) - 2 * common)


def _root(covariance: Float[np.ndarray, "D D"]) -> Float[np.ndarray, "D D"]:
    """A with A A' = covariance."""
    values, vectors = np.linalg.eigh(covariance)
    # What rounding left of zeros, whose roots would be far from zero.
    noise = values.size * np.finfo(np.float64).eps * values.max(initial=0)
    return vectors * np.sqrt(np.where(values > noise, values, 0))


# Protocols


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

PROTOCOLS: Mapping[str, Protocol] = {
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


class FVD(NamedTuple):
    """A distance with what it takes to read it."""

    distance: float
    """The Fréchet distance; 0 is equal, lower is better."""
    generated: int
    """Generated clips."""
    reference: int
    """True clips."""
    protocol: str
    """The name of the protocol."""
    few: bool
    """Fewer clips than the protocol has, so that the number compares with no other."""

    def __str__(self) -> str:
        remark = "; too few clips to compare with other numbers" if self.few else ""
        return (
            f"FVD {self.distance:.2f} ({PROTOCOLS[self.protocol].title}; {self.generated} "
            f"generated and {self.reference} true clips{remark})"
        )


def fvd(generated: Moments, reference: Moments, *, protocol: str = "own", few: bool = False) -> FVD:
    """The distance of two sets of features.

    Args:
        protocol: a name of `PROTOCOLS`.
        few: also with fewer clips than there should be.
    Raises:
        UserError: too few clips, or another number than the protocol has.
    """
    is_few = check_counts(generated.count, reference.count, protocol=protocol, few=few)
    distance = frechet_distance(generated, reference)
    return FVD(distance, generated.count, reference.count, protocol, is_few)


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


def as_report(result: FVD) -> dict[str, Any]:
    """A result as JSON values, with what the protocol says."""
    rule = dataclasses.asdict(PROTOCOLS[result.protocol])
    return {
        "fvd": result.distance,
        "generated_clips": result.generated,
        "true_clips": result.reference,
        "too_few_clips": result.few,
        "protocol": {"name": result.protocol, **rule},
    }

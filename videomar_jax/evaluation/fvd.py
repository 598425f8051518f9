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
(`protocols`), every result carries the two counts, and clips are never repeated to reach one.
"""

import dataclasses
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from videomar_jax.checks import UserError, not_finite
from videomar_jax.evaluation.protocols import FEATURES, PROTOCOLS, check_counts
from videomar_jax.io.files import atomic_write, check_regular
from videomar_jax.types import Float

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
    def empty(cls, size: int = FEATURES) -> "Moments":
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
    """Equation (1), at least 0.

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
    distance = between + np.trace(first) + np.trace(second) - 2 * common
    return max(0.0, float(distance))  # rounding can make equal sets differ by less than nothing


def _root(covariance: Float[np.ndarray, "D D"]) -> Float[np.ndarray, "D D"]:
    """A with A A' = covariance."""
    values, vectors = np.linalg.eigh(covariance)
    # What rounding left of zeros, whose roots would be far from zero.
    noise = values.size * np.finfo(np.float64).eps * values.max(initial=0)
    return vectors * np.sqrt(np.where(values > noise, values, 0))


# What is reported


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

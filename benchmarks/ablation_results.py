"""What `benchmarks.ablation` keeps in its folder.

settings.json        what all results have in common; other settings need another folder
VARIANT-SEED.npy     the videos of a variant, uint8 [N, F, Hp, Wp, 3]
VARIANT-SEED.json    their scores; it is written last, so what has one is finished
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablation_variants import VARIANTS
from videomar_jax.checks import Natural, NonNegative, UserError, check_fields, from_values
from videomar_jax.io.files import atomic_write, clear_leftovers, read_json

_SETTINGS = "settings.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """Of one variant and seed.

    Raises:
        UserError: a value of another type or outside its range, by name.
    """

    variant: str
    seed: Natural
    seconds: NonNegative
    """Of the training."""
    scores: Mapping[str, float]
    """By the names of `ablation_variants.score`."""
    fvd: NonNegative | None = None
    i3d: str | None = None
    """Digest of the network's weights that `fvd` is of."""

    def __post_init__(self):
        check_fields("", self)
        for name, value in self.scores.items():
            if not math.isfinite(value):
                raise UserError(f"the score {name} is {value}")


class Results:
    """The finished results in a folder."""

    def __init__(self, folder: Path, settings: dict[str, Any]):
        """Takes the folder, which one process at a time may do.

        Args:
            settings: JSON values.
        Raises:
            UserError: the folder holds the results of other settings (they are named), or something
                else.
        """
        self.folder = folder
        file = folder / _SETTINGS
        if not file.exists():
            # Hidden are the lock, and what a process that was killed left of this very file.
            if any(not path.name.startswith(".") for path in folder.iterdir()):
                raise UserError(
                    f"{folder} is not empty and holds no ablation; choose another --workdir."
                )
            atomic_write(file, json.dumps(settings, indent=2) + "\n")
        before = _read(file, "choose another --workdir")
        if not isinstance(before, dict):
            raise UserError(f"{file} holds no settings; choose another --workdir.")
        names = sorted(before.keys() | settings.keys())
        differing = [name for name in names if before.get(name) != settings.get(name)]
        if differing:
            raise UserError(
                f"{folder} holds an ablation with other settings ({', '.join(differing)}); choose "
                f"another --workdir, or the settings of {file}."
            )
        clear_leftovers(folder)

    def has(self, variant: str, seed: int) -> bool:
        """Whether a result is there."""
        return self._file(variant, seed, "json").exists()

    def load(self, seeds: int) -> list[Result]:
        """The results there are of the seeds 0..seeds-1, variant by variant.

        Raises:
            UserError: a file is damaged.
        """
        found = []
        for variant in VARIANTS:
            for seed in range(seeds):
                if self.has(variant, seed):
                    found.append(self._read_result(variant, seed))
        return found

    def _read_result(self, variant: str, seed: int) -> Result:
        file = self._file(variant, seed, "json")
        again = "remove it, and it is made again"
        try:
            result = from_values("", Result, _read(file, again))
        except UserError as error:
            raise UserError(f"{file} is damaged ({error}); {again}.") from error
        if (result.variant, result.seed) != (variant, seed):
            raise UserError(
                f"{file} is of {result.variant}, seed {result.seed}: rename it, or {again}."
            )
        return result

    def save(self, result: Result, videos: np.ndarray | None = None) -> None:
        """Writes a result; without videos those that are there stay."""
        if videos is not None:
            file = self._file(result.variant, result.seed, "npy")
            atomic_write(file, lambda part: _write_array(part, videos))
        text = json.dumps(dataclasses.asdict(result), indent=2, allow_nan=False)
        atomic_write(self._file(result.variant, result.seed, "json"), text + "\n")

    def videos(self, variant: str, seed: int, shape: tuple[int, ...]) -> np.ndarray:
        """The videos of a result, uint8 of this shape.

        Raises:
            UserError: they are missing or damaged.
        """
        file = self._file(variant, seed, "npy")
        again = f"remove {self._file(variant, seed, 'json')}, and they are made again"
        try:
            videos = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"The videos {file} cannot be read ({error}); {again}.") from error
        if videos.shape != shape or videos.dtype != np.uint8:
            raise UserError(
                f"{file} holds {videos.dtype} {videos.shape} in place of uint8 {shape}; {again}."
            )
        return videos

    def _file(self, variant: str, seed: int, ending: str) -> Path:
        return self.folder / f"{variant}-{seed}.{ending}"


def _read(file: Path, remedy: str) -> Any:
    try:
        return read_json(file)
    except UserError as error:
        raise UserError(f"{file} cannot be read ({error}); {remedy}.") from error


def _write_array(part: Path, array: np.ndarray) -> None:
    with open(part, "wb") as file:  # NumPy appends ".npy" to names, not to open files
        np.save(file, array)

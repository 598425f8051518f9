"""The prompts and images of VBench-I2V, as its own files hold them. Needs no JAX.

vbench2_i2v_full_info.json is a list of objects

    {"prompt_en": TEXT, "dimension": [NAME, …], "image_type": TEXT, "image_name": FILE}

and the images lie in crop/RATIO/FILE. The evaluator looks for `{prompt_en}-{0..4}.mp4`, letter by
letter, in one folder. Entries of one prompt therefore share its videos. In the file of 2023 the
camera prompts, `CAPTION, camera pans left` and so on, have no image of their own: they start from
the caption's.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from videomar_jax.checks import UserError
from videomar_jax.evaluation.vbench import DIMENSIONS, NOT_COUNTED
from videomar_jax.experiment.suite_options import RATIOS
from videomar_jax.inference.requests import SEEDS, Request
from videomar_jax.io.files import read_json

SAMPLES = 5
"""Videos of each prompt."""
OFFICIAL_PROMPTS = 1118
_CAMERA = ", camera "
_MOST_NAMED = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuitePrompt:
    """One prompt of the suite."""

    number: int
    """Its place among the different prompts of the file, from 0."""
    text: str
    image_name: str
    """A file in the folder of images."""
    dimensions: tuple[str, ...]
    """What is measured on its videos."""

    @property
    def names(self) -> list[str]:
        """The names of its videos without their ending, as the evaluator expects them."""
        return [f"{self.text}-{sample}" for sample in range(SAMPLES)]


def read_suite(file: Path) -> list[SuitePrompt]:
    """The different prompts of a suite, in its order.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is not the suite's, or says two things about one prompt.
    """
    try:
        entries = _entries(read_json(file))
        prompts = _different(entries)
    except UserError as error:
        raise UserError(
            f"{file} is not the suite of VBench-I2V: {error}. Name vbench2_i2v_full_info.json of "
            f"the VBench repository."
        ) from error
    return prompts


def video_counts(prompts: Iterable[SuitePrompt]) -> dict[str, int]:
    """How many videos each dimension is measured on."""
    counts = dict.fromkeys(DIMENSIONS, 0)
    for prompt in prompts:
        for name in prompt.dimensions:
            if name in counts:
                counts[name] += SAMPLES
    return counts


def nearest_ratio(height: int, width: int) -> str:
    """The aspect ratio of the suite's images that frames of this size are stretched least from."""

    def stretch(ratio: str) -> float:
        return abs(math.log(width / height / RATIOS[ratio]))

    return min(RATIOS, key=stretch)


def image_folder(images: Path, ratio: str) -> Path:
    """The images of one aspect ratio, also if `images` is the folder above "crop".

    Raises:
        NotADirectoryError: there is no such folder.
    """
    candidates = [images / ratio, images / "crop" / ratio]
    for folder in candidates:
        if folder.is_dir():
            return folder
    if not images.is_dir():
        raise NotADirectoryError(f"{images} is no folder: --images names the suite's folder crop.")
    raise NotADirectoryError(
        f"{images} has no folder {ratio}: --images names the suite's folder crop, with a folder "
        f"of images for each of {', '.join(RATIOS)}."
    )


def suite_requests(prompts: Sequence[SuitePrompt], folder: Path, seed: int) -> list[Request]:
    """One request for each video, those of a prompt in a row.

    Sample j of prompt i has the seed `seed` + 5 i + j modulo 2**32, whichever prompts are chosen.

    Raises:
        FileNotFoundError: images are missing.
        UserError: a prompt cannot be the name of a file.
    """
    _check_images(prompts, folder)
    requests = []
    for prompt in prompts:
        for sample, name in enumerate(prompt.names):
            request = Request(
                image=folder / prompt.image_name,
                prompt=prompt.text,
                seed=(seed + SAMPLES * prompt.number + sample) % SEEDS,
                name=name,
            )
            requests.append(request)
    return requests


def some_of(names: Sequence[str]) -> str:
    """The names in a text, the first few of many."""
    shown = ", ".join(names[:_MOST_NAMED])
    left = len(names) - _MOST_NAMED
    return f"{shown} and {left} more" if left > 0 else shown


def _check_images(prompts: Sequence[SuitePrompt], folder: Path) -> None:
    names = list(dict.fromkeys(prompt.image_name for prompt in prompts))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the suite's {len(names)} images are missing in {folder}: "
            f"{some_of(missing)}."
        )


def _entries(values: Any) -> list[dict[str, Any]]:
    """The entries of a file, each with the fields that it must have.

    Raises:
        UserError: it is something else; the text is the reason.
    """
    if not isinstance(values, list) or not values:
        raise UserError("it is no list of prompts")
    for number, entry in enumerate(values):
        place = f"entry {number}"
        if not isinstance(entry, Mapping):
            raise UserError(f"{place} is no object")
        _check_text(place, entry, "prompt_en")
        names = entry.get("dimension")
        known = [*DIMENSIONS, *NOT_COUNTED]
        if not isinstance(names, list) or not all(name in known for name in names):
            raise UserError(f"{place} has the dimensions {names!r}, not some of {', '.join(known)}")
        if "image_name" in entry or _CAMERA not in entry["prompt_en"]:
            _check_text(place, entry, "image_name")
    return values


def _check_text(place: str, entry: Mapping[str, Any], key: str) -> None:
    """Raises a UserError unless the entry has a text that can be the name of a file."""
    text = entry.get(key)
    if not isinstance(text, str) or not text.strip():
        raise UserError(f'{place} has no text under "{key}"')
    if "/" in text or "\0" in text:
        raise UserError(f'{place}: {key} {text!r} cannot be the name of a file; it holds a "/"')


def _different(entries: Sequence[Mapping[str, Any]]) -> list[SuitePrompt]:
    """One prompt for all entries of the same text.

    Raises:
        UserError: they start from different images.
    """
    images = {entry["prompt_en"]: entry.get("image_name") for entry in entries}
    prompts: dict[str, SuitePrompt] = {}
    for entry in entries:
        text = entry["prompt_en"]
        caption = text.rsplit(_CAMERA, 1)[0]
        image = entry.get("image_name") or images.get(caption) or f"{caption}.jpg"
        earlier = prompts.get(text)
        if earlier is None:
            prompts[text] = SuitePrompt(
                number=len(prompts),
                text=text,
                image_name=image,
                dimensions=tuple(entry["dimension"]),
            )
            continue
        if earlier.image_name != image:
            raise UserError(
                f"the prompt {text!r} is there twice, with the images {earlier.image_name!r} and "
                f"{image!r}, and its videos can start from one only"
            )
        names = dict.fromkeys((*earlier.dimensions, *entry["dimension"]))
        prompts[text] = dataclasses.replace(earlier, dimensions=tuple(names))
    return list(prompts.values())

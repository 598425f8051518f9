"""What is asked of the sampler, one request for each video: from flags or from the lines of a
file."""

import codecs
import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videomar_jax.inference.video import local_path

_log = logging.getLogger(__name__)
_KEYS = ("image", "video", "given_frames", "prompt", "seed", "name")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One video to make: an image (of an animation its first frame) or the end of a video, a prompt
    and a seed."""

    image: Path  # or the video
    prompt: str
    seed: int
    name: str  # of the files to write
    given_frames: int | None = None  # how many frames of a video; None: it is an image

    def __post_init__(self):
        if self.given_frames is not None and self.given_frames < 1:
            raise ValueError(f"given_frames must be at least 1, not {self.given_frames}.")
        for what in ("prompt", "name", "image"):  # all go into the record
            try:
                str(getattr(self, what)).encode()
            except UnicodeEncodeError:
                text = ascii(str(getattr(self, what)))
                raise ValueError(
                    f"{what} {text} is no text in UTF-8: it holds parts of characters."
                ) from None


def from_flags(
    images: Sequence[str],
    prompts: Sequence[str],
    seed: int,
    *,
    videos: Sequence[str] = (),
    given_frames: int | None = None,
) -> list[Request]:
    """One request for each image and then for each video; one prompt serves all, or there is one
    for each.

    Raises:
        ValueError: the numbers of images and prompts do not go together, or videos and
            `given_frames`.
    """
    if not images and not videos:
        raise ValueError(
            "Nothing to do: name an image with --image=FILE, a video to go on from with --video=FILE, or "
            "requests with --requests=FILE.jsonl."
        )
    if bool(videos) != (given_frames is not None):
        raise ValueError(
            "--video=FILE and --given_frames=N go together: the video goes on from its last N frames."
        )
    sources = [(image, None) for image in images] + [(video, given_frames) for video in videos]
    pairs = enumerate(zip(sources, paired(sources, list(prompts) or [""]), strict=True))
    return _named(
        [
            Request(
                image=local_path(file),
                prompt=prompt,
                seed=(seed + n) % 2**32,
                name=Path(file).stem,
                given_frames=count,
            )
            for n, ((file, count), prompt) in pairs
        ]
    )


def paired(images: Sequence[Any], prompts: Sequence[str]) -> list[str]:
    """One prompt for each image: a single one serves all.

    Raises:
        ValueError: the numbers do not go together.
    """
    if not images:
        raise ValueError("There is no image to begin with.")
    if len(prompts) not in (1, len(images)):
        raise ValueError(
            f"{len(images)} images and {len(prompts)} prompts: give one prompt, or one for each image."
        )
    return list(prompts) * len(images) if len(prompts) == 1 else list(prompts)


def from_file(file: Path, seed: int) -> tuple[list[Request], list[str]]:
    """The requests of a JSONL file, {"image": …, "prompt": …, "seed": …, "name": …} a line, and
    what is wrong with the lines that cannot be used (told as warnings at once). All but the image
    is optional, null is left out; in the image's place may stand "video" and "given_frames". Files
    are relative to the requests' file. Each line is UTF-8 by itself and ends with "\\n" or "\\r\\n"
    alone, whatever other line ends a prompt may hold.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: none of its lines can be used.
    """
    if not file.is_file():
        raise FileNotFoundError(f"There is no file of requests {file}.")
    requests, faults = [], []
    for number, line in enumerate(
        file.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1
    ):
        if not line.strip():
            continue
        try:
            requests.append(
                _request(json.loads(line.decode()), file.parent, (seed + number - 1) % 2**32)
            )
        except (ValueError, TypeError, KeyError) as error:
            faults.append(f"{file}, line {number}: {error}")
            _log.warning("%s", faults[-1])
    if not requests:
        raise ValueError("\n".join([f"{file} holds no request that can be met.", *faults]))
    return _named(requests), faults


def _request(entry: Any, folder: Path, seed: int) -> Request:
    entry = (
        {key: value for key, value in entry.items() if value is not None}
        if isinstance(entry, dict)
        else {}
    )
    if ("image" in entry) == ("video" in entry):
        raise ValueError('expected an object with "image", and perhaps "prompt", "seed" and "name"')
    if unknown := sorted(set(entry) - set(_KEYS)):
        raise ValueError(f"unknown keys {unknown}; known are {', '.join(_KEYS)}")
    if ("video" in entry) != ("given_frames" in entry):
        raise ValueError('"video" and "given_frames" go together')
    seed = entry.get("seed", seed)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be a whole number in 0..2**32 - 1, not {seed!r}")
    if not isinstance(given := entry.get("given_frames", 1), int) or isinstance(given, bool):
        raise ValueError(f"given_frames must be a whole number, not {given!r}")
    for key in ("image", "video", "prompt", "name"):
        if not isinstance(entry.get(key, ""), str):
            raise ValueError(f"{key} must be a text, not {entry[key]!r}")
    image = folder / local_path(entry.get("image", entry.get("video")))
    name = entry.get("name", image.stem)
    if not name or name != Path(name).name:
        raise ValueError(f"name must be a file name without folders, not {name!r}")
    return Request(
        image=image,
        prompt=entry.get("prompt", ""),
        seed=seed,
        name=name,
        given_frames=entry.get("given_frames"),
    )


def _named(requests: list[Request]) -> list[Request]:
    """The same requests with names that differ, so that no video is written over another."""
    used: set[str] = set()
    for i, request in enumerate(requests):
        name, count = request.name, 1
        while name in used:
            count += 1
            name = f"{request.name}_{count}"
        used.add(name)
        requests[i] = dataclasses.replace(request, name=name)
    return requests

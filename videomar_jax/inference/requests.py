"""What is asked for: requests, how they are generated, and the files they become. Needs no JAX."""

import codecs
import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from videomar_jax.checks import (
    Count,
    Natural,
    UserError,
    check_fields,
    check_value,
    known_keys,
)
from videomar_jax.io.files import check_regular
from videomar_jax.io.log import log
from videomar_jax.io.paths import check_length, user_path
from videomar_jax.parallel.config import MeshConfig

FORMATS = {"mp4": ".mp4", "gif": ".gif", "png": ".png", "webm": ".webm", "latents": ".npz"}
"""Name of a format → ending of its files."""
DEFAULT_FORMATS = ("mp4", "gif", "png")
SEEDS = 2**32
"""Seeds lie in 0..SEEDS - 1."""

_KEYS = ("image", "video", "given_frames", "prompt", "seed", "name")
# A file system allows 255 bytes, and each file of a video has an ending.
_LONGEST_NAME = 255 - max(len(ending) for ending in (".json", *FORMATS.values()))
_LONGEST_FAULT = 600  # Characters; what is wrong stands at the beginning or at the end.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One video to generate, from an image or the end of a video, a prompt and a seed.

    Raises:
        UserError: a field with a value that makes no sense, by name.
    """

    image: Path
    """The image (of an animation its first frame), or the video."""
    prompt: str
    """What happens in the video."""
    seed: int
    """In 0..2**32 - 1."""
    name: str
    """Name of the files to write, without an ending."""
    given_frames: Count | None = None
    """How many of a video's last frames are given; None for an image."""

    def __post_init__(self):
        check_value("given_frames", self.given_frames, Count | None)
        check_seed(self.seed)
        # All three go into a record, which is UTF-8.
        for field in ("prompt", "name", "image"):
            text = str(getattr(self, field))
            try:
                text.encode()
            except UnicodeEncodeError:
                raise UserError(
                    f"{field} {text!a} is no text in UTF-8: it holds parts of characters."
                ) from None
        _check_name(self.name)


def _check_name(name: str) -> None:
    """Raises a UserError for a name that no file of a video can have."""
    if name != Path(name).name or name in ("", "..") or "\0" in name:
        raise UserError(f"name must be a file name without folders, not {name!r}")
    size = len(name.encode())
    if size > _LONGEST_NAME:
        raise UserError(
            f"name {name!r} is too long: it has {size} bytes, and at most {_LONGEST_NAME} are "
            'possible; give a shorter "name", or rename the image'
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobOptions:
    """How all requests of one command are generated.

    Raises:
        UserError: a field with a value that makes no sense, by name.
    """

    checkpoint: str | os.PathLike = ""
    """A run's workdir, one of its checkpoints, or a converted model."""
    num_frames: Count | None = None
    """Pixel frames of the video; by default as trained."""
    height: Natural | None = None
    """Pixel rows; by default as trained."""
    width: Natural | None = None
    """Pixel columns; by default as trained."""
    preset: str | None = None
    """Sampling settings by name (quality, balanced, fast); single settings override it."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of `SamplingConfig` that differ from the model's own and from the preset."""
    fit: Literal["resize", "crop"] = "resize"
    """How images get their size: stretched, or cut to the aspect ratio."""
    weights: Literal["ema", "params"] = "ema"
    """The averaged parameters, or those of the last step."""
    batch_size: Count = 4
    """Videos generated at a time, rounded up to a multiple of the devices that share them."""
    mesh: MeshConfig | None = None
    """Devices that share the work; None: one."""

    def __post_init__(self):
        check_fields("options", self)
        if self.checkpoint:
            object.__setattr__(self, "checkpoint", user_path(self.checkpoint, "--checkpoint"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """The files of each video: NAME.json, and NAME with the ending of each format.

    Raises:
        UserError: a folder that is no local path, an unknown format, an unusable rate.
    """

    folder: Path
    """Folder for NAME.json and one file of each format."""
    formats: Sequence[str] | None = None
    """Of mp4, gif, png (a strip), webm, latents (npz); by default mp4,gif,png or as recorded."""
    fps: float | None = None
    """Frames per second of the files; by default the model's."""
    overwrite: bool = False
    """Replace files of the same names."""
    records: Path | None = None
    """Folder for NAME.json; by default `folder`."""

    def __post_init__(self):
        object.__setattr__(self, "folder", user_path(self.folder, "--output"))
        chosen = DEFAULT_FORMATS if self.formats is None else self.formats
        unknown = [name for name in chosen if name not in FORMATS]
        if unknown or not chosen:
            raise UserError(
                f"There is no format {', '.join(unknown) or 'at all'}: "
                f"choose among {', '.join(FORMATS)}."
            )
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise UserError(f"fps must lie between 0 and 1000, not {self.fps:g}.")

    def paths(self, name: str) -> dict[str, Path]:
        """The files of one video by format, and its record as "json"."""
        chosen = DEFAULT_FORMATS if self.formats is None else self.formats
        files = {format: self.folder / f"{name}{FORMATS[format]}" for format in chosen}
        return files | {"json": (self.records or self.folder) / f"{name}.json"}

    def check(self, names: Sequence[str]) -> None:
        """Checks that videos of these names can be written.

        Raises:
            OSError: files are in the way, or the folder cannot be written to.
        """
        self.check_folder()
        for name in names:
            self.check_free(self.paths(name).values())

    def check_free(self, files: Iterable[Path]) -> None:
        """Raises a FileExistsError for a file that is in the way."""
        for path in files:
            if not self.overwrite and os.path.lexists(path):
                raise self.in_the_way(path)

    def in_the_way(self, path: Path, reason: str = "") -> FileExistsError:
        """The error for a file that must not be overwritten."""
        # Whoever keeps records elsewhere has no such flag.
        flag = ", or replace with --overwrite" if self.records is None else ""
        return FileExistsError(f"{path} exists already; choose another --output{flag}.{reason}")

    def check_lengths(self, name: str) -> None:
        """Raises a UserError if the folder cannot hold files of this name."""
        for path in self.paths(name).values():
            check_length(path)

    def check_folder(self) -> None:
        """Raises an OSError if the folder cannot be written to."""
        above = [self.folder, *self.folder.parents]
        existing = next(path for path in above if path.exists())
        if not existing.is_dir():
            raise NotADirectoryError(f"{existing} is a file: --output names a folder.")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(f"{existing} cannot be written to; choose another --output.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestFlags:
    """The requests of a command: from its flags, or from a file."""

    image: tuple[str, ...] = ()
    """A first frame; one video each."""
    video: tuple[str, ...] = ()
    """A video to continue; one new video each."""
    given_frames: int | None = None
    """How many of a video's last frames, at the model's rate, are given: 1 + stride * k."""
    prompt: tuple[str, ...] = ()
    """One prompt for all images, or one for each."""
    requests: str | None = None
    """Instead a JSONL file with lines such as {"image": FILE, "prompt": TEXT, "seed": 0}."""
    seed: int = 0
    """Seed of the first video; the n-th takes seed + n."""

    def read(self) -> tuple[list[Request], list[str]]:
        """The requests, and what is wrong with those that cannot be used (logged, too).

        Raises:
            FileNotFoundError: there is no such file.
            UserError: nothing is asked for, none of it can be used, flags exclude each other, or
                the numbers of images and prompts do not match.
        """
        check_seed(self.seed)
        if self.requests is None:
            return self._from_flags()
        if self.image or self.video or self.prompt:
            raise UserError(
                "Name images and prompts either in --requests=FILE or with --image and --prompt, "
                "not both."
            )
        if self.given_frames is not None:
            raise UserError(
                'With --requests=FILE each line has its own "given_frames"; '
                "leave --given_frames out."
            )
        return from_file(user_path(self.requests, "--requests"), self.seed)

    def _from_flags(self) -> tuple[list[Request], list[str]]:
        if not self.image and not self.video:
            raise UserError(
                "Nothing to do: name an image with --image=FILE, a video to continue with "
                "--video=FILE, or requests with --requests=FILE.jsonl."
            )
        if bool(self.video) != (self.given_frames is not None):
            raise UserError(
                "--video=FILE and --given_frames=N belong together: the last N frames of the "
                "video are continued."
            )
        sources = [(image, None) for image in self.image]
        sources += [(video, self.given_frames) for video in self.video]
        requests, faults = [], []
        for number, prompt in enumerate(one_prompt_each(self.prompt or [""], len(sources))):
            file, count = sources[number]
            with _fault_of(file, faults):
                request = Request(
                    image=user_path(file),
                    prompt=prompt,
                    seed=(self.seed + number) % SEEDS,
                    name=Path(file).stem,
                    given_frames=count,
                )
                requests.append(request)
        requests = _with_own_names(requests, faults)
        if not requests:
            raise UserError("\n".join(faults))
        return requests, faults

    def single_image(self) -> str | None:
        """The image where at most one is named."""
        if len(self.image) > 1:
            raise UserError(f"Name one image, not {len(self.image)}.")
        return self.image[0] if self.image else None


def one_prompt_each(prompts: Sequence[str], images: int) -> list[str]:
    """A prompt for each of the images; a single prompt serves all.

    Raises:
        UserError: the numbers do not match, or there is no image.
    """
    if not images:
        raise UserError("There is no image to start from.")
    if len(prompts) not in (1, images):
        raise UserError(
            f"{images} images and {len(prompts)} prompts: give one prompt, or one for each image."
        )
    return list(prompts) * images if len(prompts) == 1 else list(prompts)


def from_file(file: Path, seed: int) -> tuple[list[Request], list[str]]:
    """The requests of a JSONL file with lines such as {"image": "a.png", "prompt": "…", "seed": 0}.

    All keys but the image are optional, and null counts as left out; "video" and "given_frames" may
    replace the image. Paths are relative to the folder of the file. Each line is UTF-8 by itself
    and ends with "\\n" or "\\r\\n" alone, whatever other line ends a prompt may hold.

    Returns:
        the requests, and a text for each line that cannot be used (logged as a warning, too).
    Raises:
        FileNotFoundError: there is no such file.
        UserError: none of its lines can be used.
    """
    check_regular(file)
    if not file.is_file():
        raise FileNotFoundError(f"There is no file of requests {file}.")
    requests, faults = [], []
    lines = file.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        with _fault_of(f"{file}, line {number + 1}", faults):
            entry = json.loads(line.decode())
            requests.append(_request(entry, file.parent, (seed + number) % SEEDS))
    requests = _with_own_names(requests, faults)
    if not requests:
        raise UserError("\n".join([f"{file} holds no usable request.", *faults]))
    return requests, faults


@contextlib.contextmanager
def _fault_of(place: str, faults: list[str]) -> Iterator[None]:
    """Turns an error into a text in `faults` and a warning, so that the others go on."""
    try:
        yield
    except RecursionError:
        reason = "is nested too deeply"
    except ValueError as error:  # JSON and UTF-8 errors are of this kind, too
        reason = str(error)
    else:
        return
    text = f"{place}: {reason}"
    if len(text) > _LONGEST_FAULT:
        half = _LONGEST_FAULT // 2
        text = f"{text[:half]} [...] {text[-half:]}"
    faults.append(text)
    log.warning("%s", text)


def _request(entry: Any, folder: Path, seed: int) -> Request:
    """The request of one line.

    Raises:
        UserError: a key or a value that makes no sense.
    """
    if isinstance(entry, dict):
        entry = {key: value for key, value in entry.items() if value is not None}
    if not isinstance(entry, dict) or ("image" in entry) == ("video" in entry):
        raise UserError('expected an object with "image", and perhaps "prompt", "seed" and "name"')
    known_keys("the request", entry, _KEYS)
    if ("video" in entry) != ("given_frames" in entry):
        raise UserError('"video" and "given_frames" belong together')
    for key in ("image", "video", "prompt", "name"):
        check_value(key, entry.get(key, ""), str)
    seed = entry.get("seed", seed)
    check_seed(seed)
    given_frames = entry.get("given_frames")
    check_value("given_frames", given_frames, int | None)
    written = entry["image"] if "image" in entry else entry["video"]
    user_path(written)  # refuses addresses and what is no path
    image = user_path(folder / Path(written).expanduser())
    return Request(
        image=image,
        prompt=entry.get("prompt", ""),
        seed=seed,
        name=entry.get("name", image.stem),
        given_frames=given_frames,
    )


def check_seed(seed: Any) -> None:
    """Raises a UserError unless `seed` is a whole number in 0..2**32 - 1."""
    check_value("seed", seed, int)
    if not 0 <= seed < SEEDS:
        raise UserError(f"Seeds must lie in 0..2**32 - 1, not {seed}.")


def _with_own_names(requests: Sequence[Request], faults: list[str]) -> list[Request]:
    """The requests under names that differ, so that no video overwrites another.

    A name that becomes too long by its number is added to `faults`.
    """
    renamed: dict[str, Request] = {}
    # The number that a name had last: 30 000 requests may share an image.
    counts: dict[str, int] = {}
    for request in requests:
        name, count = request.name, counts.get(request.name, 1)
        while name in renamed:
            count += 1
            name = f"{request.name}_{count}"
        counts[request.name] = count
        with _fault_of(str(request.image), faults):
            renamed[name] = dataclasses.replace(request, name=name)
    return list(renamed.values())

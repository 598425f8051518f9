"""NAME.json beside a video: all that it was generated from, so that it can be generated again.

Floating-point sums depend on the order of a matrix product's terms, and that on the shapes. A
record therefore also holds the size of the batch and the video's place in it. A video generated
again from its record, on a device of the same kind with the same versions, is the same to the last
bit.
"""

import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import flax
import jax
import numpy as np
from flax import nnx

import videomar_jax
from videomar_jax.checks import (
    Count,
    Natural,
    Positive,
    UserError,
    check_fields,
    check_value,
    known_keys,
)
from videomar_jax.inference.requests import FORMATS, check_seed
from videomar_jax.io.migration import current
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.parallel.config import MeshConfig
from videomar_jax.pretrained.bundle import ModelBundle
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.tokenizers import fingerprint

FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationRecord:
    """The contents of NAME.json; paths are absolute.

    Raises:
        UserError: a field with a value that makes no sense, by name.
    """

    prompt: str
    """The text that the video was made from."""
    prompt_tokens_cut: Natural
    """Tokens at the end of the prompt that the model did not read."""
    seed: int
    """Of all its random draws."""
    image: str
    """The image, or the video."""
    image_sha256: str
    """Of the bytes of that file."""
    given_frames: Count | None
    """Of a video, its last ones at the model's rate; None for an image."""
    fit: Literal["resize", "crop"]
    """How it was brought to the video's size."""
    num_frames: Count
    """Pixel frames asked for."""
    frames: Natural
    """Pixel frames of the video; fewer than `num_frames` if it was interrupted."""
    height: Count
    """Pixel rows."""
    width: Count
    """Pixel columns."""
    fps: Positive
    """Frames per second."""
    checkpoint: str
    """The folder of the model."""
    step: Natural
    """The updates after which its parameters were saved."""
    weights: Literal["ema", "params"]
    """Averaged parameters, or those of the last step."""
    checkpoint_sha256: Mapping[str, str]
    """Of the model's parts."""
    sampling: Mapping[str, Any]
    """All fields of `SamplingConfig`."""
    batch_size: Count
    """Videos that were computed together."""
    place: Natural
    """The video's row in its batch."""
    files: Sequence[str]
    """The files of the video beside this one."""
    first_frame_s: float | None
    """Seconds to the first new pixels, compilation included."""
    seconds: float
    """Seconds to the last ones."""
    versions: Mapping[str, str]
    """Of the packages that computed it."""
    device: str
    """What they computed on."""
    mesh: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Fields of `MeshConfig`; empty for one device."""
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The repositories and commits that the model's parts are from (`ModelBundle.sources`)."""
    format: int = FORMAT
    """The version of this layout."""

    def __post_init__(self):
        check_fields("", self)
        check_seed(self.seed)
        if self.place >= self.batch_size or self.batch_size > _LARGEST_BATCH:
            raise UserError(
                f"place {self.place} must be below batch_size {self.batch_size}, and that at most "
                f"{_LARGEST_BATCH}."
            )
        if self.frames > self.num_frames:
            raise UserError(f"{self.frames} frames are more than num_frames {self.num_frames}.")
        known_keys("sampling", self.sampling, _names(SamplingConfig))
        known_keys("mesh", self.mesh, _names(MeshConfig))
        self.config()
        MeshConfig(**self.mesh)

    def to_json(self) -> str:
        values = {
            **dataclasses.asdict(self),
            "request_sha256": request_digest(self) if self.checkpoint_sha256 else "",
        }
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats that the video was written in, by their names in `requests.FORMATS`."""
        endings = {Path(file).suffix for file in self.files}
        return tuple(name for name, ending in FORMATS.items() if ending in endings)

    def config(self) -> SamplingConfig:
        """The sampling settings.

        Raises:
            UserError: they make no sense.
        """
        return SamplingConfig(**self.sampling)

    def asked(self) -> dict[str, Any]:
        """What was asked for: all that a video depends on but for rounding, and its rate."""
        fields = {name: getattr(self, name) for name in _ASKED}
        # Settings that an earlier version did not know count as their defaults.
        sampling = dataclasses.asdict(self.config())
        return fields | {"fps": float(self.fps), "sampling": sampling}


_ASKED = (
    "prompt",
    "seed",
    "image_sha256",
    "given_frames",
    "fit",
    "num_frames",
    "height",
    "width",
    "fps",
    "checkpoint_sha256",
)
# Beyond this a record is wrong, and its batch would fill the memory.
_LARGEST_BATCH = 2**12


def request_digest(record: GenerationRecord) -> str:
    """SHA-256 of what was asked for; a finished video with the same digest need not be made again.

    Where image and checkpoint are stored does not count: their contents do.
    """
    return hashlib.sha256(json.dumps(record.asked(), sort_keys=True).encode()).hexdigest()


def read_record(file: str | os.PathLike) -> GenerationRecord:
    """Reads NAME.json, also of earlier versions.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is broken, or of a format that this version does not know.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no record {file}; sample writes one as NAME.json beside each video."
        )
    try:
        return _parse(json.loads(file.read_text(encoding="utf-8")))
    except RecursionError as error:
        raise UserError(f"{file} is no record of a video: it is nested too deeply.") from error
    except ValueError as error:  # JSON and UTF-8 errors are of this kind, too
        text = str(error)
        if len(text) > _LONGEST_REASON:
            text = f"{text[:_LONGEST_REASON]} [...]"
        raise UserError(f"{file} is no record of a video: {text}") from error


_LONGEST_REASON = 500


def _parse(values: Any) -> GenerationRecord:
    """The record in the JSON of a file.

    Raises:
        UserError: it is none.
    """
    if not isinstance(values, dict):
        raise UserError("it holds no object")
    if type(values.get("format")) is not int or values["format"] != FORMAT:
        raise UserError(f"its format is {values.get('format')!r}, this version reads {FORMAT}")
    # It follows from the other fields.
    values.pop("request_sha256", None)
    fields = dataclasses.fields(GenerationRecord)
    required = [field.name for field in fields if field.name not in ("mesh", "sources")]
    known_keys("the record", values, _names(GenerationRecord), required)
    check_value("sampling", values["sampling"], Mapping[str, Any])
    values["sampling"] = current("sampling", values["sampling"])
    return GenerationRecord(**values)


def _names(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def model_digests(model: VideoMAR, bundle: ModelBundle) -> dict[str, str]:
    """SHA-256 of parameters, tokenizer and text encoder: equal exactly where they compute the same.

    Where they are stored does not count: of an encoder that refers to a folder, the fingerprint of
    its contents does.
    """
    parameters = hashlib.sha256(json.dumps(bundle.config.to_dict(), sort_keys=True).encode())
    for path, leaf in sorted(nnx.to_pure_dict(nnx.state(model)).items()):
        _add(parameters, path, leaf)
    text = bundle.text_encoder
    settings = text.settings() if hasattr(text, "settings") else repr(text)
    if isinstance(settings, dict):
        settings = {name: value for name, value in settings.items() if name != "folder"}
    named = json.dumps([type(text).__name__, settings], sort_keys=True, default=str)
    return {
        "parameters": parameters.hexdigest(),
        "tokenizer": fingerprint(bundle.tokenizer),
        "text encoder": hashlib.sha256(named.encode()).hexdigest(),
    }


def _add(digest: Any, path: str, leaf: Any) -> None:
    if isinstance(leaf, dict):
        for name, inner in sorted(leaf.items()):
            _add(digest, f"{path}/{name}", inner)
        return
    array = np.ascontiguousarray(leaf)
    digest.update(f"{path} {array.dtype} {array.shape}".encode())
    digest.update(array.view(np.uint8))


def versions() -> dict[str, str]:
    """Versions of all that computes a video."""
    return {
        "videomar_jax": videomar_jax.__version__,
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "flax": flax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def device() -> str:
    """The kind of device that computes."""
    return jax.devices()[0].device_kind


def differences(record: GenerationRecord) -> list[str]:
    """Versions and devices that are not as they were, which may change a video's last bits."""
    now = versions() | {"device": device()}
    then = record.versions | {"device": record.device}
    if then.get("videomar_jax") == "source":
        # Earlier code did not know its version unless it was installed, and wrote this.
        del now["videomar_jax"]
    changed = [name for name in now if then.get(name) != now[name]]
    return [f"{name} {then.get(name)} there, {now[name]} here" for name in changed]

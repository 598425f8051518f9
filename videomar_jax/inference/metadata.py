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
from importlib import metadata
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
from flax import nnx

import videomar_jax
from videomar_jax.checks import UserError
from videomar_jax.inference.requests import FORMATS
from videomar_jax.io.migration import current
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.pretrained.bundle import ModelBundle
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.tokenizers import fingerprint

FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationRecord:
    """The contents of NAME.json; paths are absolute."""

    prompt: str
    prompt_tokens_cut: int
    """Tokens at the end of the prompt that the model did not read."""
    seed: int
    image: str
    """The image, or the video."""
    image_sha256: str
    given_frames: int | None
    """Of a video, its last ones at the model's rate; None for an image."""
    fit: str
    num_frames: int
    """Pixel frames asked for."""
    frames: int
    """Pixel frames of the video; fewer than `num_frames` if it was interrupted."""
    height: int
    width: int
    fps: float
    checkpoint: str
    step: int
    weights: str
    checkpoint_sha256: dict[str, str]
    sampling: dict[str, Any]
    """All fields of `SamplingConfig`."""
    batch_size: int
    place: int
    """The video's row in its batch."""
    files: list[str]
    first_frame_s: float | None
    seconds: float
    versions: dict[str, str]
    device: str
    mesh: dict[str, int] = dataclasses.field(default_factory=dict)
    """Fields of `MeshConfig`; empty for one device."""
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

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
        values = json.loads(file.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise UserError(f"its format is {values.get('format')!r}, this version reads {FORMAT}")
        values["sampling"] = current("sampling", values["sampling"])
        record = GenerationRecord(**values)
        record.config()  # a record with settings that make no sense is broken, too
        return record
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file} is no record of a video: {error}") from error


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

"""What is asked of the sampler, one request for each video, and its fulfilment: images in, video files out."""

import dataclasses
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from videomar_jax.images import load_image
from videomar_jax.media import contact_sheet, write_gif, write_mp4, write_png
from videomar_jax.models.diffusion import make_process
from videomar_jax.pretrained import ModelCard, load_card, load_pretrained, run_folder
from videomar_jax.sampling.image_to_video import VideoSampler
from videomar_jax.tokenizers import latent_shape

_log = logging.getLogger(__name__)
ENDINGS = (".mp4", ".gif", ".png")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One video to make: an image (of an animation its first frame), a prompt and a seed."""

    image: Path
    prompt: str
    seed: int
    name: str  # of the files to write


def from_flags(images: Sequence[str], prompts: Sequence[str], seed: int) -> list[Request]:
    """One request for each image; one prompt serves all images, or there is one for each.

    Raises:
        ValueError: the numbers of images and prompts do not go together.
    """
    if not images:
        raise ValueError("Nothing to do: name an image with --image=FILE, or requests with --requests=FILE.jsonl.")
    prompts = list(prompts) or [""]
    if len(prompts) not in (1, len(images)):
        raise ValueError(f"{len(images)} images and {len(prompts)} prompts: give one prompt, or one for each image.")
    prompts = prompts * len(images) if len(prompts) == 1 else prompts
    pairs = enumerate(zip(images, prompts, strict=True))
    return _named([Request(image=Path(i), prompt=p, seed=(seed + n) % 2**32, name=Path(i).stem) for n, (i, p) in pairs])


def from_file(file: Path, seed: int) -> tuple[list[Request], list[str]]:
    """The requests of a JSONL file, {"image": …, "prompt": …, "seed": …, "name": …} a line (all but image optional;
    images are relative to the file), and what is wrong with the lines that cannot be used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: none of its lines can be used.
    """
    if not file.is_file():
        raise FileNotFoundError(f"There is no file of requests {file}.")
    requests, faults = [], []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            requests.append(_request(json.loads(line), file.parent, seed + number - 1))
        except (ValueError, TypeError, KeyError) as error:
            faults.append(f"{file}, line {number}: {error}")
    if not requests:
        raise ValueError("\n".join([f"{file} holds no request that can be met.", *faults]))
    return _named(requests), faults


def _request(entry: Any, folder: Path, seed: int) -> Request:
    if not isinstance(entry, dict) or "image" not in entry:
        raise ValueError('expected an object with "image", and perhaps "prompt", "seed" and "name"')
    if unknown := sorted(set(entry) - {"image", "prompt", "seed", "name"}):
        raise ValueError(f"unknown keys {unknown}; known are image, prompt, seed, name")
    seed = entry.get("seed", seed)
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be a whole number in 0..2**32 - 1, not {seed!r}")
    image = folder / str(entry["image"])
    name = str(entry.get("name", image.stem))
    if not name or name != Path(name).name:
        raise ValueError(f"name must be a file name without folders, not {name!r}")
    return Request(image=image, prompt=str(entry.get("prompt", "")), seed=seed, name=name)


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


def fulfil(
    requests: Sequence[Request], *, checkpoint: str | os.PathLike, output: Path, settings: Mapping[str, Any],
    shape: Mapping[str, int | None], fit: str = "resize", weights: str = "ema", batch_size: int = 4,
    overwrite: bool = False,
) -> list[str]:  # fmt: skip
    """Makes the videos and writes NAME.mp4, NAME.gif and NAME.png (contact sheet) for each into `output`.

    Args:
        settings: fields of `SamplingConfig` that differ from the model's own; None leaves a field as it is.
        shape: num_frames, height and width in pixels; None as trained.
    Returns:
        what is wrong with requests whose image could not be read; the others are met.
    Raises:
        ValueError, OSError: nothing can be made at all; told before the model is loaded.
    """
    if not overwrite:
        there = [output / (r.name + e) for r in requests for e in ENDINGS if (output / (r.name + e)).exists()]
        if there:
            raise FileExistsError(f"{there[0]} exists already; choose another --output, or replace with --overwrite.")
    card = _changed(load_card(run_folder(checkpoint)), settings, shape)
    _check(card)
    images, faults = [], []
    for request in requests:
        try:
            images.append((request, load_image(request.image, height=card.height, width=card.width, fit=fit)))
        except (ValueError, OSError) as error:
            faults.append(str(error))
    if not images:
        raise ValueError("No request can be met: " + "; ".join(faults))
    model = load_pretrained(checkpoint, weights=weights).model
    sampler = VideoSampler(model, card.tokenizer, card.text_encoder, card.sampling,
                           min(batch_size, len(images)))  # fmt: skip
    started = time.monotonic()
    for start in range(0, len(images), sampler.batch_size):
        chosen = images[start : start + sampler.batch_size]
        given = np.stack([image for _, image in chosen])[:, None]
        asked = [request for request, _ in chosen]
        videos = sampler(given, [r.prompt for r in asked], card.num_frames, [r.seed for r in asked])
        for request, video in zip(asked, videos, strict=True):
            _write(request, video, card.fps, output, overwrite)
        done, spent = start + len(chosen), time.monotonic() - started
        left = spent / done * (len(images) - done)
        _log.info("%d of %d videos, %.1f s, %.0f s left: %s", done, len(images), spent, left, output)
    return faults


def _changed(card: ModelCard, settings: Mapping[str, Any], shape: Mapping[str, int | None]) -> ModelCard:
    """The card with what was asked for in place of its own sampling settings and sizes."""
    sampling = dataclasses.replace(card.sampling, **{k: v for k, v in settings.items() if v is not None})
    return dataclasses.replace(card, sampling=sampling, **{k: v for k, v in shape.items() if v is not None})


def _check(card: ModelCard) -> None:
    """Raises a ValueError for sizes and steps that the model cannot make."""
    frames, _, _ = latent_shape(card.tokenizer, card.num_frames, card.height, card.width)
    if frames < 2:
        raise ValueError(f"num_frames must be at least {1 + card.tokenizer.temporal_stride}, not {card.num_frames}.")
    make_process(card.config).plan(card.sampling.head_steps)


def _write(request: Request, video: np.ndarray, fps: float, output: Path, overwrite: bool) -> None:
    scale = max(1, 128 // min(video.shape[1:3]))
    base = output / request.name
    write_mp4(f"{base}.mp4", video, fps, min_side=256, overwrite=overwrite)
    write_gif(f"{base}.gif", video, fps, scale=scale, overwrite=overwrite)
    sheet = contact_sheet([(request.prompt or request.name, video)], columns=min(len(video), 9))
    write_png(f"{base}.png", sheet, overwrite=overwrite)

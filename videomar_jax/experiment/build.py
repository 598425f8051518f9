"""What a run is made from, as its config says: clips, tokenizer, text encoder.

    data.kind   shapes    moving shapes, drawn on demand
                videos    a folder of video files
                shards    a folder of prepared clips; tokenizer and text encoder are those they were
                prepared with
                tfds      a TFDS dataset by name

A run that begins with another model's parameters (init_from) takes that model's tokenizer too, as
latents of another one would mean nothing to it, unless tokenizer.path names one; and its text
encoder where text.path names none.
"""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import videomar_jax.interop.qwen2  # noqa: F401  (so that a saved Qwen2 text encoder is known)
from videomar_jax.data.loader import fixed_clips
from videomar_jax.data.shapes import Shapes
from videomar_jax.data.shards import LatentShards
from videomar_jax.data.sources import ClipShape, ClipSource, Decoded, Subset, clips_for
from videomar_jax.data.tfds_clips import TFDSClips
from videomar_jax.data.videos import VideoFolder
from videomar_jax.experiment.sections import DataConfig, TextConfig, TokenizerConfig
from videomar_jax.pretrained.bundle import run_folder
from videomar_jax.pretrained.open import open_text_encoder, open_tokenizer
from videomar_jax.text_encoders import HashedTextEncoder, TextEncoder, load_text_encoder
from videomar_jax.tokenizers import PCATokenizer, Tokenizer, load_tokenizer, to_video
from videomar_jax.tokenizers.base import fingerprint

_log = logging.getLogger(__name__)


# Clips


def open_source(
    data: DataConfig,
    split: str,
    *,
    seed: int,
    min_frames: int,
    shortest: tuple[int, int],
    drawn: int,
) -> ClipSource:
    """Clips of a split: "train", "test", and for shapes "unseen".

    min_frames: leaves out shorter videos of a folder.
    shortest: frames of the shortest training clip and of a test clip; shorter parts of a folder's
        video are not made.
    drawn: shapes that there are in splits other than "train".
    """
    if data.kind == "shapes":
        length = data.length if split == "train" else drawn
        return Shapes(seed=seed, length=length, split=split, bounce=split == "train")
    if data.kind == "shards":
        return LatentShards(data.path, split=split)
    if data.kind == "tfds":
        return TFDSClips(
            data.path,
            split=data.tfds_split(split),
            video_key=data.video_key,
            caption_key=data.caption_key,
            data_dir=data.data_dir or None,
            fps=float(data.fps),
            random=split == "train",
        )
    return VideoFolder(
        data.path,
        captions=data.captions or None,
        fps=float(data.fps),
        split=split,
        holdout=data.holdout,
        min_frames=min_frames,
        shortest=shortest,
    )


def open_held_out(data: DataConfig, shape: ClipShape, **settings: Any) -> ClipSource:
    """Clips of the split "test" that can be shown and scored at `shape`; latents come with their
    decoded video."""
    source = open_source(data, "test", **settings)
    if data.kind in ("shapes", "videos"):  # all of them can
        return source
    clips = clips_for(source, shape, ((shape.height, shape.width),))
    if not len(clips):
        way_out = (
            "prepare some"
            if data.kind == "shards"
            else "name another split with --config.data.held_out=SPLIT"
        )
        raise ValueError(
            f"{data.path} holds no test clips of {shape.num_frames} frames or more at {shape.height}x{shape.width}, "
            f"which the last stage is measured on; {way_out}, or change the stage."
        )
    part = Subset(source, clips)
    return Decoded(part, _decoder(data.path)) if data.kind == "shards" else part


@functools.lru_cache(maxsize=1)
def _decoder(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """Latents [T, h, w, C] to video, with the tokenizer of prepared clips."""
    tokenizer = load_tokenizer(Path(path) / "model" / "tokenizer")
    decode = jax.jit(lambda tokenizer, latents: to_video(tokenizer.decode(latents)))
    return lambda latents: np.asarray(decode(tokenizer, np.asarray(latents[None], np.float32))[0])


# Tokenizer and text encoder


def make_tokenizer(
    config: TokenizerConfig,
    data: DataConfig,
    init_from: str,
    *,
    dtype: str,
    source: ClipSource,
    shape: ClipShape,
    seed: int,
) -> Tokenizer:
    """The tokenizer: that of the prepared clips, else of the model to begin with, else opened, else
    fitted on clips.

    dtype: a Cosmos tokenizer computes in it. source, shape, seed: the clips that PCA is fitted on.

    Raises:
        ValueError: the model to begin with has another tokenizer than the config or the prepared
            clips.
        FileNotFoundError: a file is missing.
    """
    if data.kind == "shards":
        tokenizer = _take("tokenizer", load_tokenizer, Path(data.path))
        if init_from:
            _check_same(tokenizer, Path(data.path), run_folder(init_from))
        return tokenizer
    if init_from and not (config.kind == "cosmos" and config.path):
        return _inherited(config, run_folder(init_from))
    if config.kind == "cosmos":
        return open_tokenizer(f"cosmos:{config.path}", scale=config.scale, dtype=dtype)
    return _fitted(config, source, shape, seed)


def make_text_encoder(
    text: TextConfig, data: DataConfig, init_from: str, *, dtype: str
) -> TextEncoder:
    """The text encoder: that of the prepared clips, else what the config names, else that of the
    model to begin with.

    Raises as `make_tokenizer`.
    """
    if data.kind == "shards" and (Path(data.path) / "model" / "text_encoder").is_dir():
        return _take("text encoder", load_text_encoder, Path(data.path))
    if text.kind == "hashed":
        return HashedTextEncoder(text.tokens, text.width)
    if init_from and not text.path:
        return _take("text encoder", load_text_encoder, run_folder(init_from))
    return open_text_encoder(
        f"qwen2:{text.path}",
        tokens=text.tokens,
        padding_side=text.padding_side,
        dtype=dtype,
        system_text_file=text.system_text_file or None,
    )


def _take(what: str, load: Callable[[Path], Any], folder: Path) -> Any:
    place = folder / "model" / what.replace(" ", "_")
    _log.info("%s: the one of %s", what, folder)
    return load(place)


def _inherited(config: TokenizerConfig, folder: Path) -> Tokenizer:
    tokenizer = _take("tokenizer", load_tokenizer, folder)
    if tokenizer.kind != config.kind:
        raise ValueError(
            f"init_from: the model in {folder} was trained on latents of a {tokenizer.kind} tokenizer, but "
            f"tokenizer.kind is {config.kind!r}: set --config.tokenizer.kind={tokenizer.kind}."
        )
    theirs = {
        "patch": tokenizer.spatial_stride,
        "temporal_stride": tokenizer.temporal_stride,
        "channels": tokenizer.channels,
    }
    differ = [
        f"{key} {value} there, {getattr(config, key)} here"
        for key, value in theirs.items()
        if config.kind == "pca" and getattr(config, key) != value
    ]
    if differ:
        raise ValueError(
            f"init_from: the tokenizer of {folder} is another one than the config's ({', '.join(differ)})."
        )
    return tokenizer


def _check_same(tokenizer: Tokenizer, shards: Path, folder: Path) -> None:
    """Raises a ValueError where prepared clips are of another tokenizer than the model in `folder`
    was trained with."""

    def what(one: Tokenizer) -> tuple:
        sizes = one.temporal_stride, one.spatial_stride, one.channels
        # A published network is the same in any dtype; a fitted one is told by its arrays.
        return (one.kind, *sizes, one.scale if one.kind == "cosmos" else fingerprint(one))

    if what(tokenizer) != what(load_tokenizer(folder / "model" / "tokenizer")):
        raise ValueError(
            f"init_from: the model in {folder} was trained on latents of another tokenizer than those in {shards}: "
            f"prepare the clips with its own, {folder / 'model' / 'tokenizer'}."
        )


def _fitted(config: TokenizerConfig, source: ClipSource, shape: ClipShape, seed: int) -> Tokenizer:
    _log.info("fitting the tokenizer on %d clips", config.fit_clips)
    own = clips_for(source, shape, ((shape.height, shape.width),))
    if not len(own):
        raise ValueError(
            f"The tokenizer cannot be fitted: no clip is long enough for {shape.num_frames} frames."
        )
    # A folder may hold few clips: read each often enough, at another time and place.
    repeats = -(-config.fit_clips // len(own))
    clips = (
        fixed_clips(source, [index], shape=shape, seed=seed + repeat)["video"]
        for repeat in range(repeats)
        for index in own[: config.fit_clips - repeat * len(own)].tolist()
    )
    return PCATokenizer.fit(
        clips,
        patch=config.patch,
        temporal_stride=config.temporal_stride,
        channels=config.channels,
        patches=config.patches,
        whitening=config.whitening,
    )

"""Builds the tokenizer and the text encoder of a run from its config.

Prepared clips come with the tokenizer, and mostly the text encoder, that they were made with. A run
that starts from another model (init_from) takes over that model's tokenizer unless tokenizer.path
names one, because latents of any other would mean nothing to it, and its text encoder unless
text.path names one.

Which kinds there are is known to the registries of `tokenizers` and `text_encoders`. A kind of
tokenizer whose class has `fit` is fitted on the run's clips; every other one is opened from the
place that tokenizer.path names.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from videomar_jax.checks import UserError
from videomar_jax.data.loader import fixed_clips
from videomar_jax.data.sources import ClipShape, ClipSource, clips_for
from videomar_jax.experiment.data_sources import DATA_KINDS, DataConfig
from videomar_jax.experiment.sections import TextConfig, TokenizerConfig
from videomar_jax.io.log import log
from videomar_jax.pretrained.bundle import run_folder
from videomar_jax.pretrained.open import open_text_encoder, open_tokenizer
from videomar_jax.text_encoders import TEXT_ENCODERS, TextEncoder, load_text_encoder
from videomar_jax.tokenizers import Tokenizer, load_tokenizer, same_latents
from videomar_jax.tokenizers.base import TOKENIZERS

_Part = TypeVar("_Part")


def check_places(
    data: DataConfig, tokenizer: TokenizerConfig, text: TextConfig, init_from: str
) -> None:
    """Raises a UserError if neither the config, prepared clips nor another model say where the
    tokenizer or the text encoder is."""
    if init_from or prepared_with(data) is not None:
        return
    if not is_fitted(tokenizer.kind) and not tokenizer.path:
        raise UserError(
            f"tokenizer.kind is {tokenizer.kind!r}: name its weights with "
            "--config.tokenizer.path=PLACE."
        )
    if not needs_no_files(text.kind) and not text.path:
        raise UserError(
            f"text.kind is {text.kind!r}: name its folder with --config.text.path=PLACE."
        )


def prepared_with(data: DataConfig) -> Path | None:
    """The folder whose model/tokenizer made the clips, if they come as latents."""
    return DATA_KINDS[data.kind].prepared_with(data)


# Tokenizer


def is_fitted(kind: str) -> bool:
    """Whether tokenizers of this kind are fitted on the training clips."""
    return hasattr(TOKENIZERS[kind], "fit")


def known_strides(config: TokenizerConfig) -> tuple[int, int] | None:
    """(temporal, spatial) stride, where it is known before the tokenizer is opened."""
    if is_fitted(config.kind):
        return config.temporal_stride, config.patch
    return TOKENIZERS[config.kind].strides_of(config.path)


def make_tokenizer(
    config: TokenizerConfig,
    data: DataConfig,
    init_from: str,
    *,
    dtype: str,
    fit_on: Callable[[], Iterator[np.ndarray]],
) -> Tokenizer:
    """The tokenizer of the prepared clips, of the model to start from, or of the config.

    Args:
        init_from: the model to start from; "" for none.
        dtype: an opened network computes in it.
        fit_on: gives the clips [F, Hp, Wp, 3] that a tokenizer is fitted on; see `clips_to_fit`.
    Raises:
        UserError: the model to start from has another tokenizer than the config or the prepared
            clips.
        FileNotFoundError: a file is missing.
    """
    folder = prepared_with(data)
    if folder is not None:
        tokenizer = _saved("tokenizer", load_tokenizer, folder)
        if init_from:
            _check_same(tokenizer, folder, run_folder(init_from))
        return tokenizer
    is_named = bool(config.path) and not is_fitted(config.kind)
    if init_from and not is_named:
        return _inherited(config, run_folder(init_from))
    if is_fitted(config.kind):
        return _fitted(config, fit_on())
    return open_tokenizer(f"{config.kind}:{config.path}", scale=config.scale, dtype=dtype)


def clips_to_fit(
    source: ClipSource, shape: ClipShape, count: int, seed: int
) -> Iterator[np.ndarray]:
    """`count` training clips [F, Hp, Wp, 3] of this shape.

    Raises:
        UserError: no clip is long enough; when the first is asked for.
    """
    log.info("fitting the tokenizer on %d clips", count)
    fitting = clips_for(source, shape, ((shape.height, shape.width),)).tolist()
    if not fitting:
        raise UserError(
            f"The tokenizer cannot be fitted: no clip is long enough for {shape.num_frames} frames."
        )
    for number in range(count):
        # A folder may hold few clips: each is then read often, at another time and place.
        repeat, index = divmod(number, len(fitting))
        yield fixed_clips(source, [fitting[index]], shape=shape, seed=seed + repeat)["video"]


def _fitted(config: TokenizerConfig, clips: Iterator[np.ndarray]) -> Tokenizer:
    return TOKENIZERS[config.kind].fit(
        clips,
        patch=config.patch,
        temporal_stride=config.temporal_stride,
        channels=config.channels,
        patches=config.patches,
        whitening=config.whitening,
    )


def _inherited(config: TokenizerConfig, folder: Path) -> Tokenizer:
    """The tokenizer of the model in `folder`, if it is the one that the config describes."""
    tokenizer = _saved("tokenizer", load_tokenizer, folder)
    if tokenizer.kind != config.kind:
        raise UserError(
            f"init_from: the model in {folder} was trained on latents of a {tokenizer.kind} "
            f"tokenizer, but tokenizer.kind is {config.kind!r}: set "
            f"--config.tokenizer.kind={tokenizer.kind}."
        )
    if not is_fitted(config.kind):
        return tokenizer
    theirs = {
        "patch": tokenizer.spatial_stride,
        "temporal_stride": tokenizer.temporal_stride,
        "channels": tokenizer.channels,
    }
    differing = [
        f"{key} {value} there, {getattr(config, key)} here"
        for key, value in theirs.items()
        if getattr(config, key) != value
    ]
    if differing:
        raise UserError(
            f"init_from: the tokenizer of {folder} is not the one that the config describes "
            f"({', '.join(differing)})."
        )
    return tokenizer


def _check_same(tokenizer: Tokenizer, shards: Path, folder: Path) -> None:
    """Raises a UserError unless prepared clips and the model in `folder` have one tokenizer."""
    if not same_latents(tokenizer, load_tokenizer(folder / "model" / "tokenizer")):
        raise UserError(
            f"init_from: the model in {folder} was trained on latents of another tokenizer than "
            f"those in {shards}: prepare the clips with its own, {folder / 'model' / 'tokenizer'}."
        )


# Text encoder


def needs_no_files(kind: str) -> bool:
    """Whether text encoders of this kind are made from their sizes alone."""
    return hasattr(TEXT_ENCODERS[kind], "from_sizes")


def make_text_encoder(
    text: TextConfig, data: DataConfig, init_from: str, *, dtype: str
) -> TextEncoder:
    """The text encoder of the prepared clips, of the config, or of the model to start from.

    Args:
        init_from: the model to start from; "" for none.
        dtype: an opened network computes in it.
    Raises:
        FileNotFoundError: a file is missing.
    """
    folder = prepared_with(data)
    if folder is not None and (folder / "model" / "text_encoder").is_dir():
        return _saved("text encoder", load_text_encoder, folder)
    if needs_no_files(text.kind):
        return TEXT_ENCODERS[text.kind].from_sizes(text.tokens, text.width)
    if init_from and not text.path:
        return _saved("text encoder", load_text_encoder, run_folder(init_from))
    return open_text_encoder(
        f"{text.kind}:{text.path}",
        tokens=text.tokens,
        padding_side=text.padding_side,
        dtype=dtype,
        system_text_file=text.system_text_file or None,
    )


def _saved(what: str, load: Callable[[Path], _Part], folder: Path) -> _Part:
    """What a run's folder or one of prepared clips keeps under DIR/model."""
    log.info("%s: the one of %s", what, folder)
    return load(folder / "model" / what.replace(" ", "_"))

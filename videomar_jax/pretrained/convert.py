"""Published VideoMAR weights to a folder that `sample` and `main` take, and a trained model back to
published names.

Both ways tensors pass through one parameter at a time, in the type in which they are stored: memory
    stays near the size
of the file or below it, and export after import gives the file's tensors back bit by bit.
"""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from videomar_jax.checkpoints.streamed import StreamedCheckpoint
from videomar_jax.interop.videomar import inspect_checkpoint, read_checkpoint, write_checkpoint
from videomar_jax.pretrained.bundle import ModelBundle, load_bundle, load_params, save_bundle
from videomar_jax.pretrained.open import open_text_encoder, open_tokenizer
from videomar_jax.sampling.config import SamplingConfig

_log = logging.getLogger(__name__)


def import_official(
    file: str | os.PathLike,
    output: Path,
    *,
    tokenizer: str,
    text_encoder: str,
    weights: str = "ema",
    scale: float = 0.5,
    tokenizer_dtype: str = "float32",
    text_options: Mapping[str, Any] | None = None,
    config_overrides: Mapping[str, Any] | None = None,
    shape: tuple[int, int, int] = (49, 480, 768),
    fps: float = 12.0,
    param_dtype: str | None = None,
) -> None:
    """Writes `output` (model/ and checkpoints/0) from an official checkpoint; says what it read,
    inferred and wrote.

    Args:
        tokenizer, text_encoder: as `parts.open_tokenizer` and `open_text_encoder` take them.
        weights: "ema" or "model", where the file holds both.
        shape: pixel frames, rows and columns that `sample` makes unless told otherwise.
        param_dtype: type in which parameters are written; None keeps the file's (float64 and 8 bits
            become float32).
    Raises:
        ValueError, OSError: nothing is left in `output` then.
    """
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(
            f"{output} is not empty; choose a new folder for the converted model."
        )
    start = time.monotonic()
    report = inspect_checkpoint(file, weights=weights, config_overrides=config_overrides)
    _log.info("reading %s", report)
    opened = open_tokenizer(tokenizer, scale=scale, dtype=tokenizer_dtype)
    encoder = open_text_encoder(text_encoder, **(text_options or {}))
    frames, height, width = shape
    bundle = ModelBundle(
        config=report.config,
        tokenizer=opened,
        text_encoder=encoder,
        sampling=SamplingConfig(),
        num_frames=frames,
        height=height,
        width=width,
        fps=fps,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        save_bundle(bundle, part)
        del opened, encoder, bundle  # a language model may be larger than ours
        checkpoint = StreamedCheckpoint(part / "checkpoints", "ema")
        read_checkpoint(
            file,
            weights=weights,
            config_overrides=config_overrides,
            dtype=param_dtype,
            place=lambda path, array: checkpoint.put(path, _kept(array)),
        )
        checkpoint.commit({"step": 0, "seconds": {}, "source": str(file)})
        part.chmod(0o755)
        os.replace(part, output)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    size = sum(f.stat().st_size for f in output.rglob("*") if f.is_file())
    _log.info("wrote %s (%.2f GB) in %.0f s", output, size / 1e9, time.monotonic() - start)


def _kept(array: np.ndarray) -> np.ndarray:
    """The array in a type that models run in."""
    return (
        array
        if array.dtype.name in ("float32", "bfloat16", "float16")
        else array.astype(np.float32)
    )


def export_official(
    checkpoint: str | os.PathLike,
    file: Path,
    *,
    weights: str = "ema",
    container: str = "bare",
    drop_regression: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes the model of a run (or one of its checkpoints) under the published names; the ending
    chooses the format.

    Tensors have the type in which the checkpoint holds them.

    Raises:
        ValueError, OSError: the model has parts that the published one lacks, or `file` exists.
    """
    folder, params, step = load_params(checkpoint, weights, dtype=None)
    write_checkpoint(
        params,
        load_bundle(folder).config,
        file,
        container=container,
        drop_regression=drop_regression,
        overwrite=overwrite,
    )
    _log.info(
        "wrote the %s weights of step %d to %s (%.2f GB)",
        weights,
        step,
        file,
        file.stat().st_size / 1e9,
    )

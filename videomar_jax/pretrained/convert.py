"""From published VideoMAR weights to a folder that `sample` and `main` take, and back.

Both ways one tensor is in memory at a time, in the type in which it is stored. An export after an
import gives the tensors of the file back bit by bit.
"""

import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from videomar_jax.checkpoints.manager import check_place
from videomar_jax.checkpoints.streamed import StreamedCheckpoint
from videomar_jax.checks import UserError
from videomar_jax.interop.videomar import inspect_checkpoint, read_checkpoint, write_checkpoint
from videomar_jax.io.log import log
from videomar_jax.io.paths import user_path
from videomar_jax.pretrained.bundle import ModelBundle, load_bundle, load_params, save_bundle
from videomar_jax.pretrained.open import open_components
from videomar_jax.pretrained.options import ComponentOptions, ExportOptions, ImportOptions
from videomar_jax.sampling.config import SamplingConfig

FPS = 12.0
"""Frames per second that the published models were trained at."""

_RUNNABLE = ("float32", "bfloat16", "float16")


def import_official(
    file: str | os.PathLike, output: Path, components: ComponentOptions, options: ImportOptions
) -> None:
    """Writes OUTPUT/model and OUTPUT/checkpoints/0 from published weights; logs what it found.

    Args:
        file: .safetensors or .pth with the published names.
        output: a new folder. After an error nothing is left in it.
    Raises:
        FileExistsError: `output` is not empty.
        UserError, OSError: a file is missing or broken, or the parts do not fit together.
    """
    output = user_path(output, "--output")
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(
            f"{output} is not empty; choose a new folder for the converted model."
        )
    check_place(output)
    start = time.monotonic()
    weights = "ema" if options.weights == "ema" else "model"
    overrides = {"dtype": options.dtype}
    file = user_path(file, "--checkpoint")
    report = inspect_checkpoint(file, weights=weights, config_overrides=overrides)
    log.info("reading %s", report)
    tokenizer, text_encoder = open_components(components)
    if text_encoder is None:
        raise UserError("Name the text encoder: --text_encoder=qwen2:PLACE.")
    bundle = ModelBundle(
        config=report.config,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        sampling=SamplingConfig(),
        num_frames=options.num_frames,
        height=options.height,
        width=options.width,
        fps=FPS,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        save_bundle(bundle, part)
        # A language model may be larger than ours: release it before the weights are read.
        del tokenizer, text_encoder, bundle
        checkpoint = StreamedCheckpoint(part / "checkpoints", "ema")
        read_checkpoint(
            file,
            weights=weights,
            config_overrides=overrides,
            dtype=options.param_dtype,
            place=lambda path, array: checkpoint.put(path, _runnable(array)),
        )
        checkpoint.commit({"step": 0, "seconds": {}, "source": str(file)})
        part.chmod(0o755)  # temporary folders are readable by their owner alone
        os.replace(part, output)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    size = sum(entry.stat().st_size for entry in output.rglob("*") if entry.is_file())
    log.info("wrote %s (%.2f GB) in %.0f s", output, size / 1e9, time.monotonic() - start)


def _runnable(array: np.ndarray) -> np.ndarray:
    """The array in a type that models run in: float64 and 8 bits become float32."""
    return array if array.dtype.name in _RUNNABLE else array.astype(np.float32)


def export_official(
    checkpoint: str | os.PathLike,
    file: Path,
    options: ExportOptions,
    *,
    weights: str = "ema",
) -> None:
    """Writes the model of a run under the published names, in the types of the checkpoint.

    Args:
        checkpoint: a run's workdir or one of its checkpoints.
        file: its ending, .safetensors or .pth, chooses the format.
        weights: "ema", the averaged parameters, or "params", those of the last step.
    Raises:
        FileExistsError: `file` exists.
        UserError, OSError: the model has parts that the published one lacks, or there is none.
    """
    file = user_path(file, "--export")
    folder, params, step = load_params(checkpoint, weights, dtype=None)
    write_checkpoint(
        params,
        load_bundle(folder).config,
        file,
        container=options.container,
        drop_regression=options.drop_regression,
        overwrite=options.overwrite,
    )
    size = file.stat().st_size / 1e9
    log.info("wrote the %s weights of step %d to %s (%.2f GB)", weights, step, file, size)

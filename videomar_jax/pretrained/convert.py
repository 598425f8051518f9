"""From published VideoMAR weights to a folder that `sample` and `main` take, and back; and from a
run to a packed model, which is what is handed on.

Published weights are read and written one tensor at a time, in the type in which they are stored.
An export after an import gives the tensors of the file back bit by bit.
"""

import contextlib
import dataclasses
import glob
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from videomar_jax.checkpoints.manager import check_place
from videomar_jax.checkpoints.streamed import StreamedCheckpoint
from videomar_jax.checks import UserError, not_finite
from videomar_jax.interop.videomar import inspect_checkpoint, read_checkpoint, write_checkpoint
from videomar_jax.interop.videomar_sizes import HEADER_FIELDS, NEVER_PUBLISHED, unusual_count
from videomar_jax.io import lock
from videomar_jax.io.files import clear_leftovers
from videomar_jax.io.lock import holding
from videomar_jax.io.log import log
from videomar_jax.io.paths import check_length, user_path
from videomar_jax.models.config import PRESETS, ModelConfig
from videomar_jax.pretrained.bundle import ModelBundle, load_bundle, load_params, save_bundle
from videomar_jax.pretrained.open import open_components, sources_of
from videomar_jax.pretrained.options import ComponentOptions, ExportOptions, ImportOptions
from videomar_jax.pretrained.packed import write_weights
from videomar_jax.sampling.config import SamplingConfig

_OLD = 3600
"""Seconds after which a folder that an earlier version was making is known to be left over."""

_RUNNABLE = ("float32", "bfloat16", "float16")


def import_official(
    file: str | os.PathLike,
    output: Path,
    components: ComponentOptions,
    options: ImportOptions,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes OUTPUT/model and OUTPUT/checkpoints/0 from published weights; logs what it found.

    Args:
        file: .safetensors or .pth with the published names.
        output: a new folder. After an error nothing is left in it.
        settings: fields of the model that no shape tells (`HEADER_FIELDS`); by default those of the
            file's header, of the named preset, or the published ones.
    Raises:
        FileExistsError: `output` is not empty.
        UserError, OSError: a file is missing or broken, the parts do not fit together, or another
            process is making `output`.
    """
    file = user_path(file, "--checkpoint")
    output = user_path(output, "--output")
    check_place(output)
    _make_folder(output, lambda part: _import(file, part, components, options, settings or {}))


def pack(
    checkpoint: str | os.PathLike,
    output: Path,
    *,
    weights: str = "ema",
    param_dtype: str | None = None,
) -> None:
    """Writes OUTPUT/model and OUTPUT/weights.safetensors from a run: all that sampling needs.

    Args:
        checkpoint: a run's workdir, or one of its checkpoints.
        output: a new folder. After an error nothing is left in it.
        weights: "ema", the averaged parameters, or "params", those of the last step.
        param_dtype: "float32" or "bfloat16", in which the parameters are stored; None is bfloat16.
    Raises:
        FileExistsError: `output` is not empty.
        UserError, OSError: there is no model, it does not fit the type, or another process is
            making `output`.
    """

    def fill(part: Path) -> None:
        folder, params, step = load_params(checkpoint, weights)
        save_bundle(load_bundle(folder), part)
        dtype = param_dtype or "bfloat16"
        write_weights(part, params, step=step, weights=weights, dtype=dtype)

    _make_folder(user_path(output, "--output"), fill)


def _make_folder(output: Path, fill: Callable[[Path], None]) -> None:
    """Makes the new folder `output`, which is there when it is whole; logs its size.

    fill: fills a folder of another name, which it makes itself.
    """
    if output.is_symlink():
        output = output.resolve()  # a folder cannot be moved in the place of a link
    check_length(output)
    _check_empty(output)
    with _reserved(output) as part:
        _check_empty(output)
        start = time.monotonic()
        fill(part)
        os.replace(part, output)
    size = sum(entry.stat().st_size for entry in output.rglob("*") if entry.is_file())
    log.info("wrote %s (%.1f MB) in %.0f s", output, size / 1e6, time.monotonic() - start)


def _check_empty(output: Path) -> None:
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(
            f"{output} is not empty; choose a new folder for the converted model."
        )


def _import(
    file: Path,
    folder: Path,
    components: ComponentOptions,
    options: ImportOptions,
    settings: Mapping[str, Any],
) -> None:
    """Fills the new `folder` with the converted model."""
    weights = "ema" if options.weights == "ema" else "model"
    overrides = {"dtype": options.dtype, **settings}
    report = inspect_checkpoint(file, weights=weights, config_overrides=overrides)
    if options.preset is not None:
        preset = PRESETS[options.preset]
        for field, (_, origin) in report.assumed.items():
            if origin == "assumed":
                overrides[field] = getattr(preset, field)
        report = inspect_checkpoint(file, weights=weights, config_overrides=overrides)
        _check_preset(file, report.config, options.preset)
    log.info("reading %s", report)
    unusual = unusual_count(report.config, PRESETS)
    if unusual:
        log.warning("%s: %s (--preset=NAME refuses such a file).", file, unusual)
    sources = sources_of(
        {"tokenizer": components.tokenizer, "text_encoder": components.text_encoder}
    )
    # The commits that were looked up are those that are opened and named in the model's file.
    components = dataclasses.replace(components, **sources)
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
        fps=options.fps,
        sources=sources,
    )
    folder.mkdir()
    save_bundle(bundle, folder)
    # A language model may be larger than ours: release it before the weights are read.
    del tokenizer, text_encoder, bundle
    checkpoint = StreamedCheckpoint(folder / "checkpoints", "ema")
    read_checkpoint(
        file,
        weights=weights,
        config_overrides=overrides,
        dtype=options.param_dtype,
        place=lambda path, array: checkpoint.put(path, _runnable(path, array)),
    )
    checkpoint.commit({"step": 0, "seconds": {}, "source": str(file)})


def _check_preset(file: Path, config: ModelConfig, name: str) -> None:
    """Raises a UserError unless the sizes of a file's model are those of the preset."""
    wanted, found = PRESETS[name].sizes(), config.sizes()
    differing = [
        f"{size} {found[size]}, not {wanted[size]}"
        for size in wanted
        if size not in NEVER_PUBLISHED and found[size] != wanted[size]
    ]
    if differing:
        raise UserError(
            f"{file} does not hold a model of the size {name} ({', '.join(differing)}): the file "
            f"is incomplete or of another model. Without --preset it is read as what it is."
        )


@contextlib.contextmanager
def _reserved(output: Path) -> Iterator[Path]:
    """A hidden name beside `output` for what is being made, while no other process makes `output`.

    What a killed process left under that name is removed, as it is after an exception. The name has
    a fixed length, so that `output` may have the longest one.

    Raises:
        UserError: another process makes it; the text names that process.
    """
    digest = hashlib.sha256(os.fsencode(output.name)).hexdigest()[:16]
    part = output.with_name(f".convert-{digest}.part")
    with holding(output.with_name(f"{lock.PREFIX}-{digest}"), str(output)):
        _remove(part)
        clear_leftovers(output.parent, output.name)
        for leftover in output.parent.glob(f".{glob.escape(output.name)}.*"):
            if _is_leftover(leftover, output):
                _remove(leftover)
        try:
            yield part
        finally:
            _remove(part)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_leftover(folder: Path, output: Path) -> bool:
    """Whether an earlier version left the folder when it was killed at least an hour ago."""
    unique = folder.name.removeprefix(f".{output.name}.")
    if not re.fullmatch("[a-z0-9_]{8}", unique) or folder.is_symlink() or not folder.is_dir():
        return False
    names = {entry.name for entry in folder.iterdir()}
    is_ours = "model" in names and names <= {"model", "checkpoints", "checkpoints.pieces"}
    return is_ours and time.time() - folder.stat().st_mtime > _OLD


def _runnable(path: str, array: np.ndarray) -> np.ndarray:
    """The parameter in a type that models run in: float64 and 8 bits become float32.

    Raises:
        UserError: it holds numbers that are too large for float32.
    """
    if array.dtype.name in _RUNNABLE:
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(np.float32)
    fault = not_finite(cast)
    if fault:
        raise UserError(f"{path} ({array.dtype}) does not fit float32: it would hold {fault}.")
    return cast


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
    check_length(file)
    if not file.parent.is_dir():
        raise FileNotFoundError(f"Cannot write {file}: there is no folder {file.parent}.")
    folder, params, step = load_params(checkpoint, weights, dtype=None)
    bundle = load_bundle(folder)
    with _reserved(file):
        write_checkpoint(
            params,
            bundle.config,
            file,
            container=options.container,
            drop_regression=options.drop_regression,
            overwrite=options.overwrite,
        )
    size = file.stat().st_size / 1e9
    log.info("wrote the %s weights of step %d to %s (%.2f GB)", weights, step, file, size)
    has_header = file.suffix == ".safetensors"
    importing, sampling = flags_that_restore(bundle, has_header=has_header)
    if importing:
        log.warning(
            "%s cannot carry all settings; to read it with convert, add %s",
            file.name,
            " ".join(importing),
        )
    if sampling:
        log.warning(
            "%s carries no settings of sampling; to sample as before, give sample %s",
            file.name,
            " ".join(sampling),
        )


def flags_that_restore(bundle: ModelBundle, *, has_header: bool) -> tuple[list[str], list[str]]:
    """The flags of `convert`, and those of `sample`, for what a file of weights does not carry.

    Only what differs from the value that is assumed without the flag needs one.

    Args:
        has_header: the file is a .safetensors, whose header holds the settings of the model.
    """
    config, assumed = bundle.config, ModelConfig()
    model = {} if has_header else {field: getattr(config, field) for field in HEADER_FIELDS}
    model["dtype"] = config.dtype
    importing = [
        _as_flag(field, value) for field, value in model.items() if value != getattr(assumed, field)
    ]
    for field in ("num_frames", "height", "width", "fps"):
        value = getattr(bundle, field)
        if value != getattr(ImportOptions(), field):
            importing.append(_as_flag(field, value))
    sampling = []
    for field in dataclasses.fields(SamplingConfig):
        value = getattr(bundle.sampling, field.name)
        if value != field.default:
            sampling.append(_as_flag(field.name, value))
    return importing, sampling


def _as_flag(name: str, value: Any) -> str:
    """A flag as it is written on a command line."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    if isinstance(value, tuple):
        return f"--{name}={','.join(map(str, value))}"
    return f"--{name}={value}"

"""The parameters of a finished model as one file, which is how a model is handed on.

    DIR/model/                  as in a run (`bundle`)
    DIR/weights.safetensors     one set of parameters, named by their paths

The file's header holds the step, which parameters these are ("ema" or "params"), and a digest of
all of them, so that a damaged file is noticed.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from videomar_jax.checks import UserError, not_finite
from videomar_jax.interop.formats.base import TensorSpec, WeightFileError
from videomar_jax.interop.formats.safetensors import SafetensorsFile, write_safetensors
from videomar_jax.models.params import Params

WEIGHTS = "weights.safetensors"
"""The file beside the folder "model"."""


def write_weights(
    directory: str | os.PathLike, params: Params, *, step: int, weights: str, dtype: str
) -> None:
    """Writes DIR/weights.safetensors.

    Args:
        step: the step of training that the parameters are from.
        weights: which ones they are, "ema" or "params".
        dtype: in which they are stored, "float32" or "bfloat16".
    Raises:
        FileExistsError: there is such a file already.
        UserError: a parameter does not fit `dtype`.
    """
    arrays = {}
    for name, leaf in flatten_dict(params, sep="/").items():
        with np.errstate(over="ignore"):
            arrays[name] = np.asarray(leaf, np.dtype(dtype))
        fault = not_finite(arrays[name])
        if fault:
            raise UserError(f"{name} does not fit {dtype}: it would hold {fault}.")
    write_safetensors(
        Path(directory) / WEIGHTS,
        {name: TensorSpec(array.shape, array.dtype) for name, array in arrays.items()},
        arrays.__getitem__,
        metadata={"step": str(step), "weights": weights, "digest": _digest(arrays)},
    )


def read_weights(
    directory: str | os.PathLike, shapes: dict[str, Any], weights: str
) -> tuple[Params, int]:
    """(parameters in their stored types, their step) of DIR/weights.safetensors.

    Args:
        shapes: what has a shape, by the paths of the model's parameters.
        weights: which parameters are asked for, "ema" or "params".
    Raises:
        UserError: the file is damaged, or of another model, or holds the other parameters.
    """
    path = Path(directory) / WEIGHTS
    with SafetensorsFile(path) as file:
        held = file.metadata.get("weights")
        if held != weights:
            raise UserError(
                f"{path} holds the parameters {held!r}, not {weights!r}: only these were packed."
            )
        wanted = {name: tuple(leaf.shape) for name, leaf in shapes.items()}
        if file.shapes != wanted:
            wrong = sorted(set(file.shapes.items()) ^ set(wanted.items()))
            raise WeightFileError(
                f"{path} does not hold the model that model.json describes: {len(wrong)} "
                f"parameters differ, such as {wrong[0][0]}."
            )
        arrays = {name: file[name] for name in file}
        if file.metadata.get("digest") != _digest(arrays):
            raise WeightFileError(f"{path} is damaged: take another copy of it.")
        step = int(file.metadata["step"])
    return unflatten_dict(arrays, sep="/"), step


def _digest(arrays: dict[str, np.ndarray]) -> str:
    """A digest of the names and values of all arrays."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8))
    return digest.hexdigest()

"""Published weights of the Cosmos continuous video tokenizers, read without PyTorch.

A repository holds `autoencoder.jit`, or its halves `encoder.jit` and `decoder.jit`; converted
copies are .safetensors files with the same keys or with those of diffusers. The sizes are not in
the files: they follow from the name of the release, which is also looked for in the path. Every
parameter must be filled by one tensor of its shape, and every tensor must fill one or be known to
be unused (`rules.is_unused`); all faults are reported together.
"""

import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from videomar_jax.checks import UserError
from videomar_jax.interop.formats.files import TensorFile, TensorSpec, WeightFileError, open_tensors
from videomar_jax.interop.formats.rules import expected, faults
from videomar_jax.io.files import check_regular
from videomar_jax.tokenizers.cosmos.config import RELEASES, CosmosConfig
from videomar_jax.tokenizers.cosmos.rules import cosmos_rules, is_unused, nested, parameter_shapes

HEADER_KEY = "cosmos_config"
_HALVES = ("encoder.jit", "decoder.jit")
_WHOLE = ("autoencoder.jit", "diffusion_pytorch_model.safetensors", "model.safetensors")


def load_params(
    path: str | os.PathLike, config: CosmosConfig | None = None, *, dtype: str = "float32"
) -> tuple[CosmosConfig, dict[str, Any]]:
    """(config, parameters as a nested dict) from a file, or a folder as published.

    Args:
        config: the sizes; None takes them from the header of a .safetensors file, else from the
            release that `path` names.
        dtype: type of the parameters.
    Raises:
        FileNotFoundError: no such file.
        UserError: neither a header nor `path` tells the sizes.
        WeightFileError: a damaged file, or one of another network; everything that does not fit is
            listed.
    """
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open_tensors(file)) for file in weight_files(path)]
        config = config or _config_of(path, files)
        return config, read_params(files, config, dtype=dtype)


def read_params(
    files: Sequence[TensorFile], config: CosmosConfig, *, dtype: str = "float32"
) -> dict[str, Any]:
    """The parameters of a network as a nested dict, from files that hold all of it together.

    Raises:
        WeightFileError: lists all missing, unknown, repeated and wrongly shaped tensors; or names
            one that holds NaN, infinity, or numbers too large for `dtype`.
    """
    # The file that each tensor is read from, and what every file says about it.
    holders: dict[str, TensorFile] = {}
    specs: dict[str, list[TensorSpec]] = defaultdict(list)
    for file in files:
        for key, spec in file.specs.items():
            holders[key] = file
            specs[key].append(spec)

    diffusers = any(key.startswith("encoder.down_blocks.") for key in specs)
    slots = expected(cosmos_rules(config, diffusers=diffusers), parameter_shapes(config))
    found = {key: spec for key, spec in specs.items() if key in slots or not is_unused(key, config)}
    wrong = faults(slots, found)
    if wrong:
        names = " and ".join(str(file.path) for file in files)
        raise WeightFileError(
            f"{names} cannot be this Cosmos tokenizer ({_sizes(config)}): " + "; ".join(wrong)
        )
    leaves = {}
    for key, slot in slots.items():
        array = holders[key].read_finite(key, jnp.dtype(dtype))
        leaves[slot.rule.ours] = jnp.asarray(slot.rule.transform.ours(array))
    return nested(leaves)


def weight_files(path: str | os.PathLike) -> list[Path]:
    """The files that hold the tokenizer at `path`, one or two.

    Raises:
        FileNotFoundError: they are not there; the text says what was looked for.
    """
    path = Path(path)
    if path.is_dir():
        for name in _WHOLE:
            if (path / name).is_file():
                return [path / name]
        files = [path / name for name in _HALVES]
        candidates = sorted(path.glob("*.safetensors"))
        if len(candidates) == 1 and not all(file.is_file() for file in files):
            return candidates
    elif path.name in _HALVES:
        files = [path.with_name(name) for name in _HALVES]
    else:
        files = [path]
    for file in files:
        check_regular(file)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        place = path if path.is_dir() else path.parent
        raise FileNotFoundError(
            f"no {' and no '.join(missing)} in {place}: a Cosmos tokenizer is autoencoder.jit, or "
            f"encoder.jit with decoder.jit, or one .safetensors file"
        )
    return files


def _config_of(path: str | os.PathLike, files: Sequence[TensorFile]) -> CosmosConfig:
    """The configuration in a file's header, else that of the release that `path` names."""
    texts = [file.metadata[HEADER_KEY] for file in files if HEADER_KEY in file.metadata]
    if not texts:
        return release_in(path)
    try:
        return CosmosConfig.from_dict(json.loads(texts[0]))
    except (ValueError, RecursionError) as error:
        raise WeightFileError(
            f"{path}: the header's {HEADER_KEY} is not a configuration: {error}"
        ) from error


def release_in(path: str | os.PathLike) -> CosmosConfig:
    """The configuration of the release that a part of `path` names, the last such part.

    Raises:
        UserError: no part names one.
    """
    for part in reversed(Path(path).absolute().parts):
        name = Path(part).stem if part.endswith((".jit", ".safetensors")) else part
        with contextlib.suppress(UserError):
            return CosmosConfig.release(name)
    raise UserError(
        f"{path} does not say which Cosmos tokenizer it is: name the release, one of "
        f"{', '.join(RELEASES)}"
    )


def _sizes(config: CosmosConfig) -> str:
    for name, release in RELEASES.items():
        if release == config:
            return name
    return f"strides {config.temporal_stride} and {config.spatial_stride}, width {config.width}"

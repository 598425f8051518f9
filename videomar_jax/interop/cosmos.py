"""Published weights of the Cosmos continuous video tokenizers, read without PyTorch.

A repository holds `autoencoder.jit`, or its halves `encoder.jit` and `decoder.jit`; converted
copies are .safetensors
files with the same keys, or with those of diffusers. The sizes are not in the files: they follow
    from the name of the
release, which is also looked for in the path. Every parameter is filled by one tensor of its shape,
and every tensor fills one or is known to be unused (`cosmos_rules`); all faults are told together.
"""

import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from videomar_jax.interop.cosmos_rules import cosmos_rules, is_unused, nested, parameter_shapes
from videomar_jax.interop.formats.files import TensorFile, TensorSpec, WeightFileError, open_tensors
from videomar_jax.interop.rules import expected, faults
from videomar_jax.tokenizers.cosmos.config import RELEASES, CosmosConfig
from videomar_jax.tokenizers.cosmos.tokenizer import CosmosTokenizer

HEADER_KEY = "cosmos_config"
_HALVES = ("encoder.jit", "decoder.jit")
_WHOLE = ("autoencoder.jit", "diffusion_pytorch_model.safetensors", "model.safetensors")


def load_cosmos(
    path: str | os.PathLike,
    *,
    release: str | None = None,
    config: CosmosConfig | None = None,
    scale: float = 0.5,
    dtype: str = "float32",
    chunk: int | None = 2,
) -> CosmosTokenizer:
    """The tokenizer in a file, or in a folder as published.

    Args:
        path: autoencoder.jit, a .safetensors file with the same keys or diffusers', or the folder
            of either (or of encoder.jit and decoder.jit). One half alone (encoder.jit) brings the
            other from beside it.
        release: its name, such as "CV8x16x16"; by default the one in `path`, unless the header of a
            .safetensors file has the sizes, as JSON under "cosmos_config".
        config: sizes of a network that is no release.
        scale, dtype, chunk: as in `CosmosTokenizer`.
    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown release, or a damaged file (WeightFileError), or one of another
            network, with all that does not fit.
    """
    if release is not None and config is not None:
        raise ValueError("give a release or a config, not both")
    files = weight_files(path)
    with contextlib.ExitStack() as stack:
        tensors = [stack.enter_context(open_tensors(file)) for file in files]
        config = config or (CosmosConfig.release(release) if release else _config_of(path, tensors))
        params = read_cosmos(tensors, config, dtype=dtype)
    return CosmosTokenizer(params=params, config=config, scale=scale, dtype=dtype, chunk=chunk)


def read_cosmos(
    files: Sequence[TensorFile], config: CosmosConfig, *, dtype: str = "float32"
) -> dict[str, Any]:
    """The parameters of a network, nested, in `dtype`, from files that hold it together.

    Raises a WeightFileError that lists all missing, unknown, repeated and wrongly shaped tensors.
    """
    holders, specs = _contents(files)
    diffusers = any(key.startswith("encoder.down_blocks.") for key in specs)
    slots = expected(cosmos_rules(config, diffusers=diffusers), parameter_shapes(config))
    found = {key: spec for key, spec in specs.items() if key in slots or not is_unused(key, config)}
    if wrong := faults(slots, found):
        names = " and ".join(str(file.path) for file in files)
        raise WeightFileError(
            f"{names} cannot be this Cosmos tokenizer ({_sizes(config)}): " + "; ".join(wrong)
        )
    leaves = {
        slot.rule.ours: jnp.asarray(slot.rule.transform.ours(holders[key][key]).astype(dtype))
        for key, slot in slots.items()
    }
    return nested(leaves)


def weight_files(path: str | os.PathLike) -> list[Path]:
    """The files that hold the tokenizer at `path`. FileNotFoundError says what was looked for."""
    path = Path(path)
    if path.is_dir():
        for name in _WHOLE:
            if (path / name).is_file():
                return [path / name]
        candidates = sorted(path.glob("*.safetensors"))
        halves = [path / name for name in _HALVES]
        if len(candidates) == 1 and not all(half.is_file() for half in halves):
            return candidates
    else:
        halves = [path.with_name(name) for name in _HALVES] if path.name in _HALVES else [path]
    if missing := [half.name for half in halves if not half.is_file()]:
        place = path if path.is_dir() else path.parent
        raise FileNotFoundError(
            f"no {' and no '.join(missing)} in {place}: a Cosmos tokenizer is autoencoder.jit, or encoder.jit with "
            f"decoder.jit, or one .safetensors file"
        )
    return halves


def _config_of(path: str | os.PathLike, files: Sequence[TensorFile]) -> CosmosConfig:
    """The configuration that a file's header holds, else that of the release that `path` names."""
    text = next((file.metadata[HEADER_KEY] for file in files if HEADER_KEY in file.metadata), None)
    if text is None:
        return release_in(path)
    try:
        return CosmosConfig(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()}
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise WeightFileError(
            f"{path}: the header's {HEADER_KEY} is not a configuration: {error}"
        ) from error


def release_in(path: str | os.PathLike) -> CosmosConfig:
    """The configuration of the release that a part of `path` names, the last part first."""
    for part in reversed(Path(path).absolute().parts):
        with contextlib.suppress(ValueError):
            return CosmosConfig.release(
                Path(part).stem if part.endswith((".jit", ".safetensors")) else part
            )
    raise ValueError(
        f"{path} does not say which Cosmos tokenizer it is: name the release, one of {', '.join(RELEASES)}"
    )


def _contents(
    files: Sequence[TensorFile],
) -> tuple[Mapping[str, TensorFile], Mapping[str, list[TensorSpec]]]:
    """(the file of each key, its shape and type in every file that has it)."""
    holders: dict[str, TensorFile] = {}
    specs: dict[str, list[TensorSpec]] = defaultdict(list)
    for file in files:
        for key, spec in file.specs.items():
            holders[key] = file
            specs[key].append(spec)
    return holders, specs


def _sizes(config: CosmosConfig) -> str:
    names = [name for name, known in RELEASES.items() if known == config]
    return (
        names[0]
        if names
        else f"strides {config.temporal_stride} and {config.spatial_stride}, width {config.width}"
    )

"""A trained model as a folder: what it needs besides its parameters, and how all of it is read.

    DIR/model/model.json       config of the model, sampling settings, sizes of the trained clips
    DIR/model/tokenizer/       the tokenizer
    DIR/model/text_encoder/    the text encoder
    DIR/checkpoints/STEP/      parameters and their average (`checkpoints.manager`)
    DIR/weights.safetensors    in a packed model instead of the checkpoints (`packed`)

DIR is a run's workdir, or a converted or packed model. `load_pretrained` takes it, or one of its
checkpoints/STEP.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from videomar_jax.checkpoints.manager import Checkpoints
from videomar_jax.checkpoints.streamed import stored_types
from videomar_jax.checks import (
    Range,
    Size,
    UserError,
    check_fields,
    check_value,
    from_values,
    known_keys,
    not_finite,
    one_of,
    shortened,
)
from videomar_jax.io.files import atomic_write, read_json, take_digest, with_digest
from videomar_jax.io.log import warn_once
from videomar_jax.io.migration import current
from videomar_jax.io.paths import user_path
from videomar_jax.models.config import ModelConfig
from videomar_jax.models.params import Params, abstract_model
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.parallel.config import MeshConfig
from videomar_jax.parallel.mesh import make_mesh
from videomar_jax.parallel.sharding import param_shardings
from videomar_jax.pretrained.packed import WEIGHTS, read_weights
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.text_encoders import TextEncoder, load_text_encoder, save_text_encoder
from videomar_jax.tokenizers import Tokenizer, load_tokenizer, save_tokenizer
from videomar_jax.tokenizers.base import latent_shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipSizes:
    """The clips that a model makes by default: what of a bundle stands in model.json as it is.

    Raises:
        UserError: a field with a value that makes no sense, by name.
    """

    num_frames: Size
    """Pixel frames."""
    height: Size
    """Pixel rows."""
    width: Size
    """Pixel columns."""
    fps: Annotated[float, Range(low=0, low_open=True, high=1000)]
    """Frames per second."""

    def __post_init__(self):
        check_fields("", self)


_SIZES = tuple(field.name for field in dataclasses.fields(ClipSizes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelBundle:
    """What belongs to a model besides its parameters.

    Raises:
        UserError: the parts do not fit together.
    """

    config: ModelConfig
    tokenizer: Tokenizer
    text_encoder: TextEncoder
    sampling: SamplingConfig
    """How the model samples unless something else is asked for."""
    num_frames: int
    """Pixel frames of the clips in the last stage of training."""
    height: int
    """Their pixel rows."""
    width: int
    """Their pixel columns."""
    fps: float
    """Their frames per second."""
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The repositories of the Hugging Face Hub, with their commits, that the tokenizer and the text
    encoder are from (`open.sources_of`)."""

    def __post_init__(self):
        ClipSizes(**{name: getattr(self, name) for name in _SIZES})
        check_fit(self.config, self.tokenizer, self.text_encoder)
        grid = latent_shape(self.tokenizer, self.num_frames, self.height, self.width)
        if any(size % self.config.patch_size for size in grid[1:]):
            raise UserError(
                f"height {self.height} and width {self.width} become latents of {grid[1]} x "
                f"{grid[2]}, which are no patches of {self.config.patch_size}: choose another "
                f"height and width."
            )


def check_fit(model: ModelConfig, tokenizer: Tokenizer, text: TextEncoder) -> None:
    """Checks that a model, a tokenizer and a text encoder fit together.

    Raises:
        UserError: the numbers of latent channels, or the shapes of text features, differ.
    """
    if model.latent_channels != tokenizer.channels:
        raise UserError(
            f"The model takes {model.latent_channels} latent channels, the tokenizer gives "
            f"{tokenizer.channels}: set model.latent_channels={tokenizer.channels}."
        )
    if (model.text_tokens, model.text_width) != (text.max_tokens, text.width):
        raise UserError(
            f"The model takes text of {model.text_tokens} tokens x {model.text_width} values, the "
            f"text encoder gives {text.max_tokens} x {text.width}: set model.text_tokens and "
            f"model.text_width to that."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A model with its parameters, ready to sample."""

    model: VideoMAR
    bundle: ModelBundle
    step: int
    place: Path
    """The folder that gives these parameters again: DIR/checkpoints/STEP, or a packed model."""


_ALWAYS = {
    "model": (
        "latent_channels",
        "patch_size",
        "width",
        "depth",
        "num_heads",
        "mlp_ratio",
        "rope_split",
        "rope_base",
        "text_tokens",
        "text_width",
        "text_mask",
        "null_text_mask",
        "pooled_text",
        "head",
        "head_width",
        "head_depth",
        "flow_time",
        "regression",
        "dtype",
    ),
    "sampling": (
        "steps",
        "head_steps",
        "guidance",
        "guidance_schedule",
        "temperature",
        "temperature_law",
        "latent_clip",
        "clip_first",
    ),
}
"""What every model.json holds that matters to sampling; settings that were added since have their
defaults where they are missing."""


def save_bundle(bundle: ModelBundle, directory: str | os.PathLike) -> None:
    """Writes DIR/model; model.json comes last, so that the folder is complete where it exists."""
    folder = Path(directory) / "model"
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(bundle.tokenizer, folder / "tokenizer")
    save_text_encoder(bundle.text_encoder, folder / "text_encoder")
    save_settings(bundle, directory)


def save_settings(bundle: ModelBundle, directory: str | os.PathLike) -> None:
    """Writes DIR/model/model.json alone; the tokenizer and the text encoder stay as they are."""
    values = {
        "model": bundle.config.to_dict(),
        "sampling": dataclasses.asdict(bundle.sampling),
        **{name: getattr(bundle, name) for name in _SIZES},
    }
    if bundle.sources:
        values["sources"] = dict(bundle.sources)
    atomic_write(
        Path(directory) / "model" / "model.json", json.dumps(with_digest(values), indent=2) + "\n"
    )


def load_bundle(directory: str | os.PathLike) -> ModelBundle:
    """Reads DIR/model, also of earlier versions.

    Raises:
        FileNotFoundError: there is no model in this folder, or a file that it refers to is gone.
        UserError: its files are broken, or its parts do not fit together.
    """
    folder = Path(directory) / "model"
    return ModelBundle(
        **_read_json(directory),
        tokenizer=load_tokenizer(folder / "tokenizer"),
        text_encoder=load_text_encoder(folder / "text_encoder"),
    )


def load_config(directory: str | os.PathLike) -> ModelConfig:
    """The model's config alone; errors as `load_bundle`."""
    return _read_json(directory)["config"]


def _read_json(directory: str | os.PathLike) -> dict[str, Any]:
    """The fields of a bundle that model.json holds."""
    file = Path(directory) / "model" / "model.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{directory} holds no model ({file} is missing): give the workdir of a training run "
            f"or a converted checkpoint."
        )
    try:
        values = read_json(file)
        if not isinstance(values, Mapping):
            raise UserError(f"it must hold an object, not {shortened(values)}.")
        as_written = take_digest(values)
        required = ("model", "sampling", *_SIZES)
        known_keys("it", values, (*required, "sources"), required)
        sizes = from_values("", ClipSizes, {name: values[name] for name in _SIZES})
        sampling = values["sampling"]
        if isinstance(sampling, Mapping):
            sampling = current("sampling", sampling)
        fields = {
            **dataclasses.asdict(sizes),
            "config": from_values("model", ModelConfig, values["model"], required=_ALWAYS["model"]),
            "sampling": from_values(
                "sampling", SamplingConfig, sampling, required=_ALWAYS["sampling"]
            ),
            "sources": values.get("sources", {}),
        }
        check_value("sources", fields["sources"], Mapping[str, str])
    except ValueError as error:
        raise UserError(f"{file} is broken: {error}") from error
    if not as_written:
        # Not refused: it may have been edited on purpose.
        warn_once("%s is not as it was written: it was edited by hand, or is damaged", file)
    return fields


def load_pretrained(
    path: str | os.PathLike,
    *,
    weights: str = "ema",
    bundle: ModelBundle | None = None,
    mesh: MeshConfig | None = None,
) -> Pretrained:
    """Reads a model from a run's folder (its newest checkpoint) or from one of its checkpoints.

    Its parameters have the types of `for_running`: a bfloat16 checkpoint takes half the memory of a
    float32 one.

    Args:
        path: a workdir, WORKDIR/checkpoints/STEP, or a converted model.
        weights: "ema", the averaged parameters, or "params", those of the last step.
        bundle: what `load_bundle` returned for this folder, where it is loaded already.
        mesh: the devices that the parameters are spread over; none then holds all of those that are
            cut.
    Raises:
        FileNotFoundError, UserError: what is missing or does not fit, and where.
    """
    if mesh is not None:
        make_mesh(mesh)  # a mesh that does not fit the devices is refused before anything is read
    folder, params, step = load_params(path, weights, dtype=None)
    if bundle is None:
        bundle = load_bundle(folder)
    graph, _ = abstract_model(bundle.config)
    model = nnx.merge(graph, for_running(params, bundle.config.dtype, mesh))
    packed = _is_packed(*_split(path))
    place = folder if packed else folder / "checkpoints" / str(step)
    return Pretrained(model=model, bundle=bundle, step=step, place=place.absolute())


def for_running(params: Params, dtype: str, mesh: MeshConfig | None = None) -> Params:
    """Parameters in the types that a model which computes in `dtype` needs.

    Kernels of linear layers are cast to `dtype` at every use, so they stay in 16 bits where they
    are stored so. Everything else takes part in float32 arithmetic and is float32. The model
    computes the same as with float32 throughout.

    `params` is emptied, so that there need not be memory for both. With a mesh each parameter goes
    from the host directly to its devices.
    """
    shardings = {}
    if mesh is not None:
        shardings = flatten_dict(param_shardings(params, make_mesh(mesh), mesh), sep="/")

    def running(path: str, leaf: Any) -> jax.Array:
        kernel = path.endswith("/kernel")
        wanted = jnp.promote_types(leaf.dtype, dtype) if kernel else jnp.float32
        if not shardings:
            return jnp.asarray(leaf, wanted)
        return jax.device_put(np.asarray(leaf).astype(wanted), shardings[path])

    return _each(params, running)


def load_params(
    path: str | os.PathLike, weights: str = "ema", *, dtype: str | None = "float32"
) -> tuple[Path, Params, int]:
    """Reads the parameters of a checkpoint as NumPy arrays.

    Args:
        path, weights: as in `load_pretrained`.
        dtype: type of the parameters; None keeps the stored ones.
    Returns:
        The folder of the model, its parameters, and the step of the checkpoint.
    Raises:
        FileNotFoundError, UserError: as `load_pretrained`; also where a parameter holds NaN or
            infinity.
    """
    one_of("weights", weights, ("ema", "params"))
    folder, step = _split(path)
    shapes = flatten_dict(abstract_model(load_config(folder))[1], sep="/")
    if _is_packed(folder, step):
        place = folder / WEIGHTS
        params, step = read_weights(folder, shapes, weights)
    else:
        params, step = _newest_params(folder / "checkpoints", step, shapes, weights)
        place = folder / "checkpoints" / str(step)

    def checked(name: str, leaf: Any) -> np.ndarray:
        with np.errstate(over="ignore"):
            array = np.asarray(leaf, dtype)
        fault = not_finite(array)
        if fault:
            raise UserError(
                f"{place}: {weights}/{name} holds {fault} as {array.dtype}. Such a model makes "
                f"nothing: take an earlier checkpoint."
            )
        return array

    return folder, _each(params, checked), step


def _is_packed(folder: Path, step: int | None) -> bool:
    """Whether the parameters are those of a packed model, rather than of a checkpoint."""
    return step is None and (folder / WEIGHTS).is_file()


def _newest_params(
    folder: Path, step: int | None, shapes: Mapping[str, Any], weights: str
) -> tuple[Params, int]:
    """(parameters, step) of a checkpoint, by default of the newest one."""
    with Checkpoints(folder) as checkpoints:
        step = checkpoints.latest_step() if step is None else step
        if step is None:
            raise FileNotFoundError(f"{folder} holds no complete checkpoint yet.")
        types = stored_types(folder, step, weights)
        like = {}
        for name, leaf in shapes.items():
            like[name] = np.empty(leaf.shape, types.get(name, leaf.dtype))
        state, _ = checkpoints.restore(step, {weights: unflatten_dict(like, sep="/")})
    return state.pop(weights), step


def _each(params: Params, change: Callable[[str, Any], Any]) -> Params:
    """`change(path, parameter)` of all parameters; each old one is released before the next."""
    leaves = flatten_dict(params, sep="/")
    params.clear()
    for path in leaves:
        leaves[path] = change(path, leaves[path])
    return unflatten_dict(leaves, sep="/")


def is_model(path: str | os.PathLike) -> bool:
    """Whether this is a model's folder or one of its checkpoints."""
    return (run_folder(path) / "model" / "model.json").is_file()


def run_folder(path: str | os.PathLike) -> Path:
    """The folder of a run, from itself or from one of its checkpoints/STEP."""
    return _split(path)[0]


def _split(path: str | os.PathLike) -> tuple[Path, int | None]:
    """(folder, step) of a path to a run or to one of its checkpoints."""
    path = user_path(path)
    if path.name.isdecimal() and path.parent.name == "checkpoints":
        return path.parent.parent, int(path.name)
    return (path.parent if path.name == "checkpoints" else path), None

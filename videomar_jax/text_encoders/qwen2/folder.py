"""A Hugging Face folder of Qwen2 or Qwen2-VL: its sizes, its tokenizer, its files of weights, and a
fingerprint of all of them."""

import hashlib
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from videomar_jax.checks import UserError
from videomar_jax.io.files import check_regular, read_json
from videomar_jax.io.log import log
from videomar_jax.text_encoders.qwen2.model import Qwen2Config

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

MODEL_TYPES = ("qwen2", "qwen2_vl", "qwen2_vl_text")
DEFAULT_PAD_TOKEN = "<|endoftext|>"
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "intermediate_size": "mlp_width",
    "rms_norm_eps": "norm_epsilon",
}
"""Fields of config.json, and those of `Qwen2Config` that they fill."""


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of the folder.

    Raises:
        FileNotFoundError: no such file.
        UserError: it does not hold a JSON object.
    """
    check_regular(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path.name} in {path.parent}: expected the folder of a Hugging Face Qwen2 model"
        )
    try:
        values = read_json(path)
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return values


def read_config(folder: Path, dtype: str) -> Qwen2Config:
    """The decoder's sizes from config.json (those of the text part if there are several parts).

    Raises:
        FileNotFoundError: no config.json.
        UserError: another architecture, a missing or impossible size, or a variant that this
            decoder does not implement (scaled rotary positions, another activation).
    """
    path = folder / CONFIG
    root = _read_object(path)
    values = root.get("text_config") or root
    kind = values.get("model_type", root.get("model_type"))
    if kind not in MODEL_TYPES:
        raise UserError(f"{path} is of model_type {kind!r}; supported are {', '.join(MODEL_TYPES)}")
    activation = values.get("hidden_act", "silu")
    if activation != "silu":
        raise UserError(f"{path} has hidden_act {activation!r}; a Qwen2 decoder uses 'silu'")
    missing = [name for name in _SIZES if name not in values]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}")
    sizes = {ours: values[theirs] for theirs, ours in _SIZES.items()}
    wrong = [f"{name} = {value!r}" for name, value in sizes.items() if not _is_number(value)]
    if wrong:
        raise UserError(f"{path} has sizes that are not numbers: {', '.join(wrong)}")
    try:
        return Qwen2Config(
            **sizes,
            head_width=values.get("head_dim") or sizes["width"] // max(sizes["heads"], 1),
            rope_theta=_rope_theta(values),
            window=_window(values),
            dtype=dtype,
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _rope_theta(values: dict[str, Any]) -> float:
    """The base of the rotary frequencies. On text, multimodal rotation ("mrope") equals the plain
    one."""
    scaling = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise UserError(
            f"rotary positions of type {kind!r} are not supported, only 'default' and 'mrope'"
        )
    theta = scaling.get("rope_theta", values.get("rope_theta"))
    if not _is_number(theta):
        raise UserError(f"rope_theta is {theta!r}, which is not a number")
    return float(theta)


def _window(values: dict[str, Any]) -> int | None:
    """The tokens that the narrowest layer looks back; None if no layer has a sliding window."""
    if not values.get("use_sliding_window"):
        return None
    kinds = values.get("layer_types")
    first = values.get("max_window_layers", 0)
    sliding = "sliding_attention" in kinds if kinds else first < values["num_hidden_layers"]
    return values.get("sliding_window") if sliding else None


def read_tokenizer(folder: Path, vocab_size: int, padding_side: str) -> tuple[Tokenizer, int]:
    """The tokenizer and the number of its pad token.

    The pad token is that of tokenizer_config.json, else that of tokenizer.json, else
    `DEFAULT_PAD_TOKEN`. A padding side in the folder that differs from `padding_side` is not
    followed; a warning says so.

    Raises:
        FileNotFoundError: no tokenizer.json.
        UserError: it is damaged, has no pad token, or has tokens that the model does not have.
    """
    path = folder / TOKENIZER
    check_regular(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no {TOKENIZER} in {folder}; save one with transformers: "
            f"AutoTokenizer.from_pretrained(FOLDER, use_fast=True).save_pretrained(FOLDER)"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing narrower
        raise UserError(f"{path} is damaged: {error}") from error
    hints = {}
    if (folder / TOKENIZER_CONFIG).is_file():
        hints = _read_object(folder / TOKENIZER_CONFIG)
    if hints.get("padding_side", padding_side) != padding_side:
        log.warning(
            "%s pads on the %s by default; captions are padded on the %s",
            folder,
            hints["padding_side"],
            padding_side,
        )
    pad = hints.get("pad_token") or (tokenizer.padding or {}).get("pad_token") or DEFAULT_PAD_TOKEN
    pad = pad.get("content") if isinstance(pad, dict) else pad
    pad_id = tokenizer.token_to_id(str(pad))
    if pad_id is None:
        raise UserError(
            f"{path} has no token {pad!r} to pad with: set pad_token in {TOKENIZER_CONFIG}"
        )
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise UserError(
            f"{path} numbers tokens up to {largest}, but the model has {vocab_size}: it is not the "
            f"model's tokenizer"
        )
    return tokenizer, pad_id


def weights_path(folder: Path) -> Path:
    """The index of several safetensors files if there is one, else the single file.

    Raises:
        FileNotFoundError: the folder has neither.
    """
    for name in (INDEX, SINGLE):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} lacks {SINGLE} or {INDEX} (only safetensors files are read)")


def _weight_files(folder: Path) -> list[Path]:
    path = weights_path(folder)
    if path.name != INDEX:
        return [path]
    places = _read_object(path).get("weight_map")
    if not isinstance(places, dict) or any(Path(str(n)).name != n for n in places.values()):
        raise UserError(f"{path} is damaged: its weight_map must name files of the same folder")
    files = [folder / name for name in sorted(set(places.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, named by {path.name}")
    return files


def fingerprint(folder: Path) -> str:
    """A digest that changes with the model.

    It covers all of the small files, and of each file of weights the size, the first 256 KiB (with
    the header) and 64 samples of 4 KiB. It tells models apart and is not meant to detect forgery.
    """
    digest = hashlib.sha256()
    for name in (CONFIG, TOKENIZER, TOKENIZER_CONFIG):
        if (folder / name).is_file():
            digest.update(f"{name}\0".encode() + (folder / name).read_bytes())
    for file in _weight_files(folder):
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with open(file, "rb") as stream:
            digest.update(stream.read(1 << 18))
            for k in range(64):
                stream.seek(size * k // 64)
                digest.update(stream.read(1 << 12))
    return digest.hexdigest()[:32]

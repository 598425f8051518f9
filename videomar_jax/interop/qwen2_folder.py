"""A Hugging Face folder of Qwen2 or Qwen2-VL: its sizes, tokenizer and tensors, and a fingerprint
of all of it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from absl import logging
from tokenizers import Tokenizer

from videomar_jax.text_encoders.qwen2.model import Qwen2Config

CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
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


def read_json(path: Path) -> dict[str, Any]:
    """Raises FileNotFoundError, or ValueError where the file is no JSON object."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path.name} in {path.parent}: expected the folder of a Hugging Face Qwen2 model"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object")
    return values


def read_config(folder: Path, dtype: str) -> Qwen2Config:
    """Sizes from config.json, of the text part if there are several.

    Raises:
        ValueError: another architecture, a missing or impossible size, or a variant that this
            decoder does not compute (scaled rotary positions, another activation).
    """
    path = folder / CONFIG
    root = read_json(path)
    values = root.get("text_config") or root
    kind = values.get("model_type", root.get("model_type"))
    if kind not in MODEL_TYPES:
        raise ValueError(f"{path} is of model_type {kind!r}; this reads {', '.join(MODEL_TYPES)}")
    if (activation := values.get("hidden_act", "silu")) != "silu":
        raise ValueError(f"{path} has hidden_act {activation!r}; a Qwen2 decoder uses 'silu'")
    if missing := [name for name in _SIZES if name not in values]:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    sizes = {ours: values[theirs] for theirs, ours in _SIZES.items()}
    if wrong := [
        f"{name} = {value!r}" for name, value in sizes.items() if not isinstance(value, int | float)
    ]:
        raise ValueError(f"{path} has sizes that are no numbers: {', '.join(wrong)}")
    head_width = values.get("head_dim") or sizes["width"] // max(sizes["heads"], 1)
    try:
        return Qwen2Config(
            **sizes,
            head_width=head_width,
            rope_theta=_rope_theta(values, path),
            window=_window(values),
            dtype=dtype,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _rope_theta(values: dict[str, Any], path: Path) -> float:
    """The base of the rotary frequencies. Multimodal rotation ("mrope") equals the plain one on
    text."""
    scaling = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ValueError(
            f"rotary positions of type {kind!r} are not computed here, only 'default' and 'mrope'"
        )
    theta = scaling.get("rope_theta", values.get("rope_theta"))
    if not isinstance(theta, int | float):
        raise ValueError(f"rope_theta is {theta!r}, no number")
    return float(theta)


def _window(values: dict[str, Any]) -> int | None:
    if not values.get("use_sliding_window"):
        return None
    kinds = values.get("layer_types")
    first = values.get("max_window_layers", 0)
    sliding = "sliding_attention" in kinds if kinds else first < values["num_hidden_layers"]
    return values.get("sliding_window") if sliding else None


def read_tokenizer(folder: Path, vocab_size: int, padding_side: str) -> tuple[Tokenizer, int]:
    """The tokenizer and the number of its pad token: tokenizer_config.json's, else
    tokenizer.json's, else `DEFAULT_PAD_TOKEN`. A folder that names the other padding side gets a
    warning, no obedience.

    Raises FileNotFoundError, or ValueError where the file is damaged or numbers tokens that the
    model does not have.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        raise FileNotFoundError(
            f"no {TOKENIZER} in {folder}; save one with transformers: "
            f"AutoTokenizer.from_pretrained(FOLDER, use_fast=True).save_pretrained(FOLDER)"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(f"{path} is damaged: {error}") from error
    hints = read_json(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
    if hints.get("padding_side", padding_side) != padding_side:
        logging.warning(
            "%s pads on the %s by default; captions are padded on the %s",
            folder,
            hints["padding_side"],
            padding_side,
        )
    pad = hints.get("pad_token") or (tokenizer.padding or {}).get("pad_token") or DEFAULT_PAD_TOKEN
    pad = pad.get("content") if isinstance(pad, dict) else pad
    pad_id = tokenizer.token_to_id(str(pad))
    if pad_id is None:
        raise ValueError(
            f"{path} has no token {pad!r} to pad with: set pad_token in {TOKENIZER_CONFIG}"
        )
    if (largest := max(tokenizer.get_vocab().values())) >= vocab_size:
        raise ValueError(
            f"{path} numbers tokens up to {largest}, but the model has {vocab_size}: not its tokenizer"
        )
    return tokenizer, pad_id


def weights_path(folder: Path) -> Path:
    """The table of several safetensors files if there is one, else the single file."""
    for name in (INDEX, SINGLE):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} lacks {SINGLE} or {INDEX} (only safetensors files are read)")


def _weight_files(folder: Path) -> list[Path]:
    path = weights_path(folder)
    names = read_json(path).get("weight_map") if path.name == INDEX else {"": SINGLE}
    if not isinstance(names, dict) or any(Path(str(name)).name != name for name in names.values()):
        raise ValueError(f"{path} is damaged: its weight_map must name files of the same folder")
    files = [folder / name for name in sorted(set(names.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, named by {path.name}")
    return files


def fingerprint(folder: Path) -> str:
    """A digest that changes with the model: all of the small files; of each weight file the size,
    the first 256 KiB (the header) and 64 samples of 4 KiB. It tells models apart; it is no seal
    against forgery."""
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

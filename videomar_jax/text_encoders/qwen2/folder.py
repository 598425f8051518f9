"""A Hugging Face folder of Qwen2 or Qwen2-VL: its sizes, its tokenizer, its files of weights, and a
fingerprint of all of them."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from tokenizers import Tokenizer

from videomar_jax.checks import Natural, Range, Size, UserError, check_value, from_values
from videomar_jax.io.files import check_regular, read_json
from videomar_jax.io.log import log
from videomar_jax.text_encoders.qwen2.model import Qwen2Config

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

DEFAULT_PAD_TOKEN = "<|endoftext|>"
_Rotary = Mapping[str, Any]
_Theta = Annotated[float, Range(low=100, high=1e9)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """The fields of config.json that matter to a decoder, under their published names."""

    model_type: Literal["qwen2", "qwen2_vl", "qwen2_vl_text"]
    vocab_size: Size
    hidden_size: Size
    num_hidden_layers: Annotated[int, Range(low=1, high=1000)]
    num_attention_heads: Size
    num_key_value_heads: Size
    intermediate_size: Size
    rms_norm_eps: Annotated[float, Range(low=0, high=0.1, low_open=True)]
    hidden_act: Literal["silu"] = "silu"
    head_dim: Size | None = None
    rope_theta: _Theta | None = None
    rope_parameters: _Rotary | None = None
    rope_scaling: _Rotary | None = None
    use_sliding_window: bool = False
    sliding_window: Size | None = None
    max_window_layers: Natural = 0
    layer_types: Sequence[Literal["full_attention", "sliding_attention"]] | None = None
    max_position_embeddings: Size | None = None
    tie_word_embeddings: bool = True
    architectures: Sequence[str] | None = None


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
    known = [field.name for field in dataclasses.fields(Published)]
    try:
        text = root.get("text_config")
        check_value("text_config", text, Mapping | None)
        values = root if text is None else {"model_type": root.get("model_type"), **text}
        published = from_values(
            "", Published, {name: values[name] for name in known if name in values}
        )
        _check_architectures(published)
        return Qwen2Config(
            vocab_size=published.vocab_size,
            width=published.hidden_size,
            depth=published.num_hidden_layers,
            heads=published.num_attention_heads,
            kv_heads=published.num_key_value_heads,
            head_width=published.head_dim or _head_width(published),
            mlp_width=published.intermediate_size,
            rope_theta=_rope_theta(published),
            norm_epsilon=published.rms_norm_eps,
            window=_window(published),
            positions=published.max_position_embeddings,
            dtype=dtype,
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _check_architectures(published: Published) -> None:
    """Raises a UserError where the config names the class of another model."""
    for name in published.architectures or ():
        if not name.startswith("Qwen2"):
            raise UserError(f"architectures names {name!r}, which is no Qwen2")


def _head_width(published: Published) -> int:
    width, heads = published.hidden_size, published.num_attention_heads
    if width % heads:
        raise UserError(
            f"hidden_size {width} is not a multiple of num_attention_heads {heads}, and there is "
            f"no head_dim"
        )
    return width // heads


def _rope_theta(published: Published) -> float:
    """The base of the rotary frequencies. On text, multimodal rotation ("mrope") equals the plain
    one."""
    theta = published.rope_theta
    for section in ("rope_parameters", "rope_scaling"):
        scaling = getattr(published, section) or {}
        for key in ("rope_type", "type"):
            kind = scaling.get(key, "default")
            if kind not in ("default", "mrope"):
                raise UserError(
                    f"{section}.{key} is {kind!r}; only 'default' and 'mrope' are supported"
                )
        own = scaling.get("rope_theta", theta)
        check_value(f"{section}.rope_theta", own, _Theta | None)
        if theta is not None and own != theta:
            raise UserError(f"rope_theta is {theta}, but {own} in {section}")
        theta = own
    if theta is None:
        raise UserError("rope_theta is missing")
    return float(theta)


def _window(published: Published) -> int | None:
    """The tokens that the narrowest layer looks back; None if no layer has a sliding window."""
    kinds, depth = published.layer_types, published.num_hidden_layers
    if kinds is not None and len(kinds) != depth:
        raise UserError(f"layer_types has {len(kinds)} entries for {depth} layers")
    if not published.use_sliding_window:
        return None
    sliding = published.max_window_layers < depth
    if kinds is not None:
        sliding = "sliding_attention" in kinds
    if not sliding:
        return None
    if published.sliding_window is None:
        raise UserError("use_sliding_window is set, but sliding_window is missing")
    return published.sliding_window


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
    pad = hints.get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    if "pad_token" in hints and not (pad is None or (isinstance(pad, str) and pad)):
        raise UserError(f"{folder / TOKENIZER_CONFIG}: pad_token must be a text, not {pad!r}")
    pad = pad or (tokenizer.padding or {}).get("pad_token") or DEFAULT_PAD_TOKEN
    pad_id = tokenizer.token_to_id(pad)
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

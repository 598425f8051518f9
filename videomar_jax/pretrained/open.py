"""Tokenizers and text encoders by name: "kind:place", where place is a file, a folder or a Hugging
Face repo id.

    pca:DIR            a saved tokenizer (WORKDIR/model/tokenizer)
    cosmos:PLACE       a Cosmos tokenizer; cosmos:RELEASE@PLACE where PLACE does not name its
    release
    hashed:64x256      hashed words, 64 tokens of 256 values
    qwen2:PLACE        a Qwen2 or Qwen2-VL folder

A repo id (owner/name) is downloaded with the `huggingface_hub` package when no such folder exists.
"""

import re
from pathlib import Path

from videomar_jax.interop.cosmos import load_cosmos
from videomar_jax.interop.qwen2 import load_qwen2
from videomar_jax.text_encoders import HashedTextEncoder, TextEncoder, load_text_encoder
from videomar_jax.text_encoders.qwen2.encoder import Qwen2Options
from videomar_jax.tokenizers import Tokenizer, load_tokenizer

_REPO = re.compile(r"[\w.-]+/[\w.-]+")


def open_tokenizer(spec: str, *, scale: float = 0.5, dtype: str = "float32") -> Tokenizer:
    """The tokenizer that `spec` names; scale and dtype are Cosmos's.

    Raises:
        ValueError: the spec is not of a known form, or its file does not fit.
        FileNotFoundError: its file is missing, and there is no way to download it.
    """
    kind, place = _split(spec, "tokenizer", ("pca", "cosmos"))
    if kind == "pca":
        return load_tokenizer(place)
    release, _, place = place.rpartition("@")
    folder = local_folder(place, ["*.jit", "*.safetensors"])
    # A downloaded folder is named by a hash, so the release is looked for in what was asked for.
    named = release or next(
        (r for r in ("CV8x16x16", "CV8x8x8", "CV4x8x8-LowRes", "CV4x8x8") if r in place), None
    )
    return load_cosmos(folder, release=named, scale=scale, dtype=dtype)


def open_text_encoder(
    spec: str,
    *,
    tokens: int = 300,
    padding_side: str = "right",
    system_text_file: str | None = None,
    dtype: str = "float32",
) -> TextEncoder:
    """The text encoder that `spec` names; the keywords are Qwen2's.

    Raises:
        ValueError, FileNotFoundError: as `open_tokenizer`.
    """
    kind, place = _split(spec, "text encoder", ("hashed", "qwen2"))
    if kind == "hashed":
        if sizes := re.fullmatch(r"(\d+)x(\d+)", place):
            return HashedTextEncoder(int(sizes[1]), int(sizes[2]))
        if Path(place).is_dir():
            return load_text_encoder(place)
        raise ValueError(
            f"{spec!r} is not understood: write hashed:TOKENSxWIDTH, such as hashed:64x256."
        )
    folder = local_folder(place, ["*.json", "*.safetensors", "*.txt"])
    options = Qwen2Options(max_tokens=tokens, padding_side=padding_side, dtype=dtype)
    return load_qwen2(folder, options, system_text_file=system_text_file)


def local_folder(place: str, patterns: list[str]) -> Path:
    """A local file or folder as it is; a Hugging Face repo id as the folder it is downloaded to.

    Raises:
        FileNotFoundError: neither; the text says how to go on, also when offline.
    """
    path = Path(place).expanduser()
    if path.exists():
        return path
    if not _REPO.fullmatch(place):
        raise FileNotFoundError(f"There is no file or folder {place}.")
    by_hand = f"fetch it on a connected machine (`hf download {place} --local-dir DIR`), copy DIR here and name DIR."
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise FileNotFoundError(
            f"There is no local {place}, and downloading it needs `pip install huggingface_hub`. Without it, {by_hand}"
        ) from error
    try:
        return Path(snapshot_download(place, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{place} could not be downloaded ({error}). When offline, {by_hand}"
        ) from error


def _split(spec: str, what: str, kinds: tuple[str, ...]) -> tuple[str, str]:
    kind, colon, place = spec.partition(":")
    if not colon or not place or kind not in kinds:
        raise ValueError(
            f"The {what} {spec!r} is not understood: write {' or '.join(f'{k}:PLACE' for k in kinds)}."
        )
    return kind, place

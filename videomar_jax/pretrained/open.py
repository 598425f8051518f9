"""Tokenizers and text encoders by name: "kind:place".

    pca:DIR            a saved tokenizer (WORKDIR/model/tokenizer)
    cosmos:PLACE       a Cosmos tokenizer; cosmos:RELEASE@PLACE if PLACE does not name its release
    hashed:64x256      hashed words, 64 tokens of 256 values
    qwen2:PLACE        a Qwen2 or Qwen2-VL folder

PLACE is a file, a folder or a Hugging Face repository id (owner/name), which is downloaded with the
`huggingface_hub` package if no such folder exists. The kinds are those of the registries
`TOKENIZERS` and `TEXT_ENCODERS`; how a kind reads its place is said at its class method `open`.
"""

from collections.abc import Mapping

from videomar_jax.checks import UserError
from videomar_jax.io.hub import pinned
from videomar_jax.pretrained.options import ComponentOptions
from videomar_jax.text_encoders import TEXT_ENCODERS, TextEncoder
from videomar_jax.tokenizers import TOKENIZERS, Tokenizer


def open_tokenizer(spec: str, *, scale: float = 0.5, dtype: str = "float32") -> Tokenizer:
    """The tokenizer that `spec` names; scale and dtype are those of Cosmos.

    Raises:
        UserError: the spec is not of a known form, or its file does not fit.
        FileNotFoundError: its file is missing and cannot be downloaded.
    """
    return TOKENIZERS.open(spec, scale=scale, dtype=dtype)


def open_text_encoder(
    spec: str,
    *,
    tokens: int = 300,
    padding_side: str = "right",
    system_text_file: str | None = None,
    dtype: str = "float32",
) -> TextEncoder:
    """The text encoder that `spec` names; the keywords are those of Qwen2.

    Raises:
        UserError, FileNotFoundError: as `open_tokenizer`.
    """
    return TEXT_ENCODERS.open(
        spec,
        tokens=tokens,
        padding_side=padding_side,
        system_text_file=system_text_file,
        dtype=dtype,
    )


def sources_of(specs: Mapping[str, str | None]) -> dict[str, str]:
    """Of specs by part ("tokenizer", "text_encoder") those that name a repository of the Hugging
    Face Hub, with its commit: opened again, they give the same part."""
    sources = {}
    for part, spec in specs.items():
        source = pinned(spec) if spec else None
        if source is not None:
            sources[part] = source
    return sources


def open_components(
    options: ComponentOptions, dtype: str = "float32"
) -> tuple[Tokenizer, TextEncoder | None]:
    """The tokenizer and the text encoder that the options name; no encoder where none is named.

    Args:
        dtype: in which networks of these compute.
    Raises:
        UserError, FileNotFoundError: as `open_tokenizer`.
    """
    if not options.tokenizer:
        raise UserError("Name the tokenizer: --tokenizer=cosmos:PLACE or --tokenizer=pca:DIR.")
    tokenizer = open_tokenizer(options.tokenizer, scale=options.latent_scale, dtype=dtype)
    if options.text_encoder in (None, "none"):
        return tokenizer, None
    text_encoder = open_text_encoder(
        options.text_encoder,
        tokens=options.text_tokens,
        padding_side=options.padding_side,
        system_text_file=options.system_text_file,
        dtype=dtype,
    )
    return tokenizer, text_encoder

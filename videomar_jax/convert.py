"""Convert weights: python -m videomar_jax.convert --checkpoint=FILE --tokenizer=… --text_encoder=…
--output=DIR

and back:            python -m videomar_jax.convert --checkpoint=DIR --export=FILE.safetensors
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from videomar_jax.commands import app

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Official .safetensors or .pth; with --export: a run's folder."
)
_OUTPUT = flags.DEFINE_string("output", None, "New folder for the converted model.")
_EXPORT = flags.DEFINE_string(
    "export", None, "File to write official names into: .safetensors or .pth."
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "cosmos:PLACE (file, folder, repo id; RELEASE@PLACE) or pca:DIR."
)
_TEXT = flags.DEFINE_string(
    "text_encoder", None, "qwen2:PLACE (folder or repo id) or hashed:TOKENSxWIDTH."
)
_WEIGHTS = flags.DEFINE_enum(
    "weights", "ema", ["ema", "model", "params"], "Which of the weights a file holds."
)
_SCALE = flags.DEFINE_float("latent_scale", 0.5, "Factor on Cosmos latents.")
_SYSTEM = flags.DEFINE_string(
    "system_text_file", None, "Text that stands in front of every prompt (Qwen2)."
)
_SIDE = flags.DEFINE_enum(
    "padding_side", "right", ["right", "left"], "Where prompts are padded (Qwen2)."
)
_TOKENS = flags.DEFINE_integer(
    "text_tokens", 300, "Tokens a prompt is padded or cut to (Qwen2).", lower_bound=1
)
_FRAMES = flags.DEFINE_integer(
    "num_frames", 49, "Pixel frames that sample makes by default.", lower_bound=1
)
_HEIGHT = flags.DEFINE_integer("height", 480, "Pixel rows, likewise.", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 768, "Pixel columns, likewise.", lower_bound=1)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Of matrix products when the model runs."
)
_PARAM_DTYPE = flags.DEFINE_enum(
    "param_dtype", None, ["float32", "bfloat16"], "Of parameters; as stored if not given."
)
_DROP = flags.DEFINE_bool(
    "drop_regression", False, "With --export: leave out the auxiliary readout of training."
)
_CONTAINER = flags.DEFINE_enum(
    "container",
    "bare",
    ["bare", "ema"],
    "With --export: the weights alone, or as "
    "'model_ema', which published evaluation code expects in a .pth.",
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the file of --export.")
flags.mark_flag_as_required("checkpoint")


def main(_: Sequence[str]) -> None:
    """Imports or exports."""
    from videomar_jax.pretrained.convert import export_official, import_official

    if (_OUTPUT.value is None) == (_EXPORT.value is None):
        raise ValueError(
            "Say where to: --output=DIR for an official file, or --export=FILE for a run of ours."
        )
    if _EXPORT.value:
        weights = "params" if _WEIGHTS.value == "model" else _WEIGHTS.value
        export_official(
            _CHECKPOINT.value,
            Path(_EXPORT.value),
            weights=weights,
            container=_CONTAINER.value,
            drop_regression=_DROP.value,
            overwrite=_OVERWRITE.value,
        )
        return
    if _DROP.present or _CONTAINER.present:
        raise ValueError("--drop_regression and --container go with --export alone.")
    if not _TOKENIZER.value or not _TEXT.value:
        raise ValueError("Name the parts: --tokenizer=cosmos:PLACE and --text_encoder=qwen2:PLACE.")
    text_options = {
        "tokens": _TOKENS.value,
        "padding_side": _SIDE.value,
        "system_text_file": _SYSTEM.value,
    }
    import_official(
        _CHECKPOINT.value,
        Path(_OUTPUT.value),
        tokenizer=_TOKENIZER.value,
        text_encoder=_TEXT.value,
        weights="ema" if _WEIGHTS.value == "ema" else "model",
        scale=_SCALE.value,
        text_options=text_options,
        config_overrides={"dtype": _DTYPE.value},
        shape=(_FRAMES.value, _HEIGHT.value, _WIDTH.value),
        param_dtype=_PARAM_DTYPE.value,
    )


if __name__ == "__main__":
    app.run(main)

"""Import published weights, or export a trained model to them.

python -m videomar_jax.convert --checkpoint=FILE --tokenizer=… --text_encoder=… --output=DIR
python -m videomar_jax.convert --checkpoint=DIR --export=FILE.safetensors
"""

from videomar_jax.commands import interrupts

if __name__ == "__main__":
    interrupts.watch("convert")  # before the imports below, which take seconds

from collections.abc import Sequence

from absl import flags

from videomar_jax.checks import UserError
from videomar_jax.commands import app
from videomar_jax.commands.field_flags import FieldFlags
from videomar_jax.interop.videomar_sizes import HEADER_FIELDS
from videomar_jax.io.paths import user_path
from videomar_jax.models.config import ModelConfig
from videomar_jax.pretrained.options import ComponentOptions, ExportOptions, ImportOptions

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "Published .safetensors or .pth; with --export a run's folder.",
    required=True,
)
_OUTPUT = flags.DEFINE_string("output", None, "New folder for the converted model.")
_EXPORT = flags.DEFINE_string("export", None, "New .safetensors or .pth with the published names.")
_COMPONENTS = FieldFlags(ComponentOptions)
_IMPORT_OPTIONS = FieldFlags(ImportOptions)
_MODEL_SETTINGS = FieldFlags(ModelConfig, HEADER_FIELDS)
_EXPORT_OPTIONS = FieldFlags(ExportOptions)


def main(_: Sequence[str]) -> None:
    """Imports or exports."""
    from videomar_jax.pretrained.convert import export_official, import_official

    output, export = _OUTPUT.value, _EXPORT.value
    checkpoint = user_path(_CHECKPOINT.value, "--checkpoint")
    if (output is None) == (export is None):
        raise UserError(
            "Name the result: --output=DIR for a published file, --export=FILE for a trained model."
        )
    importing, exporting = _IMPORT_OPTIONS.given(), _EXPORT_OPTIONS.given()
    settings = _MODEL_SETTINGS.given()
    if export is not None:
        if settings:
            raise UserError(
                f"--{next(iter(settings))} belongs to --output=DIR: a trained model says it itself."
            )
        last = importing.get("weights", "ema") != "ema"
        export_official(
            checkpoint,
            user_path(export, "--export"),
            ExportOptions(**exporting),
            weights="params" if last else "ema",
        )
        return
    if exporting:
        raise UserError(f"--{next(iter(exporting))} belongs to --export=FILE; leave it out.")
    import_official(
        checkpoint,
        user_path(str(output), "--output"),
        ComponentOptions(**_COMPONENTS.given()),
        ImportOptions(**importing),
        settings,
    )


if __name__ == "__main__":
    app.run(main)

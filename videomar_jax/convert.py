"""Import published weights, export a trained model to them, or pack a trained model.

python -m videomar_jax.convert --checkpoint=FILE --tokenizer=… --text_encoder=… --output=DIR
python -m videomar_jax.convert --checkpoint=DIR --export=FILE.safetensors
python -m videomar_jax.convert --checkpoint=DIR --output=DIR

A packed model is a folder with all that sampling needs, its parameters in bfloat16.
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
    "Published .safetensors or .pth, or a run's folder.",
    required=True,
)
_OUTPUT = flags.DEFINE_string("output", None, "New folder for the converted or packed model.")
_EXPORT = flags.DEFINE_string("export", None, "New .safetensors or .pth with the published names.")
_COMPONENTS = FieldFlags(ComponentOptions)
_IMPORT_OPTIONS = FieldFlags(ImportOptions)
_MODEL_SETTINGS = FieldFlags(ModelConfig, HEADER_FIELDS)
_EXPORT_OPTIONS = FieldFlags(ExportOptions)


def main(_: Sequence[str]) -> None:
    """Imports, exports or packs."""
    from videomar_jax.pretrained.bundle import is_model
    from videomar_jax.pretrained.convert import export_official, import_official, pack

    output, export = _OUTPUT.value, _EXPORT.value
    checkpoint = user_path(_CHECKPOINT.value, "--checkpoint")
    if (output is None) == (export is None):
        raise UserError(
            "Name the result: --output=DIR, a folder from a published file or of a trained model; "
            "or --export=FILE, the published form of a trained model."
        )
    importing, exporting = _IMPORT_OPTIONS.given(), _EXPORT_OPTIONS.given()
    settings = _MODEL_SETTINGS.given()
    # A trained model has averaged parameters and those of its last step.
    weights = "ema" if importing.get("weights", "ema") == "ema" else "params"
    if output is not None and is_model(checkpoint):
        allowed = ["checkpoint", "output", "weights", "param_dtype"]
        app.refuse_others(main, allowed, "A trained model is packed as it is")
        dtype = importing.get("param_dtype")
        pack(checkpoint, user_path(output, "--output"), weights=weights, param_dtype=dtype)
        return
    if export is not None:
        if settings:
            raise UserError(
                f"--{next(iter(settings))} belongs to --output=DIR: a trained model says it itself."
            )
        file = user_path(export, "--export")
        export_official(checkpoint, file, ExportOptions(**exporting), weights=weights)
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

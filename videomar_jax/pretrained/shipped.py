"""Models that come with the package, packed (`packed`), in the folder assets.

scenes    shaded objects in a room, 17 frames of 64x64 pixels from an image and a caption
          (docs/scenes.md says how it was trained and what it can do)
"""

from pathlib import Path

import videomar_jax
from videomar_jax.checks import UserError, one_of
from videomar_jax.pretrained.packed import WEIGHTS

SHIPPED = ("scenes",)
"""Their names."""


def shipped(name: str) -> Path:
    """The folder of a model that comes with the package.

    Args:
        name: one of `SHIPPED`.
    Raises:
        UserError: another name, or the installation lacks the model's files.
    """
    one_of("model", name, SHIPPED)
    folder = Path(videomar_jax.__file__).parent / "assets" / name
    for file in (folder / "model" / "model.json", folder / WEIGHTS):
        if not file.is_file():
            raise UserError(
                f"The model {name!r} comes with the package, but {file} is missing: install "
                f"videomar_jax again."
            )
    return folder

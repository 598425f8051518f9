"""Turn images into videos: python -m videomar_jax.sample --checkpoint=DIR --image=FILE --prompt=TEXT --output=DIR"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from videomar_jax import cli

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's workdir, one of its checkpoints, or a converted model.")
_IMAGE = flags.DEFINE_multi_string("image", [], "First frame; may be given several times.")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "One prompt for all images, or one for each.")
_REQUESTS = flags.DEFINE_string("requests", None, 'JSONL, a line each: {"image": FILE, "prompt": TEXT, "seed": 0}.')
_OUTPUT = flags.DEFINE_string("output", None, "Folder for NAME.mp4, NAME.gif and NAME.png (contact sheet).")
_FRAMES = flags.DEFINE_integer("num_frames", None, "Pixel frames; default: as trained.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the first video; the n-th takes seed + n.", lower_bound=0,
                              upper_bound=2**32 - 1)  # fmt: skip
_STEPS = flags.DEFINE_integer("steps", None, "Reveal steps of a frame.")
_HEAD_STEPS = flags.DEFINE_string("head_steps", None, "Diffusion steps of the head.")
_GUIDANCE = flags.DEFINE_float("guidance", None, "Classifier-free guidance; 1 is off.")
_TEMPERATURE = flags.DEFINE_float("temperature", None, "Scale of the noise.")
_LAW = flags.DEFINE_enum("temperature_law", None, ["constant", "paper", "linear"], "Temperature over frames.")
_HEIGHT = flags.DEFINE_integer("height", None, "Pixel rows; default: as trained.")
_WIDTH = flags.DEFINE_integer("width", None, "Pixel columns; default: as trained.")
_FIT = flags.DEFINE_enum("fit", "resize", ["resize", "crop"], "How images get their size: stretched, or cropped.")
_WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "params"], "Averaged parameters, or the last.")
_BATCH = flags.DEFINE_integer("batch_size", 4, "Videos made at a time.", lower_bound=1)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace files of the same names.")
flags.mark_flags_as_required(["checkpoint", "output"])


def main(_: Sequence[str]) -> None:
    """Makes one video for each request."""
    from videomar_jax import requests

    faults: list[str] = []
    if _REQUESTS.value and (_IMAGE.value or _PROMPT.value):
        raise ValueError("Name images and prompts either in --requests=FILE or with --image and --prompt, not both.")
    asked = requests.from_flags(_IMAGE.value, _PROMPT.value, _SEED.value) if not _REQUESTS.value else []
    if _REQUESTS.value:
        asked, faults = requests.from_file(Path(_REQUESTS.value), _SEED.value)
    settings = {"steps": _STEPS.value, "head_steps": _HEAD_STEPS.value, "guidance": _GUIDANCE.value,
                "temperature": _TEMPERATURE.value, "temperature_law": _LAW.value}  # fmt: skip
    shape = {"num_frames": _FRAMES.value, "height": _HEIGHT.value, "width": _WIDTH.value}
    faults += requests.fulfil(
        asked, checkpoint=_CHECKPOINT.value, output=Path(_OUTPUT.value), settings=settings, shape=shape, fit=_FIT.value,
        weights=_WEIGHTS.value, batch_size=_BATCH.value, overwrite=_OVERWRITE.value,
    )  # fmt: skip
    if faults:
        sys.exit("\n".join([f"{len(faults)} of the requests could not be met:", *faults]))


if __name__ == "__main__":
    cli.run(main)

"""Turn images into videos: python -m videomar_jax.sample --checkpoint=DIR --image=FILE
--prompt=TEXT --output=DIR

Ctrl-C keeps the frames so far: shorter videos are written, and the exit code is 130. Codes
otherwise: 0 all videos were made, 1 some could not be (said at the end), 2 nothing was.
"""

import sys
from collections.abc import Sequence

from absl import flags

from videomar_jax.commands import app

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run's workdir, one of its checkpoints, or a converted model."
)
_IMAGE = flags.DEFINE_multi_string("image", [], "First frame; may be given several times.")
_VIDEO = flags.DEFINE_multi_string(
    "video", [], "A video to go on from; may be given several times."
)
_GIVEN = flags.DEFINE_integer(
    "given_frames",
    None,
    "How many of a video's last frames, at the model's rate, are given: 1 + stride * k.",
)
_PROMPT = flags.DEFINE_multi_string("prompt", [], "One prompt for all images, or one for each.")
_REQUESTS = flags.DEFINE_string(
    "requests", None, 'JSONL, a line each: {"image": FILE, "prompt": TEXT, "seed": 0}.'
)
_FROM_JSON = flags.DEFINE_string(
    "from_json", None, "Make the video again whose record this NAME.json is."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for NAME.json and a file of each format.")
_FORMATS = flags.DEFINE_list(
    "formats",
    ["mp4", "gif", "png"],
    "Of mp4, gif, png (a strip), webm, latents (npz); with "
    "--from_json by default those of the record.",
)
_FPS = flags.DEFINE_float("fps", None, "Frames per second of the files; default: the model's.")
_FRAMES = flags.DEFINE_integer("num_frames", None, "Pixel frames; default: as trained.")
_SEED = flags.DEFINE_integer(
    "seed",
    0,
    "Seed of the first video; the n-th takes seed + n.",
    lower_bound=0,
    upper_bound=2**32 - 1,
)
_PRESET = flags.DEFINE_string(
    "preset", None, "Sampling settings by name; the flags below go over it."
)
_SETTINGS = {
    "steps": flags.DEFINE_integer("steps", None, "Reveal steps of a frame."),
    "head_steps": flags.DEFINE_string(
        "head_steps", None, "Diffusion steps of the head; A-B: from A to B."
    ),
    "head_solver": flags.DEFINE_string("head_solver", None, "Of the flow head: euler or heun."),
    "guidance": flags.DEFINE_float("guidance", None, "Classifier-free guidance; 1 is off."),
    "guidance_schedule": flags.DEFINE_string(
        "guidance_schedule", None, "linear or constant over the reveal steps."
    ),
    "guidance_interval": flags.DEFINE_list(
        "guidance_interval", None, "From,to: share of the steps that is guided."
    ),
    "temperature": flags.DEFINE_float("temperature", None, "Scale of the noise."),
    "temperature_law": flags.DEFINE_enum(
        "temperature_law", None, ["constant", "paper", "linear"], "Temperature over frames."
    ),
    "latent_clip": flags.DEFINE_float(
        "latent_clip", None, "Largest latent value, from the second new frame on; 0 is off."
    ),
    "clip_first": flags.DEFINE_bool("clip_first", None, "Clip the first new frame as well."),
    "window": flags.DEFINE_integer(
        "window",
        None,
        "Finished frames that are kept and seen; default: the model's; 0: all.",
        lower_bound=0,
    ),
    "keep_first": flags.DEFINE_bool(
        "keep_first", None, "With a window: frame 0 stays one of them."
    ),
    "first_frame_position": flags.DEFINE_string(
        "first_frame_position", None, "Of a kept frame 0: absolute, or shifted next to the window."
    ),
    "spatial_rope_scaling": flags.DEFINE_string(
        "spatial_rope_scaling", None, "Beyond the trained size: interpolate or ntk."
    ),
    "temporal_rope_scaling": flags.DEFINE_string(
        "temporal_rope_scaling", None, "Beyond the trained length: interpolate or ntk."
    ),
    "dtype": flags.DEFINE_string(
        "dtype", None, "Of the transformer's products: model, float32 or bfloat16."
    ),
    "head_dtype": flags.DEFINE_string(
        "head_dtype", None, "Of the head's products: model, float32 or bfloat16."
    ),
    "token_dtype": flags.DEFINE_string(
        "token_dtype", None, "That drawn tokens are rounded to: float32 or bfloat16."
    ),
}
_HEIGHT = flags.DEFINE_integer("height", None, "Pixel rows; default: as trained.")
_WIDTH = flags.DEFINE_integer("width", None, "Pixel columns; default: as trained.")
_FIT = flags.DEFINE_enum(
    "fit", "resize", ["resize", "crop"], "How images get their size: stretched, or cropped."
)
_WEIGHTS = flags.DEFINE_enum(
    "weights", "ema", ["ema", "params"], "Averaged parameters, or the last."
)
_BATCH = flags.DEFINE_integer("batch_size", 4, "Videos made at a time.", lower_bound=1)
_MESH = {
    "data": flags.DEFINE_integer(
        "data", 1, "Devices that share the videos of a batch; -1: all that are left."
    ),
    "fsdp": flags.DEFINE_integer(
        "fsdp", 1, "Devices that share videos and parameters, for models that are too large."
    ),
    "tensor": flags.DEFINE_integer(
        "tensor", 1, "Devices that share the channels of each layer: faster single videos."
    ),
    "context": flags.DEFINE_integer("context", 1, "Devices that share the rows of each frame."),
}
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace files of the same names.")
flags.mark_flag_as_required("output")


def main(_: Sequence[str]) -> None:
    """Makes one video for each request."""
    from videomar_jax.commands.compilation_cache import keep_compiled
    from videomar_jax.inference.batches import Stopped

    keep_compiled()
    try:
        faults = _again() if _FROM_JSON.value else _new()
    except Stopped as stop:
        _leave(str(stop))
    except KeyboardInterrupt:
        _leave("Interrupted before the first frame of what is not written.")
    if faults:
        sys.exit("\n".join([f"{len(faults)} of the requests could not be met:", *faults]))


def _output(formats: Sequence[str]):
    from videomar_jax.inference.video import Output, local_path

    return Output(
        folder=local_path(_OUTPUT.value),
        formats=tuple(formats),
        fps=_FPS.value,
        overwrite=_OVERWRITE.value,
    )


def _new() -> list[str]:
    from videomar_jax.inference import jobs, requests
    from videomar_jax.inference.video import local_path
    from videomar_jax.parallel.config import MeshConfig

    if not _CHECKPOINT.value:
        raise ValueError("Name the model with --checkpoint=DIR.")
    if _REQUESTS.value and (_IMAGE.value or _PROMPT.value or _VIDEO.value):
        raise ValueError(
            "Name images and prompts either in --requests=FILE or with --image and --prompt, not both."
        )
    if _REQUESTS.value and _GIVEN.present:
        raise ValueError(
            'With --requests=FILE each line has its own "given_frames"; leave --given_frames out.'
        )
    output = _output(_FORMATS.value)
    if _REQUESTS.value:
        asked, faults = requests.from_file(local_path(_REQUESTS.value), _SEED.value)
    else:
        asked, faults = (
            requests.from_flags(
                _IMAGE.value,
                _PROMPT.value,
                _SEED.value,
                videos=_VIDEO.value,
                given_frames=_GIVEN.value,
            ),
            [],
        )
    mesh = {axis: flag.value for axis, flag in _MESH.items()}
    order = jobs.Order(
        checkpoint=local_path(_CHECKPOINT.value),
        settings={name: flag.value for name, flag in _SETTINGS.items()},
        shape={"num_frames": _FRAMES.value, "height": _HEIGHT.value, "width": _WIDTH.value},
        preset=_PRESET.value,
        fit=_FIT.value,
        weights=_WEIGHTS.value,
        batch_size=_BATCH.value,
        mesh=None if set(mesh.values()) == {1} else MeshConfig(**mesh),
    )
    return faults + jobs.run_jobs(asked, order, output)


def _again() -> list[str]:
    from videomar_jax.inference import jobs
    from videomar_jax.inference.metadata import read_record
    from videomar_jax.inference.video import local_path

    own = [
        flag
        for flag in (
            _VIDEO,
            _GIVEN,
            _PROMPT,
            _REQUESTS,
            _SEED,
            _PRESET,
            _FRAMES,
            _HEIGHT,
            _WIDTH,
            _FIT,
            _WEIGHTS,
            _BATCH,
            *_SETTINGS.values(),
            *_MESH.values(),
        )
        if flag.present
    ]
    if own or len(_IMAGE.value) > 1:
        names = ", ".join(f"--{flag.name}" for flag in own) or "--image more than once"
        raise ValueError(
            f"--from_json makes the same video again; {names} would change it. Leave it out."
        )
    file = local_path(_FROM_JSON.value)
    output = _output(_FORMATS.value if _FORMATS.present else read_record(file).formats)
    image = (_IMAGE.value or [None])[0]
    jobs.reproduce(file, output, checkpoint=_CHECKPOINT.value, image=image)
    return []


def _leave(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
    sys.exit(INTERRUPTED)


if __name__ == "__main__":
    app.run(main)

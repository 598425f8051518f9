"""Prepare clips: python -m videomar_jax.prepare --videos=DIR --tokenizer=… --text_encoder=…
--output=DIR"""

import os
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from videomar_jax.commands import app

_VIDEOS = flags.DEFINE_string("videos", None, "Folder of videos.")
_CAPTIONS = flags.DEFINE_string(
    "captions", None, "A .csv or .jsonl of captions; default: one among the videos."
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder for the clips; the same command goes on where it was stopped."
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "cosmos:PLACE (file, folder, repo id; RELEASE@PLACE) or pca:DIR."
)
_TEXT = flags.DEFINE_string(
    "text_encoder", "none", "qwen2:PLACE, hashed:TOKENSxWIDTH, or none: captions only."
)
_FRAMES = flags.DEFINE_list(
    "num_frames", ["49"], "Frames of a clip; of several, each video takes the most it holds."
)
_SIZES = flags.DEFINE_list(
    "sizes", ["480x768"], "Pixel rows x columns; of several, each video takes the nearest."
)
_FPS = flags.DEFINE_float("fps", 12.0, "Frames per second that videos are resampled to.")
_WINDOWS = flags.DEFINE_integer(
    "windows_per_clip", 0, "Most clips of one video; 0: all that it holds, end to end."
)
_HOLDOUT = flags.DEFINE_float("holdout", 0.05, 'Share of the clips set apart as the split "test".')
_DTYPE = flags.DEFINE_enum(
    "dtype", "float16", ["float16", "bfloat16"], "Of latents and text features on disk."
)
_PER_SHARD = flags.DEFINE_integer(
    "clips_per_shard", 256, "Clips in one file: what a kill loses at most."
)
_INDEX = flags.DEFINE_integer(
    "process_index", None, "Which of the processes this is; default: as SLURM or MPI say."
)
_COUNT = flags.DEFINE_integer(
    "process_count", None, "How many processes share the work, and --output."
)
_BATCH = flags.DEFINE_integer(
    "batch_size", None, "Clips encoded at a time on all devices; default: one on each."
)
_THREADS = flags.DEFINE_integer(
    "threads", os.cpu_count() or 4, "Threads that decode videos.", lower_bound=1
)
_SCALE = flags.DEFINE_float("latent_scale", 0.5, "Factor on Cosmos latents.")
_COMPUTE = flags.DEFINE_enum(
    "compute_dtype", "float32", ["float32", "bfloat16"], "In which Cosmos and Qwen2 compute."
)
_SYSTEM = flags.DEFINE_string(
    "system_text_file", None, "Text that stands in front of every caption (Qwen2)."
)
_SIDE = flags.DEFINE_enum(
    "padding_side", "right", ["right", "left"], "Where captions are padded (Qwen2)."
)
_TOKENS = flags.DEFINE_integer(
    "text_tokens", 300, "Tokens a caption is padded or cut to (Qwen2).", lower_bound=1
)
_BEAM = flags.DEFINE_bool("beam", False, "Run as an Apache Beam pipeline.")
_BEAM_OPTIONS = flags.DEFINE_multi_string(
    "beam_options", [], "Pipeline option, such as --runner=FlinkRunner."
)
flags.mark_flags_as_required(["videos", "tokenizer", "output"])


def main(_: Sequence[str]) -> None:
    """Encodes the clips of this process."""
    from videomar_jax.data.windows import parse_cutting
    from videomar_jax.preparation.beam import prepare_with_beam
    from videomar_jax.preparation.run import Settings, Task, check_folders, find_process, prepare
    from videomar_jax.pretrained.open import open_text_encoder, open_tokenizer

    index, count = find_process(_INDEX.value, _COUNT.value, os.environ)
    cutting = parse_cutting(_FRAMES.value, _SIZES.value, _FPS.value, _WINDOWS.value)
    settings = Settings(
        cutting=cutting,
        dtype=_DTYPE.value,
        clips_per_shard=_PER_SHARD.value,
        holdout=_HOLDOUT.value,
    )
    check_folders(Path(_VIDEOS.value), Path(_OUTPUT.value))
    text_options = {
        "tokens": _TOKENS.value,
        "padding_side": _SIDE.value,
        "system_text_file": _SYSTEM.value,
    }
    text = (
        None
        if _TEXT.value == "none"
        else open_text_encoder(_TEXT.value, dtype=_COMPUTE.value, **text_options)
    )
    task = Task(
        videos=Path(_VIDEOS.value),
        captions=Path(_CAPTIONS.value) if _CAPTIONS.value else None,
        output=Path(_OUTPUT.value),
        settings=settings,
        text_encoder=text,
        batch_size=_BATCH.value,
        tokenizer=open_tokenizer(_TOKENIZER.value, scale=_SCALE.value, dtype=_COMPUTE.value),
        threads=_THREADS.value,
    )
    prepare_with_beam(task, _BEAM_OPTIONS.value) if _BEAM.value else prepare(task, index, count)


if __name__ == "__main__":
    app.run(main)

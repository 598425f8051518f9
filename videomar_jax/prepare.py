"""Encode a folder of videos once, for training. The same command continues where it was stopped.

python -m videomar_jax.prepare --videos=DIR --tokenizer=… --text_encoder=… --output=DIR

Without --text_encoder captions are kept as text, and training encodes them.
"""

from videomar_jax.commands import interrupts

if __name__ == "__main__":
    interrupts.watch("prepare")  # before the imports below, which take seconds

import os
from collections.abc import Sequence

from absl import flags

from videomar_jax.commands import app
from videomar_jax.commands.field_flags import FieldFlags
from videomar_jax.io.paths import user_path
from videomar_jax.preparation.options import PrepareOptions
from videomar_jax.pretrained.options import ComponentOptions

_VIDEOS = flags.DEFINE_string("videos", None, "Folder of videos.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the prepared clips.", required=True)
_COMPONENTS = FieldFlags(ComponentOptions)
_OPTIONS = FieldFlags(PrepareOptions)


def main(_: Sequence[str]) -> None:
    """Encodes the clips of this process."""
    from videomar_jax.data.windows import parse_cutting
    from videomar_jax.preparation.beam import prepare_with_beam
    from videomar_jax.preparation.run import Settings, Task, check_folders, find_process, prepare
    from videomar_jax.pretrained.open import open_components

    options = PrepareOptions(**_OPTIONS.given())
    index, count = find_process(options.process_index, options.process_count, os.environ)
    words = options.num_frames, options.sizes
    cutting = parse_cutting(*words, options.fps, options.windows_per_clip)
    settings = Settings(
        cutting=cutting,
        dtype=options.dtype,
        clips_per_shard=options.clips_per_shard,
        holdout=options.holdout,
    )
    videos, output = user_path(_VIDEOS.value, "--videos"), user_path(_OUTPUT.value, "--output")
    check_folders(videos, output)
    components = ComponentOptions(**_COMPONENTS.given())
    tokenizer, text_encoder = open_components(components, options.compute_dtype)
    task = Task(
        videos=videos,
        captions=user_path(options.captions, "--captions") if options.captions else None,
        output=output,
        settings=settings,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        batch_size=options.batch_size,
        threads=options.threads,
    )
    prepare_with_beam(task, options.beam_options) if options.beam else prepare(task, index, count)


if __name__ == "__main__":
    app.run(main)

"""Turn images and prompts into videos.

    python -m videomar_jax.sample --checkpoint=DIR --image=FILE --prompt=TEXT --output=DIR

Ctrl-C keeps the frames so far: shorter videos are written, and the exit code is 130. Otherwise the
code is 0 if all videos were generated, 1 if some could not be (listed at the end), 2 if none was.
"""

from videomar_jax.commands import interrupts

if __name__ == "__main__":
    interrupts.watch("sample")  # before the imports below, which take seconds

import sys
from collections.abc import Sequence

from absl import flags

from videomar_jax.checks import Interrupted
from videomar_jax.commands import app
from videomar_jax.commands.field_flags import FieldFlags
from videomar_jax.inference.requests import JobOptions, Output, RequestFlags
from videomar_jax.io.paths import user_path
from videomar_jax.io.signals import CTRL_C
from videomar_jax.parallel.config import AXES, MeshConfig
from videomar_jax.sampling.config import SamplingConfig

_FROM_JSON = flags.DEFINE_string("from_json", None, "Generate the video of this NAME.json again.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the files of each video.", required=True)
_FILES = FieldFlags(Output)
_REQUESTS = FieldFlags(RequestFlags)
_OPTIONS = FieldFlags(JobOptions)
_MESH = FieldFlags(MeshConfig, AXES, show_defaults=False)
_SAMPLING = FieldFlags(SamplingConfig, show_defaults=False, zero_is_none=True)
_WITH_RECORD = ("from_json", "checkpoint", "image", "output", "formats", "fps", "overwrite")


def main(_: Sequence[str]) -> None:
    """Generates one video for each request, or the video of a record again."""
    from videomar_jax.commands.compilation_cache import keep_compiled
    from videomar_jax.inference import jobs

    keep_compiled()
    options, requests = _OPTIONS.given(), RequestFlags(**_REQUESTS.given())
    output = Output(folder=user_path(_OUTPUT.value, "--output"), **_FILES.given())
    try:
        if _FROM_JSON.value:
            app.refuse_others(main, _WITH_RECORD, "--from_json generates the same video again")
            moved = {"checkpoint": options.get("checkpoint"), "image": requests.single_image()}
            jobs.reproduce(_FROM_JSON.value, output, **moved)
            return
        mesh = MeshConfig(**{"data": 1} | _MESH.given())
        job_options = JobOptions(**options, settings=_SAMPLING.given(), mesh=mesh)
        asked, faults = requests.read()
        faults += jobs.run_jobs(asked, job_options, output)
    except Interrupted as stop:
        app.leave(str(stop), CTRL_C)
    if faults:
        sys.exit(f"{len(faults)} of the requests could not be met; the warnings above say why.")


if __name__ == "__main__":
    app.run(main)

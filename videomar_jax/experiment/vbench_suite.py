"""VBench-I2V: the videos that its evaluator measures, and the table of what it finds.

    OUTPUT/videos/PROMPT-{0..4}.mp4       the videos, and nothing else: the evaluator takes the
                                          ending of all from whichever entry the folder lists first
    OUTPUT/records/PROMPT-{0..4}.json     what each was generated from, with its seed
    OUTPUT/suite.json                     what all have in common; another model, seed or sampling
                                          is refused

The evaluator itself runs in an environment of its own (docs/evaluation.md).
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from videomar_jax.checks import UserError
from videomar_jax.experiment.budget import at_chosen_size
from videomar_jax.experiment.config import Experiment
from videomar_jax.experiment.suite_check import FPS, VideoForm, check_set
from videomar_jax.experiment.suite_options import RATIOS, SuiteOptions
from videomar_jax.experiment.suite_prompts import (
    OFFICIAL_PROMPTS,
    SAMPLES,
    SuitePrompt,
    image_folder,
    nearest_ratio,
    read_suite,
    some_of,
    suite_requests,
    video_counts,
)
from videomar_jax.experiment.suite_results import compare_results
from videomar_jax.inference.jobs import CompleteSet, run_jobs
from videomar_jax.inference.metadata import GenerationRecord
from videomar_jax.inference.pipeline import VideoSpec
from videomar_jax.inference.requests import JobOptions, Output
from videomar_jax.inference.video import MIN_SIDE
from videomar_jax.io.files import atomic_write, read_json, sha256
from videomar_jax.io.log import log
from videomar_jax.io.media import mp4_size
from videomar_jax.io.paths import user_path
from videomar_jax.parallel import launch
from videomar_jax.parallel.multihost import barrier
from videomar_jax.pretrained.bundle import ModelBundle, load_bundle, run_folder
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.text_encoders import HashedTextEncoder

SUITE = "suite.json"
_MOST_STRETCH = 1.05


def run_suite(
    options: SuiteOptions,
    checkpoint: str | None,
    output: str | None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Generates the videos of the suite, or prints the table of its results.

    Args:
        checkpoint: a run's workdir, one of its checkpoints, or a converted model.
        output: folder for the videos, or for report.json and report.md of the results.
        config: its last stage and sampling replace those that the model was trained for.
    Raises:
        UserError, OSError: what is missing, in the way or wrong, and where.
        Interrupted: Ctrl-C; the same command continues.
    """
    if options.results:
        print(compare_results(options, None if output is None else user_path(output, "--output")))
        return
    if checkpoint is None or output is None:
        raise UserError("Name the model and where its videos go: --checkpoint=DIR, --output=DIR.")
    launch.start()
    generate_suite(
        options, user_path(checkpoint, "--checkpoint"), user_path(output, "--output"), config
    )


def generate_suite(
    options: SuiteOptions,
    checkpoint: Path,
    output: Path,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Generates the videos that are not in `output` yet, and checks all of them.

    Arguments and errors as `run_suite`.
    """
    plan = _plan(options, checkpoint, config)
    _say_what(plan)
    in_common = plan.in_common()
    file = output / SUITE
    if os.path.lexists(file):
        _compare(file, in_common)

    def check_model(draft: GenerationRecord) -> None:
        asked = {**in_common, "checkpoint_sha256": dict(draft.checkpoint_sha256)}
        _claim(file, asked, {**plan.places(), "checkpoint": draft.checkpoint})

    videos = Output(folder=output / "videos", records=output / "records", formats=("mp4",), fps=FPS)
    requests = suite_requests(plan.chosen, plan.images, options.seed)
    complete = CompleteSet(bundle=plan.bundle, check_model=check_model, share=_share(options))
    faults = run_jobs(requests, plan.job, videos, complete)
    if faults:
        raise UserError("\n".join([f"{len(faults)} videos could not be generated:", *faults]))
    barrier("videos of the suite")
    if jax.process_index():
        return
    rows, columns = mp4_size(plan.spec.height, plan.spec.width, MIN_SIDE)
    form = VideoForm(num_frames=plan.spec.num_frames, height=rows, width=columns)
    names = [request.name for request in requests]
    if check_set(videos.folder, names, plan.prompts, form):
        _say_next(videos.folder, plan.chosen, plan.ratio)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is generated, and how."""

    options: SuiteOptions
    info: Path
    prompts: Sequence[SuitePrompt]
    """All of the suite."""
    chosen: Sequence[SuitePrompt]
    """Those whose videos are generated."""
    job: JobOptions
    bundle: ModelBundle
    spec: VideoSpec
    ratio: str
    images: Path
    """The folder with the images of this aspect ratio."""

    def in_common(self) -> dict[str, Any]:
        """What all videos of an output folder share, but for the model."""
        return {
            "suite": self.options.suite,
            "info_sha256": sha256(self.info),
            "ratio": self.ratio,
            "seed": self.options.seed,
            "weights": self.options.weights,
            "num_frames": self.spec.num_frames,
            "height": self.spec.height,
            "width": self.spec.width,
            "fps": FPS,
            "sampling": dataclasses.asdict(self.spec.config),
        }

    def places(self) -> dict[str, str]:
        """Where the suite is, and how its seeds are counted."""
        return {"seeds": _SEED_RULE, "info": str(self.info), "images": str(self.images)}


def _plan(options: SuiteOptions, checkpoint: Path, config: Mapping[str, Any] | None) -> _Plan:
    """What is generated; errors as `run_suite`."""
    info = user_path(options.info or "", "--info")
    prompts = read_suite(info)
    chosen = _chosen(prompts, options.dimensions)
    folder = run_folder(checkpoint)
    job = JobOptions(
        checkpoint=checkpoint,
        batch_size=options.batch_size,
        preset=options.preset,
        weights=options.weights,
        **_of_config(config, options, folder),
    )
    bundle = load_bundle(folder)
    spec = VideoSpec.of(
        bundle, job.num_frames, job.height, job.width, preset=job.preset, settings=job.settings
    )
    ratio = options.ratio or nearest_ratio(spec.height, spec.width)
    return _Plan(
        options=options,
        info=info,
        prompts=prompts,
        chosen=chosen,
        job=job,
        bundle=bundle,
        spec=spec,
        ratio=ratio,
        images=image_folder(user_path(options.images or "", "--images"), ratio),
    )


def _chosen(prompts: Sequence[SuitePrompt], dimensions: Sequence[str]) -> list[SuitePrompt]:
    """The prompts that the dimensions are measured on; all of them, if none is named."""
    wanted = set(dimensions)
    chosen = [one for one in prompts if not wanted or wanted & set(one.dimensions)]
    if not chosen:
        raise UserError(f"No prompt of the suite is for --dimensions={','.join(dimensions)}.")
    return chosen


def _of_config(
    config: Mapping[str, Any] | None, options: SuiteOptions, workdir: Path
) -> dict[str, Any]:
    """Size and sampling of a config, as fields of `JobOptions`; none without a config.

    Raises:
        UserError: the config is wrong, or a preset is asked for, too.
    """
    if config is None:
        return {}
    if options.preset is not None:
        raise UserError("--preset and --config both say how to sample: give one of them.")
    experiment = Experiment.from_config(at_chosen_size(config, workdir))
    shape = experiment.final_shape
    return dict(
        num_frames=shape.num_frames,
        height=shape.height,
        width=shape.width,
        settings=dataclasses.asdict(experiment.sampling),
    )


def _share(options: SuiteOptions) -> tuple[int, int]:
    """Which share of the batches this process makes.

    Raises:
        UserError: a share is asked for in one of several processes that already share the work.
    """
    share = options.numbered_share()
    if jax.process_count() == 1:
        return share
    if share != (0, 1):
        raise UserError(
            f"The {jax.process_count()} processes of this run share the videos by themselves: "
            f"leave out --share."
        )
    return jax.process_index(), jax.process_count()


def _say_what(plan: _Plan) -> None:
    """Logs what the videos start from, and what makes their scores mean less."""
    height, width, ratio, bundle = plan.spec.height, plan.spec.width, plan.ratio, plan.bundle
    log.info("frames of %dx%d start from the images of %s", height, width, plan.images)
    if len(plan.prompts) != OFFICIAL_PROMPTS:
        log.warning(
            "%s has %d prompts, the published suite %d: the scores will not compare.",
            plan.info,
            len(plan.prompts),
            OFFICIAL_PROMPTS,
        )
    stretch = width / height / RATIOS[ratio]
    if max(stretch, 1 / stretch) > _MOST_STRETCH:
        log.warning(
            "Images of %s are stretched by a factor of %.2f to frames of %dx%d.",
            ratio,
            max(stretch, 1 / stretch),
            height,
            width,
        )
    if bundle.fps != FPS:
        log.warning(
            "The model was trained at %g frames per second; the files say %g.", bundle.fps, FPS
        )
    if isinstance(bundle.text_encoder, HashedTextEncoder):
        log.warning(
            "The model reads text without a language model: words of the suite that its training "
            "captions did not hold mean nothing to it."
        )


def _claim(file: Path, asked: Mapping[str, Any], about: Mapping[str, str]) -> None:
    """Writes suite.json unless it is there, and compares with it.

    Args:
        asked: what all videos of the folder have in common.
        about: where things are, which may change.
    Raises:
        UserError: as `_compare`.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    # Of processes that start together one writes, and all read.
    with contextlib.suppress(FileExistsError):
        text = json.dumps({**asked, "about": about}, indent=2, ensure_ascii=False)
        atomic_write(file, f"{text}\n", overwrite=False)
    _compare(file, asked)


def _compare(file: Path, asked: Mapping[str, Any]) -> None:
    """Raises a UserError if the folder of suite.json holds videos of something else."""
    try:
        there = read_json(file)
    except UserError as error:
        raise UserError(
            f"{file} cannot be read, and so not what the videos beside it are of: {error}. Choose "
            f"another --output."
        ) from error
    # Settings that an earlier version did not know count as their defaults.
    defaults = _flat({"sampling": _as_json(dataclasses.asdict(SamplingConfig()))})
    found = defaults | _flat(there if isinstance(there, Mapping) else {})
    here = _flat(_as_json(asked))
    differing = [name for name in here if here[name] != found.get(name)]
    if differing:
        raise UserError(
            f"{file.parent} holds videos of something else: {some_of(differing)} differ. Choose "
            f"another --output."
        )


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as a JSON file gives them back."""
    return json.loads(json.dumps(values))


_SEED_RULE = f"sample j of the suite's i-th prompt has the seed: seed + {SAMPLES} i + j"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under names with dots."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _say_next(folder: Path, prompts: Sequence[SuitePrompt], ratio: str) -> None:
    """Logs the command of the evaluator."""
    dimensions = [name for name, count in video_counts(prompts).items() if count]
    log.info(
        "%d videos of %d prompts are complete. Next, in the evaluator's own environment "
        "(docs/evaluation.md): python evaluate_i2v.py --videos_path '%s' --ratio %s --dimension %s",
        SAMPLES * len(prompts),
        len(prompts),
        folder,
        ratio,
        " ".join(dimensions),
    )

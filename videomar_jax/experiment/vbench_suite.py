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
from videomar_jax.data.decode import check_decodes, probe
from videomar_jax.evaluation.vbench import (
    DIMENSIONS,
    Comparison,
    check_results,
    read_results,
    result_files,
)
from videomar_jax.experiment.budget import at_chosen_size
from videomar_jax.experiment.config import Experiment
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
from videomar_jax.inference.jobs import CompleteSet, run_jobs
from videomar_jax.inference.metadata import GenerationRecord
from videomar_jax.inference.pipeline import VideoSpec
from videomar_jax.inference.requests import JobOptions, Output
from videomar_jax.inference.video import MIN_SIDE
from videomar_jax.io.files import atomic_write, clear_leftovers, read_json, sha256
from videomar_jax.io.log import log
from videomar_jax.io.media import mp4_size
from videomar_jax.io.paths import user_path
from videomar_jax.parallel import launch
from videomar_jax.parallel.multihost import barrier
from videomar_jax.preparation.progress import read_ahead
from videomar_jax.pretrained.bundle import ModelBundle, load_bundle, run_folder
from videomar_jax.sampling.config import SamplingConfig
from videomar_jax.text_encoders import HashedTextEncoder

FPS = 12.0
"""Of the files. Dynamic degree takes every round(fps / 8)-th frame, so it is part of the number."""
SUITE = "suite.json"
_MOST_STRETCH = 1.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoForm:
    """What every video of the suite must be like."""

    num_frames: int
    height: int
    """Pixel rows of the file."""
    width: int
    """Pixel columns of the file."""

    def fault(self, file: Path) -> str | None:
        """What is wrong with a file, after decoding all of it; None: nothing."""
        if not file.is_file():
            return "it is missing"
        try:
            found = probe(file)
            check_decodes(file)
        except (UserError, OSError) as error:
            return str(error)
        size = (found.height, found.width)
        if len(found.times) != self.num_frames:
            return f"it has {len(found.times)} frames, not {self.num_frames}"
        if size != (self.height, self.width):
            return f"its frames are {size[0]}x{size[1]}, not {self.height}x{self.width}"
        if abs(found.fps - FPS) > 0.01:
            return f"it has {found.fps:g} frames per second, not {FPS:g}"
        return None


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


def compare_results(options: SuiteOptions, output: Path | None = None) -> str:
    """The table of the evaluator's results beside what is published, in Markdown.

    Args:
        output: folder for report.json and report.md; None writes none.
    Raises:
        FileNotFoundError: there are no results.
        UserError: results are damaged, not complete or twice there, or `output` holds a report.
    """
    if output is not None:
        Output(folder=output).check_folder()
        if (output / "report.json").exists():
            raise UserError(f"{output} already holds a report; choose another --output.")
    counts = {name: dimension.videos for name, dimension in DIMENSIONS.items()}
    if options.info is not None:
        counts = video_counts(read_suite(user_path(options.info, "--info")))
    files = result_files([user_path(place, "--results") for place in options.results])
    results = read_results(files)
    faults = check_results(results, counts, partial=options.partial)
    comparison = Comparison(results=results, faults=faults)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        atomic_write(output / "report.md", comparison.markdown())
        atomic_write(output / "report.json", comparison.to_json())
    return comparison.markdown()


def generate_suite(
    options: SuiteOptions,
    checkpoint: Path,
    output: Path,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Generates the videos that are not in `output` yet, and checks all of them.

    Arguments and errors as `run_suite`.
    """
    info = user_path(options.info or "", "--info")
    prompts = read_suite(info)
    if len(prompts) != OFFICIAL_PROMPTS:
        log.warning(
            "%s has %d prompts, the published suite %d: the scores will not compare.",
            info,
            len(prompts),
            OFFICIAL_PROMPTS,
        )
    chosen = _chosen(prompts, options.dimensions)
    job = JobOptions(
        checkpoint=checkpoint,
        batch_size=options.batch_size,
        preset=options.preset,
        weights=options.weights,
        **_of_config(config, options, run_folder(checkpoint)),
    )
    bundle = load_bundle(run_folder(checkpoint))
    spec = VideoSpec.of(
        bundle, job.num_frames, job.height, job.width, preset=job.preset, settings=job.settings
    )
    ratio = options.ratio or nearest_ratio(spec.height, spec.width)
    folder = image_folder(user_path(options.images or "", "--images"), ratio)
    requests = suite_requests(chosen, folder, options.seed)
    _say_what(bundle, folder, ratio, spec)
    videos = Output(folder=output / "videos", records=output / "records", formats=("mp4",), fps=FPS)
    shared = {
        "suite": options.suite,
        "info_sha256": sha256(info),
        "ratio": ratio,
        "seed": options.seed,
        "weights": options.weights,
        "num_frames": spec.num_frames,
        "height": spec.height,
        "width": spec.width,
        "fps": FPS,
        "sampling": dataclasses.asdict(spec.config),
    }
    file = output / SUITE
    if os.path.lexists(file):
        _compare(file, shared)
    share = _share(options)

    def check_model(draft: GenerationRecord) -> None:
        asked = {**shared, "checkpoint_sha256": dict(draft.checkpoint_sha256)}
        about = {
            "rule": _SEED_RULE,
            "info": str(info),
            "images": str(folder),
            "checkpoint": draft.checkpoint,
        }
        _claim(file, asked, about)

    faults = run_jobs(
        requests, job, videos, CompleteSet(bundle=bundle, check_model=check_model, share=share)
    )
    if faults:
        raise UserError("\n".join([f"{len(faults)} videos could not be generated:", *faults]))
    barrier("videos of the suite")
    rows, columns = mp4_size(spec.height, spec.width, MIN_SIDE)
    form = VideoForm(num_frames=spec.num_frames, height=rows, width=columns)
    if jax.process_index() == 0:
        names = [request.name for request in requests]
        if _check_set(videos.folder, names, prompts, form):
            _say_next(videos.folder, chosen, ratio)


def check_videos(folder: Path, names: Sequence[str], form: VideoForm) -> list[str]:
    """What is wrong with the videos of these names: missing, damaged, short, of another form."""

    def fault(name: str) -> str | None:
        found = form.fault(folder / f"{name}.mp4")
        return None if found is None else f"{name}.mp4: {found}"

    threads = min(8, os.cpu_count() or 1)
    return [found for found in read_ahead(fault, names, threads=threads, ahead=64) if found]


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


def _say_what(bundle: ModelBundle, folder: Path, ratio: str, spec: VideoSpec) -> None:
    """Logs what the videos start from, and what makes their scores mean less."""
    height, width = spec.height, spec.width
    log.info("frames of %dx%d start from the images of %s", height, width, folder)
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


def _check_set(
    folder: Path, names: Sequence[str], prompts: Sequence[SuitePrompt], form: VideoForm
) -> bool:
    """Checks the videos of the suite, and returns whether all are there.

    Raises:
        UserError: videos are damaged, or there is something else in their folder.
    """
    there = [name for name in names if (folder / f"{name}.mp4").is_file()]
    if len(there) < len(names):
        log.info(
            "%d of %d videos are there: the other shares make the rest. The same command without "
            "--share checks the whole.",
            len(there),
            len(names),
        )
        return False
    clear_leftovers(folder)  # nobody is writing any more
    known = {f"{name}.mp4" for prompt in prompts for name in prompt.names}
    others = sorted({path.name for path in folder.iterdir()} - known)
    if others:
        raise UserError(
            f"{folder} must hold the videos of the suite alone, since the evaluator would be "
            f"misled by others: move {some_of(others)} elsewhere."
        )
    log.info("checking %d videos", len(names))
    faults = check_videos(folder, names, form)
    if faults:
        raise UserError(
            f"{len(faults)} videos in {folder} cannot be used; remove them and give the same "
            f"command again, which makes them anew: {some_of(faults)}."
        )
    return True


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

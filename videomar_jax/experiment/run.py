"""A whole run: check and prepare, train through the curriculum, generate held-out clips, report.

WORKDIR/config.json, data.json, failing.json     whose folder it is (`experiment.workdir`)
WORKDIR/model/                     tokenizer, text encoder, model config (`pretrained.bundle`)
WORKDIR/checkpoints/               parameters, their average and the optimizer's state
WORKDIR/metrics.jsonl, tensorboard/, samples/    what training looked like
WORKDIR/report.json, report.md, report/          scores and pictures at the end
"""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from videomar_jax.checkpoints.manager import check_place
from videomar_jax.checks import Interrupted, UserError
from videomar_jax.data.augment import unchanged
from videomar_jax.data.loader import fixed_clips
from videomar_jax.data.sources import ClipSource
from videomar_jax.experiment.budget import (
    Budget,
    check_budget,
    choose_budget,
    read_budget,
    write_budget,
)
from videomar_jax.experiment.config import Experiment
from videomar_jax.experiment.data_sources import DATA_KINDS
from videomar_jax.experiment.evaluate import (
    METRICS_FILE,
    evaluate,
    save_report,
    write_preview,
)
from videomar_jax.experiment.footage import describe_footage
from videomar_jax.experiment.linear_baseline import linear_predictors
from videomar_jax.experiment.workdir import (
    LOCK,
    check_same_clips,
    check_workdir,
    count_failing,
    files_of_run,
    write_clips,
    write_config,
    write_failing,
)
from videomar_jax.inference.stream import VideoSampler
from videomar_jax.io.files import clear_leftovers
from videomar_jax.io.lock import Lock, holding
from videomar_jax.io.log import log
from videomar_jax.io.paths import user_path
from videomar_jax.models.params import Params, abstract_model
from videomar_jax.parallel.mesh import make_mesh
from videomar_jax.parallel.multihost import barrier, to_host
from videomar_jax.pretrained.bundle import (
    ModelBundle,
    load_bundle,
    load_config,
    load_params,
    run_folder,
    save_bundle,
    save_settings,
)
from videomar_jax.pretrained.open import sources_of
from videomar_jax.training.batches import TrainingInputs, check_data
from videomar_jax.training.loop import StepTime, time_steps, train
from videomar_jax.training.profiling import Profile
from videomar_jax.training.recipe import check_mesh, check_stages
from videomar_jax.types import UInt8

LINEAR_WINDOWS = 300
"""Training windows that the linear predictor of the log is fitted on; the report's has more."""
PREPARE, EVALUATE = "prepare", "evaluate"
"""The phases of a run beside its stages, as the report's "seconds" call them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a run consists of, opened and checked.

    inputs: what the training loop reads.
    bundle: what belongs to the model besides its parameters.
    held_out: clips to score.
    shown: the first of them as one batch, for previews.
    clips: what tells the clips to train on from others.
    """

    inputs: TrainingInputs
    bundle: ModelBundle
    held_out: ClipSource
    shown: Mapping[str, Any]
    clips: Mapping[str, Any]


def run(
    experiment: Experiment,
    workdir: str | os.PathLike,
    config: Mapping[str, Any],
    profile: Profile | None = None,
) -> dict[str, Any]:
    """Trains in `workdir`, from where it was left if it holds this run, and reports.

    With several processes all of them call this, on one file system; process 0 alone writes, except
    for checkpoints.

    Args:
        config: the config as plain values; it is kept beside the run and compared at the next
            start.
        profile: which steps to take a profile of, into WORKDIR/profile.
    Returns:
        What report.json holds; {} on other processes than 0, and where the last stage trains on
        images, which leave nothing to generate.
    Raises:
        UserError: the workdir holds another run or other files, another process trains in it, or
            the config's parts do not fit together.
        Interrupted: the run was asked to stop and saved its state.
    """
    workdir = user_path(workdir, "--workdir")
    check_place(workdir / "checkpoints")
    if experiment.recipe.run.minutes is not None:
        check_budget(config)
        budget = read_budget(workdir, experiment)
        if budget is not None:
            config = budget.apply(config)
            experiment = Experiment.from_config(config)
    check_workdir(workdir, config)
    if jax.process_index() != 0:
        return _run(experiment, workdir, config, profile)
    with holding(workdir / LOCK, str(workdir)) as lock:
        # What another process wrote before this one held the lock.
        check_workdir(workdir, config)
        for folder in (workdir, workdir / "model"):
            clear_leftovers(folder)
        return _run(experiment, workdir, config, profile, lock)


def _run(
    experiment: Experiment,
    workdir: Path,
    config: Mapping[str, Any],
    profile: Profile | None,
    lock: Lock | None = None,
) -> dict[str, Any]:
    """`run` in a workdir that no other run writes to; process 0 holds its lock."""
    seconds: dict[str, float] = {}
    claimed: list[Path] = []
    with _timed(seconds, PREPARE):
        budget, opened = None, OpenedRuns(workdir)
        if experiment.recipe.run.minutes is not None:
            budget = read_budget(workdir, experiment)
            if budget is None:
                budget = choose_budget(experiment, config, opened.time_stage)
                config = budget.apply(config)
                experiment = Experiment.from_config(config)
        prepared = opened.prepare(experiment)
        # Nothing is written before every process has found its part to be in order.
        barrier("checked")
        if jax.process_index() == 0:
            _claim(workdir, config, prepared, budget)
            claimed = files_of_run(workdir)
        barrier("claimed")
        if jax.process_index() == 0 and not (workdir / "checkpoints").exists():
            _describe(experiment, prepared)
    graph, _ = abstract_model(prepared.bundle.config)

    def sampler(params: Params) -> VideoSampler:
        model = nnx.merge(graph, params)
        return VideoSampler.from_bundle(
            model, prepared.bundle, batch_size=experiment.evaluation.batch_size
        )

    def before_save() -> None:
        """A workdir that is deleted under the run is made again, so that it can be continued."""
        if lock is not None:
            lock.renew()
        missing = [file for file in claimed if not file.exists()]
        if missing:
            log.warning("%s was deleted: the run's files are written again", missing[0])
            _claim(workdir, config, prepared, budget, whole=True)
        write_failing(workdir, unchanged(prepared.inputs.source))

    def draw_preview(ema: Params, path: Path) -> UInt8[np.ndarray, "rows columns 3"]:
        return write_preview(sampler(ema), prepared.shown, path, prepared.inputs.source.fps)

    is_video = experiment.final_stage.num_frames > 1
    try:
        outcome = train(
            experiment.recipe,
            prepared.inputs,
            workdir,
            preview=draw_preview if is_video else None,
            initial=_initial(experiment),
            profile=profile,
            before_save=before_save,
        )
    except OSError:
        # The workdir may have been deleted while a checkpoint was written.
        if lock is not None:
            with suppress(OSError, UserError):
                before_save()
        raise
    if not outcome.finished:
        raise Interrupted(
            f"Stopped at step {int(outcome.state.step)} of "
            f"{experiment.recipe.curriculum.total_steps}; the state is saved in "
            f"{workdir / 'checkpoints'}. The same command continues from there."
        )
    # All processes gather the parameters, which may be spread over them.
    ema = to_host(outcome.state.ema)
    if not is_video:
        log.info("The last stage trains on images: there is nothing to continue, and no report.")
    if jax.process_index() or not is_video:
        return {}
    seconds |= stage_seconds(outcome.seconds)
    with _timed(seconds, EVALUATE):
        source = unchanged(prepared.inputs.source)
        found = evaluate(experiment, sampler(ema), prepared.held_out, workdir / "report", source)
    report = found.report | {"seconds": seconds, "seconds_total": sum(seconds.values())}
    save_report(workdir, report, found.pictures, workdir / METRICS_FILE)
    log.info("report: %s", workdir / "report.md")
    return report


def prepare(experiment: Experiment, workdir: Path) -> Prepared:
    """Opens clips, tokenizer and text encoder, and checks that everything fits; writes nothing.

    Raises:
        UserError: what does not fit, by name.
    """
    recipe = experiment.recipe
    source, held_out = experiment.training_source(), experiment.source("test")
    bundle = _bundle(experiment, source, workdir)
    inputs = TrainingInputs(
        source=source,
        tokenizer=bundle.tokenizer,
        text_encoder=bundle.text_encoder,
        threads=experiment.data.threads,
        held_out=held_out,
    )
    mesh = make_mesh(recipe.mesh)
    check_mesh(recipe, bundle.tokenizer.spatial_stride, dict(mesh.shape))
    clips = check_same_clips(workdir, source, contents=jax.process_index() == 0)
    if not (workdir / "checkpoints").exists():
        _check_initial(experiment)
    count_failing(workdir, unchanged(source))
    # Reads a clip of every shape, so that a size no clip can have is reported before training.
    check_data(recipe.curriculum, inputs, text_mask=recipe.model.text_mask)
    count = min(experiment.evaluation.clips, len(held_out), experiment.evaluation.batch_size)
    shown = fixed_clips(held_out, range(count), shape=experiment.final_shape)
    return Prepared(inputs=inputs, bundle=bundle, held_out=held_out, shown=shown, clips=clips)


def _describe(experiment: Experiment, prepared: Prepared) -> None:
    """Says in the log what to expect of footage."""
    if not DATA_KINDS[experiment.data.kind].linear_predictor:
        return
    if experiment.final_shape.num_frames < 2:
        return
    source, shape = unchanged(prepared.inputs.source), experiment.final_shape
    windows = min(experiment.evaluation.linear_windows, LINEAR_WINDOWS)
    threads = experiment.data.threads
    try:
        found = linear_predictors(source, shape, [1], windows=windows, threads=threads)
        linear = found[1].left_out if found else None
        describe_footage(source, prepared.bundle.tokenizer, shape, linear)
    except (UserError, OSError) as error:
        # Training skips clips that fail, or says what is wrong with them.
        log.warning("what to expect of the footage cannot be said: %s", error)


def stage_seconds(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by stage under names that leave those of the phases free."""
    return {
        f"stage {name}" if name in (PREPARE, EVALUATE) else name: value
        for name, value in seconds.items()
    }


class OpenedRuns:
    """What a run trains on, opened once for each frame size: steps make no difference to it."""

    def __init__(self, workdir: Path):
        self._workdir = workdir
        self._size: tuple[int, int] | None = None
        self._prepared: Prepared | None = None

    def prepare(self, experiment: Experiment) -> Prepared:
        """As `prepare`, or what it gave for this size before."""
        size = (experiment.final_stage.height, experiment.final_stage.width)
        if self._prepared is None or size != self._size:
            self._size, self._prepared = size, prepare(experiment, self._workdir)
        return self._prepared

    def time_stage(self, experiment: Experiment, index: int) -> StepTime:
        """How long the steps of a stage take."""
        return time_steps(experiment.recipe, self.prepare(experiment).inputs, index)


def _claim(
    workdir: Path,
    config: Mapping[str, Any],
    prepared: Prepared,
    budget: Budget | None,
    *,
    whole: bool = False,
) -> None:
    """Makes `workdir` this run's folder.

    Args:
        whole: write tokenizer and text encoder even where model.json says that they are there.
    """
    has_bundle = _has_bundle(workdir) and not whole
    if budget is not None:
        write_budget(workdir, budget)
    write_config(workdir, config)
    write_clips(workdir, prepared.clips)
    if has_bundle:
        save_settings(prepared.bundle, workdir)
    else:
        save_bundle(prepared.bundle, workdir)


def _bundle(experiment: Experiment, source: ClipSource, workdir: Path) -> ModelBundle:
    """What belongs to the run's model; tokenizer and text encoder are made at the first start."""
    final = experiment.final_stage
    if _has_bundle(workdir):
        saved = load_bundle(workdir)
        tokenizer, text_encoder, sources = saved.tokenizer, saved.text_encoder, saved.sources
    else:
        tokenizer, text_encoder = experiment.tokenizer(source), experiment.text_encoder()
        sources = sources_of(
            {
                "tokenizer": experiment.tokenizer_config.path,
                "text_encoder": experiment.text.path,
            }
        )
    # Before the bundle checks the last stage alone: these messages name the stage.
    check_stages(experiment.recipe, tokenizer)
    return ModelBundle(
        config=experiment.recipe.model,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        sampling=experiment.sampling,
        num_frames=final.num_frames,
        height=final.height,
        width=final.width,
        fps=source.fps,
        sources=sources,
    )


def _has_bundle(workdir: Path) -> bool:
    return (workdir / "model" / "model.json").exists()


def _initial(experiment: Experiment) -> Callable[[], Params] | None:
    """A function that reads the parameters which `init_from` names; None for random ones."""
    place = experiment.recipe.init_from
    if not place:
        return None

    def read() -> Params:
        _check_initial(experiment)
        folder, params, step = load_params(place)
        log.info("starting from the averaged parameters of %s, step %d", folder, step)
        return params

    return read


def _check_initial(experiment: Experiment) -> None:
    """Raises an error if `init_from` names no model, or one of another size."""
    if not experiment.recipe.init_from:
        return
    folder = run_folder(experiment.recipe.init_from)
    theirs, ours = load_config(folder).sizes(), experiment.recipe.model.sizes()
    differing = [
        f"{key} {theirs[key]} there, {ours[key]} here" for key in ours if theirs[key] != ours[key]
    ]
    if differing:
        raise UserError(f"init_from: {folder} is a model of another size ({', '.join(differing)}).")


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Adds the wall time of a block that ends well."""
    start = time.monotonic()
    yield
    seconds[phase] = time.monotonic() - start

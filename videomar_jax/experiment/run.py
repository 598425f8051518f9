"""A whole run: check, prepare, train through the curriculum, generate held-out clips, report.

WORKDIR/config.json      the config the run was started with; a run of another config refuses to
continue here
WORKDIR/data.json        a digest of the clips it is trained on, which must stay the same
WORKDIR/model/           tokenizer, text encoder, model config (`pretrained`)
WORKDIR/checkpoints/     WORKDIR/metrics.jsonl     WORKDIR/tensorboard/     WORKDIR/samples/
WORKDIR/report.json      WORKDIR/report.md         WORKDIR/report/          scores and pictures at
the end
"""

import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from videomar_jax.checks import Interrupted
from videomar_jax.data.loader import fixed_clips
from videomar_jax.data.shapes import Shapes
from videomar_jax.data.sources import ClipShape, ClipSource, digest_of, name_of
from videomar_jax.evaluation import motion
from videomar_jax.evaluation.report import Case, score, sheet_rows, write_report
from videomar_jax.experiment.config import Experiment, stage_shape
from videomar_jax.inference.image_to_video import VideoSampler
from videomar_jax.inference.stream import trained_tokens
from videomar_jax.io.files import atomic_write
from videomar_jax.io.media import contact_sheet, write_gif, write_mp4, write_png
from videomar_jax.io.migration import current_config
from videomar_jax.models.videomar import VideoMAR
from videomar_jax.parallel.mesh import make_mesh
from videomar_jax.parallel.multihost import barrier, to_host
from videomar_jax.pretrained.bundle import (
    ModelBundle,
    load_bundle,
    load_config,
    load_params,
    load_pretrained,
    run_folder,
    save_bundle,
    save_settings,
)
from videomar_jax.tokenizers import Tokenizer
from videomar_jax.training.batches import TrainingInputs, check_data
from videomar_jax.training.loop import Profile, train
from videomar_jax.training.recipe import check_mesh, check_parts
from videomar_jax.training.state import Params, abstract_model

_log = logging.getLogger(__name__)
FREE = (
    "run",
    "mesh",
    "evaluation",
    "sampling",
    "data.threads",
    "tokenizer.path",
    "text.path",
    "init_from",
)
"""What may change between two starts of a run: sections and keys that do not touch the parameters,
or no more."""


SHOWN_APART = 8
"""Clips of footage that the report shows each by itself."""


def run(
    experiment: Experiment,
    workdir: str | os.PathLike,
    config: Mapping[str, Any],
    profile: Profile | None = None,
) -> dict[str, Any]:
    """Trains (or goes on training) in `workdir` and reports; returns the report (of process 0; {}
    on the others).

    With several processes all of them call this, on one file system; process 0 alone writes, but
    for checkpoints.

    Args:
        config: the config as plain values, kept beside the run and compared when it is started
            again.
        profile: which steps to take a profile of, into WORKDIR/profile.
    Raises:
        ValueError: the workdir holds another run or other files, or parts do not fit together.
        Interrupted: the run was asked to stop and saved its state.
    """
    workdir = Path(workdir).expanduser()
    check_workdir(workdir, config)
    seconds: dict[str, float] = {}
    with _phase(seconds, "prepare"):
        last = experiment.final_stage
        source, held_out = experiment.source("train"), experiment.source("test")
        bundle = _bundle(experiment, source, workdir)
        parts = TrainingInputs(
            source=source,
            tokenizer=bundle.tokenizer,
            text_encoder=bundle.text_encoder,
            threads=experiment.data.threads,
            held_out=held_out,
        )
        check_parts(experiment.recipe, parts)
        check_mesh(
            experiment.recipe,
            bundle.tokenizer.spatial_stride,
            dict(make_mesh(experiment.recipe.mesh).shape),
        )
        check_same_clips(workdir, source)
        if not (workdir / "checkpoints").exists():
            _check_initial(experiment)
        # Sizes that no clip can have are told now.
        check_data(experiment.recipe.curriculum, parts, text_mask=experiment.recipe.model.text_mask)
        clips = min(experiment.evaluation.clips, len(held_out))
        shown = fixed_clips(
            held_out, range(min(clips, experiment.evaluation.batch_size)), shape=stage_shape(last)
        )
        barrier("checked")
        if jax.process_index() == 0:
            claim(workdir, config)
            remember_clips(workdir, source)
            (save_settings if _has_bundle(workdir) else save_bundle)(bundle, workdir)
        barrier("claimed")
    graph, _ = abstract_model(bundle.config)

    def sampler(params: Params) -> VideoSampler:
        return video_sampler(bundle, nnx.merge(graph, params), experiment.evaluation.batch_size)

    moving = last.num_frames > 1
    outcome = train(
        experiment.recipe,
        parts,
        workdir,
        preview=(lambda ema: preview(sampler(ema), shown)) if moving else None,
        initial=_initial(experiment),
        profile=profile,
    )
    seconds |= outcome.seconds
    if not outcome.finished:
        raise Interrupted(
            f"Stopped at step {int(outcome.state.step)} of {experiment.recipe.curriculum.total_steps}; the state is "
            f"saved in {workdir / 'checkpoints'}. The same command goes on from there."
        )
    ema = to_host(outcome.state.ema)
    if not moving:
        _log.info("The last stage trains on images: there is nothing to continue, and no report.")
    if jax.process_index() or not moving:
        return {}
    with _phase(seconds, "evaluate"):
        report, pictures = evaluate(experiment, sampler(ema), held_out, workdir / "report")
    report |= {"seconds": seconds, "seconds_total": sum(seconds.values())}
    write_report(workdir, report, {f"report/{file}": caption for file, caption in pictures.items()})
    _log.info("report: %s", workdir / "report.md")
    return report


def _initial(experiment: Experiment) -> Callable[[], Params] | None:
    """What reads the parameters that `init_from` names, if any."""
    if not experiment.recipe.init_from:
        return None

    def read() -> Params:
        _check_initial(experiment)
        folder, params, step = load_params(experiment.recipe.init_from)
        _log.info("beginning with the averaged parameters of %s, step %d", folder, step)
        return params

    return read


def _check_initial(experiment: Experiment) -> None:
    """Raises an error where `init_from` names no model, or one of another size."""
    if not experiment.recipe.init_from:
        return
    folder = run_folder(experiment.recipe.init_from)
    if (theirs := load_config(folder).sizes()) != (ours := experiment.recipe.model.sizes()):
        differ = ", ".join(
            f"{k} {theirs[k]} there, {ours[k]} here" for k in ours if theirs[k] != ours[k]
        )
        raise ValueError(f"init_from: {folder} is a model of another size ({differ}).")


def evaluate_checkpoint(
    experiment: Experiment, workdir: Path, checkpoint: str | os.PathLike
) -> dict[str, Any]:
    """Scores a checkpoint's averaged weights on the experiment's held-out clips, drawn as its
    config says."""
    if (workdir / "report.json").exists():
        raise ValueError(f"{workdir} already holds a report; choose another --output.")
    pretrained = load_pretrained(checkpoint)
    bundle = dataclasses.replace(pretrained.bundle, sampling=experiment.sampling)
    sampler = video_sampler(bundle, pretrained.model, experiment.evaluation.batch_size)
    held_out = experiment.source("test", min_frames=experiment.final_stage.num_frames)
    report, pictures = evaluate(experiment, sampler, held_out, workdir / "report")
    report["step"] = pretrained.step
    write_report(workdir, report, {f"report/{file}": caption for file, caption in pictures.items()})
    return report


def video_sampler(bundle: ModelBundle, model: VideoMAR, batch_size: int) -> VideoSampler:
    """A sampler with what the bundle says."""
    return VideoSampler(
        model,
        bundle.tokenizer,
        bundle.text_encoder,
        bundle.sampling,
        batch_size,
        trained_tokens(bundle),
    )


def check_workdir(workdir: Path, config: Mapping[str, Any]) -> None:
    """Makes sure that a run with this config may begin or go on in `workdir`; writes nothing.

    Raises:
        ValueError: it holds another config's run (the differing keys are named), or files of
            something else.
    """
    file = workdir / "config.json"
    if not file.exists():
        if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
            raise ValueError(
                f"{workdir} is not empty and holds no run; choose an empty or new --workdir."
            )
        return
    try:
        before = _flat(current_config(json.loads(file.read_text(encoding="utf-8"))))
    except ValueError as error:
        raise ValueError(f"{file} is broken ({error}); choose another --workdir.") from error
    now = _flat(json.loads(json.dumps(config)))
    changed = [
        f"{key} ({before.get(key)!r} there, {now.get(key)!r} here)"
        for key in sorted(before | now)
        if before.get(key) != now.get(key) and not {key, key.split(".")[0]} & set(FREE)
    ]
    if changed:
        raise ValueError(
            f"{workdir} holds a run of another config; it differs in {', '.join(changed[:5])}"
            + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
            + ". Choose another --workdir, or start with the config of that run to continue it."
        )


def check_same_clips(workdir: Path, source: ClipSource) -> None:
    """Raises a ValueError where the run in `workdir` was trained on other clips: their order would
    be another."""
    file = workdir / "data.json"
    if not file.exists():
        return
    try:
        before = json.loads(file.read_text(encoding="utf-8"))["digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is broken ({error!r}); delete it to go on with the clips there are."
        ) from error
    if before != digest_of(source):
        raise ValueError(
            f"The clips to train on are not those that the run in {workdir} began with, and would come in another "
            f"order. Put them back as they were, or delete {file} to go on with those there are."
        )


def remember_clips(workdir: Path, source: ClipSource) -> None:
    """Notes which clips the run in `workdir` is trained on, for `check_same_clips`."""
    note = {"clips": len(source), "digest": digest_of(source)}
    atomic_write(workdir / "data.json", json.dumps(note, indent=2) + "\n")


def claim(workdir: Path, config: Mapping[str, Any]) -> None:
    """Makes `workdir` the folder of the run with this config."""
    workdir.mkdir(parents=True, exist_ok=True)
    atomic_write(workdir / "config.json", json.dumps(config, indent=2) + "\n")


def preview(
    sampler: VideoSampler, clips: Mapping[str, Any], rows: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """Held-out clips, truth above generated: a contact sheet, and the clips moving side by side [F,
    …]."""
    video = clips["video"]
    made = sampler(video[:, :1], clips["caption"], video.shape[1])
    case = Case(name="", title="", reference=video, prompts=clips["caption"])
    return contact_sheet(sheet_rows(case, made, rows)), _tiles(video, made)


def evaluate(
    experiment: Experiment, sampler: VideoSampler, held_out: ClipSource, folder: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """Scores every case; returns the report, and the pictures written into `folder` with their
    captions."""
    if isinstance(held_out, Shapes):
        cases = _shape_cases(experiment, held_out, sampler.tokenizer)
    else:
        cases = _footage_cases(experiment, held_out)
    report: dict[str, Any] = {"cases": {}}
    pictures: dict[str, str] = {}
    for case in cases:
        scores, generated = score(case, sampler, sampler.reconstruct)
        report["cases"][case.name] = scores
        _log.info(
            "%s: %s", case.title, ", ".join(f"{key} {value:.3g}" for key, value in scores.items())
        )
        write_png(
            folder / f"{case.name}.png", contact_sheet(sheet_rows(case, generated)), overwrite=True
        )
        write_gif(
            folder / f"{case.name}.gif",
            _tiles(case.reference, generated),
            held_out.fps,
            scale=3,
            overwrite=True,
        )
        write_mp4(
            folder / f"{case.name}.mp4",
            _tiles(case.reference, generated),
            held_out.fps,
            min_side=256,
            overwrite=True,
        )
        pictures |= {
            f"{case.name}.png": case.title,
            f"{case.name}.gif": f"{case.title}: truth above, generated below",
        }
    main = report["cases"]["held_out"]
    return main | _shape_summary(report["cases"]) | report, pictures


def _shape_cases(experiment: Experiment, held_out: Shapes, tokenizer: Tokenizer) -> list[Case]:
    """Held-out clips; triples never trained on; one first frame with four captions; captions of
    other clips; one latent frame more than trained; a canvas 1.5 times larger."""
    shape, count, seed = (
        stage_shape(experiment.final_stage),
        experiment.evaluation.clips,
        experiment.recipe.seed,
    )
    stride = tokenizer.temporal_stride
    patch = tokenizer.spatial_stride * experiment.recipe.model.patch_size
    longer = dataclasses.replace(shape, num_frames=shape.num_frames + stride)
    larger = ClipShape(
        num_frames=shape.num_frames,
        height=shape.height * 3 // 2 // patch * patch,
        width=shape.width * 3 // 2 // patch * patch,
    )

    def case(
        name: str, title: str, clips: Mapping[str, Any], prompts: Sequence[str] | None = None
    ) -> Case:
        directions = [motion.direction_of(caption) for caption in clips["caption"]]
        return Case(
            name=name,
            title=title,
            reference=clips["video"],
            prompts=prompts or clips["caption"],
            directions=directions,
        )

    clips = fixed_clips(held_out, range(count), shape=shape)
    shuffled = [clips["caption"][i] for i in np.random.default_rng(seed).permutation(count)]
    groups = [clip for i in range(-(-count // 4)) for clip in held_out.counterfactuals(i, shape)]
    unseen = dataclasses.replace(held_out, split="unseen")
    fewer = range(-(-count // 2))
    return [
        case("held_out", "Held-out clips", clips),
        case(
            "unseen_triples",
            "Colour, shape and direction never seen together",
            fixed_clips(unseen, range(count), shape=shape),
        ),
        case(
            "counterfactual",
            "One first frame, four captions",
            {
                "video": np.stack([c["video"] for c in groups]),
                "caption": [c["caption"] for c in groups],
            },
        ),
        case("shuffled_captions", "Control: captions of other clips", clips, shuffled),
        case(
            "longer",
            f"One latent frame beyond training: {longer.num_frames} frames",
            fixed_clips(held_out, fewer, shape=longer),
        ),
        case(
            "larger",
            f"A larger canvas: {larger.height}x{larger.width}",
            fixed_clips(held_out, fewer, shape=larger),
        ),
    ]


def _footage_cases(experiment: Experiment, held_out: ClipSource) -> list[Case]:
    """All held-out windows, and those of the first few clips apart, where the clips have names."""
    shape = stage_shape(experiment.final_stage)
    count = min(experiment.evaluation.clips, len(held_out))
    clips = fixed_clips(held_out, range(count), shape=shape)
    cases = [
        Case(
            name="held_out",
            title="Held-out footage",
            reference=clips["video"],
            prompts=clips["caption"],
        )
    ]
    names = [name_of(held_out, i) for i in range(count)]
    for name in list(filter(None, dict.fromkeys(names)))[:SHOWN_APART]:
        mine = [i for i in range(count) if names[i] == name]
        own = f"clip {name}" if name == "held_out" else name  # the name of the whole
        cases.append(
            Case(
                name=own,
                title=f"Held-out part of {name}",
                reference=clips["video"][mine],
                prompts=[clips["caption"][i] for i in mine],
            )
        )
    return cases


def _shape_summary(cases: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The scores that have a name of their own in report.json."""
    wanted = {
        "unseen_triples_direction_accuracy": "unseen_triples",
        "counterfactual_accuracy": "counterfactual",
        "shuffled_caption_accuracy": "shuffled_captions",
    }
    return {key: cases[name]["direction_accuracy"] for key, name in wanted.items() if name in cases}


def _tiles(reference: np.ndarray, generated: np.ndarray, columns: int = 8) -> np.ndarray:
    """One clip [F, …]: true clips side by side above generated ones, a thin gap between."""
    rows = []
    for clips in (reference, generated):
        padded = np.pad(
            clips[:columns], ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255
        )
        rows.append(np.concatenate(list(padded), axis=2))
    return np.concatenate(rows, axis=1)


def _bundle(experiment: Experiment, source: ClipSource, workdir: Path) -> ModelBundle:
    """The run's model bundle: read where it exists (the tokenizer is fitted once), else made."""
    last = experiment.final_stage
    if _has_bundle(workdir):
        before = load_bundle(workdir)
        tokenizer, text_encoder = before.tokenizer, before.text_encoder
    else:
        tokenizer, text_encoder = experiment.tokenizer(source), experiment.text_encoder()
    return ModelBundle(
        config=experiment.recipe.model,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        sampling=experiment.sampling,
        num_frames=last.num_frames,
        height=last.height,
        width=last.width,
        fps=source.fps,
    )


def _has_bundle(workdir: Path) -> bool:
    return (workdir / "model" / "model.json").exists()


@contextmanager
def _phase(seconds: dict[str, float], name: str):
    start = time.monotonic()
    yield
    seconds[name] = time.monotonic() - start


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested values as {"a.b": value}."""
    if isinstance(values, Mapping):
        items = values.items()
    elif isinstance(values, list):
        items = enumerate(values)
    else:
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat

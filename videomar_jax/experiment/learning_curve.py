"""Scores of all checkpoints of a run: which of them improve with training, and until when.

OUTPUT/curve.json           the scores by step, and what they belong to
OUTPUT/curve.md, *.png      a table, and curves over the steps
OUTPUT/steps/STEP/          the report of each checkpoint

A checkpoint is measured once: the same command continues where it was interrupted, and adds the
checkpoints that a run has written since.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from videomar_jax.checkpoints.manager import Checkpoints
from videomar_jax.checks import UserError
from videomar_jax.evaluation.networks import Networks
from videomar_jax.evaluation.report_text import SCORES, legend
from videomar_jax.evaluation.scorecard import CANDIDATES
from videomar_jax.experiment.comparison_options import NetworkOptions
from videomar_jax.experiment.config import Experiment
from videomar_jax.experiment.evaluate import evaluate_checkpoint, named_run
from videomar_jax.experiment.scoring_networks import open_networks
from videomar_jax.io.files import atomic_write, read_json, sha256
from videomar_jax.io.log import log
from videomar_jax.io.media import write_png
from videomar_jax.io.paths import file_name
from videomar_jax.io.plots import Curve, Panel, plot
from videomar_jax.pretrained.bundle import run_folder

CURVE = "curve.json"
HELD_OUT = "held_out"
"""How the cases begin whose curves are drawn; others are in the reports of the steps."""

Steps = Mapping[int, Mapping[str, Mapping[str, float]]]
"""Step → case → scores."""


def evaluate_checkpoints(
    experiment: Experiment,
    output: Path,
    checkpoint: Path,
    settings: Mapping[str, Any],
    networks: Networks | None = None,
) -> Steps:
    """Scores every checkpoint of a run and draws the scores over the steps.

    Args:
        output: a folder of its own, or the one of an earlier call.
        checkpoint: the run's folder.
        settings: what the scores depend on besides the checkpoints, as JSON values.
        networks: for the scores that need one.
    Raises:
        UserError: there is no checkpoint, one of them is named instead of the run, or `output`
            holds something else, scores of other settings, or of a checkpoint that has changed.
    """
    run = run_folder(checkpoint)
    if run not in (checkpoint, checkpoint.parent):
        raise UserError(f"{checkpoint} is one checkpoint: name its run, {run}, for all of them.")
    with Checkpoints(run / "checkpoints") as checkpoints:
        steps = checkpoints.all_steps()
    if not steps:
        raise UserError(f"{run} holds no checkpoints.")
    measured = _earlier(output, {"run": str(run), **settings})
    # All of them first: nothing is measured beside scores that do not belong to it.
    digests = {step: _digest(run / "checkpoints" / str(step)) for step in steps}
    for step, entry in measured.items():
        if step in digests and entry["digest"] != digests[step]:
            raise UserError(
                f"{output} holds scores of another checkpoint of step {step}: the run was trained "
                f"anew. Choose another --output."
            )
    for step in steps:
        if step in measured:
            log.info("step %d: measured before", step)
            continue
        report = _report_of(experiment, output, run, step, networks)
        measured[step] = {"digest": digests[step], "cases": report["cases"]}
        _write_json(output, {"run": str(run), **settings}, measured)
    cases = {step: measured[step]["cases"] for step in sorted(measured)}
    _write_curves(output, cases)
    return cases


def _report_of(
    experiment: Experiment, output: Path, run: Path, step: int, networks: Networks | None
) -> Mapping[str, Any]:
    """The report of a checkpoint, measured now unless it was complete before an interruption."""
    folder = output / "steps" / str(step)
    if (folder / "report.json").exists():
        return read_json(folder / "report.json")
    log.info("step %d: measuring", step)
    return evaluate_checkpoint(experiment, folder, run / "checkpoints" / str(step), networks)


def _digest(checkpoint: Path) -> str:
    """What tells a checkpoint from another one of the same step; "" if nothing does."""
    digests = checkpoint / "digests.json"
    return sha256(digests) if digests.exists() else ""


def evaluate_all_named(
    config: Mapping[str, Any] | None,
    checkpoint: str | None,
    output: str | None,
    options: NetworkOptions,
) -> Steps:
    """As `evaluate_checkpoints`, from what a person named.

    Raises:
        UserError: something is not named.
    """
    named = named_run(config, checkpoint, output)
    networks = open_networks(options)
    settings = {
        "config": named.config,
        "fvd": networks.i3d is not None,
        "lpips": None if networks.lpips is None else networks.lpips.network,
    }
    return evaluate_checkpoints(
        named.experiment, named.output, named.checkpoint, settings, networks
    )


# Files


def _earlier(output: Path, settings: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The scores in a folder by step."""
    file = output / CURVE
    if not file.exists():
        if output.exists() and any(output.iterdir()):
            raise UserError(f"{output} holds other files: choose another --output.")
        # Written first, so that reports of steps always have their settings beside them.
        _write_json(output, settings, {})
        return {}
    found = read_json(file)
    plain = json.loads(json.dumps(settings))
    differing = sorted(
        key for key in {*plain, *found["settings"]} if plain.get(key) != found["settings"].get(key)
    )
    if differing:
        raise UserError(
            f"{output} holds scores of other settings ({', '.join(differing)}): choose another "
            f"--output."
        )
    return {int(step): entry for step, entry in found["steps"].items()}


def _write_json(
    output: Path, settings: Mapping[str, Any], measured: Mapping[int, Mapping[str, Any]]
) -> None:
    steps = {str(step): measured[step] for step in sorted(measured)}
    output.mkdir(parents=True, exist_ok=True)
    values = {"settings": settings, "steps": steps}
    atomic_write(output / CURVE, json.dumps(values, indent=2) + "\n")


def _write_curves(output: Path, steps: Steps) -> None:
    """Writes curve.md, and a picture for each case that begins with `HELD_OUT`."""
    lines = ["# Scores over the steps of a run", ""]
    cases = dict.fromkeys(case for scores in steps.values() for case in scores)
    for case in cases:
        if not case.startswith(HELD_OUT):
            continue
        picture = f"curve_{file_name(case)}.png"
        panels = score_panels(steps, case)
        if not panels:
            continue
        write_png(output / picture, plot(panels), overwrite=True)
        lines += [f"## {case}", "", best_steps(steps, case), ""]
        lines += [*_table(steps, case), "", f"![{case}]({quote(picture)})", ""]
    last = steps[max(steps)]
    lines += ["## What the scores mean", "", *legend(last), ""]
    reports = [f"[{step}](steps/{step}/report.md)" for step in steps]
    lines += [f"Reports of the steps: {', '.join(reports)}.", ""]
    atomic_write(output / "curve.md", "\n".join(lines))


def _own_scores(steps: Steps, case: str) -> list[str]:
    """The names of the model's scores of a case that differ between steps."""
    found = []
    for name in SCORES:
        values = set(_curve(steps, case, name).values)
        if len(values) > 1 or (values and len(steps) == 1):
            found.append(name)
    return found


def score_panels(steps: Steps, case: str) -> list[Panel]:
    """A panel for each score of a case, with the baselines beside the model."""
    panels = []
    for name in _own_scores(steps, case):
        curves = {}
        for candidate, words in {"": "model", **CANDIDATES}.items():
            key = f"{name}_{candidate}" if candidate else name
            curve = _curve(steps, case, key)
            if curve.steps:
                curves[words] = curve
        unit = f", {SCORES[name].unit}" if SCORES[name].unit else ""
        better = SCORES[name].better
        which = "1 is best" if "near" in better else f"{better} is better"
        panels.append(Panel(f"{name}{unit} ({which})", curves))
    return panels


def _curve(steps: Steps, case: str, key: str) -> Curve:
    values = {}
    for step, scores in steps.items():
        if key in scores.get(case, {}):
            values[step] = scores[case][key]
    return Curve(list(values), list(values.values()), dots=True)


def best_steps(steps: Steps, case: str) -> str:
    """Which step is best by each score, in words."""
    by_step: dict[int, list[str]] = {}
    for name in _own_scores(steps, case):
        values = dict(zip(*_curve(steps, case, name)[:2], strict=True))
        better = SCORES[name].better
        distances = {
            "higher": {step: -value for step, value in values.items()},
            "lower": values,
            "near 1": {step: abs(value - 1) for step, value in values.items()},
        }[better]
        best = min(distances, key=lambda step: (distances[step], step))
        by_step.setdefault(int(best), []).append(name)
    said = [f"step {step} by {', '.join(names)}" for step, names in sorted(by_step.items())]
    return f"Best: {'; '.join(said)}." if said else ""


def _table(steps: Steps, case: str) -> Sequence[str]:
    names = _own_scores(steps, case)
    lines = ["| step | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for step, scores in steps.items():
        own = scores.get(case, {})
        cells = [f"{own[name]:.4g}" if name in own else "" for name in names]
        lines.append(f"| {step} | " + " | ".join(cells) + " |")
    return lines

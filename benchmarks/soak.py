"""Kills a training run repeatedly, and compares its end with that of an undisturbed run.

    python -m benchmarks.soak --workdir=runs/soak              # 30 kills of a tiny run of 400 steps
    python -m benchmarks.soak --workdir=runs/soak --kills=4

Both runs are `python -m videomar_jax.main --config=configs/quickstart.py:tiny`, with a checkpoint
every 5 steps. Half of the kills are SIGTERM, after which the run must save and end with exit code
75; half are SIGKILL. Most come at a random step, some while a checkpoint is being written, some
while the program is still starting, the last one while the report is made. After each kill the same
command is given again. The soak passes (exit code 0, else 1) if

1. every exit code was the expected one, and no kill cost more than the steps since the last
   complete checkpoint;
2. parameters, averages and optimizer state at the end equal those of the undisturbed run to the
   last bit;
3. metrics.jsonl holds each step once, with the same numbers, and the report the same scores.

Prints a line for each kill and writes WORKDIR/soak.json.
"""

import argparse
import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from videomar_jax.checkpoints.compatibility import leaves
from videomar_jax.checkpoints.manager import Checkpoints
from videomar_jax.io.signals import CTRL_C, INTERRUPTED

ROOT = Path(__file__).parents[1]
CLOCKED = re.compile(r"_per_second$|^data_wait$|^mfu$|^device_memory|seconds")
"""Numbers of the record that depend on the clock."""
AIMS = ("step", "save", "step", "start", "step", "save")
"""When kills come: at a step, while a checkpoint is saved, before the first step."""
HEADER = "| kill | signal | when | at step | exit code | complete checkpoint | steps lost |"


class Failed(Exception):
    """The soak found a defect."""


@dataclasses.dataclass
class Kill:
    """One kill: what was planned, and then what happened."""

    signal: str
    aim: str
    target: int  # the first step at which it may come
    when: str = ""
    step: int = 0  # the last step done
    code: int = 0
    checkpoint: int = 0  # the step of the newest complete one afterwards
    lost: int = 0  # steps that must be done again

    def row(self, number: int) -> str:
        """A line of the table."""
        cells = (number, self.signal, self.when, self.step, self.code, self.checkpoint, self.lost)
        return f"| {' | '.join(map(str, cells))} |"


class Run:
    """A training run in its own folder, started and killed from outside."""

    def __init__(self, workdir: Path, every: int, overrides: list[str]):
        self.workdir, self.every, self.overrides = workdir, every, overrides
        self.log = workdir.with_suffix(".log")
        self.process: subprocess.Popen | None = None
        self.start_seconds = 10.0  # from the command to the first step, as last measured

    def start(self) -> None:
        """Starts the command; its output goes to the log beside the workdir."""
        command = [
            sys.executable,
            "-m",
            "videomar_jax.main",
            f"--config={ROOT / 'configs/quickstart.py'}:tiny",
            f"--workdir={self.workdir}",
            f"--config.run.checkpoint_every={self.every}",
            *self.overrides,
        ]
        self.started = time.monotonic()
        self.printed = self.log.stat().st_size if self.log.exists() else 0
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)

    def end(self, seconds: float = 3600.0) -> int:
        """Waits for the current start to end; returns its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise Failed(f"the run did not end within {seconds:.0f} s; see {self.log}") from None

    def output(self) -> str:
        """What the current start has printed."""
        with open(self.log, "rb") as log:
            log.seek(self.printed)
            return log.read().decode(errors="replace")

    def step(self) -> int:
        """The last step in the record."""
        try:
            with open(self.workdir / "metrics.jsonl", "rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - 8192, 0))
                lines = file.read().split(b"\n")
        except FileNotFoundError:
            return 0
        return json.loads(lines[-2])["step"] if len(lines) > 1 else 0

    def record(self) -> list[dict]:
        """The lines of metrics.jsonl that are complete."""
        try:
            lines = (self.workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def entries(self) -> list[str]:
        """The names in the checkpoint folder."""
        folder = self.workdir / "checkpoints"
        return [entry.name for entry in folder.iterdir()] if folder.exists() else []

    def checkpoint(self) -> int:
        """The newest complete checkpoint, 0 for none."""
        return max((int(name) for name in self.entries() if name.isdecimal()), default=0)

    def is_saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return any(name.endswith("-tmp") for name in self.entries())


def plan(kills: int, total: int, every: int, rng: random.Random) -> list[Kill]:
    """Kills in order, spread over the run; half of each signal, in random order."""
    targets = sorted(rng.randrange(1, max(total - 2 * every, 2)) for _ in range(kills - 1))
    signals = [("SIGTERM", "SIGKILL")[i % 2] for i in range(kills)]
    aims = [AIMS[i % len(AIMS)] for i in range(kills - 1)]
    rng.shuffle(signals)
    rng.shuffle(aims)
    return [Kill(*each) for each in zip(signals, [*aims, "report"], [*targets, total], strict=True)]


def kill(run: Run, kill: Kill, rng: random.Random) -> None:
    """Starts the run, kills it as planned and records what happened."""
    before = run.checkpoint()
    run.start()
    _wait(run, kill, before, rng)
    started, saving = run.step() > before, run.is_saving()
    if not started:
        kill.when = "start"
    elif kill.aim == "report":
        kill.when = "report"
    else:
        kill.when = "save" if saving else "step"
    silent = not run.output()
    run.process.send_signal(signal.Signals[kill.signal])
    kill.code = run.end()
    kill.step, kill.checkpoint = max(run.step(), before), run.checkpoint()
    kill.lost = kill.step - kill.checkpoint
    _check_kill(run, kill, before, silent)


def _wait(run: Run, kill: Kill, before: int, rng: random.Random) -> None:
    """Returns at the moment of the kill."""

    def until(condition) -> None:
        while not condition():
            if run.process.poll() is not None:
                code = run.process.returncode
                raise Failed(f"the run ended with exit code {code} before it was killed: {run.log}")
            time.sleep(0.01)

    if kill.aim == "start":
        time.sleep(rng.uniform(0.0, run.start_seconds))
        return
    # The record of steps beyond the checkpoint has been removed.
    until(lambda: run.step() <= before)
    if kill.target > before or kill.aim != "report":
        until(lambda: run.step() > before)
        run.start_seconds = time.monotonic() - run.started
    until(lambda: run.step() >= kill.target)
    time.sleep(rng.uniform(0.0, 2.0 if kill.aim == "report" else 0.2))
    if kill.aim == "save":
        until(run.is_saving)
        time.sleep(rng.uniform(0.0, 0.1))


def _check_kill(run: Run, kill: Kill, before: int, silent: bool) -> None:
    """Raises Failed if a kill did not end as it must."""
    allowed = {-signal.SIGKILL} if kill.signal == "SIGKILL" else {INTERRUPTED}
    if kill.signal == "SIGTERM" and not kill.checkpoint:
        allowed.add(CTRL_C)  # there was nothing to save yet
    if kill.signal == "SIGTERM" and silent:
        allowed.add(-signal.SIGTERM)  # Python itself was still starting
    if kill.signal == "SIGTERM" and kill.when == "report":
        allowed.add(0)  # it came so late that nothing was left to save but the report
    if kill.code not in allowed:
        raise Failed(
            f"{kill.signal} ended the run with exit code {kill.code}, not {allowed}: see {run.log}"
        )
    if kill.checkpoint < before:
        raise Failed(f"the newest checkpoint was {before}, and is {kill.checkpoint} after the kill")
    found = re.search(r"continuing from the checkpoint of step (\d+)", run.output())
    if found and int(found[1]) != before:
        raise Failed(
            f"the run was continued from step {found[1]}, although checkpoint {before} is complete"
        )
    # At most one save is being written when the next one is due.
    most = 0 if kill.code == INTERRUPTED else 2 * run.every
    if kill.lost > most:
        raise Failed(f"{kill.signal} at step {kill.step} cost {kill.lost} steps, more than {most}")


def differences(ours: Path, theirs: Path, total: int) -> list[str]:
    """How the ends of two runs of `total` steps differ, in words; empty if they are equal."""
    return _states(ours, theirs, total) + _records(ours, theirs, total) + _reports(ours, theirs)


def _states(ours: Path, theirs: Path, step: int) -> list[str]:
    a, b = saved(ours, step), saved(theirs, step)
    if a.keys() != b.keys():
        return [
            f"the states hold different arrays: {sorted(map('/'.join, a.keys() ^ b.keys()))[:5]}"
        ]
    differ = [
        "/".join(name)
        for name in a
        if a[name].dtype != b[name].dtype or a[name].tobytes() != b[name].tobytes()
    ]
    return [f"{len(differ)} of {len(a)} arrays differ: {', '.join(differ[:5])}"] if differ else []


def saved(workdir: Path, step: int) -> dict[tuple[str, ...], np.ndarray]:
    """Every array of a checkpoint by its name, whatever parts it has."""
    folder = workdir / "checkpoints" / str(step)
    parts = [entry.name for entry in folder.iterdir() if (entry / "_METADATA").exists()]
    handler = ocp.StandardCheckpointHandler()
    like = {
        part: jax.tree.map(
            lambda leaf: np.empty(leaf.shape, leaf.dtype), handler.metadata(folder / part).tree
        )
        for part in parts
    }
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return leaves(checkpoints.restore(step, like)[0])


def _records(ours: Path, theirs: Path, total: int) -> list[str]:
    found = []
    rows = [
        [row for row in Run(workdir, 1, []).record() if "loss" in row] for workdir in (ours, theirs)
    ]
    for workdir, record in zip((ours, theirs), rows, strict=True):
        steps = [row["step"] for row in record]
        if steps != list(range(1, total + 1)):
            found.append(
                f"{workdir / 'metrics.jsonl'} does not hold the steps 1 to {total} once each: "
                f"{steps}"
            )
    for a, b in zip(*rows, strict=False):
        keys = [
            key
            for key in a.keys() | b.keys()
            if not CLOCKED.search(key) and a.get(key) != b.get(key)
        ]
        if keys:
            found.append(f"the records of step {a['step']} differ in {', '.join(sorted(keys))}")
            break
    return found


def _reports(ours: Path, theirs: Path) -> list[str]:
    a, b = (
        json.loads((workdir / "report.json").read_text())["cases"] for workdir in (ours, theirs)
    )
    return [] if a == b else ["the scores of report.json differ"]


def soak(run: Run, undisturbed: Path, kills: list[Kill], total: int, rng: random.Random) -> None:
    """Kills `run` as planned, lets it end, and compares it with the undisturbed one.

    Raises:
        Failed: at the first defect.
    """
    print(HEADER, re.sub(r"[^|]+", "---", HEADER), sep="\n", flush=True)
    for number, each in enumerate(kills, 1):
        kill(run, each, rng)
        print(each.row(number), flush=True)
    finish(run)
    if found := differences(run.workdir, undisturbed, total):
        raise Failed("; ".join(found))


def finish(run: Run) -> None:
    """Gives the command and lets it end."""
    run.start()
    if code := run.end(4 * 3600):
        raise Failed(f"the run ended with exit code {code}: see {run.log}")


def main() -> int:
    arguments = _arguments()
    workdir = arguments.workdir.expanduser().absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    if any((workdir / name).exists() for name in ("killed", "undisturbed")):
        raise SystemExit(f"{workdir} holds a soak already; choose another --workdir.")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(workdir / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    rng = random.Random(arguments.seed)
    total = 2 * arguments.steps
    overrides = [f"--config.curriculum[{row}].steps={arguments.steps}" for row in (0, 1)]
    kills = plan(arguments.kills, total, arguments.every, rng)
    began, verdict = time.monotonic(), "passed"
    try:
        print(f"an undisturbed run of {total} steps", flush=True)
        finish(Run(workdir / "undisturbed", arguments.every, overrides))
        soak(
            Run(workdir / "killed", arguments.every, overrides),
            workdir / "undisturbed",
            kills,
            total,
            rng,
        )
    except Failed as failure:
        verdict = f"FAILED: {failure}"
    lost = [each.lost for each in kills if each.when]
    result = {
        "verdict": verdict,
        "minutes": (time.monotonic() - began) / 60,
        "kills": list(map(vars, kills)),
    }
    (workdir / "soak.json").write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"{len(lost)} kills, {sum(lost)} steps lost in all, {max(lost, default=0)} at most; "
        f"{result['minutes']:.0f} minutes: {verdict}",
        flush=True,
    )
    return verdict != "passed"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True, help="a new folder for both runs")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=200, help="of each of the two stages")
    parser.add_argument("--every", type=int, default=5, help="steps between two checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="of signals and moments")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

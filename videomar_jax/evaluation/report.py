"""Scores of generated clips, and the report that shows them.

A `Case` holds true clips and the prompts they are regenerated from, given their first frames.
Scores leave the given frames out, but for `given_psnr`, which is theirs, and FVD, which is of whole
clips. Beside each score of `metrics.METRICS` stand those of repeating the last given frame, which a
model must beat, of the linear predictor where there is one, which it should beat, and of encoding
and decoding the truth, which no model over these latents can beat but by what
`sampling.still_detail` adds.

`report_text` writes them down.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from videomar_jax.evaluation.baselines import repeat_last
from videomar_jax.evaluation.metrics import Clips, copy_first
from videomar_jax.evaluation.networks import FeatureCard, Networks
from videomar_jax.evaluation.scorecard import (
    CEILING,
    LINEAR,
    MODEL,
    OTHER_CAPTION,
    Scorecard,
    copy_name,
)

Generate = Callable[[np.ndarray, Sequence[str], int, Sequence[int]], np.ndarray]
"""(given frames [N, G, Hp, Wp, 3], prompts, frames in all, seeds) → clips."""
Measure = Callable[[np.ndarray, np.ndarray], dict[str, float]]
"""(generated, true clips) → scores."""
Reconstruct = Callable[[np.ndarray], np.ndarray]
"""Clips → encoded and decoded clips."""

# Bytes of clips that are scored at a time, and of clips that are kept for pictures.
_AT_A_TIME = 2**27
_FOR_PICTURES = 2**29


@runtime_checkable
class ClipReader(Protocol):
    """Clips that are read when they are asked for; an array [N, F, Hp, Wp, 3] is one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, clips: slice) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Some clips of a case that are also scored by themselves."""

    name: str
    """Of the scores, and of the files with pictures."""
    title: str
    """For people."""
    clips: Sequence[int]
    """Numbers of the clips."""
    in_pictures: bool = True
    """Some of them are kept for pictures."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Clips to regenerate."""

    name: str
    """Of the scores, and of the files with pictures."""
    title: str
    """For people."""
    reference: ClipReader | Clips
    """The true clips, [N, F, Hp, Wp, 3]."""
    prompts: Sequence[str]
    """What is asked for, one for each clip."""
    given: int = 1
    """Frames that each clip is continued from."""
    measure: Measure | None = None
    """Further scores, of drawn objects whose place is known; None for footage."""
    other_prompts: Sequence[str] | None = None
    """For each clip the caption of another one, to see what captions are worth; "" leaves a clip
    out."""
    parts: Sequence[Part] = ()
    """What is also scored by itself."""


class Shown(NamedTuple):
    """One clip for pictures."""

    caption: str
    videos: dict[str, np.ndarray]
    """What is shown one below the other, by label: "truth", "generated", baselines."""


class Scored(NamedTuple):
    """What became of a case."""

    scores: dict[str, dict[str, float]]
    """By the name of the case and of its parts."""
    shown: dict[str, list[Shown]]
    """A few clips of the case and of its parts."""
    ranked: list[Shown]
    """The best, the median and the worst clip, by how much PSNR they gain over repeating the last
    given frame; [] of fewer than three clips."""
    notes: list[str]
    """What was not computed, and why."""


def quality(generated: Clips, reference: Clips, reconstruction: Clips) -> dict[str, float]:
    """Every score of clips that were given one frame, of repeating it, and of the tokenizer's
    ceiling."""
    card = Scorecard()
    candidates = {
        MODEL: generated,
        copy_name(1): copy_first(reference),
        CEILING: reconstruction,
    }
    card.add(candidates, reference, 1)
    return card.scores()


def score(
    case: Case,
    generate: Generate,
    reconstruct: Reconstruct,
    *,
    linear: Generate | None = None,
    networks: Networks | None = None,
    batch_size: int = 1,
    show: int = 4,
) -> Scored:
    """All scores of a case and of its parts, and a few clips to show.

    Clips are read, generated and scored some at a time; clip i is drawn with seed i.

    Args:
        linear: the linear predictor, if there is one.
        networks: for the scores that need one, of the clips that they can take.
        batch_size: clips that `generate` works on at a time, which is called for whole batches.
        show: clips to keep of the case, and of each part, for pictures; fewer if they are large.
    """
    count, frames = case.reference.shape[:2]
    clip_bytes = int(np.prod(case.reference.shape[1:]))
    step = max(1, _AT_A_TIME // clip_bytes // batch_size) * batch_size
    networks, notes = (networks or Networks()).suited(case.reference.shape)
    card = Scorecard(networks.metrics())
    features = None if networks.i3d is None else FeatureCard(networks.i3d)
    shown = _clips_to_show(case, show, clip_bytes)
    to_keep = set().union(*shown.values())
    to_rank = set(_spread(range(count), max(1, _FOR_PICTURES // clip_bytes)))
    kept: dict[int, Shown] = {}
    generated: dict[int, np.ndarray] = {}
    drawn: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, count, step):
        seeds = range(start, min(start + step, count))
        chosen = slice(seeds.start, seeds.stop)
        reference = np.asarray(case.reference[chosen])
        given, prompts = reference[:, : case.given], list(case.prompts[chosen])
        videos = {
            MODEL: generate(given, prompts, frames, seeds),
            copy_name(case.given): repeat_last(given, prompts, frames),
        }
        if linear is not None:
            videos[LINEAR] = linear(given, prompts, frames, seeds)
        for number in to_keep.intersection(seeds):
            row = number - start
            kept[number] = Shown(case.prompts[number], _shown(case, reference, videos, row))
        for number in to_rank.intersection(seeds):
            generated[number] = videos[MODEL][number - start].copy()
        videos[CEILING] = reconstruct(reference)
        if features is not None:
            judged = (MODEL, copy_name(case.given), CEILING)
            features.add({name: videos[name] for name in judged}, reference)
        counted = {}
        if case.other_prompts is not None:
            others = list(case.other_prompts[chosen])
            videos[OTHER_CAPTION] = generate(given, others, frames, seeds)
            counted[OTHER_CAPTION] = np.array([bool(prompt) for prompt in others])
        card.add(videos, reference, case.given, counted)
        if case.measure is not None:
            drawn.append((videos[MODEL], reference))
    scores = {case.name: _scores(card, case, range(count))}
    if features is not None:
        scores[case.name] |= features.scores()
    if case.measure is not None:
        made, truth = (np.concatenate(clips) for clips in zip(*drawn, strict=True))
        scores[case.name] |= case.measure(made, truth)
    for part in case.parts:
        scores[part.name] = _scores(card, case, part.clips)
    return Scored(
        scores,
        {name: [kept[i] for i in numbers] for name, numbers in shown.items()},
        _ranked(case, card, generated),
        notes,
    )


def _ranked(case: Case, card: Scorecard, generated: Mapping[int, np.ndarray]) -> list[Shown]:
    """The best, median and worst of these generated clips (by number) beside the truth."""
    if len(generated) < 3:
        return []
    numbers = sorted(generated)
    ours = card.values("psnr", MODEL)[numbers]
    copies = card.values("psnr", copy_name(case.given))[numbers]
    order = np.argsort(ours - copies, kind="stable")
    places = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
    found = []
    for label, place in places.items():
        number = numbers[place]
        caption = case.prompts[number] or "(no caption)"
        title = f"{label}, {ours[place]:.1f} dB, repeating {copies[place]:.1f}: {caption}"
        truth = np.asarray(case.reference[number : number + 1])[0]
        found.append(Shown(title, {"truth": truth, "generated": generated[number]}))
    return found


def _scores(card: Scorecard, case: Case, clips: Sequence[int]) -> dict[str, float]:
    """Of these clips of a case."""
    scores = {"clips": float(len(clips))} | card.scores(clips)
    shares = {
        "better_than_copy": copy_name(case.given),
        "better_than_linear": LINEAR,
        "right_caption_better": OTHER_CAPTION,
    }
    for name, candidate in shares.items():
        share = card.wins(candidate, clips) if card.has(candidate) else None
        if share is not None:
            scores[name] = share
    if card.has(LINEAR):
        # Beside the model's own: a share says little without that of the simplest predictor.
        share = card.wins(copy_name(case.given), clips, of=LINEAR)
        if share is not None:
            scores[f"better_than_copy_{LINEAR}"] = share
    return scores


def _clips_to_show(case: Case, show: int, clip_bytes: int) -> dict[str, Sequence[int]]:
    """The numbers of the clips to show of the case and of its parts.

    Of footage they are evenly spread, since neighbours come from one file.
    """
    parts = [part for part in case.parts if part.in_pictures]
    most = _FOR_PICTURES // (len(_LABELS) * clip_bytes * (1 + len(parts)))
    show = min(show, max(1, most))
    if case.measure is not None:
        return {case.name: range(min(show, len(case.prompts)))}
    chosen = {case.name: _spread(range(len(case.prompts)), show)}
    for part in parts:
        chosen[part.name] = _spread(part.clips, show)
    return chosen


def _spread(numbers: Sequence[int], most: int) -> Sequence[int]:
    """At most so many of the numbers, evenly spread."""
    if len(numbers) <= most:
        return numbers
    return [numbers[int((i + 0.5) * len(numbers) / most)] for i in range(most)]


_LABELS = ("truth", "generated", "linear predictor", "repeated frame")


def _shown(
    case: Case, reference: Clips, videos: Mapping[str, Clips], row: int
) -> dict[str, np.ndarray]:
    """Clip `row` of a batch by label; of drawn objects without the baselines."""
    found = {"truth": reference, "generated": videos[MODEL]}
    if case.measure is None:
        if LINEAR in videos:
            found["linear predictor"] = videos[LINEAR]
        found["repeated frame"] = videos[copy_name(case.given)]
    return {label: clips[row].copy() for label, clips in found.items()}


def sheet_rows(shown: Sequence[Shown]) -> list[tuple[str, np.ndarray]]:
    """Labelled rows for a contact sheet: each clip above what was made of it."""
    rows = []
    for caption, videos in shown:
        for label, video in videos.items():
            rows.append((f"{label}: {caption or '(no caption)'}", video))
    return rows

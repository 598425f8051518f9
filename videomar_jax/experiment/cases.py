"""What is generated and scored at the end of a run, for moving shapes and for footage."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from videomar_jax.data.loader import fixed_clips
from videomar_jax.data.shapes import Shapes
from videomar_jax.data.sources import ClipShape, ClipSource, name_of
from videomar_jax.evaluation import motion
from videomar_jax.evaluation.report import Case, Part
from videomar_jax.io.log import log
from videomar_jax.types import UInt8

SHOWN_APART = 8
"""Clips of footage that the report shows each by itself; of more it shows none."""
_KEPT_BYTES = 2**29


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseSettings:
    """What the cases of a run depend on.

    shape: the clips of the last stage.
    clips: how many are scored in each case, at most.
    seed: of the run.
    temporal_stride: pixel frames of one latent frame.
    token_side: pixels along each side of a token.
    given: frames that footage is continued from; each gives a case.
    """

    shape: ClipShape
    clips: int
    seed: int
    temporal_stride: int
    token_side: int
    given: tuple[int, ...] = (1,)


def shape_cases(held_out: Shapes, settings: CaseSettings) -> list[Case]:
    """The cases of captioned moving shapes, most of which ask for something training lacked.

    held_out             held-out clips
    unseen_triples       colour, shape and direction that never came together in training
    counterfactual       one first frame with four captions
    shuffled_captions    the control: captions of other clips
    longer               one latent frame more than the last stage
    larger               a canvas about 1.5 times as large
    """
    shape, count = settings.shape, settings.clips
    clips = fixed_clips(held_out, range(count), shape=shape)
    order = np.random.default_rng(settings.seed).permutation(count)
    unseen = dataclasses.replace(held_out, split="unseen")
    longer = dataclasses.replace(shape, num_frames=shape.num_frames + settings.temporal_stride)
    larger = larger_shape(shape, settings.token_side)
    fewer = range((count + 1) // 2)
    return [
        _shape_case("held_out", "Held-out clips", clips),
        _shape_case(
            "unseen_triples",
            "Colour, shape and direction never seen together",
            fixed_clips(unseen, range(count), shape=shape),
        ),
        _shape_case(
            "counterfactual",
            "One first frame, four captions",
            _counterfactuals(held_out, shape, count),
        ),
        _shape_case(
            "shuffled_captions",
            "Control: captions of other clips",
            clips,
            [clips["caption"][number] for number in order],
        ),
        _shape_case(
            "longer",
            f"One latent frame beyond training: {longer.num_frames} frames",
            fixed_clips(held_out, fewer, shape=longer),
        ),
        _shape_case(
            "larger",
            f"A larger canvas: {larger.height}x{larger.width}",
            fixed_clips(held_out, fewer, shape=larger),
        ),
    ]


def footage_cases(held_out: ClipSource, settings: CaseSettings) -> list[Case]:
    """All held-out windows, continued from each number of given frames; beside them those of each
    clip with a name, if there are few clips.

    Where windows have different captions, each is also asked for with another one.
    """
    count = min(settings.clips, len(held_out))
    windows = HeldOutWindows(held_out, range(count), settings.shape)
    others = other_captions(windows.captions)
    by_name: dict[str, list[int]] = {}
    for index in range(count):
        name = name_of(held_out, index)
        if name:
            by_name.setdefault(name, []).append(index)
    given = fitting_given(settings.given, settings.shape.num_frames, settings.temporal_stride)
    taken = {_case_name("held_out", frames, given) for frames in given}
    cases = []
    for frames in given:
        from_frames = f"from {frames} frame{'s' if frames > 1 else ''}"
        parts = []
        for name in by_name if len(by_name) <= SHOWN_APART else ():
            case_name = _case_name(name, frames, given)
            # The report needs different names, and this one may be taken.
            while case_name in taken:
                case_name = f"clip {case_name}"
            taken.add(case_name)
            title = f"Held-out part of {name}, {from_frames}"
            # From the most frames, since then most is known of what comes.
            in_pictures = frames == max(given)
            part = Part(name=case_name, title=title, clips=by_name[name], in_pictures=in_pictures)
            parts.append(part)
        whole = Case(
            name=_case_name("held_out", frames, given),
            title=f"Held-out footage, {from_frames}",
            reference=windows,
            prompts=windows.captions,
            given=frames,
            other_prompts=others,
            parts=parts,
        )
        cases.append(whole)
    return cases


def _case_name(name: str, frames: int, given: Sequence[int]) -> str:
    """Of a case that continues `frames` frames; the first of `given` needs no mention."""
    return name if frames == given[0] else f"{name}_given_{frames}"


def fitting_given(wanted: Sequence[int], num_frames: int, temporal_stride: int) -> tuple[int, ...]:
    """The numbers of given frames that a clip can be continued from: 1 + temporal_stride k.

    Others are rounded up, and those that leave nothing to generate are left out; the log says so.
    """
    found: list[int] = []
    for frames in wanted:
        fitting = 1 + -(-(frames - 1) // temporal_stride) * temporal_stride
        if fitting >= num_frames:
            log.info(
                "evaluation.given: clips of %d frames are not continued from %d",
                num_frames,
                fitting,
            )
            continue
        if fitting != frames:
            log.info(
                "evaluation.given: the tokenizer codes frames by %d: %d given frames instead of %d",
                temporal_stride,
                fitting,
                frames,
            )
        if fitting not in found:
            found.append(fitting)
    return tuple(found) or (1,)


def other_captions(captions: Sequence[str]) -> list[str] | None:
    """For each caption another one, drawn uniformly from those that differ; "" where there is none
    to replace. None if there are fewer than two captions."""
    distinct = sorted(set(captions) - {""})
    if len(distinct) < 2:
        return None
    random = np.random.default_rng(0)
    found = []
    for caption in captions:
        others = [other for other in distinct if other != caption]
        found.append(others[random.integers(len(others))] if caption else "")
    return found


class HeldOutWindows:
    """Clips of a source as an array [N, F, Hp, Wp, 3] that is read slice by slice.

    They stay in memory if they are small enough.
    """

    def __init__(self, source: ClipSource, indices: Sequence[int], shape: ClipShape):
        self._source, self._indices, self._shape = source, indices, shape
        self.shape = (len(indices), shape.num_frames, shape.height, shape.width, 3)
        self._video: np.ndarray | None = None
        self.captions: list[str] = []
        """The caption of each clip."""
        keep = int(np.prod(self.shape)) <= _KEPT_BYTES
        videos = []
        for index in indices:
            clip = fixed_clips(source, [index], shape=shape)
            self.captions += clip["caption"]
            if keep:
                videos.append(clip["video"])
        if keep:
            self._video = np.concatenate(videos)

    def __getitem__(self, clips: slice) -> UInt8[np.ndarray, "N F Hp Wp 3"]:
        if self._video is not None:
            return self._video[clips]
        return fixed_clips(self._source, self._indices[clips], shape=self._shape)["video"]


def larger_shape(shape: ClipShape, token_side: int) -> ClipShape:
    """The shape with sides 1.5 times as long, in whole tokens and at least one token longer."""

    def larger(side: int) -> int:
        return max(side * 3 // 2 // token_side, side // token_side + 1) * token_side

    return dataclasses.replace(shape, height=larger(shape.height), width=larger(shape.width))


def _shape_case(
    name: str, title: str, clips: Mapping[str, Any], prompts: Sequence[str] | None = None
) -> Case:
    """A case of moving shapes, whose captions say where each goes.

    prompts: what is asked for; None for the captions.
    """
    directions = [motion.direction_of(caption) for caption in clips["caption"]]
    return Case(
        name=name,
        title=title,
        reference=clips["video"],
        prompts=prompts or clips["caption"],
        measure=functools.partial(motion.movement, directions=directions),
    )


def _counterfactuals(held_out: Shapes, shape: ClipShape, count: int) -> dict[str, Any]:
    """At least `count` clips, in groups of four with one first frame."""
    clips = []
    for group in range((count + 3) // 4):
        clips += held_out.counterfactuals(group, shape)
    return {
        "video": np.stack([clip["video"] for clip in clips]),
        "caption": [clip["caption"] for clip in clips],
    }

"""What is generated and scored at the end of a run, for moving shapes and for footage."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from videomar_jax.data.loader import fixed_clips
from videomar_jax.data.shapes import Shapes
from videomar_jax.data.sources import ClipShape, ClipSource, name_of
from videomar_jax.evaluation import motion
from videomar_jax.evaluation.report import Case

SHOWN_APART = 8
"""Clips of footage that the report shows each by itself."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseSettings:
    """What the cases of a run depend on.

    shape: the clips of the last stage.
    clips: how many are scored in each case, at most.
    seed: of the run.
    temporal_stride: pixel frames of one latent frame.
    token_side: pixels along each side of a token.
    """

    shape: ClipShape
    clips: int
    seed: int
    temporal_stride: int
    token_side: int


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
    """All held-out windows, and beside them those of each of the first few clips with a name."""
    count = min(settings.clips, len(held_out))
    clips = fixed_clips(held_out, range(count), shape=settings.shape)
    whole = Case(
        name="held_out",
        title="Held-out footage",
        reference=clips["video"],
        prompts=clips["caption"],
    )
    windows: dict[str, list[int]] = {}
    for index in range(count):
        name = name_of(held_out, index)
        if name:
            windows.setdefault(name, []).append(index)
    cases = [whole]
    for name in list(windows)[:SHOWN_APART]:
        # The report needs different names, and one of them is taken.
        case_name = f"clip {name}" if name == whole.name else name
        cases.append(
            Case(
                name=case_name,
                title=f"Held-out part of {name}",
                reference=clips["video"][windows[name]],
                prompts=[clips["caption"][index] for index in windows[name]],
            )
        )
    return cases


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
    return Case(
        name=name,
        title=title,
        reference=clips["video"],
        prompts=prompts or clips["caption"],
        directions=[motion.direction_of(caption) for caption in clips["caption"]],
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

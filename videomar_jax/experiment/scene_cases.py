"""What is generated and scored at the end of a run on drawn scenes."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from videomar_jax.data.scene_objects import Action, Scene, possible_actions
from videomar_jax.data.scene_pictures import render
from videomar_jax.data.scenes import Scenes
from videomar_jax.data.sources import ClipShape
from videomar_jax.evaluation.acting import Known, acting
from videomar_jax.evaluation.report import Case
from videomar_jax.experiment.cases import CaseSettings, larger_shape

LONGER = 4
"""Times the trained length."""


def scene_cases(held_out: Scenes, settings: CaseSettings) -> list[Case]:
    """The cases of scenes, most of which ask for something that training lacked.

    held_out              held-out clips
    unseen_combinations   colour, kind and action that never came together in training
    counterfactual        the first pictures of the held-out clips, each with another caption
    longer                four times the length of the last stage
    larger                a room about 1.5 times as large, its objects as large as before
    """
    shape, count = settings.shape, settings.clips
    fewer = (count + 1) // 2
    stride = settings.temporal_stride
    # Whole latent frames after the first one.
    frames = 1 + stride * round(LONGER * (shape.num_frames - 1) / stride)
    longer = dataclasses.replace(shape, num_frames=frames)
    larger = larger_shape(shape, settings.token_side)
    roomier = dataclasses.replace(held_out, unit=held_out.unit or min(shape.height, shape.width))
    unseen = dataclasses.replace(held_out, split="unseen")
    return [
        _case("held_out", "Held-out clips", held_out, shape, count),
        _case(
            "unseen_combinations",
            "Colour, object and action never seen together",
            unseen,
            shape,
            count,
        ),
        _case(
            "counterfactual",
            "First pictures of held-out clips, another caption",
            held_out,
            shape,
            count,
            other_action=True,
        ),
        _case("longer", f"{LONGER} times as long: {frames} frames", held_out, longer, fewer),
        _case("larger", f"A larger room: {larger.height}x{larger.width}", roomier, larger, fewer),
    ]


def _case(
    name: str,
    title: str,
    source: Scenes,
    shape: ClipShape,
    count: int,
    *,
    other_action: bool = False,
) -> Case:
    """Clips 0..count-1 of the source.

    other_action: show what the first pictures could lead to as well, instead of what they do.
    """
    videos, prompts, known = [], [], []
    for index in range(count):
        scene = source.scene(index, shape)
        actions = possible_actions(scene)
        if other_action and len(actions) > 1:
            chosen = 1 + np.random.default_rng([source.seed, index]).integers(len(actions) - 1)
            actions = [actions[chosen], *actions[:chosen], *actions[chosen + 1 :]]
        video, facts = draw_known(scene, actions, shape, unit=source.unit)
        videos.append(video)
        prompts.append(dataclasses.replace(scene, action=actions[0]).caption())
        known.append(facts)
    return Case(
        name=name,
        title=title,
        reference=np.stack(videos),
        prompts=prompts,
        measure=functools.partial(acting, known=known),
    )


def draw_known(
    scene: Scene, actions: Sequence[Action], shape: ClipShape, *, unit: int = 0
) -> tuple[np.ndarray, Known]:
    """The clip [F, Hp, Wp, 3] of a scene with the first of the actions, and what is known of it.

    actions: all that could begin with the scene's first picture; unit: see `Scenes.unit`.
    """
    draw = functools.partial(render, shape=shape, unit=unit)
    shown = actions[0]
    other_actions, other_speeds = [], []
    for action in actions[1:]:
        same = (action.verb, action.side) == (shown.verb, shown.side)
        clips = other_speeds if same else other_actions
        clips.append(draw(dataclasses.replace(scene, action=action)))
    background = draw(scene, actor=False)
    return draw(dataclasses.replace(scene, action=shown)), Known(
        background, other_actions, other_speeds
    )

"""Scenes: captioned clips of shaded objects in a room, drawn on demand at any size.

One to three objects (`scene_objects`) stand in a room (`scene_pictures`); the caption says what one
of them does:

    "a red ball rolls to the left quickly"
    "a striped blue cube falls"
    "a small green star passes behind a white cube to the right slowly"

Each kind and action lack one colour in training; the split "unseen" consists of these combinations
of colour, kind and action.
"""

import colorsys
import dataclasses
import math
from typing import ClassVar, Literal, NamedTuple, get_args

import numpy as np

from videomar_jax.checks import Count, Fraction, Natural, UserError, check_fields
from videomar_jax.data.scene_objects import (
    ACTIONS,
    COLOURS,
    IN_THE_AIR,
    KINDS,
    SIDEWAYS,
    SIZES,
    SPEEDS,
    TEXTURES,
    Action,
    Path,
    Scene,
    Thing,
    path_of,
)
from videomar_jax.data.scene_pictures import pixel_size, render
from videomar_jax.data.sources import Clip, ClipShape, SourceKind, check_index, short_digest

FLOOR = (0.74, 0.93)
"""Where objects stand, from back to front."""
MIN_SIDE = 32
MIN_WIDTH = 0.6
"""Of a room, in units: what grows fits in."""

Split = Literal["train", "test", "unseen"]
SPLITS: tuple[Split, ...] = get_args(Split)


class Combination(NamedTuple):
    """What a caption always names."""

    colour: str
    kind: str
    action: str


def _held_out(combination: Combination) -> bool:
    if combination.action == "rolls":
        # Only balls do: a colour left out would never roll at all.
        return False
    kind, action = KINDS.index(combination.kind), ACTIONS.index(combination.action)
    return list(COLOURS).index(combination.colour) == (2 * kind + action) % len(COLOURS)


COMBINATIONS = tuple(
    Combination(colour, kind, action)
    for action in ACTIONS
    for kind in KINDS
    for colour in COLOURS
    # Only a ball can.
    if action != "rolls" or kind == "ball"
)
HELD_OUT = tuple(filter(_held_out, COMBINATIONS))
SEEN = tuple(combination for combination in COMBINATIONS if not _held_out(combination))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenes:
    """A source of scenes; a clip depends on (seed, split, index, clip shape) and the fields below.

    Raises:
        UserError: a value outside its range, by name.
    """

    KIND: ClassVar[SourceKind] = SourceKind(
        name="scenes", description="shaded objects in a room, drawn on demand"
    )
    fps: ClassVar[float] = 12.0

    seed: Natural
    """Of everything that is drawn."""
    length: Count
    """Clips."""
    split: Split
    """Which combinations of colour, kind and action: "train" and "test" draw from the seen ones,
    each from its own random stream; "unseen" from those held out."""
    open_captions: Fraction = 0.0
    """The share of the captions that leave the side, the speed or both to chance."""
    unit: Natural = 0
    """Pixels of the unit of length: objects then have as many pixels on every canvas, and a wider
    one shows a wider room. 0: the shorter side of the canvas is the unit."""

    def __post_init__(self):
        check_fields("Scenes", self)

    def __len__(self) -> int:
        return self.length

    def digest(self) -> str:
        """Of the settings, which are all that clips depend on."""
        return short_digest("scenes", *dataclasses.astuple(self))

    def read(self, index: int, rng: np.random.Generator, shape: ClipShape) -> Clip:
        """Clip number `index`; `rng` is not used.

        Raises:
            UserError: the canvas is too small, see `MIN_SIDE` and `MIN_WIDTH`.
        """
        scene = self.scene(index, shape)
        chance = self._stream(index, kind=1)
        left_out = chance.random() < self.open_captions
        side, speed = [(False, True), (True, False), (False, False)][chance.integers(3)]
        caption = scene.caption(side=side or not left_out, speed=speed or not left_out)
        return Clip(video=render(scene, shape, unit=self.unit), caption=caption)

    def scene(self, index: int, shape: ClipShape) -> Scene:
        """What clip number `index` shows on a canvas of this shape."""
        check_index(index, self.length)
        _check_canvas(shape, self.unit)
        rng = self._stream(index, kind=0)
        combinations = HELD_OUT if self.split == "unseen" else SEEN
        verbs = list(dict.fromkeys(found.action for found in combinations))
        verb = verbs[rng.integers(len(verbs))]
        # Actions come equally often, whatever number of kinds can do them.
        fitting = [found for found in combinations if found.action == verb]
        chosen = fitting[rng.integers(len(fitting))]
        width = shape.width * pixel_size(shape, self.unit)
        return _random_scene(chosen, rng, width)

    def path(self, index: int, shape: ClipShape) -> Path:
        """Where the acting object of clip `index` is, in pixels."""
        scene = self.scene(index, shape)
        pixel = pixel_size(shape, self.unit)
        found = path_of(scene.actor, scene.action, shape.num_frames, shape.width * pixel)
        below = shape.height * pixel - 1.0
        return Path(found.x / pixel, (found.y + below) / pixel, found.radius / pixel, found.angle)

    def _stream(self, index: int, *, kind: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS.index(self.split), kind, index])


def _check_canvas(shape: ClipShape, unit: int) -> None:
    if min(shape.height, shape.width) < MIN_SIDE:
        raise UserError(
            f"A canvas of {shape.height} x {shape.width} px has no room for a scene: ask for at "
            f"least {MIN_SIDE} x {MIN_SIDE}, or for data.kind='shapes'."
        )
    if shape.height < unit or shape.width < MIN_WIDTH * unit:
        raise UserError(
            f"A canvas of {shape.height} x {shape.width} px does not hold a scene whose unit is "
            f"{unit} px: ask for at least {unit} x {math.ceil(MIN_WIDTH * unit)}, or for a smaller "
            "data.unit."
        )


def _random_scene(chosen: Combination, rng: np.random.Generator, width: float) -> Scene:
    """A scene in which something of this colour and kind acts so, in a room as wide as `width`."""
    verb = chosen.action
    side = ("left", "right")[rng.integers(2)] if verb in SIDEWAYS else ""
    speed = list(SPEEDS)[rng.integers(2)] if verb not in IN_THE_AIR else ""
    actor = _random_actor(chosen, rng, width)
    behind = verb == "passes behind"
    colours = [colour for colour in COLOURS if colour != chosen.colour]
    others = []
    for _ in range(1 if behind else rng.integers(3)):
        colour = colours.pop(rng.integers(len(colours)))
        others.append(_random_other(colour, actor if behind else None, rng, width))
    wall_hue, ground_hue = rng.uniform(0, 1, 2)
    return Scene(
        actor=actor,
        action=Action(verb=verb, side=side, speed=speed),
        others=tuple(others),
        wall=_pastel(wall_hue, rng.uniform(0.70, 0.85), 0.12),
        ground=_pastel(0.04 + 0.10 * ground_hue, rng.uniform(0.60, 0.75), 0.30),
        boards=rng.uniform(0.0, 0.06),
        vanishing=rng.uniform(0.2, 0.8) * width,
    )


def _random_actor(chosen: Combination, rng: np.random.Generator, width: float) -> Thing:
    """The object that acts."""
    verb = chosen.action
    # What grows starts small enough for the room, what rolls shows that it does.
    sizes = [name for name in SIZES if verb != "grows" or name != "large"]
    textures = TEXTURES[1:] if verb in ("rolls", "turns") and chosen.kind == "ball" else TEXTURES
    size = sizes[rng.integers(len(sizes))]
    back, front = FLOOR
    # What it passes behind stands before it, all else behind it, so that it stays in sight.
    nearest = (back, back + 0.05) if verb == "passes behind" else (0.5 * (back + front), front)
    floor = rng.uniform(*nearest)
    return Thing(
        colour=chosen.colour,
        kind=chosen.kind,
        texture=textures[rng.integers(len(textures))],
        size=size,
        x=rng.uniform(SIZES[size], width - SIZES[size]),
        floor=floor,
        height=rng.uniform(0.18, 0.36) if verb in IN_THE_AIR else 0.0,
    )


def _random_other(
    colour: str, hides: Thing | None, rng: np.random.Generator, width: float
) -> Thing:
    """Something that stands still: in the way of `hides`, or behind all that acts."""
    size = list(SIZES)[rng.integers(2)]
    reach = SIZES[size]
    place = rng.uniform(reach, width - reach)
    back, front = FLOOR
    floor = (back, back + 0.04)
    if hides is not None:
        # Where that is in sight at first, and passes if it goes the right way.
        place = _before(hides, SIZES[hides.size] + reach, width, rng)
        floor = (front - 0.04, front)
    return Thing(
        colour=colour,
        kind=KINDS[rng.integers(len(KINDS))],
        texture=TEXTURES[rng.integers(len(TEXTURES))],
        size=size,
        x=place,
        floor=rng.uniform(*floor),
    )


def _before(actor: Thing, apart: float, width: float, rng: np.random.Generator) -> float:
    """A column for what stands in the way of the actor, on the side with more room."""
    side = 1.0 if actor.x < width / 2 else -1.0
    away = rng.uniform(apart, 1.6 * apart)
    return float(np.clip(actor.x + side * away, 0.1, width - 0.1))


def _pastel(hue: float, bright: float, saturation: float) -> tuple[float, float, float]:
    return colorsys.hsv_to_rgb(hue % 1.0, saturation, bright)

"""Moving shapes: captioned clips drawn on demand, for a first run and for tests.

One shape of radius R = 4.5 px moves at v = 1.5 px/frame in one of four directions over a dark
background. A bigger canvas shows more room around the same object: sizes are in pixels, never in
fractions of the canvas. The centre's coordinate along the motion is a triangle wave, so the shape
turns back when its edge touches the border:

    p(t) = lo + fold(s + v t),   fold(q) = L - |q mod 2L - L|,   lo = R - 1/2,   L = side - 2 R

with pixel centres at whole numbers. The coverage of a pixel is a linear ramp, 1.5 px wide, of the
signed distance to the outline.

Of the 6 x 3 x 4 triples (colour, shape, direction) 12 are held out: (2 shape + direction) mod 6 is
the number of the colour that is missing for this shape and direction. Each pair of shape and
direction then misses one colour, each colour misses two triples of different shape and direction,
and every pair of attributes is still seen in training.
"""

from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Literal, NamedTuple, get_args

import numpy as np

from videomar_jax.checks import Count, Natural, UserError, check_fields
from videomar_jax.data.sources import Clip, ClipShape, SourceKind, check_index, short_digest
from videomar_jax.types import Float, UInt8

BACKGROUND = 0.08
"""Brightness of every channel of the background, 0..1; pixels hold round(255 * BACKGROUND)."""
RADIUS = 4.5
"""Of the shape, in pixels."""
SPEED = 1.5
"""Pixels per frame."""
EDGE = 1.5
"""Width in pixels over which the outline fades into the background."""
MIN_SIDE = 16
"""Least rows and columns of a canvas."""
COLOURS = {
    "red": (0.95, 0.15, 0.15),
    "green": (0.15, 0.85, 0.25),
    "blue": (0.20, 0.35, 1.00),
    "yellow": (0.95, 0.90, 0.20),
    "magenta": (0.90, 0.25, 0.90),
    "white": (0.95, 0.95, 0.95),
}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Unit steps (x, y); rows grow downwards."""

Split = Literal["train", "test", "unseen"]
SPLITS: tuple[Split, ...] = get_args(Split)


class Triple(NamedTuple):
    """What a caption names."""

    colour: str
    shape: str
    direction: str

    @property
    def caption(self) -> str:
        """The triple in words."""
        return f"a {self.colour} {self.shape} moves {self.direction}"


def _held_out(triple: Triple) -> bool:
    shape, direction = SHAPES.index(triple.shape), list(DIRECTIONS).index(triple.direction)
    return list(COLOURS).index(triple.colour) == (2 * shape + direction) % len(COLOURS)


TRIPLES = tuple(Triple(*names) for names in product(COLOURS, SHAPES, DIRECTIONS))
HELD_OUT = tuple(triple for triple in TRIPLES if _held_out(triple))
SEEN = tuple(triple for triple in TRIPLES if not _held_out(triple))
_FULLY_SEEN = tuple(
    (colour, shape)
    for colour, shape in product(COLOURS, SHAPES)
    if all(Triple(colour, shape, direction) in SEEN for direction in DIRECTIONS)
)


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """A source of clips of moving shapes; a clip depends on (seed, split, index, clip shape) only.

    Raises:
        UserError: a value outside its range, by name.
    """

    KIND: ClassVar[SourceKind] = SourceKind(
        name="shapes", description="moving shapes, drawn on demand"
    )
    fps: ClassVar[float] = 12.0

    seed: Natural
    """Of everything that is drawn."""
    length: Count
    """Clips."""
    split: Split
    """Which triples: "train" and "test" draw from the 60 seen ones, each from its own random
    stream; "unseen" draws from the 12 held-out ones."""
    bounce: bool
    """True starts anywhere, so a clip may turn back at the border. False starts where the motion
    stays clear of the border; where the canvas is too small for that, the shape starts at the
    border behind it and turns back as late as possible."""

    def __post_init__(self):
        check_fields("Shapes", self)

    def __len__(self) -> int:
        return self.length

    def digest(self) -> str:
        """Of the settings, which are all that clips depend on."""
        return short_digest("shapes", self.seed, self.length, self.split, self.bounce)

    def read(self, index: int, rng: np.random.Generator, shape: ClipShape) -> Clip:
        """Clip number `index`; `rng` is not used.

        Raises:
            UserError: the canvas is smaller than 16 x 16.
        """
        room = self._room(index, shape)
        draw = self._stream(index, kind=0)
        triples = HELD_OUT if self.split == "unseen" else SEEN
        triple = triples[draw.integers(len(triples))]
        start = room * draw.random(2)
        if not self.bounce:
            start = _clear_start(start, room, triple.direction, SPEED * (shape.num_frames - 1))
        return _clip(triple, start, room, shape)

    def counterfactuals(self, index: int, shape: ClipShape) -> list[Clip]:
        """Four clips that begin with the same frame and move left, right, up and down.

        Each has its own caption. The shape starts within 1.5 px of the middle of the canvas, or
        nearer (down to 0.5 px) where it would meet the border; on a canvas far too small for the
        clip it turns back all the same. All four directions of its colour and shape are seen in
        training.

        Raises:
            UserError: the split is "unseen", which has no such colour and shape.
        """
        if self.split == "unseen":
            raise UserError(
                "No colour and shape has four held-out directions: ask a source with "
                'split="test" for counterfactuals.'
            )
        room = self._room(index, shape)
        draw = self._stream(index, kind=1)
        colour, name = _FULLY_SEEN[draw.integers(len(_FULLY_SEEN))]
        spread = np.clip(room / 2 - SPEED * (shape.num_frames - 1), 0.5, 1.5)
        start = room / 2 + spread * draw.uniform(-1.0, 1.0, 2)
        return [
            _clip(Triple(colour, name, direction), start, room, shape) for direction in DIRECTIONS
        ]

    def _room(self, index: int, shape: ClipShape) -> Float[np.ndarray, "2"]:
        """How far the centre may travel, (x, y) px."""
        check_index(index, self.length)
        if min(shape.height, shape.width) < MIN_SIDE:
            raise UserError(
                f"A canvas of {shape.height} x {shape.width} px has no room for a moving shape of "
                f"{2 * RADIUS:g} px: ask for at least {MIN_SIDE} x {MIN_SIDE}."
            )
        return np.array([shape.width, shape.height]) - 2 * RADIUS

    def _stream(self, index: int, *, kind: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS.index(self.split), kind, index])


def _clear_start(
    start: Float[np.ndarray, "2"], room: Float[np.ndarray, "2"], direction: str, travel: float
) -> Float[np.ndarray, "2"]:
    """Squeezes a start in [0, room] so that `travel` px ahead of it are free.

    Where the room is too short for that, the start is at the border behind the shape.
    """
    step = np.array(DIRECTIONS[direction])
    free = np.where(step == 0, room, np.maximum(room - travel, 0.0))
    squeezed = start / room * free
    return np.where(step < 0, room - squeezed, squeezed)


def _clip(
    triple: Triple, start: Float[np.ndarray, "2"], room: Float[np.ndarray, "2"], shape: ClipShape
) -> Clip:
    step = np.array(DIRECTIONS[triple.direction])
    path = start + SPEED * np.arange(shape.num_frames)[:, None] * step
    centres = RADIUS - 0.5 + room - np.abs(path % (2 * room) - room)
    return Clip(video=_render(triple, centres, shape), caption=triple.caption)


def _render(
    triple: Triple, centres: Float[np.ndarray, "F 2"], shape: ClipShape
) -> UInt8[np.ndarray, "F Hp Wp 3"]:
    centre_x, centre_y = centres[:, :, None].astype(np.float32).transpose(1, 0, 2)
    x = np.arange(shape.width, dtype=np.float32) - centre_x
    y = np.arange(shape.height, dtype=np.float32) - centre_y
    distance = _distance(triple.shape, x[:, None, :], y[:, :, None])
    coverage = np.clip(0.5 - distance / np.float32(EDGE), 0.0, 1.0)[..., None]
    background = np.float32(255 * BACKGROUND)
    colour = np.float32(255) * np.array(COLOURS[triple.colour], np.float32)
    blended = background + coverage * (colour - background)
    # The cast cuts off, so half a step more rounds.
    return (blended + np.float32(0.5)).astype(np.uint8)


def _distance(
    name: str, x: Float[np.ndarray, "F 1 Wp"], y: Float[np.ndarray, "F Hp 1"]
) -> Float[np.ndarray, "F Hp Wp"]:
    """Signed distance in px to the outline, negative inside.

    Outside a corner it is the distance to the nearer of the two edges, each made longer.
    """
    if name == "circle":
        return np.sqrt(x * x + y * y) - np.float32(RADIUS)
    if name == "square":
        # Of the circle's area.
        return np.maximum(np.abs(x), np.abs(y)) - np.float32(RADIUS * np.sqrt(np.pi) / 2)
    # A triangle with its apex up, base and height 2 R; the normal of a side is (2, -1) / sqrt 5.
    slope = np.float32(1 / np.sqrt(5))
    base = y - np.float32(RADIUS)
    sides = (2 * np.abs(x) - y - np.float32(RADIUS)) * slope
    return np.maximum(base, sides)

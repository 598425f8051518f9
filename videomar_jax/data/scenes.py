"""Scenes: captioned clips of shaded objects in a room, drawn on demand at any size.

A room has a wall and a floor. One to three objects stand in it, each with a soft shadow on the
floor; the caption says what one of them does:

    "a red ball rolls to the left quickly"
    "a striped blue cube falls"
    "a small green star passes behind a white cube to the right slowly"

Lengths are shares of the shorter side of the canvas, times are frames, so a clip is the same scene
at every size. y grows downwards.

What an object does, from frame t = 0 on, with its centre (x, y) and radius r:

    moves, passes behind   x = x0 +- v t, back and forth between the walls
    rolls                  the same, and it turns by v / r a frame
    falls                  y = y0 + g t^2 / 2 down to the floor, where it stays
    bounces                the same, thrown back with `RESTITUTION` of its speed each time
    grows                  r = r0 (1 + s t), up to `GROWN` r0, standing on the floor
    turns                  by w a frame

Farther objects stand higher in the picture and are drawn first. Colours, kinds and actions: each
kind and action lack one colour in training, which the split "unseen" consists of.
"""

import colorsys
import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple, get_args

import numpy as np

from videomar_jax.checks import Count, Fraction, Natural, Positive, UserError, check_fields
from videomar_jax.data.sources import Clip, ClipShape, SourceKind, check_index, short_digest
from videomar_jax.types import Float, UInt8

COLOURS = {
    "red": (0.86, 0.16, 0.14),
    "orange": (0.95, 0.52, 0.10),
    "yellow": (0.95, 0.82, 0.18),
    "green": (0.20, 0.65, 0.28),
    "blue": (0.16, 0.36, 0.85),
    "purple": (0.55, 0.25, 0.75),
    "white": (0.94, 0.94, 0.92),
    "black": (0.13, 0.13, 0.15),
}
KINDS = ("ball", "cube", "star", "cone")
TEXTURES = ("plain", "striped", "dotted")
ACTIONS = ("moves", "rolls", "falls", "bounces", "grows", "turns", "passes behind")
SIDEWAYS = ("moves", "rolls", "turns", "passes behind")
"""Actions to the left or to the right."""
IN_THE_AIR = ("falls", "bounces")
SIZES = {"small": 0.11, "": 0.14, "large": 0.17}
"""Radius by the word in the caption."""
SPEEDS = {"slowly": 1.0, "quickly": 2.2}
VELOCITY = 0.016
"""Of what moves slowly, a frame."""
TURN = np.radians(4.0)
"""Of what turns slowly, a frame."""
GROWTH = 0.02
GROWN = 1.7
GRAVITY = 0.006
RESTITUTION = 0.75
HORIZON = 0.58
"""Where the floor begins."""
FLOOR = (0.74, 0.93)
"""Where objects stand, from back to front."""
MIN_SIDE = 32
LIGHT = np.array([-0.45, -0.65, 0.62])
"""Direction to the light: from the left, above, in front."""

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
class Thing:
    """An object of a scene, as it stands in frame 0."""

    colour: str
    kind: str
    texture: str
    size: str
    x: float
    floor: float
    """Where the floor is below it: farther back is higher up, a smaller number."""
    height: float = 0.0
    """Of its lowest point over the floor."""

    @property
    def name(self) -> str:
        """Such as "small striped red ball"."""
        texture = "" if self.texture == "plain" else self.texture
        return " ".join(filter(None, (self.size, texture, self.colour, self.kind)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Action:
    """What the acting object does."""

    verb: str
    side: str = ""
    """"left" or "right" where it goes or turns sideways."""
    speed: str = ""
    """"slowly" or "quickly"; "" for what falls."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that is in a clip, but not its length and size."""

    actor: Thing
    action: Action
    others: tuple[Thing, ...]
    wall: tuple[float, float, float]
    ground: tuple[float, float, float]
    boards: float
    """How visible the boards of the floor are."""
    vanishing: float
    """The column that they run to."""

    def caption(self, *, side: bool = True, speed: bool = True) -> str:
        """The scene in words.

        Args:
            side, speed: whether the caption says where to, and how fast.
        """
        words = [f"a {self.actor.name} {self.action.verb}"]
        if self.action.verb == "passes behind":
            front = self.others[-1]
            words.append(f"a {front.colour} {front.kind}")
        if side and self.action.side:
            words.append(f"to the {self.action.side}")
        if speed and self.action.speed:
            words.append(self.action.speed)
        return " ".join(words)


class Path(NamedTuple):
    """Where an object is in each frame, in shares of the canvas's shorter side."""

    x: Float[np.ndarray, "F"]
    y: Float[np.ndarray, "F"]
    radius: Float[np.ndarray, "F"]
    angle: Float[np.ndarray, "F"]
    """Clockwise."""


# Motion


def path_of(thing: Thing, action: Action | None, frames: int, width: float) -> Path:
    """Where a thing is in frames 0..F-1 of a room as wide as `width`; still without an action."""
    time = np.arange(frames, dtype=np.float64)
    radius = np.full(frames, SIZES[thing.size])
    x, angle, height = np.full(frames, thing.x), np.zeros(frames), np.full(frames, thing.height)
    if action is not None:
        sign = {"left": -1.0, "right": 1.0, "": 0.0}[action.side]
        pace = SPEEDS.get(action.speed, 0.0) * time
        if action.verb in ("moves", "rolls", "passes behind"):
            x = _between(thing.x + sign * VELOCITY * pace, radius[0], width - radius[0])
        if action.verb == "rolls":
            angle = (x - thing.x) / radius
        elif action.verb == "turns":
            angle = sign * TURN * pace
        elif action.verb == "grows":
            radius = radius * np.minimum(1.0 + GROWTH * pace, GROWN)
        elif action.verb in IN_THE_AIR:
            height = _fallen(thing.height, time, action.verb == "bounces")
    y = thing.floor - height - radius * lowest_point(thing.kind, angle)
    return Path(x, y, radius, angle)


def _between(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Thrown back at both ends."""
    room = max(high - low, 1e-6)
    return low + room - np.abs((x - low) % (2 * room) - room)


def _fallen(height: float, time: np.ndarray, bounces: bool) -> np.ndarray:
    """The height over the floor of what is let go at `height`."""
    left, speed, top = time.copy(), 0.0, height
    result = np.zeros(len(time))
    waiting = np.ones(len(time), bool)
    for _ in range(20):
        # Until it is down again: top + speed s - g s^2 / 2 = 0.
        duration = (speed + np.sqrt(speed**2 + 2 * GRAVITY * top)) / GRAVITY
        now = waiting & (left < duration)
        result[now] = top + speed * left[now] - GRAVITY * left[now] ** 2 / 2
        waiting &= ~now
        if not bounces or not waiting.any():
            break
        left = left - duration
        speed, top = RESTITUTION * (GRAVITY * duration - speed), 0.0
    return result


# Shapes


def _star() -> np.ndarray:
    turns = np.arange(10) * np.pi / 5
    reach = np.where(np.arange(10) % 2, 0.5, 1.0)
    return np.stack([reach * np.sin(turns), -reach * np.cos(turns)], axis=1)


OUTLINES = {
    "cube": np.array([[-0.8, -0.8], [0.8, -0.8], [0.8, 0.8], [-0.8, 0.8]]),
    "star": _star(),
    "cone": np.array([[0.0, -1.0], [0.85, 0.8], [-0.85, 0.8]]),
}
"""Corners (x, y) of a thing of radius 1; a ball has none."""
ROUNDING = 0.08
BEVEL = {"ball": 1.0, "cube": 0.35, "star": 0.45, "cone": 0.6}
"""How far inside of its outline a thing still curves."""


def lowest_point(kind: str, angle: Float[np.ndarray, "F"]) -> Float[np.ndarray, "F"]:
    """How far a thing of radius 1, turned by `angle`, reaches below its centre."""
    if kind == "ball":
        return np.ones(len(angle))
    x, y = OUTLINES[kind].T
    return (np.sin(angle)[:, None] * x + np.cos(angle)[:, None] * y).max(axis=1)


def _distance(kind: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to the outline of a thing of radius 1, negative inside."""
    if kind == "ball":
        return np.sqrt(x * x + y * y) - 1
    # The exact distance to a polygon: to its nearest edge, the sign by crossings of a ray.
    corners = OUTLINES[kind].astype(np.float32)
    nearest = np.full(x.shape, np.inf, np.float32)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        along = ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2)
        along = np.clip(along, 0, 1)
        away = (x - ax - along * (bx - ax)) ** 2 + (y - ay - along * (by - ay)) ** 2
        nearest = np.minimum(nearest, away)
        if ay != by:
            crosses = (ay > y) != (by > y)
            inside ^= crosses & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
    distance = np.sqrt(nearest)
    return np.where(inside, -distance, distance) - np.float32(ROUNDING)


# Pictures


class _Canvas(NamedTuple):
    """Pixel centres in shares of the shorter side."""

    x: Float[np.ndarray, "1 Wp"]
    y: Float[np.ndarray, "Hp 1"]
    pixel: float


def _canvas(shape: ClipShape, extent: float) -> _Canvas:
    pixel = extent / min(shape.height, shape.width)
    x = (np.arange(shape.width, dtype=np.float32) + 0.5) * np.float32(pixel)
    y = (np.arange(shape.height, dtype=np.float32) + 0.5) * np.float32(pixel)
    # The floor stays at the lower edge, however high the room is.
    y = y - np.float32(shape.height * pixel - 1.0)
    return _Canvas(x[None, :], y[:, None], pixel)


def _room(scene: Scene, canvas: _Canvas) -> np.ndarray:
    """Wall and floor, [Hp, Wp, 3] in 0..1."""
    x, y = canvas.x, canvas.y
    wall = np.array(scene.wall, np.float32) * (0.86 + 0.22 * np.clip(y / HORIZON, -1, 1))[..., None]
    depth = np.clip((y - HORIZON) / (1 - HORIZON), 0, 1)
    boards = np.sin(9.0 * (x - scene.vanishing) / (depth + 0.3))
    # Far boards are narrower than pixels: they fade.
    light = 0.80 + 0.22 * depth + scene.boards * boards * np.clip(2 * depth, 0, 1)
    floor = np.array(scene.ground, np.float32) * light[..., None]
    blend = np.clip((y - HORIZON) / canvas.pixel + 0.5, 0, 1)[..., None]
    picture = wall + blend * (floor - wall)
    # A skirting board between the two.
    skirting = np.clip(1 - np.abs(y - HORIZON) / 0.012, 0, 1)[..., None]
    picture = picture * (1 - 0.35 * skirting)
    return np.broadcast_to(picture, (y.size, x.size, 3)).astype(np.float32)


def _draw(picture: np.ndarray, canvas: _Canvas, thing: Thing, path: Path) -> None:
    """Draws a thing and its shadow into [F, Hp, Wp, 3]."""
    x0, y0, radius, angle = (
        np.asarray(value, np.float32)[:, None, None]
        for value in (path.x, path.y, path.radius, path.angle)
    )
    picture *= 1 - _shadow(canvas, thing, path)[..., None]
    x, y = (canvas.x[None] - x0) / radius, (canvas.y[None] - y0) / radius
    cos, sin = np.cos(angle), np.sin(angle)
    own_x, own_y = cos * x + sin * y, cos * y - sin * x
    distance = _distance(thing.kind, own_x, own_y)
    cover = np.clip(0.5 - distance * radius / np.float32(canvas.pixel), 0, 1)[..., None]
    body = _shaded(thing, x, y, own_x, own_y, distance, (cos, sin))
    picture += cover * (body - picture)


def _shadow(canvas: _Canvas, thing: Thing, path: Path) -> np.ndarray:
    """How much light a thing takes from the floor, [F, Hp, Wp]."""
    radius = np.asarray(path.radius, np.float32)[:, None, None]
    lowest = path.y + path.radius * lowest_point(thing.kind, path.angle)
    height = np.asarray(thing.floor - lowest, np.float32)[:, None, None]
    wide = radius * (1.15 + 1.2 * height)
    # The light comes from the left, so shadows lie to the right.
    x = (
        canvas.x[None]
        - np.asarray(path.x, np.float32)[:, None, None]
        - 0.25 * radius
        - 0.5 * height
    ) / wide
    y = (canvas.y[None] - np.float32(thing.floor)) / (0.30 * wide)
    strength = 0.55 / (1 + 4 * height)
    on_floor = np.clip((canvas.y[None] - HORIZON) / np.float32(canvas.pixel) + 0.5, 0, 1)
    return strength * np.exp(-1.3 * (x * x + y * y)) * on_floor


def _shaded(
    thing: Thing,
    x: np.ndarray,
    y: np.ndarray,
    own_x: np.ndarray,
    own_y: np.ndarray,
    distance: np.ndarray,
    turn: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """The colour of a thing's surface, [F, Hp, Wp, 3]."""
    albedo = np.array(COLOURS[thing.colour], np.float32)
    marks = _marks(thing.texture, own_x, own_y)[..., None]
    mark = np.float32(0.25) if albedo.min() > 0.6 else np.float32(0.97)
    surface = albedo + marks * (mark - albedo)
    # The outline's normal leans over where the surface curves away.
    step = np.float32(0.02)
    slope_x = (_distance(thing.kind, own_x + step, own_y) - distance) / step
    slope_y = (_distance(thing.kind, own_x, own_y + step) - distance) / step
    cos, sin = turn
    lean = 1 - np.clip(-distance / np.float32(BEVEL[thing.kind]), 0, 1)
    normal_x, normal_y = (
        lean * (cos * slope_x - sin * slope_y),
        lean * (sin * slope_x + cos * slope_y),
    )
    normal_z = np.sqrt(np.maximum(1 - normal_x**2 - normal_y**2, 0))
    light = (LIGHT / np.linalg.norm(LIGHT)).astype(np.float32)
    towards = normal_x * light[0] + normal_y * light[1] + normal_z * light[2]
    half = light + np.array([0, 0, 1], np.float32)
    half = half / np.linalg.norm(half)
    gloss = np.clip(normal_x * half[0] + normal_y * half[1] + normal_z * half[2], 0, 1) ** 40
    bright = 0.45 + 0.62 * np.clip(towards, 0, 1)
    return surface * bright[..., None] + 0.45 * gloss[..., None]


def _marks(texture: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where a surface has the colour of its marks, 0..1: one band, or four dots."""
    if texture == "striped":
        return np.clip((0.28 - np.abs(x)) * 8 + 0.5, 0, 1)
    if texture == "dotted":
        across, down = np.abs(x) - np.float32(0.42), np.abs(y) - np.float32(0.42)
        return np.clip((0.24 - np.sqrt(across**2 + down**2)) * 8 + 0.5, 0, 1)
    return np.zeros_like(x)


def render(
    scene: Scene, shape: ClipShape, *, extent: float = 1.0, actor: bool = True
) -> UInt8[np.ndarray, "F Hp Wp 3"]:
    """The pictures of a scene.

    Args:
        extent: see `Scenes.extent`.
        actor: False leaves the acting object out.
    """
    canvas = _canvas(shape, extent)
    width = shape.width * canvas.pixel
    paths = {thing: path_of(thing, None, 1, width) for thing in scene.others}
    if actor:
        paths[scene.actor] = path_of(scene.actor, scene.action, shape.num_frames, width)
    picture = _room(scene, canvas)[None]
    for thing, path in sorted(paths.items(), key=lambda pair: pair[0].floor):
        frames = max(len(picture), len(path.x))
        picture = np.array(np.broadcast_to(picture, (frames, *picture.shape[1:])))
        _draw(picture, canvas, thing, path)
    drawn = (255 * np.clip(picture, 0, 1) + 0.5).astype(np.uint8)
    return np.repeat(drawn, shape.num_frames, axis=0) if len(drawn) == 1 else drawn


# The source


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
    extent: Positive = 1.0
    """How large a room the picture shows: at 1.5, on a canvas 1.5 times as large, objects have as
    many pixels as at 1."""

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
            UserError: the canvas is too small, see `MIN_SIDE`.
        """
        scene = self.scene(index, shape)
        draw = self._stream(index, kind=1)
        left_out = draw.random() < self.open_captions
        side, speed = [(False, True), (True, False), (False, False)][draw.integers(3)]
        caption = scene.caption(side=side or not left_out, speed=speed or not left_out)
        return Clip(video=render(scene, shape, extent=self.extent), caption=caption)

    def scene(self, index: int, shape: ClipShape) -> Scene:
        """What clip number `index` shows on a canvas of this shape."""
        check_index(index, self.length)
        _check_canvas(shape)
        draw = self._stream(index, kind=0)
        combinations = HELD_OUT if self.split == "unseen" else SEEN
        verbs = list(dict.fromkeys(found.action for found in combinations))
        verb = verbs[draw.integers(len(verbs))]
        # Actions come equally often, whatever number of kinds can do them.
        fitting = [found for found in combinations if found.action == verb]
        chosen = fitting[draw.integers(len(fitting))]
        width = shape.width * self.extent / min(shape.height, shape.width)
        return _draw_scene(chosen, draw, width)

    def counterfactuals(self, index: int, shape: ClipShape) -> list[Clip]:
        """Clips that begin with the same picture, one for each thing that its object could do.

        Each has its own caption, with side and speed. The first is what clip `index` shows.
        """
        scene = self.scene(index, shape)
        clips = []
        for action in possible_actions(scene):
            other = dataclasses.replace(scene, action=action)
            video = render(other, shape, extent=self.extent)
            clips.append(Clip(video=video, caption=other.caption()))
        return clips

    def without_actor(self, index: int, shape: ClipShape) -> UInt8[np.ndarray, "F Hp Wp 3"]:
        """Clip `index` as it would be if its acting object were not there."""
        return render(self.scene(index, shape), shape, extent=self.extent, actor=False)

    def path(self, index: int, shape: ClipShape) -> Path:
        """Where the acting object of clip `index` is, in pixels."""
        scene = self.scene(index, shape)
        pixel = self.extent / min(shape.height, shape.width)
        found = path_of(scene.actor, scene.action, shape.num_frames, shape.width * pixel)
        below = shape.height * pixel - 1.0
        return Path(found.x / pixel, (found.y + below) / pixel, found.radius / pixel, found.angle)

    def _stream(self, index: int, *, kind: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS.index(self.split), kind, index])


def possible_actions(scene: Scene) -> list[Action]:
    """What the acting object could do from its first picture on; what it does comes first."""
    verbs: Sequence[str] = IN_THE_AIR
    if scene.actor.height == 0:
        verbs = ("moves", "grows", "turns")
        if scene.actor.kind == "ball":
            verbs = ("moves", "rolls", "grows", "turns")
        if scene.action.verb == "passes behind":
            verbs = ("passes behind", "grows", "turns")
    actions = [scene.action]
    for verb in verbs:
        for side in ("left", "right") if verb in SIDEWAYS else ("",):
            for speed in SPEEDS if verb not in IN_THE_AIR else ("",):
                action = Action(verb=verb, side=side, speed=speed)
                if action != scene.action:
                    actions.append(action)
    return actions


def _check_canvas(shape: ClipShape) -> None:
    if min(shape.height, shape.width) < MIN_SIDE:
        raise UserError(
            f"A canvas of {shape.height} x {shape.width} px has no room for a scene: ask for at "
            f"least {MIN_SIDE} x {MIN_SIDE}, or for data.kind='shapes'."
        )


def _draw_scene(chosen: Combination, draw: np.random.Generator, width: float) -> Scene:
    verb = chosen.action
    side = ("left", "right")[draw.integers(2)] if verb in SIDEWAYS else ""
    speed = list(SPEEDS)[draw.integers(2)] if verb not in IN_THE_AIR else ""
    # What grows starts small enough for the room, what rolls shows that it does.
    sizes = [name for name in SIZES if verb != "grows" or name != "large"]
    textures = TEXTURES[1:] if verb in ("rolls", "turns") and chosen.kind == "ball" else TEXTURES
    size = sizes[draw.integers(len(sizes))]
    radius = SIZES[size]
    behind = verb == "passes behind"
    back, front = FLOOR
    # Other things stand behind the one that acts, and leave it in sight; one that it passes behind
    # stands before it.
    floor = draw.uniform(back, back + 0.05) if behind else draw.uniform(0.5 * (back + front), front)
    actor = Thing(
        colour=chosen.colour,
        kind=chosen.kind,
        texture=textures[draw.integers(len(textures))],
        size=size,
        x=draw.uniform(radius, width - radius),
        floor=floor,
        height=draw.uniform(0.25, 0.45) if verb in IN_THE_AIR else 0.0,
    )
    others = []
    colours = [colour for colour in COLOURS if colour != chosen.colour]
    for _ in range(1 if behind else draw.integers(3)):
        colour = colours.pop(draw.integers(len(colours)))
        size = list(SIZES)[draw.integers(2)]
        reach = SIZES[size]
        place = draw.uniform(reach, width - reach)
        if behind:
            # Where the actor is in sight at first, and passes if it goes the right way.
            place = _before(actor, radius + reach, width, draw)
        others.append(
            Thing(
                colour=colour,
                kind=KINDS[draw.integers(len(KINDS))],
                texture=TEXTURES[draw.integers(len(TEXTURES))],
                size=size,
                x=place,
                floor=draw.uniform(front - 0.04, front)
                if behind
                else draw.uniform(back, back + 0.04),
            )
        )
    hue = draw.uniform(0, 1, 2)
    return Scene(
        actor=actor,
        action=Action(verb=verb, side=side, speed=speed),
        others=tuple(others),
        wall=_pastel(hue[0], draw.uniform(0.70, 0.85), 0.12),
        ground=_pastel(0.04 + 0.10 * hue[1], draw.uniform(0.60, 0.75), 0.30),
        boards=draw.uniform(0.0, 0.06),
        vanishing=draw.uniform(0.2, 0.8) * width,
    )


def _before(actor: Thing, apart: float, width: float, draw: np.random.Generator) -> float:
    """A column for what stands in the way of the actor, on the side with more room."""
    side = 1.0 if actor.x < width / 2 else -1.0
    away = draw.uniform(apart, max(apart, 1.6 * apart))
    return float(np.clip(actor.x + side * away, 0.1, width - 0.1))


def _pastel(hue: float, bright: float, saturation: float) -> tuple[float, float, float]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, bright)
    return red, green, blue

"""Objects of a drawn scene, what they do, and where that takes them.

The unit of length is the shorter side of the canvas (or `Scenes.unit`), that of time a frame, so a
clip is the same scene at every size. y grows downwards.

What an object does, from frame t = 0 on, with its centre (x, y) and radius r:

    moves, passes behind   x = x0 +- v t, back and forth between the walls
    rolls                  the same, and it turns by v / r a frame
    falls                  y = y0 + g t^2 / 2 down to the floor, where it stays
    bounces                the same, thrown back with `RESTITUTION` of its speed each time
    grows                  r = r0 (1 + s t), up to `GROWN` r0, standing on the floor
    turns                  by w a frame
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from videomar_jax.types import Float

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
SPEEDS = {"slowly": 1.0, "quickly": 2.0}
VELOCITY = 0.012
"""Of what moves slowly, a frame."""
TURN = np.radians(3.0)
"""Of what turns slowly, a frame."""
GROWTH = 0.016
GROWN = 1.7
GRAVITY = 0.004
RESTITUTION = 0.75


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
    """Where an object is in each frame, in units of length."""

    x: Float[np.ndarray, "F"]
    y: Float[np.ndarray, "F"]
    radius: Float[np.ndarray, "F"]
    angle: Float[np.ndarray, "F"]
    """Clockwise."""


# What happens


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


# Outlines


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


def lowest_point(kind: str, angle: Float[np.ndarray, "F"]) -> Float[np.ndarray, "F"]:
    """How far a thing of radius 1, turned by `angle`, reaches below its centre."""
    if kind == "ball":
        return np.ones(len(angle))
    x, y = OUTLINES[kind].T
    return (np.sin(angle)[:, None] * x + np.cos(angle)[:, None] * y).max(axis=1)

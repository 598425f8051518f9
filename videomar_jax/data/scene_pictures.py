"""Pictures of a drawn scene: a room with a wall and a floor, shaded objects, soft shadows.

Farther objects stand higher in the picture and are drawn first. Lengths are those of
`scene_objects`.
"""

from typing import NamedTuple

import numpy as np

from videomar_jax.data.scene_objects import (
    COLOURS,
    OUTLINES,
    Path,
    Scene,
    Thing,
    lowest_point,
    path_of,
)
from videomar_jax.data.sources import ClipShape
from videomar_jax.types import Float, UInt8

HORIZON = 0.58
"""Where the floor begins."""
LIGHT = np.array([-0.45, -0.65, 0.62])
"""Direction to the light: from the left, above, in front."""
ROUNDING = 0.08
BEVEL = {"ball": 1.0, "cube": 0.35, "star": 0.45, "cone": 0.6}
"""How far inside of its outline a thing still curves."""


def render(
    scene: Scene, shape: ClipShape, *, unit: int = 0, actor: bool = True
) -> UInt8[np.ndarray, "F Hp Wp 3"]:
    """The pictures of a scene.

    Args:
        unit: see `Scenes.unit`.
        actor: False leaves the acting object out.
    """
    canvas = _canvas(shape, unit)
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


# The room


class _Canvas(NamedTuple):
    """Pixel centres in units of length."""

    x: Float[np.ndarray, "1 Wp"]
    y: Float[np.ndarray, "Hp 1"]
    pixel: float


def pixel_size(shape: ClipShape, unit: int) -> float:
    """The side of a pixel in units of length; `unit` as in `Scenes`."""
    return 1 / (unit or min(shape.height, shape.width))


def _canvas(shape: ClipShape, unit: int) -> _Canvas:
    pixel = pixel_size(shape, unit)
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


# Objects


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

"""Flat shapes in the world and their materials.

World axes: X right, Y up from the road, Z forward, in metres. `distance` is Z.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.random import Generator

Colour = tuple[float, float, float]  # red, green, blue


@dataclass(frozen=True)
class Surface:
    """The material of a part. Albedos are 0..1, visible light and 808 nm apart."""

    rgb: Colour
    nir: float
    rough: float = 1.0  # 1: as bright at grazing incidence as face on; 0: Lambert's cosine
    texture: float = 0.25  # how much the albedo varies, relative to itself
    retro: float = 0.0  # light sent back to the camera, relative to a white wall
    glow: Colour = (0.0, 0.0, 0.0)  # own light, linear
    nir_glow: float = 0.0  # own light in the gated slices, DN


Part = tuple[np.ndarray, Surface]  # corners [N, 3] in metres, material


@dataclass
class Thing:
    """An object of the scene. Its parts are painted in their order."""

    distance: float  # m, Z
    parts: list[Part]
    kind: str = ""  # the label's class; empty: not labelled
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    dimensions: tuple[float, float, float] = (-1.0, -1.0, -1.0)  # height, width, length in m
    group: int = -1  # people of one group (0 or more) can share one label
    velocity: tuple[float, float] = (0.0, 0.0)  # m/s over the ground along X and Z


def log_uniform(rng: Generator, low: float, high: float) -> float:
    """A random number between `low` and `high` whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def upright(points: list[tuple[float, float]] | np.ndarray, distance: float = 0.0) -> np.ndarray:
    """Points (X, Y) in the plane that faces the camera at `distance`: [N, 3]."""
    placed = np.empty((len(points), 3))
    placed[:, :2] = points
    placed[:, 2] = distance
    return placed


def rectangle(x0: float, y0: float, x1: float, y1: float, distance: float = 0.0) -> np.ndarray:
    """An upright rectangle that faces the camera: [4, 3]."""
    return upright([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], distance)


def on_ground(x0: float, x1: float, z0: float, z1: float) -> np.ndarray:
    """A rectangle that lies on the road: [4, 3]."""
    return np.array([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)], float)


def along_road(x: float, z0: float, z1: float, y0: float, y1: float) -> np.ndarray:
    """An upright rectangle along the road at X = `x`: [4, 3]."""
    return np.array([(x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)], float)


@lru_cache
def unit_circle(corners: int) -> np.ndarray:
    """Corners of a regular polygon of radius 1, the first at (1, 0): [N, 2]."""
    angle = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def ellipse(
    x: float, y: float, radius_x: float, radius_y: float, distance: float = 0.0, corners: int = 14
) -> np.ndarray:
    """An upright ellipse that faces the camera: [corners, 3]."""
    return upright(unit_circle(corners) * (radius_x, radius_y) + (x, y), distance)


def annulus(x: float, y: float, radius: float, width: float, distance: float) -> np.ndarray:
    """An upright ring, one polygon that runs round outside and back inside: [34, 3]."""
    circle = np.concatenate([unit_circle(16), unit_circle(16)[:1]])
    outline = np.concatenate([radius * circle, (radius - width) * circle[::-1]])
    return upright([x, y] + outline, distance)


def limb(
    start: np.ndarray,
    end: np.ndarray,
    radius_start: float,
    radius_end: float,
    distance: float = 0.0,
) -> np.ndarray:
    """A tapered capsule from `start` to `end` (X, Y) that faces the camera: [14, 3]."""
    along = (end - start) / max(np.hypot(*(end - start)), 1e-9)
    # Half a circle, turned so that it caps the start.
    cap = unit_circle(12)[:7] @ ((-along[1], along[0]), (-along[0], -along[1]))
    points = np.empty((14, 3))
    points[:7, :2] = start + radius_start * cap
    points[7:, :2] = end - radius_end * cap
    points[:, 2] = distance
    return points


def rounded(
    start: np.ndarray, end: np.ndarray, radii: tuple[float, float], surface: Surface
) -> list[Part]:
    """A limb with a dim rim and a bright core, like a cylinder lit from the camera."""
    parts = []
    for width, brightness in ((1.0, 0.7), (0.8, 0.88), (0.5, 1.0)):
        outline = limb(start, end, width * radii[0], width * radii[1])
        parts.append((outline, shaded(surface, brightness)))
    return parts


def shaded(surface: Surface, factor: float) -> Surface:
    """The surface with its albedos multiplied by `factor`."""
    red, green, blue = surface.rgb
    return Surface(
        (factor * red, factor * green, factor * blue),
        factor * surface.nir,
        surface.rough,
        surface.texture,
        surface.retro,
        surface.glow,
        surface.nir_glow,
    )

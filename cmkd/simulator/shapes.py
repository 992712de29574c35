"""Flat shapes in the world and their materials.

World axes: X right, Y up from the road, Z forward, in metres. `distance` is Z.
"""

from dataclasses import dataclass, replace
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


# Corners in metres, material. Corners are [N, 3], or [N, 2] if the part faces the camera.
Part = tuple[np.ndarray, Surface]


@dataclass
class Thing:
    """An object of the scene. Its parts are painted in their order.

    Parts that face the camera are put at the object's distance: all corners become [N, 3].
    """

    distance: float  # m, Z
    parts: list[Part]
    kind: str = ""  # the label's class; empty: not labelled
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    dimensions: tuple[float, float, float] = (-1.0, -1.0, -1.0)  # height, width, length in m
    group: int = -1  # people of one group (0 or more) can share one label
    velocity: tuple[float, float] = (0.0, 0.0)  # m/s over the ground along X and Z

    def __post_init__(self) -> None:
        self.parts = [(upright(corners, self.distance), surface) for corners, surface in self.parts]


def log_uniform(rng: Generator, low: float, high: float) -> float:
    """A random number between `low` and `high` whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def upright(points: np.ndarray, distance: float) -> np.ndarray:
    """Points [N, 2] moved to `distance`, facing the camera: [N, 3]. Others stay as they are."""
    if points.shape[1] == 3:
        return points
    placed = np.empty((len(points), 3))
    placed[:, :2] = points
    placed[:, 2] = distance
    return placed


def rectangle(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """A rectangle that faces the camera: [4, 2]."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


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


def ellipse(x: float, y: float, radius_x: float, radius_y: float, corners: int = 14) -> np.ndarray:
    """An ellipse that faces the camera: [corners, 2]."""
    return unit_circle(corners) * (radius_x, radius_y) + (x, y)


def annulus(x: float, y: float, radius: float, width: float) -> np.ndarray:
    """A ring that faces the camera, one polygon that runs round and back inside: [34, 2]."""
    circle = np.concatenate([unit_circle(16), unit_circle(16)[:1]])
    return [x, y] + np.concatenate([radius * circle, (radius - width) * circle[::-1]])


def limb(start: np.ndarray, end: np.ndarray, radius_start: float, radius_end: float) -> np.ndarray:
    """A tapered capsule from `start` to `end` (X, Y) that faces the camera: [14, 2]."""
    along = (end - start) / max(np.hypot(*(end - start)), 1e-9)
    # Half a circle, turned so that it caps the start.
    cap = unit_circle(12)[:7] @ ((-along[1], along[0]), (-along[0], -along[1]))
    return np.concatenate([start + radius_start * cap, end - radius_end * cap])


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
    rgb = tuple(factor * albedo for albedo in surface.rgb)
    return replace(surface, rgb=rgb, nir=factor * surface.nir)

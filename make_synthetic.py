"""Night road scenes seen by an RGB camera and a 3-slice gated near-infrared camera, in the prepared layout.

    python make_synthetic.py --out data --frames 1500 300 300 --size 1280x768 --seed 0

Steps of a frame: `sample_scene` (planar parts in metres), `rasterise` (what each pixel sees, and where),
`rgb_camera` and `gated_camera` (light to digital numbers), `label_lines`. World axes: X right, Y up from the
road, Z forward, metres, camera at (0, camera_height, 0). Light is linear, 1 is the RGB sensor's full
scale; DN is the 10-bit digital number of the gated sensor. Clear weather only; extinction would multiply the
returns in the two cameras by the range that `rasterise` gives. Noise is per stored pixel at every size.
"""

from __future__ import annotations

import argparse
import os
import sys
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

Array = np.ndarray
LABEL_SIZE = (1280, 720)  # boxes are in the gated sensor's pixels whatever the size of the stored image
FOCAL, CENTRE = 2322.4, (667.8, 261.1)  # px in label space: rectified gated camera of Seeing Through Fog
LIGHT_SPEED = 0.299792458  # m / ns
GATES = ((260, 240, 220, 202), (400, 280, 420, 591), (750, 370, 420, 770))  # delay, laser, gate in ns; pulses
GATED_GAIN = 97.0  # DN m at albedo 1
EDGE_SOFTNESS = 2.0  # m, sigma: pulse and gate edges rise over about 5 m in range
DARK_LEVEL, GATED_NOISE = (87.0, 70.0, 87.0), 2.5  # DN
NIGHT_TONE = ((0, 0.0025, 0.005, 0.01, 0.1, 0.2, 0.3, 1), (0, 0.1, 0.25, 0.4, 0.8, 0.9, 0.98, 1))
TEXTURE_CELL, TEXTURE_CELLS = 0.02, 1024  # m per cell; cells in one period
VISIBLE_CONTRAST, FAINTEST = 2.0, 4.0  # see `contrast`; grey levels
HIDDEN_LIMIT = 0.8  # people of whom more is hidden carry no label


@dataclass(frozen=True)
class Surface:
    """A part's matter: albedos 0..1, `retro` = return over a white wall's, glow in linear light or DN."""

    rgb: tuple[float, float, float]
    nir: float
    rough: float = 1.0  # 1: as bright at grazing incidence as face on; 0: Lambert's cosine
    texture: float = 0.25  # relative albedo variation
    retro: float = 0.0
    glow: tuple[float, float, float] = (0.0, 0.0, 0.0)
    nir_glow: float = 0.0


@dataclass
class Thing:
    """An object of the scene: planar parts (points (N, 3) in metres, surface), drawn in their order."""

    distance: float
    parts: list[tuple[Array, Surface]]
    kind: str = ""  # label class, "" = not labelled
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    dimensions: tuple[float, float, float] = (-1.0, -1.0, -1.0)  # height, width, length in metres
    group: int = -1  # things of one group >= 0 stand so close that they share one label


@dataclass
class Scene:
    """Things sorted far to near, and the light and camera state of the frame."""

    things: list[Thing]
    camera_height: float
    ambient: float  # irradiance of sky and town
    veil: float  # black level plus stray light in the lens
    headlight: float  # intensity, linear light m^2
    beam_cut: float  # slope of the low beam's upper edge
    shot_gain: float  # s of the Poisson-Gaussian noise
    lamps: list[tuple[Array, float, Array]] = field(default_factory=list)  # position, intensity, colour


@dataclass
class Raster:
    """What each (supersampled) pixel sees; maps are (H, W) float32 unless said otherwise."""

    size: tuple[int, int]  # output width, height
    factor: int  # supersampling
    part: Array  # integer index into `surfaces`; 0 is the sky
    point: tuple[Array, Array, Array]  # X, Y, Z
    distance: Array  # range along the ray
    incidence: Array  # 0..1, cosine softened by the surface's roughness
    texture: Array  # albedo factor around 1
    surfaces: list[Surface]
    owner: Array  # (parts,) index of the thing, -1 for the sky
    outlines: list[list[Array]]  # per thing, per part: projected (N, 2) points


# --------------------------------------------------------------------------------------------- scene: shapes


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number whose logarithm is uniform between those of `low` and `high`."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def upright(points: list[tuple[float, float]] | Array, distance: float) -> Array:
    """Points (X, Y) on the plane facing the camera at `distance`: (N, 3)."""
    placed = np.full((len(points), 3), float(distance))
    placed[:, :2] = points
    return placed


def rectangle(x0: float, y0: float, x1: float, y1: float, distance: float) -> Array:
    """Upright rectangle facing the camera: (4, 3)."""
    return upright([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], distance)


def ellipse(x: float, y: float, radius_x: float, radius_y: float, z: float, corners: int = 14) -> Array:
    """Upright ellipse as a polygon: (corners, 3)."""
    angle = np.arange(corners) * (2 * np.pi / corners)
    return upright(np.stack([x + radius_x * np.cos(angle), y + radius_y * np.sin(angle)], 1), z)


def limb(start: Array, end: Array, radius_start: float, radius_end: float, distance: float) -> Array:
    """Tapered capsule from `start` to `end` (X, Y): (14, 3)."""
    direction = np.arctan2(end[1] - start[1], end[0] - start[0])
    turn = direction + np.pi / 2 + np.arange(7) * (np.pi / 6)
    cap = np.stack([np.cos(turn), np.sin(turn)], 1)
    return upright(np.concatenate([start + radius_start * cap, end - radius_end * cap]), distance)


def scaled(surface: Surface, factor: float) -> Surface:
    """The same surface with its albedos multiplied by `factor`."""
    rgb = tuple(factor * value for value in surface.rgb)
    return Surface(rgb, factor * surface.nir, surface.rough, surface.texture, surface.retro)


def rounded(start: Array, end: Array, radii: tuple[float, float], distance: float, surface: Surface) -> list:
    """A limb lit from the camera: a dim rim and brighter cores, as a cylinder under Lambert's law shows."""
    return [(limb(start, end, width * radii[0], width * radii[1], distance), scaled(surface, shade))
            for width, shade in ((1.0, 0.7), (0.8, 0.88), (0.5, 1.0))]


# --------------------------------------------------------------------------------------------- scene: things


def person(rng: np.random.Generator, x: float, distance: float, group: int = -1) -> Thing:
    """A standing or walking person of 1.0..2.0 m, seen from any side, with jointed arms and legs."""
    height = float(np.clip(rng.normal(1.72, 0.1) if rng.random() < 0.85 else rng.uniform(1.0, 1.5), 1.0, 2.0))
    side = abs(np.cos(rng.uniform(0, np.pi)))  # 1 = walks across the view, 0 = along it
    forward = rng.choice([-1.0, 1.0])
    stride = rng.uniform(0.2, 0.55) if rng.random() < 0.75 else rng.uniform(0.0, 0.08)
    build = rng.uniform(0.9, 1.25)
    half_width = height * build * (0.115 - 0.045 * side)

    def clothing() -> Surface:
        # dyes that are dark to the eye reflect 808 nm well
        dark = 0.03 * 10 ** (rng.random() ** 1.5)
        tint = rng.uniform(0.8, 1.15, 3)
        return Surface(tuple(np.clip(dark * tint, 0.02, 0.35)), rng.uniform(0.3, 0.7), texture=0.12)

    top, bottom, shoe = clothing(), clothing(), Surface((0.05, 0.05, 0.05), rng.uniform(0.15, 0.5))
    skin = Surface((0.4 * (tone := rng.uniform(0.3, 1)), 0.3 * tone, 0.22 * tone), rng.uniform(0.4, 0.6))
    hair = Surface((0.05, 0.04, 0.03), rng.uniform(0.25, 0.45)) if rng.random() < 0.6 else clothing()
    lean = forward * side * stride * 0.06
    hip, neck = np.array([0.0, 0.51]), np.array([lean, 0.815])
    radius = half_width / height
    parts = []
    for index in (0, 1):  # far limbs first, the torso between them and the near ones
        swing = stride * (1 if index else -1)
        across = (2 * index - 1) * (1 - side)  # -1..1: to the left or right of the spine
        thigh = forward * side * swing + across * rng.uniform(0.0, 0.12)
        bend = forward * side * rng.uniform(0.05, 0.5) * (swing < 0)
        top_of_leg = hip + [across * radius * 0.45, 0.0]
        knee = top_of_leg + 0.245 * np.array([np.sin(thigh), -np.cos(thigh)])
        ankle = knee + 0.235 * np.array([np.sin(thigh - bend), -np.cos(thigh - bend)])
        toe = ankle + [forward * side * 0.075 + across * 0.02, -0.01]
        leg = rounded(ankle, toe, (0.02, 0.016), distance, shoe)
        leg += rounded(knee, ankle, (0.036 * build, 0.026 * build), distance, bottom)
        leg += rounded(top_of_leg, knee, (0.052 * build, 0.038 * build), distance, bottom)
        shoulder = neck + [across * radius * 0.95, -0.035]
        lift = -forward * side * swing * 1.1 + across * rng.uniform(0.1, 0.4)
        elbow = shoulder + 0.165 * np.array([np.sin(lift), -np.cos(lift)])
        fold = lift + forward * side * rng.uniform(0.1, 0.9) - across * rng.uniform(0, 0.3)
        hand = elbow + 0.15 * np.array([np.sin(fold), -np.cos(fold)])
        arm = [(ellipse(*hand, 0.02, 0.025, distance), skin)]
        arm += rounded(elbow, hand, (0.026 * build, 0.02 * build), distance, top)
        arm += rounded(shoulder, elbow, (0.034 * build, 0.027 * build), distance, top)
        parts += leg + arm if index == 0 else leg
    hem = rng.choice([0.48, 0.5, 0.3], p=[0.5, 0.35, 0.15])  # share of the height where the coat ends
    for width, shade in ((1.0, 0.65), (0.82, 0.85), (0.55, 1.0)):
        waist, chest = radius * 0.85 * width, radius * width
        flank = [(waist, hem), (waist * 0.9, 0.6), (chest, 0.75), (chest * 0.9, 0.8), (chest * 0.45, 0.835)]
        torso = [(u + lean * (v > 0.7), v) for u, v in flank + [(-u, v) for u, v in flank[::-1]]]
        parts.append((upright(torso, distance), scaled(top, shade)))
    parts += arm
    if rng.random() < 0.3:  # a bag or a rucksack
        bag = -forward * radius * (1.1 if side > 0.5 else rng.uniform(0.7, 1.1))
        parts += rounded(np.array([bag, 0.62]), np.array([bag, 0.75]), (0.05, 0.05), distance, clothing())
    head = neck + [forward * side * 0.012, 0.095]
    parts.append((limb(neck, head, 0.03, 0.03, distance), scaled(skin, 0.7)))
    parts.append((ellipse(*head, 0.05, 0.068, distance), scaled(hair, 0.85)))
    face = head + [forward * side * 0.014, -0.012]
    parts.append((ellipse(*face, 0.038, 0.05, distance), skin if rng.random() < 0.7 else hair))
    if rng.random() < 0.05:  # a reflective band
        strip = Surface((0.5, 0.5, 0.4), 0.6, retro=rng.uniform(3, 10))
        parts.append((rectangle(-radius * 0.8, 0.64, radius * 0.8, 0.665, distance), strip))
    stature = max(points[:, 1].max() for points, _ in parts)
    floor = min(points[:, 1].min() for points, _ in parts)
    scale = height / (stature - floor)
    shapes = [(points * [scale, scale, 1] + [x, -floor * scale, 0], surface) for points, surface in parts]
    dimensions = (height, 2 * half_width, 0.2 * height)
    return Thing(distance, shapes, "Pedestrian", (x, 0.0, distance), dimensions, group)


def car(rng: np.random.Generator, x: float, distance: float, view: str, lights: bool) -> Thing:
    """A passenger car seen from its `rear` or `front` with its inner flank, or from the `side`."""
    width, height, length = rng.uniform(1.7, 1.95), rng.uniform(1.4, 1.75), rng.uniform(3.9, 4.9)
    shade, tint = rng.choice([0.03, 0.05, 0.1, 0.3, 0.5]), rng.uniform(0.8, 1.1, 3)
    paint = Surface(tuple(shade * tint), rng.uniform(0.06, 0.35), 0.15, 0.1)
    glass, rubber = Surface((0.02, 0.02, 0.025), 0.04, 0.1, 0.3), Surface((0.02, 0.02, 0.02), 0.08)
    belt, half = height * 0.58, width / 2
    if view == "side":
        profile = np.array([(0, 0.3), (0.02, 0.85), (0.12, belt + 0.05), (0.3, height), (0.62, height),
                            (0.78, belt + 0.08), (0.97, belt - 0.08), (1, 0.3)])
        roof = height - 0.09
        window = np.array([(0.19, belt + 0.04), (0.32, roof), (0.6, roof), (0.72, belt + 0.06)])
        flip = rng.choice([-1, 1])
        scale, start = [flip * length, 1], [x - flip * length / 2, 0]
        parts = [(upright(shape * scale + start, distance), surface)
                 for shape, surface in ((profile, paint), (window, glass))]
        parts += [(ellipse(x + hub * length, 0.32, 0.32, 0.32, distance), rubber) for hub in (-0.31, 0.31)]
        return Thing(distance, parts, "PassengerCar", (x, 0, distance), (height, width, length))
    flank = x - np.sign(x) * half
    parts = [(rectangle(x - half, 0.0, x + half, 0.3, distance + 0.5), rubber)]
    if abs(x) > half:

        def along(points: list[tuple[float, float]]) -> Array:
            return np.array([(flank, y, distance + z) for z, y in points])

        parts.append((along([(0, 0.3), (length, 0.3), (length, belt), (0, belt)]), scaled(paint, 0.8)))
        panes = [(0.4, belt), (length - 1.1, belt), (length - 1.7, height), (0.9, height)]
        parts.append((along(panes), glass))
        for wheel in (0.8, length - 0.8):
            turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
            parts.append((along([(wheel + 0.32 * np.cos(t), 0.32 + 0.32 * np.sin(t)) for t in turn]), rubber))
        parts.sort(key=lambda part: -part[0][:, 2].max())
    for tyre in (x - half + 0.12, x + half - 0.12):
        parts.append((rectangle(tyre - 0.1, 0, tyre + 0.1, 0.4, distance), rubber))
    body = [(half, 0.28), (half, belt), (half * 0.8, height)]
    window = [(half * 0.85, belt), (half * 0.7, height - 0.08)]
    for shape, surface in ((body, paint), (window, glass)):
        mirrored = np.array(shape + [(-u, v) for u, v in shape[::-1]])
        parts.append((upright(mirrored + [x, 0], distance), surface))
    plate = Surface((0.5, 0.5, 0.45), 0.6, retro=rng.uniform(3, 10))
    parts.append((rectangle(x - 0.26, 0.48, x + 0.26, 0.6, distance), plate))
    front = view == "front"
    level, size = (0.65, (0.17, 0.09)) if front else (belt - 0.12, (0.1, 0.09))
    brightness = rng.uniform(0.6, 3) if front else 0.3
    glow = np.array([1.0, 0.93, 0.8] if front else [1.0, 0.05, 0.03]) * brightness * lights
    colour = (0.3, 0.3, 0.3) if front else (0.25, 0.02, 0.02)
    lamp = Surface(colour, 0.4, retro=1.0 if front else rng.uniform(4, 12), glow=tuple(glow),
                   nir_glow=(500.0 if front else 60.0) * lights)
    parts += [(ellipse(x + side * (half - 0.2), level, *size, distance), lamp) for side in (-1, 1)]
    return Thing(distance, parts, "PassengerCar", (x, 0, distance), (height, width, length))


def bush(rng: np.random.Generator, x: float, distance: float, height: float) -> Thing:
    """Leaves around a mound: vegetation is dark to the eye at night and bright in the near infrared."""
    count, nir = int(rng.integers(18, 40)), rng.uniform(0.2, 0.6)
    parts = []
    for level in np.sort(rng.uniform(0.05, 1, count))[::-1]:
        radius = height * rng.uniform(0.07, 0.16)
        spread = height * 0.42 * np.sqrt(max(1 - level, 0.05))
        leaf = Surface((0.05, 0.07, 0.03), nir * rng.uniform(0.3, 1.0), texture=0.6)
        middle = max(radius, level * height - radius)
        parts.append((ellipse(x + rng.normal(0, spread), middle, radius, radius, distance, 7), leaf))
    return Thing(distance, parts)


def tree(rng: np.random.Generator, x: float, distance: float) -> Thing:
    """A bare winter tree: trunk and two generations of branches."""
    bark = Surface((0.06, 0.05, 0.04), rng.uniform(0.15, 0.4), texture=0.3)
    trunk, height = rng.uniform(0.12, 0.25), rng.uniform(2.2, 4)
    fork = np.array([x, height])
    parts = [(limb(np.array([x, 0.0]), fork, trunk, trunk * 0.7, distance), bark)]
    for _ in range(int(rng.integers(5, 9))):
        angle = rng.normal(0, 0.6)
        tip = fork + rng.uniform(1.5, 3.5) * np.array([np.sin(angle), np.cos(angle)])
        parts.append((limb(fork, tip, trunk * 0.4, trunk * 0.12, distance), bark))
        for _ in range(3):
            root = fork + (tip - fork) * rng.uniform(0.4, 1)
            turn = angle + rng.normal(0, 0.7)
            twig = root + rng.uniform(0.5, 1.5) * np.array([np.sin(turn), np.cos(turn)])
            parts.append((limb(root, twig, trunk * 0.12, 0.01, distance), bark))
    return Thing(distance, parts)


def post(rng: np.random.Generator, x: float, distance: float) -> Thing:
    """A bollard, bin, cabinet or short post of about a person's height: easily taken for a person."""
    height, half = rng.uniform(0.8, 1.9), rng.uniform(0.05, 0.3)
    grey = rng.uniform(0.03, 0.25)
    body = Surface((grey, grey, grey), rng.uniform(0.15, 0.6))
    parts = [(rectangle(x - half * w, 0, x + half * w, height, distance), scaled(body, s))
             for w, s in ((1, 0.6), (0.8, 0.85), (0.5, 1))]
    if rng.random() < 0.4:
        parts.append((ellipse(x, height, half * 1.2, half * 1.2, distance), body))
    if rng.random() < 0.2:
        band = Surface((0.5, 0.5, 0.5), 0.6, retro=rng.uniform(1, 6))
        parts.append((rectangle(x - half, height * 0.8, x + half, height * 0.9, distance), band))
    return Thing(distance, parts)


def sign(rng: np.random.Generator, x: float, distance: float) -> Thing:
    """A pole with a retroreflective plate of one of a few shapes and colours."""
    level, radius = rng.uniform(2.1, 3.2), rng.uniform(0.3, 0.45)
    colour = ((0.5, 0.03, 0.04), (0.05, 0.12, 0.5), (0.6, 0.6, 0.55), (0.6, 0.45, 0.05))[rng.integers(4)]
    plate = Surface(colour, 0.6, texture=0.1, retro=rng.uniform(4, 20))
    corners = int(rng.choice([3, 4, 8, 16]))
    pole = Surface((0.2, 0.2, 0.2), rng.uniform(0.2, 0.5))
    inner = Surface((0.6, 0.6, 0.6), 0.5, texture=0.1, retro=plate.retro)
    parts = [(rectangle(x - 0.04, 0, x + 0.04, level + radius, distance), pole),
             (ellipse(x, level, radius, radius, distance, corners), plate),
             (rectangle(x - radius * 0.5, level - 0.05, x + radius * 0.5, level + 0.06, distance), inner)]
    if rng.random() < 0.4:
        below = level - radius
        parts.append((rectangle(x - 0.3, below - 0.3, x + 0.3, below - 0.05, distance), inner))
    return Thing(distance, parts)


def street_lamp(rng: np.random.Generator, x: float, distance: float, scene: Scene) -> Thing:
    """A lamp post that glows and, through `scene.lamps`, lights what stands near it."""
    height, arm = rng.uniform(5, 7.5), x - np.sign(x) * 1.2
    colour = np.array([1.0, 0.72, 0.38]) if rng.random() < 0.6 else np.array([1.0, 0.93, 0.8])
    scene.lamps.append((np.array([arm, height, distance]), log_uniform(rng, 0.25, 2.0), colour))
    metal = Surface((0.15, 0.15, 0.15), 0.3)
    bulb = Surface((0.5, 0.5, 0.5), 0.3, glow=tuple(1.5 * colour), nir_glow=40.0)
    parts = [(rectangle(x - 0.07, 0, x + 0.07, height, distance), metal),
             (rectangle(min(x, arm), height - 0.04, max(x, arm), height + 0.04, distance), metal),
             (ellipse(arm, height - 0.05, 0.25, 0.09, distance), bulb)]
    return Thing(distance, parts)


def surroundings(rng: np.random.Generator, edge: float) -> list[Thing]:
    """Road, marks, verges, house fronts along the road to X = +-edge and what closes the view far off."""

    def ground(x0: float, x1: float, z0: float, z1: float) -> Array:
        return np.array([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)], float)

    asphalt = Surface((0.09, 0.085, 0.08), rng.uniform(0.1, 0.25), 0.02, 0.35)
    verge_tone, snowy = rng.uniform(0.06, 0.16), rng.random() < 0.2
    blue = verge_tone * (1.0 if snowy else 0.6)
    verge = Surface((verge_tone, verge_tone, blue), rng.uniform(0.2, 0.5), 0.12, 0.8)
    paint = Surface((0.4, 0.4, 0.38), 0.5, 0.05, 0.4)
    parts = [(ground(-90, 90, 3, 400), verge), (ground(-6.2, 2.9, 3, 400), asphalt)]
    parts += [(ground(-1.82, -1.68, z, z + 3), paint) for z in np.arange(4 + rng.uniform(0, 6), 110, 8)]
    if rng.random() < 0.6:
        parts += [(ground(x - 0.06, x + 0.06, 3, 150), paint) for x in (-5.3, 1.8)]
    if rng.random() < 0.3:  # a zebra crossing
        start = rng.uniform(10, 35)
        parts += [(ground(x, x + 0.5, start, start + 3), paint) for x in np.arange(-5.9, 2.5, 1.0)]
    kerb = Surface((0.15, 0.15, 0.14), 0.35, 0.3, 0.4)
    for x in (-6.2, 2.9):
        parts.append((np.array([(x, 0, 3), (x, 0, 200), (x, 0.12, 200), (x, 0.12, 3)], float), kerb))
    things = [Thing(1000, parts)]
    for _ in range(int(rng.integers(5, 12))):  # silhouettes
        x, half, tall = rng.uniform(-60, 60), rng.uniform(3, 12), rng.uniform(3, 16)
        z = rng.uniform(120, 220)
        wall = Surface((0.05, 0.05, 0.05), rng.uniform(0.1, 0.5))
        house = [(rectangle(x - half, 0, x + half, tall, z), wall)]
        for _ in range(int(rng.integers(0, 4))):
            lit = log_uniform(rng, 0.0015, 0.03)
            glow = (lit, 0.8 * lit, 0.5 * lit)
            u, v = x + rng.uniform(-half, half), rng.uniform(1, tall)
            house.append((rectangle(u, v, u + 0.8, v + 1.2, z), Surface((0.1, 0.1, 0.1), 0.1, glow=glow)))
        things.append(Thing(500 + z, house))
    things.append(Thing(720, [(rectangle(-90, 0, 90, 1.6, 230), Surface((0.02, 0.02, 0.02), 0.3))]))
    for side in (-1, 1):
        if rng.random() < 0.4:
            continue
        x, near, far = side * edge, rng.uniform(6, 30), rng.uniform(45, 110)
        tall = rng.uniform(5, 11)
        tone = rng.uniform(0.04, 0.2)
        wall = Surface((tone, tone * 0.9, tone * 0.75), rng.uniform(0.15, 0.5), 0.1, 0.3)

        def front(z0: float, z1: float, y0: float, y1: float, x: float = x) -> Array:
            return np.array([(x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)])

        house = [(front(near, far, 0, tall), wall)]
        for z in np.arange(near + 1.5, far - 2, rng.uniform(3, 5)):
            for y in np.arange(1.2, tall - 1.5, 2.8):
                lit = (rng.random() < 0.07) * log_uniform(rng, 0.0015, 0.03)
                glow = (lit, 0.8 * lit, 0.5 * lit)
                pane = Surface((0.04, 0.04, 0.05), rng.uniform(0.02, 0.8), 0.1, glow=glow)
                house.append((front(z, z + 1.2, y, y + 1.5), pane))
        things.append(Thing(400 + far, house))
    return things


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw one night road scene; it does not depend on the image size."""
    scene = Scene([], camera_height=rng.uniform(1.25, 1.55), ambient=log_uniform(rng, 4e-4, 1e-2),
                  veil=rng.uniform(6e-4, 1.4e-3), headlight=rng.uniform(15, 45),
                  beam_cut=rng.uniform(-0.014, -0.004), shot_gain=log_uniform(rng, 2e-5, 3e-4))
    edge = rng.uniform(8, 13)
    things = surroundings(rng, edge)

    def roadside() -> float:
        return float(rng.choice([-1, 1]) * rng.uniform(3.6, edge - 0.5) - 1.0 * (rng.random() < 0.5))

    cars = []
    for _ in range(int(rng.choice(5, p=[0.25, 0.25, 0.25, 0.15, 0.1]))):
        role, z = rng.random(), rng.uniform(12, 70)
        if role < 0.55:  # parked
            x, view = rng.choice([-7.3, 3.9]) + rng.uniform(-0.3, 0.3), str(rng.choice(["rear", "front"]))
            cars.append(car(rng, x, z, view, False))
        elif role < 0.75:
            cars.append(car(rng, -3.5 + rng.uniform(-0.4, 0.4), z + 10, "front", True))
        elif role < 0.9:
            cars.append(car(rng, rng.uniform(-0.4, 0.4), z + 15, "rear", True))
        else:
            cars.append(car(rng, rng.uniform(-6, 5), z + 15, "side", False))
    things += cars
    for maker, most in ((sign, 4), (post, 5), (tree, 3)):
        things += [maker(rng, roadside(), rng.uniform(9, 75)) for _ in range(int(rng.integers(0, most + 1)))]
    for _ in range(int(rng.integers(0, 6))):
        x, z, height = roadside(), rng.uniform(10, 60), rng.uniform(0.6, 2.0)
        things += [bush(rng, x + 0.7 * k * height, z, height) for k in range(int(rng.integers(1, 4)))]
    if rng.random() < 0.45:
        for _ in range(int(rng.integers(1, 3))):
            x = rng.choice([-8.0, 5.0]) + rng.uniform(-1, 1)
            things.append(street_lamp(rng, x, rng.uniform(15, 65), scene))

    count = int(rng.choice(7, p=[0.1, 0.22, 0.24, 0.18, 0.12, 0.08, 0.06]))
    crowd, meeting = 3 * (count >= 3 and rng.random() < 0.12), None  # three who stand together
    for index in range(count):
        z = rng.uniform(8, 35) if rng.random() < 0.8 else rng.uniform(5, 60)
        left, right = (max(-edge + 0.5, -0.26 * z), min(edge - 0.5, 0.24 * z))
        x = rng.uniform(left, right)
        if cars and rng.random() < 0.15:  # behind a car's edge
            shield = cars[rng.integers(len(cars))]
            x = shield.position[0] + rng.choice([-1, 1]) * rng.uniform(0.3, 1.1)
            z = shield.distance + shield.dimensions[2] + rng.uniform(0.5, 3)
        if index < crowd:
            meeting = meeting or (x, z)
            x, z = meeting[0] + index * rng.uniform(0.25, 0.4), meeting[1] + rng.uniform(-0.3, 0.3)
        for shield in cars:  # nobody stands inside a car
            rear = shield.distance + shield.dimensions[2]
            inside = abs(x - shield.position[0]) < 1.1 and shield.distance - 0.4 < z < rear + 0.4
            z = rear + 0.5 if inside else z
        things.append(person(rng, x, min(z, 60.0 + index * 0.1), 0 if index < crowd else -1))
    scene.things = sorted(things, key=lambda thing: -thing.distance)
    return scene


# --------------------------------------------------------------------------------------------- rendering


@lru_cache(maxsize=1)
def world_texture() -> Array:
    """Periodic 1/f noise of mean 0 and deviation 1: (TEXTURE_CELLS, TEXTURE_CELLS) float32."""
    frequency = np.hypot(np.fft.fftfreq(TEXTURE_CELLS)[:, None], np.fft.rfftfreq(TEXTURE_CELLS)[None])
    frequency[0, 0] = np.inf
    noise = np.fft.rfft2(np.random.default_rng(0).standard_normal((TEXTURE_CELLS, TEXTURE_CELLS)))
    texture = np.fft.irfft2(noise / frequency)
    return (texture / texture.std()).astype(np.float32)


def rasterise(scene: Scene, size: tuple[int, int], rng: np.random.Generator) -> Raster:
    """Paint the parts far to near and locate every pixel in space.

    A part lies in the plane n . P = 1, so 1 / Z = n . (x, y, 1) at the normalised pixel (x, y); the cosine of
    incidence is 1 / (|n| |P|). Small images are drawn larger: limbs thinner than a pixel keep their share.
    """
    factor = 2 if size[1] < 384 else 1
    width, height = size[0] * factor, size[1] * factor
    focal = (FOCAL * width / LABEL_SIZE[0], FOCAL * height / LABEL_SIZE[1])
    centre = (CENTRE[0] * width / LABEL_SIZE[0], CENTRE[1] * height / LABEL_SIZE[1])
    sky = Surface((0, 0, 0), 0.0)
    parts = [part for thing in scene.things for part in thing.parts]
    owner = np.repeat(np.arange(len(scene.things)), [len(thing.parts) for thing in scene.things])
    points = np.concatenate([corners for corners, _ in parts]) * [1, -1, 1] + [0, scene.camera_height, 0]
    pixels = points[:, :2] / points[:, 2:] * focal + centre
    ends = np.cumsum([len(corners) for corners, _ in parts])
    outlines = np.split(pixels, ends[:-1])
    canvas = Image.new("I", (width, height), 0)
    draw = ImageDraw.Draw(canvas)
    for index, outline in enumerate(outlines):
        draw.polygon(outline.ravel().tolist(), fill=index + 1)
    part = np.asarray(canvas).astype(np.intp)

    counts = np.diff(ends, prepend=0)
    first = ends - counts
    triangles = points[np.stack([first, first + counts // 3, first + 2 * counts // 3], 1)]
    normals = np.linalg.solve(triangles, np.ones((len(parts), 3, 1)))[..., 0]
    normals = np.vstack([[0, 0, 1e-4], normals]).astype(np.float32)
    x = ((np.arange(width, dtype=np.float32) + 0.5 - centre[0]) / focal[0])[None]
    y = ((np.arange(height, dtype=np.float32) + 0.5 - centre[1]) / focal[1])[:, None]
    inverse = normals[:, 0].copy()[part] * x + normals[:, 1].copy()[part] * y + normals[:, 2].copy()[part]
    depth = 1 / np.clip(inverse, 1e-4, 1.0)
    across, up = x * depth, scene.camera_height - y * depth
    distance = depth * np.sqrt(1 + x * x + y * y)
    surfaces = [sky, *(surface for _, surface in parts)]
    rough = np.array([surface.rough for surface in surfaces], np.float32)
    cosine = np.minimum(1 / (np.linalg.norm(normals, axis=1).astype(np.float32)[part] * distance), 1)
    incidence = cosine + rough[part] * (1 - cosine)

    offset = rng.integers(0, TEXTURE_CELLS, 2)
    row = ((up + 0.7 * depth) * (1 / TEXTURE_CELL)).astype(np.int32) + offset[0]
    column = ((across + 0.3 * depth) * (1 / TEXTURE_CELL)).astype(np.int32) + offset[1]
    grain = world_texture()[row & (TEXTURE_CELLS - 1), column & (TEXTURE_CELLS - 1)]
    strength = np.array([surface.texture for surface in surfaces], np.float32)
    texture = np.clip(1 + strength[part] * grain, 0.1, 2.5)
    per_thing = [[outlines[k] for k in np.flatnonzero(owner == index)] for index in range(len(scene.things))]
    owner = np.concatenate([[-1], owner])
    point = (across, up, depth)
    return Raster(size, factor, part, point, distance, incidence, texture, surfaces, owner, per_thing)


def shrink(image: Array, factor: int) -> Array:
    """Mean over factor x factor pixels of (H, W)."""
    if factor == 1:
        return image
    offsets = range(factor)
    return sum(image[row::factor, column::factor] for row in offsets for column in offsets) / factor**2


def blur(image: Array, sigma: float) -> Array:
    """Wide Gaussian blur of (H, W), on a reduced image because the kernel is far wider than a pixel."""
    height, width = image.shape
    step = max(1, round(sigma / 1.5))
    small = (-(-width // step), -(-height // step))
    reduced = np.asarray(Image.fromarray(image).resize(small, Image.Resampling.BOX))
    kernel = np.exp(-0.5 * (np.arange(-6, 7) * step / sigma) ** 2).astype(np.float32)
    for _ in range(2):  # along the columns, then, turned, along the rows
        padded = np.pad(reduced, ((6, 6), (0, 0)))
        reduced = sum(weight * padded[k:k + len(reduced)] for k, weight in enumerate(kernel / kernel.sum())).T
    blurred = Image.fromarray(np.ascontiguousarray(reduced))
    return np.asarray(blurred.resize((width, height), Image.Resampling.BICUBIC))


def headlight_beam(scene: Scene, raster: Raster) -> Array:
    """Irradiance (H, W) of the car's own low beam: sharp upper edge that rises to the right, 1 / r^2."""
    x, y, z = raster.point
    slope, side = (y - 0.65) / z, x / z
    edge = scene.beam_cut + np.clip(0.26 * side, 0, 0.03)
    below = edge - slope
    lit = 1 / (1 + np.exp(np.clip(-below / 0.006, -30, 30)))
    beam = lit * (np.exp(-np.maximum(below, 0) / 0.04) + 0.15) * np.exp(-((side - 0.02) / 0.2) ** 2) + 0.015
    return scene.headlight * beam / np.maximum(raster.distance, 3) ** 2


def rgb_camera(scene: Scene, raster: Raster, rng: np.random.Generator) -> Array:
    """The RGB image, (H, W, 3) uint8.

    Linear light = albedo * (ambient + own headlights + lamps) + glow + glare + veil, then Poisson-Gauss noise
    of variance s L + r with ln r = 2.18 ln s + 1.20 + N(0, 0.26), then the night tone curve. s lies below the
    range usual for hand-held cameras: the official night frame's noise of 1-3 grey levels asks for it.
    """
    table = np.array([(*s.rgb, s.retro, *s.glow) for s in raster.surfaces], np.float32).T.copy()
    beam = headlight_beam(scene, raster)
    x, y, z = raster.point
    beam = beam * (raster.incidence + 0.5 * table[3][raster.part])
    lamp_light = [(np.float32(power) * np.clip((position[1] - y) / position[1], 0, 1)
                   / ((x - position[0]) ** 2 + (y - position[1]) ** 2 + (z - position[2]) ** 2 + 1), colour)
                  for position, power, colour in scene.lamps]
    sky = (raster.part == 0) * np.exp(-np.clip(y / z, 0, 1) / 0.1) * np.float32(0.12 * scene.ambient)
    width, height = raster.size
    image = np.empty((height, width, 3), np.float32)
    ambient_colour, beam_colour = (1.1, 1.0, 0.75), (1.05, 1.0, 0.85)
    for channel in range(3):
        light = beam * beam_colour[channel] + scene.ambient * ambient_colour[channel]
        for strength, colour in lamp_light:
            light += strength * colour[channel]
        glow = table[4 + channel][raster.part]
        radiance = shrink(table[channel][raster.part] * raster.texture * light + sky + glow, raster.factor)
        radiance = radiance + scene.veil * (1.1, 1.0, 0.8)[channel]
        if glow.any():
            source = np.ascontiguousarray(shrink(glow, raster.factor), np.float32)
            for sigma, weight in ((0.006, 0.03), (0.05, 0.015)):
                radiance = radiance + weight * blur(source, sigma * width)
        image[..., channel] = radiance
    gain = scene.shot_gain
    read = np.exp(2.18 * np.log(gain) + 1.20 + rng.normal(0, 0.26))
    image += np.sqrt(gain * image + np.float32(read)) * rng.standard_normal(image.shape, np.float32)
    return np.clip(np.interp(image, *NIGHT_TONE) * 255 + 0.5, 0, 255).astype(np.uint8)


@lru_cache(maxsize=1)
def range_profiles() -> tuple[Array, Array]:
    """Ranges (R,) in metres and S_i(r) = K N_i w_i(r) / r^2 in DN at albedo 1, (3, R).

    w_i is the overlap, in metres, of the echo [2r/c, 2r/c + laser] with the gate [delay, delay + gate],
    smoothed because neither has ideal edges.
    """
    step = 0.25
    ranges = np.arange(step, 260, step)
    echo = 2 * ranges / LIGHT_SPEED
    reach = np.arange(-6 * EDGE_SOFTNESS, 6 * EDGE_SOFTNESS + step, step)
    kernel = np.exp(-0.5 * (reach / EDGE_SOFTNESS) ** 2)
    profiles = []
    for delay, laser, gate, pulses in GATES:
        overlap = np.minimum(echo + laser, delay + gate) - np.maximum(echo, delay)
        metres = np.convolve(np.clip(overlap, 0, None) * LIGHT_SPEED / 2, kernel / kernel.sum(), "same")
        profiles.append(GATED_GAIN * pulses * metres / ranges**2)
    return ranges, np.array(profiles)


def gated_camera(scene: Scene, raster: Raster, rng: np.random.Generator) -> list[Array]:
    """Three slices (H, W) uint8: dark level + albedo * S_i(range) * flood + noise, saturated, 10 bit >> 2."""
    table = np.array([(s.nir, s.retro, s.nir_glow) for s in raster.surfaces], np.float32).T.copy()
    x, y, z = raster.point
    flood = np.exp(-((x / z / 0.4) ** 2) - ((y - scene.camera_height) / z / 0.25) ** 2)
    reflected = (table[0][raster.part] * raster.texture * raster.incidence + table[1][raster.part]) * flood
    ranges, profiles = range_profiles()
    glow = table[2][raster.part]
    slices = []
    for profile, dark in zip(profiles, DARK_LEVEL, strict=True):
        index = np.clip(raster.distance / (ranges[1] - ranges[0]) - 0.5, 0, len(ranges) - 1).astype(np.int32)
        signal = shrink(reflected * profile.astype(np.float32)[index] + glow, raster.factor)
        noise = GATED_NOISE * rng.standard_normal(signal.shape, np.float32)
        digital = np.clip(signal + dark + noise, 0, 1023).astype(np.uint16)
        slices.append((digital >> 2).astype(np.uint8))
    return slices


# --------------------------------------------------------------------------------------------- labels


def full_mask(outlines: list[Array], shape: tuple[int, int]) -> tuple[tuple[int, ...], Array, float]:
    """A thing's mask before occlusion: window (x0, y0, x1, y1) in the image, mask, share cut by the edge."""
    points = np.concatenate(outlines)
    low, high = np.floor(points.min(0)).astype(int) - 1, np.ceil(points.max(0)).astype(int) + 2
    x0, y0 = np.clip(low, 0, (shape[1], shape[0]))
    x1, y1 = np.clip(high, 0, (shape[1], shape[0]))
    if x1 <= x0 or y1 <= y0:
        return (0, 0, 0, 0), np.zeros((0, 0), bool), 1.0
    canvas = Image.new("1", (int(x1 - x0), int(y1 - y0)))
    draw = ImageDraw.Draw(canvas)
    for outline in outlines:
        draw.polygon((outline - (x0, y0)).ravel().tolist(), fill=1)
    outside = 1 - (x1 - x0) * (y1 - y0) / np.prod(high - low)
    return (int(x0), int(y0), int(x1), int(y1)), np.asarray(canvas), float(outside)


def contrast(image: Array, body: Array, others: Array) -> float:
    """How far a body stands out of the window `image` (h, w): |mean(body) - mean(ring)| / spread(ring).

    `body` are its visible pixels, the ring is the window without it and `others` (people). Mean and spread of
    the ring are its median and half its 16-84 % range: the mean and standard deviation of noise and texture,
    that one lamp or sign beside the person does not inflate. The spread counts as at least FAINTEST, a step
    hard to see on a dark screen. Visible means more than VISIBLE_CONTRAST; for the gated camera in any slice.
    """
    ring = image[~others & ~body]
    if not body.any() or ring.size < 4:
        return 0.0
    low, middle, high = np.percentile(ring, (16, 50, 84))
    return float(abs(image[body].mean() - middle) / max((high - low) / 2, FAINTEST))


def label_lines(scene: Scene, raster: Raster, rgb: Array, gated: list[Array]) -> list[str]:
    """The 27-column lines of one frame; tight boxes of the whole body, clipped, in LABEL_SIZE pixels."""
    shape = raster.part.shape
    scale = np.array([LABEL_SIZE[0] / shape[1], LABEL_SIZE[1] / shape[0]])
    owner = raster.owner[raster.part]
    people = np.array([thing.kind == "Pedestrian" for thing in scene.things] + [False])  # last: the sky's -1
    grey = rgb.mean(2)
    found: dict[int, list[tuple]] = {}
    for index, thing in enumerate(scene.things):
        if not thing.kind:
            continue
        (x0, y0, x1, y1), mask, outside = full_mask(raster.outlines[index], shape)
        if not mask.any():
            continue
        visible = owner[y0:y1, x0:x1] == index
        hidden = 1 - visible.sum() / mask.sum()
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = np.array([x0 + columns[0], y0 + rows[0], x0 + columns[-1] + 1, y0 + rows[-1] + 1], float)
        if hidden <= HIDDEN_LIMIT:
            unit = thing.group if thing.group >= 0 else 1000 + index
            found.setdefault(unit, []).append((index, box, float(np.clip(hidden, 0, 1)), outside))
    lines = []
    for members in found.values():
        single = len(members) < 3
        for batch in [[member] for member in members] if single else [members]:
            things = [scene.things[index] for index, *_ in batch]
            boxes = np.array([box for _, box, *_ in batch])
            box = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
            hidden, outside = (float(np.mean([member[k] for member in batch])) for k in (2, 3))
            margin = max(2 * raster.factor, 0.12 * (box[3] - box[1]))
            x0, y0 = np.maximum(box[:2] - margin, 0).astype(int) // raster.factor
            x1, y1 = (np.minimum(box[2:] + margin, shape[::-1]) / raster.factor).astype(int)
            window = owner[y0 * raster.factor:y1 * raster.factor, x0 * raster.factor:x1 * raster.factor]
            own = np.isin(window, [index for index, *_ in batch])
            body = shrink(own.astype(np.float32), raster.factor) > 0.5
            others = shrink(people[window].astype(np.float32), raster.factor) > 0
            seen_rgb = contrast(grey[y0:y1, x0:x1], body, others) > VISIBLE_CONTRAST
            seen = max(contrast(view[y0:y1, x0:x1], body, others) for view in gated) > VISIBLE_CONTRAST
            thing = things[0]
            size, place = thing.dimensions, (thing.position[0], scene.camera_height, thing.position[2])
            if len(batch) > 1:
                size, place = (-1, -1, -1), (-1000, -1000, np.mean([member.distance for member in things]))
            x0, y0, x1, y1 = (box.reshape(2, 2) * scale).ravel()
            name = thing.kind + "_is_group" * (len(batch) > 1)
            occlusion = sum(hidden > limit for limit in (0.1, 0.45))
            numbers = " ".join(f"{value:.2f}" for value in (x0, y0, x1, y1, *size, *place))
            lines.append(f"{name} {outside:.2f} {occlusion} -1 {numbers} -1000 0.000 0.000 0.000 1.00 "
                         f"-1000 -1000 -1000 -1000 {bool(seen_rgb)} {bool(seen)} -1 -1")
    return lines


# --------------------------------------------------------------------------------------------- files


def frame_name(index: int) -> str:
    return f"night_{index:06d}"


def write_atomically(path: Path, content: Image.Image | str) -> None:
    """Write an image as PNG or a text; a reader never meets half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if isinstance(content, str):
        temporary.write_text(content)
    else:
        content.save(temporary, "PNG", compress_type=zlib.Z_HUFFMAN_ONLY)  # noise: the smallest and fastest
    temporary.replace(path)


def write_frame(index: int, seed: int, size: tuple[int, int], out: Path) -> bool:
    """Simulate and store one frame, determined by (seed, index) alone; True if it has a labelled person."""
    rng = np.random.default_rng([seed, index])
    scene = sample_scene(rng)
    raster = rasterise(scene, size, rng)
    rgb, gated = rgb_camera(scene, raster, rng), gated_camera(scene, raster, rng)
    lines = label_lines(scene, raster, rgb, gated)
    name = frame_name(index)
    write_atomically(out / "images" / f"{name}.png", Image.fromarray(rgb))
    for number, view in enumerate(gated):
        write_atomically(out / f"gated{number}" / f"{name}.png", Image.fromarray(view))
    write_atomically(out / "gated_labels" / f"{name}.txt", "".join(line + "\n" for line in lines))
    return any(line.startswith("Pedestrian") for line in lines)


def make_data(out: Path, frames: list[int], size: tuple[int, int], seed: int, workers: int) -> None:
    """Write the prepared layout under `out`; the lists come last, so that a list promises its frames."""
    for folder in ("images", "gated0", "gated1", "gated2", "gated_labels"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    work, total = partial(write_frame, seed=seed, size=size, out=out), sum(frames)
    progress = partial(tqdm, total=total, unit="frame", desc=str(out), disable=None)
    if workers == 1:
        peopled = list(progress(map(work, range(total))))
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            peopled = list(progress(pool.map(work, range(total), chunksize=4)))
    train, val, _ = np.cumsum(frames)
    lists = {"train_night": range(train), "val_night": range(train, val), "test_night": range(val, total)}
    lists["vis_night"] = [index for index in lists["test_night"] if peopled[index]][:12]
    for name, indices in lists.items():
        write_atomically(out / f"{name}.txt", "".join(frame_name(index) + "\n" for index in indices))


class Parser(argparse.ArgumentParser):
    """Refuses in one line: a wrong call is no reason to print the whole usage."""

    def error(self, message: str) -> None:
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(2)


def parse_arguments() -> argparse.Namespace:
    """Command line, checked; exits with 2 and one line on standard error when it can't be followed."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data"), help="new or empty folder (default: data)")
    parser.add_argument("--frames", type=int, nargs=3, default=[1500, 300, 300],
                        metavar=("TRAIN", "VAL", "TEST"), help="frames per list (default: 1500 300 300)")
    parser.add_argument("--size", default="1280x768", help="image size WxH in pixels (default: 1280x768)")
    parser.add_argument("--seed", type=int, default=0, help="frame i depends on (seed, i) only (default: 0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: all cores)")
    options = parser.parse_args()
    width, _, height = options.size.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) > 0 and int(height) > 0):
        parser.error(f"--size must be WIDTHxHEIGHT in pixels, such as 1280x768, not '{options.size}'")
    options.size = (int(width), int(height))
    if min(options.frames) < 0 or options.frames[0] == 0:
        parser.error(f"--frames needs at least 1 training frame and no negative count, not {options.frames}")
    if options.seed < 0:
        parser.error(f"--seed must not be negative, not {options.seed}")
    if options.workers < 1:
        parser.error(f"--workers must be at least 1, not {options.workers}")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        parser.error(f"--out {options.out} exists and is not an empty folder; nothing was written")
    return options


def main() -> None:
    options = parse_arguments()
    make_data(options.out, options.frames, options.size, options.seed, options.workers)


if __name__ == "__main__":
    main()

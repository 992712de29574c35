"""What stands on the simulated road: matter, people, vehicles, street furniture, houses, and the light and weather.

`sample_scene(rng, condition, time)` draws one place and moves it on to a time. World axes: X right, Y up from the
road, Z forward, metres, camera at (0, camera_height, 0). Every thing is made of planar polygons, so that its depth is
exact at every pixel. Nothing here knows of cameras' pixels or of the image size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

Array = np.ndarray
NEAREST = 2.5  # m: what comes nearer has left the picture
FARTHEST_PERSON, NEAREST_PERSON = 90.0, 5.0  # m
LEFT_KERB, RIGHT_KERB = -6.2, 2.9  # X of the road's edges; the own lane is around 0


@dataclass(frozen=True)
class Condition:
    """Ranges of light and air; a place's values are log-uniform in them."""

    ambient: tuple[float, float]  # irradiance of sky and town, 1 = a white wall fills the RGB sensor's scale
    visibility: tuple[float, float]  # meteorological optical range, m
    day: bool = False
    snow: bool = False


CONDITIONS = {
    "clear_day": Condition((0.35, 0.8), (4e3, 2e4), day=True),
    "clear_night": Condition((3e-4, 8e-3), (4e3, 2e4)),
    "light_fog_night": Condition((3e-4, 8e-3), (120, 350)),
    "dense_fog_night": Condition((3e-4, 8e-3), (45, 90)),
    "snow_night": Condition((5e-4, 1e-2), (350, 1500), snow=True),
    "dusk": Condition((1.2e-2, 6e-2), (3e3, 2e4)),
}


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


Part = tuple[Array, Surface]  # corners (N, 3) in metres, matter


@dataclass
class Thing:
    """An object of the scene, its parts drawn in their order."""

    distance: float
    parts: list[Part]
    kind: str = ""  # label class, "" = not labelled
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    dimensions: tuple[float, float, float] = (-1.0, -1.0, -1.0)  # height, width, length in metres
    group: int = -1  # things of one group >= 0 stand so close that they share one label
    velocity: tuple[float, float] = (0.0, 0.0)  # m / s along X and Z over the ground


@dataclass
class Scene:
    """Things sorted far to near, and the light, the air and the camera of the frame."""

    things: list[Thing]
    condition: Condition
    camera_height: float
    speed: float  # m / s, own car
    extinction: float  # 1 / m
    ambient: float  # irradiance of sky and town
    veil: float  # black level plus stray light in the lens
    headlight: float  # intensity, linear light m^2
    beam_cut: float  # slope of the low beam's upper edge
    shot_gain: float  # s of the Poisson-Gaussian noise
    shake: float  # radians that the view turns sideways in one RGB exposure
    lamps: list[tuple[Array, float, Array]] = field(default_factory=list)  # position, intensity, colour


# --------------------------------------------------------------------------------------------- shapes


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number whose logarithm is uniform between those of `low` and `high`."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def upright(points: list[tuple[float, float]] | Array, distance: float) -> Array:
    """Points (X, Y) on the plane facing the camera at `distance`: (N, 3)."""
    placed = np.empty((len(points), 3))
    placed[:, :2] = points
    placed[:, 2] = distance
    return placed


def rectangle(x0: float, y0: float, x1: float, y1: float, distance: float) -> Array:
    """Upright rectangle facing the camera: (4, 3)."""
    return upright([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], distance)


def ground(x0: float, x1: float, z0: float, z1: float) -> Array:
    """Rectangle on the road plane: (4, 3)."""
    return np.array([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)], float)


def front(x: float, z0: float, z1: float, y0: float, y1: float) -> Array:
    """Upright rectangle along the road at X = x: (4, 3)."""
    return np.array([(x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)], float)


@lru_cache
def unit_circle(corners: int) -> Array:
    """Corners (N, 2) of a regular polygon of radius 1, the first at (1, 0)."""
    angle = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def ellipse(x: float, y: float, radius_x: float, radius_y: float, z: float, corners: int = 14) -> Array:
    """Upright ellipse as a polygon: (corners, 3)."""
    return upright(unit_circle(corners) * (radius_x, radius_y) + (x, y), z)


def ring(x: float, y: float, radius: float, width: float, z: float) -> Array:
    """Upright ring as one polygon that runs round outside and back inside: (34, 3)."""
    circle = np.concatenate([unit_circle(16), unit_circle(16)[:1]])
    return upright([x, y] + np.concatenate([radius * circle, (radius - width) * circle[::-1]]), z)


def limb(start: Array, end: Array, radius_start: float, radius_end: float, distance: float) -> Array:
    """Tapered capsule from `start` to `end` (X, Y): (14, 3)."""
    along = (end - start) / max(np.hypot(*(end - start)), 1e-9)
    cap = unit_circle(12)[:7] @ ((-along[1], along[0]), (-along[0], -along[1]))  # half a circle around the start
    points = np.empty((14, 3))
    points[:7, :2] = start + radius_start * cap
    points[7:, :2] = end - radius_end * cap
    points[:, 2] = distance
    return points


def shaded(surface: Surface, factor: float) -> Surface:
    """The same surface with its albedos multiplied by `factor`."""
    red, green, blue = surface.rgb
    return Surface((factor * red, factor * green, factor * blue), factor * surface.nir, surface.rough, surface.texture,
                   surface.retro, surface.glow, surface.nir_glow)


def rounded(start: Array, end: Array, radii: tuple[float, float], distance: float, surface: Surface) -> list[Part]:
    """A limb lit from the camera: a dim rim and brighter cores, as a cylinder under Lambert's law shows."""
    return [(limb(start, end, width * radii[0], width * radii[1], distance), shaded(surface, shade))
            for width, shade in ((1.0, 0.7), (0.8, 0.88), (0.5, 1.0))]


# --------------------------------------------------------------------------------------------- people


def clothing(rng: np.random.Generator) -> Surface:
    """Cloth: mostly dark to the eye, and bright at 808 nm whatever its dye."""
    dark = 0.03 * 10 ** (1.15 * rng.random() ** 1.4)
    colour = np.clip(dark * rng.uniform(0.6, 1.3, 3), 0.015, 0.5)
    return Surface(tuple(colour), rng.uniform(0.3, 0.7), texture=0.12)


def direction(angle: float) -> Array:
    """Unit vector (X, Y) that hangs down at angle 0 and turns to +X."""
    return np.array([np.sin(angle), -np.cos(angle)])


def person(rng: np.random.Generator, x: float, distance: float, time: float = 0.0, pose: str = "") -> Thing:
    """A person of 1.0..2.0 m, seen from any side, with jointed arms and legs.

    `pose` is `walking`, `standing`, `seated` or `riding`, drawn where it is empty. A walker's stride and place follow
    `time` in seconds; no random number depends on it.
    """
    height = float(np.clip(rng.normal(1.72, 0.1) if rng.random() < 0.85 else rng.uniform(1.0, 1.5), 1.0, 2.0))
    drawn = str(rng.choice(["walking", "standing", "seated"], p=[0.68, 0.24, 0.08]))
    pose = pose or drawn
    side = 1.0 if pose == "riding" else abs(np.cos(rng.uniform(0, np.pi)))  # 1 = across the view, 0 = along it
    forward = float(rng.choice([-1.0, 1.0]))
    phase, stride = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.55)
    speed, still = rng.uniform(0.8, 1.7), rng.uniform(0.0, 0.08)
    away = float(rng.choice([-1.0, 1.0])) * np.sqrt(1 - side**2)
    if pose == "walking":
        stride *= np.sin(phase + 2 * np.pi * 0.9 * time)
    else:
        stride, speed = still, 0.0
    velocity = (forward * side * speed, away * speed)
    x, distance = x + velocity[0] * time, distance + velocity[1] * time
    build = rng.uniform(0.9, 1.25)
    radius = build * (0.115 - 0.045 * side)
    top, bottom, shoe = clothing(rng), clothing(rng), Surface((0.05, 0.05, 0.05), rng.uniform(0.15, 0.5))
    tone = rng.uniform(0.3, 1)
    skin = Surface((0.4 * tone, 0.3 * tone, 0.22 * tone), rng.uniform(0.4, 0.6))
    hair = Surface((0.05, 0.04, 0.03), rng.uniform(0.25, 0.45)) if rng.random() < 0.6 else clothing(rng)
    facing = forward * side
    lean = facing * {"walking": abs(stride) * 0.06, "standing": 0.0, "seated": -0.02, "riding": 0.14}[pose]
    hip, neck = np.array([0.0, 0.51]), np.array([lean, 0.815])
    sitting = pose in ("seated", "riding")

    parts = []
    for index in (0, 1):  # far limbs first, the torso between them and the near ones
        swing = stride * (1 if index else -1)
        across = (2 * index - 1) * (1 - side)  # -1..1: to the left or right of the spine
        thigh = facing * swing + across * rng.uniform(0.0, 0.12)
        bend = facing * rng.uniform(0.05, 0.5) * (swing < 0)
        thigh_length = 0.245
        if sitting:  # seen from ahead, a horizontal thigh is short
            raised = 1.35 if pose == "seated" else 0.5 + 0.8 * index
            thigh, bend = facing * raised + 0.15 * across, facing * (raised + (0.0 if pose == "seated" else 0.25))
            thigh_length *= max(side, 0.35)
        top_of_leg = hip + [across * radius * 0.45, 0.0]
        knee = top_of_leg + thigh_length * direction(thigh)
        ankle = knee + 0.235 * direction(thigh - bend)
        toe = ankle + [facing * 0.075 + across * 0.02, -0.01]
        leg = rounded(ankle, toe, (0.02, 0.016), distance, shoe)
        leg += rounded(knee, ankle, (0.036 * build, 0.026 * build), distance, bottom)
        leg += rounded(top_of_leg, knee, (0.052 * build, 0.038 * build), distance, bottom)
        shoulder = neck + [across * radius * 0.95, -0.035]
        lift = -facing * swing * 1.1 + across * rng.uniform(0.1, 0.4) + facing * (0.9 if pose == "riding" else 0.0)
        elbow = shoulder + 0.165 * direction(lift)
        fold = lift + facing * rng.uniform(0.1, 0.9) - across * rng.uniform(0, 0.3)
        hand = elbow + 0.15 * direction(fold)
        arm = [(ellipse(*hand, 0.02, 0.025, distance), skin)]
        arm += rounded(elbow, hand, (0.026 * build, 0.02 * build), distance, top)
        arm += rounded(shoulder, elbow, (0.034 * build, 0.027 * build), distance, top)
        parts += leg + arm if index == 0 else leg
    hem = 0.5 if sitting else rng.choice([0.48, 0.5, 0.3], p=[0.5, 0.35, 0.15])  # where the coat ends
    for width, shade in ((1.0, 0.65), (0.82, 0.85), (0.55, 1.0)):
        waist, chest = radius * 0.85 * width, radius * width
        flank = [(waist, hem), (waist * 0.9, 0.6), (chest, 0.75), (chest * 0.9, 0.8), (chest * 0.45, 0.835)]
        outline = flank + [(-u, v) for u, v in flank[::-1]]
        torso = [(u + lean * (v - 0.51) / 0.305, v) for u, v in outline]
        parts.append((upright(torso, distance), shaded(top, shade)))
    parts += arm
    if rng.random() < 0.3 and not sitting:  # a bag or a rucksack
        bag = -forward * radius * (1.1 if side > 0.5 else rng.uniform(0.7, 1.1))
        parts += rounded(np.array([bag, 0.62]), np.array([bag, 0.75]), (0.05, 0.05), distance, clothing(rng))
    head = neck + [facing * 0.012, 0.095]
    parts.append((limb(neck, head, 0.03, 0.03, distance), shaded(skin, 0.7)))
    parts.append((ellipse(*head, 0.05, 0.068, distance), shaded(hair, 0.85)))
    face = head + [facing * 0.014, -0.012]
    parts.append((ellipse(*face, 0.038, 0.05, distance), skin if rng.random() < 0.7 else hair))
    if rng.random() < 0.05:  # a reflective band
        strip = Surface((0.5, 0.5, 0.4), 0.6, retro=rng.uniform(3, 10))
        parts.append((rectangle(-radius * 0.8, 0.64, radius * 0.8, 0.665, distance), strip))

    highest = max(points[:, 1].max() for points, _ in parts)
    lowest = min(points[:, 1].min() for points, _ in parts)
    scale = height if sitting else height / (highest - lowest)
    raised_by = 0.3 if pose == "riding" else 0.0  # the pedal's height
    shapes = [(points * [scale, scale, 1] + [x, raised_by - lowest * scale, 0], surface) for points, surface in parts]
    dimensions = (scale * (highest - lowest), 2 * height * radius, 0.2 * height)
    return Thing(distance, shapes, "Pedestrian", (x, 0.0, distance), dimensions, velocity=velocity)


def bicycle(rng: np.random.Generator, x: float, distance: float) -> Thing:
    """A bicycle seen from the side, about 1.7 m long."""
    paint = Surface(tuple(rng.uniform(0.02, 0.4, 3)), rng.uniform(0.2, 0.5))
    rubber = Surface((0.03, 0.03, 0.03), 0.1)
    rear, bottom, saddle, head, fork = ([-0.52, 0.34], [-0.08, 0.3], [-0.25, 0.85], [0.36, 0.85], [0.52, 0.34])
    flip = float(rng.choice([-1, 1]))
    tubes = [(rear, bottom), (bottom, saddle), (saddle, head), (head, fork), (bottom, head), (rear, saddle)]
    parts = [(ring(x + flip * hub, 0.34, 0.34, 0.045, distance), rubber) for hub in (-0.52, 0.52)]
    parts += [(limb(np.array(a) * [flip, 1] + [x, 0], np.array(b) * [flip, 1] + [x, 0], 0.02, 0.02, distance), paint)
              for a, b in tubes]
    reflector = Surface((0.4, 0.02, 0.02), 0.5, retro=rng.uniform(2, 8))
    parts.append((ellipse(x - flip * 0.6, 0.6, 0.035, 0.035, distance, 8), reflector))
    return Thing(distance, parts, "RidableVehicle", (x, 0.0, distance), (1.05, 0.5, 1.75))


def cyclist(rng: np.random.Generator, x: float, distance: float, time: float) -> Thing:
    """A person riding across the view: one `RidableVehicle`, as the data set labels them."""
    velocity = (float(rng.choice([-1.0, 1.0])) * rng.uniform(2.5, 5), 0.0)
    x += velocity[0] * time
    machine, rider = bicycle(rng, x, distance), person(rng, x - 0.1, distance, pose="riding")
    return replace(machine, parts=machine.parts + rider.parts, dimensions=(1.75, 0.6, 1.75), velocity=velocity)


def bench(x: float, distance: float) -> Thing:
    """What a seated person sits on."""
    wood = Surface((0.12, 0.08, 0.05), 0.35)
    parts = [(rectangle(x - 0.7, 0.42, x + 0.7, 0.5, distance), wood)]
    parts += [(rectangle(x + side - 0.04, 0.0, x + side + 0.04, 0.42, distance), wood) for side in (-0.6, 0.6)]
    return Thing(distance, parts)


# --------------------------------------------------------------------------------------------- vehicles


def lamp_pair(x: float, half: float, level: float, size: tuple[float, float], distance: float, front_side: bool,
              brightness: float, lights: bool, retro: float) -> list[Part]:
    """Head lamps (`front_side`) or tail lamps, lit where `lights`."""
    glow = np.array([1.0, 0.93, 0.8] if front_side else [1.0, 0.05, 0.03]) * brightness * lights
    colour = (0.3, 0.3, 0.3) if front_side else (0.25, 0.02, 0.02)
    lamp = Surface(colour, 0.4, retro=1.0 if front_side else retro, glow=tuple(glow),
                   nir_glow=(500.0 if front_side else 60.0) * lights)
    return [(ellipse(x + side * (half - 0.2), level, *size, distance), lamp) for side in (-1, 1)]


def flank_of(x: float, half: float, distance: float) -> Callable[[list[tuple[float, float]]], Array]:
    """The side wall that the camera sees of a vehicle seen from its end: points (z, y) -> (N, 3)."""
    wall = x - np.sign(x) * half
    return lambda points: np.array([(wall, y, distance + z) for z, y in points])


def car(rng: np.random.Generator, x: float, distance: float, view: str, lights: bool) -> Thing:
    """A passenger car seen from its `rear` or `front` with its inner flank, or from the `side`."""
    width, height, length = rng.uniform(1.7, 1.95), rng.uniform(1.4, 1.75), rng.uniform(3.9, 4.9)
    shade, tint = rng.choice([0.03, 0.05, 0.1, 0.3, 0.5]), rng.uniform(0.8, 1.1, 3)
    paint = Surface(tuple(shade * tint), rng.uniform(0.06, 0.35), 0.15, 0.1)
    glass, rubber = Surface((0.02, 0.02, 0.025), 0.04, 0.1, 0.3), Surface((0.02, 0.02, 0.02), 0.08)
    belt, half = height * 0.58, width / 2
    flip, plate_retro, brightness, tail_retro = (
        rng.choice([-1, 1]), rng.uniform(3, 10), rng.uniform(0.6, 3), rng.uniform(4, 12))
    if view == "side":
        profile = np.array([(0, 0.3), (0.02, 0.85), (0.12, belt + 0.05), (0.3, height), (0.62, height),
                            (0.78, belt + 0.08), (0.97, belt - 0.08), (1, 0.3)])
        roof = height - 0.09
        window = np.array([(0.19, belt + 0.04), (0.32, roof), (0.6, roof), (0.72, belt + 0.06)])
        scale, start = [flip * length, 1], [x - flip * length / 2, 0]
        parts = [(upright(shape * scale + start, distance), surface)
                 for shape, surface in ((profile, paint), (window, glass))]
        parts += [(ellipse(x + hub * length, 0.32, 0.32, 0.32, distance), rubber) for hub in (-0.31, 0.31)]
        return Thing(distance, parts, "PassengerCar", (x, 0, distance), (height, width, length))
    parts = [(rectangle(x - half, 0.0, x + half, 0.3, distance + 0.5), rubber)]
    if abs(x) > half:
        along = flank_of(x, half, distance)
        parts.append((along([(0, 0.3), (length, 0.3), (length, belt), (0, belt)]), shaded(paint, 0.8)))
        parts.append((along([(0.4, belt), (length - 1.1, belt), (length - 1.7, height), (0.9, height)]), glass))
        for wheel in (0.8, length - 0.8):
            turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
            parts.append((along([(wheel + 0.32 * np.cos(t), 0.32 + 0.32 * np.sin(t)) for t in turn]), rubber))
        parts.sort(key=lambda part: -part[0][:, 2].max())
    parts += [(rectangle(tyre - 0.1, 0, tyre + 0.1, 0.4, distance), rubber)
              for tyre in (x - half + 0.12, x + half - 0.12)]
    body = [(half, 0.28), (half, belt), (half * 0.8, height)]
    window = [(half * 0.85, belt), (half * 0.7, height - 0.08)]
    for shape, surface in ((body, paint), (window, glass)):
        mirrored = np.array(shape + [(-u, v) for u, v in shape[::-1]])
        parts.append((upright(mirrored + [x, 0], distance), surface))
    plate = Surface((0.5, 0.5, 0.45), 0.6, retro=plate_retro)
    parts.append((rectangle(x - 0.26, 0.48, x + 0.26, 0.6, distance), plate))
    if view == "front":
        parts += lamp_pair(x, half, 0.65, (0.17, 0.09), distance, True, brightness, lights, tail_retro)
    else:
        parts += lamp_pair(x, half, belt - 0.12, (0.1, 0.09), distance, False, 0.3, lights, tail_retro)
    return Thing(distance, parts, "PassengerCar", (x, 0, distance), (height, width, length))


def lorry(rng: np.random.Generator, x: float, distance: float, view: str, lights: bool) -> Thing:
    """A lorry or van seen from its `rear` or `front`: a box with lamps and retroreflective marks."""
    width, height, length = rng.uniform(2.0, 2.5), rng.uniform(2.4, 3.6), rng.uniform(6, 11)
    half, shade = width / 2, rng.choice([0.05, 0.15, 0.4, 0.55])
    paint = Surface(tuple(shade * rng.uniform(0.7, 1.1, 3)), rng.uniform(0.15, 0.5), 0.3, 0.1)
    glass, rubber = Surface((0.02, 0.02, 0.025), 0.04, 0.1, 0.3), Surface((0.02, 0.02, 0.02), 0.08)
    brightness, retro = rng.uniform(0.6, 3), rng.uniform(4, 12)
    parts = [(rectangle(x - half, 0.1, x + half, 0.5, distance + 0.5), rubber)]
    if abs(x) > half:
        parts.append((flank_of(x, half, distance)([(0, 0.5), (length, 0.5), (length, height), (0, height)]),
                      shaded(paint, 0.8)))
    parts.append((rectangle(x - half, 0.5, x + half, height, distance), paint))
    parts += [(rectangle(tyre - 0.15, 0, tyre + 0.15, 0.6, distance), rubber)
              for tyre in (x - half + 0.2, x + half - 0.2)]
    if view == "front":
        parts.append((rectangle(x - half * 0.9, height * 0.5, x + half * 0.9, height * 0.78, distance), glass))
    else:
        mark = Surface((0.5, 0.1, 0.05), 0.5, retro=retro)
        parts += [(rectangle(x - half, 0.7, x - half * 0.5, 0.82, distance), mark),
                  (rectangle(x + half * 0.5, 0.7, x + half, 0.82, distance), mark)]
    parts += lamp_pair(x, half, 0.9, (0.14, 0.1), distance, view == "front", brightness if view == "front" else 0.3,
                       lights, retro)
    return Thing(distance, parts, "LargeVehicle", (x, 0, distance), (height, width, length))


# --------------------------------------------------------------------------------------------- street


def bush(rng: np.random.Generator, x: float, distance: float, height: float) -> Thing:
    """Leaves around a mound: vegetation is dark to the eye at night and bright in the near infrared."""
    count, nir = int(rng.integers(18, 40)), rng.uniform(0.2, 0.6)
    level = np.sort(rng.uniform(0.05, 1, count))[::-1]
    radius = height * rng.uniform(0.07, 0.16, count)
    middle = np.stack([x + rng.normal(0, height * 0.42 * np.sqrt(np.maximum(1 - level, 0.05))),
                       np.maximum(radius, level * height - radius)], 1)
    shapes = np.full((count, 7, 3), float(distance))
    shapes[..., :2] = middle[:, None] + radius[:, None, None] * unit_circle(7)
    leaves = (Surface((0.05, 0.07, 0.03), nir * brightness, texture=0.6) for brightness in rng.uniform(0.3, 1, count))
    return Thing(distance, list(zip(shapes, leaves, strict=True)))


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
    parts = [(rectangle(x - half * w, 0, x + half * w, height, distance), shaded(body, s))
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
    """A lamp post that, by night, glows and through `scene.lamps` lights what stands near it."""
    height, arm = rng.uniform(5, 7.5), x - np.sign(x) * 1.2
    colour = np.array([1.0, 0.72, 0.38]) if rng.random() < 0.6 else np.array([1.0, 0.93, 0.8])
    power = log_uniform(rng, 0.25, 2.0)
    lit = not scene.condition.day
    if lit:
        scene.lamps.append((np.array([arm, height, distance]), power, colour))
    metal = Surface((0.15, 0.15, 0.15), 0.3)
    bulb = Surface((0.5, 0.5, 0.5), 0.3, glow=tuple(1.5 * colour * lit), nir_glow=40.0 * lit)
    parts = [(rectangle(x - 0.07, 0, x + 0.07, height, distance), metal),
             (rectangle(min(x, arm), height - 0.04, max(x, arm), height + 0.04, distance), metal),
             (ellipse(arm, height - 0.05, 0.25, 0.09, distance), bulb)]
    return Thing(distance, parts)


def road(rng: np.random.Generator, edge: float, travelled: float, snow: bool) -> Thing:
    """Asphalt, marks, kerbs, pavements and verges out to X = +-edge and beyond; in snow, white beside the wheels."""
    asphalt = Surface((0.09, 0.085, 0.08), rng.uniform(0.1, 0.25), 0.02, 0.2)
    verge_tone, white = rng.uniform(0.06, 0.16), rng.random() < 0.2
    verge = Surface((verge_tone, verge_tone, verge_tone * 0.6), rng.uniform(0.2, 0.5), 0.12, 0.45)
    slabs = Surface((0.13, 0.125, 0.12), rng.uniform(0.2, 0.35), 0.05, 0.3)
    paint = Surface((0.4, 0.4, 0.38), 0.5, 0.05, 0.4)
    kerb = Surface((0.15, 0.15, 0.14), 0.35, 0.3, 0.4)
    first_mark, edge_lines = rng.uniform(0, 8), rng.random() < 0.6
    crossing, has_crossing = rng.uniform(10, 45), rng.random() < 0.3
    pavement = min(edge - 3.0, rng.uniform(1.5, 3.5))
    if snow or white:
        verge = Surface((0.5, 0.5, 0.52), 0.45, 0.2, 0.2)
    if snow:
        slabs = replace(verge, texture=0.3)
    parts = [(ground(-90, 90, 3, 400), verge),
             (ground(LEFT_KERB - pavement, RIGHT_KERB + pavement, 3, 400), slabs),
             (ground(LEFT_KERB, RIGHT_KERB, 3, 400), asphalt)]
    if snow:  # what the wheels have not cleared
        parts += [(ground(x - 0.3, x + 0.3, 3, 400), shaded(verge, 0.4)) for x in (-5.4, -3.6, -1.75, 0.0, 2.2)]
    for start in np.arange(first_mark - 8 - travelled % 8, 110, 8):
        if start + 3 > 3.2:
            parts.append((ground(-1.82, -1.68, max(start, 3), start + 3), paint))
    if edge_lines:
        parts += [(ground(x - 0.06, x + 0.06, 3, 150), paint) for x in (-5.3, 1.8)]
    if has_crossing and crossing - travelled > 3:
        parts += [(ground(x, x + 0.5, crossing - travelled, crossing - travelled + 3), paint)
                  for x in np.arange(-5.9, 2.5, 1.0)]
    parts += [(front(x, 3, 200, 0, 0.12), kerb) for x in (LEFT_KERB, RIGHT_KERB)]
    return Thing(1000, parts)


def houses(rng: np.random.Generator, edge: float, travelled: float, lit_windows: bool) -> list[Thing]:
    """House fronts along the road, silhouettes far off, and a wall that closes the view."""
    things = []

    def lit_glow() -> tuple[float, float, float]:
        lit = log_uniform(rng, 0.0015, 0.03) * lit_windows
        return (lit, 0.8 * lit, 0.5 * lit)

    for _ in range(int(rng.integers(5, 12))):  # silhouettes
        x, half, tall = rng.uniform(-60, 60), rng.uniform(3, 12), rng.uniform(3, 16)
        z = rng.uniform(120, 220)
        tone = rng.uniform(0.04, 0.2)
        wall = Surface((tone, tone * 0.95, tone * 0.85), rng.uniform(0.1, 0.5))
        house = [(rectangle(x - half, 0, x + half, tall, z), wall)]
        for _ in range(int(rng.integers(0, 4))):
            u, v = x + rng.uniform(-half, half), rng.uniform(1, tall)
            house.append((rectangle(u, v, u + 0.8, v + 1.2, z), Surface((0.1, 0.1, 0.1), 0.1, glow=lit_glow())))
        things.append(Thing(500 + z, house))
    things.append(Thing(720, [(rectangle(-90, 0, 90, 1.6, 230), Surface((0.02, 0.02, 0.02), 0.3))]))
    for side in (-1, 1):
        if rng.random() < 0.4:
            continue
        x, near, far = side * edge, rng.uniform(6, 30), rng.uniform(60, 120)
        tall, tone = rng.uniform(5, 11), rng.uniform(0.04, 0.3)
        wall = Surface((tone, tone * 0.9, tone * 0.75), rng.uniform(0.15, 0.5), 0.1, 0.3)
        house = [(front(x, max(near - travelled, NEAREST), far - travelled, 0, tall), wall)]
        for z in np.arange(near + 1.5, far - 2, rng.uniform(3, 5)):
            for y in np.arange(1.2, tall - 1.5, 2.8):
                glow = lit_glow() if rng.random() < 0.07 else (0.0, 0.0, 0.0)
                pane = Surface((0.04, 0.04, 0.05), rng.uniform(0.02, 0.8), 0.1, glow=glow)
                if z - travelled > NEAREST:
                    house.append((front(x, z - travelled, z - travelled + 1.2, y, y + 1.5), pane))
        things.append(Thing(400 + far, house))
    return things


def snowflakes(rng: np.random.Generator) -> list[Thing]:
    """Flakes near the camera, as many in each m^3; they fall through the beams of headlights and laser."""
    count = int(rng.integers(250, 700))
    distance = NEAREST + 7.5 * rng.random(count) ** (1 / 3)
    x, y = distance * rng.uniform(-0.29, 0.27, count), 1.45 + distance * rng.uniform(-0.19, 0.11, count)
    size, slant = rng.uniform(0.0015, 0.004, count), rng.normal(0.3, 0.2)
    flake = Surface((0.7, 0.7, 0.7), 0.7, texture=0.0)
    return [Thing(z, [(upright([(u - r, v), (u, v - r), (u + r, v), (u + 2 * r * slant, v + 3 * r)], z), flake)])
            for u, v, z, r in zip(x, y, distance, size, strict=True) if v > 0]


# --------------------------------------------------------------------------------------------- scene


def vehicles(rng: np.random.Generator, travelled: float, time: float, day: bool) -> list[Thing]:
    """Parked, oncoming, leading and crossing vehicles, moved on to the time."""
    things = []
    for _ in range(int(rng.choice(6, p=[0.2, 0.22, 0.24, 0.16, 0.1, 0.08]))):
        role, z, large = rng.random(), rng.uniform(12, 80), rng.random() < 0.15
        drift, lane, speed = rng.uniform(-0.4, 0.4), rng.choice([-7.3, 3.9]), rng.uniform(5, 12)
        parked_view = str(rng.choice(["rear", "front"]))
        make = lorry if large else car
        if role < 0.55:
            x, along, view, lights = lane + drift, 0.0, parked_view, False
        elif role < 0.75:
            x, along, view, lights = -3.5 + drift, -speed, "front", not day
        elif role < 0.9:
            x, along, view, lights = drift, speed, "rear", not day
        else:
            x, along, view, lights, make = 6 * drift, 0.0, "side", False, car
        thing = make(rng, x, z + 10 * (role >= 0.55) + along * time - travelled, view, lights)
        things.append(replace(thing, velocity=(0.0, along)))
    return things


def people(rng: np.random.Generator, edge: float, cars: list[Thing], travelled: float, time: float) -> list[Thing]:
    """Walking, standing and seated people, alone and in groups, with and without bicycles, some behind cars."""
    things = []
    count = int(rng.choice(8, p=[0.08, 0.2, 0.22, 0.18, 0.13, 0.08, 0.06, 0.05]))
    crowd, meeting = int(rng.integers(3, 6)) * (count >= 3 and rng.random() < 0.2), None
    for index in range(max(count, crowd)):
        z = rng.uniform(8, 35) if rng.random() < 0.7 else rng.uniform(NEAREST_PERSON, FARTHEST_PERSON)
        x = rng.uniform(max(-edge + 0.5, -0.26 * z), min(edge - 0.5, 0.24 * z))
        gap, depth = rng.choice([-1, 1]) * rng.uniform(0.3, 1.1), rng.uniform(0.5, 3)
        spread, skew, hides = rng.uniform(0.25, 0.4), rng.uniform(-0.3, 0.3), rng.random() < 0.15
        role = rng.random()
        if index < crowd:
            meeting = meeting or (x, z)
            x, z = meeting[0] + index * spread, meeting[1] + skew
        z -= travelled
        if cars and hides and index >= crowd:  # behind a car's edge
            shield = cars[index % len(cars)]
            x, z = shield.position[0] + gap, shield.distance + shield.dimensions[2] + depth
        for shield in cars:  # nobody stands inside a car
            rear = shield.distance + shield.dimensions[2]
            if abs(x - shield.position[0]) < 1.2 and shield.distance - 0.4 < z < rear + 0.4:
                z = rear + 0.5
        z = min(z, FARTHEST_PERSON)
        if index < crowd:
            things.append(replace(person(rng, x, z, pose="standing"), group=0))
        elif role < 0.08:
            things.append(cyclist(rng, x, z, time))
        elif role < 0.14:
            walker = person(rng, x, z, time, pose="walking")
            things += [walker, replace(bicycle(rng, walker.position[0] + 0.3, walker.distance - 0.3),
                                       velocity=walker.velocity)]
        else:
            one = person(rng, x, z, time)
            things.append(one)
            if one.dimensions[0] < 1.45 and one.velocity == (0.0, 0.0):
                things.append(bench(one.position[0], one.distance + 0.15))
    return things


def sample_scene(rng: np.random.Generator, condition: Condition, time: float = 0.0) -> Scene:
    """Draw a place, and move its people, vehicles and the own car on by `time` seconds.

    With an `rng` in the same state the place is the same at every time: no random number depends on it.
    """
    scene = Scene([], condition, camera_height=rng.uniform(1.3, 1.6), speed=rng.uniform(0, 8),
                  extinction=np.log(20) / log_uniform(rng, *condition.visibility),
                  ambient=log_uniform(rng, *condition.ambient), veil=rng.uniform(8e-4, 1.6e-3),
                  headlight=rng.uniform(15, 45), beam_cut=rng.uniform(-0.014, -0.004),
                  shot_gain=log_uniform(rng, 2e-5, 3e-4), shake=abs(rng.normal(0, 8e-4)))
    travelled, edge = scene.speed * time, rng.uniform(8, 13)
    things = [road(rng, edge, travelled, condition.snow), *houses(rng, edge, travelled, not condition.day)]

    def roadside() -> float:
        return float(rng.choice([-1, 1]) * rng.uniform(3.6, edge - 0.5) - 1.0 * (rng.random() < 0.5))

    cars = vehicles(rng, travelled, time, condition.day)
    things += cars
    for maker, most in ((sign, 4), (post, 5), (tree, 3)):
        things += [maker(rng, roadside(), rng.uniform(9, 85) - travelled)
                   for _ in range(int(rng.integers(0, most + 1)))]
    for _ in range(int(rng.integers(0, 6))):
        x, z, height = roadside(), rng.uniform(10, 70) - travelled, rng.uniform(0.6, 2.0)
        things += [bush(rng, x + 0.7 * k * height, z, height) for k in range(int(rng.integers(1, 4)))]
    if rng.random() < 0.5:
        for _ in range(int(rng.integers(1, 4))):
            x = rng.choice([-8.0, 5.0]) + rng.uniform(-1, 1)
            things.append(street_lamp(rng, x, rng.uniform(15, 75) - travelled, scene))
    things += people(rng, edge, cars, travelled, time)
    if condition.snow:
        things += snowflakes(rng)
    scene.lamps = [lamp for lamp in scene.lamps if lamp[0][2] > 0]
    present = [thing for thing in things if thing.distance > NEAREST]
    scene.things = sorted(present, key=lambda thing: -thing.distance)
    return scene

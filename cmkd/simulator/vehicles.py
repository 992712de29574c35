"""Cars and lorries."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from cmkd.simulator.shapes import Part, Surface, Thing, ellipse, rectangle, shaded, upright

GLASS = Surface((0.02, 0.02, 0.025), 0.04, 0.1, 0.3)
RUBBER = Surface((0.02, 0.02, 0.02), 0.08)


@dataclass(frozen=True)
class Vehicle:
    """A vehicle's place and size in metres. It is along the road unless seen from the side."""

    x: float
    distance: float
    height: float
    width: float
    length: float

    @property
    def half(self) -> float:
        """Half the width."""
        return self.width / 2

    @property
    def belt(self) -> float:
        """The height at which a car's windows begin, in metres."""
        return self.height * 0.58

    @property
    def flank_in_view(self) -> bool:
        """Whether the camera sees a side wall: it looks past the vehicle."""
        return abs(self.x) > self.half

    def flank(self, points: list[tuple[float, float]]) -> np.ndarray:
        """(z, y) on the side wall in view, z from the near end -> [N, 3]."""
        wall = self.x - np.sign(self.x) * self.half
        return np.array([(wall, y, self.distance + z) for z, y in points])

    def thing(self, parts: list[Part], kind: str) -> Thing:
        """The vehicle as a labelled thing."""
        position = (self.x, 0, self.distance)
        dimensions = (self.height, self.width, self.length)
        return Thing(self.distance, parts, kind, position, dimensions)


def lamps(
    vehicle: Vehicle, level: float, radii: tuple[float, float], surface: Surface
) -> list[Part]:
    """The two lamps at the near end, `level` above the road, in metres."""
    parts = []
    for side in (-1, 1):
        centre = vehicle.x + side * (vehicle.half - 0.2)
        parts.append((ellipse(centre, level, *radii), surface))
    return parts


def tyres(vehicle: Vehicle, inset: float, half_width: float, height: float) -> list[Part]:
    """The two tyres at the near end, `inset` from the edge of the body, in metres."""
    parts = []
    for x in (vehicle.x - vehicle.half + inset, vehicle.x + vehicle.half - inset):
        outline = rectangle(x - half_width, 0, x + half_width, height)
        parts.append((outline, RUBBER))
    return parts


def head_lamp(brightness: float, lit: bool) -> Surface:
    """A head lamp; `brightness` is linear light."""
    glow = np.array([1.0, 0.93, 0.8]) * brightness * lit
    return Surface((0.3, 0.3, 0.3), 0.4, retro=1.0, glow=tuple(glow), nir_glow=500.0 * lit)


def tail_lamp(retro: float, lit: bool) -> Surface:
    """A tail lamp, which is a reflector too."""
    glow = np.array([1.0, 0.05, 0.03]) * 0.3 * lit
    return Surface((0.25, 0.02, 0.02), 0.4, retro=retro, glow=tuple(glow), nir_glow=60.0 * lit)


def car(rng: Generator, x: float, distance: float, view: str, lit: bool) -> Thing:
    """A passenger car; the camera sees its `rear`, its `front` or its `side`."""
    width, height, length = rng.uniform(1.7, 1.95), rng.uniform(1.4, 1.75), rng.uniform(3.9, 4.9)
    vehicle = Vehicle(x, distance, height, width, length)
    shade, tint = rng.choice([0.03, 0.05, 0.1, 0.3, 0.5]), rng.uniform(0.8, 1.1, 3)
    paint = Surface(tuple(shade * tint), rng.uniform(0.06, 0.35), 0.15, 0.1)
    flip = rng.choice([-1, 1])
    plate = Surface((0.5, 0.5, 0.45), 0.6, retro=rng.uniform(3, 10))
    brightness, tail_retro = rng.uniform(0.6, 3), rng.uniform(4, 12)
    if view == "side":
        return vehicle.thing(car_from_side(vehicle, paint, flip), "PassengerCar")

    underside = rectangle(x - vehicle.half, 0.0, x + vehicle.half, 0.3)
    parts = [(upright(underside, distance + 0.5), RUBBER)]
    if vehicle.flank_in_view:
        parts += car_flank(vehicle, paint)
        parts.sort(key=lambda part: -part[0][:, 2].max())  # far to near
    parts += car_end(vehicle, paint)
    parts.append((rectangle(x - 0.26, 0.48, x + 0.26, 0.6), plate))
    if view == "front":
        parts += lamps(vehicle, 0.65, (0.17, 0.09), head_lamp(brightness, lit))
    else:
        parts += lamps(vehicle, vehicle.belt - 0.12, (0.1, 0.09), tail_lamp(tail_retro, lit))
    return vehicle.thing(parts, "PassengerCar")


def car_from_side(vehicle: Vehicle, paint: Surface, flip: int) -> list[Part]:
    """A car across the view, its nose to the right if `flip` is 1, else to the left."""
    x, length = vehicle.x, vehicle.length
    belt, roof = vehicle.belt, vehicle.height - 0.09
    # (share of the length, height in metres)
    body = [
        (0, 0.3),
        (0.02, 0.85),
        (0.12, belt + 0.05),
        (0.3, vehicle.height),
        (0.62, vehicle.height),
        (0.78, belt + 0.08),
        (0.97, belt - 0.08),
        (1, 0.3),
    ]
    window = [(0.19, belt + 0.04), (0.32, roof), (0.6, roof), (0.72, belt + 0.06)]
    parts = []
    for outline, surface in ((body, paint), (window, GLASS)):
        points = np.array(outline) * [flip * length, 1] + [x - flip * length / 2, 0]
        parts.append((points, surface))
    wheels = [ellipse(x + hub * length, 0.32, 0.32, 0.32) for hub in (-0.31, 0.31)]
    return parts + [(wheel, RUBBER) for wheel in wheels]


def car_flank(vehicle: Vehicle, paint: Surface) -> list[Part]:
    """The side wall of a car along the road: sheet metal, windows and two wheels."""
    length, height, belt = vehicle.length, vehicle.height, vehicle.belt
    metal = [(0, 0.3), (length, 0.3), (length, belt), (0, belt)]
    windows = [(0.4, belt), (length - 1.1, belt), (length - 1.7, height), (0.9, height)]
    parts = [(vehicle.flank(metal), shaded(paint, 0.8)), (vehicle.flank(windows), GLASS)]
    for hub in (0.8, length - 0.8):
        turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        wheel = [(hub + 0.32 * np.cos(angle), 0.32 + 0.32 * np.sin(angle)) for angle in turn]
        parts.append((vehicle.flank(wheel), RUBBER))
    return parts


def car_end(vehicle: Vehicle, paint: Surface) -> list[Part]:
    """The rear or front of a car: tyres, body and window."""
    x, half, belt = vehicle.x, vehicle.half, vehicle.belt
    parts = tyres(vehicle, inset=0.12, half_width=0.1, height=0.4)
    # Right half, (X from the middle, Y) in metres.
    body = [(half, 0.28), (half, belt), (half * 0.8, vehicle.height)]
    window = [(half * 0.85, belt), (half * 0.7, vehicle.height - 0.08)]
    for right, surface in ((body, paint), (window, GLASS)):
        outline = np.array(right + [(-u, v) for u, v in right[::-1]])
        parts.append((outline + [x, 0], surface))
    return parts


def lorry(rng: Generator, x: float, distance: float, view: str, lit: bool) -> Thing:
    """A lorry or van seen from its `rear` or `front`: a box with lamps and reflective marks."""
    width, height, length = rng.uniform(2.0, 2.5), rng.uniform(2.4, 3.6), rng.uniform(6, 11)
    vehicle = Vehicle(x, distance, height, width, length)
    half, shade = vehicle.half, rng.choice([0.05, 0.15, 0.4, 0.55])
    paint = Surface(tuple(shade * rng.uniform(0.7, 1.1, 3)), rng.uniform(0.15, 0.5), 0.3, 0.1)
    brightness, retro = rng.uniform(0.6, 3), rng.uniform(4, 12)

    parts = [(upright(rectangle(x - half, 0.1, x + half, 0.5), distance + 0.5), RUBBER)]
    if vehicle.flank_in_view:
        wall = [(0, 0.5), (length, 0.5), (length, height), (0, height)]
        parts.append((vehicle.flank(wall), shaded(paint, 0.8)))
    parts.append((rectangle(x - half, 0.5, x + half, height), paint))
    parts += tyres(vehicle, inset=0.2, half_width=0.15, height=0.6)
    if view == "front":
        left, right, top = x - half * 0.9, x + half * 0.9, height * 0.78
        parts.append((rectangle(left, height * 0.5, right, top), GLASS))
        lamp = head_lamp(brightness, lit)
    else:
        mark = Surface((0.5, 0.1, 0.05), 0.5, retro=retro)
        parts.append((rectangle(x - half, 0.7, x - half * 0.5, 0.82), mark))
        parts.append((rectangle(x + half * 0.5, 0.7, x + half, 0.82), mark))
        lamp = tail_lamp(retro, lit)
    parts += lamps(vehicle, 0.9, (0.14, 0.1), lamp)
    return vehicle.thing(parts, "LargeVehicle")

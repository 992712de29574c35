"""Deer, moose and wild boar beside the road and on it.

An animal is built from the side, in shares of its shoulder height, with its nose to the right; seen
from another side it is shorter.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from cmkd.simulator import street
from cmkd.simulator.scene import Scene
from cmkd.simulator.shapes import Part, Surface, Thing, ellipse, limb, shaded

Points = list[tuple[float, float]]
RURAL_FACTOR = 3.0  # how much more often animals are where no house front is
RURAL_PLACES = 0.16  # share of places without house fronts
HOUSE_FRONTS = (455.0, 525.0)  # painting order of house fronts (street.house_front)
NEAREST, CLOSE, FARTHEST = 9.0, 35.0, 75.0  # m
EYE_SHINE = (15.0, 60.0)  # light that an eye sends back, relative to a white wall


@dataclass(frozen=True)
class Species:
    """What distinguishes one kind from another. Lengths are shares of the shoulder height."""

    shoulder: tuple[float, float]  # height in m
    outline: Points  # of the trunk
    neck: tuple[tuple[float, float], tuple[float, float]]  # from the trunk to the head, raised
    grazing: tuple[float, float]  # the head's place if it grazes
    neck_width: tuple[float, float]
    head: float  # length
    head_width: tuple[float, float]  # at the neck, at the nose
    legs: tuple[float, float]  # X of the hind and the fore legs
    leg_width: tuple[float, float]  # above, below
    half_width: float  # seen from ahead
    fur: tuple[float, float, float]
    antlers: str = ""  # of some: branched or broad
    herd: tuple[float, ...] = (0.5, 0.3, 0.2)  # chances of 1, 2, 3 animals


SPECIES = {
    "Deer": Species(
        shoulder=(0.7, 1.2),
        outline=[
            (-0.56, 0.72),
            (-0.52, 0.9),
            (-0.3, 0.97),
            (0.1, 0.93),
            (0.36, 1.0),
            (0.52, 0.84),
            (0.46, 0.6),
            (0.2, 0.5),
            (-0.2, 0.53),
            (-0.42, 0.56),
        ],
        neck=((0.42, 0.86), (0.66, 1.3)),
        grazing=(0.9, 0.22),
        neck_width=(0.13, 0.075),
        head=0.26,
        head_width=(0.075, 0.035),
        legs=(-0.44, 0.36),
        leg_width=(0.06, 0.028),
        half_width=0.2,
        fur=(0.16, 0.11, 0.07),
        antlers="branched",
    ),
    "Moose": Species(
        shoulder=(1.6, 2.0),
        outline=[
            (-0.5, 0.66),
            (-0.48, 0.84),
            (-0.2, 0.92),
            (0.12, 0.95),
            (0.3, 1.05),
            (0.46, 0.94),
            (0.48, 0.66),
            (0.2, 0.52),
            (-0.2, 0.54),
            (-0.4, 0.56),
        ],
        neck=((0.4, 0.88), (0.64, 1.06)),
        grazing=(0.82, 0.3),
        neck_width=(0.15, 0.09),
        head=0.36,
        head_width=(0.085, 0.07),
        legs=(-0.38, 0.34),
        leg_width=(0.065, 0.035),
        half_width=0.18,
        fur=(0.07, 0.05, 0.04),
        antlers="broad",
        herd=(0.8, 0.2),
    ),
    "Boar": Species(
        shoulder=(0.6, 0.95),
        outline=[
            (-0.66, 0.6),
            (-0.6, 0.82),
            (-0.3, 0.96),
            (0.12, 1.04),
            (0.42, 0.98),
            (0.6, 0.72),
            (0.5, 0.42),
            (0.1, 0.34),
            (-0.3, 0.37),
            (-0.56, 0.42),
        ],
        neck=((0.46, 0.72), (0.74, 0.62)),
        grazing=(0.8, 0.3),
        neck_width=(0.26, 0.19),
        head=0.42,
        head_width=(0.17, 0.06),
        legs=(-0.46, 0.4),
        leg_width=(0.08, 0.04),
        half_width=0.26,
        fur=(0.06, 0.05, 0.045),
        herd=(0.35, 0.25, 0.2, 0.2),
    ),
}


@dataclass(frozen=True)
class Pose:
    """How an animal stands."""

    side: float  # 1: seen from the side; 0: from ahead or from behind
    forward: float  # 1: to the right, -1: to the left
    away: bool  # shows its back to the camera
    grazes: bool
    swing: float  # radians of a leg; 0: stands


def add_animals(scene: Scene, rng: Generator, share: float, time: float) -> None:
    """Add animals to a share of the places, more where no houses are, with trees behind them.

    `rng` is for this alone, so nothing else of the place changes. `time` is as for `sample_scene`.
    """
    low, high = HOUSE_FRONTS
    is_rural = not any(low < thing.distance < high for thing in scene.things)
    town_share = share / (RURAL_PLACES * RURAL_FACTOR + 1 - RURAL_PLACES)
    if rng.random() >= min(town_share * (RURAL_FACTOR if is_rural else 1), 1):
        return
    travelled = scene.speed * time
    kind = str(rng.choice(list(SPECIES), p=[0.5, 0.2, 0.3]))
    species = SPECIES[kind]
    count = 1 + int(rng.choice(len(species.herd), p=species.herd))
    distance = rng.uniform(NEAREST, CLOSE if rng.random() < 0.6 else FARTHEST)
    x = rng.uniform(-0.25, 0.23) * distance
    crosses = rng.random() < 0.5
    added = []
    for index in range(count):
        across = x + index * rng.uniform(0.8, 2.2) * species.shoulder[1]
        depth = distance + rng.uniform(-2, 2) * (index > 0)
        added.append(animal(rng, kind, across, depth, crosses, time, travelled))
    for _ in range(int(rng.integers(3, 9)) if is_rural else 0):
        side = rng.choice([-1, 1])
        added.append(
            street.tree(rng, side * rng.uniform(5, 14), distance + rng.uniform(3, 30) - travelled)
        )
    in_view = [thing for thing in added if thing.distance > street.NEAREST]
    scene.things = sorted([*scene.things, *in_view], key=lambda thing: -thing.distance)


def animal(
    rng: Generator,
    kind: str,
    x: float,
    distance: float,
    crosses: bool,
    time: float,
    travelled: float,
) -> Thing:
    """An animal at X = `x`; one that `crosses` walks across the view."""
    species = SPECIES[kind]
    height = rng.uniform(*species.shoulder)
    walks = crosses or rng.random() < 0.3
    side = rng.uniform(0.75, 1.0) if crosses else abs(np.cos(rng.uniform(0, np.pi)))
    phase = rng.uniform(0, 2 * np.pi)
    pose = Pose(
        side=float(side),
        forward=float(rng.choice([-1.0, 1.0])),
        away=rng.random() < 0.35,
        grazes=rng.random() < (0.15 if walks else 0.45),
        swing=0.35 * float(np.sin(phase + 5 * time)) * walks,
    )
    velocity = pose.forward * pose.side * rng.uniform(0.6, 1.6) * walks
    x += velocity * time
    parts = animal_parts(rng, species, pose)
    lowest = min(points[:, 1].min() for points, _ in parts)
    placed = [((points - [0, lowest]) * height + [x, 0], surface) for points, surface in parts]
    points = np.concatenate([points for points, _ in placed])
    dimensions = (float(np.ptp(points[:, 1])), 2 * species.half_width * height, 1.2 * height)
    distance -= travelled
    position = (x, 0.0, distance)
    return Thing(distance, placed, kind, position, dimensions, velocity=(velocity, 0.0))


def animal_parts(rng: Generator, species: Species, pose: Pose) -> list[Part]:
    """The parts of an animal of shoulder height 1, the far ones first."""
    shade = rng.uniform(0.6, 1.4)
    colour = tuple(shade * channel for channel in species.fur)
    fur = Surface(colour, rng.uniform(0.35, 0.65), texture=0.15)

    def turned(points: Points) -> np.ndarray:
        """Points of the side view as this pose shows them."""
        array = np.array(points, float)
        wide = np.sign(array[:, 0]) * species.half_width * (1 - pose.side)
        array[:, 0] = pose.forward * (array[:, 0] * pose.side + wide)
        return array

    far, near = (leg_parts(species, pose, fur, is_near) for is_near in (0, 1))
    head = head_parts(rng, species, pose, fur)
    trunk = []
    for width, brightness in ((1.0, 0.65), (0.86, 0.85), (0.62, 1.0)):
        middle = np.mean(species.outline, axis=0)
        outline = [tuple(middle + width * (np.array(point) - middle)) for point in species.outline]
        trunk.append((turned(outline), shaded(fur, brightness)))
    if pose.away and pose.side < 0.7:  # the trunk is in front of the head
        return [*far, *head, *trunk, *near]
    return [*far, *trunk, *near, *head]


def leg_parts(species: Species, pose: Pose, fur: Surface, is_near: int) -> list[Part]:
    """The two legs of the far (0) or near (1) side."""
    parts = []
    for number, along in enumerate(species.legs):
        swing = pose.swing * (1 if (number + is_near) % 2 else -1)
        sideways = (2 * is_near - 1) * species.half_width * 0.75 * (1 - pose.side)
        hip = np.array([pose.forward * along * pose.side + sideways, 0.6])
        reach = 0.3 * np.array([pose.forward * pose.side * np.sin(swing), -np.cos(swing)])
        knee = hip + reach
        foot = knee + 0.3 * np.array([pose.forward * pose.side * np.sin(swing * 0.4), -1.0])
        above, below = species.leg_width
        dark = shaded(fur, 0.6 + 0.2 * is_near)
        parts.append((limb(hip, knee, above, below), dark))
        parts.append((limb(knee, foot, below, 0.8 * below), shaded(dark, 0.8)))
    return parts


def head_parts(rng: Generator, species: Species, pose: Pose, fur: Surface) -> list[Part]:
    """Neck, head, ears, antlers of some, and eyes that shine if they look at the camera."""
    root, raised = (np.array(point) for point in species.neck)
    place = np.array(species.grazing) if pose.grazes else raised
    facing = np.array([pose.forward * max(pose.side, 0.12), 1.0])
    root, place = root * facing, place * facing
    down = -0.75 if pose.grazes else -0.35
    ahead = np.array([pose.forward * max(pose.side, 0.1), down])
    nose = place + species.head * ahead / np.hypot(1.0, down)
    neck_start, neck_end = species.neck_width
    parts = [
        (limb(root, place, neck_start, neck_end), shaded(fur, 0.8)),
        (limb(place, nose, *species.head_width), fur),
    ]
    ear = species.head_width[0]
    for sign in (-1, 1):
        tip = place + [sign * 1.6 * ear - pose.forward * 0.4 * ear, 1.3 * ear]
        parts.append((limb(place, tip, 0.5 * ear, 0.2 * ear), shaded(fur, 0.9)))
    if species.antlers and rng.random() < 0.4:
        parts += antler_parts(rng, species, place)
    if not pose.away:
        shine = Surface((0.3, 0.3, 0.2), 0.5, texture=0.0, retro=rng.uniform(*EYE_SHINE))
        size = 0.16 * species.head_width[0] + 0.012
        gap = species.head_width[0] * (1 - pose.side) * 0.8
        eye = place + 0.25 * (nose - place)
        both = (-gap, gap) if gap > 0.3 * species.head_width[0] else (0.0,)
        parts += [(ellipse(eye[0] + dx, eye[1] + 0.02, size, size, 8), shine) for dx in both]
    return parts


def antler_parts(rng: Generator, species: Species, place: np.ndarray) -> list[Part]:
    """A pair of antlers: branched, or broad as a moose's."""
    horn = Surface((0.25, 0.21, 0.15), rng.uniform(0.4, 0.6), texture=0.2)
    size = rng.uniform(0.25, 0.45)
    parts = []
    for sign in (-1, 1):
        end = place + size * np.array([sign * 0.9, 1.0])
        if species.antlers == "broad":
            parts.append((limb(place, end, 0.02, 0.03), horn))
            parts.append((ellipse(end[0], end[1], size * 0.42, size * 0.3, 10), horn))
            continue
        parts.append((limb(place, end, 0.022, 0.012), horn))
        for reach in (0.35, 0.6, 0.85):
            start = place + reach * (end - place)
            tip = start + size * np.array([-sign * 0.05, 0.35])
            parts.append((limb(start, tip, 0.014, 0.008), horn))
    return parts

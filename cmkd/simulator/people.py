"""People, bicycles and the benches they sit on.

A person is built at the origin, in lengths that are shares of the body height.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from cmkd.simulator.shapes import (
    Part,
    Surface,
    Thing,
    annulus,
    ellipse,
    limb,
    rectangle,
    rounded,
    shaded,
)

HIP, NECK = 0.51, 0.815  # heights above the feet
STEPS_PER_SECOND = 0.9  # of one leg
LEAN = {"standing": 0.0, "seated": -0.02, "riding": 0.14}  # of the neck, forwards
PEDAL = 0.3  # m above the road


@dataclass(frozen=True)
class Body:
    """How a person is built and moves."""

    pose: str  # walking, standing, seated or riding
    side: float  # 1: walks across the view; 0: towards the camera or away from it
    forward: float  # 1: to the right, -1: to the left
    stride: float  # radians between the thigh and the vertical
    build: float  # 1: thin
    radius: float  # half the width of the chest

    @property
    def facing(self) -> float:
        """-1..1: how far to the right the person looks."""
        return self.forward * self.side

    @property
    def lean(self) -> float:
        """How far the neck is in front of the hip."""
        return self.facing * LEAN.get(self.pose, abs(self.stride) * 0.06)

    @property
    def sits(self) -> bool:
        """Whether the thighs are raised."""
        return self.pose in ("seated", "riding")

    def across(self, index: int) -> float:
        """-1..1: how far a far (0) or near (1) limb is to the left or right of the spine."""
        return (2 * index - 1) * (1 - self.side)

    def swing(self, index: int) -> float:
        """The angle of a far (0) or near (1) thigh in radians; the arm swings against it."""
        return self.stride * (1 if index else -1)

    @property
    def neck(self) -> np.ndarray:
        """(X, Y) of the neck."""
        return np.array([self.lean, NECK])


@dataclass(frozen=True)
class Clothes:
    """The materials of a person."""

    top: Surface
    bottom: Surface
    shoe: Surface
    skin: Surface
    hair: Surface


def person(rng: Generator, x: float, distance: float, time: float = 0.0, pose: str = "") -> Thing:
    """A person of 1.0-2.0 m, seen from any side; an empty `pose` is drawn at random.

    `time`, in seconds, moves a walker's legs and position. It changes no random number.
    """
    height = body_height(rng)
    body, velocity = draw_body(rng, time, pose)
    x, distance = x + velocity[0] * time, distance + velocity[1] * time
    clothes = draw_clothes(rng)
    parts = body_parts(rng, body, clothes)

    highest = max(points[:, 1].max() for points, _ in parts)
    lowest = min(points[:, 1].min() for points, _ in parts)
    # A stride lowers the hip: a walker is stretched to the full height.
    scale = height if body.sits else height / (highest - lowest)
    raised_by = PEDAL if body.pose == "riding" else 0.0
    placed = [
        (points * scale + [x, raised_by - lowest * scale], surface) for points, surface in parts
    ]
    dimensions = (scale * (highest - lowest), 2 * height * body.radius, 0.2 * height)
    return Thing(distance, placed, "Pedestrian", (x, 0.0, distance), dimensions, velocity=velocity)


def body_height(rng: Generator) -> float:
    """A height in metres: 85 % adults, the rest children."""
    adult = rng.random() < 0.85
    height = rng.normal(1.72, 0.1) if adult else rng.uniform(1.0, 1.5)
    return float(np.clip(height, 1.0, 2.0))


def draw_body(rng: Generator, time: float, pose: str) -> tuple[Body, tuple[float, float]]:
    """A body, and its velocity along X and Z in m/s."""
    drawn = str(rng.choice(["walking", "standing", "seated"], p=[0.68, 0.24, 0.08]))
    pose = pose or drawn
    # A rider is always seen from the side, like the bicycle.
    side = 1.0 if pose == "riding" else abs(np.cos(rng.uniform(0, np.pi)))
    forward = float(rng.choice([-1.0, 1.0]))
    phase, stride = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.55)
    speed, still = rng.uniform(0.8, 1.7), rng.uniform(0.0, 0.08)
    away = float(rng.choice([-1.0, 1.0])) * np.sqrt(1 - side**2)
    if pose == "walking":
        stride *= np.sin(phase + 2 * np.pi * STEPS_PER_SECOND * time)
    else:
        stride, speed = still, 0.0
    build = rng.uniform(0.9, 1.25)
    radius = build * (0.115 - 0.045 * side)
    body = Body(pose, side, forward, stride, build, radius)
    return body, (body.facing * speed, away * speed)


def clothing(rng: Generator) -> Surface:
    """Cloth: mostly dark to the eye, and bright at 808 nm whatever its dye."""
    dark = 0.03 * 10 ** (1.15 * rng.random() ** 1.4)
    colour = np.clip(dark * rng.uniform(0.6, 1.3, 3), 0.015, 0.5)
    return Surface(tuple(colour), rng.uniform(0.3, 0.7), texture=0.12)


def draw_clothes(rng: Generator) -> Clothes:
    """Random clothes, skin and hair; some people wear a hat or a hood in place of hair."""
    top, bottom = clothing(rng), clothing(rng)
    shoe = Surface((0.05, 0.05, 0.05), rng.uniform(0.15, 0.5))
    light = rng.uniform(0.3, 1)
    skin = Surface((0.4 * light, 0.3 * light, 0.22 * light), rng.uniform(0.4, 0.6))
    if rng.random() < 0.6:
        hair = Surface((0.05, 0.04, 0.03), rng.uniform(0.25, 0.45))
    else:
        hair = clothing(rng)
    return Clothes(top, bottom, shoe, skin, hair)


def body_parts(rng: Generator, body: Body, clothes: Clothes) -> list[Part]:
    """The parts of a person of height 1 at X = 0: far limbs, torso, near arm, head."""
    parts = []
    for index in (0, 1):
        parts += leg_parts(rng, body, clothes, index)
        arm = arm_parts(rng, body, clothes, index)
        parts += arm if index == 0 else torso_parts(rng, body, clothes.top) + arm
    if rng.random() < 0.3 and not body.sits:
        parts += bag_parts(rng, body)
    parts += head_parts(rng, body, clothes)
    if rng.random() < 0.05:
        strip = Surface((0.5, 0.5, 0.4), 0.6, retro=rng.uniform(3, 10))
        half = body.radius * 0.8
        parts.append((rectangle(-half, 0.64, half, 0.665), strip))
    return parts


def direction(angle: float) -> np.ndarray:
    """The unit vector (X, Y) that points down at angle 0 and turns towards +X."""
    return np.array([np.sin(angle), -np.cos(angle)])


def leg_parts(rng: Generator, body: Body, clothes: Clothes, index: int) -> list[Part]:
    """The far (0) or near (1) leg."""
    facing, across, swing = body.facing, body.across(index), body.swing(index)
    thigh = facing * swing + across * rng.uniform(0.0, 0.12)
    bend = facing * rng.uniform(0.05, 0.5) * (swing < 0)
    thigh_length = 0.245
    if body.sits:
        raised = 1.35 if body.pose == "seated" else 0.5 + 0.8 * index
        thigh = facing * raised + 0.15 * across
        bend = facing * (raised + (0.0 if body.pose == "seated" else 0.25))
        thigh_length *= max(body.side, 0.35)  # a level thigh is short if it is seen from ahead
    top_of_leg = np.array([0.0, HIP]) + [across * body.radius * 0.45, 0.0]
    knee = top_of_leg + thigh_length * direction(thigh)
    ankle = knee + 0.235 * direction(thigh - bend)
    toe = ankle + [facing * 0.075 + across * 0.02, -0.01]
    build, trousers = body.build, clothes.bottom
    parts = rounded(ankle, toe, (0.02, 0.016), clothes.shoe)
    parts += rounded(knee, ankle, (0.036 * build, 0.026 * build), trousers)
    parts += rounded(top_of_leg, knee, (0.052 * build, 0.038 * build), trousers)
    return parts


def arm_parts(rng: Generator, body: Body, clothes: Clothes, index: int) -> list[Part]:
    """The far (0) or near (1) arm."""
    facing, across, swing = body.facing, body.across(index), body.swing(index)
    reach = facing * (0.9 if body.pose == "riding" else 0.0)  # to the handlebar
    shoulder = body.neck + [across * body.radius * 0.95, -0.035]
    lift = -facing * swing * 1.1 + across * rng.uniform(0.1, 0.4) + reach
    elbow = shoulder + 0.165 * direction(lift)
    fold = lift + facing * rng.uniform(0.1, 0.9) - across * rng.uniform(0, 0.3)
    hand = elbow + 0.15 * direction(fold)
    build, sleeve = body.build, clothes.top
    parts = [(ellipse(*hand, 0.02, 0.025), clothes.skin)]
    parts += rounded(elbow, hand, (0.026 * build, 0.02 * build), sleeve)
    parts += rounded(shoulder, elbow, (0.034 * build, 0.027 * build), sleeve)
    return parts


def torso_parts(rng: Generator, body: Body, cloth: Surface) -> list[Part]:
    """A jacket or a coat; its rim is dimmer than its middle."""
    hem = 0.5 if body.sits else rng.choice([0.48, 0.5, 0.3], p=[0.5, 0.35, 0.15])
    parts = []
    for width, brightness in ((1.0, 0.65), (0.82, 0.85), (0.55, 1.0)):
        waist, chest = body.radius * 0.85 * width, body.radius * width
        flank = [
            (waist, hem),
            (waist * 0.9, 0.6),
            (chest, 0.75),
            (chest * 0.9, 0.8),
            (chest * 0.45, 0.835),
        ]
        outline = flank + [(-u, v) for u, v in flank[::-1]]
        leaning = [(u + body.lean * (v - 0.51) / 0.305, v) for u, v in outline]
        parts.append((np.array(leaning), shaded(cloth, brightness)))
    return parts


def bag_parts(rng: Generator, body: Body) -> list[Part]:
    """A bag or a rucksack on the back."""
    behind = 1.1 if body.side > 0.5 else rng.uniform(0.7, 1.1)
    bag = -body.forward * body.radius * behind
    bottom, top = np.array([bag, 0.62]), np.array([bag, 0.75])
    return rounded(bottom, top, (0.05, 0.05), clothing(rng))


def head_parts(rng: Generator, body: Body, clothes: Clothes) -> list[Part]:
    """Neck, hair and face; 30 % face away and show hair."""
    head = body.neck + [body.facing * 0.012, 0.095]
    face = head + [body.facing * 0.014, -0.012]
    face_surface = clothes.skin if rng.random() < 0.7 else clothes.hair
    return [
        (limb(body.neck, head, 0.03, 0.03), shaded(clothes.skin, 0.7)),
        (ellipse(*head, 0.05, 0.068), shaded(clothes.hair, 0.85)),
        (ellipse(*face, 0.038, 0.05), face_surface),
    ]


def bicycle(rng: Generator, x: float, distance: float) -> Thing:
    """A bicycle seen from the side, about 1.7 m long."""
    paint = Surface(tuple(rng.uniform(0.02, 0.4, 3)), rng.uniform(0.2, 0.5))
    rubber = Surface((0.03, 0.03, 0.03), 0.1)
    flip = float(rng.choice([-1, 1]))
    joints = np.array([[-0.52, 0.34], [-0.08, 0.3], [-0.25, 0.85], [0.36, 0.85], [0.52, 0.34]])
    rear_hub, pedals, saddle, head, front_hub = joints * [flip, 1] + [x, 0]
    tubes = [(rear_hub, pedals), (pedals, saddle), (saddle, head), (head, front_hub)]
    tubes += [(pedals, head), (rear_hub, saddle)]
    parts = [(annulus(*hub, 0.34, 0.045), rubber) for hub in (rear_hub, front_hub)]
    parts += [(limb(*tube, 0.02, 0.02), paint) for tube in tubes]
    reflector = Surface((0.4, 0.02, 0.02), 0.5, retro=rng.uniform(2, 8))
    parts.append((ellipse(x - flip * 0.6, 0.6, 0.035, 0.035, 8), reflector))
    return Thing(distance, parts, "RidableVehicle", (x, 0.0, distance), (1.05, 0.5, 1.75))


def cyclist(rng: Generator, x: float, distance: float, time: float) -> Thing:
    """A person riding across the view: one `RidableVehicle`, as in the real data set."""
    velocity = (float(rng.choice([-1.0, 1.0])) * rng.uniform(2.5, 5), 0.0)
    x += velocity[0] * time
    machine = bicycle(rng, x, distance)
    rider = person(rng, x - 0.1, distance, pose="riding")
    parts = machine.parts + rider.parts
    return replace(machine, parts=parts, dimensions=(1.75, 0.6, 1.75), velocity=velocity)


def bench(x: float, distance: float) -> Thing:
    """A bench for a seated person."""
    wood = Surface((0.12, 0.08, 0.05), 0.35)
    shapes = [rectangle(x - 0.7, 0.42, x + 0.7, 0.5)]
    shapes += [rectangle(leg - 0.04, 0.0, leg + 0.04, 0.42) for leg in (x - 0.6, x + 0.6)]
    return Thing(distance, [(shape, wood) for shape in shapes])

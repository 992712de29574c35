"""Road, houses, plants, street furniture and snowflakes.

`travelled` is how far the own car has moved on since the first frame of the place, in metres.
"""

from dataclasses import replace

import numpy as np
from numpy.random import Generator

from cmkd.simulator.shapes import (
    Colour,
    Part,
    Surface,
    Thing,
    along_road,
    ellipse,
    limb,
    log_uniform,
    on_ground,
    rectangle,
    shaded,
    unit_circle,
    upright,
)

NEAREST = 2.5  # m: a thing that comes nearer has left the image
LEFT_KERB, RIGHT_KERB = -6.2, 2.9  # X of the road's edges; the own lane is around 0
SIGN_COLOURS = ((0.5, 0.03, 0.04), (0.05, 0.12, 0.5), (0.6, 0.6, 0.55), (0.6, 0.45, 0.05))
SNOW_STRIPS = (-5.4, -3.6, -1.75, 0.0, 2.2)  # X of the snow between the wheel tracks

Lamp = tuple[np.ndarray, float, list[float]]  # position (X, Y, Z), power, colour


def bush(rng: Generator, x: float, distance: float, height: float) -> Thing:
    """A mound of leaves: dark to the eye at night and bright in the near infrared."""
    count, nir = int(rng.integers(18, 40)), rng.uniform(0.2, 0.6)
    level = np.sort(rng.uniform(0.05, 1, count))[::-1]
    radius = height * rng.uniform(0.07, 0.16, count)
    # The mound is wider below.
    spread = height * 0.42 * np.sqrt(np.maximum(1 - level, 0.05))
    across = x + rng.normal(0, spread)
    centres = np.stack([across, np.maximum(radius, level * height - radius)], 1)
    shapes = centres[:, None] + radius[:, None, None] * unit_circle(7)
    parts = []
    for shape, brightness in zip(shapes, rng.uniform(0.3, 1, count), strict=True):
        parts.append((shape, Surface((0.05, 0.07, 0.03), nir * brightness, texture=0.6)))
    return Thing(distance, parts)


def tree(rng: Generator, x: float, distance: float) -> Thing:
    """A bare winter tree: a trunk and two generations of branches."""
    bark = Surface((0.06, 0.05, 0.04), rng.uniform(0.15, 0.4), texture=0.3)
    trunk, height = rng.uniform(0.12, 0.25), rng.uniform(2.2, 4)
    fork = np.array([x, height])
    parts = [(limb(np.array([x, 0.0]), fork, trunk, trunk * 0.7), bark)]
    for _ in range(int(rng.integers(5, 9))):
        angle = rng.normal(0, 0.6)
        tip = fork + rng.uniform(1.5, 3.5) * np.array([np.sin(angle), np.cos(angle)])
        parts.append((limb(fork, tip, trunk * 0.4, trunk * 0.12), bark))
        for _ in range(3):
            root = fork + (tip - fork) * rng.uniform(0.4, 1)
            turn = angle + rng.normal(0, 0.7)
            twig = root + rng.uniform(0.5, 1.5) * np.array([np.sin(turn), np.cos(turn)])
            parts.append((limb(root, twig, trunk * 0.12, 0.01), bark))
    return Thing(distance, parts)


def post(rng: Generator, x: float, distance: float) -> Thing:
    """A bollard, bin, cabinet or short post, about as high as a person."""
    height, half = rng.uniform(0.8, 1.9), rng.uniform(0.05, 0.3)
    grey = rng.uniform(0.03, 0.25)
    body = Surface((grey, grey, grey), rng.uniform(0.15, 0.6))
    parts = []
    for width, brightness in ((1, 0.6), (0.8, 0.85), (0.5, 1)):
        outline = rectangle(x - half * width, 0, x + half * width, height)
        parts.append((outline, shaded(body, brightness)))
    if rng.random() < 0.4:
        parts.append((ellipse(x, height, half * 1.2, half * 1.2), body))
    if rng.random() < 0.2:
        band = Surface((0.5, 0.5, 0.5), 0.6, retro=rng.uniform(1, 6))
        parts.append((rectangle(x - half, height * 0.8, x + half, height * 0.9), band))
    return Thing(distance, parts)


def sign(rng: Generator, x: float, distance: float) -> Thing:
    """A traffic sign: a pole and a retroreflective plate of one of a few shapes and colours."""
    level, radius = rng.uniform(2.1, 3.2), rng.uniform(0.3, 0.45)
    colour = SIGN_COLOURS[rng.integers(4)]
    plate = Surface(colour, 0.6, texture=0.1, retro=rng.uniform(4, 20))
    corners = int(rng.choice([3, 4, 8, 16]))
    metal = Surface((0.2, 0.2, 0.2), rng.uniform(0.2, 0.5))
    inner = Surface((0.6, 0.6, 0.6), 0.5, texture=0.1, retro=plate.retro)
    pole = rectangle(x - 0.04, 0, x + 0.04, level + radius)
    bar = rectangle(x - radius * 0.5, level - 0.05, x + radius * 0.5, level + 0.06)
    parts = [(pole, metal), (ellipse(x, level, radius, radius, corners), plate), (bar, inner)]
    if rng.random() < 0.4:
        below = level - radius
        parts.append((rectangle(x - 0.3, below - 0.3, x + 0.3, below - 0.05), inner))
    return Thing(distance, parts)


def street_lamp(rng: Generator, x: float, distance: float, lit: bool) -> tuple[Thing, Lamp]:
    """A lamp post, and the light that it gives if it is `lit`."""
    height, arm = rng.uniform(5, 7.5), x - np.sign(x) * 1.2
    sodium, white = np.array([1.0, 0.72, 0.38]), np.array([1.0, 0.93, 0.8])
    colour = sodium if rng.random() < 0.6 else white
    power = log_uniform(rng, 0.25, 2.0)
    metal = Surface((0.15, 0.15, 0.15), 0.3)
    bulb = Surface((0.5, 0.5, 0.5), 0.3, glow=tuple(1.5 * colour * lit), nir_glow=40.0 * lit)
    boom = rectangle(min(x, arm), height - 0.04, max(x, arm), height + 0.04)
    parts = [
        (rectangle(x - 0.07, 0, x + 0.07, height), metal),
        (boom, metal),
        (ellipse(arm, height - 0.05, 0.25, 0.09), bulb),
    ]
    return Thing(distance, parts), (np.array([arm, height, distance]), power, colour.tolist())


def road(rng: Generator, edge: float, travelled: float, snow: bool) -> Thing:
    """Asphalt, marks, kerbs, pavements and verges.

    House fronts are at X = -`edge` and `edge`. With `snow`, verges and pavements are white, and
    snow lies between the wheel tracks.
    """
    asphalt = Surface((0.09, 0.085, 0.08), rng.uniform(0.1, 0.25), 0.02, 0.2)
    green, white = rng.uniform(0.06, 0.16), rng.random() < 0.2
    verge = Surface((green, green, green * 0.6), rng.uniform(0.2, 0.5), 0.12, 0.45)
    slabs = Surface((0.13, 0.125, 0.12), rng.uniform(0.2, 0.35), 0.05, 0.3)
    kerb = Surface((0.15, 0.15, 0.14), 0.35, 0.3, 0.4)
    first_mark, edge_lines = rng.uniform(0, 8), rng.random() < 0.6
    crossing, has_crossing = rng.uniform(10, 45), rng.random() < 0.3
    pavement = min(edge - 3.0, rng.uniform(1.5, 3.5))
    if snow or white:
        verge = Surface((0.5, 0.5, 0.52), 0.45, 0.2, 0.2)
    if snow:
        slabs = replace(verge, texture=0.3)
    parts = [
        (on_ground(-90, 90, 3, 400), verge),
        (on_ground(LEFT_KERB - pavement, RIGHT_KERB + pavement, 3, 400), slabs),
        (on_ground(LEFT_KERB, RIGHT_KERB, 3, 400), asphalt),
    ]
    if snow:
        uncleared = shaded(verge, 0.4)
        parts += [(on_ground(x - 0.3, x + 0.3, 3, 400), uncleared) for x in SNOW_STRIPS]
    paint = Surface((0.4, 0.4, 0.38), 0.5, 0.05, 0.4)
    marks = road_marks(first_mark, edge_lines, crossing if has_crossing else None, travelled)
    parts += [(mark, paint) for mark in marks]
    parts += [(along_road(x, 3, 200, 0, 0.12), kerb) for x in (LEFT_KERB, RIGHT_KERB)]
    return Thing(1000, parts)


def road_marks(
    first_mark: float, edge_lines: bool, crossing: float | None, travelled: float
) -> list[np.ndarray]:
    """Outlines of the dashed middle line, the edge lines and the zebra crossing.

    `first_mark` and `crossing` are Z in metres before the own car moves.
    """
    starts = np.arange(first_mark - 8 - travelled % 8, 110, 8)
    marks = [
        on_ground(-1.82, -1.68, max(start, 3), start + 3) for start in starts if start + 3 > 3.2
    ]
    if edge_lines:
        marks += [on_ground(x - 0.06, x + 0.06, 3, 150) for x in (-5.3, 1.8)]
    if crossing is not None and crossing - travelled > 3:
        near = crossing - travelled
        marks += [on_ground(x, x + 0.5, near, near + 3) for x in np.arange(-5.9, 2.5, 1.0)]
    return marks


def houses(rng: Generator, edge: float, travelled: float, windows_lit: bool) -> list[Thing]:
    """Silhouettes far off, a wall that closes the view, and house fronts at X = -`edge`, `edge`."""
    count = int(rng.integers(5, 12))
    things = [silhouette(rng, windows_lit) for _ in range(count)]
    wall = Surface((0.02, 0.02, 0.02), 0.3)
    things.append(Thing(720, [(upright(rectangle(-90, 0, 90, 1.6), 230), wall)]))
    for x in (-edge, edge):
        if rng.random() < 0.4:
            continue
        things.append(house_front(rng, x, travelled, windows_lit))
    return things


def window_glow(rng: Generator, lit: bool) -> Colour:
    """The warm light of a window."""
    light = log_uniform(rng, 0.0015, 0.03) * lit
    return (light, 0.8 * light, 0.5 * light)


def silhouette(rng: Generator, windows_lit: bool) -> Thing:
    """A house far off, which faces the camera."""
    x, half, height = rng.uniform(-60, 60), rng.uniform(3, 12), rng.uniform(3, 16)
    distance = rng.uniform(120, 220)
    grey = rng.uniform(0.04, 0.2)
    wall = Surface((grey, grey * 0.95, grey * 0.85), rng.uniform(0.1, 0.5))
    parts = [(upright(rectangle(x - half, 0, x + half, height), distance), wall)]
    for _ in range(int(rng.integers(0, 4))):
        left, bottom = x + rng.uniform(-half, half), rng.uniform(1, height)
        window = upright(rectangle(left, bottom, left + 0.8, bottom + 1.2), distance)
        parts.append((window, Surface((0.1, 0.1, 0.1), 0.1, glow=window_glow(rng, windows_lit))))
    return Thing(500 + distance, parts)


def house_front(rng: Generator, x: float, travelled: float, windows_lit: bool) -> Thing:
    """A house front along the road, with rows of windows of which 7 % can be lit."""
    near, far = rng.uniform(6, 30), rng.uniform(60, 120)
    height, grey = rng.uniform(5, 11), rng.uniform(0.04, 0.3)
    wall = Surface((grey, grey * 0.9, grey * 0.75), rng.uniform(0.15, 0.5), 0.1, 0.3)
    outline = along_road(x, max(near - travelled, NEAREST), far - travelled, 0, height)
    parts: list[Part] = [(outline, wall)]
    for start in np.arange(near + 1.5, far - 2, rng.uniform(3, 5)):
        for bottom in np.arange(1.2, height - 1.5, 2.8):
            glow = window_glow(rng, windows_lit) if rng.random() < 0.07 else (0.0, 0.0, 0.0)
            pane = Surface((0.04, 0.04, 0.05), rng.uniform(0.02, 0.8), 0.1, glow=glow)
            z = start - travelled
            if z > NEAREST:
                parts.append((along_road(x, z, z + 1.2, bottom, bottom + 1.5), pane))
    return Thing(400 + far, parts)


def snowflakes(rng: Generator) -> list[Thing]:
    """Flakes near the camera, at the same density everywhere; headlights and laser light them."""
    count = int(rng.integers(250, 700))
    # Within the view's cone the volume grows with the cube of the distance.
    distances = NEAREST + 7.5 * rng.random(count) ** (1 / 3)
    across = distances * rng.uniform(-0.29, 0.27, count)
    heights = 1.45 + distances * rng.uniform(-0.19, 0.11, count)
    radii, slant = rng.uniform(0.0015, 0.004, count), rng.normal(0.3, 0.2)
    white = Surface((0.7, 0.7, 0.7), 0.7, texture=0.0)
    flakes = []
    for x, y, distance, radius in zip(across, heights, distances, radii, strict=True):
        if y > 0:
            tail = (x + 2 * radius * slant, y + 3 * radius)
            outline = np.array([(x - radius, y), (x, y - radius), (x + radius, y), tail])
            flakes.append(Thing(distance, [(outline, white)]))
    return flakes

"""A place on the simulated road: what is there, in which light and air.

`sample_scene` draws a place and advances it in time. World axes: X right, Y up from the road, Z
forward, in metres; the camera is at (0, camera_height, 0). All things are flat polygons, so that
the depth of every pixel is exact. Nothing here depends on the image size.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.random import Generator

from cmkd.simulator import street
from cmkd.simulator.people import bench, bicycle, cyclist, person
from cmkd.simulator.shapes import Thing, log_uniform
from cmkd.simulator.vehicles import car, lorry

NEAREST_PERSON, FARTHEST_PERSON = 5.0, 90.0  # m
PARKING_LANES, ONCOMING_LANE = (-7.3, 3.9), -3.5  # X in m
# Chances of 0, 1, 2 ... vehicles and people in a place.
VEHICLE_COUNTS = (0.2, 0.22, 0.24, 0.16, 0.1, 0.08)
PEOPLE_COUNTS = (0.08, 0.2, 0.22, 0.18, 0.13, 0.08, 0.06, 0.05)


@dataclass(frozen=True)
class Condition:
    """Limits of light and air; the values of a place are log-uniform between them."""

    # Irradiance of sky and town; at 1 a white wall fills the RGB sensor's scale.
    ambient: tuple[float, float]
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


@dataclass
class Scene:
    """Things sorted far to near, and the light, the air and the cameras of one moment."""

    things: list[Thing]
    condition: Condition
    camera_height: float  # m
    speed: float  # of the own car, m/s
    extinction: float  # 1/m
    ambient: float  # irradiance of sky and town
    veil: float  # RGB black level plus stray light in the lens, linear
    headlight: float  # intensity, linear light times m^2
    beam_cut: float  # slope of the low beam's upper edge
    shot_gain: float  # variance of the RGB noise for each unit of light
    shake: float  # radians that the view turns sideways in one RGB exposure
    lamps: list[street.Lamp] = field(default_factory=list)


def sample_scene(rng: Generator, condition: Condition, time: float = 0.0) -> Scene:
    """Draw a place, and move its people, its vehicles and the own car on by `time` seconds.

    An `rng` in the same state gives the same place at every time: `time` changes no random number.
    """
    scene = Scene(
        [],
        condition,
        camera_height=rng.uniform(1.3, 1.6),
        speed=rng.uniform(0, 8),
        # Visibility is the distance at which 5 % of the contrast is left.
        extinction=np.log(20) / log_uniform(rng, *condition.visibility),
        ambient=log_uniform(rng, *condition.ambient),
        veil=rng.uniform(8e-4, 1.6e-3),
        headlight=rng.uniform(15, 45),
        beam_cut=rng.uniform(-0.014, -0.004),
        shot_gain=log_uniform(rng, 2e-5, 3e-4),
        shake=abs(rng.normal(0, 8e-4)),
    )
    travelled, edge = scene.speed * time, rng.uniform(8, 13)
    things = [street.road(rng, edge, travelled, condition.snow)]
    things += street.houses(rng, edge, travelled, not condition.day)
    vehicles = place_vehicles(rng, travelled, time, condition.day)
    things += vehicles
    things += place_roadside(rng, edge, travelled)
    lamp_posts = place_lamps(rng, travelled, not condition.day)
    things += [post for post, _ in lamp_posts]
    things += place_people(rng, edge, vehicles, travelled, time)
    if condition.snow:
        things += street.snowflakes(rng)
    if not condition.day:
        scene.lamps = [lamp for post, lamp in lamp_posts if post.distance > 0]
    in_view = [thing for thing in things if thing.distance > street.NEAREST]
    scene.things = sorted(in_view, key=lambda thing: -thing.distance)
    return scene


def place_vehicles(rng: Generator, travelled: float, time: float, day: bool) -> list[Thing]:
    """Parked, oncoming, leading and crossing vehicles."""
    things = []
    for _ in range(int(rng.choice(len(VEHICLE_COUNTS), p=VEHICLE_COUNTS))):
        role, distance, large = rng.random(), rng.uniform(12, 80), rng.random() < 0.15
        drift, lane = rng.uniform(-0.4, 0.4), rng.choice(PARKING_LANES)
        speed, parked_view = rng.uniform(5, 12), str(rng.choice(["rear", "front"]))
        make = lorry if large else car
        if role < 0.55:  # parked
            x, velocity, view, lit = lane + drift, 0.0, parked_view, False
        elif role < 0.75:  # oncoming
            x, velocity, view, lit = ONCOMING_LANE + drift, -speed, "front", not day
        elif role < 0.9:  # ahead in the own lane
            x, velocity, view, lit = drift, speed, "rear", not day
        else:  # waiting across the road
            x, velocity, view, lit, make = 6 * drift, 0.0, "side", False, car
        # Vehicles in the lanes keep 10 m more distance.
        distance = distance + 10 * (role >= 0.55) + velocity * time - travelled
        thing = make(rng, x, distance, view, lit)
        things.append(replace(thing, velocity=(0.0, velocity)))
    return things


def beside_road(rng: Generator, edge: float) -> float:
    """A random X between the road and the houses, in metres."""
    side = rng.choice([-1, 1])
    return float(side * rng.uniform(3.6, edge - 0.5) - 1.0 * (rng.random() < 0.5))


def place_roadside(rng: Generator, edge: float, travelled: float) -> list[Thing]:
    """Signs, posts, trees and groups of bushes."""
    things = []
    for make, most in ((street.sign, 4), (street.post, 5), (street.tree, 3)):
        for _ in range(int(rng.integers(0, most + 1))):
            x = beside_road(rng, edge)
            things.append(make(rng, x, rng.uniform(9, 85) - travelled))
    for _ in range(int(rng.integers(0, 6))):
        x, distance = beside_road(rng, edge), rng.uniform(10, 70) - travelled
        height = rng.uniform(0.6, 2.0)
        count = int(rng.integers(1, 4))
        steps = 0.7 * np.arange(count) * height
        things += [street.bush(rng, x + step, distance, height) for step in steps]
    return things


def place_lamps(rng: Generator, travelled: float, night: bool) -> list[tuple[Thing, street.Lamp]]:
    """Lamp posts, in half of the places; they are lit at `night`."""
    posts = []
    if rng.random() < 0.5:
        for _ in range(int(rng.integers(1, 4))):
            x = rng.choice([-8.0, 5.0]) + rng.uniform(-1, 1)
            posts.append(street.street_lamp(rng, x, rng.uniform(15, 75) - travelled, night))
    return posts


def place_people(
    rng: Generator, edge: float, vehicles: list[Thing], travelled: float, time: float
) -> list[Thing]:
    """People on foot and on bicycles, alone and in a group, some of them behind vehicles."""
    things = []
    count = int(rng.choice(len(PEOPLE_COUNTS), p=PEOPLE_COUNTS))
    group_size = int(rng.integers(3, 6)) * (count >= 3 and rng.random() < 0.2)
    meeting = None
    for index in range(max(count, group_size)):
        in_group = index < group_size
        close = rng.random() < 0.7
        distance = rng.uniform(8, 35) if close else rng.uniform(NEAREST_PERSON, FARTHEST_PERSON)
        # Within the view, and in front of the houses.
        x = rng.uniform(max(-edge + 0.5, -0.26 * distance), min(edge - 0.5, 0.24 * distance))
        gap, behind = rng.choice([-1, 1]) * rng.uniform(0.3, 1.1), rng.uniform(0.5, 3)
        spread, skew = rng.uniform(0.25, 0.4), rng.uniform(-0.3, 0.3)
        hides, role = rng.random() < 0.15, rng.random()
        if in_group:
            meeting = meeting or (x, distance)
            x, distance = meeting[0] + index * spread, meeting[1] + skew
        distance -= travelled
        if vehicles and hides and not in_group:
            cover = vehicles[index % len(vehicles)]
            x, distance = cover.position[0] + gap, far_end(cover) + behind
        distance = min(outside_vehicles(x, distance, vehicles), FARTHEST_PERSON)
        if in_group:
            things.append(replace(person(rng, x, distance, pose="standing"), group=0))
        else:
            things += one_person(rng, x, distance, time, role)
    return things


def far_end(vehicle: Thing) -> float:
    """Z of a vehicle's far end in metres."""
    return vehicle.distance + vehicle.dimensions[2]


def outside_vehicles(x: float, distance: float, vehicles: list[Thing]) -> float:
    """The distance of a person at `x`, moved behind a vehicle that the person would be inside."""
    for vehicle in vehicles:
        beside = abs(x - vehicle.position[0]) >= 1.2
        if not beside and vehicle.distance - 0.4 < distance < far_end(vehicle) + 0.4:
            distance = far_end(vehicle) + 0.5
    return distance


def one_person(rng: Generator, x: float, distance: float, time: float, role: float) -> list[Thing]:
    """A person who is not in a group. `role`, 0..1: 8 % ride and 6 % push a bicycle."""
    if role < 0.08:
        return [cyclist(rng, x, distance, time)]
    if role < 0.14:
        walker = person(rng, x, distance, time, pose="walking")
        pushed = bicycle(rng, walker.position[0] + 0.3, walker.distance - 0.3)
        return [walker, replace(pushed, velocity=walker.velocity)]
    one = person(rng, x, distance, time)
    # Seated people are this low. So are some standing children, who get a bench too.
    if one.dimensions[0] < 1.45 and one.velocity == (0.0, 0.0):
        return [one, bench(one.position[0], one.distance + 0.15)]
    return [one]

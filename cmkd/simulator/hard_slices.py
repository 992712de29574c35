"""Gated slices that are as hard as real ones, in place of clean ones.

In clean slices people are nearly always the brightest things. Real ones have dark clothes, bright
posts, cars and signs, light that spreads around what is too bright, and slices that were taken a
little later than the one before.
"""

from dataclasses import replace

import numpy as np
from numpy.random import Generator

from cmkd.frames.annotations import LABEL_WIDTH
from cmkd.simulator.cameras import glare
from cmkd.simulator.raster import Raster
from cmkd.simulator.scene import Scene
from cmkd.simulator.shapes import log_uniform

PEOPLE = ("Pedestrian", "RidableVehicle")  # kinds: the latter are riders with their bicycle
# Factors on the albedo at 808 nm. Cloth of 0.3 to 0.7 becomes 0.05 to 0.5.
OF_PEOPLE, OF_OTHER_THINGS = (0.15, 0.7), (0.8, 2.5)
# Share of the parts of things on the road and beside it that send light back, and how strongly.
RETRO_SHARE, RETRO = 0.08, (0.5, 8.0)
FARTHEST_RETRO = 200.0  # m: houses and the road are farther, by their painting order
LARGEST_SHIFT = (6.0, 2.0)  # of a slice, in px of label space: sideways, up and down
TOO_BRIGHT = 200  # grey level from which light spreads
HALO = ((0.012, 0.35),)  # sigma as a share of the width, weight
MORE_NOISE = 2.5  # grey levels


def with_hard_materials(scene: Scene, raster: Raster, rng: Generator) -> Raster:
    """A raster in which people are darker at 808 nm and other things brighter."""
    factors, retro = [1.0], [0.0]  # of the sky
    for thing in scene.things:
        count, is_person = len(thing.parts), thing.kind in PEOPLE
        factors += [log_uniform(rng, *(OF_PEOPLE if is_person else OF_OTHER_THINGS))] * count
        # A snowflake has one part.
        can_return = not is_person and count > 1 and thing.distance < FARTHEST_RETRO
        returned = rng.random(count) < RETRO_SHARE * can_return
        retro += (returned * log_uniform(rng, *RETRO)).tolist()
    surfaces = [
        replace(surface, nir=min(surface.nir * factor, 1.0), retro=surface.retro + returned)
        for surface, factor, returned in zip(raster.surfaces, factors, retro, strict=True)
    ]
    return replace(raster, surfaces=surfaces)


def hardened(slices: list[np.ndarray], rng: Generator) -> list[np.ndarray]:
    """Slices, uint8 [H, W] each, with spread light, more noise, and the second and third moved."""
    width = slices[0].shape[1]
    hard = []
    for number, image in enumerate(slices):
        light = image.astype(np.float32)
        light += glare(np.where(light > TOO_BRIGHT, light, 0).astype(np.float32), width, HALO)
        light += rng.standard_normal(light.shape, np.float32) * MORE_NOISE
        shift = rng.uniform(-1, 1, 2) * LARGEST_SHIFT * (width / LABEL_WIDTH) * (number > 0)
        columns, rows = np.rint(shift).astype(int).tolist()
        moved = moved_by(light, rows, columns)
        hard.append(np.clip(np.rint(moved), 0, 255).astype(np.uint8))
    return hard


def moved_by(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """An image [H, W] moved by whole pixels; its edge is repeated."""
    height, width = image.shape
    wanted_rows = np.clip(np.arange(height) - rows, 0, height - 1)
    wanted_columns = np.clip(np.arange(width) - columns, 0, width - 1)
    return image[wanted_rows][:, wanted_columns]

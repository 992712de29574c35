"""What the two cameras see at the moment of a frame."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from cmkd.simulator.cameras import rgb_light
from cmkd.simulator.planning import SECONDS_BETWEEN_FRAMES, PlannedFrame
from cmkd.simulator.raster import Raster, rasterise
from cmkd.simulator.scene import CONDITIONS, Scene, sample_scene


@dataclass(frozen=True)
class View:
    """What the two cameras see at a moment."""

    scene: Scene
    rgb_raster: Raster
    gated_raster: Raster
    reflected: np.ndarray  # linear light that scales with the brightness of the night, [3, H, W]
    emitted: np.ndarray  # linear light of lamps, glare and lens, [3, H, W]
    rng: Generator  # for the noise


def render(frame: PlannedFrame, seed: int, size: tuple[int, int], misaligned: bool) -> View:
    """What both cameras see of a frame. Only seed, recording and moment decide what is there.

    `size` is (width, height) in pixels. If not `misaligned`, the RGB camera sees what the gated one
    sees.
    """
    place = np.random.default_rng([seed, 1, frame.recording])
    texture_offset = place.integers(0, 1024, 2)
    scene = sample_scene(place, CONDITIONS[frame.condition], frame.moment * SECONDS_BETWEEN_FRAMES)
    gated_raster = rasterise(scene, size, texture_offset)
    rgb_raster = rasterise(scene, size, texture_offset, as_rgb=True) if misaligned else gated_raster
    reflected, emitted = rgb_light(scene, rgb_raster)
    noise = np.random.default_rng([seed, 2, frame.recording, frame.moment])
    return View(scene, rgb_raster, gated_raster, reflected, emitted, noise)

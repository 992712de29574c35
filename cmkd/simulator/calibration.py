"""How bright the night must be so that a given share of the people is visible in RGB."""

import sys
from dataclasses import replace

import numpy as np

from cmkd.simulator.cameras import rgb_camera
from cmkd.simulator.labels import (
    HIDDEN_LIMIT,
    VISIBLE_CONTRAST,
    contrast,
    labelled_objects,
    region_around,
)
from cmkd.simulator.planning import PlannedFrame
from cmkd.simulator.rendering import render
from cmkd.simulator.scene import CONDITIONS

MOST_FRAMES = 500
BRIGHTNESSES = 2.0 ** np.arange(-6, 6.1, 0.5)  # factors on the reflected light of the night


def visible_by_brightness(
    frame: PlannedFrame, seed: int, size: tuple[int, int], misaligned: bool
) -> np.ndarray:
    """Who is visible in RGB at each of BRIGHTNESSES: bool [people, BRIGHTNESSES]."""
    view = render(frame, seed, size, misaligned)
    visible = []
    for labelled in labelled_objects(view):
        kind = view.scene.things[labelled.members[0]].kind
        if kind != "Pedestrian" or labelled.hidden > HIDDEN_LIMIT:
            continue
        region = region_around(labelled, view.scene, view.rgb_raster)
        reflected = view.reflected[:, region.rows, region.columns]
        emitted = view.emitted[:, region.rows, region.columns]
        whole = replace(region, rows=slice(None), columns=slice(None))
        row = []
        for brightness in BRIGHTNESSES:
            light = reflected * np.float32(brightness) + emitted
            image = rgb_camera(view.scene, light, view.rng)
            row.append(contrast(image, whole) > VISIBLE_CONTRAST)
        visible.append(row)
    return np.array(visible, bool).reshape(-1, len(BRIGHTNESSES))


def calibration_frames(frames: list[PlannedFrame]) -> list[PlannedFrame]:
    """Up to MOST_FRAMES night frames, spread over all."""
    nights = [frame for frame in frames if not CONDITIONS[frame.condition].day]
    if not nights:
        return []
    spread = np.unique(np.linspace(0, len(nights) - 1, MOST_FRAMES).astype(int))
    return [nights[index] for index in spread]


def brightness_for(visible_share: float, visible: list[np.ndarray]) -> float:
    """The brightness at which `visible_share` of the people are visible in RGB.

    `visible` are the results of `visible_by_brightness`. Without people: 1.
    """
    people = np.concatenate([np.empty((0, len(BRIGHTNESSES)), bool), *visible])
    if not len(people):
        return 1.0
    # More light hides nobody, though a small sample may say so.
    shares = np.maximum.accumulate(people.mean(0))
    if not shares[0] <= visible_share <= shares[-1]:
        print(
            f"warning: --visible-share {visible_share:g} is out of reach: between {shares[0]:.2f} "
            f"and {shares[-1]:.2f} of these people can be visible",
            file=sys.stderr,
        )
    return float(np.exp2(np.interp(visible_share, shares, np.log2(BRIGHTNESSES))))

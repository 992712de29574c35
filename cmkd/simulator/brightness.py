"""How bright the night must be so that a given share of the people is visible in RGB."""

import sys

import numpy as np

from cmkd.frames.layout import evenly_spaced
from cmkd.simulator import labels
from cmkd.simulator.cameras import rgb_camera
from cmkd.simulator.rendering import PlannedFrame, render

MOST_FRAMES = 500
BRIGHTNESSES = 2.0 ** np.arange(-6, 6.1, 0.5)  # factors on the reflected light of the night


def frames_to_measure(frames: list[PlannedFrame]) -> list[PlannedFrame]:
    """Up to MOST_FRAMES night frames, spread over all."""
    return evenly_spaced([frame for frame in frames if frame.is_night], MOST_FRAMES)


def visible_by_brightness(
    frame: PlannedFrame, seed: int, size: tuple[int, int], misaligned: bool
) -> np.ndarray:
    """Who is visible in RGB at each of BRIGHTNESSES: bool [people, BRIGHTNESSES]."""
    view = render(frame, seed, size, misaligned)
    visible = []
    for labelled in labels.labelled_objects(view):
        kind = view.scene.things[labelled.members[0]].kind
        if kind != "Pedestrian" or labelled.hidden > labels.HIDDEN_LIMIT:
            continue
        surroundings = labels.surroundings_of(labelled, view.scene, view.rgb_raster)
        window = (..., *surroundings.window)
        for brightness in BRIGHTNESSES:
            light = view.reflected[window] * np.float32(brightness) + view.emitted[window]
            image = rgb_camera(view.scene, light, view.rng)
            visible.append(labels.is_visible(image, surroundings))
    return np.array(visible, bool).reshape(-1, len(BRIGHTNESSES))


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

"""The frames of a simulated data set, and what the two cameras see in each."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from cmkd.frames.layout import LABEL_FOLDER, SPLITS, TRUE_LABELS, UNLABELLED
from cmkd.simulator.animals import add_animals
from cmkd.simulator.cameras import rgb_light
from cmkd.simulator.raster import Raster, rasterise
from cmkd.simulator.scene import CONDITIONS, Scene, sample_scene

SECONDS_BETWEEN_FRAMES = 0.8


@dataclass(frozen=True)
class PlannedFrame:
    """The place and the moment of a frame. A recording is one place in one condition."""

    name: str
    split: str
    condition: str
    recording: int
    moment: int  # number of the frame within its recording

    @property
    def label_folder(self) -> str:
        """The folder of its labels: those of unlabelled frames are for oracles only."""
        return TRUE_LABELS if self.split == UNLABELLED else LABEL_FOLDER

    @property
    def is_night(self) -> bool:
        """Whether it belongs in the night lists; dusk does."""
        return not CONDITIONS[self.condition].day


def plan_frames(
    counts: list[int],
    mix: dict[str, float],
    seed: int,
    frames_per_recording: int = 4,
    unlabelled: tuple[int, int] = (0, 1),
) -> list[PlannedFrame]:
    """The frames of all splits, `counts` of each, in the shares of `mix` (condition -> share).

    `unlabelled` are the number of further frames and how many of them a recording has. No recording
    is in two splits, and those of the three splits do not depend on `unlabelled`.
    """
    planned: list[PlannedFrame] = []
    first = 0  # the split's first recording
    splits = zip((*SPLITS, UNLABELLED), (*counts, unlabelled[0]), strict=True)
    for number, (split, count) in enumerate(splits):
        in_recording = unlabelled[1] if split == UNLABELLED else frames_per_recording
        recordings = -(-count // in_recording)
        conditions = np.array(deal_conditions(recordings, mix), object)
        np.random.default_rng([seed, number]).shuffle(conditions)
        for index in range(count):
            place, moment = divmod(index, in_recording)
            condition, recording = conditions[place], first + place
            name = f"{condition}_{recording:05d}_{moment:02d}"
            planned.append(PlannedFrame(name, split, condition, recording, moment))
        first += recordings
    return planned


def deal_conditions(count: int, mix: dict[str, float]) -> list[str]:
    """`count` conditions in the shares of `mix`: whole numbers by the largest remainder."""
    whole = {name: int(count * share) for name, share in mix.items()}
    by_remainder = sorted(mix, key=lambda name: whole[name] - count * mix[name])
    for name in by_remainder[: count - sum(whole.values())]:
        whole[name] += 1
    return [name for name, number in whole.items() for _ in range(number)]


@dataclass(frozen=True)
class View:
    """What the two cameras see at a moment."""

    scene: Scene
    rgb_raster: Raster
    gated_raster: Raster
    reflected: np.ndarray  # linear light that scales with the brightness of the night, [3, H, W]
    emitted: np.ndarray  # linear light of lamps, glare and lens, [3, H, W]
    rng: Generator  # for the noise


def render(
    frame: PlannedFrame, seed: int, size: tuple[int, int], misaligned: bool, animals: float = 0.0
) -> View:
    """Both views of a frame. What is there depends only on seed, recording and moment.

    `size` is (width, height) in pixels. If not `misaligned`, the RGB camera sees what the gated one
    sees. `animals` is the share of places that have some.
    """
    place = np.random.default_rng([seed, 1, frame.recording])
    texture_offset = place.integers(0, 1024, 2)
    time = frame.moment * SECONDS_BETWEEN_FRAMES
    scene = sample_scene(place, CONDITIONS[frame.condition], time)
    if animals:
        add_animals(scene, np.random.default_rng([seed, 4, frame.recording]), animals, time)
    gated_raster = rasterise(scene, size, texture_offset)
    rgb_raster = rasterise(scene, size, texture_offset, as_rgb=True) if misaligned else gated_raster
    noise = np.random.default_rng([seed, 2, frame.recording, frame.moment])
    return View(scene, rgb_raster, gated_raster, *rgb_light(scene, rgb_raster), noise)

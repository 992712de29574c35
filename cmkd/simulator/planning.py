"""Which frames a simulated data set has: splits, recordings and conditions."""

from dataclasses import dataclass

import numpy as np

from cmkd.frames.layout import SPLITS

SECONDS_BETWEEN_FRAMES = 0.8


@dataclass(frozen=True)
class PlannedFrame:
    """The place and the moment of a frame. A recording is one place in one condition."""

    name: str
    split: str
    condition: str
    recording: int
    moment: int  # number of the frame within its recording


def plan_frames(
    counts: list[int], mix: dict[str, float], seed: int, frames_per_recording: int = 4
) -> list[PlannedFrame]:
    """The frames of all splits, `counts` of each. No recording is in two splits.

    `mix` gives the share of each condition.
    """
    planned: list[PlannedFrame] = []
    first = 0  # the split's first recording
    for number, (split, count) in enumerate(zip(SPLITS, counts, strict=True)):
        recordings = -(-count // frames_per_recording)
        conditions = np.array(deal_conditions(recordings, mix), object)
        np.random.default_rng([seed, number]).shuffle(conditions)
        for index in range(count):
            place, moment = divmod(index, frames_per_recording)
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

"""A long list's names and boxes in a few arrays.

Loader workers are forked: they share the main process's memory until they write to it. Looking at a
Python object writes to it (its reference count), so each worker would soon have its own copy of all
names and boxes; the content of an array stays shared.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from cmkd.frames.annotations import Label

VISIBLE = {True: 1, False: 0, None: -1}  # as int8
KNOWN = {number: visible for visible, number in VISIBLE.items()}
OBJECT = np.dtype(
    [
        ("label", np.int64),  # of the detector; 0 for an ignore region
        ("box", np.float64, 4),  # x0, y0, x1, y1 in label space
        ("distance", np.float64),  # m; NaN if unknown
        ("visible_rgb", np.int8),  # -1 if unknown
        ("visible_gated", np.int8),
        ("score", np.float32),  # NaN if the label has none
    ],
    align=True,  # as torch needs it
)


class Ragged(Sequence[np.ndarray]):
    """Arrays that differ in length, held in one."""

    def __init__(self, arrays: Iterable[np.ndarray]) -> None:
        arrays = list(arrays)
        self.values = np.concatenate(arrays, dtype=arrays[0].dtype)
        self.ends = np.cumsum([0, *map(len, arrays)])

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        index = range(len(self))[index]
        return self.values[self.ends[index] : self.ends[index + 1]]


class Names(Sequence[str]):
    """Frame names, held as one array of their bytes."""

    def __init__(self, names: Iterable[str]) -> None:
        self.encoded = Ragged(np.frombuffer(name.encode(), np.uint8) for name in names)

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> str:
        return self.encoded[index].tobytes().decode()


def pack(objects: list[tuple[int, Label]]) -> np.ndarray:
    """The boxes of a frame, each with the detector's label, as `OBJECT` `[N]`."""
    rows = [
        (
            label,
            line.box,
            math.nan if line.distance is None else line.distance,
            VISIBLE[line.visible_rgb],
            VISIBLE[line.visible_gated],
            math.nan if line.score is None else line.score,
        )
        for label, line in objects
    ]
    return np.array(rows, OBJECT)


def seen(one: np.void) -> dict[str, bool | float | None]:
    """Which camera sees an object, and how far away it is in m; None if its label does not say."""
    distance = float(one["distance"])
    return {
        "visible_rgb": KNOWN[int(one["visible_rgb"])],
        "visible_gated": KNOWN[int(one["visible_gated"])],
        "distance": None if math.isnan(distance) else distance,
    }


def sureness(one: np.void) -> dict[str, bool | float | None]:
    """The score of a machine label, and whether it is too low to be an object."""
    score = float(one["score"])
    return {"score": None if math.isnan(score) else score, "doubtful": int(one["label"]) == 0}

"""What a network's labels look like beside a human's."""

from statistics import median
from typing import Any

from cmkd.evaluation.labelling import Choice
from cmkd.frames.annotations import DOUBTFUL, Label, clip


def threshold_rows(table: list[dict[str, Any]]) -> list[list[str]]:
    """A heading, and the rows of `thresholds.table_of` as text."""
    rows = [["class", "score from", "precision", "recall", "F1", "F2", "chosen"]]
    for row in table:
        numbers = [f"{row[name]:.3f}" for name in ("score", "precision", "recall", "F1", "F2")]
        rows.append([row["class"], *numbers, row["chosen"]])
    return rows


def describe(choice: Choice, list_name: str) -> str:
    """Lines that say what was chosen, and why."""
    lines = []
    aps = choice.validation
    if "AP_with_mirror" in aps:
        lines.append(
            f"{list_name}: AP {aps['AP']:.4f}, merged with mirror images "
            f"{aps['AP_with_mirror']:.4f}"
        )
    lines.append(f"mirror images: {'used' if choice.mirror else 'not used'}")
    for name, (sure, doubtful) in choice.thresholds.items():
        lines.append(f"{name}: sure from a score of {sure:.4f}, doubtful from {doubtful:.4f}")
    return "\n".join(lines)


def counts_line(frames: list[list[Label]], new: int, kept: int) -> str:
    """How many frames and boxes there are; `new` frames were labelled now, `kept` are a human's."""
    doubtful = sum(one.name == DOUBTFUL for found in frames for one in found)
    sure = sum(map(len, frames)) - doubtful
    empty = sum(not found for found in frames)
    return (
        f"{len(frames)} frames, {new} of them labelled now; boxes: {sure} sure, {doubtful} "
        f"doubtful; {empty} frames without any; {kept} files of a human kept"
    )


def comparison_rows(names: set[str], sources: dict[str, list[list[Label]]]) -> list[list[str]]:
    """A heading, and a row for each source of labels (title -> labels of each frame).

    Only boxes of the classes `names` count; heights are in label px.
    """
    rows = [["labels", "frames", "boxes per frame", "median height", "frames without anybody"]]
    for title, frames in sources.items():
        boxes = [[clip(one.box) for one in found if one.name in names] for found in frames]
        heights = [box[3] - box[1] for found in boxes for box in found]
        empty = sum(not found for found in boxes)
        rows.append(
            [
                title,
                str(len(frames)),
                f"{len(heights) / len(frames):.2f}",
                f"{median(heights):.0f} px" if heights else "-",
                f"{100 * empty / len(frames):.0f} %",
            ]
        )
    return rows

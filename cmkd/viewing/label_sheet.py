"""The contact sheet of machine labels: sure and doubtful boxes, with their scores."""

from pathlib import Path

from PIL import Image

from cmkd.frames.annotations import DOUBTFUL, Label, to_pixels
from cmkd.viewing.contact_sheet import GREEN, ORANGE, Box, contact_sheet, draw_boxes
from cmkd.viewing.frame_sheet import frame_pictures, spread

SURE_LEGEND = {"sure: class, score": GREEN, "doubtful: score (dashed)": ORANGE}


def label_sheet(
    root: Path, folders: tuple[str, ...], frames: dict[str, list[Label]], count: int
) -> Image.Image:
    """A contact sheet of up to `count` frames, most of them with boxes.

    `folders` are those of the images that the network takes; `frames` has the labels by name.
    """
    empty = [name for name, labels in frames.items() if not labels]
    with_boxes = [name for name, labels in frames.items() if labels]
    chosen = spread(with_boxes, count - min(len(empty), max(count // 4, count - len(with_boxes))))
    chosen += spread(empty, count - len(chosen))
    rows = []
    for name in chosen:
        tiles = frame_pictures(root, name, folders)
        for tile in tiles:
            draw_boxes(tile, [box_of(label, tile.size) for label in frames[name]])
        rows.append((name, tiles))
    return contact_sheet(list(folders), rows, SURE_LEGEND)


def box_of(label: Label, tile_size: tuple[int, int]) -> Box:
    """A machine label's box in px of a tile."""
    score = "" if label.score is None else f"{label.score:.2f}"
    corners = to_pixels(label.box, *tile_size)
    if label.name == DOUBTFUL:
        return Box(corners, ORANGE, text=score, dashed=True)
    return Box(corners, GREEN, text=f"{label.name} {score}".strip())

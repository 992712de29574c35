"""The contact sheet of prepared pairs: does the second camera fit RGB, and do the boxes?"""

from pathlib import Path

from PIL import Image

from cmkd.frames.annotations import Label, to_pixels
from cmkd.frames.layout import GATED_FOLDERS, RGB_FOLDER
from cmkd.viewing.contact_sheet import GREEN, ORANGE, Box, contact_sheet, draw_boxes
from cmkd.viewing.frame_sheet import frame_pictures

COLUMNS = ["RGB", "second camera", "overlay: RGB red, second green"]


def pair_sheet(root: Path, labels: dict[str, list[Label]]) -> Image.Image:
    """A row for each frame: both cameras, and one over the other, with boxes."""
    rows = []
    for name, of_frame in labels.items():
        tiles = frame_pictures(root, name, (RGB_FOLDER, GATED_FOLDERS[0]))
        red, green = (tile.convert("L") for tile in tiles)
        tiles.append(Image.merge("RGB", (red, green, Image.new("L", red.size))))
        tiles = [tile.convert("RGB") for tile in tiles]
        for tile in tiles:
            draw_boxes(tile, [box_of(label, tile.size) for label in of_frame])
        rows.append((name, tiles))
    return contact_sheet(COLUMNS, rows, {"object": GREEN, "ignore region": ORANGE})


def box_of(label: Label, size: tuple[int, int]) -> Box:
    """A label's box on a tile of this size."""
    colour = ORANGE if label.name == "DontCare" else GREEN
    return Box(to_pixels(label.box, *size), colour)

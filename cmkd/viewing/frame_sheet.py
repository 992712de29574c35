"""The contact sheet of the data check: RGB and the three slices of prepared frames, with boxes."""

from pathlib import Path

from PIL import Image

from cmkd.frames.annotations import Label, to_pixels
from cmkd.frames.images import read_rgb, read_slice
from cmkd.frames.layout import GATED_FOLDERS, IMAGE_FOLDERS, RGB_FOLDER, find_image
from cmkd.viewing.contact_sheet import (
    GREEN,
    PURPLE,
    SKY_BLUE,
    Box,
    contact_sheet,
    draw_boxes,
    resize_to_width,
)

FRAME_TILE_WIDTH = 320  # px
# By `Label.visible_rgb`; dashes and a thin line say the same without colour.
COLOUR_OF_VISIBILITY = {True: GREEN, False: PURPLE, None: SKY_BLUE}
LINE_WIDTH_OF_VISIBILITY = {True: 2, False: 2, None: 1}  # px
LEGEND_OF_VISIBILITY = {
    "visible in RGB": COLOUR_OF_VISIBILITY[True],
    "not visible in RGB (dashed)": COLOUR_OF_VISIBILITY[False],
    "visibility not labelled (thin)": COLOUR_OF_VISIBILITY[None],
}


def frame_sheet(
    root: Path, lists: dict[str, dict[str, int]], frames: dict[str, list[Label]], count: int
) -> Image.Image:
    """A contact sheet of up to `count` frames, each under its name and its lists.

    `lists` has the frame names of each list; `frames` the labels of every frame that can be read.
    """
    rows = []
    for name in choose_frames(lists, frames, count):
        lists_of_frame = ", ".join(list_name for list_name, names in lists.items() if name in names)
        rows.append((f"{name}, in {lists_of_frame}", frame_tiles(root, name, frames[name])))
    return contact_sheet(["RGB", *GATED_FOLDERS], rows, LEGEND_OF_VISIBILITY)


def choose_frames(
    lists: dict[str, dict[str, int]], frames: dict[str, list[Label]], count: int
) -> list[str]:
    """Up to `count` frames spread over the lists, each once, with boxes if a list has any."""
    chosen: list[str] = []
    count_of_list = -(-count // len(lists))
    for names in lists.values():
        free = [name for name in names if name in frames and name not in chosen]
        with_boxes = [name for name in free if frames[name]]
        chosen += spread(with_boxes or free, count_of_list)
    return spread(chosen, count)


def spread(names: list[str], count: int) -> list[str]:
    """Up to `count` names, evenly over all of them."""
    count = min(count, len(names))
    return [names[(2 * index + 1) * len(names) // (2 * count)] for index in range(count)]


def frame_tiles(root: Path, name: str, labels: list[Label]) -> list[Image.Image]:
    """RGB and the three slices of a frame, with a line around each box."""
    tiles = frame_pictures(root, name, IMAGE_FOLDERS)
    for tile in tiles:
        draw_boxes(tile, [box_of(label, tile.size) for label in labels])
    return tiles


def frame_pictures(root: Path, name: str, folders: tuple[str, ...]) -> list[Image.Image]:
    """A frame's images in these folders, as tiles."""
    pictures = []
    for folder in folders:
        file = find_image(root, folder, name)
        is_rgb = folder == RGB_FOLDER
        picture = read_rgb(file).permute(1, 2, 0) if is_rgb else read_slice(file)[0]
        pictures.append(Image.fromarray(picture.numpy()))
    return [resize_to_width(picture, FRAME_TILE_WIDTH) for picture in pictures]


def box_of(label: Label, tile_size: tuple[int, int]) -> Box:
    """A label's box in px of a tile."""
    return Box(
        to_pixels(label.box, *tile_size),
        COLOUR_OF_VISIBILITY[label.visible_rgb],
        LINE_WIDTH_OF_VISIBILITY[label.visible_rgb],
        dashed=label.visible_rgb is False,
    )

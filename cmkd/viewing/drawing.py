"""Frames as tiles: the ground truth on a gated slice, and what a detector finds on RGB."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from cmkd.viewing.contact_sheet import (
    GREEN,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    TAG_FONT,
    Box,
    Corners,
    draw_boxes,
    resize_to_width,
)
from cmkd.viewing.outcomes import Outcome

OUTCOME_TILE_WIDTH = 420  # px
# Line widths and the texts on the tags say the same without colour.
TRUTH, HIT, FALSE_ALARM, MISSED = GREEN, SKY_BLUE, ORANGE, PURPLE
OUTCOME_LEGEND = {
    "ground truth": TRUTH,
    "hit: score": HIT,
    "false alarm: ?": FALSE_ALARM,
    "missed: x": MISSED,
}


def image_tile(image: Tensor) -> Image.Image:
    """A tile that shows an image, uint8 `[1 or 3, H, W]`."""
    return resize_to_width(to_pil_image(image), OUTCOME_TILE_WIDTH)


def corners(box: Sequence[float], scale: float = 1) -> Corners:
    """The corners of a COCO box (x, y, width, height) in a picture of this scale."""
    x, y, width, height = (value * scale for value in box)
    return x, y, x + width, y + height


def truth_tile(image: Tensor, annotations: Iterable[dict[str, Any]]) -> Image.Image:
    """The people of a frame (uint8 `[6, H, W]`) on the gated slice in which they are brightest.

    Each slice shows its own range of distances. Ignore regions are not drawn.
    """
    people = [annotation for annotation in annotations if not annotation["iscrowd"]]
    inside = torch.zeros(image.shape[-2:], dtype=torch.bool)
    for person in people:
        x0, y0, x1, y1 = map(int, corners(person["bbox"]))
        inside[y0 : y1 + 1, x0 : x1 + 1] = True
    slices = image[3:6]
    brightest = int((slices * inside).sum(dim=(1, 2)).argmax())
    tile = image_tile(slices[brightest : brightest + 1])
    scale = tile.width / image.shape[-1]
    draw_boxes(tile, [Box(corners(person["bbox"], scale), TRUTH) for person in people])
    ImageDraw.Draw(tile).text(
        (6, tile.height - 6),
        f"slice {brightest}",
        fill="white",
        font=ImageFont.load_default(TAG_FONT),
        anchor="ls",
        stroke_width=1,
        stroke_fill="black",
    )
    return tile


def outcome_tile(image: Tensor, outcome: Outcome) -> Image.Image:
    """Hits, false alarms and missed people on a frame's RGB image (uint8 `[3, H, W]`)."""
    tile = image_tile(image)
    scale = tile.width / image.shape[-1]
    hits = [Box(corners(hit["bbox"], scale), HIT, 3, f"{hit['score']:.2f}") for hit in outcome.hits]
    false_alarms = [
        Box(corners(alarm["bbox"], scale), FALSE_ALARM, 2, "?") for alarm in outcome.false_alarms
    ]
    missed = [Box(corners(person["bbox"], scale), MISSED, 1, "x") for person in outcome.missed]
    draw_boxes(tile, hits + false_alarms + missed)
    return tile

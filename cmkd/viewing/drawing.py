"""Frames as pictures: tiles with boxes drawn on them, and sheets of tiles."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from cmkd.viewing.outcomes import Outcome

TILE_WIDTH, TITLE, LINE, GAP, LETTER = 420, 24, 16, 6, 12
# Okabe and Ito's colour-blind-safe hues; line width and words tell the same without colour.
TRUTH, HIT, FALSE_ALARM, MISSED = "#009E73", "#56B4E9", "#E69F00", "#CC79A7"
Corners = tuple[float, float, float, float]  # x0, y0, x1, y1 in px of a picture
LEGEND = {"ground truth": TRUTH, "hit: score": HIT, "false alarm: ?": FALSE_ALARM, "missed: x": MISSED}


@dataclass(frozen=True)
class Box:
    """A box to draw."""

    corners: Corners
    colour: str
    width: int = 2
    text: str = ""


def text_font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own, at a size in px."""
    return ImageFont.load_default(size)


def tile(image: Tensor, width: int = TILE_WIDTH) -> tuple[Image.Image, float]:
    """uint8 `[1 or 3, H, W]` -> a picture of this width, and its scale."""
    picture = to_pil_image(image).convert("RGB")
    scale = width / picture.width
    return picture.resize((width, max(1, round(picture.height * scale))), Image.Resampling.BICUBIC), scale


def draw_boxes(picture: Image.Image, boxes: Iterable[Box], letter: int = LETTER) -> None:
    """Boxes, each with its text on a tag of its colour beside it. Tags never lie on each other: the first box's comes
    first, and one that finds no free place is left out."""
    draw = ImageDraw.Draw(picture)
    boxes, font, taken = list(boxes), text_font(letter), []
    for box in boxes:
        draw.rectangle(box.corners, outline=box.colour, width=box.width)
    for box in boxes:
        size = round(font.getlength(box.text)) + 4, letter + 2
        if box.text and (tag := free_place(box.corners, size, picture.size, taken)):
            taken.append(tag)
            draw.rectangle(tag, fill=box.colour)
            draw.text(((tag[0] + tag[2]) / 2, (tag[1] + tag[3]) / 2), box.text, fill="black", font=font, anchor="mm")


def free_place(box: Corners, size: tuple[int, int], limits: tuple[int, int], taken: list[Corners]) -> Corners | None:
    """Where a tag of this width and height fits, above, below or in a box, in a picture of these limits, off the taken
    places."""
    (x0, y0, x1, y1), (width, height) = box, size
    for x, y in ((x0, y0 - height), (x0, y1), (x1 - width, y0 - height), (x1 - width, y1), (x0, y0 + 1),
                 (x0, y1 - height - 1)):
        left, top = min(max(x, 0), limits[0] - width - 1), min(max(y, 0), limits[1] - height - 1)
        if all(left > other[2] or left + width < other[0] or top > other[3] or top + height < other[1]
               for other in taken):
            return left, top, left + width, top + height
    return None


def corners(box: Sequence[float], scale: float) -> Corners:
    """x, y, width, height -> the corners in a picture of this scale."""
    x, y, width, height = (value * scale for value in box)
    return x, y, x + width, y + height


def truth_tile(image: Tensor, annotations: Iterable[dict[str, Any]]) -> Image.Image:
    """The people of a frame (uint8 `[6, H, W]`) on the gated slice in which they are brightest, as each slice sees its
    own range."""
    people = [one for one in annotations if not one["iscrowd"]]
    inside = torch.zeros(image.shape[-2:], dtype=torch.bool)
    for x0, y0, x1, y1 in (map(int, corners(one["bbox"], 1)) for one in people):
        inside[y0 : y1 + 1, x0 : x1 + 1] = True
    brightest = int((image[3:6] * inside).sum(dim=(1, 2)).argmax())
    picture, scale = tile(image[3 + brightest : 4 + brightest])
    draw_boxes(picture, [Box(corners(one["bbox"], scale), TRUTH) for one in people])
    draw = ImageDraw.Draw(picture)
    draw.text((6, picture.height - 6), f"slice {brightest}", fill="white", font=text_font(LETTER), anchor="ls",
              stroke_width=1, stroke_fill="black")
    return picture


def outcome_tile(image: Tensor, outcome: Outcome) -> Image.Image:
    """Hits, false alarms and misses on the RGB picture (uint8 `[3, H, W]`)."""
    picture, scale = tile(image)
    draw_boxes(picture, [
        *(Box(corners(one["bbox"], scale), HIT, 3, f"{one['score']:.2f}") for one in outcome.hits),
        *(Box(corners(one["bbox"], scale), FALSE_ALARM, 2, "?") for one in outcome.false_alarms),
        *(Box(corners(one["bbox"], scale), MISSED, 1, "x") for one in outcome.missed)])
    return picture


def wrapped(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """Text in lines of at most `width` px, broken at spaces."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width else [*lines, word]
    return "\n".join(lines)


def sheet(columns: list[str], rows: list[tuple[str, list[Image.Image]]], legend: dict[str, str]) -> Image.Image:
    """Rows of tiles of one width, each under its title; the columns under theirs; below, what the colours mean."""
    font, small = text_font(16), text_font(13)
    wide = rows[0][1][0].width
    heads = [wrapped(column, wide, font) for column in columns]
    header = TITLE * max(head.count("\n") + 1 for head in heads)
    height = header + sum(LINE + tiles[0].height + GAP for _, tiles in rows) + (LINE + TITLE) * bool(legend)
    page = Image.new("RGB", (len(columns) * (wide + GAP) + GAP, height), "white")
    draw = ImageDraw.Draw(page)
    for column, head in enumerate(heads):
        draw.multiline_text((GAP + column * (wide + GAP), 4), head, fill="black", font=font)
    top = header
    for title, tiles in rows:
        draw.text((GAP, top), title, fill="black", font=small)
        for column, picture in enumerate(tiles):
            page.paste(picture, (GAP + column * (wide + GAP), top + LINE))
        top += LINE + tiles[0].height + GAP
    left = GAP
    for text, colour in legend.items():
        draw.rectangle((left, top + 8, left + 16, top + 20), outline=colour, width=4)
        draw.text((left + 24, top + 4), text, fill="black", font=font)
        left += 60 + round(draw.textlength(text, font))
    return page

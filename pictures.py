"""Frames as pictures: tiles with boxes drawn on them, and sheets of tiles."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from outcomes import Outcome

TILE_WIDTH, TITLE, LINE, GAP, LETTER = 420, 24, 16, 6, 12
# Okabe and Ito's colour-blind-safe hues; line width and words tell the same without colour.
TRUTH, HIT, FALSE_ALARM, MISSED = "#009E73", "#56B4E9", "#E69F00", "#CC79A7"
LEGEND = {"ground truth": TRUTH, "hit: score": HIT, "false alarm: ?": FALSE_ALARM, "missed: x": MISSED}


def text_font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own, at a size in px."""
    return ImageFont.load_default(size)


def tile(image: Tensor, width: int = TILE_WIDTH) -> tuple[Image.Image, float]:
    """uint8 `[1 or 3, H, W]` -> a picture of this width, and its scale."""
    picture = to_pil_image(image).convert("RGB")
    scale = width / picture.width
    return picture.resize((width, max(1, round(picture.height * scale))), Image.Resampling.BICUBIC), scale


def draw_box(draw: ImageDraw.ImageDraw, box: Sequence[float], colour: str, width: int = 2, above: str = "",
             inside: str = "", below: str = "", letter: int = LETTER) -> None:
    """A box (x0, y0, x1, y1 in px of the picture) with its text. A hit, a false alarm and a miss at one place each have
    room of their own."""
    x0, y0, x1, y1 = box
    font = text_font(letter)
    draw.rectangle((x0, y0, x1, y1), outline=colour, width=width)
    outline = {"font": font, "fill": colour, "stroke_width": 1, "stroke_fill": "black"}
    draw.text((x0 + 1, max(y0 - 2, letter + 1)), above, anchor="ls", **outline)
    draw.text((x1 - width - 2, y1 - width - 3), inside, anchor="rb", **outline)
    draw.text((x0 + 1, min(y1 + 3, draw.im.size[1] - letter)), below, anchor="lt", **outline)


def corners(box: Sequence[float], scale: float) -> tuple[float, float, float, float]:
    """x, y, width, height -> x0, y0, x1, y1 in px of a picture of this scale."""
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
    draw = ImageDraw.Draw(picture)
    for one in people:
        draw_box(draw, corners(one["bbox"], scale), TRUTH)
    draw.text((6, picture.height - 6), f"slice {brightest}", fill="white", font=text_font(LETTER), anchor="ls",
              stroke_width=1, stroke_fill="black")
    return picture


def outcome_tile(image: Tensor, outcome: Outcome) -> Image.Image:
    """Hits, false alarms and misses on the RGB picture (uint8 `[3, H, W]`)."""
    picture, scale = tile(image)
    draw = ImageDraw.Draw(picture)
    for one in outcome.missed:
        draw_box(draw, corners(one["bbox"], scale), MISSED, width=1, below="x")
    for one in outcome.false_alarms:
        draw_box(draw, corners(one["bbox"], scale), FALSE_ALARM, inside="?")
    for one in outcome.hits:
        draw_box(draw, corners(one["bbox"], scale), HIT, width=3, above=f"{one['score']:.2f}")
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

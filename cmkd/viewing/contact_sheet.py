"""Contact sheets, boxes on pictures, and the one palette of all drawings. Needs no torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cmkd.runtime.files import write_atomically

# The colour-blind-safe palette of Okabe and Ito.
BLACK, BLUE, SKY_BLUE, GREEN = "#000000", "#0072B2", "#56B4E9", "#009E73"
YELLOW, ORANGE, VERMILION, PURPLE = "#F0E442", "#E69F00", "#D55E00", "#CC79A7"

HEADING_LINE, TITLE_LINE = 24, 16  # px: the height of a line of a heading, of a row's title
HEADING_FONT, TITLE_FONT, TAG_FONT = 16, 13, 12  # px
GAP = 6  # px between tiles
LEGEND_SIZE = 12, 16  # px: height and width of a legend's box
DASH, DASH_GAP = 4, 3  # px
NO_TILE = 320  # px: the width of a column without tiles

Corners = tuple[float, float, float, float]  # x0, y0, x1, y1 in px of the picture


@dataclass(frozen=True)
class Box:
    """A box to draw on a picture."""

    corners: Corners
    colour: str
    width: int = 2  # of its line, px
    text: str = ""
    dashed: bool = False


def contact_sheet(
    columns: list[str], rows: list[tuple[str, list[Image.Image]]], legend: dict[str, str]
) -> Image.Image:
    """Rows of tiles under column headings, each row under its title, above a legend.

    All tiles have one width, and those of a row one height. `legend` gives the colour of each text.
    """
    font = ImageFont.load_default(HEADING_FONT)
    tile_width = rows[0][1][0].width if rows else NO_TILE
    headings = [wrap(column, tile_width, font) for column in columns]
    header = HEADING_LINE * max(heading.count("\n") + 1 for heading in headings)
    heights = [TITLE_LINE + tiles[0].height + GAP for _, tiles in rows]
    footer = TITLE_LINE + HEADING_LINE if legend else 0
    size = (len(columns) * (tile_width + GAP) + GAP, header + sum(heights) + footer)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    lefts = [GAP + column * (tile_width + GAP) for column in range(len(columns))]
    for left, heading in zip(lefts, headings, strict=True):
        draw.multiline_text((left, 4), heading, fill="black", font=font)
    top = header
    for (title, tiles), height in zip(rows, heights, strict=True):
        draw.text((GAP, top), title, fill="black", font=ImageFont.load_default(TITLE_FONT))
        for left, tile in zip(lefts, tiles, strict=True):
            sheet.paste(tile, (left, top + TITLE_LINE))
        top += height
    draw_legend(draw, legend, top)
    return sheet


def draw_legend(draw: ImageDraw.ImageDraw, legend: dict[str, str], top: int) -> None:
    """A line of texts, each behind a box of its colour."""
    font = ImageFont.load_default(HEADING_FONT)
    height, width = LEGEND_SIZE
    left = GAP
    for text, colour in legend.items():
        draw.rectangle((left, top + 8, left + width, top + 8 + height), outline=colour, width=4)
        draw.text((left + width + 8, top + 4), text, fill="black", font=font)
        left += 60 + round(draw.textlength(text, font))


def save_picture(
    picture: Image.Image, file: Path, file_format: str = "PNG", **options: int
) -> None:
    """Write a picture atomically, whatever the file's suffix; `options` are Pillow's.

    Raises `UserError`.
    """
    write_atomically(file, lambda unfinished: picture.save(unfinished, file_format, **options))


def wrap(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """Text in lines of at most `width` px, broken at spaces."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def resize_to_width(picture: Image.Image, width: int) -> Image.Image:
    """The picture in RGB at this width, with its own proportions."""
    height = max(1, round(picture.height * width / picture.width))
    return picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)


def draw_boxes(picture: Image.Image, boxes: Iterable[Box], font_size: int = TAG_FONT) -> None:
    """Draw boxes, each with its text on a tag of its colour beside it.

    Tags do not cover each other: the first box's is placed first, and a tag without room is left
    out.
    """
    boxes = list(boxes)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(font_size)
    for box in boxes:
        draw_outline(draw, box, picture.size)
    taken: list[Corners] = []
    for box in boxes:
        if not box.text:
            continue
        size = round(font.getlength(box.text)) + 4, font_size + 2
        if tag := free_place(box.corners, size, picture.size, taken):
            taken.append(tag)
            left, top, right, bottom = tag
            draw.rectangle(tag, fill=box.colour)
            middle = (left + right) / 2, (top + bottom) / 2
            draw.text(middle, box.text, fill="black", font=font, anchor="mm")


def draw_outline(draw: ImageDraw.ImageDraw, box: Box, picture_size: tuple[int, int]) -> None:
    """Draw a line around a box, outside of it, so that what is in a small box can be seen.

    At the picture's edge the line is within the box.
    """
    width, (x0, y0, x1, y1) = box.width, map(round, box.corners)
    last_x, last_y = picture_size[0] - 1, picture_size[1] - 1
    left, right = min(max(x0 - width, 0), last_x), max(min(x1 + width - 1, last_x), 0)
    top, bottom = min(max(y0 - width, 0), last_y), max(min(y1 + width - 1, last_y), 0)
    if not box.dashed:
        draw.rectangle((left, top, right, bottom), outline=box.colour, width=width)
        return
    for x in range(left, right + 1, DASH + DASH_GAP):
        end = min(x + DASH - 1, right)
        draw.rectangle((x, top, end, top + width - 1), fill=box.colour)
        draw.rectangle((x, bottom - width + 1, end, bottom), fill=box.colour)
    for y in range(top, bottom + 1, DASH + DASH_GAP):
        end = min(y + DASH - 1, bottom)
        draw.rectangle((left, y, left + width - 1, end), fill=box.colour)
        draw.rectangle((right - width + 1, y, right, end), fill=box.colour)


def free_place(
    box: Corners, size: tuple[int, int], picture_size: tuple[int, int], taken: list[Corners]
) -> Corners | None:
    """A place for a tag of this width and height above, below or in a box, off the taken places.

    None if there is none in the picture.
    """
    (x0, y0, x1, y1), (width, height) = box, size
    for x, y in (
        (x0, y0 - height),
        (x0, y1),
        (x1 - width, y0 - height),
        (x1 - width, y1),
        (x0, y0 + 1),
        (x0, y1 - height - 1),
    ):
        left = min(max(x, 0), picture_size[0] - width - 1)
        top = min(max(y, 0), picture_size[1] - height - 1)
        place = (left, top, left + width, top + height)
        if not any(overlap(place, other) for other in taken):
            return place
    return None


def overlap(one: Corners, other: Corners) -> bool:
    """Whether two places share a pixel."""
    across = one[0] <= other[2] and other[0] <= one[2]
    down = one[1] <= other[3] and other[1] <= one[3]
    return across and down

"""A contact sheet of prepared frames: RGB and the three slices side by side, with their boxes."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cmkd.frames.layout import LABEL_HEIGHT, LABEL_WIDTH, SLICES, Label, find_picture, read_rgb, read_slice

TILE_WIDTH, TITLE, GAP, DASH = 320, 20, 6, 4
# Okabe and Ito's colour-blind-safe hues; a line's width and the gaps between its dashes tell the same without colour.
LOOKS = {True: ("#009E73", 2, 0), False: ("#CC79A7", 2, 3), None: ("#56B4E9", 1, 0)}
LEGEND = {True: "visible in RGB", False: "not visible in RGB", None: "visibility not labelled"}


def spread(names: list[str], count: int) -> list[str]:
    """Up to `count` names, evenly over all of them."""
    count = min(count, len(names))
    return [names[(2 * index + 1) * len(names) // (2 * count)] for index in range(count)]


def choose(lists: dict[str, dict[str, int]], frames: dict[str, list[Label]], count: int) -> list[str]:
    """Up to `count` frames spread over the lists, each once; those with boxes where a list has any."""
    chosen: list[str] = []
    for names in lists.values():
        free = [name for name in names if name in frames and name not in chosen]
        chosen += spread([name for name in free if frames[name]] or free, -(-count // len(lists)))
    return spread(chosen, count)


def draw_box(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], visible: bool | None) -> None:
    """The line around a box (x0, y0, x1, y1 in px of the tile), in the look of its visibility."""
    colour, width, gap = LOOKS[visible]
    x0, y0, x1, y1 = (round(value) for value in box)
    for x in range(x0 - width, x1 + width + 1, DASH + gap):
        for y in (y0 - width, y1 + 1):
            draw.rectangle((x, y, min(x + DASH - 1, x1 + width), y + width - 1), fill=colour)
    for y in range(y0 - width, y1 + width + 1, DASH + gap):
        for x in (x0 - width, x1 + 1):
            draw.rectangle((x, y, x + width - 1, min(y + DASH - 1, y1 + width)), fill=colour)


def tile(picture: Image.Image, labels: list[Label]) -> Image.Image:
    """A picture at the tile's width, with a line around each box."""
    small = picture.convert("RGB").resize((TILE_WIDTH, max(1, round(picture.height * TILE_WIDTH / picture.width))),
                                          Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(small)
    across, down = small.width / LABEL_WIDTH, small.height / LABEL_HEIGHT
    for label in labels:
        x0, y0, x1, y1 = label.box
        draw_box(draw, (x0 * across, y0 * down, x1 * across, y1 * down), label.visible_rgb)
    return small


def tiles(root: Path, name: str, labels: list[Label]) -> list[Image.Image]:
    """RGB and the three slices of a frame."""
    rgb = Image.fromarray(read_rgb(find_picture(root, "images", name)).permute(1, 2, 0).numpy())
    slices = [Image.fromarray(read_slice(find_picture(root, folder, name))[0].numpy()) for folder in SLICES]
    return [tile(picture, labels) for picture in (rgb, *slices)]


def contact_sheet(root: Path, lists: dict[str, dict[str, int]], frames: dict[str, list[Label]], count: int
                  ) -> Image.Image:
    """Up to `count` rows, each under the frame's name and its lists. `frames` are those that can be read."""
    font = ImageFont.load_default(13)
    rows = {name: tiles(root, name, frames[name]) for name in choose(lists, frames, count)}
    sheet = Image.new("RGB", (4 * (TILE_WIDTH + GAP) + GAP,
                              2 * TITLE + sum(TITLE + row[0].height + GAP for row in rows.values())), "white")
    draw = ImageDraw.Draw(sheet)
    left = GAP
    for visible, text in LEGEND.items():
        draw_box(draw, (left + 2, 5, left + 18, 15), visible)
        draw.text((left + 26, 11), text, fill="black", font=font, anchor="lm")
        left += 60 + round(draw.textlength(text, font))
    top = TITLE
    for column, title in enumerate(("RGB", *SLICES)):
        draw.text((GAP + column * (TILE_WIDTH + GAP), top + TITLE // 2), title, fill="black", font=font, anchor="lm")
    top += TITLE
    for name, row in rows.items():
        standing_in = ", ".join(list_name for list_name, names in lists.items() if name in names)
        draw.text((GAP, top + TITLE // 2), f"{name}   in {standing_in}", fill="black", font=font, anchor="lm")
        for column, picture in enumerate(row):
            sheet.paste(picture, (GAP + column * (TILE_WIDTH + GAP), top + TITLE))
        top += TITLE + row[0].height + GAP
    return sheet

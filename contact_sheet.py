"""A contact sheet of prepared frames: RGB and the three slices side by side, with their boxes."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from layout import LABEL_HEIGHT, LABEL_WIDTH, SLICES, Label, find_picture, read_rgb, read_slice

TILE_WIDTH, TITLE, GAP = 320, 20, 6
# Okabe and Ito's colour-blind-safe hues with the width of their line, which tells the same without colour.
LOOKS = {True: ("#009E73", 2), False: ("#CC79A7", 3), None: ("#56B4E9", 1)}
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


def tile(picture: Image.Image, labels: list[Label]) -> Image.Image:
    """A picture at the tile's width, with a line around each box."""
    small = picture.convert("RGB").resize((TILE_WIDTH, max(1, round(picture.height * TILE_WIDTH / picture.width))),
                                          Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(small)
    for label in labels:
        colour, width = LOOKS[label.visible_rgb]
        x0, x1 = (value * small.width / LABEL_WIDTH for value in label.box[::2])
        y0, y1 = (value * small.height / LABEL_HEIGHT for value in label.box[1::2])
        draw.rectangle((x0 - width, y0 - width, x1 + width, y1 + width), outline=colour, width=width)
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
        colour, width = LOOKS[visible]
        draw.rectangle((left, 6, left + 16, 18), outline=colour, width=width)
        draw.text((left + 24, 12), text, fill="black", font=font, anchor="lm")
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

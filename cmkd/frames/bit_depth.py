"""How many bits a picture's values have, and which kinds are refused. Needs no torch."""

from pathlib import Path

import numpy as np
from PIL import Image

from cmkd.runtime.files import UserError

# Pillow's modes of 8 bits a channel, or of a palette.
EIGHT_BITS = ("1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV", "LAB")
EXIF_ORIENTATION = 0x0112


def has_16_bits(image: Image.Image) -> bool:
    """Whether a file has 16 bits a channel; Pillow's mode alone does not say it of colour."""
    return image.mode.startswith("I") or any(";16" in str(tile[3]) for tile in image.tile)


def refuse_other_kinds(path: Path, image: Image.Image) -> None:
    """Raise `UserError` for numbers that are no grey levels, and for a turned picture."""
    if image.mode not in EIGHT_BITS and not image.mode.startswith("I"):
        low, high = image.convert("F").getextrema()
        raise UserError(
            f"{path} is of Pillow's mode {image.mode}, with values from {low:g} to {high:g}: "
            "convert it to 8 bits"
        )
    if (turned := orientation_of(image)) != 1:
        raise UserError(
            f"{path} says that it is to be turned (EXIF orientation {turned}), and its labels "
            "could be of either view: save it turned, without that entry"
        )


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1..8; 1 if there is none or EXIF cannot be read."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # odd entries fail in any of Pillow's ways
        return 1
    return orientation if orientation in range(1, 9) else 1


def read_16_bit_colour(image: Image.Image) -> np.ndarray:
    """The values of a 16-bit colour PNG, int32 `[H, W, 3]`. Raises `UserError` for other formats.

    Pillow keeps one byte of each 16-bit colour value: the high one, or the low one if it is told
    the opposite byte order. So the file is decoded twice.
    """
    if image.format != "PNG":  # a TIFF is in strips, with other names of its byte orders
        raise UserError(f"{image.filename} is a 16-bit colour {image.format}: convert it to PNG")
    with Image.open(image.filename) as again:
        codec, extents, offset, rawmode = again.tile[0]
        again.tile = [(codec, extents, offset, rawmode.replace(";16B", ";16L"))]
        low = np.array(again.convert("RGB")).astype(np.int32)
    high = np.array(image.convert("RGB")).astype(np.int32)
    return 256 * high + low

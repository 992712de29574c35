"""The images of a frame -> tensors."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cmkd.frames.bit_depth import has_16_bits, read_16_bit_colour, refuse_other_kinds
from cmkd.runtime.files import UserError, reason_of


def read_rgb(path: Path) -> Tensor:
    """An 8-bit image as uint8 `[3, H, W]`. Raises `UserError`."""
    with readable(path) as image:
        if has_16_bits(image):
            raise UserError(
                f"{path} has 16 bits per channel, and nothing says how many of them are used: "
                "convert it to 8 (prepare_pairs.py --colour-bits)"
            )
        refuse_other_kinds(path, image)
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def read_slice(path: Path) -> Tensor:
    """A gated slice as uint8 `[1, H, W]`. Raises `UserError`.

    The file has 1 or 3 channels of 8 bits, or of 10-bit values (0..1023) in 16 bits.
    """
    with readable(path) as image:
        if not image.tile:  # WebP, and some broken JPEGs
            raise OSError("not a whole PNG or JPEG")
        rawmode = str(image.tile[0][3])
        refuse_other_kinds(path, image)
        if image.mode.startswith("I"):
            grey = np.array(image).astype(np.int32)
        elif image.mode.startswith("RGB") and ";16" in rawmode:
            grey = read_16_bit_colour(image).sum(axis=2) // 3
        elif ";16" in rawmode:
            raise UserError(f"{path} has 16 bits and transparency ({rawmode}): save it without")
        else:
            return torch.from_numpy(np.array(image.convert("L")))[None]
    if grey.max() > 1023:
        raise UserError(
            f"{path} has 16 bits and values up to {grey.max()}: expected 10-bit data (0..1023)"
        )
    return torch.from_numpy((grey >> 2).astype(np.uint8))[None]


@contextlib.contextmanager
def readable(path: Path) -> Iterator[Image.Image]:
    """`Image.open`, with errors of header and pixels as `UserError`."""
    try:
        with Image.open(path) as image:
            yield image
    # A damaged AVIF is a RuntimeError.
    except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} cannot be read ({reason_of(error)}): restore it, or take the frame off the "
            "list"
        ) from None


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) from the header, without decoding."""
    with readable(path) as image:
        return image.size

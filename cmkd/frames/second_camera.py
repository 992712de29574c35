"""Pictures of a second camera in the view and the grey levels of the prepared layout. No torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cmkd.frames.bit_depth import has_16_bits, read_16_bit_colour, refuse_other_kinds
from cmkd.frames.layout import evenly_spaced
from cmkd.runtime.files import UserError, read_lines, reason_of

MEASURED = 200  # pictures that a range is measured on
SPREAD = (0.5, 99.5)  # percentiles of a measured range
LAYOUT_SUFFIXES = {".png": ".png", ".jpg": ".jpg", ".jpeg": ".jpg"}  # as which a file is linked
GREY_NOISE = 10  # grey levels by which the channels of a grey picture may differ
COLOURED_SHARE = 0.01  # of a picture's pixels
SHIFT_WIDTH = 320  # px: pictures are compared at this width
LARGEST_SHIFT = 0.08  # of the width


@dataclass(frozen=True)
class Conversion:
    """What happens to every picture of the second camera."""

    low_high: tuple[float, float] | None = None  # values that become 0 and 255; None for 8 bits
    homography: np.ndarray | None = None  # 3x3, px of the second picture -> px of RGB


def open_picture(path: Path, colour_bits: int | None = None) -> Image.Image:
    """A picture, decoded; of 16-bit colour the highest 8 of its `colour_bits`.

    Raises `UserError`, also for a picture that is to be turned.
    """
    try:
        with Image.open(path) as image:
            is_deep = has_16_bits(image)  # asked first, because to read EXIF may decode
            refuse_other_kinds(path, image)
            if is_deep and not image.mode.startswith("I"):
                return from_16_bit_colour(path, image, colour_bits)
            image.load()
            return image
    # A damaged AVIF is a RuntimeError.
    except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} cannot be read ({reason_of(error)}): restore or remove it"
        ) from None


def from_16_bit_colour(path: Path, image: Image.Image, bits: int | None) -> Image.Image:
    """A picture of 8 bits. Raises `UserError` if nothing says how many bits are used."""
    if bits is None or not image.mode.startswith("RGB"):
        raise UserError(
            f"{path} has 16 bits per channel, and nothing says how many of them are used: pass "
            "--colour-bits N, such as 12"
        )
    values = read_16_bit_colour(image)
    if values.max() >= 1 << bits:
        raise UserError(f"{path} has values up to {values.max()}, more than --colour-bits {bits}")
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8))


def bits_of(image: Image.Image) -> int:
    """8, or 16 for grey values of more bits. Raises `UserError` for other kinds."""
    if image.mode in ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr"):
        return 8
    if image.mode.startswith("I"):
        return 16
    raise UserError(f"{image.mode} is a kind of picture that cannot be used")


def is_coloured(image: Image.Image) -> bool:
    """Whether a picture has colours: in more than a hundredth of its pixels the channels differ.

    By more than the noise of a grey picture that was saved as a JPEG.
    """
    if image.mode.startswith("I") or image.mode in ("1", "L", "LA"):
        return False
    values = np.asarray(image.convert("RGB"))
    difference = values.max(axis=2) - values.min(axis=2)
    return bool((difference > GREY_NOISE).mean() > COLOURED_SHARE)


def measured_range(files: list[Path]) -> tuple[float, float]:
    """One range of grey values for all 16-bit pictures, without the outermost half percent."""
    values = []
    for file in evenly_spaced(files, MEASURED):
        image = open_picture(file)
        if bits_of(image) == 16:
            values.append(np.asarray(image).ravel()[::7].astype(np.float32))
    low, high = np.percentile(np.concatenate(values), SPREAD)
    return float(low), float(max(high, low + 1))


def to_eight_bits(image: Image.Image, low_high: tuple[float, float] | None) -> Image.Image:
    """A picture of 8 bits; `low_high` become 0 and 255 in one of 16 bits."""
    if bits_of(image) == 8:
        return image.convert("L") if image.mode not in ("L", "RGB") else image
    low, high = low_high
    values = (np.asarray(image).astype(np.float32) - low) * (255 / (high - low))
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def read_homography(file: Path) -> np.ndarray:
    """Nine numbers in a text file, three in a line. Raises `UserError`."""
    text = " ".join(read_lines(file, "a homography")).replace(",", " ")
    try:
        matrix = np.array([float(word) for word in text.split()]).reshape(3, 3)
        if abs(np.linalg.det(matrix)) < 1e-12:
            raise ValueError
    except ValueError:
        raise UserError(
            f"{file} is no homography: write nine numbers, three in a line, that take a pixel (x, "
            "y, 1) of the second camera to one of RGB"
        ) from None
    return matrix


def in_view_of_rgb(
    image: Image.Image, size: tuple[int, int], homography: np.ndarray | None
) -> Image.Image:
    """A picture warped by the homography, or resized, to the size of RGB (width, height)."""
    if homography is None:
        return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)
    # Pillow wants the way back, from a pixel of the result to one of the source.
    back = np.linalg.inv(homography)
    back = (back / back[2, 2]).ravel()[:8]
    return image.transform(size, Image.Transform.PERSPECTIVE, back, Image.Resampling.BILINEAR)


def may_be_linked(image: Image.Image, path: Path) -> bool:
    """Whether the loader reads a file as it is."""
    return path.suffix.lower() in LAYOUT_SUFFIXES and image.mode in ("L", "RGB")


# ------------------------------------------------------------------------------------ registration


def outlines_of(image: Image.Image) -> np.ndarray:
    """Where a picture's brightness changes, float32 [h, w] at SHIFT_WIDTH, mean 0."""
    height = max(round(image.height * SHIFT_WIDTH / image.width), 8)
    grey = np.asarray(image.convert("L").resize((SHIFT_WIDTH, height)), np.float32)
    down, across = np.gradient(grey)
    strength = np.sqrt(np.hypot(across, down))  # the root: lamps must not outweigh all else
    return strength - strength.mean()


def shift_between(rgb: Image.Image, second: Image.Image) -> tuple[float, float]:
    """How far (x, y) the second picture must move to fit RGB, in px of RGB.

    The whole shift of up to LARGEST_SHIFT of the width at which their outlines correlate best.
    """
    fixed, moving = outlines_of(rgb), outlines_of(second.resize(rgb.size))
    padded = tuple(2 * length for length in fixed.shape)
    spectrum = np.fft.rfft2(fixed, padded) * np.conj(np.fft.rfft2(moving, padded))
    correlation = np.fft.irfft2(spectrum, padded)
    reach = round(LARGEST_SHIFT * SHIFT_WIDTH)
    offsets = np.arange(-reach, reach + 1)
    window = correlation[np.ix_(offsets, offsets)]
    row, column = np.unravel_index(window.argmax(), window.shape)
    scale = rgb.width / SHIFT_WIDTH
    return float(offsets[column] * scale), float(offsets[row] * scale)

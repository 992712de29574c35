"""The raw 12-bit tiffs of the Seeing Through Fog cameras -> 8-bit pictures like the official `_lut` ones.

Decompand, tone curve, demosaic, CLAHE, in this order; rectification is `registration.rectifying_map`'s.
"""

from functools import lru_cache

import numpy as np

from utils import UserError

# Piecewise linear: 12-bit sensor codes -> 16 bit, and fractions of 65536 -> fractions of it.
DECOMPAND = ((0, 1024, 2560, 3456, 3968), (0, 1024, 4096, 32768, 65536))
DAY_CURVE = ((0, 0.005, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 1),
             (0, 0.05, 0.2, 0.35, 0.4, 0.5, 0.7, 0.8, 0.9, 0.98, 1))
NIGHT_CURVE = ((0, 0.0025, 0.005, 0.01, 0.1, 0.2, 0.3, 1), (0, 0.1, 0.25, 0.4, 0.8, 0.9, 0.98, 1))


def develop(raw: np.ndarray, night: bool) -> np.ndarray:
    """Companded Bayer GRBG (H, W) uint16 -> RGB (H, W, 3) uint8, not rectified. Raises `UserError` without OpenCV."""
    toned = tone_table(night)[np.minimum(raw, 4095)]
    return equalise((demosaic(toned) >> 8).astype(np.uint8))


@lru_cache(maxsize=2)
def tone_table(night: bool) -> np.ndarray:
    """The 4096 codes decompanded and through the curve of the night or the day: uint16."""
    linear = np.interp(np.arange(4096), *DECOMPAND)
    toned = 65536 * np.interp(linear / 65536, *(NIGHT_CURVE if night else DAY_CURVE))
    return np.minimum(toned, 65535).astype(np.uint16)


def demosaic(bayer: np.ndarray) -> np.ndarray:
    """Bayer GRBG (H, W) uint16 -> RGB (H, W, 3) uint16, bilinear: each colour is the mean of its nearest samples."""
    height, width = bayer.shape
    channels = []
    for places in (((0, 1),), ((0, 0), (1, 1)), ((1, 0),)):  # of red, green and blue in each 2x2 cell
        mask = np.zeros((height, width), np.float32)
        for row, column in places:
            mask[row::2, column::2] = 1
        channels.append(tent(bayer * mask) / tent(mask))
    return (np.stack(channels, -1) + 0.5).astype(np.uint16)


def tent(values: np.ndarray) -> np.ndarray:
    """The 3x3 filter with the weights 1 2 1 in each direction; nothing lies outside."""
    for _ in range(2):  # along the rows, then, turned, along the columns
        padded = np.pad(values, ((0, 0), (1, 1)))
        values = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]).T
    return values


def equalise(picture: np.ndarray) -> np.ndarray:
    """CLAHE of the lightness (8x8 tiles, clip limit 2.0) of an RGB picture (H, W, 3) uint8. Raises `UserError`."""
    try:
        import cv2
    except ImportError:
        raise UserError("raw RGB tiffs need OpenCV for CLAHE: pip install opencv-python-headless, or download "
                        "cam_stereo_left_lut") from None
    lab = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(lab[..., 0])
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)

"""Raw 12-bit tiffs of the Seeing Through Fog RGB camera -> 8-bit RGB like the official ones.

Decompanding, tone curve, demosaicing and CLAHE as in tools/Raw2LUTImages of the data set's
repository, which made cam_stereo_left_lut. `registration.rectifying_map` rectifies the result.
"""

from types import ModuleType

import numpy as np

from cmkd.frames.tone import DAY_CURVE, NIGHT_CURVE, table_of_codes
from cmkd.runtime.files import UserError


def develop(raw: np.ndarray, night: bool) -> np.ndarray:
    """Companded Bayer GRBG (H, W) uint16 -> RGB (H, W, 3) uint8, not rectified.

    Raises `UserError` if OpenCV is not installed.
    """
    toned = table_of_codes(NIGHT_CURVE if night else DAY_CURVE)[np.minimum(raw, 4095)]
    return equalise((demosaic(toned) >> 8).astype(np.uint8))


def demosaic(bayer: np.ndarray) -> np.ndarray:
    """Bayer GRBG (H, W) uint16 -> RGB (H, W, 3) uint16, bilinear."""
    cv2 = opencv()
    # OpenCV names a pattern by the second and third pixel of its second row: GB in GRBG.
    return cv2.cvtColor(bayer, cv2.COLOR_BayerGB2RGB)


def equalise(rgb: np.ndarray) -> np.ndarray:
    """CLAHE of the lightness (8x8 tiles, clip limit 2.0) of RGB (H, W, 3) uint8."""
    cv2 = opencv()
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(lab[..., 0])
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


def opencv() -> ModuleType:
    """The module cv2, which only raw images need. Raises `UserError` if it is not installed."""
    try:
        import cv2
    except ImportError:
        raise UserError(
            "raw RGB tiffs need OpenCV: pip install opencv-python-headless, or download "
            "cam_stereo_left_lut"
        ) from None
    return cv2

"""The tone curves of the Seeing Through Fog RGB camera. Needs no torch.

Piecewise linear: (fractions of the full linear light, fractions of the full grey level).
"""

from functools import lru_cache

import numpy as np

Curve = tuple[tuple[float, ...], tuple[float, ...]]

DAY_CURVE: Curve = (
    (0, 0.005, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 1),
    (0, 0.05, 0.2, 0.35, 0.4, 0.5, 0.7, 0.8, 0.9, 0.98, 1),
)
NIGHT_CURVE: Curve = (
    (0, 0.0025, 0.005, 0.01, 0.1, 0.2, 0.3, 1),
    (0, 0.1, 0.25, 0.4, 0.8, 0.9, 0.98, 1),
)
# The raw images: 12-bit sensor codes -> 16-bit linear light.
DECOMPANDING: Curve = ((0, 1024, 2560, 3456, 3968), (0, 1024, 4096, 32768, 65536))


@lru_cache(maxsize=2)
def table_of_codes(curve: Curve) -> np.ndarray:
    """The grey level of each 12-bit sensor code, decompanded and toned: uint16 `[4096]`."""
    linear = np.interp(np.arange(4096), *DECOMPANDING)
    toned = 65536 * np.interp(linear / 65536, *curve)
    return np.minimum(toned, 65535).astype(np.uint16)


@lru_cache(maxsize=2)
def table_of_roots(curve: Curve) -> np.ndarray:
    """The grey level of light (i / 4095)^2 for i = 0..4095: uint8 `[4096]`.

    Steps are finer where the light is low, because the curves are steepest there.
    """
    light = ((np.arange(4096) + 0.5) / 4095.5) ** 2
    return np.clip(np.interp(light, *curve) * 255 + 0.5, 0, 255).astype(np.uint8)


def tone(light: np.ndarray, curve: Curve) -> np.ndarray:
    """Linear light, float32 0..1, which is overwritten -> uint8 grey levels."""
    index = np.sqrt(np.clip(light, 0, 1, out=light), out=light)
    index *= 4095
    return np.take(table_of_roots(curve), index.astype(np.int32))

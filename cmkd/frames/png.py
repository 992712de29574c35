"""PNG files of frames. Needs no torch."""

import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from cmkd.runtime.files import write_atomically


def save_png(image: np.ndarray, file: Path, flush: bool = True) -> None:
    """Write uint8 [H, W] or [H, W, 3] atomically; `flush` as in `write_atomically`.

    Frames are noisy: Huffman coding alone is the fastest and the smallest.
    """
    write_atomically(
        file,
        lambda unfinished: Image.fromarray(image).save(
            unfinished, "PNG", compress_type=zlib.Z_HUFFMAN_ONLY
        ),
        flush,
    )

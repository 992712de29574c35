"""How fast one core prepares official frames from `_lut` and `_rect8` by the plane.

    python -m benchmarks.prepare --json docs/figures/prepare_speed.json

First, frames of the official sizes are simulated. Their noise makes them as slow to read and write
as real ones.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cmkd.frames.layout import GATED_FOLDERS
from cmkd.frames.registration import published_calibration
from cmkd.runtime.command_line import OneLineParser
from cmkd.runtime.files import save_json
from cmkd.runtime.hardware import versions
from prepare_data import Preparer

AIM = 4.0  # frames/s
FRAMES = 40
SHAPES = {"rgb": (1024, 1920, 3), **dict.fromkeys(GATED_FOLDERS, (720, 1280))}


def write_download(root: Path) -> dict[str, Path]:
    """FRAMES frames of the official sizes: a vertical ramp with noise. The folder of each part."""
    rng = np.random.default_rng(0)
    folders = {part: root / part for part in SHAPES}
    folders["labels"] = root / "gated_labels_TMP"
    for folder in folders.values():
        folder.mkdir()
    for index in range(FRAMES):
        for part, shape in SHAPES.items():
            rows = np.linspace(10, 60, shape[0])
            ramp = rows.reshape(-1, *[1] * (len(shape) - 1))
            noisy = ramp + rng.normal(0, 2, shape)
            image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
            image.save(folders[part] / f"{index}.png", compress_level=1)
        (folders["labels"] / f"{index}.txt").write_text("")
    return folders


def main() -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "data"
        folders = write_download(Path(folder))
        preparer = Preparer(folders, published_calibration(), "plane", 30.0, out)
        started = time.perf_counter()
        for index in range(FRAMES):
            _, reason = preparer.prepare((str(index), "clear_night"))
            if reason:
                raise SystemExit(reason)
        rate = FRAMES / (time.perf_counter() - started)
        size = sum(file.stat().st_size for file in out.glob("*/*.png")) / FRAMES / 1e6
    print(f"{rate:.2f} frames/s on one core (aim {AIM:g}), {size:.2f} MB per frame")
    if args.json:
        numbers = {
            "frames_per_second": round(rate, 2),
            "aim": AIM,
            "megabytes_per_frame": round(size, 2),
            "versions": versions(),
        }
        save_json(numbers, args.json)


if __name__ == "__main__":
    main()

"""How fast one core prepares frames of the official download, from `_lut` and `_rect8` by the plane.

    python -m benchmarks.prepare --json docs/figures/prepare_speed.json

Frames of the official sizes are simulated first; their noise makes them as long to read and write as real ones.
"""

import argparse
import tempfile
import time
from pathlib import Path
from sys import path

import numpy as np
from PIL import Image

path.insert(0, str(Path(__file__).resolve().parent.parent))

from cmkd.frames.registration import published_calibration
from prepare_data import FOLDERS, Job, Preparer
from utils import OneLineParser, save_json, versions

AIM = 4.0  # frames/s
FRAMES = 40


def write_download(root: Path) -> dict[str, Path]:
    """FRAMES frames of the official sizes: a night's ramp with a night's noise; the folder of each part."""
    rng = np.random.default_rng(0)
    folders = {name: root / name for name in ("rgb", "gated0", "gated1", "gated2", "labels")}
    folders["labels"] = root / "gated_labels_TMP"
    for folder in folders.values():
        folder.mkdir()
    for index in range(FRAMES):
        for part, shape in (("rgb", (1024, 1920, 3)), *((f"gated{d}", (720, 1280)) for d in range(3))):
            ramp = np.linspace(10, 60, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
            noisy = ramp + rng.normal(0, 2, shape)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folders[part] / f"{index}.png", compress_level=1)
        (folders["labels"] / f"{index}.txt").write_text("")
    return folders


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "data"
        folders = write_download(Path(folder))
        for name in FOLDERS:
            (out / name).mkdir(parents=True)
        preparer = Preparer(Job(folders, published_calibration(), "plane", 30.0, out))
        started = time.perf_counter()
        failures = [reason for index in range(FRAMES) if (reason := preparer.prepare(str(index), "clear_night")[1])]
        rate = FRAMES / (time.perf_counter() - started)
        size = sum(file.stat().st_size for file in out.glob("*/*.png")) / FRAMES / 1e6
    if failures:
        raise SystemExit(failures[0])
    print(f"{rate:.2f} frames/s on one core (aim {AIM:g}), {size:.2f} MB a frame")
    if args.json:
        save_json({"frames_per_second": round(rate, 2), "aim": AIM, "megabytes_per_frame": round(size, 2),
                   "versions": versions()}, args.json)


if __name__ == "__main__":
    main()

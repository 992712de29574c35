"""How far RGB and gated edges are apart on a real frame, with the plane at several distances.

    python -m benchmarks.registration --source SeeingThroughFog --json docs/figures/registration_residual.json

SOURCE holds raw RGB and raw slices in the official folders, and may hold the calibration; the first frame, one of a
day, is used. Blocks of the slices' edges are looked for in the warped RGB picture's; the median shift of those that are
found is given.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from cmkd.frames import registration
from cmkd.frames.raw_images import develop
from utils import OneLineParser, save_json, versions

BLOCK, REACH, STRIDE = 48, 24, 24  # px
BORDER = 72  # px at each side that the warps may leave black
CONTRAST, CORRELATION = 0.03, 0.5  # least of a block that is looked for, and of one that is found
DISTANCES = (15.0, 30.0, 40.0, 1e6)  # metres; the last stands for infinity


def edges(picture: np.ndarray) -> np.ndarray:
    """The length of the gradient of a picture's logarithm, (H, W)."""
    down, across = np.gradient(np.log1p(picture.astype(np.float64)))
    return np.hypot(down, across)


def shifts(moving: np.ndarray, fixed: np.ndarray) -> list[float]:
    """The shift in px, up to REACH each way, that correlates best, for each block of `fixed` that is found."""
    found = []
    for y in range(BORDER, fixed.shape[0] - BLOCK - BORDER, STRIDE):
        for x in range(BORDER, fixed.shape[1] - BLOCK - BORDER, STRIDE):
            block = fixed[y : y + BLOCK, x : x + BLOCK]
            if block.std() < CONTRAST:
                continue
            around = moving[y - REACH : y + BLOCK + REACH, x - REACH : x + BLOCK + REACH]
            windows = np.lib.stride_tricks.sliding_window_view(around, (BLOCK, BLOCK))
            covariance = np.einsum("abij,ij->ab", windows, block - block.mean()) / BLOCK**2
            correlation = covariance / (windows.std(axis=(2, 3)) * block.std() + 1e-9)
            if correlation.max() > CORRELATION:
                row, column = np.unravel_index(correlation.argmax(), correlation.shape)
                found.append(float(np.hypot(row - REACH, column - REACH)))
    return found


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with cam_stereo_left and gated<d>_raw")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    args = parser.parse_args()
    names = sorted(file.stem for file in (args.source / "cam_stereo_left").glob("*.tiff"))
    if not names:
        parser.error(f"{args.source / 'cam_stereo_left'} has no tiff")
    calibration = registration.find_calibration([args.source])
    developed = develop(np.array(Image.open(args.source / f"cam_stereo_left/{names[0]}.tiff")), night=False)
    rgb = registration.warp(developed, registration.rectifying_map(calibration.rgb, calibration.rgb.size))
    rectifying = registration.rectifying_map(calibration.gated, calibration.gated.size)
    gated = np.zeros(registration.PREPARED_SIZE[::-1])
    for number in range(3):
        raw = np.array(Image.open(args.source / f"gated{number}_raw/{names[0]}.tiff")).astype(np.float32)
        raw[:2] = 0  # the first rows of a raw slice are no picture
        rectified = Image.fromarray(registration.warp(raw, rectifying))
        gated += np.asarray(rectified.resize(registration.PREPARED_SIZE, Image.Resampling.BILINEAR))
    rows = []
    for distance in tqdm(DISTANCES, "planes", disable=None):
        warped = registration.warp(rgb, registration.plane_map(calibration, distance))
        found = shifts(edges(warped.mean(axis=-1)), edges(gated))
        rows.append({"plane_m": distance, "blocks": len(found), "median_px": round(float(np.median(found)), 1)})
        print(f"plane at {distance:g} m: {rows[-1]['median_px']} px, the median of {len(found)} blocks")
    if args.json:
        save_json({"frame": names[0], "planes": rows, "versions": versions()}, args.json)


if __name__ == "__main__":
    main()

"""The distance between RGB and gated edges on a real frame, with the plane at several distances.

    python -m benchmarks.registration --source SeeingThroughFog --json registration_residual.json

SOURCE holds raw RGB and raw slices in the official folders, and may hold the calibration. The first
frame is used; it must be a day frame. For each block of the slices' edges the best match in the
edges of the warped RGB image is searched; the result is the median shift of the blocks that match.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from cmkd.frames import registration
from cmkd.frames.layout import GATED_FOLDERS
from cmkd.frames.raw_images import develop
from cmkd.frames.registration import PREPARED_SIZE, Calibration
from cmkd.runtime.command_line import OneLineParser
from cmkd.runtime.files import save_json
from cmkd.runtime.hardware import versions

BLOCK, REACH, STRIDE = 48, 24, 24  # px
BORDER = 72  # px at each side that the warps may leave black
MIN_CONTRAST = 0.03  # of a block that is searched
MIN_CORRELATION = 0.5  # of a block that matches
PLANE_DISTANCES = (15.0, 30.0, 40.0, 1e6)  # metres; the last means infinity


def edges(image: np.ndarray) -> np.ndarray:
    """The length of the gradient of an image's logarithm, (H, W)."""
    down, across = np.gradient(np.log1p(image.astype(np.float64)))
    return np.hypot(down, across)


def shifts(moving: np.ndarray, fixed: np.ndarray) -> list[float]:
    """The shift in px with the best correlation, for each block of `fixed` that matches.

    At most REACH px in each direction are searched.
    """
    found = []
    for y in range(BORDER, fixed.shape[0] - BLOCK - BORDER, STRIDE):
        for x in range(BORDER, fixed.shape[1] - BLOCK - BORDER, STRIDE):
            block = fixed[y : y + BLOCK, x : x + BLOCK]
            if block.std() < MIN_CONTRAST:
                continue
            around = moving[y - REACH : y + BLOCK + REACH, x - REACH : x + BLOCK + REACH]
            windows = np.lib.stride_tricks.sliding_window_view(around, (BLOCK, BLOCK))
            covariance = np.einsum("abij,ij->ab", windows, block - block.mean()) / BLOCK**2
            correlation = covariance / (windows.std(axis=(2, 3)) * block.std() + 1e-9)
            if correlation.max() > MIN_CORRELATION:
                row, column = np.unravel_index(correlation.argmax(), correlation.shape)
                found.append(float(np.hypot(row - REACH, column - REACH)))
    return found


def read_rgb_of(source: Path, name: str, calibration: Calibration) -> np.ndarray:
    """The developed and rectified RGB image (1024, 1920, 3) uint8."""
    raw = np.array(Image.open(source / "cam_stereo_left" / f"{name}.tiff"))
    return registration.warp(
        develop(raw, night=False), registration.rectifying_map(calibration.rgb)
    )


def sum_of_slices(source: Path, name: str, calibration: Calibration) -> np.ndarray:
    """The sum of the three rectified slices at the prepared size, (768, 1280)."""
    rectifying = registration.rectifying_map(calibration.gated)
    total = np.zeros(PREPARED_SIZE[::-1])
    for folder in GATED_FOLDERS:
        raw = np.array(Image.open(source / f"{folder}_raw" / f"{name}.tiff")).astype(np.float32)
        raw[:2] = 0  # the first two rows of a raw slice are not part of the image
        rectified = Image.fromarray(registration.warp(raw, rectifying))
        total += np.asarray(rectified.resize(PREPARED_SIZE, Image.Resampling.BILINEAR))
    return total


def main() -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument(
        "--source", type=Path, required=True, help="folder with cam_stereo_left and gated<d>_raw"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    args = parser.parse_args()
    names = sorted(file.stem for file in (args.source / "cam_stereo_left").glob("*.tiff"))
    if not names:
        parser.error(f"{args.source / 'cam_stereo_left'} has no tiff")
    calibration = registration.find_calibration([args.source])
    rgb = read_rgb_of(args.source, names[0], calibration)
    gated_edges = edges(sum_of_slices(args.source, names[0], calibration))
    planes = []
    for distance in tqdm(PLANE_DISTANCES, "planes", disable=None):
        warped = registration.warp(rgb, registration.map_by_plane(calibration, distance))
        found = shifts(edges(warped.mean(axis=-1)), gated_edges)
        median = round(float(np.median(found)), 1)
        planes.append({"plane_m": distance, "blocks": len(found), "median_px": median})
        print(f"plane at {distance:g} m: {median} px, the median of {len(found)} blocks")
    if args.json:
        save_json({"frame": names[0], "planes": planes, "versions": versions()}, args.json)


if __name__ == "__main__":
    main()

"""Gated frames that nobody labelled: history frames of the download, and Gated2Depth's.

The folders of history frames are in the same download as the frames that they precede or follow,
under the same names. They are of the recordings that are trained on, so they are worth less than
new drives.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cmkd.frames.layout import GATED_FOLDERS, find_image, in_order
from cmkd.runtime.files import UserError, reason_of

OFFSETS = (*range(-6, 0), *range(1, 5))  # of history frames with RGB
RGB_HISTORY, GATED_HISTORY = "cam_stereo_left_raw_history_{}", "{}_10bit_history_{}"
# Gated2Depth's folders.
RGB_OF_GATED2DEPTH, GATED_OF_GATED2DEPTH = "rgb_left_8bit", "{}_10bit"
THUMBNAIL = (40, 24)  # px: at this size frames are compared
SAME_SCENE = 1.5  # mean difference in grey levels, below which two frames are one


@dataclass(frozen=True)
class UnlabelledFrame:
    """The files of a frame without labels."""

    name: str
    rgb: Path
    slices: tuple[Path, ...]


def history_frames(source: Path, names: list[str]) -> list[UnlabelledFrame]:
    """The history frames of labelled frames, as far as all their files are there.

    Frame 5 of recording r has history frames `r_5h-6` to `r_5h4`: the name still says the
    recording.
    """
    found = []
    for offset in OFFSETS:
        rgb_folder = source / RGB_HISTORY.format(offset)
        slice_folders = [source / GATED_HISTORY.format(name, offset) for name in GATED_FOLDERS]
        if not all(folder.is_dir() for folder in (rgb_folder, *slice_folders)):
            continue
        for name in names:
            rgb = rgb_folder / f"{name}.tiff"
            slices = tuple(folder / f"{name}.png" for folder in slice_folders)
            if all(file.is_file() for file in (rgb, *slices)):
                found.append(UnlabelledFrame(f"{name}h{offset}", rgb, slices))
    return sorted(found, key=lambda frame: frame.name)


def gated2depth_frames(folder: Path) -> list[UnlabelledFrame]:
    """The frames of a folder of Gated2Depth. Raises `UserError` if a part is missing."""
    rgb_folder = folder / RGB_OF_GATED2DEPTH
    slice_folders = [folder / GATED_OF_GATED2DEPTH.format(name) for name in GATED_FOLDERS]
    for part in (rgb_folder, *slice_folders):
        if not part.is_dir():
            raise UserError(f"{folder} has no {part.name}: name the folder of Gated2Depth's frames")
    found = []
    for rgb in in_order(rgb_folder.glob("*.png")):
        slices = tuple(part / rgb.name for part in slice_folders)
        if all(file.is_file() for file in slices):
            found.append(UnlabelledFrame(f"gated2depth-{rgb.stem}".replace("_", "-"), rgb, slices))
    return found


def thumbnail(file: Path, ten_bits: bool) -> np.ndarray:
    """A small slice, float32, in grey levels of 8 bits. Raises `UserError`."""
    try:
        with Image.open(file) as image:
            grey = np.array(image if image.mode.startswith("I") else image.convert("L"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({reason_of(error)})") from None
    scale = 0.25 if ten_bits and grey.dtype != np.uint8 else 1.0
    small = Image.fromarray(grey.astype(np.float32) * np.float32(scale))
    return np.asarray(small.resize(THUMBNAIL, Image.Resampling.BOX))


def without_near_duplicates(
    frames: list[UnlabelledFrame], data: Path, held_out: list[str]
) -> tuple[list[UnlabelledFrame], int]:
    """The frames whose first slice is that of no prepared frame to be tested on; and how many are.

    Their anonymous names do not say the recording. Raises `UserError`.
    """
    if not held_out:
        return frames, 0
    files = [find_image(data, GATED_FOLDERS[0], name) for name in held_out]
    tested = np.stack([thumbnail(file, ten_bits=False) for file in files if file])
    kept = [
        frame
        for frame in frames
        if np.abs(tested - thumbnail(frame.slices[0], ten_bits=True)).mean(axis=(1, 2)).min()
        > SAME_SCENE
    ]
    return kept, len(frames) - len(kept)

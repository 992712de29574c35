"""The prepared layout on disk: where its files are, and how each is read.

    root/<list>.txt                          one frame name per line
    root/images/<name>.png                   RGB in the gated camera's view
    root/gated0|gated1|gated2/<name>.png     the three gated slices
    root/gated_labels/<name>.txt             KITTI-like lines, boxes in the gated camera's 1280x720 frame

Every picture may also be a .jpg, of any size that is the same for the four pictures of a frame. Lists and labels are
parsed into what they hold and every problem in them; `read_list` and `read_labels` raise the first of these.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils import UserError, reason_of

LABEL_WIDTH, LABEL_HEIGHT = 1280, 720
SLICES = ("gated0", "gated1", "gated2")
PICTURES = ("images", *SLICES)
LONGEST_NAME = 250  # bytes; file systems take 255, with the suffix
LABEL_COLUMNS = (15, 16, 27)  # KITTI, KITTI with a score, Seeing Through Fog
NO_POSITION = -1000  # in any of the three coordinates
VISIBLE = {"True": True, "False": False}  # any other text says that it is not known


@dataclass(frozen=True)
class Label:
    """One line of a label file."""

    name: str  # the class
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in 1280x720 label space
    visible_rgb: bool | None  # columns 23 and 24 of Seeing Through Fog; None where they are not given
    visible_gated: bool | None
    distance: float | None  # m, from the 3D position in columns 11-13; None where it is not given
    line: int


def frame_name(line: str) -> str:
    """The name in one line of a list; the official split files write `recording,frame` for `recording_frame`."""
    return line.strip().replace(",", "_")


def recording(name: str) -> str:
    """The drive a frame is from: its name before the last `_`; the whole name where there is none."""
    return name.rpartition("_")[0] or name


def find_picture(root: Path, folder: str, name: str) -> Path | None:
    """The picture of a frame in one folder of the layout, where there is one."""
    files = (root / folder / f"{name}{suffix}" for suffix in (".png", ".jpg"))
    return next((file for file in files if file.is_file()), None)


def read_lines(file: Path, what: str) -> list[str]:
    """The lines of a text file. Raises `UserError`, also for a file that is missing or not UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{file} is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as {what}: {error}") from None


def parse_list(file: Path) -> tuple[dict[str, int], list[str]]:
    """Frame names of a list file with their line numbers, and what is wrong with the others.

    Raises `UserError` where the file cannot be read or has no line.
    """
    try:
        lines = read_lines(file, "a list of frame names")
    except UserError as error:
        if not file.exists():
            raise UserError(f"{error}: name another list, or make this one (a frame name per line)") from None
        raise
    first_line: dict[str, int] = {}
    problems = []
    for number, line in enumerate(lines, start=1):
        name = frame_name(line)
        if "/" in name or "\\" in name or "\0" in name or len(name.encode()) > LONGEST_NAME:
            problems.append(f"{file}:{number}: {name[:80]!r} is not a frame name: write the name alone, without a "
                            "folder")
        elif name in first_line:
            problems.append(f"{file}:{number}: {name} stands in line {first_line[name]} already: remove one of them")
        elif name:
            first_line[name] = number
    if not first_line and not problems:
        raise UserError(f"{file} is empty: write one frame name per line")
    return first_line, problems


def read_list(file: Path) -> list[str]:
    """Frame names of a list file, in order. Raises `UserError` where it is missing, empty, or names a frame twice."""
    names, problems = parse_list(file)
    if problems:
        raise UserError(problems[0])
    return list(names)


def condition_lists(root: Path, list_name: str) -> dict[str, list[str]]:
    """The lists of one condition of a list: those of the same split (`val_night`, `val_snow_night`) whose frames are a
    part of its, and not all. Lists that cannot be read are none."""
    whole = set(read_list(root / f"{list_name}.txt"))
    found = {}
    for file in sorted(root.glob(f"{list_name.partition('_')[0]}_*.txt")):
        with contextlib.suppress(UserError):
            if set(names := read_list(file)) < whole:
                found[file.stem] = names
    return found


def parse_labels(file: Path) -> tuple[list[Label], list[str]]:
    """The objects of a label file, and what is wrong with the other lines.

    Columns as in Seeing Through Fog's gated_labels (27) or KITTI (15, 16): class in column 0, box in columns 4-7.
    Lines of two-word `traffic ...` classes and boxes without width or height are left out, as published.
    Raises `UserError` where the file cannot be read.
    """
    labels, problems = [], []
    for number, line in enumerate(read_lines(file, "labels"), start=1):
        columns = line.split()
        if not columns or columns[0] == "traffic":
            continue
        if len(columns) not in LABEL_COLUMNS:
            problems.append(f"{file}:{number}: {len(columns)} columns, expected 27 (KITTI: 15 or 16): mend the line")
            continue
        try:
            x0, y0, x1, y1 = (float(column) for column in columns[4:8])
        except ValueError:
            problems.append(f"{file}:{number}: columns 5-8 must be the box x0 y0 x1 y1 in numbers, not "
                            f"'{' '.join(columns[4:8])}'")
            continue
        if not all(math.isfinite(value) for value in (x0, y0, x1, y1)) or x1 < x0 or y1 < y0:
            problems.append(f"{file}:{number}: box {x0:g} {y0:g} {x1:g} {y1:g} is not x0 <= x1, y0 <= y1 in finite "
                            "numbers: mend or remove the line")
        elif x1 > x0 and y1 > y0:
            visible_rgb, visible_gated = (VISIBLE.get(column) for column in (columns[23:25] or ("", "")))
            labels.append(Label(columns[0], (x0, y0, x1, y1), visible_rgb, visible_gated, distance(columns[11:14]),
                                number))
    return labels, problems


def distance(position: list[str]) -> float | None:
    """Metres from the sensor to an object's 3D position x y z, whichever way its axes point. None where it is not
    given, which KITTI and Seeing Through Fog write as -1000."""
    try:
        place = [float(one) for one in position]
    except ValueError:
        return None
    return math.hypot(*place) if all(NO_POSITION < one < math.inf for one in place) else None


def read_labels(file: Path) -> list[Label]:
    """The objects of a label file. Raises `UserError` with the first line that is wrong."""
    labels, problems = parse_labels(file)
    if problems:
        raise UserError(problems[0])
    return labels


def read_rgb(file: Path) -> Tensor:
    """An 8-bit picture as uint8 `[3, H, W]`."""
    with readable(file) as image:
        if image.mode.startswith("I"):
            raise UserError(f"{file} has 16 bits per channel: RGB must have 8")
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def read_slice(file: Path) -> Tensor:
    """A gated slice as uint8 `[1, H, W]`: 1 or 3 channels, 8 bits, or 10-bit values (0..1023) in 16 bits."""
    with readable(file) as image:
        if not image.tile:  # as for a WebP and for some broken JPEGs
            raise OSError("not a whole PNG or JPEG")
        rawmode = str(image.tile[0][3])
        if image.mode.startswith("I"):
            grey = np.array(image).astype(np.int32)
        elif rawmode.startswith("RGB") and rawmode.endswith(";16B"):
            grey = read_16_bit_colour(image)
        else:
            return torch.from_numpy(np.array(image.convert("L")))[None]
    if grey.max() > 1023:
        raise UserError(f"{file} has 16 bits and values up to {grey.max()}: expected 10-bit data (0..1023)")
    return torch.from_numpy((grey >> 2).astype(np.uint8))[None]


def read_16_bit_colour(image: Image.Image) -> np.ndarray:
    """The mean of the channels, int32 `[H, W]`, of a 16-bit colour PNG.

    Pillow keeps one byte of each 16-bit colour value: the first as the file says (big-endian), the second when told the
    opposite byte order. The file is decoded once for each.
    """
    with Image.open(image.filename) as again:
        codec, extents, offset, rawmode = again.tile[0]
        again.tile = [(codec, extents, offset, rawmode.replace(";16B", ";16L"))]
        low = np.array(again.convert("RGB")).astype(np.int32)
    high = np.array(image.convert("RGB")).astype(np.int32)
    return (256 * high + low).sum(axis=2) // 3


@contextlib.contextmanager
def readable(file: Path) -> Iterator[Image.Image]:
    """`Image.open`, with the file and what to do in the error, whether it comes from the header or the pixels."""
    try:
        with Image.open(file) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{file} cannot be read ({reason_of(error)}): restore it, or take the frame off the "
                        "list") from None


def image_size(file: Path) -> tuple[int, int]:
    """(width, height) from the header, without decoding."""
    with readable(file) as image:
        return image.size

"""The prepared layout on disk: lists, folders and names. Needs no torch.

    root/<list>.txt                          one frame name per line
    root/images/<name>.png                   RGB in the gated camera's view
    root/gated0|gated1|gated2/<name>.png     the three gated slices
    root/gated_labels/<name>.txt             KITTI-like lines (`annotations`)

An image may also be a .jpg, .tif or .bmp, in capitals too. The four images of a frame have one
size, which can be any. Accented letters may be one character or two, in lists and on disk.
"""

import contextlib
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn, TypeVar

import numpy as np

from cmkd.runtime.files import UserError, read_lines, save_text

Item = TypeVar("Item")

RGB_FOLDER, LABEL_FOLDER = "images", "gated_labels"
GATED_FOLDERS = ("gated0", "gated1", "gated2")
IMAGE_FOLDERS = (RGB_FOLDER, *GATED_FOLDERS)
# The first that exists is read.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG", ".tif", ".tiff", ".bmp")
SPLITS = ("train", "val", "test")
UNLABELLED = "unlabelled"  # a list with such a name needs no label files: unlabelled_night
TRUE_LABELS = "true_labels"  # folder of the labels of simulated unlabelled frames
LONGEST_NAME = 250  # bytes; file systems take 255, with the suffix


def frame_name(line: str) -> str:
    """The name in a line of a list, without an image's suffix.

    Official lists write `recording,frame`.
    """
    name = line.strip().replace(",", "_")
    suffix = next((one for one in IMAGE_SUFFIXES if name.endswith(one)), "")
    return name.removesuffix(suffix)


def on_disk(path: str) -> str:
    """A file's path as the disk spells it: accented letters are one character or two."""
    if path.isascii() or os.path.exists(path):  # noqa: PTH110 - called for every file
        return path
    folder, _, name = path.rpartition("/")
    spellings = [f"{folder}/{unicodedata.normalize(form, name)}" for form in ("NFC", "NFD")]
    return next((one for one in spellings if Path(one).exists()), path)


def in_order(files: Iterable[Path]) -> list[Path]:
    """Files by path, without hidden ones: macOS leaves `._a.txt` beside `a.txt` on other disks."""
    return sorted(file for file in files if not file.name.startswith("."))


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, `in_order`; a folder that is linked is visited once.

    Raises `UserError` for a folder that this user may not read.
    """

    def refuse(error: OSError) -> NoReturn:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}): fix that first")

    visited: set[Path] = set()
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = Path(parent).resolve()
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        found += (Path(parent) / name for name in names)
    return in_order(found)


def recording_of(name: str) -> str:
    """The drive that a frame is from: its name before the last `_`, or all of it."""
    return name.rpartition("_")[0] or name


def find_image(root: Path, folder: str, name: str) -> Path | None:
    """The file of a frame's image in one folder of the layout, if it exists."""
    suffix = find_suffix(f"{root / folder}/{name}")
    return Path(on_disk(f"{root / folder}/{name}{suffix}")) if suffix else None


def find_suffix(stem: str) -> str | None:
    """The suffix of an image whose path without it is `stem`, if the image exists."""
    for suffix in IMAGE_SUFFIXES:
        # To make a Path takes longer than to ask for the file.
        if os.path.isfile(on_disk(f"{stem}{suffix}")):  # noqa: PTH113
            return suffix
    return None


def label_file(root: Path, name: str, folder: str = LABEL_FOLDER) -> Path:
    """The label file of a frame in a folder of labels, whether it exists or not."""
    return Path(on_disk(f"{root / folder}/{name}.txt"))


def refuse_forbidden(root: Path, *folders: str) -> None:
    """Raise `UserError` for a folder that this user may not use: its files would seem missing."""
    needs = {root: os.R_OK | os.X_OK, **{root / name: os.X_OK for name in folders}}
    for folder, access in needs.items():
        if folder.is_dir() and not os.access(folder, access):
            raise UserError(
                f"{folder} may not be read by this user: let its owner run chmod -R a+rX {folder}"
            )


def missing_image_message(root: Path, folder: str, name: str, list_line: str) -> str:
    """The error for an image that is missing. `list_line` is like `data/train_night.txt:7`."""
    return (
        f"{list_line}: {root / folder / name}.png (or .jpg) is missing: add it, or take the frame "
        "off the list"
    )


def missing_labels_message(file: Path, list_line: str) -> str:
    """The error for a label file that is missing. `list_line` is like `data/train_night.txt:7`."""
    return (
        f"{list_line}: {file} is missing: add it (an empty file means that nothing is there), or "
        "take the frame off the list"
    )


def missing_machine_labels_message(file: Path, list_line: str) -> str:
    """The error for a machine's label file that is missing."""
    return (
        f"{list_line}: {file} is missing: label this list with label_frames.py --out "
        f"{file.parent.name}, or take the frame off the list"
    )


def other_size_message(
    file: Path, rgb_file: Path, size: tuple[int, int], rgb_size: tuple[int, int]
) -> str:
    """The error for a slice that differs in size (width, height) from RGB."""
    return (
        f"{file} is {size[0]}x{size[1]} but {rgb_file} is {rgb_size[0]}x{rgb_size[1]}: the images "
        "of a frame must have one size and one view; prepare this frame again"
    )


def list_file(root: Path, name: str) -> Path:
    """The file of a list, which may be named with its suffix."""
    return root / f"{name.removesuffix('.txt')}.txt"


def parse_list(path: Path) -> tuple[dict[str, int], list[str]]:
    """Frame names of a list with their line numbers, and what is wrong with the other lines.

    Raises `UserError` if the file cannot be read or is empty.
    """
    try:
        lines = read_lines(path, "a list of frame names")
    except UserError as error:
        if not path.exists():
            raise UserError(
                f"{error}: name another list, or make this one (a frame name per line)"
            ) from None
        raise
    line_of: dict[str, int] = {}
    problems = []
    for number, line in enumerate(lines, start=1):
        name = frame_name(line)
        if "/" in name or "\\" in name or "\0" in name or len(name.encode()) > LONGEST_NAME:
            problems.append(
                f"{path}:{number}: {name[:80]!r} is not a frame name: write the name alone, "
                "without a folder"
            )
        elif name in line_of:
            problems.append(
                f"{path}:{number}: {name} is in line {line_of[name]} already: remove one of them"
            )
        elif name:
            line_of[name] = number
    if not line_of and not problems:
        raise UserError(f"{path} is empty: write one frame name per line")
    return line_of, problems


def read_list(path: Path) -> list[str]:
    """Frame names of a list, in order. Raises `UserError` with the first line that is wrong."""
    names, problems = parse_list(path)
    if problems:
        raise UserError(problems[0])
    return list(names)


def refuse_held_out_frames(root: Path, lists: list[str], *kept_apart: str) -> None:
    """Raise `UserError` if lists share a frame or a recording with a val_* or test_* list.

    Another frame of a recording shows the same people. `kept_apart` are further lists to be tested
    on. A frame that is in two of the lists is an error too.
    """
    files = {list_file(root, name) for name in kept_apart}
    files.update(*(root.glob(f"{split}_*.txt") for split in ("val", "test")))
    held_out: dict[str, tuple[str, str]] = {}  # recording -> one of its frames, list line
    for file in sorted(files):
        for name, line in parse_list(file)[0].items():
            held_out[recording_of(name)] = (name, f"{file}:{line}")
    list_lines: dict[str, str] = {}
    for file in (list_file(root, name) for name in lists):
        for name, line in parse_list(file)[0].items():
            if name in list_lines:
                raise UserError(
                    f"{file}:{line}: {name} is in {list_lines[name]} too: take it off one of them"
                )
            list_lines[name] = f"{file}:{line}"
            if recording_of(name) in held_out:
                other, list_line = held_out[recording_of(name)]
                raise UserError(
                    f"{file}:{line}: {name} is of the recording of {other} ({list_line}): take it "
                    "off, because a network must be tested on frames that it was not trained on"
                )


def condition_lists(root: Path, list_name: str) -> dict[str, list[str]]:
    """The lists of single conditions within a list, by name.

    They are of the same split (`val_night`, `val_snow_night`), and their frames are a proper subset
    of its frames. Lists that cannot be read are left out.
    """
    whole = set(read_list(list_file(root, list_name)))
    found = {}
    for file in sorted(root.glob(f"{list_name.partition('_')[0]}_*.txt")):
        with contextlib.suppress(UserError):
            if set(names := read_list(file)) < whole:
                found[file.stem] = names
    return found


def evenly_spaced(items: list[Item], count: int) -> list[Item]:
    """At most `count` of the items, at equal distances from the first to the last."""
    if not items:
        return []
    indices = np.linspace(0, len(items) - 1, count).astype(int)
    return [items[index] for index in np.unique(indices)]


def save_list(names: list[str], path: Path) -> None:
    """Write a list of frame names; one that has them already keeps its date."""
    text = "".join(f"{name}\n" for name in names)
    if not path.is_file() or path.read_bytes() != text.encode():
        save_text(text, path)

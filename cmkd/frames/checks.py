"""What is wrong with a prepared folder: errors at which training stops, and warnings.

Every file of every list is read like the dataset reads it, and errors have the same words. A
`list_line` is the file and line of a list, like `data/train_night.txt:7`.
"""

import filecmp
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from cmkd.frames.annotations import Label, clip, has_area, parse_labels, without_copies
from cmkd.frames.images import read_rgb, read_slice
from cmkd.frames.layout import (
    IMAGE_FOLDERS,
    LABEL_FOLDER,
    RGB_FOLDER,
    SPLITS,
    UNLABELLED,
    find_image,
    in_order,
    label_file,
    missing_image_message,
    missing_labels_message,
    other_size_message,
    parse_list,
    recording_of,
    refuse_forbidden,
)
from cmkd.runtime.files import UserError
from cmkd.runtime.parallel import parallel_map

SEPARATORS = str.maketrans("-, ", "___")

Lists = dict[str, dict[str, int]]  # list name -> frame name -> line


@dataclass(frozen=True)
class CheckedFrame:
    """What is in the files of one frame, and what is wrong with them."""

    size: tuple[int, int] | None  # width and height of its images; None if RGB cannot be read
    labels: list[Label]  # boxes are clipped to label space, without those outside, as in training
    errors: list[str]
    warnings: list[str]
    copies: list[str]  # warnings about label lines that occur twice
    has_copy_of_rgb: bool  # a slice is the same picture as RGB


# -------------------------------------------------------------------------------------------- lists


def split_and_condition(list_name: str) -> tuple[str, str]:
    """`test_snow_night` -> (test, snow_night); ('', '') for a list without a split: `vis_night`."""
    split, _, condition = list_name.partition("_")
    return (split, condition) if split in SPLITS else ("", "")


def order_of_split(file: Path) -> int:
    """The position of a list in the order train, val, test, others."""
    return (*SPLITS, "").index(split_and_condition(file.stem)[0])


def read_lists(root: Path) -> tuple[Lists, list[str]]:
    """All lists of a folder, ordered by split, and what is wrong with them.

    Training needs a list with a name like train_* and one like val_*. Raises `UserError`
    if the folder has no list.
    """
    if not root.is_dir():
        raise UserError(
            f"{root} is not a folder: name the one that holds the lists, images, gated0, ..."
        )
    refuse_forbidden(root, *IMAGE_FOLDERS, LABEL_FOLDER)
    files = in_order(root.glob("*.txt"))
    if not files:
        raise UserError(
            f"{root} has no list: write train_night.txt and val_night.txt, a frame name per line"
        )
    present = {split_and_condition(file.stem)[0] for file in files}
    files += [root / f"{split}_night.txt" for split in ("train", "val") if split not in present]
    lists, errors = {}, []
    for file in sorted(files, key=order_of_split):
        try:
            lists[file.stem], problems = parse_list(file)
        except UserError as error:
            problems = [str(error)]
        errors += problems
    return lists, errors


def first_list_lines(root: Path, lists: Lists) -> dict[str, str]:
    """Frame name -> file and line of the first list that has it."""
    list_lines: dict[str, str] = {}
    for list_name, names in lists.items():
        for name, line in names.items():
            list_lines.setdefault(name, f"{root / list_name}.txt:{line}")
    return list_lines


# ------------------------------------------------------------------------------------------- frames


def read_frames(root: Path, list_lines: dict[str, str], workers: int) -> dict[str, CheckedFrame]:
    """Read frames (name -> list line) in several processes."""
    frames = parallel_map(partial(read_frame, root), list_lines.items(), workers, str(root))
    return dict(zip(list_lines, frames, strict=True))


def read_frame(root: Path, frame: tuple[str, str]) -> CheckedFrame:
    """Read all files of a frame (name, list line)."""
    name, list_line = frame
    labels, label_errors, warnings = check_labels(root, name, list_line)
    size, image_errors, has_copy_of_rgb = check_images(root, name, list_line)
    different = without_copies(labels)
    copies = [
        f"{label_file(root, name)}:{label.line}: is the same as an earlier line: remove it, "
        "because training and test keep one"
        for label in labels
        if label not in different
    ]
    errors = label_errors + image_errors
    return CheckedFrame(size, different, errors, warnings, copies, has_copy_of_rgb)


def check_images(
    root: Path, name: str, list_line: str
) -> tuple[tuple[int, int] | None, list[str], bool]:
    """Decode the four images of a frame: the size of RGB, errors, and whether a slice is RGB."""
    size, rgb_file, errors, has_copy_of_rgb = None, None, [], False
    for folder in IMAGE_FOLDERS:
        file = find_image(root, folder, name)
        if file is None:
            errors.append(missing_image_message(root, folder, name, list_line))
            continue
        read: Callable[[Path], Tensor] = read_rgb if folder == RGB_FOLDER else read_slice
        try:
            height, width = read(file).shape[-2:]
        except UserError as error:
            errors.append(str(error))
            continue
        if folder == RGB_FOLDER:
            size, rgb_file = (width, height), file
        elif size and size != (width, height):
            errors.append(other_size_message(file, rgb_file, (width, height), size))
        elif size:
            has_copy_of_rgb |= is_same_picture(rgb_file, file)
    return size, errors, has_copy_of_rgb


def is_same_picture(one: Path, other: Path) -> bool:
    """Whether two paths are of one file, or of files with the same bytes."""
    return one.samefile(other) or filecmp.cmp(one, other, shallow=False)


def check_labels(root: Path, name: str, list_line: str) -> tuple[list[Label], list[str], list[str]]:
    """The labels of a frame with clipped boxes, errors, and warnings."""
    file = label_file(root, name)
    if not file.is_file():
        # The first list of a frame is an unlabelled one only if no other list has it.
        is_unlabelled = Path(list_line).name.partition("_")[0] == UNLABELLED
        return [], [] if is_unlabelled else [missing_labels_message(file, list_line)], []
    try:
        found, errors = parse_labels(file)
    except UserError as error:
        return [], [str(error)], []
    labels, warnings = [], []
    for label in found:
        box = clip(label.box)
        is_inside = has_area(box)
        if is_inside:
            labels.append(replace(label, box=box))
        if box != label.box:
            numbers = " ".join(f"{value:.10g}" for value in label.box)
            problem = (
                "partly outside 1280x720: it is clipped"
                if is_inside
                else "outside 1280x720: it is left out"
            )
            warnings.append(f"{file}:{label.line}: box {numbers} lies {problem}")
    return labels, errors, warnings


# ---------------------------------------------------------------------------- what lists have twice


def same_in_all_spellings(name: str) -> str:
    """A name without what may differ between two spellings of it."""
    return unicodedata.normalize("NFC", name).casefold().translate(SEPARATORS)


def similar_names(list_lines: dict[str, str]) -> list[str]:
    """Warnings about frame names that differ only in case, separators or composed letters.

    They are probably one frame, or one recording, under two names.
    """
    warnings = []
    first: dict[str, str] = {}
    for name, list_line in list_lines.items():
        other = first.setdefault(same_in_all_spellings(name), name)
        if other != name:
            warnings.append(
                f"{list_line}: {name!r} differs from {other!r} ({list_lines[other]}) only in case, "
                "'_', '-', ',' or spaces: check that they are two frames"
            )
    return warnings


def shared_by_splits(root: Path, lists: Lists) -> tuple[list[str], list[str]]:
    """Warnings about frames, and about recordings, that are in two of train, val and test.

    A recording counts if different frames of it are in different splits.
    """
    frames: dict[str, dict[str, str]] = {}  # name -> split -> list line
    for list_name, names in lists.items():
        if split := split_and_condition(list_name)[0]:
            for name, line in names.items():
                frames.setdefault(name, {}).setdefault(split, f"{root / list_name}.txt:{line}")
    recordings: dict[str, dict[str, str]] = {}
    for name, by_split in frames.items():
        if len(by_split) == 1:
            recording = recording_of(name)
            recordings[recording] = by_split | recordings.get(recording, {})
    return warn_of_shared("frame", frames), warn_of_shared("recording", recordings)


def warn_of_shared(kind: str, found: dict[str, dict[str, str]]) -> list[str]:
    """A warning for each frame or recording (name -> split -> list line) of several splits."""
    warnings = []
    for name, by_split in found.items():
        list_lines = [by_split[split] for split in SPLITS if split in by_split]
        if len(list_lines) > 1:
            *others, last = list_lines
            warnings.append(
                f"{last}: {kind} {name} is in {' and '.join(others)} too: keep it in one split, "
                "because a network must be tested on frames that it was not trained on"
            )
    return warnings

"""What is wrong with a prepared folder: errors at which training stops, and warnings.

Every file of every list is read like the dataset reads it, and errors have the same words. A
`place` is the file and line of a list, as in `data/train_night.txt:7`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from cmkd.frames.annotations import LABEL_HEIGHT, LABEL_WIDTH, Label, parse_labels
from cmkd.frames.images import read_rgb, read_slice
from cmkd.frames.layout import (
    IMAGE_FOLDERS,
    LABEL_FOLDER,
    RGB_FOLDER,
    SPLITS,
    find_image,
    missing_image,
    missing_labels,
    other_size,
    parse_list,
    recording,
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


# -------------------------------------------------------------------------------------------- lists


def split_and_condition(list_name: str) -> tuple[str, str]:
    """`test_snow_night` -> (test, snow_night); ('', '') for a list without a split: `vis_night`."""
    split, _, condition = list_name.partition("_")
    return (split, condition) if split in SPLITS else ("", "")


def order_of_split(file: Path) -> int:
    """The place of a list in the order train, val, test, others."""
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
    files = sorted(root.glob("*.txt"))
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


def first_places(root: Path, lists: Lists) -> dict[str, str]:
    """Frame name -> its place in the first list that has it."""
    places: dict[str, str] = {}
    for list_name, names in lists.items():
        for name, line in names.items():
            places.setdefault(name, f"{root / list_name}.txt:{line}")
    return places


# ------------------------------------------------------------------------------------------- frames


def read_frames(root: Path, places: dict[str, str], workers: int) -> dict[str, CheckedFrame]:
    """Read frames, given by name and place, in several processes."""
    frames = parallel_map(partial(read_frame, root), places.items(), workers, str(root))
    return dict(zip(places, frames, strict=True))


def read_frame(root: Path, frame: tuple[str, str]) -> CheckedFrame:
    """Read all files of a frame, given by name and place."""
    name, place = frame
    labels, label_errors, warnings = check_labels(root, name, place)
    size, image_errors = check_images(root, name, place)
    return CheckedFrame(size, labels, label_errors + image_errors, warnings)


def check_images(root: Path, name: str, place: str) -> tuple[tuple[int, int] | None, list[str]]:
    """Decode the four images of a frame: the size of RGB, and errors."""
    size, rgb_file, errors = None, None, []
    for folder in IMAGE_FOLDERS:
        file = find_image(root, folder, name)
        if file is None:
            errors.append(missing_image(root, folder, name, place))
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
            errors.append(other_size(file, rgb_file, (width, height), size))
    return size, errors


def check_labels(root: Path, name: str, place: str) -> tuple[list[Label], list[str], list[str]]:
    """The labels of a frame with clipped boxes, errors, and warnings."""
    file = root / LABEL_FOLDER / f"{name}.txt"
    if not file.is_file():
        return [], [missing_labels(file, place)], []
    try:
        found, errors = parse_labels(file)
    except UserError as error:
        return [], [str(error)], []
    labels, warnings = [], []
    for label in found:
        box = clip(label.box)
        is_inside = box[0] < box[2] and box[1] < box[3]
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


def clip(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """A box (x0, y0, x1, y1) clipped to label space; it has no area if it lies outside."""
    x0, y0, x1, y1 = box
    return (
        min(max(x0, 0), LABEL_WIDTH),
        min(max(y0, 0), LABEL_HEIGHT),
        min(max(x1, 0), LABEL_WIDTH),
        min(max(y1, 0), LABEL_HEIGHT),
    )


# ---------------------------------------------------------------------------- what lists have twice


def similar_names(places: dict[str, str]) -> list[str]:
    """Warnings about frame names that differ only in case or separators.

    They are probably one frame, or one recording, under two names.
    """
    warnings = []
    first: dict[str, str] = {}
    for name, place in places.items():
        other = first.setdefault(name.casefold().translate(SEPARATORS), name)
        if other != name:
            warnings.append(
                f"{place}: {name!r} differs from {other!r} ({places[other]}) only in case, '_', "
                "'-', ',' or spaces: check that they are two frames"
            )
    return warnings


def shared_by_splits(root: Path, lists: Lists) -> tuple[list[str], list[str]]:
    """Warnings about frames, and about recordings, that are in two of train, val and test.

    A recording counts if different frames of it are in different splits.
    """
    frames: dict[str, dict[str, str]] = {}  # name -> split -> place
    for list_name, names in lists.items():
        if split := split_and_condition(list_name)[0]:
            for name, line in names.items():
                frames.setdefault(name, {}).setdefault(split, f"{root / list_name}.txt:{line}")
    recordings: dict[str, dict[str, str]] = {}
    for name, by_split in frames.items():
        if len(by_split) == 1:
            recordings[recording(name)] = by_split | recordings.get(recording(name), {})
    return warn_of_shared("frame", frames), warn_of_shared("recording", recordings)


def warn_of_shared(kind: str, places: dict[str, dict[str, str]]) -> list[str]:
    """A warning for each frame or recording (name -> split -> place) that has several splits."""
    warnings = []
    for name, by_split in places.items():
        *others, last = (by_split[split] for split in SPLITS if split in by_split)
        if others:
            warnings.append(
                f"{last}: {kind} {name} is in {' and '.join(others)} too: keep it in one split, "
                "because a network must be tested on frames that it was not trained on"
            )
    return warnings

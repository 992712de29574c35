"""Is a prepared folder fit for training? Every frame of every list is read as the loader reads it, once.

What is wrong is a line with file and line number, in the loader's own words. Errors are what training stops at;
warnings are what it runs with. Then tables of what is there and, where asked for, a contact sheet.
"""

import functools
import multiprocessing
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from cmkd.frames.layout import (
    LABEL_HEIGHT,
    LABEL_WIDTH,
    SLICES,
    Label,
    find_picture,
    parse_labels,
    parse_list,
    read_rgb,
    read_slice,
    recording,
)
from cmkd.viewing.contact_sheet import contact_sheet
from utils import UserError, refuse_unwritable, write_atomically

SPLITS = ("train", "val", "test")
SEPARATORS = str.maketrans("-, ", "___")
HEIGHTS = (32, 64, 128)  # label px between the bands of the class table
SHEET_ROWS = 12

Lists = dict[str, dict[str, int]]  # list name -> frame name -> line


@dataclass(frozen=True)
class Frame:
    """What is in the files of one frame, and what is wrong with them."""

    size: tuple[int, int] | None  # (width, height) of its pictures; None where RGB cannot be read
    labels: list[Label]  # boxes clipped to label space; those that lie outside are left out, as in training
    errors: list[str]
    warnings: list[str]


# --------------------------------------------------------------------------------------------- reading


def split_and_condition(list_name: str) -> tuple[str, str]:
    """`test_dense_fog_night` -> (test, dense_fog_night); ('', '') for a list of no split, as `vis_night`."""
    split, _, condition = list_name.partition("_")
    return (split, condition) if split in SPLITS else ("", "")


def read_lists(root: Path) -> tuple[Lists, list[str]]:
    """All lists of a folder, those of train first, and what is wrong with them. Training needs one that begins with
    train and one that begins with val. Raises `UserError` where there is no list at all."""
    if not root.is_dir():
        raise UserError(f"{root} is no folder: name the one that holds the lists, images, gated0, ...")
    files = sorted(root.glob("*.txt"))
    if not files:
        raise UserError(f"{root} has no list: write train_night.txt and val_night.txt, a frame name per line")
    present = {split_and_condition(file.stem)[0] for file in files}
    files += [root / f"{split}_night.txt" for split in ("train", "val") if split not in present]
    lists, errors = {}, []
    for file in sorted(files, key=lambda file: (*SPLITS, "").index(split_and_condition(file.stem)[0])):
        try:
            lists[file.stem], problems = parse_list(file)
        except UserError as error:
            problems = [str(error)]
        errors += problems
    return lists, errors


def read_pictures(root: Path, name: str, place: str) -> tuple[tuple[int, int] | None, list[str]]:
    """Decode a frame's four pictures: the size of RGB and what is wrong. `place` is the frame's list and line."""
    size, errors = None, []
    for folder, read in (("images", read_rgb), *((folder, read_slice) for folder in SLICES)):
        file = find_picture(root, folder, name)
        if file is None:
            errors.append(f"{place}: {root / folder / name}.png (or .jpg) is missing: add it, or take the frame off "
                          "the list")
            continue
        try:
            height, width = read(file).shape[-2:]
        except UserError as error:
            errors.append(str(error))
            continue
        if folder == "images":
            size, rgb_file = (width, height), file
        elif size and size != (width, height):
            errors.append(f"{file} is {width}x{height} but {rgb_file} is {size[0]}x{size[1]}: the images of a frame "
                          "must have one size and one view; prepare this frame again")
    return size, errors


def clip(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """The part of a box (x0, y0, x1, y1) that is in label space; without width or height where none is."""
    x0, y0, x1, y1 = box
    return (min(max(x0, 0), LABEL_WIDTH), min(max(y0, 0), LABEL_HEIGHT),
            min(max(x1, 0), LABEL_WIDTH), min(max(y1, 0), LABEL_HEIGHT))


def read_boxes(root: Path, name: str, place: str) -> tuple[list[Label], list[str], list[str]]:
    """A frame's labels with clipped boxes, errors, warnings. `place` is the frame's list and line."""
    file = root / "gated_labels" / f"{name}.txt"
    if not file.is_file():
        return [], [f"{place}: {file} is missing: add it (an empty file says that nothing is there), or take the frame "
                    "off the list"], []
    try:
        found, errors = parse_labels(file)
    except UserError as error:
        return [], [str(error)], []
    labels, warnings = [], []
    for label in found:
        x0, y0, x1, y1 = clip(label.box)
        inside = x0 < x1 and y0 < y1
        if (x0, y0, x1, y1) != label.box:
            warnings.append(f"{file}:{label.line}: box {' '.join(f'{value:.10g}' for value in label.box)} lies "
                            + ("partly outside 1280x720: it is clipped" if inside else "outside 1280x720: it is "
                               "left out"))
        if inside:
            labels.append(replace(label, box=(x0, y0, x1, y1)))
    return labels, errors, warnings


def read_frame(root: Path, name: str, place: str) -> Frame:
    """Read all files of a frame. `place` is its list and line, for what is missing."""
    labels, label_errors, warnings = read_boxes(root, name, place)
    size, errors = read_pictures(root, name, place)
    return Frame(size, labels, label_errors + errors, warnings)


def read_frames(root: Path, places: dict[str, str], workers: int) -> dict[str, Frame]:
    """Read the frames (name -> list and line) in as many processes."""
    read = functools.partial(read_frame, root)
    progress = functools.partial(tqdm, desc=str(root), total=len(places), unit="frame", disable=None)
    if workers == 1:
        return dict(zip(places, progress(map(read, places, places.values())), strict=True))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        return dict(zip(places, progress(pool.map(read, places, places.values(), chunksize=4)), strict=True))


# --------------------------------------------------------------------------------------------- between frames


def first_places(root: Path, lists: Lists) -> dict[str, str]:
    """Frame name -> the file and line of the first list it stands in."""
    places: dict[str, str] = {}
    for list_name, names in lists.items():
        for name, line in names.items():
            places.setdefault(name, f"{root / list_name}.txt:{line}")
    return places


def names_alike(places: dict[str, str]) -> list[str]:
    """Warnings of names that differ in case or separators only: most likely one frame, or one recording, twice."""
    warnings = []
    first: dict[str, str] = {}
    for name, place in places.items():
        other = first.setdefault(name.casefold().translate(SEPARATORS), name)
        if other != name:
            warnings.append(f"{place}: {name!r} is {other!r} ({places[other]}) but for case, '_', '-', ',' or spaces: "
                            "see that they are two frames")
    return warnings


def shared_by_splits(root: Path, lists: Lists) -> tuple[list[str], list[str]]:
    """Warnings of frames, and of recordings by way of different frames, that stand in two of train, val and test."""
    frames: dict[str, dict[str, str]] = {}  # name -> split -> file and line
    for list_name, names in lists.items():
        if split := split_and_condition(list_name)[0]:
            for name, line in names.items():
                frames.setdefault(name, {}).setdefault(split, f"{root / list_name}.txt:{line}")
    recordings: dict[str, dict[str, str]] = {}
    for name, by_split in frames.items():
        if len(by_split) == 1:
            recordings[recording(name)] = by_split | recordings.get(recording(name), {})
    return warn_of_shared("frame", frames), warn_of_shared("recording", recordings)


def warn_of_shared(what: str, places: dict[str, dict[str, str]]) -> list[str]:
    """A line for each frame or recording (name -> split -> file and line) of several splits."""
    warnings = []
    for name, by_split in places.items():
        *others, last = (by_split[split] for split in SPLITS if split in by_split)
        if others:
            warnings.append(f"{last}: {what} {name} stands in {' and '.join(others)} too: keep it in one split, as a "
                            "network is not tested by what it has seen")
    return warnings


# --------------------------------------------------------------------------------------------- tables


def table(header: list[str], rows: list[list[str | int]]) -> str:
    """Aligned columns, the first to the left."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    first, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join(name.ljust(first) + "".join(f"  {cell:>{width}}" for cell, width in
                                                 zip(cells, widths, strict=True)) for name, *cells in lines)


def share(flags: Iterable[bool | None]) -> str:
    """The share of true ones among those that are known; '-' where none is."""
    known = [flag for flag in flags if flag is not None]
    return f"{100 * sum(known) / len(known):.0f} %" if known else "-"


def list_table(lists: Lists, frames: dict[str, Frame]) -> str:
    """A row for each list."""
    rows = []
    for list_name, names in lists.items():
        boxes = [len(frames[name].labels) for name in names]
        rows.append([list_name, len(names), boxes.count(0), len({recording(name) for name in names}), sum(boxes)])
    return table(["list", "frames", "without a box", "recordings", "boxes"], rows)


def class_table(frames: dict[str, Frame]) -> str:
    """A row for each class, the most frequent first; each frame counts once. Heights are in label px of 720."""
    classes: dict[str, list[Label]] = {}
    for frame in frames.values():
        for label in frame.labels:
            classes.setdefault(label.name, []).append(label)
    rows = []
    for name, labels in sorted(classes.items(), key=lambda item: (-len(item[1]), item[0])):
        heights = [label.box[3] - label.box[1] for label in labels]
        bands = Counter(sum(height >= limit for limit in HEIGHTS) for height in heights)
        rows.append([name, len(labels), share(label.visible_rgb for label in labels),
                     share(label.visible_gated for label in labels), f"{median(heights):.0f}",
                     *(bands[band] for band in range(len(HEIGHTS) + 1))])
    return table(["class", "boxes", "in RGB", "in gated", "height", "<32 px", "32-64", "64-128", ">=128"], rows)


def condition_table(lists: Lists, frames: dict[str, Frame]) -> str:
    """A row for each condition, which is what follows train_, val_ or test_ in a list's name."""
    conditions: dict[str, set[str]] = {}
    for list_name, names in lists.items():
        if condition := split_and_condition(list_name)[1]:
            conditions.setdefault(condition, set()).update(names)
    rows = []
    for condition, names in sorted(conditions.items()):
        people = [label for name in names for label in frames[name].labels if label.name.startswith("Pedestrian")]
        rows.append([condition, len(names), len(people), share(label.visible_rgb for label in people)])
    return table(["condition", "frames", "pedestrians", "in RGB"], rows)


def sizes_line(frames: dict[str, Frame]) -> str:
    """The sizes of pictures, the most frequent first."""
    sizes = Counter(frame.size for frame in frames.values() if frame.size).most_common()
    shown = [f"{count} of {width}x{height}" for (width, height), count in sizes[:4]]
    return f"picture sizes: {', '.join(shown) or 'none'}" + f" and {len(sizes) - 4} other sizes" * (len(sizes) > 4)


# --------------------------------------------------------------------------------------------- all of it


def check(root: Path, workers: int, sheet: Path | None = None) -> None:
    """Print every problem and the tables, and write the sheet. Raises `UserError` where training would not run."""
    lists, errors = read_lists(root)
    if sheet:
        refuse_unwritable(sheet)
    places = first_places(root, lists)
    frames = read_frames(root, places, workers)
    errors += [error for frame in frames.values() for error in frame.errors]
    shared_frames, shared_recordings = shared_by_splits(root, lists)
    warnings = {"boxes outside 1280x720": [warning for frame in frames.values() for warning in frame.warnings],
                "names alike": names_alike(places), "recordings in two splits": shared_recordings,
                "FRAMES IN TWO SPLITS": shared_frames}
    for error in errors:
        print(f"error: {error}")
    for warning in (warning for kind in warnings.values() for warning in kind):
        print(f"warning: {warning}")
    if errors or any(warnings.values()):
        print()
    print(list_table(lists, frames), class_table(frames), condition_table(lists, frames), sizes_line(frames),
          sep="\n\n")
    print(f"errors: {len(errors)}")
    print(f"warnings: {sum(map(len, warnings.values()))}",
          *(f"({what}: {len(kind)})" for what, kind in warnings.items() if kind))
    if sheet:
        sound = {name: frame.labels for name, frame in frames.items() if not frame.errors}
        picture = contact_sheet(root, lists, sound, SHEET_ROWS)
        write_atomically(sheet, lambda unfinished: picture.save(unfinished, "PNG"))
        print(f"{sheet}: {picture.width}x{picture.height}")
    if errors:
        raise UserError(f"{root}: {len(errors)} {'error' if len(errors) == 1 else 'errors'}, the first: {errors[0]}")

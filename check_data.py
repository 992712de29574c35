"""Check whether a prepared folder is fit for training, or export a list's ground truth.

    python check_data.py data --sheet sheet.png
    python check_data.py data --list val_night --export-coco truth.json
    python check_data.py data --list night --labels teacher_labels --export-yolo for_a_tool

The check reads every file of every list, names each problem with its file and line, and counts
what the lists hold. It ends with exit code 2 if training would not run.
"""

import argparse
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from cmkd.evaluation.tables import text_table
from cmkd.frames.annotation_formats import ENOUGH_BOXES, LARGEST_SHARE
from cmkd.frames.annotations import DEFAULT_CLASSES, LABEL_HEIGHT, LABEL_WIDTH, Label
from cmkd.frames.checks import (
    CheckedFrame,
    Lists,
    first_list_lines,
    read_frames,
    read_lists,
    shared_by_splits,
    similar_names,
    split_and_condition,
)
from cmkd.frames.label_exchange import yolo_files
from cmkd.frames.layout import LABEL_FOLDER, recording_of
from cmkd.runtime.command_line import OneLineParser, at_least, cores
from cmkd.runtime.failures import run
from cmkd.runtime.files import UserError, refuse_unwritable, save_json, save_text
from cmkd.viewing.contact_sheet import save_picture
from cmkd.viewing.frame_sheet import frame_sheet
from dataset import SeeingThroughFog

HEIGHT_LIMITS = (32, 64, 128)  # label px, between the columns of the class table
SHEET_ROWS = 12


def check(root: Path, workers: int, sheet: Path | None) -> None:
    """Print every problem and the tables, and write the sheet.

    Raises `UserError` if training would not run.
    """
    lists, errors = read_lists(root)
    if sheet:
        refuse_unwritable(sheet)
    list_lines = first_list_lines(root, lists)
    frames = read_frames(root, list_lines, workers)
    for frame in frames.values():
        errors += frame.errors
    shared_frames, shared_recordings = shared_by_splits(root, lists)
    warnings = {
        "boxes outside 1280x720": [
            warning for frame in frames.values() for warning in frame.warnings
        ],
        "label lines that occur twice": [
            copy for frame in frames.values() for copy in frame.copies
        ],
        "boxes in another space": in_another_space(root, frames),
        "lists without a box": without_boxes(root, lists, frames),
        "slices that are copies of RGB": copies_of_rgb(root, frames),
        "similar names": similar_names(list_lines),
        "recordings in two splits": shared_recordings,
        "FRAMES IN TWO SPLITS": shared_frames,
    }
    print_problems(errors, warnings)
    print_tables(lists, frames)
    kinds = [f"({kind}: {len(found)})" for kind, found in warnings.items() if found]
    print(f"errors: {len(errors)}")
    print(f"warnings: {sum(map(len, warnings.values()))}", *kinds)
    if sheet:
        labels = {name: frame.labels for name, frame in frames.items() if not frame.errors}
        picture = frame_sheet(root, lists, labels, SHEET_ROWS)
        save_picture(picture, sheet)
        print(f"{sheet}: {picture.width}x{picture.height}")
    if errors:
        count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
        raise UserError(f"{root}: {count}, the first: {errors[0]}")


def in_another_space(root: Path, frames: dict[str, CheckedFrame]) -> list[str]:
    """A warning if all boxes are shares, or within images that are smaller than label space."""
    boxes = [label.box for frame in frames.values() for label in frame.labels]
    sizes = [frame.size for frame in frames.values() if frame.size]
    if boxes and max(max(box) for box in boxes) <= LARGEST_SHARE:
        return [
            f"{root / LABEL_FOLDER}: no box reaches beyond {LARGEST_SHARE} px: boxes must be in "
            f"{LABEL_WIDTH}x{LABEL_HEIGHT}, and these look like shares of the image "
            "(prepare_pairs.py scales them)"
        ]
    if len(boxes) < ENOUGH_BOXES or not sizes:
        return []
    width, height = (max(size[axis] for size in sizes) for axis in (0, 1))
    right, bottom = (max(box[axis] for box in boxes) for axis in (2, 3))
    if width >= LABEL_WIDTH or height >= LABEL_HEIGHT or right > width or bottom > height:
        return []
    return [
        f"{root / LABEL_FOLDER}: no box reaches beyond {width}x{height}, the size of the images: "
        f"boxes must be in {LABEL_WIDTH}x{LABEL_HEIGHT}, whatever that size (prepare_pairs.py "
        "scales them)"
    ]


def without_boxes(root: Path, lists: Lists, frames: dict[str, CheckedFrame]) -> list[str]:
    """A warning for each list of a split in which no frame has a box."""
    return [
        f"{root / list_name}.txt: none of {len(names)} frames has a box: nothing can be learned or "
        "measured on it, so check that its labels are there"
        for list_name, names in lists.items()
        if split_and_condition(list_name)[0] and not any(frames[name].labels for name in names)
    ]


def copies_of_rgb(root: Path, frames: dict[str, CheckedFrame]) -> list[str]:
    """A warning if slices are the pictures of the RGB camera."""
    count = sum(frame.has_copy_of_rgb for frame in frames.values())
    if not count:
        return []
    return [
        f"{root}: in {count} of {len(frames)} frames a slice is the same picture as RGB: put the "
        "second camera's pictures there"
    ]


def print_problems(errors: list[str], warnings: dict[str, list[str]]) -> None:
    """Print a line for each problem, then an empty one."""
    lines = [f"error: {error}" for error in errors]
    for found in warnings.values():
        lines += [f"warning: {warning}" for warning in found]
    if lines:
        print(*lines, sep="\n", end="\n\n")


def export(args: argparse.Namespace) -> None:
    """Write the frames and boxes of a list as COCO JSON or YOLO's files. Raises `UserError`."""
    dataset = SeeingThroughFog(
        args.data, args.list, "rgb", args.classes, args.ignore, labels=args.labels
    )
    truth = dataset.ground_truth()
    if args.export_coco:
        # Other tools open what file_name says.
        images = [
            {**image, "file_name": dataset.image_files(index)[0].name}
            for index, image in enumerate(truth["images"])
        ]
        save_json({**truth, "images": images}, args.export_coco)
    else:
        for path, text in yolo_files(truth).items():
            save_text(text, args.export_yolo / path)
    categories = ", ".join(category["name"] for category in truth["categories"])
    print(
        f"{args.export_coco or args.export_yolo}: {len(truth['images'])} images, "
        f"{len(truth['annotations'])} boxes, categories {categories}"
    )


# ------------------------------------------------------------------------------------------- tables


def print_tables(lists: Lists, frames: dict[str, CheckedFrame]) -> None:
    """The tables of lists, classes and conditions, and the sizes of images."""
    for rows in (list_rows(lists, frames), class_rows(frames), condition_rows(lists, frames)):
        print(text_table(rows), end="\n\n")
    sizes = Counter(frame.size for frame in frames.values() if frame.size).most_common()
    shown = [f"{count} of {width}x{height}" for (width, height), count in sizes[:4]]
    others = f" and {len(sizes) - 4} other sizes" if len(sizes) > 4 else ""
    print(f"image sizes: {', '.join(shown) or 'none'}{others}")


def list_rows(lists: Lists, frames: dict[str, CheckedFrame]) -> list[list[str]]:
    """A heading, and a row for each list."""
    rows = [["list", "frames", "without a box", "recordings", "boxes"]]
    for list_name, names in lists.items():
        boxes = [len(frames[name].labels) for name in names]
        recordings = {recording_of(name) for name in names}
        counts = (len(names), boxes.count(0), len(recordings), sum(boxes))
        rows.append([list_name, *map(str, counts)])
    return rows


def class_rows(frames: dict[str, CheckedFrame]) -> list[list[str]]:
    """A heading, and a row for each class, the most frequent first; heights are in label px."""
    rows = [["class", "boxes", "in RGB", "in gated", "height"]]
    rows[0] += ["<32 px", "32-64", "64-128", ">=128"]
    labels_of: dict[str, list[Label]] = {}
    for frame in frames.values():
        for label in frame.labels:
            labels_of.setdefault(label.name, []).append(label)
    for name, labels in sorted(labels_of.items(), key=lambda item: (-len(item[1]), item[0])):
        heights = [label.box[3] - label.box[1] for label in labels]
        bands = Counter(sum(height >= limit for limit in HEIGHT_LIMITS) for height in heights)
        rows.append(
            [
                name,
                str(len(labels)),
                percentage(label.visible_rgb for label in labels),
                percentage(label.visible_gated for label in labels),
                f"{median(heights):.0f}",
                *(str(bands[band]) for band in range(len(HEIGHT_LIMITS) + 1)),
            ]
        )
    return rows


def condition_rows(lists: Lists, frames: dict[str, CheckedFrame]) -> list[list[str]]:
    """A heading, and a row for each condition: what follows train_, val_ or test_ in list names."""
    names_of: dict[str, set[str]] = {}
    for list_name, names in lists.items():
        if condition := split_and_condition(list_name)[1]:
            names_of.setdefault(condition, set()).update(names)
    rows = [["condition", "frames", "pedestrians", "in RGB"]]
    for condition, names in sorted(names_of.items()):
        labels = [label for name in names for label in frames[name].labels]
        people = [label for label in labels if label.is_person]
        visible = percentage(label.visible_rgb for label in people)
        rows.append([condition, str(len(names)), str(len(people)), visible])
    return rows


def percentage(flags: Iterable[bool | None]) -> str:
    """The share of true flags, without those that are unknown; '-' if none is known."""
    known = [flag for flag in flags if flag is not None]
    return f"{100 * sum(known) / len(known):.0f} %" if known else "-"


# ------------------------------------------------------------------------------------- command line


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    parser.add_argument("data", type=Path, metavar="DATA", help="prepared data folder")
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--sheet", type=Path, metavar="FILE", help="also write a PNG of some frames with boxes"
    )
    output.add_argument(
        "--export-coco",
        type=Path,
        metavar="FILE",
        help="instead of the check, write the frames and boxes of --list",
    )
    output.add_argument(
        "--export-yolo",
        type=Path,
        metavar="DIR",
        help="the same as YOLO's text files, in which ignore regions are the class DontCare",
    )
    parser.add_argument(
        "--workers", type=at_least(1), default=cores(), help="processes (default: all cores)"
    )
    parser.add_argument("--list", default="val_night", help="for the exports (default: val_night)")
    parser.add_argument(
        "--labels",
        default=LABEL_FOLDER,
        metavar="NAME",
        help=f"for the exports, the folder of the labels (default: {LABEL_FOLDER})",
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        default=list(DEFAULT_CLASSES),
        metavar="A,B",
        help="for the exports, as in training",
    )
    parser.add_argument(
        "--ignore", nargs="*", metavar="CLASS", help="for the exports, as in training"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.export_coco or args.export_yolo:
        export(args)
    else:
        check(args.data, args.workers, args.sheet)


if __name__ == "__main__":
    run(main)

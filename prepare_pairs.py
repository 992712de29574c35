"""Pictures of any two registered cameras, with labels of any format -> the prepared layout.

    python prepare_pairs.py --rgb visible --second infrared --labels Annotations --format voc \\
        --split train=train test=test --out data --sheet sheet.png

Pictures are linked, not copied, unless they must be converted, resized or warped. The second camera
serves as all three slices. Boxes are scaled to label space, classes get the names of Seeing Through
Fog, and what cannot be used is counted. OUT/pairs_report.json says all of it.
"""

import argparse
import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageStat

from cmkd.frames.annotation_formats import (
    FORMATS,
    NOBODY_WITHOUT_A_FILE,
    Annotation,
    Annotations,
    in_pixels,
    read_annotations,
)
from cmkd.frames.annotations import (
    DOUBTFUL,
    LABEL_HEIGHT,
    LABEL_WIDTH,
    OFFICIAL_CLASSES,
    read_labels,
)
from cmkd.frames.layout import (
    GATED_FOLDERS,
    IMAGE_FOLDERS,
    LABEL_FOLDER,
    RGB_FOLDER,
    SPLITS,
    evenly_spaced,
    label_file,
    save_list,
)
from cmkd.frames.pairing import (
    Key,
    Pair,
    find_listed,
    find_pair,
    find_pairs,
    frame_names,
    given_splits,
    is_of_second,
    lookup_by_alias,
    sequences_of,
    split_by_sequence,
)
from cmkd.frames.second_camera import (
    LAYOUT_SUFFIXES,
    Conversion,
    bits_of,
    in_view_of_rgb,
    is_coloured,
    may_be_linked,
    measured_range,
    open_picture,
    read_homography,
    shift_between,
    to_eight_bits,
)
from cmkd.runtime.command_line import OneLineParser, at_least, cores, to_float
from cmkd.runtime.failures import run, warn
from cmkd.runtime.files import UserError, open_data_folder, read_lines, save_json, write_atomically
from cmkd.runtime.parallel import parallel_map

REPORT = "pairs_report.json"
KNOWN_NAMES = {
    **dict.fromkeys(("person", "people", "pedestrian"), "Pedestrian"),
    **dict.fromkeys(
        ("bicycle", "bike", "cyclist", "rider", "motorcycle", "motorbike"), "RidableVehicle"
    ),
    **dict.fromkeys(("car", "van"), "PassengerCar"),
    **dict.fromkeys(("bus", "truck", "tram"), "LargeVehicle"),
}
NIGHT_BELOW = 55  # mean grey level of RGB, 0..255
SHIFTS_MEASURED, SHEET_ROWS = 40, 12
SAMPLE = 20  # pairs that are looked at before any work
UNKNOWN_3D = "-1 -1 -1 -1000 -1000 -1000 -10"


@dataclass(frozen=True)
class Task:
    """A pair, what it will be called, and its boxes."""

    pair: Pair
    name: str
    boxes: list[Annotation]
    size: tuple[int, int] | None  # of the picture, if the labels say
    has_labels: bool  # False: there is no label file, which means that nobody is there


@dataclass(frozen=True)
class Done:
    """What became of a pair."""

    counts: Counter
    brightness: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)


# --------------------------------------------------------------------------------------- one frame


def prepare(
    task: Task, args: argparse.Namespace, conversion: Conversion, measured: frozenset[str]
) -> Done:
    """Write a frame, the labels last: a frame with labels is complete. Raises `UserError`."""
    counts: Counter[str] = Counter()
    rgb = open_picture(task.pair.rgb, args.colour_bits)
    if bits_of(rgb) != 8:
        raise UserError(f"{task.pair.rgb} is grey with 16 bits: RGB must have 8, or be colour")
    if task.size and task.size != rgb.size:
        raise UserError(
            f"{task.pair.rgb} is {rgb.width}x{rgb.height}, but its labels are of a picture of "
            f"{task.size[0]}x{task.size[1]}: these are not the pictures that were labelled"
        )
    as_it_is = may_be_linked(rgb, task.pair.rgb) and not args.colour_bits
    place(rgb, task.pair.rgb, as_it_is, RGB_FOLDER, task, args, counts)

    second = open_picture(task.pair.second, args.colour_bits)
    is_as_it_was = may_be_linked(second, task.pair.second) and not args.colour_bits
    try:
        grey = to_eight_bits(second, conversion.low_high)
    except UserError as error:
        raise UserError(f"{task.pair.second}: {error}") from None
    if grey.size != rgb.size and conversion.homography is None:
        refuse_other_shape(task.pair, rgb.size, grey.size)
    fitting = in_view_of_rgb(grey, rgb.size, conversion.homography)
    is_as_it_was &= fitting is grey
    file = place(fitting, task.pair.second, is_as_it_was, GATED_FOLDERS[0], task, args, counts)
    for folder in GATED_FOLDERS[1:]:
        link(Path("..") / GATED_FOLDERS[0] / file.name, args.out / folder / file.name)

    text = "".join(label_line(one, args, rgb.size, counts) for one in task.boxes)
    write_atomically(
        label_file(args.out, task.name),
        lambda unfinished: unfinished.write_text(text, encoding="utf-8"),
    )
    shift = shift_between(rgb, fitting) if task.name in measured else (0.0, 0.0)
    return Done(counts, float(ImageStat.Stat(rgb.convert("L")).mean[0]), shift)


def place(
    image: Any,
    source: Path,
    as_it_is: bool,
    folder: str,
    task: Task,
    args: argparse.Namespace,
    counts: Counter,
) -> Path:
    """Link or copy a picture to a folder of the layout, or save what became of it as PNG."""
    suffix = LAYOUT_SUFFIXES[source.suffix.lower()] if as_it_is else ".png"
    file = args.out / folder / f"{task.name}{suffix}"
    if as_it_is and not args.copy:
        link(source.resolve(), file)
        counts["pictures linked"] += 1
    elif as_it_is:
        write_atomically(file, lambda unfinished: shutil.copyfile(source, unfinished), flush=False)
        counts["pictures copied"] += 1
    else:
        fitting = image if image.mode in ("L", "RGB") else image.convert("RGB")  # as of CMYK
        write_atomically(
            file, lambda unfinished: fitting.save(unfinished, format="PNG"), flush=False
        )
        counts["pictures converted"] += 1
    return file


def link(target: Path, file: Path) -> None:
    """Make a link, in place of what is there."""
    file.unlink(missing_ok=True)
    file.symlink_to(target)


def refuse_other_shape(pair: Pair, rgb: tuple[int, int], second: tuple[int, int]) -> None:
    """Raise `UserError` if the second picture is not RGB's at another resolution."""
    if abs(rgb[0] * second[1] - rgb[1] * second[0]) > 0.02 * rgb[0] * second[1]:
        raise UserError(
            f"{pair.second} is {second[0]}x{second[1]} and {pair.rgb} is {rgb[0]}x{rgb[1]}: they "
            "do not show the same view, so pass --homography FILE"
        )


def label_line(
    one: Annotation, args: argparse.Namespace, size: tuple[int, int], counts: Counter
) -> str:
    """A line of a label file: KITTI's 15 columns, the box in label space."""
    name = class_name(one, args.map, counts)
    across, down = LABEL_WIDTH / size[0], LABEL_HEIGHT / size[1]
    x0, y0, x1, y1 = in_pixels(one, args.format, size)
    box = (x0 * across, y0 * down, x1 * across, y1 * down)
    if x1 > size[0] + 1 or y1 > size[1] + 1 or min(x0, y0) < -1:
        counts["boxes partly outside their picture"] += 1
    numbers = " ".join(f"{value + 0.0:.4f}" for value in box)
    return f"{name} {one.truncated:.2f} {one.occluded} -10 {numbers} {UNKNOWN_3D}\n"


def class_name(one: Annotation, given: dict[str, str], counts: Counter) -> str:
    """The class in the label file: by --map, or of a region DontCare, or of a known name."""
    if one.name in given:
        name = given[one.name]
    elif one.is_region:
        counts[f"regions ({one.name}), written as {DOUBTFUL}"] += 1
        return DOUBTFUL
    else:
        name = KNOWN_NAMES.get(one.name.lower(), one.name)
    if name not in OFFICIAL_CLASSES:
        counts[f"boxes of a class that training does not know: {one.name}"] += 1
    return re.sub(r"\s+", "_", name)


# --------------------------------------------------------------------------------------- all frames


def tasks_of(
    pairs: list[Pair], names: dict[Key, str], annotations: Annotations, args: argparse.Namespace
) -> tuple[list[Task], Counter[str]]:
    """The labelled pairs, and the counts of labels and pictures that do not fit together.

    Raises `UserError` for two label files of one pair, for labels of the second picture if that
    will be warped, and, if `--no-file` is `error`, for a pair without labels.
    """
    by_alias, counts = lookup_by_alias(pairs), Counter()
    label_key_of: dict[Key, str] = {}
    for label_key in annotations.boxes:
        pair = find_pair(label_key, by_alias)
        if pair is None:
            counts["label files or images in them without a pair"] += 1
        elif pair.key in label_key_of:
            raise UserError(
                f"{label_key_of[pair.key]} and {label_key} are both labels of {pair.rgb}: name the "
                "labels of this sequence alone, or of one camera alone"
            )
        elif args.homography and is_of_second(label_key, pair):
            raise UserError(
                f"{label_key} is a label of {pair.second}, which --homography warps: boxes must "
                "be in RGB's pixels, so name the labels of RGB"
            )
        else:
            label_key_of[pair.key] = label_key
    if not label_key_of:
        raise UserError(
            f"no label is of a picture: there is {min(annotations.boxes)} among labels and "
            f"{pairs[0].key} among pictures"
        )
    tasks = []
    for pair in pairs:
        label_key = label_key_of.get(pair.key)
        if label_key is None:
            if args.format == "coco" or args.no_file == "unlabelled":
                counts["pairs without labels, left out"] += 1
                continue
            if args.no_file == "error":
                raise UserError(
                    f"{pair.rgb} has no label file: pass --no-file nobody if that means that "
                    "nobody is there, or --no-file unlabelled to leave such pairs out"
                )
            counts["pairs without a label file: nobody is there"] += 1
        boxes = annotations.boxes[label_key] if label_key is not None else []
        size = annotations.sizes.get(label_key) if label_key is not None else None
        tasks.append(Task(pair, names[pair.key], boxes, size, label_key is not None))
    return tasks, counts


def refuse_splits_without_labels(splits: dict[str, list[Pair]], tasks: list[Task]) -> None:
    """Raise `UserError` for a split in which no pair has a label file."""
    labelled = {task.pair.key for task in tasks if task.has_labels}
    for split, chosen in splits.items():
        if not any(pair.key in labelled for pair in chosen):
            raise UserError(
                f"{split}: none of {len(chosen)} pairs has a label file: add its annotations (an "
                "empty file means that nobody is there)"
            )


def write_lists(
    splits: dict[str, list[str]], is_night: dict[str, bool], out: Path
) -> dict[str, int]:
    """Write <split>_all, and <split>_night and <split>_day if a split has both or the one."""
    lengths = {}
    for split, names in splits.items():
        lists = {
            f"{split}_all": names,
            f"{split}_night": [name for name in names if is_night[name]],
            f"{split}_day": [name for name in names if not is_night[name]],
        }
        for list_name, chosen in lists.items():
            (out / f"{list_name}.txt").unlink(missing_ok=True)
            if chosen:
                save_list(chosen, out / f"{list_name}.txt")
                lengths[list_name] = len(chosen)
    return lengths


def conversion_of(args: argparse.Namespace, pairs: list[Pair]) -> Conversion:
    """How pictures of the second camera are converted; prints a range that was measured."""
    homography = read_homography(args.homography) if args.homography else None
    sample = [pair.second for pair in evenly_spaced(pairs, SAMPLE)]
    is_deep = False
    for file in sample:
        try:
            is_deep |= bits_of(open_picture(file, args.colour_bits)) == 16
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
    low_high = tuple(args.second_range) if args.second_range else None
    if is_deep and not low_high:
        low_high = measured_range([pair.second for pair in pairs])
        print(
            f"second camera: 16 bits; {low_high[0]:.0f} to {low_high[1]:.0f} become 0 to 255 in "
            "every picture (--second-range sets another range)"
        )
    return Conversion(low_high or (0.0, 65535.0), homography)


def warn_of_colours(args: argparse.Namespace, pairs: list[Pair]) -> None:
    """Warn if pictures of the second camera have colours, more so if those of RGB have none."""
    sample = evenly_spaced(pairs, SAMPLE)

    def have_colours(pictures: list[Path]) -> bool:
        return any(is_coloured(open_picture(file, args.colour_bits)) for file in pictures)

    if not have_colours([pair.second for pair in sample]):
        return
    if have_colours([pair.rgb for pair in sample]):
        warn(
            f"pictures of --second {args.second} have colours, and the loader makes them grey: a "
            "palette such as a rainbow is not a grey level, so export grey pictures"
        )
    else:
        warn(
            f"--rgb and --second swapped? Pictures of {args.rgb} are grey, and those of "
            f"{args.second} have colours"
        )


def report_shift(shifts: list[tuple[float, float]]) -> dict[str, float]:
    """Print and return how well the cameras fit: medians of shifts in px of RGB."""
    across, down = np.median(np.abs(shifts), axis=0).tolist()
    offset = np.median(shifts, axis=0).tolist()
    print(
        f"registration: outlines of {len(shifts)} pairs fit best if the second picture moves by "
        f"({offset[0]:+.1f}, {offset[1]:+.1f}) px; median of single shifts {across:.1f} and "
        f"{down:.1f} px"
    )
    return {"x": offset[0], "y": offset[1], "median_x": across, "median_y": down}


# ------------------------------------------------------------------------------------- command line


def name_pair(text: str) -> tuple[str, str]:
    """argparse type: `A=B`."""
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not like NAME=VALUE")
    return name, value


def split_choice(text: str) -> tuple[str, str]:
    """argparse type: `train=FILE`."""
    split, choice = name_pair(text)
    if split not in SPLITS:
        raise argparse.ArgumentTypeError(f"{text!r}: name one of {', '.join(SPLITS)}")
    return split, choice


def pair_pattern(text: str) -> tuple[str, str]:
    """argparse type: a regular expression and what replaces it, `A=B`."""
    expression, replacement = name_pair(text)
    return pattern(expression), replacement


def pattern(text: str) -> str:
    """argparse type: a regular expression."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression ({error})") from None
    return text


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    parser.add_argument("--rgb", type=Path, required=True, help="folder of the RGB pictures")
    parser.add_argument(
        "--second", type=Path, required=True, help="folder of the second camera's; may be the same"
    )
    parser.add_argument(
        "--labels", type=Path, required=True, help="folder of label files, or a COCO file"
    )
    parser.add_argument("--format", choices=FORMATS, required=True, help="of the labels")
    parser.add_argument("--out", type=Path, default=Path("data"), help="(default: data)")
    parser.add_argument(
        "--pair",
        type=pair_pattern,
        metavar="REGEX=REPLACEMENT",
        help="path of an RGB picture, without suffix, to that of its partner: '(.*)_RGB="
        r"\1_PreviewData' (default: the same path)",
    )
    parser.add_argument(
        "--map",
        type=name_pair,
        nargs="+",
        default=[],
        metavar="NAME=CLASS",
        help="classes; person, bicycle, car and the like are known",
    )
    parser.add_argument(
        "--split",
        type=split_choice,
        nargs="+",
        metavar="SPLIT=FILE",
        help="lists of pictures, or folders within --rgb, for train, val, test (default: by "
        "sequence, 60, 15 and 25 percent)",
    )
    parser.add_argument(
        "--sequence",
        type=pattern,
        metavar="REGEX",
        help="finds the sequence in the path of an RGB picture; no sequence is in two splits",
    )
    parser.add_argument(
        "--night", type=Path, metavar="FILE", help="list of night pictures (default: by brightness)"
    )
    parser.add_argument(
        "--no-file",
        choices=["nobody", "unlabelled", "error"],
        help="what a pair without a label file means (default: nobody for kaist and cvc14, else an "
        "error)",
    )
    parser.add_argument(
        "--one-based", action="store_true", help="VOC pixels are counted from 1 (default: from 0)"
    )
    parser.add_argument(
        "--colour-bits",
        type=int,
        choices=range(9, 17),
        metavar="N",
        help="how many of the 16 bits of colour pictures are used",
    )
    parser.add_argument(
        "--second-range",
        type=to_float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values of 16-bit pictures that become 0 and 255 (default: one measured range)",
    )
    parser.add_argument(
        "--homography",
        type=Path,
        metavar="FILE",
        help="nine numbers: pixels of the second camera to pixels of RGB (default: registered)",
    )
    parser.add_argument("--copy", action="store_true", help="copy pictures instead of linking them")
    parser.add_argument(
        "--sheet", type=Path, metavar="FILE", help="also write a PNG: both cameras, overlay, boxes"
    )
    parser.add_argument(
        "--workers", type=at_least(1), default=cores(), help="processes (default: all cores)"
    )
    args = parser.parse_args()
    args.no_file = args.no_file or ("nobody" if args.format in NOBODY_WITHOUT_A_FILE else "error")
    args.map = dict(args.map)
    if args.one_based and args.format != "voc":
        parser.error("--one-based is about --format voc alone")
    if args.second_range and not args.second_range[0] < args.second_range[1]:
        parser.error("--second-range LOW HIGH: LOW must be below HIGH")
    if len(dict(args.split or ())) < len(args.split or ()):
        parser.error("--split names a split twice")
    return args


def splits_of(
    args: argparse.Namespace, pairs: list[Pair], sequences: dict[Key, str]
) -> tuple[dict[str, list[Pair]], Counter[str]]:
    """The pairs of each split."""
    if args.split:
        return given_splits(dict(args.split), args.rgb, pairs, sequences)
    if not args.sequence:
        warn(
            "without --sequence each picture is its own sequence: pictures of one drive may come "
            "into two splits, which makes a detector look better than it is"
        )
    split_of = split_by_sequence(dict(Counter(sequences[pair.key] for pair in pairs)))
    splits = {split: [] for split in SPLITS}
    for pair in pairs:
        splits[split_of[sequences[pair.key]]].append(pair)
    return {split: chosen for split, chosen in splits.items() if chosen}, Counter()


def night_by_list(file: Path, pairs: list[Pair]) -> set[Key]:
    """The keys of the pairs that a list names. Raises `UserError` for a name without a pair."""
    by_alias, keys = lookup_by_alias(pairs), set()
    for number, line in enumerate(read_lines(file, "a list of pictures"), start=1):
        if not line.strip():
            continue
        pair = find_listed(line, by_alias)
        if pair is None:
            raise UserError(f"{file}:{number}: {line.strip()} is no pair: take it off")
        keys.add(pair.key)
    return keys


def main() -> None:
    args = parse_arguments()
    pairs, counts = find_pairs(args.rgb, args.second, args.pair)
    sequences = sequences_of(pairs, args.sequence)
    names = frame_names(pairs, sequences)
    annotations = read_annotations(args.labels, args.format, args.one_based)
    tasks, more = tasks_of(pairs, names, annotations, args)
    counts += annotations.counts + more
    labelled = [task.pair for task in tasks]
    splits, more = splits_of(args, labelled, sequences)
    counts += more
    refuse_splits_without_labels(splits, tasks)
    night = night_by_list(args.night, pairs) if args.night else None
    conversion = conversion_of(args, labelled)
    warn_of_colours(args, labelled)

    given = {key: value for key, value in vars(args).items() if key not in ("workers", "sheet")}
    parameters = json.loads(json.dumps({"version": 1, **given}, default=str))
    open_data_folder(args.out, REPORT, parameters, (*IMAGE_FOLDERS, LABEL_FOLDER))
    used = {pair.key for chosen in splits.values() for pair in chosen}
    tasks = [task for task in tasks if task.pair.key in used]
    measured = frozenset(task.name for task in evenly_spaced(tasks, SHIFTS_MEASURED))
    work = partial(prepare, args=args, conversion=conversion, measured=measured)
    done = dict(
        zip(
            [task.name for task in tasks],
            parallel_map(work, tasks, args.workers, str(args.out)),
            strict=True,
        )
    )
    for one in done.values():
        counts += one.counts
    if args.format == "voc":
        print(f"VOC pixels are counted from {int(args.one_based)} (--one-based: from 1)")
    shift = report_shift([done[name].shift for name in sorted(measured)])
    is_night = {
        task.name: task.pair.key in night
        if night is not None
        else done[task.name].brightness < NIGHT_BELOW
        for task in tasks
    }
    by_name = {split: [names[pair.key] for pair in chosen] for split, chosen in splits.items()}
    lengths = write_lists(by_name, is_night, args.out)
    report = {
        "parameters": parameters,
        "lists": lengths,
        "counts": counts,
        "second_range": conversion.low_high,
        "shift": shift,
        "night": str(args.night) if args.night else f"mean grey level of RGB below {NIGHT_BELOW}",
    }
    save_json(report, args.out / REPORT)
    if args.sheet:
        write_sheet(args, tasks)
    for what, count in sorted(counts.items()):
        print(f"{count:>8} {what}")
    print(f"lists: {', '.join(f'{name} {count}' for name, count in lengths.items())}")
    print(f"next: python check_data.py {args.out}")


def write_sheet(args: argparse.Namespace, tasks: list[Task]) -> None:
    """Write the sheet of some frames, with boxes if there are any."""
    # Only here, because it needs torch.
    from cmkd.viewing.contact_sheet import save_picture
    from cmkd.viewing.pair_sheet import pair_sheet

    with_boxes = [task.name for task in tasks if task.boxes] or [task.name for task in tasks]
    chosen = evenly_spaced(with_boxes, SHEET_ROWS)
    labels = {name: read_labels(label_file(args.out, name)) for name in chosen}
    picture = pair_sheet(args.out, labels)
    save_picture(picture, args.sheet)
    print(f"{args.sheet}: {picture.width}x{picture.height}")


if __name__ == "__main__":
    run(main)

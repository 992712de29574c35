"""Annotations of other data sets: COCO JSON, VOC XML, YOLO, KITTI, KAIST and CVC-14 text.

Boxes are read in each format's own unit and become corners in pixels of the picture, counted from
0. Needs no torch.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from cmkd.frames.annotations import DOUBTFUL, Corners, columns_of, has_area, what_is_shifted
from cmkd.frames.class_names import YOLO_NAMES, yolo_names
from cmkd.frames.layout import files_below
from cmkd.runtime.files import UserError, read_json, read_lines

FORMATS = ("coco", "voc", "yolo", "kitti", "kaist", "cvc14")
SUFFIX_OF_FORMAT = {"voc": ".xml", **dict.fromkeys(("yolo", "kitti", "kaist", "cvc14"), ".txt")}
# In these a frame without a file has nobody; in the others that may also mean not labelled.
NOBODY_WITHOUT_A_FILE = ("kaist", "cvc14")
KAIST_REGIONS = ("people", "person?")  # that the benchmark leaves out
KITTI_COLUMNS = (15, 16)
YOLO_COLUMNS = 6  # at most; the last is a score or a number of the object
INSIDE = 1e-6  # shares may be above 1 by rounding
SWAPPED = "boxes whose corners are swapped, left out"
EMPTY = "boxes without width or height, left out"
SWAPPED_AT_MOST = 0.05  # of all boxes; if they are more, the columns mean something else
LARGEST_SHARE = 1.5  # a box may reach a bit beyond its picture
ENOUGH_BOXES = 20  # fewer are too few to judge by


@dataclass(frozen=True)
class Annotation:
    """One box as a format has it."""

    name: str  # of the class, in the words of the data set
    corners: Corners  # px of the picture, from 0
    is_region: bool = False  # crowd, difficult or ignored: neither an object nor background
    truncated: float = 0.0  # 0..1
    occluded: int = 0  # 0 not, 1 partly, 2 largely


@dataclass
class Annotations:
    """All boxes of a data set, by label file or, in COCO, by picture."""

    boxes: dict[str, list[Annotation]]  # path without suffix, from the folder of the labels
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # of pictures, if they say
    counts: Counter[str] = field(default_factory=Counter)  # of what was left out

    def add(self, key: str, one: Annotation) -> None:
        """Add a box of a picture; one without width or height is counted and left out."""
        x0, y0, x1, y1 = one.corners
        if x1 < x0 or y1 < y0:
            self.counts[SWAPPED] += 1
        elif not all(map(math.isfinite, one.corners)) or not has_area(one.corners):
            self.counts[EMPTY] += 1
        else:
            self.boxes[key].append(one)


def read_annotations(labels: Path, kind: str, one_based: bool) -> Annotations:
    """All annotations of a file (COCO) or a folder. Raises `UserError` for what cannot be read.

    `one_based`: VOC's pixels are counted from 1, as in the original VOC.
    """
    found = read_coco(labels) if kind == "coco" else read_folder(labels, kind, one_based)
    refuse_swapped_corners(labels, found)
    if kind != "yolo":
        refuse_shares(labels, found)
    if kind == "coco":
        refuse_corners_as_sizes(labels, found)
    return found


def read_folder(labels: Path, kind: str, one_based: bool) -> Annotations:
    """All annotations of a folder of label files. Raises `UserError`."""
    if not labels.is_dir():
        raise UserError(f"--labels {labels} is not a folder, which --format {kind} needs")
    files = [file for file in files_below(labels) if file.suffix == SUFFIX_OF_FORMAT[kind]]
    if kind == "yolo":
        files = [file for file in files if file.name not in YOLO_NAMES]
        names = yolo_names(labels)
    if not files:
        raise UserError(f"--labels {labels} has no {SUFFIX_OF_FORMAT[kind]} file")
    read: dict[str, Callable[[Path, Annotations, str], None]] = {
        "voc": lambda *given: read_voc(*given, one_based),
        "yolo": lambda *given: read_yolo(*given, names),
        "kitti": read_kitti,
        "kaist": read_kaist,
        "cvc14": read_cvc14,
    }
    found = Annotations({})
    for file in files:
        key = key_of(file, labels)
        found.boxes[key] = []
        read[kind](file, found, key)
    return found


# ------------------------------------------------------------------------------------------ formats


def read_coco(file: Path) -> Annotations:
    """A COCO file: x, y, width, height from 0; a crowd is a region."""
    content = read_json(file, "expected a COCO file: an object with images and annotations")
    try:
        categories = by_id(file, content["categories"], "name")
        names = {number: str(one["name"]) for number, one in categories.items()}
        images = by_id(file, content["images"], "file_name")
        keys = {number: without_suffix(one["file_name"]) for number, one in images.items()}
        if not keys:
            raise UserError(f"{file} has no images: name the file that lists the pictures")
        if len(set(keys.values())) < len(keys):
            twice = Counter(keys.values()).most_common(1)[0][0]
            raise UserError(f"{file}: two images are called {twice}: give each its own file_name")
        found = Annotations({key: [] for key in keys.values()})
        for one in content["images"]:
            if one.get("width") and one.get("height"):
                found.sizes[keys[one["id"]]] = (int(one["width"]), int(one["height"]))
        for one in content["annotations"]:
            if one["image_id"] not in keys:
                raise UserError(
                    f"{file}: annotation {one.get('id')} is of image {one['image_id']}, which is "
                    "not in images: repair the file"
                )
            if one["category_id"] not in names:
                raise UserError(
                    f"{file}: annotation {one.get('id')} has category {one['category_id']}, which "
                    "is not in categories: repair the file"
                )
            x, y, width, height = map(float, one["bbox"])
            is_region = bool(one.get("iscrowd") or one.get("ignore"))
            corners = (x, y, x + width, y + height)
            name = names[one["category_id"]]
            found.add(keys[one["image_id"]], Annotation(name, corners, is_region))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{file} is not a COCO file ({error!r}): repair it") from None
    return found


def by_id(file: Path, entries: list[dict[str, Any]], name: str) -> dict[Any, dict[str, Any]]:
    """The images or categories of a COCO file by id; `name` is the key of what they are called.

    Raises `UserError` if an id is there with two names: boxes would go to either.
    """
    found: dict[Any, dict[str, Any]] = {}
    for one in entries:
        other = found.setdefault(one["id"], one)
        if other[name] != one[name]:
            raise UserError(
                f"{file}: id {one['id']} is {other[name]} and {one[name]}: give each its own id "
                "(were two files joined?)"
            )
    return found


def read_voc(file: Path, found: Annotations, key: str, one_based: bool) -> None:
    """A VOC file: corners in pixels; what is difficult is a region."""
    try:
        root = ElementTree.parse(file).getroot()
        size = root.find("size")
        sides = ("width", "height") if size is not None else ()
        width_height = tuple(int(float(size.findtext(side))) for side in sides)
        if width_height and all(width_height):  # 0 means that it is unknown
            found.sizes[key] = width_height
        else:
            found.counts["XML files without a size"] += 1
        for one in root.iter("object"):
            box = one.find("bndbox")
            x0, y0, x1, y1 = (
                float(box.findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            # Counted from 1, the last pixel is part of the box: its far edge is at that number.
            corners = (x0 - one_based, y0 - one_based, x1, y1)
            flags = [one.findtext(name, "0").strip() for name in ("difficult", "truncated")]
            occluded = one.findtext("occluded", "0").strip() == "1"
            found.add(
                key,
                Annotation(
                    one.findtext("name").strip(),
                    corners,
                    is_region=flags[0] == "1",
                    truncated=float(flags[1] == "1"),
                    occluded=int(occluded),
                ),
            )
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{file} is not a VOC file ({error}): repair or remove it") from None


def read_yolo(file: Path, found: Annotations, key: str, names: list[str]) -> None:
    """A YOLO file: class number, centre and size as shares of the picture.

    The corners are shares until `in_pixels` knows the picture's size.
    """
    for number, line in enumerate(read_lines(file, "labels"), start=1):
        columns = line.split()
        if not columns:
            continue
        if len(columns) > YOLO_COLUMNS:
            raise UserError(
                f"{file}:{number}: {len(columns)} columns: outlines, rotated boxes or key points: "
                "export boxes"
            )
        try:
            kind, *shares = columns[:5]
            x, y, width, height = map(float, shares)
            index = int(kind)
        except ValueError:
            raise UserError(
                f"{file}:{number}: expected a class number and four shares, not '{line.strip()}'"
            ) from None
        if not 0 <= index < len(names):
            raise UserError(f"{file}:{number}: class {index} has no name: there are {len(names)}")
        if not names[index]:
            raise UserError(f"{file}:{number}: class {index} has no name: its line is blank")
        if not all(0 <= share <= 1 + INSIDE for share in (x, y, width, height)):
            raise UserError(
                f"{file}:{number}: {line.strip()}: centre and size must be shares from 0 to 1, not "
                "percent or pixels"
            )
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        found.add(key, Annotation(names[index], corners))


def read_kitti(file: Path, found: Annotations, key: str) -> None:
    """A KITTI file: 15 columns, 16 with a score, after a class of one or more words."""
    for number, line in enumerate(read_lines(file, "labels"), start=1):
        if not line.split():
            continue
        columns = columns_of(line)
        if shifted := what_is_shifted(columns):
            raise UserError(f"{file}:{number}: {shifted}: a column is missing or too many")
        try:
            if len(columns) not in KITTI_COLUMNS:
                raise ValueError
            truncated, occluded = float(columns[1]), int(float(columns[2]))
            corners = tuple(map(float, columns[4:8]))
        except (ValueError, OverflowError):
            raise UserError(
                f"{file}:{number}: expected a class and 14 numbers (15 with a score): fix the line"
            ) from None
        found.add(
            key,
            Annotation(
                columns[0],
                corners,
                is_region=columns[0] == DOUBTFUL,
                truncated=min(max(truncated, 0.0), 1.0),
                occluded=min(max(occluded, 0), 2),
            ),
        )


def read_kaist(file: Path, found: Annotations, key: str) -> None:
    """KAIST's text: label x y width height occlusion, five numbers, ignore, angle."""
    for number, line in enumerate(read_lines(file, "labels"), start=1):
        words = line.split()
        if not words or words[0].startswith("%"):
            continue
        try:
            x, y, width, height = map(float, words[1:5])
            occluded, ignored = int(float(words[5])), words[10:11] == ["1"]
        except (ValueError, IndexError, OverflowError):
            raise UserError(
                f"{file}:{number}: expected label x y width height occlusion ...: fix the line"
            ) from None
        is_region = ignored or words[0] in KAIST_REGIONS
        corners = (x, y, x + width, y + height)
        found.add(key, Annotation(words[0], corners, is_region, occluded=min(max(occluded, 0), 2)))


def read_cvc14(file: Path, found: Annotations, key: str) -> None:
    """CVC-14's text: a person per line: centre x and y, width, height in pixels, and more."""
    for number, line in enumerate(read_lines(file, "labels"), start=1):
        words = line.split()
        if not words:
            continue
        try:
            x, y, width, height = map(float, words[:4])
        except ValueError:
            raise UserError(
                f"{file}:{number}: expected centre x and y, width, height in px: fix the line"
            ) from None
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        found.add(key, Annotation("person", corners))


# ------------------------------------------------------------- boxes that the format does not have


def refuse_swapped_corners(labels: Path, found: Annotations) -> None:
    """Raise `UserError` if many boxes end before they begin."""
    swapped, total = found.counts[SWAPPED], found.counts[SWAPPED] + found.counts[EMPTY]
    total += sum(map(len, found.boxes.values()))
    if swapped > max(1, SWAPPED_AT_MOST * total):
        raise UserError(
            f"{labels}: {swapped} of {total} boxes end before they begin: corners are swapped, or "
            "they are x y width height: convert them"
        )


def refuse_shares(labels: Path, found: Annotations) -> None:
    """Raise `UserError` if all boxes of a format in pixels lie within the first pixel."""
    corners = [one.corners for boxes in found.boxes.values() for one in boxes]
    if corners and max(map(max, corners)) <= LARGEST_SHARE:
        raise UserError(
            f"{labels}: no box reaches beyond {LARGEST_SHARE} px: boxes are shares, not pixels: "
            "--format yolo, or convert"
        )


def refuse_corners_as_sizes(file: Path, found: Annotations) -> None:
    """Raise `UserError` if the boxes of a COCO file are two corners.

    Then every width is above x and every height above y. That can be true of large things in the
    middle of their pictures too, but then the boxes are within their pictures.
    """
    boxes = [(key, one.corners) for key, several in found.boxes.items() for one in several]
    if len(boxes) < ENOUGH_BOXES:
        return
    if not all(x1 - x0 > x0 and y1 - y0 > y0 for _, (x0, y0, x1, y1) in boxes):
        return
    sizes = [found.sizes.get(key, (0, 0)) for key, _ in boxes]
    if all(
        x1 <= width + 1 and y1 <= height + 1
        for (_, (_, _, x1, y1)), (width, height) in zip(boxes, sizes, strict=True)
    ):
        return
    raise UserError(
        f"{file}: in all {len(boxes)} boxes width is above x and height above y: bbox looks like "
        "x0 y0 x1 y1, COCO's bbox is x y width height: convert it"
    )


# -------------------------------------------------------------------------------- paths and pixels


def without_suffix(file_name: str) -> str:
    """A picture's path without its suffix, with forward slashes."""
    path = Path(file_name.replace("\\", "/"))
    return (path.parent / path.stem).as_posix()


def key_of(file: Path, folder: Path) -> str:
    """A file's path from a folder, without suffix. Raises `UserError` if it is not UTF-8."""
    key = without_suffix(file.relative_to(folder).as_posix())
    try:
        key.encode()
    except UnicodeEncodeError:
        shown = str(file).encode(errors="backslashreplace").decode()
        raise UserError(f"{shown}: the file's name is not UTF-8: rename it") from None
    return key


def in_pixels(one: Annotation, kind: str, size: tuple[int, int]) -> Corners:
    """A box's corners in px of a picture of this size (width, height)."""
    if kind != "yolo":
        return one.corners
    (x0, y0, x1, y1), (width, height) = one.corners, size
    return x0 * width, y0 * height, x1 * width, y1 * height

"""Annotations of other data sets: COCO JSON, VOC XML, YOLO, KITTI, KAIST and CVC-14 text.

Boxes are read in each format's own unit and become corners in pixels of the picture, counted from
0. Needs no torch.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from cmkd.frames.annotations import DOUBTFUL, Corners, columns_of, has_area, what_is_shifted
from cmkd.frames.layout import files_below
from cmkd.runtime.files import UserError, read_json, read_lines

FORMATS = ("coco", "voc", "yolo", "kitti", "kaist", "cvc14")
SUFFIX_OF_FORMAT = {"voc": ".xml", **dict.fromkeys(("yolo", "kitti", "kaist", "cvc14"), ".txt")}
# In these a frame without a file has nobody; in the others that may also mean not labelled.
NOBODY_WITHOUT_A_FILE = ("kaist", "cvc14")
KAIST_REGIONS = ("people", "person?")  # that the benchmark leaves out
YOLO_NAMES = ("classes.txt", "obj.names", "data.yaml", "dataset.yaml")
KITTI_COLUMNS = (15, 16)
INSIDE = 1e-6  # shares may be above 1 by rounding


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
        if not all(map(math.isfinite, one.corners)) or not has_area(one.corners):
            self.counts["boxes without width or height, left out"] += 1
        else:
            self.boxes[key].append(one)


def read_annotations(labels: Path, kind: str, one_based: bool) -> Annotations:
    """All annotations of a file (COCO) or a folder. Raises `UserError` for what cannot be read.

    `one_based`: VOC's pixels are counted from 1, as in the original VOC.
    """
    if kind == "coco":
        return read_coco(labels)
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
        key = file.relative_to(labels).with_suffix("").as_posix()
        found.boxes[key] = []
        read[kind](file, found, key)
    return found


# ------------------------------------------------------------------------------------------ formats


def read_coco(file: Path) -> Annotations:
    """A COCO file: x, y, width, height from 0; a crowd is a region."""
    content = read_json(file, "expected a COCO file: an object with images and annotations")
    try:
        names = {one["id"]: one["name"] for one in content["categories"]}
        keys = {one["id"]: without_suffix(one["file_name"]) for one in content["images"]}
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
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file} is not a COCO file ({error!r}): repair it") from None
    return found


def read_voc(file: Path, found: Annotations, key: str, one_based: bool) -> None:
    """A VOC file: corners in pixels; what is difficult is a region."""
    try:
        root = ElementTree.parse(file).getroot()
        size = root.find("size")
        if size is None:
            found.counts["XML files without a size"] += 1
        else:
            found.sizes[key] = (int(size.findtext("width")), int(size.findtext("height")))
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
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{file} is not a VOC file ({error}): repair or remove it") from None


def read_yolo(file: Path, found: Annotations, key: str, names: list[str]) -> None:
    """A YOLO file: class number, centre and size as shares of the picture.

    The corners are shares until `in_pixels` knows the picture's size.
    """
    for number, line in enumerate(read_lines(file, "labels"), start=1):
        if not line.split():
            continue
        try:
            kind, *shares = line.split()[:5]
            x, y, width, height = map(float, shares)
            index = int(kind)
        except ValueError:
            raise UserError(
                f"{file}:{number}: expected a class number and four shares, not '{line.strip()}'"
            ) from None
        if not 0 <= index < len(names):
            raise UserError(f"{file}:{number}: class {index} has no name: there are {len(names)}")
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
        except ValueError:
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
        except (ValueError, IndexError):
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


# ---------------------------------------------------------------------------------------- names


def yolo_names(labels: Path) -> list[str]:
    """The class names of a YOLO data set: beside its labels, or one or two folders above.

    Raises `UserError`.
    """
    for folder in (labels, labels.parent, labels.parent.parent):
        for name in YOLO_NAMES:
            if (file := folder / name).is_file():
                lines = read_lines(file, "class names")
                return names_in_yaml(file, lines) if file.suffix == ".yaml" else named(lines)
    raise UserError(
        f"no class names: write classes.txt, a name per line in the order of the numbers, to "
        f"{labels}"
    )


def named(lines: list[str]) -> list[str]:
    """The names of a list of names."""
    return [line.strip() for line in lines if line.strip()]


def names_in_yaml(file: Path, lines: list[str]) -> list[str]:
    """`names` of a data.yaml: a list in brackets, or a line for each. Raises `UserError`."""
    text = "\n".join(line.split(" #")[0] for line in lines)
    inline = re.search(r"^names:\s*\[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    if inline:
        return [name.strip().strip("'\"") for name in inline[1].split(",") if name.strip()]
    block = re.search(r"^names:\s*\n((?:[ \t]*(?:-|\d+:).*\n?)+)", text + "\n", re.MULTILINE)
    if not block:
        raise UserError(f"{file} has no names: write classes.txt beside it, a name per line")
    found = re.findall(r"^[ \t]*(?:-|(\d+):)[ \t]*(.+?)[ \t]*$", block[1], re.MULTILINE)
    if all(number for number, _ in found) and [int(number) for number, _ in found] != list(
        range(len(found))
    ):
        raise UserError(f"{file}: the names must be numbered 0, 1, 2 ...")
    return [name.strip("'\"") for _, name in found]


def without_suffix(file_name: str) -> str:
    """A picture's path without its suffix, with forward slashes."""
    return Path(file_name.replace("\\", "/")).with_suffix("").as_posix()


def in_pixels(one: Annotation, kind: str, size: tuple[int, int]) -> Corners:
    """A box's corners in px of a picture of this size (width, height)."""
    if kind != "yolo":
        return one.corners
    (x0, y0, x1, y1), (width, height) = one.corners, size
    return x0 * width, y0 * height, x1 * width, y1 * height

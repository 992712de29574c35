"""Label files, and the classes that a detector is trained on.

Boxes are in label space: the 1280x720 pixels of the gated camera, whatever the size of the images.
"""

import math
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from cmkd.runtime.command_line import to_float
from cmkd.runtime.files import UserError, read_lines

LABEL_WIDTH, LABEL_HEIGHT = 1280, 720
LABEL_COLUMNS = (15, 16, 27)  # KITTI, KITTI with a score, Seeing Through Fog
SCORE_COLUMN = {16: 15, 27: 18}  # by the number of columns
NO_POSITION = -1000  # unknown, in any of the three coordinates and as an angle
SAYS_NOTHING = ((0, 0, 0), (-1, -1, -1))  # 3D positions that nobody measured
# By column, counted from 0: what it is, and the largest number that it can be.
KITTI_LIMITS = {
    1: ("the truncated share", 1),
    3: ("the angle of view", 10),
    8: ("a height in m", 100),
    9: ("a width in m", 100),
    10: ("a length in m", 100),
    14: ("an angle", 10),
}
KITTI_LIMITS_APPLY = (15, 16)
VISIBLE = {"True": True, "False": False}  # any other text means unknown

DEFAULT_CLASSES = ("Pedestrian,Pedestrian_is_group",)
OFFICIAL_CLASSES = frozenset(
    {
        "PassengerCar",
        "LargeVehicle",
        "RidableVehicle",
        "Vehicle",
        "Pedestrian",
        "PassengerCar_is_group",
        "LargeVehicle_is_group",
        "RidableVehicle_is_group",
        "Vehicle_is_group",
        "Pedestrian_is_group",
        "Obstacle",
        "DontCare",
        "train",
        "person",
    }
)
DOUBTFUL = "DontCare"  # a machine label that is too unsure to be an object
# What others leave out of training and evaluation: regions that nobody labelled one by one.
USUALLY_IGNORED = ("DontCare", "Obstacle", "*_is_group")
CLASS_SETS = {"vru": "Pedestrian,Pedestrian_is_group,RidableVehicle,RidableVehicle_is_group,person"}

Corners = tuple[float, float, float, float]  # x0, y0, x1, y1


@dataclass(frozen=True)
class Label:
    """One line of a label file."""

    name: str  # the class
    box: Corners  # in label space
    visible_rgb: bool | None  # columns 23 and 24 of Seeing Through Fog; None if unknown
    visible_gated: bool | None
    distance: float | None  # m, from the 3D position in columns 11-13; None if unknown
    line: int
    score: float | None = None  # what the file says; None if it has no column for it

    @property
    def is_person(self) -> bool:
        """Whether it is a person on foot, or a group of them."""
        return self.name.startswith("Pedestrian")


def parse_labels(path: Path) -> tuple[list[Label], list[str]]:
    """The objects of a label file, and what is wrong with the other lines.

    Columns as in Seeing Through Fog's gated_labels (27) or KITTI (15, 16): class in column 0, box
    in columns 4-7. A class may have several words: it ends before the first number. Lines of
    `traffic ...` classes and boxes without width or height are left out, as published. Raises
    `UserError` if the file cannot be read.
    """
    labels, problems = [], []
    for number, line in enumerate(read_lines(path, "labels"), start=1):
        columns = columns_of(line)
        if not columns or columns[0].split()[0] == "traffic":
            continue
        if len(columns) not in LABEL_COLUMNS:
            problems.append(
                f"{path}:{number}: {len(columns)} columns, expected 27 (KITTI: 15 or 16): fix the "
                "line"
            )
            continue
        if shifted := what_is_shifted(columns):
            problems.append(f"{path}:{number}: {shifted}: a column is missing or too many")
            continue
        try:
            box = tuple(map(float, columns[4:8]))
        except ValueError:
            problems.append(
                f"{path}:{number}: columns 4-7 (counted from 0) must be the box x0 y0 x1 y1, not "
                f"'{' '.join(columns[4:8])}'"
            )
            continue
        x0, y0, x1, y1 = box
        if not (-math.inf < x0 <= x1 < math.inf and -math.inf < y0 <= y1 < math.inf):
            problems.append(
                f"{path}:{number}: box {x0:g} {y0:g} {x1:g} {y1:g} is not x0 <= x1, y0 <= y1 in "
                "finite numbers: fix or remove the line"
            )
        elif has_area(box):
            visible = [VISIBLE.get(column) for column in columns[23:25] or ("", "")]
            distance = distance_to(columns[11:14])
            labels.append(Label(columns[0], box, *visible, distance, number, score_of(columns)))
    return labels, problems


def columns_of(line: str) -> list[str]:
    """The columns of a label line; the words of the class, before the first number, are one."""
    words = line.split()
    if not words:
        return []
    first = next((index for index, word in enumerate(words) if is_number(word)), 1)
    return [" ".join(words[:first]), *words[first:]] if first else words


def is_number(word: str) -> bool:
    """Whether a word is a number."""
    try:
        float(word)
    except ValueError:
        return False
    return True


def what_is_shifted(columns: list[str]) -> str:
    """Which of KITTI's columns has a value that it cannot have; empty if none has."""
    if len(columns) not in KITTI_LIMITS_APPLY:
        return ""
    for index, (what, limit) in KITTI_LIMITS.items():
        value = to_float(columns[index])
        if abs(value) > limit and value != NO_POSITION:
            return f"column {index}, counted from 0, should be {what} and is {columns[index]}"
    return ""


def without_copies(labels: list[Label]) -> list[Label]:
    """The labels without those that repeat an earlier one."""
    first: dict[Label, Label] = {}
    for label in labels:
        first.setdefault(replace(label, line=0), label)
    return list(first.values())


def score_of(columns: list[str]) -> float | None:
    """The score in a line's columns; None if it has none."""
    try:
        return float(columns[SCORE_COLUMN[len(columns)]])
    except (KeyError, ValueError):
        return None


def distance_to(position: list[str]) -> float | None:
    """Metres from the sensor to a 3D position x y z, whichever way the axes point.

    None if it is unknown: KITTI and Seeing Through Fog write -1000, others 0 0 0 or -1 -1 -1.
    """
    try:
        x, y, z = map(float, position)
    except ValueError:
        return None
    for metres in (x, y, z):
        if not NO_POSITION < metres < math.inf:
            return None
    if (x, y, z) in SAYS_NOTHING:
        return None
    return math.hypot(x, y, z)


def clip(box: Corners) -> Corners:
    """A box clipped to label space; it has no area if it lies outside."""
    x0, y0, x1, y1 = box
    return (
        min(max(x0, 0), LABEL_WIDTH),
        min(max(y0, 0), LABEL_HEIGHT),
        min(max(x1, 0), LABEL_WIDTH),
        min(max(y1, 0), LABEL_HEIGHT),
    )


def has_area(box: Corners) -> bool:
    """Whether a box has width and height."""
    return box[0] < box[2] and box[1] < box[3]


def to_pixels(box: Corners, width: int, height: int) -> Corners:
    """A box of label space in pixels of an image of this size."""
    across, down = width / LABEL_WIDTH, height / LABEL_HEIGHT
    x0, y0, x1, y1 = box
    return x0 * across, y0 * down, x1 * across, y1 * down


def read_labels(path: Path) -> list[Label]:
    """The objects of a label file. Raises `UserError` with the first line that is wrong."""
    labels, problems = parse_labels(path)
    if problems:
        raise UserError(problems[0])
    return labels


def class_groups(classes: list[str] | tuple[str, ...]) -> list[list[str]]:
    """The label classes that each entry of `--classes` is made of.

    Raises `UserError` for an empty name, and for one that occurs twice: a class has one label.
    """
    groups = [
        [name for part in group.split(",") for name in CLASS_SETS.get(part, part).split(",")]
        for group in classes
    ]
    names = [name for group in groups for name in group]
    for name in names:
        if not name.strip():
            raise UserError(
                f"--classes {' '.join(classes)}: a name is empty: write names with single commas, "
                "as A,B"
            )
        if names.count(name) > 1:
            raise UserError(
                f"--classes {' '.join(classes)}: {name} occurs twice, by itself or in vru: name it "
                "once"
            )
    return groups


def sets_of_names(classes: list[str] | tuple[str, ...]) -> list[set[str]]:
    """The label classes of each entry of `--classes`, in whatever order within it."""
    return [set(group) for group in class_groups(classes)]


def ignored_patterns(ignore: list[str] | None) -> tuple[str, ...]:
    """The label classes that `--ignore` names, as patterns.

    Nothing if the option is not given (None) or is `none`; the usual ones (DontCare, Obstacle,
    every group) if it names no class. An ignored class is not trained, whatever `--classes` says;
    its boxes are no background in training and absorb detections in evaluation.
    """
    if ignore is None or ignore == ["none"]:
        return ()
    return tuple(ignore) or USUALLY_IGNORED


def is_ignored(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a class fits one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)

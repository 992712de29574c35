"""Labels for other tools and back: COCO JSON and YOLO's text files. Needs no torch.

DIR/classes.txt           a class per line; the last is DontCare, for ignore regions
DIR/labels/<frame>.txt    class number, centre x and y, width, height, as shares of the image
DIR/scores/<frame>.txt    the score of each of these lines, if they have any
"""

from collections import Counter
from pathlib import Path

from cmkd.frames.annotation_formats import by_id
from cmkd.frames.annotations import DOUBTFUL, Label, read_labels
from cmkd.frames.layout import IMAGE_SUFFIXES, RGB_FOLDER, find_image, in_order, label_file
from cmkd.frames.machine_labels import (
    HUMAN,
    MACHINE,
    OUTDATED,
    Found,
    Record,
    label_text,
    sha256_of_text,
    to_label_space,
    whose_file,
)
from cmkd.runtime.files import UserError, append_record, read_json, read_lines, save_text

SAME_PLACE = 0.05  # label px: a box that moved less was not moved


# ------------------------------------------------------------------------------------------ export


def yolo_files(truth: dict[str, list]) -> dict[str, str]:
    """The files of a YOLO folder (path -> text) from a COCO dictionary with DATA's frame names."""
    names = [category["name"] for category in truth["categories"]]
    files = {"classes.txt": "".join(f"{name}\n" for name in [*names, DOUBTFUL])}
    for image in truth["images"]:
        files[f"labels/{image['file_name']}.txt"] = ""
    images = {image["id"]: image for image in truth["images"]}
    for one in truth["annotations"]:
        if one["iscrowd"] and one["category_id"] > 1:
            continue  # an ignore region is a crowd of every category
        image = images[one["image_id"]]
        x, y, width, height = one["bbox"]
        shares = (
            (x + width / 2) / image["width"],
            (y + height / 2) / image["height"],
            width / image["width"],
            height / image["height"],
        )
        number = len(names) if one["iscrowd"] else one["category_id"] - 1
        numbers = " ".join(f"{share:.6f}" for share in shares)
        files[f"labels/{image['file_name']}.txt"] += f"{number} {numbers}\n"
        if one.get("score") is not None:
            file = f"scores/{image['file_name']}.txt"
            files[file] = f"{files.get(file, '')}{one['score']:.4f}\n"
    return files


# ------------------------------------------------------------------------------------------ import


def read_coco(file: Path) -> dict[str, list[Found]]:
    """Boxes by frame from a COCO file. Crowds and what is `doubtful` are ignore regions.

    Raises `UserError`.
    """
    content = read_json(file, "expected a COCO file, as check_data.py --export-coco writes it")
    try:
        categories = by_id(file, content["categories"], "name")
        names = {number: str(one["name"]).partition("+")[0] for number, one in categories.items()}
        images = by_id(file, content["images"], "file_name")
        found: dict[str, list[Found]] = {name_of(one["file_name"]): [] for one in images.values()}
        if len(found) < len(images):
            twice = Counter(name_of(one["file_name"]) for one in images.values()).most_common(1)
            raise UserError(f"{file}: two images are of frame {twice[0][0]}: take one off")
        for one in content["annotations"]:
            image = images[one["image_id"]]
            x, y, width, height = one["bbox"]
            if not (width > 0 and height > 0):
                raise ValueError(f"a box of {image['file_name']} has no area")
            box = to_label_space((x, y, x + width, y + height), image["width"], image["height"])
            is_doubtful = one.get("iscrowd") or one.get("doubtful")
            name = DOUBTFUL if is_doubtful else names[one["category_id"]]
            boxes = found[name_of(image["file_name"])]
            # A crowd is there once for every category.
            if name != DOUBTFUL or all(box != other[2] for other in boxes if other[0] == DOUBTFUL):
                boxes.append((name, float(one.get("score") or 1), box))
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"{file} is not a COCO file ({error!r}): see --export-coco") from None
    return found


def refuse_lost_doubts(file: Path, folder: Path, found: dict[str, list[Found]]) -> None:
    """Raise `UserError` if a COCO file lost what told doubtful boxes from sure ones."""
    annotations = read_json(file, "expected a COCO file")["annotations"]
    if any("doubtful" in one for one in annotations):
        return
    if any(name == DOUBTFUL for boxes in found.values() for name, _, _ in boxes):
        return
    for name in found:
        before = label_file(folder.parent, name, folder.name)
        if before.is_file() and any(label.name == DOUBTFUL for label in read_labels(before)):
            raise UserError(
                f"{file}: no box is `doubtful` or a crowd, but {before} has doubtful ones: the "
                "tool dropped that; use --export-yolo and --import-yolo, or call them DontCare"
            )


def name_of(file_name: str) -> str:
    """The frame of an image file, with or without folder and suffix."""
    path = Path(file_name)
    return path.stem if path.suffix in IMAGE_SUFFIXES else path.name


def read_yolo(folder: Path) -> dict[str, list[Found]]:
    """Boxes by frame from a YOLO folder. Raises `UserError` with the first line that is wrong."""
    names = [line.partition("+")[0] for line in read_lines(folder / "classes.txt", "class names")]
    files = in_order((folder / "labels").glob("*.txt"))
    if not files:
        raise UserError(f"{folder / 'labels'} has no label file: see --export-yolo")
    return {file.stem: read_yolo_file(file, names) for file in files}


def read_yolo_file(file: Path, names: list[str]) -> list[Found]:
    """The boxes of one label file."""
    found = []
    for number, line in enumerate(read_lines(file, "labels"), start=1):
        try:
            kind, *shares = line.split()
            x, y, width, height = map(float, shares)
            name = names[int(kind)]
            if int(kind) < 0 or not all(0 <= share <= 1 for share in (x, y, width, height)):
                raise ValueError
        except (ValueError, IndexError):
            raise UserError(
                f"{file}:{number}: expected a class number of classes.txt and four shares from 0 "
                "to 1: fix it"
            ) from None
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        found.append((name, 1.0, to_label_space(corners, 1, 1)))
    return found


def is_unchanged(labels: list[Label], found: list[Found]) -> bool:
    """Whether boxes are those of a label file, in any order."""
    before = [(label.name, label.box) for label in labels]
    for name, _, box in found:
        same = [
            one
            for one in before
            if one[0] == name
            and all(abs(a - b) < SAME_PLACE for a, b in zip(one[1], box, strict=True))
        ]
        if not same:
            return False
        before.remove(same[0])
    return not before


def not_named(folder: Path, record: Record, found: dict[str, list[Found]]) -> int:
    """How many label files of a machine are of frames that an import does not name."""
    named = {label_file(folder.parent, name, folder.name) for name in found}
    return sum(
        whose_file(record, folder, file.stem) in (MACHINE, OUTDATED)
        for file in folder.glob("*.txt")
        if file not in named
    )


def import_labels(
    folder: Path, journal: Path, record: Record, found: dict[str, list[Found]]
) -> dict[str, int]:
    """Write the frames whose boxes changed, mark them as corrected by a human, and count them.

    A file that a human changed before is kept. Raises `UserError` before anything is written, if a
    frame has no image.
    """
    counts = {"changed": 0, "unchanged": 0, "kept": 0}
    for name in found:
        if "/" in name or find_image(folder.parent, RGB_FOLDER, name) is None:
            raise UserError(f"{name} is no frame of {folder.parent}: it has no image there")
    folder.mkdir(parents=True, exist_ok=True)
    for name, boxes in found.items():
        file = label_file(folder.parent, name, folder.name)
        owner = whose_file(record, folder, name)
        if owner in (MACHINE, OUTDATED, HUMAN) and is_unchanged(read_labels(file), boxes):
            counts["unchanged"] += 1
        elif owner == HUMAN:
            counts["kept"] += 1
        else:
            text = label_text(boxes)
            append_record(journal, {"frame": name, "sha256": sha256_of_text(text), "by": HUMAN})
            save_text(text, file)
            counts["changed"] += 1
    return counts

"""An RGB detector on ordinary pictures: annotated copies, and all detections as COCO JSON."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cmkd.evaluation.metrics import Results
from cmkd.evaluation.predict import to_coco_results
from cmkd.frames.bit_depth import has_16_bits, orientation_of
from cmkd.frames.layout import files_below
from cmkd.runtime.failures import warn
from cmkd.runtime.files import UserError, reason_of, refuse_unwritable, save_json
from cmkd.viewing.contact_sheet import Box, draw_boxes, save_picture
from cmkd.viewing.drawing import HIT, corners
from models import Detector

# What turns a picture upright, by its EXIF orientation. ImageOps.exif_transpose also writes the
# other entries anew, and fails at odd ones.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm"}
DETECTIONS_FILE = "detections.json"
SCALE_WIDTH = 320  # px: lines and texts grow by a step for each such width of a picture


def annotate_pictures(
    detector: Detector, classes: list[str], path: Path, out: Path, least_score: float, amp: bool
) -> None:
    """Write a copy of each picture with its boxes to the folder `out`, and OUT/detections.json.

    `path` is a picture or a folder. The copies show boxes from `least_score` on. The JSON is a COCO
    dictionary (images, categories, annotations with `score`) of all boxes that the network gives:
    at most 100 in a picture, from a score of 0.05 on.

    Raises `UserError` if nothing can be done; also, once the others are written, if some pictures
    cannot be read.
    """
    root = path if path.is_dir() else path.parent
    refuse_nested(path, root, out)
    files = find_pictures(path)
    detections_file = out / DETECTIONS_FILE
    refuse_unwritable(detections_file)
    images, annotations, unreadable = [], [], {}
    for file in tqdm(files, unit="picture", leave=False, disable=None):
        name = file.relative_to(root)
        try:
            picture = read_picture(file)
            if min(picture.size) * detector.settings["max_size"] < max(picture.size):
                size = f"{picture.width}x{picture.height}"
                raise UserError(f"is {size}: nothing is left of it at the network's size")
        except UserError as error:
            unreadable[name] = str(error)
            continue
        image = {"id": len(images), "file_name": name.as_posix()}
        images.append({**image, "width": picture.width, "height": picture.height})
        target = {"image_id": image["id"], "name": image["file_name"]}
        results = to_coco_results([run_detector(detector, picture, amp)], [target])
        annotations += to_annotations(results, len(annotations))
        shown = [result for result in results if result["score"] >= least_score]
        draw_detections(picture, shown, classes)
        kind = Image.registered_extensions()[file.suffix.lower()]
        is_writable = kind in Image.SAVE and kind != "GIF"  # a GIF would lose colours
        copy = out / name if is_writable else out / f"{name}.png"
        save_picture(picture, copy, kind if is_writable else "PNG")
    if images:
        categories = [{"id": label, "name": name} for label, name in enumerate(classes, start=1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        save_json(content, detections_file)
        count = sum(annotation["score"] >= least_score for annotation in annotations)
        print(
            f"{out}: {len(images)} of {len(files)} pictures, {count} boxes of at least "
            f"{least_score:g}; {detections_file}"
        )
    for name, reason in unreadable.items():
        warn(f"{root / name} {reason}")
    if unreadable:
        names = ", ".join(map(str, unreadable))
        count = f"{len(unreadable)} of {len(files)}"
        raise UserError(f"{count} pictures could not be read: {names}; the others are done")


def refuse_nested(path: Path, root: Path, out: Path) -> None:
    """Raise `UserError` if copies and pictures would be in one folder tree."""
    source, target = root.resolve(), out.resolve()
    in_source = path.is_dir() and source in target.parents
    if source == target or target in source.parents or in_source:
        raise UserError(
            f"--out {out} and {root} contain one another, so copies could replace pictures, or be "
            "taken for pictures the next time: name another folder"
        )


def find_pictures(path: Path) -> list[Path]:
    """The picture, or all pictures in a folder and its subfolders, by name.

    Pictures are the files with a suffix of a kind that Pillow opens; how many others there are is
    printed. Linked folders are searched too. Raises `UserError`.
    """
    suffixes = ".jpg, .png, .tif, .gif, ..."
    if path.suffix.lower() in VIDEOS:
        folder = path.with_suffix("")
        raise UserError(
            f"{path} is a video: write its frames to a folder first "
            f"(ffmpeg -i {path} {folder}/%06d.png) and name the folder"
        )
    if path.is_file() and is_picture(path):
        return [path]
    if not path.is_dir():
        problem = "is no picture" if path.exists() else "is missing"
        raise UserError(f"{path} {problem}: name a picture ({suffixes}) or a folder of pictures")
    everything = files_below(path)
    files = [file for file in everything if is_picture(file)]
    if not files:
        raise UserError(f"{path} has no picture ({suffixes}): name another folder")
    if others := [file.name for file in everything if file not in set(files)]:
        print(f"{path}: {len(others)} files are no pictures, like {others[0]}")
    return files


def is_picture(file: Path) -> bool:
    """Whether a file's suffix is of a kind that Pillow opens."""
    return Image.registered_extensions().get(file.suffix.lower()) in Image.OPEN


def read_picture(file: Path) -> Image.Image:
    """A picture in RGB, rotated as its EXIF says. Raises `UserError` without the file's name."""
    try:
        with Image.open(file) as picture:
            if picture.mode.startswith(("I", "F")) or has_16_bits(picture):
                raise UserError(f"has {picture.mode} pixels, and 8 bits per channel are needed")
            orientation = orientation_of(picture)
            upright = picture.convert("RGB")
            return upright.transpose(TURNS[orientation]) if orientation in TURNS else upright
    # A damaged AVIF is a RuntimeError.
    except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot be read ({reason_of(error)})") from None


@torch.inference_mode()
def run_detector(detector: Detector, picture: Image.Image, amp: bool) -> dict[str, Tensor]:
    """torchvision's detections in a picture, with boxes in its pixels."""
    device = next(detector.parameters()).device
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=amp):
        [detections] = detector([image])
    return {name: values.cpu() for name, values in detections.items()}


def to_annotations(results: Results, count: int) -> list[dict[str, Any]]:
    """COCO results as COCO annotations with a score; `count` annotations are there already."""
    return [
        {
            "id": number,
            "image_id": result["image_id"],
            "iscrowd": 0,
            "category_id": result["category_id"],
            "bbox": result["bbox"],
            "area": result["bbox"][2] * result["bbox"][3],
            "score": result["score"],
        }
        for number, result in enumerate(results, start=count + 1)
    ]


def draw_detections(picture: Image.Image, results: Results, classes: list[str]) -> None:
    """Draw the boxes of COCO results, each with its score, and its class if there are several."""
    step = max(1, round(picture.width / SCALE_WIDTH))
    boxes = []
    for result in results:
        text = f"{result['score']:.2f}"
        if len(classes) > 1:
            text = f"{classes[result['category_id'] - 1]} {text}"
        boxes.append(Box(corners(result["bbox"]), HIT, 1 + step, text))
    draw_boxes(picture, boxes, font_size=10 + 2 * step)

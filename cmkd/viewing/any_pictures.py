"""An RGB detector on any folder of ordinary pictures: annotated copies, and what was found as COCO JSON."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from cmkd.evaluation.metrics import to_coco_results
from cmkd.viewing.drawing import HIT, Box, corners, draw_boxes
from models import Detector
from utils import UserError, reason_of, refuse_unwritable, save_json, warn, write_atomically

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm"}
LINES_IN_A_PICTURE = 320  # of a box's line width: 1 px in a picture 320 px wide


def find_pictures(path: Path) -> list[Path]:
    """The picture, or all pictures of a folder and of those in it, by name. Raises `UserError` where there is none."""
    if path.suffix.lower() in VIDEOS:
        raise UserError(f"{path} is a video: write its frames to a folder first (ffmpeg -i {path} "
                        f"{path.with_suffix('')}/%06d.png) and name the folder")
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} is {'no picture' if path.exists() else 'missing'}: name a picture "
                        f"({', '.join(sorted(SUFFIXES))}) or a folder of pictures")
    if files := sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()):
        return files
    raise UserError(f"{path} has no picture ({', '.join(sorted(SUFFIXES))}): name another folder")


def read_picture(file: Path) -> Image.Image:
    """A picture in RGB, the way up that its EXIF says. Raises `UserError`."""
    try:
        with Image.open(file) as picture:
            if picture.mode.startswith(("I", "F")):
                raise UserError(f"has {picture.mode} pixels, and 8 bits a channel are needed")
            return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot be read ({reason_of(error)})") from None


def annotate(picture: Image.Image, results: list[dict[str, Any]], classes: list[str]) -> Image.Image:
    """A copy with the boxes of COCO results, each with its score, and its class where there are several."""
    copy = picture.copy()
    unit = max(1, round(copy.width / LINES_IN_A_PICTURE))
    draw_boxes(copy, [Box(corners(one["bbox"], 1), HIT, 1 + unit,
                          (f"{classes[one['category_id'] - 1]} " if len(classes) > 1 else "") + f"{one['score']:.2f}")
                      for one in results], letter=10 + 2 * unit)
    return copy


@torch.inference_mode()
def detect(detector: Detector, picture: Image.Image, amp: bool) -> dict[str, Tensor]:
    """torchvision's detections of a picture, boxes in its pixels."""
    device = next(detector.parameters()).device
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=amp):
        [detections] = detector([image])
    return {name: values.cpu() for name, values in detections.items()}


def detect_pictures(detector: Detector, classes: list[str], path: Path, out: Path, least_score: float, amp: bool
                    ) -> None:
    """Write an annotated copy of each picture to the folder `out`, by its own name, and OUT/detections.json: a COCO
    dictionary (images, categories, annotations with `score`) of all boxes that the network gives: at most 100 in a
    picture, from a score of 0.05 on.

    Raises `UserError` where nothing can be done, and, once the others are written, with the pictures that could not be
    read.
    """
    root = path if path.is_dir() else path.parent
    here, there = root.resolve(), out.resolve()
    if there == here or there in here.parents or (path.is_dir() and here in there.parents):
        raise UserError(f"--out {out} and {root} lie in each other, where copies could take the place of pictures, or "
                        "be taken for some the next time: name another folder")
    files = find_pictures(path)
    refuse_unwritable(out / "detections.json")
    images, annotations, unreadable = [], [], {}
    for file in tqdm(files, unit="picture", leave=False, disable=None):
        name = file.relative_to(root)
        try:
            picture = read_picture(file)
            if min(picture.size) * detector.settings["max_size"] < max(picture.size):
                raise UserError(f"is {picture.width}x{picture.height}: nothing is left of it at the network's size")
        except UserError as error:
            unreadable[name] = str(error)
            continue
        images.append({"id": len(images), "file_name": name.as_posix(), "width": picture.width,
                       "height": picture.height})
        results = to_coco_results([detect(detector, picture, amp)],
                                  [{"image_id": images[-1]["id"], "name": name.as_posix()}])
        annotations += [{"id": len(annotations) + number, "image_id": one["image_id"], "iscrowd": 0,
                         "category_id": one["category_id"], "bbox": one["bbox"],
                         "area": one["bbox"][2] * one["bbox"][3], "score": one["score"]}
                        for number, one in enumerate(results, start=1)]
        copy = annotate(picture, [one for one in results if one["score"] >= least_score], classes)
        write_atomically(out / name, lambda unfinished, copy=copy, file=file: copy.save(
            unfinished, Image.registered_extensions()[file.suffix.lower()]))
    categories = [{"id": label, "name": name} for label, name in enumerate(classes, start=1)]
    if images:
        save_json({"images": images, "annotations": annotations, "categories": categories}, out / "detections.json")
        shown = sum(one["score"] >= least_score for one in annotations)
        print(f"{out}: {len(images)} of {len(files)} pictures, {shown} boxes of at least {least_score:g}; "
              f"{out / 'detections.json'}")
    for name, reason in unreadable.items():
        warn(f"{root / name} {reason}")
    if unreadable:
        raise UserError(f"{len(unreadable)} of {len(files)} pictures could not be read: "
                        f"{', '.join(map(str, unreadable))}; the others are done")

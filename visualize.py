"""Pictures of what the networks see and miss. No window needed.

    python visualize.py --compare weights/teacher.pth weights/baseline.pth weights/cmkd_adv.pth --out gallery.png

One row per frame: the ground truth on a gated slice, then each network's detections on the RGB picture.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.transforms.functional import to_pil_image

from dataset import SeeingThroughFog
from failures import run
from models import Detector, WeightsError, covered, load_detector, read_settings
from scoring import titles
from utils import (
    DEFAULT_CLASSES,
    OneLineParser,
    add_data_options,
    at_least,
    non_negative_float,
    refuse_unwritable,
    write_atomically,
)

TILE_WIDTH, HEADER, FOOTER, GAP = 420, 34, 34, 6
# Okabe and Ito's colour-blind-safe hues; line width and words tell the same without colour.
TRUTH, HIT, FALSE_ALARM, MISSED = "#009E73", "#56B4E9", "#E69F00", "#CC79A7"
LEGEND = [(TRUTH, "ground truth"), (HIT, "hit: score"), (FALSE_ALARM, "false alarm: ?"), (MISSED, "missed: x")]


def match(boxes: Tensor, labels: Tensor, truth: Tensor, truth_labels: Tensor) -> tuple[list[bool], list[bool]]:
    """Which detections (`[N, 4]`, best first) hit a box of `[M, 4]` with their label at IoU 0.5, each box once; which
    of M are found. Labels are `[N]` and `[M]`."""
    hits, found = [], [False] * len(truth)
    for overlaps in (box_iou(boxes, truth) * (labels[:, None] == truth_labels)).tolist():
        best = max((index for index in range(len(truth)) if not found[index]), key=lambda index: overlaps[index],
                   default=None)
        hits.append(best is not None and overlaps[best] >= 0.5)
        if hits[-1]:
            found[best] = True
    return hits, found


def tile(image: Tensor) -> tuple[Image.Image, float]:
    """uint8 `[1 or 3, H, W]` -> a picture of the tile's width, and its scale."""
    picture = to_pil_image(image).convert("RGB")
    scale = TILE_WIDTH / picture.width
    return picture.resize((TILE_WIDTH, round(picture.height * scale)), Image.Resampling.BICUBIC), scale


def draw_box(draw: ImageDraw.ImageDraw, box: list[float], colour: str, width: int = 2, above: str = "",
             inside: str = "", below: str = "") -> None:
    """A box in tile pixels with its text. A hit, a false alarm and a miss at one place each have room of their own."""
    x0, y0, x1, y1 = box
    font = ImageFont.load_default(12)
    draw.rectangle(box, outline=colour, width=width)
    draw.text((x0, max(y0 - 1, 12)), above, fill=colour, font=font, anchor="ls")
    draw.text((x1 - 4, y1 - 4), inside, fill=colour, font=font, anchor="rb")
    draw.text((x0, min(y1 + 2, draw.im.size[1] - 10)), below, fill=colour, font=font, anchor="lt")


def truth_tile(image: Tensor, target: dict) -> Image.Image:
    """The ground truth on the gated slice in which the people are brightest: each slice sees its own range."""
    inside = torch.zeros(image.shape[-2:], dtype=torch.bool)
    for x0, y0, x1, y1 in target["boxes"].int().tolist():
        inside[y0 : y1 + 1, x0 : x1 + 1] = True
    brightest = int((image[3:6] * inside).sum(dim=(1, 2)).argmax())
    picture, scale = tile(image[3 + brightest : 4 + brightest])
    draw = ImageDraw.Draw(picture)
    for box in (target["boxes"][target["labels"] > 0] * scale).tolist():
        draw_box(draw, box, TRUTH)
    draw.text((6, picture.height - 6), f"slice {brightest}", fill="white", font=ImageFont.load_default(12), anchor="ls")
    return picture


def detection_tile(detector: Detector, image: Tensor, target: dict, min_score: float) -> Image.Image:
    """A network's hits, false alarms and misses on the RGB picture. What lies on an ignore region is none of these."""
    picture, scale = tile(image[:3])
    draw = ImageDraw.Draw(picture)
    with torch.inference_mode():
        device = next(detector.parameters()).device
        [detections] = detector([image[: detector.settings["channels"]].to(device)])
    sure = detections["scores"] >= min_score
    boxes, scores = detections["boxes"][sure].cpu(), detections["scores"][sure].tolist()
    is_object = target["labels"] > 0
    truth = target["boxes"][is_object]
    hits, found = match(boxes, detections["labels"][sure].cpu(), truth, target["labels"][is_object])
    ignored = covered(boxes, target["boxes"][~is_object]).tolist()
    for box, was_found in zip((truth * scale).tolist(), found, strict=True):
        if not was_found:
            draw_box(draw, box, MISSED, width=1, below="x")
    for box, score, hit, on_region in zip((boxes * scale).tolist(), scores, hits, ignored, strict=True):
        if hit:
            draw_box(draw, box, HIT, width=3, above=f"{score:.2f}")
        elif not on_region:
            draw_box(draw, box, FALSE_ALARM, inside="?")
    return picture


def gallery(dataset: SeeingThroughFog, detectors: list[tuple[str, Detector]], frames: int, min_score: float
            ) -> Image.Image:
    """The contact sheet: a row per frame, a column for the ground truth and one for each network."""
    rows = []
    for index in range(min(frames, len(dataset))):
        image, target = dataset[index]
        rows.append([truth_tile(image, target),
                     *(detection_tile(detector, image, target, min_score) for _, detector in detectors)])
    columns = ["ground truth, on a gated slice", *(title for title, _ in detectors)]
    width = len(columns) * (TILE_WIDTH + GAP) + GAP
    sheet = Image.new("RGB", (width, HEADER + sum(row[0].height + GAP for row in rows) + FOOTER), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(columns):
        draw.text((GAP + column * (TILE_WIDTH + GAP), 8), title, fill="black", font=ImageFont.load_default(16))
    top = HEADER
    for row in rows:
        for column, picture in enumerate(row):
            sheet.paste(picture, (GAP + column * (TILE_WIDTH + GAP), top))
        top += row[0].height + GAP
    left = GAP
    for colour, text in LEGEND:
        draw.rectangle((left, top + 8, left + 16, top + 20), outline=colour, width=4)
        draw.text((left + 24, top + 4), text, fill="black", font=ImageFont.load_default(16))
        left += 60 + round(draw.textlength(text, ImageFont.load_default(16)))
    return sheet


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    parser.add_argument("--compare", nargs="+", type=Path, required=True, metavar="WEIGHTS", help="one column each")
    parser.add_argument("--list", default="vis_night", help="DATA/<list>.txt (default: vis_night)")
    parser.add_argument("--frames", type=at_least(1), default=6, help="rows (default: the first 6 of the list)")
    parser.add_argument("--score", type=non_negative_float, default=0.5,
                        help="least score that is drawn (default: 0.5)")
    parser.add_argument("--out", type=Path, default=Path("gallery.png"), help="PNG (default: gallery.png)")
    args = parser.parse_args()
    refuse_unwritable(args.out)

    detectors = [(title, load_detector(file).to(args.device).eval())
                 for title, file in zip(titles(args.compare), args.compare, strict=True)]
    trained_with = read_settings(args.compare[0])
    dataset = SeeingThroughFog(args.data, args.list, "rgb+gated", trained_with.get("classes", DEFAULT_CLASSES),
                               trained_with.get("ignore"))
    sheet = gallery(dataset, detectors, args.frames, args.score)
    write_atomically(args.out, lambda unfinished: sheet.save(unfinished, "PNG"))
    print(f"{args.out}: {sheet.width}x{sheet.height}")


if __name__ == "__main__":
    run(main, WeightsError)

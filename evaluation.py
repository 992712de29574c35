"""Detections and ground truth, both as COCO dictionaries -> COCO's numbers, by pycocotools."""

import contextlib
import io
import math
from typing import Any

import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

# COCOeval.stats in its order: average precision and recall over IoU 0.50:0.95 unless named, by box area (small < 32^2,
# medium < 96^2 square pixels of the stored image) and by the number of detections allowed in an image.
METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
           "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large")


def to_coco_results(detections: list[dict[str, Tensor]], targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """torchvision detections (boxes x0, y0, x1, y1; labels; scores) -> COCO results (bbox x, y, width, height)."""
    results = []
    for detection, target in zip(detections, targets, strict=True):
        boxes = detection["boxes"].float()
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()
        for box, label, score in zip(boxes, detection["labels"].tolist(), detection["scores"].tolist(), strict=True):
            results.append({"image_id": int(target["image_id"]), "category_id": label, "bbox": box, "score": score,
                            "file_name": target["name"]})
    return results


def coco_metrics(ground_truth: dict[str, list], results: list[dict[str, Any]]) -> dict[str, float]:
    """COCO's twelve numbers by name, 0..1; NaN where the ground truth has nothing to find.

    `ground_truth` is a COCO dictionary (images, annotations, categories), `results` a list of COCO results.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco(ground_truth)
        # loadRes cannot take an empty list (IndexError), but an empty COCO object is a right one.
        found = truth.loadRes(results) if results else coco({**ground_truth, "annotations": []})
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # pycocotools writes -1 for "nothing to find".
    return {name: float(value) if value >= 0 else math.nan
            for name, value in zip(METRICS, evaluation.stats, strict=True)}


def finite(metrics: dict[str, float]) -> dict[str, float | None]:
    """NaN -> None, as JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def coco(content: dict[str, list]) -> COCO:
    """An indexed pycocotools object from a COCO dictionary."""
    indexed = COCO()
    indexed.dataset = content
    indexed.createIndex()
    return indexed

"""Detections and ground truth, both as COCO dictionaries -> COCO's numbers, and whom a detector misses.

Boxes are matched by pycocotools, always. Log-average miss rate and recall are read from one such matching, in which
every box of the truth has the score at which it is found: so they cost nothing to compute again on other frames.
"""

import contextlib
import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

# COCOeval.stats in its order: average precision and recall over IoU 0.50:0.95 unless named, by box area (small < 32^2,
# medium < 96^2 square pixels of the stored image) and by the number of detections allowed in an image.
METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
           "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large")

REFERENCE_FALSE_POSITIVES = np.logspace(-2, 0, 9)  # per image; of the log-average miss rate
LOWEST_MISS_RATE = 1e-10  # its logarithm is finite
WORKING_POINT = 0.1  # false positives per image, at which recall is given
TALL = 50  # px; the height from which CityPersons calls a pedestrian reasonable
# Bands of AP and recall, the upper end left out: of box heights in px, and of distances in m.
HEIGHTS = {"0_50px": (0, 50), "50_100px": (50, 100), "100px_up": (100, math.inf)}
DISTANCES = {"0_25m": (0, 25), "25_50m": (25, 50), "50m_up": (50, math.inf)}


@dataclass(frozen=True)
class Matches:
    """One category's detections and truth on a list, matched at IoU 0.5. Detections that an ignore region or a box
    that does not count has absorbed are left out."""

    frames: int
    detections: list[dict[str, Any]]  # [D], COCO results, the best first
    score: np.ndarray  # [D], theirs
    hit: np.ndarray  # [D] bool
    detection_frame: np.ndarray  # [D] int, the place of the frame
    found_at: np.ndarray  # [T], of boxes that count: the score of the detection that found it, -inf where none did
    truth_frame: np.ndarray  # [T] int
    truth: list[dict[str, Any]]  # [T], their annotations


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
    evaluation = evaluator(ground_truth, results)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # pycocotools writes -1 for "nothing to find".
    return {name: float(value) if value >= 0 else math.nan
            for name, value in zip(METRICS, evaluation.stats, strict=True)}


def finite(value: Any) -> Any:
    """NaN -> None in numbers and in what is nested of them, as JSON has no NaN."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None


def evaluator(ground_truth: dict[str, list], results: list[dict[str, Any]]) -> COCOeval:
    """pycocotools' COCOeval, not yet run, on copies of the annotations, as it writes into them.

    The results become a COCO object as `COCO.loadRes` makes it, which cannot take an empty list (IndexError).
    """
    contents = []
    for annotations in (ground_truth["annotations"], [
            {**result, "id": number, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0}
            for number, result in enumerate(results, start=1)]):
        contents.append(COCO())
        contents[-1].dataset = {**ground_truth, "annotations": [dict(annotation) for annotation in annotations]}
        with contextlib.redirect_stdout(io.StringIO()):
            contents[-1].createIndex()
    return COCOeval(*contents, "bbox")


def set_areas(evaluation: COCOeval, of_truth: Callable[[dict], float], of_result: Callable[[dict], float]) -> None:
    """Make pycocotools' limits of area those of another quantity."""
    for content, quantity in ((evaluation.cocoGt, of_truth), (evaluation.cocoDt, of_result)):
        for annotation in content.anns.values():
            annotation["area"] = quantity(annotation)


def height(annotation: dict[str, Any]) -> float:
    """Of a box, px of the stored image."""
    return annotation["bbox"][3]


def distance(annotation: dict[str, Any]) -> float:
    """In m; -1, which lies in no band, where the labels don't say it."""
    known = annotation.get("distance")
    return -1.0 if known is None else known


def average_precision_in(band: tuple[float, float], ground_truth: dict[str, list], results: list[dict[str, Any]],
                         of_truth: Callable[[dict], float], of_result: Callable[[dict], float]) -> float:
    """COCO's AP of the truth whose quantity lies in a band, NaN where there is none. Other truth absorbs detections; a
    detection that finds nobody counts where its own quantity lies in the band."""
    low, high = band
    evaluation = evaluator(ground_truth, results)
    set_areas(evaluation, of_truth, of_result)
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[low, np.nextafter(high, low)]], ["all"]
    evaluation.params.maxDets = [100]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    defined = evaluation.eval["precision"][evaluation.eval["precision"] > -1]
    return float(defined.mean()) if defined.size else math.nan


def match(ground_truth: dict[str, list], results: list[dict[str, Any]], category: int, least_height: float = 0.0
          ) -> Matches:
    """Match by pycocotools, at IoU 0.5 and with every detection, best first. Truth lower than `least_height` px and
    crowds absorb detections instead of counting; a detection that is lower and finds nobody does not count either."""
    evaluation = evaluator(ground_truth, results)
    set_areas(evaluation, height, height)
    evaluation.params.iouThrs = np.array([0.5])
    evaluation.params.maxDets = [max(1, len(results))]
    evaluation.params.catIds = [category]
    evaluation.params.areaRng = [[least_height, math.inf]]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    detections, hits, detection_frames, found_at, truth_frames, annotations = [], [], [], [], [], []
    for place, image in enumerate(evaluation.evalImgs):
        if image is None:
            continue
        counts = ~image["dtIgnore"][0].astype(bool)
        detections += [evaluation.cocoDt.anns[number] for number in np.array(image["dtIds"], int)[counts]]
        hits += (image["dtMatches"][0] > 0)[counts].tolist()
        detection_frames += [place] * int(counts.sum())
        score_of = dict(zip(image["dtIds"], image["dtScores"], strict=True))
        for number, detection, ignored in zip(image["gtIds"], image["gtMatches"][0], image["gtIgnore"], strict=True):
            if not ignored:
                found_at.append(score_of[int(detection)] if detection else -math.inf)
                truth_frames.append(place)
                annotations.append(evaluation.cocoGt.anns[number])
    scores = np.array([one["score"] for one in detections])
    best_first = np.argsort(-scores, kind="stable")
    return Matches(len(evaluation.evalImgs), [detections[place] for place in best_first], scores[best_first],
                   np.array(hits, bool)[best_first], np.array(detection_frames, int)[best_first], np.array(found_at),
                   np.array(truth_frames, int), annotations)


def least_scores(matches: Matches, false_positives: np.ndarray, times: np.ndarray) -> np.ndarray:
    """For each rate of false positives per image, the lowest score at which there are no more; infinite where the best
    detections are more false already. Frames count `times` (`[frames]`)."""
    scores, false = matches.score, ~matches.hit * times[matches.detection_frame]
    last_of_score = np.append(scores[1:] != scores[:-1], True)[: len(scores)]
    rates = np.cumsum(false)[last_of_score] / times.sum()
    allowed = np.searchsorted(rates, false_positives, side="right")
    return np.append(math.inf, scores[last_of_score])[allowed]


def log_average_miss_rate(matches: Matches, times: np.ndarray | None = None) -> float:
    """MR^-2: the geometric mean of the miss rates at nine false-positive rates from 0.01 to 1 per image, evenly spaced
    in their logarithm; 0..1, lower is better, NaN where there is nobody to find.

    Dollar et al. 2012. At each rate it takes the last point of the curve that does not exceed it, as CityPersons does,
    and a miss rate of 1 where even the first point does. With `times` (`[frames]`) a frame counts so many times.
    """
    times = np.ones(matches.frames) if times is None else times
    people = times[matches.truth_frame]
    if not people.sum():
        return math.nan
    limits = least_scores(matches, REFERENCE_FALSE_POSITIVES, times)
    misses = (matches.found_at[:, None] < limits).T @ people / people.sum()
    return float(np.exp(np.mean(np.log(np.maximum(misses, LOWEST_MISS_RATE)))))


def recall(matches: Matches, wanted: np.ndarray, false_positives: float = WORKING_POINT,
           times: np.ndarray | None = None) -> float:
    """The share of the `wanted` truth (`[T]` bool) found where all of the list has so many false positives per image;
    NaN where nobody is wanted. With `times` (`[frames]`) a frame counts so many times."""
    times = np.ones(matches.frames) if times is None else times
    people = times[matches.truth_frame] * wanted
    if not people.sum():
        return math.nan
    [limit] = least_scores(matches, np.array([false_positives]), times)
    return float((matches.found_at >= limit) @ people / people.sum())


def unseen_by_rgb(annotations: list[dict[str, Any]]) -> np.ndarray:
    """Whom the labels call invisible in RGB and visible in the gated slices: bool `[T]`."""
    return np.array([one.get("visible_rgb") is False and one.get("visible_gated") is True for one in annotations], bool)


def miss_metrics(ground_truth: dict[str, list], results: list[dict[str, Any]]) -> dict[str, float]:
    """Whom a detector misses, by name, means over the categories that have anybody: log-average miss rate of all and of
    the tall; recall at 0.1 false positives per image of all, and of those whom the RGB camera does not see, with their
    number; recall and AP of each band of heights and distances. NaN where there is nobody.

    A detection that finds nobody has a height but no distance: it counts in every band of distances.
    """
    rows = []
    for category in (one["id"] for one in ground_truth["categories"]):
        everyone = match(ground_truth, results, category)
        unseen = unseen_by_rgb(everyone.truth)
        measured = [(HEIGHTS, np.array([height(one) for one in everyone.truth])),
                    (DISTANCES, np.array([distance(one) for one in everyone.truth]))]
        rows.append({
            "MR": log_average_miss_rate(everyone),
            "MR_tall": log_average_miss_rate(match(ground_truth, results, category, TALL)),
            "recall": recall(everyone, np.ones(len(everyone.truth), bool)),
            **{f"recall_{band}": recall(everyone, (low <= values) & (values < high))
               for bands, values in measured for band, (low, high) in bands.items()},
            "recall_unseen": recall(everyone, unseen),
            "unseen": float(unseen.sum()),
        })
    means = {name: mean_of_defined([row[name] for row in rows]) for name in rows[0]}
    aps = {f"AP_{band}": average_precision_in(limits, ground_truth, results, height, height)
           for band, limits in HEIGHTS.items()}
    aps |= {f"AP_{band}": average_precision_in(limits, ground_truth, results, distance, lambda _, low=limits[0]: low)
            for band, limits in DISTANCES.items()}
    return {**means, **aps, "unseen": float(sum(row["unseen"] for row in rows))}


def mean_of_defined(values: Iterable[float]) -> float:
    """The mean of those that are not NaN; NaN where all are."""
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan

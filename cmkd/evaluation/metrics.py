"""COCO's numbers, log-average miss rate and recall of the results on a list.

pycocotools matches the boxes, always. Miss rate and recall are computed from one such matching,
which gives every ground-truth box the score at which it is found; computing them again for other
frames costs almost nothing. `frame_counts` `[frames]` says how many times each frame counts.
"""

import contextlib
import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Results = list[dict[str, Any]]  # COCO's: image_id, category_id, bbox (x, y, width, height), score
ResultsByList = dict[str, dict[str, Results]]  # by list, then by the detector's title
GroundTruth = dict[str, list]  # a COCO dictionary: images, annotations, categories
MetricsByList = dict[str, dict[str, dict[str, float]]]  # by list, detector and metric

# COCOeval.stats in its order: average precision and recall over IoU 0.50:0.95 unless named, by box
# area (small < 32^2, medium < 96^2 square pixels of the stored image) and by the number of
# detections allowed in an image.
METRICS = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR_1",
    "AR_10",
    "AR_100",
    "AR_small",
    "AR_medium",
    "AR_large",
)

REFERENCE_FALSE_POSITIVES = np.logspace(-2, 0, 9)  # per image, for the log-average miss rate
LOWEST_MISS_RATE = 1e-10  # in place of 0, which has no logarithm
WORKING_POINT = 0.1  # false positives per image at which recall is given
TALL = 50  # px: CityPersons calls a pedestrian reasonable from this height on
# Bands of box height in px and of distance in m; the upper end is excluded.
HEIGHTS = {"0_50px": (0, 50), "50_100px": (50, 100), "100px_up": (100, math.inf)}
DISTANCES = {"0_25m": (0, 25), "25_50m": (25, 50), "50m_up": (50, math.inf)}


@dataclass(frozen=True)
class Matches:
    """One category's detections and ground truth on a list, matched at IoU 0.5.

    Without the detections that match an ignore region or a box that does not count.
    """

    frames: int
    detections: Results  # [D], best first
    score: np.ndarray  # [D]
    hit: np.ndarray  # [D] bool
    detection_frame: np.ndarray  # [D] int, index of the frame
    found_at: np.ndarray  # [T], score of the detection that finds each box; -inf if none does
    truth_frame: np.ndarray  # [T] int
    truth: list[dict[str, Any]]  # [T], the annotations that count


def coco_metrics(ground_truth: GroundTruth, results: Results) -> dict[str, float]:
    """COCO's twelve numbers by name, 0..1; NaN if the ground truth has nothing to find."""
    evaluation = evaluator(ground_truth, results)
    with silent():
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # pycocotools writes -1 for "nothing to find".
    return {
        name: float(value) if value >= 0 else math.nan
        for name, value in zip(METRICS, evaluation.stats, strict=True)
    }


def none_for_nan(value: Any) -> Any:
    """A value for JSON, which has no NaN and no infinity: they become None, at any depth."""
    if isinstance(value, dict):
        return {name: none_for_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [none_for_nan(one) for one in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None


def silent() -> contextlib.redirect_stdout:
    """A `with` block without pycocotools' reports on stdout."""
    return contextlib.redirect_stdout(io.StringIO())


def evaluator(ground_truth: GroundTruth, results: Results) -> COCOeval:
    """pycocotools' COCOeval, not run yet. It writes into annotations, so it gets copies.

    The results become a COCO object as in `COCO.loadRes`, which cannot take an empty list
    (IndexError).
    """
    detections = [
        {**result, "id": number, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0}
        for number, result in enumerate(results, start=1)
    ]
    contents = []
    for annotations in (ground_truth["annotations"], detections):
        content = COCO()
        content.dataset = {**ground_truth, "annotations": [dict(one) for one in annotations]}
        with silent():
            content.createIndex()
        contents.append(content)
    return COCOeval(*contents, "bbox")


def set_areas(
    evaluation: COCOeval, of_truth: Callable[[dict], float], of_result: Callable[[dict], float]
) -> None:
    """Replace the areas by another quantity, which pycocotools' area ranges then limit."""
    for content, quantity in ((evaluation.cocoGt, of_truth), (evaluation.cocoDt, of_result)):
        for annotation in content.anns.values():
            annotation["area"] = quantity(annotation)


def box_height(annotation: dict[str, Any]) -> float:
    """Height of a box in px of the stored image."""
    return annotation["bbox"][3]


def distance_of(annotation: dict[str, Any]) -> float:
    """Distance of a box in m; -1 if unknown, which is in no band."""
    distance = annotation.get("distance")
    return -1.0 if distance is None else distance


def average_precision_in(
    band: tuple[float, float],
    ground_truth: GroundTruth,
    results: Results,
    of_truth: Callable[[dict], float],
    of_result: Callable[[dict], float],
) -> float:
    """COCO's AP of the ground truth with a quantity within a band; NaN if there is none.

    Other boxes are ignored, with the detections that match them. A false positive counts if its
    own quantity is within the band.
    """
    low, high = band
    evaluation = evaluator(ground_truth, results)
    set_areas(evaluation, of_truth, of_result)
    evaluation.params.areaRng = [[low, np.nextafter(high, low)]]
    evaluation.params.areaRngLbl = ["all"]
    evaluation.params.maxDets = [100]
    with silent():
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else math.nan


def match(
    ground_truth: GroundTruth, results: Results, category: int, least_height: float = 0.0
) -> Matches:
    """Match with pycocotools, at IoU 0.5 and with every detection, best first.

    Crowds and boxes lower than `least_height` px do not count, nor do the detections that match
    them, nor false positives that are lower.
    """
    evaluation = evaluator(ground_truth, results)
    set_areas(evaluation, box_height, box_height)
    evaluation.params.iouThrs = np.array([0.5])
    evaluation.params.maxDets = [max(1, len(results))]
    evaluation.params.catIds = [category]
    evaluation.params.areaRng = [[least_height, math.inf]]
    with silent():
        evaluation.evaluate()
    detections, hits, detection_frames, found_at, truth_frames, truth = [], [], [], [], [], []
    for frame, image in enumerate(evaluation.evalImgs):
        if image is None:
            continue
        counts = ~image["dtIgnore"][0].astype(bool)
        counted = np.array(image["dtIds"], int)[counts]
        detections += [evaluation.cocoDt.anns[number] for number in counted]
        hits += (image["dtMatches"][0] > 0)[counts].tolist()
        detection_frames += [frame] * len(counted)
        score_of = dict(zip(image["dtIds"], image["dtScores"], strict=True))
        for number, detection, ignored in zip(
            image["gtIds"], image["gtMatches"][0], image["gtIgnore"], strict=True
        ):
            if not ignored:
                found_at.append(score_of[int(detection)] if detection else -math.inf)
                truth_frames.append(frame)
                truth.append(evaluation.cocoGt.anns[number])
    scores = np.array([one["score"] for one in detections])
    best_first = np.argsort(-scores, kind="stable")
    return Matches(
        frames=len(evaluation.evalImgs),
        detections=[detections[index] for index in best_first],
        score=scores[best_first],
        hit=np.array(hits, bool)[best_first],
        detection_frame=np.array(detection_frames, int)[best_first],
        found_at=np.array(found_at),
        truth_frame=np.array(truth_frames, int),
        truth=truth,
    )


def least_scores(
    matches: Matches, false_positives: np.ndarray, frame_counts: np.ndarray
) -> np.ndarray:
    """The lowest score at which each rate of false positives per image is not exceeded.

    Infinite if the best detections exceed it already.
    """
    scores, false = matches.score, ~matches.hit * frame_counts[matches.detection_frame]
    last_of_score = np.append(scores[1:] != scores[:-1], True)[: len(scores)]
    rates = np.cumsum(false)[last_of_score] / frame_counts.sum()
    allowed = np.searchsorted(rates, false_positives, side="right")
    return np.append(math.inf, scores[last_of_score])[allowed]


def log_average_miss_rate(matches: Matches, frame_counts: np.ndarray | None = None) -> float:
    """MR^-2, 0..1, lower is better; NaN if there is nobody to find.

    The geometric mean of the miss rates at nine rates of false positives per image, from 0.01 to 1,
    evenly spaced in their logarithm (Dollar et al. 2012). At each rate it takes the last point of
    the curve that does not exceed it, as CityPersons does, and a miss rate of 1 if the first point
    exceeds it.
    """
    if frame_counts is None:
        frame_counts = np.ones(matches.frames)
    boxes = frame_counts[matches.truth_frame]
    if not boxes.sum():
        return math.nan
    limits = least_scores(matches, REFERENCE_FALSE_POSITIVES, frame_counts)
    miss_rates = (matches.found_at[:, None] < limits).T @ boxes / boxes.sum()
    return float(np.exp(np.mean(np.log(np.maximum(miss_rates, LOWEST_MISS_RATE)))))


def recall(
    matches: Matches,
    wanted: np.ndarray,
    false_positives: float = WORKING_POINT,
    frame_counts: np.ndarray | None = None,
) -> float:
    """The share of the wanted boxes (`[T]` bool) that are found; NaN if none is wanted.

    At the score at which the whole list has so many false positives per image.
    """
    if frame_counts is None:
        frame_counts = np.ones(matches.frames)
    boxes = frame_counts[matches.truth_frame] * wanted
    if not boxes.sum():
        return math.nan
    [limit] = least_scores(matches, np.array([false_positives]), frame_counts)
    return float((matches.found_at >= limit) @ boxes / boxes.sum())


def false_positives_at(matches: Matches, wanted_recall: float) -> float:
    """False positives per image at the highest score at which a recall, 0..1, is reached.

    NaN if it is never reached.
    """
    found = np.sort(matches.found_at[np.isfinite(matches.found_at)])[::-1]
    needed = math.ceil(wanted_recall * len(matches.truth) - 1e-9)
    if needed > len(found):
        return math.nan
    limit = found[needed - 1] if needed else math.inf
    return float(np.sum(~matches.hit & (matches.score >= limit)) / matches.frames)


def unseen_by_rgb(annotations: list[dict[str, Any]]) -> np.ndarray:
    """Which boxes are labelled invisible in RGB and visible in the gated slices: bool `[T]`."""
    unseen = [
        one.get("visible_rgb") is False and one.get("visible_gated") is True for one in annotations
    ]
    return np.array(unseen, bool)


def miss_metrics(ground_truth: GroundTruth, results: Results) -> dict[str, float]:
    """Miss rates and recalls by name: means over the categories, NaN if there is nobody.

    MR and MR_tall are log-average miss rates. Recall is at 0.1 false positives per image: of all
    boxes, of each band of height and distance, and of those unseen by RGB; `unseen` is their
    number. AP is given per band. A false positive has a height but no distance: it counts in every
    band of distance.
    """
    by_category = [
        category_metrics(ground_truth, results, category["id"])
        for category in ground_truth["categories"]
    ]
    metrics = {
        name: mean_of_defined([values[name] for values in by_category]) for name in by_category[0]
    }
    for band, limits in HEIGHTS.items():
        metrics[f"AP_{band}"] = average_precision_in(
            limits, ground_truth, results, box_height, box_height
        )
    for band, limits in DISTANCES.items():
        metrics[f"AP_{band}"] = average_precision_in(
            limits, ground_truth, results, distance_of, lambda _, low=limits[0]: low
        )
    metrics["unseen"] = float(sum(values["unseen"] for values in by_category))
    return metrics


def category_metrics(
    ground_truth: GroundTruth, results: Results, category: int
) -> dict[str, float]:
    """The miss rates and recalls of one category."""
    matches = match(ground_truth, results, category)
    metrics = {
        "MR": log_average_miss_rate(matches),
        "MR_tall": log_average_miss_rate(match(ground_truth, results, category, TALL)),
        "recall": recall(matches, np.ones(len(matches.truth), bool)),
    }
    for bands, quantity in ((HEIGHTS, box_height), (DISTANCES, distance_of)):
        values = np.array([quantity(one) for one in matches.truth])
        for band, (low, high) in bands.items():
            metrics[f"recall_{band}"] = recall(matches, (low <= values) & (values < high))
    unseen = unseen_by_rgb(matches.truth)
    return metrics | {"recall_unseen": recall(matches, unseen), "unseen": float(unseen.sum())}


def mean_of_defined(values: Iterable[float]) -> float:
    """The mean of the values that are not NaN; NaN if all are."""
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan

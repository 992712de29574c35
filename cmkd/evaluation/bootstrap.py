"""Detectors compared on the same frames, with bootstrap intervals.

pycocotools matches the boxes once. A bootstrap sample then draws frames with replacement, the same
ones for every detector (paired), and all metrics are computed from those matches. If each detector
was trained several times, a sample draws trainings too. `frame_counts` `[frames]` says how many
times each frame counts.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.cocoeval import Params
from tqdm import tqdm

from cmkd.evaluation.metrics import (
    GroundTruth,
    Results,
    evaluator,
    log_average_miss_rate,
    match,
    mean_of_defined,
    recall,
    silent,
    unseen_by_rgb,
)

RECALL_POINTS = Params("bbox").recThrs  # COCO's 101, 0..1
LEAST_FRAMES = 10  # samples of fewer frames are too much alike for an interval
HIGHER_IS_BETTER = {"AP": True, "AP50": True, "MR": False, "recall": True, "recall_unseen": True}


@dataclass(frozen=True)
class RankedDetections:
    """One category's detections as COCO's average precision needs them, best first."""

    hit: np.ndarray  # [10 IoU thresholds, D] bool
    false: np.ndarray  # [10, D] bool
    frame: np.ndarray  # [D] int, index of the frame
    boxes: np.ndarray  # [frames], ground-truth boxes that count


def rank_detections(ground_truth: GroundTruth, results: Results, category: int) -> RankedDetections:
    """Match as COCOeval does for its AP: all areas, the 100 best detections of a frame."""
    evaluation = evaluator(ground_truth, results)
    evaluation.params.catIds = [category]
    evaluation.params.areaRng, evaluation.params.maxDets = evaluation.params.areaRng[:1], [100]
    with silent():
        evaluation.evaluate()
    nothing = np.zeros((len(evaluation.params.iouThrs), 0))
    empty = {"dtScores": [], "dtMatches": nothing, "dtIgnore": nothing, "gtIgnore": np.zeros(0)}
    images = [image or empty for image in evaluation.evalImgs]
    scores = np.concatenate([image["dtScores"] for image in images])
    order = np.argsort(-scores, kind="mergesort")
    matched = np.concatenate([image["dtMatches"] for image in images], axis=1)[:, order] > 0
    ignored = np.concatenate([image["dtIgnore"] for image in images], axis=1)[:, order].astype(bool)
    frame = np.repeat(np.arange(len(images)), [len(image["dtScores"]) for image in images])[order]
    boxes = np.array([np.sum(np.asarray(image["gtIgnore"]) == 0) for image in images])
    return RankedDetections(matched & ~ignored, ~matched & ~ignored, frame, boxes)


def average_precision(
    ranked: RankedDetections, frame_counts: np.ndarray | None = None
) -> np.ndarray:
    """COCO's AP at each IoU threshold, `[10]`; NaN if there is nobody.

    The mean over 101 recalls of the best precision at that recall or a higher one.
    """
    if frame_counts is None:
        frame_counts = np.ones(len(ranked.boxes))
    boxes = ranked.boxes @ frame_counts
    if not boxes:
        return np.full(len(ranked.hit), math.nan)
    counts = frame_counts[ranked.frame]
    hits, false = np.cumsum(ranked.hit * counts, axis=1), np.cumsum(ranked.false * counts, axis=1)
    recalls, precision = hits / boxes, hits / np.maximum(hits + false, np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    averages = []
    for best, reached in zip(envelope, recalls, strict=True):
        at_points = np.append(best, 0)[np.searchsorted(reached, RECALL_POINTS)]
        averages.append(at_points.mean())
    return np.array(averages)


class MatchedResults:
    """One detector's results on a list, matched once; metrics of any bootstrap sample of frames."""

    def __init__(self, ground_truth: GroundTruth, results: Results) -> None:
        categories = [category["id"] for category in ground_truth["categories"]]
        self.ranked = [rank_detections(ground_truth, results, category) for category in categories]
        self.matches = [match(ground_truth, results, category) for category in categories]
        self.everyone = [np.ones(len(matches.truth), bool) for matches in self.matches]
        self.unseen = [unseen_by_rgb(matches.truth) for matches in self.matches]

    def metrics(self, frame_counts: np.ndarray | None = None) -> dict[str, float]:
        """The metrics by name: means over the categories that have anybody."""
        aps = np.array([average_precision(ranked, frame_counts) for ranked in self.ranked])
        by_category = {
            "AP": aps.mean(axis=1),
            "AP50": aps[:, 0],
            "MR": [log_average_miss_rate(matches, frame_counts) for matches in self.matches],
            "recall": self.recalls(self.everyone, frame_counts),
            "recall_unseen": self.recalls(self.unseen, frame_counts),
        }
        return {name: mean_of_defined(values) for name, values in by_category.items()}

    def recalls(self, wanted: list[np.ndarray], frame_counts: np.ndarray | None) -> list[float]:
        """The recall of the wanted boxes of each category."""
        return [
            recall(matches, mask, frame_counts=frame_counts)
            for matches, mask in zip(self.matches, wanted, strict=True)
        ]


def mean_metrics(trainings: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over the trainings for which it is defined."""
    return {
        name: mean_of_defined([metrics[name] for metrics in trainings]) for name in HIGHER_IS_BETTER
    }


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of the samples' values.

    NaN if more than 2.5 % of them are undefined, because the interval's end could lie there.
    """
    defined = values[np.isfinite(values)]
    if len(defined) < 0.975 * len(values):
        return math.nan, math.nan
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def compare_detectors(
    ground_truth: GroundTruth,
    runs: dict[str, list[Results]],
    baseline: str,
    teacher: str | None,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """By detector and metric: value, difference from the baseline, gap closed, and intervals.

    An entry has `value`, `difference`, `gap_closed` and the 95 % interval of each, `interval`,
    `difference_interval` and `gap_closed_interval`.

    `runs` has the results of each detector, one entry per training, and values are means over them;
    `baseline` and `teacher` are two of its keys. All detectors get the same bootstrap samples, of
    frames and of training indices; index i must be the same seed for every detector. `gap_closed`
    is the share of the way from baseline to teacher, if there is a teacher; undefined if the
    teacher is not better. The intervals of fewer than `LEAST_FRAMES` frames are undefined.

    Raises `ValueError` if the detectors were not trained equally often.
    """
    trainings = {name: len(results) for name, results in runs.items()}
    if len(set(trainings.values())) > 1:
        raise ValueError(f"every detector needs as many trainings as the others: {trainings}")
    matched = {
        name: [MatchedResults(ground_truth, results) for results in results_of_trainings]
        for name, results_of_trainings in runs.items()
    }
    whole = {
        name: mean_metrics([training.metrics() for training in each])
        for name, each in matched.items()
    }
    sampled = sample_metrics(matched, len(ground_truth["images"]), samples, seed)

    comparison: dict[str, dict[str, Any]] = {}
    for name in matched:
        comparison[name] = {}
        for metric, higher in HIGHER_IS_BETTER.items():
            value, base = whole[name][metric], whole[baseline][metric]
            own, bases = sampled[name][metric], sampled[baseline][metric]
            entry = comparison[name][metric] = {
                "value": value,
                "interval": interval(own),
                "difference": value - base,
                "difference_interval": interval(own - bases),
            }
            if teacher:
                shares = gap_closed(value, base, whole[teacher][metric], higher)
                entry["gap_closed"] = float(shares[0])
                shares = gap_closed(own, bases, sampled[teacher][metric], higher)
                entry["gap_closed_interval"] = interval(shares)
    return comparison


def sample_metrics(
    matched: dict[str, list[MatchedResults]], frames: int, samples: int, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """The metrics of each bootstrap sample, `[samples]` by detector and metric.

    NaN if there are fewer than `LEAST_FRAMES` frames.
    """
    random = np.random.default_rng(seed)
    trainings = len(next(iter(matched.values())))
    sampled = {
        name: {metric: np.full(samples, math.nan) for metric in HIGHER_IS_BETTER}
        for name in matched
    }
    if frames < LEAST_FRAMES:
        return sampled
    for sample in tqdm(range(samples), "bootstrap", unit="sample", leave=False, disable=None):
        frame_counts = random.multinomial(frames, np.full(frames, 1 / frames)).astype(float)
        drawn = random.integers(trainings, size=trainings) if trainings > 1 else [0]
        for name, each in matched.items():
            metrics_of = {index: each[index].metrics(frame_counts) for index in set(drawn)}
            means = mean_metrics([metrics_of[index] for index in drawn])
            for metric, value in means.items():
                sampled[name][metric][sample] = value
    return sampled


def gap_closed(value: Any, base: Any, teacher: Any, higher_is_better: bool) -> np.ndarray:
    """The share of the way from the baseline's to the teacher's value, `[1]` or `[samples]`.

    NaN if the teacher is not better.
    """
    gap = np.atleast_1d(teacher - base if higher_is_better else base - teacher)
    gain = np.atleast_1d(value - base if higher_is_better else base - value)
    return np.divide(gain, gap, out=np.full(len(gap), math.nan), where=gap > 0)

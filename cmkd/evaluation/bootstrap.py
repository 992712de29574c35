"""Several detectors on the same frames: what each scores, and whether a difference is more than the frames' chance.

Boxes are matched once, by pycocotools. Then frames are drawn again and again with replacement, the same ones for every
detector (paired), and all numbers computed from the matches that stand: 95 % of the draws lie in the interval. Where
each detector was trained several times, trainings are drawn too.
"""

import contextlib
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.cocoeval import Params
from tqdm import tqdm

from cmkd.evaluation.metrics import evaluator, log_average_miss_rate, match, mean_of_defined, recall, unseen_by_rgb

RECALLS = Params("bbox").recThrs
HIGHER_IS_BETTER = {"AP": True, "AP50": True, "MR": False, "recall": True, "recall_unseen": True}


@dataclass(frozen=True)
class Precisions:
    """One category's detections as COCO's average precision needs them, best first."""

    hit: np.ndarray  # [10 IoU thresholds, D] bool
    false: np.ndarray  # [10, D] bool
    frame: np.ndarray  # [D] int, the place of the frame
    people: np.ndarray  # [frames], of the truth that counts


def precisions(ground_truth: dict[str, list], results: list[dict[str, Any]], category: int) -> Precisions:
    """Matched as COCOeval does for its AP: all areas, the 100 best detections of a frame."""
    evaluation = evaluator(ground_truth, results)
    evaluation.params.catIds = [category]
    evaluation.params.areaRng, evaluation.params.maxDets = evaluation.params.areaRng[:1], [100]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    thresholds = len(evaluation.params.iouThrs)
    images = [image or {"dtScores": [], "dtMatches": np.zeros((thresholds, 0)), "dtIgnore": np.zeros((thresholds, 0)),
                        "gtIgnore": np.zeros(0)} for image in evaluation.evalImgs]
    order = np.argsort(-np.concatenate([image["dtScores"] for image in images]), kind="mergesort")
    matched = np.concatenate([image["dtMatches"] for image in images], axis=1)[:, order] > 0
    ignored = np.concatenate([image["dtIgnore"] for image in images], axis=1)[:, order].astype(bool)
    frame = np.repeat(np.arange(len(images)), [len(image["dtScores"]) for image in images])[order]
    people = np.array([np.sum(np.asarray(image["gtIgnore"]) == 0) for image in images])
    return Precisions(matched & ~ignored, ~matched & ~ignored, frame, people)


def average_precision(found: Precisions, times: np.ndarray | None = None) -> np.ndarray:
    """COCO's AP at each IoU threshold, `[10]`: at 101 recalls the best precision at that recall or a higher one, in the
    mean. NaN where there is nobody. With `times` (`[frames]`) a frame counts so many times."""
    times = np.ones(len(found.people)) if times is None else times
    people = found.people @ times
    if not people:
        return np.full(len(found.hit), math.nan)
    weight = times[found.frame]
    hits, false = np.cumsum(found.hit * weight, axis=1), np.cumsum(found.false * weight, axis=1)
    recalls, precision = hits / people, hits / np.maximum(hits + false, np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return np.array([np.append(best, 0)[np.searchsorted(reached, RECALLS)].mean()
                     for best, reached in zip(envelope, recalls, strict=True)])


class Detected:
    """What one detector found on a list, ready to be scored on any draw of its frames."""

    def __init__(self, ground_truth: dict[str, list], results: list[dict[str, Any]]) -> None:
        categories = [category["id"] for category in ground_truth["categories"]]
        self.precisions = [precisions(ground_truth, results, category) for category in categories]
        self.matches = [match(ground_truth, results, category) for category in categories]
        self.everyone = [np.ones(len(matches.truth), bool) for matches in self.matches]
        self.unseen = [unseen_by_rgb(matches.truth) for matches in self.matches]

    def scores(self, times: np.ndarray | None = None) -> dict[str, float]:
        """By name, means over the categories that have anybody. With `times` a frame counts so many times."""
        aps = np.array([average_precision(found, times) for found in self.precisions])
        return {name: mean_of_defined(values) for name, values in {
            "AP": aps.mean(axis=1),
            "AP50": aps[:, 0],
            "MR": [log_average_miss_rate(matches, times) for matches in self.matches],
            "recall": [recall(*pair, times=times) for pair in zip(self.matches, self.everyone, strict=True)],
            "recall_unseen": [recall(*pair, times=times) for pair in zip(self.matches, self.unseen, strict=True)],
        }.items()}


def mean_scores(scores: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each score over those in which it is defined."""
    return {name: mean_of_defined([one[name] for one in scores]) for name in HIGHER_IS_BETTER}


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of the draws; NaN where a value is undefined in more than 2.5 % of them, as the interval's end
    could lie there."""
    defined = values[np.isfinite(values)]
    if len(defined) < 0.975 * len(values):
        return math.nan, math.nan
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def compare(ground_truth: dict[str, list], runs: dict[str, list[list[dict[str, Any]]]], baseline: str,
            teacher: str | None, samples: int = 1000, seed: int = 0) -> dict[str, dict[str, Any]]:
    """By detector and score: `value`, its 95 % `interval`, the `difference` from the baseline with its interval, and,
    where there is a teacher, the share of the way from baseline to teacher, `gap_closed`, with its interval.

    `runs` are the COCO results of each detector, once for each time that it was trained, of which a score is the mean;
    `baseline` and `teacher` are two of its keys. The same draws of frames serve every detector, and the same draws of
    places in its list of trainings, which therefore stand for one seed each. A gap that a draw does not have (a teacher
    that is no better) leaves its share undefined there.
    """
    detected = {name: [Detected(ground_truth, results) for results in found] for name, found in runs.items()}
    frames = len(ground_truth["images"])
    random = np.random.default_rng(seed)
    [trainings] = {len(found) for found in runs.values()}
    whole = {name: mean_scores([one.scores() for one in found]) for name, found in detected.items()}
    draws = {name: {score: np.empty(samples) for score in HIGHER_IS_BETTER} for name in detected}
    for sample in tqdm(range(samples), "drawing frames", unit="draw", leave=False, disable=None):
        times = random.multinomial(frames, np.full(frames, 1 / frames)).astype(float)
        places = random.integers(trainings, size=trainings) if trainings > 1 else [0]
        for name, found in detected.items():
            scores = {place: found[place].scores(times) for place in set(places)}
            for score, value in mean_scores([scores[place] for place in places]).items():
                draws[name][score][sample] = value

    def gap_closed(value: Any, base: Any, top: Any, higher: bool) -> np.ndarray:
        gap = np.atleast_1d(top - base if higher else base - top)
        gain = np.atleast_1d(value - base if higher else base - value)
        return np.divide(gain, gap, out=np.full(len(gap), math.nan), where=gap > 0)

    table: dict[str, dict[str, Any]] = {}
    for name in detected:
        table[name] = {}
        for score, higher in HIGHER_IS_BETTER.items():
            value, base = whole[name][score], whole[baseline][score]
            mine, theirs = draws[name][score], draws[baseline][score]
            table[name][score] = {"value": value, "interval": interval(mine), "difference": value - base,
                                  "difference_interval": interval(mine - theirs)}
            if teacher:
                table[name][score]["gap_closed"] = float(gap_closed(value, base, whole[teacher][score], higher)[0])
                table[name][score]["gap_closed_interval"] = interval(
                    gap_closed(mine, theirs, draws[teacher][score], higher))
    return table

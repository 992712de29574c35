"""Which detections become labels: two scores for each class, chosen on a validation list."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from cmkd.evaluation.metrics import GroundTruth, Matches, Results, match
from cmkd.runtime.files import UserError

RECALL_WEIGHT = 2  # of the F score that chooses the doubtful ones
SHOWN = np.linspace(0.05, 0.95, 10)  # scores in the table, besides the chosen ones

Thresholds = dict[str, tuple[float, float]]  # class -> least score of sure and of doubtful boxes


@dataclass(frozen=True)
class Curve:
    """Precision and recall at IoU 0.5 of all detections with at least a score, the best first."""

    score: np.ndarray  # [S], every score that occurs
    precision: np.ndarray  # [S]
    recall: np.ndarray  # [S]

    def f_score(self, recall_weight: float = 1) -> np.ndarray:
        """The harmonic mean of precision and recall, `[S]`; recall weighs `recall_weight` times."""
        weight = recall_weight**2
        both = weight * self.precision + self.recall
        products = (1 + weight) * self.precision * self.recall
        return np.divide(products, both, out=np.zeros_like(both), where=both > 0)


def precision_and_recall(matches: Matches) -> Curve:
    """The curve of one category's matches; a tie of scores is one point."""
    last_of_score = np.append(matches.score[1:] != matches.score[:-1], True)[: len(matches.score)]
    hits = np.cumsum(matches.hit)[last_of_score]
    detections = np.flatnonzero(last_of_score) + 1
    return Curve(matches.score[last_of_score], hits / detections, hits / len(matches.truth))


def choose_thresholds(
    curve: Curve, name: str, list_name: str, precision: float | None = None
) -> tuple[float, float]:
    """The least score of sure boxes and of doubtful ones.

    Sure: the best F1, or the lowest score with at least a `precision`. Doubtful: the best F score
    in which recall weighs twice, at most the sure one. Of equal ones the highest. Raises
    `UserError`, also for a class of which nothing is found.
    """
    if not curve.precision.any():
        raise UserError(
            f"{list_name}: this network finds no {name}, so its labels would be worth nothing: "
            "name other --weights or another --val-list"
        )
    sure = curve.score[curve.f_score().argmax()]
    if precision is not None:
        reached = curve.score[curve.precision >= precision]
        if not len(reached):
            best = math.floor(curve.precision.max() * 1e4) / 1e4
            raise UserError(
                f"{list_name}: no score gives {name} a precision of {precision:g}; the best is "
                f"{best:g}: pass --precision {best:g}"
            )
        sure = reached.min()
    doubtful = curve.score[curve.f_score(RECALL_WEIGHT).argmax()]
    return float(sure), float(min(sure, doubtful))


def thresholds_on(
    truth: GroundTruth,
    results: Results,
    names: list[str],
    list_name: str,
    precision: float | None = None,
) -> tuple[Thresholds, list[dict[str, Any]]]:
    """The thresholds of every class, and the table of `table_of`.

    `names` has the classes in the order of the categories. Raises `UserError`, also for a class of
    which the list has no box.
    """
    thresholds, table = {}, []
    for category, name in enumerate(names, start=1):
        matches = match(truth, results, category)
        if not matches.truth:
            raise UserError(
                f"{list_name} has no {name}, so nothing tells how sure its labels are: name "
                "another --val-list, or pass --thresholds"
            )
        curve = precision_and_recall(matches)
        thresholds[name] = choose_thresholds(curve, name, list_name, precision)
        table += table_of(curve, name, *thresholds[name])
    return thresholds, table


def table_of(curve: Curve, name: str, sure: float, doubtful: float) -> list[dict[str, Any]]:
    """Precision, recall and F scores at some scores and at the chosen ones, the highest first."""
    rows = []
    for score in sorted({*SHOWN.tolist(), sure, doubtful}, reverse=True):
        index = int((curve.score >= score).sum()) - 1
        if index < 0:
            continue
        chosen = [word for word, own in (("sure", sure), ("doubtful", doubtful)) if own == score]
        rows.append(
            {
                "class": name,
                "score": score,
                "precision": float(curve.precision[index]),
                "recall": float(curve.recall[index]),
                "F1": float(curve.f_score()[index]),
                "F2": float(curve.f_score(RECALL_WEIGHT)[index]),
                "chosen": " and ".join(chosen),
            }
        )
    return rows

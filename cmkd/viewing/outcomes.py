"""Who is found in each frame, and in which frames networks disagree most."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from cmkd.evaluation.metrics import WORKING_POINT, GroundTruth, Results, least_scores, match


@dataclass(frozen=True)
class Outcome:
    """One detector on one frame: COCO results, and annotations of the ground truth."""

    hits: Results
    false_alarms: Results
    missed: list[dict[str, Any]]
    found: set[int]  # ids of the annotations that are not missed


@dataclass(frozen=True, order=True)
class Disagreement:
    """How many people of a frame are found by some networks only. `<` compares in this order."""

    gained: int  # found by a student, not by the baseline
    lost: int  # found by the baseline, not by every student
    any_two: int  # found by one network, not by another

    def __str__(self) -> str:
        parts = [
            (self.gained, "found by students but not the baseline"),
            (self.lost, "by the baseline but not all students"),
            (self.any_two, "by some networks only"),
        ]
        return "; ".join(f"{count} {text}" for count, text in parts if count) or "all find the same"


def outcomes_by_frame(
    ground_truth: GroundTruth, results: Results, least_score: float | None
) -> tuple[list[Outcome], dict[str, float]]:
    """One detector's outcome for each frame, and the score from which detections count.

    The score is by category: `least_score` if it is given, else that at which the list has 0.1
    false positives per image, as for recall. Detections on ignore regions are left out.
    """
    outcomes = [Outcome([], [], [], set()) for _ in ground_truth["images"]]
    limits = {}
    for category in ground_truth["categories"]:
        matches = match(ground_truth, results, category["id"])
        limit = least_score
        if limit is None:
            once_each = np.ones(matches.frames)
            limit = float(least_scores(matches, np.array([WORKING_POINT]), once_each)[0])
        limits[category["name"]] = limit
        for detection, hit, frame in zip(
            matches.detections, matches.hit, matches.detection_frame, strict=True
        ):
            own = outcomes[frame].hits if hit else outcomes[frame].false_alarms
            if detection["score"] >= limit:
                own.append(detection)
        for annotation, found_at, frame in zip(
            matches.truth, matches.found_at, matches.truth_frame, strict=True
        ):
            if found_at >= limit:
                outcomes[frame].found.add(annotation["id"])
            else:
                outcomes[frame].missed.append(annotation)
    return outcomes, limits


def disagreement(frame: dict[str, Outcome], baseline: str, students: list[str]) -> Disagreement:
    """Count the people that some networks find and others miss.

    `frame` has each network's outcome by title.
    """
    found = {title: outcome.found for title, outcome in frame.items()}
    by_any, by_all = set.union(*found.values()), set.intersection(*found.values())
    if not students:
        return Disagreement(0, 0, len(by_any - by_all))
    by_students = [found[title] for title in students]
    return Disagreement(
        gained=len(set.union(*by_students) - found[baseline]),
        lost=len(found[baseline] - set.intersection(*by_students)),
        any_two=len(by_any - by_all),
    )


def rank_frames(disagreements: list[Disagreement]) -> list[int]:
    """Frame indices: first the most gained, then the most lost, then the most found by some only.

    Frames with equal counts keep their order.
    """
    return sorted(range(len(disagreements)), key=disagreements.__getitem__, reverse=True)


def spread_over_conditions(ranked: list[int], conditions: list[list[str]], count: int) -> list[int]:
    """The first `count` frames of each condition, in the order of `ranked`.

    So a rare condition is not left out. `conditions` are those of each frame; frames without one
    count as one more condition.
    """
    taken: Counter[str] = Counter()
    chosen = []
    for index in ranked:
        own = conditions[index] or [""]
        if any(taken[condition] < count for condition in own):
            chosen.append(index)
            taken.update(own)
    return chosen

"""What detectors make of each frame: whom they find, and the frames in which that differs most."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cmkd.evaluation.metrics import WORKING_POINT, least_scores, match


@dataclass(frozen=True)
class Outcome:
    """What one detector makes of one frame: COCO results, and annotations of the truth (boxes x, y, width, height)."""

    hits: list[dict[str, Any]]
    false_alarms: list[dict[str, Any]]
    missed: list[dict[str, Any]]
    found: set[int]  # ids of the annotations that are not missed


@dataclass(frozen=True)
class Difference:
    """How many people of a frame some student finds and the baseline does not, and the other way; `any_two` counts
    those whom one detector finds and another does not."""

    gained: int
    lost: int
    any_two: int

    def __str__(self) -> str:
        parts = [(self.gained, "found by students, not the baseline"), (self.lost, "by the baseline, not all students"),
                 (self.any_two, "by some networks only")]
        return ", ".join(f"{count} {text}" for count, text in parts if count) or "all find the same"


def outcomes(truth: dict[str, list], results: list[dict[str, Any]], least_score: float | None
             ) -> tuple[list[Outcome], dict[str, float]]:
    """What a detector makes of each frame of a COCO dictionary, and from which score on a detection counts, by
    category: `least_score`, or, where that is None, the score at which the list has 0.1 false positives per image, as
    for recall. What an ignore region absorbs is no outcome."""
    frames = [Outcome([], [], [], set()) for _ in truth["images"]]
    limits = {}
    for category in truth["categories"]:
        matches = match(truth, results, category["id"])
        [limit] = (least_scores(matches, np.array([WORKING_POINT]), np.ones(matches.frames)) if least_score is None
                   else [least_score])
        limits[category["name"]] = float(limit)
        for detection, hit, frame in zip(matches.detections, matches.hit, matches.detection_frame, strict=True):
            if detection["score"] >= limit:
                (frames[frame].hits if hit else frames[frame].false_alarms).append(detection)
        for annotation, found_at, frame in zip(matches.truth, matches.found_at, matches.truth_frame, strict=True):
            if found_at >= limit:
                frames[frame].found.add(annotation["id"])
            else:
                frames[frame].missed.append(annotation)
    return frames, limits


def difference(frame: dict[str, Outcome], baseline: str, students: list[str]) -> Difference:
    """Of one frame's outcomes by title."""
    found = {title: outcome.found for title, outcome in frame.items()}
    by_students = [found[title] for title in students] or [set()]
    return Difference(len(set.union(*by_students) - found[baseline]),
                      len(found[baseline] - set.intersection(*by_students)) if students else 0,
                      len(set.union(*found.values()) - set.intersection(*found.values())))


def rank(differences: list[Difference]) -> list[int]:
    """Places of frames: first those in which students find most people whom the baseline misses, then those with most
    of the contrary, then with most found by one detector only; else in their order."""
    return sorted(range(len(differences)), key=lambda place: (-differences[place].gained, -differences[place].lost,
                                                              -differences[place].any_two))


def spread_over_conditions(ranked: list[int], conditions: list[list[str]], count: int) -> list[int]:
    """The first `count` places of each condition (`conditions`: of each frame), still as ranked, so that a rare one is
    not left out."""
    taken: dict[str, int] = {}
    chosen = []
    for place in ranked:
        own = conditions[place] or [""]
        if any(taken.get(condition, 0) < count for condition in own):
            chosen.append(place)
            taken.update({condition: taken.get(condition, 0) + 1 for condition in own})
    return chosen

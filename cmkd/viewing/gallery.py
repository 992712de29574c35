"""Several detectors side by side on the frames of a list, as a contact sheet or an HTML page."""

import math
from dataclasses import dataclass
from functools import cached_property

from PIL import Image
from tqdm import tqdm

from cmkd.evaluation.metrics import GroundTruth, Results
from cmkd.frames.layout import condition_lists
from cmkd.viewing.contact_sheet import contact_sheet
from cmkd.viewing.drawing import OUTCOME_LEGEND, outcome_tile, truth_tile
from cmkd.viewing.html_page import FrameRow
from cmkd.viewing.outcomes import (
    Disagreement,
    Outcome,
    disagreement,
    outcomes_by_frame,
    rank_frames,
    spread_over_conditions,
)
from dataset import SeeingThroughFog

PAGE_FRAMES = 12  # of each condition


@dataclass(frozen=True)
class Gallery:
    """Outcomes of several detectors on a list. The baseline and the students are RGB detectors."""

    dataset: SeeingThroughFog  # rgb+gated
    ground_truth: GroundTruth
    outcomes: list[dict[str, Outcome]]  # for each frame, by the detector's title
    limits: dict[str, dict[str, float]]  # least score that counts, by title and category
    baseline: str
    students: list[str]

    @cached_property
    def disagreements(self) -> list[Disagreement]:
        """One for each frame."""
        return [disagreement(frame, self.baseline, self.students) for frame in self.outcomes]

    @cached_property
    def ranked(self) -> list[int]:
        """Frame indices, first those in which students find people that the baseline misses."""
        return rank_frames(self.disagreements)

    @property
    def columns(self) -> list[str]:
        """The headings of the tiles."""
        detectors = [f"{title}, {describe_limits(own)}" for title, own in self.limits.items()]
        return ["ground truth, on a gated slice", *detectors]

    @property
    def exchanges(self) -> dict[str, str]:
        """By student: how many people of the list it finds and the baseline misses, and reverse."""
        lines = {}
        for student in self.students:
            pairs = [(frame[student].found, frame[self.baseline].found) for frame in self.outcomes]
            gained = sum(len(own - before) for own, before in pairs)
            lost = sum(len(before - own) for own, before in pairs)
            lines[student] = (
                f"finds {gained} people that {self.baseline} misses, and misses {lost} that "
                f"{self.baseline} finds"
            )
        return lines

    def tiles(self, index: int) -> list[Image.Image]:
        """A frame's tiles, one for each column."""
        image, _ = self.dataset[index]
        annotations = self.ground_truth["annotations"]
        people = [annotation for annotation in annotations if annotation["image_id"] == index]
        outcomes = self.outcomes[index].values()
        return [truth_tile(image, people), *(outcome_tile(image[:3], one) for one in outcomes)]

    def sheet(self, count: int) -> Image.Image:
        """A contact sheet of the first `count` frames as ranked."""
        rows = []
        for index in self.ranked[:count]:
            title = f"{self.dataset.names[index]}: {self.disagreements[index]}"
            rows.append((title, self.tiles(index)))
        return contact_sheet(self.columns, rows, OUTCOME_LEGEND)

    def page_rows(self) -> list[FrameRow]:
        """The first `PAGE_FRAMES` frames of each condition, as ranked, for an HTML page."""
        names = self.dataset.names
        lists = condition_lists(self.dataset.root, self.dataset.list_file.stem)
        members = {condition: set(frames) for condition, frames in lists.items()}
        conditions = [
            [condition for condition, frames in members.items() if name in frames] for name in names
        ]
        chosen = spread_over_conditions(self.ranked, conditions, PAGE_FRAMES)
        return [
            FrameRow(names[index], conditions[index], self.disagreements[index], self.tiles(index))
            for index in tqdm(chosen, "drawing", unit="frame", leave=False, disable=None)
        ]


def make_gallery(
    dataset: SeeingThroughFog,
    results: dict[str, Results],
    least_score: float | None,
    baseline: str,
    students: list[str],
) -> Gallery:
    """A gallery of COCO results by the detector's title; see `outcomes_by_frame`."""
    ground_truth = dataset.ground_truth()
    outcomes: list[dict[str, Outcome]] = [{} for _ in dataset.names]
    limits = {}
    for title, own_results in results.items():
        own_outcomes, limits[title] = outcomes_by_frame(ground_truth, own_results, least_score)
        for frame, outcome in zip(outcomes, own_outcomes, strict=True):
            frame[title] = outcome
    return Gallery(dataset, ground_truth, outcomes, limits, baseline, students)


def describe_limits(limits: dict[str, float]) -> str:
    """From which score on detections are shown, by category."""
    parts = []
    for category, limit in limits.items():
        part = f"score >= {limit:.2f}"
        if limit == math.inf:
            part = "nothing: its best is a false alarm"
        parts.append(f"{part} ({category})" if len(limits) > 1 else part)
    return ", ".join(parts)

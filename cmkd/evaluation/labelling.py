"""A trained network's labels: how they are chosen on a validation list, and the label files."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import DataLoader

from cmkd.evaluation.metrics import GroundTruth, Results, coco_metrics
from cmkd.evaluation.mirror import Detection, detect, fuse
from cmkd.evaluation.predict import to_coco_results
from cmkd.evaluation.thresholds import Thresholds, thresholds_on
from cmkd.frames.machine_labels import label_text, sure_and_doubtful, to_label_space
from models import Detector


@dataclass(frozen=True)
class Choice:
    """How detections become labels."""

    thresholds: Thresholds  # by class, in the order of the detector's labels
    mirror: bool  # whether a frame's mirror image is looked at too
    table: list[dict[str, Any]] = field(default_factory=list)  # of `thresholds.table_of`
    validation: dict[str, float] = field(default_factory=dict)  # AP, AP_with_mirror


def detect_views(
    detector: Detector, loader: DataLoader, amp: bool, mirror: bool
) -> tuple[Results, Results]:
    """The results on a list, and with `mirror` those merged with the mirror images'."""
    plain: Results = []
    fused: Results = []
    for targets, _, views in detect(detector, loader, amp, mirror):
        plain += to_coco_results(views[0], targets)
        if mirror:
            fused += to_coco_results([fuse(*pair) for pair in zip(*views, strict=True)], targets)
    return plain, fused


def choose_on(
    truth: GroundTruth,
    plain: Results,
    fused: Results,
    names: list[str],
    list_name: str,
    mirror: bool | None = None,
    precision: float | None = None,
) -> Choice:
    """The thresholds of each class, and whether mirror images help, from a validation list.

    `mirror` forces the latter; with False, `fused` is not used. Raises `UserError`, as
    `thresholds.thresholds_on`.
    """
    aps = {"AP": coco_metrics(truth, plain)["AP"]}
    use_mirror = bool(mirror)
    if mirror is not False:
        aps["AP_with_mirror"] = coco_metrics(truth, fused)["AP"]
        use_mirror = use_mirror or aps["AP_with_mirror"] > aps["AP"]
    results = fused if use_mirror else plain
    thresholds, table = thresholds_on(truth, results, names, list_name, precision)
    return Choice(thresholds, use_mirror, table, aps)


def label_texts(
    detector: Detector, loader: DataLoader, amp: bool, choice: Choice
) -> Iterator[dict[str, str]]:
    """The label files of each batch: frame name -> text."""
    for targets, sizes, views in detect(detector, loader, amp, choice.mirror):
        if choice.mirror:
            detections = [fuse(*pair) for pair in zip(*views, strict=True)]
        else:
            [detections] = views
        yield {
            target["name"]: frame_text(detection, size, choice.thresholds)
            for target, size, detection in zip(targets, sizes, detections, strict=True)
        }


def frame_text(detection: Detection, size: tuple[int, int], thresholds: Thresholds) -> str:
    """The label file of one frame of this width and height."""
    names = list(thresholds)
    boxes, labels, scores = (detection[key].tolist() for key in ("boxes", "labels", "scores"))
    found = [
        (names[label - 1], score, to_label_space(box, *size))
        for box, label, score in zip(boxes, labels, scores, strict=True)
    ]
    return label_text(sure_and_doubtful(found, thresholds))

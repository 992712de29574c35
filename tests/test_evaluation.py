"""Metrics, against pycocotools called directly, against cases done by hand, and empty cases."""

import json
import math

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cmkd.evaluation.metrics import (
    METRICS,
    coco_metrics,
    least_scores,
    log_average_miss_rate,
    match,
    miss_metrics,
    recall,
)
from cmkd.evaluation.predict import to_coco_results


def truth(boxes_by_image):
    """A COCO dictionary of people in these boxes (x, y, width, height)."""
    images, annotations = [], []
    for image, boxes in enumerate(boxes_by_image):
        images.append({"id": image, "file_name": str(image), "width": 640, "height": 480})
        for box in boxes:
            annotation = {"id": len(annotations) + 1, "image_id": image, "category_id": 1}
            annotation |= {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            annotations.append(annotation)
    categories = [{"id": 1, "name": "Pedestrian"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def result(image, box, score):
    """A COCO result."""
    return {"image_id": image, "category_id": 1, "bbox": box, "score": score}


def random_boxes(random, frames=12):
    """Up to four boxes for each frame."""
    return [
        [
            [*random.uniform(0, 300, 2), *random.uniform(10, 200, 2)]
            for _ in range(random.integers(0, 5))
        ]
        for _ in range(frames)
    ]


def results_around(random, boxes_by_image, noise, copies=2):
    """Results with random scores, off by `noise` px from every box."""
    results = []
    for image, boxes in enumerate(boxes_by_image):
        for box in boxes:
            for _ in range(copies):
                moved = (np.array(box) + random.normal(0, noise, 4)).clip(1).tolist()
                results.append(result(image, moved, random.random()))
    return results


def pycocotools_evaluation(boxes, results):
    """COCOeval called directly, not run yet."""
    reference = COCO()
    reference.dataset = truth(boxes)
    reference.createIndex()
    return COCOeval(reference, reference.loadRes(results), "bbox")


def test_equals_pycocotools_called_directly(tmp_path):
    random = np.random.default_rng(0)
    boxes = random_boxes(random)
    results = results_around(random, boxes, noise=6)
    (tmp_path / "truth.json").write_text(json.dumps(truth(boxes)))
    (tmp_path / "results.json").write_text(json.dumps(results))
    reference = COCO(str(tmp_path / "truth.json"))
    evaluation = COCOeval(reference, reference.loadRes(str(tmp_path / "results.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    ours = coco_metrics(truth(boxes), results)
    assert list(ours) == list(METRICS)
    expected = [value if value >= 0 else math.nan for value in evaluation.stats.tolist()]
    assert list(ours.values()) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert 0.05 < ours["AP"] < ours["AP50"] < 1


def test_by_hand():
    # One of two people is found, without a false positive: precision is 1 up to recall 0.5, which
    # is 51 of COCO's 101 points.
    metrics = coco_metrics(
        truth([[[10, 10, 50, 100]], [[10, 10, 50, 100]]]), [result(0, [10, 10, 50, 100], 0.9)]
    )
    assert metrics["AP"] == metrics["AP50"] == pytest.approx(51 / 101)
    assert metrics["AR_100"] == 0.5
    assert math.isnan(metrics["AP_small"])


def test_no_detections_is_zero():
    metrics = coco_metrics(truth([[[10, 10, 50, 100]], []]), [])
    assert metrics["AP"] == metrics["AR_100"] == 0.0


def test_no_ground_truth_is_undefined():
    for results in ([], [result(0, [1, 1, 5, 5], 0.5)]):
        assert all(math.isnan(value) for value in coco_metrics(truth([[], []]), results).values())


def test_a_false_positive_on_an_empty_frame_costs():
    boxes, hit = [[[10, 10, 50, 100]], []], result(0, [10, 10, 50, 100], 0.5)
    assert coco_metrics(truth(boxes), [hit])["AP"] == pytest.approx(1.0)
    metrics = coco_metrics(truth(boxes), [hit, result(1, [10, 10, 50, 100], 0.9)])
    assert metrics["AP"] == pytest.approx(0.5)


def test_to_coco_results():
    detections = [
        {
            "boxes": torch.tensor([[1.0, 2.0, 11.0, 22.0]]),
            "labels": torch.tensor([1]),
            "scores": torch.tensor([0.25]),
        },
        {
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64),
            "scores": torch.zeros(0),
        },
    ]
    targets = [
        {"image_id": torch.tensor(7), "name": "a"},
        {"image_id": torch.tensor(8), "name": "b"},
    ]
    assert to_coco_results(detections, targets) == [
        {
            "image_id": 7,
            "category_id": 1,
            "bbox": [1.0, 2.0, 10.0, 20.0],
            "score": 0.25,
            "file_name": "a",
        }
    ]


PERSON = [10, 10, 50, 100]


def test_log_average_miss_rate_by_hand():
    """Ten frames, two people. With each detection, best first, 0, 0.1 and 0.1 false positives per
    image, and 1, 1 and 0 people missed: half of them at the four rates below 0.1, and nobody, which
    counts as 1e-10, at the other five."""
    results = [result(0, PERSON, 0.9), result(5, PERSON, 0.8), result(1, PERSON, 0.7)]
    matches = match(truth([[PERSON], [PERSON], *[[]] * 8]), results, 1)
    expected = math.exp((4 * math.log(0.5) + 5 * math.log(1e-10)) / 9)
    assert log_average_miss_rate(matches) == pytest.approx(expected, rel=1e-9)
    assert recall(matches, np.array([True, True]), 0.1) == 1.0
    assert recall(matches, np.array([True, True]), 0.05) == 0.5
    assert recall(matches, np.array([False, True]), 0.05) == 0.0


def test_nobody_is_found_below_the_rate_of_a_false_best_detection():
    """One frame: one false positive is one per image. Only the last of the nine rates allows it,
    and there the person is found."""
    results = [result(0, [300, 300, 50, 100], 0.9), result(0, PERSON, 0.8)]
    matches = match(truth([[PERSON]]), results, 1)
    assert log_average_miss_rate(matches) == pytest.approx(math.exp(math.log(1e-10) / 9))
    assert least_scores(matches, np.array([0.5, 1]), np.ones(1)).tolist() == [math.inf, 0.8]


@pytest.mark.parametrize(("results", "expected"), [([], 1.0), ([result(0, PERSON, 0.5)], 1e-10)])
def test_miss_rate_of_nothing_and_of_everything(results, expected):
    assert log_average_miss_rate(match(truth([[PERSON]]), results, 1)) == pytest.approx(expected)


def test_a_tie_of_scores_is_one_point_of_the_curve():
    results = [result(0, PERSON, 0.5), result(0, [300, 300, 50, 100], 0.5)]
    assert log_average_miss_rate(match(truth([[PERSON]]), results, 1)) == pytest.approx(
        math.exp(math.log(1e-10) / 9)
    )


def test_nobody_to_find_is_undefined():
    assert math.isnan(log_average_miss_rate(match(truth([[]]), [result(0, PERSON, 0.9)], 1)))
    metrics = miss_metrics(truth([[]]), [result(0, PERSON, 0.9)])
    assert metrics.pop("unseen") == 0
    assert all(math.isnan(value) for value in metrics.values())


def test_an_ignore_region_absorbs_detections():
    content = truth([[PERSON, [200, 0, 200, 300]]])
    content["annotations"][1]["iscrowd"] = 1
    matches = match(
        content,
        [
            result(0, [220, 50, 50, 100], 0.9),
            result(0, [250, 50, 50, 100], 0.8),
            result(0, PERSON, 0.7),
        ],
        1,
    )
    assert matches.score.tolist() == [0.7]
    assert len(matches.truth) == 1


def test_only_tall_people():
    """A low person does not count, found or not; a low false positive costs nothing."""
    content = truth([[PERSON, [100, 10, 20, 40]]])
    results = [
        result(0, PERSON, 0.9),
        result(0, [100, 10, 20, 40], 0.8),
        result(0, [300, 300, 20, 40], 0.7),
        result(0, [400, 300, 20, 60], 0.6),
    ]
    matches = match(content, results, 1, least_height=50)
    assert (matches.score.tolist(), matches.hit.tolist()) == ([0.9, 0.6], [True, False])
    assert len(match(content, results, 1).truth) == 2


def test_people_unseen_by_rgb():
    content = truth([[PERSON, [100, 10, 50, 100], [200, 10, 50, 100]]])
    for annotation, seen in zip(
        content["annotations"], [(True, True), (False, True), (False, False)], strict=True
    ):
        annotation["visible_rgb"], annotation["visible_gated"] = seen
    metrics = miss_metrics(content, [result(0, [100, 10, 50, 100], 0.9)])
    assert (metrics["unseen"], metrics["recall_unseen"], metrics["recall"]) == (
        1,
        1.0,
        pytest.approx(1 / 3),
    )


def test_recall_by_height():
    """Four people of 40, 50, 99 and 100 px; the first and the third are found."""
    boxes = [[100 * place, 10, 40, height] for place, height in enumerate((40, 50, 99, 100))]
    metrics = miss_metrics(truth([boxes]), [result(0, boxes[0], 0.9), result(0, boxes[2], 0.8)])
    assert [metrics[f"recall_{band}"] for band in ("0_50px", "50_100px", "100px_up")] == [
        1.0,
        0.5,
        0.0,
    ]


def test_ap_by_height_is_cocos_by_area():
    """Random boxes of width 100, so bands of height are pycocotools' own bands of area."""
    random = np.random.default_rng(3)
    boxes = [
        [[*random.uniform(0, 500, 2), 100, random.uniform(20, 150)] for _ in range(3)]
        for _ in range(12)
    ]
    results = [
        result(
            image,
            (np.array(box) + [*random.normal(0, 6, 2), 0, random.normal(0, 9)]).tolist(),
            random.random(),
        )
        for image, some in enumerate(boxes)
        for box in some
        for _ in range(2)
    ]
    metrics = miss_metrics(truth(boxes), results)
    evaluation = pycocotools_evaluation(boxes, results)
    evaluation.params.areaRng = [[0, 5e3], [5e3, 1e4], [1e4, 1e9]]
    evaluation.params.areaRngLbl = ["low", "middle", "high"]
    evaluation.evaluate()
    evaluation.accumulate()
    for place, band in enumerate(("0_50px", "50_100px", "100px_up")):
        assert metrics[f"AP_{band}"] == pytest.approx(
            evaluation.eval["precision"][:, :, 0, place, 2].mean(), abs=1e-12
        )
        assert 0.05 < metrics[f"AP_{band}"] < 0.95


def test_by_distance():
    """Four people at 10, 25 and 60 m and at an unknown distance; the second one is missed. A false
    positive has no distance and counts in every band, but costs nothing below every hit."""
    boxes = [[100 * place, 10, 40, 80] for place in range(4)]
    content = truth([boxes])
    for annotation, distance in zip(content["annotations"], (10.0, 25.0, 60.0, None), strict=True):
        annotation["distance"] = distance
    results = [result(0, boxes[place], 0.9) for place in (0, 2, 3)]
    for false_positive, expected in ((0.5, 1.0), (0.95, 0.5)):
        metrics = miss_metrics(content, [*results, result(0, [500, 200, 40, 80], false_positive)])
        assert [metrics[f"AP_{band}"] for band in ("0_25m", "25_50m", "50m_up")] == pytest.approx(
            [expected, 0, expected]
        )
    metrics = miss_metrics(content, results)
    assert [metrics[f"recall_{band}"] for band in ("0_25m", "25_50m", "50m_up")] == [1, 0, 1]
    unknown = miss_metrics(truth([boxes]), results)
    assert all(
        math.isnan(unknown[f"{score}_{band}"])
        for score in ("AP", "recall")
        for band in ("0_25m", "50m_up")
    )


def test_two_categories_are_averaged():
    content = truth([[PERSON]])
    content["categories"].append({"id": 2, "name": "Deer"})
    content["annotations"].append(
        {**content["annotations"][0], "id": 2, "category_id": 2, "bbox": [200, 10, 50, 100]}
    )
    metrics = miss_metrics(content, [result(0, PERSON, 0.9)])
    assert metrics["recall"] == 0.5
    assert metrics["MR"] == pytest.approx((1e-10 + 1) / 2)


def test_matching_is_pycocotools():
    """The recall of all detections is COCO's at IoU 0.5, on random boxes."""
    random = np.random.default_rng(1)
    boxes = random_boxes(random)
    results = results_around(random, boxes, noise=9)
    matches = match(truth(boxes), results, 1)
    evaluation = pycocotools_evaluation(boxes, results)
    evaluation.evaluate()
    evaluation.accumulate()
    assert np.mean(np.isfinite(matches.found_at)) == pytest.approx(
        evaluation.eval["recall"][0, 0, 0, 2], abs=1e-12
    )
    assert matches.hit.sum() == np.isfinite(matches.found_at).sum()
    assert 0.3 < matches.hit.mean() < 0.6

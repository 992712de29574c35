"""COCO numbers: against pycocotools called directly, against a case done by hand, and in the empty cases."""

import json
import math

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evaluation import METRICS, coco_metrics, to_coco_results


def truth(boxes_by_image):
    flat = [(image, box) for image, boxes in enumerate(boxes_by_image) for box in boxes]
    annotations = [{"id": number, "image_id": image, "category_id": 1, "bbox": box, "area": box[2] * box[3],
                    "iscrowd": 0} for number, (image, box) in enumerate(flat, start=1)]
    images = [{"id": image, "file_name": str(image), "width": 640, "height": 480}
              for image in range(len(boxes_by_image))]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "Pedestrian"}]}


def result(image, box, score):
    return {"image_id": image, "category_id": 1, "bbox": box, "score": score}


def test_equals_pycocotools_called_directly(tmp_path):
    random = np.random.default_rng(0)
    boxes = [[[*random.uniform(0, 300, 2), *random.uniform(10, 200, 2)] for _ in range(random.integers(0, 5))]
             for _ in range(12)]
    results = [result(image, (np.array(box) + random.normal(0, 6, 4)).clip(1).tolist(), random.random())
               for image, some in enumerate(boxes) for box in some for _ in range(2)]
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
    # One of two people found exactly, no false alarm: precision 1 up to recall 0.5, so 51 of COCO's 101 points are 1.
    metrics = coco_metrics(truth([[[10, 10, 50, 100]], [[10, 10, 50, 100]]]), [result(0, [10, 10, 50, 100], 0.9)])
    assert metrics["AP"] == metrics["AP50"] == pytest.approx(51 / 101)
    assert metrics["AR_100"] == 0.5
    assert math.isnan(metrics["AP_small"])


def test_no_detections_is_zero():
    metrics = coco_metrics(truth([[[10, 10, 50, 100]], []]), [])
    assert metrics["AP"] == metrics["AR_100"] == 0.0


def test_no_ground_truth_is_undefined():
    for results in ([], [result(0, [1, 1, 5, 5], 0.5)]):
        assert all(math.isnan(value) for value in coco_metrics(truth([[], []]), results).values())


def test_false_alarm_on_an_empty_frame_costs():
    boxes, hit = [[[10, 10, 50, 100]], []], result(0, [10, 10, 50, 100], 0.5)
    assert coco_metrics(truth(boxes), [hit])["AP"] == pytest.approx(1.0)
    assert coco_metrics(truth(boxes), [hit, result(1, [10, 10, 50, 100], 0.9)])["AP"] == pytest.approx(0.5)


def test_to_coco_results():
    detections = [{"boxes": torch.tensor([[1.0, 2.0, 11.0, 22.0]]), "labels": torch.tensor([1]),
                   "scores": torch.tensor([0.25])},
                  {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}]
    targets = [{"image_id": torch.tensor(7), "name": "a"}, {"image_id": torch.tensor(8), "name": "b"}]
    assert to_coco_results(detections, targets) == [
        {"image_id": 7, "category_id": 1, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.25, "file_name": "a"}]

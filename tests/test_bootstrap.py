"""Several detectors on the same frames: bootstrap samples against pycocotools, and test.py."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import run_script, the_error
from test_evaluation import random_boxes, result, results_around, truth

from cmkd.evaluation.bootstrap import MatchedResults, compare_detectors, interval
from cmkd.evaluation.metrics import coco_metrics, log_average_miss_rate, match
from cmkd.evaluation.pipeline import evaluate_lists, with_conditions
from cmkd.evaluation.tables import comparison_rows, comparison_title, metrics_rows
from models import build_detector


def random_case(noise, frames=12, seed=0):
    """People in random places, some of them ignore regions, and detections off by `noise` px."""
    random = np.random.default_rng(seed)
    boxes = random_boxes(random, frames)
    content = truth(boxes)
    for annotation in content["annotations"]:
        annotation["iscrowd"] = int(random.random() < 0.2)
    return content, results_around(random, boxes, noise, copies=3)


def once(results):
    """Detectors that were trained once."""
    return {name: [found] for name, found in results.items()}


@pytest.mark.parametrize("noise", [2, 10])
def test_the_whole_list_is_pycocotools(noise):
    content, results = random_case(noise)
    metrics = MatchedResults(content, results).metrics()
    expected = coco_metrics(content, results)
    assert 0.02 < metrics["AP"] < 0.9
    assert metrics["AP"] == pytest.approx(expected["AP"], abs=1e-12)
    assert metrics["AP50"] == pytest.approx(expected["AP50"], abs=1e-12)


def test_a_recall_that_is_one_of_cocos_points():
    """57 of 100 found is 0.57, and the point that pycocotools calls 0.57 is one bit above it."""
    content = truth([[[10, 10, 50, 100]]] * 100)
    results = [result(image, [10, 10, 50, 100], 0.9 - image / 1000) for image in range(57)]
    expected = coco_metrics(content, results)["AP"]
    assert MatchedResults(content, results).metrics()["AP"] == pytest.approx(expected, abs=1e-12)


def repeated_frames(content, results, frame_counts):
    """Ground truth and results of a list that has each frame as often as `frame_counts` says."""
    copied, copied_results = {**content, "images": [], "annotations": []}, []
    for image, count in zip(content["images"], frame_counts, strict=True):
        own = [one for one in content["annotations"] if one["image_id"] == image["id"]]
        own_results = [one for one in results if one["image_id"] == image["id"]]
        for _ in range(count):
            new = len(copied["images"])
            copied["images"].append({**image, "id": new})
            for one in own:
                number = len(copied["annotations"]) + 1
                copied["annotations"].append({**one, "image_id": new, "id": number})
            copied_results += [{**one, "image_id": new} for one in own_results]
    return copied, copied_results


def test_a_sample_has_the_metrics_of_a_list_with_its_frames():
    """Frames that count 0, 1, 2 or 3 times, against a list that has them so often."""
    content, results = random_case(6)
    frame_counts = np.random.default_rng(1).integers(0, 4, len(content["images"]))
    assert {0, 3} < set(frame_counts.tolist())
    metrics = MatchedResults(content, results).metrics(frame_counts.astype(float))
    copied, copied_results = repeated_frames(content, results, frame_counts)
    expected = coco_metrics(copied, copied_results)
    assert metrics["AP"] == pytest.approx(expected["AP"], abs=1e-12)
    assert metrics["AP50"] == pytest.approx(expected["AP50"], abs=1e-12)
    miss_rate = log_average_miss_rate(match(copied, copied_results, 1))
    assert metrics["MR"] == pytest.approx(miss_rate, abs=1e-12)


def test_gap_closed_and_paired_intervals():
    """The student has the teacher's detections on half of the frames, the baseline's on the others.

    A detector compared with itself differs by nothing in every sample."""
    content, teacher = random_case(2, 60)
    _, baseline = random_case(12, 60)
    student = [one for one in teacher if one["image_id"] % 2] + [
        one for one in baseline if not one["image_id"] % 2
    ]
    results = {"teacher": teacher, "baseline": baseline, "student": student, "again": baseline}
    table = compare_detectors(content, once(results), "baseline", "teacher", samples=200)
    assert table["teacher"]["AP"]["gap_closed"] == 1.0
    assert table["baseline"]["AP"]["gap_closed"] == 0.0
    assert table["again"]["AP"]["difference_interval"] == (0.0, 0.0)
    low, high = table["student"]["AP"]["gap_closed_interval"]
    assert 0.1 < low < table["student"]["AP"]["gap_closed"] < high < 0.9
    values = {name: coco_metrics(content, found)["AP"] for name, found in results.items()}
    share = (values["student"] - values["baseline"]) / (values["teacher"] - values["baseline"])
    assert table["student"]["AP"]["gap_closed"] == pytest.approx(share)
    assert table["student"]["MR"]["difference"] < 0 < table["student"]["MR"]["gap_closed"]
    low, high = table["student"]["AP"]["difference_interval"]
    assert 0 < low < table["student"]["AP"]["difference"] < high
    # Paired: narrower than if the two detectors had independent samples.
    widths = [np.subtract(*table[name]["AP"]["interval"]) for name in ("student", "baseline")]
    assert high - low < np.hypot(*widths)


def test_seeds_are_pooled():
    """The share of the gap is computed from the means over trainings; it is no mean of shares."""
    content, teacher = random_case(2, 40)
    runs = {
        "teacher": [teacher] * 2,
        "baseline": [random_case(noise, 40)[1] for noise in (9, 14)],
        "student": [random_case(noise, 40)[1] for noise in (4, 6)],
    }
    table = compare_detectors(content, runs, "baseline", "teacher", 50)
    means = {
        name: np.mean([coco_metrics(content, found)["AP"] for found in by_seed])
        for name, by_seed in runs.items()
    }
    assert table["student"]["AP"]["value"] == pytest.approx(means["student"])
    assert table["student"]["AP"]["gap_closed"] == pytest.approx(
        (means["student"] - means["baseline"]) / (means["teacher"] - means["baseline"])
    )


def test_unequal_numbers_of_trainings_are_an_error():
    content, results = random_case(2, 4)
    runs = {"baseline": [results, results], "student": [results]}
    with pytest.raises(ValueError, match="'baseline': 2, 'student': 1"):
        compare_detectors(content, runs, "baseline", None, 2)


def test_trainings_are_sampled_in_pairs():
    """Trainings that differ make the interval wide; a student equal to its seed's baseline differs
    by nothing."""
    content, good = random_case(2, 40)
    _, bad = random_case(14, 40)
    table = compare_detectors(
        content,
        {"baseline": [good, bad], "student": [good, bad], "good": [good, good]},
        "baseline",
        None,
        200,
    )
    low, high = table["baseline"]["AP"]["interval"]
    bad_ap, good_ap = (coco_metrics(content, results)["AP"] for results in (bad, good))
    assert low < bad_ap + 0.1 < good_ap - 0.1 < high
    assert np.subtract(*table["good"]["AP"]["interval"]) > (low - high) / 2
    assert table["student"]["AP"]["difference_interval"] == (0.0, 0.0)


def test_the_same_seed_gives_the_same_samples():
    content, results = random_case(6)
    tables = [
        compare_detectors(content, once({"a": results}), "a", None, 20, seed) for seed in (0, 0, 1)
    ]
    intervals = [table["a"]["AP"]["interval"] for table in tables]
    assert intervals[0] == intervals[1] != intervals[2]
    assert "gap_closed" not in tables[0]["a"]["AP"]


def test_an_interval_holds_the_truth_as_often_as_it_says():
    """A recall that is 0.5 in the long run: of 100 lists about 95 intervals hold it."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        found = random.random(60) < 0.5
        content = truth([[[10, 10, 50, 100]]] * 60)
        results = [result(image, [10, 10, 50, 100], 0.9) for image in range(60) if found[image]]
        table = compare_detectors(content, once({"a": results}), "a", None, 100)
        low, high = table["a"]["recall"]["interval"]
        held += low <= 0.5 <= high
    assert 88 <= held <= 99


def test_what_is_not_defined():
    """Too many samples without a value leave no interval."""
    values = np.arange(1000.0)
    values[:25] = math.nan
    assert interval(values)[1] < 999
    values[25] = math.nan
    assert all(map(math.isnan, interval(values)))
    content, results = random_case(6)
    table = compare_detectors(
        content, once({"teacher": results, "baseline": results}), "baseline", "teacher", 20
    )
    assert math.isnan(table["teacher"]["AP"]["gap_closed"])
    row = comparison_rows(table, "baseline")[1]
    assert (row[0], row[-4:]) == ("teacher", ["+0.0 [0.0, 0.0]", "+0.0 [0.0, 0.0]", "-", "-"])


def test_few_frames_have_no_intervals():
    """Samples of one frame are all alike: an interval without width would be a sure difference."""
    for frames in (1, 9, 10):
        content = truth([[[10, 10, 50, 100]]] * frames)
        good = [result(image, [10, 10, 50, 100], 0.9) for image in range(frames)]
        bad = [result(image, [10, 10, 40, 100], 0.9) for image in range(frames)]
        runs = once({"baseline": bad, "teacher": good})
        table = compare_detectors(content, runs, "baseline", "teacher", 20)
        entry = table["teacher"]["AP"]
        assert entry["difference"] == pytest.approx(0.3)
        ends = [end for name, pair in entry.items() if "interval" in name for end in pair]
        assert len(ends) == 6
        assert all(math.isfinite(end) == (frames >= 10) for end in ends)
        row, title = comparison_rows(table, "baseline")[2], comparison_title("a", content)
        if frames < 10:
            assert (row[1], row[6]) == ("100.0", "+30.0")
            assert not any("nan" in cell or "[" in cell for cell in row)
            assert title == f"a, in percent; its {frames} frames are too few for intervals"
        else:
            assert row[1] == "100.0 [100.0, 100.0]"
            assert title == "a, in percent; in brackets 95 % intervals over its 10 frames"


def save_untrained(file, channels=3, **settings):
    """Weights of an untrained detector, with the JSON beside them."""
    torch.manual_seed(len(file.stem))
    labels = 1 + len(settings.get("classes", ["Pedestrian"]))
    detector = build_detector(channels, labels, "resnet18", "none", min_size=64, proposals=50)
    torch.save(detector.state_dict(), file)
    file.with_suffix(".json").write_text(json.dumps({**detector.settings, **settings}))
    return file


def test_several_weights_in_one_call(synthetic, tmp_path):
    """Tables in the terminal, numbers in files; baseline and teacher by their channels."""
    weights = [
        save_untrained(tmp_path / f"{name}.pth", channels)
        for name, channels in (("teacher", 6), ("second", 3), ("first", 3))
    ]
    options = ["--weights", *weights, "--data", synthetic, "--workers", 0, "--draws", 30]
    options += ["--json", tmp_path / "r.json", "--save-detections", tmp_path / "d.json"]
    done = run_script("test.py", *options)
    report = json.loads((tmp_path / "r.json").read_text())
    lines = done.stdout.splitlines()
    for list_name in ("val_night", "test_night"):
        metrics, comparison = report["metrics"][list_name], report["comparison"][list_name]
        assert list(metrics) == list(comparison) == ["teacher", "second", "first"]
        for name in ("first", "teacher"):
            difference = metrics[name]["AP"] - metrics["second"]["AP"]
            assert comparison[name]["AP"]["difference"] == pytest.approx(difference, abs=1e-12)
        assert (tmp_path / f"d.first.{list_name}.json").is_file()

        [title] = [number for number, line in enumerate(lines) if line.startswith(list_name)]
        assert ", in percent; its 4 frames are too few for intervals" in lines[title]
        heading, *rows = (
            [cell.strip() for cell in re.split(r"\s{3,}", line)]
            for line in lines[title + 2 : title + 6]
        )
        assert heading[-4:] == ["AP - second", "MR - second", "gap closed, AP", "gap closed, MR"]
        assert rows == comparison_rows(as_numbers(comparison), "second")[1:]
        for name in ("second", "teacher", "first"):
            cells = [name, list_name, "4", f"{metrics[name]['AP']:.4f}"]
            assert [line for line in lines if line.split()[:4] == cells]


def as_numbers(value):
    """JSON's null as NaN again, at any depth."""
    if isinstance(value, dict):
        return {name: as_numbers(one) for name, one in value.items()}
    if isinstance(value, list):
        return [as_numbers(one) for one in value]
    return math.nan if value is None else value


def test_metrics_that_nobody_has_are_not_shown():
    metrics = {
        "val": {
            "a": {"AP": 0.25, "MR": math.nan, "recall": 0.5},
            "b": {"AP": 1.0, "MR": math.nan, "recall": math.nan},
        }
    }
    assert metrics_rows(metrics, {"val": {"images": [1, 2]}}, ["AP", "MR", "recall"]) == [
        ["model", "list", "frames", "AP", "recall"],
        ["a", "val", "2", "0.2500", "0.5000"],
        ["b", "val", "2", "1.0000", "nan"],
    ]


def test_a_condition_is_evaluated_as_its_own_list(tmp_path):
    content, results = random_case(6)
    frames = [image["file_name"] for image in content["images"]]
    (tmp_path / "val_night.txt").write_text("\n".join(frames))
    (tmp_path / "val_snow.txt").write_text("\n".join(frames[5:]))
    truths, found = with_conditions(tmp_path, {"val_night": content}, {"val_night": {"a": results}})
    metrics = evaluate_lists(truths, found)

    def moved(entries, key):
        """Entries of the frames from the fifth on, numbered from 0."""
        return [{**one, key: one[key] - 5} for one in entries if one[key] >= 5]

    own_truth = {
        **content,
        "images": moved(content["images"], "id"),
        "annotations": moved(content["annotations"], "image_id"),
    }
    own = evaluate_lists({"own": own_truth}, {"own": {"a": moved(results, "image_id")}})
    assert metrics["val_snow"]["a"] == pytest.approx(own["own"]["a"], nan_ok=True)
    assert 0.05 < own["own"]["a"]["AP"] < 0.95
    assert metrics["val_night"]["a"]["AP"] != pytest.approx(own["own"]["a"]["AP"])
    entries = [*truths["val_snow"]["annotations"], *found["val_snow"]["a"]]
    assert all(one["image_id"] >= 5 for one in entries)


def test_by_condition(synthetic, tmp_path):
    """Each condition has the metrics of its own list; lists of another split or of other frames are
    not conditions."""
    weights = save_untrained(tmp_path / "a.pth")
    root = shutil.copytree(synthetic, tmp_path / "data")
    names = (root / "val_night.txt").read_text().split()
    for file in root.glob("val_*_night.txt"):
        file.unlink()
    lists = {
        "val_clear_night": names[:1],
        "val_snow_night": names[1:],
        "test_part": names[:2],
        "val_more": [*names, *(root / "test_night.txt").read_text().split()],
        "val_same": names,
    }
    for name, members in lists.items():
        (root / f"{name}.txt").write_text("\n".join(members))

    def metrics_of(*options):
        file = tmp_path / "r.json"
        common = ["--weights", weights, "--data", root, "--workers", 0, "--classes", "vru"]
        run_script("test.py", *common, "--json", file, "--lists", *options)
        return json.loads(file.read_text())["metrics"]

    by_condition = metrics_of("val_night", "--conditions")
    assert list(by_condition) == ["val_night", "val_clear_night", "val_snow_night"]
    own = metrics_of("val_snow_night")["val_snow_night"]["a"]
    assert own == pytest.approx(by_condition["val_snow_night"]["a"])
    assert by_condition["val_snow_night"] != by_condition["val_night"]


def test_what_cannot_be_compared(synthetic, tmp_path):
    a, b, c = (
        save_untrained(tmp_path / f"{name}.pth", classes=classes)
        for name, classes in (
            ("a", ["Pedestrian"]),
            ("b", ["Pedestrian", "RidableVehicle"]),
            ("c", ["RidableVehicle"]),
        )
    )
    d = save_untrained(tmp_path / "d.pth", classes=["Pedestrian"], ignore=["DontCare"])
    for options, message in (
        ((a, b), f"{a} was trained on Pedestrian and {b} on Pedestrian RidableVehicle"),
        ((a, c), "compare weights of the same classes"),
        ((a, a), "a.pth is named twice"),
        ((a, d), "trained with different --ignore (none; DontCare): pass --ignore"),
        (
            (a, b, "--classes", "Pedestrian"),
            "b.pth was trained on --classes Pedestrian RidableVehicle",
        ),
    ):
        done = run_script("test.py", "--data", synthetic, "--weights", *options, expect=2)
        assert message in the_error(done)


def test_a_list_with_nobody_is_named(frames, tmp_path):
    weights = save_untrained(tmp_path / "a.pth")
    (frames / "nobody.txt").write_text("b")
    options = ["--weights", weights, "--data", frames, "--lists", "val_night", "nobody"]
    message = "nobody.txt: no frame has a box of these classes, so there is nothing to score"
    assert message in the_error(run_script("test.py", *options, expect=2))

"""Several detectors on the same frames: drawn frames are scored as pycocotools would score them, intervals hold."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from conftest import run_script, the_error
from test_evaluation import result, truth

from cmkd.evaluation.bootstrap import Detected, compare, interval
from cmkd.evaluation.metrics import coco_metrics, log_average_miss_rate, match
from cmkd.evaluation.pipeline import score, with_conditions
from cmkd.evaluation.tables import comparison_rows, metrics_rows
from models import build_detector


def random_case(noise, frames=12, seed=0):
    """People in random places, some of an ignore region's kind, and detections off by `noise` px."""
    random = np.random.default_rng(seed)
    boxes = [[[*random.uniform(0, 300, 2), *random.uniform(10, 200, 2)] for _ in range(random.integers(0, 5))]
             for _ in range(frames)]
    content = truth(boxes)
    for annotation in content["annotations"]:
        annotation["iscrowd"] = int(random.random() < 0.2)
    results = [result(image, (np.array(box) + random.normal(0, noise, 4)).clip(1).tolist(), random.random())
               for image, some in enumerate(boxes) for box in some for _ in range(3)]
    return content, results


def once(results):
    """Detectors that were trained once."""
    return {name: [found] for name, found in results.items()}


@pytest.mark.parametrize("noise", [2, 10])
def test_the_whole_list_is_pycocotools(noise):
    content, results = random_case(noise)
    scores, expected = Detected(content, results).scores(), coco_metrics(content, results)
    assert 0.02 < scores["AP"] < 0.9
    assert scores["AP"] == pytest.approx(expected["AP"], abs=1e-12)
    assert scores["AP50"] == pytest.approx(expected["AP50"], abs=1e-12)


def test_a_recall_that_is_one_of_cocos_points():
    """57 of 100 found is 0.57, and the point that pycocotools calls 0.57 is one bit above it."""
    content = truth([[[10, 10, 50, 100]]] * 100)
    results = [result(image, [10, 10, 50, 100], 0.9 - image / 1000) for image in range(57)]
    expected = coco_metrics(content, results)["AP"]
    assert Detected(content, results).scores()["AP"] == pytest.approx(expected, abs=1e-12)


def test_drawn_frames_are_scored_as_copies_of_them():
    """Frames that count 0, 1, 2 or 3 times against a list that has them so often."""
    content, results = random_case(6)
    times = np.random.default_rng(1).integers(0, 4, len(content["images"]))
    copies = [(image["id"], copy) for image in content["images"] for copy in range(times[image["id"]])]
    copied, copied_results = {**content, "images": [], "annotations": []}, []
    for new, (old, _) in enumerate(copies):
        copied["images"].append({**content["images"][old], "id": new})
        copied["annotations"] += [{**one, "image_id": new, "id": len(copied["annotations"]) + number}
                                  for number, one in enumerate((one for one in content["annotations"]
                                                                if one["image_id"] == old), start=1)]
        copied_results += [{**one, "image_id": new} for one in results if one["image_id"] == old]
    drawn, expected = Detected(content, results).scores(times.astype(float)), coco_metrics(copied, copied_results)
    assert drawn["AP"] == pytest.approx(expected["AP"], abs=1e-12)
    assert drawn["AP50"] == pytest.approx(expected["AP50"], abs=1e-12)
    assert drawn["MR"] == pytest.approx(log_average_miss_rate(match(copied, copied_results, 1)), abs=1e-12)
    assert {0, 3} < set(times.tolist())


def test_gap_closed_and_paired_intervals():
    """The student's detections are the teacher's on half of the frames and the baseline's on the others. A detector
    compared with itself differs by nothing in every draw."""
    content, teacher = random_case(2, 60)
    _, baseline = random_case(12, 60)
    student = [one for one in teacher if one["image_id"] % 2] + [one for one in baseline if not one["image_id"] % 2]
    results = {"teacher": teacher, "baseline": baseline, "student": student, "again": baseline}
    table = compare(content, once(results), "baseline", "teacher", samples=200)
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
    # Paired: narrower than the two detectors' own intervals would make it.
    apart = sum(np.subtract(*table[name]["AP"]["interval"]) ** 2 for name in ("student", "baseline")) ** 0.5
    assert high - low < apart


def test_seeds_are_pooled():
    """The gap that is closed is that of the means over the trainings, not the mean of their shares."""
    content, teacher = random_case(2, 40)
    runs = {"teacher": [teacher] * 2, "baseline": [random_case(noise, 40)[1] for noise in (9, 14)],
            "student": [random_case(noise, 40)[1] for noise in (4, 6)]}
    table = compare(content, runs, "baseline", "teacher", 50)
    means = {name: np.mean([coco_metrics(content, found)["AP"] for found in by_seed]) for name, by_seed in runs.items()}
    assert table["student"]["AP"]["value"] == pytest.approx(means["student"])
    assert table["student"]["AP"]["gap_closed"] == pytest.approx(
        (means["student"] - means["baseline"]) / (means["teacher"] - means["baseline"]))


def test_trainings_are_drawn_in_pairs():
    """Trainings that differ make the interval wide; a student that is its seed's baseline differs by nothing."""
    content, good = random_case(2, 40)
    _, bad = random_case(14, 40)
    table = compare(content, {"baseline": [good, bad], "student": [good, bad], "good": [good, good]}, "baseline", None,
                    200)
    low, high = table["baseline"]["AP"]["interval"]
    assert low < coco_metrics(content, bad)["AP"] + 0.1 < coco_metrics(content, good)["AP"] - 0.1 < high
    assert np.subtract(*table["good"]["AP"]["interval"]) > (low - high) / 2
    assert table["student"]["AP"]["difference_interval"] == (0.0, 0.0)


def test_the_same_seed_draws_the_same_frames():
    content, results = random_case(6)
    tables = [compare(content, once({"a": results}), "a", None, 20, seed) for seed in (0, 0, 1)]
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
        low, high = compare(content, once({"a": results}), "a", None, 100)["a"]["recall"]["interval"]
        held += low <= 0.5 <= high
    assert 88 <= held <= 99


def test_what_is_not_defined():
    """An interval whose end could lie in the draws without a value has none."""
    values = np.arange(1000.0)
    values[:25] = math.nan
    assert interval(values)[1] < 999
    values[25] = math.nan
    assert all(map(math.isnan, interval(values)))
    content, results = random_case(6)
    table = compare(content, once({"teacher": results, "baseline": results}), "baseline", "teacher", 20)
    assert math.isnan(table["teacher"]["AP"]["gap_closed"])
    row = comparison_rows(table, "baseline")[1]
    assert (row[0], row[-4:]) == ("teacher", ["+0.0 [0.0, 0.0]", "+0.0 [0.0, 0.0]", "-", "-"])


def test_several_weights_in_one_call(synthetic, tmp_path):
    """Untrained weights: tables in the terminal and in files, baseline and teacher told by their channels."""
    for name, channels in (("teacher", 6), ("first", 3), ("second", 3)):
        torch.manual_seed(len(name))
        detector = build_detector(channels, 2, "resnet18", "none", min_size=64, proposals=50)
        torch.save(detector.state_dict(), tmp_path / f"{name}.pth")
        (tmp_path / f"{name}.json").write_text(json.dumps(detector.settings))
    weights = [tmp_path / f"{name}.pth" for name in ("second", "teacher", "first")]
    done = run_script("test.py", "--weights", *weights, "--data", synthetic, "--lists", "val_night", "test_night",
                      "--workers", 0, "--draws", 30, "--json", tmp_path / "r.json", "--csv", tmp_path / "r.csv",
                      "--markdown", tmp_path / "r.md", "--save-detections", tmp_path / "d.json")
    report = json.loads((tmp_path / "r.json").read_text())
    for one in ("val_night", "test_night"):
        assert set(report["metrics"][one]) == set(report["comparison"][one]) == {"second", "teacher", "first"}
        assert f"{one}, in percent" in done.stdout
        for name in ("first", "teacher"):
            expected = report["metrics"][one][name]["AP"] - report["metrics"][one]["second"]["AP"]
            assert report["comparison"][one][name]["AP"]["difference"] == pytest.approx(expected, abs=1e-12)
        assert (tmp_path / f"d.first.{one}.json").is_file()
    assert "| AP - second |" in done.stdout
    written = (tmp_path / "r.md").read_text()
    assert all(line in written for line in done.stdout.splitlines() if line.startswith(("|", "val_")))
    shown = [line.split() for line in done.stdout.splitlines() if line.startswith("second ")]
    assert len(shown) == 4
    assert all(f"| {' | '.join(cells)} |" in written for cells in shown)
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert [(row["model"], row["list"]) for row in rows] == [
        (name, one) for one in ("val_night", "test_night") for name in ("second", "teacher", "first")]
    assert float(rows[0]["AP"]) == report["metrics"]["val_night"]["second"]["AP"]


def test_scores_that_nobody_has_are_not_shown():
    metrics = {"val": {"a": {"AP": 0.25, "MR": math.nan, "recall": 0.5}, "b": {"AP": 1.0, "MR": math.nan,
                                                                             "recall": math.nan}}}
    assert metrics_rows(metrics, {"val": {"images": [1, 2]}}, ["AP", "MR", "recall"]) == [
        ["model", "list", "frames", "AP", "recall"], ["a", "val", "2", "0.2500", "0.5000"],
        ["b", "val", "2", "1.0000", "nan"]]


def test_a_condition_is_scored_as_its_own_list(tmp_path):
    content, results = random_case(6)
    frames = [image["file_name"] for image in content["images"]]
    (tmp_path / "val_night.txt").write_text("\n".join(frames))
    (tmp_path / "val_snow.txt").write_text("\n".join(frames[5:]))
    truths, found = with_conditions(tmp_path, {"val_night": content}, {"val_night": {"a": results}})
    metrics = score(truths, found)
    own_truth = {**content, "images": [{**image, "id": image["id"] - 5} for image in content["images"][5:]],
                 "annotations": [{**one, "image_id": one["image_id"] - 5} for one in content["annotations"]
                                 if one["image_id"] >= 5]}
    own_results = [{**one, "image_id": one["image_id"] - 5} for one in results if one["image_id"] >= 5]
    own = score({"own": own_truth}, {"own": {"a": own_results}})["own"]["a"]
    assert metrics["val_snow"]["a"] == pytest.approx(own, nan_ok=True)
    assert 0.05 < own["AP"] < 0.95
    assert metrics["val_night"]["a"]["AP"] != pytest.approx(own["AP"])
    assert all(one["image_id"] >= 5 for one in [*truths["val_snow"]["annotations"], *found["val_snow"]["a"]])


def test_by_condition(synthetic, tmp_path):
    """Each condition is scored as its own list would be; a list of another split or of other frames is none."""
    detector = build_detector(3, 2, "resnet18", "none", min_size=64, proposals=50)
    torch.save(detector.state_dict(), tmp_path / "a.pth")
    (tmp_path / "a.json").write_text(json.dumps(detector.settings))
    root = shutil.copytree(synthetic, tmp_path / "data")
    names = (root / "val_night.txt").read_text().split()
    for file in root.glob("val_*_night.txt"):
        file.unlink()
    lists = {"val_clear_night": names[:1], "val_snow_night": names[1:], "test_part": names[:2],
             "val_more": [*names, *(root / "test_night.txt").read_text().split()], "val_same": names}
    for name, members in lists.items():
        (root / f"{name}.txt").write_text("\n".join(members))
    common = ["--weights", tmp_path / "a.pth", "--data", root, "--workers", 0, "--classes", "vru", "--json",
              tmp_path / "r.json", "--lists"]
    run_script("test.py", *common, "val_night", "--conditions")
    by_condition = json.loads((tmp_path / "r.json").read_text())["metrics"]
    assert list(by_condition) == ["val_night", "val_clear_night", "val_snow_night"]
    run_script("test.py", *common, "val_snow_night")
    assert json.loads((tmp_path / "r.json").read_text())["metrics"]["val_snow_night"]["a"] == pytest.approx(
        by_condition["val_snow_night"]["a"])
    assert by_condition["val_snow_night"] != by_condition["val_night"]


def test_what_cannot_be_compared(synthetic, tmp_path):
    for name, classes in (("a", ["Pedestrian"]), ("b", ["Pedestrian", "RidableVehicle"]), ("c", ["RidableVehicle"])):
        detector = build_detector(3, len(classes) + 1, "resnet18", "none", min_size=64, proposals=50)
        torch.save(detector.state_dict(), tmp_path / f"{name}.pth")
        (tmp_path / f"{name}.json").write_text(json.dumps({**detector.settings, "classes": classes}))
    weights = {name: tmp_path / f"{name}.pth" for name in "abc"}
    for chosen, message in (("ab", f"{weights['a']} was trained on Pedestrian and {weights['b']} on Pedestrian R"),
                            ("ac", "compare weights of the same classes"), ("aa", "a.pth is named twice")):
        done = run_script("test.py", "--weights", *(weights[name] for name in chosen), "--data", synthetic, expect=2)
        assert message in the_error(done)
    (tmp_path / "d.pth").write_bytes(weights["a"].read_bytes())
    (tmp_path / "d.json").write_text(json.dumps({"classes": ["Pedestrian"], "ignore": ["DontCare"], "min_size": 64}))
    done = run_script("test.py", "--weights", weights["a"], tmp_path / "d.pth", "--data", synthetic, expect=2)
    assert "trained with different --ignore (none; DontCare): pass --ignore" in the_error(done)
    done = run_script("test.py", "--weights", *(weights[name] for name in "ab"), "--data", synthetic, "--classes",
                      "Pedestrian", expect=2)
    assert "b.pth tells 2 classes apart, --classes names 1" in the_error(done)


def test_a_list_with_nobody_is_named(frames, tmp_path):
    detector = build_detector(3, 2, "resnet18", "none", min_size=64)
    torch.save(detector.state_dict(), tmp_path / "a.pth")
    (frames / "nobody.txt").write_text("b")
    done = run_script("test.py", "--weights", tmp_path / "a.pth", "--data", frames, "--lists", "val_night", "nobody",
                      expect=2)
    assert "nobody.txt: no frame has a box of these classes, so there is nothing to score" in the_error(done)

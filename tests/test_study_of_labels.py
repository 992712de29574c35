"""The study of labels on unlabelled pairs: its jobs, run in this process, and its tables."""

import argparse
import json
import math
import shutil

import numpy as np
import pytest
from conftest import run_script, the_error
from test_evaluation import PERSON, result, truth
from test_reproduce import read, run_study

from cmkd.evaluation.bootstrap import compare_detectors
from cmkd.evaluation.metrics import Matches, false_positives_at
from cmkd.frames.layout import read_list
from cmkd.runtime.files import UserError
from cmkd.study import report, unlabelled
from cmkd.study.ablations import variant_row
from cmkd.study.networks import NETWORKS, label_folder, weights_file
from cmkd.study.unlabelled import arm_rows, difference_rows, label_equivalents, working_points
from reproduce import write_shorter_lists

STUDENTS = ("self_labels", "teacher_labels", "true_labels", "features_mse")
NAMES = ("teacher", "baseline", *STUDENTS)
LISTS = ("val_night", "test_night")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study on simulated frames, six of them unlabelled."""
    home = tmp_path_factory.mktemp("labels")
    data, out = home / "data", home / "out"
    frames = ["--frames", 6, 4, 4, "--unlabelled", 6, 2, "--seed", 1]
    run_script("make_synthetic.py", "--out", data, *frames, "--size", "213x128", "--workers", 1)
    write_shorter_lists(data, {0, 4})
    for split in ("val", "test"):
        first = read_list(data / f"{split}_night.txt")[0]
        (data / f"{split}_hail_night.txt").write_text(first)
    options = ["--data", data, "--out", out, "--preset", "unlabelled", "--draws", 5]
    options += ["--train-list", "train_night_4", "--students", *STUDENTS]
    options += ["--lr", 0.00001, "--epochs", 1, "--steps-per-epoch", 2]
    run_study("reproduce.py", *options)
    yield data, out
    shutil.rmtree(home)


def test_each_network_learns_from_its_own_labels(study):
    data, out = study
    for name in NAMES:
        settings = read(weights_file(out, 0, name).with_suffix(".json"))["arguments"]
        wanted = None if name in ("teacher", "baseline") else ["unlabelled_night"]
        assert settings["unlabelled_list"] == wanted
        labels = {
            "self_labels": "baseline_labels_seed0",
            "teacher_labels": "teacher_labels_seed0",
            "true_labels": "true_labels",
        }
        assert settings["machine_labels"] == labels.get(name)
        assert settings["train_list"] == "train_night_4"
        assert (settings["steps_per_epoch"], settings["epochs"]) == (2, 1)
    for labeller in ("baseline", "teacher"):
        folder = data / f"{labeller}_labels_seed0"
        assert len(list(folder.glob("*.txt"))) == 6
        header = (folder / "labels.jsonl").read_text().splitlines()[0]
        assert str(weights_file(out, 0, labeller)) in header


def test_labels_are_written_before_they_are_learned_from(study):
    jobs = list(read(study[1] / "jobs.json"))
    for labeller, student in (("baseline", "self_labels"), ("teacher", "teacher_labels")):
        written = jobs.index(f"seed0/{labeller}_labels/frames")
        assert jobs.index(f"seed0/{labeller}") < written < jobs.index(f"seed0/{student}")


def test_results_have_a_row_for_each(study):
    rows = (study[1] / "results.md").read_text().splitlines()[2 : 2 + len(NAMES)]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == list(NAMES)
    assert all(row.split(" | ")[2] == "1" for row in rows)


def test_the_tables_compare_with_the_control(study, tmp_path):
    """AP by day is of simulated days, differences are those of the tests' detections."""
    data, out = study
    script = "cmkd/study/unlabelled.py"
    options = ["--study", out, "--draws", 5, "--days", 3, "--json", tmp_path / "f.json"]
    records = read(out / "jobs.json")
    nights = {"arguments": ["make_synthetic.py", "--size", "213x128"], "done": True}
    (out / "jobs.json").write_text(json.dumps({**records, "nights": nights}))
    run_study(script, *options)
    figures = read(tmp_path / "f.json")
    assert set(figures["ap_by_day"]) == {"start", *NAMES}
    folder = out / "seed0/baseline"
    scores = read(folder / "scores.json")
    truth = report.tested_truth(data, "test_night", scores["classes"], scores["ignore"])
    found = {
        name: [read(out / f"seed0/{name}/detections.test_night.json")]
        for name in ("self_labels", "teacher_labels")
    }
    entry = compare_detectors(truth, found, "self_labels", None, 5)["teacher_labels"]["AP"]
    against = figures["comparisons"]["test_night"]["against"]["self_labels"]
    assert against["teacher_labels"]["AP"]["difference"] == pytest.approx(entry["difference"])
    assert list(figures["curve"]) == ["4"]  # the baseline's labelled frames
    assert set(figures["label_equivalents"]) == set(STUDENTS)
    table = (tmp_path / "f.md").read_text()
    for name in NAMES:
        metrics = read(out / f"seed0/{name}/scores.json")["metrics"]
        aps = [100 * next(iter(metrics[one].values()))["AP"] for one in LISTS]
        assert f"| {name} | {aps[0]:.1f} | {aps[1]:.1f} |" in table
    assert "| test_hail_night | teacher |" in table
    assert "nan" not in table
    assert f"| {100 * entry['difference']:+.1f} |" in table
    error = the_error(run_study(script, *options, "--seeds", 7, expect=2))
    assert "no finished baseline" in error


def test_shorter_lists_begin_like_the_long_one(study, tmp_path):
    data, _ = study
    whole = read_list(data / "train_night.txt")
    assert read_list(data / "train_night_4.txt") == whole[:4]
    with pytest.raises(UserError, match="only 6 frames, not 7"):
        write_shorter_lists(data, {7})


def test_where_weights_and_labels_are(tmp_path):
    assert weights_file(tmp_path, 3, "cmkd_mse") == tmp_path / "seed3/cmkd_mse.pth"
    files = {weights_file(tmp_path, 3, name) for name in NETWORKS}
    assert len(files) == len(NETWORKS)
    assert label_folder(3, NETWORKS["teacher_labels_mse"]) == "teacher_labels_seed3"
    assert label_folder(3, NETWORKS["true_labels"]) == "true_labels"
    assert label_folder(3, NETWORKS["features_mse"]) is None


def test_false_positives_at_a_recall():
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    hit = np.array([True, False, True, False, False])
    found_at = np.array([0.9, 0.7, -np.inf])
    matches = Matches(2, [], score, hit, np.zeros(5, int), found_at, np.zeros(3, int), [{}] * 3)
    assert false_positives_at(matches, 0) == 0
    assert false_positives_at(matches, 1 / 3) == 0
    assert false_positives_at(matches, 0.5) == false_positives_at(matches, 2 / 3) == 0.5
    assert math.isnan(false_positives_at(matches, 0.7))


def two_people(found):
    """Two frames, a person of the first category in each, and a detector's results on them.

    A second category has nobody. `found` are the scores at which each person is found.
    """
    content = truth([[PERSON], [PERSON]])
    content["categories"].append({"id": 2, "name": "Deer"})
    results = [result(image, PERSON, score) for image, score in found.items()]
    return content, [*results, result(0, [300, 300, 50, 100], 0.1)]


def test_a_recall_that_a_seed_never_reaches_is_no_number(monkeypatch):
    """Its false positives are undefined; the mean of the other seeds would be too good."""
    content, baseline = two_people({0: 0.9, 1: 0.8})
    _, half = two_people({0: 0.9})
    runs = {"baseline": [baseline] * 3, "self_labels": [baseline, half, half]}
    points = working_points(content, runs)
    assert points["baseline"]["false_positives"] == [0.0] * 3
    assert str(points["self_labels"]["false_positives"]) == "[0.0, nan, nan]"
    metrics = dict.fromkeys(("AP", "AP50", "MR", "recall_unseen"), 0.5)
    monkeypatch.setattr(unlabelled, "metrics_of", lambda *_: metrics)
    args = argparse.Namespace(study=None, seeds=[0, 1, 2])
    _, own, other = arm_rows(args, list(runs), "v", "t", points, {})
    assert (own[-2], other[-2]) == ("0.000", "-")


def test_a_class_whose_recall_is_never_reached_counts():
    content, baseline = two_people({0: 0.9, 1: 0.8})
    deer = {"id": 3, "image_id": 0, "category_id": 2, "bbox": PERSON, "area": 1, "iscrowd": 0}
    content["annotations"].append(deer)
    found = {**result(0, PERSON, 0.7), "category_id": 2}
    points = working_points(content, {"baseline": [[*baseline, found]], "other": [baseline]})
    assert points["baseline"]["false_positives"] == [0.0]
    assert math.isnan(points["other"]["false_positives"][0])


def test_differences_without_intervals():
    """A list of few frames, and one with nobody."""
    none = (math.nan, math.nan)
    entry = {"value": 0.4, "difference": 0.1, "gap_closed": 0.5}
    entry |= {"interval": none, "difference_interval": none, "gap_closed_interval": none}
    nobody = {name: math.nan if isinstance(one, float) else one for name, one in entry.items()}
    for values, expected in ((entry, ["40.0", "+10.0", "+10.0", "50 %"]), (nobody, ["-"] * 4)):
        names = ["baseline", "self_labels", "teacher_labels", "true_labels"]
        against = dict.fromkeys(("baseline", "self_labels"), dict.fromkeys(names, {"AP": values}))
        rows = difference_rows(names, {"val": {"against": against}})
        assert rows[3] == ["val", "teacher_labels", *expected]
        assert "nan" not in str(rows)
    figures = {"interval": [math.nan] * 2, "difference": 1.0, "reference": [3.0], "variant": [4.0]}
    assert variant_row("mse 5", figures)[6] == "+1.0"
    assert variant_row("mse 5", {**figures, "interval": [-1.0, 3.0]})[6] == "+1.0 [-1.0, +3.0]"


def test_label_equivalents():
    curve = {100: 8.0, 400: 12.0, 1600: 14.0}
    assert label_equivalents(curve, 10.0) == "200"
    assert label_equivalents(curve, 12.0) == "400"
    assert label_equivalents(curve, 7.0) == "fewer than 100"
    assert label_equivalents(curve, 15.0) == "more than 1600"
    assert label_equivalents({100: 8.0, 400: 7.0}, 7.5).startswith("undefined")

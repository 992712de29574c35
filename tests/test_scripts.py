"""Every script as a user runs it: by subprocess, on real files, good input and bad."""

import importlib
import json
import shutil
import sys

import pytest
import torch
from conftest import NAMES, ROOT, TINY, label_line, run_script, the_error
from pycocotools.coco import COCO

from cmkd.evaluation.metrics import coco_metrics, finite, miss_metrics
from dataset import FOLDERS, SeeingThroughFog, TrainingBatches
from models import Detector, build_detector, inflate, load_detector


@pytest.mark.parametrize("name", NAMES)
def test_training_writes_weights_json_log_and_state(trained, name):
    state = torch.load(trained / "weights" / f"{name}.pth", weights_only=True)
    assert state["backbone.body.conv1.weight"].shape[1] == (6 if name == "teacher" else 3)
    settings = json.loads((trained / "weights" / f"{name}.json").read_text())
    # A network that begins with trained weights has a frozen norm.
    norm = "frozen" if name == "cmkd_plus" else "batch"
    assert (settings["min_size"], settings["norm"], settings["backbone"]) == (64, norm, "resnet18")
    assert settings["classes"] == ["Pedestrian,Pedestrian_is_group"]
    first, epoch = (json.loads(line) for line in (trained / "runs" / name / "log.jsonl").read_text().splitlines())
    assert first["arguments"]["max_iterations"] == 3
    assert epoch["iteration"] == 3
    own = {"cmkd_mse": {"kd_mse"}, "cmkd_adv": {"kd_adv"}}.get(name, set())
    assert epoch["losses"].keys() == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"} | own
    assert all(value > 0 for value in epoch["losses"].values())
    last = torch.load(trained / "runs" / name / "last.pth", weights_only=True)
    assert bool(last["also_trained"]) == (name == "cmkd_adv")
    parameters = list(load_detector(trained / "weights" / f"{name}.pth").parameters())
    discriminators = 4 * 8 if name == "cmkd_adv" else 0
    [group] = last["optimizer"]["param_groups"]
    assert len(group["params"]) == len(parameters) + discriminators
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 0.0005, False)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_train_script_hands_to_fit(frames, tmp_path, monkeypatch, name):
    """Flips and shuffling for training alone, each list where it belongs, the flags that steer the loop."""
    (frames / "other.txt").write_text("a")
    script, calls = importlib.import_module(f"train_{name}"), []
    monkeypatch.setattr(script, "fit", lambda *positional, **named: calls.append((positional, named)))
    arguments = ["--data", frames, "--train-list", "other", "--flip", "--amp", "--out", tmp_path / "w", *TINY]
    if name.startswith("cmkd"):
        torch.save(build_detector(6, 2, "resnet18", "none").state_dict(), tmp_path / "t.pth")
        arguments += ["--teacher", tmp_path / "t.pth"]
    monkeypatch.setattr(sys, "argv", [script.__file__, *map(str, arguments)])
    script.main()
    [((_, _, _, train, val), named)] = calls
    assert (train.dataset.list_file.stem, train.dataset.flip) == ("other", True)
    assert (type(train.batch_sampler), train.batch_sampler.batch_size) == (TrainingBatches, 2)
    assert (val.dataset.list_file.stem, val.dataset.flip, list(val.sampler)) == ("val_night", False, [0, 1])
    assert val.dataset.folders == FOLDERS["rgb+gated" if name == "teacher" else "rgb"]
    assert named["arguments"]["amp"] is True
    assert ("measure" in named) == name.startswith("cmkd")


@pytest.mark.parametrize("name", ["cmkd_mse", "cmkd_adv", "cmkd_plus"])
def test_students_report_their_teacher(trained, name):
    out = (trained / f"{name}.out").read_text()
    assert "teacher: val AP 0.0" in out
    first = json.loads((trained / "runs" / name / "log.jsonl").read_text().splitlines()[0])
    assert f"teacher: val AP {first['settings']['teacher_AP']:.4f}" in out


def same_weights(*run_dirs):
    one, other = (torch.load(folder / "last.pth", weights_only=True)["model"] for folder in run_dirs)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_students_and_baseline_start_alike(synthetic, tmp_path, trained):
    """With one seed all RGB networks start from the same weights and see the same frames: with the distillation
    switched off, the student is the baseline."""
    common = ["--data", synthetic, "--max-iterations", 2, *TINY]
    run_script("train_baseline.py", *common, "--out", tmp_path / "w", "--run-dir", tmp_path / "a")
    teacher = trained / "weights/teacher.pth"
    run_script("train_cmkd_mse.py", *common, "--out", tmp_path / "w", "--run-dir", tmp_path / "b", "--mse-weight", 0,
               "--teacher", teacher)
    assert same_weights(tmp_path / "a", tmp_path / "b")


def test_the_plus_student_is_a_baseline_that_begins_as_the_teacher(synthetic, tmp_path, trained):
    common = ["--data", synthetic, "--max-iterations", 2, "--out", tmp_path / "w", *TINY]
    teacher = trained / "weights/teacher.pth"
    run_script("train_cmkd_plus.py", *common, "--run-dir", tmp_path / "a", "--teacher", teacher)
    run_script("train_baseline.py", *common, "--run-dir", tmp_path / "b", "--init", teacher, "--stem", "inflate")
    assert same_weights(tmp_path / "a", tmp_path / "b")


def test_the_plus_student_begins_as_the_teacher_and_costs_what_the_baseline_does(frames, tmp_path, monkeypatch):
    script, students = importlib.import_module("train_cmkd_plus"), []
    monkeypatch.setattr(script, "fit", lambda student, *_, **__: students.append(student))
    torch.save(build_detector(6, 2, "resnet18", "none").state_dict(), tmp_path / "t.pth")
    monkeypatch.setattr(sys, "argv", [script.__file__, "--data", str(frames), "--teacher", str(tmp_path / "t.pth"),
                                      *TINY])
    script.main()
    own, teacher = students[0].state_dict(), load_detector(tmp_path / "t.pth").state_dict()
    stem = "backbone.body.conv1.weight"
    assert torch.equal(own.pop(stem), inflate(teacher[stem], 3))
    for key, value in own.items():  # but for BatchNorm's epsilon, which a frozen norm has in its variance
        assert torch.allclose(value, teacher[key], rtol=0, atol=2e-5 if key.endswith("running_var") else 0)
    baseline = Detector(3, 2, "resnet18").state_dict()
    assert {key: value.shape for key, value in own.items()} == {
        key: value.shape for key, value in baseline.items() if key != stem}


@pytest.mark.parametrize("channels", [3, 6])
def test_test_script(synthetic, tmp_path, channels):
    """Untrained weights, as they are sure of nothing and so find something everywhere."""
    detector = build_detector(channels, 2, "resnet18", "none", min_size=64, proposals=50)
    torch.save(detector.state_dict(), tmp_path / "w.pth")
    (tmp_path / "w.json").write_text(json.dumps(detector.settings))
    arguments = ["--weights", tmp_path / "w.pth", "--data", synthetic, "--lists", "val_night", "test_night", "--json",
                 tmp_path / "r.json", "--save-detections", tmp_path / "d.json", "--workers", 0]
    done = run_script("test.py", *arguments)
    assert "64 px" in done.stdout
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["settings"]["w"]["channels"], report["settings"]["w"]["proposals"]) == (channels, 50)
    for one in ("val_night", "test_night"):
        lines = [line.split() for line in done.stdout.splitlines()]
        heads = [line for line in lines if line[:1] == ["model"]]
        rows = [line for line in lines if line[:2] == ["w", one]]
        shown = {name: cell for pair in zip(heads, rows, strict=True) for name, cell in zip(*pair, strict=True)}
        for metric in ("AR_100", "MR", "recall", "AP_50_100px", "recall_0_25m"):
            assert float(shown[metric]) == pytest.approx(report["metrics"][one]["w"][metric], abs=1e-4)
        truth = SeeingThroughFog(synthetic, one).ground_truth()
        results = json.loads((tmp_path / f"d.{one}.json").read_text())
        assert len(results) > 0
        assert {result["file_name"] for result in results} <= {image["file_name"] for image in truth["images"]}
        again = finite({**coco_metrics(truth, results), **miss_metrics(truth, results)})
        assert again == pytest.approx(report["metrics"][one]["w"])
        run_script("test.py", "--detections", tmp_path / f"d.{one}.json", "--data", synthetic, "--lists", one, "--json",
                   tmp_path / "again.json")
        scored = json.loads((tmp_path / "again.json").read_text())["metrics"][one]
        assert scored == {f"d.{one}": report["metrics"][one]["w"]}
        run_script("dataset.py", "--export-coco", tmp_path / "truth.json", "--data", synthetic, "--list", one)
        assert json.loads((tmp_path / "truth.json").read_text()) == truth
        COCO(str(tmp_path / "truth.json")).loadRes(str(tmp_path / f"d.{one}.json"))


RESULT = {"image_id": 0, "category_id": 1, "bbox": [1, 2, 30, 40], "score": 0.5}


@pytest.mark.parametrize(("content", "message"), [
    ({"annotations": []}, "holds a dict: expected a list of COCO results"),
    ([RESULT, {**RESULT, "image_id": 99}], "result 1 is on image 99, which the list does not have"),
    ([{**RESULT, "category_id": 7}], "result 0 has category 7: the categories are 1 (Pedestrian+Pedestrian_is_group)"),
    ([{**RESULT, "bbox": [1, 2, 3]}], "result 0 has bbox [1, 2, 3] and score 0.5: expected four finite numbers"),
    ([{**RESULT, "score": "high"}], "and score high: expected four finite numbers and one"),
    ([{**RESULT, "bbox": [1, 2, -3, 4]}], "result 0 has bbox [1, 2, -3, 4]: a width and a height"),
    ([[1]], "result 0 is no COCO result"),
], ids=["no list", "image", "category", "bbox", "score", "negative", "no dictionary"])
def test_detections_made_elsewhere_are_checked(synthetic, tmp_path, content, message):
    (tmp_path / "d.json").write_text(json.dumps(content))
    done = run_script("test.py", "--detections", tmp_path / "d.json", "--data", synthetic, "--lists", "val_night",
                      expect=2)
    assert message in the_error(done)


def test_one_file_of_detections_is_for_one_list(synthetic, tmp_path):
    for content, lists, message in (("[]", ["val_night", "test_night"], "are those of one list"),
                                    ("nothing", ["val_night"], "is not JSON")):
        (tmp_path / "d.json").write_text(content)
        done = run_script("test.py", "--detections", tmp_path / "d.json", "--data", synthetic, "--lists", *lists,
                          expect=2)
        assert message in the_error(done)


@pytest.mark.parametrize("name", ["teacher", "cmkd_adv"])
def test_trained_weights_go_into_the_test_script(trained, synthetic, name):
    done = run_script("test.py", "--weights", trained / "weights" / f"{name}.pth", "--data", synthetic, "--workers", 0)
    assert [line.split()[:3] for line in done.stdout.splitlines()[-2:]] == [
        [name, "val_night", "4"], [name, "test_night", "4"]]


def test_flags_come_before_the_json(trained, synthetic, tmp_path):
    done = run_script("test.py", "--weights", trained / "weights/baseline.pth", "--data", synthetic, "--lists",
                      "val_night", "--min-size", 96, "--workers", 0)
    assert "96 px" in done.stdout
    shutil.copy(trained / "weights/baseline.pth", tmp_path / "alone.pth")
    done = run_script("test.py", "--weights", tmp_path / "alone.pth", "--data", synthetic, "--lists", "val_night",
                      "--max-size", 64, "--workers", 0)
    assert "500 px" in done.stdout  # the published size where nothing says otherwise
    assert "alone.pth: nothing says at which image size it was trained" in done.stdout


def test_a_training_checkpoint_is_tested_as_it_was_trained(trained, synthetic, tmp_path):
    done = run_script("test.py", "--weights", trained / "runs/baseline/last.pth", "--data", synthetic, "--lists",
                      "val_night", "--workers", 0, "--amp", "--json", tmp_path / "r.json")
    assert "64 px" in done.stdout
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["settings"]["last"]["proposals"], report["amp"]) == (50, True)


def test_loss_falls_on_a_few_frames(synthetic, tmp_path):
    run_script("train_teacher.py", "--data", synthetic, "--epochs", 5, "--out", tmp_path / "w",
               "--run-dir", tmp_path / "run", *TINY)
    losses = [sum(json.loads(line)["losses"].values())
              for line in (tmp_path / "run/log.jsonl").read_text().splitlines()[1:]]
    assert losses[-1] < 0.9 * losses[0]


TRAIN = ["--max-iterations", 1, *TINY]
BAD_INPUT = {
    "missing list": ("train_baseline.py", ["--train-list", "nowhere"], None, "nowhere.txt is missing"),
    "missing data": ("train_teacher.py", ["--data", "no/such"], None, "no/such/train_night.txt is missing"),
    "missing slice": ("train_teacher.py", [], "gated2/clear_night_00000_01.png", "train_night.txt:2: "),
    "unknown class": ("train_baseline.py", ["--classes", "Pedestrain"], None, "'Pedestrain'"),
    "missing teacher": ("train_cmkd_mse.py", ["--teacher", "no.pth"], None, "run train_teacher.py first, or pass"),
    "missing teacher, plus": ("train_cmkd_plus.py", ["--teacher", "no.pth"], None, "run train_teacher.py first, or"),
    "missing teacher, adv": ("train_cmkd_adv.py", ["--teacher", "no.pth"], None, "run train_teacher.py first, or pass"),
    "init file": ("train_baseline.py", ["--init", "no.pth"], None, "no.pth is missing"),
    "unknown backbone": ("train_baseline.py", ["--backbone", "vgg"], None, "choose one of resnet18"),
    "no such device": ("train_baseline.py", ["--device", "cuda"], None, "'cuda' cannot be used here"),
    "batch size": ("train_baseline.py", ["--batch-size", "0"], None, "'0' is not a whole number of at least 1"),
    "missing weights": ("test.py", ["--weights", "no.pth"], None, "no.pth is missing"),
    "JSON under a file": ("test.py", ["--json", ROOT / "LICENSE/r.json"], None, "LICENSE/r.json cannot be written"),
    "picture under a file": ("visualize.py", ["--compare", "no.pth", "--out", ROOT / "LICENSE/g.png"], None,
                             "LICENSE/g.png cannot be written"),
    "negative weight": ("train_cmkd_mse.py", ["--mse-weight", "-1"], None, "'-1' is not a number of at least 0"),
    "nan weight": ("train_cmkd_adv.py", ["--adv-weight", "nan"], None, "'nan' is not a number of at least 0"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line(synthetic, tmp_path, copy_of, case):
    script, arguments, removed, message = BAD_INPUT[case]
    data = synthetic
    if removed:
        data = copy_of(synthetic)
        (data / removed).unlink()
    if script.startswith("train"):
        arguments = [*TRAIN, "--out", tmp_path / "w", "--run-dir", tmp_path / "run", *arguments]
    done = run_script(script, "--data", data, *arguments, expect=2)
    assert message in the_error(done)
    assert not (tmp_path / "w").exists()
    assert not (tmp_path / "run").exists()


def test_error_in_a_loader_worker_is_one_line(synthetic, tmp_path, copy_of):
    data = copy_of(synthetic)
    damaged = data / "gated1" / "clear_night_00000_02.png"
    damaged.write_bytes(b"\x89PNG\r\n")
    done = run_script("train_teacher.py", "--data", data, *TRAIN, "--max-iterations", 3, "--workers", 2, "--out",
                      tmp_path / "w", "--run-dir", tmp_path / "run", expect=2)
    assert the_error(done).startswith(f"train_teacher.py: error: {damaged} cannot be read")


def test_bad_label_is_named_with_its_line(synthetic, copy_of, trained):
    data = copy_of(synthetic)
    (data / "gated_labels" / "clear_night_00002_01.txt").write_text(label_line() + "Pedestrian 0 0\n")
    done = run_script("test.py", "--weights", trained / "weights/baseline.pth", "--data", data, expect=2)
    assert "clear_night_00002_01.txt:2: 3 columns, expected 27" in the_error(done)


def test_weights_of_other_classes(synthetic, trained):
    done = run_script("test.py", "--weights", trained / "weights/baseline.pth", "--data", synthetic, "--classes",
                      "Pedestrian", "PassengerCar", expect=2)
    assert "tells 1 classes apart, --classes names 2" in the_error(done)


def test_student_as_teacher_is_refused(synthetic, trained, tmp_path):
    done = run_script("train_cmkd_mse.py", "--data", synthetic, *TRAIN, "--teacher", trained / "weights/baseline.pth",
                      "--out", tmp_path / "w", "--run-dir", tmp_path / "run", expect=2)
    assert "takes 3 channels, a teacher takes 6" in the_error(done)


def test_help_gives_the_published_values():
    text = run_script("train_cmkd_adv.py", "--help").stdout
    for value in ("published: 100", "published: 0.005", "published: 0.3", "published: 500", "published: coco"):
        assert value in " ".join(text.split())


def test_ignore_regions_from_training_to_evaluation(synthetic, copy_of, tmp_path):
    data = copy_of(synthetic)
    for file in (data / "gated_labels").glob("*.txt"):
        file.write_text(file.read_text() + label_line("DontCare", (0, 0, 1280, 300)))
    run_script("train_baseline.py", "--data", data, "--out", tmp_path, "--run-dir", tmp_path / "run", "--ignore",
               "--max-iterations", 2, *TINY)
    test = ["test.py", "--weights", tmp_path / "baseline.pth", "--data", data, "--lists", "val_night", "--device",
            "cpu", "--workers", 0]
    assert "ignored: DontCare Obstacle *_is_group" in run_script(*test).stdout
    assert "ignored: nothing" in run_script(*test, "--ignore", "none").stdout

"""Every script as a user runs it, on real files, good input and bad."""

import argparse
import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import NAMES, ROOT, TINY, epochs_of, label_line, run_script, the_error, train
from pycocotools.coco import COCO

from cmkd.evaluation.metrics import coco_metrics, miss_metrics, none_for_nan
from cmkd.runtime.weights import sha256_of
from dataset import FOLDERS_OF, SeeingThroughFog, TrainingBatches
from models import build_detector, inflate, load_detector
from utils import known_teacher_ap


@pytest.mark.parametrize("name", NAMES)
def test_training_writes_weights_json_log_and_state(trained, name):
    state = torch.load(trained / "weights" / f"{name}.pth", weights_only=True)
    assert state["backbone.body.conv1.weight"].shape[1] == (6 if name == "teacher" else 3)
    settings = json.loads((trained / "weights" / f"{name}.json").read_text())
    shown = settings["min_size"], settings["norm"], settings["backbone"]
    assert shown == (64, "batch", "resnet18")
    assert settings["classes"] == ["Pedestrian,Pedestrian_is_group"]
    log = (trained / "runs" / name / "log.jsonl").read_text().splitlines()
    first, epoch = map(json.loads, log)
    assert first["arguments"]["max_iterations"] == 3
    assert epoch["iteration"] == 3
    detection = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    own = {"cmkd_mse": {"kd_mse"}, "cmkd_adv": {"kd_adv"}}.get(name, set())
    assert epoch["losses"].keys() == detection | own
    assert all(value > 0 for value in epoch["losses"].values())
    last = torch.load(trained / "runs" / name / "last.pth", weights_only=True)
    assert bool(last["also_trained"]) == (name == "cmkd_adv")
    parameters = list(load_detector(trained / "weights" / f"{name}.pth").parameters())
    discriminators = 4 * 8 if name == "cmkd_adv" else 0
    [group] = last["optimizer"]["param_groups"]
    assert len(group["params"]) == len(parameters) + discriminators
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 0.0005, False)


WHERE = re.compile(r"cpu \(.+, \d+ cores\), (\w+), \d+ threads?; not on a GPU because \w.*")


def precisions_said(output):
    """The precision in each line that says where networks run."""
    return [match[1] for match in map(WHERE.fullmatch, output.splitlines()) if match]


@pytest.mark.parametrize("name", NAMES)
def test_a_train_script_says_where_it_runs(trained, name):
    said = precisions_said((trained / f"{name}.out").read_text())
    assert said == ["bfloat16" if name == "baseline" else "float32"]


def test_scripts_that_run_networks_say_where(trained, synthetic, tmp_path):
    """Before they do. Others say nothing, and neither do other modes."""
    weights = trained / "weights/baseline.pth"
    common = f"--data {synthetic} --workers 0 --amp"
    detections, sheet = f"{tmp_path}/d.json", f"{tmp_path}/s.png"
    runs = {
        f"test.py --weights {weights} --lists val_night --save-detections {detections}": "bfloat16",
        f"visualize.py --compare {weights} --list val_night --out {sheet}": "bfloat16",
        f"visualize.py --images {synthetic}/images --weights {weights} --out {tmp_path}/i": (
            "bfloat16"
        ),
        # The pyramids are shown as they are without autocast.
        f"visualize.py --features {weights} --list val_night --out {sheet}": "float32",
    }
    for command, precision in runs.items():
        assert precisions_said(run_script(*f"{command} {common}".split()).stdout) == [precision]
    for command in (
        f"test.py --detections {detections} --lists val_night",
        f"visualize.py --curves {trained}/runs/baseline/log.jsonl --out {sheet}",
    ):
        assert precisions_said(run_script(*f"{command} {common}".split()).stdout) == []


@pytest.mark.parametrize("name", NAMES)
def test_what_a_train_script_hands_to_fit(frames, tmp_path, monkeypatch, name):
    """Flips and shuffling for training alone, each list in its place, the options of the loop."""
    (frames / "other.txt").write_text("a")
    script, calls = importlib.import_module(f"train_{name}"), []
    monkeypatch.setattr(script, "fit", lambda *given, **named: calls.append((given, named)))
    options = ["--data", frames, "--train-list", "other", "--flip", "--amp", *TINY]
    if name.startswith("cmkd"):
        torch.save(build_detector(6, 2, "resnet18", "none").state_dict(), tmp_path / "t.pth")
        options += ["--teacher", tmp_path / "t.pth"]
    monkeypatch.setattr(sys, "argv", [script.__file__, *map(str, options)])
    script.main()
    [((_, _, _, train_loader, val_loader), named)] = calls
    train_set, val_set, batches = (
        train_loader.dataset,
        val_loader.dataset,
        train_loader.batch_sampler,
    )
    assert (train_set.list_file.stem, train_set.flip) == ("other", True)
    assert (type(batches), batches.batch_size) == (TrainingBatches, 2)
    assert (val_set.list_file.stem, val_set.flip) == ("val_night", False)
    assert list(val_loader.sampler) == [0, 1]
    assert val_set.folders == FOLDERS_OF["rgb+gated" if name == "teacher" else "rgb"]
    assert train_set.folders == FOLDERS_OF["rgb" if name == "baseline" else "rgb+gated"]
    assert named["arguments"]["amp"] is True
    assert named["weights"] == Path("weights") / f"{name}.pth"
    assert ("teacher_AP" in named["settings"]) == name.startswith("cmkd")


@pytest.mark.parametrize("name", ["cmkd_mse", "cmkd_adv"])
def test_students_report_their_teachers_ap(trained, name):
    """From the JSON beside its weights: they are tested at the same size, on the same frames."""
    known = json.loads((trained / "weights/teacher.json").read_text())["val"]["AP"]
    assert f"teacher: val AP {known:.4f} (epoch 1 of " in (trained / f"{name}.out").read_text()
    for file in (trained / "weights" / f"{name}.json", trained / "runs" / name / "log.jsonl"):
        assert f'"teacher_AP": {known}' in file.read_text()


@pytest.mark.parametrize(
    "change",
    ["weights", "labels", "list", "--min-size 80", "--amp", "--classes vru", "--ignore", "no json"],
)
def test_a_teachers_ap_is_unknown_if_it_was_measured_otherwise(
    trained, synthetic, tmp_path, copy_of, monkeypatch, capsys, change
):
    script, settings = importlib.import_module("train_cmkd_mse"), {}
    monkeypatch.setattr(script, "fit", lambda *_, **named: settings.update(named["settings"]))
    teacher, data = tmp_path / "t.pth", copy_of(synthetic)
    shutil.copy(trained / "weights/teacher.pth", teacher)
    if change != "no json":
        shutil.copy(trained / "weights/teacher.json", tmp_path / "t.json")
    if change == "weights":
        torch.save({**torch.load(teacher, weights_only=True)}, teacher)
    if change == "labels":
        name = (data / "val_night.txt").read_text().split()[0]
        (data / "gated_labels" / f"{name}.txt").write_text(label_line())
    if change == "list":
        (data / "val_night.txt").write_text((data / "test_night.txt").read_text())
    options = ["--data", data, "--teacher", teacher, "--no-amp", *TINY]
    options += change.split() if change.startswith("--") else []
    monkeypatch.setattr(sys, "argv", [script.__file__, *map(str, options)])
    script.main()
    assert settings["teacher_AP"] is None
    expected = f"teacher: val AP not known here; python test.py --weights {teacher} --data {data}"
    assert expected in capsys.readouterr().out


def test_a_teacher_with_nothing_to_teach_is_warned_of(tmp_path, capsys):
    """Beside a good one, whose AP is reported alone."""
    file = tmp_path / "t.pth"
    torch.save({}, file)
    sizes = {"min_size": 64, "max_size": 99}
    args = argparse.Namespace(teacher=file, classes=["Pedestrian"], amp=False, **sizes)
    for ap, warned in ((0.004, True), (0.3, False)):
        known = {"sha256": sha256_of(file), "val_fingerprint": "f", **sizes}
        known |= {"val": {"AP": ap}, "epoch": 2, "arguments": {"amp": False}}
        (tmp_path / "t.json").write_text(json.dumps(known))
        assert known_teacher_ap(args, "f") == ap
        out, err = capsys.readouterr()
        assert f"teacher: val AP {ap:.4f} (epoch 2 of {file})" in out
        assert ("has nothing to teach" in err) == warned


def same_weights(*run_dirs):
    one, other = (torch.load(run / "last.pth", weights_only=True)["model"] for run in run_dirs)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_students_and_baseline_start_alike(synthetic, tmp_path, trained):
    """One seed gives all RGB networks the same weights and the same batches.

    So a student without its distillation loss is the baseline.
    """
    train("baseline", synthetic, tmp_path / "a", "--max-iterations 2")
    options = ["--mse-weight", 0, "--teacher", trained / "weights/teacher.pth"]
    train("cmkd_mse", synthetic, tmp_path / "b", "--max-iterations 2", *options)
    assert same_weights(tmp_path / "a/run", tmp_path / "b/run")


def test_a_baseline_can_start_with_the_teachers_weights(trained, synthetic, tmp_path):
    """The gated kernels of the stem are shared out over R, G and B; the norms are frozen."""
    file = trained / "weights/teacher.pth"
    options = ["--init", file, "--stem", "inflate", "--max-iterations", 1, "--lr", 1e-12]
    train("baseline", synthetic, tmp_path, "--no-amp", *options)
    own, teacher = (
        load_detector(tmp_path / "baseline.pth").state_dict(),
        load_detector(file).state_dict(),
    )
    stem = "backbone.body.conv1.weight"
    assert torch.allclose(
        own.pop(stem), inflate(teacher[stem], "rgb+gated", "rgb"), rtol=0, atol=1e-9
    )
    for key, value in own.items():
        # BatchNorm's epsilon is in the variance of a frozen norm.
        tolerance = 2e-5 if key.endswith("running_var") else 1e-9
        assert torch.allclose(value, teacher[key], rtol=0, atol=tolerance), key
    assert json.loads((tmp_path / "baseline.json").read_text())["norm"] == "frozen"


def run_test(data, options, *more, expect=0):
    """Run test.py without loader workers."""
    return run_script(
        "test.py", "--data", data, "--workers", 0, *options.split(), *more, expect=expect
    )


@pytest.mark.parametrize("channels", [3, 6])
def test_test_script(synthetic, tmp_path, channels):
    """Untrained weights: they are sure of nothing, and so find something everywhere."""
    detector = build_detector(channels, 2, "resnet18", "none", min_size=64, proposals=50)
    torch.save(detector.state_dict(), tmp_path / "w.pth")
    (tmp_path / "w.json").write_text(json.dumps(detector.settings))
    files = ["--json", tmp_path / "r.json", "--save-detections", tmp_path / "d.json"]
    done = run_test(synthetic, f"--weights {tmp_path}/w.pth --lists val_night test_night", *files)
    assert "64 px" in done.stdout
    report = json.loads((tmp_path / "r.json").read_text())
    settings = report["settings"]["w"]
    assert (settings["channels"], settings["proposals"]) == (channels, 50)
    lines = [line.split() for line in done.stdout.splitlines()]
    heads = [line for line in lines if line[:1] == ["model"]]
    for one in ("val_night", "test_night"):
        rows = [line for line in lines if line[:2] == ["w", one]]
        shown = {}
        for head, row in zip(heads, rows, strict=True):
            shown |= dict(zip(head, row, strict=True))
        metrics = report["metrics"][one]["w"]
        for metric in ("AR_100", "MR", "recall", "AP_50_100px", "recall_0_25m"):
            assert float(shown[metric]) == pytest.approx(metrics[metric], abs=1e-4)
        truth = SeeingThroughFog(synthetic, one).ground_truth()
        detections = tmp_path / f"d.{one}.json"
        results = json.loads(detections.read_text())
        assert len(results) > 0
        names = {image["file_name"] for image in truth["images"]}
        assert {result["file_name"] for result in results} <= names
        again = none_for_nan({**coco_metrics(truth, results), **miss_metrics(truth, results)})
        assert again == pytest.approx(metrics)
        files = ["--detections", detections, "--json", tmp_path / "again.json"]
        run_test(synthetic, f"--lists {one}", *files)
        scored = json.loads((tmp_path / "again.json").read_text())["metrics"][one]
        assert scored == {f"d.{one}": metrics}
        exported = tmp_path / "truth.json"
        run_script("check_data.py", synthetic, "--list", one, "--export-coco", exported)
        content = json.loads(exported.read_text())
        for image in content["images"]:
            image["file_name"] = image["file_name"].removesuffix(".png")
        assert content == truth
        COCO(str(exported)).loadRes(str(detections))


RESULT = {"image_id": 0, "category_id": 1, "bbox": [1, 2, 30, 40], "score": 0.5}
BAD_RESULTS = {
    "no list": ({"annotations": []}, "holds a dict: expected a list of COCO results"),
    "image": ([RESULT, {**RESULT, "image_id": 99}], "result 1 is on image 99, which the list does"),
    "category": (
        [{**RESULT, "category_id": 7}],
        "result 0 has category 7: the categories are 1 (Pedestrian+Pedestrian_is_group)",
    ),
    "bbox": (
        [{**RESULT, "bbox": [1, 2, 3]}],
        "result 0 has bbox [1, 2, 3] and score 0.5: bbox must be four finite numbers",
    ),
    "score": (
        [{**RESULT, "score": "high"}],
        "and score high: bbox must be four finite numbers and score one",
    ),
    "negative": (
        [{**RESULT, "bbox": [1, 2, -3, 4]}],
        "result 0 has bbox [1, 2, -3, 4]: width and height must be at least 0",
    ),
    "no dictionary": ([[1]], "result 0 is no COCO result"),
    "another list": (
        [{**RESULT, "file_name": "other_00001_00.png"}],
        "result 0 is on other_00001_00.png, but image 0 of the list is",
    ),
}


@pytest.mark.parametrize("case", BAD_RESULTS)
def test_detections_made_elsewhere_are_checked(synthetic, tmp_path, case):
    content, message = BAD_RESULTS[case]
    (tmp_path / "d.json").write_text(json.dumps(content))
    options = f"--detections {tmp_path}/d.json --lists val_night"
    assert message in the_error(run_test(synthetic, options, expect=2))


def test_one_file_of_detections_is_for_one_list(synthetic, tmp_path):
    for content, lists, message in (
        ("[]", "val_night test_night", "holds the results of one list"),
        ("nothing", "val_night", "is not JSON"),
    ):
        (tmp_path / "d.json").write_text(content)
        options = f"--detections {tmp_path}/d.json --lists {lists}"
        assert message in the_error(run_test(synthetic, options, expect=2))


@pytest.mark.parametrize("name", ["teacher", "cmkd_adv"])
def test_trained_weights_go_into_the_test_script(trained, synthetic, name):
    done = run_test(synthetic, f"--weights {trained}/weights/{name}.pth")
    rows = [line.split()[:3] for line in done.stdout.splitlines() if line.startswith(f"{name} ")]
    assert rows[-2:] == [[name, "val_night", "4"], [name, "test_night", "4"]]


def test_flags_come_before_the_json(trained, synthetic, tmp_path):
    weights = trained / "weights/baseline.pth"
    done = run_test(synthetic, f"--weights {weights} --lists val_night --min-size 96")
    assert "96 px" in done.stdout
    shutil.copy(weights, tmp_path / "alone.pth")
    options = f"--weights {tmp_path}/alone.pth --lists val_night --max-size 64"
    done = run_test(synthetic, options)
    assert "500 px" in done.stdout  # the published size if nothing says otherwise
    assert "alone.pth: nothing says how it was trained; assuming" in done.stdout


def test_a_training_checkpoint_is_tested_as_it_was_trained(trained, synthetic, tmp_path):
    options = f"--weights {trained}/runs/baseline/last.pth --lists val_night --amp"
    done = run_test(synthetic, options, "--json", tmp_path / "r.json")
    assert "64 px" in done.stdout
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["settings"]["last"]["proposals"], report["amp"]) == (50, True)


def test_loss_falls_on_a_few_frames(synthetic, tmp_path):
    train("teacher", synthetic, tmp_path, "--epochs 3")
    losses = [sum(record["losses"].values()) for record in epochs_of(tmp_path / "run")]
    assert losses[-1] < 0.9 * losses[0]


BAD_INPUT = {  # script, options, error
    "missing list": ("train_baseline.py", "--train-list nowhere", "nowhere.txt is missing"),
    "missing data": ("train_teacher.py", "--data no/such", "no/such/train_night.txt is missing"),
    "missing slice": ("train_teacher.py", "", "train_night.txt:2: "),
    "unknown class": ("train_baseline.py", "--classes Pedestrain", "'Pedestrain'"),
    "missing teacher": ("train_cmkd_mse.py", "--teacher no.pth", "run train_teacher.py first, or"),
    "missing teacher, adv": ("train_cmkd_adv.py", "--teacher no.pth", "run train_teacher.py first"),
    "init file": ("train_baseline.py", "--init no.pth", "no.pth is missing"),
    "unknown backbone": ("train_baseline.py", "--backbone vgg", "choose one of resnet18"),
    "no such device": ("train_baseline.py", "--device cuda", "'cuda' cannot be used here"),
    "batch size": (
        "train_baseline.py",
        "--batch-size 0",
        "'0' is not a whole number of at least 1",
    ),
    "missing weights": ("test.py", "--weights no.pth", "no.pth is missing"),
    "JSON under a file": (
        "test.py",
        f"--json {ROOT}/LICENSE/r.json",
        "LICENSE/r.json cannot be written",
    ),
    "picture under a file": (
        "visualize.py",
        f"--compare no.pth --out {ROOT}/LICENSE/g.png",
        "LICENSE/g.png cannot be written",
    ),
    "negative weight": ("train_cmkd_mse.py", "--mse-weight -1", "'-1' is not a number of at least"),
    "nan weight": ("train_cmkd_adv.py", "--adv-weight nan", "'nan' is not a number of at least 0"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line(synthetic, tmp_path, copy_of, case):
    script, options, message = BAD_INPUT[case]
    data = copy_of(synthetic) if case == "missing slice" else synthetic
    if case == "missing slice":
        (data / "gated2/clear_night_00000_01.png").unlink()
    if script.startswith("train"):
        name = script.removeprefix("train_").removesuffix(".py")
        done = train(name, data, tmp_path / "home", options, expect=2)
    else:
        done = run_script(script, "--data", data, *options.split(), expect=2)
    assert message in the_error(done)
    assert not (tmp_path / "home").exists()


def test_an_error_in_a_loader_worker_is_one_line(synthetic, tmp_path, copy_of):
    data = copy_of(synthetic)
    damaged = data / "gated1" / "clear_night_00000_02.png"
    damaged.write_bytes(b"\x89PNG\r\n")
    done = train("teacher", data, tmp_path, "--max-iterations 3 --workers 2", expect=2)
    assert the_error(done).startswith(f"train_teacher.py: error: {damaged} cannot be read")


def test_bad_label_is_named_with_its_line(synthetic, copy_of, trained):
    data = copy_of(synthetic)
    file = data / "gated_labels" / "clear_night_00002_01.txt"
    file.write_text(label_line() + "Pedestrian 0 0\n")
    done = run_test(data, f"--weights {trained}/weights/baseline.pth", expect=2)
    assert "clear_night_00002_01.txt:2: 3 columns, expected 27" in the_error(done)


def test_weights_of_other_classes(synthetic, trained):
    options = f"--weights {trained}/weights/baseline.pth --classes Pedestrian PassengerCar"
    error = the_error(run_test(synthetic, options, expect=2))
    assert "baseline.pth was trained on --classes Pedestrian,Pedestrian_is_group" in error


def test_student_as_teacher_is_refused(synthetic, trained, tmp_path):
    options = f"--teacher {trained}/weights/baseline.pth"
    done = train("cmkd_mse", synthetic, tmp_path, options, expect=2)
    assert "takes 3 channels, a teacher takes 6" in the_error(done)


def test_help_gives_the_published_values():
    text = " ".join(run_script("train_cmkd_adv.py", "--help").stdout.split())
    for value in ("100", "0.005", "0.3", "500", "coco"):
        assert f"published: {value}" in text


def test_ignore_regions_from_training_to_evaluation(synthetic, copy_of, tmp_path):
    data = copy_of(synthetic)
    for file in (data / "gated_labels").glob("*.txt"):
        file.write_text(file.read_text() + label_line("DontCare", (0, 0, 1280, 300)))
    train("baseline", data, tmp_path, "--ignore --max-iterations 2")
    options = f"--weights {tmp_path}/baseline.pth --lists val_night"
    assert "ignored: DontCare Obstacle *_is_group" in run_test(data, options).stdout
    assert "ignored: nothing" in run_test(data, options + " --ignore none").stdout


def test_scripts_run_from_anywhere(tmp_path, synthetic, trained):
    """Without installation: Python finds the modules beside the script."""
    options = ["--data", synthetic, "--lists", "val_night", "--workers", 0, "--device", "cpu"]
    command = [ROOT / "test.py", "--weights", trained / "weights/baseline.pth", *options]
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "baseline" in done.stdout


def test_a_teacher_of_the_slices_alone(synthetic, tmp_path):
    """It trains, teaches, labels and is tested; the student stays an RGB detector."""
    steps = ["--max-iterations", 2, "--no-amp"]
    teacher = tmp_path / "teacher.pth"
    run = ["--run-dir", tmp_path / "t"]
    train("teacher", synthetic, tmp_path, "", "--input", "gated", *steps, *run)
    settings = json.loads(teacher.with_suffix(".json").read_text())
    assert (settings["channels"], settings["modality"]) == (3, "gated")
    run = ["--run-dir", tmp_path / "s"]
    train("cmkd_mse", synthetic, tmp_path, "", "--teacher", teacher, *steps, *run)
    student = tmp_path / "cmkd_mse.pth"
    options = ["--data", synthetic, "--lists", "val_night", "--workers", 0, "--draws", 2]
    done = run_script("test.py", "--weights", student, teacher, *options)
    assert "cmkd_mse: rgb, resnet18" in done.stdout
    assert "teacher: gated, resnet18" in done.stdout
    folder = synthetic / "labels_of_slices"
    options = ["--list", "train_night", "--also-labelled", "--thresholds", 0.5, 0.1]
    options += ["--data", synthetic, "--out", folder.name, "--workers", 0]
    try:
        run_script("label_frames.py", "--weights", teacher, *options)
        assert len(list(folder.glob("*.txt"))) == 6
    finally:
        shutil.rmtree(folder)


def test_people_and_animals_are_two_classes(tmp_path):
    """From simulated frames to an AP of each class, pictures and an exported detector."""
    data, weights = tmp_path / "data", tmp_path / "baseline.pth"
    options = ["--frames", 6, 6, 0, "--frames-per-recording", 1, "--size", "160x96", "--seed", 4]
    run_script("make_synthetic.py", "--out", data, *options, "--animals", 1, "--workers", 2)
    classes = ["--classes", "vru", "Deer,Moose,Boar"]
    train("baseline", data, tmp_path, "--max-iterations 2 --no-amp", *classes)
    options = ["--weights", weights, "--data", data, "--lists", "val_night", "--workers", 0]
    done = run_script("test.py", *options, "--json", tmp_path / "s.json")
    by_class = json.loads((tmp_path / "s.json").read_text())["by_class"]["val_night"]["baseline"]
    people = "Pedestrian+Pedestrian_is_group+RidableVehicle+RidableVehicle_is_group+person"
    names = [people, "Deer+Moose+Boar"]
    assert list(by_class) == names
    metrics = json.loads((tmp_path / "s.json").read_text())["metrics"]["val_night"]["baseline"]
    mean = sum(by_class[name]["AP"] for name in names) / 2
    assert mean == pytest.approx(metrics["AP"], abs=1e-9)
    assert all(f" {name} " in done.stdout for name in names)
    pictures = ["--list", "val_night", "--data", data, "--workers", 0, "--out", tmp_path / "g.png"]
    run_script("visualize.py", "--compare", weights, *pictures)
    assert (tmp_path / "g.png").is_file()

"""Studies: real scripts on simulated frames, with a run that fails, then whole; tables by hand.

The study that most tests look at is made once. Its jobs run in this process, one after another: a
new process takes seconds to import torch. `scripts` has jobs that are real processes.
"""

import hashlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import Future
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import ROOT, run_here, run_script, the_error
from PIL import Image

import reproduce
from cmkd.evaluation.bootstrap import compare_detectors
from cmkd.evaluation.metrics import none_for_nan
from cmkd.frames.layout import condition_lists
from cmkd.runtime import checkpoint
from cmkd.runtime.failures import run
from cmkd.runtime.files import UserError
from cmkd.study import day_detector, jobs, networks, report
from cmkd.study.ablations import VARIANTS, variant_jobs
from cmkd.study.discriminators import domain_entropy
from cmkd.study.jobs import (
    Job,
    JobRunner,
    environments,
    option_value,
    option_words,
    run_jobs,
    training_state,
)
from cmkd.study.report import (
    WITHOUT_UNSEEN,
    FinishedRun,
    Study,
    compare_runs,
    gap_cell,
    gap_without_unseen,
    mean_and_deviation,
    results_rows,
    without_unseen,
    write_results,
)
from dataset import SeeingThroughFog
from models import build_detector, build_discriminators
from reproduce import PRESETS
from train_cmkd_adv import domain_bce
from utils import training_parser

NETWORKS = ("teacher", "baseline", "cmkd_mse")
LISTS = ("val_night", "test_night")


class Inline:
    """An executor that works at once, in the main thread, where train scripts handle signals."""

    def __init__(self, _):
        pass

    def submit(self, work, *given):
        future = Future()
        try:
            future.set_result(work(*given))
        except UserError as error:
            future.set_exception(error)
        return future

    def shutdown(self):
        pass


def call_here(_, job, environment, log):
    """Stands in for `JobRunner.call_script`, and leaves out what takes time and no test looks at:
    training states, and the page's intervals."""
    command = [str(ROOT / job.arguments[0]), *job.arguments[1:]]
    if job.arguments[0] == "make_synthetic.py":  # needs no torch
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    else:
        if job.name == "pictures":
            command += ["--draws", "2"]
        with patch.object(checkpoint, "save"):
            done = run_here(command)
    log.write_text(done.stderr)
    return done.returncode


def run_study(script, *arguments, expect=0):
    """Run a script and its jobs in this process."""
    with (
        patch.object(jobs, "ThreadPoolExecutor", Inline),
        patch.object(JobRunner, "call_script", call_here),
    ):
        done = run_here([str(ROOT / script), *map(str, arguments)])
    assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def read(file):
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def study(synthetic, tmp_path_factory):
    """A study of two seeds, called twice; in the first call one run cannot write."""
    out = tmp_path_factory.mktemp("study") / "out"
    command = ["reproduce.py", "--data", synthetic, "--out", out, "--seeds", 3, 5]
    command += ["--students", "cmkd_mse", "--min-size", 80, "--epochs", 1]
    command += ["--draws", 20]
    (out / "seed5").mkdir(parents=True)
    (out / "jobs.json").write_text("{}")
    (out / "seed5/cmkd_mse").write_text("in the way")
    first = run_study(*command, expect=2)
    first_table, first_results = (out / "results.md").read_text(), read(out / "results.json")
    (out / "seed5/cmkd_mse").unlink()
    second = run_study(*command)
    yield types.SimpleNamespace(
        out=out,
        command=command,
        first=first,
        first_table=first_table,
        first_results=first_results,
        second=second,
    )
    shutil.rmtree(out)  # gigabytes that would otherwise stay until all tests are over


def test_what_fails_leaves_a_hole(study):
    """The gap is that of the seed which all networks have."""
    errors = study.first.stderr.strip().splitlines()
    assert any(
        line.startswith("warning: seed5/cmkd_mse: ") and "cannot be written" in line
        for line in errors
    )
    assert "warning: test/seed5/cmkd_mse: it needs seed5/cmkd_mse, which failed" in errors
    assert errors[-1].startswith("reproduce.py: error: 2 of 12 jobs failed")
    rows = study.first_table.splitlines()[2:5]
    assert [row.split(" | ")[2] for row in rows] == ["2", "2", "1 of 2"]
    for name in NETWORKS:
        seed3 = study.first_results["runs"][name]["3"]["metrics"]["val_night"]["AP"]
        entry = study.first_results["comparison"]["val_night"][name]["AP"]
        assert entry["value"] == pytest.approx(seed3, abs=1e-12)


def test_what_is_done_is_not_done_again(study):
    lines = study.second.stdout.splitlines()
    started = [line for line in lines if line.startswith("$ python ")]
    assert [line.split()[2] for line in started] == ["train_cmkd_mse.py", "test.py"]
    assert all("seed5" in line for line in started)
    assert all(job["done"] for job in read(study.out / "jobs.json").values())


def test_the_table_is_that_of_the_runs(study, synthetic):
    """Means over the seeds' own APs, the pooled comparison's AP, the gap between the means."""
    results, table = read(study.out / "results.json"), (study.out / "results.md").read_text()
    row = table.splitlines()[4].strip("| ").split(" | ")
    assert row[:3] == ["cmkd_mse", "RGB", "2"]
    for list_name, cell in zip(LISTS, row[8:10], strict=True):
        comparison, means = results["comparison"][list_name], {}
        for name in NETWORKS:
            files = [study.out / f"seed{seed}" / name / "scores.json" for seed in (3, 5)]
            aps = [read(file)["metrics"][list_name][name]["AP"] for file in files]
            means[name] = statistics.mean(aps)
            assert comparison[name]["AP"]["value"] == pytest.approx(means[name], abs=1e-12)
        if list_name == "val_night":
            assert row[3].startswith(f"{100 * means['cmkd_mse']:.1f} ± ")
            assert means["teacher"] != means["baseline"]
        share = comparison["cmkd_mse"]["AP"]["gap_closed"]
        gap = means["teacher"] - means["baseline"]
        if gap > 0:
            assert share == pytest.approx((means["cmkd_mse"] - means["baseline"]) / gap)
            assert cell.startswith(f"{round(100 * share)} %")
        else:
            assert (share, cell) == (None, "-")
    conditions = {each for name in LISTS for each in condition_lists(synthetic, name)}
    assert set(results["comparison"]) == {*LISTS, WITHOUT_UNSEEN, *conditions}


def test_what_a_run_took(study):
    results = read(study.out / "results.json")
    log = (study.out / "seed3/teacher/log.jsonl").read_text().splitlines()
    last, summary = json.loads(log[-1]), results["runs"]["teacher"]["3"]
    minutes = (last["train_seconds"] + last["val_seconds"]) / 60
    assert summary["minutes"] == pytest.approx(minutes)
    assert summary["epoch"] == 1
    commit = read(study.out / "seed3/teacher.json")["versions"]["git"]
    assert summary["git"] == commit
    assert f"Commit {commit}." in (study.out / "results.md").read_text()


def test_the_gap_without_the_unseen(synthetic):
    """A teacher that finds everybody, a baseline that finds half of those whom RGB shows, and a
    student that finds all of those, which closes this gap."""
    classes = ["Pedestrian"]
    found = {"teacher": {}, "baseline": {}, "cmkd_mse": {}}
    for list_name in LISTS:
        people = SeeingThroughFog(synthetic, list_name, "rgb", classes).ground_truth()
        everybody, shown = [], []
        for person in people["annotations"]:
            keys = ("image_id", "category_id", "bbox")
            everybody.append({**{key: person[key] for key in keys}, "score": 0.9})
            if person["visible_rgb"] or not person["visible_gated"]:
                shown.append(everybody[-1])
        assert 1 < len(shown) < len(everybody)
        found["teacher"][list_name] = everybody
        found["baseline"][list_name] = shown[::2]
        found["cmkd_mse"][list_name] = shown
    runs = {name: {0: FinishedRun({}, found[name], classes, [])} for name in found}
    _, comparisons = compare_runs(Study(synthetic, *LISTS, [0], {}, 20), runs)
    seen, among_all = (
        {name: by_metric["AP"] for name, by_metric in comparisons[list_name].items()}
        for list_name in (WITHOUT_UNSEEN, "test_night")
    )
    assert seen["teacher"]["value"] == seen["cmkd_mse"]["value"] == 1
    assert seen["cmkd_mse"]["gap_closed"] == 1
    assert among_all["cmkd_mse"]["value"] < 1 == among_all["teacher"]["value"]
    assert 0.3 < seen["baseline"]["value"] < 0.7
    assert seen["baseline"]["value"] > among_all["baseline"]["value"]
    sentence = gap_without_unseen(comparisons[WITHOUT_UNSEEN])
    baseline = f"{100 * seen['baseline']['value']:.1f}"
    assert f"the teacher has AP 100.0 and the baseline {baseline}; gap" in sentence
    assert "gap closed: cmkd_mse 100 %" in sentence


def test_the_table_says_what_is_left_without_the_unseen(study):
    text = (study.out / "results.md").read_text()
    assert "Without the unseen, who then count neither as found nor as missed" in text


def test_the_pictures(study):
    picture = np.asarray(Image.open(study.out / "results.png").convert("RGB"))
    # Bars of three hues, not axes alone.
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    page = (study.out / "comparison.html").read_text()
    assert all(f"<figcaption>{name}, " in page for name in NETWORKS)
    assert Image.open(study.out / "gallery.png").width > 300


def test_seeds_differ_and_options_reach_the_scripts(study):
    teachers = [
        torch.load(study.out / f"seed{seed}/teacher.pth", weights_only=True) for seed in (3, 5)
    ]
    assert not torch.equal(*(state["backbone.body.conv1.weight"] for state in teachers))
    arguments = read(study.out / "seed3/cmkd_mse.json")["arguments"]
    expected = {"init": str(day_detector.DAY_DETECTOR), "min_size": 80, "epochs": 1, "seed": 3}
    expected["rois"] = 32  # the preset's
    expected["teacher"] = str(study.out / "seed3/teacher.pth")
    assert {name: arguments[name] for name in expected} == expected


ABLATIONS = "cmkd/study/ablations.py"


def test_ablations_vary_runs_of_the_study(study, synthetic, tmp_path):
    """One option more, or other slices; compared with the study's run of that seed."""
    out, file = study.out, tmp_path / "a.json"
    truth = SeeingThroughFog(synthetic, "val_night", "rgb").ground_truth()
    references = {"mse 5": "cmkd_mse", "teacher, slice 2 alone": "teacher"}
    options = ["--study", out, "--seeds", 3, "--only", *references]
    run_study(ABLATIONS, *options, "--draws", 20, "--json", file)
    figures = read(file)
    for name, reference in references.items():
        folder = out / "ablations" / name.replace(",", "").replace(" ", "_") / "seed3"
        varied, original = (read(place / f"{reference}.json") for place in (folder, out / "seed3"))
        differ = {
            option
            for option, value in varied["arguments"].items()
            if value != original["arguments"][option]
        }
        assert differ == {"out", "run_dir", "mse_weight" if name == "mse 5" else "data"}
        own, of = 100 * varied["val"]["AP"], 100 * original["val"]["AP"]
        assert figures[name]["variant"] == [pytest.approx(own)]
        assert figures[name]["reference"] == [pytest.approx(of)]
        assert figures[name]["difference"] == pytest.approx(own - of)
        detections = {
            "before": [read(out / "seed3" / reference / "detections.val_night.json")],
            "after": [read(folder / "detections.val_night.json")],
        }
        comparison = compare_detectors(truth, detections, "before", None, 20)
        ends = comparison["after"]["AP"]["difference_interval"]
        assert all(map(math.isnan, ends))
        assert figures[name]["interval"] == [None, None]  # a list of four frames
    assert varied["val"] != original["val"]
    first, last, rgb = (
        (out / "slices222" / folder).resolve() for folder in ("gated0", "gated2", "images")
    )
    assert first == last != rgb
    table = file.with_suffix(".md").read_text()
    assert "| gated slices | teacher, slice 2 alone | teacher | 1 |" in table
    assert f" | {figures['mse 5']['difference']:+.1f} | `--mse-weight 5` |" in table


def test_ablations_of_other_epochs_train_their_references(study, tmp_path):
    """Their students need a teacher from the study, and nothing else."""
    out, records_file = study.out, study.out / "jobs.json"
    whole = records_file.read_text()
    records = json.loads(whole)
    records["test/seed5/cmkd_mse"]["done"] = False
    records_file.write_text(json.dumps(records))
    options = ["--study", out, "--draws", 20, "--json", tmp_path / "b.json", "--seeds"]
    try:
        run_study(ABLATIONS, *options, 5, "--only", "mse 0.05", "--epochs", 1)
        error = the_error(run_study(ABLATIONS, *options, 5, "--only", "mse 5", expect=2))
    finally:
        records_file.write_text(whole)
    assert "no finished seed5/cmkd_mse" in error
    # Trained once more, in as many epochs: the same as the study's.
    reference = read(tmp_path / "b.json")["mse 0.05"]["reference"]
    assert reference == [100 * read(out / "seed5/cmkd_mse.json")["val"]["AP"]]
    assert (out / "ablations/1_epochs/cmkd_mse/seed5/cmkd_mse.pth").is_file()
    settings = read(out / "ablations/1_epochs/mse_0.05/seed5/cmkd_mse.json")
    assert settings["arguments"]["mse_weight"] == 0.05


def test_an_ablation_needs_the_seed_in_the_study(study):
    """In a process of its own, as a user runs it."""
    options = ["--study", study.out, "--seeds", 4, "--only", "mse 5"]
    error = the_error(run_script(ABLATIONS, *options, expect=2))
    assert "no finished seed4/cmkd_mse" in error


def test_networks_are_tested_on_brighter_and_darker_nights(study, tmp_path):
    """The same places in more and less light; the networks are the study's, of both seeds."""
    out, records_file, script = study.out, study.out / "jobs.json", "cmkd/study/visible_share.py"
    options = ["--study", out, "--shares", 0.2, 0.8, "--frames", 6, "--draws", 20]
    options += ["--json", tmp_path / "s.json", "--seeds"]
    assert "has data of its own" in the_error(run_study(script, *options, 3, 5, expect=2))
    whole = records_file.read_text()
    nights = {"arguments": ["make_synthetic.py", "--size", "128x80"], "done": True}
    records_file.write_text(json.dumps({**json.loads(whole), "nights": nights}))
    try:
        run_study(script, *options, 3, 5)
        error = the_error(run_study(script, *options, 4, expect=2))
    finally:
        records_file.write_text(whole)
    assert "no finished teacher and baseline" in error

    figures = read(tmp_path / "s.json")
    dark, bright = figures["0.2"], figures["0.8"]
    assert dark["measured"]["people"] == bright["measured"]["people"] > 0
    assert dark["measured"]["visible_rgb"] < bright["measured"]["visible_rgb"]
    assert bright["all"]["teacher"] != bright["all"]["baseline"]
    for share in ("0.2", "0.8"):
        check_share(figures[share], out, float(share))
    rows = (tmp_path / "s.md").read_text().splitlines()
    assert len(rows) == 2 + 2 * 2
    assert rows[2].startswith(f"| {100 * dark['measured']['visible_rgb']:.0f} % | ")
    assert f"| {WITHOUT_UNSEEN} | " in rows[3]
    cells = rows[3].split(" | ")[3:6]
    assert cells == [f"{100 * dark[WITHOUT_UNSEEN][name]['AP']['value']:.1f}" for name in NETWORKS]


def check_share(figures, out, share):
    """The figures of a share are those of the tests in its folder."""
    folder = out / f"shares/6_frames_{share:g}"
    scores = {seed: read(folder / f"seed{seed}/scores.json") for seed in (3, 5)}
    for seed, score in scores.items():
        assert score["weights"] == [str(out / f"seed{seed}/{name}.pth") for name in NETWORKS]
    for name in NETWORKS:
        aps = [score["metrics"]["test_night"][name]["AP"] for score in scores.values()]
        mean = statistics.mean(aps)
        assert figures["all"][name]["AP"]["value"] == pytest.approx(mean, abs=1e-12)
    truth = SeeingThroughFog(folder / "data", "test_night", "rgb").ground_truth()
    found = {
        name: [read(folder / f"seed{seed}/detections.{name}.json") for seed in (3, 5)]
        for name in NETWORKS
    }
    comparison = compare_detectors(without_unseen(truth), found, "baseline", "teacher", 20)
    assert figures[WITHOUT_UNSEEN] == none_for_nan(comparison)
    simulated = read(folder / "data/synthetic.json")["parameters"]
    assert simulated["seed"] not in (0, 1_000_000)  # those of a study's nights and days
    assert simulated["visible_share"] == share


@pytest.fixture
def records(tmp_path):
    """A study's records of a baseline and a teacher of seed 3."""
    options = {"val_list": "val_night", "data": "data", "init": "days.pth", "seed": 3, "epochs": 6}
    return {
        "test/seed3/teacher": {"done": True},
        "test/seed3/baseline": {"done": True},
        "seed3/baseline": {"arguments": ["train_baseline.py", *option_words(**options)]},
    }


@pytest.mark.parametrize(("start", "stem"), [("baseline", "reinit"), ("teacher", "inflate")])
def test_an_ablation_may_begin_with_weights_of_its_seed(tmp_path, records, start, stem):
    """Of two --init argparse takes the last. Runs of other epochs have other names and folders."""
    name = f"baseline, from {start}"
    runs = {}
    for epochs in (None, 2):
        own = types.SimpleNamespace(study=tmp_path, epochs=epochs)
        runs[epochs], test = variant_jobs(name, VARIANTS[name], 3, own, records)
        assert test.needs == (runs[epochs].name,)
        args = training_parser("baseline", None).parse_args(runs[epochs].arguments[1:])
        assert (args.init, args.stem) == (str(tmp_path / f"seed3/{start}.pth"), stem)
        assert (args.seed, args.epochs) == (3, epochs or 6)
        assert runs[epochs].makes.parent == args.out == args.run_dir != tmp_path / "seed3"
    assert runs[None].name != runs[2].name
    assert runs[None].makes != runs[2].makes
    # Its weights may be those of its first epoch.
    records[f"test/seed3/{start}"]["done"] = False
    for epochs in (None, 2):
        own = types.SimpleNamespace(study=tmp_path, epochs=epochs)
        with pytest.raises(UserError, match=f"no finished seed3/{start}"):
            variant_jobs(name, VARIANTS[name], 3, own, records)
    with pytest.raises(UserError, match="no finished seed3/cmkd_mse"):
        variant_jobs("mse 5", VARIANTS["mse 5"], 3, own, records)


def test_discriminators_are_watched(study, tmp_path):
    """In the first steps, at rates near zero, they cannot tell. A leaky ReLU changes them."""
    options = ["--study", study.out, "--steps", 10, "--json", tmp_path / "d.json", "--seed"]
    rows = {}
    for slope in (0, 0.2):
        run_study("cmkd/study/discriminators.py", *options, 3, "--slope", slope)
        rows[slope] = read(tmp_path / "d.json")["rows"]
        assert [row[0] for row in rows[slope]] == list(range(1, 11))
        values = np.array(rows[slope])[:, 1:]
        entropy, right, alive = values.reshape(10, 3, 4).transpose(1, 0, 2)  # [steps, levels]
        assert np.abs(entropy[0] - math.log(2)).max() < 0.2
        for share in (right, alive):
            assert ((share >= 0) & (share <= 1)).all()
        assert 0 < alive.mean() < 1
    assert rows[0] != rows[0.2]
    error = the_error(run_study("cmkd/study/discriminators.py", *options, 4, expect=2))
    assert "has no teacher of seed 4" in error


def test_watched_discriminators_have_the_loss_of_training():
    """The mean over the levels, and its gradient, are those of train_cmkd_adv.py."""
    discriminators = build_discriminators().eval()
    sizes = {"0": (32, 54), "1": (16, 27), "2": (16, 27), "3": (16, 27)}
    student = {level: torch.randn(1, 256, *size) for level, size in sizes.items()}
    teacher = {level: torch.randn(1, 256, *size) for level, size in sizes.items()}
    for maps in student.values():
        maps.requires_grad_()
    parts = [
        domain_entropy(discriminators[level], student[level], teacher[level], 0.3)
        for level in sizes
    ]
    losses = torch.stack(parts).mean(), domain_bce(discriminators, student, teacher, 0.3)
    gradients = [torch.autograd.grad(loss, list(student.values())) for loss in losses]
    assert torch.equal(*losses)
    for own, expected in zip(*gradients, strict=True):
        assert own.abs().sum() > 0
        assert torch.equal(own, expected)


def test_other_settings_are_refused(study):
    files = [study.out / name for name in ("results.md", "jobs.json")]
    before = [file.read_bytes() for file in files]
    error = the_error(run_study(*study.command, "--epochs", 2, expect=2))
    assert str(study.out) in error
    assert "'1' there and '2' here" in error
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--preset", "paper", "--data", "nowhere"], "without a GPU"),
        (["--data", "nowhere"], "nowhere/train_night.txt is missing"),
        (["--seeds", "1", "1"], "--seeds names one twice"),
        (["--students", "cmkd_mse", "cmkd_mse"], "--students names one twice"),
        (["--students", "cmkd"], "invalid choice: 'cmkd'"),
        (["--lr", "0,005"], "argument --lr: '0,005'"),
        (["--stem", "inflat"], "argument --stem: invalid choice"),
        (["--init", "no.pth"], "--init no.pth is missing"),
        (["--test-list", "val_night"], "cannot judge them"),
        (["--backbone", "resnet34"], "starts from a resnet18 of simulated days: pass --init too"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, capsys, options, part):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--out", str(tmp_path / "out"), *options])
    with pytest.raises(SystemExit) as ending:
        run(reproduce.main)
    assert ending.value.code == 2
    assert part in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_an_oracle_without_true_labels_is_refused(tmp_path, capsys, monkeypatch, synthetic):
    """Before hours of training; synthetic frames have none without --unlabelled."""
    command = ["reproduce.py", "--data", str(synthetic), "--out", str(tmp_path / "out")]
    command += ["--students", "true_labels", "--unlabelled-list", "train_night"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        run(reproduce.main)
    assert f"true_labels learns from {synthetic / 'true_labels'}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_teacher_may_be_what_all_begin_from(tmp_path, monkeypatch, synthetic):
    """Its name is that of the file which students are given as --teacher."""
    start = tmp_path / "teacher.pth"
    start.write_text("")
    command = ["reproduce.py", "--data", str(synthetic), "--init", str(start)]
    monkeypatch.setattr(sys, "argv", command)
    args = reproduce.parse_arguments()
    student, _ = reproduce.training_jobs("cmkd_mse", 0, args, PRESETS["smoke"], [])
    reproduce.refuse_impossible(args, PRESETS["smoke"], [student])
    assert option_value(student.arguments, "--init") == str(start)


def test_own_classes_are_not_looked_for_in_simulated_days(monkeypatch):
    command = ["reproduce.py", "--data", "d", "--classes", "Deer,Moose", "--epochs", "3"]
    monkeypatch.setattr(sys, "argv", command)
    args = reproduce.parse_arguments()
    preset = PRESETS["gpu"]
    days, pretrained = reproduce.preparation_jobs(args, preset)
    assert days.name == "days"
    assert "--classes" not in pretrained.arguments
    assert "3" not in pretrained.arguments
    train, _ = reproduce.training_jobs("baseline", 0, args, preset, [pretrained])
    assert option_value(train.arguments, "--classes") == "Deer,Moose"
    assert train.needs == ("pretrained",)


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """Stands for the repository: a folder whose scripts are real processes."""
    home = tmp_path / "scripts"
    home.mkdir()
    (home / "write.py").write_text("import pathlib, sys\npathlib.Path(sys.argv[1]).write_text('')")
    (home / "nothing.py").write_text("")
    (home / "killed.py").write_text(
        "import os, sys\nprint('warning: a hint', file=sys.stderr, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    (home / "wrong.py").write_text(
        "import sys\nprint('wrong.py: error: it is wrong', file=sys.stderr)\n"
        "print('a line of a library', file=sys.stderr)\nsys.exit(2)"
    )
    (home / "sleep.py").write_text(
        "import pathlib, sys, time\npathlib.Path(sys.argv[1]).write_text('')\ntime.sleep(60)"
    )
    monkeypatch.setattr(jobs, "REPOSITORY", home)
    return home


def test_why_jobs_failed(tmp_path, scripts):
    out = tmp_path / "out"
    failed = run_jobs(
        [Job(name, [f"{name}.py"], out / name) for name in ("nothing", "killed", "wrong")]
        + [
            Job("after", ["write.py", str(out / "after")], out / "after", ("killed",)),
            Job("write", ["write.py", str(out / "write")], out / "write"),
        ],
        out,
        2,
    )
    assert "nothing was not made, though nothing.py reported no error" in failed.pop("nothing")
    killed = "killed by SIGKILL: the system does that if memory is short"
    assert failed.pop("killed").startswith(killed)
    assert failed.pop("wrong").startswith("wrong.py: error: it is wrong (")
    assert failed == {"after": "it needs killed, which failed"}
    assert (out / "write").exists()


def test_training_states_go_once_a_run_is_done(tmp_path, scripts):
    """A failed run keeps its own, because the next call resumes it."""
    states = [training_state(tmp_path / name) for name in ("write", "wrong")]
    for file in [one for pair in states for one in pair]:
        file.parent.mkdir(exist_ok=True)
        file.write_text("")
    made = tmp_path / "write/baseline.pth"
    trainings = [
        Job("write", ["write.py", str(made)], made, leaves=states[0]),
        Job("wrong", ["wrong.py"], tmp_path / "wrong/baseline.pth", leaves=states[1]),
    ]
    assert run_jobs(trainings, tmp_path / "out", 1).keys() == {"wrong"}
    assert made.exists()
    assert not any(file.exists() for file in states[0])
    assert all(file.exists() for file in states[1])


def test_trainings_of_a_study_leave_only_weights(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reproduce.py"])
    args = reproduce.parse_arguments()
    preset = PRESETS["gpu"]
    train, _ = reproduce.training_jobs("baseline", 0, args, preset, [])
    *_, pretrained = reproduce.preparation_jobs(args, preset)
    for job in (train, pretrained):
        run_dir = option_value(job.arguments, "--run-dir")
        assert {str(file) for file in job.leaves} == {
            f"{run_dir}/last.pth",
            f"{run_dir}/previous.pth",
        }


def test_the_day_detector_is_made_by_one_command(tmp_path, monkeypatch):
    """Real scripts at a tiny size; what is written starts a network with what was trained."""
    training = "--backbone resnet18 --min-size 64 --rois 8 --workers 0 --epochs 1 --init none"
    monkeypatch.setattr(day_detector, "TRAINING", training)
    monkeypatch.setattr(day_detector, "FRAMES", "2 2 0")
    monkeypatch.setattr(day_detector, "SIZE", "107x64")
    out, file = tmp_path / "out", tmp_path / "rgb_day.pth"
    monkeypatch.setattr(sys, "argv", ["day_detector", "--out", str(out), "--to", str(file)])
    monkeypatch.setattr(day_detector, "training_state", lambda _: ())
    with (
        patch.object(jobs, "ThreadPoolExecutor", Inline),
        patch.object(JobRunner, "call_script", call_here),
    ):
        day_detector.main()

    beside = read(file.with_suffix(".json"))
    assert beside["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert set(beside["val"]) >= {"AP", "AP50"}
    assert str(tmp_path) not in file.with_suffix(".json").read_text()
    shipped = torch.load(file, weights_only=True)
    assert shipped["roi_heads.box_head.fc6.weight"].dtype == torch.float16
    trained = torch.load(out / "pretrained/baseline.pth", weights_only=True)
    assert file.stat().st_size < 0.52 * (out / "pretrained/baseline.pth").stat().st_size
    started = build_detector(3, 2, "resnet18", str(file), "inflate", min_size=64).state_dict()
    for name in ("backbone.body.conv1.weight", "roi_heads.box_head.fc6.weight"):
        torch.testing.assert_close(started[name], trained[name], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", ["smoke", "cpu"])
def test_small_presets_start_from_the_shipped_day_detector(monkeypatch, capsys, name):
    """Every tensor of the file is used, and the file is the one that its JSON describes."""
    file = day_detector.DAY_DETECTOR
    beside = read(file.with_suffix(".json"))
    assert beside["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert file.stat().st_size < 60e6

    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--preset", name])
    args, preset = reproduce.parse_arguments(), PRESETS[name]
    assert [job.name for job in reproduce.preparation_jobs(args, preset)] == ["nights"]
    train, _ = reproduce.training_jobs("teacher", 0, args, preset, [])
    options = training_parser("x", "").parse_args(train.arguments[1:])
    assert options.init == str(file)
    detector = build_detector(6, 2, options.backbone, options.init, options.stem)
    assert "; new: nothing\n" in capsys.readouterr().out
    trained = torch.load(file, weights_only=True)["backbone.body.conv1.weight"].float()
    kernels = detector.state_dict()["backbone.body.conv1.weight"]
    torch.testing.assert_close(kernels[:, :3], trained)
    torch.testing.assert_close(kernels[:, 3], trained.mean(dim=1))


def test_what_is_removed_is_made_again_and_nothing_mixed(tmp_path, scripts):
    """A file made from a removed one is refused, or made again if that is quick; the same for other
    arguments."""
    out = tmp_path / "out"

    def chain(*extra):
        return [
            Job("a", ["write.py", str(out / "a"), *extra], out / "a"),
            Job(
                "b",
                ["write.py", str(out / "b")],
                out / "b",
                ("a",),
                repeatable=True,
                reads=(out / "a",),
            ),
            Job("c", ["write.py", str(out / "c")], out / "c", ("a",)),
        ]

    assert run_jobs(chain(), out, 1) == {}
    (out / "a").unlink()
    with pytest.raises(UserError, match="c was made with another a than the one to be made now"):
        run_jobs(chain(), out, 1)
    (out / "c").unlink()
    (out / "b").write_text("old")
    assert run_jobs(chain(), out, 1) == {}
    assert (out / "b").read_text() == ""
    (out / "b").write_text("older than a")
    os.utime(out / "a", ns=(2 * time.time_ns(),) * 2)
    assert run_jobs(chain(), out, 1) == {}
    assert (out / "b").read_text() == ""
    os.utime(out / "a", ns=(0, 0))
    (out / "b").write_text("newer than a")
    assert run_jobs(chain(), out, 1) == {}
    assert (out / "b").read_text() == "newer than a"
    with pytest.raises(UserError, match=r"other settings \(a: .*'new' here\)"):
        run_jobs(chain("new"), out, 1)


def test_two_at_once_and_one_alone(tmp_path, monkeypatch):
    """Two jobs end only if both run. A job that runs alone waits for both, though there is room,
    and nothing begins beside it."""
    barrier, running = threading.Barrier(2, timeout=20), set()

    def run_one(_, job, environment):
        running.add(job.name)
        assert running == {job.name} or "alone" not in running
        if job.name in ("a", "b"):
            assert environment["OMP_NUM_THREADS"]
            barrier.wait()
            time.sleep(0.3 if job.name == "b" else 0)
        if job.alone:
            time.sleep(1.2)  # longer than the runner waits for a job to end
            assert running == {job.name}
        job.makes.write_text("")
        running.remove(job.name)

    monkeypatch.setattr(JobRunner, "run", run_one)
    all_jobs = [
        Job("a", [], tmp_path / "a"),
        Job("b", [], tmp_path / "b"),
        Job("alone", [], tmp_path / "alone", alone=True),
        Job("c", [], tmp_path / "c", ("b",)),
    ]
    assert run_jobs(all_jobs, tmp_path / "out", 3) == {}


def test_sigterm_ends_the_jobs_and_says_how_to_continue(tmp_path, scripts):
    out = tmp_path / "out"
    program = f"""
from pathlib import Path
from cmkd.study import jobs
jobs.REPOSITORY, out = Path({str(scripts)!r}), Path({str(out)!r})
sleepers = [jobs.Job(name, ["sleep.py", str(out / name)], out / name) for name in "abc"]
jobs.run_jobs(sleepers, out, 2)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not ((out / "a").exists() and (out / "b").exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    with pytest.raises(UserError, match="is used by a call that still runs"):
        run_jobs([Job("d", ["write.py", str(out / "d")], out / "d")], out, 1)
    process.terminate()
    _, errors = process.communicate(timeout=30)  # the jobs sleep for 60 s
    assert process.returncode == 128 + 15
    assert "stopped by SIGTERM with 0 of 3 jobs done; everything is saved: the same" in errors
    assert not (out / "c").exists()


def test_folders_that_are_none_of_ours(tmp_path):
    (tmp_path / "results.md").write_text("mine")
    with pytest.raises(UserError, match="holds something other than a study"):
        run_jobs([Job("a", ["test.py"], tmp_path / "a")], tmp_path, 1)
    (tmp_path / "jobs.json").write_text('{"a": {"arguments": []}}')
    with pytest.raises(UserError, match="is no record of jobs"):
        run_jobs([Job("a", ["test.py"], tmp_path / "a")], tmp_path, 1)


@pytest.mark.parametrize(
    ("gibibytes", "cores", "expected"),
    [(80, 16, "01010101"), (24, 16, "0101"), (8, 16, "01"), (80, 2, "01")],
)
def test_a_gpu_for_each(monkeypatch, gibibytes, cores, expected):
    """As many as memory and cores allow, at least one on each."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda _: types.SimpleNamespace(total_memory=gibibytes * 2**30),
    )
    monkeypatch.setattr(jobs, "cores", lambda: cores)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = environments(None)
    assert "".join(one["CUDA_VISIBLE_DEVICES"] for one in found) == expected
    assert {one["OMP_NUM_THREADS"] for one in found} == {str(cores // len(expected))}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert [one["CUDA_VISIBLE_DEVICES"] for one in environments(3)] == ["4", "7", "4"]


def test_cells():
    assert mean_and_deviation([1.0, 2.0, 3.0]) == "2.0 ± 1.0"
    assert mean_and_deviation([1.0]) == "1.0"
    assert mean_and_deviation([math.nan]) == "-"
    assert gap_cell({"gap_closed": 0.524, "gap_closed_interval": (-0.1, 1.2)}) == "52 % [-10, 120]"
    assert gap_cell({"gap_closed": -0.002, "gap_closed_interval": (-0.051, 0.043)}) == "0 % [-5, 4]"
    assert gap_cell({"gap_closed": math.nan, "gap_closed_interval": (0, 0)}) == gap_cell({}) == "-"


def test_more_networks_than_colours_and_markers(tmp_path, monkeypatch):
    """Students added to NETWORKS are in the table and the picture."""
    names = [*networks.NETWORKS, *(f"cmkd_{number}" for number in range(6))]
    for name in names[4:]:
        monkeypatch.setitem(networks.NETWORKS, name, networks.Network(name))
    entry = {"value": 0.4, "interval": (0.3, 0.5), "gap_closed": 0.2}
    entry["gap_closed_interval"] = (0.1, 0.3)
    comparison = {name: {"AP": entry, "recall_unseen": entry} for name in names}
    metrics = {"AP": 0.4, "AP50": 0.6, "MR": 0.7, "recall_unseen": 0.4}
    summary = {"metrics": {"v": metrics, "t": metrics}, "minutes": 2.0}
    runs = {name: {seed: FinishedRun(summary, {}, [], []) for seed in (0, 1)} for name in names}
    study = Study(tmp_path, "v", "t", [0, 1], {}, 1)
    comparisons = {"v": comparison, "t": comparison}
    (tmp_path / "t.txt").write_text("a\n")
    report.draw_results(study, runs, comparisons, tmp_path / "results.png")
    assert Image.open(tmp_path / "results.png").width > 300
    last = results_rows(study, runs, comparisons)[-1]
    assert last == [
        "cmkd_5",
        "RGB",
        "2",
        *["40.0 ± 0.0"] * 2,
        "60.0 ± 0.0",
        "70.0 ± 0.0",
        "40.0 ± 0.0",
        *["20 % [10, 30]"] * 2,
        "2.0",
    ]


def test_a_network_without_a_run_is_a_row_of_dashes(tmp_path):
    study = Study(tmp_path, "v", "t", [0], {"teacher": {}}, 1)
    assert results_rows(study, {"teacher": {}}, {})[1] == [
        "teacher",
        "RGB + gated",
        "0 of 1",
        *["-"] * 5,
        "",
        "",
        "-",
    ]


def test_runs_that_cannot_be_read_are_left_out(tmp_path, capsys):
    """None is left: a table of dashes, no comparison."""
    (tmp_path / "seed0/teacher").mkdir(parents=True)
    (tmp_path / "seed0/teacher/log.jsonl").write_text("{damaged\n")
    finished = {"teacher": {0: (tmp_path / "seed0/teacher", tmp_path / "seed0/teacher.pth")}}
    study = Study(tmp_path, "v", "t", [0], finished, 1)
    assert "0 of 1" in write_results(study, tmp_path)
    assert "log.jsonl:1: no record of a run" in capsys.readouterr().err
    assert json.loads((tmp_path / "results.json").read_text())["comparison"] == {}


def test_presets_have_options_that_the_scripts_take():
    for preset in PRESETS.values():
        for options in (preset.start, preset.pretrain):
            training_parser("x", "").parse_args([*preset.train.split(), *options.split()])

"""The study: real scripts on simulated frames, with a run that fails, then whole; other settings; tables by hand."""

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

import numpy as np
import pytest
import torch
from conftest import ROOT, run_script, the_error
from PIL import Image

import reproduce
from cmkd.evaluation.bootstrap import compare
from cmkd.evaluation.metrics import finite
from cmkd.frames.layout import condition_lists
from cmkd.runtime.failures import run
from cmkd.study import jobs
from cmkd.study.ablations import VARIANTS, varied
from cmkd.study.jobs import Job, run_jobs, slots
from cmkd.study.report import (
    WITHOUT_UNSEEN,
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
from reproduce import PRESETS
from utils import UserError, training_parser

NETWORKS = ("teacher", "baseline", "cmkd_mse")


@pytest.fixture(scope="module")
def study(synthetic, tmp_path_factory):
    """A study of two seeds: the first call, in which one run cannot write, the second one, and the folder."""
    out = tmp_path_factory.mktemp("study") / "out"
    command = ["reproduce.py", "--data", synthetic, "--out", out, "--seeds", 3, 5, "--students", "cmkd_mse", "--init",
               "none", "--min-size", 64, "--epochs", 1, "--draws", 20]
    (out / "seed5").mkdir(parents=True)
    (out / "jobs.json").write_text("{}")
    (out / "seed5/cmkd_mse").write_text("in the way")
    first = run_script(*command, expect=2)
    first_table, first_results = (out / "results.md").read_text(), json.loads((out / "results.json").read_text())
    (out / "seed5/cmkd_mse").unlink()
    yield first, first_table, first_results, run_script(*command), out, command
    shutil.rmtree(out)  # 4 GB that would else stay until all tests are over


def test_what_fails_leaves_a_hole(study):
    """The gap is that of the seed which all networks have."""
    first, table, results, *_ = study
    errors = first.stderr.strip().splitlines()
    assert any(line.startswith("warning: seed5/cmkd_mse: ") and "cannot be written" in line for line in errors)
    assert "warning: test/seed5/cmkd_mse: there is no seed5/cmkd_mse" in errors
    assert errors[-1].startswith("reproduce.py: error: 2 of 12 jobs failed")
    assert [row.split(" | ")[2] for row in table.splitlines()[2:5]] == ["2", "2", "1 of 2"]
    for name in NETWORKS:
        seed3 = results["runs"][name]["3"]["metrics"]["val_night"]["AP"]
        assert results["comparison"]["val_night"][name]["AP"]["value"] == pytest.approx(seed3, abs=1e-12)


def test_what_is_done_is_not_done_again(study):
    *_, second, out, _ = study
    started = [line for line in second.stdout.splitlines() if line.startswith("$ python ")]
    assert [line.split()[2] for line in started] == ["train_cmkd_mse.py", "test.py"]
    assert all("seed5" in line for line in started)
    assert all(job["done"] for job in json.loads((out / "jobs.json").read_text()).values())


def test_the_table_is_that_of_the_runs(study, synthetic):
    """Means and deviations over the seeds' own scores, the pooled comparison's AP, the gap between the means."""
    *_, out, _ = study
    results = json.loads((out / "results.json").read_text())
    values = {}
    for name in NETWORKS:
        for one in ("val_night", "test_night"):
            aps = [json.loads((out / f"seed{seed}" / name / "scores.json").read_text())["metrics"][one][name]["AP"]
                   for seed in (3, 5)]
            values[name, one] = statistics.mean(aps)
            assert results["comparison"][one][name]["AP"]["value"] == pytest.approx(values[name, one], abs=1e-12)
    assert values["teacher", "val_night"] != values["baseline", "val_night"]
    row = (out / "results.md").read_text().splitlines()[4].strip("| ").split(" | ")
    assert row[:3] == ["cmkd_mse", "RGB", "2"]
    assert row[3].startswith(f"{100 * values['cmkd_mse', 'val_night']:.1f} ± ")
    shares = [results["comparison"][one]["cmkd_mse"]["AP"]["gap_closed"] for one in ("val_night", "test_night")]
    gaps = [values["teacher", one] - values["baseline", one] for one in ("val_night", "test_night")]
    for cell, share, gap, one in zip(row[8:10], shares, gaps, ("val_night", "test_night"), strict=True):
        if gap > 0:
            assert share == pytest.approx((values["cmkd_mse", one] - values["baseline", one]) / gap)
            assert cell.startswith(f"{100 * share:.0f} %")
        else:
            assert (share, cell) == (None, "-")
    log = [json.loads(line) for line in (out / "seed3/teacher/log.jsonl").read_text().splitlines()]
    assert results["runs"]["teacher"]["3"]["minutes"] == pytest.approx(
        (log[-1]["train_seconds"] + log[-1]["val_seconds"]) / 60)
    assert results["runs"]["teacher"]["3"]["epoch"] == 1
    commit = json.loads((out / "seed3/teacher.json").read_text())["versions"]["git"]
    assert results["runs"]["teacher"]["3"]["git"] == commit
    assert f"Commit {commit}." in (out / "results.md").read_text()
    lists = ("val_night", "test_night")
    conditions = {each for one in lists for each in condition_lists(synthetic, one)}
    assert set(results["comparison"]) == {*lists, WITHOUT_UNSEEN, *conditions}


def test_the_gap_among_those_whom_rgb_shows(synthetic):
    """A teacher that finds everybody, a baseline that finds half of those whom RGB shows, and a student that finds all
    of those, which closes this gap."""
    study = Study(synthetic, "val_night", "test_night", [0], {}, 20)
    classes, found = ["Pedestrian"], {}
    for one in ("val_night", "test_night"):
        people = SeeingThroughFog(synthetic, one, "rgb", classes).ground_truth()["annotations"]
        everybody = [{**{key: person[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.9}
                     for person in people]
        shown = [box for box, person in zip(everybody, people, strict=True)
                 if not (person["visible_gated"] and not person["visible_rgb"])]
        assert 1 < len(shown) < len(everybody)
        found[one] = {"teacher": {0: everybody}, "baseline": {0: shown[::2]}, "cmkd_mse": {0: shown}}
    _, comparisons = compare_runs(study, found, {"classes": classes, "ignore": None})
    scores, among_all = ({name: by_score["AP"] for name, by_score in comparisons[one].items()}
                         for one in (WITHOUT_UNSEEN, "test_night"))
    assert scores["teacher"]["value"] == scores["cmkd_mse"]["value"] == scores["cmkd_mse"]["gap_closed"] == 1
    assert among_all["cmkd_mse"]["value"] < 1 == among_all["teacher"]["value"]
    assert 0.3 < scores["baseline"]["value"] < 0.7
    assert scores["baseline"]["value"] > among_all["baseline"]["value"]
    sentence = gap_without_unseen(comparisons[WITHOUT_UNSEEN])
    assert f"the teacher has AP 100.0 and the baseline {100 * scores['baseline']['value']:.1f}; gap" in sentence
    assert "gap closed: cmkd_mse 100 %" in sentence


def test_the_table_says_what_is_left_without_the_unseen(study):
    *_, out, _ = study
    assert "Without the unseen, who then count neither as found nor as missed" in (out / "results.md").read_text()


def test_the_pictures(study):
    *_, out, _ = study
    picture = np.asarray(Image.open(out / "results.png").convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100  # bars of three hues, not axes alone
    page = (out / "comparison.html").read_text()
    assert all(f"<figcaption>{name}, " in page for name in NETWORKS)
    assert Image.open(out / "gallery.png").width > 300


def test_seeds_differ_and_options_reach_the_scripts(study):
    *_, out, _ = study
    weights = [torch.load(out / f"seed{seed}/teacher.pth", weights_only=True)["backbone.body.conv1.weight"]
               for seed in (3, 5)]
    assert not torch.equal(*weights)
    arguments = json.loads((out / "seed3/cmkd_mse.json").read_text())["arguments"]
    assert (arguments["init"], arguments["min_size"], arguments["epochs"], arguments["seed"]) == ("none", 64, 1, 3)
    assert arguments["teacher"] == str(out / "seed3/teacher.pth")
    assert arguments["rois"] == 32  # the preset's


def test_ablations_vary_runs_of_the_study(study, synthetic, tmp_path):
    """One option more, or other slices in the three places; compared with the study's run of that seed."""
    *_, out, _ = study
    truth = SeeingThroughFog(synthetic, "val_night", "rgb").ground_truth()
    names = ("mse 5", "teacher, slice 2 alone")
    run_script("cmkd/study/ablations.py", "--study", out, "--seeds", 3, "--only", *names, "--draws", 20, "--json",
               tmp_path / "a.json")
    figures = json.loads((tmp_path / "a.json").read_text())
    for name, reference in zip(names, ("cmkd_mse", "teacher"), strict=True):
        weights = out / "ablations" / name.replace(",", "").replace(" ", "_") / f"seed3/{reference}.json"
        varied, original = (json.loads(file.read_text())
                            for file in (weights, out / f"seed3/{reference}.json"))
        differ = {key for key, value in varied["arguments"].items() if value != original["arguments"][key]}
        assert differ == {"out", "run_dir", "mse_weight" if name == "mse 5" else "data"}
        own, of = 100 * varied["val"]["AP"], 100 * original["val"]["AP"]
        assert (figures[name]["variant"], figures[name]["reference"]) == ([pytest.approx(own)], [pytest.approx(of)])
        assert figures[name]["difference"] == pytest.approx(own - of)
        detections = {role: [json.loads((folder / "detections.val_night.json").read_text())]
                      for role, folder in (("before", out / f"seed3/{reference}"), ("after", weights.parent))}
        interval = compare(truth, detections, "before", None, 20)["after"]["AP"]["difference_interval"]
        assert figures[name]["interval"] == pytest.approx([100 * edge for edge in interval])
    assert varied["val"] != original["val"]
    linked = out / "slices222"
    assert (linked / "gated0").resolve() == (linked / "gated2").resolve() != (linked / "images").resolve()
    assert "| gated slices | teacher, slice 2 alone | teacher | 1 |" in (tmp_path / "a.md").read_text()
    run_script("cmkd/study/ablations.py", "--study", out, "--seeds", 3, "--only", "mse 0.05", "--epochs", 1, "--draws",
               20, "--json", tmp_path / "b.json")
    again = json.loads((tmp_path / "b.json").read_text())["mse 0.05"]["reference"]  # trained again, in as many epochs
    assert again == figures["mse 5"]["reference"]
    assert (out / "ablations/1_epochs/cmkd_mse/seed3/cmkd_mse.pth").is_file()
    # Who trains what is varied again needs a teacher from the study, and nothing else.
    whole = (out / "jobs.json").read_text()
    records = json.loads(whole)
    records["test/seed5/cmkd_mse"]["done"] = False
    (out / "jobs.json").write_text(json.dumps(records))
    vary = ["cmkd/study/ablations.py", "--study", out, "--seeds", 5, "--only"]
    try:
        run_script(*vary, "mse 0.05", "--epochs", 1, "--draws", 20)
        error = the_error(run_script(*vary, "mse 5", expect=2))
    finally:
        (out / "jobs.json").write_text(whole)
    assert "no finished seed5/cmkd_mse" in error
    settings = json.loads((out / "ablations/1_epochs/mse_0.05/seed5/cmkd_mse.json").read_text())
    assert settings["arguments"]["mse_weight"] == 0.05
    error = the_error(run_script("cmkd/study/ablations.py", "--study", out, "--seeds", 4, "--only", "mse 5", expect=2))
    assert "no finished seed4/cmkd_mse" in error


def test_networks_are_tested_on_brighter_and_darker_nights(study, synthetic, tmp_path):
    """The same places in more and less light; the networks are the study's, of both seeds."""
    *_, out, _ = study
    jobs_file, script = out / "jobs.json", ["cmkd/study/visible_share.py", "--study", out, "--seeds", 3, 5]
    assert "has data of its own" in the_error(run_script(*script, expect=2))
    whole = jobs_file.read_text()
    records = {**json.loads(whole), "nights": {"arguments": ["make_synthetic.py", "--size", "128x80"], "done": True}}
    jobs_file.write_text(json.dumps(records))
    try:
        run_script(*script, "--shares", 0.2, 0.8, "--frames", 6, "--draws", 20, "--json", tmp_path / "s.json")
        assert "no finished teacher and baseline" in the_error(run_script(*script, "--seeds", 4, expect=2))
    finally:
        jobs_file.write_text(whole)
    figures = json.loads((tmp_path / "s.json").read_text())
    shares = {one: out / f"shares/6_frames_{one}" for one in ("0.2", "0.8")}
    dark, bright = (figures[one] for one in ("0.2", "0.8"))
    assert dark["measured"]["people"] == bright["measured"]["people"] > 0
    assert dark["measured"]["visible_rgb"] < bright["measured"]["visible_rgb"]
    for one, folder in shares.items():
        scores = [json.loads((folder / f"seed{seed}/scores.json").read_text()) for seed in (3, 5)]
        for name in NETWORKS:
            assert figures[one]["all"][name]["AP"]["value"] == pytest.approx(
                statistics.mean(score["metrics"]["test_night"][name]["AP"] for score in scores), abs=1e-12)
        assert [score["weights"] for score in scores] == [
            [str(out / f"seed{seed}/{name}.pth") for name in NETWORKS] for seed in (3, 5)]
        truth = SeeingThroughFog(folder / "data", "test_night", "rgb").ground_truth()
        found = {name: [json.loads((folder / f"seed{seed}/detections.{name}.json").read_text()) for seed in (3, 5)]
                 for name in NETWORKS}
        assert figures[one][WITHOUT_UNSEEN] == finite(
            compare(without_unseen(truth), found, "baseline", "teacher", 20))
        simulated = json.loads((folder / "data/synthetic.json").read_text())["parameters"]
        assert simulated["seed"] not in (0, 1_000_000)  # those of a study's nights and days
        assert simulated["visible_share"] == float(one)
    assert dark["all"]["teacher"] != dark["all"]["baseline"]
    rows = (tmp_path / "s.md").read_text().splitlines()
    assert len(rows) == 2 + 2 * 2
    assert rows[2].startswith(f"| {100 * dark['measured']['visible_rgb']:.0f} % | ")
    assert f"| {WITHOUT_UNSEEN} | " in rows[3]
    for name, cell in zip(NETWORKS, rows[3].split(" | ")[3:], strict=False):
        assert cell == f"{100 * dark[WITHOUT_UNSEEN][name]['AP']['value']:.1f}"


def test_an_ablation_may_begin_with_weights_of_its_seed(tmp_path):
    """Of two --init and two --epochs argparse takes the last. Runs of other lengths have other names and folders."""
    study = {"test/seed3/baseline": {"done": True}, "seed3/baseline": {"arguments": [
        "train_baseline.py", "--val-list", "val_night", "--data", "data", "--init", "days.pth", "--seed", "3",
        "--epochs", "6"]}}
    name = "baseline, from baseline"
    runs = {}
    for epochs in (None, 2):
        own = types.SimpleNamespace(study=tmp_path, epochs=epochs)
        runs[epochs], test = varied(name, VARIANTS[name], 3, own, study)
        assert test.needs == (runs[epochs].name,)
        args = training_parser("baseline", None).parse_args(runs[epochs].arguments[1:])
        assert (args.init, args.seed, args.epochs) == (str(tmp_path / "seed3/baseline.pth"), 3, epochs or 6)
        assert runs[epochs].makes.parent == args.out == args.run_dir != tmp_path / "seed3"
    assert runs[None].name != runs[2].name
    assert runs[None].makes != runs[2].makes
    study["test/seed3/baseline"]["done"] = False  # its weights may be those of its first epoch
    with pytest.raises(UserError, match="no finished seed3/baseline"):
        varied(name, VARIANTS[name], 3, own, study)
    with pytest.raises(UserError, match="no finished seed3/cmkd_mse"):
        varied("mse 5", VARIANTS["mse 5"], 3, own, study)


def test_discriminators_are_watched(study, tmp_path):
    """In the first steps, at rates near zero, they cannot tell; a leaky ReLU makes other ones of them."""
    *_, out, _ = study
    watch = ["cmkd/study/discriminators.py", "--study", out, "--seed"]
    rows = {}
    for slope in (0, 0.2):
        run_script(*watch, 3, "--steps", 10, "--slope", slope, "--json", tmp_path / "d.json")
        figures = json.loads((tmp_path / "d.json").read_text())
        rows[slope] = figures["rows"]
        assert [row[0] for row in figures["rows"]] == list(range(1, 11))
        values = np.array(figures["rows"])[:, 1:].reshape(10, 3, 4)  # entropy, right, alive; by level
        assert np.abs(values[0, 0] - math.log(2)).max() < 0.2
        assert ((values[:, 1:] >= 0) & (values[:, 1:] <= 1)).all()
        assert 0 < values[:, 2].mean() < 1
    assert rows[0] != rows[0.2]
    assert "has no teacher of seed 4" in the_error(run_script(*watch, 4, expect=2))


def test_other_settings_are_refused(study):
    *_, out, command = study
    before = (out / "results.md").read_bytes(), (out / "jobs.json").read_bytes()
    error = the_error(run_script(*command, "--epochs", 2, expect=2))
    assert str(out) in error
    assert "'1' there and '2' here" in error
    assert ((out / "results.md").read_bytes(), (out / "jobs.json").read_bytes()) == before


@pytest.mark.parametrize(("options", "part"), [
    (["--preset", "paper", "--data", "nowhere"], "without a GPU"),
    (["--data", "nowhere"], "nowhere/train_night.txt is missing"),
    (["--seeds", "1", "1"], "--seeds names one twice"),
    (["--students", "cmkd_mse", "cmkd_mse"], "--students names one twice"),
    (["--students", "cmkd"], "invalid choice: 'cmkd'"),
    (["--lr", "0,005"], "argument --lr: '0,005'"),
    (["--stem", "inflat"], "argument --stem: invalid choice"),
    (["--init", "no.pth"], "--init no.pth is missing"),
    (["--test-list", "val_night"], "cannot judge them"),
])
def test_bad_input(tmp_path, monkeypatch, capsys, options, part):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--out", str(tmp_path / "out"), *options])
    with pytest.raises(SystemExit) as ending:
        run(reproduce.main)
    assert ending.value.code == 2
    assert part in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_teacher_may_be_what_all_begin_from(tmp_path, monkeypatch, synthetic):
    """Its name is that of the file which students are given as --teacher."""
    start = tmp_path / "teacher.pth"
    start.write_text("")
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--data", str(synthetic), "--init", str(start)])
    args = reproduce.parse_arguments()
    student, _ = reproduce.training("cmkd_mse", 0, args, PRESETS["smoke"], [])
    reproduce.refuse_impossible(args, PRESETS["smoke"], [student])
    assert student.arguments[student.arguments.index("--init") + 1] == str(start)


def test_own_classes_are_not_looked_for_in_simulated_days(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--data", "d", "--classes", "Deer,Moose", "--epochs", "3"])
    args = reproduce.parse_arguments()
    days, pretrained = reproduce.preparation(args, PRESETS["smoke"])
    assert (days.name, "--classes" in pretrained.arguments, "3" in pretrained.arguments) == ("days", False, False)
    train, _ = reproduce.training("baseline", 0, args, PRESETS["smoke"], [pretrained])
    assert train.arguments[train.arguments.index("--classes") + 1] == "Deer,Moose"
    assert train.needs == ("pretrained",)


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """Stands for the repository: a folder whose scripts are real processes."""
    home = tmp_path / "scripts"
    home.mkdir()
    (home / "write.py").write_text("import pathlib, sys\npathlib.Path(sys.argv[1]).write_text('')")
    (home / "nothing.py").write_text("")
    (home / "killed.py").write_text("import os, sys\nprint('warning: a hint', file=sys.stderr, flush=True)\n"
                                    "os.kill(os.getpid(), 9)")
    (home / "wrong.py").write_text("import sys\nprint('wrong.py: error: it is wrong', file=sys.stderr)\n"
                                   "print('a line of a library', file=sys.stderr)\nsys.exit(2)")
    (home / "sleep.py").write_text("import pathlib, sys, time\npathlib.Path(sys.argv[1]).write_text('')\n"
                                   "time.sleep(60)")
    monkeypatch.setattr(jobs, "REPOSITORY", home)
    return home


def test_why_jobs_failed(tmp_path, scripts):
    out = tmp_path / "out"
    failed = run_jobs([Job(name, [f"{name}.py"], out / name) for name in ("nothing", "killed", "wrong")]
                      + [Job("after", ["write.py", str(out / "after")], out / "after", ("killed",)),
                         Job("write", ["write.py", str(out / "write")], out / "write")], out, slots(2))
    assert "nothing was not made, though nothing.py found nothing wrong" in failed.pop("nothing")
    assert failed.pop("killed").startswith("killed by SIGKILL, as the system does where memory is short")
    assert failed.pop("wrong").startswith("wrong.py: error: it is wrong (")
    assert failed == {"after": "there is no killed"}
    assert (out / "write").exists()


def test_what_is_removed_is_made_again_and_nothing_mixed(tmp_path, scripts):
    """What was made of the old file is refused, what is quickly made is made again; other arguments likewise."""
    out = tmp_path / "out"

    def chain(*extra):
        return [Job("a", ["write.py", str(out / "a"), *extra], out / "a"),
                Job("b", ["write.py", str(out / "b")], out / "b", ("a",), reads=(out / "a",)),
                Job("c", ["write.py", str(out / "c")], out / "c", ("a",))]

    assert run_jobs(chain(), out, slots(1)) == {}
    (out / "a").unlink()
    with pytest.raises(UserError, match="c was made with another a than the one to be made now"):
        run_jobs(chain(), out, slots(1))
    (out / "c").unlink()
    (out / "b").write_text("old")
    assert run_jobs(chain(), out, slots(1)) == {}
    assert (out / "b").read_text() == ""
    (out / "b").write_text("older than a")
    os.utime(out / "a", ns=(2 * time.time_ns(),) * 2)
    assert run_jobs(chain(), out, slots(1)) == {}
    assert (out / "b").read_text() == ""
    os.utime(out / "a", ns=(0, 0))
    (out / "b").write_text("newer than a")
    assert run_jobs(chain(), out, slots(1)) == {}
    assert (out / "b").read_text() == "newer than a"
    with pytest.raises(UserError, match=r"other settings \(a: .*'new' here\)"):
        run_jobs(chain("new"), out, slots(1))


def test_two_at_once_and_one_alone(tmp_path, monkeypatch):
    """Both of two must be there for either to end; a job that is alone waits for both, though there is room, and
    nothing begins beside it."""
    barrier, running = threading.Barrier(2, timeout=20), set()

    def call(job, out, environment, bar, processes):
        running.add(job.name)
        assert running == {job.name} or "alone" not in running
        if job.name in ("a", "b"):
            assert environment["OMP_NUM_THREADS"]
            barrier.wait()
            time.sleep(0.3 if job.name == "b" else 0)
        if job.alone:
            time.sleep(0.3)
            assert running == {job.name}
        job.makes.write_text("")
        running.remove(job.name)

    monkeypatch.setattr(jobs, "call", call)
    all_jobs = [Job("a", [], tmp_path / "a"), Job("b", [], tmp_path / "b"),
                Job("alone", [], tmp_path / "alone", alone=True), Job("c", [], tmp_path / "c", ("b",))]
    assert run_jobs(all_jobs, tmp_path / "out", slots(3)) == {}


def test_sigterm_ends_the_jobs_and_says_how_to_go_on(tmp_path, scripts):
    out = tmp_path / "out"
    program = (f"import pathlib\nfrom cmkd.study import jobs\njobs.REPOSITORY = pathlib.Path({str(scripts)!r})\n"
               f"out = pathlib.Path({str(out)!r})\n"
               "jobs.run_jobs([jobs.Job(n, ['sleep.py', str(out / n)], out / n) for n in 'abc'], out, jobs.slots(2))")
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True,
                               stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not ((out / "a").exists() and (out / "b").exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    with pytest.raises(UserError, match="is used by a call that still runs"):
        run_jobs([Job("d", ["write.py", str(out / "d")], out / "d")], out, slots(1))
    process.terminate()
    _, errors = process.communicate(timeout=30)  # the jobs sleep for 60 s
    assert process.returncode == 128 + 15
    assert "stopped by SIGTERM with 0 of 3 jobs done; everything is saved: the same command goes on" in errors
    assert not (out / "c").exists()


def test_folders_that_are_none_of_ours(tmp_path):
    (tmp_path / "results.md").write_text("mine")
    with pytest.raises(UserError, match="holds something else than a study"):
        run_jobs([Job("a", ["test.py"], tmp_path / "a")], tmp_path, slots(1))
    (tmp_path / "jobs.json").write_text('{"a": {"arguments": []}}')
    with pytest.raises(UserError, match="is no record of jobs"):
        run_jobs([Job("a", ["test.py"], tmp_path / "a")], tmp_path, slots(1))


@pytest.mark.parametrize(("gibibytes", "cores", "expected"), [(80, 16, "01010101"), (24, 16, "0101"), (8, 16, "01"),
                                                               (80, 2, "01")])
def test_a_gpu_for_each(monkeypatch, gibibytes, cores, expected):
    """As many as memory and cores allow, at least one on each."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties",
                        lambda _: types.SimpleNamespace(total_memory=gibibytes * 2**30))
    monkeypatch.setattr(jobs.hardware, "cores", lambda: cores)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = slots(None)
    assert "".join(one["CUDA_VISIBLE_DEVICES"] for one in found) == expected
    assert {one["OMP_NUM_THREADS"] for one in found} == {str(cores // len(expected))}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert [one["CUDA_VISIBLE_DEVICES"] for one in slots(3)] == ["4", "7", "4"]


def test_cells():
    assert mean_and_deviation([1.0, 2.0, 3.0]) == "2.0 ± 1.0"
    assert mean_and_deviation([1.0]) == "1.0"
    assert mean_and_deviation([math.nan]) == "-"
    assert gap_cell({"gap_closed": 0.524, "gap_closed_interval": (-0.1, 1.2)}) == "52 % [-10, 120]"
    assert gap_cell({"gap_closed": -0.002, "gap_closed_interval": (-0.051, 0.043)}) == "0 % [-5, 4]"
    assert gap_cell({"gap_closed": math.nan, "gap_closed_interval": (0, 0)}) == gap_cell({}) == "-"


def test_a_network_without_a_run_is_a_row_of_dashes(tmp_path):
    study = Study(tmp_path, "v", "t", [0], {"teacher": {}}, 1)
    assert results_rows(study, {"teacher": {}}, {})[1] == ["teacher", "RGB + gated", "0 of 1", *["-"] * 5, "", "", "-"]


def test_runs_that_cannot_be_read_are_left_out(tmp_path, capsys):
    """None is left: a table of dashes, no comparison."""
    (tmp_path / "seed0/teacher").mkdir(parents=True)
    (tmp_path / "seed0/teacher/log.jsonl").write_text("{damaged\n")
    study = Study(tmp_path, "v", "t", [0], {"teacher": {0: tmp_path / "seed0/teacher"}}, 1)
    assert "0 of 1" in write_results(study, tmp_path)
    assert "log.jsonl:1: no record of a run" in capsys.readouterr().err
    assert json.loads((tmp_path / "results.json").read_text())["comparison"] == {}


def test_presets_have_options_that_the_scripts_take():
    for preset in PRESETS.values():
        for options in (preset.start, preset.pretrain):
            training_parser("x", "").parse_args([*preset.train.split(), *options.split()])

"""The study: real scripts on simulated frames, with a run that fails, then whole; other settings; tables by hand."""

import json
import math
import statistics

import pytest
import torch
from conftest import run_script, the_error
from PIL import Image

import jobs
from jobs import Job, run_jobs, slots
from layout import condition_lists
from reproduce import PRESETS
from results import Study, gap_cell, mean_and_deviation, results_rows
from utils import UserError, training_parser

NETWORKS = ("teacher", "baseline", "cmkd_mse")


@pytest.fixture(scope="module")
def study(synthetic, tmp_path_factory):
    """A study of two seeds: the first call, in which one run cannot write, the second one, and the folder."""
    out = tmp_path_factory.mktemp("study") / "out"
    command = ["reproduce.py", "--data", synthetic, "--out", out, "--seeds", 3, 5, "--students", "cmkd_mse", "--init",
               "none", "--min-size", 64, "--epochs", 1, "--draws", 20]
    (out / "seed5").mkdir(parents=True)
    (out / "seed5/cmkd_mse").write_text("in the way")
    first = run_script(*command, expect=2)
    first_table = (out / "results.md").read_text()
    (out / "seed5/cmkd_mse").unlink()
    return first, first_table, run_script(*command), out, command


def test_what_fails_leaves_a_hole(study):
    first, table, *_ = study
    errors = first.stderr.strip().splitlines()
    assert any(line.startswith("warning: seed5/cmkd_mse: ") and "cmkd_mse" in line for line in errors)
    assert "warning: test/seed5/cmkd_mse: there is no seed5/cmkd_mse" in errors
    assert errors[-1].startswith("reproduce.py: error: 2 of 13 jobs failed")
    assert [row.split(" | ")[2] for row in table.splitlines()[2:]] == ["2", "2", "1 of 2"]


def test_what_is_done_is_not_done_again(study):
    _, _, second, out, _ = study
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
    log = [json.loads(line) for line in (out / "seed3/teacher/log.jsonl").read_text().splitlines()]
    assert results["runs"]["teacher"]["seed3"]["minutes"] == pytest.approx(
        (log[-1]["train_seconds"] + log[-1]["val_seconds"]) / 60)
    assert results["runs"]["teacher"]["seed3"]["epochs"] == 1
    lists = ("val_night", "test_night")
    assert set(results["comparison"]) == {*lists, *(each for one in lists for each in condition_lists(synthetic, one))}


def test_the_pictures(study):
    *_, out, _ = study
    assert min(Image.open(out / "results.png").size) > 300
    assert "seed" in (out / "comparison.html").read_text()
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
    (["--seeds", 1, 1], "--seeds names one twice"),
    (["--students", "cmkd"], "invalid choice: 'cmkd'"),
])
def test_bad_input(tmp_path, options, part):
    assert part in the_error(run_script("reproduce.py", "--out", tmp_path / "out", *options, expect=2))
    assert not (tmp_path / "out").exists()


def test_a_record_that_is_none(tmp_path):
    (tmp_path / "jobs.json").write_text("[]")
    with pytest.raises(UserError, match="is no record of jobs"):
        run_jobs([Job("a", ["test.py"], tmp_path / "a")], tmp_path, slots(1))


def test_jobs_wait_for_what_they_need(tmp_path, monkeypatch):
    """Two at once, none before what it needs, none twice in an environment, failures passed on, the rest done."""
    order, busy = [], set()

    def call(job, out, environment, bar):
        assert (key := environment["OMP_NUM_THREADS"]) not in busy
        assert all(need in order for need in job.needs)
        busy.add(key)
        if job.name == "bad":
            busy.remove(key)
            raise UserError("no")
        job.makes.write_text("")
        order.append(job.name)
        busy.remove(key)

    monkeypatch.setattr(jobs, "call", call)
    needs = {"a": (), "bad": (), "b": ("a",), "after bad": ("bad",), "c": ("a", "b"), "after that": ("after bad",)}
    all_jobs = [Job(name, [], tmp_path / name, one) for name, one in needs.items()]
    failed = run_jobs(all_jobs, tmp_path, [{"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "2"}])
    assert failed == {"bad": "no", "after bad": "there is no bad", "after that": "there is no after bad"}
    assert order == ["a", "b", "c"]
    (tmp_path / "b").unlink()  # what was made is gone: it is made again
    run_jobs(all_jobs, tmp_path, slots(2))
    assert order == ["a", "b", "c", "b"]


def test_a_gpu_for_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert slots(None) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert [one["CUDA_VISIBLE_DEVICES"] for one in slots(3)] == ["4", "7", "4"]


def test_cells():
    assert mean_and_deviation([1.0, 2.0, 3.0]) == "2.0 ± 1.0"
    assert mean_and_deviation([1.0]) == "1.0"
    assert mean_and_deviation([math.nan]) == "-"
    assert gap_cell({"gap_closed": 0.524, "gap_closed_interval": (-0.1, 1.2)}) == "52 % [-10, 120]"
    assert gap_cell({"gap_closed": math.nan, "gap_closed_interval": (0, 0)}) == gap_cell({}) == "-"


def test_a_network_without_a_run_is_a_row_of_dashes(tmp_path):
    rows = results_rows(Study(tmp_path, ["v", "t"], {"teacher": [tmp_path], "baseline": []}, 1), {"teacher": {}}, {})
    assert rows[1] == ["teacher", "RGB + gated", "0 of 1", *["-"] * 8]


def test_presets_have_options_that_the_scripts_take():
    for preset in PRESETS.values():
        for options in (preset.start, preset.pretrain):
            training_parser("x", "").parse_args([*preset.train.split(), *options.split()])

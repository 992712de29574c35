"""Two processes under torchrun do what one does, and end together."""

import json
import os
import re
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, TINY
from test_reliability import wait_for_saves
from torchvision.ops import FrozenBatchNorm2d

from cmkd.runtime import distributed
from models import build_detector

MODULE = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def run_in(processes, *command, expect=0):
    """Run a script in one process, or in several by torchrun, each with one thread."""
    launcher = [*MODULE, f"--nproc_per_node={processes}"] if processes > 1 else [sys.executable]
    started = time.monotonic()
    done = subprocess.run([*launcher, *map(str, command)], capture_output=True, text=True, timeout=240,
                          env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})
    assert (done.returncode == 0) == (expect == 0), f"{done.stdout}\n{done.stderr}"
    return done, time.monotonic() - started


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A detector whose norm will be frozen, as that of COCO weights, so that a batch is no more than its frames."""
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    for channels in (3, 6):
        torch.save(build_detector(channels, 2, "resnet18", "none").state_dict(), folder / f"{channels}.pth")
    return folder


def test_a_step_of_two_processes_is_a_step_on_both_batches(synthetic, tmp_path, pretrained):
    """Two times 2 frames against 4 frames, discriminators included."""
    ends = []
    for processes, batch_size in ((1, 4), (2, 2)):
        folder = tmp_path / str(processes)
        run_in(processes, ROOT / "tests/without_chance.py", ROOT / "train_cmkd_adv.py", "--data", synthetic, *TINY,
               "--init", pretrained / "3.pth", "--teacher", pretrained / "6.pth", "--out", folder, "--run-dir",
               folder / "run", "--batch-size", batch_size, "--max-iterations", 1, "--lr", 1e-4, "--no-amp")
        ends.append(torch.load(folder / "run/last.pth", weights_only=True))
    # After one step SGD's momentum is the gradient (and the weight decay).
    gradients = [[value["momentum_buffer"] for value in end["optimizer"]["state"].values()] for end in ends]
    for alone, together in zip(*gradients, strict=True):
        assert (together - alone).norm() <= 1e-4 * alone.norm() + 1e-7
    for part in ("model", "also_trained"):
        for name, alone in ends[0][part].items():
            torch.testing.assert_close(ends[1][part][name], alone, rtol=1e-5, atol=1e-7)
    losses = [json.loads((tmp_path / run / "run/log.jsonl").read_text().splitlines()[-1])["losses"] for run in "12"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_evaluation_in_two_processes_equals_one(synthetic, tmp_path, pretrained, copy_of):
    """Five frames: three for one process and two for the other."""
    data, results = copy_of(synthetic), []
    (data / "five.txt").write_text("\n".join((data / "train_night.txt").read_text().split()[:5]))
    for processes in (1, 2):
        detections, report = tmp_path / f"{processes}.json", tmp_path / f"{processes}.report.json"
        run_in(processes, ROOT / "test.py", "--weights", pretrained / "3.pth", "--data", data, "--lists", "five",
               "--min-size", 64, "--max-size", 128, "--batch-size", 1, "--workers", 0,
               "--save-detections", detections, "--json", report)
        results.append((json.loads(detections.read_text()), json.loads(report.read_text())["metrics"]))
    assert len(results[0][0]) > 20
    assert results[0] == results[1]


def test_a_run_of_two_processes_goes_on_in_one(synthetic, tmp_path):
    arguments = [ROOT / "train_baseline.py", "--data", synthetic, *TINY, "--batch-size", 1, "--out", tmp_path,
                 "--run-dir", tmp_path / "run"]
    done, _ = run_in(2, *arguments, "--epochs", 1)
    assert done.stdout.count("epoch 1: loss") == 1
    run_in(1, *arguments, "--epochs", 2, "--resume")
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [record.get("processes", record.get("iteration")) for record in log] == [2, 3, 1, 9]


def test_an_error_in_one_process_ends_both_with_its_message(synthetic, tmp_path, copy_of):
    data = copy_of(synthetic)
    name = (data / "train_night.txt").read_text().split()[0]
    (data / "images" / f"{name}.png").write_bytes(b"")
    done, seconds = run_in(2, ROOT / "train_baseline.py", "--data", data, *TINY, "--batch-size", 1, "--out", tmp_path,
                           "--run-dir", tmp_path / "run", expect=2)
    messages = [line for line in done.stderr.splitlines() if line.startswith("train_baseline.py: error")]
    assert len(messages) == 1, done.stderr
    assert re.search(rf"error: process [01]: .*{name}.png cannot be read", messages[0])
    assert "engine.py" not in done.stderr  # no traceback of ours; torchrun's own says which process failed
    assert seconds < 60


def test_sigterm_to_torchrun_saves_and_stops_all_and_one_process_goes_on(synthetic, tmp_path):
    """As a scheduler sends it; torchrun passes it on to the processes and those of their loaders."""
    run_dir = tmp_path / "run"
    script = [ROOT / "train_baseline.py", "--data", synthetic, *TINY, "--workers", 1, "--batch-size", 1, "--epochs", 99,
              "--patience", 100, "--out", tmp_path, "--run-dir", run_dir]
    process = subprocess.Popen(
        [*MODULE, "--nproc_per_node=2", *map(str, script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})
    wait_for_saves(process, run_dir, 2)
    process.terminate()
    _, err = process.communicate(timeout=60)
    [place] = re.findall(r"stopped by SIGTERM after step (\d+) of epoch (\d+); everything is saved", err)
    state = torch.load(run_dir / "last.pth", weights_only=True)["state"]
    assert state["iteration"] == 3 * (int(place[1]) - 1) + int(place[0])
    assert "a loader process ended" not in err
    done, _ = run_in(1, *script, "--resume", "--max-iterations", state["iteration"] + 1)
    assert f"going on after epoch {int(place[1]) - 1} and {place[0]} steps" in done.stdout
    last = json.loads((run_dir / "log.jsonl").read_text().splitlines()[-1])
    assert last["iteration"] == state["iteration"] + 1


def test_norm_statistics_are_averaged(monkeypatch):
    """The other process's sum is stood in for: all of its statistics are 3."""
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(2), FrozenBatchNorm2d(2))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "total", lambda values: values.add_(3))
    distributed.average_norm_statistics(network)
    assert network[0].running_mean.tolist() == [1.5, 1.5]
    assert network[0].running_var.tolist() == [2, 2]
    assert network[1].running_var.tolist() == [1, 1]


def test_a_parameter_without_a_gradient_here_takes_the_others(monkeypatch):
    """The other process's gradients are stood in for: all of them are 2."""
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))
    used.grad = torch.full((2,), 4.0)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "total", lambda values: values.add_(2))
    distributed.average_gradients([used, unused])
    assert used.grad.tolist() == [3, 3]
    assert unused.grad.tolist() == [1, 1, 1]

"""Two processes under torchrun do what one does, and end together."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, epochs_of, run_script, train
from test_reliability import wait_for_saves
from torchvision.ops import FrozenBatchNorm2d

from cmkd.runtime import distributed
from models import build_detector

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
ENVIRONMENT = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def run_in(processes, *command, expect=0):
    """Run a script in one process, or in several by torchrun, each with one thread."""
    launcher = [*TORCHRUN, f"--nproc_per_node={processes}"] if processes > 1 else [sys.executable]
    started = time.monotonic()
    done = subprocess.run(
        [*launcher, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=240,
        env=ENVIRONMENT,
    )
    assert (done.returncode == 0) == (expect == 0), f"{done.stdout}\n{done.stderr}"
    return done, time.monotonic() - started


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Detectors that get a frozen norm, so the frames of a batch do not affect each other."""
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    for channels in (3, 6):
        torch.save(
            build_detector(channels, 2, "resnet18", "none").state_dict(), folder / f"{channels}.pth"
        )
    return folder


def training(name, data, home, *options):
    """The command of a training with a tiny network."""
    places = ["--data", data, "--out", home, "--run-dir", home / "run"]
    return [ROOT / f"train_{name}.py", *places, *TINY, *options]


def test_a_step_of_two_processes_is_a_step_on_both_batches(synthetic, tmp_path, pretrained):
    """Two times 2 frames against 4 frames, discriminators included."""
    ends = []
    for processes, batch_size in ((1, 4), (2, 2)):
        home = tmp_path / str(processes)
        options = ["--init", pretrained / "3.pth", "--teacher", pretrained / "6.pth", "--no-amp"]
        options += ["--batch-size", batch_size, "--max-iterations", 1, "--lr", 1e-4]
        command = training("cmkd_adv", synthetic, home, *options)
        run_in(processes, ROOT / "tests/without_chance.py", *command)
        ends.append(torch.load(home / "run/last.pth", weights_only=True))
    # After one step SGD's momentum is the gradient (and the weight decay).
    gradients = [
        [value["momentum_buffer"] for value in end["optimizer"]["state"].values()] for end in ends
    ]
    for alone, together in zip(*gradients, strict=True):
        assert (together - alone).norm() <= 1e-4 * alone.norm() + 1e-7
    for part in ("model", "also_trained"):
        for name, alone in ends[0][part].items():
            torch.testing.assert_close(ends[1][part][name], alone, rtol=1e-5, atol=1e-7)
    losses = [epochs_of(tmp_path / processes / "run")[-1]["losses"] for processes in "12"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_evaluation_in_two_processes_equals_one(synthetic, tmp_path, pretrained, copy_of):
    """Five frames: three for one process and two for the other."""
    data, results = copy_of(synthetic), []
    (data / "five.txt").write_text("\n".join((data / "train_night.txt").read_text().split()[:5]))
    options = ["--weights", pretrained / "3.pth", "--data", data, "--lists", "five"]
    options += "--min-size 64 --max-size 128 --batch-size 1 --workers 0".split()
    for processes in (1, 2):
        detections, report = tmp_path / f"{processes}.json", tmp_path / f"{processes}.report.json"
        command = ["test.py", *options, "--save-detections", detections, "--json", report]
        if processes == 1:
            run_script(*command)
        else:
            run_in(processes, ROOT / command[0], *command[1:])
        metrics = json.loads(report.read_text())["metrics"]
        results.append((json.loads(detections.read_text()), metrics))
    assert len(results[0][0]) > 20
    assert results[0] == results[1]


def test_a_run_of_two_processes_resumes_in_one(synthetic, tmp_path):
    done, _ = run_in(
        2, *training("baseline", synthetic, tmp_path, *"--batch-size 1 --epochs 1".split())
    )
    assert done.stdout.count("epoch 1: loss") == 1
    train("baseline", synthetic, tmp_path, "--batch-size 1 --epochs 2 --resume")
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [record.get("processes", record.get("iteration")) for record in log] == [2, 3, 1, 9]


COUNTS_THREADS = """
import runpy, sys, torch
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
print(f"{torch.get_num_threads()} threads", file=sys.stderr)
"""


def test_all_processes_take_the_number_of_threads_of_the_checkpoint(synthetic, tmp_path):
    """The environment has one thread. Nothing is left to train."""
    train("baseline", synthetic, tmp_path, "--max-iterations 1")
    last = tmp_path / "run/last.pth"
    torch.save({**torch.load(last, weights_only=True), "threads": 3}, last)
    script = tmp_path / "counts_threads.py"
    script.write_text(COUNTS_THREADS)
    options = "--max-iterations 1 --resume"
    done, _ = run_in(2, script, *training("baseline", synthetic, tmp_path, *options.split()))
    assert done.stderr.count("3 threads") == 2, done.stderr
    assert done.stdout.count("3 threads; not on a GPU") == 1
    assert done.stdout.count("threads: 3 as in the checkpoint (OMP_NUM_THREADS is 1)") == 1


def test_an_error_in_one_process_ends_both_with_its_message(synthetic, tmp_path, copy_of):
    data = copy_of(synthetic)
    name = (data / "train_night.txt").read_text().split()[0]
    (data / "images" / f"{name}.png").write_bytes(b"")
    command = training("baseline", data, tmp_path, "--batch-size", 1)
    done, seconds = run_in(2, *command, expect=2)
    messages = [line for line in done.stderr.splitlines() if "error: process" in line]
    assert len(messages) == 1, done.stderr
    expected = rf"train_baseline.py: error: process [01]: .*{name}.png cannot be read"
    assert re.match(expected, messages[0])
    # No traceback of ours; torchrun's own says which process failed.
    assert "engine.py" not in done.stderr
    assert seconds < 60


def test_sigterm_to_torchrun_saves_and_stops_all_and_one_process_resumes(synthetic, tmp_path):
    """As a scheduler sends it; torchrun passes it on to the processes and their workers."""
    run_dir = tmp_path / "run"
    options = "--workers 1 --batch-size 1 --epochs 99 --patience 100 --cache ram"
    command = training("baseline", synthetic, tmp_path, *options.split())
    process = subprocess.Popen(
        [*TORCHRUN, "--nproc_per_node=2", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    wait_for_saves(process, run_dir, 2)
    process.terminate()
    out, err = process.communicate(timeout=60)
    [cache] = set(re.findall(r"/\S+/frames-\S+\.cache", out))
    assert not Path(cache).exists()
    stopped = r"stopped by SIGTERM after step (\d+) of epoch (\d+); everything is saved"
    [(step, epoch)] = re.findall(stopped, err)
    state = torch.load(run_dir / "last.pth", weights_only=True)["state"]
    assert state["iteration"] == 3 * (int(epoch) - 1) + int(step)
    assert "a loader worker died" not in err
    last_step = ["--max-iterations", state["iteration"] + 1]
    done = train("baseline", synthetic, tmp_path, f"{options} --resume", *last_step)
    assert f"resuming after epoch {int(epoch) - 1} and {step} steps" in done.stdout
    assert epochs_of(run_dir)[-1]["iteration"] == state["iteration"] + 1


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

"""Training and evaluation on a GPU, where there is one: real scripts, and what the docs promise of them."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import NAMES, ROOT, TINY
from test_reliability import records_of, same_tensors, wait_for_saves

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
ON_CUDA = [*TINY, "--device", "cuda"]


def run_on_cuda(script, *arguments, expect=0):
    done = subprocess.run([sys.executable, ROOT / script, *map(str, arguments)], capture_output=True, text=True,
                          env=os.environ, timeout=300)
    assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def on_cuda(synthetic, tmp_path_factory):
    """A folder with weights/ and runs/ of all train scripts, two epochs each on the GPU."""
    home = tmp_path_factory.mktemp("cuda")
    for name in NAMES:
        teacher = ["--teacher", home / "weights/teacher.pth"] if name.startswith("cmkd") else []
        run_on_cuda(f"train_{name}.py", "--data", synthetic, *ON_CUDA, "--epochs", 2, "--lr", 0.001, *teacher, "--out",
                    home / "weights", "--run-dir", home / "runs" / name)
    return home


@pytest.mark.parametrize("name", NAMES)
def test_a_run_logs_losses_and_saves_weights(on_cuda, name):
    first, *epochs = [json.loads(line) for line in (on_cuda / f"runs/{name}/log.jsonl").read_text().splitlines()]
    assert first["arguments"]["device"] == "cuda"
    assert first["arguments"]["amp"] == (torch.cuda.get_device_capability() >= (8, 0))
    assert [epoch["iteration"] for epoch in epochs] == [3, 6]  # 6 frames, 2 at a time
    assert epochs[1]["losses"]["loss_objectness"] < epochs[0]["losses"]["loss_objectness"]
    state = torch.load(on_cuda / f"weights/{name}.pth", weights_only=True)
    assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize("name", ["teacher", "baseline"])
def test_detections_are_those_of_the_cpu(on_cuda, synthetic, tmp_path, name):
    """In float32, but for the TF32 in which products are computed."""
    found = {}
    for device in ("cuda", "cpu"):
        run_on_cuda("test.py", "--weights", on_cuda / f"weights/{name}.pth", "--data", synthetic, "--lists",
                    "val_night", "--no-amp", "--workers", 0, "--device", device, "--save-detections",
                    tmp_path / f"{device}.json")
        results = json.loads((tmp_path / f"{device}.json").read_text())
        found[device] = {image: sorted((one["score"] for one in results if one["image_id"] == image), reverse=True)[:5]
                         for image in {one["image_id"] for one in results}}
    assert found["cuda"].keys() == found["cpu"].keys()
    for image, scores in found["cpu"].items():
        assert found["cuda"][image] == pytest.approx(scores, abs=0.02)


@pytest.mark.parametrize("name", ["baseline", "cmkd_adv"])
def test_with_deterministic_a_killed_run_ends_as_another_does(on_cuda, synthetic, tmp_path, name):
    options = ["--data", synthetic, *ON_CUDA, "--deterministic", "--epochs", 2, "--lr", 0.001, *(
        ["--teacher", on_cuda / "weights/teacher.pth"] if name.startswith("cmkd") else [])]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_on_cuda(f"train_{name}.py", *options, "--out", whole, "--run-dir", whole / "run")
    options += ["--out", parts, "--run-dir", parts / "run", "--checkpoint-minutes", 1e-9]
    with subprocess.Popen([sys.executable, ROOT / f"train_{name}.py", *map(str, options)], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for_saves(process, parts / "run", 2)
        process.kill()
    run_on_cuda(f"train_{name}.py", *options, "--resume")
    assert len(records_of(whole / "run")) == 2
    assert records_of(whole / "run") == records_of(parts / "run")
    ends = [torch.load(folder / "run/last.pth", weights_only=True) for folder in (whole, parts)]
    assert same_tensors(ends[0]["model"], ends[1]["model"])


@pytest.mark.parametrize("options", [["--accumulate", 2], ["--compile"], ["--cache", "ram", "--workers", 2]])
def test_options_that_touch_the_device(synthetic, tmp_path, options):
    run_on_cuda("train_baseline.py", "--data", synthetic, *ON_CUDA, "--max-iterations", 2, *options, "--out", tmp_path,
                "--run-dir", tmp_path / "run")
    [epoch] = records_of(tmp_path / "run")
    assert epoch["iteration"] == 2


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(synthetic, tmp_path):
    """It is read some steps later than it came about; the step was not taken all the same."""
    done = run_on_cuda("train_baseline.py", "--data", synthetic, *ON_CUDA, "--epochs", 40, "--lr", 1e8, "--out",
                       tmp_path, "--run-dir", tmp_path / "run", expect=2)
    assert "non-finite loss or gradient" in done.stderr.splitlines()[-1]
    assert (tmp_path / "run/nonfinite.json").is_file()

"""Training and evaluation on a GPU, if there is one: real scripts, and what the docs promise."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import NAMES, ROOT, TINY, epochs_of
from test_reliability import same_tensors, wait_for_saves

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
ON_CUDA = [*TINY, "--device", "cuda"]


def run_on_cuda(script, *arguments, expect=0):
    done = subprocess.run(
        [sys.executable, ROOT / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ,
        timeout=300,
    )
    assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def on_cuda(synthetic, tmp_path_factory):
    """A folder with weights/ and runs/ of all train scripts, two epochs each on the GPU."""
    home = tmp_path_factory.mktemp("cuda")
    for name in NAMES:
        options = ["--out", home / "weights", "--run-dir", home / "runs" / name]
        if name.startswith("cmkd"):
            options += ["--teacher", home / "weights/teacher.pth"]
        options += ["--data", synthetic, *ON_CUDA, "--epochs", 2, "--lr", 0.001]
        run_on_cuda(f"train_{name}.py", *options)
    return home


@pytest.mark.parametrize("name", NAMES)
def test_a_run_logs_losses_and_saves_weights(on_cuda, name):
    first, *epochs = [
        json.loads(line) for line in (on_cuda / f"runs/{name}/log.jsonl").read_text().splitlines()
    ]
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
        detections = tmp_path / f"{device}.json"
        options = "--lists val_night --no-amp --workers 0 --device".split()
        files = ["--weights", on_cuda / f"weights/{name}.pth", "--save-detections", detections]
        run_on_cuda("test.py", "--data", synthetic, *options, device, *files)
        scores = {}
        for one in json.loads(detections.read_text()):
            scores.setdefault(one["image_id"], []).append(one["score"])
        found[device] = {image: sorted(own)[-5:] for image, own in scores.items()}
    assert found["cuda"].keys() == found["cpu"].keys()
    for image, scores in found["cpu"].items():
        assert found["cuda"][image] == pytest.approx(scores, abs=0.02)


def training(data, home, *options):
    """Options of a training on the GPU."""
    return ["--data", data, "--out", home, "--run-dir", home / "run", *ON_CUDA, *options]


@pytest.mark.parametrize("name", ["baseline", "cmkd_adv"])
def test_with_deterministic_a_killed_run_ends_as_another_does(on_cuda, synthetic, tmp_path, name):
    options = ["--deterministic", "--epochs", 2, "--lr", 0.001]
    if name.startswith("cmkd"):
        options += ["--teacher", on_cuda / "weights/teacher.pth"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_on_cuda(f"train_{name}.py", *training(synthetic, whole, *options))
    options += ["--checkpoint-minutes", 1e-9]
    with subprocess.Popen(
        [
            sys.executable,
            ROOT / f"train_{name}.py",
            *map(str, training(synthetic, parts, *options)),
        ],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        wait_for_saves(process, parts / "run", 2)
        process.kill()
    run_on_cuda(f"train_{name}.py", *training(synthetic, parts, *options, "--resume"))
    assert len(epochs_of(whole / "run")) == 2
    assert epochs_of(whole / "run") == epochs_of(parts / "run")
    ends = [torch.load(home / "run/last.pth", weights_only=True) for home in (whole, parts)]
    assert same_tensors(ends[0]["model"], ends[1]["model"])


@pytest.mark.parametrize("options", ["--accumulate 2", "--compile", "--cache ram --workers 2"])
def test_options_that_touch_the_device(synthetic, tmp_path, options):
    options = ["--max-iterations", 2, *options.split()]
    run_on_cuda("train_baseline.py", *training(synthetic, tmp_path, *options))
    [epoch] = epochs_of(tmp_path / "run")
    assert epoch["iteration"] == 2


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(synthetic, tmp_path):
    """It is fetched some steps later, but the step was not taken."""
    options = training(synthetic, tmp_path, "--epochs", 40, "--lr", 1e8)
    done = run_on_cuda("train_baseline.py", *options, expect=2)
    assert "non-finite loss or gradient" in done.stderr.splitlines()[-1]
    assert (tmp_path / "run/nonfinite.json").is_file()

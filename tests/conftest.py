"""Shared by the tests: frames made by hand, a simulated set, scripts run as a user runs them."""

import contextlib
import io
import json
import os
import runpy
import shutil
import struct
import subprocess
import sys
import traceback
import zlib
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
TAIL = "-1 -1 -1 -1000 -1000 -1000 -1000 0 0 0 1.0 -1000 -1000 -1000 -1000 True True -1 -1"
# Runs would choose their number by what else runs, and other numbers give other bits.
os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
# Scripts that run in the tests' process.
IN_PROCESS = ("train_", "test.py", "visualize.py", "export.py", "check_data.py", "label_")
NAMES = ("teacher", "baseline", "cmkd_mse", "cmkd_adv")  # of train scripts
TINY = [
    "--backbone",
    "resnet18",
    "--init",
    "none",
    "--min-size",
    "64",
    "--rois",
    "16",
    "--proposals",
    "50",
    "--batch-size",
    "2",
    "--workers",
    "0",
    "--device",
    "cpu",
]


def label_line(kind="Pedestrian", box=(100, 100, 200, 400)):
    """One 27-column line; the box is in 1280x720 label space."""
    return f"{kind} 0.00 0 -1 {' '.join(str(value) for value in box)} {TAIL}\n"


def write_frame(root, name, size=(160, 96), labels=""):
    """A frame of the prepared layout; its four images differ, and so do their pixels."""
    width, height = size
    ramp = np.add.outer(np.arange(height), np.arange(width)) % 200
    for index, folder in enumerate(("images", "gated0", "gated1", "gated2")):
        (root / folder).mkdir(parents=True, exist_ok=True)
        picture = (ramp + 10 * index).astype(np.uint8)
        if folder == "images":
            picture = np.stack([picture, picture + 1, picture + 2], axis=-1)
        Image.fromarray(picture).save(root / folder / f"{name}.png")
    (root / "gated_labels").mkdir(exist_ok=True)
    (root / "gated_labels" / f"{name}.txt").write_text(labels)


def write_16_bit_colour_png(file, values):
    """A minimal PNG (no filters), because Pillow cannot write 16-bit colour."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def run_script(script, *arguments, expect=0):
    """Run a script of the repository; its exit code must be `expect`.

    Most scripts run in this process, because a new one takes three seconds to import torch: the
    file itself, as `__main__`, with these arguments, and its output is caught.
    """
    command = [str(ROOT / script), *map(str, arguments)]
    if str(script).startswith(IN_PROCESS):
        done = run_here(command)
    else:
        if "/" in str(script) and not Path(script).is_absolute():
            # A module of a package is run by its dotted name.
            command[:1] = ["-m", str(Path(script).with_suffix("")).replace("/", ".")]
        done = subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=ROOT,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )
    assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def train(name, data, home, options="", *more, expect=0):
    """Run a train script with a tiny network; weights go to `home`, log and state to `home/run`.

    Of options that occur twice the last counts.
    """
    places = ["--data", data, "--out", home, "--run-dir", home / "run"]
    return run_script(f"train_{name}.py", *places, *TINY, *options.split(), *more, expect=expect)


def epochs_of(run_dir):
    """The records of epochs in a run's log, without the times, which differ from run to run."""
    records = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in record.items() if not key.endswith("seconds")}
        for record in records
        if "epoch" in record
    ]


def run_here(command):
    before, output, errors, code = sys.argv, io.StringIO(), io.StringIO(), 0
    sys.argv = command
    try:
        with (
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
            patch.object(torch.cuda, "is_available", return_value=False),
        ):
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    except Exception:
        code = 1
        errors.write(traceback.format_exc())
    finally:
        sys.argv = before
        torch.use_deterministic_algorithms(False)
    return subprocess.CompletedProcess(command, code, output.getvalue(), errors.getvalue())


def the_error(done):
    """The one line a script ended with; progress bars and tracebacks would be more lines."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert "error: " in lines[0]
    return lines[0]


@pytest.fixture(autouse=True)
def _same_random_numbers_and_threads():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def frames(tmp_path):
    """Two frames made by hand, one with a person, in the lists `train_night` and `val_night`."""
    write_frame(tmp_path, "a", labels=label_line())
    write_frame(tmp_path, "b")
    for name in ("train_night", "val_night"):
        (tmp_path / f"{name}.txt").write_text("a\nb\n")
    return tmp_path


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory) -> Path:
    """A simulated set of a few small frames, made by the real script."""
    root = tmp_path_factory.mktemp("synthetic") / "data"
    options = "--frames 6 4 4 --size 160x96 --workers 2 --seed 1 --animals 0"
    run_script("make_synthetic.py", "--out", root, *options.split())
    return root


@pytest.fixture(scope="session")
def trained(synthetic, tmp_path_factory) -> Path:
    """weights/ and runs/ of all train scripts, each trained for three steps, the teacher first."""
    home = tmp_path_factory.mktemp("trained")
    for name in NAMES:
        options = ["--out", home / "weights", "--run-dir", home / "runs" / name]
        if name.startswith("cmkd"):
            options += ["--teacher", home / "weights/teacher.pth"]
        precision = "--amp" if name == "baseline" else "--no-amp"
        done = train(name, synthetic, home, f"--max-iterations 3 {precision}", *options)
        (home / f"{name}.out").write_text(done.stdout)
        # No test reads it, and it would stay on the disk until all tests are over.
        (home / "runs" / name / "previous.pth").unlink()
    return home


@pytest.fixture
def copy_of(tmp_path):
    """Copy a folder into the test's own, where it may be damaged."""

    def copy(folder):
        return Path(shutil.copytree(folder, tmp_path / "copy"))

    return copy

"""One-line errors, types of the command line, and whole files."""

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from cmkd.runtime import hardware
from cmkd.runtime.command_line import cores, non_negative_float, positive_float
from cmkd.runtime.failures import run
from cmkd.runtime.files import UserError, open_data_folder, read_json, refuse_unwritable, save_json
from cmkd.runtime.weights import WeightsError, save_torch


def ended_with(capsys, error):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        run(main)
    assert end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    return line.partition("error: ")[2]


def test_errors_end_in_one_line(capsys):
    assert ended_with(capsys, UserError("a.txt is missing: add it")) == "a.txt is missing: add it"
    two_lines = WeightsError("a.pth is bad:\nfor two reasons")
    assert ended_with(capsys, two_lines) == "a.pth is bad: for two reasons"
    wrapped = (
        "Caught UserError in DataLoader worker process 0.\n"
        "Original Traceback (most recent call last):\n"
        '  File "worker.py", line 1, in f\n'
        "cmkd.runtime.files.UserError: a.png is bad\nat its end\n"
    )
    assert ended_with(capsys, UserError(wrapped)) == "a.png is bad at its end"


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "", "a", "-0.1"])
def test_numbers_that_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a number of at least 0"):
        non_negative_float(text)
    with pytest.raises(argparse.ArgumentTypeError, match="is not a number above 0"):
        positive_float(text)


def test_zero_is_a_weight_and_no_learning_rate():
    assert non_negative_float("0") == 0
    with pytest.raises(argparse.ArgumentTypeError):
        positive_float("0")


def test_unwritable_files_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    for check in (refuse_unwritable, lambda path: save_json({}, path)):
        with pytest.raises(
            UserError, match=r"file/a.json cannot be written \((Not a directory|File exists)\)"
        ):
            check(tmp_path / "file" / "a.json")
    with pytest.raises(UserError, match="is a folder: name a file"):
        refuse_unwritable(tmp_path)
    refuse_unwritable(tmp_path / "new/folder/a.json")
    assert list((tmp_path / "new/folder").iterdir()) == []


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """A limit on the size of files stands for the disk."""
    save_torch(torch.zeros(1), tmp_path / "a.pth")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"a.pth cannot be written \(File too large\)"):
            save_torch(torch.zeros(1_000_000), tmp_path / "a.pth")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(torch.load(tmp_path / "a.pth", weights_only=True)) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]


def test_versions_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError):
        subprocess.run(["git"])
    assert hardware.versions()["git"] == "unknown"
    assert hardware.versions()["torch"] == torch.__version__


def test_a_data_folder_is_resumed_with_the_same_parameters_only(tmp_path):
    def open_it(**parameters):
        return open_data_folder(tmp_path / "data", "made.json", parameters, ("images", "labels"))

    assert open_it(size=3) == {"parameters": {"size": 3}}
    (tmp_path / "data/images/.a.png.xyz").write_text("half")
    save_json({"parameters": {"size": 3}, "light": 0.5}, tmp_path / "data/made.json")
    assert open_it(size=3)["light"] == 0.5
    assert list((tmp_path / "data/images").iterdir()) == []
    with pytest.raises(UserError, match="was made with size 3, not 4: .*nothing was changed"):
        open_it(size=4)
    for damaged in ("{", "[]", "{}"):
        (tmp_path / "data/made.json").write_text(damaged)
        with pytest.raises(UserError, match=r"made.json .*choose another --out"):
            open_it(size=3)
    with pytest.raises(UserError, match="exists and holds something else"):
        open_data_folder(tmp_path, "made.json", {}, ())


def test_json_is_read_or_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a.json is not JSON \(.*\): fix it"):
        read_json(tmp_path / "a.json", "fix it")
    with pytest.raises(UserError, match="b.json is missing: make it"):
        read_json(tmp_path / "b.json", "make it")


# ------------------------------------------------------------------------------------ threads

# Of a machine with two cores; the numbers are in hundredths of a second.
AT_FIRST = """cpu  3127450 63 76721 2188990 14470 0 1029 3304 0 0
cpu0 1573722 30 38551 1084713 7181 0 1006 1653 0 0
cpu1 1553727 33 38170 1104277 7288 0 22 1651 0 0
intr 64480302 0 9 0 0 0
ctxt 115032884
"""


def later(core0, core1):
    """A text of /proc/stat in which (user, idle, waiting for a disk, stolen) have grown by so much.

    Of a quarter of a second these are 25 in all.
    """
    lines = []
    for line in AT_FIRST.splitlines():
        name, *times = line.split()
        if name in ("cpu0", "cpu1"):
            user, idle, waiting, stolen = core0 if name == "cpu0" else core1
            more = [user, 0, 0, idle, waiting, 0, 0, stolen, 0, 0]
            times = [int(time) + one for time, one in zip(times, more, strict=True)]
        lines.append(" ".join([name, *map(str, times)]))
    return "\n".join(lines)


IDLE, BUSY = (0, 25, 0, 0), (25, 0, 0, 0)
LOADS = {  # of both cores, and the threads for a run that may use both
    "idle": (IDLE, IDLE, 2),
    "a little noise": ((2, 23, 0, 0), (1, 24, 0, 0), 2),
    "a busy process": (IDLE, BUSY, 1),
    "a busy process that moved": ((12, 13, 0, 0), (13, 12, 0, 0), 1),
    "a process that is busy half of the time": (IDLE, (12, 13, 0, 0), 1),
    "two busy processes": (BUSY, BUSY, 1),
    "waiting for a disk": (IDLE, (0, 0, 25, 0), 2),
    "stolen by another machine": (IDLE, (0, 0, 0, 25), 1),
    "a counter that stands still": ((0, 0, 0, 0), (0, 0, 0, 0), 2),
}


@pytest.fixture
def two_cores(monkeypatch):
    """Two cores, of which torch would use both; no quota. Sets what /proc/stat says."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(hardware, "SAMPLE_SECONDS", 0)
    monkeypatch.setattr(hardware, "CPU_QUOTA", Path("no/such/file"))

    def say(*texts):
        file = SimpleNamespace(read_text=iter(texts).__next__)
        monkeypatch.setattr(hardware, "CPU_TIMES", file)

    return say


@pytest.mark.parametrize("load", LOADS)
def test_a_busy_machine_gives_fewer_threads(two_cores, load):
    core0, core1, expected = LOADS[load]
    two_cores(AT_FIRST, later(core0, core1))
    assert hardware.choose_threads() == expected


def test_only_cores_that_the_process_may_use_count(two_cores, monkeypatch):
    """The others may be busy, or this process's may have other numbers (as in some containers)."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    for allowed, expected in (({0}, 1), ({0, 6, 7}, 3), ({0, 1, 6, 7}, 3), ({6, 7}, 2)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, allowed=allowed: allowed)
        two_cores(AT_FIRST, later(IDLE, BUSY))
        assert hardware.choose_threads() == expected


def test_torch_is_not_given_more_threads_than_it_would_take(two_cores, monkeypatch):
    """It takes one for each physical core."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    two_cores(AT_FIRST, later(IDLE, IDLE))
    assert hardware.choose_threads() == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max 100000\n", 2), ("200000 100000", 2), ("150000 100000", 1), ("50000 100000", 1)],
)
def test_a_container_has_as_many_threads_as_cores_that_it_may_use(
    two_cores, monkeypatch, tmp_path, text, expected
):
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(hardware, "CPU_QUOTA", tmp_path / "cpu.max")
    two_cores(AT_FIRST, later(IDLE, IDLE))
    assert hardware.choose_threads() == expected


def test_without_linux_torchs_number_is_taken(two_cores, monkeypatch):
    monkeypatch.setattr(hardware, "CPU_TIMES", Path("no/such/file"))
    assert hardware.choose_threads() == 2


def test_a_real_process_is_seen_to_be_busy():
    """On a core that only it and this process use, or others too."""
    core = min(os.sched_getaffinity(0))
    code = f"import os\nos.sched_setaffinity(0, [{core}])\nprint(flush=True)\nwhile True: pass"
    busy = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        busy.stdout.readline()
        assert hardware.busy_cores() > 0.9
        assert 1 <= hardware.choose_threads() <= max(1, cores() - 1)
    finally:
        busy.kill()
        busy.communicate()


STARTS = """
import os, torch
from cmkd.runtime import hardware
hardware.busy_cores = lambda: 9.0
hardware.start(torch.device("cpu"), False)
print(torch.get_num_threads())
hardware.start(torch.device("cpu"), False, 3)
print(torch.get_num_threads())
os.environ["OMP_NUM_THREADS"] = ""  # as if it were not set
hardware.start(torch.device("cpu"), False)
print(torch.get_num_threads())
"""


@pytest.mark.skipif(os.cpu_count() < 2, reason="torch takes no more threads than there are cores")
def test_omp_num_threads_is_the_number_and_a_checkpoints_comes_before_it():
    """In a new process, whose torch has read OMP_NUM_THREADS, on a machine that is busy."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", STARTS], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, two, changed, resumed, three, chosen, one = done.stdout.splitlines()
    assert (two, three, one) == ("2", "3", "1")
    assert changed == "threads: 3 as in the checkpoint (OMP_NUM_THREADS is 2)"
    for line, threads in ((first, "2 threads"), (resumed, "3 threads"), (chosen, "1 thread")):
        assert f"), float32, {threads}; not on a GPU because " in line


# --------------------------------------------------------------------------------------- device

NO_DRIVER = (
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed "
    "a driver from http://www.nvidia.com/Download/index.aspx"
)
OLD_DRIVER = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU "
    "driver by downloading and installing a new version from the URL: "
    "http://www.nvidia.com/Download/index.aspx Alternatively, go to: https://pytorch.org to "
    "install a PyTorch version that has been compiled with your version of the CUDA driver."
)
NO_GPU = "No CUDA GPUs are available"
REASONS = {  # torch's CUDA version, its error, CUDA_VISIBLE_DEVICES, our line
    "no CUDA build": (None, "", None, "this torch is built without CUDA"),
    "no driver": ("13.0", NO_DRIVER, None, "no NVIDIA driver was found"),
    "no driver, hidden": ("13.0", NO_DRIVER, "", "no NVIDIA driver was found"),
    "old driver": (
        "13.0",
        OLD_DRIVER,
        None,
        "the NVIDIA driver is too old: it is made for CUDA 11.4, this torch for 13.0; update the "
        "driver, or install a torch for older ones (README)",
    ),
    "hidden": ("13.0", NO_GPU, "", "CUDA_VISIBLE_DEVICES is ''"),
    "hidden by -1": ("13.0", NO_GPU, "-1", "CUDA_VISIBLE_DEVICES is '-1'"),
    "no GPU": ("13.0", NO_GPU, None, "no GPU was found"),
    "another error": (
        "13.0",
        "Unexpected error from cudaGetDeviceCount(). Error 803: system has unsupported display "
        "driver\nand more",
        None,
        "CUDA does not start: Unexpected error from cudaGetDeviceCount(). Error 803: system has "
        "unsupported display driver",
    ),
}


@pytest.mark.parametrize("case", REASONS)
def test_it_says_why_it_runs_on_the_cpu(monkeypatch, case):
    cuda, error, visible, expected = REASONS[case]

    def init():
        raise RuntimeError(error)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    line = hardware.where_it_runs(torch.device("cpu"), bfloat16=True)
    assert line.startswith(f"cpu ({hardware.processor()}), bfloat16, ")
    assert line.endswith(f"; not on a GPU because {expected}")


def test_torchs_errors_are_still_these():
    library = Path(torch.__file__).parent / "lib/libc10_cuda.so"
    if not library.is_file():
        pytest.skip("this torch has no CUDA")
    content = library.read_bytes()
    for text in (NO_DRIVER, OLD_DRIVER.partition("11040")[0], NO_GPU):
        assert text.encode() in content


def test_it_says_which_gpu_and_why_not_in_bfloat16(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    old = "cuda (Tesla T4), float32, 8 threads; not in bfloat16 because GPUs before Ampere do not"
    assert hardware.where_it_runs(gpu, bfloat16=False).startswith(old)
    assert hardware.where_it_runs(gpu, bfloat16=True) == "cuda (Tesla T4), bfloat16, 8 threads"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert hardware.where_it_runs(gpu, bfloat16=False) == "cuda (Tesla T4), float32, 8 threads"
    on_purpose = hardware.where_it_runs(torch.device("cpu"), bfloat16=True)
    assert on_purpose.endswith("; not on a GPU because --device cpu was given")

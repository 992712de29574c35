"""What this machine can do, and how torch is set up for it."""

import ctypes
import math
import os
import platform
import re
import subprocess
import time
from pathlib import Path

import numpy as np
import torch
import torchvision

from cmkd.runtime import distributed
from cmkd.runtime.command_line import cores
from cmkd.runtime.files import REPOSITORY, reason_of

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # options of glibc's mallopt, from malloc.h
CPU_TIMES = Path("/proc/stat")  # of Linux, as is the other
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container
SAMPLE_SECONDS = 0.25  # the kernel counts in hundredths of a second
# The share of a core that other processes may use of one that still counts as idle.
TOLERATED = 0.2
IDLE, WAITING_FOR_DISK = 3, 4  # among a core's times in /proc/stat


def prepare() -> None:
    """Set up the process.

    CUDA: what stays in float32 is multiplied in TF32, also with `--no-amp`: 10 bits of mantissa
    instead of 23. Linux: glibc keeps freed memory in the process. It would return large blocks to
    the system, and taking them again costs a page fault for every 4 KiB.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 rather than emulates it, which is many times slower.

    CUDA from Ampere on, CPUs with AVX512-BF16 or AMX.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return (
        device.type == "cpu"
        and platform.machine() in ("x86_64", "AMD64")
        and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    )


# -------------------------------------------------------------------------------------- threads


def start(device: torch.device, bfloat16: bool, saved_threads: int | None = None) -> None:
    """Set a run's number of threads, and print one line: device, precision and threads.

    A run that is resumed takes the number of its checkpoint, because the same bits need the same
    number; one more line says so if it would be another one here.
    """
    given = os.environ.get("OMP_NUM_THREADS")
    default = torch.get_num_threads()  # OMP_NUM_THREADS if it is set
    if saved_threads and saved_threads != default:
        here = f"OMP_NUM_THREADS is {given}" if given else f"torch's default here is {default}"
        print(f"threads: {saved_threads} as in the checkpoint ({here})")
    torch.set_num_threads(saved_threads or (default if given else choose_threads()))
    print(where_it_runs(device, bfloat16))


def choose_threads() -> int:
    """Torch's number, but at most one for each core that is idle now, and at least 1.

    On a core that another process uses, a thread lets all others wait at the end of every loop.
    """
    idle = min(cores() - busy_cores(), quota())
    return max(1, min(torch.get_num_threads(), math.floor(idle + TOLERATED)))


def busy_cores() -> float:
    """How many of the cores that this process may use are used, while it sleeps for a moment.

    0 on systems that do not tell.
    """
    try:
        before = CPU_TIMES.read_text()
        time.sleep(SAMPLE_SECONDS)
        return busy_between(before, CPU_TIMES.read_text(), os.sched_getaffinity(0))
    except (OSError, AttributeError):  # not on Linux
        return 0.0


def busy_between(before: str, after: str, allowed: set[int]) -> float:
    """How many of the allowed cores were used between two texts of /proc/stat.

    A core that a text does not have, or whose times stand still, counts as idle.
    """
    used = 0.0
    first, last = core_times(before), core_times(after)
    for core in allowed & first.keys() & last.keys():
        times = last[core] - first[core]
        if times.sum() > 0:
            used += 1 - (times[IDLE] + times[WAITING_FOR_DISK]) / times.sum()
    return used


def core_times(text: str) -> dict[int, np.ndarray]:
    """The times of each core in a text of /proc/stat, since the start of the system.

    In hundredths of a second: user, nice, system, idle, waiting for a disk, two kinds of
    interrupts, stolen by other virtual machines. The rest of a line is part of `user`.
    """
    lines = re.findall(r"^cpu(\d+) (.+)$", text, re.MULTILINE)
    return {int(core): np.array(times.split()[:8], dtype=float) for core, times in lines}


def quota() -> float:
    """How many cores a container's time is worth (`docker run --cpus`); infinite outside one."""
    try:
        allowed, period = CPU_QUOTA.read_text().split()
    except (OSError, ValueError):
        return math.inf
    return math.inf if allowed == "max" else int(allowed) / int(period)


def loader_processes() -> int:
    """One for each core that this process may use, at most 8, divided among torchrun's."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if distributed.is_torchrun() else 1
    return max(1, min(8, cores() // processes))


# ------------------------------------------------------------------------------------- the machine


def where_it_runs(device: torch.device, bfloat16: bool) -> str:
    """Device, precision and threads; why not on a GPU, and why not in bfloat16 on an old GPU."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    threads = torch.get_num_threads()
    line = (
        f"{device.type} ({name}), {'bfloat16' if bfloat16 else 'float32'}, "
        f"{threads} thread{'s' if threads > 1 else ''}"
    )
    if device.type == "cpu":
        return f"{line}; not on a GPU because {why_on_cpu()}"
    if device.type == "cuda" and not bfloat16 and not computes_bfloat16(device):
        return f"{line}; not in bfloat16 because GPUs before Ampere do not compute in it"
    return line


def why_on_cpu() -> str:
    """Why networks run on the CPU. The errors are those with which torch's CUDA does not start."""
    if torch.cuda.is_available():
        return "--device cpu was given"
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    try:
        torch.cuda.init()
        reason = ""
    except (RuntimeError, AssertionError) as error:
        reason = reason_of(error)
    if "Found no NVIDIA driver" in reason:
        return "no NVIDIA driver was found"
    if found := re.search(r"driver on your system is too old \(found version (\d+)\)", reason):
        version = int(found[1])
        return (
            f"the NVIDIA driver is too old: it is made for CUDA {version // 1000}."
            f"{version % 1000 // 10}, this torch for {torch.version.cuda}; update the driver, or "
            "install a torch for older ones (README)"
        )
    if reason and "No CUDA GPUs are available" not in reason:
        return f"CUDA does not start: {reason}"
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return f"CUDA_VISIBLE_DEVICES is {os.environ['CUDA_VISIBLE_DEVICES']!r}"
    return "no GPU was found"


def processor() -> str:
    """The processor's name and its number of cores; its architecture if the system has no name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """What a result depends on besides its arguments: libraries, device and git commit."""
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        ).stdout.strip()
    except OSError:  # git is not installed
        commit = ""
    return {
        "git": commit or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
    }

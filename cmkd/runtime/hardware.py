"""What this machine can do, and how torch is set up for it."""

import ctypes
import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import torch
import torchvision

from cmkd.runtime.command_line import cores
from cmkd.runtime.files import REPOSITORY

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # options of glibc's mallopt, from malloc.h


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


def loader_processes() -> int:
    """One for each core that this process may use, at most 8, divided among torchrun's."""
    return max(1, min(8, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


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

"""What this machine can do, and how torch is set up for it."""

import ctypes
import os
import platform
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def prepare() -> None:
    """Set up the process.

    CUDA: TF32 where float32 remains, also with `--no-amp`: 10 bits of a product's factors are used, not 23. Linux:
    memory that tensors give back stays with the process; glibc would return large blocks to the system, and taking them
    again costs a page fault for every 4 KiB.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16: CUDA from Ampere on, CPUs with AVX512-BF16 or AMX. Where it is only
    imitated, a step takes many times as long."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return (device.type == "cpu" and platform.machine() in ("x86_64", "AMD64")
            and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()))


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loader_processes() -> int:
    """One for each core that this process may use, at most 8, shared between the processes of a torchrun."""
    return max(1, min(8, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def processor() -> str:
    """The processor's name and number of cores, as Linux tells them; elsewhere its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"

"""What the benchmarks share: simulated frames of the published size, processes that take turns, tables and JSON."""

import contextlib
import multiprocessing
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from cmkd.evaluation.metrics import finite
from utils import REPOSITORY, save_json, versions


def simulate(folder: Path, frames: int, size: str = "1280x768", val: int = 1) -> Path:
    """A prepared folder with lists of so many night frames in `train_night`, and `val` in `val_night`."""
    subprocess.run([sys.executable, REPOSITORY / "make_synthetic.py", "--out", folder, "--size", size, "--frames",
                    str(frames), str(val), "1"], check=True, stdout=subprocess.DEVNULL)
    return folder


class Side:
    """An object that lives in a process of its own, and works when it is asked to: what it sets up in its process (or
    leaves as it is) does not touch the side it is compared with.

    `make` is called there, and must be known by name to a new Python.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.orders, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(make, theirs))
        self.process.start()
        theirs.close()  # so that its end is known here

    def ask(self, method: str) -> tuple[float, Any]:
        """The seconds that a method took, and what it gave. Raises what was raised there."""
        with contextlib.suppress(BrokenPipeError):  # it failed before, and its error is the answer
            self.orders.send(method)
        answer = self.orders.recv()
        if isinstance(answer, Exception):
            for process in multiprocessing.active_children():
                process.kill()
            raise answer
        return answer

    def end(self) -> int:
        """End the process; the bytes it had at most: of the GPU where there is one, else of memory."""
        _, peak = self.ask("")
        self.process.join()
        return peak


def serve(make: Callable[[], Any], orders: Connection) -> None:
    """What the process of a `Side` does."""
    try:
        side = make()
        while method := orders.recv():
            orders.send(timed(getattr(side, method)))
    except Exception as error:  # raised again where it was asked for, as nobody waits here
        orders.send(error)
        raise
    on_gpu = torch.cuda.is_available() and torch.cuda.max_memory_allocated()
    orders.send((0.0, on_gpu or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def timed(work: Callable[..., Any], *given: Any) -> tuple[float, Any]:
    """The seconds that it takes, and the GPU with it; and what it gives."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = work(*given)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second in products of large square matrices: what the device can do."""
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return max(2 * side**3 / timed(torch.mm, left, right)[0] for _ in range(10))


def table(head: list[str], rows: list[list[Any]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def report(text: str, figures: dict[str, Any], file: Path | None) -> None:
    """Print a table; write the figures as JSON, with what they depend on, and the table beside them."""
    print(text)
    if file:
        save_json({**finite(figures), "command": " ".join(["python", *sys.argv]), "versions": versions()}, file)
        file.with_suffix(".md").write_text(text + "\n", encoding="utf-8")

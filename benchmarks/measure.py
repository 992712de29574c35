"""What benchmarks share: simulated frames of the published size, processes that take turns."""

import argparse
import contextlib
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from cmkd.runtime.command_line import at_least
from cmkd.runtime.files import REPOSITORY
from cmkd.study.jobs import option_words
from utils import usable_device

PUBLISHED_SIZE = "1280x768"  # px of the stored frames


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device, by default a GPU if there is one."""
    parser.add_argument(
        "--device",
        type=usable_device,
        default=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        help="default: cuda if there is one",
    )


def add_turns(parser: argparse.ArgumentParser, turns: int) -> None:
    """--turns, for `take_turns`."""
    parser.add_argument(
        "--turns",
        type=at_least(1),
        default=turns,
        help=f"turns that count; their median does (default: {turns})",
    )


def simulate(folder: Path, frames: int, size: str = PUBLISHED_SIZE, val: int = 1) -> Path:
    """Make a prepared folder of night frames: `frames` in `train_night`, `val` in `val_night`."""
    run_script("make_synthetic.py", option_words(out=folder, size=size, frames=[frames, val, 1]))
    return folder


def run_script(
    script: str, arguments: list[str], threads: int | None = None, launcher: tuple[str, ...] = ()
) -> None:
    """Run a script of the repository without its output, by default on as many threads as it likes.

    `launcher` is what starts it, if it is not Python alone.
    """
    environment = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    subprocess.run(
        [sys.executable, *launcher, str(REPOSITORY / script), *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


class Side:
    """An object in a process of its own, which works when it is asked to.

    What one side sets up in its process (or leaves as it is) does not touch the side it is compared
    with. `make` is called in the new process, which must be able to import it by name.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.orders, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(make, theirs))
        self.process.start()
        theirs.close()  # so that this process notices if that one ends

    def ask(self, method: str) -> tuple[float, Any]:
        """The seconds that a method took, and what it returned. Raises what it raised."""
        with contextlib.suppress(BrokenPipeError):  # it failed before; its error is the answer
            self.orders.send(method)
        answer = self.orders.recv()
        if isinstance(answer, Exception):
            for process in multiprocessing.active_children():
                process.kill()
            raise answer
        return answer

    def end(self) -> int:
        """End the process; its peak memory in bytes, of the GPU if there is one."""
        _, peak = self.ask("")
        self.process.join()
        return peak


def serve(make: Callable[[], Any], orders: Connection) -> None:
    """The main function of a side's process."""
    try:
        side = make()
        while method := orders.recv():
            orders.send(timed(getattr(side, method)))
    except Exception as error:  # the process that asks raises it
        orders.send(error)
        raise
    on_gpu = torch.cuda.is_available() and torch.cuda.max_memory_allocated()
    orders.send((0.0, on_gpu or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def take_turns(
    sides: dict[str, Side], turns: int, bar: tqdm
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Let the sides do their `turn` one after another, while the others wait.

    The seconds of each turn, without a first one that does not count, and what the last returned.
    """
    seconds_of, last = {name: [] for name in sides}, {}
    for turn in range(1 + turns):
        for name, side in sides.items():
            seconds, last[name] = side.ask("turn")
            if turn:
                seconds_of[name].append(seconds)
            bar.update()
    return seconds_of, last


def timed(work: Callable[..., Any], *given: Any) -> tuple[float, Any]:
    """The seconds that a call takes, its work on the GPU included, and what it returns."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = work(*given)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The device's floating-point operations per second in products of large square matrices."""
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return max(2 * side**3 / timed(torch.mm, left, right)[0] for _ in range(10))

"""Work on many frames in several processes. Needs no torch."""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TypeVar

from tqdm import tqdm

from cmkd.runtime.files import UserError

Item, Result = TypeVar("Item"), TypeVar("Result")


def parallel_map(
    work: Callable[[Item], Result], frames: Collection[Item], workers: int, title: str
) -> Iterator[Result]:
    """The results of `work` on all frames, in order, with a progress bar.

    A single worker is this process. Several are new processes, and each gets `work` once, pickled.
    Raises `UserError` if one of them is killed.
    """
    progress = partial(tqdm, desc=title, total=len(frames), unit="frame", disable=None)
    if workers == 1:
        yield from progress(map(work, frames))
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, spawn, start_process, (work,))
    try:
        # Ctrl-C reaches all processes, but the main one kills the others. They inherit the mask.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            results = pool.map(work_in_process, frames, chunksize=4)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield from progress(results)
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            process.kill()
        raise
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, probably because memory was short: lower --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def start_process(work: Callable) -> None:
    """Set up a worker process, which uses one core."""
    global work_of_process
    torch = sys.modules.get("torch")  # imported with `work` if it needs torch: takes seconds
    if torch:
        torch.set_num_threads(1)
    work_of_process = work


def work_in_process(frame: Item) -> Result:
    """Do the work of this worker process on a frame."""
    return work_of_process(frame)

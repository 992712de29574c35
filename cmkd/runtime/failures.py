"""What ends a program before its time, in one line: errors, Ctrl-C and SIGTERM, memory, loader processes that die."""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.queues import Queue
from pathlib import Path
from types import FrameType

import torch
from torch.utils.data import DataLoader, get_worker_info

from cmkd.runtime import distributed, hardware
from utils import UserError, reason_of

OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")


def run(main: Callable[[], None], *expected: type[Exception]) -> None:
    """Call `main`; end `UserError`, the `expected` errors and a lack of memory in one line on stderr and exit code 2.

    Under torchrun, the line says which process it is from, and processes that end because of another one say nothing.
    """
    hardware.prepare()
    distributed.start()
    try:
        main()
    except (UserError, *expected) as error:
        # A loader worker sends its error wrapped in the worker's traceback; our own text is the end of it.
        complain(" ".join(str(error).rpartition(f"{UserError.__module__}.UserError: ")[2].splitlines()))
    except distributed.EndedElsewhereError:
        leave(2)
    except KeyboardInterrupt:
        leave(128 + signal.SIGINT)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            complain(f"out of memory ({reason_of(error)}): lower --batch-size, --min-size or --rois, or pass --amp, or "
                     "see what else uses it; checkpoints and best weights stand")
        if "C++ compiler" in str(error):
            complain(f"--compile needs a C++ compiler ({reason_of(error)}): install one, or leave --compile out")
        if distributed.lost_a_process(error):
            leave(2)
        raise
    finally:
        end_loader_processes()
    distributed.end()


def complain(message: str) -> None:
    """End the program with a line on stderr and exit code 2."""
    process = f"process {distributed.rank()}: " if distributed.world_size() > 1 else ""
    print(f"{Path(sys.argv[0]).name}: error: {process}{message}", file=sys.stderr)
    leave(2)


def leave(code: int) -> None:
    """End the program. Of several processes at once, as to take leave of one that waits for us would be to wait too."""
    if distributed.world_size() > 1:
        end_loader_processes()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error, of which torch has many, says that memory was short."""
    return (isinstance(error, torch.OutOfMemoryError | MemoryError)
            or any(text in str(error) for text in OUT_OF_MEMORY))


def begin_loader_process(_: int) -> None:
    """Ctrl-C and SIGTERM, often sent to all processes of a run, are for the main one, which ends its loader's. And a
    batch that can't be handed over ends the process: the queue would drop it, and the main one wait for it for ever."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    Queue._on_queue_feeder_error = staticmethod(end_on_lost_batch)


def end_on_lost_batch(error: Exception, _: object) -> None:
    """Called by the queue's thread in a loader's process. Leaves the error's number to `naming_dead_workers`."""
    worker = get_worker_info()
    worker.dataset.reading[worker.id, 2] = getattr(error, "errno", None) or 0
    os._exit(1)


def end_loader_processes() -> None:
    """End what `begin_loader_process` made deaf."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would take their end for a failure
    for process in multiprocessing.active_children():
        process.kill()


class StopRequest:
    """Whether Ctrl-C or SIGTERM came while the `with` block ran: the first is noted, a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> "StopRequest":
        self.before = {number: signal.signal(number, self.note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number: int, _: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def obey(self, place: str, to_go_on: str = "pass the same options and --resume to go on") -> None:
        """End the program with the signal's exit code and a line that says how to go on. A process that was not sent
        it itself, as others were, ends by SIGTERM's."""
        number = signal.Signals(self.signal or signal.SIGTERM)
        if distributed.rank() == 0:
            print(f"stopped by {number.name} {place}; everything is saved: {to_go_on}", file=sys.stderr)
        leave(128 + number)


@contextlib.contextmanager
def naming_dead_workers(loader: DataLoader) -> Iterator[None]:
    """Turn the death of one of the loader's processes into a `UserError` that names the frame it was on, or why it
    could hand nothing over. Torch notices it, or a batch can't be fetched from a process that is gone."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        ended = ended_processes(loader)
        if not ended and "DataLoader worker (pid" not in str(error):
            raise
        if reasons := [os.strerror(number) for *_, number in ended if number]:
            raise UserError(f"a loader process can hand no frame over ({reasons[0]}): it needs room in "
                            f"{tempfile.gettempdir()} and open files (ulimit -n); --workers 0 does without") from None
        frames = ", ".join(str(loader.dataset.files[index][0]) for _, index, _ in ended) or "no frame yet"
        raise UserError(f"a loader process ended ({reason_of(error)}) on {frames}: look at this frame; if it is sound, "
                        "memory was short: lower --workers") from None


def ended_processes(loader: DataLoader) -> list[list[int]]:
    """The rows of `reading` of the loader's processes that have ended; one that lets go of its files ends within a
    second."""
    deadline = time.monotonic() + 1
    while True:
        live = {process.pid for process in multiprocessing.active_children()}
        ended = [row for row in loader.dataset.reading.tolist() if row[0] and row[0] not in live]
        if ended or time.monotonic() > deadline:
            return ended
        time.sleep(0.01)

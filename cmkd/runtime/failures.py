"""What ends a program early, in one line: errors, Ctrl-C, SIGTERM, out of memory, dead workers."""

import atexit
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_sharer, util
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from cmkd.runtime import distributed, hardware
from cmkd.runtime.files import (
    UserError,
    forbidden_message,
    give_up_output,
    print_error,
    reason_of,
    set_up_output,
)

OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")
tidying: list[Callable[[], None]] = []  # what `at_end` was given


def run(main: Callable[[], None]) -> None:
    """Call `main`; print an error that a user can fix as one line on stderr and exit with 2.

    Under torchrun the line says which process it is from, and a process that ends because of
    another one prints nothing.
    """
    set_up_output()
    hardware.prepare()
    distributed.start()
    try:
        main()
        if sys.stdout:  # some daemons start programs without it
            sys.stdout.flush()
    except BrokenPipeError:
        exit_process(give_up_output())
    except UserError as error:
        fail(text_of(error))
    except PermissionError as error:
        if error.filename is None:
            raise
        fail(forbidden_message(error))
    except distributed.EndedElsewhereError:
        exit_process(2)
    except KeyboardInterrupt:
        exit_process(128 + signal.SIGINT)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            fail(
                f"out of memory ({reason_of(error)}): lower --batch-size, --min-size or --rois, or "
                "pass --amp, or see what else uses it; checkpoints and best weights are kept"
            )
        if "C++ compiler" in str(error):
            fail(
                f"--compile needs a C++ compiler ({reason_of(error)}): install one, or leave "
                "--compile out"
            )
        if distributed.lost_a_process(error):
            exit_process(2)
        raise
    finally:
        end_workers()
    distributed.end()


def warn(text: str) -> None:
    """Print a warning to stderr, in the first of several processes."""
    if distributed.rank() == 0:
        print(f"warning: {text}", file=sys.stderr)


def text_of(error: UserError) -> str:
    """The error's text in one line; an error from a worker is the end of the worker's traceback."""
    worker_error = f"{UserError.__module__}.UserError: "
    return " ".join(str(error).rpartition(worker_error)[2].splitlines())


def fail(message: str) -> NoReturn:
    """End the program with a line on stderr and exit code 2."""
    process = f"process {distributed.rank()}: " if distributed.world_size() > 1 else ""
    print_error(process + message)
    exit_process(2)


def at_end(tidy: Callable[[], None]) -> None:
    """Call `tidy` when the program ends, by SIGTERM and SIGHUP too, but not by SIGKILL."""
    atexit.register(tidy)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # it would end the program at once
            signal.signal(number, lambda number, _: exit_process(128 + number))
    tidying.append(tidy)


def exit_process(code: int) -> NoReturn:
    """End the program; with several processes immediately: a clean shutdown waits for all."""
    if distributed.world_size() > 1:
        end_workers()
        for tidy in tidying:
            tidy()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def is_out_of_memory(error: Exception) -> bool:
    """Whether one of torch's many errors means that memory was short."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        text in str(error) for text in OUT_OF_MEMORY
    )


class StopRequest:
    """Notes the first Ctrl-C, SIGTERM or SIGHUP within the `with` block.

    A second Ctrl-C stops at once. A terminal that is closed sends SIGHUP; under nohup it stays
    ignored.
    """

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> "StopRequest":
        signals = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signals.append(signal.SIGHUP)
        self.before = {number: signal.signal(number, self.on_signal) for number in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def on_signal(self, number: int, _: FrameType | None) -> None:
        """The signal handler."""
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def end_program(
        self, place: str, how_to_resume: str = "pass the same options and --resume to continue"
    ) -> NoReturn:
        """End the program with the signal's exit code and a line on how to resume.

        A process that got no signal itself, because another one did, ends as by SIGTERM.
        """
        number = signal.Signals(self.signal or signal.SIGTERM)
        if distributed.rank() == 0:
            print(
                f"stopped by {number.name} {place}; everything is saved: {how_to_resume}",
                file=sys.stderr,
            )
        exit_process(128 + number)


# ------------------------------------------------------------------------------- loader workers


def prepare_for_workers() -> None:
    """Set up the main process for loader workers. Raises `UserError`.

    It makes the folder of their sockets, and removes it at its end: killed workers could not.
    """
    try:
        util.get_temp_dir()
    except OSError as error:
        raise sharing_error(error) from None
    # Workers outlive an epoch, and Python waits for them at its end: like atexit, but also in child
    # processes.
    util.Finalize(None, end_workers, exitpriority=1)


def start_worker(_: int) -> None:
    """Set up a loader worker: `worker_init_fn` of a DataLoader.

    Ctrl-C and SIGTERM often reach all processes of a run; the main one ends its workers itself.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if torch.multiprocessing.get_sharing_strategy() == "file_descriptor":
        try:  # opens the socket through which tensors are shared: here an error is reported
            resource_sharer.DupFd(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            raise sharing_error(error) from None


def share(values: list[Any]) -> None:
    """Move a worker's tensors to shared memory, and check that they can be sent.

    torch would do it in the queue's thread, which drops a batch it cannot send: the main process
    would wait for it forever. Raises `UserError`.
    """
    tensors = [value for value in values if isinstance(value, Tensor) and value.numel()]
    try:
        for tensor in tensors:
            tensor.share_memory_()
        # Sending a tensor takes one more file descriptor.
        spare = [os.open(os.devnull, os.O_RDONLY) for _ in tensors]
    except (OSError, RuntimeError) as error:
        raise sharing_error(error) from None
    for descriptor in spare:
        os.close(descriptor)


def sharing_error(error: Exception) -> UserError:
    """The error of a worker that has no room to share frames."""
    reason = error.strerror if isinstance(error, OSError) else reason_of(error)
    return UserError(
        f"a loader worker cannot share frames ({reason}): it needs space in "
        f"{tempfile.gettempdir()} and /dev/shm, and open files (ulimit -n); --workers 0 needs none"
    )


def fetch(loader: DataLoader) -> Iterator[Any]:
    """The loader's batches. Raises `UserError` that names the frame on which a worker died."""
    try:
        batches = iter(loader)
        # torch's handler raises wherever the main thread is, e.g. within a step. Without it a death
        # is noticed at the next batch, within 5 seconds.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        yield from batches
    except (RuntimeError, OSError, EOFError) as error:
        if dead := dead_workers(loader):
            frames = ", ".join(str(loader.dataset.image_files(index)[0]) for index in dead)
            raise UserError(
                f"a loader worker died ({reason_of(error)}) on {frames}: look at this frame; if it "
                "is sound, memory was short: lower --workers"
            ) from None
        raise


def dead_workers(loader: DataLoader) -> list[int]:
    """The frame indices on which workers died; they need up to a second to be seen as dead."""
    deadline = time.monotonic() + 1
    while True:
        live = {process.pid for process in multiprocessing.active_children()}
        rows = loader.dataset.reading.tolist()
        dead = [index for pid, index in rows if pid and pid not in live]
        if dead or time.monotonic() > deadline:
            return dead
        time.sleep(0.01)


def end_workers() -> None:
    """Kill the workers, which ignore signals that ask them to end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would report their end as a failure
    for process in multiprocessing.active_children():
        process.kill()

"""What ends a run from outside: Ctrl-C and SIGTERM, too little memory, a loader process that dies. All in one line."""

import contextlib
import re
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch.utils.data import DataLoader

from utils import UserError, reason_of

OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


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

    def leave(self, place: str) -> None:
        """End the program with the signal's exit code and a line that says how to go on."""
        print(f"stopped by {signal.Signals(self.signal).name} {place}; everything is saved: pass the same options and "
              "--resume to go on", file=sys.stderr)
        sys.exit(128 + self.signal)


@contextlib.contextmanager
def explained(loader: DataLoader, arguments: dict[str, Any]) -> Iterator[None]:
    """Turn what a run can fail by outside of its code into `UserError`: memory, and processes of `loader` that die."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in OUT_OF_MEMORY):
            raise UserError(out_of_memory(error, arguments)) from None
        if processes := re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error)):
            raise UserError(dead_workers([int(number) for number in processes[1].split(",")], loader, error)) from None
        raise


def out_of_memory(error: Exception, arguments: dict[str, Any]) -> str:
    """What to lower."""
    settings = ", ".join(f"--{name.replace('_', '-')} (now {arguments[name]})"
                         for name in ("batch_size", "min_size", "max_size", "rois") if name in arguments)
    amp = "" if arguments["amp"] else ", or pass --amp"
    return (f"out of memory ({reason_of(error)}): in a new run lower {settings}{amp}; or free memory and go on with "
            "--resume: checkpoints and best weights stand")


def dead_workers(processes: list[int], loader: DataLoader, error: Exception) -> str:
    """Which frames the loader's processes were on when they ended."""
    dataset = loader.dataset
    frames = [str(dataset.files[index][0]) for process, index in dataset.reading.tolist() if process in processes]
    return (f"a loader process ended ({reason_of(error)}) on {', '.join(frames) or 'no frame yet'}: look at this "
            "frame; if it is sound, memory was short: lower --workers")

"""Shared by every script: the common command line, seeds, one-line errors, atomic files and the run log."""

import argparse
import io
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from cmkd.runtime import distributed, hardware

REPOSITORY = Path(__file__).resolve().parent
DEFAULT_CLASSES = ("Pedestrian,Pedestrian_is_group",)


class UserError(Exception):
    """Something the person at the keyboard can mend. Its text is one line: which file and line, what to do."""


def warn(text: str) -> None:
    """A warning on stderr; of several processes, the first one's."""
    if distributed.rank() == 0:
        print(f"warning: {text}", file=sys.stderr)


def reason_of(error: Exception) -> str:
    """What an error of a library says, short enough to stand in a line of ours; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the page of usage."""

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")

    def parse_args(self, *given: Any) -> argparse.Namespace:
        """argparse's; without `--amp` or `--no-amp` the device decides."""
        args = super().parse_args(*given)
        if "amp" in args and args.amp is None:
            args.amp = hardware.computes_bfloat16(torch.device(args.device))
        return args


def at_least(least: int) -> Callable[[str], int]:
    """argparse type: a whole number of at least `least`."""
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return parse


def positive_float(text: str) -> float:
    """argparse type: a finite number above 0."""
    if not 0 < (value := to_float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def non_negative_float(text: str) -> float:
    """argparse type: a finite number of at least 0."""
    if not 0 <= (value := to_float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def to_float(text: str) -> float:
    """A number, or NaN, which is neither above nor below any limit."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def device(text: str) -> torch.device:
    """argparse type: a torch device that this machine has."""
    try:
        chosen = torch.device(text)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used here: {reason}") from error
    if chosen.type == "cuda" and chosen.index is not None:
        if distributed.world_size() > 1:
            raise argparse.ArgumentTypeError(f"{text!r} would be every process's: say cuda, and each takes its own")
        torch.cuda.set_device(chosen)  # whose random numbers are saved
    return chosen


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Options shared by every script that reads frames."""
    parser.add_argument("--data", type=Path, default=Path("data"), help="prepared data folder (default: data)")
    parser.add_argument("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu",
                        help="cuda, cuda:1, cpu, ... (default: cuda where there is one)")


def add_batch_options(parser: argparse.ArgumentParser) -> None:
    """Options shared by every script that takes whole lists through a network."""
    parser.add_argument("--batch-size", type=at_least(1), default=4, help="frames per step (published: 4)")
    parser.add_argument("--workers", type=at_least(0), default=hardware.loader_processes(),
                        help="loader processes (published: not stated; default: one for each core, at most 8, shared "
                             "between the processes of a torchrun)")
    parser.add_argument("--amp", action=argparse.BooleanOptionalAction,
                        help="bfloat16 autocast (published: --no-amp; default: where the device computes in bfloat16)")


def training_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The options common to all train scripts. `name` is the network's: teacher, baseline, cmkd_mse, ..."""
    parser = OneLineParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    add_batch_options(parser)
    parser.add_argument("--train-list", default="train_night", help="DATA/<list>.txt (published: train_night)")
    parser.add_argument("--val-list", default="val_night", help="DATA/<list>.txt (published: val_night)")
    parser.add_argument("--classes", nargs="+", default=list(DEFAULT_CLASSES), metavar="A,B",
                        help="label classes; each argument is one label of the detector, made of the classes it "
                             f"names; vru = all pedestrians and riders (published: {DEFAULT_CLASSES[0]})")
    parser.add_argument("--ignore", nargs="*", metavar="CLASS",
                        help="label classes whose boxes are no background; without names DontCare, Obstacle and every "
                             "*_is_group (published: off)")
    parser.add_argument("--flip", action="store_true", help="random horizontal flips (published: off)")
    parser.add_argument("--cache", choices=["none", "ram", "disk"], default="none",
                        help="decode training frames once: kept at training size in memory, or in DATA/.cache "
                             "(published: none)")
    parser.add_argument("--accumulate", type=at_least(1), default=1, metavar="N",
                        help="a step is N batches, of which only one is in memory at a time (published: 1)")
    parser.add_argument("--compile", action="store_true",
                        help="torch.compile backbone and FPN; frames are padded to multiples of 128 px (published: "
                             "off)")
    parser.add_argument("--epochs", type=at_least(1), default=100, help="at most (published: 100)")
    parser.add_argument("--lr", type=positive_float, default=0.005, help="SGD learning rate (published: 0.005)")
    parser.add_argument("--scale-lr", action="store_true",
                        help="--lr is for steps of 4 frames: scale it to what a step has (published: off)")
    parser.add_argument("--patience", type=at_least(0), default=5,
                        help="stop once more epochs than this have passed since the best (published: 5)")
    parser.add_argument("--backbone", default="resnet50", help="a torchvision ResNet (published: resnet50)")
    parser.add_argument("--init", default="coco", metavar="{coco,imagenet,none,FILE}",
                        help="weights to start from (published: coco)")
    parser.add_argument("--stem", choices=["reinit", "inflate"], default="reinit",
                        help="first convolution: new, or the pretrained RGB kernels with their mean for each gated "
                             "channel; with --init none there are none to keep (published: reinit, for RGB too)")
    parser.add_argument("--min-size", type=at_least(1), default=500, help="shorter side in px (published: 500)")
    parser.add_argument("--max-size", type=at_least(1), default=1333, help="longer side, at most (published: 1333)")
    parser.add_argument("--rois", type=at_least(1), default=512,
                        help="regions per frame that train the box head (published: 512)")
    parser.add_argument("--proposals", type=at_least(1), default=1000,
                        help="regions per frame that the box head judges in evaluation (published: 1000)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of all random numbers (published: none)")
    parser.add_argument("--deterministic", action="store_true",
                        help="the same result from the same seed on CUDA too, where it costs time; a CPU needs no flag "
                             "(published: off)")
    parser.add_argument("--skip-bad", type=at_least(0), default=0, metavar="N",
                        help="go on past up to N training frames that cannot be read (default: stop at the first)")
    parser.add_argument("--checkpoint-minutes", type=positive_float, default=10.0, metavar="N",
                        help="save the training state every N minutes, and after every epoch (default: 10)")
    parser.add_argument("--resume", action="store_true", help="go on from RUN_DIR/last.pth where there is one")
    parser.add_argument("--out", type=Path, default=Path("weights"), help=f"folder of the best weights, {name}.pth")
    parser.add_argument("--run-dir", type=Path, default=Path("runs") / name, help="folder of log and last state")
    parser.add_argument("--tensorboard", action="store_true",
                        help="losses, validation numbers and pictures of each epoch in RUN_DIR/tensorboard (published: "
                             "off)")
    parser.add_argument("--max-iterations", type=at_least(1), metavar="N", help="stop after N steps (smoke runs)")
    return parser


def seed_everything(*seeds: int) -> int:
    """Seed Python, numpy and torch from whole numbers, as (seed, epoch); return the derived 32-bit seed.

    Seeding again at each epoch makes an epoch's random numbers a function of its number, so a resumed run draws what
    an uninterrupted one would have drawn.
    """
    derived = int(np.random.SeedSequence(seeds).generate_state(1)[0])
    random.seed(derived)
    np.random.seed(derived)
    torch.manual_seed(derived)
    return derived


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file beside `path`, then rename it: `path` is always the old file or the whole new one.

    Raises `UserError` where it cannot be written.
    """
    unfinished = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        unfinished = Path(name)
        write(unfinished)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.chmod(0o644)
        unfinished.replace(path)
        synchronise_folder(path.parent)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}): name another place, or make room "
                        "there") from None
    finally:
        if unfinished:
            unfinished.unlink(missing_ok=True)


def synchronise_folder(folder: Path) -> None:
    """Have the disk know of a renamed file, where the system can (POSIX)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def refuse_unwritable(path: Path) -> None:
    """Make the folder of a file that will be written, and try it: `UserError` before the work instead of after it."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): name another place") from None


def save_torch(value: Any, path: Path) -> None:
    """`torch.save`, atomically."""
    # By way of memory, as torch reports a full disk as an internal failure.
    content = io.BytesIO()
    torch.save(value, content)
    write_atomically(path, lambda unfinished: unfinished.write_bytes(content.getbuffer()))


def save_json(value: Any, path: Path) -> None:
    """Indented JSON, atomically; paths and devices are written as text, and NaN is refused."""
    text = json.dumps(value, indent=2, default=str, allow_nan=False)
    write_atomically(path, lambda unfinished: unfinished.write_text(text + "\n", encoding="utf-8"))


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line to a log, and have it on the disk. Raises `UserError` where it cannot be written."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, default=str) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): make room there") from None


def versions() -> dict[str, str]:
    """What a result depends on besides its arguments: library versions, device and git commit."""
    try:
        commit = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=REPOSITORY,
                                capture_output=True, text=True).stdout.strip()
    except OSError:  # no git here
        commit = ""
    return {
        "git": commit or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else hardware.processor(),
    }

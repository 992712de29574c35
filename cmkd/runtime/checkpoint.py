"""The training state on disk: every file whole or not there, the newest valid one found again, nothing in it run."""

import json
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmkd.runtime.failures import is_out_of_memory
from utils import UserError, reason_of, save_torch, warn, write_atomically

NEWEST, BEFORE, UNFINISHED = "last.pth", "previous.pth", "last.pth.new"
PARTS = {"model", "also_trained", "optimizer", "state", "random_states", "arguments"}
# What may differ in a run that goes on: where it runs, when it ends, and what it tolerates.
MAY_CHANGE_ON_RESUME = {"epochs", "patience", "max_iterations", "workers", "device", "resume", "data", "run_dir",
                        "checkpoint_minutes", "skip_bad", "tensorboard"}


def save(run_dir: Path, content: dict[str, Any]) -> None:
    """Write RUN_DIR/last.pth; the one there becomes previous.pth once the new one is whole. Raises `UserError`."""
    save_torch(content, run_dir / UNFINISHED)
    try:
        if (run_dir / NEWEST).is_file():
            (run_dir / NEWEST).replace(run_dir / BEFORE)
        (run_dir / UNFINISHED).replace(run_dir / NEWEST)
    except OSError as error:
        raise UserError(f"{run_dir / NEWEST} cannot be written ({error.strerror})") from None


def load(run_dir: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint of a run, with its name as `file`; None where there is none at all.

    A damaged one is named and put aside, and the one before it is used. Raises `UserError` where all are damaged.
    """
    damaged: dict[Path, str] = {}
    for file in (run_dir / UNFINISHED, run_dir / NEWEST, run_dir / BEFORE):
        if not file.is_file():
            continue
        if damage := damage_of(file):
            damaged[file] = damage
            continue
        content = read(file)
        for other, reason in damaged.items():
            aside = other.with_suffix(".damaged")
            other.replace(aside)
            warn(f"{other} is damaged ({reason}): it is now {aside.name}, and the checkpoint before it is used")
        return {**content, "file": str(file)}
    if damaged:
        raise UserError(f"{run_dir} has no whole checkpoint: {' and '.join(map(str, damaged))} damaged "
                        f"({', '.join(damaged.values())}); remove the folder and the weights to start anew, or choose "
                        "another --run-dir and --out")
    return None


def damage_of(file: Path) -> str:
    """Why a file is no whole output of `torch.save`, '' where it is one. Every byte is read, as a bit that has flipped
    in a weight does not disturb `torch.load`. Raises `UserError` where the disk does not give it."""
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error}): mend that first") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive can fail in any of zipfile's and zlib's ways
        return reason_of(error)
    return f"{damaged} does not have its checksum" if damaged else ""


def remove_unfinished(run_dir: Path, weights: Path) -> None:
    """Remove what killed runs left half written."""
    for path in (run_dir / UNFINISHED, run_dir / "log.jsonl", weights, weights.with_suffix(".json")):
        for leftover in path.parent.glob(f".{path.name}.*"):
            leftover.unlink()


def read(file: Path) -> dict[str, Any]:
    """A training checkpoint; nothing in it is run. Raises `UserError`."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise not_a_checkpoint(file, "it holds more than tensors and plain values, which could run code") from None
    except Exception as error:  # what is no checkpoint can fail in any of torch's ways
        if is_out_of_memory(error):
            raise
        raise not_a_checkpoint(file, reason_of(error)) from None
    if not isinstance(content, dict) or not content.keys() >= PARTS:
        raise not_a_checkpoint(file, f"it does not hold {', '.join(sorted(PARTS))}")
    return content


def not_a_checkpoint(file: Path, reason: str) -> UserError:
    """The error for a whole file that does not fit this run."""
    return UserError(f"{file} is not a training checkpoint of this run ({reason}): remove it to start anew, or choose "
                     "another --run-dir")


def random_states() -> dict[str, Any]:
    """The states of all generators of random numbers in this process, in types that can be loaded without pickle."""
    numpy_state = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {"key": numpy_state["state"]["key"].tolist(),
                                           "pos": int(numpy_state["state"]["pos"])}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Go on with the random numbers of `random_states`."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    numpy_state = states["numpy"]
    np.random.set_state({**numpy_state, "state": {**numpy_state["state"],
                                                  "key": np.array(numpy_state["state"]["key"], dtype=np.uint32)}})
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def cut_log(log_file: Path, epochs: int) -> None:
    """Take the records of epochs after the first `epochs`, and a line that a kill left unfinished, off a log."""
    if not log_file.is_file():
        return
    kept = []
    for line in log_file.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line).get("epoch", 0) <= epochs:
                kept.append(line)
        except ValueError:
            break
    write_atomically(log_file, lambda unfinished: unfinished.write_text("".join(f"{line}\n" for line in kept),
                                                                        encoding="utf-8"))


def comparable(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that decide a result, as plain values; a path is the same however it is written."""
    return json.loads(json.dumps({name: value.resolve() if isinstance(value, Path) else value
                                  for name, value in arguments.items() if name not in MAY_CHANGE_ON_RESUME},
                                 default=str))


def refuse_other_settings(run_dir: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise `UserError` where a run would go on with other settings than it was started with."""
    if gone := sorted(before.keys() - now.keys()):
        raise UserError(f"{run_dir} was started with {gone[0]}, which this version does not have: go on with the one "
                        "that started it, or start a new run with another --run-dir and --out")
    for name, value in now.items():
        if before.get(name, value) != value:  # an option that the run's version did not have says nothing
            raise UserError(f"{run_dir} was started with {name} {before[name]}, not {value}: pass the same, or "
                            "start a new run with another --run-dir and --out")


def refuse_overwriting(run_dir: Path, weights: Path) -> None:
    """Raise `UserError` where a new run would destroy an old one."""
    files = (run_dir / "log.jsonl", run_dir / NEWEST, run_dir / BEFORE, run_dir / UNFINISHED, weights)
    if present := [str(file) for file in files if file.exists()]:
        raise UserError(f"{', '.join(present)} {'is' if len(present) == 1 else 'are'} there from an earlier run: pass "
                        "--resume to go on with it, choose another --run-dir and --out, or remove it")

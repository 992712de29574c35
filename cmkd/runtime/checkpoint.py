"""Training checkpoints: written atomically, the newest undamaged one loads, never running code."""

import json
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmkd.runtime.failures import is_out_of_memory, warn
from cmkd.runtime.files import UserError, reason_of, remove_unfinished, save_text
from cmkd.runtime.weights import save_torch, settings_file

NEWEST, PREVIOUS, UNFINISHED = "last.pth", "previous.pth", "last.pth.new"
CONTENT = {"model", "also_trained", "optimizer", "state", "random_states", "arguments"}
# What may change when a run is resumed: where it runs, when it ends, and what it shows.
MAY_CHANGE_ON_RESUME = {
    "epochs",
    "patience",
    "max_iterations",
    "workers",
    "device",
    "resume",
    "data",
    "run_dir",
    "checkpoint_minutes",
    "tensorboard",
}
# Options that earlier versions had, with their defaults. A run that used the default can resume.
REMOVED_OPTIONS = {"scale_lr": False, "skip_bad": 0}

# Options that earlier versions did not have, with the value that their runs had in effect. An
# option that is in neither list may have any value in a resumed run of such a version.
ADDED_OPTIONS = {
    "unlabelled_list": None,
    "machine_labels": None,
    "labelled_share": 0.5,
    "machine_weight": 1.0,
    "machine_boxes": True,
    "steps_per_epoch": None,
    "decay_epochs": 5,
    "input": "rgb+gated",
}


def save(run_dir: Path, content: dict[str, Any]) -> None:
    """Write RUN_DIR/last.pth; then the one before it is previous.pth. Raises `UserError`."""
    save_torch(content, run_dir / UNFINISHED)
    try:
        if (run_dir / NEWEST).is_file():
            (run_dir / NEWEST).replace(run_dir / PREVIOUS)
        (run_dir / UNFINISHED).replace(run_dir / NEWEST)
    except OSError as error:
        raise UserError(f"{run_dir / NEWEST} cannot be written ({error.strerror})") from None


def load(run_dir: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint of a run, with its path as `file`; None if there is none.

    A damaged one is named and renamed, and the one before it is used. Raises `UserError` if all are
    damaged.
    """
    damaged: dict[Path, str] = {}
    for file in (run_dir / UNFINISHED, run_dir / NEWEST, run_dir / PREVIOUS):
        if not file.is_file():
            continue
        if damage := damage_of(file):
            damaged[file] = damage
            continue
        content = read(file)
        for other, reason in damaged.items():
            aside = other.with_suffix(".damaged")
            other.replace(aside)
            warn(
                f"{other} is damaged ({reason}): it is now {aside.name}, and the checkpoint before "
                "it is used"
            )
        return {**content, "file": str(file)}
    if damaged:
        raise UserError(
            f"{run_dir} has no whole checkpoint: {' and '.join(map(str, damaged))} damaged "
            f"({', '.join(damaged.values())}); remove the folder and the weights to start anew, or "
            "choose another --run-dir and --out"
        )
    return None


def damage_of(file: Path) -> str:
    """What is wrong with a file as an archive of `torch.save`, '' if nothing.

    Every byte is read, because `torch.load` does not notice a flipped bit in a weight. Raises
    `UserError` if the disk cannot read it.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror or error}): fix that first"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive can fail in any of zipfile's and zlib's ways
        return reason_of(error)
    return f"{damaged} does not have its checksum" if damaged else ""


def read(file: Path) -> dict[str, Any]:
    """A training checkpoint; nothing in it is run. Raises `UserError`."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        reason = "it holds more than tensors and plain values, which could run code"
        raise checkpoint_error(file, reason) from None
    except Exception as error:  # another file can fail in any of torch's ways
        if is_out_of_memory(error):
            raise
        raise checkpoint_error(file, reason_of(error)) from None
    if not isinstance(content, dict) or not content.keys() >= CONTENT:
        raise checkpoint_error(file, f"it does not hold {', '.join(sorted(CONTENT))}")
    return content


def checkpoint_error(file: Path, reason: str) -> UserError:
    """The error for a whole file that does not fit this run."""
    return UserError(
        f"{file} is not a training checkpoint of this run ({reason}): remove its folder and the "
        "weights to start anew, or choose another --run-dir and --out"
    )


def flat_state(state: dict[str, Any]) -> dict[str, Any]:
    """The loop's state as `engine.Progress` has it.

    Versions up to 2c1d775 kept the epoch under way in a dictionary of its own.
    """
    if "under_way" not in state:
        return state
    under_way = dict(state["under_way"] or {})
    if "sums" in under_way:
        under_way["loss_sums"] = under_way.pop("sums")
    return {
        name: value for name, value in state.items() if name not in ("under_way", "skipped")
    } | under_way


def remove_unfinished_files(run_dir: Path, weights: Path) -> None:
    """Remove half-written files of runs that were killed."""
    for file in (run_dir / UNFINISHED, run_dir / "log.jsonl", weights, settings_file(weights)):
        remove_unfinished(file)


def random_states() -> dict[str, Any]:
    """The states of this process's random generators, in types that load without pickle."""
    numpy_state = np.random.get_state(legacy=False)
    key, position = numpy_state["state"]["key"], numpy_state["state"]["pos"]
    return {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {"key": key.tolist(), "pos": int(position)}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Continue with the random numbers of `random_states`."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    state = states["numpy"]["state"]
    key = np.array(state["key"], dtype=np.uint32)
    np.random.set_state({**states["numpy"], "state": {**state, "key": key}})
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def cut_log(log_file: Path, epochs: int) -> None:
    """Remove the records of later epochs, and a line that a kill left unfinished, from a log."""
    if not log_file.is_file():
        return
    kept = []
    for line in log_file.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line).get("epoch", 0) <= epochs:
                kept.append(line)
        except ValueError:
            break
    save_text("".join(f"{line}\n" for line in kept), log_file)


def comparable(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that decide a result, as plain values, with absolute paths."""
    deciding = {
        name: value.resolve() if isinstance(value, Path) else value
        for name, value in arguments.items()
        if name not in MAY_CHANGE_ON_RESUME
    }
    return json.loads(json.dumps(deciding, default=str))


def refuse_other_arguments(run_dir: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise `UserError` if a resumed run was started with other arguments."""
    for name in sorted(before.keys() - now.keys()):
        if name not in REMOVED_OPTIONS or before[name] != REMOVED_OPTIONS[name]:
            raise UserError(
                f"{run_dir} was started with {name} {before[name]}, which this version does not "
                "have: resume with the version that started it, or start a new run with another "
                "--run-dir and --out"
            )
    for name, value in now.items():
        # The run's version may not have had an option.
        started_with = before.get(name, ADDED_OPTIONS.get(name, value))
        if started_with != value and name == "teacher_sha256":
            raise UserError(
                f"{run_dir} was started with other weights in {now['teacher']}: restore them, or "
                "start a new run with another --run-dir and --out"
            )
        if started_with != value:
            raise UserError(
                f"{run_dir} was started with {name} {started_with}, not {value}: pass the same, or "
                "start a new run with another --run-dir and --out"
            )


def refuse_other_data(run_dir: Path, before: dict[str, str], now: dict[str, str]) -> None:
    """Raise `UserError` if frames or labels of a list changed: its APs cannot be compared."""
    for list_name, fingerprint in now.items():
        if before.get(list_name, fingerprint) != fingerprint:
            raise UserError(
                f"{run_dir} was started with other frames or labels of {list_name}: restore them, "
                "or start a new run with another --run-dir and --out"
            )


def refuse_overwriting(run_dir: Path, weights: Path, resuming: bool) -> None:
    """Raise `UserError` if a new run would overwrite an old one.

    `resuming`: the user wants to continue it, but the folder has no training checkpoint.
    """
    if resuming and weights.is_file():
        raise UserError(
            f"--resume: {weights} exists, but {run_dir} has no {NEWEST} or {PREVIOUS} to continue "
            "from: restore it, or choose another --run-dir and --out"
        )
    files = (*(run_dir / name for name in ("log.jsonl", NEWEST, PREVIOUS, UNFINISHED)), weights)
    if present := [str(file) for file in files if file.exists()]:
        raise UserError(
            f"{', '.join(present)} exist{'s' if len(present) == 1 else ''} from an earlier run: "
            "pass --resume to continue it, choose another --run-dir and --out, or remove it"
        )

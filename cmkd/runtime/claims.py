"""Which run writes a weights file: two runs with one --out would overwrite each other's best.

A claim is a small JSON file beside the weights. No lock is held, so it works on every file system:
a run renews its claim at each checkpoint, and a claim that was not renewed for long is void.
"""

import os
import socket
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from cmkd.runtime.files import UserError, read_json, save_json, save_text

RUN_ID = "run_id"  # the file in a run's folder that tells runs apart
CHECKPOINTS = 3  # a claim is void after so many times the minutes between checkpoints


@dataclass(frozen=True)
class Claim:
    """Who writes a weights file."""

    run_id: str
    run_dir: str
    host: str
    process: int
    minutes: float  # between checkpoints
    renewed: float  # seconds since 1970

    @property
    def is_void(self) -> bool:
        """Whether its run has certainly or probably ended."""
        if time.time() - self.renewed > 60 * CHECKPOINTS * self.minutes:
            return True
        return self.host == socket.gethostname() and not is_running(self.process)


def claim_file(weights: Path) -> Path:
    """The file of the claim on a weights file."""
    return weights.with_suffix(".claim")


def is_running(process: int) -> bool:
    """Whether a process of this machine exists."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def id_of(run_dir: Path) -> str:
    """A run's own name, made at its first start and kept in its folder. Raises `UserError`."""
    file = run_dir / RUN_ID
    if not file.is_file():
        save_text(uuid.uuid4().hex, file)
    return file.read_text(encoding="utf-8")


def claim(weights: Path, run_dir: Path, minutes: float) -> None:
    """Claim a weights file for a run, or renew its claim.

    Raises `UserError` if another run that may still be going has claimed it. The same run may
    always take it, on another machine too.
    """
    own, file = id_of(run_dir), claim_file(weights)
    if file.is_file():
        try:
            other = Claim(**read_json(file, "remove it"))
        except TypeError:
            raise UserError(f"{file} is no claim of a run: remove it") from None
        if other.run_id != own and not other.is_void:
            raise UserError(
                f"{weights} is being written by the run {other.run_dir} (process {other.process} "
                f"on {other.host}): choose another --out; if that run is dead, remove {file}"
            )
    content = Claim(
        own, str(run_dir.resolve()), socket.gethostname(), os.getpid(), minutes, time.time()
    )
    save_json(asdict(content), file)


def release(weights: Path, run_dir: Path) -> None:
    """Give up a run's claim; that of another run stays."""
    file = claim_file(weights)
    if file.is_file() and read_json(file, "remove it").get("run_id") == id_of(run_dir):
        file.unlink(missing_ok=True)

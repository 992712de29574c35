"""Which run writes a weights file: two runs with one --out would overwrite each other's best.

A claim is a small JSON file beside the weights. No lock is held, so it works on every file system:
a run renews its claim at each checkpoint, and a claim that was not renewed for long is void. Ages
are differences of file times, because the clocks of two machines may differ.
"""

import math
import os
import socket
import tempfile
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

    def is_void(self, age: float) -> bool:
        """Whether its run has certainly or probably ended, `age` seconds after it was renewed."""
        if age > 60 * CHECKPOINTS * self.minutes:
            return True
        # Claims of earlier versions have the name alone.
        is_here = self.host in (this_host(), socket.gethostname())
        return is_here and not is_running(self.process)


def claim_file(weights: Path) -> Path:
    """The file of the claim on a weights file."""
    return weights.with_suffix(".claim")


def this_host() -> str:
    """This machine's name; in a container with its own processes (Linux), their namespace too."""
    try:
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def age_of(file: Path) -> float:
    """Seconds since a file was written, by the clock of its file system."""
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.") as now:
        try:
            return os.fstat(now.fileno()).st_mtime - file.stat().st_mtime
        except FileNotFoundError:  # its run has just ended
            return math.inf


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


def claim_on(weights: Path) -> Claim | None:
    """The claim on a weights file, if there is one. Raises `UserError`."""
    file = claim_file(weights)
    if not file.is_file():
        return None
    try:
        content = read_json(file, "remove it")
        content.pop("renewed", None)  # of earlier versions
        return Claim(**content)
    except (TypeError, AttributeError):
        raise UserError(f"{file} is no claim of a run: remove it") from None


def may_be_written(weights: Path) -> bool:
    """Whether a run is probably still training a weights file. Raises `UserError`."""
    other = claim_on(weights)
    if other is None:
        return False
    # No file is made to compare clocks, because the folder may be another user's.
    return not other.is_void(time.time() - claim_file(weights).stat().st_mtime)


def claim(weights: Path, run_dir: Path, minutes: float) -> None:
    """Claim a weights file for a run, or renew its claim.

    Raises `UserError` if another run that may still be going has claimed it. The same run may
    always take it, on another machine too.
    """
    own, file = id_of(run_dir), claim_file(weights)
    other = claim_on(weights)
    if other and other.run_id != own and not other.is_void(age_of(file)):
        raise UserError(
            f"{weights} is being written by the run {other.run_dir} (process {other.process} on "
            f"{other.host.split()[0]}): choose another --out; if it is dead, remove {file}"
        )
    ours = Claim(own, str(run_dir.resolve()), this_host(), os.getpid(), minutes)
    save_json(asdict(ours), file)


def release(weights: Path, run_dir: Path) -> None:
    """Give up a run's claim; that of another run stays."""
    file = claim_file(weights)
    if file.is_file() and read_json(file, "remove it").get("run_id") == id_of(run_dir):
        file.unlink(missing_ok=True)

"""Scripts run as a user would run them, several side by side. What is done is not done again; what fails leaves a hole
and the rest goes on."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from tqdm import tqdm

from cmkd.runtime import hardware
from cmkd.runtime.failures import StopRequest
from utils import REPOSITORY, UserError, refuse_unwritable, save_json

MEMORY_OF_A_TRAINING = 12 * 2**30  # bytes; 5.5 GiB on a CPU at the published size (docs/performance.md)

Records = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """A script with its options, the file that it makes, and the jobs whose files it needs."""

    name: str
    arguments: list[str]
    makes: Path
    needs: tuple[str, ...] = ()
    alone: bool = False  # takes all cores
    # Of what takes minutes at most, the files it is made of: it is done again where one is newer, or arguments changed.
    reads: tuple[Path, ...] = ()


class Processes:
    """Of the jobs that run. Once stopped, none begins."""

    def __init__(self) -> None:
        self.live: set[subprocess.Popen] = set()
        self.stopped = False

    def start(self, arguments: list[str], environment: dict[str, str], errors: TextIO) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / arguments[0]), *arguments[1:]], encoding="utf-8", errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment}, stdout=subprocess.PIPE, stderr=errors)
        self.live.add(process)
        if self.stopped:
            process.terminate()
        return process

    def stop(self) -> None:
        """A training saves its state before it ends."""
        if self.stopped:
            return
        self.stopped = True  # first, so that one that begins meanwhile ends too
        for process in list(self.live):
            process.terminate()


def slots(side_by_side: int | None) -> list[dict[str, str]]:
    """The environment of each of the jobs that run at once: a share of the cores, and a GPU where there are some.

    By default one for each core, as two trainings on one thread each do more than one on two; on GPUs, of which one
    training of small pictures uses a part (docs/performance.md), one for two cores as far as memory goes.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    own = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    fitting = sum(torch.cuda.get_device_properties(gpu).total_memory // MEMORY_OF_A_TRAINING for gpu in range(gpus))
    count = side_by_side or max(gpus, min(fitting, hardware.cores() // 2)) or hardware.cores()
    threads = {"OMP_NUM_THREADS": str(max(1, hardware.cores() // count))}
    return [{**threads, "CUDA_VISIBLE_DEVICES": own[number % gpus]} if gpus else threads for number in range(count)]


def run_jobs(jobs: list[Job], out: Path, environments: list[dict[str, str]]) -> dict[str, str]:
    """Run what is not done, in order, as many at once as there are environments; return why jobs failed, by name.

    OUT/jobs.json has the arguments of each job and whether it is done; OUT/logs its warnings and errors. Raises
    `UserError` where OUT was begun with other arguments, is used by another call, or holds something else; ends the
    program on Ctrl-C and SIGTERM once the jobs have saved their state.
    """
    names = [job.name for job in jobs]
    if len(set(names)) < len(names) or not all(set(job.needs) <= set(names) for job in jobs):
        raise ValueError(f"two jobs have one name, or one needs what is none: {names}")
    with lock(out), StopRequest() as stop:
        records = begin(jobs, out)
        failed: dict[str, str] = {}
        waiting = [job for job in jobs if not records[job.name]["done"]]
        done = {job.name for job in jobs} - {job.name for job in waiting}
        running, free, processes = {}, list(environments), Processes()
        with tqdm(desc="jobs", initial=len(done), total=len(jobs), dynamic_ncols=True, disable=None) as bar, \
                ThreadPoolExecutor(len(environments)) as pool:
            while running or (waiting and not stop.signal):
                for job in [] if stop.signal else list(waiting):
                    if lost := [need for need in job.needs if need in failed]:
                        failed[job.name] = f"there is no {lost[0]}"
                        waiting.remove(job)
                    elif free and done.issuperset(job.needs) and not (job.alone and running):
                        environment = free.pop(0)
                        future = pool.submit(call, job, out, {} if job.alone else environment, bar, processes)
                        running[future] = job, environment
                        waiting.remove(job)
                    if any(job.alone for job, _ in running.values()):
                        break
                for future in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                    job, environment = running.pop(future)
                    free.append(environment)
                    try:
                        future.result()
                    except (UserError, OSError) as error:
                        failed[job.name] = str(error)
                        if not stop.signal:
                            bar.write(f"[{job.name}] failed: {error}")
                    else:
                        done.add(job.name)
                        records[job.name]["done"] = True
                        save_json(records, out / "jobs.json")
                    bar.update()
                if stop.signal:
                    processes.stop()
        if stop.signal:
            stop.obey(f"with {len(done)} of {len(jobs)} jobs done", "the same command goes on")
    return failed


@contextlib.contextmanager
def lock(out: Path) -> Iterator[None]:
    """Hold OUT for this call: two trainings in one folder would destroy each other's. Raises `UserError`."""
    records, file = out / "jobs.json", out / "logs/lock"
    if out.is_dir() and any(out.iterdir()) and not records.is_file():
        raise UserError(f"{out} holds something else than a study: give another --out")
    refuse_unwritable(file)
    if not records.is_file():
        save_json({}, records)
    with file.open("w", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{out} is used by a call that still runs: wait for it, or give another --out") from None
        yield


def begin(jobs: list[Job], out: Path) -> Records:
    """The records of OUT/jobs.json, brought up to date: what is new, and what must be done again. Raises `UserError`
    where that would mix trainings of different arguments."""
    file = out / "jobs.json"
    try:
        records: Records = json.loads(file.read_text(encoding="utf-8"))
        for record in records.values():
            if not (isinstance(record["arguments"], list) and isinstance(record["done"], bool)):
                raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} is no record of jobs: give another --out, or remove it") from None
    for job in jobs:
        before = records.get(job.name, {"arguments": job.arguments, "done": False})
        if before["done"] and before["arguments"] != job.arguments and not job.reads:
            old, new = next(((old, new) for old, new in zip(before["arguments"], job.arguments, strict=False)
                             if old != new), (before["arguments"][-1], job.arguments[-1]))
            raise UserError(f"{out} was begun with other settings ({job.name}: {old!r} there and {new!r} here): give "
                            "the same ones, or another --out")
        made_of_new = [need for need in job.needs if not records[need]["done"]]
        done = before["done"] and before["arguments"] == job.arguments and job.makes.is_file()
        if done and made_of_new and not job.reads:
            raise UserError(f"{job.makes} was made with another {made_of_new[0]} than the one to be made now: remove "
                            "it and its run, or give another --out")
        stale = done and any(not file.exists() or file.stat().st_mtime > job.makes.stat().st_mtime
                             for file in job.reads)
        records[job.name] = {"arguments": job.arguments, "done": done and not made_of_new and not stale}
    save_json(records, file)
    return records


def call(job: Job, out: Path, environment: dict[str, str], bar: tqdm, processes: Processes) -> None:
    """Run a script, its warnings and errors in OUT/logs/<name>.txt; a training's lines on screen, as they are the
    progress of hours.

    Raises `UserError` with the script's error where it fails or does not make its file.
    """
    bar.write(f"$ python {' '.join(job.arguments)}")
    log = out / "logs" / f"{job.name.replace('/', '-')}.txt"
    with log.open("w", encoding="utf-8") as errors:
        process = processes.start(job.arguments, environment, errors)
        for line in process.stdout:
            if not job.reads:
                bar.write(f"[{job.name}] {line.rstrip()}")
        code = process.wait()
        processes.live.discard(process)
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    for warning in (line for line in lines if line.startswith("warning: ")):
        bar.write(f"[{job.name}] {warning}")
    if code < 0:
        raise UserError(f"killed by {signal.Signals(-code).name}, as the system does where memory is short: {log}")
    if code:
        errors = [line for line in lines if "error: " in line.lower()] or [f"exit code {code}"]
        raise UserError(f"{errors[-1]} ({log})")
    if not job.makes.is_file():
        raise UserError(f"{job.makes} was not made, though {job.arguments[0]} found nothing wrong: a finished run "
                        "whose weights were removed does not make them again, so remove its folder too")

"""Scripts run as a user would run them, several side by side.

What is done is not done again. What fails leaves a hole, and the rest continues.
"""

import contextlib
import fcntl
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from cmkd.frames.layout import condition_lists, label_file, list_file, read_list
from cmkd.runtime import checkpoint
from cmkd.runtime.command_line import cores
from cmkd.runtime.failures import StopRequest, warn
from cmkd.runtime.files import REPOSITORY, UserError, read_json, refuse_unwritable, save_json

# Bytes; 5.5 GiB on a CPU at the published size (docs/performance.md).
MEMORY_OF_A_TRAINING = 12 * 2**30

UNREADABLE = "remove it, and run the same command again"  # about what a job wrote
NIGHTS = "nights"  # the job of reproduce.py that simulates OUT/data

Records = dict[str, dict[str, Any]]  # by a job's name: its arguments, and whether it is done


@dataclass(frozen=True)
class Job:
    """A script with its arguments, the file that it makes, and the jobs that must be done before.

    A repeatable job, which takes minutes, runs again if its arguments changed, or if a file in
    `reads`, a list or a label of its frames is newer than what it made. For any other job changed
    arguments are an error.
    """

    name: str
    arguments: list[str]  # the script first
    makes: Path
    needs: tuple[str, ...] = ()
    alone: bool = False  # uses all cores
    repeatable: bool = False
    reads: tuple[Path, ...] = ()
    lists: tuple[Path, ...] = ()  # files of lists whose frames and labels it reads
    leaves: tuple[Path, ...] = ()  # files that nobody needs once it is done


def training_state(run_dir: Path) -> tuple[Path, ...]:
    """The training checkpoints of a run: twice, for a small network, what its weights take."""
    return tuple(run_dir / name for name in (checkpoint.NEWEST, checkpoint.PREVIOUS))


def option_words(**options: Any) -> list[str]:
    """Options as words of a command line: `val_list="x"` gives `--val-list x`.

    A list gives several words after the option, True gives the option alone, None and False leave
    it out.
    """
    words = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words += map(str, value if isinstance(value, list | tuple) else [value])
    return words


def option_value(arguments: list[str], option: str) -> str:
    """The value of an option; the last one, as in argparse, if it is given twice."""
    last = len(arguments) - 1 - arguments[::-1].index(option)
    return arguments[last + 1]


def precision_words(arguments: list[str]) -> list[str]:
    """The options with which networks are tested in the precision of a training."""
    return ["--no-amp"] if "--no-amp" in arguments else []


def evaluation_job(
    name: str,
    needs: str,
    folder: Path,
    weights: list[Path],
    data: Path,
    lists: list[str],
    trained_with: list[str],
    detections: str = "detections.json",
    conditions: bool = False,
    draws: int | None = None,
) -> Job:
    """Test weights on lists of a data folder, once the job `needs` is done.

    In the precision of a training with these arguments. It writes FOLDER/scores.json, and
    FOLDER/<detections> as `tables.detection_files` names it.
    """
    scores = folder / "scores.json"
    arguments = [
        "test.py",
        *option_words(weights=weights, data=data, lists=lists, conditions=conditions, workers=0),
        *precision_words(trained_with),
        *option_words(draws=draws, json=scores, save_detections=folder / detections),
    ]
    return Job(
        name,
        arguments,
        scores,
        (needs,),
        repeatable=True,
        reads=tuple(weights),
        lists=tuple(list_file(data, one) for one in lists),
    )


def environments(side_by_side: int | None) -> list[dict[str, str]]:
    """The environment of each job that may run at the same time: its cores, and its GPU if any.

    By default one job per core, because two trainings on one thread each are faster than one on
    two. On GPUs, of which a training of small images uses a part (docs/performance.md), one job for
    two cores, as far as the GPUs' memory allows.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    count = side_by_side or cores()
    if gpus and not side_by_side:
        fitting = sum(
            torch.cuda.get_device_properties(gpu).total_memory // MEMORY_OF_A_TRAINING
            for gpu in range(gpus)
        )
        count = max(gpus, min(fitting, cores() // 2))
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // count))}
    if not gpus:
        return [threads] * count
    all_gpus = ",".join(map(str, range(gpus)))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", all_gpus).split(",")
    return [{**threads, "CUDA_VISIBLE_DEVICES": visible[slot % gpus]} for slot in range(count)]


def run_jobs(jobs: list[Job], out: Path, side_by_side: int | None) -> dict[str, str]:
    """Run the jobs that are not done, in order, several at the same time.

    Returns why jobs failed, by name. OUT/jobs.json has the arguments of each job and whether it is
    done, OUT/logs its warnings and errors. Ctrl-C and SIGTERM end the program once the jobs have
    saved their state. Raises `UserError` if OUT was begun with other arguments, is used by another
    call, or holds something else.
    """
    names = [job.name for job in jobs]
    if len(set(names)) < len(names) or not all(set(job.needs) <= set(names) for job in jobs):
        raise ValueError(f"job names must be unique, and every need must be a job: {names}")
    with (
        lock(out),
        StopRequest() as stop,
        JobRunner(jobs, out, environments(side_by_side)) as runner,
    ):
        while runner.running or (runner.waiting and not stop.signal):
            if stop.signal:
                runner.stop()
            else:
                runner.start_ready()
            runner.collect_finished()
        if stop.signal:
            stop.end_program(
                f"with {len(runner.done)} of {len(jobs)} jobs done", "the same command continues"
            )
    return runner.failed


def report_failures(failed: dict[str, str], count: int) -> None:
    """Warn of each failed job, with its reason; raise `UserError` if one of `count` failed."""
    for name, reason in failed.items():
        warn(f"{name}: {reason}")
    if failed:
        raise UserError(
            f"{len(failed)} of {count} jobs failed: see above; the same command tries them again"
        )


class JobRunner:
    """The jobs of one call: waiting, running, done and failed ones."""

    def __init__(self, jobs: list[Job], out: Path, free: list[dict[str, str]]) -> None:
        self.out = out
        self.records = begin(jobs, out)
        self.waiting = [job for job in jobs if not self.records[job.name]["done"]]
        self.done = {job.name for job in jobs if self.records[job.name]["done"]}
        self.failed: dict[str, str] = {}  # why, by name
        self.running: dict[Future, tuple[Job, dict[str, str]]] = {}
        self.free = list(free)  # environments without a job
        self.processes: set[subprocess.Popen] = set()
        self.stopped = False
        self.pool = ThreadPoolExecutor(len(free))
        self.bar = tqdm(
            desc="jobs", initial=len(self.done), total=len(jobs), dynamic_ncols=True, disable=None
        )

    def __enter__(self) -> "JobRunner":
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()
        self.bar.close()

    def start_ready(self) -> None:
        """Start waiting jobs, in order, as far as environments are free."""
        for job in list(self.waiting):
            if any(other.alone for other, _ in self.running.values()):
                return
            if lost := [need for need in job.needs if need in self.failed]:
                self.failed[job.name] = f"it needs {lost[0]}, which failed"
                self.waiting.remove(job)
            elif self.free and self.done.issuperset(job.needs) and not (job.alone and self.running):
                environment = self.free.pop(0)
                future = self.pool.submit(self.run, job, {} if job.alone else environment)
                self.running[future] = job, environment
                self.waiting.remove(job)

    def collect_finished(self) -> None:
        """Wait for a job to end, for a second at most, and record what became of it."""
        for future in wait(self.running, timeout=1, return_when=FIRST_COMPLETED).done:
            job, environment = self.running.pop(future)
            self.free.append(environment)
            try:
                future.result()
            except (UserError, OSError) as error:
                self.failed[job.name] = str(error)
                if not self.stopped:
                    self.bar.write(f"[{job.name}] failed: {error}")
            else:
                self.done.add(job.name)
                self.records[job.name]["done"] = True
                save_json(self.records, self.out / "jobs.json")
                for file in job.leaves:
                    file.unlink(missing_ok=True)
            self.bar.update()

    def stop(self) -> None:
        """End the processes; a training saves its state before it ends."""
        if self.stopped:
            return
        self.stopped = True  # first: a process that starts at this moment then ends too
        for process in list(self.processes):
            process.terminate()

    def run(self, job: Job, environment: dict[str, str]) -> None:
        """Run a job; its warnings and errors go to OUT/logs/<name>.txt.

        Raises `UserError` with the script's error if it fails or does not make its file.
        """
        self.bar.write(f"$ python {' '.join(job.arguments)}")
        log = self.out / "logs" / f"{job.name.replace('/', '-')}.txt"
        code = self.call_script(job, environment, log)
        lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
        for line in lines:
            if line.startswith("warning: "):
                self.bar.write(f"[{job.name}] {line}")
        if problem := why_failed(job, code, lines):
            raise UserError(f"{problem} ({log})")

    def call_script(self, job: Job, environment: dict[str, str], log: Path) -> int:
        """Run a job's script in a process, with its stderr in `log`; the exit code.

        The lines of a training are printed, because they are the progress of hours.
        """
        with log.open("w", encoding="utf-8") as errors:
            process = subprocess.Popen(
                [sys.executable, str(REPOSITORY / job.arguments[0]), *job.arguments[1:]],
                encoding="utf-8",
                errors="replace",
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self.processes.add(process)
        if self.stopped:
            process.terminate()
        for line in process.stdout:
            if not job.repeatable:
                self.bar.write(f"[{job.name}] {line.rstrip()}")
        code = process.wait()
        self.processes.discard(process)
        return code


def why_failed(job: Job, code: int, lines: list[str]) -> str:
    """Why a job failed, from its exit code and the lines of its stderr; empty if it did not."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}: the system does that if memory is short"
    if code:
        errors = [line for line in lines if "error: " in line.lower()]
        return errors[-1] if errors else f"exit code {code}"
    if not job.makes.is_file():
        return (
            f"{job.makes} was not made, though {job.arguments[0]} reported no error: a finished "
            "run does not make its weights again if they were removed, so remove its folder too"
        )
    return ""


@contextlib.contextmanager
def lock(out: Path) -> Iterator[None]:
    """Hold OUT for this call: two trainings in one folder would destroy each other's files.

    Raises `UserError`.
    """
    records, file = out / "jobs.json", out / "logs/lock"
    if out.is_dir() and any(out.iterdir()) and not records.is_file():
        raise UserError(f"{out} holds something other than a study: choose another --out")
    refuse_unwritable(file)
    if not records.is_file():
        save_json({}, records)
    with file.open("w", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{out} is used by a call that still runs: wait for it, or choose another --out"
            ) from None
        except OSError as error:
            warn(
                f"{out}: this file system cannot lock ({error.strerror}): do not start the same "
                "command twice"
            )
        yield


def read_records(out: Path) -> Records:
    """OUT/jobs.json. Raises `UserError`."""
    file = out / "jobs.json"
    advice = "choose another --out, or remove it"
    records = read_json(file, advice)
    for record in records.values() if isinstance(records, dict) else [None]:
        if (
            not isinstance(record, dict)
            or not isinstance(record.get("arguments"), list)
            or not isinstance(record.get("done"), bool)
        ):
            raise UserError(f"{file} is no record of jobs: {advice}")
    return records


def read_study_records(folder: Path) -> Records:
    """The records of a study of reproduce.py. Raises `UserError` if the folder holds none."""
    if not (folder / "jobs.json").is_file():
        raise UserError(f"{folder} is no study: run reproduce.py first, or name its folder")
    return read_records(folder)


def begin(jobs: list[Job], out: Path) -> Records:
    """The records of OUT/jobs.json, brought up to date: which jobs are new or must run again.

    Raises `UserError` if that would mix trainings with different arguments.
    """
    records = read_records(out)
    newest_of = cache(newest_in)  # many jobs read the same lists
    for job in jobs:
        before = records.get(job.name, {"arguments": job.arguments, "done": False})
        same_arguments = before["arguments"] == job.arguments
        if before["done"] and not same_arguments and not job.repeatable:
            raise UserError(other_settings(job, before["arguments"], out))
        made_anew = [need for need in job.needs if not records[need]["done"]]
        done = before["done"] and same_arguments and job.makes.is_file()
        if done and made_anew and not job.repeatable:
            raise UserError(
                f"{job.makes} was made with another {made_anew[0]} than the one to be made now: "
                "remove it and its run, or choose another --out"
            )
        if done:
            read = [*map(date_of, job.reads), *map(newest_of, job.lists)]
            done = not made_anew and max(read, default=0) <= date_of(job.makes)
        records[job.name] = {"arguments": job.arguments, "done": done}
    save_json(records, out / "jobs.json")
    return records


def date_of(file: Path) -> float:
    """When a file was last changed; infinity if it is missing."""
    try:
        return file.stat().st_mtime
    except OSError:
        return math.inf


def newest_in(file: Path) -> float:
    """When a list, a list of its conditions or a label of its frames was last changed.

    Infinity if one is missing.
    """
    root = file.parent
    try:
        names = read_list(file)
        conditions = condition_lists(root, file.stem)
    except UserError:  # a test says what is wrong with it
        return math.inf
    read = [file, *(list_file(root, name) for name in conditions)]
    return max(map(date_of, [*read, *(label_file(root, name) for name in names)]))


def other_settings(job: Job, before: list[str], out: Path) -> str:
    """The error of a finished job that now has other arguments."""
    pairs = zip(before, job.arguments, strict=False)
    differences = [(old, new) for old, new in pairs if old != new]
    old, new = (*differences, (before[-1], job.arguments[-1]))[0]
    frames = f"--data {out / 'data'} to continue with its frames, " if job.name == NIGHTS else ""
    return (
        f"{out} was begun with other settings ({job.name}: {old!r} there and {new!r} here): pass "
        f"the same ones, {frames}or choose another --out"
    )

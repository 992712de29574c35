"""Scripts run as a user would run them, several side by side. What is done is not done again; what fails leaves a hole
and the rest goes on."""

import json
import os
import subprocess
import sys
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from utils import REPOSITORY, UserError, save_json

Records = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """A script with its options, what it makes, and the jobs whose files it needs."""

    name: str
    arguments: list[str]
    makes: Path
    needs: tuple[str, ...] = ()
    alone: bool = False  # has the machine for itself: nothing else can begin before it is done


def slots(side_by_side: int | None) -> list[dict[str, str]]:
    """The environment of each of the jobs that run at once: a GPU each, or one thread of the CPU, where two trainings
    side by side do more than one with two threads."""
    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        own = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        return [{"CUDA_VISIBLE_DEVICES": own[number % gpus]} for number in range(side_by_side or gpus)]
    return [{"OMP_NUM_THREADS": "1"}] * (side_by_side or os.cpu_count() or 1)


def run_jobs(jobs: list[Job], out: Path, environments: list[dict[str, str]]) -> dict[str, str]:
    """Run what is not done, in order, as many at once as there are environments; return why jobs failed, by name.

    OUT/jobs.json has the arguments of each job and whether it is done; OUT/logs its errors and bars.
    Raises `UserError` where OUT was begun with other arguments.
    """
    records = begin(jobs, out)
    failed: dict[str, str] = {}
    waiting = [job for job in jobs if not (records[job.name]["done"] and job.makes.exists())]
    done = {job.name for job in jobs} - {job.name for job in waiting}
    running, free = {}, list(environments)
    with tqdm(desc="jobs", initial=len(done), total=len(jobs), dynamic_ncols=True, disable=None) as bar, \
            ThreadPoolExecutor(len(environments)) as pool:
        while waiting or running:
            for job in list(waiting):
                if lost := [need for need in job.needs if need in failed]:
                    failed[job.name] = f"there is no {lost[0]}"
                elif free and done.issuperset(job.needs):
                    environment = free.pop(0)
                    running[pool.submit(call, job, out, {} if job.alone else environment, bar)] = job, environment
                else:
                    continue
                waiting.remove(job)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, environment = running.pop(future)
                free.append(environment)
                bar.update()
                try:
                    future.result()
                except UserError as error:
                    failed[job.name] = str(error)
                    bar.write(f"[{job.name}] failed: {error}")
                else:
                    done.add(job.name)
                    records[job.name]["done"] = True
                    save_json(records, out / "jobs.json")
    return failed


def begin(jobs: list[Job], out: Path) -> Records:
    """The records of OUT/jobs.json with those of new jobs added. Raises `UserError` where a job's arguments changed."""
    file = out / "jobs.json"
    try:
        records = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        for job in jobs:
            before = records.setdefault(job.name, {"arguments": job.arguments, "done": False})
            if before["arguments"] != job.arguments:
                other = next((f"{old!r} there and {new!r} here" for old, new in
                              zip(before["arguments"], job.arguments, strict=False) if old != new), "more options")
                raise UserError(f"{out} was begun with other settings ({job.name}: {other}): give the same ones, or "
                                "another --out")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} is no record of jobs: give another --out, or remove it") from None
    (out / "logs").mkdir(parents=True, exist_ok=True)
    save_json(records, file)
    return records


def call(job: Job, out: Path, environment: dict[str, str], bar: tqdm) -> None:
    """Run a script, its errors and bars in OUT/logs/<name>.txt, its lines on screen.

    Raises `UserError` with the end of that file where the script fails.
    """
    bar.write(f"$ python {' '.join(job.arguments)}")
    log = out / "logs" / f"{job.name.replace('/', '-')}.txt"
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / job.arguments[0]), *job.arguments[1:]], text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment}, stdout=subprocess.PIPE, stderr=errors)
        for line in process.stdout:
            bar.write(f"[{job.name}] {line.rstrip()}")
    lines = log.read_text(encoding="utf-8").replace("\r", "\n").splitlines()
    for warning in (line for line in lines if line.startswith("warning: ")):
        bar.write(f"[{job.name}] {warning}")
    if process.wait() != 0:
        last = [line for line in lines if line.strip()] or [f"exit code {process.returncode}"]
        raise UserError(f"{last[-1]} ({log})")

"""Training on a CPU now and at an earlier commit, in turns on the same frames.

    python -m benchmarks.against_commit --json runs/bench/against_commit.json

Each turn runs `train_baseline.py` as a user would, for two epochs, and takes the rates of training
and validation from the second epoch's line in log.jsonl, and the peak memory from the system. The
earlier commit is unpacked from git. The cases `both cores` and `busy` compare the present code with
itself on one thread. Figures are medians of the turns.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.measure import add_turns, simulate
from cmkd.evaluation.options import add_json
from cmkd.evaluation.tables import markdown_table, print_and_save
from cmkd.runtime.command_line import OneLineParser
from cmkd.runtime.files import REPOSITORY
from cmkd.study.day_detector import DAY_DETECTOR

COMMIT = "2c1d775"
SMALL = "--backbone resnet18 --min-size 128 --rois 32 --proposals 100 --flip"
FEWER = "--candidates 300 --proposals 50"  # of the small presets of reproduce.py
EVERYWHERE = "--workers 0 --cache ram --epochs 2 --train-list train_night --val-list val_night"


@dataclass(frozen=True)
class Case:
    """Two sides that are compared: what both train, and what only the new side passes."""

    options: str
    only_new: str = ""
    size: str = "213x128"
    frames: int = 96
    val_frames: int = 60
    with_itself: bool = False  # the other side is the present code on one thread
    threads: int | None = 1  # of the new side; None: as it chooses
    busy: bool = False  # another process computes all the time


def cases(start: Path) -> dict[str, Case]:
    """The cases by name. `start` are the weights that the CPU preset starts from."""
    from_scratch = f"{SMALL} --init none --batch-size 8"
    from_start = f"{SMALL} --init {start} --stem inflate --batch-size 4"
    return {
        "a: from scratch, batch 8": Case(from_scratch, FEWER),
        "b: from the start weights, batch 4": Case(from_start, FEWER),
        "a, both cores": Case(f"{from_scratch} {FEWER}", with_itself=True, threads=2),
        "a, busy": Case(f"{from_scratch} {FEWER}", with_itself=True, threads=None, busy=True),
        "ResNet-50, 500 px, batch 4": Case(
            "--backbone resnet50 --init none --batch-size 4",
            size="1280x768",
            frames=8,
            val_frames=4,
        ),
    }


def unpack(commit: str, folder: Path) -> Path:
    """The files of a commit of this repository, in a folder."""
    archive = folder / "commit.tar"
    command = ["git", "archive", "--prefix=before/", "-o", str(archive), commit]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    shutil.unpack_archive(archive, folder)
    return folder / "before"


def train(checkout: Path, options: list[str], threads: int | None, run_dir: Path) -> dict[str, Any]:
    """Train for two epochs: img/s of training and validation in the second, peak memory in bytes.

    `threads` are given as OMP_NUM_THREADS; None lets the script choose.
    """
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, str(checkout / "train_baseline.py"), *options]
    command += ["--run-dir", str(run_dir), "--out", str(run_dir)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    lines = (run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()
    last = json.loads(lines[-1])
    return {
        "train_seconds": last["train_seconds"],
        "val_seconds": last["val_seconds"],
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "threads": json.loads(lines[0]).get("threads"),
    }


@contextmanager
def other_process(wanted: bool) -> Iterator[None]:
    """A process that is busy on one core meanwhile, if wanted."""
    if not wanted:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        yield
        process.kill()


def measure_case(
    case: Case, folder: Path, before: Path, turns: int, no_amp: bool, bar: tqdm
) -> dict[str, Any]:
    """Both sides in turns; all figures, medians and ratios (above 1: the new side is better)."""
    data = folder / case.size
    if not data.is_dir():
        simulate(data, case.frames, case.size, case.val_frames)
    options = [*case.options.split(), *EVERYWHERE.split(), "--data", str(data)]
    options += ["--no-amp"] if no_amp else []
    sides = {
        "before": (REPOSITORY if case.with_itself else before, options, 1),
        "now": (REPOSITORY, [*options, *case.only_new.split()], case.threads),
    }
    figures: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    with other_process(case.busy):
        for turn in range(turns):
            for name, (checkout, arguments, threads) in sides.items():
                run_dir = folder / f"{name}-{turn}"
                figures[name].append(train(checkout, arguments, threads, run_dir))
                shutil.rmtree(run_dir)
                bar.update()

    def median(name: str, what: str) -> float:
        return statistics.median(one[what] for one in figures[name])

    result = {"options": case.options, "only_new": case.only_new, "turns": figures}
    result |= {"size": case.size, "threads": case.threads, "busy": case.busy}
    for name in sides:
        result[name] = {
            "train_img_s": case.frames / median(name, "train_seconds"),
            "val_img_s": case.val_frames / median(name, "val_seconds"),
            "peak_bytes": median(name, "peak_bytes"),
        }
    return result


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: rates of both sides and their ratios."""
    heading = ["case", "training before, img/s", "now", "ratio", "evaluation before, img/s", "now"]
    rows = [[*heading, "ratio", "peak before, GiB", "now"]]
    for name, result in results.items():
        old, new = result["before"], result["now"]
        row = [name]
        for what in ("train_img_s", "val_img_s"):
            row += [f"{old[what]:.3g}", f"{new[what]:.3g}", f"{new[what] / old[what]:.2f}"]
        row += [f"{old['peak_bytes'] / 2**30:.2f}", f"{new['peak_bytes'] / 2**30:.2f}"]
        rows.append(row)
    return markdown_table(rows)


def main() -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("--commit", default=COMMIT, help=f"(default: {COMMIT})")
    parser.add_argument("--only", nargs="+", help="first words of cases (default: all)")
    parser.add_argument(
        "--start", type=Path, default=DAY_DETECTOR, help="weights of case b (default: shipped)"
    )
    parser.add_argument("--no-amp", action="store_true", help="both sides in float32")
    add_turns(parser, 5)
    add_json(parser)
    args = parser.parse_args()
    chosen = {
        name: case
        for name, case in cases(args.start.resolve()).items()
        if not args.only or name.startswith(tuple(args.only))
    }
    results = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=len(chosen) * 2 * args.turns, unit="run", disable=None) as bar,
    ):
        before = unpack(args.commit, Path(folder))
        for name, case in chosen.items():
            bar.set_description(name)
            results[name] = measure_case(case, Path(folder), before, args.turns, args.no_amp, bar)
    print_and_save(
        table(results),
        {"commit": args.commit, "no_amp": args.no_amp, "results": results},
        args.json,
    )


if __name__ == "__main__":
    main()

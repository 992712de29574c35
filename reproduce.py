"""The whole comparison on one command, on simulated night frames: `make demo`.

    python reproduce.py --out runs/demo

Makes a data set, trains teacher, baseline and both students as a user would, tests them, prints one table and draws
OUT/gallery.png. A second call goes on where the first stopped.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tqdm import tqdm

from utils import REPOSITORY, OneLineParser, UserError, at_least, run

INPUTS = {"teacher": "RGB + gated", "baseline": "RGB", "cmkd_mse": "RGB", "cmkd_adv": "RGB"}
ROUNDS = [("teacher", "baseline"), ("cmkd_mse", "cmkd_adv")]  # the students need the teacher

# From random weights, so shorter and hotter than the published recipe, and the same for all four networks.
CPU = {
    "data": ["--frames", "170", "40", "80", "--size", "213x128"],
    "train": ["--backbone", "resnet18", "--min-size", "128", "--rois", "32", "--proposals", "200", "--epochs", "6",
              "--batch-size", "4", "--lr", "0.02", "--workers", "0", "--amp"],
}
CUDA = {
    "data": ["--frames", "1500", "200", "300", "--size", "640x384"],
    "train": ["--backbone", "resnet50", "--min-size", "384", "--epochs", "10", "--batch-size", "8", "--lr", "0.01",
              "--amp"],
}


def call(name: str, arguments: list[str], out: Path, environment: dict[str, str], bar: tqdm) -> None:
    """Run a script as a user would, its errors and bars in OUT/<name>.txt, its lines on screen.

    Raises `UserError` with the end of that file where the script fails.
    """
    command = [sys.executable, str(REPOSITORY / arguments[0]), *arguments[1:]]
    bar.write(f"$ python {' '.join(arguments)}")
    log = out / f"{name}.txt"
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(command, env={**os.environ, "PYTHONUNBUFFERED": "1", **environment}, text=True,
                                   stdout=subprocess.PIPE, stderr=errors)
        for line in process.stdout:
            bar.write(f"[{name}] {line.rstrip()}")
            bar.update(line.startswith("epoch "))
    if process.wait() != 0:
        last = log.read_text(encoding="utf-8").strip().splitlines() or ["no message"]
        raise UserError(f"{arguments[0]} ended with exit code {process.returncode}: {last[-1]} (all of it: {log})")


def results_table(metrics: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown: AP and AP50 in percent by network and list, and the share of the teacher-baseline gap closed."""
    lists = ("val_night", "test_night")
    lines = ["| model | inputs | val AP | val AP50 | test AP | test AP50 | gap closed, val | gap closed, test |",
             "|---|---|---|---|---|---|---|---|"]
    for name, inputs in INPUTS.items():
        cells = [f"{100 * metrics[name][one][metric]:.1f}" for one in lists for metric in ("AP", "AP50")]
        cells += [gap_closed(*(metrics[who][one]["AP"] for who in (name, "baseline", "teacher"))) for one in lists]
        lines.append(f"| {name} | {inputs} | {' | '.join(cells)} |")
    return "\n".join(lines)


def gap_closed(ap: float, baseline: float, teacher: float) -> str:
    """The share of the way from the baseline's AP to the teacher's, in percent."""
    return f"{round(100 * (ap - baseline) / (teacher - baseline))} %" if teacher > baseline else "no gap"


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of everything (default: runs/demo)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of data and training")
    args = parser.parse_args()
    started = time.time()
    on_gpu = torch.cuda.is_available()
    preset = CUDA if on_gpu else CPU
    # On a CPU, one thread for each of two trainings side by side does more than two threads for one.
    side_by_side = 1 if on_gpu else min(2, os.cpu_count() or 1)
    environment = {} if on_gpu else {"OMP_NUM_THREADS": "1"}
    out, data, weights = args.out, args.out / "data", args.out / "weights"
    out.mkdir(parents=True, exist_ok=True)
    epochs = int(preset["train"][preset["train"].index("--epochs") + 1])

    with tqdm(total=epochs * len(INPUTS), unit="epoch", desc="training", dynamic_ncols=True,
              disable=None) as bar:
        if not (data / "vis_night.txt").is_file():
            call("data", ["make_synthetic.py", "--out", str(data), "--seed", str(args.seed), *preset["data"]],
                 out, {}, bar)
        for names in ROUNDS:
            with ThreadPoolExecutor(side_by_side) as pool:
                jobs = []
                for name in names:
                    teacher = ["--teacher", str(weights / "teacher.pth")] if name.startswith("cmkd") else []
                    arguments = [f"train_{name}.py", "--data", str(data), "--init", "none", "--seed", str(args.seed),
                                 "--out", str(weights), "--run-dir", str(out / name), "--resume", *teacher,
                                 *preset["train"]]
                    jobs.append(pool.submit(call, name, arguments, out, environment, bar))
                for job in jobs:
                    job.result()
        with ThreadPoolExecutor(side_by_side) as pool:
            jobs = [pool.submit(call, f"test_{name}", ["test.py", "--weights", str(weights / f"{name}.pth"), "--data",
                                                       str(data), "--json", str(out / f"{name}.json"), "--amp",
                                                       "--workers", "0"], out, environment, bar) for name in INPUTS]
            for job in jobs:
                job.result()
        call("gallery", ["visualize.py", "--data", str(data), "--out", str(out / "gallery.png"), "--score", "0.8",
                         "--compare", *(str(weights / f"{name}.pth") for name in INPUTS)], out, {}, bar)

    metrics = {name: json.loads((out / f"{name}.json").read_text(encoding="utf-8"))["metrics"] for name in INPUTS}
    table = results_table(metrics)
    (out / "results.md").write_text(table + "\n", encoding="utf-8")
    print(f"\n{table}\n\n{out / 'results.md'}, {out / 'gallery.png'}; {(time.time() - started) / 60:.1f} minutes")
    for name in INPUTS:
        if not metrics[name]["test_night"]["AP"] > 0:
            raise UserError(f"{name} found nobody on test_night: the comparison says nothing")
    if metrics["teacher"]["test_night"]["AP"] <= metrics["baseline"]["test_night"]["AP"]:
        raise UserError("the teacher is not above the baseline on test_night: there is no gap to close")


if __name__ == "__main__":
    run(main)

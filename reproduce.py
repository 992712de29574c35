"""The whole comparison on one command, on simulated night frames: `make demo`.

    python reproduce.py --out runs/demo

Simulates days and nights, pretrains an RGB detector on the days (in place of COCO weights, which not everyone can
download), trains teacher, baseline and both students on the nights from it as a user would, tests them, prints one
table, draws OUT/gallery.png and writes OUT/comparison.html, a page with all numbers and pictures. A second call goes on
where the first stopped.
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

from failures import run
from utils import REPOSITORY, OneLineParser, UserError, at_least

INPUTS = {"teacher": "RGB + gated", "baseline": "RGB", "cmkd_mse": "RGB", "cmkd_adv": "RGB"}
ROUNDS = [("teacher", "baseline"), ("cmkd_mse", "cmkd_adv")]  # the students need the teacher
TEST_LISTS = ("val_night", "test_night")

# Smaller batches and fewer epochs than the published recipe, the same for all four networks. Six epochs, as the rate
# falls to a tenth after five.
CPU = {
    "day": ["--frames", "76", "20", "0"],
    "night": ["--frames", "56", "30", "60"],
    "data": ["--frames-per-recording", "1", "--size", "213x128"],
    "train": ["--backbone", "resnet18", "--min-size", "128", "--rois", "32", "--proposals", "64", "--batch-size", "2",
              "--flip", "--workers", "0"],
    "epochs": 6,
    "from_random": ["--init", "none", "--lr", "0.01"],
    "from_day": ["--stem", "inflate", "--lr", "0.0025"],  # the published 0.005 for 4 frames, scaled to 2
}
CUDA = {
    "day": ["--frames", "2000", "200", "0"],
    "night": ["--frames", "2000", "300", "600"],
    "data": ["--frames-per-recording", "2", "--size", "640x384"],
    "train": ["--backbone", "resnet50", "--min-size", "384", "--batch-size", "8", "--flip"],
    "epochs": 8,
    "from_random": ["--init", "none", "--lr", "0.01"],
    "from_day": ["--stem", "inflate", "--lr", "0.01"],
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
    lines = log.read_text(encoding="utf-8").replace("\r", "\n").splitlines()
    for warning in (line for line in lines if line.startswith("warning: ")):
        bar.write(f"[{name}] {warning}")
    if process.wait() != 0:
        last = [line for line in lines if line.strip()] or ["no message"]
        raise UserError(f"{arguments[0]} ended with exit code {process.returncode}: {last[-1]} (all of it: {log})")


def results_table(metrics: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown: AP and AP50 in percent by network and list, and the share of the teacher-baseline gap closed."""
    lines = ["| model | inputs | val AP | val AP50 | test AP | test AP50 | gap closed, val | gap closed, test |",
             "|---|---|---|---|---|---|---|---|"]
    for name, inputs in INPUTS.items():
        cells = [f"{100 * metrics[name][one][metric]:.1f}" for one in TEST_LISTS for metric in ("AP", "AP50")]
        cells += [gap_closed(*(metrics[who][one]["AP"] for who in (name, "baseline", "teacher"))) for one in TEST_LISTS]
        lines.append(f"| {name} | {inputs} | {' | '.join(cells)} |")
    return "\n".join(lines)


def gap_closed(ap: float, baseline: float, teacher: float) -> str:
    """The share of the way from the baseline's AP to the teacher's, in percent."""
    return f"{round(100 * (ap - baseline) / (teacher - baseline))} %" if teacher > baseline else "no gap"


def refuse_empty_comparison(metrics: dict[str, dict[str, dict[str, float]]]) -> None:
    """Raise `UserError` where the table says nothing: a network that found nobody, or a teacher with no lead."""
    for one in TEST_LISTS:
        for name in INPUTS:
            if not metrics[name][one]["AP"] > 0:
                raise UserError(f"{name} found nobody on {one}: the comparison says nothing")
        if metrics["teacher"][one]["AP"] <= metrics["baseline"][one]["AP"]:
            raise UserError(f"the teacher is not above the baseline on {one}: there is no gap to close")


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
    one_thread = {} if on_gpu else {"OMP_NUM_THREADS": "1"}
    out, day, night, weights = args.out, args.out / "day", args.out / "data", args.out / "weights"
    out.mkdir(parents=True, exist_ok=True)
    data = ["--seed", str(args.seed), *preset["data"]]
    train = ["--seed", str(args.seed), "--resume", "--epochs", str(preset["epochs"]), *preset["train"]]

    with tqdm(total=preset["epochs"] * (1 + len(INPUTS)), unit="epoch", desc="training", dynamic_ncols=True,
              disable=None) as bar, ThreadPoolExecutor(side_by_side) as pool:

        def together(jobs: dict[str, list[str]]) -> None:
            for job in [pool.submit(call, name, arguments, out, one_thread, bar) for name, arguments in jobs.items()]:
                job.result()

        call("make_day", ["make_synthetic.py", "--out", str(day), "--mix", "clear_day=1", *preset["day"], *data],
             out, {}, bar)
        call("make_night", ["make_synthetic.py", "--out", str(night), *preset["night"], *data], out, {}, bar)
        call("pretrain", ["train_baseline.py", "--data", str(day), "--train-list", "train_clear_day", "--val-list",
                          "val_clear_day", *train, *preset["from_random"], "--out", str(out / "pretrained"),
                          "--run-dir", str(out / "pretrained")], out, {}, bar)
        for names in ROUNDS:
            together({name: [
                f"train_{name}.py", "--data", str(night), "--init", str(out / "pretrained/baseline.pth"), *train,
                *preset["from_day"], "--out", str(weights), "--run-dir", str(out / name),
                *(["--teacher", str(weights / "teacher.pth")] if name.startswith("cmkd") else [])] for name in names})
        together({f"test_{name}": ["test.py", "--weights", str(weights / f"{name}.pth"), "--data", str(night),
                                   "--lists", *TEST_LISTS, "--json", str(out / f"{name}.json"), "--workers", "0"]
                  for name in INPUTS})
        call("gallery", ["visualize.py", "--data", str(night), "--list", "test_night", "--workers", "0", "--out",
                         str(out / "gallery.png"), "--html", str(out / "comparison.html"), "--draws", "300",
                         "--compare", *(str(weights / f"{name}.pth") for name in INPUTS)], out, {}, bar)

    metrics = {}
    for name in INPUTS:
        by_list = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))["metrics"]
        metrics[name] = {one: by_title[name] for one, by_title in by_list.items()}
    table = results_table(metrics)
    (out / "results.md").write_text(table + "\n", encoding="utf-8")
    print(f"\n{table}\n\n{out / 'results.md'}, {out / 'gallery.png'}, {out / 'comparison.html'}; "
          f"{(time.time() - started) / 60:.1f} minutes")
    refuse_empty_comparison(metrics)


if __name__ == "__main__":
    run(main)

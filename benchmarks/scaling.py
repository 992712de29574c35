"""What training costs against the number of frames, their size, the batch, the regions and the processes.

    python -m benchmarks.scaling --json runs/bench/scaling.json

train_baseline.py as a user runs it, on simulated frames of 640x384, with ResNet-18; the seconds are those that its log
has for the second epoch. One thing is varied at a time; the others are as in USUAL.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.measure import report, simulate, table
from utils import REPOSITORY, OneLineParser, at_least

USUAL = {"frames": 32, "min_size": 192, "batch": 4, "rois": 512, "processes": 1}
VARIED = {"frames": [16, 32, 64, 128], "min_size": [96, 192, 384], "batch": [1, 4, 16], "rois": [64, 256, 512],
          "processes": [1, 2]}


def train(data: Path, run: Path, frames: int, min_size: int, batch: int, rois: int, processes: int, device: str
          ) -> dict[str, float]:
    """The last record of a run of two epochs on the first `frames` of the list; `batch` is over all processes."""
    names = (data / "train_night.txt").read_text(encoding="utf-8").splitlines()[:frames]
    (data / f"first_{frames}.txt").write_text("\n".join(names), encoding="utf-8")
    start = ([sys.executable] if processes == 1 else
             [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    subprocess.run([*start, REPOSITORY / "train_baseline.py", *map(str, [
        "--data", data, "--train-list", f"first_{frames}", "--backbone", "resnet18", "--init", "none", "--epochs", 2,
        "--cache", "ram", "--workers", 0, "--device", device, "--min-size", min_size, "--rois", rois,
        "--batch-size", batch // processes, "--out", run, "--run-dir", run])], check=True, stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(max(1, cores // processes))})
    return json.loads((run / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--val-frames", type=at_least(1), default=16, help="validation frames (default: 16)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, and the tables beside them")
    args = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder, tqdm(total=sum(map(len, VARIED.values())), disable=None) as bar:
        data = simulate(Path(folder) / "data", max(VARIED["frames"]), "640x384", args.val_frames)
        for what, values in VARIED.items():
            results[what] = []
            for value in values:
                case = {**USUAL, what: value}
                record = train(data, Path(folder) / f"{what}{value}", device=args.device, **case)
                results[what].append({**case, "train_seconds": record["train_seconds"],
                                      "val_seconds": record["val_seconds"]})
                bar.update()
    text = []
    for what, runs in results.items():
        rows = [[run[what], f"{run['train_seconds']:.1f}", f"{1000 * run['train_seconds'] / run['frames']:.0f}",
                 f"{run['val_seconds']:.1f}"] for run in runs]
        text.append(table([what, "epoch, s", "a frame, ms", "validation, s"], rows))
    report("\n\n".join(text), {"results": results, "usual": USUAL}, args.json)


if __name__ == "__main__":
    main()

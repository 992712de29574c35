"""Does bfloat16 change what is learned? The demo's teacher and student, trained with several seeds both ways.

    make demo
    python -m benchmarks.bfloat16 --json runs/bench/bfloat16.json

train_teacher.py and train_cmkd_mse.py as reproduce.py calls them, from the demo's pretrained weights and on its frames,
with --amp and --no-amp and otherwise the same; the best validation AP of each run. Then the demo's own weights, tested
both ways.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from benchmarks.measure import report, table
from cmkd.study.report import NETWORKS
from reproduce import PRESETS
from utils import REPOSITORY, OneLineParser, UserError, at_least

WAYS = {"float32": "--no-amp", "bfloat16": "--amp"}
METHODS = ("teacher", "cmkd_mse")


def run(arguments: list) -> None:
    """A script, on one thread, as two run side by side."""
    subprocess.run([sys.executable, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL,
                   env={**os.environ, "OMP_NUM_THREADS": "1"})


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="folder of `make demo`")
    parser.add_argument("--seeds", type=at_least(1), default=3, help="default: 3")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, and the table beside them")
    args = parser.parse_args()
    if not (args.demo / "seed0/cmkd_adv.pth").is_file():
        raise SystemExit(UserError(f"{args.demo} holds no finished demo: run `make demo` first, or name its folder"))
    options = [*PRESETS["smoke"].train.split(), *PRESETS["smoke"].start.split(), "--init",
               args.demo / "pretrained/baseline.pth", "--data", args.demo / "data"]
    trained: dict[str, dict[str, list[float]]] = {method: {way: [] for way in WAYS} for method in METHODS}
    tested: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool, tqdm(
            total=2 * len(METHODS) * args.seeds, unit="run", disable=None) as bar:

        def train(method: str, way: str, seed: int) -> float:
            home = Path(folder) / f"{method}-{way}-{seed}"
            teacher = ["--teacher", args.demo / "seed0/teacher.pth"] if "cmkd" in method else []
            run([REPOSITORY / f"train_{method}.py", *options, *teacher, WAYS[way], "--seed", seed, "--out", home,
                 "--run-dir", home])
            bar.update()
            return json.loads((home / f"{method}.json").read_text(encoding="utf-8"))["val"]["AP"]

        jobs = {(method, way, seed): pool.submit(train, method, way, seed)
                for method in METHODS for seed in range(args.seeds) for way in WAYS}
        for (method, way, _), job in jobs.items():
            trained[method][way].append(job.result())
        for name in NETWORKS:
            tested[name] = {}
            for way, option in WAYS.items():
                file = Path(folder) / f"{name}-{way}.json"
                run([REPOSITORY / "test.py", "--weights", args.demo / f"seed0/{name}.pth", "--data",
                     args.demo / "data", "--lists", "test_night", option, "--json", file])
                tested[name][way] = json.loads(file.read_text(encoding="utf-8"))["metrics"]["test_night"][name]["AP"]
    rows = []
    for method, aps in trained.items():
        differences = [b - a for a, b in zip(*aps.values(), strict=True)]
        spread = statistics.stdev(differences) if len(differences) > 1 else float("nan")
        rows.append([method, *(f"{100 * statistics.mean(values):.1f} ({', '.join(f'{100 * ap:.1f}' for ap in values)})"
                               for values in aps.values()),
                     f"{100 * statistics.mean(differences):+.1f} ± {100 * spread / len(differences) ** 0.5:.1f}"])
    text = table(["trained", "val AP, float32 (by seed)", "val AP, bfloat16 (by seed)", "difference ± standard error"],
                 rows)
    text += "\n\n" + table(["the same weights, test AP", *WAYS], [
        [name, *(f"{100 * ap:.2f}" for ap in aps.values())] for name, aps in tested.items()])
    report(text, {"trained": trained, "tested": tested}, args.json)


if __name__ == "__main__":
    main()

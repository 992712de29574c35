"""The cost of training against the number of frames, their size, batch, regions and processes.

    python -m benchmarks.scaling --json runs/bench/scaling.json

train_baseline.py as a user runs it, on simulated frames of 640x384, with ResNet-18; the seconds are
those of the second epoch in its log. One thing varies at a time; the others are as in USUAL.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.measure import run_script, simulate
from cmkd.evaluation.options import add_json
from cmkd.evaluation.tables import markdown_table, print_and_save
from cmkd.runtime.command_line import OneLineParser, at_least, cores
from cmkd.study.jobs import option_words

USUAL = {"frames": 32, "min_size": 192, "batch": 4, "rois": 512, "processes": 1}
VARIED = {
    "frames": [16, 32, 64, 128],
    "min_size": [96, 192, 384],
    "batch": [1, 4, 16],
    "rois": [64, 256, 512],
    "processes": [1, 2],
}


def train(data: Path, out: Path, case: dict[str, int], device: str) -> dict[str, Any]:
    """The last record of the log of two epochs on the first frames of the list.

    The `batch` of a case is divided among its processes.
    """
    frames, processes = case["frames"], case["processes"]
    names = (data / "train_night.txt").read_text(encoding="utf-8").splitlines()[:frames]
    (data / f"first_{frames}.txt").write_text("\n".join(names), encoding="utf-8")
    launcher = ()
    if processes > 1:
        launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}")
    options = option_words(
        data=data,
        train_list=f"first_{frames}",
        backbone="resnet18",
        init="none",
        epochs=2,
        cache="ram",
        workers=0,
        device=device,
        min_size=case["min_size"],
        rois=case["rois"],
        batch_size=case["batch"] // processes,
        out=out,
        run_dir=out,
    )
    run_script("train_baseline.py", options, max(1, cores() // processes), launcher)
    return json.loads((out / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])


def main() -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument(
        "--val-frames", type=at_least(1), default=16, help="validation frames (default: 16)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    add_json(parser)
    args = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=sum(map(len, VARIED.values())), disable=None) as bar,
    ):
        data = simulate(Path(folder) / "data", max(VARIED["frames"]), "640x384", args.val_frames)
        for what, values in VARIED.items():
            results[what] = []
            for value in values:
                case = {**USUAL, what: value}
                record = train(data, Path(folder) / f"{what}{value}", case, args.device)
                seconds = {name: record[name] for name in ("train_seconds", "val_seconds")}
                results[what].append(case | seconds)
                bar.update()
    tables = []
    for what, cases in results.items():
        rows = [[what, "epoch, s", "a frame, ms", "validation, s"]]
        for case in cases:
            seconds = case["train_seconds"]
            per_frame = 1000 * seconds / case["frames"]
            validation = f"{case['val_seconds']:.1f}"
            rows.append([case[what], f"{seconds:.1f}", f"{per_frame:.0f}", validation])
        tables.append(markdown_table(rows))
    print_and_save("\n\n".join(tables), {"results": results, "usual": USUAL}, args.json)


if __name__ == "__main__":
    main()

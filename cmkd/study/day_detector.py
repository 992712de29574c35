"""The RGB detector of simulated days that small studies start from, in place of COCO weights.

    python -m cmkd.study.day_detector

Simulates days, trains an RGB detector on them from random weights (three hours on a core), and
writes its best epoch to pretrained/rgb_day.pth, with matrices and kernels in float16. The JSON
beside it has its settings, the SHA-256 of the file and the AP by day of what is in it. The same
command resumes.
"""

from pathlib import Path

from torch import Tensor

from cmkd.runtime.command_line import OneLineParser
from cmkd.runtime.failures import run
from cmkd.runtime.files import REPOSITORY, read_json, save_json
from cmkd.runtime.weights import read_settings, read_state, save_torch, settings_file, sha256_of
from cmkd.study.jobs import (
    Job,
    evaluation_job,
    option_words,
    report_failures,
    run_jobs,
    training_state,
)

DAY_DETECTOR = REPOSITORY / "pretrained/rgb_day.pth"
BACKBONE = "resnet18"
FRAMES, SIZE = "9000 300 0", "213x128"
TRAINING = (
    f"--backbone {BACKBONE} --min-size 128 --rois 32 --proposals 100 --candidates 300 --flip "
    "--workers 0 --cache ram --epochs 8 --init none --lr 0.01 --batch-size 8"
)
TRAIN_LIST, VAL_LIST = "train_clear_day", "val_clear_day"
SEED_OF_DAYS = 1_000_000  # other places than those of the nights
SETTINGS = (
    "backbone",
    "norm",
    "channels",
    "num_classes",
    "min_size",
    "max_size",
    "proposals",
    "candidates",
    "padding",
    "classes",
    "ignore",
    "epoch",
)


def simulation_job(name: str, folder: Path, size: str, frames: str, *more: str) -> Job:
    """Simulate a data folder. `frames` are those for training, validation and test.

    Without animals, so that tables stay comparable with those made before there were any.
    """
    options = option_words(
        frames_per_recording=1, size=size, out=folder, frames=frames.split(), animals=0
    )
    arguments = ["make_synthetic.py", *options, *more]
    return Job(name, arguments, folder / "synthetic.json", alone=True)


def day_jobs(out: Path, size: str, frames: str, training: list[str]) -> list[Job]:
    """Simulate days in OUT/day, and train an RGB detector on them: OUT/pretrained/baseline.pth."""
    days, pretrained = out / "day", out / "pretrained"
    only_days = option_words(mix="clear_day=1", seed=SEED_OF_DAYS)
    arguments = [
        "train_baseline.py",
        *option_words(data=days, train_list=TRAIN_LIST, val_list=VAL_LIST),
        *training,
        *option_words(resume=True, out=pretrained, run_dir=pretrained),
    ]
    return [
        simulation_job("days", days, size, frames, *only_days),
        Job(
            "pretrained",
            arguments,
            pretrained / "baseline.pth",
            ("days",),
            alone=True,
            leaves=training_state(pretrained),
        ),
    ]


def in_float16(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict with its matrices and kernels in float16; vectors stay as they are."""
    return {name: value.half() if value.ndim > 1 else value for name, value in state.items()}


def write_day_detector(trained: Path, file: Path) -> None:
    """Write trained weights in float16, and the JSON beside them, without an AP."""
    save_torch(in_float16(read_state(trained)), file)
    settings = read_settings(trained)
    content = {name: settings[name] for name in SETTINGS}
    content |= {
        "data": f"simulated days of {SIZE} px: {FRAMES} for training, validation and test",
        "training": f"train_baseline.py {TRAINING}",
        "trained_by": settings["versions"],
        "sha256": sha256_of(file),
        "command": "python -m cmkd.study.day_detector",
    }
    save_json(content, settings_file(file))


def main() -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/day_detector"), help="(default: runs/day_detector)"
    )
    parser.add_argument(
        "--to", type=Path, default=DAY_DETECTOR, help="(default: pretrained/rgb_day.pth)"
    )
    args = parser.parse_args()
    trained = args.out / "pretrained/baseline.pth"
    jobs = day_jobs(args.out, SIZE, FRAMES, TRAINING.split())
    report_failures(run_jobs(jobs, args.out, 1), len(jobs))
    write_day_detector(trained, args.to)

    test = evaluation_job(
        "test", "pretrained", args.out / "test", [args.to], args.out / "day", [VAL_LIST], []
    )
    report_failures(run_jobs([*jobs, test], args.out, 1), 1)
    metrics = read_json(test.makes, "remove it")["metrics"][VAL_LIST]
    [val] = metrics.values()
    beside = settings_file(args.to)
    save_json({**read_json(beside, "remove it"), "val": val}, beside)
    print(f"{args.to}: AP {val['AP']:.4f} by day, {args.to.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)

"""The whole comparison on one command: teacher, baseline and every student, with several seeds, in one table.

    python reproduce.py --preset smoke --out runs/demo            # `make demo`: a few minutes on any machine
    python reproduce.py --preset cpu --seeds 0 1 2                # the study of docs/results.md, hours on two cores
    python reproduce.py --preset paper --data data --seeds 0 1 2  # the paper's table, on its data set

Simulates days and nights where no --data is given, pretrains an RGB detector on the days (in place of COCO weights,
which not everyone can download), trains all networks from it as a user would, and tests them. OUT/results.md is the
table, results.json all numbers, results.png the picture, comparison.html a page with frames of the first seed. A second
call goes on where the first stopped; what fails is named, and leaves a hole in the table.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from cmkd.runtime.failures import run
from cmkd.study.jobs import Job, run_jobs, slots
from cmkd.study.report import NETWORKS, Study, write_results
from dataset import SeeingThroughFog
from utils import DEFAULT_CLASSES, OneLineParser, UserError, at_least, training_parser, warn

STUDENTS = tuple(name for name in NETWORKS if name.startswith("cmkd"))
TRAIN_LIST, VAL_LIST, TEST_LIST = "train_night", "val_night", "test_night"
# Options of the train scripts that may replace the preset's. Pretraining has only the first: its frames are simulated.
FOR_ALL = ("backbone", "min-size", "max-size")
FOR_COMPARED = ("init", "stem", "epochs", "batch-size", "lr", "classes", "ignore")
LISTS = ("classes", "ignore")


@dataclass(frozen=True)
class Preset:
    """Options of the scripts, in words. Without `nights` there is nothing to simulate, and --data is needed."""

    train: str  # of all networks, the pretrained one too
    start: str  # of the networks that are compared
    pretrain: str = ""
    size: str = ""
    days: str = ""  # frames for training, validation, test
    nights: str = ""
    needs_cuda: bool = False


# `smoke` has smaller batches and fewer epochs than the published recipe: six, as the rate falls to a tenth after five.
PRESETS = {
    "smoke": Preset(days="76 20 0", nights="56 30 60", size="213x128", pretrain="--init none --lr 0.01",
                    train="--backbone resnet18 --min-size 128 --rois 32 --proposals 64 --batch-size 2 --flip "
                          "--workers 0 --epochs 6",
                    start="--stem inflate --lr 0.0025"),  # the published 0.005 for 4 frames, scaled to 2
    "cpu": Preset(days="3000 200 0", nights="800 300 300", size="213x128",
                  pretrain="--init none --lr 0.01 --batch-size 8",
                  train="--backbone resnet18 --min-size 128 --rois 32 --proposals 100 --flip --workers 0 --cache ram "
                        "--epochs 6",
                  start="--stem inflate"),
    "gpu": Preset(days="4000 200 0", nights="1500 300 300", size="427x256", needs_cuda=True,
                  pretrain="--init none --lr 0.02 --batch-size 16",
                  train="--backbone resnet18 --min-size 256 --rois 128 --proposals 300 --batch-size 8 --flip "
                        "--workers 1 --cache ram --epochs 6",
                  start="--stem inflate --lr 0.01"),
    "paper": Preset(train="--no-amp", start="", needs_cuda=True),
}


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="smoke",
                        help="smoke: minutes; cpu: hours on two cores; gpu: minutes of a large GPU; paper: the "
                             "published recipe on --data (default: smoke)")
    parser.add_argument("--out", type=Path, help="folder of everything (default: runs/PRESET)")
    parser.add_argument("--seeds", type=at_least(0), nargs="+", default=[0], metavar="N",
                        help="each trains all networks once (default: 0)")
    parser.add_argument("--students", choices=STUDENTS, nargs="+", default=STUDENTS, help="(default: all)")
    parser.add_argument("--data", type=Path, help="prepared data folder (default: simulated)")
    parser.add_argument("--train-list", default=TRAIN_LIST, help=f"(default: {TRAIN_LIST})")
    parser.add_argument("--val-list", default=VAL_LIST, help=f"which weights of a run are best (default: {VAL_LIST})")
    parser.add_argument("--test-list", default=TEST_LIST, help=f"(default: {TEST_LIST})")
    for option in (*FOR_ALL, *FOR_COMPARED):
        parser.add_argument(f"--{option}", nargs="*" if option in LISTS else None,
                            help="of the train scripts (default: the preset's)")
    parser.add_argument("--side-by-side", type=at_least(1), metavar="N",
                        help="trainings at once (default: one for each core, or what GPUs have room for)")
    parser.add_argument("--draws", type=at_least(1), default=1000, help="of frames, for intervals (default: 1000)")
    args = parser.parse_args()
    args.out = args.out or Path("runs") / args.preset
    return args


def given(args: argparse.Namespace, options: tuple[str, ...]) -> list[str]:
    """Those of the options that were given, as the train scripts take them."""
    values = {option: getattr(args, option.replace("-", "_")) for option in options}
    return [word for option, value in values.items() if value is not None
            for word in (f"--{option}", *(value if option in LISTS else [value]))]


def same_precision(preset: Preset) -> list[str]:
    """So that networks are tested as they were validated."""
    return ["--no-amp"] if "--no-amp" in preset.train else []


def preparation(args: argparse.Namespace, preset: Preset) -> list[Job]:
    """What all networks need: simulated nights where no data is given, and an RGB detector of simulated days where no
    weights are."""
    nights, days, pretrained = args.out / "data", args.out / "day", args.out / "pretrained"
    simulate = ["make_synthetic.py", "--frames-per-recording", "1", "--size", preset.size, "--out"]
    jobs = []
    if not args.data:
        jobs.append(Job("nights", [*simulate, str(nights), "--frames", *preset.nights.split()],
                        nights / "synthetic.json", alone=True))
    if preset.pretrain and not args.init:
        # Another seed draws other places.
        jobs.append(Job("days", [*simulate, str(days), "--frames", *preset.days.split(), "--mix", "clear_day=1",
                                 "--seed", "1000000"], days / "synthetic.json", alone=True))
        jobs.append(Job("pretrained", [
            "train_baseline.py", "--data", str(days), "--train-list", "train_clear_day", "--val-list", "val_clear_day",
            *preset.train.split(), *given(args, FOR_ALL), *preset.pretrain.split(), "--resume", "--out",
            str(pretrained), "--run-dir", str(pretrained)], pretrained / "baseline.pth", ("days",), alone=True))
    return jobs


def training(name: str, seed: int, args: argparse.Namespace, preset: Preset, before: list[Job]) -> tuple[Job, Job]:
    """Train a network with a seed, and test it."""
    folder, data, title = args.out / f"seed{seed}", str(args.data or args.out / "data"), f"seed{seed}/{name}"
    weights, needs = folder / f"{name}.pth", [job.name for job in before]
    options = [*preset.train.split(), *given(args, FOR_ALL), *preset.start.split(), *given(args, FOR_COMPARED)]
    if "pretrained" in needs:
        options += ["--init", str(args.out / "pretrained/baseline.pth")]
    if name in STUDENTS:
        options += ["--teacher", str(folder / "teacher.pth")]
        needs.append(f"seed{seed}/teacher")
    train = Job(title, [f"train_{name}.py", "--data", data, "--train-list", args.train_list, "--val-list",
                        args.val_list, *options, "--seed", str(seed), "--resume", "--out", str(folder), "--run-dir",
                        str(folder / name)], weights, tuple(needs))
    test = Job(f"test/{title}", ["test.py", "--weights", str(weights), "--data", data, "--lists", args.val_list,
                                 args.test_list, "--conditions", "--workers", "0", *same_precision(preset), "--json",
                                 str(folder / name / "scores.json"), "--save-detections",
                                 str(folder / name / "detections.json")], folder / name / "scores.json", (title,),
               reads=(weights,))
    return train, test


def pictures(args: argparse.Namespace, preset: Preset, names: list[str]) -> Job:
    """Who sees whom, of the first seed's networks."""
    folder = args.out / f"seed{args.seeds[0]}"
    weights = [folder / f"{name}.pth" for name in names]
    return Job("pictures", [
        "visualize.py", "--data", str(args.data or args.out / "data"), "--list", args.test_list, "--workers", "0",
        "--out", str(args.out / "gallery.png"), "--html", str(args.out / "comparison.html"), "--draws", "300",
        *same_precision(preset), "--compare", *map(str, weights)], args.out / "gallery.png", reads=tuple(weights))


def refuse_impossible(args: argparse.Namespace, preset: Preset, jobs: list[Job]) -> None:
    """Raise `UserError` for what would be found out hours later."""
    if preset.needs_cuda and not torch.cuda.is_available():
        raise UserError(f"--preset {args.preset} takes days without a GPU, and torch sees none: pass --preset cpu")
    if not preset.nights and not args.data:
        raise UserError(f"--preset {args.preset} simulates nothing: pass --data FOLDER")
    if args.val_list == args.test_list:
        raise UserError(f"--val-list and --test-list are both {args.val_list}: the list that chooses the weights "
                        "cannot judge them")
    for option, values in (("seeds", args.seeds), ("students", args.students)):
        if len(set(values)) < len(values):
            raise UserError(f"--{option} names one twice: name each once")
    if args.init and args.init not in ("coco", "imagenet", "none") and not Path(args.init).is_file():
        raise UserError(f"--init {args.init} is missing: name coco, imagenet, none or a file")
    for job in jobs:
        if job.arguments[0].startswith("train_"):
            parser = training_parser(job.name, "")
            parser.add_argument("--teacher")  # of students, and there only once it is trained
            parser.parse_args(job.arguments[1:])
    for one in (args.train_list, args.val_list, args.test_list) if args.data else ():
        frames = SeeingThroughFog(args.data, one, "rgb+gated", args.classes or DEFAULT_CLASSES, args.ignore)
        if not frames.has_boxes:
            raise UserError(f"{frames.list_file}: no frame has a box of these classes: name another list or other "
                            "--classes")


def main() -> None:
    args = parse_arguments()
    preset, started = PRESETS[args.preset], time.time()
    names, before = ["teacher", "baseline", *args.students], preparation(args, preset)
    pairs = {(name, seed): training(name, seed, args, preset, before) for name in names for seed in args.seeds}
    jobs = [*before, *(job for pair in pairs.values() for job in pair)]
    refuse_impossible(args, preset, jobs)
    failed = run_jobs(jobs, args.out, slots(args.side_by_side))
    trained = [name for name in names if pairs[name, args.seeds[0]][0].name not in failed]
    if trained:
        failed |= run_jobs([pictures(args, preset, trained)], args.out, [{}])
    for name, reason in failed.items():
        warn(f"{name}: {reason}")

    finished = {name: {seed: args.out / f"seed{seed}" / name for seed in args.seeds
                       if pairs[name, seed][1].name not in failed} for name in names}
    study = Study(args.data or args.out / "data", args.val_list, args.test_list, args.seeds, finished, args.draws)
    print(f"\n{write_results(study, args.out)}\n\n{args.out}: results.md, results.json, comparison.html, pictures; "
          f"{(time.time() - started) / 60:.1f} minutes")
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} jobs failed: see above; the same command tries them again")


if __name__ == "__main__":
    run(main)

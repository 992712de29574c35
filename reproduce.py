"""The whole comparison on one command: teacher, baseline and students, several seeds, one table.

    python reproduce.py --preset smoke --out runs/demo            # `make demo`: minutes
    python reproduce.py --preset cpu --seeds 0 1 2                # docs/results.md: hours
    python reproduce.py --preset unlabelled --seeds 0 1 2         # docs/unlabelled.md: hours
    python reproduce.py --preset paper --data data --seeds 0 1 2  # the paper's table

Without --data it simulates nights. All networks start from an RGB detector of simulated days, in
place of COCO weights, which not everyone can download: for the presets smoke, cpu and unlabelled
it is in pretrained/, for gpu it is trained first. All are trained and tested as a user would.
OUT/results.md is the table, results.json all numbers, results.png the picture, comparison.html a
page with frames of the first seed. A failed job is reported and its cells are dashes; the same
command resumes.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from cmkd.evaluation.options import add_draws, add_seeds, add_side_by_side
from cmkd.frames.annotations import DEFAULT_CLASSES
from cmkd.frames.layout import TRUE_LABELS, list_file, read_list, save_list
from cmkd.runtime.command_line import OneLineParser
from cmkd.runtime.failures import run
from cmkd.runtime.files import UserError
from cmkd.study.day_detector import BACKBONE, DAY_DETECTOR, day_jobs, simulation_job
from cmkd.study.jobs import (
    NIGHTS,
    Job,
    evaluation_job,
    option_words,
    precision_words,
    report_failures,
    run_jobs,
    training_state,
)
from cmkd.study.networks import NETWORKS, REFERENCES, STUDENTS, label_folder, weights_file
from cmkd.study.report import Study, refuse_other_val_list, write_results
from dataset import SeeingThroughFog
from utils import training_parser

PUBLISHED_STUDENTS = ("cmkd_mse", "cmkd_adv")
TRAIN_LIST, VAL_LIST, TEST_LIST = "train_night", "val_night", "test_night"
UNLABELLED_LIST = "unlabelled_night"
# Options of the train scripts that replace the preset's. Pretraining, which uses simulated frames,
# takes the first ones only.
FOR_ALL_TRAININGS = ("backbone", "min_size", "max_size")
FOR_COMPARED_NETWORKS = (
    "init",
    "stem",
    "epochs",
    "steps_per_epoch",
    "batch_size",
    "lr",
    "classes",
    "ignore",
)
TAKE_SEVERAL_VALUES = ("classes", "ignore")


@dataclass(frozen=True)
class Preset:
    """Options of the scripts. A preset without `nights` simulates nothing and needs --data."""

    train: str  # for all networks, the pretrained one too
    start: str  # for the networks that are compared
    starts_from_days: bool = False  # from the shipped day detector
    pretrain: str = ""  # trains a day detector first
    size: str = ""
    days: str = ""  # frames for training, validation, test
    nights: str = ""
    unlabelled: str = ""  # frames, and how many of them a recording has
    labelled: int = 0  # train on this many of the nights for training, if not 0
    mixed: str = ""  # for the networks that learn from unlabelled frames too
    students: tuple[str, ...] = PUBLISHED_STUDENTS
    needs_cuda: bool = False


# In proportion to the picture's area, these are more regions than the published size has.
SMALL = (
    f"--backbone {BACKBONE} --min-size 128 --rois 32 --proposals 50 --candidates 300 --flip "
    "--workers 0 --cache ram"
)
PRESETS = {
    "smoke": Preset(
        starts_from_days=True,
        nights="40 30 60",
        unlabelled="160 2",
        size="213x128",
        students=(*PUBLISHED_STUDENTS, "teacher_labels"),
        train=f"{SMALL} --batch-size 4 --epochs 3 --steps-per-epoch 15",
        # So few steps at the published 0.005 undo more of the start than they teach.
        start="--stem inflate --lr 0.001",
        mixed="--labelled-share 0.25",
    ),
    "cpu": Preset(
        starts_from_days=True,
        nights="800 300 300",
        size="213x128",
        train=f"{SMALL} --epochs 6",
        start="--stem inflate",
    ),
    "gpu": Preset(
        days="4000 200 0",
        nights="1500 300 300",
        size="427x256",
        needs_cuda=True,
        pretrain="--init none --lr 0.02 --batch-size 16",
        train="--backbone resnet18 --min-size 256 --rois 128 --proposals 300 --batch-size 8 --flip "
        "--workers 1 --cache ram --epochs 6",
        start="--stem inflate --lr 0.01",
    ),
    "unlabelled": Preset(
        starts_from_days=True,
        nights="1600 300 300",
        unlabelled="2400 4",
        labelled=100,
        size="213x128",
        students=("self_labels", "teacher_labels", "true_labels"),
        train=f"{SMALL} --batch-size 4 --epochs 6 --steps-per-epoch 200",
        start="--stem inflate",
        mixed="--labelled-share 0.25",
    ),
    "paper": Preset(train="--no-amp", start="", needs_cuda=True),
}


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default="smoke",
        help="smoke: minutes; cpu: hours on two cores; gpu: minutes on a large GPU; unlabelled: "
        "networks that label for others, hours on two cores; paper: the published recipe on --data "
        "(default: smoke)",
    )
    parser.add_argument("--out", type=Path, help="folder of everything (default: runs/PRESET)")
    add_seeds(parser)
    parser.add_argument(
        "--students",
        choices=STUDENTS,
        nargs="+",
        help="networks besides teacher and baseline (default: the preset's; with --data and no "
        "unlabelled list, those that need none)",
    )
    parser.add_argument("--data", type=Path, help="prepared data folder (default: simulated)")
    parser.add_argument("--train-list", help=f"(default: {TRAIN_LIST}, or the preset's part of it)")
    parser.add_argument(
        "--val-list", default=VAL_LIST, help=f"chooses a run's best weights (default: {VAL_LIST})"
    )
    parser.add_argument("--test-list", default=TEST_LIST, help=f"(default: {TEST_LIST})")
    parser.add_argument(
        "--unlabelled-list",
        default=UNLABELLED_LIST,
        help=f"for networks that learn from it (default: {UNLABELLED_LIST})",
    )
    for name in (*FOR_ALL_TRAININGS, *FOR_COMPARED_NETWORKS):
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            nargs="*" if name in TAKE_SEVERAL_VALUES else None,
            help="an option of the train scripts (default: the preset's)",
        )
    add_side_by_side(parser)
    add_draws(parser)
    args = parser.parse_args()
    args.out = args.out or Path("runs") / args.preset
    args.compared_data = args.data or args.out / "data"
    preset = PRESETS[args.preset]
    if not args.students:
        args.students = list(preset.students)
        if args.data and not list_file(args.data, args.unlabelled_list).is_file():
            args.students = [name for name in args.students if not NETWORKS[name].unlabelled]
    args.train_list = args.train_list or list_of_first(preset.labelled)
    return args


def given_options(args: argparse.Namespace, names: tuple[str, ...]) -> list[str]:
    """The options among `names` that the user gave, for a train script."""
    return option_words(**{name: getattr(args, name) for name in names})


def list_of_first(frames: int) -> str:
    """The train list, or the list of its first `frames` frames."""
    return f"{TRAIN_LIST}_{frames}" if frames else TRAIN_LIST


# --------------------------------------------------------------------------------------------- jobs


def preparation_jobs(args: argparse.Namespace, preset: Preset) -> list[Job]:
    """Simulated nights unless there is --data, an RGB detector of days unless there is --init."""
    jobs = []
    unlabelled = option_words(unlabelled=preset.unlabelled.split()) if preset.unlabelled else []
    if not args.data:
        jobs.append(
            simulation_job(NIGHTS, args.out / "data", preset.size, preset.nights, *unlabelled)
        )
    if preset.pretrain and not args.init:
        training = [*preset.train.split(), *given_options(args, FOR_ALL_TRAININGS)]
        training += preset.pretrain.split()
        jobs += day_jobs(args.out, preset.size, preset.days, training)
    return jobs


def write_shorter_lists(data: Path, counts: set[int]) -> None:
    """Write lists of the first frames of the train list; 0 stands for all. Raises `UserError`."""
    names = read_list(data / f"{TRAIN_LIST}.txt")
    for count in counts - {0}:
        if count > len(names):
            raise UserError(f"{data}: {TRAIN_LIST} has only {len(names)} frames, not {count}")
        save_list(names[:count], data / f"{list_of_first(count)}.txt")


def training_jobs(
    name: str, seed: int, args: argparse.Namespace, preset: Preset, before: list[Job]
) -> tuple[Job, Job]:
    """Train a network with a seed, and test it."""
    network, title = NETWORKS[name], f"seed{seed}/{name}"
    run_folder, weights = args.out / title, weights_file(args.out, seed, name)
    needs = [job.name for job in before]
    train_list = list_of_first(network.train_frames) if network.train_frames else args.train_list
    arguments = [
        f"train_{network.script}.py",
        *option_words(data=args.compared_data, train_list=train_list, val_list=args.val_list),
        *preset.train.split(),
        *given_options(args, FOR_ALL_TRAININGS),
        *preset.start.split(),
        *given_options(args, FOR_COMPARED_NETWORKS),
    ]
    if preset.starts_from_days and not args.init:
        arguments += option_words(init=DAY_DETECTOR)
    if "pretrained" in needs:
        arguments += option_words(init=args.out / "pretrained/baseline.pth")
    if network.is_student:
        arguments += option_words(teacher=weights_file(args.out, seed, "teacher"))
        needs.append(f"seed{seed}/teacher")
    if network.unlabelled:
        arguments += preset.mixed.split()
        arguments += option_words(
            unlabelled_list=args.unlabelled_list, machine_labels=label_folder(seed, network)
        )
    if network.labeller:
        needs.append(f"seed{seed}/{network.labeller}_labels/frames")
    arguments += option_words(seed=seed, resume=True, out=weights.parent, run_dir=run_folder)
    train = Job(title, arguments, weights, tuple(needs), leaves=training_state(run_folder))

    test = evaluation_job(
        f"test/{title}",
        title,
        run_folder,
        [weights],
        args.compared_data,
        [args.val_list, args.test_list],
        train.arguments,
        conditions=True,
    )
    return train, test


def labelling_job(labeller: str, seed: int, args: argparse.Namespace, preset: Preset) -> Job:
    """Label the unlabelled frames with a trained network."""
    folder = f"{labeller}_labels_seed{seed}"
    arguments = [
        "label_frames.py",
        *option_words(
            weights=weights_file(args.out, seed, labeller),
            data=args.compared_data,
            list=args.unlabelled_list,
            val_list=args.val_list,
            out=folder,
            # A study of how much labels are worth may call labelled frames unlabelled.
            also_labelled=True,
            workers=0,
        ),
        *precision_words(preset.train.split()),
    ]
    return Job(
        f"seed{seed}/{labeller}_labels/frames",
        arguments,
        args.compared_data / folder / "labels.jsonl",
        (f"seed{seed}/{labeller}",),
    )


def gallery_job(args: argparse.Namespace, preset: Preset, names: list[str]) -> Job:
    """Draw the frames on which the first seed's networks differ most."""
    weights = [weights_file(args.out, args.seeds[0], name) for name in names]
    gallery = args.out / "gallery.png"
    arguments = [
        "visualize.py",
        *option_words(
            data=args.compared_data,
            list=args.test_list,
            workers=0,
            out=gallery,
            html=args.out / "comparison.html",
            draws=300,
        ),
        *precision_words(preset.train.split()),
        *option_words(compare=weights),
    ]
    return Job(
        "pictures",
        arguments,
        gallery,
        alone=True,
        repeatable=True,
        reads=tuple(weights),
        lists=(list_file(args.compared_data, args.test_list),),
    )


# --------------------------------------------------------------------------------------------- main


def refuse_impossible(args: argparse.Namespace, preset: Preset, jobs: list[Job]) -> None:
    """Raise `UserError` for what would only be found out hours later."""
    if preset.needs_cuda and not torch.cuda.is_available():
        raise UserError(
            f"--preset {args.preset} takes days without a GPU, and torch sees none: pass --preset "
            "cpu"
        )
    if not preset.nights and not args.data:
        raise UserError(f"--preset {args.preset} simulates nothing: pass --data FOLDER")
    if args.val_list == args.test_list:
        raise UserError(
            f"--val-list and --test-list are both {args.val_list}: the list that chooses the "
            "weights cannot judge them"
        )
    for option, values in (("seeds", args.seeds), ("students", args.students)):
        if len(set(values)) < len(values):
            raise UserError(f"--{option} names one twice: name each once")
    if args.init not in (None, "coco", "imagenet", "none") and not Path(args.init).is_file():
        raise UserError(f"--init {args.init} is missing: name coco, imagenet, none or a file")
    if preset.starts_from_days and not args.init and args.backbone not in (None, BACKBONE):
        raise UserError(
            f"--preset {args.preset} starts from a {BACKBONE} of simulated days: pass --init too, "
            f"for --backbone {args.backbone}"
        )
    for job in jobs:
        if job.arguments[0].startswith("train_"):
            parser = training_parser(job.name, "")
            parser.add_argument("--teacher")  # exists only once it is trained
            parser.parse_args(job.arguments[1:])
    if args.data:
        for list_name in (args.train_list, args.val_list, args.test_list):
            refuse_empty_list(args, list_name)
        if any(NETWORKS[name].unlabelled for name in args.students):
            read_list(list_file(args.data, args.unlabelled_list))
        for name in args.students:
            if NETWORKS[name].sees_truth and not (args.data / TRUE_LABELS).is_dir():
                raise UserError(
                    f"{name} learns from {args.data / TRUE_LABELS}, which is missing: put the true "
                    "labels of the unlabelled frames there, or leave it out of --students"
                )


def refuse_empty_list(args: argparse.Namespace, list_name: str) -> None:
    """Raise `UserError` for a list that cannot be read, or has nothing to find."""
    dataset = SeeingThroughFog(
        args.data, list_name, "rgb+gated", args.classes or DEFAULT_CLASSES, args.ignore
    )
    if not dataset.has_boxes:
        raise UserError(
            f"{dataset.list_file}: no frame has a box of these classes: name another list or other "
            "--classes"
        )


def main() -> None:
    started = time.time()
    args = parse_arguments()
    preset = PRESETS[args.preset]
    names = [*REFERENCES, *args.students]
    jobs = preparation_jobs(args, preset)
    before = list(jobs)
    training_of, test_of = {}, {}
    labellers = {NETWORKS[name].labeller for name in names}
    for seed in args.seeds:  # so that a study that is interrupted has whole seeds
        for name in names:
            pair = training_jobs(name, seed, args, preset, before)
            training_of[name, seed], test_of[name, seed] = pair
            jobs += pair
            if name in labellers:
                jobs.append(labelling_job(name, seed, args, preset))
    refuse_impossible(args, preset, jobs)
    if not args.data:
        report_failures(run_jobs(before, args.out, args.side_by_side), len(before))
        write_shorter_lists(
            args.compared_data, {preset.labelled, *(NETWORKS[name].train_frames for name in names)}
        )
    for weights in (weights_file(args.out, seed, name) for seed in args.seeds for name in names):
        if weights.is_file():
            refuse_other_val_list(weights)
    failed = run_jobs(jobs, args.out, args.side_by_side)
    trained = [name for name in names if training_of[name, args.seeds[0]].name not in failed]
    if trained:
        failed |= run_jobs([gallery_job(args, preset, trained)], args.out, 1)

    finished = {name: {} for name in names}
    for (name, seed), test in test_of.items():
        if test.name not in failed:
            finished[name][seed] = test.makes.parent, weights_file(args.out, seed, name)
    study = Study(
        args.compared_data, args.val_list, args.test_list, args.seeds, finished, args.draws
    )
    table = write_results(study, args.out)
    minutes = (time.time() - started) / 60
    print(
        f"\n{table}\n\n{args.out}: results.md, results.json, comparison.html, pictures; "
        f"{minutes:.1f} minutes"
    )
    report_failures(failed, len(jobs))


if __name__ == "__main__":
    run(main)

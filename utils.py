"""The command line of scripts that run networks, what follows from it, and seeds."""

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmkd.frames.annotations import DEFAULT_CLASSES, sets_of_names
from cmkd.runtime import distributed, hardware
from cmkd.runtime.claims import may_be_written
from cmkd.runtime.command_line import (
    OneLineParser,
    at_least,
    non_negative_float,
    part_of_one,
    positive_float,
)
from cmkd.runtime.failures import warn
from cmkd.runtime.files import UserError
from cmkd.runtime.weights import read_settings, sha256_of


class NetworkParser(OneLineParser):
    """The options of every script that takes lists of frames through a network."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description)
        self.add_argument(
            "--data", type=Path, default=Path("data"), help="prepared data folder (default: data)"
        )
        self.add_argument(
            "--device",
            type=usable_device,
            default="cuda" if torch.cuda.is_available() else "cpu",
            help="cuda, cuda:1, cpu, ... (default: cuda if there is one)",
        )
        self.add_argument(
            "--batch-size", type=at_least(1), default=4, help="frames per step (published: 4)"
        )
        self.add_argument(
            "--workers",
            type=at_least(0),
            default=hardware.loader_processes(),
            help="loader processes (published: not stated; default: one for each core, at most 8, "
            "shared between the processes of a torchrun)",
        )
        self.add_argument(
            "--amp",
            action=argparse.BooleanOptionalAction,
            help="bfloat16 autocast (published: --no-amp; default: if the device computes in "
            "bfloat16)",
        )

    def parse_args(self, *given: Any) -> argparse.Namespace:
        """Parse the arguments; without `--amp` or `--no-amp` the device decides."""
        args = super().parse_args(*given)
        if args.amp is None:
            args.amp = hardware.computes_bfloat16(args.device)
        return args


def usable_device(text: str) -> torch.device:
    """argparse type: a torch device that this machine has."""
    try:
        chosen = torch.device(text)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used here: {reason}") from error
    if chosen.type == "cuda" and chosen.index is not None:
        if distributed.world_size() > 1:
            raise argparse.ArgumentTypeError(
                f"{text!r} would be used by every process: pass cuda, and each takes its own GPU"
            )
        torch.cuda.set_device(chosen)  # checkpoints hold the random state of the current GPU
    return chosen


def training_parser(name: str, description: str | None) -> NetworkParser:
    """The options common to all train scripts. `name` is the network's: teacher, baseline, ..."""
    parser = NetworkParser(description)
    parser.add_argument(
        "--train-list", default="train_night", help="DATA/<list>.txt (published: train_night)"
    )
    parser.add_argument(
        "--val-list", default="val_night", help="DATA/<list>.txt (published: val_night)"
    )
    add_unlabelled_options(parser)
    parser.add_argument(
        "--classes",
        nargs="+",
        default=list(DEFAULT_CLASSES),
        metavar="A,B",
        help="label classes; each argument is one label of the detector, made of the classes it "
        f"names; vru = all pedestrians and riders (published: {DEFAULT_CLASSES[0]})",
    )
    parser.add_argument(
        "--ignore",
        nargs="*",
        metavar="CLASS",
        help="label classes to ignore: neither objects nor background; without names DontCare, "
        "Obstacle and every *_is_group (published: off)",
    )
    parser.add_argument(
        "--flip", action="store_true", help="random horizontal flips (published: off)"
    )
    parser.add_argument(
        "--cache",
        choices=["none", "ram", "disk"],
        default="none",
        help="decode training frames once: keep them at training size in memory, or in "
        "DATA/.cache (published: none)",
    )
    parser.add_argument(
        "--accumulate",
        type=at_least(1),
        default=1,
        metavar="N",
        help="frames per step = N x --batch-size; one batch is in memory at a time (published: 1)",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile backbone and FPN; frames are padded to multiples of 128 px "
        "(published: off)",
    )
    parser.add_argument("--epochs", type=at_least(1), default=100, help="at most (published: 100)")
    parser.add_argument(
        "--steps-per-epoch",
        type=at_least(1),
        metavar="N",
        help="steps from one validation to the next; frames are taken again if they are too few "
        "(published: each frame of --train-list once)",
    )
    parser.add_argument(
        "--decay-epochs",
        type=at_least(1),
        default=5,
        metavar="N",
        help="a tenth of the learning rate every N epochs (published: 5)",
    )
    parser.add_argument(
        "--lr", type=positive_float, default=0.005, help="SGD learning rate (published: 0.005)"
    )
    parser.add_argument(
        "--patience",
        type=at_least(0),
        default=5,
        help="stop once more epochs than this have passed since the best (published: 5)",
    )
    parser.add_argument(
        "--backbone", default="resnet50", help="a torchvision ResNet (published: resnet50)"
    )
    parser.add_argument(
        "--init",
        default="coco",
        metavar="{coco,imagenet,none,FILE}",
        help="weights to start from (published: coco)",
    )
    parser.add_argument(
        "--stem",
        choices=["reinit", "inflate"],
        default="reinit",
        help="first convolution: new, or a camera's pretrained kernels, and their mean for the "
        "other camera; with --init none there are none to keep (published: reinit, for RGB too)",
    )
    parser.add_argument(
        "--min-size", type=at_least(1), default=500, help="shorter side in px (published: 500)"
    )
    parser.add_argument(
        "--max-size",
        type=at_least(1),
        default=1333,
        help="longer side in px, at most (published: 1333)",
    )
    parser.add_argument(
        "--rois",
        type=at_least(1),
        default=512,
        help="regions per frame that train the box head (published: 512)",
    )
    parser.add_argument(
        "--proposals",
        type=at_least(1),
        default=1000,
        help="regions per frame that the box head classifies in evaluation (published: 1000)",
    )
    parser.add_argument(
        "--candidates",
        type=at_least(1),
        help="regions per pyramid level that reach non-maximum suppression, in training and "
        "evaluation (published: 2000 in training, 1000 in evaluation)",
    )
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="seed of all random numbers (published: none)"
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="the same result from the same seed on CUDA too, but slower; a CPU needs no flag "
        "(published: off)",
    )
    parser.add_argument(
        "--checkpoint-minutes",
        type=positive_float,
        default=10.0,
        metavar="N",
        help="save the training state every N minutes, and after every epoch (default: 10)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="resume from RUN_DIR/last.pth if it exists"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("weights"),
        help=f"folder of the best weights, {name}.pth (default: weights)",
    )
    parser.add_argument(
        "--run-dir",
        type=Path,
        default=Path("runs") / name,
        help=f"folder of the log and the training state (default: runs/{name})",
    )
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        help="losses, validation numbers and pictures of each epoch in RUN_DIR/tensorboard "
        "(published: off)",
    )
    parser.add_argument(
        "--max-iterations", type=at_least(1), metavar="N", help="stop after N steps (smoke runs)"
    )
    return parser


def add_unlabelled_options(parser: NetworkParser) -> None:
    """The options of training on frames that no human labelled."""
    parser.add_argument(
        "--unlabelled-list",
        nargs="+",
        metavar="NAME",
        help="DATA/<list>.txt of frames to learn from whose human labels, if any, are not read "
        "(published: none)",
    )
    parser.add_argument(
        "--machine-labels",
        metavar="FOLDER",
        help="DATA/FOLDER has the labels of --unlabelled-list that label_frames.py wrote "
        "(published: none)",
    )
    parser.add_argument(
        "--labelled-share",
        type=part_of_one,
        default=0.5,
        metavar="S",
        help="share of --train-list's frames in each --batch-size frames, at least one "
        "(default: 0.5)",
    )
    parser.add_argument(
        "--machine-weight",
        type=non_negative_float,
        default=1.0,
        metavar="W",
        help="weight of the detection losses of machine-labelled frames (default: 1)",
    )
    parser.add_argument(
        "--machine-boxes",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="learn box regression from machine-labelled frames too (default: on)",
    )


def refuse_unlabelled_misuse(args: argparse.Namespace, may_lack_labels: bool) -> None:
    """Raise `UserError` if options on unlabelled frames do not fit together.

    `may_lack_labels`: whether the method learns from frames without labels too.
    """
    changed = {
        "--labelled-share": args.labelled_share != 0.5,
        "--machine-weight": args.machine_weight != 1,
        "--no-machine-boxes": not args.machine_boxes,
    }
    if not args.unlabelled_list:
        changed["--machine-labels"] = args.machine_labels is not None
        for option, is_changed in changed.items():
            if is_changed:
                raise UserError(f"{option} needs --unlabelled-list: name a list of frames")
        return
    if args.batch_size == 1:
        raise UserError(
            "--unlabelled-list needs a --batch-size of at least 2: each batch has labelled and "
            "unlabelled frames"
        )
    if args.machine_labels is None:
        del changed["--labelled-share"]
        for option, is_changed in changed.items():
            if is_changed:
                raise UserError(f"{option} needs --machine-labels: name a folder of labels")
        if not may_lack_labels:
            raise UserError(
                "--unlabelled-list needs --machine-labels: this network learns from labels alone, "
                "so label the list with label_frames.py"
            )


def detector_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `models.build_detector` in a train script's arguments."""
    return {
        "backbone": args.backbone,
        "init": args.init,
        "stem": args.stem,
        "min_size": args.min_size,
        "max_size": args.max_size,
        "rois": args.rois,
        "proposals": args.proposals,
        "candidates": args.candidates,
        "compiled": args.compile,
        "machine_weight": args.machine_weight,
        "machine_boxes": args.machine_boxes,
    }


def known_teacher_ap(args: argparse.Namespace, val_fingerprint: str) -> float | None:
    """Print and return a teacher's validation AP, 0..1, from the JSON beside its weights.

    None if the JSON is of other weights, or if the AP was measured on other frames or labels, at
    another image size or precision.
    """
    file = args.teacher
    known = read_settings(file)
    trained_on = known.get("classes", args.classes)
    if sets_of_names(trained_on) != sets_of_names(args.classes):
        warn(f"{file} was trained on other --classes: {' '.join(trained_on)}")
    if may_be_written(file):
        warn(f"{file} is still being trained: this run will not be resumed with a better one")
    here = {
        "sha256": sha256_of(file),
        "val_fingerprint": val_fingerprint,
        "min_size": args.min_size,
        "max_size": args.max_size,
        "amp": args.amp,
    }
    measured = {**known.get("arguments", {}), **known}
    if any(measured.get(name) != value for name, value in here.items()):
        print(
            f"teacher: val AP not known here; python test.py --weights {file} --data {args.data} "
            f"--lists {args.val_list} measures it"
        )
        return None
    ap = known["val"]["AP"]
    print(f"teacher: val AP {ap:.4f} (epoch {known['epoch']} of {file})")
    if ap <= 0.01:
        warn(
            "a teacher with an AP near 0 has nothing to teach: check --teacher, --data, --val-list "
            "and the image size it was trained at"
        )
    return ap


def seed_everything(*seeds: int) -> int:
    """Seed Python, numpy and torch from whole numbers, as (seed, epoch).

    Returns the derived 32-bit seed. Seeding at every epoch makes its random numbers a function of
    its number, so a resumed run draws what an uninterrupted one would have drawn.
    """
    derived = int(np.random.SeedSequence(seeds).generate_state(1)[0])
    random.seed(derived)
    np.random.seed(derived)
    torch.manual_seed(derived)
    return derived

"""What each optimisation gives: a CMKD-MSE step with all of them, against one without, in turns.

    python -m benchmarks.what_helps --json runs/bench/what_helps.json

The training is that of train_throughput.py at the published size, batch 4. Optimisations that are
not used by default are added instead. Two processes work in turns, while the other one waits; the
first turn does not count. A ratio above 1 says that the optimisation pays.
"""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.optim import SGD
from torchvision.ops import FrozenBatchNorm2d
from tqdm import tqdm

import train_cmkd_mse
from benchmarks.measure import PUBLISHED_SIZE, Side, add_device, add_turns, take_turns
from benchmarks.train_throughput import Ours, write_inputs
from cmkd.evaluation.options import add_json
from cmkd.evaluation.tables import markdown_table, print_and_save
from cmkd.runtime import hardware
from cmkd.runtime.command_line import OneLineParser
from models import LEVELS, FrozenNorm

# Name -> (options of the train script that switch it, whether it is used by default).
OPTIMISATIONS = {
    "bfloat16": (["--no-amp"], True),
    "channels_last": ([], True),
    "memory that stays with the process": ([], True),
    "frozen norm in one kernel": ([], True),
    "maps for RoIAlign in one copy": ([], True),
    "a teacher of features only": ([], True),
    "fused SGD": ([], True),
    "--cache ram": (["--cache", "none"], True),
    "--compile": (["--compile"], False),
    "inference mode for the teacher": ([], False),
}


class OursChanged(Ours):
    """Ours without one optimisation, or with one more."""

    def __init__(self, name: str, args: argparse.Namespace, folder: Path) -> None:
        if name == "memory that stays with the process":
            hardware.prepare = lambda: None
        if name == "frozen norm in one kernel":
            FrozenNorm.forward = FrozenBatchNorm2d.forward
        sgd = plain_sgd if name == "fused SGD" else SGD
        with patch.object(train_cmkd_mse, "SGD", sgd):
            super().__init__("cmkd_mse", args, folder, *OPTIMISATIONS[name][0])
        networks = (self.trained["model"], self.teacher)
        if name == "channels_last":
            for network in networks:
                network.to(memory_format=torch.contiguous_format)
        if name == "maps for RoIAlign in one copy":
            for network in networks:
                network.roi_heads._forward_pre_hooks.clear()
        if name == "a teacher of features only":
            self.teacher.backbone.register_forward_hook(
                lambda _, __, features: vars(self).update(pyramid=features)
            )
            self.teacher.features = self.whole_teacher
        if name == "inference mode for the teacher":
            self.features, self.teacher.features = self.teacher.features, self.copied_features

    def whole_teacher(self, images: list[Tensor]) -> dict[str, Tensor]:
        """The features from a detector that also detects."""
        self.teacher(images)
        return {level: self.pyramid[level] for level in LEVELS}

    def copied_features(self, images: list[Tensor]) -> dict[str, Tensor]:
        """Features from inference mode; only copies can be saved for the backward pass."""
        with torch.inference_mode():
            features = self.features(images)
        return {level: maps.clone() for level, maps in features.items()}


def plain_sgd(*given: Any, fused: bool, **named: Any) -> SGD:
    """SGD as by default: not fused."""
    return SGD(*given, **named)


def time_optimisation(
    name: str, args: argparse.Namespace, folder: Path, bar: tqdm
) -> dict[str, Any]:
    """Seconds of both sides, and how many times as fast the optimisation makes a step."""
    sides = {
        "usual": Side(partial(Ours, "cmkd_mse", args, folder)),
        "other": Side(partial(OursChanged, name, args, folder)),
    }
    seconds_of, _ = take_turns(sides, args.turns, bar)
    for side in sides.values():
        side.end()
    usual, other = (statistics.median(seconds) for seconds in seconds_of.values())
    _, by_default = OPTIMISATIONS[name]
    return {"seconds": seconds_of, "ratio": other / usual if by_default else usual / other}


def main() -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument(
        "--measures",
        nargs="+",
        choices=OPTIMISATIONS,
        default=list(OPTIMISATIONS),
        help="default: all",
    )
    add_turns(parser, 2)
    add_device(parser)
    add_json(parser)
    args = parser.parse_args()
    args.backbone, args.min_size, args.batch_size, args.steps = "resnet50", 500, 4, 1
    args.rois, args.size, args.workers = 512, PUBLISHED_SIZE, hardware.loader_processes()
    results = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=len(args.measures) * 2 * (1 + args.turns), unit="turn", disable=None) as bar,
    ):
        write_inputs(args, Path(folder))
        for name in args.measures:
            bar.set_description(name)
            results[name] = time_optimisation(name, args, Path(folder), bar)
    rows = [["measure", "used by default", "times as fast with it"]]
    for name, result in results.items():
        _, by_default = OPTIMISATIONS[name]
        rows.append([name, "yes" if by_default else "no", f"{result['ratio']:.2f}"])
    print_and_save(markdown_table(rows), {"results": results}, args.json)


if __name__ == "__main__":
    main()

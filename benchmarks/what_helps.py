"""What each measure gives: a CMKD-MSE step with all of them, in turns with a step without one, or with one more.

    python -m benchmarks.what_helps --json runs/bench/what_helps.json

The training is that of train_throughput.py at the published size, batch 4. Two processes work in turns, the other one
waiting; the first turn does not count. A ratio above 1 says that the measure pays.
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
from benchmarks.measure import Side, report, simulate, table
from benchmarks.train_throughput import Ours, save_starting_weights
from cmkd.runtime import hardware
from models import LEVELS, FrozenNorm
from utils import OneLineParser, at_least, device

# Name -> (options of the train script, whether the name is left out rather than added).
MEASURES = {
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


class Variant(Ours):
    """Ours without a measure, or with one more."""

    def __init__(self, measure: str, args: argparse.Namespace, folder: Path) -> None:
        if measure == "memory that stays with the process":
            hardware.prepare = lambda: None
        if measure == "frozen norm in one kernel":
            FrozenNorm.forward = FrozenBatchNorm2d.forward
        plain_sgd = (lambda *given, fused, **named: SGD(*given, **named)) if measure == "fused SGD" else SGD
        with patch.object(train_cmkd_mse, "SGD", plain_sgd):
            super().__init__("cmkd_mse", args, folder, *MEASURES[measure][0])
        networks = (self.trained["model"], self.teacher)
        if measure == "channels_last":
            for network in networks:
                network.to(memory_format=torch.contiguous_format)
        if measure == "maps for RoIAlign in one copy":
            for network in networks:
                network.roi_heads._forward_pre_hooks.clear()
        if measure == "a teacher of features only":
            self.teacher.backbone.register_forward_hook(lambda _, __, features: vars(self).update(pyramid=features))
            self.teacher.features = self.whole_teacher
        if measure == "inference mode for the teacher":
            self.features, self.teacher.features = self.teacher.features, self.copied_features

    def whole_teacher(self, images: list[Tensor]) -> dict[str, Tensor]:
        """The features, of a detector that also detects."""
        self.teacher(images)
        return {level: self.pyramid[level] for level in LEVELS}

    def copied_features(self, images: list[Tensor]) -> dict[str, Tensor]:
        """Features from inference mode; only copies can be saved for the backward pass."""
        with torch.inference_mode():
            features = self.features(images)
        return {level: maps.clone() for level, maps in features.items()}


def compare(measure: str, args: argparse.Namespace, folder: Path, bar: tqdm) -> dict[str, Any]:
    """Seconds of both sides, and how many times as fast the measure makes a step."""
    sides = {"usual": Side(partial(Ours, "cmkd_mse", args, folder)),
             "other": Side(partial(Variant, measure, args, folder))}
    seconds_of = {name: [] for name in sides}
    for turn in range(1 + args.turns):
        for name, side in sides.items():
            taken, _ = side.ask("turn")
            seconds_of[name] += [taken] if turn else []
            bar.update()
    for side in sides.values():
        side.end()
    usual, other = (statistics.median(seconds_of[name]) for name in ("usual", "other"))
    return {"seconds": seconds_of, "ratio": other / usual if MEASURES[measure][1] else usual / other}


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=list(MEASURES), help="default: all")
    parser.add_argument("--turns", type=at_least(1), default=2, help="turns that count; their median does (default: 2)")
    parser.add_argument("--device", type=device, default=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, and the table beside them")
    args = parser.parse_args()
    args.backbone, args.min_size, args.batch_size = "resnet50", 500, 4
    results = {}
    with tempfile.TemporaryDirectory() as folder, tqdm(total=len(args.measures) * 2 * (1 + args.turns), unit="turn",
                                                       disable=None) as bar:
        simulate(Path(folder) / "data", args.batch_size)
        for channels in (3, 6):
            save_starting_weights(channels, args, Path(folder) / f"{channels}.pth")
        for measure in args.measures:
            bar.set_description(measure)
            results[measure] = compare(measure, args, Path(folder), bar)
    rows = [[measure, "yes" if MEASURES[measure][1] else "no", f"{result['ratio']:.2f}"]
            for measure, result in results.items()]
    report(table(["measure", "used by default", "times as fast with it"], rows), {"results": results}, args.json)


if __name__ == "__main__":
    main()

"""A pass over a validation list: ours against the published way, in turns, and their agreement.

    python -m benchmarks.evaluate_throughput --json runs/bench/evaluate_throughput.json
    python -m benchmarks.evaluate_throughput --weights runs/demo/seed0/teacher.pth \\
        --data runs/demo/data

Without `--weights`, a ResNet-50 with random weights on simulated frames of the published size: the
same work, and enough boxes to compare, but no AP. The published way takes one frame after another
in float32; ours is `predict.predict`, in float32 and in bfloat16. All sides decode the files in
every pass, with as many processes.
"""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.measure import Side, add_device, add_turns, simulate, take_turns
from benchmarks.reference import PlainDetector
from cmkd.evaluation.metrics import Results, coco_metrics
from cmkd.evaluation.options import add_json
from cmkd.evaluation.predict import predict, to_coco_results
from cmkd.evaluation.tables import markdown_table, print_and_save
from cmkd.frames.annotations import DEFAULT_CLASSES
from cmkd.runtime import hardware
from cmkd.runtime.command_line import OneLineParser, at_least
from cmkd.runtime.weights import read_settings
from dataset import SeeingThroughFog, make_loader
from models import Detector, load_detector

AIM = 1.8
PLAIN_SETTINGS = (
    "channels",
    "backbone",
    "norm",
    "min_size",
    "max_size",
    "proposals",
    "num_classes",
)


def open_list(args: argparse.Namespace, modality: str) -> SeeingThroughFog:
    """The list, with the classes that the weights were trained on."""
    settings = read_settings(args.weights)
    classes = settings.get("classes", DEFAULT_CLASSES)
    return SeeingThroughFog(args.data, args.list, modality, classes, settings.get("ignore"))


class Published:
    """torchvision's detector, one frame at a time."""

    def __init__(self, args: argparse.Namespace) -> None:
        ours = load_detector(args.weights)
        dataset = open_list(args, ours.settings["modality"])
        self.loader = make_loader(dataset, 1, hardware.loader_processes())
        self.device = args.device
        settings = {name: ours.settings[name] for name in PLAIN_SETTINGS}
        self.detector = PlainDetector(**settings).eval()
        self.detector.load_state_dict(ours.state_dict())
        self.detector.to(self.device)

    @torch.no_grad()
    def turn(self) -> Results:
        """A pass."""
        results = []
        for images, targets in self.loader:
            found = self.detector([(image.float() / 255).to(self.device) for image in images])
            results += to_coco_results(found, targets)
        return results


class Ours:
    """`predict.predict`."""

    def __init__(self, args: argparse.Namespace, amp: bool) -> None:
        hardware.prepare()
        self.detector, self.amp = load_detector(args.weights).to(args.device), amp
        dataset = open_list(args, self.detector.settings["modality"])
        self.loader = make_loader(dataset, args.batch_size, hardware.loader_processes())

    def turn(self) -> Results:
        """A pass."""
        return predict(self.detector, self.loader, self.amp)


def largest_differences(results: Results, reference: Results) -> dict[str, float]:
    """The number of boxes on each side, and the largest difference of a coordinate and a score.

    Coordinates are in px. Boxes are paired frame by frame in the order of scores; there is no
    difference to give if their numbers differ.
    """
    differences = {"boxes": len(results), "expected": len(reference)}
    if len(results) != len(reference):
        return differences

    def order(result: dict[str, Any]) -> tuple[int, float]:
        return result["image_id"], -result["score"]

    pixels, scores = [], []
    for one, other in zip(sorted(results, key=order), sorted(reference, key=order), strict=True):
        pixels += [abs(a - b) for a, b in zip(one["bbox"], other["bbox"], strict=True)]
        scores.append(abs(one["score"] - other["score"]))
    return {**differences, "pixels": max(pixels), "score": max(scores)}


def throughput_rows(
    rates: dict[str, float],
    metrics: dict[str, dict[str, float]],
    differences: dict[str, dict[str, float]],
) -> list[list[Any]]:
    """A heading, then a row per side. `metrics` may be empty."""
    rows = [["pass", "img/s", "ratio", "AP", "boxes", "furthest box, px", "furthest score"]]
    [plain, *_] = rates
    for name, rate in rates.items():
        ap = f"{metrics[name]['AP']:.4f}" if metrics else "-"
        row = [name, f"{rate:.3g}", f"{rate / rates[plain]:.1f}", ap, differences[name]["boxes"]]
        for what in ("pixels", "score"):
            known = what in differences[name]
            row.append(f"{differences[name][what]:.1g}" if known else "-")
        rows.append(row)
    return rows


def add_pass(parser: argparse.ArgumentParser) -> None:
    """The options of how a list is passed over, and of what is measured."""
    parser.add_argument("--batch-size", type=at_least(1), default=4, help="ours (default: 4)")
    add_turns(parser, 3)
    add_device(parser)
    add_json(parser)


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    parser.add_argument("--weights", type=Path, help="trained weights (default: random ones)")
    parser.add_argument(
        "--data", type=Path, help="prepared data folder (default: simulated frames)"
    )
    parser.add_argument("--list", default="val_night", help="default: val_night")
    parser.add_argument(
        "--frames", type=at_least(1), default=16, help="simulated frames (default: 16)"
    )
    add_pass(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    random_weights = not args.weights
    with tempfile.TemporaryDirectory() as folder:
        if not args.data:
            args.data = simulate(Path(folder) / "data", 1, val=args.frames)
        if random_weights:
            torch.manual_seed(0)
            args.weights = Path(folder) / "random.pth"
            torch.save(Detector(3, 2, "resnet50", "batch").state_dict(), args.weights)
        truth = open_list(args, "rgb").ground_truth()
        makers = {
            "published, batch 1, float32": partial(Published, args),
            f"ours, batch {args.batch_size}, float32": partial(Ours, args, False),
        }
        if hardware.computes_bfloat16(args.device):
            makers[f"ours, batch {args.batch_size}, bfloat16"] = partial(Ours, args, True)
        sides = {name: Side(maker) for name, maker in makers.items()}
        with tqdm(total=len(sides) * (1 + args.turns), unit="turn", disable=None) as bar:
            seconds_of, found = take_turns(sides, args.turns, bar)
        for side in sides.values():
            side.end()

    count = len(truth["images"])
    [plain, *_] = sides
    medians = {name: count / statistics.median(values) for name, values in seconds_of.items()}
    differences = {name: largest_differences(found[name], found[plain]) for name in sides}
    metrics = {}
    if not random_weights:
        metrics = {name: coco_metrics(truth, results) for name, results in found.items()}
    numbers = {
        "frames": count,
        "seconds": seconds_of,
        "images_per_second": medians,
        "metrics": metrics,
        "differences": differences,
        "aim": AIM,
    }
    rows = throughput_rows(medians, metrics, differences)
    print_and_save(f"{markdown_table(rows)}\n\nAim: {AIM} times.", numbers, args.json)


if __name__ == "__main__":
    main()

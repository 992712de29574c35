"""A pass over a validation list: ours against the published way, in turns, and whether both find the same.

    python -m benchmarks.evaluate_throughput --json runs/bench/evaluate_throughput.json
    python -m benchmarks.evaluate_throughput --weights runs/demo/seed0/teacher.pth --data runs/demo/data

Without `--weights`, a ResNet-50 of random weights on simulated frames of the published size: the same work, and boxes
enough to compare, but no AP. The published way takes one frame after another in float32; ours is `engine.predict`, in
float32 and as it is by default. Files are decoded each time on all sides, by as many processes.
"""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import engine
from benchmarks.measure import Side, report, simulate, table
from benchmarks.reference import PlainDetector
from cmkd.evaluation.metrics import coco_metrics, to_coco_results
from cmkd.runtime import hardware
from dataset import MODALITY, SeeingThroughFog, make_loader
from models import Detector, load_detector, read_settings
from utils import DEFAULT_CLASSES, OneLineParser, at_least, device

AIM = 1.8


def frames(args: argparse.Namespace, channels: int) -> SeeingThroughFog:
    """The list, as the weights were trained."""
    trained_with = read_settings(args.weights)
    return SeeingThroughFog(args.data, args.list, MODALITY[channels], trained_with.get("classes", DEFAULT_CLASSES),
                            trained_with.get("ignore"))


class Published:
    """torchvision's detector, a frame at a time."""

    def __init__(self, args: argparse.Namespace) -> None:
        ours = load_detector(args.weights)
        self.loader = make_loader(frames(args, ours.settings["channels"]), 1, hardware.loader_processes())
        self.device = args.device
        self.detector = PlainDetector(**{name: ours.settings[name] for name in (
            "channels", "backbone", "norm", "min_size", "max_size", "proposals", "num_classes")}).eval()
        self.detector.load_state_dict(ours.state_dict())
        self.detector.to(self.device)

    @torch.no_grad()
    def turn(self) -> list[dict[str, Any]]:
        """The results."""
        results = []
        for images, targets in self.loader:
            found = self.detector([(image.float() / 255).to(self.device) for image in images])
            results += to_coco_results(found, targets)
        return results


class Ours:
    """`engine.predict`."""

    def __init__(self, args: argparse.Namespace, amp: bool) -> None:
        hardware.prepare()
        self.detector, self.amp = load_detector(args.weights).to(args.device), amp
        self.loader = make_loader(frames(args, self.detector.settings["channels"]), args.batch_size,
                                  hardware.loader_processes())

    def turn(self) -> list[dict[str, Any]]:
        """The results."""
        return engine.predict(self.detector, self.loader, self.amp)


def difference(results: list[dict[str, Any]], reference: list[dict[str, Any]]) -> dict[str, float]:
    """How many boxes each side has, and the largest difference of a coordinate (px) and a score, frame by frame in the
    order of scores."""
    if len(results) != len(reference):
        return {"boxes": len(results), "expected": len(reference)}
    order = [sorted(one, key=lambda result: (result["image_id"], -result["score"])) for one in (results, reference)]
    pairs = list(zip(*order, strict=True))
    return {"boxes": len(results), "expected": len(reference),
            "pixels": max(abs(a - b) for one, other in pairs for a, b in zip(one["bbox"], other["bbox"], strict=True)),
            "score": max(abs(one["score"] - other["score"]) for one, other in pairs)}


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="trained weights (default: random ones)")
    parser.add_argument("--data", type=Path, help="prepared data folder (default: simulated frames)")
    parser.add_argument("--list", default="val_night", help="default: val_night")
    parser.add_argument("--frames", type=at_least(1), default=16, help="simulated frames (default: 16)")
    parser.add_argument("--batch-size", type=at_least(1), default=4, help="ours (default: 4)")
    parser.add_argument("--turns", type=at_least(1), default=3, help="passes that count; the median does (default: 3)")
    parser.add_argument("--device", type=device, default=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, and the table beside them")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not args.data:
            args.data = simulate(Path(folder) / "data", 1, val=args.frames)
        random_weights = not args.weights
        if random_weights:
            torch.manual_seed(0)
            args.weights = Path(folder) / "random.pth"
            torch.save(Detector(3, 2, "resnet50", "batch").state_dict(), args.weights)
        truth = frames(args, 3).ground_truth()
        count = len(truth["images"])
        makers = {"published, batch 1, float32": partial(Published, args),
                  f"ours, batch {args.batch_size}, float32": partial(Ours, args, False),
                  f"ours, batch {args.batch_size}, bfloat16": partial(Ours, args, True)}
        if not hardware.computes_bfloat16(args.device):
            makers.popitem()
        sides = {name: Side(maker) for name, maker in makers.items()}
        seconds_of, found = {name: [] for name in sides}, {}
        for turn in tqdm(range(1 + args.turns), unit="turn", disable=None):
            for name, side in sides.items():
                taken, found[name] = side.ask("turn")
                seconds_of[name] += [taken] if turn else []
        for side in sides.values():
            side.end()
    metrics = {} if random_weights else {name: coco_metrics(truth, results) for name, results in found.items()}
    [plain, *_] = sides
    medians = {name: count / statistics.median(values) for name, values in seconds_of.items()}
    differences = {name: difference(found[name], found[plain]) for name in sides}
    rows = [[name, f"{medians[name]:.3g}", f"{medians[name] / medians[plain]:.1f}",
             f"{metrics[name]['AP']:.4f}" if metrics else "-", differences[name]["boxes"],
             *(f"{differences[name][what]:.1g}" if what in differences[name] else "-" for what in ("pixels", "score"))]
            for name in sides]
    report(table(["pass", "img/s", "ratio", "AP", "boxes", "furthest box, px", "furthest score"], rows)
           + f"\n\nAim: {AIM} times.",
           {"frames": count, "seconds": seconds_of, "images_per_second": medians, "metrics": metrics,
            "differences": differences, "aim": AIM}, args.json)


if __name__ == "__main__":
    main()

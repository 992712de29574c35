"""Measure the student's latency: from a 1280x768 RGB picture in memory (uint8) to its detections.

    python -m benchmarks.inference --json runs/bench/inference.json

Weights are random: the network does the same work, and finds as many boxes as it may give (100),
the worst case for what follows it. Batches of 1 and 8, bfloat16 and float32, the published size and
half of it.
"""

import argparse
import itertools
import statistics

import torch
from tqdm import tqdm

from benchmarks.measure import add_device, timed
from cmkd.evaluation.options import add_json
from cmkd.evaluation.tables import markdown_table, print_and_save
from cmkd.runtime import hardware
from cmkd.runtime.command_line import OneLineParser, at_least
from models import Detector

WARM_UP_CALLS = 2
HEADING = ["size, px", "batch", "computed in", "median, ms", "longest, ms", "img/s"]


@torch.inference_mode()
def detect_and_fetch(student: Detector, pictures: torch.Tensor, amp: bool) -> None:
    """Run the student on a batch, uint8 `[B, 3, H, W]` in memory, and bring the boxes back."""
    target = next(student.parameters()).device
    with torch.autocast(target.type, torch.bfloat16, enabled=amp):
        detections = student([picture.to(target) for picture in pictures])
    for detection in detections:
        detection["boxes"].cpu()


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    parser.add_argument("--backbone", default="resnet50", help="default: resnet50")
    parser.add_argument(
        "--sizes", nargs="+", type=at_least(1), default=[500, 250], help="default: 500 250"
    )
    parser.add_argument(
        "--batch-sizes", nargs="+", type=at_least(1), default=[1, 8], help="default: 1 8"
    )
    parser.add_argument(
        "--rounds", type=at_least(1), default=10, help="timed calls of each case (default: 10)"
    )
    add_device(parser)
    add_json(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    hardware.prepare()
    torch.manual_seed(0)
    pictures = torch.randint(0, 256, (max(args.batch_sizes), 3, 768, 1280), dtype=torch.uint8)
    results, rows = [], [HEADING]
    cases = list(itertools.product(args.sizes, args.batch_sizes, (True, False)))
    for size, batch, amp in tqdm(cases, disable=None):
        student = Detector(3, 2, args.backbone, "batch", min_size=size).to(args.device).eval()
        call = student, pictures[:batch], amp
        for _ in range(WARM_UP_CALLS):
            detect_and_fetch(*call)
        seconds = sorted(timed(detect_and_fetch, *call)[0] for _ in range(args.rounds))
        median = statistics.median(seconds)
        result = {"min_size": size, "batch": batch, "bfloat16": amp}
        results.append({**result, "seconds": seconds, "median": median})
        milliseconds = [f"{1000 * median:.0f}", f"{1000 * seconds[-1]:.0f}"]
        computed_in = "bfloat16" if amp else "float32"
        rows.append([size, batch, computed_in, *milliseconds, f"{batch / median:.2f}"])
    figures = {"results": results, "backbone": args.backbone}
    print_and_save(markdown_table(rows), figures, args.json)


if __name__ == "__main__":
    main()

"""Latency of the deployed student: from one 1280x768 RGB picture in memory (uint8) to boxes, labels and scores.

    python -m benchmarks.inference --json runs/bench/inference.json

Random weights: the network does the same work, and finds as many boxes as it may give (100), which is the worst case
for what follows it. Batches of 1 and 8, bfloat16 and float32, the published size, and half of it.
"""

import argparse
import statistics
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.measure import report, table, timed
from cmkd.runtime import hardware
from models import Detector
from utils import OneLineParser, at_least, device


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50", help="default: resnet50")
    parser.add_argument("--sizes", nargs="+", type=at_least(1), default=[500, 250], help="default: 500 250")
    parser.add_argument("--batch-sizes", nargs="+", type=at_least(1), default=[1, 8], help="default: 1 8")
    parser.add_argument("--rounds", type=at_least(1), default=10, help="calls; their median counts (default: 10)")
    parser.add_argument("--device", type=device, default=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, and the table beside them")
    args = parser.parse_args()
    hardware.prepare()
    torch.manual_seed(0)
    results, cases = [], [(size, batch, amp) for size in args.sizes for batch in args.batch_sizes
                          for amp in (True, False)]
    pictures = torch.randint(0, 256, (max(args.batch_sizes), 3, 768, 1280), dtype=torch.uint8)
    for size, batch, amp in tqdm(cases, disable=None):
        student = Detector(3, 2, args.backbone, "batch", min_size=size).to(args.device).eval()

        @torch.inference_mode()
        def detect(student: Detector = student, batch: int = batch, amp: bool = amp) -> None:
            with torch.autocast(args.device.type, torch.bfloat16, enabled=amp):
                found = student([picture.to(args.device) for picture in pictures[:batch]])
            for one in found:
                one["boxes"].cpu()

        for _ in range(2):
            detect()
        times = sorted(timed(detect)[0] for _ in range(args.rounds))
        results.append({"min_size": size, "batch": batch, "bfloat16": amp, "seconds": times,
                        "median": statistics.median(times)})
    rows = [[one["min_size"], one["batch"], "bfloat16" if one["bfloat16"] else "float32",
             f"{1000 * one['median']:.0f}", f"{1000 * one['seconds'][-1]:.0f}", f"{one['batch'] / one['median']:.2f}"]
            for one in results]
    report(table(["size, px", "batch", "computed in", "median, ms", "longest, ms", "img/s"], rows),
           {"results": results, "backbone": args.backbone}, args.json)


if __name__ == "__main__":
    main()

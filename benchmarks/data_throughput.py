"""Frames per second from disk to a tensor at training size: decoding each time, and `--cache`.

    python -m benchmarks.data_throughput --json runs/bench/data_throughput.json

Simulated frames of the published size (1280x768, four PNGs each) at the published training size (500 px). One process
loads them all, in turns: as the published way does (decode, then the detector's resize), ours on a first pass (decode,
resize, store), and ours from then on. The files are in the system's page cache, so this is work of the processor.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measure import report, simulate, table
from cmkd.frames.cache import resize, training_size
from dataset import SeeingThroughFog
from utils import OneLineParser, at_least

AIM = 10  # times the reference
SIZE = training_size(768, 1280, 500, 1333)


def frames_per_second(read: Callable[[int], object], frames: int) -> float:
    """How many frames a second `read` gives."""
    started = time.perf_counter()
    for index in range(frames):
        read(index)
    return frames / (time.perf_counter() - started)


def memory_bandwidth() -> float:
    """Bytes per second of copying a large tensor, read and written bytes counted once."""
    source = torch.zeros(256 * 1024 * 1024, dtype=torch.uint8)
    target = torch.empty_like(source)
    target.copy_(source)
    started = time.perf_counter()
    for _ in range(5):
        target.copy_(source)
    return 5 * len(source) / (time.perf_counter() - started)


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=at_least(1), default=40, help="simulated frames (default: 40)")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="turns; the median counts (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rates: dict[str, list[float]] = {"reference": [], "first pass": [], "cached": []}
    with tempfile.TemporaryDirectory() as folder:
        data = simulate(Path(folder) / "data", args.frames)
        plain = SeeingThroughFog(data, "train_night")
        for _ in range(args.rounds):
            rates["reference"].append(frames_per_second(lambda index: resize(plain[index][0], SIZE), args.frames))
            kept = SeeingThroughFog(data, "train_night")
            kept.decode_once("disk", 500, 1333)
            rates["first pass"].append(frames_per_second(kept.__getitem__, args.frames))
            rates["cached"].append(frames_per_second(kept.__getitem__, args.frames))
            kept.cache.file.unlink()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    copied = medians["cached"] * 6 * SIZE[0] * SIZE[1] / memory_bandwidth()
    rows = [[name, f"{rate:.1f}", f"{rate / medians['reference']:.1f}"] for name, rate in medians.items()]
    report(table(["loading", "frames/s", "times the reference"], rows)
           + f"\n\nCached: {copied:.0%} of what one core copies in memory. Aim: {AIM} times the reference.",
           {"frames_per_second": rates, "median": medians, "aim": AIM, "share_of_memory_copy": copied, "size": SIZE},
           args.json)


if __name__ == "__main__":
    main()

"""Frames per second from disk to a tensor at training size: decoding each time, and `--cache`.

    python -m benchmarks.data_throughput --json runs/bench/data_throughput.json

Simulated frames of the published size (1280x768, four PNGs each) at the published training size
(500 px). One process loads them all, in turns: the published way (decode, then the detector's
resize), the first pass with a cache (decode, resize, store), and later passes. The files are in the
system's page cache, so the processor's work is measured.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measure import simulate
from cmkd.evaluation.options import add_json
from cmkd.evaluation.tables import markdown_table, print_and_save
from cmkd.frames.cache import resize, training_size
from cmkd.runtime.command_line import OneLineParser, at_least
from dataset import SeeingThroughFog

AIM = 10  # times the reference
MIN_SIZE, MAX_SIZE = 500, 1333  # px
SIZE = training_size(768, 1280, MIN_SIZE, MAX_SIZE)


def frames_per_second(read: Callable[[int], object], frames: int) -> float:
    """How many frames per second `read` returns."""
    started = time.perf_counter()
    for index in range(frames):
        read(index)
    return frames / (time.perf_counter() - started)


def memory_bandwidth() -> float:
    """Bytes per second when a large tensor is copied."""
    source = torch.zeros(256 * 1024 * 1024, dtype=torch.uint8)
    target = torch.empty_like(source)
    target.copy_(source)
    started = time.perf_counter()
    for _ in range(5):
        target.copy_(source)
    return 5 * len(source) / (time.perf_counter() - started)


def measure_rates(data: Path, frames: int, rounds: int) -> dict[str, list[float]]:
    """Frames per second of each way of loading, in each round."""
    rates: dict[str, list[float]] = {"reference": [], "first pass": [], "cached": []}
    plain = SeeingThroughFog(data, "train_night")
    for _ in range(rounds):
        rates["reference"].append(
            frames_per_second(lambda index: resize(plain[index][0], SIZE), frames)
        )
        cached = SeeingThroughFog(data, "train_night")
        cached.use_cache("disk", MIN_SIZE, MAX_SIZE)
        rates["first pass"].append(frames_per_second(cached.__getitem__, frames))
        rates["cached"].append(frames_per_second(cached.__getitem__, frames))
        cached.cache.file.unlink()
    return rates


def main() -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument(
        "--frames", type=at_least(1), default=40, help="simulated frames (default: 40)"
    )
    parser.add_argument(
        "--rounds", type=at_least(1), default=5, help="turns; the median counts (default: 5)"
    )
    add_json(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = simulate(Path(folder) / "data", args.frames)
        rates = measure_rates(data, args.frames, args.rounds)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    frame_bytes = 6 * SIZE[0] * SIZE[1]
    share_of_copy = medians["cached"] * frame_bytes / memory_bandwidth()
    rows = [["loading", "frames/s", "times the reference"]]
    for name, rate in medians.items():
        rows.append([name, f"{rate:.1f}", f"{rate / medians['reference']:.1f}"])
    text = (
        f"{markdown_table(rows)}\n\nCached: {share_of_copy:.0%} of what one core copies in memory. "
        f"Aim: {AIM} times the reference."
    )
    numbers = {
        "frames_per_second": rates,
        "median": medians,
        "aim": AIM,
        "share_of_memory_copy": share_of_copy,
        "size": SIZE,
    }
    print_and_save(text, numbers, args.json)


if __name__ == "__main__":
    main()

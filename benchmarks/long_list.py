"""A long list: the time and memory to open it, and what a loader worker copies of it.

    python -m benchmarks.long_list --frames 1000 100000 --json runs/bench/long_list.json

Every frame is links to the files of one of 20 simulated frames. A new process opens the list with
six channels. Then a loader worker reads every frame's target; pictures are not decoded. Memory is
private: pages that processes share do not count. Needs Linux.
"""

import itertools
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from benchmarks.measure import Side, simulate
from cmkd.evaluation.options import add_json
from cmkd.evaluation.tables import markdown_table, print_and_save
from cmkd.frames.layout import IMAGE_FOLDERS, LABEL_FOLDER, save_list
from cmkd.runtime.command_line import OneLineParser, at_least
from dataset import SeeingThroughFog

AIM_SECONDS, AIM_BYTES = 20, 100e6  # for 100,000 frames
SIMULATED = 20  # frames
BATCH = 100  # frames
TURNS = 3


class WithoutPictures(SeeingThroughFog):
    """Samples have their boxes, and a picture of one pixel."""

    def _decode(self, index: int) -> Tensor:
        return torch.zeros(6, 1, 1, dtype=torch.uint8)


class Opening:
    """A process that opens a list."""

    def __init__(self, root: Path) -> None:
        self.root = root
        torch.set_num_threads(1)

    def open(self) -> dict[str, float]:
        """Open the list: seconds, bytes that it adds, bytes that it adds at its peak."""
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        before, peak_before = memory("smaps_rollup", "Private_Dirty"), memory("status", "VmRSS")
        started = time.perf_counter()
        self.dataset = WithoutPictures(self.root, "long")
        return {
            "seconds": time.perf_counter() - started,
            "bytes": memory("smaps_rollup", "Private_Dirty") - before,
            "peak_bytes": memory("status", "VmHWM") - peak_before,
        }

    def read(self) -> int:
        """Read every target in a worker: the bytes that it copied or made from the first batch."""
        self.dataset.reading = torch.zeros(1, 2, dtype=torch.int64).share_memory_()
        loader = DataLoader(
            self.dataset,
            BATCH,
            num_workers=1,
            collate_fn=own_bytes,
            multiprocessing_context="fork",  # not that of this process, which was spawned
        )
        first, *_, last = loader
        return last - first

    def fingerprint(self) -> str:
        """The hash that stands beside an AP."""
        return self.dataset.fingerprint


def own_bytes(samples: list) -> int:
    """The private bytes of a worker's process."""
    return memory("smaps_rollup", "Private_Dirty")


def memory(file: str, field: str) -> int:
    """A field of /proc/self/FILE in bytes."""
    for line in Path(f"/proc/self/{file}").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/self/{file} has no {field}")


def link_frames(data: Path, root: Path, frames: int) -> None:
    """Make a prepared folder with a list `long`, of links to a simulated folder's frames."""
    few = (data / "train_night.txt").read_text().split()
    names = [f"2018-02-06_14-25-51_{index:06d}" for index in range(frames)]
    for folder in (*IMAGE_FOLDERS, LABEL_FOLDER):
        (root / folder).mkdir(parents=True)
        suffix = ".txt" if folder == LABEL_FOLDER else ".png"
        for name, source in zip(names, itertools.cycle(few), strict=False):
            (root / folder / f"{name}{suffix}").symlink_to(data / folder / f"{source}{suffix}")
    save_list(names, root / "long.txt")


def measure(root: Path) -> dict[str, float]:
    """Medians over some processes, and the most that a worker copied."""
    openings, copied, hashing = [], [], []
    for _ in tqdm(range(TURNS), root.name, unit="turn", leave=False, disable=None):
        side = Side(partial(Opening, root))
        openings.append(side.ask("open")[1])
        copied.append(side.ask("read")[1])
        hashing.append(side.ask("fingerprint")[0])
        side.end()
    medians = {key: statistics.median(one[key] for one in openings) for key in openings[0]}
    return {**medians, "worker_bytes": max(copied), "hash_seconds": statistics.median(hashing)}


def main() -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument(
        "--frames",
        type=at_least(BATCH),
        nargs="+",
        default=[1000, 100_000],
        help="lengths of the lists (default: 1000 100000)",
    )
    add_json(parser)
    args = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        data = simulate(Path(folder) / "data", SIMULATED, "320x192")
        for frames in args.frames:
            link_frames(data, Path(folder) / str(frames), frames)
            results[frames] = measure(Path(folder) / str(frames))
    rows = [["frames", "opened in s", "adds MB", "MB at its peak", "MB in a worker", "hashed in s"]]
    for frames, one in results.items():
        megabytes = [one[key] / 1e6 for key in ("bytes", "peak_bytes", "worker_bytes")]
        rows.append(
            [
                f"{frames:,}",
                f"{one['seconds']:.2f}",
                *(f"{number:.1f}" for number in megabytes),
                f"{one['hash_seconds']:.2f}",
            ]
        )
    text = (
        f"{markdown_table(rows)}\n\nAim at 100,000 frames: {AIM_SECONDS} s, "
        f"{AIM_BYTES / 1e6:.0f} MB for each process."
    )
    print_and_save(text, {"frames": results, "aim_seconds": AIM_SECONDS}, args.json)


if __name__ == "__main__":
    main()

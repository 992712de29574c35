"""label_frames.py against a plain pass over the same frames, in turns.

    python -m benchmarks.label_throughput --weights runs/demo/seed0/teacher.pth \\
        --data runs/demo/data --json runs/bench/label_throughput.json

All sides decode the files in every pass and compute in the precision that this machine is fast in.
Labelling also writes a file for each frame. With mirror images it looks at twice as many.
"""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path

from tqdm import tqdm

from benchmarks.evaluate_throughput import Ours, add_pass, open_list
from benchmarks.measure import Side, take_turns
from cmkd.evaluation.labelling import Choice, label_texts
from cmkd.evaluation.tables import markdown_table, print_and_save
from cmkd.frames.machine_labels import Record, journal_name, write_labels
from cmkd.runtime import hardware
from cmkd.runtime.command_line import OneLineParser

AIM = 0.75  # of the plain pass's frames per second; a mirror image counts as a frame
THRESHOLDS = (0.5, 0.2)  # score of sure and of doubtful boxes


class Labelling(Ours):
    """The labelling of all frames, into a folder of its own in each pass."""

    def __init__(self, args: argparse.Namespace, amp: bool, mirror: bool) -> None:
        super().__init__(args, amp)
        thresholds = dict.fromkeys(self.loader.dataset.label_of, THRESHOLDS)
        self.choice = Choice(thresholds, mirror)

    def turn(self) -> None:
        """A pass."""
        with tempfile.TemporaryDirectory() as data:
            folder = Path(data) / "labels"
            folder.mkdir()
            record = Record()
            for texts in label_texts(self.detector, self.loader, self.amp, self.choice):
                write_labels(folder, folder / journal_name(), record, texts)


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="trained weights")
    parser.add_argument("--data", type=Path, required=True, help="prepared data folder")
    parser.add_argument("--list", default="test_night", help="default: test_night")
    add_pass(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    frames = len(open_list(args, "rgb"))
    amp = hardware.computes_bfloat16(args.device)
    sides = {
        "plain pass": Side(partial(Ours, args, amp)),
        "label_frames.py": Side(partial(Labelling, args, amp, False)),
        "label_frames.py --mirror": Side(partial(Labelling, args, amp, True)),
    }
    with tqdm(total=len(sides) * (1 + args.turns), unit="turn", disable=None) as bar:
        seconds_of, _ = take_turns(sides, args.turns, bar)
    for side in sides.values():
        side.end()

    views = {name: 2 if name.endswith("--mirror") else 1 for name in sides}
    rates = {
        name: views[name] * frames / statistics.median(seconds)
        for name, seconds in seconds_of.items()
    }
    rows = [["pass", "images per second", "of the plain pass"]]
    for name, rate in rates.items():
        rows.append([name, f"{rate:.3g}", f"{rate / rates['plain pass']:.2f}"])
    numbers = {"frames": frames, "seconds": seconds_of, "images_per_second": rates, "aim": AIM}
    print_and_save(f"{markdown_table(rows)}\n\nAim: {AIM}.", numbers, args.json)


if __name__ == "__main__":
    main()

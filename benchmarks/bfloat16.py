"""Does bfloat16 change what is learned? The demo's teacher and student, trained both ways.

    make demo
    python -m benchmarks.bfloat16 --json runs/bench/bfloat16.json

train_teacher.py and train_cmkd_mse.py as reproduce.py calls them, from the weights and on the
frames of the demo, with --amp and with --no-amp, with several seeds: the best validation AP of each
run. Then the demo's own weights, tested both ways.
"""

import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from benchmarks.measure import run_script
from cmkd.evaluation.options import add_json
from cmkd.evaluation.tables import markdown_table, print_and_save
from cmkd.runtime.command_line import OneLineParser, at_least
from cmkd.runtime.failures import run
from cmkd.runtime.files import UserError, read_json
from cmkd.study.day_detector import DAY_DETECTOR
from cmkd.study.jobs import option_words
from cmkd.study.networks import PUBLISHED
from reproduce import PRESETS

PRECISIONS = {"float32": "--no-amp", "bfloat16": "--amp"}
METHODS = ("teacher", "cmkd_mse")
TEST_LIST = "test_night"
NOT_WRITTEN = "the script that writes it failed"


def train(demo: Path, method: str, precision: str, seed: int, out: Path) -> float:
    """Train as the demo does; the best validation AP, 0..1."""
    preset = PRESETS["smoke"]
    arguments = [
        *preset.train.split(),
        *preset.start.split(),
        *option_words(init=DAY_DETECTOR, data=demo / "data"),
        PRECISIONS[precision],
        *option_words(seed=seed, out=out, run_dir=out),
    ]
    if method.startswith("cmkd"):
        arguments += option_words(teacher=demo / "seed0/teacher.pth")
    run_script(f"train_{method}.py", arguments, threads=1)  # two run side by side
    return read_json(out / f"{method}.json", NOT_WRITTEN)["val"]["AP"]


def test_ap(demo: Path, network: str, precision: str, file: Path) -> float:
    """Test one of the demo's networks; its AP, 0..1. `file` is for the numbers."""
    weights = demo / f"seed0/{network}.pth"
    arguments = option_words(weights=weights, data=demo / "data", lists=TEST_LIST, json=file)
    run_script("test.py", [*arguments, PRECISIONS[precision]], threads=1)
    return read_json(file, NOT_WRITTEN)["metrics"][TEST_LIST][network]["AP"]


def training_row(method: str, aps: dict[str, list[float]]) -> list[str]:
    """A row: mean APs in percent with those of the seeds, and the mean difference."""
    cells = []
    for values in aps.values():
        by_seed = ", ".join(f"{100 * ap:.1f}" for ap in values)
        cells.append(f"{100 * statistics.mean(values):.1f} ({by_seed})")
    differences = [100 * (b - a) for a, b in zip(*aps.values(), strict=True)]
    deviation = statistics.stdev(differences) if len(differences) > 1 else float("nan")
    error = deviation / len(differences) ** 0.5
    return [method, *cells, f"{statistics.mean(differences):+.1f} ± {error:.1f}"]


def main() -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument(
        "--demo", type=Path, default=Path("runs/demo"), help="folder of `make demo`"
    )
    parser.add_argument("--seeds", type=at_least(1), default=3, help="default: 3")
    add_json(parser)
    args = parser.parse_args()
    if not (args.demo / "seed0/cmkd_adv.pth").is_file():
        raise UserError(
            f"{args.demo} holds no finished demo: run `make demo` first, or name its folder"
        )
    trained = {method: {precision: [] for precision in PRECISIONS} for method in METHODS}
    tested: dict[str, dict[str, float]] = {name: {} for name in PUBLISHED}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        trainings = [
            (method, precision, seed)
            for method in METHODS
            for seed in range(args.seeds)
            for precision in PRECISIONS
        ]
        outs = [Path(folder) / "-".join(map(str, training)) for training in trainings]
        aps = pool.map(lambda training, out: train(args.demo, *training, out), trainings, outs)
        progress = tqdm(aps, total=len(trainings), unit="run", disable=None)
        for (method, precision, _), ap in zip(trainings, progress, strict=True):
            trained[method][precision].append(ap)
        for name in PUBLISHED:
            for precision in PRECISIONS:
                file = Path(folder) / "scores.json"
                tested[name][precision] = test_ap(args.demo, name, precision, file)
    columns = [f"val AP, {precision} (by seed)" for precision in PRECISIONS]
    trained_rows = [["trained", *columns, "difference ± standard error"]]
    trained_rows += [training_row(method, aps) for method, aps in trained.items()]
    tested_rows = [["the same weights, test AP", *PRECISIONS]]
    for name, aps in tested.items():
        tested_rows.append([name, *(f"{100 * ap:.2f}" for ap in aps.values())])
    text = f"{markdown_table(trained_rows)}\n\n{markdown_table(tested_rows)}"
    print_and_save(text, {"trained": trained, "tested": tested}, args.json)


if __name__ == "__main__":
    run(main)

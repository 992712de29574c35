"""Images per second in training: ours against the published way, for each of the four scripts.

    python -m benchmarks.train_throughput --json runs/bench/train_throughput.json

Ours is what each train script hands to `engine.fit` (run with `--cache ram`, otherwise with its
defaults), trained by `engine.train_one_epoch`. The published way is reference.py. Each side is a
process of its own; they work in turns on the same simulated frames while the other one waits, and
the first turn does not count. Then ours is measured by part: where a step's time goes, its
floating-point operations (torch.utils.flop_counter), and their share of what this machine computes
in products of large bfloat16 matrices.
"""

import argparse
import contextlib
import importlib
import inspect
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import engine
from benchmarks.measure import (
    PUBLISHED_SIZE,
    Side,
    add_device,
    add_turns,
    peak_flops,
    simulate,
    take_turns,
    timed,
)
from benchmarks.reference import PlainDetector, PlainTraining
from cmkd.evaluation.options import add_json
from cmkd.evaluation.tables import markdown_table, print_and_save
from cmkd.runtime import hardware
from cmkd.runtime.command_line import OneLineParser, at_least
from cmkd.runtime.failures import StopRequest
from cmkd.study.jobs import option_words
from dataset import SeeingThroughFog, make_loader
from models import Detector, build_discriminators
from train_cmkd_adv import domain_bce
from train_cmkd_mse import feature_mse

METHODS = ("teacher", "baseline", "cmkd_mse", "cmkd_adv")
AIMS = {
    "cpu": {"baseline": 1.8, "cmkd_mse": 2.5, "cmkd_adv": 2.5},
    "cuda": {"cmkd_mse": 5.0, "cmkd_adv": 5.0},
}
PARTS = ("data", "transfer", "teacher", "forward", "backward", "optimizer", "other")


def write_inputs(args: argparse.Namespace, folder: Path) -> None:
    """Simulate the frames of a turn, and save random weights with a frozen norm, as published.

    The last norm of each block is scaled down: activations would double from block to block.
    """
    simulate(folder / "data", args.batch_size * args.steps, args.size)
    last_norm = "bn2.weight" if args.backbone in ("resnet18", "resnet34") else "bn3.weight"
    for channels in (3, 6):
        state = Detector(channels, 2, args.backbone, "frozen").state_dict()
        for name in state:
            if name.endswith(last_norm):
                state[name].fill_(0.2)
        torch.save(state, folder / f"{channels}.pth")


class Ours:
    """The training that a train script sets up, with more `options` of its command line."""

    def __init__(self, method: str, args: argparse.Namespace, folder: Path, *options: str) -> None:
        hardware.prepare()
        script = importlib.import_module(f"train_{method}")
        channels = 6 if method == "teacher" else 3
        start = ["--init", folder / f"{channels}.pth", "--stem", "inflate", "--lr", 1e-5]
        if "cmkd" in method:
            start += ["--teacher", folder / "6.pth"]
        start += ["--data", folder / "data", "--cache", "ram"]
        for name in ("backbone", "min_size", "batch_size", "rois", "workers", "device"):
            start += option_words(**{name: getattr(args, name)})
        sys.argv = [script.__file__, *map(str, [*start, *options])]
        with patch.object(script, "fit", self.take), contextlib.redirect_stdout(None):
            script.main()

    def take(
        self,
        model: nn.Module,
        compute_losses: Callable,
        optimizer: torch.optim.Optimizer,
        loader: DataLoader,
        _: DataLoader,
        *,
        arguments: dict[str, Any],
        also_trained: nn.Module | None = None,
        **__: Any,
    ) -> None:
        """Stands in for `engine.fit`."""
        parts = {"model": model, "also_trained": also_trained or nn.Identity()}
        self.trained = nn.ModuleDict(parts)
        self.compute_losses, self.optimizer, self.loader = compute_losses, optimizer, loader
        self.options = engine.Options.of(arguments)
        self.teacher = inspect.getclosurevars(compute_losses).nonlocals.get("teacher")

    def turn(self) -> None:
        """An epoch."""
        progress = engine.Progress(epoch=1)
        engine.begin_epoch(self.loader, progress, self.options.seed, [])
        engine.train_one_epoch(
            self.trained,
            self.compute_losses,
            self.optimizer,
            self.loader,
            progress,
            self.options,
            StopRequest(),
            lambda: None,
        )

    def operations(self) -> int:
        """Floating-point operations of an epoch."""
        with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
            self.turn()
        return counter.get_total_flops()

    def seconds_by_part(self) -> dict[str, float]:
        """Seconds of an epoch by part; the GPU is synchronised before and after each."""
        spent: dict[str, float] = defaultdict(float)

        def clocked(part: str, function: Callable) -> Callable:
            def call(*given: Any) -> Any:
                taken, result = timed(function, *given)
                spent[part] += taken
                return result

            return call

        def clocked_fetch(loader: DataLoader) -> Iterator[Any]:
            batches = iter(loader)
            for _ in range(len(loader)):
                started = time.perf_counter()
                batch = next(batches)
                spent["data"] += time.perf_counter() - started
                yield batch

        if self.teacher:
            self.teacher.features = clocked("teacher", self.teacher.features)
        step = clocked("optimizer", engine.step_if_finite)
        with (
            patch.object(engine, "to_device", clocked("transfer", engine.to_device)),
            patch.object(engine, "fetch", clocked_fetch),
            patch.object(engine, "step_if_finite", step),
            patch.object(Tensor, "backward", clocked("backward", Tensor.backward)),
            patch.object(self, "compute_losses", clocked("forward", self.compute_losses)),
        ):
            whole, _ = timed(self.turn)
        spent["forward"] -= spent["teacher"]
        return {**spent, "other": whole - sum(spent.values())}


class Published:
    """The same training as published."""

    def __init__(self, method: str, args: argparse.Namespace, folder: Path) -> None:
        modality = "rgb" if method == "baseline" else "rgb+gated"
        dataset = SeeingThroughFog(folder / "data", "train_night", modality)
        self.loader = make_loader(dataset, args.batch_size, args.workers, shuffle=True)

        def network(channels: int) -> PlainDetector:
            detector = PlainDetector(
                channels, args.backbone, min_size=args.min_size, rois=args.rois
            )
            file = folder / f"{channels}.pth"
            detector.load_state_dict(torch.load(file, weights_only=True))
            return detector.to(args.device)

        detector = network(6 if method == "teacher" else 3)
        if method in ("teacher", "baseline"):
            self.training = PlainTraining(detector, 1e-5)
        elif method == "cmkd_mse":
            self.training = PlainTraining(
                detector, 1e-5, network(6), "kd_mse", lambda *features: 0.5 * feature_mse(*features)
            )
        else:
            adversary = build_discriminators().to(args.device)
            loss = partial(domain_bce, adversary, weight=0.3)
            self.training = PlainTraining(detector, 1e-5, network(6), "kd_adv", loss, adversary)

    def turn(self) -> None:
        """An epoch."""
        for images, targets in self.loader:
            self.training.step(images, targets)


def measure_method(
    method: str, args: argparse.Namespace, folder: Path, bar: tqdm
) -> dict[str, Any]:
    """Both sides in turns: rates in images per second, memory in bytes, and ours by part."""
    frames = args.batch_size * args.steps
    options = ["--compile"] if args.compile else []
    sides = {
        "published": Side(partial(Published, method, args, folder)),
        "ours": Side(partial(Ours, method, args, folder, *options)),
    }
    seconds_of, _ = take_turns(sides, args.turns, bar)
    _, by_part = sides["ours"].ask("seconds_by_part")
    _, operations = sides["ours"].ask("operations")
    memory = {name: side.end() for name, side in sides.items()}
    rates = {name: [frames / one for one in values] for name, values in seconds_of.items()}
    median = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "rates": rates,
        "images_per_second": median,
        "ratio": median["ours"] / median["published"],
        "aim": AIMS[args.device.type].get(method),
        "flop_per_image": operations / frames,
        "peak_memory_bytes": memory,
        "seconds_per_image": {part: by_part.get(part, 0) / frames for part in PARTS},
    }


HEADING = [
    "training",
    "published, img/s",
    "ours, img/s",
    "ratio",
    "aim",
    "GFLOP an image",
    "share of the ceiling",
    "published, GiB",
    "ours, GiB",
]


def throughput_tables(results: dict[str, dict[str, Any]], ceiling: float) -> str:
    """Markdown: rates, and the time of ours by part."""
    rates, times = [HEADING], [["training", *PARTS]]
    for method, result in results.items():
        rate, memory = result["images_per_second"], result["peak_memory_bytes"]
        share = result["flop_per_image"] * rate["ours"] / ceiling
        rates.append(
            [
                method,
                f"{rate['published']:.3g}",
                f"{rate['ours']:.3g}",
                f"{result['ratio']:.1f}",
                str(result["aim"] or "-"),
                f"{result['flop_per_image'] / 1e9:.0f}",
                f"{share:.0%}",
                f"{memory['published'] / 2**30:.1f}",
                f"{memory['ours'] / 2**30:.1f}",
            ]
        )
        seconds = result["seconds_per_image"]
        times.append([method, *(f"{1000 * seconds[part]:.0f}" for part in PARTS)])
    title = f"Ceiling: {ceiling / 1e12:.2f} TFLOP/s in bfloat16. Ours, milliseconds an image:"
    return "\n\n".join([markdown_table(rates), title, markdown_table(times)])


def main() -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=METHODS, help="default: all four"
    )
    parser.add_argument("--backbone", default="resnet50", help="default: resnet50")
    parser.add_argument("--min-size", type=at_least(1), default=500, help="default: 500")
    parser.add_argument("--batch-size", type=at_least(1), default=4, help="default: 4")
    parser.add_argument("--rois", type=at_least(1), default=512, help="default: 512")
    parser.add_argument("--steps", type=at_least(1), default=1, help="steps in a turn (default: 1)")
    add_turns(parser, 3)
    parser.add_argument("--compile", action="store_true", help="ours with --compile")
    parser.add_argument(
        "--size", default=PUBLISHED_SIZE, help=f"of the frames (default: {PUBLISHED_SIZE})"
    )
    parser.add_argument(
        "--workers",
        type=at_least(0),
        default=hardware.loader_processes(),
        help="loader processes of each side (default: as the train scripts)",
    )
    add_device(parser)
    add_json(parser)
    args = parser.parse_args()
    ceiling = peak_flops(args.device, torch.bfloat16)
    results = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=len(args.methods) * 2 * (1 + args.turns), unit="turn", disable=None) as bar,
    ):
        write_inputs(args, Path(folder))
        for method in args.methods:
            bar.set_description(method)
            results[method] = measure_method(method, args, Path(folder), bar)
    settings = ("backbone", "min_size", "batch_size", "steps", "compile")
    figures = {
        "results": results,
        "ceiling_flops": ceiling,
        **{name: getattr(args, name) for name in settings},
        "threads": os.environ.get("OMP_NUM_THREADS", torch.get_num_threads()),
    }
    print_and_save(throughput_tables(results, ceiling), figures, args.json)


if __name__ == "__main__":
    main()

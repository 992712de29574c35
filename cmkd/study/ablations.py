"""What gives how much: runs of a study again, each with one thing changed, from its data and its pretrained detector.

    python reproduce.py --preset cpu --seeds 0 1 2 --out runs/cpu
    python -m cmkd.study.ablations --study runs/cpu --only "mse 5" "teacher, slice 2 alone" --json runs/bench/some.json

A variant is compared with the run of the study that it varies, seed by seed; with --epochs with one of so many epochs.
Both stand with their best epoch by validation AP, and are tested on the validation list alone. STUDY/ablations has the
runs; a second call goes on where the first stopped.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import report, table
from cmkd.evaluation.bootstrap import compare
from cmkd.runtime.failures import run
from cmkd.study.jobs import Job, run_jobs, slots
from cmkd.study.report import mean_and_deviation
from dataset import SeeingThroughFog
from utils import OneLineParser, UserError, at_least, warn


@dataclass(frozen=True)
class Variant:
    """A run of the study, and the options that differ, with {seed} for that seed's folder, or which gated slice
    stands in each of the three places."""

    question: str
    of: str
    options: str = ""
    slices: tuple[int, int, int] | None = None


VARIANTS = {
    "mse 0.05": Variant("weight of the loss", "cmkd_mse", "--mse-weight 0.05"),
    "mse 5": Variant("weight of the loss", "cmkd_mse", "--mse-weight 5"),
    "adv 0.03": Variant("weight of the loss", "cmkd_adv", "--adv-weight 0.03"),
    "adv 3": Variant("weight of the loss", "cmkd_adv", "--adv-weight 3"),
    "baseline, from baseline": Variant("start", "baseline", "--init {seed}/baseline.pth"),
    **{f"{name} reinit": Variant("stem", name, "--stem reinit")
       for name in ("teacher", "baseline", "cmkd_mse", "cmkd_adv")},
    **{f"teacher, slice {number} alone": Variant("gated slices", "teacher", slices=(number,) * 3)
       for number in range(3)},
}


def with_slices(data: Path, folder: Path, slices: tuple[int, int, int]) -> Path:
    """A prepared folder of links to another one, with these of its slices in the three places."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = {entry.name: entry for entry in data.iterdir() if not entry.name.startswith(".")}
    for place, number in enumerate(slices):
        sources[f"gated{place}"] = data / f"gated{number}"
    for name, source in sources.items():
        if not (folder / name).exists():
            (folder / name).symlink_to(source.resolve())
    return folder


def option(arguments: list[str], name: str) -> str:
    """Of one that stands twice, argparse takes the last."""
    return [value for given, value in zip(arguments, arguments[1:], strict=False) if given == name][-1]


def varied(name: str, variant: Variant, seed: int, args: argparse.Namespace, study: dict[str, Any]) -> tuple[Job, Job]:
    """The training of a variant and its test on the validation list. Raises `UserError` where the study lacks the run
    that it varies, or, where that is trained again, its teacher."""
    reference = f"seed{seed}/{variant.of}"
    # What is trained again is not needed, but for its teacher or the weights that a variant begins with.
    trained_again = args.epochs and "{seed}" not in variant.options and reference in study
    needed = f"seed{seed}/teacher" if trained_again else reference
    if not study.get(f"test/{needed}", {}).get("done"):
        raise UserError(f"{args.study} has no finished {needed}: run reproduce.py with this seed first")
    length = [f"{args.epochs}_epochs"] if args.epochs else []
    title = "/".join([*length, name, f"seed{seed}"])
    folder = args.study / "ablations" / title.replace(",", "").replace(" ", "_")
    script, *arguments = study[reference]["arguments"]
    arguments += ["--out", str(folder), "--run-dir", str(folder)]
    if args.epochs:
        arguments += ["--epochs", str(args.epochs)]
    if variant.slices:
        linked = args.study / f"slices{''.join(map(str, variant.slices))}"
        arguments += ["--data", str(with_slices(Path(option(arguments, "--data")), linked, variant.slices))]
    arguments += [word.format(seed=args.study / f"seed{seed}") for word in variant.options.split()]
    weights = folder / script.replace("train_", "").replace(".py", ".pth")
    val_list = option(arguments, "--val-list")
    return Job(title, [script, *arguments], weights), Job(
        f"test/{title}", [
            "test.py", "--weights", str(weights), "--data", option(arguments, "--data"), "--lists", val_list,
            "--workers", "0", *(["--no-amp"] if "--no-amp" in arguments else []), "--json", str(folder / "scores.json"),
            "--save-detections", str(folder / f"detections.{val_list}.json")],
        folder / "scores.json", (title,), reads=(weights,))


def read_study(folder: Path) -> dict[str, Any]:
    """The jobs of a study, by name. Raises `UserError` where the folder holds none."""
    if not (folder / "jobs.json").is_file():
        raise UserError(f"{folder} is no study: run reproduce.py first, or name its folder")
    return json.loads((folder / "jobs.json").read_text(encoding="utf-8"))


def ground_truth(data: Path, list_name: str, tested: Path) -> dict[str, list]:
    """A list's COCO dictionary, with the classes of the network whose scores are in the folder `tested`."""
    trained = json.loads((tested / "scores.json").read_text(encoding="utf-8"))
    return SeeingThroughFog(data, list_name, "rgb", trained["classes"], trained["ignore"] or ["none"]).ground_truth()


def difference(data: Path, val_list: str, references: Sequence[Path], own: Sequence[Path], draws: int
               ) -> dict[str, Any]:
    """AP on the validation list, in percent: of each seed's reference and variant, tested runs in these folders, and
    the mean difference with its 95 % interval over draws of frames and seeds."""
    truth = ground_truth(data, val_list, own[0])
    folders = {"reference": references, "variant": own}
    scores = compare(truth, {name: [json.loads((folder / f"detections.{val_list}.json").read_text(encoding="utf-8"))
                                    for folder in each] for name, each in folders.items()}, "reference", None, draws)
    ap = scores["variant"]["AP"]
    return {"difference": 100 * ap["difference"], "interval": [100 * edge for edge in ap["difference_interval"]],
            **{name: [100 * next(iter(json.loads((folder / "scores.json").read_text(encoding="utf-8"))["metrics"]
                                      [val_list].values()))["AP"] for folder in each]
               for name, each in folders.items()}}


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("runs/cpu"),
                        help="folder of reproduce.py (default: runs/cpu)")
    parser.add_argument("--seeds", type=at_least(0), nargs="+", default=[0], metavar="N", help="(default: 0)")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT",
                        help=f"of {' | '.join(VARIANTS)} (default: all)")
    parser.add_argument("--epochs", type=at_least(1), help="of the runs and their references (default: the study's)")
    parser.add_argument("--side-by-side", type=at_least(1), metavar="N",
                        help="trainings at once (default: one for each core, or what GPUs have room for)")
    parser.add_argument("--draws", type=at_least(1), default=1000, help="of frames, for intervals (default: 1000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, and the table beside them")
    args = parser.parse_args()
    args.seeds, args.only = sorted(set(args.seeds)), list(dict.fromkeys(args.only))
    study = read_study(args.study)
    variants = {name: VARIANTS[name] for name in args.only}
    if args.epochs:  # the study's own runs are longer, so what is varied is run as well
        variants = {**{variant.of: Variant("as it is", variant.of) for variant in variants.values()}, **variants}
    pairs = {(name, seed): varied(name, variant, seed, args, study)
             for name, variant in variants.items() for seed in args.seeds}
    failed = run_jobs([job for pair in pairs.values() for job in pair], args.study / "ablations",
                      slots(args.side_by_side))
    for name, reason in failed.items():
        warn(f"{name}: {reason}")

    rows, figures = [], {}
    for name in args.only:
        variant = VARIANTS[name]
        folders = {seed: (args.study / f"seed{seed}" / variant.of if not args.epochs
                          else pairs[variant.of, seed][1].makes.parent, pairs[name, seed][1].makes.parent)
                   for seed in args.seeds
                   if not any(pairs[one, seed][1].name in failed for one in (name, variant.of) if (one, seed) in pairs)}
        if not folders:
            continue
        references, own = zip(*folders.values(), strict=True)
        arguments = pairs[name, args.seeds[0]][1].arguments
        figures[name] = difference(Path(option(arguments, "--data")), option(arguments, "--lists"), references, own,
                                   args.draws)
        low, high = figures[name]["interval"]
        rows.append([variant.question, name, variant.of, len(folders), mean_and_deviation(figures[name]["reference"]),
                     mean_and_deviation(figures[name]["variant"]),
                     f"{figures[name]['difference']:+.1f} [{low:+.1f}, {high:+.1f}]",
                     f"`{variant.options or '--data ' + str(variant.slices)}`"])
    head = ["question", "variant", "of", "seeds", "its val AP", "val AP", "difference", "options"]
    report(table(head, rows), figures, args.json)
    if failed:
        raise UserError(f"{len(failed)} of {2 * len(pairs)} jobs failed: see above; the same command tries them again")


if __name__ == "__main__":
    run(main)

"""What gives how much: runs of a study again, each with one thing changed, from its data and its pretrained detector.

    python reproduce.py --preset cpu --seeds 0 1 2 --out runs/cpu
    python benchmarks/ablations.py --study runs/cpu --only "mse 5" "teacher, slice 2 alone" --json runs/bench/some.json

A variant is compared, by its best validation AP and seed by seed, with the study's own run that it varies; with
--epochs by that of so many epochs. STUDY/ablations has the runs; a second call goes on where the first stopped.
"""

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import report, table
from curves import read_epochs
from failures import run
from jobs import Job, run_jobs, slots
from results import mean_and_deviation
from utils import OneLineParser, UserError, at_least, warn


@dataclass(frozen=True)
class Variant:
    """A run of the study, and the options that differ, with {teacher} for that seed's weights; `script` where it is
    another one, `slices` which gated slice stands in each of the three places."""

    question: str
    of: str
    options: str = ""
    script: str = ""
    slices: tuple[int, int, int] | None = None


FROM_TEACHER = "--init {teacher} --stem inflate"
TRIALS = {
    "pearson 2": "--feature-weight 2",
    "pearson 10": "--feature-weight 10",
    "mse by level 1": "--features level_mse --feature-weight 1",
    "from teacher": f"--feature-weight 0 {FROM_TEACHER}",
    "from teacher, mse 0.5": f"--features mse --feature-weight 0.5 {FROM_TEACHER}",
    "from teacher, pearson 2": f"--feature-weight 2 {FROM_TEACHER}",
    "from teacher, pearson 10": f"--feature-weight 10 {FROM_TEACHER}",
    "from teacher, pearson 10, 1x1": f"--feature-weight 10 --adapt {FROM_TEACHER}",
    "from teacher, pearson 10, focus 20": f"--feature-weight 10 --focus 20 {FROM_TEACHER}",
    "from teacher, pearson 10, disagreement 20": f"--feature-weight 10 --focus 20 --disagreement {FROM_TEACHER}",
    "objectness 1": "--feature-weight 0 --response-weight 1",
    "box classes 1": "--feature-weight 0 --box-weight 1",
    "hallucinate 1": "--feature-weight 0 --hallucinate-weight 1",
    "average 0.999": "--feature-weight 0 --average 0.999",
    "from teacher, pearson 10, objectness 1": f"--feature-weight 10 --response-weight 1 {FROM_TEACHER}",
    "adv, accuracy": "--features adv --feature-weight 1",
    "adv, warm-up of an epoch": "--features adv --feature-weight 1 --warm-up-epochs 1",
    "mse, P2 alone": "--features mse --feature-weight 0.5 --feature-levels 0",
    "mse, P5 alone": "--features mse --feature-weight 0.5 --feature-levels 3",
}
VARIANTS = {
    **{name: Variant("tried", "baseline", "--teacher {teacher} " + options, "trials.py")
       for name, options in TRIALS.items()},
    "mse 0.05": Variant("weight of the loss", "cmkd_mse", "--mse-weight 0.05"),
    "mse 5": Variant("weight of the loss", "cmkd_mse", "--mse-weight 5"),
    "adv 0.03": Variant("weight of the loss", "cmkd_adv", "--adv-weight 0.03"),
    "adv 3": Variant("weight of the loss", "cmkd_adv", "--adv-weight 3"),
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


def best_ap(log: Path, epochs: int | None) -> float:
    """The best validation AP of the first epochs, in percent."""
    return 100 * max(epoch["val"]["AP"] for epoch in read_epochs(log)[:epochs])


def training(name: str, seed: int, args: argparse.Namespace, study: dict[str, Any]) -> Job:
    """A variant's. Raises `UserError` where the study lacks the run that it varies."""
    variant, reference = VARIANTS[name], f"seed{seed}/{VARIANTS[name].of}"
    if not study.get(reference, {}).get("done"):
        raise UserError(f"{args.study} has no finished {reference}: run reproduce.py with this seed first")
    arguments = study[reference]["arguments"]
    folder = args.study / "ablations" / name.replace(",", "").replace(" ", "_") / f"seed{seed}"
    # Of an option that stands twice, argparse takes the last.
    changed = ["--out", str(folder), "--run-dir", str(folder)]
    if args.epochs:
        changed += ["--epochs", str(args.epochs)]
    if variant.slices:
        data = Path(arguments[arguments.index("--data") + 1])
        linked = args.study / f"slices{''.join(map(str, variant.slices))}"
        changed += ["--data", str(with_slices(data, linked, variant.slices))]
    teacher = str(args.study / f"seed{seed}/teacher.pth")
    arguments = [variant.script or arguments[0], *arguments[1:], *changed,
                 *(word.format(teacher=teacher) for word in variant.options.split())]
    return Job(f"{name}/seed{seed}", arguments, folder / "log.jsonl")


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("runs/cpu"),
                        help="folder of reproduce.py (default: runs/cpu)")
    parser.add_argument("--seeds", type=at_least(0), nargs="+", default=[0], metavar="N", help="(default: 0)")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT",
                        help=f"of {' | '.join(VARIANTS)} (default: all)")
    parser.add_argument("--epochs", type=at_least(1), help="of the runs and their references (default: the study's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, and the table beside them")
    args = parser.parse_args()
    if not (args.study / "jobs.json").is_file():
        raise UserError(f"{args.study} is no study: run reproduce.py first, or name its folder")
    study = json.loads((args.study / "jobs.json").read_text(encoding="utf-8"))
    jobs = {(name, seed): training(name, seed, args, study) for name in args.only for seed in args.seeds}
    failed = run_jobs(list(jobs.values()), args.study / "ablations", slots(None))
    for name, reason in failed.items():
        warn(f"{name}: {reason}")
    rows, figures = [], {}
    for name in args.only:
        variant = VARIANTS[name]
        finished = {seed: jobs[name, seed].makes for seed in args.seeds if jobs[name, seed].name not in failed}
        own = [best_ap(log, args.epochs) for log in finished.values()]
        reference = [best_ap(args.study / f"seed{seed}/{variant.of}/log.jsonl", args.epochs) for seed in finished]
        differences = [one - other for one, other in zip(own, reference, strict=True)]
        figures[name] = {"val_AP": own, f"val_AP of {variant.of}": reference, "seeds": list(finished)}
        rows.append([variant.question, name, variant.of, mean_and_deviation(reference), mean_and_deviation(own),
                     f"{statistics.mean(differences):+.1f}" if differences else "-",
                     f"`{variant.options or '--data ' + str(variant.slices)}`"])
    report(table(["question", "variant", "of", "its val AP", "val AP", "difference", "options"], rows), figures,
           args.json)
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} runs failed: see above")


if __name__ == "__main__":
    run(main)

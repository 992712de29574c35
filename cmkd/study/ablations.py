"""What each choice gives: runs of a study once more, each with one thing changed.

    python reproduce.py --preset cpu --seeds 0 1 2 --out runs/cpu
    python -m cmkd.study.ablations --study runs/cpu --only "mse 5" "teacher, slice 2 alone" \\
        --json runs/bench/some.json

A variant has the data and start weights of the study, and is compared with the run that it varies,
seed by seed; with --epochs, with one of as many epochs. Both are represented by their best epoch by
validation AP, and tested on the validation list alone. The runs are in STUDY/ablations; a second
call continues after what is done.

"baseline, from teacher" is what CMKD-Plus was: an RGB detector that starts from the trained
teacher's weights, with the kernels of the gated channels folded into the RGB ones
(`train_baseline.py --init teacher.pth --stem inflate`). Its control is "baseline, from baseline",
which starts from the trained baseline's weights.
"""

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmkd.evaluation.bootstrap import compare_detectors
from cmkd.evaluation.options import add_draws, add_json, add_seeds, add_side_by_side, add_study
from cmkd.evaluation.tables import markdown_table, print_and_save
from cmkd.runtime.command_line import OneLineParser, at_least
from cmkd.runtime.failures import run
from cmkd.runtime.files import UserError, read_json
from cmkd.study.jobs import (
    UNREADABLE,
    Job,
    Records,
    evaluation_job,
    option_value,
    option_words,
    read_study_records,
    report_failures,
    run_jobs,
    training_state,
)
from cmkd.study.networks import weights_file
from cmkd.study.report import (
    mean_and_deviation,
    read_detections,
    refuse_other_val_list,
    tested_truth,
)

START_WEIGHTS = r"\{seed\}/(\w+)\.pth"  # the network whose weights a variant starts from


@dataclass(frozen=True)
class Variant:
    """A run of the study with one thing changed.

    `options` are the options that differ; `{seed}` stands for that seed's folder. `slices` gives
    the gated slice that replaces each of the three.
    """

    question: str
    network: str  # that is varied
    options: str = ""
    slices: tuple[int, int, int] | None = None


VARIANTS = {
    "mse 0.05": Variant("weight of the loss", "cmkd_mse", "--mse-weight 0.05"),
    "mse 5": Variant("weight of the loss", "cmkd_mse", "--mse-weight 5"),
    "adv 0.03": Variant("weight of the loss", "cmkd_adv", "--adv-weight 0.03"),
    "adv 3": Variant("weight of the loss", "cmkd_adv", "--adv-weight 3"),
    "baseline, from baseline": Variant("start", "baseline", "--init {seed}/baseline.pth"),
    "baseline, from teacher": Variant(
        "start", "baseline", "--init {seed}/teacher.pth --stem inflate"
    ),
    **{
        f"{name} reinit": Variant("stem", name, "--stem reinit")
        for name in ("teacher", "baseline", "cmkd_mse", "cmkd_adv")
    },
    **{
        f"teacher, slice {number} alone": Variant("gated slices", "teacher", slices=(number,) * 3)
        for number in range(3)
    },
}


def link_slices(data: Path, folder: Path, slices: tuple[int, int, int]) -> Path:
    """Make a prepared folder of links to another one, with these of its slices as the three."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = {entry.name: entry for entry in data.iterdir() if not entry.name.startswith(".")}
    for index, number in enumerate(slices):
        sources[f"gated{index}"] = data / f"gated{number}"
    for name, source in sources.items():
        if not (folder / name).exists():
            (folder / name).symlink_to(source.resolve())
    return folder


def needed_runs(variant: Variant, records: Records, seed: int, epochs: int | None) -> set[str]:
    """The study's runs that must be finished: what is varied, or what its training needs."""
    needed = {f"seed{seed}/{name}" for name in re.findall(START_WEIGHTS, variant.options)}
    reference = f"seed{seed}/{variant.network}"
    if not epochs or reference not in records:
        needed.add(reference)
    elif variant.network.startswith("cmkd"):  # is trained once more, from its teacher
        needed.add(f"seed{seed}/teacher")
    return needed


def variant_jobs(
    name: str, variant: Variant, seed: int, args: argparse.Namespace, records: Records
) -> tuple[Job, Job]:
    """Train a variant, and test it on the validation list.

    Raises `UserError` if the study has not finished a run that this needs.
    """
    for needed in sorted(needed_runs(variant, records, seed, args.epochs)):
        if not records.get(f"test/{needed}", {}).get("done"):
            raise UserError(
                f"{args.study} has no finished {needed}: run reproduce.py with this seed first"
            )
    title = f"{name}/seed{seed}"
    if args.epochs:
        title = f"{args.epochs}_epochs/{title}"
    folder = args.study / "ablations" / title.replace(",", "").replace(" ", "_")
    arguments = [*records[f"seed{seed}/{variant.network}"]["arguments"]]
    arguments += option_words(out=folder, run_dir=folder)
    if args.epochs:
        arguments += option_words(epochs=args.epochs)
    if variant.slices:
        linked = args.study / f"slices{''.join(map(str, variant.slices))}"
        data = Path(option_value(arguments, "--data"))
        arguments += option_words(data=link_slices(data, linked, variant.slices))
    seed_folder = args.study / f"seed{seed}"
    arguments += [word.format(seed=seed_folder) for word in variant.options.split()]
    weights = folder / f"{variant.network}.pth"
    train = Job(title, arguments, weights, leaves=training_state(folder))

    val_list = option_value(arguments, "--val-list")
    test = evaluation_job(
        f"test/{title}",
        title,
        folder,
        [weights],
        Path(option_value(arguments, "--data")),
        [val_list],
        arguments,
        detections=f"detections.{val_list}.json",
    )
    return train, test


def ap_difference(
    test: Job, references: Sequence[Path], variants: Sequence[Path], samples: int
) -> dict[str, Any]:
    """Validation AP of each seed's reference and variant, and their mean difference, in percent.

    The interval is that of bootstrap samples of frames and seeds. The folders, one per seed, have
    the scores and detections of tested runs; `test` is one of their jobs.
    """
    val_list = option_value(test.arguments, "--lists")
    data = Path(option_value(test.arguments, "--data"))
    scores = read_json(variants[0] / "scores.json", UNREADABLE)
    truth = tested_truth(data, val_list, scores["classes"], scores["ignore"])
    aps, detections = {}, {}
    for role, folders in (("reference", references), ("variant", variants)):
        file = f"detections.{val_list}.json"
        detections[role] = [read_detections(folder / file, data, val_list) for folder in folders]
        aps[role] = []
        for folder in folders:
            by_detector = read_json(folder / "scores.json", UNREADABLE)["metrics"][val_list]
            aps[role] += [100 * metrics["AP"] for metrics in by_detector.values()]
    comparison = compare_detectors(truth, detections, "reference", None, samples)
    entry = comparison["variant"]["AP"]
    return {
        "difference": 100 * entry["difference"],
        "interval": [100 * end for end in entry["difference_interval"]],
        **aps,
    }


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    add_study(parser)
    add_seeds(parser)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=VARIANTS,
        default=list(VARIANTS),
        metavar="VARIANT",
        help=f"{' | '.join(VARIANTS)} (default: all)",
    )
    parser.add_argument(
        "--epochs",
        type=at_least(1),
        help="for the variants and their references (default: the study's)",
    )
    add_side_by_side(parser)
    add_draws(parser)
    add_json(parser)
    args = parser.parse_args()
    args.seeds, args.only = sorted(set(args.seeds)), list(dict.fromkeys(args.only))
    return args


def main() -> None:
    args = parse_arguments()
    records = read_study_records(args.study)
    variants = {name: VARIANTS[name] for name in args.only}
    if args.epochs:  # the study's own runs have other epochs, so the references are trained too
        networks = dict.fromkeys(variant.network for variant in variants.values())
        references = {network: Variant("as it is", network) for network in networks}
        variants = references | variants
    training_of, test_of = {}, {}
    for name, variant in variants.items():
        for seed in args.seeds:
            pair = variant_jobs(name, variant, seed, args, records)
            training_of[name, seed], test_of[name, seed] = pair
    for (name, seed), train in training_of.items():
        for weights in (weights_file(args.study, seed, variants[name].network), train.makes):
            if weights.is_file():
                refuse_other_val_list(weights)
    jobs = [job for key in test_of for job in (training_of[key], test_of[key])]
    failed = run_jobs(jobs, args.study / "ablations", args.side_by_side)

    heading = [
        "question",
        "variant",
        "of",
        "seeds",
        "its val AP",
        "val AP",
        "difference",
        "options",
    ]
    rows, figures = [heading], {}
    for name in args.only:
        references, own = finished_folders(name, args, test_of, failed)
        if own:
            test = test_of[name, args.seeds[0]]
            figures[name] = ap_difference(test, references, own, args.draws)
            rows.append(variant_row(name, figures[name]))
    print_and_save(markdown_table(rows), figures, args.json)
    report_failures(failed, len(jobs))


def finished_folders(
    name: str, args: argparse.Namespace, test_of: dict[tuple[str, int], Job], failed: dict[str, str]
) -> tuple[list[Path], list[Path]]:
    """The folders of a variant's references and of its own runs, for seeds that have both."""
    network = VARIANTS[name].network
    references, own = [], []
    for seed in args.seeds:
        reference, tests = args.study / f"seed{seed}" / network, [test_of[name, seed]]
        if args.epochs:
            tests.append(test_of[network, seed])
            reference = tests[-1].makes.parent
        if not any(test.name in failed for test in tests):
            references.append(reference)
            own.append(tests[0].makes.parent)
    return references, own


def variant_row(name: str, figures: dict[str, Any]) -> list[str]:
    """A variant's row of the table."""
    variant = VARIANTS[name]
    low, high = figures["interval"]
    interval = f" [{low:+.1f}, {high:+.1f}]" if math.isfinite(low) else ""
    return [
        variant.question,
        name,
        variant.network,
        str(len(figures["variant"])),
        mean_and_deviation(figures["reference"]),
        mean_and_deviation(figures["variant"]),
        f"{figures['difference']:+.1f}{interval}",
        f"`{variant.options or f'--data {variant.slices}'}`",
    ]


if __name__ == "__main__":
    run(main)

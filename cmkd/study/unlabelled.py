"""Compares the networks of docs/unlabelled.md: who is seen with labels of unlabelled pairs?

    python reproduce.py --preset unlabelled --seeds 0 1 2
    python -m cmkd.study.unlabelled --study runs/unlabelled --seeds 0 1 2 --json labels.json

Compares the networks that the study has finished with all seeds. A study of simulated nights is
tested on simulated days too, because a student that replaces a detector must not become worse by
day.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np

from cmkd.evaluation.bootstrap import compare_detectors
from cmkd.evaluation.metrics import (
    WORKING_POINT,
    GroundTruth,
    Results,
    false_positives_at,
    match,
    mean_of_defined,
    none_for_nan,
    recall,
    unseen_by_rgb,
)
from cmkd.evaluation.options import add_draws, add_json, add_seeds, add_study
from cmkd.evaluation.pipeline import with_conditions
from cmkd.evaluation.tables import comparison_cell, markdown_table, print_and_save
from cmkd.frames.layout import list_file, read_list
from cmkd.runtime.command_line import OneLineParser, at_least
from cmkd.runtime.failures import run
from cmkd.runtime.files import UserError, read_json
from cmkd.study.day_detector import DAY_DETECTOR, simulation_job
from cmkd.study.jobs import (
    NIGHTS,
    UNREADABLE,
    Job,
    Records,
    evaluation_job,
    newest_in,
    option_value,
    option_words,
    read_study_records,
    report_failures,
    run_jobs,
)
from cmkd.study.networks import NETWORKS, weights_file
from cmkd.study.report import (
    MISSING,
    gap_cell,
    mean_and_deviation,
    read_detections,
    refuse_other_val_list,
    tested_truth,
)

SEED_OF_DAYS = 3_000_000  # other places than those of the nights and of the start
DAY_LIST = "val_clear_day"
CONTROL, OF_INTEREST, ORACLE = "self_labels", "teacher_labels", "true_labels"
START = "start"


def finished_networks(records: Records, seeds: list[int]) -> list[str]:
    """The networks that a study has finished with all these seeds."""
    return [
        name
        for name in NETWORKS
        if all(records.get(f"test/seed{seed}/{name}", {}).get("done") for seed in seeds)
    ]


def day_jobs(args: argparse.Namespace, records: Records, names: list[str]) -> list[Job]:
    """Simulate days, and test the networks and the weights that they started from on them."""
    out = args.study / "days"
    size = option_value(records[NIGHTS]["arguments"], "--size")
    only_days = option_words(mix="clear_day=1", seed=SEED_OF_DAYS)
    jobs = [simulation_job("days", out / "data", size, f"0 {args.days} 0", *only_days)]
    weights = {START: DAY_DETECTOR}
    for seed in args.seeds:
        weights |= {f"seed{seed}/{name}": weights_file(args.study, seed, name) for name in names}
    trained_with = records[f"seed{args.seeds[0]}/baseline"]["arguments"]
    for title, file in weights.items():
        jobs.append(
            evaluation_job(
                title, "days", out / title, [file], out / "data", [DAY_LIST], trained_with, draws=1
            )
        )
    return jobs


def ap_by_day(study: Path, title: str) -> float:
    """The AP on days of one network, in percent."""
    scores = read_json(study / "days" / title / "scores.json", UNREADABLE)
    [metrics] = scores["metrics"][DAY_LIST].values()
    return 100 * metrics["AP"]


# ------------------------------------------------------------------------------------- comparisons


def working_points(
    truth: GroundTruth, found: dict[str, list[Results]]
) -> dict[str, dict[str, list[float]]]:
    """By network: a value per seed, the mean over the categories.

    `recall_seen` is that of people visible in RGB, at 0.1 false positives per image;
    `false_positives` are those per image at which a network finds as many people as the baseline
    of its seed finds at 0.1, NaN if it never does.
    """
    points = {name: {"recall_seen": [], "false_positives": []} for name in found}
    categories = [category["id"] for category in truth["categories"]]
    for index, baseline in enumerate(found["baseline"]):
        references = [match(truth, baseline, category) for category in categories]
        wanted = [recall(one, np.ones(len(one.truth), bool)) for one in references]
        for name, by_seed in found.items():
            seen, false_positives = [], []
            for category, recall_of_baseline in zip(categories, wanted, strict=True):
                matches = match(truth, by_seed[index], category)
                seen.append(recall(matches, ~unseen_by_rgb(matches.truth)))
                if matches.truth:
                    false_positives.append(false_positives_at(matches, recall_of_baseline))
            points[name]["recall_seen"].append(mean_of_defined(seen))
            points[name]["false_positives"].append(mean_if_all_defined(false_positives))
    return points


def mean_if_all_defined(values: list[float]) -> float:
    """The mean; NaN if a value is NaN, because without it the mean of the others is too good."""
    return sum(values) / len(values) if values else math.nan


def tested_lists(args: argparse.Namespace, records: Records) -> tuple[Path, str, str]:
    """The data folder, the validation list and the test list of a study."""
    arguments = records[f"test/seed{args.seeds[0]}/baseline"]["arguments"]
    start = arguments.index("--lists") + 1
    return Path(option_value(arguments, "--data")), *arguments[start : start + 2]


def compare(
    args: argparse.Namespace, records: Records, names: list[str]
) -> dict[str, dict[str, Any]]:
    """By list: the networks against the baseline, with the share of the oracle's gain, and against
    the network that learned from its own labels. Conditions of a list are lists too."""
    data, val_list, test_list = tested_lists(args, records)
    folder = args.study / f"seed{args.seeds[0]}/baseline"
    scores = read_json(folder / "scores.json", UNREADABLE)
    truths, found = {}, {}
    for list_name in (val_list, test_list):
        truths[list_name] = tested_truth(data, list_name, scores["classes"], scores["ignore"])
        found[list_name] = {
            f"{name} {seed}": read_detections(
                args.study / f"seed{seed}/{name}/detections.{list_name}.json", data, list_name
            )
            for name in names
            for seed in args.seeds
        }
    truths, found = with_conditions(data, truths, found)
    comparisons = {}
    for list_name, truth in truths.items():
        runs = {name: [found[list_name][f"{name} {seed}"] for seed in args.seeds] for name in names}
        oracle = ORACLE if ORACLE in names else None
        against = {"baseline": compare_detectors(truth, runs, "baseline", oracle, args.draws)}
        if CONTROL in names:
            against[CONTROL] = compare_detectors(truth, runs, CONTROL, None, args.draws)
        comparisons[list_name] = {
            "frames": len(truth["images"]),
            "against": against,
            "points": working_points(truth, runs),
        }
    return comparisons


def labels_of_baselines(records: Records, seed: int) -> dict[int, str]:
    """The finished RGB networks that learned from labelled frames alone, by how many these are."""
    by_count = {}
    for name in finished_networks(records, [seed]):
        network = NETWORKS[name]
        if network.script == "baseline" and not network.unlabelled:
            arguments = records[f"seed{seed}/{name}"]["arguments"]
            data = Path(option_value(arguments, "--data"))
            train_list = list_file(data, option_value(arguments, "--train-list"))
            by_count[len(read_list(train_list))] = name
    return by_count


def label_equivalents(aps: dict[int, float], ap: float) -> str:
    """How many labelled frames give an AP, by the APs of baselines with so many.

    Interpolated in the logarithm of the number of frames.
    """
    counts = sorted(aps)
    values = [aps[count] for count in counts]
    if not np.all(np.diff(values) > 0):
        return "undefined, because the curve does not rise"
    if ap < values[0]:
        return f"fewer than {counts[0]}"
    if ap > values[-1]:
        return f"more than {counts[-1]}"
    return f"{math.exp(np.interp(ap, values, np.log(counts))):.0f}"


# ------------------------------------------------------------------------------------------- tables


def metrics_of(study: Path, seed: int, name: str, list_name: str) -> dict[str, float]:
    """The metrics of one tested run, 0..1; NaN for undefined ones."""
    scores = read_json(study / f"seed{seed}/{name}/scores.json", UNREADABLE)
    [metrics] = scores["metrics"][list_name].values()
    return {key: math.nan if value is None else value for key, value in metrics.items()}


def arm_rows(
    args: argparse.Namespace,
    names: list[str],
    val_list: str,
    test_list: str,
    points: dict[str, dict[str, list[float]]],
    by_day: dict[str, list[float]],
) -> list[list[str]]:
    """A row per network: means and standard deviations over its seeds.

    `points` are the `working_points` of the test list.
    """
    heading = ["network", "val AP", "test AP", "AP50", "MR", "recall, seen in RGB"]
    heading += ["recall, unseen", "false positives at equal recall", "AP by day"]
    rows = [heading]
    for name in names:
        columns = []
        for list_name, metric in (
            (val_list, "AP"),
            (test_list, "AP"),
            (test_list, "AP50"),
            (test_list, "MR"),
        ):
            values = [metrics_of(args.study, seed, name, list_name)[metric] for seed in args.seeds]
            columns.append([100 * value for value in values])
        columns.append([100 * value for value in points[name]["recall_seen"]])
        columns.append(
            [
                100 * metrics_of(args.study, seed, name, test_list)["recall_unseen"]
                for seed in args.seeds
            ]
        )
        cells = [mean_and_deviation(values) for values in columns]
        false_positives = mean_if_all_defined(points[name]["false_positives"])
        cells.append(f"{false_positives:.3f}" if math.isfinite(false_positives) else MISSING)
        cells.append(mean_and_deviation(by_day.get(name, [])))
        rows.append([name, *cells])
    return rows


def difference_rows(names: list[str], comparisons: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A row per network and list: AP minus the baseline's and the control's, share of the oracle's
    gain."""
    rows = [["list", "network", "AP", "minus baseline", "minus self_labels", "share of the oracle"]]
    for list_name, comparison in comparisons.items():
        against = comparison["against"]
        for name in names:
            entry = against["baseline"][name]["AP"]
            has_oracle = ORACLE in names and name not in ("baseline", ORACLE)
            share = gap_cell(entry) if has_oracle else MISSING
            control = MISSING
            if CONTROL in against and name != CONTROL:
                control = comparison_cell(against[CONTROL][name]["AP"], "difference")
            base = MISSING if name == "baseline" else comparison_cell(entry, "difference")
            ap = mean_and_deviation([100 * entry["value"]])
            rows.append([list_name, name, ap, base, control, share])
    return rows


def main() -> None:
    parser = OneLineParser(__doc__)
    add_study(parser)
    add_seeds(parser)
    parser.add_argument(
        "--days",
        type=at_least(1),
        default=300,
        metavar="N",
        help="simulated day frames on which all are tested (default: 300)",
    )
    add_draws(parser)
    add_json(parser)
    args = parser.parse_args()
    records = read_study_records(args.study)
    names = finished_networks(records, args.seeds)
    if "baseline" not in names:
        raise UserError(
            f"{args.study} has no finished baseline of these seeds: run reproduce.py --preset "
            "unlabelled first"
        )
    data, val_list, test_list = tested_lists(args, records)
    for name in names:
        for seed in args.seeds:
            refuse_other_val_list(weights_file(args.study, seed, name))
            scores = args.study / f"seed{seed}/{name}/scores.json"
            if newest_in(list_file(data, test_list)) > scores.stat().st_mtime:
                raise UserError(
                    f"{scores} is older than {test_list} or its labels: run reproduce.py again"
                )
    by_day: dict[str, list[float]] = {}
    if NIGHTS in records:
        jobs = day_jobs(args, records, names)
        report_failures(run_jobs(jobs, args.study / "days", None), len(jobs))
        by_day = {
            name: [ap_by_day(args.study, f"seed{seed}/{name}") for seed in args.seeds]
            for name in names
        }
        by_day[START] = [ap_by_day(args.study, START)]

    comparisons = compare(args, records, names)
    seed = args.seeds[0]
    points = comparisons[test_list]["points"]
    curve = {
        count: metrics_of(args.study, seed, name, test_list)["AP"]
        for count, name in labels_of_baselines(records, seed).items()
    }
    equivalents = {
        name: label_equivalents(curve, metrics_of(args.study, seed, name, test_list)["AP"])
        for name in names
        if NETWORKS[name].unlabelled
    }
    figures = {
        "comparisons": none_for_nan(comparisons),
        "ap_by_day": by_day,
        "curve": curve,
        "label_equivalents": equivalents,
    }
    tables = [
        markdown_table(arm_rows(args, names, val_list, test_list, points, by_day)),
        f"Recalls are at {WORKING_POINT} false positives per image. AP by day of the start: "
        f"{mean_and_deviation(by_day.get(START, []))}.",
        markdown_table(difference_rows(names, comparisons)),
        f"As good as how many labelled frames, by the baselines of seed {seed}: "
        + "; ".join(f"{name} {count}" for name, count in equivalents.items()),
    ]
    print_and_save("\n\n".join(tables), figures, args.json)


if __name__ == "__main__":
    run(main)

"""The results of a study: all its runs, pooled over seeds, as a table, JSON and a picture."""

import math
import statistics
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cmkd.evaluation.bootstrap import compare_detectors
from cmkd.evaluation.metrics import GroundTruth, Results, none_for_nan, unseen_by_rgb
from cmkd.evaluation.pipeline import with_conditions
from cmkd.evaluation.tables import markdown_table, problem_of_frame
from cmkd.frames.layout import condition_lists, list_file, read_list
from cmkd.runtime.failures import warn
from cmkd.runtime.files import (
    UserError,
    read_json,
    reason_of,
    save_json,
    save_text,
    write_atomically,
)
from cmkd.runtime.hardware import versions
from cmkd.runtime.weights import read_settings, settings_file
from cmkd.study.networks import NETWORKS, REFERENCES
from cmkd.viewing.curves import COLOURS, read_epochs
from dataset import SeeingThroughFog

# The test list, but people visible to the gated camera alone need not be found.
WITHOUT_UNSEEN = "without the unseen"
MISSING = "-"
MARKERS = "os^D"  # of students
MARKER_STYLE = {"markeredgecolor": "black", "markersize": 6}

Comparison = dict[str, dict[str, Any]]  # of bootstrap.compare_detectors


@dataclass(frozen=True)
class Study:
    """Finished runs on one data folder."""

    data: Path
    val_list: str
    test_list: str
    seeds: list[int]  # wanted ones
    # By network and seed: a folder with scores.json, detections and log.jsonl, and the weights.
    runs: dict[str, dict[int, tuple[Path, Path]]]
    samples: int  # bootstrap samples


@dataclass(frozen=True)
class FinishedRun:
    """What one training left."""

    summary: dict[str, Any]  # its part of results.json
    detections: dict[str, Results]  # by list
    classes: list[str]
    ignore: list[str]


Runs = dict[str, dict[int, FinishedRun]]  # by network and seed


def write_results(study: Study, out: Path) -> str:
    """Write results.json, results.md and, if matplotlib is installed, results.png.

    Returns the table.
    """
    runs = read_runs(study)
    frames, comparisons = compare_runs(study, runs)
    text = (
        f"{markdown_table(results_rows(study, runs, comparisons))}\n\n"
        f"{caption(study, runs, frames)}{gap_without_unseen(comparisons.get(WITHOUT_UNSEEN, {}))}"
    )
    summaries = {
        name: {seed: run.summary for seed, run in by_seed.items()} for name, by_seed in runs.items()
    }
    numbers = {
        "data": study.data,
        "val_list": study.val_list,
        "test_list": study.test_list,
        "seeds": study.seeds,
        "draws": study.samples,
        "frames": frames,
        "runs": none_for_nan(summaries),
        "comparison": none_for_nan(comparisons),
        "versions": versions(),
    }
    save_json(numbers, out / "results.json")
    save_text(text + "\n", out / "results.md")
    if comparisons:
        draw_results(study, runs, comparisons, out / "results.png")
    return text


# --------------------------------------------------------------------------------- reading the runs


def read_runs(study: Study) -> Runs:
    """All runs that can be read; a warning names the others."""
    runs: Runs = {}
    for name, by_seed in study.runs.items():
        runs[name] = {}
        for seed, (folder, weights) in by_seed.items():
            try:
                one_run = read_run(folder, weights, study)
                refuse_other_val_list(weights)
                runs[name][seed] = one_run
            except UserError as error:
                warn(f"{folder} is left out: {error}")
            except (ValueError, KeyError) as error:
                warn(f"{folder} is left out: {reason_of(error)}")
    return runs


def read_run(folder: Path, weights: Path, study: Study) -> FinishedRun:
    """One run. Raises `UserError`, or `KeyError` if one of its files lacks something."""
    advice = "the run is not finished, or its files were changed"
    epochs = read_epochs(folder / "log.jsonl")
    scores = read_json(folder / "scores.json", advice)
    detections = {
        name: read_detections(folder / f"detections.{name}.json", study.data, name)
        for name in (study.val_list, study.test_list)
    }
    settings = read_json(settings_file(weights), advice)
    metrics = {}
    for list_name, by_detector in scores["metrics"].items():
        [values] = by_detector.values()
        metrics[list_name] = {
            metric: math.nan if value is None else value for metric, value in values.items()
        }
    seconds = sum(epoch["train_seconds"] + epoch["val_seconds"] for epoch in epochs)
    summary = {
        "metrics": metrics,
        "minutes": seconds / 60,
        **{name: epochs[-1][name] for name in ("epoch", "iteration", "best_epoch")},
        "git": settings["versions"]["git"],
    }
    return FinishedRun(summary, detections, scores["classes"], scores["ignore"])


def read_detections(file: Path, data: Path, list_name: str) -> Results:
    """What a test saved of a list.

    Raises `UserError` if a result is not of the frame that its number says in the list today.
    """
    advice = f"remove {file.parent / 'scores.json'}, and test it again with the same command"
    images = dict(enumerate(read_list(list_file(data, list_name))))
    results = read_json(file, advice)
    for index, result in enumerate(results):
        if problem := problem_of_frame(result, images):
            raise UserError(f"{file}: result {index} {problem}; {advice}")
    return results


def refuse_other_val_list(weights: Path) -> None:
    """Raise `UserError` for weights that were chosen on another validation list than there is now.

    That is one of other frames or labels. Weights of earlier versions do not say on which.
    """
    settings = read_settings(weights)
    if "val_fingerprint" not in settings:
        return
    file = list_file(Path(settings["arguments"]["data"]), settings["arguments"]["val_list"])
    if not file.is_file():  # the folder was moved
        return
    ignore = settings["ignore"]
    ignore = ignore if ignore is None else tuple(ignore)
    if settings["val_fingerprint"] != fingerprint_of(file, tuple(settings["classes"]), ignore):
        raise UserError(
            f"{weights} was chosen on other frames or labels than {file} has now: restore them, or "
            "begin a new study with another --out"
        )


@cache
def fingerprint_of(file: Path, classes: tuple[str, ...], ignore: tuple[str, ...] | None) -> str:
    """The fingerprint of a list; computed once, because it takes seconds if the list is long."""
    frames = SeeingThroughFog(
        file.parent, file.stem, "rgb", classes, ignore if ignore is None else list(ignore)
    )
    return frames.fingerprint


def tested_truth(data: Path, list_name: str, classes: list[str], ignore: list[str]) -> GroundTruth:
    """A list's ground truth, with the classes and ignored classes of a scores.json."""
    return SeeingThroughFog(data, list_name, "rgb", classes, ignore or ["none"]).ground_truth()


# -------------------------------------------------------------------------------------- comparisons


def compare_runs(study: Study, runs: Runs) -> tuple[dict[str, int], dict[str, Comparison]]:
    """The number of frames, and the comparison of the networks, by list.

    Lists are the study's two, their conditions, and the test list `WITHOUT_UNSEEN` if it has people
    unseen by RGB. Only over the seeds that every network has: a student is compared with the
    baseline of its seed. Both are empty if there is nothing to compare.
    """
    present = [name for name, by_seed in runs.items() if by_seed]
    seeds = [seed for seed in study.seeds if all(seed in runs[name] for name in present)]
    if len(present) < 2 or not seeds:
        return {}, {}
    one_run = runs[present[0]][seeds[0]]
    truths, found = {}, {}
    for list_name in (study.val_list, study.test_list):
        truths[list_name] = tested_truth(study.data, list_name, one_run.classes, one_run.ignore)
        found[list_name] = {
            f"{name} {seed}": runs[name][seed].detections[list_name]
            for name in present
            for seed in seeds
        }
    truths, found = with_conditions(study.data, truths, found)
    if unseen_by_rgb(truths[study.test_list]["annotations"]).any():
        truths[WITHOUT_UNSEEN] = without_unseen(truths[study.test_list])
        found[WITHOUT_UNSEEN] = found[study.test_list]

    baseline, teacher = present[0], None
    if set(REFERENCES) <= set(present):
        baseline, teacher = "baseline", "teacher"
    frames, comparisons = {}, {}
    for list_name, truth in truths.items():
        by_network = {
            name: [found[list_name][f"{name} {seed}"] for seed in seeds] for name in present
        }
        frames[list_name] = len(truth["images"])
        comparisons[list_name] = compare_detectors(
            truth, by_network, baseline, teacher, study.samples
        )
    return frames, comparisons


def without_unseen(ground_truth: GroundTruth) -> GroundTruth:
    """A ground truth in which people visible to the gated camera alone are ignore regions.

    It does not count if they are found or missed.
    """
    annotations = [
        {**annotation, "iscrowd": 1} if unseen else annotation
        for annotation, unseen in zip(
            ground_truth["annotations"], unseen_by_rgb(ground_truth["annotations"]), strict=True
        )
    ]
    return {**ground_truth, "annotations": annotations}


# -------------------------------------------------------------------------------------------- table


def results_rows(study: Study, runs: Runs, comparisons: dict[str, Comparison]) -> list[list[str]]:
    """A heading, then a row per network: means over its seeds, and the gap closed.

    What is missing is a dash.
    """
    val, test = study.val_list, study.test_list
    columns = {
        f"{val} AP": (val, "AP"),
        f"{test} AP": (test, "AP"),
        f"{test} AP50": (test, "AP50"),
        f"{test} MR": (test, "MR"),
        "found of those unseen by RGB": (test, "recall_unseen"),
    }
    gaps = {f"gap closed, {list_name}": list_name for list_name in (val, test)}
    rows = [["network", "inputs", "seeds", *columns, *gaps, "minutes"]]
    wanted = len(study.seeds)
    for name, by_seed in runs.items():
        summaries = [run.summary for run in by_seed.values()]
        row = [name, NETWORKS[name].inputs]
        row.append(str(wanted) if len(summaries) == wanted else f"{len(summaries)} of {wanted}")
        for list_name, metric in columns.values():
            values = [100 * summary["metrics"][list_name][metric] for summary in summaries]
            row.append(mean_and_deviation(values))
        for list_name in gaps.values():
            entry = comparisons.get(list_name, {}).get(name, {}).get("AP", {})
            row.append("" if name in REFERENCES else gap_cell(entry))
        minutes = [summary["minutes"] for summary in summaries]
        rows.append([*row, f"{statistics.mean(minutes):.1f}" if minutes else MISSING])
    return rows


def caption(study: Study, runs: Runs, frames: dict[str, int]) -> str:
    """What the table's numbers are."""
    seeds, also_seeds = f"seed {study.seeds[0]}", ""
    if len(study.seeds) > 1:
        names = ", ".join(map(str, study.seeds))
        seeds, also_seeds = f"mean ± standard deviation over the seeds {names}", " and seeds"
    sizes = [
        f"; {list_name} has {frames[list_name]} frames"
        for list_name in (study.val_list, study.test_list)
        if list_name in frames
    ]
    commits = {run.summary["git"] for by_seed in runs.values() for run in by_seed.values()}
    return (
        f"In percent; {seeds}. MR: log-average miss rate, lower is better. Unseen: people that the "
        "gated camera sees and the RGB camera does not, at 0.1 false positives per image. Gap "
        "closed: share of the AP between baseline and teacher, over the seeds that all networks "
        f"have; in brackets the 95 % interval of {study.samples} bootstrap samples of "
        f"frames{also_seeds}{''.join(sizes)}. Commit {', '.join(sorted(commits)) or 'unknown'}."
    )


def gap_without_unseen(comparison: Comparison) -> str:
    """A sentence: the gap that remains without the unseen, and how much of it students close."""
    if not set(REFERENCES) <= comparison.keys():
        return ""
    teacher, baseline = (100 * comparison[name]["AP"]["value"] for name in REFERENCES)
    students = [
        f"{name} {gap_cell(by_metric['AP'])}"
        for name, by_metric in comparison.items()
        if name not in REFERENCES
    ]
    closed = f"; gap closed: {', '.join(students)}" if students else ""
    return (
        " Without the unseen, who then count neither as found nor as missed, the teacher has AP "
        f"{teacher:.1f} and the baseline {baseline:.1f}{closed}."
    )


def mean_and_deviation(values: list[float]) -> str:
    """`12.3 ± 0.4`: the mean and, of several values, the standard deviation."""
    defined = [value for value in values if math.isfinite(value)]
    if not defined:
        return MISSING
    deviation = f" ± {statistics.stdev(defined):.1f}" if len(defined) > 1 else ""
    return f"{statistics.mean(defined):.1f}{deviation}"


def gap_cell(entry: dict[str, Any]) -> str:
    """`20 % [-11, 39]`: the share of the gap closed and its interval, if they are defined."""
    if not math.isfinite(entry.get("gap_closed", math.nan)):
        return MISSING
    low, high = entry["gap_closed_interval"]
    interval = f" [{round(100 * low)}, {round(100 * high)}]" if math.isfinite(low) else ""
    return f"{round(100 * entry['gap_closed'])} %{interval}"


# ------------------------------------------------------------------------------------------ picture


def draw_results(study: Study, runs: Runs, comparisons: dict[str, Comparison], file: Path) -> None:
    """Draw a PNG: AP and recall of the unseen on the test list, and the gap closed by condition.

    Only prints how to get it if matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        print(f"no {file}: pip install matplotlib, and run the same command again to draw it")
        return
    mpl.use("Agg")
    from matplotlib import pyplot

    test = study.test_list
    size = (15, 1.6 + 0.55 * len(comparisons[test]))
    figure, panels = pyplot.subplots(1, 3, figsize=size, layout="constrained")
    for panel, metric, title in (
        (panels[0], "AP", f"AP on {test}, %"),
        (panels[1], "recall_unseen", "found of the people unseen by RGB, %"),
    ):
        draw_metric(panel, metric, comparisons[test], runs, test)
        panel.set(title=title)
    parts = [WITHOUT_UNSEEN, *condition_lists(study.data, test)]
    lists = [test, *(name for name in parts if name in comparisons)]
    draw_gaps(panels[2], {name: comparisons[name] for name in lists})
    for panel in panels:
        panel.invert_yaxis()
        panel.grid(axis="x", alpha=0.3)
    write_atomically(file, lambda unfinished: figure.savefig(unfinished, format="png", dpi=110))
    pyplot.close(figure)


def colour_of(network: str) -> str:
    """Its colour of the palette, which begins again after its last."""
    return COLOURS[list(NETWORKS).index(network) % len(COLOURS)]


def draw_metric(
    panel: Any, metric: str, comparison: Comparison, runs: Runs, list_name: str
) -> None:
    """Draw a bar for each network's mean, a line for its interval, a dot for each seed."""
    for row, (name, by_metric) in enumerate(comparison.items()):
        entry, colour = by_metric[metric], colour_of(name)
        panel.barh(row, 100 * entry["value"], color=colour, alpha=0.45)
        ends = [100 * end for end in entry["interval"]]
        panel.plot(ends, [row, row], color="black", linewidth=1.5)
        summaries = [run.summary for run in runs[name].values()]
        values = [100 * summary["metrics"][list_name][metric] for summary in summaries]
        panel.plot(values, [row] * len(values), "o", color=colour, **MARKER_STYLE)
    panel.set(yticks=range(len(comparison)), yticklabels=list(comparison), xlim=(0, None))


def draw_gaps(panel: Any, comparisons: dict[str, Comparison]) -> None:
    """Draw a point for each list and student, with its interval as far as the panel extends."""
    first = next(iter(comparisons.values()))
    students = [
        name
        for name, by_metric in first.items()
        if "gap_closed" in by_metric["AP"] and name not in REFERENCES
    ]
    shown = [0.0, 100.0]
    for number, name in enumerate(students):
        colour, marker = colour_of(name), MARKERS[number % len(MARKERS)]
        offset = 0.6 * ((number + 0.5) / len(students) - 0.5)
        for row, comparison in enumerate(comparisons.values()):
            entry, height = comparison[name]["AP"], row + offset
            ends = [100 * end for end in entry["gap_closed_interval"]]
            panel.plot(ends, [height, height], color=colour, linewidth=1.5)
            share = 100 * entry["gap_closed"]
            shown.append(share)
            label = name if row == 0 else None
            panel.plot(share, height, marker, color=colour, label=label, **MARKER_STYLE)
    defined = [value for value in shown if math.isfinite(value)]
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set(
        title="AP gap closed, %",
        yticks=range(len(comparisons)),
        yticklabels=list(comparisons),
        xlim=(min(defined) - 30, max(defined) + 30),
    )
    if students:
        panel.legend(loc="best", fontsize="small")

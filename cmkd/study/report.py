"""What a study found: all its runs, pooled over seeds, as a table, JSON and a picture."""

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmkd.evaluation.bootstrap import compare
from cmkd.evaluation.metrics import finite, unseen_by_rgb
from cmkd.evaluation.pipeline import with_conditions
from cmkd.evaluation.tables import markdown
from cmkd.frames.layout import condition_lists
from cmkd.viewing.curves import COLOURS, read_epochs
from dataset import SeeingThroughFog
from utils import UserError, reason_of, save_json, versions, warn, write_atomically

NETWORKS = {"teacher": "RGB + gated", "baseline": "RGB", "cmkd_mse": "RGB", "cmkd_adv": "RGB", "cmkd_plus": "RGB"}
WITHOUT_UNSEEN = "without the unseen"  # the test list, where nobody has to find whom only the gated camera sees
MISSING = "-"

Runs = dict[str, dict[int, dict[str, Any]]]  # by network and seed: scores by list, minutes, ...


@dataclass(frozen=True)
class Study:
    """Finished runs on one data folder: of each network by seed, the folder with its scores, detections and log."""

    data: Path
    val_list: str
    test_list: str
    seeds: list[int]  # that were wanted
    folders: dict[str, dict[int, Path]]
    draws: int


def write_results(study: Study, out: Path) -> str:
    """Write results.json, results.md and, where matplotlib is installed, results.png; return the table."""
    runs, detections, trained = read_runs(study)
    frames, comparisons = compare_runs(study, detections, trained) if trained else ({}, {})
    table = (f"{markdown(results_rows(study, runs, comparisons))}\n\n{caption(study, runs, frames)}"
             f"{gap_without_unseen(comparisons.get(WITHOUT_UNSEEN, {}))}")
    save_json({"data": study.data, "val_list": study.val_list, "test_list": study.test_list, "seeds": study.seeds,
               "draws": study.draws, "frames": frames, "runs": finite(runs), "comparison": finite(comparisons),
               "versions": versions()}, out / "results.json")
    write_atomically(out / "results.md", lambda unfinished: unfinished.write_text(table + "\n", encoding="utf-8"))
    if comparisons:
        draw(study, runs, comparisons, out / "results.png")
    return table


def read_runs(study: Study) -> tuple[Runs, dict[str, dict[str, dict[int, list]]], dict[str, Any]]:
    """Of each network and seed its scores and what it took, its detections by list, and what says with which classes
    all were trained. A run whose files cannot be read is named, and left out."""
    runs: Runs = {name: {} for name in study.folders}
    detections: dict[str, dict[str, dict[int, list]]] = {
        one: {name: {} for name in study.folders} for one in (study.val_list, study.test_list)}
    trained: dict[str, Any] = {}
    for name, by_seed in study.folders.items():
        for seed, folder in by_seed.items():
            try:
                epochs = read_epochs(folder / "log.jsonl")
                scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
                found = {one: json.loads((folder / f"detections.{one}.json").read_text(encoding="utf-8"))
                         for one in detections}
                runs[name][seed] = {
                    "metrics": {one: {score: math.nan if value is None else value for score, value
                                      in next(iter(by_title.values())).items()}
                                for one, by_title in scores["metrics"].items()},
                    "minutes": sum(epoch["train_seconds"] + epoch["val_seconds"] for epoch in epochs) / 60,
                    **{what: epochs[-1][what] for what in ("epoch", "iteration", "best_epoch")},
                    "git": json.loads(folder.with_suffix(".json").read_text(encoding="utf-8"))["versions"]["git"]}
            except (UserError, OSError, ValueError, KeyError) as error:
                warn(f"{folder} is left out: {reason_of(error)}")
                continue
            trained = scores
            for one in detections:
                detections[one][name][seed] = found[one]
    return runs, detections, trained


def compare_runs(study: Study, detections: dict[str, dict[str, dict[int, list]]], trained: dict[str, Any]
                 ) -> tuple[dict[str, int], dict[str, dict]]:
    """The number of frames, and `comparison.compare` of the networks, on each list and condition, and on the test list
    `WITHOUT_UNSEEN` where it has such people.

    Over the seeds that every network has: a student is compared with the baseline that began as it did.
    """
    truths = {one: SeeingThroughFog(study.data, one, "rgb", trained["classes"], trained["ignore"] or ["none"]
                                    ).ground_truth() for one in detections}
    [by_network, *_] = detections.values()
    present = [name for name, by_seed in by_network.items() if by_seed]
    seeds = [seed for seed in study.seeds if all(seed in by_network[name] for name in present)]
    if len(present) < 2 or not seeds:
        return {}, {}
    truths, found = with_conditions(study.data, truths, {
        one: {f"{name} {seed}": by_network[name][seed] for name in present for seed in seeds}
        for one, by_network in detections.items()})
    baseline, teacher = ("baseline", "teacher") if {"teacher", "baseline"} <= set(present) else (present[0], None)
    if unseen_by_rgb(truths[study.test_list]["annotations"]).any():
        truths[WITHOUT_UNSEEN] = without_unseen(truths[study.test_list])
        found[WITHOUT_UNSEEN] = found[study.test_list]
    comparisons = {one: compare(truth, {name: [found[one][f"{name} {seed}"] for seed in seeds] for name in present},
                                baseline, teacher, study.draws) for one, truth in truths.items()}
    return {one: len(truth["images"]) for one, truth in truths.items()}, comparisons


def without_unseen(ground_truth: dict[str, list]) -> dict[str, list]:
    """A COCO dictionary in which those whom the gated camera sees and RGB does not are ignore regions: to find them is
    no hit, to miss them no miss, and a box on them no false alarm."""
    annotations = ground_truth["annotations"]
    return {**ground_truth, "annotations": [{**one, "iscrowd": 1} if unseen else one for one, unseen
                                            in zip(annotations, unseen_by_rgb(annotations), strict=True)]}


def results_rows(study: Study, runs: Runs, comparisons: dict[str, dict]) -> list[list[str]]:
    """A heading and a row for each network: means and standard deviations over its seeds, and the share of the gap
    closed with its interval. What is not there is a dash."""
    val, test = study.val_list, study.test_list
    rows = [["network", "inputs", "seeds", f"{val} AP", f"{test} AP", f"{test} AP50", f"{test} MR",
             "found of those unseen by RGB", f"gap closed, {val}", f"gap closed, {test}", "minutes"]]
    for name, by_seed in runs.items():
        wanted = len(study.seeds)
        rows.append([name, NETWORKS[name], str(wanted) if len(by_seed) == wanted else f"{len(by_seed)} of {wanted}",
                     *(mean_and_deviation([100 * run["metrics"][one][score] for run in by_seed.values()])
                       for one, score in ((val, "AP"), (test, "AP"), (test, "AP50"), (test, "MR"),
                                          (test, "recall_unseen"))),
                     *(gap_cell(comparisons.get(one, {}).get(name, {}).get("AP", {}))
                       if name not in ("teacher", "baseline") else "" for one in (val, test)),
                     mean_and_deviation([run["minutes"] for run in by_seed.values()]).partition(" ")[0]])
    return rows


def caption(study: Study, runs: Runs, frames: dict[str, int]) -> str:
    """What the table's numbers are."""
    commits = sorted({run["git"] for by_seed in runs.values() for run in by_seed.values()})
    sizes = ", ".join(f"{one} has {frames[one]} frames" for one in (study.val_list, study.test_list) if one in frames)
    seeds = (f"mean ± standard deviation over the seeds {', '.join(map(str, study.seeds))}" if len(study.seeds) > 1
             else f"seed {study.seeds[0]}")
    return (f"In percent; {seeds}. MR: log-average miss rate, lower is better. Unseen: people whom the gated camera "
            "sees and the RGB camera does not, at 0.1 false alarms per image. Gap closed: of the AP between baseline "
            "and teacher, over the seeds that all networks have; in brackets 95 % of "
            f"{study.draws} draws of frames{' and seeds' if len(study.seeds) > 1 else ''}"
            f"{'; ' + sizes if sizes else ''}. "
            f"Commit {', '.join(commits) or 'unknown'}.")


def gap_without_unseen(comparison: dict[str, dict]) -> str:
    """A sentence on the gap that is there among those whom RGB shows too, and how much of it each student closes."""
    if not {"teacher", "baseline"} <= comparison.keys():
        return ""
    scores = {name: by_score["AP"] for name, by_score in comparison.items()}
    students = ", ".join(f"{name} {gap_cell(score)}" for name, score in scores.items()
                         if name not in ("teacher", "baseline"))
    return (f" Without the unseen, who then count neither as found nor as missed, the teacher has AP "
            f"{100 * scores['teacher']['value']:.1f} and the baseline {100 * scores['baseline']['value']:.1f}"
            f"{'; gap closed: ' + students if students else ''}.")


def mean_and_deviation(values: list[float]) -> str:
    """`12.3 ± 0.4`: the mean and, of several, the standard deviation."""
    defined = [value for value in values if math.isfinite(value)]
    if not defined:
        return MISSING
    spread = f" ± {statistics.stdev(defined):.1f}" if len(defined) > 1 else ""
    return f"{statistics.mean(defined):.1f}{spread}"


def gap_cell(score: dict[str, Any]) -> str:
    """`20 % [-11, 39]`: the share of the gap closed, and its 95 % interval, where that is defined."""
    if not math.isfinite(score.get("gap_closed", math.nan)):
        return MISSING
    low, high = score["gap_closed_interval"]
    edges = f" [{round(100 * low)}, {round(100 * high)}]" if math.isfinite(low) else ""
    return f"{round(100 * score['gap_closed'])} %{edges}"


def draw(study: Study, runs: Runs, comparisons: dict[str, dict], file: Path) -> None:
    """A PNG: the test list's AP and share of the unseen people that are found, and the gap closed by condition. Says so
    where matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        print(f"{file} is drawn where matplotlib is installed: pip install matplotlib, and the same command")
        return
    mpl.use("Agg")
    from matplotlib import pyplot

    names = list(comparisons[study.test_list])
    colours = dict(zip(names, COLOURS, strict=False))
    figure, panels = pyplot.subplots(1, 3, figsize=(15, 1.6 + 0.55 * len(names)), layout="constrained")
    draw_scores(panels[0], "AP", f"AP on {study.test_list}, %", study, runs, comparisons, colours)
    draw_scores(panels[1], "recall_unseen", "found of the people unseen by RGB, %", study, runs, comparisons, colours)
    parts = [one for one in (WITHOUT_UNSEEN, *condition_lists(study.data, study.test_list)) if one in comparisons]
    draw_gaps(panels[2], [study.test_list, *parts], comparisons, colours)
    for panel in panels:
        panel.invert_yaxis()
        panel.grid(axis="x", alpha=0.3)
    write_atomically(file, lambda unfinished: figure.savefig(unfinished, format="png", dpi=110))
    pyplot.close(figure)


def draw_scores(panel: Any, score: str, title: str, study: Study, runs: Runs, comparisons: dict[str, dict],
                colours: dict[str, str]) -> None:
    """A bar for each network's mean, a line for its interval, a dot for each seed."""
    for place, (name, colour) in enumerate(colours.items()):
        low, high = (100 * edge for edge in comparisons[study.test_list][name][score]["interval"])
        panel.barh(place, 100 * comparisons[study.test_list][name][score]["value"], color=colour, alpha=0.45)
        panel.plot([low, high], [place, place], color="black", linewidth=1.5)
        values = [100 * run["metrics"][study.test_list][score] for run in runs[name].values()]
        panel.plot(values, [place] * len(values), "o", color=colour, markeredgecolor="black", markersize=6)
    panel.set(title=title, yticks=range(len(colours)), yticklabels=list(colours), xlim=(0, None))


def draw_gaps(panel: Any, lists: list[str], comparisons: dict[str, dict], colours: dict[str, str]) -> None:
    """For each list a point for each student, with its interval as far as the panel goes."""
    students = [name for name, scores in comparisons[lists[0]].items()
                if "gap_closed" in scores["AP"] and name not in ("teacher", "baseline")]
    shown = [0.0, 100.0]
    for number, name in enumerate(students):
        for place, one in enumerate(lists):
            score = comparisons[one][name]["AP"]
            height = place + 0.6 * ((number + 0.5) / len(students) - 0.5)
            shown.append(100 * score["gap_closed"])
            panel.plot([100 * edge for edge in score["gap_closed_interval"]], [height, height], color=colours[name],
                       linewidth=1.5)
            panel.plot(shown[-1], height, "os^D"[number % 4], color=colours[name], markeredgecolor="black",
                       markersize=6, label=name if place == 0 else None)
    defined = [value for value in shown if math.isfinite(value)]
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set(title="AP gap closed, %", yticks=range(len(lists)), yticklabels=lists,
              xlim=(min(defined) - 30, max(defined) + 30))
    if students:
        panel.legend(loc="best", fontsize="small")

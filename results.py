"""What a study found: all its runs, pooled over seeds, as a table, JSON and a picture."""

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comparison import compare
from curves import COLOURS, read_epochs
from dataset import SeeingThroughFog
from evaluation import finite
from score_files import markdown
from scoring import with_conditions
from utils import save_json, versions, warn, write_atomically

NETWORKS = {"teacher": "RGB + gated", "baseline": "RGB", "cmkd_mse": "RGB", "cmkd_adv": "RGB"}
MISSING = "-"


@dataclass(frozen=True)
class Study:
    """Runs on one data folder: for each network a folder for each seed, with scores, detections and the log in it."""

    data: Path
    lists: list[str]  # for choosing, for reporting
    runs: dict[str, list[Path]]
    draws: int


def write_results(study: Study, out: Path) -> str:
    """Write results.json, results.md and, where matplotlib is installed, results.png; return the table."""
    finished = {name: [folder for folder in folders if (folder / "scores.json").is_file()]
                for name, folders in study.runs.items()}
    scores = {folder: json.loads((folder / "scores.json").read_text(encoding="utf-8"))
              for folders in finished.values() for folder in folders}
    comparisons = compare_runs(study, finished, next(iter(scores.values()))) if scores else {}
    runs = {name: {folder.parent.name: run_record(folder, scores[folder]["metrics"]) for folder in folders}
            for name, folders in finished.items()}
    table = markdown(results_rows(study, runs, comparisons))
    save_json({"data": study.data, "lists": study.lists, "draws": study.draws, "runs": finite(runs),
               "comparison": finite(comparisons), "versions": versions()}, out / "results.json")
    write_atomically(out / "results.md", lambda unfinished: unfinished.write_text(table + "\n", encoding="utf-8"))
    if comparisons:
        draw(study, runs, comparisons, out / "results.png")
    return table


def run_record(folder: Path, metrics: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """One run: all its scores by list and condition, and what it took."""
    epochs = read_epochs(folder / "log.jsonl")
    scores = {one: {name: math.nan if value is None else value for name, value in next(iter(by_title.values())).items()}
              for one, by_title in metrics.items()}
    return {"metrics": scores,
            "minutes": sum(epoch["train_seconds"] + epoch["val_seconds"] for epoch in epochs) / 60,
            "steps": epochs[-1]["iteration"], "epochs": epochs[-1]["epoch"], "best_epoch": epochs[-1]["best_epoch"]}


def compare_runs(study: Study, finished: dict[str, list[Path]], trained: dict[str, Any]) -> dict[str, dict]:
    """`comparison.compare` of the networks, seeds pooled, on each list and condition. `trained` tells the classes."""
    truths = {one: SeeingThroughFog(study.data, one, "rgb", trained["classes"], trained["ignore"] or ["none"]
                                    ).ground_truth() for one in study.lists}
    found = {one: {str(folder): json.loads((folder / f"detections.{one}.json").read_text(encoding="utf-8"))
                   for folders in finished.values() for folder in folders} for one in study.lists}
    truths, found = with_conditions(study.data, truths, found)
    present = [name for name, folders in finished.items() if folders]
    has_gap = {"teacher", "baseline"} <= set(present)
    baseline, teacher = ("baseline", "teacher") if has_gap else (present[0], None)
    return {one: compare(truth, {name: [found[one][str(folder)] for folder in finished[name]] for name in present},
                         baseline, teacher, study.draws)
            for one, truth in truths.items()}


def results_rows(study: Study, runs: dict[str, dict[str, Any]], comparisons: dict[str, dict]) -> list[list[str]]:
    """A heading and a row for each network: means and standard deviations over its seeds, and the share of the gap
    closed with its interval. What is not there is a dash."""
    val, test = study.lists
    rows = [["network", "inputs", "seeds", f"{val} AP", f"{test} AP", f"{test} AP50", f"{test} MR",
             "found of those unseen by RGB", f"gap closed, {val}", f"gap closed, {test}", "minutes"]]
    for name, by_seed in runs.items():
        def over_seeds(one: str, score: str, by_seed: dict[str, Any] = by_seed) -> str:
            return mean_and_deviation(100 * run["metrics"][one][score] for run in by_seed.values())

        wanted = len(study.runs[name])
        rows.append([name, NETWORKS[name], str(wanted) if len(by_seed) == wanted else f"{len(by_seed)} of {wanted}",
                     over_seeds(val, "AP"), over_seeds(test, "AP"), over_seeds(test, "AP50"), over_seeds(test, "MR"),
                     over_seeds(test, "recall_unseen"),
                     *(gap_cell(comparisons.get(one, {}).get(name, {}).get("AP", {})) for one in (val, test)),
                     mean_and_deviation((run["minutes"] for run in by_seed.values()), deviation=False)])
    return rows


def mean_and_deviation(values: Iterable[float], deviation: bool = True) -> str:
    """`12.3 ± 0.4`: the mean and, of several, the standard deviation."""
    defined = [value for value in values if math.isfinite(value)]
    if not defined:
        return MISSING
    spread = f" ± {statistics.stdev(defined):.1f}" if deviation and len(defined) > 1 else ""
    return f"{statistics.mean(defined):.1f}{spread}"


def gap_cell(score: dict[str, Any]) -> str:
    """`20 % [-11, 39]`: the share of the gap closed, and its 95 % interval."""
    if not math.isfinite(score.get("gap_closed", math.nan)):
        return MISSING
    low, high = score["gap_closed_interval"]
    return f"{100 * score['gap_closed']:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def draw(study: Study, runs: dict[str, dict[str, Any]], comparisons: dict[str, dict], file: Path) -> None:
    """A PNG: the reported list's AP and share of the unseen people that are found, a dot for each seed, and the gap
    closed by condition; 95 % intervals over frames. A warning where matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        warn(f"{file} is drawn with matplotlib, which is not installed: pip install matplotlib")
        return
    mpl.use("Agg")
    from matplotlib import pyplot

    test = study.lists[1]
    names = list(comparisons[test])
    students = [name for name in names if "gap_closed" in comparisons[test][name]["AP"]
                and name not in ("teacher", "baseline")]
    figure, (ap, unseen, gap) = pyplot.subplots(1, 3, figsize=(15, 1.6 + 0.55 * len(names)), layout="constrained")
    for panel, score, title in ((ap, "AP", f"AP on {test}, %"),
                                (unseen, "recall_unseen", "found of the people unseen by RGB, %")):
        for place, name in enumerate(names):
            low, high = (100 * edge for edge in comparisons[test][name][score]["interval"])
            panel.barh(place, 100 * comparisons[test][name][score]["value"], color=COLOURS[place], alpha=0.45)
            panel.plot([low, high], [place, place], color="black", linewidth=1.5)
            values = [100 * run["metrics"][test][score] for run in runs[name].values()]
            panel.plot(values, [place] * len(values), "o", color=COLOURS[place], markeredgecolor="black", markersize=6)
        panel.set(title=title, yticks=range(len(names)), yticklabels=names, xlim=(0, None))
        panel.invert_yaxis()
    conditions = [one for one in comparisons if one not in study.lists and one.startswith(test.partition("_")[0])]
    for number, name in enumerate(students):
        for place, one in enumerate([test, *conditions]):
            score = comparisons[one][name]["AP"]
            height = place + 0.6 * ((number + 0.5) / len(students) - 0.5)
            low, high = (100 * edge for edge in score["gap_closed_interval"])
            colour = COLOURS[names.index(name)]
            gap.plot([low, high], [height, height], color=colour, linewidth=1.5)
            gap.plot(100 * score["gap_closed"], height, "os^D"[number % 4], color=colour, markeredgecolor="black",
                     markersize=6, label=name if place == 0 else None)
    gap.axvline(0, color="black", linewidth=0.8)
    gap.set(title="AP gap between baseline and teacher closed, %", yticks=range(1 + len(conditions)),
            yticklabels=[test, *conditions], xlim=(-60, 110))
    gap.invert_yaxis()
    if students:
        gap.legend(loc="lower right", fontsize="small")
    for panel in (ap, unseen, gap):
        panel.grid(axis="x", alpha=0.3)
    write_atomically(file, lambda unfinished: figure.savefig(unfinished, format="png", dpi=110))
    pyplot.close(figure)

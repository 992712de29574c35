"""A study's networks on darker and brighter nights: what the teacher is worth, and how much of that students keep.

    python reproduce.py --preset cpu --seeds 0 1 2 --out runs/cpu
    python -m cmkd.study.visible_share --study runs/cpu --seeds 0 1 2 --json runs/bench/visible_share.json

Each share of people visible in RGB is reached by the light of the night alone: the places are the same, and none is in
the study. Nothing is trained: all networks have learned from nights of the study's own share. Without the unseen: those
whom only the gated camera sees count neither as found nor as missed. STUDY/shares has the nights and detections; a
second call goes on where the first stopped.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.measure import report, table
from cmkd.evaluation.bootstrap import compare
from cmkd.runtime.failures import run
from cmkd.study.ablations import ground_truth, option, read_study
from cmkd.study.jobs import Job, run_jobs, slots
from cmkd.study.report import NETWORKS, WITHOUT_UNSEEN, gap_cell, without_unseen
from utils import OneLineParser, UserError, at_least, non_negative_float

TEST_LIST = "test_night"
SEED = "2000000"  # of other places than the study's nights (0) and days


def tested(weights: list[Path], data: Path, folder: Path, nights: Job, precision: list[str]) -> Job:
    """One seed's networks on these nights."""
    return Job(f"{nights.name}/{folder.name}", [
        "test.py", "--weights", *map(str, weights), "--data", str(data), "--lists", TEST_LIST, "--workers", "0",
        *precision, "--draws", "1", "--json", str(folder / "scores.json"), "--save-detections",
        str(folder / "detections.json")], folder / "scores.json", (nights.name,), reads=tuple(weights))


def scores_of(data: Path, folders: list[Path], names: list[str], draws: int) -> dict[str, dict[str, Any]]:
    """`comparison.compare` of the networks, tested in these folders once for each seed: on all people, and
    `WITHOUT_UNSEEN`."""
    truth = ground_truth(data, TEST_LIST, folders[0])
    found = {name: [json.loads((folder / f"detections.{name}.json").read_text(encoding="utf-8"))
                    for folder in folders] for name in names}
    return {one: compare(people, found, "baseline", "teacher", draws)
            for one, people in (("all", truth), (WITHOUT_UNSEEN, without_unseen(truth)))}


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("runs/cpu"),
                        help="folder of reproduce.py, of simulated nights (default: runs/cpu)")
    parser.add_argument("--seeds", type=at_least(0), nargs="+", default=[0], metavar="N", help="(default: 0)")
    parser.add_argument("--shares", type=non_negative_float, nargs="+", default=[0.3, 0.6], metavar="SHARE",
                        help="of the people visible in RGB (default: 0.3 0.6)")
    parser.add_argument("--frames", type=at_least(1), default=300, help="of each share (default: 300)")
    parser.add_argument("--draws", type=at_least(1), default=1000, help="of frames, for intervals (default: 1000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, and the table beside them")
    args = parser.parse_args()
    args.seeds, args.shares = sorted(set(args.seeds)), sorted(set(args.shares))
    study = read_study(args.study)
    if "nights" not in study:
        raise UserError(f"{args.study} has data of its own: only simulated nights can be made brighter and darker")
    names = [name for name in NETWORKS
             if all(study.get(f"test/seed{seed}/{name}", {}).get("done") for seed in args.seeds)]
    if not {"teacher", "baseline"} <= set(names):
        raise UserError(f"{args.study} has no finished teacher and baseline of these seeds: run reproduce.py first")

    size, out, jobs, folders = option(study["nights"]["arguments"], "--size"), args.study / "shares", [], {}
    precision = ["--no-amp"] if "--no-amp" in study[f"test/seed{args.seeds[0]}/teacher"]["arguments"] else []
    for one in args.shares:
        folder = out / f"{args.frames}_frames_{one:g}"
        data = folder / "data"
        nights = Job(folder.name, [
            "make_synthetic.py", "--frames-per-recording", "1", "--size", size, "--frames", "0", "0", str(args.frames),
            "--seed", SEED, "--visible-share", str(one), "--out", str(data)], data / "synthetic.json", alone=True)
        folders[one] = [folder / f"seed{seed}" for seed in args.seeds]
        jobs += [nights, *(tested([args.study / place.name / f"{name}.pth" for name in names], data, place, nights,
                                  precision) for place in folders[one])]
    failed = run_jobs(jobs, out, slots(None))
    if failed:
        raise UserError("; ".join(f"{name}: {reason}" for name, reason in failed.items()))

    rows, figures = [], {}
    for one, places in folders.items():
        data = places[0].parent / "data"
        measured = json.loads((data / "synthetic.json").read_text(encoding="utf-8"))["measured"]["night"]
        figures[f"{one:g}"] = scores = {"measured": measured, **scores_of(data, places, names, args.draws)}
        rows += [[f"{100 * measured['visible_rgb']:.0f} %", f"{100 * measured['visible_gated']:.0f} %", people,
                  *(f"{100 * scores[people][name]['AP']['value']:.1f}" for name in names),
                  *(gap_cell(scores[people][name]["AP"]) for name in names[2:])] for people in ("all", WITHOUT_UNSEEN)]
    head = ["visible in RGB", "visible gated", "people", *(f"{name} AP" for name in names),
            *(f"gap closed, {name}" for name in names[2:])]
    report(table(head, rows), figures, args.json)


if __name__ == "__main__":
    run(main)

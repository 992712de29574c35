"""A study's networks on darker and brighter nights: the teacher's gain, and what students keep.

    python reproduce.py --preset cpu --seeds 0 1 2 --out runs/cpu
    python -m cmkd.study.visible_share --study runs/cpu --seeds 0 1 2 \\
        --json runs/bench/visible_share.json

The nights of each share of people visible in RGB differ in their light alone: the places are the
same, and none is in the study. Nothing is trained: the networks have learned from nights of the
study's own share. Without the unseen: people visible to the gated camera alone count neither as
found nor as missed. The nights and detections are in STUDY/shares; a second call continues after
what is done.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmkd.evaluation.bootstrap import compare_detectors
from cmkd.evaluation.options import add_draws, add_json, add_seeds, add_study
from cmkd.evaluation.tables import markdown_table, print_and_save
from cmkd.runtime.command_line import OneLineParser, at_least, non_negative_float
from cmkd.runtime.failures import run
from cmkd.runtime.files import UserError, read_json
from cmkd.study.jobs import (
    NIGHTS,
    UNREADABLE,
    Job,
    Records,
    evaluation_job,
    option_value,
    option_words,
    read_study_records,
    report_failures,
    run_jobs,
)
from cmkd.study.networks import PUBLISHED, REFERENCES
from cmkd.study.report import (
    WITHOUT_UNSEEN,
    gap_cell,
    mean_and_deviation,
    read_detections,
    tested_truth,
    without_unseen,
)

TEST_LIST = "test_night"
SEED = 2_000_000  # of other places than the study's nights (0) and days (1000000)


@dataclass(frozen=True)
class Nights:
    """Simulated nights of one share of people visible in RGB."""

    share: float
    folder: Path  # the detections of each seed
    simulate: Job

    @property
    def data(self) -> Path:
        """The prepared folder."""
        return self.folder / "data"


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    add_study(parser)
    add_seeds(parser)
    parser.add_argument(
        "--shares",
        type=non_negative_float,
        nargs="+",
        default=[0.3, 0.6],
        metavar="SHARE",
        help="of the people visible in RGB (default: 0.3 0.6)",
    )
    parser.add_argument(
        "--frames", type=at_least(1), default=300, help="for each share (default: 300)"
    )
    add_draws(parser)
    add_json(parser)
    args = parser.parse_args()
    args.seeds, args.shares = sorted(set(args.seeds)), sorted(set(args.shares))
    return args


def finished_networks(study: Path, records: Records, seeds: list[int]) -> list[str]:
    """The networks that the study has finished with all seeds. Raises `UserError`."""
    names = [
        name
        for name in PUBLISHED
        if all(records.get(f"test/seed{seed}/{name}", {}).get("done") for seed in seeds)
    ]
    if not set(REFERENCES) <= set(names):
        raise UserError(
            f"{study} has no finished teacher and baseline of these seeds: run reproduce.py first"
        )
    return names


def simulate_nights(share: float, frames: int, size: str, out: Path) -> Nights:
    """Nights of a share, and the job that simulates them."""
    folder = out / f"{frames}_frames_{share:g}"
    options = option_words(
        frames_per_recording=1,
        size=size,
        frames=[0, 0, frames],
        seed=SEED,
        visible_share=share,
        out=folder / "data",
    )
    made = folder / "data/synthetic.json"
    job = Job(folder.name, ["make_synthetic.py", *options], made, alone=True)
    return Nights(share, folder, job)


def job_on(
    nights: Nights, seed: int, study: Path, names: list[str], trained_with: list[str]
) -> Job:
    """Test one seed's networks of the study on these nights."""
    return evaluation_job(
        f"{nights.simulate.name}/seed{seed}",
        nights.simulate.name,
        nights.folder / f"seed{seed}",
        [study / f"seed{seed}/{name}.pth" for name in names],
        nights.data,
        [TEST_LIST],
        trained_with,
        draws=1,
    )


def compare_networks(
    nights: Nights, seeds: list[int], names: list[str], samples: int
) -> dict[str, dict[str, Any]]:
    """The comparison of the networks: on all people, and `WITHOUT_UNSEEN`."""
    folders = [nights.folder / f"seed{seed}" for seed in seeds]
    scores = read_json(folders[0] / "scores.json", UNREADABLE)
    truth = tested_truth(nights.data, TEST_LIST, scores["classes"], scores["ignore"])
    found = {
        name: [
            read_detections(folder / f"detections.{name}.json", nights.data, TEST_LIST)
            for folder in folders
        ]
        for name in names
    }
    return {
        people: compare_detectors(one_truth, found, "baseline", "teacher", samples)
        for people, one_truth in (("all", truth), (WITHOUT_UNSEEN, without_unseen(truth)))
    }


def main() -> None:
    args = parse_arguments()
    records = read_study_records(args.study)
    if NIGHTS not in records:
        raise UserError(
            f"{args.study} has data of its own: only simulated nights can be made brighter and "
            "darker"
        )
    names = finished_networks(args.study, records, args.seeds)
    size = option_value(records[NIGHTS]["arguments"], "--size")
    trained_with = records[f"seed{args.seeds[0]}/teacher"]["arguments"]
    out = args.study / "shares"
    all_nights = [simulate_nights(share, args.frames, size, out) for share in args.shares]
    jobs = []
    for nights in all_nights:
        jobs.append(nights.simulate)
        jobs += [job_on(nights, seed, args.study, names, trained_with) for seed in args.seeds]
    report_failures(run_jobs(jobs, out, None), len(jobs))

    students = [name for name in names if name not in REFERENCES]
    heading = ["visible in RGB", "visible gated", "people", *(f"{name} AP" for name in names)]
    rows = [[*heading, *(f"gap closed, {name}" for name in students)]]
    figures = {}
    for nights in all_nights:
        measured = read_json(nights.simulate.makes, UNREADABLE)["measured"]["night"]
        comparisons = compare_networks(nights, args.seeds, names, args.draws)
        figures[f"{nights.share:g}"] = {"measured": measured, **comparisons}
        visible = [f"{100 * measured[camera]:.0f} %" for camera in ("visible_rgb", "visible_gated")]
        for people, comparison in comparisons.items():
            aps = [mean_and_deviation([100 * comparison[name]["AP"]["value"]]) for name in names]
            gaps = [gap_cell(comparison[name]["AP"]) for name in students]
            rows.append([*visible, people, *aps, *gaps])
    print_and_save(markdown_table(rows), figures, args.json)


if __name__ == "__main__":
    run(main)

"""Options that several scripts share."""

import argparse
from pathlib import Path

from cmkd.runtime.command_line import at_least


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json, the file of `tables.print_and_save`."""
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the numbers, and the tables beside them"
    )


def add_draws(parser: argparse.ArgumentParser, condition: str = "") -> None:
    """--draws. `condition` says with which other option it has an effect."""
    parser.add_argument(
        "--draws",
        type=at_least(1),
        default=1000,
        help=f"{condition}bootstrap samples for the intervals (default: 1000)",
    )


def add_seeds(parser: argparse.ArgumentParser) -> None:
    """--seeds, of a study's trainings."""
    parser.add_argument(
        "--seeds",
        type=at_least(0),
        nargs="+",
        default=[0],
        metavar="N",
        help="every network is trained once with each (default: 0)",
    )


def add_study(parser: argparse.ArgumentParser) -> None:
    """--study, the folder that a study beyond reproduce.py starts from."""
    parser.add_argument(
        "--study",
        type=Path,
        default=Path("runs/cpu"),
        help="folder of reproduce.py (default: runs/cpu)",
    )


def add_side_by_side(parser: argparse.ArgumentParser) -> None:
    """--side-by-side, for `jobs.run_jobs`."""
    parser.add_argument(
        "--side-by-side",
        type=at_least(1),
        metavar="N",
        help="trainings at the same time (default: one per core, or what GPUs have room for)",
    )

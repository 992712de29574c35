"""The published checkpoints beside the paper's figures: what `test.py --published` prints."""

from pathlib import Path
from typing import Any

from cmkd.evaluation.metrics import MetricsByList
from cmkd.runtime.files import UserError, read_json
from cmkd.runtime.weights import read_settings, sha256_of

FOLDER = Path("weights/published")
ORIGIN = "published.json"  # in the published data folder: the SHA-256 of its lists
PAPER_COLUMN = {"val_night": "val_AP", "test_night": "test_AP"}  # of the JSON beside the weights


def published_weights(folder: Path) -> list[Path]:
    """The checkpoints that download.py put there, the teacher first. Raises `UserError`."""
    files = [file for file in folder.glob("*.pth") if "published" in read_settings(file)]
    if not files:
        raise UserError(f"{folder} has no published checkpoint: run python download.py weights")
    return sorted(files, key=lambda file: -read_settings(file)["published"]["test_AP"])


def hashes_of_lists(data: Path) -> dict[str, str]:
    """The SHA-256 of each list of a data folder."""
    return {file.stem: sha256_of(file) for file in sorted(data.glob("*.txt"))}


def paper_rows(weights: dict[str, Path], metrics: MetricsByList, data: Path) -> list[list[str]]:
    """Measured AP beside the paper's, in percent.

    Their difference is given for the archive's own lists alone: on others it would say nothing.
    """
    own: dict[str, Any] = {}
    if (data / ORIGIN).is_file():
        own = read_json(data / ORIGIN, "remove it")["lists"]
    now = hashes_of_lists(data)
    rows = [["list", "network", "AP here", "AP in the paper", "difference"]]
    for list_name, by_title in metrics.items():
        for title, values in by_title.items():
            paper = read_settings(weights[title])["published"].get(PAPER_COLUMN.get(list_name, ""))
            same = list_name in own and own[list_name] == now.get(list_name)
            here = 100 * values["AP"]
            difference = f"{here - paper:+.1f}" if same and paper else "other frames"
            rows.append(
                [list_name, title, f"{here:.1f}", f"{paper:.1f}" if paper else "-", difference]
            )
    return rows

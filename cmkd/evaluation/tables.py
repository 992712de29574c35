"""Detections and metrics as files and tables: COCO results, text for the terminal, Markdown."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmkd.evaluation.bootstrap import HIGHER_IS_BETTER, LEAST_FRAMES
from cmkd.evaluation.metrics import (
    DISTANCES,
    HEIGHTS,
    GroundTruth,
    MetricsByList,
    Results,
    ResultsByList,
    none_for_nan,
)
from cmkd.frames.layout import frame_name
from cmkd.runtime.files import UserError, read_json, save_json, save_text
from cmkd.runtime.hardware import versions

MAIN_METRICS = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR_100",
    "MR",
    "recall",
    "recall_unseen",
)
BAND_METRICS = [
    f"{metric}_{band}" for band in (*HEIGHTS, *DISTANCES) for metric in ("AP", "recall")
]
LARGEST = 1e9  # of a box's coordinate
RESULT_KEYS = {"image_id", "category_id", "bbox", "score"}
# A box is suspect if it reaches beyond its image by this share of the image's size; results are
# refused if this share of their boxes is. Corners in place of width and height are 45 % such boxes.
SUSPECT_REACH, SUSPECT_SHARE = 0.1, 0.1


# --------------------------------------------------------------------------------------- detections


def read_results(file: Path, truths: dict[str, GroundTruth]) -> ResultsByList:
    """A file's COCO results, by the one list of `truths` and the file's name.

    Prints what may be wrong with them. Raises `UserError` for several lists, for boxes that are not
    in px, and names the first entry that is not a result of the list.
    """
    if len(truths) > 1:
        raise UserError(f"--detections {file} holds the results of one list: name it with --lists")
    [(list_name, truth)] = truths.items()
    expected = "expected a list of COCO results, as --save-detections writes it"
    results = read_json(file, expected)
    if not isinstance(results, list):
        raise UserError(f"{file} holds a {type(results).__name__}: {expected}")
    images = {image["id"]: image["file_name"] for image in truth["images"]}
    categories = {category["id"]: category["name"] for category in truth["categories"]}
    for index, result in enumerate(results):
        if problem := problem_of(result, images, categories):
            raise UserError(f"{file}: result {index} {problem}")
    refuse_other_units(file, results, truth)
    if missing := len(images) - len({result["image_id"] for result in results}):
        print(f"{file}: {missing} of {len(images)} frames have no result")
    if results and not any("file_name" in result for result in results):
        print(
            f"{file}: no result names its file; image ids are taken as positions in the list, "
            f"from 0 ({images[0]})"
        )
    return {list_name: {file.stem: results}}


def refuse_other_units(file: Path, results: Results, truth: GroundTruth) -> None:
    """Raise `UserError` for corners, for shares of the image and for px of larger images."""
    if not results:
        return
    expected = "bbox must be x, y, width, height in px of the image"
    boxes = np.array([result["bbox"] for result in results], float)
    if boxes.max() <= 1:
        raise UserError(f"{file}: no coordinate is above 1: {expected}")
    size_of = {image["id"]: (image["width"], image["height"]) for image in truth["images"]}
    sizes = np.array([size_of[result["image_id"]] for result in results])
    start, end = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    suspect = (start < -SUSPECT_REACH * sizes) | (end > (1 + SUSPECT_REACH) * sizes)
    count = int(suspect.any(axis=1).sum())
    if count > SUSPECT_SHARE * len(boxes):
        raise UserError(
            f"{file}: {count} of {len(boxes)} boxes reach far beyond their image: {expected}"
        )


def problem_of(result: Any, images: dict[int, str], categories: dict[int, str]) -> str:
    """Why a value is not a result for these images and categories; empty if it is one."""
    if not isinstance(result, dict) or not result.keys() >= RESULT_KEYS:
        return "is no COCO result: it needs image_id, category_id, bbox and score"
    box, score = result["bbox"], result["score"]
    numbers = [score, *(box if isinstance(box, list) else [])]
    reasonable = [type(number) in (int, float) and abs(number) < LARGEST for number in numbers]
    if len(numbers) != 5 or not all(reasonable):  # NaN is not reasonable either
        return f"has bbox {box} and score {score}: bbox must be four finite numbers and score one"
    if min(box[2:]) < 0:
        return f"has bbox {box}: width and height must be at least 0"
    if problem := problem_of_frame(result, images):
        return problem
    if type(result["category_id"]) is not int or result["category_id"] not in categories:
        known = ", ".join(f"{number} ({name})" for number, name in categories.items())
        return f"has category {result['category_id']!r}: the categories are {known}"
    return ""


def problem_of_frame(result: dict[str, Any], images: dict[int, str]) -> str:
    """Why a result is not of the image that its number says; empty if it is."""
    if type(result["image_id"]) is not int or result["image_id"] not in images:
        return (
            f"is on image {result['image_id']!r}, which the list does not have: number the images "
            "from 0 in the order of the list, as `check_data.py --export-coco` does"
        )
    named = str(result.get("file_name", images[result["image_id"]]))
    if frame_name(named.rpartition("/")[2]) != images[result["image_id"]]:
        return (
            f"is on {named}, but image {result['image_id']} of the list is "
            f"{images[result['image_id']]}: these are results of another list"
        )
    return ""


def detection_files(
    file: Path, lists: Sequence[str], titles: Sequence[str]
) -> dict[tuple[str, str], Path]:
    """The file of each list's and detector's results.

    FILE.<detector>.<list>, without the detector or the list if there is only one.
    """
    files = {}
    for list_name in lists:
        for title in titles:
            parts = [file.stem]
            if len(titles) > 1:
                parts.append(title.replace("/", "-"))
            if len(lists) > 1:
                parts.append(list_name)
            files[list_name, title] = file.with_name(".".join(parts) + file.suffix)
    return files


def save_detections(found: ResultsByList, files: dict[tuple[str, str], Path]) -> None:
    """Write COCO results to the files of `detection_files`."""
    for (list_name, title), file in files.items():
        save_json(found[list_name][title], file)


# ------------------------------------------------------------------------------------------- tables


def text_table(rows: list[list[Any]], text_columns: int = 1) -> str:
    """Rows as aligned columns for the terminal; the first row is the heading.

    The first `text_columns` columns are aligned left, the others, which hold numbers, right.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        texts = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("   ".join(texts[:text_columns] + numbers[text_columns:]))
    return "\n".join(lines)


def markdown_table(rows: list[list[Any]]) -> str:
    """Rows as a Markdown table; the first row is the heading."""
    heading, *others = rows
    lines = [heading, ["---"] * len(heading), *others]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def print_and_save(text: str, numbers: dict[str, Any], file: Path | None) -> None:
    """Print a study's tables; save its numbers as JSON, and the tables beside it as .md.

    The JSON also has the command and the versions. Raises `UserError`.
    """
    print(text)
    if file:
        command = " ".join(["python", *sys.argv])
        save_json({**none_for_nan(numbers), "command": command, "versions": versions()}, file)
        save_text(text + "\n", file.with_suffix(".md"))


def metrics_tables(
    metrics: MetricsByList, truths: dict[str, GroundTruth]
) -> dict[str, list[list[str]]]:
    """Rows of the main metrics, and rows of AP and recall by height and distance."""
    tables = {"scores": MAIN_METRICS, "by height and distance": BAND_METRICS}
    return {title: metrics_rows(metrics, truths, names) for title, names in tables.items()}


def metrics_rows(
    metrics: MetricsByList, truths: dict[str, GroundTruth], names: Sequence[str]
) -> list[list[str]]:
    """A heading, then a row per list and detector.

    Metrics that are undefined in every row are left out.
    """
    everything = [values for by_detector in metrics.values() for values in by_detector.values()]
    shown = [name for name in names if any(math.isfinite(values[name]) for values in everything)]
    rows = [["model", "list", "frames", *shown]]
    for list_name, by_detector in metrics.items():
        frames = str(len(truths[list_name]["images"]))
        for title, values in by_detector.items():
            cells = [f"{values[name]:.4f}" for name in shown]
            rows.append([title, list_name, frames, *cells])
    return rows


def class_rows(by_class: dict[str, dict[str, dict[str, dict[str, float]]]]) -> list[list[str]]:
    """A heading, then a row per list, detector and class (`pipeline.metrics_by_class`)."""
    rows = [["list", "detector", "class", "AP", "AP50", "MR", "recall"]]
    for list_name, by_detector in by_class.items():
        for title, classes in by_detector.items():
            for name, values in classes.items():
                numbers = [f"{value:.4f}" for value in values.values()]
                rows.append([list_name, title, name, *numbers])
    return rows


def comparison_title(list_name: str, truth: GroundTruth) -> str:
    """The line above a list's comparison."""
    frames = len(truth["images"])
    if frames < LEAST_FRAMES:
        return f"{list_name}, in percent; its {frames} frames are too few for intervals"
    return f"{list_name}, in percent; in brackets 95 % intervals over its {frames} frames"


def comparison_rows(comparison: dict[str, dict[str, Any]], baseline: str) -> list[list[str]]:
    """A heading, then a row per detector of `bootstrap.compare_detectors`.

    Values are in percent, with 95 % intervals.
    """
    columns = {metric: (metric, "value") for metric in HIGHER_IS_BETTER}
    for metric in ("AP", "MR"):
        columns[f"{metric} - {baseline}"] = (metric, "difference")
    if any("gap_closed" in by_metric["AP"] for by_metric in comparison.values()):
        for metric in ("AP", "MR"):
            columns[f"gap closed, {metric}"] = (metric, "gap_closed")
    rows = [["model", *columns]]
    for title, by_metric in comparison.items():
        cells = [comparison_cell(by_metric[metric], key) for metric, key in columns.values()]
        rows.append([title, *cells])
    return rows


def comparison_cell(entry: dict[str, Any], key: str) -> str:
    """`12.3 [10.0, 14.1]`: one of value, difference and gap_closed, and its interval if defined."""
    value = entry[key]
    if not math.isfinite(value):
        return "-"
    low, high = entry["interval" if key == "value" else f"{key}_interval"]
    sign = "+" if key == "difference" else ""
    interval = f" [{100 * low:.1f}, {100 * high:.1f}]" if math.isfinite(low) else ""
    return f"{100 * value:{sign}.1f}{interval}"

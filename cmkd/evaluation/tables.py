"""Detections and scores as text: COCO results in and out, tables for the terminal, Markdown and CSV."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmkd.evaluation.bootstrap import HIGHER_IS_BETTER
from cmkd.evaluation.metrics import DISTANCES, HEIGHTS, finite
from utils import UserError, reason_of, save_json, write_atomically

SHOWN = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_100", "MR", "recall", "recall_unseen")
BANDS = [f"{score}_{band}" for band in (*HEIGHTS, *DISTANCES) for score in ("AP", "recall")]
LARGEST = 1e9  # of a coordinate; NaN is not below it either


def read_results(file: Path, truths: dict[str, dict[str, list]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """A file's COCO results (image_id, category_id, bbox x, y, width, height, score), by the one list of `truths` and
    the file's name. Raises `UserError` for several lists, and with the place of the first that is no result of it."""
    if len(truths) > 1:
        raise UserError(f"--detections {file} are those of one list: name it with --lists")
    [(name, ground_truth)] = truths.items()
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} is missing: write detections with --save-detections, or name another file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not JSON ({reason_of(error)}): expected a list of COCO results") from None
    if not isinstance(results, list):
        raise UserError(f"{file} holds a {type(results).__name__}: expected a list of COCO results")
    images = {image["id"] for image in ground_truth["images"]}
    categories = {category["id"]: category["name"] for category in ground_truth["categories"]}
    for place, result in enumerate(results):
        if problem := problem_of(result, images, categories):
            raise UserError(f"{file}: result {place} {problem}")
    return {name: {file.stem: results}}


def problem_of(result: Any, images: set[int], categories: dict[int, str]) -> str:
    """Why a value is no result for these images and categories; '' where it is one."""
    if not isinstance(result, dict) or not result.keys() >= {"image_id", "category_id", "bbox", "score"}:
        return "is no COCO result: it needs image_id, category_id, bbox and score"
    numbers = [result["score"], *(result["bbox"] if isinstance(result["bbox"], list) else [])]
    if len(numbers) != 5 or not all(type(number) in (int, float) and abs(number) < LARGEST for number in numbers):
        return f"has bbox {result['bbox']} and score {result['score']}: expected four finite numbers and one"
    if min(numbers[3:]) < 0:
        return f"has bbox {result['bbox']}: a width and a height of at least 0 are needed"
    if type(result["image_id"]) is not int or result["image_id"] not in images:
        return (f"is on image {result['image_id']!r}, which the list does not have: images are numbered as `python "
                "dataset.py --export-coco` writes them, from 0 in the order of the list")
    if type(result["category_id"]) is not int or result["category_id"] not in categories:
        known = ", ".join(f"{number} ({name})" for number, name in categories.items())
        return f"has category {result['category_id']!r}: the categories are {known}"
    return ""


def metrics_rows(metrics: dict[str, dict[str, dict[str, float]]], truths: dict[str, dict], names: Sequence[str]
                 ) -> list[list[str]]:
    """A heading and a row for each list, with its number of frames, and title: the scores of these names that are
    defined anywhere."""
    rows = [(title, one, scores) for one, by_title in metrics.items() for title, scores in by_title.items()]
    shown = [name for name in names if any(math.isfinite(scores[name]) for _, _, scores in rows)]
    return [["model", "list", "frames", *shown],
            *([title, one, str(len(truths[one]["images"])), *(f"{scores[name]:.4f}" for name in shown)]
              for title, one, scores in rows)]


def columns(rows: list[list[str]], texts: int = 2) -> str:
    """Rows in columns for the terminal: the first `texts` flush left, numbers flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("   ".join(f"{cell:<{width}}" if place < texts else f"{cell:>{width}}"
                                for place, (cell, width) in enumerate(zip(row, widths, strict=True))) for row in rows)


def metrics_tables(metrics: dict[str, dict[str, dict[str, float]]], truths: dict[str, dict]
                   ) -> dict[str, list[list[str]]]:
    """The rows of the main scores, and of AP and recall by height and, where the labels say it, distance."""
    return {"scores": metrics_rows(metrics, truths, SHOWN),
            "by height and distance": metrics_rows(metrics, truths, BANDS)}


def comparison_rows(table: dict[str, dict[str, Any]], baseline: str) -> list[list[str]]:
    """A heading and rows of `comparison.compare`, in percent, with 95 % intervals."""
    def cell(one: dict[str, Any], what: str) -> str:
        value, (low, high) = one[what], one["interval" if what == "value" else f"{what}_interval"]
        sign = "+" if what == "difference" else ""
        edges = f" [{100 * low:.1f}, {100 * high:.1f}]" if math.isfinite(low) else ""
        return f"{100 * value:{sign}.1f}{edges}" if math.isfinite(value) else "-"

    has_teacher = any("gap_closed" in scores["AP"] for scores in table.values())
    rows = [["model", *HIGHER_IS_BETTER, f"AP - {baseline}", f"MR - {baseline}",
             *(["gap closed, AP", "gap closed, MR"] if has_teacher else [])]]
    for name, scores in table.items():
        rows.append([name, *(cell(scores[score], "value") for score in HIGHER_IS_BETTER),
                     *(cell(scores[score], "difference") for score in ("AP", "MR")),
                     *(cell(scores[score], "gap_closed") for score in ("AP", "MR") if has_teacher)])
    return rows


def markdown(rows: list[list[str]]) -> str:
    """A table, of a heading and rows."""
    head, *others = rows
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *others])


def comparison_title(name: str, truth: dict[str, list]) -> str:
    """What stands over the table of a list."""
    return f"{name}, in percent; in brackets 95 % over its {len(truth['images'])} frames"


def comparison_tables(comparisons: dict[str, dict], truths: dict[str, dict], baseline: str) -> list[str]:
    """The table of each list under a line that says what it is."""
    return [f"{comparison_title(name, truths[name])}:\n\n{markdown(comparison_rows(table, baseline))}\n"
            for name, table in comparisons.items()]


def save_csv(metrics: dict[str, dict[str, dict[str, float]]], file: Path) -> None:
    """A line for each list and title; a number that is not defined is left empty."""
    text = io.StringIO()
    rows = [{"model": title, "list": one, **finite(values)}
            for one, by_title in metrics.items() for title, values in by_title.items()]
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(file, lambda unfinished: unfinished.write_text(text.getvalue(), encoding="utf-8"))


def save_detections(found: dict[str, dict[str, list[dict[str, Any]]]], file: Path) -> None:
    """One file, or one for each list and title, whose names follow FILE's."""
    for one, by_title in found.items():
        for title, results in by_title.items():
            parts = [title.replace("/", "-")] * (len(by_title) > 1) + [one] * (len(found) > 1)
            save_json(results, file.with_name(".".join([file.stem, *parts]) + file.suffix))


def save_text(text: str, file: Path) -> None:
    """A text file with a line's end at its end."""
    write_atomically(file, lambda unfinished: unfinished.write_text(text + "\n", encoding="utf-8"))

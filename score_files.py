"""Detections and scores as text: COCO results in and out, tables for the terminal, Markdown and CSV."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from comparison import HIGHER_IS_BETTER
from evaluation import finite
from utils import UserError, reason_of, save_json, write_atomically

SHOWN = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_100", "MR", "recall", "recall_unseen")
DECIMALS, GAP = 4, 3  # of the columns in the terminal
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


def metrics_table(metrics: dict[str, dict[str, dict[str, float]]], truths: dict[str, dict]) -> str:
    """A line for each list, with its number of frames, and title, in columns."""
    names = [(title, one) for one, by_title in metrics.items() for title in by_title]
    wide, wide_list = (max(map(len, column)) + 2 for column in zip(*names, ("model", "list"), strict=True))
    width = {score: GAP + max(len(score), DECIMALS + 2) for score in SHOWN}
    lines = [f"{'model':<{wide}}{'list':<{wide_list}}frames" + "".join(f"{score:>{width[score]}}" for score in SHOWN)]
    lines += [f"{title:<{wide}}{one:<{wide_list}}{len(truths[one]['images']):>6}" + "".join(
        f"{metrics[one][title][score]:>{width[score]}.{DECIMALS}f}" for score in SHOWN) for title, one in names]
    return "\n".join(lines)


def comparison_table(table: dict[str, dict[str, Any]], baseline: str) -> str:
    """A table of `comparison.compare`, in percent, with 95 % intervals."""
    def cell(one: dict[str, Any], what: str) -> str:
        value, (low, high) = one[what], one["interval" if what == "value" else f"{what}_interval"]
        sign = "+" if what == "difference" else ""
        return f"{100 * value:{sign}.1f} [{100 * low:.1f}, {100 * high:.1f}]" if math.isfinite(value) else "-"

    has_teacher = any("gap_closed" in scores["AP"] for scores in table.values())
    head = ["model", *HIGHER_IS_BETTER, f"AP - {baseline}", f"MR - {baseline}",
            *(["gap closed, AP", "gap closed, MR"] if has_teacher else [])]
    lines = [head, ["---"] * len(head)]
    for name, scores in table.items():
        lines.append([name, *(cell(scores[score], "value") for score in HIGHER_IS_BETTER),
                      *(cell(scores[score], "difference") for score in ("AP", "MR")),
                      *(cell(scores[score], "gap_closed") for score in ("AP", "MR") if has_teacher)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def comparison_tables(comparisons: dict[str, dict], truths: dict[str, dict], baseline: str) -> list[str]:
    """The table of each list under a line that says what it is."""
    return [f"{name}, in percent; in brackets 95 % over its {len(truths[name]['images'])} frames:\n\n"
            f"{comparison_table(table, baseline)}\n" for name, table in comparisons.items()]


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


def save_tables(tables: list[str], file: Path) -> None:
    """As Markdown: the first, in columns, as it is; the others are Markdown already."""
    text = "\n".join([f"```\n{tables[0]}\n```", *tables[1:]])
    write_atomically(file, lambda unfinished: unfinished.write_text(text + "\n", encoding="utf-8"))

"""Weights and lists -> detections, metrics and comparisons: what `test.py` runs, in its order."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cmkd.evaluation.bootstrap import average_precision, compare_detectors, rank_detections
from cmkd.evaluation.metrics import (
    GroundTruth,
    MetricsByList,
    ResultsByList,
    category_metrics,
    coco_metrics,
    miss_metrics,
)
from cmkd.evaluation.predict import predict
from cmkd.frames.annotations import DEFAULT_CLASSES, ignored_patterns, sets_of_names
from cmkd.frames.layout import condition_lists
from cmkd.runtime import distributed
from cmkd.runtime.files import UserError
from cmkd.runtime.weights import WeightsError, read_settings, settings_file
from dataset import FOLDERS_OF, SeeingThroughFog, make_loader
from models import Detector, load_detector

Datasets = dict[tuple[str, str], SeeingThroughFog]  # by list and modality


def load_comparable(
    files: list[Path],
    min_size: int | None = None,
    max_size: int | None = None,
    classes: list[str] | None = None,
    ignore: list[str] | None = None,
) -> tuple[dict[str, Detector], list[str], list[str] | None]:
    """The detectors by title, and the classes and ignored classes that all were trained on.

    `classes` and `ignore` replace those they were trained on; without files the published ones are
    the default. Raises `WeightsError` or `UserError` for weights that cannot be compared.
    """
    if not files:
        return {}, classes or list(DEFAULT_CLASSES), ignore
    refuse_duplicates(files)
    detectors = [load_detector(file, min_size, max_size) for file in files]
    settings = [read_settings(file) for file in files]
    trained_on = [one.get("classes") or list(DEFAULT_CLASSES) for one in settings]
    for file, own, own_classes, detector in zip(
        files, settings, trained_on, detectors, strict=True
    ):
        if detector.settings["modality"] not in FOLDERS_OF:
            raise WeightsError(
                f"{file} takes {detector.settings['channels']} channels: expected 3 (RGB) or 6 "
                "(RGB and gated)"
            )
        if own_classes != trained_on[0] and not classes:
            raise WeightsError(
                f"{files[0]} was trained on {' '.join(trained_on[0])} and {file} on "
                f"{' '.join(own_classes)}: compare weights of the same classes, or pass --classes"
            )
        if not own.get("classes"):
            shown = " ".join(classes or own_classes)
            print(f"{file}: no JSON says its classes; they are taken for {shown}")
        elif classes and sets_of_names(classes) != sets_of_names(own_classes):
            raise UserError(
                f"{file} was trained on --classes {' '.join(own_classes)}, in this order, not on "
                f"{' '.join(classes)}: pass the same, or leave --classes out"
            )
        named, known = len(classes or own_classes), detector.settings["num_classes"] - 1
        if named != known:
            raise UserError(
                f"{file} has {known} classes, --classes names {named}: pass the --classes it was "
                "trained on"
            )
    ignored = [ignored_patterns(one.get("ignore")) for one in settings]
    if len(set(ignored)) > 1 and ignore is None:
        raise WeightsError(
            f"these weights were trained with different --ignore "
            f"({'; '.join(' '.join(one) or 'none' for one in ignored)}): pass --ignore"
        )
    if ignore is None:
        ignore = settings[0].get("ignore")
    return dict(zip(titles(files), detectors, strict=True)), classes or trained_on[0], ignore


def load_rgb_detector(file: Path) -> tuple[Detector, list[str]]:
    """A detector of RGB alone, in evaluation mode, and its classes. Raises `WeightsError`."""
    detectors, classes, _ = load_comparable([file])
    [detector] = detectors.values()
    if detector.settings["modality"] != "rgb":
        raise WeightsError(
            f"{file} needs gated slices, but this takes RGB alone: pass a student or the baseline"
        )
    return detector.eval(), classes


def roles(detectors: dict[str, Detector]) -> tuple[str, str | None, list[str]]:
    """The titles of the baseline, the teacher and the students.

    The first RGB detector is the baseline and other RGB detectors are students; the first one with
    gated slices is the teacher. Without an RGB detector the first one is the baseline.
    """
    seen = {title: detector.settings["modality"] for title, detector in detectors.items()}
    rgb = [title for title, modality in seen.items() if modality == "rgb"]
    gated = [title for title in seen if title not in rgb]
    return (rgb or gated)[0], gated[0] if gated else None, rgb[1:]


def read_datasets(
    data: Path,
    lists: list[str],
    detectors: dict[str, Detector],
    classes: list[str],
    ignore: list[str] | None,
    keep_copies: bool = False,
) -> Datasets:
    """Every list in every modality that a detector takes; in RGB if there is no detector.

    `keep_copies`: label lines that occur twice count twice. Raises `UserError`, also for a list
    without anything to find.
    """
    modalities = {detector.settings["modality"] for detector in detectors.values()}
    datasets = {
        (name, modality): SeeingThroughFog(
            data, name, modality, classes, ignore, keep_copies=keep_copies
        )
        for name in lists
        for modality in sorted(modalities or {"rgb"})
    }
    for dataset in datasets.values():
        if not dataset.has_boxes:
            raise UserError(
                f"{dataset.list_file}: no frame has a box of these classes, so there is nothing to "
                "score: name another list or other --classes"
            )
    return datasets


def detect_lists(
    detectors: dict[str, Detector],
    datasets: Datasets,
    batch_size: int,
    workers: int,
    device: torch.device,
    amp: bool,
) -> ResultsByList:
    """The results of each detector on each list. One detector at a time is on the device."""
    found: ResultsByList = {list_name: {} for list_name, _ in datasets}
    for title, detector in detectors.items():
        settings = detector.to(device).settings
        modality = settings["modality"]
        print(f"{title}: {modality}, {settings['backbone']}, {settings['min_size']} px")
        for list_name, by_detector in found.items():
            loader = make_loader(datasets[list_name, modality], batch_size, workers)
            by_detector[title] = predict(detector, loader, amp)
        detector.cpu()
    return found


def with_conditions(
    data: Path, truths: dict[str, GroundTruth], found: ResultsByList
) -> tuple[dict[str, GroundTruth], ResultsByList]:
    """Each list, followed by the lists of its conditions (`layout.condition_lists`)."""
    all_truths, all_found = {}, {}
    for list_name, truth in truths.items():
        all_truths[list_name], all_found[list_name] = truth, found[list_name]
        for condition, names in condition_lists(data, list_name).items():
            wanted = set(names)
            images = [image for image in truth["images"] if image["file_name"] in wanted]
            ids = {image["id"] for image in images}
            annotations = on_images(truth["annotations"], ids)
            all_truths[condition] = {**truth, "images": images, "annotations": annotations}
            all_found[condition] = {
                title: on_images(results, ids) for title, results in found[list_name].items()
            }
    return all_truths, all_found


def on_images(entries: list[dict[str, Any]], ids: set[int]) -> list[dict[str, Any]]:
    """The annotations or results on these images."""
    return [entry for entry in entries if entry["image_id"] in ids]


def evaluate_lists(truths: dict[str, GroundTruth], found: ResultsByList) -> MetricsByList:
    """All metrics."""
    return {
        list_name: {
            title: coco_metrics(truths[list_name], results)
            | miss_metrics(truths[list_name], results)
            for title, results in by_detector.items()
        }
        for list_name, by_detector in found.items()
    }


def metrics_by_class(
    truths: dict[str, GroundTruth], found: ResultsByList
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """AP, AP50, MR and recall of each class, by list, detector and class."""
    values: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for list_name, by_detector in found.items():
        truth = truths[list_name]
        values[list_name] = {title: {} for title in by_detector}
        for title, results in by_detector.items():
            for category in truth["categories"]:
                precision = average_precision(rank_detections(truth, results, category["id"]))
                own = category_metrics(truth, results, category["id"])
                values[list_name][title][category["name"]] = {
                    "AP": float(precision.mean()),
                    "AP50": float(precision[0]),
                    "MR": own["MR"],
                    "recall": own["recall"],
                }
    return values


def compare_lists(
    detectors: dict[str, Detector],
    truths: dict[str, GroundTruth],
    found: ResultsByList,
    samples: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """`bootstrap.compare_detectors` for each list, with the baseline and teacher of `roles`."""
    baseline, teacher, _ = roles(detectors)
    comparisons = {}
    for list_name, truth in truths.items():
        runs = {title: [results] for title, results in found[list_name].items()}
        compare = partial(compare_detectors, truth, runs, baseline, teacher, samples, seed)
        comparisons[list_name] = distributed.on_first(compare)
    return comparisons


def refuse_duplicates(files: list[Path]) -> None:
    """Raise `UserError` for a file or folder that is named twice."""
    resolved = [file.resolve() for file in files]
    for file in files:
        if resolved.count(file.resolve()) > 1:
            raise UserError(f"{file} is named twice: name each once")


def refuse_replacing(
    outputs: list[Path | None], weights: list[Path], others: Sequence[Path] = ()
) -> None:
    """Raise `UserError` for an output that would replace what is read, or another output.

    Settings beside weights are read too. If weights have none, a file in their place would be read
    as theirs. None stands for an output that is not asked for.
    """
    taken = {
        settings_file(file).resolve(): "describes the weights" for file in weights if file.name
    }
    taken |= {file.resolve(): "is read" for file in (*weights, *others)}
    for file in filter(None, outputs):
        if file.resolve() in taken:
            raise UserError(f"{file} {taken[file.resolve()]}: name another file")
        taken[file.resolve()] = "would be written twice"


def titles(files: list[Path]) -> list[str]:
    """A short, unique title for each weights file, from its path without the suffix.

    With the suffixes if two paths differ in nothing else.
    """
    names = short_names([file.with_suffix("") for file in files])
    return names if len(set(names)) == len(names) else short_names(files)


def short_names(files: list[Path]) -> list[str]:
    """The last part of each path, with as many parents as make it unique."""
    paths = [file.absolute().parts for file in files]
    names = []
    for path in paths:
        length = 1
        while sum(other[-length:] == path[-length:] for other in paths) > 1 and length < len(path):
            length += 1
        names.append("/".join(path[-length:]))
    return names

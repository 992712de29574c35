"""Weights and lists -> detections, scores and comparisons: what `test.py` runs, in its order."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from cmkd.evaluation.bootstrap import compare
from cmkd.evaluation.metrics import coco_metrics, miss_metrics
from cmkd.frames.layout import condition_lists
from cmkd.runtime import distributed
from dataset import MODALITY, SeeingThroughFog, ignored_patterns
from engine import predict
from models import Detector, WeightsError, load_detector, read_settings
from utils import DEFAULT_CLASSES, UserError

Results = list[dict[str, Any]]  # COCO's
Datasets = dict[tuple[str, str], SeeingThroughFog]  # by list and modality


def load_comparable(files: list[Path], min_size: int | None, max_size: int | None, classes: list[str] | None,
                    ignore: list[str] | None) -> tuple[dict[str, Detector], list[str], list[str] | None]:
    """The detectors by title, and the classes and ignored ones that all were trained on, where none are given; the
    published ones where there are no files.

    Raises `WeightsError` or `UserError` for weights that cannot be compared.
    """
    if not files:
        return {}, classes or list(DEFAULT_CLASSES), ignore
    refuse_twice(files)
    detectors = {title: load_detector(file, min_size, max_size)
                 for title, file in zip(titles(files), files, strict=True)}
    trained_with = [read_settings(file) for file in files]
    trained_on = [settings.get("classes", list(DEFAULT_CLASSES)) for settings in trained_with]
    for file, own, detector in zip(files, trained_on, detectors.values(), strict=True):
        if (channels := detector.settings["channels"]) not in MODALITY:
            raise WeightsError(f"{file} takes {channels} channels: expected 3 (RGB) or 6 (RGB and gated)")
        if own != trained_on[0] and not classes:
            raise WeightsError(f"{files[0]} was trained on {' '.join(trained_on[0])} and {file} on {' '.join(own)}: "
                               "compare weights of the same classes, or pass --classes")
        named, told_apart = len(classes or own), detector.settings["num_classes"] - 1
        if named != told_apart:
            raise UserError(f"{file} tells {told_apart} classes apart, --classes names {named}: pass the --classes it "
                            "was trained on")
    ignored = [ignored_patterns(settings.get("ignore")) for settings in trained_with]
    if len(set(ignored)) > 1 and ignore is None:
        raise WeightsError(f"these weights were trained with different --ignore "
                           f"({'; '.join(' '.join(one) or 'none' for one in ignored)}): pass --ignore")
    return detectors, classes or trained_on[0], trained_with[0].get("ignore") if ignore is None else ignore


def read_datasets(data: Path, lists: list[str], detectors: dict[str, Detector], classes: list[str],
                  ignore: list[str] | None) -> Datasets:
    """Every list in every modality that a detector takes, in RGB where there is none. Raises `UserError`, also for a
    list without anything to find."""
    modalities = {MODALITY[detector.settings["channels"]] for detector in detectors.values()} or {"rgb"}
    datasets = {(name, modality): SeeingThroughFog(data, name, modality, classes, ignore)
                for name in lists for modality in sorted(modalities)}
    for dataset in datasets.values():
        if not dataset.has_boxes:
            raise UserError(f"{dataset.list_file}: no frame has a box of these classes, so there is nothing to score: "
                            "name another list or other --classes")
    return datasets


def detect(detectors: dict[str, Detector], datasets: Datasets, load: Callable[[SeeingThroughFog], DataLoader],
           device: torch.device, amp: bool) -> dict[str, dict[str, Results]]:
    """What each detector finds, by list and title. One detector at a time is on the device."""
    found: dict[str, dict[str, Results]] = {name: {} for name, _ in datasets}
    for title, detector in detectors.items():
        settings = detector.to(device).settings
        print(f"{title}: {MODALITY[settings['channels']]}, {settings['backbone']}, {settings['min_size']} px")
        for name in found:
            found[name][title] = predict(detector, load(datasets[name, MODALITY[settings["channels"]]]), amp)
        detector.cpu()
    return found


def with_conditions(data: Path, truths: dict[str, dict], found: dict[str, dict[str, Results]]
                    ) -> tuple[dict[str, dict], dict[str, dict[str, Results]]]:
    """Truths and detections of the lists, each followed by those of its conditions (`layout.condition_lists`)."""
    all_truths, all_found = {}, {}
    for name, truth in truths.items():
        all_truths[name], all_found[name] = truth, found[name]
        for condition, frames in condition_lists(data, name).items():
            wanted = set(frames)
            images = [image for image in truth["images"] if image["file_name"] in wanted]
            numbers = {image["id"] for image in images}
            all_truths[condition] = {**truth, "images": images, "annotations": on_images(truth["annotations"], numbers)}
            all_found[condition] = {title: on_images(results, numbers) for title, results in found[name].items()}
    return all_truths, all_found


def on_images(entries: list[dict[str, Any]], numbers: set[int]) -> list[dict[str, Any]]:
    """Annotations or results on the images of these numbers."""
    return [entry for entry in entries if entry["image_id"] in numbers]


def score(truths: dict[str, dict], found: dict[str, dict[str, Results]]) -> dict[str, dict[str, dict[str, float]]]:
    """COCO's numbers and who is missed, by list and title; `truths` are COCO dictionaries by list."""
    return {name: {title: {**coco_metrics(truths[name], results), **miss_metrics(truths[name], results)}
                   for title, results in by_title.items()} for name, by_title in found.items()}


def compare_lists(detectors: dict[str, Detector], truths: dict[str, dict], found: dict[str, dict[str, Results]],
                  draws: int, seed: int) -> tuple[dict[str, dict], str]:
    """`comparison.compare` for each list, and the baseline's title: of the first RGB weights, where there are any, else
    of the first. The first weights with gated slices are the teacher."""
    first_of = {detector.settings["channels"]: title for title, detector in reversed(detectors.items())}
    baseline = first_of.get(3, next(iter(detectors)))
    return {name: distributed.on_first(partial(compare, truth, {title: [one] for title, one in found[name].items()},
                                               baseline, first_of.get(6), draws, seed))
            for name, truth in truths.items()}, baseline


def refuse_twice(files: list[Path]) -> None:
    """Raise `UserError` for a file or folder that is named twice."""
    places = [file.resolve() for file in files]
    for file, place in zip(files, places, strict=True):
        if places.count(place) > 1:
            raise UserError(f"{file} is named twice: name each once")


def titles(files: list[Path]) -> list[str]:
    """A short name for each weights file: its stem, with as many of its folders as tell it from the others."""
    return short_names([file.with_suffix("") for file in files])


def short_names(places: list[Path]) -> list[str]:
    """The last part of each path, with as many of its folders as tell it from the others."""
    paths = [place.absolute().parts for place in places]

    def shortest(path: tuple[str, ...]) -> int:
        return next((length for length in range(1, len(path))
                     if sum(other[-length:] == path[-length:] for other in paths) == 1), len(path))

    return ["/".join(path[-shortest(path):]) for path in paths]

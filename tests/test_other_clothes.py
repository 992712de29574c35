"""The same frames in other clothes: files, names and labels differ, and the AP does not.

It finds what no list of errors has: anything that changes a result without a word.
"""

import json
import shutil

import numpy as np
import pytest
from conftest import ROOT, run_here, run_script
from PIL import Image

from cmkd.evaluation.pipeline import detect_lists, evaluate_lists, load_comparable, read_datasets
from cmkd.frames.annotations import read_labels, to_pixels
from cmkd.frames.layout import GATED_FOLDERS, IMAGE_FOLDERS, label_file, read_list
from cmkd.study.day_detector import DAY_DETECTOR

LIST = "val_clear_day"
METRICS = ("AP", "AP50", "MR", "recall", "AP_0_25m", "AP_small")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Days, on which the shipped detector finds many people."""
    root = tmp_path_factory.mktemp("clothes") / "data"
    options = "--frames 0 12 0 --frames-per-recording 1 --size 213x128 --mix clear_day=1"
    run_script("make_synthetic.py", "--out", root, *options.split(), "--seed", 5, "--workers", 2)
    return root


def scores(root, list_name=LIST, **classes):
    """The metrics of the shipped detector."""
    detectors, names, ignore = load_comparable([DAY_DETECTOR], **classes)
    datasets = read_datasets(root, [list_name], detectors, names, ignore)
    truths = {one: dataset.ground_truth() for (one, _), dataset in datasets.items()}
    device = next(next(iter(detectors.values())).parameters()).device
    found = detect_lists(detectors, datasets, 4, 0, device, amp=False)
    [metrics] = evaluate_lists(truths, found)[list_name].values()
    return metrics


@pytest.fixture(scope="module")
def wanted(plain):
    metrics = scores(plain)
    assert metrics["AP"] > 0.2
    return metrics


def images_of(root):
    return [file for folder in IMAGE_FOLDERS for file in sorted((root / folder).iterdir())]


def relabel(root, change):
    for file in (root / "gated_labels").iterdir():
        file.write_bytes(change(file.read_bytes()))


def other_compression(root):
    for file in images_of(root):
        with Image.open(file) as image:
            image.save(file, compress_level=1)


def other_suffixes(root):
    for number, file in enumerate(images_of(root)):
        suffix = (".PNG", ".tif", ".bmp")[number % 3]
        with Image.open(file) as image:
            image.save(file.with_suffix(suffix))
        if suffix != ".PNG" or not file.samefile(file.with_suffix(suffix)):
            file.unlink()


def slices_of_three_channels(root):
    for folder in GATED_FOLDERS:
        for file in (root / folder).iterdir():
            with Image.open(file) as image:
                image.convert("RGB").save(file)


def other_names(root):
    names = read_list(root / f"{LIST}.txt")
    renamed = {name: f"zürich {len(names) - number:03}" for number, name in enumerate(names)}
    for folder in (*IMAGE_FOLDERS, "gated_labels"):
        for file in list((root / folder).iterdir()):
            file.rename(file.with_name(f"{renamed[file.stem]}{file.suffix}"))
    (root / f"{LIST}.txt").write_text("\n".join(renamed.values()))


def other_order(root):
    names = read_list(root / f"{LIST}.txt")
    np.random.default_rng(0).shuffle(names)
    (root / f"{LIST}.txt").write_bytes("\r\n".join(f"{name}.png" for name in names).encode())


def other_blanks(root):
    relabel(root, lambda text: text.replace(b" ", b"\t  ").replace(b"\n", b" \r\n\r\n"))


def fifteen_columns(root):
    def shorten(text):
        lines = [line.split() for line in text.decode().splitlines()]
        return "".join(f"{' '.join([*line[:14], '-10'])}\n" for line in lines).encode()

    relabel(root, shorten)


def other_lines(root):
    """Labels in another order, with copies and lines of no class."""

    def change(text):
        lines = text.decode().splitlines()
        traffic = f"traffic sign {' '.join(['0'] * 26)}" if lines else ""
        return "\n".join([traffic, *lines[::-1], *lines]).encode()

    relabel(root, change)


@pytest.mark.parametrize(
    "dress",
    [
        other_compression,
        other_suffixes,
        slices_of_three_channels,
        other_names,
        other_order,
        other_blanks,
        fifteen_columns,
        other_lines,
    ],
)
def test_the_ap_is_the_same(plain, wanted, tmp_path, dress):
    root = tmp_path / "data"
    shutil.copytree(plain, root)
    dress(root)
    found = scores(root)
    for metric in METRICS:
        assert found[metric] == pytest.approx(wanted[metric], abs=1e-6, nan_ok=True), metric


def test_pictures_of_double_size(plain, wanted, tmp_path):
    """The network sees almost the same; areas in pixels are four times as large."""
    root = tmp_path / "data"
    shutil.copytree(plain, root)
    for file in images_of(root):
        with Image.open(file) as image:
            size = (2 * image.width, 2 * image.height)
            image.resize(size, Image.Resampling.NEAREST).save(file)
    found = scores(root)
    for metric in ("AP", "AP50", "recall"):
        assert found[metric] == pytest.approx(wanted[metric], abs=0.06)


def test_through_another_format(plain, wanted, tmp_path):
    """Boxes as COCO in pixels, pictures in two folders, by the real command."""
    images, annotations = [], []
    for number, name in enumerate(read_list(plain / f"{LIST}.txt")):
        images.append({"id": number, "file_name": f"{name}.png", "width": 213, "height": 128})
        for label in read_labels(label_file(plain, name)):
            x0, y0, x1, y1 = to_pixels(label.box, 213, 128)
            one = {"id": len(annotations), "image_id": number, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            annotations.append({**one, "category_id": 1 + label.is_person, "name": label.name})
    categories = [{"id": 1, "name": "car"}, {"id": 2, "name": "person"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    command = ["prepare_pairs.py", "--rgb", plain / "images", "--second", plain / "gated0"]
    command += ["--labels", tmp_path / "coco.json", "--format", "coco", "--workers", 1]
    command += ["--out", tmp_path / "out", "--split", f"val={plain / f'{LIST}.txt'}"]
    done = run_here([str(ROOT / command[0]), *map(str, command[1:])])
    assert done.returncode == 0, done.stderr
    found = scores(tmp_path / "out", "val_all")
    for metric in ("AP", "AP50", "MR", "recall"):
        assert found[metric] == pytest.approx(wanted[metric], abs=1e-3)

"""Pairs of any two cameras with labels of any format: the real command on small pictures."""

import json
import re
import shlex
import sys

import numpy as np
import pytest
from conftest import ROOT, run_here, the_error, write_16_bit_colour_png
from PIL import Image

from cmkd.frames.annotations import read_labels, to_pixels
from cmkd.frames.class_names import names_in_yaml
from cmkd.frames.layout import label_file, read_list, recording_of
from cmkd.frames.pairing import split_by_sequence
from cmkd.frames.second_camera import shift_between
from dataset import SeeingThroughFog
from prepare_pairs import parse_arguments

SIZE = 64, 48
# Boxes of each picture in px: class, corners.
PEOPLE = {
    "a": [("person", (4.5, 6.25, 20, 40)), ("car", (30, 20, 60, 44))],
    "b": [("person", (10, 10, 22.5, 30))],
    "c": [],
    "d": [("person", (1, 2, 9, 30)), ("person", (40, 2, 50, 30))],
}


def picture(seed, size=SIZE, mode="RGB"):
    rng = np.random.default_rng(seed)
    shape = (size[1], size[0], 3) if mode == "RGB" else size[::-1]
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


def write_pictures(root):
    """RGB and infrared pictures of four moments."""
    for number, name in enumerate(PEOPLE):
        for folder, mode in (("rgb", "RGB"), ("ir", "L")):
            (root / folder).mkdir(exist_ok=True)
            picture(number, mode=mode).save(root / folder / f"{name}.png")
    return root


@pytest.fixture
def source(tmp_path):
    return write_pictures(tmp_path)


def write_coco(root):
    images, annotations = [], []
    for number, (name, boxes) in enumerate(PEOPLE.items(), start=5):
        images.append({"id": number, "file_name": f"{name}.png", "width": 64, "height": 48})
        for kind, (x0, y0, x1, y1) in boxes:
            one = {"id": len(annotations), "image_id": number, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            annotations.append({**one, "category_id": {"person": 9, "car": 4}[kind]})
    categories = [{"id": 9, "name": "person"}, {"id": 4, "name": "car"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "coco.json").write_text(json.dumps(content))
    return root / "coco.json"


def voc_text(boxes, size=SIZE, add=0, flags=""):
    objects = "".join(
        f"<object><name>{kind}</name>{flags}<bndbox><xmin>{x0 + add}</xmin><ymin>{y0 + add}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for kind, (x0, y0, x1, y1) in boxes
    )
    known = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    return f"<annotation>{known}{objects}</annotation>"


def write_voc(root, add=0):
    (root / "voc").mkdir()
    for name, boxes in PEOPLE.items():
        (root / f"voc/{name}.xml").write_text(voc_text(boxes, add=add))
    return root / "voc"


def write_yolo(root):
    (root / "yolo/labels").mkdir(parents=True)
    (root / "yolo/data.yaml").write_text("nc: 2\nnames:\n  0: car\n  1: person  # on foot\n")
    width, height = SIZE
    for name, boxes in PEOPLE.items():
        lines = [
            f"{['car', 'person'].index(kind)} {(x0 + x1) / 2 / width} {(y0 + y1) / 2 / height} "
            f"{(x1 - x0) / width} {(y1 - y0) / height}\n"
            for kind, (x0, y0, x1, y1) in boxes
        ]
        (root / f"yolo/labels/{name}.txt").write_text("".join(lines))
    return root / "yolo/labels"


def write_kitti(root):
    (root / "kitti").mkdir()
    for name, boxes in PEOPLE.items():
        lines = [
            f"{kind} 0.00 0 -10 {x0} {y0} {x1} {y1} -1 -1 -1 -1000 -1000 -1000 -10\n"
            for kind, (x0, y0, x1, y1) in boxes
        ]
        (root / f"kitti/{name}.txt").write_text("".join(lines))
    return root / "kitti"


WRITERS = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo, "kitti": write_kitti}


def prepare(root, *options, rgb="rgb", second="ir", out="out", expect=0):
    folders = ["--rgb", root / rgb, "--second", root / second, "--out", root / out]
    command = [ROOT / "prepare_pairs.py", *folders, "--workers", 1, *options]
    done = run_here(list(map(str, command)))
    assert done.returncode == expect, f"{done.stdout}\n{done.stderr}"
    return done


def pixel_boxes(root, name, size=SIZE):
    labels = read_labels(label_file(root, name))
    return [(label.name, to_pixels(label.box, *size)) for label in labels]


@pytest.mark.parametrize("kind", WRITERS)
def test_the_same_boxes_from_every_format(source, kind):
    done = prepare(source, "--labels", WRITERS[kind](source), "--format", kind)
    for name, boxes in PEOPLE.items():
        found = pixel_boxes(source / "out", name)
        wanted = {"person": "Pedestrian", "car": "PassengerCar"}
        assert [one for one, _ in found] == [wanted[one] for one, _ in boxes]
        for (_, box), (_, corners) in zip(found, boxes, strict=True):
            assert box == pytest.approx(corners, abs=0.01)
    assert "8 pictures linked" in done.stdout
    assert "makes a detector look better than it is" in done.stderr
    names = [name for split in ("train", "val", "test") for name in lists_of(source / "out", split)]
    assert sorted(names) == sorted(PEOPLE)


def lists_of(root, split):
    file = root / f"{split}_all.txt"
    return read_list(file) if file.is_file() else []


def test_the_prepared_folder_is_what_training_reads(source):
    """Links, one infrared picture as three slices, and 6-channel samples."""
    prepare(source, "--labels", write_coco(source), "--format", "coco")
    (source / "out/everything.txt").write_text("\n".join(PEOPLE))
    dataset = SeeingThroughFog(source / "out", "everything")
    for index, name in enumerate(PEOPLE):
        image, target = dataset[index]
        rgb = np.asarray(Image.open(source / f"rgb/{name}.png")).transpose(2, 0, 1)
        grey = np.asarray(Image.open(source / f"ir/{name}.png"))
        assert np.array_equal(image[:3].numpy(), rgb)
        assert all(np.array_equal(one.numpy(), grey) for one in image[3:])
        people = [corners for kind, corners in PEOPLE[name] if kind == "person"]
        assert target["boxes"].numpy() == pytest.approx(np.array(people).reshape(-1, 4), abs=0.01)
    assert (source / "out/images/a.png").readlink() == (source / "rgb/a.png").resolve()
    assert str((source / "out/gated2/a.png").readlink()) == "../gated0/a.png"


def test_copies_leave_nothing_behind(source):
    prepare(source, "--labels", write_coco(source), "--format", "coco", "--copy")
    for name in PEOPLE:
        assert not (source / f"out/images/{name}.png").is_symlink()
        assert not (source / f"out/gated0/{name}.png").is_symlink()


def test_the_original_voc_counts_from_one(source):
    options = ["--labels", write_voc(source, add=1), "--format", "voc", "--one-based"]
    assert "counted from 1" in prepare(source, *options).stdout
    assert pixel_boxes(source / "out", "b")[0][1] == pytest.approx(PEOPLE["b"][0][1], abs=0.01)


def test_regions_columns_and_unknown_classes(source):
    """Difficult and crowd are regions; truncation and occlusion are kept; nothing is lost."""
    (source / "voc").mkdir()
    flags = "<difficult>1</difficult>"
    (source / "voc/a.xml").write_text(voc_text(PEOPLE["b"], flags=flags))
    flags = "<truncated>1</truncated><occluded>1</occluded>"
    (source / "voc/b.xml").write_text(voc_text([("big dog", (1, 1, 9, 9))], flags=flags))
    (source / "voc/c.xml").write_text(voc_text([("person", (5, 5, 5, 9))], size=None))
    (source / "voc/d.xml").write_text(voc_text([("wheeled thing", (1, 1, 9, 9))]))
    options = ["--labels", source / "voc", "--format", "voc"]
    done = prepare(source, *options, "--map", "wheeled thing=RidableVehicle")
    assert [name for name, _ in pixel_boxes(source / "out", "a")] == ["DontCare"]
    assert label_file(source / "out", "b").read_text().startswith("big_dog 1.00 1 -10 ")
    assert [name for name, _ in pixel_boxes(source / "out", "d")] == ["RidableVehicle"]
    assert "1 boxes of a class that training does not know: big dog" in done.stdout
    assert "1 boxes without width or height, left out" in done.stdout
    assert "1 XML files without a size" in done.stdout
    assert json.loads((source / "out/pairs_report.json").read_text())["counts"][
        "boxes without width or height, left out"
    ]


def test_kaist(tmp_path):
    """Both cameras below one folder; people and person? are regions; one picture has no labels."""
    for folder in ("set00/V000", "set06/V001"):
        for camera, mode in (("visible", "RGB"), ("lwir", "L")):
            (tmp_path / "images" / folder / camera).mkdir(parents=True)
            for name in ("I00000", "I00020"):
                picture(3, mode=mode).save(tmp_path / "images" / folder / camera / f"{name}.jpg")
        (tmp_path / "annotations" / folder).mkdir(parents=True)
    head = "% bbGt version=3\n"
    rest = "0 0 0 0 {ignore} 0\n"
    lines = [
        "person 5 6 10 20 2 " + rest.format(ignore=0),
        "people 20 6 10 20 0 " + rest.format(ignore=0),
        "person? 30 6 10 20 0 " + rest.format(ignore=0),
        "person 40 6 10 20 0 " + rest.format(ignore=1),
    ]
    (tmp_path / "annotations/set00/V000/I00000.txt").write_text(head + "".join(lines))
    (tmp_path / "annotations/set00/V000/I00020.txt").write_text(head)
    (tmp_path / "annotations/set06/V001/I00000.txt").write_text(head)
    (tmp_path / "train.txt").write_text("set00/V000/I00000\nset00/V000/I00020\n")
    (tmp_path / "test.txt").write_text("set06/V001/I00000\nset06/V001/I00020\n")
    done = prepare(
        tmp_path,
        *("--labels", tmp_path / "annotations", "--format", "kaist"),
        *("--pair", r"(.*)/visible/(.*)=\1/lwir/\2", "--sequence", r"set\d+/V\d+"),
        *("--split", f"train={tmp_path / 'train.txt'}", f"test={tmp_path / 'test.txt'}"),
        rgb="images",
        second="images",
    )
    names = lists_of(tmp_path / "out", "train") + lists_of(tmp_path / "out", "val")
    assert names == ["set00-V000_I00000", "set00-V000_I00020"]
    assert {recording_of(name) for name in names} == {"set00-V000"}
    assert lists_of(tmp_path / "out", "test") == ["set06-V001_I00000", "set06-V001_I00020"]
    found = pixel_boxes(tmp_path / "out", names[0])
    assert [name for name, _ in found] == ["Pedestrian", *["DontCare"] * 3]
    assert found[0][1] == pytest.approx((5, 6, 15, 26), abs=0.01)
    assert label_file(tmp_path / "out", names[0]).read_text().split()[2] == "2"
    assert "1 pairs without a label file: nobody is there" in done.stdout


def test_cvc14(tmp_path):
    """Grey visible pictures, tifs, centres in px with one or two blanks, frames without labels."""
    for camera in ("Visible", "FIR"):
        for folder, name in (("FramesPos", "x1"), ("FramesNeg", "x2")):
            (tmp_path / camera / folder).mkdir(parents=True)
            picture(1, mode="L").save(tmp_path / camera / folder / f"{name}.tif")
    (tmp_path / "Visible/Annotations").mkdir()
    (tmp_path / "Visible/Annotations/x1.txt").write_text("15  20 10  20 1 0 0 0\n")
    options = ["--labels", tmp_path / "Visible/Annotations", "--format", "cvc14"]
    (tmp_path / "all.txt").write_text("x1\nx2\n")
    options += ["--split", f"test={tmp_path / 'all.txt'}"]
    done = prepare(tmp_path, *options, rgb="Visible", second="FIR")
    assert pixel_boxes(tmp_path / "out", "x1")[0][1] == pytest.approx((10, 10, 20, 30), abs=0.01)
    assert label_file(tmp_path / "out", "x2").read_text() == ""
    assert "4 pictures converted" in done.stdout
    grey = np.asarray(picture(1, mode="L"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/gated0/x1.png")), grey)


def test_both_cameras_in_one_folder(tmp_path):
    """FLIR's names: a suffix tells them apart, and labels are named after the second camera."""
    (tmp_path / "all").mkdir()
    (tmp_path / "voc").mkdir()
    for number in range(2):
        picture(number).save(tmp_path / f"all/FLIR_{number}_RGB.jpg")
        picture(number, mode="L").save(tmp_path / f"all/FLIR_{number}_PreviewData.jpeg")
        (tmp_path / f"voc/FLIR_{number}_PreviewData.xml").write_text(voc_text(PEOPLE["b"]))
    (tmp_path / "align_train.txt").write_text("FLIR_0_PreviewData\nFLIR_7_PreviewData\n")
    (tmp_path / "align_validation.txt").write_text("FLIR_1_PreviewData\n")
    options = ["--labels", tmp_path / "voc", "--format", "voc"]
    options += ["--pair", r"(.*)_RGB=\1_PreviewData", "--split"]
    options += [f"train={tmp_path}/align_train.txt", f"test={tmp_path}/align_validation.txt"]
    done = prepare(tmp_path, *options, rgb="all", second="all")
    assert lists_of(tmp_path / "out", "test") == ["FLIR-1-RGB"]
    assert (tmp_path / "out/gated0/FLIR-0-RGB.jpg").readlink().name == "FLIR_0_PreviewData.jpeg"
    assert "1 names in align_train.txt without a pair" in done.stdout


def test_sixteen_bits_by_one_range(source):
    """The same value has the same grey level in every picture."""
    for number, name in enumerate(PEOPLE):
        values = np.full(SIZE[::-1], 7000 + 500 * number, np.uint16)
        values[0, 0] = 7250
        Image.fromarray(values).save(source / f"ir/{name}.png")
    options = ["--labels", write_coco(source), "--format", "coco"]
    prepare(source, *options, "--second-range", 7000, 9000)
    levels = {}
    for number, name in enumerate(PEOPLE):
        image = np.asarray(Image.open(source / f"out/gated0/{name}.png"))
        assert image[0, 0] == 32
        levels[number] = int(image[5, 5])
    assert levels == {0: 0, 1: 64, 2: 128, 3: 191}
    assert "7000 to 8500 become 0 to 255" in prepare(source, *options, out="measured").stdout
    report = json.loads((source / "measured/pairs_report.json").read_text())
    assert report["second_range"] == [7000, 8500]


def test_twelve_bits_in_colour_of_16_are_asked_for_and_converted(source):
    """In both cameras: neither file is linked, because the loader would read it otherwise."""
    width, height = SIZE
    values = np.linspace(0, 4095, width * height * 3).astype(int).reshape(height, width, 3)
    for folder in ("rgb", "ir"):
        for name in PEOPLE:
            write_16_bit_colour_png(source / f"{folder}/{name}.png", values)
    options = ["--labels", write_coco(source), "--format", "coco"]
    assert "pass --colour-bits N" in prepare(source, *options, expect=2).stderr
    prepare(source, *options, "--colour-bits", 12, out="converted")
    for folder in ("images", "gated0"):
        file = source / f"converted/{folder}/a.png"
        assert not file.is_symlink()
        assert np.array_equal(np.asarray(Image.open(file)), values >> 4)


def test_a_homography_brings_the_second_camera_into_view(source):
    """The second camera is at half the size and shows everything 6 px farther left."""
    for name in PEOPLE:
        rgb = np.zeros((48, 64, 3), np.uint8)
        rgb[20:30, 26:36] = 200
        Image.fromarray(rgb).save(source / f"rgb/{name}.png")
        small = np.zeros((24, 32), np.uint8)
        small[10:15, 10:15] = 200
        Image.fromarray(small).save(source / f"ir/{name}.png")
    (source / "h.txt").write_text("2 0 6\n0 2 0\n0 0 1\n")
    options = ["--labels", write_coco(source), "--format", "coco"]
    prepare(source, *options, "--homography", source / "h.txt")
    warped = np.asarray(Image.open(source / "out/gated0/a.png"))
    assert warped.shape == (48, 64)
    rows, columns = np.nonzero(warped > 100)
    assert abs(rows.mean() - 24.5) < 1
    assert abs(columns.mean() - 30.5) < 1


def test_a_shift_is_measured():
    rng = np.random.default_rng(0)
    scene = np.kron(rng.integers(0, 256, (30, 50)), np.ones((8, 8))).astype(np.uint8)
    fixed = Image.fromarray(scene[20:212, 30:350])
    moved = Image.fromarray(255 - scene[24:216, 22:342])  # and the brightness the other way
    assert shift_between(fixed, moved) == pytest.approx((-8, 4), abs=1)
    assert shift_between(fixed, fixed) == (0, 0)


def test_night_by_brightness_and_by_list(source):
    for number, name in enumerate(PEOPLE):
        Image.new("RGB", SIZE, (20 + 60 * number,) * 3).save(source / f"rgb/{name}.png")
    options = ["--labels", write_coco(source), "--format", "coco", "--split"]
    for split, names in (("train", "ab"), ("val", "c"), ("test", "d")):
        (source / f"{split}.txt").write_text("\n".join(names))
        options.append(f"{split}={source / split}.txt")
    prepare(source, *options)
    assert read_list(source / "out/train_night.txt") == ["a"]
    assert read_list(source / "out/train_day.txt") == ["b"]
    assert not (source / "out/val_night.txt").exists()
    (source / "night.txt").write_text("b.png\nd\n")
    prepare(source, *options, "--night", source / "night.txt", out="listed")
    assert read_list(source / "listed/train_night.txt") == ["b"]
    assert read_list(source / "listed/test_night.txt") == ["d"]


def test_sequences_stay_together_near_their_shares():
    counts = {f"drive{number}": 10 + number % 7 for number in range(60)}
    split_of = split_by_sequence(counts)
    total = sum(counts.values())
    for split, share in (("train", 0.6), ("val", 0.15), ("test", 0.25)):
        part = sum(count for name, count in counts.items() if split_of[name] == split)
        assert part / total == pytest.approx(share, abs=0.03)
    assert split_of == split_by_sequence(dict(reversed(counts.items())))


@pytest.mark.parametrize(
    "text",
    ["names: [car, 'big dog']\n", "names:\n- car\n- big dog\n", 'names:\n  0: car\n  1: "big dog"'],
)
def test_names_in_yaml(tmp_path, text):
    (tmp_path / "data.yaml").write_text(text)
    assert names_in_yaml(tmp_path / "data.yaml") == ["car", "big dog"]


# -------------------------------------------------------------------------------- what is refused


def spoil_coco(change):
    def spoil(root):
        file = write_coco(root)
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
        return ["--labels", file, "--format", "coco"]

    return spoil


def spoil_file(kind, path, text):
    def spoil(root):
        labels = WRITERS[kind](root)
        (root / path).write_text(text)
        return ["--labels", labels, "--format", kind]

    return spoil


def spoil_size(root):
    picture(0, (64, 24), "L").save(root / "ir/a.png")
    return ["--labels", write_coco(root), "--format", "coco"]


def spoil_twice(root):
    picture(0).save(root / "rgb/a.jpg")
    return ["--labels", write_coco(root), "--format", "coco"]


def spoil_partner(root):
    for name in PEOPLE:
        (root / f"ir/{name}.png").rename(root / f"ir/{name}_IR.png")
    return ["--labels", write_coco(root), "--format", "coco"]


def spoil_missing(root):
    labels = write_yolo(root)
    (labels / "c.txt").unlink()
    return ["--labels", labels, "--format", "yolo"]


REFUSED = {
    "an image id without image": (
        spoil_coco(lambda content: content["annotations"][0].update(image_id=77)),
        "annotation 0 is of image 77, which is not in images",
    ),
    "a category without name": (
        spoil_coco(lambda content: content["categories"].pop()),
        "has category 4, which is not in categories",
    ),
    "two images of one name": (
        spoil_coco(lambda content: content["images"][1].update(file_name="a.jpg")),
        "two images are called a",
    ),
    "pictures that were not labelled": (
        spoil_coco(lambda content: content["images"][0].update(width=640)),
        "its labels are of a picture of 640x48",
    ),
    "no COCO": (spoil_coco(lambda content: content.pop("images")), "is not a COCO file"),
    "percent": (
        spoil_file("yolo", "yolo/labels/b.txt", "1 50 50 10 20\n"),
        "b.txt:1: 1 50 50 10 20: centre and size must be shares from 0 to 1",
    ),
    "a class without name": (
        spoil_file("yolo", "yolo/labels/b.txt", "2 .5 .5 .1 .2\n"),
        "b.txt:1: class 2 has no name: there are 2",
    ),
    "no label file": (spoil_missing, "has no label file: pass --no-file nobody"),
    "broken XML": (spoil_file("voc", "voc/a.xml", "<annotation>"), "a.xml is not a VOC file"),
    "a shifted line": (
        spoil_file("kitti", "kitti/a.txt", "person 0 0 4 6 20 40\n"),
        "a.txt:1: expected a class and 14 numbers",
    ),
    "another view": (spoil_size, "they do not show the same view, so pass --homography"),
    "two pictures of one name": (spoil_twice, "have one name: remove one of them"),
    "other names": (spoil_partner, "like a_IR for a: say how names differ, as --pair"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(source, case):
    spoil, message = REFUSED[case]
    options = spoil(source)
    (source / "everything.txt").write_text("\n".join(PEOPLE))
    done = prepare(source, *options, "--split", f"train={source / 'everything.txt'}", expect=2)
    assert message in the_error(done)


def test_a_class_of_two_words_in_kitti(source):
    labels = write_kitti(source)
    line = "Pedestrian sitting 0.00 0 0 5 6 20 40 -1 -1 -1 -1000 -1000 -1000 -10\n"
    (labels / "a.txt").write_text(line)
    done = prepare(source, "--labels", labels, "--format", "kitti")
    [(name, box)] = pixel_boxes(source / "out", "a")
    assert name == "Pedestrian_sitting"
    assert box == pytest.approx((5, 6, 20, 40), abs=0.01)
    assert "does not know: Pedestrian sitting" in done.stdout


def documented_commands():
    text = (ROOT / "docs/data.md").read_text()
    return [shlex.split(line) for line in re.findall(r"python prepare_pairs\.py (--[^`\n]*)", text)]


@pytest.mark.parametrize("words", documented_commands(), ids=lambda words: words[1])
def test_documented_commands_are_understood(words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["prepare_pairs.py", *words])
    args = parse_arguments()
    assert args.format in words


def test_the_first_documented_command_runs(source, monkeypatch):
    """From pictures and VOC files to a folder without errors, with a sheet."""
    (source / "rgb").rename(source / "visible")
    (source / "ir").rename(source / "infrared")
    write_voc(source).rename(source / "Annotations")
    monkeypatch.chdir(source)
    done = run_here([str(ROOT / "prepare_pairs.py"), *documented_commands()[0], "--workers", "1"])
    assert done.returncode == 0, done.stderr
    with Image.open(source / "sheet.png") as sheet:
        assert sheet.width > 3 * 320
    checked = run_here([str(ROOT / "check_data.py"), str(source / "data"), "--workers", "1"])
    assert "errors: 0" in checked.stdout

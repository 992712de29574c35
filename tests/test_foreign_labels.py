"""Labels and pictures of others that would be read as something else, by the real commands."""

import json
import os
import struct
import sys

import numpy as np
import pytest
from conftest import ROOT, label_line, run_here, the_error, write_frame
from PIL import Image, features
from test_prepare_pairs import (
    PEOPLE,
    SIZE,
    lists_of,
    picture,
    pixel_boxes,
    prepare,
    spoil_coco,
    spoil_file,
    voc_text,
    write_coco,
    write_pictures,
    write_voc,
    write_yolo,
)

from cmkd.frames.class_names import names_in_yaml
from cmkd.frames.images import image_size, read_slice
from cmkd.frames.label_exchange import read_coco
from cmkd.frames.layout import frame_name
from cmkd.frames.pairing import Pair, find_listed, find_pair, lookup_by_alias, plain
from cmkd.frames.second_camera import open_picture
from cmkd.runtime.files import UserError
from cmkd.viewing.annotate_pictures import read_picture

BEHIND = "-1 -1 -1 -1000 -1000 -1000 -10"


@pytest.fixture
def source(tmp_path):
    return write_pictures(tmp_path)


def refused(source, options, **folders):
    """The error of a command with these options, which writes nothing."""
    names = sorted({file.stem for file in (source / folders.get("rgb", "rgb")).iterdir()})
    (source / "everything.txt").write_text("\n".join(names))
    split = ["--split", f"test={source / 'everything.txt'}"]
    done = prepare(source, *options, *split, expect=2, **folders)
    assert not (source / "out").exists()
    return the_error(done)


# --------------------------------------------------------------------------------- boxes and names


def coco_with(boxes):
    """A COCO file with these boxes x, y, width, height, all of the first picture."""

    def change(content):
        one = content["annotations"][0]
        content["annotations"] = [{**one, "bbox": box} for box in boxes]

    return spoil_coco(change)


def join_twice(part):
    """A COCO file in which another data set's images or categories have the same ids."""
    name = {"images": "file_name", "categories": "name"}[part]
    return spoil_coco(
        lambda content: content[part].extend(
            {**one, name: f"{one[name]}_2"} for one in list(content[part])
        )
    )


def kitti_with(boxes):
    lines = [f"person 0 0 -10 {' '.join(map(str, box))} {BEHIND}\n" for box in boxes]
    return spoil_file("kitti", "kitti/a.txt", "".join(lines))


def voc_of_shares(root):
    (root / "voc").mkdir()
    for name in PEOPLE:
        (root / f"voc/{name}.xml").write_text(voc_text([("person", (0.1, 0.2, 0.3, 0.9))]))
    return ["--labels", root / "voc", "--format", "voc"]


def text_of_shares(kind, line):
    def write(root):
        (root / kind).mkdir()
        (root / f"{kind}/a.txt").write_text(line)
        return ["--labels", root / kind, "--format", kind]

    return write


def a_blank_name(root):
    labels = write_yolo(root)
    (labels / "classes.txt").write_text("car\n\nperson\n\n")
    return ["--labels", labels, "--format", "yolo"]


CORNERS = [(10 + number, 5, 30 + number, 45) for number in range(20)]
MISREAD = {
    "a rotated box": (
        spoil_file("yolo", "yolo/labels/a.txt", "\n1 .1 .1 .5 .1 .5 .5 .1 .5\n"),
        "a.txt:2: 9 columns: outlines, rotated boxes or key points: export boxes",
    ),
    "a pose": (
        spoil_file("yolo", "yolo/labels/a.txt", "1 .5 .5 .1 .1 .4 .4\n"),
        "a.txt:1: 7 columns: outlines",
    ),
    "image ids twice": (join_twice("images"), "id 5 is a.png and a.png_2: give each its own id"),
    "category ids twice": (join_twice("categories"), "id 9 is person and person_2"),
    "no image": (
        spoil_coco(lambda content: content.update(images=[], annotations=[])),
        "coco.json has no images",
    ),
    "shares in COCO": (coco_with([[0.1, 0.1, 0.5, 0.5]]), "boxes are shares, not pixels"),
    "shares in VOC": (voc_of_shares, "boxes are shares, not pixels: --format yolo, or convert"),
    "shares in KITTI": (
        text_of_shares("kitti", f"person 0 0 -10 .1 .2 .3 .4 {BEHIND}\n"),
        "kitti: no box reaches beyond 1.5 px",
    ),
    "shares in KAIST": (text_of_shares("kaist", "person .1 .2 .3 .4 0\n"), "boxes are shares"),
    "shares in CVC-14": (text_of_shares("cvc14", ".1 .2 .3 .4 1\n"), "boxes are shares"),
    "corners in COCO": (coco_with(CORNERS), "bbox looks like x0 y0 x1 y1"),
    "sizes in KITTI": (
        kitti_with([(30, 20, 10, 15)] * 2 + [(5, 5, 10, 20)] * 30),
        "kitti: 2 of 35 boxes end before they begin: corners are swapped, or they are x y width",
    ),
    "a blank name": (a_blank_name, "a.txt:1: class 1 has no name: its line is blank"),
}


@pytest.mark.parametrize("case", MISREAD)
def test_labels_that_would_be_misread(source, case):
    write, message = MISREAD[case]
    assert message in refused(source, write(source))


def test_large_things_in_the_middle_are_no_corners(source):
    """All boxes are wide and high, but within their pictures."""
    prepare(source, *coco_with([(10 + number, 5, 31, 35) for number in range(20)])(source))
    assert len(pixel_boxes(source / "out", "a")) == 20


def test_a_few_swapped_corners_are_counted(source):
    boxes = [(30, 20, 10, 15), (9, 9, 9, 20)] + [(5, 5, 10, 20)] * 30
    done = prepare(source, *kitti_with(boxes)(source))
    assert "1 boxes whose corners are swapped, left out" in done.stdout
    assert "1 boxes without width or height, left out" in done.stdout


def test_a_yolo_line_may_end_with_a_score(source):
    prepare(source, *spoil_file("yolo", "yolo/labels/a.txt", "1 .5 .5 .25 .5 .9\n")(source))
    assert pixel_boxes(source / "out", "a")[0][1] == pytest.approx((24, 12, 40, 36), abs=0.01)


def test_a_blank_line_within_class_names_has_a_number(source):
    labels = write_yolo(source)
    (labels / "classes.txt").write_text("\nperson\n\ncar\n\n")
    for file in labels.glob("?.txt"):
        file.write_text("3 .5 .5 .25 .5\n")
    done = prepare(source, "--labels", labels, "--format", "yolo")
    assert [name for name, _ in pixel_boxes(source / "out", "a")] == ["PassengerCar"]
    assert f"class names: {labels / 'classes.txt'}: 1 person, 3 car\n" in done.stdout


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: ['car, van', \"it's\", driver's]", ["car, van", "it's", "driver's"]),
        ("names: {0: person, 1: 'car: red',}  # two", ["person", "car: red"]),
        ("names: {\n  '1': car,\n  \"0\": person }\n", ["person", "car"]),
        ("names:  # all\n  0: person\n\n  # on wheels\n  1: car\nnc: 2\n", ["person", "car"]),
        ('names:\n  \'0\': \'no # comment\'\n  "1": "a \\"b\\""\n', ["no # comment", 'a "b"']),
        ("path: x\nnames:\n- person # on foot\n\n- 'it''s'\ntrain: y\n", ["person", "it's"]),
        ("names: [car,\n  person]\n", ["car", "person"]),
    ],
)
def test_class_names_of_a_data_yaml(tmp_path, text, names):
    (tmp_path / "data.yaml").write_text(text)
    assert names_in_yaml(tmp_path / "data.yaml") == names


@pytest.mark.parametrize(
    "text",
    [
        "names: [car,, person]",
        "names: [[car], person]",
        "names: [car, person",
        "names: person",
        "names:\n  - name: person\n    id: 0\n",
        "names: {0: person, 2: car}",
        "names: ['car]",
        "names: [car, no]",
        "names: []",
        "names: *others",
    ],
)
def test_class_names_that_cannot_be_read(tmp_path, text):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=r"data\.yaml"):
        names_in_yaml(tmp_path / "data.yaml")


def test_a_data_yaml_without_pyyaml(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(UserError, match="pip install pyyaml, or write classes.txt"):
        names_in_yaml(tmp_path / "data.yaml")


def test_what_coco_and_voc_may_say(source):
    """A byte order mark, a number as a name, one category twice; unknown and fractional sizes."""
    file = write_coco(source)
    content = json.loads(file.read_text())
    content["categories"][1]["name"] = 7
    content["categories"].append(dict(content["categories"][0]))
    file.write_text(json.dumps(content), encoding="utf-8-sig")
    done = prepare(source, "--labels", file, "--format", "coco", "--map", "7=PassengerCar")
    assert [name for name, _ in pixel_boxes(source / "out", "a")] == ["Pedestrian", "PassengerCar"]
    labels = write_voc(source)
    (labels / "a.xml").write_text(voc_text(PEOPLE["a"], size=(0, 0)))
    (labels / "b.xml").write_text(voc_text(PEOPLE["b"], size=("64.0", "48.0")))
    done = prepare(source, "--labels", labels, "--format", "voc", out="voc_out")
    assert "1 XML files without a size" in done.stdout


@pytest.mark.parametrize("part", ["images", "categories"])
def test_ids_that_occur_twice_are_not_imported(source, part):
    with pytest.raises(UserError, match="give each its own id"):
        read_coco(join_twice(part)(source)[1])


# ---------------------------------------------------------------------------------- whose labels


@pytest.fixture(scope="module")
def kaist(tmp_path_factory):
    """One sequence of KAIST, with labels of another one too."""
    root = tmp_path_factory.mktemp("kaist")
    for camera, mode in (("visible", "RGB"), ("lwir", "L")):
        (root / "images/set06/V000" / camera).mkdir(parents=True)
        for name in ("I1", "I2"):
            picture(1, mode=mode).save(root / f"images/set06/V000/{camera}/{name}.png")
    for number, folder in enumerate(("set00", "set06")):
        (root / folder / folder / "V000").mkdir(parents=True)
        line = f"person {5 + number} 6 10 20 0 0 0 0 0 0 0\n"
        (root / folder / folder / "V000/I1.txt").write_text(line)
    return root


KAIST_OPTIONS = ["--format", "kaist", "--pair", r"(.*)/visible/(.*)=\1/lwir/\2"]
BOTH = {"rgb": "images", "second": "images"}


def test_labels_of_another_sequence_are_none(kaist):
    done = prepare(kaist, "--labels", kaist / "set00", *KAIST_OPTIONS, **BOTH, expect=2)
    assert "no label is of a picture" in done.stderr


def test_a_split_without_any_label_file_is_refused(kaist):
    for split, name in (("val", "I1"), ("test", "I2")):
        (kaist / f"{split}.txt").write_text(f"set06/V000/{name}\n")
    split = ["--split", *(f"{split}={kaist / split}.txt" for split in ("val", "test"))]
    options = ["--labels", kaist / "set06", *KAIST_OPTIONS, *split, "--no-file", "nobody"]
    error = the_error(prepare(kaist, *options, **BOTH, expect=2))
    assert "test: none of 1 pairs has a label file: add its annotations" in error


DEEP = Pair("set06/V000/visible/I1", "set06/V000/lwir/I1", ROOT, ROOT)
FLAT = Pair("images/I2_RGB", "images/I2_IR", ROOT, ROOT)


@pytest.mark.parametrize(
    ("line", "pair"),
    [
        ("set06/V000/I1", DEEP),
        ("./set06/V000/lwir/I1.png", DEEP),
        ("/home/x/KAIST/images/set06/V000/visible/I1.jpg", DEEP),
        ("/home/x/KAIST/set06/V000/I1", DEEP),
        ("../KAIST/set06/V000/I1.jpg", DEEP),
        ("D:\\KAIST\\set06\\V000\\I1.jpg", DEEP),
        ("I1.png", DEEP),
        ("labels/I1", DEEP),
        ("train/I2_RGB.png", FLAT),
        ("/x/y/I2_IR.png", FLAT),
        ("set00/V000/I1", None),
        ("./set00/V000/I1.png", None),
        ("/home/x/set00/V000/visible/I1.jpg", None),
        ("V000/I1", None),
        ("/", None),
    ],
)
def test_what_a_line_of_a_list_names(line, pair):
    assert find_listed(line, lookup_by_alias([DEEP, FLAT])) is pair


def test_two_labels_of_one_picture(source):
    for folder in ("x", "y"):
        (source / "voc" / folder).mkdir(parents=True)
        (source / "voc" / folder / "a.xml").write_text(voc_text(PEOPLE["a"]))
    error = refused(source, ["--labels", source / "voc", "--format", "voc"])
    assert "name the labels of this sequence alone, or of one camera alone" in error
    assert find_pair("x/y/a", lookup_by_alias([Pair("a", "a", ROOT, ROOT)]))


def test_labels_of_the_camera_that_is_warped(source):
    rename_second(source)
    labels = write_voc(source)
    for name in PEOPLE:
        (labels / f"{name}.xml").rename(labels / f"{name}_ir.xml")
    (source / "h.txt").write_text("1 0 6\n0 1 0\n0 0 1\n")
    options = ["--labels", labels, "--format", "voc", "--pair", r"(.*)=\1_ir"]
    error = refused(source, [*options, "--homography", source / "h.txt"])
    assert "a_ir is a label of" in error
    assert "boxes must be in RGB's pixels" in error
    prepare(source, *options)


# ----------------------------------------------------------------------------------------- pairs


def rename_second(source):
    for name in PEOPLE:
        (source / f"ir/{name}.png").rename(source / f"ir/{name}_ir.png")


def test_the_whole_name_is_replaced_once(source):
    """In one folder too; what is no partner of any is counted."""
    rename_second(source)
    options = ["--labels", write_coco(source), "--format", "coco", "--pair", r"(.*)=\1_ir"]
    assert "8 pictures linked" in prepare(source, *options).stdout
    for file in (source / "ir").iterdir():
        file.rename(source / "rgb" / file.name)
    picture(9).save(source / "rgb/other.png")
    done = prepare(source, *options, second="rgb", out="one_folder")
    assert "8 pictures linked" in done.stdout
    assert "1 RGB pictures without a partner, left out" in done.stdout
    options[-1] = r"([a-d])=\1_ir"
    done = prepare(source, *options, second="rgb", out="few")
    assert "1 pictures that are in no pair, because --pair does not match them" in done.stdout
    assert "without a partner" not in done.stdout


def same_folder(root):
    return [], {"second": "rgb"}


def links_to_itself(root):
    (root / "links").symlink_to(root / "rgb")
    return [], {"second": "links"}


def one_for_all(root):
    return ["--pair", "(.*)=a"], {}


def option(*words):
    return lambda root: ([*words], {})


BAD_PAIRS = {
    "the same folder": (same_folder, "a.png would be its own partner: pass --pair or another"),
    "a link to it": (links_to_itself, "rgb/a.png would be its own partner"),
    "one for all": (one_for_all, "rgb/a.png and"),
    "no expression": (option("--pair", "*=*_ir"), "'*' is no regular expression"),
    "no such group": (option("--pair", r"(.+)=\2_ir"), "the replacement cannot be used"),
    "no such name": (option("--pair", r"(.+)=\g<x>_ir"), "the replacement cannot be used"),
    "nothing found": (option("--sequence", "x*"), "--sequence x* finds nothing in a"),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_pairs_that_are_none(source, case):
    spoil, message = BAD_PAIRS[case]
    options, folders = spoil(source)
    error = refused(
        source, ["--labels", write_coco(source), "--format", "coco", *options], **folders
    )
    assert message in error


def test_a_sequence_by_the_group_that_is_used(source):
    options = ["--labels", write_coco(source), "--format", "coco"]
    prepare(source, *options, "--sequence", "([ab])|(c)|d")
    found = {name for split in ("train", "val", "test") for name in lists_of(source / "out", split)}
    assert found == set(PEOPLE)


def rainbow(root, folder):
    for number, name in enumerate(PEOPLE):
        picture(number).save(root / folder / f"{name}.png")


@pytest.mark.parametrize("grey", ["rgb", "none", "both"])
def test_colours_of_the_second_camera(source, grey):
    """The cameras were swapped, or the second one has a palette; two grey ones are fine."""
    if grey != "both":
        rainbow(source, "ir")
    if grey != "none":
        for name in PEOPLE:
            picture(1, mode="L").convert("RGB").save(source / f"rgb/{name}.png")
    options = ["--labels", write_coco(source), "--format", "coco", "--sequence", "(.)"]
    stderr = prepare(source, *options).stderr
    assert ("--rgb and --second swapped?" in stderr) == (grey == "rgb")
    assert ("a palette such as a rainbow is not a grey level" in stderr) == (grey == "none")
    assert stderr.count("\n") == (grey != "both")


# -------------------------------------------------------------------------------------- pictures


def test_a_file_name_that_is_not_utf_8(source):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        picture(1).save(source / f"rgb/{name}")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    done = prepare(source, "--labels", write_coco(source), "--format", "coco", expect=2)
    assert r"caf\udce9.png: the file's name is not UTF-8" in the_error(done)


def test_a_picture_with_two_suffixes(source):
    for folder in ("rgb", "ir"):
        for name in PEOPLE:
            (source / f"{folder}/{name}.png").rename(source / f"{folder}/{name}.jpg.png")
    labels = write_voc(source)
    for name in PEOPLE:
        (labels / f"{name}.xml").rename(labels / f"{name}.jpg.xml")
    prepare(source, "--labels", labels, "--format", "voc")
    assert (source / "out/images/a-jpg.png").is_file()
    assert all(frame_name(plain(name)) == plain(name) for name in ("1.jpg", "1.png.PNG", "1.b"))


def test_a_cmyk_picture_is_converted(source):
    for name in PEOPLE:
        (source / f"rgb/{name}.png").unlink()
        picture(1).convert("CMYK").save(source / f"rgb/{name}.jpg")
    prepare(source, "--labels", write_coco(source), "--format", "coco")
    with Image.open(source / "out/images/a.png") as image:
        assert image.mode == "RGB"


def write_16_bit_colour_tiff(file, values):
    """A minimal TIFF of one strip, because Pillow cannot write 16-bit colour."""
    height, width, _ = values.shape
    pixels = values.astype("<u2").tobytes()
    bits_at = 8 + len(pixels)
    entries = [
        *((256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, bits_at), (259, 3, 1, 1)),
        *((262, 3, 1, 2), (273, 4, 1, 8), (277, 3, 1, 3), (278, 4, 1, height)),
        (279, 4, 1, len(pixels)),
    ]
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *e) for e in entries)
    head = b"II*\0" + struct.pack("<I", bits_at + 6)
    file.write_bytes(head + pixels + struct.pack("<3H", 16, 16, 16) + table + bytes(4))


def test_a_16_bit_colour_tiff_is_refused(source):
    """As a picture of either camera, and as a slice."""
    width, height = SIZE
    values = np.arange(height * width * 3).reshape(height, width, 3) % 1024
    (source / "ir/a.png").unlink()
    write_16_bit_colour_tiff(source / "ir/a.tif", values)
    options = ["--labels", write_coco(source), "--format", "coco", "--colour-bits", 12]
    assert "a.tif is a 16-bit colour TIFF: convert it to PNG" in refused(source, options)
    with pytest.raises(UserError, match="16-bit colour TIFF: convert it to PNG"):
        read_slice(source / "ir/a.tif")


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
@pytest.mark.parametrize("read", [open_picture, read_picture, image_size, read_slice])
def test_a_damaged_avif(tmp_path, read):
    picture(1).save(tmp_path / "a.avif")
    content = (tmp_path / "a.avif").read_bytes()
    (tmp_path / "a.png").write_bytes(content.replace(b"iloc", b"none"))  # where the pixels are
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "a.png")


# ------------------------------------------------------------------------------------ check_data.py


@pytest.fixture
def apart(frames):
    """Frame a, with a person, in train_night, and b, with another, in val_night."""
    write_frame(frames, "b", labels=label_line())
    for split, name in (("train", "a"), ("val", "b")):
        (frames / f"{split}_night.txt").write_text(f"{name}\n")
    return frames


def warnings_of(root):
    done = run_here([str(ROOT / "check_data.py"), str(root), "--workers", "1"])
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return [line for line in lines if line.startswith("warning: ")], lines[-1]


def test_slices_that_are_the_rgb_picture(apart):
    """A link, and a file with the same bytes."""
    (apart / "gated0/a.png").unlink()
    (apart / "gated0/a.png").symlink_to(apart / "images/a.png")
    (apart / "gated2/b.png").write_bytes((apart / "images/b.png").read_bytes())
    (apart / "gated2/a.png").write_bytes((apart / "images/a.png").read_bytes())
    [warning], last = warnings_of(apart)
    assert f"{apart}: in 2 of 2 frames a slice is the same picture as RGB" in warning
    assert last == "warnings: 1 (slices that are copies of RGB: 1)"


def test_boxes_that_are_shares(apart):
    for name in "ab":
        (apart / f"gated_labels/{name}.txt").write_text(label_line(box=(0.1, 0.2, 0.3, 0.9)))
    [warning], last = warnings_of(apart)
    assert "these look like shares of the image" in warning
    assert last == "warnings: 1 (boxes in another space: 1)"


def test_a_list_without_a_box(apart):
    write_frame(apart, "c")
    for name in ("test_night", "unlabelled_night"):
        (apart / f"{name}.txt").write_text("c\n")
    [warning], last = warnings_of(apart)
    assert f"{apart}/test_night.txt: none of 1 frames has a box" in warning
    assert last == "warnings: 1 (lists without a box: 1)"

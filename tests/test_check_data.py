"""check_data.py names each kind of problem and agrees with the dataset on what can be trained."""

import json
import re

import numpy as np
import pytest
from conftest import ROOT, label_line, run_here, write_frame
from PIL import Image, ImageColor
from test_dataset import BAD_INPUT, change, remove, save, write

from check_data import SHEET_ROWS
from cmkd.frames.layout import GATED_FOLDERS
from cmkd.runtime.files import UserError
from cmkd.viewing.contact_sheet import GAP, HEADING_LINE, TITLE_LINE
from cmkd.viewing.frame_sheet import COLOUR_OF_VISIBILITY, FRAME_TILE_WIDTH, choose_frames
from dataset import SeeingThroughFog


def check(root, *arguments):
    """Check a folder in this process: exit code, lines of stdout, stderr."""
    script = str(ROOT / "check_data.py")
    done = run_here([script, str(root), "--workers", "1", *map(str, arguments)])
    return done.returncode, done.stdout.splitlines(), done.stderr


def write_lists(root, **lists):
    for name, frames in lists.items():
        (root / f"{name}.txt").write_text("".join(f"{frame}\n" for frame in frames))


def problems(lines):
    return [line for line in lines if line.startswith(("error: ", "warning: "))]


def error_of_dataset(root):
    """The first error of reading all samples of both lists; '' if there is none."""
    try:
        for name in ("train_night", "val_night"):
            frames = SeeingThroughFog(root, name)
            for index in range(len(frames)):
                frames[index]
    except UserError as error:
        return str(error)
    return ""


def cut_jpeg(root):
    """Replace a slice by a JPEG without its last pixels."""
    Image.open(root / "gated2/b.png").save(root / "gated2/b.jpg")
    (root / "gated2/b.png").unlink()
    change("gated2/b.jpg", lambda content: content[:-40])(root)


def shrink_slices(root):
    """Give the slices of a frame another size than RGB."""
    for folder in GATED_FOLDERS:
        save(f"{folder}/a.png", np.zeros((48, 80), np.uint8))(root)


BOXES_OUTSIDE = label_line(box=(-5, 0, 9, 9)) + label_line(box=(1300, 0, 1400, 9))
DAMAGE = {
    **{case: damage for case, (damage, _) in BAD_INPUT.items()},
    "missing val list": remove("val_night.txt"),
    "line of prose in a list": change("val_night.txt", lambda text: text + b"word " * 100),
    "last pixels of RGB cut": change("images/b.png", lambda content: content[:-40]),
    "last pixels of a JPEG cut": cut_jpeg,
    "half a slice": change("gated0/b.png", lambda content: content[: len(content) // 2]),
    "16-bit RGB": save("images/a.png", np.full((96, 160), 9, np.uint16)),
    "labels in another encoding": change("gated_labels/a.txt", lambda text: text + b"\xff"),
    "only slices of another size": shrink_slices,
}
HARMLESS = {
    "nothing": lambda root: None,
    "boxes outside": write("gated_labels/b.txt", BOXES_OUTSIDE.encode()),
    "boxes without area": write("gated_labels/b.txt", label_line(box=(5, 5, 5, 9)).encode()),
    "a PNG without its end mark": change("images/b.png", lambda content: content[:-12]),
    "two-word classes": write("gated_labels/b.txt", b"traffic light 0 0\n"),
    "official names and a blank line": change(
        "train_night.txt", lambda text: b"\xef\xbb\xbf\r\n" + text
    ),
    "a bad label of no list": lambda root: (root / "gated_labels/c.txt").write_text("Deer 0\n"),
}


@pytest.mark.parametrize("case", [*DAMAGE, *HARMLESS])
def test_check_agrees_with_the_dataset(frames, case):
    """Exit code 0 if the dataset reads every sample, else 2 and the dataset's own words."""
    {**DAMAGE, **HARMLESS}[case](frames)
    message = error_of_dataset(frames)
    code, lines, err = check(frames)
    assert bool(message) == (case in DAMAGE)
    assert code == (2 if message else 0)
    errors = [line for line in problems(lines) if line.startswith("error: ")]
    assert len(set(errors)) == len(errors)
    assert lines.count(f"errors: {len(errors)}") == 1
    if message:
        assert f"error: {message}" in errors
        first = errors[0].removeprefix("error: ")
        count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
        assert err == f"check_data.py: error: {frames}: {count}, the first: {first}\n"
    else:
        assert errors == []
        assert err == ""


def test_simulated_frames_are_healthy(synthetic):
    code, lines, err = check(synthetic)
    assert (code, problems(lines), err) == (0, [], "")
    assert lines[-3:] == ["image sizes: 14 of 160x96", "errors: 0", "warnings: 0"]
    for file in synthetic.glob("*.txt"):
        assert all(
            image.shape == (6, 96, 160) for image, _ in SeeingThroughFog(synthetic, file.stem)
        )


def test_everything_wrong_is_printed_once_in_one_order(frames):
    """Frames a and b are in two lists; several processes find what one finds."""
    write_frame(frames, "c")
    write_lists(frames, train_night=["a", "b", "c", "d", "a"])
    (frames / "gated_labels" / "a.txt").write_text(
        "Deer 0\n" + label_line() + label_line(box=(9, 1, 2, 3))
    )
    (frames / "images" / "b.png").unlink()
    (frames / "gated1" / "b.png").write_bytes(b"")
    (frames / "gated2" / "c.png").unlink()
    code, lines, err = check(frames)
    assert code == 2
    errors = [
        line.removeprefix(f"error: {frames}/") for line in lines if line.startswith("error: ")
    ]
    assert [re.match(r"[^:( ]+(:\d+)?", error).group() for error in errors] == [
        "train_night.txt:5",
        "gated_labels/a.txt:1",
        "gated_labels/a.txt:3",
        "train_night.txt:2",
        "gated1/b.png",
        "train_night.txt:3",
        *["train_night.txt:4"] * 5,
    ]
    assert len(set(errors)) == len(errors)
    assert check(frames, "--workers", 2) == (code, lines, err)
    assert f"{frames}: 11 errors, the first: {frames}/train_night.txt:5: a is in line 1" in err


def test_other_lists_are_checked_too(frames):
    write_lists(frames, vis_night=["missing"], train_dense_fog_night=[])
    _, lines, _ = check(frames)
    errors = [line for line in problems(lines) if line.startswith("error: ")]
    assert (
        f"error: {frames}/train_dense_fog_night.txt is empty: write one frame name per line"
        in errors
    )
    missing = [line for line in errors if f"{frames}/vis_night.txt:1: " in line]
    assert len(missing) == 5
    assert all("is missing" in line for line in missing)


def test_frames_of_own_lists_need_no_night(frames):
    for split in ("train", "val"):
        (frames / f"{split}_night.txt").rename(frames / f"{split}.txt")
    assert check(frames)[0] == 0


@pytest.mark.parametrize(
    ("box", "text"),
    [
        ((-5, 0, 9, 9), "box -5 0 9 9 lies partly outside 1280x720: it is clipped"),
        ((0, -0.5, 9, 9), "box 0 -0.5 9 9 lies partly outside 1280x720: it is clipped"),
        ((0, 0, 1280.0004, 9), "box 0 0 1280.0004 9 lies partly outside 1280x720: it is clipped"),
        ((0, 0, 9, 721), "box 0 0 9 721 lies partly outside 1280x720: it is clipped"),
        ((1280, 0, 1290, 9), "box 1280 0 1290 9 lies outside 1280x720: it is left out"),
        ((0, 0, 1280, 720), None),
    ],
)
def test_boxes_outside(tmp_path, box, text):
    write_frame(tmp_path, "a", labels=label_line() + label_line(box=box))
    write_frame(tmp_path, "b", labels=label_line())
    write_lists(tmp_path, train_night=["a"], val_night=["b"])
    code, lines, _ = check(tmp_path)
    assert code == 0
    assert problems(lines) == (
        [f"warning: {tmp_path}/gated_labels/a.txt:2: {text}"] if text else []
    )
    kept = len(SeeingThroughFog(tmp_path, "train_night")[0][1]["boxes"])
    assert re.search(rf"^train_night +1 +0 +1 +{kept}$", "\n".join(lines), re.MULTILINE)
    assert lines[-1] == ("warnings: 1 (boxes outside 1280x720: 1)" if text else "warnings: 0")


@pytest.fixture
def drives(tmp_path):
    """Frames of two drives; train_night has one and val_night the other."""
    names = [f"{drive}_{number}" for drive in ("one", "two") for number in range(3)]
    for name in names:
        write_frame(tmp_path, name, labels=label_line())
    write_lists(tmp_path, train_night=names[:3], val_night=names[3:])
    return tmp_path


IN_TWO_SPLITS = (
    "too: keep it in one split, because a network must be tested on frames that it was not "
    "trained on"
)


def test_a_recording_in_two_splits_is_named_once(drives):
    write_lists(
        drives,
        train_night=["one_0", "one_1"],
        val_night=["two_0", "one_2"],
        test_night=["two_1", "two_2"],
    )
    code, lines, _ = check(drives)
    assert code == 0
    assert problems(lines) == [
        f"warning: {drives}/val_night.txt:2: recording one is in {drives}/train_night.txt:1 "
        + IN_TWO_SPLITS,
        f"warning: {drives}/test_night.txt:1: recording two is in {drives}/val_night.txt:1 "
        + IN_TWO_SPLITS,
    ]
    assert lines[-1] == "warnings: 2 (recordings in two splits: 2)"


def test_a_frame_in_two_splits(drives):
    write_lists(drives, val_night=["two_0"], val_snow_night=["one_1", "two_0"], test_fog=["one_1"])
    code, lines, _ = check(drives)
    assert code == 0
    assert problems(lines) == [
        f"warning: {drives}/test_fog.txt:1: frame one_1 is in {drives}/train_night.txt:2 and "
        f"{drives}/val_snow_night.txt:1 {IN_TWO_SPLITS}"
    ]
    assert lines[-1] == "warnings: 1 (FRAMES IN TWO SPLITS: 1)"


def test_lists_of_one_split_and_of_none_may_share_frames(drives):
    write_lists(drives, val_snow_night=["two_0"], vis_night=["one_0", "two_0"], trained=["two_0"])
    code, lines, _ = check(drives)
    assert (code, problems(lines)) == (0, [])


@pytest.mark.parametrize(
    ("name", "alike"),
    [("ONE_0", True), ("one-0", True), ("one 0", True), ("one0", False), ("one_00", False)],
)
def test_similar_names(drives, name, alike):
    write_frame(drives, name)
    write_lists(drives, vis_night=[name])
    code, lines, _ = check(drives)
    assert code == 0
    warning = (
        f"warning: {drives}/vis_night.txt:1: {name!r} differs from 'one_0' "
        f"({drives}/train_night.txt:1) only in case, '_', '-', ',' or spaces: check that they are "
        "two frames"
    )
    assert problems(lines) == [warning] * alike


def test_tables(tmp_path):
    def line(kind, height, rgb, gated):
        return label_line(kind, (0, 0, 100, height)).replace("True True", f"{rgb} {gated}")

    kitti = " ".join(line("Deer", 32, 0, 0).split()[:15]) + "\n"
    write_frame(
        tmp_path,
        "x_1",
        labels=line("Pedestrian", 31.5, True, True) + line("Pedestrian", 63, False, True),
    )
    write_frame(
        tmp_path,
        "x_2",
        labels=line("Pedestrian", 64, "NaN", True) + line("Pedestrian", 300, False, True),
    )
    write_frame(
        tmp_path, "y_1", (80, 48), labels=kitti + line("Pedestrian_is_group", 127.5, True, False)
    )
    write_frame(tmp_path, "z_1")
    write_lists(
        tmp_path,
        train_night=["x_1", "x_2", "z_1"],
        train_snow_night=["x_2"],
        val_snow_night=["y_1"],
        vis_night=["x_1", "x_2"],
    )
    code, lines, _ = check(tmp_path)
    assert code == 0
    expected = """\
list              frames  without a box  recordings  boxes
train_night            3              1           2      4
train_snow_night       1              0           1      2
val_snow_night         1              0           1      2
vis_night              2              0           1      4

class                boxes  in RGB  in gated  height  <32 px  32-64  64-128  >=128
Pedestrian               4    33 %     100 %      64       1      1       1      1
Deer                     1       -         -      32       0      1       0      0
Pedestrian_is_group      1   100 %       0 %     128       0      0       1      0

condition   frames  pedestrians  in RGB
night            3            4    33 %
snow_night       2            3    50 %

image sizes: 3 of 160x96, 1 of 80x48
errors: 0
warnings: 0"""
    assert [cells(line) for line in lines] == [cells(line) for line in expected.splitlines()]


def cells(line):
    """The cells of a row, which have at least two spaces between them."""
    return re.split(" {2,}", line)


@pytest.mark.parametrize(
    ("root", "arguments", "message"),
    [
        ("{}/absent", [], "absent is not a folder"),
        ("{}/images/a.png", [], "a.png is not a folder"),
        ("{}/images", [], "images has no list"),
        ("{}", ["--sheet", "{}/images"], "images is a folder: name a file"),
        ("{}", ["--workers", "0"], "at least 1"),
        ("{}", ["--sheet", "s.png", "--export-coco", "c.json"], "not allowed with"),
        ("{}", ["--list", "absent", "--export-coco", "{}/c.json"], "absent.txt is missing"),
    ],
)
def test_what_cannot_be_checked_is_one_line(frames, root, arguments, message):
    code, lines, err = check(
        root.format(frames), *(argument.format(frames) for argument in arguments)
    )
    assert (code, lines, err.count("\n")) == (2, [], 1)
    assert message in err


def test_ground_truth_is_exported(frames):
    file = frames / "truth.json"
    (frames / "val_night.txt").write_text("a\n")
    options = ("--export-coco", file, "--classes", "vru", "PassengerCar", "--ignore")
    code, lines, err = check(frames, *options)
    assert (code, err) == (0, "")
    assert lines == [
        f"{file}: 1 images, 1 boxes, categories Pedestrian+Pedestrian_is_group+RidableVehicle+"
        "RidableVehicle_is_group+person, PassengerCar"
    ]
    dataset = SeeingThroughFog(frames, "val_night", "rgb", ["vru", "PassengerCar"], [])
    truth = dataset.ground_truth()
    truth["images"][0]["file_name"] += ".png"
    assert json.loads(file.read_text()) == truth
    assert check(frames, "--list", "train_night", "--export-coco", file)[0] == 0
    assert len(json.loads(file.read_text())["images"]) == 2


# ------------------------------------------------------------------------------------ contact sheet


def sheet_of(root, expect=0):
    """The sheet that a check draws."""
    file = root / "out" / "sheet.png"
    code, lines, _ = check(root, "--sheet", file)
    assert code == expect
    with Image.open(file) as sheet:
        assert sheet.format == "PNG"
        assert lines[-1] == f"{file}: {sheet.width}x{sheet.height}"
        return sheet.convert("RGB")


def coloured_pixels(sheet):
    """How many pixels have the colour of people who are visible, not visible, not labelled."""
    pixels = np.asarray(sheet)
    colours = [ImageColor.getrgb(COLOUR_OF_VISIBILITY[visible]) for visible in (True, False, None)]
    return np.array([(pixels == colour).all(axis=2).sum() for colour in colours])


def test_sheet_has_a_row_for_each_readable_frame(drives):
    (drives / "gated0" / "one_1.png").write_bytes(b"")
    row_height = TITLE_LINE + FRAME_TILE_WIDTH * 96 // 160 + GAP
    heading_and_legend = 2 * HEADING_LINE + TITLE_LINE
    sheet = sheet_of(drives, expect=2)
    assert sheet.size == (4 * (FRAME_TILE_WIDTH + GAP) + GAP, 5 * row_height + heading_and_legend)


def test_sheet_colours_say_who_is_visible(frames):
    def drawn(labels):
        (frames / "gated_labels" / "a.txt").write_text(labels)
        return coloured_pixels(sheet_of(frames))

    legend = drawn("")
    assert all(legend)
    for place, flags in enumerate(["True False", "False True", "NaN True"]):
        lines = drawn(label_line().replace("True True", flags)) - legend
        assert lines[place] > 4 * 100  # four tiles, each with a box of 25 x 80 px
        assert np.count_nonzero(lines) == 1


def test_sheet_rows_are_spread_over_lists():
    frames = {f"{number:03}": [None] * (number % 2) for number in range(100)}
    names = list(frames)
    lists = {
        f"list{number}": dict.fromkeys(names[20 * number : 20 * number + 20], 1)
        for number in range(3)
    }
    chosen = choose_frames(lists, frames, SHEET_ROWS)
    assert [sum(name in one for name in chosen) for one in lists.values()] == [4, 4, 4]
    assert all(frames[name] for name in chosen)
    many = {f"list{name}": {name: 1} for name in names}
    assert len(choose_frames(many, frames, SHEET_ROWS)) == SHEET_ROWS
    two = {"one": {"000": 1, "absent": 2}, "two": {"000": 1}}
    assert choose_frames(two, frames, SHEET_ROWS) == ["000"]

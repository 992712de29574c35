"""`dataset.py --check`: each kind of problem is named, and the check agrees with the loader on what can be trained."""

import re
import sys

import numpy as np
import pytest
from conftest import ROOT, label_line, run_script, the_error, write_frame
from PIL import Image
from test_dataset import BAD_INPUT

import dataset
from check_data import SHEET_ROWS
from cmkd.runtime.failures import run
from cmkd.viewing.contact_sheet import GAP, LOOKS, TILE_WIDTH, TITLE, choose
from dataset import SeeingThroughFog
from utils import UserError


@pytest.fixture
def check(monkeypatch, capsys):
    """Check a folder in this process: exit code, lines of stdout, stderr."""
    def call(root, *arguments):
        monkeypatch.setattr(sys, "argv", ["dataset.py", "--check", str(root), "--workers", "1", *map(str, arguments)])
        capsys.readouterr()
        try:
            run(dataset.main)
            code = 0
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return call


def write_lists(root, **lists):
    for name, frames in lists.items():
        (root / f"{name}.txt").write_text("".join(f"{frame}\n" for frame in frames))


def problems(lines):
    return [line for line in lines if line.startswith(("error: ", "warning: "))]


def what_the_loader_says(root):
    """The first error of reading all samples of both lists; '' where there is none."""
    try:
        for name in ("train_night", "val_night"):
            frames = SeeingThroughFog(root, name)
            for index in range(len(frames)):
                frames[index]
    except UserError as error:
        return str(error)
    return ""


def change(file, damage):
    """A function that damages one file of a folder."""
    return lambda root: (root / file).write_bytes(damage((root / file).read_bytes()))


def save(file, picture):
    """A function that puts another picture in one place of a folder."""
    return lambda root: Image.fromarray(picture).save(root / file)


DAMAGE = {
    **{case: damage for case, (damage, _) in BAD_INPUT.items()},
    "missing val list": lambda root: (root / "val_night.txt").unlink(),
    "line of prose in a list": change("val_night.txt", lambda text: text + b"word " * 100),
    "last pixels of RGB cut": change("images/b.png", lambda content: content[:-40]),
    "last pixels of a JPEG cut": lambda root: (Image.open(root / "gated2" / "b.png").save(root / "gated2" / "b.jpg"),
                                               (root / "gated2" / "b.png").unlink(),
                                               change("gated2/b.jpg", lambda content: content[:-40])(root)),
    "half a slice": change("gated0/b.png", lambda content: content[: len(content) // 2]),
    "16-bit RGB": save("images/a.png", np.full((96, 160), 9, np.uint16)),
    "labels in another encoding": change("gated_labels/a.txt", lambda text: text + b"\xff"),
    "only slices of another size": lambda root: [save(f"gated{d}/a.png", np.zeros((48, 80), np.uint8))(root)
                                                 for d in range(3)],
}
HARMLESS = {
    "nothing": lambda root: None,
    "boxes outside": change("gated_labels/b.txt", lambda _: (label_line(box=(-5, 0, 9, 9)) + label_line(
        box=(1300, 0, 1400, 9))).encode()),
    "boxes without area": change("gated_labels/b.txt", lambda _: label_line(box=(5, 5, 5, 9)).encode()),
    "a PNG without its end mark": change("images/b.png", lambda content: content[:-12]),
    "two-word classes": change("gated_labels/b.txt", lambda _: b"traffic light 0 0\n"),
    "official names and a blank line": change("train_night.txt", lambda text: b"\xef\xbb\xbf\r\n" + text),
    "a bad label of no list": lambda root: (root / "gated_labels" / "c.txt").write_text("Deer 0\n"),
}


@pytest.mark.parametrize("case", [*DAMAGE, *HARMLESS])
def test_check_agrees_with_the_loader(frames, check, case):
    """Exit code 0 where the loader reads every sample, else 2 and the loader's own words."""
    {**DAMAGE, **HARMLESS}[case](frames)
    message = what_the_loader_says(frames)
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
        assert err == f"dataset.py: error: {frames}: {count}, the first: {first}\n"
    else:
        assert errors == []
        assert err == ""


def test_simulated_frames_are_healthy(synthetic):
    done = run_script("dataset.py", "--check", synthetic, "--workers", 2)
    assert problems(done.stdout.splitlines()) == []
    assert done.stdout.endswith("picture sizes: 14 of 160x96\nerrors: 0\nwarnings: 0\n")
    assert done.stderr == ""
    for file in synthetic.glob("*.txt"):
        assert all(image.shape == (6, 96, 160) for image, _ in SeeingThroughFog(synthetic, file.stem))


def test_everything_wrong_is_printed_once_in_one_order(frames, check):
    """Both frames stand in two lists; several processes find what one finds."""
    write_frame(frames, "c")
    write_lists(frames, train_night=["a", "b", "c", "d", "a"])
    (frames / "gated_labels" / "a.txt").write_text("Deer 0\n" + label_line() + label_line(box=(9, 1, 2, 3)))
    (frames / "images" / "b.png").unlink()
    (frames / "gated1" / "b.png").write_bytes(b"")
    (frames / "gated2" / "c.png").unlink()
    code, lines, err = check(frames)
    assert code == 2
    errors = [line.removeprefix(f"error: {frames}/") for line in lines if line.startswith("error: ")]
    assert [re.match(r"[^:( ]+(:\d+)?", error).group() for error in errors] == [
        "train_night.txt:5", "gated_labels/a.txt:1", "gated_labels/a.txt:3", "train_night.txt:2", "gated1/b.png",
        "train_night.txt:3", *["train_night.txt:4"] * 5]
    assert len(set(errors)) == len(errors)
    done = run_script("dataset.py", "--check", frames, "--workers", 2, expect=2)
    assert done.stdout.splitlines() == lines
    assert the_error(done) == err.strip()
    assert f"{frames}: 11 errors, the first: {frames}/train_night.txt:5: a stands in line 1" in err


def test_other_lists_are_checked_too(frames, check):
    write_lists(frames, vis_night=["missing"], train_dense_fog_night=[])
    _, lines, _ = check(frames)
    errors = [line for line in problems(lines) if line.startswith("error: ")]
    assert f"error: {frames}/train_dense_fog_night.txt is empty: write one frame name per line" in errors
    assert len([line for line in errors if f"{frames}/vis_night.txt:1: " in line and "missing" in line]) == 5


def test_frames_of_own_lists_need_no_night(frames, check):
    for split in ("train", "val"):
        (frames / f"{split}_night.txt").rename(frames / f"{split}.txt")
    assert check(frames)[0] == 0


@pytest.mark.parametrize(("box", "text"), [
    ((-5, 0, 9, 9), "box -5 0 9 9 lies partly outside 1280x720: it is clipped"),
    ((0, -0.5, 9, 9), "box 0 -0.5 9 9 lies partly outside 1280x720: it is clipped"),
    ((0, 0, 1280.0004, 9), "box 0 0 1280.0004 9 lies partly outside 1280x720: it is clipped"),
    ((0, 0, 9, 721), "box 0 0 9 721 lies partly outside 1280x720: it is clipped"),
    ((1280, 0, 1290, 9), "box 1280 0 1290 9 lies outside 1280x720: it is left out"),
    ((0, 0, 1280, 720), None),
])
def test_boxes_outside(tmp_path, check, box, text):
    write_frame(tmp_path, "a", labels=label_line() + label_line(box=box))
    write_frame(tmp_path, "b")
    write_lists(tmp_path, train_night=["a"], val_night=["b"])
    code, lines, _ = check(tmp_path)
    assert code == 0
    assert problems(lines) == ([f"warning: {tmp_path}/gated_labels/a.txt:2: {text}"] if text else [])
    kept = len(SeeingThroughFog(tmp_path, "train_night")[0][1]["boxes"])
    assert re.search(rf"^train_night +1 +0 +1 +{kept}$", "\n".join(lines), re.MULTILINE)
    assert lines[-1] == ("warnings: 1 (boxes outside 1280x720: 1)" if text else "warnings: 0")


@pytest.fixture
def drives(tmp_path):
    """Frames of two drives; train_night has one and val_night the other."""
    names = [f"{drive}_{number}" for drive in ("one", "two") for number in range(3)]
    for name in names:
        write_frame(tmp_path, name)
    write_lists(tmp_path, train_night=names[:3], val_night=names[3:])
    return tmp_path


def test_a_recording_in_two_splits_is_named_once(drives, check):
    write_lists(drives, train_night=["one_0", "one_1"], val_night=["two_0", "one_2"], test_night=["two_1", "two_2"])
    code, lines, _ = check(drives)
    reason = "too: keep it in one split, as a network is not tested by what it has seen"
    assert code == 0
    assert problems(lines) == [
        f"warning: {drives}/val_night.txt:2: recording one stands in {drives}/train_night.txt:1 {reason}",
        f"warning: {drives}/test_night.txt:1: recording two stands in {drives}/val_night.txt:1 {reason}"]
    assert lines[-1] == "warnings: 2 (recordings in two splits: 2)"


def test_a_frame_in_two_splits(drives, check):
    write_lists(drives, val_night=["two_0"], val_snow_night=["one_1", "two_0"], test_fog=["one_1"])
    code, lines, _ = check(drives)
    assert code == 0
    assert problems(lines) == [
        f"warning: {drives}/test_fog.txt:1: frame one_1 stands in {drives}/train_night.txt:2 and "
        f"{drives}/val_snow_night.txt:1 too: keep it in one split, as a network is not tested by what it has seen"]
    assert lines[-1] == "warnings: 1 (FRAMES IN TWO SPLITS: 1)"


def test_lists_of_one_split_and_of_none_may_share_frames(drives, check):
    write_lists(drives, val_snow_night=["two_0"], vis_night=["one_0", "two_0"], trained=["two_0"])
    code, lines, _ = check(drives)
    assert (code, problems(lines)) == (0, [])


@pytest.mark.parametrize(("name", "alike"), [("ONE_0", True), ("one-0", True), ("one 0", True), ("one0", False),
                                             ("one_00", False)])
def test_names_alike(drives, check, name, alike):
    write_frame(drives, name)
    write_lists(drives, vis_night=[name])
    code, lines, _ = check(drives)
    assert code == 0
    assert problems(lines) == [f"warning: {drives}/vis_night.txt:1: {name!r} is 'one_0' ({drives}/train_night.txt:1) "
                               "but for case, '_', '-', ',' or spaces: see that they are two frames"] * alike


def test_tables(tmp_path, check):
    def line(kind, height, rgb, gated):
        return label_line(kind, (0, 0, 100, height)).replace("True True", f"{rgb} {gated}")

    kitti = " ".join(line("Deer", 32, 0, 0).split()[:15]) + "\n"
    write_frame(tmp_path, "x_1", labels=line("Pedestrian", 31.5, True, True) + line("Pedestrian", 63, False, True))
    write_frame(tmp_path, "x_2", labels=line("Pedestrian", 64, "NaN", True) + line("Pedestrian", 300, False, True))
    write_frame(tmp_path, "y_1", (80, 48), labels=kitti + line("Pedestrian_is_group", 127.5, True, False))
    write_frame(tmp_path, "z_1")
    write_lists(tmp_path, train_night=["x_1", "x_2", "z_1"], train_snow_night=["x_2"], val_snow_night=["y_1"],
                vis_night=["x_1", "x_2"])
    code, lines, _ = check(tmp_path)
    assert code == 0
    assert lines == """\
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

picture sizes: 3 of 160x96, 1 of 80x48
errors: 0
warnings: 0""".splitlines()


@pytest.mark.parametrize(("root", "arguments", "message"), [
    ("{}/absent", [], "absent is no folder"),
    ("{}/images/a.png", [], "a.png is no folder"),
    ("{}/images", [], "images has no list"),
    ("{}", ["--sheet", "{}/images"], "images is a folder: name a file"),
    ("{}", ["--workers", "0"], "at least 1"),
])
def test_what_cannot_be_checked_is_one_line(frames, check, root, arguments, message):
    code, lines, err = check(root.format(frames), *(argument.format(frames) for argument in arguments))
    assert (code, lines, err.count("\n")) == (2, [], 1)
    assert message in err


def test_dataset_needs_to_be_told_what_to_do():
    assert "--check" in the_error(run_script("dataset.py", expect=2))


# --------------------------------------------------------------------------------------------- contact sheet


def pixels_of(sheet, visible):
    return int((np.asarray(sheet) == Image.new("RGB", (1, 1), LOOKS[visible][0]).getpixel((0, 0))).all(axis=2).sum())


def test_sheet_has_a_row_for_each_readable_frame(drives, check):
    (drives / "gated0" / "one_1.png").write_bytes(b"")
    code, lines, _ = check(drives, "--sheet", drives / "out" / "sheet.png")
    assert code == 2
    with Image.open(drives / "out" / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.size == (4 * (TILE_WIDTH + GAP) + GAP, 2 * TITLE + 5 * (TITLE + TILE_WIDTH * 96 // 160 + GAP))
    assert lines[-1] == f"{drives}/out/sheet.png: {sheet.width}x{sheet.height}"


def test_sheet_colours_tell_who_is_visible(frames, check):
    def count(flags):
        (frames / "gated_labels" / "a.txt").write_text(label_line().replace("True True", flags))
        assert check(frames, "--sheet", frames / "sheet.png")[0] == 0
        with Image.open(frames / "sheet.png") as sheet:
            return [pixels_of(sheet, visible) for visible in (True, False, None)]

    (frames / "gated_labels" / "a.txt").write_text("")
    assert check(frames, "--sheet", frames / "sheet.png")[0] == 0
    with Image.open(frames / "sheet.png") as sheet:
        legend = [pixels_of(sheet, visible) for visible in (True, False, None)]
    assert all(legend)
    for position, flags in enumerate(["True False", "False True", "NaN True"]):
        drawn = np.subtract(count(flags), legend)
        assert drawn[position] > 4 * 100  # four tiles, each with a box of 25 x 80 px
        assert np.count_nonzero(drawn) == 1


def test_sheet_rows_are_spread_over_lists():
    frames = {f"{number:03}": [None] * (number % 2) for number in range(100)}
    names = list(frames)
    lists = {f"list{number}": dict.fromkeys(names[20 * number : 20 * number + 20], 1) for number in range(3)}
    chosen = choose(lists, frames, SHEET_ROWS)
    assert [sum(name in one for name in chosen) for one in lists.values()] == [4, 4, 4]
    assert all(frames[name] for name in chosen)
    assert len(choose({f"list{name}": {name: 1} for name in names}, frames, SHEET_ROWS)) == SHEET_ROWS
    assert choose({"one": {"000": 1, "absent": 2}, "two": {"000": 1}}, frames, SHEET_ROWS) == ["000"]


# --------------------------------------------------------------------------------------------- own data


def test_the_documented_example_of_own_data_works(tmp_path):
    """The script of docs/data.md on an RGB and a smaller thermal camera: what it writes is fit for training."""
    [script] = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "data.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "convert.py").write_text(script)
    rows = []
    for drive in range(6):
        for number in range(2):
            name = f"drive{drive}_{number}"
            for folder, picture in (("rgb", np.full((100, 200, 3), 90, np.uint8)),
                                    ("thermal", np.full((50, 80), 10 * drive, np.uint8))):
                (tmp_path / folder).mkdir(exist_ok=True)
                Image.fromarray(picture).save(tmp_path / folder / f"{name}.png")
            rows += [f"{name},person,20,10,60,100\n"] * number
    (tmp_path / "boxes.csv").write_text("".join(rows))
    run_script(tmp_path / "convert.py", tmp_path, tmp_path / "data")
    done = run_script("dataset.py", "--check", tmp_path / "data")
    assert problems(done.stdout.splitlines()) == []
    assert re.search(r"^train_night +6 +3 +3 +3$", done.stdout, re.MULTILINE)
    for split in ("train", "val", "test"):
        samples = SeeingThroughFog(tmp_path / "data", f"{split}_night", classes=["person"])
        for image, target in samples:
            drive, number = target["name"].removeprefix("drive").split("_")
            assert image[:, 5, 5].tolist() == [90] * 3 + [10 * int(drive)] * 3
            assert target["boxes"].tolist() == [[20, 10, 60, 100]] * int(number)

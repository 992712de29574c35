"""Pictures: who counts as found, which frames come first, what is drawn, all four modes."""

import base64
import io
import itertools
import json
import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, label_line, run_script, the_error
from PIL import Image
from pycocotools.coco import COCO
from test_evaluation import result, truth

import visualize
from cmkd.evaluation.pipeline import titles
from cmkd.runtime.files import UserError
from cmkd.viewing import gallery
from cmkd.viewing.annotate_pictures import annotate_pictures
from cmkd.viewing.contact_sheet import GREEN, Box, contact_sheet, draw_boxes, free_place
from cmkd.viewing.curves import COLOURS
from cmkd.viewing.drawing import (
    FALSE_ALARM,
    HIT,
    MISSED,
    OUTCOME_LEGEND,
    OUTCOME_TILE_WIDTH,
    TRUTH,
    outcome_tile,
    truth_tile,
)
from cmkd.viewing.feature_maps import energy_maps
from cmkd.viewing.gallery import describe_limits
from cmkd.viewing.html_page import FrameRow, html_page
from cmkd.viewing.outcomes import (
    Disagreement,
    Outcome,
    disagreement,
    outcomes_by_frame,
    rank_frames,
    spread_over_conditions,
)
from models import LEVELS, build_detector, load_detector


def refused(monkeypatch, *arguments):
    """The one line of visualize.py with arguments that it must refuse."""
    monkeypatch.setattr(sys, "argv", ["visualize.py", "--device", "cpu", *map(str, arguments)])
    with pytest.raises(UserError) as error:
        visualize.main()
    return str(error.value)


def pixels(picture, colour):
    """How many pixels of a picture have exactly this colour."""
    rgb = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    return (np.asarray(picture) == rgb).all(axis=2).sum()


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Weights by name that find something everywhere: a teacher, a baseline and a student."""
    folder = tmp_path_factory.mktemp("untrained")
    files = {}
    for seed, (name, channels) in enumerate((("teacher", 6), ("baseline", 3), ("student", 3))):
        torch.manual_seed(seed)
        detector = build_detector(channels, 2, "resnet18", "none", min_size=64, proposals=50)
        files[name] = folder / f"{name}.pth"
        torch.save(detector.state_dict(), files[name])
        files[name].with_suffix(".json").write_text(json.dumps(detector.settings))
    return files


def test_outcomes_by_hand():
    """A hit, a second box on the same person, one below the score, one on an ignore region, a
    false alarm and a miss, each in its frame."""
    content = truth([[[10, 10, 50, 100], [200, 10, 50, 100]], [[10, 10, 50, 100]], []])
    content["annotations"][2]["iscrowd"] = 1
    results = [
        result(0, [10, 10, 50, 100], 0.9),
        result(0, [11, 10, 50, 100], 0.8),
        result(0, [200, 10, 50, 100], 0.4),
        result(1, [20, 20, 20, 20], 0.9),
        result(2, [300, 10, 50, 100], 0.7),
    ]
    frames, limits = outcomes_by_frame(content, results, 0.5)
    scores = [
        [[one["score"] for one in kind] for kind in (frame.hits, frame.false_alarms)]
        for frame in frames
    ]
    assert scores == [[[0.9], [0.8]], [[], []], [[], [0.7]]]
    assert [[one["id"] for one in frame.missed] for frame in frames] == [[2], [], []]
    assert [frame.found for frame in frames] == [{1}, set(), set()]
    assert limits == {"Pedestrian": 0.5}


def test_each_network_is_shown_from_its_score_at_one_rate_of_false_alarms():
    """Ten frames allow one false alarm: the second one is left out, and who is found below it is
    missed."""
    content = truth([[[10, 10, 50, 100]]] * 10)
    results = [
        result(0, [10, 10, 50, 100], 0.9),
        result(1, [300, 10, 50, 100], 0.8),
        result(2, [10, 10, 50, 100], 0.6),
        result(3, [300, 10, 50, 100], 0.5),
        result(4, [10, 10, 50, 100], 0.4),
    ]
    frames, limits = outcomes_by_frame(content, results, None)
    assert limits == {"Pedestrian": 0.6}
    assert [len(frame.hits) for frame in frames] == [1, 0, 1, *[0] * 7]
    assert sum(len(frame.false_alarms) for frame in frames) == 1


def test_frames_in_which_students_find_more_come_first():
    def found(*people):
        return Outcome([], [], [], set(people))

    frames = [
        {"teacher": found(1, 2), "baseline": found(1, 2), "a": found(1, 2), "b": found(1, 2)},
        {"teacher": found(1), "baseline": found(), "a": found(), "b": found()},
        {"teacher": found(), "baseline": found(1, 2), "a": found(1), "b": found(1, 2)},
        {"teacher": found(), "baseline": found(1), "a": found(1), "b": found(1, 2)},
        {"teacher": found(), "baseline": found(3), "a": found(3, 1), "b": found(3, 2)},
    ]
    disagreements = [disagreement(frame, "baseline", ["a", "b"]) for frame in frames]
    assert disagreements == [
        Disagreement(0, 0, 0),
        Disagreement(0, 0, 1),
        Disagreement(0, 1, 2),
        Disagreement(1, 0, 2),
        Disagreement(2, 0, 3),
    ]
    assert rank_frames(disagreements) == [4, 3, 2, 1, 0]
    assert disagreement(frames[1], "baseline", []) == Disagreement(0, 0, 1)
    exchanges = gallery.Gallery(None, None, frames, {}, "baseline", ["a", "b"]).exchanges
    assert exchanges["a"].startswith("finds 1 people that baseline misses, and misses 1 that")
    assert exchanges["b"].startswith("finds 2 people that baseline misses, and misses 0 that")
    assert str(Disagreement(2, 0, 4)) == (
        "2 found by students but not the baseline; 4 by some networks only"
    )


def test_a_network_of_which_nothing_is_shown_says_so():
    assert describe_limits({"Pedestrian": 0.256}) == "score >= 0.26"
    assert describe_limits({"Pedestrian": math.inf}).startswith("nothing")
    assert describe_limits({"a": 0.5, "b": 0.25}) == "score >= 0.50 (a), score >= 0.25 (b)"


def test_a_rare_condition_has_its_frames():
    conditions = [["clear"], ["clear"], ["snow"], ["clear", "dusk"], [], []]
    assert spread_over_conditions([0, 1, 2, 3, 4, 5], conditions, 1) == [0, 2, 3, 4]
    assert spread_over_conditions([5, 1, 0, 2, 4, 3], conditions, 2) == [5, 1, 0, 2, 4, 3]


def test_titles_tell_weights_apart():
    assert titles([Path("a/x.pth"), Path("b/x.pth"), Path("b/y.pth")]) == ["a/x", "b/x", "y"]
    seeds = [Path(f"seed{seed}/weights/x.pth") for seed in range(2)]
    assert titles(seeds) == ["seed0/weights/x", "seed1/weights/x"]


def test_what_is_drawn_of_an_outcome():
    image = torch.zeros(3, 240, OUTCOME_TILE_WIDTH, dtype=torch.uint8)
    box = {"bbox": [100, 50, 100, 100], "score": 0.9}
    other = {"bbox": [300, 50, 100, 100], "score": 0.8}
    nothing = outcome_tile(image, Outcome([], [], [], set()))
    assert not np.asarray(nothing).any()
    drawn = outcome_tile(image, Outcome([box], [other], [], {1}))
    assert pixels(drawn, HIT) > 1.3 * pixels(drawn, FALSE_ALARM) > 0 == pixels(drawn, MISSED)
    missed = outcome_tile(image, Outcome([], [], [box], set()))
    assert pixels(missed, HIT) == 0 < pixels(missed, MISSED) < 4 * 100 + 200


def test_the_ground_truth_is_on_the_brightest_slice():
    image = torch.zeros(6, 240, OUTCOME_TILE_WIDTH, dtype=torch.uint8)
    image[4, 50:150, 100:200] = 90
    image[5, :40] = 255
    people = [{"bbox": [100, 50, 100, 100], "iscrowd": 0}, {"bbox": [0, 0, 40, 40], "iscrowd": 1}]
    picture = truth_tile(image, people)
    assert picture.getpixel((150, 100)) == (90, 90, 90)
    assert 350 < pixels(picture, TRUTH) < 850
    assert picture.getpixel((0, 20)) != Image.new("RGB", (1, 1), TRUTH).getpixel((0, 0))


@pytest.mark.parametrize("dashed", [False, True])
def test_a_line_is_around_its_box(dashed):
    """So that a person of two pixels can be seen; within the box at the picture's edge."""
    picture = Image.new("RGB", (60, 40))
    draw_boxes(picture, [Box((20, 10, 22, 12), GREEN, 2, dashed=dashed)])
    drawn = np.asarray(picture).any(axis=2)
    rows, columns = np.nonzero(drawn)
    assert (rows.min(), columns.min(), rows.max(), columns.max()) == (8, 18, 13, 23)
    assert not drawn[10:12, 20:22].any()
    whole = Image.new("RGB", (60, 40))
    draw_boxes(whole, [Box((0, 0, 60, 40), GREEN, 1, dashed=dashed)])
    drawn = np.asarray(whole).any(axis=2)
    sides = drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]
    assert not drawn[1:-1, 1:-1].any()
    assert all(side.any() and side.all() != dashed for side in sides)


def test_a_sheet_without_rows_has_its_headings():
    """As of a data folder of which no frame can be read."""
    sheet = contact_sheet(["RGB", "gated0"], [], {"visible": GREEN})
    assert pixels(sheet, GREEN)
    assert (np.asarray(sheet)[:20] < 128).any()


def test_texts_at_one_place_do_not_cover_each_other():
    """Three boxes at one place, in the middle and at every edge of the picture: three whole tags.

    Of many more tags, those that find a place.
    """
    for corners in (
        (40, 30, 90, 80),
        (40, 0, 90, 80),
        (40, 30, 90, 100),
        (0, 30, 9, 80),
        (120, 30, 139, 80),
    ):
        together = Image.new("RGB", (140, 101))
        texts = {HIT: "0.98", FALSE_ALARM: "?", MISSED: "x"}
        draw_boxes(together, [Box(corners, colour, 1, text) for colour, text in texts.items()])
        for colour, size in ((HIT, 250), (FALSE_ALARM, 80), (MISSED, 80)):
            assert pixels(together, colour) > size
    taken = []
    for _ in range(9):
        place = free_place((40, 30, 90, 80), (30, 14), (140, 101), taken)
        taken += [place] if place else []
    assert 3 <= len(taken) < 9
    for one, other in itertools.combinations(taken, 2):
        assert one[0] > other[2] or other[0] > one[2] or one[1] > other[3] or other[1] > one[3]


def test_compare_writes_a_sheet_and_a_page(synthetic, untrained, tmp_path, monkeypatch):
    root = shutil.copytree(synthetic, tmp_path / "data")
    names = (root / "val_night.txt").read_text().split()
    (root / "val_clear_night.txt").write_text("\n".join(names[:3]))
    (root / "val_snow_night.txt").write_text(names[3])
    monkeypatch.setattr(gallery, "PAGE_FRAMES", 1)
    out = ["--out", tmp_path / "g.png", "--html", tmp_path / "p.html"]
    frames = ["--data", root, "--list", "val_night", "--frames", 2, "--workers", 0]
    options = ["--draws", 20, "--score", 0.5]
    done = run_script("visualize.py", "--compare", *untrained.values(), *frames, *out, *options)
    with Image.open(tmp_path / "g.png") as sheet:
        assert sheet.width // OUTCOME_TILE_WIDTH == 4
        assert f"{sheet.width}x{sheet.height}" in done.stdout
        # Without the legend, which has all colours.
        tiles = sheet.crop((0, 0, sheet.width, sheet.height - 40))
        assert all(pixels(tiles, colour) for colour in OUTCOME_LEGEND.values())
    text = (tmp_path / "p.html").read_text()
    [exchange] = re.findall("val_night: student (finds .*)", done.stdout)
    assert f"<td>people, student</td><td>{exchange}</td>" in text
    frames = re.findall(
        r'<section data-conditions="(.*)" data-gained="(\d+)" data-lost="(\d+)" data-any="\d+">'
        r"<h3>(\S+) ",
        text,
    )
    assert f"p.html: {len(frames)} frames" in done.stdout
    assert sorted(frame[0] for frame in frames) == ["val_clear_night", "val_snow_night"]
    assert {frame[3] for frame in frames} < set(names)
    for condition, count in (("val_clear_night", 3), ("val_snow_night", 1)):
        assert f'<option value="{condition}">' in text
        assert f"{condition}, in percent; its {count} frames are too few for intervals" in text
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", text)
    assert len(pictures) == 4 * len(frames)
    widths = {Image.open(io.BytesIO(base64.b64decode(picture))).width for picture in pictures}
    assert widths == {OUTCOME_TILE_WIDTH}
    assert "http" not in re.sub(r"base64,[^\"]+", "", text).lower()
    assert str(untrained["student"]) in text
    assert "<td>baseline</td><td>baseline</td>" in text
    assert "<td>students</td><td>student</td>" in text
    assert "<td>student</td><td>val_night</td><td>4</td>" in text


def test_a_page_shows_names_as_text():
    row = FrameRow("<b>a</b>", ['x"y'], Disagreement(1, 0, 1), [Image.new("RGB", (4, 4))])
    tables = {"t": [["h"], ["<td>"]]}
    text = html_page("a & b", {"data": "<i>"}, tables, [row], ["<c>"], OUTCOME_LEGEND)
    assert not re.search(r'<b>a|<td><i>|<c>|a & b|<td><td>|x"y', text)


def test_what_cannot_be_compared(synthetic, untrained, frames, tmp_path, monkeypatch):
    three = tmp_path / "three.pth"
    torch.save(build_detector(3, 3, "resnet18", "none", min_size=64).state_dict(), three)
    (frames / "nobody.txt").write_text("b")
    common = ["--out", tmp_path / "g.png", "--workers", 0, "--compare"]
    baseline = untrained["baseline"]
    for arguments, message in (
        ([baseline, three, "--data", synthetic], "2 classes"),
        ([baseline, "--data", frames, "--list", "nobody"], "there is nothing to score"),
        ([baseline, "--data", synthetic, "--list", "other"], "other.txt is missing"),
        ([tmp_path / "none.pth", "--data", synthetic], "none.pth is missing"),
    ):
        assert message in refused(monkeypatch, *common, *arguments)
    assert not (tmp_path / "g.png").exists()


def test_images_of_any_kind(untrained, tmp_path):
    """Several formats, some in a subfolder; one is rotated by EXIF; bad ones are listed last."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 255, (90, 160, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright
    picture.save(folder / "a.jpg", exif=exif)
    picture.convert("L").save(folder / "b.png")
    picture.convert("P").save(folder / "more/a.png")
    (folder / "c.jpg").write_text("no picture")
    (folder / "d.png").write_bytes((folder / "b.png").read_bytes()[:2000])
    (folder / "notes.txt").write_text("no picture either")
    Image.new("RGB", (3000, 2)).save(folder / "e.png")
    places = ["--images", folder, "--weights", untrained["student"], "--out", tmp_path / "out"]
    done = run_script("visualize.py", *places, "--score", 0.3, expect=2)
    last = done.stderr.splitlines()[-1]
    unread = "3 of 6 pictures could not be read: c.jpg, d.png, e.png; the others are done"
    assert f"error: {unread}" in last
    assert "e.png is 3000x2: nothing is left of it at the network's size" in done.stderr
    assert re.search(r"warning: .*c.jpg cannot be read \(cannot identify", done.stderr)
    content = json.loads((tmp_path / "out/detections.json").read_text())
    sizes = {one["file_name"]: (one["width"], one["height"]) for one in content["images"]}
    assert sizes == {"a.jpg": (90, 160), "b.png": (160, 90), "more/a.png": (160, 90)}
    for name, size in sizes.items():
        with Image.open(tmp_path / "out" / name) as copy:
            assert copy.size == size
            assert copy.format == {".jpg": "JPEG", ".png": "PNG"}[Path(name).suffix]
    assert not (tmp_path / "out/c.jpg").exists()
    reference = COCO(str(tmp_path / "out/detections.json"))
    assert len(reference.anns) == len(content["annotations"]) > 0
    shown = sum(one["score"] >= 0.3 for one in content["annotations"])
    assert f"3 of 6 pictures, {shown} boxes of at least 0.3" in done.stdout
    assert shown
    [plain, annotated] = (
        np.asarray(Image.open(root / "b.png").convert("RGB")) for root in (folder, tmp_path / "out")
    )
    assert (plain != annotated).any()


def test_detections_of_pictures_are_those_of_test_py(synthetic, untrained, tmp_path):
    """The RGB pictures of a list as ordinary pictures: the boxes that test.py saves."""
    names = (synthetic / "val_night.txt").read_text().split()
    (tmp_path / "photos").mkdir()
    for name in names:
        shutil.copy(synthetic / "images" / f"{name}.png", tmp_path / "photos")
    weights, out = ["--weights", untrained["student"]], ["--out", tmp_path / "out"]
    run_script("visualize.py", "--images", tmp_path / "photos", *weights, *out, "--no-amp")
    frames = ["--data", synthetic, "--lists", "val_night", "--batch-size", 1, "--workers", 0]
    saved = ["--save-detections", tmp_path / "d.json"]
    run_script("test.py", *weights, *frames, *saved, "--no-amp")
    content = json.loads((tmp_path / "out/detections.json").read_text())
    file_of = {one["id"]: one["file_name"] for one in content["images"]}
    theirs = sorted(
        (f"{one['file_name']}.png", one["score"], one["bbox"])
        for one in json.loads((tmp_path / "d.json").read_text())
    )
    ours = sorted(
        (file_of[one["image_id"]], one["score"], one["bbox"]) for one in content["annotations"]
    )
    assert len(ours) == len(theirs) > 10
    for (file, score, box), (other_file, other_score, other_box) in zip(ours, theirs, strict=True):
        assert file == other_file
        assert score == pytest.approx(other_score, abs=1e-5)
        assert box == pytest.approx(other_box, abs=1e-3)


def test_pictures_that_cannot_be_detected(untrained, tmp_path, monkeypatch):
    empty, photos, notes = tmp_path / "empty", tmp_path / "photos", tmp_path / "notes.doc"
    empty.mkdir()
    photos.mkdir()
    one = photos / "one.png"
    Image.new("RGB", (64, 64)).save(one)
    notes.write_text("8BPS")
    out = tmp_path / "out"
    teacher = ["--weights", untrained["teacher"]]
    for weights, message in (
        ([], "--images needs the --weights of an RGB student"),
        (teacher, "needs gated slices, but this takes RGB alone: pass a student"),
    ):
        assert message in refused(monkeypatch, "--images", photos, "--out", out, *weights)
    student = load_detector(untrained["student"]).eval()
    replaced = "copies could replace pictures"
    for path, folder, message in (
        (empty, out, "empty has no picture"),
        (tmp_path / "gone", out, "gone is missing: name a picture"),
        (tmp_path / "drive.mp4", out, "is a video: write its frames to a folder first"),
        (notes, out, "notes.doc is no picture"),
        (photos, photos, replaced),
        (one, photos, replaced),
        (one, tmp_path, replaced),
        (photos, photos / "found", replaced),
    ):
        with pytest.raises(UserError, match=message):
            annotate_pictures(student, ["Pedestrian"], path, folder, 0.5, amp=False)
    assert not (tmp_path / "out").exists()
    assert list(photos.iterdir()) == [one]


def test_curves_of_several_runs(trained, tmp_path):
    logs = [trained / "runs" / name / "log.jsonl" for name in ("teacher", "cmkd_mse")]
    counts = []
    for count in (1, 2):
        out = tmp_path / f"{count}.png"
        run_script("visualize.py", "--curves", *logs[:count], "--out", out)
        with Image.open(out) as curves:
            assert min(curves.size) > 400
            counts.append(pixels(curves.convert("RGB"), COLOURS[1]))
    assert counts[0] < 20 < counts[1]


def test_logs_that_are_none(trained, tmp_path, monkeypatch):
    good = (trained / "runs/teacher/log.jsonl").read_text().splitlines()
    for content, message in (
        (f"{good[0]}\n", "has no epoch yet"),
        ("[1]\n", "log.jsonl:1: no record"),
        (f"{good[0]}\n{good[1][:80]}", "has no epoch yet"),  # cut off by a kill
        (f"{good[0]}\n{good[1][:80]}\n", "log.jsonl:2: no record"),
        ('{"epoch": 1, "losses": 3}\n', "log.jsonl:1: no record"),
        (None, "cannot be read"),
    ):
        (tmp_path / "log.jsonl").unlink(missing_ok=True)
        if content:
            (tmp_path / "log.jsonl").write_text(content)
        assert message in refused(
            monkeypatch, "--curves", tmp_path / "log.jsonl", "--out", tmp_path / "c.png"
        )
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join([*good, ""]))
    assert "is named twice" in refused(
        monkeypatch, "--curves", log, log, "--out", tmp_path / "c.png"
    )
    assert "log.jsonl is read" in refused(monkeypatch, "--curves", log, "--out", log)
    assert log.read_text().splitlines() == good
    assert not (tmp_path / "c.png").exists()


@pytest.mark.parametrize("package", ["matplotlib", "tensorboard"])
def test_an_optional_package_that_is_absent_is_named(
    frames, trained, tmp_path, monkeypatch, package
):
    """The test makes its import fail, as if it were not installed."""
    # torch's module may have imported it in an earlier test.
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    out = tmp_path / "out"
    if package == "matplotlib":
        log = trained / "runs/teacher/log.jsonl"
        done = run_script("visualize.py", "--curves", log, "--out", out / "c.png", expect=2)
    else:
        places = ["--data", frames, "--run-dir", out, "--out", out]
        done = run_script("train_baseline.py", "--tensorboard", *places, *TINY, expect=2)
    assert f"pip install {package}" in the_error(done)
    assert not [*out.glob("*.p*"), *out.glob("*.jsonl")]


def test_energy_maps_are_the_pyramids_without_padding():
    detector = build_detector(3, 2, "resnet18", "none", min_size=64).eval()
    image = torch.randint(0, 255, (6, 80, 160), dtype=torch.uint8)
    maps = energy_maps(detector, image)
    with torch.inference_mode():
        features = detector.features([image[:3]])
    for level, stride in zip(LEVELS, (4, 8, 16, 32), strict=True):  # 64x128 px, which is not padded
        assert maps[level].shape == (64 // stride, 128 // stride)
        assert torch.allclose(maps[level], features[level][0].pow(2).mean(0).sqrt())
    assert energy_maps(detector, image[:, :75])["0"].shape == (
        16,
        34,
    )  # 64x137 px, padded to 64x160


def test_features_side_by_side(synthetic, untrained, tmp_path, monkeypatch):
    name = (synthetic / "val_night.txt").read_text().split()[1]
    common = ["--data", synthetic, "--list", "val_night", "--out", tmp_path / "f.png", "--features"]
    common += untrained.values()
    run_script("visualize.py", *common, "--frame", name)
    with Image.open(tmp_path / "f.png") as sheet:
        assert sheet.width // OUTCOME_TILE_WIDTH == 4
        assert len(sheet.getcolors(sheet.width * sheet.height)) > 500
    assert "--frame other is not in" in refused(monkeypatch, *common, "--frame", "other")


def test_features_are_of_a_frame_with_a_box_of_the_weights_classes(frames, monkeypatch):
    """The first frame has a person, the second a car, and the network knows cars."""
    (frames / "gated_labels/b.txt").write_text(label_line("PassengerCar"))
    detector = build_detector(3, 2, "resnet18", "none", min_size=64)
    torch.save(detector.state_dict(), frames / "cars.pth")
    settings = {**detector.settings, "classes": ["PassengerCar"]}
    (frames / "cars.json").write_text(json.dumps(settings))
    shown = []

    def sheet(_, __, name):
        shown.append(name)
        return Image.new("RGB", (4, 4))

    monkeypatch.setattr(visualize, "feature_sheet", sheet)
    options = ["--features", frames / "cars.pth", "--data", frames, "--list", "val_night"]
    options += ["--device", "cpu", "--out", frames / "f.png"]
    monkeypatch.setattr(sys, "argv", ["visualize.py", *map(str, options)])
    visualize.main()
    assert shown == ["b"]


def test_tensorboard_has_losses_ap_and_pictures(frames):
    """From the epoch on in which a run was given the flag."""
    (frames / "val_night.txt").write_text("b\na\n")  # b has no box
    run_dir = frames / "r"
    common = ["--data", frames, "--out", frames / "w", "--run-dir", run_dir, *TINY]
    run_dir.mkdir()
    (run_dir / "tensorboard").write_text("a file")
    done = run_script("train_baseline.py", *common, "--tensorboard", expect=2)
    assert "r/tensorboard cannot be written" in the_error(done)
    (run_dir / "tensorboard").unlink()
    run_script("train_baseline.py", *common, "--epochs", 1)
    run_script("train_baseline.py", *common, "--epochs", 2, "--resume", "--tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    records = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    records = [record for record in records if record.get("epoch", 0) > 1]
    for name, value in (
        ("losses/loss_objectness", lambda record: record["losses"]["loss_objectness"]),
        ("val/AP", lambda record: record["val"]["AP"]),
        ("lr", lambda record: record["lr"]),
    ):
        scalars = events.Scalars(name)
        assert [event.value for event in scalars] == pytest.approx([*map(value, records)], rel=1e-6)
        assert [event.step for event in scalars] == [2]
    assert events.Tags()["images"] == ["val/a"]
    [image] = events.Images("val/a")
    assert image.step == 2
    assert Image.open(io.BytesIO(image.encoded_image_string)).width == OUTCOME_TILE_WIDTH

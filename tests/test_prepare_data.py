"""Calibration, raw images, split lists, and the whole command on an official folder layout."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, run_here, run_script, the_error
from PIL import Image, ImageDraw

from cmkd.frames import raw_images, registration
from cmkd.frames.layout import GATED_FOLDERS, evenly_spaced, recording_of
from cmkd.frames.official_lists import (
    choose_official,
    clear_lists,
    condition_from_meta,
    frames_of_all_weathers,
    weather_lists,
)
from cmkd.frames.tone import DAY_CURVE, NIGHT_CURVE, table_of_codes
from cmkd.runtime.files import UserError
from cmkd.runtime.parallel import parallel_map
from prepare_data import Prepared, Preparer, count_label_quirks, find_parts

TAIL = "-1 -1 -1 -1000 -1000 -1000 -1000 0 0 0 1.0 -1000 -1000 -1000 -1000 False True -1 -1"
NAMES = [f"2018-02-0{day}_10-00-00_00{frame}00" for day in (1, 2, 3) for frame in (1, 2)]
CALIBRATION = registration.published_calibration()
CLEAR_LISTS, WEATHER_LISTS = clear_lists("night"), weather_lists("night")


def test_homography_and_pose_are_the_measured_ones():
    expected = [
        [0.97218, -0.010373, -261.377],
        [0.0061698, 1.041344, -238.994],
        [-7.5e-6, -3.78e-6, 1],
    ]
    np.testing.assert_allclose(
        registration.plane_homography(CALIBRATION, 30), expected, rtol=2e-3, atol=1e-8
    )
    np.testing.assert_allclose(
        registration.plane_homography(CALIBRATION, 30)[:2, 2], [-261.377, -238.994], atol=1e-3
    )
    np.testing.assert_allclose(CALIBRATION.translation, [-0.1098, -0.0267, -0.0140], atol=5e-5)
    assert np.degrees(np.arccos((np.trace(CALIBRATION.rotation) - 1) / 2)) == pytest.approx(
        1.23, abs=0.005
    )


def test_rectifying_moves_slices_as_measured():
    pixel_map = registration.rectifying_map(CALIBRATION.gated).numpy()
    rows, columns = np.mgrid[:720, :1280]
    moved = np.hypot(pixel_map[..., 0] - columns, pixel_map[..., 1] - rows)
    assert moved.mean() == pytest.approx(5, abs=0.1)
    assert moved.max() == pytest.approx(26.6, abs=0.1)


def test_a_wall_at_the_plane_is_seen_alike_by_plane_and_depth():
    by_depth = registration.map_by_depth(CALIBRATION, np.full((720, 1280), 30.0))
    torch.testing.assert_close(
        by_depth, registration.map_by_plane(CALIBRATION, 30), atol=1e-2, rtol=0
    )


def test_warp_samples_pixel_centres():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    rows, columns = np.mgrid[:3, :4].astype(np.float32)
    pixel_map = torch.from_numpy(np.stack([columns, rows], -1))
    np.testing.assert_array_equal(registration.warp(image, pixel_map), image)
    np.testing.assert_array_equal(
        registration.warp(image, pixel_map + torch.tensor([0.5, 0]))[:, :3], (image[:, :3] + 10)
    )


def test_dense_depth_keeps_the_returns_and_stays_between_them():
    sparse = np.zeros((40, 60), np.float32)
    sparse[::6, ::5] = 10
    sparse[::6, 35::5] = 50
    dense = registration.densify(sparse)
    np.testing.assert_allclose(dense[sparse > 0], sparse[sparse > 0], rtol=1e-5)
    assert dense.min() > 9.99
    assert dense.max() < 50.01
    assert dense[:, :20].max() < 12
    with pytest.raises(ValueError, match="no lidar return"):
        registration.densify(np.zeros((4, 4)))


@pytest.mark.parametrize("damage", ["{", '{"K": [1]}'])
def test_a_damaged_calibration_is_named(tmp_path, damage):
    for name in (registration.RGB_FILE, registration.GATED_FILE, registration.TRANSFORMS_FILE):
        (tmp_path / name).write_text("[]")
    (tmp_path / registration.RGB_FILE).write_text(damage)
    with pytest.raises(UserError, match="is not a tree|has no transform"):
        registration.find_calibration([tmp_path])
    with pytest.raises(UserError, match="not a ROS camera calibration"):
        registration.read_camera(tmp_path / registration.RGB_FILE)
    assert registration.find_calibration([tmp_path / "absent"]).source == "built in"


@pytest.mark.parametrize(
    ("curve", "code", "fraction"),
    [
        (DAY_CURVE, 1024, 0.2 + 0.15 * (1024 / 65536 - 0.01) / 0.02),  # decompanded 1024
        (DAY_CURVE, 3456, 0.98),  # 32768 = half of 65536
        (NIGHT_CURVE, 2560, 0.4 + 0.4 * (4096 / 65536 - 0.01) / 0.09),  # decompanded 4096
    ],
)
def test_tone_follows_decompanding(curve, code, fraction):
    assert table_of_codes(curve)[code] == pytest.approx(65536 * fraction, abs=1)


def grbg_mosaic(red, green, blue):
    """The Bayer mosaic of three colour planes (H, W): green and red in its first row."""
    mosaic = green.copy()
    mosaic[0::2, 1::2] = red[0::2, 1::2]
    mosaic[1::2, 0::2] = blue[1::2, 0::2]
    return mosaic


def test_demosaic_knows_the_order_of_the_colours():
    red, green, blue = (np.full((8, 12), value, np.uint16) for value in (9000, 4000, 1000))
    rgb = raw_images.demosaic(grbg_mosaic(red, green, blue))
    np.testing.assert_array_equal(rgb, np.stack([red, green, blue], -1))


def test_demosaic_keeps_samples_and_takes_the_mean_of_the_nearest():
    mosaic = np.random.default_rng(0).integers(0, 60000, (10, 12)).astype(np.uint16)
    rgb = raw_images.demosaic(mosaic)
    for channel, sites in enumerate(([(0, 1)], [(0, 0), (1, 1)], [(1, 0)])):
        for row in range(1, 9):
            for column in range(1, 11):
                around = [
                    (abs(y - row) + abs(x - column), int(mosaic[y, x]))
                    for y in range(row - 1, row + 2)
                    for x in range(column - 1, column + 2)
                    if (y % 2, x % 2) in sites
                ]
                least = min(around)[0]
                nearest = [value for distance, value in around if distance == least]
                assert rgb[row, column, channel] == pytest.approx(np.mean(nearest), abs=1)


def test_developed_colours_are_those_of_the_mosaic():
    """Red, green, blue areas of a raw image are red, green, blue in the developed one."""
    planes = np.full((3, 64, 96), 900, np.uint16)
    for channel in range(3):
        planes[channel, :, 32 * channel : 32 * channel + 32] = 1800
    rgb = raw_images.develop(grbg_mosaic(*planes), night=False)
    for channel in range(3):
        middle = rgb[:, 32 * channel + 8 : 32 * channel + 24].mean(axis=(0, 1))
        assert middle.argmax() == channel
        assert np.sort(middle)[2] > np.sort(middle)[1] + 20


def test_developed_raw_is_a_picture_or_says_what_is_missing(monkeypatch):
    raw = np.full((64, 64), 900, np.uint16)
    raw[:, 32:] = 1800
    rgb = raw_images.develop(raw, night=False)
    assert rgb.shape == (64, 64, 3)
    assert rgb[:, 40:].mean() > rgb[:, :24].mean() + 20
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match="pip install opencv-python-headless"):
        raw_images.develop(raw, night=False)


def save_array(file, array):
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(array).save(file)


def test_raw_images_are_developed_by_their_meta_file_and_rectified(tmp_path):
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 4096, (1024, 1920)).astype(np.uint16)
    raw_slice = rng.integers(0, 1024, (720, 1280)).astype(np.uint16)
    save_array(tmp_path / "cam_stereo_left/a.tiff", raw)
    save_array(tmp_path / "gated0_raw/a.tiff", raw_slice)
    meta = tmp_path / "labeltool_labels/a.json"
    meta.parent.mkdir()
    folders = {"rgb": "cam_stereo_left", "gated0": "gated0_raw", "meta": "labeltool_labels"}
    folders = {part: tmp_path / name for part, name in folders.items()}
    preparer = Preparer(folders, CALIBRATION, "plane", 30.0, tmp_path / "out")
    for night in (True, False):
        meta.write_text(json.dumps({"daytime": {"night": night}}))
        expected = raw_images.develop(raw, night)
        expected = registration.warp(expected, registration.rectifying_map(CALIBRATION.rgb))
        np.testing.assert_array_equal(preparer.rectified_rgb("a", "clear_night"), expected)
    meta.write_text("{}")
    with pytest.raises(UserError, match="^no daytime in its labeltool_labels file$"):
        preparer.rectified_rgb("a", "clear_night")
    del folders["meta"]
    assert preparer.needs_night_curve("a", "snow_night")
    assert not preparer.needs_night_curve("a", "clear_day")

    raw_slice[:2] = 0
    expected = registration.warp(raw_slice, registration.rectifying_map(CALIBRATION.gated)) >> 2
    expected = Image.fromarray(expected.astype(np.uint8)).resize((1280, 768), Image.BILINEAR)
    np.testing.assert_array_equal(preparer.rectified_slice("gated0", "a"), expected)


@pytest.mark.parametrize(
    ("items", "count", "chosen"),
    [("abcde", 3, "ace"), ("abcd", 3, "abd"), ("abc", 9, "abc"), ("abc", 1, "a"), ("", 3, "")],
)
def test_evenly_spaced(items, count, chosen):
    assert evenly_spaced(list(items), count) == list(chosen)


def test_all_night_puts_no_recording_in_two_splits():
    official = {
        one: [f"{split}{drive}_{frame}" for drive in range(3) for frame in range(2)]
        for split, one in CLEAR_LISTS.items()
    }
    shared = [f"fog{drive}_{frame}" for drive in range(300) for frame in range(2)]
    official |= {
        WEATHER_LISTS[0]: [*shared, "val1_7"],
        WEATHER_LISTS[1]: ["test2_8"],
        WEATHER_LISTS[2]: [f"{name}9" for name in shared],
    }
    splits = frames_of_all_weathers(official, "night")
    homes = {}
    for split, frames in splits.items():
        for name in frames:
            assert homes.setdefault(recording_of(name), split) == split
    assert sorted(name for frames in splits.values() for name in frames) == sorted(
        name for frames in official.values() for name in frames
    )
    assert homes["val1"] == "val"
    assert homes["test2"] == "test"
    drives = [homes[f"fog{drive}"] for drive in range(300)]
    for split, share in (("train", 0.60), ("val", 0.15), ("test", 0.25)):
        assert drives.count(split) / 300 == pytest.approx(share, abs=0.08)


# ------------------------------------------------------------------------------- the whole command

# Upright rectangles x0, y0, x1, y1 in metres right of and below the gated camera, far to near, with
# their distance, brightness in RGB's green channel and brightness in the slices.
STREET = (
    (60, (-60, -30, 60, 30), 90, 20),
    (45, (-12, -9, -3, 2), 60, 60),
    (30, (2, -4, 9, 1.5), 140, 90),
    (18, (-6, -0.5, -2, 1.4), 170, 40),
)


def corners(box):
    x0, y0, x1, y1 = box
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def draw(mode, size, camera, rectangles, as_rgb=False):
    """Rectangles (distance, box, colour) through a pinhole camera, over 0."""
    image = Image.new(mode, size)
    canvas = ImageDraw.Draw(image)
    for distance, box, colour in rectangles:
        points = np.array([(x, y, distance) for x, y in corners(box)])
        if as_rgb:
            points = (points - CALIBRATION.translation) @ CALIBRATION.rotation
        pixels = points @ camera.rectified.T
        canvas.polygon([tuple(pixel) for pixel in pixels[:, :2] / pixels[:, 2:]], fill=colour)
    return image


def write_official_frame(folders, name, person):
    """A street and a person 8 m ahead: magenta in RGB, bright in the slices, by lidar."""
    rgb = [(distance, box, (0, green, 0)) for distance, box, green, _ in STREET]
    rgb.append((8, person, (255, 0, 255)))
    image = draw("RGB", (1920, 1024), CALIBRATION.rgb, rgb, as_rgb=True)
    image.save(folders["cam_stereo_left_lut/cam_stereo_left_lut"] / f"{name}.png")
    infrared = [(distance, box, grey) for distance, box, _, grey in STREET] + [(8, person, 250)]
    infrared = draw("L", (1280, 720), CALIBRATION.gated, infrared)
    infrared.save(folders["gated0_rect8"] / f"{name}.png")
    infrared.save(folders["gated1_8bit"] / f"{name}.png")
    infrared = np.asarray(infrared)
    Image.fromarray(infrared.astype(np.uint16) * 4).save(folders["gated2_rect"] / f"{name}.png")
    depth = [(distance, box, distance) for distance, box, _, _ in STREET] + [(8, person, 8)]
    depth = np.asarray(draw("F", (1280, 720), CALIBRATION.gated, depth))
    lidar = np.zeros_like(depth)
    lidar[::3, ::3] = depth[::3, ::3]
    np.savez(folders["lidar_hdl64_strongest_gated"] / f"{name}.npz", lidar)
    x0, y0, x1, y1 = box_of(infrared == 250)
    (folders["gt_labels/gated_labels_TMP"] / f"{name}.txt").write_text(
        f"Pedestrian 0 0 -1 {x0} {y0} {x1} {y1} {TAIL}\nDontCare 0 0 -1 0 0 0 0 {TAIL}\n"
        f"traffic sign 0 0 -1 1 1 9 9 {TAIL}\n"
    )


@pytest.fixture(scope="module")
def download(tmp_path_factory):
    """A folder with the official layout, some folders doubled by unzipping: three recordings."""
    root = tmp_path_factory.mktemp("official") / "SeeingThroughFog"
    names = ("cam_stereo_left_lut/cam_stereo_left_lut", "gated0_rect8", "gated1_8bit")
    names += ("gated2_rect", "gt_labels/gated_labels_TMP", "lidar_hdl64_strongest_gated", "splits")
    folders = {name: root / name for name in names}
    for folder in folders.values():
        folder.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        left = 0.3 * number - 0.8
        write_official_frame(folders, name, (left, -0.55, left + 0.5, 1.2))
    for number, list_name in enumerate(CLEAR_LISTS.values()):
        two = NAMES[2 * number : 2 * number + 2]
        lines = [f"{name[:19]},{name[20:]}\n" for name in two]
        (folders["splits"] / f"{list_name}.txt").write_text("".join(lines))
    for list_name in WEATHER_LISTS:
        (folders["splits"] / f"{list_name}.txt").write_text(f"{NAMES[0][:19]},99999\n")
    return root


def box_of(mask):
    """x0, y0, x1, y1 of the pixels that are set."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def prepare(download, out, *more, split="clear_night", expect=0):
    """Run the command in this process."""
    options = ("--source", download, "--out", out, "--split", split, "--workers", 1, *more)
    done = run_here([str(ROOT / "prepare_data.py"), *map(str, options)])
    assert done.returncode == expect, done.stderr
    return done


@pytest.fixture(scope="module")
def prepared(download, tmp_path_factory):
    """The folder of all frames prepared by the plane, and what the command printed."""
    out = tmp_path_factory.mktemp("prepared") / "data"
    return out, prepare(download, out).stdout


def person_in_rgb(out, name):
    """Whether a pixel of the prepared RGB image shows the magenta person."""
    rgb = np.asarray(Image.open(out / "images" / f"{name}.png"))
    return (rgb[..., 0] > 130) & (rgb[..., 2] > 130)


def covered_share(out, name):
    """The share of the person in slice 0 that is the person in RGB too."""
    in_slice = np.asarray(Image.open(out / "gated0" / f"{name}.png")) > 180
    return person_in_rgb(out, name)[in_slice].mean()


def errors_of_boxes(out, name):
    """The distance of the label from the person in RGB and each slice, in prepared pixels.

    That is the distance of the side that is farthest away.
    """
    columns = (out / "gated_labels" / f"{name}.txt").read_text().splitlines()[0].split()
    box = np.array([float(value) for value in columns[4:8]]) * [1, 768 / 720, 1, 768 / 720]
    masks = [person_in_rgb(out, name)]
    for folder in GATED_FOLDERS:
        image = Image.open(out / folder / f"{name}.png")
        assert image.mode == "L"
        assert image.size == (1280, 768)
        masks.append(np.asarray(image) > 180)
    return [np.abs(np.array(box_of(mask)) - box).max() for mask in masks]


def test_boxes_are_on_the_people(download, prepared, tmp_path):
    plane, _ = prepared
    prepare(download, tmp_path / "lidar", "--registration", "lidar", "--limit", 2)
    prepare(download, tmp_path / "near", "--plane-distance", 8, "--limit", 2)
    for name in NAMES:
        rgb, *slices = errors_of_boxes(plane, name)
        assert max(slices) <= 2
        assert 15 < rgb < 32  # parallax of the plane at 30 m: 262.5 |1/8 - 1/30| = 24 px
        assert covered_share(plane, name) < 0.85
    for name in (NAMES[0], NAMES[-1]):
        assert errors_of_boxes(tmp_path / "near", name)[0] <= 3
        # By depth, the background beside a person may repeat the person, so the box says nothing.
        assert covered_share(tmp_path / "lidar", name) > 0.95


def test_the_report_has_what_was_found(download, prepared):
    out, printed = prepared
    assert "gated1_8bit" in printed
    assert "calibration: built in" in printed
    report = json.loads((out / "prepare_report.json").read_text())
    lists = [f"{split}_{kind}" for kind in ("night", "clear_night") for split in CLEAR_LISTS]
    assert report["lists"] == dict.fromkeys([*lists, "vis_night"], 2)
    assert report["labels"] == {
        "DontCare": 6,
        "boxes without area, skipped": 6,
        "traffic lines, skipped": 6,
    }
    labels = f"gated_labels_TMP/{NAMES[0]}.txt"
    copy = out / "gated_labels" / f"{NAMES[0]}.txt"
    assert copy.read_bytes() == (download / "gt_labels" / labels).read_bytes()


def test_label_quirks_are_counted(tmp_path):
    """A box beyond the image is left out, one across its edge is clipped; a group is named."""
    (tmp_path / "gated_labels").mkdir()
    lines = [
        f"{kind} 0 0 -1 {box} {TAIL}\n"
        for kind, box in (
            ("Pedestrian", "0 0 1280 720"),
            ("Pedestrian", "-5 0 9 9"),
            ("PassengerCar", "1280 0 1290 9"),
            ("Vehicle_is_group", "1 1 9 721"),
            ("DontCare", "-1 -1 -1 -1"),
            ("traffic light", "1 1 9 9"),
        )
    ]
    (tmp_path / "gated_labels/a.txt").write_text("".join(lines))
    (tmp_path / "gated_labels/b.txt").write_text("\n")
    assert count_label_quirks(tmp_path, {"a", "b"}) == {
        "empty files": 1,
        "traffic lines, skipped": 1,
        "boxes without area, skipped": 1,
        "boxes partly outside, clipped": 2,
        "boxes outside, left out": 1,
        "Vehicle_is_group": 1,
        "DontCare": 1,
    }


def test_prepared_frames_are_trained_on(prepared, tmp_path):
    folders = ("--data", prepared[0], "--out", tmp_path / "w", "--run-dir", tmp_path / "run")
    run_script("train_teacher.py", *folders, "--max-iterations", 2, *TINY)


def test_a_new_process_writes_what_this_one_writes(download, prepared, tmp_path):
    preparer = Preparer(find_parts(download, False), CALIBRATION, "plane", 30.0, tmp_path)
    results = parallel_map(preparer.prepare, [(NAMES[0], "clear_night")], 2, "frames")
    assert list(results) == [Prepared("plane")]
    written = [file for file in tmp_path.glob("*/*") if file.is_file()]
    assert len(written) == 5
    for file in written:
        assert file.read_bytes() == (prepared[0] / file.relative_to(tmp_path)).read_bytes()


def test_a_killed_process_is_one_line():
    with pytest.raises(UserError, match="a worker process was killed.*lower --workers"):
        list(parallel_map(os._exit, [1, 2], 2, "frames"))


def test_a_second_call_continues_and_other_parameters_are_refused(download, tmp_path):
    out = tmp_path / "data"
    prepare(download, out, "--limit", 2)
    assert len(list((out / "images").iterdir())) == 2
    before = {file: file.stat().st_mtime_ns for file in (out / "images").iterdir()}
    (out / "images/.x.png.123").write_text("half a file")
    done = prepare(download, out, "--limit", 3)
    assert "2 there already, 1 plane" in done.stdout
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert len(list((out / "images").iterdir())) == 3
    done = prepare(download, out, "--plane-distance", 25, expect=2)
    assert "plane_distance 30.0, not 25.0" in the_error(done)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    done = prepare(download, other, expect=2)
    assert "holds something else" in the_error(done)
    assert [file.name for file in other.iterdir()] == ["thesis.tex"]
    (other / "thesis.tex").rename(other / "prepare_report.json")
    done = prepare(download, other, expect=2)
    assert "prepare_report.json is not JSON" in the_error(done)
    assert (other / "prepare_report.json").read_text() == "mine"


def test_incomplete_frames_are_left_out_with_the_reason(download, tmp_path, copy_of):
    root = copy_of(download)
    (root / "gated1_8bit" / f"{NAMES[0]}.png").unlink()
    labels = root / "gt_labels/gated_labels_TMP"
    (labels / f"{NAMES[1]}.txt").write_text("Pedestrian 0 0 -1 9 9 1 1 " + TAIL)
    image = root / "cam_stereo_left_lut/cam_stereo_left_lut" / f"{NAMES[2]}.png"
    image.write_bytes(image.read_bytes()[:-400])
    (labels / f"{NAMES[3]}.txt").write_text("")
    (labels / f"{NAMES[4]}.txt").unlink()
    done = prepare(root, tmp_path / "data")
    report = json.loads((tmp_path / "data/prepare_report.json").read_text())
    assert set(report["left_out"]) == {NAMES[0], NAMES[1], NAMES[2], NAMES[4]}
    assert report["left_out"][NAMES[0]] == "no gated1_8bit file"
    assert report["left_out"][NAMES[4]] == "no gated_labels_TMP file"
    assert "txt:1: box" in report["left_out"][NAMES[1]]
    assert (tmp_path / "data/val_night.txt").read_text() == f"{NAMES[3]}\n"
    assert not (tmp_path / "data/train_night.txt").exists()
    assert report["labels"]["empty files"] == 1
    assert "1 no gated1_8bit file" in done.stdout


def test_the_plane_replaces_lidar_in_fog_and_if_it_is_missing(download, tmp_path, copy_of):
    root = copy_of(download)
    (root / "lidar_hdl64_strongest_gated" / f"{NAMES[0]}.npz").unlink()
    (root / "splits/dense_fog_night.txt").write_text(f"{NAMES[5]}\n")
    (root / "splits/test_clear_night.txt").write_text(f"{NAMES[4]}\n")
    prepare(root, tmp_path / "data", "--registration", "lidar", split="all_night")
    report = json.loads((tmp_path / "data/prepare_report.json").read_text())
    assert report["frames"] == {"plane, no lidar": 1, "lidar": 4, "plane, in fog": 1}
    assert (tmp_path / "data/test_dense_fog_night.txt").read_text() == f"{NAMES[5]}\n"


def test_a_frame_is_prepared_again_once_it_has_lidar(download, tmp_path, copy_of):
    """What was unzipped later would else never be used, without a word."""
    root = copy_of(download)
    lidar = root / f"lidar_hdl64_strongest_gated/{NAMES[0]}.npz"
    lidar.rename(tmp_path / "later.npz")
    options = ["--registration", "lidar", "--limit", 2]
    prepare(root, tmp_path / "data", *options)
    rgb = tmp_path / f"data/images/{NAMES[0]}.png"
    by_plane = rgb.read_bytes()
    assert "1 there already (plane, no lidar)" in prepare(root, tmp_path / "data", *options).stdout
    assert rgb.read_bytes() == by_plane
    (tmp_path / "later.npz").rename(lidar)
    done = prepare(root, tmp_path / "data", *options)
    assert "1 there already (lidar), 1 lidar" in done.stdout
    assert rgb.read_bytes() != by_plane
    (tmp_path / "data/registration.jsonl").unlink()
    done = prepare(root, tmp_path / "data", *options)
    assert "of 2 frames in" in done.stderr
    assert "frames: 2 lidar" in done.stdout


def write_calibration(folder):
    """The published calibration as the three files, except that RGB has another distortion."""
    folder.mkdir()
    cameras = {registration.RGB_FILE: CALIBRATION.rgb, registration.GATED_FILE: CALIBRATION.gated}
    for file, camera in cameras.items():
        content = {
            "K": camera.raw.ravel().tolist(),
            "D": [camera.k1 * 1.1, 0, 0, 0, 0],
            "R": camera.rotation.ravel().tolist(),
            "P": np.pad(camera.rectified, ((0, 0), (0, 1))).ravel().tolist(),
            "width": camera.size[0],
            "height": camera.size[1],
        }
        (folder / file).write_text(json.dumps(content))
    transforms = [
        {
            "header": {"frame_id": "body"},
            "child_frame_id": frame,
            "transform": {
                "rotation": dict(zip("xyzw", (0, 0, 0, 1), strict=True)),
                "translation": dict(zip("xyz", (0, 0, place), strict=True)),
            },
        }
        for frame, place in ((registration.RGB_FRAME, 0), (registration.GATED_FRAME, 0.1))
    ]
    (folder / registration.TRANSFORMS_FILE).write_text(json.dumps(transforms))


def test_another_calibration_is_not_mixed_in(download, tmp_path):
    """A folder that lacks a file is not passed over, and frames of two calibrations not mixed."""
    folder = tmp_path / "calibration"
    done = prepare(download, tmp_path / "data", "--calibration", folder, expect=2)
    assert f"--calibration {folder}: the three calib_*.json are not there" in the_error(done)
    write_calibration(folder)
    prepare(download, tmp_path / "data", "--limit", 1)
    done = prepare(download, tmp_path / "data", "--calibration", folder, "--limit", 1, expect=2)
    assert "was made with calibration built in, not" in the_error(done)
    prepare(download, tmp_path / "own", "--calibration", folder, "--limit", 1)
    report = tmp_path / "own/prepare_report.json"
    content = json.loads(report.read_text())
    del content["parameters"]["calibration"]
    report.write_text(json.dumps(content))
    done = prepare(download, tmp_path / "own", "--calibration", folder, "--limit", 1)
    assert "is of an earlier version, which noted no calibration" in done.stderr
    (folder / registration.RGB_FILE).unlink()
    done = prepare(download, tmp_path / "own", "--calibration", folder, expect=2)
    assert f"{folder} lacks {registration.RGB_FILE}" in the_error(done)


def test_hidden_folders_of_other_tools_stay(download, tmp_path):
    prepare(download, tmp_path / "data", "--limit", 1)
    (tmp_path / "data/images/.ipynb_checkpoints").mkdir()
    (tmp_path / "data/images/.DS_Store").write_text("")
    prepare(download, tmp_path / "data", "--limit", 1)
    assert (tmp_path / "data/images/.DS_Store").is_file()


def test_a_missing_part_is_named(download, tmp_path, copy_of):
    root = copy_of(download)
    (root / "gated2_rect").rename(root / "elsewhere")
    message = the_error(prepare(root, tmp_path / "data", expect=2))
    assert "gated2 (gated2_rect8 or gated2_8bit or gated2_rect or gated2_raw)" in message
    assert not (tmp_path / "data").exists()


def test_what_is_found_and_not_used_is_said(tmp_path, capsys):
    for file in (
        "cam_stereo_left/a.tiff",
        "cam_stereo_left_lut/a.png",
        "gated0_rect8/a.png",
        "gated1_rect/a.png",
        "gated1_raw/a.tiff",
        "gated2_8bit/gated2_8bit/a.png",
        "gt_labels/gated_labels_TMPv2/a.txt",
    ):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_bytes(b"")
    parts = find_parts(tmp_path, needs_lidar=False)
    assert {part: str(folder.relative_to(tmp_path)) for part, folder in parts.items()} == {
        "rgb": "cam_stereo_left_lut",
        "gated0": "gated0_rect8",
        "gated1": "gated1_rect",
        "gated2": "gated2_8bit/gated2_8bit",
        "labels": "gt_labels/gated_labels_TMPv2",
    }
    out = capsys.readouterr().out
    assert (
        f"rgb: {tmp_path / 'cam_stereo_left_lut'} (not used: {tmp_path / 'cam_stereo_left'})" in out
    )
    assert f"gated1: {tmp_path / 'gated1_rect'} (not used: {tmp_path / 'gated1_raw'})" in out
    assert "meta: not found, not needed" in out


def test_days_and_nights_share_no_recording_across_splits(tmp_path):
    """A recording that has both is in the split of its night; rain is a further condition."""
    for time in ("night", "day"):
        for split, list_name in clear_lists(time).items():
            names = [f"{time}_{split}_1", f"both{split}_{time}"]
            if time == "day":  # the recording of a test night is in the day's train list
                names.append({"train": "bothtest_x", "val": "v_1", "test": "t_1"}[split])
            (tmp_path / f"{list_name}.txt").write_text("\n".join(names))
        for list_name in weather_lists(time):
            (tmp_path / f"{list_name}.txt").write_text(f"{list_name}_1")
    lists, condition_of = choose_official("all", tmp_path)
    assert {"bothtest_x", "bothtest_day"} <= set(lists["test_day"])
    assert lists["train_day"][0] == "day_train_1"
    assert condition_of["bothtest_x"] == "clear_day"
    assert condition_of["snow_day_1"] == "snow_day"
    split_of = {}
    for list_name, names in lists.items():
        for name in names:
            split = list_name.partition("_")[0]
            assert split_of.setdefault(recording_of(name), split) == split
    assert choose_official("clear_day", tmp_path)[0].keys() == {"train_day", "val_day", "test_day"}


@pytest.mark.parametrize(
    ("content", "condition"),
    [
        ({"daytime": {"night": True}, "weather": {"clear": True}}, "clear_night"),
        ({"daytime": {"day": True}, "weather": {"clear": False, "snow": True}}, "snow_day"),
        ({"daytime": {"day": True}, "weather": {"rain": True}}, "rain_day"),
        ({"daytime": {"night": False}, "fog": {"yes": {"denseFog": True}}}, "dense_fog_day"),
        (
            {"daytime": {"night": True}, "fog": {"no": True, "yes": {"denseFog": False}}},
            "clear_night",
        ),
        (
            {"daytime": {"night": True}, "precipitation": {"yes": {"snow": {"heavySnow": True}}}},
            "snow_night",
        ),
        ({"weather": {"clear": True}}, ""),
    ],
)
def test_the_condition_in_a_meta_file(tmp_path, content, condition):
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert condition_from_meta(tmp_path / "a.json") == condition


def test_conditions_of_own_lists_are_looked_up(download, tmp_path, copy_of):
    """In the official lists, else in the meta file; what is assumed without either is said."""
    root = copy_of(download)
    (root / "splits/rain.txt").write_text(f"{NAMES[0]}\n")
    (root / "splits/snow_night.txt").write_text(f"{NAMES[1]}\n")
    (root / "splits/train_clear_night.txt").write_text(f"{NAMES[0]}\n")
    for file in ("val_clear_night.txt", "test_clear_night.txt"):
        (root / "splits" / file).write_text("x_1\n")
    (root / "labeltool_labels").mkdir()
    meta = {"daytime": {"night": True}, "weather": {"light_fog": True}}
    (root / f"labeltool_labels/{NAMES[2]}.json").write_text(json.dumps(meta))
    (tmp_path / "mine_night.txt").write_text("\n".join(NAMES[:4]))
    done = prepare(root, tmp_path / "data", split=tmp_path / "mine_night.txt")
    assert "1 frames, like " + NAMES[3] in done.stderr
    assert "they are taken for clear nights" in done.stderr
    lists = {file.stem: file.read_text().split() for file in (tmp_path / "data").glob("mine*.txt")}
    assert lists == {
        "mine_night": NAMES[:4],
        "mine_clear_night": [NAMES[0]],
        "mine_rain_night": [NAMES[0]],
        "mine_snow_night": [NAMES[1]],
        "mine_light_fog_night": [NAMES[2]],
    }


@pytest.mark.parametrize(
    ("folder", "size", "reason"),
    [
        ("cam_stereo_left_lut/cam_stereo_left_lut", (960, 512), "960x512, and its calibration is"),
        ("gated1_8bit", (640, 360), "gated1_8bit is 640x360, and its calibration is of 1280x720"),
    ],
)
def test_a_size_that_was_not_calibrated_is_left_out(
    download, tmp_path, copy_of, folder, size, reason
):
    root = copy_of(download)
    file = root / folder / f"{NAMES[0]}.png"
    with Image.open(file) as image:
        image.resize(size).save(file)
    prepare(root, tmp_path / "data", "--limit", 2)
    report = json.loads((tmp_path / "data/prepare_report.json").read_text())
    assert reason in report["left_out"][NAMES[0]]


def test_damaged_lidar_falls_back_to_the_plane(download, tmp_path, copy_of):
    root = copy_of(download)
    lidar = root / "lidar_hdl64_strongest_gated"
    (lidar / f"{NAMES[0]}.npz").write_bytes(b"")
    (lidar / f"{NAMES[1]}.npz").write_bytes(b"PK\3\4 no archive")
    np.savez(lidar / f"{NAMES[2]}.npz", np.zeros((10, 10)))
    done = prepare(root, tmp_path / "data", "--registration", "lidar", "--limit", 6)
    report = json.loads((tmp_path / "data/prepare_report.json").read_text())
    assert report["frames"]["plane, unreadable lidar"] == 3, done.stdout


def write_history(root, name, offset):
    """A raw RGB frame and three 10-bit slices, under the name of a labelled frame."""
    rng = np.random.default_rng(abs(offset))
    for folder, size, kind, suffix in (
        (f"cam_stereo_left_raw_history_{offset}", (1024, 1920), 4096, ".tiff"),
        *((f"gated{n}_10bit_history_{offset}", (720, 1280), 1024, ".png") for n in range(3)),
    ):
        (root / folder).mkdir(exist_ok=True)
        values = rng.integers(0, kind, size).astype(np.uint16)
        Image.fromarray(values).save(root / folder / f"{name}{suffix}")


def test_history_frames_of_training_recordings_alone(download, tmp_path, copy_of):
    pytest.importorskip("cv2")
    root = copy_of(download)
    for name in (NAMES[0], NAMES[2], NAMES[4]):  # of train, val and test
        write_history(root, name, -3)
    write_history(root, NAMES[1], 4)
    (root / "gated1_10bit_history_4" / f"{NAMES[1]}.png").unlink()
    done = prepare(root, tmp_path / "data", "--history")
    names = (tmp_path / "data/unlabelled_night.txt").read_text().split()
    assert names == [f"{NAMES[0]}h-3"]
    assert recording_of(names[0]) == recording_of(NAMES[0])
    assert "1 unlabelled_night" not in done.stderr
    for folder in ("images", *GATED_FOLDERS):
        with Image.open(tmp_path / "data" / folder / f"{names[0]}.png") as image:
            assert image.size == (1280, 768)
    assert not (tmp_path / f"data/gated_labels/{names[0]}.txt").exists()
    checked = run_here([str(ROOT / "check_data.py"), str(tmp_path / "data"), "--workers", "1"])
    assert "errors: 0" in checked.stdout, checked.stdout


def test_gated2depth_without_what_is_tested_on(download, prepared, tmp_path):
    """A frame that is also a test frame is found by its pixels, whatever its name."""
    source, out = tmp_path / "g2d", tmp_path / "data"
    for folder in ("rgb_left_8bit", "gated0_10bit", "gated1_10bit", "gated2_10bit"):
        (source / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("00001", "00002"):
        Image.fromarray(rng.integers(0, 255, (1024, 1920, 3), dtype=np.uint8)).save(
            source / f"rgb_left_8bit/{name}.png"
        )
        for number in range(3):
            values = rng.integers(0, 1024, (720, 1280)).astype(np.uint16)
            if name == "00002":
                with Image.open(download / "gated0_rect8" / f"{NAMES[4]}.png") as image:
                    values = np.asarray(image).astype(np.uint16) * 4
            Image.fromarray(values).save(source / f"gated{number}_10bit/{name}.png")
    prepare(download, out, "--gated2depth", source)
    assert (out / "unlabelled_night.txt").read_text() == "gated2depth-00001\n"
    report = json.loads((out / "prepare_report.json").read_text())
    assert report["near_duplicates_left_out"] == 1

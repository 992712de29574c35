"""Calibration, raw conversion, split lists, and the whole tool on a folder laid out as the official download."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY, run_script, the_error
from PIL import Image, ImageDraw

from cmkd.frames import raw_images, registration
from cmkd.simulator.cameras import rasterise
from cmkd.simulator.scene import CONDITIONS, person, sample_scene
from prepare_data import CLEAR, WEATHER, all_night, find_parts, recording
from utils import UserError

TAIL = "-1 -1 -1 -1000 -1000 -1000 -1000 0 0 0 1.0 -1000 -1000 -1000 -1000 False True -1 -1"
NAMES = [f"2018-02-0{day}_10-00-00_00{frame}00" for day in (1, 2, 3) for frame in (1, 2)]
CALIBRATION = registration.published_calibration()


def test_homography_and_pose_are_the_measured_ones():
    expected = [[0.97218, -0.010373, -261.377], [0.0061698, 1.041344, -238.994], [-7.5e-6, -3.78e-6, 1]]
    np.testing.assert_allclose(registration.plane_homography(CALIBRATION, 30), expected, rtol=2e-3, atol=1e-8)
    np.testing.assert_allclose(registration.plane_homography(CALIBRATION, 30)[:2, 2], [-261.377, -238.994], atol=1e-3)
    np.testing.assert_allclose(CALIBRATION.translation, [-0.1098, -0.0267, -0.0140], atol=5e-5)
    assert np.degrees(np.arccos((np.trace(CALIBRATION.rotation) - 1) / 2)) == pytest.approx(1.23, abs=0.005)


def test_rectifying_moves_slices_as_measured():
    where = registration.rectifying_map(CALIBRATION.gated, registration.GATED_SIZE).numpy()
    rows, columns = np.mgrid[:720, :1280]
    moved = np.hypot(where[..., 0] - columns, where[..., 1] - rows)
    assert moved.mean() == pytest.approx(5, abs=0.1)
    assert moved.max() == pytest.approx(26.6, abs=0.1)


def test_a_wall_at_the_plane_is_seen_alike_by_plane_and_depth():
    by_depth = registration.depth_map(CALIBRATION, np.full((720, 1280), 30.0))
    torch.testing.assert_close(by_depth, registration.plane_map(CALIBRATION, 30), atol=1e-2, rtol=0)


def test_warp_samples_pixel_centres():
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    rows, columns = np.mgrid[:3, :4].astype(np.float32)
    where = torch.from_numpy(np.stack([columns, rows], -1))
    np.testing.assert_array_equal(registration.warp(picture, where), picture)
    np.testing.assert_array_equal(registration.warp(picture, where + torch.tensor([0.5, 0]))[:, :3],
                                  (picture[:, :3] + 10))


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
    for name in (registration.RGB_FILE, registration.GATED_FILE, registration.TREE_FILE):
        (tmp_path / name).write_text("[]")
    (tmp_path / registration.RGB_FILE).write_text(damage)
    with pytest.raises(UserError, match="is no tree|says nothing"):
        registration.find_calibration([tmp_path])
    with pytest.raises(UserError, match="no ROS camera calibration"):
        registration.read_camera(tmp_path / registration.RGB_FILE)
    assert registration.find_calibration([tmp_path / "absent"]).source == "built in"


@pytest.mark.parametrize(("night", "code", "fraction"), [
    (False, 1024, 0.2 + 0.15 * (1024 / 65536 - 0.01) / 0.02),  # decompanded 1024
    (False, 3456, 0.98),  # 32768 = half of 65536
    (True, 2560, 0.4 + 0.4 * (4096 / 65536 - 0.01) / 0.09),  # decompanded 4096
])
def test_tone_follows_decompanding(night, code, fraction):
    assert raw_images.tone_table(night)[code] == pytest.approx(65536 * fraction, abs=1)


def test_demosaic_knows_the_order_of_the_colours():
    bayer = np.zeros((8, 12), np.uint16)
    bayer[0::2, 1::2], bayer[1::2, 0::2] = 9000, 1000  # red beside green in the first row, blue below
    bayer[0::2, 0::2] = bayer[1::2, 1::2] = 4000
    np.testing.assert_array_equal(raw_images.demosaic(bayer), np.broadcast_to([9000, 4000, 1000], (8, 12, 3)))
    ramp = np.broadcast_to(np.arange(12, dtype=np.uint16) * 100, (8, 12))
    np.testing.assert_array_equal(raw_images.demosaic(ramp)[1:-1, 1:-1], np.stack([ramp] * 3, -1)[1:-1, 1:-1])


def test_developed_raw_is_a_picture_or_says_what_is_missing(monkeypatch):
    raw = np.full((64, 64), 900, np.uint16)
    raw[:, 32:] = 1800
    picture = raw_images.develop(raw, night=False)
    assert picture.shape == (64, 64, 3)
    assert picture[:, 40:].mean() > picture[:, :24].mean() + 20
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(UserError, match="opencv-python-headless"):
        raw_images.develop(raw, night=False)


def test_all_night_puts_no_recording_in_two_splits():
    official = {one: [f"{split}{drive}_{frame}" for drive in range(3) for frame in range(2)]
                for split, one in CLEAR.items()}
    shared = [f"fog{drive}_{frame}" for drive in range(300) for frame in range(2)]
    official |= {WEATHER[0]: [*shared, "val1_7"], WEATHER[1]: ["test2_8"], WEATHER[2]: [f"{name}9" for name in shared]}
    splits = all_night(official)
    homes = {}
    for split, frames in splits.items():
        for name in frames:
            assert homes.setdefault(recording(name), split) == split
    assert sorted(name for frames in splits.values() for name in frames) == sorted(
        name for frames in official.values() for name in frames)
    assert homes["val1"] == "val"
    assert homes["test2"] == "test"
    drives = [homes[f"fog{drive}"] for drive in range(300)]
    for split, share in (("train", 0.60), ("val", 0.15), ("test", 0.25)):
        assert drives.count(split) / 300 == pytest.approx(share, abs=0.08)


# ------------------------------------------------------------------------------- the whole tool


def draw(size, focal_matrix, parts, colours, background):
    """Flat-coloured polygons of 3D corners, far to near, through a pinhole camera."""
    image = Image.new("RGB", size, background)
    canvas = ImageDraw.Draw(image)
    for corners, colour in zip(parts, colours, strict=True):
        pixels = corners @ focal_matrix.T
        canvas.polygon([tuple(pixel) for pixel in pixels[:, :2] / pixels[:, 2:]], fill=colour)
    return image


@pytest.fixture(scope="module")
def download(tmp_path_factory):
    """A folder laid out as the official one, with folders doubled by unzipping: a simulated street and one person 8 m
    ahead, magenta in RGB and bright in the slices, drawn through the published cameras; lidar at every third pixel."""
    root = tmp_path_factory.mktemp("official") / "SeeingThroughFog"
    folders = {name: root / name for name in ("cam_stereo_left_lut/cam_stereo_left_lut", "gated0_rect8", "gated1_8bit",
                                              "gated2_rect", "gt_labels/gated_labels_TMP", "splits",
                                              "lidar_hdl64_strongest_gated")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        rng = np.random.default_rng(number)
        scene = sample_scene(rng, CONDITIONS["clear_day"])
        walker = person(rng, 0.3, 8.0)
        scene = replace(scene, things=[*(thing for thing in scene.things
                                         if thing.kind != "Pedestrian" and thing.distance > 9), walker])
        seen = [np.asarray(corners) * [1, -1, 1] + [0, scene.camera_height, 0]
                for thing in scene.things for corners, _ in thing.parts]
        matter = [(surface, thing is walker) for thing in scene.things for _, surface in thing.parts]
        as_rgb = [(corners - CALIBRATION.translation) @ CALIBRATION.rotation for corners in seen]
        draw((1920, 1024), CALIBRATION.rgb.rectified, as_rgb,
             [(255, 0, 255) if own else (0, round(150 * min(surface.rgb[1], 1)) + 30, 0) for surface, own in matter],
             (0, 120, 0)).save(folders["cam_stereo_left_lut/cam_stereo_left_lut"] / f"{name}.png")
        infrared = draw((1280, 720), CALIBRATION.gated.rectified, seen,
                        [(250,) * 3 if own else (round(100 * min(surface.nir, 1)),) * 3 for surface, own in matter],
                        (0, 0, 0)).convert("L")
        infrared.save(folders["gated0_rect8"] / f"{name}.png")
        infrared.save(folders["gated1_8bit"] / f"{name}.png")
        Image.fromarray(np.asarray(infrared).astype(np.uint16) * 4).save(folders["gated2_rect"] / f"{name}.png")
        depth = rasterise(scene, (1280, 720), np.zeros(2, int)).depth
        lidar = np.zeros((720, 1280), np.float32)
        lidar[::3, ::3] = depth[::3, ::3]
        np.savez(folders["lidar_hdl64_strongest_gated"] / f"{name}.npz", lidar)
        x0, y0, x1, y1 = box_of(np.asarray(infrared) == 250)
        (folders["gt_labels/gated_labels_TMP"] / f"{name}.txt").write_text(
            f"Pedestrian 0 0 -1 {x0} {y0} {x1} {y1} {TAIL}\nDontCare 0 0 -1 0 0 0 0 {TAIL}\n"
            f"traffic sign 0 0 -1 1 1 9 9 {TAIL}\n")
    for index, one in enumerate(CLEAR.values()):
        (folders["splits"] / f"{one}.txt").write_text("".join(f"{name[:19]},{name[20:]}\n"
                                                              for name in NAMES[2 * index:2 * index + 2]))
    for weather in WEATHER:
        (folders["splits"] / f"{weather}.txt").write_text(f"{NAMES[0][:19]},99999\n")
    return root


def box_of(mask):
    """x0, y0, x1, y1 of the pixels that are set."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def prepare(download, out, *more, split="clear_night", expect=0):
    return run_script("prepare_data.py", "--source", download, "--out", out, "--split", split, "--workers", 1, *more,
                      expect=expect)


def person_in_rgb(out, name):
    """Where the prepared RGB picture shows the magenta person."""
    rgb = np.asarray(Image.open(out / "images" / f"{name}.png"))
    return (rgb[..., 0] > 130) & (rgb[..., 2] > 130)


def covered_share(out, name):
    """The share of the person in slice 0 that is the person in RGB too."""
    return person_in_rgb(out, name)[np.asarray(Image.open(out / "gated0" / f"{name}.png")) > 180].mean()


def errors_of_boxes(out, name):
    """How far the box drawn by hand is from the person in RGB and in each slice, largest side, in prepared pixels."""
    columns = (out / "gated_labels" / f"{name}.txt").read_text().splitlines()[0].split()
    box = np.array([float(value) for value in columns[4:8]]) * [1, 768 / 720, 1, 768 / 720]
    masks = [person_in_rgb(out, name)]
    for number in range(3):
        picture = Image.open(out / f"gated{number}" / f"{name}.png")
        assert picture.mode == "L"
        assert picture.size == (1280, 768)
        masks.append(np.asarray(picture) > 180)
    return [np.abs(np.array(box_of(mask)) - box).max() for mask in masks]


def test_boxes_fall_on_the_people_and_training_runs(download, tmp_path):
    done = prepare(download, tmp_path / "plane")
    assert "gated1_8bit" in done.stdout
    assert "calibration: built in" in done.stdout
    prepare(download, tmp_path / "lidar", "--registration", "lidar")
    prepare(download, tmp_path / "near", "--plane-distance", 8)
    for name in NAMES:
        rgb, *slices = errors_of_boxes(tmp_path / "plane", name)
        assert max(slices) <= 2
        assert 15 < rgb < 32  # parallax of the plane at 30 m: 262.5 |1/8 - 1/30| = 24 px
        assert errors_of_boxes(tmp_path / "near", name)[0] <= 3
        # By depth, what stands behind the person's edge may repeat the person, so the box is not the measure here.
        assert covered_share(tmp_path / "lidar", name) > 0.95 > 0.85 > covered_share(tmp_path / "plane", name)
    report = json.loads((tmp_path / "plane/prepare_report.json").read_text())
    assert report["lists"] == {"train_night": 2, "val_night": 2, "test_night": 2, "train_clear_night": 2,
                               "val_clear_night": 2, "test_clear_night": 2, "vis_night": 2}
    assert report["labels"] == {"DontCare": 6, "boxes without area, skipped": 6, "traffic lines, skipped": 6}
    assert ((tmp_path / "plane/gated_labels" / f"{NAMES[0]}.txt").read_bytes()
            == (download / "gt_labels/gated_labels_TMP" / f"{NAMES[0]}.txt").read_bytes())
    run_script("train_teacher.py", "--data", tmp_path / "plane", "--out", tmp_path / "weights", "--run-dir",
               tmp_path / "run", "--max-iterations", 2, *TINY)


def test_a_second_run_does_nothing_and_other_settings_are_refused(download, tmp_path):
    out = tmp_path / "data"
    prepare(download, out, "--limit", 2)
    assert len(list((out / "images").iterdir())) == 2
    before = {file: file.stat().st_mtime_ns for file in (out / "images").iterdir()}
    (out / "images/.x.png.123").write_text("half a file")
    done = prepare(download, out)
    assert "2 there already, 4 plane" in done.stdout
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert len(list((out / "images").iterdir())) == 6
    assert "plane_distance 30.0, not 25.0" in the_error(prepare(download, out, "--plane-distance", 25, expect=2))
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    assert "holds something else" in the_error(prepare(download, other, expect=2))
    assert [file.name for file in other.iterdir()] == ["thesis.tex"]
    (other / "thesis.tex").rename(other / "prepare_report.json")
    assert "prepare_report.json is not a report of ours" in the_error(prepare(download, other, expect=2))
    assert (other / "prepare_report.json").read_text() == "mine"


def test_incomplete_frames_are_left_out_with_the_reason(download, tmp_path, copy_of):
    root = copy_of(download)
    (root / "gated1_8bit" / f"{NAMES[0]}.png").unlink()
    labels = root / "gt_labels/gated_labels_TMP"
    (labels / f"{NAMES[1]}.txt").write_text("Pedestrian 0 0 -1 9 9 1 1 " + TAIL)
    picture = root / "cam_stereo_left_lut/cam_stereo_left_lut" / f"{NAMES[2]}.png"
    picture.write_bytes(picture.read_bytes()[:-400])
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


def test_lidar_gives_way_to_the_plane_in_fog_and_where_it_is_missing(download, tmp_path, copy_of):
    root = copy_of(download)
    (root / "lidar_hdl64_strongest_gated" / f"{NAMES[0]}.npz").unlink()
    (root / "splits/dense_fog_night.txt").write_text(f"{NAMES[5]}\n")
    (root / "splits/test_clear_night.txt").write_text(f"{NAMES[4]}\n")
    prepare(root, tmp_path / "data", "--registration", "lidar", split="all_night")
    report = json.loads((tmp_path / "data/prepare_report.json").read_text())
    assert report["frames"] == {"there already": 0, "plane, no lidar": 1, "lidar": 4, "plane, in fog": 1}
    assert (tmp_path / "data/test_dense_fog_night.txt").read_text() == f"{NAMES[5]}\n"


def test_a_missing_part_is_named(download, tmp_path, copy_of):
    root = copy_of(download)
    (root / "gated2_rect").rename(root / "elsewhere")
    message = the_error(prepare(root, tmp_path / "data", expect=2))
    assert "gated2 (gated2_rect8 or gated2_8bit or gated2_rect or gated2_raw)" in message
    assert not (tmp_path / "data").exists()


def test_what_is_found_and_not_used_is_said(tmp_path, capsys):
    for file in ("cam_stereo_left/a.tiff", "cam_stereo_left_lut/a.png", "gated0_rect8/a.png", "gated1_rect/a.png",
                 "gated1_raw/a.tiff", "gated2_8bit/gated2_8bit/a.png", "gt_labels/gated_labels_TMPv2/a.txt"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_bytes(b"")
    parts = find_parts(tmp_path, lidar_needed=False)
    assert {part: str(folder.relative_to(tmp_path)) for part, folder in parts.items()} == {
        "rgb": "cam_stereo_left_lut", "gated0": "gated0_rect8", "gated1": "gated1_rect",
        "gated2": "gated2_8bit/gated2_8bit", "labels": "gt_labels/gated_labels_TMPv2"}
    out = capsys.readouterr().out
    assert f"rgb: {tmp_path / 'cam_stereo_left_lut'} (not used: {tmp_path / 'cam_stereo_left'})" in out
    assert f"gated1: {tmp_path / 'gated1_rect'} (not used: {tmp_path / 'gated1_raw'})" in out
    assert "meta: not found, not needed" in out

"""The simulator by its command line and its cameras: files, lists, labels, physics, the real night, refusals."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, run_script, the_error
from PIL import Image

from cmkd.simulator.cameras import backscatter, gated_camera, range_profiles, rasterise, rgb_camera, tone
from cmkd.simulator.scene import CONDITIONS, Scene, Thing, person, rectangle, sample_scene
from make_synthetic import (
    LIGHTS,
    VISIBLE_CONTRAST,
    Window,
    contrast,
    deal,
    label_units,
    plan,
    render,
    visible_by_light,
    window,
)

COUNTS = (24, 8, 16)
MIX = ("clear_day=0.2", "clear_night=0.3", "light_fog_night=0.1", "dense_fog_night=0.1", "snow_night=0.1", "dusk=0.2")
SMALL = ("--frames", *COUNTS, "--size", "213x128", "--seed", 3, "--mix", *MIX)
NIGHT = {"clear_night": 1.0}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("synthetic") / "data"
    run_script("make_synthetic.py", "--out", out, *SMALL, "--workers", 1, "--preview", out.parent / "preview.png")
    return out


def names(data, name):
    return (data / f"{name}.txt").read_text().split()


def labels(data):
    return [(path.stem, line.split()) for path in sorted((data / "gated_labels").glob("*.txt"))
            for line in path.read_text().splitlines()]


def people(data):
    return [columns for _, columns in labels(data) if columns[0].startswith("Pedestrian")]


# ------------------------------------------------------------------------------------------- files and lists


def test_layout(data):
    everything = sorted(path.stem for path in (data / "gated_labels").iterdir())
    assert len(everything) == sum(COUNTS)
    for folder, mode in (("images", "RGB"), ("gated0", "L"), ("gated1", "L"), ("gated2", "L")):
        assert sorted(path.stem for path in (data / folder).iterdir()) == everything
        with Image.open(data / folder / f"{everything[0]}.png") as image:
            assert (image.size, image.mode) == ((213, 128), mode)


def test_lists_by_split_and_condition(data):
    for split, count in zip(("train", "val", "test"), COUNTS, strict=True):
        by_condition = {name: names(data, f"{split}_{name}") for name in CONDITIONS
                        if (data / f"{split}_{name}.txt").exists()}
        assert sum(map(len, by_condition.values())) == count
        assert all(frame.startswith(name) for name, frames in by_condition.items() for frame in frames)
        by_night = [frame for name, frames in by_condition.items() if name != "clear_day" for frame in frames]
        assert sorted(names(data, f"{split}_night")) == sorted(by_night)
    assert len(names(data, "train_clear_day")) == 4
    night = set(names(data, "test_night"))
    hidden = {name for name, columns in labels(data)
              if columns[0].startswith("Pedestrian") and columns[23:25] == ["False", "True"]}
    assert 0 < len(names(data, "vis_night")) <= 12
    assert set(names(data, "vis_night")) <= night & hidden


def test_no_recording_stands_in_two_lists(data):
    recordings = [{name.rpartition("_")[0] for name in names(data, f"{split}_{kind}")}
                  for split in ("train", "val", "test") for kind in ("night", "clear_day")
                  if (data / f"{split}_{kind}.txt").exists()]
    assert sum(map(len, recordings)) == len(set.union(*recordings)) == sum(COUNTS) // 4


def test_conditions_are_dealt_in_their_shares():
    dealt = deal(20, {"clear_night": 0.5, "dusk": 0.33, "snow_night": 0.17})
    assert [dealt.count(name) for name in ("clear_night", "dusk", "snow_night")] == [10, 7, 3]
    frames = plan([400, 0, 0], {"clear_night": 0.25, "dusk": 0.75}, 0)
    assert sum(frame.condition == "dusk" for frame in frames) == 300
    assert sum(frame.condition == "dusk" for frame in frames[:200]) < 200  # shuffled, not one after the other
    assert len({frame.recording for frame in frames}) == 100
    assert len({frame.recording for frame in plan([40, 0, 0], {"dusk": 1.0}, 0, 1)}) == 40


def test_a_recording_is_one_place_that_moves_on():
    for recording in range(4):
        first, later = (sample_scene(np.random.default_rng(recording), CONDITIONS["clear_night"], time)
                        for time in (0.0, 0.8))
        assert (first.ambient, first.speed, first.camera_height) == (later.ambient, later.speed, later.camera_height)
        static = [thing.distance for thing in first.things
                  if 20 < thing.distance < 390 and not thing.kind and thing.velocity == (0.0, 0.0)]
        there = np.array([thing.distance for thing in later.things])
        assert len(static) > 2
        for distance in static:
            assert np.abs(there - (distance - 0.8 * first.speed)).min() < 1e-6
        movers = [[thing.position[0] for thing in scene.things if thing.velocity[0]] for scene in (first, later)]
        assert not set(movers[0]) & set(movers[1])


def test_same_seed_same_bytes_whatever_the_workers(data, tmp_path):
    run_script("make_synthetic.py", "--out", tmp_path / "again", *SMALL, "--workers", 2)
    assert contents(data) == contents(tmp_path / "again")


def test_killed_and_started_again_it_ends_the_same(data, tmp_path):
    out = tmp_path / "data"
    command = [sys.executable, ROOT / "make_synthetic.py", "--out", out, *SMALL, "--workers", 1]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
    while len(list((out / "gated_labels").glob("*.txt"))) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in (out / "gated_labels").glob("*.txt")}
    assert len(done) < sum(COUNTS)
    assert not (out / "train_night.txt").exists()
    (out / "images" / ".half.png.1.tmp").write_bytes(b"half a frame")
    run_script("make_synthetic.py", "--out", out, *SMALL, "--workers", 1)
    assert contents(data) == contents(out)
    assert all(path.stat().st_mtime_ns == before for path, before in done.items())


def test_preview(data):
    picture = np.asarray(Image.open(data.parent / "preview.png"))
    assert picture.shape[1] > 4 * 640
    assert picture.shape[0] > 384 * len({name.rpartition("_")[0].rpartition("_")[0] for name, _ in labels(data)})
    for colour in ((0, 158, 115), (230, 159, 0)):  # somebody visible in both, somebody in gated only
        assert (picture == colour).all(axis=2).sum() > 500


@pytest.mark.parametrize("size", ["9x7", "500x400"])
def test_any_size(tmp_path, size):
    run_script("make_synthetic.py", "--out", tmp_path / size, "--frames", 2, 0, 0, "--size", size, "--workers", 1)
    assert len(names(tmp_path / size, "train_night")) == 2
    assert not (tmp_path / size / "test_night.txt").exists()


# ------------------------------------------------------------------------------------------- labels


def test_labels(data):
    found = labels(data)
    kinds = {columns[0] for _, columns in found}
    assert {"Pedestrian", "PassengerCar"} <= kinds
    assert kinds <= {"Pedestrian", "Pedestrian_is_group", "PassengerCar", "LargeVehicle", "RidableVehicle", "DontCare"}
    for _, columns in found:
        assert len(columns) == 27
        assert columns[2] in {"0", "1", "2"}
        assert set(columns[23:25]) <= {"True", "False"}
        x0, y0, x1, y1 = map(float, columns[4:8])
        assert 0 <= x0 < x1 <= 1280
        assert 0 <= y0 < y1 <= 720
        assert 2 < float(columns[13]) < 130
        assert (columns[8] == "-1.00") == (columns[11] == "-1000.00") == columns[0].endswith("_is_group")


def test_every_kind_of_thing_occurs():
    scenes = [sample_scene(np.random.default_rng(seed), CONDITIONS["clear_night"]) for seed in range(60)]
    kinds = {thing.kind for scene in scenes for thing in scene.things}
    assert {"Pedestrian", "RidableVehicle", "PassengerCar", "LargeVehicle"} <= kinds
    walkers = [thing for scene in scenes for thing in scene.things if thing.kind == "Pedestrian"]
    assert any(thing.group == 0 for thing in walkers)
    assert {thing.velocity == (0.0, 0.0) for thing in walkers} == {True, False}
    assert all(0.6 < thing.dimensions[0] <= 2.0 for thing in walkers)
    assert min(thing.distance for thing in walkers) < 10
    assert max(thing.distance for thing in walkers) > 60


def test_boxes_are_tight_and_occlusion_is_measured():
    """One person at 20 m, then half hidden behind a wall: the box stays, the hidden share grows."""
    walker = person(np.random.default_rng(1), 0.0, 20.0, pose="standing")
    frame = plan([1, 0, 0], NIGHT, 0)[0]
    shape = (384, 640)
    boxes, hidden = [], []
    for wall in ([], [Thing(10.0, [(rectangle(-3, 0, 0.0, 3, 10.0), walker.parts[0][1])])]):
        view = render(frame, 0, shape[::-1], False)
        scene = view.scene
        scene.things, scene.camera_height = [walker, *wall], 1.5
        raster = rasterise(scene, shape[::-1], np.zeros(2, int))
        [unit] = label_units(type(view)(scene, raster, raster, view.reflected, view.emitted, view.rng))
        boxes.append(unit.box)
        hidden.append(unit.hidden)
        if not wall:
            rows, columns = np.nonzero(raster.owner[raster.part] == 0)
            assert unit.box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert boxes[0].tolist() == boxes[1].tolist()
    assert hidden[0] < 0.02
    assert 0.2 < hidden[1] < 0.8
    height_px = walker.dimensions[0] * 2322.4 / 20 * shape[0] / 720
    assert boxes[0][3] - boxes[0][1] == pytest.approx(height_px, abs=2)


def test_people_stand_out_in_the_gated_slices(data):
    brighter = []
    for name, columns in labels(data):
        if not columns[0].startswith("Pedestrian") or name.startswith("dense_fog"):
            continue
        view = np.max([np.asarray(Image.open(data / f"gated{index}" / f"{name}.png"), float) for index in range(3)], 0)
        box = np.array(columns[4:8], float).reshape(2, 2) * [213 / 1280, 128 / 720]
        x0, y0, x1, y1 = box.round().astype(int).ravel()
        around = view[max(y0 - 4, 0):y1 + 4, max(x0 - 4, 0):x1 + 4]
        inside = view[y0:y1, x0:x1]
        rest = (around.sum() - inside.sum()) / max(around.size - inside.size, 1)
        brighter.append(inside.mean() > rest + 3)
    assert len(brighter) > 20
    assert np.mean(brighter) > 0.75


# ------------------------------------------------------------------------------------------- visibility


def test_visible_is_contrast_over_noise():
    """Flat pictures by hand: a body one grey level apart is not visible, one many levels apart is; noise hides it."""
    body = np.zeros((32, 16), bool)
    body[8:24, 6:10] = True
    place = Window(slice(None), slice(None), body, np.zeros_like(body))

    def seen(step, noise):
        picture = np.random.default_rng(0).normal(40, noise, (32, 16, 3)) + step * body[..., None]
        return contrast(picture.clip(0, 255).astype(np.uint8), place)

    assert seen(0, 0) == 0
    assert seen(4, 0) == pytest.approx(1, abs=0.3)  # a step of FAINTEST
    assert seen(40, 0) > 5
    assert seen(40, 3) > VISIBLE_CONTRAST
    assert seen(8, 40) < VISIBLE_CONTRAST
    assert seen(0, 20) < VISIBLE_CONTRAST
    assert seen(-30, 3) > VISIBLE_CONTRAST  # a dark shape against the light is visible too


def test_nobody_is_visible_where_nobody_is():
    values = []
    for frame in plan([120, 0, 0], {"clear_night": 0.5, "dusk": 0.5}, 5)[::4]:
        view = render(frame, 5, (426, 256), True)
        rgb = rgb_camera(view.scene, view.reflected + view.emitted, view.rng)
        labelled = np.array([bool(thing.kind) for thing in view.scene.things] + [False])
        owner = view.rgb_raster.owner[view.rgb_raster.part][::2, ::2]
        for unit in label_units(view):
            place = window(unit, view.scene, view.rgb_raster)
            width = place.body.shape[1]
            for left in range(0, 426 - width, 60):
                elsewhere = Window(place.rows, slice(left, left + width), place.body, place.others)
                if not labelled[owner[place.rows, elsewhere.columns]].any():
                    values.append(contrast(rgb, elsewhere))
    assert len(values) > 100
    assert np.mean(np.array(values) > VISIBLE_CONTRAST) < 0.1


def test_more_light_shows_more_people():
    frames = plan([96, 0, 0], NIGHT, 2)[::4]
    visible = np.concatenate([visible_by_light(frame, 2, (426, 256), True) for frame in frames]).mean(0)
    dark, bright = visible[0], visible[LIGHTS.searchsorted(16)]
    assert dark < 0.2
    assert bright > dark + 0.5


def test_visible_share_is_reached(tmp_path):
    reached = []
    for share in (0.3, 0.75):
        out = tmp_path / str(share)
        done = run_script("make_synthetic.py", "--out", out, "--frames", 120, 0, 0, "--size", "160x96",
                          "--visible-share", share, "--workers", 2)
        measured = json.loads((out / "synthetic.json").read_text())["measured"]["night"]
        flags = [columns[23] == "True" for columns in people(out)]
        assert measured["people"] == len(flags)
        assert measured["visible_rgb"] == pytest.approx(np.mean(flags), abs=1e-4)
        assert f"{measured['visible_rgb']:.2f}" in done.stdout.splitlines()[-1]
        reached.append(measured["visible_rgb"])
    assert reached == pytest.approx([0.3, 0.75], abs=0.1)


def test_visible_flags_differ(data):
    assert {columns[23] for columns in people(data)} == {"True", "False"}
    assert np.mean([columns[24] == "True" for columns in people(data)]) > 0.85


# ------------------------------------------------------------------------------------------- physics


@pytest.mark.parametrize(("distance", "expected"), [
    (5, (1574, 0, 0)), (10, (1376, 0, 0)), (20, (835, 289, 0)), (30, (590, 768, 0)), (50, (173, 736, 0)),
    (80, (0, 377, 270)), (100, (0, 132, 322))])
def test_range_profiles(distance, expected):
    ranges, profiles = range_profiles()
    assert [np.interp(distance, ranges, profile) for profile in profiles] == pytest.approx(expected, rel=0.12, abs=8)


@pytest.mark.parametrize(("visibility", "expected"), [(50, (20, 1.5, 0)), (100, (20, 5, 0.1)), (200, (15, 8, 0.9))])
def test_backscatter_of_fog(visibility, expected):
    whole = backscatter(np.log(20) / visibility)[:, -1]
    assert whole == pytest.approx(expected, rel=0.1, abs=0.1)


def wall_at(distance, extinction, ambient=0.0, nir=0.5, retro=0.0):
    """A scene of nothing but a wall that fills the view."""
    matter = sample_scene(np.random.default_rng(0), CONDITIONS["clear_night"]).things[0].parts[0][1]
    matter = type(matter)((0.5, 0.5, 0.5), nir, texture=0.0, retro=retro)
    wall = Thing(distance, [(rectangle(-500, -500, 500, 500, distance), matter)])
    return Scene([wall], CONDITIONS["clear_night"], 1.5, 0.0, extinction, ambient, 1e-3, 30.0, -0.01, 1e-4, 0.0)


def slices_of(scene):
    raster = rasterise(scene, (640, 384), np.zeros(2, int))
    middle = (slice(135, 145), slice(330, 340))  # the optical axis
    return [4.0 * picture[middle].mean() + 1.5
            for picture in gated_camera(scene, raster, np.random.default_rng(0))]


def test_gated_signal_by_hand():
    """dark + stray + albedo S(R) exp(-2 alpha R) + backscatter up to R, at 50 m in fog of 150 m visibility."""
    alpha = np.log(20) / 150
    ranges, profiles = range_profiles()
    expected = [dark + 6 + 0.5 * np.interp(50, ranges, profile) * np.exp(-2 * alpha * 50) + np.interp(50, ranges, back)
                for dark, profile, back in zip((87, 70, 87), profiles, backscatter(alpha), strict=True)]
    assert slices_of(wall_at(50.0, alpha)) == pytest.approx(expected, abs=3)


def test_retroreflectors_saturate():
    assert slices_of(wall_at(30.0, 0.0, retro=10.0))[:2] == [1021.5, 1021.5]


def test_rgb_in_fog_fades_to_airlight():
    """J exp(-alpha d) + A (1 - exp(-alpha d)) under ambient light alone."""
    from cmkd.simulator.cameras import rgb_light
    values = {}
    for alpha in (0.0, 0.02):
        scene = wall_at(60.0, alpha, ambient=0.5)
        scene.headlight = 0.0
        raster = rasterise(scene, (640, 384), np.zeros(2, int))
        values[alpha] = rgb_light(scene, raster)[0][1, 135:145, 330:340].mean()
    fade = np.exp(-0.02 * 60)
    assert values[0.02] == pytest.approx(values[0.0] * fade + 0.3 * 0.5 * (1 - fade), rel=0.02)


def test_parallax_is_that_of_the_warped_camera():
    """f * 0.110 m * (1 / Z - 1 / 30 m) pixels sideways, nothing at 30 m."""
    for distance in (10.0, 30.0, 60.0):
        scene = wall_at(distance, 0.0)
        scene.things[0].parts[0] = (rectangle(-0.5, 1, 0.5, 2, distance), scene.things[0].parts[0][1])
        gated, rgb = (rasterise(scene, (1280, 768), np.zeros(2, int), as_rgb).outlines[0][0]
                      for as_rgb in (False, True))
        assert (rgb - gated)[:, 0] == pytest.approx(2322.4 * 0.110 * (1 / distance - 1 / 30), abs=0.1)


def test_tone_curve_by_hand():
    from cmkd.simulator.cameras import NIGHT_TONE
    light = np.array([[0.0, 0.0025, 0.005, 0.01, 0.1, 1.0]], np.float32)
    assert tone(light, NIGHT_TONE)[0] == pytest.approx([0, 25.5, 63.75, 102, 204, 255], abs=1.5)


def test_a_clear_night_measures_like_the_real_one():
    """Against the official night frame's figures (docs/simulator.md), each within the factor or difference stated."""
    slices, pictures, ratio = [], [], np.zeros((3, 2))
    for frame in plan([32, 0, 0], NIGHT, 7)[::4]:
        view = render(frame, 7, (1280, 768), True)
        pictures.append(rgb_camera(view.scene, view.reflected + view.emitted, view.rng).mean(2)[::4, ::4])
        gated = gated_camera(view.scene, view.gated_raster, view.rng)
        slices.append([4.0 * picture[::4, ::4] + 1.5 for picture in gated])
        distance = view.gated_raster.distance[::4, ::4]
        for row, (near, far) in enumerate(((16, 20), (20, 25), (25, 30))):
            there = (distance >= near) & (distance < far) & (np.max(slices[-1][:2], 0) < 1020)
            ratio[row] += [(picture[there] - dark).sum() for picture, dark in zip(slices[-1], (93, 76), strict=False)]
    slices = np.array(slices)
    assert np.median(slices, axis=(0, 2, 3)) == pytest.approx([96, 75, 91], abs=15)  # background, DN
    saturated = (slices > 1020).mean(axis=(0, 2, 3))
    assert saturated[0] == pytest.approx(0.0065, rel=0.8)  # at most 5 times apart
    assert saturated[1] == pytest.approx(0.0114, rel=0.8)
    assert saturated[0] > 5 * saturated[2] > 0
    assert ratio[:, 1] / ratio[:, 0] == pytest.approx([0.27, 0.79, 1.5], rel=0.5)  # slice 1 / slice 0
    assert np.percentile(pictures, [50, 95, 99]) == pytest.approx([16, 49, 75], rel=0.4)  # RGB grey levels


def test_gated_noise_is_the_sensors():
    quiet = wall_at(250.0, 0.0, nir=0.0)
    pictures = gated_camera(quiet, rasterise(quiet, (640, 384), np.zeros(2, int)), np.random.default_rng(0))
    assert [4 * picture.std() for picture in pictures] == pytest.approx(3 * [(2.5**2 + 4**2 / 12) ** 0.5], rel=0.1)
    assert abs(np.corrcoef(pictures[0].ravel(), pictures[1].ravel())[0, 1]) < 0.02


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(("arguments", "message"), [
    (["--size", "1280"], "WIDTHxHEIGHT"), (["--size", "0x768"], "WIDTHxHEIGHT"), (["--size", "-3x5"], "--size"),
    (["--size", "axb"], "WIDTHxHEIGHT"), (["--frames", "0", "0", "0"], "at least 1 frame"),
    (["--frames", "1", "-1", "1"], "no negative count"), (["--frames", "a", "1", "1"], "invalid int value"),
    (["--frames", "1"], "expected 3 arguments"), (["--workers", "0"], "--workers"), (["--seed", "-1"], "--seed"),
    (["--frames-per-recording", "0"], "at least 1"),
    (["--mix", "fog=1"], "'fog' is no condition: choose from clear_day"),
    (["--mix", "dusk=0.5", "clear_night=0.4"], "the shares sum to 0.9, not 1"),
    (["--mix", "dusk=0.5", "dusk=0.5"], "twice"), (["--mix", "dusk=x"], "with a share from 0 to 1"),
    (["--mix", "dusk=nan"], "with a share from 0 to 1"), (["--visible-share", "1.2"], "--visible-share"),
    (["--preview", "sheet.gif"], "must end in .png or .jpg")])
def test_bad_input_is_refused_in_one_line(arguments, message, tmp_path):
    done = run_script("make_synthetic.py", "--out", tmp_path / "data", *arguments, expect=2)
    assert message in the_error(done)
    assert done.stdout == ""
    assert not (tmp_path / "data").exists()


def test_other_data_is_left_alone(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("keep")
    for out in (tmp_path / "data", tmp_path / "data" / "mine.txt"):
        done = run_script("make_synthetic.py", "--out", out, "--frames", 1, 0, 0, "--size", "64x40", expect=2)
        assert "holds something else" in the_error(done)
    assert contents(tmp_path / "data") == {"mine.txt": b"keep"}


def test_other_parameters_are_refused(data):
    before = contents(data)
    done = run_script("make_synthetic.py", "--out", data, *SMALL, "--seed", 4, expect=2)
    assert "was made with seed 3, not 4" in the_error(done)
    assert contents(data) == before


def test_finished_data_is_left_as_it_is(data):
    before = {path: path.stat().st_mtime_ns for folder in ("images", "gated_labels")
              for path in (data / folder).iterdir()}
    run_script("make_synthetic.py", "--out", data, *SMALL)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())

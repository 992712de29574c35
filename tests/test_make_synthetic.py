"""The simulator: files, lists, labels, visibility, physics, the real night, and refusals."""

import json
import subprocess
import sys
from unittest.mock import patch

import numpy as np
import pytest
from conftest import ROOT, run_here, run_script, the_error
from PIL import Image

from cmkd.frames.annotations import read_labels, to_pixels
from cmkd.frames.layout import IMAGE_FOLDERS, label_file
from cmkd.frames.tone import NIGHT_CURVE, tone
from cmkd.simulator.animals import HOUSE_FRONTS, RURAL_PLACES, SPECIES, add_animals
from cmkd.simulator.brightness import BRIGHTNESSES, visible_by_brightness
from cmkd.simulator.cameras import backscatter, gated_camera, range_profiles, rgb_camera, rgb_light
from cmkd.simulator.hard_slices import moved_by
from cmkd.simulator.labels import (
    VISIBLE_CONTRAST,
    Surroundings,
    contrast,
    is_visible,
    labelled_objects,
    surroundings_of,
)
from cmkd.simulator.people import person
from cmkd.simulator.raster import rasterise
from cmkd.simulator.rendering import View, deal_conditions, plan_frames, render
from cmkd.simulator.scene import CONDITIONS, Scene, sample_scene
from cmkd.simulator.shapes import Surface, Thing, rectangle
from make_synthetic import DEFAULT_ANIMALS

COUNTS = (24, 8, 16)
SIZE = (161, 96)
ALL_CONDITIONS = (
    "clear_day=0.2",
    "clear_night=0.3",
    "light_fog_night=0.1",
    "dense_fog_night=0.1",
    "snow_night=0.1",
    "dusk=0.2",
)
SAME_PLACES = ("--frames", *COUNTS, "--size", "161x96", "--seed", 3, "--animals", 0)
SAME_PLACES += ("--mix", *ALL_CONDITIONS)
FEW = ("--frames", 6, 2, 4, "--size", "96x64", "--seed", 3, "--frames-per-recording", 2)
FEW += ("--animals", 0)
NIGHT = {"clear_night": 1.0}
NO_OFFSET = np.zeros(2, int)


def simulate(out, *arguments, expect=0):
    """Run the command in this process, with one worker."""
    options = ["--workers", 1, *arguments]
    command = [str(ROOT / "make_synthetic.py"), "--out", str(out), *map(str, options)]
    done = run_here(command)
    assert done.returncode == expect, f"{done.stdout}\n{done.stderr}"
    return done


def contents(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """48 frames of all conditions, and a preview beside them."""
    out = tmp_path_factory.mktemp("synthetic") / "data"
    simulate(out, *SAME_PLACES, "--preview", out.parent / "preview.png")
    return out


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """12 tiny frames."""
    out = tmp_path_factory.mktemp("few") / "data"
    simulate(out, *FEW)
    return out


def names(data, list_name):
    return (data / f"{list_name}.txt").read_text().split()


def lines(data):
    """(frame, columns) of every label."""
    return [
        (path.stem, line.split())
        for path in sorted((data / "gated_labels").glob("*.txt"))
        for line in path.read_text().splitlines()
    ]


def people(data):
    return [columns for _, columns in lines(data) if columns[0].startswith("Pedestrian")]


# ----------------------------------------------------------------------------- files and lists


def test_layout(data):
    everything = sorted(path.stem for path in (data / "gated_labels").iterdir())
    assert len(everything) == sum(COUNTS)
    for folder, mode in (("images", "RGB"), ("gated0", "L"), ("gated1", "L"), ("gated2", "L")):
        assert sorted(path.stem for path in (data / folder).iterdir()) == everything
        with Image.open(data / folder / f"{everything[0]}.png") as image:
            assert (image.size, image.mode) == (SIZE, mode)


def test_it_starts_without_torch():
    code = "import sys, make_synthetic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_lists_by_split_and_condition(data):
    for split, count in zip(("train", "val", "test"), COUNTS, strict=True):
        by_condition = {
            name: names(data, f"{split}_{name}")
            for name in CONDITIONS
            if (data / f"{split}_{name}.txt").exists()
        }
        assert sum(map(len, by_condition.values())) == count
        for name, frames in by_condition.items():
            assert all(frame.startswith(name) for frame in frames)
        by_condition.pop("clear_day", None)
        assert sorted(names(data, f"{split}_night")) == sorted(sum(by_condition.values(), []))
    assert len(names(data, "train_clear_day")) == 4


def test_vis_night_shows_what_rgb_misses(data):
    night = set(names(data, "test_night"))
    gated_only = {
        name
        for name, columns in lines(data)
        if columns[0].startswith("Pedestrian") and columns[23:25] == ["False", "True"]
    }
    assert 0 < len(names(data, "vis_night")) <= 12
    assert set(names(data, "vis_night")) <= night & gated_only


def test_no_recording_is_in_two_lists(data):
    recordings = [
        {name.rpartition("_")[0] for name in names(data, f"{split}_{kind}")}
        for split in ("train", "val", "test")
        for kind in ("night", "clear_day")
        if (data / f"{split}_{kind}.txt").exists()
    ]
    assert sum(map(len, recordings)) == len(set.union(*recordings)) == sum(COUNTS) // 4


def test_conditions_are_dealt_in_their_shares():
    dealt = deal_conditions(20, {"clear_night": 0.5, "dusk": 0.33, "snow_night": 0.17})
    assert [dealt.count(name) for name in ("clear_night", "dusk", "snow_night")] == [10, 7, 3]
    frames = plan_frames([400, 0, 0], {"clear_night": 0.25, "dusk": 0.75}, 0)
    assert sum(frame.condition == "dusk" for frame in frames) == 300
    # Shuffled, not one condition after the other.
    assert sum(frame.condition == "dusk" for frame in frames[:200]) < 200
    assert len({frame.recording for frame in frames}) == 100
    assert len({frame.recording for frame in plan_frames([40, 0, 0], {"dusk": 1.0}, 0, 1)}) == 40


@pytest.mark.parametrize("recording", [3, 4, 6, 7])
def test_a_recording_is_one_place_that_moves_on(recording):
    first, later = (
        sample_scene(np.random.default_rng(recording), CONDITIONS["clear_night"], time)
        for time in (0.0, 0.8)
    )
    for name in ("ambient", "speed", "camera_height"):
        assert getattr(first, name) == getattr(later, name)
    static = [
        thing.distance
        for thing in first.things
        if 20 < thing.distance < 390 and not thing.kind and thing.velocity == (0.0, 0.0)
    ]
    distances_later = np.array([thing.distance for thing in later.things])
    assert len(static) > 2
    for distance in static:
        assert np.abs(distances_later - (distance - 0.8 * first.speed)).min() < 1e-6
    movers = [
        {thing.position[0] for thing in scene.things if thing.velocity[0]}
        for scene in (first, later)
    ]
    assert movers[0]
    assert not movers[0] & movers[1]


def test_no_random_number_depends_on_the_time():
    for seed in range(20):
        velocities = []
        for time in (0.0, 0.8):
            scene = sample_scene(np.random.default_rng(seed), CONDITIONS["clear_night"], time)
            velocities.append({thing.velocity for thing in scene.things})
        assert velocities[1] <= velocities[0]  # some things leave the view


def test_same_seed_same_bytes_whatever_the_workers(few, tmp_path):
    run_script("make_synthetic.py", "--out", tmp_path / "again", *FEW, "--workers", 2)
    assert contents(few) == contents(tmp_path / "again")


def test_unlabelled_frames_change_nothing_else(few, tmp_path):
    """Other places, several frames each, and their labels in a folder of their own."""
    out = tmp_path / "more"
    simulate(out, *FEW, "--unlabelled", 6, 3)
    without, more = contents(few), contents(out)
    record, record_more = (json.loads(one.pop("synthetic.json")) for one in (without, more))
    assert record_more["parameters"].pop("unlabelled") == [6, 3]
    assert record["parameters"].pop("unlabelled") is None
    assert record_more == record
    assert without.items() <= more.items()

    frames = names(out, "unlabelled_night")
    added = {f"{folder}/{name}.png" for folder in IMAGE_FOLDERS for name in frames}
    added |= {f"true_labels/{name}.txt" for name in frames}
    lists = {name for name in more if name.startswith("unlabelled_")}
    assert more.keys() - without.keys() == added | lists
    places = {name.rpartition("_")[0] for name in frames}
    assert len(places) == 2
    assert places.isdisjoint(
        name.rpartition("_")[0]
        for split in ("train", "val", "test")
        for name in names(out, f"{split}_night")
    )
    assert any(more[f"true_labels/{name}.txt"] for name in frames)
    run_script("check_data.py", out, "--workers", 1)


DIE_AFTER_22_IMAGES = """
import os, signal, make_synthetic
save_png, images = make_synthetic.save_png, iter(range(22))

def save_or_die(*arguments, **options):
    if next(images, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    save_png(*arguments, **options)

make_synthetic.save_png = save_or_die
make_synthetic.main()
"""


def test_killed_and_started_again_it_ends_the_same(few, tmp_path):
    out = tmp_path / "data"
    arguments = map(str, ("--out", out, *FEW, "--workers", 1))
    killed = subprocess.run([sys.executable, "-c", DIE_AFTER_22_IMAGES, *arguments], cwd=ROOT)
    assert killed.returncode == -9
    done = {path: path.stat().st_mtime_ns for path in (out / "gated_labels").glob("*.txt")}
    assert len(done) == 5
    assert not (out / "train_night.txt").exists()
    (out / "images" / ".half.png.1.tmp").write_bytes(b"half a frame")
    simulate(out, *FEW)
    assert contents(few) == contents(out)
    assert all(path.stat().st_mtime_ns == before for path, before in done.items())


def test_ctrl_c_ends_in_one_line(tmp_path):
    with patch("cmkd.runtime.parallel.parallel_map", side_effect=KeyboardInterrupt):
        done = simulate(tmp_path / "data", *FEW, expect=130)
    assert done.stderr.strip() == f"stopped: the same command continues in {tmp_path / 'data'}"


def test_preview(data):
    picture = np.asarray(Image.open(data.parent / "preview.png"))
    conditions = {name.rsplit("_", 2)[0] for name, _ in lines(data)}
    assert picture.shape[1] > 4 * 640
    assert picture.shape[0] > 384 * len(conditions)
    for colour in ((0, 158, 115), (230, 159, 0)):  # people visible in both, and in gated only
        assert (picture == colour).all(axis=2).sum() > 500


def test_preview_as_jpg(few, tmp_path):
    simulate(few, *FEW, "--preview", tmp_path / "sheet.jpg")
    with Image.open(tmp_path / "sheet.jpg") as picture:
        assert picture.format == "JPEG"


@pytest.mark.parametrize("size", ["9x7", "500x400"])
def test_any_size(tmp_path, size):
    simulate(tmp_path / size, "--frames", 2, 0, 0, "--size", size)
    assert len(names(tmp_path / size, "train_night")) == 2
    assert not (tmp_path / size / "test_night.txt").exists()


# -------------------------------------------------------------------------------------- labels


def test_labels(data):
    found = lines(data)
    kinds = {columns[0] for _, columns in found}
    assert {"Pedestrian", "PassengerCar"} <= kinds
    assert kinds <= {
        "Pedestrian",
        "Pedestrian_is_group",
        "PassengerCar",
        "LargeVehicle",
        "RidableVehicle",
        "DontCare",
    }
    for _, columns in found:
        assert len(columns) == 27
        assert columns[2] in {"0", "1", "2"}
        assert set(columns[23:25]) <= {"True", "False"}
        x0, y0, x1, y1 = map(float, columns[4:8])
        assert 0 <= x0 < x1 <= 1280
        assert 0 <= y0 < y1 <= 720
        assert 2 < float(columns[13]) < 130
        is_group = columns[0].endswith("_is_group")
        assert (columns[8] == "-1.00") == (columns[11] == "-1000.00") == is_group


def test_labels_are_read_without_loss(data):
    for path in (data / "gated_labels").iterdir():
        assert len(read_labels(path)) == len(path.read_text().splitlines())


def test_every_kind_of_thing_occurs():
    night = CONDITIONS["clear_night"]
    scenes = [sample_scene(np.random.default_rng(seed), night) for seed in range(60)]
    kinds = {thing.kind for scene in scenes for thing in scene.things}
    assert {"Pedestrian", "RidableVehicle", "PassengerCar", "LargeVehicle"} <= kinds
    walkers = [thing for scene in scenes for thing in scene.things if thing.kind == "Pedestrian"]
    assert any(thing.group == 0 for thing in walkers)
    assert {thing.velocity == (0.0, 0.0) for thing in walkers} == {True, False}
    assert all(0.6 < thing.dimensions[0] <= 2.0 for thing in walkers)
    assert min(thing.distance for thing in walkers) < 10
    assert max(thing.distance for thing in walkers) > 60


def person_at_20_m(size, wall):
    """(view, person): one person, in front of whom a wall can stand at 10 m on the left."""
    walker = person(np.random.default_rng(1), 0.0, 20.0, pose="standing")
    view = render(plan_frames([1, 0, 0], NIGHT, 0)[0], 0, size, False)
    view.scene.things, view.scene.camera_height = [walker], 1.5
    if wall:
        outline = rectangle(-3, 0, 0.0, 3)
        view.scene.things.append(Thing(10.0, [(outline, walker.parts[0][1])]))
    raster = rasterise(view.scene, size, NO_OFFSET)
    return View(view.scene, raster, raster, view.reflected, view.emitted, view.rng), walker


def test_boxes_are_tight():
    view, walker = person_at_20_m((640, 384), wall=False)
    [labelled] = labelled_objects(view)
    rows, columns = np.nonzero(view.gated_raster.owner[view.gated_raster.part] == 0)
    tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert labelled.box.tolist() == tight
    assert labelled.hidden < 0.02
    height = walker.dimensions[0] * 2322.4 / 20 * 384 / 720  # px
    assert tight[3] - tight[1] == pytest.approx(height, abs=2)


def test_a_hidden_body_keeps_its_box():
    [free] = labelled_objects(person_at_20_m((640, 384), wall=False)[0])
    [covered] = labelled_objects(person_at_20_m((640, 384), wall=True)[0])
    assert free.box.tolist() == covered.box.tolist()
    assert 0.2 < covered.hidden < 0.8


def test_people_stand_out_in_the_gated_slices(data):
    brighter = []
    for name, columns in lines(data):
        if not columns[0].startswith("Pedestrian") or name.startswith("dense_fog"):
            continue
        files = [data / f"gated{index}" / f"{name}.png" for index in range(3)]
        brightest = np.max([np.asarray(Image.open(file), float) for file in files], 0)
        box = np.array(columns[4:8], float).reshape(2, 2) * [SIZE[0] / 1280, SIZE[1] / 720]
        x0, y0, x1, y1 = box.round().astype(int).ravel()
        around = brightest[max(y0 - 4, 0) : y1 + 4, max(x0 - 4, 0) : x1 + 4]
        inside = brightest[y0:y1, x0:x1]
        rest = (around.sum() - inside.sum()) / max(around.size - inside.size, 1)
        brighter.append(inside.mean() > rest + 3)
    assert len(brighter) > 20
    assert np.mean(brighter) > 0.75


# ---------------------------------------------------------------------------------- visibility


@pytest.mark.parametrize(
    ("step", "noise", "least", "most"),
    [
        (0, 0, 0, 0),
        (4, 0, 0.7, 1.3),  # a step of FAINTEST
        (40, 0, 5, np.inf),
        (40, 3, VISIBLE_CONTRAST, np.inf),
        (8, 40, 0, VISIBLE_CONTRAST),  # hidden by the noise
        (0, 20, 0, VISIBLE_CONTRAST),
        (-30, 3, VISIBLE_CONTRAST, np.inf),  # a dark shape against the light is visible too
    ],
)
def test_visible_is_contrast_over_noise(step, noise, least, most):
    """A body that is `step` grey levels brighter than its flat surroundings."""
    body = np.zeros((32, 16), bool)
    body[8:24, 6:10] = True
    surroundings = Surroundings((slice(None), slice(None)), body, np.zeros_like(body))
    levels = np.random.default_rng(0).normal(40, noise, (32, 16, 3)) + step * body[..., None]
    image = levels.clip(0, 255).astype(np.uint8)
    assert least <= contrast(image, surroundings) <= most


def test_nobody_is_visible_in_empty_places():
    seen = []
    width = 426
    for frame in plan_frames([88, 0, 0], {"clear_night": 0.5, "dusk": 0.5}, 5)[::4]:
        view = render(frame, 5, (width, 256), True)
        rgb = rgb_camera(view.scene, view.reflected + view.emitted, view.rng)
        is_labelled = np.array([bool(thing.kind) for thing in view.scene.things] + [False])
        occupied = is_labelled[view.rgb_raster.owner[view.rgb_raster.part][::2, ::2]]
        for labelled in labelled_objects(view):
            surroundings = surroundings_of(labelled, view.scene, view.rgb_raster)
            rows, _ = surroundings.window
            columns = surroundings.body.shape[1]
            for left in range(0, width - columns, 60):
                elsewhere = (rows, slice(left, left + columns))
                if not occupied[elsewhere].any():
                    seen.append(is_visible(rgb[elsewhere], surroundings))
    assert len(seen) > 100
    assert np.mean(seen) < 0.1


def test_more_light_shows_more_people():
    frames = plan_frames([64, 0, 0], NIGHT, 2)[::4]
    rows = [visible_by_brightness(frame, 2, (320, 192), True) for frame in frames]
    visible = np.concatenate(rows).mean(0)
    dark, bright = visible[0], visible[BRIGHTNESSES.searchsorted(16)]
    assert dark < 0.2
    assert bright > dark + 0.5


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_visible_share_is_reached(tmp_path, share):
    arguments = ("--frames", 32, 0, 0, "--frames-per-recording", 1, "--size", "128x80")
    done = simulate(tmp_path, *arguments, "--visible-share", share)
    measured = json.loads((tmp_path / "synthetic.json").read_text())["measured"]["night"]
    flags = [columns[23] == "True" for columns in people(tmp_path)]
    assert measured["people"] == len(flags)
    assert measured["visible_rgb"] == pytest.approx(np.mean(flags), abs=1e-4)
    assert f"{measured['visible_rgb']:.2f}" in done.stdout.splitlines()[-1]
    assert measured["visible_rgb"] == pytest.approx(share, abs=0.1)


def test_a_share_out_of_reach_is_said(tmp_path):
    arguments = ("--frames", 8, 0, 0, "--size", "64x40", "--mix", "dense_fog_night=1")
    done = simulate(tmp_path, *arguments, "--visible-share", 0.99)
    assert "warning: --visible-share 0.99 is out of reach" in done.stderr


def test_visible_flags_differ(data):
    assert {columns[23] for columns in people(data)} == {"True", "False"}
    assert np.mean([columns[24] == "True" for columns in people(data)]) > 0.85


# ------------------------------------------------------------------------------------- physics


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        (5, (1574, 0, 0)),
        (10, (1376, 0, 0)),
        (20, (835, 289, 0)),
        (30, (590, 768, 0)),
        (50, (173, 736, 0)),
        (80, (0, 377, 270)),
        (100, (0, 132, 322)),
    ],
)
def test_range_profiles(distance, expected):
    ranges, profiles = range_profiles()
    signals = [np.interp(distance, ranges, profile) for profile in profiles]
    assert signals == pytest.approx(expected, rel=0.12, abs=8)


@pytest.mark.parametrize(
    ("visibility", "expected"), [(50, (20, 1.5, 0)), (100, (20, 5, 0.1)), (200, (15, 8, 0.9))]
)
def test_backscatter_of_fog(visibility, expected):
    whole = backscatter(np.log(20) / visibility)[:, -1]
    assert whole == pytest.approx(expected, rel=0.1, abs=0.1)


def wall_at(distance, extinction, ambient=0.0, nir=0.5, retro=0.0):
    """A scene of nothing but a wall that fills the view."""
    surface = Surface((0.5, 0.5, 0.5), nir, texture=0.0, retro=retro)
    wall = Thing(distance, [(rectangle(-500, -500, 500, 500), surface)])
    return Scene(
        [wall],
        CONDITIONS["clear_night"],
        camera_height=1.5,
        speed=0.0,
        extinction=extinction,
        ambient=ambient,
        veil=1e-3,
        headlight=30.0,
        beam_cut=-0.01,
        shot_gain=1e-4,
        shake=0.0,
    )


def slices_of(scene):
    """The DN of the three slices at the optical axis."""
    raster = rasterise(scene, (640, 384), NO_OFFSET)
    slices = gated_camera(scene, raster, np.random.default_rng(0))
    return [4.0 * image[135:145, 330:340].mean() + 1.5 for image in slices]


def test_gated_signal_by_hand():
    """dark + stray + albedo S(R) exp(-2 alpha R) + backscatter, at 50 m with 150 m visibility."""
    alpha = np.log(20) / 150
    ranges, profiles = range_profiles()
    expected = []
    for dark, profile, back in zip((87, 70, 87), profiles, backscatter(alpha), strict=True):
        echo = 0.5 * np.interp(50, ranges, profile) * np.exp(-2 * alpha * 50)
        expected.append(dark + 6 + echo + np.interp(50, ranges, back))
    assert slices_of(wall_at(50.0, alpha)) == pytest.approx(expected, abs=3)


def test_retroreflectors_saturate():
    assert slices_of(wall_at(30.0, 0.0, retro=10.0))[:2] == [1021.5, 1021.5]


def test_rgb_in_fog_fades_to_airlight():
    """J exp(-alpha d) + A (1 - exp(-alpha d)) under ambient light alone."""
    values = {}
    for alpha in (0.0, 0.02):
        scene = wall_at(60.0, alpha, ambient=0.5)
        scene.headlight = 0.0
        reflected, _ = rgb_light(scene, rasterise(scene, (640, 384), NO_OFFSET))
        values[alpha] = reflected[1, 135:145, 330:340].mean()
    fade = np.exp(-0.02 * 60)
    assert values[0.02] == pytest.approx(values[0.0] * fade + 0.3 * 0.5 * (1 - fade), rel=0.02)


@pytest.mark.parametrize("distance", [10.0, 30.0, 60.0])
def test_parallax_is_that_of_the_warped_camera(distance):
    """f * 0.110 m * (1 / Z - 1 / 30 m) pixels sideways, nothing at 30 m."""
    scene = wall_at(distance, 0.0)
    surface = scene.things[0].parts[0][1]
    scene.things = [Thing(distance, [(rectangle(-0.5, 1, 0.5, 2), surface)])]
    gated, rgb = (
        rasterise(scene, (1280, 768), NO_OFFSET, as_rgb).outlines[0][0] for as_rgb in (False, True)
    )
    expected = 2322.4 * 0.110 * (1 / distance - 1 / 30)
    assert (rgb - gated)[:, 0] == pytest.approx(expected, abs=0.1)


def test_tone_curve_by_hand():
    light = np.array([[0.0, 0.0025, 0.005, 0.01, 0.1, 1.0]], np.float32)
    assert tone(light, NIGHT_CURVE)[0] == pytest.approx([0, 25.5, 63.75, 102, 204, 255], abs=1.5)


@pytest.fixture(scope="module")
def clear_nights():
    """(RGB grey levels, DN of the slices, distances) of 8 full-size frames, every fourth pixel."""
    grey, slices, distances = [], [], []
    for frame in plan_frames([32, 0, 0], NIGHT, 7)[::4]:
        view = render(frame, 7, (1280, 768), True)
        rgb = rgb_camera(view.scene, view.reflected + view.emitted, view.rng)
        gated = gated_camera(view.scene, view.gated_raster, view.rng)
        grey.append(rgb[::4, ::4].mean(2))
        slices.append([4.0 * image[::4, ::4] + 1.5 for image in gated])
        distances.append(view.gated_raster.distance[::4, ::4])
    return np.array(grey), np.array(slices), np.array(distances)


# Each within the factor or the difference from the official night frame in docs/simulator.md.


def test_gated_background_is_that_of_the_real_night(clear_nights):
    _, slices, _ = clear_nights
    assert np.median(slices, axis=(0, 2, 3)) == pytest.approx([96, 75, 91], abs=15)


def test_as_much_is_saturated_as_in_the_real_night(clear_nights):
    _, slices, _ = clear_nights
    saturated = (slices > 1020).mean(axis=(0, 2, 3))
    assert saturated[:2] == pytest.approx([0.0065, 0.0114], rel=0.8)  # at most 5 times less
    assert saturated[0] > 5 * saturated[2] > 0


def test_slices_fade_with_distance_as_in_the_real_night(clear_nights):
    _, slices, distances = clear_nights
    first, second = slices[:, 0], slices[:, 1]
    unsaturated = np.maximum(first, second) < 1020
    ratios = []
    for near, far in ((16, 20), (20, 25), (25, 30)):
        there = (distances >= near) & (distances < far) & unsaturated
        ratios.append((second[there] - 76).sum() / (first[there] - 93).sum())
    assert ratios == pytest.approx([0.27, 0.79, 1.5], rel=0.5)


def test_rgb_is_as_dark_as_in_the_real_night(clear_nights):
    grey, _, _ = clear_nights
    assert np.percentile(grey, [50, 95, 99]) == pytest.approx([16, 49, 75], rel=0.4)


def test_gated_noise_is_that_of_the_sensor():
    quiet = wall_at(250.0, 0.0, nir=0.0)
    raster = rasterise(quiet, (640, 384), NO_OFFSET)
    slices = gated_camera(quiet, raster, np.random.default_rng(0))
    expected = (2.5**2 + 4**2 / 12) ** 0.5  # with the rounding to 8 bits
    assert [4 * image.std() for image in slices] == pytest.approx(3 * [expected], rel=0.1)
    assert abs(np.corrcoef(slices[0].ravel(), slices[1].ravel())[0, 1]) < 0.02


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "1280"], "WIDTHxHEIGHT"),
        (["--size", "0x768"], "WIDTHxHEIGHT"),
        (["--size", "-3x5"], "--size"),
        (["--size", "axb"], "WIDTHxHEIGHT"),
        (["--frames", "0", "0", "0"], "at least 1 frame"),
        (["--frames", "1", "-1", "1"], "'-1' is not a whole number of at least 0"),
        (["--frames", "a", "1", "1"], "'a' is not a whole number"),
        (["--frames", "1"], "expected 3 arguments"),
        (["--workers", "0"], "--workers"),
        (["--seed", "-1"], "--seed"),
        (["--frames-per-recording", "0"], "at least 1"),
        (["--mix", "fog=1"], "'fog' is not a condition: choose from clear_day"),
        (["--mix", "dusk=0.5", "clear_night=0.4"], "the shares sum to 0.9, not 1"),
        (["--mix", "dusk=0.5", "dusk=0.5"], "twice"),
        (["--mix", "dusk=x"], "with a share from 0 to 1"),
        (["--mix", "dusk=nan"], "with a share from 0 to 1"),
        (["--visible-share", "1.2"], "--visible-share must be between 0 and 1, not 1.2"),
        (["--visible-share", "x"], "--visible-share"),
        (["--preview", "sheet.gif"], "must end in .png or .jpg"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments, message, tmp_path):
    done = simulate(tmp_path / "data", *arguments, expect=2)
    assert message in the_error(done)
    assert done.stdout == ""
    assert not (tmp_path / "data").exists()


def test_other_data_is_left_alone(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("keep")
    for out in (tmp_path / "data", tmp_path / "data" / "mine.txt"):
        done = simulate(out, "--frames", 1, 0, 0, "--size", "64x40", expect=2)
        assert "holds something else" in the_error(done)
    assert contents(tmp_path / "data") == {"mine.txt": b"keep"}


def test_other_parameters_are_refused(few):
    before = contents(few)
    done = simulate(few, *FEW, "--seed", 4, expect=2)
    assert "was made with seed 3, not 4" in the_error(done)
    assert contents(few) == before


def test_finished_data_is_left_as_it_is(few):
    before = {
        path: path.stat().st_mtime_ns
        for folder in ("images", "gated_labels")
        for path in (few / folder).iterdir()
    }
    simulate(few, *FEW)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_hard_slices_change_the_slices_alone(data, tmp_path):
    """People are darker in them and what is around them brighter; RGB and boxes stay."""
    out = tmp_path / "hard"
    simulate(out, *SAME_PLACES, "--hard-slices")
    clean, hard = contents(data), contents(out)
    for name in names(out, "train_night"):
        assert clean[f"images/{name}.png"] == hard[f"images/{name}.png"]
        lines = [one[f"gated_labels/{name}.txt"].decode().splitlines() for one in (clean, hard)]
        boxes = [[line.split()[:8] for line in part] for part in lines]
        assert boxes[0] == boxes[1]
    brightness = {folder: {"people": [], "elsewhere": []} for folder in (data, out)}
    for folder, values in brightness.items():
        for name in names(data, "train_clear_night"):
            image = np.array(Image.open(folder / f"gated0/{name}.png")).astype(float)
            inside = np.zeros(image.shape, bool)
            for label in read_labels(label_file(folder, name)):
                if label.name == "Pedestrian":
                    x0, y0, x1, y1 = to_pixels(label.box, *SIZE)
                    inside[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1] = True
            values["people"] += image[inside].tolist()
            values["elsewhere"] += image[~inside].tolist()
    means = {
        folder: {where: np.mean(each) for where, each in values.items()}
        for folder, values in brightness.items()
    }
    assert means[out]["people"] < 0.8 * means[data]["people"]
    assert means[out]["elsewhere"] > means[data]["elsewhere"]
    for workers in (1, 2):
        run_script(
            "make_synthetic.py",
            *("--out", tmp_path / f"few{workers}", *FEW, "--hard-slices", "--workers", workers),
        )
    assert contents(tmp_path / "few1") == contents(tmp_path / "few2")


def test_a_moved_slice_repeats_its_edge():
    image = np.arange(12.0).reshape(3, 4)
    assert np.array_equal(moved_by(image, 1, -1)[1:, :-1], image[:-1, 1:])
    assert np.array_equal(moved_by(image, 1, -1)[0], moved_by(image, 0, -1)[0])
    assert np.array_equal(moved_by(image, 0, 0), image)


# ------------------------------------------------------------------------------------------ animals


def places(share, count, time=0.0):
    """Places with animals: pairs of a scene without them and with them."""
    pairs = []
    for seed in range(count):
        plain, scene = (
            sample_scene(np.random.default_rng([seed, 1]), CONDITIONS["clear_night"], time)
            for _ in range(2)
        )
        add_animals(scene, np.random.default_rng([seed, 4]), share, time)
        pairs.append((plain, scene))
    return pairs


def kinds_in(scene):
    return [thing.kind for thing in scene.things if thing.kind]


def test_animals_are_some_more_often_where_no_house_is_and_people_stay_the_main_class():
    with_animals, rural, people, animals = [], [], 0, 0
    for plain, scene in places(DEFAULT_ANIMALS, 300):
        found = [kind for kind in kinds_in(scene) if kind in SPECIES]
        low, high = HOUSE_FRONTS
        rural.append(not any(low < thing.distance < high for thing in plain.things))
        with_animals.append(bool(found))
        animals += len(found)
        people += kinds_in(scene).count("Pedestrian")
    assert np.mean(with_animals) == pytest.approx(DEFAULT_ANIMALS, abs=0.06)
    assert np.mean(rural) == pytest.approx(RURAL_PLACES, abs=0.06)
    rural, with_animals = np.array(rural), np.array(with_animals)
    assert with_animals[rural].mean() > 2 * with_animals[~rural].mean()
    assert people > 5 * animals


def test_animals_change_nothing_else_and_move_on():
    """The same animals at every time; who crosses is farther along, what stands stays."""
    for (plain, scene), (_, later) in zip(places(1, 25), places(1, 25, 0.8), strict=True):
        own = {id(thing) for thing in scene.things}
        assert len(own) > len(plain.things) - 1
        assert [thing.kind for thing in plain.things if thing.kind] == [
            kind for kind in kinds_in(scene) if kind not in SPECIES
        ]
        now, then = (
            sorted(
                (thing.kind, thing.dimensions[1], thing.position[0], thing.velocity[0])
                for thing in one.things
                if thing.kind in SPECIES
            )
            for one in (scene, later)
        )
        for before, after in zip(now, then, strict=False):
            if len(now) == len(then) and before[:2] == after[:2]:
                assert after[2] - before[2] == pytest.approx(0.8 * before[3], abs=1e-6)


def test_animals_have_boxes_of_their_own_class_where_they_shine(tmp_path):
    options = ["--frames", 10, 0, 0, "--frames-per-recording", 1, "--size", "320x192"]
    simulate(tmp_path, *options, "--mix", "clear_night=1", "--animals", 1)
    brighter, found = [], set()
    for name in names(tmp_path, "train_night"):
        image = np.array(Image.open(tmp_path / f"gated0/{name}.png")).astype(float)
        for label in read_labels(label_file(tmp_path, name)):
            if label.name in SPECIES and label.visible_gated and label.distance < 60:
                found.add(label.name)
                x0, y0, x1, y1 = (round(value) for value in to_pixels(label.box, 320, 192))
                brighter.append(image[y0:y1, x0:x1].max() > 1.5 * np.median(image))
    assert len(found) > 1
    assert np.mean(brighter) > 0.9


def test_frames_without_animals_are_those_of_animals_0(few, tmp_path):
    options = [*FEW[:-2], "--animals", 0.3]
    simulate(tmp_path / "some", *options)
    without, some = contents(few), contents(tmp_path / "some")
    same = [name for name in names(few, "train_night") if f"images/{name}.png" in without]
    changed = [name for name in same if without[f"images/{name}.png"] != some[f"images/{name}.png"]]
    for name in same:
        labels = some[f"gated_labels/{name}.txt"].decode()
        has_animal = any(kind in labels for kind in SPECIES)
        assert has_animal <= (name in changed)
    assert len(changed) < len(same)
    record = json.loads(some["synthetic.json"])["parameters"]
    assert record["animals"] == 0.3
    assert json.loads(without["synthetic.json"])["parameters"]["animals"] is None

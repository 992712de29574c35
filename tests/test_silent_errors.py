"""What would give wrong results without a word: labels, pictures and classes that mislead."""

import argparse
import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    ROOT,
    TAIL,
    TINY,
    label_line,
    run_here,
    run_script,
    the_error,
    train,
    write_16_bit_colour_png,
    write_frame,
)
from PIL import Image
from test_evaluation import result, truth

import make_synthetic
import prepare_data
import reproduce
from cmkd.evaluation import tables
from cmkd.evaluation.pipeline import load_comparable, titles
from cmkd.frames import cache, pairing
from cmkd.frames.annotation_formats import read_annotations
from cmkd.frames.annotations import class_groups, distance_to, parse_labels, without_copies
from cmkd.frames.cache import FrameCache
from cmkd.frames.images import read_rgb, read_slice
from cmkd.frames.label_exchange import read_yolo
from cmkd.frames.machine_labels import refuse_unfit_labels
from cmkd.frames.official_lists import condition_from_meta
from cmkd.runtime import claims, distributed, files, hardware
from cmkd.runtime.command_line import cores, with_home
from cmkd.runtime.failures import StopRequest, run
from cmkd.runtime.files import UserError
from cmkd.runtime.weights import STEM, WeightsError, read_state, sha256_of
from cmkd.study import ablations, unlabelled, visible_share
from cmkd.study.jobs import Job, begin, evaluation_job, lock, option_words
from cmkd.study.report import Study, fingerprint_of, read_runs, refuse_other_val_list
from cmkd.viewing.annotate_pictures import find_pictures, read_picture
from dataset import SeeingThroughFog
from models import Detector, build_detector, inflate, load_detector

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
KITTI = "0.00 0 0 500 200 560 400 -1 -1 -1 -1000 -1000 -1000 -10"


def parsed(tmp_path, line):
    (tmp_path / "a.txt").write_text(f"{line}\n")
    return parse_labels(tmp_path / "a.txt")


# ------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (f"Pedestrian {KITTI}", "Pedestrian"),
        (f"Pedestrian sitting {KITTI}", "Pedestrian sitting"),
        (f"Pedestrian sitting {KITTI} 0.9", "Pedestrian sitting"),
        (f"a very big dog {KITTI}", "a very big dog"),
        (
            label_line().replace("Pedestrian", "Pedestrian on a bench").strip(),
            "Pedestrian on a bench",
        ),
    ],
)
def test_a_class_of_several_words_moves_no_box(tmp_path, line, name):
    [label], problems = parsed(tmp_path, line)
    assert problems == []
    assert label.name == name
    if "560" in line:
        assert label.box == (500, 200, 560, 400)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (f"Pedestrian 7 {KITTI}", "column 1, counted from 0, should be the truncated share"),
        (f"Pedestrian 0 {KITTI}", "should be a height in m and is 400"),
        ("Pedestrian 0 0 500 200 560 400 -1 -1 -1 -1000 -1000 -1000 -10 1", "the angle of view"),
        (f"Pedestrian {KITTI} 1 2", "17 columns"),
        ("Pedestrian 0 0 0 5 6 7 8 -1 -1 -1 0 0 20 30 1", "column 14, counted from 0, should be"),
    ],
)
def test_a_shifted_line_is_noticed(tmp_path, line, what):
    labels, [problem] = parsed(tmp_path, line)
    assert labels == []
    assert what in problem


def test_official_lines_stay_readable(tmp_path):
    """Traffic lines and boxes without area are left out without a word, as published."""
    tail = "-1 -1 -1 -1000 -1000 -1000 -1000 0 0 0 1.0 -1000 -1000 -1000 -1000 False True -1 -1"
    lines = [f"traffic sign 0 0 -1 1 1 9 9 {tail}", f"DontCare 0 0 -1 0 0 0 0 {tail}"]
    lines.append(f"Pedestrian 0 0 -1 1 1 9 9 {tail}")
    [label], problems = parsed(tmp_path, "\n".join(lines))
    assert (label.name, problems) == ("Pedestrian", [])


@pytest.mark.parametrize(
    "text", ["0 0 0", "-1 -1 -1", "-1000 -1000 -1000", "0.0 0 0.00", "nan 1 2"]
)
def test_a_position_that_says_nothing_is_unknown(text):
    assert distance_to(text.split()) is None


def test_positions_that_say_something():
    assert distance_to(["0", "0", "12"]) == 12
    assert distance_to(["-1", "-1", "-2"]) == pytest.approx(6**0.5)


def test_a_line_that_occurs_twice_counts_once(tmp_path, capsys):
    lines = label_line() + label_line(box=(600, 100, 700, 300))
    write_frame(tmp_path, "a", (64, 48), lines + lines + label_line("PassengerCar"))
    for split in ("train", "val"):
        (tmp_path / f"{split}_night.txt").write_text("a")
    dataset = SeeingThroughFog(tmp_path, "train_night", "rgb")
    assert len(dataset[0][1]["boxes"]) == 2
    assert "2 label lines that occur twice are left out" in capsys.readouterr().out
    both = SeeingThroughFog(tmp_path, "train_night", "rgb", keep_copies=True)
    assert len(both[0][1]["boxes"]) == 4
    done = run_here([str(ROOT / "check_data.py"), str(tmp_path), "--workers", "1"])
    file = tmp_path / "gated_labels/a.txt"
    for line in (3, 4):
        assert f"warning: {file}:{line}: is the same as an earlier line" in done.stdout
    assert f"{file}:5" not in done.stdout


@pytest.mark.parametrize(
    ("second", "counted"),
    [
        ("Pedestrian  0 0 -1  100 100 200 400\t{tail}", 1),  # other blanks
        ("Pedestrian 0.00 0 -1 100.0 1e2 200 400.00 {tail}", 1),  # other spellings of numbers
        ("Pedestrian 0.00 0 -1 100 100 200 401 {tail}", 2),
        ("Pedestrian_is_group 0.00 0 -1 100 100 200 400 {tail}", 2),
    ],
)
def test_which_lines_are_the_same(tmp_path, second, counted):
    (tmp_path / "a.txt").write_text(label_line() + second.format(tail=TAIL))
    labels, problems = parse_labels(tmp_path / "a.txt")
    assert (len(labels), problems) == (2, [])
    assert len(without_copies(labels)) == counted


def test_exported_names_can_be_opened(tmp_path):
    """By torchvision's own dataset, whatever the suffix."""
    from torchvision.datasets import CocoDetection

    write_frame(tmp_path, "a", (64, 48), label_line())
    write_frame(tmp_path, "b", (64, 48), label_line())
    write_frame(tmp_path, "c", (64, 48), label_line())
    Image.open(tmp_path / "images/b.png").convert("RGB").save(tmp_path / "images/b.jpg")
    (tmp_path / "images/b.png").unlink()
    (tmp_path / "images/c.png").rename(tmp_path / "images/c.PNG")
    (tmp_path / "all.txt").write_text("a\nb.jpg\nc")
    command = ["check_data.py", tmp_path, "--list", "all", "--export-coco", tmp_path / "c.json"]
    done = run_here([str(ROOT / command[0]), *map(str, command[1:])])
    assert done.returncode == 0, done.stderr
    opened = CocoDetection(tmp_path / "images", tmp_path / "c.json")
    assert [image.size for image, _ in opened] == [(64, 48)] * 3


# ----------------------------------------------------------------------------------------- pictures


def test_sixteen_bit_colour_is_refused_as_rgb_and_read_as_a_slice(tmp_path):
    values = np.linspace(0, 1023, 8 * 6 * 3).astype(int).reshape(6, 8, 3)
    write_16_bit_colour_png(tmp_path / "a.png", values)
    with pytest.raises(UserError, match="nothing says how many of them are used"):
        read_rgb(tmp_path / "a.png")
    wanted = values.sum(axis=2) // 3 >> 2
    assert np.array_equal(read_slice(tmp_path / "a.png")[0].numpy(), wanted)


@pytest.mark.parametrize("mode", ["F", "I;16", "I"])
def test_numbers_that_are_no_grey_levels_are_refused_as_rgb(tmp_path, mode):
    kind = {"F": np.float32, "I;16": np.uint16, "I": np.int32}[mode]
    file = tmp_path / ("a.png" if mode == "I;16" else "a.tif")
    Image.fromarray(np.full((6, 8), 300, kind)).save(file)
    with pytest.raises(UserError, match="mode F, with values from 300 to 300|16 bits"):
        read_rgb(file)
    if mode == "F":
        file = file.rename(tmp_path / "named.png")
        for read in (read_rgb, read_slice):
            with pytest.raises(UserError, match="mode F, with values from 300 to 300"):
                read(file)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
def test_all_kinds_of_8_bits_are_read(tmp_path, mode):
    image = Image.new("RGB", (8, 6), (255, 255, 255)).convert(mode)
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(file)
    assert read_rgb(file).float().mean() > 250
    assert read_slice(file).float().mean() > 250


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_picture_that_is_to_be_turned_is_refused(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for suffix in (".jpg", ".png"):
        file = tmp_path / f"a{suffix}"
        Image.new("RGB", (8, 6)).save(file, exif=exif)
        for read in (read_rgb, read_slice):
            with pytest.raises(UserError, match=f"EXIF orientation {orientation}"):
                read(file)
    exif[0x0112] = 1
    Image.new("RGB", (8, 6)).save(tmp_path / "b.jpg", exif=exif)
    assert read_rgb(tmp_path / "b.jpg").shape == (3, 6, 8)


# ------------------------------------------------------------------------------------------ classes


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory):
    """Weights of two classes with their JSON."""
    file = tmp_path_factory.mktemp("w") / "two.pth"
    torch.save(Detector(3, 3, "resnet18").state_dict(), file)
    settings = {"classes": ["Pedestrian,Pedestrian_is_group", "Deer,Moose"], "min_size": 64}
    file.with_suffix(".json").write_text(json.dumps(settings))
    return file


@pytest.fixture(scope="module")
def pedestrians(tmp_path_factory):
    """Weights of the published class, without a JSON."""
    file = tmp_path_factory.mktemp("w") / "one.pth"
    torch.save(Detector(3, 2, "resnet18").state_dict(), file)
    return file


@pytest.mark.parametrize(
    "classes",
    [
        ["Deer,Moose", "Pedestrian,Pedestrian_is_group"],
        ["Pedestrian,Pedestrian_is_group", "PassengerCar"],
        ["Pedestrian", "Deer,Moose"],
    ],
)
def test_other_classes_than_trained_are_refused(two_classes, classes):
    with pytest.raises(UserError, match="was trained on --classes .*, in this order"):
        load_comparable([two_classes], classes=classes)


def test_the_same_classes_are_taken(two_classes, tmp_path, capsys):
    same = ["Pedestrian_is_group,Pedestrian", "Moose,Deer"]
    assert load_comparable([two_classes], classes=same)[1] == same
    alone = tmp_path / "alone.pth"
    alone.write_bytes(two_classes.read_bytes())
    load_comparable([alone], classes=["vru", "Deer"])
    assert "no JSON says its classes; they are taken for vru Deer" in capsys.readouterr().out


def test_test_py_refuses_another_order(two_classes, tmp_path):
    write_frame(tmp_path, "a", (64, 48), label_line())
    (tmp_path / "val_night.txt").write_text("a")
    command = ["test.py", "--weights", two_classes, "--data", tmp_path, "--lists", "val_night"]
    command += ["--classes", "Deer,Moose", "Pedestrian,Pedestrian_is_group"]
    done = run_here([str(ROOT / command[0]), *map(str, command[1:])])
    assert done.returncode == 2
    assert "in this order" in the_error(done)


# ------------------------------------------------------------------------------------ two runs


def claimed_by(tmp_path, **changes):
    """A claim of another run on tmp_path/w.pth."""
    weights = tmp_path / "w.pth"
    claims.claim(weights, tmp_path / "other", 10)
    content = json.loads(claims.claim_file(weights).read_text())
    claims.claim_file(weights).write_text(json.dumps({**content, **changes}))
    return weights


def test_two_runs_do_not_share_a_weights_file(tmp_path):
    weights = claimed_by(tmp_path)
    with pytest.raises(
        UserError, match=r"w.pth is being written by the run .*other .*another --out"
    ):
        claims.claim(weights, tmp_path / "mine", 10)
    claims.claim(weights, tmp_path / "other", 10)  # its own run may
    claims.release(weights, tmp_path / "mine")
    assert claims.claim_file(weights).is_file()
    claims.release(weights, tmp_path / "other")
    claims.claim(weights, tmp_path / "mine", 10)


def test_the_claim_of_a_process_that_is_gone_is_void(tmp_path):
    claims.claim(claimed_by(tmp_path, process=2**22 + 1), tmp_path / "mine", 10)


@pytest.mark.parametrize(("minutes", "is_void"), [(29, False), (31, True)])
def test_a_claim_is_void_after_three_checkpoints(tmp_path, minutes, is_void):
    weights = claimed_by(tmp_path, host="elsewhere")
    then = time.time() - 60 * minutes
    os.utime(claims.claim_file(weights), (then, then))
    with contextlib.nullcontext() if is_void else pytest.raises(UserError, match="on elsewhere"):
        claims.claim(weights, tmp_path / "mine", 10)


def test_a_clock_that_is_fast_voids_no_claim(tmp_path, monkeypatch):
    weights = claimed_by(tmp_path, host="elsewhere")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 36000)
    with pytest.raises(UserError, match="on elsewhere"):
        claims.claim(weights, tmp_path / "mine", 10)


@needs_proc
def test_a_container_of_the_same_name_is_another_machine(tmp_path, monkeypatch):
    """Its processes have numbers of their own, so that of the other run seems to be gone."""
    weights = claimed_by(tmp_path, process=2**22 + 1)
    monkeypatch.setattr(Path, "readlink", lambda _: Path("pid:[1]"))
    with pytest.raises(UserError, match=f"process {2**22 + 1} on {socket.gethostname()}"):
        claims.claim(weights, tmp_path / "mine", 10)


def test_a_live_run_on_another_machine_keeps_its_claim(tmp_path):
    weights = claimed_by(tmp_path, host="elsewhere", process=2**22 + 1)
    with pytest.raises(UserError, match="on elsewhere"):
        claims.claim(weights, tmp_path / "mine", 10)
    claims.claim(weights, tmp_path / "other", 10)


def test_a_second_training_with_the_same_out_is_refused(synthetic, tmp_path):
    run = ["--max-iterations", 1, "--run-dir"]
    claims.claim(tmp_path / "w/baseline.pth", tmp_path / "first", 10)
    done = train("baseline", synthetic, tmp_path / "w", "", *run, tmp_path / "second", expect=2)
    assert "is being written by the run" in the_error(done)
    claims.claim_file(tmp_path / "w/baseline.pth").unlink()
    train("baseline", synthetic, tmp_path / "w", "", *run, tmp_path / "third")
    assert not claims.claim_file(tmp_path / "w/baseline.pth").exists()


# ----------------------------------------------------------------------------- what was downloaded


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a git-lfs pointer"),
        (b"<!DOCTYPE html><title>Sign in", "a web page, perhaps of a sign-in"),
    ],
)
def test_what_came_in_place_of_weights_is_named(tmp_path, content, message):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_state(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "dress",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model_state_dict": state, "args": {"lr": 0.1}},
        lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
        lambda state: {"net": {f"module._orig_mod.{name}": one for name, one in state.items()}},
    ],
)
def test_checkpoints_of_usual_trainers_are_read(tmp_path, dress):
    state = {"backbone.body.conv1.weight": torch.ones(64, 3, 7, 7)}
    torch.save(dress(state), tmp_path / "w.pth")
    assert read_state(tmp_path / "w.pth").keys() == state.keys()


def test_a_state_under_another_key_is_named(tmp_path):
    torch.save({"ema": {"a": torch.ones(1)}, "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="tensors are under ema: save one of these alone"):
        read_state(tmp_path / "w.pth")


# ---------------------------------------------------------------------------------- environments


@pytest.mark.parametrize(
    ("variables", "outcome"),
    [({"WORLD_SIZE": "2"}, False), ({}, False), ({"RANK": "0", "WORLD_SIZE": "2"}, None)],
)
def test_what_another_tool_left_in_the_environment(monkeypatch, variables, outcome):
    for name in distributed.TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if outcome is None:
        with pytest.raises(SystemExit, match="RANK are set and .* not: start with torchrun"):
            distributed.is_torchrun()
    else:
        assert distributed.is_torchrun() is outcome


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EPERM])
def test_a_file_system_that_cannot_flush_or_chmod(tmp_path, monkeypatch, capsys, code):
    def cannot(*_):
        raise OSError(code, "not here")

    monkeypatch.setattr(files.os, "fsync", cannot)
    monkeypatch.setattr(files.Path, "chmod", cannot)
    monkeypatch.setattr(files, "cannot_was_said", [])
    files.save_text("x", tmp_path / "a.txt")
    files.save_text("y", tmp_path / "b.txt")
    assert (tmp_path / "b.txt").read_text() == "y"
    assert capsys.readouterr().err.count("warning: this file system cannot") == 1
    monkeypatch.setattr(files.os, "fsync", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "")))
    with pytest.raises(UserError, match="cannot be written"):
        files.save_text("z", tmp_path / "c.txt")


@pytest.mark.parametrize(
    ("script", "errors_too"),
    [
        ("check_data.py", True),  # as in `2>&1 | head`
        ("make_synthetic.py", False),
        ("test.py", False),
    ],
)
def test_a_reader_that_has_seen_enough(synthetic, tmp_path, pedestrians, script, errors_too):
    options = {
        "check_data.py": [synthetic, "--workers", 1],
        "make_synthetic.py": f"--out {tmp_path} --frames 2 1 1 --size 64x48 --workers 1".split(),
        "test.py": ["--weights", pedestrians, "--data", synthetic, "--lists", "val_night"],
    }
    process = subprocess.Popen(
        [sys.executable, ROOT / script, *map(str, options[script])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if errors_too else subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert process.wait(60) == 128 + signal.SIGPIPE
    if not errors_too:
        assert process.stderr.read() == ""
        process.stderr.close()


def test_files_that_macos_leaves_are_no_lists(tmp_path):
    (tmp_path / "._train_night.txt").write_bytes(b"\0\5\26\7\0\xff\xfe")
    for split in ("train", "val"):
        write_frame(tmp_path, split, (64, 48), label_line())
        (tmp_path / f"{split}_night.txt").write_text(split)
    done = run_here([str(ROOT / "check_data.py"), str(tmp_path), "--workers", "1"])
    assert (done.returncode, "errors: 0" in done.stdout) == (0, True)


@pytest.mark.parametrize("error", [ZeroDivisionError, struct.error, TypeError, ValueError])
def test_odd_exif_ends_nothing(tmp_path, monkeypatch, error):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg")

    def odd(_):
        raise error

    monkeypatch.setattr(Image.Image, "getexif", odd)
    assert read_rgb(tmp_path / "a.jpg").shape == (3, 6, 8)
    assert read_picture(tmp_path / "a.jpg").size == (8, 6)


def test_linked_folders_and_all_kinds_of_pictures_are_found(tmp_path, capsys):
    elsewhere, photos = tmp_path / "elsewhere", tmp_path / "photos"
    for folder in (elsewhere, photos):
        folder.mkdir()
    Image.new("RGB", (8, 6)).save(elsewhere / "a.gif")
    Image.new("RGB", (8, 6)).save(photos / "b.JPG", format="JPEG")
    Image.new("RGB", (8, 6)).save(photos / "c.tga")
    (photos / "notes.txt").write_text("x")
    (photos / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(photos)
    found = [str(file.relative_to(photos)) for file in find_pictures(photos)]
    assert found == ["b.JPG", "c.tga", "linked/a.gif"]
    assert "1 files are no pictures, like notes.txt" in capsys.readouterr().out


# --------------------------------------------------------------------------------- worker processes


def pool_workers(process):
    """The worker processes of a script's pool, once there are two."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        workers = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                if parent == str(process.pid) and b"spawn_main" in (
                    (folder / "cmdline").read_bytes()
                ):
                    workers.append(int(folder.name))
        if len(workers) == 2:
            return workers
        time.sleep(0.01)
    raise AssertionError("no pool was started")


@pytest.fixture(params=["make_synthetic.py", "check_data.py", "prepare_pairs.py"])
def with_a_pool(request, synthetic, tmp_path):
    """A script that works in two processes, started as a terminal does, and its command."""
    options = [synthetic]
    if request.param == "make_synthetic.py":
        options = ["--out", tmp_path / "data", "--frames", 6, 2, 2, "--size", "96x64"]
    if request.param == "prepare_pairs.py":
        options = ["--rgb", synthetic / "images", "--second", synthetic / "gated1"]
        (tmp_path / "labels").mkdir()
        for file in (synthetic / "images").iterdir():
            (tmp_path / f"labels/{file.stem}.txt").write_text(f"Pedestrian {KITTI}\n")
        options += ["--labels", tmp_path / "labels", "--format", "kitti"]
        options += ["--out", tmp_path / "data"]
    command = [sys.executable, ROOT / request.param, *options, "--workers", 2]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that run in the background of a shell ignore Ctrl-C, and so would it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    yield process, command
    process.kill()
    process.communicate()


@needs_proc
def test_a_killed_worker_is_one_line_and_the_next_call_continues(with_a_pool):
    process, command = with_a_pool
    os.kill(pool_workers(process)[0], signal.SIGKILL)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 2
    assert "Traceback" not in err
    assert err.splitlines()[-1].endswith("probably because memory was short: lower --workers")
    run_script(Path(command[1]).name, *command[2:-1], 1)


@needs_proc
def test_ctrl_c_prints_no_traceback(with_a_pool):
    """A terminal sends it to the script and its workers alike."""
    process, _ = with_a_pool
    pool_workers(process)
    os.killpg(process.pid, signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGINT
    assert "Traceback" not in err


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone has it")
def test_cores_of_others_are_not_counted(monkeypatch):
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cores() == 1
        assert hardware.loader_processes() <= 1
        for script, words in ((make_synthetic, ""), (prepare_data, "--source a --out b")):
            monkeypatch.setattr(sys, "argv", ["x", *words.split()])
            assert script.parse_arguments().workers == 1
    finally:
        os.sched_setaffinity(0, allowed)


# --------------------------------------------------------------------------------------- permission


def as_another_user(*command):
    """Run a script as a user who may read a folder only if its mode says so."""
    powers = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if os.getuid() == 0 and not shutil.which(powers[0]):
        pytest.skip("root may read everything, and setpriv is missing")
    prefix = powers if os.getuid() == 0 else []
    return subprocess.run(
        [*prefix, sys.executable, *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("script", "forbidden"),
    [
        ("check_data.py", "train_night.txt"),
        ("train_teacher.py", "gated1"),
        ("train_teacher.py", "gated_labels"),
    ],
)
def test_what_another_user_may_not_read(tmp_path, script, forbidden):
    data = tmp_path / "data"
    for split in ("train", "val"):
        write_frame(data, split, (64, 48), label_line())
        (data / f"{split}_night.txt").write_text(split)
    (data / forbidden).chmod(0)
    options = ["--data", data, *TINY, "--out", tmp_path / "out", "--run-dir", tmp_path / "run"]
    done = as_another_user(
        ROOT / script, *(options if script[0] == "t" else [data, "--workers", 1])
    )
    (data / forbidden).chmod(0o755)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    *_, line = done.stderr.splitlines()
    assert str((data / forbidden).resolve()) in line
    assert "may not be read" in line or "Permission denied" in line


def test_a_folder_below_that_may_not_be_read_is_named(tmp_path):
    """Its pictures would be passed over without a word."""
    (tmp_path / "drive1").mkdir()
    (tmp_path / "drive2").mkdir(mode=0)
    find = "import pathlib, sys; from cmkd.frames.layout import files_below"
    done = as_another_user("-c", f"{find}; files_below(pathlib.Path(sys.argv[1]))", tmp_path)
    assert done.stderr.splitlines()[-1].endswith(
        f"UserError: {tmp_path / 'drive2'} cannot be read (Permission denied): fix that first"
    )


@pytest.mark.parametrize("filename", ["/data/x", None])
def test_permission_is_an_error_of_users_if_a_file_is_known(capsys, filename):
    def main():
        raise PermissionError(errno.EACCES, "Permission denied", filename)

    with pytest.raises(SystemExit if filename else PermissionError):
        run(main)
    assert ("/data/x may not be used by this user" in capsys.readouterr().err) == bool(filename)


def test_what_is_tidied_at_the_end_is_tidied_if_the_terminal_is_closed():
    """On SIGTERM too: test_distributed.py."""
    lines = [
        "import os",
        "from cmkd.runtime.failures import at_end",
        "at_end(lambda: print('tidy', flush=True))",
        f"os.kill(os.getpid(), {signal.SIGHUP})",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        # Tests under nohup ignore SIGHUP, and so would it.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    assert done.returncode == 128 + signal.SIGHUP
    assert "tidy" in done.stdout


def test_caches_of_two_users_are_two_files(tmp_path, monkeypatch):
    """On disk and in memory; the second user's content is neither read nor overwritten."""
    write_frame(tmp_path, "a", (64, 48))
    monkeypatch.setattr(cache, "MEMORY_FOLDER", tmp_path)
    files = [tmp_path / "images/a.png"]
    for kind in ("disk", "ram"):
        caches = []
        for user in (1000, 1001):
            monkeypatch.setattr(os, "getuid", lambda user=user: user)
            caches.append(FrameCache(kind, tmp_path / ".cache", files, (1, 3, 48, 64)))
            caches[-1].store(0, torch.full((3, 48, 64), user % 256, dtype=torch.uint8))
        assert caches[0].file != caches[1].file
        assert [one.load(0).unique().tolist() for one in caches] == [[232], [233]]


@pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("setpriv"), reason="root alone can become another user"
)
@pytest.mark.parametrize("kind", ["disk", "ram"])
def test_a_second_user_with_a_cache_on_the_same_data(synthetic, kind):
    """There is no room for it in the first user's folder; in memory there is."""
    # The interpreter may be in a folder that others may not read.
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    user += [f"--{caps}-caps=+dac_read_search" for caps in ("inh", "ambient")]
    if subprocess.run([*user, "true"], capture_output=True).returncode:
        pytest.skip("this container does not let root give rights to others")
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o777)
        data, out = shutil.copytree(synthetic, Path(home, "data")), Path(home, "out")
        options = ["--data", data, *TINY, "--cache", kind, "--max-iterations", 1]
        command = ["train_baseline.py", *options, "--out", out, "--run-dir", out / "run"]
        # The first user's cache.
        SeeingThroughFog(data, "train_night", "rgb").use_cache(kind, 64, 1333)
        done = subprocess.run(
            [*user, sys.executable, *map(str, (ROOT / command[0], *command[1:]))],
            capture_output=True,
            text=True,
            timeout=180,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
    if kind == "ram":
        assert (done.returncode, "--cache ram: 6 frames" in done.stdout) == (0, True), done.stderr
    else:
        assert done.returncode == 2
        assert "cannot be used (Permission denied): remove it, or choose another" in the_error(done)


# ------------------------------------------------------------------------------ found by reading


def test_weights_beside_the_json_of_others_are_warned_of(two_classes, tmp_path, capsys):
    file = tmp_path / "w.pth"
    file.write_bytes(two_classes.read_bytes())
    settings = json.loads(two_classes.with_suffix(".json").read_text())
    file.with_suffix(".json").write_text(json.dumps({**settings, "sha256": sha256_of(file)}))
    load_detector(file)
    assert "is not the file" not in capsys.readouterr().err
    file.with_suffix(".json").write_text(json.dumps({**settings, "sha256": "0" * 64}))
    load_detector(file)
    assert "w.pth is not the file that" in capsys.readouterr().err


def test_frames_that_are_validated_and_trained_on_are_warned_of(synthetic, tmp_path):
    options = ["--max-iterations", 1, "--val-list", "train_night"]
    done = train("baseline", synthetic, tmp_path, "", *options)
    assert "6 frames of" in done.stdout
    assert "are trained on: the validation AP will say nothing" in done.stdout


def test_boxes_in_pixels_of_the_images_are_warned_of(tmp_path):
    for scale, expected in ((1, 1), (4, 0)):
        root = tmp_path / str(scale)
        for name in "abcd":
            boxes = [
                label_line(box=tuple(scale * value for value in (n, n, 100 + n, 60 + n)))
                for n in range(10)
            ]
            write_frame(root, name, (160, 96), "".join(boxes))
        for split in ("train", "val"):
            (root / f"{split}_night.txt").write_text({"train": "a\nb\nc", "val": "d"}[split])
        done = run_here([str(ROOT / "check_data.py"), str(root), "--workers", "1"])
        assert done.stdout.count("no box reaches beyond 160x96") == expected


def test_processes_of_another_tool_change_no_workers(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "0")
    for name in distributed.TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    assert hardware.loader_processes() >= 1


def test_a_closed_terminal_is_a_stop_request():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.signal == signal.SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.signal == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("text", ["", "max\n", "100000 x 1\n"])
def test_an_odd_quota_is_none(tmp_path, monkeypatch, text):
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(hardware, "CPU_QUOTA", tmp_path / "cpu.max")
    assert hardware.quota() == float("inf")


def test_labels_that_change_while_a_run_waits_are_noticed(frames, tmp_path):
    """Its best AP would be of other labels than the next one."""
    (frames / "train_night.txt").write_text("a\n")
    train("baseline", frames, tmp_path / "out", "", "--max-iterations", 1)
    for name, list_name in (("a", "train_night"), ("b", "val_night")):
        file = frames / f"gated_labels/{name}.txt"
        before = file.read_text()
        file.write_text(before + label_line(box=(300, 300, 400, 500)))
        more = ["--max-iterations", 2, "--resume"]
        done = train("baseline", frames, tmp_path / "out", "", *more, expect=2)
        assert f"started with other frames or labels of {list_name}" in the_error(done)
        file.write_text(before)
    train("baseline", frames, tmp_path / "out", "", *more)


def test_home_folders_that_a_shell_leaves(tmp_path, monkeypatch):
    """`--out=~/data` is not expanded by shells; a folder named ~ would be made here."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    options = ["--frames", "2", "1", "1", "--size", "64x48", "--workers", "1"]
    run_here([str(ROOT / "make_synthetic.py"), "--out=~/data", *options])
    assert (tmp_path / "data/train_night.txt").is_file()
    assert not Path("~").exists()
    assert with_home("--title=a~b") == "--title=a~b"


def test_a_terminal_without_some_letters_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    for split in ("train", "val"):
        write_frame(tmp_path, f"{split}_é", (64, 48), label_line("Fußgänger"))
        (tmp_path / f"{split}_night.txt").write_text(f"{split}_é\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, ROOT / "check_data.py", tmp_path, "--workers", "1"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert r"Fu\xdfg\xe4nger" in done.stdout


@pytest.mark.parametrize("content", ["", "{", "\0\1"])
def test_a_damaged_meta_file_is_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json is missing or damaged"):
        condition_from_meta(tmp_path / "a.json")


def test_what_macos_leaves_among_labels(tmp_path):
    left = b"\0\5\26\7\0\2\0\0Mac OS X\xff"
    (tmp_path / "yolo/labels").mkdir(parents=True)
    (tmp_path / "yolo/classes.txt").write_text("Pedestrian\n")
    (tmp_path / "yolo/labels/a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "yolo/labels/._a.txt").write_bytes(left)
    assert list(read_yolo(tmp_path / "yolo")) == ["a"]
    (tmp_path / "kitti").mkdir()
    (tmp_path / "kitti/a.txt").write_text(f"Pedestrian {KITTI}\n")
    (tmp_path / "kitti/._a.txt").write_bytes(left)
    assert list(read_annotations(tmp_path / "kitti", "kitti", one_based=False).boxes) == ["a"]
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(left)
    assert list(pairing.find_pictures(tmp_path, "--rgb")) == ["a"]


@pytest.mark.parametrize("script", ["train_baseline.py", "test.py", "reproduce.py"])
def test_lines_are_in_a_pipe_once_they_are_printed(synthetic, tmp_path, pedestrians, script):
    """A run on a cluster writes into a file, and would look dead for hours.

    Each command has much to do after its first line, and is then killed.
    """
    many = tmp_path / "data"
    names = (synthetic / "train_night.txt").read_text().split() * 100
    for folder, suffix in (("images", "png"), ("gated_labels", "txt")):
        (many / folder).mkdir(parents=True)
        for number, name in enumerate(names):
            (many / folder / f"{number}.{suffix}").symlink_to(
                synthetic / f"{folder}/{name}.{suffix}"
            )
    (many / "many.txt").write_text("\n".join(map(str, range(len(names)))))
    options, made_last = {
        "train_baseline.py": (
            ["--data", synthetic, *TINY, "--epochs", 1000, "--patience", 1000]
            + ["--out", tmp_path, "--run-dir", tmp_path / "run"],
            tmp_path / "baseline.json",
        ),
        "test.py": (
            ["--weights", pedestrians, "--data", many, "--lists", "many", "--min-size", 64]
            + ["--workers", 0, "--json", tmp_path / "scores.json"],
            tmp_path / "scores.json",
        ),
        "reproduce.py": (["--out", tmp_path / "study"], tmp_path / "study/seed0/teacher.pth"),
    }[script]
    process = subprocess.Popen(
        [sys.executable, *map(str, (ROOT / script, *options))],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        start_new_session=True,
    )
    try:
        assert process.stdout.readline()
        assert not made_last.is_file()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


# --------------------------------------------------------------------- found by two more readers


def test_resume_without_a_checkpoint_overwrites_no_weights(frames, tmp_path):
    """Somebody removed the training state to save space."""
    train("baseline", frames, tmp_path / "out", "--max-iterations 1 --resume")
    weights, run = tmp_path / "out/baseline.pth", tmp_path / "out/run"
    before = weights.read_bytes(), (run / "log.jsonl").read_bytes()
    for name in ("last.pth", "previous.pth"):
        (run / name).unlink(missing_ok=True)
    done = train("baseline", frames, tmp_path / "out", "--max-iterations 2 --resume", expect=2)
    assert f"{run} has no last.pth or previous.pth to continue from" in the_error(done)
    assert (weights.read_bytes(), (run / "log.jsonl").read_bytes()) == before


def test_a_checkpoint_of_gated_slices_alone_is_not_taken_for_rgb(tmp_path):
    """It has three channels too; the option that it was trained with says what they are."""
    state = Detector(3, 2, "resnet18").state_dict()
    arguments = {"input": "gated", "compile": True, "min_size": 64}
    torch.save({"model": state, "arguments": arguments}, tmp_path / "last.pth")
    settings = load_detector(tmp_path / "last.pth").settings
    assert (settings["modality"], settings["padding"]) == ("gated", 128)


@pytest.mark.parametrize(
    ("labeller", "student", "missing"),
    [
        ("Pedestrian", "Pedestrian RidableVehicle", "RidableVehicle"),
        ("vru", "Pedestrian", "Pedestrian"),
        ("Deer Pedestrian", "Pedestrian", None),
    ],
)
def test_machine_labels_of_other_classes_are_refused(tmp_path, labeller, student, missing):
    """What they lack would be learned as background."""
    header = {"settings": {"classes": class_groups(labeller.split())}}
    header |= {"weights_sha256": "a", "thresholds": {}, "mirror": False}
    (tmp_path / "labels.jsonl").write_text(json.dumps(header) + "\n")
    outcome = pytest.raises(UserError, match=f"and not of {missing}") if missing else None
    with outcome or contextlib.nullcontext():
        refuse_unfit_labels(tmp_path, student.split())


def test_a_student_is_not_resumed_with_another_teacher(frames, tmp_path):
    teacher = tmp_path / "teacher.pth"
    torch.save(Detector(6, 2, "resnet18").state_dict(), teacher)
    claims.claim(teacher, tmp_path / "run of the teacher", 10)
    options = ["--teacher", teacher, "--max-iterations"]
    done = train("cmkd_mse", frames, tmp_path / "out", "", *options, 1)
    assert f"{teacher} is still being trained" in done.stderr
    torch.save(Detector(6, 2, "resnet18").state_dict(), teacher)
    done = train("cmkd_mse", frames, tmp_path / "out", "--resume", *options, 2, expect=2)
    assert f"was started with other weights in {teacher.resolve()}" in done.stderr


@pytest.mark.parametrize("now", ["rgb", "gated", "rgb+gated"])
@pytest.mark.parametrize("before", ["rgb", "gated", "rgb+gated"])
def test_kernels_stay_with_their_camera(before, now):
    """They are kept for what both networks see, and a grey image keeps its response to one."""
    channels = {"rgb": 3, "gated": 3, "rgb+gated": 6}
    kernels = torch.rand(64, channels[before], 7, 7)
    inflated = inflate(kernels, before, now)
    assert inflated.shape == (64, channels[now], 7, 7)
    if before == now:
        assert torch.equal(inflated, kernels)
    elif now == "rgb+gated":
        kept = inflated[:, 3:] if before == "gated" else inflated[:, :3]
        assert torch.equal(kept, kernels)
        assert inflated.sum(dim=1) == pytest.approx(2 * kernels.sum(dim=1), abs=1e-5)
    else:
        assert inflated.sum(dim=1) == pytest.approx(kernels.sum(dim=1), abs=1e-5)
    if (before, now) == ("rgb+gated", "gated"):
        differences = inflated.diff(dim=1)
        assert differences == pytest.approx(kernels[:, 3:].diff(dim=1), abs=1e-6)


def test_kernels_of_slices_alone_are_known_by_the_settings(tmp_path):
    file = tmp_path / "gated.pth"
    trained = Detector(3, 2, "resnet18", modality="gated")
    torch.save(trained.state_dict(), file)
    file.with_suffix(".json").write_text(json.dumps({"modality": "gated"}))
    options = {"init": str(file), "stem": "inflate"}
    again = build_detector(3, 2, "resnet18", modality="gated", **options)
    assert torch.equal(again.state_dict()[STEM], trained.state_dict()[STEM])
    both = build_detector(6, 2, "resnet18", **options)
    assert torch.equal(both.state_dict()[STEM][:, 3:], trained.state_dict()[STEM])


def test_a_log_on_a_file_system_that_cannot_flush(tmp_path, monkeypatch, capsys):
    def cannot(*_):
        raise OSError(errno.EINVAL, "not here")

    monkeypatch.setattr(files.os, "fsync", cannot)
    monkeypatch.setattr(files, "cannot_was_said", [])
    files.append_record(tmp_path / "log.jsonl", {"epoch": 1})
    assert (tmp_path / "log.jsonl").read_text() == '{"epoch": 1}\n'
    assert "warning: this file system cannot" in capsys.readouterr().err


def test_a_program_that_was_started_without_stdout(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    run(lambda: None)


def test_a_class_without_a_box_is_warned_of(frames, tmp_path):
    options = ["--classes", "Pedestrian", "PassengerCar", "--max-iterations", 1]
    done = train("baseline", frames, tmp_path / "out", "", *options)
    for consequence in ("the network will not learn it", "the validation AP is of the other"):
        assert f"no frame has a box of PassengerCar: {consequence}" in done.stderr


def test_a_size_that_another_option_prevents_is_warned_of(frames, tmp_path):
    options = ["--min-size", 64, "--max-size", 80, "--max-iterations", 1]
    done = train("baseline", frames, tmp_path / "out", "", *options)
    assert "--min-size 64 has no effect: --max-size 80 makes frames of 160x96 80x48" in done.stderr


# -------------------------------------------------------------------------- what output overwrites


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("test.py --weights {w} --json {s}", "{s} describes the weights"),
        ("test.py --weights {w} --save-detections {s}", "{s} describes the weights"),
        ("test.py --weights {w} --json {w}", "{w} is read"),
        ("test.py --detections {s} --json {s}", "{s} is read"),
        ("test.py --weights {w} --json {o} --save-detections {o}", "{o} would be written twice"),
        ("visualize.py --compare {w} --out {s}", "{s} describes the weights"),
        ("visualize.py --compare {w} --out {o} --html {s}", "{s} describes the weights"),
        ("visualize.py --features {w} --out {s}", "{s} describes the weights"),
        ("visualize.py --images p --weights {d} --out {f}", "detections.json describes the"),
        (
            "label_frames.py --weights {w} --sheet {s} --out m --list train_night --thresholds 1 1 "
            "--also-labelled",
            "{s} describes the weights",
        ),
    ],
)
def test_no_output_replaces_what_is_read(two_classes, frames, command, message):
    folder = frames / "weights"
    folder.mkdir()
    for stem in ("w", "detections"):
        for suffix in (".pth", ".json"):
            shutil.copy(two_classes.with_suffix(suffix), folder / f"{stem}{suffix}")
    before = {file: file.read_bytes() for file in folder.iterdir()}
    places = {"w": "w.pth", "s": "w.json", "o": "o.json", "d": "detections.pth", "f": ""}
    places = {letter: folder / name for letter, name in places.items()}
    script, *options = command.format(**places).split()
    done = run_script(script, "--data", frames, *options, expect=2)
    assert f"{message.format(**places)}" in the_error(done)
    assert "name another file" in done.stderr
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_detections_of_a_list_replace_no_settings(two_classes, frames):
    """The name of the file follows from the list."""
    weights = frames / "d.val_night.pth"
    for suffix in (".pth", ".json"):
        shutil.copy(two_classes.with_suffix(suffix), weights.with_suffix(suffix))
    (frames / "other.txt").write_text("a")
    (frames / "gated_labels/b.txt").write_text(label_line("Deer") + label_line("Moose"))
    options = ["--weights", weights, "--data", frames, "--lists", "val_night", "other"]
    done = run_script("test.py", *options, "--save-detections", frames / "d.json", expect=2)
    assert f"{weights.with_suffix('.json')} describes the weights" in done.stderr


def test_weights_of_one_stem_have_two_titles(two_classes, tmp_path):
    assert titles([Path("a/x.pth"), Path("a/x.pt"), Path("b/y.pth")]) == ["x.pth", "x.pt", "y.pth"]
    assert titles([Path("w/lr0.005"), Path("w/lr0.01")]) == ["lr0.005", "lr0.01"]
    assert titles([Path("a/x.pth"), Path("a/x.pt"), Path("b/x.pt")]) == [
        "x.pth",
        "a/x.pt",
        "b/x.pt",
    ]
    both = [tmp_path / "x.pth", tmp_path / "x.pt"]
    for file in both:
        shutil.copy(two_classes, file)
    shutil.copy(two_classes.with_suffix(".json"), tmp_path / "x.json")
    assert list(load_comparable(both)[0]) == ["x.pth", "x.pt"]


# ------------------------------------------------------------------------ detections of other tools


def one_person_each(frames=20):
    """The ground truth of a list, a person low on the right of each frame, and its boxes."""
    content = truth([[[400, 250, 60, 150]]] * frames)
    return content, [result(image, [400, 250, 60, 150], 0.9) for image in range(frames)]


def read_detections_of(tmp_path, results):
    content, _ = one_person_each()
    (tmp_path / "d.json").write_text(json.dumps(results))
    return tables.read_results(tmp_path / "d.json", {"val_night": content})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, w, h: [x, y, x + w, y + h], "20 of 20 boxes reach far beyond their image"),
        (lambda x, y, w, h: [x / 640, y / 480, w / 640, h / 480], "no coordinate is above 1"),
        (lambda *box: [2 * value for value in box], "20 of 20 boxes reach far beyond their image"),
        (lambda x, y, w, h: [x - 640, y, w, h], "20 of 20 boxes reach far beyond their image"),
    ],
)
def test_boxes_in_other_units_are_refused(tmp_path, change, message):
    _, results = one_person_each()
    results = [{**one, "bbox": change(*one["bbox"])} for one in results]
    with pytest.raises(UserError, match=f"{message}: bbox must be x, y, width, height in px"):
        read_detections_of(tmp_path, results)


def test_corners_of_people_everywhere_are_refused(tmp_path):
    """Less than half of such boxes reach beyond the image. A few boxes may."""
    random = np.random.default_rng(0)
    places = [[*random.uniform((0, 150), (580, 330)), 60, 150] for _ in range(200)]
    corners = [[x, y, x + width, y + height] for x, y, width, height in places]
    results = [result(index % 20, box, 0.9) for index, box in enumerate(corners)]
    with pytest.raises(UserError, match="boxes reach far beyond their image"):
        read_detections_of(tmp_path, results)
    results = [result(index % 20, box, 0.9) for index, box in enumerate(places)]
    results[0]["bbox"] = [600, 300, 500, 100]
    read_detections_of(tmp_path, results)


def test_what_detections_lack_is_printed(tmp_path, capsys):
    _, results = one_person_each()
    read_detections_of(tmp_path, results[1:8])
    file = tmp_path / "d.json"
    assert capsys.readouterr().out.splitlines() == [
        f"{file}: 13 of 20 frames have no result",
        f"{file}: no result names its file; image ids are taken as positions in the list, from 0 "
        "(0)",
    ]
    read_detections_of(tmp_path, [{**one, "file_name": str(one["image_id"])} for one in results])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("other", [["--weights", "w.pth"], ["--published"]])
def test_detections_or_weights(other):
    done = run_script("test.py", "--detections", "d.json", *other, expect=2)
    assert "not allowed with argument" in the_error(done)


# ------------------------------------------------------------------------------------------ studies


@pytest.fixture
def tested(frames):
    """A study of a baseline on two frames: its weights' JSON, and what its test left."""
    shutil.copy(frames / "val_night.txt", frames / "test_night.txt")
    settings = {"classes": ["Pedestrian"], "ignore": None, "versions": {"git": "x"}}
    dataset = SeeingThroughFog(frames, "val_night", "rgb", ["Pedestrian"])
    settings["val_fingerprint"] = dataset.fingerprint
    settings["arguments"] = {"data": str(frames), "val_list": "val_night"}
    out = frames / "out"
    folder = out / "seed0/baseline"
    folder.mkdir(parents=True)
    (out / "seed0/baseline.pth").write_text("")
    (out / "seed0/baseline.json").write_text(json.dumps(settings))
    epoch = {"train_seconds": 1, "val_seconds": 1, "epoch": 1, "iteration": 1, "best_epoch": 1}
    epoch |= {"losses": {"a": 1}, "val": {"AP": 0.5}, "lr": 0.1}
    (folder / "log.jsonl").write_text(json.dumps(epoch) + "\n")
    results = [{**result(0, [10, 10, 10, 30], 0.9), "file_name": "a"}]
    results.append({**result(1, [10, 10, 10, 30], 0.8), "file_name": "b"})
    metrics = {"baseline": {"AP": 0.5}}
    for name in ("val_night", "test_night"):
        (folder / f"detections.{name}.json").write_text(json.dumps(results))
    scores = {"classes": ["Pedestrian"], "ignore": []}
    scores["metrics"] = {"val_night": metrics, "test_night": metrics}
    (folder / "scores.json").write_text(json.dumps(scores))
    return frames


def runs_of(data):
    """The runs of `tested` that a report would use."""
    fingerprint_of.cache_clear()  # as in a new process
    folder = data / "out/seed0"
    finished = {"baseline": {0: (folder / "baseline", folder / "baseline.pth")}}
    return read_runs(Study(data, "val_night", "test_night", [0], finished, 1))["baseline"]


def test_a_report_leaves_out_runs_of_other_labels(tested, capsys):
    assert list(runs_of(tested)) == [0]
    (tested / "gated_labels/b.txt").write_text(label_line())
    assert runs_of(tested) == {}
    error = capsys.readouterr().err
    assert f"{tested}/out/seed0/baseline.pth was chosen on other frames or labels than" in error
    assert f"{tested}/val_night.txt has now" in error
    assert len(error.splitlines()) == 1


def test_a_report_leaves_out_detections_of_another_order(tested, capsys):
    (tested / "test_night.txt").write_text("b\na\n")
    assert runs_of(tested) == {}
    error = capsys.readouterr().err
    assert "detections.test_night.json: result 0 is on a, but image 0 of the list is b" in error
    assert "baseline/scores.json, and test it again" in error


def test_studies_check_whose_detections_they_read(tested):
    folder = tested / "out/seed0/baseline"
    shutil.copy(folder / "detections.test_night.json", folder / "detections.baseline.json")
    nights = visible_share.Nights(0.3, tested, Job("a", [], folder))
    (tested / "seed0").symlink_to(folder)
    (tested / "data").symlink_to(tested)
    arguments = option_words(data=tested, lists=["val_night", "test_night"])
    records = {"test/seed0/baseline": {"arguments": arguments}}
    args = argparse.Namespace(study=tested / "out", seeds=[0], draws=2)
    test = Job("a", arguments, folder)
    readers = [
        lambda: visible_share.compare_networks(nights, [0], ["baseline"], 2),
        lambda: unlabelled.compare(args, records, ["baseline"]),
        lambda: ablations.ap_difference(test, [folder], [folder], 2),
    ]
    for name in ("val_night", "test_night"):
        (tested / f"{name}.txt").write_text("b\na\n")
    for read in readers:
        with pytest.raises(UserError, match="is on a, but image 0 of the list is b"):
            read()


def test_a_study_is_not_continued_with_other_labels(tested):
    """Before hours of training, and nothing is written."""
    options = ["--data", tested, "--out", tested / "out", "--seeds", 0, 1, "--students", "cmkd_mse"]
    (tested / "gated_labels/b.txt").write_text(label_line())
    fingerprint_of.cache_clear()
    done = run_here([str(ROOT / "reproduce.py"), *map(str, options)])
    assert done.returncode == 2
    assert "baseline.pth was chosen on other frames or labels" in the_error(done)
    assert not (tested / "out/jobs.json").exists()


def test_a_data_folder_that_was_moved_says_nothing_of_labels(tested):
    weights = tested / "out/seed0/baseline.pth"
    refuse_other_val_list(weights)
    (tested / "gated_labels/b.txt").write_text(label_line())
    fingerprint_of.cache_clear()
    with pytest.raises(UserError, match=r"baseline\.pth was chosen on other frames or labels"):
        refuse_other_val_list(weights)
    (tested / "val_night.txt").rename(tested / "moved.txt")
    refuse_other_val_list(weights)


def test_a_test_runs_again_if_its_list_or_labels_changed(frames):
    """Also if a list of its conditions did; not for other files."""
    (frames / "val_snow_night.txt").write_text("b")
    (frames / "gated_labels/other.txt").write_text("")
    weights, out = frames / "w.pth", frames / "out"
    weights.write_text("")
    test = evaluation_job("test", "train", out, [weights], frames, ["val_night"], [])
    jobs = [Job("train", [], weights), test]
    out.mkdir()
    test.makes.write_text("")
    done = {job.name: {"arguments": job.arguments, "done": True} for job in jobs}

    def is_done():
        (out / "jobs.json").write_text(json.dumps(done))
        return begin(jobs, out)["test"]["done"]

    now = time.time()
    os.utime(test.makes, (now + 10, now + 10))
    assert is_done()
    for name, is_read in (
        ("gated_labels/a.txt", True),
        ("val_night.txt", True),
        ("val_snow_night.txt", True),
        ("train_night.txt", False),
        ("gated_labels/other.txt", False),
    ):
        os.utime(frames / name, (now + 20, now + 20))
        assert is_done() != is_read
        os.utime(frames / name, (now, now))
    (frames / "gated_labels/b.txt").unlink()
    assert not is_done()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_study_on_a_file_system_without_locks(tmp_path, monkeypatch, capsys, code):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    with lock(tmp_path / "out"):
        error = capsys.readouterr().err
    assert error.startswith(f"warning: {tmp_path}/out: this file system cannot lock (")
    assert error.endswith("do not start the same command twice\n")
    assert len(error.splitlines()) == 1


def test_a_study_in_use_is_still_refused(tmp_path):
    with (
        lock(tmp_path / "out"),
        pytest.raises(UserError, match="used by a call that still runs"),
        lock(tmp_path / "out"),
    ):
        pass


@pytest.mark.parametrize("preset", ["smoke", "cpu", "unlabelled"])
def test_a_study_of_an_older_simulator_continues_with_its_frames(tmp_path, monkeypatch, preset):
    """The error's advice: with --data, all jobs but the simulation are the same."""
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    for name in ("train_night", "unlabelled_night"):
        (out / f"data/{name}.txt").write_text("a")
    found = []
    for more in ([], ["--data", str(out / "data")]):
        command = ["reproduce.py", "--preset", preset, "--out", str(out), *more]
        monkeypatch.setattr(sys, "argv", command)
        args = reproduce.parse_arguments()
        chosen = reproduce.PRESETS[preset]
        before = reproduce.preparation_jobs(args, chosen)
        pairs = [
            reproduce.training_jobs(name, 0, args, chosen, before)
            for name in ("teacher", "baseline", *args.students)
        ]
        found.append([(job.name, job.arguments) for pair in pairs for job in pair])
        if not more:
            [nights] = before
    assert found[0] == found[1]
    (out / "jobs.json").write_text(
        json.dumps({"nights": {"arguments": nights.arguments[:-1], "done": True}})
    )
    with pytest.raises(UserError, match=f"--data {out}/data to continue with its frames"):
        begin([nights], out)

"""Published weights and data over a local HTTP server, with what can go wrong on the way."""

import io
import json
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import ROOT, label_line, run_here, the_error, write_frame
from test_models import torchvision_0_12

from cmkd.frames import archive
from cmkd.runtime.files import UserError
from cmkd.runtime.weights import read_settings
from dataset import SeeingThroughFog
from download import DATA_ID, WEIGHTS
from models import Detector, load_detector

pytest.importorskip("gdown")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A teacher and a baseline as they were published, with random weights."""
    folder = tmp_path_factory.mktemp("published")
    for name in ("teacher", "baseline"):
        torch.manual_seed(0)
        detector = Detector(WEIGHTS[name].channels, 2)
        torch.save(torchvision_0_12(detector.state_dict()), folder / WEIGHTS[name].file)
    yield folder
    for file in folder.iterdir():
        file.unlink()


@pytest.fixture
def server():
    """Serves `files` (path -> bytes); `cut` paths end early."""
    files, cut = {}, set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content = files.get(self.path.lstrip("/"))
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:-100] if self.path.lstrip("/") in cut else content)

        def log_message(self, *_):
            pass

    opened = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=opened.serve_forever, daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{opened.server_port}/", files=files, cut=cut)
    opened.shutdown()
    opened.server_close()


def download(*arguments, expect=0):
    done = run_here([str(ROOT / "download.py"), *map(str, arguments)])
    assert done.returncode == expect, f"{done.stdout}\n{done.stderr}"
    return done


def last_error(done):
    """The error; a progress bar of gdown may come before it."""
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if "error: " in line]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


def test_weights_arrive_are_checked_and_get_a_json(server, checkpoints, tmp_path):
    teacher = WEIGHTS["teacher"]
    server.files[teacher.drive_id] = (checkpoints / teacher.file).read_bytes()
    options = ["weights", "--only", "teacher", "--to", tmp_path / "w", "--base-url", server.url]
    done = download(*options)
    file = tmp_path / "w" / teacher.file
    assert f"next: python train_cmkd_mse.py --teacher {file}" in done.stdout
    assert load_detector(file).settings["channels"] == 6
    settings = read_settings(file)
    assert settings["published"] == {"network": "teacher", "val_AP": 25.8, "test_AP": 27.5}
    assert sorted(path.name for path in (tmp_path / "w").iterdir()) == [
        "teacher_Net.json",
        "teacher_Net.pth",
    ]
    server.files.clear()
    assert "is there already" in download(*options).stdout


PAGES = {
    "quota": (b"<!DOCTYPE html><p>Quota exceeded: too many users", "too many people downloaded"),
    "sign in": (b"<html><title>Sign in - Google", "a sign-in page"),
    "another page": (b"\n<html>hello", "a web page"),
    "another file": (b"\x89PNG nothing", "cannot be read as weights"),
}


@pytest.mark.parametrize("page", PAGES)
def test_what_is_no_checkpoint(server, tmp_path, page):
    content, message = PAGES[page]
    server.files[WEIGHTS["mse"].drive_id] = content
    options = ["weights", "--only", "mse", "--to", tmp_path / "w", "--base-url", server.url]
    assert message in last_error(download(*options, expect=2))
    assert list((tmp_path / "w").iterdir()) == []


def test_a_missing_and_a_truncated_download(server, tmp_path):
    options = ["weights", "--only", "adv", "--to", tmp_path / "w", "--base-url", server.url]
    error = last_error(download(*options, expect=2))
    assert "could not be downloaded" in error
    assert "--file" in error
    server.files[WEIGHTS["adv"].drive_id] = bytes(5000)
    server.cut.add(WEIGHTS["adv"].drive_id)
    last_error(download(*options, expect=2))
    assert not (tmp_path / "w/KDfea_adv.pth").exists()


def test_a_file_that_came_another_way(checkpoints, tmp_path):
    """Known by its name or by --only; another network is refused."""
    to = tmp_path / "w"
    download("weights", "--file", checkpoints / "baseline.pth", "--to", to)
    assert read_settings(to / "baseline.pth")["published"]["network"] == "baseline"
    options = ["weights", "--only", "mse", "--to", to, "--file"]
    error = the_error(download(*options, checkpoints / "teacher_Net.pth", expect=2))
    assert "has channels 6, and the published KDfea_mse.pth 3: it is another file" in error
    assert not (to / "KDfea_mse.pth").exists()
    (tmp_path / "some.pth").write_bytes(b"x")
    error = the_error(download("weights", "--file", tmp_path / "some.pth", "--to", to, expect=2))
    assert "pass --only too" in error


# --------------------------------------------------------------------------------------------- data


@pytest.fixture
def archive_of_data(tmp_path):
    """A zip of a prepared folder inside another folder."""
    root = tmp_path / "made/cmkd/data"
    for name in ("a", "b"):
        write_frame(root, name, (64, 48), label_line(box=(100, 100, 1400, 600)))
    for split in ("train", "val", "test"):
        (root / f"{split}_night.txt").write_text("a\nb\n")
    file = tmp_path / "data.zip"
    with zipfile.ZipFile(file, "w") as opened:
        for path in sorted((tmp_path / "made").rglob("*")):
            opened.write(path, path.relative_to(tmp_path / "made"))
    return file


def test_data_arrive_once_the_terms_are_accepted(server, archive_of_data, tmp_path):
    server.files[DATA_ID] = archive_of_data.read_bytes()
    options = ["data", "--to", tmp_path / "data", "--base-url", server.url]
    done = download(*options, expect=2)
    assert "for registered users, for research only" in done.stdout
    assert "--accept-terms is missing" in the_error(done)
    assert not (tmp_path / "data").exists()
    done = download(*options, "--accept-terms")
    assert (tmp_path / "data/images/a.png").is_file()
    assert f"next: python check_data.py {tmp_path / 'data'}" in done.stdout
    assert json.loads((tmp_path / "data/published.json").read_text())["lists"].keys() == {
        "train_night",
        "val_night",
        "test_night",
    }
    assert {path.name for path in tmp_path.iterdir()} == {"made", "data.zip", "data"}
    options = [*options[:3], "--accept-terms", "--file", archive_of_data]
    assert "holds something" in the_error(download(*options, expect=2))


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/out.txt", "a/../../out.txt", "C:/out.txt"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_no_name_leaves_the_folder(tmp_path, name, kind):
    file = tmp_path / "bad"
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as opened:
            opened.writestr("good.txt", "x")
            opened.writestr(name, "x")
    else:
        with tarfile.open(file, "w") as opened:
            for one in ("good.txt", name):
                member = tarfile.TarInfo(one)
                member.size = 1
                opened.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(UserError, match="would leave the folder: nothing was unpacked"):
        archive.unpack(file, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_no_link_and_not_too_much(tmp_path):
    file = tmp_path / "bad.tar.gz"
    with tarfile.open(file, "w:gz") as opened:
        member = tarfile.TarInfo("link")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        opened.addfile(member)
    with pytest.raises(UserError, match="is a link"):
        archive.unpack(file, tmp_path / "out")
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr("large.txt", bytes(2000))
    with pytest.raises(UserError, match="nothing was unpacked"):
        archive.unpack(file, tmp_path / "out", largest=1000)
    assert archive.unpack(file, tmp_path / "out", largest=2000) == 1
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UserError, match="no whole zip or tar archive"):
        archive.unpack(file, tmp_path / "again")


@pytest.mark.parametrize("kind", ["w:gz", "w:bz2", "w:xz", "zip"])
def test_one_changed_byte_is_noticed(tmp_path, kind):
    """Wherever it is; numbers of a picture without pattern, so that no decoder stumbles over it."""
    content = np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes()
    file = tmp_path / "archive"
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
            opened.writestr("a.png", content)
    else:
        with tarfile.open(file, kind) as opened:
            member = tarfile.TarInfo("a.png")
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    whole = file.read_bytes()
    assert archive.unpack(file, tmp_path / "whole") == 1
    for place in range(100, 5000, 350):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="remove it, and download it again"):
            archive.unpack(file, tmp_path / "damaged")


def test_an_archive_that_was_refused_is_not_fetched_again(server, archive_of_data, tmp_path):
    """It took hours; the folder that the frames go to may be the present one."""
    server.files[DATA_ID] = archive_of_data.read_bytes()
    to = tmp_path / "home/data"
    options = ["data", "--to", to, "--accept-terms", "--base-url", server.url]
    with patch("shutil.disk_usage", return_value=SimpleNamespace(free=10)):
        assert "nothing was unpacked" in last_error(download(*options, expect=2))
    server.files.clear()
    download(*options)
    assert (to / "images/a.png").is_file()
    assert [path.name for path in to.parent.iterdir()] == ["data"]


def test_published_checkpoints_beside_the_paper(
    checkpoints, archive_of_data, tmp_path, monkeypatch
):
    """Boxes are not clipped, and only the archive's own lists have a difference."""
    data = tmp_path / "data"
    download("data", "--to", data, "--accept-terms", "--file", archive_of_data)
    (tmp_path / "weights/published").mkdir(parents=True)
    download(
        *("weights", "--file", checkpoints / "baseline.pth"),
        *("--to", tmp_path / "weights/published"),
    )
    (data / "val_night.txt").write_text("a\n")
    monkeypatch.chdir(tmp_path)
    command = [str(ROOT / "test.py"), "--published", "--data", str(data), "--workers", "0"]
    done = run_here([*command, "--json", "s.json"])
    assert done.returncode == 0, done.stderr
    assert "float32, boxes not clipped" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines() if "other frames" in line]
    assert [row[0] for row in rows] == ["val_night"]
    [row] = [line for line in done.stdout.splitlines() if "24.2" in line]
    assert row.split()[0] == "test_night"
    assert float(row.split()[-1]) == pytest.approx(float(row.split()[2]) - 24.2, abs=0.06)
    assert json.loads((tmp_path / "s.json").read_text())["amp"] is False


def test_boxes_may_stay_as_labelled(tmp_path):
    write_frame(tmp_path, "a", (64, 48), label_line(box=(640, 360, 1400, 720)))
    (tmp_path / "one.txt").write_text("a")
    dataset = SeeingThroughFog(tmp_path, "one", "rgb")
    clipped, whole = (
        dataset.ground_truth(clipped=one)["annotations"][0]["bbox"] for one in (True, False)
    )
    assert clipped == pytest.approx([32, 24, 32, 24])
    assert whole == pytest.approx([32, 24, 38, 24])

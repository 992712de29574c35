"""make_synthetic.py by its command line: determinism, labels, physics, visibility, refusals."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import make_synthetic  # noqa: E402

COUNTS = (16, 4, 8)


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "make_synthetic.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def simulate(out: Path, workers: int, seed: int = 3) -> Path:
    done = run("--out", out, "--frames", *COUNTS, "--size", "213x128", "--seed", seed, "--workers", workers)
    assert done.returncode == 0, done.stderr
    return out


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("synthetic") / "data", workers=1)


def labels(data: Path) -> list[tuple[str, list[str]]]:
    return [(path.stem, line.split()) for path in sorted((data / "gated_labels").iterdir())
            for line in path.read_text().splitlines()]


def test_layout(data: Path) -> None:
    kinds = ("train", "val", "test", "vis")
    lists = {kind: (data / f"{kind}_night.txt").read_text().split() for kind in kinds}
    assert tuple(len(lists[name]) for name in ("train", "val", "test")) == COUNTS
    names = lists["train"] + lists["val"] + lists["test"]
    assert len(set(names)) == sum(COUNTS)
    peopled = {name for name, columns in labels(data) if columns[0].startswith("Pedestrian")}
    assert lists["vis"] == [name for name in lists["test"] if name in peopled][:12]
    for folder, mode in (("images", "RGB"), ("gated0", "L"), ("gated1", "L"), ("gated2", "L")):
        assert sorted(path.stem for path in (data / folder).iterdir()) == sorted(names)
        with Image.open(data / folder / f"{names[0]}.png") as image:
            assert (image.size, image.mode) == ((213, 128), mode)


def test_same_seed_same_bytes_whatever_the_workers(data: Path, tmp_path: Path) -> None:
    assert contents(data) == contents(simulate(tmp_path / "again", workers=2))


def test_labels(data: Path) -> None:
    found = labels(data)
    assert {"Pedestrian", "PassengerCar"} <= {columns[0] for _, columns in found}
    for _, columns in found:
        assert len(columns) == 27
        assert columns[2] in {"0", "1", "2"}
        assert set(columns[23:25]) <= {"True", "False"}
        x0, y0, x1, y1 = map(float, columns[4:8])
        assert 0 <= x0 < x1 <= 1280
        assert 0 <= y0 < y1 <= 720
        assert 3 < float(columns[13]) < 110


def test_people_stand_out_in_the_gated_slices(data: Path) -> None:
    brighter = []
    for name, columns in labels(data):
        if not columns[0].startswith("Pedestrian"):
            continue
        slices = [np.asarray(Image.open(data / f"gated{index}" / f"{name}.png"), float) for index in range(3)]
        view = np.max(slices, axis=0)
        box = np.array(columns[4:8], float).reshape(2, 2) * [213 / 1280, 128 / 720]
        x0, y0, x1, y1 = box.round().astype(int).ravel()
        around = view[max(y0 - 4, 0):y1 + 4, max(x0 - 4, 0):x1 + 4]
        inside = view[y0:y1, x0:x1]
        rest = (around.sum() - inside.sum()) / max(around.size - inside.size, 1)
        brighter.append(inside.mean() > rest + 5)
    assert len(brighter) > 20
    assert np.mean(brighter) > 0.8


def test_visible_flags_differ(data: Path) -> None:
    people = [columns for _, columns in labels(data) if columns[0].startswith("Pedestrian")]
    assert {columns[23] for columns in people} == {"True", "False"}
    assert np.mean([columns[24] == "True" for columns in people]) > 0.9


@pytest.mark.parametrize(("distance", "expected"), [
    (5, (1574, 0, 0)), (10, (1376, 0, 0)), (20, (835, 289, 0)), (30, (590, 768, 0)), (50, (173, 736, 0)),
    (80, (0, 377, 270)), (100, (0, 132, 322))])
def test_range_profiles(distance: float, expected: tuple[float, ...]) -> None:
    ranges, profiles = make_synthetic.range_profiles()
    values = [np.interp(distance, ranges, profile) for profile in profiles]
    assert values == pytest.approx(expected, rel=0.12, abs=8)


def test_any_size(tmp_path: Path) -> None:
    for size in ("9x7", "500x400"):
        done = run("--out", tmp_path / size, "--frames", 2, 0, 0, "--size", size, "--workers", 1)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / size / "test_night.txt").read_text() == ""


@pytest.mark.parametrize("arguments", [
    ["--size", "1280"], ["--size", "0x768"], ["--size", "-3x5"], ["--size", "axb"],
    ["--frames", "0", "1", "1"], ["--frames", "1", "-1", "1"], ["--frames", "a", "1", "1"], ["--frames", "1"],
    ["--workers", "0"], ["--seed", "-1"]])
def test_bad_input_is_refused_in_one_line(arguments: list[str], tmp_path: Path) -> None:
    done = run("--out", tmp_path / "data", *arguments)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert not (tmp_path / "data").exists()


def test_existing_data_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("keep")
    for out in (tmp_path / "data", tmp_path / "data" / "mine.txt"):
        done = run("--out", out, "--frames", 1, 0, 0, "--size", "64x40", "--workers", 1)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert contents(tmp_path / "data") == {"mine.txt": b"keep"}

"""One-line errors, types of the command line, and whole files."""

import argparse
import resource
import subprocess

import pytest
import torch

from cmkd.runtime.command_line import non_negative_float, positive_float
from cmkd.runtime.failures import run
from cmkd.runtime.files import UserError, open_data_folder, read_json, refuse_unwritable, save_json
from cmkd.runtime.hardware import versions
from cmkd.runtime.weights import WeightsError, save_torch


def ended_with(capsys, error):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        run(main)
    assert end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    return line.partition("error: ")[2]


def test_errors_end_in_one_line(capsys):
    assert ended_with(capsys, UserError("a.txt is missing: add it")) == "a.txt is missing: add it"
    two_lines = WeightsError("a.pth is bad:\nfor two reasons")
    assert ended_with(capsys, two_lines) == "a.pth is bad: for two reasons"
    wrapped = (
        "Caught UserError in DataLoader worker process 0.\n"
        "Original Traceback (most recent call last):\n"
        '  File "worker.py", line 1, in f\n'
        "cmkd.runtime.files.UserError: a.png is bad\nat its end\n"
    )
    assert ended_with(capsys, UserError(wrapped)) == "a.png is bad at its end"


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "", "a", "-0.1"])
def test_numbers_that_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a number of at least 0"):
        non_negative_float(text)
    with pytest.raises(argparse.ArgumentTypeError, match="is not a number above 0"):
        positive_float(text)


def test_zero_is_a_weight_and_no_learning_rate():
    assert non_negative_float("0") == 0
    with pytest.raises(argparse.ArgumentTypeError):
        positive_float("0")


def test_unwritable_files_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    for check in (refuse_unwritable, lambda path: save_json({}, path)):
        with pytest.raises(
            UserError, match=r"file/a.json cannot be written \((Not a directory|File exists)\)"
        ):
            check(tmp_path / "file" / "a.json")
    with pytest.raises(UserError, match="is a folder: name a file"):
        refuse_unwritable(tmp_path)
    refuse_unwritable(tmp_path / "new/folder/a.json")
    assert list((tmp_path / "new/folder").iterdir()) == []


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """A limit on the size of files stands for the disk."""
    save_torch(torch.zeros(1), tmp_path / "a.pth")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"a.pth cannot be written \(File too large\)"):
            save_torch(torch.zeros(1_000_000), tmp_path / "a.pth")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(torch.load(tmp_path / "a.pth", weights_only=True)) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]


def test_versions_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError):
        subprocess.run(["git"])
    assert versions()["git"] == "unknown"
    assert versions()["torch"] == torch.__version__


def test_a_data_folder_is_resumed_with_the_same_parameters_only(tmp_path):
    def open_it(**parameters):
        return open_data_folder(tmp_path / "data", "made.json", parameters, ("images", "labels"))

    assert open_it(size=3) == {"parameters": {"size": 3}}
    (tmp_path / "data/images/.a.png.xyz").write_text("half")
    save_json({"parameters": {"size": 3}, "light": 0.5}, tmp_path / "data/made.json")
    assert open_it(size=3)["light"] == 0.5
    assert list((tmp_path / "data/images").iterdir()) == []
    with pytest.raises(UserError, match="was made with size 3, not 4: .*nothing was changed"):
        open_it(size=4)
    for damaged in ("{", "[]", "{}"):
        (tmp_path / "data/made.json").write_text(damaged)
        with pytest.raises(UserError, match=r"made.json .*choose another --out"):
            open_it(size=3)
    with pytest.raises(UserError, match="exists and holds something else"):
        open_data_folder(tmp_path, "made.json", {}, ())


def test_json_is_read_or_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a.json is not JSON \(.*\): fix it"):
        read_json(tmp_path / "a.json", "fix it")
    with pytest.raises(UserError, match="b.json is missing: make it"):
        read_json(tmp_path / "b.json", "make it")

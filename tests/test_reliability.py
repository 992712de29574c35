"""What training promises when it is killed, stopped, starved or fed damaged files: real scripts, real signals."""

import contextlib
import errno
import json
import multiprocessing
import os
import pickle
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, label_line, run_script, the_error, write_frame
from test_engine import Seer, run_fit
from test_engine import arguments as settings_of_fit

from cmkd.runtime import checkpoint, distributed
from cmkd.runtime.failures import StopRequest, naming_dead_workers
from dataset import SeeingThroughFog, TrainingBatches, make_loader
from engine import fit
from utils import UserError, append_record


def start_script(script, *arguments):
    return subprocess.Popen([sys.executable, ROOT / script, *map(str, arguments)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True,
                            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})


def wait_for_saves(process, run_dir, count):
    """Until the run has saved its state so many times."""
    seen, deadline = set(), time.monotonic() + 120
    while len(seen) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        with contextlib.suppress(FileNotFoundError):
            seen.add((run_dir / "last.pth").stat().st_mtime_ns)
        time.sleep(0.01)


def records_of(run_dir):
    """The log's epochs without what differs from run to run."""
    records = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if not key.endswith("seconds")}
            for record in records if "epoch" in record]


def same_tensors(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_killed_stopped_and_damaged_a_run_ends_as_if_nothing_had_happened(synthetic, tmp_path, trained):
    """SIGKILL within an epoch, a truncated checkpoint, SIGTERM, another number of loader processes: the weights are
    those of an uninterrupted run to the bit. The adversarial script has the most to restore."""
    common = ["--data", synthetic, "--flip", "--teacher", trained / "weights/teacher.pth", "--epochs", 3, *TINY]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_script("train_cmkd_adv.py", *common, "--out", whole, "--run-dir", whole / "run", "--workers", 2)

    again = [*common, "--out", parts, "--run-dir", parts / "run", "--checkpoint-minutes", 1e-9]
    process = start_script("train_cmkd_adv.py", *again)
    wait_for_saves(process, parts / "run", 7)  # three steps, the epoch's end, its validation, two more steps
    process.kill()
    process.communicate()
    last = parts / "run/last.pth"
    last.write_bytes(last.read_bytes()[:-1000])

    process = start_script("train_cmkd_adv.py", *again, "--resume", "--workers", 1)
    wait_for_saves(process, parts / "run", 2)
    process.terminate()
    out, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert f"{last} is damaged" in err
    assert re.search(r"going on after epoch 1 and [12] steps of .*previous.pth", out)
    assert "stopped by SIGTERM" in err
    assert "--resume to go on" in err.splitlines()[-1]

    run_script("train_cmkd_adv.py", *again, "--resume")
    assert [record["epoch"] for record in records_of(parts / "run")] == [1, 2, 3]
    assert records_of(whole / "run") == records_of(parts / "run")
    ends = [torch.load(folder / "run/last.pth", weights_only=True) for folder in (whole, parts)]
    assert ends[0]["state"] == ends[1]["state"]
    for part in ("model", "also_trained"):
        assert same_tensors(ends[0][part], ends[1][part])
    assert same_tensors(*(torch.load(folder / "cmkd_adv.pth", weights_only=True) for folder in (whole, parts)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_and_saves(synthetic, tmp_path, number):
    """It goes to all processes of the run, as from a terminal or a cluster's scheduler."""
    run_dir = tmp_path / "run"
    process = start_script("train_baseline.py", "--data", synthetic, "--epochs", 100, *TINY, "--workers", 2, "--out",
                           tmp_path, "--run-dir", run_dir)
    wait_for_saves(process, run_dir, 2)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    [line] = err.splitlines()
    state = torch.load(run_dir / "last.pth", weights_only=True)["state"]
    if place := re.search(rf"stopped by {number.name} after step (\d+) of epoch (\d+); everything is saved", line):
        assert state["iteration"] == 3 * (int(place[2]) - 1) + int(place[1])
        assert state["under_way"]["steps"] == int(place[1])
    else:
        assert f"stopped by {number.name} while validating; everything is saved" in line
        assert state["under_way"]["steps"] == 3


def interrupt_twice():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("went on")


def test_a_second_ctrl_c_stops_at_once():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupt_twice()
    assert signal.getsignal(signal.SIGINT) is before


def the_last_line(text):
    return text.strip().splitlines()[-1]


@pytest.fixture
def one_frame(tmp_path):
    write_frame(tmp_path, "a", (1280, 720), label_line(box=(10, 10, 60, 60)))
    (tmp_path / "train_night.txt").write_text("a")
    return SeeingThroughFog(tmp_path, "train_night", "rgb")


@pytest.mark.parametrize("damage", [lambda content: content[:-100], lambda content: b"", lambda content: b"text",
                                    lambda content: content.replace(struct.pack("<f", 2), struct.pack("<f", 3), 1)],
                         ids=["truncated", "empty", "text", "one value"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(one_frame, tmp_path, capsys, damage):
    run_fit(one_frame, tmp_path, Seer({1}), epochs=2)
    last = tmp_path / "run/last.pth"
    damaged = damage(last.read_bytes())
    assert damaged != last.read_bytes()
    last.write_bytes(damaged)
    log = run_fit(one_frame, tmp_path, Seer({1}), epochs=2, resume=True)
    assert re.search(rf"{last} is damaged .*: it is now last.damaged, and the checkpoint before it is used",
                     capsys.readouterr().err)
    assert (tmp_path / "run/last.damaged").read_bytes() == damaged
    assert [record["epoch"] for record in log if "epoch" in record] == [1, 2]
    (tmp_path / "run/previous.pth").write_bytes(b"")
    last.write_bytes(damaged)
    with pytest.raises(UserError, match="has no whole checkpoint: .*last.pth and .*previous.pth damaged"):
        run_fit(one_frame, tmp_path, Seer({1}), epochs=2, resume=True)
    assert last.read_bytes() == damaged


def test_a_full_disk_leaves_a_checkpoint_to_go_on_from(one_frame, tmp_path):
    """A limit on the size of files stands for the disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk_in_epoch_2(model):
        if model.epoch == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        return -model.steps.sum()

    try:
        with pytest.raises(UserError, match=r"last.pth.* cannot be written \(File too large\)"):
            run_fit(one_frame, tmp_path, Seer({1}), fill_the_disk_in_epoch_2, epochs=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not checkpoint.damage_of(tmp_path / "run/last.pth")
    log = run_fit(one_frame, tmp_path, Seer({1}), epochs=3, resume=True)
    assert [record["epoch"] for record in log if "epoch" in record] == [1, 2, 3]
    assert torch.load(tmp_path / "run/last.pth", weights_only=True)["model"]["steps"].item() == pytest.approx(3.0)


class Exploit:
    """Makes a file when it is unpickled as code."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("write", [torch.save, lambda content, file: file.write_bytes(pickle.dumps(content))],
                         ids=["torch.save", "pickle"])
def test_nothing_in_a_training_checkpoint_is_run(one_frame, tmp_path, write):
    run_fit(one_frame, tmp_path, Seer({1}), epochs=1)
    (tmp_path / "run/previous.pth").unlink()
    write({**dict.fromkeys(checkpoint.PARTS, {}), "model": Exploit(tmp_path / "was_here")}, tmp_path / "run/last.pth")
    with pytest.raises(UserError) as error:
        run_fit(one_frame, tmp_path, Seer({1}), epochs=2, resume=True)
    assert "last.pth" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "was_here").exists()


def test_what_a_kill_left_half_written_is_removed(one_frame, tmp_path):
    run_fit(one_frame, tmp_path, Seer({1}), epochs=1)
    for half in (tmp_path / "run/.last.pth.new.abc", tmp_path / "w/.seer.pth.xyz"):
        half.write_bytes(b"half")
    run_fit(one_frame, tmp_path, Seer({1}), epochs=1, resume=True)
    assert sorted(file.name for file in (tmp_path / "w").iterdir()) == ["seer.json", "seer.pth"]
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["last.pth", "log.jsonl", "previous.pth"]


def test_more_processes_do_not_train_a_finished_epoch_again(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    batches = TrainingBatches(10, 4)
    batches.begin(seed=0, frames_done=10)
    assert list(batches) == []


def test_a_full_disk_stops_the_log_in_one_line(tmp_path):
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(UserError, match="log.jsonl cannot be written"):
        append_record(tmp_path / "log.jsonl", {})


def test_a_kill_between_the_renames_loses_nothing(one_frame, tmp_path):
    run_fit(one_frame, tmp_path, Seer({1}), epochs=1)
    (tmp_path / "run/last.pth").rename(tmp_path / "run/last.pth.new")
    log = run_fit(one_frame, tmp_path, Seer({1}), epochs=1, resume=True)
    assert [record["epoch"] for record in log if "epoch" in record] == [1]


def test_a_log_line_cut_by_a_kill_is_taken_off(one_frame, tmp_path):
    run_fit(one_frame, tmp_path, Seer({1}), epochs=1)
    with (tmp_path / "run/log.jsonl").open("a") as file:
        file.write('{"epoch": 2, "itera')
    log = run_fit(one_frame, tmp_path, Seer({1}), epochs=2, resume=True)
    assert [record.get("epoch") for record in log] == [None, 1, None, 2]


def test_random_numbers_go_on_where_they_were(tmp_path):
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    draw()
    torch.save(checkpoint.random_states(), tmp_path / "states.pth")
    expected = draw()
    checkpoint.set_random_states(torch.load(tmp_path / "states.pth", weights_only=True))
    assert draw() == expected


def three_frames(folder, damaged=""):
    for name in "abc":
        write_frame(folder, name, (160, 96), label_line(box=(10, 10, 600, 600)))
    for name in damaged:
        file = folder / "images" / f"{name}.png"
        file.write_bytes(file.read_bytes()[:200])
    (folder / "train_night.txt").write_text("a\nb\nc\n")
    (folder / "val_night.txt").write_text("b\n")
    return ["--data", folder, "--out", folder / "w", "--run-dir", folder / "run", *TINY]


def test_unreadable_frames_stop_training_or_are_skipped(tmp_path):
    arguments = three_frames(tmp_path, damaged="ac")
    message = the_error(run_script("train_baseline.py", *arguments, expect=2))
    assert re.search(r"images/[ac].png cannot be read", message)
    message = the_last_line(run_script("train_baseline.py", *arguments, "--resume", "--skip-bad", 1, expect=2).stderr)
    assert re.search(r"2 frames cannot be read and --skip-bad allows 1; the last: .*images/[ac].png", message)
    done = run_script("train_baseline.py", *arguments, "--resume", "--skip-bad", 2, "--epochs", 2, "--workers", 2)
    assert sorted(line.split(": ")[1] for line in done.stderr.splitlines()) == ["skipped a", "skipped c"]
    assert [record["skipped"] for record in records_of(tmp_path / "run")] == [2, 2]


def test_when_nothing_can_be_read_nothing_is_trained(tmp_path):
    arguments = three_frames(tmp_path, damaged="abc")
    message = the_last_line(run_script("train_baseline.py", *arguments, "--skip-bad", 9, expect=2).stderr)
    assert "train_night.txt: no frame can be read" in message


class Deadly(SeeingThroughFog):
    """The process that reads frame b is killed, as by a system without memory."""

    def _read(self, index):
        if self.names[index] == "b":
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._read(index)


def test_a_loader_process_that_dies_names_its_frame(tmp_path):
    three_frames(tmp_path)
    model = Seer({1})
    val = make_loader(SeeingThroughFog(tmp_path, "val_night", "rgb"), 1, 0)
    train = make_loader(Deadly(tmp_path, "train_night", "rgb"), 1, 1, shuffle=True)
    with pytest.raises(UserError, match=r"a loader process ended .* on .*images/b.png: look at this frame"):
        fit(model, lambda _: {"loss": model.steps.sum()}, torch.optim.SGD(model.parameters(), lr=1.0), train, val,
            weights=tmp_path / "w/seer.pth", run_dir=tmp_path / "run", settings={}, arguments=settings_of_fit())


@pytest.mark.parametrize("lost", [ConnectionResetError("Connection reset by peer"), EOFError("no more data"),
                                  RuntimeError("received 0 items of ancdata")])  # multiprocessing.reduction.recvfds
def test_a_connection_lost_to_a_loader_process_that_ends_names_its_frame(tmp_path, lost):
    """Between the end of its sockets and its own, torch does not see yet that it died."""
    three_frames(tmp_path)
    loader = make_loader(SeeingThroughFog(tmp_path, "train_night", "rgb"), 1, 1)
    next(iter(loader))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def fetch():
        with naming_dead_workers(loader):
            os.kill(loader.dataset.reading[0, 0].item(), signal.SIGKILL)
            raise lost

    with pytest.raises(UserError, match=rf"a loader process ended \({lost}\) on .*images/.*.png: look at this frame"):
        fetch()


@contextlib.contextmanager
def ending_within(seconds):
    """A wait for ever fails the test."""
    def give_up(*_):
        raise TimeoutError(f"still waiting after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(("number", "reason"), [(errno.ENOSPC, "No space left on device"),
                                              (errno.EMFILE, "Too many open files")])
def test_a_loader_process_that_can_hand_nothing_over_ends_the_run(tmp_path, monkeypatch, number, reason):
    """Its queue would drop what it read, and torch wait for ever."""
    three_frames(tmp_path)

    def refuse():
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(multiprocessing.util, "get_temp_dir", refuse)
    model = Seer({1})
    val = make_loader(SeeingThroughFog(tmp_path, "val_night", "rgb"), 1, 0)
    train = make_loader(SeeingThroughFog(tmp_path, "train_night", "rgb"), 1, 1, shuffle=True)
    with ending_within(60), pytest.raises(UserError, match=rf"can hand no frame over \({reason}\): it needs room in /"):
        fit(model, lambda _: {"loss": model.steps.sum()}, torch.optim.SGD(model.parameters(), lr=1.0), train, val,
            weights=tmp_path / "w/seer.pth", run_dir=tmp_path / "run", settings={}, arguments=settings_of_fit())


def test_too_little_memory_says_what_to_lower(tmp_path):
    arguments = three_frames(tmp_path)
    sizes = ["--min-size", 200_000, "--max-size", 400_000]
    message = the_error(run_script("train_baseline.py", *arguments, *sizes, expect=2))
    assert "out of memory" in message
    assert "lower --batch-size, --min-size or --rois, or pass --amp" in message


def test_the_same_seed_gives_the_same_weights(synthetic, tmp_path):
    """Whatever the number of loader processes; with another seed they differ."""
    for name, options in {"a": [0], "b": [2], "c": [1, "--seed", 1]}.items():
        run_script("train_baseline.py", "--data", synthetic, "--flip", *TINY, "--max-iterations", 3, "--out",
                   tmp_path / name, "--run-dir", tmp_path / name / "run", "--workers", *options)
    a, b, c = (torch.load(tmp_path / name / "run/last.pth", weights_only=True)["model"] for name in "abc")
    assert same_tensors(a, b)
    assert not same_tensors(a, c)


def test_a_gradient_that_is_not_finite_takes_no_step(one_frame, tmp_path):
    """The loss is 0 and its gradient infinite."""
    model = Seer({1})
    model.steps.data.fill_(0.0)
    with pytest.raises(UserError, match=r"non-finite .*loss 0, gradient_norm inf; frames a \(.*nonfinite.json\)"):
        run_fit(one_frame, tmp_path, model, lambda model: model.steps.sqrt().sum())
    assert model.steps.item() == 0.0
    report = json.loads((tmp_path / "run/nonfinite.json").read_text())
    assert (report["epoch"], report["step"], report["frames"]) == (1, 1, ["a"])
    assert (report["loss"], report["gradient_norm"]) == ("0.0", "inf")

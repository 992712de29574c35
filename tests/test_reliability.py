"""What training promises if it is killed, stopped, starved or fed damaged files.

Real scripts, real signals.
"""

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
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, epochs_of, label_line, the_error, train, write_frame
from test_engine import Seer, run_fit
from torch.utils.data import get_worker_info

from cmkd.evaluation.predict import predict
from cmkd.runtime import checkpoint, distributed
from cmkd.runtime.failures import StopRequest, fetch
from cmkd.runtime.files import UserError, append_record
from dataset import SeeingThroughFog, TrainingBatches, make_loader


def start_training(name, data, home, *options, threads=None):
    """Start a train script with a tiny network, in a process group of its own."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    places = ["--data", data, "--out", home, "--run-dir", home / "run"]
    return subprocess.Popen(
        [sys.executable, ROOT / f"train_{name}.py", *map(str, [*places, *TINY, *options])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    )


def wait_for_saves(process, run_dir, count):
    """Until the run has saved its state so many times."""
    seen, deadline = set(), time.monotonic() + 120
    while len(seen) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        with contextlib.suppress(FileNotFoundError):
            seen.add((run_dir / "last.pth").stat().st_mtime_ns)
        time.sleep(0.01)


def same_tensors(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_killed_stopped_and_damaged_a_run_ends_as_if_nothing_had_happened(
    synthetic, tmp_path, trained
):
    """SIGKILL within an epoch, a truncated checkpoint, SIGTERM, another number of workers.

    The weights are those of an uninterrupted run to the bit. The adversarial script has the most to
    restore.
    """
    common = ["--flip", "--epochs", 2, "--teacher", trained / "weights/teacher.pth"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train("cmkd_adv", synthetic, whole, "--workers 1", *common)

    common += ["--checkpoint-minutes", 1e-9]
    process = start_training("cmkd_adv", synthetic, parts, *common)
    # Three steps, the epoch's end, its validation, two more steps.
    wait_for_saves(process, parts / "run", 7)
    process.kill()
    process.communicate()
    last = parts / "run/last.pth"
    last.write_bytes(last.read_bytes()[:-1000])

    process = start_training("cmkd_adv", synthetic, parts, *common, "--resume", "--workers", 1)
    wait_for_saves(process, parts / "run", 2)  # the truncated one is the first
    process.terminate()
    out, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert f"{last} is damaged" in err
    assert re.search(r"resuming after epoch 1 and [12] steps from .*previous.pth", out)
    assert "stopped by SIGTERM" in err
    assert "--resume to continue" in err.splitlines()[-1]

    train("cmkd_adv", synthetic, parts, "--resume", *common)
    assert [record["epoch"] for record in epochs_of(parts / "run")] == [1, 2]
    assert epochs_of(whole / "run") == epochs_of(parts / "run")
    ends = [torch.load(home / "run/last.pth", weights_only=True) for home in (whole, parts)]
    for end in ends:
        end["state"].pop("seconds")
    assert ends[0]["state"] == ends[1]["state"]
    for part in ("model", "also_trained"):
        assert same_tensors(ends[0][part], ends[1][part])
    bests = [torch.load(home / "cmkd_adv.pth", weights_only=True) for home in (whole, parts)]
    assert same_tensors(*bests)


@pytest.mark.skipif(os.cpu_count() < 2, reason="torch takes no more threads than there are cores")
def test_a_resumed_run_takes_the_number_of_threads_that_it_had(synthetic, tmp_path):
    """Or it would have other bits: a sum over threads has one part for each of them."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = ["--no-amp", "--epochs", 2]
    out, err = start_training("baseline", synthetic, whole, *common, threads=2).communicate()
    assert ", float32, 2 threads; not on a GPU because " in out, err

    often = ["--checkpoint-minutes", 1e-9]
    process = start_training("baseline", synthetic, parts, *common, *often, threads=2)
    wait_for_saves(process, parts / "run", 1)
    process.terminate()
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    common += ["--resume"]
    out, err = start_training("baseline", synthetic, parts, *common, threads=1).communicate()
    lines = out.splitlines()
    assert lines[0] == "threads: 2 as in the checkpoint (OMP_NUM_THREADS is 1)", err
    assert ", float32, 2 threads; not on a GPU because " in lines[1]
    log = [json.loads(line) for line in (parts / "run/log.jsonl").read_text().splitlines()]
    assert [record["threads"] for record in log if "threads" in record] == [2, 2]
    assert epochs_of(whole / "run") == epochs_of(parts / "run")
    ends = [torch.load(home / "run/last.pth", weights_only=True) for home in (whole, parts)]
    assert same_tensors(ends[0]["model"], ends[1]["model"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_and_saves(synthetic, tmp_path, number):
    """It goes to all processes of the run, as from a terminal or a cluster's scheduler.

    The folder of the workers' sockets is removed too, though they are killed.
    """
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with patch.dict(os.environ, {"TMPDIR": str(temporary)}):
        process = start_training("baseline", synthetic, tmp_path, "--epochs", 100, "--workers", 2)
    wait_for_saves(process, tmp_path / "run", 2)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert list(temporary.iterdir()) == []
    [line] = err.splitlines()
    state = torch.load(tmp_path / "run/last.pth", weights_only=True)["state"]
    stopped = rf"stopped by {number.name} after step (\d+) of epoch (\d+); everything is saved"
    if place := re.search(stopped, line):
        assert state["iteration"] == 3 * (int(place[2]) - 1) + int(place[1])
        assert state["steps"] == int(place[1])
    else:
        assert f"stopped by {number.name} while validating; everything is saved" in line
        assert state["steps"] == 3


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


@pytest.fixture
def one_frame(tmp_path):
    write_frame(tmp_path, "a", (1280, 720), label_line(box=(10, 10, 60, 60)))
    (tmp_path / "train_night.txt").write_text("a")
    return SeeingThroughFog(tmp_path, "train_night", "rgb")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-100],
        lambda content: b"",
        lambda content: b"text",
        lambda content: content.replace(struct.pack("<f", 2), struct.pack("<f", 3), 1),
    ],
    ids=["truncated", "empty", "text", "one value"],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(one_frame, tmp_path, capsys, damage):
    run_fit(one_frame, tmp_path, Seer({1}), epochs=2)
    last = tmp_path / "run/last.pth"
    damaged = damage(last.read_bytes())
    assert damaged != last.read_bytes()
    last.write_bytes(damaged)
    log = run_fit(one_frame, tmp_path, Seer({1}), epochs=2, resume=True)
    assert re.search(
        rf"{last} is damaged .*: it is now last.damaged, and the checkpoint before it is used",
        capsys.readouterr().err,
    )
    assert (tmp_path / "run/last.damaged").read_bytes() == damaged
    assert [record["epoch"] for record in log if "epoch" in record] == [1, 2]
    (tmp_path / "run/previous.pth").write_bytes(b"")
    last.write_bytes(damaged)
    with pytest.raises(
        UserError, match="has no whole checkpoint: .*last.pth and .*previous.pth damaged"
    ):
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
    assert torch.load(tmp_path / "run/last.pth", weights_only=True)["model"][
        "steps"
    ].item() == pytest.approx(3.0)


class Exploit:
    """Makes a file when it is unpickled as code."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize(
    "write",
    [torch.save, lambda content, file: file.write_bytes(pickle.dumps(content))],
    ids=["torch.save", "pickle"],
)
def test_nothing_in_a_training_checkpoint_is_run(one_frame, tmp_path, write):
    run_fit(one_frame, tmp_path, Seer({1}), epochs=1)
    (tmp_path / "run/previous.pth").unlink()
    write(
        {**dict.fromkeys(checkpoint.CONTENT, {}), "model": Exploit(tmp_path / "was_here")},
        tmp_path / "run/last.pth",
    )
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
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == [
        "last.pth",
        "log.jsonl",
        "previous.pth",
        "run_id",
    ]


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
    """A data folder with the lists train_night (a, b, c) and val_night (b)."""
    for name in "abc":
        write_frame(folder, name, (160, 96), label_line(box=(10, 10, 600, 600)))
    for name in damaged:
        file = folder / "images" / f"{name}.png"
        file.write_bytes(file.read_bytes()[:200])
    (folder / "train_night.txt").write_text("a\nb\nc\n")
    (folder / "val_night.txt").write_text("b\n")
    return folder


def test_an_unreadable_frame_stops_training_until_it_is_restored(tmp_path):
    data = three_frames(tmp_path, damaged="ac")
    for options in ("", "--resume --workers 2"):
        message = the_error(train("baseline", data, tmp_path, options, expect=2))
        assert re.search(r"images/[ac].png cannot be read .*: restore it", message)
    three_frames(tmp_path)
    train("baseline", data, tmp_path, "--resume --epochs 1")
    assert [record["epoch"] for record in epochs_of(tmp_path / "run")] == [1]


# ----------------------------------------------------------------------------- loader workers


@contextlib.contextmanager
def ending_within(seconds):
    """Waiting longer fails the test."""

    def give_up(*_):
        raise TimeoutError(f"still waiting after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fit_with_a_worker(tmp_path, dataset_class, loss=None):
    """Train on three frames, which one worker reads as `dataset_class` does."""
    three_frames(tmp_path)
    train_set = dataset_class(tmp_path, "train_night", "rgb")
    val_set = SeeingThroughFog(tmp_path, "val_night", "rgb")
    loss = loss or (lambda model, _: model.steps.sum())
    with ending_within(60):
        run_fit(
            train_set,
            tmp_path,
            Seer({1}),
            lambda model: loss(model, train_set),
            val_set=val_set,
            workers=1,
        )


class DiesOnFrameB(SeeingThroughFog):
    """The worker is killed on frame b, as by a system without memory."""

    def _decode(self, index):
        if self.names[index] == "b":
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._decode(index)


class HasFewDescriptors(SeeingThroughFog):
    """The worker may open only so many more files, once it has read a frame."""

    left = 0

    def _decode(self, index):
        image = super()._decode(index)
        lowest_free = os.open(os.devnull, os.O_RDONLY)
        os.close(lowest_free)
        limit = lowest_free + self.left
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        return image


DIED = r"a loader worker died \(.*\) on .*images/{}.png: look at this frame"


def test_a_worker_that_dies_names_its_frame(tmp_path):
    with pytest.raises(UserError, match=DIED.format("b")):
        fit_with_a_worker(tmp_path, DiesOnFrameB)


def kill_worker(dataset):
    """Kill a loader's first worker, and wait until it is gone."""
    os.kill(dataset.reading[0, 0].item(), signal.SIGKILL)
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_worker_killed_during_a_step_is_named_at_the_next_batch(tmp_path):
    """torch's handler would raise its own error within the step."""

    def loss(model, train_set):
        kill_worker(train_set)
        return model.steps.sum()

    with pytest.raises(UserError, match=DIED.format("[abc]")):
        fit_with_a_worker(tmp_path, SeeingThroughFog, loss)


class KillsAWorker(Seer):
    """A detector that kills the worker of its loader."""

    def forward(self, images):
        kill_worker(self.dataset)
        return super().forward(images)


def test_a_worker_killed_while_a_detector_runs_is_named(tmp_path):
    """In validation, and in test.py, which call the same function."""
    model = KillsAWorker({0})
    model.dataset = SeeingThroughFog(three_frames(tmp_path), "train_night", "rgb")
    with ending_within(60), pytest.raises(UserError, match=DIED.format("[abc]")):
        predict(model, make_loader(model.dataset, 1, 1))


@pytest.mark.parametrize(
    "lost",
    [
        ConnectionResetError("Connection reset by peer"),
        EOFError("no more data"),
        RuntimeError("received 0 items of ancdata"),  # multiprocessing.reduction.recvfds
    ],
)
def test_a_connection_lost_to_a_dying_worker_names_its_frame(tmp_path, monkeypatch, lost):
    """Between the end of its sockets and its own, torch does not see yet that it died."""
    loader = make_loader(SeeingThroughFog(three_frames(tmp_path), "train_night", "rgb"), 1, 1)
    batches = fetch(loader)
    next(batches)

    def lose_connection(_):
        os.kill(loader.dataset.reading[0, 0].item(), signal.SIGKILL)
        raise lost

    monkeypatch.setattr(type(loader._iterator), "_get_data", lose_connection)
    expected = rf"a loader worker died \({lost}\) on .*images/.*.png: look at this frame"
    with pytest.raises(UserError, match=expected):
        next(batches)


@pytest.mark.parametrize("full_in_the_main_process", [True, False])
def test_a_full_tmp_ends_the_run(tmp_path, monkeypatch, full_in_the_main_process):
    """torch would drop what the worker read, and wait forever."""
    temp_dir = multiprocessing.util.get_temp_dir()

    def refuse():
        if get_worker_info() or full_in_the_main_process:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return temp_dir

    monkeypatch.setattr(multiprocessing.util, "get_temp_dir", refuse)
    expected = r"worker cannot share frames \(No space left on device\): it needs space in /"
    with pytest.raises(UserError, match=expected):
        fit_with_a_worker(tmp_path, SeeingThroughFog)


@pytest.mark.parametrize("left", [0, 6], ids=["to share six tensors", "to send them"])
def test_too_few_open_files_end_the_run(tmp_path, monkeypatch, left):
    monkeypatch.setattr(HasFewDescriptors, "left", left)
    with pytest.raises(UserError, match=r"worker cannot share frames \(.*Too many open files"):
        fit_with_a_worker(tmp_path, HasFewDescriptors)


def test_a_small_shared_memory_ends_the_run(tmp_path, monkeypatch):
    """torch's own error, as on a /dev/shm of 64 MB in a container."""

    share = torch.UntypedStorage.share_memory_

    def share_in_the_main_process(storage):
        if get_worker_info():
            raise RuntimeError(
                "unable to allocate shared memory(shm) for file </torch_1>: No space"
            )
        return share(storage)

    monkeypatch.setattr(torch.UntypedStorage, "share_memory_", share_in_the_main_process)
    with pytest.raises(UserError, match=r"cannot share frames \(unable to allocate shared memory"):
        fit_with_a_worker(tmp_path, SeeingThroughFog)


# ----------------------------------------------------------------------------- memory and numbers


def test_too_little_memory_says_what_to_lower(tmp_path):
    data = three_frames(tmp_path)
    options = "--min-size 200000 --max-size 400000"
    message = the_error(train("baseline", data, tmp_path, options, expect=2))
    assert "out of memory" in message
    assert "lower --batch-size, --min-size or --rois, or pass --amp" in message


def test_the_same_seed_gives_the_same_weights(synthetic, tmp_path):
    """Whatever the number of workers; with another seed they differ."""
    runs = {"a": "--workers 0", "b": "--workers 2", "c": "--workers 1 --seed 1"}
    for name, options in runs.items():
        train("baseline", synthetic, tmp_path / name, f"--flip --max-iterations 3 {options}")
    a, b, c = (
        torch.load(tmp_path / name / "run/last.pth", weights_only=True)["model"] for name in runs
    )
    assert same_tensors(a, b)
    assert not same_tensors(a, c)


def test_a_gradient_that_is_not_finite_takes_no_step(one_frame, tmp_path):
    """The loss is 0 and its gradient infinite."""
    model = Seer({1})
    model.steps.data.fill_(0.0)
    expected = r"non-finite .*loss 0, gradient_norm inf; frames a \(.*nonfinite.json\)"
    with pytest.raises(UserError, match=expected):
        run_fit(one_frame, tmp_path, model, lambda model: model.steps.sqrt().sum())
    assert model.steps.item() == 0.0
    report = json.loads((tmp_path / "run/nonfinite.json").read_text())
    assert (report["epoch"], report["step"], report["frames"]) == (1, 1, ["a"])
    assert (report["loss"], report["gradient_norm"]) == ("0.0", "inf")

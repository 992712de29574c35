"""The loop: schedule, early stop, best weights, resume, non-finite losses, a fixed teacher."""

import io
import json
import math
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from conftest import label_line, write_frame
from torch import nn
from torch.optim.lr_scheduler import LinearLR, StepLR
from tqdm import tqdm

import engine
from cmkd.runtime.files import UserError
from cmkd.runtime.weights import sha256_of
from dataset import SeeingThroughFog, make_loader
from engine import Options, fit, learning_rate
from models import LEVELS, build_detector, build_discriminators, load_teacher
from train_cmkd_adv import domain_bce
from train_cmkd_mse import feature_mse
from utils import seed_everything, training_parser


@pytest.mark.parametrize("iterations_per_epoch", [1, 2, 7, 1200])
def test_schedule_is_torchs_linear_warm_up_and_steps(iterations_per_epoch):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.005)
    warm_up = min(1000, iterations_per_epoch - 1)
    first = LinearLR(optimizer, start_factor=1 / 1000, total_iters=warm_up) if warm_up else None
    steps = StepLR(optimizer, step_size=5, gamma=0.1)
    for iteration in range(12 * iterations_per_epoch):
        expected = optimizer.param_groups[0]["lr"]
        epoch, step = 1 + iteration // iterations_per_epoch, iteration % iterations_per_epoch
        rate = learning_rate(0.005, epoch, step, iterations_per_epoch)
        assert rate == pytest.approx(expected, rel=1e-9)
        optimizer.step()
        if first and iteration < warm_up:
            first.step()
        if (iteration + 1) % iterations_per_epoch == 0:
            steps.step()


class Seer(nn.Module):
    """Finds the person in the epochs it is told to; one weight counts the training steps."""

    def __init__(self, sees_in):
        super().__init__()
        self.sees_in, self.epoch, self.autocast = sees_in, 0, set()
        self.steps = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        self.autocast.add(torch.is_autocast_enabled("cpu"))
        sees = self.epoch in self.sees_in
        box = torch.tensor([[10.0, 10, 60, 60]])[: int(sees)]
        labels, scores = torch.ones(len(box), dtype=torch.int64), torch.ones(len(box))
        return [{"boxes": box, "labels": labels, "scores": scores} for _ in images]


@pytest.fixture
def one_frame(tmp_path):
    write_frame(tmp_path, "a", (1280, 720), label_line(box=(10, 10, 60, 60)))
    (tmp_path / "train_night.txt").write_text("a")
    return SeeingThroughFog(tmp_path, "train_night", "rgb")


def run_fit(
    train_set, tmp_path, model, loss=None, out="w", run="run", val_set=None, workers=0, **changes
):
    """Train a `Seer`, one frame per step; the lines of its log."""

    def compute_losses(_):
        model.epoch += 1
        model.autocast.add(torch.is_autocast_enabled("cpu"))
        return {"loss": -model.steps.sum() if loss is None else loss(model)}

    fit(
        model,
        compute_losses,
        torch.optim.SGD(model.parameters(), lr=1.0),
        make_loader(train_set, 1, workers, shuffle=True),
        make_loader(val_set or train_set, 1, 0),
        weights=tmp_path / out / "seer.pth",
        settings={"channels": 3},
        arguments={"epochs": 20, "patience": 1, "lr": 1.0, "run_dir": tmp_path / run, **changes},
    )
    return [json.loads(line) for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]


def steps_in(file, *keys):
    """The `Seer`'s weight in a file."""
    content = torch.load(file, weights_only=True)
    for key in keys:
        content = content[key]
    return content["steps"].item()


def test_early_stop_and_best_weights(one_frame, tmp_path):
    log = run_fit(one_frame, tmp_path, Seer({3, 5}))
    assert log[0]["arguments"]["patience"] == 1
    assert {"torch", "torchvision", "git"} <= log[0]["versions"].keys()
    epochs = [record["epoch"] for record in log[1:]]
    assert epochs == [1, 2, 3, 4, 5]  # more than 1 epoch without a better AP
    assert [round(record["val"]["AP"], 6) for record in log[1:]] == [0, 0, 1, 0, 1]
    assert log[-1]["best_epoch"] == 3
    best = tmp_path / "w/seer.pth"
    assert steps_in(best) == pytest.approx(3.0)  # one step of lr 1.0 in each of three epochs
    settings = json.loads(best.with_suffix(".json").read_text())
    assert (settings["channels"], settings["epoch"]) == (3, 3)
    assert settings["val"]["AP"] == pytest.approx(1)
    assert settings["sha256"] == sha256_of(best)
    assert settings["val_fingerprint"] == one_frame.fingerprint
    assert steps_in(tmp_path / "run/last.pth", "model") == pytest.approx(5.0)


def test_all_epochs_are_run_while_it_improves(one_frame, tmp_path):
    assert len(run_fit(one_frame, tmp_path, Seer({1}), epochs=3, patience=5)) == 4


def test_max_iterations(one_frame, tmp_path):
    log = run_fit(one_frame, tmp_path, Seer({1, 2, 3}), max_iterations=2)
    assert log[-1]["iteration"] == 2
    assert (tmp_path / "w/seer.pth").exists()


def test_the_number_of_threads_is_logged_and_a_resumed_run_takes_it_again(one_frame, tmp_path):
    here = torch.get_num_threads()
    log = run_fit(one_frame, tmp_path, Seer({1}), epochs=1)
    last = tmp_path / "run/last.pth"
    content = torch.load(last, weights_only=True)
    assert log[0]["threads"] == content["threads"] == here
    torch.save({**content, "threads": here + 1}, last)
    log = run_fit(one_frame, tmp_path, Seer({1}), epochs=2, resume=True)
    assert (log[-2]["threads"], log[-1]["epoch"]) == (here + 1, 2)
    assert torch.load(last, weights_only=True)["threads"] == here + 1


def test_a_checkpoint_without_a_number_of_threads_resumes(one_frame, tmp_path):
    """As earlier versions wrote it."""
    run_fit(one_frame, tmp_path, Seer({1}), epochs=1)
    last = tmp_path / "run/last.pth"
    content = torch.load(last, weights_only=True)
    del content["threads"]
    torch.save(content, last)
    log = run_fit(one_frame, tmp_path, Seer({1}), epochs=2, resume=True)
    assert (log[-2]["threads"], log[-1]["epoch"]) == (torch.get_num_threads(), 2)


@pytest.mark.parametrize(
    ("steps", "changes", "warned_after"),
    [
        (4, {}, [3]),
        (4, {"min_size": 499}, []),
        (4, {"max_iterations": 2}, [2]),
        (1, {"epochs": 4}, [1]),
    ],
)
def test_long_epochs_on_a_cpu_are_warned_of_once(
    tmp_path, monkeypatch, steps, changes, warned_after
):
    names, after = "abcd"[:steps], []
    for name in names:
        write_frame(tmp_path, name, labels=label_line(box=(10, 10, 60, 60)))
    (tmp_path / "train_night.txt").write_text("\n".join(names))
    model = Seer({1})
    monkeypatch.setattr(
        engine, "warn", lambda text: after.append((model.epoch, text))
    )  # a `Seer` counts its steps as epochs
    train_set = SeeingThroughFog(tmp_path, "train_night", "rgb")
    run_fit(train_set, tmp_path, model, **{"epochs": 2, **changes})
    assert [step for step, _ in after] == warned_after
    for _, text in after:
        assert re.match(r"an epoch takes about \d\.\d minutes on this CPU, ", text)


@pytest.mark.parametrize(
    ("seconds", "expected"), [(36.0, "about 3.3 hours"), (3.0, "about 16.7 minutes")]
)
def test_the_time_of_an_epoch_is_that_of_its_first_steps(capsys, seconds, expected):
    engine.warn_of_long_epochs(Options(), engine.Progress(steps=3, seconds=seconds), 1000)
    assert expected in capsys.readouterr().err


def test_nothing_is_trained_once_max_iterations_was_reached(one_frame, tmp_path):
    run_fit(one_frame, tmp_path, Seer({1, 2, 3}), max_iterations=2)
    again = Seer({1, 2, 3})
    log = run_fit(one_frame, tmp_path, again, max_iterations=1, resume=True)
    assert again.epoch == 0
    assert "epoch" not in log[-1]


def test_a_cut_epoch_shifts_no_schedule(tmp_path, monkeypatch):
    """Epoch 1 ends after its first of three steps: epochs 2 to 5 have the full rate, 6 a tenth."""
    rates = []
    monkeypatch.setattr(
        engine, "learning_rate", lambda *given: rates.append(learning_rate(*given)) or rates[-1]
    )
    for name in "abc":
        write_frame(tmp_path, name, labels=label_line(box=(10, 10, 60, 60)))
    (tmp_path / "train_night.txt").write_text("a\nb\nc")
    dataset = SeeingThroughFog(tmp_path, "train_night", "rgb")
    run_fit(dataset, tmp_path, Seer(set()), max_iterations=1, patience=20)
    run_fit(dataset, tmp_path, Seer(set()), epochs=6, patience=20, resume=True)
    assert rates == pytest.approx([0.001] + 12 * [1] + 3 * [0.1])


def test_flips_differ_from_epoch_to_epoch(tmp_path, one_frame):
    dataset = SeeingThroughFog(tmp_path, "train_night", "rgb", flip=True)
    seen = []

    class Watcher(Seer):
        def forward(self, images):
            seen.append(int(dataset.flip_seed))
            return super().forward(images)

    run_fit(dataset, tmp_path, Watcher(set()), epochs=3, patience=9)
    assert len(set(seen)) == 3


def test_resume_of_another_run_leaves_finished_weights(one_frame, tmp_path):
    run_fit(one_frame, tmp_path, Seer({1}), epochs=1)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    before = (tmp_path / "w/seer.pth").read_bytes()
    with pytest.raises(UserError, match=r"seer.pth exists, but .*run has no last.pth"):
        run_fit(one_frame, tmp_path, Seer({1}), epochs=1, resume=True)
    assert (tmp_path / "w/seer.pth").read_bytes() == before


def test_resume_without_a_state_starts_anew(one_frame, tmp_path):
    """Stopped in epoch 1: a log, but neither last.pth nor weights."""
    run_fit(one_frame, tmp_path, Seer({1}), epochs=1)
    for name in ("run/last.pth", "run/previous.pth", "w/seer.pth"):
        (tmp_path / name).unlink()
    log = run_fit(one_frame, tmp_path, Seer({1}), epochs=2, resume=True)
    assert [record.get("epoch") for record in log] == [None, None, 1, 2]
    assert json.loads((tmp_path / "w/seer.json").read_text())["arguments"]["epochs"] == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["model"],
        lambda content: [content],
        lambda content: {**content, "model": {"steps": torch.zeros(2)}},
        lambda content: {**content, "optimizer": 3},
        lambda content: {**content, "state": {"epoch": 1, "laps": 2}},
    ],
    ids=["state_dict", "list", "shapes", "optimizer", "state"],
)
def test_bad_state_is_named(one_frame, tmp_path, change):
    run_fit(one_frame, tmp_path, Seer({1}), epochs=1)
    last = tmp_path / "run/last.pth"
    torch.save(change(torch.load(last, weights_only=True)), last)
    before = last.read_bytes()
    with pytest.raises(UserError) as error:
        run_fit(one_frame, tmp_path, Seer({1}), epochs=2, resume=True)
    expected = r".*run/last.pth is not a training checkpoint.*: remove its folder and the weights.*"
    assert re.fullmatch(expected, str(error.value))
    assert last.read_bytes() == before


@pytest.mark.parametrize("place", ["out", "run"])
def test_a_place_that_cannot_be_written_is_found_before_training(one_frame, tmp_path, place):
    (tmp_path / "a_file").write_text("")
    model = Seer({1})
    with pytest.raises(UserError, match="a_file.* cannot be written"):
        run_fit(one_frame, tmp_path, model, **{place: "a_file"})
    assert model.epoch == 0


def test_the_loop_takes_its_options_from_all_arguments_of_a_script():
    args = training_parser("teacher", "").parse_args(["--epochs", "7", "--no-amp"])
    options = Options.of(vars(args))
    assert {one.name for one in fields(Options)} <= vars(args).keys()
    assert (options.epochs, options.run_dir) == (7, Path("runs/teacher"))
    # But for these the defaults are the published recipe, as the parser's are.
    assert Options.of({"epochs": 7, "run_dir": options.run_dir}) == options
    for wrong in ({"epochs": "7"}, {"lr": None}, {"max_iterations": 2.5}):
        with pytest.raises(TypeError, match=f"{next(iter(wrong))} must be"):
            Options.of(wrong)


def test_train_list_without_people_is_warned_of(one_frame, tmp_path, capsys):
    write_frame(tmp_path, "b")
    (tmp_path / "empty.txt").write_text("b")
    empty = SeeingThroughFog(tmp_path, "empty", "rgb")
    run_fit(
        empty, tmp_path, Seer({1}), lambda model: model.steps.sum(), val_set=one_frame, epochs=1
    )
    assert "empty.txt: no frame has a box" in capsys.readouterr().err
    run_fit(one_frame, tmp_path, Seer({1}), epochs=1, out="other", run="other")
    assert "no frame has a box" not in capsys.readouterr().err


def test_paths_are_compared_resolved(one_frame, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_fit(one_frame, tmp_path, Seer({1}), epochs=1, teacher=Path("t.pth"))
    run_fit(one_frame, tmp_path, Seer({1}), epochs=1, teacher=tmp_path / "t.pth", resume=True)
    with pytest.raises(UserError, match="was started with teacher"):
        run_fit(one_frame, tmp_path, Seer({1}), epochs=1, teacher=Path("other.pth"), resume=True)


@pytest.mark.parametrize("amp", [False, True])
def test_amp_autocasts_training_and_validation(one_frame, tmp_path, amp):
    model = Seer({1})
    run_fit(one_frame, tmp_path, model, epochs=1, amp=amp)
    assert model.autocast == {amp}


def test_progress_shows_rate_and_loss_at_80_columns(one_frame, tmp_path, monkeypatch):
    terminal = io.StringIO()
    bar = tqdm(
        desc="epoch 100",
        total=100_000,
        unit="img",
        file=terminal,
        ncols=80,
        mininterval=0,
        miniters=1,
    )
    monkeypatch.setattr(engine, "progress_bar", lambda *_: bar)
    run_fit(one_frame, tmp_path, Seer({1}), lambda model: model.steps.sum() + 3, epochs=1, lr=5e-5)
    assert "lr=5e-5, loss=3" in terminal.getvalue()


def test_non_finite_loss_stops_before_the_step(one_frame, tmp_path):
    model = Seer({1})
    with pytest.raises(UserError) as error:
        run_fit(
            one_frame,
            tmp_path,
            model,
            lambda model: -model.steps.sum() * (1 if model.epoch < 3 else math.nan),
        )
    message = str(error.value)
    assert "loss nan" in message
    assert "; frames a (" in message
    assert "epoch 3, step 3" in message
    assert model.steps.item() == pytest.approx(2.0)
    assert torch.load(tmp_path / "run/last.pth", weights_only=True)["state"]["epoch"] == 2
    assert steps_in(tmp_path / "w/seer.pth") == pytest.approx(1.0)


def test_an_earlier_run_is_not_overwritten(one_frame, tmp_path):
    run_fit(one_frame, tmp_path, Seer({1}), epochs=1)
    files = tmp_path / "run/log.jsonl", tmp_path / "w/seer.pth"
    before = [file.read_bytes() for file in files]
    expected = r"log.jsonl, .*last.pth, .*seer.pth exist from an earlier run: .*--resume"
    with pytest.raises(UserError, match=expected):
        run_fit(one_frame, tmp_path, Seer({1}), epochs=1)
    assert before == [file.read_bytes() for file in files]


def test_resume_refuses_other_arguments(one_frame, tmp_path):
    run_fit(one_frame, tmp_path, Seer({1}), epochs=1)
    with pytest.raises(UserError, match=r"was started with lr 1.0, not 0.5"):
        run_fit(one_frame, tmp_path, Seer({1}), epochs=2, resume=True, lr=0.5)


def change_arguments(file, **changes):
    """Change arguments in a checkpoint; None removes one."""
    content = torch.load(file, weights_only=True)
    arguments = {**content["arguments"], **changes}
    content["arguments"] = {name: one for name, one in arguments.items() if one is not None}
    torch.save(content, file)


def test_resume_refuses_a_run_with_an_option_that_is_gone(one_frame, tmp_path):
    """It may have been what the run was about."""
    run_fit(one_frame, tmp_path, Seer({1}), epochs=1)
    for option, value in (("feature_weight", 10.0), ("scale_lr", True), ("skip_bad", 3)):
        change_arguments(tmp_path / "run/last.pth", **{option: value})
        expected = f"was started with {option} {value}, which this version does not have"
        with pytest.raises(UserError, match=expected):
            run_fit(one_frame, tmp_path, Seer({1}), epochs=2, resume=True)
        change_arguments(tmp_path / "run/last.pth", **{option: None})


def test_a_run_resumes_if_a_removed_option_had_its_default(one_frame, tmp_path):
    run_fit(one_frame, tmp_path, Seer({1}), epochs=1)
    change_arguments(tmp_path / "run/last.pth", scale_lr=False, skip_bad=0)
    assert run_fit(one_frame, tmp_path, Seer({1}), epochs=2, resume=True)[-1]["epoch"] == 2


def test_a_run_of_a_version_without_an_option_resumes(one_frame, tmp_path):
    run_fit(one_frame, tmp_path, Seer({1}), epochs=1, flip=False)
    change_arguments(tmp_path / "run/last.pth", flip=None)
    log = run_fit(one_frame, tmp_path, Seer({1}), epochs=2, resume=True, flip=False)
    assert log[-1]["epoch"] == 2


def test_a_state_of_2c1d775_within_an_epoch_is_continued(one_frame, tmp_path):
    """Until then the epoch under way had a dictionary of its own."""
    run_fit(one_frame, tmp_path, Seer({1}), epochs=1)
    last = tmp_path / "run/last.pth"
    content = torch.load(last, weights_only=True)
    under_way = {"frames": 1, "steps": 1, "seconds": 2.5, "sums": {"loss": -7.0}}
    old = {"epoch": 1, "iteration": 2, "best_AP": 0.5, "best_epoch": 1, "skipped": {}}
    torch.save({**content, "state": {**old, "under_way": under_way}}, last)
    model = Seer({0})  # nothing is left to train in epoch 2, so the weight stays
    epoch_2 = run_fit(one_frame, tmp_path, model, epochs=2, resume=True)[-1]
    assert (epoch_2["epoch"], epoch_2["iteration"], epoch_2["losses"]) == (2, 2, {"loss": -7.0})
    assert (epoch_2["best_AP"], epoch_2["best_epoch"]) == (pytest.approx(1), 2)
    assert epoch_2["train_seconds"] == 2.5
    assert model.epoch == 0


def test_resume_keeps_the_best_score_and_the_patience(one_frame, tmp_path):
    run_fit(one_frame, tmp_path, Seer({1}), epochs=2)
    again = Seer({1})
    again.epoch = 2
    log = run_fit(one_frame, tmp_path, again, resume=True)
    assert (log[-1]["epoch"], log[-1]["best_epoch"]) == (3, 1)
    assert steps_in(tmp_path / "w/seer.pth") == pytest.approx(1.0)


def test_val_list_without_people_is_refused(tmp_path):
    write_frame(tmp_path, "a")
    (tmp_path / "val_night.txt").write_text("a")
    with pytest.raises(UserError, match=r"val_night.txt: no frame has a box"):
        run_fit(SeeingThroughFog(tmp_path, "val_night", "rgb"), tmp_path, Seer({1}))


@pytest.mark.parametrize("method", ["mse", "adv"])
def test_the_teacher_does_not_move(frames, tmp_path, method):
    """Parameters and norm statistics to the bit, while student and discriminators do move."""
    file = tmp_path / "teacher.pth"
    torch.save(build_detector(6, 2, "resnet18", "none", min_size=64).state_dict(), file)
    teacher = load_teacher(file, 64, 1333)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    trained = nn.ModuleDict({"student": build_detector(3, 2, "resnet18", "none", min_size=64)})
    if method == "adv":
        trained["discriminators"] = build_discriminators()
    starts = {name: value.detach().clone() for name, value in trained.named_parameters()}

    def compute_losses(batch):
        images, targets = batch
        losses, features = trained["student"]([image[:3] for image in images], targets)
        with torch.no_grad():
            taught = teacher.features(images)
        if method == "mse":
            losses["kd"] = feature_mse(features, taught)
        else:
            losses["kd"] = domain_bce(trained["discriminators"], features, taught, 0.3)
        return losses

    fit(
        trained["student"],
        compute_losses,
        torch.optim.SGD(trained.parameters(), lr=0.01),
        make_loader(SeeingThroughFog(frames, "train_night"), 2, 0, shuffle=True),
        make_loader(SeeingThroughFog(frames, "val_night", "rgb"), 2, 0),
        weights=tmp_path / "w/s.pth",
        settings={},
        arguments={"epochs": 1, "lr": 0.01, "run_dir": tmp_path / "run"},
        also_trained=trained["discriminators"] if method == "adv" else None,
    )
    after = teacher.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    for part, module in trained.items():
        moved = [
            not torch.equal(value, starts[f"{part}.{name}"])
            for name, value in module.named_parameters()
        ]
        assert sum(moved) > len(moved) / 2, part


def test_distillation_reaches_the_student_through_every_level():
    student, teacher = ({level: torch.randn(1, 256, 8, 8) for level in LEVELS} for _ in range(2))
    for level in LEVELS:
        student[level].requires_grad_()
    feature_mse(student, teacher).backward()
    assert all(student[level].grad.abs().sum() > 0 for level in LEVELS)


def test_seed_is_a_function_of_seed_and_epoch():
    def draw(*seeds):
        seed_everything(*seeds)
        return torch.rand(3).tolist()

    assert draw(1, 2) == draw(1, 2)
    assert len({tuple(draw(*seeds)) for seeds in [(0, 0), (0, 1), (1, 0), (1, 1)]}) == 4

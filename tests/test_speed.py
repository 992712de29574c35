"""The fast way computes what the plain way does: `benchmarks/reference.py`, on the same weights."""

import json
import math
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch
from conftest import ROOT, epochs_of, run_script, train
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import engine
from benchmarks import evaluate_throughput, label_throughput
from benchmarks.measure import timed
from benchmarks.reference import PlainDetector, PlainTraining
from cmkd.evaluation.predict import predict
from cmkd.runtime import hardware
from cmkd.runtime.files import UserError
from dataset import SeeingThroughFog, make_loader
from engine import learning_rate
from models import Detector, FrozenNorm, build_discriminators
from train_cmkd_adv import domain_bce
from train_cmkd_mse import feature_mse
from utils import seed_everything, training_parser

SIZE = {"backbone": "resnet18", "min_size": 64, "rois": 16, "proposals": 50}
LR = 0.005


def frozen_state(channels):
    """Random weights with small residual branches, which would grow with a frozen norm."""
    state = Detector(channels, 2, norm="frozen", **SIZE).state_dict()
    for name in state:
        if name.endswith("bn2.weight"):
            state[name].fill_(0.2)
    return state


def plain_training(method, states, adversary):
    """The reference's training of a method, from the same weights as the script."""
    detector = PlainDetector(6 if method == "teacher" else 3, norm="frozen", **SIZE)
    detector.load_state_dict(states[detector.backbone.body.conv1.in_channels])
    if method in ("teacher", "baseline"):
        return PlainTraining(detector, LR)
    teacher = PlainDetector(6, norm="frozen", **SIZE)
    teacher.load_state_dict(states[6])
    if method == "cmkd_mse":
        return PlainTraining(
            detector,
            LR,
            teacher,
            "kd_mse",
            lambda student, taught: 0.5 * feature_mse(student, taught),
        )
    return PlainTraining(
        detector, LR, teacher, "kd_adv", partial(domain_bce, adversary, weight=0.3), adversary
    )


@pytest.mark.parametrize("method", ["teacher", "baseline", "cmkd_mse", "cmkd_adv"])
def test_every_step_has_the_plain_ways_losses(method, synthetic, tmp_path):
    """The real script in float32, in epochs of one step, against plain torchvision.

    On a small ResNet-18. With larger networks near-tied proposals are sampled differently.
    """
    states = {channels: frozen_state(channels) for channels in (3, 6)}
    for channels, state in states.items():
        torch.save(state, tmp_path / f"{channels}.pth")
    channels = 6 if method == "teacher" else 3
    options = "--no-amp --stem inflate --batch-size 6 --workers 1 --epochs 2 --patience 9"
    start = ["--init", tmp_path / f"{channels}.pth", "--lr", LR]
    if "cmkd" in method:
        start += ["--teacher", tmp_path / "6.pth"]
    train(method, synthetic, tmp_path, options, *start)
    log = epochs_of(tmp_path / "run")

    seed_everything(0)
    Detector(3, 2, norm="frozen", **SIZE)
    training = plain_training(
        method, states, build_discriminators() if method == "cmkd_adv" else None
    )
    modality = "rgb" if method == "baseline" else "rgb+gated"
    loader = make_loader(SeeingThroughFog(synthetic, "train_night", modality), 6, 0, shuffle=True)
    for record in log:
        loader.batch_sampler.begin(seed_everything(0, record["epoch"]))
        seed_everything(0, record["epoch"], 0)
        for group in training.optimizer.param_groups:
            group["lr"] = learning_rate(LR, record["epoch"], 0, 1)
        [(images, targets)] = loader
        assert record["losses"] == pytest.approx(training.step(images, targets), abs=1e-3)


def test_a_frozen_norm_is_torchvisions_and_keeps_the_type():
    norms = FrozenNorm(8, eps=0.0), FrozenBatchNorm2d(8, eps=0.0)
    values = {name: torch.rand(8) + 0.5 for name in norms[0].state_dict()}
    maps = torch.randn(2, 8, 5, 7, requires_grad=True)
    results = []
    for norm in norms:
        norm.load_state_dict(values)
        output = norm(maps)
        results.append((output, *torch.autograd.grad(output.square().sum(), maps)))
    torch.testing.assert_close(*results)
    assert norms[0](maps.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("training", [True, False])
def test_under_autocast_heads_give_float32(training):
    detector = Detector(3, 2, norm="frozen", **SIZE).train(training)
    types = set()
    for head in (detector.rpn.head, detector.roi_heads.box_predictor):
        head.register_forward_hook(
            lambda _, __, outputs: types.update(
                tensor.dtype
                for output in outputs
                for tensor in (output if isinstance(output, list) else [output])
            )
        )
    images = [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)]
    targets = [{"boxes": torch.tensor([[10.0, 10, 40, 60]]), "labels": torch.tensor([1])}]
    with torch.autocast("cpu", torch.bfloat16):
        outputs = detector(images, targets)
    assert types == {torch.float32}
    if training:
        losses, features = outputs
        assert {loss.dtype for loss in losses.values()} == {torch.float32}
        assert {maps.dtype for maps in features.values()} == {torch.bfloat16}
    else:
        assert outputs[0]["boxes"].dtype == outputs[0]["scores"].dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "hardware_can", "expected"),
    [([], True, True), ([], False, False), (["--no-amp"], True, False), (["--amp"], False, True)],
)
def test_without_a_word_the_device_decides_on_bfloat16(monkeypatch, given, hardware_can, expected):
    asked = []
    monkeypatch.setattr(
        hardware, "computes_bfloat16", lambda device: asked.append(device) or hardware_can
    )
    assert training_parser("teacher", "").parse_args(["--device", "cpu", *given]).amp is expected
    assert asked == ([] if given else [torch.device("cpu")])


class Slope(nn.Module):
    """Loss: a weight times a frame's brightest pixel; NaN at the steps it is told to."""

    def __init__(self, nan_at=()):
        super().__init__()
        self.weight, self.calls, self.nan_at = nn.Parameter(torch.ones(1)), 0, nan_at

    def forward(self, images):
        return [
            {
                "boxes": torch.zeros(0, 4),
                "labels": torch.zeros(0, dtype=torch.int64),
                "scores": torch.zeros(0),
            }
            for _ in images
        ]

    def losses(self, batch):
        self.calls += 1
        images, _ = batch
        mean = torch.stack([image.max() / 255 for image in images]).mean()
        return {"loss": self.weight.sum() * mean * (math.nan if self.calls in self.nan_at else 1)}


def fit(synthetic, run, model, batch_size=2, accumulate=1, fused=True, **changes):
    """Train on the six simulated frames; the log's records of epochs."""
    train_set = SeeingThroughFog(synthetic, "train_night", "rgb")
    options = {"epochs": 2, "lr": 0.1, "batch_size": batch_size, "run_dir": run, **changes}
    engine.fit(
        model,
        model.losses,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused),
        make_loader(train_set, batch_size * accumulate, 0, shuffle=True),
        make_loader(SeeingThroughFog(synthetic, "val_night", "rgb"), 2, 0),
        weights=run / "w.pth",
        settings={},
        arguments=options,
    )
    return epochs_of(run)


@pytest.mark.parametrize("fused", [True, False])
def test_losses_fetched_later_are_the_same(synthetic, tmp_path, monkeypatch, fused):
    each_step, later = Slope(), Slope()
    logs = [fit(synthetic, tmp_path / "a", each_step, fused=fused)]
    # Of three steps two are fetched together, and the last alone.
    monkeypatch.setattr(engine, "STEPS_BETWEEN_FETCHES", {"cpu": 2})
    logs.append(fit(synthetic, tmp_path / "b", later, fused=fused))
    assert torch.equal(each_step.weight, later.weight)
    assert logs[0] == logs[1]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("nan_at", [1, 4, 5, 6])
def test_a_loss_that_is_not_finite_is_found_later_and_never_stepped_on(
    synthetic, tmp_path, monkeypatch, fused, nan_at
):
    monkeypatch.setattr(engine, "STEPS_BETWEEN_FETCHES", {"cpu": 3})
    model = Slope(nan_at=(nan_at,))
    epoch = 1 if nan_at == 1 else 2
    with pytest.raises(
        UserError, match=f"epoch {epoch}, step {nan_at}: loss nan, gradient_norm nan; frames .*, .*"
    ):
        fit(synthetic, tmp_path, model, fused=fused)
    assert model.weight.isfinite()
    names = make_loader(SeeingThroughFog(synthetic, "train_night", "rgb"), 2, 0, shuffle=True)
    names.batch_sampler.begin(seed_everything(0, epoch))
    expected = [target["name"] for target in list(names)[(nan_at - 1) % 3][1]]
    assert json.loads((tmp_path / "nonfinite.json").read_text())["frames"] == expected
    if nan_at == 1:
        # Found at once: fused optimizers leave the momentum of that step unwritten.
        assert model.weight.item() == 1
        return
    assert torch.load(tmp_path / "last.pth", weights_only=True)["state"]["epoch"] == 1


def test_losses_with_other_keys_are_refused(synthetic, tmp_path, monkeypatch):
    """A loss that starts in a later step would be booked under another key."""
    monkeypatch.setattr(engine, "STEPS_BETWEEN_FETCHES", {"cpu": 3})
    model = Slope()
    losses = model.losses
    model.losses = lambda batch: {f"loss_{max(model.calls, 1)}": losses(batch)["loss"]}
    with pytest.raises(ValueError, match="must return the same keys in every step"):
        fit(synthetic, tmp_path, model)


def test_a_fused_optimizer_whose_state_was_saved_unfused_still_steps():
    """`load_state_dict` restores `fused` of the old groups, `defaults` keeps the new one."""
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.5, fused=True)
    optimizer.load_state_dict(torch.optim.SGD([weight], lr=0.5).state_dict())
    weight.grad = torch.ones(1)
    for loss, expected in ((math.nan, 1.0), (1.0, 0.5)):
        engine.step_if_finite(optimizer, {"loss": torch.tensor(loss)})
        assert weight.item() == expected


def test_accumulated_batches_are_one_step(synthetic, tmp_path):
    """Four of six frames in a step, then two, which count as much as in a batch of their own."""
    whole, parts = Slope(), Slope()
    logs = [
        fit(synthetic, tmp_path / "a", whole, 4),
        fit(synthetic, tmp_path / "b", parts, 1, accumulate=4),
    ]
    assert [whole.calls, parts.calls] == [4, 12]
    assert parts.weight.item() == pytest.approx(whole.weight.item(), rel=1e-6)
    assert [log[-1]["iteration"] for log in logs] == [4, 4]
    assert logs[0][-1]["losses"]["loss"] == pytest.approx(logs[1][-1]["losses"]["loss"], rel=1e-6)


def test_options_reach_the_training(synthetic, tmp_path):
    train("baseline", synthetic, tmp_path, "--accumulate 3 --epochs 2 --lr 0.01")
    assert [record["iteration"] for record in epochs_of(tmp_path / "run")] == [1, 2]
    assert epochs_of(tmp_path / "run")[-1]["lr"] == 0.01


def test_flips_follow_the_epoch_in_loader_processes_that_stay(synthetic):
    datasets = [SeeingThroughFog(synthetic, "train_night", flip=True) for _ in range(2)]
    alone, staying = (
        make_loader(dataset, 6, workers) for dataset, workers in zip(datasets, (0, 1), strict=True)
    )
    seen, processes = [], set()
    for seed in range(4):
        for dataset in datasets:
            dataset.seed_flips(seed)
        [(expected, _)], [(images, _)] = alone, staying
        assert all(map(torch.equal, expected, images))
        seen.append([image[0, 0, 0].item() for image in images])
        processes.add(int(staying.dataset.reading[0, 0]))
    assert any(one != seen[0] for one in seen)
    assert len(processes) == 1


def test_loader_processes_end_with_the_program(synthetic):
    # A cycle of references, as a notebook may hold one.
    program = (
        "import sys\nfrom dataset import SeeingThroughFog, make_loader\n"
        "loader = make_loader(SeeingThroughFog(sys.argv[1], 'train_night'), 2, 2)\n"
        "for _ in loader: pass\n"
        "loader.kept = loader"
    )
    child = (
        "import multiprocessing\n"
        "context = multiprocessing.get_context('fork')\n"
        f"process = context.Process(target=exec, args=[{program!r}])\n"
        "process.start()\nprocess.join()\nassert process.exitcode == 0"
    )
    for one in (program, child):
        subprocess.run([sys.executable, "-c", one, synthetic], cwd=ROOT, check=True, timeout=60)


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_a_pass_in_batches_finds_what_torchvision_finds_frame_by_frame(synthetic, norm):
    ours, plain = Detector(3, 2, norm=norm, **SIZE), PlainDetector(3, norm=norm, **SIZE).eval()
    if norm == "frozen":
        ours.load_state_dict(frozen_state(3))
    plain.load_state_dict(ours.state_dict())
    loader = make_loader(SeeingThroughFog(synthetic, "val_night", "rgb"), 3, 1)
    results = predict(ours, loader)
    for index, (image, _) in enumerate(loader.dataset):
        with torch.no_grad():
            [found] = plain([image / 255])
        own = [result for result in results if result["image_id"] == index]
        boxes = torch.tensor([result["bbox"] for result in own])
        boxes[:, 2:] += boxes[:, :2]
        torch.testing.assert_close(boxes, found["boxes"], atol=1e-2, rtol=0)
        scores = torch.tensor([result["score"] for result in own])
        torch.testing.assert_close(scores, found["scores"], atol=1e-4, rtol=0)


def test_memory_given_back_is_taken_again_without_page_faults():
    """The first ten or so blocks are new; how many differs from run to run."""
    program = (
        "import resource, torch\nfrom cmkd.runtime import hardware\nhardware.prepare()\n"
        "for repeats in (30, 10):\n"
        "    for _ in range(repeats):\n        torch.ones(40_000_000)\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)"
    )
    if hardware.platform.libc_ver()[0] != "glibc":
        pytest.skip("only glibc gives memory back")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    before, after = map(int, done.stdout.split())
    # 160 MB are 39,000 pages; without prepare() each of the last ten blocks is new.
    assert after - before < 5 * 39_000


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_features_are_the_same():
    """On frames that both pad alike: 128 px is a multiple of what either pads to."""
    seed_everything(0)
    plain, compiled = (
        Detector(3, 2, "resnet18", "batch", min_size=128, compiled=way).eval()
        for way in (False, True)
    )
    compiled.load_state_dict(plain.state_dict())
    images = [torch.randint(0, 256, (3, 128, 256), dtype=torch.uint8)]
    assert compiled.backbone._compiled_call_impl is not None
    with torch.no_grad():
        expected, found = plain.features(images), compiled.features(images)
    for level in expected:
        torch.testing.assert_close(found[level], expected[level], atol=1e-3, rtol=1e-3)
    assert compiled.features([images[0][:, :, :160]])["0"].shape[-1] == 256 // 4


def test_the_benchmark_compares_both_ways(tmp_path):
    options = "--methods cmkd_adv --backbone resnet18 --min-size 64 --batch-size 2 --turns 1"
    options += " --size 160x96 --workers 0 --rois 32"
    report = ["--device", "cpu", "--json", tmp_path / "speed.json"]
    done = run_script("benchmarks/train_throughput.py", *options.split(), *report)
    figures = json.loads((tmp_path / "speed.json").read_text())["results"]["cmkd_adv"]
    speed = figures["images_per_second"]
    assert figures["ratio"] == pytest.approx(speed["ours"] / speed["published"])
    parts = ("data", "transfer", "teacher", "forward", "backward", "optimizer")
    assert all(figures["seconds_per_image"][part] > 0 for part in parts)
    assert figures["flop_per_image"] > 1e9
    assert (tmp_path / "speed.md").read_text() == done.stdout


class HereSide:
    """A side in this process: seconds and results are real, and starting one costs nothing."""

    def __init__(self, make):
        self.side = make()

    def ask(self, method):
        return timed(getattr(self.side, method))

    def end(self):
        return 0


@pytest.mark.parametrize("benchmark", [evaluate_throughput, label_throughput])
def test_the_benchmarks_of_a_pass_run(trained, synthetic, tmp_path, monkeypatch, benchmark):
    weights = ["--weights", trained / "weights/teacher.pth", "--data", synthetic]
    report = ["--turns", 1, "--device", "cpu", "--json", tmp_path / "speed.json"]
    options = ["x", *weights, "--list", "val_night", *report]
    monkeypatch.setattr(sys, "argv", list(map(str, options)))
    monkeypatch.setattr(benchmark, "Side", HereSide)
    benchmark.main()
    content = json.loads((tmp_path / "speed.json").read_text())
    assert content["frames"] == len((synthetic / "val_night.txt").read_text().split())
    assert min(content["images_per_second"].values()) > 0

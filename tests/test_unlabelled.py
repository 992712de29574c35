"""Training on labelled frames together with machine-labelled ones, and with ones without labels."""

import json
import math
import shutil

import pytest
import torch
from conftest import epochs_of, label_line, the_error, train, write_frame
from test_reliability import same_tensors, start_training, wait_for_saves

from cmkd.runtime import checkpoint, distributed
from cmkd.runtime.files import UserError
from dataset import (
    RepeatingBatches,
    SeeingThroughFog,
    TrainingBatches,
    TrainingFrames,
    labelled_and_others,
    make_loader,
    training_loader,
)
from engine import learning_rate
from models import BOX_LOSSES, DETECTION_LOSSES, Detector, build_detector
from utils import detector_options, training_parser

MIXED = ["--train-list", "few", "--unlabelled-list", "rest"]
MACHINE = [*MIXED, "--machine-labels", "teacher_labels"]


@pytest.fixture(scope="module")
def data(synthetic, tmp_path_factory):
    """The simulated frames: two labelled (`few`), and four with machine labels alone (`rest`)."""
    root = tmp_path_factory.mktemp("mixed") / "data"
    shutil.copytree(synthetic, root)
    names = (root / "train_night.txt").read_text().split()
    (root / "few.txt").write_text("\n".join(names[:2]))
    (root / "rest.txt").write_text("\n".join(names[2:]))
    (root / "teacher_labels").mkdir()
    for name in names[2:]:
        (root / f"gated_labels/{name}.txt").rename(root / f"teacher_labels/{name}.txt")
    return root


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A ResNet-34 that sees six channels; students are ResNet-18."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("teacher") / "resnet34.pth"
    torch.save(build_detector(6, 2, "resnet34", "none").state_dict(), file)
    return file


def arguments_of(data, *options):
    return training_parser("x", None).parse_args(
        ["--data", str(data), "--workers", "0", "--device", "cpu", *map(str, options)]
    )


# ------------------------------------------------------------------------------------------ batches


@pytest.mark.parametrize(
    ("size", "share", "mix"),
    [
        (4, 0.5, (2, 2)),
        (5, 0.5, (3, 2)),
        (2, 0.5, (1, 1)),
        (4, 0.01, (1, 3)),
        (4, 0.99, (3, 1)),
        (8, 0.25, (2, 6)),
    ],
)
def test_the_share_of_labelled_frames(size, share, mix):
    assert labelled_and_others(size, share) == mix


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(("mix", "accumulate"), [((1, 3), 1), ((2, 2), 3), ((3, 1), 2)])
def test_each_part_of_each_process_has_its_share(monkeypatch, world, mix, accumulate):
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    size = sum(mix)
    everyone = []
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        batches = RepeatingBatches(10, 7, size * accumulate, mix)
        batches.begin(seed=3)
        assert len(batches) == math.ceil(10 / (size * accumulate * world))
        own = list(batches)
        assert [len(batch) for batch in own] == [size * accumulate] * len(batches)
        for batch in own:
            for start in range(0, len(batch), size):
                is_labelled = [index < 10 for index in batch[start : start + size]]
                assert is_labelled == [True] * mix[0] + [False] * mix[1]
        everyone.append(own)
    together = [index for step in zip(*everyone, strict=True) for own in step for index in own]
    assert together == batches.order


def test_frames_come_in_rounds_that_follow_from_the_seed():
    batches = RepeatingBatches(5, 3, 4, (2, 2), steps=20)

    def order(seed):
        batches.begin(seed)
        return [index for batch in batches for index in batch]

    first = order(1)
    labelled = [index for index in first if index < 5]
    others = [index for index in first if index >= 5]
    for frames, everyone in ((labelled, [0, 1, 2, 3, 4]), (others, [5, 6, 7])):
        assert len(frames) == 40
        size = len(everyone)
        whole = [tuple(frames[at : at + size]) for at in range(0, len(frames) - size + 1, size)]
        assert all(sorted(one) == everyone for one in whole)
        assert len(set(whole)) > 2
    assert order(1) == first
    assert order(2) != first


def test_an_epoch_resumes_in_its_middle_also_in_another_number_of_processes(monkeypatch):
    batches = RepeatingBatches(5, 3, 4, (1, 3), steps=6)
    batches.begin(seed=7)
    whole = list(batches)
    batches.begin(seed=7, frames_done=8)
    assert list(batches) == whole[2:]
    batches.begin(seed=7, frames_done=24)
    assert list(batches) == []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    wider = RepeatingBatches(5, 3, 4, (1, 3), steps=6)
    wider.begin(seed=7)
    assert len(wider) == 6
    assert wider.order[:24] == [index for batch in whole for index in batch]


@pytest.mark.parametrize("options", [[], ["--steps-per-epoch", 3]])
def test_without_unlabelled_frames_the_order_is_the_published_one(synthetic, options):
    """Six frames in batches of two: three steps by default."""
    loader = training_loader(arguments_of(synthetic, "--batch-size", 2, *options), "rgb")
    assert type(loader.dataset) is SeeingThroughFog
    assert type(loader.batch_sampler) is (RepeatingBatches if options else TrainingBatches)
    for seed in range(5):
        loader.batch_sampler.begin(seed)
        order = torch.randperm(6, generator=torch.Generator().manual_seed(seed)).tolist()
        assert list(loader.batch_sampler) == [order[0:2], order[2:4], order[4:6]]


def test_steps_per_epoch_repeat_a_short_list(synthetic):
    options = ["--batch-size", 2, "--accumulate", 2, "--steps-per-epoch", 4]
    batches = training_loader(arguments_of(synthetic, *options), "rgb").batch_sampler
    frames = [index for batch in batches for index in batch]
    assert [len(batch) for batch in batches] == [4] * 4
    assert sorted(frames[:6]) == sorted(frames[6:12]) == [0, 1, 2, 3, 4, 5]


# ------------------------------------------------------------------------------------------ samples


def test_samples_say_whose_labels_they_have(tmp_path):
    """A human's file of an unlabelled frame is not read. Doubtful boxes are ignored."""
    write_frame(tmp_path, "a_1", labels=label_line(box=(100, 100, 200, 400)))
    write_frame(tmp_path, "b_1", labels="broken")
    (tmp_path / "teacher_labels").mkdir()
    doubtful = label_line("DontCare", (600, 100, 700, 300))
    machine = doubtful + label_line(box=(320, 0, 640, 360))
    (tmp_path / "teacher_labels/b_1.txt").write_text(machine)
    for name, frames in (("few", "a_1"), ("rest", "b_1"), ("val_night", "v_1")):
        (tmp_path / f"{name}.txt").write_text(frames)
    seen = {}
    for title, options in (("machine", MACHINE), ("none", MIXED)):
        loader = training_loader(arguments_of(tmp_path, *options), "rgb", may_lack_labels=True)
        assert loader.dataset.classes_without_boxes == []
        seen[title] = [loader.dataset[index][1] for index in range(2)]
    for labelled, _ in seen.values():
        assert (labelled["name"], labelled["labelled_by"], len(labelled["boxes"])) == (
            "a_1",
            "human",
            1,
        )
    _, other = seen["machine"]
    assert (other["name"], other["labelled_by"]) == ("b_1", "machine")
    assert other["boxes"].tolist() == [
        [40, 0, 80, 48],
        [75, pytest.approx(13.333, abs=1e-3), 87.5, 40],
    ]
    assert other["labels"].tolist() == [1, 0]
    assert other["iscrowd"].tolist() == [0, 1]
    _, other = seen["none"]
    assert (other["labelled_by"], other["boxes"].shape) == ("nobody", (0, 4))


def test_lists_are_joined_in_order_and_a_worker_notes_what_it_reads(data):
    labelled = SeeingThroughFog(data, "few", "rgb", flip=True)
    others = SeeingThroughFog(data, "rest", "rgb", flip=True, labels="teacher_labels")
    frames = TrainingFrames(labelled, [others, labelled])
    names = [frames[index][1]["name"] for index in range(len(frames))]
    assert names == [*labelled.names, *others.names, *labelled.names]
    assert [frames.image_files(index)[0].stem for index in range(len(frames))] == names
    assert (frames.list_file, frames.num_classes) == (labelled.list_file, 2)
    with pytest.raises(IndexError):
        frames[len(frames)]
    frames = TrainingFrames(labelled, [others])
    frames.seed_flips(4)
    assert [int(part.flip_seed) for part in frames.parts] == [4, 5]
    loader = make_loader(frames, 1, 1)
    assert [targets[0]["name"] for _, targets in loader] == names[:6]
    assert loader.dataset.reading[0, 1] == 5


def test_both_parts_are_cached(data):
    args = arguments_of(data, *MACHINE, "--cache", "ram", "--min-size", 64)
    frames = training_loader(args, "rgb").dataset
    try:
        first = [frames[index][0] for index in range(len(frames))]
        assert {image.shape[1] for image in first} == {64}
        for part in frames.parts:
            part._decode = None
        assert all(torch.equal(frames[index][0], image) for index, image in enumerate(first))
    finally:
        for part in frames.parts:
            part.cache.remove()


# ----------------------------------------------------------------------------------------- losses


def a_detector(**options):
    """One without chance: all anchors and proposals are learned from."""
    torch.manual_seed(0)
    detector = Detector(3, 2, "resnet18", "frozen", 64, 128, rois=10**6, **options)
    detector.rpn.fg_bg_sampler.batch_size_per_image = 10**6
    return detector


def a_batch(*labelled_by):
    """A frame with one person and one ignore region for each labeller."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 64, 96, generator=generator) for _ in labelled_by]
    targets = [
        {
            "boxes": torch.tensor([[8.0 + 9 * index, 8, 30 + 9 * index, 56], [60, 10, 90, 60]]),
            "labels": torch.tensor([1, 0]),
            "labelled_by": who,
        }
        for index, who in enumerate(labelled_by)
    ]
    return images, targets


def part_of(batch, indices):
    return tuple([values[index] for index in indices] for values in batch)


def gradients_of(detector, losses):
    detector.zero_grad()
    sum(losses.values()).backward()
    return {
        name: one.grad.clone() for name, one in detector.named_parameters() if one.grad is not None
    }


@pytest.mark.parametrize("machine_boxes", [True, False])
def test_each_part_counts_by_its_share_and_weight(machine_boxes):
    """As much as two passes on the parts alone, in losses and in gradients."""
    detector = a_detector(machine_weight=0.3, machine_boxes=machine_boxes)
    batch = a_batch("machine", "human", "nobody", "machine", "human")
    losses, features = detector(*batch)
    assert list(losses) == list(DETECTION_LOSSES)
    assert {len(maps) for maps in features.values()} == {5}
    plain = a_detector()
    human, _ = plain(*part_of(batch, [1, 4]))
    machine, _ = plain(*part_of(batch, [0, 3]))
    expected = {}
    for name in DETECTION_LOSSES:
        weight = 0.3 if machine_boxes or name not in BOX_LOSSES else 0.0
        expected[name] = 0.4 * human[name] + 0.4 * weight * machine[name]
        torch.testing.assert_close(losses[name], expected[name])
        assert machine[name] > 0
        assert human[name] > 0
    found, wanted = gradients_of(detector, losses), gradients_of(plain, expected)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7
    if not machine_boxes:
        whole = a_detector(machine_weight=0.3)(*batch)[0]
        assert {name for name in losses if not torch.equal(losses[name], whole[name])} == set(
            BOX_LOSSES
        )


def test_frames_of_weight_0_and_frames_without_labels_teach_nothing():
    gradients = {}
    for who, weight in (("machine", 0.0), ("nobody", 1.0)):
        detector = a_detector(machine_weight=weight)
        gradients[who] = gradients_of(detector, detector(*a_batch("human", who))[0])
    detector = a_detector()
    alone, _ = detector(*part_of(a_batch("human", "nobody"), [0]))
    alone = gradients_of(detector, {name: 0.5 * value for name, value in alone.items()})
    for name, gradient in alone.items():
        for other in gradients.values():
            assert (other[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7


def test_machine_labels_of_weight_1_are_learned_from_like_a_humans():
    """To the bit, with the same random numbers: one pass over the whole batch."""
    images, targets = a_batch("human", "machine")
    found = []
    for changed in (targets, [{**target, "labelled_by": "human"} for target in targets]):
        torch.manual_seed(0)
        detector = Detector(3, 2, "resnet18", "frozen", 64, 128, rois=8)
        found.append(detector(images, changed)[0])
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_weight_and_box_regression_are_options_of_the_scripts(tmp_path):
    options = "--backbone resnet18 --init none --machine-weight 0.3 --no-machine-boxes".split()
    args = arguments_of(tmp_path, *options)
    detector = build_detector(3, 2, **detector_options(args))
    assert (detector.machine_weight, detector.machine_boxes) == (0.3, False)


def test_a_batch_without_any_label_has_losses_of_zero():
    losses, features = a_detector()(*a_batch("nobody", "nobody"))
    assert {name: value.item() for name, value in losses.items()} == dict.fromkeys(
        DETECTION_LOSSES, 0.0
    )
    assert len(features["0"]) == 2


# ------------------------------------------------------------------------------------------- runs


def test_a_killed_run_on_both_kinds_of_frames_ends_as_if_nothing_had_happened(
    data, teacher, tmp_path
):
    """SIGKILL within an epoch. The teacher has another backbone than the student."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = [*MACHINE, "--teacher", teacher, "--flip", "--machine-weight", 0.5, "--accumulate", 2]
    common += ["--steps-per-epoch", 2, "--epochs", 2, "--decay-epochs", 1, "--no-amp"]
    done = train("cmkd_mse", data, whole, "", *common)
    assert "an epoch has 2 steps\n" in done.stdout
    assert "2 frames of a batch are 1 of 2 labelled ones and 1 of 4 others" in done.stdout
    process = start_training("cmkd_mse", data, parts, *common, "--checkpoint-minutes", 1e-9)
    wait_for_saves(process, parts / "run", 1)
    process.kill()
    process.communicate()
    done = train("cmkd_mse", data, parts, "--resume", *common)
    assert "resuming after epoch 0 and " in done.stdout
    log = epochs_of(whole / "run")
    assert [record["iteration"] for record in log] == [2, 4]
    assert [record["lr"] for record in log] == pytest.approx([0.005, 0.0005])
    assert log == epochs_of(parts / "run")
    ends = [torch.load(home / "run/last.pth", weights_only=True) for home in (whole, parts)]
    assert same_tensors(ends[0]["model"], ends[1]["model"])

    other = train("cmkd_mse", data, parts, "--resume", *common, "--machine-weight", 1, expect=2)
    assert "was started with machine_weight 0.5, not 1.0: pass the same" in the_error(other)


@pytest.mark.parametrize("name", ["cmkd_mse", "cmkd_adv"])
def test_features_alone_on_frames_that_have_no_label_file(data, teacher, tmp_path, name):
    options = ["--teacher", teacher, "--max-iterations", 1, "--no-amp"]
    train(name, data, tmp_path, "", *MIXED, *options)
    losses = epochs_of(tmp_path / "run")[-1]["losses"]
    assert losses.keys() == {*DETECTION_LOSSES, name.replace("cmkd", "kd")}
    assert all(0 < value < math.inf for value in losses.values())


def test_a_baseline_learns_machine_labels(data, tmp_path):
    """Without a human's person anywhere, box regression is learned from machine labels alone."""
    root = tmp_path / "data"
    shutil.copytree(data, root)
    for name in (root / "few.txt").read_text().split():
        (root / f"gated_labels/{name}.txt").write_text("")
    losses = {}
    for title, options in (("on", []), ("off", ["--no-machine-boxes"])):
        train(
            "baseline", root, tmp_path / title, "--batch-size 4", *MACHINE, *options, "--epochs", 1
        )
        losses[title] = epochs_of(tmp_path / title / "run")[-1]["losses"]
    assert all(losses["on"][name] > 0 for name in DETECTION_LOSSES)
    assert [name for name, value in losses["off"].items() if value == 0] == list(BOX_LOSSES)


# -------------------------------------------------------------------------------- what is refused

REFUSED = {  # script, options, error
    "machine labels without a list": (
        "baseline",
        "--machine-labels teacher_labels",
        "--machine-labels needs --unlabelled-list",
    ),
    "a weight without a list": (
        "baseline",
        "--machine-weight 2",
        "--machine-weight needs --unlabelled-list",
    ),
    "no labels for a baseline": (
        "baseline",
        "--unlabelled-list rest",
        "--unlabelled-list needs --machine-labels",
    ),
    "no labels for a teacher": (
        "teacher",
        "--unlabelled-list rest",
        "--unlabelled-list needs --machine-labels",
    ),
    "a weight without machine labels": (
        "cmkd_mse",
        "--unlabelled-list rest --no-machine-boxes",
        "--no-machine-boxes needs --machine-labels",
    ),
    "frames one at a time": (
        "cmkd_adv",
        "--unlabelled-list rest --batch-size 1",
        "needs a --batch-size of at least 2",
    ),
    "no share": ("baseline", "--labelled-share 1", "'1' is not a number above 0 and below 1"),
    "human labels": (
        "baseline",
        "--unlabelled-list rest --machine-labels gated_labels",
        "frames with labels in gated_labels belong to --train-list",
    ),
    "no such list": (
        "baseline",
        "--unlabelled-list nowhere --machine-labels teacher_labels",
        "nowhere.txt is missing",
    ),
    "a frame twice": (
        "baseline",
        "--unlabelled-list rest rest --machine-labels teacher_labels",
        "rest.txt:1 too: take it off one of them",
    ),
    "a test frame": ("cmkd_mse", "--unlabelled-list test_night", "test_night.txt:1: "),
    "a frame of --val-list": (
        "cmkd_mse",
        "--unlabelled-list rest --val-list rest",
        "because a network must be tested on frames that it was not trained on",
    ),
    "no label file": (
        "baseline",
        "--unlabelled-list few --machine-labels teacher_labels",
        "few.txt:1: ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_misuse_is_one_line(data, tmp_path, case):
    script, options, message = REFUSED[case]
    done = train(script, data, tmp_path, f"--train-list few {options}", expect=2)
    assert message in the_error(done)
    assert not (tmp_path / "run").exists()


def test_a_missing_machine_label_file_names_the_script_that_writes_it(data):
    with pytest.raises(UserError) as error:
        SeeingThroughFog(data, "few", "rgb", labels="teacher_labels")
    name = (data / "few.txt").read_text().split()[0]
    assert f"few.txt:1: {data}/teacher_labels/{name}.txt is missing" in str(error.value)
    assert "label_frames.py --out teacher_labels" in str(error.value)


@pytest.mark.parametrize("held_out", ["val_day", "test_snow", "other"])
def test_a_recording_of_a_held_out_list_is_refused(frames, held_out):
    """All val and test lists of the folder count, and the one of --val-list whatever its name."""
    write_frame(frames, "drive_7_0001")
    (frames / "rest.txt").write_text("b\ndrive_7_0001\n")
    (frames / "val_night.txt").write_text("a\n")
    args = arguments_of(frames, "--unlabelled-list", "rest")
    training_loader(args, "rgb", may_lack_labels=True)
    (frames / f"{held_out}.txt").write_text("c\ndrive_7_0900\n")
    if held_out == "other":
        training_loader(args, "rgb", may_lack_labels=True)
        args = arguments_of(frames, "--unlabelled-list", "rest", "--val-list", "other")
    expected = (
        rf"rest.txt:2: drive_7_0001 is of the recording of drive_7_0900 "
        rf"\(.*{held_out}.txt:2\): take it off"
    )
    with pytest.raises(UserError, match=expected):
        training_loader(args, "rgb", may_lack_labels=True)


def test_parts_by_different_thresholds_are_refused(frames):
    """They would be labels of two networks in one folder."""
    (frames / "val_night.txt").write_text("v")
    folder = frames / "teacher_labels"
    shutil.copytree(frames / "gated_labels", folder)
    args = arguments_of(
        frames, "--unlabelled-list", "train_night", "--machine-labels", "teacher_labels"
    )
    header = {
        "settings": {"classes": [["Pedestrian", "Pedestrian_is_group"]]},
        "weights_sha256": "a",
        "mirror": False,
    }
    for part, sure in ((1, 0.5), (2, 0.7)):
        line = json.dumps({**header, "thresholds": {"Pedestrian": [sure, 0.2]}})
        training_loader(args, "rgb")
        (folder / f"labels-{part}-of-2.jsonl").write_text(f"{line}\n")
    with pytest.raises(UserError, match="have different thresholds: label that part again"):
        training_loader(args, "rgb")


def test_a_frame_may_be_in_both_lists(frames):
    """A control: machine labels on the labelled frames."""
    (frames / "val_night.txt").write_text("v")
    args = arguments_of(frames, "--unlabelled-list", "train_night")
    assert len(training_loader(args, "rgb", may_lack_labels=True).dataset) == 4


def test_checkpoints_of_earlier_versions_resume_with_the_defaults_alone(tmp_path):
    args = vars(training_parser("baseline", None).parse_args([]))
    args["input"] = "rgb+gated"  # of train_teacher.py alone
    assert {name: args[name] for name in checkpoint.ADDED_OPTIONS} == checkpoint.ADDED_OPTIONS
    before = {
        name: value
        for name, value in checkpoint.comparable(args).items()
        if name not in checkpoint.ADDED_OPTIONS
    }
    checkpoint.refuse_other_arguments(tmp_path, before, checkpoint.comparable(args))
    others = {
        "unlabelled_list": ["rest"],
        "machine_labels": "teacher_labels",
        "labelled_share": 0.25,
        "machine_weight": 2.0,
        "machine_boxes": False,
        "steps_per_epoch": 7,
        "decay_epochs": 4,
        "input": "gated",
    }
    assert others.keys() == checkpoint.ADDED_OPTIONS.keys()
    for name, value in others.items():
        changed = checkpoint.comparable({**args, name: value})
        for earlier in (before, checkpoint.comparable(args)):
            with pytest.raises(UserError, match=f"was started with {name} "):
                checkpoint.refuse_other_arguments(tmp_path, earlier, changed)


def test_decay_epochs():
    rates = [learning_rate(1.0, epoch, 0, 1, decay_epochs=2) for epoch in range(1, 7)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])

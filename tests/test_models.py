"""The detector, its features, and every checkpoint it must load or refuse."""

import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d
from torchvision.models import ResNet18_Weights, resnet18
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import FrozenBatchNorm2d

from cmkd.evaluation.pipeline import load_rgb_detector
from cmkd.runtime.weights import STEM, WeightsError, read_settings, read_state
from models import LEVELS, Detector, build_detector, load_detector, load_teacher


def frames(channels=3, count=2, size=(96, 160)):
    return [torch.randint(0, 256, (channels, *size), dtype=torch.uint8) for _ in range(count)]


def targets(count=2):
    return [
        {"boxes": torch.tensor([[10.0, 10, 40, 80]]), "labels": torch.tensor([1])}
        for _ in range(count)
    ]


def small(channels=3, norm="batch", num_classes=2):
    return Detector(channels, num_classes, "resnet18", norm, min_size=64)


def saved(tmp_path, state, name="weights.pth"):
    torch.save(state, tmp_path / name)
    return tmp_path / name


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("channels", [3, 6])
def test_training_gives_losses_and_features(channels):
    losses, features = small(channels)(frames(channels), targets())
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert list(features) == list(LEVELS)
    assert [tuple(features[level].shape) for level in LEVELS] == [
        (2, 256, 64 // stride, 128 // stride) for stride in (4, 8, 16, 32)
    ]  # 64x107, padded to 64x128


def test_equals_torchvision_in_evaluation():
    ours = Detector(3, 2, "resnet50", "batch", min_size=64).eval()
    reference = (
        fasterrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=2, min_size=64, max_size=1333
        )
        .eval()
        .to(memory_format=torch.channels_last)
    )
    reference.load_state_dict(ours.state_dict())
    images = frames()
    with torch.no_grad():
        for found, expected in zip(
            ours(images), reference([image / 255 for image in images]), strict=True
        ):
            assert same(found, expected)
            assert len(found["boxes"]) > 0


def test_features_run_transform_and_backbone_only():
    detector = small(6)
    images = frames(6)
    _, expected = detector(images, targets())
    detector.rpn = detector.roi_heads = None
    features = detector.features(images)
    assert all(torch.equal(features[level], expected[level]) for level in LEVELS)


def test_published_normalisation():
    transform = small(6).transform
    assert transform.image_mean == [0.485, 0.456, 0.406, 0.406, 0.406, 0.406]
    assert transform.image_std == [0.229, 0.224, 0.225, 0.225, 0.225, 0.225]


def test_batch_without_any_box():
    empty = [
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)} for _ in range(2)
    ]
    losses, _ = small()(frames(), empty)
    total = sum(losses.values())
    total.backward()
    assert total.isfinite()
    assert losses["loss_box_reg"].item() == losses["loss_rpn_box_reg"].item() == 0.0


def test_uint8_and_unit_floats_are_one_image():
    detector = small().eval()
    images = frames()
    with torch.no_grad():
        one, other = (
            detector.features(images),
            detector.features([image.float() / 255 for image in images]),
        )
    assert all(torch.equal(one[level], other[level]) for level in LEVELS)


def torchvision_0_12(state):
    """A state_dict with the FPN and RPN keys that torchvision 0.12 wrote."""
    old = {}
    for name, value in state.items():
        if ".fpn." in name:
            name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        old[name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")] = value
    assert "backbone.fpn.inner_blocks.0.weight" in old
    assert "rpn.head.conv.weight" in old
    return old


@pytest.mark.parametrize(
    "dress",
    [
        lambda state: state,
        torchvision_0_12,
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"model": state, "optimizer": {}, "epoch": 3},
        lambda state: {
            "model": {f"module.{name}": value for name, value in torchvision_0_12(state).items()}
        },
    ],
    ids=["plain", "torchvision 0.12", "module prefix", "training checkpoint", "both"],
)
@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_loads_every_form(tmp_path, dress, norm):
    detector = small(6, norm, num_classes=3)
    loaded = load_detector(saved(tmp_path, dress(detector.state_dict())))
    assert same(loaded.state_dict(), detector.state_dict())
    assert loaded.settings == {**detector.settings, "min_size": 500}


def test_published_files_mean_frozen_norm_without_eps(tmp_path):
    loaded = load_detector(saved(tmp_path, torchvision_0_12(Detector(3, 2).state_dict())))
    norms = [module for module in loaded.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert len(norms) == 53
    assert {norm.eps for norm in norms} == {0.0}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in loaded.modules())
    assert (
        loaded.settings["backbone"],
        loaded.settings["min_size"],
        loaded.settings["max_size"],
    ) == ("resnet50", 500, 1333)
    assert all(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("backbone", ["resnet34", "wide_resnet50_2", "resnext50_32x4d"])
def test_backbone_is_read_from_the_keys(tmp_path, backbone):
    file = saved(tmp_path, Detector(3, 2, backbone).state_dict())
    assert load_detector(file).settings["backbone"] == backbone


def test_image_size_is_read_from_the_json(tmp_path):
    file = saved(tmp_path, small().state_dict())
    file.with_suffix(".json").write_text(
        json.dumps({"min_size": 128, "max_size": 256, "proposals": 77})
    )
    assert load_detector(file).settings["min_size"] == 128
    assert load_detector(file).rpn.post_nms_top_n() == 2000
    assert load_detector(file).eval().rpn.post_nms_top_n() == 77
    assert load_detector(file, min_size=64).transform.min_size == (64,)
    assert load_detector(file, min_size=64).transform.max_size == 256


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([1], "its settings are a list"),
        ({"min_size": "64"}, "min_size is '64'"),
        ({"max_size": -5}, "max_size is -5"),
        ({"proposals": True}, "proposals is True"),
        ({"classes": [["a"]]}, "classes is [['a']]"),
        ({"classes": "Pedestrian"}, "classes is 'Pedestrian'"),
    ],
)
def test_json_of_wrong_types_is_named(tmp_path, settings, message):
    file = saved(tmp_path, small().state_dict())
    file.with_suffix(".json").write_text(json.dumps(settings))
    with pytest.raises(WeightsError) as error:
        load_detector(file)
    assert str(error.value).startswith(f"{file.with_suffix('.json')}: {message}")


def test_a_training_checkpoint_knows_its_settings(tmp_path, capsys):
    arguments = {"min_size": 96, "max_size": 200, "proposals": 77, "classes": ["Deer"], "lr": 0.1}
    file = saved(tmp_path, {"model": small().state_dict(), "arguments": arguments})
    settings = load_detector(file).settings
    assert (settings["min_size"], settings["max_size"], settings["proposals"]) == (96, 200, 77)
    assert read_settings(file)["classes"] == ["Deer"]
    assert "assumed" not in capsys.readouterr().out
    torch.save({"model": small().state_dict(), "arguments": {"min_size": None}}, file)
    with pytest.raises(WeightsError, match="weights.pth: min_size is None"):
        load_detector(file)


def test_an_assumed_size_is_said(tmp_path, capsys):
    file = saved(tmp_path, small().state_dict())
    assert load_detector(file).settings["min_size"] == 500
    said = f"{file}: nothing says how it was trained; assuming that it sees RGB"
    assert capsys.readouterr().out == f"{said} and the published image size\n"
    load_detector(file, 64, 128)
    assert capsys.readouterr().out == f"{said}\n"
    file = saved(tmp_path, Detector(6, 2, "resnet18").state_dict())
    load_detector(file, 64, 128)
    assert capsys.readouterr().out == ""


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda state: without(state, "rpn.head.cls_logits.weight"),
            "no rpn.head.cls_logits.weight",
        ),
        (lambda state: {**state, "mask_head.weight": torch.zeros(1)}, "unknown mask_head.weight"),
        (
            lambda state: {**state, "rpn.head.cls_logits.bias": torch.zeros(9)},
            "rpn.head.cls_logits.bias is [9], not [3]",
        ),
        (lambda state: without(state, STEM), f"has no {STEM}"),
        (
            lambda state: without(state, "backbone.body.layer1.0.conv1.weight"),
            "its backbone is none of resnet18",
        ),
        (lambda state: {"epoch": 3}, "holds no state_dict"),
        (lambda state: [1, 2], "holds no state_dict"),
        (lambda state: {0: torch.zeros(1), **state}, "holds no state_dict"),
    ],
)
def test_refuses_what_does_not_fit(tmp_path, spoil, message):
    file = saved(tmp_path, spoil(small().state_dict()))
    with pytest.raises(WeightsError) as error:
        load_detector(file)
    assert message in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


class Exploit:
    """Unpickled carelessly, this creates a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_nothing_in_a_file_is_run(tmp_path):
    harmful, proof = tmp_path / "harmful.pth", tmp_path / "it_ran"
    torch.save({"model": Exploit(proof)}, harmful)
    with zipfile.ZipFile(harmful) as archive:
        pickle.loads(archive.read("harmful/data.pkl"))
    assert proof.exists()  # the payload is a real one
    proof.unlink()
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        read_state(harmful)
    harmful.write_bytes(pickle.dumps(Exploit(proof)))
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        read_state(harmful)
    assert not proof.exists()


def test_damaged_and_missing_files(tmp_path):
    file = saved(tmp_path, small().state_dict())
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        load_detector(file)
    with pytest.raises(WeightsError, match="is missing"):
        load_detector(tmp_path / "nothing.pth")


def test_random_weights_get_a_trainable_norm():
    detector = build_detector(6, 2, "resnet18", "none", min_size=64)
    assert any(isinstance(module, nn.BatchNorm2d) for module in detector.modules())
    assert detector.settings["norm"] == "batch"


def test_init_from_a_file_names_what_is_new(tmp_path, capsys):
    source = small(3, "frozen", num_classes=4)
    detector = build_detector(
        6, 2, "resnet18", str(saved(tmp_path, source.state_dict())), "reinit", min_size=64
    )
    new = capsys.readouterr().out.strip().partition("new: ")[2].split(", ")
    assert new == [
        "backbone.body.conv1",
        "roi_heads.box_predictor.bbox_pred",
        "roi_heads.box_predictor.cls_score",
    ]
    own, given = detector.state_dict(), source.state_dict()
    differing = {
        name.rpartition(".")[0]
        for name in own
        if own[name].shape != given[name].shape or not torch.equal(own[name], given[name])
    }
    assert differing == set(new)


@pytest.mark.parametrize("channels", [3, 6])
def test_reinit_replaces_the_stem_of_rgb_too(tmp_path, channels):
    source = small(3, "frozen")
    file = str(saved(tmp_path, source.state_dict()))
    stem = build_detector(channels, 2, "resnet18", file, "reinit", min_size=64).state_dict()[STEM]
    assert stem.shape == (64, channels, 7, 7)
    assert not torch.equal(stem[:, :3], source.state_dict()[STEM])


def test_inflate_keeps_rgb_and_gives_each_slice_the_mean(tmp_path):
    source = small(3, "frozen").state_dict()
    file = str(saved(tmp_path, source))
    assert same(build_detector(3, 2, "resnet18", file, "inflate", min_size=64).state_dict(), source)
    stem = build_detector(6, 2, "resnet18", file, "inflate", min_size=64).state_dict()[STEM]
    assert torch.equal(stem[:, :3], source[STEM])
    for channel in (3, 4, 5):
        torch.testing.assert_close(stem[:, channel], source[STEM].mean(dim=1))


def test_inflate_from_six_channels(tmp_path):
    """To six channels they stay; to three, an image that is the same in all keeps its response."""
    source = small(6, "frozen").state_dict()
    file = str(saved(tmp_path, source))
    assert torch.equal(
        build_detector(6, 2, "resnet18", file, "inflate", min_size=64).state_dict()[STEM],
        source[STEM],
    )
    stem = build_detector(3, 2, "resnet18", file, "inflate", min_size=64).state_dict()[STEM]
    grey = torch.randn(1, 1, 20, 20)
    torch.testing.assert_close(
        conv2d(grey.expand(-1, 3, -1, -1), stem),
        conv2d(grey.expand(-1, 6, -1, -1), source[STEM]),
        atol=1e-5,
        rtol=1e-5,
    )
    torch.testing.assert_close(stem[:, 0] - stem[:, 2], source[STEM][:, 0] - source[STEM][:, 2])


def test_one_value_per_channel_says_what_to_do():
    detector = Detector(3, 2, "resnet18", "batch", min_size=32, max_size=32)
    with pytest.raises(
        WeightsError, match=r"1 frame\(s\) of 32 px give: raise --batch-size or --min-size"
    ):
        detector(frames(count=1, size=(32, 32)), targets(1))
    detector(frames(count=2, size=(32, 32)), targets(2))


def test_freezing_a_trained_norm_keeps_the_function(tmp_path):
    source = small(3, "batch")
    source(frames(), targets())  # statistics that are not 0 and 1
    source.backbone.body.bn1.running_var.fill_(
        1e-5
    )  # as small as eps, so that leaving eps out would show
    file = str(saved(tmp_path, source.state_dict()))
    frozen = build_detector(3, 2, "resnet18", file, "inflate", min_size=64)
    assert frozen.settings["norm"] == "frozen"
    images = frames()
    with torch.no_grad():
        one, other = source.eval().features(images), frozen.eval().features(images)
    for level in LEVELS:
        assert (one[level] - other[level]).norm() < 1e-3 * one[level].norm()


def test_init_from_another_backbone_is_refused(tmp_path):
    file = str(saved(tmp_path, small(3, "frozen").state_dict()))
    with pytest.raises(
        WeightsError, match="holds a resnet18, not a resnet34: pass --backbone resnet18"
    ):
        build_detector(3, 2, "resnet34", file)


def test_coco_weights_put_by_hand_are_used(tmp_path, monkeypatch):
    """The real download path of torchvision, which takes a file that lies in its cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    coco = Detector(3, 91)
    torch.save(
        coco.state_dict(),
        tmp_path / "hub" / "checkpoints" / "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
    )
    detector = build_detector(3, 2, init="coco")
    own, given = detector.state_dict(), coco.state_dict()
    assert torch.equal(
        own["backbone.fpn.layer_blocks.2.0.weight"], given["backbone.fpn.layer_blocks.2.0.weight"]
    )
    assert torch.equal(own["backbone.body.bn1.running_var"], given["backbone.body.bn1.running_var"])
    assert not torch.equal(own[STEM], given[STEM])
    assert own["roi_heads.box_predictor.cls_score.weight"].shape == (2, 1024)
    assert {
        module.eps for module in detector.modules() if isinstance(module, FrozenBatchNorm2d)
    } == {0.0}


def test_imagenet_weights_put_by_hand_are_used(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    # torchvision's files are from before BatchNorm counted its batches.
    given = {
        name: value
        for name, value in resnet18(weights=None).state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    torch.save(given, cache / Path(ResNet18_Weights.IMAGENET1K_V1.url).name)
    own = build_detector(3, 2, "resnet18", "imagenet", "inflate", min_size=64).state_dict()
    assert torch.equal(own[STEM], given["conv1.weight"])
    assert torch.equal(own["backbone.body.layer4.1.conv2.weight"], given["layer4.1.conv2.weight"])
    assert torch.equal(own["backbone.body.bn1.running_var"], given["bn1.running_var"] + 1e-5)


def test_failed_download_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(WeightsError) as error:
        build_detector(3, 2)
    message = str(error.value)
    assert "--init none" in message
    assert (
        str(tmp_path / "hub" / "checkpoints" / "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth")
        in message
    )
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"<html>not found</html>\n<p>", b"", b"PK\x03\x04cut", "list"])
def test_damaged_pretrained_file_is_named(tmp_path, monkeypatch, content):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / Path(ResNet18_Weights.IMAGENET1K_V1.url).name
    place.parent.mkdir(parents=True)
    if content == "list":
        torch.save([1], place)
    else:
        place.write_bytes(content)
    with pytest.raises(WeightsError) as error:
        build_detector(3, 2, "resnet18", "imagenet", min_size=64)
    assert f"{place} is damaged (" in str(error.value)
    assert "remove it, or put https://" in str(error.value)
    assert "\n" not in str(error.value)


def test_coco_weights_exist_for_resnet50_only():
    with pytest.raises(WeightsError, match="resnet50, not resnet18"):
        build_detector(3, 2, "resnet18")
    with pytest.raises(WeightsError, match="choose one of resnet18, "):
        build_detector(3, 2, "vgg16")


def test_teacher_of_another_size_is_warned_of(tmp_path, capsys):
    file = saved(tmp_path, small(6).state_dict())
    file.with_suffix(".json").write_text(json.dumps({"min_size": 64, "max_size": 128}))
    load_teacher(file, 64, 128)
    assert capsys.readouterr() == ("", "")
    load_teacher(file, 96, 1333)
    out, err = capsys.readouterr()
    assert out == ""
    assert "trained at --min-size 64 and is used at 96" in err
    assert "trained at --max-size 128 and is used at 1333" in err


def test_teacher_is_frozen_and_has_six_channels(tmp_path):
    teacher = load_teacher(saved(tmp_path, small(6).state_dict()), 64, 1333)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert teacher.transform.min_size == (64,)
    with pytest.raises(WeightsError, match="takes 3 channels, a teacher takes 6"):
        load_teacher(saved(tmp_path, small(3).state_dict()), 64, 1333)
    with pytest.raises(WeightsError, match=r"run train_teacher.py first, or pass --teacher"):
        load_teacher(tmp_path / "missing.pth", 64, 1333)


def target_of(*boxes):
    """(label, box) pairs -> a torchvision target."""
    return {
        "labels": torch.tensor([label for label, _ in boxes], dtype=torch.int64),
        "boxes": torch.tensor([box for _, box in boxes], dtype=torch.float32).reshape(-1, 4),
    }


PERSON, REGION = (1, [10, 10, 30, 60]), (0, [60, 0, 160, 96])


def test_without_ignore_regions_training_is_torchvisions():
    detector = build_detector(3, 2, "resnet18", "none", rois=16, min_size=64, max_size=128).train()
    images, targets = [torch.rand(3, 96, 160) for _ in range(2)], [target_of(PERSON), target_of()]
    torch.manual_seed(3)
    ours, _ = detector(images, targets)
    detector.rpn.__class__, detector.roi_heads.__class__ = RegionProposalNetwork, RoIHeads
    torch.manual_seed(3)
    theirs, _ = detector(images, targets)
    assert same(ours, theirs)


def test_what_lies_on_an_ignore_region_is_no_background():
    detector = build_detector(3, 2, "resnet18", "none")
    boxes = torch.tensor(
        [[10.0, 10, 30, 60], [70, 10, 90, 50], [40, 10, 70, 50], [50, 10, 80, 50], [0, 60, 20, 90]]
    )
    # the person, inside, a third inside, two thirds inside, outside
    detector.rpn.ignored_counts = detector.roi_heads.ignored_counts = [1]
    [anchor_labels], [matched] = detector.rpn.assign_targets_to_anchors(
        [boxes], [target_of(PERSON, REGION)]
    )
    assert anchor_labels.tolist() == [1, -1, 0, -1, 0]
    assert matched[0].tolist() == PERSON[1]
    target = target_of(PERSON, REGION)
    places, labels = detector.roi_heads.assign_targets_to_proposals(
        [boxes], [target["boxes"]], [target["labels"]]
    )
    assert labels[0].tolist() == [1, -1, 0, -1, 0]
    assert places[0][0] == 0


def test_padding_goes_with_the_weights_and_a_teacher_pads_as_its_student(tmp_path):
    file = saved(tmp_path, small(6).state_dict())
    file.with_suffix(".json").write_text(json.dumps({"padding": 128}))
    assert load_detector(file).transform.size_divisible == 128
    assert load_detector(file).settings["padding"] == 128
    assert load_teacher(file, 64, 1333).transform.size_divisible == 32
    assert load_teacher(file, 64, 1333, compiled=True).transform.size_divisible == 128
    file.with_suffix(".json").write_text("{}")
    assert load_detector(file).transform.size_divisible == 32


@pytest.mark.parametrize("told", [True, False])
def test_training_knows_the_ignore_regions_of_each_frame(told):
    """By `iscrowd` where it is given, else by the labels."""
    detector = build_detector(3, 2, "resnet18", "none", rois=16, min_size=64, max_size=128).train()
    targets = [target_of(PERSON, REGION, REGION), target_of(), target_of(PERSON)]
    if told:
        targets = [{**target, "iscrowd": (target["labels"] == 0).long()} for target in targets]
    detector([torch.rand(3, 96, 160) for _ in range(3)], targets)
    assert detector.rpn.ignored_counts == detector.roi_heads.ignored_counts == [2, 0, 0]


def test_a_person_on_an_ignore_region_is_trained():
    detector = build_detector(3, 2, "resnet18", "none")
    person = (1, [70, 10, 90, 50])
    detector.rpn.ignored_counts = [1]
    [labels], _ = detector.rpn.assign_targets_to_anchors(
        [torch.tensor([person[1]]).float()], [target_of(person, REGION)]
    )
    assert labels.tolist() == [1]


@pytest.mark.parametrize("regions", [[REGION], [(0, [0, 0, 160, 96])]])
def test_frames_with_ignore_regions_alone_give_finite_losses(regions):
    detector = build_detector(3, 2, "resnet18", "none", rois=16, min_size=64, max_size=128).train()
    losses, _ = detector([torch.rand(3, 96, 160) for _ in range(2)], [target_of(*regions)] * 2)
    assert all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()


def test_a_frame_that_is_ignored_whole_trains_nothing_beside_another():
    detector = build_detector(3, 2, "resnet18", "none")
    boxes = torch.tensor([[70.0, 10, 90, 50], [80.0, 20, 100, 60]])
    detector.rpn.ignored_counts = [1, 0]
    labels, _ = detector.rpn.assign_targets_to_anchors(
        [boxes, boxes], [target_of(REGION), target_of()]
    )
    assert [one.tolist() for one in labels] == [[-1, -1], [0, 0]]


def test_half_precision_is_read_as_float32(tmp_path):
    """Shipped start weights are in float16, and an eps is added to their small variances."""
    state = Detector(3, 2, "resnet18", "batch").state_dict()
    state["backbone.body.bn1.running_var"].fill_(2**-14)
    torch.save({name: one.half() for name, one in state.items()}, tmp_path / "half.pth")
    detector = build_detector(3, 2, "resnet18", str(tmp_path / "half.pth"), "inflate")
    assert {one.dtype for one in detector.state_dict().values()} == {torch.float32}
    variance = detector.state_dict()["backbone.body.bn1.running_var"]
    torch.testing.assert_close(
        variance, torch.full_like(variance, 2**-14 + 1e-5), rtol=1e-6, atol=0
    )


def test_candidates_limit_what_reaches_suppression(tmp_path):
    """In training, in evaluation, and in evaluation of the weights that were trained with it."""
    detector = Detector(3, 2, "resnet18", "batch", min_size=64, candidates=5)
    torch.save(detector.state_dict(), tmp_path / "few.pth")
    (tmp_path / "few.json").write_text(json.dumps(detector.settings))
    loaded = load_detector(tmp_path / "few.pth")
    plain = Detector(3, 2, "resnet18", "batch", min_size=64)
    assert [loaded.rpn.train(mode).pre_nms_top_n() for mode in (True, False)] == [5, 5]
    assert [plain.rpn.train(mode).pre_nms_top_n() for mode in (True, False)] == [2000, 1000]
    counts = {}
    for name, one in (("few", loaded.eval()), ("plain", plain.eval())):
        one.rpn.register_forward_hook(
            lambda _, __, out, name=name: counts.update({name: len(out[0][0])})
        )
        one([torch.rand(3, 64, 96)])
    assert counts["few"] <= 5 * 5 < counts["plain"]


def test_a_network_of_the_slices_alone(tmp_path):
    """3 channels that its JSON calls gated: slices' mean and deviation, and the last channels."""
    detector = Detector(3, 2, "resnet18", "frozen", 64, 128, modality="gated").eval()
    assert detector.transform.image_mean == [0.406] * 3
    file = saved(tmp_path, detector.state_dict())
    assert load_detector(file).settings["modality"] == "rgb"
    file.with_suffix(".json").write_text(json.dumps(detector.settings))
    loaded = load_detector(file).eval()
    assert loaded.settings == detector.settings
    image = torch.rand(6, 64, 96)
    wanted = detector.features([image[3:]])
    for one in (loaded, load_teacher(file, 64, 128)):
        found = one.features([image])
        assert all(torch.equal(found[level], wanted[level]) for level in LEVELS)
    with pytest.raises(WeightsError, match="needs gated slices"):
        load_rgb_detector(file)
    file.with_suffix(".json").write_text(json.dumps({**detector.settings, "modality": "rgb+gated"}))
    with pytest.raises(WeightsError, match=r"takes 3 channels, but its JSON says 'rgb\+gated'"):
        load_detector(file)


def test_slices_alone_start_from_the_mean_of_the_colours(tmp_path):
    rgb = small()
    options = {"backbone": "resnet18", "init": str(saved(tmp_path, rgb.state_dict()))}
    gated = build_detector(3, 2, stem="inflate", modality="gated", **options)
    kernels = gated.backbone.body.conv1.weight
    mean = rgb.backbone.body.conv1.weight.mean(dim=1)
    assert all(torch.equal(kernels[:, channel], mean) for channel in range(3))

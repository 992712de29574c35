"""The networks: Faster R-CNN ResNet-FPN for 3 or 6 channels, and the adversary of CMKD-Adv."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.hub import get_dir
from torch.nn.functional import adaptive_max_pool2d
from torchvision.models import get_model_weights, resnet
from torchvision.models.detection import FasterRCNN, FasterRCNN_ResNet50_FPN_Weights
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import FrozenBatchNorm2d

from cmkd.runtime.failures import warn
from cmkd.runtime.files import reason_of
from cmkd.runtime.sparse_roi_align import SparseRoIAlign
from cmkd.runtime.weights import (
    STEM,
    WeightsError,
    current_name,
    read_settings,
    read_state,
    settings_file,
    sha256_of,
)

DETECTION_LOSSES = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")
BOX_LOSSES = ("loss_box_reg", "loss_rpn_box_reg")
LEVELS = ("0", "1", "2", "3")  # torchvision's names of P2..P5
FEATURE_CHANNELS = 256
BACKBONES = tuple(name for name in resnet.__all__ if name.islower())  # resnet18, resnet34, ...

# Published recipe: ImageNet's mean and standard deviation for RGB, one pair for all gated channels.
RGB_MEAN, RGB_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
GATED_MEAN, GATED_STD = 0.406, 0.225
# A batch is padded to multiples of this many px; more for torch.compile, so it meets few shapes.
PADDING, COMPILED_PADDING = 32, 128
# What a network sees, by its channels. The 3 channels of `gated` are known by the settings alone.
RGB_AND_GATED, GATED_ALONE = "rgb+gated", "gated"
MODALITY_OF = {3: "rgb", 6: RGB_AND_GATED}


class FrozenNorm(FrozenBatchNorm2d):
    """torchvision's FrozenBatchNorm2d in one kernel, which keeps bfloat16 instead of float32."""

    def forward(self, features: Tensor) -> Tensor:
        # torch 2.11's functional.batch_norm refuses the eps of 0 that COCO weights need.
        return torch.batch_norm(
            features,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            False,
            0.0,
            self.eps,
            torch.backends.cudnn.enabled,
        )


NORMS = {"frozen": partial(FrozenNorm, eps=0.0), "batch": nn.BatchNorm2d}


def covered(boxes: Tensor, regions: Tensor) -> Tensor:
    """Which boxes `[N, 4]` lie by at least half of their area in a region `[M, 4]`: bool `[N]`."""
    corner0 = torch.maximum(boxes[:, None, :2], regions[:, :2])
    corner1 = torch.minimum(boxes[:, None, 2:], regions[:, 2:])
    inside = (corner1 - corner0).clamp(min=0).prod(dim=2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1, keepdim=True)
    return (inside >= 0.5 * areas).any(dim=1)


def mask_ignored(labels: list[Tensor], boxes: list[Tensor], regions: list[Tensor]) -> list[Tensor]:
    """Training labels in which background on ignore regions becomes -1.

    For each frame: labels `[N]` of boxes `[N, 4]`, and ignore regions `[M, 4]`. Background is 0;
    torchvision's samplers skip -1.
    """
    if not any(len(region) for region in regions):
        return labels
    spared = [
        label.masked_fill((label == 0) & covered(box, region), -1)
        for label, box, region in zip(labels, boxes, regions, strict=True)
    ]
    # If no box of the batch is left to learn from, the mean of the losses would be NaN.
    return spared if any((label >= 0).any() for label in spared) else labels


def count_ignore_regions(target: dict[str, Tensor]) -> int:
    """How many boxes of a target are ignore regions; they come last.

    By `iscrowd`, which the engine leaves on the host, so it needs no synchronisation of the GPU;
    else by their label 0.
    """
    return int((target["iscrowd"] if "iscrowd" in target else target["labels"] == 0).sum())


class IgnoreAwareRPN(RegionProposalNetwork):
    """torchvision's RPN, except that anchors on ignore regions do not count as background.

    `ignored_counts` has the number of ignore regions of each frame in the batch.
    """

    ignored_counts: list[int]

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        split = [
            target["boxes"].tensor_split([len(target["boxes"]) - count])
            for target, count in zip(targets, self.ignored_counts, strict=True)
        ]
        objects = [{"boxes": boxes} for boxes, _ in split]
        labels, matched = super().assign_targets_to_anchors(anchors, objects)
        return mask_ignored(labels, anchors, [regions for _, regions in split]), matched


class IgnoreAwareRoIHeads(RoIHeads):
    """torchvision's RoI heads, except that proposals on ignore regions are no background.

    `ignored_counts` has the number of ignore regions of each frame in the batch. They come last, so
    an index among the objects is also the index among all boxes.
    """

    ignored_counts: list[int]

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        counts = zip(gt_boxes, self.ignored_counts, strict=True)
        ends = [len(boxes) - count for boxes, count in counts]
        objects = [boxes[:end] for boxes, end in zip(gt_boxes, ends, strict=True)]
        ignored = [boxes[end:] for boxes, end in zip(gt_boxes, ends, strict=True)]
        classes = [labels[:end] for labels, end in zip(gt_labels, ends, strict=True)]
        matched, labels = super().assign_targets_to_proposals(proposals, objects, classes)
        return matched, mask_ignored(labels, proposals, ignored)


class Detector(FasterRCNN):
    """torchvision's Faster R-CNN on a ResNet-FPN with any number of channels; returns its features.

    Images are a list of `[channels, H, W]`, float 0..1 or uint8 0..255; boxes are in their pixels.
    Training: `detector(images, targets)` -> (losses, features). Evaluation: `detector(images)` ->
    detections. `features` are P2..P5 by torchvision's names '0'..'3', each `[B, 256, h, w]`. Boxes
    with label 0, which come last in a target, are ignore regions.

    A target's `labelled_by` is `human` (also if it is missing), `machine` or `nobody`. Losses of
    machine-labelled frames have the weight `machine_weight`, those of box regression 0 unless
    `machine_boxes`; frames that nobody labelled have no losses, only features.

    Frames are resized to `min_size` px on the shorter side, at most `max_size` on the longer.
    `rois` regions of each frame train the box head; in evaluation it classifies `proposals`. The
    best `candidates` of each level reach non-maximum suppression; None is torchvision's default,
    2000 in training and 1000 in evaluation. A batch is padded to multiples of `padding` px.
    `compiled`: torch.compile for the backbone, and padding to multiples of 128 px. `modality` is
    what the channels are: `rgb`, `rgb+gated`, or `gated`, which has the three slices alone.

    Under autocast backbone and heads compute in bfloat16; losses and boxes stay in float32.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        backbone: str = "resnet50",
        norm: str = "frozen",
        min_size: int = 500,
        max_size: int = 1333,
        rois: int = 512,
        proposals: int = 1000,
        candidates: int | None = None,
        padding: int = PADDING,
        compiled: bool = False,
        machine_weight: float = 1.0,
        machine_boxes: bool = True,
        modality: str | None = None,
    ) -> None:
        extractor = resnet_fpn_backbone(
            backbone_name=backbone, weights=None, norm_layer=NORMS[norm], trainable_layers=5
        )
        extractor.body.conv1 = nn.Conv2d(
            channels, 64, kernel_size=7, stride=2, padding=3, bias=False
        )
        modality = modality or MODALITY_OF.get(channels, f"{channels} channels")
        rgb = 0 if modality == GATED_ALONE else 3
        gated = channels - rgb
        super().__init__(
            extractor,
            num_classes,
            min_size=min_size,
            max_size=max_size,
            image_mean=RGB_MEAN[:rgb] + gated * [GATED_MEAN],
            image_std=RGB_STD[:rgb] + gated * [GATED_STD],
            box_batch_size_per_image=rois,
            rpn_pre_nms_top_n_train=candidates or 2000,
            rpn_pre_nms_top_n_test=candidates or 1000,
            rpn_post_nms_top_n_test=proposals,
        )
        # FasterRCNN makes these itself. The subclasses have the same state: the first two differ in
        # the assignment of background, the third in speed.
        self.rpn.__class__, self.roi_heads.__class__ = IgnoreAwareRPN, IgnoreAwareRoIHeads
        for head in (self.rpn.head, self.roi_heads.box_predictor):
            head.register_forward_hook(lambda _, __, outputs: in_float32(outputs))
        self.roi_heads.box_roi_pool.__class__ = SparseRoIAlign
        self.to(memory_format=torch.channels_last)
        if compiled:
            padding = COMPILED_PADDING
            self.backbone.compile(dynamic=False)
        self.transform.size_divisible = padding
        self.machine_weight, self.machine_boxes = machine_weight, machine_boxes
        self.settings = {
            "channels": channels,
            "modality": modality,
            "num_classes": num_classes,
            "backbone": backbone,
            "norm": norm,
            "min_size": min_size,
            "max_size": max_size,
            "proposals": proposals,
            "candidates": candidates,
            "padding": padding,
        }

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]] | list[dict[str, Tensor]]:
        images = unit_range(images)
        if not self.training:
            return super().forward(images)
        batch, targets = self.transform(images, targets)
        try:
            features = self.backbone(batch.tensors)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise WeightsError(
                "a trainable norm cannot learn from one value per channel, which is what "
                f"{len(images)} frame(s) of {self.settings['min_size']} px give: raise "
                "--batch-size or --min-size"
            ) from None
        losses = self.weighted_losses(batch, features, targets)
        return losses, {level: features[level] for level in LEVELS}

    def weighted_losses(
        self, batch: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Faster R-CNN's four losses, weighted by whose labels they are learned from.

        If weights differ, the heads run on human-labelled and on machine-labelled frames apart,
        and each part counts by its share of the batch's frames times its weight.
        """
        labelled_by = [target.get("labelled_by", "human") for target in targets]
        machines_are_equal = self.machine_weight == 1 and self.machine_boxes
        if set(labelled_by) <= {"human", *(["machine"] if machines_are_equal else [])}:
            return self.detection_losses(batch, features, targets, list(range(len(targets))))
        losses = dict.fromkeys(DETECTION_LOSSES, batch.tensors.new_zeros(()))
        for who in ("human", "machine"):
            frames = [index for index, one in enumerate(labelled_by) if one == who]
            if not frames:
                continue
            share = len(frames) / len(targets)
            for name, value in self.detection_losses(batch, features, targets, frames).items():
                losses[name] = losses[name] + share * self.weight_of(name, who) * value
        return losses

    def weight_of(self, loss: str, labelled_by: str) -> float:
        """The weight of a detection loss by whose labels it is learned from."""
        if labelled_by == "human":
            return 1.0
        return self.machine_weight if self.machine_boxes or loss not in BOX_LOSSES else 0.0

    def detection_losses(
        self,
        batch: ImageList,
        features: dict[str, Tensor],
        targets: list[dict[str, Tensor]],
        frames: list[int],
    ) -> dict[str, Tensor]:
        """Faster R-CNN's four losses on those frames of a batch that have these indices."""
        images = ImageList(batch.tensors, [batch.image_sizes[index] for index in frames])
        targets = [targets[index] for index in frames]
        features = {level: of_frames(maps, frames) for level, maps in features.items()}
        counts = [count_ignore_regions(target) for target in targets]
        self.rpn.ignored_counts = self.roi_heads.ignored_counts = counts
        proposals, proposal_losses = self.rpn(images, features, targets)
        # The first call of all derives the scales of the pyramid, from the batch's largest size.
        _, box_losses = self.roi_heads(features, proposals, batch.image_sizes, targets)
        return {**box_losses, **proposal_losses}

    def features(self, images: list[Tensor]) -> dict[str, Tensor]:
        """P2..P5 by transform and backbone alone, without region proposal network and heads.

        Of images with RGB and slices, the network takes the channels that it sees.
        """
        batch, _ = self.transform(unit_range(self.seen(images)))
        features = self.backbone(batch.tensors)
        return {level: features[level] for level in LEVELS}

    def seen(self, images: list[Tensor]) -> list[Tensor]:
        """The channels that the network sees, of images that may have RGB and slices."""
        channels = self.settings["channels"]
        if self.settings["modality"] == GATED_ALONE:
            return [image[-channels:] for image in images]
        return [image[:channels] for image in images]


def of_frames(maps: Tensor, frames: list[int]) -> Tensor:
    """The maps `[B, C, h, w]` of some frames of a batch."""
    if len(frames) == len(maps):
        return maps
    # An index would lose the layout channels_last, and its gradient is slow on a CPU.
    single = maps.split(1)
    return torch.cat([single[index] for index in frames])


def in_float32(outputs: Any) -> Any:
    """Tensors, also within lists and tuples, as float32."""
    if isinstance(outputs, Tensor):
        return outputs.float()
    return type(outputs)(map(in_float32, outputs))


def unit_range(images: list[Tensor]) -> list[Tensor]:
    """uint8 0..255 -> float 0..1; float images are not changed."""
    return [image.float() / 255 if image.dtype == torch.uint8 else image for image in images]


def build_detector(
    channels: int,
    num_classes: int,
    backbone: str = "resnet50",
    init: str = "coco",
    stem: str = "reinit",
    **options: Any,
) -> Detector:
    """A detector ready for training.

    `options` are those of `Detector`. `init`: `coco` (resnet50 only), `imagenet` (backbone only),
    `none`, or a checkpoint file. Pretrained networks get FrozenBatchNorm with eps
    0.0, as torchvision gives its COCO weights; a network from random weights gets a trainable norm.
    `stem`: `reinit` re-initialises the first convolution whatever its shape (as published);
    `inflate` keeps the pretrained kernels and makes those for other channels from them (`inflate`).
    What could not be kept is printed. Raises `WeightsError`.
    """
    if backbone not in BACKBONES:
        raise WeightsError(f"--backbone {backbone}: choose one of {', '.join(BACKBONES)}")
    norm = "batch" if init == "none" else "frozen"
    detector = Detector(channels, num_classes, backbone, norm, **options)
    if init == "none":
        return detector
    pretrained = freeze_norms(pretrained_state(backbone, init))
    if stem == "reinit":
        pretrained.pop(STEM, None)
    else:
        seen_before = modality_of_init(init, pretrained[STEM].shape[1])
        pretrained[STEM] = inflate(pretrained[STEM], seen_before, detector.settings["modality"])
    own = detector.state_dict()
    fitting = {
        name: value
        for name, value in pretrained.items()
        if name in own and value.shape == own[name].shape
    }
    detector.load_state_dict(fitting, strict=False)
    new = ", ".join(modules_of(own.keys() - fitting))
    print(f"--init {init}: kept {len(fitting)} of {len(own)} tensors; new: {new}")
    return detector


def load_detector(
    file: str | Path,
    min_size: int | None = None,
    max_size: int | None = None,
    compiled: bool = False,
) -> Detector:
    """The detector in a checkpoint.

    Channels, classes, backbone and norm follow from its keys; image size and proposals from
    `read_settings`, else the published ones; `min_size` and `max_size` override both. Raises
    `WeightsError`.
    """
    file = Path(file)
    state = read_state(file)
    settings = read_settings(file)
    described = settings.get("sha256")
    if described and described != sha256_of(file):
        warn(
            f"{file} is not the file that {settings_file(file)} describes: its classes and sizes "
            "may be those of other weights"
        )
    for needed in (STEM, "roi_heads.box_predictor.cls_score.weight"):
        if needed not in state:
            raise WeightsError(
                f"{file} is not a Faster R-CNN checkpoint: it has no {needed}; its first key is "
                f"{next(iter(state), 'missing')}"
            )
    channels = state[STEM].shape[1]
    if not settings:
        assumed = ["that it sees RGB"] if channels == 3 else []
        assumed += [] if min_size and max_size else ["the published image size"]
        if assumed:
            print(f"{file}: nothing says how it was trained; assuming {' and '.join(assumed)}")
    detector = Detector(
        channels=channels,
        num_classes=len(state["roi_heads.box_predictor.cls_score.weight"]),
        backbone=infer_backbone(state, file),
        norm=infer_norm(state),
        min_size=min_size or settings.get("min_size", 500),
        max_size=max_size or settings.get("max_size", 1333),
        proposals=settings.get("proposals", 1000),
        candidates=settings.get("candidates"),
        padding=settings.get("padding", COMPILED_PADDING if settings.get("compile") else PADDING),
        compiled=compiled,
        modality=modality_of(settings, channels, file),
    )
    refuse_mismatch(detector.state_dict(), state, file)
    detector.load_state_dict(state)
    return detector


def modality_of(settings: dict[str, Any], channels: int, file: Path) -> str | None:
    """What the settings beside weights say that they see; None if they say nothing.

    Raises `WeightsError` if that does not fit the channels.
    """
    modality = settings.get("modality")
    if modality not in (None, MODALITY_OF.get(channels), *([GATED_ALONE] * (channels == 3))):
        raise WeightsError(f"{file} takes {channels} channels, but its JSON says {modality!r}")
    return modality


def modality_of_init(init: str, channels: int) -> str | None:
    """What the network of `--init` sees, by the JSON beside a file or else by its channels."""
    known = read_settings(Path(init)) if Path(init).is_file() else {}
    return modality_of(known, channels, Path(init)) or MODALITY_OF.get(channels)


def load_teacher(file: Path, min_size: int, max_size: int, compiled: bool = False) -> Detector:
    """A frozen detector that sees gated slices, in evaluation mode.

    At the student's image size and padding, so the features of both have the same shapes. Raises
    `WeightsError`.
    """
    if not Path(file).is_file():
        raise WeightsError(f"{file} is missing: run train_teacher.py first, or pass --teacher FILE")
    teacher = load_detector(file, min_size, max_size, compiled)
    teacher.transform.size_divisible = COMPILED_PADDING if compiled else PADDING
    if "gated" not in teacher.settings["modality"]:
        raise WeightsError(
            f"{file} takes {teacher.settings['channels']} channels, a teacher takes 6 (RGB and "
            "three gated slices) or, with its JSON, the slices alone: pass --teacher FILE"
        )
    settings = read_settings(Path(file))
    for name, used in (("min_size", min_size), ("max_size", max_size)):
        if (trained_at := settings.get(name, used)) != used:
            option = f"--{name.replace('_', '-')}"
            warn(f"{file} was trained at {option} {trained_at} and is used at {used}")
    return teacher.eval().requires_grad_(False)


def pretrained_state(backbone: str, init: str) -> dict[str, Tensor]:
    """The state_dict that `--init` names, with the names of today's torchvision."""
    if init not in ("coco", "imagenet"):
        state = read_state(Path(init))
        if STEM not in state:
            raise WeightsError(
                f"--init {init} holds neither a Faster R-CNN nor a ResNet: it has no {STEM}"
            )
        if (found := infer_backbone(state, init)) != backbone:
            raise WeightsError(
                f"--init {init} holds a {found}, not a {backbone}: pass --backbone {found}"
            )
        return state
    if init == "coco" and backbone != "resnet50":
        raise WeightsError(
            f"torchvision has COCO weights for resnet50, not {backbone}: pass --init imagenet or "
            "none"
        )
    if init == "coco":
        weights = FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    else:
        weights = get_model_weights(backbone).IMAGENET1K_V1
    place = Path(get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        state = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
        return {current_name(name): value for name, value in state.items()}
    except Exception as error:  # a download and a damaged file can fail in any way
        if place.is_file():  # torch renames a download to this once it is complete
            raise WeightsError(
                f"--init {init}: {place} is damaged ({reason_of(error)}): remove it, or put "
                f"{weights.url} there again"
            ) from None
        raise WeightsError(
            f"--init {init}: {weights.url} could not be downloaded ({reason_of(error)}): put the "
            f"file at {place} by hand, or pass --init none"
        ) from None


def freeze_norms(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make trained BatchNorm statistics right for FrozenBatchNorm with eps 0.0.

    BatchNorm's eps (1e-5) is added to the variances. A ResNet classifier was trained with it, even
    if its file has no `num_batches_tracked` (torchvision's ImageNet weights). A detector without
    that key (COCO weights, ours) was trained with a frozen norm and stays as it is.
    """
    is_detector = any(name.startswith("roi_heads.") for name in state)
    if is_detector and infer_norm(state) == "frozen":
        return dict(state)
    epsilon = nn.BatchNorm2d(1).eps
    return {
        name: value + epsilon if name.endswith("running_var") else value
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }


def inflate(kernels: Tensor, before: str, now: str) -> Tensor:
    """Kernels of the first convolution `[64, 3 or 6, 7, 7]` for what another network sees.

    `before` and `now` are `rgb`, `gated` or `rgb+gated`. From one camera to both or to the other,
    each new channel gets the mean over the camera's three. From both to one, each of its channels
    also gets a third of the other three's sum, so an image that is the same in all channels keeps
    its response.
    """
    if before == now:
        return kernels
    if before == RGB_AND_GATED:
        rgb, gated = kernels.split(3, dim=1)
        kept, lost = (gated, rgb) if now == GATED_ALONE else (rgb, gated)
        return kept + lost.sum(dim=1, keepdim=True) / 3
    mean = kernels.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    if now == RGB_AND_GATED:
        return torch.cat([mean, kernels] if before == GATED_ALONE else [kernels, mean], dim=1)
    return mean


def infer_norm(state: dict[str, Tensor]) -> str:
    """`batch` for a trainable norm, which has `num_batches_tracked`; else `frozen`."""
    return "batch" if any(name.endswith("num_batches_tracked") for name in state) else "frozen"


def infer_backbone(state: dict[str, Tensor], file: str | Path) -> str:
    """The torchvision ResNet with the parameters found under `backbone.body`."""
    prefix = "backbone.body."
    found = {
        name.removeprefix(prefix): value.shape
        for name, value in state.items()
        if name.startswith(prefix + "layer") and not name.endswith("num_batches_tracked")
    }
    for candidate in BACKBONES:
        with torch.device("meta"):
            layers = resnet.__dict__[candidate](norm_layer=FrozenBatchNorm2d).state_dict()
        shapes = {name: value.shape for name, value in layers.items() if name.startswith("layer")}
        if found == shapes:
            return candidate
    raise WeightsError(f"{file}: its backbone is none of {', '.join(BACKBONES)}")


def refuse_mismatch(
    expected: dict[str, Tensor], found: dict[str, Tensor], file: str | Path
) -> None:
    """Raise `WeightsError` with the first names or shapes that differ."""
    missing = [f"no {name}" for name in expected if name not in found]
    unexpected = [f"unknown {name}" for name in found if name not in expected]
    shapes = [
        f"{name} is {list(found[name].shape)}, not {list(value.shape)}"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    if problems := missing + unexpected + shapes:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise WeightsError(
            f"{file} does not fit torchvision's Faster R-CNN: {'; '.join(problems[:3])}{more}"
        )


def modules_of(names: set[str]) -> list[str]:
    """Parameter names -> sorted names of the modules they belong to."""
    return sorted({name.rpartition(".")[0] for name in names}) or ["nothing"]


class GradientReversal(torch.autograd.Function):
    """Identity forward; backward, the gradient times -weight (Ganin & Lempitsky 2015)."""

    @staticmethod
    def forward(context: Any, features: Tensor, weight: float) -> Tensor:
        context.weight = weight
        return features.view_as(features)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -context.weight * gradient, None


def reverse_gradient(features: Tensor, weight: float) -> Tensor:
    """`features` unchanged; the gradient that flows back through them is times -weight."""
    return GradientReversal.apply(features, weight)


class DeterministicAdaptiveMaxPool(nn.AdaptiveMaxPool2d):
    """torch's pool by the indices of the maxima: on CUDA `gather` is deterministic, pooling not."""

    def forward(self, features: Tensor) -> Tensor:
        with torch.no_grad():
            pooled, indices = adaptive_max_pool2d(features, self.output_size, return_indices=True)
        return features.flatten(2).gather(2, indices.flatten(2)).view_as(pooled)


class Discriminator(nn.Sequential):
    """Is a feature map `[B, 256, h, w]` the student's or the teacher's? -> logits `[B, 1]`.

    Positive logits mean the teacher. The published network ends in a fully connected layer of a
    fixed map, so it takes one input size only. Here the last 2x2 max pool is an adaptive one to
    that map: the same function at 500x833 input, and defined at any size.
    """

    def __init__(self, early_pool: bool, map_size: tuple[int, int]) -> None:
        super().__init__(
            nn.Conv2d(FEATURE_CHANNELS, 128, kernel_size=1),
            nn.ReLU(),
            # ceil_mode keeps a map of 1 px alive; on the even maps of the published size it changes
            # nothing.
            nn.MaxPool2d(2, ceil_mode=True) if early_pool else nn.Identity(),
            nn.Conv2d(128, 1, kernel_size=1),
            nn.ReLU(),
            DeterministicAdaptiveMaxPool(map_size),
            nn.Flatten(),
            nn.Linear(map_size[0] * map_size[1], 108),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(108, 1),
        )


def build_discriminators() -> nn.ModuleDict:
    """One discriminator per level, published sizes: a 32x54 map for P2, 16x27 for P3, P4, P5."""
    return nn.ModuleDict(
        {
            "0": Discriminator(early_pool=True, map_size=(32, 54)),
            "1": Discriminator(early_pool=True, map_size=(16, 27)),
            "2": Discriminator(early_pool=False, map_size=(16, 27)),
            "3": Discriminator(early_pool=False, map_size=(16, 27)),
        }
    )

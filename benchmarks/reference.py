"""The published way, written plainly: what ours is compared with, in speed and in numbers.

torchvision's Faster R-CNN as it comes, in float32 and its usual memory layout; every file decoded
in each step; float frames sent to the device; a teacher that runs its whole detector; every loss
read in each step. The distillation losses are the train scripts' own: what is compared is how they
are computed.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from models import GATED_MEAN, GATED_STD, LEVELS, RGB_MEAN, RGB_STD

NORMS = {"frozen": lambda channels: FrozenBatchNorm2d(channels, eps=0.0), "batch": nn.BatchNorm2d}


class PlainDetector(FasterRCNN):
    """torchvision's detector, which keeps the features of its last forward pass as `pyramid`.

    Its state_dict has the names and shapes of `models.Detector`'s. It does not build on that class,
    so that a fault there cannot be on both sides of a comparison.
    """

    def __init__(
        self,
        channels: int,
        backbone: str = "resnet50",
        norm: str = "frozen",
        min_size: int = 500,
        max_size: int = 1333,
        rois: int = 512,
        proposals: int = 1000,
        num_classes: int = 2,
    ) -> None:
        extractor = resnet_fpn_backbone(
            backbone_name=backbone, weights=None, norm_layer=NORMS[norm], trainable_layers=5
        )
        extractor.body.conv1 = nn.Conv2d(
            channels, 64, kernel_size=7, stride=2, padding=3, bias=False
        )
        gated = channels - 3
        super().__init__(
            extractor,
            num_classes,
            min_size=min_size,
            max_size=max_size,
            image_mean=RGB_MEAN + gated * [GATED_MEAN],
            image_std=RGB_STD + gated * [GATED_STD],
            box_batch_size_per_image=rois,
            rpn_post_nms_top_n_test=proposals,
        )
        self.backbone.register_forward_hook(self._remember)

    def _remember(self, _: nn.Module, __: tuple, features: dict[str, Tensor]) -> None:
        self.pyramid = {level: features[level] for level in LEVELS}


class PlainTraining:
    """A network that is trained as published.

    `distil(student_features, teacher_features)` is a student's imitation loss, logged as `name`;
    `also_trained` is trained along (discriminators).
    """

    def __init__(
        self,
        detector: PlainDetector,
        lr: float,
        teacher: PlainDetector | None = None,
        name: str = "",
        distil: Callable[..., Tensor] | None = None,
        also_trained: nn.Module | None = None,
    ) -> None:
        self.detector, self.teacher = detector.train(), teacher
        self.name, self.distil = name, distil
        self.parameters = [*detector.parameters()]
        self.parameters += also_trained.parameters() if also_trained else []
        self.optimizer = SGD(self.parameters, lr, momentum=0.9, weight_decay=0.0005)

    def step(self, images: list[Tensor], targets: list[dict]) -> dict[str, float]:
        """One step on uint8 frames `[C, H, W]`; the losses by name."""
        device = self.parameters[0].device
        images = [(image.float() / 255).to(device) for image in images]
        targets = [
            {name: target[name].to(device) for name in ("boxes", "labels")} for target in targets
        ]
        channels = self.detector.backbone.body.conv1.in_channels
        losses = self.detector([image[:channels] for image in images], targets)
        if self.teacher:
            with torch.no_grad():
                self.teacher.eval()(images)
            losses[self.name] = self.distil(self.detector.pyramid, self.teacher.pyramid)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.optimizer.step()
        return {name: value.item() for name, value in losses.items()}

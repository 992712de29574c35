"""A detector as a graph that ONNX and torch.export can hold: one picture of a fixed size in, its detections out.

A graph has no branches on what a picture holds. torchvision's detector takes such branches where boxes are dropped, in
two methods. Here these keep every box, as many as there can be at most, and give the dropped ones a score below all
others. What is found is the same.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import clip_boxes_to_image, nms

from models import Detector

DROPPED = -1.0  # as a score; others are 0..1
SMALLEST = 1e-2  # px: sides of detections, as in RoIHeads.postprocess_detections
OUTSIDE = [[-9.0, -9.0, -8.0, -8.0]]  # a box that touches none in a picture


class FixedProposals(RegionProposalNetwork):
    """torchvision's in evaluation on one picture, with the same number of proposals for any. Those that are dropped
    have no area, and neither has what the box head makes of them, which is therefore dropped too."""

    def filter_proposals(self, proposals: Tensor, objectness: Tensor, image_shapes: list[tuple[int, int]],
                         num_anchors_per_level: list[int]) -> tuple[list[Tensor], list[Tensor]]:
        boxes, scores = [], []
        for decoded, logits in zip(proposals[0].split(num_anchors_per_level),
                                   objectness.flatten().split(num_anchors_per_level), strict=True):
            best, places = logits.topk(min(self.pre_nms_top_n(), len(logits)))
            boxes.append(clip_boxes_to_image(decoded[places], image_shapes[0]))
            scores.append(drop(boxes[-1], best.sigmoid(), self.min_size, self.nms_thresh))
        boxes, scores = torch.cat(boxes), torch.cat(scores)
        scores, places = scores.topk(min(self.post_nms_top_n(), len(scores)))
        return [boxes[places] * (scores > DROPPED)[:, None]], [scores]


class FixedDetections(RoIHeads):
    """torchvision's in evaluation on one picture, whose detections are counted in the last step only."""

    def postprocess_detections(self, class_logits: Tensor, box_regression: Tensor, proposals: list[Tensor],
                               image_shapes: list[tuple[int, int]]
                               ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        boxes = self.box_coder.decode(box_regression, proposals)[:, 1:]  # without background: [proposals, classes, 4]
        boxes = clip_boxes_to_image(boxes, image_shapes[0])
        scores = class_logits.softmax(dim=1)[:, 1:]
        scores = torch.stack([drop(of_class, score, SMALLEST, self.nms_thresh)
                              for of_class, score in zip(boxes.unbind(1), scores.unbind(1), strict=True)], dim=1)
        best, places = scores.flatten().topk(min(self.detections_per_img, scores.numel()))
        found = torch.where(best > self.score_thresh)[0]
        places = places[found]
        return [boxes.flatten(0, 1)[places]], [best[found]], [places % scores.shape[1] + 1]


class Deployable(nn.Module):
    """A copy of a detector for pictures of one size, in float32 on the CPU.

    Picture `[H, W, 3]`, uint8, RGB 0..255, as decoders give it -> boxes `[N, 4]`, float32, x0 y0 x1 y1 in its pixels;
    scores `[N]`, float32, falling; labels `[N]`, int64, from 1.
    """

    def __init__(self, detector: Detector, height: int, width: int) -> None:
        super().__init__()
        self.detector = deepcopy(detector).cpu().eval().requires_grad_(False)
        self.detector.rpn.__class__, self.detector.roi_heads.__class__ = FixedProposals, FixedDetections
        # It would assign its anchors again, which a graph can't; they are on the CPU and in float32.
        self.detector.rpn.anchor_generator.set_cell_anchors = lambda *_: None
        self.example = torch.zeros(height, width, 3, dtype=torch.uint8)
        self(self.example)  # RoIAlign takes its scales from the first picture, by steps that no graph can hold

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        [detections] = self.detector([picture.permute(2, 0, 1)])
        return detections["boxes"], detections["scores"], detections["labels"]

    def program(self) -> torch.export.ExportedProgram:
        """The graph, by torch.export."""
        return torch.export.export(self, (self.example,), strict=False)


def drop(boxes: Tensor, scores: Tensor, smallest: float, iou: float) -> Tensor:
    """Scores `[N]` of boxes `[N, 4]`, `DROPPED` for boxes with a side under `smallest` px and for those that overlap
    one of a better score by more than `iou`."""
    large = (boxes[:, 2:] - boxes[:, :2] >= smallest).all(dim=1)
    scores = torch.where(large, scores, DROPPED)
    # torchvision tells torch.export (in its `meta_nms`) that nms keeps two boxes or more, which a program then checks.
    scores = torch.cat([scores, scores.new_tensor([DROPPED])])
    kept = nms(torch.cat([boxes, boxes.new_tensor(OUTSIDE)]), scores, iou)
    left = torch.full_like(scores, DROPPED)
    left[kept] = scores[kept]
    return left[:-1]

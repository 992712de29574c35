"""What a detector finds on frames and on their mirror images, and both as one."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.ops import batched_nms, box_iou
from tqdm import tqdm

from cmkd.evaluation.predict import to_device
from cmkd.runtime.failures import fetch
from dataset import mirror_boxes

SAME_OBJECT = 0.55  # boxes of one class with more overlap (IoU) are of one object

Detection = dict[str, Tensor]  # torchvision's: boxes [N, 4] in px, labels [N], scores [N]


@torch.inference_mode()
def detect(
    model: nn.Module, loader: DataLoader, amp: bool, mirrored: bool
) -> Iterator[tuple[list[dict[str, Any]], list[tuple[int, int]], list[list[Detection]]]]:
    """The targets, sizes (width, height) and detections of every batch of a loader.

    Detections are a list for each view: the frames, and with `mirrored` their mirror images, whose
    boxes are those of the frame.
    """
    device = next(model.parameters()).device
    model.eval()
    bar = tqdm(
        desc=loader.dataset.list_file.stem,
        total=len(loader.sampler),
        unit="img",
        leave=False,
        dynamic_ncols=True,
        disable=None,
    )
    with bar:
        for images, targets in fetch(loader):
            images, _ = to_device((images, []), device)
            sizes = [(image.shape[-1], image.shape[-2]) for image in images]
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                views = [model(images)]
                if mirrored:
                    views.append(model([image.flip(-1) for image in images]))
            for in_mirror in views[1:]:
                for detection, (width, _) in zip(in_mirror, sizes, strict=True):
                    detection["boxes"] = mirror_boxes(detection["boxes"], width)
            yield targets, sizes, views
            bar.update(len(images))


def fuse(view: Detection, other: Detection) -> Detection:
    """Two views' detections of one frame as one, the best first.

    Boxes of a class that overlap (IoU above SAME_OBJECT) with a better one are of its object. The
    box of an object is the mean of its boxes, weighted by their scores. Its score is the mean of
    the best scores that the two views give it; a view without a box of it gives 0.
    """
    boxes = torch.cat([view["boxes"], other["boxes"]]).float()
    labels = torch.cat([view["labels"], other["labels"]])
    scores = torch.cat([view["scores"], other["scores"]]).float()
    if not len(boxes):
        return view
    best = batched_nms(boxes, scores, labels, SAME_OBJECT)
    overlap = box_iou(boxes, boxes[best])
    overlap[labels[:, None] != labels[best]] = -1
    object_of = overlap.argmax(dim=1)
    objects = len(best)
    weights = scores.new_zeros(objects).index_add(0, object_of, scores)
    sums = boxes.new_zeros(objects, 4).index_add(0, object_of, boxes * scores[:, None])
    view_of = (torch.arange(len(boxes), device=boxes.device) >= len(view["boxes"])).long()
    by_view = scores.new_zeros(2 * objects)
    by_view = by_view.scatter_reduce(0, view_of * objects + object_of, scores, "amax")
    fused = by_view.view(2, objects).mean(dim=0)
    order = fused.argsort(descending=True, stable=True)
    return {
        "boxes": (sums / weights[:, None])[order],
        "labels": labels[best][order],
        "scores": fused[order],
    }

"""A list of frames through a detector -> COCO results."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from cmkd.runtime import distributed
from cmkd.runtime.failures import StopRequest, fetch
from dataset import Batch

MOVED = ("boxes", "labels")  # of a target; nothing else is used on the device


@torch.inference_mode()
def predict(
    model: nn.Module, loader: DataLoader, amp: bool = False, stop: StopRequest | None = None
) -> list[dict[str, Any]]:
    """Detections of every frame of the loader's list as COCO results, in the order of the list.

    Boxes are x, y, width, height in pixels of the stored images. Several processes share the work,
    and each gets all results. A `stop` request ends the program between batches.
    """
    device = next(model.parameters()).device
    model.eval()
    results = []
    bar = progress_bar(loader.dataset.list_file.stem, loader)
    # Autocast casts weights once, and keeps them until its context ends.
    with torch.autocast(device.type, torch.bfloat16, enabled=amp):
        for images, targets in fetch(loader):
            images, _ = to_device((images, []), device)
            results += to_coco_results(model(images), targets)
            bar.update(len(images) * distributed.world_size())
            # With several processes the others would wait for this one: they stop after the next
            # step.
            if stop and stop.signal and distributed.world_size() == 1:
                bar.close()
                stop.end_program("while validating")
    bar.close()
    everywhere = [result for part in distributed.gather(results) for result in part]
    return sorted(everywhere, key=lambda result: result["image_id"])


def to_coco_results(
    detections: list[dict[str, Tensor]], targets: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """torchvision's detections (boxes x0, y0, x1, y1; labels; scores) -> COCO results."""
    results = []
    for detection, target in zip(detections, targets, strict=True):
        boxes = detection["boxes"].float()
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()
        labels, scores = detection["labels"].tolist(), detection["scores"].tolist()
        results += [
            {
                "image_id": int(target["image_id"]),
                "category_id": label,
                "bbox": box,
                "score": score,
                "file_name": target["name"],
            }
            for box, label, score in zip(boxes, labels, scores, strict=True)
        ]
    return results


def progress_bar(
    title: str, loader: DataLoader, frames_done: int = 0, frames: int | None = None
) -> tqdm:
    """A bar over frames in img/s, in the first process, if the output is a terminal.

    `frames` is their number if it is not the dataset's.
    """
    return tqdm(
        desc=title,
        initial=frames_done,
        total=frames or len(loader.dataset),
        unit="img",
        leave=False,
        dynamic_ncols=True,
        disable=True if distributed.rank() else None,
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move images, boxes and labels to a device; the rest of a target stays on the host."""
    images, targets = batch
    return [image.to(device, non_blocking=True) for image in images], [
        {**target, **{name: target[name].to(device, non_blocking=True) for name in MOVED}}
        for target in targets
    ]

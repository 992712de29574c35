"""The prepared layout -> samples: which frames, which classes, which boxes."""

import atexit
import contextlib
import math
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from check_data import check
from cmkd.frames.cache import FrameCache, training_size
from cmkd.frames.layout import (
    LABEL_HEIGHT,
    LABEL_WIDTH,
    PICTURES,
    Label,
    find_picture,
    image_size,
    parse_list,
    read_labels,
    read_list,
    read_rgb,
    read_slice,
)
from cmkd.runtime import distributed
from cmkd.runtime.failures import begin_loader_process, end_loader_processes, run
from utils import DEFAULT_CLASSES, OneLineParser, UserError, at_least, save_json

FOLDERS = {"rgb": PICTURES[:1], "rgb+gated": PICTURES}
MODALITY = {3: "rgb", 6: "rgb+gated"}

OFFICIAL_CLASSES = frozenset({
    "PassengerCar", "LargeVehicle", "RidableVehicle", "Vehicle", "Pedestrian", "PassengerCar_is_group",
    "LargeVehicle_is_group", "RidableVehicle_is_group", "Vehicle_is_group", "Pedestrian_is_group", "Obstacle",
    "DontCare", "train", "person",
})
# What others leave out of training and evaluation: regions that nobody labelled one by one.
USUALLY_IGNORED = ("DontCare", "Obstacle", "*_is_group")
CLASS_SETS = {"vru": "Pedestrian,Pedestrian_is_group,RidableVehicle,RidableVehicle_is_group"}


class SeeingThroughFog(Dataset):
    """Frames of one list of a prepared folder, with their boxes.

    A sample is `(image, target)`: `image` is uint8 `[3 or 6, H, W]`, 0..255, channels R, G, B (, gated0, gated1,
    gated2). `target` has `boxes` float32 `[N, 4]` (x0, y0, x1, y1 in pixels of the stored image), `labels` int64 `[N]`
    from 1, `area` float32 `[N]` in square pixels, `iscrowd` int64 `[N]`, `image_id` int64 (the position in the list)
    and `name`. N may be 0. Ignore regions come last, with label 0 and `iscrowd` 1.

    `classes`: each entry is one label of the detector and names the label classes it is made of, with commas.
    `ignore`: see `ignored_patterns`. All labels are read here, so a bad one stops before training starts.
    Raises `UserError`.
    """

    def __init__(self, root: str | Path, list_name: str, modality: str = "rgb+gated",
                 classes: list[str] | tuple[str, ...] = DEFAULT_CLASSES, ignore: list[str] | None = None,
                 flip: bool = False) -> None:
        self.root = Path(root)
        self.list_file = self.root / f"{list_name}.txt"
        self.folders = FOLDERS[modality]
        self.ignored = ignored_patterns(ignore)
        self.classes = class_groups(classes)
        self.flip = flip
        self.flip_seed = torch.zeros(1, dtype=torch.int64).share_memory_()  # loader processes outlive an epoch
        self.skip_bad = False
        self.cache: FrameCache | None = None
        # Of each loader process: its number, the frame it is on, the number of the error that ended it.
        self.reading = torch.zeros(0, 3, dtype=torch.int64)
        self.label_of = {name: label for label, group in enumerate(self.classes, start=1) for name in group
                         if not self._is_ignored(name)}
        self.names = read_list(self.list_file)
        self.files = [[self._find(folder, index) for folder in self.folders] for index in range(len(self))]
        self.present: set[str] = set()
        self.objects = [self._read_objects(index) for index in range(len(self))]
        self._refuse_unknown_classes()
        self._refuse_ignored_entries()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def has_boxes(self) -> bool:
        """Whether there is anything to find: a box inside the picture, and no ignore region."""
        return any(self._scaled_objects(index, LABEL_WIDTH, LABEL_HEIGHT)[1].any() for index in range(len(self)))

    @property
    def num_classes(self) -> int:
        """Labels of the detector, background (0) included."""
        return len(self.classes) + 1

    def seed_flips(self, seed: int) -> None:
        """Choose the frames that are flipped in this epoch: a function of the seed, whatever loads the frames."""
        self.flip_seed.fill_(seed)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """A sample. With `skip_bad`, the next frame that can be read stands in for one that cannot, and the target
        has the reasons by name as `unreadable`."""
        index = range(len(self))[index]  # its IndexError ends a loop over the dataset
        if worker := get_worker_info():
            self.reading[worker.id, :2] = torch.tensor([os.getpid(), index])
        unreadable = {}
        for other in (*range(index, len(self)), *range(index)):
            try:
                image, target = self._read(other)
            except UserError as error:
                if not self.skip_bad:
                    raise
                unreadable[self.names[other]] = str(error)
            else:
                return image, ({**target, "unreadable": unreadable} if unreadable else target)
        raise UserError(f"{self.list_file}: no frame can be read; {unreadable[self.names[index]]}")

    def decode_once(self, kind: str, min_size: int, max_size: int) -> None:
        """Keep frames at training size from their first use on: `ram`, `disk`, or `none`. Samples are then of that
        size, rounded to whole grey levels. Raises `UserError` where frames differ in size or there is no room."""
        if kind == "none":
            return
        sizes = {image_size(files[0]) for files in self.files}
        if len(sizes) > 1:
            raise UserError(f"--cache {kind} needs frames of one size, and {self.list_file} has {len(sizes)}: leave it "
                            "out, or prepare them at one size")
        [(width, height)] = sizes
        self.cache = FrameCache(kind, self.root / ".cache", self.files,
                                training_size(height, width, min_size, max_size))
        atexit.register(self.cache.remove)
        print(f"--cache {kind}: {len(self)} frames in {self.cache.bytes / 1e9:.2f} GB, {self.cache.file}")

    def _read(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        image = self.cache.load(index) if self.cache else None
        if image is None:
            image = self._decode(index)
            if self.cache:
                image = self.cache.store(index, image)
        height, width = image.shape[-2:]
        boxes, labels, _ = self._scaled_objects(index, width, height)
        if self.flip and np.random.default_rng([int(self.flip_seed), index]).random() < 0.5:
            image, boxes = flip_horizontally(image, boxes)
        return image, {
            "boxes": boxes,
            "labels": labels,
            "area": (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
            "iscrowd": (labels == 0).long(),
            "image_id": torch.tensor(index),
            "name": self.names[index],
        }

    def _decode(self, index: int) -> Tensor:
        rgb_file, *slice_files = self.files[index]
        image = read_rgb(rgb_file)
        height, width = image.shape[-2:]
        slices = [read_slice(file) for file in slice_files]
        for file, one in zip(slice_files, slices, strict=True):
            if one.shape[-2:] != (height, width):
                raise UserError(f"{file} is {one.shape[-1]}x{one.shape[-2]} but {rgb_file} is {width}x{height}: the "
                                "images of a frame must have one size and one view; prepare this frame again")
        return torch.cat([image, *slices])

    def ground_truth(self) -> dict[str, list]:
        """All frames and boxes as a COCO dictionary (boxes x, y, width, height), from labels and image headers.

        An ignore region is a crowd of every category: a detection on it counts neither as right nor as wrong. Who is
        visible in which camera stands as `visible_rgb` and `visible_gated`, and how far away as `distance` in m; None
        where the labels don't say.
        """
        images, annotations = [], []
        for index, name in enumerate(self.names):
            width, height = image_size(self.files[index][0])
            images.append({"id": index, "file_name": name, "width": width, "height": height})
            boxes, labels, lines = self._scaled_objects(index, width, height)
            for (x0, y0, x1, y1), label, line in zip(boxes.tolist(), labels.tolist(), lines, strict=True):
                for category in [label] if label else range(1, self.num_classes):
                    annotations.append({"id": len(annotations) + 1, "image_id": index, "category_id": category,
                                        "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0),
                                        "iscrowd": int(label == 0), "visible_rgb": line.visible_rgb,
                                        "visible_gated": line.visible_gated, "distance": line.distance})
        categories = [{"id": label, "name": "+".join(group)} for label, group in enumerate(self.classes, start=1)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _find(self, folder: str, index: int) -> Path:
        if file := find_picture(self.root, folder, self.names[index]):
            return file
        raise UserError(f"{self._line(index)}: {self.root / folder / self.names[index]}.png (or .jpg) is missing: add "
                        "it, or take the frame off the list")

    def _line(self, index: int) -> str:
        return f"{self.list_file}:{parse_list(self.list_file)[0][self.names[index]]}"

    def _read_objects(self, index: int) -> list[tuple[int, Label]]:
        """The lines of the classes that are trained with their label, then the ignore regions, with label 0."""
        file = self.root / "gated_labels" / f"{self.names[index]}.txt"
        if not file.is_file():
            raise UserError(f"{self._line(index)}: {file} is missing: add it (an empty file says that nothing is "
                            "there), or take the frame off the list")
        labels = read_labels(file)
        self.present.update(label.name for label in labels)
        return ([(self.label_of[label.name], label) for label in labels if label.name in self.label_of]
                + [(0, label) for label in labels if self._is_ignored(label.name)])

    def _is_ignored(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.ignored)

    def _scaled_objects(self, index: int, width: int, height: int) -> tuple[Tensor, Tensor, list[Label]]:
        """Boxes `[N, 4]` in pixels of a width x height image, clipped to it, without empty ones; labels `[N]`; and
        their lines."""
        boxes = torch.tensor([line.box for _, line in self.objects[index]], dtype=torch.float64).reshape(-1, 4)
        labels = torch.tensor([label for label, _ in self.objects[index]], dtype=torch.int64)
        limits = torch.tensor([width, height, width, height], dtype=torch.float64)
        boxes = boxes * limits / torch.tensor([LABEL_WIDTH, LABEL_HEIGHT, LABEL_WIDTH, LABEL_HEIGHT])
        boxes = boxes.clamp(min=0).minimum(limits).float()
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        lines = [line for (_, line), kept in zip(self.objects[index], has_area.tolist(), strict=True) if kept]
        return boxes[has_area], labels[has_area], lines

    def _refuse_unknown_classes(self) -> None:
        """A class that is neither official nor in any label file of the folder is most likely a typing error."""
        own = {name for group in self.classes for name in group} - OFFICIAL_CLASSES
        own |= set(self.ignored) - OFFICIAL_CLASSES - set(USUALLY_IGNORED)
        if own <= self.present:
            return
        present = set(self.present)
        for file in sorted((self.root / "gated_labels").glob("*.txt")):
            with contextlib.suppress(UserError):  # a bad label of a frame that is not on the list does no harm here
                present.update(label.name for label in read_labels(file))
        if unknown := sorted(own - present):
            raise UserError(f"--{'ignore' if unknown[0] in self.ignored else 'classes'}: no label in "
                            f"{self.root / 'gated_labels'} is {unknown[0]!r}; they have: "
                            f"{', '.join(sorted(present)) or 'nothing'}")

    def _refuse_ignored_entries(self) -> None:
        for group in self.classes:
            if all(self._is_ignored(name) for name in group):
                raise UserError(f"--ignore leaves nothing of --classes {','.join(group)}: take it off one of them")


def class_groups(classes: list[str] | tuple[str, ...]) -> list[list[str]]:
    """The label classes that each entry of `--classes` is made of. Raises `UserError` for a name that is empty or that
    stands twice, as a class can have one label only."""
    groups = [[name for part in group.split(",") for name in CLASS_SETS.get(part, part).split(",")]
              for group in classes]
    names = [name for group in groups for name in group]
    for name in names:
        if not name.strip():
            raise UserError(f"--classes {' '.join(classes)}: a name is empty: write names with single commas, as A,B")
        if names.count(name) > 1:
            raise UserError(f"--classes {' '.join(classes)}: {name} stands twice, in words or in vru: name it once")
    return groups


def ignored_patterns(ignore: list[str] | None) -> tuple[str, ...]:
    """The label classes that `--ignore` names, as patterns: none where it is not given (None) or says `none`, the
    usual ones (DontCare, Obstacle, every group) where it names nothing. An ignored class is not trained, whatever
    `--classes` says; its boxes are no background in training and absorb detections in evaluation."""
    if ignore is None or ignore == ["none"]:
        return ()
    return tuple(ignore) or USUALLY_IGNORED


def flip_horizontally(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror an image `[C, H, W]` and its boxes `[N, 4]` in pixels."""
    width = image.shape[-1]
    return image.flip(-1), torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)


def collate(samples: list[tuple[Tensor, dict]]) -> tuple[list[Tensor], list[dict]]:
    """Samples -> (images, targets); images stay a list, as torchvision's detectors take frames of any size."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


class TrainingBatches(Sampler[list[int]]):
    """This process's part of every batch of an epoch, whose order follows from a seed.

    Of several processes each takes `batch_size` frames of a batch, and as many as the others of the last one, for
    which frames are taken twice where it can't be divided.
    """

    def __init__(self, frames: int, batch_size: int) -> None:
        self.frames, self.batch_size = frames, batch_size * distributed.world_size()
        self.begin(seed=0)

    def begin(self, seed: int, frames_done: int = 0) -> None:
        """Choose the order of the next epoch, and start after the whole batches in its first `frames_done` frames."""
        self.order = torch.randperm(self.frames, generator=torch.Generator().manual_seed(seed)).tolist()
        self.first = frames_done // self.batch_size if frames_done < self.frames else len(self)

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return math.ceil(self.frames / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first, len(self)):
            batch = self.order[step * self.batch_size : (step + 1) * self.batch_size]
            share = math.ceil(len(batch) / distributed.world_size())
            batch += [self.order[index % self.frames] for index in range(share * distributed.world_size() - len(batch))]
            yield batch[distributed.rank() * share : (distributed.rank() + 1) * share]


def make_loader(dataset: SeeingThroughFog, batch_size: int, workers: int, shuffle: bool = False) -> DataLoader:
    """A loader of (images, targets), of several processes each its part: for training (`shuffle`) in batches of
    `TrainingBatches`, else in order, each frame once."""
    dataset.reading = torch.zeros(workers, 3, dtype=torch.int64).share_memory_()
    batches = ({"batch_sampler": TrainingBatches(len(dataset), batch_size)} if shuffle else
               {"batch_size": batch_size,
                "sampler": range(distributed.rank(), len(dataset), distributed.world_size())})
    if workers:  # they outlive an epoch, and Python would wait for their end: atexit's, but also in its child processes
        Finalize(None, end_loader_processes, exitpriority=1)
    # The generator is for the seeds that workers get: drawn from torch's own, they would shift all that follows.
    return DataLoader(dataset, **batches, num_workers=workers, collate_fn=collate, worker_init_fn=begin_loader_process,
                      pin_memory=torch.cuda.is_available(), persistent_workers=workers > 0,
                      generator=torch.Generator())


def main() -> None:
    parser = OneLineParser(description="Check a prepared folder: every file of every list is read, every problem named "
                                       "with file and line, and what is there is counted. Exit code 2 where training "
                                       "would not run, else 0. Or write a list's ground truth as COCO JSON.")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--check", type=Path, metavar="DATA", help="prepared data folder")
    task.add_argument("--export-coco", type=Path, metavar="FILE", help="write the frames and boxes of --list")
    parser.add_argument("--sheet", type=Path, metavar="FILE",
                        help="with --check: also write a PNG of some frames with their boxes")
    parser.add_argument("--workers", type=at_least(1), default=os.cpu_count(), help="processes (default: all cores)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="with --export-coco (default: data)")
    parser.add_argument("--list", default="val_night", help="with --export-coco (default: val_night)")
    parser.add_argument("--classes", nargs="+", default=list(DEFAULT_CLASSES), metavar="A,B", help="as in training")
    parser.add_argument("--ignore", nargs="*", metavar="CLASS", help="as in training")
    args = parser.parse_args()
    if args.check:
        check(args.check, args.workers, args.sheet)
        return
    content = SeeingThroughFog(args.data, args.list, "rgb", args.classes, args.ignore).ground_truth()
    save_json(content, args.export_coco)
    print(f"{args.export_coco}: {len(content['images'])} images, {len(content['annotations'])} boxes, categories "
          f"{', '.join(category['name'] for category in content['categories'])}")


if __name__ == "__main__":
    run(main)

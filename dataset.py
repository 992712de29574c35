"""A prepared data folder -> samples: which frames, which classes, which boxes."""

import argparse
import bisect
import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info
from tqdm import tqdm

from cmkd.frames.annotations import (
    DEFAULT_CLASSES,
    DOUBTFUL,
    LABEL_HEIGHT,
    LABEL_WIDTH,
    OFFICIAL_CLASSES,
    USUALLY_IGNORED,
    class_groups,
    ignored_patterns,
    is_ignored,
    read_labels,
    without_copies,
)
from cmkd.frames.cache import FrameCache, training_size
from cmkd.frames.compact import Names, Ragged, pack, seen, sureness
from cmkd.frames.images import image_size, read_rgb, read_slice
from cmkd.frames.layout import (
    GATED_FOLDERS,
    IMAGE_SUFFIXES,
    LABEL_FOLDER,
    RGB_FOLDER,
    find_suffix,
    label_file,
    list_file,
    missing_image_message,
    missing_labels_message,
    missing_machine_labels_message,
    on_disk,
    other_size_message,
    parse_list,
    read_list,
    refuse_forbidden,
    refuse_held_out_frames,
)
from cmkd.frames.machine_labels import refuse_unfit_labels
from cmkd.runtime import distributed
from cmkd.runtime.failures import at_end, prepare_for_workers, share, start_worker, warn
from cmkd.runtime.files import UserError
from utils import refuse_unlabelled_misuse

FOLDERS_OF = {
    "rgb": (RGB_FOLDER,),
    "rgb+gated": (RGB_FOLDER, *GATED_FOLDERS),
    "gated": GATED_FOLDERS,
}

Batch = tuple[list[Tensor], list[dict[str, Any]]]  # images and targets of `SeeingThroughFog`


class SeeingThroughFog(Dataset):
    """Frames of one list of a prepared folder, with their boxes.

    A sample is `(image, target)`. `image` is uint8 `[3 or 6, H, W]`, 0..255, with the channels R,
    G, B (, gated0, gated1, gated2). `target` has `boxes` float32 `[N, 4]` (x0, y0, x1, y1 in pixels
    of the stored image), `labels` int64 `[N]` from 1, `area` float32 `[N]` in square pixels,
    `iscrowd` int64 `[N]`, `image_id` int64 (the index in the list), `name`, and `labelled_by`:
    `human`, `machine` or `nobody`. N may be 0. Ignore regions come last, with label 0 and `iscrowd`
    1.

    `classes`: each entry is one label of the detector and names the label classes it is made of,
    separated by commas. `ignore`: see `annotations.ignored_patterns`. `labels` is the folder of the
    label files; in a folder of machine labels, DontCare is always ignored. None: frames without
    labels, whose samples have no boxes. All labels are read here, so an error in one stops before
    training starts. Raises `UserError`.
    """

    def __init__(
        self,
        root: str | Path,
        list_name: str,
        modality: str = "rgb+gated",
        classes: list[str] | tuple[str, ...] = DEFAULT_CLASSES,
        ignore: list[str] | None = None,
        flip: bool = False,
        labels: str | None = LABEL_FOLDER,
        keep_copies: bool = False,
    ) -> None:
        self.root = Path(root)
        self.list_file = list_file(self.root, list_name)
        self.folders = FOLDERS_OF[modality]
        refuse_forbidden(self.root, *self.folders, *([labels] if labels else []))
        self.label_folder = labels
        self.ignored = ignored_patterns(ignore)
        if labels != LABEL_FOLDER:
            self.ignored = tuple(dict.fromkeys((*self.ignored, DOUBTFUL)))
        self.classes = class_groups(classes)
        self.flip = flip
        # Shared, because loader workers outlive an epoch.
        self.flip_seed = torch.zeros(1, dtype=torch.int64).share_memory_()
        self.cache: FrameCache | None = None
        self.reading = torch.zeros(0, 2, dtype=torch.int64)  # a row per worker: pid, frame index
        self.label_of = {
            name: label
            for label, group in enumerate(self.classes, start=1)
            for name in group
            if not is_ignored(name, self.ignored)
        }
        self.names = Names(read_list(self.list_file))
        with self._progress("finding images") as indices:
            self.suffixes = np.array([self._find_images(index) for index in indices], np.uint8)
        self.present_classes: set[str] = set()
        self.keep_copies, self.copies = keep_copies, 0
        if labels is None:
            self.objects = Ragged(pack([]) for _ in self.names)
        else:
            with self._progress("reading labels") as indices:
                self.objects = Ragged(self._read_objects(index) for index in indices)
        if self.copies:
            print(f"{self.list_file}: {self.copies} label lines that occur twice are left out")
        if labels == LABEL_FOLDER:
            self._refuse_unknown_classes()
        self._refuse_ignored_entries()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def classes_without_boxes(self) -> list[str]:
        """The entries of `classes` that no frame has a box of."""
        found = set(scale_boxes(self.objects.values, LABEL_WIDTH, LABEL_HEIGHT)[1].tolist())
        return [
            ",".join(group) for label, group in enumerate(self.classes, 1) if label not in found
        ]

    @property
    def has_boxes(self) -> bool:
        """Whether any frame has a box to find, not counting ignore regions."""
        return len(self.classes_without_boxes) < len(self.classes)

    @property
    def labelled_by(self) -> str:
        """Whose labels the samples have."""
        return {None: "nobody", LABEL_FOLDER: "human"}.get(self.label_folder, "machine")

    @property
    def num_classes(self) -> int:
        """Labels of the detector, background (0) included."""
        return len(self.classes) + 1

    @property
    def fingerprint(self) -> str:
        """A hash of the frames' names, their boxes and labels: what an AP is measured against."""
        # The JSON of one long list, made in parts: all of it takes more memory than the dataset.
        head = json.dumps([self.classes, self.ignored, list(self.names)])
        digest = hashlib.sha256(f"{head[:-1]}, [".encode())
        for index, objects in enumerate(self.objects):
            boxes = zip(objects["label"].tolist(), objects["box"].tolist(), strict=True)
            digest.update(f"{', ' if index else ''}{json.dumps(list(boxes))}".encode())
        digest.update(b"]]")
        return digest.hexdigest()

    @property
    def fingerprints(self) -> dict[str, str]:
        """`fingerprint` by the names of the list and of the folder of labels."""
        return {f"{self.list_file.stem} ({self.label_folder})": self.fingerprint}

    @cached_property
    def sizes(self) -> np.ndarray:
        """(width, height) of every frame's RGB image in pixels, from its header, `[frames, 2]`."""
        with self._progress("reading sizes") as indices:
            sizes = [image_size(self.image_files(index)[0]) for index in indices]
        return np.array(sizes)

    def image_files(self, index: int) -> list[Path]:
        """The image files of a frame, RGB first."""
        name, suffixes = self.names[index], self.suffixes[index]
        return [
            Path(on_disk(f"{self.root / folder}/{name}{IMAGE_SUFFIXES[suffix]}"))
            for folder, suffix in zip(self.folders, suffixes, strict=True)
        ]

    def seed_flips(self, seed: int) -> None:
        """Choose the frames that are flipped in this epoch, whichever worker loads them."""
        self.flip_seed.fill_(seed)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """A sample. Raises `UserError` if the frame cannot be read."""
        index = range(len(self))[index]  # raises IndexError, which ends a loop over the dataset
        note_reading(self.reading, index)
        return self.sample(index)

    def sample(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """The sample of an index from 0. Raises `UserError` if the frame cannot be read."""
        image = self.cache.load(index) if self.cache else None
        if image is None:
            image = self._decode(index)
            if self.cache:
                image = self.cache.store(index, image)
        height, width = image.shape[-2:]
        boxes, labels, _ = scale_boxes(self.objects[index], width, height)
        if self.flip and np.random.default_rng([int(self.flip_seed), index]).random() < 0.5:
            image, boxes = flip_horizontally(image, boxes)
        return image, {
            "boxes": boxes,
            "labels": labels,
            "area": (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
            "iscrowd": (labels == 0).long(),
            "image_id": torch.tensor(index),
            "name": self.names[index],
            "labelled_by": self.labelled_by,
        }

    def use_cache(self, kind: str, min_size: int, max_size: int) -> None:
        """Keep frames at training size once they are read: `ram`, `disk`, or `none`.

        Samples are then of that size, rounded to whole grey levels. Raises `UserError` if the
        frames differ in size or there is no room.
        """
        if kind == "none":
            return
        sizes = np.unique(self.sizes, axis=0).tolist()
        if len(sizes) > 1:
            raise UserError(
                f"--cache {kind} needs frames of one size, and {self.list_file} has {len(sizes)}: "
                "leave it out, or prepare them at one size"
            )
        [(width, height)] = sizes
        size = training_size(height, width, min_size, max_size)
        # RGB is one file and three channels.
        channels = len(self.folders) + 2 * (RGB_FOLDER in self.folders)
        shape = (len(self), channels, *size)
        with self._progress("opening the cache") as indices:
            files = (file for index in indices for file in self.image_files(index))
            self.cache = FrameCache(kind, self.root / ".cache", files, shape)
        at_end(self.cache.remove)
        gigabytes = self.cache.bytes / 1e9
        print(f"--cache {kind}: {len(self)} frames in {gigabytes:.2f} GB, {self.cache.file}")

    def ground_truth(self, clipped: bool = True) -> dict[str, list]:
        """All frames and boxes as a COCO dictionary, from labels and image headers.

        Boxes end at the image's edge; not `clipped`, they are as labelled, which is how the
        published code evaluated.

        Boxes are x, y, width, height. An ignore region is a crowd of every category: a detection on
        it counts neither as right nor as wrong. `visible_rgb` and `visible_gated` say who is
        visible in which camera, `distance` how far away in m; None if the labels do not say.
        Machine labels have their `score`, and say whether they are `doubtful`.
        """
        images, annotations = [], []
        from_machine = self.label_folder != LABEL_FOLDER
        for index, (name, size) in enumerate(zip(self.names, self.sizes.tolist(), strict=True)):
            width, height = size
            images.append({"id": index, "file_name": name, "width": width, "height": height})
            boxes, labels, objects = scale_boxes(self.objects[index], width, height, clipped)
            for (x0, y0, x1, y1), label, one in zip(
                boxes.tolist(), labels.tolist(), objects, strict=True
            ):
                for category in [label] if label else range(1, self.num_classes):
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": index,
                            "category_id": category,
                            "bbox": [x0, y0, x1 - x0, y1 - y0],
                            "area": (x1 - x0) * (y1 - y0),
                            "iscrowd": int(label == 0),
                            **seen(one),
                            **(sureness(one) if from_machine else {}),
                        }
                    )
        categories = [
            {"id": label, "name": "+".join(group)}
            for label, group in enumerate(self.classes, start=1)
        ]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _progress(self, work: str) -> tqdm:
        """The indices of all frames, with a bar if they take more than two seconds."""
        return tqdm(
            range(len(self)),
            f"{self.list_file.stem}: {work}",
            unit="frame",
            leave=False,
            delay=2,
            disable=True if distributed.rank() else None,
        )

    def _find_images(self, index: int) -> list[int]:
        """Which of `IMAGE_SUFFIXES` each image of a frame has."""
        name, found = self.names[index], []
        for folder in self.folders:
            suffix = find_suffix(f"{self.root}/{folder}/{name}")
            if suffix is None:
                raise UserError(missing_image_message(self.root, folder, name, self._place(index)))
            found.append(IMAGE_SUFFIXES.index(suffix))
        return found

    def _place(self, index: int) -> str:
        """The list and line of a frame."""
        return f"{self.list_file}:{parse_list(self.list_file)[0][self.names[index]]}"

    def _read_objects(self, index: int) -> np.ndarray:
        """The boxes of trained classes with their label, then the ignore regions with label 0."""
        file = label_file(self.root, self.names[index], self.label_folder)
        try:
            labels = read_labels(file)
        except UserError:
            if file.is_file():
                raise
            by_hand = self.labelled_by == "human"
            message = missing_labels_message if by_hand else missing_machine_labels_message
            raise UserError(message(file, self._place(index))) from None
        if not self.keep_copies:
            different = without_copies(labels)
            self.copies += len(labels) - len(different)
            labels = different
        self.present_classes.update(label.name for label in labels)
        trained = [
            (self.label_of[label.name], label) for label in labels if label.name in self.label_of
        ]
        ignored = [(0, label) for label in labels if is_ignored(label.name, self.ignored)]
        return pack(trained + ignored)

    def _decode(self, index: int) -> Tensor:
        files = self.image_files(index)
        images = [
            read_rgb(file) if folder == RGB_FOLDER else read_slice(file)
            for folder, file in zip(self.folders, files, strict=True)
        ]
        height, width = images[0].shape[-2:]
        for file, one in zip(files, images, strict=True):
            own_height, own_width = one.shape[-2:]
            if (own_height, own_width) != (height, width):
                sizes = (own_width, own_height), (width, height)
                raise UserError(other_size_message(file, files[0], *sizes))
        return torch.cat(images)

    def _refuse_unknown_classes(self) -> None:
        """A class that is neither official nor in any label of the folder is probably a typo."""
        classes = {name for group in self.classes for name in group} - OFFICIAL_CLASSES
        ignored = set(self.ignored) - OFFICIAL_CLASSES - set(USUALLY_IGNORED)
        present = set(self.present_classes)
        if classes <= present and not unused_patterns(ignored, present):
            return
        for file in sorted((self.root / LABEL_FOLDER).glob("*.txt")):
            # An error in a frame that is not on the list does no harm here.
            with contextlib.suppress(UserError):
                present.update(label.name for label in read_labels(file))
        unknown = {"classes": classes - present, "ignore": unused_patterns(ignored, present)}
        for option, names in unknown.items():
            if names:
                raise UserError(
                    f"--{option}: no label in {self.root / LABEL_FOLDER} is {min(names)!r}; they "
                    f"have: {', '.join(sorted(present)) or 'nothing'}"
                )

    def _refuse_ignored_entries(self) -> None:
        for group in self.classes:
            if all(is_ignored(name, self.ignored) for name in group):
                raise UserError(
                    f"--ignore leaves nothing of --classes {','.join(group)}: take it off one of "
                    "them"
                )


class TrainingFrames(Dataset):
    """Labelled frames, then those of other lists: one dataset for training."""

    def __init__(self, labelled: SeeingThroughFog, others: list[SeeingThroughFog]) -> None:
        self.parts = [labelled, *others]
        self.firsts = list(accumulate(map(len, self.parts), initial=0))  # and the length
        self.list_file, self.num_classes = labelled.list_file, labelled.num_classes
        self.reading = torch.zeros(0, 2, dtype=torch.int64)  # as `SeeingThroughFog.reading`

    def __len__(self) -> int:
        return self.firsts[-1]

    @property
    def classes_without_boxes(self) -> list[str]:
        """The entries of `classes` that no frame has a box of."""
        first, *others = (part.classes_without_boxes for part in self.parts)
        return [one for one in first if all(one in other for other in others)]

    @property
    def fingerprints(self) -> dict[str, str]:
        """Those of all parts."""
        return {name: one for part in self.parts for name, one in part.fingerprints.items()}

    @property
    def names(self) -> Iterator[str]:
        """The frames' names, part by part."""
        return (name for part in self.parts for name in part.names)

    def place(self, index: int) -> tuple[SeeingThroughFog, int]:
        """The part that holds a frame, and the frame's index in it."""
        part = bisect.bisect_right(self.firsts, index) - 1
        return self.parts[part], index - self.firsts[part]

    def image_files(self, index: int) -> list[Path]:
        """The image files of a frame, RGB first."""
        part, index = self.place(index)
        return part.image_files(index)

    def seed_flips(self, seed: int) -> None:
        """Choose the frames that are flipped in this epoch, in each part on its own."""
        for number, part in enumerate(self.parts):
            part.seed_flips(seed + number)

    def use_cache(self, kind: str, min_size: int, max_size: int) -> None:
        """Keep the frames of each part at training size (`SeeingThroughFog.use_cache`)."""
        for part in self.parts:
            part.use_cache(kind, min_size, max_size)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """A sample of the part. Raises `UserError` if the frame cannot be read."""
        index = range(len(self))[index]
        note_reading(self.reading, index)
        part, index = self.place(index)
        return part.sample(index)


def note_reading(reading: Tensor, index: int) -> None:
    """Note in a loader worker's row which frame it reads: if it dies, the frame can be named."""
    if worker := get_worker_info():
        reading[worker.id] = torch.tensor([os.getpid(), index])


def scale_boxes(
    objects: np.ndarray, width: int, height: int, clipped: bool = True
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Boxes in pixels of a width x height image, labels, and the objects they are from.

    Boxes float32 `[N, 4]` are `clipped` to the image; those without area are left out. Labels are
    int64 `[N]`.
    """
    limits = torch.tensor([width, height, width, height], dtype=torch.float64)
    label_space = torch.tensor([LABEL_WIDTH, LABEL_HEIGHT, LABEL_WIDTH, LABEL_HEIGHT])
    boxes = torch.from_numpy(objects["box"]) * limits / label_space
    boxes = (boxes.clamp(min=0).minimum(limits) if clipped else boxes).float()
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    labels = torch.from_numpy(objects["label"])[has_area]
    return boxes[has_area], labels, objects[has_area.numpy()]


def unused_patterns(patterns: set[str], names: set[str]) -> set[str]:
    """The patterns that no name fits."""
    return {one for one in patterns if not any(is_ignored(name, (one,)) for name in names)}


def flip_horizontally(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror an image `[C, H, W]` and its boxes `[N, 4]` in pixels."""
    return image.flip(-1), mirror_boxes(boxes, image.shape[-1])


def mirror_boxes(boxes: Tensor, width: int) -> Tensor:
    """Boxes `[N, 4]` in pixels of an image of this width -> in its mirror image."""
    x0, y0, x1, y1 = boxes.unbind(dim=1)
    return torch.stack([width - x1, y0, width - x0, y1], dim=1)


def collate(samples: list[tuple[Tensor, dict[str, Any]]]) -> Batch:
    """Samples -> (images, targets); images stay a list, as torchvision's detectors take them."""
    images, targets = zip(*samples, strict=True)
    if get_worker_info():
        share([*images, *(value for target in targets for value in target.values())])
    return list(images), list(targets)


class TrainingBatches(Sampler[list[int]]):
    """This process's part of every batch of an epoch, in an order that follows from a seed.

    Each of several processes takes `batch_size` frames of a batch. An epoch has each frame once.
    The last batch is divided equally too; frames are taken twice if it cannot be divided.

    `RepeatingBatches` differ in the order and the length of an epoch.
    """

    def __init__(self, frames: int, batch_size: int) -> None:
        self.frames, self.batch_size = frames, batch_size * distributed.world_size()
        self.begin(seed=0)

    def begin(self, seed: int, frames_done: int = 0) -> None:
        """Choose the order of the next epoch, and skip the batches within `frames_done` frames."""
        self.order = self.choose_order(torch.Generator().manual_seed(seed))
        self.first = frames_done // self.batch_size if frames_done < self.frames else len(self)

    def choose_order(self, generator: torch.Generator) -> list[int]:
        """The indices of an epoch's frames."""
        return torch.randperm(self.frames, generator=generator).tolist()

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return math.ceil(self.frames / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        processes = distributed.world_size()
        for step in range(self.first, len(self)):
            batch = self.order[step * self.batch_size : (step + 1) * self.batch_size]
            share_of_process = math.ceil(len(batch) / processes)
            missing = share_of_process * processes - len(batch)
            batch += [self.order[index % self.frames] for index in range(missing)]
            start = distributed.rank() * share_of_process
            yield batch[start : start + share_of_process]


class RepeatingBatches(TrainingBatches):
    """Epochs of a number of steps, in batches of labelled and of other frames.

    A dataset has `labelled` frames, then `others`. Both come in random rounds: each frame once,
    then each once in another order. A batch of `batch_size` frames consists of parts that have
    `mix` frames of each kind, labelled ones first. Without `steps` an epoch has as many as
    batches of its size take for the labelled frames.
    """

    def __init__(
        self,
        labelled: int,
        others: int,
        batch_size: int,
        mix: tuple[int, int],
        steps: int | None = None,
    ) -> None:
        self.labelled, self.others = range(labelled), range(labelled, labelled + others)
        self.mix = mix
        whole_batch = batch_size * distributed.world_size()
        super().__init__((steps or math.ceil(labelled / whole_batch)) * whole_batch, batch_size)

    def choose_order(self, generator: torch.Generator) -> list[int]:
        """The indices of an epoch's frames.

        How an order begins does not depend on its length, so a run can resume with another number
        of processes.
        """
        sources = [(rounds(self.labelled, generator), self.mix[0])]
        sources.append((rounds(self.others, generator), self.mix[1]))
        order = []
        while len(order) < self.frames:
            for source, count in sources:
                order += islice(source, count)
        return order


def rounds(frames: range, generator: torch.Generator) -> Iterator[int]:
    """Frames in random order, again and again, in another order each time."""
    while True:
        for position in torch.randperm(len(frames), generator=generator).tolist():
            yield frames[position]


def training_loader(
    args: argparse.Namespace, modality: str, may_lack_labels: bool = False
) -> DataLoader:
    """The frames that a train script learns from, in training's batches.

    `may_lack_labels`: whether frames of `--unlabelled-list` need no `--machine-labels`, because the
    method learns from them without. Raises `UserError`.
    """
    refuse_unlabelled_misuse(args, may_lack_labels)
    refuse_unfit_lists(args)

    def frames_of(list_name: str, labels: str | None) -> SeeingThroughFog:
        return SeeingThroughFog(
            args.data, list_name, modality, args.classes, args.ignore, args.flip, labels
        )

    labelled = frames_of(args.train_list, LABEL_FOLDER)
    warn_of_limited_size(labelled, args.min_size, args.max_size)
    others = [frames_of(name, args.machine_labels) for name in args.unlabelled_list or ()]
    dataset = TrainingFrames(labelled, others) if others else labelled
    dataset.use_cache(args.cache, args.min_size, args.max_size)
    batch_size = args.batch_size * args.accumulate
    if not others and not args.steps_per_epoch:
        return make_loader(dataset, batch_size, args.workers, shuffle=True)
    mix = labelled_and_others(args.batch_size, args.labelled_share) if others else (batch_size, 0)
    counts = len(labelled), len(dataset) - len(labelled)
    batches = RepeatingBatches(*counts, batch_size, mix, args.steps_per_epoch)
    print(f"an epoch has {len(batches)} steps")
    if others:
        print(
            f"{sum(mix)} frames of a batch are {mix[0]} of {counts[0]} labelled ones and {mix[1]} "
            f"of {counts[1]} others"
        )
    return make_loader(dataset, batch_size, args.workers, batches=batches)


def warn_of_limited_size(frames: SeeingThroughFog, min_size: int, max_size: int) -> None:
    """Warn if `--max-size` keeps frames from becoming as large as `--min-size` says."""
    width, height = distributed.on_first(lambda: image_size(frames.image_files(0)[0]))
    if max_size / max(width, height) < min_size / min(width, height):
        used = training_size(height, width, min_size, max_size)
        warn(
            f"--min-size {min_size} has no effect: --max-size {max_size} makes frames of "
            f"{width}x{height} {used[1]}x{used[0]}; raise --max-size for more"
        )


def labelled_and_others(batch_size: int, labelled_share: float) -> tuple[int, int]:
    """How many of a batch's frames are labelled and how many are not; at least one is each."""
    labelled = min(max(math.floor(labelled_share * batch_size + 0.5), 1), batch_size - 1)
    return labelled, batch_size - labelled


def refuse_unfit_lists(args: argparse.Namespace) -> None:
    """Raise `UserError` if unlabelled lists or their labels must not be learned from."""
    if not args.unlabelled_list:
        return
    folder = args.machine_labels
    if folder is not None and (folder in ("", ".", "..", LABEL_FOLDER) or "/" in folder):
        raise UserError(
            f"--machine-labels {folder}: name a folder of machine labels inside {args.data}; "
            f"frames with labels in {LABEL_FOLDER} belong to --train-list"
        )
    refuse_held_out_frames(args.data, args.unlabelled_list, args.val_list)
    if folder is not None:
        refuse_unfit_labels(args.data / folder, args.classes)


def make_loader(
    dataset: SeeingThroughFog | TrainingFrames,
    batch_size: int,
    workers: int,
    shuffle: bool = False,
    batches: TrainingBatches | None = None,
    indices: Sequence[int] | None = None,
) -> DataLoader:
    """A loader of (images, targets); each of several processes loads its part.

    For training in `batches`, or (`shuffle`) in `TrainingBatches`; else in order, each frame once,
    and only the frames of `indices` if they are given.
    """
    dataset.reading = torch.zeros(workers, 2, dtype=torch.int64).share_memory_()
    if shuffle:
        batches = TrainingBatches(len(dataset), batch_size)
    if batches is not None:
        sampling = {"batch_sampler": batches}
    else:
        frames = range(len(dataset)) if indices is None else indices
        own = frames[distributed.rank() :: distributed.world_size()]
        sampling = {"batch_size": batch_size, "sampler": own}
    if workers:
        prepare_for_workers()
    return DataLoader(
        dataset,
        **sampling,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        # Seeds of workers come from this generator: drawn from torch's own, they would shift all
        # random numbers that follow.
        generator=torch.Generator(),
    )

"""The official Seeing Through Fog download -> the prepared layout that the train scripts read.

    python prepare_data.py --source SeeingThroughFog --splits SeeingThroughFog-repository/splits

RGB is warped into the gated camera's view, the slices become 8-bit 1280x768, labels are copied. An
interrupted call is resumed by the same command. OUT/prepare_report.json says what was found and
left out.
"""

import argparse
import contextlib
import json
import shutil
import zipfile
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from cmkd.frames import registration
from cmkd.frames.annotations import USUALLY_IGNORED, clip, has_area, is_ignored, read_labels
from cmkd.frames.layout import (
    GATED_FOLDERS,
    IMAGE_FOLDERS,
    LABEL_FOLDER,
    RGB_FOLDER,
    UNLABELLED,
    evenly_spaced,
    label_file,
    read_list,
    save_list,
)
from cmkd.frames.more_frames import (
    UnlabelledFrame,
    gated2depth_frames,
    history_frames,
    without_near_duplicates,
)
from cmkd.frames.official_lists import (
    CHOICES,
    FOGS,
    RAIN,
    choose_official,
    condition_from_meta,
    find_splits,
    known_conditions,
    rainy_frames,
)
from cmkd.frames.png import save_png
from cmkd.frames.raw_images import develop
from cmkd.frames.registration import BUILT_IN, PREPARED_SIZE, Calibration, find_calibration
from cmkd.runtime.command_line import OneLineParser, at_least, cores, positive_float
from cmkd.runtime.failures import run, warn
from cmkd.runtime.files import (
    UserError,
    append_record,
    open_data_folder,
    read_json,
    read_lines,
    reason_of,
    save_json,
    write_atomically,
)
from cmkd.runtime.parallel import parallel_map

# The folders that may hold a part of the download, the best first.
FOLDERS_OF_PART = {
    "rgb": ("cam_stereo_left_lut", "cam_stereo_left"),
    **{
        slice_name: tuple(f"{slice_name}_{kind}" for kind in ("rect8", "8bit", "rect", "raw"))
        for slice_name in GATED_FOLDERS
    },
    "labels": ("gated_labels_TMP", "gated_labels_TMPv2"),
    "meta": ("labeltool_labels_refined", "labeltool_labels"),
    "lidar": ("lidar_hdl64_strongest_gated", "lidar_hdl64_last_gated"),
}
SUFFIX_OF_FOLDER = {
    **dict.fromkeys(("cam_stereo_left", "gated0_raw", "gated1_raw", "gated2_raw"), ".tiff"),
    **dict.fromkeys(FOLDERS_OF_PART["labels"], ".txt"),
    **dict.fromkeys(FOLDERS_OF_PART["meta"], ".json"),
    **dict.fromkeys(FOLDERS_OF_PART["lidar"], ".npz"),
}  # all others: .png
CALIBRATION_FOLDERS = (".", "calibs", "calib", "calibration", "tools/DatasetViewer/calibs")

REPORT = "prepare_report.json"
WAYS = "registration.jsonl"  # with --registration lidar: by what each frame was warped
NO_LIDAR, DAMAGED_LIDAR = "plane, no lidar", "plane, unreadable lidar"
BYTES_PER_FRAME = 4.5e6  # an upper estimate: a noisy RGB PNG and three slices


# ------------------------------------------------------------------------------ parts of the source


def suffix_of(folder: Path) -> str:
    """How the names of the files in a folder of the download end."""
    return SUFFIX_OF_FOLDER.get(folder.name, ".png")


def find_folders(source: Path, names: tuple[str, ...]) -> list[Path]:
    """The folders with these names that have files: in SOURCE or SOURCE/gt_labels.

    Unzipping may have put each into another folder of its own name.
    """
    candidates = [
        folder
        for name in names
        for parent in (source, source / "gt_labels")
        for folder in (parent / name, parent / name / name)
    ]
    return [folder for folder in candidates if any(folder.glob(f"*{suffix_of(folder)}"))]


def find_parts(source: Path, needs_lidar: bool) -> dict[str, Path]:
    """The folder of each part of the download; prints them, and the folders that are not used.

    Raises `UserError` that names each missing part and its possible folders.
    """
    if not source.is_dir():
        raise UserError(
            f"--source {source} is not a folder: name the one that holds cam_stereo_left_lut and "
            "the others"
        )
    found = {part: find_folders(source, names) for part, names in FOLDERS_OF_PART.items()}
    optional = ("meta",) if needs_lidar else ("meta", "lidar")
    missing = [
        f"{part} ({' or '.join(FOLDERS_OF_PART[part])})"
        for part, folders in found.items()
        if not folders and part not in optional
    ]
    if missing:
        raise UserError(
            f"--source {source} lacks {', '.join(missing)}: download and unzip them there"
        )
    for part, folders in found.items():
        used = folders[0] if folders else "not found, not needed"
        others = f" (not used: {', '.join(map(str, folders[1:]))})" if folders[1:] else ""
        print(f"{part:>8}: {used}{others}")
    return {part: folders[0] for part, folders in found.items() if folders}


# --------------------------------------------------------------------------------- choice of frames


def choose_lists(
    split: list[str], source: Path, splits: Path | None
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The frames of each list to write, and the condition of each frame of official lists.

    `split` is `--split`: a choice of official lists, or the user's own, which keep their names.
    Raises `UserError`.
    """
    folder = find_splits(source, splits)
    if len(split) > 1 or split[0] not in CHOICES:
        lists = {Path(file).stem: read_list(Path(file)) for file in split}
        return lists, known_conditions(folder)
    if folder is None:
        raise UserError(
            f"no train_clear_night.txt in {splits or source / 'splits'}: clone the data set's "
            "repository (princeton-computational-imaging/SeeingThroughFog) and pass --splits <its "
            "splits folder>"
        )
    return choose_official(split[0], folder)


def add_conditions_from_meta(
    names: list[str], condition_of: dict[str, str], folder: Path | None
) -> None:
    """Add the conditions of frames that no official list has, and say what is assumed without."""
    unknown = [name for name in dict.fromkeys(names) if name not in condition_of]
    for name in unknown:
        if folder and (file := folder / f"{name}.json").is_file():
            condition_of[name] = condition_from_meta(file)
    if left := [name for name in unknown if not condition_of.get(name)]:
        warn(
            f"{len(left)} frames, like {left[0]}, are in no official list and have no meta file "
            "that says their weather: they are taken for clear nights"
        )


# ---------------------------------------------------------------------------------------- one frame


@dataclass(frozen=True)
class Prepared:
    """What became of a frame."""

    how: str = ""  # RGB was warped
    left_out_because: str = ""


@dataclass
class Preparer:
    """Prepares frames. What is the same for all frames is computed once."""

    folders: dict[str, Path]  # of each part: rgb, gated0..2, labels; meta and lidar if found
    calibration: Calibration
    registration: str  # plane or lidar
    distance: float  # of the plane, metres
    out: Path

    @cached_property
    def plane(self) -> Tensor:
        """The pixel map from the prepared image into RGB by the plane."""
        return registration.map_by_plane(self.calibration, self.distance)

    @cached_property
    def rgb_rectification(self) -> Tensor:
        """The pixel map from rectified into raw RGB."""
        return registration.rectifying_map(self.calibration.rgb)

    @cached_property
    def gated_rectification(self) -> Tensor:
        """The pixel map from rectified into raw slices."""
        return registration.rectifying_map(self.calibration.gated)

    def prepare(self, frame: tuple[str, str]) -> Prepared:
        """Write a frame (name, condition), the labels last: a frame with labels is complete."""
        name, condition = frame
        try:
            labels = self.file_of("labels", name)
            read_labels(labels)
            pixel_map, how = self.map_into_rgb(name, condition)
            rgb = registration.warp(self.rectified_rgb(name, condition), pixel_map)
            images = {RGB_FOLDER: rgb}
            for folder in GATED_FOLDERS:
                images[folder] = self.rectified_slice(folder, name)
        except UserError as error:
            return Prepared(left_out_because=str(error))
        except (OSError, SyntaxError, ValueError) as error:  # a damaged image or meta file
            return Prepared(left_out_because=reason_of(error))
        for folder, image in images.items():
            save_png(image, self.out / folder / f"{name}.png")
        copy = label_file(self.out, name)
        write_atomically(copy, lambda unfinished: shutil.copyfile(labels, unfinished))
        return Prepared(how)

    def prepare_unlabelled(self, frame: UnlabelledFrame) -> Prepared:
        """Write a frame without labels, RGB last: one with RGB is complete."""
        try:
            rgb = self.rgb_of(frame.rgb, night=True)
            images = {
                folder: self.slice_of(file)
                for folder, file in zip(GATED_FOLDERS, frame.slices, strict=True)
            }
            images[RGB_FOLDER] = registration.warp(rgb, self.plane)
        except UserError as error:
            return Prepared(left_out_because=str(error))
        except (OSError, SyntaxError, ValueError) as error:
            return Prepared(left_out_because=reason_of(error))
        for folder, image in images.items():
            save_png(image, self.out / folder / f"{frame.name}.png")
        return Prepared("plane")

    def has(self, part: str, name: str) -> bool:
        """Whether a frame has a file of one part."""
        folder = self.folders[part]
        return (folder / f"{name}{suffix_of(folder)}").is_file()

    def file_of(self, part: str, name: str) -> Path:
        """A frame's file of one part. Raises `UserError`."""
        folder = self.folders[part]
        if not self.has(part, name):
            raise UserError(f"no {folder.name} file")
        return folder / f"{name}{suffix_of(folder)}"

    def map_into_rgb(self, name: str, condition: str) -> tuple[Tensor, str]:
        """The pixel map from the prepared image into RGB, and its kind for the report.

        By lidar if it is asked for and exists, except in fog, which blinds it; else by the plane.
        """
        if self.registration == "plane":
            return self.plane, "plane"
        if condition.startswith(FOGS):
            return self.plane, "plane, in fog"
        if not self.has("lidar", name):
            return self.plane, NO_LIDAR
        try:
            with np.load(self.file_of("lidar", name)) as content:
                returns = content["arr_0"]
            folder = self.folders["lidar"]
            refuse_other_size(folder, returns.shape[::-1], self.calibration.gated.size)
            depth = registration.densify(returns)
        except (UserError, OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            return self.plane, DAMAGED_LIDAR
        return registration.map_by_depth(self.calibration, depth), "lidar"

    def rectified_rgb(self, name: str, condition: str) -> np.ndarray:
        """The rectified RGB image (1024, 1920, 3) uint8."""
        file = self.file_of("rgb", name)
        is_raw = file.suffix != ".png"
        return self.rgb_of(file, is_raw and self.needs_night_curve(name, condition))

    def rgb_of(self, file: Path, night: bool) -> np.ndarray:
        """The rectified RGB image of a file; a raw one gets the tone curve of `night` or day."""
        with Image.open(file) as image:
            refuse_other_size(file.parent, image.size, self.calibration.rgb.size)
            if file.suffix == ".png":
                return np.asarray(image.convert("RGB"))
            raw = np.array(image)
        return registration.warp(develop(raw, night), self.rgb_rectification)

    def rectified_slice(self, part: str, name: str) -> np.ndarray:
        """A rectified slice (768, 1280) uint8."""
        return self.slice_of(self.file_of(part, name))

    def slice_of(self, file: Path) -> np.ndarray:
        """The rectified slice of a file, (768, 1280) uint8."""
        with Image.open(file) as image:
            refuse_other_size(file.parent, image.size, self.calibration.gated.size)
            grey = np.array(image if image.mode.startswith("I") else image.convert("L"))
        if file.suffix == ".tiff":
            grey[:2] = 0  # the first two rows of a raw slice are not part of the image
            grey = registration.warp(grey, self.gated_rectification)
        if grey.dtype != np.uint8:
            grey = np.minimum(grey >> 2, 255).astype(np.uint8)
        return np.asarray(Image.fromarray(grey).resize(PREPARED_SIZE, Image.Resampling.BILINEAR))

    def needs_night_curve(self, name: str, condition: str) -> bool:
        """Which tone curve a raw image needs: by its meta file, or else by its list."""
        if "meta" not in self.folders:
            return not condition.endswith("day")
        file = self.file_of("meta", name)
        try:
            return bool(json.loads(file.read_text(encoding="utf-8"))["daytime"]["night"])
        except (KeyError, TypeError):
            raise UserError(f"no daytime in its {file.parent.name} file") from None


def refuse_other_size(folder: Path, size: tuple[int, ...], calibrated: tuple[int, int]) -> None:
    """Raise `UserError` for an image whose size (width, height) is not the calibrated one."""
    if tuple(size) != calibrated:
        raise UserError(
            f"{folder.name} is {'x'.join(map(str, size))}, and its calibration is of "
            f"{calibrated[0]}x{calibrated[1]}"
        )


# --------------------------------------------------------------------------------------- all frames


def prepare_all(
    conditions: dict[str, str], preparer: Preparer, workers: int
) -> tuple[Counter, dict[str, str]]:
    """Prepare the frames (name -> condition) that are not complete yet.

    Returns how many frames were warped in each way, and why each of the others was left out.
    """
    done = complete_frames(preparer)
    waiting = [(name, condition) for name, condition in conditions.items() if name not in done]
    new = [name for name, _ in waiting if not label_file(preparer.out, name).is_file()]
    refuse_full_disk(preparer.out, len(new))
    ways = Counter(done[name] for name in conditions if name in done)
    left_out = {}
    results = parallel_map(preparer.prepare, waiting, workers, str(preparer.out))
    for (name, _), prepared in zip(waiting, results, strict=True):
        if prepared.left_out_because:
            left_out[name] = prepared.left_out_because
        else:
            ways[prepared.how] += 1
            if preparer.registration == "lidar":
                append_record(preparer.out / WAYS, {"frame": name, "by": prepared.how})
    return ways, left_out


def complete_frames(preparer: Preparer) -> dict[str, str]:
    """The frames that need no more work, and what the report says of them.

    A frame that had no lidar is prepared again once it has some.
    """
    labelled = [file.stem for file in (preparer.out / LABEL_FOLDER).glob("*.txt")]
    if preparer.registration == "plane":
        return dict.fromkeys(labelled, "there already")
    way_of = read_ways(preparer.out / WAYS)
    if unknown := len(set(labelled) - way_of.keys()):
        warn(
            f"of {unknown} frames in {preparer.out} it is not known whether they had lidar: those "
            "on the lists are prepared again"
        )
    return {
        name: f"there already ({way_of[name]})"
        for name in labelled
        if name in way_of and not (way_of[name] == NO_LIDAR and preparer.has("lidar", name))
    }


def read_ways(journal: Path) -> dict[str, str]:
    """How each frame was warped, the newest way of each, from OUT/registration.jsonl."""
    if not journal.is_file():
        return {}
    records = []
    for line in journal.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # a line that a kill left unfinished
            records.append(json.loads(line))
    return {one["frame"]: one["by"] for one in records}


def prepare_unlabelled(
    frames: list[UnlabelledFrame], preparer: Preparer, workers: int
) -> tuple[list[str], dict[str, str]]:
    """Prepare frames without labels that are not complete yet.

    Returns the names of all that are complete, and why each of the others was left out.
    """
    waiting = [
        frame for frame in frames if not (preparer.out / RGB_FOLDER / f"{frame.name}.png").is_file()
    ]
    refuse_full_disk(preparer.out, len(waiting))
    results = parallel_map(preparer.prepare_unlabelled, waiting, workers, "without labels")
    left_out = {
        frame.name: prepared.left_out_because
        for frame, prepared in zip(waiting, results, strict=True)
        if prepared.left_out_because
    }
    return [frame.name for frame in frames if frame.name not in left_out], left_out


def more_frames(
    args: argparse.Namespace, lists: dict[str, list[str]]
) -> tuple[list[UnlabelledFrame], int]:
    """Frames without labels of --history and --gated2depth, and how many are near-duplicates.

    History frames are those of training nights alone: others are of recordings to be tested on.
    """
    frames, duplicates = [], 0
    if args.history:
        frames += history_frames(args.source, lists.get("train_night", []))
    if args.gated2depth:
        held_out = [
            name
            for list_name, names in lists.items()
            if list_name.startswith(("val", "test"))
            for name in names
        ]
        own = gated2depth_frames(args.gated2depth)
        kept, duplicates = without_near_duplicates(own, args.out, held_out)
        frames += kept
    return frames, duplicates


def refuse_full_disk(out: Path, frames: int) -> None:
    """Raise `UserError` if the frames will not fit."""
    free, needed = shutil.disk_usage(out).free, frames * BYTES_PER_FRAME
    if needed > free:
        raise UserError(
            f"{frames} frames need about {needed / 1e9:.1f} GB and {out} has {free / 1e9:.1f} GB: "
            "free some space, choose another --out, or pass --limit"
        )


def count_label_quirks(out: Path, names: set[str]) -> Counter:
    """How often the labels of these frames have something that a user should know of."""
    counts: Counter[str] = Counter()
    for name in sorted(names):
        file = label_file(out, name)
        classes = [line.split()[0] for line in read_lines(file, "labels") if line.strip()]
        labels = read_labels(file)  # without traffic lines and boxes without area
        traffic_lines = classes.count("traffic")
        counts["empty files"] += not classes
        counts["traffic lines, skipped"] += traffic_lines
        counts["boxes without area, skipped"] += len(classes) - traffic_lines - len(labels)
        for label in labels:
            clipped = clip(label.box)
            if not has_area(clipped):
                counts["boxes outside, left out"] += 1
            elif clipped != label.box:
                counts["boxes partly outside, clipped"] += 1
        counts.update(one for one in classes if is_ignored(one, USUALLY_IGNORED))
    return +counts


def write_prepared_lists(
    lists: dict[str, list[str]], condition_of: dict[str, str], rainy: set[str], out: Path
) -> dict[str, int]:
    """Write the lists, one for each condition of a night or day list, and vis_night.

    Returns how many frames each has; a list without frames is not written.
    """
    written = dict(lists)
    for list_name, names in lists.items():
        split, _, time = list_name.rpartition("_")
        if time not in ("night", "day"):
            continue
        for name in names:
            conditions = [condition_of.get(name, ""), f"{RAIN}_{time}" if name in rainy else ""]
            for condition in dict.fromkeys(conditions):
                if condition.endswith(f"_{time}"):
                    written.setdefault(f"{split}_{condition}", []).append(name)
    written["vis_night"] = [
        name for name in lists.get("test_night", []) if has_person_invisible_in_rgb(out, name)
    ]
    for list_name, names in written.items():
        if names:
            save_list(names, out / f"{list_name}.txt")
    return {list_name: len(names) for list_name, names in written.items()}


def has_person_invisible_in_rgb(out: Path, name: str) -> bool:
    """Whether somebody in the frame is labelled as not visible in RGB."""
    labels = read_labels(label_file(out, name))
    return any(label.is_person and label.visible_rgb is False for label in labels)


# ------------------------------------------------------------------------------------- command line


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    parser.add_argument(
        "--source", type=Path, required=True, help="folder of the official download, unzipped"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("data"), help="prepared folder (default: data)"
    )
    parser.add_argument(
        "--split",
        nargs="+",
        default=["all_night"],
        metavar=f"{{{','.join(CHOICES)},FILE}}",
        help="all frames of a time of day by recording, the official clear ones, or lists of your "
        "own, which keep their names (default: all_night)",
    )
    parser.add_argument(
        "--splits",
        type=Path,
        help="folder of the official lists (default: SOURCE/splits, SOURCE or SOURCE/../splits)",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        help="folder of the three calib_*.json (default: in SOURCE, or else the published one)",
    )
    parser.add_argument(
        "--registration",
        choices=["plane", "lidar"],
        default="plane",
        help="warp RGB by a plane at one distance, or by lidar at each pixel (default: plane)",
    )
    parser.add_argument(
        "--plane-distance", type=positive_float, default=30.0, help="metres (default: 30)"
    )
    parser.add_argument(
        "--history",
        action="store_true",
        help="also history frames of the training nights, without labels: unlabelled_night",
    )
    parser.add_argument(
        "--gated2depth",
        type=Path,
        metavar="DIR",
        help="also Gated2Depth's frames, without labels, except near-duplicates of frames to be "
        "tested on: unlabelled_night",
    )
    parser.add_argument(
        "--workers", type=at_least(1), default=cores(), help="processes (default: all cores)"
    )
    parser.add_argument(
        "--limit", type=at_least(1), metavar="N", help="only N frames, spread over the lists"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    folders = find_parts(args.source, args.registration == "lidar")
    usual = [args.source / folder for folder in CALIBRATION_FOLDERS]
    calibration = find_calibration([args.calibration] if args.calibration else usual)
    if args.calibration and calibration.source == BUILT_IN:
        raise UserError(f"--calibration {args.calibration}: the three calib_*.json are not there")
    print(f"calibration: {calibration.source}")
    lists, condition_of = choose_lists(args.split, args.source, args.splits)
    chosen = [name for names in lists.values() for name in names]
    add_conditions_from_meta(chosen, condition_of, folders.get("meta"))
    if args.limit:
        chosen = evenly_spaced(chosen, args.limit)

    parameters = {
        "version": 1,
        "split": args.split,
        "registration": args.registration,
        "plane_distance": args.plane_distance,
        "calibration": calibration.identity,
        "folders": {part: folder.name for part, folder in folders.items()},
    }
    if not notes_calibration(args.out / REPORT):
        del parameters["calibration"]
        warn(f"{args.out} is of an earlier version, which noted no calibration: pass the same one")
    open_data_folder(args.out, REPORT, parameters, (*IMAGE_FOLDERS, LABEL_FOLDER))
    preparer = Preparer(folders, calibration, args.registration, args.plane_distance, args.out)
    conditions = {name: condition_of.get(name, "") for name in chosen}
    ways, left_out = prepare_all(conditions, preparer, args.workers)
    complete = set(chosen) - left_out.keys()
    lists = {
        list_name: [name for name in names if name in complete]
        for list_name, names in lists.items()
    }
    rainy = rainy_frames(find_splits(args.source, args.splits))
    lengths = write_prepared_lists(lists, condition_of, rainy, args.out)
    frames, duplicates = more_frames(args, lists)
    unlabelled, unlabelled_left_out = prepare_unlabelled(frames, preparer, args.workers)
    left_out |= unlabelled_left_out
    if unlabelled:
        save_list(unlabelled, args.out / f"{UNLABELLED}_night.txt")
        lengths[f"{UNLABELLED}_night"] = len(unlabelled)
    quirks = count_label_quirks(args.out, complete)
    report = {
        "parameters": parameters,
        "calibration": calibration.source,
        "found": folders,
        "frames": ways,
        "lists": lengths,
        "labels": quirks,
        "left_out": left_out,
        "near_duplicates_left_out": duplicates,
    }
    save_json(report, args.out / REPORT)
    print_counts("frames", ways)
    print_counts("labels", quirks)
    print_counts("lists", lengths)
    print_counts("left out", Counter(left_out.values()))
    if not complete:
        raise UserError(f"no frame is complete: see {args.out / REPORT}")


def notes_calibration(report: Path) -> bool:
    """Whether a folder is new or says by what calibration it was made. Raises `UserError`."""
    if not report.is_file():
        return True
    content = read_json(report, "choose another --out; nothing was changed")
    return not isinstance(content, dict) or "calibration" in content.get("parameters", {})


def print_counts(title: str, counts: dict[str, int]) -> None:
    """Print a line like `frames: 2 there already, 4 plane`."""
    print(f"{title}: {', '.join(f'{count} {what}' for what, count in counts.items()) or 'none'}")


if __name__ == "__main__":
    run(main)

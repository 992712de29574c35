"""The official Seeing Through Fog download -> the prepared layout that the train scripts read.

    python prepare_data.py --source SeeingThroughFog --splits SeeingThroughFog-repository/splits --out data

RGB is warped into the gated camera's view, the slices become 8-bit 1280x768, labels are copied. A call that was
interrupted goes on where it stopped. OUT/prepare_report.json has what was found, counted and left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from cmkd.frames import registration
from cmkd.frames.layout import LABEL_HEIGHT, LABEL_WIDTH, read_labels, read_list, recording
from cmkd.frames.raw_images import develop
from cmkd.frames.registration import PREPARED_SIZE, Calibration, find_calibration
from cmkd.runtime.failures import run
from utils import (
    OneLineParser,
    UserError,
    at_least,
    positive_float,
    reason_of,
    save_json,
    write_atomically,
)

# The names a part of the download may have, the best first.
RGB = ("cam_stereo_left_lut", "cam_stereo_left")
SLICES = tuple((f"gated{d}_rect8", f"gated{d}_8bit", f"gated{d}_rect", f"gated{d}_raw") for d in range(3))
LABELS = ("gated_labels_TMP", "gated_labels_TMPv2")
META = ("labeltool_labels_refined", "labeltool_labels")
LIDAR = ("lidar_hdl64_strongest_gated", "lidar_hdl64_last_gated")
SUFFIXES = {"cam_stereo_left": ".tiff", **{f"gated{d}_raw": ".tiff" for d in range(3)}, **dict.fromkeys(LABELS, ".txt"),
            **dict.fromkeys(META, ".json"), **dict.fromkeys(LIDAR, ".npz")}
CALIBRATIONS = (".", "calibs", "calib", "calibration", "tools/DatasetViewer/calibs")

CLEAR = {split: f"{split}_clear_night" for split in ("train", "val", "test")}
WEATHER = ("light_fog_night", "dense_fog_night", "snow_night")
FOG = ("light_fog_night", "dense_fog_night")
FOLDERS = ("images", "gated0", "gated1", "gated2", "gated_labels")
BYTES_PER_FRAME = 4.5e6  # an upper estimate: a noisy RGB PNG and three slices


@dataclass(frozen=True)
class Job:
    """What every frame is prepared with."""

    folders: dict[str, Path]  # rgb, gated0..2, labels; meta and lidar where they were found
    calibration: Calibration
    registration: str
    distance: float
    out: Path


# --------------------------------------------------------------------------------------------- what is there


def find_folders(source: Path, names: tuple[str, ...]) -> list[Path]:
    """Those of a part's folders that have files: at the top or under gt_labels/, maybe doubled by unzipping."""
    places = (place for name in names for place in (source / name, source / name / name, source / "gt_labels" / name,
                                                    source / "gt_labels" / name / name))
    return [place for place in places if any(place.glob(f"*{SUFFIXES.get(place.name, '.png')}"))]


def find_parts(source: Path, lidar_needed: bool) -> dict[str, Path]:
    """The folder of every part; it and what else was found are printed. Raises `UserError` that names each missing
    part and its possible folders."""
    if not source.is_dir():
        raise UserError(f"--source {source} is no folder: name the one that holds cam_stereo_left_lut and the others")
    wanted = {"rgb": RGB, **{f"gated{d}": names for d, names in enumerate(SLICES)}, "labels": LABELS, "meta": META,
              "lidar": LIDAR}
    found = {part: find_folders(source, names) for part, names in wanted.items()}
    needed = [part for part in wanted if part != "meta" and (part != "lidar" or lidar_needed)]
    if missing := [f"{part} ({' or '.join(wanted[part])})" for part in needed if not found[part]]:
        raise UserError(f"--source {source} lacks {', '.join(missing)}: download and unzip them there")
    for part, folders in found.items():
        others = f" (not used: {', '.join(map(str, folders[1:]))})" if folders[1:] else ""
        print(f"{part:>8}: {folders[0] if folders else 'not found, not needed'}{others}")
    return {part: folders[0] for part, folders in found.items() if folders}


def find_splits(source: Path, splits: Path | None) -> Path:
    """The folder of the official split lists. Raises `UserError`."""
    for folder in [splits] if splits else [source / "splits", source, source.parent / "splits"]:
        if (folder / f"{CLEAR['train']}.txt").is_file():
            return folder
    raise UserError(f"no {CLEAR['train']}.txt in {splits or source / 'splits'}: clone the data set's repository "
                    "(princeton-computational-imaging/SeeingThroughFog) and pass --splits <its splits folder>")


# --------------------------------------------------------------------------------------------- which frames


def all_night(official: dict[str, list[str]]) -> dict[str, list[str]]:
    """train, val, test -> frames of every night list, no recording in two of them.

    Clear frames keep their official split. A recording of fog or snow follows the clear one of its name, else the hash
    of its name: 60 / 15 / 25 %.
    """
    place = {recording(name): split for split, one in CLEAR.items() for name in official[one]}
    frames = {split: list(official[one]) for split, one in CLEAR.items()}
    for name in (name for weather in WEATHER for name in official[weather]):
        frames[place.get(recording(name)) or split_by_hash(recording(name))].append(name)
    return frames


def split_by_hash(text: str) -> str:
    """train, val or test for a recording's name, the same on every machine."""
    share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    return "train" if share < 0.60 else "val" if share < 0.75 else "test"


def choose_frames(split: list[str], official: dict[str, list[str]] | None) -> dict[str, list[str]]:
    """List name -> frames, for `--split`: official ones, or one list for each file, under the file's name."""
    if split == ["clear_night"]:
        return {f"{name}_night": official[one] for name, one in CLEAR.items()}
    if split == ["all_night"]:
        return {f"{name}_night": frames for name, frames in all_night(official).items()}
    return {Path(file).stem: read_list(Path(file)) for file in split}


# --------------------------------------------------------------------------------------------- one frame


class Preparer:
    """Prepares frames; keeps what is the same for all of them, once in each process."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(1)  # as there is a process for each core
        self.job = job
        self.plane = registration.plane_map(job.calibration, job.distance)
        self.rectify_rgb = registration.rectifying_map(job.calibration.rgb, job.calibration.rgb.size)
        self.rectify_gated = registration.rectifying_map(job.calibration.gated, job.calibration.gated.size)

    def prepare(self, name: str, condition: str) -> tuple[str, str]:
        """Write one frame, the labels last: a frame with labels is complete. (how RGB was warped, '') where it
        worked, ('', why not) where not."""
        try:
            labels = self.file("labels", name)
            read_labels(labels)
            where, how = self.warp_of(name, condition)
            pictures = {"images": registration.warp(self.read_rgb(name, condition), where),
                        **{f"gated{d}": self.read_slice(d, name) for d in range(3)}}
        except UserError as error:
            return "", str(error)
        except (OSError, SyntaxError, ValueError) as error:  # of a damaged picture or meta file
            return "", reason_of(error)
        for folder, picture in pictures.items():
            image = Image.fromarray(picture)
            write_atomically(self.job.out / folder / f"{name}.png",
                             lambda file, image=image: image.save(file, "PNG", compress_type=zlib.Z_HUFFMAN_ONLY))
        write_atomically(self.job.out / "gated_labels" / f"{name}.txt", lambda file: shutil.copyfile(labels, file))
        return how, ""

    def file(self, part: str, name: str) -> Path:
        """A frame's file of one part. Raises `UserError`."""
        folder = self.job.folders[part]
        file = folder / f"{name}{SUFFIXES.get(folder.name, '.png')}"
        if not file.is_file():
            raise UserError(f"no {folder.name} file")
        return file

    def warp_of(self, name: str, condition: str) -> tuple[torch.Tensor, str]:
        """The map into RGB and its kind: lidar where asked for, there, and not blinded by fog; else the plane."""
        if self.job.registration == "plane":
            return self.plane, "plane"
        if condition in FOG:
            return self.plane, "plane, in fog"
        try:
            with np.load(self.file("lidar", name)) as content:
                depth = registration.densify(content["arr_0"])
        except (UserError, OSError, ValueError, KeyError):
            return self.plane, "plane, no lidar"
        return registration.depth_map(self.job.calibration, depth), "lidar"

    def read_rgb(self, name: str, condition: str) -> np.ndarray:
        """The rectified RGB picture (1024, 1920, 3) uint8."""
        file = self.file("rgb", name)
        with Image.open(file) as image:
            if file.suffix == ".png":
                return np.asarray(image.convert("RGB"))
            raw = np.array(image)
        return registration.warp(develop(raw, self.is_night(name, condition)), self.rectify_rgb)

    def read_slice(self, number: int, name: str) -> np.ndarray:
        """A rectified slice (768, 1280) uint8."""
        file = self.file(f"gated{number}", name)
        with Image.open(file) as image:
            grey = np.array(image if image.mode.startswith("I") else image.convert("L"))
        if file.suffix == ".tiff":
            grey[:2] = 0  # the first rows of a raw slice are no picture
            grey = registration.warp(grey, self.rectify_gated)
        if grey.dtype != np.uint8:
            grey = np.minimum(grey >> 2, 255).astype(np.uint8)
        return np.asarray(Image.fromarray(grey).resize(PREPARED_SIZE, Image.Resampling.BILINEAR))

    def is_night(self, name: str, condition: str) -> bool:
        """Which tone curve a raw frame needs: by its meta file, else by the list it stands in."""
        if "meta" not in self.job.folders:
            return not condition.endswith("day")
        return bool(json.loads(self.file("meta", name).read_text(encoding="utf-8"))["daytime"]["night"])


def start_process(job: Job) -> None:
    """Initialise a worker process."""
    global preparer
    preparer = Preparer(job)


def prepare_in_process(frame: tuple[str, str]) -> tuple[str, str]:
    """`Preparer.prepare` in a worker process."""
    return preparer.prepare(*frame)


# --------------------------------------------------------------------------------------------- all of them


def prepare_all(frames: dict[str, str], job: Job, workers: int) -> tuple[Counter, dict[str, str]]:
    """Prepare frames (name -> condition) that are not there yet: how many were warped how, and who was left out."""
    waiting = [(name, condition) for name, condition in frames.items()
               if not (job.out / "gated_labels" / f"{name}.txt").is_file()]
    refuse_full_disk(job.out, len(waiting))
    ways, left_out = Counter({"there already": len(frames) - len(waiting)}), {}
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_process, (job,)) as pool:
        results = pool.map(prepare_in_process, waiting, chunksize=4)
        for (name, _), (how, reason) in zip(waiting, tqdm(results, str(job.out), len(waiting), unit="frame",
                                                          disable=None), strict=True):
            if reason:
                left_out[name] = reason
            else:
                ways[how] += 1
    return ways, left_out


def refuse_full_disk(out: Path, frames: int) -> None:
    """Raise `UserError` where the frames will not fit."""
    free, needed = shutil.disk_usage(out).free, frames * BYTES_PER_FRAME
    if needed > free:
        raise UserError(f"{frames} frames need about {needed / 1e9:.1f} GB and {out} has {free / 1e9:.1f} GB: make "
                        "room, choose another --out, or pass --limit")


def open_folder(out: Path, parameters: dict) -> None:
    """Make the folder, or go on with one begun with the same parameters. Raises `UserError`."""
    report = out / "prepare_report.json"
    if report.is_file():
        try:
            before = dict(json.loads(report.read_text(encoding="utf-8"))["parameters"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{report} is not a report of ours ({error!r}): choose another --out; nothing was "
                            "changed") from None
        for name, value in parameters.items():
            if before.get(name) != value:
                raise UserError(f"{out} was prepared with {name} {before.get(name)}, not {value}: pass the same or "
                                "choose another --out; nothing was changed")
        for leftover in (file for folder in FOLDERS for file in (out / folder).glob(".*")):
            leftover.unlink()  # of a call that was killed
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and holds something else: choose a new or empty folder; nothing was "
                        "written")
    for folder in FOLDERS:
        (out / folder).mkdir(parents=True)
    save_json({"parameters": parameters}, report)


def label_quirks(files: list[Path]) -> Counter:
    """How often the labels have what a reader must know of."""
    counts: Counter[str] = Counter()
    for file in files:
        lines = [line.split() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        counts["empty files"] += not lines
        for columns in lines:
            if columns[0] == "traffic":
                counts["traffic lines, skipped"] += 1
                continue
            x0, y0, x1, y1 = (float(value) for value in columns[4:8])
            counts["boxes without area, skipped"] += x0 >= x1 or y0 >= y1
            counts["boxes partly outside, clipped"] += x0 < 0 or y0 < 0 or x1 > LABEL_WIDTH or y1 > LABEL_HEIGHT
            counts[columns[0]] += columns[0] in ("DontCare", "Obstacle") or columns[0].endswith("_is_group")
    return +counts


def write_lists(lists: dict[str, list[str]], condition_of: dict[str, str], out: Path) -> dict[str, int]:
    """Write the lists of complete frames, each condition's own, and vis_night; return their lengths."""
    written = dict(lists)
    for name, frames in lists.items():
        for frame in frames:
            if frame in condition_of and name.endswith("_night"):
                written.setdefault(f"{name.removesuffix('night')}{condition_of[frame]}", []).append(frame)
    written["vis_night"] = [name for name in lists.get("test_night", []) if has_unseen_person(out, name)]
    for name, frames in written.items():
        if frames:
            text = "".join(f"{frame}\n" for frame in frames)
            write_atomically(out / f"{name}.txt", lambda file, text=text: file.write_text(text, encoding="utf-8"))
    return {name: len(frames) for name, frames in written.items()}


def has_unseen_person(out: Path, name: str) -> bool:
    """Whether somebody in the frame is labelled as not visible in RGB."""
    return any(label.name.startswith("Pedestrian") and label.visible_rgb is False
               for label in read_labels(out / "gated_labels" / f"{name}.txt"))


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of the official download, unzipped")
    parser.add_argument("--out", type=Path, default=Path("data"), help="prepared folder (default: data)")
    parser.add_argument("--split", nargs="+", default=["all_night"], metavar="{all_night,clear_night,FILE}",
                        help="all night frames by recording, the official clear nights, or lists of your own, written "
                             "under their names (default: all_night)")
    parser.add_argument("--splits", type=Path, help="folder of the official lists (default: SOURCE/splits or beside)")
    parser.add_argument("--calibration", type=Path, help="folder of the three calib_*.json (default: in SOURCE, else "
                                                         "the published one)")
    parser.add_argument("--registration", choices=["plane", "lidar"], default="plane",
                        help="RGB fits the gated view at one distance, or at each pixel's by lidar (default: plane)")
    parser.add_argument("--plane-distance", type=positive_float, default=30.0, help="metres (default: 30)")
    parser.add_argument("--workers", type=at_least(1), default=os.cpu_count(), help="processes (default: all cores)")
    parser.add_argument("--limit", type=at_least(1), metavar="N", help="only N frames, spread over the lists")
    args = parser.parse_args()

    folders = find_parts(args.source, args.registration == "lidar")
    places = [args.calibration] if args.calibration else [args.source / place for place in CALIBRATIONS]
    calibration = find_calibration(places)
    print(f"calibration: {calibration.source}")
    official, condition_of = None, {}
    if args.split in (["all_night"], ["clear_night"]):
        splits = find_splits(args.source, args.splits)
        official = {name: read_list(splits / f"{name}.txt") for name in (*CLEAR.values(), *WEATHER)}
        condition_of = {name: "clear_night" if one in CLEAR.values() else one
                        for one, names in official.items() for name in names}
    lists = choose_frames(args.split, official)
    names = [name for frames in lists.values() for name in frames]
    if args.limit:
        names = [names[index] for index in np.unique(np.linspace(0, len(names) - 1, args.limit).astype(int))]

    parameters = {"version": 1, "split": args.split, "registration": args.registration,
                  "plane_distance": args.plane_distance, "folders": {part: folder.name for part, folder in
                                                                     folders.items()}}
    open_folder(args.out, parameters)
    job = Job(folders, calibration, args.registration, args.plane_distance, args.out)
    ways, left_out = prepare_all({name: condition_of.get(name, "") for name in names}, job, args.workers)
    complete = set(names) - left_out.keys()
    lengths = write_lists({name: [frame for frame in frames if frame in complete] for name, frames in lists.items()},
                          condition_of, args.out)
    quirks = label_quirks([args.out / "gated_labels" / f"{name}.txt" for name in sorted(complete)])
    save_json({"parameters": parameters, "calibration": calibration.source, "found": folders, "frames": ways,
               "lists": lengths, "labels": quirks, "left_out": left_out}, args.out / "prepare_report.json")
    for title, counts in (("frames", ways), ("labels", quirks), ("lists", lengths),
                          ("left out", Counter(left_out.values()))):
        print(f"{title}: {', '.join(f'{count} {what}' for what, count in counts.items()) or 'none'}")
    if not complete:
        raise UserError(f"no frame is complete: see {args.out / 'prepare_report.json'}")


if __name__ == "__main__":
    run(main)

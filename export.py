"""The RGB student as files that run without this repository: ONNX, and torch.export's .pt2.

    python export.py --weights weights/cmkd_adv.pth --data data --list val_night
    python export.py --weights weights/cmkd_adv.pth --out student.onnx

They take one RGB picture, uint8 [H, W, 3], of the size that the list's frames have; resizing, normalising and padding
are inside. Before a file gets its name, it must find what PyTorch finds in some of these frames, and nothing where
PyTorch finds nothing. docs/deploy.md has the ten lines that run it.
"""

import argparse
import importlib
import json
import logging
import warnings
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from cmkd.evaluation.pipeline import load_comparable
from cmkd.frames.layout import find_picture, read_list, read_rgb
from cmkd.runtime import hardware
from cmkd.runtime.failures import run
from deployable import Deployable
from exported import (
    BOX_TOLERANCE,
    FORMATS,
    OPSET,
    SCORE_TOLERANCE,
    Detect,
    detect_here,
    largest_differences,
    measure,
)
from models import Detector, WeightsError
from utils import OneLineParser, UserError, at_least, refuse_unwritable, versions, warn, write_atomically

WEIGHTS = "weights/cmkd_adv.pth"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
PLAIN = (0, 255, 128, 64, 192)  # grey values of pictures in which there is nothing to find


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path(WEIGHTS), help=f"an RGB network (default: {WEIGHTS})")
    parser.add_argument("--out", type=Path, nargs="+", metavar="FILE",
                        help="files that end in .onnx or .pt2 (default: one of each, beside the weights)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="prepared data folder (default: data)")
    parser.add_argument("--list", default="val_night",
                        help="DATA/<list>.txt: its frames give the size of the picture, and some are compared "
                             "(default: val_night)")
    parser.add_argument("--frames", type=at_least(1), default=5, help="how many are compared (default: 5)")
    args = parser.parse_args()
    args.out = args.out or [args.weights.with_suffix(suffix) for suffix in FORMATS]
    return args


def refuse_impossible(files: list[Path], weights: Path) -> None:
    """Raise `UserError` for a file of no known format, one that cannot be written, and a package that is absent."""
    for file in files:
        if file.suffix not in FORMATS:
            raise UserError(f"--out {file}: name a file that ends in {' or '.join(FORMATS)}")
        if file.resolve() == weights.resolve():
            raise UserError(f"--out {file} is the file of the weights: name another one")
        refuse_unwritable(file)
    if not any(file.suffix == ".onnx" for file in files):
        return
    for package in PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError:
            raise UserError(f"an .onnx file needs {package}, which is not installed: pip install "
                            f"{' '.join(PACKAGES)}, or pass --out {weights.with_suffix('.pt2')}") from None


def read_frames(data: Path, list_name: str, count: int) -> dict[str, Tensor]:
    """Frames of a list, evenly spaced in it, by name: uint8 `[H, W, 3]`, all of one size. Raises `UserError`."""
    names = read_list(data / f"{list_name}.txt")
    count = min(count, len(names))
    frames: dict[str, Tensor] = {}
    for name in [names[number * len(names) // count] for number in range(count)]:
        if not (file := find_picture(data, "images", name)):
            raise UserError(f"{data / 'images' / name}.png is missing: add it, or take the frame off the list")
        frames[name] = read_rgb(file).permute(1, 2, 0).contiguous()
        (height, width, _), (own_height, own_width, _) = next(iter(frames.values())).shape, frames[name].shape
        if (height, width) != (own_height, own_width):
            raise UserError(f"{file} is {own_width}x{own_height}, and the frames before it are {width}x{height}: "
                            "an export takes one size, so name a --list whose frames have one")
    return frames


def plain_frame(like: Tensor, detect: Detect) -> dict[str, Tensor]:
    """A picture of one grey value in which nothing is found, by name; none where all of them have something."""
    for value in PLAIN:
        boxes, _, _ = detect(plain := torch.full_like(like, value))
        if not len(boxes):
            return {f"plain grey {value}": plain}
    warn("the network finds something in every picture of one grey value: a result without boxes is not compared")
    return {}


def export(program: ExportedProgram, metadata: dict[str, str], detector: Detector, frames: dict[str, Tensor], file: Path
           ) -> None:
    """Write a file that finds in the frames what the detector finds, and say how nearly, and how long both take.

    Raises `UserError`, also where something else is found: then there is no file, or the one that was there.
    """
    write, read = FORMATS[file.suffix]

    def write_and_compare(unfinished: Path) -> None:
        write(program, metadata, unfinished)
        found, times = measure({"PyTorch": partial(detect_here, detector), file.name: read(unfinished)}, frames)
        try:
            box, score = largest_differences(found["PyTorch"], found[file.name], detector)
        except UserError as error:
            raise UserError(f"{file} is not written: {error}") from None
        print(f"{file}: {sum(len(boxes) for boxes, _, _ in found['PyTorch'].values())} boxes in {len(frames)} frames, "
              f"at most {box:.1g} px and {score:.1g} in score from PyTorch's (allowed: {BOX_TOLERANCE} px, "
              f"{SCORE_TOLERANCE}); {times[file.name]:.0f} ms a frame, PyTorch {times['PyTorch']:.0f} ms")

    write_atomically(file, write_and_compare)


def main() -> None:
    args = parse_arguments()
    warnings.filterwarnings("ignore", module="torch")  # and torchvision: what they tell their own developers
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    refuse_impossible(args.out, args.weights)
    detectors, classes, _ = load_comparable([args.weights], None, None, None, None)
    [detector] = detectors.values()
    if (channels := detector.settings["channels"]) != 3:
        raise WeightsError(f"{args.weights} takes {channels} channels, and a car's camera gives three: export a "
                           "student or the baseline")
    frames = read_frames(args.data, args.list, args.frames)
    first = next(iter(frames.values()))
    height, width, _ = first.shape
    frames |= plain_frame(first, partial(detect_here, detector.eval()))
    print(f"{args.weights}: {detector.settings['backbone']}, {detector.settings['min_size']} px; pictures "
          f"{width}x{height}; ONNX opset {OPSET}; {hardware.processor()}")
    environment = versions()
    metadata = {"weights": args.weights.name, "classes": json.dumps(classes), "width": str(width),
                "height": str(height), "settings": json.dumps(detector.settings),
                **{name: environment[name] for name in ("git", "torch", "torchvision")}}
    program = Deployable(detector, height, width).program()
    for file in args.out:
        export(program, metadata, detector, frames, file)


if __name__ == "__main__":
    run(main, WeightsError)

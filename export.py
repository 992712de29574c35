"""Turn an RGB student into files that run without this repository: ONNX and torch.export's .pt2.

    python export.py --weights weights/cmkd_adv.pth --data data --list val_night
    python export.py --weights weights/cmkd_adv.pth --out student.onnx

A file takes one RGB picture, uint8 [H, W, 3], of the size of the list's frames; resizing,
normalising and padding are inside. A file is written only if its detections match PyTorch's on some
of these frames and on an empty picture. docs/deploy.md has the ten lines that run it.
"""

import argparse
import importlib
import io
import json
import logging
import math
import statistics
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import clip_boxes_to_image, nms
from tqdm import tqdm

from cmkd.evaluation.pipeline import load_rgb_detector
from cmkd.frames.images import read_rgb
from cmkd.frames.layout import (
    RGB_FOLDER,
    find_image,
    list_file,
    missing_image_message,
    parse_list,
    read_list,
)
from cmkd.runtime import hardware
from cmkd.runtime.command_line import OneLineParser, at_least
from cmkd.runtime.failures import run, warn
from cmkd.runtime.files import UserError, refuse_unwritable, write_atomically
from models import Detector

WEIGHTS = "weights/cmkd_adv.pth"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18  # of ONNX: the oldest that torch.onnx writes, because older runtimes can read it
BOX_TOLERANCE, SCORE_TOLERANCE = 0.25, 0.001  # px of the picture; scores are 0..1
PLAIN_GREYS = (0, 255, 128, 64, 192)  # of pictures without anything to find
TIMED_ROUNDS = 3  # over all frames

# Boxes [N, 4] in px of the picture, scores [N], labels [N].
Detections = tuple[Tensor, Tensor, Tensor]
Runner = Callable[[Tensor], Detections]  # takes a picture, uint8 [H, W, 3]


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    parser.add_argument(
        "--weights", type=Path, default=Path(WEIGHTS), help=f"an RGB network (default: {WEIGHTS})"
    )
    parser.add_argument(
        "--out",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="files that end in .onnx or .pt2 (default: one of each, beside the weights)",
    )
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="prepared data folder (default: data)"
    )
    parser.add_argument(
        "--list",
        default="val_night",
        help="DATA/<list>.txt: its frames give the size of the picture, and some are compared "
        "(default: val_night)",
    )
    parser.add_argument(
        "--frames", type=at_least(1), default=5, help="how many are compared (default: 5)"
    )
    args = parser.parse_args()
    args.out = args.out or [args.weights.with_suffix(suffix) for suffix in FORMATS]
    return args


def refuse_bad_outputs(files: list[Path], weights: Path) -> None:
    """Raise `UserError` if a file cannot be written, or a package for it is not installed."""
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
            raise UserError(
                f"an .onnx file needs {package}, which is not installed: pip install "
                f"{' '.join(PACKAGES)}, or pass --out {weights.with_suffix('.pt2')}"
            ) from None


# ------------------------------------------------------------------------------------ frames


def sample_frames(data: Path, list_name: str, count: int) -> dict[str, Tensor]:
    """Up to `count` evenly spaced frames of a list by name: uint8 `[H, W, 3]`, all of one size.

    Raises `UserError`.
    """
    file_of_list = list_file(data, list_name)
    names = read_list(file_of_list)
    count = min(count, len(names))
    frames: dict[str, Tensor] = {}
    for name in [names[number * len(names) // count] for number in range(count)]:
        file = find_image(data, RGB_FOLDER, name)
        if not file:
            place = f"{file_of_list}:{parse_list(file_of_list)[0][name]}"
            raise UserError(missing_image_message(data, RGB_FOLDER, name, place))
        frames[name] = read_rgb(file).permute(1, 2, 0).contiguous()
        height, width, _ = frames[name].shape
        first_height, first_width, _ = next(iter(frames.values())).shape
        if (height, width) != (first_height, first_width):
            raise UserError(
                f"{file} is {width}x{height}, and the frames before it are "
                f"{first_width}x{first_height}: an export takes one size, so name a --list with "
                "frames of one size"
            )
    return frames


def find_plain_picture(like: Tensor, pytorch: Runner) -> dict[str, Tensor]:
    """A picture of one grey value in which PyTorch finds nothing, by name; empty if none is known.

    It has the shape of `like`.
    """
    for grey in PLAIN_GREYS:
        picture = torch.full_like(like, grey)
        boxes, _, _ = pytorch(picture)
        if not len(boxes):
            return {f"plain grey {grey}": picture}
    warn(
        "the network finds something in every picture of one grey value: a result without boxes "
        "is not compared"
    )
    return {}


# ------------------------------------------------------------------------------------- graph

# A graph cannot branch on what a picture shows. torchvision's detector does so in two methods, to
# drop boxes. The methods here keep a fixed number of boxes, and give those that torchvision drops a
# score below all others. The detections are the same.

DROPPED = -1.0  # a score; others are 0..1
SMALLEST_SIDE = 1e-2  # px, of detections, as in RoIHeads.postprocess_detections
OUTSIDE = [[-9.0, -9.0, -8.0, -8.0]]  # a box that overlaps none in a picture


class FixedProposals(RegionProposalNetwork):
    """torchvision's RPN for evaluation on one picture, with a fixed number of proposals.

    A dropped proposal has no area. Neither has the detection that the box head makes of it, which
    is therefore dropped too.
    """

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        boxes, scores = [], []
        for decoded, logits in zip(
            proposals[0].split(num_anchors_per_level),
            objectness.flatten().split(num_anchors_per_level),
            strict=True,
        ):
            best, indices = logits.topk(min(self.pre_nms_top_n(), len(logits)))
            boxes.append(clip_boxes_to_image(decoded[indices], image_shapes[0]))
            scores.append(drop(boxes[-1], best.sigmoid(), self.min_size, self.nms_thresh))
        boxes, scores = torch.cat(boxes), torch.cat(scores)
        scores, indices = scores.topk(min(self.post_nms_top_n(), len(scores)))
        return [boxes[indices] * (scores > DROPPED)[:, None]], [scores]


class FixedDetections(RoIHeads):
    """torchvision's heads for evaluation on one picture; only the last step drops boxes."""

    def postprocess_detections(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        boxes = self.box_coder.decode(box_regression, proposals)  # [proposals, classes, 4]
        boxes = clip_boxes_to_image(boxes[:, 1:], image_shapes[0])  # class 0 is the background
        scores = class_logits.softmax(dim=1)[:, 1:]
        scores_by_class = [
            drop(boxes_of_class, scores_of_class, SMALLEST_SIDE, self.nms_thresh)
            for boxes_of_class, scores_of_class in zip(
                boxes.unbind(1), scores.unbind(1), strict=True
            )
        ]
        scores = torch.stack(scores_by_class, dim=1)
        best, indices = scores.flatten().topk(min(self.detections_per_img, scores.numel()))
        kept = torch.where(best > self.score_thresh)[0]
        indices = indices[kept]
        return [boxes.flatten(0, 1)[indices]], [best[kept]], [indices % scores.shape[1] + 1]


class Deployable(nn.Module):
    """A copy of a detector for one picture of a fixed size, in float32 on the CPU.

    Takes a picture `[H, W, 3]`, uint8, RGB 0..255. Returns boxes `[N, 4]`, float32 (x0, y0, x1, y1
    in its pixels), scores `[N]`, float32, best first, and labels `[N]`, int64, from 1.
    """

    def __init__(self, detector: Detector, height: int, width: int) -> None:
        super().__init__()
        self.detector = deepcopy(detector).cpu().eval().requires_grad_(False)
        self.detector.rpn.__class__ = FixedProposals
        self.detector.roi_heads.__class__ = FixedDetections
        # It would assign its anchors again, which a graph cannot hold. They are right already.
        self.detector.rpn.anchor_generator.set_cell_anchors = lambda *_: None
        self.example = torch.zeros(height, width, 3, dtype=torch.uint8)
        # RoIAlign takes its scales from the first picture, in steps that a graph cannot hold.
        self(self.example)

    def forward(self, picture: Tensor) -> Detections:
        [detections] = self.detector([picture.permute(2, 0, 1)])
        return detections["boxes"], detections["scores"], detections["labels"]

    def program(self) -> ExportedProgram:
        """The graph, made by torch.export."""
        return torch.export.export(self, (self.example,), strict=False)


def drop(boxes: Tensor, scores: Tensor, smallest_side: float, iou: float) -> Tensor:
    """The scores `[N]` of boxes `[N, 4]`, `DROPPED` for those that torchvision drops.

    These are boxes with a side under `smallest_side` px, and boxes that overlap one with a better
    score by more than `iou`.
    """
    large = (boxes[:, 2:] - boxes[:, :2] >= smallest_side).all(dim=1)
    scores = torch.where(large, scores, DROPPED)
    # torchvision promises torch.export (in its `meta_nms`) that nms keeps two boxes or more, and a
    # program checks it.
    scores = torch.cat([scores, scores.new_tensor([DROPPED])])
    kept = nms(torch.cat([boxes, boxes.new_tensor(OUTSIDE)]), scores, iou)
    remaining = torch.full_like(scores, DROPPED)
    remaining[kept] = scores[kept]
    return remaining[:-1]


# ------------------------------------------------------------------------------------- files


def write_onnx(program: ExportedProgram, metadata: dict[str, str], file: Path) -> None:
    """One ONNX file with its weights, and `metadata` as its `metadata_props`.

    Raises `UserError` if this torch cannot convert the program; torch 2.6 cannot.
    """
    try:
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["picture"],
            output_names=["boxes", "scores", "labels"],
            optimize=True,
            verbose=False,
        )
    except (torch.onnx.OnnxExporterError, ImportError):  # ImportError: onnxscript is too old
        raise UserError(
            f"torch {torch.__version__} cannot convert the network to ONNX: update torch and "
            "onnxscript, or pass --out with a file that ends in .pt2"
        ) from None
    converted.model.metadata_props.update(metadata)
    converted.save(str(file))


def read_onnx(file: Path) -> Runner:
    """Load the file into onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Its threads leave the cores to PyTorch between two frames.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run_onnx(picture: Tensor) -> Detections:
        boxes, scores, labels = session.run(None, {"picture": picture.numpy()})
        return torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(labels)

    return run_onnx


def write_program(program: ExportedProgram, metadata: dict[str, str], file: Path) -> None:
    """torch.export's file, with `metadata` in it as `metadata.json`."""
    content = io.BytesIO()  # torch reports a full disk as an internal error, so it writes to memory
    torch.export.save(
        program, content, extra_files={"metadata.json": json.dumps(metadata, indent=2)}
    )
    file.write_bytes(content.getbuffer())


def read_program(file: Path) -> Runner:
    """Load the file into PyTorch."""
    program = torch.export.load(io.BytesIO(file.read_bytes()))
    return torch.inference_mode()(program.module())


FORMATS = {".onnx": (write_onnx, read_onnx), ".pt2": (write_program, read_program)}


# -------------------------------------------------------------------------------- comparison


@torch.inference_mode()
def run_pytorch(detector: Detector, picture: Tensor) -> Detections:
    """The detector itself in float32: what the files are compared with."""
    [detections] = detector([picture.permute(2, 0, 1)])
    return detections["boxes"], detections["scores"], detections["labels"]


def run_in_turns(
    runners: dict[str, Runner], frames: dict[str, Tensor]
) -> tuple[dict[str, dict[str, Detections]], dict[str, float]]:
    """The detections of each runner in each frame, by their names, and its median time in ms.

    The first call of each, which sets it up, is not timed.
    """
    detections: dict[str, dict[str, Detections]] = {title: {} for title in runners}
    times: dict[str, list[float]] = {title: [] for title in runners}
    for runner in runners.values():
        runner(next(iter(frames.values())))
    rounds = TIMED_ROUNDS * list(frames)
    for name in tqdm(rounds, " and ".join(runners), unit="frame", leave=False, disable=None):
        for title, runner in runners.items():
            start = time.perf_counter()
            detections[title][name] = runner(frames[name])
            times[title].append(1000 * (time.perf_counter() - start))
    return detections, {title: statistics.median(values) for title, values in times.items()}


def deviation(expected: Detections, found: Detections, limit: float) -> tuple[float, float]:
    """How far boxes (px, of any side) and scores are from their partners, at most.

    Partners have one label, and differ by no more than the tolerances. A detection with a score
    below `limit` needs no partner: the last digits of its score decide if it is kept. Raises
    `ValueError` for any other detection without one.
    """
    boxes, scores, labels = (
        (one[:, None] - other).abs() for one, other in zip(expected, found, strict=True)
    )
    boxes = boxes.amax(dim=2)
    partners = (boxes <= BOX_TOLERANCE) & (scores <= SCORE_TOLERANCE) & (labels == 0)
    for own_scores, own_partners, box_gaps, score_gaps in (
        (expected[1], partners, boxes, scores),
        (found[1], partners.T, boxes.T, scores.T),
    ):
        alone = (own_scores >= limit) & ~own_partners.any(dim=1)
        for index in torch.where(alone)[0].tolist():
            gaps = zip(box_gaps[index].tolist(), score_gaps[index].tolist(), strict=True)
            box_gap, score_gap = min(gaps, default=(math.inf, math.inf))
            raise ValueError(
                f"PyTorch finds {len(expected[1])} boxes and the file {len(found[1])}; the "
                f"nearest to one with score {own_scores[index]:.3f} is {box_gap:.3g} px and "
                f"{score_gap:.2g} in score away, but {BOX_TOLERANCE} px and {SCORE_TOLERANCE} are "
                "allowed"
            )
    return max(boxes[partners].tolist(), default=0.0), max(scores[partners].tolist(), default=0.0)


def largest_deviation(
    expected: dict[str, Detections], found: dict[str, Detections], detector: Detector
) -> tuple[float, float]:
    """The largest `deviation` in any frame, in px and in score. Raises `UserError`."""
    deviations = []
    for name, reference in expected.items():
        _, scores, _ = reference
        full = len(scores) == detector.roi_heads.detections_per_img
        lowest = scores.min().item() if full else detector.roi_heads.score_thresh
        try:
            deviations.append(deviation(reference, found[name], lowest + SCORE_TOLERANCE))
        except ValueError as error:
            raise UserError(f"something else is found in {name}: {error}") from None
    boxes, scores = zip(*deviations, strict=True)
    return max(boxes), max(scores)


def write_compared(
    file: Path,
    program: ExportedProgram,
    metadata: dict[str, str],
    detector: Detector,
    frames: dict[str, Tensor],
) -> None:
    """Write a file that finds in the frames what the detector finds; print deviations and times.

    Raises `UserError` if it cannot be written or finds something else. An earlier file then stays.
    """
    write, read = FORMATS[file.suffix]

    def write_and_compare(unfinished: Path) -> None:
        write(program, metadata, unfinished)
        runners = {"PyTorch": partial(run_pytorch, detector), file.name: read(unfinished)}
        detections, times = run_in_turns(runners, frames)
        expected = detections["PyTorch"]
        try:
            px, score = largest_deviation(expected, detections[file.name], detector)
        except UserError as error:
            raise UserError(f"{file} is not written: {error}") from None
        count = sum(len(boxes) for boxes, _, _ in expected.values())
        print(
            f"{file}: {count} boxes in {len(frames)} frames, at most {px:.1g} px and {score:.1g} "
            f"in score from PyTorch's (allowed: {BOX_TOLERANCE} px, {SCORE_TOLERANCE}); "
            f"{times[file.name]:.0f} ms a frame, PyTorch {times['PyTorch']:.0f} ms"
        )

    write_atomically(file, write_and_compare)


def main() -> None:
    args = parse_arguments()
    # torch and torchvision warn their own developers.
    warnings.filterwarnings("ignore", module="torch")
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    refuse_bad_outputs(args.out, args.weights)

    # Network
    detector, classes = load_rgb_detector(args.weights)

    # Frames
    frames = sample_frames(args.data, args.list, args.frames)
    first = next(iter(frames.values()))
    height, width, _ = first.shape
    frames |= find_plain_picture(first, partial(run_pytorch, detector))

    # Files
    print(
        f"{args.weights}: {detector.settings['backbone']}, {detector.settings['min_size']} px; "
        f"pictures {width}x{height}; ONNX opset {OPSET}; {hardware.processor()}"
    )
    versions = hardware.versions()
    metadata = {
        "weights": args.weights.name,
        "classes": json.dumps(classes),
        "width": str(width),
        "height": str(height),
        "settings": json.dumps(detector.settings),
        **{name: versions[name] for name in ("git", "torch", "torchvision")},
    }
    program = Deployable(detector, height, width).program()
    for file in args.out:
        write_compared(file, program, metadata, detector, frames)


if __name__ == "__main__":
    run(main)

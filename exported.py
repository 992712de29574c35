"""Files of an exported detector: written, run, and compared with the detector itself."""

import io
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram
from tqdm import tqdm

from models import Detector
from utils import UserError

OPSET = 18  # of ONNX: the oldest that torch.onnx writes, as older runtimes can read it
BOX_TOLERANCE, SCORE_TOLERANCE = 0.25, 0.001  # px of the picture; scores are 0..1
TURNS = 3  # of all frames, for the latency

Detections = tuple[Tensor, Tensor, Tensor]  # boxes [N, 4] in px of the picture, scores [N], labels [N]
Detect = Callable[[Tensor], Detections]  # of a picture, uint8 [H, W, 3]


@torch.inference_mode()
def detect_here(detector: Detector, picture: Tensor) -> Detections:
    """What the files are compared with: the detector, in float32, in evaluation."""
    [found] = detector([picture.permute(2, 0, 1)])
    return found["boxes"], found["scores"], found["labels"]


def write_onnx(program: ExportedProgram, metadata: dict[str, str], file: Path) -> None:
    """One ONNX file with its weights, and `metadata` in its `metadata_props`. Raises `UserError` where this torch can't
    convert the program, as torch 2.6."""
    try:
        converted = torch.onnx.export(program, dynamo=True, opset_version=OPSET, input_names=["picture"],
                                      output_names=["boxes", "scores", "labels"], optimize=True, verbose=False)
    except (torch.onnx.OnnxExporterError, ImportError):  # the latter of an onnxscript older than torch
        raise UserError(f"torch {torch.__version__} cannot convert the network to ONNX: update torch and onnxscript, "
                        "or pass --out with a file that ends in .pt2") from None
    converted.model.metadata_props.update(metadata)
    converted.save(str(file))


def read_onnx(file: Path) -> Detect:
    """The file in onnxruntime, on the CPU, whose threads leave the cores to PyTorch between two frames."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda picture: tuple(map(torch.from_numpy, session.run(None, {"picture": picture.numpy()})))


def write_program(program: ExportedProgram, metadata: dict[str, str], file: Path) -> None:
    """torch.export's file, and `metadata` as `metadata.json` in it."""
    content = io.BytesIO()  # by way of memory, as `utils.save_torch`
    torch.export.save(program, content, extra_files={"metadata.json": json.dumps(metadata, indent=2)})
    file.write_bytes(content.getbuffer())


def read_program(file: Path) -> Detect:
    """The file in PyTorch."""
    return torch.inference_mode()(torch.export.load(io.BytesIO(file.read_bytes())).module())


FORMATS = {".onnx": (write_onnx, read_onnx), ".pt2": (write_program, read_program)}


def measure(programs: dict[str, Detect], frames: dict[str, Tensor]
            ) -> tuple[dict[str, dict[str, Detections]], dict[str, float]]:
    """What each program finds in each frame, by their names, and its median time for one in ms, in turns with the
    others. First calls, which set up, are not timed."""
    found: dict[str, dict[str, Detections]] = {title: {} for title in programs}
    times: dict[str, list[float]] = {title: [] for title in programs}
    for detect in programs.values():
        detect(next(iter(frames.values())))
    for name in tqdm(TURNS * list(frames), " and ".join(programs), unit="frame", leave=False, disable=None):
        for title, detect in programs.items():
            start = time.perf_counter()
            found[title][name] = detect(frames[name])
            times[title].append(1000 * (time.perf_counter() - start))
    return found, {title: statistics.median(values) for title, values in times.items()}


def differences(expected: Detections, found: Detections, limit: float) -> tuple[float, float]:
    """How far sides of boxes (px) and scores are from those of their partners, at most.

    Partners have one label and differ by less than the tolerances. A detection with a score below `limit` needs none:
    its last digits say whether it is kept. Raises `ValueError` for one that has none.
    """
    boxes, scores, labels = ((one[:, None] - other).abs() for one, other in zip(expected, found, strict=True))
    boxes = boxes.amax(dim=2)
    partners = (boxes <= BOX_TOLERANCE) & (scores <= SCORE_TOLERANCE) & (labels == 0)
    for own, theirs, box_gaps, score_gaps in ((expected[1], partners, boxes, scores),
                                              (found[1], partners.T, boxes.T, scores.T)):
        for place in torch.where((own >= limit) & ~theirs.any(dim=1))[0].tolist():
            box, score = min(zip(box_gaps[place].tolist(), score_gaps[place].tolist(), strict=True),
                             default=(math.inf, math.inf))
            raise ValueError(f"PyTorch finds {len(expected[1])} boxes and the file {len(found[1])}; of one with score "
                             f"{own[place]:.3f} the nearest is {box:.3g} px and {score:.2g} in score away, where "
                             f"{BOX_TOLERANCE} px and {SCORE_TOLERANCE} are allowed")
    return max(boxes[partners].tolist(), default=0.0), max(scores[partners].tolist(), default=0.0)


def largest_differences(expected: dict[str, Detections], found: dict[str, Detections], detector: Detector
                        ) -> tuple[float, float]:
    """The largest of all frames, in px and in score. Raises `UserError` that names the frame."""
    all_differences = []
    for name, reference in expected.items():
        _, scores, _ = reference
        full = len(scores) == detector.roi_heads.detections_per_img
        limit = (scores.min().item() if full else detector.roi_heads.score_thresh) + SCORE_TOLERANCE
        try:
            all_differences.append(differences(reference, found[name], limit))
        except ValueError as error:
            raise UserError(f"something else is found in {name}: {error}") from None
    boxes, scores = zip(*all_differences, strict=True)
    return max(boxes), max(scores)

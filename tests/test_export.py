"""Exported files: what they find beside what PyTorch finds, what they say of themselves, and what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT, run_script, the_error
from PIL import Image

import export
import exported
from cmkd.frames.layout import read_rgb
from deployable import DROPPED, Deployable, drop
from models import Detector, load_detector
from utils import UserError

pytestmark = pytest.mark.filterwarnings("ignore:`create_unbacked_symint` is deprecated")  # torchvision calls it
CLASSES = ["Pedestrian,Pedestrian_is_group"]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs/deploy.md").read_text(), flags=re.DOTALL)


def detector_of(seed=0, size=64, **options):
    torch.manual_seed(seed)
    return Detector(3, options.pop("num_classes", 2), "resnet18", "batch", min_size=size, **options).eval()


def pictures(count, height, width):
    """Blocks of random colours, uint8 [H, W, 3]: a network tells their places apart, as those of real pictures."""
    blocks = torch.randint(0, 256, (count, height // 8 + 1, width // 8 + 1, 3), dtype=torch.uint8)
    return list(blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :height, :width].contiguous())


def frames_of(data, name="val_night"):
    names = (data / f"{name}.txt").read_text().split()
    return {one: read_rgb(data / "images" / f"{one}.png").permute(1, 2, 0).contiguous() for one in names}


def save(detector, file):
    torch.save(detector.state_dict(), file)
    file.with_suffix(".json").write_text(json.dumps({**detector.settings, "classes": CLASSES}))
    return file


def teach(detector, frames, plain):
    """Have the classifier find something in frames, by scores around 0.5, and nothing in a plain picture: random
    weights are sure of nothing, and find something everywhere."""
    predictor, inputs = detector.roi_heads.box_predictor, []
    hook = predictor.register_forward_pre_hook(lambda _, regions: inputs.append(regions[0]))
    for picture in (*frames, plain):
        exported.detect_here(detector, picture)
    hook.remove()
    regions, of_plain = torch.cat(inputs).clone(), len(inputs[-1])
    with torch.no_grad():
        answers = torch.tensor([-1.0, 1]) @ predictor.cls_score(regions).T
        answers = 2 * (answers - answers.mean()) / answers.std()
        answers[-of_plain:] = -8
        regions = torch.cat([regions, torch.ones(len(regions), 1)], dim=1)  # for the bias
        solution = torch.linalg.lstsq(regions.double(), answers[:, None].double(), driver="gelsd").solution[:, 0]
        predictor.cls_score.weight[:] = torch.stack([0 * solution[:-1], solution[:-1]])
        predictor.cls_score.bias[:] = torch.stack([0 * solution[-1], solution[-1]])


@pytest.fixture(scope="module")
def student(synthetic, tmp_path_factory):
    detector, frames = detector_of(proposals=50), list(frames_of(synthetic).values())
    teach(detector, frames, torch.zeros_like(frames[0]))
    return save(detector, tmp_path_factory.mktemp("student") / "student.pth")


@pytest.fixture(scope="module")
def files(student, synthetic):
    """The finished script that made student.onnx and student.pt2, by its defaults beside the weights."""
    done = run_script("export.py", "--weights", student, "--data", synthetic, "--frames", 3)
    return done, student.with_suffix(".onnx"), student.with_suffix(".pt2")


def test_files_find_what_pytorch_finds(files, student, synthetic):
    """On every frame of the list, three of which the script has compared itself, and on a black one."""
    _, onnx_file, program_file = files
    detector = load_detector(student).eval()
    shown = frames_of(synthetic)
    shown["black"] = torch.zeros_like(next(iter(shown.values())))
    counts = {}
    for name, frame in shown.items():
        expected = exported.detect_here(detector, frame)
        counts[name] = len(expected[0])
        for found in (exported.read_onnx(onnx_file)(frame), exported.read_program(program_file)(frame)):
            assert [one.dtype for one in found] == [torch.float32, torch.float32, torch.int64]
            assert len(found[0]) == len(expected[0])
            box, score = exported.differences(expected, found, 0)
            assert (box < 1e-2, score < 1e-4) == (True, True)
            assert (found[1].diff() <= 0).all()
    assert counts.pop("black") == 0
    assert min(counts.values()) > 3


def test_the_script_says_what_it_compared(files):
    done, *written = files
    assert not done.stderr
    first, *lines = done.stdout.splitlines()
    assert "resnet18, 64 px; pictures 160x96; ONNX opset 18" in first
    for line, file in zip(lines, written, strict=True):
        boxes, frames, px, score, own, pytorch = map(float, re.fullmatch(
            rf"{file}: (\d+) boxes in (\d+) frames, at most (\S+) px and (\S+) in score from PyTorch's \(allowed: "
            r"0.25 px, 0.001\); (\d+) ms a frame, PyTorch (\d+) ms", line).groups())
        assert (frames, boxes > 9, px < 1e-2, score < 1e-4) == (4, True, True, True)  # a plain one among the frames
        assert own > 0 < pytorch


def test_files_say_what_they_are(files, student):
    _, onnx_file, program_file = files
    model = onnx.load(onnx_file)
    onnx.checker.check_model(model)
    assert {one.domain: one.version for one in model.opset_import}[""] == 18
    types = {onnx.TensorProto.DataType.Name(one.data_type) for one in model.graph.initializer}
    assert "FLOAT" in types
    assert not types & {"FLOAT16", "BFLOAT16", "DOUBLE"}
    session = onnxruntime.InferenceSession(onnx_file)
    assert [(one.name, one.shape, one.type) for one in session.get_inputs()] == [
        ("picture", [96, 160, 3], "tensor(uint8)")]
    assert [(one.name, one.shape[1:], one.type) for one in session.get_outputs()] == [
        ("boxes", [4], "tensor(float)"), ("scores", [], "tensor(float)"), ("labels", [], "tensor(int64)")]
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == CLASSES
    assert json.loads(metadata["settings"]) == load_detector(student).settings
    assert (metadata["weights"], metadata["width"], metadata["height"]) == ("student.pth", "160", "96")
    assert metadata["torch"] == torch.__version__
    assert metadata["git"]
    extra = {"metadata.json": ""}
    torch.export.load(program_file, extra_files=extra)
    assert json.loads(extra["metadata.json"]) == metadata


def test_pictures_of_another_size_are_errors(files):
    _, onnx_file, program_file = files
    other = torch.zeros(100, 160, 3, dtype=torch.uint8)
    with pytest.raises(Exception, match="Got: 100 Expected: 96"):
        exported.read_onnx(onnx_file)(other)
    with pytest.raises((AssertionError, RuntimeError), match="96"):
        exported.read_program(program_file)(other)


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_lines_of_the_document_run_without_this_repository(files, student, synthetic, tmp_path, example):
    assert len(example.splitlines()) <= 10
    for file in files[1:]:
        (tmp_path / f"cmkd_adv{file.suffix}").symlink_to(file)
    name, frame = next(iter(frames_of(synthetic).items()))
    shutil.copy(synthetic / "images" / f"{name}.png", tmp_path / "frame.png")
    (tmp_path / "example.py").write_text(example)
    modules = "{'models', 'torch'} if 'onnx' in open('example.py').read() else {'models', 'deployable'}"
    check = f"import runpy, sys; runpy.run_path('example.py'); assert not ({modules}) & set(sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", check], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    boxes, scores, _ = exported.detect_here(load_detector(student).eval(), frame)
    printed = [re.findall(r"\d[\d.]*", line) for line in done.stdout.splitlines()]
    assert len(printed) == len(boxes) > 3
    printed = torch.tensor([[float(number) for number in line] for line in printed])
    labels = torch.zeros_like(scores)
    exported.differences((boxes, scores, labels), (printed[:, 1:], printed[:, 0], labels), 0)


@pytest.mark.parametrize(("height", "width", "options"), [
    (240, 320, {"num_classes": 4, "size": 128}),
    (100, 230, {"size": 128, "proposals": 1000}),
    (51, 77, {"size": 64, "padding": 128, "max_size": 80})])
def test_the_graph_is_the_detector(height, width, options):
    """To the bit, also where sizes and classes are odd, or proposals fewer than may be. Of equal scores, which padding
    gives, either can be first."""
    detector = detector_of(1, **options)
    program = Deployable(detector, height, width).program().module()
    for picture in (*pictures(2, height, width), torch.zeros(height, width, 3, dtype=torch.uint8)):
        rows = [sorted(torch.cat([boxes, scores[:, None], labels[:, None]], dim=1).tolist())
                for boxes, scores, labels in (program(picture), exported.detect_here(detector, picture))]
        assert rows[0] == rows[1]
        assert len(rows[0]) > 3


def test_the_detector_itself_is_left_as_it_was():
    detector = detector_of()
    before = type(detector.rpn), type(detector.roi_heads)
    Deployable(detector, 64, 64)
    assert (type(detector.rpn), type(detector.roi_heads)) == before
    assert all(one.requires_grad for one in detector.parameters())


def test_a_graph_can_keep_a_single_box():
    """torchvision has torch.export believe that nms keeps two boxes at least."""
    class OfThree(torch.nn.Module):
        def forward(self, boxes, scores):
            return drop(boxes, scores, 0.01, 0.5)

    same = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11], [1, 0, 10, 10]])
    scores = torch.tensor([0.2, 0.9, 0.3])
    program = torch.export.export(OfThree(), (same, scores), strict=False).module()
    assert program(same, scores).tolist() == pytest.approx([DROPPED, 0.9, DROPPED])
    apart = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 11], [5, 5, 5, 10]])
    assert program(apart, scores).tolist() == pytest.approx([0.2, 0.9, DROPPED])  # the third has no width


BOXES = torch.tensor([[0.0, 0, 10, 20], [30, 0, 40, 20]])
FOUND = BOXES, torch.tensor([0.9, 0.051]), torch.tensor([1, 2])


@pytest.mark.parametrize(("found", "far"), [
    ((BOXES[:0], FOUND[1][:0], FOUND[2][:0]), "boxes and the file 0; of one with score 0.900 the nearest is inf px"),
    ((BOXES + torch.tensor([0, 0.5, 0, 0]), *FOUND[1:]), "score 0.900 the nearest is 0.5 px and 0 in score"),
    ((BOXES, FOUND[1] - torch.tensor([0.01, 0]), FOUND[2]), "score 0.900 the nearest is 0 px and 0.01 in score"),
    ((BOXES, FOUND[1], torch.tensor([2, 2])), "score 0.900 the nearest is 0 px"),
    ((torch.cat([BOXES, BOXES[:1] + 60]), torch.tensor([0.9, 0.051, 0.4]), torch.tensor([1, 2, 1])),
     "PyTorch finds 2 boxes and the file 3; of one with score 0.400 the nearest is 60 px"),
], ids=["nothing", "box", "score", "label", "one more"])
def test_differences_are_found(found, far):
    with pytest.raises(ValueError, match=re.escape(far)):
        exported.differences(FOUND, found, 0.052)


def test_differences_within_the_tolerances():
    moved = BOXES + 0.125, FOUND[1] - torch.tensor([2**-11, 0]), FOUND[2]
    assert exported.differences(FOUND, moved, 0.052) == pytest.approx((0.125, 2**-11), rel=1e-3)
    swapped = tuple(one.flip(0) for one in FOUND)
    assert exported.differences(FOUND, swapped, 0.052) == (0, 0)
    without_the_last = tuple(one[:1] for one in FOUND)  # its score is under the limit
    assert exported.differences(FOUND, without_the_last, 0.052) == (0, 0)
    nothing = tuple(one[:0] for one in FOUND)
    assert exported.differences(nothing, nothing, 0.052) == (0, 0)
    with pytest.raises(ValueError, match="score 0.051"):
        exported.differences(FOUND, without_the_last, 0.05)


def run_here(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, arguments)])
    export.main()


def test_a_file_that_finds_something_else_is_not_written(student, synthetic, tmp_path, monkeypatch):
    """The file is read as one whose boxes lie a pixel aside."""
    def read_aside(file):
        detect = exported.read_program(file)
        return lambda picture: (detect(picture)[0] + 1, *detect(picture)[1:])

    monkeypatch.setitem(exported.FORMATS, ".pt2", (exported.write_program, read_aside))
    earlier = tmp_path / "s.pt2"
    earlier.write_text("an earlier export")
    with pytest.raises(UserError, match=r"s.pt2 is not written: something else is found in \S+_night_\S+: PyT"):
        run_here(monkeypatch, "--weights", student, "--data", synthetic, "--out", earlier)
    assert earlier.read_text() == "an earlier export"
    assert list(tmp_path.iterdir()) == [earlier]


def test_an_earlier_export_is_replaced_and_no_empty_frame_is_said(synthetic, tmp_path, monkeypatch, capsys):
    """By a network that finds something everywhere."""
    weights = save(detector_of(2, proposals=20), tmp_path / "w.pth")
    (tmp_path / "w.pt2").write_text("an earlier export")
    run_here(monkeypatch, "--weights", weights, "--data", synthetic, "--frames", 1, "--out", tmp_path / "w.pt2")
    printed = capsys.readouterr()
    assert "warning: the network finds something in every picture of one grey value" in printed.err
    assert " boxes in 1 frames" in printed.out
    assert (tmp_path / "w.pt2").stat().st_size > 1e6


@pytest.fixture
def mixed(synthetic, copy_of):
    """A folder of which the second frame is of another size and the third is missing; `first` lists the first two."""
    data = copy_of(synthetic)
    first, second, third, *_ = names = (data / "val_night.txt").read_text().split()
    Image.fromarray(np.zeros((90, 160, 3), np.uint8)).save(data / "images" / f"{second}.png")
    (data / "images" / f"{third}.png").unlink()
    (data / "first.txt").write_text("\n".join(names[:2]))
    (data / "last.txt").write_text(third)
    return data


def test_bad_input_is_one_line(student, synthetic, mixed, tmp_path, monkeypatch, capsys):
    out = ["--out", tmp_path / "new/s.pt2"]
    teacher = save(Detector(6, 2, "resnet18", "batch", min_size=64), tmp_path / "teacher.pth")
    renamed = shutil.copy(student, tmp_path / "s.pt2")
    (tmp_path / "damaged.pth").write_bytes(b"PK")
    for weights, arguments, message in (
            (student, ["--data", mixed, "--list", "first", *out], "_01.png is 160x90, and the frames before it are"),
            (student, ["--data", mixed, "--list", "last", *out], "_02.png is missing: add it"),
            (student, ["--data", tmp_path / "no", *out], "no/val_night.txt is missing"),
            (student, ["--out", tmp_path / "s.pb"], "s.pb: name a file that ends in .onnx or .pt2"),
            (student, ["--out", ROOT / "LICENSE/s.onnx"], "LICENSE/s.onnx cannot be written"),
            (renamed, ["--out", renamed], "s.pt2 is the file of the weights: name another one"),
            (tmp_path / "no.pth", out, "no.pth is missing"),
            (tmp_path / "damaged.pth", out, "damaged.pth cannot be read as weights"),
            (teacher, out, "takes 6 channels, and a car's camera gives three")):
        with pytest.raises((UserError, export.WeightsError)) as caught:
            run_here(monkeypatch, "--data", synthetic, "--weights", weights, *arguments)
        assert message in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("package", export.PACKAGES)
def test_an_absent_package_is_named(student, synthetic, tmp_path, monkeypatch, package):
    """Its import is made to fail, as where it is not installed."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"an .onnx file needs {package}, which is not installed: pip install onnx"):
        run_here(monkeypatch, "--weights", student, "--data", synthetic, "--out", tmp_path / "s.onnx")
    assert not list(tmp_path.iterdir())


def test_errors_end_the_script(student, synthetic, tmp_path):
    """In one line, with nothing written, also where a package is absent that only some files need."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['onnxruntime'] = None\n")
    done = subprocess.run([sys.executable, ROOT / "export.py", "--weights", student, "--data", synthetic, "--out",
                           tmp_path / "s.pt2", tmp_path / "s.onnx"], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 2
    assert "export.py: error: an .onnx file needs onnxruntime" in the_error(done)
    assert not list(tmp_path.glob("s.*"))


@pytest.mark.parametrize("error", [torch.onnx.OnnxExporterError("step 3\nmany lines"), ModuleNotFoundError("torch_2")])
def test_a_torch_that_cannot_convert(monkeypatch, tmp_path, error):
    """Such as torch 2.6, or with an onnxscript that is older than torch."""
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(UserError, match="cannot convert the network to ONNX: update torch and onnxscript"):
        exported.write_onnx(None, {}, tmp_path / "s.onnx")

"""Exported files: they find what PyTorch finds, they say what they are, and errors are one line."""

import json
import re
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT, run_script, the_error
from PIL import Image

import export
from cmkd.frames.images import read_rgb
from cmkd.runtime.files import UserError
from export import DROPPED, Deployable, deviation, drop, run_pytorch
from models import Detector, load_detector

# torchvision calls it.
pytestmark = pytest.mark.filterwarnings("ignore:`create_unbacked_symint` is deprecated")
CLASSES = ["Pedestrian,Pedestrian_is_group"]
EXAMPLES = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs/deploy.md").read_text(), flags=re.DOTALL
)


def make_detector(seed=0, size=64, num_classes=2, **options):
    torch.manual_seed(seed)
    return Detector(3, num_classes, "resnet18", "batch", min_size=size, **options).eval()


def pictures(count, height, width):
    """Blocks of random colours, uint8 [H, W, 3], that differ from place to place, as real ones."""
    blocks = torch.randint(0, 256, (count, height // 8 + 1, width // 8 + 1, 3), dtype=torch.uint8)
    large = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
    return list(large[:, :height, :width].contiguous())


def frames_of(data, list_name="val_night"):
    names = (data / f"{list_name}.txt").read_text().split()
    return {
        name: read_rgb(data / "images" / f"{name}.png").permute(1, 2, 0).contiguous()
        for name in names
    }


def save(detector, file):
    torch.save(detector.state_dict(), file)
    file.with_suffix(".json").write_text(json.dumps({**detector.settings, "classes": CLASSES}))
    return file


def teach(detector, frames, plain):
    """Let the classifier find something in frames, with scores around 0.5, but not in `plain`.

    Random weights find something everywhere, with scores that are all alike.
    """
    predictor, inputs = detector.roi_heads.box_predictor, []
    hook = predictor.register_forward_pre_hook(lambda _, regions: inputs.append(regions[0]))
    for picture in (*frames, plain):
        run_pytorch(detector, picture)
    hook.remove()
    regions, of_plain = torch.cat(inputs).clone(), len(inputs[-1])
    with torch.no_grad():
        answers = torch.tensor([-1.0, 1]) @ predictor.cls_score(regions).T
        answers = 2 * (answers - answers.mean()) / answers.std()
        answers[-of_plain:] = -8
        regions = torch.cat([regions, torch.ones(len(regions), 1)], dim=1).double()  # for the bias
        solved = torch.linalg.lstsq(regions, answers[:, None].double(), driver="gelsd")
        *weight, bias = solved.solution[:, 0]
        weight = torch.stack(weight)
        predictor.cls_score.weight[:] = torch.stack([0 * weight, weight])
        predictor.cls_score.bias[:] = torch.stack([0 * bias, bias])


@pytest.fixture(scope="module")
def student(synthetic, tmp_path_factory):
    detector, frames = make_detector(proposals=50), list(frames_of(synthetic).values())
    teach(detector, frames, torch.zeros_like(frames[0]))
    return save(detector, tmp_path_factory.mktemp("student") / "student.pth")


@pytest.fixture(scope="module")
def detector(student):
    return load_detector(student).eval()


@pytest.fixture(scope="module")
def files(student, synthetic):
    """The finished script that made student.onnx and student.pt2, by default beside the weights."""
    done = run_script("export.py", "--weights", student, "--data", synthetic, "--frames", 3)
    return done, student.with_suffix(".onnx"), student.with_suffix(".pt2")


@pytest.fixture(scope="module")
def runners(files):
    """Both files, loaded."""
    _, onnx_file, program_file = files
    return export.read_onnx(onnx_file), export.read_program(program_file)


def test_files_find_what_pytorch_finds(runners, detector, synthetic):
    """In every frame of the list, three of which the script has compared, and in a black one."""
    shown = frames_of(synthetic)
    shown["black"] = torch.zeros_like(next(iter(shown.values())))
    counts = {}
    for name, frame in shown.items():
        expected = run_pytorch(detector, frame)
        counts[name] = len(expected[0])
        for runner in runners:
            found = runner(frame)
            assert [one.dtype for one in found] == [torch.float32, torch.float32, torch.int64]
            assert len(found[0]) == len(expected[0])
            px, score = deviation(expected, found, 0)
            assert (px < 1e-2, score < 1e-4) == (True, True)
            assert (found[1].diff() <= 0).all()
    assert counts.pop("black") == 0
    assert min(counts.values()) > 3


def test_the_script_says_what_it_compared(files):
    done, *written = files
    assert not done.stderr
    first, *lines = done.stdout.splitlines()
    assert "resnet18, 64 px; pictures 160x96; ONNX opset 18" in first
    for line, file in zip(lines, written, strict=True):
        pattern = (
            rf"{file}: (\d+) boxes in (\d+) frames, at most (\S+) px and (\S+) in score from "
            r"PyTorch's \(allowed: 0.25 px, 0.001\); (\d+) ms a frame, PyTorch (\d+) ms"
        )
        numbers = map(float, re.fullmatch(pattern, line).groups())
        boxes, frames, px, score, own, pytorch = numbers
        assert frames == 4  # a plain one among them
        assert (boxes > 9, px < 1e-2, score < 1e-4) == (True, True, True)
        assert own > 0 < pytorch


def test_files_say_what_they_are(files, detector):
    _, onnx_file, program_file = files
    model = onnx.load(onnx_file)
    onnx.checker.check_model(model)
    assert {one.domain: one.version for one in model.opset_import}[""] == 18
    types = {onnx.TensorProto.DataType.Name(one.data_type) for one in model.graph.initializer}
    assert "FLOAT" in types
    assert not types & {"FLOAT16", "BFLOAT16", "DOUBLE"}
    session = onnxruntime.InferenceSession(onnx_file)
    assert [(one.name, one.shape, one.type) for one in session.get_inputs()] == [
        ("picture", [96, 160, 3], "tensor(uint8)")
    ]
    assert [(one.name, one.shape[1:], one.type) for one in session.get_outputs()] == [
        ("boxes", [4], "tensor(float)"),
        ("scores", [], "tensor(float)"),
        ("labels", [], "tensor(int64)"),
    ]
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == CLASSES
    assert json.loads(metadata["settings"]) == detector.settings
    assert metadata["weights"] == "student.pth"
    assert (metadata["width"], metadata["height"]) == ("160", "96")
    assert metadata["torch"] == torch.__version__
    assert metadata["git"]
    extra = {"metadata.json": ""}
    torch.export.load(program_file, extra_files=extra)
    assert json.loads(extra["metadata.json"]) == metadata


def test_pictures_of_another_size_are_errors(runners):
    other = torch.zeros(100, 160, 3, dtype=torch.uint8)
    run_onnx, run_program = runners
    with pytest.raises(Exception, match="Got: 100 Expected: 96"):
        run_onnx(other)
    with pytest.raises((AssertionError, RuntimeError), match="96"):
        run_program(other)


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_lines_of_the_document_run_without_this_repository(
    files, detector, synthetic, tmp_path, example
):
    assert len(list(filter(None, example.splitlines()))) <= 10
    for file in files[1:]:
        (tmp_path / f"cmkd_adv{file.suffix}").symlink_to(file)
    name, frame = next(iter(frames_of(synthetic).items()))
    shutil.copy(synthetic / "images" / f"{name}.png", tmp_path / "frame.png")
    (tmp_path / "example.py").write_text(example)
    modules = "{'models', 'export'}"
    if "onnx" in example:
        modules = "{'models', 'torch'}"
    check = (
        f"import runpy, sys; runpy.run_path('example.py'); assert not {modules} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", check], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    boxes, scores, _ = run_pytorch(detector, frame)
    printed = [re.findall(r"\d[\d.]*", line) for line in done.stdout.splitlines()]
    assert len(printed) == len(boxes) > 3
    printed = torch.tensor([[float(number) for number in line] for line in printed])
    labels = torch.zeros_like(scores)
    deviation((boxes, scores, labels), (printed[:, 1:], printed[:, 0], labels), 0)


@pytest.mark.parametrize(
    ("height", "width", "options"),
    [
        (100, 230, {"num_classes": 4, "size": 128, "proposals": 1000}),
        (51, 77, {"size": 64, "padding": 128, "max_size": 80}),
    ],
)
def test_the_graph_is_the_detector(height, width, options):
    """To the bit, with odd sizes and classes too, or fewer proposals than there may be.

    Padding gives equal scores, of which any can be first.
    """
    detector = make_detector(1, **options)
    program = Deployable(detector, height, width).program().module()
    for picture in (*pictures(2, height, width), torch.zeros(height, width, 3, dtype=torch.uint8)):
        rows = [
            sorted(torch.cat([boxes, scores[:, None], labels[:, None]], dim=1).tolist())
            for boxes, scores, labels in (program(picture), run_pytorch(detector, picture))
        ]
        assert rows[0] == rows[1]
        assert len(rows[0]) > 3


def test_the_detector_itself_is_left_as_it_was():
    detector = make_detector()
    before = type(detector.rpn), type(detector.roi_heads)
    Deployable(detector, 64, 64)
    assert (type(detector.rpn), type(detector.roi_heads)) == before
    assert all(one.requires_grad for one in detector.parameters())


def test_a_graph_can_keep_a_single_box():
    """torchvision tells torch.export that nms keeps two boxes at least."""

    class OfThree(torch.nn.Module):
        def forward(self, boxes, scores):
            return drop(boxes, scores, 0.01, 0.5)

    same = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11], [1, 0, 10, 10]])
    scores = torch.tensor([0.2, 0.9, 0.3])
    program = torch.export.export(OfThree(), (same, scores), strict=False).module()
    assert program(same, scores).tolist() == pytest.approx([DROPPED, 0.9, DROPPED])
    apart = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 11], [5, 5, 5, 10]])
    # The third has no width.
    assert program(apart, scores).tolist() == pytest.approx([0.2, 0.9, DROPPED])


BOXES = torch.tensor([[0.0, 0, 10, 20], [30, 0, 40, 20]])
SCORES, LABELS = torch.tensor([0.9, 0.051]), torch.tensor([1, 2])
FOUND = BOXES, SCORES, LABELS
ONE_MORE = (
    torch.cat([BOXES, BOXES[:1] + 60]),
    torch.tensor([0.9, 0.051, 0.4]),
    torch.tensor([1, 2, 1]),
)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            (BOXES[:0], SCORES[:0], LABELS[:0]),
            "boxes and the file 0; the nearest to one with score 0.900 is inf px",
        ),
        (
            (BOXES + torch.tensor([0, 0.5, 0, 0]), SCORES, LABELS),
            "score 0.900 is 0.5 px and 0 in score",
        ),
        (
            (BOXES, SCORES - torch.tensor([0.01, 0]), LABELS),
            "score 0.900 is 0 px and 0.01 in score",
        ),
        ((BOXES, SCORES, torch.tensor([2, 2])), "score 0.900 is 0 px"),
        (
            ONE_MORE,
            "PyTorch finds 2 boxes and the file 3; the nearest to one with score 0.400 is 60 px",
        ),
    ],
    ids=["nothing", "box", "score", "label", "one more"],
)
def test_deviations_are_found(found, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        deviation(FOUND, found, 0.052)


def test_deviations_within_the_tolerances():
    moved = BOXES + 0.125, SCORES - torch.tensor([2**-11, 0]), LABELS
    assert deviation(FOUND, moved, 0.052) == pytest.approx((0.125, 2**-11), rel=1e-3)
    swapped = tuple(one.flip(0) for one in FOUND)
    assert deviation(FOUND, swapped, 0.052) == (0, 0)
    without_the_last = tuple(one[:1] for one in FOUND)  # its score is under the limit
    assert deviation(FOUND, without_the_last, 0.052) == (0, 0)
    nothing = tuple(one[:0] for one in FOUND)
    assert deviation(nothing, nothing, 0.052) == (0, 0)
    with pytest.raises(ValueError, match="score 0.051"):
        deviation(FOUND, without_the_last, 0.05)


def run_here(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, arguments)])
    export.main()


@pytest.fixture
def quick(monkeypatch):
    """Replace the .pt2 file, which takes seconds to make, by one that a given runner stands for."""

    def replace(runner):
        def write(_, __, file):
            file.write_text("the new file")

        monkeypatch.setattr(Deployable, "program", lambda _: None)
        monkeypatch.setitem(export.FORMATS, ".pt2", (write, lambda _: runner))

    return replace


def test_a_file_that_finds_something_else_is_not_written(
    quick, student, detector, synthetic, tmp_path, monkeypatch
):
    """Its boxes lie a pixel aside."""

    def run_aside(picture):
        boxes, scores, labels = run_pytorch(detector, picture)
        return boxes + 1, scores, labels

    quick(run_aside)
    earlier = tmp_path / "s.pt2"
    earlier.write_text("an earlier export")
    message = r"s.pt2 is not written: something else is found in \S+_night_\S+: PyT"
    with pytest.raises(UserError, match=message):
        run_here(monkeypatch, "--weights", student, "--data", synthetic, "--out", earlier)
    assert earlier.read_text() == "an earlier export"
    assert list(tmp_path.iterdir()) == [earlier]


def test_an_earlier_export_is_replaced_and_no_empty_frame_is_said(
    quick, synthetic, tmp_path, monkeypatch, capsys
):
    """By a network that finds something everywhere."""
    detector = make_detector(2, proposals=20)
    weights, out = save(detector, tmp_path / "w.pth"), tmp_path / "w.pt2"
    quick(partial(run_pytorch, detector))
    out.write_text("an earlier export")
    places = ["--weights", weights, "--data", synthetic, "--out", out]
    run_here(monkeypatch, *places, "--frames", 1)
    printed = capsys.readouterr()
    assert "warning: the network finds something in every picture of one grey value" in printed.err
    assert " boxes in 1 frames" in printed.out
    assert out.read_text() == "the new file"


@pytest.fixture
def mixed(synthetic, copy_of):
    """The second frame has another size, and the third is missing; `first` lists the first two."""
    data = copy_of(synthetic)
    first, second, third, *_ = (data / "val_night.txt").read_text().split()
    Image.fromarray(np.zeros((90, 160, 3), np.uint8)).save(data / "images" / f"{second}.png")
    (data / "images" / f"{third}.png").unlink()
    (data / "first.txt").write_text(f"{first}\n{second}")
    (data / "last.txt").write_text(f"\n{third}")
    return data


def test_bad_input_is_one_line(student, synthetic, mixed, tmp_path, monkeypatch):
    out = ["--out", tmp_path / "new/s.pt2"]
    teacher = save(Detector(6, 2, "resnet18", "batch", min_size=64), tmp_path / "teacher.pth")
    renamed = shutil.copy(student, tmp_path / "s.pt2")
    (tmp_path / "damaged.pth").write_bytes(b"PK")
    first, last = (["--data", mixed, "--list", name, *out] for name in ("first", "last"))
    for weights, arguments, message in (
        (student, first, "_01.png is 160x90, and the frames before it are 160x96"),
        (student, last, "last.txt:2: "),
        (student, last, "_02.png (or .jpg) is missing: add it"),
        (student, ["--data", tmp_path / "no", *out], "no/val_night.txt is missing"),
        (student, ["--out", tmp_path / "s.pb"], "s.pb: name a file that ends in .onnx or .pt2"),
        (student, ["--out", ROOT / "LICENSE/s.onnx"], "LICENSE/s.onnx cannot be written"),
        (renamed, ["--out", renamed], "s.pt2 is the file of the weights: name another one"),
        (tmp_path / "no.pth", out, "no.pth is missing"),
        (tmp_path / "damaged.pth", out, "damaged.pth cannot be read as weights"),
        (teacher, out, "needs gated slices, but this takes RGB alone: pass a student"),
    ):
        with pytest.raises(UserError) as caught:
            run_here(monkeypatch, "--data", synthetic, "--weights", weights, *arguments)
        assert message in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("package", export.PACKAGES)
def test_an_absent_package_is_named(student, synthetic, tmp_path, monkeypatch, package):
    """The test makes its import fail, as if it were not installed."""
    monkeypatch.setitem(sys.modules, package, None)
    message = f"an .onnx file needs {package}, which is not installed: pip install onnx"
    places = ["--weights", student, "--data", synthetic, "--out", tmp_path / "s.onnx"]
    with pytest.raises(UserError, match=message):
        run_here(monkeypatch, *places)
    assert not list(tmp_path.iterdir())


def test_errors_end_the_script(student, synthetic, tmp_path, monkeypatch):
    """In one line, with nothing written, even if only some of the files need what is absent."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    files = tmp_path / "s.pt2", tmp_path / "s.onnx"
    places = ["--weights", student, "--data", synthetic, "--out", *files]
    done = run_script("export.py", *places, expect=2)
    assert "export.py: error: an .onnx file needs onnxruntime" in the_error(done)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error", [torch.onnx.OnnxExporterError("step 3\nmany lines"), ModuleNotFoundError("torch_2")]
)
def test_a_torch_that_cannot_convert(monkeypatch, tmp_path, error):
    """Such as torch 2.6, or one with an older onnxscript."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torch.onnx, "export", fail)
    message = "cannot convert the network to ONNX: update torch and onnxscript"
    with pytest.raises(UserError, match=message):
        export.write_onnx(None, {}, tmp_path / "s.onnx")

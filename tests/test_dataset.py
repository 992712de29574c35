"""The prepared layout -> samples: values, coordinates, classes, and errors in the input."""

import hashlib
import json
import pickle
import sys
from functools import partial

import numpy as np
import pytest
import torch
from conftest import label_line, write_16_bit_colour_png, write_frame
from PIL import Image

import dataset as dataset_module
from benchmarks.long_list import Opening, link_frames
from benchmarks.measure import Side
from cmkd.evaluation.metrics import coco_metrics
from cmkd.evaluation.predict import to_coco_results
from cmkd.frames.annotations import CLASS_SETS, is_ignored, read_labels
from cmkd.frames.layout import IMAGE_FOLDERS, condition_lists
from cmkd.runtime import distributed
from cmkd.runtime.files import UserError
from dataset import SeeingThroughFog, TrainingBatches, make_loader


def test_six_channels_in_order(frames):
    image, target = SeeingThroughFog(frames, "train_night")[0]
    assert image.dtype == torch.uint8
    assert image.shape == (6, 96, 160)
    assert image[:, 0, 0].tolist() == [0, 1, 2, 10, 20, 30]
    assert target["name"] == "a"
    assert torch.equal(SeeingThroughFog(frames, "train_night", "rgb")[0][0], image[:3])


def test_a_loop_over_the_dataset_ends(frames):
    dataset = SeeingThroughFog(frames, "train_night")
    assert [target["name"] for _, target in dataset] == ["a", "b"]
    assert dataset[-1][1]["name"] == "b"


@pytest.mark.parametrize("size", [(1280, 768), (213, 128), (640, 480)])
def test_label_space_is_scaled_to_the_stored_size(tmp_path, size):
    width, height = size
    write_frame(tmp_path, "a", size, label_line(box=(128, 72, 640, 360)))
    (tmp_path / "one.txt").write_text("a\n")
    dataset = SeeingThroughFog(tmp_path, "one")
    _, target = dataset[0]
    expected = torch.tensor([[0.1 * width, 0.1 * height, 0.5 * width, 0.5 * height]])
    torch.testing.assert_close(target["boxes"], expected)
    torch.testing.assert_close(target["area"], torch.tensor([0.16 * width * height]))
    [annotation] = dataset.ground_truth()["annotations"]
    assert annotation["bbox"] == pytest.approx(
        [0.1 * width, 0.1 * height, 0.4 * width, 0.4 * height], rel=1e-6
    )


def test_published_vertical_scale_at_768_rows(tmp_path):
    write_frame(tmp_path, "a", (1280, 768), label_line(box=(10, 300, 20, 600)))
    (tmp_path / "one.txt").write_text("a")
    boxes = SeeingThroughFog(tmp_path, "one")[0][1]["boxes"]
    torch.testing.assert_close(
        boxes, torch.tensor([[10.0, 300 * 768 / 720, 20.0, 600 * 768 / 720]])
    )


def test_frame_without_a_box(frames):
    _, target = SeeingThroughFog(frames, "train_night")[1]
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == target["area"].shape == target["iscrowd"].shape == (0,)
    assert target["labels"].dtype == torch.int64


def test_degenerate_and_outlying_boxes(tmp_path):
    lines = [
        label_line(box=box)
        for box in [
            (5, 5, 5, 50),
            (5, 5, 50, 5),
            (0, 0, 0, 0),
            (-64, -72, 128, 72),
            (1300, 10, 1400, 20),
        ]
    ]
    write_frame(tmp_path, "a", (1280, 720), "".join(lines) + "traffic light 0 0 -1\n")
    (tmp_path / "one.txt").write_text("a\n")
    boxes = SeeingThroughFog(tmp_path, "one")[0][1]["boxes"]
    assert boxes.tolist() == [[0, 0, 128, 72]]


@pytest.mark.parametrize(
    ("slice_image", "expected"),
    [
        (np.full((96, 160), 77, np.uint8), 77),
        (np.full((96, 160, 3), 77, np.uint8), 77),
        (np.full((96, 160, 4), 77, np.uint8), 77),
        (np.full((96, 160), 1023, np.uint16), 255),
        (np.full((96, 160), 402, np.uint16), 100),
    ],
)
def test_slices_are_grey_however_stored(frames, slice_image, expected):
    Image.fromarray(slice_image).save(frames / "gated1" / "a.png")
    image, _ = SeeingThroughFog(frames, "train_night")[0]
    assert image[4].unique().tolist() == [expected]
    assert image[3, 0, 0] == 10


def test_16_bit_colour_slice(frames):
    values = np.add.outer(8 * np.arange(96), np.arange(160)).clip(max=1023)
    write_16_bit_colour_png(frames / "gated1" / "a.png", np.stack([values] * 3, axis=-1))
    image, _ = SeeingThroughFog(frames, "train_night")[0]
    assert torch.equal(image[4], torch.from_numpy(values >> 2).to(torch.uint8))


def test_jpg_and_official_list_form(tmp_path):
    write_frame(tmp_path, "2018-02-06_14-25-51_00400")
    png = tmp_path / "images" / "2018-02-06_14-25-51_00400.png"
    Image.open(png).save(png.with_suffix(".jpg"))
    png.unlink()
    (tmp_path / "one.txt").write_text("\ufeff2018-02-06_14-25-51,00400\r\n\r\n", encoding="utf-8")
    dataset = SeeingThroughFog(tmp_path, "one")
    assert list(dataset.names) == ["2018-02-06_14-25-51_00400"]
    assert dataset[0][0].shape == (6, 96, 160)


def test_png_and_jpg_side_by_side(frames):
    for file in ("images/b", "gated1/a"):
        png = frames / f"{file}.png"
        Image.open(png).save(png.with_suffix(".jpg"))
        png.unlink()
    (frames / "images" / "a.jpg").write_bytes(b"not read: there is a PNG")
    dataset = SeeingThroughFog(frames, "train_night")
    files = [
        [str(file.relative_to(frames)) for file in dataset.image_files(index)] for index in range(2)
    ]
    assert files == [
        ["images/a.png", "gated0/a.png", "gated1/a.jpg", "gated2/a.png"],
        ["images/b.jpg", "gated0/b.png", "gated1/b.png", "gated2/b.png"],
    ]
    assert dataset[0][0].shape == dataset[1][0].shape == (6, 96, 160)


def test_classes(tmp_path):
    kinds = ("Pedestrian", "Pedestrian_is_group", "RidableVehicle", "Moose", "PassengerCar")
    write_frame(tmp_path, "a", labels="".join(label_line(kind) for kind in kinds))
    (tmp_path / "one.txt").write_text("a\n")

    def labels(*classes):
        return SeeingThroughFog(tmp_path, "one", classes=list(classes))[0][1]["labels"].tolist()

    assert SeeingThroughFog(tmp_path, "one")[0][1]["labels"].tolist() == [1, 1]
    assert labels("vru") == [1, 1, 1]
    assert labels("vru", "Moose") == [1, 1, 1, 2]
    assert labels("Moose,PassengerCar") == [1, 1]
    assert labels("vru,Moose") == [1, 1, 1, 1]
    assert SeeingThroughFog(tmp_path, "one", classes=["vru", "Moose"]).num_classes == 3
    assert labels("train") == []  # official, but not in this folder


def test_flip_mirrors_all_channels_and_boxes(tmp_path):
    for index in range(20):
        write_frame(tmp_path, f"f{index}", (160, 96), label_line(box=(0, 0, 128, 72)))
    (tmp_path / "one.txt").write_text("\n".join(f"f{index}" for index in range(20)))
    plain, flipped = SeeingThroughFog(tmp_path, "one"), SeeingThroughFog(tmp_path, "one", flip=True)
    flipped.seed_flips(1)
    was_flipped = []
    for index in range(20):
        image, target = plain[index]
        mirrored, mirrored_target = flipped[index]
        was_flipped.append(not torch.equal(image, mirrored))
        if was_flipped[-1]:
            assert torch.equal(mirrored, image.flip(-1))
            assert mirrored_target["boxes"].tolist() == [[144, 0, 160, pytest.approx(9.6)]]
        else:
            assert torch.equal(mirrored_target["boxes"], target["boxes"])
    assert 3 < sum(was_flipped) < 17
    assert all(torch.equal(flipped[index][0], flipped[index][0]) for index in range(20))
    flipped.seed_flips(2)
    assert was_flipped != [
        not torch.equal(plain[index][0], flipped[index][0]) for index in range(20)
    ]


def test_the_order_follows_from_the_seed(frames):
    loader = make_loader(
        SeeingThroughFog(frames, "train_night"), batch_size=1, workers=0, shuffle=True
    )

    def order(seed, frames_done=0):
        loader.batch_sampler.begin(seed, frames_done)
        return [targets[0]["name"] for _, targets in loader]

    assert order(1) == order(1)
    assert len({tuple(order(seed)) for seed in range(10)}) == 2
    assert order(1, frames_done=1) == order(1)[1:]


@pytest.mark.parametrize(
    ("frames", "batch_size", "world"), [(10, 2, 1), (10, 2, 2), (11, 2, 2), (1, 2, 3), (9, 4, 2)]
)
def test_processes_share_every_batch(monkeypatch, frames, batch_size, world):
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    parts = []
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        batches = TrainingBatches(frames, batch_size)
        batches.begin(seed=3)
        assert len(list(batches)) == len(batches)
        parts.append(list(batches))
    for step, shares in enumerate(zip(*parts, strict=True)):
        assert len({len(share) for share in shares}) == 1  # a mean of means is the mean
        expected = batches.order[step * batch_size * world : (step + 1) * batch_size * world]
        assert [index for share in shares for index in share][: len(expected)] == expected
    seen = [index for share in parts for batch in share for index in batch]
    assert set(seen) == set(range(frames))
    assert len(seen) - frames < world


@pytest.mark.parametrize("world", [1, 2, 3])
def test_in_evaluation_each_frame_is_read_once(frames, monkeypatch, world):
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    names = []
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        loader = make_loader(SeeingThroughFog(frames, "val_night"), batch_size=2, workers=0)
        names += [target["name"] for _, targets in loader for target in targets]
    assert sorted(names) == ["a", "b"]


def change(file, damage):
    """A function that damages the content of one file in a folder."""
    return lambda root: (root / file).write_bytes(damage((root / file).read_bytes()))


def write(file, content):
    """A function that replaces the content of one file in a folder."""
    return change(file, lambda _: content)


def remove(file):
    """A function that removes one file of a folder."""
    return lambda root: (root / file).unlink()


def save(file, image, file_format=None):
    """A function that replaces one image, an array, in a folder."""
    return lambda root: Image.fromarray(image).save(root / file, file_format)


def add_label(line):
    """A function that adds a second line to the labels of frame a."""
    return write("gated_labels/a.txt", (label_line() + line).encode())


SLICE = np.zeros((96, 160), np.uint8)
BAD_INPUT = {
    "missing list": (remove("train_night.txt"), "train_night.txt is missing"),
    "empty list": (write("train_night.txt", b"\n \n"), "train_night.txt is empty"),
    "binary list": (write("train_night.txt", b"\xff\xfe\x00a"), "cannot be read as"),
    "frame twice": (write("train_night.txt", b"a\nb\na\n"), "train_night.txt:3: a is in line 1"),
    "leaving the folder": (write("train_night.txt", b"a\n../b\n"), "train_night.txt:2: "),
    "missing slice": (remove("gated1/b.png"), "train_night.txt:2: "),
    "missing labels": (remove("gated_labels/b.txt"), "gated_labels/b.txt is missing: add it"),
    "truncated slice": (
        change("gated2/a.png", lambda content: content[:90]),
        "gated2/a.png cannot be read",
    ),
    "empty image": (write("images/a.png", b""), "images/a.png cannot be read"),
    "WebP named .png": (
        save("gated0/a.png", SLICE, "WEBP"),
        "gated0/a.png cannot be read (not a whole PNG or JPEG)",
    ),
    "other size": (save("gated0/a.png", SLICE[:48, :80]), "gated0/a.png is 80x48 but "),
    "16-bit range": (
        save("gated0/a.png", np.full((96, 160), 4095, np.uint16)),
        "gated0/a.png has 16 bits and values up to 4095",
    ),
    "column count": (add_label("Pedestrian 0 0 -1 1 2 3\n"), "a.txt:2: 7 columns"),
    "no number": (
        add_label(label_line(box=("x", 1, 2, 3))),
        "a.txt:2: columns 4-7 (counted from 0)",
    ),
    "infinite box": (
        add_label(label_line(box=(1, 1, "inf", 3))),
        "a.txt:2: box 1 1 inf 3 is not x0 <= x1",
    ),
    "infinite row": (
        add_label(label_line(box=(1, 1, 2, "inf"))),
        "a.txt:2: box 1 1 2 inf is not x0 <= x1",
    ),
    "swapped rows": (add_label(label_line(box=(1, 9, 2, 3))), "a.txt:2: box 1 9 2 3 is not"),
    "NaN box": (add_label(label_line(box=("nan", 1, 2, 3))), "a.txt:2: box nan"),
    "swapped corners": (add_label(label_line(box=(9, 1, 2, 3))), "a.txt:2: box 9"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_named(frames, case):
    damage, message = BAD_INPUT[case]
    SeeingThroughFog(frames, "train_night")[0]
    damage(frames)
    with pytest.raises(UserError) as error:
        SeeingThroughFog(frames, "train_night")[0]
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["Pedestrian", "Pedestrian"], "Pedestrian occurs twice"),
        (["vru", "Pedestrian"], "Pedestrian occurs twice"),
        (["Pedestrian,Pedestrian"], "Pedestrian occurs twice"),
        (["Pedestrian,,Obstacle"], "a name is empty"),
        ([""], "a name is empty"),
    ],
)
def test_impossible_classes(frames, classes, message):
    with pytest.raises(UserError, match=f"^--classes .*{message}"):
        SeeingThroughFog(frames, "train_night", classes=classes)


def test_own_class_and_a_bad_label_of_another_frame(frames):
    (frames / "gated_labels" / "unlisted.txt").write_text("Deer 0 0\n")
    (frames / "gated_labels" / "another.txt").write_text(label_line("Deer"))
    assert SeeingThroughFog(frames, "train_night", classes=["Deer"]).num_classes == 2
    with pytest.raises(UserError, match="'Moose'; they have: Deer, Pedestrian"):
        SeeingThroughFog(frames, "train_night", classes=["Moose"])


def test_unknown_class(frames):
    with pytest.raises(UserError, match="'Pedestrain'.*they have: Pedestrian"):
        SeeingThroughFog(frames, "train_night", classes=["Pedestrain"])


IGNORE_LINES = (
    label_line(box=(0, 0, 64, 72)),
    label_line("Pedestrian_is_group", (640, 0, 1280, 360)),
    label_line("DontCare", (0, 360, 640, 720)),
    label_line("PassengerCar", (10, 10, 600, 300)),
)


@pytest.mark.parametrize(
    ("ignore", "labels"),
    [
        (None, [1, 1]),
        (["none"], [1, 1]),
        ([], [1, 0, 0]),
        (["DontCare"], [1, 1, 0]),
        (["PassengerCar"], [1, 1, 0]),
    ],
)
def test_ignore_regions_come_last_with_label_0(tmp_path, ignore, labels):
    write_frame(tmp_path, "a", (1280, 720), "".join(IGNORE_LINES[::-1]))
    (tmp_path / "one.txt").write_text("a\n")
    dataset = SeeingThroughFog(tmp_path, "one", ignore=ignore)
    target = dataset[0][1]
    assert target["labels"].tolist() == labels
    assert target["iscrowd"].tolist() == [int(label == 0) for label in labels]
    if ignore == []:
        assert target["boxes"].tolist() == [[0, 0, 64, 72], [0, 360, 640, 720], [640, 0, 1280, 360]]
    assert [one["iscrowd"] for one in dataset.ground_truth()["annotations"]] == target[
        "iscrowd"
    ].tolist()


def test_ignore_takes_patterns(tmp_path):
    write_frame(tmp_path, "a", labels=label_line() + label_line("Deer_far"))
    (tmp_path / "one.txt").write_text("a")
    labels = SeeingThroughFog(tmp_path, "one", ignore=["Deer*"])[0][1]["labels"]
    assert labels.tolist() == [1, 0]
    with pytest.raises(
        UserError, match=r"--ignore: no label in .* is 'Moose\*'; they have: Deer_far"
    ):
        SeeingThroughFog(tmp_path, "one", ignore=["Deer*", "Moose*"])


def test_an_ignore_region_is_a_crowd_of_every_category(tmp_path):
    write_frame(tmp_path, "a", (1280, 720), IGNORE_LINES[2] + IGNORE_LINES[3])
    (tmp_path / "one.txt").write_text("a\n")
    dataset = SeeingThroughFog(
        tmp_path, "one", classes=["Pedestrian", "PassengerCar"], ignore=["DontCare"]
    )
    found = [(one["category_id"], one["iscrowd"]) for one in dataset.ground_truth()["annotations"]]
    assert found == [(2, 0), (1, 1), (2, 1)]
    assert dataset.has_boxes
    assert not SeeingThroughFog(
        tmp_path, "one", classes=["Pedestrian"], ignore=["DontCare"]
    ).has_boxes


def test_a_detection_on_an_ignore_region_costs_nothing(tmp_path):
    write_frame(tmp_path, "a", (1280, 720), IGNORE_LINES[0] + IGNORE_LINES[2])
    (tmp_path / "one.txt").write_text("a\n")
    detections = [
        {
            "boxes": torch.tensor([[100.0, 400.0, 200.0, 600.0], [0.0, 0.0, 64.0, 72.0]]),
            "labels": torch.tensor([1, 1]),
            "scores": torch.tensor([0.9, 0.5]),
        }
    ]
    for ignore, expected in ((None, 0.5), ([], 1.0)):
        dataset = SeeingThroughFog(tmp_path, "one", ignore=ignore)
        results = to_coco_results(detections, [dataset[0][1]])
        assert coco_metrics(dataset.ground_truth(), results)["AP"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("ignore", "message"),
    [
        (
            ["Pedestrian", "Pedestrian_is_group"],
            "leaves nothing of --classes Pedestrian,Pedestrian_is_group",
        ),
        (["Dontcare"], "--ignore: no label in .* is 'Dontcare'"),
    ],
)
def test_impossible_ignore(frames, ignore, message):
    with pytest.raises(UserError, match=message):
        SeeingThroughFog(frames, "train_night", ignore=ignore)


LABEL_OF = {"PassengerCar": 1, **dict.fromkeys(CLASS_SETS["vru"].split(","), 2)}


def odd_frames(root):
    """Frames with names, boxes and labels that are rare in practice, in the list `odd`."""
    kinds = ("Pedestrian", "DontCare", "RidableVehicle", "PassengerCar", "Pedestrian_is_group")
    boxes = ((0.1, 2e-7, 1279.7, 1 / 3), (-5.5, 3, 1300, 9e2), (1, 2, 1.0000001, 99), (7, 7, 7, 9))
    lines = [label_line(kind, box) for kind in kinds for box in (*boxes, (2000, 1, 2001, 2))]
    lines[3:3] = [
        label_line().replace("True True", "False unknown"),
        label_line().replace("-1000 -1000 -1000", "1.5 -2 30.25", 1),
        " ".join(label_line("RidableVehicle").split()[:15]) + "\n",  # KITTI
    ]
    contents = ["".join(lines), "", "".join(lines[::-1]), lines[0]]
    names = ["n\u00e4chste_00001", "empty", "2018-02-06_14-25-51_00400", "b"]
    for name, labels in zip(names, contents, strict=True):
        write_frame(root, name, labels=labels)
    (root / "odd.txt").write_text("\n".join(names), encoding="utf-8")
    return names


def plain_objects(file, ignored):
    """The labels of a frame with their numbers, as Python objects from the file."""
    labels = read_labels(file)
    kept = [line for line in labels if not is_ignored(line.name, ignored)]
    trained = [(LABEL_OF[line.name], line) for line in kept if line.name in LABEL_OF]
    return trained + [(0, line) for line in labels if is_ignored(line.name, ignored)]


def plain_boxes(objects):
    """What remains of them in an image of 160x96: corners, label and line of each."""
    found = []
    for label, line in objects:
        x0, x1 = (min(max(x * 160 / 1280, 0), 160) for x in line.box[::2])
        y0, y1 = (min(max(y * 96 / 720, 0), 96) for y in line.box[1::2])
        x0, y0, x1, y1 = np.float32([x0, y0, x1, y1]).tolist()
        if x0 < x1 and y0 < y1:
            found.append(((x0, y0, x1, y1), label, line))
    return found


@pytest.mark.parametrize("ignore", [None, [], ["RidableVehicle", "Dont*"]])
def test_arrays_hold_what_the_label_files_say(tmp_path, ignore):
    names = odd_frames(tmp_path)
    dataset = SeeingThroughFog(tmp_path, "odd", classes=["PassengerCar", "vru"], ignore=ignore)
    files = [tmp_path / "gated_labels" / f"{name}.txt" for name in names]
    objects = [plain_objects(file, dataset.ignored) for file in files]
    content = [dataset.classes, dataset.ignored, names]
    content.append([[(label, line.box) for label, line in frame] for frame in objects])
    assert dataset.fingerprint == hashlib.sha256(json.dumps(content).encode()).hexdigest()
    copy = pickle.loads(pickle.dumps(dataset))  # as a spawned worker has it
    for index, frame in enumerate(objects):
        boxes = plain_boxes(frame)
        for image, target in (dataset[index], copy[index]):
            assert image.shape == (6, 96, 160)
            assert target["boxes"].tolist() == [list(corners) for corners, _, _ in boxes]
            assert target["labels"].tolist() == [label for _, label, _ in boxes]
            assert (type(target["name"]), target["name"]) == (str, names[index])
    assert (dataset.names[-1], len(dataset.objects[-1])) == (names[-1], len(objects[-1]))
    for sequence in (dataset, dataset.names, dataset.objects):
        with pytest.raises(IndexError):
            sequence[len(names)]


@pytest.mark.parametrize("ignore", [None, ["RidableVehicle", "Dont*"]])
def test_ground_truth_is_what_the_label_files_say(tmp_path, ignore):
    names = odd_frames(tmp_path)
    dataset = SeeingThroughFog(tmp_path, "odd", classes=["PassengerCar", "vru"], ignore=ignore)
    expected = []
    for index, name in enumerate(names):
        objects = plain_objects(tmp_path / "gated_labels" / f"{name}.txt", dataset.ignored)
        for (x0, y0, x1, y1), label, line in plain_boxes(objects):
            for category in [label] if label else [1, 2]:
                expected.append(
                    {
                        "id": len(expected) + 1,
                        "image_id": index,
                        "category_id": category,
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": (x1 - x0) * (y1 - y0),
                        "iscrowd": int(label == 0),
                        "visible_rgb": line.visible_rgb,
                        "visible_gated": line.visible_gated,
                        "distance": line.distance,
                    }
                )
    truth = dataset.ground_truth()
    assert json.dumps(truth["annotations"]) == json.dumps(expected)
    assert {one["visible_rgb"] for one in expected} == {True, False, None}
    assert truth["images"] == [
        {"id": index, "file_name": name, "width": 160, "height": 96}
        for index, name in enumerate(names)
    ]


def test_sizes_are_read_once(frames, monkeypatch):
    dataset = SeeingThroughFog(frames, "train_night")
    truth = dataset.ground_truth()
    assert [(image["width"], image["height"]) for image in truth["images"]] == [(160, 96)] * 2
    monkeypatch.setattr(dataset_module, "image_size", lambda _: pytest.fail("read again"))
    assert dataset.ground_truth() == truth


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_long_list_is_compact_and_shared_with_workers(synthetic, tmp_path):
    """A list of Python objects adds 3,000 bytes a frame, and half of them again in each worker."""
    frames = 5000
    link_frames(synthetic, tmp_path / "data", frames)
    side = Side(partial(Opening, tmp_path / "data"))
    _, opened = side.ask("open")
    _, copied = side.ask("read")
    side.end()
    assert opened["bytes"] < 1200 * frames
    assert copied < 600 * frames


def test_distance_is_the_length_of_the_position(frames):
    """Columns 11 to 13 are metres; -1000 in any of them, or 0 in all, means that it is unknown."""
    positions = ["3 4 12", "-1000 -1000 19.5", "-1000.00 -1000.00 -1000.00", "0 x 1", "0 0 0"]
    (frames / "gated_labels/a.txt").write_text(
        "".join(
            label_line(box=(100 + number, 100, 200, 300)).replace("-1000 -1000 -1000", position, 1)
            for number, position in enumerate(positions)
        )
    )
    found = SeeingThroughFog(frames, "train_night", "rgb").ground_truth()["annotations"]
    assert [one["distance"] for one in found] == [13.0, None, None, None, None]


def test_lists_of_a_condition(tmp_path):
    for name, members in {
        "val_night": "abc",
        "val_snow": "ab",
        "val_fog": "c",
        "val_day": "cd",
        "val_all": "abc",
        "test_snow": "a",
        "val_bad": "aa",
        "value": "a",
    }.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(members))
    assert condition_lists(tmp_path, "val_night") == {"val_fog": ["c"], "val_snow": ["a", "b"]}


def test_names_and_files_may_be_spelled_otherwise(tmp_path):
    """Suffixes in lists and capitals on disk, a list by its file's name, accents in two forms."""
    composed, decomposed = "caf\u00e9_1", "cafe\u0301_1"
    write_frame(tmp_path, decomposed, (64, 48), label_line(box=(100, 100, 600, 600)))
    write_frame(tmp_path, "b", (64, 48), label_line())
    for folder, suffix in zip(IMAGE_FOLDERS, (".PNG", ".jpeg", ".tif", ".bmp"), strict=True):
        with Image.open(tmp_path / folder / "b.png") as image:
            image.convert("RGB").save(tmp_path / folder / f"b{suffix}")
        (tmp_path / folder / "b.png").unlink()
    (tmp_path / "all.txt").write_text(f"{composed}.png\nb.jpg\n")
    dataset = SeeingThroughFog(tmp_path, "all.txt")
    assert list(dataset.names) == [composed, "b"]
    for image, target in dataset:
        assert image.shape == (6, 48, 64)
        assert len(target["boxes"]) == 1
    assert [file.suffix for file in dataset.image_files(1)] == [".PNG", ".jpeg", ".tif", ".bmp"]
    plain = SeeingThroughFog(tmp_path, "all")
    assert plain.fingerprint == dataset.fingerprint

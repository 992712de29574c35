"""Machine labels: what is written, whose file it is, which scores count, and what is refused."""

import errno
import json
import os
import shutil
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import label_line, run_script, the_error, write_frame
from test_evaluation import result, truth

from cmkd.evaluation import pipeline
from cmkd.evaluation.metrics import match
from cmkd.evaluation.mirror import SAME_OBJECT, detect, fuse
from cmkd.evaluation.predict import predict
from cmkd.evaluation.thresholds import choose_thresholds, precision_and_recall, table_of
from cmkd.frames import machine_labels
from cmkd.frames.annotations import DOUBTFUL, read_labels
from cmkd.frames.label_exchange import read_coco, read_yolo_file
from cmkd.frames.layout import refuse_held_out_frames
from cmkd.runtime import files
from cmkd.runtime.files import UserError, save_json
from cmkd.runtime.weights import save_torch
from dataset import SeeingThroughFog, flip_horizontally, make_loader, mirror_boxes
from models import build_detector, load_detector

LIST = "unlabelled_night"


@pytest.fixture(scope="module", autouse=True)
def _networks_are_loaded_once():
    """Half a second each time, and the script does not change them."""
    with patch.object(pipeline, "load_detector", cache(load_detector)):
        yield


def make_weights(file, channels=6, seed=0, **settings):
    """A tiny network with random weights: its scores are about 0.5."""
    torch.manual_seed(seed)
    detector = build_detector(channels, 2, backbone="resnet18", init="none", min_size=32)
    save_torch(detector.state_dict(), file)
    save_json(
        {**detector.settings, "proposals": 20, "candidates": 50, **settings},
        file.with_suffix(".json"),
    )
    return file


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return make_weights(tmp_path_factory.mktemp("weights") / "teacher.pth")


@pytest.fixture
def data(synthetic, tmp_path):
    """Simulated frames; those of `unlabelled_night` have no labels, and are in no other list."""
    root = Path(shutil.copytree(synthetic, tmp_path / "data"))
    (root / "train_night.txt").rename(root / f"{LIST}.txt")
    for file in root.glob("train_*.txt"):
        file.unlink()
    for name in names_of(root):
        (root / "gated_labels" / f"{name}.txt").unlink()
    return root


def names_of(root, list_name=LIST):
    return (root / f"{list_name}.txt").read_text().split()


def results_on(root, weights, list_name=LIST):
    """COCO results of the weights on a list, by the loop of test.py."""
    detector = load_detector(weights)
    modality = "rgb+gated" if detector.settings["channels"] == 6 else "rgb"
    dataset = SeeingThroughFog(root, list_name, modality, labels=None)
    return predict(detector, make_loader(dataset, 2, 0))


@pytest.fixture(scope="module")
def scores(synthetic, weights):
    """Thresholds with sure and doubtful boxes among those of the weights: SURE DOUBTFUL."""
    results = results_on(synthetic, weights, "train_night")
    return np.quantile([one["score"] for one in results], (0.9, 0.8)).tolist()


def label(root, weights, *options, expect=0):
    """Run the script; of options that occur twice the last counts."""
    fixed = ["--list", LIST, "--out", "machine", "--device", "cpu", "--no-amp"]
    fixed += ["--workers", "0", "--batch-size", "2"]
    places = ["--weights", weights, "--data", root]
    return run_script("label_frames.py", *places, *fixed, *options, expect=expect)


def by_hand(scores):
    return ["--thresholds", *scores]


def texts_of(root, folder="machine"):
    return {file.stem: file.read_text() for file in sorted((root / folder).glob("*.txt"))}


def journal_of(root, name="labels.jsonl"):
    return [json.loads(line) for line in (root / "machine" / name).read_text().splitlines()]


# ------------------------------------------------------------------------------- what is written


def test_files_hold_the_networks_boxes(data, weights, scores):
    human = texts_of(data, "gated_labels")
    sheet = data / "sheet.png"
    done = label(data, weights, *by_hand(scores), "--sheet", sheet)
    assert texts_of(data, "gated_labels") == human
    assert list(texts_of(data)) == sorted(names_of(data))

    sure, doubtful = scores
    results = results_on(data, weights)
    dataset = SeeingThroughFog(data, LIST, "rgb+gated", labels="machine")
    assert {len(dataset.objects[index]) for index in range(len(dataset))} != {0}
    for index, name in enumerate(names_of(data)):
        own = [one for one in results if one["file_name"] == name and one["score"] >= doubtful]
        own.sort(key=lambda one: one["score"] < sure)  # ignore regions come last
        _, target = dataset[index]
        assert target["labels"].tolist() == [int(one["score"] >= sure) for one in own]
        assert target["iscrowd"].tolist() == [int(one["score"] < sure) for one in own]
        boxes = np.array([one["bbox"] for one in own]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        # 160 px are 1280 px of label space, 96 are 720.
        assert np.abs(target["boxes"].numpy() - boxes).max(initial=0) * 8 < 0.5
        labels = read_labels(data / "machine" / f"{name}.txt")
        assert sorted(one.score for one in labels) == pytest.approx(
            sorted(one["score"] for one in own), abs=1e-4
        )
        assert {one.name for one in labels} <= {"Pedestrian", DOUBTFUL}
    labels = sum(one["score"] >= sure for one in results)
    assert f"6 frames, 6 of them labelled now; boxes: {labels} sure," in done.stdout
    assert "0 files of a human kept" in done.stdout
    assert f"{labels / 6:.2f}" in done.stdout.partition(f"{LIST}, machine")[2]
    assert sheet.is_file()


def test_27_columns_and_nothing_for_a_box_without_area():
    text = machine_labels.label_text(
        [("Pedestrian", 0.25, (1, 2, 3.004, 4)), ("Pedestrian", 0.9, (5, 5, 5.001, 9))]
    )
    [line] = text.splitlines()
    columns = line.split()
    assert len(columns) == 27
    assert (columns[0], columns[4:8], columns[18]) == (
        "Pedestrian",
        ["1.00", "2.00", "3.00", "4.00"],
        "0.2500",
    )


def test_the_journal_says_who_wrote_what(data, weights, scores):
    label(data, weights, *by_hand(scores))
    header, *lines = journal_of(data)
    assert header["weights"] == str(weights)
    assert (
        header["weights_sha256"] == machine_labels.hashlib.sha256(weights.read_bytes()).hexdigest()
    )
    assert header["thresholds"] == {"Pedestrian": scores}
    assert header["mirror"] is False
    assert header["list"] == LIST
    assert {"date", "versions", "amp"} <= set(header)
    hashes = {name: machine_labels.sha256_of_text(text) for name, text in texts_of(data).items()}
    assert {line["frame"]: line["sha256"] for line in lines} == hashes


def test_a_frame_without_anybody_has_an_empty_file(data, weights):
    done = label(data, weights, "--thresholds", "1", "1")
    assert set(texts_of(data).values()) == {""}
    assert "boxes: 0 sure, 0 doubtful; 6 frames without any" in done.stdout
    assert SeeingThroughFog(data, LIST, labels="machine")[0][1]["boxes"].shape == (0, 4)


def test_rgb_weights_need_no_gated_images(data, tmp_path):
    for number in range(3):
        shutil.rmtree(data / f"gated{number}")
    rgb = make_weights(tmp_path / "baseline.pth", channels=3)
    label(data, rgb, "--thresholds", "0.1", "0.1", "--sheet", data / "sheet.png")
    assert any(texts_of(data).values())


def test_a_merged_class_is_written_as_the_first_that_counts(data, tmp_path):
    merged = make_weights(
        tmp_path / "merged.pth", classes=["Rider_is_group,Rider,Other"], ignore=["*_is_group"]
    )
    label(data, merged, "--thresholds", "0.1", "0.1", "--val-list", "none")
    found = {line.split()[0] for text in texts_of(data).values() for line in text.splitlines()}
    assert found == {"Rider"}


# -------------------------------------------------------------------------------- the same again


def test_a_second_call_changes_nothing(data, weights, scores):
    label(data, weights, *by_hand(scores))
    before = {file: file.stat().st_mtime_ns for file in (data / "machine").iterdir()}
    done = label(data, weights, *by_hand(scores))
    assert {file: file.stat().st_mtime_ns for file in (data / "machine").iterdir()} == before
    assert "0 of them labelled now" in done.stdout


def test_continues_after_a_kill_between_journal_and_file(data, weights, scores):
    label(data, weights, *by_hand(scores))
    texts, journal = texts_of(data), data / "machine/labels.jsonl"
    first, second, *_ = names_of(data)
    (data / f"machine/{first}.txt").unlink()  # its line is in the journal
    (data / f"machine/.{first}.txt.abc").write_text("half")
    last = texts.keys() & {journal_of(data)[-1]["frame"]}
    for name in last:  # its line is not finished
        (data / f"machine/{name}.txt").unlink()
    journal.write_bytes(journal.read_bytes()[:-9])
    done = label(data, weights, *by_hand(scores))
    assert "2 of them labelled now" in done.stdout
    assert "0 files of a human kept" in done.stdout
    assert texts_of(data) == texts
    assert not list((data / "machine").glob(".*"))
    assert "0 of them labelled now" in label(data, weights, *by_hand(scores)).stdout


@pytest.mark.parametrize("room", [3, 8])
def test_a_full_disk_is_one_line_and_the_same_command_continues(
    data, weights, scores, monkeypatch, room
):
    flush, calls = os.fsync, []

    def fsync(handle):
        calls.append(handle)
        if len(calls) > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(handle)

    monkeypatch.setattr(files.os, "fsync", fsync)
    error = the_error(label(data, weights, *by_hand(scores), expect=2))
    assert "No space left on device" in error
    assert "free some space" in error
    monkeypatch.setattr(files.os, "fsync", flush)
    partial = texts_of(data)
    assert len(partial) < 6
    done = label(data, weights, *by_hand(scores))
    assert f"{6 - len(partial)} of them labelled now" in done.stdout
    assert "0 files of a human kept" in done.stdout
    assert len(texts_of(data)) == 6
    assert partial.items() <= texts_of(data).items()


def test_a_human_correction_stays(data, weights, scores):
    label(data, weights, *by_hand(scores))
    first, second, *_ = [name for name, text in texts_of(data).items() if text]
    (data / f"machine/{first}.txt").write_text(label_line())
    (data / f"machine/{second}.txt").write_text("")
    texts = texts_of(data)
    for options in ([], ["--relabel"]):
        done = label(data, weights, *by_hand(scores), *options)
        assert texts_of(data) == texts
        assert "2 files of a human kept" in done.stdout


def test_a_correction_made_meanwhile_stays(data, weights, scores, monkeypatch):
    """A human writes a file after the script looked, and before it comes to the frame."""
    last = names_of(data)[-1]
    write = machine_labels.write_labels

    def write_labels(*arguments):
        (data / f"machine/{last}.txt").write_text(label_line())
        write(*arguments)

    monkeypatch.setattr(machine_labels, "write_labels", write_labels)
    assert "1 files of a human kept" in label(data, weights, *by_hand(scores)).stdout
    assert texts_of(data)[last] == label_line()


def test_other_weights_need_relabel(data, weights, scores, tmp_path):
    label(data, weights, *by_hand(scores))
    first = names_of(data)[0]
    (data / f"machine/{first}.txt").write_text(label_line())
    texts = texts_of(data)
    other = make_weights(tmp_path / "other.pth", seed=1)
    for command in ((other, *by_hand(scores)), (weights, *by_hand(scores), "--mirror")):
        error = the_error(label(data, *command, expect=2))
        assert "another --out, or pass --relabel" in error
        assert texts_of(data) == texts
    low = ["--thresholds", "0.1", "0.1"]
    assert "5 of them labelled now" in label(data, other, *low, "--relabel").stdout
    changed = texts_of(data)
    assert [name for name in texts if changed[name] == texts[name]] == [first]
    assert "0 of them labelled now" in label(data, other, *low).stdout
    headers = [entry for entry in journal_of(data) if "settings" in entry]
    assert len(headers) == 2
    # The first labels are the machine's still: they can be made again.
    label(data, weights, *by_hand(scores), "--relabel")
    assert texts_of(data) == texts


def test_relabel_continues_without_the_flag(data, weights, scores):
    """A file from before --relabel is labelled again, even if its content is what it was."""
    label(data, weights, *by_hand(scores))
    label(data, weights, *by_hand(scores), "--relabel")
    journal = data / "machine/labels.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-2]))  # as if it was killed before the last two
    assert "2 of them labelled now" in label(data, weights, *by_hand(scores)).stdout


def test_another_list_joins_the_folder(data, weights, scores):
    first, *others = names_of(data)
    (data / "some.txt").write_text(f"{first}\n")
    label(data, weights, *by_hand(scores), "--list", "some")
    assert list(texts_of(data)) == [first]
    assert "5 of them labelled now" in label(data, weights, *by_hand(scores)).stdout


def test_parts_make_the_whole(data, weights, scores, tmp_path):
    label(data, weights, *by_hand(scores), "--out", "whole")
    for part in (2, 1):
        done = label(data, weights, *by_hand(scores), "--part", f"{part}/2")
        assert "3 frames, 3 of them labelled now" in done.stdout
    assert texts_of(data) == texts_of(data, "whole")
    record = machine_labels.read_record(data / "machine")
    assert len(record.machine) == 6
    assert set(record.headers) == {"labels-1-of-2.jsonl", "labels-2-of-2.jsonl"}
    frames = [line["frame"] for line in journal_of(data, "labels-2-of-2.jsonl")[1:]]
    assert frames == names_of(data)[1::2]
    machine_labels.refuse_disagreement(data / "machine")

    other = make_weights(tmp_path / "other.pth", seed=1)
    done = label(data, other, *by_hand(scores), "--part", "1/2", "--relabel")
    assert "different weights_sha256" in done.stderr
    with pytest.raises(UserError, match="different weights_sha256"):
        machine_labels.refuse_disagreement(data / "machine")
    the_error(label(data, other, *by_hand(scores), "--part", "2/2", expect=2))
    error = the_error(label(data, other, *by_hand(scores), "--relabel", expect=2))
    assert "same --part as before" in error
    label(data, other, *by_hand(scores), "--part", "2/2", "--relabel")
    machine_labels.refuse_disagreement(data / "machine")


# ------------------------------------------------------------------------------------ thresholds


def curve_of(hits, people):
    """The curve of detections with scores 0.9, 0.8, ... that hit somebody or nothing."""
    boxes = [[10 + 100 * place, 10, 50, 100] for place in range(people)]
    free = iter(boxes)
    results = [
        result(
            0, next(free) if hit else [10 + 100 * place, 300, 50, 100], round(0.9 - place / 10, 1)
        )
        for place, hit in enumerate(hits)
    ]
    return precision_and_recall(match(truth([boxes]), results, 1))


def test_thresholds_by_hand():
    """F1 is best after two hits, F2 after the third; F2's fall after a lone hit is not enough."""
    curve = curve_of([True, True, False, False, True, False], people=4)
    assert curve.precision.tolist() == pytest.approx([1, 1, 2 / 3, 1 / 2, 3 / 5, 1 / 2])
    assert curve.recall.tolist() == pytest.approx([1 / 4, 1 / 2, 1 / 2, 1 / 2, 3 / 4, 3 / 4])
    assert curve.f_score()[1] == pytest.approx(2 / 3)
    assert curve.f_score(2)[4] == pytest.approx(5 * 0.6 * 0.75 / (4 * 0.6 + 0.75))
    assert choose_thresholds(curve, "Pedestrian", "val") == (0.8, 0.5)
    rows = {row["score"]: row for row in table_of(curve, "Pedestrian", 0.8, 0.5)}
    assert (rows[0.8]["chosen"], rows[0.5]["chosen"]) == ("sure", "doubtful")
    assert rows[0.5]["precision"] == pytest.approx(0.6)


def test_a_precision_that_is_asked_for():
    """The lowest score that has it, also after a dip; doubtful is at most sure."""
    curve = curve_of([True, False, True, True, False, False], people=5)
    assert choose_thresholds(curve, "Pedestrian", "val", 0.75) == (0.6, 0.6)
    assert choose_thresholds(curve, "Pedestrian", "val", 0.9) == (0.9, 0.6)
    late = curve_of([False, True, True], people=2)
    with pytest.raises(UserError, match=r"the best is 0.6666: pass --precision 0.6666"):
        choose_thresholds(late, "Pedestrian", "val", 0.7)
    assert choose_thresholds(late, "Pedestrian", "val", 0.6666)[0] == 0.7
    # At a low precision the best F2 is above the lowest score.
    assert choose_thresholds(curve, "Pedestrian", "val", 0.5) == (0.4, 0.4)


def test_a_tie_of_scores_is_one_point():
    boxes = [[10, 10, 50, 100]]
    results = [result(0, boxes[0], 0.5), result(0, [300, 300, 50, 100], 0.5)]
    curve = precision_and_recall(match(truth([boxes]), results, 1))
    assert (curve.score.tolist(), curve.precision.tolist()) == ([0.5], [0.5])


def test_nobody_found():
    for hits in ([], [False, False]):
        with pytest.raises(UserError, match="finds no Pedestrian"):
            choose_thresholds(curve_of(hits, people=1), "Pedestrian", "val")


def write_val_labels(root, weights, places):
    """Human labels on the validation list: the network's boxes at these places, by score."""
    results = results_on(root, weights, "val_night")
    for name in names_of(root, "val_night"):
        own = [one for one in results if one["file_name"] == name]
        lines = []
        for place in places:
            x, y, width, height = (value * 8 for value in own[place]["bbox"])
            lines.append(label_line(box=(x, y, x + width, y + height)))
        (root / f"gated_labels/{name}.txt").write_text("".join(lines))
    return results


def test_the_rule_on_a_validation_list(data, weights):
    """People stand at the network's best and third-best box of every frame."""
    results = write_val_labels(data, weights, (0, 2))
    done = label(data, weights, "--no-mirror")
    header, *_ = journal_of(data)
    sure, doubtful = header["thresholds"]["Pedestrian"]
    content = SeeingThroughFog(data, "val_night", "rgb").ground_truth()
    curve = precision_and_recall(match(content, results, 1))
    assert sure == curve.score[curve.f_score().argmax()]
    assert doubtful == min(sure, curve.score[curve.f_score(2).argmax()])
    assert f"sure from a score of {sure:.4f}, doubtful from {doubtful:.4f}" in done.stdout
    assert "mirror images: not used" in done.stdout
    assert [row["score"] for row in header["table"] if "sure" in row["chosen"]] == [sure]
    # A second call takes them from the journal, and looks at no validation frame.
    (data / "images" / f"{names_of(data, 'val_night')[0]}.png").write_bytes(b"damaged")
    assert "0 of them labelled now" in label(data, weights, "--no-mirror").stdout
    error = the_error(label(data, weights, "--no-mirror", "--precision", "0.9", expect=2))
    assert "precision None, not 0.9" in error


def test_mirror_images_are_used_if_they_help(data, weights):
    write_val_labels(data, weights, (0,))
    done = label(data, weights)
    header, *_ = journal_of(data)
    aps = header["validation"]
    assert header["mirror"] is (aps["AP_with_mirror"] > aps["AP"])
    assert f"AP {aps['AP']:.4f}, merged with mirror images {aps['AP_with_mirror']:.4f}" in (
        done.stdout
    )
    assert aps["AP"] > 0.5
    forced = label(data, weights, "--mirror", "--out", "forced")
    assert "mirror images: used" in forced.stdout


def test_precision_out_of_reach_and_the_flag_that_takes_it(data, weights):
    write_val_labels(data, weights, (1,))
    options = ["--no-mirror", "--precision"]
    error = the_error(label(data, weights, *options, "1", expect=2))
    assert not list((data / "machine").glob("*"))
    best = error.partition("pass --precision ")[2]
    assert 0.1 < float(best) < 1
    label(data, weights, *options, best)


# ------------------------------------------------------------------------------- mirror images


def random_view(random, count, width=200):
    corner = random.uniform(0, width / 2, (count, 2))
    boxes = np.concatenate([corner, corner + random.uniform(20, 60, (count, 2))], axis=1)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.tensor(random.integers(1, 3, count)),
        "scores": torch.tensor(random.uniform(0.05, 1, count), dtype=torch.float32),
    }


def overlap(one, other):
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    both = np.prod(sides.clip(0))
    return both / (np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - both)


def fuse_in_a_loop(view, other):
    """The definition, box by box."""
    boxes = [
        (score, label, np.array(box), number)
        for number, part in enumerate((view, other))
        for box, label, score in zip(
            *(part[key].tolist() for key in ("boxes", "labels", "scores")), strict=True
        )
    ]
    boxes.sort(key=lambda one: -one[0])
    objects = []
    for one in boxes:
        same = [other[0] for other in objects if other[0][1] == one[1]]
        if all(overlap(one[2], best[2]) <= SAME_OBJECT for best in same):
            objects.append([one])
    seeds = [members[0] for members in objects]
    for one in boxes:
        if any(one is seed for seed in seeds):
            continue
        overlaps = [overlap(one[2], seed[2]) if seed[1] == one[1] else -1 for seed in seeds]
        objects[int(np.argmax(overlaps))].append(one)
    fused = []
    for members in objects:
        weights = np.array([one[0] for one in members])
        box = (np.array([one[2] for one in members]) * weights[:, None]).sum(0) / weights.sum()
        best = [max([one[0] for one in members if one[3] == view] + [0]) for view in (0, 1)]
        fused.append((sum(best) / 2, members[0][1], box))
    return sorted(fused, key=lambda one: -one[0])


def test_merged_views_are_those_of_a_plain_loop():
    random = np.random.default_rng(0)
    for count, others in ((40, 30), (5, 0), (0, 4), (1, 1)):
        view, other = random_view(random, count), random_view(random, others)
        # Some boxes are in both views, a little off.
        shared = min(count, others)
        noise = torch.tensor(random.normal(0, 2, (shared, 4)), dtype=torch.float32)
        other["boxes"][:shared] = view["boxes"][:shared] + noise
        other["labels"][:shared] = view["labels"][:shared]
        fused, expected = fuse(view, other), fuse_in_a_loop(view, other)
        assert fused["scores"].tolist() == pytest.approx([one[0] for one in expected], abs=1e-6)
        assert fused["labels"].tolist() == [one[1] for one in expected]
        np.testing.assert_allclose(
            fused["boxes"], np.array([one[2] for one in expected]).reshape(-1, 4), atol=1e-3
        )
        assert len(expected) <= count + others - shared / 2
    empty = random_view(random, 0)
    assert len(fuse(empty, empty)["boxes"]) == 0


def test_a_box_joins_an_object_of_its_own_class():
    """The other view's box of class 1 lies on a box of class 2, and beside one of class 1."""
    place, beside = [0.0, 0, 100, 100], [4.0, 0, 104, 100]
    view = {
        "boxes": torch.tensor([place, beside]),
        "labels": torch.tensor([1, 2]),
        "scores": torch.tensor([0.75, 0.5]),
    }
    other = {
        "boxes": torch.tensor([beside]),
        "labels": torch.tensor([1]),
        "scores": torch.tensor([0.25]),
    }
    fused = fuse(view, other)
    assert fused["labels"].tolist() == [1, 2]
    assert fused["scores"].tolist() == [0.5, 0.25]
    assert fused["boxes"].tolist() == [[1, 0, 101, 100], beside]


def test_a_mirrored_frame_is_seen_as_in_a_mirror(data, weights):
    """The second view of a frame has the detections of the flipped frame, flipped back."""
    detector = load_detector(weights)
    dataset = SeeingThroughFog(data, LIST, labels=None)
    loader = make_loader(dataset, 2, 0, indices=[3, 5])
    [(targets, sizes, (plain, mirrored))] = detect(detector, loader, False, mirrored=True)
    assert [target["name"] for target in targets] == [names_of(data)[3], names_of(data)[5]]
    assert sizes == [(160, 96)] * 2
    image, _ = dataset[3]
    flipped, _ = flip_horizontally(image, torch.zeros(0, 4))
    with torch.inference_mode():
        [expected] = detector([flipped])
        [again] = detector([image])
    _, boxes = flip_horizontally(image, expected["boxes"])
    torch.testing.assert_close(mirrored[0]["boxes"], boxes, atol=0.01, rtol=0.001)
    torch.testing.assert_close(plain[0]["boxes"], again["boxes"], atol=0.01, rtol=0.001)
    assert not torch.equal(mirrored[0]["scores"], plain[0]["scores"])
    assert torch.equal(mirror_boxes(mirror_boxes(boxes, 160), 160), boxes)


# -------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    "name",
    ["gated_labels", "images", "gated2", "a/b", "..", ".cache", "", "link", "drawn", "a.txt"],
)
def test_folders_that_are_never_written_to(frames, name):
    (frames / "link").symlink_to(frames / "gated_labels")
    (frames / "drawn").mkdir()
    (frames / "drawn/x.txt").write_text("")
    (frames / "a.txt").write_text("")
    with pytest.raises(UserError, match=f"^--out {name}: "):
        machine_labels.open_folder(frames, name)


def test_a_frame_that_a_human_labelled(data, weights, scores):
    first, second, *_ = names_of(data)
    file = data / f"gated_labels/{second}.txt"
    file.write_text(label_line())
    error = the_error(label(data, weights, *by_hand(scores), expect=2))
    assert f"{LIST}.txt:2: {second} has a human's labels" in error
    assert not (data / "machine").exists()
    label(data, weights, *by_hand(scores), "--also-labelled")
    assert len(texts_of(data)) == 6
    assert file.read_text() == label_line()


@pytest.mark.parametrize("other", ["val_rain", "test_night", "held_out"])
def test_a_list_that_shares_frames_with_a_held_out_one(tmp_path, other):
    (tmp_path / f"{LIST}.txt").write_text("a_00\na_01\nb_07\n")
    file = tmp_path / f"{other}.txt"
    for names, words in (
        ("c_00\nb_07\n", f"{LIST}.txt:3: b_07 is of the recording of b_07 .{file}:2"),
        ("c_00\nb_08\n", f"{LIST}.txt:3: b_07 is of the recording of b_08 .{file}:2"),
    ):
        file.write_text(names)
        with pytest.raises(UserError, match=words):
            refuse_held_out_frames(tmp_path, [LIST], other)
    file.write_text("c_00\n")
    refuse_held_out_frames(tmp_path, [LIST], other)


def test_lists_and_options_that_are_refused(data, weights, scores):
    list_file = data / f"{LIST}.txt"
    list_file.write_text(list_file.read_text() + names_of(data)[0] + "\n")
    error = the_error(label(data, weights, *by_hand(scores), expect=2))
    assert f"{list_file}:7" in error
    (data / "one.txt").write_text(names_of(data)[1])
    for options, words in (
        (["--list", "missing"], "missing.txt is missing"),
        (["--list", "test_night"], "is of the recording of"),
        (["--out", "gated_labels"], "gated_labels is never written to"),
        (["--list", "one", "--part", "2/2"], "has only 1 frames"),
        (["--part", "3/2"], "not a part"),
        (["--thresholds", "0.1", "0.2"], "at most SURE"),
        (["--thresholds", "2", "0.2"], "from 0 to 1"),
        (["--precision", "0.5"], "not allowed with"),
    ):
        error = the_error(label(data, weights, *by_hand(scores), *options, expect=2))
        assert words in error


def test_a_labeller_that_finds_nobody(data, weights):
    for name in names_of(data, "val_night"):
        (data / f"gated_labels/{name}.txt").write_text(label_line(box=(0, 0, 3, 3)))
    error = the_error(label(data, weights, expect=2))
    assert "finds no Pedestrian" in error
    assert not list((data / "machine").glob("*"))


def test_hand_set_thresholds_need_no_validation_list(tmp_path, weights):
    write_frame(tmp_path, "a_1")
    (tmp_path / "gated_labels/a_1.txt").unlink()
    (tmp_path / f"{LIST}.txt").write_text("a_1\n")
    label(tmp_path, weights, "--thresholds", "0.1", "0.1")
    error = the_error(label(tmp_path, weights, "--out", "other", expect=2))
    assert "val_night.txt is missing" in error


# ----------------------------------------------------------------------- other tools and back


def export(root, kind, target):
    options = ["--labels", "machine", "--list", LIST, f"--export-{kind}", target]
    run_script("check_data.py", root, *options)


def take_back(root, kind, source, expect=0):
    options = ["--data", root, "--out", "machine", f"--import-{kind}", source]
    return run_script("label_frames.py", *options, expect=expect)


def test_coco_and_back(data, weights, scores, tmp_path):
    label(data, weights, *by_hand(scores))
    texts, file = texts_of(data), tmp_path / "boxes.json"
    export(data, "coco", file)
    content = json.loads(file.read_text())
    labels = [one for name in names_of(data) for one in read_labels(data / f"machine/{name}.txt")]
    assert sorted(one["score"] for one in content["annotations"]) == pytest.approx(
        sorted(one.score for one in labels), abs=1e-6
    )
    doubtful = [one for one in content["annotations"] if one["doubtful"]]
    assert len(doubtful) == sum(one.name == DOUBTFUL for one in labels) > 0
    assert all(one["iscrowd"] for one in doubtful)
    assert "0 frames are a human's now, 6 are unchanged" in take_back(data, "coco", file).stdout
    assert texts_of(data) == texts

    # A human moves a box, and takes the doubt from another of the same frame.
    first = doubtful[0]["image_id"]
    doubtful[0] |= {"doubtful": False, "iscrowd": 0, "bbox": [10, 20, 30, 40]}
    for image in content["images"]:
        image["file_name"] = f"images/{image['file_name']}"
    file.write_text(json.dumps(content))
    done = take_back(data, "coco", file)
    assert "1 frames are a human's now, 5 are" in done.stdout
    assert "frames are not in" not in done.stdout
    name = names_of(data)[first]
    found = [one.box for one in read_labels(data / f"machine/{name}.txt") if one.name != DOUBTFUL]
    assert (80, 150, 320, 450) in found
    assert journal_of(data)[-1]["by"] == "human"
    done = label(data, weights, *by_hand(scores), "--relabel")
    assert "5 of them labelled now" in done.stdout
    assert "1 files of a human kept" in done.stdout
    assert "0 frames are a human's now, 6 are" in take_back(data, "coco", file).stdout
    # A file that was exported before does not undo a correction.
    doubtful[0]["bbox"] = [1, 2, 3, 4]
    file.write_text(json.dumps(content))
    assert "1 that a human changed before are kept" in take_back(data, "coco", file).stdout

    # A tool that exports only annotated images: the machine's boxes in others would stay.
    last = content["images"][-1]["id"]
    content["images"].pop()
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != last]
    file.write_text(json.dumps(content))
    assert f"1 frames are not in {file}: they stay the machine's; an image without boxes must" in (
        take_back(data, "coco", file).stdout
    )

    for one in content["annotations"]:
        del one["doubtful"]
        one["iscrowd"] = 0
    file.write_text(json.dumps(content))
    assert "has doubtful ones" in the_error(take_back(data, "coco", file, expect=2))


def test_yolo_and_back(data, weights, scores, tmp_path):
    label(data, weights, *by_hand(scores))
    folder = tmp_path / "yolo"
    export(data, "yolo", folder)
    assert "6 are unchanged" in take_back(data, "yolo", folder).stdout
    assert (folder / "classes.txt").read_text().split() == [
        "Pedestrian+Pedestrian_is_group",
        DOUBTFUL,
    ]
    first = names_of(data)[0]
    boxes = read_labels(data / f"machine/{first}.txt")
    numbers = [
        line.split()[0] for line in (folder / f"labels/{first}.txt").read_text().splitlines()
    ]
    assert sorted(numbers) == sorted(str(int(one.name == DOUBTFUL)) for one in boxes)
    (folder / f"labels/{first}.txt").write_text("0 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.1 0.1\n")
    assert "1 frames are a human's now" in take_back(data, "yolo", folder).stdout
    [person, region] = read_labels(data / f"machine/{first}.txt")
    assert (person.name, person.box) == ("Pedestrian", (480, 180, 800, 540))
    assert region.name == DOUBTFUL
    last = folder / f"labels/{names_of(data)[-1]}.txt"
    text = last.read_text()
    last.unlink()
    done = take_back(data, "yolo", folder)
    assert "1 frames are not in" in done.stdout
    assert "must be listed by an empty file" in done.stdout
    last.write_text(text)
    (folder / f"labels/{first}.txt").write_text("7 0.5 0.5 0.25 0.5\n")
    assert f"{first}.txt:1" in the_error(take_back(data, "yolo", folder, expect=2))
    (folder / f"labels/{first}.txt").rename(folder / "labels/other.txt")
    (folder / "labels/other.txt").write_text("")
    assert "other is no frame" in the_error(take_back(data, "yolo", folder, expect=2))


@pytest.mark.parametrize("line", ["-1 0.5 0.5 0.1 0.1", "0 nan 0.5 0.1 0.1", "0 50 50 10 10"])
def test_a_yolo_line_that_would_be_misread(tmp_path, line):
    """A negative number would count from the end of the classes; NaN would lose the box."""
    file = tmp_path / "labels.txt"
    file.write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(UserError, match="labels.txt:2: expected a class number"):
        read_yolo_file(file, ["Pedestrian", DOUBTFUL])


@pytest.mark.parametrize("size", [(0, 5), (float("nan"), 5)])
def test_a_coco_box_without_area_is_not_lost(tmp_path, size):
    content = {
        "categories": [{"id": 1, "name": "Pedestrian"}],
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 50}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, *size]}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="a box of a.png has no area"):
        read_coco(tmp_path / "boxes.json")

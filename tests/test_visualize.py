"""The gallery: a column for each network, and what is drawn as hit, false alarm and miss."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import visualize
from models import build_detector
from scoring import titles
from visualize import MISSED, TILE_WIDTH, detection_tile, draw_box, match


def test_a_box_of_another_class_is_no_hit():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    truth = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    assert match(boxes, torch.tensor([2, 1]), truth, torch.tensor([1, 1])) == ([False, True], [True, False])
    assert match(boxes, torch.tensor([1, 1]), truth, torch.tensor([1, 1])) == ([True, False], [True, False])
    assert match(boxes[:0], torch.zeros(0), truth, torch.tensor([1, 1])) == ([], [False, False])


def test_titles_tell_weights_apart():
    assert titles([Path("a/x.pth"), Path("b/x.pth"), Path("b/y.pth")]) == ["a/x", "b/x", "y"]
    seeds = [Path(f"seed{seed}/weights/x.pth") for seed in range(2)]
    assert titles(seeds) == ["seed0/weights/x", "seed1/weights/x"]


def test_two_weights_of_one_name_are_two_columns(frames, tmp_path, monkeypatch):
    files = [tmp_path / folder / "x.pth" for folder in "pq"]
    state = build_detector(3, 2, "resnet18", "none").state_dict()
    for file in files:
        file.parent.mkdir()
        torch.save({"model": state, "arguments": {"min_size": 64, "proposals": 50}}, file)
    monkeypatch.setattr(sys, "argv", ["visualize.py", "--data", str(frames), "--list", "val_night", "--device", "cpu",
                                      "--frames", "1", "--out", str(tmp_path / "g.png"), "--compare",
                                      *map(str, files)])
    visualize.main()
    assert Image.open(tmp_path / "g.png").width // TILE_WIDTH == 3
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--workers", "2"])
    with pytest.raises(SystemExit):
        visualize.main()


class Fixed(torch.nn.Module):
    """Finds what it is told to."""

    def __init__(self, boxes, labels):
        super().__init__()
        self.found = {"boxes": boxes, "labels": labels, "scores": torch.full((len(boxes),), 0.9)}
        self.place, self.settings = torch.nn.Parameter(torch.zeros(1)), {"channels": 3}

    def forward(self, images):
        return [self.found for _ in images]


def test_a_miss_is_a_thin_box_and_a_mark():
    box = torch.tensor([[100.0, 50, 200, 150]])
    target = {"boxes": box, "labels": torch.tensor([1])}
    image = torch.zeros(3, 240, TILE_WIDTH, dtype=torch.uint8)

    def missed(found):
        detector = Fixed(box[:found], torch.ones(found, dtype=torch.int64))
        tile = np.asarray(detection_tile(detector, image, target, 0.5))
        return (tile == Image.new("RGB", (1, 1), MISSED).getpixel((0, 0))).all(axis=2).sum()

    assert missed(1) == 0
    assert 0 < missed(0) < 4 * 100 + 30


def test_texts_at_one_place_do_not_cover_each_other():
    """A hit, a false alarm and a miss whose boxes are one, in the middle and at both edges of the picture."""
    for box in ([40, 30, 90, 80], [40, 0, 90, 80], [40, 30, 90, 100]):
        drawn = []
        for text in ({"above": "0.98"}, {"inside": "?"}, {"below": "x"}):
            picture = Image.new("L", (140, 101))
            with_text, without = (picture.copy() for _ in range(2))
            draw_box(visualize.ImageDraw.Draw(with_text), box, "white", **text)
            draw_box(visualize.ImageDraw.Draw(without), box, "white")
            drawn.append(np.asarray(with_text) != np.asarray(without))
        assert all(one.any() for one in drawn)
        assert not (sum(one.astype(int) for one in drawn) > 1).any()

"""RoIAlign as a sparse product is torchvision's RoIAlign."""

import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign, roi_align

from cmkd.runtime.sparse_roi_align import SparseRoIAlign
from models import Detector

LEVELS = ["0", "1", "2", "3"]


def make_maps(images, channels, height, width, dtype=torch.float32):
    """A pyramid of `[images, channels, h, w]` for pictures of height x width px, channels last."""
    generator = torch.Generator().manual_seed(height)
    maps = {}
    for level, stride in zip(LEVELS, (4, 8, 16, 32), strict=True):
        shape = (images, channels, -(-height // stride), -(-width // stride))
        one = torch.randn(shape, generator=generator, dtype=dtype)
        maps[level] = one.contiguous(memory_format=torch.channels_last).requires_grad_()
    return maps


def make_boxes(counts, height, width, dtype=torch.float32):
    """Boxes of all sizes, some of which reach out of the picture or lie outside it."""
    generator = torch.Generator().manual_seed(width)
    size = torch.tensor([width, height], dtype=dtype)
    boxes = []
    for count in counts:
        centers = (torch.rand(count, 2, generator=generator, dtype=dtype) * 1.6 - 0.3) * size
        halves = torch.rand(count, 2, generator=generator, dtype=dtype) ** 3 * 0.5 * size
        boxes.append(torch.cat([centers - halves, centers + halves], dim=1))
    return boxes


def pooled_with_gradients(pool, maps, boxes, size):
    """The pooled regions, and the gradient of a fixed weighted sum of them by map."""
    pooled = pool(maps, boxes, [size] * len(boxes))
    weights = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad((pooled * weights.to(pooled.dtype)).sum(), [*maps.values()])
    return pooled, gradients


@pytest.mark.parametrize(
    ("counts", "size"),
    [
        ([40, 40, 40], (128, 224)),
        ([7, 0, 30], (128, 213)),
        ([25], (31, 40)),
        ([0, 0], (128, 128)),
        ([300, 300], (500, 833)),
    ],
)
def test_values_and_gradients_are_torchvisions(counts, size):
    maps, boxes = make_maps(len(counts), 16, *size), make_boxes(counts, *size)
    plain = pooled_with_gradients(MultiScaleRoIAlign(LEVELS, 7, 2), maps, boxes, size)
    ours = pooled_with_gradients(SparseRoIAlign(LEVELS, 7, 2), maps, boxes, size)
    assert ours[0].shape == plain[0].shape == (sum(counts), 16, 7, 7)
    assert (ours[0] - plain[0]).norm() <= 1e-5 * plain[0].norm()
    for own, reference in zip(ours[1], plain[1], strict=True):
        assert (own - reference).norm() <= 1e-5 * reference.norm()
    if sum(counts):
        assert plain[0].abs().max() > 1
        assert plain[1][0].abs().max() > 0


def test_a_box_on_the_edge_of_each_level_is_torchvisions():
    """Samples up to a pixel outside count as on the edge, others as 0; in float64, to rounding."""
    size = (64, 96)
    maps = make_maps(1, 3, *size, torch.float64)
    edges = torch.tensor([-4.0, 0, 60, 64, 92, 96, 100, 300], dtype=torch.float64)
    corners = torch.cartesian_prod(edges, edges, edges, edges)
    boxes = [corners[(corners[:, 2] >= corners[:, 0]) & (corners[:, 3] >= corners[:, 1])]]
    pool = SparseRoIAlign(LEVELS, 7, 2)
    ours = pool(maps, boxes, [size])
    levels = pool.map_levels(boxes)
    assert set(levels.tolist()) == {0, 1, 2}
    for level in (0, 1, 2):
        chosen = [boxes[0][levels == level]]
        plain = roi_align(maps[str(level)], chosen, 7, 0.25 / 2**level, 2)
        torch.testing.assert_close(ours[levels == level], plain, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    size = (64, 64)
    maps = make_maps(2, 2, *size, torch.float64)
    boxes = make_boxes([3, 2], *size, torch.float64)
    pool = SparseRoIAlign(LEVELS, 7, 2)

    def pooled(*levels):
        return pool(dict(zip(LEVELS, levels, strict=True)), boxes, [size] * 2)

    assert torch.autograd.gradcheck(pooled, tuple(maps.values()))


def test_bfloat16_maps_are_summed_in_float32():
    size = (128, 224)
    maps, boxes = make_maps(2, 16, *size), make_boxes([60, 60], *size)
    rounded = {level: one.detach().bfloat16().requires_grad_() for level, one in maps.items()}
    exact = {level: one.detach().float().requires_grad_() for level, one in rounded.items()}
    ours, gradients = pooled_with_gradients(SparseRoIAlign(LEVELS, 7, 2), rounded, boxes, size)
    plain, _ = pooled_with_gradients(MultiScaleRoIAlign(LEVELS, 7, 2), exact, boxes, size)
    assert ours.dtype == torch.bfloat16
    # Only the result is rounded, by 2 ** -9 at most; weights in bfloat16 would double the error.
    assert (ours.float() - plain).norm() <= 1.8e-3 * plain.norm()
    assert all(one.dtype == torch.bfloat16 for one in gradients)


def test_boxes_that_are_not_finite_crash_nothing():
    """A network that diverges ends with the engine's message, not with a read out of bounds."""
    maps = make_maps(1, 4, 64, 64)
    boxes = [torch.tensor([[float("nan")] * 4, [0, 0, float("inf"), float("inf")]])]
    SparseRoIAlign(LEVELS, 7, 2)(maps, boxes, [(64, 64)]).sum().backward()


def test_only_training_on_a_cpu_uses_it(monkeypatch):
    """What is evaluated and exported is torchvision's own operator."""
    calls = []
    monkeypatch.setattr(SparseRoIAlign, "pixels_of", lambda *_: calls.append(1) or 1 / 0)
    detector = Detector(3, 2, "resnet18", "batch", min_size=64)
    images = [torch.rand(3, 64, 96), torch.rand(3, 64, 96)]
    detector.eval()(images)
    assert not calls
    boxes = torch.tensor([[5.0, 5, 40, 60]])
    targets = [{"boxes": boxes, "labels": torch.ones(1, dtype=torch.int64)} for _ in images]
    with pytest.raises(ZeroDivisionError):
        detector.train()(images, targets)
    assert calls

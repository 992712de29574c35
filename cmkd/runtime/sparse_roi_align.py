"""RoIAlign for training on a CPU: one product of a sparse matrix with the feature maps.

torchvision's kernel scatters each gradient on its own and runs on one thread. But each value of
RoIAlign is a weighted sum of at most 16 pixels, the same for all channels. So the forward pass is
one `embedding_bag` over the pixels' channel vectors, and the backward pass is one with the
transposed matrix. `torchvision.ops.roi_align` with `aligned=False` is the reference in the tests.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag
from torchvision.ops import MultiScaleRoIAlign


class SparseRoIAlign(MultiScaleRoIAlign):
    """torchvision's RoIAlign on a pyramid; in training on a CPU it is a sparse matrix product."""

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Pool boxes `[N, 4]` of each image from maps `[B, C, h, w]` -> `[sum of N, C, 7, 7]`.

        The result has the maps' dtype; sums are made in float32, or in float64 for float64.
        """
        maps = [x[name] for name in self.featmap_names]
        if not self.training or maps[0].device.type != "cpu":
            return super().forward(as_roi_align_reads(x), boxes, image_shapes)
        if self.scales is None:  # torchvision sets scales and map_levels in its first call
            super().forward(as_roi_align_reads(x), [one[:0] for one in boxes], image_shapes)
        indices, weights = self.pixels_of(maps, boxes)
        pooled = WeightedSum.apply(indices, weights, *maps)
        pooled = pooled.unflatten(0, (-1, *self.output_size)).permute(0, 3, 1, 2)
        return pooled.to(maps[0].dtype, memory_format=torch.contiguous_format)

    @torch.no_grad()
    def pixels_of(self, maps: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The pixels that each pooled value is made of, and their weights.

        Both are `[N * 7 * 7, (2 * sampling_ratio) ** 2]`. Pixels are counted through all maps, each
        by image, row and column.
        """
        images = torch.arange(len(boxes)).repeat_interleave(torch.tensor([len(b) for b in boxes]))
        levels = self.map_levels(boxes).clamp(0, len(maps) - 1)  # NaN has none
        height, width = torch.tensor([one.shape[-2:] for one in maps])[levels].unbind(dim=1)
        sizes = torch.tensor([one[:, 0].numel() for one in maps])
        first = (sizes.cumsum(0) - sizes)[levels] + images * height * width

        dtype = torch.promote_types(maps[0].dtype, torch.float32)
        scales = torch.tensor(self.scales, dtype=dtype)[levels, None]
        x0, y0, x1, y1 = (torch.cat(boxes).to(dtype) * scales).unbind(dim=1)
        rows, row_weights = self.neighbours(y0, y1, height, self.output_size[0])
        columns, column_weights = self.neighbours(x0, x1, width, self.output_size[1])
        rows = first[:, None, None] + rows * width[:, None, None]
        indices = rows[:, :, None, :, None] + columns[:, None, :, None, :]
        weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
        taps = rows.shape[2] * columns.shape[2]
        return indices.reshape(-1, taps).int(), weights.reshape(-1, taps)

    def neighbours(
        self, low: Tensor, high: Tensor, length: Tensor, bins: int
    ) -> tuple[Tensor, Tensor]:
        """Along one axis: the pixels around each sample of a bin, and their weights.

        Boxes reach from `low` to `high` `[N]` on maps of `length` `[N]` pixels. Both results are
        `[N, bins, 2 * sampling_ratio]`. Samples more than a pixel outside the map count as 0.
        """
        samples = bins * self.sampling_ratio
        places = (torch.arange(samples, dtype=low.dtype) + 0.5) / samples
        position = low[:, None] + (high - low).clamp(min=1)[:, None] * places
        last = length[:, None] - 1
        is_inside = ((position >= -1) & (position <= last + 1)).to(low.dtype)
        position = position.clamp(min=0)
        before = position.long().clamp(min=0).minimum(last)
        after = (before + 1).minimum(last)
        fraction = position - before  # of no effect on the last pixel, which is both neighbours
        pixels = torch.stack([before, after], dim=-1)
        weights = torch.stack([1 - fraction, fraction], dim=-1)
        weights = weights * is_inside[:, :, None] / self.sampling_ratio
        shape = (-1, bins, 2 * self.sampling_ratio)
        return pixels.reshape(shape), weights.reshape(shape)


def as_roi_align_reads(maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Maps contiguous and at least in float32, in one copy instead of torchvision's two."""
    return {
        name: one.to(
            torch.promote_types(one.dtype, torch.float32), memory_format=torch.contiguous_format
        )
        for name, one in maps.items()
    }


class WeightedSum(torch.autograd.Function):
    """Weighted sums `[M, C]` of the pixels of maps `[B, C, h, w]`; indices and weights `[M, K]`."""

    @staticmethod
    def forward(context: Any, indices: Tensor, weights: Tensor, *maps: Tensor) -> Tensor:
        context.save_for_backward(indices, weights)
        context.shapes, context.dtype = [one.shape for one in maps], maps[0].dtype
        channels = maps[0].shape[1]
        sizes = [one[:, 0].numel() for one in maps]
        pixels = weights.new_empty(sum(sizes), channels)
        for part, one in zip(pixels.split(sizes), maps, strict=True):
            part.view(len(one), *one.shape[2:], channels).copy_(one.permute(0, 2, 3, 1))
        return embedding_bag(indices, pixels, per_sample_weights=weights, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        indices, weights = context.saved_tensors
        sizes = [images * height * width for images, _, height, width in context.shapes]
        # The transposed matrix: for each pixel, the sums that it is part of.
        order = indices.flatten().argsort(stable=True)
        counts = torch.bincount(indices.flatten(), minlength=sum(sizes))
        gradients = embedding_bag(
            order.div(indices.shape[1], rounding_mode="floor"),
            gradient,
            counts.cumsum(0) - counts,
            per_sample_weights=weights.flatten()[order],
            mode="sum",
        )
        parts = [
            part.view(images, height, width, -1).permute(0, 3, 1, 2).to(context.dtype)
            for part, (images, _, height, width) in zip(
                gradients.split(sizes), context.shapes, strict=True
            )
        ]
        return None, None, *parts

"""What reaches the heads: the pyramid of several networks on one frame, as maps of energy."""

import torch
from PIL import Image, ImageOps
from torch import Tensor

from cmkd.viewing.drawing import sheet, tile
from models import LEVELS, Detector

PYRAMID = dict(zip(LEVELS, ("P2", "P3", "P4", "P5"), strict=True))
# Both ends and the middle of cividis, which colour-blind and other eyes see alike.
LOW, MIDDLE, HIGH = "#00204D", "#7C7B78", "#FFEA46"
BRIGHTEST = 0.995  # of the places of a level; what lies above is shown as this


@torch.inference_mode()
def energies(detector: Detector, image: Tensor) -> dict[str, Tensor]:
    """The root mean square over channels of each level, `[h, w]` by its name, without the padding; of a uint8 image
    `[6, H, W]`, of whose channels the detector takes the first."""
    own = image[: detector.settings["channels"]].to(next(detector.parameters()).device)
    sizes = []
    hook = detector.transform.register_forward_hook(lambda _, __, outputs: sizes.append(
        (*outputs[0].image_sizes[0], *outputs[0].tensors.shape[-2:])))
    pyramid = detector.features([own])
    hook.remove()
    [(height, width, padded_height, padded_width)] = sizes
    maps = {}
    for level, features in pyramid.items():
        energy = features[0].float().square().mean(dim=0).sqrt().cpu()
        rows, columns = (max(1, round(size * whole / padded)) for size, whole, padded in zip(
            energy.shape, (height, width), (padded_height, padded_width), strict=True))
        maps[level] = energy[:rows, :columns]
    return maps


def coloured(energy: Tensor, low: float, high: float, size: tuple[int, int]) -> Image.Image:
    """A map `[h, w]` as a picture of this width and height, between the colours of `low` and `high`."""
    grey = ((energy - low) / max(high - low, 1e-12)).clamp(0, 1).mul(255).to(torch.uint8)
    picture = Image.fromarray(grey.numpy()).resize(size, Image.Resampling.BILINEAR)
    return ImageOps.colorize(picture, LOW, HIGH, MIDDLE)


def features_sheet(detectors: dict[str, Detector], image: Tensor, name: str) -> Image.Image:
    """A row for each level and a column for each network, beside the frame (uint8 `[6, H, W]`). One level has one
    scale for all networks, so that brighter means more; it stands in the row's title."""
    pictures = [tile(image[:3])[0], *(tile(image[channel : channel + 1])[0] for channel in (3, 4, 5))]
    titles = ["RGB", "slice 0", "slice 1", "slice 2"]
    maps = {title: energies(detector, image) for title, detector in detectors.items()}
    rows = []
    for level, picture, title in zip(LEVELS, pictures, titles, strict=True):
        values = torch.cat([one[level].flatten() for one in maps.values()])
        low, high = float(values.min()), float(values.quantile(BRIGHTEST))
        rows.append((f"{title}; {PYRAMID[level]}: from {low:.2f} (dark) to {high:.2f} (bright)",
                     [picture, *(coloured(one[level], low, high, picture.size) for one in maps.values())]))
    return sheet([name, *maps], rows, {})

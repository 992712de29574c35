"""What reaches the heads: the pyramids of several networks on one frame, as maps of energy."""

import torch
from PIL import Image, ImageOps
from torch import Tensor

from cmkd.viewing.contact_sheet import contact_sheet
from cmkd.viewing.drawing import image_tile
from models import LEVELS, Detector, unit_range

PYRAMID = dict(zip(LEVELS, ("P2", "P3", "P4", "P5"), strict=True))
# Both ends and the middle of cividis, which looks the same to colour-blind eyes.
DARK, MIDDLE, BRIGHT = "#00204D", "#7C7B78", "#FFEA46"
BRIGHTEST = 0.995  # quantile of a level's energy; higher values have the brightest colour


@torch.inference_mode()
def energy_maps(detector: Detector, image: Tensor) -> dict[str, Tensor]:
    """The root mean square over the channels of each level, `[h, w]`, without the padding.

    `image` is uint8 `[6, H, W]`; the detector takes the channels that it sees.
    """
    device = next(detector.parameters()).device
    images = detector.seen([image.to(device)])
    pyramid = detector.features(images)
    resized, _ = detector.transform(unit_range(images))
    [(height, width)] = resized.image_sizes
    padded_height, padded_width = resized.tensors.shape[-2:]
    maps = {}
    for level, features in pyramid.items():
        energy = features[0].float().square().mean(dim=0).sqrt().cpu()
        rows = max(1, round(energy.shape[0] * height / padded_height))
        columns = max(1, round(energy.shape[1] * width / padded_width))
        maps[level] = energy[:rows, :columns]
    return maps


def colourise(energy: Tensor, low: float, high: float, size: tuple[int, int]) -> Image.Image:
    """A map `[h, w]` as a picture (width, height): `low` is dark, `high` is bright."""
    grey = ((energy - low) / max(high - low, 1e-12)).clamp(0, 1).mul(255).to(torch.uint8)
    picture = Image.fromarray(grey.numpy()).resize(size, Image.Resampling.BILINEAR)
    return ImageOps.colorize(picture, DARK, BRIGHT, MIDDLE)


def feature_sheet(detectors: dict[str, Detector], image: Tensor, name: str) -> Image.Image:
    """A row for each level and a column for each network, beside the frame (uint8 `[6, H, W]`).

    All networks share a level's scale, which is in the row's title.
    """
    maps = {title: energy_maps(detector, image) for title, detector in detectors.items()}
    own_images = {"RGB": image[:3], **{f"slice {n}": image[3 + n : 4 + n] for n in range(3)}}
    rows = []
    for level, (what, own_image) in zip(LEVELS, own_images.items(), strict=True):
        values = torch.cat([levels[level].flatten() for levels in maps.values()])
        low, high = float(values.min()), float(values.quantile(BRIGHTEST))
        tile = image_tile(own_image)
        coloured = [colourise(levels[level], low, high, tile.size) for levels in maps.values()]
        title = f"{what}; {PYRAMID[level]}: from {low:.2f} (dark) to {high:.2f} (bright)"
        rows.append((title, [tile, *coloured]))
    return contact_sheet([name, *maps], rows, {})

"""Run a script whose random parts choose the first instead.

What is left is arithmetic, in which several processes must equal one.

    python tests/without_chance.py train_baseline.py ...
"""

import runpy
import sys
from pathlib import Path

import torch
from torch import nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler


def choose_the_first(sampler, matched_idxs):
    """As many boxes as torchvision's sampler takes, the first of each kind."""
    chosen = []
    for labels in matched_idxs:
        positive, negative = torch.where(labels >= 1)[0], torch.where(labels == 0)[0]
        positive = positive[: int(sampler.batch_size_per_image * sampler.positive_fraction)]
        negative = negative[: sampler.batch_size_per_image - len(positive)]
        assert (
            len(positive) + len(negative) == sampler.batch_size_per_image
        )  # else means of means differ
        chosen.append(
            [
                torch.zeros_like(labels, dtype=torch.uint8).index_fill(0, one, 1)
                for one in (positive, negative)
            ]
        )
    return tuple(map(list, zip(*chosen, strict=True)))


BalancedPositiveNegativeSampler.__call__ = choose_the_first
nn.Dropout.forward = lambda self, features: features
sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")

"""Baseline: the RGB-only detector that the students are compared with.

    L = L_det            Faster R-CNN's four losses on RGB

Published (CMKD, ICASSP 2023): COCO mAP 22.5 val_night, 24.2 test_night.
"""

from torch import Tensor
from torch.optim import SGD

from cmkd.runtime.failures import run
from dataset import Batch, SeeingThroughFog, make_loader, training_loader
from engine import fit
from models import build_detector
from utils import detector_options, seed_everything, training_parser


def main() -> None:
    args = training_parser("baseline", __doc__).parse_args()
    seed_everything(args.seed)

    # Data
    train_loader = training_loader(args, "rgb")
    val_set = SeeingThroughFog(args.data, args.val_list, "rgb", args.classes, args.ignore)
    val_loader = make_loader(val_set, args.batch_size, args.workers)

    # Network
    baseline = build_detector(3, val_set.num_classes, **detector_options(args))
    baseline.to(args.device)

    # Loss
    def compute_losses(batch: Batch) -> dict[str, Tensor]:
        images, targets = batch
        losses, _ = baseline(images, targets)
        return losses

    # Optimizer
    optimizer = SGD(baseline.parameters(), args.lr, momentum=0.9, weight_decay=0.0005, fused=True)

    fit(
        baseline,
        compute_losses,
        optimizer,
        train_loader,
        val_loader,
        weights=args.out / "baseline.pth",
        settings={**baseline.settings, "classes": args.classes, "ignore": args.ignore},
        arguments=vars(args),
    )


if __name__ == "__main__":
    run(main)

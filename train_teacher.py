"""Teacher: the detector that sees RGB and three gated slices, and that the students imitate.

    L = L_det            Faster R-CNN's four losses on six channels: R, G, B, gated0, gated1, gated2

Published (CMKD, ICASSP 2023): COCO mAP 25.8 val_night, 27.5 test_night.
"""

from torch import Tensor
from torch.optim import SGD

from cmkd.runtime.failures import run
from dataset import Batch, SeeingThroughFog, make_loader, training_loader
from engine import fit
from models import build_detector
from utils import detector_options, seed_everything, training_parser


def main() -> None:
    args = training_parser("teacher", __doc__).parse_args()
    seed_everything(args.seed)

    # Data
    train_loader = training_loader(args, "rgb+gated")
    val_set = SeeingThroughFog(args.data, args.val_list, "rgb+gated", args.classes, args.ignore)
    val_loader = make_loader(val_set, args.batch_size, args.workers)

    # Network
    teacher = build_detector(6, val_set.num_classes, **detector_options(args))
    teacher.to(args.device)

    # Loss
    def compute_losses(batch: Batch) -> dict[str, Tensor]:
        images, targets = batch
        losses, _ = teacher(images, targets)
        return losses

    # Optimizer
    optimizer = SGD(teacher.parameters(), args.lr, momentum=0.9, weight_decay=0.0005, fused=True)

    fit(
        teacher,
        compute_losses,
        optimizer,
        train_loader,
        val_loader,
        weights=args.out / "teacher.pth",
        settings={**teacher.settings, "classes": args.classes, "ignore": args.ignore},
        arguments=vars(args),
    )


if __name__ == "__main__":
    run(main)

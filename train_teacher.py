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
    parser = training_parser("teacher", __doc__)
    parser.add_argument(
        "--input",
        choices=["rgb+gated", "gated"],
        default="rgb+gated",
        help="what the teacher sees (published: rgb+gated)",
    )
    args = parser.parse_args()
    seed_everything(args.seed)

    # Data
    train_loader = training_loader(args, args.input)
    val_set = SeeingThroughFog(args.data, args.val_list, args.input, args.classes, args.ignore)
    val_loader = make_loader(val_set, args.batch_size, args.workers)

    # Network
    channels = 6 if args.input == "rgb+gated" else 3
    options = detector_options(args)
    teacher = build_detector(channels, val_set.num_classes, modality=args.input, **options)
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

"""CMKD-Plus: an RGB student that begins as the teacher.

    L = L_det            Faster R-CNN's four losses on RGB, from the teacher's weights

Of the teacher's stem, the sum of the kernels for gated slices is shared out over those for RGB. --init and --stem
change nothing here. Not in the paper. In docs/results.md a baseline that trains for as many epochs as teacher and
student together gains as much; the losses that were tried beside this start took from it.
"""

from pathlib import Path

from torch import Tensor
from torch.optim import SGD

from cmkd.runtime.failures import run
from dataset import SeeingThroughFog, make_loader
from engine import Batch, fit, report_teacher
from models import WeightsError, build_detector, load_teacher
from utils import seed_everything, training_parser


def main() -> None:
    parser = training_parser("cmkd_plus", __doc__)
    parser.add_argument("--teacher", type=Path, default=Path("weights/teacher.pth"),
                        help="trained 6-channel weights (default: weights/teacher.pth)")
    args = parser.parse_args()
    seed_everything(args.seed)

    # Data
    train_set = SeeingThroughFog(args.data, args.train_list, "rgb", args.classes, args.ignore, args.flip)
    train_set.decode_once(args.cache, args.min_size, args.max_size)
    val_set = SeeingThroughFog(args.data, args.val_list, "rgb", args.classes, args.ignore)
    teacher_val_set = SeeingThroughFog(args.data, args.val_list, "rgb+gated", args.classes, args.ignore)
    train_loader = make_loader(train_set, args.batch_size * args.accumulate, args.workers, shuffle=True)
    val_loader = make_loader(val_set, args.batch_size, args.workers)

    # Networks
    teacher = load_teacher(args.teacher, args.min_size, args.max_size, args.compile).to(args.device)
    student = build_detector(
        3, train_set.num_classes, args.backbone, str(args.teacher), "inflate",
        min_size=args.min_size, max_size=args.max_size, rois=args.rois, proposals=args.proposals,
        compiled=args.compile).to(args.device)

    # Loss
    def compute_losses(batch: Batch) -> dict[str, Tensor]:
        images, targets = batch
        losses, _ = student(images, targets)
        return losses

    # Optimizer
    optimizer = SGD(student.parameters(), args.lr, momentum=0.9, weight_decay=0.0005, fused=True)

    fit(student, compute_losses, optimizer, train_loader, val_loader, weights=args.out / "cmkd_plus.pth",
        run_dir=args.run_dir, settings={**student.settings, "classes": args.classes, "ignore": args.ignore},
        arguments=vars(args),
        measure=lambda: {"teacher_AP": report_teacher(
            teacher, make_loader(teacher_val_set, args.batch_size, args.workers), args.amp)})


if __name__ == "__main__":
    run(main, WeightsError)

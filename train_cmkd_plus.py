"""CMKD-Plus: an RGB student that begins as the teacher and keeps the course of its features, whatever their size.

    L = L_det + w * mean over P2..P5 and channels of (1 - r(F_student, F_teacher)),  w = 10 * rate / initial rate

r is Pearson's correlation over batch and places, as in PKD (Cao et al., NeurIPS 2022): where the student sees less than
the teacher its features are weaker, and a squared error is mostly that. The student begins with the teacher's weights;
of its stem, the kernels for gated slices are added to those for RGB. w follows the learning rate: the teacher leads at
first, and the end of the schedule is the labels'. docs/results.md has what else was tried.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.optim import SGD

from dataset import SeeingThroughFog, make_loader
from engine import Batch, fit, report_teacher
from failures import run
from models import WeightsError, build_detector, load_teacher
from utils import non_negative_float, seed_everything, training_parser


def feature_correlation(student_features: dict[str, Tensor], teacher_features: dict[str, Tensor]) -> Tensor:
    """Mean over the levels and channels of 1 - Pearson's r between `[B, C, h, w]` maps, over batch and places; a scalar
    in float32, 0..2. Maps without variance correlate with nothing."""
    losses = []
    for level in teacher_features:
        student, teacher = (maps[level].float() - maps[level].float().mean(dim=(0, 2, 3), keepdim=True)
                            for maps in (student_features, teacher_features))
        covariance, *variances = ((one * other).mean(dim=(0, 2, 3)) for one, other in (
            (student, teacher), (student, student), (teacher, teacher)))
        losses.append((1 - covariance / (variances[0] * variances[1] + 1e-6).sqrt()).mean())
    return torch.stack(losses).mean()


def main() -> None:
    parser = training_parser("cmkd_plus", __doc__)
    parser.add_argument("--teacher", type=Path, default=Path("weights/teacher.pth"),
                        help="trained 6-channel weights (default: weights/teacher.pth)")
    parser.add_argument("--start", choices=["teacher", "init"], default="teacher",
                        help="the student begins with the teacher's weights, or with --init and --stem as the others "
                             "do (default: teacher)")
    parser.add_argument("--feature-weight", type=non_negative_float, default=10.0,
                        help="w at the initial learning rate (default: 10)")
    args = parser.parse_args()
    seed_everything(args.seed)

    # Data: the student trains on the RGB channels of the frames that the teacher sees whole.
    train_set = SeeingThroughFog(args.data, args.train_list, "rgb+gated", args.classes, args.ignore, args.flip)
    train_set.decode_once(args.cache, args.min_size, args.max_size)
    val_set = SeeingThroughFog(args.data, args.val_list, "rgb", args.classes, args.ignore)
    teacher_val_set = SeeingThroughFog(args.data, args.val_list, "rgb+gated", args.classes, args.ignore)
    train_loader = make_loader(train_set, args.batch_size * args.accumulate, args.workers, shuffle=True)
    val_loader = make_loader(val_set, args.batch_size, args.workers)

    # Networks
    start = (str(args.teacher), "inflate") if args.start == "teacher" else (args.init, args.stem)
    student = build_detector(
        3, train_set.num_classes, args.backbone, *start,
        min_size=args.min_size, max_size=args.max_size, rois=args.rois, proposals=args.proposals,
        compiled=args.compile).to(args.device)
    teacher = load_teacher(args.teacher, args.min_size, args.max_size, args.compile).to(args.device)

    # Loss
    def compute_losses(batch: Batch) -> dict[str, Tensor]:
        images, targets = batch
        losses, student_features = student([image[:3] for image in images], targets)
        with torch.no_grad():
            teacher_features = teacher.features(images)
        [group] = optimizer.param_groups
        weight = args.feature_weight * group["lr"] / group["initial_lr"]
        losses["kd_correlation"] = weight * feature_correlation(student_features, teacher_features)
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

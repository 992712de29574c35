"""CMKD-MSE: an RGB student whose pyramid features are pulled to the frozen teacher's.

    L = L_det + alpha * mean over P2..P5 of mean((F_student - F_teacher)^2),  alpha = 0.5

On frames without labels (--unlabelled-list without --machine-labels) L_det is 0.

Published (CMKD, ICASSP 2023): COCO mAP 23.6 val_night, 25.4 test_night.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.optim import SGD

from cmkd.runtime.command_line import non_negative_float
from cmkd.runtime.failures import run
from cmkd.runtime.weights import sha256_of
from dataset import Batch, SeeingThroughFog, make_loader, training_loader
from engine import fit
from models import build_detector, load_teacher
from utils import detector_options, known_teacher_ap, seed_everything, training_parser


def feature_mse(student_features: dict[str, Tensor], teacher_features: dict[str, Tensor]) -> Tensor:
    """Mean over the levels of the mean squared difference; a scalar in float32.

    Features are `[B, C, h, w]`.
    """
    return torch.stack(
        [
            mse_loss(student_features[level].float(), teacher_features[level].float())
            for level in teacher_features
        ]
    ).mean()


def main() -> None:
    parser = training_parser("cmkd_mse", __doc__)
    parser.add_argument(
        "--teacher",
        type=Path,
        default=Path("weights/teacher.pth"),
        help="trained 6-channel weights (default: weights/teacher.pth)",
    )
    parser.add_argument(
        "--mse-weight", type=non_negative_float, default=0.5, help="alpha (published: 0.5)"
    )
    args = parser.parse_args()
    seed_everything(args.seed)

    # Data: the student sees the RGB channels of frames of which the teacher sees all six
    train_loader = training_loader(args, "rgb+gated", may_lack_labels=True)
    val_set = SeeingThroughFog(args.data, args.val_list, "rgb", args.classes, args.ignore)
    val_loader = make_loader(val_set, args.batch_size, args.workers)

    # Networks
    student = build_detector(3, val_set.num_classes, **detector_options(args))
    student.to(args.device)
    teacher = load_teacher(args.teacher, args.min_size, args.max_size, args.compile).to(args.device)
    teacher_ap = known_teacher_ap(args, val_set.fingerprint)

    # Loss
    def compute_losses(batch: Batch) -> dict[str, Tensor]:
        images, targets = batch
        losses, student_features = student([image[:3] for image in images], targets)
        with torch.no_grad():
            teacher_features = teacher.features(images)
        losses["kd_mse"] = args.mse_weight * feature_mse(student_features, teacher_features)
        return losses

    # Optimizer
    optimizer = SGD(student.parameters(), args.lr, momentum=0.9, weight_decay=0.0005, fused=True)

    fit(
        student,
        compute_losses,
        optimizer,
        train_loader,
        val_loader,
        weights=args.out / "cmkd_mse.pth",
        settings={
            **student.settings,
            "classes": args.classes,
            "ignore": args.ignore,
            "teacher_AP": teacher_ap,
        },
        arguments={**vars(args), "teacher_sha256": sha256_of(args.teacher)},
    )


if __name__ == "__main__":
    run(main)

"""CMKD-Adv: an RGB student whose features discriminators cannot tell from the frozen teacher's.

    L = L_det + mean over P2..P5 of BCE(D_level(F), domain)
    domain = 0 for the student, 1 for the teacher

The discriminators minimise L. The student's features reach them through a gradient reversal of
weight lambda = 0.3, so the student maximises their part of it. One optimizer trains both.
On frames without labels (--unlabelled-list without --machine-labels) L_det is 0.

Published (CMKD, ICASSP 2023): COCO mAP 24.2 val_night, 26.0 test_night.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim import SGD

from cmkd.runtime.command_line import non_negative_float
from cmkd.runtime.failures import run
from cmkd.runtime.weights import sha256_of
from dataset import Batch, SeeingThroughFog, make_loader, training_loader
from engine import fit
from models import build_detector, build_discriminators, load_teacher, reverse_gradient
from utils import detector_options, known_teacher_ap, seed_everything, training_parser


def domain_bce(
    discriminators: nn.ModuleDict,
    student_features: dict[str, Tensor],
    teacher_features: dict[str, Tensor],
    weight: float,
) -> Tensor:
    """Mean over the levels of the discriminator's binary cross-entropy; a scalar in float32.

    Features are `[B, C, h, w]`. `weight` is the lambda of the gradient reversal: it scales the
    gradient that the student receives, not the value.
    """
    losses = []
    for level, discriminator in discriminators.items():
        student_logits = discriminator(reverse_gradient(student_features[level], weight))
        teacher_logits = discriminator(teacher_features[level])
        logits = torch.cat([student_logits, teacher_logits]).float()
        domains = [torch.zeros_like(student_logits), torch.ones_like(teacher_logits)]
        losses.append(binary_cross_entropy_with_logits(logits, torch.cat(domains).float()))
    return torch.stack(losses).mean()


def main() -> None:
    parser = training_parser("cmkd_adv", __doc__)
    parser.add_argument(
        "--teacher",
        type=Path,
        default=Path("weights/teacher.pth"),
        help="trained 6-channel weights (default: weights/teacher.pth)",
    )
    parser.add_argument(
        "--adv-weight", type=non_negative_float, default=0.3, help="lambda (published: 0.3)"
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
    discriminators = build_discriminators().to(args.device)
    teacher = load_teacher(args.teacher, args.min_size, args.max_size, args.compile).to(args.device)
    teacher_ap = known_teacher_ap(args, val_set.fingerprint)

    # Loss
    def compute_losses(batch: Batch) -> dict[str, Tensor]:
        images, targets = batch
        losses, student_features = student([image[:3] for image in images], targets)
        with torch.no_grad():
            teacher_features = teacher.features(images)
        features = student_features, teacher_features
        losses["kd_adv"] = domain_bce(discriminators, *features, args.adv_weight)
        return losses

    # Optimizer
    parameters = [*student.parameters(), *discriminators.parameters()]
    optimizer = SGD(parameters, args.lr, momentum=0.9, weight_decay=0.0005, fused=True)

    fit(
        student,
        compute_losses,
        optimizer,
        train_loader,
        val_loader,
        weights=args.out / "cmkd_adv.pth",
        settings={
            **student.settings,
            "classes": args.classes,
            "ignore": args.ignore,
            "teacher_AP": teacher_ap,
        },
        arguments={**vars(args), "teacher_sha256": sha256_of(args.teacher)},
        also_trained=discriminators,
    )


if __name__ == "__main__":
    run(main)

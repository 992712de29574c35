"""Every loss that was tried beyond the paper, as one student.

    L = L_det + w_f * features + w_r * response + w_b * boxes + w_h * hallucination

features       mean over P2..P5 of 1 - Pearson's r of each channel with the teacher's (PKD, Cao et al. 2022), with
               `--focus` more where the teacher's region proposal network sees objects; `--features mse` is CMKD-MSE's
response       focal cross-entropy of the RPN's objectness with the teacher's (`--response-weight`)
boxes          KL divergence of the box head's classes from the teacher's on the teacher's proposals (`--box-weight`)
hallucination  mean absolute error of the gated slices, predicted from P2 by a head that only training has
`--features level_mse` divides each level's error by the teacher's variance, `adv` is CMKD-Adv, with a warm-up
`--average`    what is validated and saved is the moving average of the student (mean teacher)
"""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, kl_div
from torch.optim import SGD

from dataset import SeeingThroughFog, make_loader
from engine import Batch, fit, report_teacher
from failures import run
from models import (
    FEATURE_CHANNELS,
    LEVELS,
    WeightsError,
    build_detector,
    build_discriminators,
    load_teacher,
    reverse_gradient,
    unit_range,
)
from utils import non_negative_float, seed_everything, training_parser


def feature_correlation(student_features: dict[str, Tensor], teacher_features: dict[str, Tensor],
                        importance: dict[str, Tensor] | None = None) -> Tensor:
    """Mean over the levels and channels of 1 - Pearson's r between `[B, C, h, w]` maps, over batch and places.

    `importance` `[B, 1, h, w]` weighs the places. 0..2, a scalar in float32.
    """
    losses = []
    for level in teacher_features:
        both = student_features[level].float(), teacher_features[level].float()
        weight = torch.ones_like(both[0][:, :1]) if importance is None else importance[level]
        weight = weight / weight.sum()
        centred = [maps - (maps * weight).sum(dim=(0, 2, 3), keepdim=True) for maps in both]
        covariance, *variances = [(one * other * weight).sum(dim=(0, 2, 3))
                                  for one, other in (centred, (centred[0], centred[0]), (centred[1], centred[1]))]
        losses.append((1 - covariance / (variances[0] * variances[1] + 1e-6).sqrt()).mean())
    return torch.stack(losses).mean()


def focal_response(student_logits: list[Tensor], teacher_logits: list[Tensor]) -> Tensor:
    """Cross-entropy of objectness `[B, A, h, w]` with the teacher's probabilities, weighted by how far they are apart,
    per object that the teacher sees; a scalar."""
    student, teacher = (torch.cat([level.float().flatten() for level in one])
                        for one in (student_logits, teacher_logits))
    target = teacher.sigmoid()
    distance = (target - student.sigmoid()).abs().detach()
    losses = binary_cross_entropy_with_logits(student, target, reduction="none")
    return (losses * distance).sum() / target.sum().clamp(min=1)


def objectness(detector: nn.Module, features: dict[str, Tensor]) -> list[Tensor]:
    return detector.rpn.head([features[level] for level in LEVELS])[0]


def main() -> None:
    parser = training_parser("trials", __doc__)
    parser.add_argument("--teacher", type=Path, default=Path("weights/teacher.pth"))
    parser.add_argument("--features", choices=["pkd", "mse", "level_mse", "adv"], default="pkd")
    parser.add_argument("--feature-weight", type=non_negative_float, default=1.0)
    parser.add_argument("--anneal", action="store_true", help="the features' weight falls as the learning rate does")
    parser.add_argument("--focus", type=non_negative_float, default=0.0)
    parser.add_argument("--disagreement", action="store_true",
                        help="--focus on the places where the two networks' objectness differs")
    parser.add_argument("--adv-weight", type=non_negative_float, default=0.3)
    parser.add_argument("--warm-up-epochs", type=non_negative_float, default=0.0, help="the reversal's weight grows")
    parser.add_argument("--response-weight", type=non_negative_float, default=0.0)
    parser.add_argument("--box-weight", type=non_negative_float, default=0.0)
    parser.add_argument("--hallucinate-weight", type=non_negative_float, default=0.0)
    parser.add_argument("--average", type=non_negative_float, default=0.0)
    parser.add_argument("--fold-stem", action="store_true",
                        help="with --init TEACHER: its kernels for gated slices are added to those for RGB, so that a "
                             "grey picture has the same response")
    parser.add_argument("--adapt", action="store_true", help="a learned 1x1 convolution before the comparison")
    parser.add_argument("--feature-levels", nargs="+", choices=LEVELS, default=LEVELS)
    args = parser.parse_args()
    seed_everything(args.seed)

    train_set = SeeingThroughFog(args.data, args.train_list, "rgb+gated", args.classes, args.ignore, args.flip)
    train_set.decode_once(args.cache, args.min_size, args.max_size)
    val_set = SeeingThroughFog(args.data, args.val_list, "rgb", args.classes, args.ignore)
    teacher_val_set = SeeingThroughFog(args.data, args.val_list, "rgb+gated", args.classes, args.ignore)
    train_loader = make_loader(train_set, args.batch_size * args.accumulate, args.workers, shuffle=True)
    val_loader = make_loader(val_set, args.batch_size, args.workers)

    student = build_detector(
        3, train_set.num_classes, args.backbone, args.init, args.stem,
        min_size=args.min_size, max_size=args.max_size, rois=args.rois, proposals=args.proposals,
        compiled=args.compile).to(args.device)
    teacher = load_teacher(args.teacher, args.min_size, args.max_size, args.compile).to(args.device)
    if args.fold_stem:
        kernels = teacher.backbone.body.conv1.weight
        with torch.no_grad():
            student.backbone.body.conv1.weight.copy_(kernels[:, :3] + kernels[:, 3:].sum(dim=1, keepdim=True) / 3)
    hallucinator = nn.Sequential(
        nn.Conv2d(FEATURE_CHANNELS, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 3, 1)).to(args.device)
    adapters = nn.ModuleDict({level: nn.Conv2d(FEATURE_CHANNELS, FEATURE_CHANNELS, 1) for level in LEVELS})
    for adapter in adapters.to(args.device).values():
        nn.init.dirac_(adapter.weight)
    discriminators = build_discriminators().to(args.device)
    steps, accuracies = 0, []
    averaged = copy.deepcopy(student).requires_grad_(False) if args.average else student

    @torch.no_grad()
    def follow() -> None:
        for own, other in zip(averaged.parameters(), student.parameters(), strict=True):
            own.lerp_(other, 1 - args.average)

    def domain_bce(student_features: dict[str, Tensor], teacher_features: dict[str, Tensor]) -> Tensor:
        nonlocal steps
        steps += 1
        ramp = min(1.0, steps / max(1.0, args.warm_up_epochs * len(train_loader)))
        losses = []
        for level in student_features:
            logits = torch.cat([
                discriminators[level](reverse_gradient(student_features[level], ramp * args.adv_weight)),
                discriminators[level](teacher_features[level])]).float()
            domains = (torch.arange(len(logits), device=logits.device) >= len(logits) / 2).float()[:, None]
            losses.append(binary_cross_entropy_with_logits(logits, domains))
            accuracies.append(((logits > 0) == (domains > 0)).float().mean().item())
        if steps % 50 == 0:
            by_level = torch.tensor(accuracies).view(-1, len(student_features)).mean(dim=0)
            print(f"step {steps}: discriminators right {[round(one, 2) for one in by_level.tolist()]}")
            accuracies.clear()
        return torch.stack(losses).mean()

    def compute_losses(batch: Batch) -> dict[str, Tensor]:
        if args.average:
            follow()
        left = optimizer.param_groups[0]["lr"] / args.lr if args.anneal else 1.0
        images, targets = batch
        losses, student_features = student([image[:3] for image in images], targets)
        with torch.no_grad():
            whole, _ = teacher.transform(unit_range(images))
            maps = teacher.backbone(whole.tensors)
            teacher_features = {level: maps[level] for level in LEVELS}
            teacher_logits = objectness(teacher, teacher_features)
            seen = [logits.sigmoid() for logits in teacher_logits]
            if args.disagreement:
                seen = [(one - logits.sigmoid()).abs() for one, logits
                        in zip(seen, objectness(student, student_features), strict=True)]
            importance = {level: 1 + args.focus * one.amax(dim=1, keepdim=True)
                          for level, one in zip(LEVELS, seen, strict=True)}
        if args.feature_weight:
            chosen = [{level: maps[level] for level in args.feature_levels}
                      for maps in (student_features, teacher_features)]
            if args.adapt:
                chosen[0] = {level: adapters[level](maps) for level, maps in chosen[0].items()}
            if args.features == "pkd":
                value = feature_correlation(*chosen, importance)
            elif args.features == "adv":
                value = domain_bce(*chosen)
            elif args.features == "level_mse":
                value = torch.stack([((maps.float() - chosen[1][level].float()) ** 2).mean()
                                     / chosen[1][level].float().var() for level, maps in chosen[0].items()]).mean()
            else:
                value = torch.stack([
                    (importance[level] * (chosen[0][level].float() - chosen[1][level].float()) ** 2).mean()
                    / importance[level].mean() for level in args.feature_levels]).mean()
            losses["kd_features"] = left * args.feature_weight * value
        if args.response_weight:
            losses["kd_response"] = args.response_weight * focal_response(
                objectness(student, student_features), teacher_logits)
        if args.box_weight:
            with torch.no_grad():
                regions, _ = teacher.rpn(whole, maps)
                regions = [one[:32] for one in regions]
                expected = teacher.roi_heads.box_predictor(teacher.roi_heads.box_head(
                    teacher.roi_heads.box_roi_pool({level: one.float().contiguous() for level, one in maps.items()},
                                                   regions, whole.image_sizes)))[0]
            found = student.roi_heads.box_predictor(student.roi_heads.box_head(student.roi_heads.box_roi_pool(
                {level: one.float().contiguous() for level, one in student_features.items()},
                regions, whole.image_sizes)))[0]
            losses["kd_boxes"] = args.box_weight * kl_div(
                found.float().log_softmax(1), expected.float().log_softmax(1), log_target=True, reduction="batchmean")
        if args.hallucinate_weight:
            slices = avg_pool2d(whole.tensors[:, 3:].float(), 4)
            predicted = hallucinator(student_features["0"]).float()
            losses["kd_hallucination"] = args.hallucinate_weight * (predicted - slices).abs().mean()
        return losses

    helpers = nn.ModuleList([hallucinator, adapters, discriminators])
    parameters = [*student.parameters(), *helpers.parameters()]
    optimizer = SGD(parameters, args.lr, momentum=0.9, weight_decay=0.0005, fused=True)

    fit(averaged, compute_losses, optimizer, train_loader, val_loader, weights=args.out / "trials.pth",
        run_dir=args.run_dir, settings={**student.settings, "classes": args.classes, "ignore": args.ignore},
        arguments=vars(args), also_trained=nn.ModuleList([student, helpers]),
        measure=lambda: {"teacher_AP": report_teacher(
            teacher, make_loader(teacher_val_set, args.batch_size, args.workers), args.amp)})


if __name__ == "__main__":
    run(main, WeightsError)

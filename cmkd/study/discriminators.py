"""Do the discriminators of CMKD-Adv learn, win or die? A student's first steps, level by level.

    python -m cmkd.study.discriminators --study runs/cpu --json runs/bench/discriminators.json

For each tenth of the steps the table has
- entropy: the discriminators' cross-entropy, 0.693 if they cannot tell student from teacher;
- right: how often they are right, 0..1;
- alive: the share of their last, one-channel map that is above zero for the teacher's features.
If nothing is above zero, the ReLU is dead: the answer is the same for any features, and the student
receives no gradient. `--slope` puts a leaky ReLU there; with `--adv-weight 0` the student does not
resist.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim import SGD
from torch.utils.data import DataLoader
from tqdm import tqdm

from cmkd.evaluation.options import add_json, add_study
from cmkd.evaluation.predict import to_device
from cmkd.evaluation.tables import markdown_table, print_and_save
from cmkd.runtime import hardware
from cmkd.runtime.command_line import OneLineParser, at_least, non_negative_float
from cmkd.runtime.failures import run
from cmkd.runtime.files import UserError
from cmkd.study.jobs import read_study_records
from cmkd.viewing.feature_maps import PYRAMID
from dataset import Batch, SeeingThroughFog, make_loader
from engine import learning_rate
from models import (
    LEVELS,
    DeterministicAdaptiveMaxPool,
    build_detector,
    build_discriminators,
    load_teacher,
    reverse_gradient,
)
from utils import detector_options, seed_everything, training_parser

ROWS = 10

Features = dict[str, Tensor]  # by level, `[B, C, h, w]`


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    add_study(parser)
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the study (default: 0)")
    parser.add_argument("--steps", type=at_least(ROWS), default=600, help="(default: 600)")
    parser.add_argument(
        "--adv-weight", type=non_negative_float, default=0.3, help="lambda (published: 0.3)"
    )
    parser.add_argument(
        "--slope",
        type=non_negative_float,
        default=0.0,
        help="of a leaky ReLU after the last convolution (published: 0)",
    )
    add_json(parser)
    return parser.parse_args()


def read_training_arguments(study: Path, seed: int) -> argparse.Namespace:
    """The arguments with which the study trained its baseline. Raises `UserError`."""
    record = read_study_records(study).get(f"seed{seed}/baseline")
    if not record or not (study / f"seed{seed}/teacher.pth").is_file():
        raise UserError(f"{study} has no teacher of seed {seed}: run reproduce.py first")
    return training_parser("baseline", None).parse_args(record["arguments"][1:])


def domain_entropy(
    discriminator: nn.Module, student_maps: Tensor, teacher_maps: Tensor, weight: float
) -> Tensor:
    """One level's part of `train_cmkd_adv.domain_bce`; a scalar in float32."""
    student_logits = discriminator(reverse_gradient(student_maps, weight))
    teacher_logits = discriminator(teacher_maps)
    logits = torch.cat([student_logits, teacher_logits]).float()
    domains = torch.cat([torch.zeros_like(student_logits), torch.ones_like(teacher_logits)])
    return binary_cross_entropy_with_logits(logits, domains.float())


def index_of_pool(discriminator: nn.Sequential) -> int:
    """The layer that pools the one-channel map. The layer before it is the ReLU of that map."""
    pools = [isinstance(layer, DeterministicAdaptiveMaxPool) for layer in discriminator]
    return pools.index(True)


@torch.no_grad()
def right_and_alive(
    discriminators: nn.ModuleDict, student_features: Features, teacher_features: Features
) -> list[Tensor]:
    """How often each level's discriminator is right, then the share of its last map above zero.

    Without dropout, which belongs to training and would draw from the training's random numbers.
    """
    discriminators.eval()
    right, alive = [], []
    for level in LEVELS:
        discriminator = discriminators[level]
        student_right = (discriminator(student_features[level]) < 0).float().mean()
        teacher_right = (discriminator(teacher_features[level]) > 0).float().mean()
        right.append((student_right + teacher_right) / 2)
        up_to_map = nn.Sequential(*list(discriminator)[: index_of_pool(discriminator)])
        last_map = up_to_map(teacher_features[level])
        alive.append((last_map > 0).float().mean())
    discriminators.train()
    return right + alive


class Training:
    """A student, its teacher and the discriminators, trained as by train_cmkd_adv.py."""

    def __init__(
        self, args: argparse.Namespace, options: argparse.Namespace, num_classes: int
    ) -> None:
        self.args, self.adv_weight = args, options.adv_weight
        teacher_file = options.study / f"seed{options.seed}/teacher.pth"
        student = build_detector(3, num_classes, **detector_options(args))
        self.student = student.to(args.device).train()
        teacher = load_teacher(teacher_file, args.min_size, args.max_size)
        self.teacher = teacher.to(args.device)
        self.discriminators = build_discriminators().to(args.device).train()
        if options.slope:
            for discriminator in self.discriminators.values():
                discriminator[index_of_pool(discriminator) - 1] = nn.LeakyReLU(options.slope)
        parameters = [*self.student.parameters(), *self.discriminators.parameters()]
        self.optimizer = SGD(parameters, args.lr, momentum=0.9, weight_decay=0.0005)

    def step(self, batch: Batch, rate: float) -> Tensor:
        """One step at a learning rate; entropy, right and alive of each level, `[12]`."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images, targets = to_device(batch, self.args.device)
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.amp):
            losses, student_features = self.student([image[:3] for image in images], targets)
            with torch.no_grad():
                teacher_features = self.teacher.features(images)
            entropies = [
                domain_entropy(
                    self.discriminators[level],
                    student_features[level],
                    teacher_features[level],
                    self.adv_weight,
                )
                for level in LEVELS
            ]
            shares = right_and_alive(self.discriminators, student_features, teacher_features)
        self.optimizer.zero_grad()
        (sum(losses.values()) + torch.stack(entropies).mean()).backward()
        self.optimizer.step()
        return torch.stack([*entropies, *shares]).detach().float().cpu()


def watch(training: Training, loader: DataLoader, seed: int, steps: int) -> list[list[float]]:
    """Train; a row per tenth of the steps: the last step, then the means of what `step` returns."""
    seen, rows = [], []
    for step in tqdm(range(steps), unit="step", disable=None):
        epoch, within = divmod(step, len(loader))
        if within == 0:
            epoch_seed = seed_everything(seed, epoch + 1)
            loader.batch_sampler.begin(epoch_seed)
            loader.dataset.seed_flips(epoch_seed)
            batches = iter(loader)
        rate = learning_rate(training.args.lr, epoch + 1, within, len(loader))
        seen.append(training.step(next(batches), rate))
        if len(seen) == steps // ROWS:
            rows.append([step + 1, *torch.stack(seen).mean(dim=0).tolist()])
            seen = []
    return rows


def main() -> None:
    options = parse_arguments()
    args = read_training_arguments(options.study, options.seed)
    seed_everything(options.seed)
    dataset = SeeingThroughFog(
        args.data, args.train_list, "rgb+gated", args.classes, args.ignore, args.flip
    )
    dataset.use_cache("ram", args.min_size, args.max_size)
    loader = make_loader(dataset, args.batch_size, args.workers, shuffle=True)
    hardware.start(args.device, args.amp)
    training = Training(args, options, dataset.num_classes)
    rows = watch(training, loader, options.seed, options.steps)

    heading = ["steps"]
    for what in ("entropy", "right", "alive"):
        heading += [f"{what}, {PYRAMID[level]}" for level in LEVELS]
    shown = [[step, *(f"{value:.2f}" for value in values)] for step, *values in rows]
    numbers = {
        "adv_weight": options.adv_weight,
        "slope": options.slope,
        "head": heading,
        "rows": rows,
    }
    print_and_save(markdown_table([heading, *shown]), numbers, options.json)


if __name__ == "__main__":
    run(main)

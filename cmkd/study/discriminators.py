"""Do the discriminators of CMKD-Adv learn, win or die? The first steps of a student of a study, level by level.

    python -m cmkd.study.discriminators --study runs/cpu --json runs/bench/discriminators.json

In each tenth of the steps: the cross-entropy (0.693 where they cannot tell), how often they are right, and the share of
the places of their last, one-channel map that are above zero, for the teacher's features. Where none is, its ReLU is
dead: the answer is the same for any features, and the student receives nothing. `--slope` puts a leaky ReLU there; with
`--adv-weight 0` the student does not resist.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import nn
from torch.optim import SGD
from tqdm import tqdm

from benchmarks.measure import report, table
from cmkd.runtime.failures import run
from dataset import SeeingThroughFog, make_loader
from engine import learning_rate, to_device
from models import LEVELS, WeightsError, build_detector, build_discriminators, load_teacher
from train_cmkd_adv import domain_bce
from utils import OneLineParser, UserError, at_least, non_negative_float, seed_everything, training_parser

WINDOWS = 10
LAST_MAP = 5  # layers of a discriminator up to its one-channel map


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("runs/cpu"),
                        help="folder of reproduce.py with a trained teacher (default: runs/cpu)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the study (default: 0)")
    parser.add_argument("--steps", type=at_least(WINDOWS), default=600, help="(default: 600)")
    parser.add_argument("--adv-weight", type=non_negative_float, default=0.3, help="lambda (published: 0.3)")
    parser.add_argument("--slope", type=non_negative_float, default=0.0,
                        help="of a leaky ReLU after the last convolution (published: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, and the table beside them")
    own = parser.parse_args()
    teacher_file, jobs_file = own.study / f"seed{own.seed}/teacher.pth", own.study / "jobs.json"
    if not teacher_file.is_file() or not jobs_file.is_file():
        raise UserError(f"{own.study} has no teacher of seed {own.seed}: run reproduce.py first")
    given = json.loads(jobs_file.read_text(encoding="utf-8"))[f"seed{own.seed}/baseline"]["arguments"][1:]
    args = training_parser("baseline", None).parse_args(given)
    seed_everything(own.seed)

    data = SeeingThroughFog(args.data, args.train_list, "rgb+gated", args.classes, args.ignore, args.flip)
    data.decode_once("ram", args.min_size, args.max_size)
    loader = make_loader(data, args.batch_size, args.workers, shuffle=True)
    student = build_detector(3, data.num_classes, args.backbone, args.init, args.stem, min_size=args.min_size,
                             max_size=args.max_size, rois=args.rois).to(args.device).train()
    teacher = load_teacher(teacher_file, args.min_size, args.max_size).to(args.device)
    discriminators = build_discriminators().to(args.device).train()
    if own.slope:
        for discriminator in discriminators.values():
            discriminator[LAST_MAP - 1] = nn.LeakyReLU(own.slope)
    optimizer = SGD([*student.parameters(), *discriminators.parameters()], args.lr, momentum=0.9, weight_decay=0.0005)

    seen, rows = [], []
    for step in tqdm(range(own.steps), unit="step", disable=None):
        epoch, within = divmod(step, len(loader))
        if not within:
            epoch_seed = seed_everything(own.seed, epoch + 1)
            loader.batch_sampler.begin(epoch_seed)
            data.seed_flips(epoch_seed)
            batches = iter(loader)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(args.lr, epoch + 1, within, len(loader))
        images, targets = to_device(next(batches), args.device)
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.amp):
            losses, features = student([image[:3] for image in images], targets)
            with torch.no_grad():
                expected = teacher.features(images)
            entropies = [domain_bce(nn.ModuleDict({level: discriminators[level]}), features, expected, own.adv_weight)
                         for level in LEVELS]
            # Without dropout, which the training alone has, and which would draw from the training's random numbers.
            discriminators.eval()
            with torch.no_grad():
                right = [((discriminators[level](features[level]) < 0).float().mean()
                          + (discriminators[level](expected[level]) > 0).float().mean()) / 2 for level in LEVELS]
                alive = [(nn.Sequential(*list(discriminators[level])[:LAST_MAP])(expected[level]) > 0).float().mean()
                         for level in LEVELS]
        discriminators.train()
        optimizer.zero_grad()
        (sum(losses.values()) + torch.stack(entropies).mean()).backward()
        optimizer.step()
        seen.append(torch.stack([*entropies, *right, *alive]).detach().float().cpu())
        if len(seen) == own.steps // WINDOWS:
            rows.append([step + 1, *torch.stack(seen).mean(dim=0).tolist()])
            seen = []

    head = ["steps", *(f"{what}, P{int(level) + 2}" for what in ("entropy", "right", "alive") for level in LEVELS)]
    report(table(head, [[row[0], *(f"{value:.2f}" for value in row[1:])] for row in rows]),
           {"adv_weight": own.adv_weight, "slope": own.slope, "head": head, "rows": rows}, own.json)


if __name__ == "__main__":
    run(main, WeightsError)

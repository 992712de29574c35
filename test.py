"""Weights -> COCO mAP, log-average miss rate and recall on the val and test lists; of several weights, who sees more.

    python test.py --weights weights/cmkd_adv.pth --data data --lists val_night test_night
    python test.py --weights weights/teacher.pth weights/baseline.pth weights/cmkd_mse.pth

Or set WEIGHTS below and run `python test.py`. What is not given by a flag is read from the weights and the JSON beside
them, else it is the published one. Of several weights, the first RGB ones are the baseline that the others are compared
with, the first with gated slices the teacher. docs/evaluation.md has every number.
"""

import argparse
from functools import partial
from pathlib import Path

from cmkd.evaluation import tables as score_files
from cmkd.evaluation.metrics import finite
from cmkd.evaluation.pipeline import compare_lists, detect, load_comparable, read_datasets, score, with_conditions
from cmkd.runtime.failures import run
from dataset import ignored_patterns, make_loader
from models import WeightsError
from utils import (
    OneLineParser,
    add_batch_options,
    add_data_options,
    at_least,
    refuse_unwritable,
    save_json,
    versions,
)

WEIGHTS = "weights/cmkd_adv.pth"


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    add_batch_options(parser)
    parser.add_argument("--weights", type=Path, nargs="+", default=[Path(WEIGHTS)],
                        help=f"checkpoints (default: {WEIGHTS})")
    parser.add_argument("--lists", nargs="+", default=["val_night", "test_night"],
                        help="DATA/<list>.txt (published: val_night test_night)")
    parser.add_argument("--conditions", action="store_true",
                        help="also by condition: every list of the folder that is part of one of --lists")
    parser.add_argument("--classes", nargs="+", metavar="A,B", help="as in training (default: as trained)")
    parser.add_argument("--ignore", nargs="*", metavar="CLASS",
                        help="label classes whose boxes absorb detections; `none` for none (default: as trained)")
    parser.add_argument("--min-size", type=at_least(1), help="shorter side in px (default: as trained, else 500)")
    parser.add_argument("--max-size", type=at_least(1), help="longer side in px (default: as trained, else 1333)")
    parser.add_argument("--detections", type=Path, metavar="FILE",
                        help="score COCO results made elsewhere instead of --weights, on the one list of --lists")
    parser.add_argument("--draws", type=at_least(1), default=1000, help="of frames, for intervals (default: 1000)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the draws (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all numbers, a line for weights and list")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    parser.add_argument("--save-detections", type=Path, metavar="FILE",
                        help="write COCO results; with several weights or lists FILE's name is followed by theirs")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    for file in filter(None, (args.json, args.csv, args.markdown, args.save_detections)):
        refuse_unwritable(file)
    detectors, classes, ignore = load_comparable([] if args.detections else args.weights, args.min_size, args.max_size,
                                                 args.classes, args.ignore)
    datasets = read_datasets(args.data, args.lists, detectors, classes, ignore)
    truths = {name: dataset.ground_truth() for (name, _), dataset in datasets.items()}
    print(f"classes {' | '.join(classes)}, ignored: {' '.join(ignored_patterns(ignore)) or 'nothing'}")
    if args.detections:
        found = score_files.read_results(args.detections, truths)
    else:
        load = partial(make_loader, batch_size=args.batch_size, workers=args.workers)
        found = detect(detectors, datasets, load, args.device, args.amp)
    if args.save_detections:
        score_files.save_detections(found, args.save_detections)

    if args.conditions:
        truths, found = with_conditions(args.data, truths, found)
    metrics = score(truths, found)
    tables, comparisons = score_files.metrics_tables(metrics, truths), {}
    print(*map(score_files.columns, tables.values()), sep="\n\n")
    text = [score_files.markdown(table) for table in tables.values()]
    if len(detectors) > 1:
        comparisons, baseline = compare_lists(detectors, truths, found, args.draws, args.seed)
        text += score_files.comparison_tables(comparisons, truths, baseline)
        print("", *text[len(tables):], sep="\n")
    if args.csv:
        score_files.save_csv(metrics, args.csv)
    if args.markdown:
        score_files.save_text("\n\n".join(text), args.markdown)
    if args.json:
        save_json({"weights": args.weights if detectors else None, "detections": args.detections, "data": args.data,
                   "settings": {title: detector.settings for title, detector in detectors.items()},
                   "classes": classes, "ignore": ignored_patterns(ignore), "amp": args.amp if detectors else None,
                   "metrics": finite(metrics), "comparison": finite(comparisons), "versions": versions()}, args.json)


if __name__ == "__main__":
    run(main, WeightsError)

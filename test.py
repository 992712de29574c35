"""COCO mAP, log-average miss rate and recall of trained weights on the validation and test lists.

    python test.py --weights weights/cmkd_adv.pth --data data --lists val_night test_night
    python test.py --weights weights/teacher.pth weights/baseline.pth weights/cmkd_mse.pth

Or set WEIGHTS below and run `python test.py`. Classes, sizes and the rest are read from the weights
and the JSON beside them, unless a flag sets them. Several weights are compared: the first RGB ones
are the baseline, the first ones with gated slices the teacher. docs/evaluation.md explains every
number.
"""

import argparse
from pathlib import Path

from cmkd.evaluation.metrics import none_for_nan
from cmkd.evaluation.options import add_draws
from cmkd.evaluation.pipeline import (
    compare_lists,
    detect_lists,
    evaluate_lists,
    load_comparable,
    metrics_by_class,
    read_datasets,
    refuse_replacing,
    roles,
    with_conditions,
)
from cmkd.evaluation.published import FOLDER, paper_rows, published_weights
from cmkd.evaluation.tables import (
    class_rows,
    comparison_rows,
    comparison_title,
    detection_files,
    metrics_tables,
    read_results,
    save_detections,
    text_table,
)
from cmkd.frames.annotations import ignored_patterns
from cmkd.runtime import hardware
from cmkd.runtime.command_line import at_least
from cmkd.runtime.failures import run
from cmkd.runtime.files import refuse_unwritable, save_json
from utils import NetworkParser

WEIGHTS = "weights/cmkd_adv.pth"
PUBLISHED_SIZES = 500, 1333  # px: the shorter side, the longer side at most


def parse_arguments() -> argparse.Namespace:
    parser = NetworkParser(__doc__)
    tested = parser.add_mutually_exclusive_group()
    tested.add_argument(
        "--weights", type=Path, nargs="+", default=[], help=f"trained weights (default: {WEIGHTS})"
    )
    tested.add_argument(
        "--published",
        action="store_true",
        help="test the checkpoints in weights/published the way the published code did (float32, "
        "boxes not clipped to the image), and show the paper's figures too",
    )
    tested.add_argument(
        "--detections",
        type=Path,
        metavar="FILE",
        help="evaluate COCO results made elsewhere, on the one list of --lists",
    )
    parser.add_argument(
        "--lists",
        nargs="+",
        default=["val_night", "test_night"],
        help="DATA/<list>.txt (published: val_night test_night)",
    )
    parser.add_argument(
        "--conditions",
        action="store_true",
        help="also the lists of single conditions, such as val_snow_night for val_night",
    )
    parser.add_argument(
        "--classes", nargs="+", metavar="A,B", help="as in training (default: as trained)"
    )
    parser.add_argument(
        "--ignore",
        nargs="*",
        metavar="CLASS",
        help="label classes that are neither right nor wrong to detect; `none` for none "
        "(default: as trained)",
    )
    parser.add_argument(
        "--min-size", type=at_least(1), help="shorter side in px (default: as trained, else 500)"
    )
    parser.add_argument(
        "--max-size", type=at_least(1), help="longer side in px (default: as trained, else 1333)"
    )
    add_draws(parser)
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="of the bootstrap samples (default: 0)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    parser.add_argument(
        "--save-detections",
        type=Path,
        metavar="FILE",
        help="write COCO results; with several weights or lists one file each, named after FILE",
    )
    args = parser.parse_args()
    if args.published:
        args.weights, args.amp = published_weights(FOLDER), False
        args.min_size, args.max_size = PUBLISHED_SIZES
    elif not args.weights and not args.detections:
        args.weights = [Path(WEIGHTS)]
    return args


def main() -> None:
    args = parse_arguments()
    others = [args.detections] if args.detections else []
    refuse_replacing([args.json, args.save_detections], args.weights, others)
    for file in filter(None, (args.json, args.save_detections)):
        refuse_unwritable(file)
    detectors, classes, ignore = load_comparable(
        args.weights, args.min_size, args.max_size, args.classes, args.ignore
    )
    datasets = read_datasets(args.data, args.lists, detectors, classes, ignore, args.published)
    truths = {
        list_name: dataset.ground_truth(clipped=not args.published)
        for (list_name, _), dataset in datasets.items()
    }
    files = {}
    if args.save_detections:
        names = list(detectors) or [args.detections.stem]
        files = detection_files(args.save_detections, list(truths), names)
        refuse_replacing([args.json, *files.values()], args.weights, others)
    ignored = ignored_patterns(ignore)
    print(f"classes {' | '.join(classes)}, ignored: {' '.join(ignored) or 'nothing'}")
    if args.detections:
        found = read_results(args.detections, truths)
    else:
        hardware.start(args.device, args.amp)
        found = detect_lists(
            detectors, datasets, args.batch_size, args.workers, args.device, args.amp
        )
    save_detections(found, files)

    if args.conditions:
        truths, found = with_conditions(args.data, truths, found)
    metrics = evaluate_lists(truths, found)
    for rows in metrics_tables(metrics, truths).values():
        print(text_table(rows, text_columns=2), end="\n\n")
    by_class = {}
    if len(classes) > 1:
        by_class = metrics_by_class(truths, found)
        print(text_table(class_rows(by_class), text_columns=3), end="\n\n")
    if args.published:
        print("as the published code evaluated: float32, boxes not clipped to the image, 500 px")
        weights = dict(zip(detectors, args.weights, strict=True))
        print(text_table(paper_rows(weights, metrics, args.data), text_columns=2), end="\n\n")
    comparisons = {}
    if len(detectors) > 1:
        comparisons = compare_lists(detectors, truths, found, args.draws, args.seed)
        baseline, _, _ = roles(detectors)
        for list_name, comparison in comparisons.items():
            table = text_table(comparison_rows(comparison, baseline))
            print(f"{comparison_title(list_name, truths[list_name])}:\n\n{table}\n")
    if args.json:
        numbers = {
            "weights": args.weights if detectors else None,
            "detections": args.detections,
            "data": args.data,
            "settings": {title: detector.settings for title, detector in detectors.items()},
            "classes": classes,
            "ignore": ignored,
            "amp": args.amp if detectors else None,
            "metrics": none_for_nan(metrics),
            "by_class": none_for_nan(by_class),
            "comparison": none_for_nan(comparisons),
            "versions": hardware.versions(),
        }
        save_json(numbers, args.json)


if __name__ == "__main__":
    run(main)

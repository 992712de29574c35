"""Weights -> COCO mAP on the val and test lists.

    python test.py --weights weights/cmkd_adv.pth --data data --lists val_night test_night

Or set WEIGHTS below and run `python test.py`. Channels, backbone and norm are read from the weights; image size and
classes from the JSON beside them or from a last.pth itself, else the published ones are used; a flag comes first.
"""

import argparse
from pathlib import Path

from dataset import MODALITY, SeeingThroughFog, ignored_patterns, make_loader
from engine import predict
from evaluation import coco_metrics, finite
from failures import run
from models import WeightsError, load_detector, read_settings
from utils import (
    DEFAULT_CLASSES,
    OneLineParser,
    UserError,
    add_batch_options,
    add_data_options,
    at_least,
    refuse_unwritable,
    save_json,
    versions,
)

WEIGHTS = "weights/cmkd_adv.pth"

SHOWN = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_100")


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    add_batch_options(parser)
    parser.add_argument("--weights", type=Path, default=Path(WEIGHTS), help=f"checkpoint (default: {WEIGHTS})")
    parser.add_argument("--lists", nargs="+", default=["val_night", "test_night"],
                        help="DATA/<list>.txt (published: val_night test_night)")
    parser.add_argument("--classes", nargs="+", metavar="A,B", help="as in training (default: as trained)")
    parser.add_argument("--ignore", nargs="*", metavar="CLASS",
                        help="label classes whose boxes absorb detections; `none` for none (default: as trained)")
    parser.add_argument("--min-size", type=at_least(1), help="shorter side in px (default: as trained, else 500)")
    parser.add_argument("--max-size", type=at_least(1), help="longer side in px (default: as trained, else 1333)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all COCO numbers")
    parser.add_argument("--save-detections", type=Path, metavar="FILE",
                        help="write detections in the COCO results format; with several lists one file each, "
                             "FILE's name followed by the list's")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    for file in filter(None, (args.json, args.save_detections)):
        refuse_unwritable(file)
    detector = load_detector(args.weights, args.min_size, args.max_size).to(args.device)
    channels, num_classes = detector.settings["channels"], detector.settings["num_classes"]
    if channels not in MODALITY:
        raise WeightsError(f"{args.weights} takes {channels} channels: expected 3 (RGB) or 6 (RGB and gated)")
    trained_with = read_settings(args.weights)
    classes = args.classes or trained_with.get("classes", DEFAULT_CLASSES)
    ignore = trained_with.get("ignore") if args.ignore is None else args.ignore
    datasets = {name: SeeingThroughFog(args.data, name, MODALITY[channels], classes, ignore) for name in args.lists}
    for dataset in datasets.values():
        if dataset.num_classes != num_classes:
            raise UserError(f"{args.weights} tells {num_classes - 1} classes apart, --classes names "
                            f"{dataset.num_classes - 1}: pass the --classes it was trained on")

    print(f"{args.weights}: {MODALITY[channels]}, {detector.settings['backbone']}, "
          f"{detector.settings['min_size']} px, classes {' | '.join(classes)}, "
          f"ignored: {' '.join(ignored_patterns(ignore)) or 'nothing'}")
    metrics = {}
    for name, dataset in datasets.items():
        results = predict(detector, make_loader(dataset, args.batch_size, args.workers), args.amp)
        metrics[name] = coco_metrics(dataset.ground_truth(), results)
        if args.save_detections:
            file = args.save_detections
            save_json(results, file if len(datasets) == 1 else file.with_name(f"{file.stem}.{name}{file.suffix}"))

    print(f"{'list':<14}{'frames':>8}" + "".join(f"{metric:>11}" for metric in SHOWN))
    for name, values in metrics.items():
        print(f"{name:<14}{len(datasets[name]):>8}" + "".join(f"{values[metric]:>11.4f}" for metric in SHOWN))
    if args.json:
        save_json({"weights": args.weights, "settings": detector.settings, "classes": classes,
                   "ignore": ignored_patterns(ignore), "data": args.data,
                   "amp": args.amp, "metrics": {name: finite(values) for name, values in metrics.items()},
                   "versions": versions()}, args.json)


if __name__ == "__main__":
    run(main, WeightsError)

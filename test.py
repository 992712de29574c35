"""Weights -> COCO mAP, log-average miss rate and recall on the val and test lists; of several weights, who sees more.

    python test.py --weights weights/cmkd_adv.pth --data data --lists val_night test_night
    python test.py --weights weights/teacher.pth weights/baseline.pth weights/cmkd_mse.pth

Or set WEIGHTS below and run `python test.py`. Channels, backbone and norm are read from the weights; image size and
classes from the JSON beside them or from a last.pth itself, else the published ones are used; a flag comes first.
Of several weights, the first RGB ones are the baseline that the others are compared with, the first with gated slices
the teacher.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import distributed
from comparison import compare, markdown, titles
from dataset import MODALITY, SeeingThroughFog, ignored_patterns, make_loader
from engine import predict
from evaluation import coco_metrics, finite, miss_metrics
from failures import run
from models import Detector, WeightsError, load_detector, read_settings
from score_files import metrics_table, read_results, save_csv, save_detections
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
    write_atomically,
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
    parser.add_argument("--classes", nargs="+", metavar="A,B", help="as in training (default: as trained)")
    parser.add_argument("--ignore", nargs="*", metavar="CLASS",
                        help="label classes whose boxes absorb detections; `none` for none (default: as trained)")
    parser.add_argument("--min-size", type=at_least(1), help="shorter side in px (default: as trained, else 500)")
    parser.add_argument("--max-size", type=at_least(1), help="longer side in px (default: as trained, else 1333)")
    parser.add_argument("--detections", type=Path, metavar="FILE",
                        help="score COCO results made elsewhere instead of --weights, on the one list of --lists")
    parser.add_argument("--draws", type=at_least(1), default=1000,
                        help="of frames, for the 95 %% intervals of several weights (default: 1000)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the draws (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all numbers, a line for weights and list")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    parser.add_argument("--save-detections", type=Path, metavar="FILE",
                        help="write detections in the COCO results format; with several weights or lists one file "
                             "each, FILE's name followed by theirs")
    return parser.parse_args()


def load_all(args: argparse.Namespace) -> dict[str, Detector]:
    """The detectors by title; sets `args.classes` and `args.ignore` where the weights decide. Raises `WeightsError` for
    weights that cannot be compared."""
    if len({file.resolve() for file in args.weights}) < len(args.weights):
        raise UserError("--weights names a file twice: name each once")
    detectors = {title: load_detector(file, args.min_size, args.max_size)
                 for title, file in zip(titles(args.weights), args.weights, strict=True)}
    trained_with = [read_settings(file) for file in args.weights]
    labels = [settings.get("classes", list(DEFAULT_CLASSES)) for settings in trained_with]
    for file, classes, detector in zip(args.weights, labels, detectors.values(), strict=True):
        if (channels := detector.settings["channels"]) not in MODALITY:
            raise WeightsError(f"{file} takes {channels} channels: expected 3 (RGB) or 6 (RGB and gated)")
        if classes != labels[0] and not args.classes:
            raise WeightsError(f"{args.weights[0]} was trained on {' '.join(labels[0])} and {file} on "
                               f"{' '.join(classes)}: compare weights of the same classes, or pass --classes")
        named, told_apart = len(args.classes or labels[0]), detector.settings["num_classes"] - 1
        if named != told_apart:
            raise UserError(f"{file} tells {told_apart} classes apart, --classes names {named}: pass the --classes it "
                            "was trained on")
    ignored = [ignored_patterns(settings.get("ignore")) for settings in trained_with]
    if len(set(ignored)) > 1 and args.ignore is None:
        raise WeightsError(f"these weights were trained with different --ignore "
                           f"({'; '.join(' '.join(one) or 'none' for one in ignored)}): pass --ignore")
    args.classes = args.classes or labels[0]
    args.ignore = trained_with[0].get("ignore") if args.ignore is None else args.ignore
    return detectors


def detect(args: argparse.Namespace, detectors: dict[str, Detector]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """COCO results by list and title; all frames' labels are read before the first frame is detected on."""
    datasets = {(name, channels): SeeingThroughFog(args.data, name, MODALITY[channels], args.classes, args.ignore)
                for name in args.lists for channels in {one.settings["channels"] for one in detectors.values()}}
    found: dict[str, dict[str, list]] = {name: {} for name in args.lists}
    for title, detector in detectors.items():
        settings = detector.to(args.device).settings
        print(f"{title}: {MODALITY[settings['channels']]}, {settings['backbone']}, {settings['min_size']} px, classes "
              f"{' | '.join(args.classes)}, ignored: {' '.join(ignored_patterns(args.ignore)) or 'nothing'}")
        for name in args.lists:
            loader = make_loader(datasets[name, settings["channels"]], args.batch_size, args.workers)
            found[name][title] = predict(detector, loader, args.amp)
        detector.cpu()
    return found


def main() -> None:
    args = parse_arguments()
    for file in filter(None, (args.json, args.csv, args.markdown, args.save_detections)):
        refuse_unwritable(file)
    if args.detections and len(args.lists) > 1:
        raise UserError(f"--detections {args.detections} are those of one list: name it with --lists")
    detectors = {} if args.detections else load_all(args)
    truths = {}
    for name in args.lists:
        dataset = SeeingThroughFog(args.data, name, "rgb", args.classes or DEFAULT_CLASSES, args.ignore)
        if not dataset.has_boxes:
            raise UserError(f"{dataset.list_file}: no frame has a box of these classes, so there is nothing to score: "
                            "name another list or other --classes")
        truths[name] = dataset.ground_truth()
    found = (detect(args, detectors) if detectors else
             {name: {args.detections.stem: read_results(args.detections, truth)} for name, truth in truths.items()})
    if args.save_detections:
        save_detections(found, args.save_detections)

    metrics = {name: {title: {**coco_metrics(truths[name], results), **miss_metrics(truths[name], results)}
                      for title, results in by_title.items()} for name, by_title in found.items()}
    plain_table = metrics_table(metrics, {name: len(truth["images"]) for name, truth in truths.items()})
    print(plain_table)
    comparisons, tables = {}, []
    if len(detectors) > 1:
        first_of = {one.settings["channels"]: title for title, one in reversed(detectors.items())}
        baseline = first_of.get(3, next(iter(detectors)))
        for name, truth in truths.items():
            comparisons[name] = distributed.on_first(partial(
                compare, truth, found[name], baseline, first_of.get(6), args.draws, args.seed))
            tables.append(f"{name}, in percent; in brackets 95 % over its {len(truth['images'])} frames:\n\n"
                          f"{markdown(comparisons[name], baseline)}")
        print("\n" + "\n\n".join(tables))
    if args.csv:
        save_csv(metrics, args.csv)
    if args.markdown:
        text = "\n\n".join(tables or [f"```\n{plain_table}\n```"]) + "\n"
        write_atomically(args.markdown, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
    if args.json:
        save_json({"weights": args.weights if detectors else None, "detections": args.detections, "data": args.data,
                   "amp": args.amp if detectors else None,
                   "settings": {title: detector.settings for title, detector in detectors.items()},
                   "classes": args.classes or DEFAULT_CLASSES, "ignore": ignored_patterns(args.ignore),
                   "metrics": finite(metrics), "comparison": finite(comparisons), "versions": versions()}, args.json)


if __name__ == "__main__":
    run(main, WeightsError)

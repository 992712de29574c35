"""Draw what the networks see and miss. No window needed.

    python visualize.py --compare weights/teacher.pth weights/baseline.pth weights/cmkd_adv.pth
    python visualize.py --images photos/ --weights weights/cmkd_adv.pth --out detections/
    python visualize.py --curves runs/*/log.jsonl
    python visualize.py --features weights/teacher.pth weights/cmkd_adv.pth --frame NAME

--compare draws a row for each frame: the ground truth on a gated slice, then what each network
finds. Frames in which students find people that the baseline misses come first. The first RGB
weights are the baseline, other RGB weights students. docs/pictures.md shows all four.
"""

import argparse
from pathlib import Path

from PIL import Image

from cmkd.evaluation.metrics import Results
from cmkd.evaluation.options import add_draws
from cmkd.evaluation.pipeline import (
    compare_lists,
    detect_lists,
    evaluate_lists,
    load_comparable,
    load_rgb_detector,
    read_datasets,
    refuse_duplicates,
    refuse_replacing,
    roles,
    short_names,
    with_conditions,
)
from cmkd.evaluation.tables import comparison_rows, comparison_title, metrics_tables
from cmkd.frames.annotations import class_groups
from cmkd.runtime import hardware
from cmkd.runtime.command_line import at_least, non_negative_float
from cmkd.runtime.failures import run
from cmkd.runtime.files import UserError, refuse_unwritable, save_text
from cmkd.viewing.annotate_pictures import DETECTIONS_FILE, annotate_pictures
from cmkd.viewing.contact_sheet import save_picture
from cmkd.viewing.curves import draw_curves
from cmkd.viewing.drawing import OUTCOME_LEGEND
from cmkd.viewing.feature_maps import feature_sheet
from cmkd.viewing.gallery import Gallery, describe_limits, make_gallery
from cmkd.viewing.html_page import html_page
from dataset import SeeingThroughFog
from models import Detector
from utils import NetworkParser

DEFAULT_OUT = {
    "compare": "gallery.png",
    "images": "detections",
    "curves": "curves.png",
    "features": "features.png",
}


def parse_arguments() -> argparse.Namespace:
    parser = NetworkParser(__doc__)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--compare", nargs="+", type=Path, metavar="WEIGHTS", help="one column each")
    mode.add_argument(
        "--images",
        type=Path,
        metavar="PATH",
        help="a picture, or a folder of pictures or video frames",
    )
    mode.add_argument("--curves", nargs="+", type=Path, metavar="LOG", help="log.jsonl of runs")
    mode.add_argument("--features", nargs="+", type=Path, metavar="WEIGHTS", help="one column each")
    defaults = ", ".join(f"--{name} {out}" for name, out in DEFAULT_OUT.items())
    parser.add_argument(
        "--out", type=Path, help=f"PNG, with --images a folder (default: {defaults})"
    )
    parser.add_argument(
        "--list",
        default="vis_night",
        help="with --compare and --features: DATA/<list>.txt (default: vis_night)",
    )
    parser.add_argument(
        "--frames", type=at_least(1), default=6, help="with --compare: rows (default: 6)"
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="with --compare: also one page with tables by condition, the frames and the settings",
    )
    add_draws(parser, "with --html: ")
    parser.add_argument(
        "--seed",
        type=at_least(0),
        default=0,
        help="with --html: seed of the bootstrap (default: 0)",
    )
    parser.add_argument("--weights", type=Path, help="with --images: an RGB student")
    parser.add_argument(
        "--score",
        type=non_negative_float,
        help="least score that counts (default: with --compare, each network's own at which the "
        "list has 0.1 false positives per image; with --images 0.5)",
    )
    parser.add_argument(
        "--frame", metavar="NAME", help="with --features (default: the first of --list with a box)"
    )
    args = parser.parse_args()
    args.mode = next(name for name in DEFAULT_OUT if getattr(args, name))
    args.out = args.out or Path(DEFAULT_OUT[args.mode])
    outputs = [args.out, args.html]
    if args.images:
        outputs.append(args.out / DETECTIONS_FILE)
    weights = args.compare or args.features or ([args.weights] if args.weights else [])
    refuse_replacing(outputs, weights, args.curves or ())
    return args


def write_gallery(args: argparse.Namespace) -> None:
    """--compare: the frames in which the networks disagree most, and the page."""
    for file in filter(None, (args.out, args.html)):
        refuse_unwritable(file)
    detectors, classes, ignore = load_comparable(args.compare)
    dataset = SeeingThroughFog(args.data, args.list, "rgb+gated", classes, ignore)
    datasets = read_datasets(args.data, [args.list], detectors, classes, ignore)
    hardware.start(args.device, args.amp)
    found = detect_lists(detectors, datasets, args.batch_size, args.workers, args.device, args.amp)
    results = found[args.list]
    baseline, _, students = roles(detectors)
    gallery = make_gallery(dataset, results, args.score, baseline, students)
    save_and_print(gallery.sheet(args.frames), args.out)
    for student, exchange in gallery.exchanges.items():
        print(f"{args.list}: {student} {exchange}")
    if args.html:
        write_page(args, gallery, detectors, results)


def write_page(
    args: argparse.Namespace,
    gallery: Gallery,
    detectors: dict[str, Detector],
    results: dict[str, Results],
) -> None:
    """--html: tables of the list and its conditions, the gallery's frames, and the settings."""
    truths, found = with_conditions(
        args.data, {args.list: gallery.ground_truth}, {args.list: results}
    )
    tables = {}
    if len(detectors) > 1:
        comparisons = compare_lists(detectors, truths, found, args.draws, args.seed)
        tables = {
            comparison_title(name, truths[name]): comparison_rows(comparison, gallery.baseline)
            for name, comparison in comparisons.items()
        }
    tables |= metrics_tables(evaluate_lists(truths, found), truths)
    rows = gallery.page_rows()
    text = html_page(
        f"Who sees whom: {args.list}",
        page_settings(args, gallery, detectors),
        tables,
        rows,
        gallery.columns,
        OUTCOME_LEGEND,
    )
    save_text(text, args.html)
    print(f"{args.html}: {len(rows)} frames, {len(text) / 1e6:.1f} MB")


def page_settings(
    args: argparse.Namespace, gallery: Gallery, detectors: dict[str, Detector]
) -> dict[str, str]:
    """The settings on the page: what was compared, and with which versions."""
    dataset = gallery.dataset
    settings = {
        "data": str(args.data),
        "list": f"{args.list}, {len(dataset)} frames",
        "classes": " | ".join("+".join(group) for group in dataset.classes),
        "ignored": " ".join(dataset.ignored) or "nothing",
        "baseline": gallery.baseline,
        "students": ", ".join(gallery.students) or "none",
        "bfloat16": str(args.amp),
    }
    for (title, detector), file in zip(detectors.items(), args.compare, strict=True):
        shown_from = describe_limits(gallery.limits[title])
        own = ", ".join(f"{name} {value}" for name, value in detector.settings.items())
        settings[f"weights {title}"] = f"{file}; shown from {shown_from}; {own}"
    exchanges = {f"people, {title}": text for title, text in gallery.exchanges.items()}
    return settings | exchanges | hardware.versions()


def annotate_images(args: argparse.Namespace) -> None:
    """--images: ordinary pictures with what an RGB network finds."""
    if not args.weights:
        raise UserError("--images needs the --weights of an RGB student")
    detector, classes = load_rgb_detector(args.weights)
    hardware.start(args.device, args.amp)
    detector.to(args.device)
    names = ["+".join(group) for group in class_groups(classes)]
    least_score = 0.5 if args.score is None else args.score
    annotate_pictures(detector, names, args.images, args.out, least_score, args.amp)


def write_features(args: argparse.Namespace) -> None:
    """--features: the pyramids of several networks on one frame."""
    refuse_unwritable(args.out)
    detectors, classes, ignore = load_comparable(args.features)
    hardware.start(args.device, bfloat16=False)
    for detector in detectors.values():
        detector.to(args.device).eval()
    dataset = SeeingThroughFog(args.data, args.list, "rgb+gated", classes, ignore)
    if not args.frame:
        with_boxes = (index for index, objects in enumerate(dataset.objects) if len(objects))
        index = next(with_boxes, 0)
    elif args.frame in dataset.names:
        index = dataset.names.index(args.frame)
    else:
        raise UserError(
            f"--frame {args.frame} is not in {dataset.list_file}: name one of its frames, or "
            "another --list"
        )
    image, target = dataset[index]
    save_and_print(feature_sheet(detectors, image, target["name"]), args.out)


def write_curves(args: argparse.Namespace) -> None:
    """--curves: the logs of several runs in one picture."""
    refuse_unwritable(args.out)
    folders = [file.absolute().parent for file in args.curves]
    refuse_duplicates(folders)
    draw_curves(dict(zip(short_names(folders), args.curves, strict=True)), args.out)
    print(f"{args.out}: {len(args.curves)} runs")


def save_and_print(picture: Image.Image, file: Path) -> None:
    """Write a PNG and print its size."""
    save_picture(picture, file)
    print(f"{file}: {picture.width}x{picture.height}")


def main() -> None:
    args = parse_arguments()
    modes = {
        "compare": write_gallery,
        "images": annotate_images,
        "curves": write_curves,
        "features": write_features,
    }
    modes[args.mode](args)


if __name__ == "__main__":
    run(main)

"""Pictures of what the networks see and miss. No window needed.

    python visualize.py --compare weights/teacher.pth weights/baseline.pth weights/cmkd_adv.pth --html page.html
    python visualize.py --images photos/ --weights weights/cmkd_adv.pth --out detections/
    python visualize.py --curves runs/*/log.jsonl
    python visualize.py --features weights/teacher.pth weights/baseline.pth weights/cmkd_adv.pth --frame NAME

--compare: a row for each frame, the ground truth on a gated slice, then what each network finds, the frames first in
which students find people whom the baseline misses. Baseline and teacher are told apart as by test.py. docs/pictures.md
shows all four.
"""

import argparse
import math
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from cmkd.evaluation.pipeline import (
    Results,
    compare_lists,
    detect,
    load_comparable,
    read_datasets,
    refuse_twice,
    score,
    short_names,
    titles,
    with_conditions,
)
from cmkd.evaluation.tables import comparison_rows, comparison_title, metrics_tables
from cmkd.frames.layout import condition_lists
from cmkd.runtime.failures import run
from cmkd.viewing.any_pictures import detect_pictures
from cmkd.viewing.curves import draw_curves
from cmkd.viewing.drawing import LEGEND, outcome_tile, sheet, truth_tile
from cmkd.viewing.feature_maps import features_sheet
from cmkd.viewing.html_page import Row, page
from cmkd.viewing.outcomes import Difference, Outcome, difference, outcomes, rank, spread_over_conditions
from dataset import SeeingThroughFog, class_groups, make_loader
from models import Detector, WeightsError, load_detector
from utils import (
    OneLineParser,
    UserError,
    add_batch_options,
    add_data_options,
    at_least,
    non_negative_float,
    refuse_unwritable,
    versions,
    write_atomically,
)

MODES = {"compare": "gallery.png", "images": "detections", "curves": "curves.png", "features": "features.png"}


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    add_batch_options(parser)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--compare", nargs="+", type=Path, metavar="WEIGHTS", help="one column each")
    mode.add_argument("--images", type=Path, metavar="PATH", help="a picture, or a folder of pictures or video frames")
    mode.add_argument("--curves", nargs="+", type=Path, metavar="LOG", help="log.jsonl of runs")
    mode.add_argument("--features", nargs="+", type=Path, metavar="WEIGHTS", help="one column each")
    parser.add_argument("--out", type=Path, help="PNG, with --images a folder (default: "
                                                 f"{', '.join(f'--{name} {out}' for name, out in MODES.items())})")
    parser.add_argument("--list", default="vis_night",
                        help="with --compare and --features: DATA/<list>.txt (default: vis_night)")
    parser.add_argument("--frames", type=at_least(1), default=6, help="with --compare: rows (default: 6)")
    parser.add_argument("--html", type=Path, metavar="FILE",
                        help="with --compare: also one page with tables by condition, the frames and the settings")
    parser.add_argument("--html-frames", type=at_least(1), default=12, help="of each condition (default: 12)")
    parser.add_argument("--draws", type=at_least(1), default=1000, help="with --html: for intervals (default: 1000)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="with --html: of the draws (default: 0)")
    parser.add_argument("--weights", type=Path, help="with --images: an RGB student")
    parser.add_argument("--score", type=non_negative_float,
                        help="least score that counts (default: with --compare, each network's own at which the list "
                             "has 0.1 false positives per image; with --images 0.5)")
    parser.add_argument("--frame", metavar="NAME", help="with --features (default: the first of --list with a box)")
    args = parser.parse_args()
    args.mode = next(name for name in MODES if getattr(args, name))
    args.out = args.out or Path(MODES[args.mode])
    written = [file.resolve() for file in (args.out, args.html) if file]
    read = [file.resolve() for files in (args.compare, args.features, args.curves) for file in files or []]
    if len({*written} - {*read}) < len(written):
        parser.error("--out and --html must be two files, and none that is read")
    return args


@dataclass(frozen=True)
class Comparison:
    """What several detectors make of a list."""

    detectors: dict[str, Detector]
    frames: SeeingThroughFog
    truth: dict[str, list]
    found: dict[str, Results]  # by title
    limits: dict[str, dict[str, float]]  # from which score on a detection counts, by title and category
    outcomes: list[dict[str, Outcome]]  # of each frame, by title
    baseline: str
    students: list[str]

    @cached_property
    def differences(self) -> list[Difference]:
        """Of each frame."""
        return [difference(one, self.baseline, self.students) for one in self.outcomes]

    @property
    def columns(self) -> list[str]:
        """What stands over the tiles."""
        return ["ground truth, on a gated slice",
                *(f"{title}, {shown_from(self.limits[title])}" for title in self.detectors)]

    def tiles(self, place: int) -> list[Image.Image]:
        """A frame's pictures, under the columns."""
        image, _ = self.frames[place]
        people = [one for one in self.truth["annotations"] if one["image_id"] == place]
        return [truth_tile(image, people), *(outcome_tile(image[:3], one) for one in self.outcomes[place].values())]


def compare(args: argparse.Namespace) -> None:
    """The sheet of the frames that tell the networks apart, and the page."""
    for file in filter(None, (args.out, args.html)):
        refuse_unwritable(file)
    detectors, classes, ignore = load_comparable(args.compare, None, None, None, None)
    frames = SeeingThroughFog(args.data, args.list, "rgb+gated", classes, ignore)
    truth = frames.ground_truth()
    load = partial(make_loader, batch_size=args.batch_size, workers=args.workers)
    datasets = read_datasets(args.data, [args.list], detectors, classes, ignore)
    [found] = detect(detectors, datasets, load, args.device, args.amp).values()
    made = {title: outcomes(truth, results, args.score) for title, results in found.items()}
    by_frame = zip(*(one for one, _ in made.values()), strict=True)
    rgb = [title for title, detector in detectors.items() if detector.settings["channels"] == 3]
    content = Comparison(detectors, frames, truth, found, {title: limits for title, (_, limits) in made.items()},
                         [dict(zip(made, one, strict=True)) for one in by_frame], (rgb or list(detectors))[0], rgb[1:])

    ranked = rank(content.differences)
    picture = sheet(content.columns, [(f"{frames.names[place]}: {content.differences[place]}", content.tiles(place))
                                      for place in ranked[: args.frames]], LEGEND)
    write_atomically(args.out, lambda unfinished: picture.save(unfinished, "PNG"))
    print(f"{args.out}: {picture.width}x{picture.height}")
    if args.html:
        write_page(args, content, ranked)


def write_page(args: argparse.Namespace, content: Comparison, ranked: list[int]) -> None:
    """Tables of the list and its conditions with intervals, the first frames of each condition, and the settings."""
    frames = content.frames
    members = condition_lists(args.data, args.list)
    conditions = [[name for name, names in members.items() if frame in names] for frame in frames.names]
    rows = [Row(frames.names[place], conditions[place], content.differences[place], content.tiles(place))
            for place in tqdm(spread_over_conditions(ranked, conditions, args.html_frames), "drawing", unit="frame",
                              leave=False, disable=None)]
    truths, found = with_conditions(args.data, {args.list: content.truth}, {args.list: content.found})
    tables = metrics_tables(score(truths, found), truths)
    if len(content.detectors) > 1:
        comparisons, _ = compare_lists(content.detectors, truths, found, args.draws, args.seed)
        tables = {comparison_title(name, truths[name]): comparison_rows(table, content.baseline)
                  for name, table in comparisons.items()} | tables
    settings = {"data": str(args.data), "list": f"{args.list}, {len(frames)} frames",
                "classes": " | ".join("+".join(group) for group in frames.classes),
                "ignored": " ".join(frames.ignored) or "nothing", "baseline": content.baseline,
                "students": ", ".join(content.students) or "none", "bfloat16": str(args.amp)}
    for (title, detector), file in zip(content.detectors.items(), args.compare, strict=True):
        settings[f"weights {title}"] = (f"{file}; shown from {shown_from(content.limits[title])}; "
                                        + ", ".join(f"{name} {value}" for name, value in detector.settings.items()))
    text = page(f"Who sees whom: {args.list}", {**settings, **versions()}, tables, rows, content.columns, LEGEND)
    write_atomically(args.html, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
    print(f"{args.html}: {len(rows)} frames, {len(text) / 1e6:.1f} MB")


def shown_from(limits: dict[str, float]) -> str:
    """From which score on detections are shown, by category."""
    return ", ".join((f"score >= {limit:.2f}" if limit < math.inf else "nothing, as its best would be a false alarm")
                     + (f" ({name})" if len(limits) > 1 else "") for name, limit in limits.items())


def images(args: argparse.Namespace) -> None:
    """Ordinary pictures, with what an RGB network finds."""
    if not args.weights:
        raise UserError("--images needs the --weights of an RGB student")
    detectors, classes, _ = load_comparable([args.weights], None, None, None, None)
    [detector] = detectors.values()
    if detector.settings["channels"] != 3:
        raise WeightsError(f"{args.weights} needs gated slices, which ordinary pictures have not: pass an RGB student")
    names = ["+".join(group) for group in class_groups(classes)]
    detect_pictures(detector.to(args.device).eval(), names, args.images, args.out,
                    0.5 if args.score is None else args.score, args.amp)


def features(args: argparse.Namespace) -> None:
    """The pyramids of several networks on one frame."""
    refuse_unwritable(args.out)
    refuse_twice(args.features)
    detectors = {title: load_detector(file).to(args.device).eval()
                 for title, file in zip(titles(args.features), args.features, strict=True)}
    frames = SeeingThroughFog(args.data, args.list, "rgb+gated")
    if args.frame and args.frame not in frames.names:
        raise UserError(f"--frame {args.frame} is not in {frames.list_file}: name one of its frames, or another --list")
    place = (frames.names.index(args.frame) if args.frame else
             next((place for place, objects in enumerate(frames.objects) if objects), 0))
    picture = features_sheet(detectors, frames[place][0], frames.names[place])
    write_atomically(args.out, lambda unfinished: picture.save(unfinished, "PNG"))
    print(f"{args.out}: {picture.width}x{picture.height}")


def curves(args: argparse.Namespace) -> None:
    """The logs of several runs."""
    refuse_unwritable(args.out)
    folders = [file.absolute().parent for file in args.curves]
    refuse_twice(folders)
    draw_curves(dict(zip(short_names(folders), args.curves, strict=True)), args.out)
    print(f"{args.out}: {len(args.curves)} runs")


def main() -> None:
    args = parse_arguments()
    {"compare": compare, "images": images, "curves": curves, "features": features}[args.mode](args)


if __name__ == "__main__":
    run(main, WeightsError)

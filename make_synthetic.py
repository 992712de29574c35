"""Night and fog on simulated roads, seen by an RGB and a gated camera, in the prepared layout.

    python make_synthetic.py --out data --frames 1500 300 300 --size 1280x768 --seed 0
    python make_synthetic.py --out day --mix clear_day=1 --preview day.png
    python make_synthetic.py --out data --unlabelled 3200 4    # more frames, for a network to label

An interrupted call is resumed by the same command. OUT/synthetic.json holds the parameters and the
shares of people that each camera sees.
"""

import argparse
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cmkd.frames.annotations import Label, read_labels, to_pixels
from cmkd.frames.layout import (
    GATED_FOLDERS,
    IMAGE_FOLDERS,
    LABEL_FOLDER,
    UNLABELLED,
    label_file,
    save_list,
)
from cmkd.frames.png import save_png
from cmkd.runtime.command_line import OneLineParser, at_least, cores, non_negative_float, to_float
from cmkd.runtime.files import (
    UserError,
    exit_with_error,
    forbidden_message,
    give_up_output,
    open_data_folder,
    save_json,
    set_up_output,
    write_atomically,
)
from cmkd.runtime.parallel import parallel_map
from cmkd.simulator.animals import SPECIES
from cmkd.simulator.brightness import brightness_for, frames_to_measure, visible_by_brightness
from cmkd.simulator.cameras import gated_camera, rgb_camera
from cmkd.simulator.hard_slices import hardened, with_hard_materials
from cmkd.simulator.labels import label_lines
from cmkd.simulator.rendering import PlannedFrame, plan_frames, render
from cmkd.simulator.scene import CONDITIONS
from cmkd.viewing.contact_sheet import (
    GREEN,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    Box,
    contact_sheet,
    draw_boxes,
    resize_to_width,
    save_picture,
)

RECORD = "synthetic.json"
DEFAULT_MIX = {
    "clear_night": 0.4,
    "light_fog_night": 0.15,
    "dense_fog_night": 0.1,
    "snow_night": 0.15,
    "dusk": 0.2,
}
DEFAULT_ANIMALS = 0.15
BRIGHTNESS_WIDTH = 320  # px; who is visible hardly depends on the size of the image
VIS_NIGHT_FRAMES = 12
PREVIEW_TILE_WIDTH = 640  # px
# (visible in RGB, visible in the slices) -> (colour, text)
LOOK_OF_VISIBILITY = {
    (True, True): (GREEN, "visible in both"),
    (False, True): (ORANGE, "in gated only"),
    (True, False): (SKY_BLUE, "in RGB only"),
    (False, False): (PURPLE, "in neither"),
}


# ------------------------------------------------------------------------------------------ frames


def make_data_set(out: Path, parameters: dict[str, Any], workers: int) -> list[PlannedFrame]:
    """Make or complete the data set in `out`; returns its frames. Raises `UserError`."""
    names = ("frames", "mix", "seed", "frames_per_recording")
    frames = plan_frames(
        *(parameters[name] for name in names), tuple(parameters["unlabelled"] or (0, 1))
    )
    labelled = [frame for frame in frames if frame.split != UNLABELLED]
    label_folders = dict.fromkeys((LABEL_FOLDER, *(frame.label_folder for frame in frames)))
    state = open_data_folder(out, RECORD, parameters, (*IMAGE_FOLDERS, *label_folders))
    if "light" not in state:
        state["light"] = night_brightness(labelled, parameters, workers)
        save_json(state, out / RECORD)
    write = partial(
        write_frame,
        seed=parameters["seed"],
        size=tuple(parameters["size"]),
        misaligned=parameters["misalignment"],
        hard=bool(parameters["hard_slices"]),
        animals=parameters["animals"] or 0.0,
        brightness=state["light"],
        out=out,
    )
    waiting = [
        frame for frame in frames if not label_file(out, frame.name, frame.label_folder).is_file()
    ]
    for _ in parallel_map(write, waiting, workers, str(out)):
        pass
    write_simulated_lists(frames, out)
    state["measured"] = count_visible_people(labelled, out)
    save_json(state, out / RECORD)
    print_visible_people(state["measured"])
    return frames


def night_brightness(frames: list[PlannedFrame], parameters: dict[str, Any], workers: int) -> float:
    """The brightness of the night at which --visible-share is reached, by a sample of frames."""
    width, height = parameters["size"]
    reduced = min(1.0, BRIGHTNESS_WIDTH / width)
    look = partial(
        visible_by_brightness,
        seed=parameters["seed"],
        size=(max(round(width * reduced), 1), max(round(height * reduced), 1)),
        misaligned=parameters["misalignment"],
    )
    chosen = frames_to_measure(frames)
    visible = parallel_map(look, chosen, workers, "measuring the light")
    return brightness_for(parameters["visible_share"], list(visible))


def write_frame(
    frame: PlannedFrame,
    seed: int,
    size: tuple[int, int],
    misaligned: bool,
    hard: bool,
    animals: float,
    brightness: float,
    out: Path,
) -> None:
    """Simulate and store one frame, the labels last: a frame with labels is complete.

    `size` is (width, height) in pixels, `brightness` a factor on all light of the night.
    """
    view = render(frame, seed, size, misaligned, animals)
    factor = np.float32(1.0 if view.scene.condition.day else brightness)
    rgb = rgb_camera(view.scene, view.reflected * factor + view.emitted, view.rng)
    raster = view.gated_raster
    if hard:
        rng = np.random.default_rng([seed, 3, frame.recording, frame.moment])
        raster = with_hard_materials(view.scene, raster, rng)
    gated = gated_camera(view.scene, raster, view.rng)
    if hard:
        gated = hardened(gated, rng)
    lines = label_lines(view, rgb, gated)
    for folder, image in zip(IMAGE_FOLDERS, (rgb, *gated), strict=True):
        save_png(image, out / folder / f"{frame.name}.png", flush=False)
    text = "".join(f"{line}\n" for line in lines)
    write_atomically(
        label_file(out, frame.name, frame.label_folder),
        lambda unfinished: unfinished.write_text(text, encoding="utf-8"),
        flush=False,
    )


def people_in(out: Path, name: str) -> list[Label]:
    """The labels of people in a frame, and of groups of them."""
    return [label for label in read_labels(label_file(out, name)) if label.is_person]


def beings_in(out: Path, name: str) -> list[Label]:
    """The labels of people and animals in a frame."""
    labels = read_labels(label_file(out, name))
    return [label for label in labels if label.is_person or label.name in SPECIES]


# ------------------------------------------------------------------------------- lists and figures


def write_simulated_lists(frames: list[PlannedFrame], out: Path) -> None:
    """Write the lists of all frames, which must be complete.

    `<split>_night` (all but clear_day), `<split>_<condition>`, and `vis_night`: 12 test frames in
    which somebody is visible in the gated slices only.
    """
    lists: dict[str, list[str]] = defaultdict(list)
    for frame in frames:
        if frame.is_night:
            lists[f"{frame.split}_night"].append(frame.name)
        lists[f"{frame.split}_{frame.condition}"].append(frame.name)
    if names := choose_for_viewing(lists.get("test_night", []), out):
        lists["vis_night"] = names
    for list_name, names in lists.items():
        save_list(names, out / f"{list_name}.txt")


def choose_for_viewing(names: list[str], out: Path) -> list[str]:
    """Up to 12 frames, spread over those with people; if possible with people in gated only."""
    with_people, gated_only = [], []
    for name in names:
        people = people_in(out, name)
        if people:
            with_people.append(name)
        if any(person.visible_gated and not person.visible_rgb for person in people):
            gated_only.append(name)
    candidates = gated_only or with_people
    if not candidates:
        return []
    spread = np.linspace(0, len(candidates) - 1, VIS_NIGHT_FRAMES).round().astype(int)
    return [candidates[index] for index in np.unique(spread)]


def count_visible_people(
    frames: list[PlannedFrame], out: Path
) -> dict[str, dict[str, int | float]]:
    """Frames, people, and the shares of them visible in RGB and gated, by condition.

    The last row, `night`, is all but clear_day.
    """
    frame_counts: dict[str, int] = defaultdict(int)
    people: dict[str, list[Label]] = defaultdict(list)
    for frame in frames:
        for row in [frame.condition] + ["night"] * frame.is_night:
            frame_counts[row] += 1
            people[row] += people_in(out, frame.name)
    return {
        row: {
            "frames": frame_counts[row],
            "people": len(people[row]),
            "visible_rgb": true_share([person.visible_rgb for person in people[row]]),
            "visible_gated": true_share([person.visible_gated for person in people[row]]),
        }
        for row in sorted(people, key=lambda row: row == "night")
    }


def true_share(flags: list[bool]) -> float:
    """The share of true flags, to four digits; 0 if there are none."""
    return round(float(np.mean(flags)), 4) if flags else 0.0


def print_visible_people(counted: dict[str, dict[str, int | float]]) -> None:
    """Print the table of `count_visible_people`."""
    print(f"{'condition':<18}{'frames':>8}{'people':>8}{'visible in RGB':>16}{'in gated':>10}")
    for condition, row in counted.items():
        counts = f"{row['frames']:>8}{row['people']:>8}"
        print(f"{condition:<18}{counts}{row['visible_rgb']:>16.2f}{row['visible_gated']:>10.2f}")


# ----------------------------------------------------------------------------------------- preview


def save_preview(out: Path, frames: list[PlannedFrame], file: Path) -> None:
    """Write a contact sheet: of each condition the frame with most people and animals."""
    rows = []
    for condition in CONDITIONS:
        names = [
            frame.name
            for frame in frames
            if frame.condition == condition and frame.split != UNLABELLED
        ]
        if names:
            name = max(names, key=lambda name: len(beings_in(out, name)))
            rows.append((name, preview_tiles(out, name)))
    legend = {text: colour for colour, text in LOOK_OF_VISIBILITY.values()}
    sheet = contact_sheet(["RGB", *GATED_FOLDERS], rows, legend)
    save_picture(sheet, file, "PNG" if file.suffix == ".png" else "JPEG", quality=88)


def preview_tiles(out: Path, name: str) -> list[Image.Image]:
    """The four images of a frame, with a box around each person and animal."""
    tiles = []
    for folder in IMAGE_FOLDERS:
        with Image.open(out / folder / f"{name}.png") as image:
            tile = resize_to_width(image, PREVIEW_TILE_WIDTH)
        boxes = []
        for being in beings_in(out, name):
            colour, _ = LOOK_OF_VISIBILITY[being.visible_rgb, being.visible_gated]
            boxes.append(Box(to_pixels(being.box, *tile.size), colour))
        draw_boxes(tile, boxes)
        tiles.append(tile)
    return tiles


# ------------------------------------------------------------------------------------ command line


def width_x_height(text: str) -> tuple[int, int]:
    """argparse type: WIDTHxHEIGHT in pixels."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) > 0 and int(height) > 0):
        raise argparse.ArgumentTypeError(
            f"'{text}' is not WIDTHxHEIGHT in pixels (default: 1280x768)"
        )
    return int(width), int(height)


def condition_share(text: str) -> tuple[str, float]:
    """argparse type: CONDITION=SHARE."""
    name, _, number = text.partition("=")
    if name not in CONDITIONS:
        raise argparse.ArgumentTypeError(
            f"'{name}' is not a condition: choose from {', '.join(CONDITIONS)}"
        )
    if not 0 <= to_float(number) <= 1:
        raise argparse.ArgumentTypeError(f"'{text}': write {name}=SHARE with a share from 0 to 1")
    return name, to_float(number)


def picture_file(text: str) -> Path:
    """argparse type: a .png or .jpg file."""
    if Path(text).suffix not in (".png", ".jpg"):
        raise argparse.ArgumentTypeError(f"'{text}' must end in .png or .jpg")
    return Path(text)


def parse_arguments() -> argparse.Namespace:
    """The command line; an error ends the program in one line."""
    parser = OneLineParser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder (default: data)")
    parser.add_argument(
        "--frames",
        type=at_least(0),
        nargs=3,
        default=[1500, 300, 300],
        metavar=("TRAIN", "VAL", "TEST"),
        help="frames of each split (default: 1500 300 300)",
    )
    parser.add_argument(
        "--unlabelled",
        type=at_least(1),
        nargs=2,
        metavar=("FRAMES", "N"),
        help="simulate FRAMES more, N of each of some other places, and list them in "
        "unlabelled_night; their labels are in true_labels, which only an oracle should read "
        "(default: none)",
    )
    parser.add_argument(
        "--frames-per-recording",
        type=at_least(1),
        default=4,
        metavar="N",
        help="frames of one place, 0.8 s apart; no place is in two splits (default: 4)",
    )
    parser.add_argument(
        "--size",
        type=width_x_height,
        default=(1280, 768),
        metavar="WxH",
        help="image size in pixels (default: 1280x768)",
    )
    default_mix = " ".join(f"{name}={share:g}" for name, share in DEFAULT_MIX.items())
    parser.add_argument(
        "--mix",
        type=condition_share,
        nargs="+",
        default=list(DEFAULT_MIX.items()),
        metavar="CONDITION=SHARE",
        help=f"shares of {', '.join(CONDITIONS)}; they sum to 1 (default: {default_mix})",
    )
    parser.add_argument(
        "--visible-share",
        type=to_float,
        default=0.6,
        metavar="SHARE",
        help="how bright the night is: the share of people visible in RGB (default: 0.6)",
    )
    parser.add_argument(
        "--misalignment",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the RGB camera is beside the gated one and 21 ms later (default: yes)",
    )
    parser.add_argument(
        "--animals",
        type=non_negative_float,
        default=DEFAULT_ANIMALS,
        metavar="SHARE",
        help=f"share of places with deer, moose or wild boar (default: {DEFAULT_ANIMALS}; 0: none)",
    )
    parser.add_argument(
        "--hard-slices",
        action="store_true",
        help="gated slices as hard as real ones: dark clothes, bright clutter, glare, more noise, "
        "slices a few pixels apart (default: clean ones)",
    )
    parser.add_argument(
        "--seed",
        type=at_least(0),
        default=0,
        help="a frame depends on the seed and its number (default: 0)",
    )
    parser.add_argument(
        "--workers",
        type=at_least(1),
        default=cores(),
        metavar="N",
        help="processes (default: all cores)",
    )
    parser.add_argument(
        "--preview",
        type=picture_file,
        metavar="FILE",
        help="also write a contact sheet, .png or .jpg",
    )
    args = parser.parse_args()
    if sum(args.frames) == 0:
        parser.error("--frames needs at least 1 frame, not 0 0 0")
    names = [name for name, _ in args.mix]
    if len(set(names)) < len(names):
        parser.error(f"--mix names a condition twice: {' '.join(names)}")
    total = sum(share for _, share in args.mix)
    if abs(total - 1) > 1e-6:
        parser.error(f"--mix: the shares sum to {total:g}, not 1")
    if not 0 < args.visible_share < 1:
        parser.error(f"--visible-share must be between 0 and 1, not {args.visible_share}")
    return args


def main() -> None:
    set_up_output()
    args = parse_arguments()
    parameters = {
        "version": 1,
        "frames": args.frames,
        "frames_per_recording": args.frames_per_recording,
        "size": list(args.size),
        "mix": dict(args.mix),
        "visible_share": args.visible_share,
        "misalignment": args.misalignment,
        "seed": args.seed,
        "unlabelled": args.unlabelled,
        # None is also what folders of earlier versions have.
        "hard_slices": args.hard_slices or None,
        "animals": args.animals or None,
    }
    try:
        frames = make_data_set(args.out, parameters, args.workers)
        if args.preview:
            save_preview(args.out, frames, args.preview)
        sys.stdout.flush()
    except UserError as error:
        exit_with_error(str(error))
    except PermissionError as error:
        if error.filename is None:
            raise
        exit_with_error(forbidden_message(error))
    except BrokenPipeError:
        sys.exit(give_up_output())
    except KeyboardInterrupt:
        print(f"\nstopped: the same command continues in {args.out}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

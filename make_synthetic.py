"""Night and fog on simulated roads, seen by an RGB and a gated near-infrared camera, in the prepared layout.

    python make_synthetic.py --out data --frames 1500 300 300 --size 1280x768 --seed 0
    python make_synthetic.py --out day --mix clear_day=1 --preview day.png

`synthetic_scene` draws the places, `synthetic_cameras` the pictures; here are the labels, the lists and the files. A
call that was interrupted goes on where it stopped. OUT/synthetic.json holds the parameters and what was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from tqdm import tqdm

from cmkd.simulator.cameras import LABEL_SIZE, Raster, gated_camera, rasterise, rgb_camera, rgb_light, shrink
from cmkd.simulator.scene import CONDITIONS, Array, Scene, sample_scene

FOLDERS = ("images", "gated0", "gated1", "gated2", "gated_labels")
SPLITS = ("train", "val", "test")
DEFAULT_MIX = {"clear_night": 0.4, "light_fog_night": 0.15, "dense_fog_night": 0.1, "snow_night": 0.15, "dusk": 0.2}
SECONDS_BETWEEN_FRAMES = 0.8
VISIBLE_CONTRAST, FAINTEST = 1.25, 4.0  # see `contrast`; grey levels
HIDDEN_LIMIT = 0.8  # people of whom more is hidden are DontCare
CALIBRATION_FRAMES, CALIBRATION_WIDTH = 500, 320  # the share hardly depends on the size of the picture
LIGHTS = 2.0 ** np.arange(-6, 6.1, 0.5)  # how bright the night may be made to reach --visible-share


class DataError(Exception):
    """Something the person at the keyboard can mend. Its text is one line."""


@dataclass(frozen=True)
class Frame:
    """One frame: its name, its place (a recording of one condition) and its moment there."""

    name: str
    split: str
    condition: str
    recording: int
    moment: int


@dataclass(frozen=True)
class Render:
    """What the two cameras see at a moment."""

    scene: Scene
    rgb_raster: Raster
    gated_raster: Raster
    reflected: Array  # (3, H, W) linear light that scales with how much light there is
    emitted: Array  # (3, H, W) linear light of lamps, glare and lens
    rng: np.random.Generator  # for the noise


# --------------------------------------------------------------------------------------------- frames


def plan(frames: list[int], mix: dict[str, float], seed: int, frames_per_recording: int = 4) -> list[Frame]:
    """The frames of every split. Conditions are dealt to recordings by the largest remainder, in a drawn order."""
    planned, recording = [], 0
    for number, (split, count) in enumerate(zip(SPLITS, frames, strict=True)):
        recordings = -(-count // frames_per_recording)
        conditions = np.array(deal(recordings, mix), object)
        np.random.default_rng([seed, number]).shuffle(conditions)
        for index in range(count):
            place, moment = divmod(index, frames_per_recording)
            condition, place = conditions[place], recording + place
            planned.append(Frame(f"{condition}_{place:05d}_{moment:02d}", split, condition, place, moment))
        recording += recordings
    return planned


def deal(count: int, mix: dict[str, float]) -> list[str]:
    """`count` conditions in the shares of `mix`, as near as whole numbers allow."""
    whole = {name: int(count * share) for name, share in mix.items()}
    by_remainder = sorted(mix, key=lambda name: whole[name] - count * mix[name])
    for name in by_remainder[:count - sum(whole.values())]:
        whole[name] += 1
    return [name for name, number in whole.items() for _ in range(number)]


def render(frame: Frame, seed: int, size: tuple[int, int], misaligned: bool) -> Render:
    """The frame as both cameras see it, determined by (seed, recording, moment) alone."""
    place = np.random.default_rng([seed, 1, frame.recording])
    texture_offset = place.integers(0, 1024, 2)
    scene = sample_scene(place, CONDITIONS[frame.condition], frame.moment * SECONDS_BETWEEN_FRAMES)
    gated_raster = rasterise(scene, size, texture_offset)
    rgb_raster = rasterise(scene, size, texture_offset, as_rgb=True) if misaligned else gated_raster
    reflected, emitted = rgb_light(scene, rgb_raster)
    return Render(scene, rgb_raster, gated_raster, reflected, emitted,
                  np.random.default_rng([seed, 2, frame.recording, frame.moment]))


def write_frame(frame: Frame, seed: int, size: tuple[int, int], misaligned: bool, light: float, out: Path) -> None:
    """Simulate and store one frame, the labels last: a frame with labels is complete. An existing one is kept."""
    labels = out / "gated_labels" / f"{frame.name}.txt"
    if labels.is_file():
        return
    view = render(frame, seed, size, misaligned)
    brightness = np.float32(1.0 if view.scene.condition.day else light)
    rgb = rgb_camera(view.scene, view.reflected * brightness + view.emitted, view.rng)
    gated = gated_camera(view.scene, view.gated_raster, view.rng)
    lines = label_lines(view, rgb, gated)
    write_atomically(out / "images" / f"{frame.name}.png", Image.fromarray(rgb))
    for number, picture in enumerate(gated):
        write_atomically(out / f"gated{number}" / f"{frame.name}.png", Image.fromarray(picture))
    write_atomically(labels, "".join(line + "\n" for line in lines))


def write_atomically(path: Path, content: Image.Image | str) -> None:
    """Write an image or a text; a reader never meets half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if isinstance(content, str):
        temporary.write_text(content, encoding="utf-8")
    elif path.suffix == ".png":
        content.save(temporary, "PNG", compress_type=zlib.Z_HUFFMAN_ONLY)  # noise: the smallest and fastest
    else:
        content.save(temporary, "JPEG", quality=88)
    temporary.replace(path)


# --------------------------------------------------------------------------------------------- labels


@dataclass(frozen=True)
class Unit:
    """The things that share one label, as the gated camera sees them."""

    members: list[int]  # indices of things
    box: Array  # x0, y0, x1, y1 of the whole body, clipped, in pixels of the raster
    hidden: float  # share of the body behind other things
    outside: float  # share of the body's window beyond the image


def label_units(view: Render) -> list[Unit]:
    """What is labelled: each person, cyclist and vehicle in the picture; three or more of one group together."""
    raster, shape = view.gated_raster, view.gated_raster.part.shape
    seen = np.bincount(raster.owner[raster.part].ravel() + 1, minlength=len(view.scene.things) + 1)[1:]
    found: dict[int, list[tuple[int, Array, float, float]]] = {}
    for index, thing in enumerate(view.scene.things):
        if not thing.kind:
            continue
        box, area, outside = whole_body(raster.outlines[index], shape)
        if area:
            hidden = float(np.clip(1 - seen[index] / area, 0, 1))
            found.setdefault(thing.group if thing.group >= 0 else 1000 + index, []).append(
                (index, box, hidden, outside))
    units = []
    for members in found.values():
        for batch in [members] if len(members) >= 3 else [[member] for member in members]:
            boxes = np.array([box for _, box, _, _ in batch])
            box = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
            hidden, outside = (float(np.mean([member[column] for member in batch])) for column in (2, 3))
            units.append(Unit([index for index, *_ in batch], box, hidden, outside))
    return units


def whole_body(outlines: list[Array], shape: tuple[int, int]) -> tuple[Array, int, float]:
    """A thing as if nothing stood before it: tight box in the image, pixels, share of its window beyond the image."""
    points = np.concatenate(outlines)
    low, high = np.floor(points.min(0)).astype(int) - 1, np.ceil(points.max(0)).astype(int) + 2
    x0, y0 = (int(value) for value in np.clip(low, 0, (shape[1], shape[0])))
    x1, y1 = (int(value) for value in np.clip(high, 0, (shape[1], shape[0])))
    if x1 <= x0 or y1 <= y0:
        return np.zeros(4), 0, 1.0
    canvas = Image.new("1", (x1 - x0, y1 - y0))
    draw = ImageDraw.Draw(canvas)
    for outline in outlines:
        draw.polygon((outline - (x0, y0)).ravel().tolist(), fill=1)
    mask = np.asarray(canvas)
    if not mask.any():
        return np.zeros(4), 0, 1.0
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.array([x0 + columns[0], y0 + rows[0], x0 + columns[-1] + 1, y0 + rows[-1] + 1], float)
    return box, int(mask.sum()), float(1 - (x1 - x0) * (y1 - y0) / np.prod(high - low))


@dataclass(frozen=True)
class Window:
    """The surroundings of a labelled unit in one camera's picture."""

    rows: slice  # of the stored image
    columns: slice
    body: Array  # (h, w) bool, the unit's visible pixels
    others: Array  # (h, w) bool, pixels of other people


def window(unit: Unit, scene: Scene, raster: Raster) -> Window:
    """Where to look for the unit: its box with a margin of an eighth of its height, in this camera's picture."""
    factor, shape = raster.factor, raster.part.shape
    points = np.concatenate([outline for index in unit.members for outline in raster.outlines[index]])
    margin = max(2 * factor, 0.12 * np.ptp(points[:, 1]))
    x0, y0 = (np.clip(points.min(0) - margin, 0, shape[::-1]) / factor).astype(int)
    x1, y1 = (np.clip(points.max(0) + margin, 0, shape[::-1]) / factor).astype(int)
    inside = raster.owner[raster.part[y0 * factor:y1 * factor, x0 * factor:x1 * factor]]
    people = np.array([thing.kind == "Pedestrian" for thing in scene.things] + [False])  # last: the sky's -1
    own = np.isin(inside, unit.members)
    return Window(slice(y0, y1), slice(x0, x1), shrink(own.astype(np.float32), factor) > 0.5,
                  shrink((people[inside] & ~own).astype(np.float32), factor) > 0)


def contrast(picture: Array, place: Window) -> float:
    """How far a body stands out of its surroundings in a picture (H, W, 3) uint8: the highest channel's median over the
    body of |value - middle(ring)| / spread(ring), after averaging over patches a limb wide.

    The ring is the window without the body and other people; its middle is taken row by row, as a street changes most
    from the road up to the sky, and its spread is half the 16-84 % range of what is left: the standard deviation of
    noise and texture, that one lamp beside the person does not inflate. It counts as at least FAINTEST, a step hard to
    see on a screen. More than VISIBLE_CONTRAST is visible; where nobody is, fewer than one place in ten reaches it. The
    channels are R, G, B or the three slices.
    """
    ring = ~place.others & ~place.body
    rows = ring.any(1)
    body = place.body & rows[:, None]
    if not body.any() or ring.sum() < 4:
        return 0.0
    half_limb = np.flatnonzero(body.any(1)).size / 32
    smooth = Image.fromarray(picture[place.rows, place.columns]).filter(ImageFilter.BoxBlur(half_limb))
    step = max(1, int(half_limb))  # neighbours within a patch tell nothing new
    body, ring = body[::step, ::step], ring[::step, ::step]
    values = np.asarray(smooth)[::step, ::step].astype(np.float32)
    middle = (values * ring[..., None]).sum(1) / np.maximum(ring.sum(1), 1)[:, None]
    values -= middle[:, None]
    low, high = np.percentile(values[ring], (16, 84), axis=0)
    return float((np.median(np.abs(values[body]), axis=0) / np.maximum((high - low) / 2, FAINTEST)).max())


def label_lines(view: Render, rgb: Array, gated: list[Array]) -> list[str]:
    """The 27-column lines of one frame; tight boxes of the whole body, clipped, in LABEL_SIZE pixels."""
    height, width = view.gated_raster.part.shape
    scale = np.array([LABEL_SIZE[0] / width, LABEL_SIZE[1] / height] * 2)
    slices = np.stack(gated, axis=-1)
    lines = []
    for unit in label_units(view):
        things = [view.scene.things[index] for index in unit.members]
        seen_rgb, seen_gated = (
            contrast(picture, window(unit, view.scene, raster)) > VISIBLE_CONTRAST
            for picture, raster in ((rgb, view.rgb_raster), (slices, view.gated_raster)))
        kind, size = things[0].kind, things[0].dimensions
        place = (things[0].position[0], view.scene.camera_height, things[0].distance)
        if len(things) > 1:
            kind, size = f"{kind}_is_group", (-1, -1, -1)
            place = (-1000, -1000, np.mean([thing.distance for thing in things]))
        if unit.hidden > HIDDEN_LIMIT:
            kind = "DontCare"
        occlusion = sum(unit.hidden > limit for limit in (0.1, 0.45))
        numbers = " ".join(f"{value:.2f}" for value in (*(unit.box * scale), *size, *place))
        lines.append(f"{kind} {unit.outside:.2f} {occlusion} -1 {numbers} -1000 0.000 0.000 0.000 1.00 "
                     f"-1000 -1000 -1000 -1000 {seen_rgb} {seen_gated} -1 -1")
    return lines


# --------------------------------------------------------------------------------------------- how much light


def visible_by_light(frame: Frame, seed: int, size: tuple[int, int], misaligned: bool) -> Array:
    """(people, LIGHTS) bool: who would be visible in RGB, were the frame lit by each factor of LIGHTS."""
    view = render(frame, seed, size, misaligned)
    visible = []
    for unit in label_units(view):
        if view.scene.things[unit.members[0]].kind != "Pedestrian" or unit.hidden > HIDDEN_LIMIT:
            continue
        place = window(unit, view.scene, view.rgb_raster)
        reflected, emitted = (light[:, place.rows, place.columns] for light in (view.reflected, view.emitted))
        cut = replace(place, rows=slice(None), columns=slice(None))
        pictures = [rgb_camera(view.scene, reflected * np.float32(light) + emitted, view.rng) for light in LIGHTS]
        visible.append([contrast(picture, cut) > VISIBLE_CONTRAST for picture in pictures])
    return np.array(visible, bool).reshape(-1, len(LIGHTS))


def calibrate(frames: list[Frame], visible_share: float, work: partial, pool: ProcessPoolExecutor | None) -> float:
    """The factor on all light of the night at which `visible_share` of the people are visible in RGB.

    Measured on up to CALIBRATION_FRAMES frames, spread over the dark ones of the plan.
    """
    dark = [frame for frame in frames if not CONDITIONS[frame.condition].day]
    if not dark:
        return 1.0
    chosen = [dark[index] for index in np.unique(np.linspace(0, len(dark) - 1, CALIBRATION_FRAMES).astype(int))]
    results = pool.map(work, chosen, chunksize=4) if pool else map(work, chosen)
    visible = np.concatenate(list(tqdm(results, "measuring the light", len(chosen), unit="frame", disable=None)))
    if not len(visible):
        return 1.0
    shares = np.maximum.accumulate(visible.mean(0))
    if not shares[0] <= visible_share <= shares[-1]:
        print(f"warning: --visible-share {visible_share:g} is out of reach: between {shares[0]:.2f} and "
              f"{shares[-1]:.2f} of these people can be visible", file=sys.stderr)
    return float(np.exp2(np.interp(visible_share, shares, np.log2(LIGHTS))))


# --------------------------------------------------------------------------------------------- folder


def read_people(out: Path, name: str) -> list[list[str]]:
    """The label columns of the pedestrians of a frame."""
    lines = (out / "gated_labels" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [columns for columns in map(str.split, lines) if columns[0].startswith("Pedestrian")]


def write_lists(frames: list[Frame], out: Path) -> None:
    """`<split>_night` (all but clear_day), `<split>_<condition>`, and `vis_night`: 12 test frames in which somebody
    is visible in the gated slices and not in RGB. Lists come last, as a list promises its frames."""
    lists: dict[str, list[str]] = {}
    for frame in frames:
        if not CONDITIONS[frame.condition].day:
            lists.setdefault(f"{frame.split}_night", []).append(frame.name)
        lists.setdefault(f"{frame.split}_{frame.condition}", []).append(frame.name)
    peopled = [name for name in lists.get("test_night", []) if read_people(out, name)]
    gated_only = [name for name in peopled
                  if any(columns[23:25] == ["False", "True"] for columns in read_people(out, name))]
    if candidates := gated_only or peopled:
        spread = np.unique(np.linspace(0, len(candidates) - 1, 12).round().astype(int))
        lists["vis_night"] = [candidates[index] for index in spread]
    for name, names in lists.items():
        write_atomically(out / f"{name}.txt", "".join(line + "\n" for line in names))


def measure(frames: list[Frame], out: Path) -> dict[str, dict[str, float]]:
    """By condition, and over all of the night: frames, people, and the shares of them visible in RGB and gated."""
    flags: dict[str, list[list[bool]]] = {}
    counts: Counter[str] = Counter()
    for frame in frames:
        rows = [[value == "True" for value in columns[23:25]] for columns in read_people(out, frame.name)]
        for name in [frame.condition] + ["night"] * (not CONDITIONS[frame.condition].day):
            flags.setdefault(name, []).extend(rows)
            counts[name] += 1
    measured = {}
    for name, rows in sorted(flags.items(), key=lambda item: item[0] == "night"):
        rgb, gated = np.array(rows, float).reshape(-1, 2).mean(0) if rows else (0.0, 0.0)
        measured[name] = {"frames": counts[name], "people": len(rows), "visible_rgb": round(float(rgb), 4),
                          "visible_gated": round(float(gated), 4)}
    return measured


def make_data(out: Path, parameters: dict, workers: int) -> list[Frame]:
    """Write or finish the prepared layout under `out`; print and store what was measured; return the frames."""
    stored = out / "synthetic.json"
    state = open_folder(out, parameters)
    frames = plan(*(parameters[name] for name in ("frames", "mix", "seed", "frames_per_recording")))
    width, height = parameters["size"]
    common = {"seed": parameters["seed"], "misaligned": parameters["misalignment"]}
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if workers > 1 else None
    try:
        if "light" not in state:
            reduced = min(1.0, CALIBRATION_WIDTH / width)
            size = (max(round(width * reduced), 1), max(round(height * reduced), 1))
            look = partial(visible_by_light, size=size, **common)
            state["light"] = calibrate(frames, parameters["visible_share"], look, pool)
            write_atomically(stored, json.dumps(state, indent=2) + "\n")
        work = partial(write_frame, size=(width, height), light=state["light"], out=out, **common)
        results = pool.map(work, frames, chunksize=4) if pool else map(work, frames)
        for _ in tqdm(results, str(out), len(frames), unit="frame", disable=None):
            pass
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    write_lists(frames, out)
    state["measured"] = measure(frames, out)
    write_atomically(stored, json.dumps(state, indent=2) + "\n")
    print(f"{'condition':<18}{'frames':>8}{'people':>8}{'visible in RGB':>16}{'in gated':>10}")
    for name, row in state["measured"].items():
        print(f"{name:<18}{row['frames']:>8}{row['people']:>8}{row['visible_rgb']:>16.2f}{row['visible_gated']:>10.2f}")
    return frames


def open_folder(out: Path, parameters: dict) -> dict:
    """The state of a data set begun with the same parameters, or a new folder's. Raises `DataError`."""
    stored = out / "synthetic.json"
    if stored.is_file():
        try:
            state = json.loads(stored.read_text(encoding="utf-8"))
            before = state["parameters"]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{stored} cannot be read: remove {out} or choose another --out") from None
        for name, value in parameters.items():
            if before.get(name) != value:
                raise DataError(f"{out} was made with {name} {before.get(name)}, not {value}: pass the same or choose "
                                "another --out; nothing was changed")
        for leftover in (path for folder in FOLDERS for path in (out / folder).glob(".*.tmp")):
            leftover.unlink()
        return state
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"--out {out} exists and holds something else: choose a new or empty folder; nothing was "
                        "written")
    for folder in FOLDERS:
        (out / folder).mkdir(parents=True, exist_ok=True)
    state = {"parameters": parameters}
    write_atomically(stored, json.dumps(state, indent=2) + "\n")
    return state


# --------------------------------------------------------------------------------------------- preview

TILE, GAP, TITLE = (640, 384), 6, 30
SEEN_BY = {("True", "True"): ("#009E73", "visible in both"), ("False", "True"): ("#E69F00", "in gated only"),
           ("True", "False"): ("#56B4E9", "in RGB only"), ("False", "False"): ("#CC79A7", "in neither")}


def preview(out: Path, frames: list[Frame], file: Path) -> None:
    """A contact sheet: for each condition the frame with most people, RGB and slices, boxes by who is visible where."""
    best: dict[str, Frame] = {}
    for frame in frames:
        if frame.condition not in best or (len(read_people(out, frame.name))
                                           > len(read_people(out, best[frame.condition].name))):
            best[frame.condition] = frame
    chosen = [best[name] for name in CONDITIONS if name in best]
    sheet = Image.new("RGB", (4 * (TILE[0] + GAP) + GAP, TITLE + len(chosen) * (TILE[1] + TITLE + GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
    left = GAP
    for colour, text in SEEN_BY.values():
        draw.rectangle((left, 8, left + 20, 22), outline=colour, width=4)
        draw.text((left + 28, 4), text, fill="black", font=font)
        left += 60 + round(draw.textlength(text, font))
    for row, frame in enumerate(chosen):
        top = TITLE + row * (TILE[1] + TITLE + GAP)
        for column, folder in enumerate(FOLDERS[:4]):
            x = GAP + column * (TILE[0] + GAP)
            draw.text((x, top + 4), f"{frame.name}, RGB" if column == 0 else f"slice {column - 1}", fill="black",
                      font=font)
            with Image.open(out / folder / f"{frame.name}.png") as picture:
                tile = picture.convert("RGB").resize(TILE, Image.Resampling.LANCZOS)
            boxes = ImageDraw.Draw(tile)
            for columns in read_people(out, frame.name):
                scale = (TILE[0] / LABEL_SIZE[0], TILE[1] / LABEL_SIZE[1]) * 2
                box = [float(value) * factor for value, factor in zip(columns[4:8], scale, strict=True)]
                boxes.rectangle(box, outline=SEEN_BY[tuple(columns[23:25])][0], width=2)
            sheet.paste(tile, (x, top + TITLE))
    write_atomically(file, sheet)


# --------------------------------------------------------------------------------------------- command line


class Parser(argparse.ArgumentParser):
    """Refuses in one line: a wrong call is no reason to print the whole usage."""

    def error(self, message: str) -> None:
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        sys.exit(2)


def image_size(text: str) -> tuple[int, int]:
    """argparse type: WIDTHxHEIGHT in pixels."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) > 0 and int(height) > 0):
        raise argparse.ArgumentTypeError(f"'{text}' is not WIDTHxHEIGHT in pixels, such as 1280x768")
    return int(width), int(height)


def condition_share(text: str) -> tuple[str, float]:
    """argparse type: CONDITION=SHARE."""
    name, _, share = text.partition("=")
    if name not in CONDITIONS:
        raise argparse.ArgumentTypeError(f"'{name}' is no condition: choose from {', '.join(CONDITIONS)}")
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}': write {name}=SHARE with a share from 0 to 1")
    return name, value


def parse_arguments() -> argparse.Namespace:
    """Command line, checked; exits with 2 and one line on standard error when it can't be followed."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder (default: data)")
    parser.add_argument("--frames", type=int, nargs=3, default=[1500, 300, 300],
                        metavar=("TRAIN", "VAL", "TEST"), help="frames per split (default: 1500 300 300)")
    parser.add_argument("--frames-per-recording", type=int, default=4, metavar="N",
                        help="frames of one place, 0.8 s apart; no place is in two splits (default: 4)")
    parser.add_argument("--size", type=image_size, default=(1280, 768), metavar="WxH",
                        help="image size in pixels (default: 1280x768)")
    parser.add_argument("--mix", type=condition_share, nargs="+", default=list(DEFAULT_MIX.items()),
                        metavar="CONDITION=SHARE", help=f"shares of {', '.join(CONDITIONS)}, 1 in sum (default: "
                        + " ".join(f"{name}={share:g}" for name, share in DEFAULT_MIX.items()) + ")")
    parser.add_argument("--visible-share", type=float, default=0.6,
                        help="how much light there is: at which share of the people is visible in RGB (default: 0.6)")
    parser.add_argument("--misalignment", action=argparse.BooleanOptionalAction, default=True,
                        help="RGB stands beside the gated camera and is taken 21 ms later (default: yes)")
    parser.add_argument("--seed", type=int, default=0, help="a frame depends on the seed and its number (default: 0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: all cores)")
    parser.add_argument("--preview", type=Path, metavar="FILE", help="also write a contact sheet, .png or .jpg")
    options = parser.parse_args()
    if min(options.frames) < 0 or sum(options.frames) == 0:
        parser.error(f"--frames needs at least 1 frame and no negative count, not {options.frames}")
    if options.frames_per_recording < 1:
        parser.error(f"--frames-per-recording must be at least 1, not {options.frames_per_recording}")
    names = [name for name, _ in options.mix]
    if len(set(names)) < len(names):
        parser.error(f"--mix names a condition twice: {' '.join(names)}")
    if abs(sum(share for _, share in options.mix) - 1) > 1e-6:
        parser.error(f"--mix: the shares sum to {sum(share for _, share in options.mix):g}, not 1")
    if not 0 < options.visible_share < 1:
        parser.error(f"--visible-share must be between 0 and 1, not {options.visible_share}")
    if options.seed < 0:
        parser.error(f"--seed must not be negative, not {options.seed}")
    if options.workers < 1:
        parser.error(f"--workers must be at least 1, not {options.workers}")
    if options.preview and options.preview.suffix not in (".png", ".jpg"):
        parser.error(f"--preview {options.preview} must end in .png or .jpg")
    return options


def main() -> None:
    options = parse_arguments()
    parameters = {"version": 1, "frames": options.frames, "frames_per_recording": options.frames_per_recording,
                  "size": list(options.size), "mix": dict(options.mix), "visible_share": options.visible_share,
                  "misalignment": options.misalignment, "seed": options.seed}
    try:
        frames = make_data(options.out, parameters, options.workers)
        if options.preview:
            preview(options.out, frames, options.preview)
    except DataError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\nstopped: the same command goes on with {options.out}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

"""Labels of a simulated frame: boxes, occlusion, and who is visible in which image."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from cmkd.simulator.raster import LABEL_SIZE, Raster, shrink
from cmkd.simulator.rendering import View
from cmkd.simulator.scene import Scene
from cmkd.simulator.shapes import Thing

VISIBLE_CONTRAST = 1.25  # see `contrast`
FAINTEST = 4.0  # grey levels: a step that is hard to see on a screen
HIDDEN_LIMIT = 0.8  # people of whom a larger share is hidden are DontCare
OCCLUSION_LIMITS = (0.1, 0.45)  # hidden shares at which the occlusion column becomes 1 and 2
GROUP_SIZE = 3  # so many of a group share one label


@dataclass(frozen=True)
class LabelledObject:
    """The thing or the group of things that one label describes, as the gated camera sees it."""

    members: list[int]  # indices of things
    box: np.ndarray  # x0, y0, x1, y1 of the whole body, clipped, in pixels of the raster
    hidden: float  # 0..1: share of the body behind other things
    outside: float  # 0..1: share of the body's bounding rectangle that is not in the image


def labelled_objects(view: View) -> list[LabelledObject]:
    """What is labelled: every person, cyclist and vehicle in the image; groups together."""
    raster = view.gated_raster
    things = view.scene.things
    owners = raster.owner[raster.part].ravel() + 1  # 0 is the sky
    pixels_seen = np.bincount(owners, minlength=len(things) + 1)[1:]
    groups: dict[int, list[LabelledObject]] = {}
    for index, thing in enumerate(things):
        if not thing.kind:
            continue
        box, area, outside = whole_body(raster.outlines[index], raster.part.shape)
        if area == 0:
            continue
        hidden = float(np.clip(1 - pixels_seen[index] / area, 0, 1))
        group = thing.group if thing.group >= 0 else 1000 + index  # 1000: alone
        single = LabelledObject([index], box, hidden, outside)
        groups.setdefault(group, []).append(single)
    objects = []
    for members in groups.values():
        objects += [merged(members)] if len(members) >= GROUP_SIZE else members
    return objects


def merged(objects: list[LabelledObject]) -> LabelledObject:
    """One label for a group: the box around all, and mean shares."""
    boxes = np.array([each.box for each in objects])
    return LabelledObject(
        [index for each in objects for index in each.members],
        np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)]),
        float(np.mean([each.hidden for each in objects])),
        float(np.mean([each.outside for each in objects])),
    )


def whole_body(outlines: list[np.ndarray], shape: tuple[int, int]) -> tuple[np.ndarray, int, float]:
    """A thing as if nothing was in front of it, in an image of `shape` (height, width).

    Its tight box (x0, y0, x1, y1), its number of pixels, and the share of its bounding rectangle
    that is not in the image. Without a pixel in the image: zeros and 1.
    """
    points = np.concatenate(outlines)
    low, high = np.floor(points.min(0)).astype(int) - 1, np.ceil(points.max(0)).astype(int) + 2
    x0, y0 = (int(value) for value in np.clip(low, 0, shape[::-1]))
    x1, y1 = (int(value) for value in np.clip(high, 0, shape[::-1]))
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
    outside = 1 - (x1 - x0) * (y1 - y0) / np.prod(high - low)
    return box, int(mask.sum()), float(outside)


# ---------------------------------------------------------------------------------- visibility


@dataclass(frozen=True)
class Region:
    """The part of an image around a labelled object."""

    rows: slice  # of the stored image
    columns: slice
    body: np.ndarray  # the object's visible pixels, bool [h, w]
    others: np.ndarray  # pixels of other people, bool [h, w]


def region_around(labelled: LabelledObject, scene: Scene, raster: Raster) -> Region:
    """An object's box with a margin of an eighth of its height, in the image of a raster."""
    factor, shape = raster.factor, raster.part.shape
    outlines = [outline for index in labelled.members for outline in raster.outlines[index]]
    points = np.concatenate(outlines)
    margin = max(2 * factor, 0.12 * np.ptp(points[:, 1]))
    x0, y0 = (np.clip(points.min(0) - margin, 0, shape[::-1]) / factor).astype(int)
    x1, y1 = (np.clip(points.max(0) + margin, 0, shape[::-1]) / factor).astype(int)
    part = raster.part[y0 * factor : y1 * factor, x0 * factor : x1 * factor]
    thing = raster.owner[part]
    # The last one is for the sky, whose owner is -1.
    is_person = np.array([thing.kind == "Pedestrian" for thing in scene.things] + [False])
    body = np.isin(thing, labelled.members)
    others = is_person[thing] & ~body
    return Region(
        slice(y0, y1),
        slice(x0, x1),
        shrink(body.astype(np.float32), factor) > 0.5,
        shrink(others.astype(np.float32), factor) > 0,
    )


def contrast(image: np.ndarray, region: Region) -> float:
    """How far a body stands out from its surroundings in an image, uint8 [H, W, 3].

    The median over the body of |value - middle| / spread, in the best of the three channels, after
    a blur of the width of a limb. The surroundings are the region without the body and other
    people. Their middle is taken row by row, because a street changes most from the road up to the
    sky. Their spread is half the 16-84 % range: the standard deviation of noise and texture, which
    one lamp beside a person does not increase. It is at least FAINTEST.

    A body of more than VISIBLE_CONTRAST is visible. Without a body fewer than one place in ten
    reaches it.
    """
    around = ~region.others & ~region.body
    # A row without surroundings has no middle.
    body = region.body & around.any(1)[:, None]
    if not body.any() or around.sum() < 4:
        return 0.0
    half_limb = np.flatnonzero(body.any(1)).size / 32
    cut = Image.fromarray(image[region.rows, region.columns])
    blurred = np.asarray(cut.filter(ImageFilter.BoxBlur(half_limb)))
    step = max(1, int(half_limb))  # blurred neighbours say nothing new
    body, around = body[::step, ::step], around[::step, ::step]
    values = blurred[::step, ::step].astype(np.float32)
    counts = np.maximum(around.sum(1), 1)
    middle = (values * around[..., None]).sum(1) / counts[:, None]
    values -= middle[:, None]
    low, high = np.percentile(values[around], (16, 84), axis=0)
    spread = np.maximum((high - low) / 2, FAINTEST)
    return float((np.median(np.abs(values[body]), axis=0) / spread).max())


# --------------------------------------------------------------------------------------- lines


def label_lines(view: View, rgb: np.ndarray, gated: list[np.ndarray]) -> list[str]:
    """The lines of a label file: the 27 columns of Seeing Through Fog.

    `rgb` is uint8 [H, W, 3], `gated` are three slices, uint8 [H, W]. Boxes are tight around the
    whole body, hidden or not, clipped to the image, in label space.
    """
    slices = np.stack(gated, axis=-1)
    lines = []
    for labelled in labelled_objects(view):
        seen = []
        for image, raster in ((rgb, view.rgb_raster), (slices, view.gated_raster)):
            region = region_around(labelled, view.scene, raster)
            seen.append(contrast(image, region) > VISIBLE_CONTRAST)
        lines.append(label_line(labelled, view, *seen))
    return lines


def label_line(labelled: LabelledObject, view: View, visible_rgb: bool, visible_gated: bool) -> str:
    """The 27 columns of one object; unknown ones are -1, -1000 or 0."""
    things = [view.scene.things[index] for index in labelled.members]
    kind, size, position = describe(things, view.scene.camera_height)
    if labelled.hidden > HIDDEN_LIMIT:
        kind = "DontCare"
    occlusion = sum(labelled.hidden > limit for limit in OCCLUSION_LIMITS)
    height, width = view.gated_raster.part.shape
    box = labelled.box * np.array([LABEL_SIZE[0] / width, LABEL_SIZE[1] / height] * 2)
    numbers = " ".join(f"{value:.2f}" for value in (*box, *size, *position))
    return (
        f"{kind} {labelled.outside:.2f} {occlusion} -1 {numbers} -1000 0.000 0.000 0.000 1.00 "
        f"-1000 -1000 -1000 -1000 {visible_rgb} {visible_gated} -1 -1"
    )


def describe(
    things: list[Thing], camera_height: float
) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    """Class, (height, width, length) and (x, y, z) of a labelled object, in metres.

    Only the mean distance of a group is known.
    """
    first = things[0]
    if len(things) > 1:
        distance = np.mean([thing.distance for thing in things])
        return f"{first.kind}_is_group", (-1, -1, -1), (-1000, -1000, distance)
    return first.kind, first.dimensions, (first.position[0], camera_height, first.distance)

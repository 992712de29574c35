"""Labels of a simulated frame: boxes, occlusion, and who is visible in which image."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from cmkd.frames.annotations import LABEL_HEIGHT, LABEL_WIDTH
from cmkd.simulator.raster import Raster, shrink
from cmkd.simulator.rendering import View
from cmkd.simulator.scene import Scene

VISIBLE_CONTRAST = 1.25  # see `contrast`
FAINTEST = 4.0  # grey levels: a step that is hard to see on a screen
HIDDEN_LIMIT = 0.8  # people hidden by more than this are labelled DontCare
OCCLUSION_LIMITS = (0.1, 0.45)  # hidden shares at which the occlusion column becomes 1 and 2
GROUP_SIZE = 3  # groups of this size or more share one label


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
        body = whole_body(raster.outlines[index], raster.part.shape)
        if not body:
            continue
        box, area, outside = body
        hidden = float(np.clip(1 - pixels_seen[index] / area, 0, 1))
        group = thing.group if thing.group >= 0 else 1000 + index  # 1000: alone
        groups.setdefault(group, []).append(LabelledObject([index], box, hidden, outside))
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


def whole_body(
    outlines: list[np.ndarray], shape: tuple[int, int]
) -> tuple[np.ndarray, int, float] | None:
    """A thing as if nothing was in front of it, in an image of `shape` (height, width).

    Its tight box (x0, y0, x1, y1), its number of pixels, and the share of its bounding rectangle
    that is not in the image. None if no pixel is in the image.
    """
    points = np.concatenate(outlines)
    low, high = np.floor(points.min(0)).astype(int) - 1, np.ceil(points.max(0)).astype(int) + 2
    x0, y0 = (int(value) for value in np.clip(low, 0, shape[::-1]))
    x1, y1 = (int(value) for value in np.clip(high, 0, shape[::-1]))
    if x1 <= x0 or y1 <= y0:
        return None
    canvas = Image.new("1", (x1 - x0, y1 - y0))
    draw = ImageDraw.Draw(canvas)
    for outline in outlines:
        draw.polygon((outline - (x0, y0)).ravel().tolist(), fill=1)
    mask = np.asarray(canvas)
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.array([x0 + columns[0], y0 + rows[0], x0 + columns[-1] + 1, y0 + rows[-1] + 1], float)
    outside = 1 - (x1 - x0) * (y1 - y0) / np.prod(high - low)
    return box, int(mask.sum()), float(outside)


# ---------------------------------------------------------------------------------- visibility


@dataclass(frozen=True)
class Surroundings:
    """The part of an image around a labelled object."""

    window: tuple[slice, slice]  # rows and columns of the stored image
    body: np.ndarray  # the object's visible pixels, bool [h, w]
    others: np.ndarray  # pixels of other people, bool [h, w]


def surroundings_of(labelled: LabelledObject, scene: Scene, raster: Raster) -> Surroundings:
    """An object's box with a margin of an eighth of its height, in the image of a raster."""
    factor, shape = raster.factor, raster.part.shape
    points = np.concatenate([each for index in labelled.members for each in raster.outlines[index]])
    margin = max(2 * factor, 0.12 * np.ptp(points[:, 1]))
    x0, y0 = (np.clip(points.min(0) - margin, 0, shape[::-1]) / factor).astype(int)
    x1, y1 = (np.clip(points.max(0) + margin, 0, shape[::-1]) / factor).astype(int)
    part = raster.part[y0 * factor : y1 * factor, x0 * factor : x1 * factor]
    thing = raster.owner[part]
    # The last one is for the sky, whose owner is -1.
    is_person = np.array([thing.kind == "Pedestrian" for thing in scene.things] + [False])
    body = np.isin(thing, labelled.members)
    others = is_person[thing] & ~body
    return Surroundings(
        (slice(y0, y1), slice(x0, x1)),
        shrink(body.astype(np.float32), factor) > 0.5,
        shrink(others.astype(np.float32), factor) > 0,
    )


def is_visible(image: np.ndarray, surroundings: Surroundings) -> bool:
    """Whether a body is seen in the window of its surroundings, cut from an image."""
    return contrast(image, surroundings) > VISIBLE_CONTRAST


def contrast(image: np.ndarray, surroundings: Surroundings) -> float:
    """How far a body stands out from its background, in the window of its surroundings.

    `image` is uint8 [h, w, 3]. The contrast is the median over the body of |value - middle| /
    spread, in the best of the three channels, after a blur of the width of a limb. The background
    has neither the body nor other people. Its middle is taken row by row, because a street changes
    most from the road up to the sky. Its spread is half the 16-84 % range: the standard deviation
    of noise and texture, which one lamp beside a person does not increase. It is at least FAINTEST.

    A body counts as visible above VISIBLE_CONTRAST; fewer than one empty place in ten reaches it.
    """
    background = ~surroundings.others & ~surroundings.body
    # A row without background has no middle.
    body = surroundings.body & background.any(1)[:, None]
    if not body.any() or background.sum() < 4:
        return 0.0
    half_limb = np.flatnonzero(body.any(1)).size / 32
    blurred = np.asarray(Image.fromarray(image).filter(ImageFilter.BoxBlur(half_limb)))
    step = max(1, int(half_limb))  # blurred neighbours say nothing new
    body, background = body[::step, ::step], background[::step, ::step]
    values = blurred[::step, ::step].astype(np.float32)
    counts = np.maximum(background.sum(1), 1)
    middle = (values * background[..., None]).sum(1) / counts[:, None]
    values -= middle[:, None]
    low, high = np.percentile(values[background], (16, 84), axis=0)
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
        flags = []
        for image, raster in ((rgb, view.rgb_raster), (slices, view.gated_raster)):
            surroundings = surroundings_of(labelled, view.scene, raster)
            flags.append(is_visible(image[surroundings.window], surroundings))
        lines.append(label_line(labelled, view, *flags))
    return lines


def label_line(labelled: LabelledObject, view: View, visible_rgb: bool, visible_gated: bool) -> str:
    """The 27 columns of one object; unknown ones are -1, -1000 or 0."""
    things = [view.scene.things[index] for index in labelled.members]
    first = things[0]
    kind, size = first.kind, first.dimensions
    position = (first.position[0], view.scene.camera_height, first.distance)
    if len(things) > 1:  # only the mean distance is known
        kind, size = f"{kind}_is_group", (-1, -1, -1)
        position = (-1000, -1000, np.mean([thing.distance for thing in things]))
    if labelled.hidden > HIDDEN_LIMIT:
        kind = "DontCare"
    occlusion = sum(labelled.hidden > limit for limit in OCCLUSION_LIMITS)
    height, width = view.gated_raster.part.shape
    box = labelled.box * np.array([LABEL_WIDTH / width, LABEL_HEIGHT / height] * 2)
    numbers = " ".join(f"{value:.2f}" for value in (*box, *size, *position))
    return (
        f"{kind} {labelled.outside:.2f} {occlusion} -1 {numbers} -1000 0.000 0.000 0.000 1.00 "
        f"-1000 -1000 -1000 -1000 {visible_rgb} {visible_gated} -1 -1"
    )

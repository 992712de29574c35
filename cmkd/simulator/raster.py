"""What each pixel of a camera sees: the part of the scene, its distance and its texture.

The pinhole camera is the rectified gated camera of Seeing Through Fog.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from cmkd.frames.annotations import LABEL_HEIGHT, LABEL_WIDTH
from cmkd.simulator.scene import Scene
from cmkd.simulator.shapes import Surface

LABEL_SIZE = (LABEL_WIDTH, LABEL_HEIGHT)
FOCAL, CENTRE = 2322.4, (667.8, 261.1)  # of the gated camera, in pixels of label space
RGB_OFFSET = (-0.110, 0.027)  # m: the RGB camera is this far to the right of the gated one and up
RGB_DELAY = 0.021  # s between the slices and the RGB image
PLANE = 30.0  # m: prepared RGB images are warped so that they fit at this distance
DOUBLED_BELOW = 384  # rows
SKY = Surface((0, 0, 0), nir=0.24)  # lit by the day, too far for the laser
TEXTURE_CELL, TEXTURE_CELLS = 0.02, 1024  # m per cell; cells in one period


@dataclass
class Raster:
    """What each pixel sees. Maps are [H, W] float32 unless said otherwise.

    Images of few rows are painted at twice their size: limbs thinner than a pixel keep their share.
    """

    size: tuple[int, int]  # (width, height) of the stored image
    factor: int  # H and W are this many times larger
    part: np.ndarray  # intp: index into `surfaces`; 0 is the sky
    across: np.ndarray  # X / Z of the pixel's ray, [1, W]
    down: np.ndarray  # (camera height - Y) / Z of the pixel's ray, [H, 1]
    depth: np.ndarray  # Z in m
    distance: np.ndarray  # range along the ray in m
    incidence: np.ndarray  # 0..1: cosine of incidence, softened by the surface's roughness
    upward: np.ndarray  # 0..1: how much a part faces the sky, [parts]
    texture: np.ndarray  # factor on the albedo, around 1
    surfaces: list[Surface]
    owner: np.ndarray  # index of the thing that a part belongs to, -1 for the sky, [parts]
    outlines: list[list[np.ndarray]]  # for each thing and part: corners in pixels, [N, 2]


@dataclass(frozen=True)
class Polygons:
    """The corners of all parts of a scene as a camera sees them."""

    points: np.ndarray  # X, -Y from the camera, Z in m, [corners, 3]
    pixels: np.ndarray  # [corners, 2]
    first: np.ndarray  # index of a part's first corner, [parts]
    counts: np.ndarray  # corners of a part, [parts]
    owner: np.ndarray  # index of a part's thing, [parts]

    @property
    def ends(self) -> np.ndarray:
        """Index after a part's last corner, [parts]."""
        return self.first + self.counts


def rasterise(
    scene: Scene, size: tuple[int, int], texture_offset: np.ndarray, as_rgb: bool = False
) -> Raster:
    """The view of the gated camera, or of the RGB camera if `as_rgb`.

    A part is in the plane n . P = 1. So 1 / Z = n . (x, y, 1) at the normalised pixel (x, y), and
    the cosine of incidence is 1 / (|n| |P|).
    """
    factor = 2 if size[1] < DOUBLED_BELOW else 1
    width, height = size[0] * factor, size[1] * factor
    focal = (np.array([width, height]) * FOCAL / LABEL_SIZE).tolist()
    centre = (np.array([width, height]) * CENTRE / LABEL_SIZE).tolist()
    polygons = project(scene, focal, centre, as_rgb)
    part = paint(polygons, (width, height))

    normals = plane_normals(polygons)
    length = np.linalg.norm(normals, axis=1)
    columns = np.arange(width, dtype=np.float32) + 0.5
    rows = np.arange(height, dtype=np.float32) + 0.5
    x = ((columns - centre[0]) / focal[0])[None].astype(np.float32)
    y = ((rows - centre[1]) / focal[1])[:, None].astype(np.float32)
    depth = lookup(normals[:, 0], part) * x
    depth += lookup(normals[:, 1], part) * y
    depth += lookup(normals[:, 2], part)
    np.reciprocal(np.clip(depth, 1e-4, 1.0, out=depth), out=depth)
    distance = depth * np.sqrt(1 + x * x + y * y)

    surfaces = [SKY, *(surface for thing in scene.things for _, surface in thing.parts)]
    rough = np.array([surface.rough for surface in surfaces], np.float32)
    incidence = np.minimum(1 / (lookup(length, part) * distance), 1)
    # cosine + rough * (1 - cosine)
    incidence = incidence * lookup(1 - rough, part) + lookup(rough, part)
    texture = texture_of(depth, x, y, texture_offset)
    texture *= lookup([surface.texture for surface in surfaces], part)
    np.clip(texture + 1, 0.1, 2.5, out=texture)
    bounds = zip(polygons.first, polygons.ends, strict=True)
    outlines = iter([polygons.pixels[start:end] for start, end in bounds])
    return Raster(
        size,
        factor,
        part,
        across=x,
        down=y,
        depth=depth,
        distance=distance,
        incidence=incidence,
        upward=np.abs(normals[:, 1]) / length,
        texture=texture,
        surfaces=surfaces,
        owner=np.concatenate([[-1], polygons.owner]),
        outlines=[[next(outlines) for _ in thing.parts] for thing in scene.things],
    )


def project(scene: Scene, focal: list[float], centre: list[float], as_rgb: bool) -> Polygons:
    """The corners of all parts in camera coordinates and in pixels."""
    corners = [corners for thing in scene.things for corners, _ in thing.parts]
    counts = np.array([len(each) for each in corners])
    owner = np.repeat(np.arange(len(scene.things)), [len(thing.parts) for thing in scene.things])
    points = np.concatenate(corners) * [1, -1, 1] + [0, scene.camera_height, 0]
    if as_rgb:
        points = seen_by_rgb(scene, points, np.repeat(owner, counts))
    pixels = points[:, :2] / points[:, 2:] * focal + centre
    return Polygons(points, pixels, np.cumsum(counts) - counts, counts, owner)


def seen_by_rgb(scene: Scene, points: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Move points [N, 3] so that the gated camera would see them as they are in the RGB image.

    The RGB camera is beside the gated one, and its image is taken later. Preparation then warps the
    image by the plane at 30 m. A point at another distance Z is off by
    focal * offset * (1 / Z - 1 / 30 m), and a moving one by the distance that it moved.
    `owner` is the index of each point's thing.
    """
    over_ground = np.array([thing.velocity for thing in scene.things]).reshape(-1, 2)
    velocity = over_ground - (0.0, scene.speed)
    moved = points.copy()
    moved[:, 0] += velocity[owner, 0] * RGB_DELAY
    later = points[:, 2] + velocity[owner, 1] * RGB_DELAY
    # The ground and the house fronts always begin just ahead of the camera.
    moved[:, 2] = np.maximum(later, np.minimum(points[:, 2], 2.0))
    shear = 1 - moved[:, 2] / PLANE
    moved[:, 0] -= RGB_OFFSET[0] * shear
    moved[:, 1] += RGB_OFFSET[1] * shear
    return moved


def paint(polygons: Polygons, size: tuple[int, int]) -> np.ndarray:
    """The part that each pixel sees, far parts painted first; 0 is the sky: intp [H, W]."""
    low = np.minimum.reduceat(polygons.pixels, polygons.first)
    high = np.maximum.reduceat(polygons.pixels, polygons.first)
    in_view = ((high >= 0) & (low <= size)).all(1)
    canvas = Image.new("I", size, 0)
    draw = ImageDraw.Draw(canvas)
    coordinates = polygons.pixels.ravel().tolist()
    first, ends = polygons.first, polygons.ends
    for index in np.flatnonzero(in_view).tolist():
        draw.polygon(coordinates[2 * first[index] : 2 * ends[index]], fill=index + 1)
    return np.asarray(canvas).astype(np.intp)


def plane_normals(polygons: Polygons) -> np.ndarray:
    """n of the plane n . P = 1 of the sky and each part: float32 [1 + parts, 3]."""
    first, counts = polygons.first, polygons.counts
    three = np.stack([first, first + counts // 3, first + 2 * counts // 3], 1)
    normals = np.linalg.solve(polygons.points[three], np.ones((len(counts), 3, 1)))[..., 0]
    return np.vstack([[0, 0, 1e-4], normals]).astype(np.float32)


def texture_of(depth: np.ndarray, x: np.ndarray, y: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """World texture at each pixel, mean 0 and deviation 1: [H, W].

    `x` and `y` are the rays' X / Z and -Y / Z. The texture repeats: `offset`, in cells, makes
    places differ.
    """
    scale = 1 / TEXTURE_CELL
    # Depth counts too, so that the texture of the road varies along it. Adding whole periods keeps
    # the indices positive.
    periods = TEXTURE_CELLS * 64
    row = (depth * (0.7 - y) * scale + periods).astype(np.int32)
    column = (depth * (0.3 + x) * scale + periods).astype(np.int32)
    row = (row + int(offset[0])) & (TEXTURE_CELLS - 1)
    column = (column + int(offset[1])) & (TEXTURE_CELLS - 1)
    return np.take(world_texture(), row * TEXTURE_CELLS + column)


@lru_cache(maxsize=1)
def world_texture() -> np.ndarray:
    """Periodic 1/f noise, mean 0 and deviation 1: float32 [TEXTURE_CELLS, TEXTURE_CELLS]."""
    rows = np.fft.fftfreq(TEXTURE_CELLS)
    frequency = np.hypot(rows[:, None], np.fft.rfftfreq(TEXTURE_CELLS)[None])
    frequency[0, 0] = np.inf
    white = np.random.default_rng(0).standard_normal((TEXTURE_CELLS, TEXTURE_CELLS))
    texture = np.fft.irfft2(np.fft.rfft2(white) / frequency)
    return (texture / texture.std()).astype(np.float32)


def lookup(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """`values[index]` as float32; for large maps of indices this is the fast way."""
    return np.take(np.ascontiguousarray(values, np.float32), index)


def lookup_in_surfaces(name: str, raster: Raster) -> np.ndarray:
    """A property of the surface that each pixel sees, float32 [H, W] of the raster."""
    return lookup([getattr(surface, name) for surface in raster.surfaces], raster.part)


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """The mean over blocks of `factor` x `factor` pixels of [H, W]."""
    if factor == 1:
        return image
    offsets = range(factor)
    total = sum(image[row::factor, column::factor] for row in offsets for column in offsets)
    return total / np.float32(factor**2)

"""What the two simulated cameras make of a scene: an RGB picture and three gated near-infrared slices.

`rasterise` finds what each pixel sees and where; `rgb_light` and `gated_camera` turn it into light and digital
numbers. Light is linear, 1 is the RGB sensor's full scale; DN is the gated sensor's 10-bit digital number. Constants
are those of the Seeing Through Fog sensor set; noise is per stored pixel at every size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from cmkd.simulator.scene import Array, Scene, Surface

LABEL_SIZE = (1280, 720)  # boxes are in the gated sensor's pixels whatever the size of the stored image
FOCAL, CENTRE = 2322.4, (667.8, 261.1)  # px in label space: the rectified gated camera
RGB_OFFSET = (-0.110, 0.027)  # m, right and up: where the RGB camera stands from the gated one
RGB_DELAY = 0.021  # s that the RGB picture is taken after the slices
PLANE = 30.0  # m: prepared RGB is warped so that this distance fits the gated view
LIGHT_SPEED = 0.299792458  # m / ns
GATES = ((260, 240, 220, 202), (400, 280, 420, 591), (750, 370, 420, 770))  # delay, laser, gate in ns; pulses
GATED_GAIN = 97.0  # DN m at albedo 1
EDGE_SOFTNESS = 2.0  # m, sigma: pulse and gate edges rise over about 5 m in range
FIRST_ECHO = 4.0  # m: nearer, softened edges would leak into the 1 / r^2 of a range that the gate keeps out
DARK_LEVEL, GATED_NOISE = (87.0, 70.0, 87.0), 2.5  # DN
NIR_STRAY, NIR_DAYLIGHT = 6.0, 520.0  # DN: stray light in the lens; daylight on albedo 1 for each unit of ambient
SKY = Surface((0, 0, 0), nir=0.24)  # lit by the day, too far for the laser
BACKSCATTER = 0.046  # times 1 / visibility: volume backscatter coefficient of fog, 1 / (m sr)
NIGHT_TONE = ((0, 0.0025, 0.005, 0.01, 0.1, 0.2, 0.3, 1), (0, 0.1, 0.25, 0.4, 0.8, 0.9, 0.98, 1))
DAY_TONE = ((0, 0.005, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 1),
            (0, 0.05, 0.2, 0.35, 0.4, 0.5, 0.7, 0.8, 0.9, 0.98, 1))
BEAM_COLOUR, AMBIENT_COLOUR, DAY_COLOUR = (1.05, 1.0, 0.85), (1.1, 1.0, 0.75), (0.97, 1.0, 1.04)
TEXTURE_CELL, TEXTURE_CELLS = 0.02, 1024  # m per cell; cells in one period
RANGE_STEP, RANGES = 0.25, 1040  # m, count: tables by range


@dataclass
class Raster:
    """What each (supersampled) pixel sees; maps are (H, W) float32 unless said otherwise."""

    size: tuple[int, int]  # output width, height
    factor: int  # supersampling
    part: Array  # intp index into `surfaces`; 0 is the sky
    across: Array  # X / Z of the pixel's ray, (1, W)
    down: Array  # -(Y - camera height) / Z, (H, 1)
    depth: Array  # Z, m
    distance: Array  # range along the ray, m
    incidence: Array  # 0..1, cosine softened by the surface's roughness
    upward: Array  # (parts,) 0..1, how much a part faces the sky
    texture: Array  # albedo factor around 1
    surfaces: list[Surface]
    owner: Array  # (parts,) index of the thing, -1 for the sky
    outlines: list[list[Array]]  # per thing, per part: projected (N, 2) points


@lru_cache(maxsize=1)
def world_texture() -> Array:
    """Periodic 1/f noise of mean 0 and deviation 1: (TEXTURE_CELLS, TEXTURE_CELLS) float32."""
    frequency = np.hypot(np.fft.fftfreq(TEXTURE_CELLS)[:, None], np.fft.rfftfreq(TEXTURE_CELLS)[None])
    frequency[0, 0] = np.inf
    noise = np.fft.rfft2(np.random.default_rng(0).standard_normal((TEXTURE_CELLS, TEXTURE_CELLS)))
    texture = np.fft.irfft2(noise / frequency)
    return (texture / texture.std()).astype(np.float32)


def seen_by_rgb(scene: Scene, points: Array, owner: Array) -> Array:
    """Camera coordinates (N, 3) of the gated camera -> those that put a point where the RGB picture has it.

    The RGB camera stands beside the gated one and its picture is taken later; the preparation then warps it by the
    plane at 30 m. What stands elsewhere is off by f * offset * (1 / Z - 1 / 30 m), and what moves by its way.
    """
    velocity = np.array([thing.velocity for thing in scene.things]).reshape(-1, 2) - (0.0, scene.speed)
    moved = points.copy()
    moved[:, 0] += velocity[owner, 0] * RGB_DELAY
    # The ground and house fronts begin just ahead of the camera at all times.
    moved[:, 2] = np.maximum(points[:, 2] + velocity[owner, 1] * RGB_DELAY, np.minimum(points[:, 2], 2.0))
    shear = 1 - moved[:, 2] / PLANE
    moved[:, 0] -= RGB_OFFSET[0] * shear
    moved[:, 1] += RGB_OFFSET[1] * shear
    return moved


def rasterise(scene: Scene, size: tuple[int, int], texture_offset: Array, as_rgb: bool = False) -> Raster:
    """Paint the parts far to near and locate every pixel in space, as the gated camera or (`as_rgb`) the RGB one.

    A part lies in the plane n . P = 1, so 1 / Z = n . (x, y, 1) at the normalised pixel (x, y); the cosine of
    incidence is 1 / (|n| |P|). Small images are drawn larger: limbs thinner than a pixel keep their share.
    """
    factor = 2 if size[1] < 384 else 1
    width, height = size[0] * factor, size[1] * factor
    focal = (FOCAL * width / LABEL_SIZE[0], FOCAL * height / LABEL_SIZE[1])
    centre = (CENTRE[0] * width / LABEL_SIZE[0], CENTRE[1] * height / LABEL_SIZE[1])
    parts = [part for thing in scene.things for part in thing.parts]
    owner = np.repeat(np.arange(len(scene.things)), [len(thing.parts) for thing in scene.things])
    counts = np.array([len(corners) for corners, _ in parts])
    points = np.concatenate([corners for corners, _ in parts]) * [1, -1, 1] + [0, scene.camera_height, 0]
    if as_rgb:
        points = seen_by_rgb(scene, points, np.repeat(owner, counts))
    pixels = points[:, :2] / points[:, 2:] * focal + centre
    ends = np.cumsum(counts)
    first = ends - counts
    low, high = np.minimum.reduceat(pixels, first), np.maximum.reduceat(pixels, first)
    in_view = ((high >= 0) & (low <= (width, height))).all(1)
    canvas = Image.new("I", (width, height), 0)
    draw, flat = ImageDraw.Draw(canvas), pixels.ravel().tolist()
    for index in np.flatnonzero(in_view).tolist():
        draw.polygon(flat[2 * first[index]:2 * ends[index]], fill=index + 1)
    part = np.asarray(canvas).astype(np.intp)

    corners = points[np.stack([first, first + counts // 3, first + 2 * counts // 3], 1)]
    normals = np.linalg.solve(corners, np.ones((len(parts), 3, 1)))[..., 0]
    normals = np.vstack([[0, 0, 1e-4], normals]).astype(np.float32)
    length = np.linalg.norm(normals, axis=1)
    x = ((np.arange(width, dtype=np.float32) + 0.5 - centre[0]) / focal[0])[None].astype(np.float32)
    y = ((np.arange(height, dtype=np.float32) + 0.5 - centre[1]) / focal[1])[:, None].astype(np.float32)
    depth = lookup(normals[:, 0], part) * x
    depth += lookup(normals[:, 1], part) * y
    depth += lookup(normals[:, 2], part)
    np.reciprocal(np.clip(depth, 1e-4, 1.0, out=depth), out=depth)
    distance = depth * np.sqrt(1 + x * x + y * y)
    surfaces = [SKY, *(surface for _, surface in parts)]
    rough = np.array([surface.rough for surface in surfaces], np.float32)
    # cosine + rough * (1 - cosine)
    incidence = np.minimum(1 / (lookup(length, part) * distance), 1)
    incidence = incidence * lookup(1 - rough, part) + lookup(rough, part)

    scale = np.float32(1 / TEXTURE_CELL)
    row = (depth * (np.float32(0.7) - y) * scale + np.float32(TEXTURE_CELLS * 64)).astype(np.int32)
    column = (depth * (np.float32(0.3) + x) * scale + np.float32(TEXTURE_CELLS * 64)).astype(np.int32)
    row = (row + int(texture_offset[0])) & (TEXTURE_CELLS - 1)
    column = (column + int(texture_offset[1])) & (TEXTURE_CELLS - 1)
    texture = np.take(world_texture(), row * TEXTURE_CELLS + column)
    texture *= lookup(np.array([surface.texture for surface in surfaces], np.float32), part)
    np.clip(texture + 1, 0.1, 2.5, out=texture)
    bounds = np.searchsorted(owner, np.arange(len(scene.things) + 1))
    return Raster(size, factor, part, x, y, depth, distance, incidence, np.abs(normals[:, 1]) / length, texture,
                  surfaces, np.concatenate([[-1], owner]),
                  [[pixels[first[part]:ends[part]] for part in range(start, end)]
                   for start, end in zip(bounds[:-1], bounds[1:], strict=True)])


def lookup(table: Array, index: Array) -> Array:
    """`table[index]` as float32 for a map of indices, the fast way."""
    return np.take(np.ascontiguousarray(table, np.float32), index)


@lru_cache(maxsize=1)
def normal_numbers() -> Array:
    """A long row of standard normal float32 numbers."""
    return np.random.default_rng(0).standard_normal(2**23, np.float32)


def noise(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Standard normal noise: a cut of `normal_numbers` at a random place, as drawing anew takes a fifth of a frame."""
    count = int(np.prod(shape))
    if count > len(normal_numbers()) // 2:
        return rng.standard_normal(shape, np.float32)
    start = int(rng.integers(len(normal_numbers()) - count))
    return normal_numbers()[start:start + count].reshape(shape)


def shrink(image: Array, factor: int) -> Array:
    """Mean over factor x factor pixels of (H, W)."""
    if factor == 1:
        return image
    offsets = range(factor)
    return sum(image[row::factor, column::factor] for row in offsets for column in offsets) / np.float32(factor**2)


def resized(image: Array, size: tuple[int, int]) -> Array:
    """A smooth (H, W) float32 map at another (width, height)."""
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def glare(glow: Array, width: int, weights: tuple[tuple[float, float], ...]) -> Array:
    """Light of lamps (H, W) spread in the lens and the fog: the sum of wide Gaussian blurs, each (sigma as a share of
    the picture's width, weight). They are summed on reduced images, as the kernels are far wider than a pixel."""
    if not glow.any():
        return np.zeros_like(glow)
    height = glow.shape[0]
    spread = None
    for sigma, weight in sorted(weights, reverse=True):
        step = max(1, round(sigma * width / 1.5))
        small = (-(-width // step), -(-height // step))
        reduced = np.asarray(Image.fromarray(glow).resize(small, Image.Resampling.BOX))
        kernel = np.exp(-0.5 * (np.arange(-6, 7) * step / (sigma * width)) ** 2).astype(np.float32)
        for _ in range(2):  # along the columns, then, turned, along the rows
            padded = np.pad(reduced, ((6, 6), (0, 0)))
            reduced = sum(share * padded[k:k + len(reduced)] for k, share in enumerate(kernel / kernel.sum())).T
        reduced = np.float32(weight) * reduced
        spread = reduced if spread is None else reduced + resized(np.ascontiguousarray(spread), small)
    return resized(np.ascontiguousarray(spread), (width, height))


# --------------------------------------------------------------------------------------------- RGB


def headlight_beam(scene: Scene, across: Array, slope: Array) -> Array:
    """Intensity of the own low beam towards X / Z = `across` and (Y - 0.65 m) / Z = `slope`: a sharp upper edge that
    rises to the right, bright just below it; linear light m^2."""
    edge = np.float32(scene.beam_cut) + np.clip(np.float32(0.26) * across, 0, np.float32(0.03))
    below = edge - slope
    lit = np.exp(np.maximum(below, 0) * np.float32(-1 / 0.04))
    lit += np.float32(0.15)
    lit /= 1 + np.exp(np.clip(below * np.float32(-1 / 0.006), -30, 30))
    lit *= np.exp(-(((across - np.float32(0.02)) / np.float32(0.2)) ** 2))
    return np.float32(scene.headlight) * (lit + np.float32(0.015))


def headlight_veil(scene: Scene, raster: Raster) -> Array:
    """Light that fog throws back from the own headlights, (h, w) of the stored image.

    The integral of pi * beta * beam / r^2 * exp(-2 alpha r) up to what the pixel sees. It is smooth, so it is summed on
    a coarse grid.
    """
    height, width = raster.part.shape
    step = max(1, height // 48)
    distance = raster.distance[step // 2::step, step // 2::step]
    across = raster.across[:, step // 2::step]
    down = raster.down[step // 2::step]
    edges = np.geomspace(1.5, 90, 25, dtype=np.float32)
    veil = np.zeros(distance.shape, np.float32)
    for near, far in zip(edges[:-1], edges[1:], strict=True):
        r = np.sqrt(near * far)
        beam = headlight_beam(scene, across, (np.float32(scene.camera_height - 0.65)) / r - down)
        share = np.clip((distance - near) / (far - near), 0, 1)
        veil += beam * share * np.float32((far - near) / r**2 * np.exp(-2 * scene.extinction * r))
    veil *= np.float32(np.pi * BACKSCATTER * scene.extinction / np.log(20))
    return resized(veil, raster.size)


def rgb_light(scene: Scene, raster: Raster) -> tuple[Array, Array]:
    """(reflected, emitted) light that reaches the RGB sensor, each (3, H, W) of the stored size, linear.

    reflected = albedo * (ambient + own headlights + street lamps) and what the air throws back of them: it scales with
    how much light there is. emitted = lamps and windows, their glare, and the lens's veil. exp(-alpha r) dims both.
    """
    table = np.array([(*s.rgb, s.retro, *s.glow) for s in raster.surfaces], np.float32).T
    part, factor = raster.part, raster.factor
    day = scene.condition.day
    hazy = scene.extinction > 1e-3
    dimming = np.exp(raster.distance * np.float32(-scene.extinction))
    beam = headlight_beam(scene, raster.across, np.float32(scene.camera_height - 0.65) / raster.depth - raster.down)
    beam /= np.maximum(raster.distance, 3) ** 2
    beam *= raster.incidence + np.float32(0.5) * lookup(table[3], part)
    if hazy:
        beam *= dimming
    sky_light = lookup(scene.ambient * (0.65 + 0.35 * raster.upward), part)
    lamps = [(np.float32(power) * lamp_irradiance(raster, scene.camera_height, position), colour)
             for position, power, colour in scene.lamps]
    matter = raster.texture * dimming
    horizon = np.clip(-raster.down, 0, 1)  # 0 at the horizon and below, growing upwards
    sky = (part == 0) * np.float32(scene.ambient) * (
        np.float32(0.75) - horizon if day else np.float32(0.12) * np.exp(-10 * horizon))
    glows = table[4:].any()
    width, height = raster.size
    reflected, emitted = (np.empty((3, height, width), np.float32) for _ in range(2))
    ambient_colour = DAY_COLOUR if day else AMBIENT_COLOUR
    halos = ((0.006, 0.03), (0.05, 0.015 + 0.12 * (1 - np.exp(-15 * scene.extinction))))
    if hazy:
        veil = headlight_veil(scene, raster)
        airlight = shrink(1 - dimming, factor) * np.float32(0.3 * scene.ambient)
    for channel in range(3):
        light = beam * np.float32(BEAM_COLOUR[channel]) + sky_light * np.float32(ambient_colour[channel])
        for strength, colour in lamps:
            light += strength * np.float32(colour[channel])
        light *= lookup(table[channel], part)
        light *= matter
        light += sky
        reflected[channel] = shrink(light, factor)
        if hazy:
            reflected[channel] += airlight * np.float32(ambient_colour[channel])
            reflected[channel] += veil * np.float32(BEAM_COLOUR[channel])
        emitted[channel] = np.float32(scene.veil * (1.1, 1.0, 0.8)[channel])
        if not glows:
            continue
        glow = np.ascontiguousarray(shrink(lookup(table[4 + channel], part) * dimming, factor))
        emitted[channel] += glow
        emitted[channel] += glare(glow, width, halos)
    return shaken(reflected, scene, width), shaken(emitted, scene, width)


def lamp_irradiance(raster: Raster, camera_height: float, position: Array) -> Array:
    """Irradiance of a street lamp of power 1 at `position` (X, Y, Z); summed at half size, as it is smooth."""
    depth = raster.depth[::2, ::2]
    up = np.float32(camera_height) - raster.down[::2] * depth
    square = (raster.across[:, ::2] * depth - np.float32(position[0])) ** 2
    square += (up - np.float32(position[1])) ** 2
    square += (depth - np.float32(position[2])) ** 2
    light = np.clip((np.float32(position[1]) - up) / np.float32(position[1]), 0, 1) / (square + 1)
    return np.repeat(np.repeat(light, 2, 0), 2, 1)[:raster.depth.shape[0], :raster.depth.shape[1]]


def shaken(image: Array, scene: Scene, width: int) -> Array:
    """Motion blur: the mean of the picture over the pixels that the view turns sideways in one exposure."""
    pixels = round(scene.shake * FOCAL * width / LABEL_SIZE[0])
    if pixels < 1:
        return image
    blurred = image.copy()
    for shift in range(1, pixels + 1):
        blurred[..., shift:] += image[..., :-shift]
        blurred[..., :shift] += image[..., :1]
    return blurred / np.float32(pixels + 1)


def rgb_camera(scene: Scene, light: Array, rng: np.random.Generator) -> Array:
    """Linear light (3, H, W) -> uint8 (H, W, 3): Poisson-Gaussian noise, then the tone curve of the day or the night.

    The noise's variance is s L + r with ln r = 2.18 ln s + 1.20 + N(0, 0.26). s lies below the range usual for
    hand-held cameras: the official night frame's noise of 1-3 grey levels asks for it.
    """
    gain = scene.shot_gain
    read = np.exp(2.18 * np.log(gain) + 1.20 + rng.normal(0, 0.26))
    noisy = np.sqrt(np.float32(gain) * light + np.float32(read))
    noisy *= noise(light.shape, rng)
    noisy += light
    levels = tone(noisy, DAY_TONE if scene.condition.day else NIGHT_TONE)
    return np.ascontiguousarray(np.moveaxis(levels, 0, -1))


def tone(light: Array, curve: tuple[tuple[float, ...], tuple[float, ...]]) -> Array:
    """Light 0..1 -> uint8 through a piecewise linear curve, by a table with finer steps where the curve is steep."""
    index = np.sqrt(np.clip(light, 0, 1, out=light), out=light)
    index *= 4095
    return np.take(tone_table(curve), index.astype(np.int32))


@lru_cache(maxsize=2)
def tone_table(curve: tuple[tuple[float, ...], tuple[float, ...]]) -> Array:
    """The curve at the 4096 squares of 0..1."""
    light = ((np.arange(4096) + 0.5) / 4095.5) ** 2
    return np.clip(np.interp(light, *curve) * 255 + 0.5, 0, 255).astype(np.uint8)


# --------------------------------------------------------------------------------------------- gated


@lru_cache(maxsize=1)
def range_profiles() -> tuple[Array, Array]:
    """Ranges (R,) in metres and S_i(r) = K N_i w_i(r) / r^2 in DN at albedo 1, (3, R).

    w_i is the overlap, in metres, of the echo [2r/c, 2r/c + laser] with the gate [delay, delay + gate],
    smoothed because neither has ideal edges; 0 below FIRST_ECHO.
    """
    ranges = RANGE_STEP * np.arange(1, RANGES)
    echo = 2 * ranges / LIGHT_SPEED
    reach = np.arange(-6 * EDGE_SOFTNESS, 6 * EDGE_SOFTNESS + RANGE_STEP, RANGE_STEP)
    kernel = np.exp(-0.5 * (reach / EDGE_SOFTNESS) ** 2)
    profiles = []
    for delay, laser, gate, pulses in GATES:
        overlap = np.minimum(echo + laser, delay + gate) - np.maximum(echo, delay)
        metres = np.convolve(np.clip(overlap, 0, None) * LIGHT_SPEED / 2, kernel / kernel.sum(), "same")
        profiles.append(GATED_GAIN * pulses * metres * (ranges >= FIRST_ECHO) / ranges**2)
    return ranges, np.array(profiles)


def backscatter(extinction: float) -> Array:
    """DN that fog of an extinction in 1 / m throws into each slice up to each range, (3, R):
    the integral of pi * beta * S_i(r) * exp(-2 alpha r) dr with beta = 0.046 / visibility."""
    ranges, profiles = range_profiles()
    beta = BACKSCATTER * extinction / np.log(20)
    return np.cumsum(np.pi * beta * profiles * np.exp(-2 * extinction * ranges), axis=1) * RANGE_STEP


def gated_camera(scene: Scene, raster: Raster, rng: np.random.Generator) -> list[Array]:
    """Three slices (H, W) uint8, 10 bit >> 2:

    I_i = dark_i + stray + daylight + albedo * S_i(r) * exp(-2 alpha r) + backscatter_i(r) + noise, saturated.
    """
    table = np.array([(s.nir, s.retro, s.nir_glow) for s in raster.surfaces], np.float32).T
    part, factor = raster.part, raster.factor
    ranges, profiles = range_profiles()
    returns = profiles * np.exp(-2 * scene.extinction * ranges)
    thrown_back = backscatter(scene.extinction)
    flood = np.exp(-((raster.across / np.float32(0.4)) ** 2)) * np.exp(-((raster.down / np.float32(0.25)) ** 2))
    albedo = lookup(table[0], part) * raster.texture
    reflected = albedo * raster.incidence
    reflected += lookup(table[1], part)
    reflected *= flood
    index = np.clip(raster.distance * np.float32(1 / RANGE_STEP) - np.float32(0.5), 0, len(ranges) - 1).astype(np.int32)
    steady = shrink(albedo * np.float32(NIR_DAYLIGHT * scene.ambient) + lookup(table[2], part), factor)
    hazy = scene.extinction > 1e-3
    slices = []
    for number, dark in enumerate(DARK_LEVEL):
        signal = reflected * lookup(returns[number], index)
        if hazy:
            signal += flood * lookup(thrown_back[number], index)
        signal = shrink(signal, factor)
        digital = noise(signal.shape, rng) * np.float32(GATED_NOISE)
        digital += signal
        digital += steady
        digital += np.float32(dark + NIR_STRAY)
        digital = np.clip(digital, 0, 1023, out=digital).astype(np.uint16)
        slices.append((digital >> 2).astype(np.uint8))
    return slices

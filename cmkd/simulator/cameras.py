"""The images of a scene: RGB, and three gated near-infrared slices.

Light is linear: 1 is the full scale of the RGB sensor. DN is the digital number of the gated
sensor, 10 bits. The constants are those of the sensors of Seeing Through Fog. Noise is per stored
pixel, whatever the size of the image.
"""

from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.random import Generator
from PIL import Image

from cmkd.frames.annotations import LABEL_WIDTH
from cmkd.frames.tone import DAY_CURVE, NIGHT_CURVE, tone
from cmkd.simulator.raster import FOCAL, Raster, lookup, lookup_in_surfaces, shrink
from cmkd.simulator.scene import Scene

LIGHT_SPEED = 0.299792458  # m/ns
# For each slice: delay, laser pulse and gate in ns; number of pulses.
GATES = ((260, 240, 220, 202), (400, 280, 420, 591), (750, 370, 420, 770))
GATED_GAIN = 97.0  # DN m at albedo 1
EDGE_SOFTNESS = 2.0  # m, sigma: the edges of pulse and gate rise over about 5 m
# m: closer echoes are cut, because the softened gate would leak into 1 / r^2.
FIRST_ECHO = 4.0
DARK_LEVEL, GATED_NOISE = (87.0, 70.0, 87.0), 2.5  # DN
NIR_STRAY = 6.0  # DN: stray light in the lens
NIR_DAYLIGHT = 520.0  # DN at albedo 1 for each unit of ambient light
RANGE_STEP, RANGES = 0.25, 1040  # of tables by range: m, count
BACKSCATTER = 0.046  # fog's volume backscatter coefficient times the visibility, 1/sr
HAZY = 1e-3  # 1/m: with less extinction the light that the air throws back is left out
BEAM_COLOUR, AMBIENT_COLOUR, DAY_COLOUR = (1.05, 1.0, 0.85), (1.1, 1.0, 0.75), (0.97, 1.0, 1.04)
VEIL_COLOUR = (1.1, 1.0, 0.8)
HEADLIGHT_HEIGHT = 0.65  # m above the road


@lru_cache(maxsize=1)
def normal_numbers() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(2**23, np.float32)


def noise(shape: tuple[int, ...], rng: Generator) -> np.ndarray:
    """Standard normal noise, float32, cut from a long row of numbers at a random start.

    New numbers would take a fifth of the time of a frame.
    """
    count = int(np.prod(shape))
    if count > len(normal_numbers()) // 2:
        return rng.standard_normal(shape, np.float32)
    start = int(rng.integers(len(normal_numbers()) - count))
    return normal_numbers()[start : start + count].reshape(shape)


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A smooth [H, W] float32 map at another (width, height)."""
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


# ----------------------------------------------------------------------------------------- RGB


def rgb_light(scene: Scene, raster: Raster) -> tuple[np.ndarray, np.ndarray]:
    """(reflected, emitted) light that reaches the RGB sensor, linear, each [3, H, W].

    H and W are those of the stored image. Reflected light is albedo * (ambient light + own
    headlights + street lamps), and what the air throws back of them; it can be scaled to make a
    place brighter. Emitted light is lamps, windows, their glare, and the veil of the lens. The air
    dims both by exp(-extinction * distance).
    """
    dimming = np.exp(raster.distance * np.float32(-scene.extinction))
    reflected = reflected_light(scene, raster, dimming)
    emitted = emitted_light(scene, raster, dimming)
    return shaken(reflected, scene), shaken(emitted, scene)


def reflected_light(scene: Scene, raster: Raster, dimming: np.ndarray) -> np.ndarray:
    """Light that surfaces and the air reflect, linear [3, H, W] of the stored image."""
    part, factor = raster.part, raster.factor
    albedos = np.array([surface.rgb for surface in raster.surfaces]).T
    ambient_colour = DAY_COLOUR if scene.condition.day else AMBIENT_COLOUR
    hazy = scene.extinction > HAZY
    beam = headlights(scene, raster)
    if hazy:
        beam *= dimming
        veil = headlight_veil(scene, raster)
        airlight = shrink(1 - dimming, factor) * (0.3 * scene.ambient)
    from_sky = lookup(scene.ambient * (0.65 + 0.35 * raster.upward), part)
    lamps = [
        (power * lamp_irradiance(raster, scene.camera_height, position), colour)
        for position, power, colour in scene.lamps
    ]
    matter = raster.texture * dimming
    sky = sky_light(scene, raster)
    width, height = raster.size
    reflected = np.empty((3, height, width), np.float32)
    for channel in range(3):
        light = beam * BEAM_COLOUR[channel] + from_sky * ambient_colour[channel]
        for strength, colour in lamps:
            light += strength * colour[channel]
        light *= lookup(albedos[channel], part)
        light *= matter
        light += sky
        reflected[channel] = shrink(light, factor)
        if hazy:
            reflected[channel] += airlight * ambient_colour[channel]
            reflected[channel] += veil * BEAM_COLOUR[channel]
    return reflected


def emitted_light(scene: Scene, raster: Raster, dimming: np.ndarray) -> np.ndarray:
    """Light of lamps and windows, their glare, and the veil: linear [3, H, W] of stored pixels."""
    width, height = raster.size
    glows = np.array([surface.glow for surface in raster.surfaces]).T
    # The wide halo grows with the fog.
    halos = ((0.006, 0.03), (0.05, 0.015 + 0.12 * (1 - np.exp(-15 * scene.extinction))))
    emitted = np.empty((3, height, width), np.float32)
    for channel in range(3):
        emitted[channel] = scene.veil * VEIL_COLOUR[channel]
        if glows.any():
            glow = shrink(lookup(glows[channel], raster.part) * dimming, raster.factor)
            emitted[channel] += glow
            emitted[channel] += glare(glow, width, halos)
    return emitted


def headlights(scene: Scene, raster: Raster) -> np.ndarray:
    """Light of the own headlights that a white surface sends back, [H, W] of the raster."""
    slope = (scene.camera_height - HEADLIGHT_HEIGHT) / raster.depth - raster.down
    beam = headlight_beam(scene, raster.across, slope)
    beam /= np.maximum(raster.distance, 3) ** 2
    beam *= raster.incidence + 0.5 * lookup_in_surfaces("retro", raster)
    return beam


def headlight_beam(scene: Scene, across: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Intensity of the own low beam: linear light times m^2.

    `across` is X / Z, `slope` is the height above the headlights / Z. The beam is bright just below
    a sharp upper edge, which rises to the right.
    """
    edge = scene.beam_cut + np.clip(0.26 * across, 0, 0.03)
    below = edge - slope
    lit = np.exp(np.maximum(below, 0) * (-1 / 0.04))
    lit += 0.15
    lit /= 1 + np.exp(np.clip(below * (-1 / 0.006), -30, 30))
    lit *= np.exp(-(((across - 0.02) / 0.2) ** 2))
    return scene.headlight * (lit + 0.015)


def headlight_veil(scene: Scene, raster: Raster) -> np.ndarray:
    """Light of the own headlights that fog throws back, [H, W] of the stored image.

    The integral of pi * beta * beam / r^2 * exp(-2 * extinction * r) up to what the pixel sees,
    with beta = BACKSCATTER / visibility. It is smooth, so a coarse grid is enough.
    """
    height, _ = raster.part.shape
    step = max(1, height // 48)
    distance = raster.distance[step // 2 :: step, step // 2 :: step]
    across = raster.across[:, step // 2 :: step]
    down = raster.down[step // 2 :: step]
    edges = np.geomspace(1.5, 90, 25, dtype=np.float32)
    veil = np.zeros(distance.shape, np.float32)
    for near, far in pairwise(edges):
        r = np.sqrt(near * far)
        slope = np.float32(scene.camera_height - HEADLIGHT_HEIGHT) / r - down
        beam = headlight_beam(scene, across, slope)
        share = np.clip((distance - near) / (far - near), 0, 1)
        veil += beam * share * np.float32((far - near) / r**2 * np.exp(-2 * scene.extinction * r))
    veil *= np.float32(np.pi * BACKSCATTER * scene.extinction / np.log(20))
    return resized(veil, raster.size)


def sky_light(scene: Scene, raster: Raster) -> np.ndarray:
    """Light of the sky itself, [H, W] of the raster; by night a glow at the horizon."""
    above = np.clip(-raster.down, 0, 1)  # 0 at the horizon and below
    gradient = 0.75 - above if scene.condition.day else 0.12 * np.exp(-10 * above)
    return (raster.part == 0) * np.float32(scene.ambient) * gradient


def lamp_irradiance(raster: Raster, camera_height: float, position: np.ndarray) -> np.ndarray:
    """Irradiance of a street lamp of power 1 at `position` (X, Y, Z), [H, W] of the raster.

    It is smooth, so half the resolution is enough.
    """
    x, y, z = position.tolist()
    depth = raster.depth[::2, ::2]
    up = camera_height - raster.down[::2] * depth
    square = (raster.across[:, ::2] * depth - x) ** 2 + (up - y) ** 2 + (depth - z) ** 2
    light = np.clip((y - up) / y, 0, 1) / (square + 1)
    height, width = raster.depth.shape
    return np.repeat(np.repeat(light, 2, 0), 2, 1)[:height, :width]


def glare(glow: np.ndarray, width: int, halos: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Light of lamps [H, W] spread by the lens and the fog: a sum of wide Gaussian blurs.

    A halo is (sigma as a share of the image's `width`, weight). The blurs are far wider than a
    pixel, so they are computed on reduced images.
    """
    height = glow.shape[0]
    spread = None
    for sigma, weight in sorted(halos, reverse=True):
        step = max(1, round(sigma * width / 1.5))
        small = (-(-width // step), -(-height // step))
        reduced = np.asarray(Image.fromarray(glow).resize(small, Image.Resampling.BOX))
        kernel = np.exp(-0.5 * (np.arange(-6, 7) * step / (sigma * width)) ** 2).astype(np.float32)
        reduced = np.float32(weight) * blurred(reduced, kernel / kernel.sum())
        if spread is not None:
            reduced += resized(spread, small)
        spread = reduced
    return resized(spread, (width, height))


def blurred(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """An image [H, W] convolved with a kernel [13] along its columns and its rows."""
    for _ in range(2):  # along the columns; then, transposed, along the rows
        padded = np.pad(image, ((6, 6), (0, 0)))
        shifted = [share * padded[k : k + len(image)] for k, share in enumerate(kernel)]
        image = sum(shifted).T
    return image


def shaken(image: np.ndarray, scene: Scene) -> np.ndarray:
    """Motion blur: the mean over the pixels that the view turns sideways in one exposure."""
    pixels = round(scene.shake * FOCAL * image.shape[-1] / LABEL_WIDTH)
    if pixels < 1:
        return image
    total = image.copy()
    for shift in range(1, pixels + 1):
        total[..., shift:] += image[..., :-shift]
        total[..., :shift] += image[..., :1]
    return total / np.float32(pixels + 1)


def rgb_camera(scene: Scene, light: np.ndarray, rng: Generator) -> np.ndarray:
    """Linear light [3, H, W] -> the RGB image, uint8 [H, W, 3], with noise and tone curve.

    The variance of the noise is s * light + r, with ln r = 2.18 ln s + 1.20 + N(0, 0.26). s is
    smaller than usual for hand-held cameras: the official night frame has a noise of only 1-3 grey
    levels.
    """
    gain = scene.shot_gain
    read = np.exp(2.18 * np.log(gain) + 1.20 + rng.normal(0, 0.26))
    noisy = np.sqrt(gain * light + np.float32(read))
    noisy *= noise(light.shape, rng)
    noisy += light
    levels = tone(noisy, DAY_CURVE if scene.condition.day else NIGHT_CURVE)
    return np.ascontiguousarray(np.moveaxis(levels, 0, -1))


# --------------------------------------------------------------------------------------- gated


@lru_cache(maxsize=1)
def range_profiles() -> tuple[np.ndarray, np.ndarray]:
    """Ranges in metres [R], and the signal S of each slice at each range in DN at albedo 1 [3, R].

    S = gain * pulses * overlap / r^2. The overlap, in metres, is that of the echo
    [2r/c, 2r/c + laser] with the gate [delay, delay + gate], smoothed because neither has ideal
    edges. S is 0 below FIRST_ECHO.
    """
    ranges = RANGE_STEP * np.arange(1, RANGES)
    echo = 2 * ranges / LIGHT_SPEED
    reach = np.arange(-6 * EDGE_SOFTNESS, 6 * EDGE_SOFTNESS + RANGE_STEP, RANGE_STEP)
    kernel = np.exp(-0.5 * (reach / EDGE_SOFTNESS) ** 2)
    profiles = []
    for delay, laser, gate, pulses in GATES:
        overlap = np.minimum(echo + laser, delay + gate) - np.maximum(echo, delay)
        metres = np.clip(overlap, 0, None) * LIGHT_SPEED / 2
        metres = np.convolve(metres, kernel / kernel.sum(), "same")
        profiles.append(GATED_GAIN * pulses * metres * (ranges >= FIRST_ECHO) / ranges**2)
    return ranges, np.array(profiles)


def backscatter(extinction: float) -> np.ndarray:
    """Fog's backscatter in DN, for each slice, summed up to each range: [3, R].

    The integral of pi * beta * S(r) * exp(-2 * extinction * r), with `extinction` in 1/m and
    beta = BACKSCATTER / visibility.
    """
    ranges, profiles = range_profiles()
    beta = BACKSCATTER * extinction / np.log(20)
    density = np.pi * beta * profiles * np.exp(-2 * extinction * ranges)
    return np.cumsum(density, axis=1) * RANGE_STEP


def gated_camera(scene: Scene, raster: Raster, rng: Generator) -> list[np.ndarray]:
    """The three slices, uint8 [H, W] each: 10 bits without the last two.

    dark level + stray light + daylight + albedo * S(r) * exp(-2 * extinction * r) + backscatter(r)
    + noise, clipped at 1023.
    """
    ranges, profiles = range_profiles()
    returns = profiles * np.exp(-2 * scene.extinction * ranges)
    thrown_back = backscatter(scene.extinction)
    flood = laser_field(raster)
    albedo = lookup_in_surfaces("nir", raster) * raster.texture
    reflected = albedo * raster.incidence
    reflected += lookup_in_surfaces("retro", raster)
    reflected *= flood
    index = raster.distance * (1 / RANGE_STEP) - 0.5
    index = np.clip(index, 0, len(ranges) - 1).astype(np.int32)
    daylight = albedo * (NIR_DAYLIGHT * scene.ambient)
    steady = shrink(daylight + lookup_in_surfaces("nir_glow", raster), raster.factor)
    slices = []
    for number, dark in enumerate(DARK_LEVEL):
        signal = reflected * lookup(returns[number], index)
        if scene.extinction > HAZY:
            signal += flood * lookup(thrown_back[number], index)
        signal = shrink(signal, raster.factor)
        digital = noise(signal.shape, rng) * GATED_NOISE + signal + steady
        digital += dark + NIR_STRAY
        digital = np.clip(digital, 0, 1023, out=digital).astype(np.uint16)
        slices.append((digital >> 2).astype(np.uint8))
    return slices


def laser_field(raster: Raster) -> np.ndarray:
    """How strongly the laser lights each pixel's direction, 1 in the middle: [H, W]."""
    return np.exp(-((raster.across / 0.4) ** 2)) * np.exp(-((raster.down / 0.25) ** 2))

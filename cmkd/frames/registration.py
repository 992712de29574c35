"""The two cameras of the Seeing Through Fog car, and the warp of RGB into the gated camera's view.

Everything follows from calibration: the user's files, or the published values below. Pixel
coordinates (x, y) start at 0 in the centre of the first pixel; gated pixels are those of the
rectified 1280x720 slices, which are label space.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, interpolate

from cmkd.frames.annotations import LABEL_HEIGHT, LABEL_WIDTH
from cmkd.runtime.files import UserError

RGB_FILE, GATED_FILE = "calib_cam_stereo_left.json", "calib_gated_bwv.json"
TRANSFORMS_FILE = "calib_tf_tree_full.json"
RGB_FRAME, GATED_FRAME = "cam_stereo_left_optical", "bwv_cam_optical"  # coordinate frames
BUILT_IN = "built in"
PREPARED_SIZE = (1280, 768)  # width, height
ADVICE = "restore it, or remove the three calib files to use the published calibration"

Pose = tuple[np.ndarray, np.ndarray]  # rotation (3, 3) and translation in m: camera -> car


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with ROS's calibration parameters."""

    raw: np.ndarray  # camera matrix (3, 3) of the raw image, in pixels
    k1: float  # radial distortion
    rotation: np.ndarray  # (3, 3), rectifies
    rectified: np.ndarray  # camera matrix (3, 3) of the rectified image, in pixels
    size: tuple[int, int]  # width and height of the raw image


@dataclass(frozen=True)
class Calibration:
    """Both cameras, and the transform between their rectified coordinates.

    X_gated = rotation X_rgb + translation, in metres.
    """

    rgb: Camera
    gated: Camera
    rotation: np.ndarray
    translation: np.ndarray
    source: str  # the folder it was read from, or "built in"

    @property
    def identity(self) -> str:
        """What tells this calibration from others: `built in`, or a hash of all numbers."""
        if self.source == BUILT_IN:
            return BUILT_IN
        arrays = [self.rotation, self.translation]
        for camera in (self.rgb, self.gated):
            arrays += [camera.raw, camera.k1, camera.rotation, camera.rectified, camera.size]
        # Another processor may differ in the last digit.
        text = " ".join(f"{value:.9g}" for one in arrays for value in np.ravel(one))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def camera_matrix(focal: float, x: float, y: float) -> np.ndarray:
    """The (3, 3) matrix of a pinhole camera with square pixels."""
    return np.array([[focal, 0, x], [0, focal, y], [0, 0, 1.0]])


def rotation_of(quaternion: tuple[float, float, float, float]) -> np.ndarray:
    """The (3, 3) rotation of a quaternion x, y, z, w of any length."""
    x, y, z, w = np.array(quaternion) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


# ------------------------------------------------------------------------------ reading calibration


def find_calibration(folders: list[Path]) -> Calibration:
    """The calibration in the first folder that has its files, or else the published one.

    Raises `UserError` for damaged files, and if a folder has some of the three.
    """
    for folder in folders:
        names = (RGB_FILE, GATED_FILE, TRANSFORMS_FILE)
        missing = [name for name in names if not (folder / name).is_file()]
        if not missing:
            return read_calibration(folder)
        if len(missing) < len(names):
            raise UserError(f"{folder} lacks {' and '.join(missing)}: {ADVICE}")
    return published_calibration()


def read_calibration(folder: Path) -> Calibration:
    """The three calibration files of a folder. Raises `UserError`."""
    rgb_pose, gated_pose = (
        read_pose(folder / TRANSFORMS_FILE, frame) for frame in (RGB_FRAME, GATED_FRAME)
    )
    rgb, gated = (read_camera(folder / name) for name in (RGB_FILE, GATED_FILE))
    return calibration_between(rgb, gated, rgb_pose, gated_pose, str(folder))


def read_camera(file: Path) -> Camera:
    """A ROS camera file: K, D, R, P, width and height. Raises `UserError`."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return Camera(
            raw=np.array(content["K"], float).reshape(3, 3),
            k1=float(content["D"][0]),
            rotation=np.array(content["R"], float).reshape(3, 3),
            rectified=np.array(content["P"], float).reshape(3, 4)[:, :3],
            size=(int(content["width"]), int(content["height"])),
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{file} is not a ROS camera calibration ({error!r}): {ADVICE}") from None


def read_pose(file: Path, frame: str) -> Pose:
    """The pose of a camera's coordinate frame in the car's frame `body`. Raises `UserError`."""
    try:
        for entry in json.loads(file.read_text(encoding="utf-8")):
            if entry["child_frame_id"] == frame and entry["header"]["frame_id"] == "body":
                rotation = entry["transform"]["rotation"]
                translation = entry["transform"]["translation"]
                return (
                    rotation_of(tuple(rotation[axis] for axis in "xyzw")),
                    np.array([translation[axis] for axis in "xyz"], float),
                )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not a tree of transforms ({error!r}): {ADVICE}") from None
    raise UserError(f"{file} has no transform from {frame} to body: {ADVICE}")


def calibration_between(
    rgb: Camera, gated: Camera, rgb_pose: Pose, gated_pose: Pose, source: str
) -> Calibration:
    """The calibration of two cameras with these poses in the car's frame."""
    rotation = gated_pose[0].T @ rgb_pose[0]
    translation = gated_pose[0].T @ (rgb_pose[1] - gated_pose[1])
    return Calibration(rgb, gated, rotation, translation, source)


# --------------------------------------------------------------------------------------- pixel maps
# A pixel map (H, W, 2) float32 gives, for each pixel of a new image, its x, y in the old image.


def plane_homography(calibration: Calibration, distance: float) -> np.ndarray:
    """(3, 3) from rectified RGB pixels to those of the prepared 1280x768 image.

    Exact for points `distance` metres in front of the gated camera. The inverse of
    P_rgb R^T (I - t n^T / d) P_gated^-1 diag(1, 720/768, 1), n = (0, 0, 1).
    """
    plane = calibration.rotation.T @ (
        np.eye(3) - np.outer(calibration.translation, [0, 0, 1 / distance])
    )
    shrink = np.diag([1, LABEL_HEIGHT / PREPARED_SIZE[1], 1])
    back = calibration.rgb.rectified @ plane @ np.linalg.inv(calibration.gated.rectified) @ shrink
    homography = np.linalg.inv(back)
    return homography / homography[2, 2]


def map_by_plane(calibration: Calibration, distance: float) -> Tensor:
    """The pixel map from the prepared image into rectified RGB, by a plane at `distance` metres."""
    pixels = pixel_grid(PREPARED_SIZE) @ np.linalg.inv(plane_homography(calibration, distance)).T
    return torch.from_numpy(pixels[..., :2] / pixels[..., 2:]).float()


def map_by_depth(calibration: Calibration, depth: np.ndarray) -> Tensor:
    """Like `map_by_plane`, from the distance in metres of every gated pixel (720, 1280).

    X_rgb = R^T (D P_gated^-1 [u, v, 1]^T - t), projected by P_rgb.
    """
    depth = torch.from_numpy(depth).float()[None, None]
    depth = interpolate(depth, PREPARED_SIZE[::-1], mode="nearest")[0, 0].numpy()
    gated = (
        pixel_grid(PREPARED_SIZE)
        * [1, LABEL_HEIGHT / PREPARED_SIZE[1], 1]
        @ np.linalg.inv(calibration.gated.rectified).T
    )
    points = (depth[..., None] * gated - calibration.translation) @ calibration.rotation
    pixels = points @ calibration.rgb.rectified.T
    return torch.from_numpy(pixels[..., :2] / pixels[..., 2:]).float()


def rectifying_map(camera: Camera) -> Tensor:
    """The pixel map from a rectified image into the raw one; both have the camera's size."""
    pixels = pixel_grid(camera.size)
    rays = pixels @ np.linalg.inv(camera.rectified).T @ camera.rotation
    x, y = rays[..., 0] / rays[..., 2], rays[..., 1] / rays[..., 2]
    distortion = 1 + camera.k1 * (x**2 + y**2)
    distorted = np.stack([x * distortion, y * distortion, np.ones_like(x)], -1)
    return torch.from_numpy((distorted @ camera.raw.T)[..., :2]).float()


def pixel_grid(size: tuple[int, int]) -> np.ndarray:
    """Homogeneous coordinates (H, W, 3) of the pixels of an image of `size` (width, height)."""
    y, x = np.mgrid[: size[1], : size[0]].astype(float)
    return np.stack([x, y, np.ones_like(x)], -1)


def warp(image: np.ndarray, pixel_map: Tensor) -> np.ndarray:
    """Sample an image (h, w) or (h, w, C) bilinearly by a pixel map (H, W, 2); black outside.

    The dtype is kept; integers are rounded.
    """
    height, width = image.shape[:2]
    values = torch.from_numpy(image.reshape(height, width, -1).astype(np.float32))
    grid = (pixel_map + 0.5) * torch.tensor([2 / width, 2 / height]) - 1
    sampled = grid_sample(
        values.permute(2, 0, 1)[None], grid[None], "bilinear", "zeros", align_corners=False
    )
    sampled = sampled[0].permute(1, 2, 0)
    if np.issubdtype(image.dtype, np.integer):
        sampled = sampled + 0.5
    return sampled.numpy().astype(image.dtype).reshape(*pixel_map.shape[:2], *image.shape[2:])


def densify(depth: np.ndarray) -> np.ndarray:
    """Sparse lidar distances (H, W) in metres, 0 = none -> dense ones.

    Push and pull on inverse depth, because parallax is linear in it: a hole takes the mean of the
    finest coarser cell that has a return. Raises `ValueError` for a map without a return.
    """
    known = torch.from_numpy(depth > 0).float()[None, None]
    if not known.any():
        raise ValueError("no lidar return")
    distances = torch.from_numpy(depth).float()[None, None]
    inverse = torch.where(known > 0, 1 / distances.clamp(min=0.1), 0.0)
    levels = [(inverse, known)]
    while not levels[-1][1].all():
        value, weight = levels[-1]
        known_share = avg_pool2d(weight, 2, ceil_mode=True)
        mean = avg_pool2d(value * weight, 2, ceil_mode=True) / known_share.clamp(min=1e-6)
        levels.append((mean, (known_share > 0).float()))
    filled = levels.pop()[0]
    for value, weight in reversed(levels):
        coarse = interpolate(filled, value.shape[-2:], mode="bilinear")
        filled = torch.where(weight > 0, value, coarse)
    return (1 / filled[0, 0]).numpy()


# The published calibration: tools/DatasetViewer/calibs in the data set's repository.
RGB_RECTIFICATION = np.array(
    [
        [0.999993, -0.001011, -0.003531],
        [0.001002, 0.999996, -0.002456],
        [0.003533, 0.002453, 0.999991],
    ]
)
RGB_POSE = (
    rotation_of(
        (-0.49797334687178507, 0.49859243146922594, -0.5013107060281987, 0.5021112517245825)
    ),
    np.array([2.11688, 0.086961, 0.89075]),
)
GATED_POSE = (
    rotation_of(
        (-0.5021240121425293, 0.48984061379788263, -0.5011124538997006, 0.5067681501935805)
    ),
    np.array([2.13327, -0.022763, 0.865]),
)


def published_calibration() -> Calibration:
    """The calibration published with the data set."""
    rgb = Camera(
        camera_matrix(2612.86, 966.525, 508.297),
        -0.567575,
        RGB_RECTIFICATION,
        camera_matrix(2355.722801, 988.138054, 508.051838),
        (1920, 1024),
    )
    gated = Camera(
        camera_matrix(2322.4, 667.777, 261.144),
        0.270277,
        np.eye(3),
        camera_matrix(2322.4, 667.777, 261.144),
        (LABEL_WIDTH, LABEL_HEIGHT),
    )
    return calibration_between(rgb, gated, RGB_POSE, GATED_POSE, BUILT_IN)

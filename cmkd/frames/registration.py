"""Where the cameras of the Seeing Through Fog car stand, and the warp of RGB into the gated camera's view.

Everything comes from calibration: the user's files, or the published values below. Pixels are (x, y) from 0 at the
centre of the first; gated pixels are those of the rectified 1280x720 slices.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, interpolate

from utils import UserError

RGB_FILE, GATED_FILE, TREE_FILE = "calib_cam_stereo_left.json", "calib_gated_bwv.json", "calib_tf_tree_full.json"
RGB_FRAME, GATED_FRAME = "cam_stereo_left_optical", "bwv_cam_optical"
GATED_SIZE, PREPARED_SIZE = (1280, 720), (1280, 768)  # width, height


@dataclass(frozen=True)
class Camera:
    """A pinhole camera as ROS calibrates it: `raw` and `rectified` (3, 3) matrices in pixels, the radial distortion
    `k1`, the rectifying `rotation` (3, 3), and the raw image's `size` (width, height)."""

    raw: np.ndarray
    k1: float
    rotation: np.ndarray
    rectified: np.ndarray
    size: tuple[int, int]


@dataclass(frozen=True)
class Calibration:
    """Both cameras, and X_gated = rotation X_rgb + translation (metres) between their rectified frames."""

    rgb: Camera
    gated: Camera
    rotation: np.ndarray
    translation: np.ndarray
    source: str  # the folder it was read from, or "built in"


def matrix(focal: float, x: float, y: float) -> np.ndarray:
    """The (3, 3) matrix of a pinhole camera with square pixels."""
    return np.array([[focal, 0, x], [0, focal, y], [0, 0, 1.0]])


def rotation_of(quaternion: tuple[float, float, float, float]) -> np.ndarray:
    """The (3, 3) rotation of a quaternion x, y, z, w of any length."""
    x, y, z, w = np.array(quaternion) / np.linalg.norm(quaternion)
    return np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                     [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                     [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])


def find_calibration(folders: list[Path]) -> Calibration:
    """The calibration in the first of the folders that has all three files; the published one where none has.
    Raises `UserError` for files that cannot be understood."""
    for folder in folders:
        if all((folder / name).is_file() for name in (RGB_FILE, GATED_FILE, TREE_FILE)):
            return read_calibration(folder)
    return published_calibration()


def read_calibration(folder: Path) -> Calibration:
    """The three calibration files of a folder. Raises `UserError`."""
    poses = {frame: read_pose(folder / TREE_FILE, frame) for frame in (RGB_FRAME, GATED_FRAME)}
    return between(read_camera(folder / RGB_FILE), read_camera(folder / GATED_FILE), poses[RGB_FRAME],
                   poses[GATED_FRAME], str(folder))


def read_camera(file: Path) -> Camera:
    """A ROS camera file: K, D, R, P, width and height. Raises `UserError`."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        raw, rotation = (np.array(content[name], float).reshape(3, 3) for name in ("K", "R"))
        rectified = np.array(content["P"], float).reshape(3, 4)[:, :3]
        return Camera(raw, float(content["D"][0]), rotation, rectified, (int(content["width"]), int(content["height"])))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{file} is no ROS camera calibration ({error!r}): restore it, or remove the three calib files "
                        "to use the published calibration") from None


def read_pose(file: Path, frame: str) -> tuple[np.ndarray, np.ndarray]:
    """(rotation, translation) with X_body = rotation X_frame + translation. Raises `UserError`."""
    try:
        for entry in json.loads(file.read_text(encoding="utf-8")):
            if entry["child_frame_id"] == frame and entry["header"]["frame_id"] == "body":
                turn, shift = entry["transform"]["rotation"], entry["transform"]["translation"]
                return (rotation_of(tuple(turn[axis] for axis in "xyzw")),
                        np.array([shift[axis] for axis in "xyz"], float))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is no tree of transforms ({error!r}): restore it, or remove the three calib files to "
                        "use the published calibration") from None
    raise UserError(f"{file} says nothing of {frame} in body: restore it, or remove the three calib files to use the "
                    "published calibration")


def between(rgb: Camera, gated: Camera, rgb_pose: tuple[np.ndarray, np.ndarray],
            gated_pose: tuple[np.ndarray, np.ndarray], source: str) -> Calibration:
    """The calibration of two cameras that stand at these poses in the car's frame."""
    rotation = gated_pose[0].T @ rgb_pose[0]
    translation = gated_pose[0].T @ (rgb_pose[1] - gated_pose[1])
    return Calibration(rgb, gated, rotation, translation, source)


def plane_homography(calibration: Calibration, distance: float) -> np.ndarray:
    """(3, 3) from rectified RGB pixels to those of the prepared 1280x768 image, exact for what lies `distance` metres
    before the gated camera. The inverse of P_rgb R^T (I - t n^T / d) P_gated^-1 diag(1, 720/768, 1), n = (0, 0, 1)."""
    plane = calibration.rotation.T @ (np.eye(3) - np.outer(calibration.translation, [0, 0, 1 / distance]))
    shrink = np.diag([1, GATED_SIZE[1] / PREPARED_SIZE[1], 1])
    back = calibration.rgb.rectified @ plane @ np.linalg.inv(calibration.gated.rectified) @ shrink
    homography = np.linalg.inv(back)
    return homography / homography[2, 2]


def plane_map(calibration: Calibration, distance: float) -> Tensor:
    """Where each prepared pixel lies in the rectified RGB picture, by the plane: (768, 1280, 2) float32 x, y."""
    pixels = prepared_pixels() @ np.linalg.inv(plane_homography(calibration, distance)).T
    return torch.from_numpy(pixels[..., :2] / pixels[..., 2:]).float()


def depth_map(calibration: Calibration, depth: np.ndarray) -> Tensor:
    """As `plane_map`, from the distance in metres of every gated pixel (720, 1280):
    X_rgb = R^T (D P_gated^-1 [u, v, 1]^T - t), projected by P_rgb."""
    dense = interpolate(torch.from_numpy(depth).float()[None, None], PREPARED_SIZE[::-1], mode="nearest")[0, 0].numpy()
    gated = prepared_pixels() * [1, GATED_SIZE[1] / PREPARED_SIZE[1], 1] @ np.linalg.inv(calibration.gated.rectified).T
    points = (dense[..., None] * gated - calibration.translation) @ calibration.rotation
    pixels = points @ calibration.rgb.rectified.T
    return torch.from_numpy(pixels[..., :2] / pixels[..., 2:]).float()


def prepared_pixels() -> np.ndarray:
    """Homogeneous coordinates (768, 1280, 3) of the prepared image's pixels."""
    y, x = np.mgrid[:PREPARED_SIZE[1], :PREPARED_SIZE[0]].astype(float)
    return np.stack([x, y, np.ones_like(x)], -1)


def rectifying_map(camera: Camera, size: tuple[int, int]) -> Tensor:
    """Where each pixel of the rectified picture of `size` (width, height) lies in the raw one: (H, W, 2) float32."""
    y, x = np.mgrid[:size[1], :size[0]].astype(float)
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(camera.rectified).T @ camera.rotation
    across, down = rays[..., 0] / rays[..., 2], rays[..., 1] / rays[..., 2]
    bent = 1 + camera.k1 * (across**2 + down**2)
    pixels = np.stack([across * bent, down * bent, np.ones_like(x)], -1) @ camera.raw.T
    return torch.from_numpy(pixels[..., :2]).float()


def warp(picture: np.ndarray, where: Tensor) -> np.ndarray:
    """Sample a picture (h, w) or (h, w, C) bilinearly at `where` (H, W, 2); black outside. The type stays."""
    height, width = picture.shape[:2]
    values = torch.from_numpy(picture.reshape(height, width, -1).astype(np.float32)).permute(2, 0, 1)[None]
    grid = (where + 0.5) * torch.tensor([2 / width, 2 / height]) - 1
    sampled = grid_sample(values, grid[None], "bilinear", "zeros", align_corners=False)[0].permute(1, 2, 0)
    rounded = (sampled + 0.5).numpy() if np.issubdtype(picture.dtype, np.integer) else sampled.numpy()
    return rounded.astype(picture.dtype).reshape(*where.shape[:2], *picture.shape[2:])


def densify(depth: np.ndarray) -> np.ndarray:
    """Sparse lidar distances (H, W) in metres, 0 = none -> dense ones.

    Push and pull on inverse depth, which is what parallax is linear in: holes take the mean of the finest coarser
    cell that has a return. Raises `ValueError` for a map without a return.
    """
    known = torch.from_numpy(depth > 0).float()[None, None]
    if not known.any():
        raise ValueError("no lidar return")
    inverse = torch.where(known > 0, 1 / torch.from_numpy(depth).float()[None, None].clamp(min=0.1), 0.0)
    levels = [(inverse, known)]
    while not levels[-1][1].all():
        value, weight = levels[-1]
        share = avg_pool2d(weight, 2, ceil_mode=True)
        mean = avg_pool2d(value * weight, 2, ceil_mode=True) / share.clamp(min=1e-6)
        levels.append((mean, (share > 0).float()))
    filled = levels.pop()[0]
    for value, weight in reversed(levels):
        coarse = interpolate(filled, value.shape[-2:], mode="bilinear")
        filled = torch.where(weight > 0, value, coarse)
    return (1 / filled[0, 0]).numpy()


# The published calibration: tools/DatasetViewer/calibs in the data set's repository.
RGB_RECTIFICATION = np.array([[0.999993, -0.001011, -0.003531], [0.001002, 0.999996, -0.002456],
                              [0.003533, 0.002453, 0.999991]])
RGB_POSE = (rotation_of((-0.49797334687178507, 0.49859243146922594, -0.5013107060281987, 0.5021112517245825)),
            np.array([2.11688, 0.086961, 0.89075]))
GATED_POSE = (rotation_of((-0.5021240121425293, 0.48984061379788263, -0.5011124538997006, 0.5067681501935805)),
              np.array([2.13327, -0.022763, 0.865]))


def published_calibration() -> Calibration:
    """The calibration published with the data set, in its repository's tools/DatasetViewer/calibs."""
    rgb = Camera(matrix(2612.86, 966.525, 508.297), -0.567575, RGB_RECTIFICATION,
                 matrix(2355.722801, 988.138054, 508.051838), (1920, 1024))
    gated = Camera(matrix(2322.4, 667.777, 261.144), 0.270277, np.eye(3), matrix(2322.4, 667.777, 261.144), GATED_SIZE)
    return between(rgb, gated, RGB_POSE, GATED_POSE, "built in")

"""Frames decoded once: kept as uint8 at training size, in a memory-mapped file that all processes share."""

import hashlib
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from utils import UserError

MEMORY = Path("/dev/shm")  # files that live in memory, on Linux
VERSION = 1  # of what is stored


class FrameCache:
    """Frames `[C, H, W]`, each with its checksum, so that one that is half written, or was when the power went, counts
    as not there. Any process may store any frame at any time: what is stored is the same.

    `kind` is `disk` (in `folder`, kept for later runs) or `ram` (in memory, until `remove`). Another list, another
    size, or another size or date of a source file makes another cache. Raises `UserError` where there is no room.
    """

    def __init__(self, kind: str, folder: Path, files: list[list[Path]], size: tuple[int, int]) -> None:
        self.shape = (len(files), len(files[0]) + 2, *size)  # RGB is one file and three channels
        self.kind, self.file = kind, (MEMORY if kind == "ram" else folder) / f"frames-{key(files, size)}.cache"
        self.bytes = int(np.prod(self.shape)) + 4 * len(files)
        self._map()

    def __getstate__(self) -> dict:
        """What a process started anew gets; it maps the file itself."""
        return {name: value for name, value in vars(self).items() if name not in ("frames", "checksums")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._map()

    def _map(self) -> None:
        if not self.file.is_file():
            self._make_file()
        whole = np.memmap(self.file, np.uint8, "r+", shape=self.bytes)
        self.checksums = whole[: 4 * self.shape[0]].view(np.uint32)
        self.frames = whole[4 * self.shape[0] :].reshape(self.shape)

    def _make_file(self) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            if (free := shutil.disk_usage(self.file.parent).free) < self.bytes:
                raise UserError(f"--cache {self.kind} needs {self.bytes / 1e9:.1f} GB and {self.file.parent} has "
                                f"{free / 1e9:.1f} GB: make room, or choose another --cache")
            # Another process may be making it: nothing there is lost. The room is taken now, as a disk that is full
            # when a mapped page is written kills the process.
            with self.file.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, self.bytes)
        except OSError as error:
            raise UserError(f"--cache {self.kind}: {self.file} cannot be written ({error.strerror}): choose another "
                            "--cache") from None

    def load(self, index: int) -> Tensor | None:
        """A frame that is stored whole."""
        frame = np.array(self.frames[index])
        return torch.from_numpy(frame) if checksum(frame) == self.checksums[index] else None

    def store(self, index: int, image: Tensor) -> Tensor:
        """Resize a frame, keep it, and return it."""
        frame = resize(image, self.shape[2:])
        self.frames[index] = frame.numpy()
        self.checksums[index] = checksum(frame.numpy())
        return frame

    def remove(self) -> None:
        """Give memory back; a cache on disk stays."""
        if self.kind == "ram":
            self.file.unlink(missing_ok=True)


def key(files: list[list[Path]], size: tuple[int, int]) -> str:
    """A name for these files as they are now, at this size."""
    digest = hashlib.sha256(f"{VERSION} {size}".encode())
    for file in (file for frame in files for file in frame):
        status = file.stat()
        digest.update(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def checksum(frame: np.ndarray) -> int:
    """Never 0, which is what an empty file says."""
    return zlib.crc32(frame) or 1


def training_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """(height, width) that torchvision's GeneralizedRCNNTransform gives an image of this size."""
    scale = min(min_size / min(height, width), max_size / max(height, width))
    small = interpolate(torch.empty(1, 1, height, width, device="meta"), scale_factor=scale, mode="bilinear",
                        recompute_scale_factor=True)
    return tuple(small.shape[-2:])


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """A uint8 image `[C, H, W]` at another (height, width), as torchvision's transform does it (bilinear, without
    antialiasing), rounded to whole grey levels."""
    if image.shape[-2:] == size:
        return image
    return interpolate(image[None].float(), size=size, mode="bilinear")[0].round().byte()

"""Frames that are decoded once, then kept at training size in a file that all processes share."""

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cmkd.runtime.files import UserError

MEMORY_FOLDER = Path("/dev/shm")
VERSION = 1  # of the file's format


class FrameCache:
    """Frames, uint8 `[C, H, W]`, in a memory-mapped file.

    Each frame has a checksum: a frame that is half written, or was when the power failed, counts as
    missing. Any process may store any frame at any time, because all store the same content.

    `kind` is `disk` (in `folder`, kept for later runs) or `ram` (in memory, until `remove`).
    `files` are the images of all frames, and `shape` is frames, channels, height and width.
    Another list, another size, or another size or date of an image file makes another cache.
    Raises `UserError` if there is no room.
    """

    def __init__(
        self, kind: str, folder: Path, files: Iterable[Path], shape: tuple[int, int, int, int]
    ) -> None:
        self.shape = shape
        self.kind = kind
        home = folder_in_memory() if kind == "ram" else folder
        # Another user's file may be neither read nor trusted.
        prefix = f"frames-{os.getuid()}-"
        self.file = home / f"{prefix}{cache_key(files, shape[2:])}.cache"
        self.bytes = int(np.prod(shape)) + 4 * shape[0]
        if kind == "ram":
            remove_abandoned(set(home.glob(f"{prefix}*.cache")) - {self.file})
        self._map_file()

    def __getstate__(self) -> dict:
        """What is sent to a new process, which maps the file itself."""
        state = dict(vars(self))
        del state["frames"], state["checksums"]
        return state

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._map_file()

    def _map_file(self) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # The mapping keeps the lock until the process ends.
            with open_in_use(self.file) if self.kind == "ram" else self.file.open("a+b") as file:
                self._make_room(file)
                content = np.memmap(file, np.uint8, "r+", shape=self.bytes)
        except OSError as error:
            raise UserError(
                f"--cache {self.kind}: {self.file} cannot be used ({error.strerror}): remove it, "
                "or choose another --cache"
            ) from None
        start = 4 * self.shape[0]
        self.checksums = content[:start].view(np.uint32)
        self.frames = content[start:].reshape(self.shape)

    def _make_room(self, file: IO[bytes]) -> None:
        """Make the file whole, if it is new or a full disk cut it off.

        Another process may do it at the same time: nothing in the file is lost.
        """
        status = os.fstat(file.fileno())
        if status.st_size >= self.bytes:
            return
        needed = self.bytes - 512 * status.st_blocks
        if (free := shutil.disk_usage(self.file.parent).free) < needed:
            raise UserError(
                f"--cache {self.kind} needs {needed / 1e9:.1f} GB more and {self.file.parent} has "
                f"{free / 1e9:.1f} GB: free some space, or choose another --cache"
            )
        if hasattr(os, "posix_fallocate"):  # not on macOS
            # A full disk would kill the process that writes a mapped page.
            os.posix_fallocate(file.fileno(), 0, self.bytes)
        else:
            file.truncate(self.bytes)

    def load(self, index: int) -> Tensor | None:
        """A stored frame; None if it is missing or damaged."""
        frame = np.array(self.frames[index])
        return torch.from_numpy(frame) if checksum(frame) == self.checksums[index] else None

    def store(self, index: int, image: Tensor) -> Tensor:
        """Resize a frame, store it, and return it."""
        frame = resize(image, self.shape[2:])
        self.frames[index] = frame.numpy()
        self.checksums[index] = checksum(frame.numpy())
        return frame

    def remove(self) -> None:
        """Remove a cache in memory; one on disk stays."""
        if self.kind == "ram":
            self.file.unlink(missing_ok=True)


def open_in_use(file: Path) -> IO[bytes]:
    """The opened file, made if it is missing, with a lock that says that it is in use."""
    while True:
        opened = file.open("a+b")
        fcntl.flock(opened, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(opened.fileno()), file.stat()):
                return opened
        opened.close()  # another process removed it just before the lock


def remove_abandoned(files: Iterable[Path]) -> None:
    """Remove files that no process uses, as SIGKILL leaves them: they would keep the memory."""
    for file in files:
        with contextlib.suppress(OSError), file.open("rb") as opened:  # in use, or removed already
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.unlink()


def folder_in_memory() -> Path:
    """A folder of files that live in memory, on Linux; elsewhere that of temporary files."""
    return MEMORY_FOLDER if MEMORY_FOLDER.is_dir() else Path(tempfile.gettempdir())


def cache_key(files: Iterable[Path], size: tuple[int, int]) -> str:
    """A name for these image files in their present state, at this size."""
    digest = hashlib.sha256(f"{VERSION} {size}".encode())
    # To resolve a path takes longer than all else here, so each folder is resolved once.
    real_folder = functools.cache(Path.resolve)
    for file in files:
        status = file.stat()
        real = file.resolve() if file.is_symlink() else real_folder(file.parent) / file.name
        digest.update(f"{real} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def checksum(frame: np.ndarray) -> int:
    """CRC-32, but never 0, which means that nothing is stored."""
    return zlib.crc32(frame) or 1


def training_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """(height, width) that torchvision's GeneralizedRCNNTransform gives an image of this size."""
    scale = min(min_size / min(height, width), max_size / max(height, width))
    resized = interpolate(
        torch.empty(1, 1, height, width, device="meta"),
        scale_factor=scale,
        mode="bilinear",
        recompute_scale_factor=True,
    )
    return tuple(resized.shape[-2:])


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """A uint8 image `[C, H, W]` at another (height, width), rounded to whole grey levels.

    Bilinear without antialiasing, like torchvision's transform.
    """
    if image.shape[-2:] == size:
        return image
    return interpolate(image[None].float(), size=size, mode="bilinear")[0].round().byte()

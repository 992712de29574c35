"""Archives that came from elsewhere, unpacked without leaving the folder. Needs no torch."""

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from cmkd.runtime.files import UserError, reason_of

LARGEST = 200 * 10**9  # bytes, unpacked: more than the data set has
BLOCK = 2**20
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError)

Entry = tuple[str, int, zipfile.ZipInfo | tarfile.TarInfo]  # path in the archive, bytes, member


def unpack(archive: Path, folder: Path, largest: int = LARGEST) -> int:
    """Unpack the files of a zip or tar archive into a folder; returns how many.

    Raises `UserError`: before a file is written if the archive has a link, a name that leaves the
    folder, or more bytes than `largest` or the disk has, and at the latest at its end if it is
    damaged.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                entries = entries_of_zip(archive, opened)
                return write_entries(archive, entries, folder, largest, opened.open)
        with tarfile.open(archive) as opened:
            entries = entries_of_tar(archive, opened)
            count = write_entries(archive, entries, folder, largest, opened.extractfile)
            while opened.fileobj.read(BLOCK):  # a compressed archive has its checksum at the end
                pass
            return count
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno:  # of the disk
            raise UserError(
                f"{archive} cannot be unpacked ({error.strerror}): it is kept; fix that first"
            ) from None
        raise UserError(
            f"{archive} is no whole zip or tar archive ({reason_of(error)}): remove it, and "
            "download it again"
        ) from None


def entries_of_zip(archive: Path, opened: zipfile.ZipFile) -> list[Entry]:
    """The files of a zip archive. Raises `UserError` for a link."""
    entries = []
    for member in opened.infolist():
        if member.is_dir():
            continue
        if stat.S_ISLNK(member.external_attr >> 16):
            raise UserError(f"{archive}: {member.filename} is a link: it is not unpacked")
        entries.append((member.filename, member.file_size, member))
    return entries


def entries_of_tar(archive: Path, opened: tarfile.TarFile) -> list[Entry]:
    """The files of a tar archive. Raises `UserError` for a link or a device."""
    entries = []
    for member in opened:
        if member.isdir():
            continue
        if not member.isfile():
            raise UserError(f"{archive}: {member.name} is a link or a device: it is not unpacked")
        entries.append((member.name, member.size, member))
    return entries


def write_entries(
    archive: Path, entries: list[Entry], folder: Path, largest: int, open_member: object
) -> int:
    """Write files, each at most as long as the archive says."""
    for name, _, _ in entries:
        refuse_outside(archive, name)
    total = sum(size for _, size, _ in entries)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if total > min(largest, free):
        raise UserError(
            f"{archive} would take {total / 1e9:.1f} GB, and {min(largest, free) / 1e9:.1f} GB are "
            "allowed and free: nothing was unpacked"
        )
    for name, size, member in tqdm(entries, archive.name, unit="file", disable=None):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with open_member(member) as source, file.open("wb") as target:
            left = size
            while left and (block := source.read(min(BLOCK, left))):
                target.write(block)
                left -= len(block)
        if left:
            raise UserError(f"{archive}: {name} ends early: download it again")
    return len(entries)


def refuse_outside(archive: Path, name: str) -> None:
    """Raise `UserError` for a name that is absolute or leaves the folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or "\0" in name:
        raise UserError(f"{archive}: {name} would leave the folder: nothing was unpacked")

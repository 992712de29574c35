"""Errors a user can fix, and files written completely or not at all. Needs no torch."""

import errno
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

# What a file system says of what it cannot do.
CANNOT = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EBADF)
cannot_was_said: list[str] = []
REPOSITORY = Path(__file__).resolve().parents[2]


class UserError(Exception):
    """An error the user can fix. Its text is one line: which file and line, and what to do."""


def reason_of(error: Exception) -> str:
    """The first line of a library's error, at most 120 characters; its type if it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]


def print_error(message: str) -> None:
    """Print `script: error: message` to stderr."""
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)


def exit_with_error(message: str) -> NoReturn:
    """Print the error, and end the program with exit code 2."""
    print_error(message)
    sys.exit(2)


def set_up_output() -> None:
    """Write each line to a file or a pipe as soon as it is printed, in any encoding."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A character that the encoding lacks, like ±, must not end a run.
            stream.reconfigure(line_buffering=True, errors="backslashreplace")


def give_up_output() -> int:
    """Print nowhere from now on, because the reader (like head) has ended; return the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def forbidden_message(error: PermissionError) -> str:
    """The error for a file that this user may not use."""
    return f"{error.filename} may not be used by this user ({error.strerror}): ask its owner"


def write_atomically(path: Path, write: Callable[[Path], Any], flush: bool = True) -> None:
    """Let `write` make a file beside `path`, then rename it: `path` is the old file or the new one.

    Without `flush` this does not hold after a power cut: faster for thousands of files that can be
    made again. Raises `UserError` if the file cannot be written.
    """
    unfinished = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=unfinished_prefix(path))
        os.close(handle)
        unfinished = Path(name)
        write(unfinished)
        if flush:
            with unfinished.open("rb") as file:
                if_possible(os.fsync, file.fileno())
        if_possible(unfinished.chmod, 0o644)
        unfinished.replace(path)
        if flush:
            synchronise_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): choose another place, "
            "or free some space"
        ) from None
    finally:
        if unfinished:
            unfinished.unlink(missing_ok=True)


def unfinished_prefix(path: Path) -> str:
    """How the names of half-written versions of a file begin."""
    return f".{path.name}."


def remove_unfinished(path: Path) -> None:
    """Remove half-written versions of a file, left by a process that was killed."""
    for leftover in path.parent.glob(f"{unfinished_prefix(path)}*"):
        leftover.unlink()


def synchronise_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a renamed file survives a power cut (POSIX only)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        if_possible(os.fsync, handle)
        os.close(handle)


def if_possible(call: Callable[..., None], *arguments: Any) -> None:
    """Call what some network file systems cannot do, and do without it there, with one warning."""
    try:
        call(*arguments)
    except OSError as error:
        if error.errno not in CANNOT:
            raise
        if not cannot_was_said:
            print(
                f"warning: this file system cannot {call.__name__} ({error.strerror}): a power cut "
                "may cost the newest file",
                file=sys.stderr,
            )
            cannot_was_said.append(call.__name__)


def refuse_unwritable(path: Path) -> None:
    """Make the folder of a future file and try to write there. Raises `UserError`."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): choose another place"
        ) from None


def save_text(text: str, path: Path) -> None:
    """Write text to a UTF-8 file atomically, without changing it."""
    write_atomically(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def save_json(value: Any, path: Path) -> None:
    """Write indented JSON atomically. Paths and devices become text; NaN raises `ValueError`."""
    save_text(json.dumps(value, indent=2, default=str, allow_nan=False) + "\n", path)


def read_json(path: Path, advice: str) -> Any:
    """The content of a JSON file. Raises `UserError` that ends with `advice`."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {advice}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not JSON ({reason_of(error)}): {advice}") from None


def append_record(path: Path, *records: dict[str, Any]) -> None:
    """Append a JSON line for each record to a log and flush it to the disk. Raises `UserError`."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record, default=str) + "\n" for record in records)
            file.flush()
            if_possible(os.fsync, file.fileno())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): free some space") from None


def read_lines(path: Path, content: str) -> list[str]:
    """The lines of a UTF-8 text file. Raises `UserError`, which calls them `content`."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as {content}: {error}") from None


def open_data_folder(
    folder: Path, record: str, parameters: dict[str, Any], subfolders: tuple[str, ...]
) -> dict[str, Any]:
    """Make a data folder, or reopen one that was begun with the same parameters.

    FOLDER/<record> is JSON whose `parameters` say how the folder is made; its content is returned.
    Half-written files in `subfolders` are removed. Raises `UserError` if the folder was begun with
    other parameters or holds something else; nothing is changed then.
    """
    file = folder / record
    if not file.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(
                f"--out {folder} exists and holds something else: choose a new or empty folder; "
                "nothing was written"
            )
        for name in subfolders:
            (folder / name).mkdir(parents=True, exist_ok=True)
        save_json({"parameters": parameters}, file)
        return {"parameters": parameters}
    advice = f"choose another --out, or remove {folder}; nothing was changed"
    content = read_json(file, advice)
    before = content.get("parameters") if isinstance(content, dict) else None
    if not isinstance(before, dict):
        raise UserError(f"{file} has no parameters: {advice}")
    for name, value in parameters.items():
        if before.get(name) != value:
            raise UserError(
                f"{folder} was made with {name} {before.get(name)}, not {value}: pass the same, or "
                "choose another --out; nothing was changed"
            )
    for name in subfolders:
        # Half-written, as .NAME.SUFFIX.xxxxxxxx; other tools have hidden files of their own.
        for leftover in (folder / name).glob(".*.*.*"):
            if leftover.is_file():
                leftover.unlink()
    return content

"""A folder of labels that a network wrote, and the record of what it wrote. Needs no torch.

    DATA/<folder>/<frame>.txt            ordinary label files (`annotations`)
    DATA/<folder>/labels.jsonl           the journal; labels-3-of-8.jsonl for part 3 of 8

A journal has JSON lines. A header says which weights, thresholds and list. After it, every frame
has a line with the SHA-256 of its label file, which is written before the file itself: a file whose
hash is in a journal is the machine's, also after the program was killed, and every other file is a
human's. A line with `"by": "human"` makes a file of this hash a human's too.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmkd.frames.annotations import (
    DOUBTFUL,
    LABEL_HEIGHT,
    LABEL_WIDTH,
    Corners,
    class_groups,
    clip,
    has_area,
)
from cmkd.frames.layout import IMAGE_FOLDERS, LABEL_FOLDER, label_file, list_file, parse_list
from cmkd.runtime.files import UserError, append_record, save_text

NOBODY, MACHINE, OUTDATED, HUMAN = "nobody", "machine", "outdated", "human"  # whose file it is
MUST_AGREE = ("weights_sha256", "thresholds", "mirror")  # in the headers of one folder
UNKNOWN = "-1 -1 -1"  # truncation, occlusion and angle; dimensions; four times visibility
NO_PLACE = "-1000 -1000 -1000 -1000"  # position and orientation; quaternion

File = tuple[str, str]  # a frame's name, and the hash of its label file
Found = tuple[str, float, Corners]  # class, score, box in label space


# ------------------------------------------------------------------------------------- label files


def to_label_space(box: Corners, width: int, height: int) -> Corners:
    """A box in pixels of an image of this size -> label space, clipped to it."""
    across, down = LABEL_WIDTH / width, LABEL_HEIGHT / height
    x0, y0, x1, y1 = box
    return clip((x0 * across, y0 * down, x1 * across, y1 * down))


def label_text(found: Iterable[Found]) -> str:
    """The content of a label file: 27 columns a line, the score in its own; boxes with area."""
    lines = []
    for name, score, box in found:
        corners = tuple(round(value, 2) for value in box)
        if has_area(corners):
            numbers = " ".join(f"{value:.2f}" for value in corners)
            lines.append(
                f"{name} {UNKNOWN} {numbers} {UNKNOWN} {NO_PLACE} 0.000 0.000 0.000 {score:.4f} "
                f"{NO_PLACE} {UNKNOWN} -1\n"
            )
    return "".join(lines)


def sure_and_doubtful(
    found: Iterable[Found], thresholds: dict[str, tuple[float, float]]
) -> list[Found]:
    """Sure boxes as their class, doubtful ones as an ignore region; others are left out.

    `thresholds` has for each class the least score of a sure box and of a doubtful one.
    """
    kept = []
    for name, score, box in found:
        sure, doubtful = thresholds[name]
        if score >= doubtful:
            kept.append((name if score >= sure else DOUBTFUL, score, box))
    return kept


def sha256_of_text(text: str) -> str:
    """The SHA-256 of a text file's content, in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


# -------------------------------------------------------------------------------------- the record


@dataclass
class Record:
    """What the journals of a folder say."""

    headers: dict[str, dict[str, Any]] = field(default_factory=dict)  # the newest, by journal
    machine: set[File] = field(default_factory=set)  # all that a machine ever wrote
    recent: dict[str, set[File]] = field(default_factory=dict)  # since --relabel, by journal
    human: set[File] = field(default_factory=set)


def journal_name(part: tuple[int, int] | None = None) -> str:
    """The journal's file name; `part` is like (3, 8)."""
    return f"labels-{part[0]}-of-{part[1]}.jsonl" if part else "labels.jsonl"


def read_record(folder: Path) -> Record:
    """All journals of a folder. Raises `UserError` for a line that is not JSON."""
    record = Record()
    for journal in sorted(folder.glob("labels*.jsonl")):
        read_journal(journal, record)
    return record


def read_journal(journal: Path, record: Record) -> None:
    """Add a journal to a record. A last line that is not finished is left out."""
    recent = record.recent.setdefault(journal.name, set())
    lines = journal.read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            file = (entry["frame"], entry["sha256"]) if "frame" in entry else None
            is_header = "settings" in entry
        except (ValueError, TypeError, KeyError):
            file, is_header = None, False
        if is_header:
            record.headers[journal.name] = entry
            if entry.get("relabel"):
                recent.clear()
        elif file is None:
            raise UserError(f"{journal}:{number}: not a line of a journal: restore the file")
        elif entry.get("by") == HUMAN:
            record.human.add(file)
        else:
            record.machine.add(file)
            recent.add(file)


def same_partition(journal: str, other: str) -> bool:
    """Whether two journals are of the same number of parts."""
    return journal.partition("-of-")[2] == other.partition("-of-")[2]


def refuse_disagreement(folder: Path) -> dict[str, dict[str, Any]]:
    """The headers of a folder's parts.

    Raises `UserError` if the parts are by different weights or thresholds.
    """
    headers = read_record(folder).headers
    for name in MUST_AGREE:
        values = {journal: header[name] for journal, header in headers.items()}
        for journal, value in values.items():
            first = next(iter(values))
            if value != values[first]:
                raise UserError(
                    f"{folder}: {first} and {journal} have different {name}: label that part "
                    "again with the same options and --relabel"
                )
    return headers


def refuse_unfit_labels(folder: Path, classes: list[str]) -> None:
    """Raise `UserError` for machine labels that a network of these classes must not learn from.

    Their parts disagree, or they lack a class, which would be learned as background. More classes
    are no harm.
    """
    for journal, header in refuse_disagreement(folder).items():
        labelled = header["settings"]["classes"]
        for group in class_groups(classes):
            if set(group) not in map(set, labelled):
                raise UserError(
                    f"{folder / journal}: these labels are of {' '.join(map(','.join, labelled))}, "
                    f"and not of {','.join(group)}: label with a network of these --classes"
                )


def whose_file(record: Record, folder: Path, name: str) -> str:
    """NOBODY if a frame has no label file, else MACHINE, OUTDATED (to label again) or HUMAN."""
    try:
        content = label_file(folder.parent, name, folder.name).read_bytes()
    except FileNotFoundError:
        return NOBODY
    except OSError as error:
        raise UserError(f"{folder / name}.txt cannot be read ({error.strerror}): fix it") from None
    file = name, hashlib.sha256(content).hexdigest()
    if file in record.human or file not in record.machine:
        return HUMAN
    is_recent = any(file in files for files in record.recent.values())
    return MACHINE if is_recent else OUTDATED


def open_folder(root: Path, name: str) -> Path:
    """The folder of machine labels of this name, whether it exists or not.

    Raises `UserError` for the name of another folder, and for a folder with files but no journal.
    """
    if not name or name.startswith(".") or "/" in name or "\\" in name:
        raise UserError(f"--out {name}: write the plain name of a folder within {root}")
    folder = root / name
    for other in (LABEL_FOLDER, *IMAGE_FOLDERS):
        is_link = folder.exists() and (root / other).exists() and folder.samefile(root / other)
        if name.casefold() == other or is_link:
            raise UserError(
                f"--out {name}: {root / other} is never written to: name another folder"
            )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {name}: {folder} is a file: name another folder")
    if folder.is_dir() and any(folder.iterdir()) and not any(folder.glob("labels*.jsonl")):
        raise UserError(
            f"--out {name}: {folder} holds files that no network wrote: name another folder"
        )
    return folder


def cut_unfinished_line(journal: Path) -> None:
    """Remove what a kill or a full disk left of a journal's last line."""
    content = journal.read_bytes() if journal.is_file() else b""
    if content and not content.endswith(b"\n"):
        os.truncate(journal, content.rfind(b"\n") + 1)


def remove_unfinished_files(folder: Path, names: Iterable[str]) -> None:
    """Remove half-written label files of these frames; others may be at work on other frames."""
    own = set(names)
    for leftover in folder.glob(".*.txt.*"):
        if leftover.name[1:].rpartition(".txt.")[0] in own:
            leftover.unlink(missing_ok=True)


def write_labels(folder: Path, journal: Path, record: Record, texts: dict[str, str]) -> None:
    """Write label files (frame name -> text), and their hashes to the journal before.

    A file that a human wrote in the meantime is kept. Raises `UserError`.
    """
    texts = {
        name: text for name, text in texts.items() if whose_file(record, folder, name) != HUMAN
    }
    hashes = {name: sha256_of_text(text) for name, text in texts.items()}
    append_record(journal, *({"frame": name, "sha256": one} for name, one in hashes.items()))
    record.machine.update(hashes.items())
    record.recent.setdefault(journal.name, set()).update(hashes.items())
    for name, text in texts.items():
        save_text(text, label_file(folder.parent, name, folder.name))


# ------------------------------------------------------------------------- which frames may be used


def refuse_labelled(root: Path, list_name: str) -> None:
    """Raise `UserError` if a human labelled a frame of a list."""
    file = list_file(root, list_name)
    for name, line in parse_list(file)[0].items():
        if label_file(root, name).is_file():
            raise UserError(
                f"{file}:{line}: {name} has a human's labels ({label_file(root, name)}): take "
                "it off the list, or pass --also-labelled to label it here too"
            )

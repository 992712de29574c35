"""The class names of a YOLO data set. Needs no torch."""

import json
import re
from pathlib import Path

from cmkd.runtime.files import UserError, read_lines

YOLO_NAMES = ("classes.txt", "obj.names", "data.yaml", "dataset.yaml")
# Quotes at the beginning of a value: the apostrophe in driver's is none.
QUOTED = r"""(?<![^\s\[{,:])(?:'(?:[^']|'')*'|"(?:[^"\\]|\\.)*")"""
IS_NO_TEXT = tuple("[{&*!|>%@")  # with which YAML begins what is not a plain text


def yolo_names(labels: Path) -> list[str]:
    """The class names of a YOLO data set: beside its labels, or one or two folders above.

    Prints where they are from. Raises `UserError`.
    """
    for folder in (labels, labels.parent, labels.parent.parent):
        for name in YOLO_NAMES:
            if (file := folder / name).is_file():
                lines = read_lines(file, "class names")
                names = names_in_yaml(file, lines) if file.suffix == ".yaml" else named(lines)
                shown = ", ".join(f"{number} {one}" for number, one in enumerate(names) if one)
                print(f"class names: {file}: {shown}")
                return names
    raise UserError(
        f"no class names: write classes.txt, a name per line in the order of the numbers, to "
        f"{labels}"
    )


def named(lines: list[str]) -> list[str]:
    """The names of a list of names; a blank line among them has a number too."""
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    return names


def names_in_yaml(file: Path, lines: list[str]) -> list[str]:
    """`names` of a data.yaml: in brackets or braces, or a line for each. Raises `UserError`."""
    text = "\n".join(without_comment(line) for line in lines)
    start = re.search(r"^([\"']?)names\1[ \t]*:[ \t]*", text, re.MULTILINE)
    advice = "write classes.txt beside it, a name per line"
    if not start:
        raise UserError(f"{file} has no names: {advice}")
    value = text[start.end() :]
    try:
        entries = entries_in_brackets(value) if value[:1] in ("[", "{") else entries_below(value)
        found = [(number, unquoted(name)) for number, name in entries]
    except ValueError as error:
        raise UserError(f"{file}: names cannot be read ({error}): {advice}") from None
    if not found:
        raise UserError(f"{file} has no names: {advice}")
    if all(number is None for number, _ in found):
        return [name for _, name in found]
    by_number = {number: name for number, name in found if number is not None}
    if sorted(by_number) != list(range(len(found))):
        raise UserError(f"{file}: the names must be numbered 0, 1, 2 ...")
    return [by_number[number] for number in range(len(found))]


def without_comment(line: str) -> str:
    """A line of YAML without its comment; a # in quotes begins none."""
    return re.sub(rf"({QUOTED})|(?:^|(?<=\s))#.*", lambda match: match[1] or "", line).rstrip()


def entries_in_brackets(text: str) -> list[tuple[int | None, str]]:
    """Number (None in a list) and name of `[car, 'big dog']` or `{0: car, 1: 'big dog'}`."""
    whole = re.match(rf"[\[{{]((?:{QUOTED}|[^\]}}])*)[\]}}]", text)
    if not whole:
        raise ValueError("a bracket is not closed")
    # The last is what follows the last comma, or the end.
    *items, _ = re.findall(rf"((?:{QUOTED}|[^,])*)(?:,|$)", whole[1].strip())
    if not all(item.strip() for item in items):
        raise ValueError("a name is missing between two commas")
    if text[0] == "[":
        return [(None, item.strip()) for item in items]
    return [numbered(item.strip()) for item in items]


def entries_below(text: str) -> list[tuple[int | None, str]]:
    """Number (None in a list) and name of the lines below `names:`, like `- car` or `0: car`."""
    first, *lines = text.splitlines() or [""]
    if first:
        raise ValueError(f"{first!r} is no list")
    entries = []
    for line in lines:
        if line and not line.startswith((" ", "\t", "-")):
            break
        if item := line.strip():
            is_listed = re.match(r"-(\s|$)", item)
            entries.append((None, item[1:].strip()) if is_listed else numbered(item))
    return entries


def numbered(item: str) -> tuple[int, str]:
    """Number and name of `0: car`."""
    match = re.fullmatch(r"([\"']?)(\d+)\1\s*:\s*(.*)", item)
    if not match:
        raise ValueError(f"{item!r} is not like 0: name")
    return int(match[2]), match[3]


def unquoted(text: str) -> str:
    """A name of YAML as it is meant. Raises `ValueError` for what is no text."""
    if text.startswith('"'):
        return str(json.loads(text)).strip()
    if text.startswith("'"):
        if not re.fullmatch(QUOTED, text):
            raise ValueError(f"{text} is not closed")
        return text[1:-1].replace("''", "'").strip()
    if text.startswith(IS_NO_TEXT) or ": " in text:
        raise ValueError(f"{text!r} is no name")
    return text

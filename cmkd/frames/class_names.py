"""The class names of a YOLO data set. Needs no torch."""

from pathlib import Path

from cmkd.runtime.files import UserError, read_lines, reason_of

YOLO_NAMES = ("classes.txt", "obj.names", "data.yaml", "dataset.yaml")
ADVICE = "write classes.txt beside it, a name per line"


def yolo_names(labels: Path) -> list[str]:
    """The class names of a YOLO data set: beside its labels, or one or two folders above.

    Prints where they are from. Raises `UserError`.
    """
    for folder in (labels, labels.parent, labels.parent.parent):
        for name in YOLO_NAMES:
            if (file := folder / name).is_file():
                is_list = file.suffix != ".yaml"
                names = named(read_lines(file, "class names")) if is_list else names_in_yaml(file)
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


def names_in_yaml(file: Path) -> list[str]:
    """`names` of a data.yaml, a list or by number. Raises `UserError`."""
    try:
        import yaml
    except ImportError:
        raise UserError(f"{file}: pip install pyyaml, or {ADVICE}") from None
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read ({reason_of(error)}): {ADVICE}") from None
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not names or not isinstance(names, dict):
        raise UserError(f"{file} has no names: {ADVICE}")
    by_number = {str(number): name for number, name in names.items()}
    numbers = [str(number) for number in range(len(names))]
    if by_number.keys() != set(numbers):
        raise UserError(f"{file}: the names must be numbered 0, 1, 2 ...")
    for name in by_number.values():
        if not isinstance(name, str):
            raise UserError(f"{file}: the name {name!r} is no text to YAML: write it in quotes")
    return [by_number[number] for number in numbers]

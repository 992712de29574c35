"""Pictures of two cameras -> pairs, their labels, names and splits. Needs no torch."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cmkd.frames.annotation_formats import key_of, without_suffix
from cmkd.frames.layout import IMAGE_SUFFIXES, SPLITS, files_below
from cmkd.runtime.files import UserError, read_lines

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
# Folders that say of a path only which camera or what kind of file it is of.
SAYS_NOTHING = {"visible", "lwir", "fir", "rgb", "thermal", "infrared", "ir", "vis", "vi"}
SAYS_NOTHING |= {"data", "images", "labels", "annotations", "jpegimages", "framespos", "framesneg"}
SHARES = {"train": 0.6, "val": 0.15, "test": 0.25}
VAL_SHARE = 0.2  # of the train frames, if a validation list is not given

Key = str  # a picture's path from the folder of its camera, without suffix


@dataclass(frozen=True)
class Pair:
    """The two pictures of a moment."""

    key: Key  # of the RGB picture
    second_key: Key
    rgb: Path
    second: Path

    @property
    def aliases(self) -> list[str]:
        """What lists and label files may call it, the most exact first."""
        keys = (self.key, self.second_key)
        return list(dict.fromkeys(form(key) for form in FORMS for key in keys))

    @property
    def has_folder(self) -> bool:
        """Whether a folder, such as its sequence's, is part of what it is called."""
        return "/" in meaningful(self.key) or "/" in meaningful(self.second_key)


def meaningful(key: Key) -> str:
    """A key without folders that only name the camera."""
    *folders, name = key.split("/")
    return "/".join([*(part for part in folders if part.lower() not in SAYS_NOTHING), name])


def base_name(key: Key) -> str:
    """A key without folders."""
    return key.rpartition("/")[2]


# What lists and label files may write of a key, the most exact first.
FORMS: tuple[Callable[[Key], str], ...] = (str, meaningful, base_name)


def find_pictures(folder: Path, option: str) -> dict[Key, Path]:
    """All pictures below a folder. Raises `UserError` if two differ only in their suffix."""
    if not folder.is_dir():
        raise UserError(f"{option} {folder} is not a folder: name the one with the pictures")
    found: dict[Key, Path] = {}
    for file in files_below(folder):
        if file.suffix.lower() in PICTURE_SUFFIXES:
            key = key_of(file, folder)
            if key in found:
                raise UserError(f"{found[key]} and {file} have one name: remove one of them")
            found[key] = file
    if not found:
        raise UserError(f"{option} {folder} has no picture ({', '.join(PICTURE_SUFFIXES)})")
    return found


def find_pairs(
    rgb: Path, second: Path, pattern: tuple[str, str] | None
) -> tuple[list[Pair], Counter[str]]:
    """The pairs of two folders, and how many pictures have no partner.

    The partner has the same path. With `pattern` (regular expression, replacement) it has the path
    that replacing gives, and a picture whose path does not match is of the other camera. Raises
    `UserError` if no picture has a partner, and for one that two pictures have, or that is the
    picture itself.
    """
    rgb_pictures, second_pictures = find_pictures(rgb, "--rgb"), find_pictures(second, "--second")
    pairs: dict[Key, Pair] = {}  # by the second picture
    alone, unmatched = [], []
    for key, file in rgb_pictures.items():
        partner = partner_of(key, pattern)
        if partner is None:
            unmatched.append(file)
        elif partner not in second_pictures:
            alone.append(file)
        elif partner in pairs:
            raise UserError(
                f"{pairs[partner].rgb} and {file} have one partner, {second_pictures[partner]}: "
                "change --pair so that each has its own"
            )
        elif file.samefile(second_pictures[partner]):
            raise UserError(f"{file} would be its own partner: pass --pair or another --second")
        else:
            pairs[partner] = Pair(key, partner, file, second_pictures[partner])
    if not pairs:
        raise UserError(
            f"no picture of {rgb} has a partner of the same path in {second}, like "
            f"{min(second_pictures)} for {min(rgb_pictures)}: say how names differ, as --pair "
            r"'(.*)_RGB=\1_PreviewData'"
        )
    partners = {pair.second for pair in pairs.values()}  # both cameras may be in one folder
    counts = Counter()
    for what, files in (
        ("RGB pictures without a partner, left out", alone),
        ("pictures that are in no pair, because --pair does not match them", unmatched),
    ):
        counts[what] = sum(file not in partners for file in files)
    if rgb.resolve() != second.resolve():
        unused = len(second_pictures.keys() - pairs.keys())
        counts["second pictures without a partner, left out"] = unused
    return list(pairs.values()), +counts


def partner_of(key: Key, pattern: tuple[str, str] | None) -> Key | None:
    """The path that the partner of a picture has; None if `pattern` does not match the picture.

    Raises `UserError` for a replacement that names a group that is not there.
    """
    if pattern is None:
        return key
    match = re.fullmatch(pattern[0], key)
    try:
        return match.expand(pattern[1]) if match else None
    except (re.error, IndexError) as error:
        raise UserError(
            f"--pair {pattern[0]}={pattern[1]}: the replacement cannot be used ({error}): name "
            r"groups of the expression, as \1"
        ) from None


def lookup_by_alias(pairs: Iterable[Pair]) -> dict[str, Pair]:
    """Pairs by everything that they may be called; what two may be called is left out."""
    found: dict[str, Pair | None] = {}
    for pair in pairs:
        for alias in pair.aliases:
            known = found.setdefault(alias, pair)
            if known is not pair:
                found[alias] = None
    return {alias: pair for alias, pair in found.items() if pair}


def find_pair(name: str, by_alias: dict[str, Pair]) -> Pair | None:
    """The pair that a list or a label file calls so; None if it is none or more than one.

    The name alone, without folders, counts only if the name or the pair has no others: pictures of
    two sequences often have the same numbers.
    """
    name = name.removeprefix("./")
    called = [name, meaningful(name)]
    if name.startswith(("/", "../")) or name[1:3] == ":/":
        # Where the folder of the pictures begins in such a path is not known.
        called += [*tails(name), *tails(meaningful(name))]
    for one in called:
        if one in by_alias:
            return by_alias[one]
    pair = by_alias.get(base_name(name))
    if pair and pair.has_folder and "/" in meaningful(name):
        return None
    return pair


def tails(path: str) -> list[str]:
    """A path without its first folders, the longest first; one folder stays at least."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(1, len(parts) - 1)]


def find_listed(line: str, by_alias: dict[str, Pair]) -> Pair | None:
    """The pair that a line of a list names, with or without a suffix."""
    name = line.strip()
    return find_pair(name, by_alias) or find_pair(without_suffix(name), by_alias)


def is_of_second(name: str, pair: Pair) -> bool:
    """Whether a label file's name fits a pair's second picture, but not its RGB picture."""
    for form in FORMS:
        if form(name) == form(pair.key):
            return False
        if form(name) == form(pair.second_key):
            return True
    return False


# -------------------------------------------------------------------------------- names and splits


def sequences_of(pairs: list[Pair], pattern: str | None) -> dict[Key, str]:
    """The sequence of each pair: what the regular expression finds in its key, or itself.

    Raises `UserError` if it finds nothing in a key.
    """
    if pattern is None:
        return {pair.key: meaningful(pair.key) for pair in pairs}
    sequences = {}
    for pair in pairs:
        sequence = sequence_in(pair.key, pattern)
        if not sequence:
            raise UserError(
                f"--sequence {pattern} finds nothing in {pair.key}: it must find the sequence in "
                "every RGB picture's path"
            )
        sequences[pair.key] = sequence
    return sequences


def sequence_in(key: Key, pattern: str) -> str:
    """What a regular expression finds in a key: its first group that is used, or all of it."""
    match = re.search(pattern, key)
    if not match:
        return ""
    return next((group for group in match.groups() if group is not None), match[0])


def frame_names(pairs: list[Pair], sequences: dict[Key, str]) -> dict[Key, str]:
    """Frame names from which the recording can be read: `<sequence>_<picture>`.

    Raises `UserError` if two pairs get one name.
    """
    names: dict[Key, str] = {}
    key_of: dict[str, Key] = {}
    for pair in pairs:
        path, sequence = meaningful(pair.key), sequences[pair.key]
        rest = path.rpartition("/")[2] if sequence != path else ""
        name = plain(sequence) + (f"_{plain(rest)}" if rest else "")
        other = key_of.setdefault(name, pair.key)
        if other != pair.key:
            raise UserError(f"{other} and {pair.key} would both be called {name}: rename one")
        names[pair.key] = name
    return names


def plain(text: str) -> str:
    """A text without what frame names must not have, or what means something in them."""
    name = re.sub(r"[\s/\\_,]+", "-", text).strip("-")
    # From a list's `001.jpg` the suffix would be taken off.
    suffix = next((one for one in IMAGE_SUFFIXES if name.endswith(one)), "")
    return f"{name.removesuffix(suffix)}-{suffix[1:]}" if suffix else name


def split_by_sequence(counts: dict[str, int], shares: dict[str, float] = SHARES) -> dict[str, str]:
    """A split for each sequence (with its number of frames), near to shares of the frames.

    Sequences come in an order that follows from a hash of their names; each goes where most frames
    are missing. The same on every machine.
    """
    order = sorted(counts, key=lambda name: hashlib.sha256(name.encode()).digest())
    total = sum(counts.values())
    missing = {split: share * total for split, share in shares.items()}
    split_of = {}
    for name in order:
        split = max(missing, key=missing.__getitem__)
        split_of[name] = split
        missing[split] -= counts[name]
    return split_of


def given_splits(
    choices: dict[str, str], rgb: Path, pairs: list[Pair], sequences: dict[Key, str]
) -> tuple[dict[str, list[Pair]], Counter[str]]:
    """The pairs of given lists or folders (split -> file, or folder in `rgb`), and what is missing.

    If no validation list is given, a fifth of the train frames becomes one, by whole sequences.
    Raises `UserError`.
    """
    by_alias, counts = lookup_by_alias(pairs), Counter()
    splits: dict[str, list[Pair]] = defaultdict(list)
    split_of: dict[Key, str] = {}
    for split, choice in choices.items():
        chosen = []
        if (rgb / choice).is_dir():
            chosen = [pair for pair in pairs if pair.key.startswith(f"{choice.rstrip('/')}/")]
        else:
            for line in read_lines(Path(choice), "a list of pictures"):
                if not line.strip():
                    continue
                if pair := find_listed(line, by_alias):
                    chosen.append(pair)
                else:
                    counts[f"names in {Path(choice).name} without a pair"] += 1
        for pair in dict.fromkeys(chosen):
            other = split_of.setdefault(pair.key, split)
            if other != split:
                raise UserError(
                    f"--split: {pair.key} is in {other} and in {split}: take it off one"
                )
            splits[split].append(pair)
        if not chosen:
            raise UserError(f"--split {split}={choice} names no pair")
    if "val" not in splits and "train" in splits:
        numbers = Counter(sequences[pair.key] for pair in splits["train"])
        shares = {"train": 1 - VAL_SHARE, "val": VAL_SHARE}
        parts = split_by_sequence(dict(numbers), shares)
        train = splits.pop("train")
        for pair in train:
            splits[parts[sequences[pair.key]]].append(pair)
    return {split: splits[split] for split in SPLITS if split in splits}, counts

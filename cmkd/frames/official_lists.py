"""Which official frames are trained and tested on, and the weather and time of each.

The lists are those of the data set's repository. A condition is like `clear_night` or `snow_day`.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from cmkd.frames.layout import SPLITS, read_list, recording_of
from cmkd.runtime.files import UserError

WEATHERS = ("light_fog", "dense_fog", "snow")  # besides clear
FOGS = ("light_fog", "dense_fog")
RAIN = "rain"  # a list that overlaps with the others
# What --split names: weathers, times.
CHOICES = {
    "all_night": (True, ("night",)),
    "clear_night": (False, ("night",)),
    "all_day": (True, ("day",)),
    "clear_day": (False, ("day",)),
    "all": (True, ("night", "day")),
}
Lists = dict[str, list[str]]


def clear_lists(time: str) -> dict[str, str]:
    """The official lists of clear frames by split."""
    return {split: f"{split}_clear_{time}" for split in SPLITS}


def weather_lists(time: str) -> list[str]:
    """The official lists of fog and snow, which have no splits."""
    return [f"{weather}_{time}" for weather in WEATHERS]


def find_splits(source: Path, splits: Path | None) -> Path | None:
    """The folder of the official lists, if there is one."""
    usual = [source / "splits", source, source.parent / "splits"]
    for folder in [splits] if splits else usual:
        if any((folder / f"train_clear_{time}.txt").is_file() for time in ("night", "day")):
            return folder
    return None


def read_official(folder: Path, times: tuple[str, ...]) -> Lists:
    """The official lists of these times of day. Raises `UserError` if one is missing."""
    names = [name for time in times for name in (*clear_lists(time).values(), *weather_lists(time))]
    return {name: read_list(folder / f"{name}.txt") for name in names}


def choose_official(choice: str, folder: Path) -> tuple[Lists, dict[str, str]]:
    """The lists `<split>_<time>` of a choice of `CHOICES`, and the condition of each frame.

    No recording is in two splits. Raises `UserError`.
    """
    with_weather, times = CHOICES[choice]
    official = read_official(folder, times)
    split_of: dict[str, str] = {}
    lists: Lists = {}
    for time in times:
        if with_weather:
            frames = frames_of_all_weathers(official, time, split_of)
        else:
            frames = {split: official[name] for split, name in clear_lists(time).items()}
        lists |= {f"{split}_{time}": names for split, names in frames.items()}
    return lists, conditions_of_frames(official)


def frames_of_all_weathers(
    official: Lists, time: str, split_of: dict[str, str] | None = None
) -> Lists:
    """The frames of all lists of a time of day by split. No recording is in two splits.

    Clear frames keep their official split. A recording in fog or snow is in the split of the clear
    frames of this recording, or else in the split that follows from its name. `split_of` has the
    splits of recordings that are decided already, and gets these.
    """
    split_of = {} if split_of is None else split_of
    frames: Lists = {split: [] for split in SPLITS}
    for split, list_name in clear_lists(time).items():
        for name in official[list_name]:
            frames[split_of.setdefault(recording_of(name), split)].append(name)
    for list_name in weather_lists(time):
        for name in official[list_name]:
            recording = recording_of(name)
            split = split_of.setdefault(recording, split_by_hash(recording))
            frames[split].append(name)
    return frames


def split_by_hash(name: str) -> str:
    """train (60 %), val (15 %) or test (25 %) for a recording, the same on every machine."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    if share < 0.60:
        return "train"
    return "val" if share < 0.75 else "test"


def conditions_of_frames(official: Lists) -> dict[str, str]:
    """Frame name -> condition."""
    condition_of = {}
    for list_name, names in official.items():
        split, _, condition = list_name.partition("_")
        condition_of.update(dict.fromkeys(names, condition if split in SPLITS else list_name))
    return condition_of


def known_conditions(folder: Path | None) -> dict[str, str]:
    """The conditions of all frames of the official lists that are there."""
    official = {}
    for time in ("night", "day"):
        for name in (*clear_lists(time).values(), *weather_lists(time)):
            if folder and (folder / f"{name}.txt").is_file():
                official[name] = read_list(folder / f"{name}.txt")
    return conditions_of_frames(official)


def rainy_frames(folder: Path | None) -> set[str]:
    """The frames of the official list of rain, if it is there."""
    file = folder / f"{RAIN}.txt" if folder else None
    return set(read_list(file)) if file and file.is_file() else set()


def condition_from_meta(file: Path) -> str:
    """The condition that a meta file of either kind gives; empty if it gives none.

    Raises `UserError` if it cannot be read.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{file} is missing or damaged") from None
    if not isinstance(content, dict) or not isinstance(content.get("daytime"), dict):
        return ""
    time = "night" if content["daytime"].get("night") else "day"
    return f"{weather_of(content)}_{time}"


def weather_of(content: dict[str, Any]) -> str:
    """clear, light_fog, dense_fog, rain or snow, from a meta file's content."""
    weather = content.get("weather")
    if isinstance(weather, dict):  # labeltool_labels
        found = [name for name in ("dense_fog", "light_fog", "snow", RAIN) if weather.get(name)]
        return found[0] if found else "clear"
    fog = inner(content, "fog", "yes")  # labeltool_labels_refined
    if fog:
        return "dense_fog" if fog.get("denseFog") else "light_fog"
    precipitation = inner(content, "precipitation", "yes")
    if any(inner(precipitation, "snow").values()):
        return "snow"
    return RAIN if precipitation.get("rain") else "clear"


def inner(content: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The dictionary below these keys; empty if there is none, or if nothing in it is set."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else {}
    if not isinstance(content, dict):
        return {}
    return content if any(content.values()) else {}

"""Weights files and the settings in the JSON beside them. Loading never runs code."""

import hashlib
import io
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmkd.runtime.files import UserError, read_json, reason_of, write_atomically

# Where trainers keep the state_dict, and what they write before names.
STATE_KEYS = ("model", "state_dict", "model_state_dict", "model_state", "net", "weights")
PREFIXES = ("module.", "_orig_mod.", "model.", "module.")
STEM = "backbone.body.conv1.weight"  # the first convolution, [64, channels, 7, 7]


class WeightsError(UserError):
    """Weights that are missing or do not fit."""


def save_torch(value: Any, path: Path) -> None:
    """`torch.save`, atomically. Raises `UserError`."""
    content = io.BytesIO()  # torch reports a full disk as an internal error, so it writes to memory
    torch.save(value, content)
    write_atomically(path, lambda unfinished: unfinished.write_bytes(content.getbuffer()))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def read_content(path: Path) -> Any:
    """What `torch.save` wrote: tensors and plain values. Raises `WeightsError`."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing: train it first, or name another file") from None
    except pickle.UnpicklingError:
        refuse_what_is_no_checkpoint(path)
        raise WeightsError(
            f"{path} cannot be read as weights: it is damaged, or holds more than tensors and "
            "plain values, which could run code"
        ) from None
    except Exception as error:  # a damaged file can fail in any of torch's or zipfile's ways
        refuse_what_is_no_checkpoint(path)
        raise WeightsError(f"{path} cannot be read as weights ({reason_of(error)})") from None


def refuse_what_is_no_checkpoint(path: Path) -> None:
    """Raise `WeightsError` for a web page or a git-lfs pointer in place of a file."""
    with path.open("rb") as file:
        start = file.read(200).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a git-lfs pointer, not the file: run git lfs pull")
    if start.startswith(b"<"):
        raise WeightsError(
            f"{path} is a web page, perhaps of a sign-in, not weights: download it again"
        )


def state_in(content: Any, path: Path) -> dict[str, Tensor]:
    """The state_dict in what a trainer saved: all of it, or under a usual key.

    Raises `WeightsError` that names the keys.
    """
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds no state_dict but a {type(content).__name__}")
    for key in (None, *STATE_KEYS):
        state = content if key is None else content.get(key)
        if (
            isinstance(state, dict)
            and state
            and all(
                isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
            )
        ):
            return state
    nested = [
        str(key)
        for key, value in content.items()
        if isinstance(value, dict) and any(isinstance(one, Tensor) for one in value.values())
    ]
    where = (
        f"; its tensors are under {', '.join(nested)}: save one of these alone" if nested else ""
    )
    raise WeightsError(
        f"{path} holds no state_dict: expected a dictionary of named tensors, or one under "
        f"'model'{where}"
    )


def read_state(path: Path) -> dict[str, Tensor]:
    """The detector's state_dict in a file, with the names of today's torchvision.

    Accepts a plain state_dict, our training checkpoint (under `model`) and those of usual trainers
    (`STATE_KEYS`), the prefixes of distributed and compiled training, the names of torchvision 0.12
    (the published checkpoints) and a torchvision ResNet classifier (as the backbone). Half
    precision becomes float32. Raises `WeightsError`.
    """
    return {
        current_name(name): value.float() if value.is_floating_point() else value
        for name, value in state_in(read_content(path), path).items()
    }


def current_name(name: str) -> str:
    """A parameter's name in today's torchvision.

    Drops `PREFIXES`, adds the index that torchvision 0.13 gave to FPN and RPN layers, and puts a
    classifier's layers under `backbone.body`.
    """
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    name = re.sub(
        r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", name
    )
    name = re.sub(r"^(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2", name)
    return re.sub(r"^(conv1|bn1|layer[1-4])\.", r"backbone.body.\1.", name)


def settings_file(path: Path) -> Path:
    """The JSON beside a weights file."""
    return path.with_suffix(".json")


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that weights were trained with.

    From the JSON beside the file, else the arguments in a training checkpoint, else empty.
    Raises `WeightsError`.
    """
    beside = settings_file(path)
    if beside.is_file():
        try:
            settings = read_json(beside, "fix or remove it")
        except UserError as error:
            raise WeightsError(str(error)) from None
        refuse_bad_settings(settings, beside)
        return settings
    content = read_content(path)
    settings = content.get("arguments", {}) if isinstance(content, dict) else {}
    refuse_bad_settings(settings, path)
    if "input" in settings:  # an option of train_teacher.py
        settings = {**settings, "modality": settings["input"]}
    return settings


def refuse_bad_settings(settings: Any, path: Path) -> None:
    """Raise `WeightsError` for settings with a value of a wrong type."""
    if not isinstance(settings, dict):
        raise WeightsError(
            f"{path}: its settings are a {type(settings).__name__}, not a dictionary: fix or "
            "remove it"
        )
    for name in ("min_size", "max_size", "proposals", "candidates", "padding"):
        value = settings.get(name, 1)
        if name == "candidates" and value is None:  # torchvision's default
            continue
        if type(value) is not int or value < 1:
            raise WeightsError(
                f"{path}: {name} is {value!r}, not a whole number of at least 1: fix or remove it"
            )
    for name in ("classes", "ignore"):
        names = settings.get(name) or []
        if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
            raise WeightsError(
                f"{path}: {name} is {names!r}, not a list of names: fix or remove it"
            )

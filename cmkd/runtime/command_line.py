"""Argument parsing with one-line errors. Needs no torch."""

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line, without the usage page."""

    def __init__(self, description: str | None) -> None:
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parse; `~` is the home folder after `--option=` too, where shells leave it."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([with_home(word) for word in words], namespace)

    def error(self, message: str) -> NoReturn:
        """End the program with exit code 2."""
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def with_home(word: str) -> str:
    """`--out=~/x` with the home folder in place of `~`; other words as they are."""
    option, equals, value = word.partition("=")
    if option.startswith("--") and value.startswith("~"):
        return f"{option}{equals}{os.path.expanduser(value)}"  # noqa: PTH111 - as shells do
    return word


def at_least(least: int) -> Callable[[str], int]:
    """argparse type: a whole number of at least `least`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return parse


def positive_float(text: str) -> float:
    """argparse type: a finite number above 0."""
    if not 0 < (value := to_float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def non_negative_float(text: str) -> float:
    """argparse type: a finite number of at least 0."""
    if not 0 <= (value := to_float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def part_of_one(text: str) -> float:
    """argparse type: a number above 0 and below 1."""
    if not 0 < (value := to_float(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and below 1")
    return value


def to_float(text: str) -> float:
    """The text as a float; NaN, which fails every range check, if it is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def cores() -> int:
    """How many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

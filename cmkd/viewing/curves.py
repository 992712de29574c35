"""Loss, validation AP and learning rate of several runs in one picture, from their log.jsonl."""

import json
from pathlib import Path
from typing import Any

from cmkd.runtime.files import UserError, reason_of, write_atomically
from cmkd.viewing.contact_sheet import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY_BLUE, VERMILION

# In the order of runs; dashes tell them apart without colour.
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY_BLUE, BLACK)
DASHES = ("-", "--", "-.", ":")
PANELS = {
    "training loss": lambda epoch: sum(epoch["losses"].values()),
    "validation AP": lambda epoch: epoch["val"]["AP"],
    "learning rate": lambda epoch: epoch["lr"],
}


def read_epochs(file: Path) -> list[dict[str, Any]]:
    """The records of the epochs in a log; the last one if an epoch was trained twice.

    Raises `UserError`.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file} cannot be read ({reason_of(error)}): name the log.jsonl of a run"
        ) from None
    epochs = {}
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            break  # a kill left this line unfinished
        try:
            record = json.loads(line)
            if {"epoch", "losses"} <= record.keys():
                for value in PANELS.values():
                    value(record)
                epochs[record["epoch"]] = record
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{file}:{number}: no record of a run: name the log.jsonl of a run, or remove the "
                "line"
            ) from None
    if not epochs:
        raise UserError(f"{file} has no epoch yet: wait for the first one to end")
    return [epochs[number] for number in sorted(epochs)]


def draw_curves(logs: dict[str, Path], out: Path) -> None:
    """Write a PNG of three panels with one line for each run; `logs` has their logs by title.

    Raises `UserError`, also if matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise UserError(
            "--curves draws with matplotlib, which is not installed: pip install matplotlib"
        ) from None
    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    runs = {title: read_epochs(file) for title, file in logs.items()}
    size = 15, 4.6 + 0.22 * len(runs)
    figure, panels = pyplot.subplots(1, len(PANELS), figsize=size, layout="constrained")
    for panel, (name, value) in zip(panels, PANELS.items(), strict=True):
        for index, (title, epochs) in enumerate(runs.items()):
            panel.plot(
                [epoch["epoch"] for epoch in epochs],
                [value(epoch) for epoch in epochs],
                label=title,
                color=COLOURS[index % len(COLOURS)],
                linestyle=DASHES[index % len(DASHES)],
                linewidth=1.8,
                marker="o",
                markersize=4,
            )
        panel.set(title=name, xlabel="epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
    panels[2].set_yscale("log")
    handles, titles = panels[0].get_legend_handles_labels()
    figure.legend(handles, titles, loc="outside lower center", ncols=min(4, len(runs)))
    write_atomically(out, lambda unfinished: figure.savefig(unfinished, format="png", dpi=110))
    pyplot.close(figure)

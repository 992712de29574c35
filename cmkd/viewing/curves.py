"""Loss, validation AP and learning rate of several runs in one picture, from their log.jsonl."""

import json
from pathlib import Path
from typing import Any

from utils import UserError, reason_of, write_atomically

# Okabe and Ito's colour-blind-safe hues; the dashes tell the same without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
PANELS = {"training loss": lambda epoch: sum(epoch["losses"].values()),
          "validation AP": lambda epoch: epoch["val"]["AP"],
          "learning rate": lambda epoch: epoch["lr"]}


def read_epochs(file: Path) -> list[dict[str, Any]]:
    """The records of the epochs of a log; of an epoch that was trained again, the last. Raises `UserError`."""
    epochs = {}
    try:
        # A line that a kill left unfinished has no end.
        lines = [line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({reason_of(error)}): name the log.jsonl of a run") from None
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if {"epoch", "losses"} <= record.keys():
                [panel(record) for panel in PANELS.values()]
                epochs[record["epoch"]] = record
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{file}:{number}: no record of a run: name the log.jsonl of a run, or remove the "
                            "line") from None
    if not epochs:
        raise UserError(f"{file} has no epoch yet: wait for the first one to end")
    return [epochs[number] for number in sorted(epochs)]


def draw_curves(logs: dict[str, Path], out: Path) -> None:
    """A PNG with three panels, in which every run (a log by title) has one line. Raises `UserError`, also where
    matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise UserError("--curves draws with matplotlib, which is not installed: pip install matplotlib") from None
    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    runs = {title: read_epochs(file) for title, file in logs.items()}
    figure, panels = pyplot.subplots(1, len(PANELS), figsize=(15, 4.6 + 0.22 * len(runs)), layout="constrained")
    for panel, (name, value) in zip(panels, PANELS.items(), strict=True):
        for place, (title, epochs) in enumerate(runs.items()):
            panel.plot([epoch["epoch"] for epoch in epochs], [value(epoch) for epoch in epochs], label=title,
                       color=COLOURS[place % len(COLOURS)], linestyle=DASHES[place % len(DASHES)], linewidth=1.8,
                       marker="o", markersize=4)
        panel.set(title=name, xlabel="epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
    panels[2].set_yscale("log")
    handles, titles = panels[0].get_legend_handles_labels()
    figure.legend(handles, titles, loc="outside lower center", ncols=min(4, len(runs)))
    write_atomically(out, lambda unfinished: figure.savefig(unfinished, format="png", dpi=110))
    pyplot.close(figure)

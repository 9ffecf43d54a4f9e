"""The picture of a noise-conditional classifier: its accuracy against the noise level."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ornstein.figures.canvas import DATA, blank, save
from ornstein.metrics import Record


def accuracy_curve(records: Sequence[Record], path: str | Path) -> None:
    """Held-out accuracy with its interval against sigma/alpha, from the records of `accuracy_by_level`."""
    levels = [float(record.note.rpartition("= ")[2]) for record in records]
    values = np.array([record.value for record in records])
    low, high = np.array([record.interval or (record.value, record.value) for record in records]).T
    figure = blank(7, 3.5)
    axes = figure.add_subplot()
    axes.fill_between(levels, low, high, color=DATA, alpha=0.2, linewidth=0)
    axes.plot(levels, values, color=DATA, marker="o", markersize=4)
    axes.set(xlabel="noise level sigma/alpha", ylabel="held-out accuracy", xscale="log", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    save(figure, path)
